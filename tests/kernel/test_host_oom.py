"""The whole host is short of memory: the kernel, or systemd-oomd, takes the agent; its supervisor lives, and tells."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Watched, python

pytestmark = [
    pytest.mark.skipif(not ROOT, reason="only root may fill a host's memory, or have oomd look"),
    pytest.mark.beside_one,
]

MIB = 1 << 20
LEFT = 160 * MIB
OOMD = Path("/run/systemd/oomd.conf.d/agentres-test.conf")

GROWS = f"""
import mmap, os
print(os.getpid(), flush=True)
held = []
while True:
    held.append(mmap.mmap(-1, {4 * MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    held[-1].madvise(23)  # MADV_POPULATE_WRITE: all of it at once
"""


def _bind(cpus: set[int]) -> None:
    for process in psutil.process_iter():
        with suppress(
            ProcessLookupError, OSError
        ):  # it has gone; or is the kernel's, for one processor
            os.sched_setaffinity(process.pid, cpus)


@pytest.fixture
def one_processor() -> Iterator[None]:
    """User Mode Linux takes a page away from a process that runs on another processor, which has it until it enters the kernel."""
    everywhere = os.sched_getaffinity(0)
    _bind({min(everywhere)})
    yield
    _bind(everywhere)


@pytest.fixture
def crowded(tmp_path: Path, one_processor: None) -> Iterator[None]:
    """Files in memory, which nobody can be killed for, leave hardly any of it."""
    place = tmp_path / "files"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100%", "none", place], check=True)
    try:
        with open(place / "file", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, psutil.virtual_memory().available - LEFT)
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def without_kernel_log() -> Iterator[None]:
    """Nobody may read it, as an ordinary user may not."""
    subprocess.run(["mount", "--bind", "/dev/null", "/dev/kmsg"], check=True)
    yield
    subprocess.run(["umount", "/dev/kmsg"], check=True)


def test_where_the_host_runs_out_that_is_told_without_a_kernel_log(
    watched: Watched, crowded: None, without_kernel_log: None
) -> None:
    most = psutil.virtual_memory().total // 2
    run = watched.run("", "--memory", str(most), command=python(GROWS))
    assert run.status == 137, run.err
    assert run.summary is not None
    assert (run.summary["oom_kills"], run.summary["oom_limits"]) == ([], [])
    assert "not by this agent's limit: the host ran out of memory" in run.err


def test_where_the_host_runs_out_the_agent_goes_and_its_supervisor_tells(
    watched: Watched, crowded: None
) -> None:
    most = psutil.virtual_memory().total // 2  # a limit that is not met
    run = watched.run("", "--memory", str(most), command=python(GROWS))
    assert run.status == 137, run.err
    assert run.summary is not None
    assert run.summary["signal"] == 9
    assert run.usage["memory_oom_kill"] >= 1
    assert int(run.out) in [kill["pid"] for kill in run.summary["oom_kills"]]
    assert {kill["limit_cgroup"] for kill in run.summary["oom_kills"]} == {""}
    assert run.summary["oom_limits"] == []
    assert "the host" in run.err, run.err
    assert watched.story("oom_kill")[0] == ("raised", "EMERGENCY")


@pytest.fixture
def oomd() -> Iterator[None]:
    """systemd-oomd, which looks after all agents, and soon has enough."""
    if not Path("/usr/lib/systemd/systemd-oomd").exists():
        pytest.skip("there is no systemd-oomd here: apt-get install systemd-oomd")
    OOMD.parent.mkdir(parents=True, exist_ok=True)
    OOMD.write_text("[OOM]\nDefaultMemoryPressureDurationSec=2s\n")
    subprocess.run(["systemctl", "restart", "systemd-oomd"], check=True)
    properties = ["ManagedOOMMemoryPressure=kill", "ManagedOOMMemoryPressureLimit=1%"]
    subprocess.run(["systemctl", "set-property", "--runtime", "agentres.slice", *properties], check=True)  # fmt: skip
    yield
    subprocess.run(["systemctl", "set-property", "--runtime", "agentres.slice", "ManagedOOMMemoryPressure=auto"], check=True)  # fmt: skip
    subprocess.run(["systemctl", "stop", "systemd-oomd.socket", "systemd-oomd"], check=True)
    OOMD.unlink()


THRASHES = f"""
import os
with open("file", "wb") as file:
    for _ in range(160): file.write(bytes({MIB}))
    os.fsync(file.fileno())
    while True:
        with open("file", "rb", buffering=0) as again:
            while again.read({MIB}): pass
"""
"""Reads what does not fit into its memory, over and over."""


def test_systemd_oomd_takes_the_agent_and_its_supervisor_tells(
    watched: Watched, oomd: None
) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as on_disk:
        options = ("--memory", "48M", "--timeout", "60", "--cwd", on_disk)
        run = watched.run("", *options, command=python(THRASHES))
    assert run.status == 137, run.err
    assert run.summary is not None
    assert (
        run.summary["stopped"] == "systemd-oomd has killed 1 of its processes, as memory was short"
    )
    assert f"  {run.summary['stopped']}\n" in run.err
