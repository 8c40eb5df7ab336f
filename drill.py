#!/usr/bin/env python3
"""Practise incidents of metrics_service on the real product, in a sandbox, and prove that nothing was lost.

  drill.py list [--level N] [--json]        the drills: id, level, set, what a caller says
  drill.py show ID [--spoilers]             a drill's briefing, or all of it
  drill.py start [ID | --random] [--level N] [--seed N] [--minutes M] [--shell] [--runbook-only] [--keep]
                 [--evidence DIR]           build a sandbox, break it, print the page; --shell opens bash there
  drill.py ack | hint | check | end [--keep] | give-up
  drill.py note TEXT [--severity 1-4] [--rejected]
  drill.py answer CAUSE [--next STEP]       one of a closed list, or none, or undecided with the step that would decide it
  drill.py run ID... | --set ci | --all [--jobs N] [--repeat N] [--strict] [--evidence DIR] [--keep] [--json]
                                            the whole chain without a person: fault, signals, traps, runbook, proofs
  drill.py verify JOURNAL [--head HASH]     recompute chain, evidence and result
  drill.py report JOURNAL                   draft a postmortem
  drill.py wheel [ID | --random] [--level N] [--seed N]      a game master's card; nothing is broken
  drill.py clean [FOLDER...]                revert sandboxes whose maker is gone

A drill happens in a private folder for temporary files, on loopback and a free port; nothing else of the host is changed. Level 1
needs docs/runbook.md and nothing else. docs/drills.md tells more.
Exit codes: 0 pass, 1 fail or data lost, 2 wrong usage, 77 all skipped, each with its reason.
"""

import argparse
import concurrent.futures
import json
import os
import random
import sys

from drills import catalogue, chain, journal, report, sandbox, trainee

PASS, FAIL, USAGE, SKIPPED = 0, 1, 2, 77
COLUMNS = ("drill", "name", "verdict", "detect", "mitigate", "recover", "traps", "rows acknowledged", "missing", "took")


class Usage(Exception):
    """What was asked for makes no sense; the message says why."""


def scenario_of(name):
    if name not in catalogue.BY_ID:
        raise Usage("there is no drill %s; `drill.py list` has them" % name)
    return catalogue.BY_ID[name]


def chosen(args):
    """The drill that an id or --random names."""
    if bool(args.id) == args.random:
        raise Usage("name a drill, or say --random")
    if args.id:
        return scenario_of(args.id)
    return trainee.choose(args.level, args.seed, getattr(args, "evidence", trainee.EVIDENCE))


# Reading

def cmd_list(args):
    wanted = [one for one in catalogue.SCENARIOS if args.level in (None, one.level)]
    if args.json:
        print(json.dumps([chain.as_data(one) for one in wanted], indent=1))
    else:
        for one in wanted:
            print("%-5s level %d  %-4s %-22s %s" % (one.id, one.level, one.set, one.name, one.page))
    return PASS


def cmd_show(args):
    data = chain.as_data(scenario_of(args.id))
    told = data if args.spoilers else {name: data[name] for name in ("id", "level", "needs", "page", "goal")}
    for name, value in told.items():
        print("%-11s %s" % (name, value if not isinstance(value, list) else ("\n" + " " * 12).join(map(str, value))))
    return PASS


def cmd_wheel(args):
    print("\n".join(report.card(chain.as_data(chosen(args)))))
    return PASS


# With a person

def cmd_start(args):
    scenario = chosen(args)
    reason = chain.unable(scenario) or scenario.needs in trainee.ALONE and "it runs without a person alone, by `drill.py run`"
    if reason:
        print("skipped: %s" % reason)
        return SKIPPED
    return trainee.start(scenario.id, args.evidence, args.minutes, args.shell, args.keep, args.runbook_only)


def cmd_say(args):
    given = vars(args)
    words = {name: given[name] for name in ("text", "severity", "rejected", "cause", "next", "keep") if name in given}
    code, text = trainee.request(trainee.current(), args.verb, **words)
    print(text)
    return code


