#!/usr/bin/env python3
"""Requests a second, latency, memory and start of the service beside other Python servers, in one run; judges nothing.

    python3 tests/bench/throughput.py [--seconds S] [--rounds N] [--peers-python PATH] [--load wrk|own] [--json]

Every server runs on one core, the load and the writer on another. All servers are up at once and take turns, round by round,
so that a slow moment of the machine meets all; what is printed are medians over the rounds, except the worst answer and the
failures, which are those of all rounds. Answers have the same number of bytes everywhere. `cpu` is the server's share of its
core: far below 100 % something else was the limit. `others` is what processes that are not ours took from both cores: on a
busy machine look at the requests for each CPU second, which noise hardly moves.
wrk is used where it is installed (it counts a stalled answer several times, for the requests that it held up), else the load
generator below. Latency at one connection is always by the latter.
"""

import argparse
import contextlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
CONNECTIONS = 16    # of the rounds
MANY = 64           # connections for the memory's second figure
SINGLE = 1          # s of each round with one connection
START_LIMIT = 20    # s for the first answer
STOP_LIMIT = 5      # s for a child to end by itself
PATIENCE = 2        # s after which an answer counts as failed, as in wrk
OURS = "metrics_service"

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
WRK_REPORT = """
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\n{"rate": %f, "p50": %f, "p95": %f, "p99": %f, "max": %f, "failed": %d}\\n',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""

# What the peers answer: plain SQL over the shipments for every request, or a body made once; as many bytes as the service's.
FIGURES = '''
import json
import os
import sqlite3

STATUSES = "SELECT status, count(*) FROM shipments GROUP BY status"
OVERDUE = """SELECT count(*) FROM shipments WHERE status NOT IN ('delivered', 'returned', 'cancelled')
             AND promised_at < strftime('%Y-%m-%dT%H:%M:%SZ', 'now')"""
CARRIERS = """SELECT carrier, count(*), sum(delivered_at <= promised_at), avg(julianday(delivered_at) - julianday(shipped_at))
              FROM shipments GROUP BY carrier"""
SIZE = int(os.environ["BODY_BYTES"])
FIXED = b"{}".ljust(SIZE)


def figures():
    connection = sqlite3.connect(os.environ["METRICS_DB_PATH"], timeout=5)
    try:
        document = {"by_status": dict(connection.execute(STATUSES).fetchall()),
                    "overdue": connection.execute(OVERDUE).fetchone()[0],
                    "by_carrier": connection.execute(CARRIERS).fetchall()}
    finally:
        connection.close()
    return json.dumps(document).encode().ljust(SIZE)
'''
STOCK = '''
import http.server
import os
import socketserver
import sys
from figures import FIXED, figures


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = sys.argv[1] == "fixed"    # without its stall, to see what the class itself costs

    def do_GET(self):
        body = FIXED if sys.argv[1] == "fixed" else figures()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):    # ThreadingHTTPServer, which Python 3.6 lacks
    daemon_threads = True


Server(("127.0.0.1", int(os.environ["METRICS_PORT"])), Handler).serve_forever()
'''
ASGI = '''
from figures import FIXED

HEAD = {"type": "http.response.start", "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(FIXED)).encode())]}
BODY = {"type": "http.response.body", "body": FIXED}


async def app(scope, receive, send):
    await send(HEAD)
    await send(BODY)
'''
FLASK = '''
import flask
from figures import figures

app = flask.Flask("peer")


@app.route("/metrics")
def metrics():
    return flask.Response(figures(), mimetype="application/json")
'''
APPS = {"figures.py": FIGURES, "stock.py": STOCK, "asgi_app.py": ASGI, "flask_app.py": FLASK, "report.lua": WRK_REPORT}

UVICORN = "uvicorn --loop uvloop --http httptools --no-access-log --log-level warning --port {port} asgi_app:app"
GUNICORN = "gunicorn --workers 1 --bind 127.0.0.1:{port} --log-level warning"
Recipe = namedtuple("Recipe", "name modules command")  # modules: what the peers' interpreter must have; None: runs on ours
RECIPES = (
    Recipe(OURS, None, [str(ROOT / "metrics_service.py")]),
    Recipe("http.server, SQL", None, ["stock.py", "sql"]),
    Recipe("http.server, fixed, no Nagle", None, ["stock.py", "fixed"]),
    Recipe("uvicorn, fixed", ("uvicorn", "uvloop", "httptools"), ["-m"] + UVICORN.split()),
    Recipe("Flask, gunicorn gthread, SQL", ("flask", "gunicorn"),
           ["-m"] + GUNICORN.split() + ["--worker-class", "gthread", "--threads", "4", "flask_app:app"]),
    Recipe("Flask, gunicorn sync, SQL", ("flask", "gunicorn"), ["-m"] + GUNICORN.split() + ["flask_app:app"]),
)

Load = namedtuple("Load", "rate p50 p95 p99 max failed")        # requests/s, ms
Usage = namedtuple("Usage", "cpu resident peak threads")        # seconds so far, MiB, MiB; all processes together
Round = namedtuple("Round", "load usage cpu others commits")    # cpu, others: shares; commits: a second, meanwhile


class Failure(Exception):
    """Why nothing can be measured, in one line."""


class Client:
    """A kept connection of the load generator, with one request under way. It never waits: not for the connection either."""

    def __init__(self, port, poller):
        self.poller, self.began = poller, time.perf_counter()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", port))
        self.poller.register(self.sock, select.EPOLLOUT)

    def ask(self):
        self.head, self.missing, self.closes = b"", None, False
        self.began = time.perf_counter()
        self.sock.send(REQUEST)

    def connected(self):
        """Raises the OSError of a refused connection."""
        self.sock.getpeername()
        self.poller.modify(self.sock, select.EPOLLIN)
        self.ask()

    def read(self):
        """Takes what has come; whether the answer is whole. ConnectionError if it is none or not 200."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionError("closed")
        if self.missing is None:
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return False
            head = head.lower()
            if not head.startswith(b"http/1.1 200 "):
                raise ConnectionError("not 200")
            self.closes = b"\r\nconnection: close" in head
            self.missing = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        self.missing -= len(data)
        return self.missing <= 0


