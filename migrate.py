#!/usr/bin/env python3
"""Brings a shipments database of any earlier version to the schema of this release, or back to a backup.

  migrate.py DB status                what version it has and should have, the pending steps, what was changed by hand
  migrate.py DB plan [--to N]         what apply would do: the SQL, the rows, the disk and the time; changes nothing
  migrate.py DB apply [--to N]        a backup, then each pending step in a transaction of its own, proven before its commit
  migrate.py DB verify                integrity, foreign keys, record, schema and rollups
  migrate.py DB backup                a backup, sound and under a name of its own, while the service goes on
  migrate.py DB repair                a backup, then triggers, indexes and views put back as the steps made them, rollups too
  migrate.py DB restore [BACKUP]      a backup put back, by default the newest of an earlier version; what was there is kept

A database that does not exist is made by apply. docs/migrations.md tells how to write, rehearse and apply a step.
Exit codes: 0 done, or up to date; 1 pending (status), refused, failed, apply would be (plan), differences found (verify);
2 wrong usage; 3 cannot tell (status, plan, verify); 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

import argparse
import collections
import contextlib
import json
import os
import sqlite3
import sys
import time

import backups
import dbfile
import forecast
import migration_lock
import rollups
import schema_check
import steps
import supervision
from dbfile import Refused

TOOL = "migrate.py 0.1.0"
BUSY_SECONDS = 60           # how long a lock of somebody else is waited for
BUSY_POLL = 0.005           # s between two tries of it
KEEP = 5                    # backups that are kept
SHOWN = forecast.SHOWN      # rows or differences told one by one
CACHE_KIB = 64 * 1024       # page cache; what outgrows it spills into the file, which shuts the readers out earlier
HARMLESS = ("index ", "table ", "view ")    # what somebody may have added without changing what the steps work on
MENDABLE = ("index ", "trigger ", "view ")  # what can be made again without a look at any row

VIOLATIONS = "PRAGMA foreign_key_check"
ROWS = "SELECT * FROM shipments"
MADE = "SELECT type, name, sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL"
EXISTING = "SELECT type, name FROM sqlite_master"

State = collections.namedtuple("State", "version faults drift notes")   # faults: words; drift, notes: words on the schema


class Unknown(Exception):
    """What was asked for cannot be told, and why."""


# Words

def human(amount):
    """A number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 10000:
            return "%d %s" % (amount, unit)
        amount //= 1000
    return "%d GB" % amount


def title(step):
    return "step %d (%s)" % (step.number, step.name)


def some(texts, count=None):
    """The beginnings of the first few of so many texts, as one."""
    count = len(texts) if count is None else count
    first = [text[:forecast.TEXT_MAX] for text in texts[:SHOWN]]
    return "; ".join(first + (["and %d more" % (count - SHOWN)] if count > SHOWN else []))


# Locks of others, waited for

def patiently(action, path, wait):
    """What action() gives, which is tried so many seconds while another process has the database locked. Raises Unknown, and
    InterruptedError at a stop signal, which SQLite's own waiting would not heed."""
    end = time.monotonic() + wait
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        if dbfile.caught:
            raise InterruptedError
        if time.monotonic() > end:
            raise Unknown("%s is locked, %s; waited %g s: end that process, or try again with a longer --wait" % (
                path, supervision.lock_holders(path), wait))
        time.sleep(BUSY_POLL)


def lossless(raw):
    """A text of the database; bytes that are no UTF-8 come through, so that one such row neither stops a step nor is unnamed."""
    return raw.decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def reading(path, wait, connect=backups.read_only):
    """A read transaction on an existing file; gives the connection."""
    with contextlib.closing(connect(path)) as db:
        db.text_factory = lossless
        db.execute("BEGIN")
        patiently(lambda: db.execute(schema_check.VERSION).fetchone(), path, wait)
        yield db


