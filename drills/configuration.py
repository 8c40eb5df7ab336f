"""Drills of configuration, identity and monitoring."""

import calendar
import functools
import os
import re
import signal
import subprocess
import time

import supervision
from drills import certificate
from drills.sandbox import VARIABLE, Done, free_port
from drills.scenario import (Quiet, Scenario, Signal, Trap, by_hand, check, cure, found, http, log, metric, never, page, said,
                             same_instance, stays, tells, unless_said)

# Another program at our port: it answers whatever is asked, says nothing, or one byte at a time.
NEIGHBOUR = """
import socket, sys, threading, time
ANSWER = b'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 16\\r\\n\\r\\n{"status": "ok"}'
def serve(line, manner):
    try:
        line.recv(4096)
        for at in range(17) if manner == "slow" else ():
            line.sendall(ANSWER[at:at + 1])
            time.sleep(0.15)
        if manner == "yes":
            line.sendall(ANSWER)
        if manner != "mute":
            line.close()
    except OSError:
        pass
listener, kept = socket.socket(), []
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
print("listening", flush=True)
while True:
    kept.append(listener.accept()[0])
    threading.Thread(target=serve, args=(kept[-1], sys.argv[2]), daemon=True).start()
"""

# Between the check and the service; how it is, is the word in a file.
RELAY = """
import socket, struct, sys, threading
def carry(source, target, most=None):
    try:
        data = source.recv(65536)
        while data:
            target.sendall(data[:most])
            if most:
                break
            data = source.recv(65536)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def serve(client):
    with open(sys.argv[2]) as file:
        manner = file.read().strip()
    if manner == "mute":
        kept.append(client)
        return
    if manner == "reset":
        client.recv(65536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return
    server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    threading.Thread(target=carry, args=(client, server), daemon=True).start()
    carry(server, client, 60 if manner == "cut" else None)
    client.close()
kept, listener = [], socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(64)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

CRONTAB = "PATH=/usr/bin:/bin\n*/5 * * * *  %s %s --timeout 2 --url %s --log-file %s\n"
WELL = tells('python3 health_check.py --url "$URL"', 0, "metrics_service OK")     # by hand, on the service's own host
SERVING = (stays("/livez", 200), stays("/metrics", 200), stays("/readyz", 200), same_instance(), never("Traceback"))

def lose_the_path(box):
    box.stop()
    box.unset("METRICS_DB_PATH")
    done = box.script("start")
    box.require(done.code == 1 and "METRICS_DB_PATH" not in box.settings(), "the start was refused")
    return "metrics.env has no METRICS_DB_PATH, and ./restart_service.sh start exits 1"


def databases(box):
    return sorted(name for name in os.listdir(box.app) if name.endswith(".db"))


def mistype_the_path(box):
    box.stop()
    box.set("METRICS_DB_PATH", "shipment.db")
    done = box.script("start")
    box.require(done.code == 1 and databases(box) == ["shipments.db"], "the start was refused")
    return "METRICS_DB_PATH=shipment.db, which is not there, and ./restart_service.sh start exits 1"


def other_file(box):
    return None if databases(box) == ["shipments.db"] else "there is " + ", ".join(databases(box))


def other_database(box):
    """Why the service has not its own database again, None where it has."""
    wrong = box.setting("METRICS_DB_PATH") != "shipments.db"
    return "METRICS_DB_PATH is not the shipments database" if wrong else other_file(box)


def reload_out_of_range(box):
    box.set("METRICS_STALE_SECONDS", "7200")
    box.signal(box.pid(), signal.SIGHUP)
    seen = box.wait(lambda: "reload_refused" in box.log_since(), "the refusal")
    return "METRICS_STALE_SECONDS=7200 is out of its range, and a reload was refused: %s" % bool(seen)


def make_login(box, password):
    """The line of METRICS_AUTH_FILE for the check's user."""
    done = box.shell("echo %s | python3 metrics_service.py --hash-password metrics" % password)
    box.require(done.code == 0, "a password's hash: " + done.output)
    return done.output


def keep_secret(box, name, text):
    path = box.path("app/" + name)
    box.write(path, text)
    os.chmod(path, 0o600)


def set_passwords(box):
    box.rotated = make_login(box, "new-one")
    keep_secret(box, "users", make_login(box, "old-one"))
    keep_secret(box, "check.credentials", "metrics:old-one\n")
    box.set("METRICS_AUTH_FILE", "users")
    box.set("METRICS_CHECK_CREDENTIALS", "check.credentials")


def rotate_the_service_only(box):
    keep_secret(box, "users", box.rotated)
    seen = box.wait(lambda: box.probe("/metrics").status == 401, "a refusal of the old password", 5)
    return "users has the new password only, and the old one is refused: %s" % bool(seen)


