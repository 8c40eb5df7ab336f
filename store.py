"""The shipments database as it is read: the figures of a second, or the reason why there are none.

    Store(path, timeout, stale_seconds).current() -> Snapshot, or raises Trouble

Opened read-only, always. The figures come from rollups that the database's own triggers keep (schema.sql), in one read
transaction for all of them. Whatever sqlite3 says is looked into until it is one reason of a closed list.
"""

import collections
import contextlib
import errno
import logging
import os
import sqlite3
import stat
import threading
import time
import urllib.parse

import exposition
import migration_lock
import schema_check
import supervision
from eventlog import errno_reason, event, file_identity
from exposition import hour_of, instant
from latency import Latency

FUTURE_LIMIT = 1000     # changes dated in the future are counted up to here; more costs and tells nothing
CLOCK_TICK = 0.05       # s; more than one step of the clock that file times are taken from (10 ms at HZ=100)
SHARE_SECONDS = 0.1     # age of figures that are served while another request is at newer ones
LOCK_POLL = 0.0001      # s between two tries of a lock, at first: gaps between a writer's commits are short
LOCK_POLL_MAX = 0.001   # s, after a hundred tries: then it is no gap that is waited for
BRIEF_WAIT = 0.5        # s to wait for a lock when older figures can be served instead, or it was there a moment ago
MIGRATION_WAIT = 0.05   # s to wait for a lock while a migration runs, which may have it for minutes
DROP_SHARE = 0.01       # of the shipments; where more than that are gone from one look to the next, somebody deleted them
JUMP_SHARE = 0.25       # of the shipments; so many more from one look to the next are a load that somebody should know of
JUMP_LEAST = 100        # shipments that such a load brings at least: a small table grows by a quarter in the course of things
PROGRESS_STEPS = 10000  # SQLite instructions between two looks at the deadline, well under a millisecond

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

DELIVERIES = "SELECT outcome, shipments FROM deliveries"
EXCEPTIONS = "SELECT reason, shipments FROM rollup_exception ORDER BY shipments DESC, reason"
HOURS = "SELECT hour, created, delivered, on_time, late FROM rollup_hour WHERE hour >= :since AND hour <= :hour ORDER BY hour"
NEWEST_CHANGE = "SELECT max(updated_at) FROM shipments WHERE updated_at <= :now"
FUTURE_CHANGES = "SELECT count(*) FROM (SELECT 1 FROM shipments WHERE updated_at > :now LIMIT %d)" % FUTURE_LIMIT

QUERIES = {BOUNDS: "bounds", BY_STATUS: "by_status", LANES_BY_CARRIER: "lanes_by_carrier", LANES_BY_MODE: "lanes_by_mode",
           TRANSIT_BY_CARRIER: "transit_by_carrier", TRANSIT_BY_MODE: "transit_by_mode", OVERDUE: "overdue",
           EXCEPTIONS: "exceptions", DELIVERIES: "deliveries", HOURS: "hours", NEWEST_CHANGE: "newest_change",
           FUTURE_CHANGES: "future_changes", schema_check.VERSION: "version"}   # what the log calls them

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
REASONS = ("missing", "not_a_file", "truncated", "corrupt", "encoding", "locked", "migrating", "timeout", "hot_journal", "wal",
           "denied", "readonly", "descriptors", "disk_full", "io_error", "schema_mismatch")     # all that a Trouble can have
SQLITE_MAGIC = b"SQLite format 3\0"
WAL = ("it is in WAL mode, which a reader without write permission on the folder can read only while a writer is connected; "
       "'PRAGMA journal_mode=DELETE' by its owner ends that")
RESCUE = "; the file before was deleted, but is still open here: copy %s before any restart or reload"


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
        return "wal", WAL
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


def said(error):
    """The reason word that a sqlite3.Error's message decides alone, or None."""
    return next((reason for part, reason in MESSAGES if part in str(error)), None)


def diagnose(error, path, waited):
    """The Trouble that a sqlite3.Error means. The connection it came from is closed, unless the reason is locked or timeout."""
    reason = said(error)
    if reason == "locked":
        detail = "a writer holds the lock, %s; waited %.1f s" % (supervision.lock_holders(path), waited)
    elif reason == "timeout":
        detail = "the query took longer than METRICS_QUERY_TIMEOUT, or the scraper, allows; gave up after %.1f s" % waited
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


