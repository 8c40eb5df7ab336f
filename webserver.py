"""A small http.server: GET and HEAD over HTTP/1.1 with keep-alive, one thread a connection, a bound on their number.

    Server((host, port), application).serve_forever()

The application has respond(Request) -> Response, called in the connection's thread, which must not raise, and is told what
happens by observe(request line, status, seconds) for every answer, defect(exception) for what a thread did not expect and
starved(OSError) when connections cannot be accepted. This module knows nothing of shipments.
Errors are application/problem+json (RFC 9457).
"""

import collections
import errno
import http.server
import json
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from http import HTTPStatus

BACKLOG = 128           # connections the kernel keeps waiting; the stock 5 turns a burst into resets
MAX_CONNECTIONS = 64    # threads at most; who comes after that is told 503 at once
ACCEPT_PAUSE = 0.1      # s between two tries to accept when no descriptor is left
READ_TIMEOUT = 10       # s a connection may stay silent before it is closed
METHODS = ("GET", "HEAD")
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"

Request = collections.namedtuple("Request", "method path query headers")  # query: name -> list of values
Response = collections.namedtuple("Response", "status content_type body headers")


def json_answer(status, document, content_type="application/json", headers=()):
    """A Response of the document. NaN and infinity, which JSON does not have, raise ValueError."""
    body = json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8") + b"\n"
    return Response(status, content_type, body, headers)


def problem(status, detail, headers=(), **members):
    """A problem+json Response: the status in words, the detail as a sentence, further members as they are."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    document.update(members)
    return json_answer(int(status), document, "application/problem+json", headers)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = READ_TIMEOUT
    wbufsize = -1                   # head and body leave in one write
    disable_nagle_algorithm = True  # else a keep-alive answer waits 40 ms for the client's delayed ACK

    def answer_request(self):
        started = time.monotonic()
        with self.server.working:
            response = self.respond()
            self.send(response)
            self.server.application.observe(self.requestline, response.status, time.monotonic() - started)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = answer_request

    def respond(self):
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # the body stays unread and must not be taken for the next request
        if self.command not in METHODS:
            return self.refusal()
        try:
            target = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(target.query, keep_blank_values=True)
        except ValueError:  # brackets without an address, too many fields
            self.close_connection = True
            return problem(400, "the request target is no URL")
        return self.server.application.respond(Request(self.command, target.path, query, self.headers))

    def refusal(self):
        """The answer to any other method."""
        allow = ", ".join(METHODS)
        return problem(405, "%s is not possible here, only %s" % (self.command[:20], allow), [("Allow", allow)])

    def send(self, response):
        if self.server.stopping:
            self.close_connection = True
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in response.headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()

    def send_error(self, code, message=None, explain=None):
        """What http.server itself refuses, in our form; the connection ends, since its framing is in doubt."""
        self.close_connection = True
        self.request_version = self.protocol_version  # else it would answer garbage as HTTP/0.9, without a status line
        self.command = self.command or ""
        unknown = code == HTTPStatus.NOT_IMPLEMENTED  # a method that http.server found no do_ for
        response = self.refusal() if unknown else problem(code, message or HTTPStatus(code).phrase)
        self.send(response)
        self.server.application.observe(self.requestline, response.status, 0.0)

    def version_string(self):
        return "metrics_service"  # which Python runs is nobody's business outside

    def log_message(self, format, *args):
        """Nothing: observe() is told of every answer."""


class Working:
    """Counts requests in flight, so that a stop can wait for them."""

    def __init__(self):
        self.count = 0
        self.changed = threading.Condition()

    def __enter__(self):
        with self.changed:
            self.count += 1

    def __exit__(self, *exception):
        with self.changed:
            self.count -= 1
            self.changed.notify_all()

    def wait_idle(self, seconds):
        """The number of requests still in flight when none is left or the time is over."""
        with self.changed:
            self.changed.wait_for(lambda: not self.count, seconds)
            return self.count


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True           # an idle connection must not hold up the end of the process
    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(self, address, application):
        """Binds and listens. Raises OSError."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.application, self.starving = application, False
        self.working = Working()
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.stopping = False
        super().__init__(address, Handler)

    def server_bind(self):
        """Binds without HTTPServer's look-up of the host's name, which can stall a start for minutes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def get_request(self):
        try:
            accepted = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.starve(error)
            raise  # socketserver passes over it
        self.starving = False
        return accepted

    def starve(self, error):
        """Says once that there are no descriptors, and waits a moment: the connection stays queued and would spin the loop."""
        if not self.starving:
            self.application.starved(error)
        self.starving = True
        time.sleep(ACCEPT_PAUSE)

    def process_request(self, request, client_address):
        if not self.slots.acquire(blocking=False):
            self.turn_away(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started; the slot would be lost
            self.slots.release()
            raise

    def turn_away(self, request):
        request.settimeout(1)
        try:
            request.sendall(FULL)
        except OSError:
            pass  # it left already
        self.application.observe("", 503, 0.0)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, socket.timeout)):  # a client that leaves early is no error of ours
            self.application.defect(error)

    def stop(self, seconds):
        """Stops accepting, waits for the requests in flight; the number of those abandoned. Not in serve_forever's thread."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        return self.working.wait_idle(seconds)
