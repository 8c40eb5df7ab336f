"""Drills of the database file: locks, pages, journals, copies."""

import os
import re
import shutil
import signal

from drills.scenario import Scenario, Trap, by_hand, check, cure, http, log, metric, never, same_instance, stays, tells

# Programs of other processes. The file is never opened and closed in this one: that would drop the locks that it has on it.

OVERWRITE = """
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    file.write(bytes.fromhex(sys.argv[3]))
"""
PIECE = "import sys; file = open(sys.argv[1], 'rb'); file.seek(int(sys.argv[2])); print(file.read(int(sys.argv[3])).hex())"
COPY_PART = """
import sys
source, target, start, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with open(source, "rb") as file, open(target, "ab") as copy:
    file.seek(start)
    copy.write(file.read(end - start))
"""
LEAF = """
import sqlite3, sys
page, = sqlite3.connect(sys.argv[1]).execute("SELECT rootpage FROM sqlite_master WHERE name = 'shipments'").fetchone()
with open(sys.argv[1], "rb") as file:
    content = file.read()
while content[(page - 1) * 4096] == 5:          # an interior page of a table: its first cell points to its first child
    cell = int.from_bytes(content[(page - 1) * 4096 + 12:][:2], "big")
    page = int.from_bytes(content[(page - 1) * 4096 + cell:][:4], "big")
print(page)
"""
HOG = """
import signal, sqlite3, sys, time
held, pause = 0.6, 0
def slow_down(*_):
    global held, pause
    held, pause = 0, 0.2
signal.signal(signal.SIGUSR1, slow_down)
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
print("committing", flush=True)
while True:
    db.execute("BEGIN EXCLUSIVE")
    db.execute("UPDATE shipments SET cost = cost WHERE id = 1")
    time.sleep(held)
    db.execute("COMMIT")
    time.sleep(pause)
"""
HALF_DONE = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
db.execute("PRAGMA cache_size = 2")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE shipments SET status = 'cancelled' WHERE reference GLOB 'SHP-*'")
print("half done", flush=True)
time.sleep(3600)
"""
READER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM shipments").fetchone()
print("reading", flush=True)
time.sleep(3600)
"""
TO_WAL = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
deadline = time.monotonic() + 10
while True:
    try:
        print(db.execute("PRAGMA journal_mode = WAL").fetchone()[0], flush=True)
        break
    except sqlite3.OperationalError:    # the change of mode waits for no reader, whatever the timeout
        if time.monotonic() > deadline:
            raise
        time.sleep(0.005)
if len(sys.argv) > 2:
    time.sleep(3600)
"""
PAGE = 4096     # bytes, of a database that seed.py made


def apart(box, code, *arguments):
    """What a program prints that runs in a process of its own, to its end."""
    child = box.python(code, *[str(one) for one in arguments])
    output = child.communicate()[0].decode()
    box.require(child.returncode == 0, "a program of the drill ended well")
    return output.strip()


def begun(box, code, *arguments):
    """A child that runs this program, once it has said its first line."""
    child = box.python(code, *arguments)
    box.require(child.stdout.readline(), "a program of the drill is where it should be")
    return child


def locks(box):
    """What the runbook's `holders` prints."""
    return box.runbook("holders").output.strip()


def holder(pattern=""):
    """A function of the box: the PID in the first line of `holders` that has this."""
    def find(box):
        def first():
            return next((one for one in locks(box).splitlines() if re.search(pattern, one)), None)
        line = box.wait(first, "a holder " + pattern)
        return re.match(r"pid (\d+)", line).group(1)
    return find


def descriptor(number):
    """A function of the box: the PID, or the descriptor's number, of the /proc path that the service tells to copy."""
    def find(box):
        told = box.probe("/metrics").body
        return re.search(r"/proc/(\d+)/fd/(\d+)", told).group(number)
    return find


def stop_the_writer(box):
    box.stop_writer()


def keep_a_backup(box):
    done = box.shell("python3 migrate.py shipments.db backup")
    box.require(done.code == 0, "a backup was made")


def backup(box):
    """The backup that keep_a_backup made."""
    return next(name for name in sorted(os.listdir(box.app)) if name.endswith(".backup"))


def kept(box):
    """What restore kept of the database that it replaced."""
    return next(name for name in sorted(os.listdir(box.app)) if name.endswith(".kept"))


def restore_alone(box):
    box.stop_writer()
    box.shell("python3 migrate.py shipments.db restore " + backup(box))


