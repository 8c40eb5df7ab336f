"""The database as it is read: every way in which it can fail, told apart by its facts, and the way back."""

import logging
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import schema_check
import store as store_module
import supervision
from conftest import DEADLINE, ROOT, add_rows, copy_product, make_database, wait_for
from store import Store, Trouble, in_force

ROW = {"reference": "a", "status": "pending"}

# Programs that another process runs on the database; each prints a line when it is where it should be.
HOLD_LOCK = "c.execute('BEGIN EXCLUSIVE'); print(flush=True); input()"
LONG_WRITE = """c.execute('PRAGMA cache_size = 10'); c.execute('BEGIN')
for i in range(3000): c.execute("INSERT INTO shipments (reference, status) VALUES (?, 'pending')", ('r%d' % i,))
print(flush=True); input()"""
SHORT_WRITE = "c.execute('BEGIN IMMEDIATE'); c.execute(\"UPDATE shipments SET cost = 1\"); print(flush=True); input()"


VERSION = schema_check.wanted_schema().version

# A migration, and where it is: just begun, in a short transaction, in one that has outgrown its cache, between two steps.
MIGRATION = """sys.path.insert(0, %r); import migration_lock
held = migration_lock.hold(sys.argv[1]); held.__enter__()('from version 3 to 4')
""" % str(ROOT)
MIGRATION_BEGUN = MIGRATION + "print(flush=True); input()"
MIGRATION_AT_WORK = MIGRATION + HOLD_LOCK
MIGRATION_WRITING = MIGRATION + LONG_WRITE
MIGRATION_HALF_WAY = MIGRATION + "c.execute('ALTER TABLE rollup_due RENAME TO rollup_old'); print(flush=True); input()"


class Writer:
    """Another process that has the database open and runs a program on it."""

    def __init__(self, path, program):
        script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n" + program
        self.process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def path(tmp_path):
    return make_database(tmp_path / "a.db", [ROW])


@pytest.fixture
def store(path):
    """A Store whose every look is a new second, with little patience."""
    ticks = iter(range(1800000000, 1900000000))
    made = Store(str(path), .3, 60, clock=lambda: next(ticks))
    yield made
    made.close()


def test_figures_read_while_ours_were_looked_at_are_not_confused_with_them(path, monkeypatch):
    store = Store(str(path), 1, 60, clock=lambda: 1800000000)
    os.utime(str(path), (1, 1))
    first = store.current(float("inf")).figures
    stat = os.stat

    def delayed(name):
        """Looks at the file after another thread has read what was committed meanwhile."""
        monkeypatch.setattr(os, "stat", stat)
        add_rows(sqlite3.connect(str(path)), [dict(ROW, reference="b")])
        os.utime(str(path), (2, 2))
        store.snapshot()
        return stat(name)
    monkeypatch.setattr(os, "stat", delayed)
    assert store.current(float("inf")).figures is not first


def test_while_another_asks_the_last_figures_are_served_for_a_moment(store, monkeypatch):
    first = store.current(float("inf")).figures
    with store.lock:
        assert store.current(float("inf")).figures is first
        monkeypatch.setattr(store_module, "SHARE_SECONDS", 0)
        with pytest.raises(Trouble):    # then it waits for its turn
            store.current(time.monotonic() + .05)
    assert store.current(float("inf")).figures is not first


@pytest.fixture
def events(monkeypatch):
    """The names of the events logged, with their reasons, but for those at each reading."""
    seen = []

    def note(level, name, **fields):
        if level > logging.DEBUG:
            seen.append((name, fields.get("reason")))
    monkeypatch.setattr(store_module, "event", note)
    return seen


def total(store):
    return sum(store.snapshot().figures.statuses.values())


def trouble(store):
    """(reason, status, detail) of the Trouble that a snapshot raises."""
    started = time.monotonic()
    with pytest.raises(Trouble) as raised:
        store.snapshot()
    assert time.monotonic() - started < DEADLINE
    return raised.value.reason, raised.value.status, raised.value.detail


