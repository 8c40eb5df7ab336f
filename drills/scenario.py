"""What a drill is: one row of a table, and the words that its columns are written in.

A scenario is data: what is broken, what must then be seen and what not, what mends it, what does not. The rows stand in the files
beside this one, by layer: configuration.py, files.py, process.py, database.py, schema.py, data.py; each has a tuple SCENARIOS.
chain.py takes a row through its chain, on a real copy of the product in a Sandbox (sandbox.py), here called `box`.

How to write a row

  1. Do it by hand first: copy the product, break it, look at what check, log, /readyz, /metrics and scripts say, and follow the
     runbook.
  2. inject is a function of the box that breaks it in a real way (never by a switch in the product), and returns a sentence that
     proves that it took hold: a limit read back, a lock seen, a file's mode. It raises Inconclusive (box.require does) where it
     did not. It is run anew for every trap, each time in a fresh box, so it must not depend on anything outside of the box. What
     the fault needs and is itself no fault (a password, a certificate, an old backup) is made by prepare, before the start.
  3. expected are signals, each of which must be seen within `deadline` seconds of the injection:
       check(PATTERN, code=1)             health_check.py ends so and prints what the regular expression finds
       log(PATTERN)                       a line of the log, or of PIDFILE.out, written since the injection
       http(PATH, STATUS, PATTERN)        an answer of the service; STATUS may be a word: refused, timeout, reset, closed
       metric(NAME, VALUE)                a sample in the text format of /metrics: 'logistics_up', 0
       tells(COMMAND, CODE, PATTERN)      a shell command in the product's folder that ends so: './restart_service.sh status'
       said(CODE, PATTERN)                a command that the injection ran through the box ended so: a refused restart
     quiet are promises, which must hold from the injection to the mitigation:
       stays(PATH, STATUS)                every probe of the path was answered so (one each 50 ms)
       never(PATTERN)                     no line of the log since the injection
       same_instance()                    nobody restarted or reloaded the service
       unless_said(CODE)                  no command of the injection ended so
  4. mitigation are steps that stand in the runbook; the engine refuses a command that its entry does not have, word for word:
       cure(ANCHOR, COMMAND, WORD=VALUE)  a command of that entry, in a ```bash block or in backticks; the capital words filled
                                          in. A value may be a function of the box. $URL, $PID, sql, holders, ... are there.
       page(FILE, EXAMPLE=VALUE)          the commands of field 13 of docs/incidents/FILE
       by_hand(TEXT, FUNCTION)            what an editor or another person does: a line put back, a bystander's owner asked
  5. traps are plausible wrong moves with a why, which the debrief prints: Trap(TEXT, ACT, WHY), where ACT is a shell command as a
     text ($URL and the others are there) or a function of the box. After each the checker must still say NO; one that looks
     steady only after a while gets settle=SECONDS for that. The checker is:
     health_check.py content (every check ok, or a warning 'recovered'), /readyz pass, status running, the settings those on disk,
     metrics_service.py --check content, the bystanders untouched, the proofs, and `solved` of the row.
  6. proofs are letters, all evaluated at the end; L is always among them:
       H  database file byte-identical (the ledger's writer is stopped before the sealed copy; nothing may write)
       F  fingerprint of all rows and columns with their types, without the writer's own; ("F", CONDITION) leaves rows out
       L  each acknowledged row of the writer is there in its last acknowledged version; none acknowledged is inconclusive
       Q  quick_check and foreign_key_check      V  seed.py --verify       S  the schema is that of schema.sql
       C  conservation: rows are as many as before and as box.balance says, and each import adds up
  7. hints are three: where to look (a command), what the finding means, what to do. cause is one word for the closed list.
  8. set is ci (no root, no namespace, a second or two), priv (needs something), hand (takes longer: with .ci/run --long). needs is
     '' or a key of NEEDS.
  9. Run it: python3 drill.py run ID; with --keep its folder stays and is named.

Times are seconds. Texts are for people: `page` is what a caller says besides the check's mail, `goal` what is to be reached,
`lesson` why this drill is there. `alerts` are the rules of deploy/prometheus/alerts.yml that stand for it.
"""

import collections
import re

NEEDS = {
    "user": "an unprivileged user: as root the service runs as nobody, with /usr/bin/python3",
    "root": "root",
    "mounts": "user namespaces for unprivileged users, in which it mounts a small volume; only by drill.py run",
    "namespace": "user namespaces for unprivileged users: unshare --user --map-root-user --mount",
}

