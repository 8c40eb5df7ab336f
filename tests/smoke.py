#!/usr/bin/env python3
"""The product from end to end on the Python that runs this file, which needs nothing but its standard library.

    python3 tests/smoke.py

Copies the product into a scratch folder, as onto a host, and uses it there under a bare environment.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for path in ROOT.iterdir() if path.suffix in (".py", ".sh", ".sql", ".html")]
NOW = "2026-03-10T12:00:00Z"
DEADLINE = 20  # s
TAKEN = []     # sockets that keep the ports of this process from others' tests


class Smoke(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="metrics_smoke_"))
        self.addCleanup(shutil.rmtree, str(self.folder), True)
        for path in FILES:
            shutil.copy(str(path), str(self.folder))
        shutil.copytree(str(ROOT / "migrations"), str(self.folder / "migrations"))
        self.database = self.folder / "shipments.db"
        (self.folder / "metrics.env").write_text("METRICS_DB_PATH=shipments.db\nMETRICS_PORT=%d\n" % free_port())

    def run_tool(self, *command, expect=0):
        """The output of a tool of the product; it must leave with the expected code."""
        program = ["bash", "restart_service.sh"] if command[0] == "restart" else [sys.executable, command[0]]
        done = subprocess.run(program + list(command[1:]), cwd=str(self.folder), stdin=subprocess.DEVNULL, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                              env={"PATH": os.environ["PATH"], "PYTHON": sys.executable})
        self.assertEqual(done.returncode, expect, "%s: %s" % (" ".join(command), done.stdout))
        return done.stdout

    def seed(self, rows=2000):
        self.run_tool("seed.py", "shipments.db", "--rows", str(rows), "--now", NOW, "--random-seed", "1")

    def url(self):
        return "http://127.0.0.1:" + re.search(r"PORT=(\d+)", (self.folder / "metrics.env").read_text()).group(1)

    def get(self, path):
        with urllib.request.urlopen(self.url() + path, timeout=DEADLINE) as response:
            return json.loads(response.read().decode())

    def test_seeded_rows_are_whole_and_verified(self):
        self.seed()
        self.assertIn("2000", self.run_tool("seed.py", "shipments.db", "--verify"))
        self.run_tool("seed.py", "shipments.db", "--rows", "10", expect=1)

    def test_live_traffic_changes_the_database_until_it_is_stopped(self):
        self.seed()
        live = subprocess.Popen([sys.executable, "seed.py", "shipments.db", "--live", "--rate", "50"], cwd=str(self.folder),
                                stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        count = "SELECT count(*) FROM shipments WHERE updated_at > '%s'" % NOW
        connection = sqlite3.connect(str(self.database), timeout=DEADLINE)
        wait_for(lambda: connection.execute(count).fetchone()[0] > 5)
        connection.close()
        live.send_signal(signal.SIGTERM)
        self.assertEqual(live.wait(DEADLINE), 0)
        self.run_tool("seed.py", "shipments.db", "--verify")

    def test_a_csv_file_is_imported_once(self):
        (self.folder / "a.csv").write_text("Order No,Promised,Delivered\n7,5-Mar-26,4-Mar-26\n8,5-Mar-26,\n")
        (self.folder / "a.sql").write_text(
            "SELECT [Order No] AS reference, CASE WHEN Delivered <> '' THEN 'delivered' ELSE 'in_transit' END AS status,\n"
            "       parse_date(Promised, '%d-%b-%y') AS promised_at, parse_date(Delivered, '%d-%b-%y') AS delivered_at FROM csv")
        for _ in range(2):
            self.run_tool("seed.py", "shipments.db", "--csv", "a.csv", "--mapping", "a.sql")
        rows = sqlite3.connect(str(self.database)).execute("SELECT reference, status, delivered_at FROM shipments ORDER BY 1")
        self.assertEqual(rows.fetchall(), [("7", "delivered", "2026-03-04"), ("8", "in_transit", None)])

    def test_the_first_version_is_brought_to_todays_and_back(self):
        self.run_tool("migrate.py", "shipments.db", "apply", "--to", "1")
        connection = sqlite3.connect(str(self.database), isolation_level=None)
        connection.execute("INSERT INTO shipments (reference, status) VALUES ('A', 'pending')")
        connection.close()
        self.assertIn("migrate.py", self.run_tool("metrics_service.py", "--env-file", "metrics.env", "--check", expect=78))
        self.run_tool("migrate.py", "shipments.db", "status", expect=1)
        self.run_tool("migrate.py", "shipments.db", "apply")
        self.run_tool("migrate.py", "shipments.db", "verify")
        self.run_tool("metrics_service.py", "--env-file", "metrics.env", "--check")
        self.run_tool("migrate.py", "shipments.db", "restore")
        self.run_tool("migrate.py", "shipments.db", "status", expect=1)

    def test_the_service_is_started_checked_restarted_and_stopped(self):
        self.seed()
        self.run_tool("restart", "status", expect=3)
        self.run_tool("restart", "start")
        self.addCleanup(self.run_tool, "restart", "stop")
        first = self.get("/metrics")
        self.assertEqual((first["shipments"]["total"], first["service"]["python"]), (2000, "%d.%d.%d" % sys.version_info[:3]))
        with urllib.request.urlopen(self.url() + "/metrics?format=openmetrics", timeout=DEADLINE) as response:
            lines = response.read().decode().splitlines()
        self.assertEqual((lines[2], lines[-1]), ("logistics_up 1", "# EOF"))
        self.run_tool("restart", "restart")
        self.assertNotEqual(self.get("/livez")["instance"], first["service"]["instance"])
        self.run_tool("restart", "status")
        self.assertIn("metrics_service OK", self.run_tool("health_check.py", "--url", self.url()))
        plugin = self.run_tool("health_check.py", "--format", "nagios", "--url", self.url(), "-vvt9", "-w@9:")
        self.assertRegex(plugin, r"\Ametrics_service OK: .* \| latency=[\d.]+s;@9:;1;0;9 shipments_total=\d+;;;0 ")
        textfile = os.path.join(self.folder, "check.prom")
        self.run_tool("health_check.py", "--quiet", "--url", self.url(), "--textfile", textfile)
        self.assertEqual(os.stat(textfile).st_mode & 0o777, 0o644)

    def test_trends_are_learnt_kept_and_told(self):
        self.seed()
        with (self.folder / "metrics.env").open("a") as file:
            file.write("METRICS_TRENDS_FILE=trends\n")
        self.run_tool("restart", "start")
        self.addCleanup(self.run_tool, "restart", "stop")
        for _ in range(2):
            told = self.run_tool("health_check.py", "--url", self.url(), "--trends-file", "trends", "--watch", "requests.total")
            self.assertRegex(told, "\n  learning  trends     learning: overdue")
        wait_for(lambda: self.get("/metrics")["trends"]["state"] == "learning")     # an answer may be a second old
        told = self.run_tool("health_check.py", "--url", self.url(), "--trends-file", "trends", "--backtest")
        self.assertIn("\noverdue: 0 alarms in 0.0 weeks\n", told)
        os.remove(str(self.folder / "trends.py"))
        self.assertIn("trends: not installed", self.run_tool("health_check.py", "--url", self.url(), "--trends-file", "trends"))

    def test_a_missing_setting_is_refused_and_the_check_of_nobody_fails(self):
        (self.folder / "metrics.env").write_text("METRICS_PORT=0\n")
        self.assertIn("METRICS_DB_PATH is not set", self.run_tool("metrics_service.py", "--env-file", "metrics.env", expect=78))
        self.assertIn("METRICS_DB_PATH is not set", self.run_tool("restart", "start", expect=1))
        self.run_tool("health_check.py", "--url", "http://127.0.0.1:%d" % free_port(), expect=1)

    def test_the_demo_runs_without_configuration_and_leaves_nothing(self):
        scratch = self.folder / "tmp"
        scratch.mkdir()
        demo = subprocess.Popen([sys.executable, "metrics_service.py", "--demo"], cwd=str(self.folder), stdout=subprocess.PIPE,
                                universal_newlines=True,
                                env={"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "METRICS_PORT": "0"})
        url = next(line.split()[2] for line in demo.stdout if line.startswith("demo: open "))
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            self.assertIn(b"<title>Shipments</title>", response.read())
        with urllib.request.urlopen(url + "metrics", timeout=DEADLINE) as response:
            self.assertGreater(json.loads(response.read().decode())["shipments"]["open"], 0)
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        demo.stdout.close()
        self.assertEqual((demo.wait(DEADLINE), list(scratch.iterdir())), (0, []))


def free_port():
    """A port where nobody listens, below those that the kernel deals out, and for no other test while this process lives: a
    name of unix(7)'s abstract ones says that it is taken, also while its service is restarted."""
    while True:
        port, claim = random.randrange(20000, 32000), socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            claim.bind("\0metrics_service test port %d" % port)
            probe.bind(("127.0.0.1", port))
            TAKEN.append(claim)
            return port
        claim.close()


def wait_for(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited %d s in vain" % DEADLINE)
        time.sleep(0.05)


if __name__ == "__main__":
    print("Python %s, SQLite %s" % (sys.version.split()[0], sqlite3.sqlite_version))
    unittest.main()
