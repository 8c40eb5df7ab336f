"""What no threshold names: whether a metric's value is as odd as hardly any before it, for its hour and kind of day.

    detector, alarm = Detector(300), Alarm(threshold(300, tolerated(8)))
    if alarm.update(detector.update(time, value)): ...     # once an incident; each step is given once, in order

A score of s means that about one step in 10^s is as far from what is usual. It has no unit, so that one threshold serves every
metric, and is a number of false alarms that somebody tolerates. One pass; nothing is judged by what came after it.
"""

import bisect
import calendar
import csv
import fcntl
import functools
import io
import json
import math
import os
import re
import stat
import time
from collections import defaultdict, deque, namedtuple
from contextlib import ExitStack, contextmanager, suppress

WEEK = 7 * 86400                # seconds
WEEKS = 4                       # in which the whole check may have one false alarm
RATE, RATE_STEP = .02, 300      # of the way to a new value that a baseline goes, at steps of so many seconds
SMOOTHED, LASTING = 3, 8        # residuals whose means tell what stays, from what is odd once
TAIL, FEWEST, MOST = .05, 10, 32    # the part of all features so far that is their tail; the fewest and the most of them
ROUNDING = 1e-9                 # of a value's size: less is no departure
LUMP = .1                       # of where a tail begins: that counts are whole makes no tail steeper
ALIKE = 1.0                     # the least mean excess of a sum of two scores; .87 is theirs if both are one and exponential
EITHER = math.log10(2)          # what a score loses because either of two may be it
RECENT = 50                     # scores that an onset exceeds
SAMPLES, DAYS = 200, 2          # learnt from before anything is judged: steps, and days before this one that had the hour
CALM, CALM_STEPS = 2, 12        # so many scores in a row below this end an incident
LARGEST = 1e100                 # that a value may be, either side of 0, so that no sum overflows
PACED = 25                      # differences of time that tell the step of a series
CENTURY = 100 * 365.25 * 86400
UNITS = (CENTURY / 100, "years"), (WEEK, "weeks"), (86400, "days"), (3600, "hours"), (60, "minutes")
UNIX_SECONDS = re.compile(r"\d{1,11}(?:\.\d*)?", re.ASCII)
TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,]\d+)?)? ?(Z|[+-](\d\d):?(\d\d))?", re.ASCII)

# time: Unix seconds. expected, low, high: in the unit of the value; between low and high the score stays below the threshold.
# onset: whether the score exceeds the RECENT before it. state: "learning" or "judged".
Judged = namedtuple("Judged", "time value score expected low high onset state")


def tolerated(metrics):
    """False alarms a week of each of so many metrics, if the whole check may have one in WEEKS weeks."""
    return 1 / WEEKS / metrics


def threshold(step, tolerated):
    """The score that quiet values of this step, in seconds, reach so many times a week."""
    return math.log10(WEEK / step / tolerated)


class Tail:
    """The largest of all features so far, and by them how rare another is.

    What they exceed their least by is taken as exponential. Of a mean known from so few the next one is Lomax-distributed: that
    makes less of an extreme than the exponential itself would. least: of the mean, however alike the largest were.
    """

    def __init__(self):
        self.count, self.top = 0, []

    def add(self, feature):
        self.count += 1
        bisect.insort(self.top, feature)
        del self.top[:-MOST]

    def begin(self):
        """(size, score where it begins, feature where it begins), of at least FEWEST features."""
        size = min(MOST, max(FEWEST, int(TAIL * self.count)))
        return size, math.log10(self.count / size), self.top[-size]

    def scale(self, size, start, least):
        return max(sum(self.top[-size:]) - size * start, size * max(least, LUMP * start))

    def score(self, feature, least):
        """s, if one feature in 10^s is as large. Below the tail it goes in proportion, to 0 for the feature 0."""
        if self.count < FEWEST:
            return 0.0
        size, begins, start = self.begin()
        if feature > start:
            return begins + size * math.log10(1 + (feature - start) / self.scale(size, start, least))
        return begins * feature / start if start else 0.0

    def reach(self, score, least):
        """The feature of this score."""
        size, begins, start = self.begin()
        if score > begins:
            return start + self.scale(size, start, least) * (10 ** ((score - begins) / size) - 1)
        return start * score / begins if begins else start


