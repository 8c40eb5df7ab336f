"""What people read of a journal: the terminal's record, the timeline, the debrief, and the draft of a postmortem."""

import re
import time

from drills.journal import HINT_COSTS, of_kind

ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")
UNTOLD = ("found", "children", "output", "traceback")      # of an entry: too long for a line
PROVEN = ("rows_before", "rows_after", "acknowledged", "missing", "quick_check", "verify")
PEOPLE = "(for people to write)"


def plain(shown):
    """A terminal's output without its control sequences, carriage returns taken as ends of lines."""
    return ESCAPES.sub("", re.sub("\r+\n|\r", "\n", shown))


def terminal(commands):
    """The commands with their outputs and exit codes, as on a terminal."""
    parts = []
    for done in commands:
        output = done.output.rstrip("\n")
        parts += ["# " + time.strftime("%H:%M:%SZ", time.gmtime(done.at)), "$ " + done.command]
        parts += ([output] if output else []) + (["# exit %d" % done.code] if done.code else []) + [""]
    return "\n".join(parts)


def told(entry):
    """An entry's data in one line."""
    named = sorted(item for item in entry["data"].items() if item[0] not in UNTOLD and item[1] is not None)
    parts = ["%s: %s" % item for item in named]
    return " ".join("; ".join(parts).replace("|", "/").split())[:200]


def rows(entries):
    """(UTC, seconds from the injection, actor, kind, words, journal line) of each entry."""
    injected = next((entry["t"] for entry in entries if entry.get("kind") == "inject"), None)
    for entry in entries:
        if "kind" in entry:
            seconds = "" if injected is None else "%.2f" % (entry["t"] - injected)
            yield entry["at"], seconds, entry["actor"], entry["kind"], told(entry), "%d" % entry["seq"]


