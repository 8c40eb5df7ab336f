"""Tell the service manager how we are, by the protocol of sd_notify(3); tell nobody where none has started us.

    manager = Manager(os.environ)
    manager.tell(READY=1, STATUS="serving")
    Watch(manager, words, silence).start()

A message is one datagram of NAME=value lines to the socket that NOTIFY_SOCKET names. That one is lost never matters to whoever
sends it: the manager hears the next one, or does what it does about a service that is silent.
"""

import itertools
import logging
import re
import socket
import threading
import time

STATUS_MAX = 1000       # characters of a status line; the manager shows it in one line
FEEDS = 2               # of the watchdog in its period, as sd_watchdog_enabled(3) advises
PATIENCE = 0.8          # part of the time between two feeds that the service may take to prove that it answers
RETRY = 1.0             # s between two tries while it does not
PERIOD_MAX = 86400      # s; a longer one is more than timeouts can be, and nobody minds a feed too many
PIECE = 4096            # bytes of one read
PIECES_MAX = 16         # of an answer that are read

REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nUser-Agent: watchdog\r\nConnection: close\r\n\r\n"

WHOLE = re.compile(r"[1-9][0-9]{0,18}\Z", re.ASCII)


class Manager:
    """Who started us, as the environment says. `period` is the watchdog's in seconds, None where it does not wait for us."""

    def __init__(self, environ, pid):
        given = environ.get("NOTIFY_SOCKET", "")
        # In the abstract namespace the first byte of the address is 0, which the variable cannot hold.
        self.address = "\0" + given[1:] if given.startswith("@") else given if given.startswith("/") else None
        micros, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        waits = self.address and WHOLE.match(micros) and whose in ("", str(pid))
        self.period = min(int(micros) / 1e6, PERIOD_MAX) if waits else None

    def tell(self, **values):
        """Sends the values in one datagram, in their order; whether the manager's socket has taken it. Never waits or raises."""
        if not self.address:
            return False
        lines = ("%s=%s" % (name, " ".join(str(value).split())[:STATUS_MAX]) for name, value in values.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)       # a full queue is the manager's trouble, which must not become ours
                sender.sendto("\n".join(lines).encode("utf-8", "replace"), self.address)
            return True
        except (OSError, ValueError):           # nobody there, or a path longer than an address can be
            return False

    def reloading(self):
        """Says that a reload begins now. The manager takes the time only in the same datagram (sd_notify(3), RELOADING=1)."""
        micros = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
        return self.tell(RELOADING=1, MONOTONIC_USEC=micros)


def ask(address, family, request, seconds, secure):
    """The bytes of the answer to a request, on a connection of its own; its certificate counts for nothing. Raises OSError."""
    with socket.socket(family) as connection:
        connection.settimeout(seconds)
        connection.connect(address)
        if secure:
            import ssl      # which the service has loaded by then
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        with connection:
            connection.sendall(request)
            pieces = iter(lambda: connection.recv(PIECE), b"")
            return b"".join(itertools.islice(pieces, PIECES_MAX))


def silence(listener, instance, seconds, secure):
    """Why the service behind a listening socket does not answer as this instance, in words; None when it does.

    A request goes the way of every other: the kernel's queue, the poller, a worker, and back. It is for /livez, which asks
    neither the database nor for a password, so that what a restart cannot cure is no reason for one.
    """
    host, port = listener.getsockname()[:2]
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = (near, port) + listener.getsockname()[2:]
    try:
        answer = ask(address, listener.family, REQUEST, seconds, secure)
    except OSError as error:    # socket.timeout and ssl.SSLError are among them
        return "GET /livez at %s port %d: %s" % (near, port, error.strerror or error or type(error).__name__)
    if not answer.startswith(b"HTTP/1.1 200 ") or instance.encode() not in answer:
        return "GET /livez at %s port %d is answered %s" % (near, port, ascii(answer[:60].decode("latin-1")))
    return None


class Watch(threading.Thread):
    """Keeps the manager informed: STATUS when words() are others than before, WATCHDOG while silence(seconds) is None.

    It looks when an event is logged, since no state changes without, and when the watchdog is due. `report` is told when the
    service falls silent, with the reason, and with None when it answers again. While somebody holds the lock it does nothing.
    """

    def __init__(self, manager, words, silence, report):
        super().__init__(daemon=True)
        self.manager, self.words, self.silence, self.report = manager, words, silence, report
        self.pause = manager.period and manager.period / FEEDS
        self.lock, self.changed, self.over = threading.Lock(), threading.Event(), False
        self.said = self.trouble = None
        self.resting = 0.0              # monotonic time until which the service need not prove that it answers

    def say(self, **values):
        """Tells the values, and the status words where they are new."""
        words = self.words()
        if words != self.said:
            values["STATUS"] = words
        if values and self.manager.tell(**values):
            self.said = words

    def feed(self):
        """Feeds the watchdog, if the service answers; the seconds until the next look."""
        trouble = None if time.monotonic() < self.resting else self.silence(PATIENCE * self.pause)
        if bool(trouble) != bool(self.trouble) and not self.over:
            self.report(trouble)
        self.trouble = trouble
        if trouble:
            return min(RETRY, self.pause)
        self.manager.tell(WATCHDOG=1)
        return self.pause

    def rest(self, seconds):
        """Feeds the watchdog without a proof for so long at most, as in a reload, which accepts nobody for a moment."""
        self.resting = time.monotonic() + seconds
        with self.lock:                 # a proof that was under way
            pass

    def run(self):
        due = time.monotonic()
        while not self.over:
            self.changed.clear()
            with self.lock:
                self.say()
                if self.pause and time.monotonic() >= due:
                    due = time.monotonic() + self.feed()
            self.changed.wait(max(0, due - time.monotonic()) if self.pause else None)

    def end(self):
        """Ends the thread, without waiting for it."""
        self.over = True
        self.changed.set()


class Bell(logging.Handler):
    """Rings an Event for what is logged."""

    def __init__(self, changed):
        super().__init__(logging.INFO)  # at DEBUG there is one for each reading of the database
        self.changed = changed

    def emit(self, record):
        self.changed.set()
