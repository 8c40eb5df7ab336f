"""The figures: each definition against rows whose answer is known."""

import calendar
import collections
import json
import re
import sqlite3
import time

import pytest

import exposition
import store
from conftest import ROOT, add_rows, make_database

NOW = calendar.timegm((2026, 3, 10, 15, 30, 0))  # 2026-03-10T15:30:00Z


def figures(path, now=NOW):
    return store.Store(str(path), 2, 60, clock=lambda: now).snapshot().figures


def metrics(path, history=0, now=NOW):
    return exposition.metrics_document(figures(path, now), history)


def shipment(reference, status="in_transit", **columns):
    return dict(columns, reference=reference, status=status)


@pytest.fixture
def document(tmp_path):
    """document(row, ...): the metrics of a database with these rows."""
    return lambda *rows: metrics(make_database(tmp_path / "a.db", rows))


def test_an_empty_database_has_zero_counts_and_nothing_evaluated(document):
    empty = document()
    assert empty["shipments"]["total"] == 0
    assert empty["shipments"]["by_status"] == dict.fromkeys(exposition.STATUSES, 0)
    assert empty["delivery"]["on_time_rate"] is None
    assert empty["delivery"]["transit_seconds"] == {"count": 0, "mean": None, "p50": None, "p95": None, "negative": 0}
    assert empty["by_carrier"] == empty["by_mode"] == []
    assert len(empty["daily"]) == 30


@pytest.mark.parametrize("promised, overdue", [
    ("2026-03-10T15:29:59Z", 1),   # a second ago, within this hour
    ("2026-03-10T15:30:00Z", 0),   # now: still kept if it happens now
    ("2026-03-10T15:59:59Z", 0),
    ("2026-03-10T14:59:59Z", 1),   # the hour before, from the rollup
    ("2026-03-09", 1),             # a day that has ended
    ("2026-03-10", 0),             # a day that has not
    (None, 0),
])
def test_a_promise_runs_out_at_its_instant_or_at_the_end_of_its_day(document, promised, overdue):
    assert document(shipment("a", promised_at=promised))["shipments"]["overdue"] == overdue


def test_a_day_that_ends_at_midnight_is_overdue_from_midnight_on(tmp_path):
    path = make_database(tmp_path / "a.db", [shipment("a", promised_at="2026-03-10")])
    midnight = calendar.timegm((2026, 3, 11, 0, 0, 0))
    assert [metrics(path, now=now)["shipments"]["overdue"] for now in (midnight - 1, midnight)] == [0, 1]


@pytest.mark.parametrize("status, overdue", [(status, int(status not in ("delivered", "returned", "cancelled")))
                                             for status in exposition.STATUSES])
def test_only_open_shipments_are_overdue(document, status, overdue):
    shipments = document(shipment("a", status, promised_at="2026-03-01"))["shipments"]
    assert (shipments["overdue"], shipments["open"], shipments["by_status"][status]) == (overdue, overdue, 1)


def test_overdue_shipments_fall_into_age_bands(document):
    hours_ago = [1, 23, 25, 71, 73, 167, 169, 1000]
    rows = [shipment("r%d" % hours, promised_at=exposition.instant(NOW - hours * 3600)) for hours in hours_ago]
    shipments = document(*rows)["shipments"]
    assert shipments["overdue_by_age"] == {"under_1_day": 2, "1_to_3_days": 2, "3_to_7_days": 2, "over_7_days": 2}
    assert shipments["overdue"] == 8


@pytest.mark.parametrize("promised, delivered, on_time, late_seconds", [
    ("2026-03-05", "2026-03-05T23:59:59Z", 1, None),
    ("2026-03-05", "2026-03-06T00:00:00Z", 0, 86400),
    ("2026-03-05", "2026-03-05", 1, None),
    ("2026-03-05T12:00:00Z", "2026-03-05T12:00:00Z", 1, None),
    ("2026-03-05T12:00:00Z", "2026-03-05T12:00:01Z", 0, 1),
    ("2026-03-05T12:00:00Z", "2026-03-05", 1, None),
    ("2026-03-05T12:00:00Z", "2026-03-06", 0, 86400),
])
def test_punctuality_is_judged_at_the_coarser_of_the_two_precisions(document, promised, delivered, on_time, late_seconds):
    delivery = document(shipment("a", "delivered", promised_at=promised, delivered_at=delivered))["delivery"]
    assert (delivery["evaluated"], delivery["on_time"], delivery["late"]) == (1, on_time, 1 - on_time)
    assert delivery["late_seconds"]["mean"] == late_seconds