@contextlib.contextmanager
def writing(path, wait, settings=()):
    """A transaction on an existing file, behind these PRAGMAs, which keeps other writers out from its begin on; gives the
    connection."""
    with contextlib.ExitStack() as stack:
        db = patiently(lambda: stack.enter_context(dbfile.opened(path, 0)), path, wait)
        db.text_factory = lossless

        def patient(sql):
            return patiently(lambda: db.execute(sql), path, wait)
        for setting in ("PRAGMA cache_size = -%d" % CACHE_KIB,) + tuple(settings):
            patient(setting)
        stack.enter_context(dbfile.transaction(db, execute=patient))
        yield db


def heal(args):
    """Ends what a killed process of ours, or a killed writer, had begun."""
    backups.settle(args.db, args.backup_dir)
    dbfile.sweep(args.db)
    if os.path.isfile(args.db) and dbfile.hot_journal(args.db):
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.ExitStack() as stack:  # whoever looks next says what is wrong
            patiently(lambda: stack.enter_context(dbfile.opened(args.db, 0)), args.db, args.wait)


@contextlib.contextmanager
def alone(args):
    """Holds the migration lock on a healed database; gives the function that sets its note. Raises Refused or Unknown."""
    if os.path.exists(args.db) and not os.access(args.db, os.W_OK):     # SQLite would find out only at the first change
        raise Refused("%s may not be written by uid %d; run as its owner, grant it, or mount its disk for writing" % (
            args.db, os.geteuid()))
    try:
        with migration_lock.hold(args.db) as say:
            heal(args)
            yield lambda note: say("%s, by pid %d" % (note, os.getpid()))
    except migration_lock.Busy as busy:
        raise Refused("another migration of %s is running, %s; wait until it is done" % (args.db, busy))


# What a database is

def objects(schema):
    """(type, name) of all that a schema holds."""
    return {("table", name) for name in schema.tables} | set(schema.others)


def sort_findings(live, wanted):
    """(drift, notes): texts on what differs from a schema of the same version, and on what was added and does no harm."""
    drift, notes = [], []
    for grade, text in schema_check.compare(live, wanted, "what the steps make"):
        if grade != "version":
            (notes if grade == "note" and text.startswith(HARMLESS) else drift).append(text)
    return drift, notes


def strangeness(live, version):
    """Yields why a schema is none that any steps made."""
    if live.tables and "shipments" not in live.tables:
        yield "it is no shipments database: it has no table shipments"
    elif live.tables and not version:
        yield "it has tables and user_version 0, so none of the steps made it"
    elif "migrations" in live.tables and not set(steps.Record._fields) <= set(live.tables["migrations"].columns):
        yield "its table migrations has the columns %s, wanted %s: another tool's, or renamed by hand" % (
            ", ".join(live.tables["migrations"].columns), ", ".join(steps.Record._fields))


def examine(db, known):
    """The State of a database in an open transaction. Raises sqlite3.Error."""
    version, live = db.execute(schema_check.VERSION).fetchone()[0], schema_check.read_schema(db)
    faults = list(strangeness(live, version)) or list(steps.disputes(steps.recorded(db), version, known))
    judgeable = version and not faults      # or it would be compared with what it never was
    drift, notes = sort_findings(live, steps.schema_of(known[:version])) if judgeable else ([], [])
    return State(version, faults, drift, notes)


def examined(path, known, wait):
    """The State of a database file; one that does not exist has version 0. Raises Unknown."""
    if not os.path.exists(path):
        return State(0, [], [], [])
    if not os.path.isfile(path):
        raise Unknown("%s is a folder or a device, not a file; name a database" % path)
    hint = ("; a writer died in the middle of a transaction: python3 seed.py %s --verify, or apply, rolls that back" % path
            if dbfile.hot_journal(path) else "")
    try:
        with reading(path, wait) as db:
            return examine(db, known)
    except sqlite3.Error as error:
        raise Unknown(dbfile.explained(error, path) + hint)


def require_there(path):
    """Raises Unknown where there is no database."""
    if not os.path.exists(path):
        raise Unknown("%s does not exist; name a database, or make one: 'migrate.py %s apply'" % (path, path))


