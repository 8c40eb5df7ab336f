"""Importing CSV files: forms and quirks that real exports have, in files made up here."""

import hashlib
import pathlib
import sqlite3
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCMS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "SCMS_Delivery_History_Dataset.csv"
PLAIN = "SELECT id AS reference, state AS status FROM csv"
DATED = "SELECT id AS reference, 'delivered' AS status, parse_date(day, {}) AS delivered_at FROM csv"


def seed(*args, **options):
    return subprocess.run([sys.executable, str(ROOT / "seed.py")] + [str(arg) for arg in args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=60, **options)


def pending(columns):
    """A mapping of pending shipments with some more columns."""
    return "SELECT id AS reference, 'pending' AS status, %s FROM csv" % columns


class Importer:
    """One database and one file with its mapping, all in a folder."""

    def __init__(self, folder):
        self.folder, self.db = folder, folder / "shipments.db"

    def __call__(self, content, mapping, *options):
        (self.folder / "file.csv").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        (self.folder / "map.sql").write_text(mapping, encoding="utf-8")
        return seed(self.db, "--csv", self.folder / "file.csv", "--mapping", self.folder / "map.sql", *options)

    def stored(self, content, mapping, *options, columns="reference, status"):
        done = self(content, mapping, *options)
        assert (done.returncode, done.stderr) == (0, "")
        return self.rows(columns)

    def refused(self, content, mapping, *options):
        """The lines of stderr, without the folder's name, of an import that must fail and leave no database."""
        done = self(content, mapping, *options)
        assert done.returncode == 1 and not self.db.exists() and "Traceback" not in done.stderr
        assert [path.name for path in self.folder.iterdir() if path.name.startswith("shipments")] == []
        return done.stderr.replace(str(self.folder) + "/", "").splitlines()

    def rows(self, columns="reference, status"):
        db = sqlite3.connect(str(self.db))
        try:
            return db.execute("SELECT {} FROM shipments ORDER BY id".format(columns)).fetchall()
        finally:
            db.close()


@pytest.fixture
def load(tmp_path):
    return Importer(tmp_path)


def test_a_plain_file_is_stored_and_summed_up(load):
    done = load("id,state\nA,pending\nB,delivered\n", PLAIN)
    assert done.stdout.splitlines()[0] == "2 read, 2 stored, 0 updated, 0 unchanged"
    assert load.rows() == [("A", "pending"), ("B", "delivered")]
    assert seed(load.db, "--verify").stdout == "verified 2 shipments, 2 rollup rows\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_line_end_is_read_with_and_without_a_mark_and_a_last_line_end(load, mark, end):
    assert load.stored(mark + end.join(["id,state", "A,pending", "B,delivered"]), PLAIN) == [("A", "pending"), ("B", "delivered")]


def test_tabs_and_bare_carriage_returns_are_read_together(load):
    assert load.stored("id\tstate\rA\tpending\r", PLAIN, "--delimiter", "tab") == [("A", "pending")]


def test_a_named_encoding_is_read(load):
    content = "id,state,place\nA,pending,Côte d'Ivoire\n".encode("latin-1")
    mapping = "SELECT line, id AS reference, state AS status, place AS destination FROM csv"
    assert load.stored(content, mapping, "--encoding", "latin-1", columns="destination") == [("Côte d'Ivoire",)]


def test_a_byte_that_is_not_of_the_encoding_is_told_by_its_place(load):
    content = "id,state,place\nA,pending,Ghana\nB,pending,Côte\n".encode("latin-1")
    assert load.refused(content, PLAIN) == [
        "seed.py: file.csv line 3, byte 43 of the file: b'\\xf4' is not utf-8; name the file's own --encoding, such as latin-1"]


def test_a_byte_far_into_the_file_is_told_by_its_place(load):
    content = b"id,state\r\n" + b"".join(b"%06d,pending\r\n" % number for number in range(5000)) + b"\xff,pending\r\n"
    assert "line 5002, byte %d of the file" % (content.index(b"\xff") + 1) in load.refused(content, PLAIN)[0]


def test_a_nul_byte_is_refused_with_the_likely_cause(load):
    assert load.refused("id,state\nA\0,pending\n", PLAIN) == [
        "seed.py: file.csv line 2: a NUL byte; if the file is UTF-16, say --encoding utf-16"]


def test_a_utf_16_file_is_read_and_one_without_a_mark_refused(load):
    assert load.refused("id,state\nA,pending\n", PLAIN, "--encoding", "utf-16")[0].startswith("seed.py: file.csv")
    assert load.stored("id,state\nA,pending\n".encode("utf-16"), PLAIN, "--encoding", "utf-16") == [("A", "pending")]


@pytest.mark.parametrize("name", ["klingon", "hex"])
def test_what_is_no_encoding_of_text_is_wrong_usage(load, name):
    assert load("id,state\n", PLAIN, "--encoding", name).returncode == 2


def test_header_names_match_without_case_and_padding(load):
    mapping = 'SELECT line, "iD" AS reference, "state" AS status FROM csv'
    assert load.stored(" Id , STATE\nA, pending \n", mapping) == [("A", "pending")]


def test_a_repeated_header_name_is_refused_with_its_places(load):
    assert load.refused("Type,id,type\n", PLAIN) == [
        "seed.py: file.csv: the header has 'type' in columns 1, 3; rename all but one"]


def test_an_empty_header_name_is_refused_with_its_places(load):
    assert load.refused("id,,state,\n", PLAIN) == ["seed.py: file.csv: the header has no name in column 2, 4; name every column"]


def test_an_empty_file_is_refused_and_a_bare_header_is_not(load):
    assert load.refused("", PLAIN) == ["seed.py: file.csv is empty: it has no header"]
    assert load.stored("id,state\n", PLAIN) == []


def test_wholly_empty_records_are_counted_and_are_no_fault(load):
    done = load("id,state\n,\n\nA,pending\n , \n", PLAIN)
    assert (done.returncode, load.rows()) == (0, [("A", "pending")])
    assert done.stdout.splitlines()[:2] == ["4 read, 1 stored, 0 updated, 0 unchanged", "skipped: 3 wholly empty"]


def test_records_of_the_wrong_width_are_told(load):
    assert load.refused("id,state\nA\nB,pending,x\n", PLAIN) == [
        "file.csv line 2: record: 1 fields, where the header has 2",
        "file.csv line 3: record: 3 fields, where the header has 2",
        "seed.py: nothing was imported; rejected rows: 2 (2 record has too few or too many fields); "
        "mend the file or the mapping, or pass --skip-bad"]


def test_an_unfinished_quote_is_told_at_the_line_where_it_opens(load):
    assert load.refused('id,state\nA,pending\n"B,pending\nC,pending\n', PLAIN)[0] == (
        "file.csv line 3: record: unexpected end of data")


def test_a_quoted_line_break_keeps_the_line_numbers_right(load):
    assert load.refused('id,state\n"A\n1",pending\nB,gone\n', PLAIN)[0] == (
        "file.csv line 4: status: 'gone' is not allowed by schema.sql")


@pytest.mark.parametrize("mapping, line", [
    ("-- ours\n/* both */ select id AS reference, state AS status FROM csv", "3"),
    ("SELECT id AS reference, csv.state AS status FROM csv JOIN csv AS other USING (id)", "3"),
    ("SELECT id AS reference, state AS status FROM csv AS c", "?"),
    ("SELECT c.rowid AS line, id AS reference, state AS status FROM csv AS c", "3"),
    ("SELECT DISTINCT id AS reference, state AS status FROM csv", "?"),
    ("WITH w AS (SELECT * FROM csv) SELECT id AS reference, state AS status FROM w", "?"),
    ("WITH w AS (SELECT rowid AS line, * FROM csv) SELECT line, id AS reference, state AS status FROM w", "3"),
    ("SELECT id AS reference, state AS status FROM csv UNION SELECT 'C', 'pending'", "?"),
])
def test_the_line_of_a_row_is_known_by_itself_in_a_plain_select(load, mapping, line):
    assert load.refused("id,state\nA,pending\nB,lost\n", mapping)[0].startswith("file.csv line %s: status: 'lost'" % line)


def test_a_column_of_the_file_named_line_leaves_the_rowid(load):
    mapping = "SELECT rowid AS line, id || '-' || line AS reference, 'pending' AS status FROM csv"
    assert load.stored("id,Line\nA,7\n", mapping) == [("A-7", "pending")]


def test_a_second_file_can_be_joined(load):
    (load.folder / "places.csv").write_text("key,place\nA,Lyon\n")
    mapping = "SELECT line, id AS reference, 'pending' AS status, place AS origin FROM csv LEFT JOIN places ON key = id"
    rows = load.stored("id\nA\nB\n", mapping, "--table", "places=%s" % (load.folder / "places.csv"), columns="reference, origin")
    assert rows == [("A", "Lyon"), ("B", None)]


def test_a_date_can_be_put_together_from_columns_and_moved(load):
    mapping = pending("""parse_date(y || '-' || m || '-' || d, '%Y-%m-%d') AS created_at,
                         date(parse_date(y || '-' || m || '-' || d, '%Y-%m-%d'), '+' || days || ' days') AS promised_at""")
    rows = load.stored("id, y ,m,d,days\nA,2017,2,27,4\n", mapping, columns="created_at, promised_at")
    assert rows == [("2017-02-27", "2017-03-03")]


def test_a_bad_date_inside_a_computation_is_told_and_not_stored_as_null(load):
    mapping = pending("date(parse_date(day, '%Y-%m-%d'), '+1 day') AS promised_at")
    assert load.refused("id,day\nA,2017-01-01\nB,soon\nC,2017-01-02\n", mapping)[0] == (
        "file.csv line 3: an expression: 'soon' is not a date in the form '%Y-%m-%d'")


@pytest.mark.parametrize("form, text, moment", [
    ("%d-%b-%y", "2-Jun-06", "2006-06-02"),
    ("%d-%b-%y", "02-JUN-69", "1969-06-02"),
    ("%d-%b-%y", "02-jun-68", "2068-06-02"),
    ("%m/%d/%y", "12/1/06", "2006-12-01"),
    ("%d %B %Y", "3 september 2006", "2006-09-03"),
    ("%Y-%m-%d %H:%M:%S", "2017-10-02 10:56:33", "2017-10-02T10:56:33Z"),
    ("%m/%d/%Y %H:%M", "1/31/2018 22:56", "2018-01-31T22:56:00Z"),
    ("%m/%d/%Y %I:%M %p", "1/31/2018 12:05 am", "2018-01-31T00:05:00Z"),
    ("%a, %d %b %Y %H:%M:%S %z", "Mon, 02 Jan 2017 00:30:00 +0530", "2017-01-01T19:00:00Z"),
    ("%Y-%m-%dT%H:%M:%S.%f%z", "2017-01-02T00:30:00.250-02:00", "2017-01-02T02:30:00Z"),
    ("%Y-%m-%dT%H:%M:%S%z", "2017-01-02T00:30:00Z", "2017-01-02T00:30:00Z"),
])
def test_a_date_is_read_in_the_form_that_the_mapping_gives(load, form, text, moment):
    assert load.stored('id,day\nA,"%s"\n' % text, DATED.format("'%s'" % form), columns="delivered_at") == [(moment,)]


@pytest.mark.parametrize("text", ["2006-01-12", "31-Feb-06", "2-Juin-06", "x2-Jun-06", "2-Jun-06 10:00"])
def test_a_date_in_another_form_is_told_with_line_column_and_value(load, text):
    assert load.refused("id,day\nA,1-Jun-06\nB,%s\n" % text, DATED.format("'%d-%b-%y'"))[0] == (
        "file.csv line 3: delivered_at: '%s' is not a date in the form '%%d-%%b-%%y'" % text)


def test_two_forms_in_one_column_are_tried_in_order(load):
    rows = load.stored("id,day\nA,2-Jun-06\nB,6/3/06\n", DATED.format("'%d-%b-%y', '%m/%d/%y'"), columns="delivered_at")
    assert rows == [("2006-06-02",), ("2006-06-03",)]


def test_month_names_do_not_depend_on_the_locale(load, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert load.stored("id,day\nA,2-Dec-06\n", DATED.format("'%d-%b-%y'"), columns="delivered_at") == [("2006-12-02",)]


@pytest.mark.parametrize("form, words", [
    ("%Q", "whose parts may be"), ("%d-%m", "lacks a day, a month or a year"), ("%d%d", "each once")])
def test_a_form_that_cannot_work_is_told_with_what_can(load, form, words):
    assert words in load.refused("id,day\nA,2-Jun-06\n", DATED.format("'%s'" % form))[0]


def test_texts_that_mean_not_recorded_become_null_and_are_counted(load):
    mapping = pending("number(null_if(kg, 'later', 'See *')) AS weight_kg")
    done = load("id,kg\nA,See ASN-1\nB,later\nC,\nD,1.5\nE,See B\n", mapping)
    assert load.rows("weight_kg") == [(None,), (None,), (None,), (1.5,), (None,)]
    assert "made NULL: 2 See *; 1 later\n" in done.stdout


@pytest.mark.parametrize("text", ["See ASN-1", "1,5", "nan", "0x10", "1_000", "-"])
def test_a_text_that_is_no_number_is_told(load, text):
    mapping = pending("number(kg) AS weight_kg")
    assert load.refused('id,kg\nA,"%s"\n' % text, mapping)[0] == "file.csv line 2: weight_kg: '%s' is not a number" % text


def test_a_decimal_comma_is_read_where_it_is_named_and_grouping_is_not_guessed(load):
    mapping = pending("number(kg, ',') AS weight_kg")
    assert load.refused('id,kg\nA,"1.234,5"\n', mapping)[0].endswith("'1.234,5' is not a number")
    assert load.stored('id,kg\nA,"1234,5"\n', mapping, columns="weight_kg") == [(1234.5,)]


def test_an_infinite_number_is_refused_by_its_column(load):
    mapping = pending("number(kg) AS weight_kg")
    assert load.refused("id,kg\nA,9e999\n", mapping)[0] == "file.csv line 2: weight_kg: inf is not allowed by schema.sql"


def test_values_are_mapped_and_an_unmapped_one_is_told(load):
    mapping = """SELECT line, id AS reference, map_value(state, 'canceled', 'cancelled', 'shipped', 'in_transit') AS status
                 FROM csv"""
    assert load.refused("id,state\nA,shipped\nB,lost\n", mapping)[0] == (
        "file.csv line 3: status: 'lost' is not among the values of map_value")
    assert load.stored("id,state\nA,shipped\nB,canceled\n", mapping) == [("A", "in_transit"), ("B", "cancelled")]


@pytest.mark.parametrize("call", ["number()", "number(id, ',', ' ')", "parse_date(id, NULL)", "null_if(id, NULL)"])
def test_a_function_called_wrongly_is_told_as_a_fault_of_the_mapping(load, call):
    assert load.refused("id\nA\n", pending(call + " AS origin")) == [
        "seed.py: map.sql: a function is given too few or too many values, or NULL for a form or pattern"]


def test_a_cell_with_a_replacement_character_is_text_like_any_other(load):
    mapping = pending("place AS origin")
    assert load.stored("id,place\nA,Bogot\ufffd\nB,CÃ´te\n", mapping, columns="origin") == [("Bogot\ufffd",), ("CÃ´te",)]


def test_an_unknown_status_and_a_missing_reference_are_told_each_once(load):
    assert load.refused("id,state\n,pending\nB,shipped\n", PLAIN) == [
        "file.csv line 2: reference: is missing",
        "file.csv line 3: status: 'shipped' is not allowed by schema.sql",
        "seed.py: nothing was imported; rejected rows: 2 (1 reference is missing; 1 status is not allowed by schema.sql); "
        "mend the file or the mapping, or pass --skip-bad"]


def test_skip_bad_takes_the_other_rows_and_still_fails(load):
    done = load("id,state\nA,pending\nB,shipped\n", PLAIN, "--skip-bad")
    assert (done.returncode, load.rows()) == (1, [("A", "pending")])
    assert "rejected rows: 1 (1 status is not allowed by schema.sql)\n" in done.stdout


def test_reports_stop_at_their_limit_and_go_on_being_counted(load):
    lines = load.refused("id,state\n" + "".join("%d,x\n" % number for number in range(9)), PLAIN, "--limit-reports", 2)
    assert len(lines) == 4 and lines[2] == "further rejected rows are only counted; --limit-reports tells more of them"
    assert "rejected rows: 9 (9 status" in lines[3]


def test_a_repeated_reference_is_refused_with_both_lines(load):
    assert load.refused("id,state\nA,pending\nA,delivered\n", PLAIN)[0] == (
        "file.csv line 3: reference: 'A' stands already on line 2; --duplicates first or last keeps one")


@pytest.mark.parametrize("rule, kept", [("first", "pending"), ("last", "delivered")])
def test_a_repeated_reference_follows_the_rule_and_is_counted(load, rule, kept):
    done = load("id,state\nA,pending\nA,exception\nA,delivered\n", PLAIN, "--duplicates", rule)
    assert (done.returncode, load.rows()) == (0, [("A", kept)])
    assert "skipped: 2 repeated, the %s kept\n" % rule in done.stdout


def test_importing_the_same_file_twice_changes_not_one_byte(load):
    load("id,state\nA,pending\nB,delivered\n", PLAIN)
    before = hashlib.sha256(load.db.read_bytes()).digest()
    assert load("id,state\nA,pending\nB,delivered\n", PLAIN).stdout.startswith("2 read, 0 stored, 0 updated, 2 unchanged\n")
    assert hashlib.sha256(load.db.read_bytes()).digest() == before


def test_a_later_file_overwrites_what_it_names_and_leaves_the_rest(load):
    load("id,place,kg\nA,Lyon,5\nB,Rome,6\n", pending("place AS origin, number(kg) AS weight_kg"))
    db = sqlite3.connect(str(load.db))
    db.execute("UPDATE shipments SET updated_at = '2020-01-01T00:00:00Z'")
    db.commit()
    done = load("id,place\nA,\nB,Rome\nC,\n", pending("place AS origin"))
    assert done.stdout.startswith("3 read, 1 stored, 1 updated, 1 unchanged\n")
    assert load.rows("reference, origin, weight_kg") == [("A", None, 5.0), ("B", "Rome", 6.0), ("C", None, None)]
    assert [stamp == "2020-01-01T00:00:00Z" for stamp, in load.rows("updated_at")] == [False, True, False]
    assert seed(load.db, "--verify").returncode == 0


@pytest.mark.parametrize("rows", [3, 400])
def test_a_small_and_a_large_import_leave_the_schema_as_it_was_and_the_rollups_exact(load, rows):
    seed(load.db, "--rows", 500)
    before = sorted(sqlite3.connect(str(load.db)).execute("SELECT name, sql FROM sqlite_master").fetchall(), key=str)
    load("id\n" + "".join("N%d\n" % number for number in range(rows)), pending("'storm' AS exception_reason"))
    assert sorted(sqlite3.connect(str(load.db)).execute("SELECT name, sql FROM sqlite_master").fetchall(), key=str) == before
    assert seed(load.db, "--verify").stdout.startswith("verified %d shipments" % (500 + rows))


@pytest.mark.parametrize("mapping, words", [
    ('SELECT line, "idd" AS reference, \'pending\' AS status FROM csv', "no such column: idd"),
    ("SELECT line, id AS reference, \"pending\" AS status FROM csv", "no such column: pending"),
    ("SELECT line, [idd] AS reference, 'pending' AS status FROM csv", "no such column: idd"),
    ("SELECT line, id AS reference, state AS status, 1 AS colour FROM csv", "colour cannot be imported"),
    (pending("'2020-01-01T00:00:00Z' AS updated_at"), "updated_at cannot be imported"),
    ("SELECT line, id AS reference, state AS status, state AS status FROM csv", "cannot be imported"),
    ("SELECT line, state AS status FROM csv", "names no reference, which every mapping must"),
    ("SELECT id AS reference FROM csv", "names no status, which every mapping must"),
    ("DELETE FROM shipments", 'near "DELETE": syntax error'),
    ("SELECT line, id AS reference, state AS status FROM csv; DELETE FROM shipments", "one statement at a time"),
    ("WITH gone AS (SELECT 1) DELETE FROM shipments", 'near "DELETE": syntax error'),
    ("", "a mapping is one SELECT"),
])
def test_a_mapping_that_is_not_one_fitting_select_is_refused(load, mapping, words):
    assert words in load.refused("id,state\nA,pending\n", mapping)[-1]


def test_quotes_in_texts_comments_and_names_are_left_in_peace(load):
    mapping = '''-- it's a "comment"
        WITH "w""x" AS (SELECT line, "a ""b""" AS "reference" FROM csv) /* "y" */
        SELECT line, "reference", 'pending' AS status, 'say "hi"' AS origin FROM "w""x"; -- done'''
    assert load.stored('"a ""b"""\nA\n', mapping, columns="reference, origin") == [("A", 'say "hi"')]


def test_a_missing_file_is_told_by_name(load):
    done = seed(load.db, "--csv", load.folder / "none.csv", "--mapping", load.folder / "none.sql")
    assert (done.returncode, done.stderr) == (1, "seed.py: %s: No such file or directory\n" % (load.folder / "none.csv"))


def test_a_joined_table_cannot_take_a_name_of_ours(load):
    assert load("id,state\n", PLAIN, "--table", "shipments=x.csv").returncode == 2


@pytest.fixture(scope="module")
def scms(tmp_path_factory):
    if not SCMS.exists():
        pytest.skip("the SCMS delivery history is not at %s" % SCMS)
    load = Importer(tmp_path_factory.mktemp("scms"))
    load.done = seed(load.db, "--csv", SCMS, "--mapping", ROOT / "docs" / "examples" / "scms.sql")
    assert load.done.returncode == 0, load.done.stderr
    return load


def scms_one(scms, sql):
    return sqlite3.connect(str(scms.db)).execute(sql).fetchone()


def test_the_scms_file_gives_its_known_figures(scms):
    assert scms.done.stdout.startswith("10,324 read, 10,324 stored, 0 updated, 0 unchanged\n")
    assert scms_one(scms, "SELECT sum(shipments), sum(on_time), sum(late), sum(transits), sum(negative) FROM rollup_lane") == (
        10324, 9138, 1186, 4587, 5)
    assert scms_one(scms, "SELECT count(*) FROM shipments WHERE created_at IS NULL") == (5732,)


def test_the_scms_modes_and_amounts_are_those_of_the_file(scms):
    db = sqlite3.connect(str(scms.db))
    modes = dict(db.execute("SELECT mode, sum(shipments) FROM rollup_lane GROUP BY mode"))
    assert modes == {"air": 6763, "road": 2830, "ocean": 371, "": 360}
    assert scms_one(scms, "SELECT count(weight_kg), count(cost) FROM shipments") == (6372, 6198)


def test_the_scms_file_with_carriage_returns_and_tabs_gives_the_same_rows(scms, load):
    import csv
    with open(str(SCMS), newline="", encoding="utf-8-sig") as file:
        lines = "\r".join("\t".join(record) for record in csv.reader(file))
    mapping = (ROOT / "docs" / "examples" / "scms.sql").read_text(encoding="utf-8")
    columns = "reference, mode, created_at, promised_at, delivered_at, weight_kg, cost"
    assert load.stored(lines.encode("latin-1", "replace"), mapping, "--delimiter", "tab", "--encoding", "latin-1",
                       columns=columns) == scms.rows(columns)


def test_the_page_on_importing_says_what_is(scms, load):
    page = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    assert "\n".join(scms.done.stdout.splitlines()[:2]) in page
    assert load.refused("id,state\nA,pending\nB,shipped\n", PLAIN)[0].replace("file.csv", "FILE.csv") in page


@pytest.mark.parametrize("expression, value", [
    ("parse_date('2017-10-02 10:56:33' || ' -0300', '%Y-%m-%d %H:%M:%S %z')", "2017-10-02T13:56:33Z"),
    ("date(parse_date('2017-02-27', '%Y-%m-%d'), '+' || '4' || ' days')", "2017-03-03"),
    ("'' || number(replace('1,234.5', ',', ''))", "1234.5"),
    ("map_value('N/A', 'N/A', NULL)", None),
])
def test_what_the_page_recommends_works(load, expression, value):
    mapping = pending("%s AS origin" % expression)
    assert load.stored("id\nA\n", mapping, columns="origin") == [(value,)]


def test_every_form_part_and_importable_column_stands_on_the_page():
    page = (ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    sys.path.insert(0, str(ROOT))
    try:
        import csv_mapping
        import seed
    finally:
        sys.path.remove(str(ROOT))
    assert "`%s`" % " ".join("%" + part for part in csv_mapping.FORM_PARTS if part != "%") in page
    assert [column for column in seed.Shipment._fields if "`%s`" % column not in page] == []


def test_a_change_dated_in_the_future_is_dated_anew_by_the_same_file(load):
    load("id,state\nA,pending\nB,pending\n", PLAIN)
    db = sqlite3.connect(str(load.db))
    db.execute("UPDATE shipments SET updated_at = '2099-01-01T00:00:00Z' WHERE reference = 'A'")
    db.commit()
    assert "2 read, 0 stored, 1 updated, 1 unchanged" in load("id,state\nA,pending\nB,pending\n", PLAIN).stdout
    assert all(at < ("2099",) for at in load.rows("updated_at"))
    assert "0 updated, 2 unchanged" in load("id,state\nA,pending\nB,pending\n", PLAIN).stdout


def test_a_file_whose_references_are_stored_ones_in_another_spelling_is_refused(load):
    load("id,state\nA-1,pending\nA-2,pending\nB-1,pending\n", PLAIN)
    again = "id,state\na1,pending\nA_2,pending\nC-1,pending\n"
    done = load(again, PLAIN)
    assert done.returncode == 1 and "2 of 3 new references differ from stored ones in case, blanks or punctuation alone, such as " \
        "'A_2': the same shipments under another spelling?" in done.stderr
    assert load.rows() == [("A-1", "pending"), ("A-2", "pending"), ("B-1", "pending")]
    assert load(again, PLAIN, "--accept-similar").returncode == 0 and len(load.rows()) == 6


def test_a_few_references_in_another_spelling_are_told_and_imported(load):
    load("id,state\nA-1,pending\n", PLAIN)
    done = load("id,state\na1,pending\nB-1,pending\nB-2,pending\n", PLAIN)
    assert done.returncode == 0 and "1 of 3 new references differ from stored ones" in done.stderr and len(load.rows()) == 4
