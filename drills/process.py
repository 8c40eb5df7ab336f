"""Drills of the process."""

import os
import resource
import signal

import supervision
from drills.scenario import Scenario, Signal, Trap, by_hand, check, cure, found, http, log, never, stays, tells

# Asks for answers of forty kinds at once, again and again.
CROWD = """
import sys, threading, urllib.request
def ask(hours):
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:%s/metrics?history=%d" % (sys.argv[1], hours), timeout=2).read()
        except OSError:
            pass
for hours in range(1, 41):
    threading.Thread(target=ask, args=(hours,), daemon=True).start()
threading.Event().wait(30)
"""

RAISE_MEMORY = """python3 -c 'import resource as r, sys; pid = int(sys.argv[1])
r.prlimit(pid, r.RLIMIT_AS, (r.prlimit(pid, r.RLIMIT_AS)[1],) * 2)' "$PID"
"""

LIMIT_PROCESSES = """python3 -c 'import resource as r; r.prlimit(%d, r.RLIMIT_NPROC, (%d, r.prlimit(%d, r.RLIMIT_NPROC)[1]))'"""

RAISE_PROCESSES = """python3 -c 'import resource as r, sys; pid = int(sys.argv[1])
r.prlimit(pid, r.RLIMIT_NPROC, (r.prlimit(pid, r.RLIMIT_NPROC)[1],) * 2)' "$PID"
"""

RAISE = """python3 -c 'import resource as r, sys; pid = int(sys.argv[1])
r.prlimit(pid, r.RLIMIT_NOFILE, (1024, r.prlimit(pid, r.RLIMIT_NOFILE)[1]))' "$PID"
"""


def kill(box):
    pid = box.pid()
    box.signal(pid, signal.SIGKILL)
    service = next(child for child in box.children if child.pid == pid)
    box.require(service.wait(5) == -signal.SIGKILL, "the service was ended by SIGKILL")
    box.require(box.read(box.pid_file).strip() == str(pid), "its PID file is still there")
    return "pid %d was ended by SIGKILL, exit %d, and left its PID file behind" % (pid, service.returncode)


def give_its_number_away(box):
    kill(box)
    box.write(box.pid_file, "%d\n" % box.bystanders[0].pid)
    return "the PID file of a service that was killed names bystander 1, pid %s" % box.read(box.pid_file).strip()


def stop(box):
    pid = box.pid()
    box.signal(pid, signal.SIGSTOP)
    box.wait(lambda: supervision.process_stat(pid).state == "T", "pid %d is stopped" % pid)
    return "pid %d is in state %s" % (pid, supervision.process_stat(pid).state)


def take_descriptors(box):
    pid = box.pid()
    before = box.limit(pid, resource.RLIMIT_NOFILE, 3)
    box.wait(lambda: box.probe("/livez", 0.3).status in ("timeout", "reset"), "nobody is accepted any more", 5)
    return "pid %d may open 3 files, %d before, and has %d open" % (pid, before[0], len(os.listdir("/proc/%d/fd" % pid)))


def starve_of_memory(box):
    """Lets the service have no more memory than it has, and asks for much: forty answers, each of another kind, at once."""
    pid = box.pid()
    with open("/proc/%d/statm" % pid) as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    box.limit(pid, resource.RLIMIT_AS, present - (8 << 20))
    box.crowd = box.python(CROWD, str(box.port))
    box.wait(lambda: "MemoryError" in box.log_since() or box.probe("/livez", 0.3).status == "timeout", "memory was refused", 10)
    seen = found("MemoryError", box.log_since()) or "no answer"
    return "pid %d may have %d bytes and had %d: %s" % (pid, present - (8 << 20), present, seen)


