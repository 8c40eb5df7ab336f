"""Drills of time and of the rows themselves."""

import signal
import time

import supervision
from drills.database import FRESH, NIGHTLY, RESTART, backup, keep_a_backup, restore_alone
from drills.scenario import Scenario, Trap, by_hand, check, cure, http, log, metric, never, said, same_instance, stays, tells

MAPPING = "SELECT ref AS reference, state AS status, carrier AS carrier, weight AS weight_kg FROM csv\n"
STRICT = """
SELECT ref AS reference, state AS status, number(weight) AS weight_kg, parse_date(day, '%Y-%m-%d') AS delivered_at FROM csv
"""
LOOSE = """
SELECT ref AS reference, 'delivered' AS status, CAST(weight AS REAL) AS weight_kg, NULL AS delivered_at FROM csv
"""
GOOD = ["NIGHT-%03d,delivered,%d.5,2026-11-%02d" % (number, number, 1 + number % 28) for number in range(1, 41)]
BAD = {3: "NIGHT-003,delivered,\"3,5\",2026-11-04", 9: "NIGHT-009,delivered,9.5,31/12/2026",
       17: "NIGHT-017,Delivered!,17.5,2026-11-18", 30: "NIGHT-030,delivered,30 kg,2026-11-03"}
ZONED = """
SELECT ref AS reference, 'delivered' AS status, parse_date(at || ' +0900', '%Y-%m-%d %H:%M:%S %z') AS delivered_at FROM csv
"""
STAMPED = "INSERT INTO shipments (reference, status, delivered_at, updated_at) VALUES (?, 'delivered', ?, ?)"
RIGHT_TIME = """
SELECT count(*) FROM shipments WHERE reference = ? AND delivered_at = strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-9 hours')
"""
IMPORT = 'python3 seed.py "$METRICS_DB_PATH" --csv FILE.csv --mapping FILE.sql'
BY_HAND = """python3 -c 'import sqlite3, sys
print(sqlite3.connect(sys.argv[1], timeout=9, isolation_level=None).execute(sys.argv[2]).rowcount)' """


def by_sql(statement):
    """A shell command that changes rows by hand."""
    return BY_HAND + '"$METRICS_DB_PATH" "%s"' % statement


def count(box, condition):
    return box.sql("SELECT count(*) FROM shipments WHERE " + condition)[0][0]


def write_csv(box, name, lines, mapping):
    box.write("app/%s.csv" % name, "\n".join(lines) + "\n")
    box.write("app/%s.sql" % name, mapping)


# The feed

def freeze_the_writer(box):
    """Stops the feed between two transactions: in the middle of one it would hold a lock, which is another drill."""
    def stands():
        box.signal(box.writing, signal.SIGSTOP)
        box.wait(lambda: supervision.process_stat(box.writing.pid).state == "T", "the feed to stand still")
        if box.writing.pid not in supervision.file_holders(box.database):
            return True
        box.signal(box.writing, signal.SIGCONT)
        return False
    box.wait(stands, "the feed to stand still without a lock")
    return "pid %d, the feed, is in state T and holds no lock" % box.writing.pid


def frozen_pid(box):
    return box.writing.pid


def freeze_behind_a_future_row(box):
    proof = freeze_the_writer(box)
    box.sql("UPDATE shipments SET updated_at = '2099-01-01T00:00:00Z' WHERE reference = 'SHP-00000003'")
    box.require(count(box, "updated_at > '2098'") == 1, "a row is dated 2099")
    return proof + ", and SHP-00000003 says that it changed in 2099"


def wake_and_delete(box):
    box.signal(box.writing, signal.SIGCONT)
    box.sql("DELETE FROM shipments WHERE updated_at > '2098'")


def future_fault(box):
    return None if count(box, "reference = 'SHP-00000003'") == 1 else "SHP-00000003 is gone"


def mend_the_future_row(box):
    write_csv(box, "again", ["ref,state"] + ["%s,%s" % box.sql("SELECT reference, status FROM shipments WHERE id = 3")[0]],
              "SELECT ref AS reference, state AS status FROM csv\n")