def test_the_reader_cannot_write(store):
    store.snapshot()
    with pytest.raises(sqlite3.OperationalError):
        store.connection.execute("DELETE FROM shipments")


def test_a_locked_database_is_named_with_its_holder_within_the_deadline(store, path):
    with Writer(path, HOLD_LOCK) as writer:
        reason, status, detail = trouble(store)
    assert (reason, status) == ("locked", 503)
    assert "held by pid %d (" % writer.process.pid in detail and "waited 0." in detail


READING = "c.execute('BEGIN'); c.execute('SELECT count(*) FROM shipments').fetchone(); print(flush=True); input()"
COMMITTING = """c.execute('PRAGMA busy_timeout = 60000'); c.execute('BEGIN IMMEDIATE')
c.execute("INSERT INTO shipments (reference, status) VALUES ('b', 'pending')"); print(flush=True); c.execute('COMMIT')"""


def test_of_a_writer_and_the_reader_that_it_waits_for_the_reader_is_told(store, path):
    with Writer(path, READING) as reader, Writer(path, COMMITTING) as writer:
        wait_for(lambda: len(supervision.file_holders(str(path), ("WRITE",))) == 1, "the commit to wait")
        told = trouble(store)[2]
    found = dict(re.findall(r"pid (\d+) \(.*?, uid \d+\)( which only reads)?", told, re.DOTALL))
    assert found == {str(reader.process.pid): " which only reads", str(writer.process.pid): ""}


def test_while_a_writer_holds_the_lock_the_last_figures_are_served_and_then_no_more(store, path, events):
    assert total(store) == 1
    with Writer(path, LONG_WRITE):
        snapshot = store.snapshot()
        assert snapshot.stale.reason == "locked" and sum(snapshot.figures.statuses.values()) == 1
        assert store.age() < DEADLINE
        store.stale_seconds = 0
        assert trouble(store)[0] == "locked"
    assert trouble(store)[0] == "hot_journal"
    assert events == [("database_stale", "locked"), ("database_unavailable", "locked"), ("database_unavailable", "hot_journal")]


def test_with_older_figures_at_hand_a_lock_is_waited_for_only_briefly(store, path):
    total(store)
    store.timeout = 30
    with Writer(path, HOLD_LOCK):
        started = time.monotonic()
        assert store.snapshot().stale.reason == "locked"
        assert time.monotonic() - started < DEADLINE


def test_a_writer_that_has_not_yet_to_commit_holds_up_nobody(store, path):
    with Writer(path, SHORT_WRITE):
        assert store.snapshot().stale is None


def test_the_end_of_a_lock_is_noticed_and_said_once(store, path, events):
    total(store)
    with Writer(path, HOLD_LOCK):
        store.snapshot()
    assert [store.snapshot().stale for _ in range(3)] == [None] * 3
    assert events == [("database_stale", "locked"), ("database_recovered", "locked")]


def grown_old(store):
    """The store once it has read figures, which are an hour old by now."""
    total(store)
    store.good_at -= 3600
    return store


@pytest.mark.parametrize("program", [MIGRATION_AT_WORK, MIGRATION_HALF_WAY], ids=["locked", "half way"])
def test_while_a_migration_runs_the_last_figures_are_served_however_old(store, path, events, program):
    grown_old(store)
    with Writer(path, program):
        snapshots = [store.snapshot() for _ in range(3)]
        assert store.age() > 3600
    assert [(snapshot.stale.reason, str(snapshot.stale)) for snapshot in snapshots] == [
        ("migrating", "database %s: migration running: from version 3 to 4" % path)] * 3
    assert len({id(snapshot.figures) for snapshot in snapshots}) == 1
    assert events == [("database_stale", "migrating")]


def test_a_lock_is_not_waited_for_while_a_migration_has_it(store, path):
    store.timeout = 30
    with Writer(path, MIGRATION_AT_WORK):
        assert trouble(store)[:2] == ("migrating", 503)     # within the deadline, and so is the next
        assert trouble(store)[:2] == ("migrating", 503)


