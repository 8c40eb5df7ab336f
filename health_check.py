#!/usr/bin/env python3
"""Judge metrics_service from outside, over HTTP alone: one line with the verdict, then one line per check.

  reachable  /livez answers, and what answers is metrics_service
  metrics    /metrics is well-formed JSON with every figure in its place
  database   /readyz counted the shipments with a real query, and the figures agree among themselves
  latency    the slowest of these requests
  p95        the slowest route's 95th percentile of five minutes, whoever asked, with --max-p95 only
  query_p95  the same of the queries of the database, with --max-query-p95 only
  fresh      the age of the newest change, with --max-age only
  log        errors of this run of the service: read from --log-file, or from what /metrics says of its log
  trends     what is odd for its hour, such as no deliveries, by the history that it keeps in --trends-file, with that only

A check is ok, learning, warning, failing or could not tell. What is printed, and the exit code when the worst check is:

  --format    ok, learning  warning  failing  could not tell, or wrong arguments
  text        0             0        1        1      one line for each check
  json        0             0        1        1
  nagios      0             1        2        3      one line with performance data; -v, -vv and -vvv tell more
  textfile    0             0        1        1      for the node exporter, as --textfile FILE writes it beside any format

The checks end within --timeout, however slowly anything answers, so runs never pile up; writing the textfile and --ping have 5 s
more each. This one file is all that another host needs, and trends.py beside it for trends. For cron, which mails whatever is
printed, and for Nagios or Icinga:

  */5 * * * * /opt/metrics/health_check.py --quiet --log-file /var/log/metrics.log --trends-file /var/lib/metrics/trends
  /opt/metrics/health_check.py --format nagios -H 192.0.2.7 -p 8321 -w 0.5 -c 2 -t 10

Two things beside checking: what trends would have said, and how odd each value of one's own data is to it:

  /opt/metrics/health_check.py --trends-file /var/lib/metrics/trends --backtest
  /opt/metrics/health_check.py score < timestamps_and_values.csv
"""

import argparse
import base64
import calendar
import email.utils
import enum
import errno
import http.client
import json
import math
import os
import re
import socket
import ssl
import stat
import sys
import threading
import time
from collections import namedtuple
from contextlib import closing, suppress
from urllib.parse import urlsplit

VERSION = "0.1.0"
SERVICE = "metrics_service"         # who has to answer
AGENT = "health_check/"
USER_AGENT = AGENT + VERSION
RUNBOOK = "docs/runbook.md#"
BODY_LIMIT = 4 << 20                # bytes; a real answer has some tens of thousands
TEXT_LIMIT = 300                    # characters printed of a text that somebody else wrote
P95_COUNT = 20                      # durations that a 95th percentile takes: of fewer the longest alone would decide
LOG_TAIL = 256 << 10                # bytes read from the end of a log file
WRITE_SECONDS = PING_SECONDS = 5      # beyond the time for all checks: a verdict has to be told however long it took
CLOCK_SLACK = 120                   # seconds between the figures' time and the Date of the answer that brings them
CERTIFICATE_NOTICE = 21 * 86400     # seconds before a certificate's end that a person gets to replace it
TIMESTAMP = "%Y-%m-%dT%H:%M:%S"     # UTC; once the Z is off, times compare as text, with or without a fraction
REASON = re.compile("[a-z_]{1,30}")
RANGE = re.compile(r"(@?)(?:(~|{0})?:)?({0})?".format(r"-?\d+(?:\.\d+)?"))     # [@][start:][end] of monitoring plugins
LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")
LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*)Z ([A-Z]+) (.+)")
LOG_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|\S*)')
REFUSED_START = ("start_failed", "config_invalid")     # since the service runs, another process wrote these to its log
ENDED_BY = {"database_unavailable": "database_recovered", "schema_mismatch": "database_recovered",
            "credentials_invalid": "credentials_recovered", "accept_failed": "accept_recovered"}
FILE_REASONS = {FileNotFoundError: "missing", NotADirectoryError: "missing", IsADirectoryError: "not_a_file",
                PermissionError: "denied"}
WATCHED = 16                        # numbers that may be watched besides
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The metrics of the textfile and what they say. Every file of a folder has to say the same of a metric of the same name.
FAMILIES = {
    "status": "Whether a check came to this status at the last run.",
    "verdict": "Whether the worst status of the last run was this one.",
    "duration_seconds": "Duration of the last run.",
    "request_duration_seconds": "Duration of the last run's requests that were answered.",
    "p95_seconds": "The 95th percentile of five minutes, as the check of that name judges it.",
    "trend_state": "Whether the trend of a metric came to this state at the last run.",
    "trend_score": "How odd the last value of a metric is: as odd is one in ten to the power of this.",
    "last_run_timestamp_seconds": "When the last run ended.",
}
FAMILY = "logistics_check_"
TREND_STATES = ("quiet", "learning", "degraded", "not_enough_data")     # as trends.py has them
NO_TRENDS = "trends: not installed; copy trends.py beside health_check.py"

# What each answer of /metrics has, be it the problem document of a failing service, and what each good one has besides.
COUNT, NUMBER, TEXT, NULL = (int,), (int, float), (str,), (type(None),)     # exact types: a bool is no count
LOGGING = {
    TEXT: "service.started_at logging.target",
    TEXT + NULL: "logging.path logging.reason logging.last_error_at logging.last_recovery_at",
    COUNT: "logging.errors_total",
    (bool,): "logging.fallback",
}
SPINE = {
    TEXT: "service.name service.version service.instance generated_at",
    COUNT: "shipments.total shipments.open shipments.overdue database.future_changes requests.total "
           "delivery.delivered delivery.evaluated delivery.on_time delivery.late",
    NUMBER: "service.uptime_seconds",
    NUMBER + NULL: "database.newest_change_age_seconds delivery.on_time_rate "
                   "delivery.transit_seconds.mean delivery.transit_seconds.p50 delivery.transit_seconds.p95",
    (dict,): "shipments.by_status",
    (dict,) + NULL: "stale",
    (list,): "by_carrier by_mode daily",
}

# The last five minutes in /metrics, by the check that judges them: by route, and of all queries. Earlier releases have neither.
RECENT = {"p95": "requests.latency_seconds.last_5_minutes.by_route", "query_p95": "database.query_seconds.last_5_minutes"}
PERCENTILE = {COUNT: "count", NUMBER + NULL: "p95"}

# How far a request has come: the reason and the meaning of being no further when time is up.
LOOKUP = ("timeout", "the name look-up has no result")
CONNECT = ("timeout", "the connection is not accepted")
HANDSHAKE = ("silent", "it accepts the connection and does not answer the TLS handshake")
SILENCE = ("silent", "it accepts the connection and does not answer: is the process stopped?")
HEAD = ("too_slow", "the headers are still coming")
BODY = ("too_slow", "the body is still coming")

# What else ends a request without an answer, the most special class first.
ENDINGS = (
    ((socket.gaierror, UnicodeError), "unresolved", "the name has no address: {0}"),
    (ConnectionRefusedError, "refused", "nothing listens there"),
    (http.client.RemoteDisconnected, "closed", "it closes the connection without an answer"),
    (http.client.IncompleteRead, "closed", "it closes the connection in the middle of the answer"),
    ((ConnectionResetError, BrokenPipeError), "reset", "it resets the connection"),
    (http.client.HTTPException, "malformed", "what comes back is not HTTP: {0!r}"),
    (ssl.CertificateError, "certificate", "{0}"),
    (ssl.SSLError, "tls", "{0}"),
    (OSError, "unreachable", "{0}"),
)


