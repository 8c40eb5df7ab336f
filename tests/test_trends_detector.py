"""The detector of trends.py: how often it is wrong on quiet metrics, how soon it is right, and what it refuses."""

import calendar
import collections
import copy
import csv
import functools
import io
import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

import trends
from conftest import LONG, ROOT
from series import BEGIN, DAY, QUIET, WEEK, Source, changed, quiet

SHARED = 8          # judgements of a whole check, that share its tolerance: six metrics, and the silence of two
COUNTS = "busy", "sparse"
FIVE, HOUR = 300, 3600
PEAK = BEGIN + 29 * DAY + 13 * 3600     # a Tuesday at 13:00, after four weeks
SCMS = ROOT.parent / "shared" / "data" / "SCMS_Delivery_History_Dataset.csv"
PYTHONS = sorted(map(str, Path.home().glob(".pyenv/versions/3.*/bin/python"))) + [sys.executable]


def limit(step):
    return trends.threshold(step, trends.tolerated(SHARED))


def detector(step, local=time.gmtime, kind=None):
    return (trends.Counts if kind in COUNTS else trends.Detector)(step, local, limit(step))


def judged(rows, step, kind=None):
    """What a new detector, of the kind of metric, makes of each."""
    return map(functools.partial(lambda made, row: made.update(*row), detector(step, kind=kind)), rows)


def alarms(items, step):
    """Those of what was judged that begin an incident."""
    alarm = trends.Alarm(limit(step))
    return [item for item in items if alarm.update(item)]


def silences(items):
    return map(trends.Silence().update, items)


@functools.lru_cache(maxsize=None)
def learnt(kind, seed, step):
    """(a detector that knows four weeks and more of a quiet metric, the two days that come then)."""
    made, rows = detector(step, kind=kind), list(quiet(kind, seed, step, 4.6))
    for row in rows:
        if row[0] < PEAK:
            made.update(*row)
    return made, [row for row in rows if row[0] >= PEAK]


def steps_until_found(kind, seed, step, change, most):
    """Steps from the beginning of an incident, which lasts so many at most, to the alarm; None without one."""
    made, rows = copy.deepcopy(learnt(kind, seed, step))
    alarm = trends.Alarm(limit(step))
    for number, (when, value) in enumerate(rows[:most], 1):
        if alarm.update(made.update(when, change(value))):
            return number
    return None


def fed(values, step=FIVE, begin=BEGIN):
    """(detector, last Judged) after these values."""
    made = detector(step)
    for number, value in enumerate(values):
        last = made.update(begin + number * step, value)
    return made, last


CHANGES = {"stop": lambda value: 0.0, "half": lambda value: value / 2, "double": lambda value: value * 2,
           "fivefold": lambda value: value * 5}


# Quiet metrics

def test_the_threshold_is_the_number_of_false_alarms_that_is_tolerated():
    assert trends.threshold(FIVE, 1 / 4) == pytest.approx(math.log10(4 * 2016))
    assert SHARED * trends.tolerated(SHARED) == pytest.approx(1 / 4)      # of the whole check
    assert trends.threshold(60, .1) == pytest.approx(trends.threshold(60, 1) + 1)


@pytest.mark.parametrize("step, weeks, seeds", [(FIVE, 8, 50 if LONG else 5), (HOUR, 12, 200 if LONG else 20)])
@pytest.mark.parametrize("kind", QUIET)
def test_a_quiet_metric_alarms_no_more_often_than_is_tolerated(kind, step, weeks, seeds):
    wrong, silent, known = 0, 0, 0
    for seed in range(seeds):
        rows = list(quiet(kind, seed, step, weeks))
        items = list(judged(rows, step, kind))
        known += sum(item.state == "judged" for item in items) * step / WEEK
        wrong += len(alarms(items, step))
        silent += len(alarms(silences(judged(rows, step)), step)) if kind in COUNTS else 0
    assert known > .8 * weeks * seeds       # else there was nothing that could have been wrong
    assert max(wrong, silent) / known <= trends.tolerated(SHARED)      # each is one of those that share it