def refuse_processes(box):
    """No further process for the service's user; then a good setting is loaded by SIGHUP."""
    box.steady_pid = pid = box.pid()
    done = box.shell(LIMIT_PROCESSES % (pid, 1, pid))
    box.require(done.code == 0, "the limit was set: " + done.output)
    box.set("METRICS_STALE_SECONDS", "90")
    box.signal(pid, signal.SIGHUP)
    seen = box.wait(lambda: found("reload_refused", box.log_since()), "the refusal")
    with open("/proc/%d/limits" % pid) as file:
        limit = box.require(found(r"Max processes +1 ", file.read()), "the limit is 1")
    return "%s, and a reload was refused: %s" % (" ".join(limit.split()), seen)


def interrupted(box):
    """Why the goal is missed, None where the same process runs with what was asked for."""
    return None if box.pid() == box.steady_pid else "the service was ended and started: it was not to be interrupted"


def hold_the_turn(box):
    """A restart begins after a kill, and is stopped while it has the turn."""
    kill(box)
    script = box.spawn("/bin/bash", os.path.join(box.app, "restart_service.sh"))
    box.wait(lambda: box.read(box.pid_file + ".lock").strip() == str(script.pid), "the restart has the turn")
    box.signal(script, signal.SIGSTOP)
    box.wait(lambda: supervision.process_stat(script.pid).state == "T", "it is stopped")
    box.require(box.pid() is None, "no service was started yet")
    return "%s is stopped and holds metrics_service.pid.lock" % supervision.describe(script.pid)


def restarts_left(box):
    """Why a restart is still under way, None where none is."""
    script = os.path.join(box.app, "restart_service.sh")
    left = [pid for pid in supervision.processes() if script in supervision.command_line(pid)]
    return "a restart still waits: %s" % supervision.describe(left[0]) if left else None


def plan_a_restart(box):
    box.write(box.log_file, "2026-01-01T00:00:00.000Z WARNING slow_query seconds=0.6 longest=hours longest_seconds=0.5\n", "a")
    done = box.restart()
    box.require(done.code == 0, "the planned restart went well")
    box.steady_instance = box.instance()
    return "nothing: a planned restart, %s" % done.output.strip().splitlines()[-1]


