"""Who is let in and what they can trust: passwords and TLS of the running service, with certificates made by openssl."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import pty
import re
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
import time

import pytest

import tls
from conftest import DEADLINE, ROOT, Service, add_rows, make_database, wait_for

COMMAND = [sys.executable, str(ROOT / "metrics_service.py")]
CHECK = [sys.executable, str(ROOT / "health_check.py")]
CHALLENGE = 'Basic realm="metrics_service", charset="UTF-8"'
LOOK = 1.1              # s after which a changed password file must be in force
PATIENCE = 5            # s for an answer while others hang on; their own end would come after 10
DAY = 86400
NOBODY = 65534
GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
CA = """
[ca]
default_ca = own
[own]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = names
x509_extensions = extensions
unique_subject = no
[names]
commonName = supplied
[extensions]
subjectAltName = DNS:localhost, IP:127.0.0.1
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def stamp(seconds):
    """A moment so far from now as openssl reads it."""
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + seconds))


def openssl(folder, *words):
    subprocess.run(("openssl",) + words, cwd=str(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def sign(folder, name, end, key="key.pem"):
    """Makes NAME.pem, a certificate that signs itself."""
    openssl(folder, "req", "-new", "-key", key, "-subj", "/CN=localhost", "-out", "request.pem")
    openssl(folder, "ca", "-batch", "-config", "ca.cnf", "-selfsign", "-keyfile", key, "-in", "request.pem", "-notext",
            "-out", name + ".pem", "-rand_serial", "-startdate", "20200101000000Z", "-enddate", end)


def make_keys(folder):
    rsa = ["rsa", "-pkeyopt", "rsa_keygen_bits:2048"]
    elliptic = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    for name, options in (("key.pem", rsa), ("other_key.pem", rsa), ("elliptic_key.pem", elliptic)):
        openssl(folder, "genpkey", "-out", name, "-algorithm", *options)
    openssl(folder, "pkey", "-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "locked_key.pem")
    openssl(folder, "ec", "-in", "elliptic_key.pem", "-aes256", "-passout", "pass:secret", "-out", "old_locked_key.pem")


def make_certificates(folder):
    (folder / "ca.cnf").write_text(CA)
    (folder / "index.txt").write_text("")
    for name, end in (("good", stamp(90 * DAY)), ("soon", stamp(10 * DAY)), ("over", stamp(-10 * DAY)),
                      ("last_of_two_digits", "20491231235959Z"), ("first_of_four_digits", "20500101000000Z")):
        sign(folder, name, end)
    sign(folder, "elliptic", stamp(90 * DAY), "elliptic_key.pem")
    openssl(folder, "x509", "-in", "good.pem", "-trustout", "-out", "trusted.pem")
    openssl(folder, "x509", "-in", "good.pem", "-text", "-out", "text.pem")


@pytest.fixture(scope="session")
def pem(tmp_path_factory):
    """A folder of PEM files: NAME.pem is a certificate, of key.pem where nothing else is said."""
    folder = tmp_path_factory.mktemp("pem")
    make_keys(folder)
    make_certificates(folder)
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "good.pem").read_text())
    (folder / "chain.pem").write_text((folder / "soon.pem").read_text() + (folder / "good.pem").read_text())
    (folder / "garbage.pem").write_bytes(bytes(range(256)))
    (folder / "torn.pem").write_text((folder / "good.pem").read_text()[:500])
    (folder / "damaged_key.pem").write_text((folder / "key.pem").read_text().replace("\nM", "\nA"))
    (folder / "empty.pem").write_text("")
    os.mkfifo(str(folder / "pipe.pem"))
    return folder


def line_of(user, password, iterations=1000):
    """A line of the password file, cheap where a test does not need it to cost anything."""
    salt = os.urandom(16)
    parts = [base64.b64encode(raw).decode() for raw in (salt, hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations))]
    return "%s:pbkdf2_sha256$%d$%s\n" % (user, iterations, "$".join(parts))


def write_secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(("%s:%s" % (user, password)).encode()).decode()}


