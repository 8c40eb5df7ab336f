"""Harms a command at a chosen call that changes the disk: kills it there, or tells it that the disk is full.

    moments = run(command, folder).calls                    an unharmed run tells all its moments
    run(command, folder, killed(moments[17]))               the same run, but dead before the 18th
    run(command, folder, full(moments[17]))                 the same run, but that call fails for want of space

strace(1) counts the calls, so a moment is the same in every run, however fast the machine is.
"""

import collections
import re
import subprocess
import tempfile

CALLS = ("openat", "write", "pwrite64", "pwritev", "ftruncate", "fallocate", "fsync", "fdatasync", "sendfile", "copy_file_range",
         "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2", "unlink", "unlinkat",
         "rmdir", "chmod", "fchmod", "fchmodat")
SET = ",".join("?" + name for name in CALLS)            # ?: some machines lack the older of them
LINE = re.compile(r"(\d+) +(\w+)\((.*)")                # a call as strace writes it with -f
SECONDS = 120                                           # a run that takes longer hangs

Call = collections.namedtuple("Call", "name number text")   # number: among those of its name in the run, from 1; text: its arguments
Run = collections.namedtuple("Run", "code out err calls")   # code: the exit code, or the negative number of the signal


def calls(log, folder):
    """The calls in strace's log that change something in the folder, in order, and the next one after all of them."""
    counted, made, changes, processes = collections.Counter(), [], [], set()
    for process, name, text in LINE.findall(log):
        counted[name] += 1
        processes.add(process)
        text = text.replace("AT_FDCWD<%s>" % folder, "AT_FDCWD")
        if folder in text and (name != "openat" or "O_CREAT" in text):
            changes.append(len(made))
        made.append(Call(name, counted[name], re.sub(r"\d+", "N", text.replace(folder, ".").split(" = ")[0]).rstrip()))
    assert len(processes) <= 1, "strace counts the calls of each process apart"
    return [made[place] for place in changes] + made[changes[-1] + 1:][:1] if changes else made[-1:]


def killed(call):
    """The option that ends the process by SIGKILL instead of this call."""
    return "inject=%s:signal=SIGKILL:when=%d" % (call.name, call.number)


def full(call, later=""):
    """The option that makes this call fail on a full disk; with later="+" all of its name that follow it, too."""
    return "inject=%s:error=ENOSPC:when=%d%s" % (call.name, call.number, later)


def run(command, folder, *faults):
    """A run of the command and its calls that changed the folder, up to the one that a fault killed it at."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        options = ["-f", "-qq", "-y", "-s", "0", "-o", log.name, "-e", "trace=" + SET, "-e", "signal=none"]
        if not any("SIGKILL" in fault for fault in faults):
            options.append("--seccomp-bpf")             # faster, but swallows the signal
        for fault in faults:
            options += ["-e", fault]
        done = subprocess.run(["strace"] + options + [str(part) for part in command], cwd=str(folder), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=SECONDS)
        return Run(done.returncode, done.stdout, done.stderr, calls(log.read(), str(folder)))


def evenly(calls, most):
    """So many of the calls at most, from the first to the last."""
    if len(calls) <= most:
        return calls
    return [calls[place * (len(calls) - 1) // max(1, most - 1)] for place in range(most)]


def spread(calls, most):
    """So many of the calls at most, over the whole run: half of them those that are not just one more page written."""
    rare = evenly([call for call in calls if call.name != "pwrite64"], most // 2)
    return sorted(rare + evenly([call for call in calls if call.name == "pwrite64"], most - len(rare)), key=calls.index)
