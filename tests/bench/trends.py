#!/usr/bin/env python3
"""The detector of trends.py on made-up metrics: how often it is wrong, how soon it is right, what it costs, what else was tried.

    python3 tests/bench/trends.py [--seeds N]

Every number but the costs is the same at each run. Exit codes: 0 no quiet kind alarms more often than is tolerated; 1 one does.
"""

import argparse
import copy
import importlib.util
import math
import pickle
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import series                                               # noqa: E402

# This file has the name of the module that it measures.
spec = importlib.util.spec_from_file_location("detector", str(ROOT / "trends.py"))
trends = sys.modules["detector"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trends)

METRICS = 6             # of a whole check
SPAN = {60: (4, .2), 300: (8, 1), 3600: (16, 3)}     # step: weeks of each series, and how many there are for each of --seeds
INCIDENT = {60: 5 * 3600, 300: 5 * 3600, 3600: 36 * 3600}      # step: seconds that an incident lasts
COUNTS = "busy", "sparse"
CHANGES = (("stop", lambda value: 0.0), ("half", lambda value: value / 2), ("double", lambda value: value * 2),
           ("fivefold", lambda value: value * 5))


class Mean(trends.Detector):
    """Dropped: the mean of both scores, less what any dependence can make of it (log10 e)."""

    @staticmethod
    def both(first, second):
        return max(0.0, (first + second) / 2 - math.log10(math.e))

    def rank(self, rounding):
        features = abs(self.residuals[-1]), abs(sum(self.residuals) / len(self.residuals))
        scores = [tail.score(feature, rounding) for tail, feature in zip((self.last, self.mean), features)]
        known = self.sum.count >= trends.SAMPLES
        super().rank(rounding)
        return self.both(*scores) if known else 0.0


class Larger(Mean):
    """Dropped: the larger of both scores, less log10 2."""

    @staticmethod
    def both(first, second):
        return max(0.0, max(first, second) - math.log10(2))


DESIGNS = (("sum ranked again", trends.Detector), ("mean of both", Mean), ("larger of both", Larger))


def limit(step):
    return trends.threshold(step, trends.tolerated(METRICS))


def false_alarms(design, kind, step, seeds, weeks):
    """(alarms, alarms of silence, weeks judged)."""
    wrong, silent, known = 0, 0, 0
    for seed in range(seeds):
        made, alarm, silence, still = (design(step, time.gmtime, limit(step)), trends.Alarm(limit(step)), trends.Silence(),
                                       trends.Alarm(limit(step)))
        for when, value in series.quiet(kind, seed, step, weeks):
            item = made.update(when, value)
            wrong, known = wrong + alarm.update(item), known + (item.state == "judged")
            silent += still.update(silence.update(item))
    return wrong, silent if kind in COUNTS else 0, known * step / series.WEEK


def show_false_alarms(seeds):
    """Prints them; whether all are tolerated."""
    fine = True
    for step, (weeks, share) in SPAN.items():
        print("\nfalse alarms a week of one of %d metrics, step %d s, threshold %.2f, tolerated %.3f"
              % (METRICS, step, limit(step), trends.tolerated(METRICS)))
        for name, design in DESIGNS:
            for kind in series.QUIET:
                wrong, silent, known = false_alarms(design, kind, step, math.ceil(seeds * share), weeks)
                fine = fine and (design is not trends.Detector or (wrong + silent) / known <= trends.tolerated(METRICS))
                print("  %-17s %-11s %.3f  (%d and %d of silence in %d weeks)"
                      % (name, kind, (wrong + silent) / known, wrong, silent, known), flush=True)
    return fine


def until_found(kind, step, seeds, hour):
    """{change: [steps to the alarm, None without one]} of incidents of so long; silence counts where events are counted."""
    start, found = series.BEGIN + 29 * series.DAY + hour * 3600, {name: [] for name, _ in CHANGES}
    for seed in range(seeds):
        made, silence = trends.Detector(step, time.gmtime, limit(step)), trends.Silence()
        rows = list(series.quiet(kind, seed, step, 4.6))
        for row in rows:
            if row[0] < start:
                silence.update(made.update(*row))
        rows = [row for row in rows if start <= row[0] < start + INCIDENT[step]]
        for name, change in CHANGES:
            other, still, alarm = copy.deepcopy((made, silence, trends.Alarm(limit(step))))
            items = (other.update(when, change(value)) for when, value in rows)
            steps = (number for number, item in enumerate(items, 1)
                     if alarm.update(item) or kind in COUNTS and still.update(item).score >= limit(step))
            found[name].append(next(steps, None))
    return found


def show_found(seeds):
    for step in SPAN:
        print("\nminutes to the alarm, step %d s: median, longest, share found within %d minutes; begun at 03:00 and at 13:00"
              % (step, INCIDENT[step] // 60))
        for kind in series.QUIET:
            for hour in (3, 13):
                told = []
                for name, steps in until_found(kind, step, math.ceil(seeds * min(1, SPAN[step][1])), hour).items():
                    minutes = [number * step / 60 for number in steps if number]
                    times = "%g, %g" % (statistics.median(minutes), max(minutes)) if minutes else "-"
                    told.append("%s %s (%d%%)" % (name, times, 100 * len(minutes) // len(steps)))
                print("  %-11s %02d:00  %s" % (kind, hour, "; ".join(told)), flush=True)


def show_costs():
    rows = list(series.quiet("cyclic", 1, 300, 4))
    made, began = trends.Detector(300), time.perf_counter()
    for row in rows:
        made.update(*row)
    spent = time.perf_counter() - began
    print("\n%.1f us a step; four weeks of 5-minute steps (%d) in %.0f ms; state %d bytes as pickled"
          % (spent / len(rows) * 1e6, len(rows), spent * 1e3, len(pickle.dumps(made))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="series of each kind (default: %(default)s)")
    args = parser.parse_args()
    show_costs()
    show_found(args.seeds)
    return 0 if show_false_alarms(args.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