def test_a_score_of_s_comes_about_once_in_ten_to_the_s():
    """What a score means, where the tail tells enough: at 2, of a metric with hours and weekends."""
    scores = [item.score for seed in range(3) for item in judged(quiet("cyclic", seed, FIVE, 6), FIVE)]
    assert .004 < sum(score >= 2 for score in scores) / len(scores) < .016


@pytest.mark.parametrize("value", [0, 5, 100.1, 1e6, -3.7])
def test_a_constant_never_alarms_and_the_first_departure_does(value):
    items = list(judged([(BEGIN + number * FIVE, value) for number in range(3000)], FIVE))
    assert max(item.score for item in items) == 0
    made, _ = fed([value] * 3000)
    item = made.update(BEGIN + 3000 * FIVE, value + 3)
    assert item.score > limit(FIVE) and item.onset and item.state == "judged"
    assert not item.low <= value + 3 <= item.high


def test_rounding_errors_of_a_constant_are_no_departures():
    source = Source(1)
    rows = [(BEGIN + number * FIVE, 1e6 * (.3 + 1e-16 * int(3 * source.random()))) for number in range(4000)]
    assert not alarms(judged(rows, FIVE), FIVE)


# Incidents

@pytest.mark.parametrize("kind, change, most, share, step", [
    ("flat", "stop", 1, 1, FIVE), ("flat", "half", 1, 1, FIVE), ("flat", "double", 1, 1, FIVE),
    ("cyclic", "stop", 1, 1, FIVE), ("cyclic", "half", 2, 1, FIVE), ("cyclic", "double", 1, 1, FIVE),
    ("busy", "stop", 1, 1, FIVE), ("busy", "half", 8, .9, FIVE), ("busy", "double", 6, 1, FIVE),
    ("latency", "fivefold", 6, 1, FIVE),
    ("correlated", "stop", 8, .9, FIVE), ("correlated", "double", 8, .8, FIVE),
    ("flat", "stop", 1, 1, HOUR), ("flat", "half", 1, 1, HOUR), ("flat", "double", 1, 1, HOUR),
    ("cyclic", "stop", 1, 1, HOUR), ("cyclic", "half", 2, 1, HOUR), ("cyclic", "double", 1, 1, HOUR),
    ("busy", "stop", 2, 1, HOUR), ("busy", "half", 8, .8, HOUR), ("busy", "double", 6, 1, HOUR),
    ("correlated", "stop", 3, .9, HOUR), ("correlated", "double", 4, .8, HOUR)])
def test_a_clear_incident_is_found_within_so_many_steps(kind, change, most, share, step):
    found = [steps_until_found(kind, seed, step, CHANGES[change], most) for seed in range(40 if LONG else 5)]
    assert sum(map(bool, found)) >= share * len(found)


@pytest.mark.parametrize("kind, change", [("latency", "double"), ("latency", "half"), ("sparse", "stop"), ("sparse", "double"),
                                          ("sparse", "half"), ("correlated", "half")])
def test_what_the_page_calls_unseen_is_not_found_within_an_hour(kind, change):
    found = [steps_until_found(kind, seed, FIVE, CHANGES[change], 12) for seed in range(5)]
    assert sum(map(bool, found)) <= 1


@pytest.mark.parametrize("kind", ["flat", "cyclic"])
def test_a_slow_drift_is_followed_and_not_found(kind):
    drifting = ((when, value * (1 + max(0, when - BEGIN - 4 * WEEK) / (4 * WEEK))) for when, value in quiet(kind, 2, FIVE, 8))
    assert not alarms(judged(drifting, FIVE), FIVE)


@pytest.mark.parametrize("kind, change", [("cyclic", lambda value: value * 1.6), ("flat", lambda value: value + 30),
                                          ("busy", lambda value: value * 3), ("flat", lambda value: 0)])
