"""Latency: percentiles against those of the same durations, the last five minutes second by second, threads, a service."""

import bisect
import itertools
import math
import random
import sys
import threading
import time

import pytest

import latency
import metrics_service
from conftest import turn_second

LENGTH = latency.SLOT_SECONDS * latency.SLOTS
PARTS = {"p50": .5, "p95": .95, "p99": .99}
NOTHING = {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None, "max": None}


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock(1234567.0)     # not the beginning of a slot


@pytest.fixture
def durations(clock):
    return latency.Latency(clock)


def told(durations):
    return latency.document(durations.spans())


def recent(durations):
    return told(durations)["last_5_minutes"]


def estimate(values, part):
    """The quantile that the buckets of these values give, one value at a time."""
    rank, ordered = part * len(values), sorted(values)
    if rank == 0:
        return None
    met = ordered[math.ceil(rank - 1e-9) - 1]   # the value that the rank reaches, in whose bucket the quantile lies
    place = bisect.bisect_left(latency.BOUNDS, met)
    if place == len(latency.BOUNDS):
        return latency.BOUNDS[-1]
    low, high = latency.BOUNDS[place - 1] if place else 0, latency.BOUNDS[place]
    inside = [value for value in values if low < value <= high or value == low == 0]
    below = sum(value < min(inside) for value in values)
    return min(low + (high - low) * (rank - below) / len(inside), max(values))


def samples(count, seed, shape):
    source = random.Random(seed)
    return [abs(shape(source)) for _ in range(count)]


SHAPES = [
    samples(1, 1, lambda source: 0.003), samples(2, 2, lambda source: source.uniform(0, 20)),
    samples(19, 3, lambda source: source.choice(latency.BOUNDS)), samples(20, 4, lambda source: source.expovariate(100)),
    samples(101, 5, lambda source: source.lognormvariate(-6, 2)), samples(1000, 6, lambda source: source.uniform(0, 1)),
    samples(3000, 7, lambda source: source.lognormvariate(-5, 3)), [0.0] * 7, [11.0, 3600.0], [0.0004] * 95 + [5.0] * 5,
]


