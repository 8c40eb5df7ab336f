"""docs/fleet.md, and Prometheus and Grafana in docs/integrations.md: what stands there is run, its numbers worked out anew."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import openmetrics
from conftest import ROOT, make_database
from fleet import SHIPPED
from test_exposition import BLOCKS, ROUTES, STATE, carriers
from test_grafana import promtool
from test_metrics import figures, shipment

FLEET = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
CONFIG = (SHIPPED / "prometheus.yml").read_text()
ADDED = 5               # up, scrape_duration_seconds, scrape_samples_scraped and two more
DAY = 86400             # s
QUIET = dict(BLOCKS, tls=None, requests=dict(BLOCKS["requests"], by_route={}))


def snippets(page, language):
    return re.findall(r"^```%s\n(.*?)^```" % language, page, re.DOTALL | re.MULTILINE)


def setting(name):
    """A number of the shipped config."""
    return int(re.search(r"^ *%s: (\d+)" % name, CONFIG, re.MULTILINE).group(1))


def answer(folder, number, blocks=QUIET, rows=()):
    """The text of a scrape of a host with so many carriers, in OpenMetrics."""
    now = figures(make_database(folder / ("%d.db" % len(list(folder.iterdir()))), list(rows) + carriers(number)))
    return openmetrics.write(openmetrics.OPENMETRICS, openmetrics.values(now, blocks, STATE)).decode()


def samples(text):
    return [line for line in text.splitlines() if line[0] != "#"]


def table():
    """The header of the arithmetic's table, and its rows, as lists of cells."""
    (text,) = re.findall(r"^\| \d+ hosts .*?\n\n", FLEET, re.DOTALL | re.MULTILINE)
    lines = [line.strip("| ").split(" | ") for line in text.strip().splitlines()]
    return lines[0], lines[2:]


def human(low, high=None, unit=""):
    """A number, or a range, in two digits."""
    def short(value):
        return "%d" % float("%.2g" % value) if value >= 10 else "%.2g" % value
    return (short(low) if high is None else "%s to %s" % (short(low), short(high))) + unit


def column(host, recorded, hosts):
    """A column of the table, for this number of series in a scrape of one host."""
    each = host + ADDED + recorded
    rate = hosts * each / setting("scrape_interval")
    return [human(host), human(each), human(hosts * each / 1e6, unit=" million"), human(rate / 1e3, unit=" thousand"),
            human(hosts * each * 2e3 / 1e9, hosts * each * 8e3 / 1e9, " GB"),
            human(rate * 15 * DAY / 1e9, rate * 30 * DAY / 1e9, " GB")]


def recorded_series():
    """How many series of one host are recorded, as the page has it."""
    return int(re.search(r"with %d that Prometheus adds and (\d+) that are recorded" % ADDED, FLEET).group(1))


def test_the_arithmetic_is_that_of_the_measured_series(tmp_path):
    header, rows = table()
    hosts = int(header[0].split()[0])
    few, many = (samples(answer(tmp_path, number)) for number in (10, 200))
    without = [line for line in few if not line.startswith("logistics_carrier_")]
    columns = [column(len(lines), recorded_series(), hosts) for lines in (few, many, without)]
    assert [list(row[1:]) for row in rows] == [list(cells) for cells in zip(*columns)]
    assert "At a scrape interval of %d s" % setting("scrape_interval") in FLEET


def test_beyond_a_hundred_carriers_a_scrape_does_not_grow(tmp_path):
    counts = [len(samples(answer(tmp_path, number))) for number in (10, 11, 100, 101, 200)]
    assert counts[1] - counts[0] == 5 and counts[2] - counts[0] == 450 and counts[3] == counts[4] == counts[2] + 5


def test_three_thousand_hosts_fit_as_the_page_says(tmp_path):
    each = len(samples(answer(tmp_path, 10))) + ADDED + recorded_series()
    assert "16 GB hold 3000 hosts even at 8 kB" in FLEET and 3000 * each * 8e3 < 16e9


def test_the_bytes_on_the_wire_are_about_those_of_the_page(tmp_path):
    sizes = [len(gzip.compress(answer(tmp_path, number).encode())) for number in (10, 200)]
    assert "about 3 and 5 kB on the wire" in FLEET and [round(size / 1000) for size in sizes] == [3, 5]


def test_the_times_to_an_alert_are_those_of_the_shipped_rules():
    rules = (SHIPPED / "alerts.yml").read_text()
    rows = re.findall(r"^\| [^|]+ \| `(Metrics\w+)` \| (\d+) s \| (\d+) s \|$", FLEET, re.MULTILINE)
    assert len(rows) == 4
    for name, pending, firing in rows:
        wait = re.search(r"alert: %s\n.*?^    for: (\d+)m$" % name, rules, re.DOTALL | re.MULTILINE).group(1)
        assert abs(int(firing) - int(pending) - 60 * int(wait)) <= 15


