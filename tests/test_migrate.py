"""What an operator may rely on when migrate.py tells, plans, does, proves or repairs; test_migrations.py has what each step does."""

import collections
import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from unittest import mock

import pytest

import migration_lock
import steps
import supervision
from conftest import ROOT, copy_product, wait_for
from versions import (LAST, NAME, ROWS, STEPS, alter, ask, content, document, end, make, migrate, names, opened, saved, shipments,
                      start, version, with_step)

VERSIONS = range(1, LAST + 1)
PENDING = ", ".join("%d %s" % (step.number, step.name) for step in STEPS)
NOBODY = 65534                          # uid and gid of an unprivileged user


@pytest.fixture
def path(tmp_path):
    """A database of today's version."""
    return make(tmp_path / NAME)


@pytest.fixture
def first(tmp_path):
    """A database of version 1."""
    return make(tmp_path / NAME, 1)


def told(path, command, *options, **more):
    """The lines that a command tells."""
    done = migrate(path, command, *options, **more)
    return (done.out + done.err).splitlines()


# status

@pytest.mark.parametrize("number", VERSIONS)
def test_status_tells_the_version_and_the_steps_that_lead_on(tmp_path, number):
    path = make(tmp_path / NAME, number)
    pending = ["%d %s" % (step.number, step.name) for step in STEPS[number:]]
    lines = ["%s: version %d of %d" % (path, number, LAST), "pending: " + (", ".join(pending) or "none")]
    lines.append("backups: 0")
    if pending:
        lines.append("next: python3 migrate.py %s plan" % path)
    assert migrate(path, "status") == (int(bool(pending)), "\n".join(lines) + "\n", "")


@pytest.mark.parametrize("number", VERSIONS)
def test_status_tells_the_same_as_json(tmp_path, number):
    path = make(tmp_path / NAME, number)
    pending = [{"number": step.number, "name": step.name} for step in STEPS[number:]]
    assert document(path, "status") == (int(bool(pending)), {
        "database": str(path), "state": "behind" if pending else "current", "version": number, "wanted": LAST,
        "pending": pending, "faults": [], "drift": [], "notes": [], "running": None, "backups": []})


def test_a_database_that_does_not_exist_is_behind_by_all_steps(tmp_path):
    path = tmp_path / NAME
    assert migrate(path, "status") == (1, "{0}: version 0 of {1}, not made yet\npending: {2}\nbackups: 0\n"
                                       "next: python3 migrate.py {0} plan\n".format(path, LAST, PENDING), "")
    assert names(tmp_path) == []


def test_an_empty_file_is_behind_by_all_steps(tmp_path):
    (tmp_path / NAME).touch()
    assert migrate(tmp_path / NAME, "status").code == 1
    assert migrate(tmp_path / NAME, "apply").code == 0 and version(tmp_path / NAME) == LAST


COMMANDS = [("status", 3), ("plan", 3), ("apply", 1), ("verify", 3), ("repair", 1)]


@pytest.mark.parametrize("command, code", COMMANDS)
def test_a_file_that_is_no_database_is_left_alone(tmp_path, command, code):
    path = tmp_path / NAME
    path.write_text("reference,carrier\n" * 1000)
    assert migrate(path, command) == (code, "", "migrate.py: %s: file is not a database: it is no SQLite file, or damaged; "
                                                "name another, or restore a backup\n" % path)
    assert names(tmp_path) == [NAME] and path.read_text() == "reference,carrier\n" * 1000


@pytest.mark.parametrize("command, code", COMMANDS)
def test_a_folder_is_told_to_be_one(tmp_path, command, code):
    done = migrate(tmp_path, command)
    assert done.code == code and "%s is a folder" % tmp_path in done.err, done


@pytest.mark.parametrize("command, code", [("status", 3), ("plan", 3), ("apply", 1), ("verify", 1), ("repair", 1)])
@pytest.mark.parametrize("sql, words", [
    ("CREATE TABLE orders (id INTEGER PRIMARY KEY)", "it is no shipments database: it has no table shipments"),
    ("CREATE TABLE orders (id INTEGER PRIMARY KEY); PRAGMA user_version = 2", "it has no table shipments"),
    ("CREATE TABLE shipments (id INTEGER PRIMARY KEY)", "it has tables and user_version 0, so none of the steps made it"),
])
def test_a_database_of_something_else_is_left_alone(tmp_path, sql, words, command, code):
    path = alter(tmp_path / NAME, sql)
    before = content(path)
    done = migrate(path, command)
    assert done.code == code and words in done.out + done.err
    assert content(path) == before and names(tmp_path) == [NAME]


# (what somebody did to the record, what is said of it)
DISPUTED = [
    ("PRAGMA user_version = 2", "user_version is 2, and the table migrations records the steps 1, 2, 3, 4, 5"),
    ("PRAGMA user_version = 0", "it has tables and user_version 0"),
    ("PRAGMA user_version = 9", "version 9 is unknown: this folder's steps end with 5"),
    ("INSERT INTO migrations VALUES (6, 'do_more', 'x', 'y', 'migrate.py 9', 0); PRAGMA user_version = 6",
     "version 6 is unknown: this folder's steps end with 5; use the release that made it, or restore a backup"),
    ("DELETE FROM migrations", "user_version is 5, and the table migrations records no step"),
    ("DROP TABLE migrations", "user_version is 5, and the table migrations records no step"),
    ("DELETE FROM migrations WHERE number = 2", "user_version is 5, and the table migrations records the steps 1, 3, 4, 5"),
    ("DELETE FROM migrations WHERE number = 5", "user_version is 5, and the table migrations records the steps 1, 2, 3, 4"),
    ("UPDATE migrations SET hash = 'e3b0c44298fc1c149afb' WHERE number = 2",
     "step 2 (add_change_times) was edited after it was applied"),
    ("UPDATE migrations SET name = 'add_times' WHERE number = 2",
     "step 2 was applied as add_times, and is add_change_times in " + str(ROOT / "migrations")),
    ("ALTER TABLE migrations RENAME COLUMN hash TO sum", "its table migrations has the columns number, name, sum, "),
    ("DROP TABLE migrations; CREATE TABLE migrations (id, applied)", "its table migrations has the columns id, applied, wanted number, "),
    ("DROP TABLE migrations; CREATE VIEW migrations AS SELECT 1 AS number", "no step"),
]


@pytest.mark.parametrize("sql, words", DISPUTED)
def test_a_record_that_was_changed_by_hand_is_told_and_nothing_is_done(path, tmp_path, sql, words):
    before = content(alter(path, sql))
    for command, code in COMMANDS[:3] + COMMANDS[4:]:
        done = migrate(path, command)
        assert done.code == code and words in done.out + done.err, done
    assert content(path) == before and names(tmp_path) == [NAME]


