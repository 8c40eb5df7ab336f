"""The counters of deliveries: what each change of a shipment adds to them, and that nothing takes any away."""

import collections
import contextlib
import random
import sqlite3

import pytest

import exposition
import rollups
import steps
from conftest import ROOT, add_rows, make_database
from test_metrics import metrics
from test_seed import ask, opened, random_change, seed

KEPT = dict(status="delivered", promised_at="2026-03-05", delivered_at="2026-03-04")
LATE = dict(KEPT, delivered_at="2026-03-06")
UNDATED = dict(KEPT, delivered_at=None)
OPEN = dict(KEPT, status="in_transit", delivered_at=None)
CHANGE = "UPDATE shipments SET status = :status, promised_at = :promised_at, delivered_at = :delivered_at"


def counters(db):
    """(on time, late, not evaluated)."""
    totals = dict(db.execute("SELECT outcome, shipments FROM deliveries"))
    assert sorted(totals) == sorted(exposition.OUTCOMES)
    return tuple(totals[outcome] for outcome in exposition.OUTCOMES)


@pytest.fixture
def db():
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript((ROOT / "schema.sql").read_text(encoding="utf-8"))
        yield connection


@pytest.mark.parametrize("life, counted", [
    ([OPEN], (0, 0, 0)),
    ([KEPT], (1, 0, 0)),
    ([LATE], (0, 1, 0)),
    ([UNDATED], (0, 0, 1)),
    ([OPEN, KEPT], (1, 0, 0)),
    ([OPEN, KEPT, KEPT], (1, 0, 0)),                            # nothing changes
    ([OPEN, KEPT, dict(KEPT, delivered_at="2026-03-02")], (1, 0, 0)),   # another day, the same outcome
    ([OPEN, LATE, KEPT], (1, 1, 0)),                            # a correction
    ([OPEN, LATE, KEPT, LATE], (1, 2, 0)),
    ([OPEN, UNDATED, LATE], (0, 1, 1)),                         # the date came later
    ([OPEN, KEPT, OPEN, KEPT], (2, 0, 0)),                      # taken back, and delivered again
    ([OPEN, KEPT, dict(KEPT, status="returned")], (1, 0, 0)),
])
def test_a_delivery_counts_when_its_outcome_becomes_another(db, life, counted):
    add_rows(db, [dict(life[0], reference="a")])
    for moment in life[1:]:
        db.execute(CHANGE, moment)
    assert counters(db) == counted and list(rollups.differences(db)) == []


def test_a_change_of_the_carrier_counts_nothing(db):
    add_rows(db, [dict(KEPT, reference="a")])
    db.execute("UPDATE shipments SET carrier = 'A', mode = 'air', created_at = '2026-03-01', id = 7")
    assert counters(db) == (1, 0, 0)


def test_deleting_a_shipment_takes_nothing_away(db):
    add_rows(db, [dict(KEPT, reference="a"), dict(LATE, reference="b")])
    db.execute("DELETE FROM shipments")
    assert counters(db) == (1, 1, 0) and list(rollups.differences(db)) == []


def test_one_statement_may_change_many_rows(db):
    add_rows(db, [dict(OPEN, reference=str(number)) for number in range(20)])
    db.execute("UPDATE shipments SET status = 'delivered', delivered_at = CASE id % 2 WHEN 1 THEN '2026-03-04' ELSE '2026-03-09' END")
    assert counters(db) == (10, 10, 0)


def test_a_change_that_is_rolled_back_counts_nothing(db):
    add_rows(db, [dict(OPEN, reference="a")])
    db.execute("BEGIN")
    db.execute(CHANGE, KEPT)
    db.execute("ROLLBACK")
    assert counters(db) == (0, 0, 0)


def outcomes(db):
    """{reference: outcome} of the delivered shipments, by the definitions in docs/metrics.md."""
    rows = db.execute("SELECT id, promised_at, delivered_at FROM shipments WHERE status = 'delivered'").fetchall()
    return {key: "not_evaluated" if None in (promised, delivered) else
            "on_time" if delivered[:len(promised)] <= promised[:len(delivered)] else "late" for key, promised, delivered in rows}