# Locks

def limit_staleness(box):
    box.set("METRICS_STALE_SECONDS", "1")


def hang_with_the_lock(box):
    child = box.hold_lock()
    box.require("pid %d" % child.pid in locks(box), "/proc shows the lock")
    return "pid %d holds an exclusive lock on the database" % child.pid


def commit_without_a_pause(box):
    box.hog = begun(box, HOG, box.database)
    box.wait(lambda: "pid %d" % box.hog.pid in locks(box), "the lock of the batch")
    return "pid %d holds the lock for 0.6 s at a time, and takes it again at once" % box.hog.pid


def pace_the_batch(box):
    box.signal(box.hog, signal.SIGUSR1)


def batch_fault(box):
    return None if box.hog.poll() is None else "the batch was ended: its changes will be missing"


def leave_a_reader_open(box):
    child = begun(box, READER, box.database)
    before = len(box.read("ledger.errors"))
    box.wait(lambda: "locked" in box.read("ledger.errors")[before:], "the writer to be refused")
    return "pid %d has a read transaction open, and the writer is told: database is locked" % child.pid


# Pages

def zero_the_header(box):
    box.stop_writer()
    apart(box, OVERWRITE, box.database, 0, "00" * 16)
    box.require(apart(box, PIECE, box.database, 0, 16) == "00" * 16, "the first 16 bytes are zero")
    return "the first 16 bytes of shipments.db are zero"


def leaf(box):
    return (int(apart(box, LEAF, box.database)) - 1) * PAGE


def scribble(box):
    at = leaf(box)
    noise = os.urandom(PAGE).hex()
    apart(box, OVERWRITE, box.database, at, noise)
    box.require(apart(box, PIECE, box.database, at, PAGE) == noise, "the page is overwritten")
    return "bytes %d to %d of shipments.db, a page of the table shipments, are noise" % (at, at + PAGE - 1)


def age_a_page(box):
    """Remembers a page, then changes the rows in it, and makes a backup that has them."""
    box.stale = leaf(box), apart(box, PIECE, box.database, leaf(box), PAGE)
    box.sql("UPDATE shipments SET cost = 4711 WHERE id <= 5")
    keep_a_backup(box)


def bring_an_old_page_back(box):
    at, old = box.stale
    apart(box, OVERWRITE, box.database, at, old)
    box.require(box.sql("SELECT count(*) FROM shipments WHERE cost = 4711") == [(0,)], "the old rows are back")
    return "a page of the table shipments, at byte %d, is as it was before its last change" % at