def test_a_level_shift_alarms_once_and_is_then_the_new_usual(kind, change):
    alarm, begun = trends.Alarm(limit(FIVE)), []
    items = list(judged(changed(quiet(kind, 1, FIVE, 7), PEAK, math.inf, change), FIVE, kind))
    for item in items:
        begun += [item.time] if alarm.update(item) else []
    assert [int(when - PEAK) // FIVE < 4 for when in begun] == [True]
    assert (alarm.state, alarm.since, alarm.cause) == ("quiet", None, None)
    assert items[-1].low < items[-1].value < items[-1].high


def test_an_alarm_is_learning_then_quiet_then_degraded_until_it_was_calm_for_an_hour():
    alarm, states = trends.Alarm(limit(FIVE)), []
    for item in judged(changed(quiet("flat", 1, FIVE, 3), BEGIN + 15 * DAY, BEGIN + 15 * DAY + 3600, CHANGES["stop"]), FIVE):
        alarm.update(item)
        states.append(alarm.state)
        if alarm.state == "degraded":
            assert (alarm.since, alarm.cause.value) == (BEGIN + 15 * DAY, 0.0)
    assert [state for state, _ in itertools.groupby(states)] == ["learning", "quiet", "learning", "quiet", "degraded", "quiet"]
    assert 12 + trends.CALM_STEPS <= states.count("degraded") <= 12 + 6 * trends.CALM_STEPS


def test_nothing_is_judged_before_200_steps_and_the_third_day_of_an_hour():
    items = list(judged(quiet("flat", 1, HOUR, 4), HOUR))
    first = next(number for number, item in enumerate(items) if item.state == "judged")
    assert first == trends.SAMPLES
    weekend = [item for item in items if time.gmtime(item.time).tm_wday >= 5]
    assert [item.state for item in weekend] == ["learning"] * 48 + ["judged"] * 144
    daily = [item for item in judged(quiet("flat", 1, FIVE, 1), FIVE)]
    assert [item.state for item in daily] == ["learning"] * 576 + ["judged"] * 864 + ["learning"] * 576


# Silence

@pytest.mark.parametrize("seed", range(10 if LONG else 3))
def test_a_stop_of_sparse_counts_is_found_within_five_hours(seed):
    rows = list(changed(quiet("sparse", seed, FIVE, 4.6), PEAK, math.inf, CHANGES["stop"]))
    items = list(judged(rows, FIVE))
    first = alarms(silences(items), FIVE)[0]
    assert PEAK < first.time <= PEAK + 5 * 3600
    assert first.value == 0 and first.expected >= limit(FIVE) * math.log(10) and first.low == 1
    for found in items, judged(rows, FIVE, "sparse"):
        assert not [item for item in alarms(found, FIVE) if item.time >= PEAK]      # it takes the rule of its own to see that


def depot(source, times):
    """Two events an hour by day, none at night and on weekends."""
    for when in times:
        open_now = 8 <= when % DAY // 3600 < 18 and (when - BEGIN) // DAY % 7 < 5
        yield source.poisson(2 * FIVE / 3600) if open_now else 0


def test_nights_and_weekends_of_a_small_depot_are_no_silence_and_a_dead_day_is():
    times = [BEGIN + number * FIVE for number in range(8 * 2016)]
    rows = list(zip(times, depot(Source(5), times)))
    assert not alarms(silences(judged(rows, FIVE)), FIVE)
    last = BEGIN + 7 * WEEK + DAY           # a Tuesday
    dead = alarms(silences(judged(changed(rows, last, math.inf, CHANGES["stop"]), FIVE)), FIVE)
    assert [item.time - last <= 18 * 3600 for item in dead] == [True]


def test_missing_steps_are_neither_zeros_nor_silence():
    source = Source(3)
    rows = [row for row in quiet("busy", 3, FIVE, 6) if source.random() > .3 and not PEAK <= row[0] < PEAK + 2 * DAY]
    assert not alarms(judged(rows, FIVE, "busy"), FIVE) and not alarms(silences(judged(rows, FIVE)), FIVE)


def test_events_in_lots_are_waited_for_longer():
    source = Source(4)
    single = [(BEGIN + number * HOUR, source.poisson(1)) for number in range(1000)]
    lots = [(when, 10 * (source.random() < .1)) for when, _ in single]
    once, ten = (list(silences(judged(rows + [(single[-1][0] + HOUR * hour, 0) for hour in range(1, 13)], HOUR)))[-1]
                 for rows in (single, lots))
    assert once.score > 1.5 * ten.score and ten.expected > 5


# Time

@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def office(begin, weeks):
    """(time, value) of a metric that keeps office hours by the local clock."""
    source = Source(6)
    for when in range(begin, begin + weeks * WEEK, FIVE):
        yield when, 20 + 80 * (8 <= time.localtime(when).tm_hour < 18) + 3 * source.normal()


@pytest.mark.parametrize("begin", ["2026-02-23", "2026-09-21"])
def test_daylight_saving_is_no_incident(berlin, begin):
    """The clock goes forward on 2026-03-29 and back on 2026-10-25, five weeks later each."""
    rows = list(office(calendar.timegm(time.strptime(begin, "%Y-%m-%d")), 7))
    for local, wrong in ((time.localtime, False), (time.gmtime, True)):
        made, alarm = detector(FIVE, local), trends.Alarm(limit(FIVE))
        assert any([alarm.update(made.update(*row)) for row in rows]) == wrong


@pytest.mark.parametrize("kind", ["cyclic", "sparse"])
def test_no_score_depends_on_what_comes_after(kind):
    rows = list(quiet(kind, 7, HOUR, 4))
    whole = list(judged(rows, HOUR))
    wild = rows[:500] + [(when, value * 100 + 7) for when, value in rows[500:]]
    assert list(judged(rows[:500], HOUR)) == whole[:500] == list(judged(wild, HOUR))[:500]


def test_a_baseline_follows_as_fast_in_hours_whatever_the_step():
    def left(step):
        """How much of a shift is still above the baseline of an hour after it was seen for ten hours."""
        made = detector(step)
        for when in range(BEGIN, BEGIN + 40 * DAY, step):
            made.update(when, 0)
        when -= when % DAY          # the beginning of the last day
        for number in range(10 * 3600 // step):
            item = made.update(when + number % (3600 // step) * step, 1)
        return 1 - item.expected
    assert left(HOUR) == pytest.approx(left(FIVE), abs=.03)


# Values

@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), "1", True, 10 ** 400, [1]])
def test_what_is_no_finite_number_is_refused_and_teaches_nothing(value):
    made, _ = fed([1, 2, 3] * 100)
    other = copy.deepcopy(made)
    with pytest.raises(ValueError, match="not a finite number"):
        made.update(BEGIN + 300 * FIVE, value)
    assert made.update(BEGIN + 300 * FIVE, 9) == other.update(BEGIN + 300 * FIVE, 9)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e12])
