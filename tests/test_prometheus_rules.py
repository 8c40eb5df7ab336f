"""The rules of deploy/prometheus: their unit tests by promtool, and that these would notice a change; what rules, pages and
families say of each other."""

import collections
import os
import re
import shutil
import subprocess

import pytest

import health_check
import openmetrics
from conftest import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
ALERTS, RECORDING = FOLDER / "alerts.yml", FOLDER / "recording.yml"
TESTS = sorted((ROOT / "tests" / "prometheus").glob("*_test.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
REPOSITORY = "{{ $externalLabels.repository }}"
SUFFIXES = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"], "summary": ["_sum", "_count"]}
TARGET = {"job", "instance"}            # labels that Prometheus gives to all of a target
SCRAPE = {"up": TARGET}                 # families of Prometheus itself, with their labels
WORDS = {"and", "or", "unless", "by", "without", "on", "offset", "sum", "count", "min", "max", "rate", "increase", "changes",
         "absent", "time", "histogram_quantile", "avg_over_time", "sum_over_time", "last_over_time"}
OPERATORS = {">": "<", "<": ">", ">=": "<", "==": "!=", "!=": "=="}

Rule = collections.namedtuple("Rule", "kind name group expr wait severity annotations text")
Block = collections.namedtuple("Block", "file name text")       # one unit test: a `- name:` of a test file


def promtool(*arguments, folder=ROOT):
    if not shutil.which("promtool") and not os.environ.get("CI"):
        pytest.skip("no promtool")
    return subprocess.run(["promtool"] + [str(one) for one in arguments], cwd=str(folder), universal_newlines=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def joined(text):
    return " ".join(text.split())


def value(key, text):
    """What a key of a rule has, as one line; None without it. The files keep to one way of writing."""
    found = re.search(r"^ +%s: (?:(?:\|-|>-)\n((?: {6,}.*\n)+)|(.*)\n)" % key, text, re.MULTILINE)
    return joined(found.group(1) or found.group(2).strip("'\"")) if found else None


def rules(path):
    found, content = [], path.read_text()
    for group, body in re.findall(r"^- name: (\w+)\n(.*?)(?=^- name: |^#|\Z)", content, re.DOTALL | re.MULTILINE):
        for text in re.split(r"^  (?=- )", body, flags=re.MULTILINE)[1:]:
            kind, name = re.match(r"- (alert|record): ([\w:]+)\n", text).groups()
            severity = re.search(r"labels: \{severity: (\w+)\}", text)
            annotations = {key: value(key, text) for key in ("summary", "description", "runbook_url")}
            found.append(Rule(kind, name, group, value("expr", text), value("for", text), severity and severity.group(1),
                              annotations, text))
    return found


def blocks(path):
    return [Block(path, *match) for match in re.findall(r"^- name: (\w+)\n(.*?)(?=^- name: |\Z)", path.read_text(), re.DOTALL | re.MULTILINE)]


ALERT_RULES, RECORDED = rules(ALERTS), rules(RECORDING)
BLOCKS = [block for path in TESTS for block in blocks(path)]
NAMES = [rule.name for rule in ALERT_RULES]


def test_the_reader_of_these_tests_sees_all_rules_that_promtool_sees():
    output = promtool("check", "rules", ALERTS, RECORDING).stdout
    assert [int(number) for number in re.findall(r"(\d+) rules found", output)] == [len(ALERT_RULES), len(RECORDED)]
    assert len(set(NAMES)) == len(NAMES) and len({rule.name for rule in RECORDED}) == len(RECORDED)


def test_promtool_finds_nothing_to_say_of_the_rules():
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS, RECORDING)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_pass(path):
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent():
    for name in NAMES:
        text = "".join(block.text for block in BLOCKS if block.name == name)
        assert "exp_alerts:\n" in text and "exp_alerts: []" in text, name
    assert {block.name for block in BLOCKS if "alertname" in block.text} == set(NAMES)


def test_every_recording_rule_has_a_test():
    tested = {name for block in BLOCKS for name in re.findall(r"- expr: '([\w:]+)'", block.text)}
    assert tested == {rule.name for rule in RECORDED}


def test_the_unit_tests_evaluate_recorded_figures_before_the_alerts_that_compare_them():
    groups = list(dict.fromkeys(rule.group for rule in RECORDED + ALERT_RULES))
    for path in TESTS:
        listed = re.findall(r"^- (\w+)$", path.read_text(), re.MULTILINE)
        assert listed == [group for group in groups if group in listed]


# What a change of a rule does

def parts(expr):
    """The expression without one of its and, or and unless clauses, in turn."""
    clauses = re.split(r"\n(?= *(?:and|or|unless)\b)", expr)
    for place in range(1, len(clauses)):
        rest = "\n".join(clauses[:place] + clauses[place + 1:])
        if rest.count("(") == rest.count(")"):
            yield rest.rstrip("\n") + "\n"


def mutants(rule):
    """The text of an alert with one thing changed that somebody must notice."""
    head, expr, tail = re.match(r"(.*?    expr: )(.*?\n)(    (?:for|labels).*)\Z", rule.text, re.DOTALL).groups()
    changed = [expr[:at.start()] + " %s " % OPERATORS[at.group(1)] + expr[at.end():] for at in re.finditer(r" ([<>]=?|[=!]=) ", expr)]
    for at in re.finditer(r"(?<=[<>=] )(0\.\d+|[1-9]\d*)(?![\d.*)])", expr):
        changed += [expr[:at.start()] + "%g" % (float(at.group()) * factor) + expr[at.end():] for factor in (.5, 2)
                    if at.group() != "1"]
    changed += list(parts(expr)) + [expr.replace(selector, "") for selector in set(re.findall(r'\{\w+=[^}]*\}', expr))]
    texts = [head + one + tail for one in changed]
    if rule.wait:
        number, unit = re.match(r"(\d+)(\w)", rule.wait).groups()
        texts += [rule.text.replace("for: %s\n" % rule.wait, "for: %d%s\n" % (wait, unit)) for wait in (int(number) * 2, 0)]
    texts.append(rule.text.replace("severity: " + rule.severity, "severity: other"))
    return texts


def write_mutants(folder):
    """{test file: (alert, mutated text)} written to a folder; each has the unit tests of that alert alone."""
    written = {}
    for rule in ALERT_RULES:
        for number, text in enumerate(mutants(rule)):
            mutated = folder / ("%s_%d.yml" % (rule.name, number))
            mutated.write_text("groups:\n- name: %s\n  rules:\n  %s" % (rule.group, text))
            for path in {block.file for block in BLOCKS if block.name == rule.name}:
                head, tests = path.read_text().split("\ntests:\n")
                own = "".join("- name: %s\n%s" % block[1:] for block in blocks(path) if block.name == rule.name)
                test = folder / ("%s_%d_%s" % (rule.name, number, path.name))
                kept = "%s, " % RECORDING if ":" in text.partition("    annotations")[0].replace(": ", "") else ""
                head = re.sub(r"rule_files: .*", "rule_files: [%s%s]" % (kept, mutated), head)
                test.write_text("%s\ntests:\n%s" % (head, own))
                written[str(test)] = (rule.name, number, text)
    return written
