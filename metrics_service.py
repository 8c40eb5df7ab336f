#!/usr/bin/env python3
"""Serve operational metrics of a shipments database over HTTP.

  metrics_service.py                   serve, as the METRICS_* environment variables say (docs/configuration.md)
  metrics_service.py --env-file FILE   the same, with the variables of FILE on top
  metrics_service.py --check           validate everything and change nothing
  metrics_service.py --demo            serve a scratch database with live traffic; needs no configuration
  metrics_service.py --hash-password   make a line of the password file

The way of a request: webserver.Server, Service.respond, Store.snapshot (the one of this second, or one read
transaction), exposition.metrics_document, JSON. The database is opened read-only, always; its figures come from rollups that
its own triggers keep (schema.sql). What goes wrong while serving never ends the process: /metrics answers 503 or 500
with the reason, the log says so once, and the next request that succeeds says that it is over.

Exit codes: 0 stopped cleanly, 78 configuration or schema refused, 1 anything else.
"""

import argparse
import bisect
import collections
import contextlib
import ctypes
import difflib
import errno
import ipaddress
import itertools
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse

sys.modules["ssl"] = None       # http.client, which http.server needs, would load OpenSSL with its 4 MiB; it does without
sys.dont_write_bytecode = True  # --check must leave no trace, and a run by root no file that the service's user cannot replace

import exposition
import messages
import schema_check
import supervision
import webserver
from exposition import hour_of, instant, quantile, ratio, rounded, unix_time
from schema_check import Finding

del sys.modules["ssl"]

NAME = "metrics_service"
VERSION = "0.1.0"
FOLDER = os.path.dirname(os.path.abspath(__file__))

CERTIFICATE_NOTICE = 21 * 86400  # s before a certificate's end in which a person should replace it, as health_check.py has it
CHECK_SECONDS = 10      # for the --check of the code and the settings that a reload would bring
EX_CONFIG = 78          # sysexits.h: something is wrong that only a person can mend
FUTURE_LIMIT = 1000     # changes dated in the future are counted up to here; more costs and tells nothing
CLOCK_TICK = 0.05       # s; more than one step of the clock that file times are taken from (10 ms at HZ=100)
LOCK_POLL = 0.001       # s between two tries of a lock
BRIEF_WAIT = 0.5        # s to wait for a lock when older figures can be served instead, or it was there a moment ago
PROGRESS_STEPS = 10000  # SQLite instructions between two looks at the deadline, well under a millisecond
STOP_POLL = 0.1         # s in which the accept loop notices a stop
LOG_RETRY = 5           # s between two tries of a log file that could not be written
RENDERED_MAX = 8        # answers kept, of different hours of history
LATENCY_BOUNDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1.0, 2.5, 5.0, 10.0)  # s

# SQL, in the order of asking. An unknown carrier, mode or reason is '' in the rollups.

CLOSED = "('delivered', 'returned', 'cancelled')"

SCHEMA_VERSION = "PRAGMA schema_version"
DATA_VERSION = "PRAGMA data_version"
JOURNAL_MODE = "PRAGMA journal_mode"

BOUNDS = "SELECT le FROM transit_bounds ORDER BY le"
BY_STATUS = "SELECT status, sum(shipments) FROM rollup_lane GROUP BY status"

LANES = """
    SELECT {key}, sum(shipments),
           sum(CASE WHEN status IN {closed} THEN 0 ELSE shipments END),
           sum(CASE status WHEN 'exception' THEN shipments ELSE 0 END),
           sum(CASE status WHEN 'delivered' THEN shipments ELSE 0 END),
           sum(on_time), sum(late), sum(late_seconds), sum(transits), sum(transit_seconds), sum(negative)
    FROM rollup_lane GROUP BY {key} ORDER BY 2 DESC, 1"""
LANES_BY_CARRIER = LANES.format(key="carrier", closed=CLOSED)
LANES_BY_MODE = LANES.format(key="mode", closed=CLOSED)

TRANSIT = "SELECT {key}, le, sum(shipments) FROM rollup_transit GROUP BY {key}, le ORDER BY {key}, le"
TRANSIT_BY_CARRIER = TRANSIT.format(key="carrier")
TRANSIT_BY_MODE = TRANSIT.format(key="mode")

# Whole hours from the rollup; of the current hour those promised at an instant that has passed. A promise for a day runs
# out with the hour 23, so it never is among the latter.
OVERDUE = """
    SELECT carrier, mode, sum(shipments),
           sum(CASE WHEN hour >= :band0 THEN shipments ELSE 0 END),
           sum(CASE WHEN hour >= :band1 AND hour < :band0 THEN shipments ELSE 0 END),
           sum(CASE WHEN hour >= :band2 AND hour < :band1 THEN shipments ELSE 0 END)
    FROM rollup_due WHERE hour < :hour GROUP BY carrier, mode
    UNION ALL
    SELECT coalesce(carrier, ''), coalesce(mode, ''), count(*), count(*), 0, 0
    FROM shipments
    WHERE status NOT IN {closed} AND promised_at IS NOT NULL AND promised_at > :hour AND promised_at < :now
    GROUP BY 1, 2""".format(closed=CLOSED)

EXCEPTIONS = "SELECT reason, shipments FROM rollup_exception ORDER BY shipments DESC, reason"
HOURS = "SELECT hour, created, delivered, on_time, late FROM rollup_hour WHERE hour >= :since AND hour <= :hour ORDER BY hour"
NEWEST_CHANGE = "SELECT max(updated_at) FROM shipments WHERE updated_at <= :now"
FUTURE_CHANGES = "SELECT count(*) FROM (SELECT 1 FROM shipments WHERE updated_at > :now LIMIT %d)" % FUTURE_LIMIT

# Settings: each METRICS_* variable once, with its default, its range and the cure for a bad value

Setting = collections.namedtuple("Setting", "field default parse cure")
Given = collections.namedtuple("Given", "value source folder")  # folder: where a relative path starts


def plain(value, folder):
    return value


def file_path(value, folder):
    if "\0" in value:
        raise ValueError("contains a NUL character")
    return os.path.abspath(os.path.join(folder, value))


def number(kind, low, high):
    """A parser for a plain decimal number in a range: Python's own would take '1_0', ' 5' and 'nan' too."""
    pattern = r"\d{1,9}" if kind is int else r"\d{1,9}(\.\d{1,9})?"

    def parse(value, folder):
        if not re.match(pattern + r"\Z", value, re.ASCII) or not low <= kind(value) <= high:
            raise ValueError("is not a %s from %s to %s" % ("whole number" if kind is int else "number", low, high))
        return kind(value)
    return parse


def choice(*words):
    def parse(value, folder):
        if value not in words:
            raise ValueError("is none of " + ", ".join(words))
        return value
    return parse


SETTINGS = (
    Setting("db_path", None, file_path, "the shipments database, such as /srv/shipments.db; 'python3 seed.py FILE' makes one"),
    Setting("host", "127.0.0.1", plain, "the address to listen on, such as 127.0.0.1"),
    Setting("port", 8321, number(int, 0, 65535), "a free port, such as 8321; 0 takes any free one"),
    Setting("auth_file", None, file_path, "a file of lines user:hash, each made by --hash-password USER; unset asks nobody"),
    Setting("tls_cert", None, file_path, "a PEM file of the certificate and its chain; unset means no TLS"),
    Setting("tls_key", None, file_path, "a PEM file of the certificate's key; unset where METRICS_TLS_CERT has that too"),
    Setting("log_file", None, file_path, "a file this user may write; unset means stdout"),
    Setting("log_format", "text", choice("text", "json"), "text or json"),
    Setting("log_level", "info", choice("debug", "info", "warning", "error"), "debug, info, warning or error"),
    Setting("pid_file", os.path.join(FOLDER, NAME + ".pid"), file_path, "a file in a folder this user may write"),
    Setting("query_timeout", 2.0, number(float, 0.1, 30), "a number of seconds, such as 2"),
    Setting("stale_seconds", 60.0, number(float, 0, 3600), "a number of seconds, such as 60"),
    Setting("drain_seconds", 5.0, number(float, 0, 60), "a number of seconds, such as 5"),
)
Settings = collections.namedtuple("Settings", [setting.field for setting in SETTINGS])
VARIABLES = collections.OrderedDict(("METRICS_" + setting.field.upper(), setting) for setting in SETTINGS)


