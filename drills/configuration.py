"""Drills of configuration, identity and monitoring."""

import os
import signal

import supervision
from drills.scenario import (Quiet, Scenario, Trap, by_hand, check, cure, http, log, metric, never, page, said, same_instance, stays,
                             tells, unless_said)

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


SCENARIOS = (
    Scenario(
        id="D01", name="env-missing", title="The database path is lost from the settings", layer="settings", level=1, set="ci", needs="",
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
            "Put the line METRICS_DB_PATH=shipments.db back into metrics.env, run --check until it prints ok:, then ./restart_service.sh",
        ),
        prevention="--check before the stop: a restart refuses such settings while the old service still answers",
        proofs=("H", "L", "Q"), cause="setting-missing", anchor="config_invalid",
        lesson="A required setting that is missing must refuse the start and name itself; a silent default would serve zeros.",
        alerts=("MetricsServiceDown",),
    ),
    Scenario(
        id="D02", name="path-typo", title="The database path is misspelt", layer="settings", level=1, set="ci", needs="", founding="",
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
            by_hand("correct the line in metrics.env: METRICS_DB_PATH=shipments.db", lambda box: box.set("METRICS_DB_PATH", "shipments.db")),
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
        lesson="What cannot be found is looked for, not made: a service that creates its database hides the mistake behind zeros.",
        alerts=("MetricsServiceDown",), solved=other_database,
    ),
    Scenario(
        id="D03", name="bad-reload", title="A reload is refused, and nobody looked", layer="settings", level=1, set="ci", needs="",
        founding="",
        page="We wanted old figures served for two hours during the nightly load and had the service reload. Last night it gave up as before.",
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
            Trap("restart to make it take", "./restart_service.sh", "the script refuses: the new settings are as bad for a restart"),
            Trap("stop it, to start clean", "./restart_service.sh stop; ./restart_service.sh start",
                 "the refused reload kept a working service up; this is the outage that it prevented"),
            Trap("put the old settings back", "sed -i /METRICS_STALE_SECONDS/d metrics.env; ./restart_service.sh reload",
                 "all is green again, and what was asked for is still not done"),
        ),
        hints=(
            "What does the check say of the database, and: ./restart_service.sh status",
            "SIGHUP came, the new settings were refused, and the old ones are served on: METRICS_STALE_SECONDS takes 3600 at most.",
            "Write METRICS_STALE_SECONDS=3600 into metrics.env, then ./restart_service.sh reload",
        ),
        prevention="./restart_service.sh reload waits for the new instance and fails where SIGHUP alone says nothing",
        proofs=("H", "L", "Q"), cause="reload-refused", anchor="reload_refused",
        lesson="A reload that was refused looks like success to whoever sent the signal; the next start is the outage.",
        alerts=("MetricsReloadRefused",),
        solved=lambda box: None if box.setting("METRICS_STALE_SECONDS") == "3600" else "METRICS_STALE_SECONDS is not 3600",
    ),
    Scenario(
        id="D06", name="wrong-credentials", title="The service's password was rotated, the check's was not", layer="passwords", level=1,
        set="ci", needs="", founding="", prepare=set_passwords,
        page="The dashboard asks for a password since security changed it. The new one is new-one; they say they told everybody.",
        goal="The check gets its figures by the new password, and nobody else by none.",
        inject=rotate_the_service_only,
        expected=(
            check("metrics credentials: .*401 .*wrong user or password"),
            http("/metrics", 401, '"reason": "credentials"'),
            log("WARNING login_failed reason=credentials status=401"),
        ),
        quiet=(stays("/livez", 200), stays("/readyz", 200), same_instance(), never(" ERROR "), never("Traceback")),
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
            Trap("restart the service", "./restart_service.sh", "the service is right and the check is not: the next one refuses it too"),
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
        id="D59", name="fixed-not-loaded", title="The right setting is on disk, and not in the process", layer="settings", level=1, set="ci",
        needs="", founding="", prepare=name_by_a_link,
        page="The database's link was removed with the last release. metrics.env has been right for days, we looked twice. Still no figures.",
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
)
