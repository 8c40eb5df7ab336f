"""SIGHUP: the same process goes on as the code and the settings that its files hold by then, and no client is cut off."""

import collections
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time

import pytest

import supervision
from conftest import DEADLINE, LONG, ROOT, Service, copy_product, make_certificate, wait_for
from smoke import free_port

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = GET % b"/livez"
RELOADS = 50 if LONG else 5     # under load
RATE = 100                      # requests a second of each client
HANG = "import time\ntime.sleep(60)\n"
LAUNCHER = """
import os, socket, sys
given = socket.socket()
if sys.argv[1] != "silent":
    given.bind(("127.0.0.1", 0))
    given.listen()
os.dup2(given.fileno(), 3)
os.set_inheritable(3, True)
pid = os.getppid() if sys.argv[1] == "another's" else os.getpid()
os.environ.update(LISTEN_PID=str(pid), LISTEN_FDS=sys.argv[2], GIVEN=str(given.getsockname()[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class Reloadable(Service):
    """A service with an env file, which holds what is to change: service.configure(setting=value)."""

    def __init__(self, folder, database, code=ROOT, **settings):
        super().__init__(folder, database)
        self.env_file, self.code, self.settings = self.folder / "metrics.env", code, {}
        self.configure(**settings)

    def configure(self, **settings):
        """Changes these settings in the env file; None removes one."""
        self.settings.update(settings)
        self.env_file.write_text("".join("METRICS_%s=%s\n" % (name.upper(), value) for name, value in self.settings.items()
                                         if value is not None))

    def command(self):
        return sys.executable, str(self.code / "metrics_service.py"), "--env-file", str(self.env_file)

    def start(self, wait=True, command=None, **options):
        return super().start(wait, command or self.command(), **options)

    def count(self, event):
        return self.text().count(" %s " % event)

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def reload(self):
        """Has it reload; the new instance id."""
        instance, refused = self.instance(), self.count("reload_refused")
        self.hang_up()
        wait_for(lambda: self.instance() != instance or self.count("reload_refused") > refused, "the reload")
        assert self.count("reload_refused") == refused, self.text()
        return self.instance()

    def refuse(self):
        """Has it refuse to reload; what the log says of that."""
        instance, refused = self.instance(), self.count("reload_refused")
        self.hang_up()
        wait_for(lambda: self.count("reload_refused") > refused, "the refusal")
        assert self.instance() == instance
        line = [line for line in self.text().splitlines() if " reload_refused " in line][-1]
        return json.loads(re.match(r"\S+ WARNING reload_refused reason=reload_refused detail=(.*)\Z", line).group(1))

    def instance(self):
        return self.get("/livez")[1]["instance"]

    def entry(self):
        """What /readyz says of reloads."""
        (entry,) = self.get("/readyz")[1]["checks"]["service:reload"]
        return entry

    def holdings(self):
        """(threads, the kinds of all that it has open)."""
        names = [name for _, name in supervision.open_files(self.process.pid)]
        return len(os.listdir("/proc/%d/task" % self.process.pid)), sorted(re.sub(r"\d+", "", name) for name in names)


@contextlib.contextmanager
def repeatedly(function):
    """Calls the function again and again in another thread while the block runs."""
    over = threading.Event()

    def loop():
        while not over.is_set():
            function()
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Client:
    """A connection that stays."""

    def __init__(self, service, context=None):
        self.socket = socket.create_connection((service.host, service.port), DEADLINE)
        if context:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """(status, Connection field, document) of the next answer."""
        line = self.file.readline()
        assert line, "the connection ended without an answer"
        fields = http.client.parse_headers(self.file)
        body = self.file.read(int(fields["Content-Length"]))
        return int(line.split()[1]), fields["Connection"], json.loads(body.decode())

    def ask(self, path):
        self.send(GET % path)
        return self.answer()


def change(path, before, after):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


@pytest.fixture
def make(tmp_path, database):
    """Services that are not yet started: make(**settings) -> Reloadable. All end with the test."""
    services = []

    def makes(**settings):
        folder = tmp_path / ("reloadable%d" % len(services))
        folder.mkdir()
        services.append(Reloadable(folder, database, **settings))
        return services[-1]
    yield makes
    for service in services:
        service.end()


@pytest.fixture
def service(make):
    return make().start()


@pytest.fixture
def copied(make, tmp_path):
    """A service that runs from a copy of the folder, with two seconds for a --check."""
    folder = tmp_path / "release"
    folder.mkdir()
    change(copy_product(folder) / "metrics_service.py", "CHECK_SECONDS = 10", "CHECK_SECONDS = 2 ")
    return make(code=folder).start()


def lock(path):
    """A connection that holds the database exclusively until it is closed."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


