"""Drills of configuration, identity and monitoring."""

from drills.scenario import Scenario, Trap, check, cure, http, never, page, said, tells, unless_said


def lose_the_path(box):
    box.stop()
    box.unset("METRICS_DB_PATH")
    done = box.script("start")
    box.require(done.code == 1 and "METRICS_DB_PATH" not in box.settings(), "the start was refused")
    return "metrics.env has no METRICS_DB_PATH, and ./restart_service.sh start exits 1"


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
)