ANNA, BERT, NOT_ANNA = basic("anna", "letters"), basic("bert", "parcels"), basic("anna", "guess")


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    return write_secret(tmp_path_factory.mktemp("users") / "users", line_of("anna", "letters") + line_of("bert", "parcels"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts services that several tests share: start(**settings) -> Service."""
    services = []

    def starts(**settings):
        folder = tmp_path_factory.mktemp("service")
        services.append(Service(folder, make_database(folder / "shipments.db"), **settings))
        return services[-1].start()
    yield starts
    for service in services:
        service.end()


@pytest.fixture(scope="module")
def guarded(start, users):
    return start(auth_file=users)


@pytest.fixture(scope="module")
def secure(start, pem):
    return start(tls_cert=pem / "good.pem", tls_key=pem / "key.pem")


@pytest.fixture
def try_command(tmp_path, database):
    """Runs the service's command: try_command(*arguments, **settings) -> (exit code, lines of stdout and stderr)."""
    def run(*arguments, **settings):
        service = Service(tmp_path, database, **settings)
        done = subprocess.run(COMMAND + list(arguments), env=service.env, cwd=str(tmp_path), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, universal_newlines=True)
        return done.returncode, done.stdout.splitlines()
    return run


def errors_of(lines):
    return [line for line in lines if line.startswith("error: ")]


# TLS: what is spoken

def connect(service, cafile, timeout=DEADLINE, version=None):
    """A verified TLS connection."""
    context = ssl.create_default_context(cafile=str(cafile))
    if version:
        context.minimum_version = context.maximum_version = version
    return context.wrap_socket(socket.create_connection((service.host, service.port), timeout), server_hostname="localhost")


def read_answer(client, method="GET"):
    response = http.client.HTTPResponse(client, method=method)
    response.begin()
    return response.status, response.read()


def ask(client, path=b"/livez", fields=b""):
    """(status, body) of one request on an open connection."""
    client.sendall(GET % (path, fields))
    return read_answer(client)


@pytest.mark.parametrize("name, key", [("good", "key"), ("elliptic", "elliptic_key")])
def test_tls_1_2_and_1_3_are_spoken_with_keys_of_both_kinds(launch, database, pem, name, key):
    service = launch(database, tls_cert=pem / (name + ".pem"), tls_key=pem / (key + ".pem"))
    assert service.url.startswith("https://127.0.0.1:")
    for version, spoken in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        with connect(service, pem / (name + ".pem"), version=version) as client:
            assert client.version() == spoken and ask(client)[0] == 200


def hello(version):
    """A ClientHello of this version, which offers nothing newer (RFC 5246, 7.4.1.2)."""
    def sized(form, data):
        return struct.pack(form, len(data)) + data
    suites = bytes.fromhex("c02f c030 c013 c014 002f 0035")
    extensions = [(10, sized(">H", b"\0\x17\0\x1d")), (11, b"\1\0"), (13, sized(">H", b"\4\1\5\1\6\1\x08\4\4\3"))]
    block = b"".join(struct.pack(">H", kind) + sized(">H", data) for kind, data in extensions)
    body = struct.pack(">H", version) + os.urandom(32) + b"\0" + sized(">H", suites) + b"\1\0" + sized(">H", block)
    return b"\x16\3\1" + sized(">H", b"\1\0" + sized(">H", body))


ALERT = rb"\x15\x03.\x00\x02\x02[\x28\x46]"    # fatal: handshake_failure or protocol_version (RFC 5246, 7.2)


@pytest.mark.parametrize("version, answer", [(0x0300, ALERT), (0x0301, ALERT), (0x0302, ALERT), (0x0303, rb"\x16\x03\x03")])
def test_what_is_older_than_tls_1_2_is_refused(secure, version, answer):
    with socket.create_connection((secure.host, secure.port), DEADLINE) as client:
        client.sendall(hello(version))
        assert re.match(answer, client.recv(7), re.DOTALL)


def test_one_file_may_hold_certificate_and_key(launch, database, pem):
    service = launch(database, tls_cert=pem / "both.pem")
    with connect(service, pem / "good.pem") as client:
        assert ask(client)[0] == 200


def failures(service):
    return service.get("/metrics")[1]["connections"]["tls_failures_total"]


def test_whoever_is_silent_plain_or_no_sense_disturbs_nobody(secure, pem):
    before = failures(secure)
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection((secure.host, secure.port), PATIENCE)) for _ in range(90)]
        for stranger, data in zip(strangers, [GET % (b"/livez", b""), b"", os.urandom(600).replace(b"\x16", b"\0")] * 30):
            stranger.sendall(data)
        for path in (b"/livez", b"/metrics", b"/readyz"):
            with connect(secure, pem / "good.pem", PATIENCE) as client:
                assert ask(client, path)[0] == 200
        for stranger in strangers[0::3] + strangers[2::3]:
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
        wait_for(lambda: failures(secure) == before + 60, "the failed handshakes to be counted")
    assert "request_failed" not in secure.text()


