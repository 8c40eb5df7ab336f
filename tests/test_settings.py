"""Settings: where each comes from, what is refused and how that is said."""

import os
import socket
import subprocess
import sys

import pytest

import metrics_service
import schema_check
from conftest import ROOT, copy_product, make_database

COMMAND = [sys.executable, str(ROOT / "metrics_service.py")]


def run(folder, *arguments, **env):
    """(exit code, stdout lines, stderr lines) of the command in a bare environment."""
    env["PATH"] = os.environ["PATH"]
    done = subprocess.run(COMMAND + list(arguments), env=env, cwd=str(folder), stdin=subprocess.DEVNULL, timeout=20,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def check(folder, **env):
    env.setdefault("METRICS_PORT", "0")
    env.setdefault("METRICS_PID_FILE", "service.pid")
    return run(folder, "--check", **env)


def test_a_missing_database_path_is_refused_by_name_with_the_cure(tmp_path):
    assert run(tmp_path, METRICS_PID_FILE="a.pid")[::2] == (78, [
        "error: METRICS_DB_PATH is not set; set it to the shipments database, such as /srv/shipments.db; "
        "'python3 seed.py FILE' makes one"])


def test_an_empty_database_path_says_where_it_is_empty(tmp_path):
    (tmp_path / "metrics.env").write_text("METRICS_PORT=0\nMETRICS_DB_PATH=\n")
    code, _, errors = run(tmp_path, "--check", "--env-file", "metrics.env")
    assert code == 78 and errors[0].startswith("error: METRICS_DB_PATH is empty (from metrics.env line 2); set it to")


@pytest.mark.parametrize("name, value, why", [
    ("METRICS_PORT", "abc", "is not a whole number from 0 to 65535"),
    ("METRICS_PORT", "65536", "is not a whole number from 0 to 65535"),
    ("METRICS_PORT", "8_0", "is not a whole number from 0 to 65535"),
    ("METRICS_PORT", "٣", "is not a whole number from 0 to 65535"),
    ("METRICS_QUERY_TIMEOUT", "nan", "is not a number from 0.1 to 30"),
    ("METRICS_QUERY_TIMEOUT", "0", "is not a number from 0.1 to 30"),
    ("METRICS_LOG_FORMAT", "xml", "is none of text, json"),
    ("METRICS_LOG_LEVEL", "INFO", "is none of debug, info, warning, error"),
])
def test_a_bad_value_is_refused_with_its_source_and_range(name, value, why):
    settings, complaints = metrics_service.load_settings({
        "METRICS_DB_PATH": metrics_service.Given("a.db", "the environment", "/"),
        name: metrics_service.Given(value, "metrics.env line 7", "/")})
    assert len(complaints) == 1
    assert complaints[0].startswith("%s is '%s' (from metrics.env line 7), which %s; set it to " % (name, value, why))


def test_all_findings_are_told_at_once(tmp_path):
    code, _, errors = check(tmp_path, METRICS_PORT="x", METRICS_LOG_FORMAT="y")
    assert code == 78
    assert [line.split()[1] for line in errors] == ["METRICS_DB_PATH", "METRICS_PORT", "METRICS_LOG_FORMAT"]


def test_a_misspelt_setting_is_refused_with_the_nearest_name(tmp_path, database):
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_LOGFILE="x")
    assert (code, errors) == (78, [
        "error: METRICS_LOGFILE (from the environment) is not a setting; did you mean METRICS_LOG_FILE?"])


def test_settings_of_the_health_check_are_left_to_it(tmp_path, database):
    assert check(tmp_path, METRICS_DB_PATH=str(database), METRICS_CHECK_URL="http://x")[0] == 0


def test_the_env_file_wins_over_the_environment_and_starts_relative_paths(tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "metrics.env").write_text("METRICS_DB_PATH=data.db\nMETRICS_LOG_LEVEL=error\n")
    code, lines, _ = run(tmp_path, "--settings", "--env-file", "etc/metrics.env", METRICS_LOG_LEVEL="debug", METRICS_LOG_FILE="my.log")
    assert code == 0
    assert "METRICS_DB_PATH=%s" % (folder / "data.db") in lines
    assert "METRICS_LOG_FILE=%s" % (tmp_path / "my.log") in lines
    assert "METRICS_LOG_LEVEL=error" in lines


