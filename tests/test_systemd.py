"""At home under systemd: what the service tells its manager, the unit files, and both under a systemd that is booted for it.

The manager of the first part is a datagram socket, of which sd_notify(3) says what arrives there.
"""

import collections
import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

import metrics_service
import notify
import webserver
from conftest import DEADLINE, ROOT, Service, copy_product, make_certificate, make_database, wait_for

INTEGRATIONS = ROOT / "docs" / "integrations.md"
UNITS = ROOT / "deploy" / "systemd"
SETTLE = 0.3        # s in which something would come that shall not

STUCK = """
import os, sys, time
sys.path.insert(0, %r)
import metrics_service, webserver
def stuck(self, *arguments):
    while os.path.exists("stuck"):
        time.sleep(0.01)
    return before(self, *arguments)
before = webserver.Server.%s
webserver.Server.%s = stuck
sys.exit(metrics_service.main())
"""


class Manager:
    """A service manager as far as a service can tell: a socket of datagrams."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(DEADLINE)
        self.name = "@" + address[1:] if address.startswith("\0") else address

    def hear(self):
        """The next datagram as name -> value, in the order of its lines."""
        lines = self.socket.recv(65536).decode().split("\n")
        return collections.OrderedDict(line.split("=", 1) for line in lines)

    def hear_until(self, **wanted):
        """The datagrams up to the first that has these values, that included."""
        heard = [self.hear()]
        while not all(heard[-1].get(name, "").startswith(value) for name, value in wanted.items()):
            heard.append(self.hear())
        return heard

    def silent(self, seconds=SETTLE):
        """Whether nothing comes for so long."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(65536)
        except socket.timeout:
            return True
        finally:
            self.socket.settimeout(DEADLINE)

    def drain(self):
        while not self.silent(0.01):
            pass


@pytest.fixture
def manager(tmp_path):
    one = Manager(str(tmp_path / "notify"))
    yield one
    one.socket.close()


@pytest.fixture
def notified(tmp_path, database, manager):
    """Starts services of the manager: notified(environ, command=...) -> Service. All end with the test."""
    services = []

    def start(environ=(), wait=True, command=None, **settings):
        folder = tmp_path / ("notified%d" % len(services))
        folder.mkdir()
        service = Service(folder, database, **settings)
        service.env.update({"NOTIFY_SOCKET": manager.name}, **dict(environ))
        services.append(service)
        env_file = folder / "metrics.env"
        env_file.write_text("")
        return service.start(wait, command or (sys.executable, str(ROOT / "metrics_service.py"), "--env-file", str(env_file)))
    yield start
    for service in services:
        service.end()


def shipments(count):
    return [{"reference": str(number), "status": "pending"} for number in range(count)]


def add(path, count):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.executemany("INSERT INTO shipments (reference, status) VALUES (?, ?)",
                               [(row["reference"], row["status"]) for row in shipments(count)])
        connection.commit()


# What is told, and when

def test_ready_is_told_once_it_can_serve_with_what_a_person_wants_to_know(notified, manager, database):
    add(database, 3)
    service = notified(wait=False)
    told = manager.hear()
    service.address()
    assert told == {"READY": "1", "STATUS": "serving on %s: 3 shipments" % service.url}
    assert service.get("/readyz")[0] == 200
    assert manager.silent()


def test_what_cannot_be_served_is_never_ready(notified, manager):
    service = notified(wait=False, port="x")
    assert service.process.wait(DEADLINE) == 78 and manager.silent()


def test_the_status_follows_the_state_and_not_the_requests(notified, manager, database):
    service = notified(query_timeout=0.1, stale_seconds=0)
    start = "serving on %s: " % service.url
    assert manager.hear()["STATUS"] == start + "0 shipments"
    moved = database.with_name("moved")
    database.rename(moved)
    for _ in range(5):
        service.get("/metrics")
    words = "no figures, missing: database %s: No such file or directory; it was moved to %s" % (database, moved)
    assert manager.hear() == {"STATUS": start + words}
    assert manager.silent()
    moved.rename(database)
    add(database, 2)
    service.get("/metrics")
    assert manager.hear() == {"STATUS": start + "2 shipments"}
    assert manager.silent()


