"""A drill without a person: steady state, seal, injection, signals, checker, mitigation, steady state, proofs, traps, clean-up.

The traps come last and each in a sandbox of its own, broken in the same way, so that the times of the drill are those of product
and runbook alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback

import supervision
from drills import journal, report
from drills.sandbox import NOBODY, OWN_MOUNTS, ROOT, SYSTEM_PYTHON, Sandbox, members, private_folder, product_files, wait_for
from drills.scenario import Inconclusive

ENGINE = ["drill.py"] + sorted("drills/" + name for name in os.listdir(os.path.join(ROOT, "drills")) if name.endswith(".py"))
FINE = ("ok", "learning")
AFTERMATH = ("recovered", "database_replaced", "shipments_dropped", "shipments_jumped")     # of warnings: it was, and is over
LINKS = 2                               # that somebody follows in the runbook from what the check names
BROKEN = ("command not found", "Traceback", "syntax error", "unbound variable")     # no command of the runbook may print these
READINGS = 3                            # good ones in a row make a steady state
READING_PAUSE = 0.05                    # seconds
RECOVERY_SECONDS = 20


def hashes(names):
    return {name: journal.file_sha256(os.path.join(ROOT, name)) for name in names}


def engine():
    """name -> SHA-256 of the files that judge: drill.py and all of drills/."""
    return hashes(ENGINE)


def unable(scenario):
    """Why a drill cannot run here, None where it can."""
    if scenario.needs == "root" and os.geteuid():
        return "it needs root"
    if scenario.needs == "user" and os.geteuid() == 0 and not os.access(SYSTEM_PYTHON, os.X_OK):
        return "it needs an unprivileged user, and %s, which uid %d could run, is not there" % (SYSTEM_PYTHON, NOBODY)
    if scenario.needs in ("namespace", "mounts"):
        try:
            done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE)
        except FileNotFoundError:
            return "it needs unshare of util-linux"
        return "it needs user namespaces: " + done.stderr.decode().strip() if done.returncode else None
    return None


def as_data(scenario):
    """A copy of a scenario that JSON can hold: functions by their names, signals, steps and traps by their texts."""
    def plain(value):
        if callable(value):
            return value.__name__
        if isinstance(value, tuple):
            return [getattr(one, "text", None) or plain(one) for one in value]
        return value
    data = {name: plain(value) for name, value in scenario._asdict().items()}
    return dict(data, traps=[{"trap": trap.text, "why": trap.why} for trap in scenario.traps])


# The checker

def unease(done):
    """The first check of health_check.py --format json that is not content, None where all are; what was is no complaint."""
    try:
        checks = json.loads(done.output)["checks"]
    except (ValueError, KeyError):
        return "health_check.py: " + done.output[-200:]
    for one in checks:
        if one["status"] not in FINE and not (one["status"] == "warning" and one["reason"] in AFTERMATH):
            return "check %s is %s: %s" % (one["name"], one["status"], one["reason"])
    return None


def reading(box):
    """A complaint about how the product is now, None in a steady state."""
    fault = box.bystander_fault()
    if fault:
        return fault
    for path in ("/livez", "/readyz", "/metrics"):
        answer = box.probe(path)
        if answer.status != 200:
            return "%s: %s %s" % (path, answer.status, answer.reason or "")
        if path == "/readyz" and not box.login and '"status": "pass"' not in answer.body.split('"checks"')[0]:
            return "/readyz warns: %s" % (answer.reason or answer.body[:200])
    return unease(box.check("--format", "json"))


def as_configured(box):
    """A complaint where the service is not proven to run, has other settings than those on disk, or could not start again."""
    done = box.status()
    if done.code:
        return "./restart_service.sh status exits %d: %s" % (done.code, done.output.strip()[-200:])
    changed = next((line for line in done.output.splitlines() if line.startswith("settings: ")), None)
    done = box.run(["python3", "metrics_service.py", "--env-file", "metrics.env", "--check"])
    return changed or (done.output.strip()[-200:] if done.code else None)


def imports_add_up(box):
    """Whether each import of the box accounts for every row that it read."""
    for done in box.commands:
        found = re.search(r"([\d,]+) read, ([\d,]+) stored, ([\d,]+) updated, ([\d,]+) unchanged", done.output)
        if found:
            read, *parts = (int(number.replace(",", "")) for number in found.groups())
            rejected = re.search(r"rejected rows: ([\d,]+)", done.output)
            skipped = re.search(r"skipped: ([\d,]+)", done.output)
            others = sum(int(one.group(1).replace(",", "")) for one in (rejected, skipped) if one)
            if read != sum(parts) + others:
                return False
    return True


def failed_proofs(box, scenario, before, after):
    """The letters of the proofs that do not hold."""
    plain = [proof for proof in scenario.proofs if isinstance(proof, str)]
    conditions = [proof[1] for proof in scenario.proofs if not isinstance(proof, str)]
    after["verify"] = None
    if "V" in plain:
        done = box.run(["python3", "seed.py", box.database, "--verify"])
        after["verify"] = done.output.strip().splitlines()[-1][:300] if done.output.strip() else "exit %d" % done.code
    holds = {
        "H": lambda: after["bytes"] == before["bytes"] and not os.path.exists(box.database + "-journal"),
        "F": lambda: after["fingerprint"] == before["fingerprint"],
        "L": lambda: after["missing"] == [] and after["unexpected"] == [],
        "Q": lambda: after["quick_check"] == ["ok"] and after["foreign_keys"] == [],
        "V": lambda: done.code == 0,
        "S": lambda: after["schema"] == [],
        "C": lambda: after["rows"] == (before["rows"] or 0) + box.balance and imports_add_up(box),
    }
    letters = [proof for proof in plain if proof != "L"] + (["F"] if conditions else [])
    return sorted(letter for letter in ["L"] + letters if not holds[letter]())


def condition_of(scenario):
    return next((proof[1] for proof in scenario.proofs if not isinstance(proof, str)), "1")


def judge(box, scenario, before):
    """The checker: (complaints, what the proofs found). No complaint means OK; proofs are looked at in a steady state only."""
    complaint = reading(box) or as_configured(box) or (scenario.solved and scenario.solved(box))
    if complaint:
        return [complaint], None
    after = box.prove(condition_of(scenario))
    return ["proof %s fails" % letter for letter in failed_proofs(box, scenario, before, after)], after


# The parts of a run

def build(scenario, template, run_id):
    return Sandbox(run_id, template, scenario.needs == "user", scenario.watch)


def writes(scenario):
    """Whether the ledger's writer goes on through the fault: bytes that have to stay as they are forbid it."""
    return "H" not in scenario.proofs