def unguarded(box):
    """Why the passwords are not those that were rotated to, None where they are."""
    if box.setting("METRICS_AUTH_FILE") != "users":
        return "the service asks for no password"
    return None if box.read("app/users") == box.rotated else "users is not as it was rotated"


def name_by_a_link(box):
    os.symlink("shipments.db", box.path("app/current.db"))
    box.set("METRICS_DB_PATH", "current.db")


def edit_and_not_load(box):
    os.unlink(os.path.join(box.app, "current.db"))
    box.set("METRICS_DB_PATH", "shipments.db")
    os.utime(box.env_file, (0, 0))      # as a file that was written elsewhere, earlier, and put here
    box.require(box.pid(), "the old process runs on")
    return "current.db is gone, metrics.env names shipments.db, and pid %d has not loaded it" % box.pid()


def neighbour(box):
    """The PID of the other program, None when it is gone."""
    return next((pid for pid in supervision.processes() if supervision.script_of(pid) == box.path("neighbour.py")), None)


def let_in(box, manner):
    """Somebody else's program takes the port while the service is down; what it is told then."""
    port = box.port
    box.stop()
    box.write("neighbour.py", NEIGHBOUR)
    child = box.spawn(box.python3, box.path("neighbour.py"), str(port), manner, stdout=subprocess.PIPE)
    box.require(child.stdout.readline() == b"listening\n", "another program listens")
    done = box.script("start")
    box.require(done.code == 1 and "Address already in use" in done.output, "the port is taken")
    box.other = child.owned
    return "port %d is held by %s, and ./restart_service.sh start exits 1" % (port, supervision.describe(child.pid))


def squat_with_answers(box):
    return let_in(box, "yes")


def squat_in_silence(box):
    return let_in(box, "mute")


def squat_slowly(box):
    return let_in(box, "slow")


def move_away(box):
    box.set("METRICS_PORT", str(free_port()))


def end_the_neighbour(box):
    box.signal(neighbour(box), signal.SIGKILL)
    return box.shell("sleep 0.2; ./restart_service.sh")


def in_time(done, seconds):
    """Words for a run of the check that its own deadline ended; starting Python takes some tenths."""
    return "it ended after %.2f s" % done.seconds if done.code == 1 and done.seconds < seconds + 0.8 else None


def neighbour_hurt(box):
    return None if neighbour(box) == box.other.pid else "the program that had the port was ended: it was somebody else's"


SQUATTED = (
    said(1, r"Address already in use, it is taken by pid \d+ .*neighbour.py"),
    said(1, "nothing was stopped or started"),
    tells("python3 metrics_service.py --env-file metrics.env --check", 78, "Address already in use"),
    tells("listeners", 0, "neighbour.py"),
)
MOVE = (
    by_hand("give this service another port, as the runbook's identity and start_failed say: METRICS_PORT in metrics.env",
            move_away),
    cure("start_failed", "./restart_service.sh"),
)
SQUAT_TRAPS = (
    Trap("end the other program", end_the_neighbour, "it has an owner, who will start it again, and an outage of its own now"),
    Trap("start again, and again", "./restart_service.sh; ./restart_service.sh", "the port does not become free by trying"),
)
SQUAT_HINTS = (
    "Paste the first lines of the runbook, then: listeners",
    "Another program has our port; ours was refused with 'Address already in use', and the line names who has it.",
    "Write another METRICS_PORT into metrics.env, then ./restart_service.sh, and have the check ask there",
)


def set_certificate(box, begins, ends):
    keep_secret(box, "service.pem", certificate.make(begins, ends))


def use_tls(box):
    set_certificate(box, time.time() - 60, time.time() + 90 * 86400)
    box.set("METRICS_TLS_CERT", "service.pem")
    box.set("METRICS_CHECK_CA_FILE", "service.pem")


def let_it_expire(box):
    set_certificate(box, time.time() - 90 * 86400, time.time() - 3600)
    box.signal(box.pid(), signal.SIGHUP)
    box.wait(lambda: box.instance() not in (None, box.steady_instance), "the reload")
    seen = found("certificate_ends .*ended at", box.log_since())
    return box.require(seen, "the service serves a certificate that has ended")


def renew(box):
    set_certificate(box, time.time() - 60, time.time() + 90 * 86400)


def unsafe(box):
    return None if box.setting("METRICS_TLS_CERT") == "service.pem" else "the service speaks without TLS"


def place_relay(box):
    """The check asks by way of a relay, as over a network."""
    box.write("relay.py", RELAY)
    box.write("link", "pass\n")
    child = box.spawn(box.python3, box.path("relay.py"), str(box.port), box.path("link"), stdout=subprocess.PIPE)
    box.options += ["--url", "http://127.0.0.1:%d" % int(child.stdout.readline())]