class Detector:
    """Judges one metric, of which each step of so many seconds has one value or none. limit: the threshold, for the band.

    A value's residual is its distance from the baseline of this local hour on weekdays or on weekends. Three features are ranked
    among their like: the last residual, which one odd value moves; the mean of SMOOTHED, which three move more; and that of
    LASTING or of SMOOTHED, whichever is less, which shows a little that stays, and is over soon after it. The score is the third
    or the sum of the first two, which is ranked once more, because nobody knows how much the two have to do with each other.
    """

    def __init__(self, step, local=time.localtime, limit=None):
        self.local, self.limit = local, threshold(step, tolerated(1)) if limit is None else limit
        self.baselines = {}     # cell: (baseline, values so far)
        self.days = defaultdict(functools.partial(deque, maxlen=DAYS + 1))     # cell: the last days of the year that had it
        self.residuals, self.last, self.mean, self.sum, self.lasting = deque(maxlen=LASTING), Tail(), Tail(), Tail(), Tail()
        self.recent = deque([0.0], maxlen=RECENT)
        self.pace(step)

    def pace(self, step):
        """Says that steps are of so many seconds: a baseline follows as fast in hours, not in steps."""
        self.rate = 1 - (1 - RATE) ** (step / RATE_STEP)

    @staticmethod
    def scaled(value):
        """What a residual is taken of."""
        return value

    unscaled = scaled

    def late(self, many):
        """(sum of so many of the last residuals but for the last, how many it would be with that)."""
        late = list(self.residuals)[-many:]
        return sum(late[:-1]), len(late)

    def size(self, many):
        before, count = self.late(many)
        return abs(before + self.residuals[-1]) / count

    def rank(self, rounding):
        """The score of the residuals, 0 until SAMPLES are known; they then belong to those that others are ranked among."""
        last, mean = abs(self.residuals[-1]), self.size(SMOOTHED)
        lasting = min(mean, self.size(LASTING))
        ranks, known = self.last.score(last, rounding) + self.mean.score(mean, rounding), self.sum.count
        rank = max(self.sum.score(ranks, ALIKE), self.lasting.score(lasting, rounding)) - EITHER if known >= SAMPLES else 0.0
        ranks = min(ranks, 2 * math.log10(known + 1))
        for tail, feature in ((self.last, last), (self.mean, mean), (self.sum, ranks), (self.lasting, lasting)):
            tail.add(feature)
        return max(0.0, rank)

    def band(self, expected, rounding):
        """(low, high): in between neither feature of the sum has half the ranks that alarm, and what stays is not enough to."""
        limit = self.limit + EITHER
        half = self.sum.reach(limit, ALIKE) / 2
        low, high = -math.inf, math.inf
        for many, tail, rank in ((1, self.last, half), (SMOOTHED, self.mean, half), (LASTING, self.lasting, limit)):
            before, count = self.late(many)
            reach = tail.reach(rank, rounding) * count
            low, high = max(low, -reach - before), min(high, reach - before)
        return self.unscaled(expected + min(0.0, low)), self.unscaled(expected + max(0.0, high))

    def learnt(self, cell, day):
        """Whether there is enough to judge this hour by."""
        days = self.days[cell]
        if day not in days:
            days.append(day)
        return len(days) > DAYS and self.sum.count >= SAMPLES

    def update(self, when, value):
        """What this time's value is, as Judged. Raises ValueError if it is not a finite number."""
        if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
            raise ValueError("not a finite number: {!r}".format(value))
        local = self.local(when)
        cell = local.tm_hour, local.tm_wday >= 5
        scaled = self.scaled(value)
        expected, count = self.baselines.get(cell, (scaled, 0))
        self.residuals.append(scaled - expected)
        self.baselines[cell] = expected + max(self.rate, 1 / (count + 1)) * (scaled - expected), count + 1
        rounding = ROUNDING * max(1, abs(expected))
        low, high = self.band(expected, rounding) if self.sum.count >= SAMPLES else (-math.inf, math.inf)
        state = "judged" if self.learnt(cell, local.tm_yday) else "learning"
        rank = self.rank(rounding)
        onset = rank > max(self.recent)
        self.recent.append(rank)
        return Judged(when, value, rank, self.unscaled(expected), low, high, onset, state)


class Counts(Detector):
    """Judges a metric that counts events, in square roots: by chance they spread the same, whatever there are. Less than 0 is 0.

    The roots are of one event more, or the step from none to the first would be too large. expected: less than the mean.
    """

    @staticmethod
    def scaled(value):
        return math.sqrt(1 + max(0, value))

    @staticmethod
    def unscaled(scaled):
        return max(1, scaled) ** 2 - 1


class Silence:
    """Judges how long there was no event, of a metric that counts them. Missing steps count for nothing: they may have had some.

    Where E are expected and come one by one, none comes with the chance exp(-E); where they come in lots, E lots are expected.
    """

    def __init__(self):
        self.since, self.expected = None, 0.0       # time of the last step with an event, and what was expected after it
        self.squares = self.sum = 0.0               # of all residuals, and of what was expected: their ratio is the size of a lot

    def update(self, judged):
        """The silence up to what a Detector judged, as Judged: value 0, since expected so many, and 1 would have been enough."""
        usual = max(0.0, judged.expected)
        self.squares, self.sum = self.squares + (judged.value - usual) ** 2, self.sum + usual
        if judged.value > 0 or self.since is None:
            self.since, self.expected = judged.time, 0.0
        elif judged.state == "judged":
            self.expected += usual
        lots = self.expected / max(1.0, self.squares / self.sum if self.sum else 1.0)
        return judged._replace(value=0, score=lots / math.log(10), expected=self.expected, low=1, high=math.inf, onset=True)


class Alarm:
    """What the scores of one metric come to: state "learning", "quiet" or "degraded", and since when and by what it is that."""

    def __init__(self, limit):
        self.limit, self.state, self.since, self.cause, self.calm = limit, "learning", None, None, 0

    def update(self, judged):
        """Whether an incident begins with this. It ends after CALM_STEPS scores below CALM: what stays is the new usual."""
        begins = self.state != "degraded" and judged.state == "judged" and judged.onset and judged.score >= self.limit
        self.calm = self.calm + 1 if judged.score < CALM else 0
        if begins:
            self.state, self.since, self.cause = "degraded", judged.time, judged
        elif self.state != "degraded" or self.calm >= CALM_STEPS:
            self.state, self.since, self.cause = "quiet" if judged.state == "judged" else "learning", None, None
        return begins


def rarity(score, step):
    """How often quiet values of this step, in seconds, reach the score, in words."""
    seconds = step * 10 ** min(score, 12)       # more than a century for any step
    if seconds >= CENTURY:
        return "less than once in a century"
    for length, unit in UNITS:
        if seconds >= 2 * length:
            return "about once in %d %s" % (round(seconds / length), unit)
    return "at any time"


