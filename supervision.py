#!/usr/bin/env python3
"""Be a well-behaved process, and prove who is one: environment files, a locked PID file, handover, proof, start and stop.

A number in a PID file proves nothing: its process may be gone and the number given away. What proves life is the
lock that a process holds on the file, since the kernel drops it with the process and names the holder to whoever asks.
Nothing is signalled that is not proven to be the instance: it runs metrics_service.py and holds the lock of the PID
file, or, where the file is missing or false, all of: it runs the metrics_service.py of this folder, as our own user (for
root: or as the owner of the PID file's folder), has the PID file's path open and locked, deleted or not, and listens on
the configured port.

The commands serve restart_service.sh, which says --pid-file, --host and --port to each:
  find     print PID, UID, start (seconds since 1970) and proof of the instance;
           exit 0 found, 1 only a PID file found, 3 nothing found, 4 not proven: named, and left alone
  check    exit 0 when an instance could be started here: its files are usable, the port is free or the instance's own
  stop     end the instance and wait until its port is free; exit 0 ended or nothing to end, 1 not
  start    start a command detached, its output appended to PIDFILE.out, and await it; exit as await
  replace  the same while an instance runs, which is ended once the new one waits for its lock; exit as await
  reload   have the instance load its code and settings anew, and await that; exit as await, 1 also when it refuses
  await    wait until the instance is ready and print URL, instance id, since when it serves, its env file's digest, and when
           health_check.py asked last, - for what it does not say;
           exit 0 ready, 1 ended or nobody listens, 3 it answers but is not ready, 4 it does not answer
  digest   print the digest of an environment file, as the instance has it of the one that it has loaded
  confirm  run the health check, given after --, on the instance; exit as it does, 0 also when it would have no
           credentials or no way to verify the certificate from here, which is then said
  hold     take the lock file that an inherited descriptor refers to; exit 0 held, 1 not in time
Bad arguments exit 2.
"""
import argparse
import contextlib
import errno
import fcntl
import functools
import ipaddress
import json
import os
import re
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from urllib.parse import urlsplit

SCRIPT = "metrics_service.py"
SERVICE = os.path.join(os.path.dirname(os.path.realpath(__file__)), SCRIPT)

PID_FILE_MAX = 4096             # bytes; a longer file is somebody's data, which a PID must not overwrite
PID_SHOWN = 40                  # bytes of a PID file's content in a message
COMMAND_SHOWN = 120             # characters of a command line in a message
POLL = 0.05                     # seconds between two looks at a condition
LOCK_POLL = 0.002               # seconds between two tries to lock; the next service starts when it succeeds
LISTEN_FDS_START = 3            # first descriptor of sd_listen_fds(3)
KEPT_FROM = 16                  # where descriptors begin that a handover must not overwrite; sockets are handed over below
RELOCK_WAIT = 5.0               # seconds for a lock lost by exec: another start that takes it finds the port taken and ends
KILL_WAIT = 5.0                 # seconds from SIGKILL until we call a process unkillable (stuck in the kernel)
ASK_WAIT = 2.0                  # seconds for one answer of the service
ANSWER_MAX = 65536              # bytes of an answer that are read
FLOCK = "hhqqi0q"               # struct flock of fcntl(2) with 64-bit offsets: type, whence, start, length, pid, padding
TCP_LISTEN = "0A"               # TCP_LISTEN of linux/tcp_states.h, as /proc/net/tcp prints it

PYTHON = re.compile(r"(platform-)?(python|pypy)[0-9.]*[dmtu]*(-dbg)?")    # file name of an interpreter; platform- is RHEL's
PYTHON_PAIRS = ("-W", "-X", "--check-hash-based-pycs")                     # its options whose value is the next argument
PID = re.compile(rb"[1-9][0-9]{0,9}\n?")

LIFE_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)   # what reloads or ends a service
LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
HANDOVER = "HANDOVER"           # environment variable from a process to its own next program: JSON with pid, lock and state
CHECK = "METRICS_CHECK_"        # how the health check's variables begin
PATIENCE = "SUPERVISION_WAIT"   # environment variable from whoever starts a successor: seconds that it waits for the PID lock
TIMESTAMP = "%Y-%m-%dT%H:%M:%SZ"
SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
EXPIRED = (9, 10)               # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED of x509_vfy.h

ENV_SKIPPED = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\n|\Z)")
ENV_NAME = re.compile(r"[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
ENV_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")[ \t]*""", re.DOTALL)
ENV_BARE = re.compile(r"((?:[^\\ \t\n]|\\(?:.|\Z)|[ \t]+(?![ \t\n]|\Z))*)[ \t]*", re.DOTALL)   # less trailing blanks
ENV_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)

Variable = namedtuple("Variable", "name value line")
Listener = namedtuple("Listener", "pid inode address port")     # pid is None where /proc hides whose socket it is
ProcessStat = namedtuple("ProcessStat", "state started")        # one letter of proc(5); clock ticks after boot
Usage = namedtuple("Usage", "started cpu_seconds resident_bytes virtual_bytes open_files max_files")    # of this process
Target = namedtuple("Target", "pid_file host port tls")         # which instance is meant; tls: its certificate's file, if any
Target.__new__.__defaults__ = (None,)
Claim = namedtuple("Claim", "words holds")                      # one part of a proof
Instance = namedtuple("Instance", "pid started proof")
Finding = namedtuple("Finding", "instance unproven")            # Instance or None; sentences that name who might be it
Handover = namedtuple("Handover", "lock state")                 # descriptor of the locked PID file; bytes
Answer = namedtuple("Answer", "url instance since ready open detail refusal loaded checked")  # None: not said; detail: why not ready
NO_ANSWER = Answer(None, None, None, False, True, None, None, None, None)       # open: it tells strangers more than its status


class EnvFileError(ValueError):
    """An environment file cannot be used; the message starts with FILE:LINE and names the cure."""


class PidFileError(OSError):
    """A path cannot serve as PID file; the message says why and names the cure."""


class Held(Exception):
    """Another living process holds the lock; `pid` is its number, 0 when it lives in another PID namespace."""

    def __init__(self, message, pid):
        super().__init__(message)
        self.pid = pid


class Failure(Exception):
    """What was asked for could not be done; the message says why, and who is in the way."""


# Environment files

