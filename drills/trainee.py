"""A drill with a person: a page, a shell, hints at a price, an answer, a score, a debrief.

`start` leaves a keeper behind, a process that owns the sandbox: it watches, keeps the journal, and answers `ack`, `hint` and the
others over a socket in the sandbox's folder. Beside it stands a watchdog that reverts the sandbox when the time is over and the
keeper has not done so, or when the keeper is gone, however it ended.
"""

import contextlib
import json
import os
import pty
import random
import re
import select
import shlex
import socket
import subprocess
import sys
import time

from drills import catalogue, chain, journal, report
from drills.sandbox import (MARKER, ROOT, SYSTEM_PYTHON, Foreign, candidates, end, is_kept, made_by, make_template, owned,
                            private_folder, product_files, read_marker, sweep, wait_for)
from drills.scenario import Inconclusive

MEANT = "DRILL"                         # in the environment of a trainee's shell: the folder of the drill
CONTROL = "control"                     # the keeper's socket, in the sandbox's folder
COMMANDS = "commands.log"               # what was typed in the shell: seconds, exit code, command
RECORD = "terminal.raw"                 # what the shell's terminal showed
BIGGEST = 1 << 16                       # bytes of a message
TICK = 0.5                              # seconds between two looks at the box
READING_EVERY = 1.0                     # seconds between two readings
PROVING_EVERY = 4.0                     # more, where all looks well and a proof says no: proofs read the whole database
SETTLING = 5.0                          # seconds that `end` gives a cure to be seen
GRACE = 30                              # seconds after the limit until the watchdog takes over
ALONE = ("mounts", "namespace")         # what a drill needs that a shell beside it would not see
MINUTES = {1: 30, 2: 45, 3: 60}         # by level
EVIDENCE = "drill_evidence"             # default folder
ALIASES = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "granite", "harbour", "indigo", "juniper", "kestrel", "lagoon")
RULES = """\
Rules: edit neither the code nor the check. Two processes `sleep 86400` with their files bystander-1 and bystander-2 belong to
somebody else: leave them alone. No row may be lost. Say `ack` when you have read this; `note` what you find (with --severity
once, and --rejected for a cause that you have ruled out), `answer` the cause, `check` whether it is mended, `end` when it is.
"""
RUNBOOK_ONLY = "Read docs/ in that folder and nothing else: neither the code nor a colleague who knows it.\n"
# Acts that mend nothing and cost something, found in the commands as typed.
COLLATERAL = (
    ("modes opened to everybody", r"\bchmod\s+(-\S+\s+)*(0?777|a\+rwx|o\+w)"),
    ("authentication turned off", r"METRICS_AUTH_FILE=\s*(['\"]?\s*>|$)|/METRICS_AUTH_FILE/d"),
    ("verification turned off", r"CERT_NONE|_create_unverified|--insecure|curl\s.*\s-k\b"),
)
RESTART = ("a restart that nothing needed", r"restart_service\.sh(\s+(restart|stop|--\S+.*))?\s*$")


class Closed(Exception):
    """There is no running drill to talk to, or not exactly one."""


# Messages between a command and the keeper

