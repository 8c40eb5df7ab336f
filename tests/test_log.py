"""The log: one event one line, and what happens when its file cannot take it."""

import json
import logging
import os
import re
import resource
import signal
import socket

import pytest

import eventlog
import health_check
import metrics_service
from conftest import wait_for
from eventlog import event


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(path, **options): a Log that is installed, tried again at once."""
    monkeypatch.setattr(eventlog, "LOG_RETRY", 0)
    logs = []

    def begin(path=None, form="text", level="info"):
        settings = metrics_service.load_settings({})[0]
        settings = settings._replace(log_file=path and str(path), log_format=form, log_level=level)
        logs.append(metrics_service.start_log(settings))
        return logs[-1]
    yield begin
    eventlog.LOGGER.handlers[:] = []
    for log in logs:
        log.close_file()


def test_a_text_line_is_time_level_event_and_fields(start, capsys):
    start()
    event(logging.ERROR, "database_unavailable", reason="locked", detail="it's \"held\"")
    line = capsys.readouterr().out
    assert line[10] == "T" and line[23:] == 'Z ERROR database_unavailable reason=locked detail="it\'s \\"held\\""\n'


def test_a_json_line_bears_ecs_names(start, capsys):
    start(form="json")
    event(logging.WARNING, "log_fallback", reason="denied", target="stdout")
    line = json.loads(capsys.readouterr().out)
    assert line["log.level"] == "warning" and line["event.action"] == "log_fallback" and line["event.reason"] == "denied"
    assert line["message"] == "log_fallback reason=denied target=stdout"
    assert line["metrics_service.target"] == "stdout" and line["process.pid"] == os.getpid()
    assert list(line)[:4] == ["@timestamp", "log.level", "message", "ecs.version"]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("evil", ["a\nb", "a\r\x1b[31mb", "a\u2028b", "a\udcffb", "\x00", "a b=c\"\\"])
def test_one_event_is_one_printable_line_whatever_it_holds(start, tmp_path, form, evil):
    start(tmp_path / "a.log", form)
    event(logging.ERROR, "request_failed", path=evil)
    data = (tmp_path / "a.log").read_bytes()
    assert data.count(b"\n") == 1 and data.endswith(b"\n") and data[:-1].decode().isprintable()


def test_the_file_is_private_to_owner_and_group(start, tmp_path):
    start(tmp_path / "a.log")
    event(logging.INFO, "x")
    assert (tmp_path / "a.log").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("make, reason", [
    (lambda path: path.mkdir(), "not_a_file"),
    (lambda path: path.symlink_to("/dev/full"), "io_error" if os.geteuid() == 0 else "disk_full"),
    (lambda path: os.mkfifo(str(path)), "io_error"),
])
def test_a_file_that_cannot_be_written_gives_one_warning_and_stdout(start, tmp_path, capsys, monkeypatch, make, reason):
    log = start(tmp_path / "a.log")
    monkeypatch.setattr(eventlog, "LOG_RETRY", 60)
    make(tmp_path / "a.log")
    event(logging.INFO, "first")
    event(logging.INFO, "second")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["log_fallback", "first", "second"]
    assert "reason=%s target=stdout" % reason in lines[0]
    assert (log.document()["target"], log.document()["fallback"], log.document()["reason"]) == ("stdout", True, reason)


def test_a_missing_folder_is_a_fallback_until_it_appears(start, tmp_path, capsys):
    log = start(tmp_path / "logs" / "a.log")
    event(logging.INFO, "lost_to_stdout")
    assert "reason=missing" in capsys.readouterr().out
    (tmp_path / "logs").mkdir()
    assert log.document()["fallback"] is False
    event(logging.INFO, "next")
    assert [line.split()[2] for line in (tmp_path / "logs" / "a.log").read_text().splitlines()] == ["log_recovered", "next"]


def test_a_full_disk_is_a_fallback_without_half_lines(start, tmp_path, capsys):
    log = start(tmp_path / "a.log")
    event(logging.INFO, "before")
    size = (tmp_path / "a.log").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
        event(logging.ERROR, "during")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert log.reason == "disk_full" and " ERROR during" in capsys.readouterr().out
    event(logging.INFO, "after")
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert [line.split()[2] for line in (lines[0], lines[2], lines[3])] == ["before", "log_recovered", "after"]


@pytest.mark.parametrize("clear", [lambda path: os.truncate(str(path), 0), os.remove])
def test_a_file_begun_anew_after_half_a_line_begins_with_a_line(start, tmp_path, clear):
    log = start(tmp_path / "a.log")
    event(logging.INFO, "cut off")
    log.torn = True
    clear(tmp_path / "a.log")
    event(logging.INFO, "whole")
    assert (tmp_path / "a.log").read_text().split(" ", 1)[1] == "INFO whole\n"


def test_half_a_line_of_an_earlier_process_does_not_swallow_the_first_of_this_one(start, tmp_path):
    (tmp_path / "a.log").write_text("2026-11-29T16:02:00.262Z INFO service_started pid=1\n2026-11-29")
    start(tmp_path / "a.log")
    event(logging.ERROR, "database_unavailable", reason="missing")
    half, line = (tmp_path / "a.log").read_text().splitlines()[1:]
    assert half == "2026-11-29" and health_check.parse_entry(line).text == "database_unavailable reason=missing"


def test_a_file_that_ends_in_a_whole_line_gets_no_empty_one(start, tmp_path):
    (tmp_path / "a.log").write_text("whole\n")
    start(tmp_path / "a.log")
    event(logging.INFO, "next")
    assert len((tmp_path / "a.log").read_text().splitlines()) == 2


def test_a_rotated_file_is_left_and_a_new_one_begun(start, tmp_path):
    start(tmp_path / "a.log")
    event(logging.INFO, "one")
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    event(logging.INFO, "two")
    assert (tmp_path / "a.log.1").read_text().split()[2] == "one"
    assert (tmp_path / "a.log").read_text().split()[2] == "two"


def test_a_file_truncated_in_place_is_written_from_its_start(start, tmp_path):
    start(tmp_path / "a.log")
    event(logging.INFO, "one")
    os.truncate(str(tmp_path / "a.log"), 0)
    event(logging.INFO, "two")
    assert (tmp_path / "a.log").read_text().split()[2] == "two"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses links")
def test_root_is_not_led_elsewhere_by_a_link(start, tmp_path):
    (tmp_path / "a.log").symlink_to(tmp_path / "shadow")
    start(tmp_path / "a.log")
    event(logging.INFO, "x")
    assert not (tmp_path / "shadow").exists()


def test_the_level_thins_the_log_but_not_the_counters_nor_the_end_of_trouble(start, capsys):
    log = start(level="error")
    event(logging.INFO, "service_started")
    event(logging.ERROR, "database_unavailable", reason="locked")
    event(logging.INFO, "database_recovered", reason="locked")
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["database_unavailable", "database_recovered"]
    assert log.document()["errors_total"] == 1
    assert log.document()["last_error_at"] <= log.document()["last_recovery_at"]


def test_errors_met_by_the_health_check_are_logged_but_raise_no_alarm(start, capsys):
    log = start()
    event(logging.ERROR, "request_failed", user_agent="health_check/0.1.0")
    assert " ERROR request_failed" in capsys.readouterr().out
    assert (log.document()["errors_total"], log.document()["last_error_at"]) == (0, None)


def test_a_closed_stdout_loses_the_line_and_nothing_else(start, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        monkeypatch.setattr("sys.stdout", nobody)
        log = start()
        event(logging.INFO, "unheard")
        monkeypatch.undo()
        assert log.document()["lost_lines_total"] == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())  # or its close would complain about the buffered line


def test_a_reader_of_stdout_who_stops_costs_lines_and_holds_up_nobody(start, monkeypatch):
    monkeypatch.setattr(eventlog, "STDOUT_SECONDS", 0.01)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "w") as stdout:
        monkeypatch.setattr(eventlog.sys, "stdout", stdout)
        log = start()
        for _ in range(100):
            event(logging.WARNING, "exposed", detail="x" * 3000)
        lost, told = log.lost, pipe.read(1 << 20)
        event(logging.WARNING, "service_stopping")
        lines = (told + pipe.read(1 << 20)).decode().split("\n")
    assert 0 < lost < 100 and log.lost == lost
    assert len([line for line in lines if line.endswith("x")]) == 100 - lost and lines[-2].endswith(" service_stopping")


def test_a_line_that_was_cut_off_by_a_full_pipe_does_not_run_into_the_next(start, monkeypatch):
    monkeypatch.setattr(eventlog, "STDOUT_SECONDS", 0.01)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as pipe, open(writer, "w") as stdout:
        monkeypatch.setattr(eventlog.sys, "stdout", stdout)
        start()
        os.write(writer, b"-" * (65536 - 4096))
        event(logging.WARNING, "exposed", **{"detail%d" % number: "x" * 3000 for number in range(4)})
        pipe.read(65536 - 4096)
        event(logging.WARNING, "service_stopping")
        cut, whole, end = pipe.read(1 << 20).decode().split("\n")
    assert cut.endswith("xxx") and whole.endswith("Z WARNING service_stopping") and end == ""


# One event, one line, in the types of ECS

EVIL = ["\r\n2026-01-01T00:00:00.000Z ERROR forged", "\u2028", "\u2029", "\x85", "\x00", "\x1b[2J", "\ud800", "\udfff\ud800", "\u202e",
        "\ufeff", "\U0001f600" * 9000, "\x01" * 100000, "\\" * 9000, "x=\"y", "", " "]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_is_one_and_bounded_whatever_all_its_values_hold(start, tmp_path, form):
    start(tmp_path / "a.log", form)
    names = ("line", "route", "query", "user_agent", "error", "stack", "detail", "request_id")
    for evil in EVIL:
        event(logging.ERROR, "config_invalid", **dict.fromkeys(names, "a%sb" % evil))
    lines = (tmp_path / "a.log").read_bytes().decode().split("\n")
    assert len(lines) == len(EVIL) + 1 and lines[-1] == ""
    assert all(line.isprintable() and len(line) <= eventlog.LINE_MAX for line in lines)
    if form == "json":
        assert {json.loads(line)["event.action"] for line in lines[:-1]} == {"config_invalid"}


def test_of_a_long_value_both_ends_are_kept(start, capsys):
    start()
    event(logging.ERROR, "x", stack="first" + "." * 9000 + "last")
    assert len(capsys.readouterr().out) < 4300
    event(logging.ERROR, "x", stack="first" + "." * 9000 + "last")
    line = capsys.readouterr().out
    assert 'stack="first....' in line and '....last"\n' in line and "... 4913 left out ..." in line


def test_every_field_has_its_name_and_type_of_ecs(start, capsys):
    start(form="json")
    with eventlog.caused_by(route="/metrics", request_id="a-1"):
        event(logging.ERROR, "request_failed", error_type="KeyError", error="x", stack="Traceback", status=500, bytes=7,
              seconds=0.25, user_agent=None)
    line = json.loads(capsys.readouterr().out)
    wanted = {"log.level": "error", "ecs.version": "8.11.0", "service.name": "metrics_service", "service.version": "0.1.0",
              "event.dataset": "metrics_service.log", "event.action": "request_failed", "error.type": "KeyError",
              "error.message": "x", "error.stack_trace": "Traceback", "http.response.status_code": 500,
              "http.response.body.bytes": 7, "event.duration": 250000000, "url.path": "/metrics", "http.request.id": "a-1",
              "process.pid": os.getpid()}
    assert {name: line[name] for name in wanted} == wanted
    assert set(line) - set(wanted) == {"@timestamp", "message"}
    assert not [name for name in line if any(other.startswith(name + ".") for other in line)]    # none is object and value


def test_access_lines_are_written_at_every_level(start, capsys):
    start(level="error").access(route="/livez")
    assert capsys.readouterr().out.endswith(" INFO request route=/livez\n")


# Floods

def flood(count, **fields):
    for _ in range(count):
        event(logging.ERROR, "request_failed", **dict({"reason": "defect", "route": "/metrics"}, **fields))


def names(text):
    return [line.split()[2] for line in text.splitlines()]


def test_a_flood_is_thinned_and_all_of_it_counted(start, capsys):
    log = start()
    flood(1000)
    flood(1, route="/readyz")
    event(logging.ERROR, "database_unavailable", reason="locked")
    assert names(capsys.readouterr().out) == ["request_failed"] * 6 + ["database_unavailable"]
    document = log.document()
    assert (document["errors_total"], document["thinned_lines_total"]) == (1002, 995)
    log.finish()
    (line,) = capsys.readouterr().out.splitlines()
    assert " ERROR log_thinned of=request_failed left_out=995 seconds=" in line and line.endswith(" reason=defect route=/metrics")


def test_what_was_left_out_is_told_when_the_flood_is_over_though_nothing_else_happens(start, capsys, monkeypatch):
    monkeypatch.setattr(eventlog, "THIN_SECONDS", 0.2)
    log = start()
    flood(8)
    text = ""

    def told():
        nonlocal text
        text += capsys.readouterr().out
        return "log_thinned of=request_failed left_out=3" in text
    wait_for(told, "the rest")
    wait_for(lambda: log.thinning.timer is None, "the timer's end")
    assert names(text) == ["request_failed"] * 5 + ["log_thinned"]


def test_each_interval_begins_anew(start, capsys, monkeypatch):
    log = start()
    flood(7)
    monkeypatch.setattr(eventlog, "THIN_SECONDS", 0)
    flood(2)
    assert names(capsys.readouterr().out) == ["request_failed"] * 5 + ["log_thinned"] + ["request_failed"] * 2
    log.finish()


def test_changes_of_state_are_never_thinned(start, capsys):
    log = start()
    for _ in range(50):
        event(logging.ERROR, "database_unavailable", reason="locked")
        event(logging.INFO, "database_recovered", reason="locked")
    assert len(names(capsys.readouterr().out)) == 100 and log.document()["thinned_lines_total"] == 0


def test_kinds_without_end_are_a_flood_too(start, capsys):
    log = start()
    for number in range(2000):
        flood(1, route="/%d" % number)
    assert len(names(capsys.readouterr().out)) <= eventlog.KINDS_MAX + 10
    assert len(log.thinning.kinds) <= eventlog.KINDS_MAX + 10
    log.finish()


def test_a_flood_by_the_check_is_told_as_its_own(start, capsys):
    log = start()
    flood(10, user_agent="health_check/0.1.0")
    log.finish()
    assert names(capsys.readouterr().out)[-1] == "log_thinned" and log.document()["errors_total"] == 0


def test_the_scan_of_the_check_takes_what_was_left_out_for_errors_of_that_kind(start, tmp_path):
    for agent, wrong in (("curl/8", True), ("health_check/0.1.0", False)):
        path = tmp_path / agent.partition("/")[0]
        log = start(path)
        flood(10, user_agent=agent)
        log.finish()
        last = health_check.read_log(str(path))[0][-1]
        assert health_check.event_of(last) == "log_thinned" and health_check.is_error(last) is wrong


# The journal

@pytest.mark.parametrize("matching", [True, False])
def test_lines_have_their_priority_where_stdout_is_the_journal_and_nowhere_else(start, monkeypatch, matching):
    reader, writer = socket.socketpair()
    status = os.fstat(writer.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", "%d:%d" % (status.st_dev, status.st_ino + (not matching)))
    with reader, writer, os.fdopen(os.dup(writer.fileno()), "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        start(level="debug")
        for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
            event(level, "x")
        monkeypatch.undo()
        lines = reader.recv(65536).decode().splitlines()
    assert [re.match("(<.>)?2", line).group(1) for line in lines] == (["<3>", "<4>", "<6>", "<7>"] if matching else [None] * 4)


def test_a_file_never_has_the_priority(start, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", "%d:%d" % (status.st_dev, status.st_ino))
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        start(tmp_path / "a.log")
        event(logging.ERROR, "x")
        monkeypatch.undo()
    os.close(reader)
    assert (tmp_path / "a.log").read_text().startswith("20")
