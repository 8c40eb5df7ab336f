"""The three founding incidents of docs/incidents/, injected for real, and the runbook held against the code.

Each incident: symptom, detecting line, the check's verdict, recovery by the commands that its page prints, rows as before.
`python3 -m pytest -s tests/test_incidents.py` prints the figures that the pages give as measured.
"""

import ast
import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import eventlog
import health_check
import store
import webserver
from conftest import ROOT, Service, copy_product, wait_for

PAGES = ROOT / "docs" / "incidents"
RUNBOOK = ROOT / "docs" / "runbook.md"
NOBODY = 65534
ROWS = 500
MASKS = (                               # what differs between two runs, and what stands for it
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"route=\S+ request_id=\S+", "REQUEST"),
    (r"(?<![\w./:])/(?:[\w.-]+/)+", "/"),
    (r"127\.0\.0\.1(:| port )\d+", "ADDRESS"),
    (r"\b[0-9a-f]{32}\b", "INSTANCE"),
)
RENAME = "ALTER TABLE shipments RENAME COLUMN %s TO %s"
WRITER = """
import itertools, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)
for number in itertools.count():
    connection.execute("INSERT INTO shipments (reference, status) VALUES (?, 'pending')", ("LIVE-%d" % number,))
    print("LIVE-%d" % number, flush=True)
    time.sleep(0.01)
"""


class Installation:
    """A copy of the product in a folder that any user can reach, with a seeded database and an env file."""

    def __init__(self, folder):
        self.folder, self.database, self.env_file = folder, folder / "shipments.db", folder / "metrics.env"
        self.url = "http://127.0.0.1:8321"
        folder.chmod(0o755)
        copy_product(folder)
        self.shell("%s seed.py shipments.db --rows %d --random-seed 1" % (sys.executable, ROWS))
        self.settings = "METRICS_DB_PATH=shipments.db\nMETRICS_PORT=0\nMETRICS_PID_FILE=service.pid\n"
        self.env_file.write_text(self.settings)

    def shell(self, commands):
        """(exit code, output) of bash, here; python3 is the interpreter of this test."""
        env = {"PATH": "%s:%s" % (self.folder / "bin", os.environ["PATH"]), "PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}
        (self.folder / "bin").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (self.folder / "bin" / "python3").symlink_to(sys.executable)
        done = subprocess.run(["bash", "-ec", commands], cwd=str(self.folder), env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        return done.returncode, done.stdout

    def follow(self, page, **names):
        """Runs the commands under "Mitigation and resolution" of a page, its example names replaced by ours."""
        section = re.search(r"## 13\. .*?\n## 14\.", (PAGES / page).read_text(), re.DOTALL).group()
        commands = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))
        for example, ours in [("/srv/shipments.db", self.database), ("http://127.0.0.1:8321", self.url)] + list(names.items()):
            commands = commands.replace(example, str(ours))
        return self.shell(commands)

    def check(self, url=None):
        """(exit code, output) of health_check.py."""
        return self.shell("python3 health_check.py --url %s" % (url or self.url))

    def answering(self):
        """(exit code, instance) of what the PID file stands for."""
        code, output = self.shell("./restart_service.sh status")
        return code, re.findall(r"instance (\w+)", output)

    def fingerprint(self):
        """The number of seeded rows, and SHA-256 over them, every column with its type, ordered by reference."""
        with contextlib.closing(sqlite3.connect(str(self.database))) as connection:
            rows = connection.execute("SELECT * FROM shipments WHERE reference NOT LIKE 'LIVE-%' ORDER BY reference").fetchall()
        typed = "\n".join(repr([(type(value).__name__, value) for value in row]) for row in rows)
        return len(rows), hashlib.sha256(typed.encode()).hexdigest()

    def run(self, command):
        with contextlib.closing(sqlite3.connect(str(self.database), isolation_level=None)) as connection:
            connection.execute(command)


@pytest.fixture
def installed():
    folder = Path(tempfile.mkdtemp(prefix="incident_"))
    installation = Installation(folder)
    yield installation
    installation.env_file.write_text(installation.settings)
    installation.shell("./restart_service.sh stop")
    shutil.rmtree(str(folder))


