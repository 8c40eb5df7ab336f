"""supervision.py on real files, locks, sockets and processes."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import supervision
from conftest import DEADLINE, ROOT, wait_for

INSTANCE = """
import signal, socket, sys
sys.path.insert(0, {root!r})
import supervision
server = socket.socket()
server.bind(("127.0.0.1", int(sys.argv[2])))
server.listen()
with supervision.PidFile(sys.argv[1]):
    print(server.getsockname()[1], flush=True)
    signal.pause()
"""
CONTEND = """
import os, sys
sys.path.insert(0, {root!r})
import supervision
for _ in range(100):
    try:
        with supervision.PidFile(sys.argv[1]):
            os.mkdir(sys.argv[2])
            os.rmdir(sys.argv[2])
    except supervision.Held:
        pass
"""

# Executes itself: the first life prints its port and waits for a line, the second says what reached it and answers a client.
TWO_LIVES = """
import json, os, signal, socket, sys
sys.path.insert(0, {root!r})
import supervision
handover, sockets, caught = supervision.inherited(), supervision.handed_sockets(), []
lock = supervision.PidFile(sys.argv[1], handover and handover.lock)
lock.acquire()
signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
supervision.unblock()
if handover is None:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    print(server.getsockname()[1], flush=True)
    with supervision.blocked():
        if sys.stdin.readline() == "signal\\n":
            os.kill(os.getpid(), signal.SIGTERM)
        supervision.reexec([sys.executable] + sys.argv, server, lock, bytes(range(256)) * 4096)
told = dict(pid=os.getpid(), caught=caught, state=handover.state == bytes(range(256)) * 4096, lock=handover.lock,
            listener=sockets[0].fileno(), environ=[name for name in os.environ if name.startswith(("LISTEN_", "HANDOVER"))],
            inherited=[n for n in range(99) if os.path.exists("/proc/self/fd/%d" % n) and os.get_inheritable(n)])
print(json.dumps(told), flush=True)
connection, _ = sockets[0].accept()
connection.sendall(connection.recv(99))
signal.pause()
"""
# Fails to execute something, with descriptor 3 in use by argv[1], and prints what differs afterwards.
NO_SECOND_LIFE = """
import os, signal, socket, sys
sys.path.insert(0, {root!r})
import supervision
def everything():
    files = dict((int(n), (os.readlink("/proc/self/fd/" + n), os.get_inheritable(int(n))))
                 for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n))
    mask, locked = signal.pthread_sigmask(signal.SIG_BLOCK, ()), supervision._is_locked(os.getpid(), lock.descriptor)
    return files, dict(os.environ), mask, locked
if sys.argv[1] == "file":
    os.dup2(os.open("/dev/null", os.O_RDONLY), 3)
elif sys.argv[1] == "other socket":
    other = socket.socket()
server = socket.socket()
server.listen()
lock = supervision.PidFile(sys.argv[2])
lock.acquire()
before = everything()
try:
    supervision.reexec(["/none"], server, lock, b"state")
except FileNotFoundError:
    print(everything() == before and before[3], (server.fileno() == 3) == (sys.argv[1] == "listener"))
"""
GARBAGE = (b"", b"0\n", b"1\n", b"-1\n", b"12 34\n", b"99999999999999999999\n", b"\xc3\xa9\n", b"\x00\xff\x7f", b"4194304\n")


@pytest.fixture
def run():
    """Runs Python programs that print a line when they are ready: run(*arguments) -> (Popen, line). All end with the test."""
    children = []

    def start(*arguments, **options):
        children.append(subprocess.Popen([sys.executable] + [str(argument) for argument in arguments],
                                         stdout=subprocess.PIPE, universal_newlines=True, **options))
        return children[-1], children[-1].stdout.readline().strip()
    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A stand-in for the service of a folder, which supervision takes for its own."""
    path = tmp_path / "metrics_service.py"
    path.write_text(INSTANCE.format(root=str(ROOT)))
    monkeypatch.setattr(supervision, "SERVICE", str(path))
    return path


