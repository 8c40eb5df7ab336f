"""The files of the steps: how they are read, and what in one is refused before any database is touched."""

import pytest

import steps
from versions import LAST, NAME, STEPS, ask, make, migrate, names, version, with_step


def read(tmp_path, sql):
    """The last Step of a folder to which this one was added."""
    return steps.read_steps(str(with_step(tmp_path, sql)))[-1]


# Split

@pytest.mark.parametrize("text, statements", [
    ("SELECT 1; SELECT 2;", ["SELECT 1;", "SELECT 2;"]),
    ("SELECT 1;\n\n", ["SELECT 1;"]),
    ("SELECT 1;;\n ; SELECT 2;", ["SELECT 1;", "SELECT 2;"]),
    ("SELECT 'a;b'; SELECT 2;", ["SELECT 'a;b';", "SELECT 2;"]),
    ("SELECT 'it''s;'; SELECT 2;", ["SELECT 'it''s;';", "SELECT 2;"]),
    ('SELECT "a;b", [c;d], `e;f`; SELECT 2;', ['SELECT "a;b", [c;d], `e;f`;', "SELECT 2;"]),
    ("SELECT 1 -- one; 'two\n; SELECT 2;", ["SELECT 1 -- one; 'two\n;", "SELECT 2;"]),
    ("SELECT 1 /* one; 'two */; SELECT 2;", ["SELECT 1 /* one; 'two */;", "SELECT 2;"]),
    ("-- first;\nSELECT 1;\n-- last; \n/* really; */", ["-- first;\nSELECT 1;"]),
    ("SELECT '--'; SELECT '/*'; SELECT '*/';", ["SELECT '--';", "SELECT '/*';", "SELECT '*/';"]),
    ("CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END; SELECT 3;",
     ["CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;", "SELECT 3;"]),
    ("CREATE TEMP TRIGGER a AFTER INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 2; END; SELECT 3;",
     ["CREATE TEMP TRIGGER a AFTER INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 2; END;", "SELECT 3;"]),
    ("SELECT 1;\r\nSELECT 2;\r\n", ["SELECT 1;", "SELECT 2;"]),
    ("", []),
    ("-- nothing;", []),
])
def test_a_semicolon_ends_a_statement_only_where_it_means_to(text, statements):
    assert steps.split(text) == statements


@pytest.mark.parametrize("text", ["SELECT 1", "SELECT 1; SELECT 2", "SELECT 'one;", "SELECT 1 /* one;", 'SELECT "one;',
                                  "CREATE TRIGGER a AFTER INSERT ON t BEGIN SELECT 1;"])
def test_a_statement_without_an_end_is_refused(text):
    with pytest.raises(ValueError, match="no semicolon at the end, or a string or comment in it is not closed"):
        steps.split(text)


# The header

def test_the_prose_of_the_header_is_the_purpose(tmp_path):
    step = read(tmp_path, "-- Adds notes,\n-- and says why.\n-- rows: shipments -1\n-- refuse: SELECT 1;\n\n-- Not this.\nSELECT 1;")
    assert (step.number, step.name, step.purpose) == (LAST + 1, "try_something", "Adds notes, and says why.")
    assert (step.rows, step.refusals) == ({"shipments": -1}, ["SELECT 1;"])


def test_the_header_is_no_part_of_the_first_statement(tmp_path):
    step = read(tmp_path, "-- Why;\r\n-- rows: notes -1\n-- refuse: SELECT 1;\n\n-- Kept.\nSELECT 1;")
    assert step.statements == ["-- Kept.\nSELECT 1;"]


@pytest.mark.parametrize("line, rows", [
    ("rows: shipments -2", {"shipments": -2}), ("rows: shipments +2", {"shipments": 2}), ("rows: shipments any", {"shipments": None}),
    ("rows: Shipments   any", {"shipments": None}), ("rows: a +1\n-- rows: b -1", {"a": 1, "b": -1})])
def test_the_header_declares_the_rows_of_tables(tmp_path, line, rows):
    assert read(tmp_path, "-- " + line + "\nSELECT 1;").rows == rows


@pytest.mark.parametrize("line", [
    "rows: shipments", "rows: shipments 2", "rows: shipments -two", "rows: -2", "rows: shipments ANY", "rows:"])
def test_a_declaration_that_cannot_be_read_is_refused(tmp_path, line):
    with pytest.raises(steps.StepError, match="'%s' is not 'rows: TABLE [+]N', .*; mend the file" % line):
        read(tmp_path, "-- " + line + "\nSELECT 1;")


def test_a_refusal_may_go_on_over_lines_and_have_semicolons_in_strings(tmp_path):
    step = read(tmp_path, "-- refuse: SELECT 'a;b'\n--   FROM shipments;\n-- refuse: SELECT 2;\nSELECT 1;")
    assert [" ".join(query.split()) for query in step.refusals] == ["SELECT 'a;b' FROM shipments;", "SELECT 2;"]


