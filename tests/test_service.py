"""The service as a process: what it answers, how it starts, stops and survives."""

import calendar
import http.client
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from urllib.parse import quote

import pytest

from conftest import DEADLINE, ROOT, add_rows, copy_product, make_database, turn_second, wait_for

ROW = {"reference": "a", "status": "pending"}


@pytest.fixture
def service(database, launch):
    return launch(database)


def lock(path):
    """A connection that holds the database exclusively until it is closed."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


# Routes

def test_livez_names_service_and_instance_and_needs_no_database(service, database):
    database.unlink()
    status, document = service.get("/livez")
    assert (status, sorted(document), document["service"]) == (200, ["checked_at", "env_file", "instance", "service", "started_at"], "metrics_service")
    assert re.match(r"[0-9a-f]{32}\Z", document["instance"])


def test_every_start_is_a_new_instance(database, launch):
    assert launch(database).get("/livez")[1]["instance"] != launch(database).get("/livez")[1]["instance"]


def test_metrics_are_json_of_the_live_data(service, database):
    assert service.get("/metrics")[1]["shipments"]["total"] == 0
    add_rows(sqlite3.connect(str(database)), [ROW])
    status, document = service.get("/metrics")
    assert (status, document["shipments"]["total"], document["stale"]) == (200, 1, None)
    assert document["service"]["instance"] == service.get("/livez")[1]["instance"]
    assert document["service"]["pid"] == service.process.pid


def test_readyz_and_healthz_prove_a_query(service, database):
    add_rows(sqlite3.connect(str(database)), [ROW])
    for path in ("/readyz", "/healthz"):
        status, headers, body = service.request(path)
        document = json.loads(body.decode())
        assert (status, headers["Content-Type"], document["status"]) == (200, "application/health+json", "pass")
        assert document["checks"]["database:shipments"][0]["observedValue"] == 1


def test_a_locked_database_is_not_ready_and_answers_within_the_deadline(launch, database):
    service = launch(database, query_timeout=0.2, stale_seconds=0)
    with_lock = lock(database)
    status, document = service.get("/metrics")
    assert (status, document["reason"], document["runbook"]) == (503, "locked", "docs/runbook.md#locked")
    assert service.request("/metrics")[1]["Retry-After"] == "1"
    assert service.get("/readyz")[0] == 503 and service.get("/livez")[0] == 200
    with_lock.close()
    assert service.get("/metrics")[0] == 200 and service.get("/readyz")[0] == 200
    assert [line.split()[2] for line in service.text().splitlines()[1:]] == ["database_unavailable", "database_recovered"]


def test_while_locked_the_last_figures_are_served_with_their_age(launch, database):
    service = launch(database, query_timeout=0.2)
    service.get("/metrics")
    with_lock = lock(database)
    turn_second()
    status, document = service.get("/metrics")
    assert (status, document["stale"]["reason"], document["shipments"]["total"]) == (200, "locked", 0)
    assert document["stale"]["age_seconds"] > 0 and document["database"]["reason"] == "locked"
    status, ready = service.get("/readyz")
    assert (status, ready["status"], ready["checks"]["database:shipments"][0]["reason"]) == (200, "warn", "locked")
    with_lock.close()
    assert service.get("/metrics")[1]["stale"] is None


def test_failures_are_counted_and_the_own_blocks_stay_visible(service, database):
    database.rename(str(database) + ".away")
    status, document = service.get("/metrics")
    assert (status, document["reason"]) == (503, "missing")
    assert document["database"]["failures"] == {"missing": 1}
    assert document["logging"]["errors_total"] == 1 and document["requests"]["total"] == 0
    database.mkdir()
    service.get("/metrics")
    database.rmdir()
    add_rows(sqlite3.connect(str(make_database(database))), [dict(ROW, updated_at="2020-01-01T00:00:00Z")])
    status, document = service.get("/metrics")
    block = document["database"]
    assert (block["failures"], block["failures_total"], block["replaced_total"]) == ({"missing": 1, "not_a_file": 1}, 2, 1)
    assert (block["newest_change_at"], block["size_bytes"]) == ("2020-01-01T00:00:00Z", database.stat().st_size)
    at = time.strptime(block["figures_at"], "%Y-%m-%dT%H:%M:%SZ")
    assert block["newest_change_age_seconds"] == calendar.timegm(at) - calendar.timegm((2020, 1, 1, 0, 0, 0))
    assert document["requests"]["in_flight"] == 1
    wait_for(lambda: 0 < service.get("/metrics")[1]["service"]["uptime_seconds"] < 2 * DEADLINE, "the uptime to move")


def test_a_renamed_column_is_500_while_the_process_lives(service, database):
    writer = sqlite3.connect(str(database))
    writer.execute("ALTER TABLE shipments RENAME COLUMN weight_kg TO weight")
    status, document = service.get("/metrics")
    assert (status, document["reason"]) == (500, "schema_mismatch")
    assert "column shipments.weight_kg is missing" in document["detail"]
    assert service.get("/livez")[0] == 200 and service.get("/readyz")[0] == 503
    assert service.get("/readyz")[1]["checks"]["database:schema"][0]["output"] == "column shipments.weight_kg is missing"


def test_a_log_that_fell_back_is_ready_with_a_warning(launch, database):
    service = launch(database, log_file="/nonexistent/a.log")
    status, document = service.get("/readyz")
    assert (status, document["status"]) == (200, "warn")
    assert document["checks"]["log:target"] == [{
        "componentType": "system", "status": "warn", "reason": "missing",
        "output": "the log file /nonexistent/a.log cannot be written; logging to stdout"}]


def test_a_quiet_service_begins_a_new_file_after_a_rotation_and_notices_a_lost_one(launch, database, tmp_path):
    log_file = tmp_path / "a.log"
    service = launch(database, log_file=log_file)
    log_file.rename(tmp_path / "a.log.1")
    assert service.get("/metrics")[1]["logging"]["target"] == "file" and log_file.read_text() == ""
    log_file.unlink()
    log_file.mkdir()
    wait_for(lambda: service.get("/metrics")[1]["logging"]["reason"] == "not_a_file", "the fallback")
    assert "log_fallback reason=not_a_file" in service.output.read_text()


def test_a_missing_trigger_is_ready_with_a_warning(service, database):
    sqlite3.connect(str(database)).execute("DROP TRIGGER shipments_update")
    status, document = service.get("/readyz")
    assert (status, document["status"]) == (200, "warn")
    assert document["checks"]["database:schema"][0]["output"] == "trigger shipments_update is missing"


def test_a_schema_of_another_version_that_can_be_served_is_a_warning_with_the_cure(service, database):
    sqlite3.connect(str(database)).execute("PRAGMA user_version = 3")
    status, document = service.get("/readyz")
    assert (status, document["status"]) == (200, "warn")
    assert document["checks"]["database:schema"][0]["output"] == (
        "schema version 3 is older than the 5 of this release; to bring it to this release: python3 migrate.py %s plan, then apply"
        % database)


@pytest.mark.parametrize("hours, status", [("1", 200), ("672", 200), ("0", 400), ("673", 400), ("-1", 400), ("", 400), ("x", 400),
                                           ("\u0663", 400)])
def test_history_is_given_for_1_to_672_hours(service, hours, status):
    answer, document = service.get("/metrics?history=" + quote(hours))
    assert answer == status
    assert len(document["history"]) == int(hours) if status == 200 else "1 to 672" in document["detail"]


def test_answers_with_and_without_history_are_not_mixed_up(service):
    for _ in range(3):  # most of them within one second, whose answers are kept
        answers = [service.get("/metrics" + query)[1] for query in ("", "?history=2", "?history=3", "")]
        assert [len(answer.get("history", [])) for answer in answers] == [0, 2, 3, 0]


def test_an_unknown_path_is_a_problem_that_names_the_known(service):
    status, headers, body = service.request("/metricz")
    assert (status, headers["Content-Type"]) == (404, "application/problem+json")
    assert json.loads(body.decode()) == {"type": "about:blank", "title": "Not Found", "status": 404,
                                         "detail": "no such path; there are /, /healthz, /livez, /metrics, /readyz, /runbook",
                                         "request_id": headers["X-Request-ID"]}


def counted(service):
    """Answers by status code, but for the 200 of the question itself; an answer is counted just after it was sent."""
    def others():
        codes = service.get("/metrics")[1]["requests"]["by_code"]
        return {code: count for code, count in codes.items() if code != "200"}
    return wait_for(others, "the answer to be counted")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_405_with_allow(service, method):
    status, headers, _ = service.request("/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert counted(service) == {"405": 1}


def exchange(service, data):
    """All bytes that come back for these bytes, up to the end of the connection."""
    with socket.create_connection((service.host, service.port), DEADLINE) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_head_is_get_without_the_body(service):
    length = len(service.request("/livez")[2])
    answers = exchange(service, b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    first, second = answers.split(b"\r\n\r\n", 1)
    assert b"Content-Length: %d" % length in first and second.startswith(b"HTTP/1.1 200 ")


def test_a_body_is_never_taken_for_the_next_request(service):
    inner = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = exchange(service, b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(inner), inner))
    assert answers.count(b"HTTP/1.1 ") == 1 and answers.startswith(b"HTTP/1.1 405 ")


def test_one_connection_carries_many_requests_and_tells_no_version(service):
    connection = http.client.HTTPConnection(service.host, service.port, timeout=DEADLINE)
    for _ in range(3):
        connection.request("GET", "/livez")
        response = connection.getresponse()
        assert response.status == 200 and response.read()
        assert response.headers["Server"] == "metrics_service"


@pytest.mark.parametrize("data, status", [
    (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400), (b"GET\r\n\r\n", 400), (b"GET http://[ HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/9.9\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431), (b"G" * 70000 + b"\r\n\r\n", 414)])
def test_what_is_no_request_is_refused_and_the_service_lives_on(service, data, status):
    with socket.create_connection((service.host, service.port), DEADLINE) as client:
        client.sendall(data)
        assert client.recv(4096).startswith(b"HTTP/1.1 %d " % status)
    assert counted(service) == {str(status): 1}
    assert service.get("/livez")[0] == 200
    assert "Traceback" not in service.text() and "request_failed" not in service.text()


def test_a_client_that_leaves_early_is_no_error(service):
    for _ in range(5):
        with socket.create_connection((service.host, service.port), DEADLINE) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert service.get("/metrics")[1]["logging"]["errors_total"] == 0


def test_without_descriptors_the_service_says_so_once_and_comes_back(service):
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/%d/fd" % service.process.pid)}
    free = min(set(range(len(used) + 1)) - used)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    with socket.create_connection((service.host, service.port), DEADLINE) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: "accept_failed reason=descriptors" in service.text(), "the log line")
        client.settimeout(0.5)
        with pytest.raises(socket.timeout):
            client.recv(1)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        client.settimeout(DEADLINE)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert service.text().count("accept_failed") == 1


def test_a_defect_is_one_log_line_a_500_and_no_harm(database, launch):
    service = launch(database, wait=False)
    service.stop(signal.SIGKILL)
    script = ("import sys; sys.path.insert(0, %r); import metrics_service\n"
              "metrics_service.exposition.metrics_document = lambda *_: 1 / 0\nsys.exit(metrics_service.main([]))" % str(ROOT))
    service.start(command=[sys.executable, "-c", script])
    status, document = service.get("/metrics")
    assert (status, document["reason"], document["service"]["name"]) == (500, "defect", "metrics_service")
    line = [line for line in service.text().splitlines() if " ERROR " in line][0]
    assert " ERROR request_failed reason=defect error_type=ZeroDivisionError error=\"division by zero\" stack=\"Traceback" in line
    assert service.get("/livez")[0] == 200


# Start

def test_a_refused_configuration_is_exit_78_and_a_line_in_the_log(launch, tmp_path):
    service = launch(tmp_path / "typo.db", wait=False, log_file=tmp_path / "a.log", port="x")
    assert service.process.wait(DEADLINE) == 78
    assert "error: METRICS_PORT is 'x' (from the environment)" in service.output.read_text()
    assert " ERROR config_invalid grade=error detail=\"METRICS_PORT is 'x'" in (tmp_path / "a.log").read_text()
    assert not (service.folder / "service.pid").exists()


def test_a_database_that_is_merely_locked_starts_and_becomes_ready(launch, database):
    with_lock = lock(database)
    service = launch(database, query_timeout=0.2)
    status, document = service.get("/readyz")
    assert (status, document["checks"]["database:schema"][0]["output"]) == (503, "schema not compared yet")
    with_lock.close()
    assert service.get("/readyz")[0] == 200


def test_a_database_that_is_damaged_starts_and_becomes_ready(launch, database):
    whole = database.read_bytes()
    database.write_bytes(b"x" * len(whole))
    service = launch(database)
    assert service.get("/readyz")[1]["checks"]["database:shipments"][0]["reason"] == "corrupt"
    database.write_bytes(whole)
    assert service.get("/readyz")[0] == 200


def test_a_schema_unknown_at_the_start_is_judged_once_it_can_be_read(launch, database):
    sqlite3.connect(str(database)).execute("DROP TABLE rollup_due")
    with_lock = lock(database)
    service = launch(database, query_timeout=0.2)
    with_lock.close()
    assert service.get("/metrics")[0] == 500
    assert "table rollup_due is missing" in service.get("/metrics")[1]["detail"]


def test_a_second_copy_with_the_same_pid_file_names_the_first_and_leaves(database, launch):
    first = launch(database)
    second = launch(database, wait=False, pid_file=first.env["METRICS_PID_FILE"])
    assert second.process.wait(DEADLINE) == 1
    assert "is locked by pid %d (" % first.process.pid in second.text()
    assert (first.folder / "service.pid").read_text() == "%d\n" % first.process.pid and first.get("/livez")[0] == 200


def test_a_refused_second_start_raises_no_alarm_about_the_first(database, launch, tmp_path):
    shared = {"log_file": tmp_path / "a.log"}
    first = launch(database, **shared)
    second = launch(database, wait=False, pid_file=first.env["METRICS_PID_FILE"], **shared)
    assert second.process.wait(DEADLINE) == 1
    wait_for(lambda: "start_failed" in (tmp_path / "a.log").read_text(), "the refusal in the shared log")
    subprocess.check_call([sys.executable, str(ROOT / "health_check.py"), "--url", first.url, "--log-file", str(tmp_path / "a.log")])


def test_a_port_in_use_is_exit_1_and_names_the_holder(database, launch):
    first = launch(database)
    second = launch(database, wait=False, port=first.port)
    assert second.process.wait(DEADLINE) == 1
    assert "start_failed" in second.text() and "it is taken by pid %d (" % first.process.pid in second.text()
    assert not (second.folder / "service.pid").exists()


# Stop

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_removes_the_pid_file(service, number):
    assert (service.folder / "service.pid").read_text() == "%d\n" % service.process.pid
    assert service.stop(number) == 0
    assert not (service.folder / "service.pid").exists()
    assert [line.split()[2] for line in service.text().splitlines()] == ["service_started", "service_stopping", "service_stopped"]


def send_and_wait(service):
    """A connection whose request is in flight: sent, and not answered since the database is locked."""
    client = socket.create_connection((service.host, service.port), 0.3)
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(socket.timeout):
        client.recv(1)
    client.settimeout(DEADLINE)
    return client


def test_a_request_in_flight_is_finished_before_the_end(launch, database):
    service = launch(database, query_timeout=1, stale_seconds=0)
    with_lock = lock(database)
    with send_and_wait(service) as client:
        assert service.stop() == 0
        answer = client.recv(65536)
    with_lock.close()
    assert answer.startswith(b"HTTP/1.1 503 ") and b"Connection: close" in answer and b'"locked"' in answer
    assert "abandoned=0" in service.text()


def test_what_does_not_finish_in_time_is_abandoned_and_counted(launch, database):
    service = launch(database, query_timeout=5, stale_seconds=0, drain_seconds=0.2)
    with_lock = lock(database)
    with send_and_wait(service):
        assert service.stop() == 0
    with_lock.close()
    assert "requests_abandoned count=1" in service.text() and "service_stopped" in service.text()


def test_an_idle_connection_does_not_hold_up_the_end(service):
    with socket.create_connection((service.host, service.port), DEADLINE):
        assert service.stop() == 0
    assert "requests_abandoned" not in service.text()


def test_a_kill_leaves_nothing_that_hinders_the_next_start(database, launch):
    first = launch(database)
    first.stop(signal.SIGKILL)
    assert (first.folder / "service.pid").exists()
    second = launch(database, pid_file=first.env["METRICS_PID_FILE"])
    assert second.get("/livez")[0] == 200


# The copied folder, odd addresses and names

def test_an_ipv6_address_is_listened_on(launch, database):
    service = launch(database, wait=False, host="::1")
    wait_for(lambda: "url=http://[::1]:" in service.text(), "the address")
    port = int(service.text().split("url=http://[::1]:")[1].split()[0])
    with socket.create_connection(("::1", port), DEADLINE) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_copy_of_the_folder_runs_under_a_bare_environment(tmp_path, database):
    copy_product(tmp_path)
    done = subprocess.run([sys.executable, str(tmp_path / "metrics_service.py"), "--check"], cwd="/", stdout=subprocess.PIPE,
                          env={"METRICS_DB_PATH": str(database), "METRICS_PORT": "0"}, universal_newlines=True)
    assert done.stdout == "ok: %s, http://127.0.0.1:0\n" % database


def test_version_and_help_are_said_without_any_configuration():
    command = [sys.executable, str(ROOT / "metrics_service.py")]
    assert subprocess.check_output(command + ["--version"], env={}) == b"metrics_service 0.1.0\n"
    assert b"METRICS_*" in subprocess.check_output(command + ["--help"], env={})


def test_a_database_path_with_odd_characters_is_opened_as_it_is(tmp_path, launch):
    path = make_database(tmp_path / "a b%41?c#d.db", [ROW])
    assert launch(path).get("/metrics")[1]["shipments"]["total"] == 1