def gather(env_file):
    """Variable name -> Given, of the environment and on top of it the env file. Raises OSError or supervision.EnvFileError."""
    given = {name: Given(value, "the environment", os.getcwd()) for name, value in os.environ.items()}
    if env_file:
        folder = os.path.dirname(os.path.abspath(env_file))
        for variable in supervision.read_env_file(env_file):
            value = os.fsdecode(variable.value.encode("utf-8"))  # a path is bytes, whatever the locale
            given[variable.name] = Given(value, "%s line %d" % (env_file, variable.line), folder)
    return {name: value for name, value in given.items() if name.startswith("METRICS_")}


def unknown_settings(given):
    """A complaint for each METRICS_ variable that nothing reads: a misspelt setting must not be a silent default."""
    for name in sorted(given):
        if name not in VARIABLES and not name.startswith("METRICS_CHECK_"):
            near = difflib.get_close_matches(name, VARIABLES, 1, 0.8)
            yield "%s (from %s) is not a setting; %s" % (
                name, given[name].source, "did you mean %s?" % near[0] if near else "remove it, or see docs/configuration.md")


def clashes(settings, env_file):
    """A complaint for each file with two purposes, which would destroy it: a log is appended to, a PID file removed at the end."""
    roles = {}
    for role, path in (("METRICS_DB_PATH", settings.db_path), ("--env-file", env_file), ("METRICS_LOG_FILE", settings.log_file),
                       ("METRICS_PID_FILE", settings.pid_file), ("METRICS_AUTH_FILE", settings.auth_file),
                       ("METRICS_TLS_CERT", settings.tls_cert), ("METRICS_TLS_KEY", settings.tls_key)):
        if role == "METRICS_TLS_KEY" and path == settings.tls_cert:
            continue  # a PEM file may hold both
        other = roles.setdefault(os.path.realpath(path), role) if path else role
        if other != role:
            yield "%s and %s are the same file, %s; give each its own" % (other, role, path)


def load_settings(given, env_file=None):
    """(Settings, complaints): a setting that is missing or bad has its default, and a complaint that names it and the cure."""
    values, complaints = [], list(unknown_settings(given))
    for name, setting in VARIABLES.items():
        value = setting.default
        if name in given and given[name].value:
            try:
                value = setting.parse(given[name].value, given[name].folder)
            except ValueError as error:
                complaints.append("%s is '%s' (from %s), which %s; set it to %s" % (
                    name, given[name].value, given[name].source, error, setting.cure))
        elif name == "METRICS_DB_PATH":
            state = "is empty (from %s)" % given[name].source if name in given else "is not set"
            complaints.append("%s %s; set it to %s" % (name, state, setting.cure))
        values.append(value)
    settings = Settings(*values)
    shared = list(clashes(settings, env_file))
    if shared:  # the refusal itself must not be logged into the database
        settings = settings._replace(log_file=None)
    return settings, complaints + shared


def read_settings(env_file):
    """load_settings of the environment and the env file. Of a file that cannot be read whole nothing counts."""
    try:
        return load_settings(gather(env_file), env_file)
    except (OSError, supervision.EnvFileError) as error:
        return load_settings({})[0], ["the env file cannot be used: %s" % error]


# Log: one event, one line, to the file or, while that cannot be written, to stdout

CHECK_AGENT = "health_check/"   # errors that its own requests meet are logged, but not counted: it reads the count as an alarm
LOGGER = logging.getLogger(NAME)
LOGGER.addHandler(logging.NullHandler())  # until start_log: --check reports on its own
LOGGER.propagate = False
ECS_FIELDS = {"reason": "event.reason", "error": "error.message", "stack": "error.stack_trace", "path": "file.path",
              "method": "http.request.method", "route": "url.path", "user_agent": "user_agent.original"}
ERRNO_REASONS = {errno.ENOENT: "missing", errno.ENOTDIR: "missing", errno.EACCES: "denied", errno.EPERM: "denied",
                 errno.EISDIR: "not_a_file", errno.ENOSPC: "disk_full", errno.EDQUOT: "disk_full", errno.EFBIG: "disk_full",
                 errno.EROFS: "readonly", errno.EMFILE: "descriptors", errno.ENFILE: "descriptors"}


def errno_reason(error):
    """The reason word of an OSError."""
    return ERRNO_REASONS.get(error.errno, "io_error")


def file_identity(status):
    """What tells one file from another that bears its name."""
    return status.st_dev, status.st_ino


def event(level, name, **fields):
    """Logs an event by its name, with its fields in the order given."""
    LOGGER.log(level, name, extra={"fields": fields})


def shown(value):
    """A value as key=value shows it: bare, or a JSON string where it is empty or holds a space, quote or control character."""
    value = str(value)
    return value if re.match(r"[^\s\"=\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+\Z", value) else json.dumps(value)


def log_time(record):
    return "%s.%03dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)), record.msecs)


def text_line(record):
    fields = ["%s=%s" % (key, shown(value)) for key, value in record.fields.items()]
    return " ".join([log_time(record), record.levelname, record.msg] + fields)


def json_line(record):
    """The record in the field names of the Elastic Common Schema; what ECS has no name for goes under our own."""
    fields = ["%s=%s" % (key, shown(value)) for key, value in record.fields.items() if key != "stack"]
    line = {"@timestamp": log_time(record), "log.level": record.levelname.lower(), "message": " ".join([record.msg] + fields),
            "ecs.version": "8.11", "service.name": NAME, "process.pid": record.process, "event.action": record.msg}
    line.update((ECS_FIELDS.get(key, "%s.%s" % (NAME, key)), value) for key, value in record.fields.items())
    return json.dumps(line)


LINES = {"text": text_line, "json": json_line}


class Log(logging.Handler):
    """Writes events to a file, by the name it has at that moment, so that a rotated file is left alone. What the file cannot
    take goes to stdout, with one warning, and the file is tried again every LOG_RETRY seconds. Never raises.
    """

    def __init__(self, path=None, form="text", level="info"):
        super().__init__()
        self.path, self.line, self.threshold = path, LINES[form], logging.getLevelName(level.upper())
        self.descriptor = self.inode = None
        self.reason, self.retry_at = None, 0  # why the file is not written to, None while it is
        self.torn = False                     # the file ends in half a line
        self.errors, self.last_error, self.last_recovery, self.lost = 0, None, None, 0

    def emit(self, record):
        over = record.msg.endswith("_recovered")
        if record.levelno >= logging.ERROR and not str(record.fields.get("user_agent")).startswith(CHECK_AGENT):
            self.errors, self.last_error = self.errors + 1, record.created
        if over:
            self.last_recovery = record.created
        if over or record.levelno >= self.threshold:  # whoever was told of the trouble is told of its end, at any level
            self.write(self.line(record))

    def write(self, line):
        if self.path:
            self.retry()
            try:
                if not self.reason:
                    self.write_file(line)
                    return
            except OSError as error:
                self.fall_back(error)
        self.write_stdout(line)

    def retry(self):
        """Tries a file that failed, if it is time, with the line that says so: if it takes that, it is mended."""
        if not self.reason or time.monotonic() < self.retry_at:
            return
        record = LOGGER.makeRecord(NAME, logging.INFO, "", 0, "log_recovered", (), None,
                                   extra={"fields": {"reason": self.reason, "path": self.path}})
        try:
            self.write_file(self.line(record))
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

    def write_file(self, line):
        """Appends the line. Raises OSError."""
        self.reopen()
        data = (("\n" if self.torn else "") + line + "\n").encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self.descriptor, data):]
            self.torn = bool(data)

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

    def fall_back(self, error):
        self.close_file()
        self.retry_at = time.monotonic() + LOG_RETRY
        first, self.reason = not self.reason, errno_reason(error)
        if first:
            event(logging.WARNING, "log_fallback", reason=self.reason, target="stdout",
                  detail="the log file %s cannot be written (%s); logging to stdout, trying again every %d s" % (
                      self.path, error.strerror, LOG_RETRY))

    def write_stdout(self, line):
        try:
            sys.stdout.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):  # nobody reads stdout, or it was closed: losing a line never costs a request
            self.lost += 1

    def close_file(self):
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

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
        }


