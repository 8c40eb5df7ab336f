"""Twenty services and one real Prometheus with the files of deploy/: what it counts, whom it finds broken, how it heals."""

import os
import re
import time

import pytest

import openmetrics
import test_fleet_page
import test_grafana
from conftest import wait_for
from fleet import FAULTS, JOB, PATIENCE, SHIPPED, Fleet, Prometheus, available, install, totals

MEMBERS = 20
BROKEN_TABLE = "Broken hosts, and why"
KILLED, BROKEN = FAULTS["killed"].place, FAULTS["no database"].place
TROUBLES = ("up{job='%s'} == 0", "logistics_up == 0", "logistics_stale == 1", "logistics_log_fallback == 1")   # as in FAULTS
SUMS = {
    "shipments": ("status", "sum by (status) (logistics_shipments) > 0"),
    "overdue": ("", "sum(logistics_overdue_shipments)"),
    "deliveries": ("outcome", "sum by (outcome) (logistics_deliveries_total) > 0"),
    "transits": ("", "sum(logistics_transit_seconds_count)"),
}


def hasten(name, text):
    """The shipped text with a second where it has more, and with the five seconds past in place of half an hour."""
    if name == "prometheus.yml":
        return re.sub(r"^( *(?:scrape_interval|scrape_timeout|evaluation_interval)): \d+s$", r"\1: 1s", text, flags=re.MULTILINE)
    text = re.sub(r"(_over_time\(logistics_\w+)\[30m\]", r"\1[5s]", text)
    return re.sub(r"^( *(?:for|interval|keep_firing_for)): *\d+[smh]$", r"\1: 1s", text, flags=re.MULTILINE)


def past_deliveries():
    """What job_outcome:logistics_deliveries:increase1h would be, had the fleet run for hours."""
    hour = int(time.time()) // 3600 * 3600
    lines = ["# TYPE job_outcome:logistics_deliveries:increase1h gauge"]
    for outcome, number in (("late", 1), ("on_time", 3)):
        lines += ['job_outcome:logistics_deliveries:increase1h{job="%s",outcome="%s"} %d %d' % (JOB, outcome, number, moment)
                  for moment in range(hour - 6 * 3600, hour - 3600, 3600)]
    return "\n".join(lines + ["# EOF", ""])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    if not available() and not os.environ.get("CI"):
        pytest.skip("prometheus and promtool are not installed")
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), MEMBERS)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()


