"""Trends as the check tells them: by the real service, in every output, and what it says where it cannot judge."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import health_check
import trends
from conftest import ROOT, Service, make_database, turn_second
from test_check_outputs import lint, run
from test_health_check import answer, fake, healthy, metrics  # noqa: F401 (fake is a fixture)
from test_trends_history import NOON, disk_of, document, read, zone  # noqa: F401 (zone is a fixture)

HISTORY = "metrics?history=%d" % trends.HOURS
STOPPED = 5         # hours ago
NAMES = ["created", "delivered", "on_time_rate", "overdue", "latency", "errors"]


def shipments(now, until):
    """Four weeks of shipments, some ten an hour, delivered two hours later and nearly always in time; none after `until`."""
    rng = random.Random(3)
    for begin in range(now - now % 3600 - 26 * 86400, until, 3600):
        for number in range(rng.randrange(8, 15)):
            created, late = begin + number * 120, rng.random() < .05
            delivered = created + 7200
            yield {"reference": "%d-%d" % (begin, number), "status": "delivered", "created_at": trends.instant(created),
                   "delivered_at": trends.instant(delivered), "promised_at": trends.instant(delivered + (-60 if late else 3600))}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A service to which nothing was added for five hours."""
    folder, now = tmp_path_factory.mktemp("stopped"), int(time.time())
    database = make_database(folder / "shipments.db", shipments(now, now - now % 3600 - STOPPED * 3600))
    service = Service(folder, database, trends_file=folder / "trends").start()
    service.file = str(folder / "trends")
    yield service
    service.end()


@pytest.fixture
def judged(stopped):
    """The same, of which a check has judged the trends a moment ago."""
    if not os.path.exists(stopped.file):
        assert run("--url", stopped.url, "--trends-file", stopped.file)[0] == 0
    return stopped


def told(output):
    """The line about trends of the format text."""
    return next(line for line in output.splitlines() if line.split()[-1:] and " trends " in line and line.startswith("  "))


# A stop, told everywhere

EVIDENCE = r"created: none, [\d.]+ were expected, since \d{4}-\d\d-\d\dT\d\d:00:00Z, (about|less than) once in .+"


def test_a_new_host_knows_its_past_at_once_and_names_what_stopped(stopped, tmp_path):
    code, output, errors = run("--url", stopped.url, "--trends-file", str(tmp_path / "trends"))
    assert (code, errors) == (0, "") and output.startswith("metrics_service WARNING: trends trend: created: none, ")
    assert told(output).startswith("  warning  trends     trend: created: none, ")
    assert told(output).endswith("  docs/runbook.md#trend")
    assert "delivered: none, " in output and "learning: overdue" in output


def test_the_evidence_is_metric_band_since_when_and_how_rare(judged):
    report = json.loads(run("--url", judged.url, "--trends-file", judged.file, "--format", "json")[1])
    found = {trend["name"]: trend for trend in report["trends"]}
    assert sorted(found) == sorted(NAMES) and report["verdict"] == "warning" and report["exit"] == 0
    created = found["created"]
    since = int(time.time()) // 3600 * 3600 - STOPPED * 3600
    assert (created["state"], created["value"], created["low"], created["high"]) == ("degraded", 0, 1, None)
    assert created["since"] == trends.instant(since) and "once in " in created["rarity"]
    assert re.fullmatch(EVIDENCE, created["summary"])
    assert found["overdue"]["state"] == "learning" and found["on_time_rate"]["state"] == "quiet"


def test_the_rarest_finding_comes_first(judged):
    report = json.loads(run("--url", judged.url, "--trends-file", judged.file, "--format", "json")[1])
    assert [trend["name"] for trend in report["trends"]] == NAMES      # created stopped two hours before delivered
    assert report["trends"][0]["interval"] > report["trends"][1]["interval"] > 4 * trends.WEEK


def test_nagios_gets_a_warning_and_the_state_of_a_failure_where_that_is_asked_for(judged):
    arguments = ["--url", judged.url, "--trends-file", judged.file, "--format", "nagios"]
    assert [run(*arguments, trends=words)[0] for words in ("warn", "fail")] == [1, 2]
    code, output, _ = run(*arguments)
    assert output.startswith("metrics_service WARNING: trends trend: created: none, ") and "(docs/runbook.md#trend) | " in output