def test_the_counters_follow_thousands_of_random_changes(db):
    rng, model, before = random.Random(20261123), collections.Counter(), {}
    for step in range(4000):
        with contextlib.suppress(sqlite3.IntegrityError):
            random_change(db, rng)
        now = outcomes(db)
        moved = {key: before.get(key - 1000) for key in now if key not in before and key - 1000 not in now}     # to another id
        model.update(outcome for key, outcome in now.items() if before.get(key, moved.get(key)) != outcome)
        before = now
        assert counters(db) == tuple(model[outcome] for outcome in exposition.OUTCOMES), "after step %d" % step
    assert sum(counters(db)) > len(now) > 5


def test_a_large_load_counts_what_it_brings(tmp_path):
    path = tmp_path / "shipments.db"
    assert seed(path, "--rows", 300).returncode == 0
    with opened(path) as db:
        first = counters(db)
        assert sum(first) == ask(path, "SELECT count(*) FROM shipments WHERE status = 'delivered'")[0][0] > 100
        db.execute("DELETE FROM shipments WHERE id % 3 = 0")
    assert seed(path, "--rows", 300, "--append").returncode == 0
    with opened(path) as db:
        assert sum(counters(db)) > sum(first) + 100 and all(now >= then for now, then in zip(counters(db), first))


def test_a_rebuild_leaves_them_and_adds_what_the_triggers_did_not_see(db):
    add_rows(db, [dict(KEPT, reference="a"), dict(LATE, reference="b")])
    db.execute("UPDATE shipments SET delivered_at = '2026-03-04'")
    assert counters(db) == (2, 1, 0)
    rollups.rebuild(db)
    assert counters(db) == (2, 1, 0)
    db.execute("DROP TRIGGER shipments_insert")
    add_rows(db, [dict(KEPT, reference="c"), dict(UNDATED, reference="d")])
    rollups.rebuild(db)
    assert counters(db) == (3, 1, 1)


def test_a_counter_below_what_is_there_is_told_and_mended(tmp_path):
    path = make_database(tmp_path / "shipments.db", [dict(KEPT, reference="a"), dict(LATE, reference="b")])
    with opened(path) as db:
        db.execute("UPDATE deliveries SET shipments = 0 WHERE outcome = 'late'")
        db.execute("DELETE FROM deliveries WHERE outcome = 'on_time'")
    done = seed(path, "--verify")
    assert done.returncode == 1 and done.stdout.splitlines()[:2] == [
        "deliveries outcome='on_time': stored shipments=0, at least 1 are delivered now",
        "deliveries outcome='late': stored shipments=0, at least 1 are delivered now"]
    assert seed(path, "--rebuild").returncode == 0 and seed(path, "--verify").returncode == 0
    with opened(path) as db:
        assert counters(db) == (1, 1, 0)


def test_the_step_begins_them_with_the_deliveries_that_are_there(db):
    old = sqlite3.connect(":memory:", isolation_level=None)
    for step in steps.read_steps()[:5]:
        for statement in step.settings + step.statements:
            old.execute(statement)
        if step.number == 1:
            add_rows(old, [dict(KEPT, reference="a"), dict(LATE, reference="b"), dict(LATE, reference="c"),
                           dict(UNDATED, reference="d"), dict(OPEN, reference="e")])
    assert counters(old) == (1, 2, 1)
    old.execute(CHANGE + " WHERE reference = 'e'", KEPT)
    assert counters(old) == (2, 2, 1)


def test_the_document_has_them_beside_what_is_true_now(tmp_path):
    path = make_database(tmp_path / "shipments.db", [dict(LATE, reference="a"), dict(LATE, reference="b")])
    with opened(path) as db:
        db.execute("UPDATE shipments SET delivered_at = '2026-03-01' WHERE reference = 'a'")
    delivery = metrics(path)["delivery"]
    assert (delivery["on_time"], delivery["late"]) == (1, 1)
    assert delivery["deliveries_total"] == {"on_time": 1, "late": 2, "not_evaluated": 0}


def test_a_rebuild_lowers_no_counter_though_the_triggers_missed_a_deletion(db):
    add_rows(db, [dict(KEPT, reference=str(number)) for number in range(3)])
    db.execute("DROP TRIGGER shipments_delete")
    db.execute("DELETE FROM shipments WHERE reference < '2'")
    db.execute("BEGIN")
    rollups.rebuild(db)
    assert counters(db) == (3, 0, 0) and list(rollups.differences(db)) == []
