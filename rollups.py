"""The rollups as the rows have them: made anew, or compared with those that the triggers kept.

    rebuild(db)             makes them, inside the caller's transaction
    differences(db)         yields what differs, in lines for the operator

The counters of deliveries are no sum over the rows: they remember what has changed since, and never go down.

Each definition of a figure stands in the view facts of schema.sql, which the triggers read as well; here is only how to sum it.
"""

import collections

# Working out the times costs most, so the tally, one cell for each combination that occurs, does it once for two rollups.
# on_time is 1, 0 or, not evaluated, NULL.
TALLY = """
CREATE TEMP TABLE tally AS
SELECT carrier, mode, status, le, on_time, sum(sign) AS shipments, sum(late_seconds) AS late_seconds,
       sum(transit_seconds) AS transit_seconds, sum(negative) AS negative
FROM facts WHERE sign = 1 GROUP BY carrier, mode, status, le, on_time
"""
ROLLUP_LANE = """
SELECT carrier, mode, status, sum(shipments), ifnull(sum(shipments * on_time), 0), ifnull(sum(shipments * (NOT on_time)), 0),
       ifnull(sum(late_seconds), 0), sum(shipments * (le IS NOT NULL)), ifnull(sum(transit_seconds), 0), ifnull(sum(negative), 0)
FROM tally GROUP BY carrier, mode, status
"""
ROLLUP_TRANSIT = "SELECT carrier, mode, le, sum(shipments) FROM tally WHERE le IS NOT NULL GROUP BY carrier, mode, le"
ROLLUP_DUE = """
SELECT due_hour, carrier, mode, sum(sign) FROM facts WHERE sign = 1 AND due_hour IS NOT NULL GROUP BY due_hour, carrier, mode
"""
ROLLUP_HOUR = """
SELECT hour, sum(created), sum(delivered), ifnull(sum(delivered * on_time), 0), ifnull(sum(delivered * (NOT on_time)), 0)
FROM (SELECT created_hour AS hour, sum(sign) AS created, 0 AS delivered, NULL AS on_time
      FROM facts WHERE sign = 1 AND created_hour IS NOT NULL GROUP BY created_hour
      UNION ALL
      SELECT delivered_hour, 0, sum(sign), on_time
      FROM facts WHERE sign = 1 AND delivered_hour IS NOT NULL GROUP BY delivered_hour, on_time)
GROUP BY hour
"""
ROLLUP_EXCEPTION = "SELECT reason, sum(sign) FROM facts WHERE sign = 1 AND reason IS NOT NULL GROUP BY reason"
DELIVERED = """
SELECT 'on_time', ifnull(sum(on_time), 0) FROM rollup_lane
UNION ALL SELECT 'late', ifnull(sum(late), 0) FROM rollup_lane
UNION ALL SELECT 'not_evaluated', ifnull(sum(shipments - on_time - late), 0) FROM rollup_lane WHERE status = 'delivered'
"""
COUNT = """
INSERT INTO deliveries VALUES (:outcome, :now)
ON CONFLICT (outcome) DO UPDATE SET shipments = max(shipments + max(:now - :before, 0), :now)
"""
NAMES = "SELECT name FROM main.sqlite_master WHERE type IN ('table', 'view')"

Rollup = collections.namedtuple("Rollup", "table keys query")   # the first so many columns are the key
ROLLUPS = (
    Rollup("rollup_lane", 3, ROLLUP_LANE),
    Rollup("rollup_transit", 3, ROLLUP_TRANSIT),
    Rollup("rollup_due", 3, ROLLUP_DUE),
    Rollup("rollup_hour", 1, ROLLUP_HOUR),
    Rollup("rollup_exception", 1, ROLLUP_EXCEPTION),
)
TABLES = [rollup.table for rollup in ROLLUPS] + ["departed"]    # all that rebuild() fills or empties


def has(db, *names):
    return set(names) <= {name for name, in db.execute(NAMES)}


def present(db):
    """Whether this database has all that the functions here need; earlier versions of the schema have no rollups."""
    return has(db, "facts", *TABLES)


def tally(db):
    db.execute("DROP TABLE IF EXISTS temp.tally")
    db.execute(TALLY)


def delivered(db):
    """{outcome: shipments that are delivered now}, as the rollups have them."""
    return dict(db.execute(DELIVERED).fetchall())


def count(db, before):
    """Adds to the counters by how much more is delivered now than before. Version 4 has none."""
    if has(db, "deliveries"):
        for outcome, now in delivered(db).items():
            db.execute(COUNT, {"outcome": outcome, "now": now, "before": before[outcome]})


def rebuild(db):
    """Makes the rollups from the rows, inside the caller's transaction, and counts the deliveries that they did not have."""
    before = delivered(db)
    tally(db)
    db.execute("DELETE FROM departed")
    for rollup in ROLLUPS:
        db.execute("DELETE FROM " + rollup.table)
        db.execute("INSERT INTO %s %s" % (rollup.table, rollup.query))
    count(db, before)


def told(columns, values):
    return ", ".join("%s=%r" % pair for pair in zip(columns, values)) or "nothing"


def uncounted(db):
    """Yields a line for each counter of deliveries that is less than what is delivered now."""
    if not has(db, "deliveries"):
        return
    counters = dict(db.execute("SELECT outcome, shipments FROM deliveries"))
    for outcome, now in delivered(db).items():
        if counters.get(outcome, 0) < now:
            yield "deliveries outcome=%r: stored shipments=%d, at least %d are delivered now" % (
                outcome, counters.get(outcome, 0), now)


def differences(db):
    """Yields a line for each rollup row that is not what the rows say, and for each counter that cannot be."""
    tally(db)
    for rollup in ROLLUPS:
        columns = [row[1] for row in db.execute("PRAGMA table_info(%s)" % rollup.table)]
        stored, computed = ({row[:rollup.keys]: row for row in db.execute(query)}
                            for query in ("SELECT * FROM " + rollup.table, rollup.query))
        for key in sorted(stored.keys() | computed.keys()):
            if stored.get(key) != computed.get(key):
                yield "%s %s: stored %s, recomputed %s" % (
                    rollup.table, told(columns, key), told(columns[rollup.keys:], stored.get(key, ())[rollup.keys:]),
                    told(columns[rollup.keys:], computed.get(key, ())[rollup.keys:]))
    departed, = db.execute("SELECT count(*) FROM departed").fetchone()
    if departed:
        yield "departed: stored %d rows, recomputed none" % departed
    yield from uncounted(db)


def sizes(db):
    """How many shipments there are, and how many rollup rows."""
    shipments, = db.execute("SELECT count(*) FROM shipments").fetchone()
    return shipments, sum(db.execute("SELECT count(*) FROM " + rollup.table).fetchone()[0] for rollup in ROLLUPS)