@pytest.fixture
def worst(tmp_path):
    """What no database and no client can exceed: the longest names of carriers and reasons, every status code of each route."""
    codes = re.findall(r"^\| `(\d{3})`", (ROOT / "docs" / "http.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(codes) > 15
    names = ["%03d" % number + "\U0001f69a" * openmetrics.LABEL_MAX for number in range(200)]
    rows = [shipment(name, "exception", exception_reason=name, carrier=name) for name in names]
    routes = {route: dict.fromkeys(codes, 1) for route in ROUTES}
    return answer(tmp_path, 0, dict(BLOCKS, requests=dict(BLOCKS["requests"], by_route=routes)), rows)


def test_the_limits_lie_just_above_what_an_instance_can_make(worst):
    lines = samples(worst)
    names = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', worst)
    stated = int(re.search(r"at most about (\d+) series", CONFIG).group(1))
    assert round(len(lines), -2) == stated and stated < setting("sample_limit") <= 1.3 * stated
    assert max(len(value.encode()) for _, value in names) <= setting("label_value_length_limit")
    assert max(len(name) for name, _ in names) <= setting("label_name_length_limit")
    assert len(worst.encode()) < setting("body_size_limit") * 1e6


def run_script(folder, inventory):
    (folder / "targets").mkdir(exist_ok=True)
    (folder / "hosts.csv").write_text(inventory)
    (script,) = snippets(FLEET, "python")
    return subprocess.run([sys.executable, "-c", script], cwd=str(folder), stderr=subprocess.PIPE, universal_newlines=True)


def test_the_inventory_becomes_targets_that_prometheus_takes(tmp_path):
    assert run_script(tmp_path, "host,port,site,region\nb.example,8321,here,north\na.example,8321,here,north\n"
                                "c.example,9000,there,south\nc.example,9000,there,south\n").returncode == 0
    assert os.listdir(str(tmp_path / "targets")) == ["fleet.json"]
    assert json.loads((tmp_path / "targets" / "fleet.json").read_text()) == [
        {"targets": ["a.example:8321", "b.example:8321"], "labels": {"site": "here", "region": "north"}},
        {"targets": ["c.example:9000"], "labels": {"site": "there", "region": "south"}}]
    for name in ("prometheus.yml", "recording.yml", "alerts.yml"):
        shutil.copy(str(SHIPPED / name), str(tmp_path))
    assert promtool("check", "config", str(tmp_path / "prometheus.yml")) == 0


def test_an_empty_inventory_takes_no_host_away(tmp_path):
    good = "host,port,site,region\na.example,8321,here,north\n"
    for inventory in (good, "host,port,site,region\n", ""):
        done = run_script(tmp_path, inventory)
        assert (done.returncode == 0) == (inventory == good)
        assert "a.example" in (tmp_path / "targets" / "fleet.json").read_text()
    assert done.stderr == "hosts.csv names no host: targets are left as they are\n"


def test_the_cron_line_has_a_user_and_the_folder_of_the_config():
    (line,) = snippets(FLEET, "cron")
    assert re.fullmatch(r"\*/5 \* \* \* \*  root  cd /etc/prometheus && python3 make_targets\n", line)


def test_each_host_is_in_one_shard_and_promtool_takes_them_all(tmp_path):
    shards, _ = snippets(FLEET, "yaml")
    hosts = ["host%d.example:8321" % number for number in range(40)]
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "fleet.json").write_text(json.dumps([{"targets": hosts, "labels": {}}]))
    runs = []
    for shard in range(4):
        config = tmp_path / ("%d.yml" % shard)
        config.write_text(CONFIG.replace("rule_files:\n- recording.yml\n- alerts.yml\n", "")
                          + re.sub(r"regex: 0 .*", "regex: %d" % shard, shards))
        assert promtool("check", "config", str(config)) == 0
        runs.append(subprocess.Popen(["promtool", "check", "service-discovery", "--timeout=1s", str(config), "metrics_service"],
                                     stdout=subprocess.PIPE))
    found = [json.loads(run.communicate()[0].decode()) for run in runs]
    kept = [{entry["labels"]["instance"] for entry in entries if entry.get("labels")} for entries in found]
    assert sorted(host for shard in kept for host in shard) == sorted(hosts) and all(kept)


def test_promtool_takes_the_federation(tmp_path):
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs:\n" + snippets(FLEET, "yaml")[1])
    assert promtool("check", "config", str(config)) == 0


def section(title):
    """The text under a heading of the integrations' page, up to the next of its level."""
    return re.search(r"^## %s\n(.*?)(?=^## |\Z)" % title, INTEGRATIONS, re.DOTALL | re.MULTILINE).group(1)


def run_commands(title, word, folder, paths):
    """Runs those of the section's snippet with the word but systemctl's, as though the folder were the root."""
    (commands,) = [text for text in snippets(section(title), "bash") if word in text]
    for path in paths:
        (folder / path).mkdir(parents=True)
        commands = commands.replace(" /" + path, " %s/%s" % (folder, path))
    assert " /" not in commands.replace(" %s/" % folder, "")
    commands = re.sub(r"^systemctl (?:reload prometheus|restart grafana-server)$", "", commands, flags=re.MULTILINE)
    subprocess.run(["bash", "-euc", commands], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL)


def test_the_commands_of_the_page_install_a_config_that_prometheus_takes(tmp_path):
    run_commands("Prometheus", "promtool check config", tmp_path, ["etc/prometheus"])
    (targets,) = snippets(section("Prometheus"), "json")
    (tmp_path / "etc/prometheus/targets/more.json").write_text(targets)
    assert promtool("check", "config", str(tmp_path / "etc/prometheus/prometheus.yml")) == 0


def test_the_commands_of_the_page_put_the_dashboard_where_grafana_is_told_to_look(tmp_path):
    run_commands("Grafana", "grafana-server", tmp_path, ["var/lib/grafana", "etc/grafana"])
    provider = (tmp_path / "etc/grafana/provisioning/dashboards/metrics_service.yml").read_text()
    path = re.search(r"path: /(\S+)", provider).group(1)
    assert json.loads((tmp_path / path / "metrics_service.json").read_text())["uid"] == "metrics-service"
    source = (tmp_path / "etc/grafana/provisioning/datasources/metrics_service.yml").read_text()
    assert int(re.search(r"timeInterval: (\d+)s", source).group(1)) == setting("scrape_interval")
