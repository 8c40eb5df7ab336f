"""The steps that lead to the schema, and a database's record of those it went through.

    read_steps() -> [Step, ...]                 from migrations/NNNN_verb_noun.sql, in order
    recorded(db) -> [Record, ...]               from the table migrations
    disputes(records, version, steps) -> words  in what the two contradict each other
    schema_of(steps) -> schema_check.Schema     that these steps make

A step is SQL that runs in one transaction. The comment lines at its top may declare what it does to the data:

    -- rows: TABLE +N|-N|any        rows that a table has more or fewer afterwards; without it, exactly as many as before
    -- refuse: SELECT ...;          each row is a text on something that the step cannot take
"""

import collections
import contextlib
import hashlib
import os
import re
import sqlite3

import schema_check
from schema_check import tokens

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "migrations")
FILE_NAME = re.compile(r"(\d{4})_([a-z0-9]+(?:_[a-z0-9]+)+)\.sql")
ROWS = re.compile(r"(\w+) +([+-]\d+|any)")
DECLARING = re.compile(r"^\s*--\s*(?:rows|refuse):", re.MULTILINE)

# What would end the transaction, or cannot run inside one.
OUTSIDE = {"begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum"}
# PRAGMAs of the connection or the file that SQLite does not change inside a transaction, or that a step may want for all of it.
SETTINGS = {"foreign_keys", "journal_mode", "legacy_alter_table", "recursive_triggers", "temp_store", "cache_size"}
DEFAULTS = ("PRAGMA foreign_keys = OFF", "PRAGMA legacy_alter_table = OFF", "PRAGMA recursive_triggers = OFF")
HARMLESS = {"defer_foreign_keys", "foreign_key_check", "application_id"}    # PRAGMAs that work inside one
UNSAFE = {"off", "memory"}                                                  # journals that a crash does not survive
ENFORCING = {("foreign_keys", value) for value in ("on", "1", "yes", "true")}
BEFORE, INSIDE, NOWHERE = "before", "inside", "nowhere"

RECORDS = "SELECT number, name, hash, applied_at, tool, seconds FROM migrations ORDER BY number"
RECORD = """
INSERT INTO migrations (number, name, hash, applied_at, tool, seconds)
VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), ?, ?)
"""
HAS_RECORDS = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'migrations'"

# rows: table -> change of its number of rows, None for any. settings run before the transaction, refusals at its start.
Step = collections.namedtuple("Step", "number name path hash purpose settings statements rows refusals")
Record = collections.namedtuple("Record", "number name hash applied_at tool seconds")


class StepError(Exception):
    """A file or the folder of the steps cannot be used: which, why, and the cure."""


def split(text):
    """The statements of a script. Semicolons in strings, comments and triggers do not end one. Raises ValueError."""
    found, start = [], 0
    for semicolon in re.finditer(";", text):
        piece = text[start:semicolon.end()]
        if sqlite3.complete_statement(piece):
            start = semicolon.end()
            if tokens(piece) != [";"]:
                found.append(piece.strip())
    if tokens(text[start:]):
        raise ValueError("its last statement has no semicolon at the end, or a string or comment in it is not closed")
    return found


def header(text):
    """(the comment lines at the top, without their dashes; the text below them)."""
    lines = []
    while text.startswith("--"):
        line, _, text = text.partition("\n")
        lines.append(line[2:].strip())
    return lines, text


def purpose_of(lines):
    """The prose of a header as one line."""
    prose = []
    for line in lines:
        if line.startswith(("rows:", "refuse:")):
            break
        prose.append(line)
    return " ".join(prose)


def rows_of(lines):
    """The changes that a header declares. Raises ValueError."""
    declared = {}
    for line in lines:
        if line.startswith("rows:"):
            match = ROWS.fullmatch(line[len("rows:"):].strip())
            if not match:
                raise ValueError("%r is not 'rows: TABLE +N', 'rows: TABLE -N' or 'rows: TABLE any'" % line)
            declared[match.group(1).lower()] = None if match.group(2) == "any" else int(match.group(2))
    return declared


def refusals_of(lines):
    """The queries of a header, which may go on over several lines. Raises ValueError."""
    queries, query = [], None
    for line in lines:
        if line.startswith(("rows:", "refuse:")) and query is not None:
            break
        if line.startswith("refuse:"):
            query = line[len("refuse:"):]
        elif query is not None:
            query += "\n" + line
        if query is not None and sqlite3.complete_statement(query):
            queries.append(query.strip())
            query = None
    if query is not None:
        raise ValueError("its refuse: query has no semicolon at the end")
    return queries


def pragma(words):
    """(name, value) of a PRAGMA statement's tokens."""
    values = [word for word in words[2:] if word not in "=();"]
    return words[1].rpartition(".")[2], values[0].strip("'").lower() if values else ""


def placed(statement, number):
    """Where a statement of a step runs: BEFORE its transaction, INSIDE, or nowhere. Raises ValueError."""
    words = tokens(statement)
    if words[0] in OUTSIDE:
        raise ValueError("%s has no place in a step, which is one transaction as a whole" % words[0].upper())
    if words[0] != "pragma":
        return INSIDE
    name, value = pragma(words)
    if name == "user_version" and value == str(number):
        return NOWHERE                  # it is set anyway, with the record
    if name in HARMLESS:
        return INSIDE
    if name not in SETTINGS or name == "journal_mode" and value in UNSAFE:
        raise ValueError("PRAGMA %s %s has no place in a step" % (name, value))
    return BEFORE


def drops_table(statement):
    return tokens(statement)[:2] == ["drop", "table"]


