"""seed.py: what it makes, what survives it, and whether the rollups are what the rows say."""

import bisect
import calendar
import collections
import contextlib
import datetime
import os
import pathlib
import pty
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOW = "2026-03-01T12:00:00Z"
CLOSED = ("delivered", "returned", "cancelled")
STATUSES = CLOSED + ("pending", "pre_transit", "in_transit", "out_for_delivery", "available_for_pickup", "attempted", "exception")
HOUR, DAY = 3600, 86400
BOUNDS = [HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR] + [
    days * DAY for days in (1, 2, 3, 4, 5, 6, 7, 10, 14, 21, 30, 45, 60, 90, 120, 180, 270, 365, 730)] + [2 ** 63 - 1]
ROLLUPS = ("rollup_lane", "rollup_transit", "rollup_due", "rollup_hour", "rollup_exception")


def start(*args, **options):
    return subprocess.Popen([sys.executable, str(ROOT / "seed.py")] + [str(arg) for arg in args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True, **options)


def seed(*args, **options):
    process = start(*args, **options)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@contextlib.contextmanager
def opened(path):
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as db:
        yield db


def ask(path, sql):
    with opened(path) as db:
        return db.execute(sql).fetchall()


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within %s seconds" % seconds
        time.sleep(0.01)


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return process.returncode, out.splitlines(), err.splitlines()


def start_and_hold(path):
    """A run that makes a database and is stopped in the middle; SIGCONT lets it go on."""
    process = start(path, "--rows", 20000)
    draft = path.parent / (path.name + ".new")
    wait_for(lambda: draft.exists() and draft.stat().st_size)
    process.send_signal(signal.SIGSTOP)
    return process


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    """A database of a year of shipments, only to be read."""
    path = tmp_path_factory.mktemp("year") / "shipments.db"
    assert seed(path, "--rows", 20000, "--now", NOW).returncode == 0
    return path


@pytest.fixture
def small(tmp_path):
    """A database of 300 shipments."""
    path = tmp_path / "shipments.db"
    assert seed(path, "--rows", 300, "--now", NOW).returncode == 0
    return path


# What the synthetic shipments are like.

def test_all_ten_statuses_occur_and_the_rollups_are_exact(year):
    assert {status for status, in ask(year, "SELECT status FROM shipments")} == set(STATUSES)
    assert seed(year, "--verify").stdout.startswith("verified 20000 shipments, ")


def test_the_same_seed_and_moment_give_the_same_rows(year, tmp_path):
    seed(tmp_path / "again.db", "--rows", 20000, "--now", NOW)
    seed(tmp_path / "other.db", "--rows", 20000, "--now", NOW, "--random-seed", 2)
    rows, again, other = (ask(path, "SELECT * FROM shipments") for path in (year, tmp_path / "again.db", tmp_path / "other.db"))
    assert rows == again and rows != other


def test_no_time_lies_in_the_future_but_promises(year):
    (earliest, *latest), = ask(
        year, "SELECT min(created_at), max(created_at), max(shipped_at), max(delivered_at), max(updated_at) FROM shipments")
    assert earliest >= "2025-03-01T12:00:00Z" and all("2026-03-01T00:00:00Z" < moment <= NOW for moment in latest)


def test_every_row_passes_the_checks_that_a_load_does_without(year):
    assert ask(year, "PRAGMA integrity_check") == [("ok",)]
    with opened(year) as db:
        db.execute("BEGIN")
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE shipments SET mode = 'mule' WHERE id = 1")
        db.execute("PRAGMA ignore_check_constraints = OFF")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("CHECK constraint failed in shipments",)
        db.execute("ROLLBACK")


def test_a_few_percent_are_late_and_carriers_differ(year):
    rates = {carrier: late / evaluated for carrier, late, evaluated in ask(
        year, "SELECT carrier, sum(late), sum(on_time + late) FROM rollup_lane WHERE carrier <> '' GROUP BY carrier")}
    assert 0.01 < sum(rates.values()) / len(rates) < 0.1
    assert max(rates.values()) > 2 * min(rates.values())


def test_work_peaks_before_the_years_end_and_rests_on_sundays(year):
    months = dict(ask(year, "SELECT substr(created_at, 6, 2), count(*) FROM shipments GROUP BY 1"))
    weekdays = dict(ask(year, "SELECT strftime('%w', created_at), count(*) FROM shipments GROUP BY 1"))
    assert max(months, key=months.get) in ("11", "12") and min(weekdays, key=weekdays.get) == "0"


def test_open_shipments_are_recent_but_for_a_few(year):
    (opened_long_ago,), (all_open,) = (ask(year, "SELECT count(*) FROM shipments WHERE status NOT IN %r %s" % (CLOSED, more))[0]
                                       for more in ("AND created_at < '2025-12-01'", ""))
    assert 10 < opened_long_ago < 100 < all_open < 2000


def test_exceptions_have_reasons_and_some_cells_are_unknown(year):
    assert ask(year, "SELECT count(*) FROM shipments WHERE status = 'exception' AND exception_reason IS NULL") == [(0,)]
    (carrier, weight, promise), = ask(year, "SELECT count(*) - count(carrier), count(*) - count(weight_kg), "
                                            "count(*) - count(promised_at) FROM shipments")
    assert carrier > 10 and weight > 100 and promise > 50


# What a load does to what is there.

def test_a_pipe_gets_no_progress_bar_and_a_terminal_does(tmp_path):
    assert seed(tmp_path / "pipe.db", "--rows", 300).stderr == ""
    master, terminal = pty.openpty()
    subprocess.check_call([sys.executable, str(ROOT / "seed.py"), str(tmp_path / "tty.db"), "--rows", "300"], stderr=terminal,
                          stdout=subprocess.DEVNULL)
    assert b"0 of 300 rows" in os.read(master, 4096)
    os.close(master)
    os.close(terminal)


def test_a_database_with_shipments_is_refused_and_append_adds(small):
    done = seed(small, "--rows", 10)
    assert (done.returncode, done.stderr) == (1, "seed.py: %s holds shipments already; --append adds to them\n" % small)
    assert seed(small, "--rows", 10, "--append").returncode == 0
    assert seed(small, "--verify").stdout.startswith("verified 310 shipments")


def test_an_empty_database_is_filled_in_place(small):
    with opened(small) as db:
        db.execute("DELETE FROM shipments")
    inode = small.stat().st_ino
    assert seed(small, "--rows", 10).returncode == 0
    assert small.stat().st_ino == inode and ask(small, "SELECT count(*) FROM shipments") == [(10,)]


def test_a_new_database_has_exactly_the_schema(small, tmp_path):
    with opened(":memory:") as db:
        db.executescript((ROOT / "schema.sql").read_text(encoding="utf-8"))
        wanted = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
    assert ask(small, "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2") == wanted
    assert ask(small, "PRAGMA user_version") == [(5,)] and ask(small, "PRAGMA journal_mode") == [("delete",)]
    assert ask(small, "PRAGMA integrity_check") == [("ok",)]


def test_of_two_seeds_at_once_one_wins_and_the_other_says_so(tmp_path):
    path = tmp_path / "shipments.db"
    first = start_and_hold(path)
    second = seed(path, "--rows", 20000)
    assert (second.returncode, second.stderr) == (1, "seed.py: another process is building %s right now\n" % path)
    assert stop(first, signal.SIGCONT)[0] == 0
    assert listing(tmp_path) == ["shipments.db"]


def test_a_database_that_came_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "shipments.db"
    process = start_and_hold(path)
    path.write_bytes(b"mine")
    assert stop(process, signal.SIGCONT)[2] == [
        "seed.py: %s was made by another while this one was being built, and stays as it is" % path]
    assert path.read_bytes() == b"mine" and listing(tmp_path) == ["shipments.db"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    process = start(tmp_path / "shipments.db", "--rows", 200000)
    wait_for(lambda: (tmp_path / "shipments.db.new").exists() and (tmp_path / "shipments.db.new").stat().st_size)
    stop(process, signal.SIGKILL)
    assert listing(tmp_path) == ["shipments.db.new"]
    assert seed(tmp_path / "shipments.db", "--rows", 10).returncode == 0
    assert listing(tmp_path) == ["shipments.db"]


def test_a_run_killed_between_its_two_names_costs_nothing(small, tmp_path):
    os.link(str(small), str(small) + ".new")
    assert seed(small, "--verify").stdout.startswith("verified 300 shipments")
    assert listing(tmp_path) == ["shipments.db"]


@pytest.mark.parametrize("now", ["1971-12-31", "9999-01-01", "tomorrow", "2026-02-30"])
def test_a_moment_whose_year_cannot_be_seeded_is_refused_before_anything_is_made(tmp_path, now):
    done = seed(tmp_path / "a.db", "--now", now)
    assert (done.returncode, listing(tmp_path)) == (2, []) and now in done.stderr


@pytest.mark.parametrize("now", ["1972-01-01", "9998-12-31T23:59:59Z"])
def test_the_first_and_the_last_moment_give_whole_rows(tmp_path, now):
    assert seed(tmp_path / "a.db", "--rows", 300, "--now", now).returncode == 0
    assert ask(tmp_path / "a.db", "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_load_leaves_nothing_of_a_new_database_and_the_old_rows_of_another(small, tmp_path, number, code):
    fresh = start(tmp_path / "fresh.db", "--rows", 2000000)
    wait_for(lambda: (tmp_path / "fresh.db.new").exists() and (tmp_path / "fresh.db.new").stat().st_size)
    assert stop(fresh, number) == (code, [], ["seed.py: stopped; %s is as it was" % (tmp_path / "fresh.db")])
    more = start(small, "--rows", 2000000, "--append")
    wait_for((tmp_path / "shipments.db-journal").exists)
    assert stop(more, number)[0] == code
    assert listing(tmp_path) == ["shipments.db"] and seed(small, "--verify").stdout.startswith("verified 300 shipments")


# What cannot work is told in one line.

def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (400 * 1024, 400 * 1024))


@pytest.mark.parametrize("name, options", [("fresh.db", ()), ("shipments.db", ("--append",))])
def test_a_full_disk_loses_nothing(small, tmp_path, name, options):
    done = seed(tmp_path / name, "--rows", 5000, *options, preexec_fn=limit_file_size)
    assert done.returncode == 1 and done.stderr.startswith("seed.py: %s: " % (tmp_path / name)) and done.stderr.count("\n") == 1
    assert listing(tmp_path) == ["shipments.db"] and seed(small, "--verify").stdout.startswith("verified 300 shipments")


@pytest.mark.parametrize("mode", [(), ("--verify",), ("--rebuild",), ("--live",)])
def test_what_is_no_shipments_database_is_refused_unchanged(tmp_path, mode):
    (tmp_path / "text.db").write_text("not a database, though long enough to be taken for one. " * 20)
    with opened(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE trains (id)")
    for name, words in (("text.db", "it is no SQLite file"), ("other.db", "has no table shipments"), ("", "is not a file")):
        before = (tmp_path / name).read_bytes() if name else None
        done = seed(tmp_path / name, *mode)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
        assert not name or (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("mode", ["--verify", "--rebuild", "--live"])
def test_a_missing_database_is_not_made_by_what_needs_one(tmp_path, mode):
    done = seed(tmp_path / "none.db", mode)
    assert (done.returncode, listing(tmp_path)) == (1, [])
    assert done.stderr == "seed.py: {0} does not exist: 'seed.py {0}' makes one\n".format(tmp_path / "none.db")


def test_another_schema_version_is_refused_with_both_versions(small):
    with opened(small) as db:
        db.execute("PRAGMA user_version = 7")
    assert seed(small, "--append").stderr == (
        "seed.py: %s has schema version 7, this seed.py writes version 5: use the release that made it\n" % small)


def test_a_missing_rollup_is_refused_by_name(small):
    with opened(small) as db:
        db.execute("DROP TABLE rollup_due")
    assert "has no rollup_due, which schema.sql demands" in seed(small, "--verify").stderr


def test_a_locked_database_is_told_as_locked(small):
    with opened(small) as db:
        db.execute("BEGIN EXCLUSIVE")
        process = start(small, "--live")
        assert process.wait(timeout=30) == 1
        assert "another process holds its lock; try again" in process.communicate()[1]


@pytest.mark.parametrize("arguments", [
    (), ("--rows", "0"), ("--rows", "10000001"), ("--row", "5"), ("--now", "soon"), ("--csv", "file"), ("--live", "--verify"),
    ("--rate", "0"), ("--delimiter", "ab"), ("--table", "x")])
def test_wrong_usage_exits_2_and_makes_nothing(tmp_path, arguments):
    assert seed(*(arguments and ("x.db",) + arguments), cwd=str(tmp_path)).returncode == 2
    assert listing(tmp_path) == []


# The live simulation.

@contextlib.contextmanager
def living(path, *options):
    process = start(path, "--live", "--rate", 200, *options)
    try:
        process.first = process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def changed_rows(path):
    return ask(path, "SELECT count(*) FROM shipments WHERE updated_at > '%s'" % NOW)[0][0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_live_changes_shipments_until_it_is_stopped(small, number):
    with living(small) as process:
        assert process.first == "changing shipments in %s, 200 a second; Ctrl-C ends it\n" % small
        wait_for(lambda: changed_rows(small) > 30)
        code, out, err = stop(process, number)
    assert (code, err, len(out)) == (0, [], 1) and out[0].startswith("made ")
    assert seed(small, "--verify").returncode == 0


def test_live_moves_shipments_on_and_uses_the_real_clock(small):
    with living(small):
        for event in ("delivered_at > '%s'" % NOW, "status = 'exception' AND updated_at > '%s'" % NOW):
            wait_for(lambda: ask(small, "SELECT count(*) > 0 FROM shipments WHERE " + event) == [(1,)])
    (newest,), = ask(small, "SELECT max(updated_at) FROM shipments")
    assert abs(time.time() - calendar.timegm(time.strptime(newest, "%Y-%m-%dT%H:%M:%SZ"))) < 30


def test_live_makes_shipments_where_none_is_open(small):
    with opened(small) as db:
        db.execute("UPDATE shipments SET status = 'cancelled', reference = 'X' || id")
    with living(small):
        wait_for(lambda: ask(small, "SELECT count(*) > 5 FROM shipments WHERE reference LIKE 'SHP-%'") == [(1,)])
    assert ask(small, "SELECT min(reference) FROM shipments WHERE reference LIKE 'SHP-%'") == [("SHP-00000001",)]


def test_live_waits_for_a_lock_with_one_line_and_goes_on(small):
    with living(small) as process:
        wait_for(lambda: changed_rows(small) > 0)
        with opened(small) as db:
            db.execute("BEGIN IMMEDIATE")
            assert process.stderr.readline() == "seed.py: %s is locked by another process; trying again\n" % small
            db.execute("COMMIT")
            before = changed_rows(small)
        wait_for(lambda: changed_rows(small) > before)
        assert stop(process)[2] == []


def test_live_ends_when_its_database_has_vanished(small, tmp_path):
    with living(small) as process:
        small.rename(tmp_path / "moved.db")
        assert process.wait(timeout=10) == 1
        assert process.stderr.read() == "seed.py: %s has vanished: start again once it is back\n" % small
    assert not small.exists()


def test_live_goes_on_after_it_was_stopped_and_continued(small):
    def state():
        return pathlib.Path("/proc/%d/stat" % process.pid).read_text().rpartition(")")[2].split()[0]

    with living(small, "--rate", 50) as process:
        for _ in range(5):      # wherever in its wait it is met
            changed = os.stat(str(small)).st_mtime_ns
            wait_for(lambda: os.stat(str(small)).st_mtime_ns > changed)
            process.send_signal(signal.SIGSTOP)
            wait_for(lambda: state() == "T")
            time.sleep(0.05)    # beyond the end of a wait of 0.02 s
            process.send_signal(signal.SIGCONT)
        assert process.poll() is None


def test_live_ends_when_its_database_is_replaced(small, tmp_path):
    (tmp_path / "other.db").write_bytes(b"another")
    with living(small) as process:
        os.replace(str(tmp_path / "other.db"), str(small))
        assert process.wait(timeout=10) == 1
        assert "has been replaced by another file" in process.stderr.read()
    assert small.read_bytes() == b"another"


# The rollups against the rows.

def test_replace_drifts_and_verify_finds_what_rebuild_mends(small):
    with opened(small) as db:
        reference, status = db.execute("SELECT reference, status FROM shipments WHERE carrier IS NOT NULL").fetchone()
        db.execute("INSERT OR REPLACE INTO shipments (reference, status) VALUES (?, ?)", (reference, status))
    done = seed(small, "--verify")
    assert done.returncode == 1 and "rollup_lane carrier='" in done.stdout
    assert "'seed.py %s --rebuild' mends them" % small in done.stderr
    assert seed(small, "--rebuild").stdout.startswith("rebuilt from 300 shipments")
    assert seed(small, "--verify").returncode == 0


def test_verify_tells_every_kind_of_difference_up_to_its_limit(small):
    with opened(small) as db:
        db.execute("UPDATE rollup_lane SET shipments = shipments + 1 WHERE carrier = 'Iron Line' AND status = 'delivered'")
        db.execute("INSERT INTO rollup_exception VALUES ('made up', 3)")
        db.execute("INSERT INTO departed (status) VALUES ('pending')")
        db.execute("DELETE FROM rollup_hour")
    lines = seed(small, "--verify", "--limit-reports", 1000).stdout.splitlines()
    assert "rollup_exception reason='made up': stored shipments=3, recomputed nothing" in lines
    assert "departed: stored 1 rows, recomputed none" in lines
    assert any(line.startswith("rollup_lane carrier='Iron Line', mode='rail', status='delivered': stored ") for line in lines)
    assert any("rollup_hour hour=" in line and "stored nothing, recomputed created=" in line for line in lines)
    assert seed(small, "--verify", "--limit-reports", 3).stdout.splitlines()[3] == "and %d more differences" % (len(lines) - 3)


def seconds_between(start, end):
    """From start to end; by calendar days if either is a date."""
    if start is None or end is None:
        return None
    if len(start) == 10 or len(end) == 10:
        start, end = start[:10], end[:10]
    form = "%Y-%m-%d" if len(start) == 10 else "%Y-%m-%dT%H:%M:%SZ"
    return int((datetime.datetime.strptime(end, form) - datetime.datetime.strptime(start, form)).total_seconds())


def add_to(totals, key, *numbers):
    totals[key] = tuple(map(sum, zip(totals.get(key, (0,) * len(numbers)), numbers)))


def add_delivered(model, row, lane):
    """The figures of a delivered shipment: on time, late, late seconds, transits, transit seconds, negative."""
    lateness = seconds_between(row["promised_at"], row["delivered_at"])
    transit = seconds_between(row["shipped_at"] or row["created_at"], row["delivered_at"])
    on_time, late = (int(lateness is not None and fits) for fits in ((lateness or 0) <= 0, (lateness or 0) > 0))
    measured = transit is not None and transit >= 0
    if measured:
        add_to(model["rollup_transit"], lane + (BOUNDS[bisect.bisect_left(BOUNDS, transit)],), 1)
    if row["delivered_at"]:
        add_to(model["rollup_hour"], ((row["delivered_at"] + "T00")[:13],), 0, 1, on_time, late)
    negative = int(transit is not None and transit < 0)
    return (on_time, late, lateness if late else 0, int(measured), transit if measured else 0, negative)


def modelled(rows):
    """The rollups that the definitions in schema.sql and the design ask for, worked out in plain Python."""
    model = collections.defaultdict(dict)
    for row in rows:
        lane = (row["carrier"] or "", row["mode"] or "")
        figures = (0,) * 6
        if row["status"] == "delivered":
            figures = add_delivered(model, row, lane)
        add_to(model["rollup_lane"], lane + (row["status"],), 1, *figures)
        if row["created_at"]:
            add_to(model["rollup_hour"], ((row["created_at"] + "T00")[:13],), 1, 0, 0, 0)
        if row["status"] not in CLOSED and row["promised_at"]:
            add_to(model["rollup_due"], ((row["promised_at"] + "T23")[:13],) + lane, 1)
        if row["status"] == "exception":
            add_to(model["rollup_exception"], (row["exception_reason"] or "",), 1)
    return {table: sorted(key + numbers for key, numbers in model[table].items()) for table in ROLLUPS}


def random_time(rng):
    at = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=rng.randrange(40) * DAY // 4 + rng.randrange(3))
    return rng.choice([None, at.strftime("%Y-%m-%d"), at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%dT%H:%M:%SZ")])


def random_row(rng):
    row = {name: random_time(rng) for name in ("created_at", "shipped_at", "promised_at", "delivered_at")}
    row.update(reference="R%d" % rng.randrange(60), carrier=rng.choice([None, "A", "B"]), mode=rng.choice([None, "air", "road"]),
               status=rng.choice(STATUSES + ("delivered",) * 5), exception_reason=rng.choice([None, "lost", "storm"]),
               weight_kg=rng.choice([None, 1.5]), origin=rng.choice([None, "Lyon"]))
    return row


def random_change(db, rng):
    """One statement that changes shipments, or that a constraint refuses."""
    row = random_row(rng)
    names, marks = ", ".join(row), ", ".join(":" + name for name in row)
    some = rng.sample(sorted(row), rng.randrange(1, 4))
    others = [name for name in some if name != "reference"] or ["origin"]
    db.execute(*rng.choice([
        ("INSERT INTO shipments (%s) VALUES (%s)" % (names, marks), row),
        ("INSERT OR IGNORE INTO shipments (%s) VALUES (%s)" % (names, marks), row),
        ("INSERT INTO shipments (%s) VALUES (%s) ON CONFLICT (reference) DO UPDATE SET %s" % (
            names, marks, ", ".join("{0} = excluded.{0}".format(name) for name in some)), row),
        ("UPDATE shipments SET %s WHERE id %% 7 = %d" % (
            ", ".join("{0} = :{0}".format(name) for name in others), rng.randrange(7)), row),
        ("UPDATE OR IGNORE shipments SET reference = :reference WHERE id %% 5 = %d" % rng.randrange(5), row),
        ("UPDATE shipments SET id = id + 1000 WHERE id %% 11 = %d" % rng.randrange(11), row),
        ("DELETE FROM shipments WHERE id %% 13 = %d" % rng.randrange(13), row),
    ]))


def stored_rollups(db):
    return {table: sorted(tuple(row) for row in db.execute("SELECT * FROM " + table)) for table in ROLLUPS}


def test_thousands_of_random_changes_leave_the_rollups_exact(tmp_path):
    rng = random.Random(20260301)
    path = tmp_path / "shipments.db"
    with opened(path) as db:
        db.row_factory = sqlite3.Row
        db.executescript("PRAGMA synchronous = OFF;" + (ROOT / "schema.sql").read_text(encoding="utf-8"))
        db.execute("BEGIN")
        for step in range(4000):
            with contextlib.suppress(sqlite3.IntegrityError):
                random_change(db, rng)
            if step % 40 == 0:
                assert stored_rollups(db) == modelled(db.execute("SELECT * FROM shipments").fetchall()), "after step %d" % step
        assert stored_rollups(db) == modelled(db.execute("SELECT * FROM shipments").fetchall())
        db.execute("COMMIT")
        trigger_made = stored_rollups(db)
        assert seed(path, "--verify").returncode == 0
        assert seed(path, "--rebuild").returncode == 0
        assert stored_rollups(db) == trigger_made


def copied(path, name, sql=""):
    """A copy of a database beside it, after this statement."""
    copy = path.parent / name
    shutil.copy(str(path), str(copy))
    with opened(copy) as db:
        db.executescript(sql)
    return copy


def all_rows(path):
    return ask(path, "SELECT reference, status, cost, updated_at FROM shipments ORDER BY reference")


def test_a_merge_brings_in_what_the_other_has_newer_and_leaves_what_is_newer_here(small):
    other = copied(small, "kept.db", """
        INSERT INTO shipments (reference, status, updated_at) VALUES ('late', 'pending', '2099-01-01T00:00:00Z');
        UPDATE shipments SET cost = 7, updated_at = '2099-01-01T00:00:00Z' WHERE id = 1;
        UPDATE shipments SET cost = 8, updated_at = '2000-01-01T00:00:00Z' WHERE id = 2;
        DELETE FROM shipments WHERE id = 3""")
    before, theirs = all_rows(small), all_rows(other)
    done = seed(small, "--merge", other)
    assert (done.returncode, done.stdout) == (0, "2 newer there, 1 stored, 1 updated, 0 unchanged\n")
    found = {row[0]: row for row in all_rows(small)}
    assert len(found) == len(before) + 1
    assert found["late"] in theirs and found["SHP-00000001"] in theirs
    assert [found[row[0]] for row in before[1:]] == before[1:]
    assert seed(small, "--verify").returncode == 0
    assert seed(small, "--merge", other).stdout == "0 newer there, 0 stored, 0 updated, 0 unchanged\n"


@pytest.mark.parametrize("later", ["theirs", "ours"])
def test_of_two_changes_within_one_second_a_merge_takes_that_of_the_later_database(small, later):
    other = copied(small, "kept.db", "UPDATE shipments SET cost = 7 WHERE id = 1; "
                   "UPDATE shipments SET updated_at = (SELECT updated_at FROM shipments WHERE id = 2) WHERE id = 1")
    with opened(small) as db:
        db.execute("UPDATE shipments SET updated_at = (SELECT updated_at FROM shipments WHERE id = 2) WHERE id = 1")
    with opened(other if later == "theirs" else small) as db:
        db.execute("UPDATE shipments SET updated_at = '2099-01-01T00:00:00Z' WHERE id = 3")
    cost, = [row[2] for row in all_rows(small) if row[0] == "SHP-00000001"]
    assert seed(small, "--merge", other).returncode == 0
    assert [row[2] for row in all_rows(small) if row[0] == "SHP-00000001"] == [7 if later == "theirs" else cost]
    assert cost != 7 and "0 stored, 0 updated" in seed(small, "--merge", other).stdout


def test_a_merge_keeps_the_time_of_a_change_that_has_the_second_of_the_row_before(small):
    with opened(small) as db:
        db.execute("UPDATE shipments SET updated_at = '2026-01-02T03:04:05Z'")
    other = copied(small, "kept.db", "UPDATE shipments SET cost = 7, updated_at = '2026-01-02T03:04:05Z' WHERE id = 1; "
                   "UPDATE shipments SET updated_at = '2026-01-02T03:04:05Z' WHERE id = 1; "
                   "UPDATE shipments SET updated_at = '2026-01-02T03:04:06Z' WHERE id = 3")
    assert seed(small, "--merge", other).returncode == 0
    with opened(small) as db:
        assert db.execute("SELECT cost, updated_at FROM shipments WHERE id = 1").fetchone() == (7, "2026-01-02T03:04:05Z")


def test_a_merge_from_a_newer_schema_takes_the_columns_of_this_one(small):
    other = copied(small, "kept.db", "ALTER TABLE shipments ADD COLUMN priority TEXT; PRAGMA user_version = 6")
    with opened(small) as db:
        db.execute("DELETE FROM shipments WHERE id > 5")
    assert seed(small, "--merge", other).returncode == 0 and all_rows(small) == all_rows(other)


def test_a_merge_from_a_damaged_file_takes_all_that_can_be_read_and_names_the_rest(small):
    before = all_rows(small)
    other = copied(small, "damaged.db")
    with opened(small) as db:
        db.execute("DELETE FROM shipments")
        root, = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'shipments'").fetchone()
    content = bytearray(other.read_bytes())
    leaf = int.from_bytes(content[(root - 1) * 4096 + 12:][:2], "big")      # of the interior root page: where its first cell is
    page = int.from_bytes(content[(root - 1) * 4096 + leaf:][:4], "big")    # whose left child is the first leaf
    content[(page - 1) * 4096:page * 4096] = b"\xa5" * 4096
    other.write_bytes(bytes(content))
    done = seed(small, "--merge", other)
    lost = int(re.search(r"(\d+) rows of \S+ cannot be read, ids 1 to \1; load those again", done.stderr).group(1))
    assert done.returncode == 1 and 0 < lost < 100 and all_rows(small) == before[lost:]
    assert seed(small, "--verify").returncode == 0


@pytest.mark.parametrize("other, words", [
    ("no database", "cannot be read: file is not a database; nothing was changed"),
    (None, "is no other database file"),
])
def test_a_merge_from_what_is_no_other_database_is_refused(small, other, words):
    path = small
    if other:
        path = small.parent / "other.db"
        path.write_text(other * 100)
    before, done = all_rows(small), seed(small, "--merge", path)
    assert done.returncode == 1 and words in done.stderr and all_rows(small) == before