def test_scores_have_no_unit(scale):
    plain, scaled = (list(judged(((when, value * by) for when, value in quiet("cyclic", 1, HOUR, 3)), HOUR)) for by in (1, scale))
    assert [item.score for item in scaled] == pytest.approx([item.score for item in plain], rel=.01, abs=.01)


@pytest.mark.parametrize("kind", ["flat", "cyclic", "busy", "latency"])
def test_no_value_within_the_band_alarms(kind):
    made, rows = copy.deepcopy(learnt(kind, 0, FIVE))
    for when, value in rows[:300]:
        item = copy.deepcopy(made).update(when, value)
        inside = [item.low + part * (item.high - item.low) for part in (.001, .3, .999)]
        assert all(copy.deepcopy(made).update(when, value).score < limit(FIVE) for value in inside)
        wide = item.expected + 5 * (item.high - item.expected)
        assert copy.deepcopy(made).update(when, wide).score > limit(FIVE)
        made.update(when, value)


def test_a_fault_that_is_over_is_soon_odd_no_more():
    """What is told of what stays is of 8 values, but it is over with the last 3."""
    made, rows = copy.deepcopy(learnt("busy", 0, HOUR))
    scores = [made.update(when, value / 3 if number < 12 else value).score for number, (when, value) in enumerate(rows[:20])]
    assert max(scores[3:12]) > limit(HOUR) and max(scores[15:]) < trends.CALM