def test_a_refusal_without_an_end_is_refused(tmp_path):
    with pytest.raises(steps.StepError, match="its refuse: query has no semicolon at the end"):
        read(tmp_path, "-- refuse: SELECT 1\n\nSELECT 1;")


def test_a_refusal_without_an_end_is_not_swallowed_by_the_next(tmp_path):
    with pytest.raises(steps.StepError, match="its refuse: query has no semicolon at the end"):
        read(tmp_path, "-- refuse: SELECT 1\n-- refuse: SELECT 2;\nSELECT 1;")


@pytest.mark.parametrize("sql", ["-- Why.\n\n-- refuse: SELECT 1;\nSELECT 1;", "\n-- rows: shipments -1\nSELECT 1;",
                                 "  -- rows: shipments -1\nSELECT 1;", "SELECT 1;\n-- refuse: SELECT 1;"])
def test_a_declaration_that_stands_outside_of_the_header_is_refused(tmp_path, sql):
    with pytest.raises(steps.StepError, match="rows: or refuse: stands below the header, .*; mend the file"):
        read(tmp_path, sql)


def test_a_byte_order_mark_hides_no_header(tmp_path):
    step = read(tmp_path, "\ufeff-- rows: shipments -1\nSELECT 1;")
    assert step.rows == {"shipments": -1} and step.statements == ["SELECT 1;"]


@pytest.mark.parametrize("query, words", [
    ("SELECT reference FROM shipmets;", "fails even in an empty database: no such table: shipmets"),
    ("SELECT 1; SELECT 2;", "fails even in an empty database: You can only execute one statement at a time"),
    ("SELECT id, reference FROM shipments;", "its refuse: query does not give one column"),
    ("DELETE FROM shipments;", "its refuse: query does not give one column")])
def test_a_refusal_that_cannot_be_asked_stops_the_step_instead_of_letting_all_rows_pass(tmp_path, query, words):
    done = migrate(make(tmp_path / NAME), "apply", folder=with_step(tmp_path, "-- refuse: %s\nSELECT 1;" % query))
    assert done.code == 1 and words in done.err
    assert version(tmp_path / NAME) == LAST


@pytest.mark.parametrize("column, words", [("id", "cannot take 1 rows: 1;"), ("NULL", "cannot take 1 rows: a row without words;")])
def test_a_refusal_needs_no_words_to_refuse(tmp_path, column, words):
    folder = with_step(tmp_path, "-- refuse: SELECT %s FROM shipments WHERE id = 1;\nSELECT 1;" % column)
    done = migrate(make(tmp_path / NAME), "apply", folder=folder)
    assert done.code == 1 and words in done.err


def test_a_step_keeps_the_hash_of_its_bytes(tmp_path):
    first = read(tmp_path, "SELECT 1;")
    assert read(tmp_path, "SELECT 1;").hash == first.hash != read(tmp_path, "SELECT  1;").hash


# What has no place in a step

@pytest.mark.parametrize("sql, words", [
    ("BEGIN; SELECT 1; COMMIT;", "BEGIN has no place in a step, which is one transaction as a whole"),
    ("SELECT 1; COMMIT;", "COMMIT has no place"),
    ("SELECT 1; END;", "END has no place"),
    ("SELECT 1; rollback;", "ROLLBACK has no place"),
    ("SAVEPOINT a; SELECT 1;", "SAVEPOINT has no place"),
    ("SELECT 1; RELEASE a;", "RELEASE has no place"),
    ("/* why */ VACUUM;", "VACUUM has no place"),
    ("SELECT 1; -- more\nATTACH 'other.db' AS other;", "ATTACH has no place"),
    ("SELECT 1; DETACH other;", "DETACH has no place"),
    ("SELECT 1; PRAGMA foreign_keys = OFF; SELECT 2;", "PRAGMA foreign_keys = OFF; must stand before all other statements"),
    ("SELECT 1; PRAGMA journal_mode = WAL;", "PRAGMA journal_mode = WAL; must stand before all other statements"),
    ("PRAGMA journal_mode = OFF; SELECT 1;", "PRAGMA journal_mode off has no place in a step"),
    ("PRAGMA journal_mode = MEMORY; SELECT 1;", "PRAGMA journal_mode memory has no place in a step"),
    ("PRAGMA main.journal_mode('Off'); SELECT 1;", "has no place in a step"),
    ("PRAGMA synchronous = OFF; SELECT 1;", "PRAGMA synchronous off has no place in a step"),
    ("PRAGMA writable_schema = ON; SELECT 1;", "PRAGMA writable_schema on has no place in a step"),
    ("PRAGMA ignore_check_constraints = ON; SELECT 1;", "PRAGMA ignore_check_constraints on has no place in a step"),
    ("SELECT 1; PRAGMA user_version = 7;", "PRAGMA user_version 7 has no place in a step"),
    ("PRAGMA foreign_keys = OFF;", "it has no statement"),
    ("-- Only words.", "it has no statement"),
    ("SELECT 1", "its last statement has no semicolon at the end"),
    ("SELECT 'one;", "a string or comment in it is not closed"),
    (b"SELECT '\xff';", "codec can't decode byte 0xff"),
    ("-- rows: shipments 2\nSELECT 1;", "'rows: shipments 2' is not 'rows: TABLE +N'"),
    ("-- refuse: SELECT 1\n\nSELECT 1;", "its refuse: query has no semicolon at the end"),
])
def test_what_has_no_place_in_a_step_is_refused_before_the_database_is_touched(tmp_path, sql, words):
    path, folder = make(tmp_path / NAME, 2), with_step(tmp_path, sql)
    before = path.read_bytes()
    for command, code in (("status", 3), ("plan", 3), ("apply", 1)):
        done = migrate(path, command, folder=folder)
        assert done.code == code and done.out == "" and done.err.count("\n") == 1, done
        assert done.err.startswith("migrate.py: %s/0006_try_something.sql: " % folder) and done.err.endswith("; mend the file\n")
        assert words in done.err
    assert path.read_bytes() == before and names(tmp_path) == ["migrations", NAME]


