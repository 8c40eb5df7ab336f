#!/usr/bin/env python3
"""Be a well-behaved process: environment files, a locked PID file, and the names of those who hold what we need.

A number in a PID file proves nothing: its process may be gone and the number given away. What proves life is the
lock that a process holds on the file, since the kernel drops it with the process and names the holder to whoever asks.
"""
import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
import struct
from collections import namedtuple

PID_FILE_MAX = 4096             # bytes; a longer file is somebody's data, which a PID must not overwrite
COMMAND_SHOWN = 120             # characters of a command line in a message
FLOCK = "hhqqi0q"               # struct flock of fcntl(2) with 64-bit offsets: type, whence, start, length, pid, padding
TCP_LISTEN = "0A"               # TCP_LISTEN of linux/tcp_states.h, as /proc/net/tcp prints it

ENV_SKIPPED = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\n|\Z)")
ENV_NAME = re.compile(r"[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
ENV_QUOTED = re.compile(r"""(?:'([^']*)'|"((?:[^"\\]|\\.)*)")[ \t]*""", re.DOTALL)
ENV_BARE = re.compile(r"((?:[^\\ \t\n]|\\(?:.|\Z)|[ \t]+(?![ \t\n]|\Z))*)[ \t]*", re.DOTALL)   # up to the line's end, less trailing blanks
ENV_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)

Variable = namedtuple("Variable", "name value line")
Listener = namedtuple("Listener", "pid inode address")    # pid is None where /proc hides whose socket it is
ProcessStat = namedtuple("ProcessStat", "state started")  # one letter of proc(5); clock ticks after boot


class EnvFileError(ValueError):
    """An environment file cannot be used; the message starts with FILE:LINE and names the cure."""


class PidFileError(OSError):
    """A path cannot serve as PID file; the message says why and names the cure."""


class Held(Exception):
    """Another living process holds the lock; `pid` is its number, 0 when it lives in another PID namespace."""

    def __init__(self, message, pid):
        super().__init__(message)
        self.pid = pid


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


def _double_quoted(escape):
    """Within double quotes a backslash counts only before what a shell would let it escape; else it stays."""
    character = escape.group(1)
    return "" if character == "\n" else character if character in '"\\`$' else escape.group(0)


def process_stat(pid):
    """Return the ProcessStat of a process, None when there is none. A number with its start time is never reused."""
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            fields = file.read().rpartition(b")")[2].split()    # the name before it may hold blanks and brackets
    except (FileNotFoundError, ProcessLookupError):
        return None
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


def lock_holder(path):
    """Return the PID that holds a POSIX lock on a file, None when nobody does or the file is missing.

    The kernel's own word, by F_GETLK. 0 means held by a process of another PID namespace, which has no number here.
    Never call it in a process that holds the lock: closing any descriptor of a file drops all locks that
    the process has on it. Raises OSError where the file cannot be read, or is a symbolic link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)    # not waiting for a FIFO's writer
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def file_holders(path):
    """Return the PIDs that hold POSIX locks on a file, from /proc/locks, never opening it.

    Inode numbers repeat across file systems and /proc/locks names devices in its own way, so each
    PID is verified by its open descriptors; where those are hidden it is believed.
    """
    wanted = os.stat(path)
    with open("/proc/locks") as file:
        rows = [line.split() for line in file]
    pids = {int(row[4]) for row in rows if row[1] == "POSIX" and row[5].rpartition(":")[2] == str(wanted.st_ino)}
    return sorted(pid for pid in pids if pid > 0 and _may_have_open(pid, wanted))


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


class PidFile:
    """A file that holds our PID, and whose lock proves that we live.

    The lock is POSIX (fcntl): it survives exec while its descriptor stays open, children do not inherit it, and the
    kernel names its holder. The file must not be opened elsewhere in this process: closing it would drop the lock.
    """

    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.descriptor = None

    def acquire(self):
        """Lock the file and write our PID; raise Held when another process has it, PidFileError for the rest."""
        while self.descriptor is None:
            descriptor = self._open()
            try:
                self._lock(descriptor)
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
            descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise PidFileError(_open_fault(self.path, error)) from error
        fault = content_fault(self.path, os.fstat(descriptor))
        if fault:
            os.close(descriptor)
            raise PidFileError(fault)
        return descriptor

    def _lock(self, descriptor):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:    # EAGAIN or EACCES, says fcntl(2)
            pid = lock_holder(self.path) or 0
            who = describe(pid) if pid else "a process that cannot be named from here"
            raise Held("PID file {} is locked by {}; it is running already: stop it first, or set another METRICS_PID_FILE"
                       .format(self.path, who), pid) from error
        except OSError as error:
            raise PidFileError("PID file {} could not be locked: {}; use a local file system"
                               .format(self.path, error.strerror)) from error

    def _names(self, descriptor):
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


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


def listeners(host, port):
    """Return the Listeners that a server on this host and port would meet, one for each process that has the socket open.

    From /proc/net/tcp and tcp6; a wildcard on either side meets every address of its family, and `::` those of
    IPv4 too. Raises OSError (socket.gaierror) when the host's name does not resolve.
    """
    wanted = {ipaddress.ip_address(entry[4][0].split("%")[0]) for entry in
              socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)}
    found = [(inode, address) for inode, address in _listening(port) if any(_meet(address, one) for one in wanted)]
    pids = _socket_owners({inode for inode, _ in found}) if found else {}
    return [Listener(pid, inode, str(address)) for inode, address in found for pid in pids.get(inode, [None])]


def _listening(port):
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except FileNotFoundError:    # a kernel without IPv6
            continue
        for row in rows:
            address, _, local_port = row[1].partition(":")
            if row[3] == TCP_LISTEN and int(local_port, 16) == port:
                yield int(row[9]), _proc_address(address)


def _proc_address(digits):
    """Turn /proc's address, 32-bit words in the machine's byte order, into an ipaddress; ::ffff:a.b.c.d becomes a.b.c.d."""
    words = [int(digits[i:i + 8], 16) for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(struct.pack("={}I".format(len(words)), *words))
    return getattr(address, "ipv4_mapped", None) or address


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
