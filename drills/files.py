"""Drills of log and file system."""

import os
import resource
import signal

import supervision
from drills import configuration
from drills.sandbox import OWN_MOUNTS
from drills.scenario import (Scenario, Signal, Trap, by_hand, check, cure, found, http, log, metric, never, same_instance, stays,
                             tells)

TOO_LITTLE = 12288                      # bytes; a transaction's journal has some ten pages of 4096
LOG_QUIET = (stays("/livez", 200), stays("/metrics", 200), stays("/readyz", 200), same_instance(), never("Traceback"))
LOG_HINTS = (
    "Read what the check says of the log, then: ls -ld \"$(dirname \"$METRICS_LOG_FILE\")\" \"$METRICS_LOG_FILE\"",
    "The service could not write its log file, said so once, and writes to stdout: metrics_service.pid.out has the lines. "
    "Nothing is lost.",
)


def rotate_badly(box):
    os.rename(box.log_file, box.log_file + ".1")
    box.write(box.log_file, "")
    os.chmod(box.log_file, 0o444)
    if box.user is not None:
        os.chown(box.log_file, box.user, box.user)
    denied = box.shell('echo test >> "%s"' % box.log_file)
    box.require(denied.code, "nobody may write the log file")
    return "the log file has mode %o, and its owner is refused" % (os.stat(box.log_file).st_mode & 0o777)


def folder_in_its_place(box):
    os.rename(box.log_file, box.log_file + ".1")
    os.mkdir(box.log_file)
    return "%s is a folder: %s" % (box.log_file, os.path.isdir(box.log_file))


def lose_the_folder(box):
    os.rename(box.path("app/log"), box.path("app/log.old"))
    return "%s is missing: %s" % (box.log_file, not os.path.exists(os.path.dirname(box.log_file)))


def log_in_a_folder(box):
    os.mkdir(box.path("app/log"))
    box.set("METRICS_LOG_FILE", "log/metrics.log")
    box.log_file = box.path("app/log/metrics.log")


FLOOD = """
import base64, sys, threading, urllib.error, urllib.request
def guess(number):
    while True:
        number += 8
        question = urllib.request.Request("http://127.0.0.1:%s/metrics" % sys.argv[1])
        question.add_header("Authorization", "Basic " + base64.b64encode(b"metrics:guess-%d" % number).decode())
        try:
            urllib.request.urlopen(question, timeout=5)
        except OSError:
            pass
for number in range(8):
    threading.Thread(target=guess, args=(number,), daemon=True).start()
threading.Event().wait(120)
"""


def guard(box):
    configuration.set_passwords(box)


def guess_passwords(box):
    box.write("guesser.py", FLOOD)
    child = box.spawn(box.python3, box.path("guesser.py"), str(box.port))
    box.wait(lambda: "status=429" in box.log_since(), "the guesses are refused", 10)
    return "%s tries passwords: %s" % (supervision.describe(child.pid), found("status=429", box.log_since()))


def guesser(box):
    return next((pid for pid in supervision.processes() if supervision.script_of(pid) == box.path("guesser.py")), None)


def end_guesser(box):
    """Whoever owns the client stops it."""
    box.signal(guesser(box), signal.SIGTERM)
    box.wait(lambda: guesser(box) is None, "the client has ended")


def guessing(box):
    if box.setting("METRICS_AUTH_FILE") != "users":
        return "the service asks for no password"
    return "somebody still tries passwords" if guesser(box) else None


def mount_volume(box, options):
    """A small volume of its own for the database, which nobody outside of this drill sees."""
    folder, database = box.path("app/data"), box.database
    box.require(os.environ.get(OWN_MOUNTS), "mounts of its own: use drill.py run")
    os.mkdir(folder)
    done = box.shell("mount -t tmpfs -o %s drill data && mv shipments.db data/" % options)
    box.require(done.code == 0 and not os.path.exists(database), "a volume is mounted: " + done.output)
    box.set("METRICS_DB_PATH", "data/shipments.db")
    box.database = box.path("app/data/shipments.db")