def require_ours(path, state):
    """Raises Unknown where a database is not what its version says."""
    if state.faults:
        raise Unknown("%s: %s; nothing was changed" % (path, some(state.faults)))
    if state.drift:
        raise Unknown("%s was changed by hand since version %d: %s; nothing was changed; 'migrate.py %s repair' puts triggers, "
                      "indexes and views back, anything else is for your own hand" % (
                          path, state.version, some(state.drift), path))


def pending(path, known, version, to):
    """The steps from a version to the one asked for, or to the last. Raises Refused."""
    last = len(known) if to is None else to
    if not 1 <= last <= len(known):
        raise Refused("there is no version %d: the steps end with %d" % (last, len(known)))
    if last < version:
        raise Refused("%s is at version %d, and steps never lead back; 'migrate.py %s restore' puts a backup back"
                      % (path, version, path))
    return known[version:last]


# A step, and its proof

def violations(db):
    """A line for each foreign key that refers to nothing."""
    return ["table %s, %s refers to a row of %s that is not there" % (table, "a row" if row is None else "row %d" % row, parent)
            for table, row, parent, _ in db.execute(VIOLATIONS)]    # a table WITHOUT ROWID has no number to tell


def miscounts(before, after, declared):
    """A line for each table with another change of its number of rows than declared, which is none."""
    for table, count in sorted(before.items()):
        change, allowed = after.get(table, 0) - count, declared.get(table.lower(), 0)
        if allowed is not None and change != allowed:
            yield "table %s had %d rows and has %d: %+d, declared %+d" % (table, count, after.get(table, 0), change, allowed)


def unproven(db, before, declared, wanted):
    """Yields what is not as it should be in the open transaction, cheap looks first."""
    yield from violations(db)
    yield from miscounts(before, backups.counts(db), declared)
    yield from sort_findings(schema_check.read_schema(db), wanted)[0]
    found = backups.integrity(db)
    if found:
        yield found
    if rollups.present(db):
        yield from rollups.differences(db)


def prove(db, what, before, declared, wanted):
    """Raises Refused or sqlite3.Error where something is not as it should be; the caller rolls back."""
    try:
        found = list(unproven(db, before, declared, wanted))
    except sqlite3.Error as error:      # of a view or rollup that can no longer be read, too
        raise type(error)("%s was rolled back: %s" % (what, error))
    if found:
        raise Refused("%s was rolled back: %s" % (what, some(found)))


def require_acceptable(db, step):
    """Raises Refused on rows that a step cannot take, naming them."""
    texts, count = forecast.refusals(db, step)
    if count:
        raise Refused("%s cannot take %d rows: %s; mend them and apply again" % (title(step), count, some(texts, count)))


def execute(db, step):
    for number, statement in enumerate(step.statements, 1):
        try:
            db.execute(statement)
        except sqlite3.Error as error:
            words = " ".join(str(error).split())    # a CHECK is quoted with its line ends
            raise type(error)("%s was rolled back at statement %d of %d: %s" % (title(step), number, len(step.statements), words))


def require_others(db, step, others):
    """Raises Refused where a step dropped what somebody else had made."""
    lost = sorted(others - objects(schema_check.read_schema(db)))
    if lost:
        raise Refused("%s was rolled back: it would drop %s, which no step made; drop that, and make it again afterwards" % (
            title(step), ", ".join("%s %s" % pair for pair in lost)))


def require_version(db, step):
    """Raises Refused where another process has changed the version since we looked."""
    version = db.execute(schema_check.VERSION).fetchone()[0]
    if version != step.number - 1:
        raise Refused("%s follows version %d, and another process has just made it %d" % (title(step), step.number - 1, version))


def run(db, step, known):
    """Does a step inside the caller's transaction, proves and records it; returns its seconds. Raises Refused, sqlite3.Error."""
    began = time.monotonic()
    require_acceptable(db, step)
    others = objects(schema_check.read_schema(db)) - objects(steps.schema_of(known[:step.number - 1]))
    before, records = backups.counts(db), steps.recorded(db)
    execute(db, step)
    require_others(db, step, others)
    if steps.recorded(db) != records:
        raise Refused("%s was rolled back: it would change what the table migrations records" % title(step))
    prove(db, title(step), before, step.rows, steps.schema_of(known[:step.number]))
    seconds = round(time.monotonic() - began, 3)
    steps.record(db, step, TOOL, seconds)
    return seconds