def start_log(settings):
    """The Log of the settings, installed. A file that cannot be opened is found out with the first event."""
    log = Log(settings.log_file, settings.log_format, settings.log_level)
    LOGGER.handlers[:] = [log]
    LOGGER.setLevel(logging.DEBUG)
    return log


# Reasons: what sqlite3 says is ambiguous, so the facts are looked at

class Trouble(Exception):
    """The shipment figures cannot be had: a reason word of the closed list, the detail as a sentence, the HTTP status."""

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason, self.detail = reason, detail
        self.status = 500 if reason == "schema_mismatch" else 503


MESSAGES = (  # in what sqlite3 says: the reason, where that alone decides
    ("is locked", "locked"), ("interrupted", "timeout"), ("no such ", "schema_mismatch"), ("decode to UTF-8", "encoding"),
    ("disk is full", "disk_full"), ("disk I/O error", "io_error"), ("not a database", "corrupt"), ("malformed", "corrupt"))
DETAILS = {
    "schema_mismatch": "a query asks for what is not there, though the schema is that of schema.sql: "
                       "the files are of two releases",
    "encoding": "a text is not UTF-8",
    "disk_full": "no room for SQLite's temporary files",
    "io_error": "the kernel reported an I/O error",
}
SQLITE_MAGIC = b"SQLite format 3\0"


def peek(path):
    """The first 100 bytes of the database file. Raises OSError. Only while no connection of this process is open: closing the
    file would drop its POSIX locks (sqlite.org/howtocorrupt.html, 2.2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def damage(path, header):
    """(reason, detail) of a file that SQLite calls no database or malformed."""
    size = os.stat(path).st_size
    if not size:
        return "truncated", "the file is empty (0 bytes)"
    if header[:16] != SQLITE_MAGIC:
        return "corrupt", "its first bytes are not those of a SQLite database"
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    if size < pages * (65536 if page == 1 else page):
        return "truncated", "the file has %d bytes, its header says %d pages of %d" % (size, pages, page)
    return "corrupt", "its pages contradict each other"


def obstacle(path, header):
    """(reason, detail) of a file that is there and readable, yet cannot be opened or wants to be written."""
    if header[18:20] == b"\2\2":
        return "wal", ("it is in WAL mode, which a reader without write permission on the folder can read only while a writer "
                       "is connected; 'PRAGMA journal_mode=DELETE' by its owner ends that")
    if os.path.exists(path + "-journal"):
        return "hot_journal", ("a writer died in the middle of a transaction and left %s-journal; any read-write opening heals "
                               "it: python3 seed.py %s --verify; never delete the journal" % (path, path))
    return "readonly", "it could only be read after writing to it"


def look(path, reason):
    """(reason, detail) from the file itself, for what sqlite3's message leaves open."""
    try:
        header = peek(path)
        return damage(path, header) if reason == "corrupt" else obstacle(path, header)
    except OSError as error:
        return errno_reason(error), error.strerror


def lock_holders(path):
    """Who holds a lock on the file, in words, as far as /proc tells."""
    pids = []
    with contextlib.suppress(OSError):  # the file is gone by now, or no descriptor is left to read /proc with
        pids = [pid for pid in supervision.file_holders(path) if pid != os.getpid()]
    return "held by " + ", ".join(map(supervision.describe, pids)) if pids else "whose process is not visible from here"


def said(error):
    """The reason word that a sqlite3.Error's message decides alone, or None."""
    return next((reason for part, reason in MESSAGES if part in str(error)), None)


def diagnose(error, path, waited):
    """The Trouble that a sqlite3.Error means. The connection it came from is closed, unless the reason is locked or timeout."""
    reason = said(error)
    if reason == "locked":
        detail = "a writer holds the lock, %s; waited %.1f s" % (lock_holders(path), waited)
    elif reason == "timeout":
        detail = "the query took longer than METRICS_QUERY_TIMEOUT allows; gave up after %.1f s" % waited
    elif reason in (None, "corrupt"):
        reason, detail = look(path, reason)
    else:
        detail = DETAILS[reason]
    return Trouble(reason, "database %s: %s (sqlite3: %s)" % (path, detail, error))


# Figures: everything one snapshot holds, asked in one read transaction

def histograms(rows):
    """Rows of (name, upper bound, count) as name -> Counter of counts by upper bound."""
    by_name = collections.defaultdict(collections.Counter)
    for name, bound, count in rows:
        by_name[name][bound] = count
    return by_name


def ask(connection, now):
    """The exposition.Figures at the Unix time now. Raises sqlite3.Error."""
    bands = {"band%d" % i: hour_of(now - days * exposition.DAY) for i, (_, days) in enumerate(exposition.AGE_BANDS) if days}
    since = instant(now - (exposition.DAILY_DAYS - 1) * exposition.DAY)[:10]
    moment = dict(bands, now=instant(now), hour=hour_of(now), since=since)

    def rows(sql, shape=tuple):
        # Closed, since an error's traceback would keep the cursor, and with it the lock that keeps writers out.
        with contextlib.closing(connection.execute(sql, moment)) as cursor:
            return [shape(row) for row in cursor]

    return exposition.Figures(
        now=now,
        bounds=[bound for bound, in rows(BOUNDS)],
        statuses=dict(rows(BY_STATUS)),
        carriers=rows(LANES_BY_CARRIER, exposition.Lane._make),
        modes=rows(LANES_BY_MODE, exposition.Lane._make),
        carrier_transit=histograms(rows(TRANSIT_BY_CARRIER)),
        mode_transit=histograms(rows(TRANSIT_BY_MODE)),
        overdue=rows(OVERDUE, exposition.Overdue._make),
        exceptions=rows(EXCEPTIONS),
        hours=rows(HOURS, exposition.Hour._make),
        newest_change=rows(NEWEST_CHANGE)[0][0],
        future_changes=rows(FUTURE_CHANGES)[0][0],
        schema_version=rows(schema_check.VERSION)[0][0])


# Store: the connection, the last snapshot, and what is wrong with the database now

Snapshot = collections.namedtuple("Snapshot", "figures stale")  # stale: the Trouble that an older snapshot bridges, or None


def in_force(findings):
    """The findings worth a warning while serving; next to an error, which says more, none."""
    grades = {finding.grade for finding in findings}
    return [] if "error" in grades else [finding.text for finding in findings if finding.grade in ("version", "warning")]


