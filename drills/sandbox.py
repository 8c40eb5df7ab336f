"""The sandbox of a drill: a private copy of the product with its own database, port, log, writer and bystanders.

    TEMP/drill-RUN-XXXXXXXX/        mode 0700, its marker names run, uid, PID and start time of whoever made it
      app/                          the product, shipments.db, metrics.env, metrics.log, metrics_service.pid
      bin/python3                   the interpreter that everything in here runs with
      sealed/                       what was there before the injection
      ledger, ledger.errors         what the writer was told is stored, and what it was refused
      bystander-1, bystander-2      files of two processes that have nothing to do with it

Nothing outside of that folder is ever changed: each path is resolved and must lie inside. Nothing is signalled or limited but
processes of this sandbox, proven by their start time: those started here, and those that run a script of this folder. The
environment is bare, the address is loopback, the port a free one.

What a row of the catalogue uses, given the Sandbox as `box`:

  paths       app, database, env_file, log_file, pid_file, out_file, ledger, path(NAME)
  settings    settings() of metrics.env as a dict, set(NAME, VALUE), unset(NAME)
  service     start(), stop(), restart(), reload(), status(), script(VERB, OPTION...); pid(), instance(), url, port
  commands    shell(TEXT), runbook(TEXT) with the runbook's $URL, $PID, sql, holders, ...; both give Done(command, code, output)
  seeing      check(OPTION...), probe(PATH) -> Probe(status, reason, body), metric(NAME), log_since(), samples(PATH)
  database    sql(STATEMENT, VALUE...) -> rows, in a connection of its own; script_sql(TEXT)
  writer      start_writer(), stop_writer(), kill_writer(); writing (its process); acknowledged()
  processes   spawn(ARGUMENT...) -> a child; python(CODE, ARGUMENT...) -> a child running CODE; signal(PID or child, NUMBER);
              limit(PID or child, RESOURCE, SOFT) -> the limits before; hold_lock(BEGIN) -> a child that holds a lock
  honesty     require(CONDITION, WHAT): else Inconclusive; wait(LOOK, WHAT, SECONDS) -> what LOOK returned, else Inconclusive
  accounts    balance: rows that the fault and its repair add or take away, for proof C
"""

import base64
import collections
import contextlib
import http.client
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import supervision
from drills import writer
from drills.scenario import Inconclusive

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = (".py", ".sh", ".sql", ".html")     # of the product's folder
FOLDERS = ("migrations", "docs", "deploy")
NOT_COPIED = ("drill.py",)
PREFIX = "drill-"                       # of the folder's name in the folder for temporary files
MARKER = "marker.json"
KEPT = "kept"                           # a file in a folder that is to stay though its drill is over
OWN_MOUNTS = "DRILL_OWN_MOUNTS"         # set where what is mounted is seen by nobody else
VARIABLE = "DRILL_SANDBOX"              # in the environment of every process of a sandbox
ROWS = 1500                             # of the seeded database
FIRST_ROWS = 5                          # of the writer, stored before the drill begins
NOBODY = 65534
SYSTEM_PYTHON = "/usr/bin/python3"      # which an unprivileged user can run
PATIENCE = 20                           # seconds for what should come at once
COMMAND_SECONDS = 60                    # after which a command is ended
LOCK_SECONDS = 0.3                      # METRICS_QUERY_TIMEOUT, far below the check's timeout
CHECK_SECONDS = 2
PERIOD = 0.05                           # seconds between two probes of a path
WRITER_SECONDS = 0.02                   # between two commits
PORTS = (12000, 30000)                  # below those that the kernel gives to clients
PROBED = ("/livez", "/readyz", "/metrics")
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")

Done = collections.namedtuple("Done", "command code output seconds at")     # code: 128 + N when ended by signal N
Probe = collections.namedtuple("Probe", "status reason body seconds at")    # status: a number, or a word of WORDS
Owned = collections.namedtuple("Owned", "pid started")                      # a process; a number with its start is never reused

