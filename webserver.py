"""A strict, bounded http.server: HTTP/1.1 to RFC 9110 and 9112 for GET and HEAD, whatever its clients do.

    server = Server(listening_socket((host, port)), application, tls=None)
    server.serve_forever()          # in a thread of its own; stop(seconds) from another one ends it

Way of a connection: the poller (serve_forever's thread) accepts it and parks it in epoll. What becomes ready goes to one of
WORKERS threads, made at the start, which runs Handler.handle until the connection would have to wait for the network, and
parks it again. All input and output is non-blocking, so that no client can hold a thread; only the application may, and the
requests of which it says that they wait() get SLOTS of the workers at most. A worker that has answered stays with its
connection for LINGER seconds as long as there are idle ones, which spares a busy connection the way through the poller.
Every parked connection has a deadline. When there are too many, the one that waited longest without a whole request goes.

The application has wait(Request) -> bool and respond(Request) -> Response, which must not raise, and is told what happens by
observe(path or None, request line, status, seconds) for every answer, defect(exception) for what a worker did not expect and
starved(OSError) when connections cannot be accepted. This module knows nothing of shipments.
Errors are application/problem+json (RFC 9457).
"""

import base64
import calendar
import collections
import contextlib
import email.utils
import errno
import http.server
import itertools
import json
import os
import re
import resource
import select
import socket
import socketserver
import ssl
import struct
import threading
import time
import urllib.parse
from http import HTTPStatus

WORKERS = 32            # threads that answer
SLOTS = 24              # of these at most for requests that wait for something, a database or a password hash
IDLE_WORKERS = 8        # as many are kept from lingering, for whoever comes next
LINGER = 0.05           # s that a worker stays with a connection it has answered
BACKLOG = 1024          # connections the kernel keeps waiting; the stock 5 turns a burst into resets
MAX_CONNECTIONS = 4096  # open at once; fewer where the descriptor limit is lower
RESERVE = 64            # descriptors left to the rest of the process, or half of a limit below twice that
SWEEP = 0.25            # s between two looks at the deadlines
HEAD_SECONDS = 10       # from the accept, or from the first byte of a further head, to its end; body and TLS handshake too
IDLE_SECONDS = 15       # between an answer and the first byte of the next request
WRITE_SECONDS = 10      # for the client to take an answer
DISCARD_SECONDS = 2     # after our last answer, to read what still comes: a reset would destroy the answer (RFC 9112, 9.6)
NOTICE_SECONDS = 1      # for clients to hear "Connection: close" from a server that stops
PIECE = 16384           # bytes of one read
LINE_MAX = 8192         # bytes of a request line; RFC 9112, 3 wants 8000 at least
HEAD_MAX = 32768        # bytes of a head
FIELDS_MAX = 100        # of a head
BODY_MAX = 65536        # bytes of a body, which is read and thrown away
METHOD_MAX = 32         # bytes of a method; the longest registered one has 17
METHODS = ("GET", "HEAD")
NAME = "metrics_service"

SECURITY = (
    ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"), ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"))
COUNTS = ("accepted", "refused", "evicted", "head_timeouts", "idle_timeouts", "write_timeouts", "tls_failures")
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"

# Grammar, on bytes: RFC 9110, 5 and 9112, 2 to 7; RFC 3986 for the target

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) HTTP/(\d)\.(\d)\r\n" % TOKEN)
FIELD = re.compile(rb"(%s):[ \t]*(%s)\r\n" % (TOKEN, VALUE))
FIELDS = re.compile(rb"(?:%s:%s\r\n)*\r\n" % (TOKEN, VALUE))
BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0")    # where a line does not end, or nothing may stand
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d{0,5})?")
PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
QUERY = r"(?:\?((?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*))?"
ORIGIN = re.compile("(/%s)%s" % (PATH, QUERY))
ABSOLUTE = re.compile("[Hh][Tt][Tt][Pp][Ss]?://([^/?@]+)(/%s)?%s" % (PATH, QUERY))
AUTHORITY = re.compile(r"[^/?#@\[\]]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;%s)?\r\n" % VALUE)
CHUNK_LINE_MAX = 256    # bytes of a chunk's size and extensions

