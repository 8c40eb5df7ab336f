#!/usr/bin/env python3
"""Record what an operator sees: the real commands on a real host folder, as text and as pictures of that text.

  docs/evidence/record.py                   every act of SCENES, into docs/evidence/screenshots/
  docs/evidence/record.py migration drills  these acts alone
  docs/evidence/record.py --draw            no command at all: the pictures anew, from the texts that are there
  docs/evidence/record.py --texts DIR       no picture at all: the texts, into another folder, to compare

An act is a host that begins with a fresh copy of the product in /srv/metrics, as an unprivileged user's; its scenes follow upon
each other. A scene is a text of its commands and of all that they print, and a picture of that text, which carries the text's
SHA-256; or it is the dashboard as it looks at that moment. Commands run by a shell of their own each, as pasted.

Needs root, for a mount and a network namespace in which /srv and port 8321 are free whatever runs on this machine, and Chromium.
"""

import argparse
import collections
import contextlib
import fcntl
import hashlib
import html
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import chromium

SCREENSHOTS = ROOT / "docs" / "evidence" / "screenshots"
HOST = Path("/srv/metrics")
SCRATCH = Path("/srv/tmp")      # for temporary files, apart from those of this machine
USER = 65534            # nobody: root would read and write what a service's user may not
PORT = 8321             # the default, which nobody else has in a network namespace
SECONDS = 120           # a command that takes longer hangs
WIDTH = 1120            # px of a terminal's picture
DASHBOARD = 1440, 900   # px
ANSWERED = "state.level !== 'asking'"
DIGEST = b"Text-SHA256"     # keyword of the picture's tEXt chunk (PNG, 11.3.4.3)

Scene = collections.namedtuple("Scene", "name commands")    # commands: pasted one after the other; None: look at the dashboard

CHECK = "python3 health_check.py --log-file metrics.log"
ASK = "python3 -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())' http://127.0.0.1:8321%s"
OLD_ROWS = """python3 - <<'END'
import sqlite3
rows = [("OLD-%d" % n, "in_transit", "2026-01-02T03:04:05Z") for n in range(500)]
with sqlite3.connect("shipments.db") as connection:
    connection.executemany("INSERT INTO shipments (reference, status, created_at) VALUES (?, ?, ?)", rows)
END"""
SETUP = (
    "python3 seed.py shipments.db --rows 20000 --random-seed 7",
    "printf 'METRICS_DB_PATH=shipments.db\\nMETRICS_LOG_FILE=metrics.log\\n' > metrics.env",
    "./restart_service.sh")

