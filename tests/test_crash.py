"""Whatever ends a command that writes a database, and at whatever call: the database is wholly of one state, and nothing is lost.

A case runs unharmed first; then it is killed, or finds the disk full, at moments spread over all the calls that change its folder.
"""

import collections
import compileall
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

import crash
import dbfile
import rollups
import steps
from conftest import LONG, copy_product
from versions import LAST

NAME = "shipments.db"
NOW = "2025-03-01T12:00:00Z"
MORE = 5 if LONG else 1                 # times the moments of a migration, or of a full disk
WRITES = ("write", "pwrite64", "pwritev", "ftruncate", "fallocate", "sendfile", "copy_file_range")
SYNCS = ("fsync", "fdatasync")
ROOM = WRITES + SYNCS + ("link", "linkat", "rename", "renameat", "renameat2", "mkdir")  # may find the disk full
BACKUP = re.compile(re.escape(NAME) + r"\.v\d+\.\d{8}T\d{6}Z(\.\d+)?\.(backup|kept)")

# The columns of version 1, which every later one has: their values are what no command here may change.
ROWS = """
SELECT id, reference, carrier, mode, service, origin, destination, status, created_at, shipped_at, promised_at, delivered_at,
       weight_kg, cost, currency
FROM shipments ORDER BY id
"""
SCHEMA = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"

TALLY = []                              # of what everywhere() did: harm, number, survived, calls, command

State = collections.namedtuple("State", "version schema records rows checksum")