# What stays and what is new

def test_the_process_stays_and_is_a_new_instance(service):
    pid, started, instance = service.process.pid, supervision.process_stat(service.process.pid), service.instance()
    assert service.reload() != instance
    document = service.get("/metrics")[1]["service"]
    assert (document["pid"], supervision.process_stat(pid).started, service.process.poll()) == (pid, started.started, None)
    assert document["uptime_seconds"] < DEADLINE and document["instance"] == service.instance()
    assert [line.split()[1:3] for line in service.text().splitlines()] == [
        ["INFO", "service_started"], ["INFO", "service_reloading"], ["INFO", "service_started"]]


def test_a_port_of_its_own_is_no_obstacle(make):
    port = free_port()
    service = make(port=port).start()
    for _ in range(2):
        service.reload()
    assert service.get("/metrics")[1]["service"]["pid"] == service.process.pid and service.port == port


def listening_inode(service):
    (inode,) = {one.inode for one in supervision.listeners(service.host, service.port)}
    return inode


def test_the_listening_socket_is_never_closed(service):
    inode, statuses = listening_inode(service), collections.Counter()
    with repeatedly(lambda: statuses.update([service.request("/livez")[0]])):
        for _ in range(3):
            service.reload()
    assert set(statuses) == {200} and sum(statuses.values()) > 3 and listening_inode(service) == inode


# What clients see of it

def test_an_idle_kept_connection_goes_on(service):
    with Client(service) as client:
        for _ in range(3):
            status, connection, document = client.ask(b"/livez")
            assert (status, connection, document["instance"]) == (200, None, service.instance())
            service.reload()


def test_a_connection_that_has_not_yet_spoken_goes_on(service):
    with Client(service) as client:
        wait_for(lambda: service.get("/metrics")[1]["connections"]["open"] == 2, "the connection to be accepted")
        service.reload()
        assert client.ask(b"/livez")[0] == 200


@pytest.mark.parametrize("cut", [1, 20, len(LIVE) - 1])
def test_half_a_head_goes_on(service, cut):
    with Client(service) as client:
        client.send(LIVE + LIVE[:cut])
        assert client.answer()[0] == 200
        service.reload()
        client.send(LIVE[cut:])
        assert client.answer()[0] == 200


def test_half_a_body_goes_on(service):
    with Client(service) as client:
        client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
        service.reload()
        client.send(b"c\r\n0\r\n\r\n" + LIVE)
        assert [client.answer()[0] for _ in range(2)] == [200, 200]


def queues(service, client):
    """(tx_queue, rx_queue) of the service's end of the connection, from /proc/net/tcp: bytes in the kernel that the client has
    not yet taken, and that the service has not yet read."""
    ends = ["0100007F:%04X" % port for port in (service.port, client.socket.getsockname()[1])]
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return next([int(size, 16) for size in row[4].split(":")] for row in rows if row[1:3] == ends)


def await_reading(service, client):
    wait_for(lambda: queues(service, client)[1] == 0, "the request to be read")


def test_pipelined_requests_and_unread_answers_go_on(service):
    count = 300
    with Client(service) as client:
        client.send(GET % b"/metrics?history=672" * count)
        wait_for(lambda: queues(service, client)[0] > 65536, "answers that pile up")
        for _ in range(2):
            service.reload()
        answers = [client.answer() for _ in range(count)]
        assert {(status, len(document["history"])) for status, _, document in answers} == {(200, 672)}
        assert len({document["service"]["instance"] for _, _, document in answers}) > 1