WORDS = ((ConnectionRefusedError, "refused"), (socket.timeout, "timeout"), (http.client.RemoteDisconnected, "closed"),
         ((ConnectionResetError, BrokenPipeError), "reset"), (ssl.SSLError, "tls"), (http.client.HTTPException, "malformed"),
         (OSError, "unreachable"))

HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)
connection.execute(sys.argv[2])
print("held", flush=True)
time.sleep(3600)
"""


class Foreign(Exception):
    """A path outside of the sandbox, or a process that is not one of its own: refused, whatever asked for it."""


def is_inside(path, folder):
    real, folder = os.path.realpath(path), os.path.realpath(folder)
    return real == folder or real.startswith(folder + os.sep)


def wait_for(look, seconds, pause=0.01):
    """The first true value of look(), else the last one after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = look()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(pause)


def free_port():
    """A port on which nobody listens. Another program may take it until it is used; drills draw from many."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with contextlib.closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:     # taken
                continue


def owned(pid):
    """The Owned of a living process, None when it is gone or a zombie."""
    status = supervision.process_stat(pid)
    return None if status is None or status.state in "ZX" else Owned(pid, status.started)


def ask(port, path, timeout, headers=None, tls=False):
    """One GET on a connection of its own; never raises for what a server may do."""
    started = time.monotonic()
    kind, options = http.client.HTTPConnection, {}
    if tls:
        kind, options = http.client.HTTPSConnection, {"context": ssl._create_unverified_context()}
    connection = kind("127.0.0.1", port, timeout=timeout, **options)
    status, body = "unreachable", ""
    try:
        connection.request("GET", path, headers=dict(headers or {}, **{"User-Agent": "drill"}))
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        status = answer.status
    except (OSError, http.client.HTTPException) as error:
        status = next(word for kind, word in WORDS if isinstance(error, kind))
    finally:
        connection.close()
    reason = re.search(r'"reason": ?"(\w+)"', body)
    return Probe(status, reason and reason.group(1), body, time.monotonic() - started, started)


class Watch:
    """Asks each of PROBED again and again, in a thread for each, until closed."""

    def __init__(self, box, period=PERIOD):
        self.box, self.period, self.ending = box, period, threading.Event()
        self.samples = {path: [] for path in PROBED}
        self.threads = [threading.Thread(target=self.look, args=(path,), daemon=True) for path in PROBED]
        for thread in self.threads:
            thread.start()

    def look(self, path):
        while not self.ending.is_set():
            sample = self.box.probe(path)
            self.samples[path].append(sample._replace(body=""))
            self.ending.wait(max(0, self.period - sample.seconds))

    def close(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()


def product_files():
    names = [name for name in os.listdir(ROOT) if name.endswith(PARTS) and name not in NOT_COPIED]
    return sorted(names)


def prove(database, ledger, condition="1"):
    """What proofs.py finds, as a dict."""
    command = [sys.executable, "-E", "-S", os.path.join(ROOT, "drills", "proofs.py"), database, ledger, condition]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": os.environ.get("PATH", "")})
    if done.returncode:
        raise Inconclusive("proofs.py: " + done.stderr.decode()[-300:])
    return json.loads(done.stdout.decode())


def acknowledge_rows(database, ledger):
    """Lets the writer store its first rows."""
    process = subprocess.Popen([sys.executable, "-E", "-S", writer.__file__, database, ledger, "0.001"])
    try:
        wait_for(lambda: len(writer.read_ledger(ledger)) >= FIRST_ROWS or process.poll() is not None, PATIENCE)
    finally:
        process.terminate()
        process.wait()


def make_template(folder):
    """Makes in that folder what sandboxes are copies of: the product, compiled, with a seeded database in which the writer has
    stored its first rows, the ledger of these, and what proofs.py finds. Returns the folder."""
    product = os.path.join(folder, "app")
    os.mkdir(product)
    for name in product_files():
        shutil.copy2(os.path.join(ROOT, name), product)
    for name in FOLDERS:
        shutil.copytree(os.path.join(ROOT, name), os.path.join(product, name),
                        ignore=shutil.ignore_patterns("evidence", "__pycache__", "*.svg"))
    for arguments in (["-m", "compileall", "-q", "."], ["seed.py", "shipments.db", "--rows", str(ROWS)]):
        subprocess.run([sys.executable] + arguments, cwd=product, check=True, stdout=subprocess.DEVNULL)
    database, ledger = os.path.join(product, "shipments.db"), os.path.join(folder, "ledger")
    acknowledge_rows(database, ledger)
    with open(os.path.join(folder, "before.json"), "w") as file:
        json.dump(prove(database, ledger), file)
    return folder


def environment(pid):
    """The environment of a process as it began; empty where it is hidden or gone."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return dict(item.partition("=")[::2] for item in os.fsdecode(file.read()).split("\0") if item)
    except OSError:
        return {}