@pytest.fixture(scope="module")
def prometheus(fleet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    server = Prometheus(install(fleet, folder, hasten), folder)
    server.backfill(past_deliveries())
    server.start()
    try:
        wait_for(lambda: up(server) == dict.fromkeys(instances(fleet), 1), "all to be scraped", PATIENCE)
        yield server
    finally:
        server.end()


def empty_panels(prometheus, instance):
    """Titles of the panels with an expression that shows nothing, as Grafana asks it for this choice of hosts."""
    found = set()
    for panel in test_grafana.PANELS:
        for target in panel["targets"]:
            text = target["expr"].replace("$job", JOB).replace("$instance", instance).replace("$__rate_interval", "10s")
            if not prometheus.drawn(text, target["instant"]):
                found.add(panel["title"])
    return found


def instances(fleet, without=()):
    return {member.instance for place, member in enumerate(fleet.members) if place not in without}


def up(prometheus, name="up"):
    return prometheus.by("instance", '%s{job="%s"}' % (name, JOB))


def counted(prometheus):
    """The totals of the fleet as Prometheus has them."""
    return {name: prometheus.by(label, expression) for name, (label, expression) in SUMS.items()}


def settle(pair, deadline=PATIENCE):
    """Until both that pair() gives are equal; shows in what they differ otherwise."""
    found = []

    def equal():
        found[:] = pair()
        return found[0] == found[1]
    try:
        wait_for(equal, "both to be equal", deadline)
    except AssertionError:
        assert found[0] == found[1]


def check_totals(prometheus, fleet, without=()):
    """They are those of the databases at the very moments that the figures are of."""
    members = [member for place, member in enumerate(fleet.members) if place not in without]

    def both():
        moments = up(prometheus, "logistics_last_success_timestamp_seconds")
        return totals({member.database: moments[member.instance] for member in members}), counted(prometheus)
    settle(both)


def test_every_instance_is_up_with_figures(prometheus, fleet):
    assert up(prometheus) == up(prometheus, "logistics_up") == dict.fromkeys(instances(fleet), 1)
    targets = prometheus.api("targets", state="active")["activeTargets"]
    assert [target["lastError"] for target in targets] == [""] * MEMBERS
    assert {target["labels"]["region"] for target in targets} == {"north", "south"}


def test_the_one_with_a_password_and_tls_is_scraped_by_the_block_that_is_shipped_as_a_comment(prometheus, fleet):
    (target,) = [target for target in prometheus.api("targets")["activeTargets"] if target["scrapePool"] == "secure"]
    assert target["scrapeUrl"] == "https://%s/metrics" % fleet.members[-1].instance
    assert (target["health"], target["labels"]["job"]) == ("up", JOB)


def test_a_scrape_has_every_sample_of_the_answer(prometheus, fleet):
    def both():
        answers = {member.instance: member.request("/metrics?format=openmetrics")[2].decode() for member in fleet.plain}
        sent = {name: sum(line[0] != "#" for line in answer.splitlines()) for name, answer in answers.items()}
        stored = [up(prometheus, "scrape_samples_" + kind) for kind in ("scraped", "post_metric_relabeling")]
        return [{name: kind[name] for name in sent} for kind in stored], [sent, sent]
    settle(both)


def test_openmetrics_was_negotiated_for_its_units_arrive(prometheus, fleet):
    told = prometheus.api("targets/metadata", match_target='{job="%s"}' % JOB)
    assert {(row["metric"], row["type"], row["unit"], row["help"]) for row in told} == {
        (family.name, family.kind, family.unit, family.help) for family in openmetrics.FAMILIES}
    assert len({row["target"]["instance"] for row in told}) == MEMBERS


def test_the_totals_of_the_fleet_are_those_of_its_databases(prometheus, fleet):
    check_totals(prometheus, fleet)
    assert all(sum(numbers.values()) > 10 * MEMBERS for numbers in counted(prometheus).values())
    assert prometheus.by("outcome", "sum by (outcome) (logistics_delivered_shipments) > 0") == counted(prometheus)["deliveries"]
    settle(lambda: (prometheus.by("status", "job_status:logistics_shipments:sum > 0"), counted(prometheus)["shipments"]))


def troubles(prometheus):
    """Whom each of TROUBLES is true of."""
    return [set(prometheus.by("instance", trouble.replace("%s", JOB))) for trouble in TROUBLES]


def test_the_dashboard_shows_a_fleet_that_is_well(prometheus, fleet):
    settle(lambda: (empty_panels(prometheus, ".*") - {"Alerts"}, {BROKEN_TABLE}))
    assert prometheus.query('job:logistics_deliveries_on_time:ratio_increase1d') == [(
        {"__name__": "job:logistics_deliveries_on_time:ratio_increase1d", "job": JOB}, .75)]


def test_as_many_series_are_recorded_for_a_host_as_the_page_counts_on(prometheus, fleet):
    number = 'count by (instance) ({__name__=~"instance.*:.+",__name__!~".+[17]d",job="%s"})' % JOB
    later = re.findall(r"record: (instance:.+[17]d)$", (SHIPPED / "recording.yml").read_text(), re.MULTILINE)     # after an hour
    soon = test_fleet_page.recorded_series() - len(later)
    settle(lambda: (prometheus.by("instance", number), dict.fromkeys(instances(fleet), soon)))


def test_the_federation_of_the_page_has_the_records_of_the_fleet_and_of_no_host(prometheus):
    _, snippet = test_fleet_page.snippets(test_fleet_page.FLEET, "yaml")
    (match,) = re.findall(r"match\[\]: \['(.*)'\]", snippet)
    names = set(re.findall(r"^([a-z_0-9:]+)\{", prometheus.fetch("/federate", **{"match[]": match}), re.MULTILINE))
    recorded = re.findall(r"record: (\S+)", (SHIPPED / "recording.yml").read_text())
    assert names and names <= {name for name in recorded if not name.startswith("instance")}
    assert {"job_status:logistics_shipments:sum", "job:up:count"} <= names


@pytest.fixture(scope="module")
def hurt(prometheus, fleet):
    """The fleet with all of FAULTS."""
    for fault in FAULTS.values():
        fault.begin(fleet.members[fault.place])
    wait_for(lambda: all(troubles(prometheus)), "the four to be seen", PATIENCE)
    return fleet


def test_killed_and_broken_are_told_apart(prometheus, hurt):
    killed, broken = hurt.members[KILLED].instance, hurt.members[BROKEN].instance
    assert troubles(prometheus)[:2] == [{killed}, {broken}]
    assert set(up(prometheus, "logistics_up")) == instances(hurt, [KILLED])
    assert prometheus.by("instance", 'logistics_database_trouble{reason="missing"} == 1') == {broken: 1}


def test_the_totals_are_then_those_of_the_others(prometheus, hurt):
    check_totals(prometheus, hurt, without=[KILLED, BROKEN])


def test_each_of_the_four_has_its_alert_and_its_name(prometheus, hurt):
    wanted = {(fault.alert, hurt.members[fault.place].instance) for fault in FAULTS.values()}
    wait_for(lambda: wanted <= prometheus.alerts()["firing"], "the four alerts", PATIENCE)
    named = {fault.alert for fault in FAULTS.values()}
    assert {alert for alert in prometheus.alerts()["firing"] if alert[0] in named} == wanted


def test_the_dashboard_shows_what_is_broken_and_why(prometheus, hurt):
    assert empty_panels(prometheus, ".*") == set()
    assert empty_panels(prometheus, hurt.members[0].instance.replace(".", r"\\.")) == set()
    (table,) = [panel for panel in test_grafana.PANELS if panel["title"] == BROKEN_TABLE]
    rows = prometheus.query(table["targets"][0]["expr"].replace("$job", JOB))
    reasons = zip(FAULTS.values(), ("no_answer", "missing", "locked", "log_fallback"))
    assert {(labels["instance"], labels["reason"]) for labels, _ in rows} == {
        (hurt.members[fault.place].instance, reason) for fault, reason in reasons}


def test_what_is_mended_heals_by_itself(prometheus, hurt):
    for fault in FAULTS.values():
        fault.heal(hurt.members[fault.place])
    wait_for(lambda: not any(troubles(prometheus)), "the fleet to heal", PATIENCE)
    assert up(prometheus, "logistics_up") == dict.fromkeys(instances(hurt), 1)
    check_totals(prometheus, hurt)
    named = {fault.alert for fault in FAULTS.values()}
    wait_for(lambda: not named & {name for name, _ in prometheus.alerts()["firing"]}, "the alerts to end", PATIENCE)


def test_nothing_was_refused_or_dropped(prometheus):
    assert prometheus.complaints() == []
