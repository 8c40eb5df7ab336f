"""What the check tells each tool: Nagios by its guidelines, the node exporter by a file, a dead-man switch by a ping."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import urllib.request

import pytest

import health_check
from conftest import ROOT, wait_for
from test_health_check import answer, fake, healthy, hold, metrics, moment, problem, readyz  # noqa: F401 (fake is a fixture)

CHECK = [sys.executable, str(ROOT / "health_check.py")]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
PLUGINS = "/usr/lib/nagios/plugins/"
DEAD = "http://127.0.0.1:1"     # where nobody listens
STATES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}
NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
MASKS = ((r"(?<=latency=)[\d.]+s", "Ts"), (r"(?<=latency )[\d.]+ s", "T s"), (r"(?<=seconds)(\{[^}]*\}) [\d.]+", r"\1 T"),
         (r"uptime=[\d.]+s", "uptime=Ts"), (r"127\.0\.0\.1:\d+", "HOST:PORT"), (r" port \d+", " port PORT"))


def masked(text):
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text


def run(*arguments, **variables):
    """(exit code, stdout, stderr) of the check as a process; variables are its own, without their beginning."""
    env = dict(os.environ, **{"METRICS_CHECK_" + name.upper(): value for name, value in variables.items()})
    done = subprocess.run(CHECK + list(arguments), env=env, universal_newlines=True, **PIPES)
    return done.returncode, done.stdout, done.stderr


def nagios(url, *arguments):
    """(exit code, stdout) in the format for Nagios, where stderr is lost."""
    code, output, errors = run("--format", "nagios", "--url", url, *arguments)
    assert errors == ""
    return code, output


def stale():
    return healthy(metrics=answer(metrics(stale={"reason": "locked", "age_seconds": 4.2})))


# Nagios: states

HEALTHY = ("metrics_service OK: metrics 3 shipments, 2 open, 1 overdue; latency T s, limit 1 s | latency=Ts;;1;0;10 "
           "p95=0.004s;;;0 query_p95=0.001s;;;0 "
           "shipments_total=3;;;0 shipments_open=2;;;0 shipments_overdue=1;;;0 newest_change_age=5s requests=1c;;;0 "
           "log_errors=0c;;;0 uptime=Ts;;;0\n")


def test_good_health_is_one_line_with_performance_data(fake):
    code, output = nagios(fake(healthy()).url)
    assert (code, masked(output)) == (0, HEALTHY)


def test_a_warning_is_1(fake):
    code, output = nagios(fake(stale()).url)
    told = "metrics_service WARNING: metrics stale: figures are 4.2 s old: locked (docs/runbook.md#stale) | "
    assert code == 1 and output.startswith(told) and output.count("\n") == 1


def test_a_failure_is_2():
    assert nagios(DEAD) == (2, "metrics_service CRITICAL: reachable refused: GET /livez at 127.0.0.1 port 1: "
                               "nothing listens there (docs/runbook.md#refused)\n")


def test_a_failure_without_figures_has_the_performance_data_that_there_is(fake):
    trouble = {"status": "fail", "reason": "locked", "output": "a writer holds it"}
    server = fake(healthy(metrics=problem("locked", "a writer holds it"), readyz=readyz("fail", database__shipments=trouble)))
    code, output = nagios(server.url)
    assert (code, masked(output)) == (2, "metrics_service CRITICAL: database locked: a writer holds it (docs/runbook.md#locked) "
                                         "| latency=Ts;;1;0;10\n")


@pytest.mark.parametrize("answers, stage", [
    (hold, "reachable silent: GET /livez at 127.0.0.1 port PORT: it accepts the connection and does not answer: is the process "
           "stopped?; gave up after "),
    (healthy(readyz=hold), "database silent: GET /readyz at 127.0.0.1 port PORT: it accepts the connection and does not answer"),
    (healthy(metrics=lambda connection: (connection.sendall(b"HTTP/1.1 200 OK\r\n"), hold(connection))),
     "metrics too_slow: GET /metrics at 127.0.0.1 port PORT: the headers are still coming; gave up after ")])
def test_the_end_of_the_time_is_unknown_and_names_the_stage(fake, answers, stage):
    code, output = nagios(fake(answers).url, "-t", "0.5", "-c", "0.2")
    assert code == 3
    assert masked(output).startswith("metrics_service UNKNOWN: " + stage)


@pytest.mark.parametrize("state", ["warning", "critical", "unknown"])
def test_the_state_of_what_is_not_done_in_time_can_be_chosen(fake, state):
    expected = max(STATES[state.upper()], STATES["UNKNOWN"] if state == "warning" else 0)   # the checks behind it cannot tell
    assert nagios(fake(hold).url, "-t0.3:" + state)[0] == expected


def test_what_could_not_be_told_is_3(fake, tmp_path):
    path = str(tmp_path / "service.log")
    server = fake(healthy(metrics=answer(metrics(logging__target="file", logging__path=path))))
    code, output = nagios(server.url, "--log-file", path)
    assert code == 3 and output.startswith("metrics_service UNKNOWN: log missing: %s: No such file" % path)


def test_the_states_are_those_of_the_plugins_own_library():
    words = "STATE_OK STATE_WARNING STATE_CRITICAL STATE_UNKNOWN"
    values = subprocess.check_output(["sh", "-c", ". %sutils.sh; echo %s" % (PLUGINS, words.replace("STATE", "$STATE"))])
    ours = {word: code for code, word in health_check.PLUGIN_STATES.values()}
    assert [ours[word[6:]] for word in words.split()] == [int(value) for value in values.split()]


@pytest.mark.parametrize("url, code, word", [(DEAD, 0, "OK"), (None, 2, "CRITICAL")])
def test_negate_of_the_plugins_turns_good_and_bad_and_finds_the_word_to_replace(fake, url, code, word):
    command = [PLUGINS + "negate", "-s"] + CHECK + ["--format", "nagios", "--url", url or fake(healthy()).url]
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == code and done.stdout.startswith("metrics_service %s: " % word)


# Nagios: arguments

@pytest.mark.parametrize("arguments, told", [
    (["--bogus"], "unrecognized arguments: --bogus"),
    (["-t", "soon"], "--timeout soon: could not convert string to float: 'soon'"),
    (["-t"], "argument -t/--timeout: expected one argument"),
    (["-t10:fine"], "--timeout 10:fine: give warning or critical or unknown"),
    (["-w", "2:1"], "--warning 2:1: the start of the range is above its end"), (["-p", "0"], "--port 0: give 1 to 65535"),
    (["-H", "a/b"], "--hostname a/b: give a name or an address alone"),
    (["--ver"], "unrecognized arguments: --ver"),
    (["--ping", "ftp://x"], "--ping ftp://x: give http://HOST:PORT or https://HOST:PORT")])
def test_wrong_arguments_are_unknown_in_one_line(arguments, told):
    assert run("--format", "nagios", *arguments) == (3, "metrics_service UNKNOWN: %s\n" % told, "")
    assert run(*arguments, "--format=nagios") == (3, "metrics_service UNKNOWN: %s\n" % told, "")
    assert run(*arguments, format="nagios")[0] == 3
    assert run(*arguments, "--format", "text", format="nagios")[0] == 1


def test_a_format_that_there_is_not_is_no_matter_of_nagios():
    assert run("--format", "nagois")[0] == 1


@pytest.mark.parametrize("format, code", [("nagios", 3), ("text", 0), ("json", 0), ("textfile", 0)])
def test_help_and_version_are_unknown_to_nagios_alone_whatever_else_is_given(format, code):
    for letter, name, words in (("-V", "--version", "health_check 0.1.0\n"), ("-h", "--help", "usage: health_check.py ")):
        for option in (letter, name):
            done = run("--format", format, "-t", "soon", option)
            assert done[0] == code and done[1].startswith(words) and done[2] == ""


def test_host_and_port_take_the_place_of_those_in_the_url(fake):
    server = fake(healthy())
    assert run("-H", "127.0.0.1", "-p", str(server.port), "--quiet") == (0, "", "")
    assert run("-p%d" % server.port, "--quiet") == (0, "", "")
    assert run("--hostname", "127.0.0.1", "--quiet", url="http://nowhere.invalid:%d" % server.port) == (0, "", "")
    assert run("--quiet", hostname="127.0.0.1", port=str(server.port)) == (0, "", "")


def test_a_url_that_is_given_is_asked_whatever_the_variables_say(fake):
    server = fake(healthy())
    assert run("--url", server.url, "--quiet", hostname="nowhere.invalid", port="1", url="http://127.0.0.1:1") == (0, "", "")
    assert run("--url", server.url, "-p", "1", "--quiet", port=str(server.port))[0] == 1


@pytest.mark.parametrize("given, expected", [
    (["-H", "::1"], "http://[::1]:8321"), (["-H", "[::1]", "-p", "80"], "http://[::1]:80"),
    (["-H", "a.example"], "http://a.example:8321"), (["--url", "https://a.example/at/", "-p", "9"], "https://a.example:9/at"),
    (["--url", "https://[::1]", "-p", "9"], "https://[::1]:9"), (["--url", "https://a.example", "-H", "b"], "https://b")])
def test_an_address_is_put_together_as_a_url(given, expected):
    assert health_check.read_settings(given, {}).url.geturl() == expected


def test_letters_may_stand_together_and_with_their_value(fake):
    code, output = nagios(fake(healthy()).url, "-vvt5", "-w0.00001")
    assert code == 1 and len(output.splitlines()) == 6 and ";0.00001;1;0;5 " in output


@pytest.mark.parametrize("option, lines", [(None, 1), ("-v", 1), ("-vv", 6), ("-vvv", 10), ("-vvvvv", 10)])
def test_each_level_of_verbosity_tells_more(fake, option, lines):
    trouble = {"logging__last_error_at": moment(-60), "stale": {"reason": "locked", "age_seconds": 4}}
    server = fake(healthy(metrics=answer(metrics(**trouble))))
    code, output = nagios(server.url, *([option] if option else []))
    first = output.splitlines()[0].partition(" | ")[0]
    assert (code, len(output.splitlines())) == (2, lines)
    assert first.startswith("metrics_service CRITICAL: log log_errors: errors since the start: 0, the last at ")
    assert first.endswith("; metrics stale: figures are 4 s old: locked; " + server.url) == bool(option)


def test_the_levels_say_what_was_asked_and_how_long_it_took(fake):
    server = fake(healthy())
    lines = masked(re.sub(r"[\d.]+ s\b", "T s", nagios(server.url, "-vvv")[1])).splitlines()
    python = sys.version.split()[0]
    assert lines[2] == "  ok  metrics    3 shipments, 2 open, 1 overdue"
    assert lines[6:] == [
        "  GET /livez at 127.0.0.1 port PORT: 200, 78 bytes, after T s",
        "  GET /metrics at 127.0.0.1 port PORT: 200, %d bytes, after T s" % len(healthy()["metrics"].partition(b"\r\n\r\n")[2]),
        "  GET /readyz at 127.0.0.1 port PORT: 200, %d bytes, after T s" % len(readyz().partition(b"\r\n\r\n")[2]),
        "  health_check 0.1.0, Python %s, instance 17cd4c16867b41eea00119330148b8fd, T s in all" % python]


def test_nagios_is_told_something_even_when_quiet(fake):
    server = fake(healthy())
    assert masked(run("--format", "nagios", "--quiet", "--url", server.url)[1]) == HEALTHY


def test_a_fault_of_the_check_is_unknown(monkeypatch, capsys):
    monkeypatch.setattr(health_check, "run_checks", lambda settings: {}["a|b\n"])
    assert health_check.main(["--format", "nagios"]) == 3
    assert tuple(capsys.readouterr()) == ("metrics_service UNKNOWN: the check itself failed: KeyError('a/b\\\\n')\n".replace(
        "\\\\", "\\"), "")


@pytest.mark.parametrize("format, code", [("nagios", 3), ("text", 1), ("json", 1)])
def test_a_verdict_that_nobody_can_be_told_is_not_good(fake, format, code):
    with open("/dev/full", "w") as full:
        done = subprocess.run(CHECK + ["--url", fake(healthy()).url, "--format", format], stdout=full, stderr=subprocess.DEVNULL)
    assert done.returncode == code


def test_the_exit_code_stands_where_no_stdout_takes_the_line(fake):
    for words, code in (("--bogus", 3), ("--url " + DEAD, 2), ("--url " + fake(healthy()).url, 0)):
        command = "%s --format nagios %s" % (" ".join(CHECK), words)
        done = subprocess.run(command + " >&-", shell=True, universal_newlines=True, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (code, "")
    with open("/dev/full", "w") as full:
        assert subprocess.run(CHECK + ["--format", "nagios", "--bogus"], stdout=full).returncode == 3


# Nagios: thresholds

@pytest.mark.parametrize("text, good, bad", [    # the examples of the guidelines, and the ends, which belong to the range
    ("10", [0, 5, 10], [-0.1, 10.1]), ("10:", [10, 1e9], [9.9, -1]), ("~:10", [-1e9, 10], [10.1]),
    ("10:20", [10, 20], [9.9, 20.1]),
    ("@10:20", [9.9, 20.1], [10, 15, 20]), (":5", [0, 5], [-1, 6]), ("@~:0", [0.1], [0, -1]), ("0.5", [0.5], [0.51]),
    ("-5:-1", [-3], [0, -6]), ("@0", [0.1, -1], [0]), ("~:", [-1e9, 1e9], [])])
def test_a_range_alerts_as_the_guidelines_have_it(text, good, bad):
    found = health_check.value_range(text)
    assert [health_check.alerts(found, value) for value in good + bad] == [False] * len(good) + [True] * len(bad)


@pytest.mark.parametrize("text", ["", ":", "@", "@:", "~", "@~", "5:1", "1e3", "1,5", "1:2:3", "1;2", "nan", "inf", " 1", "1 ",
                                  "+1", "1."])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError):
        health_check.value_range(text)


@pytest.mark.parametrize("arguments, code, words", [
    (["-w", "@0:9"], 1, ", limit @0:9 s"), (["-c", "@0:9"], 2, ", limit @0:9 s"), (["-w", "@0:9", "-c", "@0:9"], 2, ", limit"),
    (["-w", "5:", "-c", "9"], 1, "range 5: s"), (["-w", "~:5", "-c", "~:9"], 0, "limit ~:9 s")])
def test_thresholds_judge_the_slowest_request(fake, arguments, code, words):
    found, output = nagios(fake(healthy()).url, *arguments)
    assert found == code
    assert ("too_slow" in output) == bool(code) and words in output


def test_thresholds_hold_in_every_format(fake):
    server = fake(healthy())
    assert run("--url", server.url, "-c", "@0:9", "--quiet")[0] == 1
    code, output, _ = run("--url", server.url, "--quiet", warning="@0:9")
    assert code == 0 and output.startswith("metrics_service WARNING: latency too_slow: ")


# Nagios: performance data, by a strict reader of its own

ITEM = re.compile(r"(?P<label>'[^'=|]+'|[^'=| ]+)=(?P<value>%s)(?P<unit>s|%%|B|c|)"
                  r"(?:;(?P<warn>[^; ]*)(?:;(?P<crit>[^; ]*)(?:;(?P<min>[^; ]*)(?:;(?P<max>[^; ]*))?)?)?)?(?= |$)" % NUMBER)
SPAN = re.compile(r"@?(?:(?:~|%s)?:)?(?:%s)?" % (NUMBER, NUMBER))


def read_performance(line):
    """{label: {part: text}} of the first line of a plugin; whatever the guidelines do not allow is an AssertionError."""
    assert line.count("|") == 1
    text, items = line.partition("|")[2].strip(" "), {}
    while text:
        match = ITEM.match(text)
        assert match, text
        item = match.groupdict()
        label = item["label"].strip("'")
        assert label.strip() and label not in items and len(label) <= 19    # what RRD tells apart
        assert all(SPAN.fullmatch(item[part] or "0") for part in ("warn", "crit"))
        assert all(re.fullmatch(NUMBER, item[part] or "0") for part in ("min", "max"))
        assert item["unit"] not in ("B", "c") or re.fullmatch(r"\d+", item["value"])
        assert item["unit"] != "%" or 0 <= float(item["value"]) <= 100
        items[label] = item
        text = text[match.end():]
        assert not text or re.match(" (?! |$)", text)
        text = text[1:]
    return items


def test_the_reader_is_strict():
    for line in ("a", "a |b", "a|b=1e5", "a|b=1,5", "a|b c=1", "a|b=1 ;2", "a|b=1ms", "a|b=U", "a|b=1;x", "a|b=1B;;;0;0;0",
                 "a|b=1|c=2", "a|b=1  c=2", "a|b=1 b=2", "a|'b'c=1", "a|b=101%", "a|b=1.5c"):
        with pytest.raises(AssertionError):
            read_performance(line)


def test_a_label_is_quoted_where_it_has_to_be():
    item = health_check.Measure("the latency", 0.25, "s", health_check.value_range("@1:2"), health_check.upto(5.0), 0, 1e22)
    text = health_check.performance(item)
    assert text == "'the latency'=0.25s;@1:2;5;0;10000000000000000000000"
    assert list(read_performance("x|%s a=1" % text)) == ["the latency", "a"]


EXTREMES = (
    {}, {"database__newest_change_age_seconds": -3600.25}, {"database__newest_change_age_seconds": None},
    {"database__newest_change_age_seconds": 1e-7, "service__uptime_seconds": 1e15, "database__size_bytes": 10 ** 19},
    {"service__uptime_seconds": 1e-9, "requests__total": 10 ** 18}, {"delivery__on_time_rate": 0.29},
    {"delivery__on_time_rate": 1}, {"delivery__on_time_rate": 0.0},
    {"delivery__on_time_rate": 1 / 3}, {"database__size_bytes": "big"},
)


@pytest.mark.parametrize("changes", EXTREMES)
@pytest.mark.parametrize("arguments", [(), ("-w", "@0.1:0.2", "-c", "~:5", "--max-age", "1e9", "-t", "1e3", "-vvv")])
def test_every_item_of_performance_data_is_what_the_guidelines_allow(fake, changes, arguments):
    document = metrics()
    document["database"]["size_bytes"] = 4096
    for name, value in changes.items():
        block, _, key = name.partition("__")
        document[block][key] = value
    output = nagios(fake(healthy(metrics=answer(document))).url, *arguments)[1]
    items = read_performance(output.splitlines()[0])
    assert not [line for line in output.splitlines()[1:] if "|" in line]
    assert items["latency"]["unit"] == "s" and items["requests"]["unit"] == items["log_errors"]["unit"] == "c"
    assert ("on_time" in items) == (document["delivery"]["on_time_rate"] is not None)
    assert ("newest_change_age" in items) == (document["database"]["newest_change_age_seconds"] is not None)
    assert ("database_size" in items) == (type(document["database"]["size_bytes"]) is int)
    if arguments:
        assert [items["latency"][part] for part in ("warn", "crit", "min", "max")] == ["@0.1:0.2", "~:5", "0", "1000"]


def test_what_others_write_cannot_end_the_text_or_add_lines_and_data(fake):
    trouble = "a | b=1 'c'=2\nmetrics_service OK | d=3"
    ready = readyz("fail", database__a={"status": "fail", "output": trouble})
    server = fake(healthy(metrics=problem("locked", trouble), readyz=ready))
    output = nagios(server.url, "-vvv")[1]
    assert list(read_performance(output.splitlines()[0])) == ["latency"]
    assert not [line for line in output.splitlines()[1:] if "|" in line or not line.startswith("  ")]


SLOW = metrics(requests={"total": 1, "latency_seconds": {
    "last_5_minutes": {"by_route": {"/metrics": {"count": 99, "p95": 0.75}}}}})
SLOW_LINE = "slow_answers: 0.750 s for /metrics, 99 in five minutes, limit 0.5 s"


def test_a_slow_percentile_is_told_in_every_format(fake):
    url = fake(healthy(metrics=answer(dict(SLOW, generated_at=moment())))).url
    code, output = nagios(url, "--max-p95", "0.5")
    assert code == 2 and output.startswith("metrics_service CRITICAL: p95 %s (docs/runbook.md#slow_answers) | " % SLOW_LINE)
    assert " p95=0.75s;;0.5;0 query_p95=0.001s;;;0 " in output
    assert "\n  failing  p95        %s  docs/runbook.md#slow_answers\n" % SLOW_LINE in run("--url", url, "--max-p95", "0.5")[1]
    told = json.loads(run("--url", url, "--format", "json", max_p95="0.5")[1])
    assert [one["reason"] for one in told["checks"] if one["name"] == "p95"] == ["slow_answers"] and told["exit"] == 1
    lines = run("--url", url, "--format", "textfile", "--max-p95", "0.5", "--max-query-p95", "1")[1].splitlines()
    of = 'url="%s",check=' % url
    assert 'logistics_check_status{%s"p95",status="failing"} 1' % of in lines
    assert 'logistics_check_status{%s"query_p95",status="ok"} 1' % of in lines
    assert 'logistics_check_p95_seconds{%s"p95"} 0.75' % of in lines


def test_too_few_requests_are_told_and_no_failure(fake):
    document = metrics(requests={"total": 1, "latency_seconds": {"last_5_minutes": {"by_route": {}}}})
    code, output = nagios(fake(healthy(metrics=answer(document))).url, "--max-p95", "0.5")
    assert code == 0 and "; p95 not enough data: 0 in five minutes, it takes 20 | " in output and " p95=" not in output


# The textfile

STATUSES = ("ok", "learning", "warning", "unknown", "failing")
TEXTFILE = "".join(
    ["# HELP logistics_check_status Whether a check came to this status at the last run.\n# TYPE logistics_check_status gauge\n"]
    + ['logistics_check_status{url="http://HOST:PORT",check="%s",status="%s"} %d\n' % (check, status, status == "ok")
       for check in ("reachable", "metrics", "database", "latency", "log") for status in STATUSES]
    + ["# HELP logistics_check_verdict Whether the worst status of the last run was this one.\n"
       "# TYPE logistics_check_verdict gauge\n"]
    + ['logistics_check_verdict{url="http://HOST:PORT",status="%s"} %d\n' % (status, status == "ok")
       for status in STATUSES]
    + ["# HELP logistics_check_duration_seconds Duration of the last run.\n# TYPE logistics_check_duration_seconds gauge\n"
       'logistics_check_duration_seconds{url="http://HOST:PORT"} T\n'
       "# HELP logistics_check_request_duration_seconds Duration of the last run's requests that were answered.\n"
       "# TYPE logistics_check_request_duration_seconds gauge\n"]
    + ['logistics_check_request_duration_seconds{url="http://HOST:PORT",path="/%s"} T\n' % path
       for path in ("livez", "metrics", "readyz")]
    + ["# HELP logistics_check_p95_seconds The 95th percentile of five minutes, as the check of that name judges it.\n"
       "# TYPE logistics_check_p95_seconds gauge\n"
       'logistics_check_p95_seconds{url="http://HOST:PORT",check="p95"} T\n'
       'logistics_check_p95_seconds{url="http://HOST:PORT",check="query_p95"} T\n'
       "# HELP logistics_check_last_run_timestamp_seconds When the last run ended.\n"
       "# TYPE logistics_check_last_run_timestamp_seconds gauge\n"
       'logistics_check_last_run_timestamp_seconds{url="http://HOST:PORT"} T\n'])


@pytest.fixture
def prom(tmp_path):
    """A path in a folder of its own, as the collector has one."""
    (tmp_path / "collector").mkdir()
    return tmp_path / "collector" / "metrics_check.prom"


def lint(text):
    """What promtool says of it."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode()