Head = collections.namedtuple("Head", "method path query headers line http10 keep body expects")
CHUNKED = -1            # Head.body of a chunked one, else its length
Request = collections.namedtuple("Request", "method path query headers arrived")  # see Handler.request


class Refusal(Exception):
    """What was received is no request that we answer: the status, the reason as a sentence, further fields of the answer."""

    def __init__(self, status, detail, fields=()):
        super().__init__(detail)
        self.status, self.detail, self.fields = status, detail, fields


def refuse(detail):
    raise Refusal(400, detail)


def bad_field(fields):
    """Why this is no sequence of field lines (RFC 9112, 5)."""
    for line in fields.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return "a field is folded over two lines"
        if not FIELD.fullmatch(line + b"\r\n"):
            name = line.partition(b":")[0]
            blank = name != name.strip(b" \t") and b":" in line
            return "a blank stands before the colon of a field" if blank else "a field line is not 'name: value'"
    return "the head is not what RFC 9112 calls one"


def read_fields(data):
    """The fields as a dict of lower-case name -> list of values (RFC 9110, 5). Raises Refusal."""
    if not FIELDS.fullmatch(data):
        refuse(bad_field(data[:-4]))
    found = FIELD.findall(data)
    if len(found) > FIELDS_MAX:
        raise Refusal(431, "the head has more than %d fields" % FIELDS_MAX)
    fields = {}
    for name, value in found:
        fields.setdefault(name.lower().decode(), []).append(value.rstrip(b" \t").decode("latin-1"))
    return fields


def check_host(hosts, http10):
    """One Host, and one that is valid (RFC 9112, 3.2)."""
    if len(hosts) != 1 and (hosts or not http10):
        refuse("exactly one Host field is due, there are %d" % len(hosts))
    if hosts and not HOST.fullmatch(hosts[0].encode("latin-1")):
        refuse("the Host field is not a host with an optional port")


def straight(path):
    """The path without its dot segments (RFC 3986, 5.2.4), then decoded. Raises Refusal."""
    path = re.sub("%2[Ee]", ".", path)
    if "/." in path:
        kept = []
        segments = path.split("/")[1:]
        for segment in segments:
            if segment == "..":
                del kept[-1:]
            elif segment != ".":
                kept.append(segment)
        path = "/" + "/".join(kept + [""] * (segments[-1] in (".", "..")))
    path = urllib.parse.unquote(path, errors="replace")
    if CONTROL.search(path):
        refuse("the path has an encoded control character")
    return path


def read_target(method, target):
    """(path, query string) of a target in any of its four forms (RFC 9112, 3.2); the path is None where the form has none."""
    origin, absolute = ORIGIN.fullmatch(target), ABSOLUTE.fullmatch(target)
    if origin and method != "CONNECT":
        return straight(origin.group(1)), origin.group(2) or ""
    if absolute and method != "CONNECT":
        authority, path, query = absolute.groups()
        check_host([authority], False)
        return straight(path or "/"), query or ""
    if target == "*" and method == "OPTIONS" or method == "CONNECT" and AUTHORITY.fullmatch(target):
        return None, ""
    return refuse("the request target is not one that %s can have" % method[:METHOD_MAX])


def members(fields, name):
    """The members of a list field in lower case (RFC 9110, 5.6.1)."""
    values = (member.strip(" \t").lower() for value in fields.get(name, ()) for member in value.split(","))
    return [value for value in values if value]


def read_length(lengths):
    """The one Content-Length (RFC 9110, 8.6). Python's int() would take '+5', '1_0' and other scripts' digits too."""
    if len(lengths) != 1 or not re.fullmatch("[0-9]+", lengths[0]):
        refuse("Content-Length is not one decimal number")
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > len(str(BODY_MAX)) or int(digits) > BODY_MAX:
        raise Refusal(413, "a body may have %d bytes here" % BODY_MAX)
    return int(digits)