def moment(text):
    """(Unix seconds, what tells the hour of it) of a timestamp: local time as it is written if it has no zone. Or ValueError."""
    if UNIX_SECONDS.fullmatch(text):
        return float(text), time.localtime
    found = TIMESTAMP.fullmatch(text)
    if not found:
        raise ValueError("not a timestamp: {!r}".format(text))
    *parts, zone, hours, minutes = found.groups()
    year, month, day, hour, minute, second = (int(part or 0) for part in parts)
    if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1] and hour < 24 and minute < 60 and second <= 60):
        raise ValueError("no such time: {!r}".format(text))
    written = calendar.timegm((year, month, day, hour, minute, second))
    if not zone:
        return written, time.gmtime
    return written - (0 if zone == "Z" else int(zone[0] + "1") * (int(hours) * 3600 + int(minutes) * 60)), time.localtime


def number(text):
    try:
        return float(text)
    except ValueError:
        raise ValueError("not a number: {!r}".format(text)) from None


def score(lines, out):
    """Reads lines of timestamp,value and writes a score for each, or 0 for what is no onset; flushed, so that a pipe is followed.

    The step is the median of the first differences of time, of those up to the value that is scored. Raises ValueError, with
    the number of the line, for one that is neither a sample nor empty nor a header in front.
    """
    detector, steps, last = Detector(RATE_STEP), [], math.inf
    rows = csv.reader(lines, strict=True)
    try:
        for fields in rows:
            if not fields or rows.line_num == 1 and not fields[0].lstrip("\ufeff")[:1].isdigit():
                continue        # an empty line, or the header
            if len(fields) != 2:
                raise ValueError("not timestamp,value: {!r}".format(",".join(fields)))
            when, detector.local = moment(fields[0].strip())
            if when > last and len(steps) < PACED:
                bisect.insort(steps, when - last)
                detector.pace(steps[len(steps) // 2])
            judged, last = detector.update(when, number(fields[1])), when
            print("%.4f" % (judged.score if judged.onset else 0), file=out, flush=True)
    except (ValueError, csv.Error) as error:
        raise ValueError("line %d: %s" % (rows.line_num, error)) from None


# History: what the check has seen, in a file beside it.

FORMAT = "metrics_service trends 1"     # in the first line of the file; one with another is not ours
END = "end"                     # its last line, so that one that was cut off is known
HOUR = 3600                     # seconds
HOURS = 672                     # kept, as many as the service tells: four weeks
STEP = 300                      # seconds of a step of the check's own readings, at least
STEPS = WEEKS * WEEK // STEP    # kept
SIZE = 500000                   # bytes at most: where many numbers are watched, the oldest steps go earlier
FOREIGN = 4 << 20               # bytes that no file of ours has
SLACK = .95                     # of a step after which a reading ends it: cron is a little early or late
PENDING = 60                    # readings that count within a step
SPARSE = 12                     # steps on end without a value after which a metric has none
POOLS, ENOUGH = (1, 2, 3, 6, 12, 24), 20    # hours that a rate is taken of: so many that they usually have so many deliveries
FEW = 5                         # deliveries that a rate takes at least
ROOM = 200                      # characters for the evidence of all that is odd: the check cuts what it prints
PATIENCE, PAUSE = 2, .05        # seconds to wait for another check, and between two looks
VERDICT = 65536                 # bytes of the first line at most, which is all that the service reads
STALE = HOUR                    # after which a verdict is none any more: four runs at the longest usual cadence
INSTANT = "%Y-%m-%dT%H:%M:%SZ"
INSTANT_FORM = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-6]\dZ")
DATABASE = b"SQLite format 3\0"
RUNBOOK = "docs/runbook.md#trend"
ZONES = ("/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo")
ZONE_NAME, ZONE_OFFSET = r"([A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)", r"[+-]?\d{1,3}(:\d\d){0,2}"
ZONE_CHANGE = r",(M\d\d?\.[1-5]\.[0-6]|J?\d{1,3})(/" + ZONE_OFFSET + ")?"
ZONE_RULE = re.compile("UTC|GMT|{0}{1}({0}({1})?({2}{2})?)?".format(ZONE_NAME, ZONE_OFFSET, ZONE_CHANGE))   # of tzset(3)
COUNTER = re.compile(r".*_total(\..+)?|requests\.(total|by_code\..+|by_route\..+)|database\.failures\..+|.*_seconds\.(count|sum)")
EVENTS = "count", "counter"     # kinds of what counts events
OWN = ("service", "requests", "connections", "tls", "logging")      # blocks that are of now while shipments are stale

# kind: "count" and "share" come from the service's hours; "level", the last one, "median" and "counter", the sum, from the
# readings of a step. worse: 1 where more is worse, -1 where less is, 0 where either is.
Metric = namedtuple("Metric", "name path kind worse unit")
Reading = namedtuple("Reading", "time now instance hours values")   # now: of the service. hours: {begin: Hour}. values: by name
Hour = namedtuple("Hour", "created delivered on_time late")
Series = namedtuple("Series", "points step running")        # running: (begin, count, seconds) of the hour that is not over
Course = namedtuple("Course", "judged cause raised")        # the last Judged; of an alarm that lasts the oddest; of each the first
Trend = namedtuple("Trend", "name state value low high since rarity summary score interval")   # interval: seconds
Review = namedtuple("Review", "state trends troubles")              # trends: the rarest first. troubles: (reason, text)

METRICS = (
    Metric("created", None, "count", 0, " an hour"),
    Metric("delivered", None, "count", 0, " an hour"),
    Metric("on_time_rate", None, "share", -1, ""),
    Metric("overdue", "shipments.overdue", "level", 1, ""),
    Metric("latency", "requests.latency_seconds.last_5_minutes.mean", "median", 1, " s"),
    Metric("errors", "requests.by_code.5xx", "counter", 1, " in 5 minutes"),
)


class Trouble(ValueError):
    """Why the history cannot be used or kept: a reason of the runbook, and what to tell."""

    def __init__(self, reason, text):
        ValueError.__init__(self, text)
        self.reason, self.text = reason, text


def known_zone(name):
    """Whether the host knows the time zone that TZ names. libc takes one that it does not know for UTC and says nothing."""
    name = name[1:] if name.startswith(":") else name
    folders = [os.environ["TZDIR"]] if os.environ.get("TZDIR") else ZONES
    for path in [name] if name.startswith("/") else [os.path.join(folder, name) for folder in folders]:
        with suppress(OSError, ValueError), open(path, "rb") as file:   # missing, a folder, a NUL in it
            if file.read(4) == b"TZif":
                return True
    return not name or ZONE_RULE.fullmatch(name) is not None


def metrics_of(watches):
    """The Metrics to judge: METRICS, and the number at each watched path."""
    return METRICS + tuple(Metric(path, path, "counter", 0, " in 5 minutes") if COUNTER.fullmatch(path)
                           else Metric(path, path, "median", 0, "") for path in watches)


def instant(seconds):
    return time.strftime(INSTANT, time.gmtime(seconds))


@functools.lru_cache(maxsize=64)      # the days of a history
def midnight(day):
    return calendar.timegm(time.strptime(day, "%Y-%m-%d"))


def seconds_of(text):
    """Unix time of what instant() wrote. Raises ValueError."""
    if not INSTANT_FORM.fullmatch(text):
        raise ValueError("no time: {!r}".format(text))
    return midnight(text[:10]) + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])


