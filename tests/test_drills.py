"""The drills themselves: the chain, the journal that cannot be edited unseen, the safety of the lab, the trainee's way.

What the scenarios show is not repeated here: `drill.py run --set ci` runs them all, beside this suite.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import supervision
from conftest import ROOT, wait_for
from drills import catalogue, chain, data, journal, sandbox, scenario, trainee

DRILL = [sys.executable, str(ROOT / "drill.py")]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
ALERTS = set(re.findall(r"alert: (\w+)", (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()))
OWN_ROW = catalogue.BY_ID["D29"]


def drill(*arguments, folder=None, environ=None, given=None):
    """(exit code, output) of drill.py."""
    done = subprocess.run(DRILL + list(arguments), cwd=str(folder or ROOT), env=dict(os.environ, **(environ or {})), input=given,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout


def folders_of(run_id):
    return [path for path in sandbox.candidates() if os.path.basename(path).startswith(sandbox.PREFIX + run_id)]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """The folder of evidence of one automatic run."""
    folder = tmp_path_factory.mktemp("evidence")
    code, output = drill("run", "D29", "--evidence", str(folder))
    assert code == 0, output
    return next(folder.iterdir())


@pytest.fixture
def copied(evidence, tmp_path):
    """A copy of that folder, to be edited."""
    return shutil.copytree(str(evidence), str(tmp_path / "copied")) and tmp_path / "copied"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return sandbox.make_template(str(tmp_path_factory.mktemp("template")))


@pytest.fixture
def box(template):
    with sandbox.Sandbox("feed0000", template) as made:
        yield made


# The chain

def test_a_run_leaves_all_of_its_evidence_and_nothing_else(evidence):
    names = {path.name for path in evidence.iterdir()}
    assert {"journal.jsonl", "result.json", "timeline.md", "terminal.txt"} <= names
    assert {"%s-%s.txt" % (what, when) for what in ("check", "log", "metrics") for when in ("before", "during", "after")} <= names
    result = json.loads((evidence / "result.json").read_text())
    assert (result["verdict"], result["leftovers"], folders_of(result["run_id"])) == ("pass", [], [])
    assert result["data"]["acknowledged"] > 0 and result["data"]["missing"] == 0
    assert result["traps"]["tried"] == result["traps"]["refused"] == len(OWN_ROW.traps)
    assert "schema_mismatch" in (evidence / "check-during.txt").read_text()
    assert 'logistics_database_trouble{reason="schema_mismatch"} 1' in (evidence / "metrics-during.txt").read_text()


def test_a_journal_tells_the_chain_in_its_order(evidence):
    kinds = [entry.get("kind") for entry in journal.read(str(evidence / "journal.jsonl"))]
    order = ["steady", "seal", "revert_token", "inject", "signal", "mitigate", "recovered", "proof", "trap", "revert", "end"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order
    assert kinds[0] is kinds[-1] is None and set(kinds) - {None} <= set(journal.KINDS)


def reworded(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def without_a_line(path):
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:5] + lines[6:]))


EDITS = {
    "a line": (lambda folder: reworded(folder / "journal.jsonl", '"took_hold"', '"took_holt"'), "does not follow"),
    "a line taken out": (lambda folder: without_a_line(folder / "journal.jsonl"), "does not follow"),
    "evidence": (lambda folder: reworded(folder / "check-during.txt", "FAILING", "OK"), "check-during.txt was changed"),
    "evidence taken out": (lambda folder: (folder / "log-after.txt").unlink(), "log-after.txt is missing"),
    "the terminal taken out": (lambda folder: (folder / "terminal.txt").unlink(), "terminal.txt is missing"),
    "the last line": (lambda folder: reworded(folder / "journal.jsonl", '"missing": 0', '"missing": 1'),
                      "the result is not what"),
    "the result": (lambda folder: reworded(folder / "result.json", '"pass"', '"fail"'), "result.json is not"),
}


@pytest.mark.parametrize("what", EDITS)
def test_verify_finds_what_was_edited(copied, what):
    edit, words = EDITS[what]
    assert drill("verify", str(copied / "journal.jsonl"))[0] == 0
    edit(copied)
    code, output = drill("verify", str(copied / "journal.jsonl"))
    assert code == 1 and words in output, output


def test_verify_finds_another_last_line_than_the_one_kept_elsewhere(evidence):
    assert drill("verify", str(evidence / "journal.jsonl"), "--head", "0" * 64)[0] == 1


def test_verify_finds_an_edited_checker(evidence, tmp_path):
    shutil.copytree(str(ROOT / "drills"), str(tmp_path / "drills"))
    for name in list(ROOT.glob("*.py")) + [ROOT / "docs"]:
        (tmp_path / name.name).symlink_to(name) if name.name != "drill.py" else shutil.copy(str(name), str(tmp_path))
    with (tmp_path / "drills" / "chain.py").open("a") as file:
        file.write("\n\ndef judge(box, scenario, before):\n    return [], None\n")
    done = subprocess.run([sys.executable, str(tmp_path / "drill.py"), "verify", str(evidence / "journal.jsonl")],
                          stdout=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 1 and done.stdout == "drills/chain.py is not the file that judged this run\n"


def test_a_run_that_was_cut_off_is_no_pass(copied):
    path = copied / "journal.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:8]))
    assert journal.faults(str(path)) == ["there is no result: the run was ended before it"]
    assert journal.conclude(journal.read(str(path)))["verdict"] == "inconclusive"


def test_report_drafts_a_postmortem_of_twenty_fields(copied):
    code, output = drill("report", str(copied / "journal.jsonl"))
    assert code == 0 and (copied / "postmortem.md").read_text() == output
    titles = re.findall(r"^## (\d+)\. (.+)$", output, re.MULTILINE)
    page = (ROOT / "docs" / "incidents" / OWN_ROW.founding).read_text()
    assert titles == re.findall(r"^## (\d+)\. (.+)$", page, re.MULTILINE)
    result = json.loads((copied / "result.json").read_text())
    assert "Of %d acknowledged rows 0 are missing" % result["data"]["acknowledged"] in output


def test_an_injection_that_does_not_take_hold_is_inconclusive(template, tmp_path):
    row = OWN_ROW._replace(inject=lambda box: box.require(False, "it took hold"), traps=())
    result = chain.perform(row, template, str(tmp_path))
    assert (result["verdict"], result["reasons"]) == ("inconclusive", ["not so: it took hold"])


def test_a_fault_that_nothing_shows_fails_the_run(template, tmp_path):
    row = OWN_ROW._replace(inject=lambda box: "nothing was done", deadline=0.1, traps=(), mitigation=())
    result = chain.perform(row, template, str(tmp_path))
    assert result["verdict"] == "fail"
    assert "the checker was content while the fault was in" in result["reasons"]
    assert len([reason for reason in result["reasons"] if reason.startswith("not seen: ")]) == len(row.expected)


def test_a_trap_that_mends_fails_the_run(template, tmp_path):
    back = scenario.Trap("rename it back", lambda box: box.sql(
        "ALTER TABLE shipments RENAME COLUMN carrier_name TO carrier"), "it does")
    result = chain.perform(OWN_ROW._replace(traps=(back,)), template, str(tmp_path))
    assert result["reasons"] == ["the checker was content after the trap: rename it back"]


def test_an_acknowledged_row_that_is_gone_fails_the_run(template, tmp_path):
    lose = scenario.by_hand("lose a row", lambda box: box.sql("DELETE FROM shipments WHERE reference = 'DRL-000001'"))
    result = chain.perform(OWN_ROW._replace(traps=(), mitigation=OWN_ROW.mitigation + (lose,)), template, str(tmp_path))
    assert (result["reasons"], result["data"]["missing"]) == (["proof L failed"], 1)


def test_a_mitigation_that_the_runbook_does_not_have_is_refused(box):
    with pytest.raises(scenario.Inconclusive, match="the runbook's entry locked says: rm -rf"):
        scenario.cure("locked", "rm -rf shipments.db-journal").act(box)


# Safety

def test_a_path_that_leads_out_of_the_sandbox_is_refused(box, tmp_path):
    for path in ("../elsewhere", "/etc/passwd", str(tmp_path / "x"), "app/../../elsewhere"):
        with pytest.raises(sandbox.Foreign):
            box.write(path, "text")
    os.symlink(str(tmp_path), os.path.join(box.folder, "link"))
    with pytest.raises(sandbox.Foreign):
        box.write("link/x", "text")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_signalled_or_limited_but_processes_of_the_sandbox(box):
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for pid in (stranger.pid, os.getpid(), 1):
            with pytest.raises(sandbox.Foreign):
                box.signal(pid, signal.SIGKILL)
            with pytest.raises(sandbox.Foreign):
                box.limit(pid, 7, 10)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_child_that_has_ended_is_signalled_no_more_since_its_number_may_be_another_s(box):
    child = box.spawn("/bin/true")
    child.wait()
    with pytest.raises(sandbox.Foreign):
        box.signal(child, signal.SIGTERM)


def test_the_sandbox_s_processes_get_nothing_of_our_environment(box):
    os.environ["DRILL_TEST_SECRET"] = "secret"
    try:
        assert "secret" not in box.shell("env").output
    finally:
        del os.environ["DRILL_TEST_SECRET"]


def killed_amid_the_injection(folder):
    """A run that was ended by SIGKILL once its fault was in: its run id."""
    process = subprocess.Popen(DRILL + ["run", "D29", "--evidence", str(folder)], stdout=subprocess.DEVNULL)

    def injected():
        journals = list(folder.glob("*/journal.jsonl"))
        return journals and '"kind": "inject"' in journals[0].read_text() and journals[0]
    found = wait_for(injected, "the injection", 30)
    process.kill()
    process.wait()
    return journal.read(str(found))[0]["run_id"]


def test_clean_reverts_what_was_killed_amid_its_injection(tmp_path):
    run_id = killed_amid_the_injection(tmp_path)
    folder, = folders_of(run_id)
    left = sandbox.members(folder)
    assert left
    code, output = drill("clean")
    assert code == 0 and "%s: reverted, %d processes ended" % (folder, len(left)) in output
    assert not os.path.exists(folder) and not [one for one in left if sandbox.owned(one.pid) == one]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_takes_its_workers_along_and_they_revert_what_they_began(tmp_path, number):
    (tmp_path / "temp").mkdir()
    command = DRILL + ["run", "D29", "D35", "D29", "D35", "--jobs", "2", "--evidence", str(tmp_path / "evidence")]
    process = subprocess.Popen(command, env=dict(os.environ, TMPDIR=str(tmp_path / "temp")), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for(lambda: '"kind": "inject"' in "".join(path.read_text() for path in tmp_path.glob("evidence/*/journal.jsonl")),
             "an injection", 30)
    process.send_signal(number)
    told = process.stderr.read()        # until the last worker has closed it
    assert process.wait(30) == (-9 if number == signal.SIGKILL else 130), told
    assert b"Traceback" not in told
    folders = [sandbox.environment(pid).get(sandbox.VARIABLE, "") for pid in supervision.processes()]
    assert not [folder for folder in folders if folder.startswith(str(tmp_path))]
    assert os.listdir(str(tmp_path / "temp")) == []


def test_clean_leaves_alone_the_sandbox_of_a_living_run(box):
    code, output = drill("clean", box.folder)
    assert code == 1 and "is in use by pid %d" % os.getpid() in output
    assert os.path.exists(box.app)


def forge(folder, **changes):
    """A marker in that folder, right but for the changes."""
    status = os.stat(str(folder))
    marker = {"run_id": "feed", "uid": os.geteuid(), "pid": 1 << 22, "started": 1, "folder": str(folder), "inode": status.st_ino,
              "device": status.st_dev}
    (folder / sandbox.MARKER).write_text(json.dumps(dict(marker, **changes)))
    (folder / "precious").write_text("data")
    return folder


def test_a_foreign_folder_with_a_forged_marker_is_refused(tmp_path):
    code, output = drill("clean", str(forge(tmp_path)))
    assert code == 1 and "not in the folder for temporary files" in output
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("name, mode, changes, words", [
    ("feed-x", 0o700, {"inode": 1}, "another folder's"),
    ("other-x", 0o700, {}, "not that of its run"),
    ("feed-y", 0o755, {}, "others may enter"),
    ("feed-z", 0o700, {"uid": 12345}, "another user"),
    ("feed-w", 0o700, {"pid": None, "started": "x", "inode": "1"}, "another folder's"),
])
def test_a_marker_that_does_not_fit_its_folder_is_refused(tmp_path, name, mode, changes, words):
    folder = tmp_path / (sandbox.PREFIX + name)
    folder.mkdir(mode=mode)
    folder.chmod(mode)
    forge(folder, **changes)
    code, output = drill("clean", str(folder), environ={"TMPDIR": str(tmp_path)})
    assert code == 1 and words in output, output
    assert (folder / "precious").exists()


def test_a_marker_behind_a_link_is_not_followed(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    forge(tmp_path / "real")
    (tmp_path / (sandbox.PREFIX + "feed-x")).symlink_to(tmp_path / "real")
    code, _ = drill("clean", environ={"TMPDIR": str(tmp_path)})
    assert code == 0 and (tmp_path / "real" / "precious").exists()


def test_the_product_has_no_switch_for_faults():
    for path in list(ROOT.glob("*.py")) + [ROOT / "restart_service.sh"]:
        if path.name != "drill.py":
            assert not re.search(r"\bdrills?\b", path.read_text(), re.IGNORECASE), path.name


# With a person

@pytest.fixture
def trained(tmp_path):
    """started(ID) -> the sandbox's folder of a drill begun by `start`; say(...) speaks to it."""
    begun = []

    def start(name, *options):
        code, page = drill("start", name, "--evidence", str(tmp_path), *options)
        assert code == 0, page
        begun.append(re.search(r"Folder: (\S+)/app", page).group(1))
        return begun[-1], page
    yield start
    for folder in begun:
        if os.path.exists(folder):
            drill("give-up", environ={trainee.MEANT: folder})


