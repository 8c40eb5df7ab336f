#!/usr/bin/env python3
"""Upgrades under load: how long they take, how long a request and a write wait meanwhile, and whether each row comes through.

    python3 tests/bench/migration.py [--rows N] [--folder DIR]

Version 1 to today's under a running service and a writer, each step against the same SQL in the sqlite3 shell; then a rebuild
of today's shipments, invented as one more step, under a service that has figures to serve.
Exit codes: 0 nothing lost, every request answered; 1 otherwise.
"""

import argparse
import collections
import contextlib
import hashlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest                                             # noqa: E402
import steps                                                # noqa: E402

WRITER_PAUSE = 0.01     # s between two rows
CLIENT_PAUSE = 0.02     # s between two requests
PATIENCE = 600          # s for a lock

REBUILD = """\
-- Rebuilds shipments with a remark.
PRAGMA foreign_keys = OFF;
PRAGMA legacy_alter_table = ON;
CREATE TABLE fresh ({columns}, remark TEXT);
INSERT INTO fresh SELECT *, NULL FROM shipments;
DROP TABLE shipments;
ALTER TABLE fresh RENAME TO shipments;
{others}
"""

Waits = collections.namedtuple("Waits", "count longest")


class Writer(threading.Thread):
    """Stores a shipment of reference and status each 10 ms, in a transaction of its own, whatever version it meets."""

    def __init__(self, path):
        super().__init__()
        self.path, self.done, self.longest, self.acknowledged = path, threading.Event(), 0.0, []

    def run(self):
        with contextlib.closing(sqlite3.connect(str(self.path), timeout=PATIENCE, isolation_level=None)) as db:
            while not self.done.wait(WRITER_PAUSE):
                reference, began = "LIVE-%d-%06d" % (id(self), len(self.acknowledged)), time.monotonic()
                db.execute("INSERT INTO shipments (reference, status) VALUES (?, 'pending')", (reference,))
                self.longest = max(self.longest, time.monotonic() - began)
                self.acknowledged.append(reference)

    def end(self):
        self.done.set()
        self.join()


class Client(threading.Thread):
    """Asks for /metrics each 20 ms, on a new connection."""

    def __init__(self, service):
        super().__init__()
        self.service, self.done = service, threading.Event()
        self.statuses, self.stale, self.longest, self.running = collections.Counter(), collections.Counter(), 0.0, 0

    def run(self):
        while not self.done.wait(CLIENT_PAUSE):
            began = time.monotonic()
            status, document = self.service.get("/metrics")
            self.longest = max(self.longest, time.monotonic() - began)
            self.statuses[status] += 1
            self.stale[(document.get("stale") or {}).get("reason")] += 1
            self.running += b"migration running" in self.service.request("/readyz")[2]

    def end(self):
        self.done.set()
        self.join()


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, universal_newlines=True,
                          **options).stdout


def columns_of(path):
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        return [row[1] for row in db.execute("PRAGMA table_info(shipments)")]


def checksums(path, columns, rows):
    """SHA-256 of each column over the first so many rows, in the order of their ids."""
    found = {}
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        for column in columns:
            digest = hashlib.sha256()
            for value in db.execute("SELECT quote(%s) FROM shipments WHERE id <= ? ORDER BY id" % column, (rows,)):
                digest.update(repr(value).encode())
            found[column] = digest.hexdigest()
    return found


def first_version(folder, rows):
    """A database of version 1 with so many rows."""
    seeded, path = folder / "seeded.db", folder / "first.db"
    run(sys.executable, ROOT / "seed.py", seeded, "--rows", rows)
    run(sys.executable, ROOT / "migrate.py", path, "apply", "--to", 1)
    names = ", ".join(columns_of(path))
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        db.execute("ATTACH ? AS seeded", (str(seeded),))
        db.execute("INSERT INTO main.shipments (%s) SELECT %s FROM seeded.shipments" % (names, names))
    seeded.unlink()
    return path


