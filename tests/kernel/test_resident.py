"""What stays in memory beside an agent: the standard library and the core, in little memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

Start = Callable[..., Popen[str]]

PSS_MAX_KB = 10_240
"""The bound on the resident supervisor, interpreter included."""


def supervisor_of(agent: Popen[str]) -> int:
    """The supervisor is what we started: agentres execs nothing on its way."""
    return agent.pid


def test_memory_of_the_resident_process(start: Start) -> None:
    agent = start("--name", "resident", command=["sh", "-c", "echo up; exec cat"])
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    rollup = Path(f"/proc/{supervisor_of(agent)}/smaps_rollup").read_text()
    pss = int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1])  # type: ignore[index]
    print(f"PSS of the resident supervisor: {pss} kB on Python {sys.version.split()[0]}")
    assert pss <= PSS_MAX_KB


def test_shared_objects_of_the_resident_process(start: Start) -> None:
    """No compiled module of a dependency is mapped (pydantic-core, psutil's)."""
    agent = start("--name", "resident", command=["sh", "-c", "echo up; exec cat"])
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    maps = Path(f"/proc/{supervisor_of(agent)}/maps").read_text()
    assert [line for line in maps.splitlines() if "site-packages" in line] == []
