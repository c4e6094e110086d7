"""Disks that fill: the alert."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FAST, ROOT, Watched, python
from stacks import Stack, stack

# The agent reads what the handler was told.
TOLD = """
import json, os, sys, time
def told(event, severity):
    end = time.monotonic() + 60
    while True:
        lines = open(HEARD).read().splitlines() if os.path.exists(HEARD) else []
        found = [json.loads(line) for line in lines]
        if any(e["rule"] == "space" and e["event"] == event and e["severity"] == severity for e in found):
            return
        assert time.monotonic() < end, lines
        time.sleep(0.05)
def use(path, part):
    with open(path, "ab") as file:
        while True:
            at = os.statvfs(os.path.dirname(path))
            if 1 - at.f_bfree / at.f_blocks >= part:
                return
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, 1 << 20)
"""


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    made = stack(getattr(request, "param", "loop"), tmp_path)
    yield made
    made.remove()


as_root = pytest.mark.skipif(not ROOT, reason="only root may mount a file system")


@as_root
@pytest.mark.parametrize("where", ["its directory", "an open file"])
def test_a_disk_that_fills_is_told_rises_to_critical_and_ends(
    watched: Watched, mounted: Stack, where: str
) -> None:
    big = mounted.mount / "big"
    code = f"HEARD = {str(watched.heard)!r}\n{TOLD}" + f"""
use({str(big)!r}, 0.5)
kept = open({str(mounted.mount / "log")!r}, "w")
use({str(big)!r}, 0.92)
told("raised", "WARNING")
use({str(big)!r}, 0.972)
told("updated", "CRITICAL")
os.unlink({str(big)!r})
told("resolved", "CRITICAL")
"""  # fmt: skip
    inside = ["--cwd", str(mounted.mount)] if where == "its directory" else ["--cwd", "/"]
    run = watched.run(FAST, *inside, command=python(code))
    assert run.status == 0, run.err
    assert watched.story("space") == [
        ("raised", "WARNING"),
        ("updated", "CRITICAL"),
        ("resolved", "CRITICAL"),
    ]
    raised, updated, resolved = watched.events("space")
    assert f"full: {mounted.mount}: " in raised["message"]
    assert "less than when this agent was first seen there; since its start it has written" in raised["message"]  # fmt: skip
    assert 0.90 <= raised["value"] < 0.97 <= updated["value"] <= 1
    assert resolved["value"] < 0.855


@as_root
@pytest.mark.parametrize("mounted", ["few-inodes"], indirect=True)
def test_a_disk_without_inodes_is_full(watched: Watched, mounted: Stack) -> None:
    code = f"HEARD = {str(watched.heard)!r}\n{TOLD}" + """
at = os.statvfs(".")
made = [f"file-{number}" for number in range(int(at.f_files * 0.98) - (at.f_files - at.f_ffree))]
for name in made: os.mknod(name)
told("raised", "CRITICAL")
for name in made: os.unlink(name)
told("resolved", "CRITICAL")
"""  # fmt: skip
    run = watched.run(FAST, "--cwd", str(mounted.mount), command=python(code))
    assert run.status == 0, run.err
    assert "inodes free" in watched.events("space")[0]["message"]


def test_what_is_used_where_it_works_is_told_to_whoever_runs_it(watched: Watched, tmp_path: Path) -> None:  # fmt: skip
    at = os.statvfs(tmp_path)
    free = at.f_bfree if ROOT else at.f_bavail
    used = 1 - free / (at.f_blocks - at.f_bfree + free)
    rule = f'[alerts.space]\nwarning = "{used * 50:.6f}%"\ncritical = "100%"\n'
    code = f"HEARD = {str(watched.heard)!r}\n{TOLD}" + 'told("raised", "WARNING")'
    run = watched.run(rule + FAST, "--cwd", str(tmp_path), command=python(code))
    assert run.status == 0, run.err
    event = watched.events("space")[0]
    assert f"full: {tmp_path}: " in event["message"]
    assert event["value"] == pytest.approx(used, abs=0.01)
