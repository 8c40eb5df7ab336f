"""What pending steps would do and cost, from the tables as they are: rows, disk, seconds. Nothing is changed.

    forecast(db, database, known, todo, backup_dir) -> Forecast
"""

import collections
import os
import shutil
import sqlite3

import backups
import steps

SHOWN = 10                  # rows told one by one
TEXT_MAX = 300              # characters of what is said of each
SPARE = 16 * 1024 * 1024    # bytes of disk beyond what the estimate says

# Seconds that a row took on a machine of 2026 with a solid-state disk: to read it in a step, to write it with its indexes, and
# to have it looked at by the proof of a step and the check of the backup. Another machine may well take thrice that.
READ_SECONDS, WRITE_SECONDS, PROOF_SECONDS = 12e-6, 12e-6, 8e-6

FILE_BYTES = ("PRAGMA page_count", "PRAGMA page_size")

# What SQLite's compiler tells an authorizer of a statement: the word for it, and which of two arguments names the table.
ACTIONS = {sqlite3.SQLITE_READ: ("read", 0), sqlite3.SQLITE_INSERT: ("added to", 0), sqlite3.SQLITE_UPDATE: ("updated", 0),
           sqlite3.SQLITE_DELETE: ("deleted", 0), sqlite3.SQLITE_CREATE_INDEX: ("indexed", 1),
           sqlite3.SQLITE_DROP_TABLE: ("dropped", 0)}
REWRITING = {"updated", "deleted", "indexed", "dropped"}

# touched: table -> (rows, words). refused: first texts on rows that the step cannot take, and refused_rows their number; both
# are None where that can be told only after an earlier step.
Work = collections.namedtuple("Work", "step touched bytes seconds refused refused_rows")
Disk = collections.namedtuple("Disk", "folder needed free")     # bytes, for each file system that is written to
Forecast = collections.namedtuple("Forecast", "works backup_bytes disks seconds")


def actions(db, step):
    """{table: words} for what a step does, as SQLite's own compiler says while the step runs in an empty database."""
    found = collections.defaultdict(set)

    def note(action, *arguments):
        if action in ACTIONS:
            word, place = ACTIONS[action]
            found[arguments[place].lower()].add(word)
        return sqlite3.SQLITE_OK
    db.set_authorizer(note)
    steps.rehearse(db, step)
    return found


def refusals(db, step):
    """(first texts, number) of the rows that a step cannot take; (None, None) where an earlier step has to come first."""
    texts, count = [], 0
    for query in step.refusals:
        try:
            for count, (text,) in enumerate(db.execute(query), count + 1):
                if len(texts) < SHOWN:  # of a million such rows
                    texts.append("a row without words" if text is None else str(text)[:TEXT_MAX])
        except sqlite3.OperationalError as error:
            if "no such" not in str(error):
                raise
            return None, None
    return texts, count


def work(model, db, step, rows, size):
    """The Work of a step on tables with these numbers of rows, in a file of this size; model is empty and at its version."""
    touched = {table: (rows[table], sorted(words)) for table, words in actions(model, step).items() if rows.get(table)}
    rewritten = sum(count for count, words in touched.values() if REWRITING & set(words))
    everything = max(1, sum(rows.values()))
    # A page that is rewritten is in the journal too; a table that is rebuilt stands in the file twice; sorting takes room.
    needed = 2 * size * rewritten // everything + (size // 4 if touched else 0)
    seconds = (READ_SECONDS * sum(count for count, _ in touched.values()) + WRITE_SECONDS * rewritten
               + PROOF_SECONDS * sum(rows.values()))
    return Work(step, touched, needed, seconds, *refusals(db, step))


def disks(database, folder, backup, needed):
    """The Disks that a backup of so many bytes and steps of so many go to."""
    amounts = collections.OrderedDict()
    for place, amount in ((os.path.dirname(database), needed), (folder, backup)):
        _, before = amounts.get(os.stat(place).st_dev, (place, SPARE))
        amounts[os.stat(place).st_dev] = place, before + amount
    return [Disk(place, amount, shutil.disk_usage(place).free) for place, amount in amounts.values()]


def forecast(db, database, known, todo, folder):
    """The Forecast of steps on a database that db reads. Raises sqlite3.Error, OSError or StepError."""
    pages, page = (db.execute(sql).fetchone()[0] for sql in FILE_BYTES)
    size, rows = pages * page, backups.counts(db)
    with steps.built(known[:todo[0].number - 1] if todo else ()) as model:
        found = [work(model, db, step, rows, size) for step in todo]
    backup = size if todo else 0
    needed = max([item.bytes for item in found] or [0])
    return Forecast(found, backup, disks(database, folder, backup, needed), sum(item.seconds for item in found))