def paths(args):
    """The paths of all backups, newest first."""
    return [backup.path for backup in backups.listed(args.db, args.backup_dir)]


def back_up(db, args, version, tell):
    """A Backup of what the transaction found. Raises Refused, OSError or sqlite3.Error."""
    broken = violations(db)
    if broken:
        raise Refused("%s is broken already: %s; nothing was changed" % (args.db, some(broken)))
    backup = backups.make(db, args.db, args.backup_dir, version, time.time())
    tell("backup: %s, %s, found sound" % (backup.path, human(backup.bytes)))
    return backup


def prune(args, made, tell):
    for old in backups.prune(args.db, args.backup_dir, args.keep, made):
        tell("removed the old backup " + old.path)


# Commands: each gets the arguments, all steps and a function that prints a line; gives its exit code and its JSON document

def status(args, known, tell):
    state = examined(args.db, known, args.wait)
    todo, saved = [] if state.faults else known[state.version:], paths(args)
    word = "unknown" if state.faults or state.drift else "behind" if todo else "current"
    note = migration_lock.running(args.db)
    tell("%s: version %d of %d%s" % (args.db, state.version, len(known), "" if os.path.exists(args.db) else ", not made yet"))
    tell("pending: " + ("cannot tell" if state.faults else
                        ", ".join("%d %s" % (step.number, step.name) for step in todo) or "none"))
    for kind, texts in (("fault", state.faults), ("changed by hand", state.drift), ("note", state.notes)):
        for text in texts:
            tell("%s: %s" % (kind, text))
    if note is not None:
        tell("running: " + note)
    tell("backups: %d%s" % (len(saved), ", the newest " + saved[0] if saved else ""))
    if word == "behind":
        tell("next: python3 migrate.py %s plan" % args.db)
    return {"current": 0, "behind": 1, "unknown": 3}[word], {
        "database": args.db, "state": word, "version": state.version, "wanted": len(known),
        "pending": [{"number": step.number, "name": step.name} for step in todo],
        "faults": state.faults, "drift": state.drift, "notes": state.notes, "running": note, "backups": saved}


def foreseen(args, known, todo):
    """The Forecast of the pending steps."""
    with reading(args.db, args.wait) if os.path.exists(args.db) else steps.built(()) as db:
        return forecast.forecast(db, args.db, known, todo, args.backup_dir)


def tell_work(item, tell):
    """Prints what a step would do."""
    step = item.step
    tell("\n%s: %s" % (title(step), step.purpose))
    for table, (count, words) in sorted(item.touched.items()):
        tell("  {}: {:,} rows {}".format(table, count, ", ".join(words)))
    tell("  at most %s of disk while it runs, about %.0f s" % (human(item.bytes), item.seconds))
    if item.refused is None:
        tell("  rows that it cannot take: known only when the step before is done")
    elif item.refused_rows:
        tell("  CANNOT TAKE %d rows: %s" % (item.refused_rows, some(item.refused, item.refused_rows)))
    for statement in step.settings + step.statements:
        tell("\n" + statement)


def work_document(item):
    return {"number": item.step.number, "name": item.step.name, "purpose": item.step.purpose,
            "sql": item.step.settings + item.step.statements,
            "touches": {table: {"rows": count, "how": words} for table, (count, words) in item.touched.items()},
            "disk_bytes": item.bytes, "seconds": round(item.seconds, 1),
            "refused": item.refused, "refused_rows": item.refused_rows}


def tell_cost(args, ahead, tell):
    """Prints what all steps together need."""
    tell("\nfirst, a backup of %s in %s; the newest %d are kept" % (human(ahead.backup_bytes), args.backup_dir, args.keep))
    for disk in ahead.disks:
        tell("disk of %s: %s needed at most, %s free%s" % (
            disk.folder, human(disk.needed), human(disk.free), "" if disk.free >= disk.needed else ": TOO LITTLE"))
    tell("about %.0f s in all; the service serves its last figures meanwhile, writers wait until it is done" % ahead.seconds)
    tell("next: rehearse on a copy (docs/migrations.md), then python3 migrate.py %s apply" % args.db)


