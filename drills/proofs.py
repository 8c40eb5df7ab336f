"""Looks at a database in a process of its own, which holds no lock that opening and closing the file could drop.

  proofs.py DATABASE LEDGER [CONDITION]

Prints one JSON object: bytes (SHA-256 of the file), rows and fingerprint (without the ledger writer's rows and without those that
CONDITION, an SQL expression, leaves out), quick_check, foreign_keys, schema (differences from schema.sql), and the ledger's four
sets: acknowledged and present, missing, present and not acknowledged, unexpected. A part that cannot be had is null, and errors
says why.
"""

import hashlib
import json
import os
import sqlite3
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import schema_check     # noqa: E402  (its folder is known only now)
from drills import writer   # noqa: E402

ROWS = "SELECT {columns} FROM shipments WHERE reference NOT GLOB '%s*' AND ({condition}) ORDER BY reference" % writer.PREFIX
LEDGER = writer.STORED.replace("reference = ?", "reference GLOB '%s*'" % writer.PREFIX)

PARTS = ("bytes", "rows", "fingerprint", "quick_check", "foreign_keys", "schema", "acknowledged", "missing",
         "unacknowledged_present", "unexpected")


def file_hash(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(db, condition):
    """Rows, and SHA-256 over all of them: every column with its type but the id, by reference and by the columns' names."""
    columns = sorted(row[1] for row in db.execute("PRAGMA table_info(shipments)"))
    typed = ", ".join("typeof(%s), CAST(%s AS BLOB)" % ((schema_check.quoted(name),) * 2) for name in columns if name != "id")
    digest, count = hashlib.sha256(repr(columns).encode()), 0
    for row in db.execute(ROWS.format(columns=typed, condition=condition)):
        digest.update(repr(row).encode())
        count += 1
    return {"rows": count, "fingerprint": digest.hexdigest()}


def compare_ledger(db, path):
    """The ledger against the rows. A row may be one version ahead: its writer was ended between COMMIT and ledger."""
    ledger = writer.read_ledger(path)
    present = {row[0]: row for row in db.execute(LEDGER)}
    missing, ahead = [], sorted(set(present) - set(ledger))
    for reference, (version, sealed) in sorted(ledger.items()):
        row = present.get(reference)
        if row and row[2] == version + 1:
            ahead.append(reference)
        elif not row or writer.digest(row) != sealed:
            missing.append(reference)
    unexpected = ahead[1:] if len(ahead) > 8 else []    # each killed writer leaves one at most
    return {"acknowledged": len(ledger), "missing": missing, "unacknowledged_present": ahead, "unexpected": unexpected}


def quick_check(db, _):
    return {"quick_check": [row[0] for row in db.execute("PRAGMA quick_check")]}


def foreign_keys(db, _):
    return {"foreign_keys": [list(row) for row in db.execute("PRAGMA foreign_key_check")]}


def schema(db, _):
    found = schema_check.compare(schema_check.read_schema(db), schema_check.wanted_schema())
    return {"schema": ["%s: %s" % finding for finding in found]}


def examine(database, ledger, condition="1"):
    parts = ((fingerprint, condition), (quick_check, None), (foreign_keys, None), (schema, None), (compare_ledger, ledger))
    seen, errors = dict.fromkeys(PARTS), []
    try:
        seen["bytes"] = file_hash(database)
        db = sqlite3.connect("file:%s?mode=ro" % database, uri=True, timeout=2)
    except (OSError, sqlite3.Error) as error:
        return dict(seen, errors=[str(error)])
    for part, argument in parts:
        try:
            seen.update(part(db, argument))
        except sqlite3.Error as error:
            errors.append("%s: %s" % (part.__name__, error))
    db.close()
    return dict(seen, errors=errors)


if __name__ == "__main__":
    print(json.dumps(examine(*sys.argv[1:])))
