"""Shipments databases of every version, and the command line of migrate.py on them, in this process or as one of its own.

    path = make(tmp_path / "shipments.db", 1)           a database of version 1 with ROWS, as migrate.py makes it
    migrate(path, "apply") -> Done(code, out, err)      with the steps of the product, or of folder=
    before = content(path)                              all that it holds
"""

import collections
import contextlib
import functools
import io
import json
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from unittest import mock

import migrate as program
import steps
from conftest import ROOT, add_rows

STEPS = steps.read_steps()
LAST = len(STEPS)
NAME = "shipments.db"

# What the first release could hold; all of it fits the last one's CHECKs.
ROWS = [dict(row, reference="R%d" % number) for number, row in enumerate([
    dict(status="delivered", carrier="Köln; Cargo", mode="air", created_at="2026-01-02T03:04:05Z", shipped_at="2026-01-03T00:00:00Z",
         promised_at="2026-01-05", delivered_at="2026-01-05T10:00:00Z", weight_kg=0.1, cost=-3.5, currency="EUR"),
    dict(status="delivered", carrier="B", mode="road", created_at="2026-01-02", promised_at="2026-01-04", delivered_at="2026-01-06"),
    dict(status="exception", carrier="B", mode="road", created_at="2026-01-02", promised_at="2026-01-09", origin="it's -- ;"),
    dict(status="in_transit", carrier="B", mode="rail", created_at="2026-01-02", promised_at="2026-01-09"),
    dict(status="in_transit", carrier="B", mode="rail", created_at="2026-01-02", promised_at="2026-01-09"),
    dict(status="pending"),
])]
COLUMNS = ("id reference carrier mode service origin destination status created_at shipped_at promised_at delivered_at "
           "weight_kg cost currency")

Done = collections.namedtuple("Done", "code out err")


def migrate(*argv, folder=ROOT / "migrations"):
    """What a run of migrate.py with these arguments gives, with the steps of a folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(steps, "read_steps", functools.partial(steps.read_steps, str(folder))))
        stack.enter_context(mock.patch.object(sys, "argv", ["migrate.py"]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            code = program.main([str(argument) for argument in argv])
        except SystemExit as exit:      # of argparse
            code = exit.code
    return Done(code, out.getvalue(), err.getvalue())


def document(*argv, **options):
    """(exit code, JSON document) of a run."""
    done = migrate(*argv + ("--format", "json"), **options)
    return done.code, json.loads(done.out)


def start(*argv, product=ROOT, command=(sys.executable,), **options):
    """migrate.py as a process."""
    return subprocess.Popen(list(command) + [str(product / "migrate.py")] + [str(argument) for argument in argv],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, **options)


def end(process):
    """What a process has given, once it ends."""
    out, err = process.communicate(timeout=30)
    return Done(process.returncode, out, err)


@functools.lru_cache(maxsize=None)
def built(version):
    """The bytes of a database of this version with ROWS."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / NAME
        if version > 1:
            make(path, version - 1)
        done = migrate(path, "apply", "--to", version)
        assert done.code == 0, done
        if version == 1:
            with contextlib.closing(sqlite3.connect(str(path))) as db:
                add_rows(db, ROWS)
        return path.read_bytes()


def make(path, version=LAST):
    """A database of this version with ROWS; the path."""
    path.write_bytes(built(version))
    return path


@contextlib.contextmanager
def opened(path):
    """A connection in autocommit mode."""
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        yield db


def alter(path, sql):
    """Changes a database by hand; the path."""
    with opened(path) as db:
        db.executescript(sql)
    return path


def ask(path, query):
    with opened(path) as db:
        return db.execute(query).fetchall()


def version(path):
    return ask(path, "PRAGMA user_version")[0][0]


def content(path):
    """All that a database holds: its version, its schema, and every row of every table."""
    with opened(path) as db:
        return [db.execute("PRAGMA user_version").fetchone()[0]] + list(db.iterdump())


def shipments(path):
    """The rows of shipments in the columns that every version has."""
    return ask(path, "SELECT %s FROM shipments ORDER BY id" % COLUMNS.replace(" ", ", "))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder):
    """The backups in a folder."""
    return sorted(folder.glob("*.backup"))


def with_step(tmp_path, sql, name="try_something", number=LAST + 1):
    """A folder of the steps and of one more; the folder."""
    folder = tmp_path / "migrations"
    if not folder.is_dir():
        shutil.copytree(str(ROOT / "migrations"), str(folder))
    content = sql if isinstance(sql, bytes) else sql.encode()
    (folder / ("%04d_%s.sql" % (number, name))).write_bytes(content)
    return folder