def tear_a_copy(box):
    """A copy as cp makes it when a writer's transaction comes in its middle, then a backup by migrate.py."""
    size, copy = os.path.getsize(box.database), box.path("app/nightly_copy.db")
    apart(box, COPY_PART, box.database, copy, 0, size // 2)
    box.sql("UPDATE shipments SET status = 'delivered', delivered_at = '2026-11-01T12:00:00Z' "
            "WHERE status <> 'delivered' AND reference NOT GLOB 'DRL-*'")
    apart(box, COPY_PART, box.database, copy, size // 2, os.path.getsize(box.database))
    keep_a_backup(box)


# Files

def delete_the_file(box):
    box.stop_writer()
    os.unlink(box.database)
    return "shipments.db is gone: %s" % (not os.path.exists(box.database))


def rename_an_older_over_it(box):
    child = box.hold_lock("BEGIN IMMEDIATE")    # no transaction is under way while the name changes
    shutil.copy(box.path("app/" + backup(box)), box.path("app/restored.db"))
    before = os.stat(box.database).st_ino
    os.rename(box.path("app/restored.db"), box.database)
    box.signal(child, signal.SIGKILL)
    child.wait()
    box.require(os.stat(box.database).st_ino != before, "another file bears the name")
    return "inode %d became %d, the copy of a backup" % (before, os.stat(box.database).st_ino)


def make_an_old_copy(box):
    shutil.copy(box.database, box.path("app/shipments-lastweek.db"))


def name_the_old_copy(box):
    box.set("METRICS_DB_PATH", "shipments-lastweek.db")
    done = box.restart()
    box.require(done.code == 0 and "lastweek" in box.probe("/metrics").body, "the service reads the copy")
    return "the service reads %s" % box.settings()["METRICS_DB_PATH"]


def name_the_right_one(box):
    box.set("METRICS_DB_PATH", "shipments.db")


def path_fault(box):
    named = box.settings().get("METRICS_DB_PATH")
    return None if named == "shipments.db" else "METRICS_DB_PATH names %s" % named


# Journals

def kill_in_the_middle(box):
    box.stop_writer()
    child = begun(box, HALF_DONE, box.database)
    box.signal(child, signal.SIGKILL)
    child.wait()
    journal = os.path.getsize(box.database + "-journal")
    box.require(journal > PAGE, "a journal of a dead writer is there")
    box.wait(lambda: not locks(box), "no holder of a lock")
    return "shipments.db-journal has %d bytes, and nobody holds a lock" % journal


def switch_to_wal(box):
    child = begun(box, TO_WAL, box.database)
    box.require(child.wait() == 0 and apart(box, PIECE, box.database, 18, 2) == "0202", "the database is in WAL mode")
    return "the header of shipments.db says WAL"


def lose_the_log(box):
    child = begun(box, TO_WAL, box.database, "stay")
    before = len(box.acknowledged())
    box.wait(lambda: len(box.acknowledged()) > before + 3, "rows in the log")
    box.wait(lambda: box.probe("/metrics").status == 200, "the service to read them")
    for process in (box.writing, child):
        box.signal(process, signal.SIGKILL)
        process.wait()
    size = os.path.getsize(box.database + "-wal")
    for ending in ("-wal", "-shm"):
        os.unlink(box.database + ending)
    return "shipments.db-wal, of %d bytes, was removed after its writers were killed" % size


RESTART = "./restart_service.sh --timeout 1"
RESTART_ANYHOW = "./restart_service.sh stop; ./restart_service.sh start --timeout 1"
FRESH = ("--max-age", "4")       # seconds; a busy host may need three for what is done before the fault
CALM = (stays("/livez", 200), same_instance(), never("Traceback"))
ANSWERING = CALM + (stays("/metrics", 200),)
NIGHTLY = 'python3 migrate.py "$METRICS_DB_PATH" verify --quiet'
RESTORE = 'python3 migrate.py "$METRICS_DB_PATH" restore BACKUP'
MERGE = 'python3 seed.py "$METRICS_DB_PATH" --merge KEPT'

SCENARIOS = (
    Scenario(
        id="D18", name="locked", title="A process holds the database locked and does nothing",
        layer="database", level=2, set="ci", needs="", founding="", prepare=limit_staleness,
        page="Since the reporting tool was started the dashboard says that its figures are old, and then nothing at all.",
        goal="Fresh figures, without a restart of the service, and every row that was acknowledged.",
        inject=hang_with_the_lock,
        expected=(
            log("WARNING database_stale reason=locked .*held by pid"),
            log("ERROR database_unavailable reason=locked .*held by pid"),
            check("database locked: .*held by pid"),
            http("/metrics", 503, '"reason": "locked"'),
            metric('logistics_database_trouble{reason="locked"}', 1),
        ),
        quiet=CALM,
        deadline=8,
        mitigation=(
            cure("locked", "kill NUMBER", NUMBER=holder()),
        ),
        traps=(
            Trap("restart the service", RESTART,
                 "it holds no lock that matters; the new one waits for the same lock, and has not even the figures of before"),
            Trap("let it serve old figures for longer",
                 "echo METRICS_STALE_SECONDS=86400 >> metrics.env; ./restart_service.sh reload --timeout 1",
                 "the alarm is silenced, and the figures stand still for a day"),
        ),
        hints=(
            "See who holds the lock: the check's line names the process, and so does `holders` of the runbook.",
            "That process began a transaction and does nothing: the database has no journal that changes. Nothing is damaged.",
            "kill NUMBER, with the plain SIGTERM. The lock goes with the process; the service recovers at the next request.",
        ),
        prevention="a writer that asks for the lock only when it has all that it will write, and with a time limit of its own",
        proofs=("F", "L", "Q"), cause="lock-held", anchor="locked",
        lesson="A lock has an owner, and the owner can be named. Restarting the one who waits changes nothing.",
        alerts=("MetricsDatabaseDown", "MetricsFiguresStale"),
    ),
    Scenario(
        id="D19", name="starved", title="A batch commits without a pause and lets nobody else in",
        layer="database", level=3, set="hand", needs="", founding="", prepare=limit_staleness,
        page="The dashboard shows old figures, now and then new ones. The feed complains of a locked database. The "
             "nightly batch is late.",
        goal="Figures and feed go on, and so does the batch.",
        inject=commit_without_a_pause,
        expected=(
            log("reason=locked .*held by pid"),
            check("database locked: .*held by pid"),
            http("/metrics", 503, '"reason": "locked"'),
        ),
        quiet=CALM,
        deadline=10,
        mitigation=(
            by_hand("have its owner let it pause between commits, as the runbook's locked says", pace_the_batch),
        ),
        traps=(
            Trap("kill -9 the batch", "kill -9 $(holders | sed -n '1s/pid \\([0-9]*\\).*/\\1/p')",
                 "it works and is no deadlock: what it had still to do is missing, and in the middle of a change it "
                 "leaves a journal"),
            Trap("restart the service", RESTART, "the new one waits for the same lock"),
        ),
        hints=(
            "Ask twice who holds the lock, and when the file was changed: holders; stat -c '%y' shipments.db*",
            "The holder is the same each time, and the file changes all the while: it works, and takes the lock again at once.",
            "Have its owner let it pause between its commits (kill -USR1 NUMBER does so with this batch). Ending it "
            "loses its work.",
        ),
        prevention="a pause after each commit, longer than others need to come in; seed.py --live has one by its rate",
        proofs=("F", "L", "Q", "V"), cause="writer-unpaced", anchor="locked",
        lesson="Two causes with one symptom: one who hangs and one who works. Look twice before you kill.",
        alerts=("MetricsFiguresStale",), solved=batch_fault,
    ),
    Scenario(
        id="D28", name="reader-open", title="An open read transaction keeps every writer from its commit",
        layer="database", level=3, set="hand", needs="", founding="", watch=FRESH,
        page="Figures stand still. The feed's log says: database is locked. The service is green most of the time.",
        goal="The feed's rows arrive again, all of them.",
        inject=leave_a_reader_open,
        expected=(
            check("fresh +frozen|fresh frozen"),
            tells("holders", 0, "which only reads"),
        ),
        quiet=CALM,
        deadline=12,
        mitigation=(
            cure("locked", "kill NUMBER", NUMBER=holder("which only reads")),
        ),
        traps=(
            Trap("start the writer anew", lambda box: (box.stop_writer(), box.shell("true")),
                 "the new one waits for the same reader; whoever ends the writer has ended the one who is in the right"),
            Trap("restart the service", RESTART, "it reads for milliseconds; the one who reads for hours is another"),
        ),
        hints=(
            "See who has the database open, and who holds a lock: the second and third command of the runbook's frozen.",
            "A process which only reads has had its transaction open all the time; a writer can begin, and cannot commit.",
            "kill NUMBER of the one which only reads. The writer goes on by itself.",
        ),
        prevention="tools that read in autocommit mode, or end their transactions; a copy by migrate.py backup for long "
                   "analyses",
        proofs=("F", "L", "Q", "V"), cause="reader-open", anchor="frozen",
        lesson="In the rollback journal a reader can stop a writer. The victim is not the culprit, though both are named.",
        alerts=("MetricsShipmentsFrozen",),
    ),
    Scenario(
        id="D20", name="header-zeroed", title="The first bytes of the database were overwritten",
        layer="database", level=2, set="ci", needs="", founding="", prepare=keep_a_backup,
        page="After a disk tool was tried on the wrong file the figures are gone, and the feed says: file is not a database.",
        goal="The figures are back, with every row that was acknowledged, also since the backup.",
        inject=zero_the_header,
        expected=(
            check("database corrupt: .*first bytes are not those of a SQLite database"),
            log("ERROR database_unavailable reason=corrupt"),
            http("/metrics", 503, '"reason": "corrupt"'),
            http("/readyz", 503, '"reason": "corrupt"'),
            metric('logistics_database_trouble{reason="corrupt"}', 1),
        ),
        quiet=CALM,
        deadline=5,
        mitigation=(
            cure("corrupt",
                 'cp -p "$METRICS_DB_PATH" "$METRICS_DB_PATH.restored"\n'
                 'printf \'SQLite format 3\\0\' | dd of="$METRICS_DB_PATH.restored" conv=notrunc status=none\n'
                 'python3 migrate.py "$METRICS_DB_PATH.restored" verify --quiet && mv "$METRICS_DB_PATH.restored" '
                 '"$METRICS_DB_PATH"'),
        ),
        traps=(
            Trap("put the backup back and be content", restore_alone,
                 "200 again, quick_check ok, and every row since the backup is gone"),
            Trap("delete it and seed a new one", "mv shipments.db broken.db; python3 seed.py shipments.db --rows 1500",
                 "as many rows, green checks, and not one of them is real"),
        ),
        hints=(
            "Look at the file before you replace it: head -c 100 shipments.db | od -c | head",
            "Only its first 16 bytes are zero: the text 'SQLite format 3' that says what it is. The pages behind are "
            "untouched.",
            "Write those bytes into a copy, verify the copy, and put it in place: the block of the runbook's corrupt.",
        ),
        prevention="only the owner may write the file; backups by migrate.py, which are verified when they are made",
        proofs=("F", "L", "Q", "V", "S"), cause="header-overwritten", anchor="corrupt",
        lesson="How much is damaged decides what is lost by the repair. The backup is the second best copy, as long as "
               "the first can be read.",
        alerts=("MetricsDatabaseDown",),
    ),
    Scenario(
        id="D21", name="page-scribbled", title="One page of the table is noise, and every figure is still there",
        layer="database", level=3, set="hand", needs="", founding="", prepare=keep_a_backup,
        page="cron mailed the nightly look at the database. The dashboard is green, users are content.",
        goal="Every page is sound, and every row is there that was acknowledged.",
        inject=scribble,
        expected=(
            tells(NIGHTLY, 3, "malformed"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("corrupt", RESTORE, BACKUP=backup),
            cure("corrupt", MERGE, KEPT=kept),
        ),
        traps=(
            Trap("take 200 for proof", "true", "the figures come from rollups, which are whole; the rows behind them are not"),
            Trap("put the backup back and be content", restore_alone,
                 "the rows since the backup are in the broken file, and can be read"),
            Trap("make the indexes anew",
                 'python3 -c \'import sqlite3; sqlite3.connect("shipments.db").execute("REINDEX")\' 2>&1 | tail -1',
                 "the damaged page is one of the table, and no index holds what it held"),
        ),
        hints=(
            "Have every page read: python3 migrate.py shipments.db verify",
            "A page of the table shipments is damaged. Figures come from the rollups, so that no request meets it.",
            "Stop the writers, migrate.py restore BACKUP, then seed.py --merge of the kept file: it takes what can be "
            "read and is newer.",
        ),
        prevention="deploy/cron/metrics_verify reads every page each night; a scrape never does",
        proofs=("F", "L", "Q", "V", "S"), cause="page-damaged", anchor="corrupt",
        lesson="A service that answers says nothing of pages that it does not read. Someone has to read them all, on a "
               "schedule.",
        alerts=(),
    ),
    Scenario(
        id="D21a", name="page-stale", title="One page of the table is an old version of itself",
        layer="database", level=3, set="hand", needs="", founding="", prepare=age_a_page,
        page="The storage was switched to its second half this morning. cron mailed the nightly look at the database; "
             "all else is green.",
        goal="Every row is there in the version that was acknowledged last.",
        inject=bring_an_old_page_back,
        expected=(
            tells(NIGHTLY, 1, "missing from index|rollup|differences"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("corrupt", RESTORE, BACKUP=backup),
            cure("corrupt", MERGE, KEPT=kept),
        ),
        traps=(
            Trap("make the indexes anew",
                 'python3 -c \'import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=9).execute("REINDEX")\' '
                 '"$METRICS_DB_PATH"; ' +
                 NIGHTLY,
                 "verify is content, for index and table now agree: on rows of yesterday"),
            Trap("repair the rollups", 'python3 migrate.py "$METRICS_DB_PATH" repair',
                 "rollups made from old rows are old rollups"),
        ),
        hints=(
            "Have every page read: python3 migrate.py shipments.db verify",
            "Rows are missing from an index of the time of their change: the rows are older than the index. The index "
            "is right.",
            "Stop the writers, restore the backup, then seed.py --merge of the kept file. Do not REINDEX: it would hide "
            "it for good.",
        ),
        prevention="storage that does not lose acknowledged writes, and a nightly verify that finds where it does",
        proofs=("F", "L", "Q", "V", "S"), cause="page-stale", anchor="corrupt",
        lesson="A repair that makes the alarm go away can destroy the only evidence of what is wrong.",
        alerts=(),
    ),
    Scenario(
        id="D24", name="torn-backup", title="The database is damaged, and the newest copy was made by cp under a writer",
        layer="database", level=2, set="hand", needs="", founding="", prepare=tear_a_copy,
        page="cron mailed the nightly look at the database: a page is damaged. There is a copy of last night, "
             "nightly_copy.db, by cp.",
        goal="Every page is sound, and every row is there that was acknowledged.",
        inject=scribble,
        expected=(
            tells(NIGHTLY, 3, "malformed"),
            tells('python3 migrate.py "$METRICS_DB_PATH" restore nightly_copy.db', 1, "cannot be put back"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("corrupt", RESTORE, BACKUP=backup),
            cure("corrupt", MERGE, KEPT=kept),
        ),
        traps=(
            Trap("put the copy in place by hand", "mv shipments.db broken.db; cp nightly_copy.db shipments.db",
                 "half of it is of one moment and half of another; the tool that would not take it was right"),
            Trap("let the tools mend the copy",
                 "mv shipments.db broken.db; cp nightly_copy.db shipments.db; python3 -c 'import sqlite3; "
                 'sqlite3.connect("shipments.db").execute("REINDEX")\'; python3 seed.py shipments.db --rebuild',
                 "index and rollups now agree with rows that never stood beside each other"),
        ),
        hints=(
            "Ask each copy before you trust it: python3 migrate.py COPY verify; ls -la *.backup",
            "nightly_copy.db mixes two moments: cp read half of it before a transaction and half after. The .backup "
            "file is sound.",
            "Stop the writers, migrate.py restore BACKUP, then seed.py --merge of the kept file. Never cp under a writer.",
        ),
        prevention="migrate.py backup, which holds the lock while it copies, and proves the copy; never cp",
        proofs=("F", "L", "Q", "V", "S"), cause="torn-copy", anchor="corrupt",
        lesson="A backup is what was restored once. What was only copied is a hope.",
        alerts=(),
    ),
    Scenario(
        id="D22", name="deleted-open", title="The database file was deleted under the running service",
        layer="database", level=3, set="ci", needs="", founding="",
        page="Somebody cleaned up the folder. Figures are gone. There is no backup, says the one who should have made it.",
        goal="The database is back, byte for byte, from the only copy that is left.",
        inject=delete_the_file,
        expected=(
            check("database missing: .*was deleted, but is still open here: copy /proc/"),
            log("ERROR database_unavailable reason=missing .*still open here"),
            http("/metrics", 503, '"reason": "missing"'),
            metric('logistics_database_trouble{reason="missing"}', 1),
        ),
        quiet=CALM,
        deadline=5,
        mitigation=(
            cure("missing",
                 'cp /proc/NUMBER/fd/N "$METRICS_DB_PATH.rescued"\n'
                 'python3 seed.py "$METRICS_DB_PATH.rescued" --verify\n'
                 'mv -n "$METRICS_DB_PATH.rescued" "$METRICS_DB_PATH"',
                 NUMBER=descriptor(1), N=descriptor(2)),
        ),
        traps=(
            Trap("touch the missing file", "touch shipments.db",
                 "an empty file is no database; the copy that is left survives this one"),
            Trap("restart first", RESTART_ANYHOW, "the last copy of the data was the descriptor of the process that was stopped"),
            Trap("seed a new one", "python3 seed.py shipments.db --rows 1500",
                 "as many rows, green checks, and not one of them is real"),
        ),
        hints=(
            "Read the check's line to its end, and ls -la the folder.",
            "The file has no name any more, but the service still has it open: /proc/NUMBER/fd/N is the whole database.",
            "Copy that descriptor, verify the copy, mv it in place: the block of the runbook's missing. No restart "
            "before that.",
        ),
        prevention="a folder that people may not write to; a backup each night",
        proofs=("F", "L", "Q", "V", "S"), cause="file-deleted", anchor="missing",
        lesson="A deleted file lives as long as somebody has it open. The reflex to restart is what kills it.",
        alerts=("MetricsDatabaseDown",),
    ),
    Scenario(
        id="D23", name="replaced-by-older", title="An old backup was renamed over the database under writers and service",
        layer="database", level=3, set="hand", needs="", founding="", prepare=keep_a_backup,
        page="A colleague tested a restore on what he took for the test host. All is green here, he says.",
        goal="All rows are in one database: those of before, and those written since.",
        inject=rename_an_older_over_it,
        expected=(
            check("database database_replaced: .*still open: copy /proc/", 0),
            log("WARNING database_replaced .*still open here: copy /proc/"),
            metric("logistics_database_replaced_total", 1),
        ),
        quiet=ANSWERING,
        deadline=5,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("database_replaced",
                 'cp /proc/NUMBER/fd/N "$METRICS_DB_PATH.rescued"\n'
                 'python3 seed.py "$METRICS_DB_PATH" --merge "$METRICS_DB_PATH.rescued"\n'
                 'python3 seed.py "$METRICS_DB_PATH" --verify',
                 NUMBER=descriptor(1), N=descriptor(2)),
        ),
        traps=(
            Trap("restart the service, to be safe", "./restart_service.sh",
                 "the file of before had no name any more: the service was the last to have it open"),
            Trap("trust the newer time stamp", "ls -lat shipments.db*",
                 "a backup that is copied today is newer than what it replaces; only the rows tell"),
        ),
        hints=(
            "Read the check's warning to its end. Compare the rows: block shipments; ls -la *.backup",
            "Another file bears the name, an older one. The one of before was deleted by the rename, and only the "
            "service has it open.",
            "Stop the writers, copy the descriptor, seed.py --merge the copy: the block of the runbook's database_replaced.",
        ),
        prevention="migrate.py restore, which keeps what was there under another name, and which no connected writer "
                   "outlives unseen",
        proofs=("F", "L", "Q", "V", "S"), cause="file-replaced", anchor="database_replaced",
        lesson="All green, and rows are missing: a good answer about the wrong file. What was replaced must be named "
               "for as long as it can be had.",
        alerts=("MetricsDatabaseReplaced",),
    ),
    Scenario(
        id="D04", name="wrong-database", title="The settings name last week's copy of the database",
        layer="database", level=2, set="hand", needs="", founding="", prepare=make_an_old_copy, watch=FRESH,
        page="The service was moved to its new settings this morning. Users say that nothing changes any more. The feed runs.",
        goal="The service reads the database that the feed writes.",
        inject=name_the_old_copy,
        expected=(
            check("fresh frozen"),
            tells("block database", 0, "shipments-lastweek.db"),
        ),
        quiet=(never("Traceback"), never("database_unavailable")),
        deadline=12,
        mitigation=(
            by_hand("correct METRICS_DB_PATH in metrics.env", name_the_right_one),
            cure("frozen", "./restart_service.sh"),
        ),
        traps=(
            Trap("bring the missing rows into the copy", "python3 seed.py shipments-lastweek.db --merge shipments.db",
                 "fresh for a moment, and then there are two databases, each with rows that the other lacks"),
            Trap("restart the service", "./restart_service.sh", "it starts well, with the same settings"),
        ),
        hints=(
            "Compare what the service reads with what the writer writes: block database, and the second command of frozen.",
            "The feed has shipments.db open, the service reads shipments-lastweek.db: METRICS_DB_PATH names a copy.",
            "Put METRICS_DB_PATH=shipments.db into metrics.env, then ./restart_service.sh",
        ),
        prevention="the check with --max-age; copies in a folder of their own, that no setting names",
        proofs=("F", "L", "Q"), cause="wrong-database", anchor="frozen",
        lesson="200, and every figure well-formed, of another database. Only the age of the newest change tells.",
        alerts=("MetricsShipmentsFrozen",), solved=path_fault,
    ),
    Scenario(
        id="D26", name="hot-journal", title="A batch was killed in the middle of its transaction",
        layer="database", level=2, set="ci", needs="", founding="",
        page="The nightly batch was killed for using too much memory. Since then there are no figures.",
        goal="The half-done batch is undone, exactly, and the figures are back.",
        inject=kill_in_the_middle,
        expected=(
            check("database hot_journal: "),
            log("ERROR database_unavailable reason=hot_journal .*never delete the journal"),
            http("/metrics", 503, '"reason": "hot_journal"'),
            metric('logistics_database_trouble{reason="hot_journal"}', 1),
        ),
        quiet=CALM,
        deadline=5,
        mitigation=(
            cure("hot_journal", 'python3 seed.py "$METRICS_DB_PATH" --verify'),
        ),
        traps=(
            Trap("delete the journal", 'rm "$METRICS_DB_PATH-journal"',
                 "the half-done change becomes the truth: some rows of the batch, in pages that no longer fit together"),
            Trap("rename the journal, for later", 'mv "$METRICS_DB_PATH-journal" journal.old',
                 "as good as deleted: SQLite finds it by its name alone"),
            Trap("restart the service", RESTART,
                 "it opens the database read-only, and so does the next one: neither may roll back"),
        ),
        hints=(
            "See what lies beside the database, and whether anybody holds a lock: ls -la shipments.db*; holders",
            "A -journal and no holder: its writer died in the middle. In it is what undoes the half that was done.",
            "Let any read-write opening roll it back: python3 seed.py shipments.db --verify. Never touch the -journal.",
        ),
        prevention="batches that commit in parts; writers that heed SIGTERM",
        proofs=("F", "L", "Q", "V", "S"), cause="hot-journal", anchor="hot_journal",
        lesson="The file that looks like litter is the only thing that can undo what was half done.",
        alerts=("MetricsDatabaseDown",),
    ),
    Scenario(
        id="D27", name="wal-mode", title="A tool switched the database to WAL mode",
        layer="database", level=3, set="ci", needs="", founding="",
        page="A new reporting tool was connected. All works. The check mails a warning that nobody understands.",
        goal="The database is in the journal mode that every reader can read, before a night without writers proves it.",
        inject=switch_to_wal,
        expected=(
            check("database wal: .*WAL mode", 0),
            http("/readyz", 200, '"reason": "wal"'),
        ),
        quiet=ANSWERING,
        deadline=5,
        mitigation=(
            by_hand("stop the writers", stop_the_writer),
            cure("wal",
                 "./restart_service.sh stop\n"
                 'python3 -c \'import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode = '
                 'DELETE"))\' "$METRICS_DB_PATH"\n'
                 "./restart_service.sh"),
        ),
        traps=(
            Trap("wait: it works", "true",
                 "it works while a writer is connected, and for a service that may write in the folder"),
            Trap("delete -wal and -shm", lambda box: (box.kill_writer(), box.shell("rm -f shipments.db-wal shipments.db-shm")),
                 "committed shipments are in there, and nowhere else"),
        ),
        hints=(
            "See the mode, and who has it open: the commands of the runbook's wal.",
            "The header says WAL: some program switched it, for good. A reader without write permission fails when no "
            "writer is connected.",
            "Stop the writers and the service, PRAGMA journal_mode = DELETE, start both: the block of the runbook's wal.",
        ),
        prevention="tools that get a copy, or a connection that may not write",
        proofs=("F", "L", "Q", "V", "S"), cause="wal-mode", anchor="wal",
        lesson="A fault that comes and goes is best told while it is gone.",
        alerts=(),
    ),
    Scenario(
        id="D25", name="wal-left-behind", title="The write-ahead log was removed after its writers were killed",
        layer="database", level=3, set="ci", needs="", founding="",
        page="The feed was killed, and somebody tidied up the two files that it had left beside the database. Figures "
             "are gone now.",
        goal="Every row that was acknowledged is in the database, and that is out of WAL mode.",
        inject=lose_the_log,
        expected=(
            check("database wal: .*write-ahead log was removed"),
            log("ERROR database_unavailable reason=wal .*still open here: copy /proc/"),
            http("/metrics", 503, '"reason": "wal"'),
        ),
        quiet=CALM,
        deadline=5,
        mitigation=(
            cure("wal",
                 'cp -p "$METRICS_DB_PATH" "$METRICS_DB_PATH.rescued"\n'
                 'cp /proc/NUMBER/fd/N "$METRICS_DB_PATH.rescued-wal"\n'
                 'python3 -c \'import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode = '
                 'DELETE"))\' "$METRICS_DB_PATH.rescued"\n'
                 'python3 seed.py "$METRICS_DB_PATH.rescued" --verify\n'
                 'rm -f "$METRICS_DB_PATH-shm"\n'
                 'mv "$METRICS_DB_PATH.rescued" "$METRICS_DB_PATH"',
                 NUMBER=descriptor(1), N=descriptor(2)),
        ),
        traps=(
            Trap("start the writer again", lambda box: box.start_writer(),
                 "it begins a new log: what was in the old one is missing for ever"),
            Trap("restart the service", RESTART_ANYHOW, "it had the old log open, as the last one"),
        ),
        hints=(
            "Read the check's line to its end; ls -la shipments.db*",
            "The rows since the last checkpoint were in shipments.db-wal, which is gone; the service still has it open.",
            "Copy the file and that descriptor side by side, open them once read-write, and put the result in place: "
            "the runbook's wal.",
        ),
        prevention="the rollback journal, which schema.sql's databases have; a move by migrate.py backup, never by mv "
                   "of one file",
        proofs=("F", "L", "Q", "V", "S"), cause="wal-removed", anchor="wal",
        lesson="Part of a database can live in another file. Integrity is no word for what was never there.",
        alerts=("MetricsDatabaseDown",),
    ),
)