def finite(value):
    """A number of JSON, or of the text of one. Raises ValueError for anything else."""
    number = float(value) if type(value) is str else value
    if type(number) not in (int, float) or not -LARGEST <= number <= LARGEST:
        raise ValueError("no number: {!r}".format(value))
    return number


def tidy(number):
    """A number as people read it, None for what has no end."""
    if math.isinf(number):
        return None
    rounded = float("%.3g" % number) if abs(number) < 1000 else round(number)
    return int(rounded) if rounded == int(rounded) else rounded


# A reading: what one look at /metrics gives

def member(value, name):
    """What an object has under a name, or a list has for the first field of one. Of requests by code what did not occur is 0,
    and 5xx a whole class. Raises LookupError or ValueError."""
    if type(value) is list:
        value = {str(list(one.values())[0]): one for one in value if type(one) is dict and one}
    if type(value) is not dict:
        raise LookupError(name)
    if re.fullmatch("[1-5]xx", name):
        return sum(finite(count) for code, count in value.items() if code.startswith(name[0]))
    return value.get(name, 0) if re.fullmatch(r"[1-5]\d\d", name) else value[name]


def number_at(document, path):
    """The number at a dotted path of /metrics, None for null. Raises LookupError where there is neither."""
    try:
        for name in path.split("."):
            document = member(document, name)
        return document if document is None else finite(document)
    except (LookupError, ValueError):
        raise LookupError("no number at {} of /metrics".format(path))


def hours_of(document):
    """{Unix time of its begin: Hour} of the history."""
    return {seconds_of(point["hour"] + ":00:00Z"): Hour(*[finite(point[name]) for name in Hour._fields])
            for point in document["history"]}


def take(document, metrics, when):
    """(Reading of /metrics?history= at a Unix time of the check, texts of what is not there). Raises Trouble for others."""
    values, lacking = {}, []
    try:
        for metric in metrics:
            if metric.path and not (document["stale"] and metric.path.split(".")[0] not in OWN):
                try:
                    values[metric.name] = number_at(document, metric.path)
                except LookupError as error:
                    lacking.append(error.args[0])
        now, instance = seconds_of(document["generated_at"]), document["service"]["instance"]
        return Reading(int(when), now, instance, hours_of(document), values), lacking
    except (LookupError, TypeError, ValueError):    # each is how another document shows
        raise Trouble("malformed", "/metrics has no history of hours, or one of another form")


# The file: one line for the service, one for the next run, and two tables