class Status(enum.IntEnum):
    """Best to worst; the verdict is the worst there is."""
    OK = 0
    LEARNING = 1
    WARNING = 2
    UNKNOWN = 3
    FAILING = 4

    def words(self):
        return "could not tell" if self is Status.UNKNOWN else self.name.lower()


OK, LEARNING, WARNING, UNKNOWN, FAILING = Status

FIGURES = ("metrics", "latency", "p95", "query_p95", "trends")     # checks whose summary tells something when all is ok
PLUGIN_STATES = {OK: (0, "OK"), LEARNING: (0, "OK"), WARNING: (1, "WARNING"), FAILING: (2, "CRITICAL"), UNKNOWN: (3, "UNKNOWN")}

HEALTH = {"pass": OK, "warn": WARNING, "fail": FAILING}     # health+json, draft-inadarei-api-health-check-06

Finding = namedtuple("Finding", "status reason summary")    # reason: one word of the runbook, or None
Result = namedtuple("Result", "name status reason summary seconds")
Request = namedtuple("Request", "seconds path peer status size")     # status and size of the answer, None without one
Measure = namedtuple("Measure", "label value unit warning critical least most")      # for performance data; None: does not apply
Report = namedtuple("Report", "verdict url instance checked_at seconds results requests measures trends")
Answer = namedtuple("Answer", "status phrase location date body")   # any HTTP answer, its body cut off behind the limit
Entry = namedtuple("Entry", "time level text")              # a log line; text begins with the event
Range = namedtuple("Range", "text start end inside")       # the values that are no alert, or with inside those that are one
Limit = namedtuple("Limit", "seconds status")               # status: of what is not done by then, None where the format says so
Option = namedtuple("Option", "name letter kind default metavar help")


class Overdue(Exception):
    """The time for it is up."""


class Trouble(Exception):
    """Ends the check that meets it, with this finding."""

    def __init__(self, *finding):
        Exception.__init__(self, *finding)
        self.finding = Finding(*finding)


def within(seconds, function, *arguments):
    """What function returns or raises, or Overdue when that takes longer.

    By a thread that is left behind, for nothing else bounds everything: a socket's timeout starts again with every byte, and a
    signal does not interrupt a name look-up.
    """
    outcome = []

    def run():
        try:
            outcome.append(function(*arguments))
        except Exception as error:  # raised below, by whoever waits
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Overdue
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def printable(text):
    """One line that is safe on any terminal and in a mail, whoever wrote it."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:TEXT_LIMIT])
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"     # there is no stdout where it was closed before the start
    return line.encode(encoding, "backslashreplace").decode(encoding)


def stamp(seconds):
    return time.strftime(TIMESTAMP, time.gmtime(seconds))


def decimal(number):
    """The shortest text of a number to the microsecond, without an exponent, which readers of performance data do not know."""
    return "{:.6f}".format(number).rstrip("0").rstrip(".") if isinstance(number, float) else str(number)


def upto(limit):
    """The Range of what is not above a limit."""
    return Range(decimal(limit), 0, limit, False)


def alerts(span, value):
    return (span.start <= value <= span.end) == span.inside


def parse_object(body):
    """The object in strict JSON. ValueError for anything else: NaN and what overflows, another type, undecodable bytes."""
    def finite(number):
        if not math.isfinite(float(number)):
            raise ValueError("{} is not JSON".format(number))
        return float(number)

    def whole(number):
        if len(number) > 20:        # int() takes time by the square of the digits, which no deadline interrupts
            raise ValueError("a number has {} digits".format(len(number)))
        return int(number)

    try:
        document = json.loads(body.decode(), parse_constant=finite, parse_float=finite, parse_int=whole)
    except RecursionError:
        raise ValueError("it is nested too deeply")
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def value_at(document, path):
    """What document has at a path, or ... for nothing."""
    for name in path.split("."):
        document = document.get(name, ...) if isinstance(document, dict) else ...
    return document


def misfits(document, shape):
    """The paths of shape where document has another type or nothing."""
    for kinds, paths in shape.items():
        for path in paths.split():
            if type(value_at(document, path)) not in kinds:
                yield path


def replace_file(path, text):
    """Puts a file that all may read in the place of path in one step, so that no reader meets half of one. OSError."""
    import tempfile     # seldom needed, and slow to load
    folder, name = os.path.split(os.path.abspath(path))
    number, scratch = tempfile.mkstemp(".tmp", "." + name + ".", folder)    # by no name that the collector reads
    try:
        with open(number, "w", encoding="utf-8") as file:
            os.fchmod(number, 0o644)                # made with 0600, and the collector is another user
            file.write(text + "\n")
            file.flush()
            os.fsync(number)
        os.replace(scratch, path)
    except BaseException:       # raised again: nothing is left behind
        os.unlink(scratch)
        raise


def load_trends():
    """The module trends, None where this file was copied without it."""
    sys.dont_write_bytecode = True      # a run by root leaves no file that another user could not replace
    try:
        import trends
    except ModuleNotFoundError as error:
        if error.name != "trends":
            raise
        return None
    return trends


def find_proxy(url):
    """The proxy that the environment asks for as a split URL; None for this host itself, which no proxy can reach."""
    if LOOPBACK.fullmatch(url.hostname):
        return None
    from urllib.request import getproxies, proxy_bypass     # a fifth of the start-up time, seldom needed
    proxy = getproxies().get(url.scheme)
    if not proxy or proxy_bypass(url.hostname):
        return None
    return urlsplit(proxy if "//" in proxy else "http://" + proxy)


class Lines:
    """A file that keeps the last line read: http.client takes the end of the connection for the end of an answer's head."""

    def __init__(self, file):
        self.file, self.last = file, b""

    def readline(self, *limit):
        self.last = self.file.readline(*limit)
        return self.last

    def __getattr__(self, name):
        return getattr(self.file, name)