def test_whoever_speaks_plain_http_is_told_so(secure):
    with socket.create_connection((secure.host, secure.port), DEADLINE) as client:
        client.sendall(GET % (b"/metrics", b""))
        status, body = read_answer(client)
        assert (status, json.loads(body.decode())["detail"]) == (400, "TLS is spoken here: the URL starts with https://")
        assert client.recv(1) == b""


class Memory:
    """A TLS client that hands over what it would send, to be sent in whatever pieces."""

    def __init__(self, service, cafile):
        self.socket = socket.create_connection((service.host, service.port), DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(cafile))
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def send(self, piece):
        """What it has to say by now, so many bytes at a time."""
        data = self.outgoing.read()
        for at in range(0, len(data), piece):
            self.socket.sendall(data[at:at + piece])

    def do(self, function, *arguments, piece=1):
        """The function's result once enough was received for it."""
        while True:
            try:
                return function(*arguments)
            except ssl.SSLWantReadError:
                self.send(piece)
                data = self.socket.recv(1)
                self.incoming.write(data) if data else self.incoming.write_eof()
            finally:
                self.send(piece)

    def read(self):
        """All up to the end of the connection."""
        received = b""
        with contextlib.suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while True:
                data = self.do(self.tls.read, 65536)
                if not data:
                    break
                received += data
        return received


def test_a_handshake_that_comes_byte_by_byte_succeeds(secure, pem):
    client = Memory(secure, pem / "good.pem")
    with client.socket:
        client.do(client.tls.do_handshake)
        client.do(client.tls.write, GET % (b"/livez", b"Connection: close\r\n"))
        assert client.read().startswith(b"HTTP/1.1 200 ")


def test_a_client_that_ends_its_side_of_the_tls_is_answered(secure, pem):
    client = Memory(secure, pem / "good.pem")
    with client.socket:
        client.do(client.tls.do_handshake, piece=1000)
        client.do(client.tls.write, GET % (b"/livez", b""), piece=1000)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()     # close_notify
        client.send(1000)
        assert client.read().startswith(b"HTTP/1.1 200 ")


def test_a_client_that_ends_its_side_of_the_connection_is_answered(secure, pem):
    with connect(secure, pem / "good.pem") as client:
        client.sendall(GET % (b"/livez", b""))
        socket.socket.shutdown(client, socket.SHUT_WR)
        assert read_answer(client)[0] == 200


def test_head_over_tls_has_no_body(secure, pem):
    with connect(secure, pem / "good.pem") as client:
        client.sendall(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET % (b"/livez", b"Connection: close\r\n"))
        head, _, rest = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
        assert re.search(rb"Content-Length: [1-9]", head) and rest.startswith(b"HTTP/1.1 200 ")


def test_a_kept_tls_connection_carries_many_requests(secure, pem):
    with connect(secure, pem / "good.pem") as client:
        paths = b"/livez", b"/metrics", b"/nothing", b"/readyz"
        assert [ask(client, path)[0] for path in paths * 5] == [200, 200, 404, 200] * 5