def _env_text(path):
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise EnvFileError("{}: could not be read: {}".format(path, error.strerror)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise EnvFileError("{}:{}: is not UTF-8; save the file as UTF-8".format(path, line)) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise EnvFileError("{}:{}: contains a NUL character; write the file anew as plain text".format(path, line))
    return re.sub("\r\n?", "\n", text)


def _bad_line(line):
    if line.startswith("export "):
        return "`export` belongs to shells; write {}".format(line[len("export "):].strip())
    if "=" in line:
        return "{} is no variable name; use letters, digits and _".format(ascii(line.split("=", 1)[0].strip()))
    return "{} is no assignment; write NAME=VALUE, or # before a comment".format(ascii(line))


def _double_quoted(escape):
    """Within double quotes a backslash counts only before what a shell would let it escape; else it stays."""
    character = escape.group(1)
    return "" if character == "\n" else character if character in '"\\`$' else escape.group(0)


def _env_value(text, at):
    """Read one value; return it and where it ends, or None for a quote that never closes."""
    parts = []
    quoted = ENV_QUOTED.match(text, at)
    while quoted:
        single, double = quoted.groups()
        parts.append(ENV_ESCAPE.sub(_double_quoted, double) if single is None else single)
        at = quoted.end()
        quoted = ENV_QUOTED.match(text, at)
    if text[at:at + 1] in ("'", '"'):
        return None, at
    bare = ENV_BARE.match(text, at)
    parts.append(ENV_ESCAPE.sub(lambda escape: escape.group(1).strip("\n"), bare.group(1)))
    return "".join(parts), bare.end()


def read_env_file(path):
    """Return the Variables of an EnvironmentFile= (systemd.exec(5)), in file order; of a name given twice the last counts.

    Quotes and backslashes work as systemd reads them; nothing is expanded. Lines that systemd would
    skip with a note in the journal are errors here: a setting that silently does not count is a trap.
    """
    text = _env_text(path)
    variables, at = [], 0
    while at < len(text):
        skipped = ENV_SKIPPED.match(text, at)
        if skipped:
            at = skipped.end()
            continue
        line = text.count("\n", 0, at) + 1
        name = ENV_NAME.match(text, at)
        if not name:
            raise EnvFileError("{}:{}: {}".format(path, line, _bad_line(text[at:].split("\n", 1)[0].strip())))
        value, at = _env_value(text, name.end())
        if value is None:
            raise EnvFileError("{}:{}: the quote of {} is never closed; close it, or put a backslash before it"
                               .format(path, line, name.group(1)))
        variables.append(Variable(name.group(1), value, line))
    return variables


def digest(path):
    """Return the CRC-32 of the service's variables in an environment file, in hex, by which what is loaded is told from what is
    on disk; None where there is no such file. Comments, order, and what is the health check's do not count."""
    try:
        variables = {one.name: one.value for one in read_env_file(path)} if path else {}
    except EnvFileError:
        return None
    own = sorted(item for item in variables.items() if item[0].startswith("METRICS_") and not item[0].startswith(CHECK))
    return "{:08x}".format(zlib.crc32(json.dumps(own).encode("ascii"))) if path else None


# What /proc tells of processes

def process_stat(pid):
    """Return the ProcessStat of a process, None when there is none. A number with its start time is never reused."""
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            fields = file.read().rpartition(b")")[2].split()    # the name before it may hold blanks and brackets
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:     # hidepid=1 of proc(5)
        return ProcessStat("?", None)
    return ProcessStat(fields[0].decode(), int(fields[19])) if fields else None


def command_line(pid):
    """Return the arguments of a process; none for a kernel thread, a zombie and a process that is gone."""
    try:
        with open("/proc/{}/cmdline".format(pid), "rb") as file:
            return [os.fsdecode(argument) for argument in file.read().split(b"\0")[:-1]]
    except OSError:         # gone, or hidden by hidepid=
        return []


def owner(pid):
    """Return the effective uid of a process, None when it is gone or hidden."""
    try:
        return os.stat("/proc/{}".format(pid)).st_uid
    except OSError:
        return None


def describe(pid):
    """Return a process in words, as far as /proc tells: `pid 123 (python3 x.py, uid 0)`."""
    status, uid = process_stat(pid), owner(pid)
    if status is None:
        return "pid {} (gone)".format(pid)
    if status.state == "Z":
        return "pid {} (zombie, uid {})".format(pid, uid)
    command = "".join(c if c.isprintable() else "?" for c in " ".join(command_line(pid)))   # os.fsdecode's surrogates too
    if len(command) > COMMAND_SHOWN:
        command = command[:COMMAND_SHOWN] + "..."
    return "pid {} ({}, uid {})".format(pid, command or "no command line", uid)


def processes():
    """Return the PIDs of this PID namespace that /proc shows."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def open_files(pid):
    """Yield (descriptor path, link target) of a process; nothing where /proc denies it."""
    folder = "/proc/{}/fd".format(pid)
    try:
        numbers = os.listdir(folder)
    except OSError:         # gone meanwhile, or another user's
        return
    for number in numbers:
        path = os.path.join(folder, number)
        try:
            yield path, os.readlink(path)
        except OSError:     # closed meanwhile
            continue


# Locks

def lock_holder(path):
    """Return the PID that holds a POSIX lock on a file, None when nobody does or the file is missing.

    The kernel's own word, by F_GETLK. 0 means held by a process of another PID namespace, which has no number here.
    Never call it in a process that holds the lock: closing any descriptor of a file drops all locks that
    the process has on it. Raises OSError where the file cannot be read, or is a symbolic link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)    # a FIFO would wait
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def _may_have_open(pid, wanted):
    seen = False
    for descriptor, _ in open_files(pid):
        seen = True
        try:
            if os.path.samestat(os.stat(descriptor), wanted):
                return True
        except OSError:     # closed meanwhile
            continue
    return not seen


def file_holders(path, kinds=("READ", "WRITE")):
    """Return the PIDs that hold POSIX locks of these kinds on a file, from /proc/locks, never opening it.

    Inode numbers repeat across file systems and /proc/locks names devices in its own way, so each
    PID is verified by its open descriptors; where those are hidden it is believed.
    """
    wanted = os.stat(path)
    with open("/proc/locks") as file:
        rows = [line.split() for line in file]
    pids = {int(row[4]) for row in rows
            if row[1] == "POSIX" and row[3] in kinds and row[5].rpartition(":")[2] == str(wanted.st_ino)}
    return sorted(pid for pid in pids if pid > 0 and _may_have_open(pid, wanted))


