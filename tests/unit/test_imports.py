"""What stays in memory beside an agent: the standard library's cheap part and our own core."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import agentres

DEAR = [
    "asyncio",
    "click",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "json",
    "logging",
    "psutil",
    "pydantic",
    "pyroute2",
    "re",
    "rich",
    "signal",
    "typer",
    "typing",
]
OURS_OR_CGROUPSPY = {"agentres", "cgroupspy", "cgroupspy.interfaces", "cgroupspy.contenttypes"}

ENTRY = "import agentres.cli.run"
WHOLE_LINE = """
from agentres.run import options
from agentres.cli.run import run
from agentres.model.limits import Host
options.understand(*options.parse(["--cpu=1", "--memory", "50%", "--io-write=/dev/vda=1M", "--", "true"]), Host(4, 2**33))
"""
WATCHING = "import agentres.cli.run, agentres.run.supervision, agentres.run.monitor"


@cache
def loaded_by(code: str) -> frozenset[str]:
    """The modules that are there after ``code`` and were not there at the interpreter's start."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return frozenset(done.stdout.split())


@pytest.mark.parametrize(
    "code", [ENTRY, WHOLE_LINE, WATCHING], ids=["import", "a whole line", "watching"]
)
@pytest.mark.parametrize("module", DEAR)
def test_a_run_does_not_load(module: str, code: str) -> None:
    assert module not in loaded_by(code)


@pytest.mark.parametrize(
    "code", [ENTRY, WHOLE_LINE, WATCHING], ids=["import", "a whole line", "watching"]
)
def test_a_run_loads_the_standard_library_its_own_core_and_two_modules_of_cgroupspy(
    code: str,
) -> None:
    loaded = loaded_by(code)
    assert "agentres.kernel.cgroup" in loaded
    others = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if not name.startswith("agentres.")} <= OURS_OR_CGROUPSPY


OF_OTHER_VERBS = [
    "agentres.cli.app", "agentres.cli.doctor", "agentres.readers.doctor", "agentres.readers.fleet",
    "agentres.readers.probe", "agentres.readers.plot", "agentres.report", "agentres.tui",
    "agentres.readers.web", "aiohttp", "matplotlib", "plotille", "prometheus_client", "textual",
    "textual_serve",
]  # fmt: skip


@pytest.mark.parametrize("module", [*OF_OTHER_VERBS, "agentres.run.progress"])
def test_a_run_does_not_load_the_other_verbs(module: str) -> None:
    assert module not in loaded_by(ENTRY)
    assert module not in loaded_by(WATCHING)


@pytest.mark.parametrize(
    "module", ["asyncio", "click", "psutil", "pydantic", "rich", "typer", *OF_OTHER_VERBS]
)
def test_the_daemon_and_the_companion_load_no_packages(module: str) -> None:
    assert module not in loaded_by("import agentres.daemon.server, agentres.daemon.keeper")
    assert module not in loaded_by("import agentres.companion.main")


def test_importing_the_package_loads_nothing_else() -> None:
    others = {
        name
        for name in loaded_by("import agentres")
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert others == {"agentres"}


PACKAGES = ("daemon", "kernel", "model", "policy", "run", "store", "watch")
"""What a keeper is made of."""

NOT_A_KEEPERS = {"agentres.companion.main"}
"""Forked for callables of a library's user alone."""


def imported_late() -> set[str]:
    """The modules that functions of a keeper's packages import when they are called."""
    found = set()
    package = Path(agentres.__file__).parent
    for file in (file for name in PACKAGES for file in (package / name).glob("*.py")):
        functions = (
            each
            for each in ast.walk(ast.parse(file.read_text()))
            if isinstance(each, ast.FunctionDef)
        )
        for each in (node for function in functions for node in ast.walk(function)):
            if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("agentres"):
                for name in each.names:
                    module = f"{each.module}.{name.name}"
                    is_module = (package.parent / f"{module.replace('.', '/')}.py").exists()
                    found.add(module if is_module else str(each.module))
    return found


def test_a_keeper_has_loaded_all_that_it_may_need() -> None:
    """Its files may be replaced under it by an upgrade."""
    shared = "from agentres.daemon import server; server.load_shared()"
    reading = {"agentres.store.reading"}  # by who asks for it by name
    assert imported_late() - loaded_by(shared) == NOT_A_KEEPERS | reading