class Drive:
    """The load: every connection asks again as soon as it is answered."""

    def __init__(self, port, connections):
        self.port, self.poller = port, select.epoll()
        self.clients, self.times, self.failed = {}, [], 0
        for _ in range(connections):
            self.connect()

    def connect(self):
        client = Client(self.port, self.poller)
        self.clients[client.sock.fileno()] = client

    def replace(self, client):
        del self.clients[client.sock.fileno()]
        client.sock.close()
        self.connect()

    def serve(self, client, events):
        try:
            if events & select.EPOLLOUT:
                client.connected()
            elif client.read():
                self.times.append(time.perf_counter() - client.began)
                if client.closes:
                    self.replace(client)
                else:
                    client.ask()
        except OSError:
            self.failed += 1
            self.replace(client)

    def run(self, seconds):
        """The Load of so many seconds."""
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            for descriptor, events in self.poller.poll(0.1):
                self.serve(self.clients[descriptor], events)
        ended = time.perf_counter()
        self.failed += sum(client.began < ended - PATIENCE for client in self.clients.values())
        ordered = sorted(self.times) or [seconds]
        shares = [ordered[int(share * (len(ordered) - 1))] * 1000 for share in (.5, .95, .99, 1)]
        return Load(len(self.times) / (ended - began), *shares, failed=self.failed)


def pin(core):
    """What a child runs before its program, to stay on the core."""
    return lambda: os.sched_setaffinity(0, {core})


started = set()  # PIDs of the children, each the leader of a session


@contextlib.contextmanager
def child(command, core=LOAD_CORE, **options):
    """A process in a session of its own, of which nothing is left after the block."""
    process = subprocess.Popen([str(word) for word in command], preexec_fn=pin(core), start_new_session=True,
                               stdin=subprocess.DEVNULL, universal_newlines=True, **options)
    started.add(process.pid)
    try:
        yield process
    finally:
        started.discard(process.pid)
        if process.returncode is None:
            process.terminate()
            end = time.monotonic() + STOP_LIMIT
            # Not reaped before its group is killed, so that the number cannot be another's meanwhile.
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) and time.monotonic() < end:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout:
            process.stdout.close()