@pytest.fixture
def serve(installed):
    """Starts services of the installation, each in a folder of its own: serve(**settings) -> Service."""
    services = []

    def start(unprivileged=False, **settings):
        folder = installed.folder / ("service%d" % len(services))
        folder.mkdir()
        services.append(Service(folder, installed.database, **settings))
        options = drop_privileges(folder) if unprivileged else {}
        python = options.pop("python", sys.executable)
        return services[-1].start(command=(python, str(installed.folder / "metrics_service.py")), **options)
    yield start
    for service in services:
        service.end()


def drop_privileges(folder):
    """How to run a service as a user whom permissions bind: as nobody where we are root, else as we are."""
    if os.geteuid():
        return {}
    python = shutil.which("python3", path="/usr/bin:/bin")
    if not python:
        pytest.skip("no Python that an unprivileged user can run")
    for path in [folder] + list(folder.iterdir()):
        os.chown(str(path), NOBODY, NOBODY)

    def become_nobody():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return {"python": python, "preexec_fn": become_nobody}


def masked(line):
    for pattern, word in MASKS:
        line = re.sub(pattern, word, line)
    return line.strip()


def quoted(page, line):
    """Whether a page has this line, but for times, folders and addresses."""
    return masked(line) in [masked(other) for other in (PAGES / page).read_text().splitlines()]


def line_with(word, text):
    """The first line that has the word."""
    return next((line for line in text.splitlines() if word in line), None)


def tell(incident, **figures):
    print("\nincident %d: %s" % (incident, ", ".join("%s %s" % (name, value) for name, value in figures.items())))


# Incident 1: the database path is not set

PATH_NOT_SET = "1-database-path-not-set.md"


def lose_the_variable(installed):
    installed.env_file.write_text(installed.settings.replace("METRICS_DB_PATH=shipments.db\n", ""))


def test_a_start_without_the_database_path_is_refused_with_78_and_names_the_variable(installed):
    lose_the_variable(installed)
    started = time.monotonic()
    code, output = installed.shell("python3 metrics_service.py --env-file metrics.env")
    tell(1, refused_after_s=round(time.monotonic() - started, 2))
    line = line_with("ERROR config_invalid", output)
    assert code == 78
    assert "METRICS_DB_PATH is not set; set it to the shipments database" in line
    assert quoted(PATH_NOT_SET, line)


def test_a_restart_that_has_lost_the_database_path_leaves_the_old_service_serving(installed):
    installed.shell("./restart_service.sh start")
    before = installed.answering()
    lose_the_variable(installed)
    started = time.monotonic()
    code, output = installed.shell("./restart_service.sh")
    tell(1, restart_refused_after_s=round(time.monotonic() - started, 2))
    assert code == 1
    assert quoted(PATH_NOT_SET, line_with("error: METRICS_DB_PATH is not set", output))
    assert quoted(PATH_NOT_SET, line_with("nothing was stopped or started", output))
    assert before[0] == 0 and installed.answering() == before


def test_incident_1_is_seen_by_the_check_and_healed_by_its_page_with_the_rows_unharmed(installed):
    before = installed.fingerprint()
    lose_the_variable(installed)
    assert installed.shell("./restart_service.sh start")[0] == 1
    code, output = installed.check("http://127.0.0.1:1")    # nothing listens there, as on the port of a refused service
    assert code == 1
    assert quoted(PATH_NOT_SET, output.splitlines()[0])
    started = time.monotonic()
    code, output = installed.follow(PATH_NOT_SET)
    tell(1, recovered_after_s=round(time.monotonic() - started, 2), rows=before[0])
    assert code == 0, output
    assert "metrics_service OK: 5 checks" in output and "%d shipments counted" % ROWS in output
    assert installed.fingerprint() == before


# Incident 2: the log file is not writable

NOT_WRITABLE = "2-log-file-not-writable.md"


def deny(path):
    path.write_text("")
    path.chmod(0o444)


def fill(path):
    path.symlink_to("/dev/full")


