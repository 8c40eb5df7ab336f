"""restart_service.sh with real processes: whom it signals, what it proves, and that strangers live."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import namedtuple
from pathlib import Path

import pytest

import credentials
import migration_lock
import supervision
from conftest import DEADLINE, ROOT, copy_product, make_certificate, make_database, wait_for
from smoke import free_port

Result = namedtuple("Result", "code out err")

NOBODY = 65534                  # uid and gid of an unprivileged user
SYSTEM_PYTHON = "/usr/bin/python3"    # one that every user may run

# A service that behaves well but for its METRICS_ODD: deaf (to SIGTERM), dies or dawdles (at start), heir (leaves its port
# to a stranger), stubborn (does not reload), mortal (of SIGHUP), old (of a release without reload)
STAND_IN = """
import http.server, json, os, signal, subprocess, sys, time, uuid
import supervision
folder = os.path.dirname(os.path.abspath(__file__))
given = {v.name: v.value for v in supervision.read_env_file(sys.argv[sys.argv.index("--env-file") + 1])}
port, odd = int(given["METRICS_PORT"]), given.get("METRICS_ODD")
pid_file = os.path.join(folder, given.get("METRICS_PID_FILE", "metrics_service.pid"))
squatter = "import socket, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('127.0.0.1', %d)); s.listen(); time.sleep(9)"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
def stop(*_):
    raise SystemExit(0)
def renew(*_):
    about.update(instance=uuid.uuid4().hex, started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
if "--settings" in sys.argv:
    print("METRICS_HOST=127.0.0.1\\nMETRICS_PORT=%d\\nMETRICS_PID_FILE=%s\\nMETRICS_LOG_FILE=" % (port, pid_file))
elif "--check" not in sys.argv:
    if odd == "dies":
        sys.exit("no life today")
    if odd == "dawdles":
        time.sleep(60)
    about = {}
    renew()
    if odd == "old":
        del about["started_at"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if odd == "deaf" else stop)
    signal.signal(signal.SIGHUP, {"stubborn": signal.SIG_IGN, "mortal": signal.SIG_DFL}.get(odd, renew))
    with supervision.PidFile(pid_file):
        server = http.server.HTTPServer(("127.0.0.1", port), Handler)
        try:
            server.serve_forever()
        finally:
            server.server_close()
            if odd == "heir":
                child = subprocess.Popen([sys.executable, "-c", squatter % port, folder])
                while not supervision.listeners("127.0.0.1", port):
                    time.sleep(0.01)
"""
SYSTEMCTL = """#!/bin/bash
echo "$*" >> {log}
[[ $1 != --user ]] || shift
case $1 in
  show) echo MainPID={main_pid} ;;
  reload) kill -HUP "$(< {pid_file})" ;;
  stop | restart) pid=$(< {pid_file}); kill "$pid"; while [[ $(tr -d '\\0' < /proc/$pid/cmdline) ]]; do :; done ;;
esac
if [[ $1 == restart ]]; then
  setsid {python} {folder}/metrics_service.py --env-file {folder}/metrics.env > /dev/null 2>&1 &
fi
"""


def run(command, **options):
    child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True, **options)
    out, err = child.communicate(timeout=60)
    return Result(child.returncode, out, err)


class House:
    """A copy of the product's folder, with its settings in metrics.env."""

    def __init__(self, folder, stand_in=False):
        folder.mkdir()
        copy_product(folder)
        if stand_in:
            (folder / "metrics_service.py").write_text(STAND_IN)
            (folder / "health_check.py").write_text("")
        self.folder, self.script, self.pid_file = folder, folder / "restart_service.sh", folder / "metrics_service.pid"
        self.children = []
        self.database = make_database(folder / "shipments.db")
        self.port = free_port()
        self.configure()

    def configure(self, **more):
        settings = dict({"DB_PATH": "shipments.db", "PORT": self.port}, **more)
        (self.folder / "metrics.env").write_text("".join("METRICS_%s=%s\n" % item for item in settings.items()))

    def run(self, *arguments, **options):
        options.setdefault("env", dict(os.environ, PYTHON=sys.executable))
        return run([str(self.script)] + list(arguments), **options)

    def start(self, env_file="metrics.env", pid_file=None):
        """Starts the service without the script; returns its PID once it listens."""
        command = [sys.executable, str(self.folder / "metrics_service.py"), "--env-file", str(self.folder / env_file)]
        child = supervision.spawn(command, str(self.folder / "service.out"))
        self.children.append(child)
        wait_for(lambda: supervision.lock_holder(str(pid_file or self.pid_file)) == child.pid and
                 child.pid in [one.pid for one in supervision.listeners("127.0.0.1", 0)], "the service")
        return child.pid

    def pid(self):
        return supervision.lock_holder(str(self.pid_file))

    def url(self, scheme="http"):
        return "%s://127.0.0.1:%d" % (scheme, self.port)

    def instance(self):
        """The id that the service gives itself."""
        with urllib.request.urlopen(self.url() + "/livez", timeout=DEADLINE) as answer:
            return json.loads(answer.read().decode())["instance"]

    def reload_command(self):
        """Arguments of supervision.py that reload the service without a look at the settings."""
        return ["reload", "--pid-file", str(self.pid_file), "--host", "127.0.0.1", "--port", str(self.port),
                "--env-file", str(self.folder / "metrics.env")]

    def files(self):
        return sorted(set(os.listdir(str(self.folder))) - {"__pycache__"})

    def services(self):
        return [pid for pid in supervision.processes() if supervision.script_of(pid) == str(self.folder / "metrics_service.py")]


