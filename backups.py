"""Backups of a database: made, checked, listed, pruned. One that bears its name is whole and was found sound.

    shipments.db.v1.20261123T184501Z.backup     of version 1, at that time

A backup is itself a database, in the rollback journal mode: it can be opened, verified, or copied over by hand.
"""

import collections
import contextlib
import os
import re
import subprocess
import time

import dbfile
from schema_check import quoted

NAME = r"{}\.v(\d+)\.(\d{{8}}T\d{{6}}Z)(?:\.(\d+))?\.backup"
ASIDE = r"{}\.old\.(v\d+|damaged)\.part"
LOGS = ("-journal", "-wal", "-shm")
PAGES = 4096        # copied between two looks at the stop signals
FAULTS_SHOWN = 3    # lines of integrity_check

TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"

Backup = collections.namedtuple("Backup", "path version made_at bytes")  # made_at: YYYYMMDDTHHMMSSZ


def counts(db):
    """The number of rows by table."""
    return {name: db.execute("SELECT count(*) FROM " + quoted(name)).fetchone()[0]
            for name, in db.execute(TABLES).fetchall()}


def integrity(db):
    """What PRAGMA integrity_check finds wrong, as words, or None."""
    found = [text for text, in db.execute("PRAGMA integrity_check(%d)" % FAULTS_SHOWN)]
    return None if found == ["ok"] else "; ".join(found)


def read_only(path):
    """A connection that cannot write, and waits for no lock."""
    return dbfile.connect(path, 0, "ro")


def fault(path, rows):
    """Why a file is no sound database with these numbers of rows by table, or None. Raises OSError or sqlite3.Error."""
    with contextlib.closing(read_only(path)) as db:
        found = integrity(db)
        if found:
            return found
        present = counts(db)
    wrong = [name for name in sorted(set(rows) | set(present)) if rows.get(name) != present.get(name)]
    return ", ".join("table %s has %s rows, not %s" % (name, present.get(name), rows.get(name)) for name in wrong) or None


def listed(database, folder):
    """The Backups of a database in a folder, which need not exist, newest first."""
    pattern, found = re.compile(NAME.format(re.escape(os.path.basename(database)))), []
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        match = pattern.fullmatch(entry)
        if match:
            version, made_at, repeated = match.groups()
            path = os.path.join(folder, entry)
            found.append((made_at, int(repeated or 1), Backup(path, int(version), made_at, os.path.getsize(path))))
    return [backup for _, _, backup in sorted(found, reverse=True)]


def bears_our_name(path):
    return re.fullmatch(NAME.format(".+"), os.path.basename(path)) is not None


def draft_path(database, folder):
    return os.path.join(folder, os.path.basename(database) + ".backup.part")


@contextlib.contextmanager
def drafted(database, folder, like):
    """An empty file for a copy of the file `like`, as closed to others as that. At the end only its other names remain."""
    draft, status = draft_path(database, folder), os.stat(like)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, status.st_mode & 0o777)
        os.close(descriptor)
        yield draft
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def heed_stops(*_):
    if dbfile.caught:
        raise InterruptedError


def copy(database, draft):
    """Copies a database, on which this process holds a lock, into an empty file."""
    # By a connection of its own: sqlite3_backup_step() calls one that is in a write transaction busy, for ever.
    with contextlib.closing(read_only(database)) as db, contextlib.closing(dbfile.connect(draft)) as target:
        if hasattr(db, "backup"):       # Python 3.7
            target.execute("PRAGMA synchronous = OFF")
            db.backup(target, pages=PAGES, progress=heed_stops)
            target.execute("PRAGMA journal_mode = DELETE")
        elif db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            raise dbfile.Refused("%s is in WAL mode, which needs Python 3.7 for a backup; run PRAGMA journal_mode = DELETE first"
                                 % database)
        else:
            # With the lock held the file stands still. By a process of its own: if this one opened and closed the file, that
            # would drop the lock (sqlite.org/howtocorrupt.html, 2.2).
            done = subprocess.run(["cp", "--", database, draft], stderr=subprocess.PIPE)
            heed_stops()                # Ctrl-C has ended that process, too
            if done.returncode:
                raise dbfile.Refused("%s cannot be copied: %s; make room and try again" % (
                    database, os.fsdecode(done.stderr).strip() or "cp was ended by signal %d: see ulimit -f" % -done.returncode))


