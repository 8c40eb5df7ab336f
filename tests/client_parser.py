#!/usr/bin/env python3
"""What the official Python client of Prometheus reads from /metrics, against the JSON of the same instance.

    /usr/bin/python3 tests/client_parser.py         with the Debian package python3-prometheus-client

Beside the suite, since the client is no part of pytest. Exits 0 where both formats read as the same samples, and as the JSON's.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PASSING = re.compile("process_|logistics_(http|database_quer|last_success)")     # another by the next scrape


def fetch(url, accept):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return answer.read().decode("utf-8")


def samples(families):
    """{(name, labels): value}. Raises ValueError where one is there twice."""
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        key = sample.name, tuple(sorted((label, float(value) if label == "le" else value) for label, value in sample.labels.items()))
        if key in found:
            raise ValueError("twice: %s %s" % key)
        found[key] = sample.value
    return {key: value for key, value in found.items() if not PASSING.match(key[0])}


def differences(document, first, second):
    yield from ("%s %s: %s and %s" % (key + (first.get(key), second.get(key)))
                for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    for status, count in document["shipments"]["by_status"].items():
        if first["logistics_shipments", (("status", status),)] != count:
            yield "logistics_shipments of %s is not the %d of the JSON" % (status, count)


def compare(folder):
    """The samples that both formats have, and the differences. The database is at rest, so that all answers are of one state."""
    database = str(pathlib.Path(folder) / "shipments.db")
    subprocess.run([sys.executable, str(ROOT / "seed.py"), database, "--rows", "5000"], check=True, stdout=subprocess.DEVNULL)
    settings = {"METRICS_DB_PATH": database, "METRICS_PORT": "0", "METRICS_PID_FILE": database + ".pid"}
    service = subprocess.Popen([sys.executable, str(ROOT / "metrics_service.py")], env=settings, stdout=subprocess.PIPE,
                               universal_newlines=True)
    try:
        url = next(found.group() for found in (re.search(r"http://[\w.:]+", line) for line in service.stdout) if found) + "/metrics"
        document = json.loads(fetch(url, "application/json"))
        first = samples(text.text_string_to_metric_families(fetch(url, "text/plain;version=0.0.4")))
        second = samples(openmetrics.text_string_to_metric_families(fetch(url, OPENMETRICS)))
    finally:
        service.terminate()
        service.communicate()
    return first, list(differences(document, first, second))


def main():
    with tempfile.TemporaryDirectory(prefix="metrics_client_") as folder:
        found, unequal = compare(folder)
    print("\n".join(unequal) or "the client reads %d samples, the same in both formats" % len(found))
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
