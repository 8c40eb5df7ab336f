"""The live schema against schema.sql: differences in words, graded.

    compare(read_schema(live), wanted_schema()) -> [Finding(grade, text), ...], worst first

What is wanted is schema.sql itself, built in memory, so that no second description of it can grow old. The grades:

    error    a table or column is missing, or has another type or key: the figures cannot be right
    version  all that is needed is there, but PRAGMA user_version is not this release's
    warning  a trigger, view, index or constraint is missing or altered: the figures may drift from the rows
    note     something extra, which does no harm
"""

import collections
import os
import re
import sqlite3

SCHEMA_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schema.sql")
GRADES = ("error", "version", "warning", "note")

# Strings, quoted names, comments, words and numbers, single characters; white space falls between them.
TOKEN = re.compile(r"""('(?:[^']|'')*')|"([^"]*)"|\[([^]]*)\]|`([^`]*)`|(--[^\n]*|/\*.*?\*/)|([\w.]+)|(\S)""", re.DOTALL)

OBJECTS = "SELECT type, name, coalesce(sql, '') FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
VERSION = "PRAGMA user_version"

Finding = collections.namedtuple("Finding", "grade text")
Schema = collections.namedtuple("Schema", "version tables others")  # tables: name -> Table; others: (type, name) -> tokens
Table = collections.namedtuple("Table", "columns key unique foreign tokens")  # columns: name -> type


def tokens(sql):
    """The statement as a list of tokens: comments and white space gone, names unquoted and in lower case."""
    parts = []
    for string, double, square, back, comment, word, other in TOKEN.findall(sql):
        if not comment:
            parts.append(string or (double or square or back or word or other).lower())
    return parts


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def read_table(connection, name, sql):
    """The Table that PRAGMA table_info, index_list and foreign_key_list describe; names compare in lower case, as SQLite's do."""
    info = connection.execute("PRAGMA table_info(%s)" % quoted(name)).fetchall()
    key = tuple(column.lower() for _, column, _, _, _, pk in sorted(info, key=lambda row: row[5]) if pk)
    unique = set()
    for _, index, is_unique, origin, _ in connection.execute("PRAGMA index_list(%s)" % quoted(name)).fetchall():
        if is_unique and origin == "u":
            members = connection.execute("PRAGMA index_info(%s)" % quoted(index)).fetchall()
            unique.add(tuple(column.lower() for _, _, column in members))
    keys = connection.execute("PRAGMA foreign_key_list(%s)" % quoted(name)).fetchall()
    foreign = {(column.lower(), parent.lower()) for _, _, parent, column, *_ in keys}
    return Table({column.lower(): kind.upper() for _, column, kind, *_ in info}, key, unique, foreign, tokens(sql))


def read_schema(connection):
    """The Schema of an open database. Raises sqlite3.Error. Read it inside a transaction, or it may be of two moments."""
    version = connection.execute(VERSION).fetchone()[0]
    tables, others = {}, {}
    for kind, name, sql in connection.execute(OBJECTS).fetchall():
        if kind == "table":
            tables[name.lower()] = read_table(connection, name, sql)
        else:
            others[kind, name.lower()] = tokens(sql)
    return Schema(version, tables, others)


def wanted_schema(path=SCHEMA_FILE):
    """The Schema that schema.sql makes. Raises OSError or sqlite3.Error: both mean that the installed folder is damaged."""
    with open(path, encoding="utf-8") as source:
        script = source.read()
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        return read_schema(connection)
    finally:
        connection.close()


def compare_columns(name, live, wanted):
    for column, kind in wanted.columns.items():
        if column not in live.columns:
            yield Finding("error", "column %s.%s is missing" % (name, column))
        elif live.columns[column] != kind:
            yield Finding("error", "column %s.%s is %s, wanted %s" % (name, column, live.columns[column] or "untyped", kind))
    for column in live.columns:
        if column not in wanted.columns:
            yield Finding("note", "column %s.%s is extra" % (name, column))


def compare_keys(name, live, wanted):
    if live.key != wanted.key:
        yield Finding("error", "primary key of %s is (%s), wanted (%s)" % (name, ", ".join(live.key), ", ".join(wanted.key)))
    for columns in sorted(wanted.unique - live.unique):
        yield Finding("error", "table %s lacks the unique key (%s)" % (name, ", ".join(columns)))
    for column, parent in sorted(wanted.foreign - live.foreign):
        yield Finding("error", "table %s lacks the foreign key %s to %s" % (name, column, parent))


def compare_table(name, live, wanted, source):
    found = list(compare_columns(name, live, wanted)) + list(compare_keys(name, live, wanted))
    # Any difference found so far is in the table's text too, so the text tells something new only where there is none.
    if not found and live.tokens != wanted.tokens:
        found.append(Finding("warning", "constraints or defaults of table %s differ from %s" % (name, source)))
    return found


def compare_tables(live, wanted, source):
    if not live:
        return [Finding("error", "the database is empty: it has no tables")]
    found = []
    for name, table in wanted.items():
        if name in live:
            found += compare_table(name, live[name], table, source)
        else:
            found.append(Finding("error", "table %s is missing" % name))
    return found + [Finding("note", "table %s is extra" % name) for name in live if name not in wanted]


def compare_others(live, wanted, source):
    for (kind, name), text in wanted.items():
        if (kind, name) not in live:
            yield Finding("warning", "%s %s is missing" % (kind, name))
        elif live[kind, name] != text:
            yield Finding("warning", "%s %s differs from %s" % (kind, name, source))
    for kind, name in live:
        if (kind, name) not in wanted:
            yield Finding("note", "%s %s is extra" % (kind, name))


def compare_version(live, wanted):
    if live != wanted:
        age = "newer" if live > wanted else "older"
        yield Finding("version", "schema version %d is %s than the %d of this release" % (live, age, wanted))


def compare(live, wanted, source="schema.sql"):
    """Every difference as a Finding, worst grade first, in the wanted order within a grade. No difference: []. source names
    what is wanted."""
    found = compare_tables(live.tables, wanted.tables, source)
    found += compare_version(live.version, wanted.version)
    if live.tables:  # an empty database misses everything; one line says so
        found += compare_others(live.others, wanted.others, source)
    return sorted(found, key=lambda finding: GRADES.index(finding.grade))
