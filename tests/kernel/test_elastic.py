"""Limits that move: bursts, what is given back, the budget, who gives way, what is learnt."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    ROOT,
    Run,
    RunAgent,
    answer,
    home_of,
    not_by_daemon,
    once,
    python,
    wait_until,
)

MIB = 1 << 20

OWN = """
import mmap, os, sys, time
agent = os.path.dirname("/sys/fs/cgroup" + open("/proc/self/cgroup").read().splitlines()[-1][3:])
def take(mib):
    piece = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MADV_POPULATE_WRITE, sixteen pages a call: as fast as a program can be, and where each page fault is
    # dear (User Mode Linux) a fifth of the time.
    for at in range(0, mib << 20, 1 << 16): piece.madvise(23, at, 1 << 16)
    return piece
def read(file): return open(f"{agent}/{file}").read().strip()
def until(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end: sys.exit("in vain")
        time.sleep(0.05)
"""

QUICK = """
[sampling]
interval = "1s"
[philosophies.quick]
cooldown = "1s"
give_back = "1s"
"""


class Elastic:
    """``agentres run`` with a configuration and a history of the test's own."""

    def __init__(self, folder: Path, run: RunAgent) -> None:
        self.folder, self._run = folder, run
        self.environment = {**os.environ, "AGENTRES_STATE_DIR": str(folder / "state")}

    def options(self, text: str) -> list[str]:
        config = self.folder / "agentres.toml"
        config.write_text(text)
        return ["--config", str(config)]

    def run(self, text: str, *options: str, command: list[str], **kwargs: Any) -> Run:
        line = [*self.options(text), *options]
        return self._run(*line, command=command, env=self.environment, **kwargs)

    def start(self, text: str, *options: str, command: list[str]) -> subprocess.Popen[str]:
        line = [*AGENTRES, "run", *self.options(text), *options, "--", *command]
        return subprocess.Popen(
            line, env=self.environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def verb(self, *words: str) -> Any:
        return answer(self.environment, *words)

    def actions(self, name: str) -> list[dict[str, Any]]:
        actions: list[dict[str, Any]] = self.verb("history", name, "--actions")["actions"]
        return actions

    def alerts(self, name: str) -> set[str]:
        return {alert["rule"] for alert in self.verb("alerts", "list", "--agent", name)["alerts"]}


@pytest.fixture
def elastic(tmp_path: Path, agentres_run: RunAgent) -> Elastic:
    return Elastic(tmp_path, agentres_run)


@pytest.fixture
def agents(elastic: Elastic) -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a test starts; what is left of them is ended."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.terminate()
        process.communicate(timeout=DEADLINE)


@once
def test_a_burst_far_above_the_first_limit_survives(elastic: Elastic) -> None:
    code = OWN + "time.sleep(1)\nheld = take(900)\nprint(read('memory.max'))\n"
    run = elastic.run("", "--name", "burst", "--memory", "64M:1500M", command=python(code))
    assert run.status == 0, run.err
    assert 900 * MIB < int(run.out) <= 1500 * MIB
    raises = [
        action
        for action in elastic.actions("burst")
        if (action["kind"], action["resource"]) == ("raise", "memory")
    ]
    # A sample that is due anyhow may find the beginning of it, but not all of it.
    assert "burst" in [action["rule"] for action in raises]
    assert raises[0]["before"] == 256 * MIB
    # Each from where the one before had brought it, unless that was trimmed in between.
    assert all(action["after"] > action["before"] for action in raises)
    assert "reached" in raises[0]["why"]
    # What we write ourselves is nobody else's doing.
    assert "drift" not in elastic.alerts("burst")


def test_a_burst_from_the_very_first_moment_on_survives(elastic: Elastic) -> None:
    """dd asks for its buffer and fills it at once, long before anybody watches the agent."""
    run = elastic.run(
        "", "--memory", "64M:1500M",
        command=["dd", "if=/dev/zero", "of=/dev/null", "bs=700M", "count=1"],
    )  # fmt: skip
    assert run.status == 0, run.err


def test_above_its_range_it_is_killed_as_ever(elastic: Elastic) -> None:
    run = elastic.run("", "--memory", "64M:400M", command=python(OWN + "time.sleep(1)\ntake(600)"))
    assert run.status == 137
    assert "limit 400 MiB" in run.err


def test_what_a_burst_took_goes_back_and_nobody_is_killed_for_it(elastic: Elastic) -> None:
    code = OWN + (
        "time.sleep(1)\nheld = take(600)\nhigh = int(read('memory.max'))\nheld.close()\n"
        "until(lambda: int(read('memory.max')) < 200 << 20)\nprint(high, read('memory.max'))\n"
        "kept = take(100)\n"
    )
    run = elastic.run(
        QUICK, "--name", "back", "--memory", "64M:1500M", "--philosophy", "quick",
        command=python(code),
    )  # fmt: skip
    assert run.status == 0, run.err
    high, low = map(int, run.out.split())
    assert high > 600 * MIB
    assert 64 * MIB <= low < 200 * MIB
    rules = {action["rule"] for action in elastic.actions("back") if action["kind"] == "lower"}
    assert rules & {"give_back", "settle"}


def test_a_limit_that_does_not_move_stays_where_it_starts(elastic: Elastic) -> None:
    code = OWN + "time.sleep(1)\nheld = take(220)\ntime.sleep(1)\nprint(read('memory.max'))\n"
    run = elastic.run(
        "", "--name", "still", "--memory", "64M:1G", "--philosophy", "frozen", command=python(code)
    )
    assert run.status == 0, run.err
    assert int(run.out) == 256 * MIB
    assert elastic.actions("still") == []


def test_cpu_is_raised_where_it_is_felt_before_any_sample(elastic: Elastic) -> None:
    code = OWN + (
        # One alone has a core, and feels nothing.
        "time.sleep(1)\nif os.fork() == 0:\n    while True: pass\n"
        "def more():\n"
        "    end = time.monotonic() + 0.2\n"
        "    while time.monotonic() < end: pass\n"
        "    return int(read('cpu.max').split()[0]) > 100000\n"
        "until(more)\nprint(read('cpu.max'))\n"
    )
    run = elastic.run(
        '[sampling]\ninterval = "1h"\n', "--name", "cpu", "--cpu", "0.3:1.8", command=python(code)
    )
    assert run.status == 0, run.err
    raises = [action for action in elastic.actions("cpu") if action["resource"] == "cpu"]
    assert raises[0]["kind"] == "raise"
    assert raises[0]["after"] > raises[0]["before"]
    assert raises[-1]["after"] <= 1.8


@once
def test_processes_are_raised_ahead_of_a_growing_number(elastic: Elastic) -> None:
    code = OWN + (
        "time.sleep(1)\npids = []\n"
        "for _ in range(80):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: time.sleep(1000)\n"
        "    pids.append(pid)\n"
        "    time.sleep(0.1)\n"
        "print(read('pids.max'))\nfor pid in pids: os.kill(pid, 9)\n"
    )
    run = elastic.run(
        '[sampling]\ninterval = "1s"\n', "--name", "pids", "--pids", "40:200", command=python(code)
    )
    assert run.status == 0, run.err
    assert 80 < int(run.out) <= 200


@pytest.mark.skipif(not ROOT, reason="io is not delegated to users here")
def test_a_disk_rate_is_raised(elastic: Elastic, tmp_path: Path) -> None:
    file = Path(f"/var/tmp/agentres-{tmp_path.parent.name}-elastic")
    code = OWN + (
        f"fd = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)\n"
        "block = mmap.mmap(-1, 1 << 19)\n"
        "def write(): os.pwrite(fd, block, 0); return 'wbps=1000000 ' not in read('io.max')\n"
        "until(write)\nprint(read('io.max'))\n"
    )
    try:
        run = elastic.run(
            '[sampling]\ninterval = "1s"\n[philosophies.quick]\ncooldown = "1s"\n',
            "--name", "disk", "--io-write", f"{file.parent}=1MB/s:20MB/s", "--philosophy", "quick",
            command=python(code),
        )  # fmt: skip
        assert run.status == 0, run.err
    finally:
        file.unlink(missing_ok=True)


# The budget.


def budget(mib: int) -> str:
    """A configuration in which all agents together may have this."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f'[budget]\nshare = "{100 * mib * MIB / host:.6f}%"\n'


HOLD = OWN + "held = take(int(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(1000)\n"


@not_by_daemon("the budget is the host's to say")
def test_who_does_not_fit_is_refused_with_the_numbers_or_waits(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    first = elastic.start(
        budget(600), "--name", "first", "--memory", "400M", command=python(HOLD, 50)
    )
    agents.append(first)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    refused = elastic.run(budget(600), "--memory", "300M", command=["true"])
    assert refused.status == 125
    assert refused.err.count("\n") == 1
    assert "300 MiB" in refused.err
    assert "first has 400 MiB" in refused.err
    in_vain = elastic.run(budget(600), "--memory", "300M", "--wait=1s", command=["true"])
    assert in_vain.status == 125
    assert "no room after" in in_vain.err
    waiting = elastic.start(
        budget(600), "--name", "second", "--memory", "300M", "--wait",
        command=python(OWN + "print(read('memory.max'))"),
    )  # fmt: skip
    agents.append(waiting)
    assert waiting.stderr is not None
    assert "1. in line" in waiting.stderr.readline()
    first.terminate()
    assert waiting.stdout is not None
    assert int(waiting.stdout.readline()) == 300 * MIB
    assert waiting.wait(DEADLINE) == 0


@not_by_daemon("the budget is the host's to say")
def test_nobody_fits_twice_what_there_is(elastic: Elastic) -> None:
    run = elastic.run(budget(300), "--memory", "400M", "--wait=5s", command=["true"])
    assert run.status == 125
    assert "more than all agents together may have" in run.err


@not_by_daemon("the budget is the host's to say")
def test_a_start_takes_what_is_left_down_to_the_least(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    first = elastic.start(budget(600), "--memory", "400M", command=python(HOLD, 50))
    agents.append(first)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    run = elastic.run(
        budget(600), "--memory", "64M:1G", command=python(OWN + "print(read('memory.max'))")
    )
    assert run.status == 0, run.err
    assert 64 * MIB <= int(run.out) <= 200 * MIB


@not_by_daemon("the budget is the host's to say")
def test_what_idle_agents_do_not_use_lets_the_next_one_in(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    """None of them waits or is refused by default, though their first limits come to more than there is."""
    for number in range(4):
        agent = elastic.start(
            budget(600), "--name", f"idle-{number}", "--memory", "64M:256M", "--quiet",
            command=python(HOLD, 1),
        )  # fmt: skip
        agents.append(agent)
        assert agent.stdout is not None
        assert agent.stdout.readline() == "held\n", agent.communicate()
    limits = [
        int((home_of(f"idle-{number}") / "agent/memory.max").read_text()) for number in range(4)
    ]
    assert sum(limits) <= 600 * MIB
    assert min(limits) >= 64 * MIB


@not_by_daemon("an agent does not see its home")
def test_priority_is_weight_and_protection_in_the_kernel(elastic: Elastic) -> None:
    code = OWN + (
        "home = os.path.dirname(agent)\n"
        "for file in ('cpu.weight', 'memory.low'): print(open(f'{home}/{file}').read().strip())\n"
    )
    found = {}
    for priority in ("low", "normal", "high"):
        run = elastic.run("", "--memory", "64M:1G", "--priority", priority, command=python(code))
        assert run.status == 0, run.err
        found[priority] = run.out.split()
    assert found == {
        "low": ["25", "0"],
        "normal": ["100", "0"],
        "high": ["400", str(64 * MIB)],
    }


@not_by_daemon("an agent does not see the slice")
def test_the_budget_is_held_by_the_kernel_as_well(elastic: Elastic) -> None:
    code = OWN + (
        "slice = os.path.dirname(os.path.dirname(agent))\n"
        "def limit(): return open(f'{slice}/memory.max').read().strip()\n"
        "until(lambda: limit() != 'max')\nprint(limit())\n"
    )
    run = elastic.run("", command=python(code))
    assert run.status == 0, run.err
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert int(run.out) == pytest.approx(0.8 * host, abs=4096)


@not_by_daemon("the budget is the host's to say")
@once
def test_a_lone_agent_that_the_budget_cannot_hold_is_killed_and_told_why(elastic: Elastic) -> None:
    run = elastic.run(
        budget(400), "--name", "lone", "--memory", "64M:2G",
        command=python(OWN + "time.sleep(1)\ntake(900)"),
    )  # fmt: skip
    assert run.status == 137
    assert "not raised" in run.err
    kinds = [action["kind"] for action in elastic.actions("lone")]
    assert "throttle" in kinds
    assert "release" in kinds
    assert "starved" in elastic.alerts("lone")


@pytest.mark.skipif(not ROOT, reason="the sysctl is root's")
def test_without_inotify_what_is_short_is_settled_all_the_same(elastic: Elastic) -> None:
    sysctl = Path("/proc/sys/fs/inotify/max_user_instances")
    before = sysctl.read_text()
    sysctl.write_text("0")
    try:
        run = elastic.run(
            budget(400), "--memory", "64M:2G", command=python(OWN + "time.sleep(1)\ntake(900)")
        )
    finally:
        sysctl.write_text(before)
    assert run.status == 137
    assert "not raised" in run.err


@once
def test_the_higher_priority_gets_what_the_lower_one_does_not_use(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    code = OWN + "a = take(330)\ndel a\nprint('held', flush=True)\ntime.sleep(1000)\n"
    low = elastic.start(
        budget(900), "--name", "low", "--memory", "64M:800M", "--priority", "low",
        command=python(code),
    )  # fmt: skip
    agents.append(low)
    assert low.stdout is not None
    assert low.stdout.readline() == "held\n"
    high = elastic.run(
        budget(900), "--name", "high", "--memory", "64M:800M", "--priority", "high",
        command=python(OWN + "time.sleep(1)\nheld = take(500)\nprint(read('memory.max'))"),
    )  # fmt: skip
    assert high.status == 0, high.err
    assert int(high.out) > 500 * MIB
    assert low.poll() is None
    assert any(action["kind"] in ("trim", "lower") for action in elastic.actions("low"))


@not_by_daemon("the budget is the host's to say")
def test_the_lower_priority_is_frozen_for_the_higher_one_and_thawed_after(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    # The low one uses 1010 MiB, what watches the two some 40; trimmed to its use and 15 % it leaves 600 for the high
    # one, frozen 720.  Of these 670 are taken: 600 are not enough, whatever the low one's limit was before.
    ticks = elastic.folder / "ticks"
    code = OWN + (
        "held = take(1000)\nprint('held', flush=True)\n"
        f"while True: open({str(ticks)!r}, 'w').write(str(time.monotonic())); time.sleep(0.05)\n"
    )
    low = elastic.start(
        budget(1800), "--name", "low", "--memory", "64M:1600M", "--priority", "low",
        command=python(code),
    )  # fmt: skip
    agents.append(low)
    assert low.stdout is not None
    assert low.stdout.readline() == "held\n"
    high = elastic.run(
        budget(1800), "--name", "high", "--memory", "64M:740M", "--priority", "high",
        command=python(OWN + "time.sleep(1)\nheld = take(660)\nprint(read('memory.max'))"),
    )  # fmt: skip
    assert high.status == 0, high.err
    kinds = [action["kind"] for action in elastic.actions("low")]
    assert "freeze" in kinds, kinds
    wait_until(
        lambda: "thaw" in [action["kind"] for action in elastic.actions("low")], "low is thawed"
    )
    before = ticks.read_text()
    wait_until(lambda: ticks.read_text() not in ("", before), "low goes on")
    assert low.poll() is None
    assert "frozen" in elastic.alerts("low")


@not_by_daemon("an agent's cgroup is root's")
def test_a_supervisor_that_is_killed_leaves_neither_tripwire_nor_frost(
    elastic: Elastic, agents: list[subprocess.Popen[str]]
) -> None:
    name = f"killed-{os.getpid()}"
    agent = elastic.start(
        "", "--name", name, "--orphan", "keep", "--memory", "64M:800M", command=["sleep", "1000"]
    )
    agents.append(agent)
    home = home_of(name)
    high = home / "agent/memory.high"
    wait_until(lambda: high.exists() and high.read_text() != "max\n", "the tripwire")
    procs = home / "agent/main/cgroup.procs"

    def executed() -> bool:
        return [psutil.Process(int(pid)).name() for pid in procs.read_text().split()] == ["sleep"]

    wait_until(executed, "the agent runs")
    (home / "agent/cgroup.freeze").write_text("1")
    pids = procs.read_text().split()
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: high.read_text() == "max\n", "no tripwire")
    wait_until(lambda: (home / "agent/cgroup.freeze").read_text() == "0\n", "a thaw")
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not home.exists(), "the scope is gone")


# What is learnt.


@once
def test_the_next_run_of_a_name_starts_from_what_the_last_one_used(elastic: Elastic) -> None:
    code = OWN + "held = take(500)\ntime.sleep(2)\nprint(read('memory.max'))\n"
    first = elastic.run("", "--name", "learns", "--memory", "64M:1500M", command=python(code))
    assert first.status == 0, first.err
    predicted = elastic.verb("predict", "learns")
    again = OWN + "until(lambda: int(read('memory.max')) != 256 << 20)\nprint(read('memory.max'))\n"
    second = elastic.run("", "--name", "learns", "--memory", "64M:1500M", command=python(again))
    assert second.status == 0, second.err
    actions = [action for action in elastic.actions("learns") if action["kind"] == "predict"]
    memory = next(action for action in actions if action["resource"] == "memory")
    assert memory["before"] == 256 * MIB
    # 500 MiB and the interpreter, a margin of 15 % on top; buckets are 5 % wide.
    assert 500 * MIB * 1.1 <= memory["after"] <= 560 * MIB * 1.3
    assert memory["after"] == int(second.out)
    assert predicted