SCENARIOS = (
    Scenario(
        id="D35", name="killed", title="The service was killed", layer="process", level=1, set="ci", needs="", founding="",
        page="The dashboard is gone since a minute ago. Nobody deployed anything.",
        goal="The service answers again, and every row that was stored is there.",
        inject=kill,
        expected=(
            check("reachable refused"),
            http("/livez", "refused"),
            tells("./restart_service.sh status", 1, "which does not hold its lock and is left alone"),
        ),
        quiet=(never("Traceback"), never("service_stopping")),
        deadline=5,
        mitigation=(
            cure("refused", "./restart_service.sh"),
        ),
        traps=(
            Trap("remove the PID file by hand first", "rm metrics_service.pid",
                 "a file that nobody locks keeps no start from anything; the service is as down as before"),
            Trap("reload it", "./restart_service.sh reload", "nothing runs that could: a reload never starts"),
        ),
        hints=(
            "./restart_service.sh status, and the last lines of metrics.log",
            "The PID file is there and nobody holds its lock; the log has no service_stopping: it was killed, by a person or "
            "the kernel.",
            "./restart_service.sh; then look for who did it: dmesg, the history of the host",
        ),
        prevention="a supervisor that starts it anew (deploy/systemd), and cron's check within five minutes",
        proofs=("L", "F", "Q", "V"), cause="killed", anchor="refused",
        lesson="Nothing needs cleaning after a kill: the lock decides, and the kernel drops it with the process.",
        alerts=("MetricsServiceDown", "MetricsServiceFlapping", "MetricsRestarting"),
    ),
    Scenario(
        id="D36", name="pid-reused", title="The PID file names another process", layer="process", level=2, set="ci", needs="",
        founding="",
        page="The service does not answer. Its PID file is there, and the process with that number is alive and well.",
        goal="The service answers again, and nothing else on this host noticed.",
        inject=give_its_number_away,
        expected=(
            check("reachable refused"),
            tells("./restart_service.sh status", 1,
                  r"names pid \d+ \(/bin/sleep 86400.*, which does not hold its lock and is left alone"),
        ),
        quiet=(never("Traceback"), never("service_stopping")),
        deadline=5,
        mitigation=(
            cure("refused", "./restart_service.sh"),
        ),
        traps=(
            Trap("end what the PID file names", 'kill "$(cat metrics_service.pid)"; ./restart_service.sh',
                 "the number was given away: it was somebody else's process that ended"),
            Trap("wait for it, since it is alive", "head -n 3 /proc/$(cat metrics_service.pid)/status", "another one is alive"),
        ),
        hints=(
            "./restart_service.sh status: whom does the PID file name, and does that one hold the lock?",
            "The service died and its number was given to somebody else. A number proves nothing, the file's lock does.",
            "./restart_service.sh: it signals nobody that it has not proven to be the service",
        ),
        prevention="as it is: the script proves a process by the lock, its command line and its port before it signals",
        proofs=("L", "F", "Q"), cause="pid-reused", anchor="refused",
        lesson="kill $(cat PIDFILE) ends whoever has that number by now.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D37", name="stopped", title="The process is stopped, and its port still accepts", layer="process", level=1, set="ci",
        needs="",
        founding="", watch=("--timeout", "0.6"),
        page="The dashboard turns and turns. The port is open, says the network team.",
        goal="The service answers again.",
        inject=stop,
        expected=(
            check("reachable silent: .*it accepts the connection and does not answer"),
            http("/livez", "timeout"),
            tells("head -n 4 /proc/$PID/status", 0, r"State:\s+T \(stopped\)"),
        ),
        quiet=(never("Traceback"), never("service_stopping")),
        deadline=6,
        mitigation=(
            cure("silent", 'kill -CONT "$PID"'),
        ),
        traps=(
            Trap("see whether the port is open", "timeout 2 bash -c ': < /dev/tcp/127.0.0.1/'${URL##*:} && echo open",
                 "the kernel accepts for a process that does nothing; open is not answering"),
            Trap("end it politely and wait", 'kill "$PID"; sleep 0.5', "a stopped process acts on no SIGTERM until it is "
                                                                       "continued"),
        ),
        hints=(
            "head -n 4 /proc/$PID/status, with the first lines of the runbook pasted before",
            "State T: somebody sent SIGSTOP. The kernel goes on accepting connections for it.",
            "kill -CONT $PID; or ./restart_service.sh, which continues what it ends",
        ),
        prevention="a deadline in every client and a watchdog in the supervisor: WatchdogSec= of deploy/systemd ends what does "
                   "not answer",
        proofs=("H", "L", "Q"), cause="stopped", anchor="silent",
        lesson="'It accepts and does not answer' is a verdict of its own: a check of the port alone is content with it.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D40", name="fds-gone", title="The process may open no more files", layer="process", level=2, set="hand", needs="",
        founding="",
        watch=("--timeout", "0.6"),
        page="Nobody can connect to the service any more; whoever is connected is served, says the proxy.",
        goal="Everybody is accepted again, without a restart.",
        inject=take_descriptors,
        expected=(
            log("ERROR accept_failed reason=descriptors"),
            check("reachable silent"),
            tells("cat /proc/$PID/limits", 0, r"Max open files +3 "),
        ),
        quiet=(never("Traceback"), never("service_stopping"), never("database_unavailable")),
        deadline=8,
        mitigation=(
            cure("descriptors", RAISE),
        ),
        traps=(
            Trap("give the check more time", "python3 health_check.py --url $URL --timeout 3", "nobody is accepted, however "
                                                                                               "long they wait"),
            Trap("reload it", "./restart_service.sh reload --timeout 3", "a process that may open nothing cannot load anything "
                                                                         "either"),
        ),
        hints=(
            "tail the log for ERROR, then: ls /proc/$PID/fd | wc -l; grep 'open files' /proc/$PID/limits",
            "accept_failed reason=descriptors: more files are open than the limit allows, so that no connection can be accepted.",
            "Raise the soft limit of the living process by the command in the runbook's entry descriptors. No restart.",
        ),
        prevention="LimitNOFILE= in the unit; connections are capped 64 below the limit, and the one that waited longest gives "
                   "way",
        proofs=("H", "L", "Q"), cause="descriptors", anchor="descriptors",
        lesson="Out of descriptors looks like a hang from outside and like a missing database from inside; the log line tells.",
        alerts=("MetricsDescriptorsNearLimit", "MetricsServiceDown"),
    ),
    Scenario(
        id="D38", name="memory-wedge", title="The process gets no more memory", layer="process", level=3, set="hand", needs="",
        founding="",
        watch=("--timeout", "0.6"),
        page="Some requests get an error, most get nothing. The process is there and uses no processor.",
        goal="Every request is answered again, and the service has the memory that it needs.",
        inject=starve_of_memory,
        expected=(
            log("ERROR request_failed reason=defect error_type=(MemoryError|SystemError)"),
            Signal("requests of users fail", lambda box: next(("%s %s" % (path, one.status) for path in ("/livez", "/metrics")
                                                               for one in box.samples(path) if one.status != 200), None)),
            tells("cat /proc/$PID/limits", 0, r"Max address space +\d+ "),
        ),
        quiet=(never("service_stopping"), never("database_unavailable")),
        deadline=10,
        mitigation=(
            cure("silent", RAISE_MEMORY),
            cure("silent", "./restart_service.sh"),
        ),
        traps=(
            Trap("wait, since it runs", "sleep 1", "it is asked for more than it may have, now as before"),
            Trap("reload it", "./restart_service.sh reload --timeout 3", "the same process, with the same limit"),
        ),
        hints=(
            "The last lines of metrics.log; then: grep -i 'address space' /proc/$PID/limits; grep VmSize /proc/$PID/status",
            "MemoryError: the process has as much as it may have. No thread of it is lost by that, but nobody is served either.",
            "Raise its limit by the command in the runbook's entry silent, then ./restart_service.sh",
        ),
        prevention="a limit that leaves room (MemoryMax= of the unit), threads made at the start, and a watchdog",
        proofs=("H", "L", "Q"), cause="memory", anchor="silent",
        lesson="A process without memory may live and serve nobody; what it lost by that must not outlast the cause.",
        alerts=("MetricsErrorsHigh", "MetricsServiceDown"),
    ),
    Scenario(
        id="D42", name="restart-race", title="A restart hangs and keeps the turn", layer="process", level=2, set="ci", needs="",
        founding="",
        page="The service was killed. I called the restart script, it did nothing for half a minute and gave up. Now you.",
        goal="The service answers, and no restart is left half-way.",
        inject=hold_the_turn,
        expected=(
            check("reachable refused"),
            tells("./restart_service.sh --timeout 0.3", 1, "nothing was done, since another restart is at work"),
            tells('cat "$METRICS_PID_FILE.lock"', 0, r"^\d+$"),
        ),
        quiet=(never("service_started"), never("Traceback")),
        deadline=8,
        mitigation=(
            cure("another-restart-is-at-work", "kill -CONT NUMBER", NUMBER=lambda box: box.read(box.pid_file + ".lock").strip()),
        ),
        traps=(
            Trap("remove the lock file and restart", "rm metrics_service.pid.lock; ./restart_service.sh",
                 "the service is up, and the first restart still waits to restart it, whenever somebody lets it go on"),
            Trap("end it politely", 'kill "$(cat metrics_service.pid.lock)"; ./restart_service.sh --timeout 0.3',
                 "a stopped process acts on no SIGTERM until it is continued"),
        ),
        hints=(
            "./restart_service.sh --timeout 1 says for whom it waits; head -n 3 /proc/NUMBER/status says what that one does",
            "State T: the first restart was stopped while it had the turn. The lock is its, not the file's.",
            "kill -CONT NUMBER, and it goes on to its end; or kill -KILL NUMBER and ./restart_service.sh",
        ),
        prevention="the lock goes with its process; a restart runs in a session that nobody's Ctrl-Z reaches, such as cron's or "
                   "systemd's",
        proofs=("H", "L", "Q"), cause="restart-stuck", anchor="another-restart-is-at-work",
        lesson="A lock that is in the way has an owner; removing the file makes two owners of one service.",
        alerts=("MetricsServiceDown",), solved=restarts_left,
    ),
    Scenario(
        id="D52", name="no-incident", title="Nothing is wrong", layer="process", level=2, set="hand", needs="", founding="",
        page="There was a warning in the log, and the service was restarted at noon. Please look.",
        goal="You can say whether there is an incident.",
        inject=plan_a_restart,
        expected=(
            check("metrics_service OK", 0),
            tells("./restart_service.sh status", 0, "ready"),
        ),
        quiet=(never(" ERROR "),),
        deadline=5,
        mitigation=(by_hand("nothing: answer none", lambda box: None),),
        traps=(
            Trap("restart once more, to be sure", "./restart_service.sh", "it interrupts what is well"),
        ),
        hints=(
            "The check, ./restart_service.sh status, and the last lines of metrics.log",
            "All is steady; service_stopping and service_started are of a restart that was planned.",
            "answer none, and change nothing",
        ),
        prevention="alerts that name what a person has to do; a log that says who stopped the service",
        proofs=("H", "L", "Q"), cause="none", anchor="recovered",
        lesson="To leave a well system alone is an answer, and the hardest one on call.",
        alerts=(),
        solved=lambda box: None if box.instance() == box.steady_instance else "the service was restarted, and nothing was wrong "
                                                                              "with it",
    ),
    Scenario(
        id="D57", name="threads-refused", title="The service may start no process", layer="process", level=3, set="priv",
        needs="user",
        founding="",
        page="A reload does nothing. The settings are good, --check says so, and the service runs as ever.",
        goal="The setting is in force, and nobody was interrupted.",
        inject=refuse_processes,
        expected=(
            check("database reload_refused: the new code cannot be run: .*Resource temporarily unavailable", 0),
            log("WARNING reload_refused reason=reload_refused .*Resource temporarily unavailable"),
            tells("cat /proc/$PID/limits", 0, r"Max processes +1 "),
        ),
        quiet=(stays("/livez", 200), stays("/metrics", 200), stays("/readyz", 200), never("Traceback")),
        deadline=8,
        mitigation=(
            cure("reload_refused", RAISE_PROCESSES),
            cure("reload_refused", "./restart_service.sh reload"),
        ),
        traps=(
            Trap("reload once more", "./restart_service.sh reload", "the limit is still there"),
            Trap("stop it and start it anew", "./restart_service.sh stop; ./restart_service.sh start",
                 "it works, and everybody was interrupted for a limit that could be raised while it runs"),
        ),
        hints=(
            "What does the check say of the database, and: grep processes /proc/$PID/limits",
            "Resource temporarily unavailable: the reload checks the new code in a child, and the service's user may have none.",
            "Raise the limit by the command in the runbook's entry reload_refused, then ./restart_service.sh reload",
        ),
        prevention="TasksMax= and LimitNPROC= with room for a child; the threads that answer are all made at the start",
        proofs=("H", "L", "Q"), cause="process-limit", anchor="reload_refused",
        lesson="What is made at the start cannot be refused later; what is left to be refused is the reload, and it says so.",
        alerts=("MetricsReloadRefused",), solved=interrupted,
    ),
)
