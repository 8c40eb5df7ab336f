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
import store
from conftest import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
ALERTS, RECORDING = FOLDER / "alerts.yml", FOLDER / "recording.yml"
TESTS = sorted((ROOT / "tests" / "prometheus").glob("*_test.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
REPOSITORY = "{{ $externalLabels.repository }}"
SUFFIXES = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"]}
TARGET = {"job", "instance"}            # labels that Prometheus gives to all of a target
WORDS = {"and", "or", "unless", "offset", "sum", "count", "min", "max", "rate", "increase", "changes", "absent", "time",
         "histogram_quantile", "avg_over_time", "max_over_time", "sum_over_time", "last_over_time"}
LONG = os.environ.get("LONG_TESTS")
OPERATORS = {" > ": " < ", " < ": " > ", " >= ": " < ", " == ": " != ", " unless ": " and ", "absent(": "count("}

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
    found = re.findall(r"^- name: (\w+)\n(.*?)(?=^- name: |\Z)", path.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(path, *match) for match in found]


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
    """The text of an alert with one thing changed that somebody must notice; the long form has more than operators."""
    head, expr, tail = re.match(r"(.*?    expr: )(.*?\n)(    (?:for|labels).*)\Z", rule.text, re.DOTALL).groups()
    changed = [expr[:at.start()] + OPERATORS[at.group()] + expr[at.end():]
               for at in re.finditer("|".join(map(re.escape, OPERATORS)), expr)]
    if not LONG:
        return [head + one + tail for one in changed]
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
    """{test file: (alert, number, mutated text)} of a folder; each has the unit tests of that alert alone, and what it needs."""
    written = {}
    for rule in ALERT_RULES:
        for number, text in enumerate(mutants(rule)):
            mutated = folder / ("%s_%d.yml" % (rule.name, number))
            mutated.write_text("groups:\n- name: %s\n  rules:\n  %s" % (rule.group, text))
            for path in {block.file for block in BLOCKS if block.name == rule.name}:
                head, tests = path.read_text().split("\ntests:\n")
                own = "".join("- name: %s\n%s" % block[1:] for block in blocks(path) if block.name == rule.name)
                test = folder / ("%s_%d_%s" % (rule.name, number, path.name))
                kept = "%s, " % RECORDING if re.search(r"\w:\w", rule.expr) else ""
                head = re.sub(r"rule_files: .*", "rule_files: [%s%s]" % (kept, mutated), head)
                test.write_text("%s\ntests:\n%s" % (head, own))
                written[str(test)] = (rule.name, number, text)
    return written


def test_a_changed_alert_fails_its_unit_tests(tmp_path):
    written = write_mutants(tmp_path)
    output = promtool("test", "rules", *written).stdout
    results = dict(re.findall(r"Unit Testing:  (\S+)\n  (SUCCESS|FAILED)", output))
    assert set(results) == set(written) and "parse error" not in output
    noticed = {written[path][:2] for path, result in results.items() if result == "FAILED"}
    assert [text for name, number, text in written.values() if (name, number) not in noticed] == []
    assert {name for name, _ in noticed} == set(NAMES)


# Rules and families

def level_labels(name):
    """The labels of a recorded figure, which the level in its name says."""
    return {"job"} | set(name.partition(":")[0].split("_"))


def known():
    """sample name -> its labels, of all that there is to ask Prometheus for."""
    found = {"up": TARGET}
    for family in openmetrics.FAMILIES:
        for suffix in SUFFIXES.get(family.kind, [""]):
            found[family.name + suffix] = TARGET | set(family.labels) | ({"le"} if suffix == "_bucket" else set())
    for name in health_check.FAMILIES:
        found[health_check.FAMILY + name] = TARGET | {"url", "check", "status", "metric", "state"}
    found.update((rule.name, level_labels(rule.name)) for rule in RECORDED)
    return found


def asked(expr):
    """(sample names with the labels that select them, labels of by, on and without) of an expression."""
    listed = {label for labels in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expr) for label in labels.split(", ")}
    bare = re.sub(r"\b(?:by|on|without) \([^)]*\)|\[[^\]]*\]|offset \w+", "", expr)
    pairs = re.findall(r"(?<![\w:.\"|])([a-z_][\w:]*)(?:\{([^}]*)\})?(?![\w:]|\")", re.sub(r'"[^"]*"', '""', bare))
    return [(name, set(re.findall(r"(\w+)[=!]", selector))) for name, selector in pairs if name not in WORDS], listed


def expressions():
    """Every expression of the rules, and of the queries in their descriptions."""
    for rule in RECORDED + ALERT_RULES:
        yield rule.expr
        for query in re.findall(r'printf "((?:[^"\\]|\\.)*)" \$labels', rule.annotations["description"] or ""):
            yield query.replace("%q", '""').replace('\\"', '"')


def test_the_rules_ask_for_families_and_labels_that_there_are():
    there, seen = known(), set()
    for expr in expressions():
        names, listed = asked(expr)
        assert names and [name for name, _ in names if name not in there] == [], expr
        assert [(name, labels) for name, labels in names if not labels <= there[name]] == [], expr
        assert listed <= set().union(*(there[name] for name, _ in names)), expr
        seen.update(name for name, _ in names)
    assert {"up", "logistics_up", "process_max_fds", "logistics_deliveries_total", "logistics_check_verdict"} <= seen


def test_the_statuses_and_reasons_that_the_rules_select_are_those_there_are():
    text = ALERTS.read_text() + RECORDING.read_text()
    shipments = {word for value in re.findall(r'logistics_shipments\{status!~"([^"]*)"', text) for word in value.split("|")}
    assert shipments == set(re.findall(r"'(\w+)'", store.CLOSED))
    assert set(re.findall(r'reason="(\w+)"', text)) == {"schema_mismatch"} <= set(store.REASONS)
    assert set(re.findall(r'outcome=~?"([^"]*)"', text)) == {"on_time", "on_time|late"}


def test_a_recorded_figure_has_the_labels_that_its_name_says():
    for rule in RECORDED:
        grouped = re.match(r"\w+ by \(([^)]*)\)", rule.expr)
        if grouped:
            assert set(grouped.group(1).split(", ")) == level_labels(rule.name), rule.name


def test_an_alert_that_needs_recorded_figures_is_stood_for_by_one_that_says_they_are_missing():
    page = joined(value("description", next(rule.text for rule in ALERT_RULES if rule.name == "MetricsRulesMissing")))
    needing = [rule.name for rule in ALERT_RULES if "job:up:count" not in rule.expr and re.search(r"\w:\w", rule.expr)]
    assert needing == ["MetricsOverdueHigh", "MetricsOverdueRising", "MetricsOnTimeCollapsed"]
    assert "overdue shipments and late deliveries" in page


# What a person gets to see

def anchors(page):
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.+)$", page, re.MULTILINE)}