def test_a_migration_that_begins_while_a_lock_is_waited_for_ends_the_wait(store, path):
    store.timeout = 30
    begins = time.monotonic() + .2
    with Writer(path, HOLD_LOCK):
        store.migration = lambda: Trouble("migrating", "") if time.monotonic() > begins else None
        assert trouble(store)[:2] == ("migrating", 503)


def test_the_end_of_a_migration_is_noticed_and_said_once(store, path, events):
    grown_old(store)
    with Writer(path, MIGRATION_AT_WORK):
        store.snapshot()
    assert [store.snapshot().stale for _ in range(3)] == [None] * 3
    assert events == [("database_stale", "migrating"), ("database_recovered", "migrating")]


@pytest.mark.parametrize("program, reason", [(MIGRATION_WRITING, "hot_journal"), (MIGRATION_HALF_WAY, "schema_mismatch")],
                         ids=["writing", "half way"])
def test_a_killed_migration_is_named_by_what_it_left(store, path, events, program, reason):
    grown_old(store)
    with Writer(path, program) as writer:
        assert store.snapshot().stale.reason == "migrating"
        writer.kill()
        assert trouble(store)[0] == reason
    assert len(events) == 2 and events[1] in (("database_unavailable", "hot_journal"), ("schema_mismatch", "schema_mismatch"))


def test_a_lock_that_outlives_a_migration_is_bridged_as_any_other(store, path):
    with Writer(path, MIGRATION_BEGUN) as migration, Writer(path, HOLD_LOCK):
        assert trouble(store)[0] == "migrating"
        migration.kill()
        assert trouble(store)[0] == "locked"


def test_a_version_on_the_way_that_has_all_that_is_needed_is_served(store, path):
    with Writer(path, MIGRATION_BEGUN):
        sqlite3.connect(str(path)).execute("PRAGMA user_version = 999")
        add_rows(sqlite3.connect(str(path)), [dict(ROW, reference="b")])
        assert total(store) == 2 and store.snapshot().stale is None


def test_figures_of_a_former_file_never_bridge_a_migration_of_the_next(store, path):
    total(store)
    make_database(path.parent / "b.db").rename(path)
    with Writer(path, MIGRATION_HALF_WAY):
        assert trouble(store)[:2] == ("migrating", 503)


def test_who_never_wants_old_figures_gets_none_from_before_a_migration(store, path):
    total(store)
    store.stale_seconds = 0
    with Writer(path, MIGRATION_AT_WORK):
        assert trouble(store)[:2] == ("migrating", 503)


def test_while_nothing_is_wrong_nobody_asks_for_a_migration(store, path):
    store.migration = None
    with Writer(path, SHORT_WRITE):
        assert total(store) == 1 and store.current(float("inf")).stale is None


def test_a_hot_journal_is_named_with_the_command_that_heals_it(store, path):
    with Writer(path, LONG_WRITE) as writer:
        writer.kill()
        reason, status, detail = trouble(store)
    assert (reason, status) == ("hot_journal", 503)
    assert "python3 seed.py %s --verify" % path in detail
    sqlite3.connect(str(path)).execute("SELECT count(*) FROM shipments").fetchone()
    assert total(store) == 1


def test_a_moved_database_is_missing_and_its_new_place_named(store, path, events):
    total(store)
    path.rename(path.parent / "b.db")
    reason, status, detail = trouble(store)
    assert (reason, status) == ("missing", 503) and detail.endswith("it was moved to %s" % (path.parent / "b.db"))
    (path.parent / "b.db").rename(path)
    assert total(store) == 1
    assert events == [("database_unavailable", "missing"), ("database_recovered", "missing")]


def test_a_deleted_database_stays_open_so_that_its_data_can_be_copied_back(store, path):
    total(store)
    before = path.read_bytes()
    path.unlink()
    reason, _, detail = trouble(store)
    assert reason == "missing" and "was deleted, but is still open here: copy /proc/%d/fd/" % os.getpid() in detail
    rescue = detail.split("copy ")[1].split()[0]
    shutil.copyfile(rescue, str(path))
    assert path.read_bytes() == before and total(store) == 1