def test_a_client_that_was_told_to_leave_is_still_let_leave(service):
    with Client(service) as client:
        client.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.answer()[1] == "close"
        service.reload()
        assert client.file.read() == b""


@pytest.fixture
def waiting(make, database):
    """(service, client, lock): a client whose request waits for the locked database."""
    service = make(query_timeout=8, stale_seconds=0, drain_seconds=8).start()
    held = lock(database)
    with contextlib.closing(held), Client(service) as client:
        client.send(GET % b"/metrics")
        await_reading(service, client)
        yield service, client, held


def test_a_request_in_flight_is_finished_first(waiting):
    service, client, held = waiting
    instance = service.instance()
    service.configure(query_timeout=0.1)    # else --check would wait for the database too
    service.hang_up()
    wait_for(lambda: service.count("service_reloading"), "the reload to begin")
    held.close()
    status, _, document = client.answer()
    assert (status, document["service"]["instance"]) == (200, instance)
    wait_for(lambda: service.count("service_started") == 2, "the reload")
    assert client.ask(b"/livez")[2]["instance"] == service.instance() != instance


def test_a_request_that_is_not_finished_in_time_puts_the_reload_off(make, database):
    service = make(query_timeout=8, stale_seconds=0, drain_seconds=0.2).start()
    with contextlib.closing(lock(database)) as held, Client(service) as client:
        client.send(GET % b"/metrics")
        await_reading(service, client)
        service.configure(query_timeout=0.1)
        words = "the requests in flight were not finished within METRICS_DRAIN_SECONDS; serving on as before"
        assert service.refuse() == words
        held.close()
        assert client.answer()[0] == 200
        service.reload()
        assert client.ask(b"/livez")[0] == 200


# New settings and new code

def test_new_settings_are_in_force(make, database):
    service = make(log_level="info", stale_seconds=60).start()
    service.get("/metrics")
    service.configure(access_log="on", stale_seconds=0)
    service.reload()
    assert " INFO request method=GET route=/livez status=200 " in service.text()
    service.get("/metrics")
    with contextlib.closing(lock(database)):
        wait_for(lambda: service.get("/metrics")[0] == 503, "a second whose figures nobody has", 5)
    service.configure(access_log=None, stale_seconds=None)
    service.reload()
    lines = service.text().count(" INFO request ")
    service.get("/metrics")
    assert service.text().count(" INFO request ") == lines


def test_passwords_can_be_switched_on_and_off(make, tmp_path):
    service = make().start()
    users = tmp_path / "users"
    users.write_bytes(subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--hash-password", "anna"],
                                     input=b"letters\n", stdout=subprocess.PIPE, check=True).stdout)
    users.chmod(0o600)
    with Client(service) as client:
        assert client.ask(b"/metrics")[0] == 200
        service.configure(auth_file=users)
        service.reload()
        assert client.ask(b"/metrics")[0] == 401
        service.configure(auth_file=None)
        service.reload()
        assert client.ask(b"/metrics")[0] == 200


def test_new_code_is_in_force(copied):
    change(copied.code / "metrics_service.py", 'VERSION = "0.1.0"', 'VERSION = "0.2.0"')
    with Client(copied) as client:
        assert client.ask(b"/metrics")[2]["service"]["version"] == "0.1.0"
        copied.reload()
        assert client.ask(b"/metrics")[2]["service"]["version"] == "0.2.0"


def test_a_release_behind_a_symbolic_link_is_followed(make, tmp_path):
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / version).mkdir()
        change(copy_product(tmp_path / version) / "metrics_service.py", 'VERSION = "0.1.0"', 'VERSION = "%s"' % version)
    current, new = tmp_path / "current", tmp_path / "new"
    current.symlink_to("0.1.0")
    service = make(code=current).start()
    new.symlink_to("0.2.0")
    new.rename(current)
    service.reload()
    assert service.get("/metrics")[1]["service"]["version"] == "0.2.0"


