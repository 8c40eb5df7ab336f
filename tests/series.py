"""Made-up metrics for trends.py: six kinds of quiet ones from a seed, and what incidents make of them.

random() of a seeded Random is the same on every Python; gauss() and the others are not promised to be, so they are made here.
"""

import itertools
import math
import random

DAY, WEEK = 86400, 7 * 86400
BEGIN = 1767571200      # Monday 2026-01-05 00:00 UTC


class Source(random.Random):
    """Numbers by chance, of three distributions."""

    def normal(self):
        return math.sqrt(-2 * math.log(1 - self.random())) * math.cos(2 * math.pi * self.random())

    def poisson(self, mean):
        chance = passed = math.exp(-mean)
        drawn = self.random()
        for count in itertools.count():
            if drawn < passed or chance < 1e-300:
                return count
            chance *= mean / (count + 1)
            passed += chance


def day(when):
    """From 0 at 03:00 to 2 at 15:00, as work goes through a day."""
    return 1 - math.cos(2 * math.pi * (when - BEGIN - 3 * 3600) / DAY)


def week(when):
    """A weekend's day has 6 tenths of a weekday."""
    return .6 if (when - BEGIN) // DAY % 7 >= 5 else 1


def flat(source, times):
    for _ in times:
        yield 100 + 5 * source.normal()


def cyclic(source, times):
    for when in times:
        yield (60 + 40 * day(when)) * week(when) + 5 * source.normal()


def correlated(source, times):
    """An AR(1) process of .95 around a day."""
    state = 0.0
    for when in times:
        state = .95 * state + source.normal()
        yield 100 + 20 * day(when) + 5 * state


def busy(source, times):
    for when in times:
        yield source.poisson(20 * (.5 + .5 * day(when)))


def sparse(source, times):
    for _ in times:
        yield source.poisson(.3)


def latency(source, times, width=.5):
    """Log-normal seconds."""
    for _ in times:
        yield .05 * math.exp(width * source.normal())


QUIET = {kind.__name__: kind for kind in (flat, cyclic, correlated, busy, sparse, latency)}


def quiet(kind, seed, step, weeks):
    """(time, value) of each step of these seconds."""
    times = [BEGIN + step * number for number in range(int(weeks * WEEK / step))]
    return zip(times, QUIET[kind](Source(seed), times))


def changed(series, start, end, change):
    """The series with change(value) between two times."""
    for when, value in series:
        yield when, change(value) if start <= when < end else value