def test_a_trend_makes_the_check_unhealthy_only_when_asked(judged):
    arguments = ["--url", judged.url, "--trends-file", judged.file]
    assert [run(*arguments, "--trends", words)[0] for words in ("warn", "fail")] == [0, 1]
    assert run(*arguments, "--trends", "fail")[1].startswith("metrics_service FAILING: trends trend: created: none, ")
    assert run(*arguments, "--trends", "no")[0] == 1 and run("--url", judged.url) [0] == 0


def test_the_node_exporter_gets_state_and_score_of_each_metric(judged):
    code, output, _ = run("--url", judged.url, "--trends-file", judged.file, "--format", "textfile")
    of = 'logistics_check_trend_%%s{url="%s",metric="%%s"' % judged.url
    assert code == 0 and lint(output) == (0, "")
    lines, states = output.splitlines(), len(NAMES) * len(health_check.TREND_STATES)
    assert of % ("state", "created") + ',state="degraded"} 1' in lines
    assert of % ("state", "overdue") + ',state="learning"} 1' in lines
    assert len([line for line in lines if line.startswith("logistics_check_trend_state{")]) == states
    scores = dict(line.rsplit(" ", 1) for line in lines if line.startswith("logistics_check_trend_score{"))
    assert float(scores[of % ("score", "on_time_rate") + "}"]) < 3.6 and of % ("score", "errors") + "}" not in scores


def test_a_stop_is_over_once_there_are_shipments_again(judged, tmp_path):
    path = tmp_path / "trends"
    shutil.copy(judged.file, str(path))
    now = int(time.time())
    history = read(path, judged.url)
    before = trends.judge(history, trends.METRICS, .25, None)
    for hours in range(1, 4):
        reading = trends.take(document(now + hours * 3600, [(11, 11)] * hours + [(1, 1)]), trends.METRICS, now + hours * 3600)[0]
        history.add_hours(reading)
        found = {trend.name: trend for trend in trends.judge(history, trends.METRICS, .25, reading).trends}
        assert "none" not in found["created"].summary       # the silence ends with the first shipment
    assert before.trends[0].state == "degraded" and (found["created"].state, found["delivered"].state) == ("quiet", "quiet")


