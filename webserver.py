"""A bounded http.server: HTTP/1.1 for GET and HEAD, whatever its clients do.

    server = Server(listening_socket((host, port)), application)
    server.start()                  # in threads of its own; stop(seconds) ends it

Way of a connection: the poller (serve_forever's thread) accepts it and parks it in epoll. What becomes ready goes to one of
WORKERS threads, made at the start, which runs Handler.handle until the connection would have to wait for the network, and
parks it again. All input and output is non-blocking, so that no client can hold a thread; only the application may, and the
requests of which it says that they wait() get SLOTS of the workers at most. A worker that has answered stays with its
connection for LINGER seconds as long as there are idle ones, which spares a busy connection the way through the poller.
Every parked connection has a deadline. When there are too many, the one that waited longest without a whole request goes.

The application has wait(Request) -> bool and respond(Request) -> messages.Response, which must not raise, and is told what
happens by observe(Answered) for every answer, defect(exception, request id or None) for what a worker did not expect,
starved(OSError) when connections cannot be accepted, and starved(None) once they can. Every request has an id, the client's
own or one made here, which no other request of any server has.
"""

import collections
import contextlib
import ctypes
import email.utils
import errno
import http.server
import itertools
import os
import re
import resource
import select
import socket
import socketserver
import struct
import sys
import threading
import time

import messages
from messages import Refusal

WORKERS = 32            # threads that answer
SLOTS = 24              # of these at most for requests that wait for something, a database or a password hash
IDLE_WORKERS = 8        # as many are kept from lingering, for whoever comes next
LINGER = 0.05           # s that a worker stays with a connection it has answered
BACKLOG = 1024          # connections the kernel keeps waiting; the stock 5 turns a burst into resets
MAX_CONNECTIONS = 2048  # open at once; fewer where the descriptor limit is lower
RESERVE = 64            # descriptors left to the rest of the process, or half of a limit below twice that
TRIM_FROM = 64          # connections at once whose memory is worth giving back to the kernel
SWITCH_SECONDS = 0.0005 # that a busy thread runs before another's turn; with all workers busy 5 ms would keep the poller waiting
SWEEP = 0.25            # s between two looks at the deadlines
HEAD_SECONDS = 10       # from the accept, or from the first byte of a further head, to its end; body and TLS handshake too
IDLE_SECONDS = 15       # between an answer and the first byte of the next request
WRITE_SECONDS = 10      # for the client to take an answer
DISCARD_SECONDS = 2     # after our last answer, to read what still comes: a reset would destroy the answer (RFC 9112, 9.6)
NOTICE_SECONDS = 1      # for clients to hear "Connection: close" from a server that stops
PIECE = 16384           # bytes of one read
METHODS = ("GET", "HEAD")

COUNTS = ("accepted", "refused", "evicted", "head_timeouts", "idle_timeouts", "write_timeouts", "tls_failures")
M_ARENA_MAX = -8        # of malloc.h
STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Request = collections.namedtuple("Request", "method path query headers address arrived id")  # arrived: monotonic seconds
Answered = collections.namedtuple("Answered", "id head line address status size seconds")    # head: None of what was none

# One connection. Its steps return READ or WRITE to be parked until that is possible, ON to go on with the next step, AGAIN
# to let others have the worker first, GONE when the connection is no longer this worker's.

READ, WRITE, ON, AGAIN, GONE = select.EPOLLIN, select.EPOLLOUT, "on", "again", "gone"


