"""What slow clients can do to the service, which is nothing: hundreds of all kinds hang on, plain and over TLS, and good ones are
answered. One siege is fought for all the tests that look at what it left; LONG_TESTS has three, of up to 1,000 clients each.
"""

import collections
import contextlib
import json
import os
import re
import resource
import socket
import sqlite3
import ssl
import time

import pytest

from conftest import DEADLINE, LONG, Service, make_certificate, make_database, wait_for

ROUND = 0.25         # s between two looks at the slow clients; each second one they send a byte
PATIENCE = 60 if LONG else 30  # s until all that slow clients took is given back
SLACK = 2            # s that the end of a wait may come late on a busy machine
GOOD = 1             # s within which a good client has its answer
THREADS = 64         # at most, whatever comes
MEMORY = 8 << 20     # bytes that may stay with the process, and for each client: an allocator gives back what it likes
CLIENT_MEMORY = 20 << 10
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"GET /livez HTTP/1.1\r\nHost: a\r\nX: "
POST = b"POST /livez HTTP/1.1\r\nHost: a\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the first 11 of the 517 bytes of a TLS handshake

# Bytes sent at once, and those sent at times; seconds, from and to, in which the end comes; the statuses that may come before it
Kind = collections.namedtuple("Kind", "first drip ends answers")
PLAIN = {
    "silence": Kind(b"", b"", (10, 10), [[]]),
    "half a head": Kind(HALF, b"y", (10, 10), [[408]]),
    "half a request line": Kind(b"GET /li", b"", (10, 10), [[408]]),
    "half a body": Kind(POST + b"Content-Length: 1000\r\n\r\n", b"x", (10, 10), [[408]]),
    "half a chunk": Kind(POST + b"Transfer-Encoding: chunked\r\n\r\n100\r\n", b"x", (10, 10), [[408]]),
    "a request and silence": Kind(LIVE, b"", (15, 15), [[200]]),
    "a request and half a head": Kind(LIVE + HALF, b"y", (10, 10), [[200, 408]]),
    "a request and empty lines": Kind(LIVE, b"\r\n", (10, 15), [[200], [200, 408]]),
    "empty lines": Kind(b"", b"\r\n", (10, 10), [[], [408]]),
    "answers not read": Kind(METRICS * 2000, b"", None, None),
}
SECURE = {
    "no handshake": Kind(b"", b"", (10, 10), [[]]),
    "half a handshake": Kind(HELLO, b"\0", (10, 10), [[]]),
    "silence": Kind(b"", b"", (10, 10), [[]]),
    "half a head": Kind(HALF, b"y", (10, 10), [[408]]),
    "half a body": Kind(POST + b"Content-Length: 1000\r\n\r\n", b"x", (10, 10), [[408]]),
    "a request and silence": Kind(LIVE, b"", (15, 15), [[200]]),
    "a request and half a head": Kind(LIVE + HALF, b"y", (10, 10), [[200, 408]]),
    "answers not read": Kind(METRICS * 2000, b"", None, None),
}


class Slow:
    """A client of one kind, over TLS where a context is given. `seconds` is when its end came."""

    def __init__(self, address, kind, context=None):
        self.kind, self.received, self.seconds = kind, b"", None
        self.socket = socket.socket()
        if kind.ends is None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(DEADLINE)
        self.since = time.monotonic()
        self.socket.connect(address)
        if context:
            self.socket = context.wrap_socket(self.socket)
        self.socket.setblocking(False)
        self.send(kind.first)

    def send(self, data):
        with contextlib.suppress(OSError):  # no room, or gone
            self.socket.send(data)

    def look(self):
        """Reads what has come, but for a client that does not."""
        if self.seconds is not None or self.kind.ends is None:
            return
        try:
            data = self.socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:  # a reset, or TLS that ends without saying so
            data = b""
        self.received += data
        if not data:
            self.seconds = time.monotonic() - self.since

    def statuses(self):
        return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d+) ", self.received, re.MULTILINE)]


def limit_descriptors(number):
    """For preexec_fn: the soft limit."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (number, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def ask(service, data):
    """(status, body, seconds) of one request on a connection of its own."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.create_connection((service.host, service.port), DEADLINE))
        if service.context:
            client = stack.enter_context(service.context.wrap_socket(client, server_hostname=service.host))
        client.sendall(data)
        file = stack.enter_context(client.makefile("rb"))
        status = int(file.readline().split()[1])
        head = b"".join(iter(file.readline, b"\r\n"))
        body = file.read(int(re.search(rb"Content-Length: (\d+)", head).group(1)))
    return status, body, time.monotonic() - began


def start(folder, descriptors=4096, **settings):
    """A Service under this limit; its context is that of TLS clients, where it speaks TLS."""
    service = Service(folder, make_database(folder / "shipments.db"), **settings)
    service.start(preexec_fn=limit_descriptors(descriptors))
    service.context = ssl.create_default_context(cafile=settings["tls_cert"]) if "tls_cert" in settings else None
    assert ask(service, METRICS)[0] == 200  # opens what is opened once
    return service