def test_settings_are_all_listed_even_when_some_are_bad(tmp_path):
    code, lines, errors = run(tmp_path, "--settings", METRICS_PORT="x", METRICS_PID_FILE="/run/x.pid")
    assert code == 78 and len(errors) == 2
    assert [line.partition("=")[0] for line in lines] == list(metrics_service.VARIABLES)
    assert "METRICS_PID_FILE=/run/x.pid" in lines and "METRICS_PORT=8321" in lines and "METRICS_DB_PATH=" in lines


def test_an_env_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    code, _, errors = run(tmp_path, "--check", "--env-file", "nowhere.env")
    assert code == 78 and len(errors) == 1
    assert errors[0].startswith("error: the env file cannot be used: ") and "nowhere.env" in errors[0]


def test_check_says_ok_and_leaves_no_trace(tmp_path, database):
    host = tmp_path / "host"
    host.mkdir()
    copy_product(host)
    before = sorted(tmp_path.glob("**/*"))
    env = {"METRICS_DB_PATH": str(database), "METRICS_PORT": "0", "METRICS_LOG_FILE": "new.log"}
    done = subprocess.run([sys.executable, str(host / "metrics_service.py"), "--check"], env=env, cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert (done.returncode, done.stdout) == (0, "ok: %s, http://127.0.0.1:0\n" % database)
    assert sorted(tmp_path.glob("**/*")) == before


def test_a_database_that_does_not_exist_is_refused_and_not_created(tmp_path):
    code, _, errors = check(tmp_path, METRICS_DB_PATH="typo.db")
    assert code == 78
    assert errors == ["error: database %s: No such file or directory; set METRICS_DB_PATH to the shipments database, or make one: "
                      "python3 seed.py FILE" % (tmp_path / "typo.db")]
    assert not (tmp_path / "typo.db").exists()


def test_a_folder_and_an_empty_file_are_no_database(tmp_path):
    (tmp_path / "empty.db").touch()
    for name, words in ((".", "it is a folder or a device, not a file"), ("empty.db", "the file is empty (0 bytes)")):
        code, _, errors = check(tmp_path, METRICS_DB_PATH=name)
        assert code == 78 and words in errors[0], errors


def test_schema_findings_are_listed_worst_first(tmp_path):
    path = make_database(tmp_path / "a.db")
    connection = metrics_service.sqlite3.connect(str(path))
    connection.executescript("DROP TABLE rollup_hour; DROP INDEX shipments_due; CREATE TABLE x (y)")
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(path))
    assert code == 78
    assert [line.split(" ", 3)[0] for line in errors] == ["error:", "warning:", "note:"]
    assert errors[0] == "error: database {0}: table rollup_hour is missing; python3 migrate.py {0} status tells more".format(path)


def test_a_newer_schema_is_refused_at_the_start(tmp_path, database):
    metrics_service.sqlite3.connect(str(database)).execute("PRAGMA user_version = 9")
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database))
    assert (code, errors) == (78, [
        "error: database {0}: schema version 9 is newer than the {1} of this release; install the release that made it, or go back "
        "to a backup: python3 migrate.py {0} restore".format(database, schema_check.wanted_schema().version)])


def test_an_older_schema_is_refused_in_one_line_with_the_command_that_brings_it_up_to_date(tmp_path, database):
    wanted = schema_check.wanted_schema().version
    metrics_service.sqlite3.connect(str(database)).executescript(
        "PRAGMA user_version = %d; DROP TABLE rollup_due; DROP TABLE rollup_hour" % (wanted - 1))
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database))
    assert (code, errors) == (78, [
        "error: database {0}: schema version {1} is older than the {2} of this release; to bring it to this release: "
        "python3 migrate.py {0} plan, then apply".format(database, wanted - 1, wanted)])


def test_an_unwritable_log_is_a_warning_and_an_unusable_pid_file_an_error(tmp_path, database):
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_LOG_FILE="no/where.log")
    assert code == 0 and errors[0].startswith("warning: METRICS_LOG_FILE ")
    (tmp_path / "link.pid").symlink_to("elsewhere")
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_PID_FILE="link.pid")
    assert code == 78 and "is a symbolic link, which is refused" in errors[0]


@pytest.mark.parametrize("one, other", [("METRICS_DB_PATH", "METRICS_LOG_FILE"), ("METRICS_DB_PATH", "METRICS_PID_FILE"),
                                        ("METRICS_LOG_FILE", "METRICS_PID_FILE"), ("--env-file", "METRICS_PID_FILE")])
