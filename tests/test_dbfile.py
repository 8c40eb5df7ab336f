"""dbfile.py and rollups.py by themselves: what the commands that write a database share; test_seed.py has the rest."""

import contextlib
import signal
import sqlite3
import subprocess
import sys

import pytest

import dbfile
import rollups
import seed
from conftest import ROOT

VERSION = seed.schema().version
NOTE = "from version 3 to 4 by process 7"
RUNNING = "a migration is running: %s; try again when it is done" % NOTE

# Holds the migration lock of a database, says so, and waits.
MIGRATION = """
import sys
import migration_lock
with migration_lock.hold(sys.argv[1]) as say:
    say(sys.argv[2])
    print("held", flush=True)
    sys.stdin.read()
"""

# A command that a signal stops in the midst of a query without end.
STOPPED = """
import os, sys
import dbfile

def work():
    os.kill(os.getpid(), int(sys.argv[2]))
    with dbfile.opened(sys.argv[1]) as db:
        db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n").fetchone()

sys.exit(dbfile.exit_code(work, sys.argv[1], lambda: "stopped after 2 of 3 steps"))
"""


def start(*command, **options):
    return subprocess.Popen([sys.executable] + [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True, env={"PYTHONPATH": str(ROOT)}, **options)


@contextlib.contextmanager
def migrating(path):
    """Another process holds the migration lock of a database."""
    process = start("-c", MIGRATION, path, NOTE)
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate(timeout=10)


@contextlib.contextmanager
def writer(path):
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        yield db


def set_version(path, version):
    with writer(path) as db:
        db.execute("PRAGMA user_version = %d" % version)


# What every command says and returns.

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_in_its_own_name_and_words_how_far_it_came(database, tmp_path, number):
    (tmp_path / "convert.py").write_text(STOPPED)
    process = start(tmp_path / "convert.py", database, int(number))
    assert process.communicate(timeout=10) == ("", "convert.py: stopped after 2 of 3 steps\n")
    assert process.returncode == 128 + number


def test_an_exception_that_is_named_as_a_line_becomes_one(database, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/convert.py"])

    def work():
        raise LookupError("no step 7; see migrations")
    assert dbfile.exit_code(work, str(database), str, (LookupError,)) == 1
    assert capsys.readouterr().err == "convert.py: no step 7; see migrations\n"
    with pytest.raises(LookupError):    # a defect keeps its traceback
        dbfile.exit_code(work, str(database), str)


def test_a_lack_of_memory_is_told_in_one_line(database, capsys):
    def work():
        raise MemoryError
    assert dbfile.exit_code(work, str(database), str) == 1
    assert capsys.readouterr().err.endswith(": %s: out of memory; see free and ulimit -v, and try again\n" % database)


def test_a_lock_is_told_as_the_migration_that_holds_it(database):
    error, path = sqlite3.OperationalError("database is locked"), str(database)
    with migrating(database):
        assert dbfile.explained(error, path) == "%s: database is locked: %s" % (path, RUNNING)
        assert RUNNING not in dbfile.explained(sqlite3.OperationalError("disk I/O error"), path)
    assert dbfile.explained(error, path).endswith("another process holds its lock; try again when that one is done")


def test_a_new_database_is_the_callers_to_fill_and_gone_after_an_error(tmp_path):
    with dbfile.new_database(str(tmp_path / "new.db")) as db:
        assert rollups.present(db) is False
        db.execute("CREATE TABLE trains (id)")
        assert not (tmp_path / "new.db").exists()
    with pytest.raises(ZeroDivisionError):
        with dbfile.new_database(str(tmp_path / "other.db")) as db:
            db.execute("CREATE TABLE trains (id)")
            1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["new.db"]


@pytest.mark.parametrize("lost", ["TABLE rollup_due", "TABLE departed", "VIEW facts"])
def test_rollups_are_present_with_all_their_parts_only(database, lost):
    with writer(database) as db:
        assert rollups.present(db) is True
        db.execute("DROP " + lost)
        assert rollups.present(db) is False


# A database in another version than seed.py writes.

def refusal(path, mode="--verify"):
    process = start(ROOT / "seed.py", path, mode)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err.count("\n") == 1
    return err[len("seed.py: %s " % path):-1]


def test_an_older_version_is_refused_with_the_command_that_brings_it_up(database):
    set_version(database, VERSION - 1)
    assert refusal(database) == ("has schema version %d, this seed.py writes version %d: run 'python3 migrate.py %s plan', "
                                 "then apply" % (VERSION - 1, VERSION, database))


def test_a_version_on_its_way_is_refused_with_the_migration(database):
    set_version(database, VERSION - 1)
    with migrating(database):
        assert refusal(database).endswith(": " + RUNNING)


def test_a_simulation_that_meets_a_locked_migration_says_so(database):
    with writer(database) as db, migrating(database):
        db.execute("BEGIN EXCLUSIVE")
        process = start(ROOT / "seed.py", database, "--live")
        assert process.communicate(timeout=30)[1] == "seed.py: %s: database is locked: %s\n" % (database, RUNNING)


@pytest.mark.parametrize("change", [lambda db, path: seed.load(db, path, 1), seed.writing], ids=["load", "writing"])
def test_a_version_that_moved_after_the_connection_is_refused_and_nothing_written(database, change):
    with seed.existing(str(database)) as db:
        set_version(database, VERSION + 1)
        with pytest.raises(dbfile.Refused) as refused:
            with change(db, str(database)):
                pytest.fail("the block of a refused change ran")
        assert "has schema version %d" % (VERSION + 1) in str(refused.value) and not db.in_transaction


def test_a_simulation_ends_when_its_database_is_migrated(database):
    process = start(ROOT / "seed.py", database, "--live", "--rate", 50)
    process.stdout.readline()
    set_version(database, VERSION + 1)
    assert process.communicate(timeout=10)[1].endswith("use the release that made it\n") and process.returncode == 1
