"""The rollback journal with real processes: who can read while another writes, and what a killed writer leaves."""

import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile

import pytest

from conftest import copy_product

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOBODY = 65534
STRANGERS_PYTHON = "/usr/bin/python3"   # the one of the tests may be out of another user's reach
BUSY = "database is locked"

# Reads over one lasting connection, each time that it gets a line.
READER = """
import sqlite3, sys
db = sqlite3.connect("file:" + sys.argv[1] + "?mode=ro", uri=True, timeout=0.1)
for line in iter(sys.stdin.readline, ""):
    try:
        print(db.execute("SELECT sum(shipments) FROM rollup_lane").fetchone()[0], flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
"""

# Says which rows it has committed, then begins a change that outgrows its cache, says so and waits.
WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for number in range(50):
    db.execute("INSERT INTO shipments (reference, status) VALUES (?, 'pending')", ("ACK-%d" % number,))
    print("ACK-%d" % number, flush=True)
db.execute("PRAGMA cache_size = 5")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE shipments SET origin = hex(randomblob(400)), status = 'exception'")
print("midway", flush=True)
sys.stdin.read()
"""


def seed(*args):
    return subprocess.run([sys.executable, str(ROOT / "seed.py")] + [str(arg) for arg in args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60)


def become_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@contextlib.contextmanager
def running(python, program, path, **options):
    process = subprocess.Popen([python, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               universal_newlines=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def read(reader):
    """The number of shipments, or the error, that a reader sees now."""
    reader.stdin.write("\n")
    reader.stdin.flush()
    return reader.stdout.readline().strip()


@contextlib.contextmanager
def writing(path):
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        yield db


@pytest.fixture
def database():
    """300 shipments in a folder that everybody may enter and only its owner may write."""
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        assert seed(folder / "shipments.db", "--rows", 300).returncode == 0
        folder.chmod(0o755)
        (folder / "shipments.db").chmod(0o644)
        yield folder / "shipments.db"
    finally:
        shutil.rmtree(str(folder))


@pytest.fixture
def stranger(database):
    """A reader that may write neither the file nor its folder."""
    if os.geteuid() != 0 or not os.path.exists(STRANGERS_PYTHON):
        pytest.skip("needs root, to run %s as another user" % STRANGERS_PYTHON)
    with running(STRANGERS_PYTHON, READER, database, preexec_fn=become_nobody) as reader:
        yield reader


@pytest.fixture
def killed(database):
    """The references that a writer had acknowledged when it was killed amid its next transaction."""
    with running(sys.executable, WRITER, database) as writer:
        acknowledged = list(iter(lambda: writer.stdout.readline().strip(), "midway"))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(acknowledged) == 50 and os.path.getsize(str(database) + "-journal") > 512
    return acknowledged


def test_a_reader_without_write_permission_reads_before_while_and_after_another_writes(database, stranger):
    assert read(stranger) == "300"
    with writing(database) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO shipments (reference, status) VALUES ('new', 'pending')")
        assert read(stranger) == "300"
        db.execute("COMMIT")
        assert read(stranger) == "301"


def test_a_reader_is_kept_out_only_while_a_writer_holds_the_whole_file(database, stranger):
    with writing(database) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert read(stranger) == BUSY
        db.execute("ROLLBACK")
    assert read(stranger) == "300"


def test_a_writer_that_outgrows_its_cache_keeps_readers_out_until_it_ends(database, stranger):
    with running(sys.executable, WRITER, database) as writer:
        assert "midway" in iter(lambda: writer.stdout.readline().strip(), "")
        assert read(stranger) == BUSY
        writer.communicate()
        assert read(stranger) == "350"


def test_a_reader_cannot_read_over_a_hot_journal_until_verify_heals_it(database, stranger, killed):
    assert read(stranger) in ("attempt to write a readonly database", "unable to open database file")
    assert seed(database, "--verify").returncode == 0
    assert read(stranger) == "350"


def test_verify_heals_a_hot_journal_says_so_and_no_acknowledged_row_is_missing(database, killed):
    done = seed(database, "--verify")
    assert done.stdout.startswith("verified 350 shipments")
    assert done.stderr == "seed.py: %s: rolled back what a killed writer had left unfinished\n" % database
    with writing(database) as db:
        present = {reference for reference, in db.execute("SELECT reference FROM shipments WHERE origin IS NULL")}
    assert set(killed) <= present and not os.path.exists(str(database) + "-journal")


def test_a_refused_version_is_healed_all_the_same_and_both_are_said(database, request):
    with writing(database) as db:
        db.execute("PRAGMA user_version = 99")
    request.getfixturevalue("killed")
    said = seed(database, "--verify").stderr.splitlines()
    assert said[0] == "seed.py: %s: rolled back what a killed writer had left unfinished" % database
    assert len(said) == 2 and "has schema version 99" in said[1] and not os.path.exists(str(database) + "-journal")


def test_a_living_writers_journal_is_not_taken_for_a_hot_one(database):
    with writing(database) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE shipments SET origin = 'Lyon'")
        assert os.path.exists(str(database) + "-journal")
        done = seed(database, "--verify")
        assert (done.returncode, done.stderr) == (0, "")
        db.execute("COMMIT")


def test_a_user_who_may_not_write_verifies_but_cannot_heal(database, killed):
    if os.geteuid() != 0 or not os.path.exists(STRANGERS_PYTHON):
        pytest.skip("needs root, to run %s as another user" % STRANGERS_PYTHON)
    folder = database.parent
    copy_product(folder)

    def verify():
        return subprocess.run([STRANGERS_PYTHON, str(folder / "seed.py"), str(database), "--verify"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, preexec_fn=become_nobody, timeout=60)

    done = verify()
    assert done.returncode == 1 and "may not be" in done.stderr and done.stderr.count("\n") == 1
    assert seed(database, "--verify").returncode == 0
    assert verify().stdout.startswith("verified 350 shipments")


def test_a_user_who_may_not_write_is_told_so_by_a_load(database):
    if os.geteuid() != 0 or not os.path.exists(STRANGERS_PYTHON):
        pytest.skip("needs root, to run %s as another user" % STRANGERS_PYTHON)
    folder = database.parent
    copy_product(folder)
    for name, words in (("shipments.db", "attempt to write a readonly database"), ("fresh.db", "Permission denied")):
        done = subprocess.run([STRANGERS_PYTHON, str(folder / "seed.py"), str(folder / name), "--append"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, preexec_fn=become_nobody, timeout=60)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_wal_database_is_written_in_place_and_stays_one(database):
    with writing(database) as db:
        assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    assert seed(database, "--rows", 50, "--append").returncode == 0
    assert seed(database, "--verify").stdout.startswith("verified 350 shipments")
    with writing(database) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