def describe_holders(path):
    """Return which other processes hold POSIX locks on a file, each in words; of one that keeps a writer waiting, that it only
    reads."""
    try:
        writers, pids = file_holders(path, ("WRITE",)), file_holders(path)
        return [describe(pid) + ("" if pid in writers else " which only reads") for pid in pids if pid != os.getpid()]
    except OSError:         # the file is gone by now, or no descriptor is left to read /proc with
        return []


def lock_holders(path):
    """Return the same in one sentence."""
    held = describe_holders(path)
    return "held by " + ", ".join(held) if held else "whose process is not visible from here"


def content_fault(path, status):
    """Return why a file of this os.stat_result must not become a PID file, None when it may."""
    if not stat.S_ISREG(status.st_mode):
        return "PID file {} is no regular file; remove it, or set another METRICS_PID_FILE".format(path)
    if status.st_size > PID_FILE_MAX:
        return ("PID file {} has {} bytes, which is no PID but somebody's data; set another METRICS_PID_FILE, or remove the file"
                .format(path, status.st_size))
    return None


def _open_fault(path, error):
    causes = {
        errno.ELOOP: "is a symbolic link, which is refused; remove it, or set METRICS_PID_FILE to the file itself",
        errno.EISDIR: "is a folder; set METRICS_PID_FILE to a file",
        errno.ENOENT: "cannot be created: its folder is missing; create the folder, or set another METRICS_PID_FILE",
        errno.EACCES: "cannot be opened for writing by uid {}; give it the file and its folder, or set another METRICS_PID_FILE"
                      .format(os.geteuid()),
    }
    return "PID file {} {}".format(path, causes.get(error.errno, "could not be opened: {}".format(error.strerror)))


def kept(descriptor):
    """Return a copy of a descriptor that no socket handed over from LISTEN_FDS_START up takes the number of."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, KEPT_FROM)


class PidFile:
    """A file that holds our PID, and whose lock proves that we live.

    The lock is POSIX (fcntl): it survives exec while its descriptor stays open, children do not inherit it, and the
    kernel names its holder. The file must not be opened elsewhere in this process: closing it would drop the lock.

    `descriptor` is the one that we had locked before an exec, from inherited(). Before Linux 5.11 the exec of a process
    with threads drops the lock all the same, so that it is then taken anew. Who was started to replace another waits for
    its lock, as long as the environment variable PATIENCE says; the descriptor that it has open meanwhile shows that it does.
    """

    def __init__(self, path, descriptor=None):
        self.path = os.path.abspath(path)
        self.descriptor = None
        self.handed = descriptor
        given = os.environ.pop(PATIENCE, "")
        self.patience = RELOCK_WAIT if descriptor is not None else float(given) if SECONDS.fullmatch(given) else 0.0

    def acquire(self):
        """Lock the file and write our PID; raise Held when another process has it, PidFileError for the rest."""
        deadline = time.monotonic() + self.patience
        while self.descriptor is None:
            descriptor, self.handed = self._open() if self.handed is None else self.handed, None
            try:
                self._lock(descriptor, deadline)
                if self._names(descriptor):    # else its last holder removed it between our open and our lock
                    self.descriptor = descriptor
            finally:
                if self.descriptor is None:
                    os.close(descriptor)
        try:
            written = os.pwrite(self.descriptor, "{}\n".format(os.getpid()).encode("ascii"), 0)
            os.ftruncate(self.descriptor, written)    # after the write: never empty in between
        except OSError as error:
            self.release()
            raise PidFileError("PID file {} could not be written: {}".format(self.path, error.strerror)) from error

    def release(self):
        """Remove the file if the path still names ours, then give the lock up; a second call does nothing."""
        if self.descriptor is None:
            return
        descriptor, self.descriptor = self.descriptor, None
        try:
            if self._names(descriptor):
                os.unlink(self.path)    # while we hold the lock: whoever waits for it finds the path changed
        except OSError:     # folder made read-only since; a file that nobody locks is merely stale
            pass
        finally:
            os.close(descriptor)

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exception):
        self.release()

    def _open(self):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            first = os.open(self.path, flags, 0o644)
            try:
                descriptor = kept(first)    # before it is locked: closing the first one later would drop the lock
            finally:
                os.close(first)
        except OSError as error:
            raise PidFileError(_open_fault(self.path, error)) from error
        fault = content_fault(self.path, os.fstat(descriptor))
        if fault:
            os.close(descriptor)
            raise PidFileError(fault)
        return descriptor

    def _lock(self, descriptor, deadline):
        try:
            while not self._locks(descriptor):
                if time.monotonic() >= deadline:
                    raise self._held()
                time.sleep(LOCK_POLL)
        except OSError as error:
            raise PidFileError("PID file {} could not be locked: {}; use a local file system"
                               .format(self.path, error.strerror)) from error

    def _locks(self, descriptor):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):    # EAGAIN or EACCES, says fcntl(2)
            return False
        return True

    def _held(self):
        pid = lock_holder(self.path) or 0
        who = describe(pid) if pid else "a process that cannot be named from here"
        return Held("PID file {} is locked by {}; it is running already: stop it first, or set another METRICS_PID_FILE"
                    .format(self.path, who), pid)

    def _names(self, descriptor):
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def path_fault(path):
    """Return why PidFile(path).acquire() would fail for another reason than Held, None when it would not; creates nothing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.abspath(path))
        code = 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES if os.path.isdir(folder) else errno.ENOENT
    except OSError as error:
        return _open_fault(path, error)
    else:
        kind = {stat.S_IFLNK: errno.ELOOP, stat.S_IFDIR: errno.EISDIR}.get(stat.S_IFMT(status.st_mode), 0)
        code = kind or (0 if os.access(path, os.R_OK | os.W_OK) else errno.EACCES)
        if not kind and content_fault(path, status):
            return content_fault(path, status)
    return _open_fault(path, OSError(code, os.strerror(code))) if code else None


# Sockets

def _proc_address(digits):
    """Turn /proc's address, 32-bit words in the machine's byte order, into an ipaddress; ::ffff:a.b.c.d becomes a.b.c.d."""
    words = [int(digits[i:i + 8], 16) for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(struct.pack("={}I".format(len(words)), *words))
    return getattr(address, "ipv4_mapped", None) or address


def _listening(port):
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except FileNotFoundError:    # a kernel without IPv6
            continue
        for row in rows:
            address, _, local_port = row[1].partition(":")
            if row[3] == TCP_LISTEN and port in (0, int(local_port, 16)):
                yield int(row[9]), _proc_address(address), int(local_port, 16)


def _meet(one, other):
    if one.version != other.version:
        return any(address.version == 6 and address.is_unspecified for address in (one, other))
    return one == other or one.is_unspecified or other.is_unspecified


def _socket_owners(inodes):
    """Map socket inode to the PIDs that have it open, as far as /proc lets us see."""
    wanted = {"socket:[{}]".format(inode): inode for inode in inodes}
    owners = {}
    for pid in processes():
        for inode in {wanted[target] for _, target in open_files(pid) if target in wanted}:
            owners.setdefault(inode, []).append(pid)
    return owners


def _resolve(host, port):
    return {ipaddress.ip_address(entry[4][0].split("%")[0]) for entry in
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)}