def test_the_rate_is_over_delivered_shipments_with_both_dates(document):
    delivery = document(
        shipment("on time", "delivered", promised_at="2026-03-05", delivered_at="2026-03-04"),
        shipment("late", "delivered", promised_at="2026-03-05", delivered_at="2026-03-08"),
        shipment("no promise", "delivered", delivered_at="2026-03-08"),
        shipment("no date", "delivered", promised_at="2026-03-08"),
        shipment("cancelled", "cancelled", promised_at="2026-03-05", delivered_at="2026-03-08"))["delivery"]
    assert (delivery["delivered"], delivery["evaluated"], delivery["on_time_rate"]) == (4, 2, 0.5)


def test_transit_counts_from_shipping_else_from_creation_and_sets_negative_ones_aside(document):
    transit = document(
        shipment("a", "delivered", created_at="2026-03-01", shipped_at="2026-03-03", delivered_at="2026-03-05"),
        shipment("b", "delivered", created_at="2026-03-01", delivered_at="2026-03-05"),
        shipment("c", "delivered", created_at="2026-03-06", delivered_at="2026-03-05"),
        shipment("d", "delivered", delivered_at="2026-03-05"))["delivery"]["transit_seconds"]
    assert (transit["count"], transit["negative"], transit["mean"]) == (2, 1, 3 * 86400)


def test_percentiles_are_interpolated_within_their_bucket():
    counts, bounds = collections.Counter({20: 2, 40: 2}), [10, 20, 40, 2 ** 63 - 1]
    assert [exposition.quantile(counts, bounds, q) for q in (.25, .5, .75, 1)] == [15, 20, 30, 40]


def test_a_percentile_in_the_unbounded_bucket_is_the_bound_below_it(document):
    transit = document(shipment("a", "delivered", created_at="2020-01-01", delivered_at="2026-03-05"))["delivery"]["transit_seconds"]
    assert transit["p50"] == transit["p95"] == 730 * 86400


def test_carriers_and_modes_hold_the_same_figures_as_the_whole(document):
    rows = [shipment("a", "delivered", carrier="x", mode="air", promised_at="2026-03-05", delivered_at="2026-03-04"),
            shipment("b", "exception", carrier="x", mode="road", promised_at="2026-03-05", exception_reason="weather"),
            shipment("c", carrier=None, promised_at="2026-03-05")]
    answer = document(*rows)
    assert [(lane["carrier"], lane["shipments"], lane["overdue"], lane["exception"]) for lane in answer["by_carrier"]] == [
        ("x", 2, 1, 1), (None, 1, 1, 0)]
    assert [(lane["mode"], lane["shipments"]) for lane in answer["by_mode"]] == [(None, 1), ("air", 1), ("road", 1)]
    assert sum(lane["overdue"] for lane in answer["by_mode"]) == answer["shipments"]["overdue"] == 2
    assert answer["shipments"]["exceptions_by_reason"] == [{"reason": "weather", "shipments": 1}]