class Exchange:
    """One GET over a connection of its own. stage and peer tell whoever stops waiting how far it came."""

    def __init__(self, url, path, context=None, authorization=None):
        self.url, self.path, self.context = url, path, context
        self.name = "GET " + path   # in what is told of it
        self.proxy = find_proxy(url)
        self.headers = {"User-Agent": USER_AGENT, "Accept": "application/json, */*;q=0.5", "Connection": "close"}
        if authorization:
            self.headers["Authorization"] = authorization
        self.stage, self.peer = LOOKUP, self.url.netloc
        self.connection = None
        self.expires = None         # unix time of the certificate's end, with https

    def run(self):
        """The Answer, whatever its status; redirects are not followed. Without one: an error listed in ENDINGS."""
        self.connection = self.prepare()
        with closing(self.connection):
            self.stage = CONNECT
            self.connection.connect()
            self.stage = SILENCE
            return self.ask(self.connection.sock)

    def prepare(self):
        """An HTTPConnection not yet connected, once the name that it goes to has an address."""
        port = self.url.port or {"http": 80, "https": 443}[self.url.scheme]
        host, door = (self.proxy.hostname, self.proxy.port or 80) if self.proxy else (self.url.hostname, port)
        addresses = {found[4][0] for found in socket.getaddrinfo(host, door, 0, socket.SOCK_STREAM)}
        self.peer = "{}{} port {}".format("the proxy " if self.proxy else "", " or ".join(sorted(addresses)), door)
        if self.url.scheme == "http":
            return http.client.HTTPConnection(host, door)
        connection = http.client.HTTPSConnection(host, door, context=self.context or ssl.create_default_context())
        if self.proxy:
            connection.set_tunnel(self.url.hostname, port)
        return connection

    def ask(self, sock):
        if self.url.scheme == "https":
            self.expires = ssl.cert_time_to_seconds(sock.getpeercert()["notAfter"])
        through = "http://" + self.url.netloc if self.proxy and self.url.scheme == "http" else ""
        self.connection.request("GET", through + (self.url.path + self.path or "/"), headers=self.headers)
        response = http.client.HTTPResponse(sock, method="GET")
        if not response.fp.peek(1):
            raise http.client.RemoteDisconnected
        self.stage = HEAD
        head = response.fp = Lines(response.fp)
        response.begin()
        if head.last not in (b"\r\n", b"\n"):
            raise http.client.IncompleteRead(b"")
        self.stage = BODY
        body = response.read(BODY_LIMIT + 1)
        if response.length and len(body) <= BODY_LIMIT:     # read(n) takes the end of the connection for the end of the body
            raise http.client.IncompleteRead(body)
        return Answer(response.status, response.reason, response.getheader("Location"), response.getheader("Date"), body)

    def trouble(self, reason, summary):
        """The Trouble that names this request and whom it went to."""
        if self.proxy and reason in ("unresolved", "timeout", "refused", "unreachable"):
            reason = "proxy"
        return Trouble(FAILING, reason, "{} at {}: {}".format(self.name, self.peer, summary))

    def give_up(self, seconds, status):
        """The Trouble for an exchange that is stuck where it is."""
        connected = self.stage is CONNECT and self.connection.sock
        reason, summary = HANDSHAKE if connected else self.stage
        trouble = self.trouble(reason, "{}; gave up after {:.3g} s".format(summary, seconds))
        return Trouble(*trouble.finding._replace(status=status))

    def explain(self, error):
        """The Trouble for an error listed in ENDINGS."""
        reason, summary = next(ending[1:] for ending in ENDINGS if isinstance(error, ending[0]))
        if "CERTIFICATE_VERIFY_FAILED" in str(error):   # an SSLError like any other before Python 3.7
            reason = "certificate"
        return self.trouble(reason, summary.format(error))

    def refuse(self, answer, statuses):
        """Trouble when the status is none of these, or the body too long to be ours."""
        status = "{} {}".format(answer.status, answer.phrase).strip()
        if answer.status in (401, 403):
            cure = "wrong user or password" if "Authorization" in self.headers else "it wants --credentials"
            raise self.trouble("credentials", "{}: {}".format(status, cure))
        if answer.status == 429:    # RFC 6585, which the service gives to logins alone
            raise self.trouble("credentials", "{}: wrong passwords came too often; wait some seconds".format(status))
        if answer.status not in statuses:
            redirect = " to {}, not followed".format(answer.location) if answer.location else ""
            raise self.trouble("http_status", status + redirect)
        if len(answer.body) > BODY_LIMIT:
            raise self.trouble("malformed", "the answer is longer than {} bytes".format(BODY_LIMIT))


class Site:
    """What one run has learnt of the service so far, and the way to ask for more."""

    def __init__(self, settings, present=time.time):
        self.settings, self.present = settings, present     # present: Unix time by which trends are judged
        self.deadline = time.monotonic() + settings.timeout.seconds
        self.requests = []          # one Request each, answered or not
        self.expired = False        # whether a request was given up because the time for all checks ended
        self.last = None            # the Exchange that was answered last
        self.clock = time.time()    # the service's own, by the Date of its last answer
        self.instance = None        # known once the service is reachable
        self.figures = None         # the document of /metrics, once it is known to be well-formed
        self.logging = None         # the same, or the problem document given instead: both tell of the log
        self.trends = []            # one trends.Trend a metric, the rarest first

    def within(self, function, *arguments):
        """What function returns within what is left of the time for all checks."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Trouble(UNKNOWN, None, "nothing is left of the {:g} s for all checks".format(self.settings.timeout.seconds))
        return within(left, function, *arguments)

    def fetch(self, path, statuses, authorization=None):
        """The Answer to GET path with one of these statuses; Trouble tells what happened instead."""
        exchange = Exchange(self.settings.url, path, self.settings.ca_file, authorization)
        answer, started = None, time.monotonic()
        try:
            answer = self.within(exchange.run)
        except Overdue:
            self.expired = True
            raise exchange.give_up(time.monotonic() - started, self.settings.timeout.status)
        except (OSError, http.client.HTTPException, ssl.CertificateError, UnicodeError) as error:
            raise exchange.explain(error)
        finally:
            facts = (answer.status, len(answer.body)) if answer else (None, None)
            self.requests.append(Request(time.monotonic() - started, path, exchange.peer, *facts))
        exchange.refuse(answer, statuses)
        date = email.utils.parsedate_tz(answer.date or "")
        self.clock = email.utils.mktime_tz(date) if date else time.time()
        self.last = exchange
        return answer


def require(value, summary="not reachable"):
    """The value that an earlier check has learnt; without it this one cannot tell."""
    if value is None:
        raise Trouble(UNKNOWN, None, summary)
    return value


def document_of(answer, path):
    """The JSON object in an answer; Trouble when there is none."""
    try:
        return parse_object(answer.body)
    except ValueError as error:
        reason = "malformed" if answer.status == 200 else "http_status"
        raise Trouble(FAILING, reason, "GET {}: {}, {}: {!r}".format(path, answer.status, error, answer.body[:40]))


def reason_of(document, otherwise):
    """The reason that the service gives, if it is one of its words and no stranger's prose."""
    reason = document.get("reason")
    return reason if isinstance(reason, str) and REASON.fullmatch(reason) else otherwise


def identify(site):
    """The instance that answers /livez. Asked without credentials: a stranger on our port shall not have them."""
    answer = site.fetch("/livez", (200,))
    try:
        found = parse_object(answer.body)
    except ValueError:
        found = {}
    if found.get("service") != SERVICE or not isinstance(found.get("instance"), str):
        raise Trouble(FAILING, "identity", "what answers at {} is not {}: {!r}".format(site.last.peer, SERVICE, answer.body[:40]))
    return found["instance"]


def check_reachable(site):
    site.instance = identify(site)
    expires = site.last.expires
    if expires and expires - time.time() < CERTIFICATE_NOTICE:
        return Finding(WARNING, "certificate", "the certificate ends at {}Z".format(stamp(expires)))
    return Finding(OK, None, "instance {} at {}".format(site.instance, site.last.peer))


def read_figures(site):
    """The document of /metrics with every figure in its place; Trouble repeats what a problem document says."""
    answer = site.fetch("/metrics", (200, 500, 503), site.settings.credentials)
    document = document_of(answer, "/metrics")
    if not any(misfits(document, LOGGING)):
        site.logging = document
    if answer.status != 200:
        summary = str(document.get("detail") or "GET /metrics: {}".format(answer.status))
        raise Trouble(FAILING, reason_of(document, "http_status"), summary)
    missing = ", ".join(sorted([*misfits(document, LOGGING), *misfits(document, SPINE)]))
    if missing:
        raise Trouble(FAILING, "malformed", "GET /metrics: missing, or of another type: " + missing)
    return document


def check_metrics(site):
    require(site.instance)
    figures = read_figures(site)
    if figures["service"]["instance"] != site.instance:     # restarted between the two requests
        site.instance, figures = identify(site), read_figures(site)
    if figures["service"]["instance"] != site.instance:
        raise Trouble(FAILING, "identity", "/livez and /metrics come from two instances that share the address")
    site.figures, stale = figures, figures["stale"]
    if stale:
        return Finding(WARNING, "stale", "figures are {} s old: {}".format(stale.get("age_seconds"), stale.get("reason")))
    return Finding(OK, None, "{total} shipments, {open} open, {overdue} overdue".format(**figures["shipments"]))