def listeners(host, port):
    """Return the Listeners that a server on this host and port would meet, one for each process that has the socket open.

    Port 0 stands for every port. From /proc/net/tcp and tcp6; a wildcard on either side meets every address of its
    family, and `::` those of IPv4 too. Raises OSError (socket.gaierror) when the host's name does not resolve.
    """
    wanted = _resolve(host, port)
    found = [row for row in _listening(port) if any(_meet(row[1], one) for one in wanted)]
    pids = _socket_owners({row[0] for row in found}) if found else {}
    return [Listener(pid, inode, str(address), at) for inode, address, at in found for pid in pids.get(inode, [None])]


# Handover: by a supervisor to us, and by us to our next program

def _listening_socket(descriptor):
    """Return the socket of a descriptor, close-on-exec; raise Failure unless it is a TCP socket that listens."""
    try:
        given = socket.socket(fileno=descriptor)    # Python 3.6 takes whatever it is for a socket of AF_INET
        try:
            family, kind, listens = (given.getsockopt(socket.SOL_SOCKET, option)
                                     for option in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_ACCEPTCONN))
        finally:
            given.detach()
    except OSError as error:
        raise Failure("descriptor {} of LISTEN_FDS is no socket: {}".format(descriptor, error.strerror)) from error
    if family not in (socket.AF_INET, socket.AF_INET6) or kind != socket.SOCK_STREAM or not listens:
        raise Failure("descriptor {} of LISTEN_FDS is no listening TCP socket; give it by ListenStream=ADDRESS:PORT"
                      .format(descriptor))
    os.set_inheritable(descriptor, False)
    return socket.socket(family, kind, fileno=descriptor)


def handed_sockets():
    """Return the listening TCP sockets that were handed to us by the protocol of sd_listen_fds(3), and clear its variables.

    What is meant for another process, such as our parent, is not ours. Raises Failure for what cannot be served on.
    """
    pid, count, _ = [os.environ.pop(name, "") for name in LISTEN_VARIABLES]
    if pid != str(os.getpid()):
        return []
    if not re.fullmatch("[0-9]{1,4}", count):
        raise Failure("LISTEN_FDS={} is no number of descriptors".format(ascii(count)))
    return [_listening_socket(LISTEN_FDS_START + number) for number in range(int(count))]


@contextlib.contextmanager
def blocked():
    """Keep LIFE_SIGNALS waiting while the block runs; a thread started in it never takes one.

    The mask belongs to the thread: only where all others were started in such a block does none of them take a signal
    that the exec would then lose.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LIFE_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock():
    """Let LIFE_SIGNALS through once their handlers are in place: what waited since before an exec arrives now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LIFE_SIGNALS)


@contextlib.contextmanager
def _inheritable(descriptor):
    before = os.get_inheritable(descriptor)
    os.set_inheritable(descriptor, True)
    try:
        yield
    finally:
        os.set_inheritable(descriptor, before)


@contextlib.contextmanager
def _numbered(descriptor, number):
    """Give a descriptor this number, inheritable; what had the number comes back at the end of the block."""
    if descriptor == number:
        with _inheritable(descriptor):
            yield
        return
    try:
        inheritable = os.get_inheritable(number)
    except OSError:         # nothing has the number
        aside = None
    else:
        aside = kept(number)
    try:
        os.dup2(descriptor, number)
        yield
    finally:
        if aside is None:
            os.close(number)
        else:
            os.dup2(aside, number, inheritable)
            os.close(aside)


@contextlib.contextmanager
def _written(content):
    """Give the descriptor of a file without a name that holds these bytes."""
    if hasattr(os, "memfd_create"):     # Python 3.8
        made = open(os.memfd_create(HANDOVER), "w+b")
    else:
        import tempfile                 # seldom needed
        made = tempfile.TemporaryFile()
    with made as file:
        file.write(content)
        file.flush()
        descriptor = kept(file.fileno())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def reexec(command, listener, lock, state):
    """Run another program as this same process, which takes over our listening socket, our PidFile and these bytes.

    The socket is handed over as handed_sockets() takes it, the rest as inherited() does; LIFE_SIGNALS wait until unblock().
    Other descriptors that `state` names must be inheritable and must not be LISTEN_FDS_START; no other thread may be at
    work. Call it in a block of blocked() that began before the last look at the signals that had arrived: one that arrives
    behind that look, and is handled, is lost. Never returns. Raises OSError when the program cannot be run; then all is as
    it was.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(blocked())
        content = undo.enter_context(_written(state))
        undo.enter_context(_numbered(listener.fileno(), LISTEN_FDS_START))
        for descriptor in (lock.descriptor, content):
            undo.enter_context(_inheritable(descriptor))
        handover = json.dumps({"pid": os.getpid(), "lock": lock.descriptor, "state": content})
        given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", HANDOVER: handover}
        os.execve(command[0], command, dict(os.environ, **given))


def inherited():
    """Return the Handover of the program that we were before reexec(), None when there was none; clears its variable."""
    try:
        given = json.loads(os.environ.pop(HANDOVER, "{}"))
        pid, lock, state = given["pid"], int(given["lock"]), int(given["state"])
    except (ValueError, TypeError, KeyError):    # not given, or not by us
        return None
    if pid != os.getpid():
        return None
    try:
        os.set_inheritable(lock, False)
        with open(state, "rb") as file:
            file.seek(0)
            return Handover(lock, file.read())
    except OSError as error:
        raise Failure("variable HANDOVER names what is no descriptor of ours: {}; unset it".format(error.strerror)) from error


# Proof of identity

def _link(pid, name):
    try:
        return os.readlink("/proc/{}/{}".format(pid, name))
    except OSError:         # gone, or another user's
        return None


def script_of(pid):
    """Return the path of the script that a process runs with Python, None when it runs none.

    Only the interpreter's first argument that is no option counts: an editor or a pager with the file open is not it.
    """
    arguments = command_line(pid)
    if not arguments or not any(PYTHON.fullmatch(os.path.basename(name)) for name in (arguments[0], _link(pid, "exe") or "")):
        return None
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in PYTHON_PAIRS:
            next(rest, None)
        elif argument == "-" or argument.startswith(("-c", "-m")):
            return None
        elif not argument.startswith("-"):
            return os.path.realpath(os.path.join(_link(pid, "cwd") or "/nowhere", argument))
    return None


def holder(path):
    """Return lock_holder(path), by way of /proc/locks where the file cannot be read; None where nothing lockable is."""
    try:
        return lock_holder(path)
    except PermissionError:
        return next(iter(file_holders(path)), None)
    except OSError:         # a symbolic link or a socket, which no PidFile locks
        return None


def _trusted_uids(path):
    """Our own user; root also stops what it runs as the user to whom it gave the PID file's folder."""
    uids = {os.geteuid()}
    if os.geteuid() == 0:
        try:
            uids.add(os.stat(os.path.dirname(path)).st_uid)
        except OSError:     # no folder, no owner
            pass
    return uids