def settle(box, scenario, template):
    """Brings a fresh box to its steady state; what proofs.py found before the injection."""
    if scenario.prepare:
        scenario.prepare(box)
    box.start()
    if scenario.watch:      # the check may look at the age of the newest change, and the template's rows grow old
        box.start_writer()
        box.stop_writer()
    if scenario.prepare or scenario.watch or condition_of(scenario) != "1":
        before = box.prove(condition_of(scenario))
    else:
        with open(os.path.join(template, "before.json")) as file:
            before = json.load(file)
    box.require(not before["errors"] and before["acknowledged"] and not before["missing"], "the database was sound before")
    box.steady_instance = box.instance()
    return before


def keep_writing(box, scenario):
    """From the seal on the writer goes on, through the fault, where the proofs allow it."""
    if writes(scenario):
        box.start_writer()


def inject(box, scenario):
    """Breaks the box; the sentence that proves it."""
    box.mark_now()
    proof = scenario.inject(box)
    box.require(proof, "the injection proved that it took hold")
    return proof


def await_signals(box, scenario, seen):
    """Looks for each expected signal until the deadline; calls seen(signal, evidence) for each at once. Those not seen."""
    missing = list(scenario.expected)

    def look():
        for signal in list(missing):
            evidence = signal.look(box)
            if evidence:
                missing.remove(signal)
                seen(signal, evidence)
        return not missing
    wait_for(look, scenario.deadline)
    return missing