def small_volume(box):
    mount_volume(box, "size=2m")


def volume_of_few_files(box):
    mount_volume(box, "size=8m,nr_inodes=24")


def writer_refused(box, words):
    box.wait(lambda: words in box.read("ledger.errors"), "a row is refused", 10)
    return box.read("ledger.errors").splitlines()[-1]


def fill_volume(box):
    done = box.shell("dd if=/dev/zero of=data/core.1234 bs=4096 status=none")
    free = os.statvfs(box.path("app/data")).f_bavail
    box.require(done.code and not free, "the volume is full")
    return "%d blocks are free: %s" % (free, writer_refused(box, "database or disk is full"))


def use_up_inodes(box):
    box.shell("for number in {1..40}; do : > data/session.$number || break; done")
    status = os.statvfs(box.path("app/data"))
    box.require(status.f_ffree == 0 and status.f_bavail, "no inode is free, and room is")
    refused = writer_refused(box, "unable to open database file")
    return "%d inodes and %d blocks are free: %s" % (status.f_ffree, status.f_bavail, refused)


def turn_readonly(box):
    box.stop_writer()
    done = box.shell("mount -o remount,bind,ro data")
    box.require(os.statvfs(box.path("app/data")).f_flag & os.ST_RDONLY, "the volume is read-only: " + done.output)
    with open(box.path("ledger.errors"), "ab") as errors:
        box.writing = box.spawn(box.python3, box.path("bin/writer.py"), box.database, box.ledger, "0.02", output=errors)
    return "the volume has the flag ST_RDONLY: %s" % writer_refused(box, "readonly database")


def restart_writer(box):
    box.stop_writer()
    box.start_writer()


def volume_fault(box):
    """What is wrong with the database's volume, None where it can be written."""
    status = os.statvfs(box.path("app/data"))
    if status.f_flag & os.ST_RDONLY:
        return "the volume is read-only"
    if not os.path.exists(box.database):
        return "the database is gone"
    return None if status.f_bavail and status.f_ffree else "the volume has no room"


READ_ON = (stays("/livez", 200), stays("/metrics", 200), stays("/readyz", 200), same_instance(), never(" ERROR "))
RESTART_TRAP = Trap("restart the service", "./restart_service.sh", "it reads; it is the writer that may not write")
JOURNAL_TRAP = Trap("delete the journal to make room", "rm -f data/shipments.db-journal",
                    "it makes next to no room, and would have undone a half-done change")


def forbid_growth(box):
    """The writer starts in a shell with `ulimit -f`: too little for a journal, so that no transaction even begins."""
    box.stop_writer()
    with open(box.path("ledger.errors"), "ab") as errors:
        box.writing = box.spawn(box.python3, box.path("bin/writer.py"), box.database, box.ledger, "0.2", output=errors)
    before = box.limit(box.writing, resource.RLIMIT_FSIZE, TOO_LITTLE)
    refused = writer_refused(box, "disk I/O error")
    return "the writer may write files of %d bytes, %d before: %s" % (TOO_LITTLE, before[0], refused)


def allow_growth(box):
    box.limit(box.writing, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)


def still_limited(box):
    alive = box.writing and box.writing.poll() is None
    limited = alive and resource.prlimit(box.writing.pid, resource.RLIMIT_FSIZE)[0] == TOO_LITTLE
    return "the writer may still not write" if limited else None