Scenario = collections.namedtuple("Scenario", (
    "id name title layer level set needs founding page goal inject expected quiet deadline mitigation traps hints prevention "
    "proofs cause anchor lesson alerts watch prepare solved"))
# watch: more options of the check, as cron has them in this sandbox. prepare: function of the box, run before the service starts.
# solved: function of the box, a complaint or None.
Scenario.__new__.__defaults__ = ((), (), None, None)

Signal = collections.namedtuple("Signal", "text look")      # look(box): the evidence in a line, None while it is not there
Quiet = collections.namedtuple("Quiet", "text broken")      # broken(box): what broke it, None while it holds
Step = collections.namedtuple("Step", "text act")           # act(box): the Done of a command, or None
Trap = collections.namedtuple("Trap", "text act why settle")    # act: a shell command, or a function of the box
Trap.__new__.__defaults__ = (0,)                            # settle: seconds that it gets to look like a steady state


class Inconclusive(Exception):
    """The fault did not take hold, or what is needed to judge is not there: neither a pass nor a fail."""


def found(pattern, text):
    """The line of a text in which a regular expression is found, None without one."""
    return next((line for line in text.splitlines() if re.search(pattern, line)), None)


def check(pattern, code=1):
    def look(box):
        done = box.check()
        return found(pattern, done.output) if done.code == code else None
    return Signal("check exits %d: %s" % (code, pattern), look)


def log(pattern):
    return Signal("log: " + pattern, lambda box: found(pattern, box.log_since()))


def http(path, status, pattern=""):
    def look(box):
        answer = box.probe(path)
        if answer.status == status and re.search(pattern, answer.body):
            return "%s: %s %s" % (path, answer.status, (found(pattern, answer.body) or "")[:300])
        return None
    return Signal("%s: %s %s" % (path, status, pattern), look)


def metric(name, value):
    def look(box):
        seen = box.metric(name)
        return "%s %g" % (name, seen) if seen == value else None
    return Signal("metric: %s %g" % (name, value), look)


def tells(command, code, pattern=""):
    def look(box):
        done = box.runbook(command)
        fits = done.code == code and re.search(pattern, done.output)
        return (found(pattern, done.output) or "exit %d" % code) if fits else None
    return Signal("`%s` exits %d: %s" % (command, code, pattern), look)


def said(code, pattern=""):
    def look(box):
        for done in box.commands_since():
            if done.code == code and re.search(pattern, done.output):
                return found(pattern, done.output) or "exit %d" % code
        return None
    return Signal("the last command exits %d: %s" % (code, pattern), look)


def stays(path, status):
    def broken(box):
        bad = next((sample for sample in box.samples(path) if sample.status != status), None)
        return bad and "%s answered %s %.2f s after the injection" % (path, bad.status, bad.at - box.injected)
    return Quiet("%s stays %s" % (path, status), broken)


def never(pattern):
    return Quiet("no log line " + pattern, lambda box: found(pattern, box.log_since()))


def same_instance():
    def broken(box):
        now = box.instance()
        return None if now == box.steady_instance else "instance %s became %s" % (box.steady_instance, now)
    return Quiet("the same instance answers", broken)


def unless_said(code):
    def broken(box):
        return next(("%s exits %d" % (done.command, code) for done in box.commands_since() if done.code == code), None)
    return Quiet("no command exits %d" % code, broken)


def filled(command, words, box):
    """A command with its capital words, and example values, replaced."""
    for word, value in sorted(words.items(), key=lambda item: -len(item[0])):
        ours = str(value(box) if callable(value) else value)
        command = re.sub(r"(?<![\w$])%s(?!\w)" % re.escape(word), lambda _: ours, command)
    return command


def cure(anchor, command, **words):
    def act(box):
        box.require_in_runbook(anchor, command)
        return box.runbook(filled(command, words, box))
    return Step("runbook %s: %s" % (anchor, command), act)


def page(file, examples=()):
    """examples: (example value, ours or a function of the box) pairs; database and URL of the pages are replaced anyway."""
    def act(box):
        return box.runbook(box.incident_commands(file, dict(examples)))
    return Step("docs/incidents/%s, field 13" % file, act)


def by_hand(text, function):
    return Step(text, function)
