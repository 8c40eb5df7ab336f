"""How long things took: buckets of durations, since the start and over the last five minutes.

    queries = Latency()
    queries.observe(0.004)
    document(queries.spans()) -> the block of JSON /metrics

A slot counts ten seconds, and is laid aside once it is too old for the five minutes, so that observing costs the same at all
times. Percentiles are worked out from the buckets when somebody asks, and are as exact as those are narrow.
"""

import bisect
import collections
import functools
import itertools
import threading
import time

from exposition import quantile, ratio, rounded

BOUNDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1.0, 2.5, 5.0, 10.0)  # s, of all buckets but the last
SLOT_SECONDS = 10
SLOTS = 30              # that are over and count as the last five minutes, with the one that is not: 300 to 310 s
BOOTTIME = getattr(time, "CLOCK_BOOTTIME", 7)   # Linux's number; Python 3.6 has no name for it
INFINITE = float("inf")

Spans = collections.namedtuple("Spans", "whole recent")     # Tallies, since the start and of the last five minutes

clock = functools.partial(time.clock_gettime, BOOTTIME)     # s that nobody sets, and that suspending the machine does not stop


class Tally:
    """Durations of some time: how many fell into each bucket, their sum, the longest."""

    __slots__ = "counts", "sum", "longest"

    def __init__(self, counts=None, total=0.0, longest=0.0):
        self.counts, self.sum, self.longest = counts or [0] * (len(BOUNDS) + 1), total, longest

    def percentile(self, q):
        """Seconds that this part of the durations did not exceed, estimated within a bucket. None without durations."""
        bounds = BOUNDS + (INFINITE,)
        found = quantile(dict(zip(bounds, self.counts)), bounds, q)
        return None if found is None else rounded(min(found, self.longest))

    def summary(self):
        count = sum(self.counts)
        return {
            "count": count,
            "mean": ratio(self.sum, count),
            "p50": self.percentile(.5),
            "p95": self.percentile(.95),
            "p99": self.percentile(.99),
            "max": rounded(self.longest) if count else None,
        }


def merged(tallies):
    """One Tally of these together."""
    tallies = list(tallies) or [Tally()]
    return Tally([sum(column) for column in zip(*[tally.counts for tally in tallies])],
                 sum(tally.sum for tally in tallies), max(tally.longest for tally in tallies))


class Latency:
    """Counts durations, from any number of threads."""

    def __init__(self, clock=clock):
        self.clock, self.lock = clock, threading.Lock()
        self.slots = collections.deque()        # (number, Tally) of the slots in which something was counted, oldest first
        self.turns = -INFINITE                  # when the last of them is over
        self.tally = self.past = Tally()        # of the last slot, and of all that were laid aside

    def observe(self, seconds):
        now, place = self.clock(), bisect.bisect_left(BOUNDS, seconds)
        with self.lock:
            if now >= self.turns:
                self.turn(now)
            tally = self.tally
            tally.counts[place] += 1
            tally.sum += seconds
            if seconds > tally.longest:
                tally.longest = seconds

    def turn(self, now):
        """Begins the slot that this moment is in, and lays aside those that are too old."""
        number = now // SLOT_SECONDS
        while self.slots and self.slots[0][0] < number - SLOTS:
            self.past = merged([self.past, self.slots.popleft()[1]])
        self.tally, self.turns = Tally(), (number + 1) * SLOT_SECONDS
        self.slots.append((number, self.tally))

    def spans(self):
        """The Spans up to now."""
        with self.lock:
            oldest = self.clock() // SLOT_SECONDS - SLOTS
            return Spans(merged([self.past] + [tally for _, tally in self.slots]),
                         merged(tally for number, tally in self.slots if number >= oldest))


def document(*spans):
    """What JSON /metrics says of these Spans together."""
    whole, recent = merged(span.whole for span in spans), merged(span.recent for span in spans)
    reached = zip(BOUNDS + (None,), itertools.accumulate(whole.counts))
    told = whole.summary()
    told["sum"] = rounded(whole.sum)
    told["buckets"] = [{"le": bound, "count": count} for bound, count in reached]
    told["last_5_minutes"] = recent.summary()
    return told