LOG_FAULTS = (  # reason, inject, mend, whether permissions must bind the service; the page mends the first
    ("denied", deny, None, True),
    ("disk_full", fill, lambda path: path.unlink(), True),      # as root a link is not followed
    ("not_a_file", Path.mkdir, Path.rmdir, False),
    ("missing", lambda path: path.parent.rmdir(), lambda path: path.parent.mkdir(), False),
)


def log_path(installed, reason, inject, unprivileged):
    """A log file's path with the fault at it."""
    folder = installed.folder / reason
    folder.mkdir()
    path = folder / "metrics_service.log"
    inject(path)
    if unprivileged and not os.geteuid():
        os.chown(str(folder), NOBODY, NOBODY)
        os.lchown(str(path), NOBODY, NOBODY)
    return path


def logging_of(service):
    return service.get("/metrics")[1]["logging"]


def test_incident_2_costs_one_warning_and_no_request_and_is_healed_by_its_page_without_a_restart(installed, serve):
    before, running, started = installed.fingerprint(), [], time.monotonic()
    for reason, inject, mend, unprivileged in LOG_FAULTS:     # side by side: a service tries its log file again every 5 s only
        path = log_path(installed, reason, inject, unprivileged)
        running.append((reason, path, mend, serve(unprivileged, log_file=path)))
    for reason, path, mend, service in running:
        text = service.output.read_text()
        assert text.count("WARNING log_fallback reason=%s target=stdout" % reason) == 1
        assert "service_started" in text and "Traceback" not in text
        assert quoted(NOT_WRITABLE, line_with("log_fallback", text))
        code, output = installed.check(service.url)
        assert code == 0
        assert quoted(NOT_WRITABLE, output.splitlines()[0])
        assert (service.get("/readyz")[0], logging_of(service)["target"]) == (200, "stdout")
    for reason, path, mend, service in running[1:]:
        mend(path)
    _, denied, _, service = running[0]      # this one is healed as the page says
    installed.url = service.url
    code, output = installed.follow(NOT_WRITABLE, **{"/var/log/metrics/metrics_service.log": denied})
    assert code == 0, output
    assert "metrics_service OK: 5 checks" in output
    assert quoted(NOT_WRITABLE, line_with("log_recovered", denied.read_text()))
    for reason, path, mend, service in running:
        wait_for(lambda: logging_of(service)["target"] == "file", "%s to be over" % reason)
        assert " INFO log_recovered reason=%s path=%s\n" % (reason, path) in path.read_text()
        assert service.process.poll() is None
    tell(2, fault_and_recovery_s=round(time.monotonic() - started, 1), services=len(running), rows=before[0])
    assert installed.fingerprint() == before


# Incident 3: a column does not exist

NO_COLUMN = "3-column-does-not-exist.md"


@contextlib.contextmanager
def writer(installed):
    """Keeps adding shipments; yields the file that gets a reference once its row is committed."""
    ledger = installed.folder / "acknowledged"
    with ledger.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(installed.database)], stdout=output)
    try:
        wait_for(lambda: ledger.stat().st_size, "the first row")
        yield ledger
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def missing_rows(installed, ledger):
    """The number of acknowledged rows, and those of them that the database does not have."""
    acknowledged = set(re.findall(r"LIVE-\d+(?=\n)", ledger.read_text()))
    with contextlib.closing(sqlite3.connect(str(installed.database))) as connection:
        return len(acknowledged), acknowledged - {row[0] for row in connection.execute("SELECT reference FROM shipments")}


