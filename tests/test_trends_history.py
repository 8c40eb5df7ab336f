"""The history of the check: what it keeps of many readings, and that nothing which happens to its file costs more than that."""

import calendar
import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

import health_check
import trends
from conftest import ROOT, wait_for

NOBODY = 65534
URL = "http://127.0.0.1:8321"
NOON = calendar.timegm((2026, 11, 16, 12, 0, 0))    # a Monday
INSTANCE = "17cd4c16867b41eea00119330148b8fd"


def document(now=NOON, hours=(), instance=INSTANCE, overdue=7, latency=.004, codes=(("200", 0), ("500", 0)), stale=None, **more):
    """What /metrics?history= answers; hours are the counts of created and delivered of the hours up to that of now."""
    begin = now - now % 3600
    points = [{"hour": trends.instant(begin - back * 3600)[:13], "created": count[0], "delivered": count[1], "on_time": count[1],
               "late": 0} for back, count in zip(reversed(range(len(hours))), hours)]
    return dict({
        "service": {"instance": instance}, "generated_at": trends.instant(now), "stale": stale, "history": points,
        "shipments": {"overdue": overdue, "total": 20},
        "by_carrier": [{"carrier": "Acme", "overdue": 3}, {"carrier": None, "overdue": 4}],
        "requests": {"total": sum(dict(codes).values()), "by_code": dict(codes),
                     "latency_seconds": {"last_5_minutes": {"mean": latency}}},
        "logging": {"errors_total": 0}}, **more)


def review(path, found, now=NOON, watches=(), save=health_check.replace_file, url=URL):
    return trends.review(str(path), url, found, watches, .25, now, save)


def read(path, url=URL):
    return trends.recall(str(path), url)