@pytest.mark.parametrize("sql", [
    "PRAGMA user_version = 6;\nSELECT 1;", "SELECT 1;\nPRAGMA user_version = 6;", "SELECT 1;\nPRAGMA user_version(6);",
    "SELECT 1;\nPRAGMA foreign_key_check;\nSELECT 2;", "PRAGMA defer_foreign_keys = ON;\nSELECT 1;",
    "SELECT 1;\nPRAGMA application_id = 7;",
    "PRAGMA foreign_keys = OFF;\nPRAGMA legacy_alter_table = ON;\nSELECT 1;\nPRAGMA legacy_alter_table = OFF;\nPRAGMA foreign_keys = ON;",
    "pragma Foreign_Keys(off);\nSELECT 1;", "\ufeff-- Begins with a mark of its encoding.\nSELECT 1;",
    "-- Ünïcödé; ✓\r\nSELECT 'ü;✓';\r\n",
])
def test_what_does_no_harm_is_taken(tmp_path, sql):
    path, folder = make(tmp_path / NAME), with_step(tmp_path, sql)
    assert migrate(path, "apply", folder=folder).code == 0 and version(path) == LAST + 1
    assert migrate(path, "status", folder=folder).code == 0


@pytest.mark.parametrize("number", [0, LAST])
def test_a_setting_of_one_step_ends_with_it(tmp_path, number):
    with_step(tmp_path, "PRAGMA foreign_keys = ON;\nCREATE TABLE owners (id INTEGER PRIMARY KEY);\n"
                        "CREATE TABLE pets (owner REFERENCES owners ON DELETE CASCADE);\n"
                        "INSERT INTO owners VALUES (1); INSERT INTO pets VALUES (1);", name="add_pets")
    folder = with_step(tmp_path, "-- rows: owners -1\nDELETE FROM owners;\nUPDATE pets SET owner = NULL;", name="drop_owners", number=LAST + 2)
    path = make(tmp_path / NAME, number) if number else tmp_path / NAME     # in a new one all steps share a connection
    assert migrate(path, "apply", folder=folder).code == 0
    assert ask(path, "SELECT * FROM pets") == [(None,)]


def test_no_table_is_dropped_where_that_would_reach_into_others(tmp_path):
    folder = with_step(tmp_path, "PRAGMA foreign_keys = ON;\nCREATE TABLE owners (id INTEGER PRIMARY KEY);\nDROP TABLE owners;",
                       name="drop_owners")
    done = migrate(make(tmp_path / NAME), "apply", folder=folder)
    assert done.code == 1 and "DROP TABLE under PRAGMA foreign_keys = ON would reach into" in done.err


def test_a_step_cannot_change_what_was_recorded(tmp_path):
    folder = with_step(tmp_path, "-- rows: migrations any\nUPDATE migrations SET hash = '' WHERE number = 2;", name="edit_record")
    path = make(tmp_path / NAME)
    done = migrate(path, "apply", folder=folder)
    assert done.code == 1 and "it would change what the table migrations records" in done.err and version(path) == LAST


def test_foreign_keys_act_where_a_step_switches_them_on(tmp_path):
    with_step(tmp_path, "CREATE TABLE owners (id INTEGER PRIMARY KEY);\nCREATE TABLE pets (owner REFERENCES owners ON DELETE CASCADE);\n"
                        "INSERT INTO owners VALUES (1); INSERT INTO pets VALUES (1);", name="add_pets")
    folder = with_step(tmp_path, "-- rows: owners -1\nPRAGMA foreign_keys = ON;\nDELETE FROM owners;", name="drop_owners", number=LAST + 2)
    path = make(tmp_path / NAME)
    done = migrate(path, "apply", folder=folder)
    assert done.code == 1 and "table pets had 1 rows and has 0: -1, declared +0" in done.err and version(path) == LAST + 1


def test_each_step_of_the_product_is_read_as_it_stands():
    for step in STEPS:
        text = open(step.path, encoding="utf-8").read()
        assert all(statement in text for statement in step.settings + step.statements)
        assert text.rstrip().endswith(step.statements[-1])