def sort_out(number, statements):
    """(settings, statements of the transaction). Raises ValueError on what has no place in a step."""
    places = [placed(statement, number) for statement in statements]
    if INSIDE not in places:
        raise ValueError("it has no statement")
    first, last = places.index(INSIDE), len(places) - places[::-1].index(INSIDE)
    for index in range(first, len(places)):
        # At the end it may put back what ends with the step's connection anyway.
        if places[index] == BEFORE and (index < last or "journal_mode" in statements[index].lower()):
            raise ValueError("%s must stand before all other statements" % statements[index])
    settings = [statement for place, statement in zip(places[:first], statements) if place == BEFORE]
    inside = [statement for place, statement in zip(places, statements) if place == INSIDE]
    if any(pragma(tokens(setting)) in ENFORCING for setting in settings) and any(map(drops_table, inside)):
        raise ValueError("DROP TABLE under PRAGMA foreign_keys = ON would reach into the tables that refer to it; leave it off, "
                         "the keys are checked after the step")
    return settings, inside


def read_step(path, number, name):
    """The Step in a file. Raises StepError or OSError."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        lines, script = header(content.decode("utf-8-sig"))     # a mark that an editor puts first would hide the header
        if DECLARING.search(script):
            raise ValueError("rows: or refuse: stands below the header, which ends at the first line that does not begin with --")
        settings, statements = sort_out(number, split(script))
        return Step(number, name, path, hashlib.sha256(content).hexdigest(), purpose_of(lines), settings, statements,
                    rows_of(lines), refusals_of(lines))
    except ValueError as error:         # text that is not UTF-8, too
        raise StepError("%s: %s; mend the file" % (path, error))


def require_sequence(found, folder):
    """Raises StepError unless steps are numbered from 1 without a gap."""
    for expected, step in enumerate(found, 1):
        if step.number < expected:
            raise StepError("%s: the number %d is there twice; renumber the newer one" % (step.path, step.number))
        if step.number > expected:
            raise StepError("%s holds step %d, but no step %d; copy the whole folder again" % (folder, step.number, expected))
    if not found:
        raise StepError("%s holds no steps; copy the whole folder again" % folder)


def read_steps(folder=FOLDER):
    """All steps, numbered from 1 without a gap. Raises StepError or OSError."""
    try:
        files = sorted(os.listdir(folder))
    except OSError as error:
        raise StepError("%s: %s; copy the whole folder again" % (folder, error.strerror))
    found = []
    for name in files:
        match = FILE_NAME.fullmatch(name)
        if match:
            found.append(read_step(os.path.join(folder, name), int(match.group(1)), match.group(2)))
        elif name.endswith(".sql"):
            raise StepError("%s is not named NNNN_verb_noun.sql; rename it" % os.path.join(folder, name))
    require_sequence(found, folder)
    return found


def recorded(db):
    """The Records of an open database, [] where it has no table of them. Raises sqlite3.Error."""
    if not db.execute(HAS_RECORDS).fetchone()[0]:
        return []
    return [Record._make(row) for row in db.execute(RECORDS)]


def record(db, step, tool, seconds):
    """Writes down that a step was done, inside the caller's transaction: its row and user_version."""
    db.execute(RECORD, (step.number, step.name, step.hash, tool, seconds))
    db.execute("PRAGMA user_version = %d" % step.number)


def dispute(done, step):
    """In what a Record contradicts the Step of its number, or None."""
    if done.name != step.name:
        return "step %d was applied as %s, and is %s in %s" % (done.number, done.name, step.name, os.path.dirname(step.path))
    if done.hash != step.hash:
        return ("step %d (%s) was edited after it was applied at %s: its hash was %.12s, that of %s is %.12s; put the old file "
                "back" % (done.number, done.name, done.applied_at, done.hash, step.path, step.hash))
    return None


def disputes(records, version, steps):
    """Yields in words why this record, with this user_version, cannot be continued by these steps."""
    if not 0 <= version <= len(steps):
        yield ("version %d is unknown: this folder's steps end with %d; use the release that made it, or restore a backup"
               % (version, len(steps)))
    numbers = [done.number for done in records]
    if numbers != list(range(1, version + 1)):
        yield "user_version is %d, and the table migrations records %s" % (
            version, "the steps " + ", ".join(map(str, numbers)) if numbers else "no step")
    for done in records:
        if 1 <= done.number <= len(steps):
            words = dispute(done, steps[done.number - 1])
            if words:
                yield words


def prelude(step):
    """The PRAGMAs to run on a connection before a step, outside of any transaction: what it sets, the defaults for the rest."""
    return DEFAULTS + tuple(step.settings)


def rehearse(db, step):
    """Runs a step, no more, on a database that holds nothing of value. Raises StepError."""
    try:
        for setting in prelude(step):
            db.execute(setting)
        for query in step.refusals:
            if len(db.execute(query).description or ()) != 1:
                raise StepError("%s: its refuse: query does not give one column, a text for each row; mend the file" % step.path)
        for statement in step.statements:
            db.execute(statement)
    except (sqlite3.Error, sqlite3.Warning) as error:   # before Python 3.11 two statements for one are a Warning
        raise StepError("%s fails even in an empty database: %s; mend the file" % (step.path, error))
    db.execute("PRAGMA user_version = %d" % step.number)


@contextlib.contextmanager
def built(steps):
    """A database in memory that went through these steps. Raises StepError."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for step in steps:
            rehearse(db, step)
        yield db


def schema_of(steps):
    """The schema_check.Schema that these steps make. Raises StepError."""
    with built(steps) as db:
        return schema_check.read_schema(db)