def linked(path, name, ending):
    """Gives a file a second name, the first free one like this; returns it. Never takes the place of a file."""
    for number in range(1, 1000):
        free = "%s%s%s" % (name, ".%d" % number if number > 1 else "", ending)
        with contextlib.suppress(FileExistsError):
            os.link(path, free)
            return free
    raise FileExistsError("all names like %s%s are taken" % (name, ending))


def named(database, folder, kind, now):
    return os.path.join(folder, "%s.%s.%s" % (
        os.path.basename(database), kind, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))))


def make(db, database, folder, version, now):
    """A Backup of the database, on which db holds a write lock and has written nothing. Raises Refused, OSError or
    sqlite3.Error."""
    with drafted(database, folder, database) as draft:
        copy(database, draft)
        found = fault(draft, counts(db))
        if found:
            raise dbfile.Refused("a backup of %s is not sound: %s; python3 migrate.py %s verify looks at the database itself"
                                 % (database, found, database))
        dbfile.sync(draft)
        path = linked(draft, named(database, folder, "v%d" % version, now), ".backup")
    dbfile.sync(folder)
    return next(backup for backup in listed(database, folder) if backup.path == path)


def move_logs(source, target):
    """Moves what SQLite keeps beside a file along with it, lest it be taken for another's."""
    for ending in LOGS:
        if os.path.exists(source + ending) and not os.path.exists(target + ending):
            os.rename(source + ending, target + ending)


def finish(aside, database, kind):
    """Gives a former database the name that it is kept under. Not that of a backup, which would be removed as one: it is the only
    place of rows that came after the backup put back."""
    kept = linked(aside, named(database, os.path.dirname(database), kind, time.time()), ".kept")
    move_logs(aside, kept)
    os.unlink(aside)
    dbfile.sync(os.path.dirname(database))
    return kept


def take_place(draft, database, kind):
    """Puts a draft in the place of the database; returns the path that this is kept as, which names its kind, "v" and version or
    "damaged". The caller keeps writers out. A kill on the way leaves a name that settle() understands."""
    aside = "%s.old.%s.part" % (database, kind)
    os.link(database, aside)
    move_logs(database, aside)
    os.rename(draft, database)
    dbfile.sync(os.path.dirname(database))
    return finish(aside, database, kind)


def settle(database, backup_folder):
    """Removes what a killed copy() left, and ends what a killed take_place() had begun: as if it had not been, or finished. For
    the holder of the migration lock, so that nobody is at it."""
    for place in (backup_folder, os.path.dirname(database)):
        if os.path.lexists(draft_path(database, place)):    # on a read-only disk not even what is not there may be removed
            os.unlink(draft_path(database, place))
    folder, pattern = os.path.dirname(database), re.compile(ASIDE.format(re.escape(os.path.basename(database))))
    for match in filter(None, map(pattern.fullmatch, os.listdir(folder))):
        aside = os.path.join(folder, match.group())
        if os.path.exists(database) and os.path.samefile(aside, database):
            move_logs(aside, database)
            os.unlink(aside)
        else:
            finish(aside, database, match.group(1))


def prune(database, folder, keep, made):
    """Removes all but the newest backups and the one just made, which is not the newest by its name where the clock was set back;
    returns what was removed."""
    old = [backup for backup in listed(database, folder)[keep:] if backup != made]
    for backup in old:
        os.unlink(backup.path)
    return old