def test_a_replaced_database_is_noticed_and_read(store, path, events):
    assert total(store) == 1
    make_database(path.parent / "b.db", [ROW, dict(ROW, reference="b")]).rename(path)
    assert total(store) == 2
    assert (events, store.replaced) == ([("database_replaced", None)], 1)


def rescued(text):
    """The number of shipments in what a detail says can be copied."""
    with tempfile.NamedTemporaryFile() as copy:
        shutil.copyfile(text.split("copy ")[1].split()[0], copy.name)
        return sqlite3.connect(copy.name).execute("SELECT count(*) FROM shipments").fetchone()[0]


def test_an_empty_file_made_in_the_place_of_a_deleted_one_does_not_cost_the_last_copy(store, path):
    assert total(store) == 1
    path.unlink()
    path.touch()
    reason, _, detail = trouble(store)
    assert reason == "truncated" and "was deleted, but is still open here: copy /proc/" in detail
    assert trouble(store)[2] == detail and rescued(detail) == 1


def test_a_file_that_was_overwritten_by_a_rename_can_still_be_copied_while_another_is_served(store, path, monkeypatch):
    said = {}
    monkeypatch.setattr(store_module, "event", lambda level, name, **fields: said.update({name: fields.get("detail")}))
    add_rows(sqlite3.connect(str(path)), [dict(ROW, reference="b")])
    assert total(store) == 2
    os.rename(str(make_database(path.parent / "older.db", [ROW])), str(path))
    assert total(store) == 1
    told = said["database_replaced"]
    assert "copy %s before any restart" % store.former[1] in told and rescued(told) == 2


def test_of_two_deleted_files_only_the_later_stays_open(store, path):
    for number in range(3):
        total(store)
        os.rename(str(make_database(path.parent / ("%d.db" % number), [ROW])), str(path))
    total(store)
    names = [name for _, name in supervision.open_files(os.getpid())]
    assert names.count("%s (deleted)" % path) == 1


def test_a_file_that_keeps_another_name_is_not_held_open(store, path):
    total(store)
    os.link(str(path), str(path) + ".kept")
    os.rename(str(make_database(path.parent / "b.db", [ROW])), str(path))
    assert total(store) == 1 and store.former is None


@pytest.mark.parametrize("before, after, told", [
    (200, 200, None), (200, 198, None), (200, 197, "shipments_dropped"), (200, 0, "shipments_dropped"),
    (400, 499, None), (400, 500, "shipments_jumped"), (10, 109, None), (10, 110, "shipments_jumped"),
])
def test_a_leap_in_the_number_of_shipments_is_told_once(tmp_path, events, before, after, told):
    path = make_database(tmp_path / "many.db", [dict(ROW, reference=str(number)) for number in range(before)])
    ticks = iter(range(1800000000, 1900000000))
    store, db = Store(str(path), .3, 60, clock=lambda: next(ticks)), sqlite3.connect(str(path))
    assert total(store) == before
    db.execute("DELETE FROM shipments WHERE id > ?", [after])
    add_rows(db, [dict(ROW, reference=str(number)) for number in range(before, after)])
    assert total(store) == total(store) == after
    assert events == [(told, None)] * bool(told)
    assert (store.leap and store.leap[1:]) == ((before, after) if told else None)


def test_a_database_with_fewer_shipments_in_the_place_of_another_is_told_too(store, path, events):
    add_rows(sqlite3.connect(str(path)), [dict(ROW, reference="b")])
    assert total(store) == 2
    os.rename(str(make_database(path.parent / "older.db", [ROW])), str(path))
    assert total(store) == 1 and events == [("database_replaced", None), ("shipments_dropped", None)]


WAL_WRITE = """c.execute('PRAGMA journal_mode = WAL'); c.execute("INSERT INTO shipments (reference, status) VALUES ('wal', 'pending')")
print(flush=True); input()"""


