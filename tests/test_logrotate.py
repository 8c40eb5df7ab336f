"""Log files as other tools meet them: logrotate rotates them under a busy service, collectors read them."""

import concurrent.futures
import json
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, wait_for

LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/usr/bin")
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
FILES = ROOT / "deploy" / "logrotate"
PATH = "/var/log/metrics/metrics.log"

needs_logrotate = pytest.mark.skipif(not LOGROTATE, reason="needs logrotate")


def snippets(section, language):
    part = re.search(r"^## %s\n(.*?)(?=^## |\Z)" % section, PAGE, re.DOTALL | re.MULTILINE).group(1)
    return re.findall(r"^```%s\n(.*?)^```" % language, part, re.DOTALL | re.MULTILINE)


@pytest.fixture
def rotate(tmp_path):
    """rotate(name): runs the file of deploy/logrotate for our log, as our own user, now."""
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o750)

    def run(name):
        text = (FILES / name).read_text()
        assert PATH in text and "su metrics metrics" in text
        text = re.sub(r" +su .*\n| +(delay)?compress\n", "", text.replace(PATH, str(folder / "metrics.log"))).replace("rotate 8", "rotate 99")
        (tmp_path / "conf").write_text(text)
        (tmp_path / "conf").chmod(0o644)
        done = subprocess.run([LOGROTATE, "--force", "--state", str(tmp_path / "state"), str(tmp_path / "conf")],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        assert (done.returncode, done.stdout) == (0, "")
    run.log = folder / "metrics.log"
    return run


def hammer(service, during):
    """The ids of the requests that were answered, some before, most while during() was called five times, some after."""
    ids = []

    def ask():
        ids.append("r-%d" % len(ids))
        service.request("/livez", headers={"X-Request-ID": ids[-1]})
    for _ in range(5):
        for number in range(40):
            ask()
            if number == 20:
                rotation = during()
        rotation()
    ask()       # by which the file that was renamed last has a successor
    return ids


def in_background(call, *given):
    """Starts the call in a thread; a function that waits for its end, and raises what it raised."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    return pool.submit(call, *given).result


def logged(log):
    """All lines of a log and of its predecessors, oldest file first."""
    files = sorted(log.parent.iterdir(), key=lambda path: -int(path.suffix[1:]) if path.suffix != ".log" else 0)
    return [line for path in files for line in path.read_bytes().decode().splitlines()], files


@needs_logrotate
def test_by_renaming_no_line_is_lost_torn_or_out_of_order(launch, database, rotate):
    service = launch(database, log_file=rotate.log, access_log="on")
    ids = hammer(service, lambda: in_background(rotate, "metrics_service"))
    lines, files = logged(rotate.log)
    assert [match.group(1) for match in (re.search(r"request_id=(r-\S+)$", line) for line in lines) if match] == ids
    assert len(files) == 6 and {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert not [path for path in files if "backup" in path.name]


@needs_logrotate
def test_by_copying_there_is_no_hole_and_no_torn_line(launch, database, rotate):
    service = launch(database, log_file=rotate.log, access_log="on")
    ids = hammer(service, lambda: in_background(rotate, "metrics_service.copytruncate"))
    lines, files = logged(rotate.log)
    seen = [match.group(1) for match in (re.search(r"request_id=(r-\S+)$", line) for line in lines) if match]
    assert seen == [one for one in ids if one in seen] and len(seen) > len(ids) / 2     # what came in between is lost
    assert not [path for path in files if b"\0" in path.read_bytes()] and len(files) == 6


@needs_logrotate
@pytest.mark.parametrize("name", ["metrics_service", "metrics_service.copytruncate"])
def test_the_check_finds_an_error_of_before_the_rotation(launch, database, rotate, name):
    service = launch(database, log_file=rotate.log, slow_request_seconds=0)
    moved = database.with_name("moved")
    database.rename(moved)
    service.get("/metrics")
    rotate(name)

    def check():
        done = subprocess.run([sys.executable, str(ROOT / "health_check.py"), "--url", service.url, "--log-file", str(rotate.log),
                               "--format", "json"], stdout=subprocess.PIPE, universal_newlines=True)
        return {one["name"]: (one["status"], one["reason"]) for one in json.loads(done.stdout)["checks"]}["log"]
    assert check() == ("failing", "log_errors")
    moved.rename(database)
    service.get("/metrics")
    assert check() == ("warning", "recovered")


@needs_logrotate
def test_logrotate_finds_nothing_wrong_with_the_files_as_they_are(tmp_path):
    for name in ("metrics_service", "metrics_service.copytruncate"):
        text = (FILES / name).read_text().replace("su metrics metrics", "su root root")
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
        done = subprocess.run([LOGROTATE, "--debug", "--state", str(tmp_path / "state"), str(tmp_path / name)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        assert done.returncode == 0 and "error" not in done.stdout and PATH in done.stdout, done.stdout


def test_the_page_of_logrotate_installs_the_file_that_there_is():
    (commands,) = snippets("logrotate", "bash")
    assert all((ROOT / name).is_file() for name in re.findall(r"deploy/\S+", commands))


def test_the_snippets_for_collectors_are_of_their_languages():
    (vector,), (filebeat,) = snippets("Log collectors", "toml"), snippets("Log collectors", "yaml")
    parsed = pytest.importorskip("tomllib").loads(vector)
    assert parsed["sources"]["metrics_service"]["include"] == [PATH]
    assert parsed["transforms"]["metrics_service_events"]["inputs"] == ["metrics_service"]
    assert PATH in filebeat and "\t" not in filebeat


def test_rsyslog_reads_the_longest_line_whole(launch, database, tmp_path):
    rsyslogd = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin")
    if not rsyslogd:
        pytest.skip("needs rsyslogd")
    log, taken, pid = tmp_path / "metrics.log", tmp_path / "taken", tmp_path / "pid"
    (snippet,) = snippets("Log collectors", "rsyslog")
    (tmp_path / "conf").write_text('%s\ntemplate(name="raw" type="string" string="%%msg%%\\n")\n'
                                   'action(type="omfile" file="%s" template="raw")\n' % (snippet.replace(PATH, str(log)), taken))
    service = launch(database, log_file=log, log_format="json", access_log="on")
    service.request("/livez?%s" % ("%20" * 2000), headers={"User-Agent": "x" * 8000, "X-Request-ID": "long"})
    collector = subprocess.Popen([rsyslogd, "-n", "-f", str(tmp_path / "conf"), "-i", str(pid)], cwd=str(tmp_path))
    try:
        lines = wait_for(lambda: [line for line in taken.read_text().splitlines() if '"long"' in line] if taken.exists() else None,
                         "rsyslog")
    finally:
        collector.terminate()
        collector.wait()
    assert len(lines[0]) > 8192 and json.loads(lines[0])["http.request.id"] == "long"
