"""Who changes the schema now: a lock file beside the database, which tells all others.

    with hold(database) as say: say("to version 4")     migrate.py, for as long as it works
    running(database) -> "to version 4" or None         everybody else

The lock is what counts: a file that a killed holder left says nothing, and the next holder takes it over.
"""

import contextlib
import fcntl
import os

import supervision

NOTE_MAX = 1000     # bytes


class Busy(Exception):
    """Another process holds the lock; the text names it."""


def lock_path(database):
    """The lock file of a database; the same whatever link it is named by, as with SQLite's own journal."""
    return os.path.realpath(database) + "-migration"


def claim(path):
    """A descriptor that holds the lock on the file of this path. Raises Busy or OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our opening and our lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except (BlockingIOError, PermissionError):  # fcntl(2) leaves open which of the two a held lock is
            pid = supervision.lock_holder(path)     # holds nothing here, so closing the file again costs no lock of ours
            if pid is not None:
                os.close(descriptor)
                raise Busy("held by %s" % (supervision.describe(pid) if pid else "a process of another PID namespace"))
        os.close(descriptor)


@contextlib.contextmanager
def hold(database):
    """Holds the lock; gives a function that sets the note which running() returns. Raises Busy or OSError.

    No other code of this process may open the lock file meanwhile: closing it would drop the lock.
    """
    path = lock_path(database)
    descriptor = claim(path)

    def say(note):
        with contextlib.suppress(OSError):  # a full disk, which the work itself will meet; the lock says the main thing
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode()[:NOTE_MAX], 0)
    try:
        os.fchmod(descriptor, 0o644)    # the service, which may be another user, looks into it
        say("")
        yield say
    finally:
        os.unlink(path)                 # still locked: whoever waits for it sees that the name is gone
        os.close(descriptor)


def running(database):
    """The note of the migration that is running, None where none is. Opens no database file, writes nothing, never waits."""
    path = lock_path(database)
    try:
        pid = supervision.lock_holder(path)
        if pid is None:
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(NOTE_MAX) or "by process %d" % pid
    except OSError:                     # it may not be read, or has just been removed by a migration that is done
        return None
