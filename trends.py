"""What no threshold names: whether a metric's value is as odd as hardly any before it, for its hour and kind of day.

    detector, alarm = Detector(300), Alarm(threshold(300, tolerated(6)))
    if alarm.update(detector.update(time, value)): ...     # once an incident; each step is given once, in order

A score of s means that about one step in 10^s is as far from what is usual. It has no unit, so that one threshold serves every
metric, and is a number of false alarms that somebody tolerates. One pass; nothing is judged by what came after it.
"""

import bisect
import calendar
import itertools
import math
import re
import time
from collections import defaultdict, deque, namedtuple

WEEK = 7 * 86400                # seconds
WEEKS = 4                       # in which the whole check may have one false alarm
RATE, RATE_STEP = .02, 300      # of the way to a new value that a baseline goes, at steps of so many seconds
LEVEL_RATE = .01                # the same of the level, which stands in until an hour has a baseline
SMOOTHED = 3                    # residuals whose mean is a feature, beside the last one alone
TAIL, FEWEST, MOST = .05, 10, 32    # the part of all features that is the tail; the fewest and the most of them
GRAIN, COARSE = 1e-9, .001      # the least scale of a tail: of the value's size, and of where the tail begins
DOUBT = math.log10(math.e)      # taken off the mean of two scores, whatever they have to do with each other
RECENT = 50                     # scores that an onset exceeds
SAMPLES, DAYS = 200, 2          # learnt from before anything is judged: steps, and days with this hour
CALM, CALM_STEPS = 2, 12        # so many scores in a row below this end an incident
LARGEST = 1e100                 # that a value may be, either side of 0, so that no sum overflows
PACED = 25                      # differences of time that tell the step of a series
CENTURY = 100 * 365.25 * 86400

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

    Their excess over the least of them is taken as exponential. Its mean is known from so few of them that the next excess
    follows a Lomax distribution, which makes more of the largest: it is what remains of a gamma-distributed guess.
    """

    def __init__(self):
        self.count, self.top = 0, []

    def shape(self, grain):
        """(size, score at which it begins, feature at which it begins, scale)."""
        size = min(MOST, max(FEWEST, int(TAIL * self.count)))
        top = self.top[-size:]
        return size, math.log10(self.count / size), top[0], sum(top) - size * top[0] + size * (grain + COARSE * top[0])

    def score(self, feature, grain):
        """-log10 of the chance of a feature as large. grain: the least excess that is more than a rounding error."""
        size, begins, start, scale = self.shape(grain)
        if feature <= start:
            return begins * feature / start if start else 0.0
        return begins + size * math.log10(1 + (feature - start) / scale)

    def reach(self, score, grain):
        """The feature of this score, which lies in the tail."""
        size, begins, start, scale = self.shape(grain)
        return start + scale * (10 ** (max(0.0, score - begins) / size) - 1)

    def add(self, feature):
        self.count += 1
        bisect.insort(self.top, feature)
        del self.top[:-MOST]


class Detector:
    """Judges one metric, of which each step of so many seconds has one value or none. limit: the threshold, for the band.

    The baseline is of an hour of the local day on weekdays or weekends, and follows its values. Features are the distance of
    the value from it, and the distance of the last SMOOTHED values together: one odd value moves the one, three the other.
    """

    def __init__(self, step, local=time.localtime, limit=None):
        self.local, self.limit = local, threshold(step, tolerated(1)) if limit is None else limit
        self.baselines, self.level, self.days = {}, None, defaultdict(set)
        self.residuals, self.tails = deque(maxlen=SMOOTHED), (Tail(), Tail())
        self.recent = deque([0.0], maxlen=RECENT)
        self.pace(step)

    def pace(self, step):
        """Says that steps are of so many seconds: a baseline follows as fast in hours, not in steps."""
        self.rate = 1 - (1 - RATE) ** (step / RATE_STEP)

    def learn(self, cell, local, value, features):
        for tail, feature in zip(self.tails, features):
            tail.add(feature)
        base = self.baselines.get(cell, value)
        self.baselines[cell] = base + self.rate * (value - base)
        self.level += LEVEL_RATE * (value - self.level)
        if len(self.days[cell]) < DAYS:
            self.days[cell].add(local.tm_yday)

    def band(self, expected, grain):
        """(low, high) between which neither feature reaches the threshold alone, nor do both together."""
        near, far = (tail.reach(self.limit + DOUBT, grain) for tail in self.tails)
        before, count = sum(self.residuals) - self.residuals[-1], len(self.residuals)
        return (expected + min(0, max(-near, -count * far - before)), expected + max(0, min(near, count * far - before)))

    def update(self, when, value):
        """The value of this time, as Judged. Raises ValueError if it is not a finite number."""
        if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
            raise ValueError("not a finite number: {!r}".format(value))
        local = self.local(when)
        weekend = local.tm_wday >= 5
        cell, other = (local.tm_hour, weekend), (local.tm_hour, not weekend)
        self.level = value if self.level is None else self.level
        expected = self.baselines.get(cell, self.baselines.get(other, self.level))
        self.residuals.append(value - expected)
        features = abs(self.residuals[-1]), abs(sum(self.residuals) / len(self.residuals))
        grain = GRAIN * max(1, abs(expected))
        score, low, high = 0.0, -math.inf, math.inf
        if self.tails[0].count >= SAMPLES:
            score = max(0.0, sum(tail.score(feature, grain) for tail, feature in zip(self.tails, features)) / 2 - DOUBT)
            low, high = self.band(expected, grain)
        onset, known = score > max(self.recent), low > -math.inf and len(self.days[cell]) >= DAYS
        self.recent.append(score)
        self.learn(cell, local, value, features)
        return Judged(when, value, score, expected, low, high, onset, "judged" if known else "learning")


class Silence:
    """Judges the time without any event of a metric that counts events: exp(-E) is the chance of none where E are expected."""

    def __init__(self):
        self.since, self.expected = None, 0.0       # the last step with an event, and the events expected after it

    def update(self, judged):
        """What a Detector judged, as the silence up to it: value 0, expected the events since the last one."""
        if judged.value > 0 or self.since is None:
            self.since, self.expected = judged.time, 0.0
        elif judged.state == "judged":
            self.expected += max(0.0, judged.expected)
        return judged._replace(value=0, score=self.expected / math.log(10), expected=self.expected, low=1, high=math.inf, onset=True)


class Alarm:
    """What one metric's scores come to: state "learning", "quiet" or "degraded", since when, and what was judged then."""

    def __init__(self, limit):
        self.limit, self.state, self.since, self.cause, self.calm = limit, "learning", None, None, 0

    def update(self, judged):
        """Whether this raises an alarm, which it does once an incident."""
        raised = self.state != "degraded" and judged.state == "judged" and judged.onset and judged.score >= self.limit
        if raised:
            self.state, self.since, self.cause, self.calm = "degraded", judged.time, judged, 0
        elif self.state == "degraded":
            self.calm = self.calm + 1 if judged.score < CALM else 0
        if self.calm >= CALM_STEPS or self.state != "degraded":
            self.state, self.since, self.cause, self.calm = "quiet" if judged.state == "judged" else "learning", None, None, 0
        return raised


def rarity(score, step):
    """How often a step of these seconds reaches the score, in words."""
    seconds = step * 10 ** min(score, 12)
    for unit, length in (("years", 365.25 * 86400), ("weeks", WEEK), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return "about once in %d %s" % (round(seconds / length), unit)
    return "at any time"


TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,]\d+)?)? ?(Z|[+-]\d\d:?\d\d)?")


def score(lines, out):
    """Reads lines of timestamp,value and writes the score of each. Raises ValueError with the number of a line that is neither."""
    raise NotImplementedError


# History: what the check has seen, in a file beside it.
