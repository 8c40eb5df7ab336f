"""The log: one event one line, and what happens when its file cannot take it."""

import json
import logging
import os
import resource
import signal

import pytest

import eventlog
import metrics_service
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
