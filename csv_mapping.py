"""Reads a CSV file through a mapping, one SELECT over the file's own columns, into a table with the constraints of shipments.

A record is text until the mapping says otherwise: dates have the form that it gives, "not recorded" is what it lists, nothing is
guessed. A row that cannot be taken is told with its line, column and value, and counted.
docs/importing.md shows how to write a mapping. seed.py takes the rows from here into shipments.
"""

import collections
import contextlib
import csv
import datetime
import functools
import json
import pathlib
import re
import sqlite3
import sys

REMEMBERED = 1 << 16                    # distinct cells whose parsed value is kept

# The parts of a date form, spelled as in strptime. Names of months and days are English whatever the locale.
MONTHS = "january february march april may june july august september october november december".split()
FORM_PARTS = {
    "d": r"(?P<day>\d\d?)", "m": r"(?P<month>\d\d?)", "Y": r"(?P<year>\d{4})", "y": r"(?P<short_year>\d\d)",
    "b": "(?P<month_name>%s)" % "|".join(name[:3] for name in MONTHS), "B": "(?P<month_name>%s)" % "|".join(MONTHS),
    "a": "(?:mon|tue|wed|thu|fri|sat|sun)", "A": "(?:mon|tues|wednes|thurs|fri|satur|sun)day",
    "H": r"(?P<hour>\d\d?)", "I": r"(?P<hour>\d\d?)", "p": "(?P<half>am|pm)",
    "M": r"(?P<minute>\d\d?)", "S": r"(?P<second>\d\d?)", "f": r"\d{1,9}",
    "z": r"(?P<zone>z|[+-]\d\d:?\d\d)", "%": "%",
}
NEEDED_PARTS = (("day",), ("month", "month_name"), ("year", "short_year"))
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
PLAIN_SELECT = re.compile(r"\A((?:\s|--[^\n]*\n|/\*.*?\*/)*SELECT)\b(?!\s+DISTINCT\b)", re.IGNORECASE | re.DOTALL)
SQL_QUOTES = re.compile(r"""'(?:[^']|'')*'|--[^\n]*|/\*.*?(?:\*/|\Z)|\[[^\]]*\]|`[^`]*`|"((?:[^"]|"")*)\"""", re.DOTALL)

CREATE_TABLE = "CREATE TEMP TABLE {table} ({columns})"
INSERT_RECORD = "INSERT INTO temp.{table} (rowid, {columns}) VALUES (?, {values})"
DROP_MAPPING = "DROP VIEW IF EXISTS temp.mapping"
CREATE_MAPPING = "CREATE TEMP VIEW mapping AS "
PROBE_MAPPING = "SELECT line FROM mapping LIMIT 0"
MAPPED_COLUMNS = "PRAGMA temp.table_info(mapping)"
MAPPED = "SELECT {line}, {columns}, complaints() FROM mapping"
STAGE = "INSERT INTO incoming ({columns}) VALUES ({values}) {conflict}"
ON_DUPLICATE = {                        # by --duplicates; a plain insert refuses
    "refuse": "",
    "first": "ON CONFLICT (reference) DO NOTHING",
    "last": "ON CONFLICT (reference) DO UPDATE SET {changes}",
}
STAGE_ALL = "INSERT INTO incoming (line, {columns}) SELECT {line}, {columns} FROM mapping"
STAGED = "SELECT count(*) FROM incoming"
EARLIER = "SELECT line FROM incoming WHERE reference = ?"
FORGET_PROBE = "DELETE FROM incoming WHERE line = 0"

RESERVED = {"csv", "mapping", "incoming"}   # names that a joined table cannot have

Fault = collections.namedtuple("Fault", "column complaint reason")  # the complaint names the value, the reason does not
Staged = collections.namedtuple("Staged", "columns read rows nulled")    # nulled: cells by the text that null_if was given


class MappingError(Exception):
    """What makes the whole import impossible, in one line for the operator."""


class Report:
    """The rows that were rejected: each told on stderr up to a limit, all counted by reason."""

    def __init__(self, limit):
        self.limit = limit
        self.rows = 0
        self.reasons = collections.Counter()
        self.skipped = collections.Counter()    # what is left out without being at fault, by reason

    def reject(self, path, line, faults):
        self.rows += 1
        for fault in faults:
            told = sum(self.reasons.values())
            self.reasons["%s %s" % (fault.column, fault.reason)] += 1
            if told < self.limit:
                print("%s line %s: %s: %s" % (path, line, fault.column, fault.complaint), file=sys.stderr)
            elif told == self.limit:
                print("further rejected rows are only counted; --limit-reports tells more of them", file=sys.stderr)


def counted(counter):
    """The counts in words, the largest first."""
    return "; ".join("{:,} {}".format(count, what) for what, count in counter.most_common())


