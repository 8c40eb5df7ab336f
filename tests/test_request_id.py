"""The id of a request: taken or made, and the same in the answer's header, in its problem document and on the log's lines."""

import http.client
import json
import re
import socket
import subprocess
import sys

import pytest

import messages
from conftest import DEADLINE, ROOT, Service, make_certificate, make_database, turn_second, wait_for

MADE = r"[0-9a-f]{16}-[0-9a-f]{8}\Z"
TRACE = "https://a.example/x:1+2=3@4_5-6"
PATCHED = "import sys, time; sys.path.insert(0, %r); import metrics_service, store\n%%s\nsys.exit(metrics_service.main([]))" % str(ROOT)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ids")
    one = Service(folder, make_database(folder / "shipments.db"), access_log="on").start()
    yield one
    one.end()


def patched(launch, database, code, **settings):
    """A service in which the code has changed something."""
    service = launch(database, wait=False, **settings)
    service.end()
    service.output.write_text("")
    return service.start(command=[sys.executable, "-c", PATCHED % code])


def raw(service, data):
    """All that the service sends for these bytes."""
    with socket.create_connection((service.host, service.port), DEADLINE) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def line_of(service, request_id):
    """The only line with the id."""
    lines = [line for line in service.text().splitlines() if "request_id=%s" % request_id in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("given", ["a", "x" * 128, TRACE, "0af7651916cd43dd8448eb211c80319c"])
def test_a_well_formed_id_is_taken(service, given):
    status, headers, body = service.request("/nowhere", headers={"X-Request-ID": given})
    assert (headers["X-Request-ID"], json.loads(body.decode())["request_id"]) == (given, given)


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a,b", 'a"b', "a\tb", "<b>", "a\\", "a;b", "caf\xe9", "%0d%0a", "{}"])
def test_another_is_replaced_by_one_that_is_made(service, given):
    assert re.match(MADE, service.request("/livez", headers={"X-Request-ID": given})[1]["X-Request-ID"])


def test_of_two_none_is_taken(service):
    answer = raw(service, b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Request-ID: one\r\nx-request-id: one\r\n\r\n")
    assert re.search(r"X-Request-ID: [0-9a-f]{16}-", answer)


def test_no_two_requests_and_no_two_runs_have_the_same(service, launch, database):
    made = [service.request("/livez")[1]["X-Request-ID"] for _ in range(20)]
    assert len(set(made)) == 20
    assert launch(database).request("/livez")[1]["X-Request-ID"].split("-")[0] != made[0].split("-")[0]


@pytest.mark.parametrize("sent, status", [
    (b"GARBAGE\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: a\r\n", 400), (b"GET / HTTP/2.0\r\n\r\n", 505),
    (b"GET /%s HTTP/1.1\r\n" % (b"x" * 9000), 414), (b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n" % (b"x" * 40000), 431)])
def test_an_answer_without_a_request_has_one_too(service, sent, status):
    answer = raw(service, sent)
    assert answer.startswith("HTTP/1.1 %d " % status)
    name = re.search("X-Request-ID: (.*)\r\n", answer).group(1)
    assert re.match(MADE, name) and json.loads(answer.partition("\r\n\r\n")[2])["request_id"] == name
    assert " INFO request line=" in line_of(service, name)


def test_who_speaks_plain_http_to_tls_is_given_one(launch, database, tmp_path):
    certificate = make_certificate(tmp_path / "pem", "DNS:localhost")
    answer = raw(launch(database, tls_cert=certificate), b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    name = re.search("X-Request-ID: (.*)\r\n", answer).group(1)
    assert re.match(MADE, name) and json.loads(answer.partition("\r\n\r\n")[2])["request_id"] == name


def test_the_state_of_the_database_names_the_request_that_met_it(launch, database):
    service = launch(database)
    database.rename(str(database) + ".away")
    document = json.loads(service.request("/metrics", headers={"X-Request-ID": "first"})[2].decode())
    database.with_name("shipments.db.away").rename(database)
    service.request("/readyz", headers={"X-Request-ID": "second"})
    assert document["request_id"] == "first"
    assert " ERROR database_unavailable reason=missing " in line_of(service, "first")
    assert "INFO database_recovered" in line_of(service, "second") and "route=/readyz" in line_of(service, "second")


def test_a_defect_names_the_request_and_its_kind_of_error(launch, database):
    code = "class Odd(Exception):\n    def __str__(self): return 1 / 0\ndef bad(*_, **__): raise Odd()\nmetrics_service.Service.livez = bad"
    service = patched(launch, database, code, log_format="json")
    assert service.request("/livez", headers={"X-Request-ID": "odd"})[0] == 500
    line = json.loads([line for line in service.text().splitlines() if '"odd"' in line][0])
    assert (line["http.request.id"], line["error.type"], line["error.message"]) == ("odd", "Odd", "its message cannot be had")
    assert line["error.stack_trace"].startswith("Traceback ") and line["url.path"] == "/livez"


def test_a_wrong_password_is_told_with_its_address(launch, database, tmp_path):
    users = tmp_path / "users"
    users.write_text(subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--hash-password", "anna"], input="letters\n",
                                    stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout)
    users.chmod(0o600)
    service = launch(database, auth_file=users)
    service.request("/metrics", headers={"X-Request-ID": "none"})
    service.request("/metrics", headers={"X-Request-ID": "bad", "Authorization": "Basic YTpi", "User-Agent": "x\u00e9y"})
    assert "WARNING login_failed reason=credentials status=401 client=127.0.0.1 user_agent=" in line_of(service, "bad")
    assert "request_id=none" not in service.text() and "YTpi" not in service.text()


# Slow requests and queries

def test_a_slow_request_is_told_with_its_time_and_a_slow_client_is_none(launch, database):
    code = ("real = metrics_service.Service.livez\n"
            "def slow(*given, **named):\n    time.sleep(0.3)\n    return real(*given, **named)\nmetrics_service.Service.livez = slow")
    service = patched(launch, database, code, slow_request_seconds="0.2")
    with socket.create_connection((service.host, service.port), DEADLINE) as client:
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n")
        with pytest.raises(socket.timeout):
            client.settimeout(0.4)
            client.recv(1)
        client.sendall(b"X-Request-ID: patient\r\nConnection: close\r\n\r\n")
        client.settimeout(DEADLINE)
        assert client.recv(9) == b"HTTP/1.1 "
    service.request("/livez", headers={"X-Request-ID": "slow"})
    found = re.search(r"WARNING slow_request seconds=(\S+) method=GET route=/livez status=200 client=127.0.0.1 request_id=slow$",
                      service.text(), re.MULTILINE)
    assert 0.3 <= float(found.group(1)) < DEADLINE and "request_id=patient" not in service.text()


@pytest.mark.parametrize("seconds, count", [("0.2", 1), ("0", 0)])
def test_a_slow_query_is_told_with_the_one_that_took_longest(launch, database, seconds, count):
    code = ("class Slow:\n    def __init__(self, connection): self.connection = connection\n"
            "    def __getattr__(self, name): return getattr(self.connection, name)\n"
            "    def execute(self, sql, *given):\n        if sql == store.OVERDUE: time.sleep(0.3)\n"
            "        return self.connection.execute(sql, *given)\n"
            "ask = store.ask\nstore.ask = lambda connection, *given: ask(Slow(connection), *given)")
    service = patched(launch, database, code, slow_query_seconds=seconds)
    turn_second()
    service.request("/metrics", headers={"X-Request-ID": "q"})
    found = re.findall(r"WARNING slow_query seconds=0\.[3-9]\d* longest=overdue longest_seconds=0\.\d+ route=/metrics request_id=q$",
                       service.text(), re.MULTILINE)
    assert len(found) == count


def test_each_reading_is_told_at_debug(launch, database):
    service = launch(database, log_level="debug")
    service.get("/metrics")
    wait_for(lambda: re.search(r"DEBUG database_read seconds=\S+ longest=[a-z_]+ longest_seconds=\S+", service.text()), "the line")


# Access lines

def test_an_access_line_has_all_of_the_request_and_the_answer(service):
    _, headers, body = service.request("/nowhere%20?a=%0Ab", headers={"User-Agent": 'x "y" z', "X-Request-ID": "access"})
    line = line_of(service, "access")
    found = re.search(r' INFO request method=GET route="/nowhere " query="a=%0Ab" status=404 bytes=(\d+) seconds=\S+ '
                      r'client=127\.0\.0\.1 user_agent="x \\"y\\" z" request_id=access$', line)
    assert int(found.group(1)) == len(body)


def test_access_lines_are_json_in_types_of_ecs(launch, database):
    service = launch(database, access_log="on", log_format="json")
    service.request("/metrics?format=text", method="HEAD", headers={"X-Request-ID": "j"})
    line = json.loads([line for line in service.text().splitlines() if '"j"' in line][0])
    assert (line["event.dataset"], line["http.response.body.bytes"], line["url.query"]) == ("metrics_service.access", 0, "format=text")
    assert (line["http.response.status_code"], line["http.request.method"]) == (200, "HEAD")
    assert isinstance(line["event.duration"], int) and 1000 < line["event.duration"] < DEADLINE * 1e9


def test_without_the_setting_there_are_none(launch, database):
    service = launch(database, log_level="debug")
    service.get("/livez")
    assert " request " not in service.text()


HOSTILE = [b"\x1b[31m", b"\xe2\x80\xa8", b"\xc2\x85", b"\xff\xfe", b"x" * 8000, b'" level=ERROR x="', b"\\n", b"{}", b"\t"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_header_or_target_makes_a_second_line_or_one_that_cannot_be_read(launch, database, form):
    service = launch(database, access_log="on", log_format=form)
    before = len(service.text().split("\n"))
    for evil in HOSTILE:
        for data in (b"GET /livez HTTP/1.1\r\nHost: a\r\nUser-Agent: %s\r\n\r\n", b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n",
                     b"GET /?%s HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: a\r\n%s: x\r\n\r\n"):
            raw(service, data % evil)
    lines = service.output.read_bytes().decode().split("\n")
    assert len(lines) == before + 4 * len(HOSTILE) and all(line.isprintable() and len(line) <= 16000 for line in lines)
    assert not [line for line in lines if " ERROR " in line[:40]]
    if form == "json":
        assert {json.loads(line)["event.action"] for line in lines[:-1]} == {"service_started", "request"}


def test_the_pattern_of_an_id_lets_nothing_through_that_a_line_or_a_header_would_have_to_quote():
    taken = {chr(code) for code in range(0x3000) if messages.REQUEST_ID.fullmatch(chr(code))}
    assert "".join(sorted(taken)) == "".join(sorted("+-./:=@_" + "".join(filter(str.isalnum, map(chr, range(128))))))


def test_each_request_of_a_kept_connection_has_an_id_of_its_own(service):
    connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
    names = []
    for headers in ({}, {"X-Request-ID": "mine"}, {}):
        connection.request("GET", "/livez", headers=headers)
        response = connection.getresponse()
        response.read()
        names.append(response.headers["X-Request-ID"])
    connection.close()
    assert names[1] == "mine" and len(set(names)) == 3