def connections(service):
    """The block of that name, not from before this call: all who ask within a second have the same answer."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def block():
        document = json.loads(ask(service, METRICS)[1].decode())
        return document["connections"] if document["generated_at"] > now else None
    return wait_for(block, "the next second's figures")


Holdings = collections.namedtuple("Holdings", "threads descriptors memory")


def holdings(service):
    process = "/proc/%d/" % service.process.pid
    with open(process + "statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return Holdings(len(os.listdir(process + "task")), len(os.listdir(process + "fd")), resident)


class Siege:
    """Slow clients of all kinds hang on to a service until it is rid of them; what was seen of it meanwhile."""

    def __init__(self, service, kinds, count):
        self.service, self.before = service, holdings(service)
        self.good, self.threads, self.rested = [], 0, None
        address = service.host, service.port
        plain = ("no handshake", "half a handshake")
        self.clients = [(name, Slow(address, kinds[name], None if name in plain else self.context()))
                        for _ in range(count // len(kinds)) for name in kinds]
        wait_for(lambda: holdings(service).descriptors > self.before.descriptors + 0.9 * len(self.clients), "all to be let in")

    def context(self):
        """What a slow TLS client needs, without the cost of verifying."""
        if not self.service.context:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def round(self, number):
        for _, client in self.clients:
            client.look()
            if number % 2 and client.kind.drip:
                client.send(client.kind.drip)
        status, _, seconds = ask(self.service, LIVE if number % 2 else METRICS)
        self.good.append((status, seconds))
        now = holdings(self.service)
        self.threads = max(self.threads, now.threads)
        if self.rested is None and now.descriptors <= self.before.descriptors and now.threads <= self.before.threads:
            self.rested = now

    def over(self):
        return self.rested and all(client.seconds or client.kind.ends is None for _, client in self.clients)


def fight(sieges):
    """All sieges at once, round by round."""
    began = time.monotonic()
    number = 0
    while time.monotonic() < began + PATIENCE and not all(siege.over() for siege in sieges):
        number += 1
        for siege in sieges:
            siege.round(number)
        time.sleep(max(0, began + number * ROUND - time.monotonic()))


@pytest.fixture(scope="module", params=[120, 500, 1000] if LONG else [120])
def sieges(request, tmp_path_factory):
    """The sieges of a plain and of a TLS service, over; the clients are still connected on their side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = tmp_path_factory.mktemp("plain")
    secure = tmp_path_factory.mktemp("secure")
    services = [start(folder), start(secure, tls_cert=make_certificate(secure / "cert.pem", "IP:127.0.0.1"))]
    fought = {"plain": Siege(services[0], PLAIN, request.param), "TLS": Siege(services[1], SECURE, request.param)}
    fight(list(fought.values()))
    yield fought
    for siege in fought.values():
        siege.service.end()
        for _, client in siege.clients:
            client.socket.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


both = pytest.mark.parametrize("place", ["plain", "TLS"])


@both
def test_slow_clients_keep_no_good_one_waiting(sieges, place):
    assert {status for status, _ in sieges[place].good} == {200}
    assert max(seconds for _, seconds in sieges[place].good) < GOOD


@both
def test_slow_clients_take_no_threads(sieges, place):
    assert sieges[place].threads <= THREADS


@both
def test_all_is_given_back_while_slow_clients_stay_connected(sieges, place):
    siege = sieges[place]
    assert siege.rested, "%s at the end, %s before" % (holdings(siege.service), siege.before)
    assert siege.rested.memory <= siege.before.memory + MEMORY + CLIENT_MEMORY * len(siege.clients)
    assert connections(siege.service)["open"] == 1


@pytest.mark.parametrize("place, name", [(place, name) for place, kinds in (("plain", PLAIN), ("TLS", SECURE)) for name in kinds
                                         if kinds[name].ends])
def test_each_kind_of_slow_client_is_ended_in_its_time(sieges, place, name):
    for _, client in (pair for pair in sieges[place].clients if pair[0] == name):
        assert client.seconds and client.kind.ends[0] - 0.5 < client.seconds < client.kind.ends[1] + SLACK, client.received
        assert client.statuses() in client.kind.answers
        assert 408 not in client.statuses() or client.received.count(b"\r\nConnection: close\r\n") == 1


@both
def test_slow_clients_are_counted_and_no_errors(sieges, place):
    siege = sieges[place]
    counts, number = connections(siege.service), collections.Counter(name for name, _ in siege.clients)
    assert counts["write_timeouts_total"] == number["answers not read"]
    assert counts["idle_timeouts_total"] >= number["a request and silence"]
    assert counts["head_timeouts_total"] >= number["half a head"] + number["half a body"] + number["a request and half a head"]
    assert (counts["evicted_total"], counts["refused_total"]) == (0, 0)
    assert [line.split()[2] for line in siege.service.text().splitlines()] == ["service_started"]