def alarm_times(scores, step):
    """What is told after each of these scores, as the time of the first and the score of the oddest."""
    judged = [trends.Judged(number * step, 1, score, 0, 0, 0, True, "judged") for number, score in enumerate(scores)]
    causes = [trends.course_of(judged[:end], 4, step).cause for end in range(1, len(judged) + 1)]
    return [cause and (cause.time // step, cause.score) for cause in causes]


def test_an_alarm_is_told_with_its_oddest_value_until_an_hour_of_calm():
    assert alarm_times([1, 5, 3, 7, 6, 1, 1], 3600) == [None, (1, 5), (1, 5), (1, 7), (1, 7), None, None]
    assert alarm_times([1, 5] + [1] * 12, 300) == [None] + [(1, 5)] * 12 + [None]


def test_a_relapse_is_told_again():
    assert alarm_times([1, 5, 1, 3, 4.5], 3600) == [None, (1, 5), None, None, (4, 4.5)]


# What the service tells of it

def test_the_service_tells_what_the_check_found(judged):
    turn_second()
    block = judged.get("/metrics")[1]["trends"]
    assert list(block) == ["state", "reason", "detail", "checked_at", "metrics", "age_seconds"]
    assert (block["state"], block["reason"], block["detail"]) == ("degraded", None, None) and 0 <= block["age_seconds"] < 60
    assert [metric["name"] for metric in block["metrics"]] == NAMES
    assert list(block["metrics"][0]) == ["name", "state", "value", "low", "high", "since", "rarity", "summary", "runbook"]
    assert (block["metrics"][0]["state"], block["metrics"][0]["runbook"]) == ("degraded", "docs/runbook.md#trend")


def published(path, now=NOON):
    return trends.Published(str(path)).block(now)


@pytest.fixture
def verdict(tmp_path):
    """A file in which a check has stored its verdict."""
    trends.review(str(tmp_path / "trends"), "http://a", document(NOON, [(4, 2)] * 9), (), .25, NOON, health_check.replace_file)
    return tmp_path / "trends"


def test_without_the_setting_there_is_no_block(launch, database):
    assert launch(database).get("/metrics")[1]["trends"] is None


def test_before_the_first_check_there_is_no_data(tmp_path):
    assert published(tmp_path / "trends") == {
        "state": "no_data", "reason": "missing", "detail": "%s: no check has written it" % (tmp_path / "trends"),
        "checked_at": None, "age_seconds": None, "metrics": []}


def test_an_old_verdict_is_none(verdict):
    assert published(verdict, NOON + 3600)["state"] == "learning" and published(verdict, NOON + 3600)["age_seconds"] == 3600
    block = published(verdict, NOON + 3601)
    assert (block["state"], block["reason"], block["checked_at"], block["age_seconds"], block["metrics"]) == (
        "no_data", "stale", "2026-11-16T12:00:00Z", 3601, [])
    assert published(verdict, NOON - 3601)["reason"] == "stale" and published(verdict, NOON - 60)["age_seconds"] == 0


def broken(line):
    """What is wrong, in the first line of a verdict, by name."""
    first = json.loads(line)
    metric = first["verdict"]["metrics"][0]

    def altered(**fields):
        return json.dumps(dict(first, verdict=dict(first["verdict"], **fields)))

    return {
        "cut": line[:50], "empty": "", "other": '{"format": "x"}', "list": "[1]", "deep": "[" * 60000,
        "long": line[:-1] + " " * 70000 + "}",
        "infinite": line.replace('"value": 4', '"value": 1e999'), "nan": line.replace('"value": 4', '"value": NaN'),
        "text": altered(metrics=[dict(metric, value="4")]), "less": altered(metrics=[{"name": "x"}]),
        "flat": altered(metrics=[5]), "when": altered(checked_at="yesterday"), "none": json.dumps(dict(first, verdict={})),
        "number": "9" * 60000, "bytes": "\udcff\udcfe"}


@pytest.mark.parametrize("how", ["cut", "empty", "other", "list", "deep", "long", "infinite", "nan", "text", "less", "when",
                                 "none", "flat", "number", "bytes"])
def test_a_damaged_verdict_is_unreadable_and_says_why(verdict, how):
    line, rest = verdict.read_text().split("\n", 1)
    assert broken(line)[how] != line
    verdict.write_bytes((broken(line)[how] + "\n" + rest).encode("utf-8", "surrogateescape"))
    block = published(verdict)
    assert (block["state"], block["reason"], block["metrics"]) == ("unreadable", "malformed", [])
    assert block["detail"].startswith("%s: " % verdict)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(str(path)),
                                  lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path),
                                  lambda path: path.write_bytes(os.urandom(9 << 20))])
def test_what_is_no_history_is_unreadable_and_costs_no_request(launch, database, tmp_path, make):
    make(tmp_path / "trends")
    service = launch(database, trends_file=tmp_path / "trends")
    status, found = service.get("/metrics")
    assert (status, found["trends"]["state"]) == (200, "unreadable") and found["trends"]["reason"] in ("malformed", "io_error")


def test_a_verdict_is_read_when_its_file_has_changed_and_only_then(verdict):
    source = trends.Published(str(verdict))
    assert source.block(NOON)["state"] == "learning"
    before, content = os.stat(str(verdict)), verdict.read_text()
    with open(str(verdict), "r+") as file:      # the same file, size and time
        file.write(content.replace('"state": "learning"', '"state": "degraded"', 1))
    os.utime(str(verdict), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.block(NOON)["state"] == "learning"
    health_check.replace_file(str(verdict), verdict.read_text()[:-1])
    assert source.block(NOON)["state"] == "degraded"


def test_a_file_that_the_service_may_not_read_is_named(verdict):
    from test_trends_history import NOBODY, child
    for folder in (verdict.parent, *verdict.parent.parents[:2]):
        folder.chmod(0o755)
    verdict.chmod(0o600)
    block = child(lambda: (os.setuid(NOBODY), published(verdict))[1])
    assert (block["state"], block["reason"]) == ("unreadable", "denied")


def test_the_file_of_trends_can_be_no_other_file_of_the_service(tmp_path, database):
    from test_settings import check
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_TRENDS_FILE=str(database))
    assert code == 78 and "METRICS_DB_PATH and METRICS_TRENDS_FILE are the same file" in errors[0]