@pytest.fixture
def instance(script, tmp_path, run):
    """A running stand-in: (Popen, Target)."""
    child, port = run(script, tmp_path / "x.pid", 0)
    return child, supervision.Target(str(tmp_path / "x.pid"), "127.0.0.1", int(port))


def env_file(tmp_path, content):
    path = tmp_path / "metrics.env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def idle(run):
    return run("-c", "import time; print(flush=True); time.sleep(60)")[0]


@pytest.mark.parametrize("line, value", [
    ("A=b", "b"), ("A = b c  ", "b c"), ("A=", ""), ("A=$HOME #x", "$HOME #x"), ("A=it's", "it's"), ("A='b\\n'", "b\\n"),
    ('A="b\\"\\\\\\c"', 'b"\\\\c'), ('A="b" \'c\' d', "bcd"), ("A=b\\ \\\nc", "b c"), ("A='b\nc'", "b\nc"), ('A="b\\\nc"', "bc"),
    ("A=b\r", "b"), ("  A=\u00e9", "\u00e9"), ("A=b\\", "b"),
])
def test_an_env_file_is_read_as_systemd_reads_it(tmp_path, line, value):
    path = env_file(tmp_path, "# comment\n; comment\n\n" + line)
    assert supervision.read_env_file(path) == [("A", value, 4)]


@pytest.mark.parametrize("content, words", [
    ("export A=b", "1: `export` belongs to shells; write A=b"),
    ("\nA B=c", "2: 'A B' is no variable name; use letters, digits and _"),
    ("A=b\n\n\nnonsense", "4: 'nonsense' is no assignment; write NAME=VALUE, or # before a comment"),
    ("A=b\nB='c\nD=e", "2: the quote of B is never closed; close it, or put a backslash before it"),
    ("A=b\nB=\0", "2: contains a NUL character; write the file anew as plain text"),
    (b"A=b\nB=\xe9", "2: is not UTF-8; save the file as UTF-8"),
])
def test_a_bad_line_of_an_env_file_is_named_with_its_cure(tmp_path, content, words):
    path = env_file(tmp_path, content)
    with pytest.raises(supervision.EnvFileError) as raised:
        supervision.read_env_file(path)
    assert str(raised.value) == path + ":" + words


def test_a_missing_env_file_is_named(tmp_path):
    with pytest.raises(supervision.EnvFileError, match="/none.env: could not be read: No such file or directory"):
        supervision.read_env_file(str(tmp_path / "none.env"))


def test_a_pid_file_holds_the_pid_while_we_live_and_is_gone_afterwards(tmp_path):
    path = tmp_path / "x.pid"
    path.write_text("something longer than a PID\n")
    with supervision.PidFile(str(path)):
        assert path.read_text() == "%d\n" % os.getpid()
    assert not path.exists()


def test_a_second_process_is_told_who_holds_the_lock(instance):
    child, target = instance
    with pytest.raises(supervision.Held) as raised:
        supervision.PidFile(target.pid_file).acquire()
    assert raised.value.pid == child.pid == supervision.lock_holder(target.pid_file)
    assert "is locked by pid %d (" % child.pid in str(raised.value)


def test_the_lock_dies_with_its_process_and_a_stale_file_is_taken_over(instance):
    child, target = instance
    child.kill()
    child.wait()
    assert Path(target.pid_file).exists() and supervision.lock_holder(target.pid_file) is None
    with supervision.PidFile(target.pid_file):
        assert Path(target.pid_file).read_text() == "%d\n" % os.getpid()


def test_release_leaves_a_file_that_is_not_ours_and_may_be_called_twice(tmp_path):
    lock = supervision.PidFile(str(tmp_path / "x.pid"))
    lock.acquire()
    os.unlink(lock.path)
    Path(lock.path).write_text("another's\n")
    lock.release()
    lock.release()
    assert Path(lock.path).read_text() == "another's\n"