# What is refused, the old one serving on

def check_refused(service, words):
    """The service refuses to reload with these words, and says so in /readyz."""
    said = service.refuse()
    assert said.startswith(words) and said.endswith("; serving on as before"), said
    status, document = service.get("/readyz")
    (entry,) = document["checks"]["service:reload"]
    assert (status, document["status"], entry["status"], entry["reason"]) == (200, "warn", "warn", "reload_refused")
    assert entry["output"] == said[:-len("; serving on as before")] and re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}Z\Z", entry["time"])


def check_cured(service):
    service.reload()
    assert service.entry() == {"componentType": "system", "status": "pass"}


MOVED = "a reload cannot change METRICS_%s from %s to %s; restart instead"
REFUSED_SETTINGS = {
    "a bad value": ({"stale_seconds": "x"}, "METRICS_STALE_SECONDS is 'x' (from {0}/metrics.env line 1), which is not a number"),
    "a bad port": ({"port": "x"}, "METRICS_PORT is 'x' (from {0}/metrics.env line 1), which is not a whole number"),
    "a misspelt name": ({"stael_seconds": "1"}, "METRICS_STAEL_SECONDS (from {0}/metrics.env line 1) is not a setting; did you"),
    "no database": ({"db_path": "/none"}, "database /none: No such file or directory; set METRICS_DB_PATH"),
    "no password file": ({"auth_file": "none"}, "METRICS_AUTH_FILE: {0}/none: could not be read"),
    "no certificate": ({"tls_cert": "none"}, "METRICS_TLS_CERT: {0}/none cannot be used: "),
    "another host": ({"host": "127.0.0.2"}, MOVED % ("HOST", "127.0.0.1", "127.0.0.2")),
    "another port": ({"port": "1"}, MOVED % ("PORT", "0", "1")),
    "another PID file": ({"pid_file": "other.pid"}, MOVED % ("PID_FILE", "{0}/service.pid", "{0}/other.pid")),
}


@pytest.mark.parametrize("what", sorted(REFUSED_SETTINGS))
def test_settings_that_a_start_would_refuse_or_a_reload_cannot_bring_are_refused(service, what):
    settings, words = REFUSED_SETTINGS[what]
    service.configure(**settings)
    check_refused(service, words.format(service.folder))
    service.configure(**dict.fromkeys(settings))
    check_cured(service)


def test_an_env_file_that_is_gone_is_refused(service):
    service.env_file.unlink()
    check_refused(service, "the env file cannot be used: %s: could not be read: No such file or directory" % service.env_file)
    service.configure()
    check_cured(service)


def test_a_schema_that_a_start_would_refuse_is_refused(service, database):
    with contextlib.closing(sqlite3.connect(str(database))) as connection:
        connection.execute("ALTER TABLE shipments RENAME COLUMN weight_kg TO weight")
        assert "column shipments.weight_kg is missing" in service.refuse()
        connection.execute("ALTER TABLE shipments RENAME COLUMN weight TO weight_kg")
    check_cured(service)


def test_a_reason_that_becomes_another_replaces_it(service):
    service.configure(stale_seconds="x")
    check_refused(service, "METRICS_STALE_SECONDS is 'x'")
    service.configure(stale_seconds="y")
    check_refused(service, "METRICS_STALE_SECONDS is 'y'")
    assert service.count("reload_refused") == 2