def break_link(box, manner):
    box.write("link", manner + "\n")
    box.wait(lambda: box.check().code == 1, "the check's way is cut", 5)
    box.require(box.probe("/readyz").status == 200, "the service answers who asks it directly")
    return "the relay between check and service is in state %s, and the service answers" % box.read("link").strip()


def swallow(box):
    return break_link(box, "mute")


def reset(box):
    return break_link(box, "reset")


def cut_off(box):
    return break_link(box, "cut")


def mend_link(box):
    box.write("link", "pass\n")


LINK_MENDED = (
    by_hand("whoever runs the relay mends it, as the runbook's reset says: ask who runs what is between", mend_link),
)
LINK_TRAPS = (
    Trap("restart the service", "./restart_service.sh", "it was well all the time; what is between is not mended by that"),
)
LINK_HINTS = (
    "Ask the service from its own host, past the relay: python3 health_check.py --url \"$URL\"",
    "From here it answers; the check fails on its way. Which word it gives says what the way does.",
    "Whoever runs the relay mends it (here: write pass into the file link, beside app). Leave the service alone.",
)


def cron(box, *options):
    """What cron does every five minutes, now: the command of the crontab, with its few variables and in its own folder."""
    lines = [line.strip() for line in box.read("app/crontab").splitlines() if line.strip() and not line.startswith("#")]
    command = next((line.split(None, 5)[5] for line in lines if line.startswith("*/5 ")), None)
    if command is None:
        return Done("(cron: nothing to do)", 0, "", 0.0, time.time())
    variables = [line for line in lines if not line.startswith("*/5 ")]
    return box.run(["env", "-i", "%s=%s" % (VARIABLE, box.folder), "HOME=" + box.path("home")] + variables
                   + box.wrapper + ["/bin/sh", "-c", "cd; %s %s" % (command, " ".join(options))], "(cron) " + command)


def by_cron(box, host="0.0.0.0", wrapper=()):
    """The check is run by cron, which knows nothing of our shell. box.check() is that from here on."""
    box.write("app/crontab", CRONTAB % (box.python3, os.path.join(box.app, "health_check.py"), "http://%s:%d" % (host, box.port),
                                        box.log_file))
    box.wrapper = list(wrapper)
    box.check = functools.partial(cron, box)


def edit_crontab(box, old, new):
    text = box.read("app/crontab")
    box.require(old in text, "the crontab has %s" % old)
    box.write("app/crontab", text.replace(old, new))


def set_proxy(box):
    edit_crontab(box, "PATH=", "http_proxy=http://127.0.0.1:%d\nPATH=" % free_port())
    done = box.check()
    box.require(done.code == 1 and "proxy" in done.output, "the check goes by the proxy")
    return "crontab has " + box.read("app/crontab").splitlines()[0]


def bypass_proxy(box):
    edit_crontab(box, "PATH=", "no_proxy=0.0.0.0\nPATH=")


def drop_the_line(box):
    edit_crontab(box, "*/5 * * * *", "#*/5 * * * *")
    done = box.check()
    box.require("nothing to do" in done.command, "cron has nothing to do")
    return "crontab has no line of the check: " + done.command


def unwatched(box):
    """How long the check has not been at the service, by its own word, once that is longer than cron's period (here a second)."""
    told = re.search(r"^checked: (\S+) by health_check.py", box.status().output, re.MULTILINE)
    age = told and time.time() - calendar.timegm(time.strptime(told.group(1), "%Y-%m-%dT%H:%M:%SZ"))
    return "%s, which is %.0f s ago" % (told.group(), age) if age and age > 2 else None


def mistype_the_name(box):
    edit_crontab(box, "//0.0.0.0:", "//metrics..example:")
    return "crontab has " + found("--url", box.read("app/crontab"))


def correct_the_name(box):
    edit_crontab(box, "//metrics..example:", "//0.0.0.0:")


def by_name(box):
    """cron finds the service by a name, which a hosts file of its own gives."""
    box.write("hosts", "127.0.0.1 metrics.example\n")
    by_cron(box, "metrics.example", ("unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c",
                                     'mount --bind "$0" /etc/hosts && exec "$@"', box.path("hosts")))


def name_another_address(box):
    box.write("hosts", "127.0.0.2 metrics.example\n")
    done = box.check()
    box.require("127.0.0.2" in done.output, "the name has another address")
    return "metrics.example is 127.0.0.2 by the hosts file"