def unsent(service):
    """Bytes that wait in the kernel for clients of the service to take them (tx_queue of /proc/net/tcp)."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if row[1] == "0100007F:%04X" % service.port)


def test_large_pipelined_answers_reach_a_tls_client_that_reads_late(secure, pem):
    count = 200
    with connect(secure, pem / "good.pem") as client, client.makefile("rb") as file:
        client.sendall(GET % (b"/metrics?history=672", b"") * count)
        wait_for(lambda: unsent(secure) > 65536, "answers that pile up")
        for _ in range(count):
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            head = b"".join(iter(file.readline, b"\r\n"))
            body = file.read(int(re.search(rb"Content-Length: (\d+)", head).group(1)))
            assert len(json.loads(body.decode())["history"]) == 672


# TLS: when the certificate ends

@pytest.mark.parametrize("name", ["good", "soon", "over", "elliptic", "last_of_two_digits", "first_of_four_digits", "both",
                                  "chain", "text", "trusted"])
def test_the_end_of_a_certificate_is_what_openssl_says(pem, name):
    path = str(pem / (name + ".pem"))
    said = subprocess.run(["openssl", "x509", "-noout", "-enddate", "-in", path], check=True, stdout=subprocess.PIPE).stdout
    assert tls.expiry(path) == ssl.cert_time_to_seconds(said.decode().strip().partition("=")[2])


def test_the_tls_block_says_when_the_certificate_ends(launch, database, pem):
    service = launch(database, tls_cert=pem / "first_of_four_digits.pem", tls_key=pem / "key.pem")
    block = service.get("/metrics")[1]["tls"]
    assert block["expires_at"] == "2050-01-01T00:00:00Z"
    assert block["expires_in_days"] == pytest.approx((2524608000 - time.time()) / DAY, abs=0.01)


def health(service, headers=None):
    """(status code, document) of /readyz."""
    status, _, body = service.request("/readyz", headers=headers)
    return status, json.loads(body.decode())


@pytest.mark.parametrize("name, state, words", [
    ("good", "pass", None), ("soon", "warn", "the certificate's end is 2"), ("over", "warn", "the certificate's end is 2")])
def test_readyz_warns_three_weeks_before_the_certificate_ends(launch, database, pem, name, state, words):
    service = launch(database, tls_cert=pem / (name + ".pem"), tls_key=pem / "key.pem")
    status, document = health(service)
    (entry,) = document["checks"]["tls:certificate"]
    assert (status, document["status"], entry["status"], entry["observedUnit"]) == (200, state, state, "days")
    assert entry["observedValue"] == pytest.approx({"good": 90, "soon": 10, "over": -10}[name], abs=0.1)
    if words:
        assert entry["reason"] == "certificate" and entry["output"].startswith(words)


@pytest.mark.parametrize("name, verb", [("soon", "ends at"), ("over", "ended at")])
def test_a_certificate_about_to_end_is_a_warning_of_check_and_log(try_command, launch, database, pem, name, verb):
    files = {"tls_cert": pem / (name + ".pem"), "tls_key": pem / "key.pem"}
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(tls.expiry(str(files["tls_cert"]))))
    words = "METRICS_TLS_CERT: the certificate %s %s; renew it and reload" % (verb, end)
    code, lines = try_command("--check", **files)
    assert code == 0 and "warning: " + words in lines
    assert 'WARNING certificate_ends reason=certificate detail="%s"' % words in launch(database, **files).text()


# TLS: what is refused at the start

REFUSED_FILES = {
    "the certificate is missing": ("none", "key", "{0}/none.pem: No such file or directory"),
    "the key is missing": ("good", "none", "{0}/none.pem: No such file or directory"),
    "no key is given": ("good", None, "{0}/good.pem has no private key"),
    "the key is another's": ("good", "other_key", "the key is not that of the certificate"),
    "the key is of another kind": ("good", "elliptic_key", "the key is not that of the certificate"),
    "the key has a passphrase": ("good", "locked_key", "{0}/locked_key.pem has a passphrase"),
    "the key has one in the old form": ("good", "old_locked_key", "{0}/old_locked_key.pem has a passphrase"),
    "the key is no key": ("good", "garbage", "{0}/garbage.pem has no private key"),
    "the key is damaged": ("good", "damaged_key", "[SSL] PEM lib"),
    "the certificate is a key": ("key", "key", "{0}/key.pem has no certificate"),
    "the certificate is not PEM": ("garbage", "key", "{0}/garbage.pem has no certificate"),
    "the certificate is torn": ("torn", "key", "{0}/torn.pem has no certificate"),
    "the certificate is empty": ("empty", "key", "{0}/empty.pem has no certificate"),
    "the certificate is a folder": ("", "key", "{0}: Is a directory"),
    "the certificate is a pipe": ("pipe", "key", "{0}/pipe.pem is no regular file"),
}


@pytest.mark.parametrize("what", sorted(REFUSED_FILES))
def test_tls_files_that_cannot_be_used_are_refused_in_one_line(try_command, pem, what):
    cert, key, words = REFUSED_FILES[what]
    files = {"tls_cert": pem / (cert + ".pem") if cert else pem}
    if key:
        files["tls_key"] = pem / (key + ".pem")
    line = "error: METRICS_TLS_CERT: %s cannot be used: %s" % (" and ".join(map(str, files.values())), words.format(pem))
    for arguments in ([], ["--check"]):
        code, lines = try_command(*arguments, **files)
        (error,) = errors_of(lines)
        assert code == 78 and error.startswith(line) and "Traceback" not in "".join(lines)
        assert error.endswith("; give a PEM certificate and its own key, without a passphrase")


def test_a_key_without_a_certificate_is_refused(try_command, pem):
    for arguments in ([], ["--check"]):
        code, lines = try_command(*arguments, tls_key=pem / "key.pem")
        assert code == 78
        assert errors_of(lines) == ["error: METRICS_TLS_KEY is set and METRICS_TLS_CERT is not; set both, or neither"]


def at_terminal(command, env, *typed):
    """(exit code, what a terminal shows) of a command there; each item typed is a prompt to wait for and the answer to it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, env)
    shown = b""
    try:
        for prompt, answer in typed:
            while not shown.endswith(prompt):
                shown += os.read(terminal, 1000)
            os.write(terminal, answer)
        while True:
            shown += os.read(terminal, 1000)
    except OSError:     # the other end is closed
        return os.WEXITSTATUS(os.waitpid(pid, 0)[1]), shown.decode()
    finally:
        os.close(terminal)