def follow(trap, box):
    if callable(trap.act):
        trap.act(box)
    else:
        box.runbook(trap.act)


def try_trap(scenario, trap, template, run_id):
    """What the checker says after a plausible wrong move, in a box of its own: a complaint, None when it was content."""
    with build(scenario, template, run_id) as box:
        before = settle(box, scenario, template)
        keep_writing(box, scenario)
        inject(box, scenario)
        wait_for(lambda: reading(box), scenario.deadline)
        follow(trap, box)
        if trap.settle:
            wait_for(lambda: not reading(box), trap.settle)
        complaints, _ = judge(box, scenario, before)
        return "; ".join(complaints) or None


class Run:
    """One automatic run: its journal, its folder of evidence, what was before."""

    mode = "auto"

    def __init__(self, scenario, template, folder, run_id):
        self.scenario, self.template, self.folder, self.run_id = scenario, template, folder, run_id
        self.journal = journal.Journal(os.path.join(folder, "journal.jsonl"))
        self.before = None

    def begin(self):
        self.journal.append({"journal_version": journal.VERSION, "run_id": self.run_id, "scenario": as_data(self.scenario),
                             "mode": self.mode, "seed": 1, "started_at": journal.utc(), "host": journal.host(),
                             "service": hashes(product_files()), "engine": engine()})

    def last_check(self, box):
        """What the check said last, in words."""
        checks = [done for done in box.commands if "health_check.py" in done.command and "json" not in done.command]
        return checks[-1].output

    def keep_evidence(self, box, when):
        """Writes down what the box looks like now; the names of the files."""
        texts = {"check-%s.txt": self.last_check(box), "metrics-%s.txt": box.probe("/metrics?format=text").body,
                 "log-%s.txt": box.read(box.log_file) + box.read(box.out_file)}
        for name, text in texts.items():
            with open(os.path.join(self.folder, name % when), "w") as file:
                file.write(text)
        return [name % when for name in texts]

    def steady(self, box):
        self.before = settle(box, self.scenario, self.template)
        box.check()
        complaint = reading(box)
        box.require(complaint is None, "a steady state before the injection: %s" % complaint)
        evidence = self.keep_evidence(box, "before")
        self.journal.write("harness", "steady", {"instance": box.steady_instance, "url": box.url}, evidence)
        self.journal.write("harness", "seal", {"found": self.before, "copy": "sealed"})     # no writer is at work yet
        shutil.copytree(box.app, box.path("sealed"), ignore=shutil.ignore_patterns("docs", "deploy", "__pycache__"))
        children = [child.owned._asdict() for child in box.children if child.owned]
        token = {"folder": box.folder, "port": box.port, "children": children}
        box.write("token.json", json.dumps(token))
        self.journal.write("harness", "revert_token", token)
        keep_writing(box, self.scenario)

    def break_it(self, box):
        self.journal.write("injector", "inject", {"scenario": self.scenario.id, "function": self.scenario.inject.__name__})
        proof = inject(box, self.scenario)
        self.journal.write("injector", "probe", {"took_hold": proof})
        missing = await_signals(box, self.scenario, lambda signal, evidence: self.journal.write(
            "watcher", "signal", {"signal": signal.text, "evidence": evidence[:500]}))
        box.check()
        complaints, _ = judge(box, self.scenario, self.before)
        self.journal.write("watcher", "probe", {"checker": complaints[:1] or "content"}, self.keep_evidence(box, "during"))
        return missing, complaints

    def look_at_quiet(self, box):
        for quiet in self.scenario.quiet:
            broken = quiet.broken(box)
            if broken:
                self.journal.write("watcher", "quiet_violation", {"quiet": quiet.text, "broken": broken})

    def find_way(self, box):
        """At level 1 the links of the check's output lead to the entry that has the cure, within two more; complaints."""
        text = self.last_check(box)
        reached = known = set(re.findall(r"docs/runbook\.md#(\w+)", text))
        for _ in range(LINKS):
            reached = {link for anchor in reached for link in re.findall(r"\]\(#([\w-]+)\)", box.entry(anchor))}
            known = known | reached
        if self.scenario.level > 1 or not known or self.scenario.anchor in known:
            return []
        return ["the runbook leads from the check's output to %s, not to %s" % (", ".join(sorted(known)), self.scenario.anchor)]

    def diagnose(self, box):
        """The first commands of the runbook's entry have to work whatever is broken."""
        done = box.runbook(box.first_commands(self.scenario.anchor))
        bad = next((word for word in BROKEN if word in done.output), None)
        self.journal.write("repair", "note", {"runbook": self.scenario.anchor, "exit": done.code, "fault": bad})
        return ["the first commands of the runbook's entry %s say: %s" % (self.scenario.anchor, bad)] if bad else []

    def mitigate(self, box):
        for step in self.scenario.mitigation:
            self.journal.write("repair", "mitigate", {"step": step.text})
            done = step.act(box)
            if hasattr(done, "code"):
                told = {"command": done.command, "exit": done.code, "output": done.output[-1000:]}
                self.journal.write("repair", "command", told)

    def await_recovery(self, box):
        """Waits for a steady state in a row of readings; complaints."""
        good, complaint, deadline = 0, None, time.monotonic() + RECOVERY_SECONDS
        while good < READINGS and time.monotonic() < deadline:
            complaint = reading(box)
            good = 0 if complaint else good + 1
            if good:
                self.journal.write("watcher", "recovered", {"probe": good})
            time.sleep(READING_PAUSE)
        return [] if good == READINGS else ["no steady state %d s after the mitigation: %s" % (RECOVERY_SECONDS, complaint)]

    def resume_writing(self, box):
        """After the repair a row can be stored again; complaints."""
        if not writes(self.scenario):
            return []
        try:
            if box.writing.poll() is not None:
                box.start_writer()
            before = len(box.read(box.ledger))
            box.wait(lambda: len(box.read(box.ledger)) > before, "a row stored after the repair")
            box.stop_writer()
        except Inconclusive as error:
            return [str(error)]
        return []

    def prove(self, box):
        """The proofs, once the writer has ended; complaints, beside the proofs that failed, which the journal has."""
        reasons = self.resume_writing(box)
        box.check()
        complaints, found = judge(box, self.scenario, self.before)
        failed = [line.split()[1] for line in complaints if line.startswith("proof ")]
        if not found:       # no steady state; what was lost is to be known all the same
            found = box.prove(condition_of(self.scenario))
            failed = failed_proofs(box, self.scenario, self.before, found)
        self.journal.write("harness", "proof", {"found": found, "failed": failed}, self.keep_evidence(box, "after"))
        return reasons + [line for line in complaints if not line.startswith("proof ")]

    def impact(self, box):
        """Seconds from the injection to the first request of a user that failed; None where none did."""
        bad = [sample.at for path in ("/livez", "/metrics") for sample in box.samples(path) if sample.status != 200]
        good = sum(len(box.samples(path)) for path in ("/livez", "/readyz", "/metrics"))
        self.journal.write("watcher", "probe", {"impact": round(min(bad) - box.injected, 3) if bad else None, "failed": len(bad),
                                                "probes": good})

    def drill(self, box):
        """The chain, up to the proofs; reasons against a pass, beside those that the journal's lines give."""
        self.steady(box)
        box.watch_on()
        wait_for(lambda: all(box.watch.samples.values()), 2)
        _, complaints = self.break_it(box)
        reasons = [] if complaints or self.scenario.cause == "none" else ["the checker was content while the fault was in"]
        self.look_at_quiet(box)
        reasons += self.find_way(box) + self.diagnose(box)
        self.mitigate(box)
        reasons += self.await_recovery(box)
        box.unwatch()
        self.impact(box)
        return reasons + self.prove(box)

    def spring_traps(self):
        for number, trap in enumerate(self.scenario.traps, 1):
            self.journal.write("injector", "trap", {"trap": trap.text})
            complaint = try_trap(self.scenario, trap, self.template, self.run_id + "-%d" % number)
            self.journal.write("watcher", "trap", {"trap": trap.text, "refused": bool(complaint), "complaint": complaint})

    def write_terminal(self, box):
        with open(os.path.join(self.folder, "terminal.txt"), "w") as file:
            file.write(report.terminal(box.commands))

    def whole(self, keep):
        self.begin()
        end, folder, box = {"reasons": []}, None, None
        try:
            with build(self.scenario, self.template, self.run_id) as box:
                folder = box.folder
                try:
                    end["reasons"] += self.drill(box)
                finally:
                    self.write_terminal(box)
                    if keep:
                        box.keep()
            self.spring_traps()
        except Inconclusive as error:
            end.update(inconclusive=True, reasons=[str(error)])
        except Exception as error:      # the boundary of a run: what a row did not foresee fails it, by name
            end["reasons"].append("%s: %s" % (type(error).__name__, error))
            end["traceback"] = traceback.format_exc()
        left = [supervision.describe(one.pid) for one in members(folder)] if folder else []
        left += [folder] if folder and not keep and os.path.exists(folder) else []
        self.journal.write("harness", "revert", {"leftovers": left, "kept": folder if keep else None})
        self.journal.write("harness", "end", end)
        return self.conclude()

    def conclude(self):
        result = journal.conclude(self.journal.entries())
        head = self.journal.append({"result": result})
        with open(os.path.join(self.folder, "result.json"), "w") as file:
            json.dump(result, file, indent=1, sort_keys=True)
        with open(os.path.join(self.folder, "timeline.md"), "w") as file:
            file.write(report.timeline(self.journal.entries()))
        return dict(result, head=head)


