"""A fleet on loopback: real services on seeded databases, and one real Prometheus that scrapes them by the shipped files."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import seed                                                             # noqa: E402
from conftest import Service, make_certificate, wait_for                # noqa: E402
from smoke import free_port                                             # noqa: E402

SHIPPED = ROOT / "deploy" / "prometheus"
JOB = "metrics_service"
PATIENCE = 30           # s for all to be up, and for a state to be seen
REGIONS = ("north", "south")
CLOSED = "status IN ('delivered', 'returned', 'cancelled')"
# Every definition anew, from the rows alone. A time of 10 characters is a date; of different precision, both count as dates.
DATES = "min(length({0}), length({1})) = 10"
NO_LATER = ("CASE WHEN " + DATES + " THEN substr({0}, 1, 10) <= substr({1}, 1, 10) ELSE {0} <= {1} END")
START = "coalesce(shipped_at, created_at)"
TOTALS = {
    "shipments": "SELECT status, count(*) FROM shipments GROUP BY status",
    "overdue": "SELECT '', count(*) FROM shipments WHERE NOT " + CLOSED + """
                AND CASE length(promised_at) WHEN 10 THEN promised_at < date(:moment, 'unixepoch')
                    ELSE promised_at < strftime('%Y-%m-%dT%H:%M:%SZ', :moment, 'unixepoch') END""",
    "deliveries": "SELECT CASE WHEN promised_at IS NULL OR delivered_at IS NULL THEN 'not_evaluated' WHEN "
                  + NO_LATER.format("delivered_at", "promised_at") + """ THEN 'on_time' ELSE 'late' END, count(*)
                  FROM shipments WHERE status = 'delivered' GROUP BY 1""",
    "transits": "SELECT '', count(*) FROM shipments WHERE status = 'delivered' AND " + NO_LATER.format(START, "delivered_at"),
}


def totals(moments):
    """{name of TOTALS: {label: number}} of {database: Unix time}, by SQL over their rows as they stood then.

    Immutable: a lock does not matter, since nothing is written to them."""
    found = {name: {} for name in TOTALS}
    for path, moment in moments.items():
        with contextlib.closing(sqlite3.connect("file:%s?mode=ro&immutable=1" % path, uri=True)) as connection:
            for name, query in TOTALS.items():
                for label, number in connection.execute(query, {"moment": moment} if ":moment" in query else {}):
                    found[name][label] = found[name].get(label, 0) + number
    return found


def seed_database(path, rows, random_seed):
    with contextlib.redirect_stdout(io.StringIO()):
        assert seed.main([str(path), "--rows", str(rows), "--random-seed", str(random_seed)]) == 0
    return path


class Member(Service):
    """One instance of the fleet, on its own database; a restart comes back on the same port."""

    def __init__(self, folder, database, **settings):
        folder.mkdir()
        super().__init__(folder, database, **settings)
        self.database = database

    @property
    def instance(self):
        return "%s:%d" % (self.host, self.port)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def restart(self):
        self.env["METRICS_PORT"], self.url = str(self.port), None
        self.start()

    def take_database(self):
        self.database.rename(str(self.database) + ".away")

    def return_database(self):
        os.rename(str(self.database) + ".away", str(self.database))

    def lock(self):
        self.writer = sqlite3.connect(str(self.database), isolation_level=None, check_same_thread=False)
        self.writer.execute("BEGIN EXCLUSIVE")

    def unlock(self):
        self.writer.close()

    def block_log(self):
        self.log_file.rename(str(self.log_file) + ".away")
        self.log_file.mkdir()

    def free_log(self):
        self.log_file.rmdir()


Fault = namedtuple("Fault", "place alert begin heal")       # place: of the member that it happens to

FAULTS = {
    "killed": Fault(3, "MetricsServiceDown", Member.kill, Member.restart),
    "no database": Fault(7, "MetricsDatabaseDown", Member.take_database, Member.return_database),
    "locked": Fault(11, "MetricsFiguresStale", Member.lock, Member.unlock),
    "no log": Fault(15, "MetricsLogFallback", Member.block_log, Member.free_log),
}


class Fleet:
    """Members by their number; the last one asks for a password over TLS where `secure`."""

    def __init__(self, folder, number, rows=120, secure=True):
        self.folder, self.members = folder, []
        self.secret = self.certify() if secure else {}
        for place in range(number):
            database = seed_database(folder / ("%d.db" % place), rows + 7 * place, place + 1)
            settings = self.secret if place == number - 1 else {}
            self.members.append(Member(folder / ("member%d" % place), database, log_file=folder / ("%d.log" % place), **settings))

    def certify(self):
        """Certificate, password file and what a scraper needs of them; the settings of a service that has them."""
        certificate = make_certificate(self.folder / "cert.pem", "IP:127.0.0.1")
        (self.folder / "password").write_text("fleet secret")
        users = subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--hash-password", "prometheus"],
                               input="fleet secret\n", stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout
        (self.folder / "users").write_text(users)
        (self.folder / "users").chmod(0o600)
        return {"auth_file": self.folder / "users", "tls_cert": certificate}

    def start(self):
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            wait_for(member.address, "a member to start", PATIENCE)

    def end(self):
        for member in self.members:
            member.end()

    @property
    def plain(self):
        return [member for member in self.members if member.env.get("METRICS_AUTH_FILE") is None]

    def write_targets(self, folder):
        """As the shipped file has them: a group for each place."""
        groups = [{"targets": [member.instance for member in self.plain[place::len(REGIONS)]],
                   "labels": {"site": "site" + region, "region": region}} for place, region in enumerate(REGIONS)]
        (folder / "fleet.json").write_text(json.dumps(groups))


def uncommented(text, first):
    """The text with the marks taken off the block of comments that begins with this line."""
    lines = text.splitlines(True)
    begin = next(number for number, line in enumerate(lines) if line.strip() == "#" + first)
    for number in range(begin, len(lines)):
        if not re.match(r" *#\S| *#  ", lines[number]):
            break
        lines[number] = lines[number].replace("#", "", 1)
    return "".join(lines)


def secure_job(text, fleet):
    """A second scrape config: that of the text with its block for TLS and a password, for the last member, in the same job."""
    text = uncommented(text, "scheme: https").partition("scrape_configs:\n")[2]
    for name, path in (("metrics-ca.pem", fleet.folder / "cert.pem"), ("metrics-password", fleet.folder / "password")):
        assert text.count("/etc/prometheus/" + name) == 1
        text = text.replace("/etc/prometheus/" + name, str(path))
    text = text.replace("job_name: " + JOB, "job_name: secure").replace("targets/*.json", "secure/*.json")
    return text + "  relabel_configs:\n  - {target_label: job, replacement: %s}\n" % JOB


def install(fleet, folder, edit=lambda name, text: text):
    """The shipped files in a folder, each through edit(name, text), with the targets of the fleet; the path of the config."""
    for name in ("recording.yml", "alerts.yml", "prometheus.yml"):
        text = (SHIPPED / name).read_text()
        if name == "prometheus.yml" and fleet.secret:
            text += secure_job(text, fleet)
        (folder / name).write_text(edit(name, text))
    for name in ("targets", "secure"):
        (folder / name).mkdir()
    fleet.write_targets(folder / "targets")
    if fleet.secret:
        group = {"targets": [fleet.members[-1].instance], "labels": {"site": "vault", "region": "north"}}
        (folder / "secure" / "one.json").write_text(json.dumps([group]))
    return folder / "prometheus.yml"


class Refused(Exception):
    """What Prometheus answered to a bad question."""


class Prometheus:
    def __init__(self, config, folder):
        self.config, self.folder, self.log = config, folder, folder / "prometheus.log"
        self.port = free_port()
        self.url = "http://127.0.0.1:%d" % self.port

    def start(self):
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                ["prometheus", "--config.file=%s" % self.config, "--storage.tsdb.path=%s" % (self.folder / "data"),
                 "--web.listen-address=127.0.0.1:%d" % self.port], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=dict(os.environ, GOMAXPROCS="2"))
        wait_for(self.ready, "Prometheus to be ready", PATIENCE)
        return self

    def backfill(self, text):
        """Puts samples of the past, in OpenMetrics, into the data that it will start with."""
        (self.folder / "past").write_text(text)
        subprocess.run(["promtool", "tsdb", "create-blocks-from", "openmetrics", "past", "data"], cwd=str(self.folder),
                       check=True, stdout=subprocess.DEVNULL)

    def ready(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.url + "/-/ready", timeout=PATIENCE).status == 200

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()

    def fetch(self, path, **fields):
        url = self.url + path + "?" + urllib.parse.urlencode(fields, doseq=True)
        try:
            return urllib.request.urlopen(url, timeout=PATIENCE).read().decode("utf-8")
        except urllib.error.HTTPError as error:
            raise Refused("%s: %s" % (fields, error.read().decode("utf-8")))

    def api(self, path, **fields):
        return json.loads(self.fetch("/api/v1/" + path, **fields))["data"]

    def query(self, expression):
        """[(labels, value)] of an instant query."""
        answer = self.api("query", query=expression)
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in answer["result"]]

    def drawn(self, expression, instant):
        """Whether a panel shows something: a number, now or within the last half a minute."""
        if instant:
            return any(value == value for _, value in self.query(expression))
        now = time.time()
        answer = self.api("query_range", query=expression, start=now - 30, end=now, step=1)
        return any(value != "NaN" for row in answer["result"] for _, value in row["values"])

    def by(self, label, expression):
        """{value of the label: number}; '' where there is no label."""
        return {labels.get(label, ""): value for labels, value in self.query(expression)}

    def alerts(self):
        """{(alert name, instance)} of those that fire, and of those that are pending."""
        found = {"firing": set(), "pending": set()}
        for alert in self.api("alerts")["alerts"]:
            found[alert["state"]].add((alert["labels"]["alertname"], alert["labels"].get("instance", "")))
        return found

    def complaints(self):
        """Lines of its log that are not of level info."""
        return [line for line in self.log.read_text().splitlines() if " level=info " not in " " + line + " "]


def available():
    return shutil.which("prometheus") and shutil.which("promtool")
