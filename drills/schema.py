"""Drills of the schema and of derived data."""

from drills.scenario import Scenario, Trap, check, http, log, metric, never, page, same_instance, stays, tells


def columns(box):
    return {row[1] for row in box.sql("PRAGMA table_info(shipments)")}


def rename_a_column(box):
    box.sql("ALTER TABLE shipments RENAME COLUMN carrier TO carrier_name")
    box.require("carrier" not in columns(box), "the column is renamed")
    return "shipments has carrier_name and no carrier"


SCENARIOS = (
    Scenario(
        id="D29", name="schema-older", title="A column that the figures need was renamed under the running service", layer="schema",
        level=1, set="ci", needs="", founding="3-column-does-not-exist.md",
        page="Every panel of the dashboard shows an error since a minute ago. The feed of shipments goes on.",
        goal="The figures are back, over the same rows, under the schema of this release.",
        inject=rename_a_column,
        expected=(
            check("database schema_mismatch: .*column shipments.carrier is missing"),
            log("ERROR schema_mismatch reason=schema_mismatch .*column shipments.carrier is missing"),
            http("/metrics", 500, "column shipments.carrier is missing"),
            http("/readyz", 503, "schema_mismatch"),
            metric('logistics_database_trouble{reason="schema_mismatch"}', 1),
            tells('python3 migrate.py "$METRICS_DB_PATH" status', 3, "column shipments.carrier is missing"),
        ),
        quiet=(stays("/livez", 200), same_instance(), never("Traceback")),
        deadline=5,
        mitigation=(
            page("3-column-does-not-exist.md"),
        ),
        traps=(
            Trap("add the missing column by hand", 'python3 -c \'import sqlite3; sqlite3.connect("shipments.db", isolation_level=None)'
                 '.execute("ALTER TABLE shipments ADD COLUMN carrier TEXT")\'',
                 "the answer becomes 200 and the figures wrong: every carrier is empty"),
            Trap("teach the query the new name", "sed -i 's/\\bcarrier\\b/carrier_name/g' store.py; ./restart_service.sh",
                 "one query of many, in one host's copy: the start is refused, and the next release undoes it"),
            Trap("restart the service", "./restart_service.sh", "the start is refused for what the running one answers 500: only /livez "
                 "would be lost"),
        ),
        hints=(
            "Ask what the steps made and what is there now: python3 migrate.py shipments.db status",
            "The column carrier is missing and carrier_name is extra, and no step did it: somebody renamed it by hand.",
            "Rename it back, as docs/incidents/3-column-does-not-exist.md has it in field 13, then migrate.py verify. No restart.",
        ),
        prevention="migrate.py is the way to change the schema: it records each step, and compares",
        proofs=("F", "L", "Q", "V", "S"), cause="column-renamed", anchor="schema_mismatch",
        lesson="A schema is a contract that somebody outside can break at any moment; a 500 that names the column saves the hour of search.",
        alerts=("MetricsSchemaMismatch", "MetricsErrorsHigh"),
    ),
)