def test_one_file_for_two_purposes_is_refused_before_it_is_touched(tmp_path, database, one, other):
    (tmp_path / "a.env").write_text("METRICS_LOG_LEVEL=info\n")
    (tmp_path / "a.log").touch()
    shared = {"METRICS_DB_PATH": database, "METRICS_LOG_FILE": tmp_path / "a.log", "--env-file": tmp_path / "a.env"}[one]
    (tmp_path / "link").symlink_to(shared)
    env = {"METRICS_DB_PATH": str(database), "METRICS_PID_FILE": "a.pid", "METRICS_PORT": "0", one: str(shared), other: "link"}
    env.pop("--env-file", None)
    before = shared.read_bytes()
    code, _, errors = run(tmp_path, "--env-file", "a.env", **env)
    assert code == 78 and shared.read_bytes() == before
    assert any("error: %s and %s are the same file" % (one, other) in line for line in errors)


def test_a_log_that_is_the_database_is_not_even_opened(tmp_path, database):
    before = database.read_bytes()
    code, lines, _ = run(tmp_path, METRICS_DB_PATH=str(database), METRICS_LOG_FILE=str(database), METRICS_PID_FILE="a.pid")
    assert code == 78 and "METRICS_DB_PATH and METRICS_LOG_FILE are the same file" in lines[0]
    assert database.read_bytes() == before


def test_wrong_arguments_are_exit_1(tmp_path):
    code, _, errors = run(tmp_path, "--chekc")
    assert code == 1 and errors[-1] == "metrics_service.py: unrecognized arguments: --chekc; see --help"


def test_a_port_taken_by_a_stranger_is_named_and_refused(tmp_path, database):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen(1)
        port = stranger.getsockname()[1]
        code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_PORT=str(port))
    assert code == 78
    assert errors[0].startswith("error: cannot listen on 127.0.0.1 port %d: Address already in use, it is taken by pid %d (" % (
        port, os.getpid()))


def test_a_port_held_by_the_running_instance_is_good(database, launch):
    service = launch(database)
    env = dict(service.env, METRICS_PORT=str(service.port))
    assert run(service.folder, "--check", **env)[0] == 0


def test_an_open_address_without_a_password_is_a_warning(tmp_path, database):
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_HOST="0.0.0.0")
    assert code == 0 and errors[0].startswith("warning: METRICS_HOST 0.0.0.0 is not loopback")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "no.such.host.invalid"])
def test_a_host_that_is_none_is_named(tmp_path, database, host):
    code, _, errors = check(tmp_path, METRICS_DB_PATH=str(database), METRICS_HOST=host)
    assert code == 78 and errors[0].startswith("error: cannot listen on %s port 0: " % host)


@pytest.mark.parametrize("mode", ["--check", "--settings", "--demo"])
def test_a_bad_line_of_the_env_file_is_named_by_every_command(tmp_path, mode):
    (tmp_path / "a.env").write_text("METRICS_PORT=0\nexport X=1\n")
    code, _, errors = run(tmp_path, mode, "--env-file", "a.env")
    assert code == 78 and "a.env:2: " in errors[0] and len(errors) == 1


def test_a_path_is_bytes_whatever_the_locale(tmp_path, database):
    odd = os.path.join(os.fsencode(str(tmp_path)), "é".encode() + b".db")
    os.rename(os.fsencode(str(database)), odd)
    (tmp_path / "a.env").write_bytes(b"METRICS_DB_PATH=" + odd + b"\nMETRICS_PORT=0\nMETRICS_PID_FILE=a.pid\n")
    for locale in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}):
        for mode in ("--check", "--settings"):
            done = subprocess.run(COMMAND + [mode, "--env-file", "a.env"], cwd=str(tmp_path), env=locale, stdout=subprocess.PIPE)
            assert done.returncode == 0 and odd in done.stdout


def test_a_folder_copied_without_its_schema_says_so(tmp_path, database):
    copy_product(tmp_path)
    (tmp_path / "schema.sql").unlink()
    done = subprocess.run([sys.executable, "metrics_service.py", "--check"], cwd=str(tmp_path), stderr=subprocess.PIPE,
                          env={"METRICS_DB_PATH": str(database), "METRICS_PORT": "0"}, universal_newlines=True)
    assert done.returncode == 78 and "schema.sql is missing or damaged" in done.stderr
