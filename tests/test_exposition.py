"""/metrics for scrapers: both text formats byte for byte, by a strict parser and by promtool, and how a client gets which."""

import collections
import gzip
import os
import re
import signal
import sqlite3
import subprocess
import time

import pytest

import eventlog
import exposition
import latency
import metrics_service
import negotiation
import openmetrics
import store
import supervision
import webserver
from conftest import ROOT, add_rows, make_database, turn_second, wait_for
from test_metrics import figures, shipment

EXPECTED = ROOT / "tests" / "exposition"
FORMATS = {"text": openmetrics.TEXT, "openmetrics": openmetrics.OPENMETRICS}
ROUTES = ["/", "/healthz", "/livez", "/metrics", "/readyz", "/runbook", "other"]
HOSTILE = ['a"b', "back\\slash", "new\nline", "\\n", "tab\tand\rreturn", "nul\0", "{},=# EOF\n# EOF",
           "\U0001f69a\u2028\ufeff", "x" * 5000, "other", "unknown", "", " ", 'a"} 1\nlogistics_up 0']
SMALL = [
    shipment("1", "delivered", carrier="Acme", mode="road", created_at="2026-03-01", promised_at="2026-03-05",
             delivered_at="2026-03-04"),
    shipment("2", "delivered", carrier="Acme", mode="road", created_at="2026-03-01T00:00:00Z", promised_at="2026-03-05",
             delivered_at="2026-03-06T12:00:00Z"),
    shipment("3", "delivered", carrier='Ann "Fast" \\ Co.\nLtd', mode="air", delivered_at="2026-03-06"),
    shipment("4", "exception", carrier='Ann "Fast" \\ Co.\nLtd', mode="air", exception_reason="customs",
             promised_at="2026-03-05"),
    shipment("5", "exception", promised_at="2026-03-10T15:00:00Z"),
]
SMALL = [dict(row, updated_at="2026-03-10T15:00:00Z") for row in SMALL]
BLOCKS = {
    "service": {"version": "0.1.0", "python": "3.6.15", "sqlite": "3.26.0", "started_at": "2026-03-10T13:00:00Z"},
    "database": {"figures_at": "2026-03-10T15:30:00Z", "schema_version": 5, "size_bytes": 102400,
                 "queries_total": 9, "failures": {"locked": 2, "missing": 1}, "replaced_total": 1,
                 "query_seconds": {"sum": 0.0225, "buckets": [
                     {"le": le, "count": 9 if le is None or le >= .0025 else 2} for le in latency.BOUNDS + (None,)]}},
    "requests": {"in_flight": 1, "by_route": {"/metrics": {"200": 7, "500": 1, "503": 2}, "other": {"404": 1}},
                 "latency_seconds": {"sum": 0.05, "buckets": [
                     {"le": le, "count": 11 if le is None or le >= .005 else 6}
                     for le in latency.BOUNDS + (None,)]}},
    "connections": {"open": 2, "limit": 2048, "accepted_total": 12, "refused_total": 0, "evicted_total": 1,
                    "head_timeouts_total": 2, "idle_timeouts_total": 3, "write_timeouts_total": 4, "tls_failures_total": 5},
    "tls": {"expires_at": "2026-06-01T00:00:00Z"},
    "logging": {"errors_total": 4, "fallbacks_total": 1, "fallback": True, "lost_lines_total": 0,
                "thinned_lines_total": 1995},
}
USAGE = supervision.Usage(1773147599.25, 1.5, 27262976, 310378496, 14, 1024)
STATE = openmetrics.State(None, False, False, ROUTES, store.REASONS, USAGE)


def written(form, now, blocks=BLOCKS, state=STATE):
    return openmetrics.write(FORMATS[form], openmetrics.values(now, blocks, state)).decode("utf-8")


# A parser of both formats that takes nothing which is not exactly as their specifications want it, and less: no timestamps

META = re.compile(r"# (HELP|TYPE|UNIT) ([a-zA-Z_][a-zA-Z0-9_]*) (\S.*)")
SAMPLE = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(?:\{(.+)\})? (-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|\+Inf)", re.DOTALL)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)')
ENDINGS = {"gauge": [""], "counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"]}
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Bad(Exception):
    pass


def require(condition, words):
    if not condition:
        raise Bad(words)


def read_labels(text):
    labels, at = {}, 0
    while at < len(text or ""):
        match = LABEL.match(text, at)
        require(match and match.group(1) not in labels, "labels")
        labels[match.group(1)] = re.sub(r"\\.", lambda escape: UNESCAPED[escape.group()], match.group(2))
        at = match.end()
    return labels


