#!/usr/bin/env python3
"""Writes shipments: synthetic ones, a live simulation, or a CSV file read through a mapping in SQL.

  seed.py DB [--rows N] [--random-seed S] [--now T] [--append]
  seed.py DB --csv FILE --mapping FILE.sql [--encoding E] [--delimiter D] [--table NAME=FILE]...
             [--duplicates refuse|first|last] [--accept-similar] [--skip-bad] [--limit-reports N]
  seed.py DB --merge FILE                    brings in what another database has and this one lacks, or has newer
  seed.py DB --live [--rate PER_SECOND]      until SIGTERM or Ctrl-C, either of which is its clean end
  seed.py DB --verify [--limit-reports N]    compares the rollups with the rows, and heals a hot journal
  seed.py DB --rebuild                       makes the rollups from the rows

A new database appears whole or not at all; a load into an existing one is one transaction. docs/importing.md explains mappings.
Exit codes: 0 done; 1 failed, differences found or rows rejected; 2 wrong usage; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import argparse
import calendar
import collections
import contextlib
import datetime
import functools
import math
import os
import pathlib
import random
import re
import signal
import sqlite3
import sys
import time

import csv_mapping
import dbfile
import rollups
from dbfile import Refused, notice, transaction

SCHEMA = pathlib.Path(__file__).resolve().parent / "schema.sql"
BULK_SHARE = 10                         # a load of at least a tenth of the table does without triggers
WATCH_ROWS = 10000                      # of a load between two looks at them, and two states of the progress bar

HOUR, DAY = 3600, 86400                 # seconds
MAX_ROWS = 10 * 1000 * 1000
LOST = 40                               # synthetic shipments, about, that stay open for ever
MINUTES = tuple("T%02d:%02d:" % divmod(minute, 60) for minute in range(1440))
SECONDS = tuple("%02dZ" % second for second in range(60))

LIVE_BUSY_SECONDS = 1                   # short, so that a stop need not wait
LIVE_BATCH = 100                        # changes in one transaction at most
LIVE_POOL = 1000                        # open shipments taken over at the start
LIVE_FEW = 50                           # with fewer open shipments every other change is a new one
LIVE_DAY = 60                           # seconds in which a promised day passes

# What csv_mapping staged in incoming goes into shipments. CHANGES calls it excluded, as UPSERT does, so that one text of what
# differs serves both; a new reference differs by its status.
CHANGES = "SELECT count(*) FROM incoming AS excluded LEFT JOIN main.shipments USING (reference) WHERE {differs}"
UPSERT = """
INSERT INTO main.shipments ({columns}) SELECT {columns} FROM incoming WHERE true
ON CONFLICT (reference) DO UPDATE SET {changes}, updated_at = excluded.updated_at WHERE {differs}
"""
# An update whose time is the one before would be stamped anew by the trigger: a row brought in keeps the time it had.
RESTAMP = """
UPDATE main.shipments SET updated_at = (SELECT updated_at FROM incoming WHERE incoming.reference = shipments.reference)
WHERE reference IN (SELECT reference FROM incoming)
"""
# A change dated in the future is none of this database's clock, so that the same file once more mends it.
MISDATED = "shipments.updated_at > strftime('%Y-%m-%dT%H:%M:%SZ', 'now')"

# New references that differ from those of the latest shipments in case, blanks and punctuation alone.
SPELLED = "replace(replace(replace(replace(replace(upper(reference), '-', ''), '_', ''), '.', ''), '/', ''), ' ', '')"
FRESH = "FROM incoming WHERE reference NOT IN (SELECT reference FROM main.shipments)"
SIMILAR = """
SELECT (SELECT count(*) {fresh}), count(*), min(reference) {fresh}
AND {spelled} IN (SELECT {spelled} FROM (SELECT reference FROM main.shipments ORDER BY id DESC LIMIT 100000))
""".format(fresh=FRESH, spelled=SPELLED)

# What another database has that this one lacks, or changed later. Of two changes within one second that of the database whose
# newest change is later counts: in a kept file that is its own, in a backup it is ours.
ATTACH = "ATTACH ? AS other"
OTHER_COLUMNS = "PRAGMA other.table_info(shipments)"
OTHER_LAST = "SELECT ifnull(max(id), 0) FROM other.shipments"
NEWER = """
FROM other.shipments AS theirs WHERE {which} AND NOT EXISTS (
  SELECT 1 FROM main.shipments AS ours WHERE ours.reference = theirs.reference AND
    (ours.updated_at > theirs.updated_at OR ours.updated_at = theirs.updated_at AND {settled}))