def test_a_refused_reload_is_a_warning_of_the_check_by_its_own_reason_and_pages_nobody(service):
    service.configure(stale_seconds="x")
    service.refuse()
    command = [sys.executable, str(ROOT / "health_check.py"), "--url", service.url, "--log-file", str(service.log_file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and done.stdout.startswith("metrics_service WARNING: database reload_refused: "), done.stdout


def children(service):
    """PIDs of the service's children."""
    with open("/proc/{0}/task/{0}/children".format(service.process.pid)) as file:
        return file.read().split()


@pytest.mark.parametrize("code, words", [
    ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ("def x(:\n", "SyntaxError: invalid syntax"), ("import os\nos._exit(3)\n", "--check ended with exit code 3 and no word"),
    (HANG, "--check took longer than 6 s")])
def test_code_that_does_not_run_is_refused(copied, code, words):
    module = copied.code / "exposition.py"
    good = module.read_text()
    module.write_text(code)
    check_refused(copied, words)
    assert not children(copied)
    module.write_text(good)
    check_cured(copied)


def test_a_folder_that_is_gone_is_refused(copied):
    away = copied.code.rename(str(copied.code) + ".away")
    assert "No such file or directory" in copied.refuse()
    away.rename(copied.code)
    check_cured(copied)


def test_who_serves_makes_no_way_for_one_that_would_not_be_ready(make, database):
    service = make(query_timeout=0.2).start()
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert "the service will start and not be ready" in service.refuse()
        assert service.get("/metrics")[0] == 200
    service.reload()


def test_who_does_not_serve_either_makes_way_at_once(make, database):
    service = make(query_timeout=30, stale_seconds=0).start()
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert service.request("/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.2"})[0] == 503
        service.configure(query_timeout=0.2)
        service.reload()


def test_more_than_1024_connections_survive_a_reload(service):
    clients = [socket.create_connection((service.host, service.port), DEADLINE) for _ in range(1100)]
    service.reload()
    clients[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    assert clients[-1].recv(100).startswith(b"HTTP/1.1 200 ")
    for client in clients:
        client.close()


def test_an_interpreter_that_is_gone_refuses_the_reload(make, tmp_path):
    python = tmp_path / "python"
    shutil.copy(os.path.realpath(sys.executable), str(python))
    service = make()
    service.env["PYTHONHOME"] = sys.base_prefix
    service.start(command=(str(python),) + service.command()[1:])
    python.unlink()
    assert "the new code cannot be run" in service.refuse()


# Signals that meet a reload

@pytest.fixture
def checking(copied):
    """A service whose --check hangs, and the file that makes it."""
    module = copied.code / "exposition.py"
    good = module.read_text()
    change(copied.code / "metrics_service.py", "CHECK_SECONDS = 2 ", "CHECK_SECONDS = 60 ")
    copied.reload()
    module.write_text(HANG)
    copied.hang_up()
    wait_for(lambda: children(copied), "the check to run")
    module.write_text(good)
    return copied


def check_gone(service, number=signal.SIGTERM):
    """A signal ends it with all that a good end has."""
    service.process.send_signal(number)
    assert service.process.wait(DEADLINE) == 0, service.text()
    assert service.text().splitlines()[-1].split()[2] == "service_stopped" and not (service.folder / "service.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_does_not_wait_for_the_check(checking, number):
    check_gone(checking, number)
    assert not checking.count("reload_refused")


def test_a_further_reload_begins_anew(checking):
    checking.reload()
    wait_for(lambda: checking.count("service_started") == 3, "the line of the third start, which follows its first answer")
    assert not children(checking)


def test_a_burst_of_reloads_ends_in_one_that_is_whole(service):
    with Client(service) as client:
        for number in range(20):
            service.hang_up()
            time.sleep(number % 4 * 0.03)
        service.reload()
        assert client.ask(b"/livez")[0] == 200 and service.entry()["status"] == "pass"
    check_gone(service)


@pytest.mark.parametrize("delay", [number * (0.01 if LONG else 0.04) for number in range(40 if LONG else 8)])
def test_an_end_at_any_moment_of_a_reload_is_a_good_one(service, delay):
    service.hang_up()
    time.sleep(delay)
    check_gone(service)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_last_requests_are_finished_is_not_lost(waiting, number):
    service, client, held = waiting
    service.configure(query_timeout=0.1)
    service.hang_up()
    wait_for(lambda: service.count("service_reloading"), "the reload to begin")
    service.process.send_signal(number)
    held.close()
    assert client.answer()[0] == 200
    if number == signal.SIGTERM:
        assert service.process.wait(DEADLINE) == 0 and service.count("service_stopped") == 1
    else:
        wait_for(lambda: service.count("service_started") == 3, "the further reload")


# What belongs to the process

def kernel():
    return tuple(map(int, os.uname().release.split(".")[:2]))


def test_nobody_else_ever_holds_the_lock_of_the_pid_file(service):
    seen, path = set(), service.folder / "service.pid"
    with repeatedly(lambda: seen.add((supervision.lock_holder(str(path)), path.read_text()))):
        for _ in range(10):
            service.reload()
    pid = service.process.pid
    assert seen - {(None, "%d\n" % pid)} == {(pid, "%d\n" % pid)}
    assert len(seen) == 1 or kernel() < (5, 11)     # which drops the lock for a moment


def test_ten_reloads_leave_nothing_behind(service):
    with Client(service) as client:
        assert client.ask(b"/metrics")[0] == 200
        before = service.holdings()
        for _ in range(10):
            service.reload()
            assert client.ask(b"/metrics")[0] == 200
        wait_for(lambda: service.holdings() == before, "all to be closed")
    assert not children(service)


# TLS

@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Two files of a certificate and its key."""
    folder = tmp_path_factory.mktemp("pairs")
    return [make_certificate(folder / name, "DNS:localhost", "IP:127.0.0.1") for name in ("one", "two")]


@pytest.fixture
def secure(make, pairs, tmp_path):
    (tmp_path / "pair").write_text(pairs[0].read_text())
    service = make(tls_cert=tmp_path / "pair").start()
    service.pair = tmp_path / "pair"
    return service


def trust(pair):
    return ssl.create_default_context(cafile=str(pair))


def test_a_renewed_certificate_is_served_after_it(secure, pairs):
    with Client(secure, trust(pairs[0])) as client:
        assert client.ask(b"/livez")[0] == 200
    secure.pair.write_text(pairs[1].read_text())
    secure.reload()
    with Client(secure, trust(pairs[1])) as client:
        assert client.ask(b"/livez")[0] == 200
    with pytest.raises(ssl.SSLError):
        Client(secure, trust(pairs[0]))


def test_a_bad_certificate_is_refused_and_the_old_one_served(secure, pairs):
    secure.pair.write_text("nonsense")
    assert secure.refuse().startswith("METRICS_TLS_CERT: %s cannot be used: %s has no certificate" % (secure.pair, secure.pair))
    with Client(secure, trust(pairs[0])) as client:
        assert client.ask(b"/livez")[0] == 200


def test_a_kept_tls_connection_hears_that_it_ends(secure, pairs):
    with Client(secure, trust(pairs[0])) as client:
        assert client.ask(b"/livez")[:2] == (200, None)
        secure.hang_up()
        wait_for(lambda: client.ask(b"/livez")[1] == "close", "the notice")
        assert client.file.read() == b""
    wait_for(lambda: secure.count("service_started") == 2, "the reload")


def test_tls_connections_that_are_at_no_request_do_not_hinder_it(secure, pairs):
    with Client(secure) as silent, Client(secure) as half, Client(secure, trust(pairs[0])) as leaving:
        half.send(b"\x16\x03\x01")
        leaving.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert leaving.answer()[1] == "close"
        secure.reload()
        assert [client.file.read() for client in (silent, half, leaving)] == [b"", b"", b""]


def test_an_idle_tls_connection_ends_without_a_torn_one(secure, pairs):
    with Client(secure, trust(pairs[0])) as client:
        assert client.ask(b"/livez")[0] == 200
        secure.reload()
        assert client.file.read() == b""    # by close_notify: Python 3.8 up would raise for a bare end


def test_tls_can_be_switched_on_and_plain_connections_hear_that_they_end(service, pairs):
    with Client(service) as client:
        assert client.ask(b"/livez")[1] is None
        service.configure(tls_cert=pairs[0])
        service.hang_up()
        wait_for(lambda: service.count("service_started") == 2, "the reload")
        assert client.ask(b"/livez")[:2] == (200, "close")
        assert client.file.read() == b""
    assert service.address().startswith("https:") and service.get("/livez")[0] == 200


# Sockets handed over by whoever starts the service

def handed(service, whose="ours", count=1):
    return service.start(wait=False, command=(sys.executable, "-c", LAUNCHER, whose, str(count)) + service.command())


def given_port(service):
    with open("/proc/%d/environ" % service.process.pid) as file:
        return int(re.search(r"GIVEN=(\d+)", file.read()).group(1))


def test_a_socket_handed_over_is_served_and_kept_by_reloads(make):
    service = handed(make())
    wait_for(service.address, "the service to start")
    assert service.port == given_port(service)
    with Client(service) as client:
        assert client.ask(b"/livez")[0] == 200
        for _ in range(2):
            service.reload()
            assert client.ask(b"/livez")[0] == 200 and service.port == given_port(service)


def test_a_socket_for_another_process_is_left_alone(make):
    service = handed(make(), "another's")
    wait_for(service.address, "the service to start")
    assert service.port != given_port(service) and service.get("/livez")[0] == 200


@pytest.mark.parametrize("whose, count, words", [
    ("silent", 1, "descriptor 3 of LISTEN_FDS is no listening TCP socket; give it by ListenStream=ADDRESS:PORT"),
    ("ours", 2, "descriptor 4 of LISTEN_FDS is no "), ("ours", "x", "LISTEN_FDS='x' is no number of descriptors")])
def test_what_cannot_be_served_on_is_refused(make, whose, count, words):
    service = handed(make(), whose, count)
    assert service.process.wait(DEADLINE) == 1
    assert [line for line in service.text().splitlines() if line.startswith("error: ")][0].startswith("error: " + words)


# Without a PID file

def test_a_demo_takes_a_lost_terminal_for_the_end(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "METRICS_PORT": "0"}
    with subprocess.Popen([sys.executable, str(ROOT / "metrics_service.py"), "--demo"], env=env, stdout=subprocess.PIPE,
                          universal_newlines=True) as demo:
        assert any(line.startswith("demo: open ") for line in demo.stdout)
        demo.send_signal(signal.SIGHUP)
        assert "service_stopping signal=SIGHUP" in demo.stdout.read()
    assert (demo.returncode, list(scratch.iterdir())) == (0, [])


# Under load

class Load(threading.Thread):
    """A client that asks RATE times a second, on one connection as long as that is kept, or on a new one each time."""

    def __init__(self, service, over, kept, context=None):
        super().__init__()
        self.service, self.over, self.kept, self.context = service, over, kept, context
        self.answered, self.failed, self.announced = 0, [], 0

    def run(self):
        client, began = None, time.monotonic()
        while not self.over.is_set():
            try:
                client = client or Client(self.service, self.context)
                status, connection, _ = client.ask(b"/metrics")
                assert status == 200
                self.answered += 1
                self.announced += self.kept and connection == "close"
                if connection or not self.kept:
                    client = client.close()
            except Exception as error:  # whatever it is, a client was disappointed
                self.failed.append(repr(error))
                client = None
            time.sleep(max(0, began + self.answered / RATE - time.monotonic()))


@pytest.mark.parametrize("place", ["plain", "TLS"])
def test_under_load_no_request_fails(make, pairs, place):
    service = make(**{"tls_cert": pairs[0]} if place == "TLS" else {}).start()
    over, context = threading.Event(), trust(pairs[0]) if place == "TLS" else None
    clients = [Load(service, over, kept, context) for kept in (True, True, False, False)]
    for client in clients:
        client.start()
    try:
        for _ in range(RELOADS):
            service.reload()
    finally:
        over.set()
        for client in clients:
            client.join()
    assert [client.failed for client in clients] == [[]] * 4
    assert all(client.answered > RELOADS for client in clients)
    announced = [client.announced for client in clients[:2]]    # more often to one that comes back while the end is announced
    assert min(announced) >= RELOADS if place == "TLS" else announced == [0, 0]