class Handler(http.server.BaseHTTPRequestHandler):
    """A connection; every thread that touches it holds it, which `parked` says nobody does."""

    protocol_version = "HTTP/1.1"
    portable = True     # another process can go on with it
    secure = False      # as https demands

    def __init__(self, connection, address, server):
        # Not that of BaseRequestHandler, which would serve the connection to its end in here.
        self.connection, self.client_address, self.server = connection, address, server
        self.number = connection.fileno()
        self.step = type(self).begin
        self.data = self.unsent = b""   # received and not yet answered; answered and not yet taken
        self.head_data, self.head = b"", None   # the last head; a scraper sends the same again and again
        self.seen = 0                   # bytes of `data` that were found to be a head's so far
        self.body = None                # what comes behind the head, until that is whole
        self.slot = False               # whether it has one of the SLOTS
        self.id = None                  # of the request that is being answered
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

    def read(self, flags=socket.MSG_DONTWAIT):
        """Bytes, none at the end of the stream, None where there are none now."""
        try:
            return self.connection.recv(PIECE, flags)
        except BlockingIOError:
            return None

    def push(self):
        """Sends of what is unsent as much as is taken now; whether that is anything."""
        try:
            sent = self.connection.send(self.unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        self.unsent = self.unsent[sent:]
        return True

    def resting(self):
        """Whether the client was answered, and has sent nothing of a further request."""
        return self.served and not self.data and not self.body

    def receive(self):
        """Reads a piece, unless there is a whole request already."""
        try:
            if self.data and self.whole():
                return ON
            # Only an answered client is worth a wait of LINGER, which is the socket's own SO_RCVTIMEO.
            stay = self.resting() and self.server.quiet()
            data = self.read(0) if stay else self.read()
            if data is None:
                return READ
            if not data:
                return self.ended()
            if self.served and not self.body and data.strip(b"\r\n") and not self.data.strip(b"\r\n"):    # no empty line
                self.deadline = time.monotonic() + HEAD_SECONDS
            self.data += data
            return ON if self.whole() else READ     # not the next piece: none who sends without end keeps the worker
        except Refusal as refusal:
            return self.send_error(refusal.status, refusal.detail, fields=refusal.fields)

    begin = receive     # the first step

    def whole(self):
        """Whether `data` starts with a whole request; then self.head is its head. Raises Refusal."""
        if self.data.startswith(b"\r\n") and not self.body:     # RFC 9112, 2.2
            self.data, self.seen = re.sub(rb"\A(?:\r\n)+", b"", self.data), 0
        if not self.body:
            end = self.data.find(b"\r\n\r\n", max(0, self.seen - 3)) + 4
            if end < 4:
                messages.check_unfinished(self.data, self.seen)
                self.seen = len(self.data)
                return False
            self.parse_request(end)
            self.data, self.seen = self.data[end:], 0
            if self.head.body and not self.head.expects:
                self.body = messages.Body(self.head.body)
        if self.body:
            self.data = self.body.take(self.data)
            if not self.body.whole:
                return False
            self.body = None
        self.arrived, self.step = time.monotonic(), Handler.respond
        return True

    def parse_request(self, end):
        """Sets self.head from the first `end` bytes of the data."""
        data = self.data[:end]
        if data != self.head_data:
            self.head = None
            messages.check_size(data, end)
            self.head, self.head_data = messages.read_head(data), data
        self.close_connection = not self.head.keep

    def ended(self):
        """The client has said its last."""
        if not self.data and not self.body:
            return self.close()
        return self.send_error(400, "the request ends in the middle")

    def respond(self):
        """Has the application answer, if it may now."""
        head, server = self.head, self.server
        self.id = self.id or head.request_id or server.new_id()     # the first if it was deferred
        if head.method not in METHODS or head.path is None:
            return self.refuse_method()
        if head.https and not self.secure:
            return self.send(messages.problem(421, "TLS is not spoken here, which https demands", self.id))
        request = Request(head.method, head.path, head.query, head.headers, self.client_address, self.arrived, self.id)
        waits = server.application.wait(request)
        if not server.enter(self, waits):
            return GONE
        try:
            response = server.application.respond(request)
        finally:
            server.leave(self)
        return self.send(response)

    def refuse_method(self):
        allow = ", ".join(METHODS)
        detail = "%s is not possible here, only %s" % (self.head.method, allow)
        return self.send(messages.problem(405, detail, self.id, [("Allow", allow)]))

    def send_error(self, code, message=None, explain=None, fields=()):
        """Refuses what was received. The connection ends, since nobody knows where the next request would start."""
        self.close_connection, self.id = True, self.server.new_id()     # what it said of itself is in doubt too
        response = messages.problem(code, message, self.id, fields)
        data = self.head_data if self.body else self.data
        line = data.partition(b"\r\n")[0][:messages.LINE_MAX].decode("latin-1")
        if line.startswith("HEAD "):
            response.body = b""
        self.data, self.body, self.arrived = b"", None, time.monotonic()
        return self.write(response, None, line)

    def send(self, response):
        """Sends the answer to self.head."""
        return self.write(response, self.head, self.head.line, self.head.method == "HEAD", self.head.http10)

    def write(self, response, head, line, bodiless=False, http10=False):
        """Sends the answer in one write, as far as the client takes it."""
        server, now = self.server, time.monotonic()
        if server.closing or type(self) is not server.RequestHandlerClass:  # handed over by one that had no TLS, or had
            self.close_connection = True
        field = b"Connection: close\r\n" if self.close_connection else b"Connection: keep-alive\r\n" if http10 else b""
        body = b"" if bodiless else response.body
        self.unsent = b"".join((
            response.head, server.date(), b"X-Request-ID: ", self.id.encode(), b"\r\n", field, b"\r\n", body))
        self.step, self.deadline = Handler.flush, now + WRITE_SECONDS
        server.application.observe(
            Answered(self.id, head, line, self.client_address, response.status, len(body), now - self.arrived))
        return self.flush()

    def flush(self):
        """Sends what is unsent."""
        while self.unsent:
            if not self.push():
                return WRITE
        if self.close_connection:
            return self.finish()
        self.served = self.renewed = True
        self.id = None
        self.step, self.deadline = Handler.receive, time.monotonic() + (HEAD_SECONDS if self.data else IDLE_SECONDS)
        return ON if not self.data else self.server.turn()

    def finish(self):
        """Closes our side, and waits for the client to close its own."""
        self.connection.shutdown(socket.SHUT_WR)
        self.data, self.unsent = b"", b""
        self.step, self.deadline = Handler.discard, time.monotonic() + DISCARD_SECONDS
        return ON

    def discard(self):
        """Reads a piece of what nobody wants."""
        return self.close() if self.read() == b"" else READ

    def expire(self):
        """The deadline of the step that was waited in is over."""
        step, self.step = self.late, None
        if step is Handler.flush:
            self.server.count("write_timeouts")
        elif step is Handler.receive and self.resting():
            self.server.count("idle_timeouts")
        elif step is not Handler.discard:
            self.server.count("head_timeouts")
            if self.data or self.body:
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
        begun = b""
        if self.body:
            begun = self.head_data + self.body.taken(self.head.body)
        elif self.step is Handler.respond:              # deferred
            begun = self.head_data + (b"" if self.head.expects else messages.stand_in(self.head.body))
        return {"descriptor": self.number, "data": (begun + self.data).decode("latin-1"), "unsent": self.unsent.decode("latin-1"),
                "close": self.close_connection, "served": self.served, "discard": self.step is Handler.discard}

    @classmethod
    def thaw(cls, state, server):
        """The Handler of what freeze() gave in another process. Raises OSError where that is no open connection."""
        number, served, closing, discard = (state[name] for name in ("descriptor", "served", "close", "discard"))
        data, unsent = (state[name].encode("latin-1") for name in ("data", "unsent"))
        os.set_inheritable(number, False)
        connection = socket.socket(fileno=number)
        handler = cls(connection, connection.getpeername()[0], server)
        handler.data, handler.unsent, handler.close_connection, handler.served = data, unsent, closing, served
        handler.step = Handler.discard if discard else Handler.flush if unsent else Handler.receive
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


def share_arena():
    """Has all threads allocate from one place (mallopt(3)): as the interpreter runs one at a time, places of their own, which
    glibc gives them, would only cost memory."""
    with contextlib.suppress(AttributeError):           # another libc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def trim():
    """Gives freed memory back to the kernel (malloc_trim(3)), which glibc else keeps after a thousand connections."""
    with contextlib.suppress(AttributeError):           # another libc
        ctypes.CDLL(None).malloc_trim(0)


class Server(http.server.HTTPServer):
    """Accepts from a listening socket until stop(), or pause(). `frozen` are the connections that a paused predecessor had."""

    def __init__(self, listener, application, handler=Handler, frozen=()):
        # Not that of HTTPServer, which would bind, and look up the host's name, which can stall a start for minutes.
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)
        self.socket, self.application = listener, application
        self.server_name, self.server_port = self.server_address[:2]
        listener.setblocking(False)
        # Accepted sockets inherit both. Without the first a kept connection's answer waits 40 ms for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(LINGER * 1e6)))
        self.limit = connection_limit()
        share_arena()
        sys.setswitchinterval(SWITCH_SECONDS)
        self.lock = threading.Lock()                    # of all that follows
        self.work = threading.Condition(self.lock)      # something is in the queue
        self.rest = threading.Condition(self.lock)      # a worker has nothing to do, or a connection is gone
        self.connections = collections.OrderedDict()    # descriptor -> Handler, first who waits longest for a whole request
        self.queue, self.deferred = collections.deque(), collections.deque()
        self.greedy = collections.deque()               # answered, and have sent more: they come after the queue
        self.idle = self.slots = self.in_flight = self.peak = 0
        self.name, self.numbers = os.urandom(8).hex(), itertools.count(1)   # of new_id()
        self.closing = self.holding = self.pausing = self.ending = self.starving = False
        self.counts = dict.fromkeys(COUNTS, 0)
        self.dated = 0, b""
        self.epoll = select.epoll()
        self.alarm, self.waker = socket.socketpair()
        self.epoll.register(self.alarm, READ)
        self.threads = [threading.Thread(target=self.serve, daemon=True) for _ in range(WORKERS)]
        for state in frozen:
            self.take_over(state)

    def take_over(self, state):
        """Goes on with a frozen connection, or closes one that was frozen by a release that did it in another way."""
        try:
            self.adopt(Handler.thaw(state, self), bool(state["data"] or state["unsent"]))
        except Exception:   # whatever another release wrote: there is no way back to it, and the others shall be served
            with contextlib.suppress(OSError, KeyError, TypeError):     # it has not survived
                os.close(state["descriptor"])

    def start(self):
        for thread in self.threads:
            thread.start()
        self.resume()

    # The poller's part

    def serve_forever(self, poll_interval=SWEEP):
        """Accepts, wakes and times out connections until `ending`."""
        self.next_sweep = 0
        while not self.ending:
            try:
                self.service_actions(self.epoll.poll(poll_interval if self.connections or self.starving else -1))
            except Exception as error:                  # a defect must not cost the poller, without whom nobody is served
                self.tell(error, None)
                time.sleep(poll_interval)               # one that comes at every turn must not fill the disk with log lines

    def service_actions(self, events):
        """One turn of the poller."""
        numbers = {number for number, _ in events}
        if self.socket.fileno() in numbers:
            self.accept()
        self.wake(numbers)
        now = time.monotonic()
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP
            self.sweep(now)

    def watch(self, events):
        """Has the poller look at the listening socket, for READ or for nothing."""
        with contextlib.suppress(OSError):              # stop() has taken it out
            self.epoll.modify(self.socket.fileno(), events)

    def waiting(self):
        """Whether somebody is to be accepted: accept(2) wants a descriptor before it looks, and fails without one all the same."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def accept(self):
        """Accepts what the kernel has ready."""
        gave_way = False
        for _ in range(BACKLOG):
            try:
                connection, address = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in STARVED:
                    if not self.waiting():
                        return
                    if gave_way or not self.evict():
                        return self.starve(error)
                    gave_way = True
                continue                                # else a client that has left already
            if self.starving:
                self.application.starved(None)
            self.starving = gave_way = False
            self.counts["accepted"] += 1
            if len(self.connections) >= self.limit and not self.evict():
                self.turn_away(connection, address[0])
            else:
                self.adopt(self.RequestHandlerClass(connection, address[0], self))

    def starve(self, error):
        """Says once that there are no descriptors, and leaves the connection in the kernel's queue until the next sweep."""
        if not self.starving:
            self.application.starved(error)
        self.starving = True
        self.watch(0)

    def turn_away(self, connection, address):
        name = self.new_id()
        answer = messages.problem(503, "there are too many connections", name, [
            ("Retry-After", "1"), ("Connection", "close"), ("X-Request-ID", name)])
        with contextlib.suppress(OSError):              # it left already
            connection.send(self.dated_bytes(answer), socket.MSG_DONTWAIT)
        connection.close()
        self.count("refused")
        self.application.observe(Answered(name, None, "", address, 503, len(answer.body), 0.0))

    def adopt(self, handler, ready=False):
        """Takes a new connection, parked, or for a worker at once."""
        with self.lock:
            self.connections[handler.number] = handler
            handler.parked = not ready
            self.epoll.register(handler.number, READ | select.EPOLLONESHOT)
            if ready:
                self.queue.append(handler)
                self.work.notify()

    def wake(self, numbers):
        """Gives the connections for which something came to the workers, all at once: taking the lock for each would keep the
        poller from accepting. The event of one that is gone by now harms nobody."""
        with self.lock:
            for handler in map(self.connections.get, numbers):
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
            self.watch(READ)
        self.peak = max(self.peak, len(self.connections))
        if self.peak >= TRIM_FROM and len(self.connections) < self.peak / 4:
            self.peak = len(self.connections)
            trim()

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
            with contextlib.suppress(MemoryError):      # that even waiting takes, and that others may give back
                self.process_request(self.next_ready())

    def next_ready(self):
        """The next connection with something to do; waits for it."""
        with self.lock:
            self.idle += 1
            try:
                self.rest.notify_all()
                while not (self.queue or self.greedy):
                    self.work.wait()
            finally:
                self.idle -= 1
            return (self.queue or self.greedy).popleft()

    def process_request(self, handler):
        """Runs the connection until it has to wait, and parks it."""
        try:
            wait = handler.handle()
            if wait is not GONE:
                self.park(handler, wait)
        except Exception as error:                      # a defect must not cost the worker
            self.tell(error, handler.id)
            self.drop(handler)

    def tell(self, error, name):
        """Tells the application of a defect. Without memory not even that can be done, and going on counts more."""
        with contextlib.suppress(Exception):
            self.application.defect(error, name)

    def drop(self, handler):
        """Closes the connection of a defect; where even that fails, the next sweep does."""
        try:
            handler.close()
        except Exception:
            handler.deadline, handler.parked = 0, True

    def park(self, handler, wait):
        """Leaves the connection to the poller until READ or WRITE is possible, or, for AGAIN, puts it behind the others."""
        with self.lock:
            if handler.renewed:
                handler.renewed = False
                self.connections.move_to_end(handler.number)
            if wait is AGAIN and not self.pausing:
                self.greedy.append(handler)
                self.work.notify()
            elif wait is AGAIN:                         # resume() or another process goes on with what it has sent
                handler.parked = True
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
        return AGAIN if self.pausing or (self.queue or self.greedy) and not self.idle else ON

    def enter(self, handler, waits):
        """Counts a request in, unless it waits() and there is no slot for it: then it is deferred, and False."""
        with self.lock:
            if waits and not handler.slot:
                if self.slots >= SLOTS or self.holding:
                    self.deferred.append(handler)
                    return False
                self.slots, handler.slot = self.slots + 1, True
            self.in_flight += 1
            return True

    def leave(self, handler):
        """Counts a request out, and gives its slot to the one deferred first."""
        with self.lock:
            self.in_flight -= 1
            self.release(handler)

    def release(self, handler):
        if handler.slot:
            handler.slot, self.slots = False, self.slots - 1
            self.promote()

    def promote(self):
        """Gives the free slots to those deferred; they keep them until they leave."""
        while self.deferred and self.slots < SLOTS and not self.holding:
            handler = self.deferred.popleft()
            self.slots, handler.slot = self.slots + 1, True
            self.hand_over(handler)
        self.rest.notify_all()

    def forget(self, handler):
        """Closes a connection that the caller holds."""
        with self.lock:                                 # before another can get its number
            if self.connections.get(handler.number) is handler:
                del self.connections[handler.number]
                with contextlib.suppress(OSError):      # a failed TLS start has closed it
                    self.epoll.unregister(handler.number)
            self.release(handler)                       # in case of a defect
            with contextlib.suppress(OSError):          # what the kernel could not deliver is no concern of ours
                handler.connection.close()
            self.rest.notify_all()

    def count(self, name):
        with self.lock:
            self.counts[name] += 1

    def new_id(self):
        """A name for a request that no other has, of this server or another; all are equally long, as HEAD and GET shall be."""
        return "%s-%08x" % (self.name, next(self.numbers))

    def date(self):
        """The Date field of this second."""
        now = int(time.time())
        if now != self.dated[0]:
            self.dated = now, ("Date: %s\r\n" % email.utils.formatdate(now, usegmt=True)).encode()
        return self.dated[1]

    def dated_bytes(self, answer):
        """A Response with all its fields as it is sent now, where no Handler sends it."""
        return answer.head + self.date() + b"\r\n" + answer.body

    # Life

    def busy(self):
        """Requests that are being answered, or whose answer is not yet taken."""
        return self.in_flight + len(self.deferred) + sum(1 for handler in self.connections.values() if handler.unsent)

    def resting(self):
        return self.idle == WORKERS and not self.queue and not self.greedy and not self.slots

    def announce(self, seconds):
        """Has every answer say that the connection ends, until all clients that keep one have heard it."""
        self.closing = True
        with self.lock:
            self.rest.wait_for(lambda: not any(handler.served for handler in self.connections.values()), seconds)

    def owing(self):
        """Whether somebody has not taken an answer yet, or has connected just now and not got one."""
        since = time.monotonic() + HEAD_SECONDS - NOTICE_SECONDS
        return any(handler.unsent or not handler.served and handler.deadline > since for handler in self.connections.values())

    def settle(self, seconds):
        """Waits, once nobody is accepted any more, for whoever came during the announcement, and longer for who still reads."""
        with self.lock:
            self.rest.wait_for(lambda: not self.owing(), min(NOTICE_SECONDS, seconds))
            self.rest.wait_for(lambda: not any(handler.unsent for handler in self.connections.values()), seconds)

    def start_poller(self):
        self.ending = False
        self.poller = threading.Thread(target=self.serve_forever, daemon=True)
        self.poller.start()

    def end_poller(self):
        self.ending = True
        self.waker.send(b"!")
        self.poller.join()
        self.alarm.recv(1)

    def turn_deaf(self):
        """Ends the poller, and with it the accepting."""
        self.end_poller()
        self.epoll.unregister(self.socket.fileno())
        self.starving = False

    def unhold(self):
        with self.lock:
            self.holding = False
            self.promote()

    def resume(self):
        """Goes on after pause(), and freeze()."""
        self.epoll.register(self.socket.fileno(), READ)
        with self.lock:
            self.pausing = self.closing = False
            for handler in self.connections.values():
                os.set_inheritable(handler.number, False)
                if handler.parked and handler.data:
                    self.hand_over(handler)
        self.unhold()
        self.start_poller()

    def hold(self, seconds):
        """Defers all requests that wait(), and waits for those at it, while the others are served; whether they are done."""
        with self.lock:
            self.holding = True
            return self.rest.wait_for(lambda: not self.slots, seconds)

    def pause(self, seconds):
        """Finishes what is being answered, and touches no connection until resume(); False, and all goes on, where that took too
        long. New ones wait in the kernel's queue. Of TLS connections, which no other process can go on with, our side is closed."""
        portable = self.RequestHandlerClass.portable
        if portable and not self.hold(seconds):             # what is deferred meanwhile is for the other process
            self.unhold()
            return False
        if not portable:
            self.announce(min(NOTICE_SECONDS, seconds))
        self.turn_deaf()
        if not portable:
            self.start_poller()
            self.settle(seconds)
            self.end_poller()
        self.pausing = True
        with self.lock:
            rested = self.rest.wait_for(self.resting, seconds)
        if not rested:
            self.resume()
            return False
        for handler in [handler for handler in self.connections.values() if not handler.portable]:
            try:
                handler.finish()
            except OSError:                             # the client left already
                handler.close()
        return True

    def freeze(self):
        """The state of all connections of a paused server, for the `frozen` of a Server after an exec."""
        return [handler.freeze() for handler in self.connections.values()]

    def stop(self, seconds):
        """Tells the clients, stops accepting, waits for the requests in flight; the number of those abandoned."""
        end = time.monotonic() + seconds
        self.announce(min(NOTICE_SECONDS, seconds))
        self.turn_deaf()
        self.accept()                                   # whoever came before the end is answered
        self.socket.close()
        self.starving = False
        self.start_poller()
        self.settle(max(0, end - time.monotonic()))
        with self.lock:
            self.rest.wait_for(lambda: self.resting() and not self.busy(), max(0, end - time.monotonic()))
            abandoned = self.busy()
        self.end_poller()
        return abandoned