def test_a_disputed_record_is_unknown_in_json(path):
    alter(path, "PRAGMA user_version = 9")
    code, found = document(path, "status")
    assert (code, found["state"], found["version"], found["pending"]) == (3, "unknown", 9, [])
    assert found["faults"][0].startswith("version 9 is unknown")


def test_a_step_that_was_edited_after_it_was_applied_is_refused_with_both_hashes(tmp_path):
    path, folder = make(tmp_path / NAME, 2), with_step(tmp_path, "SELECT 1;")
    file = folder / "0002_add_change_times.sql"
    file.write_text(file.read_text() + "-- a harmless word\n")
    done = migrate(path, "apply", folder=folder)
    assert done.code == 1 and "step 2 (add_change_times) was edited after it was applied at 20" in done.err
    assert "its hash was %.12s, that of %s is " % (STEPS[1].hash, file) in done.err and "put the old file back" in done.err
    assert version(path) == 2 and names(tmp_path) == ["migrations", NAME]


# (what was done by hand, what is told of it)
CHANGED = [
    (LAST, "DROP TRIGGER shipments_update", "trigger shipments_update is missing"),
    (2, "DROP TRIGGER shipments_stamp", "trigger shipments_stamp is missing"),
    (LAST, "DROP TRIGGER shipments_insert; CREATE TRIGGER shipments_insert AFTER INSERT ON shipments BEGIN SELECT 1; END",
     "trigger shipments_insert differs from what the steps make"),
    (1, "DROP INDEX shipments_status", "index shipments_status is missing"),
    (LAST, "DROP INDEX shipments_due; CREATE INDEX shipments_due ON shipments (promised_at)",
     "index shipments_due differs from what the steps make"),
    (LAST, "DROP VIEW facts", "view facts is missing"),
    (1, "ALTER TABLE shipments RENAME COLUMN carrier TO haulier", "column shipments.carrier is missing"),
    (LAST, "ALTER TABLE shipments RENAME COLUMN cost TO price", "column shipments.cost is missing"),
    (3, "ALTER TABLE shipments ADD COLUMN remark TEXT", "column shipments.remark is extra"),
    (LAST, "DROP TABLE rollup_hour", "table rollup_hour is missing"),
    (1, "CREATE TRIGGER audit AFTER INSERT ON shipments BEGIN SELECT 1; END", "trigger audit is extra"),
    (3, "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, 'BETWEEN 0 AND', 'BETWEEN -1 AND')",
     "constraints or defaults of table shipments differ from what the steps make"),
]


@pytest.mark.parametrize("number, sql, words", CHANGED)
def test_a_schema_that_was_changed_by_hand_is_told_and_no_step_is_done(tmp_path, number, sql, words):
    path = alter(make(tmp_path / NAME, number), sql)
    before = content(path)
    status = migrate(path, "status")
    assert status.code == 3 and "changed by hand: %s\n" % words in status.out
    for command, code in (("plan", 3), ("apply", 1)):
        done = migrate(path, command)
        assert done.code == code and "%s was changed by hand since version %d: " % (path, number) in done.err and words in done.err
        assert "nothing was changed" in done.err and "'migrate.py %s repair'" % path in done.err
    assert content(path) == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("sql, words", [
    ("CREATE INDEX by_origin ON shipments (origin)", "index by_origin is extra"),
    ("CREATE TABLE notes (text)", "table notes is extra"),
    ("CREATE VIEW late AS SELECT * FROM shipments", "view late is extra"),
])
def test_what_somebody_added_without_harm_is_only_noted(path, sql, words):
    alter(path, sql)
    assert migrate(path, "status").code == 0
    assert document(path, "status")[1]["notes"] == [words]
    assert migrate(path, "apply").code == 0


# The files of the steps

