#!/usr/bin/env python3
"""Serve operational metrics of a shipments database over HTTP.

  metrics_service.py                   serve, as the METRICS_* environment variables say (docs/configuration.md)
  metrics_service.py --env-file FILE   the same, with the variables of FILE on top
  metrics_service.py --check           validate everything and change nothing
  metrics_service.py --demo            serve a scratch database with live traffic; needs no configuration
  metrics_service.py --hash-password   make a line of the password file

The way of a request: webserver.Server, Service.respond, Store.current (the figures of this second, or one read
transaction), exposition.metrics_document, JSON. The database is opened read-only, always; its figures come from rollups that
its own triggers keep (schema.sql). What goes wrong while serving never ends the process: /metrics answers 503 or 500
with the reason, the log says so once, and the next request that succeeds says that it is over.

Exit codes: 0 stopped cleanly, 78 configuration or schema refused, 1 anything else.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import ipaddress
import json
import logging
import os
import re
import selectors
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
import zlib

sys.modules["ssl"] = None       # http.client, which http.server needs, would load OpenSSL with its 4 MiB; it does without
sys.dont_write_bytecode = True  # --check must leave no trace, and a run by root no file that the service's user cannot replace

import exposition
import latency
import messages
import migration_lock
import negotiation
import notify
import openmetrics
import pages
import schema_check
import supervision
import webserver
from eventlog import CHECK_AGENT, NAME, Log, caused_by, errno_reason, event, install
from exposition import instant, rounded, unix_time
from schema_check import Finding
from store import REASONS, WAL, Snapshot, Store, Trouble, in_force

del sys.modules["ssl"]

VERSION = "0.1.0"
FOLDER = os.path.dirname(os.path.abspath(__file__))

CERTIFICATE_NOTICE = 21 * 86400  # s before a certificate's end in which a person should replace it, as health_check.py has it
CHECK_SECONDS = 10      # for the --check of the code and the settings that a reload would bring
PAUSE_SECONDS = 5       # that a reload may accept nobody, and METRICS_DRAIN_SECONDS for each of its waits
RELOAD_PATIENCE = 0.1   # s that a program just loaded waits for a locked database, while its clients wait for it
UNREADY = "start and not be ready"  # words that restart_service.sh too looks for in what --check says
EX_CONFIG = 78          # sysexits.h: something is wrong that only a person can mend
SCRAPE_TIMEOUT = "x-prometheus-scrape-timeout-seconds"  # header that Prometheus sends; after that it counts us as down
SCRAPE_MARGIN = 0.5     # s that an answer is to come before it
RENDERED_MAX = 16       # answers kept, of different formats and hours of history
ZIP_FROM = 1000         # bytes of an answer that is compressed for who wants that; less fits into one packet anyway
PAGE_PATIENCE = 1.0     # s that the dashboard waits for its summary: its script asks for itself
DASHBOARD = os.path.join(FOLDER, "dashboard.html")
RUNBOOK = os.path.join(FOLDER, "docs", "runbook.md")
ZIP_LEVEL = 4           # of zlib: half the time of its default, and hardly more bytes

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
    Setting("access_log", "off", choice("off", "on"), "off or on"),
    Setting("slow_request_seconds", 1.0, number(float, 0, 3600), "a number of seconds, such as 1; 0 reports none"),
    Setting("slow_query_seconds", 0.5, number(float, 0, 3600), "a number of seconds, such as 0.5; 0 reports none"),
    Setting("pid_file", os.path.join(FOLDER, NAME + ".pid"), file_path, "a file in a folder this user may write"),
    Setting("trends_file", None, file_path, "the file that health_check.py --trends-file keeps; unset tells no trends"),
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
            import difflib  # 0.3 MiB, which a service without such a variable does without
            near = difflib.get_close_matches(name, VARIABLES, 1, 0.8)
            yield "%s (from %s) is not a setting; %s" % (
                name, given[name].source, "did you mean %s?" % near[0] if near else "remove it, or see docs/configuration.md")


def clashes(settings, env_file):
    """A complaint for each file with two purposes, which would destroy it: a log is appended to, a PID file removed."""
    roles = {}
    for role, path in (("METRICS_DB_PATH", settings.db_path), ("--env-file", env_file), ("METRICS_LOG_FILE", settings.log_file),
                       ("METRICS_PID_FILE", settings.pid_file), ("METRICS_AUTH_FILE", settings.auth_file),
                       ("METRICS_TLS_CERT", settings.tls_cert), ("METRICS_TLS_KEY", settings.tls_key),
                       ("METRICS_TRENDS_FILE", settings.trends_file)):
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


def start_log(settings):
    return install(Log(settings.log_file, settings.log_format, settings.log_level, VERSION))


# Service: the routes, and what it counts of itself

class Traffic:
    """Requests answered, by route and status code, and by latency."""

    def __init__(self):
        self.lock = threading.Lock()
        self.routes, self.latencies = collections.Counter(), collections.defaultdict(latency.Latency)

    def observe(self, route, status, seconds):
        with self.lock:
            self.routes[route, status] += 1
            self.latencies[route].observe(seconds)

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

    def document(self, in_flight):
        with self.lock:
            by_code, by_route = self.by_code(), self.by_route()
            spans = {route: self.latencies[route].spans() for route in by_route}
        seconds = latency.document(*spans.values())
        recent = {route: span.recent.summary() for route, span in spans.items()}
        seconds["last_5_minutes"]["by_route"] = {route: summary for route, summary in recent.items() if summary["count"]}
        return {"total": seconds["count"], "in_flight": in_flight, "by_code": by_code, "by_route": by_route,
                "latency_seconds": seconds}


def health_entry(component, status, reason=None, output=None, **observed):
    entry = {"componentType": component, "status": status}
    entry.update(observed)
    if reason:
        entry.update(reason=reason, output=output)
    return [entry]


def message_of(error):
    """What an exception says, whatever its class makes of that."""
    try:
        return str(error)
    except Exception:   # of a defect in the defect
        return "its message cannot be had"


def zipped(body):
    """The body as gzip has it (RFC 1952), always the same bytes of the same body."""
    coder = zlib.compressobj(ZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return coder.compress(body) + coder.flush()


def packed(content_type, body, fields, wanted):
    """The Response 200, compressed where that is wanted and worth it."""
    if wanted and len(body) >= ZIP_FROM:
        body, fields = zipped(body), fields + [("Content-Encoding", "gzip")]
    return messages.Response(200, content_type, body, fields)


def load_dashboard():
    """(pages.Dashboard, None), or (None, what is wrong with its file): the service is of use without."""
    try:
        return pages.Dashboard(DASHBOARD), None
    except (OSError, ValueError) as error:
        return None, "%s cannot be used: %s; copy the whole folder again" % (DASHBOARD, getattr(error, "strerror", None) or error)


CHALLENGE = 'Basic realm="%s", charset="UTF-8"' % NAME  # RFC 7617, 2.1
VARY = [("Vary", "Accept, Accept-Encoding")]
Wanted = collections.namedtuple("Wanted", "form zipped history")    # what one answer to /metrics differs in from another


class Service:
    """The application behind the server: one function a route, one place that turns trouble into a status code."""

    def __init__(self, log, store, credentials=None, certificate_end=None, access_log=False, slow_seconds=0, trends=None,
                 loaded=None):
        self.log, self.store, self.credentials, self.certificate_end = log, store, credentials, certificate_end
        self.loaded = loaded              # supervision.digest() of the env file as it was read
        self.access_log, self.slow_seconds = access_log, slow_seconds or float("inf")
        self.trends = trends              # trends.Published, where a check's file is to be told
        self.checked_at = None            # Unix time at which health_check.py asked last
        self.refusal = None               # (time, why) of the last reload, where it was refused
        self.instance = os.urandom(16).hex()  # new at every start: how a restart proves that the new one answers
        self.started, self.started_at = time.monotonic(), time.time()
        self.traffic = Traffic()
        self.server = None                # webserver.Server, once there is one
        self.rendering = threading.Lock()
        self.rendered = None, {}          # figures, and the answers made of them by what was Wanted
        self.dashboard, self.fault = load_dashboard()
        self.open = {"/readyz", "/healthz"}             # to anybody, though not all of it
        self.slow = {"/", "/metrics", "/readyz", "/healthz"}
        self.routes = {"/": self.page, "/metrics": self.metrics, "/livez": self.livez, "/readyz": self.readyz,
                       "/healthz": self.readyz, "/runbook": self.runbook}

    def respond(self, request):
        """The Response to any request, whose id is in all that is logged on the way."""
        with caused_by(route=request.path, request_id=request.id):
            return self.answer_to(request)

    def answer_to(self, request):
        """The Response; trouble and defects become problem documents here."""
        try:
            refusal = self.challenge(request)
            if refusal and request.path not in self.open:
                return refusal
            if request.path not in self.routes:
                return messages.problem(404, "no such path; there are %s" % ", ".join(sorted(self.routes)), request.id)
            return self.routes[request.path](request, trusted=not refusal)
        except Trouble as trouble:
            retry = [("Retry-After", "1")] if trouble.status == 503 else []
            return messages.problem(trouble.status, trouble.detail, request.id, VARY + retry, reason=trouble.reason,
                                    runbook="docs/runbook.md#" + trouble.reason, **self.own_blocks())
        except Exception as error:  # a defect of ours must not cost the other requests
            self.defect(error, request.id, method=request.method, client=request.address,
                        user_agent=request.headers.get("user-agent"))
            return messages.problem(500, "a defect in the service; its log has the details", request.id, reason="defect",
                                    runbook="docs/runbook.md#defect", service=self.service_document(),
                                    logging=self.log.document())

    def challenge(self, request):
        """The refusal of whoever needs a password and does not give a good one, else None."""
        if not self.credentials or request.path == "/livez":
            return None
        given = request.headers.get("authorization")
        verdict = self.credentials.verify(given, request.address)
        if verdict.allowed:
            return None
        status, detail, field = 401, "a user of METRICS_AUTH_FILE and the password are due", ("WWW-Authenticate", CHALLENGE)
        if verdict.retry_after:
            status, detail, field = 429, "too many wrong passwords; wait", ("Retry-After", str(verdict.retry_after))
        if given is not None:   # without, a browser is about to ask for one
            event(logging.WARNING, "login_failed", reason="credentials", status=status, client=request.address,
                  user_agent=request.headers.get("user-agent"))
        return messages.problem(status, detail, request.id, [field], reason="credentials",
                                runbook="docs/runbook.md#credentials")

    def wait(self, request):
        """Whether the answer may have to wait for the database, or for a password's hash."""
        return request.path in self.slow or bool(self.credentials) and request.path != "/livez" and not self.credentials.recall(
            request.headers.get("authorization"))

    def observe(self, answered):
        head, seconds = answered.head, answered.seconds
        route = head.path if head and head.path in self.routes else "other"
        self.traffic.observe(route, answered.status, seconds)
        if self.access_log:
            self.log.access(**self.access_fields(answered))
        if seconds >= self.slow_seconds:
            event(logging.WARNING, "slow_request", seconds=round(seconds, 6), method=head and head.method,
                  route=head and head.path, status=answered.status, client=answered.address, request_id=answered.id)

    def access_fields(self, answered):
        """What an access line says of an answer; of what was no request, its first line as it came."""
        head, fields = answered.head, {"line": answered.line or None}
        if head:
            target = answered.line.split(" ")[1]
            fields = {"method": head.method, "route": head.path or target, "query": target.partition("?")[2] or None}
        return dict(fields, status=answered.status, bytes=answered.size, seconds=round(answered.seconds, 6),
                    client=answered.address, user_agent=head and head.headers.get("user-agent"), request_id=answered.id)

    def defect(self, error, request_id, **fields):
        stack = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        event(logging.ERROR, "request_failed", reason="defect", error_type=type(error).__name__, error=message_of(error),
              stack=stack, request_id=request_id, **fields)

    def starved(self, error):
        if not error:
            event(logging.INFO, "accept_recovered", reason="descriptors")
            return
        event(logging.ERROR, "accept_failed", reason=errno_reason(error),
              detail="no connection can be accepted: %s; trying again" % error.strerror)

    def metrics(self, request, trusted):
        history, form = self.history(request.query), self.form(request)
        if history is None:
            return messages.problem(400, "history must be a whole number of hours from 1 to %d" % exposition.HISTORY_HOURS,
                                    request.id)
        if form is None:
            return messages.problem(400, "format must be %s" % " or ".join(negotiation.FORMATS), request.id)
        wanted = Wanted(form, negotiation.compressed(request.headers.get("accept-encoding", "")), history)
        try:
            snapshot = self.store.current(self.patience(request))
        except Trouble as trouble:
            if form is negotiation.JSON:
                raise
            snapshot = Snapshot(None, trouble)  # an answer too, so that a scraper knows this from a service that is gone
        return self.answer(snapshot, wanted) if snapshot.stale else self.shared_answer(snapshot, wanted)

    def patience(self, request):
        """Monotonic time by which a scraper wants its answer, less what the way takes."""
        given = request.headers.get(SCRAPE_TIMEOUT, "")
        seconds = float(given) if re.match(r"\d{1,6}(\.\d{1,9})?\Z", given, re.ASCII) else float("inf")
        return request.arrived + max(seconds - SCRAPE_MARGIN, seconds / 2)

    def answer(self, snapshot, wanted):
        return packed(wanted.form.content_type, self.body(snapshot, wanted), VARY, wanted.zipped)

    def body(self, snapshot, wanted):
        if wanted.form is negotiation.JSON:
            return messages.json_body(self.document(snapshot, wanted.history))
        dialect = openmetrics.TEXT if wanted.form is negotiation.TEXT else openmetrics.OPENMETRICS
        return openmetrics.write(dialect, openmetrics.values(
            snapshot.figures, self.own_blocks(snapshot.figures), self.state(snapshot.stale)))

    def state(self, trouble):
        """What only the text formats tell of the service."""
        try:
            usage = supervision.usage()
        except OSError:     # no descriptor is left, and that must not cost the rest
            usage = None
        migrating = migration_lock.running(self.store.path) is not None
        return openmetrics.State(trouble and trouble.reason, migrating, self.refusal is not None, sorted(self.routes) + ["other"],
                                 REASONS, usage)

    def shared_answer(self, snapshot, wanted):
        """The answer, rendered once for all who ask about the same figures."""
        figures, answers = self.rendered
        if figures is snapshot.figures and wanted in answers:
            return answers[wanted]
        with self.rendering:
            figures, answers = self.rendered
            if figures is not snapshot.figures or len(answers) >= RENDERED_MAX:
                answers = {}
            if wanted not in answers:
                answers[wanted] = self.answer(snapshot, wanted)
            self.rendered = snapshot.figures, answers
            return answers[wanted]

    def form(self, request):
        """The negotiation.Format of the answer, None where ?format= asks for one that there is not."""
        if "format" in request.query:
            return negotiation.FORMATS.get(request.query["format"][-1])
        return negotiation.choose(request.headers.get("accept", ""))

    def history(self, query):
        """Hours of history asked for, 0 where nobody asked, None where it makes no sense."""
        if "history" not in query:
            return 0
        value = query["history"][-1]
        return int(value) if re.match(r"[1-9]\d{0,2}\Z", value, re.ASCII) and int(value) <= exposition.HISTORY_HOURS else None

    def page(self, request, trusted):
        """The dashboard. It never fails for want of the database: its script tells what is wrong, and so does its summary."""
        if self.fault:
            return messages.problem(404, self.fault, request.id)
        fields = [("Content-Security-Policy", self.dashboard.policy), ("Vary", "Accept-Encoding")]
        return packed("text/html; charset=utf-8", self.dashboard.body(self.summary(request)), fields,
                      negotiation.compressed(request.headers.get("accept-encoding", "")))

    def summary(self, request):
        """What the dashboard tells without JavaScript, as HTML."""
        try:
            snapshot = self.store.current(min(self.patience(request), request.arrived + PAGE_PATIENCE))
        except Trouble as trouble:
            return pages.excuse(trouble, self.inner_checks())
        return pages.summary(self.document(snapshot, 0), self.inner_checks())

    def runbook(self, request, trusted):
        """The runbook, or one entry of it, from this folder: for who has no other way to the file."""
        try:
            with open(RUNBOOK, encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            return messages.problem(404, "%s cannot be read: %s" % (RUNBOOK, error.strerror), request.id)
        if "entry" in request.query:
            text = pages.entry(text, request.query["entry"][-1])
        if text is None:
            return messages.problem(404, "the runbook has no such entry; /runbook has them all", request.id)
        return messages.Response(200, "text/plain; charset=utf-8", text.encode("utf-8"))

    def livez(self, request, trusted):
        if request.headers.get("user-agent", "").startswith(CHECK_AGENT):
            self.checked_at = time.time()
        return messages.json_answer(200, {
            "service": NAME, "instance": self.instance, "started_at": instant(self.started_at), "env_file": self.loaded,
            "checked_at": instant(self.checked_at) if self.checked_at else None})

    def readyz(self, request, trusted):
        checks = dict({"database:shipments": self.database_entry()}, **self.inner_checks())
        states = {entry["status"] for (entry,) in checks.values()}
        status = next(state for state in ("fail", "warn", "pass") if state in states)
        document = {"status": status, "version": "1", "releaseId": VERSION, "serviceId": NAME, "instance": self.instance,
                    "checks": checks}
        return messages.json_answer(503 if status == "fail" else 200, document if trusted else {"status": status},
                                    "application/health+json")

    def inner_checks(self):
        """The checks that ask no database."""
        checks = {"database:schema": self.schema_entry(), "log:target": self.log_entry(), "service:reload": self.reload_entry()}
        if self.certificate_end is not None:
            checks["tls:certificate"] = self.certificate_entry()
        return checks

    def database_entry(self):
        try:
            snapshot = self.store.snapshot()
        except Trouble as trouble:
            return health_entry("datastore", "fail", trouble.reason, trouble.detail)
        observed = {"observedValue": sum(snapshot.figures.statuses.values()), "observedUnit": "shipments",
                    "time": instant(snapshot.figures.now)}
        if snapshot.stale:
            return health_entry("datastore", "warn", snapshot.stale.reason, snapshot.stale.detail, **observed)
        if self.store.log_inode:
            return health_entry("datastore", "warn", "wal", "database %s: %s" % (self.store.path, WAL), **observed)
        return health_entry("datastore", "pass", **observed)

    def schema_entry(self):
        store, note = self.store, migration_lock.running(self.store.path)
        if note:
            return health_entry("datastore", "warn", "migrating", "migration running: " + note)
        if store.trouble and (store.versions is None or store.migrating()):
            return health_entry("datastore", "warn", store.trouble.reason, "schema not compared yet")
        errors, warnings = store.errors(), in_force(store.findings)
        if store.differences() and not errors:  # the other entry has it, where there are any
            warnings.append(store.cure())
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
        event(logging.WARNING, "reload_refused", reason="reload_refused", detail=why + "; serving on as before")

    def words(self, url):
        """What a person wants to know, in one sentence, as the last requests have found it."""
        figures, trouble, logged = self.store.last, self.store.trouble, self.store.state   # once: a request may change them
        total = figures and "%d shipments" % sum(figures.statuses.values())
        if not trouble:
            state = total or "no figures yet"
        elif figures and logged and logged[0] == "database_stale":
            state = "%s as of %s, since then %s: %s" % (total, instant(figures.now), trouble.reason, trouble.detail)
        else:
            state = "no figures, %s: %s" % (trouble.reason, trouble.detail)
        notes = ["reload refused: " + self.refusal[1]] if self.refusal else []
        notes += ["log on stdout (%s)" % self.log.reason] if self.log.reason else []
        return "; ".join(["serving on %s: %s" % (url, state)] + notes)

    def document(self, snapshot, history):
        figures, stale = snapshot
        blocks = self.own_blocks(figures)
        document = {"service": blocks.pop("service"), "generated_at": instant(figures.now), "stale": None}
        if stale:
            document["stale"] = {"reason": stale.reason, "age_seconds": round(self.store.age(), 1), "detail": stale.detail}
        document.update(exposition.metrics_document(figures, history))
        document["trends"] = self.trends and self.trends.block(time.time())
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
        seconds = dict(latency.document(store.queries.spans()), last=rounded(store.last_seconds))
        return {
            "path": store.path,
            "reason": store.trouble.reason if store.trouble else None,
            "figures_at": figures and instant(figures.now),
            "newest_change_at": newest,
            "newest_change_age_seconds": figures.now - unix_time(newest) if newest else None,
            "future_changes": figures and figures.future_changes,
            "schema_version": figures and figures.schema_version,
            "size_bytes": store.size or 0,
            "queries_total": seconds["count"],
            "failures_total": sum(store.failures.values()),
            "failures": dict(store.failures),
            "query_seconds": seconds,
            "replaced_total": store.replaced,
            "replaced_at": store.replaced_at and instant(store.replaced_at),
            "former_file": store.former[1] if store.former else None,
            "leapt_at": store.leap and instant(store.leap.at),
            "leapt_from": store.leap and store.leap.before,
            "leapt_to": store.leap and store.leap.after,
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


def check_schema(store):
    """Findings about the schema; the last of those that refuse it has the cure. An earlier version is one finding, not one for
    each thing that it lacks."""
    refused = len(store.differences())      # which come first
    findings = [("error", words) for words in store.behind()] or store.findings
    for number, (grade, words) in enumerate(findings, 1):
        cure = "; " + store.cure() if number == refused else ""
        yield Finding("error" if number <= refused else grade, "database %s: %s%s" % (store.path, words, cure))


def check_store(store, until=float("inf")):
    """Findings about the database, by the monotonic time `until`. One that exists but cannot be read at the moment is a warning:
    it may heal by itself. So is one whose schema is being changed: what it is by now does not count."""
    migration = store.migration()
    try:
        store.snapshot(until)
    except Trouble as trouble:
        migration = None
        if trouble.reason in ("missing", "not_a_file") or store.size == 0:
            cure = "set METRICS_DB_PATH to the shipments database, or make one: python3 seed.py FILE"
            yield Finding("error", "%s; %s" % (trouble.detail, cure))
        elif trouble.reason != "schema_mismatch":
            yield Finding("warning", "%s: %s; the service will %s" % (trouble.reason, trouble.detail, UNREADY))
    if migration:
        yield Finding("warning", "%s: %s; the service may %s" % (migration.reason, migration.detail, UNREADY))
    elif not store.migrating():
        yield from check_schema(store)


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
    why = load_dashboard()[1]
    if why:
        yield Finding("warning", why)
    why = writable(settings.log_file) if settings.log_file else None
    if why:
        yield Finding("warning", "METRICS_LOG_FILE %s cannot be written: %s; the service will log to stdout" % (
            settings.log_file, why))
    why = supervision.path_fault(settings.pid_file)
    if why:
        yield Finding("error", why)


def numeric(host):
    """The ipaddress object of a host that is no name, else None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def loopback(host):
    address = numeric(host)
    return address.is_loopback if address else host == "localhost"


def check_exposure(settings):
    """Findings about who can listen in, and who need not even do that."""
    guards = ("unencrypted", settings.tls_cert), ("without a password", settings.auth_file)
    bare = [words for words, guard in guards if not guard]
    if bare and not loopback(settings.host):
        what = "the password travels" if settings.auth_file else "whoever reaches the port reads the metrics,"
        yield Finding("warning", "METRICS_HOST %s is not loopback: %s %s; docs/configuration.md says how to guard them" % (
            settings.host, what, " and ".join(bare)))
    key = settings.tls_cert and (settings.tls_key or settings.tls_cert)
    with contextlib.suppress(OSError):  # tls_of says what is wrong with it
        if key and os.stat(key).st_mode & stat.S_IROTH:
            yield Finding("warning", "the key in %s may be read by every user of this host; chmod 640 or 600" % key)


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
        raise Refused([Finding("error", "METRICS_TLS_CERT: %s cannot be used: %s; give a PEM certificate and its own key, "
                                        "without a passphrase" % (files, getattr(error, "strerror", None) or error))])


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
    """Findings about passwords, certificate and key. A certificate that has ended can be served, but few clients take it."""
    end = None
    try:
        credentials_of(settings)
    except Refused as refusal:
        yield from refusal.findings
    try:
        end = tls_of(settings)[1]
    except Refused as refusal:
        yield from refusal.findings
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
        return Store(settings.db_path, settings.query_timeout, settings.stale_seconds, slow_seconds=settings.slow_query_seconds)
    except (OSError, sqlite3.Error) as error:
        raise Refused([Finding("error", "%s is missing or damaged (%s): copy the whole folder again" % (
            schema_check.SCHEMA_FILE, error))])


def refuse_errors(findings):
    findings = list(findings)
    if any(finding.grade == "error" for finding in findings):
        raise Refused(findings)
    return findings


# Life: check, serve, demo

def readable(files, seconds=None):
    """Those of the files that can be read, waited for so long. Not by select(), which cannot see descriptors above 1023."""
    with selectors.PollSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)]


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
            readable([self.reader])
            number = self.reader.recv(1)[0]
            if number in self.before:
                return signal.Signals(number).name

    def waiting(self):
        """Whether a signal came that wait() has not yet given."""
        return bool(readable([self.reader], 0))

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self.reader.close()
        self.writer.close()


def url_of(settings):
    host = "[%s]" % settings.host if ":" in settings.host else settings.host
    return "%s://%s:%d" % ("https" if settings.tls_cert else "http", host, settings.port)


def listen(settings):
    """(listening socket, settings with its address): the socket handed to us, or else one of our own. Raises OSError whose text
    names who has the port."""
    handed = supervision.handed_sockets()
    if len(handed) > 1:
        raise OSError("%d sockets were handed over by LISTEN_FDS, one is served; give one ListenStream=" % len(handed))
    try:
        listener = handed[0] if handed else webserver.listening_socket((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        raise OSError(port_trouble(settings, error, port_owners(settings, error))) from error
    host, port = listener.getsockname()[:2]
    return listener, settings._replace(host=host if numeric(settings.host) else settings.host, port=port)


def own_command(env_file, *options):
    """The command line of this program, as whatever its file holds by now."""
    return [sys.executable, os.path.join(FOLDER, NAME + ".py")] + (["--env-file", env_file] if env_file else []) + list(options)


def outcome(code, output, bridging):
    """Why a --check that ended with this code refuses, in words, or None. Who has figures that bridge a lock or a migration does
    not make way for one that would have none."""
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line[len("error: "):] for line in lines if line.startswith("error: ")]
    if code == 0:
        return next((line for line in lines if bridging and line.endswith(UNREADY)), None)
    return "; ".join(errors or lines[-1:]) or "--check ended with exit code %d and no word" % code


class Overtaken(Exception):
    """Another signal came before a reload had begun."""


def recheck(settings, env_file, signals, bridging):
    """Runs --check of the code and the settings as they are now, in a process of their own; why they are refused, or None. Raises
    Overtaken at the next signal: a stop shall not wait for it, and after another reload it would be outdated."""
    seconds, output = CHECK_SECONDS + 2 * settings.query_timeout, b""   # a locked database is waited for in there
    deadline = time.monotonic() + seconds
    with subprocess.Popen(own_command(env_file, "--check"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as child:
        while True:
            ready = readable([child.stdout, signals.reader], max(0, deadline - time.monotonic()))
            if child.stdout not in ready or signals.reader in ready:
                child.kill()
                if ready:
                    raise Overtaken
                return "--check took longer than %d s" % seconds
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                break
            output += data
    return outcome(child.returncode, output, bridging)


def immovable(settings, env_file):
    """Why a reload could not bring the settings as they are now: what belongs to the process stays with it. None if it could, and
    where they are bad: --check says that better."""
    new, complaints = read_settings(env_file)
    if complaints:
        return None
    moved = [(name, getattr(settings, name), getattr(new, name)) for name in ("host", "port", "pid_file")]
    words = ["METRICS_%s from %s to %s" % (name.upper(), old, new) for name, old, new in moved if old != new]
    return "a reload cannot change %s; restart instead" % " and ".join(words) if words else None


def say_silence(trouble):
    """Logs that the service does not answer itself any more, which the manager will end, or that it does again."""
    if trouble:
        event(logging.ERROR, "watchdog_unfed", detail=trouble + "; the service manager will end and restart the service")
    else:
        event(logging.INFO, "watchdog_recovered")


def trends_of(settings):
    """What tells the verdict of the check, None without its file."""
    if not settings.trends_file:
        return None
    import trends   # memory that a service without such a file does without
    return trends.Published(settings.trends_file)


class Life:
    """One run of the service: what it serves with, its reloads and its end."""

    def __init__(self, settings, log, store, signals, env_file, loaded=None):
        self.settings, self.signals = settings, signals
        self.env_file = env_file and os.path.abspath(env_file)
        self.handler, self.certificate_end = tls_of(settings)
        self.server = self.url = None   # once it listens
        self.service = Service(log, store, credentials_of(settings), self.certificate_end, settings.access_log == "on",
                               settings.slow_request_seconds, trends_of(settings), loaded)
        self.manager = notify.Manager(os.environ, os.getpid())
        self.watch = notify.Watch(self.manager, lambda: self.service.words(self.url), self.silence, say_silence)

    def silence(self, seconds):
        return notify.silence(self.server.socket, self.service.instance, seconds, self.handler.secure)

    def oversee(self):
        """Tells the manager that we serve, and from here on how we are."""
        if not self.manager.address:
            return
        if self.manager.period and sys.stderr:
            import faulthandler
            faulthandler.enable()       # the watchdog's SIGABRT then prints what every thread is at
        self.watch.say(READY=1)
        logging.getLogger(NAME).addHandler(notify.Bell(self.watch.changed))
        with supervision.blocked():
            self.watch.start()

    def start(self, handover):
        """Listens and serves. Raises OSError like listen."""
        frozen = json.loads(handover.state.decode()) if handover else []
        listener, actual = listen(self.settings)
        with supervision.blocked():  # so that no other thread ever takes a signal
            self.service.server = self.server = webserver.Server(listener, self.service, self.handler, frozen)
            self.server.start()
        for finding in check_exposure(actual):
            event(logging.WARNING, "exposed", detail=finding.text)
        self.url = url_of(actual)
        event(logging.INFO, "service_started", instance=self.service.instance, pid=os.getpid(), url=self.url, version=VERSION,
              **({"connections": len(frozen)} if handover else {}))
        self.oversee()
        return self.url

    def run(self, lock=None):
        """Serves until a signal ends it; the exit code. Without the PidFile, as for a demo, SIGHUP is such a signal too: the
        terminal is gone."""
        while True:
            name = self.signals.wait()
            if name != "SIGHUP" or not lock:
                return self.stop(name)
            self.manager.reloading()
            try:
                refusal = (immovable(self.settings, self.env_file)
                           or recheck(self.settings, self.env_file, self.signals, self.service.store.indispensable())
                           or self.reload(lock))
            except Overtaken:
                continue
            except OSError as error:  # no process, descriptor or interpreter for it
                refusal = "the new code cannot be run: %s" % error
            self.service.refuse_reload(refusal)
            self.manager.tell(READY=1)

    def reload(self, lock):
        """Goes on as the program and with the settings that the files hold by now; comes back only to say why not. Raises
        Overtaken, and OSError where the program cannot be run."""
        with supervision.blocked():     # the program to come takes the signals that come from here on
            if self.signals.waiting():
                raise Overtaken
            event(logging.INFO, "service_reloading", instance=self.service.instance)
            self.watch.rest(PAUSE_SECONDS + 3 * self.settings.drain_seconds)    # more than pause() can take
            try:
                if not self.server.pause(self.settings.drain_seconds):
                    return "the requests in flight were not finished within METRICS_DRAIN_SECONDS"
                with self.watch.lock:   # it opens descriptors
                    self.go_on_as_new(lock)
            finally:
                self.watch.rest(0)

    def go_on_as_new(self, lock):
        """Becomes the program that the files hold by now. Raises OSError, serving on, where that cannot be run."""
        try:
            self.service.log.finish()
            state = json.dumps(self.server.freeze()).encode()
            if self.manager.period:
                self.manager.tell(WATCHDOG=1)   # the new program has the whole period for its start
            supervision.reexec(own_command(self.env_file), self.server.socket, lock, state)
        finally:
            self.server.resume()

    def stop(self, name):
        self.manager.tell(STOPPING=1, STATUS="stopping")
        self.watch.end()
        event(logging.INFO, "service_stopping", signal=name)
        abandoned = self.server.stop(self.settings.drain_seconds)
        if abandoned:
            event(logging.WARNING, "requests_abandoned", count=abandoned, detail="not finished within METRICS_DRAIN_SECONDS")
        self.service.log.finish()
        uptime = round(time.monotonic() - self.service.started, 1)
        event(logging.INFO, "service_stopped", uptime=uptime, abandoned=abandoned)
        return 0


def prepare(settings, complaints, log, signals, env_file, patience=float("inf"), loaded=None):
    """The Life, once configuration and schema are found good; a locked database is waited for with patience, in seconds. Raises
    Refused, having logged each finding."""
    try:
        refuse_errors(Finding("error", complaint) for complaint in complaints)
        store = open_store(settings)
        guards = list(check_guards(settings, time.time()))
        refuse_errors(list(check_files(settings)) + guards + list(check_store(store, time.monotonic() + patience)))
        for finding in guards:
            event(logging.WARNING, "certificate_ends", reason="certificate", detail=finding.text)
        return Life(settings, log, store, signals, env_file, loaded)
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
    put("ok%s: %s, %s" % (", with %d warning(s)" % warnings if warnings else "", settings.db_path, url_of(settings)))
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
    handover, loaded = supervision.inherited(), supervision.digest(env_file)    # before the settings: rather one of older ones
    settings, complaints = read_settings(env_file)
    log = start_log(settings)
    with Signals() as signals:
        life = prepare(settings, complaints, log, signals, env_file, RELOAD_PATIENCE if handover else float("inf"), loaded)
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
                print("demo: open %s/ for the dashboard, or /metrics; Ctrl-C ends it and removes %s" % (life.start(None), folder),
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
            ("--check", command_check, "validate everything and change nothing"),
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