def timeline(entries):
    lines = ["| UTC | seconds | actor | event | what | journal line |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + ["| %s |" % " | ".join(row) for row in rows(entries)]) + "\n"


def lasted(value):
    return "-" if value is None else "%.1f s" % value


def walk_through(scenario):
    """How it is mended, and why the plausible wrong moves are wrong: lines."""
    yield "What it was: %s (cause: %s)." % (scenario["title"], scenario["cause"])
    yield "Why it is practised: %s" % scenario["lesson"]
    yield "How it is found and mended:"
    for text in scenario["hints"] + scenario["mitigation"]:
        yield "  - " + text
    yield "What does not mend it:"
    for trap in scenario["traps"]:
        yield "  - %s: %s" % (trap["trap"], trap["why"])
    yield "What prevents it: %s" % scenario["prevention"]
    yield "Runbook: docs/runbook.md#%s" % scenario["anchor"]


def debrief(scenario, result, folder):
    """What a trainee is told at the end; scenario as in the journal."""
    clock, score = result["times"], result["score"]
    lines = ["%s: %s" % (result["verdict"].upper(), "; ".join(result["reasons"]) or "mended, and nothing lost"), ""]
    lines += ["%4d  %s" % (points, name) for name, points in score.items() if points and name != "total"]
    lines += ["%4d  of 100" % score["total"], ""]
    lines += ["Detected by the product after %s, acknowledged %s, right cause %s, mended %s, recovered %s." % tuple(
        lasted(clock[name]) for name in ("ttd", "ack", "answer", "ttm", "ttr"))]
    lines += ["Beside the cure: %s" % act for act in result["collateral"]]
    lines += [""] + list(walk_through(scenario)) + ["", "Evidence: %s" % folder]
    return "\n".join(lines)


def table(header, lines):
    head = ["| %s |" % " | ".join(header), "|" + "---|" * len(header)]
    return "\n".join(head + ["| %s |" % " | ".join(row) for row in lines])


def summary(header, result):
    data, clock = result["data"], result["times"]
    return ("%s. It was mended %s after its first effect and recovered after %s. Of %s acknowledged rows %d are missing."
            % (header["scenario"]["title"], lasted(clock["ttm"]), lasted(clock["ttr"]), data["acknowledged"], data["missing"]))


def impact_of(entries, result):
    probes = next((data for data in of_kind(entries, "probe") if "probes" in data), {})
    counts = probes.get("failed", "-"), probes.get("probes", "-"), lasted(probes.get("impact"))
    return "%s of %s probes failed, the first %s after the injection; false alarms: %d." % (
        counts + (len(result["signals"]["quiet_broken"]),))


def detection_of(entries, result):
    seen = [(data["signal"], data["evidence"].replace("|", "/")) for data in of_kind(entries, "signal")]
    missed = result["signals"]["missed"]
    return "%s\n\nFirst signal %s after the first effect. Not seen: %s. How could this time have been halved? %s" % (
        table(("signal", "evidence"), seen), lasted(result["times"]["ttd"]), "; ".join(missed) or "none", PEOPLE)


def diagnosis_of(entries):
    notes = [("rejected" if data.get("rejected") else "noted", data["text"])
             for data in of_kind(entries, "note") if data.get("text")]
    answers = [("answered", data["cause"] + (", next: " + data["next"] if data.get("next") else ""))
               for data in of_kind(entries, "answer")]
    return table(("state", "hypothesis"), notes + answers)


def mitigation_of(entries):
    commands = [data["command"] for data in of_kind(entries, "command")]
    worse = ", ".join(data["collateral"] for data in of_kind(entries, "command") if data.get("collateral"))
    return "```\n%s\n```\n\nWhat made it worse: %s" % ("\n".join(commands), worse or PEOPLE)


def postmortem(entries, path, digest):
    """The draft of a postmortem: twenty fields in the template's order; what a journal cannot know is left to people."""
    header, result = entries[0], entries[-1]["result"]
    scenario, data = header["scenario"], result["data"]
    severity = next((one["severity"] for one in of_kind(entries, "note") if one.get("severity")), PEOPLE)
    proofs = ", ".join("%s %s" % (name, data[name]) for name in PROVEN)
    fields = (
        ("Title", "%s, run %s" % (scenario["title"], header["run_id"])),
        ("Status", "draft"),
        ("Date, severity, drill or real", "%s; severity %s; drill %s, %s" % (
            header["started_at"], severity, scenario["id"], header["mode"])),
        ("Authors, responders", PEOPLE + " Roles, no names."),
        ("Summary", summary(header, result)),
        ("Impact", impact_of(entries, result)),
        ("Data safety", "%s. Failed proofs: %s. Fingerprint before %s, after %s." % (
            proofs, ", ".join(data["failed"] or []) or "none", data["fingerprint_before"], data["fingerprint_after"])),
        ("Timeline", timeline(entries)),
        ("Detection", detection_of(entries, result)),
        ("Trigger", PEOPLE + " What was changed last before it?"),
        ("Root causes and contributing factors", PEOPLE),
        ("Diagnosis", diagnosis_of(entries)),
        ("Mitigation and resolution", mitigation_of(entries)),
        ("What went well", PEOPLE),
        ("What went wrong", PEOPLE + " Hints taken: %d, of %s points." % (len(of_kind(entries, "hint")), list(HINT_COSTS))),
        ("Where we were lucky", PEOPLE),
        ("What surprised us", PEOPLE + " What was wrong with the drill itself?"),
        ("Action items", table(("action", "kind", "owner", "issue", "state", "done when"), [(PEOPLE, "", "", "", "open", "")])),
        ("Regression", "`python3 drill.py run %s`" % scenario["id"]),
        ("Supporting information", "Journal %s, SHA-256 %s; `drill.py verify` proves it and its evidence." % (path, digest)),
    )
    return "# %s\n\n" % scenario["title"] + "\n\n".join("## %d. %s\n%s" % (number, name, text.rstrip())
                                                        for number, (name, text) in enumerate(fields, 1)) + "\n"


def card(scenario):
    """A game master's card for a table-top: nothing is injected."""
    yield "Drill %s, level %d: %s" % (scenario["id"], scenario["level"], scenario["title"])
    yield ""
    yield "Read to the volunteer: %s" % scenario["page"]
    yield "To be reached: %s" % scenario["goal"]
    yield ""
    yield "Say only when asked, one for each question:"
    for text in scenario["expected"]:
        yield "  - " + text
    yield "What stays well, when asked: " + "; ".join(scenario["quiet"])
    yield "When they are stuck (5, 10, 20 points):"
    for text in scenario["hints"]:
        yield "  - " + text
    yield ""
    yield "Keep an eye on the clock: 10 minutes to declare, 20 to mitigate. At the end:"
    yield from walk_through(scenario)
    yield "Ask: what would have told us sooner? What did we nearly do? What was wrong with this drill?"
