"""The journal of a drill: one JSON object a line, each with the hash of the line before, written before the act it announces.

    header                   journal_version, run_id, scenario (a full copy), mode, seed, started_at, host, service, engine
    then                     seq, at (UTC), t (monotonic seconds), actor, kind, data, evidence, prev
    result, the last line    what conclude() makes of the lines before it

Nothing in it is a secret, and nothing proves who wrote it: whoever can edit one line can forge all of them. What faults() finds
is a line, an evidence file or a result that was changed afterwards. `drill.py verify` prints the hash of the last line, to be
kept elsewhere.
"""

import fcntl
import hashlib
import json
import os
import platform
import sqlite3
import time

VERSION = 1
FIRST = "0" * 64                        # prev of the header
ACTORS = ("harness", "injector", "watcher", "service", "trainee", "repair")
KINDS = ("steady", "seal", "revert_token", "inject", "probe", "signal", "quiet_violation", "ack", "hint", "note", "command",
         "answer", "trap", "mitigate", "recovered", "proof", "revert", "end")
PAR_SECONDS = {1: 300, 2: 600, 3: 1200}         # by level, to mitigate
HINT_COSTS = (5, 10, 20)
COLLATERAL_COST = 15


def utc():
    """RFC 3339, with milliseconds."""
    now = time.time()
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), now % 1 * 1000)