def end_all(folder):
    """Ends what runs from below a folder of ours, and nothing else."""
    for pid in supervision.processes():
        if any(argument.startswith(str(folder)) for argument in supervision.command_line(pid)[1:]):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def house(tmp_path):
    """The real product in a folder whose name has a blank."""
    yield House(tmp_path / "metrics service")
    end_all(tmp_path)


@pytest.fixture
def stand_in(tmp_path):
    """The product with a service that can be told to misbehave."""
    yield House(tmp_path / "house", stand_in=True)
    end_all(tmp_path)


@pytest.fixture
def open_house():
    """The product in a folder that an unprivileged user owns, and a prefix that runs a command as that user."""
    if os.geteuid() != 0 or not shutil.which("setpriv") or not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip("needs root, setpriv and " + SYSTEM_PYTHON)
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    house = House(base / "house")
    for path in [house.folder] + list(house.folder.iterdir()):
        os.chown(str(path), NOBODY, NOBODY)
    house.as_nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
                       "env", "PYTHON=" + SYSTEM_PYTHON, house.script]
    yield house
    end_all(base)
    shutil.rmtree(str(base))


@pytest.fixture
def bystander():
    """A process that must live, whatever names its PID."""
    child = subprocess.Popen(["sleep", "60"])
    started = supervision.process_stat(child.pid)._replace(state="S")
    yield child
    assert child.poll() is None and supervision.process_stat(child.pid)._replace(state="S") == started
    child.kill()
    child.wait()


def test_start_status_and_stop_follow_lsb(house):
    assert house.run("status") == (3, "not running\n", "")
    assert house.run("start").code == 0
    pid = house.pid()
    status = house.run("status")
    assert status.code == 0
    assert status.out.startswith("running: pid %d since 2" % pid) and status.out.split("\n")[0].endswith(", ready")
    again = house.run("start")
    assert (again.code, house.pid()) == (0, pid)
    assert "running already: pid %d, http://127.0.0.1:%d, instance " % (pid, house.port) in again.err
    assert house.run("stop").code == 0
    assert house.run("status").code == 3
    assert house.run("stop") == (0, "", "restart_service: nothing is running\n")


def test_a_restart_proves_that_a_new_process_answers(house):
    old = house.start()
    result = house.run()
    assert result.code == 0, result.err
    assert house.services() == [house.pid()] != [old]
    takes_over = "supervision: started pid %d, which takes over from pid %d\n" % (house.pid(), old)
    assert takes_over + "supervision: stopping pid %d (" % old in result.err
    assert "restart_service: done: http://127.0.0.1:%d answers, instance " % house.port in result.err


def test_a_service_without_its_pid_file_is_found_and_stopped(house):
    old = house.start()
    house.pid_file.unlink()
    result = house.run()
    assert result.code == 0, result.err
    assert "has a trusted user (uid %d), a lock on %s, port %d" % (os.getuid(), house.pid_file, house.port) in result.err
    assert house.services() == [house.pid()] != [old]


@pytest.mark.parametrize("content", [b"", b"1", b"12 34", b"\x00\xff"])
def test_a_restart_sees_through_a_pid_file_with_garbage(stand_in, content):
    stand_in.start()
    stand_in.pid_file.unlink()
    stand_in.pid_file.write_bytes(content)
    assert stand_in.run().code == 0
    assert stand_in.services() == [stand_in.pid()]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("target", path)])
