"""What stays in memory beside an agent: the standard library and the core, in little memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from conftest import AGENTRES, not_by_daemon, wait_until

Start = Callable[..., Popen[str]]

PSS_MAX_KB = 10_240
"""The bound on the resident supervisor, interpreter included."""


def supervisor_of(agent: Popen[str]) -> int:
    """The supervisor is what we started: agentres execs nothing on its way."""
    return agent.pid


@pytest.fixture
def agent(start: Start, tmp_path: Path) -> Popen[str]:
    """One that has been watched for some samples: all that is ever imported is."""
    config = tmp_path / "agentres.toml"
    config.write_text('[sampling]\ninterval = "1s"\n')
    environment = {**os.environ, "AGENTRES_STATE_DIR": str(tmp_path / "state")}
    started = start(
        *("--name", "resident", "--config", str(config)),
        command=["sh", "-c", "echo up; exec cat"], env=environment,
    )  # fmt: skip

    def sampled() -> bool:
        line = [*AGENTRES, "history", "resident", "--json"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        return not done.returncode and len(json.loads(done.stdout)["samples"]) >= 3

    wait_until(sampled, "three samples")
    return started


def test_memory_of_the_resident_process(agent: Popen[str]) -> None:
    rollup = Path(f"/proc/{supervisor_of(agent)}/smaps_rollup").read_text()
    pss = int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1])  # type: ignore[index]
    print(f"PSS of the resident supervisor: {pss} kB on Python {sys.version.split()[0]}")
    assert pss <= PSS_MAX_KB


@not_by_daemon("it is forked, not executed")
@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"),
    reason="this kernel has no huge pages: see scripts/test --stock",
)
def test_it_takes_no_huge_pages_and_the_agent_may(agent: Popen[str]) -> None:
    """One of 2 MiB for what is half as much: what it took differed by a megabyte from run to run."""
    supervisor = supervisor_of(agent)
    (cat,) = (each.pid for each in psutil.Process(supervisor).children() if each.name() == "cat")
    assert "THP_enabled:\t0" in Path(f"/proc/{supervisor}/status").read_text()
    assert "THP_enabled:\t1" in Path(f"/proc/{cat}/status").read_text()


def test_shared_objects_of_the_resident_process(agent: Popen[str]) -> None:
    """No compiled module of a dependency is mapped (pydantic-core, psutil's)."""
    maps = Path(f"/proc/{supervisor_of(agent)}/maps").read_text()
    assert [line for line in maps.splitlines() if "site-packages" in line] == []