def read_framing(fields, http10):
    """Length of the body, or CHUNKED (RFC 9112, 6). Whatever two parsers could take in two ways is refused."""
    lengths = fields.get("content-length")
    if "transfer-encoding" not in fields:
        return read_length(lengths) if lengths else 0
    codings = members(fields, "transfer-encoding")
    if lengths:
        refuse("Content-Length and Transfer-Encoding contradict each other")
    if http10:
        refuse("HTTP/1.0 has no Transfer-Encoding")
    if codings[-1:] != ["chunked"] or codings.count("chunked") > 1:
        refuse("the last transfer coding must be chunked, and no other")
    if len(codings) > 1:
        raise Refusal(501, "of the transfer codings only chunked is understood")
    return CHUNKED


def read_expectation(fields, http10, body):
    """Whether the client waits for 100 (Continue) before it sends the body (RFC 9110, 10.1.1)."""
    expectations = [] if http10 else members(fields, "expect")
    if any(expectation != "100-continue" for expectation in expectations):
        raise Refusal(417, "of the expectations only 100-continue is understood")
    return bool(expectations and body)


def read_line(data):
    """(method, target, whether HTTP/1.0, end) of the request line (RFC 9112, 3). Raises Refusal."""
    line = REQUEST_LINE.match(data)
    if not line:
        refuse("the request line is not 'METHOD TARGET HTTP/1.1'")
    method, target, major, minor = (part.decode() for part in line.groups())
    if major != "1":
        raise Refusal(505, "HTTP/1.1 is spoken here, and HTTP/1.0")
    if len(method) > METHOD_MAX:
        raise Refusal(501, "no method has so long a name")
    return method, target, minor == "0", line.end()


def read_head(data):
    """The Head that these bytes are, up to and with the empty line. Raises Refusal."""
    method, target, http10, line_end = read_line(data)
    fields = read_fields(data[line_end:])
    check_host(fields.get("host", []), http10)
    path, query = read_target(method, target)
    body = read_framing(fields, http10)
    expects = read_expectation(fields, http10, body)
    options = members(fields, "connection")
    keep = "close" not in options and (not http10 or "keep-alive" in options)
    return Head(method, path, urllib.parse.parse_qs(query, keep_blank_values=True),
                {name: ", ".join(values) for name, values in fields.items()},
                data[:line_end - 2].decode("latin-1"), http10, keep and not expects, body, expects)


def check_size(data, size):
    """The limits of a head of which `size` bytes have come."""
    if size > LINE_MAX and data.find(b"\r\n", 0, LINE_MAX + 2) < 0:
        raise Refusal(414, "a request line may have %d bytes" % LINE_MAX)
    if size > HEAD_MAX:
        raise Refusal(431, "a head may have %d bytes" % HEAD_MAX)


def check_unfinished(data):
    """Refuses what cannot become a head any more, so that nobody waits for its end."""
    if BARE.search(data):
        refuse("a line ends in a bare CR or LF, or the head has a NUL")
    check_size(data, len(data))
    if b"\r\n" in data:
        read_line(data)


def skip_trailers(data, at, line_end):
    """The end of the trailer section, which starts behind the last chunk's line (RFC 9112, 7.1.2)."""
    end = data.find(b"\r\n\r\n", line_end) + 4
    if end < 4:
        return None, at
    if not FIELDS.fullmatch(data, line_end + 2, end):
        refuse("a trailer field is not 'name: value'")
    return end, at


def skip_chunks(data, at):
    """(where the chunked body ends or None, where to go on) from the chunk that starts at `at` (RFC 9112, 7.1). Raises Refusal."""
    while True:
        chunk = CHUNK.match(data, at)
        if not chunk:
            if b"\r\n" in data[at:at + CHUNK_LINE_MAX] or len(data) - at >= CHUNK_LINE_MAX:
                refuse("a chunk does not start with its size")
            return None, at
        size = int(chunk.group(1), 16)
        if not size:
            return skip_trailers(data, at, chunk.end() - 2)
        end = chunk.end() + size
        if size > BODY_MAX:
            raise Refusal(413, "a body may have %d bytes here" % BODY_MAX)
        if data[end:end + 2] not in (b"", b"\r", b"\r\n"):
            refuse("a chunk does not end where its size says")
        if len(data) < end + 2:
            return None, at
        at = end + 2


# Answers