def _is_locked(pid, number):
    try:
        with open("/proc/{}/fdinfo/{}".format(pid, number)) as file:
            return any(line.startswith("lock:") and " POSIX " in line for line in file)
    except OSError:         # closed meanwhile
        return False


def _has_locked(pid, path):
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return any(target in (path, path + " (deleted)") and _is_locked(pid, os.path.basename(descriptor))
               for descriptor, target in open_files(pid))


def port_holders(target):
    """Return the Listeners where the target is to listen."""
    try:
        return listeners(target.host, target.port)
    except (OSError, UnicodeError):     # METRICS_HOST does not resolve, or is no name: then the port alone is looked at
        return listeners("::", target.port)


def _listens(pid, target):
    hidden = not os.access("/proc/{}/fd".format(pid), os.R_OK)
    return any(listener.pid == pid or listener.pid is None and hidden for listener in port_holders(target))


def claims(pid, target):
    """Return the Claims that together prove a process of this folder's service to be the instance without its PID file."""
    return [Claim("a trusted user (uid {})".format(owner(pid)), owner(pid) in _trusted_uids(target.pid_file)),
            Claim("a lock on {}".format(target.pid_file), _has_locked(pid, target.pid_file)),
            Claim("port {}".format(target.port) if target.port else "a port", _listens(pid, target))]


def proof(pid, target):
    """Return in words what proves a process to be the instance, None when nothing does."""
    if pid <= 1:
        return None
    locked_by, script = holder(target.pid_file), script_of(pid)
    if locked_by is not None:
        proven = pid == locked_by and script is not None and os.path.basename(script) == SCRIPT
        return "holds the lock of {}".format(target.pid_file) if proven else None
    found = claims(pid, target) if script == SERVICE else []
    return "has " + ", ".join(claim.words for claim in found) if found and all(claim.holds for claim in found) else None


def _suspicion(pid, target):
    """Name a process of this folder that has our PID file or port; whoever has neither is another instance, and no concern."""
    found = claims(pid, target)
    if any(claim.holds for claim in found[1:]):
        lacks = " and ".join(claim.words for claim in found if not claim.holds) or "the lock of the present PID file"
        yield "{} runs this folder's {} but lacks {}".format(describe(pid), SCRIPT, lacks)


def find(target):
    """Return the Finding: the proven instance, and who looks like it without being proven."""
    locked_by = holder(target.pid_file)
    candidates = [pid for pid in processes() if pid == locked_by or pid > 1 and script_of(pid) == SERVICE]
    instance, unproven = None, []
    for pid in candidates:
        status = process_stat(pid)
        words = proof(pid, target)
        if words and status and not instance:
            instance = Instance(pid, status.started, words)
        elif pid == locked_by:
            unproven.append("{} holds the lock of {} but does not run {}".format(describe(pid), target.pid_file, SCRIPT))
        else:
            unproven.extend(_suspicion(pid, target))
    if locked_by == 0:
        unproven.append("a process of another PID namespace (a container?) holds the lock of {}".format(target.pid_file))
    return Finding(instance, unproven)


def _content(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, PID_FILE_MAX)
    finally:
        os.close(descriptor)


def pid_file_says(path):
    """Return in words what a PID file that nobody locks contains, None when there is no file."""
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return "PID file {} could not be read: {}".format(path, error.strerror)
    if not PID.fullmatch(content) or int(content) <= 1:
        shown = ascii(content[:PID_SHOWN])[1:] + ("..." if len(content) > PID_SHOWN else "")
        return "PID file {} contains {}, which is no PID of a service".format(path, shown)
    return "PID file {} names {}, which does not hold its lock and is left alone".format(path, describe(int(content)))


def start_time(pid):
    """Return when a process started, in seconds since 1970; None when it is gone."""
    status = process_stat(pid)
    if status is None:
        return None
    with open("/proc/uptime") as file:
        age = float(file.read().split()[0]) - status.started / os.sysconf("SC_CLK_TCK")
    return time.time() - age


@functools.lru_cache(maxsize=None)
def _birth():
    """Return start_time() of this process, always the same, though somebody sets the clock."""
    return round(start_time(os.getpid()), 2)


def usage():
    """Return the Usage of this process: Unix time, seconds, bytes. Raises OSError, as without a descriptor to read /proc by."""
    with open("/proc/self/statm") as file:
        virtual, resident = (int(pages) * resource.getpagesize() for pages in file.read().split()[:2])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    open_files = len(os.listdir("/proc/self/fd")) - 1       # less the one that lists them
    return Usage(_birth(), time.process_time(), resident, virtual, open_files,
                 float("inf") if limit == resource.RLIM_INFINITY else limit)


def wait_until(look, seconds, enough=bool):
    """Return what `look` returns once that is enough, or what it last returned when the seconds have passed."""
    deadline = time.monotonic() + seconds
    while True:
        result = look()
        if enough(result) or time.monotonic() >= deadline:
            return result
        time.sleep(POLL)


def ended(instance):
    """Tell whether the process is gone; a zombie, which only its parent can bury, and a reused number count as gone."""
    status = process_stat(instance.pid)
    return status is None or status.state in "ZX" or status.started != instance.started


def _pidfd(pid):
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:         # an old kernel, a sandbox that forbids it, or gone, which the proof will tell
        return None


def _send(instance, descriptor, number):
    try:
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        elif not ended(instance):
            os.kill(instance.pid, number)
    except ProcessLookupError:    # it ended by itself, which is what was wanted
        pass
    except PermissionError as error:
        raise Failure("{} belongs to another user; run this as that user, or as root".format(describe(instance.pid))) from error