def test_figures_of_a_removed_write_ahead_log_are_refused_and_the_log_can_still_be_copied(store, path, tmp_path):
    with Writer(path, WAL_WRITE):
        assert total(store) == 2
    os.unlink(str(path) + "-wal")
    reason, _, detail = trouble(store)
    assert reason == "wal" and "its write-ahead log was removed" in detail
    copy = tmp_path / "copy.db"
    shutil.copy(str(path), str(copy))
    shutil.copyfile(detail.split("copy ")[1].split()[0], str(copy) + "-wal")
    assert sqlite3.connect(str(copy)).execute("SELECT count(*) FROM shipments").fetchone() == (2,)


def test_figures_of_a_former_file_never_bridge_a_lock_on_the_next(store, path):
    total(store)
    os.truncate(str(path), 0)
    assert trouble(store)[0] == "truncated"
    make_database(path.parent / "b.db", [ROW, dict(ROW, reference="b")]).rename(path)
    with Writer(path, HOLD_LOCK):
        assert trouble(store)[0] == "locked"
    assert total(store) == 2


def twins(folder):
    """Two databases of the same size and with the same counters in their headers, but 1 and 2 shipments in exception."""
    for count in (1, 2):
        rows = [dict(ROW, reference=str(i), status="exception" if i < count else "pending") for i in range(3)]
        yield make_database(folder / ("twin%d.db" % count), rows).read_bytes()


def test_a_file_overwritten_in_place_is_read_anew_even_if_its_counters_are_the_same(store, path):
    one, two = twins(path.parent)
    assert one[24:40] == two[24:40] and len(one) == len(two)
    for content, exceptions in ((one, 1), (two, 2), (one, 1)):
        path.write_bytes(content)
        assert store.snapshot().figures.statuses["exception"] == exceptions


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_damage_under_an_open_connection_is_seen_through_its_page_cache(store, path):
    whole = path.read_bytes()
    total(store)
    overwrite(path, 0, b"x" * 16)
    assert trouble(store)[0] == "corrupt"
    path.write_bytes(whole)
    assert total(store) == 1


def test_another_database_copied_over_it_is_not_called_damaged(store, path, events):
    total(store)
    rows = [dict(ROW, reference=str(i), origin="x" * 500) for i in range(200)]
    path.write_bytes(make_database(path.parent / "b.db", rows).read_bytes())
    assert total(store) == 200
    assert [name for name, _ in events if name == "database_unavailable"] == []


def test_a_replacement_with_another_schema_is_a_mismatch(store, path):
    total(store)
    other = sqlite3.connect(str(path.parent / "b.db"))
    other.execute("CREATE TABLE t (x)")
    other.close()
    (path.parent / "b.db").rename(path)
    reason, status, detail = trouble(store)
    assert (reason, status) == ("schema_mismatch", 500) and "table shipments is missing" in detail


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("damage, reason, words", [
    (lambda path: os.truncate(str(path), 0), "truncated", "the file is empty (0 bytes)"),
    (lambda path: os.truncate(str(path), 6000), "truncated", "the file has 6000 bytes, its header says"),
    (lambda path: overwrite(path, 0, b"\0" * 100), "corrupt", "first bytes are not those of a SQLite database"),
    (lambda path: path.write_bytes(b"not a database at all" * 500), "corrupt", "first bytes are not those of a SQLite database"),
])
def test_a_damaged_file_is_told_apart_and_recovers_when_put_back(store, path, damage, reason, words, opened):
    whole = path.read_bytes()
    if opened:
        total(store)
    damage(path)
    found, status, detail = trouble(store)
    assert (found, status) == (reason, 503) and words in detail
    path.write_bytes(whole)
    assert total(store) == 1


def test_a_page_size_of_65536_bytes_is_read_as_such(tmp_path):
    path = tmp_path / "big.db"
    connection = sqlite3.connect(str(path))
    connection.execute("PRAGMA page_size = 65536")
    connection.executescript((ROOT / "schema.sql").read_text())
    connection.close()
    os.truncate(str(path), 100000)
    reason, _, detail = trouble(Store(str(path), 1, 0))
    assert reason == "truncated" and "the file has 100000 bytes, its header says" in detail


def test_a_folder_or_a_fifo_in_its_place_hangs_nobody(tmp_path):
    os.mkfifo(str(tmp_path / "fifo"))
    for path in (tmp_path, tmp_path / "fifo"):
        assert trouble(Store(str(path), 1, 0))[0] == "not_a_file"


