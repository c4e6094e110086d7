"""Memory: killed at memory.max and not before; explained; page cache is not use."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from conftest import ROOT, RunAgent, alike, by_daemon, python

MIB = 1 << 20

GROW = """
import mmap, sys
held = []
for step in range(int(sys.argv[1])):
    block = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MADV_POPULATE_WRITE: where each page fault is dear (User Mode Linux) a fifth of the time.
    for at in range(0, 1 << 20, 1 << 16): block.madvise(23, at, 1 << 16)
    held.append(block)
    print(step + 1, flush=True)
"""

# The interpreter itself, its page tables and kernel memory: 8 MiB measured, doubled.
OWN_MIB = 16


@pytest.mark.parametrize("limit", alike(64, 160, always=1))
def test_killed_at_the_limit_and_not_before(agentres_run: RunAgent, limit: int) -> None:
    fits = agentres_run("--memory", f"{limit}M", command=python(GROW, limit - OWN_MIB))
    assert fits.status == 0, fits.err
    assert fits.usage["memory_oom_kill"] == 0

    grown = agentres_run("--memory", f"{limit}M", command=python(GROW, 2 * limit))
    assert grown.status == 128 + signal.SIGKILL
    assert limit - OWN_MIB <= int(grown.out.split()[-1]) < limit
    # The kernel charges in batches of 64 pages a CPU, so the peak stays that much below at most.
    assert (limit - 1) * MIB <= grown.usage["memory_peak"] <= limit * MIB
    assert grown.usage["memory_oom_kill"] == 1


def test_a_kill_is_explained(agentres_run: RunAgent) -> None:
    # What the kernel has counted may be two seconds old, at the time of the kill as well.
    slow = f"import time\n{GROW}    if step == 55: time.sleep(3)\n"
    run = agentres_run("--memory", "64M", "--name", "hog", command=python(slow, 500))
    (line,) = [line for line in run.err.splitlines() if "memory limit" in line]
    assert "1 process was killed" in line
    assert "limit 64.0 MiB" in line
    assert "peak" in line
    assert "--memory" in line
    assert run.summary is not None
    (whose,) = run.summary["oom_limits"]
    assert whose.endswith("hog.scope/agent")
    if ROOT or by_daemon():
        assert re.search(r"it held \d\d\.\d MiB anonymous", line), line
        assert run.summary["footprint"]["anon"] >= 48 * MIB
        assert run.summary["footprint"]["biggest"][0]["name"].startswith("python")
        (kill,) = run.summary["oom_kills"]
        assert kill["task"].startswith("python")
        assert f"pid {kill['pid']}" in line
        assert kill["limit_cgroup"].endswith("hog.scope/agent")
    else:  # the kernel log is root's: what it held is known where it was looked at in time
        assert re.search(r"it held \d\d\.\d MiB anonymous", line) or "it held" not in line, line
        assert "very likely the main process" in line


def test_only_the_hog_is_killed_and_the_agent_goes_on(agentres_run: RunAgent) -> None:
    agent = """
import subprocess, sys
tool = subprocess.run([sys.executable, "-S", "-c", sys.argv[1], "500"], stdout=subprocess.DEVNULL)
print("the tool call ended with", tool.returncode)
"""
    run = agentres_run("--memory", "64M", command=python(agent, GROW))
    assert run.status == 0
    assert "the tool call ended with -9" in run.out
    assert run.usage["memory_oom_kill"] == 1
    assert "1 process was killed" in run.err


def test_page_cache_does_not_kill(agentres_run: RunAgent, tmp_path: Path) -> None:
    write = """
import sys
with open(sys.argv[1], "wb") as file:
    for _ in range(96):
        file.write(b"x" * (1 << 20))
"""
    target = Path("/var/tmp", f"agentres-cache-{tmp_path.name}")
    try:
        run = agentres_run("--memory", "48M", "--io-write", "max", command=python(write, target))
    finally:
        target.unlink(missing_ok=True)
    assert run.status == 0, run.err
    assert run.usage["memory_oom_kill"] == 0


def test_the_limits_stand_where_the_agent_can_read_them(agentres_run: RunAgent) -> None:
    own = """
own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().split("0::")[1].strip()
import os
for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"):
    print(name, open(os.path.dirname(own) + "/" + name).read().strip())
"""
    plain = agentres_run("--memory", "100M", "--cpu", "0.5", command=python(own), check=True)
    assert dict(line.split(" ", 1) for line in plain.out.splitlines()) == {
        "memory.max": str(100 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "0",
        "pids.max": "512",
        "cpu.max": "50000 100000",
    }
    swap = agentres_run("--swap", "30M", command=python(own), check=True)
    assert f"memory.swap.max {30 * MIB}" in swap.out