def read_health(site):
    """The status of /readyz and its entries, (name, entry) pairs. What it says of the log is left to the check of the log."""
    health = document_of(site.fetch("/readyz", (200, 503), site.settings.credentials), "/readyz")
    status, checks = HEALTH.get(health.get("status")), health.get("checks")
    if status is FAILING and not checks:
        raise Trouble(FAILING, "not_ready", "/readyz says fail and nothing else")
    if status is not None and checks is None:
        raise Trouble(UNKNOWN, "credentials", "/readyz tells strangers its status only: give --credentials")
    try:
        entries = [(name, dict(entry)) for name in sorted(checks) for entry in checks[name] if not name.startswith("log:")]
    except (TypeError, ValueError):
        status = None
    if status is None:
        raise Trouble(FAILING, "malformed", "GET /readyz: no health+json")
    return status, entries


def tell(entries):
    """One reason and one sentence for entries of /readyz; an output that another one contains is left out."""
    reasons = [reason_of(entry, None) for entry in entries]
    outputs = [str(entry.get("output")) for entry in entries]
    told = [one for one in outputs if not any(one in other for other in outputs if one != other)]
    return next(filter(None, reasons), "not_ready"), "; ".join(told)


def disagreement(figures, clock):
    """What cannot be true of the figures of /metrics together, or None."""
    shipments, made = figures["shipments"], figures["generated_at"]
    try:
        parts = sum(shipments["by_status"].values())
        age = clock - calendar.timegm(time.strptime(made, TIMESTAMP + "Z"))
    except (TypeError, ValueError):
        return "a count or a time of /metrics is unreadable"
    if parts != shipments["total"]:
        return "{} shipments by status, {} in total".format(parts, shipments["total"])
    if not figures["stale"] and abs(age) > CLOCK_SLACK:
        return "figures are of {}, the service's clock says {}Z".format(made, stamp(clock))
    return None


def disturbances(site):
    """(reason, sentence) of what happened to the rows within the window of the log, which figures of now do not show."""
    since, database = stamp(site.clock - site.settings.log_window), site.figures["database"] if site.figures else {}
    if (database.get("replaced_at") or "") >= since:
        former = "; the one before is still open: copy {former_file} before any restart" if database.get("former_file") else ""
        yield "database_replaced", ("another file bears the database's name since {replaced_at}" + former).format(**database)
    if (database.get("leapt_at") or "") >= since:
        reason = "shipments_dropped" if database["leapt_to"] < database["leapt_from"] else "shipments_jumped"
        yield reason, "{leapt_from} shipments became {leapt_to} at {leapt_at}".format(**database)


def check_database(site):
    require(site.instance)
    status, entries = read_health(site)
    troubled = [entry for _, entry in entries if entry.get("status") != "pass"]
    troubled.sort(key=lambda entry: entry["status"] != "fail")      # the nearest cause first
    if status is FAILING:
        return Finding(FAILING, *tell(troubled))
    counts = [entry.get("observedValue") for name, entry in entries if name == "database:shipments"]
    if len(counts) != 1 or type(counts[0]) is not int:
        return Finding(FAILING, "malformed", "GET /readyz: no count of shipments")
    wrong = site.figures and disagreement(site.figures, site.clock)
    if wrong:
        return Finding(FAILING, "inconsistent", wrong)
    if troubled:
        return Finding(WARNING, *tell(troubled))
    told = list(disturbances(site))
    if told:
        return Finding(WARNING, told[0][0], "; ".join(words for _, words in told))
    return Finding(OK, None, "{} shipments counted".format(counts[0]))


def check_latency(site):
    """By the slowest request. One that was given up has its own line, and a time that nobody knows."""
    require(site.instance)
    require(None if site.expired else site.requests, "a request was given up")
    slowest = max(site.requests, key=lambda request: request.seconds)
    for status, span in ((FAILING, site.settings.critical), (WARNING, site.settings.warning)):
        if span and alerts(span, slowest.seconds):
            told = "{:.3f} s for {}, {} {} s".format(slowest.seconds, slowest.path, "range" if span.start else "limit", span.text)
            return Finding(status, "too_slow", told)
    return Finding(OK, None, "{:.3f} s, limit {} s".format(slowest.seconds, site.settings.critical.text))


def recent_blocks(figures, name):
    """{route: block} that a check judges, or {"queries": block}. Trouble where the service does not tell."""
    found = value_at(figures, RECENT[name])
    if found is ...:
        told = "release {} of the service does not tell it, a later one does".format(figures["service"]["version"])
        raise Trouble(UNKNOWN, None, told)
    blocks = found if name == "p95" else {"queries": found}
    if type(blocks) is not dict or any(path for block in blocks.values() for path in misfits(block, PERCENTILE)):
        raise Trouble(FAILING, "malformed", "GET /metrics: missing, or of another type: in " + RECENT[name])
    return blocks


def slowest_part(blocks):
    """(p95, route or "queries", count) of the slowest that has enough durations, None where none has."""
    enough = [(block["p95"], part, block["count"]) for part, block in blocks.items()
              if block["p95"] is not None and block["count"] >= P95_COUNT]
    return max(enough, default=None)


def judge_p95(site, name, limit):
    """(whether it is above the limit, what to tell of it)."""
    blocks = recent_blocks(require(site.figures, "no figures from /metrics"), name)
    slowest = slowest_part(blocks)
    if not slowest:
        most = max((block["count"] for block in blocks.values()), default=0)
        return False, "not enough data: {} in five minutes, it takes {}".format(most, P95_COUNT)
    return slowest[0] > limit, "{:.3f} s for {}, {} in five minutes, limit {} s".format(*slowest, decimal(limit))


def check_p95(site):
    """None when nobody asked for it."""
    if site.settings.max_p95 is None:
        return None
    slow, told = judge_p95(site, "p95", site.settings.max_p95)
    return Finding(FAILING, "slow_answers", told) if slow else Finding(OK, None, told)


def check_query_p95(site):
    """None when nobody asked for it."""
    if site.settings.max_query_p95 is None:
        return None
    slow, told = judge_p95(site, "query_p95", site.settings.max_query_p95)
    return Finding(FAILING, "slow_queries", told) if slow else Finding(OK, None, told)


def check_fresh(site):
    """None when nobody asked for it."""
    limit = site.settings.max_age
    if limit is None:
        return None
    database = require(site.figures, "no figures from /metrics")["database"]
    age = require(database["newest_change_age_seconds"], "no change recorded")
    told = "the newest change is {:g} s old, limit {:g} s".format(age, limit)
    if age > limit:
        return Finding(FAILING, "frozen", told + ": has the writer stopped?")
    if database["future_changes"]:
        return Finding(WARNING, "future_changes", "{} changes are dated in the future".format(database["future_changes"]))
    return Finding(OK, None, told)