def test_the_textfile_has_every_status_of_every_check_and_no_timestamp(fake, prom):
    server = fake(healthy())
    assert run("--url", server.url, "--format", "textfile", "--textfile", str(prom)) == (0, "", "")
    assert masked(prom.read_text()) == TEXTFILE
    assert masked(run("--url", server.url, "--format", "textfile")[1]) == TEXTFILE


@pytest.mark.parametrize("url", [None, DEAD, "http://nowhere.invalid/a\\b\"c"])
def test_promtool_has_nothing_to_say_of_the_textfile(fake, url):
    code, text, errors = run("--format", "textfile", "--url", url or fake(healthy()).url)
    assert lint(text) == (0, "")
    assert code == (1 if url else 0)
    assert text.count('status="failing"} 1\n') == (2 if url else 0)


def test_text_for_cron_and_the_textfile_come_from_one_run(fake, prom):
    server = fake(stale())
    code, output, errors = run("--url", server.url, "--quiet", "--textfile", str(prom))
    assert (code, errors) == (0, "") and output.startswith("metrics_service WARNING: ")
    assert 'check="metrics",status="warning"} 1\n' in prom.read_text()
    assert len(server.requests) == 3


def test_others_may_read_the_textfile_whatever_the_umask_is(fake, prom):
    server, before = fake(healthy()), os.umask(0o077)
    try:
        assert run("--url", server.url, "--quiet", "--textfile", str(prom)) == (0, "", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(prom.stat().st_mode) == 0o644


def test_the_textfile_is_replaced_in_one_step_and_on_disk_before(fake, prom, tmp_path):
    prom.write_text("old")
    before, trace = prom.open(), tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=openat,fchmod,write,fsync,rename,renameat,renameat2"]
    subprocess.check_call(command + CHECK + ["--url", fake(healthy()).url, "--quiet", "--textfile", str(prom)])
    calls = re.findall(r"^\d+ +(\w+)\(.*\.metrics_check\.prom\.\w+\.tmp", trace.read_text(), re.MULTILINE)
    assert calls == ["openat", "fchmod", "write", "fsync", calls[-1]] and calls[-1].startswith("rename")
    assert before.read() == "old" and prom.read_text().startswith("# HELP ")
    assert os.listdir(str(prom.parent)) == [prom.name]
    before.close()


def full_disk(prom):
    """A folder that cannot hold one more byte."""
    return ["bash", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "-"]


@pytest.mark.parametrize("make, command, reason", [
    (lambda prom: shutil.rmtree(str(prom.parent)), None, "missing"), (lambda prom: prom.mkdir(), None, "not_a_file"),
    (lambda prom: None, full_disk, "disk_full")])
def test_a_textfile_that_cannot_be_written_is_told_and_leaves_nothing_behind(fake, prom, make, command, reason):
    make(prom)
    there, url = sorted(os.listdir(str(prom.parent))) if prom.parent.exists() else None, fake(healthy()).url
    for format, code in (("text", 1), ("nagios", 3)):
        words = (command(prom) if command else []) + CHECK + ["--url", url, "--format", format, "--textfile", str(prom)]
        done = subprocess.run(words, universal_newlines=True, **PIPES)
        word = "UNKNOWN" if format == "nagios" else "COULD NOT TELL"
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.startswith("metrics_service %s: textfile %s: %s: " % (word, reason, prom))
    assert (sorted(os.listdir(str(prom.parent))) if prom.parent.exists() else None) == there


def test_a_folder_that_hangs_cannot_hold_the_check(fake, prom, monkeypatch, capsys):
    monkeypatch.setattr(health_check, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(health_check, "replace_file", lambda path, text, release=threading.Event(): release.wait(9))
    assert health_check.main(["--url", fake(healthy()).url, "--textfile", str(prom)]) == 1
    told = "metrics_service COULD NOT TELL: textfile timeout: %s: writing takes more than 0.1 s: the node exporter is not told ("
    assert capsys.readouterr().out.startswith(told % prom)


def test_a_failure_stays_critical_when_the_textfile_cannot_be_written():
    code, output = nagios(DEAD, "--textfile", "/nonexistent/a.prom")
    assert code == 2 and output.startswith("metrics_service CRITICAL: reachable refused: ")


def test_a_name_that_the_collector_does_not_read_is_refused(tmp_path):
    code, output, errors = run("--textfile", str(tmp_path / "metrics.txt"))
    assert code == 1 and "the collector reads *.prom alone: give such a name" in errors and os.listdir(str(tmp_path)) == []


@pytest.fixture
def exporter(prom):
    """The node exporter's page, read by a user who owns nothing: exporter() -> text. Starts with the first call."""
    processes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]

    def page():
        try:
            return urllib.request.urlopen("http://%s/metrics" % address, timeout=5).read().decode()
        except OSError:
            assert processes[0].poll() is None, "the node exporter has ended"

    def read():
        if not processes:
            drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
            processes.append(subprocess.Popen(
                drop + ["prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
                        "--web.listen-address", address, "--collector.textfile.directory", str(prom.parent)],
                stderr=subprocess.DEVNULL))
        return wait_for(page, "the node exporter")
    for folder in list(prom.parents)[:-2]:
        if os.geteuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    prom.parent.chmod(0o755)
    yield read
    for process in processes:
        process.kill()
        process.wait()


def test_the_node_exporter_itself_tells_what_two_checks_wrote(fake, prom, exporter):
    servers, other = [fake(healthy()), fake(stale())], prom.parent / "other.prom"
    before = os.umask(0o077)
    for server, path in zip(servers, (prom, other)):
        run("--url", server.url, "--textfile", str(path))
    os.umask(before)
    page = exporter()
    assert "node_textfile_scrape_error 0\n" in page
    for server, status in zip(servers, ("ok", "warning")):
        assert 'logistics_check_verdict{status="%s",url="%s"} 1\n' % (status, server.url) in page
        assert 'logistics_check_last_run_timestamp_seconds{url="%s"}' % server.url in page


# The dead-man ping

def ask(server, ping, *arguments, **variables):
    """(exit code, stdout, stderr, request line of the ping or None) of a check of server that pings."""
    url = server if isinstance(server, str) else server.url
    done = run("--url", url, "--quiet", *arguments, ping=ping.url + "/u-1", **variables)
    return done + (ping.requests[0].splitlines()[0] if ping.requests else None,)


def test_a_good_verdict_pings_the_url_and_another_its_fail(fake):
    assert ask(fake(healthy()), fake(answer(b"OK"))) == (0, "", "", "GET /u-1 HTTP/1.1")
    code, output, errors, request = ask(DEAD, fake(answer(b"OK")))
    assert (code, errors, request) == (1, "", "GET /u-1/fail HTTP/1.1")


def test_a_warning_is_good_and_what_could_not_be_told_is_not(fake, tmp_path):
    server = fake(stale())
    assert ask(server, fake(answer(b"OK")))[3] == "GET /u-1 HTTP/1.1"
    assert ask(server, fake(answer(b"OK")), "--format", "nagios")[::3] == (1, "GET /u-1 HTTP/1.1")
    assert ask(server, fake(answer(b"OK")), "--textfile", str(tmp_path / "no" / "a.prom"))[::3] == (1, "GET /u-1/fail HTTP/1.1")
    assert ask(fake(hold), fake(answer(b"OK")), "--format", "nagios", "-t0.2")[::3] == (3, "GET /u-1/fail HTTP/1.1")


@pytest.mark.parametrize("url, good, bad", [
    ("/key/slug?create=1", "/key/slug?create=1", "/key/slug/fail?create=1"), ("/u-1/", "/u-1", "/u-1/fail"), ("", "/", "/fail")])
def test_the_fail_of_a_url_stands_before_its_query(fake, url, good, bad):
    for server, path in ((fake(healthy()).url, good), (DEAD, bad)):
        switch = fake(answer(b"OK"))
        run("--url", server, "--ping", switch.url + url)
        assert [request.split()[1] for request in switch.requests] == [path]


def test_the_ping_has_no_credentials_of_the_service(fake, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("ops:password\n")
    secret.chmod(0o600)
    server, switch = fake(healthy()), fake(answer(b"OK"))
    assert ask(server, switch, "--credentials", str(secret))[0] == 0
    assert any("Authorization" in request for request in server.requests)
    assert switch.requests[0].splitlines() == [
        "GET /u-1 HTTP/1.1", "Host: 127.0.0.1:%d" % switch.port, "Accept-Encoding: identity", "User-Agent: health_check/0.1.0",
        "Accept: application/json, */*;q=0.5", "Connection: close", ""]


@pytest.mark.parametrize("behaviour, told", [
    (answer(b"no", 404), "404 no ("), (answer(b"OK (not found)"), "200 OK (not found) ("),
    (answer(b"", 302, "Location: http://127.0.0.1:1/\r\n"), "302 ("),
    (lambda connection: None, "it closes the connection without an answer"), (b"SSH-2.0\r\n", "what comes back is not HTTP: ")])
@pytest.mark.parametrize("format", ["text", "nagios", "json", "textfile"])
def test_a_ping_that_fails_changes_nothing_and_is_told_once(fake, behaviour, told, format):
    server, switch = fake(healthy()), fake(behaviour)
    alone = run("--url", server.url, "--format", format)
    code, output, errors = run("--url", server.url, "--format", format, "--ping", switch.url + "/secret")
    steady = re.compile(r"[\d.]+")
    assert (code, alone[0]) == (0, 0)
    assert steady.sub("N", output) == steady.sub("N", alone[1])
    assert errors.startswith("health_check: the ping at 127.0.0.1 port %d: %s" % (switch.port, told))
    assert errors.endswith(" (the verdict stands)\n") and errors.count("\n") == 1 and "secret" not in errors
    assert len(switch.requests) == 1


def test_a_ping_is_given_up_in_time_and_after_the_verdict_is_told(fake, monkeypatch, capsys):
    monkeypatch.setattr(health_check, "PING_SECONDS", 0.2)
    told = []
    switch = fake(lambda connection: (told.append(capsys.readouterr().out), hold(connection)))
    assert health_check.main(["--url", fake(healthy()).url, "--ping", switch.url]) == 0
    assert told[0].startswith("metrics_service OK: ")
    assert capsys.readouterr().err == (
        "health_check: the ping at 127.0.0.1 port %d: it accepts the connection and does not answer: is the process stopped?; "
        "gave up after 0.2 s (the verdict stands)\n" % switch.port)


def test_a_ping_to_a_name_that_is_never_looked_up_ends_too(fake, monkeypatch, capsys):
    monkeypatch.setattr(health_check, "PING_SECONDS", 0.1)
    find, release = socket.getaddrinfo, threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo",
                        lambda host, *rest: release.wait(9) if host == "slow.example" else find(host, *rest))
    assert health_check.main(["--url", fake(healthy()).url, "--ping", "https://slow.example/u-1"]) == 0
    release.set()
    assert "the ping at slow.example: the name look-up has no result; gave up after 0.1 s" in capsys.readouterr().err


def test_not_even_a_proxy_that_is_no_address_changes_the_exit_code(fake):
    command = CHECK + ["--url", fake(healthy()).url, "--quiet", "--ping", "http://switch.example/u-1"]
    done = subprocess.run(command, env=dict(os.environ, http_proxy="http://[x"), universal_newlines=True, **PIPES)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "health_check: the ping: ValueError('Invalid IPv6 URL') (the verdict stands)\n"


def test_a_ping_that_cannot_even_be_told_of_changes_nothing(fake):
    with open("/dev/full", "w") as full:
        command = CHECK + ["--url", fake(healthy()).url, "--quiet", "--ping", DEAD]
        assert subprocess.run(command, stderr=full).returncode == 0