def line_hash(line):
    return hashlib.sha256(line.rstrip("\n").encode()).hexdigest()


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def host():
    kernel = platform.uname()
    return {"kernel": "%s %s" % (kernel.system, kernel.release), "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version, "uid": os.geteuid(), "processors": os.cpu_count()}


def read(path):
    """The objects of a journal, the header first."""
    with open(path) as file:
        return [json.loads(line) for line in file]


class Journal:
    """Appends to a journal; each line is on the disk before the method returns. Several processes may append in turn."""

    def __init__(self, path):
        self.path, self.folder = path, os.path.dirname(path)

    def append(self, entry):
        with open(self.path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines = file.read().splitlines()
            entry = dict(entry, seq=len(lines), prev=line_hash(lines[-1]) if lines else FIRST)
            text = json.dumps(entry, sort_keys=True)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line_hash(text)

    def write(self, actor, kind, data, evidence=()):
        """evidence: names of files in the journal's folder, which must be complete by now."""
        files = [{"file": name, "sha256": file_sha256(os.path.join(self.folder, name))} for name in evidence]
        self.append({"at": utc(), "t": round(time.monotonic(), 4), "actor": actor, "kind": kind, "data": data, "evidence": files})

    def entries(self):
        return read(self.path)


def first(entries, kind, fits=lambda data: True):
    """The seconds of the first entry of a kind after the injection, None without one."""
    started = next((entry["t"] for entry in entries if entry.get("kind") == "inject"), None)
    at = next((entry["t"] for entry in entries if entry.get("kind") == kind and fits(entry["data"])), None)
    return None if at is None or started is None else round(at - started, 3)


def of_kind(entries, kind):
    return [entry["data"] for entry in entries if entry.get("kind") == kind]


def times(entries, cause):
    """Seconds from the injection."""
    injected = first(entries, "inject")
    impact = next((data["impact"] for data in of_kind(entries, "probe") if data.get("impact") is not None), None)
    found = {
        "impact": impact,
        "signal": first(entries, "signal"),
        "all_signals": max([first(entries, "signal", lambda data, name=data["signal"]: data["signal"] == name)
                            for data in of_kind(entries, "signal")], default=None),
        "ack": first(entries, "ack"),
        "answer": first(entries, "answer", lambda data: data["cause"] == cause),
        "mitigated": first(entries, "recovered", lambda data: data["probe"] == 1),
        "recovered": first(entries, "recovered", lambda data: data["probe"] == 3),
    }
    start = injected if impact is None else impact
    for name, end in (("ttd", found["signal"]), ("ttm", found["mitigated"]), ("ttr", found["recovered"])):
        found[name] = None if end is None or start is None else round(max(0, end - start), 3)
    return found


def data_safety(entries):
    """What the proofs found, before and after."""
    before = next((data["found"] for data in of_kind(entries, "seal")), {})
    proofs = of_kind(entries, "proof")
    after = proofs[-1]["found"] if proofs else {}
    return {
        "rows_before": before.get("rows"), "rows_after": after.get("rows"),
        "acknowledged": after.get("acknowledged"), "missing": len(after.get("missing") or []),
        "unacknowledged_present": len(after.get("unacknowledged_present") or []),
        "unexpected": len(after.get("unexpected") or []),
        "fingerprint_before": before.get("fingerprint"), "fingerprint_after": after.get("fingerprint"),
        "quick_check": after.get("quick_check"), "verify": after.get("verify"), "schema": after.get("schema"),
        "failed": proofs[-1]["failed"] if proofs else None,
    }


def collateral(entries):
    """What a trainee did beside the cure, in words."""
    return [data["collateral"] for data in of_kind(entries, "command") if data.get("collateral")]


def score(entries, scenario, clock, safety):
    """The parts of a trainee's score, of 100; none for an automatic run."""
    hints, notes = len(of_kind(entries, "hint")), of_kind(entries, "note")
    mitigated, par = clock["ttm"], PAR_SECONDS[scenario["level"]]
    timely = 0 if mitigated is None else max(0.0, min(1.0, 2 - mitigated / par))
    complete = len(notes) >= 2 and all(any(data.get(name) for data in notes) for name in ("rejected", "severity"))
    wild = [data for data in of_kind(entries, "answer") if data["cause"] not in (scenario["cause"], "undecided")]
    parts = {
        "acknowledged": 10 if clock["ack"] is not None else 0,
        "right cause": 25 if clock["answer"] is not None else 0,
        "mitigated": int(25 * timely),
        "recovered": 10 if clock["recovered"] is not None else 0,
        "data proven": 20 if clock["recovered"] is not None and safety["failed"] == [] else 0,
        "record": 10 if complete else 0,
        "hints": -sum(HINT_COSTS[:hints]),
        "collateral": -COLLATERAL_COST * len(collateral(entries)),
        "guesses": -5 * len(wild),
    }
    return dict(parts, total=max(0, sum(parts.values())))


def verdict(entries, scenario, signals, safety, traps):
    """(status, verdict, reasons)."""
    ends = of_kind(entries, "end")
    if not ends:
        return "aborted", "inconclusive", ["the run did not come to its end"]
    reasons = list(ends[-1].get("reasons", []))
    if ends[-1].get("inconclusive"):
        return "completed", "inconclusive", reasons
    if scenario["mode"] == "auto":
        reasons += ["not seen: " + one for one in signals["missed"]]
        reasons += ["did not stay quiet: " + one for one in signals["quiet_broken"]]
        reasons += ["the checker was content after the trap: " + trap for trap in traps["accepted"]]
    reasons += ["proof %s failed" % name for name in safety["failed"] or []]
    if safety["failed"] is None:
        reasons.append("nothing was proven")
    if safety["failed"] == [] and not safety["acknowledged"]:
        return "completed", "inconclusive", reasons + ["no row was acknowledged: nothing could have been lost"]
    return "completed", "fail" if reasons else "pass", reasons


def conclude(entries):
    """The result of a journal, from its lines alone."""
    header = entries[0]
    scenario = dict(header["scenario"], mode=header["mode"])
    seen = [data["signal"] for data in of_kind(entries, "signal")]
    signals = {"expected": scenario["expected"], "seen": seen, "missed": [one for one in scenario["expected"] if one not in seen],
               "quiet_broken": [data["broken"] for data in of_kind(entries, "quiet_violation")]}
    tried = [data for data in of_kind(entries, "trap") if "refused" in data]
    traps = {"tried": len(tried), "refused": sum(data["refused"] for data in tried),
             "accepted": [data["trap"] for data in tried if not data["refused"]]}
    clock, safety = times(entries, scenario["cause"]), data_safety(entries)
    status, word, reasons = verdict(entries, scenario, signals, safety, traps)
    result = {
        "run_id": header["run_id"], "scenario": scenario["id"], "name": scenario["name"], "mode": header["mode"],
        "status": status, "verdict": word, "reasons": reasons,
        "times": clock, "signals": signals, "traps": traps, "data": safety,
        "score": score(entries, scenario, clock, safety) if header["mode"] == "trainee" else None,
        "collateral": collateral(entries),
        "leftovers": next((data["leftovers"] for data in of_kind(entries, "revert")), []),
    }
    return json.loads(json.dumps(result))       # as it is once it was written and read


def faults(path, engine=None):
    """What is wrong with a journal and its evidence, in words: nothing where all is as it was written.

    engine: name -> SHA-256 of the files that judge now; where they differ from those that judged then, that is told too.
    """
    with open(path) as file:
        lines = file.read().splitlines()
    expected, entries, found = FIRST, [], []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            return found + ["line %d is no JSON" % number]
        if entry.get("prev") != expected or entry.get("seq") != number - 1:
            found.append("line %d does not follow from the line before: one of them was changed, added or removed" % number)
        expected = line_hash(line)
        entries.append(entry)
        for item in entry.get("evidence", ()):
            evidence = os.path.join(os.path.dirname(path), item["file"])
            if not os.path.exists(evidence):
                found.append("line %d: %s is missing" % (number, item["file"]))
            elif file_sha256(evidence) != item["sha256"]:
                found.append("line %d: %s was changed" % (number, item["file"]))
    if not entries or "result" not in entries[-1]:
        return found + ["there is no result: the run was ended before it"]
    if conclude(entries[:-1]) != entries[-1]["result"]:
        found.append("the result is not what the lines before it say")
    result = os.path.join(os.path.dirname(path), "result.json")
    if os.path.exists(result):
        with open(result) as file:
            if json.load(file) != entries[-1]["result"]:
                found.append("result.json is not the result of the journal")
    judged = entries[0].get("engine", {})
    found += ["%s is not the file that judged this run" % name for name, digest in sorted((engine or judged).items())
              if judged.get(name) != digest]
    return found