def ask(connection, now, spent):
    """The exposition.Figures at the Unix time now; into `spent` go the seconds of each query. Raises sqlite3.Error."""
    bands = {"band%d" % i: hour_of(now - days * exposition.DAY) for i, (_, days) in enumerate(exposition.AGE_BANDS) if days}
    since = instant(now - (exposition.DAILY_DAYS - 1) * exposition.DAY)[:10]
    moment = dict(bands, now=instant(now), hour=hour_of(now), since=since)

    def rows(sql, shape=tuple):
        # Closed, since an error's traceback would keep the cursor, and with it the lock that keeps writers out.
        started = time.monotonic()
        with contextlib.closing(connection.execute(sql, moment)) as cursor:
            found = [shape(row) for row in cursor]
        spent[QUERIES[sql]] = time.monotonic() - started
        return found

    return exposition.Figures(
        now=now,
        bounds=[bound for bound, in rows(BOUNDS)],
        statuses=dict(rows(BY_STATUS)),
        carriers=rows(LANES_BY_CARRIER, exposition.Lane._make),
        modes=rows(LANES_BY_MODE, exposition.Lane._make),
        carrier_transit=histograms(rows(TRANSIT_BY_CARRIER)),
        mode_transit=histograms(rows(TRANSIT_BY_MODE)),
        overdue=rows(OVERDUE, exposition.Overdue._make),
        deliveries=dict(rows(DELIVERIES)),
        exceptions=rows(EXCEPTIONS),
        hours=rows(HOURS, exposition.Hour._make),
        newest_change=rows(NEWEST_CHANGE)[0][0],
        future_changes=rows(FUTURE_CHANGES)[0][0],
        schema_version=rows(schema_check.VERSION)[0][0])


# Store: the connection, the last snapshot, and what is wrong with the database now

BRIDGED = ("locked", "migrating")   # troubles in which the last figures are those of the last commit that can be read
Snapshot = collections.namedtuple("Snapshot", "figures stale")  # stale: the Trouble that an older snapshot bridges, or None
Leap = collections.namedtuple("Leap", "at before after")    # from so many shipments to so many, in one look; at: Unix time


def in_force(findings):
    """The findings worth a warning while serving; next to an error, which says more, none."""
    grades = {finding.grade for finding in findings}
    return [] if "error" in grades else [finding.text for finding in findings if finding.grade in ("version", "warning")]


def mark_of(status):
    """What becomes another when another file takes the place, or a transaction is committed."""
    return file_identity(status), status.st_mtime_ns, status.st_size


