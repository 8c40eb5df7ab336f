#!/usr/bin/env python3
"""How soon a fleet's Prometheus tells of a fault, and what a scrape costs; prints tables, judges nothing.

    python3 tests/bench/fleet.py [alerts|scrape] ... [--members N] [--minutes M]

alerts  the four faults at once, under the rules and intervals exactly as shipped: seconds until an alert that names the host
        is pending, and until it fires. Ends when every host's own alert fires, or after M minutes
scrape  bytes and time of an answer in each format with 10 and with 200 carriers. Before each a shipment changes, so that every
        answer is worked out anew; processor time is the service's, of all its threads
"""

import argparse
import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import Service, make_database, wait_for                   # noqa: E402
from fleet import FAULTS, Fleet, Prometheus, install                    # noqa: E402

# The alert to wait for; as shipped a lock makes figures old for METRICS_STALE_SECONDS only, and then there are none.
AWAITED = {name: "MetricsDatabaseDown" if name == "locked" else fault.alert for name, fault in FAULTS.items()}
LOOK = 0.25             # s between two looks at the alerts
SCRAPES = 100           # answers of each kind
ROWS = 5000             # shipments in the database of a scrape
CARRIERS = (10, 200)
FORMATS = ("json", "text", "openmetrics")
TICKS = os.sysconf("SC_CLK_TCK")


def watch(server, hurt, began, minutes):
    """{(instance, alert): {state: seconds}} of the alerts that name those of {instance: fault}, until the awaited ones fire."""
    seen, awaited = {}, {(AWAITED[fault], instance) for instance, fault in hurt.items()}
    while time.monotonic() - began < 60 * minutes:
        alerts = server.alerts()
        for state, ones in alerts.items():
            for name, instance in sorted(one for one in ones if one[1] in hurt):
                seen.setdefault((instance, name), {}).setdefault(state, time.monotonic() - began)
        if awaited <= alerts["firing"]:
            break
        time.sleep(LOOK)
    return seen


def shown(seconds):
    return "-" if seconds is None else "%.0f s" % seconds


def measure_alerts(folder, members, minutes):
    fleet = Fleet(folder, members, secure=False)
    (folder / "prometheus").mkdir()
    try:
        fleet.start()
        server = Prometheus(install(fleet, folder / "prometheus"), folder / "prometheus").start()
        try:
            wait_for(lambda: len(server.query("logistics_up == 1")) == members, "all to be up", 60)
            began = time.monotonic()
            for fault in FAULTS.values():
                fault.begin(fleet.members[fault.place])
            hurt = {fleet.members[fault.place].instance: name for name, fault in FAULTS.items()}
            seen = watch(server, hurt, began, minutes)
            complaints = server.complaints()
        finally:
            server.end()
    finally:
        fleet.end()
    print("\n| fault | alert | pending after | firing after |\n|---|---|---|---|")
    for (instance, name), states in sorted(seen.items(), key=lambda item: (list(FAULTS).index(hurt[item[0][0]]), item[0][1])):
        print("| %s | %s | %s | %s |" % (hurt[instance], name, shown(states.get("pending")), shown(states.get("firing"))))
    print("\n%d lines of Prometheus's log above info" % len(complaints), *complaints[:5], sep="\n")


def processor_seconds(pid):
    fields = Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure_scrape(folder, carriers):
    folder.mkdir()
    rows = [{"reference": str(row), "status": "in_transit", "carrier": "Carrier %03d" % (row % carriers), "mode": "road",
             "promised_at": "2026-01-01"} for row in range(ROWS)]
    database = make_database(folder / "shipments.db", rows)
    service = Service(folder, database).start()
    try:
        with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer:
            for form in FORMATS:
                for coding in ("identity", "gzip"):
                    times, before = [], processor_seconds(service.process.pid)
                    for number in range(SCRAPES):
                        writer.execute("UPDATE shipments SET weight_kg = ? WHERE id = 1", (number,))
                        began = time.perf_counter()
                        body = service.request("/metrics?format=" + form, headers={"Accept-Encoding": coding})[2]
                        times.append(time.perf_counter() - began)
                    cpu = (processor_seconds(service.process.pid) - before) / SCRAPES
                    print("| %d | %s | %s | %d | %.1f ms | %.1f ms | %.1f ms |" % (
                        carriers, form, coding, len(body), 1000 * statistics.median(times), 1000 * max(times), 1000 * cpu))
    finally:
        service.end()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="alerts|scrape", help="default both")
    parser.add_argument("--members", type=int, default=20, metavar="N", help="instances (default 20)")
    parser.add_argument("--minutes", type=float, default=12, metavar="M", help="for the alerts at most (default 12)")
    args = parser.parse_args(argv)
    what = args.what or ["scrape", "alerts"]
    if set(what) - {"scrape", "alerts"}:
        parser.error("alerts or scrape, not " + " ".join(what))
    with tempfile.TemporaryDirectory() as folder:
        if "scrape" in what:
            print("| carriers | format | coding | bytes | median | longest | processor time |\n|---|---|---|---|---|---|---|")
            for carriers in CARRIERS:
                measure_scrape(Path(folder) / str(carriers), carriers)
        if "alerts" in what:
            measure_alerts(Path(folder), args.members, args.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