# Learning, and no data

def checked(server, path, now=NOON, *arguments):
    """The Report of a check whose clock for trends stands at `now`."""
    settings = health_check.read_settings(["--url", server.url, "--trends-file", str(path), *arguments], {})
    return health_check.run_checks(settings, lambda: now)


def serving(found):
    """The answers of a service that tells that history."""
    return healthy(**{HISTORY: answer(dict(metrics(), **found))})


def result(report):
    return next(one for one in report.results if one.name == "trends")


def test_what_is_still_learning_is_neither_ok_nor_an_alarm(fake, tmp_path):
    report = checked(fake(serving(document(NOON, [(4, 2)] * 9))), tmp_path / "trends")
    assert result(report).status is health_check.LEARNING and report.verdict is health_check.LEARNING
    assert result(report).summary == ("learning: created, delivered, overdue, latency; not enough data: on_time_rate, errors")
    assert health_check.exit_code(report) == 0
    assert health_check.as_text(report).startswith("metrics_service LEARNING: trends learning: created, ")
    assert health_check.as_plugin(report).startswith("metrics_service OK: trends learning: created, ")
    assert '"verdict": "learning", "exit": 0' in health_check.as_json(report)
    assert 'logistics_check_verdict{url="%s",status="learning"} 1' % report.url in health_check.as_textfile(report)


def test_learning_sends_no_mail_and_pings_as_well(fake, tmp_path):
    switch, server = fake(answer(b"OK")), fake(serving(document(int(time.time()), [(4, 2)] * 9)))
    arguments = ["--url", server.url, "--trends-file", str(tmp_path / "trends"), "--ping", switch.url]
    assert run(*arguments, "--quiet") == (0, "", "")
    assert switch.requests[0].startswith("GET / ") and run(*arguments, "--format", "nagios")[0] == 0


def test_four_quiet_weeks_are_ok(fake, tmp_path):
    hours = [(random.Random(number).randrange(8, 15), random.Random(-number - 1).randrange(8, 15)) for number in range(672)]
    report = checked(fake(serving(document(NOON, hours))), tmp_path / "trends")
    assert result(report).summary.endswith("3 quiet") and "odd" not in result(report).summary
    history = read(tmp_path / "trends", report.url)
    assert [trend.state for trend in report.trends][:3] == ["quiet"] * 3 and len(history.hours) == 671


def test_a_depot_without_shipments_has_not_enough_data(fake, tmp_path):
    server = fake(serving(document(NOON, [(0, 0)] * 672, latency=None)))
    states = {trend.name: trend.state for trend in checked(server, tmp_path / "trends").trends}
    assert states == dict(dict.fromkeys(NAMES, "not_enough_data"), overdue="learning")


def history_of(path, url, values, name="overdue", end=NOON):
    """Writes a history of so many steps of a number, the last of them a step before the end."""
    begin = end - len(values) * 300
    history = trends.History(url)
    history.times = list(range(begin, end, 300))
    history.columns = {name: list(values)}
    history.steps = [["time", name]] + [[trends.instant(when), str(value)] for when, value in zip(history.times, values)]
    history.begun = history.read = history.times[-1]
    path.write_text(history.write() + "\n")


def overdue(fake, tmp_path, present, now=NOON):
    """The Trend of the overdue shipments, of which there were some fifty for two weeks and now are that many."""
    rng = random.Random(1)
    values = [50 + rng.randrange(-4, 5) for _ in range(4032)]
    server = fake(serving(document(now, overdue=present)))
    history_of(tmp_path / "trends", server.url, values)
    report = checked(server, tmp_path / "trends", now)
    return next(trend for trend in report.trends if trend.name == "overdue"), report