@contextlib.contextmanager
def grip(instance, target):
    """Give a function that signals the instance and nobody else; raise Failure where the proof has ended.

    A pidfd stands for a process and not for its number: what is proven after opening it stays true. Before Linux 5.3 or
    Python 3.9 the start time is compared right before each signal instead, which leaves a gap of some microseconds.
    """
    descriptor = _pidfd(instance.pid)
    try:
        if ended(instance) or not proof(instance.pid, target):
            raise Failure("pid {} is no longer proven to be this instance and was not signalled".format(instance.pid))
        yield lambda number: _send(instance, descriptor, number)
    finally:
        if descriptor is not None:
            os.close(descriptor)


# Stop, start, and proof that it answers

def say(words):
    print("supervision: " + words, file=sys.stderr, flush=True)


def strangers(target, instance):
    """Name the processes other than the instance that listen where it should."""
    return ["port {} on {} is taken by {}; end it, or set another METRICS_PORT".format(
                one.port, one.address, describe(one.pid) if one.pid else "a process that only root can name")
            for one in (port_holders(target) if target.port else []) if one.pid is None or one.pid != (instance and instance.pid)]


def end(instance, target, seconds):
    """End the instance, by SIGKILL when SIGTERM has not ended it in time; then wait until no child of it holds its port."""
    sockets = {one.inode for one in port_holders(target) if one.pid == instance.pid}
    say("stopping {}, which {}".format(describe(instance.pid), instance.proof))
    with grip(instance, target) as send:
        send(signal.SIGTERM)
        send(signal.SIGCONT)    # a stopped process could not act on SIGTERM
        if not wait_until(lambda: ended(instance), seconds):
            say("pid {} did not end within {:g} s of SIGTERM; killing it".format(instance.pid, seconds))
            send(signal.SIGKILL)
        if not wait_until(lambda: ended(instance), KILL_WAIT):
            raise Failure("{} did not end within {:g} s of SIGKILL; it hangs in the kernel, look at its disk"
                          .format(describe(instance.pid), KILL_WAIT))
    if not wait_until(lambda: not sockets & {one.inode for one in port_holders(target)}, KILL_WAIT):
        raise Failure("pid {} has ended, but {}".format(instance.pid, "; ".join(strangers(target, None))))


def tidy(path):
    """Remove a PID file that nobody locks, by locking it first; leave alone what does not look like one."""
    try:
        if PID.fullmatch(_content(path)):
            with PidFile(path):
                pass
    except (OSError, Held):    # missing, not ours to remove, or taken meanwhile: all are fine
        pass


def _ask(url, path):
    """Return status and JSON object of an answer; raise OSError or ValueError where there is none.

    No certificate is verified: that the port is the instance's own is proven better.
    """
    import http.client      # a third of the start-up time, and 4 MiB of OpenSSL, which the service may do without
    import ssl
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ASK_WAIT)
    if parts.scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=ASK_WAIT, context=context)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        document = json.loads(response.read(ANSWER_MAX).decode("utf-8"))
    except http.client.HTTPException as error:
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise ValueError("{} is no JSON object".format(path))
    return response.status, document


def _complaints(status, health):
    """Say in one line what a health+json document finds wrong."""
    entries = [(name, entry) for name, entries in sorted((health.get("checks") or {}).items()) for entry in entries]
    words = ["{}: {}".format(name, entry.get("output") or entry.get("reason")) for name, entry in entries
             if entry.get("status") == "fail"]
    return "; ".join(words) or "/readyz answers {}".format(status)


def _refusal(health):
    """Return when and why the instance refused its last reload, None when it did not, or tells strangers nothing."""
    entries = (health.get("checks") or {}).get("service:reload") or []
    return next(((entry.get("time"), entry.get("output")) for entry in entries if entry.get("status") == "warn"), None)


def _answer(url):
    status, live = _ask(url, "/livez")
    if status != 200:       # 400 from a TLS port that was asked without TLS
        raise ValueError("/livez answers {}".format(status))
    status, health = _ask(url, "/readyz")
    detail = None if status == 200 else _complaints(status, health)
    return Answer(url, live.get("instance"), live.get("started_at"), status == 200, "checks" in health, detail, _refusal(health),
                  live.get("env_file"), live["checked_at"] or "never" if "checked_at" in live else None)


def inquire(pid, target):
    """Ask a process through a port that is proven to be its own; return its Answer."""
    everywhere = target._replace(host="::", port=0)     # settings that changed since its start name a port that it does not have
    mine = [one for where in (target, everywhere) for one in port_holders(where) if one.pid == pid]
    if not mine:
        return NO_ANSWER._replace(detail="it does not listen on port {}".format(target.port))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(mine[0].address, mine[0].address)
    failure = None
    for scheme in ("https", "http") if target.tls else ("http", "https"):    # the setting too may have changed since its start
        url = "{}://{}:{}".format(scheme, "[{}]".format(host) if ":" in host else host, mine[0].port)
        try:
            return _answer(url)
        except (OSError, ValueError) as error:
            failure = failure or NO_ANSWER._replace(url=url, detail="{} does not answer: {}".format(
                url, error or type(error).__name__))
            if scheme == "http" and isinstance(error, socket.timeout):      # to plain HTTP a TLS server is not silent
                break
    return failure


def _exit_words(code):
    return "with exit code {}".format(code) if code >= 0 else "by {}".format(signal.Signals(-code).name)


def _require_life(child):
    if child.poll() is not None:
        raise Failure("the service ended {} before it was ready".format(_exit_words(child.returncode)))


def await_ready(target, old, seconds, child=None):
    """Wait until the instance is ready; return its last Answer. Raise Failure as soon as `child` has ended.

    `old` is the instance id of a predecessor, whose answers do not count; `child` the Popen of the process just started.
    """
    def look():
        if child:
            _require_life(child)
        instance = find(target).instance
        if instance is None or child and instance.pid != child.pid:
            who = "pid {} runs, but".format(child.pid) if child else "the service"
            return NO_ANSWER._replace(detail="{} does not hold the lock of {}".format(who, target.pid_file))
        return inquire(instance.pid, target)

    return wait_until(look, seconds, lambda answer: answer.ready and answer.instance not in (None, old))


