"""The log: one event, one line, to a file or, while that cannot be written, to stdout.

    install(Log(path, "text", "info"))      # from now on
    event(logging.INFO, "service_started", pid=1)
    with caused_by(route="/metrics", request_id="7f-1"):    # the events of this thread say so
        ...
"""

import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import select
import stat
import sys
import threading
import time

from exposition import instant

NAME = "metrics_service"
ACCESS = "request"      # the event of an access line
LOG_RETRY = 5           # s between two tries of a log file that could not be written
STDOUT_SECONDS = 0.5    # that a line waits for who reads stdout; the next ones do not, until he goes on
PIECE = 4096            # bytes that a pipe takes at once where it takes any: PIPE_BUF of pipe(7)
VALUE_MAX = 4096        # characters of a value; of a longer one the middle is left out
LINE_MAX = 16000        # bytes of a line, whose values are cut more for that: collectors split or drop from 16 KiB on
THIN_SECONDS = 10       # in which of the same event...
THIN_FIRST = 5          # ...so many are written, and the others counted
KINDS_MAX = 100         # different events that are thinned each by itself; more are a flood of another kind
CHECK_AGENT = "health_check/"   # User-Agent of the check: errors that it meets are not counted, since the count is its alarm
LOGGER = logging.getLogger(NAME)
LOGGER.addHandler(logging.NullHandler())  # until install: --check reports on its own
LOGGER.propagate = False
CAUSE = threading.local()       # .fields: what caused_by() gave
FLOODS = ("request_failed", "slow_request", "slow_query", "login_failed", "database_reread")    # each request can be the next
KIND = ("reason", "error_type", "route", "status")      # the fields by which one of them is the same as another
PRIORITIES = {logging.ERROR: "<3>", logging.WARNING: "<4>", logging.INFO: "<6>", logging.DEBUG: "<7>"}  # of sd-daemon(3)
ECS_VERSION = "8.11.0"
ECS_FIELDS = {  # elastic.co/docs/reference/ecs; what has no name there goes under our own
    "reason": "event.reason", "error": "error.message", "error_type": "error.type", "stack": "error.stack_trace",
    "path": "file.path", "method": "http.request.method", "route": "url.path", "query": "url.query", "url": "url.full",
    "status": "http.response.status_code", "bytes": "http.response.body.bytes", "seconds": "event.duration",
    "client": "client.address", "user_agent": "user_agent.original", "request_id": "http.request.id", "pid": "process.pid",
    "instance": "service.ephemeral_id", "version": "service.version"}
ERRNO_REASONS = {errno.ENOENT: "missing", errno.ENOTDIR: "missing", errno.EACCES: "denied", errno.EPERM: "denied",
                 errno.EISDIR: "not_a_file", errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.EFBIG: "disk_full",
                 errno.EROFS: "readonly", errno.EMFILE: "descriptors", errno.ENFILE: "descriptors"}


def errno_reason(error):
    """The reason word of an OSError."""
    return ERRNO_REASONS.get(error.errno, "io_error")


def file_identity(status):
    """What tells one file from another that bears its name."""
    return status.st_dev, status.st_ino