def test_a_number_that_jumps_is_degraded_with_its_band(fake, tmp_path):
    trend, report = overdue(fake, tmp_path, 200)
    assert (trend.state, trend.value, trend.since) == ("degraded", 200, trends.instant(NOON))
    assert 30 < trend.low < 50 < trend.high < 80
    assert trend.summary == "overdue 200, usually {0.low} to {0.high}, since 2026-11-16T12:00:00Z, {0.rarity}".format(trend)
    assert result(report)[1:3] == (health_check.WARNING, "trend")


def test_what_changes_for_the_better_raises_nothing(fake, tmp_path):
    assert overdue(fake, tmp_path, 0)[0].state == "quiet"


def test_a_metric_that_has_no_value_any_more_is_not_quiet(fake, tmp_path):
    path, server = tmp_path / "trends", fake(serving(document(NOON)))
    history_of(path, server.url, [5] * 1400, "latency", NOON - 12 * 300)
    metrics_, reading = trends.METRICS, trends.take(document(NOON, latency=None), trends.METRICS, NOON)[0]
    history = read(path, server.url)
    states = []
    for step in range(-12, 1):
        history.add(reading._replace(time=NOON + step * 300), metrics_)
        states.append(next(one.state for one in trends.judge(history, metrics_, .25, reading).trends if one.name == "latency"))
    assert states[:11] == ["quiet"] * 11 and states[-1] == "not_enough_data"


def test_more_tolerated_false_alarms_are_more_alarms_and_none_below_the_threshold():
    rng, history, counts = random.Random(5), trends.History(""), []
    history.hours = {NOON - number * 3600: trends.Hour(rng.randrange(30, 50), 5, 5, 0) for number in reversed(range(672))}
    for tolerated in (1000, 20, .25):
        raised = [judged for _, _, courses in trends.courses_of(history, trends.METRICS, tolerated)
                  for course in courses for judged in course.raised]
        counts.append(len(raised))
        assert all(judged.score >= trends.threshold(3600, tolerated / 8) for judged in raised)     # 8: two listen for silence
    assert counts[0] > counts[1] > counts[2] == 0


# What keeps it from judging

def test_the_check_alone_says_that_trends_are_not_installed_and_does_the_rest(fake, tmp_path):
    shutil.copy(str(ROOT / "health_check.py"), str(tmp_path))
    (tmp_path / "mine.csv").write_text("2026-11-16T12:00:00Z,5\n")
    url, command = fake(healthy()).url, [sys.executable, str(tmp_path / "health_check.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True, "cwd": str(tmp_path)}
    done = subprocess.run(command + ["--url", url, "--trends-file", "trends"], **pipes)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == ("  warning  trends     not_installed: trends: not installed; copy trends.py beside "
                                            "health_check.py  docs/runbook.md#not_installed")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:6]] == ["ok"] * 5
    assert "trends" not in subprocess.run(command + ["--url", url], **pipes).stdout
    for arguments in (["score"], ["--backtest", "--trends-file", "trends"]):
        done = subprocess.run(command + arguments, stdin=subprocess.DEVNULL, **pipes)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "health_check: trends: not installed; copy trends.py beside health_check.py\n"
    assert sorted(os.listdir(str(tmp_path))) == ["health_check.py", "mine.csv"]


@pytest.mark.parametrize("content", ["HOURS = 672\n", "this is no Python\n", "import no_such_module\n"])
def test_a_trends_py_that_does_not_work_costs_no_other_check_its_line(fake, tmp_path, content):
    shutil.copy(str(ROOT / "health_check.py"), str(tmp_path))
    (tmp_path / "trends.py").write_text(content)
    command = [sys.executable, str(tmp_path / "health_check.py"), "--trends-file", str(tmp_path / "history"), "--url"]
    done = subprocess.run(command + [fake(serving(document())).url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:6]] == ["ok"] * 5
    assert done.stdout.splitlines()[6].startswith("  could not tell  trends     trends.py: ")


def test_nobody_who_did_not_ask_is_told_of_trends(fake):
    server = fake(healthy())
    assert "trends" not in run("--url", server.url)[1]
    assert not any("history" in request for request in server.requests)