def test_never_do_two_processes_hold_a_lock_that_is_removed_and_made_anew_all_the_time(tmp_path):
    command = [sys.executable, "-c", CONTEND.format(root=str(ROOT)), str(tmp_path / "x.pid"), str(tmp_path / "inside")]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [child.communicate()[1] for child in children]
    assert errors == [b""] * 4


def test_the_lock_lies_where_no_handed_over_socket_is_put(tmp_path):
    with supervision.PidFile(str(tmp_path / "x.pid")) as lock:
        assert lock.descriptor >= supervision.KEPT_FROM and not os.get_inheritable(lock.descriptor)


@pytest.fixture
def unlocked(tmp_path):
    """What an exec hands over on a kernel that drops the lock: (path, descriptor)."""
    path = str(tmp_path / "x.pid")
    return path, supervision.kept(os.open(path, os.O_RDWR | os.O_CREAT))


def test_a_handed_over_lock_is_adopted_with_its_descriptor(unlocked):
    path, descriptor = unlocked
    with supervision.PidFile(path, descriptor) as lock:
        assert (lock.descriptor, Path(path).read_text()) == (descriptor, "%d\n" % os.getpid())
    assert not os.path.exists(path)


def test_a_handed_over_lock_of_a_file_that_was_removed_is_taken_anew(unlocked):
    path, descriptor = unlocked
    os.unlink(path)
    with supervision.PidFile(path, descriptor):
        assert Path(path).read_text() == "%d\n" % os.getpid()


def test_a_lock_lost_on_the_way_is_waited_for(unlocked, run):
    path, descriptor = unlocked
    child, _ = run("-c", INSTANCE.format(root=str(ROOT)).replace("signal.pause()", "sys.stdin.readline()"), path, 0,
                   stdin=subprocess.PIPE)
    lock = supervision.PidFile(path, descriptor)
    waiter = threading.Thread(target=lock.acquire)
    waiter.start()
    child.stdin.close()
    waiter.join(supervision.RELOCK_WAIT)
    assert child.wait() == 0 and Path(path).read_text() == "%d\n" % os.getpid()
    lock.release()


def test_a_lock_that_another_keeps_is_not_waited_for_for_ever(instance, monkeypatch):
    child, target = instance
    monkeypatch.setattr(supervision, "RELOCK_WAIT", 0.05)
    with pytest.raises(supervision.Held) as raised:
        supervision.PidFile(target.pid_file, os.open(target.pid_file, os.O_RDWR)).acquire()
    assert raised.value.pid == child.pid


@pytest.fixture
def two_lives(tmp_path, run):
    """Starts TWO_LIVES, connects, lets it execute itself: two_lives(order) -> (Popen, what it tells, the connection)."""
    program, connections = tmp_path / "two_lives.py", []
    program.write_text(TWO_LIVES.format(root=str(ROOT)))

    def start(order):
        child, port = run(program, tmp_path / "x.pid", stdin=subprocess.PIPE)
        connections.append(socket.create_connection(("127.0.0.1", int(port)), DEADLINE))
        assert supervision.lock_holder(str(tmp_path / "x.pid")) == child.pid
        child.stdin.write(order + "\n")
        child.stdin.close()
        return child, json.loads(child.stdout.readline()), connections[-1]
    yield start
    for connection in connections:
        connection.close()


def test_across_an_exec_process_lock_socket_state_and_waiting_clients_are_kept(two_lives, tmp_path):
    child, told, connection = two_lives("go")
    assert supervision.lock_holder(str(tmp_path / "x.pid")) == child.pid
    assert told == {"pid": child.pid, "caught": [], "state": True, "lock": told["lock"], "listener": 3, "environ": [],
                    "inherited": [0, 1, 2]}
    connection.sendall(b"still there?")
    assert connection.recv(99) == b"still there?"


def test_a_signal_between_two_lives_arrives_in_the_second(two_lives):
    assert two_lives("signal")[1]["caught"] == [signal.SIGTERM]


@pytest.mark.parametrize("third", ["listener", "file", "other socket"])
def test_an_exec_that_fails_leaves_all_as_it_was(tmp_path, run, third):
    program = tmp_path / "no_second_life.py"
    program.write_text(NO_SECOND_LIFE.format(root=str(ROOT)))
    assert run(program, third, tmp_path / "x.pid")[1] == "True True"