def sessions(leaders):
    """The fields of /proc/PID/stat, from the state on, by /proc/PID, of all processes in the leaders' sessions."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[3]) in leaders:
                found[entry.parent] = fields
    return found


def cpu(processes):
    """CPU seconds that the processes of sessions() have used."""
    return sum(int(fields[11]) + int(fields[12]) for fields in processes.values()) / TICKS


def status(process):
    """The lines of /proc/PID/status by name."""
    return dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())


def foreign():
    """CPU seconds that processes other than ours and our children have used on our cores, give or take a constant."""
    names = {"cpu%d" % core for core in (SERVER_CORE, LOAD_CORE)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    busy = sum(int(field) for line in lines if line[0] in names for field in line[1:4]) / TICKS  # user, nice, system
    return busy - cpu(sessions(started)) - sum(os.times()[:4])  # the last: ours, and of the children that ended


def commits(database):
    """The number of commits in the database's life, from the file's header."""
    with open(str(database), "rb") as file:
        return int.from_bytes(file.read(28)[24:], "big")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server of a recipe on its core, with the ms from its start to its first whole answer."""

    def __init__(self, recipe, port, process, began, said):
        self.name, self.port, self.process = recipe.name, port, process
        while True:
            try:
                self.size = self.fetch()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > began + START_LIMIT:
                    raise Failure("%s does not answer; the last that it said: %s" % (self.name, said.read_text()[-500:]))
                time.sleep(0.001)
        self.start = (time.monotonic() - began) * 1000

    def fetch(self):
        """The bytes of one answer's body."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_LIMIT)
        try:
            client.request("GET", "/metrics")
            response = client.getresponse()
            body = response.read()
            if response.status != 200:
                raise Failure("%s answers %d: %r" % (self.name, response.status, body[:200]))
            return len(body)
        finally:
            client.close()

    def usage(self):
        processes = sessions({self.process.pid})
        lines = [status(process) for process in processes]
        resident, peak, threads = (sum(int(line[name].split()[0]) for line in lines) for name in ("VmRSS", "VmHWM", "Threads"))
        return Usage(cpu(processes), resident / 1024, peak / 1024, threads)


@contextlib.contextmanager
def serving(recipe, options):
    """The recipe's Server, until the end of the block."""
    port = free_port()
    python = sys.executable if recipe.modules is None else options.peers_python
    env = dict(os.environ, METRICS_DB_PATH=str(options.database), METRICS_PORT=str(port), BODY_BYTES=str(options.size),
               METRICS_PID_FILE="%s/%d.pid" % (options.folder, port))
    said, began = options.folder / ("%d.out" % port), time.monotonic()
    with said.open("w") as output, child([python] + [word.format(port=port) for word in recipe.command], SERVER_CORE, env=env,
                                         cwd=str(options.folder), stdout=output, stderr=subprocess.STDOUT) as process:
        yield Server(recipe, port, process, began, said)


