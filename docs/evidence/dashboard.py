#!/usr/bin/env python3
"""Pictures of the dashboard, at each size and in each state: docs/evidence/screenshots/dashboard/*.png.

    docs/evidence/dashboard.py [sizes] [stand_ins] [troubles]      all of them, or those of these groups

Needs chromium, and nothing else beyond what the service needs. The figures come from a database that seed.py makes.
"""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "evidence" / "screenshots" / "dashboard"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.dont_write_bytecode = True

from chromium import Chromium
from stand_in import READY, StandIn

ANSWERED = "state.level !== 'asking'"
OLD = "state.trouble || (refresh(), false)"     # within a tenth of a second the last figures are still good
DESK, PHONE, TABLET, WALL = (1440, 900), (320, 640), (768, 1024), (3840, 2160)
HOSTILE = ("<script>alert(1)</script>", "x" * 500, "\u202eecnalubma kcirtap", "\U0001f69a Express \u2066",
           "مكتب البريد السريع", "&amp; <b>bold</b> \"quotes\"", "\u200b")
FULL = dict(READY, status="warn", checks=dict(READY["checks"], **{"log:target": [{
    "status": "warn", "reason": "disk_full", "output": "the log file /srv/metrics.log cannot be written; logging to stdout"}]}))


class Service:
    """The service on a database, until the block ends."""

    def __init__(self, folder, database):
        self.database, self.log = database, folder / "service.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "metrics_service.py")], stdout=log, stderr=log, cwd=str(folder),
                env={"METRICS_DB_PATH": str(database), "METRICS_PORT": "0", "METRICS_PID_FILE": str(folder / "pid")})
        self.url = self.wait()

    def wait(self):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = re.search(r"url=(http://\S+)", self.log.read_text())
            if found:
                return found.group(1) + "/"
            time.sleep(0.05)
        raise RuntimeError("the service did not start: " + self.log.read_text())

    def document(self):
        with urllib.request.urlopen(self.url + "metrics") as answer:
            return json.loads(answer.read().decode())

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait()


def seeded(path, rows):
    """A database with so many shipments; the path."""
    if not rows:
        sqlite3.connect(str(path)).executescript((ROOT / "schema.sql").read_text())
        return path
    subprocess.run([sys.executable, str(ROOT / "seed.py"), str(path), "--rows", str(rows), "--random-seed", "7"], check=True,
                   stdout=subprocess.DEVNULL)
    return path


def take(browser, url, name, size=DESK, until=ANSWERED, script=True, act=None, medium="", **features):
    """One picture, once the page shows what it is to show; of a wall screen at half its scale."""
    page = browser.page(*size, mobile=size == PHONE)
    page.media(medium, **features)
    page.send("Emulation.setScriptExecutionDisabled", value=not script)
    page.open(url)
    if script:
        page.wait(ANSWERED)
    if act:
        act(page)
    if script:
        page.wait(until)
    page.screenshot(PICTURES / (name + ".png"), size != WALL, 0.5 if size == WALL else 1)
    page.close()
    print(name)


def many(document, count):
    """The document with that many carriers."""
    some = document["by_carrier"]
    return dict(document, by_carrier=[dict(some[at % len(some)], carrier="Carrier %03d" % at, overdue=(at * 37) % 91)
                                      for at in range(count)])


def hostile(document):
    lanes = [dict(lane, carrier=name) for lane, name in zip(document["by_carrier"] * 2, HOSTILE)]
    reasons = [{"reason": name, "shipments": 9 - at} for at, name in enumerate(HOSTILE)]
    return dict(document, by_carrier=lanes, shipments=dict(document["shipments"], exceptions_by_reason=reasons))


def large(document):
    """The document a thousand times its size."""
    def grow(value):
        if isinstance(value, dict):
            return {key: grow(one) if not key.endswith("rate") else one for key, one in value.items()}
        return [grow(one) for one in value] if isinstance(value, list) else value * 997 if type(value) is int else value
    return dict(document, **{key: grow(document[key]) for key in ("shipments", "delivery", "by_carrier", "by_mode", "daily")})


def trends(state, **metric):
    one = dict({"name": "created_per_hour", "state": state, "value": 3, "low": 18, "high": 42, "since": "2026-03-10T11:00:00Z",
                "rarity": "about once in 6 weeks", "summary": "3 created in the last hour, usually 18 to 42",
                "runbook": "docs/runbook.md#trend"}, **metric)
    return {"state": state, "reason": None, "detail": None, "checked_at": "2026-03-10T12:00:00Z", "age_seconds": 12.0,
            "metrics": [one, dict(one, name="on_time_rate", state="quiet" if state == "degraded" else state)]}


def sizes(browser, service):
    for name, size in (("phone", PHONE), ("tablet", TABLET), ("desk", DESK), ("wall", WALL)):
        take(browser, service.url, "healthy-" + name, size)
        if size != TABLET:
            take(browser, service.url, "dark-" + name, size, prefers_color_scheme="dark")
    take(browser, service.url, "print", (760, 1000), medium="print")
    take(browser, service.url, "no-script-phone", PHONE, script=False)
    take(browser, service.url, "explained", act=lambda page: page.run("document.querySelector('#carriers tbody button').focus()"))


def troubles(browser, service):
    def lock(page):
        writer.execute("BEGIN EXCLUSIVE")
        page.run("refresh()")
    writer = sqlite3.connect(str(service.database), isolation_level=None)
    take(browser, service.url, "stale-desk", act=lock, until=OLD)
    writer.close()
    moved = service.database.with_suffix(".moved")

    def move(page):
        service.database.rename(moved)
        page.run("refresh()")
    take(browser, service.url, "down-desk", act=move, until=OLD)
    take(browser, service.url, "down-first-seen-phone", PHONE)
    take(browser, service.url, "down-no-script", script=False)
    moved.rename(service.database)

    def kill(page):
        service.stop()
        page.run("refresh()")
    take(browser, service.url, "gone-wall", WALL, act=kill, until="state.level === 'silent'")


def stand_ins(browser, document):
    for name, size, metrics, ready in (
            ("carriers-200", DESK, many(document, 200), READY), ("hostile-phone", PHONE, hostile(document), READY),
            ("large-phone", PHONE, large(document), READY), ("warning-desk", DESK, document, FULL),
            ("trend-learning", DESK, dict(document, trends=trends("learning")), READY),
            ("trend-degraded-phone", PHONE, dict(document, trends=trends("degraded")), READY)):
        with StandIn(metrics, ready) as server:
            take(browser, server.url, name, size)


def main(names):
    """Takes the pictures of the groups with these names, of all without."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        browser = stack.enter_context(Chromium())

        def serve(rows):
            inner = folder / str(rows)
            inner.mkdir()
            service = Service(inner, seeded(inner / "shipments.db", rows))
            stack.callback(service.stop)
            return service
        service = serve(60000)
        if not names or "sizes" in names:
            take(browser, serve(0).url, "empty-desk")
            take(browser, serve(1).url, "one-shipment-phone", PHONE)
            sizes(browser, service)
        if not names or "stand_ins" in names:
            stand_ins(browser, service.document())
        if not names or "troubles" in names:
            troubles(browser, service)


if __name__ == "__main__":
    main(sys.argv[1:])
