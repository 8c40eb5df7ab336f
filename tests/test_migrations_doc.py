"""docs/migrations.md and migrate.py agree: commands, options, versions, messages; its shell blocks and example steps are run."""

import ast
import os
import re
import sqlite3
import subprocess
import sys

import pytest

import migrate
import schema_check
import steps
from conftest import ROOT, add_rows, copy_product
from test_docs import coded, prose, rows

PAGE = ROOT / "docs" / "migrations.md"
REBUILD = ROOT / "docs" / "examples" / "rebuild.sql"
STEPS = steps.read_steps()
SPEAKERS = ("migrate.py", "steps.py", "backups.py", "forecast.py", "dbfile.py")     # whose messages an operator reads
REFUSALS = {"Refused", "Unknown", "StepError", "FileExistsError"}   # by which they are raised; StepError passes a ValueError on
FINDINGS = {"strangeness", "disputes", "dispute", "miscounts", "violations", "stopped"}     # functions that give them
ROWS = [{"reference": "R%d" % number, "status": "delivered", "carrier": carrier, "mode": "road", "created_at": "2026-01-02",
         "promised_at": "2026-01-09", "delivered_at": "2026-01-0%d" % number, "weight_kg": number, "cost": number / 3}
        for number, carrier in enumerate(["Köln; Cargo", "", "it's -- ;", "A"], 1) if carrier]


