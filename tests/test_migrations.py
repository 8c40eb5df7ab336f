"""The steps in migrations/: what they lead to, and what each does to the rows that are there."""

import re
import sqlite3
import time

import pytest

import rollups
import schema_check
import steps
from conftest import ROOT, add_rows

SCHEMA = (ROOT / "schema.sql").read_text()
STEPS = steps.read_steps()
LAST = len(STEPS)
BARE = {"reference": "a", "status": "pending"}
COLUMNS = ("reference carrier mode service origin destination status created_at shipped_at promised_at delivered_at "
           "weight_kg cost currency exception_reason updated_at").split()

# What a table without CHECKs may hold in any column.
ODD = (None, "", " ", "x", " x", "x ", "x\0y", "'", "5", 5, -1, 1.5, 1e9, 1e10, 1e13, -1e13, float("inf"),
       b"", b"x", b"air", b"EUR", b"pending", b"2026-01-02",
       "air", "AIR", "pending", "Pending", "EUR", "eur", "EURO", "EU1", "now", "2460000", "12:00", "20260102",
       "2026-01-02", "2026-02-30", "2026-1-2", "2026-01-02 ", "2026-01-02\0", "9999-12-31", "-2026-01-02",
       "2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-01-02 03:04:05", "2026-01-02T24:00:00Z", "2026-01-02T03:04:05.5Z",
       "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z")


class Refusal(Exception):
    """What a step cannot take."""


def take(db, step):
    """Runs a step as migrate.py would: settings, then all the rest in one transaction."""
    for statement in step.settings:
        db.execute(statement)
    db.execute("BEGIN IMMEDIATE")
    refused = [text for query in step.refusals for text, in db.execute(query)]
    if refused:
        db.execute("ROLLBACK")
        raise Refusal(refused)
    for statement in step.statements:
        db.execute(statement)
    steps.record(db, step, "a test", 0)
    db.execute("COMMIT")