NAME_TRAPS = (
    Trap("restart the service", "./restart_service.sh", "it was well all the time; the check asks somewhere else"),
    Trap("drop the check's line, so that the mails stop", "sed -i '/^\\*/d' crontab", "silence looks like health"),
)

SCENARIOS = (
    Scenario(
        id="D01", name="env-missing", title="The database path is lost from the settings", layer="settings", level=1, set="ci",
        needs="",
        founding="1-database-path-not-set.md",
        page="Somebody tidied up metrics.env and started the service again. Now the dashboard is empty.",
        goal="The service answers again, from settings that outlast the next start.",
        inject=lose_the_path,
        expected=(
            check("reachable refused"),
            said(1, "METRICS_DB_PATH is not set"),
            said(1, "nothing was stopped or started"),
            tells("python3 metrics_service.py --env-file metrics.env --check", 78, "METRICS_DB_PATH is not set"),
            http("/livez", "refused"),
        ),
        quiet=(never("Traceback"), unless_said(2)),
        deadline=5,
        mitigation=(
            page("1-database-path-not-set.md"),
        ),
        traps=(
            Trap("export the variable in your own shell and restart", "export METRICS_DB_PATH=shipments.db; ./restart_service.sh",
                 "the restart script passes nothing of its caller's environment on: only the env file outlasts your shell"),
            Trap("start the service by hand with the variable", "METRICS_DB_PATH=shipments.db setsid python3 metrics_service.py "
                 "--env-file metrics.env >> metrics_service.pid.out 2>&1 & sleep 1",
                 "it answers, and the next start is refused as this one was: metrics.env still lacks the line"),
        ),
        hints=(
            "Ask the service itself: python3 metrics_service.py --env-file metrics.env --check",
            "METRICS_DB_PATH is required and is not in metrics.env; a start without it is refused with 78.",
            "Put the line METRICS_DB_PATH=shipments.db back into metrics.env, run --check until it prints ok:, then "
            "./restart_service.sh",
        ),
        prevention="--check before the stop: a restart refuses such settings while the old service still answers",
        proofs=("H", "L", "Q"), cause="setting-missing", anchor="config_invalid",
        lesson="A required setting that is missing must refuse the start and name itself; a silent default would serve zeros.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D02", name="path-typo", title="The database path is misspelt", layer="settings", level=1, set="ci", needs="",
        founding="",
        page="We corrected a path in metrics.env and started the service again. It does not come up.",
        goal="The service answers with the shipments that it had, and there is no file more than before.",
        inject=mistype_the_path,
        expected=(
            check("reachable refused"),
            said(1, "shipment.db: No such file or directory"),
            said(1, "nothing was stopped or started"),
            tells("python3 metrics_service.py --env-file metrics.env --check", 78, "shipment.db: No such file or directory"),
            http("/livez", "refused"),
        ),
        quiet=(never("Traceback"), Quiet("no file is made at the wrong path", other_file)),
        deadline=5,
        mitigation=(
            by_hand("correct the line in metrics.env: METRICS_DB_PATH=shipments.db",
                    lambda box: box.set("METRICS_DB_PATH", "shipments.db")),
            cure("config_invalid", "python3 metrics_service.py --env-file metrics.env --check"),
            cure("config_invalid", "./restart_service.sh"),
        ),
        traps=(
            Trap("touch the missing file", "touch shipment.db; ./restart_service.sh",
                 "an empty file is refused as well, and hides that the path was wrong"),
            Trap("have seed.py make the missing database", "python3 seed.py shipment.db --rows 20; ./restart_service.sh",
                 "the service answers, and shows shipments that were invented: the real ones are still at the old path"),
        ),
        hints=(
            "Ask the service itself: python3 metrics_service.py --env-file metrics.env --check, and: ls *.db",
            "It looks for shipment.db; the file is called shipments.db. Nothing is missing but a letter in METRICS_DB_PATH.",
            "Write METRICS_DB_PATH=shipments.db into metrics.env, run --check until it prints ok:, then ./restart_service.sh",
        ),
        prevention="--check before the stop: a restart refuses such settings while the old service still answers",
        proofs=("H", "L", "Q"), cause="path-wrong", anchor="config_invalid",
        lesson="What cannot be found is looked for, not made: a service that creates its database hides the mistake behind "
               "zeros.",
        alerts=("MetricsServiceDown",), solved=other_database,
    ),
    Scenario(
        id="D03", name="bad-reload", title="A reload is refused, and nobody looked", layer="settings", level=1, set="ci",
        needs="",
        founding="",
        page="We wanted old figures served for two hours during the nightly load and had the service reload. Last night it gave "
             "up as before.",
        goal="The service runs with the longest METRICS_STALE_SECONDS that it takes, without an interruption.",
        inject=reload_out_of_range,
        expected=(
            check("database reload_refused: METRICS_STALE_SECONDS is '7200'", 0),
            log("WARNING reload_refused reason=reload_refused"),
            http("/readyz", 200, '"reason": "reload_refused"'),
            metric("logistics_reload_refused", 1),
            tells("./restart_service.sh status", 0, "settings: .* would be refused"),
        ),
        quiet=SERVING,
        deadline=5,
        mitigation=(
            by_hand("write what --check takes: METRICS_STALE_SECONDS=3600", lambda box: box.set("METRICS_STALE_SECONDS", "3600")),
            cure("reload_refused", "./restart_service.sh reload"),
        ),
        traps=(
            Trap("restart to make it take", "./restart_service.sh", "the script refuses: the new settings are as bad for a "
                                                                    "restart"),
            Trap("stop it, to start clean", "./restart_service.sh stop; ./restart_service.sh start",
                 "the refused reload kept a working service up; this is the outage that it prevented"),
            Trap("put the old settings back", "sed -i /METRICS_STALE_SECONDS/d metrics.env; ./restart_service.sh reload",
                 "all is green again, and what was asked for is still not done"),
        ),
        hints=(
            "What does the check say of the database, and: ./restart_service.sh status",
            "SIGHUP came, the new settings were refused, and the old ones are served on: METRICS_STALE_SECONDS takes 3600 at "
            "most.",
            "Write METRICS_STALE_SECONDS=3600 into metrics.env, then ./restart_service.sh reload",
        ),
        prevention="./restart_service.sh reload waits for the new instance and fails where SIGHUP alone says nothing",
        proofs=("H", "L", "Q"), cause="reload-refused", anchor="reload_refused",
        lesson="A reload that was refused looks like success to whoever sent the signal; the next start is the outage.",
        alerts=("MetricsReloadRefused",),
        solved=lambda box: None if box.setting("METRICS_STALE_SECONDS") == "3600" else "METRICS_STALE_SECONDS is not 3600",
    ),
    Scenario(
        id="D06", name="wrong-credentials", title="The service's password was rotated, the check's was not", layer="passwords",
        level=1,
        set="ci", needs="", founding="", prepare=set_passwords,
        page="The dashboard asks for a password since security changed it. The new one is new-one; they say they told everybody.",
        goal="The check gets its figures by the new password, and nobody else by none.",
        inject=rotate_the_service_only,
        expected=(
            check("metrics credentials: .*401 .*wrong user or password"),
            http("/metrics", 401, '"reason": "credentials"'),
            log("WARNING login_failed reason=credentials status=401"),
        ),
        quiet=(stays("/livez", 200), same_instance(), never(" ERROR "), never("Traceback")),
        deadline=5,
        mitigation=(
            by_hand("give the check the password that is in force, as the runbook's credentials says: one line, mode 0600",
                    lambda box: keep_secret(box, "check.credentials", "metrics:new-one\n")),
        ),
        traps=(
            Trap("turn the passwords off", "sed -i /METRICS_AUTH_FILE/d metrics.env; ./restart_service.sh reload",
                 "the check is content, and so is everybody who can reach the port"),
            Trap("let the old password in again", lambda box: keep_secret(box, "users", make_login(box, "old-one")),
                 "it was rotated for a reason: whoever has it may be the reason", settle=4),
            Trap("restart the service", "./restart_service.sh", "the service is right and the check is not: the next one "
                                                                "refuses it too"),
        ),
        hints=(
            "Read the line of the check that fails, and its entry; then: ls -la users check.credentials",
            "The service answers and refuses this password: no outage. users was changed, check.credentials was not.",
            "Write metrics:new-one into check.credentials and chmod 600 it. Nothing else: users is read again by itself.",
        ),
        prevention="rotate by adding a second user, giving it to the clients, and removing the first: docs/configuration.md",
        proofs=("H", "L", "Q"), cause="credentials-differ", anchor="credentials",
        lesson="'Refused by a password' and 'down' need different people: the check must say which.",
        alerts=("MetricsServiceDown", "MetricsCheckFailing"), solved=unguarded,
    ),
    Scenario(
        id="D59", name="fixed-not-loaded", title="The right setting is on disk, and not in the process", layer="settings",
        level=1, set="ci",
        needs="", founding="", prepare=name_by_a_link,
        page="The database's link was removed with the last release. metrics.env has been right for days, we looked twice. "
             "Still no figures.",
        goal="The service answers from the settings that are on disk.",
        inject=edit_and_not_load,
        expected=(
            check("database missing: .*current.db"),
            log("ERROR database_unavailable reason=missing"),
            http("/metrics", 503, '"reason": "missing"'),
            tells("./restart_service.sh status", 0, "settings: .* has others than it runs with"),
        ),
        quiet=(stays("/livez", 200), same_instance(), never("Traceback")),
        deadline=5,
        mitigation=(
            cure("missing", "./restart_service.sh"),
        ),
        traps=(
            Trap("edit the file once more", "sed -i 's/^METRICS_DB_PATH=.*/METRICS_DB_PATH=shipments.db/' metrics.env",
                 "it was right before; a process reads its settings when it starts and when it reloads"),
            Trap("put the link back", "ln -s shipments.db current.db",
                 "the figures come back, and the next start depends on what nobody knows any more"),
        ),
        hints=(
            "Which path does the check name, and which has metrics.env? Then: ./restart_service.sh status",
            "The process looks for current.db, the env file says shipments.db: the file was changed and never loaded.",
            "./restart_service.sh (or reload) loads what is on disk",
        ),
        prevention="status compares what is loaded with what is on disk, by content; a deployment ends with a reload",
        proofs=("H", "L", "Q"), cause="not-loaded", anchor="missing",
        lesson="'It is right in the file' says nothing of the process; ask which settings it runs with before editing again.",
        alerts=("MetricsDatabaseDown",),
    ),
    Scenario(
        id="D05", name="port-squatter", title="Another program has the port, and says 200 to everybody", layer="network", level=2,
        set="ci",
        needs="", founding="",
        page="After the maintenance of last night the port answers, says the load balancer. The figures look odd: there are "
             "none.",
        goal="The service answers by its own name, and nobody else on this host noticed.",
        inject=squat_with_answers,
        expected=(
            check("reachable identity: what answers .* is not metrics_service"),
            http("/livez", 200, '"status": "ok"'),
        ) + SQUATTED,
        quiet=(never("Traceback"),),
        deadline=8,
        mitigation=MOVE,
        traps=SQUAT_TRAPS,
        hints=SQUAT_HINTS,
        prevention="one list of ports for the host; identity in every answer, so that a 200 of somebody else proves nothing",
        proofs=("H", "L", "Q"), cause="port-taken", anchor="identity",
        lesson="A check that is content with any 200 is content with anybody's.",
        alerts=("MetricsFamiliesMissing",), solved=neighbour_hurt,
    ),
    Scenario(
        id="D05a", name="port-squatter-silent", title="Another program has the port, and says nothing", layer="network", level=2,
        set="hand",
        needs="", founding="", watch=("--timeout", "0.6"),
        page="After the maintenance of last night the dashboard turns and turns.",
        goal="The service answers, and nobody else on this host noticed.",
        inject=squat_in_silence,
        expected=(check("reachable silent"), http("/livez", "timeout")) + SQUATTED,
        quiet=(never("Traceback"),),
        deadline=8,
        mitigation=MOVE,
        traps=SQUAT_TRAPS,
        hints=SQUAT_HINTS,
        prevention="one list of ports for the host; the start is refused and names who has the port",
        proofs=("H", "L", "Q"), cause="port-taken", anchor="silent",
        lesson="'Accepts and does not answer' may be a stopped service or a stranger: ask who listens before sending any signal.",
        alerts=("MetricsServiceDown",), solved=neighbour_hurt,
    ),
    Scenario(
        id="D07", name="tls-expired", title="The certificate has ended", layer="tls", level=2, set="ci", needs="", founding="",
        prepare=use_tls,
        page="Since ten o'clock half of the clients say that the service is down. The other half notices nothing.",
        goal="Every client that verifies is served again, over TLS, without an interruption.",
        inject=let_it_expire,
        expected=(
            check("reachable certificate"),
            log("WARNING certificate_ends reason=certificate .*ended at"),
            http("/readyz", 200, '"reason": "certificate"'),
            tells("python3 metrics_service.py --env-file metrics.env --check", 0, "the certificate ended at"),
            http("/metrics", 200),      # to whoever does not verify
        ),
        quiet=(never(" ERROR "), never("Traceback")),
        deadline=5,
        mitigation=(
            by_hand("put the renewed certificate and its key in the place of service.pem, as the runbook's certificate_ends says",
                    renew),
            cure("certificate_ends", "./restart_service.sh reload"),
        ),
        traps=(
            Trap("serve without TLS", "sed -i '/TLS_CERT/d; /CA_FILE/d' metrics.env; ./restart_service.sh",
                 "everybody is served, and whoever listens reads along"),
            Trap("reload what is there", "./restart_service.sh reload", "it is the same certificate"),
        ),
        hints=(
            "Read the line of the check that fails; then: date -u; python3 metrics_service.py --env-file metrics.env --check",
            "The certificate's end is past. It is served all the same: only clients that verify notice.",
            "Put the renewed one in the place of service.pem, then ./restart_service.sh reload. Nobody is interrupted.",
        ),
        prevention="the check warns 21 days before; the program that renews the certificate runs the reload",
        proofs=("H", "L", "Q"), cause="certificate-ended", anchor="certificate_ends",
        lesson="An expired certificate is an outage for the careful only; who turns verification off makes it one for nobody, "
               "and unsafe.",
        alerts=("MetricsCertificateEnds", "MetricsCertificateEndsNow"), solved=unsafe,
    ),
    Scenario(
        id="D08", name="cron-environment", title="cron's check goes by a proxy that nobody else uses", layer="monitoring",
        level=2, set="ci",
        needs="", founding="", prepare=by_cron,
        page="cron mails that the service is down, every five minutes. Whoever looks at it finds it well.",
        goal="cron's own check is content; the service is not touched.",
        inject=set_proxy,
        expected=(
            check("reachable proxy: GET /livez at the proxy 127.0.0.1"),
            WELL,
        ),
        quiet=SERVING,
        deadline=5,
        mitigation=(
            by_hand("add the service's host to no_proxy where cron takes its environment, as the runbook's proxy says",
                    bypass_proxy),
        ),
        traps=NAME_TRAPS,
        hints=(
            "Compare the mail with the same check by hand: which address did each ask? The crontab is in the file crontab.",
            "cron has an environment of its own, with http_proxy in it: the check went by that proxy, which is not there.",
            "Write no_proxy=0.0.0.0 into crontab, above the line of the check",
        ),
        prevention="deploy/cron sets what the check needs and nothing else; the check names whom it asked",
        proofs=("H", "L", "Q"), cause="proxy", anchor="proxy",
        lesson="An alarm that a check by hand does not confirm is about the way of the alarm: look at its environment first.",
        alerts=("MetricsCheckFailing",),
    ),
    Scenario(
        id="D09", name="check-overrun", title="What has the port answers one byte at a time", layer="network", level=2, set="hand",
        needs="",
        founding="", watch=("--timeout", "0.6"),
        page="The host has forty processes of the same check, says the colleague of the operating system. Ours are gone, he "
             "adds.",
        goal="The service answers, and nobody else on this host noticed.",
        inject=squat_slowly,
        expected=(
            check("reachable too_slow: .*the headers are still coming; gave up after 0.6"),
            Signal("the check ends within its --timeout", lambda box: in_time(box.check(), 0.6)),
        ) + SQUATTED,
        quiet=(never("Traceback"),),
        deadline=8,
        mitigation=MOVE,
        traps=SQUAT_TRAPS[:1] + (
            Trap("give the check more time", "python3 health_check.py --url $URL --timeout 3", "each byte starts a plain "
                                                                                               "timeout anew"),
        ),
        hints=SQUAT_HINTS,
        prevention="one deadline over the whole check, not for each read: runs never pile up",
        proofs=("H", "L", "Q"), cause="port-taken", anchor="too_slow",
        lesson="A timeout for each read is no timeout: a peer that drips holds the check for ever, and cron starts the next one.",
        alerts=("MetricsServiceDown",), solved=neighbour_hurt,
    ),
    Scenario(
        id="D61", name="watcher-dead", title="Nobody watches any more", layer="monitoring", level=2, set="ci", needs="",
        founding="",
        prepare=by_cron,
        page="It has been so quiet since the crontab was cleaned up. Are we that good?",
        goal="The check runs every five minutes again; the service is not touched.",
        inject=drop_the_line,
        expected=(
            Signal("status tells when the check was here last", unwatched),
        ),
        quiet=SERVING,
        deadline=10,
        mitigation=(
            by_hand("put the line back where cron reads it, as the runbook's MetricsCheckStopped says",
                    lambda box: edit_crontab(box, "#*/5 * * * *", "*/5 * * * *")),
        ),
        traps=(
            Trap("run the check once by hand", 'python3 health_check.py --url "$URL"', "it is content, this once; at night "
                                                                                       "nobody runs it by hand"),
            Trap("restart the service", "./restart_service.sh", "the script runs the check once, and it looks watched for five "
                                                                "minutes"),
        ),
        hints=(
            "./restart_service.sh status says when the check was here last. The crontab is in the file crontab.",
            "Silence looks like health: the line of the check is commented out, so that nobody asks and nobody mails.",
            "Take the # away in crontab; then look at the log for what was missed",
        ),
        prevention="a dead-man switch (--ping), or the age of the check's textfile: who watches the watcher is somewhere else",
        proofs=("H", "L", "Q"), cause="no-check", anchor="metricscheckstopped",
        lesson="No news is no news. The age of the last check is a figure like any other, and the one that cron cannot mail.",
        alerts=("MetricsCheckStopped",),
    ),
    Scenario(
        id="D62", name="bad-link", title="The way to the service swallows everything", layer="network", level=2, set="ci",
        needs="", founding="",
        prepare=place_relay, watch=("--timeout", "0.6"),
        page="Monitoring says that the service hangs. On its own host it does not.",
        goal="The check is content again; the service is not touched.",
        inject=swallow,
        expected=(check("reachable silent"), WELL),
        quiet=SERVING,
        deadline=6,
        mitigation=LINK_MENDED,
        traps=LINK_TRAPS,
        hints=LINK_HINTS,
        prevention="a second check on the service's own host, so that the way and the service are told apart",
        proofs=("H", "L", "Q"), cause="link", anchor="silent",
        lesson="From afar a cut way and a hanging service look the same; the same check from the host itself decides.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D62a", name="bad-link-reset", title="The way to the service resets connections", layer="network", level=2, set="ci",
        needs="",
        founding="", prepare=place_relay,
        page="Monitoring says that connections are reset. On the service's own host they are not.",
        goal="The check is content again; the service is not touched.",
        inject=reset,
        expected=(check("reachable reset: .*it resets the connection"), WELL),
        quiet=SERVING,
        deadline=5,
        mitigation=LINK_MENDED,
        traps=LINK_TRAPS,
        hints=LINK_HINTS,
        prevention="a second check on the service's own host, so that the way and the service are told apart",
        proofs=("H", "L", "Q"), cause="link", anchor="reset",
        lesson="A reset is not a refusal: somebody took the connection and threw it away, and that may be a firewall.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D62b", name="bad-link-cut", title="The way to the service cuts answers off", layer="network", level=2, set="ci",
        needs="",
        founding="", prepare=place_relay,
        page="Monitoring gets half an answer. On the service's own host it is whole.",
        goal="The check is content again; the service is not touched.",
        inject=cut_off,
        expected=(check("reachable closed"), WELL),
        quiet=SERVING,
        deadline=5,
        mitigation=LINK_MENDED,
        traps=LINK_TRAPS,
        hints=LINK_HINTS,
        prevention="a second check on the service's own host, so that the way and the service are told apart",
        proofs=("H", "L", "Q"), cause="link", anchor="closed",
        lesson="Half an answer must not pass for a short one: lengths are compared, and the check says closed.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D63", name="name-wrong", title="The name leads to another address", layer="network", level=2, set="priv",
        needs="namespace",
        founding="", prepare=by_name,
        page="The service is down since the name server was tidied up, says monitoring.",
        goal="The check asks the address where the service is, by its name; the service is not touched.",
        inject=name_another_address,
        expected=(
            check(r"reachable refused: GET /livez at 127\.0\.0\.2 port \d+: nothing listens there"),
            WELL,
        ),
        quiet=SERVING,
        deadline=5,
        mitigation=(by_hand("correct the name (here: 127.0.0.1 in the file hosts, beside app), as the runbook's unresolved says",
                            lambda box: box.write("hosts", "127.0.0.1 metrics.example\n")),),
        traps=NAME_TRAPS,
        hints=(
            "Which address did the check ask, and where does the service listen: ./restart_service.sh status",
            "The name was given another address. Nothing listens there; the service is where it was.",
            "Correct the address of the name; until then the check may ask by address",
        ),
        prevention="a check by address beside the one by name",
        proofs=("H", "L", "Q"), cause="name", anchor="refused",
        lesson="'Refused' is about an address: read which one before restarting what listens at another.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D63a", name="name-unknown", title="The name in the check has no address", layer="network", level=2, set="ci",
        needs="", founding="",
        prepare=by_cron,
        page="Since the crontab was moved to configuration management there is a mail every five minutes.",
        goal="cron's own check is content; the service is not touched.",
        inject=mistype_the_name,
        expected=(check("reachable unresolved"), WELL),
        quiet=SERVING,
        deadline=5,
        mitigation=(by_hand("correct the name in the crontab, as the runbook's unresolved says", correct_the_name),),
        traps=NAME_TRAPS,
        hints=(
            "Read the address in the first line of the mail, letter by letter; the crontab is in the file crontab.",
            "metrics..example has no address: two dots. Nobody was asked, so that nothing is known of the service.",
            "Correct the --url in crontab",
        ),
        prevention="deploy/cron takes the address from one variable; a check by address beside the one by name",
        proofs=("H", "L", "Q"), cause="name", anchor="unresolved",
        lesson="'Unresolved' says that nobody was asked: it is no verdict on the service.",
        alerts=("MetricsCheckFailing",),
    ),
)