def parse_entry(line):
    """The Entry in a log line of either format; None for anything else, such as a traceback."""
    if line.startswith("{"):
        try:
            record = parse_object(line.encode())
            line = " ".join((record["@timestamp"], record["log.level"].upper(), record["message"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    match = LOG_LINE.fullmatch(line)
    return match and Entry(*match.groups())


def read_log(path):
    """The entries in a log file's tail, oldest first, and whether that is the whole file."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL))
        lines = file.read(LOG_TAIL).decode("utf-8", "replace").split("\n")
    whole = size <= LOG_TAIL
    entries = [entry for entry in map(parse_entry, lines if whole else lines[1:]) if entry]
    if size and not entries:
        raise Trouble(UNKNOWN, "malformed", "{} has no line of a {} log".format(path, SERVICE))
    return entries, whole


def read_logs(path, since):
    """The entries since a moment, the rotated predecessor's included, and whether these are all there were."""
    entries, whole = read_log(path)
    if whole and not (entries and entries[0].time <= since) and os.path.exists(path + ".1"):
        older, whole = read_log(path + ".1")
        entries = older + entries
    return [entry for entry in entries if entry.time >= since], whole or entries[0].time <= since


def event_of(entry):
    return entry.text.split(" ")[0]


def is_error(entry):
    """Whether an entry is an error, unless a request of this very check caused it: the check would keep its own alarm alive."""
    if entry.level != "ERROR":
        return False
    return not dict(LOG_FIELD.findall(entry.text)).get("user_agent", "").startswith(AGENT)


def earliest(site, clock):
    """The time from which errors count: within the window, and of this run of the service."""
    since = stamp(clock - site.settings.log_window)
    return max(since, site.logging["service"]["started_at"].rstrip("Z")) if site.logging else since


def judge_report(site):
    """The finding on what the service itself tells of its log."""
    log = require(site.logging, "/metrics does not tell")["logging"]
    since, count = earliest(site, site.clock), log["errors_total"]
    last, recovery = (log["last_error_at"] or "").rstrip("Z"), (log["last_recovery_at"] or "").rstrip("Z")
    if last < since:
        return Finding(OK, None, "no error since {}Z".format(since))
    if recovery >= last:
        return Finding(WARNING, "recovered", "an error at {}Z, recovered at {}Z".format(last, recovery))
    return Finding(FAILING, "log_errors", "errors since the start: {}, the last at {}Z".format(count, last))


def of_this_run(entries, instance):
    """The entries without those of the run before, which may write its last ones while this one already waits to take over."""
    started = next((number for number, entry in enumerate(entries) if instance and event_of(entry) == "service_started"
                    and dict(LOG_FIELD.findall(entry.text)).get("instance") == instance), 0)
    ended = max((number for number in range(started) if event_of(entries[number]) == "service_stopped"), default=-1)
    return entries[ended + 1:]


def judge_file(site):
    """The finding on the log file; what its tail does not reach is judged by the service's own report."""
    path, since = site.settings.log_file, earliest(site, time.time())
    try:
        entries, complete = site.within(read_logs, path, since)
    except Overdue:
        raise Trouble(UNKNOWN, "timeout", "reading {} takes too long".format(path))
    except OSError as error:
        raise Trouble(UNKNOWN, FILE_REASONS.get(type(error), "io_error"), "{}: {}".format(path, error.strerror))
    entries = of_this_run(entries, site.instance)
    errors = [entry for entry in entries if is_error(entry) and not (site.logging and entry.text.startswith(REFUSED_START))]
    ends = {event_of(entry): entry.time for entry in sorted(entries) if event_of(entry) in ENDED_BY.values()}
    lasting = [entry for entry in errors if entry.time > ends.get(ENDED_BY.get(event_of(entry)), "")]
    if lasting:
        told = "errors since {1}Z: {0}, the last: {2}Z {3}".format(len(lasting), since, lasting[-1].time, lasting[-1].text)
        return Finding(FAILING, "log_errors", told)
    if errors:
        told = "errors since {}Z: {}, over since {}Z".format(since, len(errors), max(ends.values()))
        return Finding(WARNING, "recovered", told)
    if not complete or not site.logging:
        return judge_report(site)
    return Finding(OK, None, "no error since {}Z in {}".format(since, path))


def judge_target(site):
    """A warning when the service does not log to where it should, None when it does."""
    log, path = site.logging and site.logging["logging"], site.settings.log_file
    if log and log["fallback"]:
        return Finding(WARNING, reason_of(log, "log_fallback"), "it logs to stdout: {} cannot be written".format(log["path"]))
    if log and path and (log["target"] != "file" or os.path.realpath(log["path"] or "") != os.path.realpath(path)):
        return Finding(WARNING, "other_log", "it logs to {}, not to {}".format(log["path"] or log["target"], path))
    return None


def check_log(site):
    """By the file where the service writes to it, else by the service's own report; it is the worse of target and content."""
    target = judge_target(site)
    content = judge_file(site) if site.settings.log_file and not target else judge_report(site)
    return max(target or content, content, key=lambda finding: finding.status)


def read_history(site, trends):
    """The document of /metrics with as many hours as trends are judged by."""
    path = "/metrics?history={}".format(trends.HOURS)
    return document_of(site.fetch(path, (200,), site.settings.credentials), path)


def review_trends(site, trends):
    """The trends.Review of now, which is in the file by then. Raises Trouble."""
    settings, document = site.settings, read_history(site, trends)
    try:
        return site.within(trends.review, settings.trends_file, settings.url.geturl(), document, settings.watch,
                           settings.trends_tolerated, site.present(), replace_file)
    except trends.Trouble as trouble:
        raise Trouble(WARNING, trouble.reason, trouble.text)
    except Overdue:
        raise Trouble(WARNING, "history_unusable", "{}: reading and writing it takes too long".format(settings.trends_file))


def judge_trends(site):
    """The finding on what is odd, else on what keeps the history from being kept, else on how far it has learnt."""
    trends = load_trends()
    if not trends:
        return Finding(WARNING, "not_installed", NO_TRENDS)
    require(site.figures, "no figures from /metrics")
    review = review_trends(site, trends)
    site.trends, told = review.trends, trends.tell(review)
    if review.state == "degraded":
        return Finding(site.settings.trends, "trend", told)
    if review.troubles:
        return Finding(WARNING, review.troubles[0][0], told)
    return Finding(OK if review.state == "quiet" else LEARNING, None, told)


def check_trends(site):
    """None when nobody asked for it."""
    try:
        return judge_trends(site) if site.settings.trends_file else None
    except Trouble:
        raise
    except Exception as error:      # a fault of trends.py, or one of another release, costs no other check its line
        raise Trouble(UNKNOWN, None, "trends.py: {!r}".format(error))


CHECKS = (
    ("reachable", check_reachable),
    ("metrics", check_metrics),
    ("database", check_database),
    ("latency", check_latency),
    ("p95", check_p95),
    ("query_p95", check_query_p95),
    ("fresh", check_fresh),
    ("log", check_log),
    ("trends", check_trends),
)


def judge(site, name, check):
    """The Result of one check, None when nobody asked for it."""
    started = time.monotonic()
    try:
        finding = check(site)
    except Trouble as trouble:
        finding = trouble.finding
    return finding and Result(name, *finding, seconds=round(time.monotonic() - started, 6))


def measure_p95(site):
    """The 95th percentiles that there are, whether anybody asked to judge them or not."""
    limits = {"p95": site.settings.max_p95, "query_p95": site.settings.max_query_p95}
    for name, limit in limits.items():
        slowest = None
        with suppress(Trouble):     # who asked is told by the check
            slowest = slowest_part(recent_blocks(site.figures, name))
        if slowest:
            yield Measure(name, slowest[0], "s", None, limit and upto(limit), 0, None)


def measure(site):
    """What there is to draw a curve of. What is not known is left out: Icinga refuses the U that the guidelines give it."""
    settings, figures = site.settings, site.figures
    answered = [request.seconds for request in site.requests if request.status]
    if answered:
        yield Measure("latency", max(answered), "s", settings.warning, settings.critical, 0, settings.timeout.seconds)
    if not figures:
        return
    yield from measure_p95(site)
    shipments, database, rate = figures["shipments"], figures["database"], figures["delivery"]["on_time_rate"]
    age, limit = database["newest_change_age_seconds"], settings.max_age
    for name in ("total", "open", "overdue"):
        yield Measure("shipments_" + name, shipments[name], "", None, None, 0, None)
    if rate is not None:
        yield Measure("on_time", rate * 100, "%", None, None, 0, 100)
    if age is not None:
        yield Measure("newest_change_age", age, "s", None, limit and Range("~:" + decimal(limit), -math.inf, limit, False),
                      None, None)
    if type(database.get("size_bytes")) is int:
        yield Measure("database_size", database["size_bytes"], "B", None, None, 0, None)
    yield Measure("requests", figures["requests"]["total"], "c", None, None, 0, None)
    yield Measure("log_errors", figures["logging"]["errors_total"], "c", None, None, 0, None)
    yield Measure("uptime", figures["service"]["uptime_seconds"], "s", None, None, 0, None)


def run_checks(settings, present=time.time):
    site, started = Site(settings, present), time.monotonic()
    results = [result for result in (judge(site, name, check) for name, check in CHECKS) if result]
    verdict = max(result.status for result in results)
    seconds = round(time.monotonic() - started, 6)
    return Report(verdict, settings.url.geturl(), site.instance, stamp(time.time()) + "Z", seconds, results, site.requests,
                  list(measure(site)), site.trends)


def exit_code(report):
    return 0 if report.verdict <= WARNING else 1


def cause_of(report):
    """The result that the verdict is of; the database comes before what else shows its failure."""
    return max(report.results, key=lambda result: (result.status, result.reason is not None, result.name == "database"))


def sentence(result):
    """The reason and the summary of a result in one line."""
    return printable("{}: {}".format(result.reason, result.summary) if result.reason else result.summary)


def check_lines(report):
    width = max(len(result.status.words()) for result in report.results)
    for result in report.results:
        line = "  {:{}}  {:9}  {}".format(result.status.words(), width, result.name, sentence(result))
        yield line + "  " + RUNBOOK + result.reason if result.reason else line


def request_lines(report):
    """What was asked, of whom, and what came back: to find out where the check itself goes wrong."""
    for request in report.requests:
        answer = "{}, {} bytes,".format(request.status, request.size) if request.status else "no answer"
        yield printable("  GET {} at {}: {} after {} s".format(request.path, request.peer, answer, decimal(request.seconds)))
    instance = report.instance or "unknown"
    yield printable("  health_check {}, Python {}, instance {}, {} s in all".format(
        VERSION, sys.version.split()[0], instance, decimal(report.seconds)))


def as_text(report, verbose=0):
    """The verdict with its nearest cause, then every check, with -vvv every request too."""
    cause = cause_of(report)
    told = "{} checks".format(len(report.results)) if report.verdict is OK else cause.name + " " + sentence(cause)
    lines = ["{} {}: {} ({})".format(SERVICE, report.verdict.words().upper(), told, printable(report.url))]
    return "\n".join([*lines, *check_lines(report), *(request_lines(report) if verbose > 2 else ())])


def as_json(report, verbose=0):
    checks = [dict(result._asdict(), status=result.status.name.lower()) for result in report.results]
    return json.dumps({"verdict": report.verdict.name.lower(), "exit": exit_code(report), "url": report.url,
                       "instance": report.instance, "checked_at": report.checked_at, "seconds": report.seconds, "checks": checks,
                       "trends": [trend._asdict() for trend in report.trends]})


def performance(item):
    """'label'=value[UOM];[warn];[crit];[min];[max], where every number is in the unit of the value."""
    label = "'{}'".format(item.label) if " " in item.label else item.label
    spans = [span.text if span else "" for span in (item.warning, item.critical)]
    ends = ["" if end is None else decimal(end) for end in (item.least, item.most)]
    return "{}={}{};{}".format(label, decimal(item.value), item.unit, ";".join(spans + ends)).rstrip(";")


def as_plugin(report, verbose=0):
    """One line, as the monitoring-plugins guidelines want it; -v adds to it, -vv every check, -vvv every request too.

    A | ends what people read, wherever it stands, so that none is let through.
    """
    cause, state = cause_of(report), PLUGIN_STATES[report.verdict][1]
    told = "{} {}".format(cause.name, sentence(cause)) + (" ({}{})".format(RUNBOOK, cause.reason) if cause.reason else "")
    if report.verdict is OK:
        told = "; ".join("{} {}".format(result.name, sentence(result)) for result in report.results if result.name in FIGURES)
    if verbose > 0:
        others = [result for result in report.results if result.status is not OK and result is not cause]
        told = "; ".join([told] + [result.name + " " + sentence(result) for result in others] + [printable(report.url)])
    lines = ["{} {}: {}".format(SERVICE, state, told)]
    lines += check_lines(report) if verbose > 1 else ()
    lines += request_lines(report) if verbose > 2 else ()
    lines = [line.replace("|", "/") for line in lines]
    lines[0] += " | " + " ".join(map(performance, report.measures)) if report.measures else ""
    return "\n".join(lines)


def plugin_error(text):
    """The line for a check that could not be made."""
    return "{} UNKNOWN: {}".format(SERVICE, printable(text).replace("|", "/"))


def samples(report):
    """(family, labels, value) of every sample of the textfile. A status that a check does not have is there too, as 0."""
    for result in report.results:
        for status in Status:
            yield "status", [("check", result.name), ("status", status.name.lower())], int(result.status is status)
    for status in Status:
        yield "verdict", [("status", status.name.lower())], int(report.verdict is status)
    yield "duration_seconds", [], report.seconds
    taken = {request.path: request.seconds for request in report.requests if request.status}
    for path in sorted(taken):
        yield "request_duration_seconds", [("path", path)], taken[path]
    for item in report.measures:
        if item.label in RECENT:
            yield "p95_seconds", [("check", item.label)], item.value
    for trend in report.trends:
        for state in TREND_STATES:
            yield "trend_state", [("metric", trend.name), ("state", state)], int(trend.state == state)
    for trend in report.trends:
        if trend.score is not None:
            yield "trend_score", [("metric", trend.name)], trend.score
    yield "last_run_timestamp_seconds", [], calendar.timegm(time.strptime(report.checked_at, TIMESTAMP + "Z"))


def as_textfile(report, verbose=0):
    """Text format 0.0.4 without timestamps, which the collector refuses. url tells apart what several files say."""
    lines, told = [], None
    for family, labels, value in samples(report):
        if family != told:
            lines += ["# HELP {0}{1} {2}\n# TYPE {0}{1} gauge".format(FAMILY, family, FAMILIES[family])]
            told = family
        pairs = [(name, text.replace("\\", r"\\").replace('"', r'\"')) for name, text in [("url", report.url)] + labels]
        lines.append("{}{}{{{}}} {}".format(FAMILY, family, ",".join('{}="{}"'.format(*pair) for pair in pairs), decimal(value)))
    return "\n".join(lines)


OUTPUTS = {"text": as_text, "json": as_json, "nagios": as_plugin, "textfile": as_textfile}


def export(report, path):
    """The report once its textfile is written. Where that fails, Prometheus could not be told, and the report says so."""
    started = time.monotonic()
    try:
        within(WRITE_SECONDS, replace_file, path, as_textfile(report))
        return report
    except Overdue:
        reason, words = "timeout", "writing takes more than {} s".format(WRITE_SECONDS)
    except OSError as error:
        reason, words = FILE_REASONS.get(type(error), "io_error"), error.strerror
        reason = "disk_full" if error.errno in FULL else reason
    finding = Finding(UNKNOWN, reason, "{}: {}: the node exporter is not told".format(path, words))
    result = Result("textfile", *finding, seconds=round(time.monotonic() - started, 6))
    return report._replace(verdict=max(report.verdict, UNKNOWN), results=report.results + [result])


def call_switch(url, healthy):
    """Asks a dead-man switch for its URL, or for URL/fail. What kept it from being told in words, None if nothing did."""
    exchange = Exchange(url._replace(query="", path=url.path.rstrip("/")),
                        ("" if healthy else "/fail") + ("?" + url.query if url.query else ""))
    exchange.name = "the ping"      # its path is as good as a password
    try:
        answer = within(PING_SECONDS, exchange.run)
    except Overdue:
        return exchange.give_up(PING_SECONDS, UNKNOWN).finding.summary
    except (OSError, http.client.HTTPException, ssl.CertificateError, UnicodeError) as error:
        return exchange.explain(error).finding.summary
    if 200 <= answer.status < 300 and not answer.body.startswith(b"OK ("):      # (not found), (rate limited)
        return None
    return "the ping at {}: {} {}".format(exchange.peer, answer.status, answer.body[:40].decode("ascii", "replace")).strip()


def ping(url, healthy):
    """Tells a dead-man switch of this run. The verdict is told by then, and stands whatever becomes of this."""
    try:
        trouble = call_switch(url, healthy)
    except Exception as error:      # such as a proxy in the environment that is no address
        trouble = "the ping: {!r}".format(error)
    if trouble:
        with suppress(OSError):
            print("health_check: {} (the verdict stands)".format(printable(trouble)), file=sys.stderr)


def web_address(text):
    url = urlsplit(text.rstrip("/"))
    if url.scheme not in ("http", "https") or not url.hostname or url.port == 0:    # port refuses what is above 65535 itself
        raise ValueError("give http://HOST:PORT or https://HOST:PORT")
    if url.username is not None:
        raise ValueError("a password in a URL ends up in process lists: use --credentials")
    if url.query or url.fragment or not text.isprintable() or " " in text:
        raise ValueError("give no query, no fragment and no blanks")
    return url


def ping_address(text):
    """A URL that may have a query."""
    address, mark, query = text.partition("?")
    if not query.isprintable() or " " in query or "#" in query:
        raise ValueError("give no fragment and no blanks")
    return web_address(address)._replace(query=query)


def host_name(text):
    """A host as it stands in a URL, an IPv6 address with or without brackets."""
    host = "[{}]".format(text) if ":" in text and not text.startswith("[") else text
    url = web_address("http://" + host)
    if url.path or url.port or host.endswith(":"):
        raise ValueError("give a name or an address alone")
    return host


def port_number(text):
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError("give 1 to 65535")
    return port


def move(url, hostname, port):
    """The URL with another host or port, where they are given."""
    host = hostname or ("[{}]".format(url.hostname) if ":" in url.hostname else url.hostname)
    port = port or url.port
    return url._replace(netloc="{}:{}".format(host, port) if port else host)


def positive(words):
    """A kind of option that takes a number of these."""
    def parse(text):
        number = float(text)
        if not 0 < number <= 1e9:       # refuses nan too
            raise ValueError("give {} above 0".format(words))
        return number
    return parse


duration, false_alarms = positive("seconds"), positive("false alarms a week")


def choice(values):
    """A kind of option that takes one of these words."""
    def choose(text):
        if text not in values:
            raise ValueError("give " + " or ".join(values))
        return values[text]
    return choose


def time_limit(text):
    """The Limit in SECONDS[:STATE], where the state is one of Nagios."""
    seconds, colon, state = text.partition(":")
    states = {word.lower(): status for status, (code, word) in PLUGIN_STATES.items() if code}
    return Limit(duration(seconds), choice(states)(state) if colon else None)


def value_range(text):
    """The Range in [@][start:]end; with a colon the end may be left out."""
    match = RANGE.fullmatch(text)
    inside, start, end = match.groups() if match else (None, None, None)
    if not (start or end):
        raise ValueError("give a range [@][start:]end, such as 0.5, 0.1:2 or @2:5")
    least = -math.inf if start == "~" else float(start or 0)
    most = float(end) if end else math.inf
    if least > most:
        raise ValueError("the start of the range is above its end")
    return Range(text, least, most, bool(inside))


def verbosity(text):
    if not text.isdigit():
        raise ValueError("give 0, 1, 2 or 3")
    return int(text)


def watch_paths(text):
    """The paths in a text that has commas between them."""
    paths = tuple(dict.fromkeys(text.split(",")))
    if len(paths) > WATCHED or not all(path.isprintable() and len(path) <= 100 and all(path.split(".")) for path in paths):
        raise ValueError("give {} dotted paths of /metrics at most, such as requests.total".format(WATCHED))
    return paths


def prom_file(text):
    if not text.endswith(".prom"):
        raise ValueError("the collector reads *.prom alone: give such a name")
    return text


def read_credentials(path):
    """The Authorization header for the user:password line of a file that nobody else can read."""
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077:
        raise ValueError("others can read it, or it is no plain file: chmod 600 it")
    with open(path, encoding="utf-8") as file:
        line = file.read().rstrip("\r\n")
    if ":" not in line or not line.isprintable():
        raise ValueError("it has to be one line, user:password")
    return "Basic " + base64.b64encode(line.encode()).decode()


def read_authorities(path):
    """A TLS context that trusts the certificates in one file; its ssl.SSLError is an OSError."""
    return ssl.create_default_context(cafile=path)


OPTIONS = (
    Option("url", None, web_address, "http://127.0.0.1:8321", "URL", "where the service answers"),
    Option("hostname", "H", host_name, None, "HOST", "name or address, in place of the one in the URL"),
    Option("port", "p", port_number, None, "PORT", "port, in place of the one in the URL"),
    Option("log_file", None, str, None, "FILE", "the service's log on this host"),
    Option("credentials", None, read_credentials, None, "FILE", "one line user:password, readable by its owner alone"),
    Option("ca_file", None, read_authorities, None, "FILE", "certificates to trust instead of the system's"),
    Option("format", None, choice(OUTPUTS), "text", "|".join(OUTPUTS), "what to print"),
    Option("textfile", None, prom_file, None, "FILE", "write there for the node exporter too, with that format there alone"),
    Option("ping", None, ping_address, None, "URL", "ask for it after a good verdict, for URL/fail after another"),
    Option("quiet", None, choice({"1": True, "0": False}), "0", None, "print nothing when all is ok; not for nagios"),
    Option("verbose", "v", verbosity, "0", None, "tell more: -v, -vv or -vvv"),
    Option("timeout", "t", time_limit, "10", "SECONDS[:STATE]",
           "end of all checks together; what is not done by then is failing, for nagios unknown, or the STATE given"),
    Option("max_latency", None, duration, "1", "SECONDS", "what one request may take"),
    Option("warning", "w", value_range, None, "RANGE", "seconds of the slowest request that are no warning"),
    Option("critical", "c", value_range, None, "RANGE", "seconds of the slowest request that are no failure; else --max-latency"),
    Option("max_p95", None, duration, None, "SECONDS", "what 95 of 100 requests to any one route may take, of five minutes"),
    Option("max_query_p95", None, duration, None, "SECONDS", "the same for the queries of the database"),
    Option("max_age", None, duration, None, "SECONDS", "what the newest change may be old"),
    Option("log_window", None, duration, "600", "SECONDS", "how long an error in the log counts"),
    Option("trends_file", None, str, None, "FILE", "judge trends by the history that is kept there; it is made"),
    Option("trends", None, choice({"warn": WARNING, "fail": FAILING}), "warn", "warn|fail", "what a trend that is odd is"),
    Option("trends_tolerated", None, false_alarms, "0.25", "NUMBER", "false alarms a week that all trends together may raise"),
    Option("watch", None, watch_paths, None, "PATH", "judge this number of /metrics too; several times, or with commas"),
)
Settings = namedtuple("Settings", [option.name for option in OPTIONS] + ["command"])    # command: None to check
FILES = ("log_file", "credentials", "ca_file", "textfile")


def as_nagios_asks(argv, environ):
    """Whether the format is nagios. To be known before all else: there wrong arguments, too, are told and counted its way."""
    given = [after if word == "--format" else word[9:] for word, after in zip(argv, argv[1:] + [""])
             if word == "--format" or word.startswith("--format=")]
    return (given[-1] if given else environ.get("METRICS_CHECK_FORMAT")) == "nagios"


class Parser(argparse.ArgumentParser):
    """Leaves with 1 on wrong arguments: 2 is no exit code of ours. For Nagios 3, after --help and --version too."""

    def __init__(self, plugin, **options):
        argparse.ArgumentParser.__init__(self, **options)
        self.plugin = plugin

    def _get_option_tuples(self, text):
        """No abbreviated names, but letters that stand together: allow_abbrev=False forbids -vv before Python 3.8."""
        return [] if text.startswith("--") else argparse.ArgumentParser._get_option_tuples(self, text)

    def exit(self, status=0, message=None):
        argparse.ArgumentParser.exit(self, PLUGIN_STATES[UNKNOWN][0] if self.plugin else status, message)

    def error(self, message):
        if self.plugin:
            with suppress(OSError):     # the exit code is told all the same
                print(plugin_error(message), flush=True)
            self.exit()
        self.exit(1, "{}: {}\nSee --help.\n".format(self.prog, message))


def variable(option):
    return "METRICS_CHECK_" + option.name.upper()


def form(option):
    """How argparse takes an option."""
    if option.metavar:
        return {"metavar": option.metavar, "action": "append" if option.kind is watch_paths else "store"}
    return {"action": "count"} if option.kind is verbosity else {"action": "store_const", "const": "1"}


def build_parser(plugin):
    parser = Parser(plugin, prog="health_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in OPTIONS:
        text = "{} ({}{})".format(option.help, "default {}, ".format(option.default) if option.default else "", variable(option))
        names = ["-" + option.letter] if option.letter else []
        parser.add_argument(*names, "--" + option.name.replace("_", "-"), help=text, **form(option))
    parser.add_argument("--backtest", action="store_true", help="print which alarms trends would have raised, and check nothing")
    parser.add_argument("command", nargs="?", choices=["score"], help="print how odd each timestamp,value of standard input is")
    parser.add_argument("-V", "--version", action="version", version="health_check " + VERSION)
    return parser


def settle(settings):
    """Settings with what follows from several of them."""
    otherwise = UNKNOWN if settings.format is as_plugin else FAILING
    return settings._replace(url=move(settings.url, settings.hostname, settings.port), watch=settings.watch or (),
                             critical=settings.critical or upto(settings.max_latency),
                             timeout=settings.timeout._replace(status=settings.timeout.status or otherwise))


def clash(texts):
    """What cannot be of several settings together, or None. A history in the place of another file would destroy that."""
    file = texts["trends_file"]
    if texts["watch"] and not file:
        return "--watch {}: it takes --trends-file".format(texts["watch"])
    for name in FILES:
        if file and texts[name] and os.path.realpath(texts[name]) == os.path.realpath(file):
            return "--trends-file {}: that is the file of --{} too".format(file, name.replace("_", "-"))
    return None


def zone_fault(zone):
    """What is wrong with the time zone of the environment, or None."""
    try:
        known = load_trends().known_zone(zone)
    except Exception:       # there is none, or one of another release, which has a line of its own
        known = True
    return None if known else "TZ {}: this host does not know the time zone, and would take UTC for it".format(zone)


def read_settings(argv, environ):
    """Settings from the command line, else from the environment, else by default; a wrong one ends the program."""
    parser = build_parser(as_nagios_asks(argv, environ))
    given, texts, values = vars(parser.parse_args(argv)), {}, []
    if given["url"]:        # a variable for a part of it is no stronger than the argument
        environ = dict(environ, METRICS_CHECK_HOSTNAME="", METRICS_CHECK_PORT="")
    for option in OPTIONS:
        origin = variable(option) if given[option.name] is None else "--" + option.name.replace("_", "-")
        words = given[option.name]
        text = (",".join(words) if isinstance(words, list) else words) or environ.get(variable(option)) or option.default
        try:
            values.append(text and option.kind(str(text)))
        except (ValueError, OSError) as error:
            parser.error("{} {}: {}".format(origin, text, error))
        texts[option.name] = text
    command = "backtest" if given["backtest"] else given["command"]
    fault = clash(texts) or (texts["trends_file"] or command) and zone_fault(environ.get("TZ", ""))
    if fault:
        parser.error(fault)
    return settle(Settings(*values, command))


def announce(report, settings):
    """Prints what is asked for."""
    silent = settings.quiet and report.verdict <= LEARNING and settings.format is not as_plugin
    if not silent and not (settings.textfile and settings.format is as_textfile):
        print(settings.format(report, settings.verbose), flush=True)


def check_once(settings):
    """The exit code of the checks, told and counted as the format wants."""
    report = run_checks(settings)
    if settings.textfile:
        report = export(report, settings.textfile)
    announce(report, settings)
    if settings.ping:
        ping(settings.ping, report.verdict <= WARNING)
    return PLUGIN_STATES[report.verdict][0] if settings.format is as_plugin else exit_code(report)


def print_scores(settings, trends):
    """Prints how odd each value of standard input is."""
    trends.score(sys.stdin, sys.stdout)


def look_back(settings, trends):
    """Prints which alarms there would have been. A service that does not answer adds no hours."""
    document = None
    try:
        document = read_history(Site(settings), trends)
    except Trouble as trouble:
        print("health_check: without the hours of the service: " + sentence(trouble.finding), file=sys.stderr)
    for line in trends.backtest(settings.trends_file, settings.url.geturl(), document, settings.watch, settings.trends_tolerated):
        print(printable(line))


def use_trends(command, settings):
    """The exit code of a command that is about trends alone."""
    trends = load_trends()
    try:
        if not trends:
            raise ValueError(NO_TRENDS)
        command(settings, trends)
        sys.stdout.flush()
    except BrokenPipeError:     # whoever reads has enough; what is left must not be tried again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print("health_check: {}".format(printable(str(error))), file=sys.stderr)
        return 1
    return 0


COMMANDS = {"score": print_scores, "backtest": look_back}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    settings = read_settings(argv, os.environ)
    try:
        return use_trends(COMMANDS[settings.command], settings) if settings.command else check_once(settings)
    except (Exception, KeyboardInterrupt) as error:     # a fault of the check: never a good verdict, and one line for the mail
        if settings.format is not as_plugin:
            print("health_check: could not tell: {!r}".format(error), file=sys.stderr)
            return 1
        with suppress(OSError):     # stdout may be the fault
            print(plugin_error("the check itself failed: {!r}".format(error)), flush=True)
        return PLUGIN_STATES[UNKNOWN][0]


if __name__ == "__main__":
    sys.exit(main())