class Store:
    """The database file as it is read. One thread asks at a time; the others share its answer."""

    def __init__(self, path, timeout, stale_seconds, clock=time.time, slow_seconds=0):
        self.path, self.timeout, self.stale_seconds, self.clock = path, timeout, stale_seconds, clock
        self.slow_seconds = slow_seconds or float("inf")
        self.wanted = schema_check.wanted_schema()
        self.lock = threading.Lock()
        self.connection = None                      # open on the file `inode`, which last had `size` bytes
        self.inode = self.size = None
        self.deadline = self.until = None           # monotonic times: a query is interrupted, the attempt is to be over
        self.versions, self.findings = None, []     # schema_version and user_version that the findings are about
        self.version = None                         # the user_version of the last comparison; other than versions never reset
        self.last = self.good_at = None             # the last Figures, and when they were last known to be true (monotonic)
        self.data_version = self.written = None     # of the last Figures: PRAGMA data_version; time and size of the file
        self.at_rest = None                         # (Figures, mark of the file) where that had been at rest when they were read
        self.trouble, self.failed_at = None, 0.0    # of the last attempt, and its end (monotonic)
        self.began = 0.0                            # the start of the last attempt (monotonic)
        self.state = None                           # (event, reason) of the last state logged, None for a good one
        self.queries, self.last_seconds = Latency(), None
        self.failures, self.replaced = collections.Counter(), 0
        self.replaced_at = None                     # Unix time of the last such moment
        self.former = None                          # (connection, /proc path) of a deleted file: the last copy of its data
        self.log_inode = None                       # of the write-ahead log that our connection reads; None in other modes
        self.total = self.leap = None               # shipments in the last Figures, of whatever file; the last Leap

    def one(self, sql):
        with contextlib.closing(self.connection.execute(sql)) as cursor:
            return cursor.fetchone()[0]

    def errors(self):
        return [finding.text for finding in self.findings if finding.grade == "error"]

    def behind(self):
        """What says that the schema is of an earlier version, in a list; all that it lacks follows from that."""
        return [finding.text for finding in self.findings if finding.grade == "version" and 0 < self.version < self.wanted.version]

    def differences(self):
        """What keeps the schema from being that of this release."""
        return self.behind() or [finding.text for finding in self.findings if finding.grade in ("error", "version")]

    def cure(self):
        """What helps against a schema that does not fit, in words."""
        live, wanted, command = self.version, self.wanted.version, "python3 migrate.py %s " % self.path
        if 0 < live < wanted:
            return "to bring it to this release: %splan, then apply" % command
        if live > wanted:
            return "install the release that made it, or go back to a backup: %srestore" % command
        return "%sstatus tells more" % command

    def migration(self):
        """The Trouble of a migration that runs now, or None."""
        note = migration_lock.running(self.path)
        return note and Trouble("migrating", "database %s: migration running: %s" % (self.path, note))

    def migrating(self):
        """Whether the last attempt met a migration."""
        return self.trouble is not None and self.trouble.reason == "migrating"

    def close(self):
        if self.connection:
            with contextlib.suppress(sqlite3.Error):  # it is being given up, for a reason that is reported
                self.connection.close()
        self.connection = None

    def still_open(self, inode):
        """(/proc path of the descriptor, name) that our connection has a file open by."""
        for descriptor, name in supervision.open_files(os.getpid()):
            with contextlib.suppress(OSError):  # another thread's, closed meanwhile
                if file_identity(os.stat(descriptor)) == inode:
                    return descriptor, name
        return None, ""

    def leave(self):
        """Gives up the connection to a file that lost its name. A deleted one stays open: nobody else may have its data."""
        descriptor, _ = self.still_open(self.inode) if self.connection else (None, "")
        if descriptor and not os.stat(descriptor).st_nlink:
            if self.former:
                self.former[0].close()
            self.former, self.connection = (self.connection, descriptor), None
        self.close()

    def rescue(self):
        """What to say of a deleted file that is still open, "" where there is none."""
        return RESCUE % self.former[1] if self.former else ""

    def gone(self, error):
        """The Trouble of a path that has no file. The connection stays open: it may hold the last copy of the data."""
        detail = "database %s: %s" % (self.path, error.strerror)
        lost = self.connection and error.errno == errno.ENOENT
        descriptor, name = self.still_open(self.inode) if lost else (None, "")
        if name.endswith(" (deleted)"):
            detail += "; it was deleted, but is still open here: copy %s before any restart" % descriptor
        elif self.former:
            detail += self.rescue()
        elif name:
            detail += "; it was moved to %s" % name
        return Trouble(errno_reason(error), detail)

    def status(self):
        """The os.stat_result of the path. Raises Trouble."""
        try:
            return os.stat(self.path)
        except OSError as error:
            raise self.gone(error)

    def open(self, inode):
        uri = "file:%s?mode=ro" % urllib.parse.quote(os.fsencode(self.path))
        self.connection = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        self.connection.set_progress_handler(lambda: time.monotonic() > self.deadline, PROGRESS_STEPS)
        self.inode, self.versions, self.data_version = inode, None, None  # these count within one connection only
        self.at_rest = self.log_inode = None

    def reopen(self):
        """Opens the file that bears the name now. Raises Trouble or sqlite3.Error."""
        status = self.status()
        if not stat.S_ISREG(status.st_mode):  # SQLite calls a folder an I/O error, and would wait for ever for a FIFO's writer
            raise Trouble("not_a_file", "database %s: it is a folder or a device, not a file" % self.path)
        inode, self.size = file_identity(status), status.st_size
        if not self.size:  # SQLite takes it for a database without tables
            self.leave()
            raise Trouble("truncated", "database %s: the file is empty (0 bytes)%s" % (self.path, self.rescue()))
        if self.inode not in (None, inode):
            self.leave()
            self.last = None  # figures of another file, which must not bridge a lock on this one
            self.replaced, self.replaced_at = self.replaced + 1, int(self.clock())
            event(logging.WARNING, "database_replaced", path=self.path,
                  detail="another file bears the name now (inode %d, before %d); reading that one%s" % (
                      inode[1], self.inode[1], self.rescue()))
        if not self.connection:
            self.open(inode)

    def take_lock(self, patience_end):
        """The first read, which takes the lock that readers share. A busy writer leaves gaps of about a millisecond between two
        commits; SQLite's own busy handler, which sleeps up to 100 ms, misses them for seconds. Raises Trouble where it is a
        migration that has to be waited for."""
        pause, migration_wait = LOCK_POLL, time.monotonic() + (0 if self.migrating() else MIGRATION_WAIT)
        while True:
            try:
                return self.one(DATA_VERSION)
            except sqlite3.OperationalError as error:
                if said(error) != "locked":
                    raise
                now = time.monotonic()
                migration = self.migration() if now >= migration_wait else None
                if migration or now >= patience_end:
                    raise migration or error
                time.sleep(pause)
                pause = min(1.02 * pause, LOCK_POLL_MAX)

    @contextlib.contextmanager
    def transaction(self, patience_end):
        """A read transaction of limited time; gives PRAGMA data_version. Raises sqlite3.Error: "is locked" at patience's end."""
        self.deadline = float("inf")
        self.connection.execute("BEGIN")
        try:
            data_version = self.take_lock(patience_end)
            self.deadline = min(self.until, time.monotonic() + self.timeout)
            yield data_version
        finally:
            with contextlib.suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                self.connection.execute("ROLLBACK")

    def compare(self):
        before = in_force(self.findings)
        live = schema_check.read_schema(self.connection)
        self.version, self.findings = live.version, schema_check.compare(live, self.wanted)
        after = in_force(self.findings)
        for finding in after:
            if finding not in before:
                event(logging.WARNING, "schema_warning", detail=finding)
        if before and not after and not self.errors():
            event(logging.INFO, "schema_recovered", path=self.path)

    def require_log(self):
        """Raises Trouble where the write-ahead log that our connection reads is no longer the one that others write: its figures
        would stand still, and with our descriptor would go whatever is committed in it alone."""
        try:
            present = file_identity(os.stat(self.path + "-wal"))
        except OSError:
            present = None
        if self.log_inode in (None, present):
            self.log_inode = present
            return
        descriptor, _ = self.still_open(self.log_inode)
        raise Trouble("wal", "database %s: its write-ahead log was removed, and with it what was committed there alone; it is "
                             "still open here: copy %s before any restart" % (self.path, descriptor))

    def count(self):
        """Says once that many shipments are gone, which nothing in this folder does, or that many came at once."""
        before, self.total = self.total, sum(self.last.statuses.values())
        change = self.total - (before or self.total)
        dropped = change < -DROP_SHARE * (before or 0)
        if dropped or change >= max(JUMP_LEAST, JUMP_SHARE * (before or 0)):
            self.leap = Leap(self.last.now, before, self.total)
            event(logging.WARNING, "shipments_dropped" if dropped else "shipments_jumped", path=self.path, before=before,
                  after=self.total)

    def measure(self, seconds):
        self.queries.observe(seconds)
        self.last_seconds = seconds

    def report(self, seconds, spent):
        """Logs how long the queries took, as a warning where that was too long, and which of them most of it."""
        longest = max(spent, key=spent.get)
        fields = {"seconds": round(seconds, 6), "longest": longest, "longest_seconds": round(spent[longest], 6)}
        if seconds >= self.slow_seconds:
            event(logging.WARNING, "slow_query", **fields)
        else:
            event(logging.DEBUG, "database_read", **fields)

    def update(self, now, data_version):
        """The new figures, unless the second and the data are those of the last. The schema is compared whenever it moves."""
        versions = self.one(SCHEMA_VERSION), self.one(schema_check.VERSION)
        if versions != self.versions:
            self.compare()
            self.versions = versions
        if self.errors():   # a migration that goes on from here cannot do so before our transaction has ended
            raise self.migration() or Trouble("schema_mismatch", "database %s: %s; %s" % (
                self.path, "; ".join(self.differences()), self.cure()))
        if self.last and self.last.now == now and self.data_version == data_version:
            return
        started, spent = time.monotonic(), {}
        self.last = ask(self.connection, now, spent)
        self.data_version = data_version
        self.count()
        seconds = time.monotonic() - started
        self.measure(seconds)
        self.report(seconds, spent)

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
                logged = self.one(JOURNAL_MODE) == "wal"
                if logged:
                    self.require_log()
                at_rest = not logged and time.time() - status.st_mtime > CLOCK_TICK
                self.update(int(self.clock()), data_version)
                self.written = written
                self.at_rest = (self.last, mark_of(status)) if at_rest else None
        except sqlite3.DatabaseError as error:
            if not cached or said(error) != "corrupt":
                raise
            return False
        return True

    def age(self):
        """Seconds since the last figures were known to be true."""
        return time.monotonic() - self.good_at

    def fresh(self):
        """Whether the last figures may still be served while the database is locked; in a migration their age does not count."""
        return self.last is not None and (self.age() <= self.stale_seconds or self.stale_seconds > 0 and self.migrating())

    def indispensable(self):
        """Whether the last figures would be served now, or as soon as a migration that is running locks the database."""
        return self.fresh() or self.last is not None and self.stale_seconds > 0 and self.migration() is not None

    def bridging(self):
        return self.trouble and self.trouble.reason in BRIDGED and self.fresh()

    def bridge(self):
        """The last good figures while a writer holds the lock, for a limited time, or a migration runs; else never."""
        if not self.bridging():
            raise self.trouble
        return Snapshot(self.last, self.trouble)

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

    def refresh(self, started, until):
        """Brings self.last up to date. Raises Trouble."""
        known = self.trouble and self.trouble.reason in BRIDGED
        try:
            self.reopen()
            self.until, patience_end = until, min(until, started + (BRIEF_WAIT if known or self.fresh() else self.timeout))
            if not self.read(patience_end):
                event(logging.INFO, "database_reread", path=self.path,
                      detail="the file was written to outside of any transaction")
                self.close()
                self.reopen()
                self.read(patience_end)
        except sqlite3.Error as error:
            if said(error) not in ("locked", "timeout"):
                self.close()
            migration = self.migration() if said(error) == "timeout" else None  # its reading and writing slows down ours
            raise migration or diagnose(error, self.path, time.monotonic() - started) from None

    def attempt(self, until):
        """Brings self.last up to date, or sets self.trouble. Raises Trouble where it was but the one who asks that did not wait
        for a query: that says nothing of the database, and those who wait longer shall ask for themselves."""
        former, self.began = self.began, time.monotonic()
        try:
            self.refresh(self.began, until)
            self.trouble, self.good_at = None, time.monotonic()
        except Trouble as trouble:
            if trouble.reason == "timeout" and self.deadline == until:
                self.began = former
                raise
            self.trouble, self.failed_at = trouble, time.monotonic()
            self.failures[trouble.reason] += 1
        self.say()

    def snapshot(self, until=float("inf")):
        """The Snapshot of this second. Raises Trouble: within the timeout for a lock, within another for the query, and by the
        monotonic time `until`."""
        arrived = time.monotonic()
        if not self.lock.acquire(timeout=max(0, min(until - arrived, 2 * self.timeout))):
            raise Trouble("timeout", "database %s: it is still being asked for others; gave up after %.1f s" % (
                self.path, time.monotonic() - arrived))
        try:
            # Who waited shares the outcome of an attempt that began after his arrival, or of one that failed since.
            shared_from = self.failed_at if self.trouble else self.began
            if shared_from < arrived:
                self.attempt(until)
            if self.trouble:
                return self.bridge()
            return Snapshot(self.last, None)
        finally:
            self.lock.release()

    def unchanged(self, figures, mark):
        """Whether these figures are of this second and of the file as it is, by its time and size alone. A commit in the same
        tick of the kernel's clock as our reading would not show, so that only a file that was at rest by then qualifies."""
        if self.trouble or not self.stale_seconds or figures.now != int(self.clock()):
            return False
        try:
            return mark_of(os.stat(self.path)) == mark
        except OSError:
            return False  # the way through reopen() says what it means

    def shared(self):
        """Whether another request is at new figures, and the last ones are young enough to be served meanwhile."""
        return (self.lock.locked() and self.stale_seconds and not self.trouble
                and self.age() <= SHARE_SECONDS)

    def current(self, until):
        """The Snapshot of this second, without a look into the file where it cannot have changed. Raises like snapshot."""
        last = self.last
        if last and self.shared():
            return Snapshot(last, None)
        known = self.at_rest    # once: another thread may have another by the time that ours has looked at the file
        return Snapshot(known[0], None) if known and self.unchanged(*known) else self.snapshot(until)