def test_without_figures_trends_cannot_tell_and_the_history_waits(fake, tmp_path):
    server = fake(healthy(metrics=answer({"detail": "locked"}, 503)))
    report = checked(server, tmp_path / "trends")
    assert result(report)[1:4] == (health_check.UNKNOWN, None, "no figures from /metrics") and not os.listdir(str(tmp_path))


def test_a_history_that_is_gone_between_two_requests_is_a_failure_of_its_own(fake, tmp_path):
    report = checked(fake(healthy(**{HISTORY: answer(metrics())})), tmp_path / "trends")
    assert result(report)[1:3] == (health_check.WARNING, "malformed")


def test_trouble_with_the_file_is_a_warning_and_the_verdict_is_told_all_the_same(judged, tmp_path):
    with disk_of(2000):
        report = checked(judged, tmp_path / "trends", time.time())
    assert result(report).reason == "trend" and "cannot be written: File too large" in result(report).summary
    assert report.trends[0].state == "degraded"


def test_a_watched_number_that_is_not_there_is_named(fake, tmp_path):
    report = checked(fake(serving(document(NOON))), tmp_path / "trends", NOON, "--watch", "requests.total", "--watch", "no.where")
    assert result(report)[1:3] == (health_check.WARNING, "watch_missing")
    assert result(report).summary.startswith("no number at no.where of /metrics; learning: ")
    assert [trend.name for trend in report.trends] == NAMES + ["requests.total", "no.where"]


@pytest.mark.parametrize("arguments, told", [
    (["--watch", "requests.total"], "--watch requests.total: it takes --trends-file"),
    (["--trends-file", "a", "--watch", "a..b"], "--watch a..b: give 16 dotted paths of /metrics at most, such as requests.total"),
    (["--trends-file", "a", "--watch", ",".join("a%d" % number for number in range(17))], "give 16 dotted paths"),
    (["--trends-file", "a", "--trends-tolerated", "0"], "--trends-tolerated 0: give false alarms a week above 0"),
    (["--trends-file", "a", "--trends-tolerated", "nan"], "--trends-tolerated nan: give false alarms a week above 0"),
    (["--trends-file", "a", "--trends", "maybe"], "--trends maybe: give warn or fail"),
    (["--trends-file", "./a.log", "--log-file", "a.log"], "--trends-file ./a.log: that is the file of --log-file too"),
    (["--trends-file", "a.prom", "--textfile", "a.prom"], "--trends-file a.prom: that is the file of --textfile too")])
def test_wrong_arguments_are_refused_by_name(arguments, told):
    code, output, errors = run(*arguments)
    assert (code, output) == (1, "") and told in errors


def test_a_zone_that_the_host_does_not_know_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Mars/Phobos")
    told = "TZ Mars/Phobos: this host does not know the time zone, and would take UTC for it"
    for arguments in (["--trends-file", str(tmp_path / "trends")], ["score"], ["--backtest"]):
        code, output, errors = run(*arguments)
        assert (code, output) == (1, "") and errors == "health_check.py: %s\nSee --help.\n" % told
    assert run("--format", "nagios", "--trends-file", "a") == (3, "metrics_service UNKNOWN: %s\n" % told, "")
    assert "TZ" not in run("--url", "http://127.0.0.1:1")[1]       # nobody asked for what takes a zone


def test_the_numbers_to_watch_may_stand_in_the_variable(fake, tmp_path):
    server, watch = fake(serving(document(int(time.time())))), "requests.total,by_carrier.Acme.overdue"
    done = run("--url", server.url, "--format", "json", trends_file=str(tmp_path / "trends"), watch=watch)
    assert [one["name"] for one in json.loads(done[1])["trends"]] == NAMES + ["requests.total", "by_carrier.Acme.overdue"]


# What would have been

