#!/usr/bin/env python3
"""The detector of trends.py on made-up metrics: how often it is wrong, how soon it is right, what it costs, what else was tried.

    python3 tests/bench/trends.py [--seeds N] [--first SEED]

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

SHARED = 8              # judgements of a whole check: six metrics, and the silence of two
SPAN = {60: (4, .2), 300: (8, 1), 3600: (16, 3)}     # step: weeks of each series, and how many there are for each of --seeds
INCIDENT = {60: 5 * 3600, 300: 5 * 3600, 3600: 36 * 3600}      # step: seconds that an incident lasts
COUNTS = "busy", "sparse"
CHANGES = (("stop", lambda value: 0.0), ("half", lambda value: value / 2), ("double", lambda value: value * 2),
           ("fivefold", lambda value: value * 5))


class Sum(trends.Detector):
    """Dropped: the sum of two ranks, ranked once more, and nothing that tells a little which stays."""

    @staticmethod
    def joined(last, mean, ranked):
        return ranked

    def rank(self, rounding):
        last, mean = self.last.score(self.size(1), rounding), self.mean.score(self.size(trends.SMOOTHED), rounding)
        score = max(0.0, self.joined(last, mean, self.sum.score(last + mean, trends.ALIKE)))
        super().rank(rounding)
        return score if self.sum.count > trends.SAMPLES else 0.0


class Mean(Sum):
    """Dropped: the mean of both scores, less what any dependence can make of it (log10 e)."""

    @staticmethod
    def joined(last, mean, ranked):
        return (last + mean) / 2 - math.log10(math.e)


class Larger(Sum):
    """Dropped: the larger of both scores, less log10 2."""

    @staticmethod
    def joined(last, mean, ranked):
        return max(last, mean) - math.log10(2)


class Logs(trends.Detector):
    """Dropped: logarithms, which show a half and hide a double."""

    @staticmethod
    def scaled(value):
        return math.log(max(value, 1e-6))

    unscaled = staticmethod(math.exp)


# name: (what judges a metric, what judges one that counts events)
DESIGNS = {"kept": (trends.Detector, trends.Counts), "counts as they are": (trends.Detector, trends.Detector),
           "sum alone": (Sum, Sum), "mean of both": (Mean, Mean), "larger of both": (Larger, Larger), "logarithms": (Logs, Logs)}


def limit(step):
    return trends.threshold(step, trends.tolerated(SHARED))


class Judge:
    """A metric's alarm, and the one of its silence where it counts events."""

    def __init__(self, design, kind, step):
        self.detector = DESIGNS[design][kind in COUNTS](step, time.gmtime, limit(step))
        self.plain = trends.Detector(step, time.gmtime, limit(step)) if kind in COUNTS else None
        self.silence, self.alarm, self.still = trends.Silence(), trends.Alarm(limit(step)), trends.Alarm(limit(step))

    def update(self, when, value):
        """(whether an incident begins, whether a silence does, whether that was judged)."""
        judged = self.detector.update(when, value)
        silent = self.plain is not None and self.still.update(self.silence.update(self.plain.update(when, value)))
        return self.alarm.update(judged), silent, judged.state == "judged"


def false_alarms(design, kind, step, seeds, weeks):
    """(alarms, alarms of silence, weeks judged)."""
    found = []
    for seed in seeds:
        judge = Judge(design, kind, step)
        found += [judge.update(*row) for row in series.quiet(kind, seed, step, weeks)]
    wrong, silent, known = map(sum, zip(*found))
    return wrong, silent, known * step / series.WEEK


def steps_of(design):
    """Those that are dropped are shown at one step alone."""
    return SPAN if design == "kept" else [300]


def seeds_of(args, step, most=math.inf):
    return range(args.first, args.first + math.ceil(args.seeds * min(most, SPAN[step][1])))


def show_false_alarms(args):
    """Prints them; whether all are tolerated."""
    fine = True
    for design, step in ((design, step) for design in DESIGNS for step in steps_of(design)):
        print("\n%s: false alarms a week of one of %d judgements, step %d s, threshold %.2f, tolerated %.3f"
              % (design, SHARED, step, limit(step), trends.tolerated(SHARED)))
        for kind in series.QUIET:
            wrong, silent, known = false_alarms(design, kind, step, seeds_of(args, step), SPAN[step][0])
            fine = fine and (design != "kept" or max(wrong, silent) / known <= trends.tolerated(SHARED))
            print("  %-11s %.3f, %.3f by silence  (%d, %d in %d weeks)"
                  % (kind, wrong / known, silent / known, wrong, silent, known), flush=True)
    return fine


def until_found(design, kind, step, seeds, hour):
    """{change: [steps to the alarm, None without one]} of incidents of so long."""
    start, found = series.BEGIN + 29 * series.DAY + hour * 3600, {name: [] for name, _ in CHANGES}
    for seed in seeds:
        judge = Judge(design, kind, step)
        rows = list(series.quiet(kind, seed, step, 4.6))
        for row in rows:
            if row[0] < start:
                judge.update(*row)
        judge.alarm, judge.still = trends.Alarm(limit(step)), trends.Alarm(limit(step))     # whatever was wrong before
        rows = [row for row in rows if start <= row[0] < start + INCIDENT[step]]
        for name, change in CHANGES:
            other = copy.deepcopy(judge)
            items = (other.update(when, change(value)) for when, value in rows)
            found[name].append(next((number for number, (wrong, silent, _) in enumerate(items, 1) if wrong or silent), None))
    return found


def show_found(args):
    for design, step in ((design, step) for design in DESIGNS for step in steps_of(design)):
        print("\n%s: minutes to the alarm, step %d s: median, longest, share found within %d minutes; begun at 03:00 and at 13:00"
              % (design, step, INCIDENT[step] // 60))
        for kind in series.QUIET:
            for hour in (3, 13):
                told = []
                for name, steps in until_found(design, kind, step, seeds_of(args, step, 1), hour).items():
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
    parser.add_argument("--first", type=int, default=1000, help="seed of the first; tests have those from 0 (default: %(default)s)")
    args = parser.parse_args()
    show_costs()
    show_found(args)
    return 0 if show_false_alarms(args) else 1


if __name__ == "__main__":
    sys.exit(main())
