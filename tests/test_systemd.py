"""At home under systemd: what the service tells its manager, the unit files, and both under a systemd that is booted for it.

The manager of the first part is a datagram socket, of which sd_notify(3) says what arrives there.
"""

import collections
import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

import notify
from conftest import DEADLINE, ROOT, Service, make_certificate, make_database, wait_for

UNITS = ROOT / "deploy" / "systemd"
SETTLE = 0.3        # s in which something would come that shall not

STUCK = """
import os, sys, time
sys.path.insert(0, %r)
import metrics_service, webserver
def stuck(self, *arguments):
    while os.path.exists("stuck"):
        time.sleep(0.01)
    return before(self, *arguments)
before = webserver.Server.%s
webserver.Server.%s = stuck
sys.exit(metrics_service.main())
"""


class Manager:
    """A service manager as far as a service can tell: a socket of datagrams."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(DEADLINE)
        self.name = "@" + address[1:] if address.startswith("\0") else address

    def hear(self):
        """The next datagram as name -> value, in the order of its lines."""
        lines = self.socket.recv(65536).decode().split("\n")
        return collections.OrderedDict(line.split("=", 1) for line in lines)

    def hear_until(self, **wanted):
        """The datagrams up to the first that has these values, that included."""
        heard = [self.hear()]
        while not all(heard[-1].get(name, "").startswith(value) for name, value in wanted.items()):
            heard.append(self.hear())
        return heard

    def silent(self, seconds=SETTLE):
        """Whether nothing comes for so long."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(65536)
        except socket.timeout:
            return True
        finally:
            self.socket.settimeout(DEADLINE)

    def drain(self):
        while not self.silent(0.01):
            pass


@pytest.fixture
def manager(tmp_path):
    one = Manager(str(tmp_path / "notify"))
    yield one
    one.socket.close()


@pytest.fixture
def notified(tmp_path, database, manager):
    """Starts services of the manager: notified(environ, command=...) -> Service. All end with the test."""
    services = []

    def start(environ=(), wait=True, command=None, **settings):
        folder = tmp_path / ("notified%d" % len(services))
        folder.mkdir()
        service = Service(folder, database, **settings)
        service.env.update({"NOTIFY_SOCKET": manager.name}, **dict(environ))
        services.append(service)
        env_file = folder / "metrics.env"
        env_file.write_text("")
        return service.start(wait, command or (sys.executable, str(ROOT / "metrics_service.py"), "--env-file", str(env_file)))
    yield start
    for service in services:
        service.end()


def shipments(count):
    return [{"reference": str(number), "status": "pending"} for number in range(count)]


def add(path, count):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.executemany("INSERT INTO shipments (reference, status) VALUES (?, ?)",
                               [(row["reference"], row["status"]) for row in shipments(count)])
        connection.commit()


# What is told, and when

def test_ready_is_told_once_it_can_serve_with_what_a_person_wants_to_know(notified, manager, database):
    add(database, 3)
    service = notified(wait=False)
    told = manager.hear()
    service.address()
    assert told == {"READY": "1", "STATUS": "serving on %s: 3 shipments" % service.url}
    assert service.get("/readyz")[0] == 200
    assert manager.silent()


def test_what_cannot_be_served_is_never_ready(notified, manager):
    service = notified(wait=False, port="x")
    assert service.process.wait(DEADLINE) == 78 and manager.silent()


def test_the_status_follows_the_state_and_not_the_requests(notified, manager, database):
    service = notified(query_timeout=0.1, stale_seconds=0)
    start = "serving on %s: " % service.url
    assert manager.hear()["STATUS"] == start + "0 shipments"
    moved = database.with_name("moved")
    database.rename(moved)
    for _ in range(5):
        service.get("/metrics")
    assert manager.hear() == {"STATUS": start + "no figures, missing: database %s: No such file or directory; it was moved to %s" % (
        database, moved)}
    assert manager.silent()
    moved.rename(database)
    add(database, 2)
    service.get("/metrics")
    assert manager.hear() == {"STATUS": start + "2 shipments"}
    assert manager.silent()


def test_older_figures_are_told_as_such(notified, manager, database):
    service = notified(query_timeout=0.1)
    manager.drain()
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        wait_for(lambda: service.get("/metrics")[1]["stale"], "older figures")
    (told,) = manager.hear_until(STATUS="serving")
    assert re.match(r"serving on \S+: 0 shipments as of \S+Z, since then locked: database ", told["STATUS"])


def test_a_log_that_falls_back_is_told(notified, manager, tmp_path):
    service = notified(log_file=tmp_path / "none" / "log")
    assert manager.hear()["STATUS"] == "serving on %s: 0 shipments; log on stdout (missing)" % service.url


def test_a_stop_is_told_first(notified, manager):
    service = notified()
    manager.drain()
    service.process.send_signal(signal.SIGTERM)
    assert manager.hear() == {"STOPPING": "1", "STATUS": "stopping"}
    assert service.process.wait(DEADLINE) == 0 and manager.silent()


def test_a_reload_is_told_with_its_time_in_one_datagram_and_its_end_by_the_new_program(notified, manager):
    service = notified()
    manager.drain()
    instance, before = service.get("/livez")[1]["instance"], time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    service.process.send_signal(signal.SIGHUP)
    reloading, ready = manager.hear(), manager.hear()
    assert list(reloading) == ["RELOADING", "MONOTONIC_USEC"] and reloading["RELOADING"] == "1"
    assert before < int(reloading["MONOTONIC_USEC"]) < time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    assert list(ready) == ["READY", "STATUS"] and service.get("/livez")[1]["instance"] != instance