def plan(args, known, tell):
    state = examined(args.db, known, args.wait)
    require_ours(args.db, state)
    todo = pending(args.db, known, state.version, args.to)
    ahead = foreseen(args, known, todo)
    to = state.version + len(todo)
    tell("%s: version %d, %s" % (args.db, state.version, "to %d in %d steps" % (to, len(todo)) if todo else "up to date"))
    for item in ahead.works:
        tell_work(item, tell)
    if todo:
        tell_cost(args, ahead, tell)
    hopeless = any(item.refused_rows for item in ahead.works) or any(disk.free < disk.needed for disk in ahead.disks)
    return int(hopeless), {
        "database": args.db, "version": state.version, "to": to, "steps": [work_document(item) for item in ahead.works],
        "backup_bytes": ahead.backup_bytes, "disks": [dict(disk._asdict()) for disk in ahead.disks],
        "seconds": round(ahead.seconds, 1)}


def require_room(disks):
    """Raises Refused where a backup or the steps would not fit."""
    for disk in disks:
        if disk.free < disk.needed:
            raise Refused("disk full: %s has %s free, backup and steps take %s at most; make room, or name another place for the "
                          "backup with --backup-dir; nothing was changed" % (disk.folder, human(disk.free), human(disk.needed)))


def require_ready(ahead):
    """Raises Refused where a forecast says that the steps would fail."""
    for item in ahead.works:
        if item.refused_rows:
            raise Refused("%s cannot take %d rows: %s; mend them; nothing was changed" % (
                title(item.step), item.refused_rows, some(item.refused, item.refused_rows)))
    require_room(ahead.disks)


def create(args, known, todo):
    """Does the steps in a database that appears, whole, after the last; yields each with its seconds."""
    with dbfile.new_database(args.db) as db:
        for step in todo:
            for setting in steps.prelude(step):
                db.execute(setting)
            with dbfile.transaction(db):
                seconds = run(db, step, known)
            yield step, seconds


def upgrade(args, known, todo, tell, say):
    """Backs up, then does the steps; yields each with its seconds once it is committed."""
    made = None
    for step in todo:
        say("to version %d, at %s" % (todo[-1].number, title(step)))
        with writing(args.db, args.wait, steps.prelude(step)) as db:
            require_version(db, step)
            if step is todo[0] and step.number > 1:     # with the lock that the step goes on to use: nobody writes in between
                made = back_up(db, args, step.number - 1, tell)
            seconds = run(db, step, known)
        yield step, seconds
    prune(args, made, tell)


def apply(args, known, tell):
    with alone(args) as say:
        state = examined(args.db, known, args.wait)
        require_ours(args.db, state)
        todo = pending(args.db, known, state.version, args.to)
        document = {"database": args.db, "from": state.version, "to": state.version + len(todo), "steps": []}
        if not todo:
            tell("%s: version %d, up to date" % (args.db, state.version))
            return 0, document
        say("to version %d" % todo[-1].number)
        require_ready(foreseen(args, known, todo))
        exists = os.path.exists(args.db)
        done = upgrade(args, known, todo, tell, say) if exists else create(args, known, todo)
        for step, seconds in done:
            tell("%s: %.1f s" % (title(step), seconds))
            document["steps"].append({"number": step.number, "name": step.name, "seconds": seconds})
    tell("%s: version %d" % (args.db, document["to"]))
    return 0, dict(document, backups=paths(args))


def undecodable(db):
    """Yields a line for each shipment with a text that is not UTF-8, which SQLite's own checks let pass."""
    db.text_factory = str
    try:
        for _ in db.execute(ROWS):
            pass
        return
    except sqlite3.OperationalError as error:
        if "decode" not in str(error):
            raise
    finally:
        db.text_factory = lossless
    rows = db.execute(ROWS)
    names = [column[0] for column in rows.description]
    for row in rows:
        for name, value in zip(names, row):
            if isinstance(value, str) and value.encode("utf-8", "surrogateescape") != value.encode("utf-8", "replace"):
                yield "shipment %d: its %s is not UTF-8: %a" % (row[0], name, value)