def grown(seconds, every, watches=("requests.total",), rate=10, history=None, begin=NOON, **changes):
    """A History of readings that far apart, while so many requests come a minute."""
    history, metrics = history or trends.History(URL), trends.metrics_of(watches)
    for now in range(begin, begin + seconds + 1, every):
        total = {"total": (now - NOON) // 60 * rate, "by_code": {}, "latency_seconds": {"last_5_minutes": {"mean": .004}}}
        history.add(trends.take(document(now, **dict({"requests": total}, **changes)), metrics, now)[0], metrics)
    return history


def column(history, name):
    return [value for value in history.columns[name] if value is not None]


# What is kept of many readings

FILE = """\
{"format": "metrics_service trends 1", "url": "http://127.0.0.1:8321", "verdict": {"state": "learning", "reason": null, %s
{"begun": "2026-11-16T12:05:00Z", "read": "2026-11-16T12:06:00Z", "instance": "17cd4c16867b41eea00119330148b8fd", %s
hour,created,delivered,on_time,late
2026-11-16T10:00:00Z,4,2,2,0
2026-11-16T11:00:00Z,5,3,3,0

time,latency,overdue,errors
2026-11-16T12:00:00Z,0.004,7,
2026-11-16T12:05:00Z,0.0062,9,12
end
"""


def test_the_file_can_be_read_by_a_person(tmp_path):
    hours = [(4, 2), (5, 3), (1, 1)]
    for minute, latency, errors, overdue in ((0, .004, 3, 7), (2, .006, 5, 8), (4, .5, 10, 8), (5, .0062, 15, 9), (6, .1, 15, 9)):
        now = NOON + minute * 60
        review(tmp_path / "trends", document(now, hours, latency=latency, codes=[("503", errors)], overdue=overdue), now)
    lines = (tmp_path / "trends").read_text().split("\n")
    first, state = json.loads(lines[0]), json.loads(lines[1])
    assert first["verdict"]["checked_at"] == "2026-11-16T12:06:00Z" and len(first["verdict"]["metrics"]) == 6
    assert [state[name] for name in ("counters", "gains", "waiting")] == [
        {"errors": 15}, {"errors": 0}, {"overdue": [9], "latency": [.1]}]
    shown = FILE % (lines[0].partition('"reason": null, ')[2], lines[1].partition(INSTANCE + '", ')[2])
    assert "\n".join(lines) == shown


def test_of_a_step_a_level_counts_last_a_latency_by_its_median_and_a_counter_by_its_sum():
    history, metrics = trends.History(URL), trends.METRICS
    readings = (0, .1, 0, 1), (1, .2, 2, 5), (2, 9., 2, 6), (3, .3, 4, 2), (4, .25, 5, 2), (5, .2, 9, 3)
    for minute, latency, errors, overdue in readings:
        found = document(NOON + minute * 60, latency=latency, codes=[("500", errors), ("200", 77)], overdue=overdue)
        history.add(trends.take(found, metrics, NOON + minute * 60)[0], metrics)
    assert [history.columns[name][1] for name in ("overdue", "latency", "errors")] == [3, .25, 9]


@pytest.mark.parametrize("every, steps", [(20, 12), (60, 12), (300, 12), (900, 4), (3600, 1)])
def test_however_often_the_check_runs_a_step_is_five_minutes_or_one_run_and_counts_the_same(every, steps):
    history = grown(3600, every)
    assert len(history.times) == steps + 1
    assert set(column(history, "requests.total")) == {50}


def test_a_changed_cadence_changes_no_counts():
    history = grown(7200, 60)
    history = grown(7200, 300, history=history, begin=history.read + 300)
    history = grown(7200, 900, history=history, begin=history.read + 900)
    assert set(column(history, "requests.total")) == {50} and len(history.times) == 59
    assert trends.cadence(history.times[:20]) == 300 and trends.cadence(history.times[-8:]) == 900


def test_cron_may_be_a_little_early_or_late():
    history, metrics = trends.History(URL), trends.METRICS
    for number in range(100):
        now = NOON + number * 300 + random.Random(number).randrange(-6, 7)
        history.add(trends.take(document(now), metrics, now)[0], metrics)
    assert len(history.times) == 100


def test_missed_runs_are_no_zeros_and_their_counts_are_spread():
    history = grown(3600, 300)
    history = grown(3600, 300, history=history, begin=history.read + 6 * 3600)
    assert len(history.times) == 13 + 13 and set(column(history, "requests.total")) == {50}
    assert set(column(history, "overdue")) == {7}


def errors(*readings):
    """The steps of the errors for readings of (instance, errors so far), five minutes apart."""
    history, metrics = trends.History(URL), trends.METRICS
    for number, (instance, count) in enumerate(readings):
        found = document(NOON + number * 300, codes=[("500", count)] if count is not None else [], instance=instance)
        history.add(trends.take(found, metrics, NOON + number * 300)[0], metrics)
    return history.columns["errors"]


def test_a_counter_that_starts_again_with_a_new_instance_has_gained_what_it_has():
    assert errors(("a", 10), ("a", 12), ("b", 1), ("b", 1), ("c", None), ("c", 4)) == [None, 2, 1, 0, 0, 4]


def test_a_counter_that_falls_without_a_restart_has_gained_nobody_knows_what():
    assert errors(("a", 10), ("a", 3), ("a", 5)) == [None, None, 2]


def test_figures_of_an_older_moment_are_no_value_of_now():
    metrics = trends.metrics_of(["by_carrier.Acme.overdue"])
    reading, lacking = trends.take(document(stale={"reason": "locked"}), metrics, NOON)
    assert reading.values == {"latency": .004, "errors": 0} and lacking == []


def test_a_clock_that_is_set_back_or_forth_loses_no_step():
    history = grown(3600, 300)
    before = list(history.steps)
    for begin in (0, NOON + 10 ** 8, NOON + 3900):      # a host without a battery; a wrong year; right again
        history = grown(1500, 300, rate=0, history=history, begin=begin)
    assert history.steps[:len(before)] == before and len(history.times) == 13 + 3 * 6


def test_a_clock_that_is_set_back_an_hour_goes_on_at_once():
    history = grown(3600, 60)
    history = grown(3600, 60, history=history, begin=NOON)
    assert len(history.times) == 26 and len(set(history.times)) == 13


def test_hours_of_a_service_whose_clock_was_ahead_are_seen_again():
    history = trends.History(URL)
    history.add_hours(trends.take(document(NOON + 86400, [(0, 0)] * 30), (), NOON)[0])
    history.add_hours(trends.take(document(NOON, [(5, 5)] * 30), (), NOON)[0])
    assert max(history.hours) == NOON - 3600
    history.add_hours(trends.take(document(NOON + 7200, [(5, 5)] * 30), (), NOON)[0])
    assert history.hours[NOON] == history.hours[NOON + 3600] == (5, 5, 5, 0)


def test_an_hour_stays_as_it_was_when_it_was_over_whatever_is_entered_later():
    history = trends.History(URL)
    for hours in ([(4, 0), (3, 1)], [(4, 9), (3, 9), (1, 1)]):
        history.add_hours(trends.take(document(NOON + 3600 * len(hours), hours), (), NOON)[0])
    assert [hour.delivered for hour in history.hours.values()] == [0, 9]


def test_four_weeks_are_kept_and_no_more():
    history = grown(60 * 300, 300)
    history.times = list(range(NOON - 9000 * 300, NOON, 300))
    history.columns = {name: list(range(9000)) for name in history.columns}
    history.steps = history.steps[:1] + [[trends.instant(when)] + ["1"] * len(history.columns) for when in history.times]
    text = history.write()
    assert text.count("\n") == 3 + 1 + 8064 + 1 and len(text) < 350000
    assert text.splitlines()[-2].startswith(trends.instant(NOON - 300))


def test_with_many_watched_numbers_the_oldest_steps_go_earlier():
    watches = ["by_carrier.%s.overdue" % ("carrier %d" % number) for number in range(health_check.WATCHED)]
    history = trends.History(URL)
    history.times = list(range(NOON - 8064 * 300, NOON, 300))
    history.columns = {name: [.123456789] * 8064 for name in watches}
    history.steps = [["time"] + watches] + [[trends.instant(when)] + ["0.123457"] * len(watches) for when in history.times]
    history.begun = history.read = NOON
    text = history.write()
    assert trends.SIZE - 500 < len(text) <= trends.SIZE and text.splitlines()[-2].startswith(trends.instant(NOON - 300))
    again = trends.History(URL)
    again.parse(text + "\n")
    assert 2500 < len(again.times) < 8064


def test_what_is_watched_no_more_is_kept_for_four_weeks():
    history = grown(300, 300)
    history.columns["old"], history.columns["seen"] = [None] * 2, [None, 3]
    history.steps = [row + [old, seen] for row, old, seen in zip(history.steps, ["old", "", ""], ["seen", "", "3"])]
    assert history.write().split("\n\n")[1].startswith("time,latency,overdue,seen,requests.total\n".replace(
        "latency,overdue,seen,requests.total", ",".join(name for name in history.steps[0][1:] if name != "old")))


def test_a_history_that_was_written_is_read_as_it_was(tmp_path):
    history = grown(7200, 60, watches=["requests.total", "by_carrier.Acme.overdue"], hours=[(4, 2)] * 100)
    health_check.replace_file(str(tmp_path / "trends"), history.write())
    again = read(tmp_path / "trends")
    assert {**vars(again), "verdict": 0} == {**vars(history), "verdict": 0}
    assert again.write() == history.write()


# What can be asked for

def test_a_number_is_found_by_its_path():
    found = document(codes=[("200", 5), ("404", 2), ("500", 3), ("503", 4)])
    paths = {"requests.total": 14, "shipments.overdue": 7, "requests.by_code.5xx": 7, "requests.by_code.404": 2,
             "requests.by_code.429": 0, "by_carrier.Acme.overdue": 3, "by_carrier.None.overdue": 4, "stale": None}
    assert {path: trends.number_at(found, path) for path in paths} == paths


@pytest.mark.parametrize("path", ["nowhere", "requests.nowhere", "requests", "requests.total.more", "service.instance",
                                  "by_carrier.Nobody.overdue", "by_carrier.Acme", "history.5.created"])
def test_a_path_without_a_number_is_named(tmp_path, path):
    found = review(tmp_path / "trends", document(), watches=[path, "requests.total"])
    assert found.troubles == [("watch_missing", "no number at %s of /metrics" % path)]
    assert {trend.name: trend.state for trend in found.trends}[path] == "not_enough_data"


@pytest.mark.parametrize("path, counter", [
    ("requests.total", True), ("requests.by_code.404", True), ("requests.by_route./metrics.200", True),
    ("logging.errors_total", True),
    ("delivery.deliveries_total.late", True), ("database.failures.locked", True), ("database.query_seconds.count", True),
    ("shipments.total", False), ("requests.in_flight", False), ("requests.latency_seconds.last_5_minutes.count", False),
    ("delivery.transit_seconds.count", True), ("requests.latency_seconds.p95", False), ("database.size_bytes", False)])
def test_what_counts_since_the_start_is_judged_by_its_gain(path, counter):
    assert (trends.metrics_of([path])[-1].kind == "counter") == counter


MANY = {"hour": "2026-11-16T12", "created": "many", "delivered": 0, "on_time": 0, "late": 0}


@pytest.mark.parametrize("change", [{"history": None}, {"history": [{"hour": "x"}]}, {"history": [MANY]}, {"generated_at": 5},
                                    {"service": None}])
def test_another_document_is_told_and_changes_nothing(tmp_path, change):
    with pytest.raises(trends.Trouble, match="no history of hours"):
        review(tmp_path / "trends", document(**change))
    assert list(tmp_path.iterdir()) == []


# What happens to the file

def damaged(path, content):
    """The trouble that a review meets with that file, which is then beside the new one, as it was."""
    path.write_bytes(content)
    found = review(path, document())
    aside = path.parent / (path.name + ".damaged-20261116T120000Z")
    assert aside.read_bytes() == content and len(read(path).times) == 1
    (reason, told), = found.troubles
    assert reason == "history_damaged" and told.startswith("%s is damaged: " % path) and told.endswith(
        "; set aside as %s, beginning anew" % aside)
    return told


SOUND = None


def sound():
    global SOUND
    SOUND = SOUND or grown(3600, 300, hours=[(4, 2)] * 5).write()
    return SOUND + "\n"


@pytest.mark.parametrize("damage", [
    lambda text: text[:-2], lambda text: text[:len(text) // 2], lambda text: text[:40],
    lambda text: text.replace("trends 1", "trends 2"),
    lambda text: text.replace("2026-11-16T12:0", "2026-11-36T12:0"), lambda text: text.replace(",7,", ",nan,"),
    lambda text: text.replace(",7,", ",seven,", 1), lambda text: text.replace(",7,", ",1e999,", 1),
    lambda text: text.replace("\n\n", "\n"),
    lambda text: text.replace("hour,created", "hour,create,d"), lambda text: "[" * 100000 + "\nend\n",
    lambda text: "[]\n[]\n\n\nend\n",
    lambda text: text.replace('"counters": {', '"counters": {"a": "b", '), lambda text: "prometheus:secret\n",
    lambda text: "\ud800"])
def test_a_damaged_or_foreign_file_is_set_aside_with_a_warning(tmp_path, damage):
    assert damage(sound()) != sound()
    damaged(tmp_path / "trends", damage(sound()).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("content", [b"\0" * 5000, os.urandom(5000), b"\x7fELF" + b"\0" * 100, b"x" * (5 << 20)])
def test_a_file_of_bytes_is_set_aside_too(tmp_path, content):
    damaged(tmp_path / "trends", content)


def test_an_empty_file_is_a_beginning(tmp_path):
    (tmp_path / "trends").write_bytes(b"")
    assert review(tmp_path / "trends", document()).troubles == [] and len(read(tmp_path / "trends").times) == 1


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    for content in (b"one", b"two", b"three"):
        (tmp_path / "trends").write_bytes(content)
        review(tmp_path / "trends", document())
    assert sorted(path.read_bytes() for path in tmp_path.glob("trends.damaged-*")) == [b"one", b"three", b"two"]


def test_a_database_is_left_where_it_is(tmp_path, database):
    before = database.read_bytes()
    found = review(database, document())
    assert found.troubles == [("history_unusable", "%s is a database: give another file" % database)]
    assert database.read_bytes() == before and not list(tmp_path.glob("*damaged*")) and found.state == "learning"


def test_the_history_of_another_service_is_left_as_it_is(tmp_path):
    review(tmp_path / "trends", document())
    before = (tmp_path / "trends").read_bytes()
    found = review(tmp_path / "trends", document(NOON + 600), NOON + 600, url="http://127.0.0.1:9999")
    told = "%s has the history of %s: give each service its own file" % (tmp_path / "trends", URL)
    assert found.troubles == [("other_service", told)]
    assert (tmp_path / "trends").read_bytes() == before


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(str(path)),
                                  lambda path: path.symlink_to("/dev/full"), lambda path: path.symlink_to(path)])
def test_what_is_no_plain_file_is_named_and_left(tmp_path, make):
    make(tmp_path / "trends")
    (reason, told), = review(tmp_path / "trends", document()).troubles
    assert reason == "history_unusable" and told.startswith(str(tmp_path / "trends"))
    assert sorted(os.listdir(str(tmp_path))) == ["trends", "trends.lock"]


def fork(function, *arguments):
    """Runs a function in a process of its own, whose number is returned and whose exit code is 1 where it fails."""
    number = os.fork()
    if not number:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    return number


def child(function, *arguments):
    """What a function returns in a process of its own, by way of JSON."""
    ours, theirs = os.pipe()
    number = fork(lambda: os.write(theirs, json.dumps(function(*arguments)).encode()))
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read()
    assert os.waitpid(number, 0)[1] == 0
    return json.loads(told.decode())


def reviewed_by_nobody(path):
    os.setuid(NOBODY)
    return review(path, document(NOON + 600), NOON + 600).troubles


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_that_may_not_be_written_costs_the_history_alone(tmp_path):
    review(tmp_path / "trends", document())
    before = (tmp_path / "trends").read_bytes()
    (tmp_path / "trends.lock").unlink()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    told = []
    for spoil in (lambda: None, (tmp_path / "trends.lock").touch, lambda: (tmp_path / "trends").chmod(0)):
        spoil()
        told += child(reviewed_by_nobody, tmp_path / "trends")
    words = [".lock: Permission denied", " cannot be written: Permission denied", ": Permission denied"]
    assert told == [["history_unusable", str(tmp_path / "trends") + ending] for ending in words]
    (tmp_path / "trends").chmod(0o644)
    assert (tmp_path / "trends").read_bytes() == before


@contextlib.contextmanager
def disk_of(size):
    """Lets no file grow beyond a size, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_leaves_the_last_history_whole(tmp_path):
    review(tmp_path / "trends", document())
    before = (tmp_path / "trends").read_bytes()
    with disk_of(1000):
        found = review(tmp_path / "trends", document(NOON + 600), NOON + 600)
    assert found.troubles == [("history_unusable", "%s cannot be written: File too large" % (tmp_path / "trends"))]
    assert (tmp_path / "trends").read_bytes() == before and sorted(os.listdir(str(tmp_path))) == ["trends", "trends.lock"]
    assert review(tmp_path / "trends", document(NOON + 900), NOON + 900).troubles == []


def test_a_missing_folder_is_told(tmp_path):
    (reason, told), = review(tmp_path / "nowhere" / "trends", document()).troubles
    assert reason == "history_unusable" and told.endswith("trends.lock: No such file or directory")


KILLED = """
import sys
sys.path[:0] = [%r, %r]
import health_check, test_trends_history as t
print("ready", flush=True)
for number in range(100000):
    t.review(sys.argv[1], t.document(t.NOON + number * 300, hours=[(4, 2)] * 300), t.NOON + number * 300)
"""


def test_killed_at_any_moment_the_file_is_whole_and_what_is_left_is_swept_up(tmp_path):
    path, whole, left = tmp_path / "trends", 0, 0
    command = [sys.executable, "-c", KILLED % (str(ROOT), str(ROOT / "tests")), str(path)]
    for number in range(8):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        wait_for(path.exists, "a history")
        time.sleep(random.Random(number).random() * .1)     # a moment, not a condition
        process.kill()
        process.wait()
        process.stdout.close()
        history = read(path)
        whole += len(history.times) >= 1
        left += len(list(tmp_path.glob(".trends.*.tmp")))
        assert review(path, document(history.read + 300), history.read + 300).troubles == []
        assert sorted(os.listdir(str(tmp_path))) == ["trends", "trends.lock"]
    assert whole == 8


def test_a_check_that_is_killed_while_it_saves_leaves_the_history_of_before(tmp_path):
    review(tmp_path / "trends", document())
    before = (tmp_path / "trends").read_bytes()

    def die(path, text):
        with open(os.path.join(os.path.dirname(path), ".trends.abc.tmp"), "w") as file:
            file.write(text[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    number = fork(lambda: review(tmp_path / "trends", document(NOON + 600), NOON + 600, save=die))
    assert os.waitpid(number, 0)[1] == signal.SIGKILL
    assert (tmp_path / "trends").read_bytes() == before and (tmp_path / ".trends.abc.tmp").exists()
    assert review(tmp_path / "trends", document(NOON + 900), NOON + 900).troubles == []
    assert sorted(os.listdir(str(tmp_path))) == ["trends", "trends.lock"]


def test_the_second_of_two_checks_waits_for_the_first(tmp_path):
    review(tmp_path / "trends", document())
    with open(str(tmp_path / "trends.lock")) as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        timer = threading.Timer(.2, fcntl.flock, (first, fcntl.LOCK_UN))
        timer.start()
        assert review(tmp_path / "trends", document(NOON + 600), NOON + 600).troubles == []
        timer.join()
    assert len(read(tmp_path / "trends").times) == 2


def test_a_check_that_does_not_finish_is_named_and_the_second_judges_without_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(trends, "PATIENCE", .2)
    review(tmp_path / "trends", document())
    before = (tmp_path / "trends").read_bytes()
    with open(str(tmp_path / "trends.lock")) as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        found = review(tmp_path / "trends", document(NOON + 600), NOON + 600)
    assert found.troubles == [("history_busy", "another check holds %s.lock for 0.2 s" % (tmp_path / "trends"))]
    assert (tmp_path / "trends").read_bytes() == before and found.state == "learning"


def repeat(path, place):
    for number in range(place, 40, 4):
        assert not review(path, document(NOON + number * 300, hours=[(4, 2)] * 50), NOON + number * 300).troubles


def test_many_checks_at_once_lose_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trends, "PATIENCE", 60)     # whoever waits too long says so and saves nothing, which has its own test
    begun = [fork(repeat, tmp_path / "trends", place) for place in range(4)]
    assert [os.waitpid(number, 0)[1] for number in begun] == [0] * 4
    times = read(tmp_path / "trends").times
    assert set(times) == {NOON + number * 300 for number in range(40)} and not list(tmp_path.glob("*damaged*"))


# Time zones

@pytest.fixture
def zone():
    """zone(name) makes it the zone of this process, until the test ends."""
    before = os.environ.get("TZ")

    def change(name):
        os.environ.pop("TZ", None)
        if name is not None:
            os.environ["TZ"] = name
        time.tzset()
    yield change
    change(before)


@pytest.mark.parametrize("name, known", [
    ("", True), ("UTC", True), ("UTC0", True), ("CET-1CEST", True), ("CET-1CEST,M3.5.0,M10.5.0/3", True), ("<+0330>-3:30", True),
    (":CET-1CEST,M3.5.0,M10.5.0/3", True), ("EST5EDT4,J60,J300/1:30", True), ("Mars/Phobos", False), ("Europe/Berlim", False),
    ("/etc/passwd", False),
    ("CEST", False), ("../../../etc/passwd", False), ("/", False), ("UTC0;rm", False), ("\0", False)])
def test_a_zone_is_known_by_its_rule_or_by_the_host(name, known):
    assert trends.known_zone(name) == known


def test_a_zone_is_known_by_the_file_that_the_host_has(tmp_path, monkeypatch):
    (tmp_path / "Depot").mkdir()
    (tmp_path / "Depot" / "North").write_bytes(b"TZif2" + b"\0" * 39)
    monkeypatch.setenv("TZDIR", str(tmp_path))
    names = ("Depot/North", ":Depot/North", "Depot", "Depot/South")
    assert [trends.known_zone(name) for name in names] == [True, True, False, False]
    assert trends.known_zone(str(tmp_path / "Depot" / "North"))


def weeks_of_office_hours(local):
    """Hours of four weeks around the end of summer time: a depot that works from 8 to 18 by that clock."""
    rng, end = random.Random(7), calendar.timegm((2026, 11, 6, 0, 0, 0))
    history = trends.History(URL)
    for begin in range(end - 672 * 3600, end, 3600):
        clock = local(begin)
        count = rng.randrange(90, 110) if 8 <= clock.tm_hour < 18 and clock.tm_wday < 5 else 0
        history.hours[begin] = trends.Hour(count, count, count, 0)
    return history


@pytest.mark.parametrize("name, quiet", [("CET-1CEST,M3.5.0,M10.5.0/3", True), ("UTC0", False)])
def test_the_end_of_summer_time_raises_nothing_by_the_clock_of_the_depot(zone, name, quiet):
    zone("CET-1CEST,M3.5.0,M10.5.0/3")
    history = weeks_of_office_hours(time.localtime)
    zone(name)
    created = next(courses for metric, _, courses in trends.courses_of(history, trends.METRICS, .25) if metric.name == "created")
    changed = calendar.timegm((2026, 10, 25, 0, 0, 0))
    assert (not [judged for course in created for judged in course.raised if judged.time > changed]) == quiet