SCENES = collections.OrderedDict((
    ("setup", (
        Scene("1-copy", ("ls", "python3 --version")),
        Scene("2-start", SETUP),
        Scene("3-answers", ("./restart_service.sh status", CHECK, ASK % "/livez", (ASK % "/readyz") + " | python3 -m json.tool")),
        Scene("4-dashboard", None))),
    ("incident-1-database-path-not-set", (
        Scene("0-before", SETUP),
        Scene("1-symptom", (
            "sed -i /METRICS_DB_PATH/d metrics.env",
            "./restart_service.sh stop",
            "python3 metrics_service.py --env-file metrics.env",
            "./restart_service.sh start")),
        Scene("2-detection", (CHECK,)),
        Scene("3-diagnosis", (
            "cat metrics.env",
            "python3 metrics_service.py --env-file metrics.env --check",
            "ls -l shipments.db")),
        Scene("4-recovery", (
            "echo 'METRICS_DB_PATH=/srv/metrics/shipments.db' >> metrics.env",
            "python3 metrics_service.py --env-file metrics.env --check",
            "./restart_service.sh")))),
    ("incident-2-log-file-not-writable", (
        Scene("0-before", SETUP),
        Scene("1-symptom", ("chmod 0444 metrics.log", "./restart_service.sh", "tail -n 2 metrics_service.pid.out")),
        Scene("2-detection", (CHECK, (ASK % "/readyz") + " | grep -o '.log:target.*}'")),
        Scene("3-dashboard", None),
        Scene("4-diagnosis", ("ls -l metrics.log", "python3 metrics_service.py --env-file metrics.env --check")),
        Scene("5-recovery", ("chmod u+w metrics.log", "sleep 5", CHECK, "tail -n 1 metrics.log")))),
    ("incident-3-column-does-not-exist", (
        Scene("0-before", SETUP),
        Scene("1-symptom", (
            "python3 -c 'import sqlite3; sqlite3.connect(\"shipments.db\", isolation_level=None)"
            ".execute(\"ALTER TABLE shipments RENAME COLUMN carrier TO carrier_name\")'",
            "python3 -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8321/metrics\")' 2>&1 | tail -n 1",
            "./restart_service.sh status")),
        Scene("2-detection", (CHECK, "grep schema_mismatch metrics.log | head -n 1")),
        Scene("3-dashboard", None),
        Scene("4-diagnosis", ("python3 migrate.py shipments.db status", "python3 migrate.py shipments.db verify")),
        Scene("5-recovery", (
            "python3 -c 'import sqlite3; sqlite3.connect(\"shipments.db\", isolation_level=None)"
            ".execute(\"ALTER TABLE shipments RENAME COLUMN carrier_name TO carrier\")'",
            "python3 migrate.py shipments.db verify",
            CHECK,
            "grep database_recovered metrics.log")))),
    ("monitoring", (
        Scene("0-before", SETUP),
        Scene("1-cron", (CHECK + " --quiet", CHECK, CHECK + " --format json")),
        Scene("2-nagios", ("python3 health_check.py --format nagios -w 0.5 -c 2",)),
        Scene("3-textfile", ("python3 health_check.py --format textfile | head -n 24",)),
        Scene("4-prometheus", ((ASK % "'/metrics?format=text'") + " | grep -E '^logistics_(up|stale|shipments|deliveries|log)'",)),
        Scene("5-silent", (
            "kill -STOP $(head -n 1 metrics_service.pid)",
            "python3 health_check.py --timeout 2",
            "kill -CONT $(head -n 1 metrics_service.pid)",
            "python3 health_check.py --timeout 2")))),
    ("automation", (
        Scene("0-before", SETUP),
        Scene("1-restart", ("./restart_service.sh",)),
        Scene("2-reload", (
            "echo METRICS_ACCESS_LOG=on >> metrics.env",
            "./restart_service.sh reload",
            "sed -i s/=on/=maybe/ metrics.env",
            "./restart_service.sh reload",
            "sed -i s/=maybe/=on/ metrics.env",
            CHECK)),
        Scene("3-killed", (
            "kill -KILL $(head -n 1 metrics_service.pid)",
            "sleep 1",
            "./restart_service.sh status",
            CHECK,
            "./restart_service.sh")))),
    ("migration", (
        Scene("1-refused", (
            "python3 migrate.py shipments.db apply --to 1",
            OLD_ROWS,
            "printf 'METRICS_DB_PATH=shipments.db\\nMETRICS_LOG_FILE=metrics.log\\n' > metrics.env",
            "./restart_service.sh")),
        Scene("2-plan", ("python3 migrate.py shipments.db status", "python3 migrate.py shipments.db plan | tail -n 24")),
        Scene("3-apply", ("python3 migrate.py shipments.db apply", "./restart_service.sh")),
        Scene("4-back", ("ls shipments.db*", "./restart_service.sh stop", "python3 migrate.py shipments.db restore",
                         "python3 migrate.py shipments.db status")))),
    ("drills", (
        Scene("1-list", ("python3 drill.py list --level 1",)),
        Scene("2-without-a-person", ("python3 drill.py run D01 D10a D29",)),
        Scene("3-page", ("python3 drill.py start D01", "python3 drill.py ack", "python3 drill.py note --severity 2 'nothing listens'")),
        Scene("4-repair", (
            "python3 drill.py note --rejected 'the port is taken'",
            "cd /srv/tmp/drill-[0-9a-f]*/app && python3 metrics_service.py --env-file metrics.env --check",
            "python3 drill.py answer setting-missing",
            "cd /srv/tmp/drill-[0-9a-f]*/app && echo METRICS_DB_PATH=shipments.db >> metrics.env && ./restart_service.sh")),
        Scene("5-debrief", ("python3 drill.py check", "python3 drill.py end")))),
))


def text_of(commands, shell):
    """The record of a scene: each command after a $, its further lines after a >, and what it printed."""
    lines = []
    for command in commands:
        lines.append("$ " + command.replace("\n", "\n> "))
        code, output = shell(command)
        lines += [output.rstrip("\n")] if output.strip("\n") else []
        lines += ["(exit code %d)" % code] if code else []
    return "\n".join(lines) + "\n"


# Pictures: a PNG tells which text it is of

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def sign(png, text):
    """The PNG with a tEXt chunk, before its end, of the text's SHA-256."""
    end = chunk(b"IEND", b"")
    assert png.endswith(end)
    return png[:-len(end)] + chunk(b"tEXt", DIGEST + b"\0" + digest(text).encode()) + end


def signature(png):
    """The SHA-256 that a picture carries, None for one that carries none."""
    _, found, rest = png.partition(b"tEXt" + DIGEST + b"\0")
    return rest[:64].decode() if found else None


PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; padding: 20px 24px; background: #16181d; color: #d8dce4; width: %dpx; box-sizing: border-box }
pre { margin: 0; font: 14px/1.45 "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere }
b { color: #fff; font-weight: 700 } i { color: #f0b45a; font-style: normal }
</style><pre>%s</pre>"""


def mark(line):
    """A line as HTML: what was typed stands out, and so does how a command failed."""
    kind = "b" if line.startswith(("$ ", "> ")) else "i" if line.startswith("(exit code ") else None
    return "<%s>%s</%s>" % (kind, html.escape(line), kind) if kind else html.escape(line)


def page_of(text):
    return PAGE % (WIDTH, "\n".join(map(mark, text.rstrip("\n").split("\n"))))


def draw(browser, path):
    """The picture of a text, beside it."""
    text, picture = path.read_text(encoding="utf-8"), path.with_suffix(".png")
    page = browser.page(WIDTH, 600)     # a window of less is hidden, and never painted
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(page_of(text))
        file.flush()
        page.open("file://" + file.name)
    page.resize(WIDTH, page.run("Math.ceil(document.documentElement.getBoundingClientRect().height)"))
    page.screenshot(picture)
    page.close()
    picture.write_bytes(sign(picture.read_bytes(), text))


def look(browser, path):
    """The picture of the dashboard as it is now."""
    page = browser.page(*DASHBOARD)
    page.open("http://127.0.0.1:%d/" % PORT)
    page.wait(ANSWERED)
    page.screenshot(path)
    page.close()


# The host of an act: namespaces in which /srv, the port and the process numbers are free, and a user without rights

LO = struct.pack("16sh14x", b"lo", 1)   # struct ifreq: its name, IFF_UP (netdevice(7))
SIOCSIFFLAGS = 0x8914


def enter():
    """Goes on as the first process of a mount, a network and a PID namespace of its own."""
    if "RECORDING" not in os.environ:
        os.environ["RECORDING"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--", sys.executable] + sys.argv)
    subprocess.run(["mount", "-t", "tmpfs", "srv", "/srv"], check=True)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, LO)


def install():
    """A fresh copy of the product at HOST, of USER's."""
    shutil.rmtree(str(HOST), ignore_errors=True)
    ignored = shutil.ignore_patterns(".git", ".ci", "tests", "__pycache__", "evidence", "*.db")
    shutil.copytree(str(ROOT), str(HOST), ignore=ignored)
    for path in [HOST, *HOST.rglob("*")]:
        os.chown(str(path), USER, USER)
    os.chmod(str(HOST), 0o755)
    SCRATCH.mkdir(exist_ok=True)
    SCRATCH.chmod(0o1777)


def shell(command):
    """(exit code, output) of a command as USER pastes it, in an environment that holds nothing else."""
    prefix = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--", "/usr/bin/env", "-i",
              "PATH=/usr/bin:/bin", "HOME=" + str(HOST), "TMPDIR=" + str(SCRATCH), "LANG=C.UTF-8", "TERM=dumb"]
    reap()
    done = subprocess.run(prefix + ["bash", "-c", command], cwd=str(HOST), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=SECONDS)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def mine(entry):
    """Whether an entry of /proc is a process of USER's; the first process of a namespace is the parent of all that lost theirs."""
    try:
        return entry.isdigit() and os.stat("/proc/" + entry).st_uid == USER
    except FileNotFoundError:   # it has ended by itself
        return False


def reap():
    """Buries those of USER's processes that have ended, as an init does."""
    for entry in filter(mine, os.listdir("/proc")):
        with contextlib.suppress(ChildProcessError):    # it still has a parent
            os.waitpid(int(entry), os.WNOHANG)


def clear():
    """Ends what an act left running: all of USER's."""
    for entry in filter(mine, os.listdir("/proc")):
        with contextlib.suppress(ProcessLookupError):   # it has ended by itself
            os.kill(int(entry), signal.SIGKILL)
    reap()


def play(act, folder, browser=None):
    """Records the scenes of an act, as texts alone where there is no browser."""
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir(parents=True)
    install()
    try:
        for scene in SCENES[act]:
            path = folder / (scene.name + ".txt")
            if scene.commands:
                path.write_text(text_of(scene.commands, shell), encoding="utf-8")
            if browser:
                draw(browser, path) if scene.commands else look(browser, path.with_suffix(".png"))
    finally:
        clear()


def record(acts):
    enter()
    with chromium.Chromium() as browser:
        for act in acts:
            play(act, SCREENSHOTS / act, browser)


def compare(acts, folder):
    enter()
    for act in acts:
        play(act, folder / act)


def redraw(acts):
    with chromium.Chromium() as browser:
        for act in acts:
            for path in sorted((SCREENSHOTS / act).glob("*.txt")):
                draw(browser, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", nargs="*", metavar="ACT", help="one of " + ", ".join(SCENES))
    parser.add_argument("--draw", action="store_true", help="the pictures alone")
    parser.add_argument("--texts", type=Path, metavar="DIR", help="the texts alone, there")
    options = parser.parse_args()
    acts = options.acts or list(SCENES)
    unknown = set(acts) - set(SCENES)
    if unknown:
        parser.error("no act %s; there are %s" % (", ".join(sorted(unknown)), ", ".join(SCENES)))
    if options.draw:
        redraw(acts)
    elif options.texts:
        compare(acts, options.texts)
    else:
        record(acts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