def test_nobody_is_asked_for_a_passphrase_at_a_terminal(tmp_path, database, pem):
    service = Service(tmp_path, database, tls_cert=pem / "good.pem", tls_key=pem / "locked_key.pem")
    code, shown = at_terminal(COMMAND + ["--check"], service.env)
    assert code == 78 and "pass phrase" not in shown and shown.endswith("without a passphrase\r\n")


# Passwords: who is let in

def document(service, path, headers=None):
    """(status code, fields, document) of a JSON answer."""
    status, fields, body = service.request(path, headers=headers)
    return status, fields, json.loads(body.decode())


def check_refused(service, path, headers):
    status, fields, problem = document(service, path, headers)
    assert (status, fields["WWW-Authenticate"], fields["Content-Type"]) == (401, CHALLENGE, "application/problem+json")
    assert problem.pop("request_id") == fields["X-Request-ID"]
    assert problem == {"type": "about:blank", "title": "Unauthorized", "status": 401, "reason": "credentials",
                       "detail": "a user of METRICS_AUTH_FILE and the password are due", "runbook": "docs/runbook.md#credentials"}


@pytest.mark.parametrize("path", ["/", "/metrics", "/metrics?history=1", "/nothing", "/livezz", "/%2e/metrics",
                                  "/livez/../metrics"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic ?"}])
def test_strangers_are_refused_whatever_they_ask_for(guarded, path, headers):
    check_refused(guarded, path, headers)


def test_wrong_names_and_passwords_are_refused_like_none(guarded):
    for headers in (NOT_ANNA, basic("carl", "letters"), basic("", ""), basic("anna", "parcels")):
        check_refused(guarded, "/metrics", headers)


@pytest.mark.parametrize("path, status", [("/metrics", 200), ("/nothing", 404), ("/readyz", 200), ("/metrics?history=0", 400)])
def test_users_are_answered_as_ever(guarded, path, status):
    for user in (ANNA, BERT):
        assert guarded.request(path, headers=user)[0] == status


def test_head_is_refused_without_a_body(guarded):
    status, fields, body = guarded.request("/metrics", "HEAD")
    assert (status, fields["WWW-Authenticate"], body) == (401, CHALLENGE, b"")


@pytest.mark.parametrize("headers", [{}, NOT_ANNA])
def test_livez_is_open_to_all(guarded, headers):
    status, fields, answer = document(guarded, "/livez", headers)
    assert (status, "WWW-Authenticate" in fields, answer["service"]) == (200, False, "metrics_service")


@pytest.mark.parametrize("headers", [{}, NOT_ANNA])
def test_readyz_tells_strangers_its_status_only(launch, database, users, headers):
    service = launch(database, auth_file=users)
    for path in ("/readyz", "/healthz"):
        status, fields, answer = document(service, path, headers)
        assert (status, fields["Content-Type"], answer) == (200, "application/health+json", {"status": "pass"})
        assert sorted(document(service, path, ANNA)[2]["checks"]) == ["database:schema", "database:shipments", "log:target",
                                                                       "service:reload"]
    database.unlink()
    assert document(service, "/readyz", headers)[::2] == (503, {"status": "fail"})
    assert document(service, "/readyz", ANNA)[2]["checks"]["database:shipments"][0]["reason"] == "missing"


def test_a_refused_request_is_no_error_and_is_counted_under_its_route(launch, database, users):
    service = launch(database, auth_file=users)
    service.request("/metrics")
    service.request("/nothing")
    answer = document(service, "/metrics", ANNA)[2]
    assert answer["logging"]["errors_total"] == 0 and answer["tls"] is None
    assert answer["requests"]["by_route"] == {"/metrics": {"401": 1}, "other": {"401": 1}}


def hammer(service, stop):
    """Tries passwords until stop is set."""
    for number in range(10 ** 6):
        if stop.is_set():
            return
        service.request("/metrics", headers=basic("anna", "guess %d" % number))


def test_hammering_is_limited_and_keeps_no_good_request_waiting(launch, database, tmp_path):
    service = launch(database, auth_file=write_secret(tmp_path / "users", line_of("anna", "letters", 600000)))
    assert service.request("/metrics", headers=ANNA)[0] == 200
    stop = threading.Event()
    hammers = [threading.Thread(target=hammer, args=(service, stop)) for _ in range(4)]
    for thread in hammers:
        thread.start()
    try:
        limited = wait_for(lambda: [answer for answer in [document(service, "/metrics", NOT_ANNA)] if answer[0] == 429], "a 429")
        for _ in range(50):
            assert service.request("/metrics", headers=ANNA)[0] == 200 and service.request("/livez")[0] == 200
    finally:
        stop.set()
        for thread in hammers:
            thread.join()
    (_, fields, problem), = limited
    assert "WWW-Authenticate" not in fields and problem["detail"] == "too many wrong passwords; wait"
    assert 1 <= int(fields["Retry-After"]) <= 60
    assert document(service, "/readyz", NOT_ANNA)[::2] == (200, {"status": "pass"})
    wait_for(lambda: service.request("/metrics", headers=NOT_ANNA)[0] == 401, "the end of the wait")


# Passwords: the file changes

def test_a_changed_file_lets_new_users_in_and_keeps_removed_ones_out(launch, database, tmp_path):
    file = write_secret(tmp_path / "users", line_of("anna", "letters"))
    service = launch(database, auth_file=file)
    kept = http.client.HTTPConnection(service.host, service.port, timeout=DEADLINE)

    def ask_kept():
        kept.request("GET", "/metrics", headers=ANNA)
        answer = kept.getresponse()
        answer.read()
        return answer.status
    assert ask_kept() == 200 and service.request("/metrics", headers=BERT)[0] == 401
    write_secret(file, line_of("anna", "letters") + line_of("bert", "parcels"))
    time.sleep(LOOK)
    assert ask_kept() == 200 and service.request("/metrics", headers=BERT)[0] == 200
    write_secret(file, line_of("bert", "parcels"))
    wait_for(lambda: ask_kept() == 401, "the first to be kept out, on the connection that she has")
    assert service.request("/metrics", headers=BERT)[0] == 200
    kept.close()


def test_while_the_file_is_bad_the_last_users_stay_and_the_log_says_so_once(launch, database, tmp_path):
    good = line_of("anna", "letters")
    file = write_secret(tmp_path / "users", good)
    service = launch(database, auth_file=file)
    file.write_text("anna:letters\n")

    def after(event):
        assert service.request("/metrics", headers=ANNA)[0] == 200
        return event in service.text()
    wait_for(lambda: after("credentials_invalid"), "the log line")
    assert service.request("/metrics", headers=BERT)[0] == 401
    time.sleep(LOOK)
    assert after("")
    (line,) = [line for line in service.text().splitlines() if "credentials_invalid" in line]
    assert ' ERROR credentials_invalid reason=credentials detail="%s:1: the hash of user anna is not ' % file in line
    assert "letters" not in line
    assert "; the users known before stay in force\" route=/metrics request_id=" in line
    write_secret(file, good)
    wait_for(lambda: after("credentials_recovered"), "the end of it")
    assert [line.split()[1:3] for line in service.text().splitlines()[1:]] == [
        ["ERROR", "credentials_invalid"], ["WARNING", "login_failed"], ["INFO", "credentials_recovered"]]


# Passwords: what is refused at the start

@pytest.mark.parametrize("mode, words", [
    (0o644, "is open to every user (mode 644); run: chmod 600 "), (0o660, "can be changed by its group (mode 660)"),
    (0o602, "is open to every user (mode 602)")])
def test_a_password_file_that_others_can_use_is_refused(try_command, tmp_path, mode, words):
    file = write_secret(tmp_path / "users", line_of("anna", "letters"))
    file.chmod(mode)
    for arguments in ([], ["--check"]):
        code, lines = try_command(*arguments, auth_file=file)
        assert code == 78 and errors_of(lines)[0].startswith("error: METRICS_AUTH_FILE: %s: %s" % (file, words))
        assert len(errors_of(lines)) == 1


@as_root
@pytest.mark.parametrize("owner, folder, code", [(0, None, 0), (NOBODY, None, 78), (NOBODY, "", 0), (NOBODY, "elsewhere", 78)])
def test_a_group_may_read_what_is_roots_or_a_credential(tmp_path, database, owner, folder, code):
    file = write_secret(tmp_path / "users", line_of("anna", "letters"))
    file.chmod(0o640)
    os.chown(str(file), owner, NOBODY)
    service = Service(tmp_path, database, auth_file=file)
    if folder is not None:
        service.env["CREDENTIALS_DIRECTORY"] = str(tmp_path / folder)
    done = subprocess.run(COMMAND + ["--check"], env=service.env, timeout=DEADLINE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == code
    assert (b"users: can be read by its group" in done.stderr) == bool(code)


@pytest.mark.parametrize("content, words", [
    (None, "users: could not be read by uid"), ("", "users: lists no user"), ("anna:letters\n", "users:1: the hash of user anna"),
    ("anna\n", "users:1: is no user:hash")])
def test_a_password_file_without_good_users_is_refused(try_command, tmp_path, content, words):
    if content is not None:
        write_secret(tmp_path / "users", content)
    code, lines = try_command(auth_file=tmp_path / "users")
    assert code == 78 and errors_of(lines)[0].startswith("error: METRICS_AUTH_FILE: %s/%s" % (tmp_path, words))
    assert "letters" not in errors_of(lines)[0]


# Passwords: a new line

HASH_COMMAND = COMMAND + ["--hash-password", "anna"]
LINE = r"anna:pbkdf2_sha256\$600000\$[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}="


def test_the_line_printed_for_a_piped_password_lets_its_user_in(launch, database, tmp_path):
    done = subprocess.run(HASH_COMMAND, input=b"letters\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"") and re.match(LINE + r"\n\Z", done.stdout.decode())
    service = launch(database, auth_file=write_secret(tmp_path / "users", done.stdout.decode()))
    assert [service.request("/metrics", headers=headers)[0] for headers in (ANNA, NOT_ANNA)] == [200, 401]


@pytest.mark.parametrize("arguments, piped, code, words", [
    (["--hash-password"], b"letters", 0, b""),
    (["--hash-password", "anna"], b"", 1, b"error: the password is empty; give one\n"),
    (["--hash-password", "an:na"], b"letters", 1, b"error: a user name is printable, without a colon"),
    (["--hash-password", "anna", "letters"], b"", 1, b"metrics_service.py: unrecognized arguments: letters; see --help\n")])
def test_a_password_is_never_an_argument(arguments, piped, code, words):
    done = subprocess.run(COMMAND + arguments, input=piped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert done.returncode == code and done.stderr.startswith(words) and bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("again, code, end", [
    (b"letters\n", 0, LINE), (b"lettres\n", 1, "error: the two passwords differ; try again")])
def test_at_a_terminal_the_password_is_asked_for_twice_and_not_shown(again, code, end):
    exit_code, shown = at_terminal(HASH_COMMAND, {}, (b"Password: ", b"letters\n"), (b"Again: ", again))
    assert exit_code == code and re.match("Password: \r\nAgain: \r\n" + end + "\r\n\\Z", shown)


# What watches a guarded service, and what it says where it is not

@pytest.fixture(scope="module")
def fortress(start, users, pem):
    service = start(auth_file=users, tls_cert=pem / "good.pem", tls_key=pem / "key.pem")
    add_rows(sqlite3.connect(service.env["METRICS_DB_PATH"]), [{"reference": "a", "status": "pending"}])
    return service


def judge(service, *arguments):
    """(exit code, lines) of health_check.py on the service."""
    url = service.url.replace("127.0.0.1", "localhost")
    done = subprocess.run(CHECK + ["--url", url] + [str(argument) for argument in arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, timeout=20)
    return done.returncode, done.stdout.splitlines()


def test_the_health_check_is_content_with_credentials_and_authority(fortress, pem, tmp_path):
    secret = write_secret(tmp_path / "secret", "anna:letters\n")
    code, lines = judge(fortress, "--credentials", secret, "--ca-file", pem / "good.pem")
    assert code == 0 and lines[0].startswith("metrics_service OK: "), lines


def test_the_health_check_says_what_it_lacks(fortress, pem, tmp_path):
    code, lines = judge(fortress, "--ca-file", pem / "good.pem")
    assert code == 1 and "401 Unauthorized: it wants --credentials" in "".join(lines)
    secret = write_secret(tmp_path / "secret", "anna:guess\n")
    assert "401 Unauthorized: wrong user or password" in "".join(judge(fortress, "--credentials", secret, "--ca-file",
                                                                         pem / "good.pem")[1])
    code, lines = judge(fortress, "--credentials", secret)
    assert code == 1 and "certificate" in lines[0]


EXPOSED = "METRICS_HOST 0.0.0.0 is not loopback: %s; docs/configuration.md says how to guard them"


@pytest.mark.parametrize("guards, words", [
    ((), "whoever reaches the port reads the metrics, unencrypted and without a password"),
    (("auth",), "the password travels unencrypted"),
    (("tls",), "whoever reaches the port reads the metrics, without a password"),
    (("auth", "tls"), None)])
def test_what_is_open_beyond_loopback_is_said_by_check_and_log(try_command, launch, database, users, pem, guards, words):
    settings = {"host": "0.0.0.0"}
    if "auth" in guards:
        settings["auth_file"] = users
    if "tls" in guards:
        settings.update(tls_cert=pem / "good.pem", tls_key=pem / "key.pem")
    code, lines = try_command("--check", **settings)
    log = launch(database, **settings).text()
    assert code == 0
    if words:
        assert "warning: " + EXPOSED % words in lines and 'WARNING exposed detail="%s"' % (EXPOSED % words) in log
    else:
        assert "warning" not in "".join(lines) and "exposed" not in log