def test_counts_are_told_as_they_are_and_less_than_none_is_none():
    made = trends.Counts(HOUR, time.gmtime, limit(HOUR))
    for number in range(400):
        item = made.update(BEGIN + number * HOUR, 9)
    assert (item.value, item.low, item.high) == pytest.approx((9, 9, 9), abs=1e-6) and item.expected == pytest.approx(9)
    other = copy.deepcopy(made)
    none, less = made.update(BEGIN + 400 * HOUR, 0), other.update(BEGIN + 400 * HOUR, -5)
    assert none.score == less.score > limit(HOUR) and less.value == -5 and less.low >= 0


def test_rarity_is_said_in_words():
    words = [trends.rarity(score, FIVE) for score in (0, 1, 2, 3, 4, 4.3, 5.5, 9, 300)]
    assert words == ["about once in 5 minutes", "about once in 50 minutes", "about once in 8 hours", "about once in 3 days",
                     "about once in 5 weeks", "about once in 10 weeks", "about once in 3 years", "less than once in a century",
                     "less than once in a century"]
    assert trends.rarity(math.log10(6 * 168), HOUR) == "about once in 6 weeks"
    assert trends.rarity(0, 60) == "at any time"


# Scores of a series

def scored(text):
    out = io.StringIO()
    trends.score(io.StringIO(text), out)
    return [float(line) for line in out.getvalue().splitlines()]


def csv_text(rows, form="%Y-%m-%d %H:%M:%S", header="timestamp,value\n"):
    return header + "".join("%s,%r\n" % (time.strftime(form, time.gmtime(when)), value) for when, value in rows)


def test_each_row_has_one_score_which_is_the_detectors():
    rows = list(quiet("cyclic", 1, FIVE, 3))
    expected = [item.score if item.onset else 0 for item in judged(rows, FIVE)]
    assert max(expected) > 2 and scored(csv_text(rows)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S.000", "%Y-%m-%dT%H:%M:%SZ",
                                  "%Y-%m-%d %H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%S+0000", "%s"])
@pytest.mark.parametrize("header", ["", "timestamp,value\n", "\ufefftime,\"how many\"\r\n"])
def test_every_form_of_time_gives_the_same_scores(monkeypatch, form, header):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    rows = list(quiet("cyclic", 1, HOUR, 3))
    assert scored(csv_text(rows, form, header)) == scored(csv_text(rows))
    monkeypatch.undo()
    time.tzset()


def test_a_time_without_zone_is_local_as_it_is_written_and_one_with_zone_is_the_hosts(berlin):
    assert trends.moment("2026-07-01 12:00:00")[1](trends.moment("2026-07-01 12:00:00")[0]).tm_hour == 12
    assert trends.moment("2026-07-01T12:00:00Z")[1](trends.moment("2026-07-01T12:00:00Z")[0]).tm_hour == 14
    assert trends.moment("2026-07-01T12:00:00-03:30")[0] == trends.moment("2026-07-01T15:30:00Z")[0]