def say(folder, *words):
    return drill(*words, environ={trainee.MEANT: folder})


def follow(folder, commands):
    environ = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
    return subprocess.run(["bash", "-ec", commands], cwd=folder + "/app", env=environ,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)


def test_a_trainee_who_mends_it_is_told_the_score_and_why(trained, tmp_path):
    folder, page = trained("D01")
    assert "metrics_service FAILING: reachable refused" in page and "D01" not in page
    assert say(folder, "ack")[0] == 0
    assert "--check" in say(folder, "hint")[1]
    say(folder, "note", "the start is refused", "--severity", "1")
    say(folder, "note", "the port is taken", "--rejected")
    assert say(folder, "answer", "gremlins")[0] == 2
    assert say(folder, "answer", "setting-missing")[0] == 0
    code, output = say(folder, "check")
    assert code == 1 and output.startswith("NO: ")
    assert follow(folder, "echo METRICS_DB_PATH=shipments.db >> metrics.env; ./restart_service.sh").returncode == 0
    assert say(folder, "check") == (0, "OK\n")
    code, output = say(folder, "end")
    assert code == 0 and output.startswith("PASS: mended, and nothing lost"), output
    assert "  95  of 100" in output and "only the env file outlasts your shell" in output
    wait_for(lambda: not os.path.exists(folder), "the sandbox to be gone")
    journal_path, = tmp_path.glob("*/journal.jsonl")
    assert drill("verify", str(journal_path))[0] == 0