def verify(args, known, tell):
    require_there(args.db)
    state = examined(args.db, known, args.wait)
    # A connection that cannot write does not even read the CHECKs, so that integrity_check would pass over them.
    connect = (lambda path: dbfile.connect(path, 0)) if os.access(args.db, os.W_OK) else backups.read_only
    with reading(args.db, args.wait, connect) as db:
        found = state.faults + state.drift + violations(db) + list(filter(None, [backups.integrity(db)]))
        if rollups.present(db):
            found += rollups.differences(db)
        if "shipments" in backups.counts(db):
            found += undecodable(db)
        rows = backups.counts(db)
    for text in found:
        tell(text)
    verdict = "%d differences" % len(found) if found else "as its steps made it, sound"
    tell("%s: version %d, %s" % (args.db, state.version, verdict))
    for table, count in sorted(rows.items()):
        tell("  {}: {:,} rows".format(table, count))
    return int(bool(found)), {"database": args.db, "version": state.version, "differences": found, "notes": state.notes,
                              "rows": rows}


def make_backup(args, known, tell):
    require_there(args.db)
    with alone(args) as say:
        say("making a backup")
        require_room(forecast.disks(args.db, args.backup_dir, os.path.getsize(args.db), 0))
        with writing(args.db, args.wait) as db:
            made = back_up(db, args, db.execute(schema_check.VERSION).fetchone()[0], tell)
        prune(args, made, tell)
    return 0, {"database": args.db, "backups": paths(args)}


def put_back(db, live, known):
    """Makes triggers, indexes and views again that differ from what the steps make; returns their (type, name)."""
    wanted = steps.schema_of(known)
    altered = [pair for pair, text in wanted.others.items() if live.others.get(pair) != text]
    for kind, name in altered:
        db.execute("DROP %s IF EXISTS %s" % (kind, schema_check.quoted(name)))
    present = {(kind, name.lower()) for kind, name in db.execute(EXISTING)}
    with steps.built(known) as model:
        for kind, name, sql in model.execute(MADE):
            if (kind, name.lower()) not in present:     # with a view go the triggers on it
                db.execute(sql)
    return sorted(altered)


def require_mendable(path, state):
    """Raises Refused where a database was changed in a way that only a person can judge."""
    beyond = [text for text in state.drift if not text.startswith(MENDABLE) or text.endswith("is extra")]
    if state.faults or beyond:
        raise Refused("%s: %s; nothing was changed: mend that by hand (a column that is missing beside one that is extra may "
                      "have been renamed), or 'migrate.py %s restore'" % (path, some(state.faults + beyond), path))


def miscounted(args):
    """Whether a rollup is not what the rows say, as after writes past a trigger that was missing for a while."""
    with reading(args.db, args.wait) as db:
        return rollups.present(db) and any(True for _ in rollups.differences(db))


def mend(args, known, tell):
    """Backs up, then makes what differs from these steps as they make it, and the rollups anew; returns what it put back."""
    with writing(args.db, args.wait) as db:
        before = backups.counts(db)
        back_up(db, args, len(known), tell)
        altered = put_back(db, schema_check.read_schema(db), known)
        if rollups.present(db):         # what changed while a trigger was missing was not counted
            rollups.rebuild(db)
        prove(db, "the repair", before, dict.fromkeys(rollups.TABLES), steps.schema_of(known))
    return altered


def repair(args, known, tell):
    require_there(args.db)
    with alone(args) as say:
        state = examined(args.db, known, args.wait)
        require_mendable(args.db, state)
        if not state.drift and not miscounted(args):
            tell("%s: version %d, nothing to repair" % (args.db, state.version))
            return 0, {"database": args.db, "version": state.version, "repaired": []}
        say("repairing version %d" % state.version)
        altered = mend(args, known[:state.version], tell)
    for kind, name in altered:
        tell("put back: %s %s" % (kind, name))
    if not altered:
        tell("made anew: the rollups")
    tell("%s: version %d, as its steps made it" % (args.db, state.version))
    return 0, {"database": args.db, "version": state.version, "repaired": ["%s %s" % pair for pair in altered],
               "backups": paths(args)}