def check_bound(le, form):
    if le != "+Inf":
        digits = "%e" % float(le)
        mantissa, exponent = digits.split("e")
        wanted = "%.12g" % float(le) if float(le) < 1e6 else mantissa.rstrip("0").rstrip(".") + "e" + exponent
        plain = form == "openmetrics" and not re.search("[.e]", wanted)
        require(le == wanted + (".0" if plain else ""), "le is not canonical")


class Parser:
    """Reads line by line; `series` is {(sample name, labels as sorted pairs): value}. Raises Bad."""

    def __init__(self, form):
        self.form, self.order = form, ("TYPE", "UNIT", "HELP") if form == "openmetrics" else ("HELP", "TYPE")
        self.name, self.head, self.samples = None, {}, []
        self.seen, self.series = set(), {}

    def read(self, line):
        meta, sample = META.fullmatch(line), SAMPLE.fullmatch(line)
        require(meta or sample, "the line")
        if meta:
            self.read_meta(*meta.groups())
        else:
            self.read_sample(sample.group(1), read_labels(sample.group(2)), float(sample.group(3)))

    def read_meta(self, word, name, value):
        if name != self.name:
            self.end_family()
            require(name not in self.seen, "a family that comes twice")
            self.seen.add(name)
            self.name, self.head, self.samples = name, {}, []
        require(word in self.order and not self.samples, "metadata")
        require(all(self.order.index(word) > self.order.index(former) for former in self.head), "the order of metadata")
        self.head[word] = value

    def endings(self):
        """What a sample's name has behind that of its family."""
        kind, text = self.head["TYPE"], self.form == "text"
        require(kind in ENDINGS and not (text and kind == "info"), "the type")
        require(kind != "counter" or self.name.endswith("_total") == text, "a counter without _total, or twice")
        return [""] if text and kind == "counter" else ENDINGS[kind]

    def read_sample(self, name, labels, value):
        require({"TYPE", "HELP"} <= set(self.head), "TYPE and HELP are due")
        suffix = name[len(self.name):]
        require(name.startswith(self.name) and suffix in self.endings(), "a sample of another family")
        require(("le" in labels) == (suffix == "_bucket"), "le")
        key = name, tuple(sorted(labels.items()))
        require(key not in self.series, "a series that comes twice")
        self.series[key] = value
        self.samples.append((suffix, labels, value))

    def end_family(self):
        """What the samples of a family must be among themselves."""
        if not self.name:
            return
        require(self.samples, "a family without samples")
        require("UNIT" not in self.head or self.name.endswith("_" + self.head["UNIT"]), "the unit is no suffix")
        kind, values = self.head["TYPE"], [value for _, _, value in self.samples]
        require(kind != "info" or values == [1], "an info that is not 1")
        require(kind != "counter" or min(values) >= 0, "a counter below 0")
        if kind == "histogram":
            require([suffix for suffix, _, _ in self.samples[-2:]] == ["_sum", "_count"], "sum and count")
            self.end_histogram([(labels["le"], value) for suffix, labels, value in self.samples if suffix == "_bucket"])

    def end_histogram(self, buckets):
        bounds, counts = [float(le) for le, _ in buckets], [value for _, value in buckets]
        require(bounds == sorted(set(bounds)) and bounds[-1] == float("inf"), "le order")
        require(counts == sorted(counts) and counts[-1] == self.samples[-1][2], "bucket counts")
        for le, _ in buckets:
            check_bound(le, self.form)


def parse(text, form):
    """{(sample name, labels as sorted pairs): value}. Raises Bad."""
    require(text.endswith("\n"), "the last line has no end")
    lines, parser = text[:-1].split("\n"), Parser(form)
    if form == "openmetrics":
        require(lines.pop() == "# EOF", "EOF")
    for line in lines:
        parser.read(line)
    parser.end_family()
    return parser.series


def numbers(text, form):
    """What parse() gives, with each le as a number: the one thing in which the formats differ."""
    return {(name, tuple((label, float(value) if label == "le" else value) for label, value in labels)): value
            for (name, labels), value in parse(text, form).items()}


def one(series, name, **labels):
    return series[name, tuple(sorted(labels.items()))]


def by_label(series, name):
    """{label value: value} of a family with one label."""
    return {labels[0][1]: value for (found, labels), value in series.items() if found == name}