def test_a_trainee_who_edits_the_checker_kills_a_bystander_and_opens_modes_fails_for_each(trained, tmp_path):
    folder, _ = trained("D29")
    follow(folder, "echo '# content' >> health_check.py")
    sleeper = next(one.pid for one in sandbox.members(folder) if b"sleep" in open("/proc/%d/cmdline" % one.pid, "rb").read())
    os.kill(sleeper, signal.SIGKILL)
    with open(folder + "/" + trainee.COMMANDS, "a") as file:
        file.write("1\t0\tchmod 777 shipments.db\n")
    code, output = say(folder, "end")
    assert code == 1 and "health_check.py was edited" in output and "was ended or stopped" in output
    assert " -15  collateral" in output and "Beside the cure: modes opened to everybody" in output


def test_the_shell_records_what_is_typed(trained, tmp_path):
    code, output = drill("start", "D29", "--evidence", str(tmp_path), "--shell", given="ls metrics.env\ndrill note found\nfalse\n"
                         "drill give-up\nexit\n")
    assert code == 0 and "Evidence: " in output, output
    journal_path, = tmp_path.glob("*/journal.jsonl")
    entries = journal.read(str(journal_path))
    typed = [(data["command"], data["exit"]) for data in journal.of_kind(entries, "command")]
    assert typed == [("ls metrics.env", "0"), ("false", "1")]
    assert [data["text"] for data in journal.of_kind(entries, "note")] == ["found"]
    assert "given up" in entries[-1]["result"]["reasons"]
    wait_for(lambda: not folders_of(entries[0]["run_id"]), "the sandbox to be gone")


