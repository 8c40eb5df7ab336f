"""What people read of a journal: the terminal's record, the timeline, and the draft of a postmortem."""

import time

from drills.journal import of_kind


def terminal(commands):
    """The commands with their outputs and exit codes, as on a terminal."""
    parts = []
    for done in commands:
        at = time.strftime("%H:%M:%SZ", time.gmtime(done.at))
        parts.append("# %s\n$ %s\n%s%s" % (at, done.command, done.output.rstrip("\n") + "\n" if done.output.strip() else "",
                                           "# exit %d\n" % done.code if done.code else ""))
    return "\n".join(parts)


def told(entry):
    """An entry's data in one line."""
    return "; ".join("%s: %s" % (name, str(value).replace("|", "\\|").replace("\n", " ")[:160])
                     for name, value in sorted(entry["data"].items()) if name not in ("found", "children", "output", "traceback"))


def rows(entries):
    """(UTC, seconds from the injection, actor, kind, words, evidence ids) of each entry."""
    injected = next((entry["t"] for entry in entries if entry.get("kind") == "inject"), None)
    for entry in entries:
        if "kind" in entry:
            seconds = "" if injected is None else "%.2f" % (entry["t"] - injected)
            yield entry["at"], seconds, entry["actor"], entry["kind"], told(entry), "%d" % entry["seq"]


def timeline(entries):
    lines = ["| UTC | seconds | actor | event | what | journal line |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + ["| %s |" % " | ".join(row) for row in rows(entries)]) + "\n"


__all__ = ["terminal", "timeline", "of_kind"]