class Store:
    """The database file as it is read. One thread asks at a time; the others share its answer."""

    def __init__(self, path, timeout, stale_seconds, clock=time.time):
        self.path, self.timeout, self.stale_seconds, self.clock = path, timeout, stale_seconds, clock
        self.wanted = schema_check.wanted_schema()
        self.lock = threading.Lock()
        self.connection = None                      # open on the file `inode`, which last had `size` bytes
        self.inode = self.size = None
        self.deadline = None                        # monotonic time at which a query is interrupted
        self.versions, self.findings = None, []     # schema_version and user_version that the findings are about
        self.last = self.good_at = None             # the last Figures, and when they were last known to be true (monotonic)
        self.data_version = self.written = None     # of the last Figures: PRAGMA data_version; time and size of the file
        self.settled = False                        # whether the file had been at rest when they were read
        self.trouble, self.failed_at = None, 0.0    # of the last attempt, and its end (monotonic)
        self.began = 0.0                            # the start of the last attempt (monotonic)
        self.state = None                           # (event, reason) of the last state logged, None for a good one
        self.queries, self.seconds, self.last_seconds, self.max_seconds = 0, 0.0, None, None
        self.failures, self.replaced = collections.Counter(), 0

    def snapshot(self):
        """The Snapshot of this second. Raises Trouble: within the timeout for a lock, within another for the query."""
        arrived = time.monotonic()
        with self.lock:
            # Who waited shares the outcome of an attempt that began after his arrival, or of one that failed since.
            if self.failed_at < arrived if self.trouble else self.began < arrived:
                self.attempt()
            if self.trouble:
                return self.bridge()
            return Snapshot(self.last, None)

    def unchanged(self, last):
        """Whether these figures are of this second and of the file as it is, by its time and size alone. A commit in the same
        tick of the kernel's clock as our reading would not show, so that only a file that was at rest by then qualifies."""
        if last is None or self.trouble or not self.settled or not self.stale_seconds or last.now != int(self.clock()):
            return False
        try:
            status = os.stat(self.path)
        except OSError:
            return False  # the way through reopen() says what it means
        return (status.st_mtime_ns, status.st_size) == self.written and file_identity(status) == self.inode

    def current(self):
        """The Snapshot of this second, without a look into the file where it cannot have changed. Raises like snapshot."""
        last = self.last
        return Snapshot(last, None) if self.unchanged(last) else self.snapshot()

    def attempt(self):
        self.began = started = time.monotonic()
        try:
            self.refresh(started)
            self.trouble, self.good_at = None, time.monotonic()
        except Trouble as trouble:
            self.trouble, self.failed_at = trouble, time.monotonic()
            self.failures[trouble.reason] += 1
        self.say()

    def bridge(self):
        """The last good figures while a writer holds the lock, and only then, for a limited time."""
        if not self.bridging():
            raise self.trouble
        return Snapshot(self.last, self.trouble)

    def bridging(self):
        return self.trouble and self.trouble.reason == "locked" and self.fresh()

    def fresh(self):
        """Whether the last figures may still be served while the database is locked."""
        return self.last is not None and self.age() <= self.stale_seconds

    def age(self):
        """Seconds since the last figures were known to be true."""
        return time.monotonic() - self.good_at

    def say(self):
        """Logs a change of state, once."""
        trouble, state = self.trouble, None
        if self.bridging():
            state = "database_stale", trouble.reason
        elif trouble:
            state = "schema_mismatch" if trouble.status == 500 else "database_unavailable", trouble.reason
        former, self.state = self.state, state
        if state == former:
            return
        if state:
            level = logging.WARNING if state[0] == "database_stale" else logging.ERROR
            event(level, state[0], reason=trouble.reason, detail=trouble.detail)
        else:
            event(logging.INFO, "database_recovered", reason=former[1], path=self.path)

    def refresh(self, started):
        """Brings self.last up to date. Raises Trouble."""
        known = self.trouble and self.trouble.reason == "locked"
        try:
            self.reopen()
            patience = BRIEF_WAIT if known or self.fresh() else self.timeout
            if not self.read(started + patience):
                event(logging.INFO, "database_reread", path=self.path,
                      detail="the file was written to outside of any transaction")
                self.close()
                self.reopen()
                self.read(started + patience)
        except sqlite3.Error as error:
            if said(error) not in ("locked", "timeout"):
                self.close()
            raise diagnose(error, self.path, time.monotonic() - started) from None

    def reopen(self):
        """Opens the file that bears the name now. Raises Trouble or sqlite3.Error."""
        status = self.status()
        if not stat.S_ISREG(status.st_mode):  # SQLite calls a folder an I/O error, and would wait for ever for a FIFO's writer
            raise Trouble("not_a_file", "database %s: it is a folder or a device, not a file" % self.path)
        inode, self.size = file_identity(status), status.st_size
        if not self.size:  # SQLite takes it for a database without tables
            self.close()
            raise Trouble("truncated", "database %s: the file is empty (0 bytes)" % self.path)
        if self.inode not in (None, inode):
            self.close()
            self.last = None  # figures of another file, which must not bridge a lock on this one
            self.replaced += 1
            event(logging.WARNING, "database_replaced", path=self.path,
                  detail="another file bears the name now (inode %d, before %d); reading that one" % (inode[1], self.inode[1]))
        if not self.connection:
            self.open(inode)

    def open(self, inode):
        uri = "file:%s?mode=ro" % urllib.parse.quote(os.fsencode(self.path))
        self.connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        self.connection.set_progress_handler(lambda: time.monotonic() > self.deadline, PROGRESS_STEPS)
        self.inode, self.versions, self.data_version = inode, None, None  # these count within one connection only
        self.settled = False

    def status(self):
        """The os.stat_result of the path. Raises Trouble."""
        try:
            return os.stat(self.path)
        except OSError as error:
            raise self.gone(error)

    def gone(self, error):
        """The Trouble of a path that has no file. The connection stays open: it may hold the last copy of the data."""
        detail = "database %s: %s" % (self.path, error.strerror)
        lost = self.connection and error.errno == errno.ENOENT
        descriptor, name = self.still_open() if lost else (None, "")
        if name.endswith(" (deleted)"):
            detail += "; it was deleted, but is still open here: copy %s before any restart" % descriptor
        elif name:
            detail += "; it was moved to %s" % name
        return Trouble(errno_reason(error), detail)

    def still_open(self):
        """(/proc path of the descriptor, name) that our connection has the file open by."""
        for descriptor, name in supervision.open_files(os.getpid()):
            with contextlib.suppress(OSError):  # another thread's, closed meanwhile
                if file_identity(os.stat(descriptor)) == self.inode:
                    return descriptor, name
        return None, ""

    @contextlib.contextmanager
    def transaction(self, patience_end):
        """A read transaction of limited time; gives PRAGMA data_version. Raises sqlite3.Error: "is locked" at patience's end."""
        self.deadline = float("inf")
        self.connection.execute("BEGIN")
        try:
            data_version = self.take_lock(patience_end)
            self.deadline = time.monotonic() + self.timeout
            yield data_version
        finally:
            with contextlib.suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                self.connection.execute("ROLLBACK")

    def take_lock(self, patience_end):
        """The first read, which takes the lock that readers share. A busy writer leaves gaps of about a millisecond between two
        commits; SQLite's own busy handler, which sleeps up to 100 ms, misses them for seconds."""
        while True:
            try:
                return self.one(DATA_VERSION)
            except sqlite3.OperationalError as error:
                if said(error) != "locked" or time.monotonic() >= patience_end:
                    raise
                time.sleep(LOCK_POLL)

    def read(self, patience_end):
        """Brings self.last up to date in one transaction. False, on a connection with a page cache, for a file that was written
        to without SQLite knowing: one overwritten in place may look unchanged by its counters, or like a damaged one."""
        cached = self.data_version is not None
        try:
            with self.transaction(patience_end) as data_version:
                status = self.status()  # with the lock held: no transaction can end between this and the reading
                written = status.st_mtime_ns, status.st_size
                if cached and data_version == self.data_version and written != self.written:
                    return False
                settled = self.one(JOURNAL_MODE) != "wal" and time.time() - status.st_mtime > CLOCK_TICK
                self.update(int(self.clock()), data_version)
                self.written, self.settled = written, settled
        except sqlite3.DatabaseError as error:
            if not cached or said(error) != "corrupt":
                raise
            return False
        return True

    def update(self, now, data_version):
        """The new figures, unless the second and the data are those of the last. The schema is compared whenever it moves."""
        versions = self.one(SCHEMA_VERSION), self.one(schema_check.VERSION)
        if versions != self.versions:
            self.compare()
            self.versions = versions
        if self.errors():
            raise Trouble("schema_mismatch", "database %s: %s; it needs the schema of this release (schema.sql)" % (
                self.path, "; ".join(self.errors())))
        if self.last and self.last.now == now and self.data_version == data_version:
            return
        started = time.monotonic()
        self.last = ask(self.connection, now)
        self.data_version = data_version
        self.measure(time.monotonic() - started)

    def one(self, sql):
        with contextlib.closing(self.connection.execute(sql)) as cursor:
            return cursor.fetchone()[0]

    def errors(self):
        return [finding.text for finding in self.findings if finding.grade == "error"]

    def compare(self):
        before = in_force(self.findings)
        self.findings = schema_check.compare(schema_check.read_schema(self.connection), self.wanted)
        after = in_force(self.findings)
        for finding in after:
            if finding not in before:
                event(logging.WARNING, "schema_warning", detail=finding)
        if before and not after and not self.errors():
            event(logging.INFO, "schema_recovered", path=self.path)

    def measure(self, seconds):
        self.queries += 1
        self.seconds += seconds
        self.last_seconds, self.max_seconds = seconds, max(seconds, self.max_seconds or 0)

    def close(self):
        if self.connection:
            with contextlib.suppress(sqlite3.Error):  # it is being given up, for a reason that is reported
                self.connection.close()
        self.connection = None