@pytest.fixture
def launch_limited(tmp_path):
    """start() in a folder of the test; the services end with it."""
    services = []

    def launch(**options):
        services.append(start(tmp_path, **options))
        return services[-1]
    yield launch
    for service in services:
        service.end()


def alive(client):
    """Whether the service still holds the connection of a Slow that has had no answer."""
    client.look()
    return client.seconds is None


def test_when_full_the_connection_that_waited_longest_gives_way(launch_limited):
    service = launch_limited(descriptors=160)
    limit = connections(service)["limit"]
    with contextlib.ExitStack() as stack:
        crowd = []
        for number in range(3 * limit):
            crowd.append(Slow((service.host, service.port), PLAIN["half a head"]))
            stack.callback(crowd[-1].socket.close)
            if number % 32 == 0:    # its answer comes after the workers have read those before it: who waits unread cannot give way
                ask(service, LIVE)
        for _ in range(10):
            status, _, seconds = ask(service, LIVE)
            assert status == 200 and seconds < GOOD
        held = [alive(client) for client in crowd]
        after = connections(service)
    # The freshest, but for those that gave way to ask(); one whose bytes a worker reads at that moment is passed over.
    assert not any(held[:limit]) and all(held[-limit // 2:]) and limit - 15 < sum(held) <= limit
    assert limit < 160 and limit - 2 <= after["open"] <= limit
    assert after["evicted_total"] >= 2 * limit and after["refused_total"] == 0


def test_who_asked_lately_outlasts_who_came_earlier(launch_limited):
    service = launch_limited(descriptors=160)
    limit = connections(service)["limit"]
    address = service.host, service.port
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(socket.create_connection(address, DEADLINE))
        for _ in range(4):
            for _ in range(limit // 2):
                stack.callback(Slow(address, PLAIN["half a head"]).socket.close)
            keeper.sendall(LIVE)
            assert keeper.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert connections(service)["evicted_total"] >= limit // 2


def processor_seconds(service):
    """User and system time of the process: fields 14 and 15 of proc(5)."""
    with open("/proc/%d/stat" % service.process.pid) as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_the_service_waits_says_so_once_and_recovers(launch_limited):
    service = launch_limited()
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    wait_for(lambda: connections(service)["open"] == 1, "the connections of the start to go")
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection((service.host, service.port), DEADLINE)) for _ in range(20)]
        for client in waiting:
            client.sendall(LIVE)
        wait_for(lambda: "accept_failed reason=descriptors" in service.text(), "the log line")
        used, began = processor_seconds(service), time.monotonic()
        time.sleep(1.5)  # not for something to come, but to see what it costs
        assert processor_seconds(service) - used < 0.2 * (time.monotonic() - began)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        for client in waiting:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert service.text().count("accept_failed") == 1 and service.process.poll() is None


def settled(folder):
    """The names in a folder, once they stay as they are for a moment."""
    names = set(os.listdir(folder))
    while True:
        time.sleep(0.3)
        before, names = names, set(os.listdir(folder))
        if names == before:
            return names


def test_with_one_descriptor_left_clients_are_served_one_after_the_other(launch_limited):
    service = launch_limited()
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    folder = "/proc/%d/fd" % service.process.pid
    assert ask(service, LIVE)[0] == 200             # what is opened for the first request is open
    at_rest = settled(folder)
    free = next(number for number in range(len(at_rest) + 1) if str(number) not in at_rest)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (free + 1, limits[1]))
    for _ in range(5):
        assert ask(service, LIVE)[0] == 200
        wait_for(lambda: set(os.listdir(folder)) == at_rest, "the connection to go")
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
    assert connections(service)["evicted_total"] == 0 and "accept_failed" not in service.text()


@contextlib.contextmanager
def locked(path):
    """While it is open, a writer holds the database."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_a_locked_database_holds_up_nobody_who_does_not_need_it(launch_limited, tmp_path):
    service = launch_limited(query_timeout=2, stale_seconds=0)
    with contextlib.ExitStack() as stack:
        with locked(tmp_path / "shipments.db"):
            clients = [stack.enter_context(socket.create_connection((service.host, service.port), DEADLINE)) for _ in range(60)]
            for client in clients:
                client.sendall(METRICS)
            for _ in range(20):
                status, _, seconds = ask(service, LIVE)
                assert status == 200 and seconds < GOOD
            for client in clients:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        for client in clients:
            client.settimeout(DEADLINE)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_scraper_has_its_answer_before_it_gives_up(launch, database):
    service = launch(database, query_timeout=5, stale_seconds=0)
    with locked(database):
        began = time.monotonic()
        status, _, body = service.request("/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "1"})
        assert time.monotonic() - began < 1
    assert (status, json.loads(body.decode())["reason"]) == (503, "locked")