def test_a_drill_whose_keeper_is_killed_is_reverted_by_its_watchdog(trained):
    folder, _ = trained("D29")
    keeper = sandbox.made_by(folder)
    made = [path for path in sandbox.candidates() if os.path.exists(path + "/" + sandbox.MARKER) and sandbox.made_by(path) == keeper]
    assert len(made) == 2       # its template too
    os.kill(keeper.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(os.path.exists, made)) and not sandbox.members(folder), "the watchdog to revert it")


def take_back_the_import(folder):
    def fill(command):
        return command.replace(" MINUTE 'BEGINNING*'", ' "$(date -u +%Y)*" "IMP-*"').replace("= ? AND", "GLOB ? AND")
    block = fill(data.TAKE_BACK)
    assert "MINUTE" not in block
    return follow(folder, "METRICS_DB_PATH=shipments.db\n" + block)


def test_what_looks_well_is_not_mended_while_a_proof_says_no(trained, tmp_path):
    folder, _ = trained("D47")
    journal_path, = tmp_path.glob("*/journal.jsonl")
    code, output = say(folder, "check")
    assert code == 1 and output.startswith("NO: proof C fails")
    assert journal.first(journal.read(str(journal_path)), "recovered") is None
    done = take_back_the_import(folder)
    assert done.returncode == 0 and "1200 taken back" in done.stdout, done.stdout
    code, output = say(folder, "end")
    assert code == 0 and "  20  data proven" in output, output