"""
TAKE = "INSERT INTO incoming ({columns}) SELECT {columns} " + NEWER
LATER = "SELECT (SELECT max(updated_at) FROM main.shipments) > (SELECT max(updated_at) FROM other.shipments)"

SIZE = "SELECT ifnull(max(id), 0) FROM shipments"               # at least the number of rows, without counting them
STORED = "SELECT count(*) FROM shipments WHERE id > ?"
LAST_NUMBER = """
SELECT CAST(substr(max(reference), 5) AS INTEGER) FROM shipments
WHERE reference GLOB 'SHP-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]'
"""

OPEN_IDS = "SELECT id FROM shipments WHERE status NOT IN ('delivered', 'returned', 'cancelled') ORDER BY id DESC LIMIT ?"
STATUS = "SELECT status FROM shipments WHERE id = ?"
ADVANCE = """
UPDATE shipments SET
  status = :status,
  shipped_at = CASE WHEN :status = 'in_transit' THEN ifnull(shipped_at, :now) ELSE shipped_at END,
  delivered_at = CASE WHEN :status = 'delivered' THEN :now ELSE delivered_at END,
  exception_reason = ifnull(:reason, exception_reason),
  updated_at = :now
WHERE id = :id
"""

Schema = collections.namedtuple("Schema", "version objects shipments triggers indexes")
Shipment = collections.namedtuple("Shipment", (
    "reference carrier mode service origin destination status created_at shipped_at promised_at delivered_at "
    "weight_kg cost currency exception_reason updated_at"))
INSERT = "INSERT INTO shipments ({}) VALUES ({})".format(", ".join(Shipment._fields), ", ".join("?" * len(Shipment._fields)))

# share: of all shipments. days: promised. pace: of those days usually taken, at most. slip: chance to take longer than promised.
Lane = collections.namedtuple("Lane", "carrier mode service share days pace slip kilograms price")
LANES = (
    Lane("Northwind Parcel", "parcel", "standard", 30, 4, 0.95, 0.035, 6, 7),
    Lane("Northwind Parcel", "parcel", "express", 12, 1, 0.90, 0.05, 3, 14),
    Lane("Bluebird Post", "parcel", "economy", 20, 6, 1.0, 0.09, 4, 5),
    Lane("Cedar Freight", "road", "groupage", 14, 5, 0.95, 0.06, 400, 180),
    Lane("Cedar Freight", "road", "full load", 6, 3, 0.90, 0.03, 9000, 900),
    Lane("Iron Line", "rail", None, 5, 9, 0.95, 0.07, 20000, 1100),
    Lane("Skyward Cargo", "air", "priority", 8, 2, 0.90, 0.025, 250, 700),
    Lane("Meridian Ocean", "ocean", "container", 4, 28, 1.0, 0.12, 18000, 2400),
    Lane("Meridian Ocean", "multimodal", "door to door", 1, 21, 1.0, 0.10, 8000, 1900),
)
SHARES = tuple(lane.share for lane in LANES)
ORIGINS = ("Rotterdam", "Hamburg", "Gdansk", "Antwerp", "Lyon", "Milan")
DESTINATIONS = ("Amsterdam", "Berlin", "Brussels", "Copenhagen", "Madrid", "Munich", "Paris", "Prague", "Rome", "Vienna")
REASONS = ("address unknown", "customs hold", "damaged", "recipient absent", "vehicle breakdown", "weather")
WEEKDAYS = (1.2, 1.15, 1.05, 1.05, 1.1, 0.5, 0.3)               # Monday first
HOURS = (2, 1, 1, 1, 1, 2, 4, 7, 11, 14, 15, 14, 11, 12, 14, 15, 15, 13, 10, 8, 7, 6, 5, 3)

# What may follow an open status in the simulation, likelier ones more often. A status that follows itself is a delay.
FOLLOWING = {
    "pending": ("pre_transit",) * 11 + ("cancelled",),
    "pre_transit": ("in_transit",) * 11 + ("cancelled",),
    "in_transit": ("out_for_delivery",) * 9 + ("available_for_pickup", "in_transit", "exception"),
    "out_for_delivery": ("delivered",) * 9 + ("attempted",),
    "available_for_pickup": ("delivered",),
    "attempted": ("delivered", "out_for_delivery", "available_for_pickup", "returned"),
    "exception": ("in_transit", "in_transit", "in_transit", "returned"),
}


def watched(rows, total):
    """The same rows, until a stop signal is caught; with a bar on stderr while they pass if that is a terminal."""
    visible = sys.stderr.isatty()
    for done, row in enumerate(rows):
        if done % WATCH_ROWS == 0:
            if dbfile.caught:           # SQLite before 3.32 looks for an interruption only in loops of its own
                raise InterruptedError
            if visible:
                filled = "#" * (40 * done // total)
                print("\r[{:40}] {:,} of {:,} rows".format(filled, done, total), end="", file=sys.stderr, flush=True)
        yield row
    if visible:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=None)
def schema():
    """What schema.sql makes, as SQLite keeps it: names of the tables and views, and the texts to make the rest again."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA.read_text(encoding="utf-8"))
        made = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return Schema(
            version=db.execute("PRAGMA user_version").fetchone()[0],
            objects={name for kind, name, _, _ in made if kind in ("table", "view")},
            shipments=next(sql for kind, name, _, sql in made if name == "shipments"),
            triggers={name: sql for kind, name, table, sql in made if kind == "trigger" and table == "shipments"},
            indexes={name: sql for kind, name, _, sql in made if kind == "index"},
        )