def chosen(args, version):
    """The path of the backup to put back. Raises Refused."""
    if args.backup == args.db:
        raise Refused("%s is the database itself; name a backup of it" % args.db)
    if args.backup:
        return args.backup
    found = backups.listed(args.db, args.backup_dir)
    earlier = [backup for backup in found if version is None or backup.version < version]
    if not earlier:
        raise Refused("%s has no backup of an earlier version in %s; name one: 'migrate.py %s restore BACKUP'; there %s" % (
            args.db, args.backup_dir, args.db, "are: " + ", ".join(backup.path for backup in found) if found else "is none"))
    return earlier[0].path


def contradiction(path, wait):
    """The first rollup of a database that is not what its rows say, or None."""
    with reading(path, wait) as db:
        return next(rollups.differences(db), None) if rollups.present(db) else None


def require_one_moment(source, draft, args, tell):
    """Raises Refused where the rollups of a copy of unknown making contradict its rows: copied while a writer was at work, it may
    mix two moments and pass SQLite's own checks. A backup of ours was made under a lock, perhaps to repair just that."""
    found = contradiction(draft, args.wait)
    if found and not backups.bears_our_name(source):
        raise Refused("%s cannot be put back: its rollups do not agree with its rows, as after cp under a writer: %s; nothing "
                      "was changed" % (source, found))
    if found:
        tell("before that backup something had written past the triggers: 'migrate.py %s repair' mends it" % args.db)


def fill(args, known, source, draft, tell):
    """Copies a backup into a draft and looks whether it is sound. Raises Refused, Unknown or OSError."""
    try:
        with reading(source, args.wait) as db:  # which holds the file still
            rows = backups.counts(db)
            if "shipments" not in rows:
                raise Refused("%s is no shipments database" % source)
            backups.copy(source, draft)
        found, state = backups.fault(draft, rows), examined(draft, known, args.wait)
    except sqlite3.Error as error:
        raise Refused("%s cannot be put back: %s; nothing was changed" % (source, dbfile.explained(error, source)))
    if found or state.faults:
        raise Refused("%s cannot be put back: %s; nothing was changed" % (source, found or some(state.faults)))
    require_one_moment(source, draft, args, tell)
    dbfile.sync(draft)
    tell("from %s: version %d, %d shipments, found sound" % (source, state.version, rows["shipments"]))
    for text in state.drift:
        tell("changed by hand before that backup: " + text)


def swap(args, draft, version):
    """Puts the draft in the place of the database; returns what that is kept as. SQLite refuses writes through a name that is no
    longer the file's (SQLITE_READONLY_DBMOVED), so that no row of a connected writer is lost unseen."""
    if os.path.getsize(args.db) == 0:   # a transaction would begin it with a journal, which must not be moved away
        return backups.take_place(draft, args.db, "damaged")
    try:
        # A write-ahead log would be taken for the new file's; the lock keeps writers out until the names have changed.
        with writing(args.db, args.wait, ["PRAGMA journal_mode = DELETE"]) as db:
            kind = "damaged" if version is None or backups.integrity(db) else "v%d" % version
            return backups.take_place(draft, args.db, kind)
    except sqlite3.OperationalError:    # locked, not writable, an I/O error: no word on what is in it
        raise
    except sqlite3.DatabaseError:       # no database any more, so that it cannot be locked either
        return backups.take_place(draft, args.db, "damaged")


def restore(args, known, tell):
    kept, version = None, None
    with alone(args) as say:
        say("restoring a backup")
        with contextlib.suppress(Unknown):      # a damaged one has no version, an empty or missing one 0
            version = examined(args.db, known, args.wait).version or None
        exists, source = os.path.exists(args.db), chosen(args, version)
        size = os.path.getsize(source) if os.path.exists(source) else 0
        require_room(forecast.disks(args.db, os.path.dirname(args.db), size, 0))
        with backups.drafted(args.db, os.path.dirname(args.db), args.db if exists else source) as draft:
            fill(args, known, source, draft, tell)
            if exists:
                kept = swap(args, draft, version)
                tell("what was there is kept as %s" % kept)
            else:
                dbfile.publish(draft, args.db)
    dbfile.sync(os.path.dirname(args.db))
    tell("%s: put back; start writers anew, the service notices by itself" % args.db)
    return 0, {"database": args.db, "restored": source, "kept": kept}