def test_older_figures_are_told_as_such(notified, manager, database):
    service = notified(query_timeout=0.1)
    manager.drain()
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        wait_for(lambda: service.get("/metrics")[1]["stale"], "older figures")
    (told,) = manager.hear_until(STATUS="serving")
    assert re.match(r"serving on \S+: 0 shipments as of \S+Z, since then locked: database ", told["STATUS"])


def test_a_log_that_falls_back_is_told(notified, manager, tmp_path):
    service = notified(log_file=tmp_path / "none" / "log")
    assert manager.hear()["STATUS"] == "serving on %s: 0 shipments; log on stdout (missing)" % service.url


def test_a_stop_is_told_first(notified, manager):
    service = notified()
    manager.drain()
    service.process.send_signal(signal.SIGTERM)
    assert manager.hear() == {"STOPPING": "1", "STATUS": "stopping"}
    assert service.process.wait(DEADLINE) == 0 and manager.silent()


def test_a_reload_is_told_with_its_time_in_one_datagram_and_its_end_by_the_new_program(notified, manager):
    service = notified()
    manager.drain()
    instance, before = service.get("/livez")[1]["instance"], time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    service.process.send_signal(signal.SIGHUP)
    reloading, ready = manager.hear(), manager.hear()
    assert list(reloading) == ["RELOADING", "MONOTONIC_USEC"] and reloading["RELOADING"] == "1"
    assert before < int(reloading["MONOTONIC_USEC"]) < time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    assert list(ready) == ["READY", "STATUS"] and service.get("/livez")[1]["instance"] != instance


def test_a_refused_reload_is_ready_again_and_says_why(notified, manager):
    service = notified()
    manager.drain()
    env_file = service.folder / "metrics.env"
    env_file.write_text("METRICS_STALE_SECONDS=x\n")
    service.process.send_signal(signal.SIGHUP)
    assert list(manager.hear()) == ["RELOADING", "MONOTONIC_USEC"]
    told = [manager.hear(), manager.hear()]
    assert sorted(name for one in told for name in one) == ["READY", "STATUS"]
    assert re.search(r"; reload refused: METRICS_STALE_SECONDS is 'x' \(from ", told[0].get("STATUS") or told[1]["STATUS"])
    env_file.write_text("")
    service.process.send_signal(signal.SIGHUP)
    assert manager.hear_until(READY="1")[-1]["STATUS"] == "serving on %s: 0 shipments" % service.url


def test_a_manager_in_the_abstract_namespace_hears(tmp_path, notified, manager):
    other = Manager("\0metrics-test-%d" % os.getpid())
    with contextlib.closing(other.socket):
        notified({"NOTIFY_SOCKET": other.name})
        assert other.hear()["READY"] == "1"


@pytest.mark.parametrize("address", ["/nowhere/notify", "relative", "@nobody", "/" + "x" * 200])
def test_a_manager_that_is_not_there_costs_nothing(notified, address):
    service = notified({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
    assert service.get("/metrics")[0] == 200
    assert service.stop() == 0


def test_a_manager_that_does_not_listen_costs_nothing(notified, manager):
    service = notified({"WATCHDOG_USEC": "4000"})   # its queue is full after some datagrams
    time.sleep(SETTLE)
    assert service.get("/metrics")[0] == 200
    assert service.stop() == 0


def test_a_manager_costs_one_thread_and_none_costs_none(launch, notified, database):
    def threads(service):
        return len(os.listdir("/proc/%d/task" % service.process.pid))
    alone, notified = launch(database), notified()
    wait_for(lambda: threads(notified) == threads(alone) + 1, "the thread")


@pytest.mark.parametrize("environ, period", [
    ({}, None), ({"WATCHDOG_USEC": "30000000"}, 30.0), ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "7"}, 3e-6),
    ({"WATCHDOG_USEC": "3", "WATCHDOG_PID": "8"}, None), ({"WATCHDOG_USEC": "x"}, None), ({"WATCHDOG_USEC": "0"}, None),
    ({"WATCHDOG_USEC": "9" * 19}, 86400)])      # more than any timeout can be
