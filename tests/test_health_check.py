"""The check against real sockets: a fake that gives the service's answers or any fault, and the service itself."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
import time

import pytest

import health_check
from conftest import ROOT, make_database, turn_second, wait_for

INSTANCE = "17cd4c16867b41eea00119330148b8fd"


def moment(offset=0):
    return health_check.stamp(time.time() + offset) + "Z"


def metrics(**changes):
    """A document of /metrics; changes are given as block__name=value."""
    document = {
        "service": {"name": "metrics_service", "version": "0.1.0", "instance": INSTANCE, "started_at": moment(-3600),
                    "uptime_seconds": 3600.5, "pid": 1},
        "generated_at": moment(), "stale": None,
        "shipments": {"total": 3, "open": 2, "overdue": 1, "by_status": {"pending": 2, "delivered": 1}},
        "delivery": {"delivered": 1, "evaluated": 0, "on_time": 0, "late": 0, "on_time_rate": None,
                     "transit_seconds": {"mean": None, "p50": None, "p95": None}},
        "by_carrier": [], "by_mode": [], "daily": [],
        "database": {"newest_change_age_seconds": 5, "future_changes": 0,
                     "query_seconds": {"last_5_minutes": {"count": 20, "p95": 0.001}}},
        "requests": {"total": 1, "latency_seconds": {"last_5_minutes": {"by_route": {"/metrics": {"count": 20, "p95": 0.004}}}}},
        "logging": {"target": "stdout", "path": None, "fallback": False, "reason": None, "errors_total": 0,
                    "last_error_at": None, "last_recovery_at": None},
    }
    for name, value in changes.items():
        block, _, key = name.partition("__")
        if key:
            document[block][key] = value
        else:
            document[block] = value
    return document


def problem(reason, detail, status=503, **changes):
    whole = metrics(**changes)
    return answer({"title": "Service Unavailable", "status": status, "detail": detail, "reason": reason,
                   "service": whole["service"], "logging": whole["logging"]}, status)


def readyz(status="pass", **entries):
    """A health+json document; entries are given as component__measurement=entry."""
    checks = {"database:shipments": [{"status": "pass", "observedValue": 3, "observedUnit": "shipments"}]}
    checks.update((name.replace("__", ":"), [entry]) for name, entry in entries.items())
    return answer({"status": status, "serviceId": "metrics_service", "checks": checks}, 503 if status == "fail" else 200)


def answer(body, status=200, headers=""):
    """The bytes of an HTTP answer; body is bytes, or a document that becomes JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n" % (status, len(body), headers)
    return head.encode() + body


def healthy(**paths):
    """The answers of a service in good health, or others for the paths given by their names."""
    livez = answer({"service": "metrics_service", "instance": INSTANCE})
    return dict({"livez": livez, "metrics": answer(metrics()), "readyz": readyz()}, **paths)


class Fake:
    """A server on a free port. answers: path to bytes, or to a function of the connection, or one of these for every path."""

    def __init__(self, answers, context=None):
        self.answers, self.context, self.requests = answers, context, []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port = self.listener.getsockname()[1]
        self.url = "http%s://127.0.0.1:%d" % ("s" if context else "", self.port)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            request = connection.recv(65536).decode()
            self.requests.append(request)
            path = request.split()[1].rpartition("/")[2]
            what = self.answers.get(path, answer(b"", 404)) if isinstance(self.answers, dict) else self.answers
            what(connection) if callable(what) else connection.sendall(what)
        except (OSError, IndexError, UnicodeError):
            pass  # the check went away, or speaks TLS
        finally:
            connection.close()


@pytest.fixture
def fake():
    """Starts fakes: fake(answers) -> Fake."""
    fakes = []

    def start(answers, **options):
        fakes.append(Fake(answers, **options))
        return fakes[-1]
    yield start
    for one in fakes:
        with contextlib.suppress(OSError):      # closed by its test
            one.listener.shutdown(socket.SHUT_RDWR)     # ends its thread, which a close alone would leave in accept
        one.listener.close()


@pytest.fixture
def check(capsys):
    """Runs the check: check(url, *arguments) -> (exit code, {name: (status, reason, summary)})."""
    def run(url, *arguments):
        code = health_check.main(["--url", url, "--format", "json"] + list(arguments))
        report = json.loads(capsys.readouterr().out)
        assert report["exit"] == code
        return code, {one["name"]: (one["status"], one["reason"], one["summary"]) for one in report["checks"]}
    return run


@pytest.fixture
def text(capsys):
    """Runs the check: text(*arguments) -> (exit code, what it printed)."""
    def run(*arguments):
        return health_check.main(list(arguments)), capsys.readouterr().out
    return run


def verdict(check, server, name, *arguments):
    """(status, reason) of one check."""
    return check(server.url, *arguments)[1][name][:2]


def trickle(start):
    """A connection that gets start, then one byte per 50 ms without end."""
    def serve(connection):
        connection.sendall(start)
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)
    return serve


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hold(connection):
    connection.recv(1)  # until the check goes away


# The verdict and its forms