@functools.lru_cache(maxsize=None)
def form_pattern(form):
    """The regular expression for a form such as '%d-%b-%y'."""
    def translated(token):
        text = token.group()
        return FORM_PARTS[text[1:]] if text[0] == "%" else r"\s+" if text.isspace() else re.escape(text)
    try:
        pattern = re.compile(re.sub(r"%.?|\s+|[^%\s]", translated, form), re.IGNORECASE | re.ASCII)
    except (KeyError, re.error):        # the latter for a part given twice
        known = " ".join("%" + part for part in FORM_PARTS)
        raise MappingError("meets the form %r, whose parts may be %s, each once" % (form, known))
    if not all(any(name in pattern.groupindex for name in names) for names in NEEDED_PARTS):
        raise MappingError("meets the form %r, which lacks a day, a month or a year" % form)
    return pattern


# Dates and times of day recur where instants do not, so each is worked out once.
@functools.lru_cache(maxsize=REMEMBERED)
def date_of(day, month, month_name, year, short_year):
    """'YYYY-MM-DD' from these parts of a form; ValueError where there is no such day."""
    if year is None:
        year = (1900 if int(short_year) > 68 else 2000) + int(short_year)
    if month is None:
        month = next(number for number, name in enumerate(MONTHS, 1) if name.startswith(month_name.lower()))
    return datetime.date(int(year), int(month), int(day)).isoformat()


@functools.lru_cache(maxsize=REMEMBERED)
def clock_of(hour, half, minute, second):
    """'THH:MM:SSZ' from these parts of a form; ValueError where there is no such time."""
    hour = int(hour)
    if half is not None:
        if not 1 <= hour <= 12:
            raise ValueError("no such hour in half a day")
        hour = hour % 12 + (12 if half.lower() == "pm" else 0)
    return datetime.time(hour, int(minute or 0), int(second or 0)).strftime("T%H:%M:%SZ")


def utc(local, zone):
    """The instant that a clock showed in a zone such as +05:30; OverflowError where that is in no year."""
    ahead = datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    at = datetime.datetime(*map(int, re.findall(r"\d+", local)))
    return (at + ahead if zone[0] == "-" else at - ahead).isoformat() + "Z"


def moment(parts):
    """The date, or with an hour the UTC instant, that the parts of a form make."""
    get = parts.get
    date = date_of(get("day"), get("month"), get("month_name"), get("year"), get("short_year"))
    if "hour" not in parts:
        return date
    local = date + clock_of(get("hour"), get("half"), get("minute"), get("second"))
    zone = get("zone")
    return local if zone in (None, "z", "Z") else utc(local, zone)


def parsed(text, forms):
    """The date or instant that the first fitting form reads in a text, or None."""
    for form in forms:
        match = form_pattern(form).fullmatch(text)
        if match:
            try:
                return moment(match.groupdict())
            except (ValueError, OverflowError):     # 31 February fits a form and is no day
                continue
    return None


@functools.lru_cache(maxsize=REMEMBERED)
def fitting(text, patterns):
    """The first of the patterns, exact or a 'prefix*', that a text fits, or None."""
    return next((each for each in patterns if text == each or each[-1:] == "*" and text.startswith(each[:-1])), None)


@functools.lru_cache(maxsize=None)
def paired(pairs):
    return dict(zip(pairs[::2], pairs[1::2]))


class Functions:
    """What a mapping may call. NULL and '' give NULL.

    A value that cannot be taken comes back as a complaint, so that the column where it ends up is known. complaints() hands over
    those of the row at hand: it stands last in a row, and SQLite works out a row from left to right.
    """

    def __init__(self, db):
        self.nulled = collections.Counter()     # cells by the text of null_if that they fitted
        self.pending = {}                       # complaint: reason
        for name in ("parse_date", "number", "null_if", "map_value", "complaints"):
            db.create_function(name, -1, getattr(self, name))

    def refuse(self, value, reason):
        complaint = "%r %s" % (value, reason)
        self.pending[complaint] = reason
        return complaint

    def parse_date(self, text, *forms):
        if text in (None, ""):
            return None
        try:
            return parsed(str(text).strip(), forms) or self.refuse(
                text, "is not a date in the form " + " or ".join(map(repr, forms)))
        except MappingError as error:
            return self.refuse(text, str(error))

    def number(self, text, mark="."):
        if text is None or isinstance(text, (int, float)):
            return text
        plain = text.strip() if mark == "." else text.strip().replace(".", "?").replace(mark, ".")
        return float(plain) if NUMBER.fullmatch(plain) else self.refuse(text, "is not a number") if plain else None

    def null_if(self, text, *patterns):
        found = None if text is None else fitting(str(text), patterns)
        if found is None:
            return text or None
        self.nulled[found] += 1
        return None

    def map_value(self, text, *pairs):
        if text in (None, ""):
            return None
        return paired(pairs)[text] if text in paired(pairs) else self.refuse(text, "is not among the values of map_value")

    def complaints(self):
        handed, self.pending = self.pending, {}
        return json.dumps(handed) if handed else None


