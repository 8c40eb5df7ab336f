"""What the tests share: databases built from schema.sql, and the real service as a process."""

import functools
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
for name in [name for name in os.environ if name.startswith("METRICS_")]:
    del os.environ[name]  # whoever runs the tests may have a service of their own

FILES = sorted(path.name for path in ROOT.iterdir() if path.suffix in (".py", ".sh", ".sql", ".html"))  # what is copied to a host
LONG = bool(os.environ.get("LONG_TESTS"))  # more of what is only sampled otherwise, such as moments to be killed at
CLAIMS = os.environ.get("TEST_CLAIMS")    # a folder that several runs share, see pytest_runtest_protocol
DEADLINE = 10  # s; how long a test waits for what should come at once


@functools.lru_cache(maxsize=None)
def ours(name):
    """Whether no other run has claimed this file of tests before."""
    try:
        os.close(os.open(os.path.join(CLAIMS, name), os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False


def pytest_runtest_protocol(item, nextitem):
    """With TEST_CLAIMS, runs side by side do each file once: it is the run's that comes to it first."""
    return bool(CLAIMS) and not ours(item.path.name) or None


def wait_for(condition, what, deadline=DEADLINE):
    """The first true value of condition(), asked again and again."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("waited %d s in vain for %s" % (deadline, what))


def turn_second():
    """Waits for the next second of the clock: within one, figures of a file at rest are not asked for again."""
    now = int(time.time())
    wait_for(lambda: int(time.time()) > now, "the next second")


def copy_product(folder):
    """The files of FILES and the steps in the folder; the folder."""
    for name in FILES:
        shutil.copy(str(ROOT / name), str(folder))
    shutil.copytree(str(ROOT / "migrations"), str(folder / "migrations"))
    return folder


def add_rows(connection, rows):
    for row in rows:
        columns = ", ".join(row)
        marks = ", ".join("?" for _ in row)
        connection.execute("INSERT INTO shipments (%s) VALUES (%s)" % (columns, marks), list(row.values()))
    connection.commit()


def make_database(path, rows=()):
    """A database from schema.sql with the rows given as dicts of columns; the path."""
    connection = sqlite3.connect(str(path))
    connection.executescript((ROOT / "schema.sql").read_text())
    add_rows(connection, rows)
    connection.close()
    return path


def make_certificate(path, *names):
    """A PEM file of a key and of its certificate for these names, such as DNS:localhost, which signs itself; the path."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "90", "-subj", "/CN=localhost", "-addext", "subjectAltName=" + ",".join(names),
                    "-keyout", str(path), "-out", str(path)], check=True, stderr=subprocess.DEVNULL)
    path.chmod(0o600)
    return path


class Service:
    """metrics_service.py as a process, on a free port; every setting can be given as a keyword."""

    def __init__(self, folder, database, **settings):
        self.folder = Path(str(folder))
        self.output = self.folder / "service.out"
        env = {"PATH": os.environ["PATH"], "METRICS_DB_PATH": str(database), "METRICS_PORT": "0",
               "METRICS_PID_FILE": str(self.folder / "service.pid"), "PYTHONDONTWRITEBYTECODE": "1"}
        env.update(("METRICS_" + name.upper(), str(value)) for name, value in settings.items())
        self.env = {name: value for name, value in env.items() if value != "unset"}
        self.log_file = Path(env.get("METRICS_LOG_FILE", str(self.output)))
        self.process = self.url = None

    def start(self, wait=True, command=(sys.executable, str(ROOT / "metrics_service.py")), **options):
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(list(command), env=self.env, cwd=str(self.folder), stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=subprocess.STDOUT, **options)
        if wait:
            wait_for(lambda: self.address() or self.process.poll() is not None, "the service to start")
            assert self.address(), self.text()
        return self

    def address(self):
        started = re.findall(r"service_started .*?pid=(\d+) url=(https?)://(\S+?):(\d+)[ \"]", self.text())
        if started and int(started[-1][0]) == self.process.pid:
            self.scheme, self.host, self.port = started[-1][1], started[-1][2], int(started[-1][3])
            self.url = "%s://%s:%d" % (self.scheme, self.host, self.port)
        return self.url

    def text(self):
        """All that it has printed and logged."""
        files = {self.output, self.log_file}
        return "".join(file.read_text() for file in files if file.is_file())

    def request(self, path, method="GET", headers=None):
        """(status, headers, body) of one request on a connection of its own."""
        kind, options = http.client.HTTPConnection, {}
        if self.scheme == "https":
            kind, options = http.client.HTTPSConnection, {"context": ssl._create_unverified_context()}
        connection = kind(self.host, self.port, timeout=DEADLINE, **options)
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        """(status, document) of a JSON answer."""
        status, _, body = self.request(path)
        return status, json.loads(body.decode())

    def stop(self, number=signal.SIGTERM):
        """Sends the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def database(tmp_path):
    """An empty shipments database."""
    return make_database(tmp_path / "shipments.db")


@pytest.fixture
def launch(tmp_path):
    """Starts services: launch(database, wait=True, **settings) -> Service. All end with the test."""
    services = []

    def start(database, wait=True, **settings):
        folder = tmp_path / ("service%d" % len(services))
        folder.mkdir()
        services.append(Service(folder, database, **settings))
        return services[-1].start(wait)
    yield start
    for service in services:
        service.end()


def pytest_configure(config):
    config.option.reportchars += "s"  # why a test was skipped is always said


def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test is a failure: what could not run there proves nothing. Only real data may be absent (licence)."""
    reports = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    skipped = [report.nodeid for report in reports if "SCMS delivery history" not in str(report.longrepr)]
    if os.environ.get("CI") and skipped and exitstatus == 0:
        session.exitstatus = 1
        print("\nskipped in CI: " + ", ".join(skipped))
