"""deploy/grafana and deploy/prometheus as files: what they name exists, nothing overlaps, the tools take them."""

import itertools
import json
import os
import re
import shutil
import subprocess

import pytest

import openmetrics
from conftest import ROOT, make_certificate
from fleet import SHIPPED, uncommented

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "metrics_service.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
SAMPLES = {"counter": ["_total"], "info": ["_info"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
KINDS = {"stat", "table", "timeseries", "bargauge"}     # that Grafana 9 and 10 have of their own
BLOCKS = ["external_labels:", "alerting:", "scheme: https", "metric_relabel_configs:"]     # that are comments as shipped
UNITS = {"short", "none", "percentunit", "s", "reqps", "bytes"}


def known_names():
    """Samples that a scrape stores, and what the recording rules make of them."""
    names = {"up", "ALERTS"} | {family.name + end for family in openmetrics.FAMILIES for end in SAMPLES[family.kind]}
    return names | set(re.findall(r"record: (\S+)", (SHIPPED / "recording.yml").read_text()))


def test_every_metric_that_the_dashboard_names_exists():
    used = set(re.findall(r"\b(?:logistics|process)_[a-z_0-9]+|\b[a-z_]+:[a-z_]+:[a-z_0-9]+|\bup\b|\bALERTS\b",
                          " ".join(re.sub(r'"[^"]*"', '""', text) for text in EXPRESSIONS)))
    assert used - known_names() == set() and len(used) > 20


def test_no_two_panels_share_a_place():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in itertools.combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, (a, b)


def test_no_place_is_left_empty():
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in DASHBOARD["panels"])
    assert sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in DASHBOARD["panels"]) == 24 * height


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: "%d %s" % (panel["id"], panel["title"]))
def test_a_panel_says_what_it_shows(panel):
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["type"] in KINDS and defaults["unit"] in UNITS
    assert panel["title"] and panel["description"].endswith(".") and len(panel["description"]) > 20
    assert defaults["thresholds"]["steps"][0]["value"] is None
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert all(legends) == (panel["type"] in ("timeseries", "bargauge")) and len(set(legends)) == len(legends)
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert target["instant"] == (panel["type"] != "timeseries") and target["range"] != target["instant"]


def test_what_is_broken_comes_first_and_the_host_last():
    assert [row["title"] for row in ROWS] == ["Fleet: what is broken", "Fleet: shipments", "Host: $instance"]
    host = ROWS[-1]["gridPos"]["y"]
    for panel in PANELS:
        assert all(("$instance" in target["expr"]) == (panel["gridPos"]["y"] > host) for target in panel["targets"])


def test_every_expression_keeps_to_the_job_and_the_variables_are_used():
    assert list(VARIABLES) == ["datasource", "job", "instance"]
    assert all(text.count('job="$job"') == text.count("{") - text.count("{{") for text in EXPRESSIONS)
    assert {name for text in EXPRESSIONS for name in re.findall(r"\$(\w+)", text)} == {"job", "instance", "__rate_interval"}
    assert (VARIABLES["instance"]["includeAll"], VARIABLES["instance"]["allValue"]) == (True, ".*")


def test_the_ids_are_unique_and_the_schema_is_that_of_grafana_9():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) and DASHBOARD["schemaVersion"] == 37
    links = re.findall(r"/d/([^/]+)/", json.dumps(DASHBOARD))
    assert set(links) == {DASHBOARD["uid"]}


def promtool(*words):
    """What promtool prints where it has something to say, else its exit code."""
    if not shutil.which("promtool") and not os.environ.get("CI"):
        pytest.skip("promtool is not installed")
    done = subprocess.run(["promtool"] + list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return done.stdout if done.returncode or re.search("(?i)warn|error|fail", done.stdout) else 0


@pytest.mark.parametrize("blocks", [[]] + [[block] for block in BLOCKS] + [BLOCKS], ids=" ".join)
def test_promtool_takes_the_config_with_any_block_of_it(tmp_path, blocks):
    shutil.copytree(str(SHIPPED), str(tmp_path / "prometheus"))
    config, text = tmp_path / "prometheus" / "prometheus.yml", (SHIPPED / "prometheus.yml").read_text()
    for block in blocks:
        text = uncommented(text, block)
    certificate = make_certificate(tmp_path / "metrics-ca.pem", "DNS:localhost")
    (tmp_path / "metrics-password").write_text("x")
    config.write_text(text.replace("/etc/prometheus/", "%s/" % certificate.parent))
    assert promtool("check", "config", str(config)) == 0


def test_the_blocks_are_all_the_comments_that_are_no_prose():
    text = (SHIPPED / "prometheus.yml").read_text()
    for block in BLOCKS:
        text = uncommented(text, block)
    assert not re.findall(r"^ *#(?! [A-Z`a-z])", text, re.MULTILINE)