def table(header, rows):
    """CSV, with a header."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header] + rows)
    return out.getvalue()


def columns_of(rows):
    """{name: [number or None]} of the rows of a table, its header first, but for the first column. Raises ValueError."""
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("a row of another length")
    return {column[0]: [finite(text) if text else None for text in column[1:]] for column in list(zip(*rows))[1:]}


def gain_of(before, now, same):
    """What a counter has gained: after a restart all that it has. None where nobody knows: it fell without one."""
    if before is None or now < before and same:
        return None
    return now - before if now >= before else now


def reduced(kind, numbers):
    """One value of a step: of a level the last, of others the median, which one odd reading does not move."""
    return numbers[-1] if kind == "level" else sorted(numbers)[len(numbers) // 2]


def shown(number):
    """The text of a number in a table."""
    return "" if number is None else "%d" % number if number == number // 1 else "%.6g" % number


class History:
    """What the check has seen of a service: its hours as they were when they were over, and steps of its own readings.

    An hour is kept as it was first seen: where deliveries are entered late, the last hours would look low for ever otherwise. A
    step ends with the first reading that is nearly STEP after its begin, however often the check runs. Steps stand in the order
    of their reading, so that a clock that is set back or forth moves none of them.
    """

    def __init__(self, url):
        self.url, self.verdict = url, {}
        self.hours, self.steps = {}, [["time"]]         # {begin: Hour}; rows of text, the header first
        self.times, self.columns = [], {}               # the steps as numbers
        self.begun = self.read = self.instance = None   # times of the last step's end and the last reading; who gave that
        self.counters, self.gains, self.waiting = {}, {}, {}    # by name: as read last; gained, and read, within this step

    def add(self, reading, metrics):
        kinds = {metric.name: metric.kind for metric in metrics}
        self.add_hours(reading)
        if self.read is None or not 0 <= reading.time - self.read < 2 * STEP:
            self.waiting = {}           # of a step that nothing finished
        before, self.counters = self.counters, {}
        for name, value in reading.values.items():
            if value is None:
                continue
            if kinds[name] == "counter":
                self.counters[name] = value
                gain = gain_of(before.get(name), value, reading.instance == self.instance)
                if gain is not None:
                    self.gains[name] = self.gains.get(name, 0) + gain
            elif len(self.waiting.setdefault(name, [])) < PENDING:
                self.waiting[name].append(value)
        self.read, self.instance = reading.time, reading.instance
        if self.begun is None or not 0 <= reading.time - self.begun < SLACK * STEP:
            self.finish(kinds)

    def add_hours(self, reading):
        """Hours that are not over at the service's present are of a clock that was wrong."""
        present = reading.now - reading.now % HOUR
        hours = {begin: hour for known in (reading.hours, self.hours) for begin, hour in known.items() if begin < present}
        self.hours = {begin: hours[begin] for begin in sorted(hours)[-HOURS:]}

    def finish(self, kinds):
        """Ends a step. What was counted over a longer time, such as after missed runs, is scaled to STEP."""
        span = self.read - self.begun if self.begun is not None else STEP
        scale = STEP / span if span > 1.5 * STEP else 1
        values = {name: reduced(kinds[name], numbers) for name, numbers in self.waiting.items() if name in kinds}
        values.update((name, gain * scale) for name, gain in self.gains.items())
        for name in sorted(set(values) - set(self.columns)):
            self.columns[name] = [None] * len(self.times)
            self.steps = [row + [text] for row, text in zip(self.steps, [name] + [""] * len(self.times))]
        self.times.append(self.read)
        for name, column in self.columns.items():
            column.append(values.get(name))
        self.steps.append([instant(self.read)] + [shown(values.get(name)) for name in self.steps[0][1:]])
        self.begun, self.gains, self.waiting = self.read, {}, {}

    def write(self):
        """The text of the file, of SIZE bytes at most."""
        first = {"format": FORMAT, "url": self.url, "verdict": self.verdict}
        state = {"begun": instant(self.begun), "read": instant(self.read), "instance": self.instance,
                 "counters": self.counters, "gains": self.gains, "waiting": self.waiting}
        hours = [[instant(begin)] + [shown(number) for number in hour] for begin, hour in self.hours.items()]
        head = "\n".join([json.dumps(first), json.dumps(state), table(["hour"] + list(Hour._fields), hours), ""])
        kept = [place for place, name in enumerate(self.steps[0]) if not place or any(
            number is not None for number in self.columns[name][-STEPS:])]
        steps = self.steps[-STEPS:] if len(self.steps) > STEPS else self.steps[1:]
        if len(kept) < len(self.steps[0]):      # of what is watched no more, for four weeks
            steps = [[row[place] for place in kept] for row in steps]
        lines = table([self.steps[0][place] for place in kept], steps).splitlines()
        size = len(head) + sum(map(len, lines)) + len(lines) + len(END)
        while size > SIZE and len(lines) > 1:
            size -= len(lines.pop(1)) + 1
        return head + "\n".join(lines + [END])

    def parse(self, text):
        """Takes over what a file has. Raises ValueError, LookupError, TypeError or AttributeError where it is damaged."""
        if not text.endswith("\n" + END + "\n"):
            raise ValueError("its end is missing")
        first, state, tables = text[:-len(END) - 2].split("\n", 2)
        first, state, (hours, steps) = json.loads(first), json.loads(state), tables.split("\n\n")
        if first["format"] != FORMAT:
            raise ValueError("its first line has another format")
        self.url, self.verdict = first["url"], first["verdict"]
        rows = list(csv.reader(hours.splitlines()))
        self.hours = dict(zip([seconds_of(row[0]) for row in rows[1:]], map(Hour._make, zip(*columns_of(rows).values()))))
        self.steps = list(csv.reader(steps.splitlines()))
        self.times, self.columns = [seconds_of(row[0]) for row in self.steps[1:]], columns_of(self.steps)
        self.begun, self.read, self.instance = seconds_of(state["begun"]), seconds_of(state["read"]), state["instance"]
        self.counters, self.gains = ({name: finite(one) for name, one in state[key].items()} for key in ("counters", "gains"))
        self.waiting = {name: [finite(one) for one in numbers] for name, numbers in state["waiting"].items()}