def text_lines(file, path):
    """The lines of an open text file; refuses what is no text in its encoding, with the place."""
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                raise MappingError("%s line %d: a NUL byte; if the file is UTF-16, say --encoding utf-16" % (path, number))
            yield line
    except UnicodeDecodeError as error:
        ends = re.findall(b"\r\n|\r|\n", error.object[:error.start])
        place = file.buffer.tell() - len(error.object) + error.start + 1
        raise MappingError("%s line %d, byte %d of the file: %r is not %s; name the file's own --encoding, such as latin-1" % (
            path, number + 1 + len(ends), place, error.object[error.start:error.end], error.encoding))
    except UnicodeError as error:       # a whole file that cannot be what it is said to be, such as UTF-16 without a mark
        raise MappingError("%s: %s; name the file's own encoding with --encoding" % (path, error))


def records(path, source, report):
    """Yields (line, cells) of a CSV file: cells without the blanks around them, None where nothing is left.

    A record may span lines, its line is the first. What csv cannot read is rejected, a wholly empty record is counted.
    """
    with open(path, newline="", encoding=source.encoding) as file:
        reader = csv.reader(text_lines(file, path), delimiter=source.delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = [cell.strip() or None for cell in next(reader)]
            except StopIteration:
                return
            except csv.Error as error:
                report.reject(path, line, [Fault("record", str(error), "cannot be read")])
                continue
            if any(cells):
                yield line, cells
            else:
                report.skipped["wholly empty"] += 1


def whole(rows, width, path, report):
    """The rows that have as many fields as the header, each led by its line."""
    for line, cells in rows:
        if len(cells) == width:
            yield [line] + cells
        else:
            fields = "%d fields, where the header has %d" % (len(cells), width)
            report.reject(path, line, [Fault("record", fields, "has too few or too many fields")])


def quoted(name):
    return '"%s"' % name.replace('"', '""')


def check_header(path, header):
    """Refuses a header in which a column has no name or the name of another; case does not tell names apart."""
    if header is None:
        raise MappingError("%s is empty: it has no header" % path)
    lowered = [(name or "").lower() for name in header]
    for name in lowered:
        places = [str(place) for place, other in enumerate(lowered, 1) if other == name]
        if not name:
            raise MappingError("%s: the header has no name in column %s; name every column" % (path, ", ".join(places)))
        if len(places) > 1:
            raise MappingError("%s: the header has %r in columns %s; rename all but one" % (path, name, ", ".join(places)))


def read_table(db, name, path, source, report):
    """Reads a CSV file into a temporary table of text columns; returns its rows. The rowid is the line."""
    rows = records(path, source, report)
    _, header = next(rows, (0, None))
    check_header(path, header)
    # A joined table has no line of its own, so that line means the one of csv; where csv has such a column, rowid is left.
    line = ["line INTEGER PRIMARY KEY"] if name == "csv" and "line" not in map(str.lower, header) else []
    columns = [quoted(column) for column in header]
    db.execute(CREATE_TABLE.format(table=quoted(name), columns=", ".join(line + [column + " TEXT" for column in columns])))
    insert = INSERT_RECORD.format(table=quoted(name), columns=", ".join(columns), values=", ".join("?" * len(columns)))
    return max(0, db.executemany(insert, whole(rows, len(columns), path, report)).rowcount)     # -1 where there were none


def requoted(token):
    """A "name" as `name`, all else as it is: SQLite takes a "name" that does not exist for a text, a `name` never."""
    name = token.group(1)
    return token.group() if name is None else "`%s`" % name.replace('""', '"').replace("`", "``")


def make_view(db, text):
    """Makes the SELECT the temporary view mapping, which can only read; returns the names of its columns."""
    db.execute(DROP_MAPPING)
    db.execute(CREATE_MAPPING + text)
    return [row[1].lower() for row in db.execute(MAPPED_COLUMNS)]


def with_line(db, text, named):
    """The columns of the mapping, the line added to them where that can be done by itself: in a plain SELECT from csv."""
    if "line" not in named:
        with contextlib.suppress(sqlite3.OperationalError):
            named = make_view(db, PLAIN_SELECT.sub(r"\1 csv.rowid AS line,", text, 1))
            db.execute(PROBE_MAPPING)
            return named
        make_view(db, text)
    return named


def read_mapping(db, path, importable):
    """Makes the mapping a view; returns the columns that it has: importable ones, and line if it is known."""
    try:
        text = SQL_QUOTES.sub(requoted, pathlib.Path(path).read_text(encoding="utf-8-sig"))
        named = with_line(db, text, make_view(db, text))
    except UnicodeDecodeError:
        raise MappingError("%s is not UTF-8: save it as that" % path)
    # Several statements are a Warning before Python 3.12, a ProgrammingError since.
    except (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.Warning) as error:
        raise MappingError("%s: %s; a mapping is one SELECT, a column stands in \"\", a text in ''" % (path, error))
    unknown = [column for column in named if column not in importable + ["line"]]
    if unknown:
        raise MappingError("%s: %s cannot be imported; a mapping may name line, %s"
                           % (path, ", ".join(unknown), ", ".join(importable)))
    missing = [column for column in ("reference", "status") if column not in named]
    if missing:
        raise MappingError("%s names no %s, which every mapping must" % (path, ", ".join(missing)))
    return named


def faults(columns, values, complaints):
    """A Fault for each column in which one of the complaints about a row ended up."""
    for complaint, reason in json.loads(complaints).items():
        holding = [column for column, value in zip(columns, values) if value == complaint]
        yield from (Fault(column, complaint, reason) for column in holding or ["an expression"])


def refusals(db, row):
    """A Fault for each value of a row that the table refuses by itself: SQLite's message names no column before 3.34."""
    for column, value in row.items():
        probe = dict({"line": 0, "reference": "probe", "status": "pending"}, **{column: value})
        try:
            statement = STAGE.format(columns=", ".join(probe), values=", ".join("?" * len(probe)), conflict="")
            db.execute(statement, list(probe.values()))
            db.execute(FORGET_PROBE)
        except sqlite3.IntegrityError as error:
            if "UNIQUE" not in str(error):
                reason = "is missing" if value is None else "is not allowed by schema.sql"
                yield Fault(column, reason if value is None else "%r %s" % (value, reason), reason)


def duplicate(db, reference):
    line, = db.execute(EARLIER, (reference,)).fetchone()
    complaint = "%r stands already on line %s; --duplicates first or last keeps one" % (reference, line)
    return Fault("reference", complaint, "is repeated")


def map_at_once(db, line, columns, functions):
    """Maps all records in one statement, which saves half the time; returns how many, or None where any of them is at fault: then
    nothing is staged, and map_rows finds the faults."""
    db.execute("SAVEPOINT at_once")
    try:
        db.execute(STAGE_ALL.format(line=line, columns=", ".join(columns)))
        if not functions.pending:
            return db.execute(STAGED).fetchone()[0]
    except sqlite3.IntegrityError:
        pass
    db.execute("ROLLBACK TO at_once")
    functions.pending.clear()
    functions.nulled.clear()
    return None


def map_rows(db, line, columns, source, report):
    """Maps the records one by one into the table incoming, which refuses what shipments would; returns how many it then holds."""
    fields = ["line"] + columns
    conflict = ON_DUPLICATE[source.duplicates].format(changes=", ".join("{0} = excluded.{0}".format(field) for field in fields))
    take = STAGE.format(columns=", ".join(fields), values=", ".join("?" * len(fields)), conflict=conflict)
    execute, accepted = db.cursor().execute, 0
    for *row, complaints in db.execute(MAPPED.format(line=line, columns=", ".join(columns))):
        if complaints:
            report.reject(source.csv, row[0], faults(fields, row, complaints))
            continue
        try:
            execute(take, row)
            accepted += 1
        except sqlite3.IntegrityError:
            values = dict(zip(columns, row[1:]))
            report.reject(source.csv, row[0], list(refusals(db, values)) or [duplicate(db, values["reference"])])
    staged, = db.execute(STAGED).fetchone()
    if accepted > staged:
        report.skipped["repeated, the %s kept" % source.duplicates] = accepted - staged
    return staged


def stage(db, table, importable, source, report):
    """Reads the source's files and maps their records into the temporary table incoming, made as the given table is.

    source has csv, mapping, encoding, delimiter, duplicates, and table, the (name, path) of each further file.
    """
    functions = Functions(db)
    read = read_table(db, "csv", source.csv, source, report) + report.rows + sum(report.skipped.values())
    for name, path in source.table:
        read_table(db, name, path, source, report)
    named = read_mapping(db, source.mapping, importable)
    columns = [column for column in named if column != "line"]
    db.execute(table.replace("CREATE TABLE shipments (", "CREATE TEMP TABLE incoming (line, ", 1))
    line = "line" if "line" in named else "'?'"
    try:
        rows = map_at_once(db, line, columns, functions)
        rows = map_rows(db, line, columns, source, report) if rows is None else rows
        return Staged(columns, read, rows, functions.nulled)
    except sqlite3.OperationalError as error:
        if "user-defined function" not in str(error):
            raise
        raise MappingError("%s: a function is given too few or too many values, or NULL for a form or pattern" % source.mapping)