def address(folder):
    """A short name of the keeper's socket whatever the folder's: a socket's path has 107 bytes at most."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return descriptor, "/proc/self/fd/%d/%s" % (descriptor, CONTROL)


def request(folder, verb, **words):
    """What the keeper answers: (exit code, text)."""
    descriptor, path = address(folder)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            line.connect(path)
            line.sendall(json.dumps(dict(words, verb=verb)).encode() + b"\n")
            with line.makefile("rb") as file:
                answer = json.loads(file.read().decode())
            return answer["code"], answer["text"]
    except (OSError, ValueError) as error:
        raise Closed("the drill in %s is over, or does not answer: %s" % (folder, error)) from error
    finally:
        os.close(descriptor)


def running():
    """The folders of the drills that somebody keeps."""
    found = []
    for folder in candidates():
        try:
            marker = read_marker(folder)
        except Foreign:
            continue
        if os.path.exists(os.path.join(folder, CONTROL)) and owned(marker["pid"]):
            found.append(folder)
    return found


def current(environ=os.environ):
    """The folder of the drill that is meant: that of the environment, that around the working directory, or the only one."""
    named = environ.get(MEANT)
    try:
        here = os.path.abspath(named or os.getcwd())
    except FileNotFoundError as error:
        raise Closed("this folder is gone: the drill in it is over") from error
    while here != os.path.dirname(here):
        if os.path.exists(os.path.join(here, MARKER)):
            return here
        here = os.path.dirname(here)
    folders = [] if named else running()
    if len(folders) != 1:
        raise Closed("%d drills are running %s; %s" % (len(folders), "in " + named if named else "here", "\n  ".join(
            ["go to the folder of the one meant, or set %s to it:" % MEANT] + folders) if folders else "start one"))
    return folders[0]


# The keeper

def code_of(box):
    """name -> SHA-256 of the programs in a sandbox's folder, and of the product's own SQL: a mapping is nobody's code."""
    ours = product_files()
    names = [name for name in sorted(os.listdir(box.app)) if name.endswith((".py", ".sh")) or name.endswith(".sql") and name in ours]
    return {name: journal.file_sha256(os.path.join(box.app, name)) for name in names}