def _default_signals():
    """What our caller ignores (nohup, a script that must not be interrupted) would stay ignored across exec."""
    for number in LIFE_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def spawn(command, output, **environ):
    """Start a command in a session of its own, without our descriptors; what it prints is appended to `output`."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(output, flags, 0o640)
    except OSError as error:
        raise Failure("{} could not be opened to append to: {}".format(output, error.strerror)) from error
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=subprocess.STDOUT,
                                cwd="/", start_new_session=True, close_fds=True, preexec_fn=_default_signals,
                                env=dict(os.environ, **environ))
    except OSError as error:
        raise Failure("{} could not be started: {}".format(command[0], error.strerror)) from error
    finally:
        os.close(descriptor)


def stand_by(command, target, seconds):
    """Start a successor and return its Popen once it waits for the PID file's lock; a fault that shows before costs nothing."""
    path = os.path.join(os.path.realpath(os.path.dirname(target.pid_file)), os.path.basename(target.pid_file))
    child = spawn(command, target.pid_file + ".out", **{PATIENCE: str(seconds + 2 * KILL_WAIT)})
    say("started pid {}, which takes over from pid {}".format(child.pid, holder(target.pid_file)))

    def waits():
        _require_life(child)
        return path in [name for _, name in open_files(child.pid)]

    if not wait_until(waits, seconds):
        child.kill()
        child.wait()
        raise Failure("pid {} was not ready to take over within {:g} s".format(child.pid, seconds))
    return child


def env_file_of(pid):
    """Return the path that a process was given by --env-file, None when there was none."""
    given = re.search("\0--env-file[=\0]([^\0]+)", "\0".join(command_line(pid)))
    return os.path.realpath(os.path.join(_link(pid, "cwd") or "/nowhere", given.group(1))) if given else None


def immovable(instance, target, env_file):
    """Return why no reload would bring the instance to these settings, None when it may."""
    given, wanted = env_file_of(instance.pid), env_file and os.path.realpath(env_file)
    if given != wanted:
        return "it was started with {}, not {}".format(*("--env-file " + path if path else "no --env-file"
                                                         for path in (given, wanted)))
    mine = [one for one in port_holders(target._replace(host="::", port=0)) if one.pid == instance.pid]
    addresses = _resolve(target.host, target.port)
    if not [one for one in mine if ipaddress.ip_address(one.address) in addresses and target.port in (0, one.port)]:
        return "it listens on {}, not {} port {}".format(
            ", ".join("{} port {}".format(one.address, one.port) for one in mine) or "no port", target.host, target.port)
    return None


def _progress(instance, target, refused):
    """Return the Answer of an instance that was told to reload; raise Failure when it has ended, or refuses once more."""
    if ended(instance):
        raise Failure("pid {} has ended instead of loading anew".format(instance.pid))
    answer = inquire(instance.pid, target)
    if answer.refusal not in (None, refused):
        raise Failure("pid {} refuses to reload: {}".format(instance.pid, answer.refusal[1]))
    return answer


def reload(instance, target, seconds):
    """Send SIGHUP and wait until the instance answers by a new id; return that Answer. Raise Failure when it refuses.

    Where /readyz tells strangers its status only, a refusal shows in that nothing happens.
    """
    before = inquire(instance.pid, target)
    if not before.since:
        raise Failure(before.detail or "pid {} is of a release that SIGHUP ends; restart it".format(instance.pid))
    if before.refusal:      # its time is in whole seconds; the next refusal is told from it by its own
        wait_until(lambda: time.strftime(TIMESTAMP, time.gmtime()) > before.refusal[0], 1)
    say("reloading {}, which {}".format(describe(instance.pid), instance.proof))
    with grip(instance, target) as send:
        send(signal.SIGHUP)
    answer = wait_until(lambda: _progress(instance, target, before.refusal), seconds,
                        lambda answer: answer.ready and answer.instance not in (None, before.instance))
    if answer.instance == before.instance:
        raise Failure("pid {} still serves as before after {:g} s; its log says why".format(instance.pid, seconds))
    return answer


def _doubt(host, port, ca_file):
    """Return why a certificate does not verify for a host, None when it does; None too when it is merely out of its time."""
    import ssl              # as for _ask()
    try:
        context = ssl.create_default_context(cafile=ca_file)
        with socket.create_connection((host, port), ASK_WAIT) as plain, context.wrap_socket(plain, server_hostname=host):
            return None
    except (OSError, ssl.CertificateError, UnicodeError) as error:      # no OSError in Python 3.6; a host that is no name
        if getattr(error, "verify_code", None) in EXPIRED:
            return None
        words = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
        return "{} trusting {}: {}".format(host, ca_file or "the system's authorities", words.rstrip("."))


def verifiable(url, pid, target, ca_file):
    """Return URL and CA file (None: the system's) by which a client on this host can verify the instance's certificate.

    Tried are the address and, where nobody else listens by it, the name it was told to listen on; of authorities the
    given file, else the system's and then the certificate itself. Raises Failure with what is in the way of each.
    """
    parts, doubts = urlsplit(url), []
    hosts = [parts.hostname]
    named = not re.fullmatch(r"[0-9.]*|.*:.*", target.host)
    if named and {one.pid for one in port_holders(target)} == {pid}:
        hosts.append(target.host)
    for host in hosts:
        for authorities in [ca_file] if ca_file else [None, target.tls]:
            doubt = _doubt(host, parts.port, authorities)
            if not doubt:
                return "https://{}:{}".format("[{}]".format(host) if ":" in host else host, parts.port), authorities
            doubts.append(doubt)
    raise Failure("; ".join(doubts))


def output_fault(path):
    """Return why spawn() could not append to a file, None when it could; creates nothing."""
    folder = os.path.dirname(path)
    if os.path.lexists(path):
        usable = os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.W_OK)
    else:
        usable = os.access(folder, os.W_OK | os.X_OK)
    return None if usable else "{} cannot be appended to by uid {}; make it a file of that user, or remove it".format(
        path, os.geteuid())


def hold(descriptor, path, seconds):
    """Take the flock(2) of a lock file that our parent has open; it stays with the parent's descriptor when we end."""
    if not os.path.samestat(os.fstat(descriptor), os.lstat(path)) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Failure("lock file {} is no regular file; remove it".format(path))

    def taken():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    if not taken():
        content = os.pread(descriptor, PID_SHOWN, 0)
        say("waiting for {}".format(describe(int(content)) if PID.fullmatch(content) else "the holder of " + path))
        if not wait_until(taken, seconds):
            raise Failure("lock file {} was not free within {:g} s".format(path, seconds))
    os.ftruncate(descriptor, os.pwrite(descriptor, "{}\n".format(os.getppid()).encode("ascii"), 0))