def local(hours_ago):
    """What a clock in Tokyo showed so many hours ago."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + 9 * 3600 - hours_ago * 3600))


def stamp_in_local_time(box):
    box.tokyo = [("TYO-%03d" % number, local(number % 5)) for number in range(20)]
    for reference, at in box.tokyo:
        stamp = at.replace(" ", "T") + "Z"
        box.sql(STAMPED, reference, stamp, stamp)
    ahead = count(box, "updated_at > strftime('%Y-%m-%dT%H:%M:%SZ', 'now')")
    box.require(ahead == 20, "20 rows are dated in the future")
    return "20 rows of TYO-* say that they changed up to nine hours from now"


def write_the_batch_in_utc(box):
    write_csv(box, "tokyo", ["ref,at"] + ["%s,%s" % pair for pair in box.tokyo], ZONED)


def zone_fault(box):
    wrong = [reference for reference, at in box.tokyo
             if box.sql(RIGHT_TIME, reference, at) != [(1,)]]
    return "%d deliveries are not at the time when they were: %s" % (len(wrong), wrong[0]) if wrong else None


# Loads

def import_a_test_file(box):
    rows = ["IMP-%05d,pending,Load Test Ltd,1" % number for number in range(1, 1201)]
    write_csv(box, "load", ["ref,state,carrier,weight"] + rows, MAPPING)
    before = count(box, "1")
    done = box.shell("python3 seed.py shipments.db --csv load.csv --mapping load.sql")
    box.require(done.code == 0 and count(box, "reference GLOB 'IMP-*'") == 1200, "the file was imported")
    return "%d shipments became %d" % (before, count(box, "1"))


def import_another_spelling(box):
    rows = box.sql("SELECT reference, status FROM shipments WHERE reference GLOB 'SHP-*' ORDER BY id DESC LIMIT 700")
    write_csv(box, "export", ["ref,state,carrier,weight"] + ["%s,%s,,1" % (reference.lower().replace("-", " "), state)
                                                             for reference, state in rows], MAPPING)
    box.shell("python3 seed.py shipments.db --csv export.csv --mapping export.sql")
    done = box.shell("python3 seed.py shipments.db --csv export.csv --mapping export.sql --accept-similar")
    box.require(done.code == 0 and count(box, "reference GLOB 'shp *'") == 700, "the file was imported")
    return "700 shipments are there twice, as SHP-... and as shp ..."


def minute(pattern):
    """A function of the box: the minute in which the rows came that the runbook's second command shows."""
    def find(box):
        return box.sql("SELECT max(substr(updated_at, 1, 16)) FROM shipments WHERE reference GLOB ?", pattern)[0][0]
    return find


def import_bad_rows(box):
    box.stop_writer()
    lines = [BAD.get(number, line) for number, line in enumerate(GOOD, 1)]
    write_csv(box, "night", ["ref,state,weight,day"] + lines, STRICT)
    done = box.shell("python3 seed.py shipments.db --csv night.csv --mapping night.sql")
    box.require(done.code == 1 and count(box, "reference GLOB 'NIGHT-*'") == 0, "the import was refused")
    return "night.csv has 40 rows, 4 of them bad, and none of them was imported"


def correct_at_the_source(box):
    write_csv(box, "night", ["ref,state,weight,day"] + GOOD, STRICT)


def import_fault(box):
    found = box.sql("SELECT count(*), sum(weight_kg), count(delivered_at) FROM shipments WHERE reference GLOB 'NIGHT-*'")[0]
    wanted = (40, sum(number + .5 for number in range(1, 41)), 40)
    return None if found == wanted else "of night.csv there are %s rows of %s kg with %s dates, not %d, %g, %d" % (found + wanted)


def resume_the_feed(box):
    box.start_writer()


# Single rows

def delete_closed_rows(box):
    gone = count(box, "carrier = 'Bluebird Post' AND status = 'delivered'")
    box.sql("DELETE FROM shipments WHERE carrier = 'Bluebird Post' AND status = 'delivered'")
    box.require(gone > 100 and not count(box, "carrier = 'Bluebird Post' AND status = 'delivered'"), "rows are gone")
    return "%d delivered shipments of Bluebird Post are gone" % gone


def spoil_a_text(box):
    box.truth = box.sql("SELECT carrier FROM shipments WHERE id = 7")[0][0]
    box.sql("UPDATE shipments SET carrier = CAST(x'426c7565fffe' AS TEXT) WHERE id = 7")
    box.require(box.sql("SELECT hex(carrier) FROM shipments WHERE id = 7") == [("426C7565FFFE",)], "the bytes are there")
    return "the carrier of shipment 7 is 42 6C 75 65 FF FE, which is no UTF-8"