def aside(box):
    """Something that is true and has nothing to do with it."""
    volume = os.statvfs(box.folder)
    return "the volume of the sandbox is %d %% full, and the load of this host was %.1f a minute ago." % (
        100 - 100 * volume.f_bavail // volume.f_blocks, os.getloadavg()[0])


class Keeper(chain.Run):
    """Owns a trainee's sandbox from its making to its end."""

    mode = "trainee"

    def __init__(self, scenario, template, folder, run_id, alias, seconds, keep, runbook_only):
        super().__init__(scenario, template, folder, run_id)
        self.alias, self.limit, self.keep, self.runbook_only = alias, seconds, keep, runbook_only
        self.missing, self.good, self.hints, self.read_at, self.typed, self.over = list(scenario.expected), 0, 0, 0, 0, False
        self.clean_code = {}

    def page(self, box):
        mail = box.check("--quiet").output.strip() or "(the check says nothing)"
        layer = {1: "\nLayer: %s." % self.scenario.layer, 3: "\nBy the way: %s" % aside(box)}.get(self.scenario.level, "")
        return "\n".join((
            "Subject: Cron: health_check.py --quiet    [drill %s, %d minutes]" % (self.alias, self.limit / 60), "", mail, "",
            "A caller says: %s%s" % (self.scenario.page, layer), "",
            "Folder: %s    URL: %s    Runbook: docs/runbook.md there. Severity: you choose, 1 (worst) to 4." % (box.app, box.url),
            "To be reached: %s" % self.scenario.goal, "", RULES + (RUNBOOK_ONLY if self.runbook_only else "")))

    def prepare(self, box):
        self.steady(box)
        self.clean_code = code_of(box)
        box.watch_on()
        self.journal.write("injector", "inject", {"scenario": self.scenario.id, "function": self.scenario.inject.__name__})
        proof = chain.inject(box, self.scenario)
        self.journal.write("injector", "probe", {"took_hold": proof})
        self.missing = chain.await_signals(box, self.scenario, self.saw)
        text = self.page(box)
        complaints, _ = chain.judge(box, self.scenario, self.before)
        box.require(complaints or self.scenario.cause == "none", "the checker says NO")
        self.journal.write("watcher", "probe", {"checker": complaints[:1] or "content"}, self.keep_evidence(box, "during"))
        return text

    def saw(self, signal, evidence):
        self.journal.write("watcher", "signal", {"signal": signal.text, "evidence": evidence[:500]})

    def tick(self, box):
        """What is to be seen by now: signals, commands typed, a steady state."""
        self.collect(box)
        for signal in list(self.missing):
            evidence = signal.look(box)
            if evidence:
                self.missing.remove(signal)
                self.saw(signal, evidence)
        if self.good < chain.READINGS and time.monotonic() - self.read_at > READING_EVERY / (1 + 4 * (self.good > 0)):
            complaints, proven = chain.judge(box, self.scenario, self.before)
            self.read_at = time.monotonic() + (PROVING_EVERY if complaints and proven else 0)
            self.good = 0 if complaints else self.good + 1
            if self.good:
                self.journal.write("watcher", "recovered", {"probe": self.good})

    def collect(self, box):
        """Takes over what was typed in the shell since the last look."""
        lines = box.read(COMMANDS).splitlines()
        patterns = COLLATERAL + ((RESTART,) if any("same instance" in quiet.text for quiet in self.scenario.quiet) else ())
        for line in lines[self.typed:]:
            at, code, command = (line.split("\t") + ["", ""])[:3]
            if re.match(r"\s*(drill|python3? \S*drill\.py)\b", command):
                continue
            fault = next((words for words, pattern in patterns if re.search(pattern, command)), None)
            self.journal.write("trainee", "command", {
                "command": command[:500], "exit": code, "typed_at": at, "collateral": fault})
        self.typed = len(lines)

    def ack(self, box, words):
        self.journal.write("trainee", "ack", {})
        return 0, "acknowledged"

    def hint(self, box, words):
        if self.hints == len(self.scenario.hints):
            return 1, "there is no further hint; give-up shows the whole way"
        self.hints += 1
        self.journal.write("trainee", "hint", {"number": self.hints, "cost": journal.HINT_COSTS[self.hints - 1]})
        return 0, "%s\n(%d points)" % (self.scenario.hints[self.hints - 1], journal.HINT_COSTS[self.hints - 1])

    def note(self, box, words):
        if not words.get("text"):
            return 2, "say what you found"
        self.journal.write("trainee", "note", {name: words.get(name) for name in ("text", "severity", "rejected")})
        return 0, "noted"

    def answer(self, box, words):
        cause = words.get("cause")
        if cause not in catalogue.CAUSES:
            return 2, "one of: " + " ".join(catalogue.CAUSES)
        self.journal.write("trainee", "answer", {"cause": cause, "next": words.get("next")})
        return 0, "your answer is written down; the debrief says whether it is right"

    def check(self, box, words):
        complaints, _ = chain.judge(box, self.scenario, self.before)
        return (1, "NO: " + "; ".join(complaints)) if complaints else (0, "OK")

    def finish(self, box, reasons):
        """The last look, and the proofs; reasons against a pass."""
        self.tick(box)
        deadline = time.monotonic() + SETTLING
        while not reasons and self.good < chain.READINGS and (self.good or time.monotonic() < deadline):
            time.sleep(chain.READING_PAUSE)
            self.read_at = 0
            self.tick(box)
        box.unwatch()
        self.impact(box)
        found = self.prove(box)
        content = not found and not journal.of_kind(self.journal.entries(), "proof")[-1]["failed"]
        reasons = reasons + found + ["no steady state three times in a row"] * (content and self.good < chain.READINGS)
        code = code_of(box)
        names = sorted(name for name in set(code) | set(self.clean_code) if code.get(name) != self.clean_code.get(name))
        return reasons + ["%s was edited" % name for name in names]

    def end(self, box, words):
        return self.close(box, [], words.get("keep"))

    def give_up(self, box, words):
        return self.close(box, ["given up"], False)

    def close(self, box, reasons, keep):
        self.collect(box)
        reasons = self.finish(box, reasons)
        self.write_terminal(box)
        self.keep = keep or self.keep
        self.journal.write("harness", "revert", {"leftovers": [], "kept": box.folder if self.keep else None}, ["terminal.txt"])
        self.journal.write("harness", "end", {"reasons": reasons})
        result = self.conclude()
        self.over = True
        return int(result["verdict"] != "pass"), report.debrief(chain.as_data(self.scenario), result, self.folder)

    def write_terminal(self, box):
        """The terminal's own record where the shell had one, else the commands of the harness."""
        shown = box.read(RECORD)
        with open(os.path.join(self.folder, "terminal.txt"), "w") as file:
            file.write(report.plain(shown) if shown else report.terminal(box.commands))

    def serve(self, box, listener):
        """Answers until the drill is over or its time is."""
        deadline = time.monotonic() + self.limit
        while not self.over:
            if time.monotonic() > deadline:
                self.close(box, ["the time was over"], False)
            elif select.select([listener], [], [], TICK)[0]:
                self.answer_one(box, listener)
            else:
                self.tick(box)

    def answer_one(self, box, listener):
        line, _ = listener.accept()
        with contextlib.closing(line), contextlib.suppress(OSError):    # whoever asked does not wait for the answer
            line.settimeout(TICK)
            words = json.loads(line.makefile("rb").readline(BIGGEST).decode() or "{}")
            try:
                code, text = VERBS[words.get("verb")](self, box, words)
            except (Inconclusive, OSError, KeyError) as error:
                code, text = 1, "%s: %s" % (type(error).__name__, error)
            line.sendall(json.dumps({"code": code, "text": text}).encode())

    def whole(self, tell):
        """Builds, breaks, tells the page, serves. tell(code, folder, text) once, whatever happens."""
        self.begin()
        try:
            with chain.build(self.scenario, self.template, self.run_id) as box:
                text = self.prepare(box)
                self.watchdog = subprocess.Popen([sys.executable, os.path.join(ROOT, "drill.py"), "guard", box.folder,
                                                  "%g" % (self.limit + GRACE)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                                 stderr=subprocess.DEVNULL)
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
                    descriptor, path = address(box.folder)
                    listener.bind(path)
                    os.chmod(path, 0o666)       # within a folder of mode 0700
                    os.close(descriptor)
                    listener.listen(8)
                    tell(0, box.folder, text)
                    self.serve(box, listener)
                if self.keep:
                    box.keep()
        except Inconclusive as error:
            tell(1, None, "the drill could not be set up: %s" % error)


VERBS = {"ack": Keeper.ack, "hint": Keeper.hint, "note": Keeper.note, "answer": Keeper.answer, "check": Keeper.check,
         "end": Keeper.end, "give-up": Keeper.give_up}


def guard(folder, seconds):
    """The watchdog: reverts what the keeper has made once the keeper, at the other end of stdin, is gone, or the time is over."""
    keeper = made_by(folder)
    if not select.select([sys.stdin], [], [], seconds)[0]:
        end(keeper)
    wait_for(lambda: owned(keeper.pid) != keeper, GRACE)
    for made in candidates():
        with contextlib.suppress(Foreign):      # another's, or the keeper has removed it
            if made_by(made) == keeper:
                sweep(made, spare=is_kept(made))


def keep(name, evidence, seconds, keep_folder, runbook_only):
    """The keeper's process: says on stdout, in one line of JSON, what `start` is to print."""
    scenario, run_id = catalogue.BY_ID[name], os.urandom(4).hex()
    alias = "%s-%s" % (ALIASES[int(run_id, 16) % len(ALIASES)], run_id[:3])
    folder = os.path.join(evidence, "%s-%s-%s" % (time.strftime("%Y-%m-%d", time.gmtime()), alias, run_id))
    os.makedirs(folder)

    def tell(code, sandbox, text):
        print(json.dumps({"code": code, "folder": sandbox, "text": text}), flush=True)
        for number in (1, 2):       # whoever waits for the end of what `start` prints shall not wait for us
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)

    with private_folder("template") as template:
        Keeper(scenario, make_template(template), folder, run_id, alias, seconds, keep_folder, runbook_only).whole(tell)


# What `start` does

def launch(name, evidence, seconds, keep_folder, runbook_only):
    """Leaves a keeper behind: (exit code, sandbox's folder or None, the page)."""
    command = [sys.executable, os.path.join(ROOT, "drill.py"), "keep", name, os.path.abspath(evidence), "%g" % seconds,
               "yes" if keep_folder else "", "yes" if runbook_only else ""]
    keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    line = keeper.stdout.readline().decode()
    if not line:
        return 1, None, "the drill could not be set up: see the lines above"
    answer = json.loads(line)
    return answer["code"], answer["folder"], answer["text"]


RC = r"""
cd {app}
unset HISTFILE HISTTIMEFORMAT
drill() {{ {python} {program} "$@"; }}
PS1='[drill \w]\$ '
__told=$(history 1)
__tell() {{
  local code=$? line
  line=$(history 1)
  [[ $line == "$__told" ]] || printf '%s\t%s\t%s\n' "$(date +%s)" "$code" "$(sed 's/^ *[0-9]* *//' <<< "$line")" 2> /dev/null >> {log}
  __told=$line
}}
PROMPT_COMMAND=__tell
"""


BECOME = """
import os, sys
user = int(sys.argv[1])
os.setgroups([])
os.setgid(user)
os.setuid(user)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def shell(folder):
    """bash in the sandbox, as the user of `start`; each command is recorded, and at a terminal all that it shows."""
    app, owner = os.path.join(folder, "app"), os.stat(folder).st_uid
    environ = dict(
        PATH=os.path.join(folder, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8",
        HOME=os.path.join(folder, "home"), TERM=os.environ.get("TERM", "dumb"), **{MEANT: folder})
    rc = os.path.join(folder, "rc")
    with open(rc, "w") as file:
        words = {"app": app, "log": os.path.join(folder, COMMANDS), "program": os.path.join(ROOT, "drill.py"),
                 "python": sys.executable if owner == os.geteuid() else SYSTEM_PYTHON}
        file.write(RC.format(**{name: shlex.quote(word) for name, word in words.items()}))
    command = ["env", "-i"] + ["%s=%s" % item for item in environ.items()] + ["bash", "--noprofile", "--rcfile", rc, "-i"]
    if owner != os.geteuid():       # a drill for an unprivileged user, set up by root
        command = [sys.executable, "-c", BECOME, str(owner)] + command
    if not sys.stdin.isatty():
        return subprocess.call(command, cwd=app)
    with open(os.path.join(folder, RECORD), "ab", buffering=0) as record:
        def read(descriptor):
            shown = os.read(descriptor, 4096)
            with contextlib.suppress(OSError):      # the folder is gone: the drill was ended from within
                record.write(shown)
            return shown
        return pty.spawn(command, read)


def done_before(evidence):
    """The drills of which there is evidence in that folder."""
    found = set()
    for name in os.listdir(evidence) if os.path.isdir(evidence) else ():
        path = os.path.join(evidence, name, "journal.jsonl")
        if os.path.exists(path):
            found.add(journal.read(path)[0]["scenario"]["id"])
    return found


def choose(level=None, seed=None, evidence=EVIDENCE):
    """A drill that can run here, drawn from those not done before while there are any."""
    able = [one for one in catalogue.SCENARIOS if level in (None, one.level) and not chain.unable(one) and one.needs not in ALONE]
    if not able:
        raise Closed("no drill of level %s can run here" % level)
    done = done_before(evidence)
    return random.Random(seed).choice([one for one in able if one.id not in done] or able)


def start(name, evidence, minutes=None, with_shell=False, keep_folder=False, runbook_only=False):
    """Sets a drill up and prints its page; the exit code."""
    scenario = catalogue.BY_ID[name]
    code, folder, text = launch(name, evidence, 60 * (minutes or MINUTES[scenario.level]), keep_folder, runbook_only)
    print(text, flush=True)
    if not code and with_shell:
        print("A shell in the sandbox; `drill ack`, `drill hint`, ... and `exit`.", flush=True)
        shell(folder)
    elif not code:
        program = os.path.join(ROOT, "drill.py")
        print("Go there by: cd %s    and say: %s %s ack" % (os.path.join(folder, "app"), sys.executable, program))
    return code
