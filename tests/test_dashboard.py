"""The dashboard, in a real browser: what it shows, what it hides, how it fails and comes back, and who can use it."""

import base64
import functools
import gzip
import hashlib
import html
import json
import operator
import re
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import pages
from chromium import BrowserError, Chromium
from conftest import ROOT, Service, add_rows, copy_product, make_database, turn_second, wait_for
from stand_in import READY, StandIn

SOURCE = (ROOT / "dashboard.html").read_text(encoding="utf-8")
NOW = time.time()
HOSTILE = ["<script>document.title='taken'</script>", "x" * 500, "\u202eecnalubma kcirtap\u2066", "\U0001f69a Express",
           "مكتب البريد السريع", "</noscript><img src=x onerror=alert(1)>", "&amp;\"'`", "\u200b"]
WIDTHS = ((320, 640), (768, 1024), (1440, 900), (3840, 2160))
ANSWERED = "state.level !== 'asking'"
# Timers of the page, ten times as fast: what it does every few seconds, a test need not wait for.
HASTE = "{const slow = setTimeout; window.setTimeout = (act, ms) => slow(act, ms / 10);}"


def at(days):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + 86400 * days))


def shipments():
    """Two carriers, one of them with all that can go wrong, and what is delivered today and was before."""
    rows = [{"carrier": "Good", "mode": "road", "status": "delivered", "promised_at": at(1), "delivered_at": at(0)}] * 3
    rows += [{"carrier": "Good", "mode": "road", "status": "delivered", "promised_at": at(-4), "delivered_at": at(-5)}] * 4
    rows += [{"carrier": "Bad", "mode": "air", "status": "delivered", "promised_at": at(-9), "delivered_at": at(-5)}] * 2
    rows += [{"carrier": "Bad", "mode": "air", "status": "in_transit", "promised_at": at(-2)}] * 2
    rows += [{"carrier": "Bad", "mode": None, "status": "exception", "exception_reason": "customs", "promised_at": at(-20)}]
    rows += [{"carrier": None, "mode": None, "status": "pending", "created_at": at(0)}]
    return [dict(row, reference=str(number)) for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def look(browser):
    """Opens pages: look(url, ...) -> Page, showing its first answer. None may ask anything of another origin."""
    opened = []

    def open_page(url, width=1440, height=900, until=ANSWERED, haste=False, script=True, **features):
        page = browser.page(width, height)
        opened.append((page, url))
        page.media(**features)
        if haste:
            page.send("Page.addScriptToEvaluateOnNewDocument", source=HASTE)
        page.send("Emulation.setScriptExecutionDisabled", value=not script)
        page.open(url)
        if script:
            page.wait(until)
        return page
    yield open_page
    for page, url in opened:
        page.close()
        assert all(asked.startswith((url, "data:image/svg+xml,")) for asked in page.requests)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A healthy service that no test may harm."""
    folder = tmp_path_factory.mktemp("dashboard")
    one = Service(folder, make_database(folder / "shipments.db", shipments())).start()
    yield one
    one.end()


@pytest.fixture
def document(service):
    """Figures of now: older ones would be shown as such."""
    return service.get("/metrics")[1]


def at_root(service):
    return service.url + "/"


def text(page, selector):
    return page.run("document.querySelector(%s).textContent" % json.dumps(selector))


def texts(page, selector):
    return page.run("[...document.querySelectorAll(%s)].map(one => one.textContent)" % json.dumps(selector))


def is_old(page, section="counts"):
    return page.run("find('%s').hasAttribute('data-old') && find('clock').textContent.startsWith('Old')" % section)


def findings(page):
    return [" ".join(words.split()) for words in page.run("[...find('findings').children].map(one => one.innerText)")]


# What it shows

def test_the_page_shows_the_figures_of_metrics(service, document, look):
    page = look(at_root(service))
    today, delivery = document["daily"][-1], document["delivery"]
    assert document["shipments"]["overdue"] == 3 and today["delivered"] == 3
    assert texts(page, "#counts .value") == ["4", "3", "1", "3"]
    assert texts(page, "#counts .value + span")[:2] == ["of 13", "75.0\u202f% of open"]
    assert texts(page, "#punctual .value") == ["100.0\u202f%", "77.8\u202f%", "77.8\u202f%"]
    assert texts(page, "#punctual .value + span") == ["of 3", "of 9", "of %d" % delivery["evaluated"]]
    assert texts(page, "#carriers tbody tr:first-child > *") == ["Bad", "3", "2", "0.0\u202f%"]
    assert texts(page, "#reasons tbody tr > *") == ["customs", "", "1"]
    assert dict(zip(texts(page, "#ages tbody th"), texts(page, "#ages .number"))) == {
        "under 1 day": "0", "1 to 3 days": "2", "3 to 7 days": "0", "over 7 days": "1"}
    assert texts(page, "#table tbody tr:first-child > *")[1:] == [str(today["created"]), "3", "3", "100.0\u202f%"]
    assert len(texts(page, "#table tbody tr")) == len(document["daily"]) == 30
    assert (text(page, "#word"), text(page, "#line")) == ("OK", "All 4 checks pass.")
    assert document["service"]["instance"] in text(page, "#foot")
    assert page.console == [] and page.failures == []


def test_the_time_of_the_figures_is_that_of_the_answer(service, look):
    page = look(at_root(service))
    stamp = page.run("state.metrics.generated_at")
    assert re.match(r"As of \d+ \w{3} %s UTC, \d+\u202fs old\Z" % stamp[11:19], text(page, "#clock"))


def test_a_new_shipment_appears_by_itself(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db")
    page = look(at_root(launch(database)), haste=True)
    assert texts(page, "#counts .value")[0] == "0"
    connection = sqlite3.connect(str(database))
    add_rows(connection, [{"reference": "1", "status": "pending"}])
    connection.close()
    page.wait("document.querySelector('#counts .value').textContent === '1'")


def test_an_empty_database_gives_zeros_and_dashes_with_their_reason(database, launch, look):
    page = look(at_root(launch(database)))
    assert texts(page, "#counts .value") == ["0"] * 4
    assert texts(page, "#punctual .value") == ["\u2014"] * 3
    assert texts(page, "#punctual .value + span") == ["none evaluated"] * 3
    assert texts(page, "#carriers p, #reasons p") == ["\u2014 no shipments yet", "\u2014 no shipment is in exception"]
    assert text(page, "#strip-text") == "Nothing delivered in these days has both dates."
    assert page.console == []


def test_one_shipment_is_enough(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db", shipments()[:1])
    page = look(at_root(launch(database)), 320)
    assert texts(page, "#counts .value") == ["0", "0", "0", "1"] and texts(page, "#punctual .value") == ["100.0\u202f%"] * 3
    assert page.console == []


def test_shares_and_spans_do_not_lie(service, look):
    page = look(at_root(service))
    shares = page.run("[[0, 0], [0, 9], [9, 9], [99999, 100000], [1, 100000], [2, 3]].map(one => percent(...one))")
    assert shares == ["\u2014", "0.0\u202f%", "100.0\u202f%", "99.9\u202f%", "0.1\u202f%", "66.7\u202f%"]
    spans = page.run("[null, 0, .00042, .25, 1.26, 59.9, 60, 3725, 90061, 8640000].map(span)")
    assert [one.replace("\u202f", " ") for one in spans] == [
        "\u2014", "0 s", "0.4 ms", "250 ms", "1.3 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h", "100 d"]


def many(document, number):
    lanes = [dict(document["by_carrier"][0], carrier="Carrier %d" % one, overdue=one) for one in range(number)]
    return dict(document, by_carrier=lanes)


def test_two_hundred_carriers_show_the_worst_and_then_all(document, look):
    with StandIn(many(document, 200)) as server:
        page = look(server.url)
        assert texts(page, "#carriers tbody th") == ["Carrier %d" % one for one in range(199, 191, -1)]
        assert text(page, "#carriers .more") == "and 192 more"
        page.run("document.querySelector('#carriers .more').click()")
        assert len(texts(page, "#carriers tbody tr")) == 200
        page.run("document.querySelector('#carriers .more').click()")
        assert len(texts(page, "#carriers tbody tr")) == 8


def test_a_heading_ranks_its_table(document, look):
    lanes = [dict(document["by_carrier"][0], carrier=name, overdue=overdue, late=late, evaluated=100, on_time=100 - late)
             for name, overdue, late in (("a", 5, 1), ("b", 1, 50), ("c", 3, 7))]
    with StandIn(dict(document, by_carrier=lanes)) as server:
        page = look(server.url)
        assert texts(page, "#carriers tbody th") == ["a", "c", "b"]
        page.run("document.querySelectorAll('#carriers thead button')[1].click()")
        assert texts(page, "#carriers tbody th") == ["b", "c", "a"]
        assert page.run("document.querySelector('[aria-sort]').textContent") == "Late"


def test_ten_million_shipments_fit_at_every_width(document, look):
    shares = {"total": 10 ** 7, "open": 9999999, "overdue": 8888888}
    lanes = [dict(lane, overdue=8888888, late=9876543, evaluated=9999999, on_time=123456) for lane in document["by_carrier"]]
    days = [dict(day, created=7654321, delivered=9999999, on_time=9000000, late=999999) for day in document["daily"]]
    large = dict(document, shipments=dict(document["shipments"], **shares), by_carrier=lanes, daily=days)
    with StandIn(large) as server:
        page = look(server.url, 320)
        assert texts(page, "#counts .value")[:2] == ["9,999,999", "8,888,888"]
        assert overflow(page) == []


# Its size

OVERFLOW = """[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && !one.closest('.unseen, [hidden]') && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(one => one.outerHTML.slice(0, 80))"""


def overflow(page):
    """What reaches beyond the window."""
    return page.run(OVERFLOW) + ([] if page.run("document.documentElement.scrollWidth <= innerWidth") else ["the page"])


@pytest.mark.parametrize("width, height", WIDTHS)
def test_nothing_is_cut_off_at_any_width(service, look, width, height):
    page = look(at_root(service), width, height)
    assert overflow(page) == []
    assert page.run("[...find('figures').children].every(one => one.getBoundingClientRect().height > 20)")


def test_a_wall_screen_shows_all_of_it_in_large_type(service, look):
    page = look(at_root(service), 3840, 2160)
    assert page.run("document.documentElement.scrollHeight <= innerHeight")
    assert page.run("parseFloat(getComputedStyle(document.body).fontSize)") > 32


# What is wrong

def test_a_service_that_is_gone_greys_its_figures_until_it_is_back(tmp_path, launch, look):
    service = launch(make_database(tmp_path / "shipments.db", shipments()))
    page = look(at_root(service), haste=True)
    instance = page.run("state.own.service.instance")
    service.stop()
    page.wait("state.level === 'silent'")
    assert is_old(page) and is_old(page, "service") and texts(page, "#counts .value") == ["4", "3", "1", "3"]
    assert re.match(r"Old figures, as of .* UTC, \d+\u202fs old: no connection\Z", text(page, "#clock"))
    assert (text(page, "#word"), text(page, "#line")) == ("No answer", "no connection")
    first = page.run("state.failed")
    page.wait("state.failed > %d" % first)
    service.env["METRICS_PORT"] = str(service.port)
    service.start()
    page.wait("state.level === 'ok'")
    assert text(page, "#clock").startswith("As of ") and not is_old(page) and page.run("state.own.service.instance") != instance


def test_attempts_come_less_and_less_often(service, look):
    page = look(at_root(service))
    delays = page.run("(() => { state.failed = 0; return Array.from({length: 7}, () => despair(new Error(), false)); })()")
    assert delays == [2, 4, 8, 16, 30, 30, 30]


def test_a_service_that_hangs_is_told_from_one_that_answers(tmp_path, launch, look):
    service = launch(make_database(tmp_path / "shipments.db", shipments()))
    page = look(at_root(service), haste=True)
    service.process.send_signal(signal.SIGSTOP)
    page.wait("state.level === 'silent'")
    assert "no answer within 10 s" in text(page, "#clock") and is_old(page)
    service.process.send_signal(signal.SIGCONT)
    page.wait("state.level === 'ok'")
    assert not is_old(page)


def test_figures_become_old_by_age_alone(service, look):
    page = look(at_root(service))
    page.run("clearTimeout(timer), state.sent.steady -= 14000, tick()")
    assert not is_old(page)
    page.run("state.sent.steady -= 2000, tick()")
    assert is_old(page) and text(page, "#clock").endswith("no newer answer yet")


def test_a_wrong_clock_on_the_client_changes_no_age(service, browser):
    page = browser.page()
    page.send("Page.addScriptToEvaluateOnNewDocument", source="{const now = Date.now; Date.now = () => now() - 1e9;}")
    page.open(at_root(service))
    page.wait(ANSWERED)
    assert page.run("age() < 15 && find('clock').textContent.startsWith('As of')")
    page.close()


def test_a_missing_database_is_named_with_its_runbook_entry(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db", shipments())
    page = look(at_root(launch(database)), haste=True)
    database.rename(tmp_path / "elsewhere.db")
    page.wait("state.trouble === 'missing'")
    assert text(page, "#word") == "Failing" and "database:shipments missing" in text(page, "#line")
    assert findings(page)[0].startswith("Failing: database:shipments missing database ")
    assert is_old(page) and not is_old(page, "service"), "what the service says of itself is of now"
    page.open(page.run("document.querySelector('#findings a').href"))
    assert page.run("document.body.textContent").startswith("### missing\n")


def test_without_any_figures_all_are_dashes_with_the_reason(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db", shipments())
    service = launch(database)
    database.rename(tmp_path / "elsewhere.db")
    page = look(at_root(service), haste=True)
    assert texts(page, "#counts .value, #punctual .value") == ["\u2014"] * 7
    assert set(texts(page, "#counts .value + span")) == {"missing"}
    assert page.run("find('carriers').hidden && !find('service').hidden")
    (tmp_path / "elsewhere.db").rename(database)
    page.wait("state.level === 'ok'")
    assert texts(page, "#counts .value") == ["4", "3", "1", "3"]


def test_what_an_error_told_of_the_service_becomes_old_too(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db")
    service = launch(database)
    database.rename(tmp_path / "elsewhere.db")
    page = look(at_root(service), haste=True)
    assert page.run("!state.metrics && !find('service').hasAttribute('data-old')")
    service.stop()
    page.wait("state.level === 'silent'")
    assert page.run("find('service').hasAttribute('data-old') && !find('counts').hasAttribute('data-old')"), "dashes have no age"


def test_stale_figures_are_grey_and_say_why(tmp_path, launch, look):
    database = make_database(tmp_path / "shipments.db", shipments())
    page = look(at_root(launch(database)), haste=True)
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    page.wait("state.trouble === 'locked'")
    assert is_old(page) and text(page, "#word") == "Warning" and text(page, "#clock").endswith(": locked")
    writer.execute("ROLLBACK")
    writer.close()
    page.wait("state.level === 'ok'")
    assert not is_old(page)


def test_an_answer_that_is_none_is_not_believed(document, look):
    with StandIn(document) as server:
        page = look(server.url)
        for status, content_type, body, words in (
                (200, "text/html", b"<p>Welcome to your router", "/metrics answered 200 without JSON"),
                (502, "text/html", b"Bad Gateway", "/metrics answered 502 without JSON"),
                (200, "application/json", b'{"shipments": {', "/metrics answered 200 without JSON"),
                (200, "application/json", b"null", "/metrics is not what it should be"),
                (503, "application/json", b"[]", "/metrics.title is not what it should be")):
            server.answers["/metrics"] = status, content_type, body
            page.run("refresh()")
            assert text(page, "#line") == words and is_old(page) and text(page, "#word") == "No answer"


def changed(document, path, value):
    """A copy of the document with another value there."""
    copy = json.loads(json.dumps(document))
    *way, last = path.split(".")
    functools.reduce(operator.getitem, way, copy)[last] = value
    return copy


def test_a_figure_that_cannot_be_is_not_shown(document, look):
    with StandIn(document) as server:
        page = look(server.url)
        for path, value in (
                ("shipments.open", -1), ("shipments.open", 1.5), ("shipments.total", "20"), ("generated_at", "yesterday"),
                ("daily", []), ("by_carrier", {}), ("delivery", None), ("requests.latency_seconds", {}),
                ("requests.by_code", None), ("shipments.overdue_by_age.over_7_days", None), ("stale", {"reason": "locked"}),
                ("carriers_omitted", 2 ** 60)):
            server.say("/metrics", changed(document, path, value))
            page.run("refresh()")
            assert text(page, "#line").startswith("/metrics." + path) and is_old(page)
            assert texts(page, "#counts .value") == ["4", "3", "1", "3"], "the last good ones, marked as such"


def test_warnings_of_readyz_are_told_each_once(document, look):
    entry = {"status": "warn", "reason": "disk_full", "output": "the log file cannot be written"}
    ready = dict(READY, status="warn", checks=dict(READY["checks"], **{"log:target": [entry]}))
    with StandIn(document, ready) as server:
        page = look(server.url)
        assert text(page, "#word") == "Warning" and not is_old(page)
        assert findings(page) == ["Warning: log:target disk_full the log file cannot be written"]
        assert page.run("document.querySelector('#findings a').getAttribute('href')") == "runbook?entry=disk_full"
        server.say("/readyz", {"status": "fail"}, 503)
        page.run("refresh()")
        assert text(page, "#word") == "Failing" and "/readyz" in findings(page)[0]


def trends(state, **metric):
    one = dict({"name": "created_per_hour", "state": state, "value": 3, "low": 18, "high": 42, "since": "2026-03-10T11:00:00Z",
                "rarity": "about once in 6 weeks", "summary": "3 created, usually 18 to 42", "runbook": "docs/runbook.md#trend"},
               **metric)
    return {"state": state, "reason": None, "detail": None, "checked_at": "2026-03-10T12:00:00Z", "age_seconds": 12.0,
            "metrics": [one]}


def test_a_degraded_trend_is_a_warning_and_a_learning_one_is_not(document, look):
    with StandIn(dict(document, trends=trends("degraded"))) as server:
        page = look(server.url)
        assert text(page, "#word") == "Warning" and not is_old(page)
        assert findings(page) == ["Warning: trend of created_per_hour trend 3 created, usually 18 to 42, about once in 6 weeks, "
                                  "since 10 Mar 11:00:00 UTC"]
        server.say("/metrics", dict(document, trends=trends("learning")))
        page.run("refresh()")
        assert text(page, "#word") == "OK" and "Trends: learning 1 of 1. " in text(page, "#facts")
        server.say("/metrics", dict(document, trends=dict(trends("quiet"), age_seconds=7200)))
        page.run("refresh()")
        assert "Trends: quiet, OLD: of 10 Mar 12:00:00 UTC, 2\u202fh ago." in text(page, "#facts")
        for nothing in (None, dict(trends("no_data"), metrics=[])):
            server.say("/metrics", dict(document, trends=nothing))
            page.run("refresh()")
            assert text(page, "#word") == "OK"
        for broken in ({"state": 3}, [], trends("degraded", since="yesterday")):
            server.say("/metrics", dict(document, trends=broken))
            page.run("refresh()")
            assert findings(page) == ["Warning: trends This part of /metrics is not what it should be."] and not is_old(page)
        server.say("/metrics", dict(document, trends=dict(trends("unreadable"), reason="corrupt", detail="no JSON", metrics=[])))
        page.run("refresh()")
        assert findings(page) == ["Warning: trends corrupt no JSON"]


def test_a_hidden_tab_asks_nothing_and_a_shown_one_at_once(document, look):
    with StandIn(document) as server:
        page = look(server.url, haste=True)
        page.show(False)
        page.run("new Promise(done => setTimeout(done, 2000))")     # of the page's own hasty time, four refreshes
        asked = len(server.asked)
        page.run("new Promise(done => setTimeout(done, 20000))")
        assert len(server.asked) == asked
        server.say("/metrics", dict(document, shipments=dict(document["shipments"], open=77)))
        page.show()
        page.wait("document.querySelector('#counts .value').textContent === '77'", 2)


def test_an_answer_that_comes_while_nobody_looks_is_dropped(document, look):
    with StandIn(document) as server:
        page = look(server.url)
        server.gate.clear()
        page.run("void refresh()")
        page.show(False)
        server.gate.set()
        assert page.run("pending === null && state.level === 'ok'")
        page.show()
        page.wait("since(state.sent) < 5")


# Who may see it

@pytest.fixture
def guarded(tmp_path, launch):
    """A service that asks for a password, which is 'secret' for alice, and its password file."""
    users = tmp_path / "users"
    users.write_text(hashed("secret"))
    users.chmod(0o600)
    return launch(make_database(tmp_path / "shipments.db", shipments()), auth_file=users), users


def hashed(password):
    done = subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--hash-password", "alice"], input=password + "\n",
                          stdout=subprocess.PIPE, check=True, universal_newlines=True)
    return done.stdout


def test_the_browser_asks_for_the_password_once(guarded, browser):
    service, users = guarded
    page = browser.page()
    page.sign_in("alice", "secret")
    page.open(at_root(service))
    page.wait("state.level === 'ok'")
    assert texts(page, "#counts .value") == ["4", "3", "1", "3"]
    page.login = None                   # a person who closes the dialogue
    users.write_text(hashed("another"))
    page.wait("state.trouble === 'credentials' || void refresh()")      # the file is looked at once a second
    assert "credentials" in text(page, "#line") and is_old(page)
    assert page.run("document.querySelector('#findings a').getAttribute('href')") == "runbook?entry=credentials"
    page.close()


def test_strangers_get_neither_page_nor_runbook(guarded):
    service, _ = guarded
    for path in ("/", "/runbook", "/runbook?entry=missing"):
        status, headers, body = service.request(path)
        assert status == 401 and headers["WWW-Authenticate"].startswith("Basic") and b"Shipments" not in body


# Hostile values

def test_hostile_names_are_text(tmp_path, launch, look):
    rows = [{"reference": str(number), "carrier": name, "status": "exception", "exception_reason": name,
             "promised_at": "2020-01-01"} for number, name in enumerate(HOSTILE)]
    page = look(at_root(launch(make_database(tmp_path / "shipments.db", rows))), 320)
    shown = HOSTILE[:-1] + ['"\u200b"']     # what nobody could see is in quotes
    assert sorted(texts(page, "#carriers tbody bdi")) == sorted(shown)
    assert page.run("document.scripts.length === 1 && !document.querySelector('img') && document.title.startsWith('OK')")
    assert overflow(page) == []
    heights = page.run("[...document.querySelectorAll('#carriers tbody tr')].map(one => one.clientHeight)")
    assert max(heights) < 60, "two lines"
    for button in range(len(HOSTILE)):
        page.run("document.querySelectorAll('#carriers tbody button')[%d].focus()" % button)
        assert text(page, "#explain bdi") in shown
    assert page.console == []


def test_hostile_names_are_text_without_script_too(tmp_path, launch, look):
    rows = [{"reference": str(number), "carrier": name, "status": "pending"} for number, name in enumerate(HOSTILE)]
    service = launch(make_database(tmp_path / "shipments.db", rows))
    body = service.request("/")[2].decode()
    assert all(html.escape(name) in body for name in HOSTILE) and not any(name in body for name in HOSTILE if "<" in name)
    page = look(at_root(service), script=False)
    assert [node.name for node in page.accessible() if node.role == "image"] == []


# Without script, printed, by keyboard, read aloud

def names(page, role):
    return [node.name for node in page.accessible() if node.role == role]


def test_without_script_the_same_figures_are_a_table(service, document, look):
    page = look(at_root(service), 320, script=False)
    cells = [node.name for node in page.accessible() if node.role in ("cell", "gridcell", "rowheader")]
    figures = dict(zip(cells[::2], cells[1::2]))
    assert figures["Open"] == "4" and figures["Overdue"] == "3" and figures["Delivered today, UTC"] == "3"
    assert figures["On time, ever"] == "77.8 % of 9"
    assert page.send("Page.getLayoutMetrics")["cssContentSize"]["width"] <= 320
    assert "Bad" in names(page, "rowheader") and page.console == []


def test_without_script_and_figures_the_reason_stands_there(tmp_path, launch):
    database = make_database(tmp_path / "shipments.db")
    service = launch(database)
    database.rename(tmp_path / "elsewhere.db")
    status, _, body = service.request("/")
    assert status == 200 and b'<strong>No figures</strong> <a href="runbook?entry=missing">missing</a>' in body


def test_without_script_stale_figures_say_so(tmp_path, launch):
    database = make_database(tmp_path / "shipments.db", shipments())
    service = launch(database)
    assert b"<li>All checks pass.</li>" in service.request("/")[2]
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    turn_second()
    body = service.request("/")[2].decode()
    writer.close()
    assert re.search(r"<strong>Old figures</strong> <a href=.runbook\?entry=locked.>locked</a>: these figures are \d+ s old: ", body)
    assert "All checks pass" not in body


def test_a_locked_database_does_not_hold_up_the_page(database, launch):
    service = launch(database, query_timeout=30, stale_seconds=0)
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    status, _, body = service.request("/")
    writer.close()
    assert status == 200 and b">locked</a>" in body and time.monotonic() - began < 8


def test_a_screen_reader_is_told_what_each_part_is(service, look):
    page = look(at_root(service))
    nodes = page.accessible()
    roles = {node.role for node in nodes}
    assert {"banner", "main", "contentinfo", "heading", "region", "table", "slider", "status", "image"} <= roles
    assert not [node for node in nodes if node.role in ("button", "link", "image", "region", "slider", "table", "heading")
                and not node.name]
    regions = names(page, "region")
    assert regions[:3] == ["OK", "Shipments now", "Delivered on time"] and len(regions) == len(set(regions)) == 9
    levels = [node.properties["level"] for node in nodes if node.role == "heading"]
    assert levels == [1] + [2] * 9
    assert "Overdue 3 75.0 % of open" in [" ".join(name.split()) for name in names(page, "button")]
    images = names(page, "image")
    assert len(images) == 2 and "created" in images[1] and "on time 77.8\u202f% of 9 evaluated" in images[1]
    slider = next(node for node in nodes if node.role == "slider")
    assert slider.name == "Day" and "delivered, on time" in page.run("find('day').getAttribute('aria-valuetext')")
    assert {"columnheader", "rowheader"} <= roles


def test_only_a_change_of_the_verdict_is_read_aloud(document, look):
    with StandIn(document) as server:
        page = look(server.url)
        page.run("window.heard = 0, void new MutationObserver(all => heard += all.length).observe(find('announce'), "
                 "{childList: true, characterData: true, subtree: true})")
        for _ in range(3):
            page.run("refresh()")
        assert page.run("heard") == 0 and text(page, "#announce") == "OK: All 4 checks pass."
        server.say("/metrics", {"title": "Gone", "detail": "no", "reason": "missing"}, 503)
        page.run("refresh()")
        assert page.run("heard") > 0 and text(page, "#announce") == "Failing: /metrics missing"
        assert page.run("document.querySelectorAll('[aria-live], [role=status]').length") == 1


def test_the_keyboard_goes_through_the_page_in_its_order(service, look):
    page = look(at_root(service))
    page.send("Emulation.setFocusEmulationEnabled", enabled=True)
    seen = []
    for _ in range(60):
        page.key("Tab", 9)
        here = page.run("document.activeElement === document.body ? null : (window.nodes = window.nodes || []).push("
                        "document.activeElement) && [document.activeElement.closest('section, footer').id || 'footer', "
                        "getComputedStyle(document.activeElement).outlineStyle]")
        if here is None:
            break
        seen.append(here)
    order = list(dict.fromkeys(section for section, _ in seen))
    assert order == ["counts", "punctual", "carriers", "modes", "reasons", "days", "ages", "service", "footer"]
    assert {outline for _, outline in seen} <= {"solid", "auto"}
    assert page.run("nodes.every((one, at) => !at || nodes[at - 1].compareDocumentPosition(one) & 4)")


def test_a_focused_figure_tells_its_meaning_and_keeps_the_focus(service, look):
    page = look(at_root(service))
    page.run("document.querySelectorAll('#counts button')[1].focus()")
    told = text(page, "#explain")
    assert "Overdue Of 4 open, those whose promise has run out." in told and "As of " in told
    focused = next(node for node in page.accessible() if node.role == "button" and node.properties.get("focused"))
    assert " ".join(focused.description.split()).startswith("Overdue Of 4 open")
    page.run("refresh()")
    assert page.run("document.activeElement.closest('section').id") == "counts"
    page.key("Escape", 27)
    assert page.run("find('explain').hidden")


def test_the_pointer_tells_the_same(service, look):
    page = look(at_root(service))
    x, y = page.run("(({x, y, width, height}) => [x + width / 2, y + height / 2])(document.querySelector("
                    "'#carriers tbody td').getBoundingClientRect())")
    page.point(x, y)
    page.wait("!find('explain').hidden")
    assert text(page, "#explain").startswith("Bad 3 overdue of 3 open; 2 late and 0.0\u202f% on time of 2 evaluated")
    assert not [button for button in page.run(
        "[...document.querySelectorAll('#figures button:not(.more)')].map(one => one.dataset.help)") if not button]


def test_a_day_of_the_chart_is_read_by_keyboard_and_by_pointer(service, look):
    page = look(at_root(service))
    assert ", not over: " in text(page, "#day-text")
    page.run("find('day').focus()")
    page.key("ArrowLeft", 37)
    assert page.run("find('day').value") == "28" and "0 delivered" in text(page, "#day-text")
    x, y = page.run("(({x, y}) => [x + 2, y - 40])(find('day').getBoundingClientRect())")
    page.point(x, y)
    page.wait("find('day').value === '0'")


CONTRAST = """(() => {
  const parse = colour => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map(one => one / 255).map(one => one <= 0.03928 ? one / 12.92
    : ((one + 0.055) / 1.055) ** 2.4).reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const over = (top, ground) => top.slice(0, 3).map((one, at) => one * top[3] + ground[at] * (1 - top[3]));
  const ground = node => {
    const own = parse(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, node.parentElement ? ground(node.parentElement) : [255, 255, 255]);
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, style = getComputedStyle(node);
    if (!walk.currentNode.data.trim() || !node.getClientRects().length || node.closest('script, style, .unseen')) continue;
    const back = ground(node), front = over(parse(node.closest('svg') ? style.fill : style.color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    found.push([walk.currentNode.data.trim().slice(0, 40), (high + 0.05) / (low + 0.05), large ? 3 : 4.5]);
  }
  return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_every_state(document, look, scheme):
    warning = dict(READY, status="warn", checks={"log:target": [{"status": "warn", "reason": "disk_full", "output": "full"}]})
    with StandIn(document) as server:
        page = look(server.url, prefers_color_scheme=scheme)
        assert page.run("matchMedia('(prefers-color-scheme: %s)').matches" % scheme)
        grounds = set()
        for level, metrics, ready in (("ok", (document, 200), READY), ("warn", (document, 200), warning), (
                "fail", ({"title": "x", "detail": "y", "reason": "missing"}, 503), READY)):
            server.say("/metrics", *metrics)
            server.say("/readyz", ready)
            page.run("refresh()")
            page.run("document.querySelector('#counts button').focus()")
            assert page.run("state.level") == level
            measured = page.run(CONTRAST)
            assert len(measured) > 60 and not [one for one in measured if one[1] < one[2]]
            grounds.add(page.run("getComputedStyle(find('verdict')).backgroundColor"))
        assert len(grounds) == 3


def test_no_state_is_told_by_colour_alone(document, look):
    with StandIn(document) as server:
        page = look(server.url)
        told = set()
        for metrics in ((document, 200), (dict(document, trends=trends("degraded")), 200), (
                {"title": "x", "detail": "y", "reason": "missing"}, 503), ([], 200)):
            server.say("/metrics", *metrics)
            page.run("refresh()")
            told.add((text(page, "#word"), page.run("find(document.querySelector('#verdict use').href.baseVal.slice(1))"
                                                    ".getAttribute('d')"), page.run("document.title.split(' ')[0]")))
        assert len({word for word, _, _ in told}) == len({shape for _, shape, _ in told}) == 4


def test_forced_colours_and_print_keep_what_matters(service, look):
    page = look(at_root(service), 760, forced_colors="active")
    assert page.run("getComputedStyle(document.querySelector('.delivered')).fill") == "rgb(0, 0, 0)"
    page.media("print")
    assert page.run("getComputedStyle(find('day')).display === 'none' && getComputedStyle(find('explain')).display === 'none'")
    page.run("clearTimeout(timer), state.trouble = 'missing', tick()")
    assert is_old(page)
    for node in ("verdict", "clock"):
        assert page.run("getComputedStyle(find('%s')).color" % node) == "rgb(0, 0, 0)"
    assert overflow(page) == []
    assert base64.b64decode(page.send("Page.printToPDF")["data"]).startswith(b"%PDF")


def test_nothing_ever_moves_by_itself(service, look):
    page = look(at_root(service))
    assert page.run("[...document.querySelectorAll('*')].map(one => getComputedStyle(one)).filter(one => "
                    "parseFloat(one.transitionDuration) || one.animationName !== 'none').length") == 0


# Its safety

def digest(element):
    inner = re.search("<%s>(.*?)</%s>" % (element, element), SOURCE, re.DOTALL).group(1)
    return base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()


def test_the_policy_is_exact_and_its_hashes_are_those_of_the_file(service):
    policy = service.request("/")[1]["Content-Security-Policy"]
    assert policy == ("default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; connect-src 'self'; img-src data:; "
                      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'" % (digest("script"), digest("style")))


def test_what_the_policy_does_not_know_does_not_run(service, look):
    page = look(at_root(service))
    page.run("""{const one = document.createElement('script'); one.textContent = 'window.taken = 1'; document.body.append(one);
        const two = document.createElement('div'); two.setAttribute('onclick', 'window.taken = 2'); document.body.append(two);
        two.click(); const three = document.createElement('p'); three.setAttribute('style', 'color: red');
        document.body.append(three); window.styled = getComputedStyle(three).color;}""")
    assert page.run("window.taken === undefined && styled !== 'rgb(255, 0, 0)'")
    with pytest.raises(BrowserError):
        page.run("fetch('https://example.invalid/')")
    assert any("Content Security Policy" in line for line in page.console)


def test_the_page_keeps_nothing_in_the_browser(service, look):
    page = look(at_root(service))
    assert page.run("document.cookie === '' && localStorage.length === 0 && sessionStorage.length === 0")
    assert page.send("Network.getCookies")["cookies"] == []
    assert page.run("indexedDB.databases().then(all => all.length)") == 0


def test_the_file_is_small_and_holds_to_its_own_rules():
    assert len(SOURCE.encode()) < 40000
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "localStorage",
                 "sessionStorage", "indexedDB", "cookie", "unsafe", "@import", "url("):
        assert word not in SOURCE, word
    assert re.findall(r"https?:[^\"']*", SOURCE) == ["http://www.w3.org/2000/svg"], "a name, which nobody fetches"
    markup = re.sub("<(style|script)>.*?</\\1>", "", SOURCE, flags=re.DOTALL)
    assert not re.search(r"\s(style|on\w+)=", markup) and len(re.findall("<script|<style", SOURCE)) == 2
    assert max(len(line) for line in SOURCE.splitlines()) <= 140


# The service's part

def test_the_page_is_html_for_get_and_head_and_packed_where_wanted(service):
    status, headers, body = service.request("/", headers={"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Type"], headers["Vary"]) == (200, "text/html; charset=utf-8", "Accept-Encoding")
    assert headers["Content-Encoding"] == "gzip" and len(body) < 20000 and b"<!doctype html>" in gzip.decompress(body)
    status, headers, body = service.request("/", "HEAD")
    assert status == 200 and body == b"" and int(headers["Content-Length"]) > 30000 and headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store" and headers["Set-Cookie"] is None


def test_the_runbook_is_served_whole_and_by_entry(service):
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    status, headers, body = service.request("/runbook")
    assert (status, headers["Content-Type"], body.decode()) == (200, "text/plain; charset=utf-8", runbook)
    status, _, body = service.request("/runbook?entry=locked")
    entry = body.decode()
    assert status == 200 and entry.startswith("### locked\n") and "\n### " not in entry and entry in runbook
    status, document = service.get("/runbook?entry=nonsense")
    assert status == 404 and document["detail"] == "the runbook has no such entry; /runbook has them all"


def test_every_reason_leads_to_an_entry_of_its_own(service):
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    reasons = re.findall(r"^\| `(\w+)` \| \d{3}", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert len(reasons) > 15
    assert [word for word in reasons if len((pages.entry(runbook, word) or "").splitlines()) < 3] == []


def test_an_entry_ends_at_the_next_one_and_not_in_its_code():
    page = "# Book\n\n## A\n\n### One\n```bash\n# not a heading\n### Two\n```\n#### deeper\nend\n### Two\nlast\n"
    assert pages.entry(page, "one") == "### One\n```bash\n# not a heading\n### Two\n```\n#### deeper\nend\n"
    assert pages.entry(page, "two") == "### Two\nlast\n" and pages.entry(page, "not-a-heading") is None
    assert pages.entry(page, "a").startswith("## A\n") and pages.entry(page, "a").endswith("last\n")


def started(folder, database):
    """The service of a copied folder."""
    service = Service(folder, database)
    return service.start(command=(sys.executable, "-B", str(folder / "metrics_service.py")))


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_without_its_file_the_page_says_so_and_the_service_serves(tmp_path, database, damage):
    folder = tmp_path / "copy"
    folder.mkdir()
    copy_product(folder)
    if damage == "missing":
        (folder / "dashboard.html").unlink()
    else:
        (folder / "dashboard.html").write_text("<p>Under construction")
    service = started(folder, database)
    try:
        status, document = service.get("/")
        assert status == 404 and re.search("dashboard.html cannot be used: .*; copy the whole folder again", document["detail"])
        assert service.get("/metrics")[0] == 200
        status, document = service.get("/runbook")
        assert status == 404 and "runbook.md cannot be read" in document["detail"]
        done = subprocess.run([sys.executable, "-B", str(folder / "metrics_service.py"), "--check"], env=service.env,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        assert done.returncode == 0 and "dashboard.html cannot be used" in done.stdout and "1 warning" in done.stdout
    finally:
        service.end()


def test_a_page_with_a_new_script_needs_a_reload_and_never_a_false_hash(tmp_path, database):
    folder = tmp_path / "copy"
    folder.mkdir()
    copy_product(folder)
    service = started(folder, database)
    try:
        before = service.request("/")[1]["Content-Security-Policy"]
        (folder / "dashboard.html").write_text(SOURCE.replace('"use strict";', '"use strict"; '))
        assert service.request("/")[1]["Content-Security-Policy"] == before and b'"use strict"; \n' not in service.request("/")[2]
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: b'"use strict"; \n' in service.request("/")[2], "the new page")
        assert service.request("/")[1]["Content-Security-Policy"] != before
    finally:
        service.end()