def read_text(path):
    """The text of a history, None where there is none. Raises Trouble for what is not to be touched, ValueError if damaged."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)    # a pipe would be waited for
    except FileNotFoundError:
        return None
    with open(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Trouble("history_unusable", "{} is no plain file: give another".format(path))
        content = file.read(FOREIGN + 1)
    if content.startswith(DATABASE):    # renamed, it would be missing where it belongs
        raise Trouble("history_unusable", "{} is a database: give another file".format(path))
    if len(content) > FOREIGN:
        raise ValueError("it has more than {} bytes".format(FOREIGN))
    return content.decode()


def recall(path, url):
    """The History in a file. Raises OSError, Trouble where it is another service's or no file for it, ValueError if damaged."""
    history, text = History(url), read_text(path)
    if text:
        try:
            history.parse(text)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:  # each is how another form shows
            raise ValueError("it has another form ({})".format(type(error).__name__))
    if history.url != url:
        raise Trouble("other_service", "{} has the history of {}: give each service its own file".format(path, history.url))
    return history


def set_aside(path, now):
    """Renames a file to one that is not there yet, whose name is returned. Raises OSError. By the holder of the lock alone."""
    name = "{}.damaged-{}".format(path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)))
    while os.path.lexists(name):
        name += "+"
    os.rename(path, name)
    return name


