"""The pages under docs/ and the program agree: fields, settings, reasons, exit codes, links, file names, the picture.

The pages list their facts in tables: the names in backticks in the first column, and what they are in its header.
"""

import collections
import functools
import inspect
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree
from http import HTTPStatus
from pathlib import Path

import pytest

import credentials
import eventlog
import health_check
import latency
import messages
import metrics_service
import negotiation
import openmetrics
import store
import supervision
import trends
import webserver
from conftest import ROOT, Service, make_database, turn_second, wait_for
from test_trends_history import document

METRICS = ROOT / "docs" / "metrics.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
HTTP = ROOT / "docs" / "http.md"
ARCHITECTURE = ROOT / "docs" / "architecture"
RUNBOOK = ROOT / "docs" / "runbook.md"
PAGES = sorted(ROOT.glob("README.md")) + sorted((ROOT / "docs").glob("**/*.md"))
PROGRAMS = sorted(path.name for end in ("py", "sh", "sql", "html") for path in ROOT.glob("*." + end))
OWN_BLOCKS = ("service.", "database.", "requests.", "connections.", "tls", "logging.")

Row = collections.namedtuple("Row", "section header cells")     # section: the second-level heading above it
Answer = collections.namedtuple("Answer", "section status document")


def prose(page):
    """The page without its code blocks, in which a comment looks like a heading."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def rows(page, kind, section=None):
    """The Rows of the tables whose header starts with this word."""
    found, here, header = [], None, None
    for line in prose(page).splitlines():
        here = line[3:] if line.startswith("## ") else here
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else None
        if not cells or line.startswith("|---"):
            header = header if cells else None
        elif not header:
            header = [cell.strip() for cell in cells]
        elif header[0] == kind and section in (None, here):
            found.append(Row(here, header, cells))
    return found


def coded(cell):
    """What stands in backticks, which do not reach over lines."""
    return re.findall(r"`([^`\n]+)`", cell)


def leaves(value, path=""):
    """(path, value) of everything in a document that holds nothing itself; an empty list or object has none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, path + "." + name if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path + "[]")
    else:
        yield path, value


def pattern(path):
    """A documented path as a regular expression: <word> stands for any key."""
    return "[^.]+".join(re.escape(part) for part in re.split(r"<\w+>", path)) + r"\Z"


def matches(path, name):
    return re.match(pattern(path), name) is not None


@functools.lru_cache(maxsize=None)
def documented(section):
    """path -> Row of the fields that an answer of this section may have."""
    found = rows(METRICS, "field", section)
    if section == "Problem documents":
        blocks = [row for row in rows(METRICS, "field", "/metrics") if coded(row.cells[0])[0].startswith(OWN_BLOCKS)]
        found = rows(METRICS, "member", section) + blocks
    return {path: row for row in found for path in coded(row.cells[0])}


def collect(service):
    """Answers of a service at this moment."""
    for path in ("/metrics", "/metrics?history=2", "/livez", "/readyz", "/nowhere", "/metrics?history=0"):
        status, document = service.get(path)
        yield Answer("Problem documents" if "title" in document else path.partition("?")[0], status, document)


SHIPMENTS = [
    {"reference": "1", "status": "delivered", "carrier": "Acme", "mode": "road", "created_at": "2026-01-01",
     "promised_at": "2026-01-02", "delivered_at": "2026-01-03"},
    {"reference": "2", "status": "exception", "exception_reason": "customs", "promised_at": "2026-01-02"},
    {"reference": "3", "status": "exception"},
]


