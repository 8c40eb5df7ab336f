#!/usr/bin/env python3
"""The service under constant load for minutes or hours, reloaded and restarted meanwhile: what it lost, what it kept.

    python3 tests/bench/soak.py [--minutes N] [--reload-every S] [--restart-every S] [--rate R] [--writes W]

A copy of the product in a scratch folder is started by restart_service.sh. Half of the clients open a connection for each
request, half keep theirs. Every answer must have status 200, be JSON and as long as it says. A kept connection may end only
with an answer that said `Connection: close`; any other end counts as a cut. Prints a row each 15 s, then the totals.
Exit codes: 0 nothing failed, every reload proven; 1 otherwise. A connection refused while a restart has the port closed is
counted, but no failure.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 5             # of each kind
PATIENCE = 10           # s for a connection, and for each part of an answer
PROOF_LIMIT = 30        # s for a reload or a restart to show that the new instance answers
ROW = 15                # s between two rows
TOLD = 2                # failures of each kind told one by one
PROBE_PAUSE = 0.002     # s between two tries of the port during a restart: what its closed time is good to
PATHS = ("/metrics", "/livez", "/metrics", "/readyz", "/metrics?history=672", "/livez")
KINDS = ("new", "kept")
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")
EXCUSED = "refused in a restart"

Usage = collections.namedtuple("Usage", "mebibytes threads descriptors")


class Failure(Exception):
    """Why the run cannot go on, in one line."""


class Fault(Exception):
    """A request that failed: the kind of failure, and what was seen."""


class Tally:
    """What the clients count, together."""

    def __init__(self):
        self.lock = threading.Lock()
        self.made, self.failed, self.announced = collections.Counter(), collections.Counter(), 0
        self.slowest, self.row_slowest = 0.0, 0.0     # s
        self.told = []
        self.restarting = False

    def answered(self, kind, seconds, closes):
        with self.lock:
            self.made[kind] += 1
            self.announced += kind == "kept" and closes
            self.slowest, self.row_slowest = max(self.slowest, seconds), max(self.row_slowest, seconds)

    def lost(self, kind, reason, detail):
        with self.lock:
            self.made[kind] += 1
            if self.restarting:
                reason += " in a restart"
            self.failed[kind, reason] += 1
            if reason != EXCUSED and self.failed[kind, reason] <= TOLD:
                self.told.append("%s %s, %s: %s" % (time.strftime("%H:%M:%S"), kind, reason, detail))

    def failures(self):
        """How many requests failed without excuse."""
        with self.lock:
            return sum(count for (_, reason), count in self.failed.items() if reason != EXCUSED)

    def row(self):
        """(requests, failures, slowest answer in s since the last row)"""
        failures = self.failures()
        with self.lock:
            slowest, self.row_slowest = self.row_slowest, 0.0
            return sum(self.made.values()), failures, slowest


def receive(sock):
    data = sock.recv(1 << 18)
    if not data:
        raise Fault("cut", "the connection ended before the answer did")
    return data


def exchange(sock, path, last=False):
    """One request: the document, and whether the answer announces the connection's end. last asks for that end. Raises Fault."""
    close = "Connection: close\r\n" if last else ""
    sock.sendall(("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n" % (path, close)).encode())
    data = receive(sock)
    while b"\r\n\r\n" not in data:
        data += receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not length:
        raise Fault("status", "%s answers %r, %r" % (path, head.partition(b"\r\n")[0], body[:200]))
    while len(body) < int(length.group(1)):
        body += receive(sock)
    if len(body) > int(length.group(1)) or last and sock.recv(1):
        raise Fault("length", "%s has more than its %s bytes" % (path, length.group(1).decode()))
    try:
        return json.loads(body.decode("utf-8")), b"\r\nConnection: close" in head
    except ValueError as error:
        raise Fault("malformed", "%s: %s" % (path, error))


@contextlib.contextmanager
def faults():
    """Turns what the network does into Fault."""
    try:
        yield
    except ConnectionRefusedError as error:
        raise Fault("refused", error)
    except socket.timeout:
        raise Fault("timeout", "no answer within %d s" % PATIENCE)
    except OSError as error:
        raise Fault("cut", error)


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(port, path):
    """The document of one request on a connection of its own. Raises Fault."""
    with faults(), connect(port) as sock:
        return exchange(sock, path, last=True)[0]


