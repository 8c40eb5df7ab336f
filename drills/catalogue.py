"""All drills in the order of their numbers, what was left out and why, and the alerts that no drill raises."""

from drills import configuration, data, database, files, process, schema

LAYERS = (configuration, files, database, schema, process, data)
SCENARIOS = sorted((one for layer in LAYERS for one in layer.SCENARIOS), key=lambda one: one.id)
BY_ID = {one.id: one for one in SCENARIOS}
CAUSES = sorted({one.cause for one in SCENARIOS} | {"none", "undecided"})

LEFT_OUT = {}

FLEET = "it is about many hosts, and a drill has one; tests/test_prometheus_rules.py raises it"
SLOW = "it takes hours or days of history; tests/test_prometheus_rules.py raises it"
UNDRILLED = {
    "MetricsFleetPartlyDown": FLEET,
    "MetricsFleetDown": FLEET,
    "MetricsTargetsMissing": FLEET,
    "MetricsTargetsLost": FLEET,
    "MetricsRulesMissing": "it is about the files of Prometheus, which a drill does not run",
    "MetricsFleetDatabasesDown": FLEET,
    "MetricsOverdueHigh": SLOW,
    "MetricsOverdueRising": SLOW,
    "MetricsOnTimeCollapsed": SLOW,
    "MetricsDeliveriesStopped": SLOW,
}