def test_a_service_in_good_health_gets_ok_everywhere_and_exit_0(fake, text):
    server = fake(healthy())
    code, output = text("--url", server.url)
    lines = output.splitlines()
    assert code == 0
    assert lines[:4] == ["metrics_service OK: 5 checks (%s)" % server.url,
                         "  ok  reachable  instance %s at 127.0.0.1 port %d" % (INSTANCE, server.port),
                         "  ok  metrics    3 shipments, 2 open, 1 overdue",
                         "  ok  database   3 shipments counted"]
    assert [line.split()[1] for line in lines[4:]] == ["latency", "log"]


def test_the_first_line_names_the_cause_and_each_trouble_its_place_in_the_runbook(fake, text):
    trouble = {"status": "fail", "reason": "locked", "output": "a writer holds the lock"}
    broken = {"metrics": problem("locked", "a writer holds the lock"), "readyz": readyz("fail", database__shipments=trouble)}
    server = fake(healthy(**broken))
    code, output = text("--url", server.url)
    lines = output.splitlines()
    assert code == 1
    assert lines[0] == "metrics_service FAILING: database locked: a writer holds the lock (%s)" % server.url
    assert lines[2] == "  failing  metrics    locked: a writer holds the lock  docs/runbook.md#locked"
    assert lines[3] == "  failing  database   locked: a writer holds the lock  docs/runbook.md#locked"