class Client(threading.Thread):
    """Asks at a steady pace until told to stop; what waited too long is not caught up."""

    def __init__(self, kind, port, pace, tally, stopping):
        super().__init__(daemon=True)
        self.kind, self.port, self.pace, self.tally, self.stopping = kind, port, pace, tally, stopping
        self.sock = None

    def drop(self):
        if self.sock:
            self.sock.close()
        self.sock = None

    def request(self, path):
        with faults():
            if self.sock is None:
                self.sock = connect(self.port)
            elif select.select([self.sock], [], [], 0)[0]:
                raise Fault("cut while idle", "the connection ended between two requests")
            closes = exchange(self.sock, path, last=self.kind == "new")[1]
        if closes:
            self.drop()
        return closes

    def run(self):
        due, turn = time.monotonic(), 0
        while not self.stopping.wait(max(0, due - time.monotonic())):
            due, turn = max(due + self.pace, time.monotonic()), turn + 1
            began = time.monotonic()
            try:
                closes = self.request(PATHS[turn % len(PATHS)])
                self.tally.answered(self.kind, time.monotonic() - began, closes)
            except Fault as fault:
                self.tally.lost(self.kind, *fault.args)
                self.drop()
        self.drop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Product:
    """A copy of the product in a folder, and the service that restart_service.sh runs from there."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        for path in ROOT.iterdir():
            if path.suffix in (".py", ".sh", ".sql"):
                shutil.copy(str(path), str(folder))
        (folder / "metrics.env").write_text(
            "METRICS_DB_PATH=shipments.db\nMETRICS_LOG_FILE=metrics.log\nMETRICS_PORT=%d\n" % self.port)
        self.tool("seed.py", "shipments.db", "--rows", "10000")

    def tool(self, *command):
        """Runs a tool to its end."""
        with self.running(*command) as process:
            process.wait()
        if process.returncode:
            raise Failure("%s leaves with %d: %s" % (" ".join(command), process.returncode, self.said(command)))

    @contextlib.contextmanager
    def running(self, *command):
        """A tool as a process of its own session, ended with the block. A Ctrl-C is ours, and must not cut a restart in two."""
        program = ["bash"] if command[0].endswith(".sh") else [sys.executable]
        with (self.folder / (command[0] + ".out")).open("w") as output:
            process = subprocess.Popen(program + list(command), cwd=str(self.folder), stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, start_new_session=True,
                                       env={"PATH": os.environ["PATH"], "PYTHON": sys.executable})
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def said(self, command):
        return (self.folder / (command[0] + ".out")).read_text()[-500:]

    def pid(self):
        return int((self.folder / "metrics_service.pid").read_text())

    def usage(self):
        """The Usage of the service's process. Raises Failure when there is none."""
        try:
            process = Path("/proc/%d" % self.pid())
            lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            return Usage(int(lines["VmRSS"].split()[0]) / 1024, int(lines["Threads"]), len(list((process / "fd").iterdir())))
        except (OSError, ValueError, KeyError) as error:
            raise Failure("the service is gone: %s\n%s" % (error, (self.folder / "metrics.log").read_text()[-1000:]))

    def instance(self):
        return ask(self.port, "/livez")["instance"]

    def reload(self):
        """Sends SIGHUP; seconds until another instance answered. Raises Failure when none did."""
        before, began = self.instance(), time.monotonic()
        os.kill(self.pid(), signal.SIGHUP)
        while time.monotonic() < began + PROOF_LIMIT:
            with contextlib.suppress(Fault):
                if self.instance() != before:
                    return time.monotonic() - began
            time.sleep(0.02)
        raise Failure("no new instance %d s after SIGHUP\n%s" % (
            PROOF_LIMIT, (self.folder / "metrics.log").read_text()[-1000:]))

    def restart(self, tally):
        """Restarts the service; seconds for which its port took no connection."""
        tally.restarting, closed, since = True, 0.0, None
        command = "restart_service.sh", "restart"
        with self.running(*command) as process:
            while process.poll() is None or since:
                try:
                    connect(self.port).close()
                    closed += time.monotonic() - since if since else 0.0
                    since = None
                except OSError:  # refused, or reset in the queue of a listener that was closed
                    since = since or time.monotonic()
                    if process.poll() or time.monotonic() > since + PROOF_LIMIT:
                        break
                time.sleep(PROBE_PAUSE)
        tally.restarting = False
        if process.returncode:
            raise Failure("restart_service.sh leaves with %d: %s" % (process.returncode, self.said(command)))
        return closed