def test_every_alert_has_a_severity_a_summary_a_description_and_a_page():
    for rule in ALERT_RULES:
        assert rule.severity in ("critical", "warning") and all(rule.annotations.values()), rule.name
        page, _, anchor = rule.annotations["runbook_url"].replace(REPOSITORY, "").partition("#")
        assert rule.annotations["runbook_url"].startswith(REPOSITORY)
        assert anchor in anchors((ROOT / page).read_text()), rule.name


def test_every_alert_names_whom_it_is_about():
    for rule in ALERT_RULES:
        assert re.search(r"\{\{ \$labels\.(instance|job|url) \}\}", rule.annotations["summary"]), rule.name
        assert rule.annotations["summary"] != rule.annotations["description"]


def cells(page):
    table = page.read_text().partition("| alert |")[2].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_the_table_of_alerts_has_all_of_them_with_their_severity_time_and_entry():
    listed = [(name.strip("`"), severity, wait, entry) for name, severity, wait, _, entry in cells(RUNBOOK)]
    assert [row[:3] for row in listed] == [(rule.name, rule.severity, rule.wait or "at once") for rule in ALERT_RULES]
    assert [re.search(r"\]\(#(\w+)\)", row[3]).group(1) for row in listed] == [
        rule.annotations["runbook_url"].partition("#")[2] for rule in ALERT_RULES]


# docs/integrations.md

def snippets():
    section = re.search(r"^## Prometheus's rules and alerts\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE).group(1)
    return re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def snippet(word):
    return next(text for _, text in snippets() if word in text)


def test_prometheus_takes_the_lines_of_the_page(tmp_path):
    (tmp_path / "prometheus.yml").write_text(snippet("rule_files").replace("/etc/prometheus", str(FOLDER)))
    done = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert done.returncode == 0 and "SUCCESS: %d rules found" % len(ALERT_RULES) in done.stdout, done.stdout


def test_the_commands_of_the_page_check_and_test_the_rules():
    check, test = [command.split() for command in snippet("promtool").splitlines()]
    assert promtool(*check[1:]).returncode == 0
    assert test[1:3] == ["test", "rules"] and ROOT / test[3] in TESTS


def amtool(*arguments):
    if not shutil.which("amtool") and not os.environ.get("CI"):
        pytest.skip("no amtool")
    return subprocess.run(["amtool"] + [str(one) for one in arguments], universal_newlines=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


@pytest.fixture
def alertmanager_config(tmp_path):
    path = tmp_path / "alertmanager.yml"
    path.write_text(snippet("inhibit_rules"))
    return path


def test_alertmanager_takes_the_lines_of_the_page(alertmanager_config):
    done = amtool("check-config", alertmanager_config)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout


@pytest.mark.parametrize("severity, receiver", [("critical", "page"), ("warning", "ticket")])
def test_the_severity_decides_whether_somebody_is_woken(alertmanager_config, severity, receiver):
    done = amtool("config", "routes", "test", "--config.file", alertmanager_config, "severity=" + severity)
    assert done.stdout.splitlines()[-1].strip() == receiver


def test_the_alerts_that_keep_others_quiet_are_alerts_and_share_the_labels():
    text = snippet("inhibit_rules")
    sources, targets = re.findall(r"source_matchers: \[(.*)\]", text), re.findall(r"target_matchers: \[(.*)\]", text)
    for matcher in sources + targets:
        for name in re.search(r"alertname=~?\"?([\w|]+)", matcher).group(1).split("|"):
            assert name in NAMES
    assert len(sources) == len(targets) == text.count("equal: [") > 4