def test_json_has_exactly_this_shape(fake, capsys):
    server = fake(healthy())
    assert health_check.main(["--url", server.url, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["verdict", "exit", "url", "instance", "checked_at", "seconds", "checks", "trends"]
    assert (report["verdict"], report["exit"], report["url"], report["instance"]) == ("ok", 0, server.url, INSTANCE)
    assert [list(one) for one in report["checks"]] == [["name", "status", "reason", "summary", "seconds"]] * 5
    assert [one["name"] for one in report["checks"]] == ["reachable", "metrics", "database", "latency", "log"]
    assert report["trends"] == []       # nobody asked


def test_quiet_says_nothing_while_all_is_ok(fake, text):
    assert text("--url", fake(healthy()).url, "--quiet") == (0, "")


def test_quiet_still_tells_of_a_warning(fake, text):
    server = fake(healthy(metrics=answer(metrics(stale={"reason": "locked", "age_seconds": 4.2}))))
    code, output = text("--url", server.url, "--quiet")
    assert (code, output.splitlines()[0]) == (
        0, "metrics_service WARNING: metrics stale: figures are 4.2 s old: locked (%s)" % server.url)


@pytest.mark.parametrize("arguments", [
    ["--nonsense"], ["stray"], ["--quiet=1"], ["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "soon"],
    ["--format", "yaml"], ["--url", "ftp://x"], ["--url", "http://user:secret@127.0.0.1"], ["--url", "http://127.0.0.1:99999"],
    ["--credentials", "/nonexistent"], ["--ca-file", "/nonexistent"]])
def test_wrong_arguments_end_with_1_and_one_clear_line(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        health_check.main(arguments)
    output, errors = capsys.readouterr()
    assert leaving.value.code == 1 and output == ""
    assert errors.endswith("See --help.\n") and len(errors.splitlines()) == 2


def test_a_wrong_variable_is_named(monkeypatch, capsys):
    monkeypatch.setenv("METRICS_CHECK_TIMEOUT", "-3")
    with pytest.raises(SystemExit):
        health_check.main([])
    assert "METRICS_CHECK_TIMEOUT -3: give seconds above 0" in capsys.readouterr().err


def test_every_option_names_its_variable_and_its_default(capsys):
    with pytest.raises(SystemExit) as leaving:
        health_check.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert leaving.value.code == 0
    for option in health_check.OPTIONS:
        assert "METRICS_CHECK_" + option.name.upper() + ")" in words
        assert not option.default or "(default %s," % option.default in words


def test_an_argument_wins_over_its_variable(fake, text, monkeypatch):
    monkeypatch.setenv("METRICS_CHECK_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("METRICS_CHECK_QUIET", "1")
    assert text("--url", fake(healthy()).url) == (0, "")


def test_a_fault_of_the_check_itself_is_one_line_and_never_a_good_verdict(monkeypatch, capsys):
    monkeypatch.setattr(health_check, "run_checks", lambda settings: 1 / 0)
    assert health_check.main([]) == 1
    output, errors = capsys.readouterr()
    assert (output, errors) == ("", "health_check: could not tell: ZeroDivisionError('division by zero')\n")


def test_a_copy_alone_under_an_empty_environment_does_the_same(fake, tmp_path):
    copy = shutil.copy(str(ROOT / "health_check.py"), str(tmp_path))
    server = fake(healthy(metrics=problem("locked", "écrivain \x1b[31m actif")))
    done = subprocess.run(["env", "-i", "PYTHONIOENCODING=ascii", sys.executable, copy, "--url", server.url],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/")
    assert done.returncode == 1
    assert b"  failing  metrics    locked: \\xe9crivain  [31m actif  docs/runbook.md#locked\n" in done.stdout


# What answers, and how

@pytest.mark.parametrize("behaviour, reason", [
    (lambda connection: None, "closed"),
    (reset, "reset"),
    (hold, "silent"),
    (b"SSH-2.0-OpenSSH_8.4\r\n", "malformed"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "closed"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", "closed"),
    (b"HTTP/1.1 200 OK\r\nContent-Len", "closed"),
    (answer(b"OK"), "identity"),
    (answer(b"<html>"), "identity"),
    (answer({"service": "another", "instance": "1"}), "identity"),
    (answer(b"", 404), "http_status"),
    (answer(b"", 401), "credentials"),
    (trickle(b""), "too_slow"),
    (trickle(b"HTTP/1.1 200 OK\r\nX-Long: "), "too_slow"),
    (trickle(b"HTTP/1.1 200 OK\r\n\r\n"), "too_slow"),
])
def test_each_way_of_not_answering_has_its_own_word(fake, check, behaviour, reason):
    code, checks = check(fake(behaviour).url, "--timeout", "0.4")
    assert code == 1
    assert checks["reachable"][:2] == ("failing", reason)
    assert [checks[name] for name in ("metrics", "database", "latency")] == [("unknown", None, "not reachable")] * 3


def test_a_port_where_nobody_listens_is_refused(fake, check):
    server = fake(healthy())
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    assert check(server.url)[1]["reachable"] == (
        "failing", "refused", "GET /livez at 127.0.0.1 port %d: nothing listens there" % server.port)


def test_a_name_without_an_address_is_unresolved(check):
    status, reason, summary = check("http://nowhere.invalid:8321", "--timeout", "5")[1]["reachable"]
    assert (status, "nowhere.invalid" in summary) == ("failing", True) and reason in ("unresolved", "timeout")


def test_a_name_look_up_cannot_hold_the_check(check, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: release.wait(30))
    summary = check("http://slow.example:8321", "--timeout", "0.2")[1]["reachable"]
    release.set()
    assert summary[:2] == ("failing", "timeout")
    assert summary[2].startswith("GET /livez at slow.example:8321: the name look-up has no result; gave up after 0.2")


def test_a_redirect_is_reported_and_not_followed(fake, check):
    server = fake(answer(b"", 302, "Location: http://127.0.0.1:1/\r\n"))
    summary = check(server.url)[1]["reachable"][2]
    assert summary.endswith("302 Whatever to http://127.0.0.1:1/, not followed") and len(server.requests) == 1


def test_what_the_slow_one_used_up_is_not_asked_of_the_next(fake, check):
    code, checks = check(fake(healthy(metrics=trickle(b"HTTP/1.1 200 OK\r\n\r\n"))).url, "--timeout", "0.4")
    assert checks["metrics"][:2] == ("failing", "too_slow")
    assert checks["database"] == ("unknown", None, "nothing is left of the 0.4 s for all checks")


def test_a_proxy_of_the_environment_is_not_asked_for_this_host(fake, check, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert check(fake(healthy()).url)[0] == 0


def test_another_host_is_asked_through_the_proxy_which_the_line_names(fake, check, monkeypatch):
    proxy = fake(healthy())
    monkeypatch.setenv("http_proxy", proxy.url)
    code, checks = check("http://service.example:8321")
    assert (code, checks["reachable"][2]) == (0, "instance %s at the proxy 127.0.0.1 port %d" % (INSTANCE, proxy.port))
    assert proxy.requests[0].startswith("GET http://service.example:8321/livez HTTP/1.1\r\nHost: service.example:8321\r\n")


def test_a_dead_proxy_is_the_reason(check, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert check("http://service.example:8321")[1]["reachable"] == (
        "failing", "proxy", "GET /livez at the proxy 127.0.0.1 port 1: nothing listens there")


def test_a_proxy_that_opens_no_way_is_the_reason(fake, check, monkeypatch):
    monkeypatch.setenv("https_proxy", fake(answer(b"", 403)).url)
    status, reason, summary = check("https://service.example")[1]["reachable"]
    assert (status, reason) == ("failing", "proxy") and "403" in summary


def test_requests_say_who_sends_them(fake, check):
    server = fake(healthy())
    check(server.url)
    assert [request.split()[1] for request in server.requests] == ["/livez", "/metrics", "/readyz"]
    assert all("\r\nUser-Agent: health_check/0.1.0\r\n" in request for request in server.requests)


# Credentials and TLS

def test_credentials_go_to_the_service_and_not_to_whoever_has_the_port(fake, check, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("ops:pässword\n", encoding="utf-8")
    secret.chmod(0o600)
    server = fake(healthy())
    assert check(server.url, "--credentials", str(secret))[0] == 0
    sent = ["Authorization: Basic b3BzOnDDpHNzd29yZA==" in request for request in server.requests]
    assert sent == [False, True, True]


def test_credentials_that_others_can_read_are_refused(tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_text("ops:password\n")
    secret.chmod(0o640)
    with pytest.raises(SystemExit) as leaving:
        health_check.main(["--credentials", str(secret)])
    assert leaving.value.code == 1 and "chmod 600" in capsys.readouterr().err


def test_missing_and_wrong_credentials_are_told_apart_from_a_dead_service(fake, check, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("ops:password\n")
    secret.chmod(0o600)
    server = fake(healthy(metrics=answer(b"", 401), readyz=answer({"status": "pass"})))
    checks = check(server.url)[1]
    place = "GET /metrics at 127.0.0.1 port %d" % server.port
    assert checks["metrics"][1:] == ("credentials", place + ": 401 Whatever: it wants --credentials")
    assert checks["database"][:2] == ("unknown", "credentials")
    assert checks["log"] == ("unknown", None, "/metrics does not tell")
    assert check(server.url, "--credentials", str(secret))[1]["metrics"][2].endswith("wrong user or password")
    server = fake(healthy(metrics=problem("credentials", "wait", 429), readyz=answer({"status": "pass"})))
    status, reason, summary = check(server.url, "--credentials", str(secret))[1]["metrics"]
    assert (status, reason) == ("failing", "credentials") and "wrong passwords came too often" in summary


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Makes self-signed pairs for localhost: certificate(days) -> (file, server context)."""
    folder = tmp_path_factory.mktemp("tls")
    key, request = str(folder / "key.pem"), str(folder / "request.pem")
    names = folder / "names"
    names.write_text("[req]\ndistinguished_name=dn\n[dn]\n[v3]\nsubjectAltName=DNS:localhost\n")

    def openssl(*words):
        subprocess.run(("openssl",) + words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", "/CN=localhost",
            "-config", str(names))

    def make(days):
        file = str(folder / ("%d.pem" % days))
        openssl("x509", "-req", "-in", request, "-signkey", key, "-days", str(days), "-extfile", str(names), "-extensions", "v3",
                "-out", file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, key)
        return file, context
    return make


def secure(server):
    return server.url.replace("127.0.0.1", "localhost")


def test_https_is_verified_against_the_given_authorities(fake, check, certificate):
    file, context = certificate(90)
    assert check(secure(fake(healthy(), context=context)), "--ca-file", file)[0] == 0


@pytest.mark.parametrize("days, trusted, host, words", [
    (-1, True, "localhost", "expired"), (90, False, "localhost", "self"), (90, True, "127.0.0.1", "127.0.0.1")])
def test_a_certificate_is_refused_for_what_is_wrong_with_it(fake, check, certificate, days, trusted, host, words):
    file, context = certificate(days)
    url = fake(healthy(), context=context).url.replace("127.0.0.1", host)
    status, reason, summary = check(url, *(["--ca-file", file] if trusted else []))[1]["reachable"]
    assert (status, reason) == ("failing", "certificate")
    assert words in summary or sys.version_info < (3, 7)


def test_a_certificate_that_ends_soon_is_a_warning(fake, check, certificate):
    file, context = certificate(3)
    code, checks = check(secure(fake(healthy(), context=context)), "--ca-file", file)
    assert (code, checks["reachable"][:2]) == (0, ("warning", "certificate"))


def test_https_to_a_port_without_tls_is_no_matter_of_certificates(fake, check):
    assert check(fake(answer(b"OK")).url.replace("http", "https"))[1]["reachable"][1] == "tls"


def test_an_unanswered_tls_handshake_is_silence(check):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        checks = check("https://127.0.0.1:%d" % listener.getsockname()[1], "--timeout", "0.3")[1]
    assert checks["reachable"][1] == "silent" and "TLS handshake" in checks["reachable"][2]


# What /metrics and /readyz say

@pytest.mark.parametrize("body", [
    b"<html>", b"[]", b"{", b"\xff", b"[" * 200000, json.dumps(metrics())[:-1].encode(),
    json.dumps(metrics(service__uptime_seconds=float("nan"))).encode(), json.dumps(metrics()).replace("3600.5", "1e999").encode(),
    json.dumps(metrics(shipments__total=True)).encode(), json.dumps(metrics(daily=None)).encode(),
    json.dumps(metrics(logging={})).encode(), b"[" + b"9" * 10 ** 6 + b"]",
    json.dumps(metrics()).encode() + b" " * health_check.BODY_LIMIT])
def test_an_answer_that_is_not_the_whole_well_formed_document_is_malformed(fake, check, body):
    assert verdict(check, fake(healthy(metrics=answer(body))), "metrics") == ("failing", "malformed")


def test_what_is_missing_is_named(fake, check):
    document = metrics()
    del document["delivery"]["on_time_rate"], document["daily"]
    checks = check(fake(healthy(metrics=answer(document))).url)[1]
    assert checks["metrics"][2] == "GET /metrics: missing, or of another type: daily, delivery.on_time_rate"


def test_two_instances_behind_one_address_are_no_service(fake, check):
    server = fake(healthy(metrics=answer(metrics(service__instance="0" * 32))))
    assert verdict(check, server, "metrics") == ("failing", "identity")


def test_a_restart_between_two_requests_is_no_failure(fake, check):
    old, new = healthy(), answer({"service": "metrics_service", "instance": "2" * 32})

    def livez(connection):
        connection.sendall(old["livez"] if len(server.requests) == 1 else new)
    server = fake(healthy(livez=livez, metrics=answer(metrics(service__instance="2" * 32))))
    assert check(server.url)[0] == 0


def test_a_problem_is_told_in_the_words_of_the_service(fake, check):
    server = fake(healthy(metrics=problem("schema_mismatch", "column shipments.carrier is missing", 500)))
    assert check(server.url)[1]["metrics"] == ("failing", "schema_mismatch", "column shipments.carrier is missing")


def test_a_503_of_something_in_between_is_no_word_of_the_service(fake, check):
    assert verdict(check, fake(healthy(metrics=answer(b"<html>", 503))), "metrics") == ("failing", "http_status")


def test_figures_that_disagree_prove_nothing(fake, check):
    server = fake(healthy(metrics=answer(metrics(shipments__total=4))))
    assert check(server.url)[1]["database"] == ("failing", "inconsistent", "3 shipments by status, 4 in total")


def test_figures_of_another_time_than_the_services_clock_are_inconsistent(fake, check):
    server = fake(healthy(metrics=answer(metrics(generated_at=moment(-300)))))
    assert verdict(check, server, "database") == ("failing", "inconsistent")


def test_the_age_of_figures_that_are_said_to_be_stale_is_told_once(fake, check):
    server = fake(healthy(metrics=answer(metrics(generated_at=moment(-300), stale={"reason": "locked", "age_seconds": 300}))))
    checks = check(server.url)[1]
    assert (checks["metrics"][:2], checks["database"][0]) == (("warning", "stale"), "ok")


def test_a_clock_that_is_wrong_on_the_service_host_alone_does_not_matter(fake, check):
    date = "Date: Mon, 01 Jan 2024 00:01:00 GMT\r\n"
    answers = healthy(metrics=answer(metrics(generated_at="2024-01-01T00:00:59Z"), headers=date))
    answers["readyz"] = answers["readyz"].replace(b"Connection", date.encode() + b"Connection")
    assert check(fake(answers).url)[0] == 0


@pytest.mark.parametrize("body", [
    readyz(database__shipments={"status": "pass"}), readyz(database__shipments={"status": "pass", "observedValue": "3"}),
    answer({"status": "pass", "checks": {}}), answer({"status": "pass", "checks": []}), answer({"status": "up"}), answer({})])
def test_readiness_without_a_count_of_shipments_is_no_proof(fake, check, body):
    assert verdict(check, fake(healthy(readyz=body)), "database") == ("failing", "malformed")


def test_a_warning_of_readyz_is_passed_on(fake, check):
    entry = {"status": "warn", "reason": "schema_mismatch", "output": "index shipments_due is missing"}
    code, checks = check(fake(healthy(readyz=readyz("warn", database__schema=entry))).url)
    assert (code, checks["database"]) == (0, ("warning", "schema_mismatch", "index shipments_due is missing"))


RUNNING = "migration running: from version 3 to 4"
MIGRATING = {"reason": "migrating", "output": RUNNING}
OLD = {"reason": "migrating", "output": "database /a.db: " + RUNNING, "observedValue": 3}


def test_figures_that_bridge_a_migration_are_a_warning_with_its_note_told_once(fake, check):
    stale = {"reason": "migrating", "age_seconds": 4000.5, "detail": "database /a.db: " + RUNNING}
    entries = {"database__shipments": dict(OLD, status="warn"), "database__schema": dict(MIGRATING, status="warn")}
    code, checks = check(fake(healthy(
        metrics=answer(metrics(stale=stale, generated_at=moment(-4000))), readyz=readyz("warn", **entries))).url)
    assert (code, checks["metrics"]) == (0, ("warning", "stale", "figures are 4000.5 s old: migrating"))
    assert checks["database"] == ("warning", "migrating", "database /a.db: " + RUNNING)


def test_a_migration_that_hinders_nobody_is_a_warning_too(fake, check):
    code, checks = check(fake(healthy(readyz=readyz("warn", database__schema=dict(MIGRATING, status="warn")))).url)
    assert (code, checks["metrics"][0], checks["database"]) == (0, "ok", ("warning", "migrating", RUNNING))


def test_a_migration_without_figures_is_a_failure(fake, check):
    entries = {"database__shipments": dict(OLD, status="fail"), "database__schema": dict(MIGRATING, status="warn")}
    code, checks = check(fake(healthy(
        metrics=problem("migrating", "database /a.db: " + RUNNING), readyz=readyz("fail", **entries))).url)
    assert code == 1
    assert checks["metrics"] == checks["database"] == ("failing", "migrating", "database /a.db: " + RUNNING)


def test_what_readyz_says_of_the_log_is_left_to_the_check_of_the_log(fake, check):
    body = readyz("warn", log__target={"status": "warn", "reason": "denied", "output": "logs to stdout"})
    assert verdict(check, fake(healthy(readyz=body)), "database") == ("ok", None)


def test_readiness_can_fail_without_a_reason(fake, check):
    assert verdict(check, fake(healthy(readyz=answer({"status": "fail"}, 503))), "database") == ("failing", "not_ready")


def test_a_slow_request_fails_the_latency_alone(fake, check):
    answers = healthy()

    def late(connection):
        time.sleep(0.3)
        connection.sendall(answers["metrics"])
    code, checks = check(fake(healthy(metrics=late)).url, "--max-latency", "0.25")
    assert [name for name, found in checks.items() if found[0] != "ok"] == ["latency"]
    assert (code, checks["latency"][1]) == (1, "too_slow") and "/metrics" in checks["latency"][2]


@pytest.mark.parametrize("age, future, expected", [
    (5, 0, ("ok", None)), (61, 0, ("failing", "frozen")), (None, 0, ("unknown", None)), (5, 1, ("warning", "future_changes"))])
def test_freshness_is_the_age_of_the_newest_change(fake, check, age, future, expected):
    document = metrics(database__newest_change_age_seconds=age, database__future_changes=future)
    assert verdict(check, fake(healthy(metrics=answer(document))), "fresh", "--max-age", "60") == expected


def routes(**blocks):
    """The block of requests with these routes of the last five minutes, given as (count, p95)."""
    blocks = {"/" + name: {"count": count, "p95": p95} for name, (count, p95) in blocks.items()}
    return {"total": 1, "latency_seconds": {"last_5_minutes": {"by_route": blocks}}}


def queries(count, p95):
    return {"last_5_minutes": {"count": count, "p95": p95}}


@pytest.mark.parametrize("blocks, expected", [
    (dict(metrics=(20, 0.5)), ("ok", None, "0.500 s for /metrics, 20 in five minutes, limit 0.5 s")),
    (dict(metrics=(20, 0.501)), ("failing", "slow_answers", "0.501 s for /metrics, 20 in five minutes, limit 0.5 s")),
    (dict(livez=(9000, 0.001), metrics=(31, 2)),
     ("failing", "slow_answers", "2.000 s for /metrics, 31 in five minutes, limit 0.5 s")),
    (dict(livez=(9000, 0.001), metrics=(19, 2.0)), ("ok", None, "0.001 s for /livez, 9000 in five minutes, limit 0.5 s")),
    (dict(metrics=(19, 2.0), readyz=(3, 9.0)), ("ok", None, "not enough data: 19 in five minutes, it takes 20")),
    ({}, ("ok", None, "not enough data: 0 in five minutes, it takes 20"))])
def test_the_slowest_route_with_enough_requests_is_judged(fake, check, blocks, expected):
    code, checks = check(fake(healthy(metrics=answer(metrics(requests=routes(**blocks))))).url, "--max-p95", "0.5")
    assert checks["p95"] == expected and code == (expected[0] == "failing")
    assert "query_p95" not in checks


@pytest.mark.parametrize("count, p95, expected", [
    (20, 0.1, ("ok", None, "0.100 s for queries, 20 in five minutes, limit 0.1 s")),
    (20, 0.2, ("failing", "slow_queries", "0.200 s for queries, 20 in five minutes, limit 0.1 s")),
    (19, 0.2, ("ok", None, "not enough data: 19 in five minutes, it takes 20")),
    (0, None, ("ok", None, "not enough data: 0 in five minutes, it takes 20"))])
def test_the_queries_are_judged_by_a_limit_of_their_own(fake, check, count, p95, expected):
    document = metrics(database__query_seconds=queries(count, p95))
    code, checks = check(fake(healthy(metrics=answer(document))).url, "--max-query-p95", "0.1")
    assert checks["query_p95"] == expected and code == (expected[0] == "failing")
    assert "p95" not in checks


@pytest.mark.parametrize("older", [{"total": 1}, {"total": 1, "latency_seconds": {"count": 9, "p95": 0.1}}])
def test_a_service_that_does_not_tell_percentiles_yet_is_told_apart(fake, check, older):
    document = metrics(requests=older, database__query_seconds={"last": 0.1}, service__version="0.0.9")
    url = fake(healthy(metrics=answer(document))).url
    code, checks = check(url, "--max-p95", "1", "--max-query-p95", "1")
    assert code == 1 and checks["metrics"][0] == "ok"
    told = "release 0.0.9 of the service does not tell it, a later one does"
    assert checks["p95"] == checks["query_p95"] == ("unknown", None, told)
    assert check(url)[0] == 0


@pytest.mark.parametrize("blocks", [
    [], None, "fast", {"/metrics": None}, {"/metrics": {"count": 20}}, {"/metrics": {"count": True, "p95": 1.0}},
    {"/metrics": {"count": 20, "p95": "1"}}, {"/metrics": {"count": 20.5, "p95": 1.0}}, {"/metrics": [20, 1.0]}])
def test_percentiles_that_are_none_are_malformed_where_somebody_asks_for_them(fake, check, blocks):
    document = metrics(requests={"total": 1, "latency_seconds": {"last_5_minutes": {"by_route": blocks}}})
    url = fake(healthy(metrics=answer(document))).url
    assert check(url, "--max-p95", "1")[1]["p95"][:2] == ("failing", "malformed")
    assert check(url)[0] == 0


def test_without_figures_percentiles_cannot_be_told(fake, check):
    url = fake(healthy(metrics=problem("locked", "a writer holds it"))).url
    assert check(url, "--max-p95", "1")[1]["p95"] == ("unknown", None, "no figures from /metrics")


def test_the_percentiles_of_a_real_service_are_judged(launch, database, check):
    service = launch(database)
    limits = "--max-p95", "30", "--max-query-p95", "30"
    checks = check(service.url, *limits)[1]
    assert checks["p95"][:2] == ("ok", None) and "not enough data: " in checks["p95"][2]
    for _ in range(health_check.P95_COUNT):
        service.get("/metrics")
    turn_second()
    assert " in five minutes, limit 30 s" in check(service.url, *limits)[1]["p95"][2]
    code, checks = check(service.url, "--max-p95", "0.000001")
    assert (code, checks["p95"][:2]) == (1, ("failing", "slow_answers"))


# The log

def text_line(offset, level, words):
    return "%s.123Z %s %s" % (moment(offset)[:-1], level, words)


def json_line(offset, level, words):
    return json.dumps({"@timestamp": moment(offset)[:-1] + ".123Z", "log.level": level.lower(), "message": words,
                       "ecs.version": "8.11", "service.name": "metrics_service", "event.action": words.split()[0]})


@pytest.fixture(params=[text_line, json_line])
def judge_log(request, fake, check, tmp_path):
    """The (status, reason) of log lines given as (offset in seconds, level, words); other text is given as it stands."""
    path = tmp_path / "service.log"
    changes = {"logging__target": "file", "logging__path": str(path)}

    def run(*lines, rotated=(), **more):
        for file, content in ((path, lines), (tmp_path / "service.log.1", rotated)):
            file.write_text("".join((one if isinstance(one, str) else request.param(*one)) + "\n" for one in content))
        server = fake(healthy(metrics=answer(metrics(**dict(changes, **more)))))
        return verdict(check, server, "log", "--log-file", str(path))
    return run


STARTED = (-30, "INFO", "service_started instance=%s" % INSTANCE)
LOCKED = (-20, "ERROR", 'database_unavailable reason=locked detail="a writer holds the lock"')
RECOVERED = (-10, "INFO", "database_recovered reason=locked")
CRASHED = (-20, "ERROR", "request_failed method=GET path=/ user_agent=curl/8.5 error=KeyError")
OWN = (-20, "ERROR", 'request_failed method=GET path="/x y" user_agent=health_check/0.1.0 error=KeyError')
FORGED = (-20, "ERROR", 'request_failed path="/ user_agent=health_check/0.1.0" user_agent=curl/8.5')


@pytest.mark.parametrize("lines, expected", [
    ([], ("ok", None)),
    ([STARTED], ("ok", None)),
    ([STARTED, LOCKED], ("failing", "log_errors")),
    ([STARTED, LOCKED, RECOVERED], ("warning", "recovered")),
    ([STARTED, RECOVERED, (-5,) + LOCKED[1:]], ("failing", "log_errors")),
    ([STARTED, CRASHED, RECOVERED], ("failing", "log_errors")),
    ([STARTED, OWN], ("ok", None)),
    ([STARTED, FORGED], ("failing", "log_errors")),
    ([(-700,) + CRASHED[1:], STARTED], ("ok", None)),
    ([STARTED, (900,) + CRASHED[1:]], ("failing", "log_errors")),
    ([STARTED, "Traceback (most recent call last):", "ERROR of another program", "{broken"], ("ok", None)),
    (["Jan  1 00:00:00 host kernel: ERROR"], ("unknown", "malformed")),
])
def test_errors_in_the_file_count_by_time_cause_and_what_followed(judge_log, lines, expected):
    assert judge_log(*lines) == expected


def test_errors_of_the_run_before_do_not_count(judge_log):
    assert judge_log(CRASHED, STARTED, service__started_at=moment(-15)) == ("ok", None)


def test_last_words_of_the_run_before_do_not_count_though_this_one_waited_for_its_end_already(judge_log):
    stopped = (-12, "INFO", "service_stopped uptime=13.6 abandoned=0")
    started = (-12, "INFO", "service_started instance=%s" % INSTANCE)
    before = [(-14, "INFO", "service_started instance=other"), (-13,) + CRASHED[1:], stopped]
    assert judge_log(*before, started, service__started_at=moment(-15)) == ("ok", None)
    assert judge_log(*before, (-12,) + CRASHED[1:], started, service__started_at=moment(-15)) == ("failing", "log_errors")
    assert judge_log(*before[:2], started, service__started_at=moment(-15)) == ("failing", "log_errors")


def test_the_rotated_predecessor_is_read_when_the_file_begins_within_the_window(judge_log):
    assert judge_log(rotated=[(-900, "INFO", "service_started"), CRASHED]) == ("failing", "log_errors")


def test_the_rotated_predecessor_is_left_alone_when_the_file_reaches_back_far_enough(judge_log):
    assert judge_log((-900, "INFO", "service_started"), rotated=[CRASHED]) == ("ok", None)


def test_what_the_tail_of_a_huge_log_does_not_reach_is_judged_by_the_service(judge_log):
    flood = [(-5, "INFO", "x" * 1000)] * 300
    assert judge_log(CRASHED, *flood) == ("ok", None)
    assert judge_log(CRASHED, *flood, logging__last_error_at=moment(-20), logging__errors_total=1) == ("failing", "log_errors")


def test_a_log_that_fell_back_to_stdout_is_a_warning_and_the_silent_file_no_proof(judge_log):
    fallback = {"logging__target": "stdout", "logging__fallback": True, "logging__reason": "denied"}
    assert judge_log(STARTED, **fallback) == ("warning", "denied")
    assert judge_log(STARTED, logging__last_error_at=moment(-20), **fallback) == ("failing", "log_errors")


def test_a_file_that_the_service_does_not_write_to_is_a_warning(judge_log):
    assert judge_log(STARTED, logging__target="stdout", logging__path=None) == ("warning", "other_log")


@pytest.mark.parametrize("make, reason", [
    (lambda path: None, "missing"), (lambda path: path.mkdir(), "not_a_file"), (lambda path: os.mkfifo(str(path)), "timeout")])
def test_a_file_that_cannot_be_read_cannot_tell(fake, check, tmp_path, make, reason):
    path = tmp_path / "service.log"
    make(path)
    server = fake(healthy(metrics=answer(metrics(logging__target="file", logging__path=str(path)))))
    code, checks = check(server.url, "--log-file", str(path), "--timeout", "0.5")
    assert (code, checks["log"][:2]) == (1, ("unknown", reason)) and str(path) in checks["log"][2]


@pytest.mark.parametrize("changes, expected", [
    ({}, ("ok", None)),
    ({"last_error_at": moment(-60)}, ("failing", "log_errors")),
    ({"last_error_at": moment(-60), "last_recovery_at": moment(-30)}, ("warning", "recovered")),
    ({"last_error_at": moment(-60), "last_recovery_at": moment(-90)}, ("failing", "log_errors")),
    ({"last_error_at": moment(-1200)}, ("ok", None)),
    ({"fallback": True, "reason": "disk_full", "path": "/var/log/metrics.log"}, ("warning", "disk_full")),
])
def test_without_a_file_the_services_own_report_is_judged(fake, check, changes, expected):
    document = metrics(**{"logging__" + name: value for name, value in changes.items()})
    assert verdict(check, fake(healthy(metrics=answer(document))), "log") == expected


def test_the_log_is_judged_by_a_problem_document_too(fake, check):
    server = fake(healthy(metrics=problem("locked", "a writer holds the lock", logging__last_error_at=moment(-5))))
    assert verdict(check, server, "log") == ("failing", "log_errors")


def test_a_service_that_is_down_may_have_left_the_reason_in_its_log(check, tmp_path):
    path = tmp_path / "service.log"
    path.write_text(text_line(-5, "ERROR", "start_failed reason=port_in_use") + "\n")
    checks = check("http://127.0.0.1:1", "--log-file", str(path))[1]
    assert checks["log"][:2] == ("failing", "log_errors") and "start_failed reason=port_in_use" in checks["log"][2]
    path.write_text("")
    assert check("http://127.0.0.1:1", "--log-file", str(path))[1]["log"] == ("unknown", None, "/metrics does not tell")


# The service itself

@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_service_itself_is_found_in_good_health(launch, check, tmp_path, log_format):
    log, rows = str(tmp_path / "log"), make_database(tmp_path / "one.db", [{"reference": "A", "status": "pending"}])
    service = launch(rows, log_file=log, log_format=log_format)
    code, checks = check(service.url, "--log-file", log, "--max-age", "60")
    assert code == 0 and {found[0] for found in checks.values()} == {"ok"}
    assert checks["database"][2] == "1 shipments counted"


def test_a_renamed_column_is_a_failure_of_the_database(launch, database, check, tmp_path):
    log = str(tmp_path / "log")
    service = launch(database, log_file=log)
    connection = sqlite3.connect(str(database))
    connection.executescript("ALTER TABLE shipments RENAME COLUMN carrier TO haulier")
    connection.close()
    checks = check(service.url, "--log-file", log)[1]
    assert {name: found[:2] for name, found in checks.items() if found[0] != "ok"} == {
        "metrics": ("failing", "schema_mismatch"), "database": ("failing", "schema_mismatch"), "log": ("failing", "log_errors")}


def test_older_figures_served_during_a_long_write_are_a_warning(launch, database, check):
    service = launch(database, query_timeout="0.2")
    assert check(service.url)[0] == 0
    writer = sqlite3.connect(str(database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    checks = wait_for(lambda: [one for one in [check(service.url)[1]] if one["metrics"][0] != "ok"], "the lock to be felt")[0]
    writer.close()
    assert (checks["metrics"][:2], checks["database"][:2]) == (("warning", "stale"), ("warning", "locked"))


def test_a_missing_log_folder_is_told_as_the_services_fallback(launch, database, check, tmp_path):
    log = str(tmp_path / "nowhere" / "log")
    code, checks = check(launch(database, log_file=log).url, "--log-file", log)
    assert (code, checks["log"][:2]) == (0, ("warning", "missing"))


def test_a_stopped_process_is_silent_and_not_refused(launch, database, check):
    service = launch(database)
    service.process.send_signal(signal.SIGSTOP)
    checks = check(service.url, "--timeout", "0.5")[1]
    assert checks["reachable"][:2] == ("failing", "silent") and "is the process stopped?" in checks["reachable"][2]


def test_a_killed_service_is_refused(launch, database, check):
    service = launch(database)
    service.stop(signal.SIGKILL)
    assert check(service.url)[1]["reachable"][:2] == ("failing", "refused")