# Service: the routes, and what it counts of itself

class Traffic:
    """Requests answered, by route and status code, and by latency."""

    BOUNDS = LATENCY_BOUNDS + (float("inf"),)

    def __init__(self, log):
        self.lock = threading.Lock()
        self.routes, self.latency = collections.Counter(), [0] * len(self.BOUNDS)
        self.seconds, self.slowest = 0.0, None
        self.verbose = log.threshold <= logging.DEBUG  # asked once: a record that nobody writes costs as much as an answer

    def observe(self, route, line, status, seconds):
        with self.lock:
            self.routes[route, status] += 1
            self.latency[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += 1
            self.seconds += seconds
            if self.slowest is None or seconds > self.slowest:
                self.slowest = seconds
        if self.verbose:
            event(logging.DEBUG, "request", line=line, status=status, seconds=round(seconds, 6))

    def by_code(self):
        codes = collections.Counter()
        for (_, status), count in self.routes.items():
            codes[str(status)] += count
        return dict(sorted(codes.items()))

    def by_route(self):
        routes = collections.defaultdict(dict)
        for (route, status), count in sorted(self.routes.items()):
            routes[route][str(status)] = count
        return dict(routes)

    def percentile(self, rank):
        """Seconds within which this part of the answers was given, from the histogram."""
        histogram = dict(zip(self.BOUNDS, self.latency))
        return rounded(min(quantile(histogram, self.BOUNDS, rank), self.slowest)) if self.seconds or any(self.latency) else None

    def document(self, in_flight):
        with self.lock:
            total, bounds = sum(self.latency), LATENCY_BOUNDS + (None,)
            return {
                "total": total,
                "in_flight": in_flight,
                "by_code": self.by_code(),
                "by_route": self.by_route(),
                "latency_seconds": {
                    "count": total,
                    "mean": ratio(self.seconds, total),
                    "p50": self.percentile(.5),
                    "p95": self.percentile(.95),
                    "max": rounded(self.slowest),
                    "buckets": [{"le": bound, "count": count} for bound, count in zip(bounds, itertools.accumulate(self.latency))],
                },
            }


def health_entry(component, status, reason=None, output=None, **observed):
    entry = {"componentType": component, "status": status}
    entry.update(observed)
    if reason:
        entry.update(reason=reason, output=output)
    return [entry]


CHALLENGE = 'Basic realm="%s", charset="UTF-8"' % NAME  # RFC 7617, 2.1


class Service:
    """The application behind the server: one function a route, one place that turns trouble into a status code."""

    def __init__(self, log, store, credentials=None, certificate_end=None):
        self.log, self.store, self.credentials, self.certificate_end = log, store, credentials, certificate_end
        self.refusal = None               # (time, why) of the last reload, where it was refused
        self.instance = os.urandom(16).hex()  # new at every start: how a restart proves that the new one answers
        self.started, self.started_at = time.monotonic(), time.time()
        self.traffic = Traffic(log)
        self.server = None                # webserver.Server, once there is one
        self.rendering = threading.Lock()
        self.rendered = None, {}          # figures, and the answers made of them by hours of history
        self.open = {"/readyz", "/healthz"}             # to anybody, though not all of it
        self.slow = {"/metrics", "/readyz", "/healthz"}
        self.routes = {"/metrics": self.metrics, "/livez": self.livez, "/readyz": self.readyz, "/healthz": self.readyz}

    def respond(self, request):
        """The Response to any request; trouble and defects become problem documents here."""
        try:
            refusal = self.challenge(request)
            if refusal and request.path not in self.open:
                return refusal
            if request.path not in self.routes:
                return messages.problem(404, "no such path; there are %s" % ", ".join(sorted(self.routes)))
            return self.routes[request.path](request, trusted=not refusal)
        except Trouble as trouble:
            retry = [("Retry-After", "1")] if trouble.status == 503 else []
            return messages.problem(trouble.status, trouble.detail, retry, reason=trouble.reason,
                                     runbook="docs/runbook.md#" + trouble.reason, **self.own_blocks())
        except Exception as error:  # a defect of ours must not cost the other requests
            self.defect(error, method=request.method, route=request.path, user_agent=request.headers.get("user-agent", ""))
            return messages.problem(500, "a defect in the service; its log has the details", reason="defect",
                                     runbook="docs/runbook.md#defect", service=self.service_document(),
                                     logging=self.log.document())

    def challenge(self, request):
        """The refusal of whoever needs a password and does not give a good one, else None."""
        if not self.credentials or request.path == "/livez":
            return None
        verdict = self.credentials.verify(request.headers.get("authorization"), request.address)
        if verdict.allowed:
            return None
        status, detail, field = 401, "a user of METRICS_AUTH_FILE and the password are due", ("WWW-Authenticate", CHALLENGE)
        if verdict.retry_after:
            status, detail, field = 429, "too many wrong passwords; wait", ("Retry-After", str(verdict.retry_after))
        return messages.problem(status, detail, [field], reason="credentials", runbook="docs/runbook.md#credentials")

    def wait(self, request):
        """Whether the answer may have to wait for the database, or for a password's hash."""
        return request.path in self.slow or bool(self.credentials) and request.path != "/livez" and not self.credentials.recall(
            request.headers.get("authorization"))

    def observe(self, path, line, status, seconds):
        self.traffic.observe(path if path in self.routes else "other", line, status, seconds)

    def defect(self, error, **fields):
        stack = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        words = "%s: %s" % (type(error).__name__, error)
        event(logging.ERROR, "request_failed", reason="defect", error=words, stack=stack, **fields)

    def starved(self, error):
        event(logging.ERROR, "accept_failed", reason=errno_reason(error),
              detail="no connection can be accepted: %s; trying again" % error.strerror)

    def metrics(self, request, trusted):
        history = self.history(request.query)
        if history is None:
            return messages.problem(400, "history must be a whole number of hours from 1 to %d" % exposition.HISTORY_HOURS)
        snapshot = self.store.current()
        return self.answer(snapshot, history) if snapshot.stale else self.shared_answer(snapshot, history)

    def answer(self, snapshot, history):
        return messages.json_answer(200, self.document(snapshot, history))

    def shared_answer(self, snapshot, history):
        """The answer, rendered once for all who ask about the same figures."""
        figures, answers = self.rendered
        if figures is snapshot.figures and history in answers:
            return answers[history]
        with self.rendering:
            figures, answers = self.rendered
            if figures is not snapshot.figures or len(answers) >= RENDERED_MAX:
                answers = {}
            if history not in answers:
                answers[history] = self.answer(snapshot, history)
            self.rendered = snapshot.figures, answers
            return answers[history]

    def history(self, query):
        """Hours of history asked for, 0 where nobody asked, None where it makes no sense."""
        if "history" not in query:
            return 0
        value = query["history"][-1]
        return int(value) if re.match(r"[1-9]\d{0,2}\Z", value, re.ASCII) and int(value) <= exposition.HISTORY_HOURS else None

    def livez(self, request, trusted):
        return messages.json_answer(200, {"service": NAME, "instance": self.instance, "started_at": instant(self.started_at)})

    def readyz(self, request, trusted):
        checks = {"database:shipments": self.database_entry(), "database:schema": self.schema_entry(),
                  "log:target": self.log_entry(), "service:reload": self.reload_entry()}
        if self.certificate_end is not None:
            checks["tls:certificate"] = self.certificate_entry()
        states = {entry["status"] for (entry,) in checks.values()}
        status = next(state for state in ("fail", "warn", "pass") if state in states)
        document = {"status": status, "version": "1", "releaseId": VERSION, "serviceId": NAME, "instance": self.instance,
                    "checks": checks}
        return messages.json_answer(503 if status == "fail" else 200, document if trusted else {"status": status},
                                     "application/health+json")

    def database_entry(self):
        try:
            snapshot = self.store.snapshot()
        except Trouble as trouble:
            return health_entry("datastore", "fail", trouble.reason, trouble.detail)
        observed = {"observedValue": sum(snapshot.figures.statuses.values()), "observedUnit": "shipments",
                    "time": instant(snapshot.figures.now)}
        if snapshot.stale:
            return health_entry("datastore", "warn", snapshot.stale.reason, snapshot.stale.detail, **observed)
        return health_entry("datastore", "pass", **observed)

    def schema_entry(self):
        errors, warnings = self.store.errors(), in_force(self.store.findings)
        if self.store.versions is None and self.store.trouble:
            return health_entry("datastore", "warn", self.store.trouble.reason, "schema not compared yet")
        status = "fail" if errors else "warn" if warnings else "pass"
        return health_entry("datastore", status, None if status == "pass" else "schema_mismatch", "; ".join(errors + warnings))

    def log_entry(self):
        state = self.log.document()
        if not state["fallback"]:
            return health_entry("system", "pass")
        output = "the log file %s cannot be written; logging to stdout" % state["path"]
        return health_entry("system", "warn", state["reason"], output)

    def certificate_entry(self):
        document = self.tls_document()
        days = document["expires_in_days"]
        observed = {"observedValue": days, "observedUnit": "days"}
        if days * exposition.DAY >= CERTIFICATE_NOTICE:
            return health_entry("system", "pass", **observed)
        return health_entry("system", "warn", "certificate", "the certificate's end is %s" % document["expires_at"], **observed)

    def reload_entry(self):
        if not self.refusal:
            return health_entry("system", "pass")
        return health_entry("system", "warn", "reload_refused", self.refusal[1], time=instant(self.refusal[0]))

    def refuse_reload(self, why):
        """Keeps and logs that the last reload was refused; a good one brings another Service."""
        self.refusal = time.time(), why
        event(logging.ERROR, "reload_refused", reason="reload_refused", detail=why + "; serving on as before")

    def document(self, snapshot, history):
        figures, stale = snapshot
        blocks = self.own_blocks(figures)
        document = {"service": blocks.pop("service"), "generated_at": instant(figures.now), "stale": None}
        if stale:
            document["stale"] = {"reason": stale.reason, "age_seconds": round(self.store.age(), 1), "detail": stale.detail}
        document.update(exposition.metrics_document(figures, history))
        document.update(blocks)
        return document

    def own_blocks(self, figures=None):
        """What the service knows of itself; the database block is about the last figures where none are given."""
        return {
            "service": self.service_document(),
            "database": self.database_document(figures or self.store.last),
            "requests": self.traffic.document(self.server.in_flight if self.server else 0),
            "connections": self.connections_document(),
            "tls": self.tls_document(),
            "logging": self.log.document(),
        }

    def tls_document(self):
        if self.certificate_end is None:
            return None
        return {"expires_at": instant(self.certificate_end),
                "expires_in_days": round((self.certificate_end - time.time()) / exposition.DAY, 2)}

    def connections_document(self):
        server = self.server
        counts = server.counts if server else {}
        document = {"open": len(server.connections) if server else 0, "limit": server.limit if server else 0}
        document.update((name + "_total", counts.get(name, 0)) for name in webserver.COUNTS)
        return document

    def service_document(self):
        return {
            "name": NAME,
            "version": VERSION,
            "instance": self.instance,
            "started_at": instant(self.started_at),
            "uptime_seconds": round(time.monotonic() - self.started, 1),
            "pid": os.getpid(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "sqlite": sqlite3.sqlite_version,
        }

    def database_document(self, figures):
        store, newest = self.store, figures and figures.newest_change
        return {
            "path": store.path,
            "reason": store.trouble.reason if store.trouble else None,
            "figures_at": figures and instant(figures.now),
            "newest_change_at": newest,
            "newest_change_age_seconds": figures.now - unix_time(newest) if newest else None,
            "future_changes": figures and figures.future_changes,
            "schema_version": figures and figures.schema_version,
            "size_bytes": store.size or 0,
            "queries_total": store.queries,
            "failures_total": sum(store.failures.values()),
            "failures": dict(store.failures),
            "query_seconds": {"last": rounded(store.last_seconds), "mean": ratio(store.seconds, store.queries),
                              "max": rounded(store.max_seconds)},
            "replaced_total": store.replaced,
        }


# Validation: what only a person can mend is refused before anything is served

class Refused(Exception):
    """The configuration or the schema is refused: findings, at least one of them an error."""

    def __init__(self, findings):
        super().__init__("; ".join(finding.text for finding in findings))
        self.findings = findings


def say_credentials(fault):
    """Logs that the password file went bad while it is in use, or that it is good again."""
    if fault:
        event(logging.ERROR, "credentials_invalid", reason="credentials", detail=fault + "; the users known before stay in force")
    else:
        event(logging.INFO, "credentials_recovered", reason="credentials")


def check_store(store):
    """Findings about the database. One that exists but cannot be read at the moment is a warning: it may heal by itself."""
    try:
        store.snapshot()
    except Trouble as trouble:
        if trouble.reason in ("missing", "not_a_file") or store.size == 0:
            cure = "set METRICS_DB_PATH to the shipments database, or make one: python3 seed.py FILE"
            yield Finding("error", "%s; %s" % (trouble.detail, cure))
        elif trouble.reason != "schema_mismatch":
            yield Finding("warning", "%s: %s; the service will start and not be ready" % (trouble.reason, trouble.detail))
    for grade, words in store.findings:
        grade = "error" if grade == "version" else grade
        yield Finding(grade, "database %s: %s" % (store.path, words))


def writable(path):
    """Why a file at this path could not be opened for writing, or None. Creates nothing."""
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        return "it is a folder"
    if not os.path.isdir(folder):
        return "there is no folder %s" % folder
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        return "this user may not write %s" % ("it" if os.path.exists(path) else "in " + folder)
    return None


def check_files(settings):
    why = writable(settings.log_file) if settings.log_file else None
    if why:
        yield Finding("warning", "METRICS_LOG_FILE %s cannot be written: %s; the service will log to stdout" % (
            settings.log_file, why))
    why = supervision.path_fault(settings.pid_file)
    if why:
        yield Finding("error", why)


def loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def check_exposure(settings):
    """Findings about who can listen in, and who need not even do that."""
    bare = [words for words, there in (("unencrypted", settings.tls_cert), ("without a password", settings.auth_file)) if not there]
    if bare and not loopback(settings.host):
        what = "the password travels" if settings.auth_file else "whoever reaches the port reads the metrics,"
        yield Finding("warning", "METRICS_HOST %s is not loopback: %s %s; docs/configuration.md says how to guard them" % (
            settings.host, what, " and ".join(bare)))


def tls_of(settings):
    """(Handler class, Unix time of the certificate's end), without TLS (webserver.Handler, None). Raises Refused."""
    if not settings.tls_cert:
        if settings.tls_key:
            raise Refused([Finding("error", "METRICS_TLS_KEY is set and METRICS_TLS_CERT is not; set both, or neither")])
        return webserver.Handler, None
    import tls
    try:
        return tls.handler_of(settings.tls_cert, settings.tls_key), tls.expiry(settings.tls_cert)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = settings.tls_cert + (" and " + settings.tls_key if settings.tls_key else "")
        raise Refused([Finding("error", "METRICS_TLS_CERT: %s cannot be used: %s; give a PEM certificate and its own key, without "
                                        "a passphrase" % (files, getattr(error, "strerror", None) or error))])


def credentials_of(settings):
    """The credentials.Credentials of METRICS_AUTH_FILE, None without. Raises Refused."""
    if not settings.auth_file:
        return None
    import credentials
    try:
        return credentials.Credentials(settings.auth_file, say_credentials)
    except credentials.CredentialsError as error:
        raise Refused([Finding("error", "METRICS_AUTH_FILE: %s" % error)])


def check_guards(settings, now):
    """Findings about certificate, key and passwords. A certificate that is over can be served, and hardly anybody will take it."""
    end = None
    for load in (credentials_of, tls_of):
        try:
            loaded = load(settings)
        except Refused as refusal:
            yield from refusal.findings
        else:
            end = loaded[1] if load is tls_of else None
    if end is not None and end - now < CERTIFICATE_NOTICE:
        yield Finding("warning", "METRICS_TLS_CERT: the certificate %s %s; renew it and reload" % (
            "ended at" if end <= now else "ends at", instant(end)))


def running(settings):
    """The PID of the instance that is proven to run with these settings, or None."""
    instance = supervision.find(supervision.Target(settings.pid_file, settings.host, settings.port)).instance
    return instance and instance.pid


def port_owners(settings, error):
    """Who has the port, when that is why it cannot be had."""
    in_use = getattr(error, "errno", 0) == errno.EADDRINUSE
    return supervision.listeners(settings.host, settings.port) if in_use else []


def port_trouble(settings, error, owners):
    names = ", ".join(supervision.describe(owner.pid) if owner.pid else "a process of another user" for owner in owners)
    return "cannot listen on %s port %d: %s%s; set METRICS_PORT or METRICS_HOST" % (
        settings.host, settings.port, getattr(error, "strerror", None) or error, ", it is taken by " + names if names else "")


def check_port(settings):
    """A port counts as good when it is free, or held by the running instance that would make way."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (OSError, UnicodeError) as error:  # the latter from a name that is none
        holder, owners = running(settings), port_owners(settings, error)
        if holder is None or holder not in [owner.pid for owner in owners]:
            yield Finding("error", port_trouble(settings, error, owners))


def open_store(settings):
    """The Store of the settings. Raises Refused where our own folder is incomplete."""
    try:
        return Store(settings.db_path, settings.query_timeout, settings.stale_seconds)
    except (OSError, sqlite3.Error) as error:
        raise Refused([Finding("error", "%s is missing or damaged (%s): copy the whole folder again" % (
            schema_check.SCHEMA_FILE, error))])


def refuse_errors(findings):
    findings = list(findings)
    if any(finding.grade == "error" for finding in findings):
        raise Refused(findings)
    return findings


# Life: check, serve, demo

class Signals:
    """SIGTERM, SIGINT and SIGHUP as bytes on a socket: the handler does nothing, the main thread reads."""

    def __enter__(self):
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        signal.set_wakeup_fd(self.writer.fileno())
        self.before = {number: signal.signal(number, lambda *_: None) for number in supervision.LIFE_SIGNALS}
        supervision.unblock()
        return self

    def wait(self):
        """The name of the next signal."""
        while True:
            select.select([self.reader], [], [])
            number = self.reader.recv(1)[0]
            if number in self.before:
                return signal.Signals(number).name

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.reader.close()
        self.writer.close()


def url_of(settings, port):
    host = "[%s]" % settings.host if ":" in settings.host else settings.host
    return "%s://%s:%d" % ("https" if settings.tls_cert else "http", host, port)


def listen(settings):
    """A listening socket: the one handed to us, or else one of our own. Raises OSError whose text names who has the port."""
    handed = supervision.handed_sockets()
    if len(handed) > 1:
        raise OSError("%d sockets were handed over by LISTEN_FDS, one is served; give one ListenStream=" % len(handed))
    try:
        return handed[0] if handed else webserver.listening_socket((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        raise OSError(port_trouble(settings, error, port_owners(settings, error))) from error


def own_command(env_file, *options):
    """The command line of this program, as whatever its file holds by now."""
    return [sys.executable, os.path.join(FOLDER, NAME + ".py")] + (["--env-file", env_file] if env_file else []) + list(options)


def outcome(code, output):
    """Why a --check that ended with this code refuses, in words, or None."""
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line[len("error: "):] for line in lines if line.startswith("error: ")]
    return None if code == 0 else "; ".join(errors or lines[-1:]) or "--check ended with exit code %d and no word" % code


def recheck(env_file, signals):
    """Runs --check of the code and the settings as they are now, in a process of their own; why they are refused, or None. The
    next signal ends it early: a stop shall not wait for it, and after another reload it would be outdated."""
    deadline, output = time.monotonic() + CHECK_SECONDS, b""
    with subprocess.Popen(own_command(env_file, "--check"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as child:
        while True:
            ready = select.select([child.stdout, signals.reader], [], [], max(0, deadline - time.monotonic()))[0]
            if child.stdout not in ready or signals.reader in ready:
                child.kill()
                return "--check was ended by another signal" if ready else "--check took longer than %d s" % CHECK_SECONDS
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                break
            output += data
    return outcome(child.returncode, output)


def immovable(settings, env_file):
    """Why a reload could not bring the settings as they are now: what belongs to the process stays with it. None if it could."""
    new = read_settings(env_file)[0]
    moved = [(name, getattr(settings, name), getattr(new, name)) for name in ("host", "port", "pid_file")]
    words = ["METRICS_%s from %s to %s" % (name.upper(), old, new) for name, old, new in moved if old != new]
    return "a reload cannot change %s; restart instead" % " and ".join(words) if words else None


class Life:
    """One run of the service: what it serves with, its reloads and its end."""

    def __init__(self, settings, log, store, signals, env_file):
        self.settings, self.signals = settings, signals
        self.env_file = env_file and os.path.abspath(env_file)
        self.handler, self.certificate_end = tls_of(settings)
        self.service = Service(log, store, credentials_of(settings), self.certificate_end)

    def start(self, handover):
        """Listens and serves. Raises OSError like listen."""
        frozen = json.loads(handover.state.decode()) if handover else []
        with supervision.blocked():  # so that no other thread ever takes a signal
            self.service.server = self.server = webserver.Server(listen(self.settings), self.service, self.handler, frozen)
            self.server.start()
        url = url_of(self.settings, self.server.server_port)
        event(logging.INFO, "service_started", instance=self.service.instance, pid=os.getpid(), url=url, version=VERSION,
              **({"connections": len(frozen)} if handover else {}))
        return url

    def run(self, lock=None):
        """Serves until a signal ends it. Without the PidFile, as for a demo, SIGHUP is such a signal too: the terminal is gone."""
        while True:
            name = self.signals.wait()
            if name != "SIGHUP" or not lock:
                return self.stop(name)
            refusal = immovable(self.settings, self.env_file) or recheck(self.env_file, self.signals) or self.reload(lock)
            self.service.refuse_reload(refusal)

    def reload(self, lock):
        """Goes on as the program and with the settings that the files hold by now; comes back only to say why not."""
        event(logging.INFO, "service_reloading", instance=self.service.instance)
        try:
            if not self.server.pause(self.settings.drain_seconds):
                return "the requests in flight were not finished within METRICS_DRAIN_SECONDS"
            state = json.dumps(self.server.freeze()).encode()
            supervision.reexec(own_command(self.env_file), self.server.socket, lock, state)
        except OSError as error:
            return "the new program cannot be run: %s" % error
        finally:
            with supervision.blocked():
                self.server.resume()

    def stop(self, name):
        event(logging.INFO, "service_stopping", signal=name)
        abandoned = self.server.stop(self.settings.drain_seconds)
        if abandoned:
            event(logging.WARNING, "requests_abandoned", count=abandoned, detail="not finished within METRICS_DRAIN_SECONDS")
        uptime = round(time.monotonic() - self.service.started, 1)
        event(logging.INFO, "service_stopped", uptime=uptime, abandoned=abandoned)
        return 0


def prepare(settings, complaints, log, signals, env_file):
    """The Life, once configuration and schema are found good. Raises Refused, having logged each finding."""
    try:
        refuse_errors(Finding("error", complaint) for complaint in complaints)
        store = open_store(settings)
        guards = list(check_guards(settings, time.time()))
        refuse_errors(list(check_files(settings)) + guards + list(check_store(store)))
        for name, findings in (("exposed", check_exposure(settings)), ("certificate_ends", guards)):
            for finding in findings:
                event(logging.WARNING, name, detail=finding.text)
        return Life(settings, log, store, signals, env_file)
    except Refused as refusal:
        for finding in refusal.findings:
            level = logging.ERROR if finding.grade == "error" else logging.WARNING
            event(level, "config_invalid", grade=finding.grade, detail=finding.text)
        raise


def put(line):
    """Prints a line in which paths are the bytes that they are, whatever the locale."""
    sys.stdout.buffer.write(os.fsencode(line) + b"\n")
    sys.stdout.flush()


def report(findings):
    for finding in sorted(findings, key=lambda finding: schema_check.GRADES.index(finding.grade)):
        print("%s: %s" % (finding.grade, finding.text), file=sys.stderr)


def command_check(env_file):
    """Validates everything, takes no lock, creates no file; prints a line a finding."""
    settings, complaints = read_settings(env_file)
    findings = [Finding("error", complaint) for complaint in complaints]
    findings += list(check_files(settings)) + list(check_exposure(settings)) + list(check_guards(settings, time.time()))
    if not complaints:  # else the port may be a default that nobody wants
        findings += check_port(settings)
    if settings.db_path:
        findings += check_store(open_store(settings))
    refuse_errors(findings)
    report(findings)
    warnings = sum(finding.grade == "warning" for finding in findings)
    put("ok%s: %s, %s" % (", with %d warning(s)" % warnings if warnings else "", settings.db_path,
                          url_of(settings, settings.port)))
    return 0


def command_hash(user):
    """Prints a line of METRICS_AUTH_FILE for the user, or the hash alone, of a password that is asked for or piped in."""
    import credentials
    try:
        put(credentials.hash_line(user or None))
        return 0
    except credentials.CredentialsError as error:
        report([Finding("error", str(error))])
        return 1


def command_settings(env_file):
    """Prints every setting as it would be used, NAME=value a line, for other programs to read."""
    settings, complaints = read_settings(env_file)
    for name, setting in VARIABLES.items():
        value = getattr(settings, setting.field)
        put("%s=%s" % (name, "" if value is None else value))
    refuse_errors(Finding("error", complaint) for complaint in complaints)
    return 0


def command_serve(env_file):
    handover = supervision.inherited()
    settings, complaints = read_settings(env_file)
    log = start_log(settings)
    with Signals() as signals:
        life = prepare(settings, complaints, log, signals, env_file)
        with supervision.PidFile(settings.pid_file, handover and handover.lock) as lock:
            life.start(handover)
            return life.run(lock)


def demo_settings(env_file, folder):
    """The settings of a demo: the given ones, on a scratch database, and a free port when the usual one is taken."""
    given = gather(env_file)
    for name, value in (("METRICS_DB_PATH", "shipments.db"), ("METRICS_PID_FILE", "demo.pid")):
        given[name] = Given(value, "--demo", folder)
    settings, complaints = load_settings(given, env_file)
    if "METRICS_PORT" not in given and any(check_port(settings)):
        settings = settings._replace(port=0)
    return settings, complaints


def end_with_parent():
    """Makes the kernel end this process with its parent, even one that was killed (PR_SET_PDEATHSIG of prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def seed(database, *options):
    """seed.py on the database as a child, which ends with us."""
    command = [sys.executable, os.path.join(FOLDER, "seed.py"), database]
    return subprocess.Popen(command + list(options), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            preexec_fn=end_with_parent)


@contextlib.contextmanager
def live_traffic(database):
    """Keeps the database changing while the block runs."""
    writer = seed(database, "--live")
    try:
        yield
    finally:
        writer.terminate()
        writer.wait()


def command_demo(env_file):
    """Serves a scratch database with live traffic until a signal, then removes it."""
    folder = tempfile.mkdtemp(prefix="metrics_demo_")
    try:
        settings, complaints = demo_settings(env_file, folder)
        log = start_log(settings)
        with Signals() as signals:
            code = seed(settings.db_path, "--rows", "20000").wait()
            if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                return 0  # ended before it began, by a signal to all of us
            if code:
                raise OSError("seed.py could not make the demo's database in %s, exit code %d" % (folder, code))
            with live_traffic(settings.db_path), supervision.PidFile(settings.pid_file):
                life = prepare(settings, complaints, log, signals, env_file)
                print("demo: open %s/metrics, /readyz or /livez; Ctrl-C ends it and removes %s" % (life.start(None), folder),
                      flush=True)
                return life.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Parser(argparse.ArgumentParser):
    """Leaves with 1 on wrong arguments: 2 is no exit code of ours."""

    def error(self, message):
        self.exit(1, "%s: %s; see --help\n" % (self.prog, message))


def parse_arguments(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-file", metavar="FILE",
                        help="KEY=VALUE lines, as systemd reads them; they win over the environment")
    parser.add_argument("--version", action="version", version="%s %s" % (NAME, VERSION))
    mode = parser.add_mutually_exclusive_group()
    parser.set_defaults(command=command_serve)
    for flag, command, words in (
            ("--check", command_check, "validate settings, log target, database, schema and port, change nothing"),
            ("--settings", command_settings, "print every setting as it would be used"),
            ("--demo", command_demo, "serve a scratch database with live traffic")):
        mode.add_argument(flag, dest="command", action="store_const", const=command, help=words)
    mode.add_argument("--hash-password", nargs="?", const="", metavar="USER",
                      help="print a line of METRICS_AUTH_FILE; the password is asked for, or the first line of standard input")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse_arguments(argv)
    try:
        if options.hash_password is not None:
            return command_hash(options.hash_password)
        return options.command(options.env_file)
    except Refused as refusal:
        report(refusal.findings)
        return EX_CONFIG
    except supervision.EnvFileError as error:
        report([Finding("error", str(error))])
        return EX_CONFIG
    except (supervision.Held, supervision.Failure, OSError) as error:
        event(logging.ERROR, "start_failed", detail=str(error))
        print("error: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
