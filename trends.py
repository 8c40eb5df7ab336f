"""What no threshold names: whether a metric's value is as odd as hardly any before it, for its hour and kind of day.

    detector, alarm = Detector(300), Alarm(threshold(300, tolerated(6)))
    if alarm.update(detector.update(time, value)): ...     # once an incident; each step is given once, in order

A score of s means that about one step in 10^s is as far from what is usual. It has no unit, so that one threshold serves every
metric, and is a number of false alarms that somebody tolerates. One pass; nothing is judged by what came after it.
"""

import bisect
import calendar
import csv
import functools
import math
import re
import time
from collections import defaultdict, deque, namedtuple

WEEK = 7 * 86400                # seconds
WEEKS = 4                       # in which the whole check may have one false alarm
RATE, RATE_STEP = .02, 300      # of the way to a new value that a baseline goes, at steps of so many seconds
SMOOTHED = 3                    # residuals whose mean is the other feature
TAIL, FEWEST, MOST = .05, 10, 32    # the part of all features so far that is their tail; the fewest and the most of them
ROUNDING = 1e-9                 # of a value's size: less is no departure
LUMP = .1                       # of where a tail begins: that counts are whole makes no tail steeper
ALIKE = 1.0                     # the least mean excess of a sum of two scores; .87 is theirs if both are one and exponential
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

    def shape(self, least):
        """(size, score where it begins, feature where it begins, scale), of at least FEWEST features."""
        size = min(MOST, max(FEWEST, int(TAIL * self.count)))
        top = self.top[-size:]
        return size, math.log10(self.count / size), top[0], max(sum(top) - size * top[0], size * max(least, LUMP * top[0]))

    def score(self, feature, least):
        """s, if one feature in 10^s is as large. Below the tail it goes in proportion, to 0 for the feature 0."""
        if self.count < FEWEST:
            return 0.0
        size, begins, start, scale = self.shape(least)
        if feature > start:
            return begins + size * math.log10(1 + (feature - start) / scale)
        return begins * feature / start if start else 0.0

    def reach(self, score, least):
        """The feature of this score."""
        size, begins, start, scale = self.shape(least)
        if score > begins:
            return start + scale * (10 ** ((score - begins) / size) - 1)
        return start * score / begins if begins else start


class Detector:
    """Judges one metric, of which each step of so many seconds has one value or none. limit: the threshold, for the band.

    A value's residual is its distance from the baseline of this local hour on weekdays or on weekends. Two features are ranked
    among their like: the last residual, which one odd value moves, and the mean of SMOOTHED, which three move more. The sum of
    their scores is ranked once more, because nobody knows how much the two have to do with each other.
    """

    def __init__(self, step, local=time.localtime, limit=None):
        self.local, self.limit = local, threshold(step, tolerated(1)) if limit is None else limit
        self.baselines = {}     # cell: (baseline, values so far)
        self.days = defaultdict(functools.partial(deque, maxlen=DAYS + 1))     # cell: the last days of the year that had it
        self.residuals, self.last, self.mean, self.sum = deque(maxlen=SMOOTHED), Tail(), Tail(), Tail()
        self.recent = deque([0.0], maxlen=RECENT)
        self.pace(step)

    def pace(self, step):
        """Says that steps are of so many seconds: a baseline follows as fast in hours, not in steps."""
        self.rate = 1 - (1 - RATE) ** (step / RATE_STEP)

    def rank(self, rounding):
        """The score of the residuals, 0 until SAMPLES are known; they then belong to those that others are ranked among."""
        features = abs(self.residuals[-1]), abs(sum(self.residuals) / len(self.residuals))
        ranks = sum(tail.score(feature, rounding) for tail, feature in zip((self.last, self.mean), features))
        rank = self.sum.score(ranks, ALIKE) if self.sum.count >= SAMPLES else 0.0
        for tail, feature in zip((self.last, self.mean, self.sum), features + (min(ranks, 2 * math.log10(self.sum.count + 1)),)):
            tail.add(feature)
        return rank

    def band(self, expected, rounding):
        """(low, high): in between neither feature has half the ranks that alarm together."""
        half = self.sum.reach(self.limit, ALIKE) / 2
        last, mean = self.last.reach(half, rounding), self.mean.reach(half, rounding) * len(self.residuals)
        before = sum(self.residuals) - self.residuals[-1]
        return expected + min(0.0, max(-last, -mean - before)), expected + max(0.0, min(last, mean - before))

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
        expected, count = self.baselines.get(cell, (value, 0))
        self.residuals.append(value - expected)
        self.baselines[cell] = expected + max(self.rate, 1 / (count + 1)) * (value - expected), count + 1
        rounding = ROUNDING * max(1, abs(expected))
        low, high = self.band(expected, rounding) if self.sum.count >= SAMPLES else (-math.inf, math.inf)
        state = "judged" if self.learnt(cell, local.tm_yday) else "learning"
        rank = self.rank(rounding)
        onset = rank > max(self.recent)
        self.recent.append(rank)
        return Judged(when, value, rank, expected, low, high, onset, state)


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