def test_the_watchdog_is_fed_only_where_it_waits_for_us(environ, period):
    assert notify.Manager(dict(environ, NOTIFY_SOCKET="/run/notify"), 7).period == period


def test_a_status_is_one_line_of_utf_8(manager):
    assert notify.Manager({"NOTIFY_SOCKET": manager.name}, 1).tell(STATUS="a\nREADY=1\udcff " + "x" * 2000)
    told = manager.hear()
    assert list(told) == ["STATUS"] and told["STATUS"].startswith("a READY=1? xx") and len(told["STATUS"]) == notify.STATUS_MAX


# The watchdog

PERIOD = 0.6        # s
FED = {"WATCHDOG_USEC": str(int(PERIOD * 1e6))}


def fed(manager, seconds):
    """How often the watchdog is fed in so many seconds from now."""
    manager.drain()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        manager.socket.settimeout(max(0.01, end - time.monotonic()))
        with contextlib.suppress(socket.timeout):
            count += "WATCHDOG" in manager.hear()
    manager.socket.settimeout(DEADLINE)
    return count


def test_the_watchdog_is_fed_each_half_period(notified, manager):
    service = notified(FED)
    assert 2 <= fed(manager, 3 * PERIOD) <= 7 and "watchdog" not in service.text()


def test_the_watchdog_is_fed_over_tls_and_where_the_service_listens_everywhere(notified, manager, tmp_path):
    service = notified(FED, tls_cert=make_certificate(tmp_path / "pem", "DNS:localhost"), host="0.0.0.0")
    for _ in range(2):
        manager.hear_until(WATCHDOG="1")
    assert "watchdog" not in service.text()


def test_the_watchdog_is_fed_during_a_reload_and_after_it(notified, manager, database):
    service = notified(FED, query_timeout=8, stale_seconds=0, drain_seconds=8)
    (service.folder / "metrics.env").write_text("METRICS_QUERY_TIMEOUT=0.1\n")   # else --check would wait for the database too
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer, socket.create_connection(
            (service.host, service.port)) as client:
        writer.execute("BEGIN EXCLUSIVE")
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "service_reloading" in service.text(), "the reload to begin")
        assert fed(manager, 2 * PERIOD)
    manager.hear_until(READY="1")
    manager.hear_until(WATCHDOG="1")
    assert "watchdog" not in service.text()


def test_the_watchdog_is_fed_while_a_reload_accepts_nobody(notified, manager, tmp_path):
    service = notified(FED, tls_cert=make_certificate(tmp_path / "pem", "DNS:localhost"), drain_seconds=2)
    with contextlib.closing(socket.create_connection((service.host, service.port))) as plain:
        client = ssl._create_unverified_context().wrap_socket(plain)
        client.sendall(b"GET /metrics?history=672 HTTP/1.1\r\nHost: a\r\n\r\n" * 300)     # answers that nobody reads
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "service_reloading" in service.text(), "the reload to begin")
        assert fed(manager, webserver.NOTICE_SECONDS + 2) >= 6
    assert "watchdog" not in service.text()


def test_a_database_that_does_not_answer_is_no_reason_to_end_the_service(notified, manager, database):
    service = notified(FED, query_timeout=8, stale_seconds=0)
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as writer, contextlib.ExitStack() as clients:
        writer.execute("BEGIN EXCLUSIVE")
        for _ in range(40):         # more than may wait for the database at once
            client = clients.enter_context(socket.create_connection((service.host, service.port)))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert fed(manager, 3 * PERIOD) >= 2 and "watchdog" not in service.text()


