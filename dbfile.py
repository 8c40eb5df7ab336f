"""A database file in the hands of a command that writes it: opened, made whole or not at all, and stopped without harm.

    with opened(path) as db, transaction(db): ...       an existing file, rolled back if its last writer was killed
    with new_database(path) as db: ...                  appears under its name when the block has ended well
    exit_code(work, path, stopped)                      does the work; what it raises becomes one line and an exit code

Paths are absolute.
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import sqlite3
import sys

import migration_lock

STOPS = (signal.SIGINT, signal.SIGTERM)
BUSY_SECONDS = 10                       # how long a command waits for another writer
CACHE_KIB = 32 * 1024                   # page cache: a load that outgrows it spills into the file and locks the readers out
INTERRUPT_STEPS = 100000                # SQLite instructions between two looks at the caught signals: a few milliseconds
RESERVED_BYTE = 0x40000000 + 1          # what a writer locks in the database file: RESERVED_BYTE in SQLite's os.h
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # a journal without it is void: sqlite.org/fileformat2.html, section 3

CURES = (                               # by a part of SQLite's message
    ("locked", "another process holds its lock; try again when that one is done"),
    ("readonly", "its file or folder may not be written; run as their owner, or grant it"),
    ("unable to open", "its file or folder may not be read or written (run as their owner, or grant it), or the disk has no room "
                       "for one more file (see df -i)"),
    ("full", "make room and try again"),
    ("disk I/O", "the disk failed, or a file size limit or quota is reached: see ulimit -f, df and the kernel's log"),
    ("not a database", "it is no SQLite file, or damaged; name another, or restore a backup"),
    ("malformed", "it is damaged; restore a backup"),
)


class Refused(Exception):
    """What cannot be done, and why, in one line for the operator."""


caught = []                             # the stop signals that arrived; whatever SQLite runs ends soon after the first


@contextlib.contextmanager
def catching_stops():
    """Notes the stop signals instead of dying of them, so that every command ends with its database whole."""
    del caught[:]
    former = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def notice(text):
    """One line for the operator that is not a result, led by the name of the running program."""
    print("%s: %s" % (os.path.basename(sys.argv[0]), text), file=sys.stderr, flush=True)


def hot_journal(path):
    """Whether a dead writer left its journal: a valid one is there, and nobody holds the lock that a living writer has.

    Opens and closes the file, which drops every SQLite lock of this process on it: only before connecting.
    """
    if not os.path.exists(path + "-journal"):
        return False
    with open(path, "rb") as database:
        try:
            fcntl.lockf(database, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, RESERVED_BYTE)
        except BlockingIOError:
            return False
        # Looked at only now: before the lock, a living writer may have been about to remove it.
        try:
            with open(path + "-journal", "rb") as journal:
                return journal.read(len(JOURNAL_MAGIC)) == JOURNAL_MAGIC
        except FileNotFoundError:
            return False


def connect(path, busy_seconds=BUSY_SECONDS, mode="rw"):
    """A connection to an existing file, in autocommit mode; a caught signal interrupts what it runs. mode "ro" cannot write."""
    db = sqlite3.connect("%s?mode=%s" % (pathlib.Path(path).as_uri(), mode), uri=True, timeout=busy_seconds, isolation_level=None)
    db.set_progress_handler(lambda: bool(caught), INTERRUPT_STEPS)
    return db


@contextlib.contextmanager
def transaction(db, begin="BEGIN IMMEDIATE", execute=None):
    """A transaction, rolled back by an exception. Its begin and its commit go through execute(sql), which may wait for locks."""
    execute = execute or db.execute
    execute(begin)
    try:
        yield
        execute("COMMIT")
    except BaseException:
        if db.in_transaction:           # after a full disk or an I/O error SQLite may have rolled back already
            db.execute("ROLLBACK")
        # A write that failed on its way out of the cache leaves the journal to whoever reads next, and a reader who may not write
        # could not use it.
        with contextlib.suppress(sqlite3.Error):
            db.execute("PRAGMA schema_version").fetchone()
        raise


def claim(draft):
    """Creates the file of a database under construction and returns a descriptor whose lock tells that its builder lives.

    What a killed builder left is removed, never truncated: it may have become the database already, under its second name.
    """
    while True:
        claimed = os.open(draft, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(draft) and os.path.samestat(os.fstat(claimed), os.stat(draft)):
                if os.fstat(claimed).st_size == 0:
                    return claimed
                os.unlink(draft)
        except BlockingIOError:
            os.close(claimed)
            raise Refused("another process is building %s right now" % draft[:-len(".new")])
        os.close(claimed)


def sweep(path):
    """Removes the draft that a killed builder of this database left."""
    draft = path + ".new"
    # One that cannot be removed here, or belongs to a living builder, harms nobody.
    with contextlib.suppress(OSError, Refused):
        if os.path.exists(draft):
            os.close(claim(draft))
            os.unlink(draft)


@contextlib.contextmanager
def opened(path, busy_seconds=BUSY_SECONDS):
    """A connection to an existing file, rolled back to its last commit if a writer was killed. The first of this process."""
    sweep(path)
    hot = hot_journal(path)
    with contextlib.closing(connect(path, busy_seconds)) as db:
        db.execute("PRAGMA schema_version").fetchone()  # the first read rolls back
        if hot:
            notice("%s: rolled back what a killed writer had left unfinished" % path)
        db.execute("PRAGMA cache_size = -%d" % CACHE_KIB)
        yield db


def sync(path):
    """Puts the bytes of a file, or the names in a folder, on disk. Not for a database that this process has open: its locks
    would go."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(draft, path):
    """Gives a finished database its name, without ever replacing another."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise Refused("%s was made by another while this one was being built, and stays as it is" % path)


@contextlib.contextmanager
def new_database(path):
    """A connection to an empty database, which appears under its name once the block has ended well and its bytes are on disk.

    It has no journal: after an error within the block only the removal of the file undoes, which is done here.
    """
    draft = path + ".new"
    claimed = claim(draft)
    try:
        with contextlib.closing(connect(draft)) as db:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -%d" % CACHE_KIB):
                db.execute("PRAGMA " + pragma)
            yield db
        os.fsync(claimed)
        publish(draft, path)
    finally:
        os.unlink(draft)
        os.close(claimed)
    sync(os.path.dirname(path))


def migration(path):
    """What to say of the migration that is running on this database and to do about it; None where none is.

    Not to be asked by a process that holds the migration lock itself, which would lose it.
    """
    note = migration_lock.running(path)
    return note and "a migration is running: %s; try again when it is done" % note


def explained(error, path):
    """What an error means here, and what to do. For a locked database as migration() is: not while holding its lock."""
    if isinstance(error, PermissionError):
        return "%s: %s; run as the owner of that file and its folder, or grant it" % (error.filename or path, error.strerror)
    if isinstance(error, OSError):
        return "%s: %s" % (error.filename or path, error.strerror)
    if isinstance(error, MemoryError):
        return "%s: out of memory; see free and ulimit -v, and try again" % path
    if not isinstance(error, sqlite3.Error):
        return str(error)
    running = migration(path) if "locked" in str(error) else None
    cures = [running] if running else [cure for part, cure in CURES if part in str(error)]
    return ": ".join([path, str(error)] + cures)


def exit_code(work, path, stopped, errors=()):
    """Does the work and returns its exit code; tells the operator in one line why it could not be done.

    stopped() is the line for a stop signal that ended it; errors are exceptions that, as Refused, are such a line themselves.
    """
    try:
        with catching_stops():
            return work()
    except (Refused, sqlite3.Error, OSError, MemoryError) + tuple(errors) as error:
        if caught:                      # the error is then the interruption
            notice(stopped())
            return 128 + caught[0]
        notice(explained(error, path))
        return 1