def cmd_keep(args):
    trainee.keep(args.id, args.evidence, float(args.seconds), bool(args.keep), bool(args.runbook_only))
    return PASS


def cmd_guard(args):
    trainee.guard(args.folder, float(args.seconds))
    return PASS


# Without a person

def cell(value):
    return "-" if value is None else "%.1f s" % value if isinstance(value, float) else str(value)


def line_of(result):
    clock, traps, data = result.get("times", {}), result.get("traps"), result.get("data", {})
    lasted = [cell(clock.get(name)) for name in ("ttd", "ttm", "ttr")]
    rows = [cell(data.get(name)) for name in ("acknowledged", "missing")]
    refused = "%d of %d" % (traps["refused"], traps["tried"]) if traps else "-"
    told = [result["scenario"], result["name"], result["verdict"]]
    return tuple(told + lasted + [refused] + rows + [cell(result.get("seconds"))])


def show_line(cells):
    print("%-6s %-22s %-12s %7s %8s %8s %7s %17s %7s %7s" % cells, flush=True)


def tell(result):
    show_line(line_of(result))
    for reason in result["reasons"]:
        print("       %s" % reason, flush=True)


def total(results):
    ran = [one for one in results if "data" in one]
    count = {word: sum(one["verdict"] == word for one in results) for word in ("pass", "fail", "inconclusive", "skipped")}
    return ("%d drills: %s; traps refused %d of %d; rows acknowledged %d, missing %d" % (
        len(results), ", ".join("%d %s" % (times, word) for word, times in count.items() if times),
        sum(one["traps"]["refused"] for one in ran), sum(one["traps"]["tried"] for one in ran),
        sum(one["data"]["acknowledged"] or 0 for one in ran), sum(one["data"]["missing"] for one in ran)))


def selected(args):
    """The drills that ids, --set or --all name, each as often as --repeat says."""
    if sum(map(bool, (args.ids, args.set, args.all))) != 1:
        raise Usage("name drills, or a --set, or --all")
    ours = [scenario_of(name) for name in args.ids] or [one for one in catalogue.SCENARIOS if args.all or args.set == one.set]
    if not ours:
        raise Usage("there is no drill in set %s" % args.set)
    return ours * args.repeat


def work(name, template, evidence, keep):
    return chain.perform(catalogue.BY_ID[name], template, evidence, keep)


def run_all(scenarios, args):
    """Yields the results as they come."""
    with sandbox.private_folder("template") as folder:
        template = sandbox.make_template(folder)
        if args.jobs == 1:
            for one in scenarios:
                yield work(one.id, template, args.evidence, args.keep)
            return
        with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
            waiting = [pool.submit(work, one.id, template, args.evidence, args.keep) for one in scenarios]
            for future in concurrent.futures.as_completed(waiting):
                yield future.result()


def exit_code(results, strict):
    words = {one["verdict"] for one in results}
    if words == {"skipped"} and not strict:
        return SKIPPED
    return PASS if words <= ({"pass"} if strict else {"pass", "skipped"}) else FAIL


def sweep_all(quiet=False):
    """Reverts what dead makers left behind; how many."""
    swept = 0
    for folder in sandbox.candidates():
        try:
            ended = sandbox.sweep(folder)
            swept += 1
            print("%s: reverted, %d processes ended" % (folder, ended), file=sys.stderr if quiet else sys.stdout)
        except sandbox.Foreign as error:
            if not quiet:
                print("left alone: %s" % error)
    return swept


def cmd_run(args):
    sweep_all(quiet=True)
    results = []
    if not args.json:
        show_line(COLUMNS[:7] + ("rows acknowledged",) + COLUMNS[8:])
    for result in run_all(selected(args), args):
        results.append(result)
        if not args.json:
            tell(result)
    print(json.dumps(results, indent=1) if args.json else total(results))
    return exit_code(results, args.strict)


