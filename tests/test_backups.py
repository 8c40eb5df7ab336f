"""Backups that migrate.py makes, keeps and puts back: one that bears its name is sound, and a restoration loses nothing."""

import contextlib
import errno
import functools
import hashlib
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from unittest import mock

import pytest

import backups
import migration_lock
import supervision
from conftest import wait_for
from versions import (LAST, NAME, ROWS, alter, ask, content, document, end, make, migrate, names, opened, saved, shipments, start,
                      version, with_step)

MOMENT = 1767323045                     # 2026-01-02T03:04:05Z
STAMP = "20260102T030405Z"


@pytest.fixture
def first(tmp_path):
    """A database of version 1."""
    return make(tmp_path / NAME, 1)


@pytest.fixture
def upgraded(first, tmp_path):
    """A database of today's version with the backup of version 1 that its upgrade made."""
    assert migrate(first, "apply").code == 0
    return first


class Old(sqlite3.Connection):
    """A connection as Python 3.6 has it."""

    @property
    def backup(self):
        raise AttributeError("backup")


@pytest.fixture(params=["backup API", "Python 3.6"])
def either(request):
    """Both ways to copy a database."""
    with contextlib.ExitStack() as stack:
        if request.param == "Python 3.6":
            stack.enter_context(mock.patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Old)))
        yield


