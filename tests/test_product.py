"""Promises about the files themselves: standard library alone, Python 3.6 to the newest, nothing that shadows it."""

import ast
import subprocess
import sys

import pytest

import eventlog
import health_check
import metrics_service
import migrate
from conftest import FILES, ROOT

MODULES = sorted(ROOT.glob("*.py"))
DRILLS = sorted((ROOT / "drills").glob("*.py"))
OWN = {path.stem for path in MODULES} | {"drills"}
TOO_NEW = {"dataclasses", "contextvars", "importlib.resources", "zoneinfo", "graphlib", "tomllib"}  # not in Python 3.6


def imported(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_files_of_the_product_are_there():
    assert {"metrics_service.py", "health_check.py", "restart_service.sh", "schema.sql", "seed.py",
            "dashboard.html"} <= set(FILES)


@pytest.mark.parametrize("path", MODULES + DRILLS, ids=lambda path: path.name)
def test_only_the_standard_library_of_3_6_is_imported(path):
    names = {name for name in imported(path) if name.split(".")[0] not in OWN}
    assert not {name for name in names if name.split(".")[0] not in sys.stdlib_module_names or name in TOO_NEW}


@pytest.mark.parametrize("path", MODULES + DRILLS, ids=lambda path: path.name)
def test_no_file_bears_the_name_of_a_standard_module(path):
    assert path.stem not in sys.stdlib_module_names


def test_nothing_imports_the_service_and_the_check_imports_no_sibling_before_it_is_asked_for_trends():
    graph = {path.stem: set(imported(path)) & OWN for path in MODULES}
    assert not any("metrics_service" in names for names in graph.values())
    alone = ("supervision", "trends", "exposition", "credentials", "messages", "negotiation", "notify", "pages", "rollups")
    assert {name: graph[name] for name in alone} == dict.fromkeys(alone, set())
    assert (graph["webserver"], graph["tls"]) == ({"messages"}, {"messages", "webserver"})
    assert (graph["migration_lock"], graph["dbfile"]) == ({"supervision"}, {"migration_lock"})
    assert graph["openmetrics"] == graph["latency"] == {"exposition"}
    assert graph["seed"] == {"csv_mapping", "dbfile", "rollups"}
    assert graph["health_check"] == {"trends"}
    loading = [node.name for node in ast.parse((ROOT / "health_check.py").read_text()).body if "trends" in {
        alias.name for inner in ast.walk(node) if isinstance(inner, ast.Import) for alias in inner.names}]
    assert loading == ["load_trends"]
    assert [name for name in graph if "drills" in graph[name]] == ["drill"]


def test_the_drills_use_of_the_product_what_proves_processes_and_compares_schemas_alone():
    assert {name for path in DRILLS for name in imported(path) if name in OWN} - {"drills"} == {"supervision", "schema_check"}


@pytest.mark.parametrize("path", MODULES + DRILLS, ids=lambda path: path.name)
def test_a_function_uses_only_what_stands_above_it(path):
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    place = {node.name: number for number, node in enumerate(top)}
    for number, node in enumerate(top):
        inside = list(ast.walk(node))
        local = {item.arg for item in inside if isinstance(item, ast.arg)}
        used = {item.id for item in inside if isinstance(item, ast.Name)} - local
        assert not [name for name in used if place.get(name, number) > number], node.name


def test_the_check_calls_itself_what_the_service_excuses():
    assert health_check.AGENT == eventlog.CHECK_AGENT


def test_a_step_is_recorded_with_the_version_of_this_release():
    assert migrate.TOOL == "migrate.py " + metrics_service.VERSION


def test_the_product_runs_without_site_packages():
    for name in [path.stem for path in MODULES] + ["drills." + path.stem for path in DRILLS]:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, %r); __import__(%r)" % (
            str(ROOT), name)], stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