@contextmanager
def lock(path):
    """Keeps other checks away from a history during the block. Raises OSError, and Trouble where one does not finish.

    The lock is on a file beside it that stays, as the history itself is replaced by another file each time.
    """
    number = os.open(path + ".lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Trouble("history_busy", "another check holds {}.lock for {} s".format(path, PATIENCE))
            time.sleep(PAUSE)
        yield
    finally:
        os.close(number)


def sweep(path):
    """Removes what a check left that was killed while it saved. By the holder of the lock alone."""
    folder, name = os.path.split(os.path.abspath(path))
    for left in os.listdir(folder):
        if left.startswith("." + name + ".") and left.endswith(".tmp"):
            os.unlink(os.path.join(folder, left))


# Judging

def cadence(times):
    """Seconds between the steps of late, STEP at least."""
    recent = times[-PACED:]
    gaps = sorted(later - earlier for earlier, later in zip(recent, recent[1:]) if later > earlier)
    return max(STEP, gaps[len(gaps) // 2]) if gaps else STEP


def counted(history, reading, name):
    """The Series of an hourly count, from the first hour on in which there was anything."""
    begins = list(history.hours)
    first = next((place for place, begin in enumerate(begins) if any(history.hours[begin])), len(begins))
    points = [(begin, getattr(history.hours[begin], name)) for begin in begins[first:]]
    begin = reading.now - reading.now % HOUR if reading else None
    running = (begin, getattr(reading.hours[begin], name), reading.now - begin) if reading and begin in reading.hours else None
    return Series(points, HOUR, running)


def shared(history):
    """The Series of the on-time rate: each hour that of the last hours together which usually have enough deliveries."""
    hours = list(history.hours.items())
    evaluated = [hour.on_time + hour.late for _, hour in hours]
    usual = sum(evaluated) / max(1, len([count for count in evaluated if count]))
    pool = next((size for size in POOLS if usual * size >= ENOUGH), POOLS[-1])
    points = []
    for end in range(pool, len(hours) + 1):
        whole = sum(evaluated[end - pool:end])
        if whole >= FEW:
            points.append((hours[end - 1][0], sum(hour.on_time for _, hour in hours[end - pool:end]) / whole))
    return Series(points, HOUR, None)


def stepped(history, name):
    """The Series of a number of the readings."""
    points = [(when, value) for when, value in zip(history.times, history.columns.get(name, ())) if value is not None]
    return Series(points, cadence(history.times), None)


def series_of(history, metric, reading=None):
    if metric.kind == "count":
        return counted(history, reading, metric.name)
    return shared(history) if metric.kind == "share" else stepped(history, metric.name)


def course_of(judgements, limit, step):
    """The Course of Judged values. What is told of an alarm is the oddest, with the time of the first; after an hour of calm it
    is over, though the Alarm itself waits for longer before it raises the next."""
    alarm, raised, cause, calm, judged = Alarm(limit), [], None, 0, None
    for judged in judgements:
        begins, calm = alarm.update(judged), calm + step if judged.score < CALM else 0
        raised += [judged] * begins
        if calm >= HOUR:
            cause = None
        elif begins or cause is None and alarm.state == "degraded" and judged.score >= limit:   # the latter is a relapse
            cause = judged
        elif cause and judged.score > cause.score:
            cause = judged._replace(time=cause.time)
    return Course(judged, cause, raised)


def deviations(metric, series, limit):
    """Judges each value. What changes for the better is not odd."""
    detector = (Counts if metric.kind in EVENTS else Detector)(series.step, limit=limit)
    for when, value in series.points:
        judged = detector.update(when, value)
        yield judged._replace(score=0.0) if metric.worse * (value - judged.expected) < 0 else judged


def silences(series, limit):
    """Judges the silence of a count up to each hour, and within the one that is not over, as of the first hour without any."""
    detector, silence = Detector(series.step, limit=limit), Silence()
    begin, count, seconds = series.running or (None, 0, 0)
    for when, value in series.points + [(begin, count)] * bool(series.running):
        judged = detector.update(when, value)
        if when == begin:
            judged = judged._replace(expected=judged.expected * seconds / series.step)
        judged = silence.update(judged)
        yield judged._replace(time=silence.since + series.step)


def courses_of(history, metrics, tolerated, reading=None):
    """(Metric, Series, [Course]) of each metric. tolerated: false alarms a week of all together, which the courses share."""
    share = tolerated / sum(2 if metric.kind == "count" else 1 for metric in metrics)
    for metric in metrics:
        series = series_of(history, metric, reading)
        limit = threshold(series.step, share)
        judgements = [deviations(metric, series, limit)] + [silences(series, limit)] * (metric.kind == "count")
        yield metric, series, [course_of(judged, limit, series.step) for judged in judgements]


def bounds(metric, judged):
    """The band, within what such a metric can have; None where it has no end."""
    low, high = max(judged.low, 0) if metric in METRICS else judged.low, judged.high
    return tidy(low), tidy(min(high, 1) if metric.kind == "share" else high)


def evidence(metric, judged, step):
    """What is odd, in words."""
    how = "since {}, {}".format(instant(judged.time), rarity(judged.score, step))
    low, high = bounds(metric, judged)
    if high is None:
        return "{}: none, {} were expected, {}".format(metric.name, tidy(judged.expected), how)
    return "{} {}{}, usually {} to {}, {}".format(metric.name, tidy(judged.value), metric.unit, low, high, how)


def absent(history, metric, series):
    """Whether a metric has no value of late."""
    last = history.times[-SPARSE:] if metric.path else list(history.hours)[-SPARSE:]
    return not series.points or len(last) == SPARSE and series.points[-1][0] not in last


def trend_of(history, metric, series, courses):
    """The Trend of a metric, of the rarer of its courses where something is odd."""
    if absent(history, metric, series):
        return Trend(metric.name, "not_enough_data", None, None, None, None, None, metric.name + ": not enough data", None, None)
    judged = courses[0].judged
    value, (low, high) = tidy(judged.value), bounds(metric, judged)
    causes = [course.cause for course in courses if course.cause]
    if causes:
        cause = max(causes, key=lambda cause: cause.score)
        told, (low, high) = evidence(metric, cause, series.step), bounds(metric, cause)
        told += "; now {}".format(value) if high is not None and value != tidy(cause.value) else ""
        return Trend(metric.name, "degraded", tidy(cause.value), low, high, instant(cause.time), rarity(cause.score, series.step),
                     told, judged.score, series.step * 10 ** cause.score)
    if judged.state == "learning":
        told = "{}: learning from {} of {} values, and {} earlier days with this hour".format(
            metric.name, min(SAMPLES, len(series.points)), SAMPLES, DAYS)
        return Trend(metric.name, "learning", value, None, None, None, None, told, 0.0, None)
    told = "{} {}{}, usually {} to {}".format(metric.name, value, metric.unit, low, high)
    return Trend(metric.name, "quiet", value, low, high, None, None, told, judged.score, None)


def state_of(trends):
    """Of all together: what is learning is not quiet."""
    states = {trend.state for trend in trends}
    return next((state for state in ("degraded", "learning", "quiet") if state in states), "no_data")


def named(trends, state):
    return ", ".join(trend.name for trend in trends if trend.state == state)


def tell(review):
    """A Review in one sentence: what is odd with its evidence as far as there is room, else by name, then all else."""
    odd = [trend for trend in review.trends if trend.state == "degraded"]
    full = max([1] + [end for end in range(1, len(odd) + 1) if sum(len(trend.summary) + 2 for trend in odd[:end]) < ROOM])
    parts = [trend.summary for trend in odd[:full]] + ["also odd: " + named(odd[full:], "degraded")] * (len(odd) > full)
    parts += [text for _, text in review.troubles]
    for state, words in (("learning", "learning"), ("not_enough_data", "not enough data")):
        parts += [words + ": " + named(review.trends, state)] if named(review.trends, state) else []
    quiet = sum(trend.state == "quiet" for trend in review.trends)
    return "; ".join(parts + ["{} quiet".format(quiet)] * (quiet > 0))


def block_of(review, now):
    """What the service tells of a Review: its block of /metrics."""
    metrics = [dict(zip(Trend._fields[:-2], trend[:-2]), runbook=RUNBOOK) for trend in review.trends]
    reason, detail = ("not_enough_data", "no metric has any") if review.state == "no_data" else (None, None)
    return {"state": review.state, "reason": reason, "detail": detail, "checked_at": instant(now), "metrics": metrics}


def open_history(path, url, now, held, troubles):
    """(History, whether it may be saved). What is damaged is set aside, by the holder of the lock."""
    try:
        return recall(path, url), held
    except Trouble as trouble:
        troubles.append((trouble.reason, trouble.text))
    except OSError as error:
        troubles.append(("history_unusable", "{}: {}".format(path, error.strerror)))
    except ValueError as error:
        told = "{} is damaged: {}".format(path, error)
        try:
            told += "; set aside as {}, beginning anew".format(set_aside(path, now)) if held else ""
            troubles.append(("history_damaged", told))
            return History(url), held
        except OSError as fault:
            troubles.append(("history_damaged", "{}, and cannot be renamed: {}".format(told, fault.strerror)))
    return History(url), False


def judge(history, metrics, tolerated, reading):
    courses = courses_of(history, metrics, tolerated, reading)
    trends = sorted((trend_of(history, *course) for course in courses), key=lambda trend: -(trend.interval or 0))
    return Review(state_of(trends), trends, [])


def keep(path, history, save):
    """Replaces the file; the trouble where that fails, as (reason, text)."""
    try:
        sweep(path)
        save(path, history.write())
    except OSError as error:
        return "history_unusable", "{} cannot be written: {}".format(path, error.strerror)


def claim(stack, path):
    """Has the stack hold the lock of a history; the trouble where it cannot be had."""
    try:
        stack.enter_context(lock(path))
    except Trouble as trouble:
        return trouble.reason, trouble.text
    except OSError as error:
        return "history_unusable", "{}.lock: {}".format(path, error.strerror)


def review(path, url, document, watches, tolerated, now, save):
    """The Review of /metrics?history= as it is now, a Unix time, after what the file has; the file is then replaced.

    save(path, text) replaces a file in one step. Whatever is wrong with the file is among the troubles, and costs only what it
    had. Raises Trouble where the document is another.
    """
    metrics = metrics_of(watches)
    reading, lacking = take(document, metrics, now)
    troubles = [("watch_missing", text) for text in lacking]
    with ExitStack() as stack:
        locked_out = claim(stack, path)
        history, usable = open_history(path, url, now, not locked_out, troubles)
        history.add(reading, metrics)
        found = judge(history, metrics, tolerated, reading)
        history.verdict = block_of(found, now)
        troubles.append(keep(path, history, save) if usable and not locked_out else locked_out)
    return found._replace(troubles=[trouble for trouble in troubles if trouble])


# What would have been, and what the service tells

def replay(history, metrics, tolerated):
    """Lines about the alarms that there would have been: each, oldest first, then how many of each metric."""
    alarms, totals = [], []
    for metric, series, courses in courses_of(history, metrics, tolerated):
        raised = [judged for course in courses for judged in course.raised]
        alarms += [(judged.time, evidence(metric, judged, series.step)) for judged in raised]
        weeks = len(series.points) * series.step / WEEK
        rate = ", {:.2f} a week".format(len(raised) / weeks) if weeks > .5 else ""      # of less it says nothing
        totals.append("{}: {} alarm{} in {:.1f} weeks{}".format(metric.name, len(raised), "s" * (len(raised) != 1), weeks, rate))
    return [told for _, told in sorted(alarms)] + totals


def backtest(path, url, document, watches, tolerated):
    """Lines of a replay of the file, if there is a path, and of the hours of the document, if there is one. Raises OSError, and
    ValueError where the file is damaged or there is nothing at all."""
    history = recall(path, url) if path else History(url)
    stored = [name for name in history.steps[0][1:] if name not in [metric.name for metric in METRICS] + list(watches)]
    if document:
        history.add_hours(take(document, METRICS, 0)[0])
    if not history.hours and not history.times:
        raise Trouble("history_unusable", "there is no history to look back on")
    return replay(history, metrics_of(list(watches) + stored), tolerated)


TEXT, MAYBE_TEXT, MAYBE_NUMBER = (str,), (str, type(None)), (int, float, type(None))
VERDICT_SHAPE = {"state": TEXT, "reason": MAYBE_TEXT, "detail": MAYBE_TEXT, "checked_at": TEXT, "metrics": (list,)}
METRIC_SHAPE = {"name": TEXT, "state": TEXT, "value": MAYBE_NUMBER, "low": MAYBE_NUMBER, "high": MAYBE_NUMBER,
                "since": MAYBE_TEXT, "rarity": MAYBE_TEXT, "summary": TEXT, "runbook": TEXT}


def fitting(document, shape):
    """The fields of a shape, as any JSON may have them. Raises ValueError, LookupError or TypeError for others."""
    for name, kinds in shape.items():
        if type(document[name]) not in kinds:
            raise ValueError("{} is of another type".format(name))
        if type(document[name]) in (int, float):
            finite(document[name])
    return {name: document[name] for name in shape}


def read_verdict(path):
    """The block that a check stored in the first line of a file, which is all that is read. Raises OSError, and ValueError where
    there is none."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no plain file")
        line, end, _ = file.read(VERDICT).partition(b"\n")
    try:
        first = json.loads(line.decode() if end else "", parse_constant=finite)
        if first["format"] != FORMAT:
            raise ValueError("it is of another format")
        block = fitting(first["verdict"], VERDICT_SHAPE)
        seconds_of(block["checked_at"])
        return dict(block, metrics=[fitting(metric, METRIC_SHAPE) for metric in block["metrics"]])
    except (LookupError, TypeError, RecursionError):    # each is how another form shows
        raise ValueError("it has another form")


def nothing(state, reason, detail, checked_at=None, age=None):
    """A block without a verdict, and why."""
    return {"state": state, "reason": reason, "detail": detail, "checked_at": checked_at, "age_seconds": age, "metrics": []}


class Published:
    """The verdict in a check's file, for the service: read when the file has changed, and no trouble for whoever asks."""

    def __init__(self, path):
        self.path, self.known = path, (None, None)      # of the file when it was read; the block

    def look(self):
        """The stored block, or one that says why there is none. Raises OSError."""
        facts, (seen, block) = os.stat(self.path), self.known
        mark = facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size
        if mark != seen:
            try:
                block = read_verdict(self.path)
            except ValueError as error:
                block = nothing("unreadable", "malformed", "{}: {}".format(self.path, error))
            self.known = mark, block
        return block

    def block(self, now):
        """The block "trends" of /metrics at a Unix time."""
        try:
            block = self.look()
        except FileNotFoundError:
            return nothing("no_data", "missing", "{}: no check has written it".format(self.path))
        except OSError as error:
            reason = "denied" if isinstance(error, PermissionError) else "io_error"
            return nothing("unreadable", reason, "{}: {}".format(self.path, error.strerror))
        if block["checked_at"] is None:
            return block
        age = int(now) - seconds_of(block["checked_at"])
        if abs(age) > STALE:
            return nothing("no_data", "stale", "the last check that wrote {} was at {}".format(self.path, block["checked_at"]),
                           block["checked_at"], max(0, age))
        return dict(block, age_seconds=max(0, age))