def test_an_end_without_a_cure_is_no_pass(trained):
    folder, _ = trained("D47")
    code, output = say(folder, "end")
    assert code == 1 and output.startswith("FAIL: proof C failed") and "mended -, recovered -" in output, output


def test_a_program_that_was_added_is_an_edit_and_a_mapping_is_none(trained):
    folder, _ = trained("D10a")
    for name in ("csv.py", "ours.sql"):
        with open(folder + "/app/" + name, "w"):
            pass
    os.unlink(folder + "/app/trends.py")
    code, output = say(folder, "end")
    assert code == 1 and "csv.py was edited" in output and "trends.py was edited" in output and "ours.sql" not in output


def test_a_drill_ends_with_its_time(tmp_path):
    keeper = subprocess.Popen(DRILL + ["keep", "D29", str(tmp_path), "0.5", "", ""], stdout=subprocess.PIPE)
    folder = json.loads(keeper.stdout.readline().decode())["folder"]
    assert keeper.wait(30) == 0 and not os.path.exists(folder)
    entries = journal.read(str(next(tmp_path.glob("*/journal.jsonl"))))
    assert "the time was over" in entries[-1]["result"]["reasons"]


def test_a_command_without_a_running_drill_says_so(tmp_path):
    code, output = drill("ack", environ={"TMPDIR": str(tmp_path)}, folder=tmp_path)
    assert code == 2 and "0 drills are running here" in output
    code, output = drill("ack", environ={trainee.MEANT: str(tmp_path)})
    assert code == 2 and "0 drills are running in %s" % tmp_path in output