def test_a_query_that_takes_too_long_is_interrupted(store, path):
    connection = sqlite3.connect(str(path))
    connection.executemany("INSERT INTO rollup_due VALUES (?, '', '', 1)", (("1999-%06d" % i,) for i in range(300000)))
    connection.commit()
    store.timeout = .01
    reason, status, detail = trouble(store)
    assert (reason, status) == ("timeout", 503) and "METRICS_QUERY_TIMEOUT" in detail
    with Writer(path, MIGRATION_BEGUN):
        assert trouble(store)[0] == "migrating"
    store.timeout = 30
    assert total(store) == 1


def test_who_does_not_wait_for_a_query_learns_so_alone(store, path, events):
    connection = sqlite3.connect(str(path))
    connection.executemany("INSERT INTO rollup_due VALUES (?, '', '', 1)", (("1999-%06d" % i,) for i in range(300000)))
    connection.commit()
    store.timeout = 30
    for _ in range(3):
        with pytest.raises(Trouble) as caught:
            store.snapshot(time.monotonic() + .001)
        assert caught.value.reason == "timeout"
        assert not store.began      # or those who waited meanwhile would share this
    assert (store.trouble, store.failures, events) == (None, {}, [])
    assert total(store) == 1


def test_text_that_is_not_utf8_is_named(store, path):
    connection = sqlite3.connect(str(path))
    connection.execute("INSERT INTO shipments (reference, status, carrier) VALUES ('b', 'pending', CAST(x'FFFE' AS TEXT))")
    connection.commit()
    assert trouble(store)[:2] == ("encoding", 503)
    connection.execute("UPDATE shipments SET carrier = 'b'")  # the cure: no reader's lock is left behind
    connection.commit()
    assert total(store) == 2


def test_no_descriptor_left_is_named_and_heals(path):
    store = Store(str(path), .3, 60)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.dup(0)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, limits[1]))
    try:
        assert trouble(store)[0] == "descriptors"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert total(store) == 1


def test_a_renamed_column_is_a_mismatch_at_once_and_over_when_it_is_back(store, path, events):
    total(store)
    writer = sqlite3.connect(str(path))
    writer.execute("ALTER TABLE shipments RENAME COLUMN carrier TO courier")
    assert trouble(store) == ("schema_mismatch", 500, "database {0}: column shipments.carrier is missing; "
                                                      "python3 migrate.py {0} status tells more".format(path))
    assert trouble(store)[0] == "schema_mismatch"
    writer.execute("ALTER TABLE shipments RENAME COLUMN courier TO carrier")
    assert total(store) == 1
    assert events == [("schema_mismatch", "schema_mismatch"), ("database_recovered", "schema_mismatch")]


def test_a_dropped_trigger_is_served_with_a_warning_until_it_is_back(store, path, events):
    writer = sqlite3.connect(str(path))
    trigger = writer.execute("SELECT sql FROM sqlite_master WHERE name = 'shipments_insert'").fetchone()[0]
    writer.execute("DROP TRIGGER shipments_insert")
    assert total(store) == 1
    assert in_force(store.findings) == ["trigger shipments_insert is missing"]
    writer.execute(trigger)
    assert total(store) == 1
    assert events == [("schema_warning", None), ("schema_recovered", None)]


def test_other_changes_of_the_schema_neither_repeat_a_warning_nor_hide_its_end(store, path, events):
    writer = sqlite3.connect(str(path))
    trigger = writer.execute("SELECT sql FROM sqlite_master WHERE name = 'shipments_insert'").fetchone()[0]
    for change in ("DROP TRIGGER shipments_insert", "CREATE TABLE scratch (x)", trigger, "CREATE INDEX extra ON scratch (x)"):
        writer.execute(change)
        total(store)
    assert events == [("schema_warning", None), ("schema_recovered", None)]