def promtool(text):
    """What promtool has to say against the text."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text.encode("utf-8"), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    return done.stdout.decode() or done.returncode


GOOD = {"text": """\
# HELP a_total x
# TYPE a_total counter
a_total{b="1"} 1
a_total{b="2"} 2
# HELP h_seconds x
# TYPE h_seconds histogram
h_seconds_bucket{le="1"} 1
h_seconds_bucket{le="+Inf"} 2
h_seconds_sum 1.5
h_seconds_count 2
""", "openmetrics": """\
# TYPE a counter
# HELP a x
a_total{b="1"} 1
a_total{b="2"} 2
# TYPE h_seconds histogram
# UNIT h_seconds seconds
# HELP h_seconds x
h_seconds_bucket{le="1.0"} 1
h_seconds_bucket{le="+Inf"} 2
h_seconds_sum 1.5
h_seconds_count 2
# EOF
"""}


@pytest.mark.parametrize("form", FORMATS)
def test_the_parser_takes_what_is_good(form):
    assert parse(GOOD[form], form)["a_total", (("b", "2"),)] == 2


@pytest.mark.parametrize("form, old, new, words", [
    ("text", '{b="2"}', '{b="1"}', "a series that comes twice"),
    ("text", '{b="2"}', '{b="2",b="2"}', "labels"),
    ("text", '{b="2"}', '{b="\\x"}', "labels"),
    ("text", 'a_total{b="2"} 2\n', "h_seconds_count 2\n", "a sample of another family"),
    ("text", "h_seconds_count 2\n", 'h_seconds_count 2\na_total{b="3"} 1\n', "a sample of another family"),
    ("text", "h_seconds_count 2\n", "h_seconds_count 2\n# TYPE a_total counter\na_total 1\n", "a family that comes twice"),
    ("text", "# HELP a_total x\n# TYPE a_total counter\n", "# TYPE a_total counter\n# HELP a_total x\n", "the order of metadata"),
    ("text", "# HELP a_total x\n", "", "TYPE and HELP are due"),
    ("text", "h_seconds_count 2", "h_seconds_count 3", "bucket counts"),
    ("text", 'le="1"', 'le="1.0"', "le is not canonical"),
    ("text", 'le="+Inf"', 'le="0.5"', "le order"),
    ("text", "h_seconds_sum 1.5\n", "", "sum and count"),
    ("text", "2\n# HELP h", "2 1773147599\n# HELP h", "the line"),
    ("text", "2\n# HELP h", "-2\n# HELP h", "a counter below 0"),
    ("text", "2\n# HELP h", "2\n\n# HELP h", "the line"),
    ("text", "h_seconds_count 2\n", "h_seconds_count 2", "the last line has no end"),
    ("openmetrics", "# EOF\n", "", "EOF"),
    ("openmetrics", "# EOF\n", "# EOF\n# EOF\n", "the line"),
    ("openmetrics", 'le="1.0"', 'le="1"', "le is not canonical"),
    ("openmetrics", "# UNIT h_seconds seconds", "# UNIT h_seconds bytes", "the unit is no suffix"),
    ("openmetrics", "# UNIT h_seconds seconds\n# HELP h_seconds x\n", "# HELP h_seconds x\n# UNIT h_seconds seconds\n",
     "the order of metadata"),
    ("openmetrics", "# TYPE a counter\n# HELP a x", "# TYPE a_total counter\n# HELP a_total x",
     "a counter without _total, or twice"),
    ("openmetrics", "# EOF", "# TYPE b gauge\n# HELP b x\n# EOF", "a family without samples"),
])
def test_the_parser_refuses_what_is_not(form, old, new, words):
    assert GOOD[form].count(old) == 1
    with pytest.raises(Bad, match=words):
        parse(GOOD[form].replace(old, new), form)


# What is written

@pytest.fixture
def database_of(tmp_path):
    """database_of(row, ...): the figures of a database with these rows."""
    return lambda *rows: figures(make_database(tmp_path / "a.db", rows))


@pytest.mark.parametrize("form", FORMATS)
def test_a_small_database_is_written_byte_for_byte_as_expected(database_of, form):
    assert written(form, database_of(*SMALL)) == (EXPECTED / form).read_text(encoding="utf-8")


def carriers(number):
    """Rows of so many carriers, of which the first has most shipments."""
    return [shipment("%d-%d" % (place, row), carrier="Carrier %03d" % place, mode="road", promised_at="2026-03-01")
            for place in range(number) for row in range(2 if place == 0 else 1)]


def hostile():
    names = [name for name in HOSTILE if name]
    return [shipment("c%d" % i, carrier=name) for i, name in enumerate(names)] + [
        shipment("e%d" % i, "exception", exception_reason=name) for i, name in enumerate(names)]


CASES = {"small": SMALL, "empty": [], "hostile": hostile(), "many": carriers(openmetrics.CARRIERS + 50)}


@pytest.mark.parametrize("case", CASES)
def test_the_formats_have_the_same_numbers_whatever_the_data_and_promtool_has_nothing_to_say(database_of, case):
    now = database_of(*CASES[case])
    assert numbers(written("text", now), "text") == numbers(written("openmetrics", now), "openmetrics")
    assert promtool(written("text", now)) == 0


def test_without_figures_the_rest_is_still_valid():
    blocks = dict(BLOCKS, tls=None, database=dict(BLOCKS["database"], figures_at=None, schema_version=None))
    state = STATE._replace(reason="missing", usage=None)
    text = written("text", None, blocks, state)
    series = numbers(text, "text")
    assert series == numbers(written("openmetrics", None, blocks, state), "openmetrics")
    assert promtool(text) == 0
    assert (one(series, "logistics_up"), one(series, "logistics_stale")) == (0, 0)
    assert one(series, "logistics_database_trouble", reason="missing") == 1
    assert one(series, "logistics_last_success_timestamp_seconds") == one(series, "logistics_schema_version") == 0
    assert not [name for name, _ in series if re.search("shipments|transit|process_|tls_certificate", name)]


def test_the_numbers_are_those_of_the_json_answer(database_of):
    now = database_of(*SMALL + carriers(30))
    document, series = exposition.metrics_document(now, 0), numbers(written("text", now), "text")
    shipments, delivery = document["shipments"], document["delivery"]
    assert by_label(series, "logistics_shipments") == dict(shipments["by_status"], unknown=0)
    assert by_label(series, "logistics_overdue_shipments") == shipments["overdue_by_age"]
    assert by_label(series, "logistics_exception_shipments") == {
        entry["reason"] or "unknown": entry["shipments"] for entry in shipments["exceptions_by_reason"]}
    assert by_label(series, "logistics_delivered_shipments") == {
        "on_time": delivery["on_time"], "late": delivery["late"], "not_evaluated": delivery["delivered"] - delivery["evaluated"]}
    for label, prefix in (("carrier", "logistics_carrier_"), ("mode", "logistics_mode_")):
        for lane in document["by_" + label]:
            name = {label: lane[label] or "unknown"}
            assert one(series, prefix + "shipments", **name) == lane["shipments"]
            assert one(series, prefix + "overdue_shipments", **name) == lane["overdue"]
    transit = delivery["transit_seconds"]
    assert one(series, "logistics_transit_seconds_count") == transit["count"]
    assert one(series, "logistics_transit_seconds_sum") == transit["mean"] * transit["count"]
    for lane in document["by_carrier"]:
        name = {"carrier": lane["carrier"] or "unknown", "outcome": "late"}
        assert one(series, "logistics_carrier_delivered_shipments", **name) == lane["late"]


def test_a_percentile_of_the_buckets_is_that_of_the_json_answer(database_of):
    now = database_of(*[shipment(str(day), "delivered", created_at="2026-03-01", delivered_at="2026-03-%02d" % day)
                        for day in range(2, 9)])
    buckets = sorted(by_label(numbers(written("text", now), "text"), "logistics_transit_seconds_bucket").items())
    counts, before = collections.Counter(), 0
    for bound, count in buckets:
        counts[bound], before = count - before, count
    p50 = exposition.quantile(counts, [bound for bound, _ in buckets], .5)
    assert p50 == exposition.metrics_document(now, 0)["delivery"]["transit_seconds"]["p50"]


def test_every_known_series_is_there_from_the_start(database_of):
    series = numbers(written("text", database_of(), dict(BLOCKS, requests=dict(BLOCKS["requests"], by_route={}))), "text")
    assert by_label(series, "logistics_shipments") == dict.fromkeys(exposition.STATUSES + ("unknown",), 0)
    assert by_label(series, "logistics_mode_shipments") == dict.fromkeys(openmetrics.MODES + ("unknown",), 0)
    assert set(by_label(series, "logistics_database_query_failures_total")) == set(store.REASONS)
    assert by_label(series, "logistics_http_errors_total") == dict.fromkeys(ROUTES, 0)
    assert one(series, "logistics_newest_change_timestamp_seconds") == 0


def test_carriers_and_reasons_beyond_a_bound_are_one_series_and_counted(database_of, monkeypatch):
    monkeypatch.setattr(openmetrics, "CARRIERS", 2)
    monkeypatch.setattr(openmetrics, "REASONS", 1)
    rows = carriers(5) + [shipment("e%d" % i, "exception", exception_reason="abb"[i]) for i in range(3)]
    series = numbers(written("text", database_of(*rows)), "text")
    assert by_label(series, "logistics_carrier_shipments") == {"unknown": 3, "Carrier 000": 2, "other": 4}
    assert by_label(series, "logistics_carrier_overdue_shipments") == {"unknown": 0, "Carrier 000": 2, "other": 4}
    assert by_label(series, "logistics_exception_shipments") == {"b": 2, "other": 1}
    assert (one(series, "logistics_other_carriers"), one(series, "logistics_other_exception_reasons")) == (4, 1)


def test_a_hostile_name_is_told_as_it_is_and_makes_no_series_but_its_own(database_of):
    names = by_label(parse(written("openmetrics", database_of(*hostile())), "openmetrics"), "logistics_carrier_shipments")
    assert set(names) == {name[:100] or "unknown" for name in HOSTILE}
    assert names["unknown"] == len(hostile()) / 2 + 1     # no carrier, and the one that is called so


def test_names_that_become_the_same_are_one_series(database_of):
    rows = [shipment(str(i), carrier="x" * 100 + str(i), promised_at="2026-03-01") for i in range(3)]
    series = numbers(written("text", database_of(*rows)), "text")
    for name in ("logistics_carrier_shipments", "logistics_carrier_overdue_shipments"):
        assert by_label(series, name) == {"x" * 100: 3}


def test_a_status_or_mode_that_the_schema_forbids_is_counted_as_unknown(tmp_path):
    path = make_database(tmp_path / "a.db")
    connection = sqlite3.connect(str(path))
    connection.execute("PRAGMA ignore_check_constraints = 1")
    add_rows(connection, [shipment("a", "teleported", mode="wormhole")])
    series = numbers(written("text", figures(path)), "text")
    assert one(series, "logistics_shipments", status="unknown") == one(series, "logistics_mode_shipments", mode="unknown") == 1


@pytest.mark.parametrize("value, short, canonical", [
    (.0005, "0.0005", "0.0005"), (.001, "0.001", "0.001"), (.25, "0.25", "0.25"), (1.0, "1", "1.0"), (10.0, "10", "10.0"),
    (3600, "3600", "3600.0"), (864000, "864000", "864000.0"), (1000000, "1e+06", "1e+06"), (1209600, "1.2096e+06", "1.2096e+06"),
    (63072000, "6.3072e+07", "6.3072e+07"), (float("inf"), "+Inf", "+Inf")])
def test_an_upper_bound_has_one_spelling_in_each_format(value, short, canonical):
    assert (openmetrics.short_bound(value), openmetrics.canonical_bound(value)) == (short, canonical)


def test_the_families_bear_names_as_prometheus_wants_them():
    names = [family.name for family in openmetrics.FAMILIES]
    assert len(set(names)) == len(names)
    for family in openmetrics.FAMILIES:
        assert re.fullmatch(r"(logistics|process)(_[a-z]+)+", family.name)
        assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket", "_created"))
        assert family.name.endswith(family.unit)
        assert family.unit or not family.name.endswith(("_seconds", "_bytes"))
        assert re.fullmatch(r'[^\\"\n]+\.', family.help)     # so that nothing in it has to be escaped
        assert not {"le", "quantile", "type", "instance", "job"} & set(family.labels)


def test_what_is_known_beforehand_is_what_the_others_know():
    listed = re.search(r"mode IN \(([^)]*)\)", (ROOT / "schema.sql").read_text()).group(1)
    assert list(openmetrics.MODES) == re.findall(r"'(\w+)'", listed)
    assert ("accepted",) + openmetrics.ENDS == webserver.COUNTS
    assert set(openmetrics.values(None, BLOCKS, STATE)) <= {family.name for family in openmetrics.FAMILIES}


# Who gets which

TEXT, OPENMETRICS, ESCAPED, JSON = negotiation.TEXT, negotiation.OPENMETRICS, negotiation.ESCAPED, negotiation.JSON
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"


@pytest.mark.parametrize("accept, form", [
    ("", JSON), ("*/*", JSON), ("application/json", JSON), ("application/*", JSON), ("Application/JSON; charset=UTF-8", JSON),
    ("text/plain", TEXT), ("text/*", TEXT), ("text/plain;version=0.0.4", TEXT),
    ('text/plain; version="0.0.4"; charset=UTF-8', TEXT),
    ("application/openmetrics-text", OPENMETRICS), ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
    ("application/openmetrics-text;version=1.0.0;escaping=underscores", ESCAPED),
    # Prometheus 2.20, 2.42, 3 and 3 with native histograms
    ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", TEXT),
    ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
     "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
    ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
     "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", ESCAPED),
    (PROTOBUF + ";q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
     "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
     "text/plain;version=0.0.4;q=0.2,*/*;q=0.1", ESCAPED),
    (PROTOBUF + ";q=0.7,text/plain;version=0.0.4;q=0.3", TEXT), (PROTOBUF, TEXT), (PROTOBUF + ",*/*;q=0.1", TEXT),
    ("application/openmetrics-text;version=2.0.0", TEXT), ("text/plain;version=1.0.0", TEXT), ("text/plain;charset=latin1", TEXT),
    # netdata, health_check.py, curl's default is */*, Firefox, Chromium, axios, jQuery, Java
    ("text/plain;version=0.0.4;q=1,*/*;q=0.1", TEXT), ("application/json, */*;q=0.5", JSON),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
     "application/signed-exchange;v=b3;q=0.7", JSON),
    ("application/json, text/plain, */*", JSON), ("text/plain, */*; q=0.01", TEXT),
    ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", JSON),
    # qualities, and which range counts
    ("text/plain;q=0.3, application/openmetrics-text;q=0.7", OPENMETRICS),
    ("text/plain;q=0.7, application/openmetrics-text;q=0.3", TEXT),
    ("application/json;q=0.2, text/plain;q=0.1", JSON), ("text/plain, application/json", TEXT),
    ("application/json, text/plain", JSON),
    ("text/*, application/json", JSON), ("text/*;q=0.9, application/json;q=0.8", TEXT), ("text/plain;q=0, */*", JSON),
    ("application/json;q=0, */*", TEXT), ("application/json;q=0, text/plain;q=0, */*;q=0.1", OPENMETRICS),
    ("text/plain;q=0.1, text/plain;version=0.0.4;q=0.9, application/json;q=0.5", TEXT),
    ("text/*;q=1, text/plain;q=0.1, application/json;q=0.5", JSON), ("*/*;q=0", JSON), ("text/plain;q=0", JSON),
    # garbage
    ("text/html", JSON), (",", JSON), (";", JSON), ("text", JSON), ("text/plain/x", JSON), ("text/plain;q=2", JSON),
    ("text/plain;q=x", JSON), ("text/plain;q=-1", JSON), ("text/plain;q=nan", JSON), ("text/plain;=", JSON),
    ("text/plain;version", JSON),
    ('text/plain;x="a,b;q=0', JSON), ('image/png;x="\\",text/plain", text/plain;version=0.0.4', TEXT),
    (", ,text/plain;;q=1.000; ,", TEXT), ("\u0663/\xff, text/plain", TEXT), ("text/plain;q=0.1" + ", text/html" * 200, JSON),
])
def test_the_format_is_what_the_client_prefers_among_those_there_are(accept, form):
    assert negotiation.choose(accept) == form


@pytest.mark.parametrize("accept_encoding, wanted", [
    ("", False), ("gzip", True), ("x-gzip", True), ("GZIP", True), ("deflate, gzip;q=1.0, *;q=0.5", True), ("*", True),
    ("br", False),
    ("gzip;q=0", False), ("gzip;q=0, *", False), ("*;q=0", False), ("identity", False), ("identity;q=0.5, gzip", True),
    ("gzip;q=0.5, identity", False), ("gzip;q=0.001", True), ("gzip;q=x", False), ("gzipped", False), ("identity;q=0", False)])
def test_gzip_is_used_where_it_is_offered_and_preferred(accept_encoding, wanted):
    assert negotiation.compressed(accept_encoding) == wanted


@pytest.mark.parametrize("hostile_field", ['"\\' * 15000, "," * 30000, ";" * 30000, "a/b;" * 8000, "*/*," * 8000, " \t" * 15000,
                                           'a/b;c="' * 4000, "q=0;" * 249])
def test_a_field_that_is_made_to_be_slow_is_not(hostile_field):
    assert negotiation.choose(hostile_field) == JSON and not negotiation.compressed(hostile_field)


# The service

@pytest.fixture
def service(database, launch):
    add_rows(sqlite3.connect(str(database)), SMALL)
    return launch(database, query_timeout=0.2)


def scrape(service, form="text", **headers):
    """numbers() of an answer, which has to be good."""
    status, fields, body = service.request("/metrics?format=" + form, headers=headers)
    assert (status, fields["Content-Type"]) == (200, negotiation.FORMATS[form].content_type)
    return numbers(body.decode("utf-8"), form)


def scrape_until(service, name, **labels):
    """The first scrape in which this sample is not 0."""
    def found():
        series = scrape(service)
        return series if one(series, name, **labels) else None
    return wait_for(found, name)


def about_shipments(series):
    return {key: value for key, value in series.items() if re.match("logistics_(.*shipments|transit|newest|future)", key[0])}


@pytest.mark.parametrize("accept, query, content_type", [
    (None, "", JSON), ("text/plain", "", TEXT), ("application/openmetrics-text;version=1.0.0;escaping=dots", "", ESCAPED),
    ("text/plain", "?format=json", JSON), (None, "?format=text", TEXT), ("application/json", "?format=openmetrics", OPENMETRICS),
    ("text/plain;version=0.0.4", "?history=2", TEXT)])
def test_an_answer_says_what_it_is_and_what_it_depends_on(service, accept, query, content_type):
    for method in ("GET", "HEAD"):
        status, fields, body = service.request("/metrics" + query, method, {"Accept": accept} if accept else {})
        assert (status, fields["Content-Type"], fields["Vary"]) == (200, content_type.content_type, "Accept, Accept-Encoding")
        assert len(body) == (int(fields["Content-Length"]) if method == "GET" else 0)


@pytest.mark.parametrize("value", ["", "xml", "text%20", "TEXT", "protobuf"])
def test_a_format_that_there_is_not_is_refused_in_words(service, value):
    status, document = service.get("/metrics?format=" + value)
    assert (status, document["detail"]) == (400, "format must be json or text or openmetrics")


def test_nothing_that_a_client_sends_is_in_the_answer(service):
    _, fields, body = service.request("/metrics?x=zebra", headers={
        "Accept": "text/plain;version=0.0.4;escaping=zebra;zebra=zebra, zebra/zebra", "Accept-Encoding": "zebra",
        "User-Agent": "zebra"})
    assert fields["Content-Type"] == TEXT.content_type and "zebra" not in str(fields) + body.decode()


@pytest.mark.parametrize("query", ["?format=json&history=100", "?format=text", "?format=openmetrics"])
def test_gzip_holds_the_very_answer_and_is_smaller(service, query):
    _, fields, body = service.request("/metrics" + query, headers={"Accept-Encoding": "gzip"})
    assert (fields["Content-Encoding"], int(fields["Content-Length"])) == ("gzip", len(body))
    plain = service.request("/metrics" + query)
    assert plain[1]["Content-Encoding"] is None and len(body) < len(plain[2]) / 3
    lines = [line.split(b" ")[0] for line in plain[2].splitlines()]
    assert [line.split(b" ")[0] for line in gzip.decompress(body).splitlines()] == lines


def test_what_is_short_is_not_compressed(service):
    for path in ("/livez", "/metrics?format=xml"):
        assert service.request(path, headers={"Accept-Encoding": "gzip"})[1]["Content-Encoding"] is None


def test_all_formats_have_the_numbers_of_the_same_database(service):
    text, openmetrics_text = scrape(service), scrape(service, "openmetrics")
    assert about_shipments(text) == about_shipments(openmetrics_text) and len(about_shipments(text)) > 50
    document = service.get("/metrics")[1]
    assert by_label(text, "logistics_shipments") == dict(document["shipments"]["by_status"], unknown=0)


def test_who_asks_about_the_same_figures_in_the_same_form_gets_the_same_bytes(service):
    def twins():
        answers = [service.request("/metrics?format=text")[2] for _ in range(4)]
        moments = [re.search(rb"last_success_timestamp_seconds (\d+)", answer).group(1) for answer in answers]
        return answers if len(set(moments)) == 1 else None
    assert len(set(wait_for(twins, "four answers within a second"))) == 1


def test_a_broken_database_is_told_from_a_broken_service(service, database):
    assert one(scrape(service), "logistics_up") == 1
    database.rename(str(database) + ".away")
    for form in ("text", "openmetrics"):
        series = scrape(service, form)
        assert (one(series, "logistics_up"), one(series, "logistics_database_trouble", reason="missing")) == (0, 1)
        assert one(series, "logistics_database_query_failures_total", reason="missing") > 0
        assert one(series, "process_open_fds") > 0 and not about_shipments(series)
    status, fields, _ = service.request("/metrics")
    assert (status, fields["Vary"]) == (503, "Accept, Accept-Encoding")
    os.rename(str(database) + ".away", str(database))
    series = scrape(service)
    assert (one(series, "logistics_up"), one(series, "logistics_database_trouble", reason="missing")) == (1, 0)


def test_a_schema_that_does_not_fit_is_down_too(service, database):
    sqlite3.connect(str(database)).execute("ALTER TABLE shipments RENAME COLUMN weight_kg TO weight")
    series = scrape(service)
    assert (one(series, "logistics_up"), one(series, "logistics_database_trouble", reason="schema_mismatch")) == (0, 1)


def test_older_figures_keep_their_values_and_say_so(service, database):
    before = scrape(service)
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    turn_second()
    series = scrape(service)
    assert about_shipments(series) == about_shipments(before)
    assert (one(series, "logistics_up"), one(series, "logistics_stale")) == (1, 1)
    assert one(series, "logistics_database_trouble", reason="locked") == 1
    moments = [one(answer, "logistics_last_success_timestamp_seconds") for answer in (before, series)]
    writer.close()
    assert 0 <= moments[1] - moments[0] < 10 and one(scrape(service), "logistics_stale") == 0


def test_a_scraper_that_waits_briefly_is_told_in_time(launch, database):
    service = launch(database, query_timeout=20, stale_seconds=0)
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    series = scrape(service, **{"X-Prometheus-Scrape-Timeout-Seconds": "0.6"})
    writer.close()
    assert (one(series, "logistics_up"), one(series, "logistics_database_trouble", reason="locked")) == (0, 1)


def test_requests_are_counted_by_route_code_and_time(service, database):
    for path in ("/livez", "/livez", "/nowhere"):
        service.request(path)
    database.rename(str(database) + ".away")
    service.request("/metrics")
    series = scrape_until(service, "logistics_http_errors_total", route="/metrics")
    assert one(series, "logistics_http_requests_total", route="/livez", code="200") == 2
    assert one(series, "logistics_http_requests_total", route="other", code="404") == 1
    assert one(series, "logistics_http_requests_total", route="/metrics", code="503") == 1
    requests = sum(value for (name, _), value in series.items() if name == "logistics_http_requests_total")
    assert one(series, "logistics_http_request_duration_seconds_count") == requests
    assert 0 < one(series, "logistics_http_request_duration_seconds_sum") < 20


def test_errors_and_fallbacks_of_the_log_are_counted(launch, database, tmp_path):
    log_file = tmp_path / "a.log"
    service = launch(database, log_file=log_file)
    assert (one(scrape(service), "logistics_log_fallbacks_total"), one(scrape(service), "logistics_log_fallback")) == (0, 0)
    log_file.unlink()
    log_file.mkdir()
    series = scrape_until(service, "logistics_log_fallback")
    assert (one(series, "logistics_log_fallbacks_total"), one(series, "logistics_log_errors_total")) == (1, 0)


def test_a_migration_that_runs_is_told(service, database):
    assert one(scrape(service), "logistics_migration_running") == 0
    holder = subprocess.Popen([os.environ.get("PYTHON", "python3"), "-c", "import sys, migration_lock\n"
                               "with migration_lock.hold(sys.argv[1]): print(flush=True); sys.stdin.read()", str(database)],
                              cwd=str(ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    turn_second()
    assert one(scrape(service), "logistics_migration_running") == 1
    holder.communicate()


def test_the_process_is_described_as_its_kernel_does(service):
    series, folder = scrape(service), "/proc/%d/" % service.process.pid
    limit = int(re.search(r"Max open files +(\d+)", open(folder + "limits").read()).group(1))
    assert one(series, "process_max_fds") == limit
    assert abs(one(series, "process_start_time_seconds") - supervision.start_time(service.process.pid)) < 1
    assert abs(one(series, "process_open_fds") - len(os.listdir(folder + "fd"))) <= 2
    assert 0 < one(series, "process_cpu_seconds_total") < 60
    size, resident = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in open(folder + "statm").read().split()[:2])
    assert abs(one(series, "process_resident_memory_bytes") - resident) < 8 << 20
    assert abs(one(series, "process_virtual_memory_bytes") - size) < 512 << 20


def test_a_reload_begins_the_counters_anew_and_is_the_same_process(service):
    before = scrape(service)
    turn_second()
    instance = service.get("/livez")[1]["instance"]
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.get("/livez")[1]["instance"] != instance, "the new instance")
    after = scrape(service)
    assert one(after, "logistics_start_timestamp_seconds") > one(before, "logistics_start_timestamp_seconds")
    assert abs(one(after, "process_start_time_seconds") - one(before, "process_start_time_seconds")) < 1


class Server:
    """What a Service asks of its webserver.Server."""
    in_flight, connections, limit, counts = 1, (), 2048, dict.fromkeys(webserver.COUNTS, 0)


def respond(service, **headers):
    """What a Service in this process answers to a scraper."""
    service.server = Server()
    request = webserver.Request("GET", "/metrics", {"format": ["text"]}, headers, "127.0.0.1", time.monotonic(), "a-1")
    return numbers(service.respond(request).body.decode(), "text")


def test_who_cannot_wait_for_the_answer_to_another_is_told_the_reason(database):
    service = metrics_service.Service(eventlog.Log(), store.Store(str(database), 2, 60))
    with service.store.lock:
        series = respond(service, **{metrics_service.SCRAPE_TIMEOUT: "0.1"})
    assert (one(series, "logistics_up"), one(series, "logistics_database_trouble", reason="timeout")) == (0, 1)


@pytest.mark.parametrize("given, patience", [
    ("10", 9.5), ("1", 0.5), ("0.6", 0.3), ("0", 0), ("-1", None), ("1e3", None), ("nan", None), ("1, 1", None), ("", None)])
def test_a_scrapers_deadline_leaves_half_a_second_or_half_of_it(database, given, patience):
    service = metrics_service.Service(eventlog.Log(), store.Store(str(database), 2, 60))
    request = webserver.Request("GET", "/metrics", {}, {metrics_service.SCRAPE_TIMEOUT: given}, "127.0.0.1", 100, "a-1")
    assert service.patience(request) == (float("inf") if patience is None else 100 + patience)


def test_without_a_descriptor_for_proc_the_rest_is_told(database, monkeypatch):
    def fail():
        raise OSError(24, "Too many open files")
    monkeypatch.setattr(supervision, "usage", fail)
    series = respond(metrics_service.Service(eventlog.Log(), store.Store(str(database), 2, 60)))
    assert one(series, "logistics_up") == 1 and not [name for name, _ in series if name.startswith("process_")]