@pytest.mark.parametrize("change, words", [
    (lambda folder: (folder / "0002_add_change_times.sql").unlink(), "holds step 3, but no step 2; copy the whole folder again"),
    (lambda folder: (folder / "0004_add_more.sql").write_text("SELECT 1;"), "the number 4 is there twice; renumber the newer one"),
    (lambda folder: (folder / "0006.sql").write_text("SELECT 1;"), "0006.sql is not named NNNN_verb_noun.sql; rename it"),
    (lambda folder: (folder / "0006_Add_more.sql").write_text("SELECT 1;"), "is not named NNNN_verb_noun.sql; rename it"),
    (lambda folder: (folder / "0006_add_more.sql").write_text("-- Nothing."), "it has no statement"),
    (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no steps; copy the whole folder again"),
    (shutil.rmtree, "No such file or directory; copy the whole folder again"),
])
def test_a_folder_of_steps_that_is_not_whole_is_told(first, tmp_path, change, words):
    folder, before = with_step(tmp_path, "SELECT 1;"), content(first)
    (folder / "0006_try_something.sql").unlink()
    change(folder)
    for command, code in (("status", 3), ("plan", 3), ("apply", 1)):
        done = migrate(first, command, folder=folder)
        assert done.code == code and str(folder) in done.err and words in done.err and done.out == "", done
    assert content(first) == before


def test_files_that_are_no_steps_do_not_count(first, tmp_path):
    folder = with_step(tmp_path, "SELECT 1;")
    (folder / "README").write_text("how to write one")
    assert document(first, "status", folder=folder)[1]["wanted"] == LAST + 1


# As another user

@pytest.fixture
def public():
    """A folder that everybody may look into and nobody but root may write; /tmp and those of pytest are not such."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="test_migrate_"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(str(folder))


def as_nobody(folder, *argv):
    """A run as an unprivileged user of a copy of the product in the folder."""
    product = folder / "product"
    if not product.is_dir():
        product.mkdir()
        copy_product(product)
    nobody = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "/usr/bin/python3", "-B")
    return end(start(*argv, product=product, command=nobody))


def test_who_may_only_read_is_told_status_and_plan(public):
    path = make(public / NAME, 1)
    assert as_nobody(public, path, "status").out.startswith("%s: version 1 of %d\n" % (path, LAST))
    assert as_nobody(public, path, "plan").code == 0
    assert names(public) == ["product", NAME]


def test_who_may_not_read_is_told_that(public):
    path = make(public / NAME, 1)
    path.chmod(0o600)
    done = as_nobody(public, path, "status")
    assert done.code == 3 and "may not be read" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("mode, file_mode", [(0o755, 0o644), (0o755, 0o666), (0o777, 0o644)])
def test_who_may_not_write_file_and_folder_is_told_so_and_changes_nothing(public, mode, file_mode):
    (public / "data").mkdir()
    path = make(public / "data" / NAME, 1)
    path.parent.chmod(mode)
    path.chmod(file_mode)
    before = path.read_bytes()
    done = as_nobody(public, path, "apply")
    assert done.code == 1 and "grant it" in done.err and done.err.count("\n") == 1, done
    assert path.read_bytes() == before and names(path.parent) == [NAME]


# plan

@pytest.mark.parametrize("number", VERSIONS)
def test_a_plan_changes_nothing(tmp_path, number):
    path = make(tmp_path / NAME, number)
    os.utime(str(path), (1, 1))
    before = path.read_bytes(), os.stat(str(path)), os.stat(str(tmp_path)).st_mtime_ns
    assert migrate(path, "plan").code == 0
    assert names(tmp_path) == [NAME]
    after = path.read_bytes(), os.stat(str(path)), os.stat(str(tmp_path)).st_mtime_ns
    assert after[0] == before[0] and after[1].st_mtime_ns == before[1].st_mtime_ns and after[2] == before[2]


def test_a_plan_for_a_database_that_does_not_exist_makes_none(tmp_path):
    done = migrate(tmp_path / NAME, "plan")
    assert done.code == 0 and done.out.startswith("%s: version 0, to %d in %d steps\n" % (tmp_path / NAME, LAST, LAST))
    assert names(tmp_path) == []


def test_a_plan_shows_every_statement_that_apply_will_run(first):
    out = migrate(first, "plan").out
    place = 0
    for statement in [statement for step in STEPS[1:] for statement in step.settings + step.statements]:
        place = out.index("\n%s\n" % statement, place) + 1
    assert out.endswith("next: rehearse on a copy (docs/migrations.md), then python3 migrate.py %s apply\n" % first)


def test_a_plan_stops_on_the_way_where_it_is_told_to(first):
    out = migrate(first, "plan", "--to", 2).out
    assert out.startswith("%s: version 1, to 2 in 1 steps\n" % first) and "step 2" in out and "step 3" not in out


def test_a_plan_for_today_s_version_says_that_it_is(path):
    assert migrate(path, "plan") == (0, "%s: version %d, up to date\n" % (path, LAST), "")


def test_a_plan_tells_the_rows_that_each_step_touches(tmp_path):
    touched = [item["touches"] for item in document(make(tmp_path / NAME, 1), "plan")[1]["steps"]]
    assert [item.get("shipments") for item in touched] == [
        {"rows": 6, "how": ["indexed", "read", "updated"]},
        {"rows": 6, "how": ["deleted", "dropped", "indexed", "read"]},
        {"rows": 6, "how": ["indexed", "read"]},
        None]
    assert "  shipments: 6 rows indexed, read, updated\n" in migrate(tmp_path / NAME, "plan").out


def test_a_plan_is_told_as_json_too(tmp_path):
    path = make(tmp_path / NAME, 2)
    code, plan = document(path, "plan", "--to", 3)
    step, = plan.pop("steps")
    disk, = plan.pop("disks")
    assert code == 0 and plan == {"database": str(path), "version": 2, "to": 3, "backup_bytes": path.stat().st_size,
                                  "seconds": plan["seconds"]}
    assert set(step) == {"number", "name", "purpose", "sql", "touches", "disk_bytes", "seconds", "refused", "refused_rows"}
    assert (step["number"], step["sql"]) == (3, STEPS[2].settings + STEPS[2].statements)
    assert (step["refused"], step["refused_rows"]) == ([], 0)
    assert disk["folder"] == str(tmp_path) and disk["needed"] > path.stat().st_size + step["disk_bytes"]
    assert abs(disk["free"] - shutil.disk_usage(str(tmp_path)).free) < 1 << 30


def test_rows_that_a_step_cannot_take_are_told_before(tmp_path):
    path = alter(make(tmp_path / NAME, 2), "UPDATE shipments SET status = 'lost' WHERE id IN (2, 4)")
    lines = "reference 'R1': status 'lost' is no status; reference 'R3': status 'lost' is no status"
    assert "  CANNOT TAKE 2 rows: " + lines in told(path, "plan")
    code, plan = document(path, "plan")
    step = plan["steps"][0]
    assert code == 1 and (step["refused"], step["refused_rows"]) == (lines.split("; "), 2)


def test_only_the_first_of_many_refused_rows_are_told_one_by_one(tmp_path):
    path = alter(make(tmp_path / NAME, 2), "WITH n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n LIMIT 20) "
                                           "INSERT INTO shipments (reference, status) SELECT 'X' || i, 'lost' FROM n")
    line, = [line for line in told(path, "plan") if "CANNOT" in line]
    assert line.startswith("  CANNOT TAKE 20 rows: reference 'X1'") and line.endswith("; and 10 more")
    assert line.count("is no status") == 10


def test_what_only_a_later_step_can_tell_is_said_to_be_so(first):
    assert "  rows that it cannot take: known only when the step before is done" in told(first, "plan", "--to", 3)
    assert [step["refused"] for step in document(first, "plan", "--to", 3)[1]["steps"]] == [[], None]


Usage = collections.namedtuple("Usage", "total used free")


def test_too_little_disk_is_told_by_the_plan_and_refused_before_the_start(first, tmp_path):
    with mock.patch.object(shutil, "disk_usage", lambda place: Usage(10 ** 9, 10 ** 9, 12345678)):
        line, = [line for line in told(first, "plan") if line.startswith("disk of")]
        assert line.startswith("disk of %s: " % tmp_path) and line.endswith(" needed at most, 12 MB free: TOO LITTLE")
        assert document(first, "plan")[0] == 1
        done = migrate(first, "apply")
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("migrate.py: disk full: %s has 12 MB free, backup and steps take " % tmp_path)
    assert "--backup-dir; nothing was changed\n" in done.err
    assert version(first) == 1 and names(tmp_path) == [NAME]


def test_the_backup_s_disk_counts_apart_from_the_database_s(first, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        disks = document(first, "plan", "--backup-dir", other)[1]["disks"]
    assert [disk["folder"] for disk in disks] == [str(tmp_path), other]


@pytest.mark.parametrize("command, code", [("plan", 1), ("apply", 1)])
def test_a_version_that_no_step_leads_to_is_refused(path, command, code):
    done = migrate(path, command, "--to", 9)
    assert done == (code, "", "migrate.py: there is no version 9: the steps end with 5\n")


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_no_step_leads_back(path, command):
    before = content(path)
    assert migrate(path, command, "--to", 2) == (
        1, "", "migrate.py: {0} is at version 5, and steps never lead back; 'migrate.py {0} restore' puts a backup back\n".format(path))
    assert content(path) == before


@pytest.mark.parametrize("argv", [
    [], ["x.db"], ["x.db", "upgrade"], ["x.db", "status", "--to", "2"], ["x.db", "apply", "--to", "0"], ["x.db", "apply", "--to", "two"],
    ["x.db", "apply", "--wait", "nan"],
    ["x.db", "apply", "y.backup"], ["x.db", "apply", "--wait", "-1"], ["x.db", "apply", "--keep", "0"], ["x.db", "apply", "--kee", "3"],
    ["x.db", "status", "--format", "xml"]])
def test_wrong_usage_is_said_to_be_that(argv):
    done = migrate(*argv)
    assert done.code == 2 and done.out == "" and done.err.startswith("usage: migrate.py DB status|plan|apply|verify|backup|repair|restore")


# apply

@pytest.mark.parametrize("number", VERSIONS)
def test_a_database_of_any_version_comes_to_today_s_with_every_row(tmp_path, number):
    path = make(tmp_path / NAME, number)
    before = shipments(path)
    assert len(before) == len(ROWS)
    assert end(start(path, "apply")).code == 0
    assert version(path) == LAST and shipments(path) == before
    assert migrate(path, "verify").code == 0
    assert ask(path, "SELECT number, name, hash FROM migrations") == [step[:2] + (step.hash,) for step in STEPS]


def test_apply_tells_the_backup_and_each_step(first, tmp_path):
    lines = told(first, "apply")
    backup, = saved(tmp_path)
    assert lines[0] == "backup: %s, %d kB, found sound" % (backup, backup.stat().st_size // 1000)
    assert [line.rpartition(":")[0] for line in lines[1:]] == ["step %d (%s)" % step[:2] for step in STEPS[1:]] + [str(first)]
    assert lines[-1] == "%s: version %d" % (first, LAST)


def test_apply_tells_the_same_as_json(first):
    code, found = document(first, "apply", "--to", 3)
    seconds = [step.pop("seconds") for step in found["steps"]]
    assert found.pop("backups") == [str(backup) for backup in saved(first.parent)]
    assert code == 0 and all(0 <= each < 10 for each in seconds)
    assert found == {"database": str(first), "from": 1, "to": 3,
                     "steps": [{"number": 2, "name": "add_change_times"}, {"number": 3, "name": "constrain_shipments"}]}


def test_each_step_is_recorded_with_its_time_tool_and_duration(first):
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    migrate(first, "apply")
    for applied_at, tool, seconds in ask(first, "SELECT applied_at, tool, seconds FROM migrations WHERE number > 1"):
        assert before <= applied_at <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        assert tool == "migrate.py 0.1.0" and 0 <= seconds < 10


def test_apply_stops_on_the_way_where_it_is_told_to_and_goes_on_from_there(first):
    assert migrate(first, "apply", "--to", 3).code == 0
    assert version(first) == 3 and migrate(first, "status").code == 1
    assert migrate(first, "apply").code == 0 and version(first) == LAST


def test_a_second_apply_finds_nothing_to_do_and_makes_no_backup(path, tmp_path):
    before = path.read_bytes()
    assert migrate(path, "apply") == (0, "%s: version %d, up to date\n" % (path, LAST), "")
    assert path.read_bytes() == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("number", VERSIONS)
def test_a_database_is_made_from_nothing_at_any_version(tmp_path, number):
    path = tmp_path / NAME
    assert migrate(path, "apply", "--to", number).code == 0
    assert version(path) == number and names(tmp_path) == [NAME]
    with opened(path) as db:
        db.execute("INSERT INTO shipments (reference, status) VALUES ('a', 'pending')")
    assert migrate(path, "verify").code == 0


def test_a_link_to_a_database_is_followed(first, tmp_path):
    (tmp_path / "data").mkdir()
    first.rename(tmp_path / "data" / NAME)
    first.symlink_to(tmp_path / "data" / NAME)
    assert migrate(first, "apply").code == 0
    assert names(tmp_path) == ["data", NAME] and first.is_symlink() and version(first) == LAST


def test_a_path_that_the_terminal_cannot_show_is_told_in_escapes(tmp_path):
    (tmp_path / "ü").mkdir()
    path = make(tmp_path / "ü" / NAME, 1)
    done = end(start(path, "apply", env=dict(os.environ, PYTHONIOENCODING="ascii")))
    assert (done.code, done.err) == (0, "") and done.out.endswith("/\\xfc/%s: version %d\n" % (NAME, LAST))


# (a step of the future, why it is refused)
REFUSED = [
    ("DELETE FROM shipments WHERE id = 1;", "table shipments had 6 rows and has 5: -1, declared +0"),
    ("-- rows: shipments -2\n-- rows: rollup_hour any\nDELETE FROM shipments WHERE id = 6;",
     "table shipments had 6 rows and has 5: -1, declared -2"),
    ("-- rows: shipments +1\nSELECT 1;", "table shipments had 6 rows and has 6: +0, declared +1"),
    ("DROP TABLE departed; CREATE TABLE departed (x);", "step 6 (try_something) was rolled back: no such column: carrier"),
    ("INSERT INTO rollup_transit VALUES ('A', 'air', 7, 1);",
     "table rollup_transit, a row refers to a row of transit_bounds that is not there"),
    ("-- rows: notes any\nCREATE TABLE notes (shipment REFERENCES shipments); INSERT INTO notes VALUES (1), (77);",
     "table notes, row 2 refers to a row of shipments that is not there"),
    ("UPDATE shipments SET status = 'lost' WHERE id = 1;", "rolled back at statement 1 of 1: CHECK constraint failed"),
    ("CREATE INDEX by_cost ON shipments (cost); CREATE UNIQUE INDEX one ON shipments (carrier);",
     "rolled back at statement 2 of 2: UNIQUE constraint failed: shipments.carrier"),
    ("CREATE INDEX by_cost ON shipments (cost); CREATE INDEX nowhere ON shipments (nowhere);", "0006_try_something.sql fails even in an empty database: "),
    ("CREATE INDEX by_cost ON shipments (cost); nonsense;", "syntax error"),
    ("UPDATE rollup_lane SET late = late + 1 WHERE carrier = 'B' AND mode = 'rail';",
     "rollup_lane carrier='B', mode='rail', status='in_transit': stored "),
    # Which is true before the row is there, and not afterwards.
    ("CREATE TABLE notes (id INTEGER PRIMARY KEY CHECK (last_insert_rowid() <> 7)); INSERT INTO notes VALUES (7);",
     "step 6 (try_something) was rolled back: CHECK constraint failed in notes"),
    ("-- refuse: SELECT 'reference ' || reference || ' weighs ' || weight_kg FROM shipments WHERE weight_kg < 1;\nSELECT 1;",
     "step 6 (try_something) cannot take 1 rows: reference R0 weighs 0.1; mend them"),
]


@pytest.mark.parametrize("sql, words", REFUSED)
def test_a_step_that_does_what_it_must_not_is_rolled_back_and_said_why(path, tmp_path, sql, words):
    before, folder = content(path), with_step(tmp_path, sql)
    done = migrate(path, "apply", folder=folder)
    assert done.code == 1 and words in done.err and done.err.count("\n") == 1, done
    assert "step 6" in done.err or "0006_try_something.sql" in done.err, done
    assert content(path) == before and migrate(path, "verify").code == 0
    assert set(names(tmp_path)) - {backup.name for backup in saved(tmp_path)} == {"migrations", NAME}


@pytest.mark.parametrize("sql", [sql for sql, _ in REFUSED])
def test_once_such_a_step_is_mended_the_next_apply_does_it(path, tmp_path, sql):
    migrate(path, "apply", folder=with_step(tmp_path, sql))
    assert migrate(path, "apply", folder=with_step(tmp_path, "CREATE INDEX by_cost ON shipments (cost);")).code == 0
    assert version(path) == LAST + 1


def test_a_plan_tells_of_a_step_that_cannot_work_at_all(path, tmp_path):
    done = migrate(path, "plan", folder=with_step(tmp_path, "CREATE INDEX nowhere ON shipments (nowhere);"))
    assert done.code == 3 and "0006_try_something.sql fails even in an empty database: " in done.err


def test_the_steps_before_one_that_fails_stay(tmp_path):
    path = make(tmp_path / NAME, 2)
    alter(path, "UPDATE shipments SET carrier = 'it''s' WHERE id = 1")
    before = shipments(path)
    folder = with_step(tmp_path, "CREATE UNIQUE INDEX one ON shipments (carrier);")
    assert migrate(path, "apply", folder=folder).code == 1
    assert version(path) == LAST and shipments(path) == before and migrate(path, "verify").code == 0


@pytest.mark.parametrize("sql", [
    "-- rows: shipments -1\n-- rows: rollup_hour any\nDELETE FROM shipments WHERE reference = 'R5';",
    "-- rows: shipments any\n-- rows: rollup_hour any\nDELETE FROM shipments WHERE reference = 'R5';",
    "-- Deletes.\n-- rows: SHIPMENTS -1\nDELETE FROM Shipments WHERE reference = 'R5';",
])
def test_a_step_may_delete_the_rows_that_it_declares(path, tmp_path, sql):
    sql = "-- rows: rollup_lane any\n" + sql
    assert migrate(path, "apply", folder=with_step(tmp_path, sql)).code == 0
    assert [row[1] for row in shipments(path)] == ["R0", "R1", "R2", "R3", "R4"]


@pytest.mark.parametrize("header, code", [("", 1), ("-- rows: notes -2\n", 0), ("-- rows: notes any\n", 0)])
def test_a_table_with_rows_is_dropped_only_where_that_is_declared(path, tmp_path, header, code):
    migrate(path, "apply", folder=with_step(tmp_path, "CREATE TABLE notes (text); INSERT INTO notes VALUES ('a'), ('b');"))
    assert version(path) == LAST + 1
    done = migrate(path, "apply", folder=with_step(tmp_path, header + "DROP TABLE notes;", number=LAST + 2))
    assert done.code == code
    assert code == 0 or "step 7 (try_something) was rolled back: table notes had 2 rows and has 0: -2, declared +0" in done.err


@pytest.mark.parametrize("theirs, sql", [
    ("CREATE INDEX mine ON shipments (destination)", "CREATE INDEX IF NOT EXISTS mine ON shipments (origin);"),
    ("CREATE TABLE mine (text, written_at)", "CREATE TABLE IF NOT EXISTS mine (text);"),
])
def test_a_step_that_leaves_another_schema_than_in_an_empty_database_is_rolled_back(path, tmp_path, theirs, sql):
    before = content(alter(path, theirs))
    done = migrate(path, "apply", folder=with_step(tmp_path, sql))
    assert done.code == 1 and "step 6 (try_something) was rolled back: " in done.err and "mine" in done.err
    assert content(path) == before


@pytest.mark.parametrize("theirs", ["CREATE INDEX mine ON shipments (origin)", "CREATE INDEX mine ON shipments (exception_reason)"])
def test_an_index_of_somebody_else_is_not_dropped_along_with_the_table(tmp_path, theirs):
    path = alter(make(tmp_path / NAME, 2), theirs)
    before = content(path)
    done = migrate(path, "apply")
    assert done.code == 1 and "step 3 (constrain_shipments) was rolled back: it would drop index mine, which no step made; " \
                              "drop that, and make it again afterwards" in done.err
    assert content(path) == before


def test_a_table_and_a_view_of_somebody_else_come_through_all_steps(first):
    alter(first, "CREATE TABLE notes (id INTEGER PRIMARY KEY, shipment INTEGER REFERENCES shipments ON DELETE CASCADE, text);"
                 "INSERT INTO notes VALUES (1, 2, 'a'), (7, 5, 'b'); CREATE VIEW noted AS SELECT * FROM shipments JOIN notes "
                 "ON notes.shipment = shipments.id")
    before = ask(first, "SELECT reference, text FROM noted"), ask(first, "SELECT sql FROM sqlite_master WHERE name LIKE 'note%'")
    assert migrate(first, "apply").code == 0
    assert (ask(first, "SELECT reference, text FROM noted"),
            ask(first, "SELECT sql FROM sqlite_master WHERE name LIKE 'note%'")) == before
    assert migrate(first, "verify").code == 0


def test_what_refers_to_nothing_already_is_told_before_anything_is_changed(first, tmp_path):
    alter(first, "CREATE TABLE notes (shipment REFERENCES shipments); INSERT INTO notes VALUES (77)")
    before = content(first)
    done = migrate(first, "apply")
    assert done.code == 1 and "is broken already: table notes, row 1 refers to a row of shipments that is not there" in done.err
    assert content(first) == before and names(tmp_path) == [NAME]


def test_a_step_may_change_the_journal_mode_before_its_transaction(path, tmp_path):
    assert migrate(path, "apply", folder=with_step(tmp_path, "PRAGMA journal_mode = WAL;\nSELECT 1;")).code == 0
    assert ask(path, "PRAGMA journal_mode") == [("wal",)] and version(path) == LAST + 1
    folder = with_step(tmp_path, "PRAGMA journal_mode = DELETE;\nCREATE INDEX by_cost ON shipments (cost);", number=LAST + 2)
    assert migrate(path, "apply", folder=folder).code == 0
    assert ask(path, "PRAGMA journal_mode") == [("delete",)] and version(path) == LAST + 2
    assert migrate(path, "verify", folder=folder).code == 0


@pytest.mark.parametrize("number", VERSIONS)
def test_a_database_with_a_write_ahead_log_stays_one(tmp_path, number):
    path = alter(make(tmp_path / NAME, number), "PRAGMA journal_mode = WAL")
    before = shipments(path)
    assert migrate(path, "apply").code == 0 and migrate(path, "verify").code == 0
    assert ask(path, "PRAGMA journal_mode") == [("wal",)] and shipments(path) == before and version(path) == LAST


def test_a_step_may_have_semicolons_in_strings_comments_and_triggers(path, tmp_path):
    folder = with_step(tmp_path, """-- Notes; with odd text.
        CREATE TABLE notes (text DEFAULT 'a;b', "odd;name" /* ; */, [other;one]);  -- and; so on
        INSERT INTO notes (text) VALUES ('it''s; --no comment'), ('/* none; either');
        CREATE TRIGGER notes_stamp AFTER INSERT ON notes BEGIN
          UPDATE notes SET text = CASE WHEN text = ';' THEN 'END;' ELSE text END; -- END;
          INSERT INTO notes SELECT 'x', 'y', 'z' WHERE 0;
        END;
        ;
        -- done;
        """)
    assert migrate(path, "apply", folder=folder).code == 0
    assert ask(path, "SELECT text FROM notes") == [("it's; --no comment",), ("/* none; either",)]
    alter(path, "INSERT INTO notes (text) VALUES (';')")
    assert ask(path, "SELECT text FROM notes WHERE rowid = 3") == [("END;",)]


def test_a_step_may_rebuild_shipments_although_a_view_and_triggers_refer_to_them(path, tmp_path):
    before = shipments(path), sorted(ask(path, "SELECT type, name FROM sqlite_master"))
    example = (ROOT / "docs" / "examples" / "rebuild.sql").read_bytes()
    folder = with_step(tmp_path, example, name="lower_weights")
    assert migrate(path, "apply", folder=folder).code == 0
    assert (shipments(path), sorted(ask(path, "SELECT type, name FROM sqlite_master"))) == before
    assert version(path) == LAST + 1 and migrate(path, "verify", folder=folder).code == 0
    with opened(path) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE shipments SET weight_kg = 2e6")
    alter(path, "UPDATE shipments SET status = 'delivered', delivered_at = '2026-01-11'; DELETE FROM shipments WHERE id = 2")
    assert migrate(path, "verify", folder=folder).code == 0


def test_rows_that_the_rebuild_cannot_take_are_named_and_stay(path, tmp_path):
    before = content(alter(path, "UPDATE shipments SET weight_kg = 2e6 WHERE id = 3"))
    folder = with_step(tmp_path, (ROOT / "docs" / "examples" / "rebuild.sql").read_bytes(), name="lower_weights")
    done = migrate(path, "apply", folder=folder)
    assert done.code == 1 and "step 6 (lower_weights) cannot take 1 rows: reference 'R2': weight_kg 2000000.0 is more than 1e6" in done.err
    assert content(path) == before and saved(tmp_path) == []


def test_a_text_that_is_no_utf_8_comes_through_all_steps(first):
    alter(first, "UPDATE shipments SET carrier = CAST(x'ff41' AS TEXT) WHERE id = 1")
    assert migrate(first, "apply").code == 0
    assert ask(first, "SELECT typeof(carrier), hex(carrier) FROM shipments WHERE id = 1") == [("text", "FF41")]


@pytest.mark.parametrize("column", ["reference", "carrier", "destination"])
def test_a_text_that_is_no_utf_8_is_a_difference_that_verify_names(path, column):
    assert migrate(path, "verify", "--quiet").out == ""
    alter(path, "UPDATE shipments SET %s = CAST(x'ff41' AS TEXT) WHERE id = 1" % column)
    done = migrate(path, "verify", "--quiet")
    assert done.code == 1 and "shipment 1: its %s is not UTF-8: '\\udcffA'" % column in done.out and "1 differences" in done.out


def test_a_row_with_a_text_that_is_no_utf_8_is_named_where_a_step_cannot_take_it(first):
    alter(first, "UPDATE shipments SET mode = CAST(x'ff41' AS TEXT) WHERE id = 1")
    done = end(start(first, "apply"))
    assert done.code == 1 and "reference 'R0': mode '\\udcffA' is no mode" in done.err


def test_rows_that_only_a_later_step_cannot_take_stop_it_there(first):
    alter(first, "UPDATE shipments SET mode = 'Air' WHERE id = 1")
    before = shipments(first)
    done = migrate(first, "apply")
    assert done.code == 1 and "step 3 (constrain_shipments) cannot take 1 rows: reference 'R0': mode 'Air' is no mode; mend " in done.err
    assert version(first) == 2 and shipments(first) == before
    alter(first, "UPDATE shipments SET mode = 'air' WHERE id = 1")
    assert migrate(first, "apply").code == 0 and migrate(first, "verify").code == 0


# Locks

@contextlib.contextmanager
def locked(path, *statements):
    """A connection of this process in a transaction."""
    with opened(path) as db:
        for statement in statements:
            db.execute(statement).fetchone()
        yield db


def waiting(path, process, at=""):
    """Waits until a process holds the migration lock, with this in its note."""
    def seen():
        assert process.poll() is None, end(process)
        return at in (migration_lock.running(str(path)) or "-")
    wait_for(seen, "migrate.py to be at " + at)


def test_a_second_apply_is_refused_and_names_the_first(first, tmp_path):
    with locked(first, "BEGIN IMMEDIATE") as db:
        apply = start(first, "apply")
        waiting(first, apply, "at step 2")
        done = end(start(first, "apply"))
        assert done.code == 1 and done.out == ""
        assert done.err.startswith("migrate.py: another migration of %s is running, held by pid %d (" % (first, apply.pid))
        assert "apply" in done.err and done.err.endswith("; wait until it is done\n")
        status = document(first, "status")[1]
        assert status["running"] == "to version 5, at step 2 (add_change_times), by pid %d" % apply.pid
        db.execute("ROLLBACK")
    assert end(apply).code == 0 and version(first) == LAST and len(saved(tmp_path)) == 1


@pytest.mark.parametrize("command", ["restore", "repair"])
def test_neither_repair_nor_restore_gets_in_between(first, command):
    with locked(first, "BEGIN IMMEDIATE"):
        apply = start(first, "apply")
        waiting(first, apply, "at step 2")
        done = end(start(first, command))
        apply.kill()
        apply.communicate()
    assert done.code == 1 and "another migration of %s is running, held by pid %d" % (first, apply.pid) in done.err


def test_a_writer_is_waited_for(first):
    with locked(first, "BEGIN IMMEDIATE", "UPDATE shipments SET carrier = 'late' WHERE id = 1") as db:
        apply = start(first, "apply")
        waiting(first, apply, "at step 2")
        db.execute("COMMIT")
    assert end(apply).code == 0
    assert ask(first, "SELECT carrier FROM shipments WHERE id = 1") == [("late",)] and migrate(first, "verify").code == 0


def test_a_writer_that_does_not_end_is_named_and_nothing_is_changed(first, tmp_path):
    before = content(first)
    with locked(first, "BEGIN IMMEDIATE"):
        done = end(start(first, "apply", "--wait", 0.2))
    assert done.code == 1 and done.err == (
        "migrate.py: %s is locked, held by %s; waited 0.2 s: end that process, or try again with a longer --wait\n"
        % (first, supervision.describe(os.getpid())))
    assert content(first) == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("command, code", [("status", 3), ("plan", 3), ("verify", 3), ("apply", 1), ("repair", 1)])
def test_a_writer_in_its_commit_is_named_by_every_command(first, command, code):
    with locked(first, "BEGIN EXCLUSIVE"):
        done = end(start(first, command, "--wait", 0.1))
    assert done.code == code and "is locked, held by pid %d (" % os.getpid() in done.err


def test_a_reader_that_never_ends_is_named_at_the_commit_and_the_step_rolled_back(first, tmp_path):
    before = content(first)
    with locked(first, "BEGIN", "SELECT count(*) FROM shipments"):
        done = end(start(first, "apply", "--wait", 0.2))
    assert done.code == 1 and "is locked, held by pid %d (" % os.getpid() in done.err
    assert content(first) == before and names(tmp_path) == [NAME, saved(tmp_path)[0].name]


def refusal(path):
    """What another process that reads is told."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT count(*) FROM shipments')"
    return subprocess.run([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE, universal_newlines=True).stderr


def test_a_reader_at_the_commit_is_waited_for(first, tmp_path):
    with locked(first, "BEGIN", "SELECT count(*) FROM shipments") as db:
        apply = start(first, "apply")
        wait_for(lambda: saved(tmp_path), "the backup")
        wait_for(lambda: "locked" in refusal(first), "the commit, which lets no more readers in")
        db.execute("COMMIT")
    assert end(apply).code == 0 and version(first) == LAST


def test_a_step_of_forty_megabytes_stays_in_its_cache_and_lets_readers_in(path, tmp_path):
    folder, seen = with_step(tmp_path, "CREATE TABLE large (bytes);\nINSERT INTO large VALUES (zeroblob(40000000));"), []
    with mock.patch("steps.record", side_effect=lambda *args, record=steps.record: seen.append(refusal(path)) or record(*args)):
        assert migrate(path, "apply", folder=folder).code == 0
    assert seen == [""]


def test_a_step_does_not_follow_a_version_that_another_process_has_made_meanwhile(first, tmp_path):
    with mock.patch("migrate.require_ready", lambda ahead: alter(first, "PRAGMA user_version = 3")):
        done = migrate(first, "apply")
    assert done.code == 1 and "step 2 (add_change_times) follows version 1, and another process has just made it 3" in done.err
    assert version(first) == 3 and names(tmp_path) == [NAME]


STOPS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize("number, code", STOPS)
def test_a_stop_while_waiting_ends_it_at_once_and_says_that_all_is_whole(first, tmp_path, number, code):
    before = content(first)
    with locked(first, "BEGIN IMMEDIATE"):
        apply = start(first, "apply")
        waiting(first, apply, "at step 2")
        apply.send_signal(number)
        assert end(apply) == (code, "", "migrate.py: stopped; %s is whole, at version 1\n" % first)
    assert content(first) == before and names(tmp_path) == [NAME]


SLOW = "CREATE TABLE sums (n);\nINSERT INTO sums SELECT count(*) FROM shipments a, %s;" % ", ".join(
    "shipments b%d" % number for number in range(14))


@pytest.mark.parametrize("number, code", STOPS)
def test_a_stop_in_the_middle_of_a_step_rolls_it_back_and_the_next_apply_goes_on(tmp_path, number, code):
    product = copy_product(pathlib.Path(tempfile.mkdtemp(dir=str(tmp_path))))
    file = product / "migrations" / "0006_sum_up.sql"
    file.write_text(SLOW)
    path = make(tmp_path / NAME, 3)
    before = shipments(path)
    apply = start(path, "apply", product=product)
    waiting(path, apply, "at step 6")
    wait_for(lambda: str(apply.pid) in supervision.lock_holders(str(path)), "the step to begin")
    apply.send_signal(number)
    done = end(apply)
    assert (done.code, done.err) == (code, "migrate.py: stopped; %s is whole, at version 5\n" % path)
    assert version(path) == LAST and shipments(path) == before and migrate(path, "verify").code == 0
    file.write_text("CREATE TABLE sums (n);")
    assert end(start(path, "apply", product=product)).code == 0 and version(path) == LAST + 1


def test_a_reader_sees_one_version_or_another_while_the_steps_run(first):
    seen = set()
    apply = start(first, "apply")
    with opened(first) as db:
        while apply.poll() is None:
            db.execute("BEGIN")
            number = db.execute("PRAGMA user_version").fetchone()[0]
            records, = db.execute("SELECT count(*) FROM migrations").fetchone()
            seen.add((number, records, db.execute("SELECT count(*) FROM shipments").fetchone()[0]))
            db.execute("COMMIT")
    assert end(apply).code == 0
    assert seen <= {(number, number, len(ROWS)) for number in VERSIONS}


def test_a_lock_file_that_a_killed_run_left_is_taken_over(first, tmp_path):
    (tmp_path / (NAME + "-migration")).write_text("to version 4, by pid 1")
    assert document(first, "status")[1]["running"] is None
    assert migrate(first, "apply").code == 0
    assert names(tmp_path) == [NAME, saved(tmp_path)[0].name]


# verify

@pytest.mark.parametrize("number", VERSIONS)
def test_verify_finds_nothing_in_a_sound_database_and_counts_its_rows(tmp_path, number):
    path = make(tmp_path / NAME, number)
    before = path.read_bytes()
    lines = told(path, "verify")
    assert lines[0] == "%s: version %d, as its steps made it, sound" % (path, number)
    assert "  shipments: 6 rows" in lines and "  migrations: %d rows" % number in lines
    code, found = document(path, "verify")
    assert (code, found["version"], found["differences"], found["rows"]["shipments"]) == (0, number, [], 6)
    assert path.read_bytes() == before and names(tmp_path) == [NAME]


DAMAGED = [
    ("INSERT INTO rollup_transit VALUES ('A', 'air', 7, 1)", "refers to a row of transit_bounds that is not there"),
    ("CREATE TABLE notes (shipment REFERENCES shipments); INSERT INTO notes VALUES (77)",
     "table notes, row 1 refers to a row of shipments that is not there"),
    ("UPDATE rollup_hour SET created = created + 1 WHERE hour = '2026-01-02T00'", "rollup_hour hour='2026-01-02T00': stored "),
    ("DELETE FROM rollup_exception", "rollup_exception reason='': stored nothing, recomputed shipments=1"),
    ("INSERT INTO departed (status) VALUES ('pending')", "departed: stored 1 rows, recomputed none"),
    ("DROP TRIGGER shipments_update", "trigger shipments_update is missing"),
    ("UPDATE migrations SET hash = 'x' WHERE number = 3", "step 3 (constrain_shipments) was edited after it was applied"),
    ("PRAGMA ignore_check_constraints = ON; UPDATE shipments SET status = 'lost' WHERE id = 6", "CHECK constraint failed in shipments"),
    ("PRAGMA writable_schema = ON; DELETE FROM sqlite_master WHERE name = 'shipments_due'", "index shipments_due is missing"),
]


@pytest.mark.parametrize("sql, words", DAMAGED)
def test_verify_finds_each_kind_of_damage(path, tmp_path, sql, words):
    before = content(alter(path, sql))
    code, found = document(path, "verify")
    assert code == 1 and any(words in text for text in found["differences"]), found
    assert told(path, "verify")[len(found["differences"])] == "%s: version 5, %d differences" % (path, len(found["differences"]))
    assert content(path) == before and names(tmp_path) == [NAME]


def torn(path, page):
    """Overwrites a page with what a failing disk may leave; the path."""
    size, = ask(path, "PRAGMA page_size")[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\0\xff" * (size // 2))
    return path


def test_verify_finds_an_index_that_differs_from_its_table(path):
    torn(path, ask(path, "SELECT rootpage FROM sqlite_master WHERE name = 'shipments_due'")[0][0])
    done = migrate(path, "verify")
    assert done.code == 1 and "shipments_due" in done.out or done.code == 3 and "malformed" in done.err, done


def test_a_database_whose_rows_are_torn_is_told_and_not_migrated(tmp_path):
    path = make(tmp_path / NAME, 1)
    torn(path, ask(path, "SELECT rootpage FROM sqlite_master WHERE name = 'shipments'")[0][0])
    before = path.read_bytes()
    assert migrate(path, "verify").code in (1, 3)
    done = migrate(path, "apply")
    assert done.code == 1 and "malformed: it is damaged; restore a backup" in done.err
    assert path.read_bytes() == before and names(tmp_path) == [NAME]


def test_verify_of_nothing_cannot_tell(tmp_path):
    done = migrate(tmp_path / NAME, "verify")
    assert done.code == 3 and "%s does not exist; " % (tmp_path / NAME) in done.err and names(tmp_path) == []


# repair

MENDED = [
    (LAST, "DROP TRIGGER shipments_update", ["trigger shipments_update"]),
    (2, "DROP TRIGGER shipments_stamp; DROP TRIGGER shipments_stamp_new",
     ["trigger shipments_stamp", "trigger shipments_stamp_new"]),
    (LAST, "DROP TRIGGER shipments_insert; CREATE TRIGGER shipments_insert AFTER INSERT ON shipments BEGIN SELECT 1; END",
     ["trigger shipments_insert"]),
    (1, "DROP INDEX shipments_status", ["index shipments_status"]),
    (LAST, "DROP INDEX shipments_due; CREATE INDEX shipments_due ON shipments (promised_at)", ["index shipments_due"]),
    (LAST, "DROP VIEW facts", ["trigger facts_apply", "view facts"]),
    (LAST, "DROP VIEW facts; CREATE VIEW facts AS SELECT 1 AS sign", ["trigger facts_apply", "view facts"]),
    (LAST, "DROP TRIGGER facts_apply", ["trigger facts_apply"]),
]


@pytest.mark.parametrize("number, sql, repaired", MENDED)
def test_repair_puts_back_what_was_dropped_or_altered_after_a_backup(tmp_path, number, sql, repaired):
    path = make(tmp_path / NAME, number)
    before = content(path)
    damaged = content(alter(path, sql))
    code, found = document(path, "repair")
    assert code == 0 and found["repaired"] == repaired
    assert content(saved(tmp_path)[0]) == damaged
    assert sorted(map(str, content(path))) == sorted(map(str, before)) and migrate(path, "verify").code == 0


def test_repair_tells_what_it_put_back(path, tmp_path):
    alter(path, "DROP TRIGGER shipments_delete")
    lines = told(path, "repair")
    assert lines[0].startswith("backup: %s, " % saved(tmp_path)[0])
    assert lines[1:] == ["put back: trigger shipments_delete", "%s: version 5, as its steps made it" % path]


def test_repair_counts_what_was_written_while_a_trigger_was_missing(path):
    alter(path, "DROP TRIGGER shipments_update; UPDATE shipments SET status = 'delivered', delivered_at = '2026-01-08'")
    rows = shipments(path)
    assert migrate(path, "repair").code == 0
    assert migrate(path, "verify").code == 0 and shipments(path) == rows


def test_repair_counts_what_was_written_while_a_trigger_that_is_back_was_missing(path):
    trigger = ask(path, "SELECT sql FROM sqlite_master WHERE name = 'shipments_insert'")[0][0]
    alter(path, "DROP TRIGGER shipments_insert; INSERT INTO shipments (reference, status) VALUES ('X', 'pending'); " + trigger)
    assert migrate(path, "status").code == 0 and migrate(path, "verify").code == 1
    assert told(path, "repair")[1:] == ["made anew: the rollups", "%s: version 5, as its steps made it" % path]
    assert migrate(path, "verify").code == 0


def test_repair_leaves_a_sound_database_alone(path, tmp_path):
    before = path.read_bytes()
    assert migrate(path, "repair") == (0, "%s: version 5, nothing to repair\n" % path, "")
    assert path.read_bytes() == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("number, sql, words", [
    (LAST, "ALTER TABLE shipments ADD COLUMN remark TEXT", "column shipments.remark is extra"),
    (1, "ALTER TABLE shipments RENAME COLUMN carrier TO haulier",
     "column shipments.carrier is missing; column shipments.haulier is extra"),
    (LAST, "DROP TABLE rollup_hour", "table rollup_hour is missing"),
    (LAST, "CREATE TRIGGER audit AFTER INSERT ON shipments BEGIN SELECT 1; END", "trigger audit is extra"),
    (LAST, "PRAGMA user_version = 3", "user_version is 3, and the table migrations records the steps 1, 2, 3, 4, 5"),
])
def test_repair_leaves_to_a_person_what_only_a_person_can_judge(tmp_path, number, sql, words):
    path = alter(make(tmp_path / NAME, number), sql)
    before = content(path)
    done = migrate(path, "repair")
    assert done.code == 1 and words in done.err and "nothing was changed" in done.err
    assert content(path) == before and names(tmp_path) == [NAME]


@pytest.mark.parametrize("sql, words", [
    ("CREATE TABLE notes (shipment REFERENCES shipments); INSERT INTO notes VALUES (77)", "is broken already: table notes, row 1"),
    ("DELETE FROM transit_bounds WHERE le = 259200", "refers to a row of transit_bounds that is not there"),
])
def test_repair_of_what_it_cannot_mend_changes_nothing(path, sql, words):
    before = content(alter(path, sql + "; DROP TRIGGER shipments_update"))
    done = migrate(path, "repair")
    assert done.code == 1 and words in done.err
    assert content(path) == before


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_a_database_that_does_not_exist_is_not_made_by_the_way(tmp_path, command):
    done = migrate(tmp_path / NAME, command)
    assert done.code and "does not exist; name a database, or make one: 'migrate.py %s apply'" % (tmp_path / NAME) in done.err
    assert names(tmp_path) == []