class Response:
    """An answer; `head` is what of it is the same whenever it is sent. A CR or LF in a field raises ValueError."""

    def __init__(self, status, content_type, body, fields=()):
        self.status, self.body = int(status), body
        names = {name for name, _ in fields}
        lines = ["HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase), "Server: " + NAME, "Content-Type: " + content_type,
                 "Content-Length: %d" % len(body)]
        lines += ["%s: %s" % field for field in itertools.chain(fields, (f for f in SECURITY if f[0] not in names))]
        if any(CONTROL.search(line) for line in lines):
            raise ValueError("a control character in a response field")
        self.head = "\r\n".join(lines).encode("latin-1") + b"\r\n"


def json_answer(status, document, content_type="application/json", fields=()):
    """A Response of the document. NaN and infinity, which JSON does not have, raise ValueError."""
    body = json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    return Response(status, content_type, body, fields)


def problem(status, detail, fields=(), **members):
    """A problem+json Response: the status in words, the detail as a sentence, further members as they are."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    document.update(members)
    return json_answer(int(status), document, "application/problem+json", fields)


# One connection. Its steps return READ or WRITE to be parked until that is possible, ON to go on with the next step, AGAIN
# to let others have the worker first, GONE when the connection is no longer this worker's.

READ, WRITE, ON, AGAIN, GONE = select.EPOLLIN, select.EPOLLOUT, "on", "again", "gone"
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Handler(http.server.BaseHTTPRequestHandler):
    """A connection; every thread that touches it holds it, which `parked` says nobody does."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection, server):
        # Not that of BaseRequestHandler, which would serve the connection to its end in here.
        self.connection, self.server, self.number = connection, server, connection.fileno()
        self.secure = server.tls is not None
        self.step = Handler.shake if self.secure else Handler.receive
        self.data = self.unsent = b""   # received and not yet answered; answered and not yet taken
        self.head_data, self.head = b"", None   # the last head; a scraper sends the same again and again
        self.at = 0                     # how far the body in `data` has been looked at
        self.close_connection = self.served = self.renewed = False
        self.late = None                # the step that took too long
        self.parked, self.deadline = False, time.monotonic() + HEAD_SECONDS

    def handle(self):
        """Goes on until the connection has to wait; what for."""
        try:
            while True:
                wait = self.step(self)
                if wait is not ON:
                    return wait
        except OSError:     # the client left, or broke the TLS: that is no error of ours
            return self.close()

    def shake(self):
        """A step of the TLS handshake."""
        try:
            if not isinstance(self.connection, ssl.SSLSocket):
                self.connection = self.server.tls.wrap_socket(self.connection, True, do_handshake_on_connect=False)
            self.connection.do_handshake()
        except ssl.SSLWantReadError:
            return READ
        except ssl.SSLWantWriteError:
            return WRITE
        except (OSError, ValueError):   # the latter where the client has left already
            self.server.count("tls_failures")
            return self.close()
        self.step = Handler.receive
        return ON

    def read(self, flags):
        """Bytes, none at the end of the stream, None where there are none now."""
        try:
            return self.connection.recv(PIECE) if self.secure else self.connection.recv(PIECE, flags)
        except WOULD_BLOCK:
            return None

    def receive(self):
        """Reads until there is a whole request."""
        try:
            while True:
                if self.data and self.whole():
                    return ON
                # Only an answered client is worth a wait of LINGER, which is the socket's own SO_RCVTIMEO.
                stay = self.served and not self.data and self.server.quiet()
                data = self.read(0 if stay else socket.MSG_DONTWAIT)
                if data is None:
                    return READ
                if not data:
                    return self.ended()
                if not self.data and self.served:
                    self.deadline = time.monotonic() + HEAD_SECONDS
                self.data += data
        except Refusal as refusal:
            return self.send_error(refusal.status, refusal.detail, fields=refusal.fields)

    def whole(self):
        """Whether `data` starts with a whole request; then self.head is its head. Raises Refusal."""
        if self.data.startswith(b"\r\n"):   # RFC 9112, 2.2
            self.data = re.sub(rb"\A(?:\r\n)+", b"", self.data)
        end = self.data.find(b"\r\n\r\n") + 4
        if end < 4:
            check_unfinished(self.data)
            return False
        self.parse_request(end)
        if self.head.body and not self.head.expects:
            self.at = max(self.at, end)
            end = self.body_end()
            if not end:
                return False
        self.data, self.at = self.data[end:], 0
        self.arrived, self.step = time.monotonic(), Handler.respond
        return True

    def parse_request(self, end):
        """Sets self.head from the first `end` bytes of the data."""
        data = self.data[:end]
        if data != self.head_data:
            self.head = None
            check_size(data, end)
            self.head, self.head_data = read_head(data), data
        self.close_connection = not self.head.keep

    def body_end(self):
        """Where the body ends in `data`, None where it has not come yet."""
        if self.head.body != CHUNKED:
            end = self.at + self.head.body
            return end if len(self.data) >= end else None
        end, self.at = skip_chunks(self.data, self.at)
        if not end and len(self.data) > HEAD_MAX + 2 * BODY_MAX:
            raise Refusal(413, "a body may have %d bytes here" % BODY_MAX)
        return end

    def ended(self):
        """The client has said its last."""
        if not self.data:
            return self.close()
        return self.send_error(400, "the request ends in the middle")

    def respond(self):
        """Has the application answer, if it may now."""
        head, server = self.head, self.server
        if head.method not in METHODS or head.path is None:
            return self.refuse_method()
        request = Request(head.method, head.path, head.query, head.headers, self.arrived)
        waits = server.application.wait(request)
        if not server.enter(self, waits):
            return GONE
        try:
            response = server.application.respond(request)
        finally:
            server.leave(waits)
        return self.send(response, head.path)

    def refuse_method(self):
        allow = ", ".join(METHODS)
        return self.send(problem(405, "%s is not possible here, only %s" % (self.head.method, allow), [("Allow", allow)]),
                         self.head.path)

    def send_error(self, code, message=None, explain=None, fields=()):
        """Refuses what was received. The connection ends, since nobody knows where the next request would start."""
        self.close_connection = True
        response = problem(code, message or HTTPStatus(code).phrase, fields)
        line = self.data.partition(b"\r\n")[0][:LINE_MAX].decode("latin-1")
        if line.startswith("HEAD "):
            response.body = b""
        self.data, self.arrived = b"", time.monotonic()
        return self.write(response, None, line)

    def send(self, response, path):
        """Sends the answer to self.head."""
        return self.write(response, path, self.head.line, self.head.method == "HEAD", self.head.http10)

    def write(self, response, path, line, bodiless=False, http10=False):
        """Sends the answer in one write, as far as the client takes it."""
        server, now = self.server, time.monotonic()
        if server.closing:
            self.close_connection = True
        field = b"Connection: close\r\n\r\n" if self.close_connection else b"Connection: keep-alive\r\n\r\n" if http10 else b"\r\n"
        self.unsent = response.head + server.date() + field + (b"" if bodiless else response.body)
        self.step, self.deadline = Handler.flush, now + WRITE_SECONDS
        server.application.observe(path, line, response.status, now - self.arrived)
        return self.flush()

    def flush(self):
        """Sends what is unsent."""
        while self.unsent:
            try:
                flags = () if self.secure else (socket.MSG_DONTWAIT,)
                self.unsent = self.unsent[self.connection.send(self.unsent, *flags):]
            except WOULD_BLOCK:
                return WRITE
        if self.close_connection:
            return self.finish()
        self.served = self.renewed = True
        self.step, self.deadline = Handler.receive, time.monotonic() + IDLE_SECONDS
        return ON if not self.data else self.server.turn()

    def finish(self):
        """Closes our side, and waits for the client to close its own."""
        if self.secure:
            with contextlib.suppress(OSError, ValueError):  # close_notify; the client's own may not have come
                self.connection.unwrap()
        self.connection.shutdown(socket.SHUT_WR)
        self.data, self.secure = b"", False     # what still comes is not even decrypted
        self.step, self.deadline = Handler.discard, time.monotonic() + DISCARD_SECONDS
        return ON

    def discard(self):
        """Reads a piece of what nobody wants."""
        data = self.read(socket.MSG_DONTWAIT)
        return READ if data is None or data else self.close()

    def expire(self):
        """The deadline of the step that was waited in is over."""
        step, self.step = self.late, None
        if step is Handler.flush:
            self.server.count("write_timeouts")
        elif step is Handler.receive and self.served and not self.data:
            self.server.count("idle_timeouts")
        elif step is not Handler.discard:
            self.server.count("head_timeouts")
            if self.data:
                return self.send_error(408, "the request did not come whole within %d s" % HEAD_SECONDS)
        return self.close()

    def lapse(self):
        self.late, self.step = self.step, Handler.expire

    def close(self):
        self.server.forget(self)
        return GONE

    def freeze(self):
        """What another process needs to go on with the connection, as JSON can hold it."""
        os.set_inheritable(self.number, True)
        return {"descriptor": self.number, "data": self.data.decode("latin-1"), "unsent": self.unsent.decode("latin-1"),
                "close": self.close_connection, "served": self.served, "discard": self.step is Handler.discard}

    @classmethod
    def thaw(cls, state, server):
        """The Handler of what freeze() gave in another process. Raises OSError where that is no open socket."""
        os.set_inheritable(state["descriptor"], False)
        handler = cls(socket.socket(fileno=state["descriptor"]), server)
        handler.data, handler.unsent = state["data"].encode("latin-1"), state["unsent"].encode("latin-1")
        handler.close_connection, handler.served = state["close"], state["served"]
        handler.secure = False
        handler.step = Handler.discard if state["discard"] else Handler.flush if state["unsent"] else Handler.receive
        if handler.served and not handler.data:
            handler.deadline = time.monotonic() + IDLE_SECONDS
        return handler