def shell(folder, commands):
    """(exit code, output) of bash in a folder; python3 is the interpreter of this test."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin" / "python3").exists():
        (folder / "bin" / "python3").symlink_to(sys.executable)
    env = {"PATH": "%s:%s" % (folder / "bin", os.environ["PATH"]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", commands], cwd=str(folder), env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout


def section(title):
    return re.search(r"^## %s\n(.*?)(?=^## |\Z)" % title, PAGE.read_text(), re.DOTALL | re.MULTILINE).group(1)


def blocks(title, language="bash"):
    """The code blocks of a section."""
    return re.findall(r"^```%s\n(.*?)^```" % language, section(title), re.DOTALL | re.MULTILINE)


def ask(path, query):
    db = sqlite3.connect(str(path))
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


@pytest.fixture
def product(tmp_path):
    """The product in a folder, with a database of version 1 that has rows."""
    copy_product(tmp_path)
    code, output = shell(tmp_path, "python3 migrate.py shipments.db apply --to 1")
    assert code == 0, output
    db = sqlite3.connect(str(tmp_path / "shipments.db"))
    add_rows(db, ROWS)
    db.close()
    return tmp_path


def follow(product, commands):
    """Runs commands of the page, its folder replaced by ours."""
    return shell(product, commands.replace("/srv/", "%s/" % product))


# Tables

def test_every_version_is_documented_with_its_step():
    listed = [(int(row.cells[0]), coded(row.cells[1])[0]) for row in rows(PAGE, "version")]
    assert listed == [(step.number, os.path.basename(step.path)) for step in STEPS]


def test_every_command_is_documented_and_no_other():
    assert [coded(row.cells[0])[0] for row in rows(PAGE, "command")] == list(migrate.COMMANDS)
    assert "|".join(migrate.COMMANDS) in section("Commands")


def test_only_a_command_that_looks_has_the_exit_code_3():
    told = [coded(row.cells[0])[0] for row in rows(PAGE, "command") if len(row.cells) > 4 and row.cells[4]]
    assert told == list(migrate.LOOKING)


def test_every_option_is_documented_with_its_default_and_no_other(capsys):
    with pytest.raises(SystemExit):
        migrate.parse(["--help"])
    options = set(re.findall(r"^ +(--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    listed = {coded(row.cells[0])[0].split()[0]: (coded(row.cells[1]) or [None])[0] for row in rows(PAGE, "option")}
    assert set(listed) == options
    args = migrate.parse(["x.db", "apply"])
    assert (listed["--wait"], listed["--keep"], listed["--format"]) == ("%g" % args.wait, str(args.keep), args.format)


def test_what_may_stand_in_a_step_is_documented_and_nothing_else():
    before, inside, never = [set(coded(row.cells[0])) for row in rows(PAGE, "statement")]
    assert before == steps.SETTINGS and inside == steps.HARMLESS
    assert {word.lower() for word in never} == steps.OUTSIDE


def literals(node):
    """The text of an expression as far as it stands in the code."""
    return "".join(part.value if hasattr(part, "value") else part.s for part in ast.walk(node)
                   if isinstance(getattr(part, "value", getattr(part, "s", None)), str))


def messages():
    """Every text by which these modules refuse or tell what is wrong."""
    for name in SPEAKERS:
        for function in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    called = getattr(getattr(node, "exc", None), "func", None)
                    raised = isinstance(node, ast.Raise) and getattr(called, "id", getattr(called, "attr", None)) in REFUSALS
                    given = function.name in FINDINGS and isinstance(node, (ast.Yield, ast.Return)) and node.value
                    if (raised or given) and re.search(r"[a-z]{4}", literals(node)):
                        yield literals(node)


def pieces():
    return [piece for row in rows(PAGE, "piece of the line") for piece in coded(row.cells[0])]


def test_every_message_is_documented():
    wrapped = ("%s: %s; nothing was changed",)      # around another message
    assert [text for text in messages() if text not in wrapped and not any(piece in text for piece in pieces())] == []
    assert len(list(messages())) > 35


def test_every_documented_message_is_one_that_can_be_printed():
    said = "".join((ROOT / name).read_text() for name in SPEAKERS)
    said = re.sub(r'"\s*\n\s*f?"', "", said) + "database or disk is full"        # SQLite's own
    assert [piece for piece in pieces() if piece not in said] == []


def test_no_message_is_documented_twice():
    assert len(pieces()) == len(set(pieces()))


# Shell blocks

def test_the_rehearsal_runs_as_it_stands_and_leaves_production_alone(product):
    before = (product / "shipments.db").read_bytes()
    code, output = follow(product, "set -e\n" + "".join(blocks("Rehearsing on a copy")))
    assert code == 0, output
    assert "to %d in %d steps" % (len(STEPS), len(STEPS) - 1) in output and "real" in output
    assert "version %d, as its steps made it, sound" % len(STEPS) in output
    assert "0 rows are only in before\n0 rows are only in main\n" in output
    assert output.splitlines()[-1].startswith("ok: ")
    assert (product / "shipments.db").read_bytes() == before


def test_the_comparison_of_the_rehearsal_sees_a_row_that_was_changed(product):
    copy, compare = blocks("Rehearsing on a copy")
    assert follow(product, "set -e\n" + copy)[0] == 0
    db = sqlite3.connect(str(product / "rehearsal" / "shipments.db"), isolation_level=None)
    db.execute("UPDATE shipments SET cost = 5 WHERE reference = 'R1'")
    db.close()
    assert "1 rows are only in before\n1 rows are only in main\n" in follow(product, compare)[1]


def test_the_commands_for_production_run_as_they_stand_and_the_service_is_there_at_the_end(product):
    (product / "metrics.env").write_text("METRICS_DB_PATH=shipments.db\nMETRICS_PORT=0\nMETRICS_PID_FILE=service.pid\n")
    commands = "".join(blocks("Applying in production")).splitlines()
    try:
        done = [follow(product, command) for command in commands]
        assert [code for code, _ in done] == [1, 0, 0, 0, 0], done     # 1: steps are pending
        assert "metrics_service" in done[-1][1]
        assert ask(product / "shipments.db", "PRAGMA user_version") == [(len(STEPS),)]
        assert ask(product / "shipments.db", "SELECT count(*) FROM shipments") == [(len(ROWS),)]
    finally:
        shell(product, "./restart_service.sh stop")


def test_the_way_back_runs_as_it_stands_and_lists_what_was_written_since(product):
    back, since = blocks("Going back")
    assert follow(product, "python3 migrate.py /srv/shipments.db apply")[0] == 0
    writer = sqlite3.connect(str(product / "shipments.db"))
    add_rows(writer, [{"reference": "LATER", "status": "pending"}])
    code, output = follow(product, back)
    assert code == 0, output
    with pytest.raises(sqlite3.OperationalError) as refused:
        add_rows(writer, [{"reference": "LOST", "status": "pending"}])
    writer.close()
    assert str(refused.value) in coded(section("Going back"))
    assert ask(product / "shipments.db", "PRAGMA user_version") == [(1,)]
    kept = re.search(r"is kept as (\S+)", output).group(1)
    code, output = follow(product, since.replace("KEPT", kept))
    assert code == 0, output
    assert re.findall(r"'(R\d|LATER)'", output) == ["LATER"]


def test_what_a_killed_run_left_ends_with_the_command_of_the_page(product):
    for name in ("-migration", ".backup.part", ".new"):
        (product / ("shipments.db" + name)).write_text("")
    code, output = follow(product, "".join(blocks("Killed in the middle")))
    assert code == 0, output
    assert ask(product / "shipments.db", "PRAGMA user_version") == [(len(STEPS),)]
    left = [path.name for path in product.iterdir() if path.name.startswith("shipments.db")]
    assert len(left) == 2 and all(name == "shipments.db" or name.endswith(".backup") for name in left)


def test_the_repair_of_the_page_puts_a_trigger_back(product):
    command = next(code for code in coded(section("Changed by hand")) if code.endswith(" repair"))
    assert follow(product, "python3 migrate.py /srv/shipments.db apply")[0] == 0
    db = sqlite3.connect(str(product / "shipments.db"))
    db.execute("DROP TRIGGER shipments_insert")
    db.close()
    code, output = follow(product, command)
    assert code == 0, output
    assert "put back: trigger shipments_insert" in output


# Example steps

def take(product, name, text):
    """Adds a step to the product and applies it; (exit code, output)."""
    (product / "migrations" / ("%04d_%s.sql" % (len(STEPS) + 1, name))).write_text(text)
    return follow(product, "python3 migrate.py /srv/shipments.db apply")


def schema_at(path):
    db = sqlite3.connect(str(path))
    try:
        return schema_check.read_schema(db)
    finally:
        db.close()


def test_the_step_on_the_page_can_be_applied(product):
    code, output = take(product, "add_insurance", blocks("Writing a step", "sql")[0])
    assert code == 0, output
    assert ask(product / "shipments.db", "SELECT insured FROM shipments") == [(None,)] * len(ROWS)


def test_the_step_on_the_page_names_the_rows_that_it_cannot_take(product):
    db = sqlite3.connect(str(product / "shipments.db"))
    db.execute("UPDATE shipments SET cost = 2e9 WHERE reference = 'R1'")
    db.commit()
    db.close()
    code, output = take(product, "add_insurance", blocks("Writing a step", "sql")[0])
    assert code == 1
    assert "cannot take 1 rows: reference 'R1': cost 2000000000.0 is more than can be insured" in output


def test_the_rebuild_of_the_examples_changes_one_limit_and_nothing_else(product):
    assert follow(product, "python3 migrate.py /srv/shipments.db apply")[0] == 0
    before, query = schema_at(product / "shipments.db"), "SELECT * FROM shipments ORDER BY id"
    values = ask(product / "shipments.db", query)
    code, output = take(product, "limit_weights", REBUILD.read_text())
    assert code == 0, output
    after, table = schema_at(product / "shipments.db"), before.tables["shipments"]
    limited = table._replace(tokens=[{"1e9": "1e6"}.get(token, token) for token in table.tokens])
    assert after == before._replace(version=len(STEPS) + 1, tables=dict(before.tables, shipments=limited))
    assert ask(product / "shipments.db", query) == values


def test_the_rebuild_stops_at_the_view_without_its_second_pragma(product):
    assert follow(product, "python3 migrate.py /srv/shipments.db apply")[0] == 0
    code, output = take(product, "limit_weights", REBUILD.read_text().replace("PRAGMA legacy_alter_table = ON;\n", ""))
    assert code == 1
    assert "error in view facts" in output


def test_the_page_sends_nobody_to_a_file_of_another_name():
    assert "%s/%s" % (REBUILD.parent.name, REBUILD.name) in prose(PAGE)