def text_fault(box):
    found = box.sql("SELECT CAST(carrier AS BLOB) FROM shipments WHERE id = 7")
    return None if found == [(box.truth.encode(),)] else "the carrier of shipment 7 is %r" % found


def spoil_a_reference(box):
    box.sql("UPDATE shipments SET reference = CAST(x'5348502dfffe' AS TEXT) WHERE id = 7")
    box.require(box.sql("SELECT hex(reference) FROM shipments WHERE id = 7") == [("5348502DFFFE",)], "the bytes are there")
    return "the reference of shipment 7 is SHP- with FF FE behind it, which is no UTF-8"


def write_the_reference_right(box):
    box.sql("UPDATE shipments SET reference = 'SHP-00000007' WHERE id = 7")


def reference_fault(box):
    found = box.sql("SELECT CAST(reference AS BLOB) FROM shipments WHERE id = 7")
    return None if found == [(b"SHP-00000007",)] else "the reference of shipment 7 is %r" % found


CALM = (stays("/livez", 200), same_instance(), never("Traceback"))
ANSWERING = CALM + (stays("/metrics", 200), stays("/readyz", 200))
TAKE_BACK = """python3 migrate.py "$METRICS_DB_PATH" backup
python3 -c 'import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=10)
gone = db.execute("DELETE FROM shipments WHERE substr(updated_at, 1, 16) = ? AND reference GLOB ?", sys.argv[2:])
print(gone.rowcount, "taken back")
db.commit()' "$METRICS_DB_PATH" MINUTE 'BEGINNING*'
python3 seed.py "$METRICS_DB_PATH" --verify"""