def started(folder, path):
    """A service on a database of any version: one whose database is locked at its start looks at the schema later."""
    folder.mkdir()
    service = conftest.Service(folder, path)
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        service.start()
    return service


def upgrade(product, path, folder):
    """Applies all steps under a service and a writer; (writer, client, seconds)."""
    service = started(folder, path)
    writer, client = Writer(path), Client(service)
    try:
        for thread in (writer, client):
            thread.start()
        began = time.monotonic()
        print(run(sys.executable, product / "migrate.py", path, "apply", "--wait", PATIENCE), end="")
        seconds = time.monotonic() - began
        conftest.wait_for(lambda: service.get("/metrics")[0] == 200, "figures after the upgrade")
    finally:
        writer.end()
        client.end()
        service.end()
    return writer, client, seconds


def missing(path, writer):
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        present = {reference for reference, in db.execute("SELECT reference FROM shipments WHERE reference GLOB 'LIVE-*'")}
    return len(set(writer.acknowledged) - present)


def measure(title, product, path, folder, rows):
    """One upgrade, told; whether every row came through."""
    print("\n" + title)
    columns = columns_of(path)
    before = checksums(path, columns, rows)
    writer, client, seconds = upgrade(product, path, folder)
    altered = [column for column in columns if checksums(path, [column], rows)[column] != before[column]]
    print("in all %.1f s, backup included; %d rows, %d columns, altered: %s" % (seconds, rows, len(columns), altered or "none"))
    print("writer: %d rows acknowledged, %d missing, longest wait %.1f s" % (
        len(writer.acknowledged), missing(path, writer), writer.longest))
    print("requests: by status %s, by reason of staleness %s, longest %.0f ms; /readyz said 'migration running' %d times" % (
        dict(client.statuses), dict(client.stale), 1000 * client.longest, client.running))
    run(sys.executable, ROOT / "migrate.py" if product == ROOT else product / "migrate.py", path, "verify")
    return not altered and not missing(path, writer)


def against_shell(path, folder):
    """Each step by migrate.py and by the sqlite3 shell, on copies of the same file."""
    shell = shutil.which("sqlite3")
    print("\nstep against the same statements in one transaction of the sqlite3 shell" if shell else "\nno sqlite3 shell here")
    work = folder / "step.db"
    shutil.copy(str(path), str(work))
    for step in steps.read_steps()[1:]:
        bare = folder / "bare.db"
        shutil.copy(str(work), str(bare))
        script = "\n".join(step.settings + ["BEGIN;"] + step.statements + ["COMMIT;"])
        began = time.monotonic()
        if shell:
            run(shell, bare, input=script)
        middle = time.monotonic()
        run(sys.executable, ROOT / "migrate.py", work, "apply", "--to", step.number)
        end = time.monotonic()
        print("  %-22s shell %5.1f s, migrate.py with backup and proof %5.1f s" % (step.name, middle - began, end - middle))
        bare.unlink()


def invented(folder):
    """A copy of the product with one more step, which rebuilds today's shipments."""
    product = folder / "next"
    product.mkdir()
    conftest.copy_product(product)
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript((ROOT / "schema.sql").read_text())
        body, = db.execute("SELECT sql FROM sqlite_master WHERE name = 'shipments'").fetchone()
        others = [sql + ";" for sql, in db.execute(
            "SELECT sql FROM sqlite_master WHERE tbl_name = 'shipments' AND type <> 'table' AND sql IS NOT NULL")]
    step = REBUILD.format(columns=body[body.index("(") + 1:body.rindex(")")], others="\n".join(others))
    (product / "migrations" / "0006_add_remark.sql").write_text(step)
    return product


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000000)
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = first_version(folder, args.rows)
        against_shell(path, folder)
        sound = measure("version 1 to today's", ROOT, path, folder / "one", args.rows)
        sound &= measure("today's, rebuilt, under a service with figures", invented(folder), path, folder / "two", args.rows)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