def half_line(descriptor):
    """Whether a file ends in half a line, as a full disk leaves it. Of one that this user may write and not read, nobody knows."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    with contextlib.suppress(OSError), open("/proc/self/fd/%d" % descriptor, "rb") as file:
        return os.pread(file.fileno(), 1, status.st_size - 1) != b"\n"
    return False


def made(level, name, fields):
    """The record of an event; a field that is None is left out."""
    known = {key: value for key, value in fields.items() if value is not None}
    return LOGGER.makeRecord(NAME, level, "", 0, name, (), None, extra={"fields": known})


def event(level, name, **fields):
    """Logs an event by its name, with its fields in the order given, and behind them what caused it."""
    for key, value in getattr(CAUSE, "fields", {}).items():
        fields.setdefault(key, value)
    LOGGER.handle(made(level, name, fields))


class caused_by:    # a generator would cost twice as much, and every request passes here
    """Gives these fields to the events that this thread logs in the block."""

    def __init__(self, **fields):
        self.fields = fields

    def __enter__(self):
        CAUSE.fields = self.fields

    def __exit__(self, *error):
        CAUSE.fields = {}


def plain(value, limit):
    """A value as JSON has it: a number, or else a text of about so many characters at most."""
    if isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        return value
    text, half = str(value), limit // 2
    if len(text) <= limit:
        return text
    return "%s... %d left out ...%s" % (text[:half], len(text) - 2 * half, text[len(text) - half:])


def shown(value):
    """A value as key=value shows it: bare, or a JSON string where it is empty or has a blank, a quote or what cannot be seen."""
    text = str(value)
    return text if text.isprintable() and re.match(r"[^\s\"=\\]+\Z", text) else json.dumps(text)


def log_time(record):
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)), record.msecs)


def words(record, fields):
    return " ".join([record.msg] + ["%s=%s" % (key, shown(value)) for key, value in fields.items()])


def text_line(record, limit, version):
    fields = {key: plain(value, limit) for key, value in record.fields.items()}
    return " ".join((log_time(record), record.levelname, words(record, fields)))


def json_line(record, limit, version):
    """The record in the field names and types of the Elastic Common Schema; what ECS has no name for goes under our own."""
    fields = {key: plain(value, limit) for key, value in record.fields.items()}
    line = {"@timestamp": log_time(record), "log.level": record.levelname.lower(),
            "message": words(record, {key: value for key, value in fields.items() if key != "stack"}),
            "ecs.version": ECS_VERSION, "service.name": NAME, "service.version": version, "process.pid": record.process,
            "event.dataset": NAME + (".access" if record.msg == ACCESS else ".log"), "event.action": record.msg}
    if "seconds" in fields:
        fields["seconds"] = round(fields["seconds"] * 1e9)      # event.duration is in nanoseconds
    line.update((ECS_FIELDS.get(key, "%s.%s" % (NAME, key)), value) for key, value in fields.items())
    return json.dumps(line)


LINES = {"text": text_line, "json": json_line}


def is_journal(stream):
    """Whether the stream leads to the journal, which then is what JOURNAL_STREAM of systemd.exec(5) names."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):   # there is none, it is closed, or no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == "%d:%d" % (status.st_dev, status.st_ino)


def excused(record):
    """Whether a request of the check caused the event."""
    return str(record.fields.get("user_agent")).startswith(CHECK_AGENT)


class Kind:
    """What came of one kind of event since `since`, a monotonic time: the first record, and how many more."""

    def __init__(self, record, since):
        self.record, self.since = record, since
        self.count = 0

    def left_out(self):
        return max(0, self.count - THIN_FIRST)

    def over(self, now):
        return now >= self.since + THIN_SECONDS

    def summary(self, now):
        """The record of what was left out; it counts as an error, or not, as those did."""
        given = self.record.fields
        fields = {"of": self.record.msg, "left_out": self.left_out(), "seconds": round(now - self.since, 3)}
        fields.update((key, given.get(key)) for key in KIND)
        if excused(self.record):
            fields["user_agent"] = given["user_agent"]
        return made(self.record.levelno, "log_thinned", fields)