def members(folder):
    """The Owned of every process of a sandbox: it carries its name in its environment, or runs a script of its folder."""
    found = []
    for pid in supervision.processes():
        if pid == os.getpid():
            continue
        script = supervision.script_of(pid)
        if environment(pid).get(VARIABLE) == folder or script and is_inside(script, folder):
            one = owned(pid)
            found += [one] if one else []
    return found


def end(one):
    """Kills a process if it is still the one that was seen."""
    if owned(one.pid) == one:
        with contextlib.suppress(ProcessLookupError):     # it ended by itself meanwhile
            os.kill(one.pid, signal.SIGKILL)


def remove(folder):
    """Removes a sandbox's folder, whatever modes an injection gave to what is in it; links are not followed."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.ismount(path):       # of one among its own mounts
                subprocess.call(["umount", "-l", path])
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    for left in (2, 1, 0):
        try:
            shutil.rmtree(folder)
            return
        except OSError:     # a trainee's shell has written down a command meanwhile
            if not left:
                raise


def make_folder(run_id):
    """A new private folder with a marker that names it and this process."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="%s%s-" % (PREFIX, run_id)))
    status, me = os.stat(folder), owned(os.getpid())
    marker = {"run_id": run_id, "uid": os.geteuid(), "pid": me.pid, "started": me.started, "folder": folder,
              "inode": status.st_ino, "device": status.st_dev}
    with open(os.path.join(folder, MARKER), "w") as file:
        json.dump(marker, file)
    return folder


@contextlib.contextmanager
def private_folder(run_id):
    """A folder that is gone with its block, or by `drill.py clean`."""
    folder = make_folder(run_id)
    try:
        yield folder
    finally:
        remove(folder)


