"""What no threshold names: whether a number of today is as odd as hardly any before it, by hour and kind of day.

    detector, alarm = Detector(300), Alarm(threshold(300, tolerated(6)))
    judged = detector.update(time, value)       # each step once, in order; what comes later is never looked at
    if alarm.update(judged): ...                # once an incident

A score of s means that about one sample in 10^s is so far from what is usual; it has no unit, so that one threshold serves all.
"""

import bisect
import calendar
import math
import re
import time
from collections import defaultdict, deque, namedtuple

STEP = 300                      # seconds of the step that RATE is for
RATE = .02                      # of the way that a baseline goes to each new value
LEVEL_RATE = .01                # the same of the level that stands in before any baseline is
SMOOTHED = 3                    # residuals whose mean is one of the two features
KEPT, LEAST, TAIL = 32, 5, .02  # the tail: this part of the features, and the fewest and most of them
RECENT = 50                     # scores that an onset exceeds
SAMPLES, DAYS = 200, 2          # that are learnt from before anything is judged, of all and of the hour
CALM, CALM_STEPS = 2, 12        # scores below this, so many on end, end an incident
WEEK = 7 * 86400                # seconds

# time: Unix seconds. score: see above; 0 while learning. expected, low, high: in the unit of value, low and high the band in which
# the score stays below the threshold. onset: whether the score exceeds the last RECENT ones. state: "learning" or "judged".
Judged = namedtuple("Judged", "time value score expected low high onset state")


def tolerated(metrics):
    """False alarms a week of each of so many metrics, if the whole check may have one in four weeks."""
    return 1 / 4 / metrics


def threshold(step, tolerated):
    """The score that a quiet metric of this step, in seconds, reaches as often as is tolerated, in false alarms a week."""
    return math.log10(WEEK / step / tolerated)


class Tail:
    """The largest of all features so far, and how rare another would be."""

    def __init__(self):
        self.count, self.top = 0, []

    def shape(self):
        """(score where the tail begins, feature there, mean excess beyond it) of an exponential tail."""
        size = max(LEAST, min(KEPT, int(TAIL * self.count)))
        top = self.top[-size:]
        return math.log10(self.count / size), top[0], sum(top) / size - top[0]

    def score(self, feature, grain):
        if self.count < LEAST:
            return 0.0
        begins, start, excess = self.shape()
        if feature <= start:
            return begins * feature / start if start else 0.0
        return begins + (feature - start) / (excess + grain + .001 * start) / math.log(10)

    def add(self, feature):
        self.count += 1
        bisect.insort(self.top, feature)
        if len(self.top) > KEPT:
            del self.top[0]


class Detector:
    """Judges one metric that has a value each step, in seconds. limit: the score that alarms, for the band."""

    def __init__(self, step, local=time.localtime, limit=None):
        self.local, self.limit = local, threshold(step, tolerated(1)) if limit is None else limit
        self.rate = 1 - (1 - RATE) ** (step / STEP)
        self.baselines, self.days, self.level = {}, defaultdict(set), None
        self.residuals, self.tails = deque(maxlen=SMOOTHED), (Tail(), Tail())
        self.recent, self.count = deque(maxlen=RECENT), 0

    def update(self, when, value):
        """The Judged value of this time. Raises ValueError if it is not a finite number."""
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError("not a finite number: {!r}".format(value))
        local = self.local(when)
        cell, other = (local.tm_hour, local.tm_wday >= 5), (local.tm_hour, local.tm_wday < 5)
        self.level = value if self.level is None else self.level
        expected = self.baselines.get(cell, self.baselines.get(other, self.level))
        self.residuals.append(value - expected)
        features = abs(value - expected), abs(sum(self.residuals) / len(self.residuals))
        grain = 1e-9 * max(1, abs(expected))
        score = sum(tail.score(feature, grain) for tail, feature in zip(self.tails, features)) / 2
        judged = self.count >= SAMPLES and len(self.days[cell]) >= DAYS
        onset = judged and all(score > before for before in self.recent)
        for tail, feature in zip(self.tails, features):
            tail.add(feature)
        self.recent.append(score)
        self.count += 1
        if len(self.days[cell]) < DAYS:
            self.days[cell].add(local.tm_yday)
        self.baselines[cell] = expected + self.rate * (value - expected)
        self.level += LEVEL_RATE * (value - self.level)
        return Judged(when, value, score if judged else 0.0, expected, expected, expected, onset, "judged" if judged else "learning")


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