COMMANDS = {"status": status, "plan": plan, "apply": apply, "verify": verify, "backup": make_backup, "repair": repair,
            "restore": restore}
LOOKING = ("status", "plan", "verify")  # they change nothing, and exit with 3 where they cannot tell


def bounded(kind, low):
    """An argparse type: a number of at least this."""
    def read(text):
        number = kind(text)
        if not number >= low:           # nan, too
            raise argparse.ArgumentTypeError("%s is less than %s" % (text, low))
        return number
    read.__name__ = kind.__name__       # argparse names it where the text is no number at all
    return read


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="migrate.py", usage="migrate.py DB status|plan|apply|verify|backup|repair|restore [options]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("db", metavar="DB", type=os.path.realpath, help="the database file")
    add("command", metavar="COMMAND", choices=sorted(COMMANDS), help=", ".join(COMMANDS))
    add("backup", metavar="BACKUP", nargs="?", type=os.path.realpath, help="what restore puts back")
    add("--to", metavar="N", type=bounded(int, 1), help="stop at this version (plan, apply)")
    add("--format", choices=("text", "json"), default="text", help="json: one document instead of lines")
    add("--wait", metavar="SECONDS", type=bounded(float, 0), default=BUSY_SECONDS,
        help="for another process that holds the lock (default %d)" % BUSY_SECONDS)
    add("--keep", metavar="N", type=bounded(int, 1), default=KEEP, help="backups that apply and backup leave (default %d)" % KEEP)
    add("--quiet", action="store_true", help="print only what did not go well, as for cron")
    add("--backup-dir", metavar="DIR", type=os.path.realpath, help="where backups are (default: beside the database)")
    args, rest = parser.parse_known_args(argv)
    if args.command == "restore" and not args.backup and rest and not rest[0].startswith("-"):
        args.backup = os.path.realpath(rest.pop(0))     # behind an option argparse does not expect it
    if rest:
        parser.error("unrecognized arguments: " + " ".join(rest))
    if args.backup and args.command != "restore":
        parser.error("%s takes no BACKUP" % args.command)
    if args.to and args.command not in ("plan", "apply"):
        parser.error("%s takes no --to" % args.command)
    args.backup_dir = args.backup_dir or os.path.dirname(args.db)
    return args


def show(text):
    """Prints a line, with escapes for what the encoding lacks; where nobody takes it, as behind `head`, the work goes on."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        show(text.encode("ascii", "backslashreplace").decode())
    except OSError:
        sys.stdout = open(os.devnull, "w")


def perform(args):
    """Runs the command; returns its exit code."""
    told = []
    tell = told.append if args.quiet else show if args.format == "text" else lambda text: None
    try:
        code, document = COMMANDS[args.command](args, steps.read_steps(), tell)
    except (Unknown, steps.StepError, sqlite3.Error, OSError) as error:
        if args.command not in LOOKING or dbfile.caught:
            raise
        code, document = 3, {"database": args.db, "error": dbfile.explained(error, args.db)}
        dbfile.notice(document["error"])
    if args.format == "json":
        told = [json.dumps(document, indent=2)]
    for text in told if code or not args.quiet else ():
        show(text)
    return code


def stopped(args):
    """What to say of a run that a signal ended."""
    try:
        return "stopped; %s is whole, at version %d" % (args.db, examined(args.db, steps.read_steps(), 0).version)
    except (Unknown, steps.StepError, OSError):
        return "stopped; %s is whole" % args.db


def main(argv=None):
    args = parse(argv)
    return dbfile.exit_code(lambda: perform(args), args.db, lambda: stopped(args), (Unknown, steps.StepError))


if __name__ == "__main__":
    sys.exit(main())
