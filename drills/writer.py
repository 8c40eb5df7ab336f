"""Writes shipments one at a time and keeps a ledger of those that the database has acknowledged.

  writer.py DATABASE LEDGER SECONDS

A line `reference version digest` is appended and synced only after COMMIT has returned, so that what stands in the ledger must be
in the database whatever happened since. Two of three commits are a new shipment, the third changes an earlier one: its cost is
the version, so that a lost update is seen too. Whatever SQLite refuses is told on stderr, and the next one tried; a file that was
replaced is opened anew. SIGTERM ends it between two commits.
"""

import hashlib
import os
import signal
import sqlite3
import sys
import time

PREFIX = "DRL-"                         # references of this writer
INSERT = "INSERT INTO shipments (reference, status, cost, currency, updated_at) VALUES (?, 'pending', 1, 'EUR', ?)"
UPDATE = "UPDATE shipments SET cost = ?, updated_at = ? WHERE reference = ?"
STORED = "SELECT reference, status, cost, currency, updated_at FROM shipments WHERE reference = ?"
BUSY_SECONDS = 0.2


def digest(row):
    """Of a row of STORED: what the triggers made of it counts too."""
    return hashlib.sha256(repr(tuple(row)).encode()).hexdigest()[:16]


def read_ledger(path):
    """reference -> (version, digest) as last acknowledged. A last line without its end was never acknowledged."""
    versions = {}
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                if line.endswith("\n"):
                    reference, version, sealed = line.split()
                    versions[reference] = int(version), sealed
    return versions


def changes(versions):
    """Yields (reference, version) for ever."""
    number = len(versions)
    while True:
        number += 1
        yield PREFIX + "%06d" % number, 1
        if number % 2 == 0:
            reference = PREFIX + "%06d" % (number // 2)
            yield reference, versions.get(reference, (0, ""))[0] + 1


def same_file(path, identity):
    try:
        return os.path.samestat(os.stat(path), identity)
    except FileNotFoundError:
        return False


class Writer:
    def __init__(self, database, ledger):
        self.database, self.versions = database, read_ledger(ledger)
        self.ledger = open(ledger, "a")
        self.connection = self.identity = None

    def connect(self):
        if self.connection and not same_file(self.database, self.identity):
            self.connection.close()
            self.connection = None
        if not self.connection:
            self.connection = sqlite3.connect("file:%s?mode=rw" % self.database, uri=True, timeout=BUSY_SECONDS,
                                              isolation_level=None)
            self.identity = os.stat(self.database)

    def commit(self, reference, version):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.connect()
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            values = (INSERT, (reference, now)) if version == 1 else (UPDATE, (version, now, reference))
            self.connection.execute(*values)
            row = self.connection.execute(STORED, (reference,)).fetchone()
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            self.give_up()
            raise
        if row:     # else it was not there to be changed
            self.acknowledge(reference, version, digest(row))

    def give_up(self):
        try:
            self.connection.execute("ROLLBACK")
        except sqlite3.Error:   # SQLite has rolled back already, or the connection is of no use any more
            self.connection.close()
            self.connection = None

    def acknowledge(self, reference, version, sealed):
        self.ledger.write("%s %d %s\n" % (reference, version, sealed))
        self.ledger.flush()
        os.fsync(self.ledger.fileno())
        self.versions[reference] = version, sealed

    def run(self, seconds):
        for reference, version in changes(self.versions):
            try:
                self.commit(reference, version)
            except (sqlite3.Error, OSError) as error:
                print("%s %s: %s" % (reference, type(error).__name__, error), file=sys.stderr, flush=True)
            found = signal.sigtimedwait({signal.SIGTERM}, seconds)
            if found and found.si_signo == signal.SIGTERM:  # after SIGSTOP and SIGCONT Python returns a siginfo of nothing
                return


def main(database, ledger, seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Writer(database, ledger).run(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
