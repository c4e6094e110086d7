"""Agents by way of the daemon that outlive it or their client, and what ends them when their keeper is gone."""

from __future__ import annotations

import json
import pwd
import signal
import subprocess

import daemons
import psutil
import pytest
from conftest import AGENTRES, DEADLINE, ROOT, python, wait_until
from daemons import DEV, Daemon, home_of, keeper_of, ready

pytestmark = pytest.mark.skipif(not ROOT, reason="the daemon is root's")

daemon = daemons.daemon


def test_detached_it_outlives_the_client_and_the_daemon(daemon: Daemon) -> None:
    done = daemon.run(
        "--detach", "--name", "alone", command=["sh", "-c", "echo said; exec sleep 1000"]
    )
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr
    assert daemon.stop() == 0
    assert "populated 1" in (home_of("alone") / "agent" / "cgroup.events").read_text()
    daemon.start()
    stopped = subprocess.run(
        ["runuser", "-u", DEV, "--", *AGENTRES, "stop", "alone"],
        capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert stopped.returncode == 0, stopped.stderr
    assert not home_of("alone").exists()
    # As root: a journal that is in memory only is not split by users.
    logs = [
        "journalctl",
        f"_UID={pwd.getpwnam(DEV).pw_uid}",
        "SYSLOG_IDENTIFIER=agentres-1000:alone",
    ]
    assert subprocess.run([*AGENTRES, "logs", "alone", "--user", DEV], check=False).returncode == 0

    def said() -> bool:  # journald takes its time
        done = subprocess.run(logs, capture_output=True, text=True, check=False, timeout=DEADLINE)
        return "said" in done.stdout

    wait_until(said, "its output is its user's to read")
    for user, shown in ((DEV, True), ("nobody", False)):
        line = [*AGENTRES, "logs", "alone", "--user", user]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=DEADLINE)
        assert ("said" in done.stdout) is shown


ENDS = "echo ready; read line; exit 5"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_twenty_agents_go_on_while_the_daemon_is_replaced(daemon: Daemon, how: int) -> None:
    agents = [
        daemon.begin("--name", f"kept-{n}", "--memory", "20M", command=["sh", "-c", ENDS])
        for n in range(20)
    ]
    for agent in agents:
        ready(agent)
    daemon.stop(how)
    assert all("populated 1" in (home_of(f"kept-{n}") / "cgroup.events").read_text() for n in range(20))  # fmt: skip
    daemon.start()
    for agent in agents:
        _, err = agent.communicate("go\n", timeout=DEADLINE)
        assert agent.returncode == 5, err
    assert daemon.run(command=["true"]).returncode == 0


def test_an_alert_that_was_raised_is_there_when_the_daemon_is_not(daemon: Daemon) -> None:
    daemon.reload('[alerts.fds]\nwarning = 5\nduration = "0s"\n[sampling]\ninterval = "1s"\n')
    keep = "import os, sys; [os.open('/dev/null', 0) for _ in range(20)]; print('ready', flush=True); sys.stdin.read()"
    agent = daemon.begin("--name", "alerted", command=python(keep))
    ready(agent)

    def alerts() -> list[str]:
        line = ["runuser", "-u", DEV, "--", *AGENTRES, "show", "alerted", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return [alert["rule"] for alert in json.loads(done.stdout)["alerts"]]

    wait_until(lambda: "fds" in alerts(), "an alert")
    daemon.stop(signal.SIGKILL)
    assert "fds" in alerts()
    daemon.start()
    assert "fds" in alerts()
    agent.communicate("", timeout=DEADLINE)
    assert agent.returncode == 0


def test_limits_move_and_alerts_are_raised_while_there_is_no_daemon(daemon: Daemon) -> None:
    daemon.reload('[alerts.fds]\nwarning = 8\nduration = "0s"\n[sampling]\ninterval = "1s"\n')
    grow = "import os, sys; print('ready', flush=True); input(); held = bytearray(200 << 20); [os.open('/dev/null', 0) for _ in range(20)]; print('grown', flush=True); input()"
    agent = daemon.begin("--name", "grows", "--memory", "64M:400M", command=python(grow))
    ready(agent)
    daemon.stop(signal.SIGKILL)
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write("go\n")
    agent.stdin.flush()
    assert agent.stdout.readline() == "grown\n"
    assert int((home_of("grows") / "agent" / "memory.max").read_text()) > 200 << 20
    show = ["runuser", "-u", DEV, "--", *AGENTRES, "show", "grows"]

    def told() -> bool:
        return "fds" in subprocess.run(show, capture_output=True, text=True, check=False).stdout

    wait_until(told, "an alert")
    daemon.start()
    agent.communicate("end\n", timeout=DEADLINE)
    assert agent.returncode == 0


def test_when_its_keeper_is_killed_the_daemon_ends_what_was_leased(daemon: Daemon) -> None:
    agent = daemon.begin("--name", "orphan", command=["sh", "-c", "echo ready; exec sleep 1000"])
    ready(agent)
    keeper_of("orphan").kill()
    _, err = agent.communicate(timeout=DEADLINE)
    assert agent.returncode == 125
    assert "supervisor was killed" in err
    wait_until(lambda: not home_of("orphan").exists(), "the scope is gone")


def test_a_daemon_that_comes_later_does_so_too(daemon: Daemon) -> None:
    agent = daemon.begin(
        "--name", "late", "--orphan", "keep", command=["sh", "-c", "echo ready; exec sleep 1000"]
    )
    ready(agent)
    keeper = keeper_of("late")
    daemon.stop(signal.SIGKILL)
    keeper.kill()
    agent.wait(DEADLINE)  # its output is still the agent's
    assert home_of("late").exists()
    daemon.start()
    wait_until(lambda: not home_of("late").exists(), "the scope is gone")


def test_many_runs_leave_it_as_it_was(daemon: Daemon) -> None:
    process = psutil.Process(daemon.process.pid)
    for _ in range(10):
        assert daemon.run(command=["true"], user="root").returncode == 0
    # What is resident, shared or not: a child that is just ending, or is there by chance, changes nothing in it.
    before, files = process.memory_info().rss, process.num_fds()
    for _ in range(30):
        assert daemon.run(command=["true"], user="root").returncode == 0
    assert process.memory_info().rss - before < 256 * 1024
    # The last keeper's are let go of a moment after its client has ended, here and before.
    wait_until(lambda: process.num_fds() <= files, "no more descriptors than before")