def check_version(db, path):
    """Refuses a database in another version of the schema than this program writes, and names the cure."""
    version, = db.execute("PRAGMA user_version").fetchone()
    if version != schema().version:
        cure = "run 'python3 migrate.py %s plan', then apply" % path
        if version > schema().version:
            cure = "use the release that made it"
        raise Refused("%s has schema version %d, this seed.py writes version %d: %s"
                      % (path, version, schema().version, dbfile.migration(path) or cure))


def check_ours(db, path):
    """Refuses a database that is not one of shipments in this version."""
    present = {name for name, in db.execute("SELECT name FROM sqlite_master")}
    if "shipments" not in present:
        raise Refused("%s is not a shipments database: it has no table shipments; name another file" % path)
    check_version(db, path)
    missing = schema().objects - present
    if missing:
        raise Refused("%s has no %s, which schema.sql demands: restore it from a backup" % (path, ", ".join(sorted(missing))))


@contextlib.contextmanager
def existing(path, busy_seconds=dbfile.BUSY_SECONDS):
    """A connection to an existing shipments database."""
    if not os.path.isfile(path):
        raise Refused("%s is not a file; name a database" % path if os.path.exists(path) else
                      "%s does not exist: 'seed.py %s' makes one" % (path, path))
    with dbfile.opened(path, busy_seconds) as db:
        check_ours(db, path)
        yield db


@contextlib.contextmanager
def new_database(path):
    """A connection to a new shipments database, which appears once the block has ended well."""
    with dbfile.new_database(path) as db:
        db.executescript(SCHEMA.read_text(encoding="utf-8"))
        yield db


def target(path):
    """What a load writes to: the existing database, or a new one."""
    return existing(path) if os.path.exists(path) else new_database(path)


@contextlib.contextmanager
def writing(db, path):
    """A transaction that changes a database in our version: since it was opened, another may have migrated it."""
    with transaction(db):
        check_version(db, path)
        yield