def test_a_newer_schema_that_holds_all_that_is_needed_is_served_with_a_warning(store, path):
    total(store)
    sqlite3.connect(str(path)).execute("PRAGMA user_version = 999")
    assert total(store) == 1
    assert in_force(store.findings) == ["schema version 999 is newer than the %d of this release" % VERSION]


@pytest.mark.parametrize("version, words", [     # what an earlier version lacks follows from its number
    (VERSION - 1, "schema version %d is older than the %d of this release; to bring it to this release: "
                  "python3 migrate.py {0} plan, then apply" % (VERSION - 1, VERSION)),
    (VERSION, "table rollup_due is missing; python3 migrate.py {0} status tells more"),
    (999, "table rollup_due is missing; schema version 999 is newer than the %d of this release; install the release that made "
          "it, or go back to a backup: python3 migrate.py {0} restore" % VERSION),
])
def test_a_schema_that_does_not_fit_is_named_with_the_cure_that_its_version_wants(store, path, version, words):
    sqlite3.connect(str(path)).executescript("PRAGMA user_version = %d; DROP TABLE rollup_due" % version)
    assert trouble(store)[2] == ("database {0}: " + words).format(path)


def queries(store):
    return sum(store.queries.spans().whole.counts)


def test_within_a_second_only_a_change_of_the_data_is_a_new_query(path):
    store = Store(str(path), 1, 60, clock=lambda: 1800000000)
    first = store.snapshot()
    assert store.snapshot() is not None and queries(store) == 1 and store.snapshot().figures is first.figures
    add_rows(sqlite3.connect(str(path)), [dict(ROW, reference="b")])
    assert total(store) == 2 and queries(store) == 2


def test_concurrent_requests_share_one_query_and_one_failure(path):
    store = Store(str(path), .5, 60, clock=lambda: 1800000000)
    answers = []

    def ask():
        try:
            answers.append(store.snapshot().figures)
        except Trouble as error:
            answers.append(error.reason)

    def ask_at_once():
        del answers[:]
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        return answers

    with Writer(path, HOLD_LOCK):
        assert ask_at_once() == ["locked"] * 20
        assert store.failures["locked"] < 20
    assert len(set(map(id, ask_at_once()))) == 1 and queries(store) == 1


AS_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
READ = """import sys; sys.path.insert(0, sys.argv[1])
from store import Store, Trouble
store = Store(sys.argv[2], .3, 0)
try: print(sum(store.snapshot().figures.statuses.values()))
except Trouble as error: print(error.reason)"""


@pytest.fixture
def read(tmp_path):
    """read(path): what a user who may not write sees there: the number of shipments or the reason why not."""
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if not AS_NOBODY or not system:
        pytest.skip("needs root, to become nobody, and a Python that nobody may run")
    code = Path(tempfile_folder())
    copy_product(code)

    def run(path):
        return subprocess.check_output(AS_NOBODY + [system, "-B", "-c", READ, str(code), str(path)], universal_newlines=True).strip()
    yield run
    shutil.rmtree(str(code))


def tempfile_folder():
    """A folder that others may enter, unlike pytest's."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    return folder


@pytest.fixture
def shared():
    """A database in a folder that others may enter but not write."""
    folder = Path(tempfile_folder())
    yield make_database(folder / "a.db", [ROW])
    shutil.rmtree(str(folder))


def test_a_reader_without_any_write_permission_reads(read, shared):
    shared.chmod(0o444)
    assert read(shared) == "1"


def test_a_file_that_may_not_be_read_is_denied(read, shared):
    shared.chmod(0o600)
    assert read(shared) == "denied"


def test_a_wal_database_is_read_while_a_writer_is_connected_and_named_when_none_is(read, shared):
    writer = sqlite3.connect(str(shared))
    writer.execute("PRAGMA journal_mode = WAL")
    add_rows(writer, [dict(ROW, reference="b")])
    assert read(shared) == "2"
    writer.close()
    assert read(shared) == "wal"


def test_a_hot_journal_that_may_not_be_read_is_still_called_that(read, shared):
    with Writer(shared, LONG_WRITE) as writer:
        writer.kill()
    (shared.parent / "a.db-journal").chmod(0o600)
    assert read(shared) == "hot_journal"