def at(moment):
    """The clock stands."""
    return mock.patch.object(time, "time", lambda: moment)


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blocked(path):
    """Whether another process may not write."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    return os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code + " if True else 0", str(path)) != 0


# Made

def test_a_backup_is_a_sound_database_of_the_version_and_rows_before(first, tmp_path, either):
    before = content(first)
    assert migrate(first, "apply").code == 0
    backup, = saved(tmp_path)
    assert re.fullmatch(re.escape(NAME) + r"\.v1\.\d{8}T\d{6}Z\.backup", backup.name)
    assert content(backup) == before and ask(backup, "PRAGMA integrity_check") == [("ok",)]
    assert migrate(backup, "verify").code == 0
    assert names(tmp_path) == [NAME, backup.name]


def test_a_backup_can_be_asked_for_and_is_kept_to_the_same_number(first, tmp_path):
    before = content(first)
    for number in range(3):
        with at(MOMENT + number):
            assert migrate(first, "backup", "--keep", 2).code == 0
    assert [backup.name for backup in saved(tmp_path)] == [NAME + ".v1.20260102T03040%dZ.backup" % number for number in (6, 7)]
    assert all(content(path) == before for path in saved(tmp_path) + [first])


def test_a_backup_that_would_not_fit_is_not_begun(first, tmp_path):
    with mock.patch.object(shutil, "disk_usage", lambda place: mock.Mock(free=1000)):
        done = migrate(first, "backup")
    assert done.code == 1 and "disk full" in done.err and names(tmp_path) == [NAME]


def test_a_backup_can_be_upgraded_by_itself_as_in_a_rehearsal(upgraded, tmp_path):
    copy = tmp_path / "rehearsal.db"
    shutil.copy(str(saved(tmp_path)[0]), str(copy))
    assert migrate(copy, "apply").code == 0 and shipments(copy) == shipments(upgraded)


def test_a_backup_bears_version_and_time(first, tmp_path):
    with at(MOMENT):
        migrate(first, "apply", "--to", 3)
        migrate(first, "apply")
    assert names(tmp_path) == [NAME, NAME + ".v1.%s.backup" % STAMP, NAME + ".v3.%s.backup" % STAMP]


def test_a_backup_never_takes_the_place_of_another(tmp_path):
    sums = []
    with at(MOMENT):
        for number in range(3):
            path = alter(make(tmp_path / NAME, 1), "UPDATE shipments SET carrier = 'C%d'" % number)
            sums.append(checksum(path))
            assert migrate(path, "apply", "--to", 2).code == 0
    kept = [tmp_path / (NAME + ".v1.%s%s.backup" % (STAMP, suffix)) for suffix in ("", ".2", ".3")]
    assert saved(tmp_path) == sorted(kept)
    assert [ask(backup, "SELECT DISTINCT carrier FROM shipments") for backup in kept] == [[("C%d" % number,)] for number in range(3)]
    assert document(path, "status")[1]["backups"] == [str(backup) for backup in reversed(kept)]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660])
def test_a_backup_is_as_closed_to_others_as_the_database(first, tmp_path, mode, either):
    first.chmod(mode)
    os.chown(str(first), 65534, 65534)
    assert migrate(first, "apply").code == 0
    status = saved(tmp_path)[0].stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (mode, 65534, 65534)


def test_the_newest_backups_are_kept_and_the_oldest_removed_after_success(tmp_path):
    for number in range(4):
        with at(MOMENT + number):
            assert migrate(make(tmp_path / NAME, 1), "apply", "--to", 2, "--keep", 3).code == 0
    assert [backup.name for backup in saved(tmp_path)] == [NAME + ".v1.20260102T03040%dZ.backup" % number for number in (6, 7, 8)]
    with at(MOMENT + 9):
        done = migrate(make(tmp_path / NAME, 1), "apply", "--keep", 1)
    assert [line.rpartition("/")[2] for line in done.out.splitlines() if line.startswith("removed the old backup ")] == [
        NAME + ".v1.20260102T03040%dZ.backup" % number for number in (8, 7, 6)]
    assert [backup.name for backup in saved(tmp_path)] == [NAME + ".v1.20260102T030414Z.backup"]


@pytest.mark.parametrize("command", ["apply", "backup"])
def test_the_backup_just_made_is_kept_although_the_clock_was_set_back(first, tmp_path, command):
    for ahead in 200, 300:
        with at(MOMENT + ahead):
            assert migrate(first, "backup").code == 0
    with at(MOMENT):
        assert migrate(first, command, "--keep", 2).code == 0
    assert "%s.v1.%s.backup" % (NAME, STAMP) in names(tmp_path) and len(saved(tmp_path)) == 3


def test_no_backup_is_removed_by_a_run_that_fails(tmp_path):
    folder = with_step(tmp_path, "CREATE UNIQUE INDEX one ON shipments (carrier);")
    for number in range(3):
        with at(MOMENT + number):
            assert migrate(make(tmp_path / NAME), "apply", "--keep", 1, folder=folder).code == 1
    assert len(saved(tmp_path)) == 3


def test_only_backups_of_this_database_are_removed(first, tmp_path):
    others = ["other.db.v1.%s.backup" % STAMP, NAME + ".v1.backup", NAME + ".%s.backup" % STAMP, NAME + ".v1.%s.backup.txt" % STAMP,
              "x" + NAME + ".v1.%s.backup" % STAMP, NAME + ".damaged." + STAMP]
    for name in others:
        (tmp_path / name).write_text("somebody's")
    assert migrate(first, "apply", "--keep", 1).code == 0
    assert {(tmp_path / name).read_text() for name in others} == {"somebody's"}


def test_backups_go_where_they_are_told_to(first, tmp_path):
    (tmp_path / "safe").mkdir()
    before = content(first)
    assert migrate(first, "apply", "--backup-dir", tmp_path / "safe").code == 0
    assert names(tmp_path) == ["safe", NAME] and content(saved(tmp_path / "safe")[0]) == before
    assert document(first, "status", "--backup-dir", tmp_path / "safe")[1]["backups"] == [str(saved(tmp_path / "safe")[0])]
    assert migrate(first, "restore", "--backup-dir", tmp_path / "safe").code == 0 and content(first) == before


def test_backups_go_to_another_disk(first, tmp_path):
    before = content(first)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert migrate(first, "apply", "--backup-dir", other).code == 0
        assert content(saved(pathlib.Path(other))[0]) == before
        assert migrate(first, "restore", "--backup-dir", other).code == 0
        assert content(first) == before


def test_a_backup_on_a_read_only_disk_can_be_put_back(upgraded, tmp_path):
    (tmp_path / "safe").mkdir()
    backup = saved(tmp_path)[0].rename(tmp_path / "safe" / saved(tmp_path)[0].name)

    def unlink(path, unlink=os.unlink):     # there even a name that is not there may not be removed
        if str(path).startswith(str(tmp_path / "safe")):
            raise OSError(errno.EROFS, "Read-only file system", path)
        unlink(path)
    with mock.patch.object(os, "unlink", unlink):
        assert migrate(upgraded, "restore", "--backup-dir", tmp_path / "safe").code == 0
    assert content(upgraded) == content(backup)


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_folder_for_backups_that_does_not_exist_is_told(first, tmp_path, command):
    done = migrate(first, command, "--backup-dir", tmp_path / "nowhere")
    assert done.code in (1, 3) and str(tmp_path / "nowhere") in done.err and done.err.count("\n") == 1
    assert version(first) == 1 and names(tmp_path) == [NAME]


def test_a_backup_of_a_database_with_a_write_ahead_log_has_what_is_in_the_log(first, tmp_path):
    with opened(first) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("UPDATE shipments SET carrier = 'in the log'")
        assert end(start(first, "apply")).code == 0
    backup, = saved(tmp_path)
    assert ask(backup, "SELECT DISTINCT carrier FROM shipments") == [("in the log",)]
    assert ask(backup, "PRAGMA journal_mode") == [("delete",)]
    assert ask(first, "SELECT DISTINCT carrier FROM shipments") == [("in the log",)]


def test_python_3_6_refuses_a_write_ahead_log_and_names_the_cure(first, tmp_path):
    before = content(alter(first, "PRAGMA journal_mode = WAL"))
    with mock.patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Old)):
        done = migrate(first, "apply")
    assert done.code == 1 and "is in WAL mode, which needs Python 3.7 for a backup; run PRAGMA journal_mode = DELETE first" in done.err
    assert content(first) == before and saved(tmp_path) == [] and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("script, code, words", [
    ("echo 'cp: no room' >&2; exit 1", 1, "cannot be copied: cp: no room; make room"),
    ("kill -XFSZ $$", 1, "cannot be copied: cp was ended by signal 25: see ulimit -f"),
    ("kill -INT $PPID $$", 130, "stopped; ")])
def test_python_3_6_tells_why_a_copy_failed_and_leaves_none(first, tmp_path, script, code, words):
    before, tools = content(first), tmp_path / "bin"
    tools.mkdir()
    (tools / "cp").write_text("#!/bin/bash\n%s\n" % script)
    (tools / "cp").chmod(0o755)
    with mock.patch.dict(os.environ, PATH=str(tools)):
        with mock.patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Old)):
            done = migrate(first, "apply")
    assert done.code == code and words in done.err
    assert content(first) == before and names(tmp_path) == ["bin", NAME]


def test_the_lock_is_not_lost_over_the_copy(first, either):
    """A process that opens and closes a file drops its own locks on it; the upgrade must not, or others would write in between."""
    seen = []
    with mock.patch.object(backups, "counts", side_effect=lambda db, counts=backups.counts: seen.append(blocked(first)) or counts(db)):
        assert migrate(first, "apply").code == 0
    assert seen[0] is False and len(seen) > 3 and all(seen[1:])     # at first the forecast only reads


# An index that has not the entries of its rows.
UNSOUND = ("CREATE INDEX mine ON shipments (origin); PRAGMA writable_schema = ON; "
           "UPDATE sqlite_master SET sql = replace(sql, 'origin', 'destination') WHERE name = 'mine'")


def test_a_database_that_is_not_sound_is_neither_upgraded_nor_kept_as_a_backup(first, tmp_path):
    before = checksum(alter(first, UNSOUND))
    done = migrate(first, "apply")
    assert done.code == 1 and "a backup of %s is not sound: " % first in done.err and "index mine" in done.err
    assert checksum(first) == before and names(tmp_path) == [NAME]


def test_a_copy_that_lacks_a_row_is_no_backup_and_nothing_is_done(first, tmp_path):
    before = checksum(first)

    def lossy(database, draft, copy=backups.copy):
        copy(database, draft)
        alter(draft, "DELETE FROM shipments WHERE id = 1")
    with mock.patch.object(backups, "copy", lossy):
        done = migrate(first, "apply")
    assert done.code == 1 and "a backup of %s is not sound: table shipments has 5 rows, not 6; " % first in done.err
    assert checksum(first) == before and names(tmp_path) == [NAME]


def test_a_backup_that_is_not_sound_inside_is_not_put_back(upgraded, tmp_path):
    backup, = saved(tmp_path)
    alter(backup, UNSOUND)
    before, files = content(upgraded), names(tmp_path)
    done = migrate(upgraded, "restore")
    assert done.code == 1 and "%s cannot be put back: " % backup in done.err and "index mine" in done.err
    assert content(upgraded) == before and names(tmp_path) == files


# Rollups that contradict the rows, as where a copy mixes two moments.
TWO_MOMENTS = "UPDATE rollup_lane SET shipments = shipments + 1 WHERE status = 'pending'"


def test_a_copy_of_unknown_making_whose_rollups_contradict_its_rows_is_not_put_back(upgraded, tmp_path):
    copy = tmp_path / "copied_by_hand.db"
    shutil.copy(str(upgraded), str(copy))
    before = content(alter(copy, TWO_MOMENTS) and upgraded)
    done = migrate(upgraded, "restore", copy)
    assert done.code == 1 and "%s cannot be put back: its rollups do not agree with its rows, as after cp" % copy in done.err
    assert content(upgraded) == before


def test_a_backup_of_ours_from_before_a_repair_is_put_back_with_a_hint(upgraded, tmp_path):
    alter(upgraded, TWO_MOMENTS)
    assert migrate(upgraded, "repair").code == 0
    backup = [path for path in saved(tmp_path) if ".v%d." % LAST in path.name][0]
    done = migrate(upgraded, "restore", backup)
    assert done.code == 0 and "'migrate.py %s repair' mends it" % upgraded in done.out
    assert migrate(upgraded, "verify").code == 1 and migrate(upgraded, "repair").code == 0


# Put back

def test_restore_puts_back_the_newest_backup_of_an_earlier_version(tmp_path):
    path = make(tmp_path / NAME, 1)
    with at(MOMENT):
        migrate(path, "apply", "--to", 2)
    with at(MOMENT + 1):
        migrate(path, "apply", "--to", 3)
    with at(MOMENT + 2):
        migrate(path, "apply")
    assert [version(backup) for backup in saved(tmp_path)] == [1, 2, 3]
    for wanted in (3, 2, 1):
        assert migrate(path, "restore").code == 0 and version(path) == wanted
    done = migrate(path, "restore")
    assert done.code == 1 and "%s has no backup of an earlier version in %s; name one: " % (path, tmp_path) in done.err
    assert str(saved(tmp_path)[0]) in done.err and version(path) == 1


def test_restore_gives_every_row_of_the_backup_and_keeps_what_was_there(upgraded, tmp_path, either):
    backup, = saved(tmp_path)
    before, today = content(backup), content(alter(upgraded, "UPDATE shipments SET carrier = 'since then'"))
    done = migrate(upgraded, "restore")
    assert done.code == 0 and content(upgraded) == before and content(backup) == before
    kept, = tmp_path.glob("*.kept")
    assert re.fullmatch(re.escape(NAME) + r"\.v5\.\d{8}T\d{6}Z\.kept", kept.name) and content(kept) == today
    assert done.out.splitlines() == [
        "from %s: version 1, 6 shipments, found sound" % backup, "what was there is kept as %s" % kept,
        "%s: put back; start writers anew, the service notices by itself" % upgraded]
    assert names(tmp_path) == sorted([NAME, backup.name, kept.name])
    assert not os.path.samefile(str(kept), str(upgraded)) and not os.path.samefile(str(backup), str(upgraded))


def test_restore_tells_the_same_as_json(upgraded, tmp_path):
    backup, = saved(tmp_path)
    code, found = document(upgraded, "restore")
    kept, = tmp_path.glob("*.kept")
    assert (code, found) == (0, {"database": str(upgraded), "restored": str(backup), "kept": str(kept)})


def test_what_a_restoration_kept_is_never_removed_as_an_old_backup(upgraded, tmp_path):
    kept = document(upgraded, "restore")[1]["kept"]
    with at(MOMENT + 10 ** 9):
        assert migrate(upgraded, "backup", "--keep", 1).code == 0
    assert len(saved(tmp_path)) == 1 and os.path.exists(kept)


def test_a_restoration_that_would_not_fit_is_not_begun(upgraded, tmp_path):
    before = content(upgraded)
    with mock.patch.object(shutil, "disk_usage", lambda place: mock.Mock(free=1000)):
        done = migrate(upgraded, "restore")
    assert done.code == 1 and "disk full" in done.err and content(upgraded) == before


def test_a_restoration_is_undone_by_another(upgraded, tmp_path):
    today = content(upgraded)
    kept = document(upgraded, "restore")[1]["kept"]
    assert migrate(upgraded, "restore", kept).code == 0 and content(upgraded) == today


def test_after_a_restoration_apply_leads_to_today_s_version_again(upgraded):
    before = shipments(upgraded)
    assert migrate(upgraded, "restore").code == 0 and migrate(upgraded, "apply").code == 0
    assert version(upgraded) == LAST and shipments(upgraded) == before and migrate(upgraded, "verify").code == 0


def test_a_named_backup_is_put_back_whatever_its_version(upgraded, tmp_path):
    other = make(tmp_path / "from elsewhere.db", 2)
    assert migrate(upgraded, "restore", other).code == 0 and content(upgraded) == content(other)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_what_is_put_back_is_as_closed_to_others_as_the_database_was(upgraded, tmp_path, mode, either):
    upgraded.chmod(mode)
    assert migrate(upgraded, "restore").code == 0
    assert upgraded.stat().st_mode & 0o777 == mode


def test_restore_makes_a_missing_database_from_its_newest_backup(upgraded, tmp_path, either):
    upgraded.unlink()
    backup, = saved(tmp_path)
    assert document(upgraded, "restore") == (0, {"database": str(upgraded), "restored": str(backup), "kept": None})
    assert content(upgraded) == content(backup) and names(tmp_path) == [NAME, backup.name]


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"no database at all" * 1000),
    lambda path: path.write_bytes(path.read_bytes()[:10000]),
    lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096)),
])
def test_restore_takes_the_place_of_a_damaged_database_and_keeps_its_bytes(upgraded, tmp_path, damage, either):
    backup, = saved(tmp_path)
    damage(upgraded)
    before = checksum(upgraded)
    code, found = document(upgraded, "restore")
    assert code == 0 and content(upgraded) == content(backup)
    kept = pathlib.Path(found["kept"])
    assert checksum(kept) == before and kept.name.startswith(NAME + ".damaged.") and not kept.name.endswith(".backup")
    assert saved(tmp_path) == [backup] and migrate(upgraded, "verify").code == 0


def test_restore_keeps_what_is_in_the_write_ahead_log(upgraded, tmp_path):
    backup, = saved(tmp_path)
    with opened(upgraded) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("UPDATE shipments SET carrier = 'in the log'")
        busy = end(start(upgraded, "restore", "--wait", 0.2))
        assert busy.code == 1 and "locked" in busy.err and version(upgraded) == LAST
    code, found = document(upgraded, "restore")
    assert code == 0 and content(upgraded) == content(backup)
    assert ask(found["kept"], "SELECT DISTINCT carrier FROM shipments") == [("in the log",)]
    assert not list(tmp_path.glob("*-wal")) and not list(tmp_path.glob("*-shm"))


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_restore_waits_for_a_writer_and_names_it(upgraded, tmp_path, begin):
    before, files = content(upgraded), names(tmp_path)
    with opened(upgraded) as db:
        db.execute(begin)
        done = end(start(upgraded, "restore", "--wait", 0.2))
    assert done.code == 1 and "is locked, held by %s" % supervision.describe(os.getpid()) in done.err
    assert content(upgraded) == before and names(tmp_path) == files


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_while_it_waits_leaves_all_as_it_was(upgraded, tmp_path, number, code):
    before, files = content(upgraded), names(tmp_path)
    with opened(upgraded) as db:
        db.execute("BEGIN IMMEDIATE")
        restore = start(upgraded, "restore")
        wait_for(lambda: "restoring" in (migration_lock.running(str(upgraded)) or ""), "the restoration to begin")
        wait_for(lambda: list(tmp_path.glob("*.part")), "its draft")
        restore.send_signal(number)
        done = end(restore)
    assert (done.code, done.err) == (code, "migrate.py: stopped; %s is whole, at version 5\n" % upgraded)
    assert content(upgraded) == before and names(tmp_path) == files


def test_a_writer_that_is_connected_gets_an_error_instead_of_losing_rows(upgraded):
    with opened(upgraded) as db:
        db.execute("UPDATE shipments SET carrier = 'before' WHERE id = 1")
        assert end(start(upgraded, "restore")).code == 0
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
            db.execute("UPDATE shipments SET carrier = 'after' WHERE id = 1")
    assert version(upgraded) == 1 and len(shipments(upgraded)) == len(ROWS)


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.write_bytes(b"no database at all" * 1000), "file is not a database"),
    (lambda path: path.write_bytes(path.read_bytes()[:10000]), ""),
    (lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096)), ""),
    (lambda path: path.write_bytes(b""), "is no shipments database"),
    (lambda path: alter(path, "DROP TABLE shipments"), "is no shipments database"),
    (lambda path: alter(path, "PRAGMA user_version = 2"), "cannot be put back: user_version is 2, and the table migrations records"),
    (lambda path: path.unlink(), "unable to open"),
])
def test_a_backup_that_is_not_sound_is_not_put_back(upgraded, tmp_path, damage, words, either):
    backup, = saved(tmp_path)
    damage(backup)
    before, files = content(upgraded), names(tmp_path)
    done = migrate(upgraded, "restore", backup)
    assert done.code == 1 and words in done.err and str(backup) in done.err and done.err.count("\n") == 1, done
    assert content(upgraded) == before and names(tmp_path) == files


def test_without_any_backup_restore_says_so(first, tmp_path):
    assert migrate(first, "restore") == (1, "", (
        "migrate.py: {0} has no backup of an earlier version in {1}; name one: 'migrate.py {0} restore BACKUP'; there is none\n"
        .format(first, tmp_path)))


def test_a_backup_of_a_newer_release_is_not_put_back(upgraded, tmp_path):
    newer = alter(make(tmp_path / "newer.db"), "PRAGMA user_version = 9")
    before = content(upgraded)
    done = migrate(upgraded, "restore", newer)
    assert done.code == 1 and "cannot be put back: version 9 is unknown" in done.err and content(upgraded) == before


def test_a_database_is_not_restored_from_itself(upgraded):
    before = content(upgraded)
    done = migrate(upgraded, "restore", upgraded)
    assert done.code == 1 and "itself" in done.err and content(upgraded) == before
