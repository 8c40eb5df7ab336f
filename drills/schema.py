"""Drills of the schema and of derived data."""

import os
import shutil

from drills.database import NIGHTLY, RESTART, RESTORE, backup, keep_a_backup, kept, restore_alone, stop_the_writer
from drills.scenario import Scenario, Trap, by_hand, check, cure, http, log, metric, never, same_instance, stays, tells

NEXT_STEP = """-- 6: adds a priority, and the carriers as a table.
ALTER TABLE shipments ADD COLUMN priority TEXT;
CREATE TABLE carriers (name TEXT PRIMARY KEY);
INSERT INTO carriers SELECT DISTINCT carrier FROM shipments WHERE carrier IS NOT NULL;
"""
REPLACING = """
INSERT OR REPLACE INTO shipments ({columns})
SELECT {columns} FROM shipments WHERE reference GLOB 'SHP-*' ORDER BY reference LIMIT 12
"""
RENAME_BACK = """python3 -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(
    "ALTER TABLE shipments RENAME COLUMN NOW TO BEFORE")' "$METRICS_DB_PATH"
"""
REPAIR = 'python3 migrate.py "$METRICS_DB_PATH" repair'
FORCED = """python3 -c 'import sqlite3, sys
sqlite3.connect(sys.argv[1], timeout=9, isolation_level=None).executescript(sys.argv[2])' """


def forced(sql):
    """A shell command that changes the database by hand."""
    return FORCED + '"$METRICS_DB_PATH" "%s"' % sql


def triggered(name):
    """A shell command that makes a trigger of schema.sql by hand."""
    return ("python3 -c 'import seed, sqlite3, sys\n"
            "sqlite3.connect(sys.argv[1], timeout=9).execute(seed.schema().triggers[sys.argv[2]])' "
            '"$METRICS_DB_PATH" ' + name)


def columns(box):
    return {row[1] for row in box.sql("PRAGMA table_info(shipments)")}


def rename_a_column(box):
    box.sql("ALTER TABLE shipments RENAME COLUMN carrier TO carrier_name")
    box.require("carrier" not in columns(box), "the column is renamed")
    return "shipments has carrier_name and no carrier"


def objects(box, kind):
    return {row[0] for row in box.sql("SELECT name FROM sqlite_master WHERE type = ?", kind)}


def apply_the_next_release(box):
    """Puts the folder of an invented next release beside ours, and lets its migrate.py bring the database to its version."""
    folder = box.path("next")
    os.mkdir(folder)
    for name in os.listdir(box.app):
        if name.endswith((".py", ".sql")):
            shutil.copy(os.path.join(box.app, name), folder)
    shutil.copytree(box.path("app/migrations"), os.path.join(folder, "migrations"))
    box.write("next/migrations/0006_add_priority.sql", NEXT_STEP)
    done = box.shell("python3 ../next/migrate.py shipments.db apply")
    box.require(done.code == 0 and box.sql("PRAGMA user_version") == [(6,)], "the database is of version 6")
    return "PRAGMA user_version is 6, of a release that has migrations/0006_add_priority.sql"


def run_half_a_step(box):
    box.script_sql("DROP TRIGGER shipments_update; ALTER TABLE shipments ADD COLUMN priority TEXT; "
                   "CREATE TABLE carriers (name TEXT PRIMARY KEY)")
    box.require("priority" in columns(box) and "carriers" in objects(box, "table"), "half of the step is there")
    return "shipments.priority and carriers are there, the trigger shipments_update is not, user_version is 5"


def drop_a_trigger(box):
    before = len(box.acknowledged())
    box.sql("DROP TRIGGER shipments_insert")
    box.wait(lambda: len(box.acknowledged()) > before + 3, "rows that no trigger counts")
    return "the trigger shipments_insert is missing, and rows came since"