@contextlib.contextmanager
def load(product, rate, tally):
    """Keeps the clients asking while the block runs."""
    stopping, pace = threading.Event(), len(KINDS) * CLIENTS / rate
    clients = [Client(kind, product.port, pace, tally, stopping) for kind in KINDS for _ in range(CLIENTS)]
    for client in clients:
        client.start()
        time.sleep(pace / len(clients))  # so that they do not ask all at once
    try:
        yield
    finally:
        stopping.set()
        for client in clients:
            client.join()


def show_row(began, product, tally, reloads, closed):
    usage, (requests, failures, slowest) = product.usage(), tally.row()
    print("%7d %8.1f %8d %12d %9d %9d %9.0f %8d %9d" % (
        time.monotonic() - began, usage.mebibytes, usage.threads, usage.descriptors, requests, failures, slowest * 1000,
        len(reloads), len(closed)), flush=True)


def soak(product, options, tally):
    """The seconds of each reload, and those for which each restart closed the port."""
    print("      s      MiB  threads  descriptors  requests  failures  worst ms  reloads  restarts", flush=True)
    reloads, closed, began = [], [], time.monotonic()
    due = {"row": 0, "reload": options.reload_every or float("inf"), "restart": options.restart_every or float("inf")}
    while time.monotonic() < began + options.minutes * 60:
        passed = time.monotonic() - began
        if passed >= due["reload"]:
            reloads.append(product.reload())
            due["reload"] += options.reload_every
        if passed >= due["restart"]:
            closed.append(product.restart(tally))
            due["restart"] += options.restart_every
        if passed >= due["row"]:
            show_row(began, product, tally, reloads, closed)
            due["row"] += ROW
        time.sleep(0.05)
    show_row(began, product, tally, reloads, closed)
    return reloads, closed


def show_totals(tally, reloads, closed, before, after):
    print("\n%-28s %10s %10s" % (("requests",) + KINDS))
    print("%-28s %10d %10d" % (("made",) + tuple(tally.made[kind] for kind in KINDS)))
    for reason in sorted({reason for _, reason in tally.failed}):
        print("%-28s %10d %10d" % ((reason,) + tuple(tally.failed[kind, reason] for kind in KINDS)))
    print("%-28s %10s %10d" % ("closed with notice", "", tally.announced))
    print("\nfailed %d, slowest answer %.0f ms" % (tally.failures(), tally.slowest * 1000))
    if reloads:
        print("reloads proven by a new instance: %d, from signal to proof at most %.2f s" % (len(reloads), max(reloads)))
    if closed:
        print("restarts: %d, port closed for %s s in turn" % (len(closed), " ".join("%.3f" % seconds for seconds in closed)))
    print("at rest before: %.1f MiB, %d threads, %d descriptors" % before)
    print("at rest after:  %.1f MiB, %d threads, %d descriptors" % after)
    for line in tally.told:
        print(line)


def rest(product, like=None):
    """The Usage without load: once the descriptors are back at those of `like`, at the latest after PATIENCE."""
    product.instance()
    end = time.monotonic() + PATIENCE
    while like and product.usage().descriptors > like.descriptors and time.monotonic() < end:
        time.sleep(0.1)
    return product.usage()


def run(folder, options):
    product, tally = Product(folder), Tally()
    try:
        product.tool("restart_service.sh", "start")
        before = rest(product)
        live = "seed.py", "shipments.db", "--live", "--rate", str(options.writes)
        with product.running(*live), load(product, options.rate, tally):
            reloads, closed = soak(product, options, tally)
        show_totals(tally, reloads, closed, before, rest(product, before))
    finally:
        product.tool("restart_service.sh", "stop")
    return 1 if tally.failures() else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--reload-every", type=float, default=0, metavar="S", help="seconds between two SIGHUPs (0: none)")
    parser.add_argument("--restart-every", type=float, default=0, metavar="S", help="seconds between two restarts (0: none)")
    parser.add_argument("--rate", type=float, default=150, help="requests a second of all clients together (150)")
    parser.add_argument("--writes", type=float, default=5, help="changes of the database a second (5)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the service ends with us
    folder = Path(tempfile.mkdtemp(prefix="metrics_soak_"))
    try:
        return run(folder, options)
    except (Failure, Fault) as failure:
        print("soak: %s" % failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