# Commands

def cmd_find(target, _):
    instance, unproven = find(target)
    says = None if instance and instance.pid == holder(target.pid_file) else pid_file_says(target.pid_file)
    for words in unproven + ([says] if says else []):
        say(words)
    if instance:
        print(instance.pid, owner(instance.pid), int(start_time(instance.pid) or 0), instance.proof)
        return 0
    return 4 if unproven else 1 if says else 3


def cmd_check(target, _):
    found = find(target)
    faults = [path_fault(target.pid_file), output_fault(target.pid_file + ".out")] + strangers(target, found.instance)
    faults = [fault for fault in faults if fault] + ([] if found.instance else found.unproven)
    for fault in faults:
        say(fault)
    return 1 if faults else 0


def cmd_stop(target, options):
    found = find(target)
    if not found.instance:
        if found.unproven:
            raise Failure("not proven to be this instance, so that nothing was stopped: " + "; ".join(found.unproven))
        tidy(target.pid_file)
        return 0
    end(found.instance, target, options.timeout)
    tidy(target.pid_file)
    return 0


def _report(answer, options):
    if answer.instance:
        print(answer.url, answer.instance, *(word or "-" for word in (answer.since, answer.loaded, answer.checked)))
    if answer.ready and answer.instance != options.old:
        return 0
    say("not ready: {}".format(answer.detail or "the old instance still answers"))
    return 3 if answer.instance else 4 if answer.url else 1


def cmd_start(target, options):
    child = spawn(options.command, target.pid_file + ".out")
    say("started pid {}".format(child.pid))
    return _report(await_ready(target, options.old, options.timeout, child), options)


def cmd_replace(target, options):
    instance = find(target).instance
    if not instance or holder(target.pid_file) != instance.pid:     # then there is no lock that a successor could wait for
        return cmd_stop(target, options) or cmd_start(target, options)
    child = stand_by(options.command, target, options.timeout)
    try:
        end(instance, target, options.timeout)
    except (Failure, OSError) as error:
        if not ended(instance):
            child.kill()
            child.wait()
            raise
        say(str(error))     # it ended by itself, or left its port to somebody: the successor's own fate tells the rest
    return _report(await_ready(target, options.old, options.timeout, child), options)


def cmd_reload(target, options):
    found = find(target)
    if not found.instance:
        raise Failure("; ".join(["nothing is proven to be this instance, so that nothing was signalled"] + found.unproven))
    reason = immovable(found.instance, target, options.env_file)
    if reason:
        raise Failure("pid {} was not signalled: {}; a reload keeps that, a restart would change it".format(
            found.instance.pid, reason))
    return _report(reload(found.instance, target, options.timeout), options)


def cmd_await(target, options):
    return _report(await_ready(target, options.old, options.timeout), options)


def _unchecked(words):
    say("health_check.py was not run, so that no figures were checked: " + words)
    return 0


def cmd_confirm(target, options):
    instance = find(target).instance
    answer = inquire(instance.pid, target) if instance else NO_ANSWER
    if not answer.instance:
        raise Failure("the service does not answer: {}".format(answer.detail or "it is not running"))
    given = {one.name[len(CHECK):]: os.path.join(os.path.dirname(options.env_file), one.value)
             for one in read_env_file(options.env_file) if one.name in (CHECK + "CREDENTIALS", CHECK + "CA_FILE") and one.value}
    if not answer.open and "CREDENTIALS" not in given:
        return _unchecked("the service asks for a password; name a file with one by {}CREDENTIALS in {}".format(
            CHECK, options.env_file))
    url, ca_file = answer.url, None
    if url.startswith("https:"):
        try:
            url, ca_file = verifiable(url, instance.pid, target, given.get("CA_FILE"))
        except Failure as failure:
            return _unchecked("its certificate cannot be verified from here ({}); name its authority's by {}CA_FILE in {}, or "
                              "have it made for this address too".format(failure, CHECK, options.env_file))
    choices = (("--url", url), ("--credentials", given.get("CREDENTIALS")), ("--ca-file", ca_file))
    command = options.command + [word for choice in choices if choice[1] for word in choice]
    os.execve(command[0], command, os.environ)


def cmd_digest(_, options):
    print(digest(options.env_file) or "")
    return 0


def cmd_hold(target, options):
    hold(options.descriptor, target.pid_file + ".lock", options.timeout)
    return 0


COMMANDS = (("find", cmd_find, "name the proven instance"), ("check", cmd_check, "could an instance be started here?"),
            ("stop", cmd_stop, "end the instance"), ("start", cmd_start, "start a command and await it"),
            ("replace", cmd_replace, "start a command in place of the instance"),
            ("reload", cmd_reload, "have the instance load its code and settings anew"),
            ("await", cmd_await, "wait until the instance is ready"), ("digest", cmd_digest, "what an env file holds, in short"),
            ("confirm", cmd_confirm, "run the health check"),
            ("hold", cmd_hold, "take PIDFILE.lock for our parent"))


def parse_arguments(argv):
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--pid-file", required=True, type=os.path.abspath, metavar="FILE", help="its lock proves the instance")
    common.add_argument("--host", required=True, help="address that the instance listens on")
    common.add_argument("--port", required=True, type=int, help="port that it listens on, 0 for any")
    common.add_argument("--tls", metavar="FILE", help="certificate, where the settings have one")
    common.add_argument("--timeout", default=30.0, type=float, metavar="S", help="seconds to wait (default 30)")
    common.add_argument("--old", default="", metavar="ID", help="instance id whose answers do not count")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    verbs.required = True    # an argument of add_subparsers since Python 3.7
    for name, function, words in COMMANDS:
        verb = verbs.add_parser(name, parents=[common], help=words)
        verb.set_defaults(function=function)
        if function in (cmd_reload, cmd_digest, cmd_confirm):
            verb.add_argument("--env-file", required=function is not cmd_reload, type=os.path.abspath, metavar="FILE",
                              help="settings of the instance")
        if function in (cmd_start, cmd_replace, cmd_confirm):
            verb.add_argument("command", nargs="+", help="what to run, after --")
        if function is cmd_hold:
            verb.add_argument("--descriptor", required=True, type=int, help="the open lock file")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse_arguments(argv)
    target = Target(options.pid_file, options.host, options.port, options.tls)
    try:
        return options.function(target, options)
    except (Failure, Held, EnvFileError, OSError) as error:
        say(str(error))
        return 4 if options.verb == "find" else 1


if __name__ == "__main__":
    sys.exit(main())