@pytest.mark.parametrize("method", ["service_actions", "process_request"], ids=["the poller", "the workers"])
def test_the_watchdog_is_not_fed_while_the_service_does_not_answer(notified, manager, method):
    service = notified(FED, command=(sys.executable, "-c", STUCK % (str(ROOT), method, method)))
    manager.hear_until(WATCHDOG="1")
    flag = service.folder / "stuck"
    flag.write_text("")
    wait_for(lambda: " ERROR watchdog_unfed " in service.text(), "the silence to be noticed")
    assert fed(manager, 2 * PERIOD) == 0
    flag.unlink()
    manager.hear_until(WATCHDOG="1")
    assert [line.split()[2] for line in service.text().splitlines() if "watchdog" in line] == [
        "watchdog_unfed", "watchdog_recovered"]


def test_the_watchdog_s_signal_prints_what_every_thread_is_at(notified):
    service = notified(FED)
    assert service.stop(signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in service.text() and "in service_actions" not in service.text().split("Fatal")[0]
    assert "webserver.py" in service.text()


# The unit files

SERVICE, SOCKET = UNITS / "metrics_service.service", UNITS / "metrics_service.socket"
CHECK, TIMER = UNITS / "metrics_service-check.service", UNITS / "metrics_service-check.timer"
SCRAPER = UNITS / "scraper"
ENV_EXAMPLE = ROOT / "deploy" / "metrics.env.example"
EXPOSURE = 12       # tenths; as docs/integrations.md states it


def values(unit, name):
    """What the lines NAME=... of a unit file give."""
    text = unit.read_text().replace("\\\n", " ")
    return [value for value in re.findall(r"^%s=(.*)$" % name, text, re.MULTILINE) if value]


def environment(unit):
    return dict(word.split("=", 1) for line in values(unit, "Environment") for word in line.split())


def analyze(*arguments):
    """(exit code, output) of systemd-analyze."""
    done = subprocess.run(["systemd-analyze"] + [str(argument) for argument in arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    return done.returncode, done.stdout


def installed(folder, scraper=False):
    """The units as they are installed, in this folder."""
    for unit in (SERVICE, SOCKET, CHECK, TIMER):
        shutil.copy(str(unit), str(folder))
    for dropin in SCRAPER.glob("*/*") if scraper else ():
        (folder / dropin.parent.name).mkdir()
        shutil.copy(str(dropin), str(folder / dropin.parent.name))
    return folder


@pytest.mark.parametrize("scraper", [False, True], ids=["as shipped", "open to a scraper"])
def test_systemd_has_nothing_to_say_about_the_units(tmp_path, scraper):
    folder = installed(tmp_path, scraper)
    assert analyze("verify", *[folder / unit.name for unit in (SERVICE, SOCKET, CHECK, TIMER)]) == (0, "")


@pytest.mark.parametrize("scraper", [False, True], ids=["as shipped", "open to a scraper"])
@pytest.mark.parametrize("unit", [SERVICE, CHECK], ids=lambda unit: unit.name)
def test_the_units_are_exposed_no_more_than_stated(tmp_path, unit, scraper):
    text = unit.read_text() + "".join(dropin.read_text() for dropin in SCRAPER.glob(unit.name + ".d/*") if scraper)
    (tmp_path / unit.name).write_text(text)
    code, output = analyze("security", "--offline=true", "--threshold=%d" % EXPOSURE, "--no-pager", tmp_path / unit.name)
    assert code == 0, output.splitlines()[-1]


def test_every_path_of_the_product_that_a_unit_names_exists():
    text = "".join(path.read_text() for path in UNITS.glob("**/*.*") if path.is_file())
    named = set(re.findall(r"/opt/metrics/([\w./-]+)", text)) - {"metrics.env"}
    assert named and all((ROOT / name).is_file() for name in named), named


@pytest.mark.parametrize("unit, name", [(SERVICE, "ExecStart"), (SERVICE, "ExecReload"), (CHECK, "ExecStart")])
def test_every_option_that_a_unit_gives_a_program_exists(unit, name):
    (line,) = values(unit, name)
    python, program, *rest = line.split()
    verb = [word for word in rest[:1] if not word.startswith("-")]
    done = subprocess.run([python, str(ROOT / os.path.basename(program))] + verb + ["--help"], stdout=subprocess.PIPE,
                          universal_newlines=True, check=True)
    assert all(re.search(r"(?<![\w-])%s(?![\w-])" % option, done.stdout) for option in rest if option.startswith("--"))


def test_the_units_and_the_example_of_the_env_file_name_the_same():
    example = ENV_EXAMPLE.read_text().replace("\n#METRICS", "\nMETRICS")     # a suggestion has to be good too
    given = {name: metrics_service.Given(value, "the example", "/") for name, value in re.findall(r"^(\w+)=(.*)$", example, re.M)}
    settings, complaints = metrics_service.load_settings(given)
    assert complaints == []
    assert values(SERVICE, "RequiresMountsFor") == [settings.db_path]
    fixed = environment(SERVICE)
    assert fixed == {"METRICS_HOST": settings.host, "METRICS_PORT": str(settings.port), "METRICS_PID_FILE": settings.pid_file}
    assert values(SOCKET, "ListenStream") == ["%s:%d" % (settings.host, settings.port)]
    assert os.path.dirname(settings.pid_file) == "/run/" + values(SERVICE, "RuntimeDirectory")[0]
    assert os.path.dirname(settings.log_file) == "/var/log/" + values(SERVICE, "LogsDirectory")[0]


def test_the_service_is_given_the_time_that_it_may_take():
    drain = metrics_service.VARIABLES["METRICS_DRAIN_SECONDS"]
    assert drain.parse("60", "/") == 60 and int(values(SERVICE, "TimeoutStopSec")[0]) > 60
    assert values(SERVICE, "RestartPreventExitStatus") == [str(metrics_service.EX_CONFIG)]


def test_the_scraper_s_drop_ins_agree():
    service, one = SCRAPER / "metrics_service.service.d" / "scraper.conf", SCRAPER / "metrics_service.socket.d" / "scraper.conf"
    assert values(service, "IPAddressAllow") == values(one, "IPAddressAllow")
    given = environment(service)
    assert values(one, "ListenStream") == ["%s:%s" % (given["METRICS_HOST"], environment(SERVICE)["METRICS_PORT"])]
    credentials = {line.split(":")[0] for line in values(service, "LoadCredential")}
    assert {value[3:] for value in given.values() if value.startswith("%d/")} == credentials
    assert set(given) <= set(metrics_service.VARIABLES)


# A systemd that is booted for the tests: namespaces of its own, a copy-on-write image of this machine, no network but loopback

OUTSIDE = """
mkdir cgroup
mount -t cgroup2 none cgroup
mkdir "cgroup/$NAME"
echo $$ > "cgroup/$NAME/cgroup.procs"
exec unshare --cgroup --pid --uts --ipc --net --mount --fork --kill-child bash -euc "$INSIDE"
"""
INSIDE = """
mount --make-rprivate /
mkdir image
mount -t tmpfs none image
cd image
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 none sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run dev srv opt; do mount -t tmpfs -o mode=755 none $folder; done
mount -t tmpfs -o mode=1777 none tmp
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666 none dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
rm -rf etc/systemd/system
mkdir -p etc/systemd/system var/log/journal
printf '[Unit]\\nWants=systemd-journald.service\\n' > etc/systemd/system/trial.target
mkdir old
pivot_root . old
umount -l old
mount --make-rshared /
container=tests exec /lib/systemd/systemd --system --unit=trial.target --log-target=journal < /dev/null > /dev/null 2>&1
"""
REMOVE = 'mount -t cgroup2 none cgroup; find "cgroup/$NAME" -depth -type d -exec rmdir {} +'
HEADED = """
import fcntl, socket, struct
with socket.socket() as one:    # SIOCSIFADDR, SIOCSIFNETMASK
    for request, address in (0x8916, "192.0.2.1"), (0x891c, "255.255.255.0"):
        fcntl.ioctl(one, request, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address)))
"""
ASK = """
import socket, ssl, sys
source, host, path, secure = sys.argv[1:5]
connection = socket.create_connection((host, 8321), 1 if source == "192.0.2.99" else 9, (source, 0))
if secure:
    context = ssl._create_unverified_context()
    connection = context.wrap_socket(connection)
connection.sendall(("GET %s HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n" % path).encode())
print(connection.makefile().read())
"""

LOCK_AND_ASK = """
import sqlite3, urllib.request
connection = sqlite3.connect("/srv/shipments/shipments.db", isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
while b'"stale": null' in urllib.request.urlopen("http://127.0.0.1:8321/metrics").read():
    pass
"""


class Machine:
    """A booted systemd, with the product, a database and the units installed as docs/integrations.md says."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = dict(os.environ, NAME="metrics-test-%d" % os.getpid(), INSIDE=INSIDE)
        self.outside = self.unshared(OUTSIDE)
        self.init = wait_for(self.booted, "systemd to boot")
        self.root = Path("/proc/%d/root" % self.init)
        wait_for(lambda: self.run("systemctl", "is-system-running")[1].strip() == "running", "systemd to have booted")

    def unshared(self, commands, **options):
        """A process that runs the commands where mounts are its own."""
        return subprocess.Popen(["unshare", "--mount", "--propagation", "private", "bash", "-euc", commands],
                                cwd=str(self.folder), env=self.environ, **options)

    def booted(self):
        assert self.outside.poll() is None, "systemd did not boot"
        children = Path("/proc/%d/task/%d/children" % (self.outside.pid, self.outside.pid)).read_text().split()
        boots = [int(pid) for pid in children if b"systemd" in Path("/proc/%s/cmdline" % pid).read_bytes().split(b"\0")[0]]
        return boots and (Path("/proc/%d/root/run/systemd/private" % boots[0])).exists() and boots[0]

    def run(self, *command):
        """(exit code, output) of a command inside."""
        done = subprocess.run(["nsenter", "-t", str(self.init), "-a", "--"] + list(command), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=60)
        return done.returncode, done.stdout

    def do(self, *command):
        code, output = self.run(*command)
        assert code == 0, output + self.journal()
        return output

    def install(self):
        """What docs/integrations.md says."""
        for path in ("opt/metrics", "srv/shipments", "etc/metrics"):
            (self.root / path).mkdir()
        product = copy_product(self.root / "opt" / "metrics")
        shutil.copytree(str(ROOT / "deploy"), str(product / "deploy"))
        shutil.copy(str(make_database(self.folder / "shipments.db", shipments(3))), str(self.root / "srv" / "shipments"))
        self.follow("useradd")

    def follow(self, word):
        """Runs those commands of docs/integrations.md that have the word."""
        section = re.search(r"^## systemd\n(.*?)(?=^## |\Z)", INTEGRATIONS.read_text(), re.DOTALL | re.MULTILINE).group(1)
        (commands,) = [block for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) if word in block]
        self.do("bash", "-euc", "cd /opt/metrics\n" + commands)

    def journal(self):
        return self.run("journalctl", "-o", "cat", "--no-pager", "-u", "metrics_service*")[1]

    def show(self, name, unit="metrics_service"):
        return self.do("systemctl", "show", "-p", name, "--value", unit).strip()

    def ask(self, path="/livez", source="127.0.0.1", host="127.0.0.1", secure=""):
        """(exit code, answer)."""
        return self.run("/usr/bin/python3", "-c", ASK, source, host, path, secure)

    def answers(self):
        return self.ask()[1].startswith("HTTP/1.1 200 ")

    def instance(self):
        return re.search(r'"instance": "(\w+)"', self.ask()[1]).group(1)

    def dropin(self, unit, text):
        """Adds a drop-in."""
        path = self.root / "etc/systemd/system" / (unit + ".d") / "test.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.do("systemctl", "daemon-reload")

    def configure(self, text):
        path = self.root / "opt/metrics/metrics.env"
        path.write_text(ENV_EXAMPLE.read_text() + text)

    def end(self):
        self.outside.kill()     # --kill-child takes systemd along, and the kernel all else in its namespace
        self.outside.wait()
        wait_for(lambda: self.unshared(REMOVE, stderr=subprocess.DEVNULL).wait() == 0, "the machine to end")


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    if os.geteuid():
        pytest.skip("only root can boot a systemd")
    one = Machine(tmp_path_factory.mktemp("machine"))
    try:
        one.install()
        yield one
    finally:
        one.end()


@pytest.fixture
def machine(booted):
    """The machine with the service running as installed."""
    yield booted
    booted.configure("")
    for dropin in (booted.root / "etc/systemd/system").glob("*.d/*.conf"):
        dropin.unlink()
    booted.do("systemctl", "daemon-reload")
    booted.run("systemctl", "reset-failed")
    booted.run("systemctl", "restart", "metrics_service.service")


def test_a_booted_systemd_runs_the_service_and_knows_how_it_is(machine):
    assert (machine.show("ActiveState"), machine.show("SubState")) == ("active", "running")
    assert machine.show("StatusText") == "serving on http://127.0.0.1:8321: 3 shipments"
    uid = os.stat("/proc/%d/root/proc/%s" % (machine.init, machine.show("MainPID"))).st_uid
    assert uid != 0 and machine.answers()


def test_a_booted_systemd_reloads_and_says_when_that_is_refused(machine):
    pid, instance = machine.show("MainPID"), machine.instance()
    machine.do("systemctl", "reload", "metrics_service")
    assert machine.show("MainPID") == pid and machine.instance() != instance
    machine.configure("METRICS_STALE_SECONDS=x\n")
    code, _ = machine.run("systemctl", "reload", "metrics_service")
    assert code == 1 and "refuses to reload: METRICS_STALE_SECONDS is 'x'" in machine.journal()
    assert (machine.show("ActiveState"), machine.show("MainPID")) == ("active", pid)
    assert "; reload refused: METRICS_STALE_SECONDS" in machine.show("StatusText")


def test_a_reload_by_signal_is_seen_by_a_booted_systemd(machine):
    pid, instance = machine.show("MainPID"), machine.instance()
    machine.do("kill", "-HUP", pid)
    wait_for(lambda: machine.instance() != instance, "the reload")
    wait_for(lambda: machine.show("ActiveState") == "active", "its end")
    assert machine.show("MainPID") == pid


def test_the_restart_script_leaves_the_service_to_a_booted_systemd(machine):
    pid = machine.show("MainPID")
    for verb in ("reload", "restart"):
        code, output = machine.run("/opt/metrics/restart_service.sh", verb)
        assert code == 0 and "leaving it to systemctl" in output, output
    assert machine.show("MainPID") != pid and machine.show("NRestarts") == "0"


def test_connections_wait_through_a_restart(machine):
    machine.follow("enable --now metrics_service.socket")
    machine.do("systemctl", "stop", "metrics_service.service")
    assert machine.answers() and machine.show("ActiveState") == "active"    # started by the connection
    before = machine.instance()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        restart = other.submit(machine.do, "systemctl", "restart", "metrics_service.service")
        answers = [machine.ask()]
        while not restart.done():
            answers.append(machine.ask())
    assert {code for code, _ in answers} == {0} and machine.instance() != before
    machine.do("systemctl", "stop", "metrics_service.socket", "metrics_service.service")


def test_exit_78_is_not_retried(machine):
    machine.configure("METRICS_STALE_SECONDS=x\n")
    assert machine.run("systemctl", "restart", "metrics_service")[0] == 1
    assert [machine.show(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")] == ["failed", "78", "0"]
    assert " ERROR config_invalid " in machine.run("journalctl", "-p", "err", "-o", "cat", "--no-pager", "-u", "metrics_service")[1]


def test_a_booted_systemd_restarts_what_was_killed(machine):
    machine.dropin("metrics_service.service", "[Service]\nRestartSec=0\n")
    pid = machine.show("MainPID")
    machine.do("kill", "-KILL", pid)
    wait_for(machine.answers, "the next one")
    assert machine.show("MainPID") != pid and machine.show("NRestarts") == "1"


def test_a_booted_systemd_restarts_what_does_not_answer(machine):
    folder = machine.root / "opt/metrics"
    (folder / "driver.py").write_text(STUCK.replace("exists(\"stuck\")", "exists(\"/srv/stuck\")")
                                      % ("/opt/metrics", "service_actions", "service_actions"))
    machine.dropin("metrics_service.service", "[Service]\nWatchdogSec=1\nRestartSec=0\nExecStart=\n"
                   "ExecStart=/usr/bin/python3 /opt/metrics/driver.py --env-file /opt/metrics/metrics.env\n")
    machine.do("systemctl", "restart", "metrics_service")
    pid = machine.show("MainPID")
    (machine.root / "srv/stuck").write_text("")
    wait_for(lambda: "Watchdog timeout" in machine.journal(), "the watchdog")
    (machine.root / "srv/stuck").unlink()
    wait_for(machine.answers, "the next one")
    assert machine.show("MainPID") != pid
    assert "watchdog_unfed" in machine.journal() and "Fatal Python error: Aborted" in machine.journal()


def test_who_locks_the_database_is_named_from_within_the_sandbox(machine):
    machine.do("/usr/bin/python3", "-c", LOCK_AND_ASK)
    assert re.search(r"reason=locked detail=.* held by pid \d+ \(no command line, uid 0\)", machine.journal())


def test_the_check_s_unit_fails_with_the_service(machine):
    machine.do("systemctl", "start", "metrics_service-check.service")
    machine.do("systemctl", "start", "metrics_service-check.timer")
    assert machine.show("NextElapseUSecRealtime", "metrics_service-check.timer")
    machine.do("systemctl", "stop", "metrics_service-check.timer", "metrics_service.service")
    assert machine.run("systemctl", "start", "metrics_service-check.service")[0] == 1
    assert "FAILING: reachable refused" in machine.journal()


def test_the_scraper_s_drop_in_lets_in_the_scraper_alone(machine):
    certificate = make_certificate(machine.folder / "pem", "DNS:localhost", "IP:192.0.2.1")
    users = subprocess.run([sys.executable, str(ROOT / "metrics_service.py"), "--hash-password", "prometheus"],
                           input=b"letters\n", stdout=subprocess.PIPE, check=True).stdout
    for name, content in ("cert.pem", certificate.read_bytes()), ("key.pem", certificate.read_bytes()), ("users", users):
        (machine.root / "etc/metrics" / name).write_bytes(content)
        (machine.root / "etc/metrics" / name).chmod(0o644 if name == "cert.pem" else 0o600)
    machine.do("/usr/bin/python3", "-c", HEADED)
    machine.follow("scraper/*")
    assert machine.show("StatusText") == "serving on https://0.0.0.0:8321: 3 shipments"
    code, answer = machine.ask("/metrics", "192.0.2.10", "192.0.2.1", "tls")
    assert (code, answer[:13]) == (0, "HTTP/1.1 401 ")
    code, answer = machine.ask("/livez", "192.0.2.99", "192.0.2.1", "tls")
    assert code == 1 and "timed out" in answer
    machine.do("systemctl", "reload", "metrics_service")