def read_marker(folder):
    """The marker of a sandbox's folder, as a dict; Foreign for anything that make_folder() did not make where it now is."""
    folder = os.path.realpath(folder)
    try:
        status = os.lstat(folder)
        with open(os.path.join(folder, MARKER)) as file:
            marker = json.load(file)
        named = {name: marker[name] for name in ("run_id", "uid", "pid", "started", "folder", "inode", "device")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Foreign("%s is no sandbox: %s" % (folder, error)) from error
    owners = (os.geteuid(), NOBODY) if os.geteuid() == 0 else (os.geteuid(),)
    truths = (
        (os.path.dirname(folder) == os.path.realpath(tempfile.gettempdir()), "it is not in the folder for temporary files"),
        (os.path.basename(folder).startswith("%s%s-" % (PREFIX, named["run_id"])), "its name is not that of its run"),
        ((named["folder"], named["inode"], named["device"]) == (folder, status.st_ino, status.st_dev),
         "its marker is another folder's"),
        (status.st_uid in owners and named["uid"] == os.geteuid(), "it belongs to another user"),
        (not status.st_mode & 0o077, "others may enter it"),
    )
    for true, fault in truths:
        if not true:
            raise Foreign("%s is no sandbox: %s" % (folder, fault))
    return named


def candidates():
    """The folders that may be sandboxes."""
    parent = os.path.realpath(tempfile.gettempdir())
    return [os.path.join(parent, name) for name in sorted(os.listdir(parent)) if name.startswith(PREFIX)]


def is_orphan(marker):
    return owned(marker["pid"]) != Owned(marker["pid"], marker["started"])


def sweep(folder, spare=False):
    """Reverts a sandbox whose maker is gone: ends its processes, removes its folder, or spares that. Returns how many processes
    were ended. What is no such sandbox raises Foreign."""
    marker = read_marker(folder)
    if not is_orphan(marker):
        raise Foreign("%s is in use by %s" % (folder, supervision.describe(marker["pid"])))
    ending = [one for one in members(marker["folder"]) if one.started >= marker["started"]]
    for one in ending:
        end(one)
    wait_for(lambda: not [one for one in ending if owned(one.pid) == one], PATIENCE)
    if not spare:
        remove(marker["folder"])
    return len(ending)


class Sandbox:
    """See above. It is a context manager: at its end every process and the folder are gone, unless keep() was called."""

    def __init__(self, run_id, template, unprivileged=False, watch=()):
        self.run_id, self.options = run_id, list(watch)
        self.folder = make_folder(run_id)
        self.user = NOBODY if unprivileged and os.geteuid() == 0 else None
        self.app, self.ledger = self.path("app"), self.path("ledger")
        self.database, self.env_file = self.path("app/shipments.db"), self.path("app/metrics.env")
        self.log_file, self.pid_file = self.path("app/metrics.log"), self.path("app/metrics_service.pid")
        self.out_file = self.pid_file + ".out"
        self.children, self.commands, self.kept = [], [], False
        self.writing = self.watch = self.steady_instance = self.injected = None
        self.balance, self.mark, self.log_marks, self.tell = 0, 0, {}, None
        self.first_port = free_port()
        self.furnish(template)

    def furnish(self, template):
        shutil.copytree(os.path.join(template, "app"), self.app)
        shutil.copy(os.path.join(template, "ledger"), self.ledger)
        os.mkdir(self.path("bin"))
        shutil.copy(writer.__file__, self.path("bin/writer.py"))
        self.python3 = os.path.join(self.folder, "bin", "python3")
        interpreter = os.path.realpath(SYSTEM_PYTHON if self.user else sys.executable)
        os.symlink(interpreter, self.python3)
        # A virtual environment without packages: bare Python, whatever the host has installed beside it.
        self.write("pyvenv.cfg", "home = %s\ninclude-system-site-packages = false\n" % os.path.dirname(interpreter))
        os.mkdir(self.path("home"))
        self.write(self.env_file, "METRICS_DB_PATH=shipments.db\nMETRICS_PORT=%d\nMETRICS_LOG_FILE=metrics.log\n"
                                  "METRICS_QUERY_TIMEOUT=%g\n" % (self.port, LOCK_SECONDS))
        for name in ("bystander-1", "bystander-2"):
            self.write(self.path(name), "nothing to do with it\n")
        self.give_away()
        self.bystanders = [self.spawn("/bin/sleep", "86400") for _ in range(2)]

    def give_away(self):
        """As root, hands everything to the unprivileged user for whom the drill is."""
        if self.user is not None:
            for folder, names, files in os.walk(self.folder):
                for name in names + files + ["."]:
                    os.lchown(os.path.join(folder, name), self.user, self.user)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unwatch()
        self.end_processes()
        if not self.kept:
            remove(self.folder)

    def keep(self):
        """Leaves the folder where it is, without its processes; `drill.py clean` removes it."""
        self.kept = True
        self.write(KEPT, "")

    # paths, settings, files

    def path(self, name):
        """The path of that name in the sandbox's folder; Foreign where it leads out of it."""
        path = os.path.join(self.folder, name)
        if not is_inside(path, self.folder):
            raise Foreign("%s lies outside of %s" % (name, self.folder))
        return path

    def write(self, path, text, mode="w"):
        with open(self.path(path), mode) as file:
            file.write(text)

    def read(self, path):
        """The text of a file; empty where there is none."""
        try:
            with open(self.path(path), errors="replace") as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ""

    def settings(self):
        return {one.name: one.value for one in supervision.read_env_file(self.env_file)}

    def set(self, name, value):
        """Changes or adds a line of metrics.env, as an editor would."""
        self.unset(name)
        self.write(self.env_file, "%s=%s\n" % (name, value), "a")

    def unset(self, name):
        lines = self.read(self.env_file).splitlines(True)
        self.write(self.env_file, "".join(line for line in lines if not line.startswith(name + "=")))

    def setting(self, name):
        """The value of a setting as metrics.env has it now, None without one, or where the file cannot be read."""
        with contextlib.suppress(supervision.EnvFileError):
            return self.settings().get(name)

    @property
    def port(self):
        """Where the service is to listen: a repair may move it."""
        given = self.setting("METRICS_PORT") or ""
        return int(given) if given.isdigit() and 0 < int(given) < 65536 else self.first_port

    @property
    def login(self):
        """user:password of the probes, which are those of the check; None without."""
        given = self.setting("METRICS_CHECK_CREDENTIALS")
        return self.read(os.path.join(self.app, given)).strip() if given else None

    # commands

    def environ(self):
        return {"PATH": self.path("bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": self.path("home"), "LANG": "C.UTF-8", "TMPDIR": self.path("home"), VARIABLE: self.folder}

    def become(self):
        """What a child does first: it takes the sandbox's user, and the usual signals."""
        for number in supervision.LIFE_SIGNALS + (signal.SIGQUIT,):
            signal.signal(number, signal.SIG_DFL)
        if self.user is not None:
            os.setgroups([])
            os.setgid(self.user)
            os.setuid(self.user)

    def run(self, arguments, shown=None, seconds=COMMAND_SECONDS, environ=None):
        """Runs a command in the product's folder and records it."""
        at, clock = time.time(), time.monotonic()
        process = subprocess.Popen(arguments, cwd=self.app, env=dict(self.environ(), **(environ or {})), start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   preexec_fn=self.become)
        try:
            output = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)      # its own session, which it has not left: it is not reaped yet
            output = process.communicate()[0] + b"\n[ended after %d s]" % seconds
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        done = Done(shown or " ".join(arguments), code, output.decode("utf-8", "replace"), time.monotonic() - clock, at)
        self.commands.append(done)
        if self.tell:
            self.tell(done)
        return done

    def shell(self, text):
        """bash, in the product's folder, with nothing of our environment."""
        return self.run(["bash", "-c", text], text)

    def runbook(self, text):
        """The same after the block that the runbook says to paste first, where the text needs it."""
        if re.search(r"\$[{A-Z]|\b(sql|holders|listeners|block|clients)\b", text):
            return self.run(["bash", "-c", "%s\n%s" % (BLOCK.search(self.page("runbook.md")).group(1), text)], text)
        return self.shell(text)

    def page(self, name):
        with open(os.path.join(ROOT, "docs", name), encoding="utf-8") as file:
            return file.read()

    def entry(self, anchor):
        """The text of a runbook entry."""
        for part in re.split(r"^##+ ", self.page("runbook.md"), flags=re.MULTILINE):
            if re.sub(r"[^\w -]", "", part.split("\n")[0].lower()).replace(" ", "-") == anchor:
                return part
        raise Inconclusive("docs/runbook.md has no entry %s" % anchor)

    def first_commands(self, anchor):
        return BLOCK.search(self.entry(anchor)).group(1)

    def require_in_runbook(self, anchor, command):
        """The command must be that of the entry, in a block or in backticks, where a line may be broken anywhere."""
        text = self.entry(anchor)
        offered = [" ".join(piece.split()) for piece in BLOCK.findall(text) + INLINE.findall(BLOCK.sub("", text))]
        wanted = " ".join(command.split())
        self.require(any(wanted == one or wanted in one and "\n" not in command for one in offered),
                     "the runbook's entry %s says: %s" % (anchor, command))

    def incident_commands(self, file, examples):
        """The commands of field 13 of an incident page, with this sandbox's database and address."""
        section = re.search(r"## 13\. .*?\n## 14\.", self.page("incidents/" + file), re.DOTALL).group()
        commands = "\n".join(BLOCK.findall(section))
        for example, ours in list(examples.items()) + [("/srv/shipments.db", self.database), ("http://127.0.0.1:8321", self.url)]:
            commands = commands.replace(example, str(ours(self) if callable(ours) else ours))
        return commands

    def script(self, verb, *options):
        return self.run(["./restart_service.sh", verb] + list(options))

    def check(self, *options):
        """health_check.py as cron runs it here."""
        settings = self.settings()
        environ = {name: value for name, value in settings.items() if name.startswith("METRICS_CHECK_")}
        command = ["python3", "health_check.py", "--url", self.url, "--timeout", str(CHECK_SECONDS),
                   "--log-file", os.path.relpath(self.log_file, self.app)] + self.options + list(options)
        return self.run([self.python3] + command[1:], " ".join(command), environ=environ)

    def commands_since(self):
        return self.commands[self.mark:]

    # the service

    @property
    def tls(self):
        return bool(self.setting("METRICS_TLS_CERT"))

    @property
    def url(self):
        return "http%s://127.0.0.1:%d" % ("s" if self.tls else "", self.port)

    def start(self):
        """Starts the service as restart_service.sh would, without its proofs, and waits until it is ready."""
        output = os.open(self.out_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        if self.user is not None:
            os.fchown(output, self.user, self.user)
        child = self.spawn(self.python3, self.path("app/metrics_service.py"), "--env-file", self.env_file, output=output)
        os.close(output)
        ready = wait_for(lambda: child.poll() is not None or self.probe("/readyz").status == 200, PATIENCE)
        self.require(ready and child.poll() is None, "the service started: " + self.read(self.out_file)[-300:])
        return child

    def stop(self):
        return self.script("stop")

    def restart(self):
        return self.script("restart")

    def reload(self):
        return self.script("reload")

    def status(self):
        return self.script("status")

    def pid(self):
        """The PID of the running service: the process that holds the lock of the PID file. None without one."""
        return supervision.holder(self.pid_file)

    def instance(self):
        found = re.search(r'"instance": "(\w+)"', self.probe("/livez").body)
        return found and found.group(1)

    # seeing

    def probe(self, path, timeout=1.0):
        headers = {}
        if self.login:
            headers["Authorization"] = "Basic " + base64.b64encode(self.login.encode()).decode()
        return ask(self.port, path, timeout, headers, self.tls)

    def metric(self, name):
        """The value of a sample by its name and labels as they stand in the text format; None without it."""
        body = self.probe("/metrics?format=text").body
        for line in body.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        return None

    def watch_on(self):
        self.watch = Watch(self)

    def unwatch(self):
        if self.watch:
            self.watch.close()

    def samples(self, path):
        """The probes of a path since the injection."""
        return [sample for sample in self.watch.samples[path] if self.injected is not None and sample.at >= self.injected]

    def log_files(self):
        return self.log_file, self.out_file

    def mark_now(self):
        """From here on log_since() and commands_since() count."""
        self.mark = len(self.commands)
        self.log_marks = {path: len(self.read(path)) for path in self.log_files()}
        self.injected = time.monotonic()

    def log_since(self):
        """What was logged since the injection, to the file and to stdout."""
        parts = []
        for path in self.log_files():
            text = self.read(path)
            start = self.log_marks.get(path, 0)
            parts.append(text[start:] if len(text) >= start else text)
        return "".join(parts)

    # the database

    def sql(self, statement, *values):
        """Runs one statement in a connection of its own and commits; its rows."""
        with contextlib.closing(sqlite3.connect(self.path(self.database), timeout=10, isolation_level=None)) as db:
            return db.execute(statement, values).fetchall()

    def script_sql(self, text):
        with contextlib.closing(sqlite3.connect(self.path(self.database), timeout=10, isolation_level=None)) as db:
            db.executescript(text)

    def prove(self, condition="1"):
        """What proofs.py finds, as a dict."""
        return prove(self.database, self.ledger, condition)

    # processes

    def spawn(self, *arguments, output=subprocess.DEVNULL, stdout=None):
        """Starts a child of the sandbox; a Popen."""
        child = subprocess.Popen(list(arguments), cwd=self.app, env=self.environ(), stdin=subprocess.DEVNULL,
                                 stdout=stdout or output, stderr=subprocess.STDOUT if stdout is None else None,
                                 preexec_fn=self.become, start_new_session=True)
        child.owned = owned(child.pid)
        self.children.append(child)
        return child

    def python(self, code, *arguments):
        """Starts a child that runs this program, with its stdout as a pipe: child.stdout.readline() waits for its first line."""
        return self.spawn(self.python3, "-c", code, *arguments, stdout=subprocess.PIPE)

    def hold_lock(self, begin="BEGIN EXCLUSIVE"):
        """A child that holds this lock on the database until it is ended."""
        child = self.python(HOLDER, self.database, begin)
        self.require(child.stdout.readline() == b"held\n", "%s is held" % begin)
        return child

    def proven(self, process):
        """The PID of a process of this sandbox; Foreign for any other."""
        pid = getattr(process, "pid", process)
        seen = owned(pid)
        mine = any(child.owned == seen for child in self.children)
        if seen and not mine:
            script = supervision.script_of(pid)
            mine = bool(script) and is_inside(script, self.folder)
        if not seen or not mine:
            raise Foreign("%s is no process of %s" % (supervision.describe(pid), self.folder))
        return pid

    def signal(self, process, number):
        os.kill(self.proven(process), number)

    def limit(self, process, which, soft):
        """Sets a soft limit of a process of this sandbox; the limits before. A hard limit could not be raised again."""
        pid = self.proven(process)
        before = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (soft, before[1]))
        self.require(resource.prlimit(pid, which)[0] == soft, "the limit of pid %d is %d" % (pid, soft))
        return before

    # the writer

    def start_writer(self):
        """Starts the writer that keeps the ledger, and waits for its next acknowledged row."""
        before = len(self.read(self.ledger))
        with open(self.path("ledger.errors"), "ab") as errors:
            self.writing = self.spawn(self.python3, self.path("bin/writer.py"), self.database, self.ledger,
                                      str(WRITER_SECONDS), output=errors)
        self.wait(lambda: len(self.read(self.ledger)) > before, "an acknowledged row: " + self.read("ledger.errors")[-200:])
        return self.writing

    def stop_writer(self):
        if self.writing and self.writing.poll() is None:
            self.signal(self.writing, signal.SIGCONT)   # before: it may have ended by itself right after the other
            self.signal(self.writing, signal.SIGTERM)
            self.writing.wait(PATIENCE)

    def kill_writer(self):
        self.signal(self.writing, signal.SIGKILL)
        self.writing.wait(PATIENCE)

    def acknowledged(self):
        """reference -> (version, digest) of the ledger."""
        return writer.read_ledger(self.ledger)

    # honesty

    def require(self, condition, what):
        if not condition:
            raise Inconclusive("not so: " + what)
        return condition

    def wait(self, look, what, seconds=PATIENCE):
        return self.require(wait_for(look, seconds), "%s within %g s" % (what, seconds))

    def bystander_fault(self):
        """What happened to a bystander, None while both are as they were."""
        for number, child in enumerate(self.bystanders, 1):
            status = supervision.process_stat(child.pid)
            if child.poll() is not None or status is None or status.started != child.owned.started or status.state == "T":
                return "bystander %d (pid %d) was ended or stopped" % (number, child.pid)
            if self.read("bystander-%d" % number) != "nothing to do with it\n":
                return "the file of bystander %d was changed" % number
        return None

    # the end

    def end_processes(self):
        """Ends every process of the sandbox and waits until they are gone."""
        for one in members(self.folder):
            end(one)
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()
        wait_for(lambda: not members(self.folder), PATIENCE)