def certify(folder):
    """Runs the command by which the page makes a certificate; the settings that name its files."""
    command = re.search(r"^openssl req [^`]*?(?=^\w|^```)", CONFIGURATION.read_text(), re.MULTILINE).group()
    subprocess.run(["bash", "-ec", command], cwd=str(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}


def judge_trends(path, service):
    """Has a check store a verdict of its trends: deliveries have stopped, others are quiet, learning, or without data."""
    now, hours = int(time.time()), [(10, 9 - number % 3) for number in range(660)] + [(10, 0)] * 12
    trends.review(str(path), service.url, document(now, hours, latency=None), (), .25, now, health_check.replace_file)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Answers of every kind: fresh, with and without rows, with and without TLS, stale, unavailable, after a refused reload."""
    found = []
    for number, shipments in enumerate([SHIPMENTS, []]):
        folder = tmp_path_factory.mktemp("docs")
        database = make_database(folder / "shipments.db", shipments)
        service = Service(folder, database, query_timeout=0.1, stale_seconds=60,
                          **({"log_file": folder / "log", "trends_file": folder / "trends"} if number else certify(folder)))
        writer = sqlite3.connect(str(database), isolation_level=None)
        if number:
            writer.execute("BEGIN EXCLUSIVE")     # the first answers are then of a service that never saw its database
        try:
            service.start()
            found += collect(service)
            writer.execute("COMMIT" if number else "BEGIN EXCLUSIVE")
            turn_second()
            found += collect(service)
            if number:
                judge_trends(folder / "trends", service)
                turn_second()
                found += collect(service)
            database.rename(folder / "moved.db")
            service.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "reload_refused" in service.text(), "the reload to be refused")
            found += collect(service)
        finally:
            writer.close()
            service.end()
    return found


def test_the_answers_are_of_every_kind(answers):
    metrics = [answer.document for answer in answers if answer.section == "/metrics"]
    assert {bool(document["stale"]) for document in metrics} == {True, False}
    assert {answer.status for answer in answers} == {200, 400, 404, 503}
    assert {answer.document["status"] for answer in answers if answer.section == "/readyz"} == {"pass", "warn", "fail"}


def test_every_field_of_an_answer_is_documented(answers):
    missing = {(answer.section, name) for answer in answers for name, _ in leaves(answer.document)
               if not any(matches(path, name) for path in documented(answer.section))}
    assert missing == set()


def test_every_documented_field_is_in_an_answer(answers):
    seen = {(answer.section, path) for answer in answers for path in documented(answer.section)
            for name, _ in leaves(answer.document) if matches(path, name)}
    wanted = {(row.section, path) for kind in ("field", "member") for row in rows(METRICS, kind) for path in coded(row.cells[0])}
    objects = {("/metrics", "stale"), ("/metrics", "trends"), ("/metrics", "tls"), ("Problem documents", "tls")}     # or null
    assert wanted - seen - objects == set()


def test_a_field_is_documented_as_null_exactly_where_it_can_be(answers):
    null, nullable = set(), set()
    for answer in answers:
        for path, row in documented(answer.section).items():
            null.update(path for name, value in leaves(answer.document) if value is None and matches(path, name))
            nullable.update([path] if row.cells[3] != "never" else [])
    assert null == nullable


UNITS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "date": r"\d{4}-\d\d-\d\d", "hour": r"\d{4}-\d\d-\d\dT\d\d", "word": r"[a-z_]+",
    "hex": r"[0-9a-f]{32}", "path": r"[\w/.#-]+", "text": r".+", "0 to 1": r"0\.\d+|1\.0",
    "seconds": r"-?\d+(\.\d+)?|\d+(\.\d+)?e-\d+", "true or false": "True|False",
    "days": r"-?\d+\.\d+", "its own": r"-?\d+(\.\d+)?",
}   # any other unit is counted


def test_every_value_has_its_documented_unit(answers):
    for answer in answers:
        for path, row in documented(answer.section).items():
            values = [value for name, value in leaves(answer.document) if matches(path, name) and value is not None]
            for value in values:
                assert re.match("(%s)\\Z" % UNITS.get(row.cells[1], r"\d+"), str(value)), (path, row.cells[1], value)


def test_a_problem_of_the_request_has_the_first_five_members(answers):
    members = [coded(row.cells[0])[0] for row in rows(METRICS, "member")]
    found = [answer.document for answer in answers if answer.status in (400, 404)]
    assert found and all(list(document) == members[:5] for document in found)


def reasons():
    """Every reason word that the service gives to the database, to the log or to itself."""
    source = "".join(inspect.getsource(module) for module in (metrics_service, store, eventlog))
    literal = re.findall(r'(?:Trouble\(|\breason=)"(\w+)"', source)
    for function in (store.damage, store.obstacle):
        literal += re.findall(r'return "(\w+)", ', inspect.getsource(function))
    return set(literal) | {reason for _, reason in store.MESSAGES} | set(eventlog.ERRNO_REASONS.values())


def anchors(page):
    """The anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', prose(page)))


def test_the_list_of_reasons_is_closed():
    assert {coded(row.cells[0])[0] for row in rows(METRICS, "reason")} == reasons()


def test_the_runbook_has_a_section_for_every_reason():
    assert {coded(row.cells[0])[0] for row in rows(METRICS, "reason")} - anchors(RUNBOOK) == set()


def test_a_database_can_have_all_the_reasons_that_are_not_of_the_service_itself():
    own = {"defect", "credentials", "certificate", "reload_refused"}
    assert set(store.REASONS) == reasons() - own and len(set(store.REASONS)) == len(store.REASONS)


def test_every_family_of_metrics_is_documented_in_its_own_words_and_no_other():
    listed = [[cell.replace("`", "") for cell in row.cells] for row in rows(METRICS, "family")]
    suffixes = {"counter": "_total", "info": "_info"}
    assert listed == [
        [name + suffixes.get(kind, ""), kind, unit or "-", " ".join(labels) or "-", words]
        for name, kind, unit, labels, words in openmetrics.FAMILIES]


def test_the_bounds_of_labels_are_documented():
    bounds = {row.cells[0].replace("`", ""): row.cells[1] for row in rows(METRICS, "label")}
    assert bounds["carrier"] == "the %d with most shipments" % openmetrics.CARRIERS
    assert bounds["reason of an exception"] == "the %d with most shipments" % openmetrics.REASONS
    assert "cut after %d characters" % openmetrics.LABEL_MAX in METRICS.read_text()
    labels = {label for family in openmetrics.FAMILIES for label in family.labels} - {"version", "python", "sqlite"}
    assert {name for row in rows(METRICS, "label") for name in coded(row.cells[0])} == labels


def test_the_formats_are_documented_with_their_content_types():
    listed = [coded(row.cells[1])[0] for row in rows(HTTP, "`Accept`")]
    assert listed == [form.content_type for form in list(negotiation.FORMATS.values()) + [negotiation.ESCAPED]]
    page = HTTP.read_text().replace("\n", " ")
    assert "more than %d characters counts as absent" % negotiation.FIELD_MAX in page
    assert "from %d bytes on" % metrics_service.ZIP_FROM in page
    assert all("`?format=%s`" % name in page or "`/metrics?format=%s`" % name in page for name in negotiation.FORMATS)


def test_the_buckets_and_the_slots_of_latency_are_documented():
    page = prose(METRICS).replace("\n", " ")
    listed = re.search(r"The buckets end at (.+?) ms, (.+?) s, the same", page).groups()
    milliseconds, seconds = ([float(number) for number in re.split(", | and ", part)] for part in listed)
    assert tuple([bound / 1000 for bound in milliseconds] + seconds) == latency.BOUNDS
    assert "the %d slots of %d s before the current one" % (latency.SLOTS, latency.SLOT_SECONDS) in page
    assert "Of fewer than %d durations" % health_check.P95_COUNT in page
    assert "judged from %d requests" % health_check.P95_COUNT in prose(CONFIGURATION)


SIGNS = {"webserver.M_ARENA_MAX", "webserver.READ", "webserver.WRITE", "messages.CHUNKED"}     # numbers that are no limits
SERVER = {"webserver": webserver, "messages": messages}


def test_every_limit_of_the_server_is_documented_with_its_value_and_nothing_else():
    found = {"%s.%s" % (module, name): value for module in SERVER for name, value in vars(SERVER[module]).items()
             if name.isupper() and isinstance(value, (int, float))}
    listed = {coded(row.cells[2])[0]: float(row.cells[1].partition(" ")[0]) for row in rows(HTTP, "limit")}
    assert listed == {name: value for name, value in found.items() if name not in SIGNS}


def test_every_status_code_that_the_server_gives_is_documented_and_no_other():
    source = "".join(inspect.getsource(module) for module in (webserver, messages, metrics_service))
    words = r'(?:Refusal|problem|answer|send_error)\((\d{3})|(?:else|=) (\d{3})\b|HTTP/1\.1 (\d{3}) |(\d{3}) if '
    final = {str(int(status)) for status in HTTPStatus if status >= 200}
    given = {code for match in re.findall(words, source) for code in match if code in final}
    assert {coded(row.cells[0])[0] for row in rows(HTTP, "status")} == given | {"500"}  # by an exception's status


def test_a_status_that_ends_the_connection_is_documented_as_such():
    refused = set(re.findall(r"Refusal\((\d{3})", inspect.getsource(messages) + inspect.getsource(webserver)))
    closing = {coded(row.cells[0])[0] for row in rows(HTTP, "status") if row.cells[2].startswith("closes")}
    assert closing == refused | {"400", "408", "503"}   # by refuse(), expire() and turn_away()


def test_the_headers_of_every_answer_are_documented_with_their_values():
    listed = {coded(row.cells[0])[0]: row.cells[1].strip("`") for row in rows(HTTP, "header")}
    varying = {name: listed[name] for name in ("Date", "Content-Length", "X-Request-ID")}
    assert listed == dict(messages.SECURITY, Server=messages.NAME, **varying)


def test_the_page_names_the_methods_that_are_served():
    served = next(row.cells[1] for row in rows(HTTP, "part") if row.cells[0] == "method")
    assert coded(served) == list(webserver.METHODS)


def test_the_limits_of_wrong_passwords_are_documented():
    listed = [tuple(float(number) for number in re.findall(r"[\d.]+", " ".join(row.cells))) for row in rows(CONFIGURATION, "of")]
    assert listed == [(credentials.BURST, credentials.RATE), (credentials.ALL_BURST, credentials.ALL_RATE)]


def settings_rows(section):
    return {coded(row.cells[0])[0]: row.cells for row in rows(CONFIGURATION, "variable", section)}


def test_every_setting_of_the_service_is_documented_and_nothing_else():
    assert list(settings_rows("The service")) == list(metrics_service.VARIABLES)


@pytest.mark.parametrize("name", metrics_service.VARIABLES)
def test_a_setting_has_its_documented_default(name):
    setting, cell = metrics_service.VARIABLES[name], settings_rows("The service")[name][1]
    if setting.default is None:
        assert cell == ("required" if name == "METRICS_DB_PATH" else "unset")
    elif name == "METRICS_PID_FILE":
        assert os.path.join(str(ROOT), coded(cell)[0]) == setting.default
    else:
        assert setting.parse(coded(cell)[0], "/") == setting.default


@pytest.mark.parametrize("name", metrics_service.VARIABLES)
def test_a_setting_takes_its_documented_values_and_no_others(name):
    setting, cell = metrics_service.VARIABLES[name], settings_rows("The service")[name][2]
    for value in coded(cell):
        setting.parse(value, "/")
    for value in (["-1", str(int(coded(cell)[1]) + 1)] if " to " in cell else ["other"] if coded(cell) else []):
        with pytest.raises(ValueError):
            setting.parse(value, "/")


def test_what_a_reload_cannot_change_is_documented():
    cell = next(row.cells[1] for row in rows(CONFIGURATION, "a reload") if row.cells[0] == "cannot change")
    fields = re.search(r"for name in \((.*?)\)", inspect.getsource(metrics_service.immovable)).group(1)
    assert [name for name in coded(cell) if name in metrics_service.VARIABLES] == [
        "METRICS_" + name.upper() for name in re.findall(r'"(\w+)"', fields)]


def test_the_times_of_a_reload_and_of_a_certificate_are_documented():
    page = prose(CONFIGURATION)
    assert "for %d seconds at most" % metrics_service.CHECK_SECONDS in page
    assert "From %d days before its end" % (metrics_service.CERTIFICATE_NOTICE / 86400) in page
    assert metrics_service.CERTIFICATE_NOTICE == health_check.CERTIFICATE_NOTICE


def test_every_setting_of_the_check_is_documented_with_its_default_and_nothing_else():
    found = {name: None if cells[1] == "unset" else coded(cells[1])[0] for name, cells in settings_rows("The check").items()}
    assert found == {health_check.variable(option): option.default for option in health_check.OPTIONS}


def test_the_check_takes_its_documented_words():
    options = {health_check.variable(option): option for option in health_check.OPTIONS}
    for name in ("METRICS_CHECK_FORMAT", "METRICS_CHECK_QUIET"):
        for word in coded(settings_rows("The check")[name][2]):
            options[name].kind(word)


def test_the_example_env_file_is_accepted(tmp_path):
    example = re.search(r"^```\n(# \S+/metrics\.env\n.*?)^```", CONFIGURATION.read_text(), re.DOTALL | re.MULTILINE).group(1)
    (tmp_path / "metrics.env").write_text(example)
    variables = supervision.read_env_file(str(tmp_path / "metrics.env"))
    assert len(variables) == 3
    given = {one.name: metrics_service.Given(one.value, "", "/") for one in variables}
    assert metrics_service.load_settings(given)[1] == []


COMMANDS = {"metrics_service.py": [sys.executable], "health_check.py": [sys.executable], "seed.py": [sys.executable],
            "migrate.py": [sys.executable], "restart_service.sh": ["bash"]}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_wrong_arguments_have_the_documented_exit_code(name):
    codes = [int(code) for command, code, meaning in (row.cells for row in rows(CONFIGURATION, "command"))
             if coded(command) == [name] and "wrong arguments" in meaning]
    done = subprocess.run(COMMANDS[name] + [str(ROOT / name), "--bogus"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert codes == [done.returncode]


def links(page):
    """The (target, anchor) pairs of a page's links into this folder."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]
    return [target.partition("#")[::2] for target in targets]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in links(page):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), "%s#%s" % (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_program_named_on_a_page_exists(page):
    there = {file for _, folders, files in os.walk(str(ROOT)) for file in files}
    named = {Path(name).name for code in coded(prose(page)) for name in re.findall(r"[\w./-]+\.(?:py|sh|sql)\b", code)}
    assert {name for name in named - there if not Path(name).stem.isupper()} == set()     # FILE.sql stands for any


def test_the_architecture_names_every_program():
    assert {name for row in rows(ARCHITECTURE / "README.md", "file") for name in coded(row.cells[0])} == set(PROGRAMS)


def test_the_architecture_counts_the_threads():
    page, picture = ((ARCHITECTURE / name).read_text(encoding="utf-8") for name in ("README.md", "diagram.svg"))
    assert "of %d workers" % webserver.WORKERS in page and ">%d workers<" % webserver.WORKERS in picture
    assert "%d others do so already" % webserver.SLOTS in page.replace("\n   ", " ")
    assert "%d never wait" % (webserver.WORKERS - webserver.SLOTS) in page


def test_the_picture_is_xml_that_names_only_programs_that_exist():
    picture = xml.etree.ElementTree.parse(str(ARCHITECTURE / "diagram.svg"))
    text = " ".join(element.text or "" for element in picture.iter())
    named = set(re.findall(r"\b\w+\.(?:py|sh|sql)\b", text))
    assert named and named <= set(PROGRAMS)