# All connections

def listening_socket(address):
    """A socket that listens on (host, port). Raises OSError."""
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connection_limit():
    """Connections that may be open at once: what the soft descriptor limit leaves."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - min(RESERVE, soft // 2)))


class Server(http.server.HTTPServer):
    """Accepts from a listening socket until stop(), or pause(). `frozen` are the connections that a paused predecessor had."""

    def __init__(self, listener, application, tls=None, frozen=()):
        # Not that of HTTPServer, which would bind, and look up the host's name, which can stall a start for minutes.
        socketserver.BaseServer.__init__(self, listener.getsockname(), Handler)
        self.socket, self.application, self.tls = listener, application, tls
        self.server_name, self.server_port = self.server_address[:2]
        listener.setblocking(False)
        # Accepted sockets inherit both. Without the first a kept connection's answer waits 40 ms for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(LINGER * 1e6)))
        self.limit = connection_limit()
        self.lock = threading.Lock()                    # of all that follows
        self.work = threading.Condition(self.lock)      # something is in the queue
        self.rest = threading.Condition(self.lock)      # a worker has nothing to do, or a connection is gone
        self.connections = collections.OrderedDict()    # descriptor -> Handler, first who waits longest for a whole request
        self.queue, self.deferred = collections.deque(), collections.deque()
        self.idle = self.slots = self.in_flight = 0
        self.closing = self.pausing = self.ending = self.starving = False
        self.counts = dict.fromkeys(COUNTS, 0)
        self.dated = 0, b""
        self.epoll = select.epoll()
        self.alarm, self.waker = socket.socketpair()
        self.epoll.register(self.alarm, READ)
        self.threads = [threading.Thread(target=self.serve, daemon=True) for _ in range(WORKERS)]
        for state in frozen:
            with contextlib.suppress(OSError):          # it has not survived
                self.adopt(Handler.thaw(state, self), bool(state["data"] or state["unsent"]))

    def start(self):
        for thread in self.threads:
            thread.start()
        self.resume()

    # The poller's part

    def serve_forever(self, poll_interval=SWEEP):
        """Accepts, wakes and times out connections until `ending`."""
        next_sweep = 0
        while not self.ending:
            for number, _ in self.epoll.poll(poll_interval if self.connections or self.starving else -1):
                if number == self.socket.fileno():
                    self.accept()
                elif number in self.connections:
                    self.wake(number)
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + poll_interval
                self.sweep(now)

    def accept(self):
        """Accepts what the kernel has ready."""
        for _ in range(BACKLOG):
            try:
                connection = self.socket.accept()[0]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) and not self.evict():
                    return self.starve(error)
                continue                                # of one client that has left already, or one has given way
            self.starving = False
            self.counts["accepted"] += 1
            if len(self.connections) >= self.limit and not self.evict():
                self.turn_away(connection)
            else:
                self.adopt(Handler(connection, self))

    def starve(self, error):
        """Says once that there are no descriptors, and leaves the connection in the kernel's queue until the next sweep."""
        if not self.starving:
            self.application.starved(error)
        self.starving = True
        self.epoll.modify(self.socket.fileno(), 0)

    def turn_away(self, connection):
        with contextlib.suppress(OSError):              # it left already
            connection.send(FULL, socket.MSG_DONTWAIT)
        connection.close()
        self.count("refused")
        self.application.observe(None, "", 503, 0.0)

    def adopt(self, handler, ready=False):
        """Takes a new connection, parked, or for a worker at once."""
        with self.lock:
            self.connections[handler.number] = handler
            handler.parked = not ready
            self.epoll.register(handler.number, READ | select.EPOLLONESHOT)
            if ready:
                self.queue.append(handler)
                self.work.notify()

    def wake(self, number):
        """Gives a connection for which something came to the workers. The event of one that is gone by now harms nobody."""
        with self.lock:
            handler = self.connections.get(number)
            if handler and handler.parked:
                self.hand_over(handler)

    def hand_over(self, handler):
        handler.parked = False
        self.queue.append(handler)
        self.work.notify()

    def sweep(self, now):
        """Ends the waits whose deadline is over."""
        with self.lock:
            for handler in self.connections.values():
                if handler.parked and now > handler.deadline:
                    handler.lapse()
                    self.hand_over(handler)
        if self.starving:
            self.epoll.modify(self.socket.fileno(), READ)

    def evict(self):
        """Closes the connection that has waited longest without a whole request; False where each has one."""
        with self.lock:
            handler = next((handler for handler in self.connections.values() if handler.parked), None)
            if handler:
                handler.parked = False
        if handler:
            self.count("evicted")
            handler.close()
        return bool(handler)

    # The workers' part

    def serve(self):
        """Takes connections from the queue for ever."""
        while True:
            with self.lock:
                self.idle += 1
                self.rest.notify_all()
                while not self.queue:
                    self.work.wait()
                self.idle -= 1
                handler = self.queue.popleft()
            self.process_request(handler)

    def process_request(self, handler):
        """Runs the connection until it has to wait, and parks it."""
        try:
            wait = handler.handle()
        except Exception as error:                      # a defect must not cost the worker
            self.application.defect(error)
            wait = handler.close()
        if wait is not GONE:
            self.park(handler, wait)

    def park(self, handler, wait):
        """Leaves the connection to the poller until READ or WRITE is possible, or, for AGAIN, puts it behind the others."""
        with self.lock:
            if handler.renewed:
                handler.renewed = False
                self.connections.move_to_end(handler.number)
            if wait is AGAIN:
                self.hand_over(handler)
            elif time.monotonic() > handler.deadline:   # else one that is always busy would never be seen by a sweep
                handler.lapse()
                self.hand_over(handler)
            else:
                handler.parked = True
                self.epoll.modify(handler.number, wait | select.EPOLLONESHOT)

    def quiet(self):
        """Whether a worker may wait for the next request of a connection that it has answered."""
        return self.idle > IDLE_WORKERS and not self.pausing and not self.closing

    def turn(self):
        """How a connection goes on that has more requests in its buffer."""
        return READ if self.pausing else AGAIN if self.queue and not self.idle else ON

    def enter(self, handler, waits):
        """Counts a request in, unless it waits() and all slots are taken: then it is deferred, and False."""
        with self.lock:
            if waits and self.slots >= SLOTS:
                self.deferred.append(handler)
                return False
            self.slots += waits
            self.in_flight += 1
            return True

    def leave(self, waits):
        with self.lock:
            self.in_flight -= 1
            self.slots -= waits
            if waits and self.deferred:
                self.hand_over(self.deferred.popleft())

    def forget(self, handler):
        """Closes a connection that the caller holds."""
        with self.lock:                                 # before another can get its number
            if self.connections.get(handler.number) is handler:
                del self.connections[handler.number]
                with contextlib.suppress(OSError):      # a failed TLS start has closed it
                    self.epoll.unregister(handler.number)
            handler.connection.close()
            self.rest.notify_all()

    def count(self, name):
        with self.lock:
            self.counts[name] += 1

    def date(self):
        """The Date field of this second."""
        now = int(time.time())
        if now != self.dated[0]:
            self.dated = now, ("Date: %s\r\n" % email.utils.formatdate(now, usegmt=True)).encode()
        return self.dated[1]

    # Life

    def busy(self):
        """Requests that are being answered, or whose answer is not yet taken."""
        return self.in_flight + len(self.deferred) + sum(1 for handler in self.connections.values() if handler.unsent)

    def resting(self):
        return self.idle == WORKERS and not self.queue

    def announce(self, seconds):
        """Has every answer say that the connection ends, until all clients that keep one have heard it."""
        self.closing = True
        with self.lock:
            self.rest.wait_for(lambda: not any(handler.served for handler in self.connections.values()), seconds)

    def end_poller(self):
        self.ending = True
        self.waker.send(b"!")
        self.poller.join()
        self.alarm.recv(1)

    def resume(self):
        """Goes on after pause()."""
        self.ending = self.pausing = self.closing = False
        self.epoll.register(self.socket.fileno(), READ)
        with self.lock:
            for handler in self.connections.values():
                if handler.parked and handler.data:
                    self.hand_over(handler)
        self.poller = threading.Thread(target=self.serve_forever, daemon=True)
        self.poller.start()

    def pause(self, seconds):
        """Finishes what is being answered, and touches no connection until resume(); False where that took too long. New ones
        wait in the kernel's queue. TLS connections, which no other process can go on with, are closed."""
        if self.tls:
            self.announce(min(NOTICE_SECONDS, seconds))
        self.pausing = True
        self.end_poller()
        self.epoll.unregister(self.socket.fileno())
        with self.lock:
            rested = self.rest.wait_for(self.resting, seconds)
        if rested and self.tls:
            for handler in list(self.connections.values()):
                with contextlib.suppress(OSError, ValueError):
                    handler.finish()
                handler.close()
        return rested

    def freeze(self):
        """The state of all connections of a paused server, for the `frozen` of a Server after an exec."""
        return [handler.freeze() for handler in self.connections.values()]

    def stop(self, seconds):
        """Tells the clients, stops accepting, waits for the requests in flight; the number of those abandoned."""
        end = time.monotonic() + seconds
        self.announce(min(NOTICE_SECONDS, seconds))
        self.epoll.unregister(self.socket.fileno())
        self.accept()                                   # whoever came before the end is answered
        self.socket.close()
        with self.lock:
            self.rest.wait_for(lambda: self.resting() and not self.busy(), max(0, end - time.monotonic()))
            abandoned = self.busy()
        self.end_poller()
        return abandoned