def drop_the_indexes(box):
    for name in ("shipments_due", "shipments_updated"):
        box.sql("DROP INDEX " + name)
    box.require(not objects(box, "index") & {"shipments_due", "shipments_updated"}, "the indexes are gone")
    return "the indexes shipments_due and shipments_updated are missing"


def replace_rows(box):
    names = ", ".join(row[1] for row in box.sql("PRAGMA table_info(shipments)") if row[1] != "id")
    before = box.sql("SELECT sum(shipments) - (SELECT count(*) FROM shipments) FROM rollup_lane")
    box.script_sql(REPLACING.format(columns=names))
    after = box.sql("SELECT sum(shipments) - (SELECT count(*) FROM shipments) FROM rollup_lane")
    box.require(before == [(0,)] and after == [(12,)], "the rollups count 12 rows twice")
    return "the rollups say 12 shipments more than there are rows"


ANSWERING = (stays("/livez", 200), stays("/metrics", 200), same_instance(), never("Traceback"))
MERGED = 'python3 seed.py "$METRICS_DB_PATH" --merge KEPT\npython3 seed.py "$METRICS_DB_PATH" --verify'

SCENARIOS = (
    Scenario(
        id="D29", name="schema-older", title="A column that the figures need was renamed under the running service",
        layer="schema", level=1, set="ci", needs="", founding="3-column-does-not-exist.md",
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
            cure("schema_mismatch", RENAME_BACK, NOW="carrier_name", BEFORE="carrier"),
        ),
        traps=(
            Trap("add the missing column by hand",
                 'python3 -c \'import sqlite3; sqlite3.connect("shipments.db", isolation_level=None).execute("ALTER '
                 'TABLE shipments ADD COLUMN carrier TEXT")\'',
                 "the answer becomes 200 and the figures wrong: every carrier is empty"),
            Trap("teach the query the new name", "sed -i 's/\\bcarrier\\b/carrier_name/g' store.py; ./restart_service.sh",
                 "one query of many, in one host's copy: the start is refused, and the next release undoes it"),
            Trap("restart the service", "./restart_service.sh",
                 "the start is refused for what the running one answers 500: only /livez would be lost"),
        ),
        hints=(
            "Ask what the steps made and what is there now: python3 migrate.py shipments.db status",
            "The column carrier is missing and carrier_name is extra, and no step did it: somebody renamed it by hand.",
            "Rename it back by the block of the runbook's schema_mismatch, then migrate.py verify. No restart.",
        ),
        prevention="migrate.py is the way to change the schema: it records each step, and compares",
        proofs=("F", "L", "Q", "V", "S"), cause="column-renamed", anchor="schema_mismatch",
        lesson="A schema is a contract that somebody outside can break at any moment; a 500 that names the column saves "
               "the hour of search.",
        alerts=("MetricsSchemaMismatch", "MetricsErrorsHigh", "MetricsLogErrors"),
    ),
    Scenario(
        id="D30", name="schema-newer", title="The next release has migrated the database, and was then called off",
        layer="schema", level=2, set="ci", needs="", founding="",
        page="Tonight's release was called off after its migration. The old folder is in place again; the check warns.",
        goal="The database has the schema of this release, and every row that was acknowledged, also since the migration.",
        inject=apply_the_next_release,
        expected=(
            check("database schema_mismatch: schema version 6 is newer than the 5 of this release", 0),
            log("WARNING schema_warning .*version 6 is newer"),
            http("/readyz", 200, "version 6 is newer"),
            tells("python3 metrics_service.py --env-file metrics.env --check", 78, "version 6 is newer"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("schema_mismatch", 'python3 migrate.py "$METRICS_DB_PATH" restore'),
            cure("put-back-start-writers-anew", MERGED, KEPT=kept),
        ),
        traps=(
            Trap("set the version back", forced("PRAGMA user_version = 5"),
                 "the service is content, and the next apply meets a record that contradicts the number, and columns "
                 "that no step of this release made"),
            Trap("restore, and be content", restore_alone, "what was written since the migration is in the kept file alone"),
            Trap("restart the service", RESTART, "its start would be refused; the script leaves the running one alone"),
        ),
        hints=(
            "Ask what the database is: python3 migrate.py shipments.db status",
            "It is of version 6, this folder ends with 5. The backup that the migration made is of version 5, from just "
            "before it.",
            "Stop the writers, migrate.py restore, then seed.py --merge of the kept file. Never lower user_version.",
        ),
        prevention="the order of a deployment: release, plan, apply, restart; going back is a restore and a merge",
        proofs=("F", "L", "Q", "V", "S"), cause="schema-newer", anchor="schema_mismatch",
        lesson="Steps never lead back. A way back that forgets the rows since then is a loss with a good conscience.",
        alerts=(),
    ),
    Scenario(
        id="D31", name="half-migrated", title="A migration was run by hand, statement by statement, and failed half way",
        layer="schema", level=2, set="ci", needs="", founding="", prepare=keep_a_backup,
        page="Somebody could not wait for the release and typed its migration in. It failed at the third statement. The "
             "check warns.",
        goal="The schema is whole and that of this release, over all rows.",
        inject=run_half_a_step,
        expected=(
            check("database schema_mismatch: trigger shipments_update is missing", 0),
            log("WARNING schema_warning .*trigger shipments_update is missing"),
            tells('python3 migrate.py "$METRICS_DB_PATH" status', 3, "changed by hand: column shipments.priority is extra"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("schema_mismatch", RESTORE, BACKUP=backup),
            cure("put-back-start-writers-anew", MERGED, KEPT=kept),
        ),
        traps=(
            Trap("repair", REPAIR, "it puts triggers back, and refuses where a column is extra: that is for a person to judge"),
            Trap("make only the trigger again", triggered("shipments_update"),
                 "the warning goes, and the next apply is refused: a column is extra that no step has made"),
            Trap("say that it is done", forced("PRAGMA user_version = 6"), "the number is a claim; the start is refused for it"),
        ),
        hints=(
            "Ask what the steps made and what is there: python3 migrate.py shipments.db status",
            "A trigger is missing and a column extra, with the old version: a step was run by hand and not to its end.",
            "Stop the writers, migrate.py restore BACKUP, then seed.py --merge of the kept file. Then apply the step by "
            "migrate.py.",
        ),
        prevention="migrate.py apply: one transaction for each step, proven before its commit, killed at any moment "
                   "without a trace",
        proofs=("F", "L", "Q", "V", "S"), cause="half-migrated", anchor="schema_mismatch",
        lesson="Outside of a transaction each statement is a state of its own, and nobody has planned for it.",
        alerts=(),
    ),
    Scenario(
        id="D32", name="triggers-dropped", title="A trigger was dropped, and the figures drift from the rows",
        layer="schema", level=2, set="ci", needs="", founding="",
        page="The feed is faster since a colleague made it so. The total on the dashboard does not grow any more.",
        goal="The figures are those of the rows, and stay so.",
        inject=drop_a_trigger,
        expected=(
            check("database schema_mismatch: trigger shipments_insert is missing", 0),
            log("WARNING schema_warning .*trigger shipments_insert is missing"),
            http("/readyz", 200, "trigger shipments_insert is missing"),
            tells('python3 seed.py "$METRICS_DB_PATH" --verify', 1, "the rollups do not agree with the rows"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("schema_warning", REPAIR),
        ),
        traps=(
            Trap("make the trigger again by hand", triggered("shipments_insert"),
                 "the warning goes, and what came meanwhile stays uncounted for ever"),
            Trap("correct the numbers by hand", forced("UPDATE rollup_lane SET shipments = shipments + 5 WHERE carrier = ''"),
                 "one table of six, one column of ten, and the next row is not counted either"),
            Trap("restart the service", RESTART, "it reads what the database has; nothing in it counts rows"),
        ),
        hints=(
            "Compare the rollups with the rows: python3 seed.py shipments.db --verify",
            "The trigger that counts new rows is missing: rows are there, and the figures do not know them.",
            "python3 migrate.py shipments.db repair: backup, the trigger as the steps made it, the rollups from the rows.",
        ),
        prevention="the schema is compared whenever it moves; bulk loads by seed.py, which puts the triggers back in "
                   "its transaction",
        proofs=("F", "L", "Q", "V", "S"), cause="trigger-dropped", anchor="schema_warning",
        lesson="Derived figures are right as long as everything that derives them is there. Putting the part back is "
               "half the repair.",
        alerts=(),
    ),
    Scenario(
        id="D33", name="replace-import", title="A script wrote with INSERT OR REPLACE, past the triggers",
        layer="schema", level=3, set="hand", needs="", founding="",
        page="cron mailed the nightly look at the database. The total is some higher than the warehouse says.",
        goal="The figures are those of the rows.",
        inject=replace_rows,
        expected=(
            tells(NIGHTLY, 1, "rollup_lane .*stored shipments"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("inconsistent", 'python3 seed.py "$METRICS_DB_PATH" --rebuild'),
        ),
        traps=(
            Trap("restart the service", RESTART, "it adds nothing up itself; it reads the rollups, which are wrong"),
            Trap("delete what is double",
                 forced("DELETE FROM shipments WHERE id IN (SELECT max(id) FROM shipments WHERE reference GLOB 'SHP-*' "
                        "GROUP BY reference ORDER BY 1 DESC LIMIT 12)"),
                 "no row is double: the rollups counted twice what is there once"),
        ),
        hints=(
            "Compare the rollups with the rows: python3 seed.py shipments.db --verify",
            "The rollups have more than the rows: something deleted rows without the triggers, which is what OR REPLACE does.",
            "python3 seed.py shipments.db --rebuild, then change the script to ON CONFLICT (reference) DO UPDATE.",
        ),
        prevention="seed.py writes by ON CONFLICT DO UPDATE, which triggers see; deploy/cron/metrics_verify finds who does not",
        proofs=("F", "L", "Q", "V", "S"), cause="replace-import", anchor="inconsistent",
        lesson="Three letters in a statement, and no error anywhere. Whatever is derived has to be recomputed now and then.",
        alerts=(),
    ),
    Scenario(
        id="D34", name="index-dropped", title="The indexes behind two queries of every scrape were dropped",
        layer="schema", level=2, set="ci", needs="", founding="",
        page="A tool advised to drop two indexes that nobody uses. The check warns since. Figures are right.",
        goal="The indexes are as the schema has them.",
        inject=drop_the_indexes,
        expected=(
            check("database schema_mismatch: index shipments_due is missing; index shipments_updated is missing", 0),
            log("WARNING schema_warning .*index shipments_updated is missing"),
            http("/readyz", 200, "index shipments_due is missing"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("schema_warning", REPAIR),
        ),
        traps=(
            Trap("give the queries more time",
                 "echo METRICS_QUERY_TIMEOUT=30 >> metrics.env; ./restart_service.sh reload --timeout 5",
                 "each scrape reads the whole table, and slower with each row that comes"),
            Trap("make one like it by hand", forced("CREATE INDEX shipments_updated ON shipments (updated_at, carrier)"),
                 "by the name it is there, by its columns it is another: the comparison reads both"),
        ),
        hints=(
            "Ask what differs from the schema: python3 metrics_service.py --env-file metrics.env --check",
            "Two indexes are missing. The answers stay right; what they cost grows with the table.",
            "python3 migrate.py shipments.db repair makes them as the steps made them.",
        ),
        prevention="a test that looks at the plan of each query; the comparison of the schema at every start and change",
        proofs=("F", "L", "Q", "V", "S"), cause="index-dropped", anchor="schema_warning",
        lesson="An index that nobody misses today is the outage of the day when the table has grown.",
        alerts=("MetricsQueriesSlow",),
    ),
)
