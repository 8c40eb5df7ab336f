"""Differences between a live schema and schema.sql: their words and their grades."""

import sqlite3

import pytest

import schema_check
from conftest import ROOT

SCHEMA = (ROOT / "schema.sql").read_text()
WANTED = schema_check.wanted_schema()


def findings(change="", schema=SCHEMA):
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema)
    connection.executescript(change)
    return [tuple(finding) for finding in schema_check.compare(schema_check.read_schema(connection), WANTED)]


def test_a_database_made_from_the_schema_has_no_findings():
    assert findings() == []


def test_an_empty_database_is_one_error_and_not_one_for_each_table():
    assert findings(schema="PRAGMA user_version = %d" % WANTED.version) == [("error", "the database is empty: it has no tables")]


def test_a_renamed_column_comes_first_and_by_name():
    found = findings("ALTER TABLE shipments RENAME COLUMN carrier TO courier")
    assert found[0] == ("error", "column shipments.carrier is missing")
    assert found[-1] == ("note", "column shipments.courier is extra")


@pytest.mark.parametrize("change, finding", [
    ("DROP TABLE rollup_due", ("error", "table rollup_due is missing")),
    ("DROP TRIGGER shipments_insert", ("warning", "trigger shipments_insert is missing")),
    ("DROP INDEX shipments_due", ("warning", "index shipments_due is missing")),
    ("DROP INDEX shipments_due; CREATE INDEX shipments_due ON shipments (promised_at)",
     ("warning", "index shipments_due differs from schema.sql")),
    ("CREATE INDEX of_the_dba ON shipments (origin)", ("note", "index of_the_dba is extra")),
    ("CREATE TABLE scratch (x)", ("note", "table scratch is extra")),
    ("CREATE TRIGGER spy AFTER INSERT ON shipments BEGIN SELECT 1; END", ("note", "trigger spy is extra")),
    ("ALTER TABLE shipments ADD COLUMN colour TEXT", ("note", "column shipments.colour is extra")),
    ("PRAGMA user_version = 6", ("version", "schema version 6 is newer than the 5 of this release")),
    ("PRAGMA user_version = 3", ("version", "schema version 3 is older than the 5 of this release")),
])
def test_one_change_is_one_finding(change, finding):
    assert findings(change) == [finding]


@pytest.mark.parametrize("old, new, finding", [
    ("weight_kg        REAL", "weight_kg        TEXT", ("error", "column shipments.weight_kg is TEXT, wanted REAL")),
    ("reference        TEXT NOT NULL UNIQUE", "reference        TEXT NOT NULL",
     ("error", "table shipments lacks the unique key (reference)")),
    ("PRIMARY KEY (carrier, mode, le)", "PRIMARY KEY (carrier, le, mode)",
     ("error", "primary key of rollup_transit is (carrier, le, mode), wanted (carrier, mode, le)")),
    ("NOT NULL REFERENCES transit_bounds", "NOT NULL", ("error", "table rollup_transit lacks the foreign key le to transit_bounds")),
    ("typeof(service) IN ('text', 'null')", "true", ("warning", "constraints or defaults of table shipments differ from schema.sql")),
])
def test_a_table_made_otherwise_is_one_finding(old, new, finding):
    assert SCHEMA.count(old) == 1
    assert findings(schema=SCHEMA.replace(old, new)) == [finding]


def test_statistics_of_analyze_are_no_difference():
    assert findings("INSERT INTO shipments (reference, status) VALUES ('a', 'pending'); ANALYZE") == []


def test_comments_case_and_quotes_are_no_difference():
    assert findings(schema=SCHEMA.replace("CREATE TABLE rollup_hour", "create /* so */ table \"rollup_hour\"")) == []


def test_a_semicolon_or_dashes_in_a_string_stay_part_of_it():
    assert schema_check.tokens("SELECT '--;''x', [A b] -- c\n, `D`") == ["select", "'--;''x'", ",", "a b", ",", "d"]