def test_a_backtest_tells_each_alarm_and_how_many_a_week_there_would_have_been(judged, tmp_path):
    code, output, errors = run("--url", judged.url, "--backtest", "--trends-file", str(tmp_path / "none"))
    lines = output.splitlines()
    assert (code, errors) == (0, "") and lines[0].startswith("created ")
    assert [line for line in lines if line.startswith("created: none, ")]
    assert [line.split(":")[0] for line in lines[-6:]] == NAMES
    assert lines[-6].startswith("created: ") and " alarms in 3.7 weeks, " in lines[-6]
    assert lines[-3] == "overdue: 0 alarms in 0.0 weeks"
    assert not (tmp_path / "none").exists()


def test_a_backtest_needs_no_service_and_changes_nothing(judged):
    before = os.stat(judged.file).st_ino
    code, output, errors = run("--url", judged.url.rpartition(":")[0] + ":1", "--backtest", "--trends-file", judged.file)
    assert code == 1 and "has the history of %s" % judged.url in errors
    judged.process.send_signal(signal.SIGSTOP)
    try:
        code, output, errors = run("--url", judged.url, "--timeout", "0.3", "--backtest", "--trends-file", judged.file)
    finally:
        judged.process.send_signal(signal.SIGCONT)
    assert code == 0 and errors.startswith("health_check: without the hours of the service: silent: GET /metrics?history=672")
    assert output.startswith("created ") and len(output.splitlines()) >= 8 and os.stat(judged.file).st_ino == before


def test_a_backtest_replays_the_numbers_that_were_watched(tmp_path):
    rng = random.Random(2)
    values = [50 + rng.randrange(-4, 5) for _ in range(2000)]
    values[1900:1912] = [200] * 12
    history_of(tmp_path / "trends", "http://127.0.0.1:1", values, "by_carrier.Acme.overdue")
    code, output, _ = run("--url", "http://127.0.0.1:1", "--backtest", "--trends-file", str(tmp_path / "trends"))
    assert code == 0 and output.splitlines()[0].startswith("by_carrier.Acme.overdue 200, usually ")
    assert "since %s" % trends.instant(NOON - 100 * 300) in output
    assert output.splitlines()[-1] == "by_carrier.Acme.overdue: 1 alarm in 1.0 weeks, 1.01 a week"


def test_with_nothing_to_look_back_on_a_backtest_says_so(tmp_path):
    code, output, errors = run("--url", "http://127.0.0.1:1", "--backtest", "--trends-file", str(tmp_path / "none"))
    assert (code, output) == (1, "") and errors.endswith("health_check: there is no history to look back on\n")


# docs/trends.md

PAGE = (ROOT / "docs" / "trends.md").read_text(encoding="utf-8").replace("\n", " ")


def test_the_page_names_every_metric_and_state():
    rows = {name for name in re.findall(r"\| `([\w-]+)(?: PATH)?` \| ", PAGE)}
    assert rows == {metric.name for metric in trends.METRICS} | {"--watch"} | set(health_check.TREND_STATES)
    for metric in trends.METRICS:
        assert metric.path is None or metric.path in PAGE or metric.name == "errors"


def test_the_numbers_of_the_page_are_those_of_the_code():
    assert "fewer than %d values so far, or this hour not yet on %d earlier days" % (trends.SAMPLES, trends.DAYS) in PAGE
    assert "none for %d steps" % trends.SPARSE in PAGE and "steps are %d minutes long" % (trends.STEP / 60) in PAGE
    assert "of the last %s or %d hours: as many as usually have %d" % (
        ", ".join(map(str, trends.POOLS[:-1])), trends.POOLS[-1], trends.ENOUGH) in PAGE
    assert "of %d KB at most" % (trends.SIZE / 1000) in PAGE and "waits %d s for the lock" % trends.PATIENCE in PAGE
    assert "With steps of 5 minutes, %.1f is one false alarm in four weeks" % trends.threshold(trends.STEP, .25) in PAGE
    assert trends.STEPS * trends.STEP == trends.HOURS * 3600 == 4 * trends.WEEK
    default = next(option.default for option in health_check.OPTIONS if option.name == "trends_tolerated")
    assert float(default) == 1 / trends.WEEKS and "`--trends-tolerated %s`" % default in PAGE


def test_every_link_of_a_finding_has_its_entry():
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    for word in re.findall(r"\(runbook\.md#(\w+)\)", PAGE):
        assert "\n### %s\n" % word in runbook, word
