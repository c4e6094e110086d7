"""A memory limit above the agent: whose it is that kills or holds it up is told, also to users who have no kernel log."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    FAST,
    ROOT,
    Watched,
    agents_cgroup,
    by_daemon,
    home_of,
    not_by_daemon,
    python,
    wait_until,
)

from agentres.kernel import process
from agentres.model.units import format_size

LINUX = tuple(map(int, os.uname().release.split(".")[:2]))
MOUNT = Path("/sys/fs/cgroup")
MIB = 1 << 20

GROWS = f"""
import mmap
input()
piece = mmap.mmap(-1, {200 * MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
try: piece.madvise(15)  # MADV_NOHUGEPAGE: a limit above that throttles does so for each call, however much it takes
except OSError: pass  # this kernel has none
# MADV_POPULATE_WRITE, sixteen pages a call: each page fault is dear in User Mode Linux.
for at in range(0, {200 * MIB}, 1 << 16): piece.madvise(23, at, 1 << 16)
"""
"""Takes 200 MiB once it is told to."""

FORKS = """
import os, sys, time
try: os.fork()
except BlockingIOError: pass
while not os.path.exists(sys.argv[1]): time.sleep(0.05)
"""
"""Is refused a process, and ends when a handler has been told."""

ROOM = 24 * MIB
"""What a limit above leaves."""

Limit = Callable[..., int]


def _write(file: Path, text: str) -> None:
    sudo = [] if ROOT else ["sudo", "-n"]
    subprocess.run([*sudo, "tee", file], input=text, text=True, check=True, capture_output=True)


@pytest.fixture
def limit() -> Iterator[Limit]:
    """Somebody who limits a cgroup to so much more than it has, and lifts that at the end; returns the limit (bytes)."""
    before: dict[Path, str] = {}

    def write(cgroup: Path, name: str, room: int = ROOM) -> int:
        file = cgroup / name
        before[file] = file.read_text()
        most = int((cgroup / "memory.current").read_text()) + room
        _write(file, str(most))
        return int(file.read_text())

    yield write
    for file, text in before.items():
        with suppress(subprocess.CalledProcessError):  # the cgroup has gone
            _write(file, text)


def _says(cgroup: Path, line: str) -> bool:
    return line in (cgroup / "cgroup.events").read_text()


class Below:
    """An agent below cgroups that a test limits; it waits for a line on its stdin."""

    def __init__(self, watched: Watched, summary: Path) -> None:
        self._watched, self._summary = watched, summary
        self.process: subprocess.Popen[str]

    def begin(self, *before: str) -> None:
        """Start it and wait until it is watched; ``before`` is what executes agentres."""
        options = [*self._watched.configure(FAST), "--name", "below", "--memory", "400M"]
        line = [*AGENTRES, "run", *options, "--summary", str(self._summary), "--", *python(GROWS)]
        self.process = subprocess.Popen(
            [*before, *line], text=True, env=self._watched.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, home: Path) -> None:
        self._home = home
        high = home / "agent/memory.high"
        wait_until(lambda: high.exists() and high.read_text() != "max\n", "it is watched")

    @property
    def agent(self) -> Path:
        """Its cgroup."""
        return self._home / "agent"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def go_alone(self) -> None:
        """Let it be killed while all else is frozen.

        While the victim frees its memory, Linux 7.3 was seen to kill whoever charged the same limit next: its supervisor.
        """
        others = [
            each for name in ("supervisor", "handlers") if (each := self._home / name).exists()
        ]
        try:
            for each in others:
                _write(each / "cgroup.freeze", "1")
                wait_until(partial(_says, each, "frozen 1"), "they are frozen")
            self.go()
            wait_until(partial(_says, self.agent, "populated 0"), "it was killed")
            wait_until(
                lambda: int((self.agent / "memory.current").read_text()) < MIB, "its memory is free"
            )
        finally:
            for each in others:
                _write(each / "cgroup.freeze", "0")

    def state(self) -> str:
        """What its cgroups say, for a test that waits in vain."""
        files = ("memory.current", "memory.high", "memory.events", "memory.pressure", "memory.stat")
        places = (self._home.parent.parent, self.agent, self._home / "supervisor")
        return "\n".join(f"{place / name}\n{(place / name).read_text()}" for place in places for name in files)  # fmt: skip

    def end(self) -> tuple[int, str, dict[str, Any]]:
        """Wait for its end; its status, what was told, the summary."""
        _, told = self.process.communicate(timeout=DEADLINE)
        summary = self._summary.read_text()
        assert summary, told
        return self.process.returncode, told, json.loads(summary)

    def close(self) -> None:
        if hasattr(self, "process"):
            self.process.terminate()
            self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def below(watched: Watched, tmp_path: Path, limit: Limit) -> Iterator[Below]:
    made = Below(watched, tmp_path / "summary.json")
    yield made
    made.close()


IN_A_SCOPE = ["systemd-run", *([] if ROOT else ["--user"]), "--quiet", "--scope", "-p", "Delegate=yes"]  # fmt: skip


def parent_of(below: Below) -> Path:
    """Start the agent inside a scope that is delegated to it; the scope's cgroup."""
    below.begin(*IN_A_SCOPE)
    pid = below.process.pid  # systemd-run executes it in the same process
    home = "/agentres.slice/agentres-below"
    wait_until(lambda: home in process.cgroup(pid), "it is in its home")
    parent = Path(f"{MOUNT}{process.cgroup(pid).partition(home)[0]}")
    below.wait_for(Path(f"{parent}{home}"))
    return parent


def check_kill(below: Below, watched: Watched, limit: Path, words: str) -> None:
    """A process was killed at the limit of that cgroup, and this is told wherever kills are."""
    status, told, summary = below.end()
    assert status == 137, told
    assert summary["usage"]["memory_oom"] == 0  # its own was not met
    path = str(limit).removeprefix(str(MOUNT))
    assert summary["oom_limits"] == [path]
    logged = [kill["limit_cgroup"] for kill in summary["oom_kills"]]
    assert logged == ([path] if ROOT or by_daemon() else [])
    whose = f"not by this agent's limit but by that of {words}"
    assert whose in told
    (kept,) = watched.verb("alerts", "list", "--resource", "oom_kill")["alerts"]
    assert whose in kept["message"]


def test_a_kill_at_the_limit_of_the_budget(below: Below, watched: Watched, limit: Limit) -> None:
    below.begin()
    below.wait_for(home_of("below"))
    limit(agents_cgroup(), "memory.max")
    below.go_alone()
    check_kill(below, watched, agents_cgroup(), "the budget of all agents (agentres.slice)")


@not_by_daemon("agents are in its slice")
def test_a_kill_at_the_limit_of_a_parent(below: Below, watched: Watched, limit: Limit) -> None:
    parent = parent_of(below)
    limit(parent, "memory.max")
    below.go_alone()
    check_kill(below, watched, parent, str(parent).removeprefix(str(MOUNT)))


@pytest.mark.skipif(
    LINUX < (7, 0),
    reason="Linux 6.12 was seen to hold up the supervisor itself for longer than its agent (docs/troubles.md)",
)
@not_by_daemon("agents are in its slice")
def test_a_memory_high_above_that_holds_it_up_is_named(below: Below, watched: Watched, limit: Limit) -> None:  # fmt: skip
    # What programs read is charged to the one that reads it first.  Under this limit it would be reclaimed and read again
    # without end, from a disk that is slow here: so it is another one's, whom nobody limits.
    watched.run(FAST, "--pids", "1", command=[*python(FORKS), str(watched.heard)], check=True)
    assert watched.events("fork_refused")
    parent = parent_of(below)
    # The process for its handlers is started by the first alert.  Below that limit this would take from 15 s to minutes: the kernel holds
    # up whoever takes memory there, for each page up to two seconds.
    _write(below.agent / "pids.max", "100")
    wait_until(lambda: bool(watched.events("drift")), "the process for handlers runs")
    high = limit(parent, "memory.high", 64 * MIB)
    below.go()  # alone it takes a quarter of an hour
    # Its supervisor and the handlers are held up as well.
    try:
        wait_until(lambda: bool(watched.events("stalled")), "the alert", 3 * DEADLINE)
    except AssertionError:
        print(below.state())
        raise
    message = watched.events("stalled")[0]["message"]
    path = str(parent).removeprefix(str(MOUNT))
    assert f"by memory.high of {path}, {format_size(high)}: not this agent's to lift" in message
    assert (parent / "memory.high").read_text() == f"{high}\n"
    _write(parent / "memory.high", "max")
    status, told, _ = below.end()
    assert status == 0, told