@contextlib.contextmanager
def load(db, path, rows):
    """One transaction around a load of so many rows.

    In a small load the triggers keep the rollups. A large one does without them, and in an empty table without the indexes; then
    the rollups are made once, and all is put back as schema.sql has it.
    """
    with writing(db, path):
        size, = db.execute(SIZE).fetchone()
        if rows * BULK_SHARE < size:
            yield
            return
        aside = dict(schema().triggers, **({} if size else schema().indexes))
        for name, sql in aside.items():
            db.execute("DROP %s IF EXISTS main.%s" % (sql.split()[1], name))
        yield
        for sql in aside.values():
            db.execute(sql)
        rollups.rebuild(db)


def busyness(hour):
    """How many shipments this hour sees, relative to others: by hour, weekday and season, which peaks early in December."""
    at = time.gmtime(hour)
    return HOURS[at.tm_hour] * WEEKDAYS[at.tm_wday] * (1 + 0.9 * math.exp(-((at.tm_yday - 340) / 18) ** 2))


def rhythm(rows, now):
    """Yields (hour, shipments) through the year before now, so many in all."""
    hours = range(now - 365 * DAY, now, HOUR)
    whole = sum(map(busyness, hours))
    done = reached = 0
    for hour in hours:
        reached += busyness(hour)
        count = round(rows * reached / whole) - done
        done += count
        yield hour, count


@functools.lru_cache(maxsize=1024)
def day(number):
    return (datetime.date(1970, 1, 1) + datetime.timedelta(number)).isoformat()


