"""All drills in the order of their numbers, what was left out and why, and the alerts that no drill raises."""

from drills import configuration, data, database, files, process, schema

LAYERS = (configuration, files, database, schema, process, data)
SCENARIOS = sorted((one for layer in LAYERS for one in layer.SCENARIOS), key=lambda one: one.id)
BY_ID = {one.id: one for one in SCENARIOS}
CAUSES = sorted({one.cause for one in SCENARIOS} | {"none", "undecided"})

LEFT_OUT = {
    "D12": "the log's name is looked up for each line and each request: a log that was renamed or deleted is begun anew at once, "
           "and there is nothing to do; tests/test_log.py and tests/test_logrotate.py show it",
    "D39": "the kernel's kill for memory looks like D35 to everybody but the kernel's log, and which cgroup may be used differs by "
           "host",
    "D41": "1024 connections wait in the kernel: of 200 at once the slowest had its answer after 7 ms; "
           "tests/test_slow_clients.py",
    "D45": "every part of the product on a host has that host's clock, durations are monotonic, and a clock that was set back "
           "shows as `future_changes`, which D44 drills; to shift the service's clock alone would be a switch in its interpreter",
    "D51": "with D12 gone a log that was deleted holds no space, and nothing is left but D14",
    "D54": "infinity is refused by a CHECK, an empty table answers null and not 0 (tests/test_metrics.py), and a purge is D50; one "
           "that took rows younger than every backup could not be mended without loss",
    "D55": "no table refers to shipments, so that nothing cascades; what REPLACE does here is D33",
    "D56": "the files beside a database in WAL mode exist only there, and the answer is that of D27: out of it",
    "D58": "60 connections that send nothing delay nobody and are ended after 10 s; tests/test_slow_clients.py besieges with 1000",
    "D60": "PRAGMA max_page_count belongs to the writer's own connection, so that only a stand-in could set it; D15 limits the "
           "process",
    "D64": "its repair is that of D31 or D50; what it teaches is the answer `undecided --next STEP`, which any drill takes",
}

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
    "MetricsMigrationLong": SLOW,
    "MetricsRequestsSlow": SLOW,
    "MetricsTrend": SLOW,
    "MetricsConnectionsNearLimit": "thousands of connections say more of the host than of the product; "
                                   "tests/test_guard.py opens them",
    "MetricsConnectionsRefused": "as MetricsConnectionsNearLimit",
    "MetricsLogLinesLost": "nothing is left to see it by but the counter; tests/test_log.py loses lines",
}