SCENARIOS = (
    Scenario(
        id="D43", name="frozen", title="The program that writes the shipments stands still",
        layer="data", level=1, set="ci", needs="", founding="", watch=FRESH,
        page="Nobody complains. The dashboard is green. The number of open shipments has been the same for a while.",
        goal="New rows arrive again; none of those that were acknowledged is missing.",
        inject=freeze_the_writer,
        expected=(
            check("fresh frozen: the newest change is .* has the writer stopped"),
        ),
        quiet=ANSWERING,
        deadline=12,
        mitigation=(
            cure("frozen", "kill -CONT NUMBER", NUMBER=frozen_pid),
        ),
        traps=(
            Trap("restart the service", RESTART, "it reads what is there, and nobody writes"),
            Trap("touch the file", 'touch "$METRICS_DB_PATH"', "the age is that of the newest row, not of the file"),
            Trap("write a row by hand, to see whether it works",
                 by_sql("INSERT INTO shipments (reference, status) VALUES ('TEST-1', 'pending')"),
                 "the alarm is quiet for a moment, there is a shipment that does not exist, and nobody writes"),
        ),
        hints=(
            "See who has the database open, and in which state: the second command of the runbook's frozen.",
            "The feed's process is there in state T: somebody stopped it, by Ctrl-Z or SIGSTOP. The service has nothing "
            "to do with it.",
            "kill -CONT NUMBER. It goes on where it was.",
        ),
        prevention="the check with --max-age, as cron runs it here: without it all this is green",
        proofs=("F", "L", "Q", "V"), cause="writer-stopped", anchor="frozen",
        lesson="Everything is green and nothing moves. The age of the newest change is the one sign.",
        alerts=("MetricsShipmentsFrozen", "MetricsDeliveriesStopped"),
    ),
    Scenario(
        id="D47", name="spike", title="A test file of many times the usual volume was imported",
        layer="data", level=1, set="ci", needs="", founding="",
        page="The number of open shipments has nearly doubled since lunch, and sales wants to know why.",
        goal="The figures are those of real shipments again, all of them.",
        inject=import_a_test_file,
        prepare=keep_a_backup,
        expected=(
            check(r"database shipments_jumped: \d+ shipments became \d+", 0),
            log("WARNING shipments_jumped .*before=\\d+ after=\\d+"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("shipments_jumped", TAKE_BACK, MINUTE=minute("IMP-*"), BEGINNING="IMP-"),
        ),
        traps=(
            Trap("put the backup of before in its place", restore_alone, "what the feed has written since is gone with it"),
            Trap("take back all that came in that minute",
                 by_sql("DELETE FROM shipments WHERE updated_at > strftime('%Y-%m-%dT%H:%M:00Z', 'now', '-2 minutes')"),
                 "the feed wrote in that minute too"),
        ),
        hints=(
            "Look which minute and which references stand out: the second command of the runbook's shipments_jumped.",
            "1200 rows of one carrier came in one minute, all with references of their own kind: IMP-...",
            "Take them back by minute and beginning, after a backup: the block of the runbook's shipments_jumped.",
        ),
        prevention="a reference scheme that tells test from real; imports rehearsed on a copy",
        proofs=("F", "L", "Q", "V", "C"), cause="unwanted-import", anchor="shipments_jumped",
        lesson="An import that should not have been is taken back by its own rows, never by turning back the clock for all.",
        alerts=(),
    ),
    Scenario(
        id="D48", name="duplicate-import", title="An export came in again with its references in another spelling",
        layer="data", level=2, set="hand", needs="", founding="", prepare=keep_a_backup,
        page="Totals are too high since somebody got an import through that was refused at first.",
        goal="Each shipment is there once.",
        inject=import_another_spelling,
        expected=(
            said(1,
                 "nothing was imported: 700 of 700 new references differ from stored ones in case, blanks or "
                 "punctuation alone"),
            check(r"database shipments_jumped: \d+ shipments became \d+", 0),
            log("WARNING shipments_jumped"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("shipments_jumped", TAKE_BACK, MINUTE=minute("shp *"), BEGINNING="shp "),
        ),
        traps=(
            Trap("delete what looks double, the older one",
                 by_sql("DELETE FROM shipments WHERE reference GLOB 'SHP-*' AND EXISTS (SELECT 1 FROM shipments AS "
                        "other WHERE other.reference = replace(lower(shipments.reference), '-', ' '))"),
                 "the older ones have dates, weights and history; those that came have a reference and a status"),
            Trap("put the backup of before in its place", restore_alone, "what the feed has written since is gone with it"),
        ),
        hints=(
            "Look which minute and which references stand out: the second command of the runbook's shipments_jumped.",
            "700 rows came in one minute; their references are those of others in lower case and with a blank: shp 00000700.",
            "Take them back by minute and beginning, after a backup: the block of the runbook's shipments_jumped.",
        ),
        prevention="seed.py refuses such a file; --accept-similar is for who has looked",
        proofs=("F", "L", "Q", "V", "C"), cause="double-import", anchor="shipments_jumped",
        lesson="A unique key is as good as its spelling. A refusal that can be overridden will be, at three in the morning.",
        alerts=(),
    ),
    Scenario(
        id="D49", name="bad-rows", title="The nightly import is refused for four bad rows",
        layer="data", level=2, set="hand", needs="", founding="", watch=FRESH,
        page="The nightly import failed, cron has mailed its lines. Since then the figures are of yesterday.",
        goal="Every row of the file is in the database, with the values that its source means.",
        inject=import_bad_rows,
        expected=(
            said(1, r"nothing was imported; rejected rows: 4"),
            said(1, "line 4: weight_kg: '3,5' is not a number"),
            check("fresh frozen"),
        ),
        quiet=ANSWERING,
        deadline=12,
        mitigation=(
            by_hand("have the four rows corrected at their source", correct_at_the_source),
            cure("frozen", IMPORT, FILE="night"),
            by_hand("the feed goes on", resume_the_feed),
        ),
        traps=(
            Trap("skip what is bad",
                 lambda box: (box.shell("python3 seed.py shipments.db --csv night.csv --mapping night.sql --skip-bad"),
                              resume_the_feed(box)),
                 "36 of 40, a green check, and nobody will ever ask for the four"),
            Trap("teach the mapping to take anything",
                 lambda box: (box.write("app/night.sql", LOOSE),
                              box.shell("python3 seed.py shipments.db --csv night.csv --mapping night.sql"),
                              resume_the_feed(box)),
                 "CAST makes 3 of '3,5' and 30 of '30 kg', and every date is gone: all is imported, and wrong"),
        ),
        hints=(
            "Read what the import said: each line, column and value, and the last line.",
            "Four rows: a decimal comma, a date day first, a status with a mark, a weight with its unit. Nothing was "
            "imported at all.",
            "Have them corrected at their source, or say in the mapping what they mean; import the file again. Not --skip-bad.",
        ),
        prevention="the constraints of schema.sql, and a mapping that guesses nothing",
        proofs=(("F", "reference NOT GLOB 'NIGHT-*'"), "L", "Q", "V", "C"), cause="bad-rows", anchor="frozen",
        lesson="A row that is refused is a question to its source; a row that is skipped is a shipment that nobody will "
               "miss in time.",
        alerts=("MetricsShipmentsFrozen",), solved=import_fault,
    ),
    Scenario(
        id="D53", name="undecodable-row", title="One text of one row is not UTF-8",
        layer="data", level=2, set="ci", needs="", founding="", prepare=keep_a_backup,
        page="No figures since a script with an old code page ran. One carrier, says its author, one row.",
        goal="The figures are back, with that row and every other as its source means it.",
        inject=spoil_a_text,
        expected=(
            check("database encoding: .*is not UTF-8 .*column 'carrier'"),
            log("ERROR database_unavailable reason=encoding"),
            http("/metrics", 503, '"reason": "encoding"'),
            metric('logistics_database_trouble{reason="encoding"}', 1),
        ),
        quiet=CALM,
        deadline=5,
        mitigation=(
            cure("encoding",
                 "python3 -c 'import sqlite3, sys; connection = sqlite3.connect(sys.argv[1])\n"
                 'connection.execute("UPDATE shipments SET carrier = ? WHERE id = ?", sys.argv[2:]); '
                 'connection.commit()\' "$METRICS_DB_PATH" NAME ID',
                 NAME=lambda box: "'%s'" % box.truth, ID=7),
        ),
        traps=(
            Trap("put the backup in its place", restore_alone, "one wrong text became many missing rows"),
            Trap("delete the row", by_sql("DELETE FROM shipments WHERE id = 7"), "a shipment less, for two wrong bytes"),
        ),
        hints=(
            "Find the row: the second command of the runbook's encoding reads texts as bytes.",
            "The carrier of shipment 7 ends in FF FE, which no UTF-8 text can; every figure by carrier would show it.",
            "Correct that one column of that one row: the block of the runbook's encoding.",
        ),
        prevention="seed.py, which names the byte and the line of a file that is not in the encoding given",
        proofs=(("F", "id <> 7"), "L", "Q", "V", "C"), cause="bad-encoding", anchor="encoding",
        lesson="Two bytes can hide all figures. Find them; do not swing a backup at them.",
        alerts=("MetricsDatabaseDown",), solved=text_fault,
    ),
    Scenario(
        id="D53a", name="undecodable-reference", title="A reference is not UTF-8, and no figure shows it",
        layer="data", level=3, set="hand", needs="", founding="",
        page="cron mailed the nightly look at the database. The dashboard is green.",
        goal="The shipment can be found by its reference again.",
        inject=spoil_a_reference,
        expected=(
            tells(NIGHTLY, 1, "shipment 7: its reference is not UTF-8"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("correct that column, as the runbook's encoding says", write_the_reference_right),
        ),
        traps=(
            Trap("let it be: no figure shows it", "true", "the next import of its source makes a second shipment of it"),
            Trap("delete the row", by_sql("DELETE FROM shipments WHERE id = 7"), "its source will not send it again"),
        ),
        hints=(
            "Have every row read: python3 migrate.py shipments.db verify",
            "The reference of shipment 7 is not UTF-8. quick_check and the rollups know nothing of it.",
            "Correct it from its source by its id, as the block of the runbook's encoding does with the carrier.",
        ),
        prevention="deploy/cron/metrics_verify, each night",
        proofs=(("F", "id <> 7"), "L", "Q", "V", "C"), cause="bad-reference", anchor="encoding",
        lesson="What no figure shows is seen by who reads every row, or by nobody.",
        alerts=(), solved=reference_fault,
    ),
    Scenario(
        id="D44", name="future-row", title="The feed stands still behind a row that is dated 2099",
        layer="data", level=3, set="ci", needs="", founding="", watch=FRESH,
        page="The newest change is of 2099, says a report. So all is fresh, says its author.",
        goal="New rows arrive, and the newest change is a real one.",
        inject=freeze_behind_a_future_row,
        expected=(
            check("fresh frozen: the newest change is .* has the writer stopped"),
            metric("logistics_future_changes", 1),
        ),
        quiet=ANSWERING,
        deadline=12,
        mitigation=(
            cure("frozen", "kill -CONT NUMBER", NUMBER=frozen_pid),
            by_hand("get that shipment from its source again", mend_the_future_row),
            cure("future_changes", IMPORT, FILE="again"),
        ),
        traps=(
            Trap("only wake the feed", lambda box: box.signal(box.writing, signal.SIGCONT),
                 "the check still warns: with the row of 2099 every tool that takes the plain maximum is blind for 70 years"),
            Trap("delete the row", wake_and_delete, "the time is wrong, the shipment is not"),
        ),
        hints=(
            "See the age in the check, and the rows that are ahead: the second command of the runbook's future_changes.",
            "Two faults: one row is dated 2099 by a wrong clock, and the feed is in state T. The age counts no future "
            "rows, so it is seen.",
            "kill -CONT NUMBER, then import that shipment again: it is dated anew.",
        ),
        prevention="updated_at by the database's own clock, which is the default of the column",
        proofs=(("F", "id <> 3"), "L", "Q", "V", "C"), cause="future-row", anchor="future_changes",
        lesson="A maximum believes whoever exaggerates most. Freshness is what is true by now.",
        alerts=("MetricsChangesInFuture", "MetricsShipmentsFrozen"), solved=future_fault,
    ),
    Scenario(
        id="D46", name="zone-mistake", title="A feed writes Tokyo's local time as if it were UTC",
        layer="data", level=3, set="ci", needs="", founding="", watch=("--max-age", "3600"),
        page="The depot in Tokyo was connected today. Its deliveries seem to come before they are possible.",
        goal="Those deliveries are at the time when they were, and all others as before.",
        inject=stamp_in_local_time,
        expected=(
            check("fresh future_changes: 20 changes are dated in the future", 0),
            metric("logistics_future_changes", 20),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            by_hand("have the source say its offset in the mapping: +0900", write_the_batch_in_utc),
            cure("future_changes", IMPORT, FILE="tokyo"),
        ),
        traps=(
            Trap("shift all rows by nine hours",
                 by_sql("UPDATE shipments SET updated_at = strftime('%Y-%m-%dT%H:%M:%SZ', updated_at, '-9 hours')"),
                 "those that were right are wrong now, and the deliveries are where they were"),
            Trap("delete that batch", by_sql("DELETE FROM shipments WHERE reference GLOB 'TYO-*'"), "twenty deliveries less"),
        ),
        hints=(
            "See which rows are ahead, and by how much: the second command of the runbook's future_changes; date -u",
            "They are ahead by up to nine hours, all of one source: its clock shows Japan's time, and its program calls "
            "that UTC.",
            "Correct the mapping (%z and +0900) and import the batch again: delivered_at and the stamp are then right.",
        ),
        prevention="times with their offset, by %z in the mapping; an instant without one is taken as UTC",
        proofs=(("F", "reference NOT GLOB 'TYO-*'"), "L", "Q", "V", "C"), cause="zone-mistake", anchor="future_changes",
        lesson="Half the world's mistakes of this kind lie in the past, where nothing is impossible. Those ahead are "
               "the lucky ones.",
        alerts=("MetricsChangesInFuture",), solved=zone_fault,
    ),
    Scenario(
        id="D50", name="rows-deleted", title="Somebody deleted the closed shipments of one carrier by hand",
        layer="data", level=3, set="hand", needs="", founding="", prepare=keep_a_backup,
        page="The punctuality of one carrier looks strange, says a planner. The dashboard is green.",
        goal="Those shipments are back, and none that came since is missing.",
        inject=delete_closed_rows,
        expected=(
            check(r"database shipments_dropped: \d+ shipments became \d+", 0),
            log("WARNING shipments_dropped .*before=\\d+ after=\\d+"),
        ),
        quiet=ANSWERING,
        deadline=8,
        mitigation=(
            cure("shipments_dropped",
                 'python3 seed.py "$METRICS_DB_PATH" --merge BACKUP\npython3 seed.py "$METRICS_DB_PATH" --verify',
                 BACKUP=backup),
        ),
        traps=(
            Trap("put the whole backup in its place", restore_alone, "what the feed has written since is gone with it"),
            Trap("make the rollups anew", 'python3 seed.py "$METRICS_DB_PATH" --rebuild',
                 "they agree with the rows; the rows are gone"),
        ),
        hints=(
            "See what is left of each carrier, and which backups there are: the commands of the runbook's shipments_dropped.",
            "One carrier has no delivered shipments any more. The rollups agree with the rows: no damage, a deletion.",
            "seed.py --merge BACKUP brings back what is missing here, and leaves what is newer here.",
        ),
        prevention="only seed.py writes, by the file's owner; a backup each night",
        proofs=("F", "L", "Q", "V", "C"), cause="rows-deleted", anchor="shipments_dropped",
        lesson="Every check of consistency is content with a deletion. Only who remembers the number before can miss them.",
        alerts=(),
    ),
)