def lacking(recipe, python):
    """Why the recipe cannot be followed, or None."""
    if recipe.modules is None:
        return None
    try:
        done = subprocess.run([python, "-c", "import " + ", ".join(recipe.modules)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, universal_newlines=True)
    except OSError as error:
        raise Failure("--peers-python %s cannot be run: %s" % (python, error.strerror))
    return done.stderr.splitlines()[-1] if done.returncode else None


def load_command(options, port, connections, seconds):
    if options.load == "own" or connections == 1:
        return [sys.executable, __file__, "--drive", port, connections, seconds]
    return ["wrk", "-t1", "-c%d" % connections, "-d%ds" % seconds, "--latency", "-s", options.folder / "report.lua",
            "http://127.0.0.1:%d/metrics" % port]


def measure(server, options, connections, seconds):
    """A Round of the server; its memory and threads are those near the end of the load, with all connections open."""
    began, before, noise, written = time.monotonic(), server.usage(), foreign(), commits(options.database)
    with child(load_command(options, server.port, connections, seconds), stdout=subprocess.PIPE) as load:
        time.sleep(.8 * seconds)
        during = server.usage()
        report = load.communicate(timeout=seconds + 30)[0].splitlines()[-1]
    passed, used = time.monotonic() - began, server.usage().cpu - before.cpu
    noise = max(0, foreign() - noise) / len({SERVER_CORE, LOAD_CORE})
    written = commits(options.database) - written
    return Round(Load(**json.loads(report)), during, used / passed, noise / passed, written / passed)


def median(values):
    return round(statistics.median(values), 3)


def summary(rounds, single, many):
    """The figures of one server, by name."""
    loads, singles = [each.load for each in rounds], [each.load for each in single]
    figures = {"requests_per_second": median(load.rate for load in loads),
               "requests_per_cpu_second": median(each.load.rate / max(each.cpu, .01) for each in rounds)}
    figures.update((name + "_ms", median(getattr(load, name) for load in loads)) for name in ("p50", "p95", "p99"))
    figures.update(
        max_ms=max(load.max for load in loads), failed=sum(load.failed for load in loads + singles) + many.load.failed,
        cpu=median(each.cpu for each in rounds), others=median(each.others for each in rounds),
        commits_per_second=median(each.commits for each in rounds),
        single_p50_ms=median(load.p50 for load in singles), single_p99_ms=median(load.p99 for load in singles),
        single_max_ms=max(load.max for load in singles),
        resident_mib=max(each.usage.resident for each in rounds), peak_mib=rounds[-1].usage.peak,
        threads=max(each.usage.threads for each in rounds),
        many=dict(many.load._asdict(), **many.usage._asdict()))
    return figures


def compare(recipes, options, writes):
    """The figures of all servers under so many writes a second, and how many times as many requests ours answers as each of the
    others: ratios by the second, cpu_ratios by the CPU second."""
    with contextlib.ExitStack() as running:
        servers = [running.enter_context(serving(recipe, options)) for recipe in recipes]
        if writes:
            running.enter_context(child([sys.executable, ROOT / "seed.py", options.database, "--live", "--rate", writes],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        rounds, single = ({server.name: [] for server in servers} for _ in range(2))
        for _ in range(options.rounds):
            for server in servers:
                rounds[server.name].append(measure(server, options, CONNECTIONS, options.seconds))
            for server in servers:
                single[server.name].append(measure(server, options, 1, SINGLE))
        many = {server.name: measure(server, options, MANY, options.seconds) for server in servers}
    ratios = {name: median(ours.load.rate / max(other.load.rate, 1) for ours, other in zip(rounds[OURS], rounds[name]))
              for name in rounds if name != OURS}
    figures = {name: summary(rounds[name], single[name], many[name]) for name in rounds}
    cheaper = {name: figures[OURS]["requests_per_cpu_second"] / figures[name]["requests_per_cpu_second"] for name in ratios}
    return {"writes_per_second": writes, "servers": figures, "ratios": ratios, "cpu_ratios": cheaper}


def starts(recipes, options):
    """Median ms from start to first answer, by server."""
    times = {recipe.name: [] for recipe in recipes}
    for _ in range(options.rounds):
        for recipe in recipes:
            with serving(recipe, options) as server:
                times[recipe.name].append(server.start)
    return {name: median(row) for name, row in times.items()}


def prepare(options):
    """Seeds the database, writes the peers' programs, learns how many bytes an answer has."""
    for name, text in APPS.items():
        (options.folder / name).write_text(text.lstrip())
    subprocess.check_call([sys.executable, str(ROOT / "seed.py"), str(options.database), "--rows", str(options.rows)],
                          stdout=subprocess.DEVNULL)
    with serving(RECIPES[0], options) as server:
        options.size = server.size


def run(options):
    """The whole result, ready for JSON."""
    prepare(options)
    absent = {recipe.name: lacking(recipe, options.peers_python) for recipe in RECIPES}
    recipes = [recipe for recipe in RECIPES if absent[recipe.name] is None]
    return {
        "python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version, "cores": len(CORES), "load": options.load,
        "rows": options.rows, "body_bytes": options.size, "rounds": options.rounds, "seconds": options.seconds,
        "absent": {name: reason for name, reason in absent.items() if reason},
        "start_ms": starts(recipes, options),
        "runs": [compare(recipes, options, writes) for writes in options.writes],
    }


def table(head, rows):
    print()
    for name, cells in [head] + rows:
        print("%-28s" % name + "".join("%10s" % (cell if isinstance(cell, (str, int)) else "%.2f" % cell) for cell in cells))


def show_run(run, start):
    rows = run["servers"].items()
    print("\n%d writes/s wanted" % run["writes_per_second"])
    table(("%d connections" % CONNECTIONS, "req/s|p50 ms|p95 ms|p99 ms|max ms|failed|cpu|req/cpu s|others|writes/s".split("|")), [
        (name, (round(of["requests_per_second"]), of["p50_ms"], of["p95_ms"], of["p99_ms"], of["max_ms"], of["failed"],
                "%.0f%%" % (of["cpu"] * 100), round(of["requests_per_cpu_second"]), "%.0f%%" % (of["others"] * 100),
                round(of["commits_per_second"])))
        for name, of in rows])
    table(("start; 1 connection; memory", "start ms|p50 ms|p99 ms|max ms|MiB at 16|peak|threads".split("|")), [
        (name, (round(start[name]), of["single_p50_ms"], of["single_p99_ms"], of["single_max_ms"], of["resident_mib"],
                of["peak_mib"], of["threads"])) for name, of in rows])
    table(("%d connections" % MANY, "req/s|p50 ms|p99 ms|max ms|MiB|peak|threads".split("|")), [
        (name, (round(of["rate"]), of["p50"], of["p99"], of["max"], of["resident"], of["peak"], of["threads"]))
        for name, of in ((name, of["many"]) for name, of in rows)])
    print()
    for name, ratio in run["ratios"].items():
        print("%s answers %.2f times as many as %s, %.2f times as many for each CPU second" % (
            OURS, ratio, name, run["cpu_ratios"][name]))


def show(result):
    print("Python {python}, SQLite {sqlite}, {cores} cores, load by {load}, {rows} rows, {body_bytes} bytes an answer, "
          "{rounds} rounds of {seconds} s".format(**result))
    if result["cores"] == 1:
        print("one core only: servers and load share it, so that rates are lower and ratios nearer to 1")
    for name, reason in result["absent"].items():
        print("absent: %s (%s)" % (name, reason))
    for run in result["runs"]:
        show_run(run, result["start_ms"])


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="of load in each round (4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each server has its turn (3)")
    parser.add_argument("--rows", type=int, default=10000, help="shipments in the database (10000)")
    parser.add_argument("--writes", type=int, nargs="+", default=[0, 200], help="changes a second meanwhile (0 200)")
    parser.add_argument("--peers-python", metavar="PATH", default=sys.executable,
                        help="the interpreter that has uvicorn, uvloop, httptools, flask, gunicorn; those it lacks are left out")
    parser.add_argument("--load", choices=("wrk", "own"), default="wrk" if shutil.which("wrk") else "own",
                        help="who makes the load (wrk where it is installed)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--drive", type=int, nargs=3, metavar=("PORT", "CONNECTIONS", "SECONDS"),
                        help="only be the load, and print its figures")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    if options.drive:
        port, connections, seconds = options.drive
        print(json.dumps(Drive(port, connections).run(seconds)._asdict()))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the children end with us
    os.sched_setaffinity(0, {LOAD_CORE})
    options.folder = Path(tempfile.mkdtemp(prefix="metrics_bench_"))
    options.database, options.size = options.folder / "shipments.db", 0
    try:
        result = run(options)
        if options.json:
            print(json.dumps(result, indent=1))
        else:
            show(result)
        return 0
    except Failure as failure:
        print("throughput: %s" % failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(str(options.folder), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