def test_a_refused_reload_is_ready_again_and_says_why(notified, manager):
    service = notified()
    manager.drain()
    env_file = service.folder / "metrics.env"
    env_file.write_text("METRICS_STALE_SECONDS=x\n")
    service.process.send_signal(signal.SIGHUP)
    assert list(manager.hear()) == ["RELOADING", "MONOTONIC_USEC"]
    told = [manager.hear(), manager.hear()]
    assert sorted(name for one in told for name in one) == ["READY", "STATUS"]
    assert re.search(r"; reload refused: METRICS_STALE_SECONDS is 'x' \(from ", told[0].get("STATUS") or told[1]["STATUS"])
    env_file.write_text("")
    service.process.send_signal(signal.SIGHUP)
    assert manager.hear_until(READY="1")[-1]["STATUS"] == "serving on %s: 0 shipments" % service.url


def test_a_manager_in_the_abstract_namespace_hears(tmp_path, notified, manager):
    other = Manager("\0metrics-test-%d" % os.getpid())
    with contextlib.closing(other.socket):
        notified({"NOTIFY_SOCKET": other.name})
        assert other.hear()["READY"] == "1"


@pytest.mark.parametrize("address", ["/nowhere/notify", "relative", "@nobody", "/" + "x" * 200])
def test_a_manager_that_is_not_there_costs_nothing(notified, address):
    service = notified({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    assert service.get("/metrics")[0] == 200
    assert service.stop() == 0


def test_a_manager_that_does_not_listen_costs_nothing(notified, manager):
    service = notified({"WATCHDOG_USEC": "4000"})   # its queue is full after some datagrams
    time.sleep(SETTLE)
    assert service.get("/metrics")[0] == 200
    assert service.stop() == 0


def test_a_manager_costs_one_thread_and_none_costs_none(launch, notified, database):
    def threads(service):
        return len(os.listdir("/proc/%d/task" % service.process.pid))
    alone, notified = launch(database), notified()
    wait_for(lambda: threads(notified) == threads(alone) + 1, "the thread")


@pytest.mark.parametrize("environ, period", [
    ({}, None), ({"WATCHDOG_USEC": "30000000"}, 30.0), ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "7"}, 3e-6),
    ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "8"}, None), ({"WATCHDOG_USEC": "x"}, None), ({"WATCHDOG_USEC": "0"}, None)])
def test_the_watchdog_is_fed_only_where_it_waits_for_us(environ, period):
    assert notify.Manager(dict(environ, NOTIFY_SOCKET="/run/notify"), 7).period == period


def test_a_status_is_one_line_of_utf_8(manager):
    assert notify.Manager({"NOTIFY_SOCKET": manager.name}, 1).tell(STATUS="a\nREADY=1\udcff " + "x" * 2000)
    told = manager.hear()
    assert list(told) == ["STATUS"] and told["STATUS"].startswith("a READY=1? xx") and len(told["STATUS"]) == notify.STATUS_MAX


# The watchdog

PERIOD = 0.6        # s
FED = {"WATCHDOG_USEC": str(int(PERIOD * 1e6))}


def fed(manager, seconds):
    """How often the watchdog is fed in so many seconds from now."""
    manager.drain()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        manager.socket.settimeout(max(0.01, end - time.monotonic()))
        with contextlib.suppress(socket.timeout):
            count += "WATCHDOG" in manager.hear()
    manager.socket.settimeout(DEADLINE)
    return count


def test_the_watchdog_is_fed_each_half_period(notified, manager):
    service = notified(FED)
    assert 2 <= fed(manager, 4 * PERIOD) <= 9 and "watchdog" not in service.text()


def test_the_watchdog_is_fed_over_tls(notified, manager, tmp_path):
    service = notified(FED, tls_cert=make_certificate(tmp_path / "pem", "DNS:localhost"))
    assert fed(manager, 2 * PERIOD) and "watchdog" not in service.text()


def test_the_watchdog_is_fed_where_the_service_listens_everywhere(notified, manager):
    service = notified(FED, host="0.0.0.0")
    assert fed(manager, 2 * PERIOD) and "watchdog" not in service.text()


def test_the_watchdog_is_fed_after_a_reload_too(notified, manager):
    service = notified(FED)
    service.process.send_signal(signal.SIGHUP)
    manager.hear_until(RELOADING="1")
    manager.hear_until(READY="1")
    assert fed(manager, 2 * PERIOD)


def test_a_database_that_does_not_answer_is_no_reason_to_end_the_service(notified, manager, database):
    service = notified(FED, query_timeout=8, stale_seconds=0)
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer, contextlib.ExitStack() as clients:
        writer.execute("BEGIN EXCLUSIVE")
        for _ in range(40):         # more than may wait for the database at once
            client = clients.enter_context(socket.create_connection((service.host, service.port)))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert fed(manager, 3 * PERIOD) >= 2 and "watchdog" not in service.text()


@pytest.mark.parametrize("method", ["service_actions", "process_request"], ids=["the poller", "the workers"])
def test_the_watchdog_is_not_fed_while_the_service_does_not_answer(notified, manager, method):
    service = notified(FED, command=(sys.executable, "-c", STUCK % (str(ROOT), method, method)))
    assert fed(manager, 2 * PERIOD)
    flag = service.folder / "stuck"
    flag.write_text("")
    wait_for(lambda: " ERROR watchdog_unfed " in service.text(), "the silence to be noticed")
    assert fed(manager, 2 * PERIOD) == 0
    flag.unlink()
    manager.hear_until(WATCHDOG="1")
    assert [line.split()[2] for line in service.text().splitlines() if "watchdog" in line] == [
        "watchdog_unfed", "watchdog_recovered"]


def test_the_watchdog_s_signal_prints_what_every_thread_is_at(notified):
    service = notified(FED)
    assert service.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in service.text() and "in service_actions" not in service.text().split("Fatal")[0]
    assert "webserver.py" in service.text()