def cmd_verify(args):
    faults = journal.faults(args.journal, chain.engine())
    with open(args.journal) as file:
        head = journal.line_hash((file.read().splitlines() or [""])[-1])
    if args.head and args.head != head:
        faults.append("the last line has the hash %s" % head)
    print("\n".join(faults) or "sound: chain, evidence and result; the last line has the hash %s" % head)
    return FAIL if faults else PASS


def cmd_report(args):
    entries = journal.read(args.journal)
    if "result" not in entries[-1]:
        raise Usage("%s has no result: the drill was ended before it" % args.journal)
    text = report.postmortem(entries, args.journal, journal.file_sha256(args.journal))
    with open(os.path.join(os.path.dirname(os.path.abspath(args.journal)), "postmortem.md"), "w") as file:
        file.write(text)
    print(text, end="")
    return PASS


def cmd_clean(args):
    if not args.folders:
        sweep_all()
        return PASS
    for folder in args.folders:
        print("%s: reverted, %d processes ended" % (folder, sandbox.sweep(folder)))
    return PASS


def number(low, high):
    def read(text):
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError("%s is not within %d to %d" % (text, low, high))
        return value
    read.__name__ = "number"
    return read


def add_choice(verb):
    verb.add_argument("id", nargs="?", metavar="ID")
    verb.add_argument("--random", action="store_true", help="draw one")
    verb.add_argument("--level", type=number(1, 3))
    verb.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30), help="for the drawing")


def build_parser():
    parser = argparse.ArgumentParser(prog="drill.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="drill.py COMMAND [options]", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    verbs.required = True

    def verb(name, function, *arguments):
        one = verbs.add_parser(name, allow_abbrev=False)
        one.set_defaults(function=function)
        for argument in arguments:
            one.add_argument(argument)
        return one

    one = verb("list", cmd_list)
    one.add_argument("--level", type=number(1, 3))
    one.add_argument("--json", action="store_true")
    verb("show", cmd_show, "id").add_argument("--spoilers", action="store_true")
    one = verb("start", cmd_start)
    add_choice(one)
    one.add_argument("--minutes", type=number(1, 600))
    one.add_argument("--evidence", metavar="DIR", default=trainee.EVIDENCE)
    for flag in ("--shell", "--runbook-only", "--keep"):
        one.add_argument(flag, action="store_true")
    for name in ("ack", "hint", "check", "give-up"):
        verb(name, cmd_say)
    verb("end", cmd_say).add_argument("--keep", action="store_true")
    one = verb("note", cmd_say, "text")
    one.add_argument("--severity", choices="1234")
    one.add_argument("--rejected", action="store_true")
    one = verb("answer", cmd_say)
    one.add_argument("cause", nargs="?")
    one.add_argument("--next")
    one = verb("run", cmd_run)
    one.add_argument("ids", nargs="*", metavar="ID")
    one.add_argument("--set", choices=("ci", "priv", "hand"))
    one.add_argument("--jobs", type=number(1, 64), default=1)
    one.add_argument("--repeat", type=number(1, 1000), default=1)
    one.add_argument("--evidence", metavar="DIR")
    for flag in ("--all", "--strict", "--keep", "--json"):
        one.add_argument(flag, action="store_true")
    verb("verify", cmd_verify, "journal").add_argument("--head", metavar="HASH")
    verb("report", cmd_report, "journal")
    add_choice(verb("wheel", cmd_wheel))
    verb("clean", cmd_clean).add_argument("folders", nargs="*", metavar="FOLDER")
    verb("keep", cmd_keep, "id", "evidence", "seconds", "keep", "runbook_only")     # by these two `start` leaves its keeper
    verb("guard", cmd_guard, "folder", "seconds")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    try:
        return args.function(args)
    except (Usage, sandbox.Foreign, trainee.Closed, OSError, ValueError) as error:
        print("drill.py: %s" % error, file=sys.stderr)
        return FAIL if isinstance(error, sandbox.Foreign) else USAGE


if __name__ == "__main__":
    sys.exit(main())