@pytest.mark.parametrize("values", SHAPES, ids=len)
def test_percentiles_are_those_of_the_same_durations_within_the_buckets(durations, values):
    for value in values:
        durations.observe(value)
    document = told(durations)
    for block in (document, document["last_5_minutes"]):
        assert {name: block[name] for name in PARTS} == {
            name: pytest.approx(estimate(values, part), abs=1e-6) for name, part in PARTS.items()}
        assert (block["count"], block["max"]) == (len(values), round(max(values), 6))
        assert block["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert document["sum"] == pytest.approx(sum(values), abs=1e-6)
    assert [bucket["count"] for bucket in document["buckets"]] == [
        sum(value <= bound for value in values) for bound in latency.BOUNDS + (math.inf,)]


@pytest.mark.parametrize("values", [values for values in SHAPES if max(values) <= latency.BOUNDS[-1]], ids=len)
def test_a_percentile_lies_in_the_bucket_of_the_true_one(durations, values):
    for value in values:
        durations.observe(value)
    document = told(durations)
    for name, part in PARTS.items():
        true = sorted(values)[math.ceil(part * len(values) - 1e-9) - 1]
        place = bisect.bisect_left(latency.BOUNDS, true)
        assert (latency.BOUNDS[place - 1] if place else 0) <= document[name] <= latency.BOUNDS[place]


def test_where_nothing_was_counted_there_is_nothing_to_tell(durations):
    document = told(durations)
    assert recent(durations) == NOTHING and {name: document[name] for name in NOTHING} == NOTHING
    assert document["sum"] == 0 and {bucket["count"] for bucket in document["buckets"]} == {0}


def test_several_are_told_together(clock):
    pair, whole = [latency.Latency(clock), latency.Latency(clock)], latency.Latency(clock)
    for number, value in enumerate(samples(500, 8, lambda source: source.expovariate(50))):
        clock.now += 1
        pair[number % 2].observe(value)
        whole.observe(value)
    parts, total = latency.document(*[one.spans() for one in pair]), told(whole)
    assert parts.pop("sum") == pytest.approx(total.pop("sum"))
    assert parts == total
    assert latency.document() == told(latency.Latency(clock))


# The last five minutes

@pytest.mark.parametrize("start", [0.0, 5.0, 9.999])
def test_what_is_younger_than_five_minutes_counts_and_what_is_a_slot_older_does_not(clock, durations, start):
    for second in range(2000):
        clock.now = start + second
        durations.observe(second)
        ages = recent(durations)
        assert LENGTH <= ages["count"] <= LENGTH + latency.SLOT_SECONDS or second < LENGTH
        kept = [value for value in range(second + 1)
                if (start + value) // latency.SLOT_SECONDS >= clock.now // latency.SLOT_SECONDS - latency.SLOTS]
        assert (ages["count"], ages["mean"], ages["max"]) == (len(kept), pytest.approx(sum(kept) / len(kept), abs=1e-6), second)
    assert told(durations)["count"] == 2000 and told(durations)["sum"] == sum(range(2000))


def test_a_slot_ends_exactly_at_its_border(clock, durations):
    clock.now = 1000.0
    durations.observe(7.0)
    clock.now = 1000.0 + LENGTH + latency.SLOT_SECONDS - 1e-6
    assert recent(durations)["max"] == 7.0
    clock.now = 1000.0 + LENGTH + latency.SLOT_SECONDS
    assert recent(durations) == NOTHING


def test_what_comes_at_a_border_belongs_to_the_slot_that_begins(clock, durations):
    clock.now = 1009.999
    durations.observe(1.0)
    clock.now = 1010.0
    durations.observe(2.0)
    clock.now = 1310.0      # the slot from 1000 on is too old by now, that from 1010 on is not
    assert recent(durations)["count"] == 1 and recent(durations)["max"] == 2.0


@pytest.mark.parametrize("pause", [311, 3600, 86400.5, 1e9])
def test_after_a_quiet_hour_or_a_suspended_night_nothing_old_is_left(clock, durations, pause):
    for _ in range(500):
        clock.now += 1
        durations.observe(9.0)
    clock.now += pause
    assert recent(durations) == NOTHING
    durations.observe(0.002)
    assert recent(durations)["max"] == 0.002 and recent(durations)["count"] == 1
    assert told(durations)["count"] == 501 and told(durations)["max"] == 9.0


def test_slots_are_few_however_long_it_goes_on(clock, durations):
    for _ in range(1000):
        clock.now += 7
        durations.observe(0.1)
    assert len(durations.slots) <= latency.SLOTS + 1
    assert told(durations)["count"] == 1000


def test_a_moment_that_was_read_before_a_slot_turned_counts_in_the_new_one(clock, durations):
    clock.now = 1010.0
    durations.observe(1.0)
    clock.now = 1009.9      # of a thread that came late to the lock
    durations.observe(2.0)
    assert recent(durations)["count"] == 2 and len(durations.slots) == 1


def test_the_clock_goes_on_while_the_machine_is_suspended():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= latency.clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert latency.Latency().clock is latency.clock
    assert latency.BOOTTIME == time.CLOCK_BOOTTIME == 7


# Threads

def hammer(number, work):
    """Runs work(0), work(1) and so on at once, switching between them as often as can be."""
    interval, failed = sys.getswitchinterval(), []
    sys.setswitchinterval(1e-6)

    def run(place):
        try:
            work(place)
        except Exception as error:
            failed.append(error)
    threads = [threading.Thread(target=run, args=(place,)) for place in range(number)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []


def test_no_count_is_lost_while_threads_count_and_read_and_slots_turn(durations, clock):
    ticks = itertools.count()
    durations.clock = lambda: next(ticks) / 100     # some hundred slots go by

    def work(place):
        for turn in range(5000):
            durations.observe(0.25 * (place + 1))
            if turn % 500 == 0:
                block = told(durations)
                assert block["buckets"][-1]["count"] == block["count"] >= block["last_5_minutes"]["count"]
    hammer(8, work)
    block = told(durations)
    assert (block["count"], block["sum"]) == (40000, 5000 * sum(0.25 * (place + 1) for place in range(8)))


def test_requests_of_all_threads_are_counted_by_route_code_and_latency_alike():
    traffic = metrics_service.Traffic()

    def work(place):
        for turn in range(2000):
            traffic.observe(("/metrics", "/livez")[place % 2], 200 + turn % 2, 0.001 * (1 + place % 2))
            if turn % 200 == 0:
                block = traffic.document(0)
                assert block["total"] == sum(block["by_code"].values()) == block["latency_seconds"]["buckets"][-1]["count"]
    hammer(8, work)
    block = traffic.document(0)
    assert block["by_code"] == {"200": 8000, "201": 8000} and block["latency_seconds"]["count"] == 16000
    routes = block["latency_seconds"]["last_5_minutes"]["by_route"]
    found = {route: (one["count"], one["max"]) for route, one in routes.items()}
    assert found == {"/livez": (8000, 0.002), "/metrics": (8000, 0.001)}


# The service

def test_probes_do_not_hide_a_slow_route():
    traffic = metrics_service.Traffic()
    for _ in range(1000):
        traffic.observe("/livez", 200, 0.0001)
    for _ in range(20):
        traffic.observe("/metrics", 200, 2.0)
    block = traffic.document(0)["latency_seconds"]["last_5_minutes"]
    assert block["p95"] <= 0.0005 and block["by_route"]["/metrics"]["p95"] > 1


def test_a_route_that_nobody_asked_for_five_minutes_is_left_out(clock):
    traffic = metrics_service.Traffic()
    traffic.latencies["/metrics"] = latency.Latency(clock)
    traffic.observe("/metrics", 200, 0.1)
    clock.now += 400
    block = traffic.document(0)["latency_seconds"]
    assert block["count"] == 1 and block["last_5_minutes"] == dict(NOTHING, by_route={})


def test_a_real_service_tells_percentiles_of_its_requests_and_queries(launch, database):
    service = launch(database)
    for _ in range(30):
        assert service.get("/metrics")[0] == 200
    turn_second()
    document = service.get("/metrics")[1]
    requests, queries = document["requests"]["latency_seconds"], document["database"]["query_seconds"]
    for block in (requests, requests["last_5_minutes"], requests["last_5_minutes"]["by_route"]["/metrics"], queries,
                  queries["last_5_minutes"]):
        assert 0 < block["p50"] <= block["p95"] <= block["p99"] <= block["max"] < 30
    assert requests["last_5_minutes"]["by_route"]["/metrics"]["count"] == 30
    assert queries["count"] == document["database"]["queries_total"] == queries["last_5_minutes"]["count"] >= 2
    assert queries["last"] <= queries["max"] <= queries["sum"]
