#!/usr/bin/env python3
"""What the product costs, measured side by side in one run; prints tables, judges nothing.

    python3 tests/bench/bench.py [scrape|load|life] ... [--rows N ...] [--load-rows N] [--seconds S] [--keep FOLDER]

scrape  /metrics at each number of rows, without and with a writer of 200 changes a second: latency, CPU time, memory
load    seeding, importing, against a bare executemany of the same rows into the same table and indexes without triggers
life    start to first answer, CPU time of one health check
"""

import argparse
import contextlib
import csv
import http.client
import json
import os
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
COLUMNS = ("reference", "carrier", "mode", "service", "origin", "destination", "status", "created_at", "shipped_at", "promised_at",
           "delivered_at", "weight_kg", "cost", "currency", "exception_reason", "updated_at")
INSERT = "INSERT INTO shipments (%s) VALUES (%s)" % (", ".join(COLUMNS), ", ".join("?" * len(COLUMNS)))
TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'shipments'"
PLAIN = "SELECT %s FROM csv" % ", ".join(COLUMNS[:-1])
PARSED = "SELECT %s FROM csv" % ", ".join(
    "number({0}) AS {0}".format(name) if name in ("weight_kg", "cost") else
    "parse_date({0}, '%Y-%m-%dT%H:%M:%SZ', '%Y-%m-%d') AS {0}".format(name) if name.endswith("_at") else name
    for name in COLUMNS[:-1])


def tool(*command):
    subprocess.check_call([sys.executable, str(ROOT / command[0])] + [str(word) for word in command[1:]], stdout=subprocess.DEVNULL)


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait()


@contextlib.contextmanager
def writer(database, rate):
    """Keeps the database changing while the block runs."""
    process = subprocess.Popen([sys.executable, str(ROOT / "seed.py"), str(database), "--live", "--rate", str(rate)],
                               stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        end(process)


class Service:
    """A running service on a database, with a kept connection to it."""

    def __init__(self, database, folder):
        self.began = time.monotonic()
        env = {"METRICS_DB_PATH": str(database), "METRICS_PORT": "0", "METRICS_PID_FILE": "%s/%s.pid" % (folder, database.name)}
        self.process = subprocess.Popen([sys.executable, str(ROOT / "metrics_service.py")], env=env, stdout=subprocess.PIPE,
                                        universal_newlines=True)
        line = next(line for line in self.process.stdout if "service_started" in line)
        self.client = http.client.HTTPConnection("127.0.0.1", int(line.split("url=http://127.0.0.1:")[1].split()[0]))

    def scrape(self):
        """Seconds from the request to the whole answer."""
        began = time.perf_counter()
        self.client.request("GET", "/metrics")
        response = self.client.getresponse()
        document = json.loads(response.read().decode())
        assert response.status == 200 and document["stale"] is None, document["stale"]
        return time.perf_counter() - began

    def cpu(self):
        """CPU seconds used so far."""
        fields = Path("/proc/%d/stat" % self.process.pid).read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        """MiB resident."""
        lines = Path("/proc/%d/status" % self.process.pid).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        end(self.process)


def paced(services, seconds, each=0.02):
    """Scrapes the services in turn, so that a slow moment of the machine meets all; lists of seconds and of CPU seconds."""
    times, cpu = [[] for _ in services], [service.cpu() for service in services]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for service, row in zip(services, times):
            row.append(service.scrape())
            time.sleep(each)
    return times, [service.cpu() - before for service, before in zip(services, cpu)]


def milliseconds(values, share):
    return sorted(values)[int(share * (len(values) - 1))] * 1000


def bench_scrape(options, folder):
    databases = []
    for rows in options.rows:
        databases.append(folder / ("scrape_%d.db" % rows))
        if not databases[-1].exists():
            tool("seed.py", databases[-1], "--rows", rows)
    for rate in (0, 200):
        with contextlib.ExitStack() as running:
            for path in databases if rate else ():
                running.enter_context(writer(path, rate))
            services = [running.enter_context(Service(path, folder)) for path in databases]
            times, cpu = paced(services, options.seconds)
            memory = [service.memory() for service in services]
        print("\nscrape, %d writes/s        p50 ms   p95 ms   max ms   CPU ms each   RSS MiB   p50 ratio" % rate)
        for rows, row, used, mebibytes in zip(options.rows, times, cpu, memory):
            print("  %10d rows  %13.2f %8.2f %8.2f %13.2f %9.1f %11.2f" % (
                rows, milliseconds(row, .5), milliseconds(row, .95), milliseconds(row, 1), used * 1000 / len(row), mebibytes,
                statistics.median(row) / statistics.median(times[0])))


def bare(path, rows):
    """Seconds for the rows by a bare executemany into the table and its indexes, without triggers."""
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.executescript((ROOT / "schema.sql").read_text())
    for name, in connection.execute(TRIGGERS).fetchall():
        connection.execute("DROP TRIGGER " + name)
    began = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany(INSERT, rows)
    connection.execute("COMMIT")
    return time.perf_counter() - began


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def timed(*command):
    began = time.perf_counter()
    tool(*command)
    return time.perf_counter() - began


def bench_load(options, folder):
    seeded = folder / "seeded.db"
    seeding = timed("seed.py", seeded, "--rows", options.load_rows)
    rows = sqlite3.connect(str(seeded)).execute("SELECT %s FROM shipments" % ", ".join(COLUMNS)).fetchall()
    write_csv(folder / "rows.csv", rows)
    plain = bare(folder / "bare.db", rows)
    importing = []
    for number, mapping in enumerate((PLAIN, PARSED)):
        (folder / "rows.sql").write_text(mapping)
        database = folder / ("imported%d.db" % number)
        importing.append(timed("seed.py", database, "--csv", folder / "rows.csv", "--mapping", folder / "rows.sql"))
    print("\nload, %d rows                 s    us/row   ratio to bare" % options.load_rows)
    for name, seconds in (("bare executemany", plain), ("seed.py, rows made too", seeding), ("--csv, columns as they are", importing[0]),
                          ("--csv, 4 dates, 2 numbers", importing[1])):
        print("  %-25s %7.2f %9.1f %10.2f" % (name, seconds, seconds * 1e6 / options.load_rows, seconds / plain))


def bench_life(options, folder):
    database = folder / "life.db"
    tool("seed.py", database, "--rows", 10000)
    starts, checks = [], []
    for _ in range(10):
        with Service(database, folder) as service:
            service.scrape()
            starts.append(time.monotonic() - service.began)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            tool("health_check.py", "--url", "http://127.0.0.1:%d" % service.client.port)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        checks.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print("\nstart to first answer: median %.0f ms of 10" % (statistics.median(starts) * 1000))
    print("one health check: median %.0f ms of CPU time of 10" % (statistics.median(checks) * 1000))


BENCHES = {"scrape": bench_scrape, "load": bench_load, "life": bench_life}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="*", default=list(BENCHES), help="which: scrape, load, life; all by default")
    parser.add_argument("--rows", type=int, nargs="+", default=[10000, 1000000], help="sizes to scrape (10000 1000000)")
    parser.add_argument("--load-rows", type=int, default=1000000, help="rows to load (1000000)")
    parser.add_argument("--seconds", type=float, default=20, help="of scraping at each rate (20)")
    parser.add_argument("--keep", metavar="FOLDER", help="where databases are made and kept; a scratch folder by default")
    options = parser.parse_args(argv)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="metrics_bench_"))
    print("Python %s, SQLite %s, %d cores" % (sys.version.split()[0], sqlite3.sqlite_version, os.cpu_count()))
    try:
        for name in options.bench:
            BENCHES[name](options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
