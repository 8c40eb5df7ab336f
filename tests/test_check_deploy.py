"""The files of deploy/cron and deploy/nagios, and the check's sections of docs/integrations.md: what stands there is run."""

import os
import re
import shlex
import sqlite3
import subprocess

import pytest

import health_check
from conftest import ROOT, add_rows
from test_check_outputs import PIPES, metrics, read_performance
from test_health_check import answer, fake, healthy, hold  # noqa: F401 (fake is a fixture)
from test_trends_check import NOON, document, serving

PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
CRON = ROOT / "deploy" / "cron"
NAGIOS = ROOT / "deploy" / "nagios"
OPTIONS = {health_check.variable(option): option for option in health_check.OPTIONS}
TIMES = r"(?:(?:\*|\d+)(?:/\d+)?[ \t]+){5}"


def section(title):
    """The text under a heading of the page, up to the next."""
    return re.search(r"^## %s\n(.*?)(?=^## |\Z)" % re.escape(title), PAGE, re.DOTALL | re.MULTILINE).group(1)


def snippet(title, language):
    """The one snippet of a language in a section."""
    found = re.findall(r"^```%s\n(.*?)^```" % language, section(title), re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return found[0]


def column(title, header):
    """The rows of the section's table whose first cell has this header, as lists of cells."""
    lines = section(title).partition("| %s |" % header)[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def shell(command, **variables):
    """(exit code, stdout, stderr) of a command line as cron runs it, with our folder and no environment but these variables."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    env.update(("METRICS_CHECK_" + name.upper(), value) for name, value in variables.items())
    words = ["/bin/sh", "-c", command.replace("/opt/metrics", str(ROOT))]
    done = subprocess.run(words, env=env, cwd="/", universal_newlines=True, **PIPES)
    return done.returncode, done.stdout, done.stderr


def options_of(command):
    """The Settings of a command line that runs the check; one that has an unknown option ends the test."""
    words = shlex.split(command)
    at = next(number for number, word in enumerate(words) if word == "/opt/metrics/health_check.py")
    assert words[:at] in ([], ["python3"], ["/usr/bin/python3"])
    return health_check.read_settings(words[at + 1:], {})


# cron

def cron_lines():
    return (CRON / "metrics_check").read_text().splitlines()


def cron_command():
    """(user, command) of the one job."""
    jobs = [re.fullmatch(TIMES + r"(\w+)[ \t]+(.+)", line) for line in cron_lines() if re.match(r"[*\d]", line)]
    assert len(jobs) == 1
    return jobs[0].groups()


def test_every_file_for_cron_has_a_name_that_cron_reads():
    assert [name for name in os.listdir(str(CRON)) if not re.fullmatch(r"[A-Za-z0-9_-]+", name)] == []


def test_every_line_for_cron_is_a_comment_a_variable_or_the_job():
    for line in cron_lines():
        assert not line or re.match(r"#|\w+=\S|%s\w+[ \t]+\S" % TIMES, line), line
    assert "%" not in cron_command()[1]     # a line's end to cron
    assert (CRON / "metrics_check").read_bytes().endswith(b"\n")


def test_every_variable_for_cron_is_one_of_the_check_with_a_value_that_it_takes():
    found = re.findall(r"^#?(METRICS_\w+)=(.*)$", (CRON / "metrics_check").read_text(), re.MULTILINE)
    assert len(found) >= 5
    for name, value in found:
        OPTIONS[name].kind(value)


def test_the_job_of_cron_says_nothing_until_there_is_trouble(fake):
    command = cron_command()[1]
    assert cron_command()[0] == "metrics" and options_of(command).quiet
    assert shell(command, url=fake(healthy()).url) == (0, "", "")
    code, output, errors = shell(command, url="http://127.0.0.1:1")
    assert (code, errors) == (1, "") and output.startswith("metrics_service FAILING: reachable refused: ")


def test_the_line_of_the_page_is_the_job_without_its_user(fake):
    match = re.fullmatch(TIMES + "(.+)\n", snippet("cron", "cron"))
    assert match.group(1) == cron_command()[1]


def verify_job(database):
    """The nightly command, as cron runs it on this database."""
    lines = (CRON / "metrics_verify").read_text().splitlines()
    user, command = re.fullmatch(TIMES + r"(\w+)[ \t]+(.+)", lines[-1]).groups()
    assert user == "metrics" and "%" not in command and "DATABASE=/srv/shipments.db" in lines
    return shell(command.replace("$DATABASE", str(database)))


def test_the_nightly_look_says_nothing_of_a_sound_database_and_names_what_no_scrape_sees(database):
    db = sqlite3.connect(str(database))
    add_rows(db, [{"reference": str(number), "status": "pending"} for number in range(3)])
    assert verify_job(database) == (0, "", "")
    db.execute("INSERT OR REPLACE INTO shipments (reference, status) VALUES ('1', 'pending')")
    db.commit()
    code, output, errors = verify_job(database)
    assert (code, errors) == (1, "") and "rollup_lane" in output


# Nagios and Icinga

def nagios_objects():
    """(kind, {directive: value}) of each definition of the file for Nagios Core."""
    text = re.sub(r"^\s*#.*$", "", (NAGIOS / "metrics_service.cfg").read_text(), flags=re.MULTILINE)
    blocks = re.findall(r"^define (\w+) \{\n(.*?)^\}\n", text, re.DOTALL | re.MULTILINE)
    assert not re.sub(r"^define \w+ \{\n.*?^\}\n", "", text, flags=re.DOTALL | re.MULTILINE).strip()
    return [(kind, dict(line.split(None, 1) for line in block.splitlines())) for kind, block in blocks]


def nagios_command(check, address):
    """The command line that Nagios runs for a check_command."""
    name, *arguments = check.split("!")
    lines = {fields["command_name"]: fields["command_line"] for kind, fields in nagios_objects() if kind == "command"}
    line = lines[name].replace("$HOSTADDRESS$", address)
    for number, argument in enumerate(arguments, 1):
        line = line.replace("$ARG%d$" % number, argument)
    assert "$" not in line and ";" not in line      # a macro that nobody gave; the beginning of a comment
    return line


def test_the_service_of_nagios_runs_and_gives_its_states(fake):
    checks = [fields["check_command"] for kind, fields in nagios_objects() if kind == "service"]
    assert checks == ["check_metrics_service!8321!0.5!2"]
    assert options_of(nagios_command(checks[0], "::1")).url.geturl() == "http://[::1]:8321"
    for behaviour, code, word in ((healthy(), 0, "OK"), (b"SSH-2.0\r\n", 2, "CRITICAL"), (hold, 2, "CRITICAL")):
        line = nagios_command(checks[0].replace("8321", str(fake(behaviour).port)), "127.0.0.1").replace("-t 10", "-t 0.5")
        found, output, errors = shell(line)
        assert (found, errors) == (code, "") and output.startswith("metrics_service %s: " % word)


def test_the_command_of_nrpe_has_the_name_that_nagios_asks_for_and_runs(fake):
    name, line = re.search(r"^command\[(\w+)\]=(.+)$", (NAGIOS / "nrpe.cfg").read_text(), re.MULTILINE).groups()
    assert " -c %s " % name in nagios_command("check_metrics_service_nrpe", "127.0.0.1")
    code, output, errors = shell(line, url=fake(healthy()).url)
    assert (code, errors) == (0, "")
    assert read_performance(output.rstrip("\n"))["latency"]["warn"] == "0.5"


def icinga():
    """The command, {option: variable} and {variable: default} of the file for Icinga 2."""
    text = (NAGIOS / "metrics_service.conf").read_text()
    command = re.findall(r'"([^"]+)"', re.search(r"command = \[(.*?)\]", text).group(1))
    arguments = re.search(r"arguments = \{\n(.*?)\n  \}", text, re.DOTALL).group(1)
    return command, dict(re.findall(r'"(-[\w-]+)" = .*?"\$(\w+)\$"', arguments)), dict(re.findall(r'vars\.(\w+) = "(.+?)"', text))


VALUES = {"metrics_url": "https://a.example", "metrics_port": "9", "metrics_hostname": "b.example", "metrics_max_age": "60",
          "metrics_log_file": "/var/log/metrics.log"}


def test_every_argument_of_icinga_is_an_option_and_every_default_is_taken():
    command, arguments, defaults = icinga()
    values = dict(VALUES, **defaults)
    words = [word for option, name in arguments.items() if name in values for word in (option, values[name])]
    settings = options_of(" ".join(map(shlex.quote, command + words + ["-v"])))
    assert settings.format is health_check.as_plugin and settings.url.geturl() == "https://b.example:9"
    assert (settings.warning.text, settings.critical.text, settings.timeout.status) == ("0.5", "2", health_check.FAILING)
    assert set(defaults) < set(arguments.values()) and len(set(arguments.values())) == len(arguments)
    known = {name for option in health_check.OPTIONS for name in ("-%s" % option.letter, "--" + option.name.replace("_", "-"))}
    assert set(arguments) < known


def test_the_command_of_icinga_runs(fake):
    command, arguments, defaults = icinga()
    values = dict(defaults, metrics_hostname="127.0.0.1", metrics_port=str(fake(healthy()).port))
    words = [word for option, name in arguments.items() if name in values for word in (option, values[name])]
    assert shell(" ".join(command + words))[0] == 0


def test_the_page_names_each_file_for_nagios():
    assert {cells[0].strip("`") for cells in column("Nagios and Icinga", "file")} == set(os.listdir(str(NAGIOS)))


def test_the_states_of_the_page_are_those_of_the_check():
    found = [(cells[0], int(cells[1])) for cells in column("Nagios and Icinga", "state")]
    assert found == sorted({(word, code) for code, word in health_check.PLUGIN_STATES.values()}, key=lambda pair: pair[1])


def test_the_options_of_the_page_are_letters_of_the_check():
    found = re.findall(r"`-(\w)`", " ".join(cells[0] for cells in column("Nagios and Icinga", "option")))
    assert found == ["H", "p", "w", "c", "t", "v"] and set(found) == {one.letter for one in health_check.OPTIONS if one.letter}


def shape(text):
    """A line of the plugin with N for each number."""
    return re.sub(r"\d+(\.\d+)?", "N", text)


def test_the_command_of_the_page_prints_the_line_of_the_page(fake):
    document = metrics(delivery__on_time_rate=0.9138, database__size_bytes=9437184)
    port = fake(healthy(metrics=answer(document))).port
    code, output, errors = shell(snippet("Nagios and Icinga", "sh").replace("8321", str(port)))
    assert (code, errors) == (0, "")
    assert shape(output) == shape(snippet("Nagios and Icinga", "text"))
    read_performance(snippet("Nagios and Icinga", "text").rstrip("\n"))


@pytest.mark.parametrize("count, p95, code, told", [
    (20, 0.5, 0, "p95 0.500 s for /metrics, 20 in five minutes, limit 0.5 s;"),
    (19, 9.0, 0, "p95 not enough data: 19 in five minutes"),
    (20, 0.75, 2, "p95 slow_answers: 0.750 s for /metrics, 20 in five minutes, limit 0.5 s (docs/runbook.md#slow_answers)")])
def test_the_latency_thresholds_of_the_page_judge_what_everybody_met(fake, count, p95, code, told):
    document = metrics(requests=dict(metrics()["requests"], latency_seconds={
        "last_5_minutes": {"by_route": {"/metrics": {"count": count, "p95": p95}}}}))
    port = fake(healthy(metrics=answer(document))).port
    found, output, errors = shell(snippet("Latency thresholds", "sh").replace("8321", str(port)))
    assert (found, errors) == (code, "") and told in output
    data = read_performance(output.rstrip("\n"))
    assert ("p95" in data) == (count == 20) and data["query_p95"]["crit"] == "0.25"


def test_the_requests_that_a_percentile_takes_are_those_of_the_page():
    assert "takes %d requests to a route" % health_check.P95_COUNT in section("Latency thresholds")


# The textfile

COLLECTOR = "Node exporter's textfile collector"


def test_the_command_of_the_page_writes_the_textfile(fake, tmp_path):
    command = snippet(COLLECTOR, "sh").replace("/var/lib/prometheus/node-exporter", str(tmp_path))
    assert shell(command, url=fake(healthy()).url) == (0, "", "")
    assert 'status="ok"} 1\n' in (tmp_path / "metrics_check.prom").read_text()


def test_the_metrics_of_the_page_are_those_of_the_textfile(fake, tmp_path):
    url, history = fake(serving(document(NOON))).url, str(tmp_path / "trends")
    output = shell("/opt/metrics/health_check.py --format textfile", url=url, trends_file=history)[1]
    found = {name: re.findall(r'(\w+)="', labels) for name, labels in re.findall(r"^(\w+)\{(.*)\}", output, re.MULTILINE)}
    listed = {cells[0].strip("`"): ["url"] + re.findall(r"`(\w+)`", cells[1]) for cells in column(COLLECTOR, "metric")}
    assert listed == found and len(found) == len(health_check.FAMILIES)


# The dead-man ping

def test_the_command_of_the_page_pings(fake):
    switch, server = fake(answer(b"OK")), fake(healthy())
    assert shell(snippet("Dead-man ping", "sh").replace("https://hc-ping.com", switch.url), url=server.url) == (0, "", "")
    assert [request.splitlines()[0] for request in switch.requests] == ["GET /UUID HTTP/1.1"]


def test_the_times_of_the_page_are_those_of_the_check():
    assert "`--timeout` (%s s by default)" % OPTIONS["METRICS_CHECK_TIMEOUT"].default in section("cron")
    assert "comes last, has %d s," % health_check.PING_SECONDS in " ".join(section("Dead-man ping").split())