def test_a_path_that_cannot_be_a_pid_file_stops_nothing_but_the_restart(stand_in, make):
    pid = stand_in.start()
    stand_in.pid_file.unlink()
    make(str(stand_in.pid_file))
    result = stand_in.run()
    assert (result.code, stand_in.services()) == (1, [pid])
    assert "supervision: PID file %s is " % stand_in.pid_file in result.err
    assert stand_in.run("stop").code == 0 and stand_in.services() == []


def test_after_a_crash_the_stale_pid_file_counts_for_nothing(house):
    pid = house.start()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: house.pid() is None, "the crash")
    status = house.run("status")
    assert (status.code, status.out) == (1, "not running\n")
    assert "names pid %d (" % pid in status.err
    assert house.run().code == 0
    assert house.run("status").code == 0


def test_a_bystander_whose_pid_is_in_the_file_lives(house, bystander):
    house.pid_file.write_text("%d\n" % bystander.pid)
    status = house.run("status")
    assert status.code == 1
    words = "names pid %d (sleep 60, uid %d), which does not hold its lock and is left alone"
    assert words % (bystander.pid, os.getuid()) in status.err
    assert house.run().code == 0
    house.run("stop")


def test_stop_removes_a_stale_pid_file_and_leaves_a_file_that_is_none(house, bystander):
    house.pid_file.write_text("%d\n" % bystander.pid)
    assert house.run("stop").code == 0 and not house.pid_file.exists()
    house.pid_file.write_text("a list of things to do\n")
    assert house.run("stop").code == 0 and house.pid_file.exists()


def test_look_alikes_are_never_touched(stand_in, tmp_path):
    other = House(tmp_path / "other", stand_in=True)
    second = stand_in.folder / "second.env"
    second.write_text("METRICS_PORT=%d\nMETRICS_PID_FILE=second.pid\n" % free_port())
    editor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(stand_in.folder / "metrics_service.py")])
    others = {other.start(), editor.pid, stand_in.start("second.env", stand_in.folder / "second.pid")}
    stand_in.start()
    stand_in.pid_file.unlink()
    assert stand_in.run().code == 0
    assert stand_in.run("stop").code == 0
    assert [supervision.process_stat(pid).state in "RS" for pid in others] == [True] * 3
    editor.kill()
    editor.wait()


def test_a_suspect_that_is_not_proven_is_named_and_left_alone(stand_in):
    pid = stand_in.start()
    stand_in.pid_file.rename(stand_in.folder / "moved.pid")
    for verb, code in (("status", 4), ("stop", 1), ("restart", 1), ("start", 1)):
        result = stand_in.run(verb)
        assert result.code == code
        assert "runs this folder's metrics_service.py but lacks a lock on %s" % stand_in.pid_file in result.err
    assert stand_in.services() == [pid]


def test_a_stopped_process_is_of_unknown_status_and_can_be_restarted(house):
    pid = house.start()
    os.kill(pid, signal.SIGSTOP)
    status = house.run("status")
    assert status.code == 4
    assert "restart_service: pid %d, which holds the lock of %s, does not answer" % (pid, house.pid_file) in status.err
    assert house.run().code == 0
    assert house.services() == [house.pid()] != [pid]


def test_a_process_that_ignores_sigterm_is_killed_after_the_timeout(stand_in):
    stand_in.configure(ODD="deaf")
    pid = stand_in.start()
    result = stand_in.run("stop", "--timeout", "0.5")
    assert result.code == 0
    assert "supervision: pid %d did not end within 0.5 s of SIGTERM; killing it" % pid in result.err
    assert stand_in.services() == [] and not stand_in.pid_file.exists()


def test_a_restart_that_is_interrupted_after_the_stop_still_starts_the_new_service(stand_in):
    stand_in.configure(ODD="deaf")
    old = stand_in.start()
    child = subprocess.Popen([str(stand_in.script), "--timeout", "1"], stderr=subprocess.PIPE, universal_newlines=True,
                             env=dict(os.environ, PYTHON=sys.executable), preexec_fn=os.setsid)
    assert any("stopping pid %d" % old in line for line in iter(child.stderr.readline, ""))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.killpg(child.pid, number)
    error = child.communicate()[1]
    assert child.returncode == 0, error
    assert stand_in.services() == [stand_in.pid()] != [old]


def test_two_restarts_at_once_leave_one_service(stand_in):
    stand_in.start()
    env = dict(os.environ, PYTHON=sys.executable)
    both = [subprocess.Popen([str(stand_in.script)], stderr=subprocess.PIPE, env=env) for _ in range(2)]
    errors = b"".join(child.communicate()[1] for child in both)
    assert [child.returncode for child in both] == [0, 0], errors
    assert stand_in.services() == [stand_in.pid()]