def test_transit_times_are_those_of_each_carrier_and_mode(document):
    rows = [shipment(carrier + mode, "delivered", carrier=carrier, mode=mode, created_at="2026-03-01", delivered_at="2026-03-%02d" % day)
            for carrier, mode, day in (("x", "air", 2), ("x", "road", 4), ("y", "road", 8))]
    answer = document(*rows)
    assert [(lane["carrier"], lane["transit_seconds"]["p95"] // 86400) for lane in answer["by_carrier"]] == [("x", 2), ("y", 6)]
    assert [(lane["mode"], lane["transit_seconds"]["p95"] // 86400) for lane in answer["by_mode"]] == [("road", 6), ("air", 0)]
    assert answer["delivery"]["transit_seconds"]["p95"] // 86400 == 6


def test_carriers_beyond_a_bound_are_counted_and_left_out_of_the_list(document, monkeypatch):
    monkeypatch.setattr(exposition, "CARRIERS", 2)
    answer = document(*[shipment(str(i), carrier="abbc"[i]) for i in range(4)])
    assert [lane["carrier"] for lane in answer["by_carrier"]] == ["b", "a"]
    assert (answer["carriers_omitted"], answer["shipments"]["total"]) == (1, 4)


@pytest.mark.parametrize("column", ["reference", "carrier", "mode", "service", "origin", "destination", "status", "created_at",
                                    "weight_kg", "currency", "exception_reason", "updated_at"])
def test_bytes_are_no_text_in_any_column(database, column):
    with pytest.raises(sqlite3.IntegrityError):
        add_rows(sqlite3.connect(str(database)), [dict(shipment("a"), **{column: b"ABC"})])


def test_exceptions_are_listed_by_their_number(document):
    rows = [shipment(str(i), "exception", exception_reason=reason) for i, reason in enumerate(["a", "b", "b", None])]
    assert document(*rows)["shipments"]["exceptions_by_reason"] == [
        {"reason": "b", "shipments": 2}, {"reason": None, "shipments": 1}, {"reason": "a", "shipments": 1}]


def test_days_and_hours_are_zero_filled_and_end_now(tmp_path):
    path = make_database(tmp_path / "b.db", [
        shipment("a", created_at="2026-03-10T15:00:00Z"), shipment("b", created_at="2026-03-10"),
        shipment("c", "delivered", promised_at="2026-03-08", delivered_at="2026-03-09T01:00:00Z"),
        shipment("future", created_at="2026-03-10T16:00:00Z")])
    answer = metrics(path, history=16)
    assert [(day["date"], day["created"]) for day in answer["daily"]][-2:] == [("2026-03-09", 0), ("2026-03-10", 2)]
    assert answer["daily"][-2]["late"] == 1 and answer["daily"][-2]["on_time_rate"] == 0
    assert [hour["hour"] for hour in answer["history"]] == ["2026-03-10T%02d" % hour for hour in range(16)]
    assert [hour["created"] for hour in answer["history"]] == [1] + [0] * 14 + [1]
    assert answer["history"][1] == {"hour": "2026-03-10T01", "created": 0, "delivered": 0, "on_time": 0, "late": 0,
                                    "on_time_rate": None}
    assert "history" not in metrics(path)


def test_the_longest_history_lies_within_what_is_read(tmp_path):
    first = exposition.hour_of(NOW - 671 * 3600)
    path = make_database(tmp_path / "b.db", [shipment("a", created_at=first + ":00:00Z")])
    assert metrics(path, history=672)["history"][0]["created"] == 1


def test_changes_dated_in_the_future_do_not_make_the_data_fresh(tmp_path):
    path = make_database(tmp_path / "a.db", [shipment("a", updated_at="2026-03-10T15:00:00Z"),
                                             shipment("b", updated_at="2099-01-01T00:00:00Z")])
    assert (figures(path).newest_change, figures(path).future_changes) == ("2026-03-10T15:00:00Z", 1)


def test_a_change_of_this_very_second_is_not_in_the_future(tmp_path):
    path = make_database(tmp_path / "a.db", [shipment(str(i), updated_at=exposition.instant(NOW + i)) for i in range(3)])
    assert (figures(path).newest_change, figures(path).future_changes) == (exposition.instant(NOW), 2)


def test_every_scrape_query_reads_by_index_and_never_the_whole_table(database):
    connection = sqlite3.connect(str(database))
    moment = dict.fromkeys(["now", "hour", "since", "band0", "band1", "band2"], "2026-03-10T15")
    for sql in (store.OVERDUE, store.NEWEST_CHANGE, store.FUTURE_CHANGES):
        plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + sql, moment)]
        reads = [step for step in plan if "shipments" in step]
        assert reads and all("USING" in step and "INDEX" in step and not step.startswith("SCAN") for step in reads), plan


def test_the_answer_is_json_without_nan_whatever_the_numbers(document):
    rows = [shipment("a", weight_kg=0.0, cost=-1.5, carrier="<script>\u202e\U0001f69a" + "x" * 500)]
    assert json.loads(json.dumps(document(*rows), allow_nan=False))["by_carrier"][0]["carrier"].startswith("<script>")


def test_the_statuses_are_those_of_the_schema():
    listed = re.search(r"status IN \(([^)]*)\)", (ROOT / "schema.sql").read_text()).group(1)
    assert list(exposition.STATUSES) == re.findall(r"'(\w+)'", listed)


COLUMNS = {"reference": "other", "carrier": "c", "mode": "air", "service": "s", "origin": "o", "destination": "d",
           "status": "exception", "created_at": "2026-01-01", "shipped_at": "2026-01-01", "promised_at": "2026-01-01",
           "delivered_at": "2026-01-01", "weight_kg": 1.5, "cost": 2.5, "currency": "EUR", "exception_reason": "weather"}


@pytest.mark.parametrize("column", COLUMNS)
def test_an_update_is_stamped_when_it_changes_something_and_only_then(tmp_path, column):
    long_ago = "2020-01-01T00:00:00Z"
    connection = sqlite3.connect(str(make_database(tmp_path / "a.db", [shipment("a", updated_at=long_ago)])))

    def stamped(value, also=""):
        connection.execute("UPDATE shipments SET %s = ?%s" % (column, also), (value,))
        return connection.execute("SELECT updated_at FROM shipments").fetchone()[0] != long_ago

    before = connection.execute("SELECT %s FROM shipments" % column).fetchone()[0]
    assert not stamped(before)
    assert stamped(COLUMNS[column])
    assert not stamped(before, ", updated_at = '%s'" % long_ago)


def test_an_instant_reads_back_as_written():
    assert exposition.unix_time(exposition.instant(NOW)) == NOW
    assert exposition.unix_time("2026-07-01T00:00:00Z") == calendar.timegm(time.strptime("2026-07-01", "%Y-%m-%d"))