def instant(seconds):
    """The instant of so many seconds since 1970."""
    return day(seconds // DAY) + MINUTES[seconds // 60 % 1440] + SECONDS[seconds % 60]


def standing(created, shipped, delivered, now, fate, last_mile):
    """The status of a shipment now, and when it last changed. fate, below 1, decides what goes wrong."""
    labelled, half, near = (3 * created + shipped) // 4, (shipped + delivered) // 2, (shipped + 4 * delivered) // 5
    if fate < 0.012 and labelled <= now:
        return "cancelled", labelled
    if now < shipped:
        return ("pending", created) if now < labelled else ("pre_transit", labelled)
    if delivered <= now:
        return "returned" if fate < 0.02 else "delivered", delivered
    if fate < 0.05 and half <= now:
        return "exception", half
    return ("in_transit", shipped) if now < near else (last_mile, near)


def shipment(number, lane, created, now, lost, draw):
    """One synthetic shipment as it stands now; draw() gives a number below 1."""
    promised = created + lane.days * DAY
    shipped = created + int(lane.days * DAY * (0.05 + 0.15 * draw()))
    took = 1 + draw() * draw() if draw() < lane.slip else 0.35 + (lane.pace - 0.35) * draw()
    delivered = now + DAY if lost else created + int(lane.days * DAY * took)
    fate, blank = draw(), draw()
    last_mile = ("out_for_delivery", "out_for_delivery", "available_for_pickup", "attempted")[number % 4]
    status, changed = standing(created, shipped, delivered, now, fate, last_mile)
    moving = changed >= shipped
    return (
        "SHP-%08d" % number,
        lane.carrier if blank > 0.003 else None,
        lane.mode, lane.service,
        ORIGINS[int(draw() * len(ORIGINS))], DESTINATIONS[int(draw() * len(DESTINATIONS))],
        status,
        instant(created),
        instant(shipped) if moving else None,
        None if blank > 0.992 else day(promised // DAY) if lane.days > 2 else instant(promised),
        instant(delivered) if status == "delivered" else None,
        round(lane.kilograms * (0.3 + 1.4 * draw()), 1) if blank < 0.97 else None,
        round(lane.price * (0.8 + 0.4 * draw()), 2) if moving else None,
        "EUR" if moving else None,
        REASONS[int(draw() * len(REASONS))] if fate < 0.05 and moving and changed > shipped else None,
        instant(changed),
    )


def shipments(rows, now, first, rng):
    """Yields so many synthetic shipments in the order of their creation, numbered from first."""
    draw, number = rng.random, first
    for hour, count in rhythm(rows, now):
        starts = sorted(hour + int(HOUR * draw()) for _ in range(count))
        for created, lane in zip(starts, rng.choices(LANES, SHARES, k=count)):
            yield shipment(number, lane, created, now, draw() * rows < LOST, draw)
            number += 1


def verify(args):
    with existing(args.db) as db, transaction(db, "BEGIN"):
        found = 0
        for found, difference in enumerate(rollups.differences(db), 1):
            if found <= args.limit_reports:
                print(difference)
        if found > args.limit_reports:
            print("and %d more differences" % (found - args.limit_reports))
        if found:
            notice("%s: the rollups do not agree with the rows; 'seed.py %s --rebuild' mends them" % (args.db, args.db))
            return 1
        print("verified %d shipments, %d rollup rows" % rollups.sizes(db))
    return 0


def rebuild_all(args):
    with existing(args.db) as db:
        with writing(db, args.db):
            rollups.rebuild(db)
        print("rebuilt from %d shipments, %d rollup rows" % rollups.sizes(db))
    return 0


def next_number(db):
    return (db.execute(LAST_NUMBER).fetchone()[0] or 0) + 1


def synthesize(args):
    with target(args.db) as db:
        if not args.append and db.execute(SIZE).fetchone()[0]:
            raise Refused("%s holds shipments already; --append adds to them" % args.db)
        with load(db, args.db, args.rows):
            rows = shipments(args.rows, args.now, next_number(db), random.Random(args.random_seed))
            db.executemany(INSERT, watched(rows, args.rows))
    print("stored %d synthetic shipments in %s" % (args.rows, args.db))
    return 0


def stopped_within(seconds):
    """Whether a stop signal, which the caller has blocked, comes within so many seconds."""
    # After SIGSTOP and SIGCONT Python returns a siginfo of nothing where it should return None: the number tells.
    found = signal.sigtimedwait(dbfile.STOPS, max(0, seconds))
    return found is not None and found.si_signo in dbfile.STOPS


class Simulation:
    """Shipments that come into being and move on."""

    def __init__(self, db, path, rng):
        self.db, self.path, self.rng = db, path, rng
        self.identity = os.stat(path)
        # A hint, not a record: what another writer closed or a rollback took back is dropped when it is drawn.
        self.pool = [number for number, in db.execute(OPEN_IDS, (LIVE_POOL,))]

    def change(self, now):
        """Makes one change, inside the caller's transaction."""
        drawn = self.draw()
        if drawn is None or self.rng.random() < (0.5 if len(self.pool) < LIVE_FEW else 0.16):
            self.create(now)
        else:
            self.advance(*drawn, now=now)

    def draw(self):
        """The id and status of an open shipment, or None."""
        while self.pool:
            place = self.rng.randrange(len(self.pool))
            row = self.db.execute(STATUS, (self.pool[place],)).fetchone()
            if row and row[0] in FOLLOWING:
                return self.pool[place], row[0]
            self.pool[place] = self.pool[-1]
            self.pool.pop()
        return None

    def create(self, now):
        lane, = self.rng.choices(LANES, SHARES)
        fresh = Shipment._make(shipment(next_number(self.db), lane, now, now, False, self.rng.random))
        fresh = fresh._replace(promised_at=instant(now + lane.days * LIVE_DAY))
        self.pool.append(self.db.execute(INSERT, fresh).lastrowid)

    def advance(self, number, status, now):
        following = self.rng.choice(FOLLOWING[status])
        reason = self.rng.choice(REASONS) if following in ("exception", status) else None
        self.db.execute(ADVANCE, {"id": number, "status": following, "reason": reason, "now": instant(now)})

    def check_identity(self):
        """Refuses to go on where the path no longer names the file that was opened."""
        try:
            present = os.stat(self.path)
        except FileNotFoundError:
            raise Refused("%s has vanished: start again once it is back" % self.path)
        if not os.path.samestat(present, self.identity):
            raise Refused("%s has been replaced by another file: start again to write to that one" % self.path)

    def attempt(self, changes):
        """Makes so many changes in one transaction; False if another process holds the lock."""
        self.check_identity()
        try:
            with writing(self.db, self.path):
                for _ in range(changes):
                    self.change(int(time.time()))
        except sqlite3.OperationalError as error:
            self.check_identity()       # a file that moved is read-only to SQLite
            if "locked" not in str(error):
                raise
            return False
        return True

    def run(self, rate):
        """Makes so many changes a second until a stop signal, which the caller has blocked, is pending; returns their number."""
        made, waiting, due = 0, False, time.monotonic()
        while not stopped_within(due - time.monotonic()):
            owed = min(LIVE_BATCH, 1 + int((time.monotonic() - due) * rate))
            if self.attempt(owed):
                made, waiting = made + owed, False
                due = max(due + owed / rate, time.monotonic() - 1)  # what a lock held up for longer is not caught up on
            elif not waiting:
                waiting = True
                notice("%s is locked by another process; trying again" % self.path)
        return made


def live(args):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, dbfile.STOPS)
    try:
        with existing(args.db, LIVE_BUSY_SECONDS) as db:
            simulation = Simulation(db, args.db, random.Random(args.random_seed))
            print("changing shipments in %s, %g a second; Ctrl-C ends it" % (args.db, args.rate), flush=True)
            made = simulation.run(args.rate)
        print("made %d changes" % made, flush=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return 0


def upsert(db, path, columns):
    """Takes the staged rows into shipments; returns how many were new and how many changed one."""
    others = [column for column in columns if column not in ("reference", "updated_at")]
    differences = ["shipments.{0} IS NOT excluded.{0}".format(column) for column in others]
    parts = {
        "columns": ", ".join(columns),
        "changes": ", ".join("{0} = excluded.{0}".format(column) for column in others),
        "differs": " OR ".join(differences + [MISDATED]),
    }
    changes, = db.execute(CHANGES.format(**parts)).fetchone()
    if not changes:
        return 0, 0
    with load(db, path, changes):
        last, = db.execute(SIZE).fetchone()
        db.execute("PRAGMA ignore_check_constraints = ON")  # the same CHECKs let the rows into incoming
        touched = db.execute(UPSERT.format(**parts)).rowcount
        db.execute("PRAGMA ignore_check_constraints = OFF")
        if "updated_at" in columns:
            db.execute(RESTAMP)
        stored, = db.execute(STORED, (last,)).fetchone()
    return stored, touched - stored


def summary(staged, stored, updated, report):
    """The lines that an import ends with."""
    counted = csv_mapping.counted
    yield "{:,} read, {:,} stored, {:,} updated, {:,} unchanged".format(
        staged.read, stored, updated, staged.rows - stored - updated)
    if report.skipped:
        yield "skipped: " + counted(report.skipped)
    if report.rows:
        yield "rejected rows: {:,} ({})".format(report.rows, counted(report.reasons))
    if staged.nulled:
        yield "made NULL: " + counted(staged.nulled)


def check_spelling(db):
    """Refuses a file most of whose new references are those of shipments that are there, in another spelling; tells of a few."""
    if not db.execute(SIZE).fetchone()[0]:
        return
    fresh, similar, example = db.execute(SIMILAR).fetchone()
    told = ("%d of %d new references differ from stored ones in case, blanks or punctuation alone, such as %r"
            % (similar, fresh, example))
    if 2 * similar > fresh:
        raise Refused("nothing was imported: %s: the same shipments under another spelling? Mend the mapping, or pass "
                      "--accept-similar" % told)
    if similar:
        notice(told)


def import_csv(args):
    started = time.monotonic()
    report = csv_mapping.Report(args.limit_reports)
    importable = [column for column in Shipment._fields if column != "updated_at"]
    with target(args.db) as db:
        with transaction(db, "BEGIN"):  # of the temporary tables: nobody is locked out yet
            staged = csv_mapping.stage(db, schema().shipments, importable, args, report)
            if not args.accept_similar:
                check_spelling(db)
        if report.rows and not args.skip_bad:
            raise Refused("nothing was imported; rejected rows: %d (%s); mend the file or the mapping, or pass --skip-bad"
                          % (report.rows, csv_mapping.counted(report.reasons)))
        stored, updated = upsert(db, args.db, staged.columns)
    for line in summary(staged, stored, updated, report):
        print(line)
    print("in %.1f seconds" % (time.monotonic() - started))
    return 1 if report.rows else 0


def is_later(db):
    """Whether our newest change is later than that of the other database; not where that cannot be read."""
    try:
        return bool(db.execute(LATER).fetchone()[0])
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise
        return False


def salvage(db, take):
    """Stages what is newer in a damaged database, row by row; returns the ids that cannot be read. Raises sqlite3.Error where
    not even its end can be found."""
    lost = []
    last, = db.execute(OTHER_LAST).fetchone()
    for number in range(1, last + 1):
        if dbfile.caught:
            raise InterruptedError
        try:
            db.execute(take, (number,))
        except sqlite3.DatabaseError as error:
            if "malformed" not in str(error):
                raise
            lost.append(number)
    return lost


def stage_newer(db, path):
    """Takes the rows of another database that are newer than ours into the table incoming; returns their columns, and the ids of
    those that cannot be read. Outside of any transaction: one that met a damaged page cannot be committed."""
    present = {name for _, name, *_ in db.execute(OTHER_COLUMNS)}
    columns = [column for column in Shipment._fields if column in present]
    if not {"reference", "status", "updated_at"} <= set(columns):
        raise Refused("%s has no table shipments with the columns reference, status and updated_at" % path)
    db.execute(schema().shipments.replace("CREATE TABLE shipments (", "CREATE TEMP TABLE incoming (", 1))
    same = "(%s) IS (%s)" % tuple(", ".join(side + column for column in columns) for side in ("ours.", "theirs."))
    take = functools.partial(TAKE.format, columns=", ".join(columns), settled="1" if is_later(db) else same)
    try:
        db.execute(take(which="1"))
        return columns, []
    except sqlite3.IntegrityError as error:
        raise Refused("%s holds shipments that schema.sql does not allow: %s" % (path, " ".join(str(error).split())))
    except sqlite3.DatabaseError as error:
        if "malformed" not in str(error):
            raise
        return columns, salvage(db, take(which="theirs.id = ?"))


def stage_other(db, path):
    """The same for a path. Raises Refused."""
    try:
        db.execute(ATTACH, (pathlib.Path(path).as_uri() + "?mode=ro",))
        found = stage_newer(db, path)
        db.execute("DETACH other")
        return found
    except sqlite3.Error as error:
        if dbfile.caught:
            raise
        raise Refused("%s cannot be read: %s; nothing was changed" % (path, error))


def merge(args):
    if not os.path.isfile(args.merge) or os.path.samefile(args.merge, args.db):
        raise Refused("%s is no other database file" % args.merge)
    with existing(args.db) as db:
        columns, lost = stage_other(db, args.merge)
        newer, = db.execute(csv_mapping.STAGED).fetchone()
        stored, updated = upsert(db, args.db, columns)
    print("{:,} newer there, {:,} stored, {:,} updated, {:,} unchanged".format(newer, stored, updated, newer - stored - updated))
    if lost:
        notice("%d rows of %s cannot be read, ids %d to %d; load those again from their source" % (
            len(lost), args.merge, lost[0], lost[-1]))
    return 1 if lost else 0


def bounded(kind, low, high):
    """An argparse type: a number in this range."""
    def read(text):
        number = kind(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError("%s is not within %s to %s" % (text, low, high))
        return number
    read.__name__ = kind.__name__       # argparse names it where the text is no number at all
    return read


def unix_time(text):
    """An argparse type: the seconds since 1970 of a UTC date or instant."""
    try:
        moment = time.strptime((text + "T00:00:00Z")[:20], "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise argparse.ArgumentTypeError("%r is neither YYYY-MM-DD nor YYYY-MM-DDTHH:MM:SSZ" % text)
    if not 1972 <= moment.tm_year <= 9998:  # the year before belongs to it, and the promises after
        raise argparse.ArgumentTypeError("%s is not within the years 1972 to 9998" % text)
    return calendar.timegm(moment)


def encoding(text):
    """An argparse type: an encoding of text that Python knows."""
    try:
        "".encode(text)
        return text
    except LookupError:
        raise argparse.ArgumentTypeError("%r is no known encoding; some are utf-8, latin-1, cp1252, utf-16" % text)


def separator(text):
    """An argparse type: one character, or the word tab."""
    found = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(found) != 1:
        raise argparse.ArgumentTypeError("%r is neither one character nor the word tab" % text)
    return found


def joined(text):
    """An argparse type: NAME=FILE."""
    name, _, path = text.partition("=")
    taken = schema().objects | csv_mapping.RESERVED
    if not re.fullmatch("[A-Za-z]\\w*", name) or not path or name.lower() in taken:
        raise argparse.ArgumentTypeError("%r is not NAME=FILE with a name of letters and digits that is not taken" % text)
    return name, path


def parse(argv):
    parser = argparse.ArgumentParser(prog="seed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="seed.py DB [options]", allow_abbrev=False)
    add = parser.add_argument
    add("db", metavar="DB", type=os.path.realpath, help="the database file; made if it does not exist")
    for option, what in (("--live", "change shipments until stopped"), ("--verify", "compare the rollups with the rows"),
                         ("--rebuild", "make the rollups from the rows")):
        add(option, action="store_true", help=what)
    add("--rows", metavar="N", type=bounded(int, 1, MAX_ROWS), default=50000, help="synthetic shipments to store (default 50000)")
    add("--random-seed", metavar="S", type=int, default=1, help="another number gives other shipments (default 1)")
    add("--now", metavar="T", type=unix_time, default=int(time.time()),
        help="the moment at which they stand, in UTC (default now)")
    add("--append", action="store_true", help="add synthetic shipments to those there")
    add("--csv", metavar="FILE", help="import this file")
    add("--mapping", metavar="FILE.sql", help="the SELECT that names its columns as ours")
    add("--encoding", metavar="E", type=encoding, default="utf-8-sig",
        help="of the files (default utf-8-sig: UTF-8, with or without a mark)")
    add("--delimiter", metavar="D", type=separator, default=",", help="one character or tab (default a comma)")
    add("--table", metavar="NAME=FILE", type=joined, action="append", default=[], help="a second file for the mapping to join")
    add("--duplicates", choices=tuple(csv_mapping.ON_DUPLICATE), default="refuse",
        help="which of the rows with one reference to take (default refuse)")
    add("--accept-similar", action="store_true", help="import references that are spelled nearly as stored ones")
    add("--merge", metavar="FILE", type=os.path.realpath, help="bring in the newer shipments of this database")
    add("--skip-bad", action="store_true", help="import the other rows where some are rejected")
    add("--limit-reports", metavar="N", type=bounded(int, 0, MAX_ROWS), default=20, help="rows told one by one (default 20)")
    add("--rate", metavar="PER_SECOND", type=bounded(float, 0.01, 10000), default=2.0, help="changes of --live (default 2)")
    args = parser.parse_args(argv)
    if bool(args.csv) != bool(args.mapping):
        parser.error("--csv and --mapping go together")
    if sum(map(bool, (args.csv, args.merge, args.live, args.verify, args.rebuild))) > 1:
        parser.error("--csv, --merge, --live, --verify and --rebuild exclude each other")
    return args


def command(args):
    """The function that does what the arguments ask for."""
    asked = ((args.live, live), (args.verify, verify), (args.rebuild, rebuild_all), (args.csv, import_csv), (args.merge, merge),
             (True, synthesize))
    return next(function for wanted, function in asked if wanted)


def main(argv=None):
    args = parse(argv)
    return dbfile.exit_code(lambda: command(args)(args), args.db, lambda: "stopped; %s is as it was" % args.db,
                            (csv_mapping.MappingError,))


if __name__ == "__main__":
    sys.exit(main())