def test_incident_3_answers_500_and_names_the_column_until_its_page_is_followed_without_a_restart(installed, serve):
    before, service = installed.fingerprint(), serve()
    instance, installed.url = service.get("/livez")[1]["instance"], service.url
    with writer(installed) as ledger:
        installed.run(RENAME % ("carrier", "carrier_name"))
        renamed = time.monotonic()
        status, problem = service.get("/metrics")
        detected = time.monotonic()
        assert (status, problem["reason"]) == (500, "schema_mismatch")
        assert "column shipments.carrier is missing" in problem["detail"]
        assert quoted(NO_COLUMN, line_with("ERROR schema_mismatch", service.text()))
        assert (service.get("/livez")[0], service.get("/readyz")[0]) == (200, 503)
        code, output = installed.check()
        assert code == 1
        assert quoted(NO_COLUMN, output.splitlines()[0])
        code, output = installed.shell("python3 migrate.py shipments.db status")
        assert code == 3
        assert {"changed by hand: column shipments.carrier is missing",
                "changed by hand: column shipments.carrier_name is extra"} <= set(output.splitlines())
        started = time.monotonic()
        code, output = installed.follow(NO_COLUMN)
        recovered = time.monotonic()
    count, missing = missing_rows(installed, ledger)
    tell(3, detected_after_s=round(detected - renamed, 2), recovered_after_s=round(recovered - started, 2), rows=before[0],
         acknowledged=count, missing=len(missing))
    assert code == 0, output
    assert "as its steps made it, sound" in output and "metrics_service WARNING: log recovered" in output
    assert quoted(NO_COLUMN, line_with("database_recovered", service.text()))
    assert (service.get("/metrics")[0], service.get("/livez")[1]["instance"]) == (200, instance)
    assert installed.fingerprint() == before and not missing


def test_incident_3_by_a_defect_in_a_query_names_the_column_too_and_ends_with_the_right_file(installed):
    before, script = installed.fingerprint(), installed.folder / "store.py"
    script.write_text(script.read_text().replace("sum(on_time), sum(late),", "sum(ontime), sum(late),"))
    code, output = installed.shell("./restart_service.sh start --timeout 1")
    text = (installed.folder / "service.pid.out").read_text()
    assert code == 1 and "now running: pid" in output
    assert "sqlite3: no such column: ontime" in line_with("ERROR schema_mismatch", text)
    assert quoted(NO_COLUMN, line_with("ERROR schema_mismatch", text))
    shutil.copy(str(ROOT / "store.py"), str(script))
    assert installed.shell("./restart_service.sh")[0] == 0
    assert installed.fingerprint() == before


# The runbook: an entry for every word that can be printed, and for no other

WORD = re.compile(r"[a-z][a-z_]*\Z")
MESSAGE = re.compile(r'(?:die|give_up|change_instance (?:\w+|"\$1")) "((?:[^"\\]|\\.)*)"')


