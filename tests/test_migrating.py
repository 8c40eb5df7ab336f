"""The service while a migration runs: whole figures of before or after, never of half a schema, and never a silent wait.

`python3 -m pytest -s tests/test_migrating.py` prints the longest that a request waited.
"""

import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from conftest import DEADLINE, ROOT, add_rows, make_database, wait_for

NOTE = "from version 3 to 4"
STALE = 0.2         # METRICS_STALE_SECONDS, which a migration here always outlasts
HALF = "ALTER TABLE shipments RENAME TO shipments_old"
WHOLE = "ALTER TABLE shipments_old RENAME TO shipments"

# Holds the lock beside the database, and runs the statements that it is given, one a line.
PROGRAM = """
import sqlite3, sys
sys.path.insert(0, sys.argv[1])
import migration_lock
connection = sqlite3.connect(sys.argv[2], isolation_level=None)
with migration_lock.hold(sys.argv[2]) as say:
    say(sys.argv[3])
    print(flush=True)
    for statement in sys.stdin:
        connection.execute(statement)
        print(flush=True)
"""


class Migration:
    """A process that is a migration to all others, and does what it is told."""

    def __init__(self, database):
        command = [sys.executable, "-c", PROGRAM, str(ROOT), str(database), NOTE]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        self.process.stdout.readline()

    def run(self, *statements):
        for statement in statements:
            self.process.stdin.write(statement + "\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "\n", statement

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(DEADLINE) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def migration(database):
    """migration(*statements): a migration of the database that has run these."""
    begun = []

    def begin(*statements):
        begun.append(Migration(database))
        begun[-1].run(*statements)
        return begun[-1]
    yield begin
    for one in begun:
        one.kill()
        one.process.stdout.close()


@pytest.fixture
def service(database, launch):
    """A service that has figures of a single shipment."""
    add_rows(sqlite3.connect(str(database)), [{"reference": "a", "status": "pending"}])
    service = launch(database, stale_seconds=STALE)
    assert service.get("/metrics")[1]["shipments"]["total"] == 1
    return service


def stale(service):
    """The block `stale` of /metrics, None when the figures are fresh or missing."""
    return service.get("/metrics")[1].get("stale")


def too_old(service):
    return (stale(service) or {"age_seconds": 0})["age_seconds"] > STALE


def entries(service):
    """(status code, status of /readyz, (status, reason, output) of both its entries for the database)."""
    code, document = service.get("/readyz")
    found = [document["checks"]["database:" + name][0] for name in ("shipments", "schema")]
    return code, document["status"], [(entry["status"], entry.get("reason"), entry.get("output")) for entry in found]


def running(database):
    return "database %s: migration running: %s" % (database, NOTE)


def changes(service):
    """(event, reason) of all that the log says of the database."""
    lines = [line.split() for line in service.text().splitlines()]
    return [tuple(line[2:4]) for line in lines if line[2].startswith(("database_", "schema_"))]


class Scraper:
    """Asks for the figures without a pause until it is stopped; keeps (status, reason for old figures, shipments, seconds)."""

    def __init__(self, service):
        self.service, self.answers, self.stopped = service, [], threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopped.is_set():
            started = time.monotonic()
            status, document = self.service.get("/metrics")
            old, total = (document.get("stale") or {}).get("reason"), document.get("shipments", {}).get("total")
            self.answers.append((status, old, total, time.monotonic() - started))

    def stop(self):
        self.stopped.set()
        self.thread.join(DEADLINE)
        return self.answers


def test_during_a_whole_migration_every_answer_is_200_with_whole_figures(service, database, migration):
    scraper = Scraper(service)
    step = migration("BEGIN EXCLUSIVE", "INSERT INTO shipments (reference, status) VALUES ('b', 'pending')", HALF)
    wait_for(lambda: too_old(service), "figures that no other lock would bridge")
    assert stale(service)["reason"] == "migrating" and stale(service)["detail"] == running(database)
    assert entries(service) == (200, "warn", [("warn", "migrating", running(database)),
                                              ("warn", "migrating", "migration running: " + NOTE)])
    step.run("COMMIT")      # half a schema, which anybody can read
    wait_for(lambda: too_old(service), "figures that no other lock would bridge")
    assert service.get("/metrics")[1]["shipments"]["total"] == 1
    step.run("BEGIN EXCLUSIVE", WHOLE, "COMMIT")
    wait_for(lambda: stale(service) is None, "fresh figures")
    step.end()
    wait_for(lambda: entries(service) == (200, "pass", [("pass", None, None)] * 2), "the service to be ready without a warning")
    answers = scraper.stop()
    assert {answer[:3] for answer in answers} == {(200, None, 1), (200, "migrating", 1), (200, None, 2)}
    print("\n%d answers, %d of them with figures of before, the longest after %.1f ms" % (
        len(answers), sum(answer[1] == "migrating" for answer in answers), 1000 * max(answer[3] for answer in answers)))
    assert changes(service) == [("database_stale", "reason=migrating"), ("database_recovered", "reason=migrating")]


def test_a_migration_that_hinders_nobody_is_told_by_readyz_alone(service, migration):
    step = migration()
    assert stale(service) is None
    assert entries(service) == (200, "warn", [("pass", None, None), ("warn", "migrating", "migration running: " + NOTE)])
    step.end()
    assert entries(service)[:2] == (200, "pass") and changes(service) == []


def test_a_migration_killed_half_way_is_a_schema_that_does_not_fit(service, database, migration):
    step = migration(HALF)
    assert stale(service)["reason"] == "migrating"
    step.kill()
    assert (service.get("/metrics")[0], service.get("/metrics")[1]["reason"]) == (500, "schema_mismatch")
    assert entries(service)[0] == 503
    sqlite3.connect(str(database)).execute(WHOLE)
    assert stale(service) is None and entries(service)[:2] == (200, "pass")
    assert changes(service) == [("database_stale", "reason=migrating"), ("schema_mismatch", "reason=schema_mismatch"),
                                ("database_recovered", "reason=schema_mismatch")]


def test_a_migration_killed_in_a_transaction_leaves_the_figures_of_before(service, migration):
    step = migration("BEGIN EXCLUSIVE", "DELETE FROM shipments")
    wait_for(lambda: stale(service), "the lock to be felt")
    step.kill()
    assert service.get("/metrics")[1]["shipments"]["total"] == 1 and stale(service) is None
    assert changes(service)[-1] == ("database_recovered", "reason=migrating")


@pytest.mark.parametrize("statement", ["BEGIN EXCLUSIVE", HALF])
def test_a_service_that_starts_during_a_migration_is_not_ready_until_it_can_read(database, launch, migration, statement):
    step = migration(statement)
    service = launch(database)
    status, problem = service.get("/metrics")
    assert (status, problem["reason"], problem["detail"]) == (503, "migrating", running(database))
    assert problem["runbook"] == "docs/runbook.md#migrating"
    assert entries(service) == (503, "fail", [("fail", "migrating", running(database)),
                                              ("warn", "migrating", "migration running: " + NOTE)])
    step.run("COMMIT" if statement != HALF else WHOLE)
    assert stale(service) is None and service.get("/readyz")[0] == 200
    assert changes(service) == [("database_unavailable", "reason=migrating"), ("database_recovered", "reason=migrating")]


def run_check(service):
    """(exit code, lines) of --check with the settings of a service."""
    done = subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--check"], env=service.env, cwd=str(service.folder),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("statement, words", [("SELECT 1", "may"), ("BEGIN EXCLUSIVE", "will"), (HALF, "will")])
def test_the_validation_warns_of_a_migration_and_judges_no_schema_on_its_way(service, database, migration, statement, words):
    migration(statement)
    code, lines = run_check(service)
    warning = "warning: migrating: %s; the service %s start and not be ready" % (running(database), words)
    assert (code, lines) == (0, [warning, "ok, with 1 warning(s): %s, http://127.0.0.1:0" % database])


@pytest.mark.parametrize("statement", ["SELECT 1", "BEGIN EXCLUSIVE", HALF])
def test_a_reload_never_costs_the_figures_that_bridge_a_migration(service, migration, statement):
    instance = service.get("/livez")[1]["instance"]
    time.sleep(STALE)       # the figures are too old for any other lock
    step = migration(statement)
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reload_refused" in service.text(), "the reload to be refused")
    assert "migration running: %s; the service" % NOTE in service.text()
    status, document = service.get("/metrics")
    assert (status, document["shipments"]["total"], document["service"]["instance"]) == (200, 1, instance)
    step.kill()
    sqlite3.connect(str(service.env["METRICS_DB_PATH"])).execute(WHOLE if statement == HALF else "SELECT 1")
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.get("/livez")[1]["instance"] != instance, "the reload")


@pytest.mark.parametrize("start, code, verdict", [
    ("before", 0, "metrics_service WARNING: database migrating: %s (%s)"),
    ("during", 1, "metrics_service FAILING: database migrating: %s (%s)")])
def test_the_check_names_the_migration_and_alarms_where_there_are_no_figures(database, launch, migration, start, code, verdict):
    service = launch(database) if start == "before" else None
    if service:
        service.get("/metrics")
    migration(HALF)
    service = service or launch(database)
    done = subprocess.run([sys.executable, str(ROOT / "health_check.py"), "--url", service.url], stdout=subprocess.PIPE,
                          universal_newlines=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (code, verdict % (running(database), service.url))


def test_a_migration_of_a_database_that_is_then_replaced_bridges_nothing(service, database, migration, tmp_path):
    migration(HALF)
    assert stale(service)["reason"] == "migrating"
    make_database(tmp_path / "other.db").rename(database)
    assert service.get("/metrics")[1]["shipments"]["total"] == 0