def test_a_handover_that_is_not_ours_is_cleared_and_counts_for_nothing(monkeypatch):
    for given in ('{"pid": 1, "lock": 0, "state": 0}', "{}", "[]", "7", "garbage", ""):
        monkeypatch.setenv("HANDOVER", given)
        assert supervision.inherited() is None and "HANDOVER" not in os.environ
    assert supervision.inherited() is None


def test_a_handover_of_what_is_not_ours_is_named(monkeypatch):
    monkeypatch.setenv("HANDOVER", json.dumps({"pid": os.getpid(), "lock": 9999, "state": 9999}))
    with pytest.raises(supervision.Failure, match="variable HANDOVER names what is no descriptor of ours"):
        supervision.inherited()


@pytest.fixture
def hand_over(monkeypatch):
    """Acts as a supervisor: hand_over(descriptor, pid=None, count="1")."""
    def give(descriptor, pid=None, count="1"):
        monkeypatch.setattr(supervision, "LISTEN_FDS_START", descriptor)
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_FDNAMES", "http")
    return give


@pytest.mark.parametrize("family, address", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_supervisors_socket_is_taken_as_it_is_and_not_passed_on(hand_over, family, address):
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen()
        os.set_inheritable(server.fileno(), True)
        hand_over(server.fileno())
        taken, = supervision.handed_sockets()
        assert (taken.family, taken.getsockname(), taken.get_inheritable()) == (family, server.getsockname(), False)
        assert taken.detach() == server.fileno()
    assert not [name for name in supervision.LISTEN_VARIABLES if name in os.environ]


def test_sockets_for_another_process_are_left_to_it(hand_over):
    hand_over(0, pid=os.getppid())
    assert supervision.handed_sockets() == [] and "LISTEN_PID" not in os.environ
    assert supervision.handed_sockets() == []


@pytest.mark.parametrize("make", [
    lambda: socket.socket(),
    lambda: socket.socket(type=socket.SOCK_DGRAM),
    lambda: socket.socketpair()[0],
    lambda: open(os.devnull),
])
def test_what_is_no_listening_tcp_socket_is_refused_by_number(hand_over, make):
    with make() as given:
        hand_over(given.fileno())
        with pytest.raises(supervision.Failure, match="descriptor %d of LISTEN_FDS is no " % given.fileno()):
            supervision.handed_sockets()


def test_a_count_of_sockets_that_is_none_is_refused(hand_over):
    hand_over(0, count="many")
    with pytest.raises(supervision.Failure, match="LISTEN_FDS='many' is no number of descriptors"):
        supervision.handed_sockets()


@pytest.mark.parametrize("make, words", [
    (os.mkdir, "is a folder; set METRICS_PID_FILE to a file"),
    (os.mkfifo, "is no regular file; remove it, or set another METRICS_PID_FILE"),
    (lambda path: os.symlink("target", path), "is a symbolic link, which is refused; remove it"),
    (lambda path: Path(path).write_bytes(b"x" * 5000), "has 5000 bytes, which is no PID but somebody's data"),
])
def test_what_cannot_be_a_pid_file_is_refused_before_and_at_the_lock(tmp_path, make, words):
    path = str(tmp_path / "x.pid")
    make(path)
    with pytest.raises(supervision.PidFileError) as raised:
        supervision.PidFile(path).acquire()
    assert str(raised.value) == supervision.path_fault(path)
    assert words in str(raised.value)


def test_a_missing_folder_of_the_pid_file_is_named(tmp_path):
    path = str(tmp_path / "none" / "x.pid")
    with pytest.raises(supervision.PidFileError, match="its folder is missing; create the folder"):
        supervision.PidFile(path).acquire()
    assert "its folder is missing" in supervision.path_fault(path)


def test_a_good_path_has_no_fault_and_looking_creates_nothing(tmp_path):
    assert supervision.path_fault(str(tmp_path / "x.pid")) is None
    assert os.listdir(str(tmp_path)) == []


def test_the_holder_of_a_database_lock_is_named_without_opening_the_file(tmp_path, run):
    path = tmp_path / "x.db"
    writer = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE t (a)'); " \
             "c.execute('BEGIN EXCLUSIVE'); print(flush=True); time.sleep(60)"
    child, _ = run("-c", writer, path)
    assert supervision.file_holders(str(path)) == [child.pid]


def test_listeners_are_found_by_address_and_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        inode = os.fstat(server.fileno()).st_ino
        expected = [(os.getpid(), inode, "127.0.0.1", port)]
        assert [supervision.listeners(host, port) for host in ("127.0.0.1", "0.0.0.0", "::")] == [expected] * 3
        assert supervision.listeners("127.0.0.2", port) == supervision.listeners("::1", port) == []


def test_a_process_is_described_on_one_line(run):
    child, _ = run("-c", "print(flush=True); import time; time.sleep(60)", "a\nb")
    assert supervision.describe(child.pid) == "pid %d (%s -c print(flush=True); import time; time.sleep(60) a?b, uid %d)" % (
        child.pid, sys.executable, os.getuid())
    child.kill()
    wait_for(lambda: supervision.process_stat(child.pid).state == "Z", "the zombie")
    assert supervision.describe(child.pid) == "pid %d (zombie, uid %d)" % (child.pid, os.getuid())
    child.wait()
    assert supervision.describe(child.pid) == "pid %d (gone)" % child.pid


def test_only_the_script_that_python_runs_counts(script, tmp_path, run):
    wait = "import time; print(flush=True); time.sleep(60)"
    editor = tmp_path / "editor.py"
    editor.write_text(wait)
    script.write_text(wait)
    assert supervision.script_of(run("-c", wait, script)[0].pid) is None
    assert supervision.script_of(run(editor, script)[0].pid) == str(editor)
    assert supervision.script_of(run("-W", "ignore", "-u", script)[0].pid) == str(script)
    assert supervision.script_of(run("metrics_service.py", cwd=str(tmp_path))[0].pid) == str(script)


def test_the_lock_proves_the_instance(instance):
    child, target = instance
    found = supervision.find(target)
    assert (found.instance.pid, found.instance.proof) == (child.pid, "holds the lock of " + target.pid_file)


@pytest.mark.parametrize("content", GARBAGE)
def test_behind_a_false_pid_file_the_instance_is_found_by_user_lock_and_port(instance, content):
    child, target = instance
    os.unlink(target.pid_file)
    Path(target.pid_file).write_bytes(content)
    found = supervision.find(target)
    assert (found.instance.pid, found.unproven) == (child.pid, [])
    assert "no PID of a service" in supervision.pid_file_says(target.pid_file) or content == b"4194304\n"


def test_an_instance_without_pid_file_on_another_port_is_named_and_not_proven(instance):
    child, target = instance
    os.unlink(target.pid_file)
    found = supervision.find(target._replace(port=target.port + 1))
    assert found.instance is None
    assert found.unproven == ["%s runs this folder's metrics_service.py but lacks port %d" % (
        supervision.describe(child.pid), target.port + 1)]


def test_a_stranger_that_holds_the_lock_is_named_and_not_proven(tmp_path, run):
    target = supervision.Target(str(tmp_path / "x.pid"), "127.0.0.1", 1)
    stranger = tmp_path / "stranger.py"
    stranger.write_text(INSTANCE.format(root=str(ROOT)))
    child, _ = run(stranger, target.pid_file, 0)
    found = supervision.find(target)
    assert found.instance is None
    assert found.unproven == ["%s holds the lock of %s but does not run metrics_service.py" % (
        supervision.describe(child.pid), target.pid_file)]


def test_other_instances_of_the_folder_and_the_same_script_elsewhere_are_no_concern(instance, tmp_path, run):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics_service.py").write_text(INSTANCE.format(root=str(ROOT)))
    run(other / "metrics_service.py", other / "x.pid", 0)
    target = supervision.Target(str(tmp_path / "y.pid"), "127.0.0.1", 1)
    assert supervision.find(target) == (None, [])


@pytest.mark.parametrize("pidfd", [True, False])
def test_nobody_is_signalled_once_the_proof_has_ended(instance, run, monkeypatch, pidfd):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    bystander, target = idle(run), instance[1]
    reused = supervision.Instance(bystander.pid, supervision.process_stat(bystander.pid).started, "was proven")
    with pytest.raises(supervision.Failure, match="no longer proven"):
        supervision.end(reused, target, 1)
    assert bystander.poll() is None


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_proven_instance_is_ended_even_when_it_is_stopped(instance, monkeypatch, pidfd):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    child, target = instance
    child.send_signal(signal.SIGSTOP)
    supervision.end(supervision.find(target).instance, target, 5)
    assert child.wait(1) == -signal.SIGTERM


def test_a_process_that_has_let_go_of_port_and_file_but_does_not_end_is_killed_all_the_same(script, tmp_path, run):
    stubborn = "signal.signal(signal.SIGTERM, lambda *_: server.close())\n    while True: signal.pause()"
    script.write_text(INSTANCE.format(root=str(ROOT)).replace("signal.pause()", stubborn))
    child, port = run(script, tmp_path / "x.pid", 0)
    (tmp_path / "x.pid").unlink()
    target = supervision.Target(str(tmp_path / "x.pid"), "127.0.0.1", int(port))
    supervision.end(supervision.find(target).instance, target, 0.2)
    assert child.wait(1) == -signal.SIGKILL


def test_a_spawned_process_has_its_own_session_no_descriptors_of_ours_and_a_private_output(tmp_path):
    output = tmp_path / "x.out"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    program = ("import os; print(os.getsid(0), sorted(os.listdir('/proc/self/fd'))[:3], "
               "os.path.exists('/proc/self/fd/%d'), os.getcwd())" % writer)
    child = supervision.spawn([sys.executable, "-c", program], str(output))
    assert child.wait() == 0
    assert output.read_text() == "%d ['0', '1', '2'] False /\n" % child.pid
    assert output.stat().st_mode & 0o777 == 0o640
    os.close(reader)
    os.close(writer)


def test_output_is_never_appended_through_a_symbolic_link(tmp_path):
    link = tmp_path / "x.out"
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(supervision.Failure, match="x.out could not be opened to append to"):
        supervision.spawn(["true"], str(link))
    assert supervision.output_fault(str(link)) and not (tmp_path / "victim").exists()


def test_find_has_an_exit_code_for_each_case(instance, capsys):
    child, target = instance
    command = ["find", "--pid-file", target.pid_file, "--host", target.host, "--port"]
    assert supervision.main(command + [str(target.port)]) == 0
    pid, uid, started, proof = capsys.readouterr().out.split(None, 3)
    assert (int(pid), int(uid), proof) == (child.pid, os.getuid(), "holds the lock of %s\n" % target.pid_file)
    assert abs(int(started) - time.time()) < 60
    moved = target.pid_file + ".moved"
    os.rename(target.pid_file, moved)
    assert supervision.main(command + [str(target.port)]) == 4
    os.rename(moved, target.pid_file)
    child.kill()
    child.wait()
    assert supervision.main(command + [str(target.port)]) == 1
    os.unlink(target.pid_file)
    assert supervision.main(command + [str(target.port)]) == 3


def test_bad_arguments_exit_2(capsys):
    with pytest.raises(SystemExit) as exited:
        supervision.main(["find"])
    assert exited.value.code == 2
    assert "--pid-file" in capsys.readouterr().err


def test_a_database_stays_locked_while_its_holders_are_named(tmp_path):
    path = tmp_path / "x.db"
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert supervision.file_holders(str(path)) == [os.getpid()]
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    other = subprocess.Popen([sys.executable, "-c", program, str(path)], stderr=subprocess.PIPE)
    assert b"database is locked" in other.communicate()[1]
    connection.close()
