"""Where there is swap, those that are frozen or idle hand memory back to those that are short of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
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
    home_of,
    not_by_daemon,
    once,
    python,
    reclaimed_by_generations,
    wait_until,
)

pytestmark = not_by_daemon("the budget is the host's to say")

MIB = 1 << 20
TOTAL = int(os.environ.get("AGENTRES_TEST_TOTAL_MIB", "900"))
"""MiB: what all agents may have.  With 3174 (3.1 GiB) each of three wants 2.4 GiB: it takes so long that it is not run so each time."""

EACH = TOTAL * 697 // 900
"""MiB: what each agent wants."""

PATIENCE = DEADLINE * max(1, TOTAL / 900)

ENDLESS = 1 << 20
"""Passes: one that needs its memory until it is ended."""

SESSION = f"""
import mmap, sys, time
print("up", flush=True)
input()
held = mmap.mmap(-1, {EACH} << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def have(advice, seconds):
    # Sixteen pages a call: each page fault is dear in User Mode Linux.
    for at in range(0, {EACH} << 20, 1 << 16):
        held.madvise(advice, at, 1 << 16)
        if not at % (16 << 20): time.sleep(seconds)
have(23, 0.1)
for at in range({EACH}): held[at << 20] = at % 251
for _ in range(int(sys.argv[1])):
    have(22, 0.02)
    assert all(held[at << 20] == at % 251 for at in range({EACH}))
print("done", flush=True)
input()
"""
"""Takes what it wants within some seconds, works with all of it, and ends."""


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """A swap device of its own: compressed memory, so that no disk is waited for."""
    as_root("modprobe -q zram || :")  # built in, where there are no modules
    control = Path("/sys/class/zram-control")
    if not control.is_dir():
        pytest.skip("this kernel has no zram")
    number = as_root(f"cat {control}/hot_add").strip()
    device = f"/dev/zram{number}"
    as_root(
        f"echo {3 * TOTAL}M >/sys/block/zram{number}/disksize && mkswap -q {device} && swapon {device}"
    )
    yield
    as_root(f"swapoff {device}")
    # Until udev has looked at it, it is busy; after a minute it is said which processes have it open.
    again = f"until echo {number} >{control}/hot_remove; do sleep 0.1; done"
    openers = f'for fd in /proc/[0-9]*/fd/*; do [ "$(readlink $fd)" != {device} ] || cat ${{fd%/fd*}}/comm >&2; done'
    as_root(f"timeout {DEADLINE:.0f} sh -c '{again}' 2>/dev/null || {{ {openers}; exit 1; }}")


@pytest.fixture
def mglru() -> Iterator[None]:
    """Memory is reclaimed by generations, where the kernel can: docs/compatibility.md has what happens without."""
    with reclaimed_by_generations(True):
        yield


def as_root(script: str) -> str:
    """What a script writes that root runs."""
    sudo = [] if ROOT else ["sudo", "-n"]
    return subprocess.run([*sudo, "sh", "-c", script], check=True, text=True, stdout=subprocess.PIPE).stdout  # fmt: skip


def _is_held() -> bool:
    try:
        return (agents_cgroup() / "cpu.max").read_text().split()[0] != "max"
    except FileNotFoundError:
        return False


Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(watched: Watched, start: Begin) -> Begin:
    """Starts an agent in the budget, and returns when it is up."""
    # All agents together have an ordinary share first, and keep that: as small a one of the processors as of memory is not the subject.
    first = start(command=["sleep", "1000"], env=watched.environment)
    wait_until(_is_held, "the kernel holds all agents to a share")
    first.terminate()
    first.wait(DEADLINE)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    config = watched.configure(
        f'[sampling]\ninterval = "1s"\n[budget]\nshare = "{100 * TOTAL * MIB / host:.6f}%"\n'
    )

    def one(name: str, *options: str, passes: int = 3) -> subprocess.Popen[str]:
        line = [*config, "--name", name, "--memory", f"64M:{EACH + 80}M", "--swap", "max", "--cpu", "max"]  # fmt: skip
        code = python(SESSION, passes)
        agent = start(*line, *options, command=code, env=watched.environment)
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        return agent

    return one


def go(agent: subprocess.Popen[str]) -> None:
    assert agent.stdin is not None
    agent.stdin.write("\n")
    agent.stdin.flush()


def hands_back(watched: Watched, name: str, before: int, other: subprocess.Popen[str]) -> None:
    """The agent has half of what it had, while another works with more than there is."""
    go(other)
    current = home_of(name) / "agent/memory.current"
    try:
        wait_until(lambda: int(current.read_text()) < before / 2, "it hands back", 2 * PATIENCE)
    except AssertionError:
        for each in (name, "other"):
            print(each, watched.verb("history", each, "--actions")["actions"])
        raise
    assert other.poll() is None
    other.terminate()
    other.wait(DEADLINE)


def command(watched: Watched, *words: str) -> None:
    done = subprocess.run([*AGENTRES, *words], env=watched.environment, check=False)
    assert done.returncode == 0


def kinds(watched: Watched, name: str) -> list[str]:
    actions: list[dict[str, Any]] = watched.verb("history", name, "--actions")["actions"]
    return [action["kind"] for action in actions]


@once
def test_three_that_each_want_most_of_it_all_finish(
    swap: None, mglru: None, begin: Begin, watched: Watched
) -> None:
    agents = {name: begin(name) for name in ("first", "second", "third")}
    for agent in agents.values():
        go(agent)
    for name, agent in agents.items():
        out, err = agent.communicate("\n", timeout=3 * PATIENCE)
        assert (agent.returncode, out) == (0, "done\n"), (name, err)
    done = {name: kinds(watched, name) for name in agents}
    assert any("reclaim" in each for each in done.values()), done
    assert all(each.count("throttle") <= 10 for each in done.values()), done  # none flickers
    assert all(each.count("freeze") <= 3 for each in done.values()), done
    assert all(each.count("freeze") == each.count("thaw") for each in done.values()), done


def test_one_that_is_idle_hands_back_and_runs_on(
    swap: None, begin: Begin, watched: Watched
) -> None:
    idle, other = begin("idle", passes=0), begin("other", passes=ENDLESS)
    go(idle)
    assert idle.stdout is not None
    assert idle.stdout.readline() == "done\n"
    agent = home_of("idle") / "agent"
    wait_until(lambda: "user.agentres.idle" in os.listxattr(agent), "it is idle")
    before = int((agent / "memory.current").read_text())
    hands_back(watched, "idle", before, other)
    assert {"freeze", "reclaim"} & {*kinds(watched, "idle")} == {"reclaim"}
    _, err = idle.communicate("\n", timeout=DEADLINE)
    assert idle.returncode == 0, err


@once
def test_one_that_was_frozen_by_command_hands_back(
    swap: None, begin: Begin, watched: Watched
) -> None:
    # One pass: what went to swap as it grew is back, and its limit is as high as that takes.
    ice, other = begin("ice", passes=1), begin("other", passes=ENDLESS)
    go(ice)
    assert ice.stdout is not None
    assert ice.stdout.readline() == "done\n"
    command(watched, "freeze", "ice", "--for", "5m")
    agent = home_of("ice") / "agent"
    before = int((agent / "memory.current").read_text())
    assert before > 0.7 * EACH * MIB
    hands_back(watched, "ice", before, other)
    assert int((agent / "memory.max").read_text()) < before
    assert "reclaim" in kinds(watched, "ice")
    command(watched, "thaw", "ice")
    _, err = ice.communicate("\n", timeout=DEADLINE)
    assert ice.returncode == 0, err


def test_a_burst_into_swap_that_no_sample_falls_into_is_drawn(swap: None, watched: Watched) -> None:
    code = """
import mmap, time
piece = mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(piece), 1 << 16): piece.madvise(23, at, 1 << 16)
piece.madvise(21)  # MADV_PAGEOUT
piece.close()
time.sleep(2.5)
"""
    line = ["--name", "bursts", "--memory", "100M", "--swap", "100M"]
    run = watched.run(FAST, *line, command=python(code))
    assert run.status == 0, run.err
    drawn = [sample["values"]["swap"] for sample in watched.verb("history", "bursts")["samples"]]
    assert max(drawn) >= 30 * MIB > drawn[-1], drawn