OLD_LINES = "".join("2026-01-01T00:%02d:%02d.000Z INFO request method=GET route=/metrics status=200 bytes=10303 "
                    "client=192.0.2.7\n"
                    % (number // 60 % 60, number % 60) for number in range(8000))


def long_log(box):
    box.write(box.log_file, OLD_LINES)
    box.set("METRICS_ACCESS_LOG", "on")     # a service with nothing to tell would not meet the limit


def no_room_for_lines(box):
    size = os.path.getsize(box.log_file)
    before = box.limit(box.pid(), resource.RLIMIT_FSIZE, size)
    return "the service may write files of %d bytes, %d before, and its log has %d" % (size, before[0], size)


def lines_lost(box):
    """Why the log is not what it should be, None where no line of before is lost and it goes to its file."""
    kept = any(OLD_LINES[:1000] in box.read("app/" + name) for name in os.listdir(box.app) if name.startswith("metrics.log"))
    if not kept:
        return "the lines of before are gone"
    return None if box.setting("METRICS_LOG_FILE") == "metrics.log" else "METRICS_LOG_FILE is gone from metrics.env"


SCENARIOS = (
    Scenario(
        id="D10", name="log-denied", title="The log file cannot be written: its mode", layer="log", level=1, set="ci",
        needs="user",
        founding="2-log-file-not-writable.md",
        page="The log of this morning's rotation is empty, says the colleague who looked for a line in it.",
        goal="Lines go to the log file again, without an interruption.",
        inject=rotate_badly,
        expected=(
            check("log denied", 0),
            log("WARNING log_fallback reason=denied target=stdout"),
            http("/readyz", 200, '"reason": "denied"'),
        ),
        quiet=LOG_QUIET,
        deadline=8,
        mitigation=(
            cure("denied", "chmod u+w FILE", FILE=lambda box: box.log_file),
        ),
        traps=(
            Trap("restart the service", "./restart_service.sh", "the new one meets the same file and falls back as the old one "
                                                                "did"),
            Trap("chmod 777", "chmod 777 metrics.log", "lines are written again, by and from everybody on this host: the next "
                 "intruder edits what tells of him", settle=8),
        ),
        hints=LOG_HINTS + ("chmod u+w metrics.log (its owner is right); the next line or request after 5 s writes to it. No "
                           "restart.",),
        prevention="the rotation creates the file with the service's owner and mode: deploy/logrotate has it",
        proofs=("H", "L", "Q"), cause="log-mode", anchor="denied",
        lesson="The least important file must not stop the service; what cannot be logged there is logged elsewhere, and said "
               "once.",
        alerts=("MetricsLogFallback",),
        solved=lambda box: "everybody may write the log file" if os.stat(box.log_file).st_mode & 0o002 else None,
    ),
    Scenario(
        id="D10a", name="log-is-a-folder", title="The log file cannot be written: a folder is in its place", layer="log", level=1,
        set="ci",
        needs="", founding="2-log-file-not-writable.md",
        page="After the move to the new host the dashboards look good, but nobody finds the log.",
        goal="Lines go to the log file again, without an interruption.",
        inject=folder_in_its_place,
        expected=(
            check("log not_a_file", 0),
            log("WARNING log_fallback reason=not_a_file target=stdout"),
            http("/readyz", 200, '"reason": "not_a_file"'),
        ),
        quiet=LOG_QUIET,
        deadline=8,
        mitigation=(
            by_hand("mv the folder aside, as the runbook's not_a_file says: mv metrics.log metrics.log.folder",
                    lambda box: box.shell("mv metrics.log metrics.log.folder")),
        ),
        traps=(
            Trap("restart the service", "./restart_service.sh", "the new one meets the same folder and falls back as the old "
                                                                "one did"),
            Trap("chmod 777", "chmod 777 metrics.log", "a folder takes no lines, whatever its mode"),
        ),
        hints=LOG_HINTS + ("Move the folder aside: mv metrics.log metrics.log.folder; the service makes the file itself. No "
                           "restart.",),
        prevention="create the file before a container mounts it: a mount of a missing file makes a folder",
        proofs=("H", "L", "Q"), cause="log-not-a-file", anchor="not_a_file",
        lesson="The same symptom has several causes; the reason word tells them apart before anybody types chmod.",
        alerts=("MetricsLogFallback",),
    ),
    Scenario(
        id="D10b", name="log-folder-missing", title="The log file cannot be written: its folder is missing", layer="log", level=1,
        set="ci",
        needs="", founding="2-log-file-not-writable.md", prepare=log_in_a_folder,
        page="Somebody made room on the disk. Please see whether all is as it should be.",
        goal="Lines go to the log file again, without an interruption.",
        inject=lose_the_folder,
        expected=(
            check("log missing", 0),
            log("WARNING log_fallback reason=missing target=stdout"),
            http("/readyz", 200, '"reason": "missing"'),
        ),
        quiet=LOG_QUIET,
        deadline=8,
        mitigation=(
            by_hand("mkdir -p its folder, as the runbook's log_fallback says", lambda box: box.shell("mkdir -p log")),
        ),
        traps=(
            Trap("restart the service", "./restart_service.sh", "the new one meets the same lack and falls back as the old one "
                                                                "did"),
            Trap("log to stdout for good", "sed -i /METRICS_LOG_FILE/d metrics.env; ./restart_service.sh",
                 "the check of cron, and whoever looks for the log, still look for the file"),
        ),
        hints=LOG_HINTS + ("mkdir -p the folder of METRICS_LOG_FILE; the service makes the file itself. No restart.",),
        prevention="a folder that a service writes to belongs to its installation, not to whoever makes room",
        proofs=("H", "L", "Q"), cause="log-folder-missing", anchor="log_fallback",
        lesson="What is removed to make room is what somebody else needs; the service waits for it and returns by itself.",
        alerts=("MetricsLogFallback",),
        solved=lambda box: None if box.settings().get("METRICS_LOG_FILE") else "METRICS_LOG_FILE is gone from metrics.env",
    ),
    Scenario(
        id="D11", name="log-disk-full", title="There is no room for the log", layer="log", level=1, set="ci", needs="",
        founding="",
        prepare=long_log, page="The log has not grown since this morning, says the colleague who follows it.",
        goal="Lines go to the log file again, without an interruption.",
        inject=no_room_for_lines,
        expected=(
            check("log disk_full", 0),
            log("WARNING log_fallback reason=disk_full target=stdout"),
            http("/readyz", 200, '"reason": "disk_full"'),
            metric("logistics_log_fallback", 1),
        ),
        quiet=LOG_QUIET,
        deadline=8,
        mitigation=(
            by_hand("make room, as the runbook's disk_full says: rotate the log with mv", lambda box: box.shell("mv metrics.log "
                                                                                                                "metrics.log.2")),
        ),
        traps=(
            Trap("empty the log", ": > metrics.log", "there is room, and nobody can read any more what happened before",
                 settle=8),
            Trap("log to stdout for good", "sed -i /METRICS_LOG_FILE/d metrics.env; ./restart_service.sh reload",
                 "the check of cron, and whoever looks for the log, still look for the file"),
        ),
        hints=LOG_HINTS + ("Make room on that disk, or mv metrics.log away: the service makes a new one within 5 s. No restart.",
                           ),
        prevention="rotate by size and keep the log on another volume than the database: deploy/logrotate",
        proofs=("H", "L", "Q"), cause="log-disk-full", anchor="disk_full",
        lesson="A full disk takes the log first; a service that writes its log or dies of it takes the figures along.",
        alerts=("MetricsLogFallback",),
        solved=lines_lost,
    ),
    Scenario(
        id="D13", name="log-flood", title="Somebody tries passwords as fast as he can", layer="log", level=2, set="hand",
        needs="", founding="",
        prepare=guard,
        page="The service is slow, and its log is full of one thing. Is that an outage?",
        goal="Nobody tries passwords any more; who has a good one was served all the time.",
        inject=guess_passwords,
        expected=(
            log("WARNING login_failed reason=credentials status=429"),
            log("WARNING log_thinned of=login_failed left_out="),
        ),
        quiet=(stays("/livez", 200), same_instance(), never(" ERROR "), never("Traceback")),
        deadline=25,
        mitigation=(
            by_hand("keep that client from the port, as the runbook's login_failed says: here its owner ends it", end_guesser),
        ),
        traps=(
            Trap("turn the passwords off", "sed -i /METRICS_AUTH_FILE/d metrics.env; ./restart_service.sh reload",
                 "it is quiet now, and he reads what he wanted to read"),
            Trap("restart the service", "./restart_service.sh",
                 "it forgets who was let in before: the check has to be tried anew, among all the guesses, and is refused with "
                 "429"),
            Trap("delete the log", "rm metrics.log", "it was thinned anyway; what is gone is who did it, and from where"),
        ),
        hints=(
            "tail -n 20 metrics.log; the runbook's block requests and clients",
            "login_failed by the hundred, and log_thinned: one address tries passwords. Whoever was let in before is served.",
            "Keep that client from the port (here: end guesser.py); no restart, which would make the check wait as well",
        ),
        prevention="METRICS_HOST and a firewall; wrong passwords are limited by address and in all, and floods of lines are "
                   "thinned",
        proofs=("H", "L", "Q"), cause="password-guessing", anchor="login_failed",
        lesson="A flood in the log is a symptom; silencing the log, or the password, silences the only witness.",
        alerts=("MetricsCheckFailing",), solved=guessing,
    ),
    Scenario(
        id="D14", name="disk-full", title="The database's volume is full", layer="filesystem", level=2, set="priv",
        needs="mounts", founding="",
        prepare=small_volume, watch=("--max-age", "4"),
        page="The dashboard is green, and no parcel has moved since lunch.",
        goal="New shipments arrive again, and none of those that were confirmed is missing.",
        inject=fill_volume,
        expected=(
            check("fresh frozen: .*has the writer stopped"),
            Signal("the writer says why", lambda box: found("database or disk is full", box.read("ledger.errors"))),
            tells('df -h "$METRICS_DB_PATH"', 0, " 100% "),
        ),
        quiet=READ_ON,
        deadline=15,
        mitigation=(by_hand("remove what does not belong there, as the runbook's disk_full says: data/core.1234",
                            lambda box: box.shell("rm data/core.1234")),),
        traps=(RESTART_TRAP, JOURNAL_TRAP),
        hints=(
            "The service is well and reads what is there. What does the writer say (the file ledger.errors, beside app), and df "
            "-h data",
            "database or disk is full: reading needs no room, writing does. Something else has filled the volume.",
            "Remove data/core.1234, which is no file of ours; the writer goes on by itself",
        ),
        prevention="an alert on free space and on freshness; nothing else on the volume of a database",
        proofs=("L", "F", "Q", "V"), cause="disk-full", anchor="frozen",
        lesson="A full disk stops writers and leaves readers green; the journal is the last thing to delete.",
        alerts=("MetricsShipmentsFrozen",), solved=volume_fault,
    ),
    Scenario(
        id="D15", name="disk-full-plain", title="The writer may not write any more", layer="filesystem", level=2, set="hand",
        needs="", founding="",
        watch=("--max-age", "4"),
        page="The dashboard is green, and no parcel has moved since lunch.",
        goal="New shipments arrive again, and none of those that were confirmed is missing.",
        inject=forbid_growth,
        expected=(
            check("fresh frozen: .*has the writer stopped"),
            Signal("the writer says why", lambda box: found("disk I/O error", box.read("ledger.errors"))),
        ),
        quiet=LOG_QUIET,
        deadline=15,
        mitigation=(
            by_hand("raise the writer's file-size limit, as the runbook's frozen says: what the writer prints, ulimit -f, df, "
                    "df -i", allow_growth),
        ),
        traps=(
            Trap("restart the service", "./restart_service.sh", "it reads; it is the writer that may not write"),
            Trap("write a row by hand, so that the figures move", lambda box: box.sql(
                "INSERT INTO shipments (reference, status) VALUES ('BY-HAND', 'pending')"), "fresh for a moment, and an "
                                                                                            "invented shipment for ever"),
            Trap("delete the journal to make room", "rm -f shipments.db-journal", "it makes no room, and would have undone a "
                                                                                  "half-done change"),
        ),
        hints=(
            "The service is well and reads what is there. What does the writer say? Here: the file ledger.errors, beside app",
            "disk I/O error: its files may not grow beyond a limit. A quota, ulimit -f and a full disk look alike from here.",
            "Raise the limit (prlimit --fsize=unlimited --pid NUMBER of the writer); it goes on by itself",
        ),
        prevention="alert on freshness, and on free space and inodes of the volume; the writer's log belongs to somebody",
        proofs=("L", "F", "Q", "V"), cause="writer-limited", anchor="frozen",
        lesson="Green and still: reads need no room. Freshness is the signal, and the writer's own words are the cause.",
        alerts=("MetricsShipmentsFrozen",), solved=still_limited,
    ),
    Scenario(
        id="D16", name="inodes-gone", title="The database's volume has room, and takes no further file", layer="filesystem",
        level=3, set="priv",
        needs="mounts", founding="", prepare=volume_of_few_files, watch=("--max-age", "4"),
        page="The dashboard is green, and no parcel has moved since lunch. There is room enough, says df.",
        goal="New shipments arrive again, and none of those that were confirmed is missing.",
        inject=use_up_inodes,
        expected=(
            check("fresh frozen: .*has the writer stopped"),
            Signal("the writer says why", lambda box: found("unable to open database file", box.read("ledger.errors"))),
            tells('df -i "$METRICS_DB_PATH"', 0, " 100% "),
        ),
        quiet=READ_ON,
        deadline=15,
        mitigation=(by_hand("remove files that do not belong there, as the runbook's frozen says: df -i, then data/session.*",
                            lambda box: box.shell("rm data/session.*")),),
        traps=(RESTART_TRAP, Trap("look at the free bytes", "df -h data", "there are enough of them; what is missing is a "
                                                                          "number for a new file")),
        hints=(
            "What does the writer say (the file ledger.errors, beside app)? Then df -h data and df -i data",
            "unable to open database file, by a writer that has it open: it is the journal that cannot be made. No inode is "
            "left.",
            "Remove data/session.*; the writer goes on by itself",
        ),
        prevention="an alert on free inodes beside that on free bytes",
        proofs=("L", "F", "Q", "V"), cause="inodes-gone", anchor="frozen",
        lesson="Room has two kinds; whoever looks at bytes alone looks for a missing database.",
        alerts=("MetricsShipmentsFrozen",), solved=volume_fault,
    ),
    Scenario(
        id="D17", name="readonly-volume", title="The database's volume is mounted read-only", layer="filesystem", level=2,
        set="priv",
        needs="mounts", founding="", prepare=small_volume, watch=("--max-age", "4"),
        page="The dashboard is green, and no parcel has moved since the storage was serviced.",
        goal="New shipments arrive again, and none of those that were confirmed is missing.",
        inject=turn_readonly,
        expected=(
            check("fresh frozen: .*has the writer stopped"),
            Signal("the writer says why", lambda box: found("readonly database", box.read("ledger.errors"))),
            tells("python3 -c 'import os, sys; print(\"read-only volume:\", bool(os.statvfs(sys.argv[1]).f_flag & "
                  "os.ST_RDONLY))' "
                  '"$METRICS_DB_PATH"', 0, "read-only volume: True"),
        ),
        quiet=READ_ON,
        deadline=15,
        mitigation=(by_hand("mount it read-write, as the runbook's readonly says, after a look at the kernel log",
                            lambda box: box.shell("mount -o remount,bind,rw data")),
                    by_hand("start the writer anew, as the runbook's readonly says: it connected when the volume was read-only",
                            restart_writer)),
        traps=(RESTART_TRAP, Trap("give everybody write permission", "chmod 777 data data/shipments.db", "no mode counts on a "
                                                                                                         "volume that is "
                                                                                                         "read-only")),
        hints=(
            "What does the writer say (the file ledger.errors, beside app)? Then the first command of the runbook's entry "
            "readonly",
            "attempt to write a readonly database: the mode is right, the volume is mounted read-only.",
            "mount -o remount,bind,rw data, after reading why it turned; then start the writer anew",
        ),
        prevention="an alert on the flag of the mount; a volume that turned read-only has reported disk errors before",
        proofs=("L", "F", "Q", "V"), cause="readonly-volume", anchor="readonly",
        lesson="Four causes share that message; modes are the first that people change and the last that it is.",
        alerts=("MetricsShipmentsFrozen",), solved=volume_fault,
    ),
)