def calls(tree, *names):
    """The argument lists of the calls of functions and methods by these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) in names:
            yield node.args


def words_in(node):
    """The words that an expression can give: 'a', x or 'a', 'a' if x else 'b', next(x, 'a')."""
    if isinstance(node, ast.BoolOp):
        return {word for value in node.values for word in words_in(value)}
    if isinstance(node, ast.IfExp):
        return words_in(node.body) | words_in(node.orelse)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "next":
        return words_in(node.args[-1])
    value = node.value if hasattr(node, "value") else getattr(node, "s", None)    # s: before Python 3.8
    return {value} if isinstance(value, str) and WORD.match(value) else set()


def assigned(tree, name):
    """The expressions assigned to a variable, alone or as the first of two."""
    for node in ast.walk(tree):
        for target in getattr(node, "targets", ()):
            if getattr(target, "id", None) == name:
                yield node.value
            elif isinstance(target, ast.Tuple) and getattr(target.elts[0], "id", None) == name and isinstance(node.value, ast.Tuple):
                yield node.value.elts[0]


def returned(tree):
    """The first of several values that a function returns."""
    return [node.value.elts[0] for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)]


def function(tree, name):
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def service_words():
    """Every event above INFO and every reason of the service."""
    tree = ast.parse("".join((ROOT / name).read_text() for name in ("metrics_service.py", "store.py", "eventlog.py")))
    events = [args[1] for args in calls(tree, "event", "made") if getattr(args[0], "attr", "") not in ("INFO", "DEBUG")]
    events += [value.elts[0] for value in assigned(tree, "state") if isinstance(value, ast.Tuple)]
    reasons = [args[0] for args in calls(tree, "Trouble")]
    reasons += [value for name in ("damage", "obstacle", "look") for value in returned(function(tree, name))]
    reasons += [keyword.value for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords
                if keyword.arg == "reason"]
    words = {word for node in events + reasons for word in words_in(node)}
    return (words | {"io_error"} | set(eventlog.ERRNO_REASONS.values())
            | {reason for _, reason in store.MESSAGES})


def check_words():
    """Every reason of the check."""
    tree = ast.parse((ROOT / "health_check.py").read_text())
    nodes = [args[1] for args in calls(tree, "Trouble", "Finding") if len(args) > 1]
    nodes += [args[0] for args in calls(tree, "trouble")] + list(assigned(tree, "reason"))
    nodes += [value for name in ("disagreement",) for value in returned(function(tree, name))]
    words = {word for node in nodes for word in words_in(node)}
    stages = {getattr(health_check, name)[0] for name in ("LOOKUP", "CONNECT", "HANDSHAKE", "SILENCE", "HEAD", "BODY")}
    return (words | stages | {ending[1] for ending in health_check.ENDINGS} | set(health_check.FILE_REASONS.values()) | {"io_error"})


def trends_words():
    """Every reason of the history that the check keeps."""
    tree = ast.parse((ROOT / "trends.py").read_text())
    nodes = [args[0] for args in calls(tree, "Trouble")]
    for name in ("open_history", "claim", "keep", "review"):
        nodes += [node.elts[0] for node in ast.walk(function(tree, name)) if isinstance(node, ast.Tuple)]
    return {word for node in nodes for word in words_in(node)}


def counter_words():
    """Every counter of connections that tells of a trouble."""
    return {name + "_total" for name in webserver.COUNTS} - {"accepted_total", "idle_timeouts_total"}


def headings():
    return re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.MULTILINE)


def test_the_runbook_has_an_entry_for_every_word_that_is_printed_and_for_no_other():
    entries = {heading for heading in headings() if WORD.match(heading)}
    assert entries == service_words() | check_words() | trends_words() | counter_words()


def test_the_collection_of_words_has_those_that_each_of_its_ways_finds():
    assert {"config_invalid", "database_stale", "schema_mismatch", "log_fallback", "hot_journal", "truncated", "defect",
            "encoding", "denied", "reload_refused", "certificate_ends", "accept_failed"} <= service_words()
    assert {"refused", "silent", "credentials", "proxy", "certificate", "frozen", "inconsistent", "not_ready", "stale"} <= check_words()
    assert {"history_damaged", "history_busy", "history_unusable", "watch_missing"} <= trends_words()


def test_every_other_heading_of_the_runbook_is_an_alert_or_a_piece_of_a_message_of_the_restart_script_or_of_migrate_py():
    names = ("restart_service.sh", "supervision.py", "migrate.py", "steps.py", "deploy/prometheus/alerts.yml")
    source = "".join((ROOT / name).read_text() for name in names)
    assert [heading for heading in headings() if not WORD.match(heading) and heading not in source] == []


def test_the_runbook_explains_every_message_with_which_the_restart_script_gives_up():
    messages = [message for message in MESSAGE.findall((ROOT / "restart_service.sh").read_text()) if message not in ("$1", "$2")]
    assert len(messages) > 15
    assert [message for message in messages if not any(heading in message for heading in headings())] == []


def test_every_entry_of_the_runbook_says_meaning_first_commands_and_cure():
    entries = re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    parts = ("\nMeaning: ", "\n```bash\n", "\nCure: ")
    assert [entry.splitlines()[0] for entry in entries if not all(part in entry for part in parts)] == []


def anchors():
    titles = re.findall(r"^##+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_no_anchor_of_the_runbook_is_given_twice():
    assert len(anchors()) == len(set(anchors()))


def test_every_link_to_an_entry_of_the_runbook_leads_somewhere():
    pages = [RUNBOOK] + sorted(PAGES.glob("*.md"))
    links = {link for page in pages for link in re.findall(r"\]\((?:\.\./runbook\.md)?#(\w+)\)", page.read_text())}
    assert len(links) > 10 and links <= set(anchors())


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("[0-9]*.md")))
def test_an_incident_page_has_the_twenty_fields_in_order(page):
    numbers = re.findall(r"^## (\d+)\. ", (PAGES / page).read_text(), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 21)]
