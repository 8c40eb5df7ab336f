"""The log: one event, one line, to a file or, while that cannot be written, to stdout.

    install(Log(path, "text", "info"))      # from now on
    event(logging.INFO, "service_started", pid=1)
"""

import contextlib
import errno
import json
import logging
import os
import re
import sys
import time

from exposition import instant

NAME = "metrics_service"
LOG_RETRY = 5           # s between two tries of a log file that could not be written
CHECK_AGENT = "health_check/"   # User-Agent of the check: errors that it meets are not counted, since the count is its alarm
LOGGER = logging.getLogger(NAME)
LOGGER.addHandler(logging.NullHandler())  # until install: --check reports on its own
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

    def write_file(self, line):
        """Appends the line. Raises OSError."""
        self.reopen()
        data = (("\n" if self.torn else "") + line + "\n").encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self.descriptor, data):]
            self.torn = bool(data)

    def write_stdout(self, line):
        try:
            sys.stdout.write(line.encode("ascii", "backslashreplace").decode() + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):  # nobody reads stdout, or it was closed: losing a line never costs a request
            self.lost += 1

    def fall_back(self, error):
        self.close_file()
        self.retry_at = time.monotonic() + LOG_RETRY
        first, self.reason = not self.reason, errno_reason(error)
        if first:
            self.fallbacks += 1
            event(logging.WARNING, "log_fallback", reason=self.reason, target="stdout",
                  detail="the log file %s cannot be written (%s); logging to stdout, trying again every %d s" % (
                      self.path, error.strerror, LOG_RETRY))

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

    def emit(self, record):
        over = record.msg.endswith("_recovered")
        if record.levelno >= logging.ERROR and not str(record.fields.get("user_agent")).startswith(CHECK_AGENT):
            self.errors, self.last_error = self.errors + 1, record.created
        if over:
            self.last_recovery = record.created
        if over or record.levelno >= self.threshold:  # whoever was told of the trouble is told of its end, at any level
            self.write(self.line(record))

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
        }


def install(log):
    """Has the Log take all events; returns it. A file that cannot be opened is found out with the first event."""
    LOGGER.handlers[:] = [log]
    LOGGER.setLevel(logging.DEBUG)
    return log