class Thinning:
    """Tells which of the events that come in floods are written: of each kind the first ones of an interval. The others are
    counted, and told by tell(record) when the interval is over, by a timer that runs only while there are any. All of it is
    called with the `lock` held.
    """

    def __init__(self, lock, tell):
        self.lock, self.tell = lock, tell
        self.kinds = {}             # by the event and the fields of KIND
        self.timer, self.total = None, 0

    def kind(self, record, now):
        """The Kind of the record, in an interval that is not over."""
        key = (record.msg, excused(record)) + tuple(record.fields.get(name) for name in KIND)
        if key not in self.kinds and len(self.kinds) >= KINDS_MAX:
            self.settle(now)
            key = key if len(self.kinds) < KINDS_MAX else key[:2]
        if key in self.kinds and self.kinds[key].over(now):
            self.end(key, now)
        return self.kinds.setdefault(key, Kind(record, now))

    def left_out(self, record):
        """Whether the record is one too many of its kind; it is counted."""
        if record.msg not in FLOODS:
            return False
        now = time.monotonic()
        kind = self.kind(record, now)
        kind.count += 1
        if kind.left_out():
            self.total += 1
            self.start_timer(kind.since + THIN_SECONDS - now)
        return bool(kind.left_out())

    def end(self, key, now):
        kind = self.kinds.pop(key)
        if kind.left_out():
            self.tell(kind.summary(now))

    def settle(self, now):
        """Ends the intervals that are over at the monotonic time `now`."""
        for key in [key for key, kind in self.kinds.items() if kind.over(now)]:
            self.end(key, now)

    def start_timer(self, seconds):
        if self.timer:
            return
        timer = threading.Timer(seconds, self.wake)
        timer.daemon = True
        with contextlib.suppress(RuntimeError):     # no thread can be had: the next event, or the end, tells the rest
            timer.start()
            self.timer = timer

    def wake(self):
        """The timer's turn."""
        with self.lock:
            self.timer, now = None, time.monotonic()
            self.settle(now)
            waiting = [kind.since for kind in self.kinds.values() if kind.left_out()]
            if waiting:
                self.start_timer(max(0, min(waiting) + THIN_SECONDS - now))

    def finish(self):
        """Ends all intervals now."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        for key in list(self.kinds):
            self.end(key, time.monotonic())


class Log(logging.Handler):
    """Writes events to a file, by the name it has at that moment, so that a rotated file is left alone. What the file cannot
    take goes to stdout, with one warning, and the file is tried again every LOG_RETRY seconds. Never raises.
    """

    def __init__(self, path=None, form="text", level="info", version=""):
        super().__init__()
        self.path, self.line, self.threshold, self.version = path, LINES[form], logging.getLevelName(level.upper()), version
        self.journal = is_journal(sys.stdout)
        self.thinning = Thinning(self.lock, self.write)
        self.descriptor = self.inode = None
        self.reason, self.retry_at = None, 0  # why the file is not written to, None while it is
        self.torn = self.cut = False          # the file, or stdout, ends in half a line
        self.stuck = False                    # who reads stdout does not go on
        self.errors = self.lost = 0           # lines
        self.fallbacks = 0
        self.last_error = self.last_recovery = None     # Unix times

    def close_file(self):
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def reopen(self):
        """Opens the file, or opens it again when its name belongs to another file by now, or to none."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):  # no such name any more: make it anew
                if file_identity(os.stat(self.path)) == self.inode:
                    return
            self.close_file()
        # Without O_NONBLOCK a FIFO that nobody reads would hang us; O_NOFOLLOW keeps root from being led elsewhere
        # (CVE-2016-1247).
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self.descriptor = os.open(self.path, flags | (os.O_NOFOLLOW if os.geteuid() == 0 else 0), 0o640)
        self.inode = file_identity(os.fstat(self.descriptor))
        self.torn = self.torn or half_line(self.descriptor)     # by whoever wrote before us: our line must not end as a part of it

    def write_file(self, line):
        """Appends the line. Raises OSError."""
        self.reopen()
        torn = self.torn and os.fstat(self.descriptor).st_size > 0      # else it was truncated, or is another by now
        data = (("\n" if torn else "") + line + "\n").encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self.descriptor, data):]
            self.torn = bool(data)

    def await_reader(self):
        """Waits until stdout takes a PIECE: a write to a full pipe would hold up all who log. Raises OSError at its end."""
        try:
            ready = select.select([], [sys.stdout], [], 0 if self.stuck else STDOUT_SECONDS)[1]
        except io.UnsupportedOperation:     # it is no file
            return
        self.stuck = not ready
        if self.stuck:
            raise BlockingIOError

    def write_stdout(self, line, level):
        prefix = PRIORITIES[level] if self.journal else ""
        text = ("\n" if self.cut else "") + prefix + line.encode("ascii", "backslashreplace").decode() + "\n"
        try:
            for start in range(0, len(text), PIECE):
                self.await_reader()
                sys.stdout.write(text[start:start + PIECE])
                sys.stdout.flush()
                self.cut = start + PIECE < len(text)
        except (OSError, ValueError, TypeError, AttributeError):
            self.lost += 1      # nobody reads it, or it was closed, or there is none: losing a line never costs a request

    def rendered(self, record):
        """The line of the record. Where it would be longer than LINE_MAX, all values are cut more."""
        limit = VALUE_MAX
        line = self.line(record, limit, self.version)
        while len(line.encode("ascii", "backslashreplace")) > LINE_MAX and limit:
            limit //= 2
            line = self.line(record, limit, self.version)
        return line

    def fall_back(self, error):
        self.close_file()
        self.retry_at = time.monotonic() + LOG_RETRY
        first, self.reason = not self.reason, errno_reason(error)
        if first:
            self.fallbacks += 1
            detail = "the log file %s cannot be written (%s); logging to stdout, trying again every %d s" % (
                self.path, error.strerror, LOG_RETRY)
            LOGGER.handle(made(logging.WARNING, "log_fallback", {"reason": self.reason, "target": "stdout", "detail": detail}))

    def retry(self):
        """Tries a file that failed, if it is time, with the line that says so: if it takes that, it is mended."""
        if not self.reason or time.monotonic() < self.retry_at:
            return
        record = made(logging.INFO, "log_recovered", {"reason": self.reason, "path": self.path})
        try:
            self.write_file(self.rendered(record))
        except OSError as error:
            self.fall_back(error)
        else:
            self.reason, self.last_recovery = None, record.created

    def probe(self):
        """What the next line would find out: a quiet service too must notice a file that was rotated, lost or mended."""
        self.retry()
        try:
            if self.path and not self.reason:
                self.reopen()
        except OSError as error:
            self.fall_back(error)

    def write(self, record):
        line = self.rendered(record)
        if self.path:
            self.retry()
            try:
                if not self.reason:
                    self.write_file(line)
                    return
            except OSError as error:
                self.fall_back(error)
        self.write_stdout(line, record.levelno)

    def emit(self, record):
        over = record.msg.endswith("_recovered")
        if record.levelno >= logging.ERROR and not excused(record):
            self.errors, self.last_error = self.errors + 1, record.created
        if over:
            self.last_recovery = record.created
        if over or record.levelno >= self.threshold:  # whoever was told of the trouble is told of its end, at any level
            with contextlib.suppress(MemoryError):      # a line may be lost, never the request that it tells of
                if not self.thinning.left_out(record):
                    self.write(record)

    def access(self, **fields):
        """Writes the line of one request, at any level: it is there only where it was asked for by its own setting."""
        record = made(logging.INFO, ACCESS, fields)
        with self.lock:
            self.write(record)

    def finish(self):
        """Writes what is kept back: the counts of what was left out."""
        with self.lock:
            self.thinning.finish()

    def document(self):
        with self.lock:
            self.probe()
        return {
            "target": "file" if self.path and not self.reason else "stdout",
            "path": self.path,
            "fallback": bool(self.reason),
            "reason": self.reason,
            "errors_total": self.errors,
            "last_error_at": self.last_error and instant(self.last_error),
            "last_recovery_at": self.last_recovery and instant(self.last_recovery),
            "lost_lines_total": self.lost,
            "fallbacks_total": self.fallbacks,
            "thinned_lines_total": self.thinning.total,
        }


def install(log):
    """Has the Log take all events; returns it. A file that cannot be opened is found out with the first event."""
    LOGGER.handlers[:] = [log]
    LOGGER.setLevel(logging.DEBUG)
    return log