def test_a_command_in_a_folder_that_is_gone_says_so(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(["bash", "-c", 'rmdir "$PWD"; exec "$@"', "bash"] + DRILL + ["check"], cwd=str(gone),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert (done.returncode, done.stdout) == (2, "drill.py: this folder is gone: the drill in it is over\n")


def test_of_two_drills_the_one_around_the_folder_is_meant_and_elsewhere_both_are_named(tmp_path):
    environ = {"TMPDIR": str(tmp_path)}
    (tmp_path / "evidence").mkdir()
    pages = [drill("start", "D10a", "--evidence", str(tmp_path / "evidence"), environ=environ)[1] for _ in range(2)]
    folders = [re.search(r"Folder: (\S+)/app", page).group(1) for page in pages]
    try:
        code, output = drill("ack", environ=environ, folder=tmp_path)
        assert code == 2 and "2 drills are running here" in output and all(folder in output for folder in folders)
        assert drill("ack", environ=environ, folder=folders[0] + "/app") == (0, "acknowledged\n")
        assert drill("ack", environ=dict(environ, DRILL=folders[1] + "/app")) == (0, "acknowledged\n")
    finally:
        for folder in folders:
            drill("give-up", environ=dict(environ, DRILL=folder))


def test_a_kept_sandbox_stays_until_clean(tmp_path):
    environ = {"TMPDIR": str(tmp_path)}
    assert drill("run", "D10a", "--keep", environ=environ)[0] == 0
    kept, = tmp_path.iterdir()
    assert drill("run", "D10a", environ=environ)[0] == 0 and list(tmp_path.iterdir()) == [kept]
    assert drill("clean", environ=environ)[0] == 0 and list(tmp_path.iterdir()) == []


def test_a_list_tells_what_a_caller_says_and_no_name_which_would_be_the_cause():
    line = drill("list")[1].splitlines()[0]
    assert line.split(None, 4) == ["D01", "level", "1", "ci", catalogue.BY_ID["D01"].page]


# The table

def test_there_are_drills_of_each_layer_and_every_founding_incident_has_its_drill():
    assert {row.founding for row in catalogue.SCENARIOS if row.founding} == {
        path.name for path in (ROOT / "docs" / "incidents").glob("[123]-*.md")}
    assert all(layer.SCENARIOS for layer in catalogue.LAYERS)


OPTIONAL = {"needs", "founding", "traps", "alerts", "watch", "prepare", "solved"}


@pytest.mark.parametrize("row", catalogue.SCENARIOS, ids=lambda row: row.id)
def test_a_scenario_is_complete(row):
    assert [name for name, value in row._asdict().items() if not value and name not in OPTIONAL] == []
    assert row.level in (1, 2, 3) and row.set in ("ci", "priv", "hand") and row.needs in {""} | set(scenario.NEEDS)
    assert len(row.hints) == 3 and all(trap.text and trap.why and trap.act for trap in row.traps)
    assert row.traps or row.cause == "none"
    assert set(letter if isinstance(letter, str) else letter[0] for letter in row.proofs) <= set("HFLQVSC") and "L" in row.proofs
    assert set(row.alerts) <= ALERTS
    assert re.match(r"D\d\d[a-z]?$", row.id) and re.match("[a-z0-9-]+$", row.name)


def anchors():
    titles = re.findall(r"^##+ (.+)$", RUNBOOK, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_anchor_of_a_scenario_is_an_entry_of_the_runbook():
    assert {row.anchor for row in catalogue.SCENARIOS} - anchors() == set()


def test_names_and_ids_are_given_once():
    ids, names = zip(*((row.id, row.name) for row in catalogue.SCENARIOS))
    assert len(set(ids)) == len(set(names)) == len(catalogue.SCENARIOS)


def test_every_alert_has_a_drill_or_a_reason_for_none():
    drilled = {alert for row in catalogue.SCENARIOS for alert in row.alerts}
    assert drilled | set(catalogue.UNDRILLED) == ALERTS
    assert drilled & set(catalogue.UNDRILLED) == set() and all(catalogue.UNDRILLED.values())


def test_what_was_left_out_of_the_catalogue_has_its_reason():
    assert set(catalogue.LEFT_OUT) & set(catalogue.BY_ID) == set() and all(catalogue.LEFT_OUT.values())


def test_the_page_lists_every_drill_in_the_words_of_its_caller_and_what_was_left_out():
    page = (ROOT / "docs" / "drills.md").read_text()
    listed = re.findall(r"^\| `(D\w+)` \| (\d) \| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    assert listed == [(row.id, str(row.level), row.set, row.page) for row in catalogue.SCENARIOS]
    assert dict(re.findall(r"^\| `(D\w+)` \| ([^|]+) \|$", page, re.MULTILINE)) == catalogue.LEFT_OUT


def test_a_random_drill_is_one_that_was_not_done_before(evidence):
    others = {row.id for row in catalogue.SCENARIOS if row.level == 1} - {"D29"}
    assert {trainee.choose(1, seed, str(evidence.parent)).id for seed in range(200)} == others


def test_a_briefing_tells_neither_cause_nor_cure():
    _, output = drill("show", "D29")
    assert OWN_ROW.page in output and "rename" not in output and "cause" not in output
    assert "rename" in drill("show", "D29", "--spoilers")[1]


def test_a_card_for_the_game_master_breaks_nothing(tmp_path):
    code, output = drill("wheel", "D29", environ={"TMPDIR": str(tmp_path)})
    assert code == 0 and OWN_ROW.title in output and OWN_ROW.traps[0].why in output
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_is_2_and_says_what_is_wrong():
    for arguments, words in ((["run"], "name drills"), (["run", "D99"], "there is no drill D99"), (["start"], "name a drill"),
                             (["nonsense"], "invalid choice"), ([], "required"), (["report", "/nonexistent"], "No such file")):
        code, output = drill(*arguments)
        assert (code, words in output) == (2, True), output