# TLS

def tls_context(certificate, key=None):
    """An SSLContext of the PEM files, TLS 1.2 up. Raises OSError, of which ssl.SSLError is one; never asks for a password."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:   # Python 3.6
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    context.load_cert_chain(certificate, key, password=b"")
    return context


def der_element(data, at):
    """(tag, start, end) of the DER element at `at` (X.690, 8.1)."""
    length, start = data[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7f
        length = int.from_bytes(data[at + 2:start], "big")
    return data[at], start, start + length


def expiry(path):
    """Unix time at which the first certificate of a PEM file ends: notAfter of RFC 5280, 4.1. Raises OSError or ValueError."""
    with open(path, "rb") as file:
        text = file.read().decode("latin-1")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    data = base64.b64decode(text.partition(begin)[2].partition(end)[0])
    at = der_element(data, der_element(data, 0)[1])[1]  # Certificate, TBSCertificate
    if data[at] == 0xa0:                                # the version
        at = der_element(data, at)[2]
    for _ in range(3):                                  # serial number, signature algorithm, issuer
        at = der_element(data, at)[2]
    at = der_element(data, der_element(data, at)[1])[2] # Validity: behind notBefore
    tag, start, stop = der_element(data, at)
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return calendar.timegm(time.strptime(data[start:stop].decode("ascii"), form))