def among_own_mounts(scenario, evidence, keep):
    """Runs the drill as a program of its own that may mount what nobody else sees and what ends with it; its result."""
    program = [sys.executable, os.path.join(ROOT, "drill.py")]
    command = ["unshare", "--user", "--map-root-user", "--mount"] + program + ["run", scenario.id, "--json"] + (
        ["--evidence", os.path.abspath(evidence)] if evidence else []) + ["--keep"] * keep
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=dict(os.environ, **{OWN_MOUNTS: "yes"}))
    return json.loads(done.stdout.decode())[0]


def perform(scenario, template, evidence=None, keep=False):
    """Runs one drill; its result, with the evidence in a folder of that folder, or thrown away."""
    reason = unable(scenario)
    if scenario.needs == "mounts" and not reason and not os.environ.get(OWN_MOUNTS):
        return among_own_mounts(scenario, evidence, keep)
    run_id = os.urandom(4).hex()
    if reason:
        return {"run_id": run_id, "scenario": scenario.id, "name": scenario.name, "verdict": "skipped", "reasons": [reason]}
    started = time.monotonic()
    with private_folder("evidence") as scratch:
        name = "%s-%s-%s" % (time.strftime("%Y-%m-%d", time.gmtime()), scenario.id, run_id)
        folder = os.path.join(evidence or scratch, name)
        os.makedirs(folder)
        result = Run(scenario, template, folder, run_id).whole(keep)
        return dict(result, seconds=round(time.monotonic() - started, 2), folder=folder if evidence else None)