def at(version, *rows):
    """An open database of this version with the rows, which were there since version 1 where they could be."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in STEPS[:version]:
        take(db, step)
        if step.number == 1:
            add_rows(db, rows)
    return db


def ask(db, query):
    return db.execute(query).fetchall()


def normal(db):
    """The schema in the form in which two are compared: no comments, white space or quotes, and columns in order."""
    kinds = {}
    for kind, name, sql in ask(db, schema_check.OBJECTS):
        info = ask(db, "PRAGMA table_info(%s)" % name) if kind == "table" else ()
        columns = [(column, type, required, schema_check.tokens(default or ""), key)
                   for _, column, type, required, default, key in info]
        kinds[kind, name] = columns, schema_check.tokens(sql)
    return kinds


def contents(db):
    """The rows of shipments with their ids, byte for byte and type for type."""
    names = ["id"] + COLUMNS
    db.text_factory = bytes
    rows = ask(db, "SELECT %s FROM shipments ORDER BY id" % ", ".join("{0}, typeof({0})".format(name) for name in names))
    db.text_factory = str
    return rows


def changed(reference, db):
    """updated_at of one row."""
    return db.execute("SELECT updated_at FROM shipments WHERE reference = ?", (reference,)).fetchone()[0]


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# The folder, and schema.sql

def test_the_steps_and_nothing_else_are_in_the_folder():
    names = sorted(path.name for path in (ROOT / "migrations").iterdir())
    assert names == ["%04d_%s.sql" % (step.number, step.name) for step in STEPS]
    assert [step.number for step in STEPS] == list(range(1, LAST + 1))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_step_says_what_it_is_for(step):
    assert re.match(r"[A-Z].+\.", step.purpose)


def test_all_steps_make_what_schema_sql_makes():
    wanted = sqlite3.connect(":memory:")
    wanted.executescript(SCHEMA)
    assert normal(at(LAST)) == normal(wanted)
    assert ask(at(LAST), "SELECT * FROM transit_bounds") == ask(wanted, "SELECT * FROM transit_bounds")
    assert ask(wanted, "PRAGMA user_version") == [(LAST,)]


def test_what_the_steps_make_has_no_findings():
    assert schema_check.compare(schema_check.read_schema(at(LAST)), schema_check.wanted_schema()) == []


def test_a_database_from_schema_sql_has_the_record_of_all_steps():
    db = sqlite3.connect(":memory:")
    before = now()
    db.executescript(SCHEMA)
    records = steps.recorded(db)
    assert list(steps.disputes(records, LAST, STEPS)) == []
    assert {(record.tool, record.seconds) for record in records} == {("schema.sql", 0)}
    assert {before <= record.applied_at <= now() for record in records} == {True}


def test_schema_sql_has_the_hash_of_each_step():
    wanted = ["  (%d, '%s', '%s')" % (step.number, step.name, step.hash) for step in STEPS]
    missing = [line for line in wanted if line not in SCHEMA]
    assert not missing, "at the end of schema.sql belongs:\n" + "\n".join(missing)


@pytest.mark.parametrize("version", range(1, LAST + 1))
def test_only_reference_and_status_are_required_in_every_version(version):
    db = at(version)
    add_rows(db, [BARE])
    for column in BARE:
        with pytest.raises(sqlite3.IntegrityError, match="NOT NULL constraint failed: shipments." + column):
            add_rows(db, [dict(BARE, **{column: None})])


# 2, add_change_times

@pytest.mark.parametrize("times, wanted", [
    ({}, "1970-01-01T00:00:00Z"),
    ({"created_at": "2026-01-02"}, "2026-01-02T00:00:00Z"),
    ({"created_at": "2026-01-02T03:04:05Z"}, "2026-01-02T03:04:05Z"),
    ({"created_at": "2026-01-02", "shipped_at": "2026-01-04", "delivered_at": "2026-01-03T10:00:00Z"}, "2026-01-04T00:00:00Z"),
    ({"created_at": "2026-01-02", "delivered_at": "2026-01-02T10:00:00Z"}, "2026-01-02T10:00:00Z"),
    ({"created_at": "2026-01-02", "promised_at": "2026-01-09"}, "2026-01-02T00:00:00Z"),
    ({"created_at": "2026-01-02", "delivered_at": "soon"}, "2026-01-02T00:00:00Z"),
    ({"created_at": "1931-01-02"}, "1970-01-01T00:00:00Z"),
    ({"created_at": b"\xff", "shipped_at": 20260102}, "1970-01-01T00:00:00Z"),
])
def test_a_row_changed_last_at_the_latest_of_its_own_times(times, wanted):
    assert changed("a", at(2, dict(BARE, **times))) == wanted


@pytest.mark.parametrize("version", [2, 3])
def test_no_row_has_changed_in_the_future(version):
    before = now()
    db = at(version, dict(BARE, created_at="2026-01-02", delivered_at="9999-01-02"))
    assert before <= changed("a", db) <= now()


@pytest.mark.parametrize("version", range(2, LAST + 1))
def test_a_new_row_and_a_real_change_are_stamped(version):
    db = at(version, dict(BARE, created_at="2026-01-02"))
    db.execute("UPDATE shipments SET status = status")
    assert changed("a", db) == "2026-01-02T00:00:00Z"
    before = now()
    db.execute("UPDATE shipments SET status = 'delivered'")
    add_rows(db, [dict(BARE, reference="b")])
    assert before <= changed("a", db) <= changed("b", db) <= now()


@pytest.mark.parametrize("version", range(2, LAST + 1))
def test_a_time_that_the_writer_gives_stays(version):
    db = at(version)
    add_rows(db, [dict(BARE, updated_at="2026-01-02T03:04:05Z")])
    assert changed("a", db) == "2026-01-02T03:04:05Z"


# 3, constrain_shipments

def odd_rows(column):
    """A database of version 2 with a row for each odd value that the column takes."""
    db = at(2)
    for number, value in enumerate(ODD):
        add_rows(db, [dict(BARE, reference="R%d" % number)])
        try:
            db.execute("UPDATE shipments SET %s = ? WHERE id = last_insert_rowid()" % column, (value,))
        except sqlite3.IntegrityError:
            db.execute("DELETE FROM shipments WHERE id = last_insert_rowid()")
    return db


def allowed(column, value):
    """Whether schema.sql lets a shipment have this value."""
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    try:
        add_rows(db, [dict(BARE, **{column: value})])
        return True
    except sqlite3.Error:               # of the CHECK, or from within it on 'now'
        return False


@pytest.mark.parametrize("column", COLUMNS)
def test_just_the_rows_that_todays_checks_do_not_let_in_are_refused(column):
    db = odd_rows(column)
    rows = ask(db, "SELECT quote(reference), {0}, quote({0}) FROM shipments".format(column))
    wanted = ["reference " + name if column == "reference" else "reference %s: %s %s" % (name, column, quoted)
              for name, value, quoted in rows if not allowed(column, value)]
    with pytest.raises(Refusal) as found:
        take(db, STEPS[2])
    assert sorted(text.partition(" is ")[0] for text in found.value.args[0]) == sorted(wanted)


@pytest.mark.parametrize("column", COLUMNS)
def test_every_other_value_comes_through_byte_for_byte(column):
    db = odd_rows(column)
    for number, value in ask(db, "SELECT id, %s FROM shipments" % column):
        if not allowed(column, value):
            db.execute("DELETE FROM shipments WHERE id = ?", (number,))
    before = contents(db)
    take(db, STEPS[2])
    assert contents(db) == before != []


@pytest.mark.parametrize("column, value, words", [
    ("reference", " a", "reference ' a' is empty, no text or has blanks around it"),
    ("carrier", "", "reference 'a': carrier '' is empty or no text"),
    ("mode", "Air", "reference 'a': mode 'Air' is no mode"),
    ("service", b"\xff", "reference 'a': service X'FF' is no text"),
    ("origin", b"\xff", "reference 'a': origin X'FF' is no text"),
    ("destination", b"\xff", "reference 'a': destination X'FF' is no text"),
    ("status", "it's lost", "reference 'a': status 'it''s lost' is no status"),
    ("created_at", "2026-02-30", "reference 'a': created_at '2026-02-30' is no date or instant"),
    ("shipped_at", "yesterday", "reference 'a': shipped_at 'yesterday' is no date or instant"),
    ("promised_at", "", "reference 'a': promised_at '' is no date or instant"),
    ("delivered_at", "2026-01-02 03:04:05", "reference 'a': delivered_at '2026-01-02 03:04:05' is no date or instant"),
    ("weight_kg", -1, "reference 'a': weight_kg -1.0 is not within 0 and 1e9"),
    ("cost", "1,50", "reference 'a': cost '1,50' is not within -1e12 and 1e12"),
    ("currency", "eur", "reference 'a': currency 'eur' is not three capital letters"),
    ("exception_reason", "", "reference 'a': exception_reason '' is empty or no text"),
    ("updated_at", None, "reference 'a': updated_at NULL is no instant since 1970"),
])
def test_a_refused_row_is_named_with_what_is_wrong(column, value, words):
    db = at(2, BARE)
    db.execute("UPDATE shipments SET %s = ?" % column, (value,))
    before = contents(db)
    with pytest.raises(Refusal) as found:
        take(db, STEPS[2])
    assert found.value.args == ([words],)
    assert contents(db) == before and ask(db, "PRAGMA user_version") == [(2,)]


def test_bytes_that_are_no_utf_8_come_through_too():
    db = at(2, BARE)
    db.execute("UPDATE shipments SET carrier = CAST(x'ff41' AS TEXT)")
    take(db, STEPS[2])
    assert ask(db, "SELECT typeof(carrier), hex(carrier) FROM shipments") == [("text", "FF41")]


def test_the_ids_stay_with_their_gaps():
    rows = [dict(BARE, id=number, reference=str(number)) for number in (-3, 0, 7, 2 ** 62)]
    assert ask(at(3, *rows), "SELECT id, reference FROM shipments ORDER BY id") == [(row["id"], row["reference"]) for row in rows]


def test_what_refers_to_shipments_survives_the_rebuild():
    db = at(2, BARE)
    db.executescript("PRAGMA foreign_keys = ON; CREATE VIEW lost AS SELECT reference FROM shipments;"
                     "CREATE TABLE notes (shipment REFERENCES shipments (reference) ON DELETE CASCADE);"
                     "INSERT INTO notes VALUES ('a')")
    before = ask(db, "SELECT sql FROM sqlite_master WHERE name IN ('lost', 'notes')")
    take(db, STEPS[2])
    assert ask(db, "SELECT sql FROM sqlite_master WHERE name IN ('lost', 'notes')") == before
    assert ask(db, "SELECT * FROM lost, notes") == [("a", "a")] and ask(db, "PRAGMA foreign_key_check") == []


# 4, add_rollups

VARIETY = [
    dict(status="delivered", carrier="A", mode="air", created_at="2026-01-02T03:04:05Z", shipped_at="2026-01-03T00:00:00Z",
         promised_at="2026-01-05", delivered_at="2026-01-05T10:00:00Z"),
    dict(status="delivered", carrier="A", mode="air", created_at="2026-01-02T03:44:05Z", promised_at="2026-01-05T09:00:00Z",
         delivered_at="2026-01-05T10:30:00Z"),
    dict(status="delivered", created_at="2026-01-05", promised_at="2026-01-04", delivered_at="2026-01-04"),
    dict(status="delivered", carrier="A", created_at="2020-01-05", delivered_at="2026-01-04"),
    dict(status="delivered", carrier="B", promised_at="2026-01-04"),
    dict(status="exception", carrier="A", mode="air", created_at="2026-01-02T03:04:05Z", promised_at="2026-01-09"),
    dict(status="in_transit", carrier="A", mode="air", created_at="2026-01-02", promised_at="2026-01-09T12:00:00Z"),
    dict(status="in_transit", carrier="B", mode="rail"),
    dict(status="returned", carrier="B", created_at="2026-01-02", promised_at="2026-01-09"),
]
ROWS = [dict(row, reference=str(number)) for number, row in enumerate(VARIETY)]


def test_the_rollups_are_what_the_rows_say():
    db = at(4, *ROWS)
    assert list(rollups.differences(db)) == []
    assert {rollup.table: len(ask(db, "SELECT * FROM " + rollup.table)) for rollup in rollups.ROLLUPS} == {
        "rollup_lane": 8, "rollup_transit": 3, "rollup_due": 2, "rollup_hour": 6, "rollup_exception": 1}
    assert ask(db, "SELECT * FROM rollup_lane WHERE (carrier, mode, status) = ('A', 'air', 'delivered')") == [
        ("A", "air", "delivered", 2, 1, 1, 5400, 2, 208800 + 283555, 0)]


def test_the_rollups_equal_those_of_rows_stored_one_by_one():
    rows = at(4)
    add_rows(rows, ROWS)
    for rollup in rollups.ROLLUPS:
        assert ask(at(4, *ROWS), "SELECT * FROM " + rollup.table) == ask(rows, "SELECT * FROM " + rollup.table)


def test_the_rollups_follow_what_happens_afterwards():
    db = at(4, *ROWS)
    db.execute("UPDATE shipments SET status = 'delivered', delivered_at = '2026-01-10' WHERE status = 'in_transit'")
    db.execute("UPDATE shipments SET exception_reason = 'storm'")
    db.execute("DELETE FROM shipments WHERE carrier = 'B'")
    assert list(rollups.differences(db)) == []


def test_no_temporary_table_is_left():
    assert ask(at(LAST, *ROWS), "SELECT name FROM sqlite_temp_master") == []


def test_all_steps_leave_the_columns_of_version_1_as_they_were():
    query = "SELECT id, %s FROM shipments ORDER BY id" % ", ".join(COLUMNS[:-2])
    assert ask(at(LAST, *ROWS), query) == ask(at(1, *ROWS), query)