@pytest.mark.parametrize("line, told", [
    ("2026-01-01 00:10:00", "not timestamp,value: '2026-01-01 00:10:00'"),
    ("2026-01-01 00:10:00,1,2", "not timestamp,value: '2026-01-01 00:10:00,1,2'"),
    ("yesterday,1", "not a timestamp: 'yesterday'"),
    ("2026-02-30 00:00:00,1", "no such time: '2026-02-30 00:00:00'"),
    ("2026-01-01 24:00:00,1", "no such time: '2026-01-01 24:00:00'"),
    ("2026-01-01 00:10:00,", "not a number: ''"),
    ("2026-01-01 00:10:00,many", "not a number: 'many'"),
    ("2026-01-01 00:10:00,nan", "not a finite number: nan"),
    ("2026-01-01 00:10:00,-inf", "not a finite number: -inf"),
    ("0001-01-01 00:00:00,x", "not a number: 'x'"),
    ("2026-01-01 00:10:00,\"1", "unexpected end of data")])
def test_a_line_that_is_no_sample_is_refused_by_its_number(line, told):
    out = io.StringIO()
    with pytest.raises(ValueError) as refused:
        trends.score(io.StringIO("timestamp,value\n2026-01-01 00:00:00,1\n\n%s\n" % line), out)
    assert str(refused.value).startswith("line 4: ") and told in str(refused.value)
    assert out.getvalue() == "0.0000\n"


def test_scores_come_while_the_series_does():
    read, written = [], io.StringIO()

    def lines():
        for when, value in quiet("flat", 1, FIVE, .01):
            assert written.getvalue().count("\n") == len(read)
            read.append(when)
            yield "%d,%r\n" % (when, value)
    trends.score(lines(), written)
    assert len(read) == 20


def test_the_step_is_told_by_the_times_so_far():
    rows = list(quiet("cyclic", 1, HOUR, 6))
    whole = scored(csv_text(rows))
    assert scored(csv_text(rows[:700])) == whole[:700]
    known = [item.score if item.onset else 0 for item in judged(rows, HOUR)]
    assert whole == pytest.approx(known, abs=.02)       # the first value alone was taken for one of five minutes


@pytest.mark.parametrize("python", PYTHONS)
def test_scores_are_the_same_on_every_python(python):
    text = csv_text(quiet("busy", 9, FIVE, 1)) + csv_text(quiet("latency", 9, FIVE, 1), header="")
    command = "import sys; sys.path.insert(0, %r); import trends; trends.score(sys.stdin, sys.stdout)" % str(ROOT)
    found = subprocess.run([python, "-B", "-c", command], input=text, stdout=subprocess.PIPE, universal_newlines=True, check=True)
    assert [float(line) for line in found.stdout.splitlines()] == scored(text) and len(scored(text)) == 2 * 2016


# Real data

@functools.lru_cache(maxsize=None)
def deliveries():
    """{day as Unix seconds: deliveries} of nine years."""
    if not SCMS.exists():
        pytest.skip("the SCMS delivery history is not at %s" % SCMS)
    with SCMS.open(encoding="latin-1", newline="") as lines:
        return collections.Counter(calendar.timegm(time.strptime(row["Delivered to Client Date"], "%d-%b-%y"))
                                   for row in csv.DictReader(lines))


@pytest.mark.parametrize("step", [DAY, HOUR])
def test_nine_years_of_real_deliveries_alarm_no_more_than_is_tolerated(step):
    counts = deliveries()
    tolerated = trends.tolerated(1)
    made, plain = (kind(step, time.gmtime, trends.threshold(step, tolerated)) for kind in (trends.Counts, trends.Detector))
    alarm, quiet_too_long, silence = trends.Alarm(made.limit), trends.Alarm(made.limit), trends.Silence()
    begun, silent, known = [], 0, 0
    for when in range(min(counts), max(counts) + 1, step):
        item = made.update(when, counts.get(when, 0))
        begun += [item] if alarm.update(item) else []
        silent += quiet_too_long.update(silence.update(plain.update(when, counts.get(when, 0))))
        known += (item.state == "judged") * step / WEEK
    assert known > 400 and len(begun) / known <= tolerated and silent == 0
    assert time.strftime("%F", time.gmtime(max(begun, key=lambda item: item.score).time)) == "2010-03-31"   # 52 of a usual 6