def state(path, mode="rw"):
    """What a database holds, None where there is none. Fails where it is damaged; rolls back what a killed writer left."""
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(path.as_uri() + "?mode=" + mode, uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert not rollups.present(db) or list(rollups.differences(db)) == []
        rows = db.execute(ROWS).fetchall()
        records = tuple((record.number, record.name, record.hash) for record in steps.recorded(db))
        return State(db.execute("PRAGMA user_version").fetchone()[0], tuple(db.execute(SCHEMA)), records,
                     len(rows), hashlib.sha256(repr(rows).encode()).hexdigest())


def listing(folder):
    """The names in a folder but for backups, which may pile up."""
    return sorted(path.name for path in folder.iterdir() if not BACKUP.fullmatch(path.name))


def copied(folder, place):
    return pathlib.Path(shutil.copytree(str(folder), str(place)))


class Case:
    """A command, and a folder with the files that it starts from."""

    def __init__(self, folder, start, command):
        self.folder, self.start, self.command = folder, start, command
        self.before = state(start / NAME)
        self.ways = {}                  # from each state that a harmed run may leave: (exit code, state) of the next run

    def place(self, name):
        """A new folder like the one to start from."""
        return copied(self.start, self.folder / name)

    def rehearse(self, *ahead):
        """Runs unharmed, and once more; the calls of the first run. ahead: commands that lead to states in between."""
        self.calls = self.note_way("first", self.start).calls
        self.keeps = self.before in self.backups(self.folder / "first")
        self.note_way("second", self.folder / "first")
        for number, between in enumerate(ahead):
            place = self.place("ahead%d" % number)
            subprocess.run(between, cwd=str(place), check=True, stdout=subprocess.DEVNULL)
            self.note_way("on%d" % number, place)
        return self

    def note_way(self, name, start):
        place = copied(start, self.folder / name)
        before = state(place / NAME)
        run = crash.run(self.command, place)
        self.ways[before] = run.code, state(place / NAME)
        self.files = listing(place)
        return run

    def survey(self, place):
        """The state that a harmed run left, looked at in a copy: the next run shall find what that run left, not what SQLite healed."""
        copy = copied(place, str(place) + ".copy")
        found = state(copy / NAME)
        shutil.rmtree(str(copy))
        assert found in self.ways, "a state between: %r" % (found,)
        assert self.backups(place) <= set(self.ways)
        return found

    def backups(self, place):
        """The states that the backups hold. Fails where one is not sound, or the database by another name, which changes with it."""
        found = [path for path in place.iterdir() if BACKUP.fullmatch(path.name)]
        assert not [path.name for path in found if (place / NAME).exists() and path.samefile(place / NAME)]
        return {state(path, "ro") for path in found}

    def finish(self, place, found):
        """The next run does what is left to do, tidies up, and what was there at first is in a backup, where that is the way."""
        code, wanted = self.ways[found]
        done = subprocess.run(self.command, cwd=str(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == code, done.stderr
        assert state(place / NAME) == wanted and listing(place) == self.files
        backups = self.backups(place)
        assert backups <= set(self.ways) and (self.before in backups or not self.keeps)
        shutil.rmtree(str(place))


def kill(case, number, call):
    """Whether the command, killed at this call, had done its work already."""
    place = case.place("killed%d" % number)
    run = crash.run(case.command, place, crash.killed(call))
    assert (run.code, run.calls[-1:]) == (-signal.SIGKILL, [call])
    found = case.survey(place)
    case.finish(place, found)
    return found != case.before


def naming(calls):
    """The place of the call that gives the database its name."""
    return next((place for place, call in enumerate(calls) if call.text.endswith('"./%s")' % NAME)), len(calls))


def fill(case, number, call, later):
    """Whether the command, which finds the disk full at this call, could do its work all the same."""
    place = case.place("full%s%d" % (later, number))
    run = crash.run(case.command, place, crash.full(call, later))
    assert call in run.calls
    found = case.survey(place)
    if run.code == 0:
        assert found == case.ways[case.before][1]
    else:
        assert run.code == 1 and re.search("disk|No space left on device", run.err) and run.err.count("\n") == 1, run
        # Each step that it tells of is done, but in a database that is only being made. Once the database has got its name, what is
        # left to do may fail, too.
        told = re.findall(r"^step (\d+)", run.out, re.MULTILINE)
        committed = found.version == int(told[-1]) if told and found else found == case.before
        assert committed or case.calls.index(call) > naming(case.calls), call
    case.finish(place, found)
    return run.code == 0


def creations(calls):
    """Those that make a file, and do not open one that is there."""
    there = set()
    for call in calls:
        name = re.search('"(.*?)"|$', call.text).group()
        if call.name == "openat" and name not in there:
            yield call
            there.add(name)
        elif call.name.startswith(("unlink", "rename")):
            there.discard(name)


def needing_room(calls, later):
    """Those that a full disk may refuse; of those that a disk which stays full may refuse, the ones that stand for all."""
    able = [call for call in calls[:-1] if call.name in (("pwrite64",) if later else ROOM)]
    return sorted(able + ([] if later else list(creations(calls))), key=calls.index)


def everywhere(harm, case, calls, *more):
    """Does harm at each of these calls; what each gave, as a set. Fails with all that was not survived."""
    def attempt(number):
        try:
            return harm(case, number, calls[number], *more), None
        except Exception as error:      # told below, with all others
            return None, "%s: %s" % (calls[number], str(error).split("\n")[0])

    with concurrent.futures.ThreadPoolExecutor(2 * os.cpu_count()) as pool:
        outcomes = list(pool.map(attempt, range(len(calls))))
    failures = [failure for _, failure in outcomes if failure]
    TALLY.append((harm.__name__, len(calls), len(calls) - len(failures), len(case.calls), " ".join(case.command[3:])))
    assert not failures, "\n".join(failures)
    return {done for done, _ in outcomes}


@pytest.fixture(scope="module", autouse=True)
def tally(request):
    """Says in the end how often harm was done, and how often that was survived."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n")
        for row in TALLY:
            print("  {} at {} calls, survived {}, of {} calls of {}".format(*row))
        for harm in sorted({row[0] for row in TALLY}):
            made, survived = (sum(row[place] for row in TALLY if row[0] == harm) for place in (1, 2))
            print("  {} in all: {}, survived: {}".format(harm, made, survived))


def check_publications(calls):
    """Fails unless what gets its name is on disk before, and the name itself as soon as names are done with; true of a loss of
    power, too."""
    for place, call in enumerate(calls):
        if call.name.startswith(("link", "rename")):
            draft = "<%s>" % re.search('"(.*?)"', call.text).group(1)
            about = [other.name for other in calls[:place] if draft in other.text and other.name in WRITES + SYNCS]
            assert not about or about[-1] in SYNCS, "%s before its bytes are on disk" % (call,)
            after = next(other for other in calls[place:] if not other.name.startswith(("link", "rename", "unlink")))
            assert after.name in SYNCS and after.text.startswith("N<.>"), call


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Makes command lines: command("seed.py", NAME). Of a compiled copy: then Python makes the same calls in every run."""
    product = copy_product(tmp_path_factory.mktemp("product"))
    compileall.compile_dir(str(product), quiet=2)
    return lambda tool, *arguments: [sys.executable, "-S", str(product / tool)] + [str(argument) for argument in arguments]


@pytest.fixture(scope="module")
def year(command, tmp_path_factory):
    """A folder with a database of 300 shipments and a CSV file of 400, 20 of which change those."""
    folder = tmp_path_factory.mktemp("year")
    subprocess.run(command("seed.py", NAME, "--rows", 300, "--now", NOW), cwd=str(folder), check=True, stdout=subprocess.DEVNULL)
    changed = ["SHP-%08d" % number for number in range(1, 21)]
    for name, references in (("large", changed + ["N%d" % number for number in range(380)]), ("small", changed)):
        (folder / (name + ".csv")).write_text("id\n" + "\n".join(references) + "\n")
    (folder / "map.sql").write_text("SELECT line, id AS reference, 'exception' AS status, 'storm' AS exception_reason FROM csv")
    return folder


LOADS = {
    "a_new_database": ("--rows", 300, "--now", NOW),
    "a_large_append": ("--append", "--rows", 200, "--now", NOW),
    "a_small_append": ("--append", "--rows", 10, "--now", NOW),
    "a_large_import": ("--csv", "large.csv", "--mapping", "map.sql"),
    "a_small_import": ("--csv", "small.csv", "--mapping", "map.sql"),
}


@pytest.fixture(scope="module", params=sorted(LOADS))
def load(request, command, year, tmp_path_factory):
    """Each kind of load, rehearsed."""
    start = year
    if request.param == "a_new_database":
        start = tmp_path_factory.mktemp("empty")
    return Case(tmp_path_factory.mktemp("load"), start, command("seed.py", NAME, *LOADS[request.param])).rehearse()


def test_a_load_that_is_killed_leaves_the_old_rows_or_the_new_and_the_next_run_finishes(load):
    assert everywhere(kill, load, crash.spread(load.calls, 200 if LONG else 10)) == {False, True}


@pytest.mark.parametrize("later", ["", "+"])
def test_a_load_on_a_full_disk_says_so_and_changes_nothing(load, later):
    assert False in everywhere(fill, load, crash.spread(needing_room(load.calls, later), 3 * MORE), later)


def test_a_new_database_is_on_disk_before_it_has_its_name(load):
    check_publications(load.calls)


@pytest.fixture
def disk(tmp_path, request):
    """A folder with room for the database of the year, and for little more."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("disk", ["size=400k", "nr_inodes=2"], indirect=True)
def test_a_load_into_a_file_system_that_is_really_full_says_so_and_changes_nothing(command, year, disk):
    shutil.copy(str(year / NAME), str(disk))
    before = state(disk / NAME)
    done = subprocess.run(command("seed.py", NAME, "--append", "--rows", 5000), cwd=str(disk), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1 and "disk" in done.stderr and done.stderr.count("\n") == 1
    assert listing(disk) == [NAME] and state(disk / NAME) == before


@pytest.mark.parametrize("disk", ["size=400k"], indirect=True)
def test_a_load_that_outgrew_its_cache_on_a_full_disk_leaves_nothing_to_roll_back(year, disk):
    path = shutil.copy(str(year / NAME), str(disk / NAME))
    before = state(disk / NAME)
    with pytest.raises(sqlite3.OperationalError, match="full"), dbfile.opened(path) as db, dbfile.transaction(db):
        db.execute("PRAGMA cache_size = 10")
        db.execute("UPDATE shipments SET origin = 'Somewhere else', destination = hex(randomblob(500))")
    assert listing(disk) == [NAME] and state(disk / NAME) == before


# Migrations.

INSERT = """
WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {})
INSERT INTO shipments (id, reference, carrier, mode, origin, status, created_at, promised_at, delivered_at, weight_kg, cost)
SELECT n * 3, 'R' || n, nullif('carrier ' || n % 4, 'carrier 3'), CASE n % 3 WHEN 0 THEN 'air' WHEN 1 THEN 'road' END, 'Köln; ' || n,
       CASE n % 3 WHEN 0 THEN 'delivered' WHEN 1 THEN 'pending' ELSE 'exception' END, date('2024-01-01', n % 400 || ' days'),
       date('2024-01-09', n % 400 || ' days'), CASE n % 3 WHEN 0 THEN date('2024-01-01', n % 400 + n % 13 || ' days') END, n / 7.0, n
FROM numbers
"""


@pytest.fixture(scope="module")
def first(command, tmp_path_factory):
    """A folder with a database of version 1 with a thousand rows."""
    folder = tmp_path_factory.mktemp("first")
    subprocess.run(command("migrate.py", NAME, "apply", "--to", 1), cwd=str(folder), check=True, stdout=subprocess.DEVNULL)
    with contextlib.closing(sqlite3.connect(str(folder / NAME))) as db, db:
        db.execute(INSERT.format(1000))
    return folder


def upgrading(command, start, folder):
    apply = command("migrate.py", NAME, "apply")
    return Case(folder, start, apply).rehearse(*(apply + ["--to", str(number)] for number in range(2, LAST)))


@pytest.fixture(scope="module")
def upgrade(command, first, tmp_path_factory):
    """From version 1 to today, rehearsed."""
    return upgrading(command, first, tmp_path_factory.mktemp("apply"))


@pytest.fixture(scope="module")
def wal_upgrade(command, first, tmp_path_factory):
    """The same of a database with a write-ahead log."""
    start = copied(first, tmp_path_factory.mktemp("log") / "start")
    with contextlib.closing(sqlite3.connect(str(start / NAME))) as db:
        assert db.execute("PRAGMA journal_mode = WAL").fetchall() == [("wal",)]
    return upgrading(command, start, tmp_path_factory.mktemp("wal"))


@pytest.fixture(scope="module")
def creation(command, tmp_path_factory):
    """From no database to today's version, rehearsed."""
    return Case(tmp_path_factory.mktemp("create"), tmp_path_factory.mktemp("nothing"), command("migrate.py", NAME, "apply")).rehearse()


@pytest.fixture(scope="module")
def restoration(command, upgrade, tmp_path_factory):
    """From today's version back to a backup of version 1, rehearsed."""
    start = upgrade.folder / "first"
    backup, = (path.name for path in start.iterdir() if BACKUP.fullmatch(path.name))
    return Case(tmp_path_factory.mktemp("restore"), start, command("migrate.py", NAME, "restore", backup)).rehearse()


KILLS = {"upgrade": 80, "wal_upgrade": 15, "creation": 15, "restoration": 25}
FULLS = {"upgrade": 8, "wal_upgrade": 4, "creation": 4, "restoration": 4}


@pytest.fixture(scope="module", params=sorted(KILLS))
def migration(request):
    """Each of these, at how many calls to kill it, and at how many to find the disk full."""
    return request.getfixturevalue(request.param), MORE * KILLS[request.param], MORE * FULLS[request.param]


def test_a_migration_that_is_killed_leaves_one_version_or_another_and_the_next_run_finishes(migration):
    case, most, _ = migration
    assert everywhere(kill, case, crash.spread(case.calls, most)) == {False, True}


@pytest.mark.parametrize("later", ["", "+"])
def test_a_migration_on_a_full_disk_says_so_and_stays_at_a_whole_version(migration, later):
    case, _, most = migration
    assert False in everywhere(fill, case, crash.spread(needing_room(case.calls, later), most), later)


def test_the_database_is_not_written_before_its_backup_has_a_name(upgrade):
    named = next(place for place, call in enumerate(upgrade.calls) if call.name == "link" and ".backup" in call.text)
    written = next(place for place, call in enumerate(upgrade.calls) if "<./%s>" % NAME in call.text and call.name in WRITES)
    assert named < written and upgrade.keeps


def test_every_version_has_the_rows_of_the_first(upgrade):
    assert sorted(state.version for state in upgrade.ways) == list(range(1, LAST + 1))
    assert {(state.rows, state.checksum) for state in upgrade.ways} == {(1000, upgrade.before.checksum)}


def test_what_a_migration_names_is_on_disk_before(migration):
    check_publications(migration[0].calls)
