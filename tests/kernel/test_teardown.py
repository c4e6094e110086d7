"""The end: whatever an agent left dies, and nothing is left; a killed supervisor too."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from conftest import (
    AGENTRES,
    ROOT,
    RunAgent,
    home_of,
    not_by_daemon,
    once,
    python,
    traces,
    wait_until,
)

Start = Callable[..., Popen[str]]

DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        os.close(1)
        time.sleep(10000)
    os._exit(0)
os.wait()
time.sleep(0.2)
"""


def test_a_double_forked_daemon_dies_with_the_run(agentres_run: RunAgent) -> None:
    run = agentres_run(command=python(DAEMON), check=True)
    assert not psutil.pid_exists(int(run.out))
    assert run.summary is not None
    (left,) = run.summary["left_running"]
    assert left["pid"] == int(run.out)
    assert (
        f"1 process was still running and was ended: {left['name']} (pid {left['pid']})" in run.err
    )


def test_what_ended_by_itself_or_with_its_time_is_not_told_of(agentres_run: RunAgent) -> None:
    run = agentres_run(command=["sh", "-c", "true | true & wait"], check=True)
    assert run.summary is not None
    assert run.summary["left_running"] == []
    late = agentres_run(
        "--timeout",
        "1s",
        command=["sh", "-c", "trap '' TERM; sleep 100 & while :; do sleep 1; done"],
    )
    assert late.summary is not None
    assert late.summary["timed_out"]
    assert late.summary["left_running"] == []  # all of it was killed, by the time limit


@not_by_daemon("an agent makes no cgroups")
def test_cgroups_that_the_agent_made_are_removed(agentres_run: RunAgent) -> None:
    code = """
import os
own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().split("0::")[1].strip()
for name in ("a", "a/b", "a/b/c", "shut"):
    os.mkdir(f"{own}/{name}")
os.mkdir(f"{own}/shut/in")
os.chmod(f"{own}/shut", 0)
if os.fork() == 0:
    open(f"{own}/a/b/c/cgroup.procs", "w").write("0")
    import time
    time.sleep(10000)
"""
    run = agentres_run(command=python(code))
    assert run.status == 0, run.err


@not_by_daemon("an agent's cgroup is root's")
def test_a_frozen_agent_can_be_ended(agentres_run: RunAgent) -> None:
    code = """
import os, sys, time
own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().split("0::")[1].strip()
child = os.fork()
if child == 0:
    time.sleep(10000)
os.mkdir(f"{own}/ice")
open(f"{own}/ice/cgroup.procs", "w").write(str(child))
open(f"{own}/ice/cgroup.freeze", "w").write("1")
"""
    run = agentres_run(command=python(code))
    assert run.status == 0, run.err


@once
def test_200_runs_in_a_row_leave_nothing(agentres_run: RunAgent) -> None:
    for number in range(200):
        run = agentres_run("--name", "row", "--quiet", command=["true"])
        assert (number, run.status, run.err) == (number, 0, "")
    wait_until(lambda: not traces(), "no traces", deadline=20)


@not_by_daemon("twenty at once are test_daemon_replaced's")
def test_many_at_once_leave_nothing() -> None:
    number = 50 if ROOT else 15  # of a user's own manager: that it has several at a time, too
    # So little that the budget has room for all of them, however many there are at the same moment.
    line = [*AGENTRES, "run", "--quiet", "--memory", "32M", "--", "sh", "-c", "sleep 1; exit 9"]
    running = [Popen(line, stderr=subprocess.PIPE, text=True) for _ in range(number)]
    ended = [(process.communicate(timeout=600)[1], process.returncode) for process in running]
    assert ended == [("", 9)] * number
    wait_until(lambda: not traces(), "no traces", deadline=20)


@not_by_daemon("the daemon does it as well: test_daemon_replaced.py")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_an_agent_ends_with_its_supervisor(start: Start, how: int) -> None:
    agent = start(
        "--name", "orphan", "--memory", "64M", command=python(DAEMON + "\ntime.sleep(10000)")
    )
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    before = time.monotonic()
    agent.send_signal(how)
    agent.wait(60)
    wait_until(lambda: not psutil.pid_exists(pid), "it is killed")
    assert time.monotonic() - before < 1
    wait_until(lambda: not traces(), "systemd has removed the scope", deadline=20)


@not_by_daemon("no agent outlives its keeper")
def test_the_limits_outlive_a_killed_supervisor(start: Start) -> None:
    """SIGKILL of the supervisor: limits stand; nothing is left once the agent has ended."""
    agent = start(
        *("--name", "orphan", "--memory", "64M", "--pids", "7", "--orphan", "keep"),
        command=["sh", "-c", "echo $$; read line; exit 0"],
    )
    assert agent.stdout is not None
    assert agent.stdin is not None
    pid = int(agent.stdout.readline())
    group = home_of("orphan") / "agent"
    agent.send_signal(signal.SIGKILL)
    agent.wait(60)
    assert psutil.pid_exists(pid)
    assert "agentres-orphan.scope/agent/main" in Path(f"/proc/{pid}/cgroup").read_text()
    assert (group / "memory.max").read_text() == f"{64 << 20}\n"
    assert (group / "pids.max").read_text() == "7\n"
    assert traces() != []
    agent.stdin.close()  # the agent reads its end and leaves
    wait_until(lambda: not psutil.pid_exists(pid), "the agent has ended")
    wait_until(lambda: not traces(), "systemd has removed the scope", deadline=20)


@not_by_daemon("the scope is root's")
def test_stopping_the_scope_ends_the_agent(start: Start) -> None:
    agent = start("--name", "stopped", command=["sh", "-c", "echo up; exec sleep 1000"])
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    user = [] if os.geteuid() == 0 else ["--user"]
    subprocess.run(["systemctl", *user, "stop", "agentres-stopped.scope"], check=True)
    assert agent.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("where", ["limits", "launch"])
def test_a_failed_launch_leaves_nothing(agentres_run: RunAgent, where: str) -> None:
    if where == "launch":
        run = agentres_run("--name", "failed", command=["/nonexistent"])
        assert run.status == 127
    else:
        run = agentres_run("--name", "failed", "--io-write", "/proc=5M", command=["true"])
        assert run.status == 125
    wait_until(lambda: not traces(), "no traces", deadline=20)
    assert agentres_run("--name", "failed", command=["true"]).status == 0