def test_the_running_service_keeps_nobody_from_taking_the_turn(stand_in):
    pid = stand_in.start()
    lock = str(stand_in.pid_file) + ".lock"
    assert lock not in [target for _, target in supervision.open_files(pid)]


def test_a_restart_that_must_wait_too_long_names_who_is_at_work(stand_in):
    program = """exec {turn}<> "$1.lock"
                 "$2" "$3" hold --descriptor "$turn" --pid-file "$1" --host x --port 1
                 echo
                 exec sleep 60"""
    command = ["bash", "-c", program, "bash", str(stand_in.pid_file), sys.executable, str(stand_in.folder / "supervision.py")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    holder.stdout.readline()
    result = stand_in.run("--timeout", "0.2")
    holder.kill()
    holder.communicate()
    assert result.code == 1
    assert "supervision: waiting for pid %d (sleep 60, uid " % holder.pid in result.err
    assert result.err.endswith("restart_service: nothing was done, since another restart is at work\n")


def test_a_stranger_on_the_port_is_named_and_lives_and_so_does_the_old_service(house):
    pid = house.start()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen(1)
        house.configure(PORT=stranger.getsockname()[1])
        result = house.run()
    assert (result.code, house.services()) == (1, [pid])
    assert "pid %d (" % os.getpid() in result.err and "nothing was stopped or started" in result.err


def test_a_stranger_that_takes_the_port_after_the_stop_makes_the_restart_fail_aloud(stand_in):
    stand_in.configure(ODD="heir")
    stand_in.start()
    result = stand_in.run("--timeout", "5")
    assert result.code == 1
    assert "supervision: the service ended with exit code 1 before it was ready" in result.err
    assert "Address already in use" in result.err
    assert result.err.endswith("restart_service: now nothing is proven to be running\n"
                               "restart_service: the new service is not ready\n")


def test_a_service_that_dies_at_once_is_reported_with_its_last_lines(stand_in):
    stand_in.configure(ODD="dies")
    result = stand_in.run("start")
    assert result.code == 1
    assert "supervision: the service ended with exit code 1 before it was ready" in result.err
    assert "the last lines of %s.out:\nno life today\n" % stand_in.pid_file in result.err


@pytest.mark.parametrize("odd, words", [
    ("dies", "supervision: the service ended with exit code 1 before it was ready\n"),
    ("dawdles", " was not ready to take over within 1 s\n"),
])
def test_a_successor_that_cannot_take_over_leaves_the_old_service_alone(stand_in, odd, words):
    pid = stand_in.start()
    stand_in.configure(ODD=odd)
    result = stand_in.run("--timeout", "1")
    assert (result.code, stand_in.services()) == (1, [pid])
    assert words in result.err and "stopping" not in result.err
    assert result.err.endswith("restart_service: now running: pid %d, which holds the lock of %s\n"
                               "restart_service: the new service is not ready\n" % (pid, stand_in.pid_file))


def test_a_service_that_still_answers_is_not_given_up_for_one_that_could_not_read_the_database(house):
    pid = house.start()
    writer = sqlite3.connect(str(house.database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    results = [house.run(verb) for verb in ("restart", "reload")]
    assert ([result.code for result in results], house.services()) == ([1, 1], [pid])
    words = "while pid %d still answers, so nothing was stopped or started\n" % pid
    assert [result.err.endswith(words) for result in results] == [True, True]
    writer.close()


@pytest.mark.parametrize("locked", [False, True])
def test_a_service_that_answers_during_a_migration_is_left_to_it(house, locked):
    pid = house.start()
    with migration_lock.hold(str(house.database)) as say:
        say("to version 4")
        writer = sqlite3.connect(str(house.database), isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE" if locked else "SELECT 1")
        results = [house.run(verb) for verb in ("restart", "reload")]
        writer.close()
    assert ([result.code for result in results], house.services()) == ([1, 1], [pid])
    words = "nothing was stopped or started\n"
    assert [result.err.endswith(words) and "migration running: to version 4; " in result.err for result in results] == [True, True]


@pytest.mark.parametrize("version", [1, 3])
def test_a_schema_that_is_behind_is_never_migrated_and_nothing_is_stopped_or_started_for_it(house, version):
    pid, old = house.start(), house.folder / "old.db"
    made = run([sys.executable, ROOT / "migrate.py", old, "apply", "--to", version])
    assert made.code == 0, made.err
    house.configure(DB_PATH="old.db")
    files, content = house.files(), old.read_bytes()
    results = [house.run(verb) for verb in ("restart", "reload")]
    assert house.services() == [pid]
    house.run("stop")
    results.append(house.run("start"))
    for result in results:
        assert result.code == 1 and ("error: database %s: schema version %d is older than the 5 of this release; to bring it to "
                                     "this release: python3 migrate.py %s plan, then apply\n" % (old, version, old)) in result.err
        assert result.err.endswith("--check refuses the settings, so nothing was stopped or started\n")
    assert (house.services(), old.read_bytes()) == ([], content)
    assert set(house.files()) <= set(files) | {"metrics_service.pid.lock"}


def test_a_service_that_is_not_ready_fails_the_restart_with_its_reason_and_runs_on(house):
    house.configure(QUERY_TIMEOUT="0.2", STALE_SECONDS="0")
    old = house.start()
    writer = sqlite3.connect(str(house.database), isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    result = house.run("--timeout", "1.5")
    writer.close()
    assert result.code == 1
    assert "supervision: not ready: database:" in result.err and "lock" in result.err
    assert "restart_service: now running: pid %d, which holds the lock" % house.pid() in result.err
    assert house.services() == [house.pid()] != [old]


def test_a_restart_never_stops_a_service_that_the_new_settings_would_refuse(house):
    pid = house.start()
    house.configure(LOG_LEVEL="loud")
    for verb in ("restart", "reload"):
        result = house.run(verb)
        assert (result.code, house.services()) == (1, [pid])
        assert "METRICS_LOG_LEVEL" in result.err and "loud" in result.err
        assert result.err.endswith("--check refuses the settings, so nothing was stopped or started\n")


def test_a_reload_brings_new_settings_to_the_same_process_and_its_clients(house):
    pid, old = house.start(), house.instance()
    house.configure(LOG_FORMAT="json")
    with socket.create_connection(("127.0.0.1", house.port), DEADLINE) as waiting:
        result = house.run("reload")
        waiting.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert house.instance().encode() in b"".join(iter(lambda: waiting.recv(4096), b""))
    assert result.code == 0, result.err
    assert "supervision: reloading pid %d (" % pid in result.err
    assert house.services() == [pid] and house.instance() != old
    assert result.err.endswith("restart_service: done: %s answers, instance %s\n" % (house.url(), house.instance()))


def test_nothing_is_reloaded_where_nothing_runs(house):
    result = house.run("reload")
    assert (result.code, house.services()) == (1, [])
    assert result.err == "restart_service: nothing is running that could be reloaded; start it by %s start\n" % house.script


@pytest.mark.parametrize("changed, words", [
    (["--port", "1"], "it listens on 127.0.0.1 port {port}, not 127.0.0.1 port 1"),
    (["--host", "0.0.0.0"], "it listens on 127.0.0.1 port {port}, not 0.0.0.0 port {port}"),
    (["--env-file", "/other.env"], "it was started with --env-file {folder}/metrics.env, not --env-file /other.env"),
])
def test_what_a_reload_cannot_change_is_said_before(stand_in, capsys, changed, words):
    pid, old = stand_in.start(), stand_in.instance()
    assert supervision.main(stand_in.reload_command() + changed) == 1
    words = words.format(port=stand_in.port, folder=stand_in.folder)
    assert capsys.readouterr().err == (
        "supervision: pid %d was not signalled: %s; a reload keeps that, a restart would change it\n" % (pid, words))
    assert (stand_in.services(), stand_in.instance()) == ([pid], old)


def test_another_port_wants_a_restart(stand_in):
    pid = stand_in.start()
    stand_in.port = free_port()
    stand_in.configure()
    result = stand_in.run("reload")
    assert (result.code, stand_in.services()) == (1, [pid])
    assert "a reload keeps that, a restart would change it\n" in result.err
    assert stand_in.run().code == 0 and stand_in.instance()


def test_a_service_that_refuses_to_reload_is_quoted_at_once_each_time_anew(house, capsys):
    pid, old = house.start(), house.instance()
    house.configure(LOG_LEVEL="loud")
    for _ in range(2):
        assert supervision.main(house.reload_command()) == 1
        assert "supervision: pid %d refuses to reload: METRICS_LOG_LEVEL is 'loud' (" % pid in capsys.readouterr().err
    assert (house.services(), house.instance()) == ([pid], old)


@pytest.mark.parametrize("odd, words, survivors", [
    ("stubborn", "still serves as before after 1 s; its log says why", 1),
    ("mortal", "has ended instead of loading anew", 0),
    ("old", "is of a release that SIGHUP ends; restart it", 1),
])
def test_a_reload_that_does_not_happen_is_a_failure(stand_in, odd, words, survivors):
    stand_in.configure(ODD=odd)
    pid = stand_in.start()
    result = stand_in.run("reload", "--timeout", "1")
    assert (result.code, stand_in.services()) == (1, [pid][:survivors])
    assert "supervision: pid %d %s\n" % (pid, words) in result.err
    assert result.err.endswith("restart_service: the service was not reloaded\n")


def test_a_stopped_process_is_not_reloaded(house):
    pid = house.start()
    os.kill(pid, signal.SIGSTOP)
    result = house.run("reload")
    assert (result.code, house.services()) == (1, [pid])
    assert result.err.endswith("pid %d, which holds the lock of %s, does not answer; restart it\n" % (pid, house.pid_file))


@pytest.mark.parametrize("names, more, words", [
    (["IP:127.0.0.1"], {}, "metrics_service OK: 5 checks (https://127.0.0.1:"),
    (["DNS:localhost"], {"HOST": "localhost"}, "metrics_service OK: 5 checks (https://localhost:"),
    (["DNS:x.example"], {}, "supervision: health_check.py was not run, so that no figures were checked: its certificate cannot"),
    (["DNS:x.example"], {"CHECK_CA_FILE": "certificate.pem"}, "metrics.env, or have it made for this address too\n"),
])
def test_what_speaks_tls_is_asked_by_tls_and_checked_where_its_certificate_can_be(house, names, more, words):
    make_certificate(house.folder / "certificate.pem", *names)
    house.configure(TLS_CERT="certificate.pem", **more)
    result = house.run()
    assert (result.code, words in result.out + result.err) == (0, True), result.err
    assert "restart_service: done: %s answers, instance " % house.url("https") in result.err


def test_a_certificate_that_has_ended_is_no_matter_of_where_one_asks_from(house):
    make_certificate(house.folder / "certificate.pem", "IP:127.0.0.1")
    pair = ["-in", "certificate.pem", "-signkey", "certificate.pem"]
    subprocess.run(["openssl", "x509"] + pair + ["-days", "-1", "-out", "ended.pem"], check=True, cwd=str(house.folder),
                   stderr=subprocess.DEVNULL)
    house.configure(TLS_CERT="ended.pem", TLS_KEY="certificate.pem")
    result = house.run("start")
    assert (result.code, len(house.services())) == (1, 1)
    assert "certificate has expired" in result.out
    assert result.err.endswith("restart_service: the service answers, but health_check.py is not content\n")


def test_what_is_said_in_the_settings_and_not_loaded_yet_decides_nothing(house):
    make_certificate(house.folder / "certificate.pem", "IP:127.0.0.1")
    house.start()
    house.configure(TLS_CERT="certificate.pem")
    assert ", %s, instance " % house.url() in house.run("status").out
    assert house.run("reload").code == 0
    house.configure()
    assert ", %s, instance " % house.url("https") in house.run("status").out


def test_figures_behind_a_password_are_checked_with_credentials_alone(house):
    (house.folder / "users").write_text("ops:%s\n" % credentials.hash_password(b"let me in"))
    (house.folder / "password").write_text("ops:let me in\n")
    for name in ("users", "password"):
        (house.folder / name).chmod(0o600)
    house.configure(AUTH_FILE="users")
    result = house.run()
    assert (result.code, result.out) == (0, "")
    assert ("the service asks for a password; name a file with one by METRICS_CHECK_CREDENTIALS in %s\n" %
            (house.folder / "metrics.env")) in result.err
    house.configure(AUTH_FILE="users", CHECK_CREDENTIALS="password")
    result = house.run("reload")
    assert (result.code, "metrics_service OK: 5 checks" in result.out) == (0, True), result.out + result.err


def test_invalid_settings_keep_nobody_from_looking_and_stopping(house):
    pid = house.start()
    house.configure(LOG_LEVEL="loud")
    assert house.run("status").out.startswith("running: pid %d " % pid)
    assert house.run("stop").code == 0
    assert house.run("status").code == 4
    assert "some settings of %s are invalid" % (house.folder / "metrics.env") in house.run("stop").err


def test_without_an_env_file_the_cure_is_named(house):
    (house.folder / "metrics.env").unlink()
    result = house.run()
    assert result.code == 1
    assert "metrics.env is missing; create it with a line METRICS_DB_PATH=" in result.err
    assert house.run("stop").code == 0


def test_with_another_port_in_the_settings_the_running_service_is_still_seen_as_it_is(house):
    house.start()
    env_file, old = house.folder / "metrics.env", house.port
    env_file.write_text(env_file.read_text().replace("METRICS_PORT=%d" % old, "METRICS_PORT=%d" % free_port()))
    result = house.run("status")
    assert (result.code, "http://127.0.0.1:%d, " % old in result.out) == (0, True), result.out + result.err
    assert house.run("start").code == 0


def test_status_tells_settings_that_were_changed_but_not_loaded(stand_in):
    stand_in.start()
    assert "was changed" not in stand_in.run("status").out
    os.utime(str(stand_in.folder / "metrics.env"), (time.time() + 1, time.time() + 1))
    assert "metrics.env was changed after the start; reload or restart to load it\n" in stand_in.run("status").out
    wait_for(lambda: time.time() > (stand_in.folder / "metrics.env").stat().st_mtime, "the time of the change")
    assert stand_in.run("reload").code == 0
    assert "was changed" not in stand_in.run("status").out


def test_status_tells_settings_that_are_not_loaded_by_what_they_say_and_not_by_their_time(house):
    env_file = house.folder / "metrics.env"
    house.start()
    os.utime(str(env_file), (time.time() + 9, time.time() + 9))
    assert "settings:" not in house.run("status").out
    house.configure(STALE_SECONDS="30")
    os.utime(str(env_file), (0, 0))     # as of an older copy that was put back
    assert "metrics.env, changed at 1970-01-01T00:00:00Z, has others than it runs with; reload or restart to load them\n" in (
        house.run("status").out)
    assert house.run("reload").code == 0
    assert "settings:" not in house.run("status").out
    house.configure(STALE_SECONDS="9999")
    assert "metrics.env would be refused; --check says why\n" in house.run("status").out


def test_status_tells_when_the_check_was_here_last(house):
    house.start()
    house.run("status")     # asks too, and is no check
    assert "checked: never by health_check.py\n" in house.run("status").out
    asked = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    subprocess.run([sys.executable, str(house.folder / "health_check.py"), "--url", "http://127.0.0.1:%d" % house.port],
                   stdout=subprocess.DEVNULL)
    assert re.search("checked: (.*) by health_check.py\n", house.run("status").out).group(1) >= asked


def test_the_calling_shell_and_folder_do_not_reach_the_service(house):
    env = {"PYTHON": sys.executable, "PATH": os.environ["PATH"], "METRICS_DB_PATH": "/none", "PYTHONPATH": "/none", "SECRET": "x"}
    assert house.run("start", "--env-file", "metrics service/metrics.env", env=env, cwd=str(house.folder.parent)).code == 0
    environ = Path("/proc/%d/environ" % house.pid()).read_text().strip("\0").split("\0")
    assert sorted(line.split("=")[0] for line in environ) == ["HOME", "LANG", "PATH"]


def test_it_works_through_a_symbolic_link_from_an_empty_environment(stand_in, tmp_path):
    link = tmp_path / "again"
    link.symlink_to(stand_in.script)
    assert run(["env", "-i", "/bin/bash", link], cwd="/").code == 0
    assert run(["env", "-i", "/bin/bash", link, "status"], cwd="/").code == 0


def test_it_needs_nothing_but_bash_coreutils_and_python(stand_in, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("dirname", "env", "realpath", "stat", "tail"):
        (tools / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(tools), "PYTHON": sys.executable}
    results = [run(["/bin/bash", stand_in.script, verb], env=env) for verb in ("start", "status", "restart", "reload", "stop")]
    assert [result.code for result in results] == [0] * 5, results


def test_a_dry_run_changes_nothing_and_prints_what_can_be_replayed(stand_in):
    pid = stand_in.start()
    before = stand_in.files()
    result = stand_in.run("--dry-run")
    assert (result.code, stand_in.services(), stand_in.files()) == (0, [pid], before)
    lines = [line[4:] for line in result.err.splitlines() if line.startswith("[#] ")]
    assert len(lines) == 2
    assert run(["bash", "-ec", "\n".join(lines)]).code == 0
    assert stand_in.services() == [stand_in.pid()] != [pid]
    assert " reload --pid-file " in stand_in.run("reload", "--dry-run").err


@pytest.mark.parametrize("arguments, words", [
    (["reboot"], "unknown argument 'reboot'; --help lists what there is"),
    (["--timeout"], "--timeout needs a value; --help shows it"),
    (["--timeout", "soon"], "--timeout 'soon' is not a number of seconds; write for example --timeout 30"),
])
def test_bad_arguments_exit_1_and_name_the_cure(house, arguments, words):
    assert house.run(*arguments) == (1, "", "restart_service: %s\n" % words)


def test_an_env_file_that_is_not_there_is_an_error_for_every_verb(house):
    codes = [house.run(verb, "--env-file", "/none.env").code for verb in ("restart", "start", "stop", "reload", "status")]
    assert codes == [1, 1, 1, 1, 4]


def test_help_is_the_head_of_the_script(house):
    result = house.run("--help")
    assert result.code == 0
    assert result.out.splitlines()[0] == "Restart the metrics service of this folder, and prove that the new one answers."
    assert "Exit codes: 0 done and verified" in result.out and "set -E" not in result.out


def test_a_service_is_given_the_time_that_its_settings_let_it_drain(house):
    house.start()
    house.configure(DRAIN_SECONDS=45)
    assert "--timeout 55" in house.run("stop", "--dry-run").err


def test_a_python_that_is_none_is_named(house):
    result = house.run(env=dict(os.environ, PYTHON="/none/python"))
    assert result.code == 1
    assert result.err == ("restart_service: '/none/python' is not a Python of 3.6 or newer; set PYTHON to one\n")


def under_systemd(house, cgroup, main_pid, verb):
    """Runs a verb with a systemctl and a cgroup of our making; returns the Result and what systemctl was asked."""
    tools, log = house.folder / "tools", house.folder / "asked"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL.format(log=log, pid_file=house.pid_file, folder=house.folder,
                                                      python=sys.executable, main_pid=main_pid))
    (tools / "systemctl").chmod(0o755)
    proc = house.folder / "proc" / str(house.pid())
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("0::%s\n" % cgroup)
    env = dict(os.environ, PYTHON=sys.executable, PATH="%s:%s" % (tools, os.environ["PATH"]))
    result = run(["bash", "-c", 'source "$1"; PROC=$2; main "$3"', "bash", house.script, proc.parent, verb], env=env)
    return result, log.read_text().splitlines()


@pytest.mark.parametrize("cgroup, words", [
    ("/system.slice/metrics.service", ""),
    ("/user.slice/user-1.slice/user@1.service/app.slice/metrics.service", "--user "),
])
def test_a_service_of_systemd_is_restarted_by_systemctl(stand_in, cgroup, words):
    pid = stand_in.start()
    result, asked = under_systemd(stand_in, cgroup, pid, "restart")
    assert result.code == 0, result.err
    assert asked == [words + "show -p MainPID metrics.service", words + "restart metrics.service"]
    assert "pid %d is the main process of metrics.service: leaving it to systemctl" % pid in result.err
    assert stand_in.services() == [stand_in.pid()] != [pid]


def test_a_service_of_systemd_is_reloaded_by_systemctl(stand_in):
    pid = stand_in.start()
    old = stand_in.instance()
    result, asked = under_systemd(stand_in, "/system.slice/metrics.service", pid, "reload")
    assert (result.code, asked[1:], stand_in.services()) == (0, ["reload metrics.service"], [pid]), result.err
    assert stand_in.instance() != old


def test_a_service_of_systemd_is_stopped_by_systemctl(stand_in):
    result, asked = under_systemd(stand_in, "/system.slice/metrics.service", stand_in.start(), "stop")
    assert (result.code, asked[1:], stand_in.services()) == (0, ["stop metrics.service"], [])


def test_what_cron_started_is_not_left_to_cron(stand_in):
    stand_in.start()
    result, asked = under_systemd(stand_in, "/system.slice/cron.service", 1, "restart")
    assert (result.code, asked) == (0, ["show -p MainPID cron.service"])
    assert stand_in.services() == [stand_in.pid()]


def test_an_unprivileged_user_restarts_its_own_service(open_house):
    assert run(open_house.as_nobody + ["start"]).code == 0
    result = run(open_house.as_nobody)
    assert result.code == 0, result.err
    assert supervision.owner(open_house.pid()) == NOBODY


def test_root_does_not_restart_as_root_what_runs_as_another_user_but_may_stop_it(open_house):
    assert run(open_house.as_nobody + ["start"]).code == 0
    pid = open_house.pid()
    result = open_house.run()
    assert (result.code, open_house.services()) == (1, [pid])
    assert "pid %d runs as uid %d and was left alone; restart it as that user" % (pid, NOBODY) in result.err
    assert open_house.run("stop").code == 0 and open_house.services() == []


def test_an_unprivileged_user_sees_but_never_stops_the_service_of_root(open_house):
    pid = open_house.start()
    open_house.pid_file.chmod(0o600)
    assert "running: pid %d " % pid not in run(open_house.as_nobody + ["status"]).out
    result = run(open_house.as_nobody + ["stop"])
    assert (result.code, open_house.services()) == (1, [pid])
    assert "pid %d (" % pid in result.err and "belongs to another user; run this as that user, or as root" in result.err
