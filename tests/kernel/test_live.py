"""Agents that run are looked at and commanded: what the kernel has afterwards, and who may not."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import AGENTRES, DEADLINE, ROOT, RunAgent, home_of, not_by_daemon, traces, wait_until

from agentres.kernel import registry

Started = subprocess.Popen[str]
MIB = 1 << 20
UP = ["sh", "-c", "echo up; read line; exit 7"]

as_root = pytest.mark.skipif(not ROOT, reason="becomes another user: root only")


def agentres(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*AGENTRES, *words], capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


def shown(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(agentres("show", name, "--json").stdout)
    return found


def actions(name: str) -> list[dict[str, object]]:
    found = agentres("history", name, "--actions", "--json", check=False)
    return json.loads(found.stdout)["actions"] if found.returncode == 0 else []


def commanded(count: int, name: str) -> list[dict[str, object]]:
    """So many actions by command: the history is written by a thread."""

    def found() -> list[dict[str, object]]:
        return [one for one in actions(name) if one["rule"] == "command"]

    wait_until(lambda: len(found()) >= count, f"{count} actions")
    return found()


class Running:
    """An agent that has said that it is up."""

    def __init__(self, process: Started, name: str) -> None:
        self.process = process
        self.name = name
        self.agent = home_of(name) / "agent"

    def read(self, file: str) -> str:
        return (self.agent / file).read_text().strip()

    def events(self, file: str, key: str) -> int:
        return int(dict(line.split() for line in self.read(file).splitlines())[key])

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, err


@pytest.fixture
def running(start: Callable[..., Started]) -> Callable[..., Running]:
    def begin(name: str, *options: str, command: list[str] = UP) -> Running:
        process = start("--name", name, *options, command=command)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return Running(process, name)

    return begin


Run = Callable[..., Running]


@pytest.fixture(autouse=True)
def own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRES_STATE_DIR", str(tmp_path / "state"))


# Looking.


def test_show_tells_limits_and_where_they_are_from(running: Run) -> None:
    agent = running("looked", "--memory", "64M:512M", "--pids", "20")
    answer = shown("looked")
    limits = answer["limits"]
    assert isinstance(limits, dict)
    assert limits["pids"] == {"standing": 20, "range": None, "from": "--pids"}
    assert limits["memory"]["range"] == [64 * MIB, 512 * MIB]
    assert limits["memory"]["standing"] == int(agent.read("memory.max"))
    assert limits["cpu"]["from"] == "default"
    assert (answer["name"], answer["frozen"], answer["drift"]) == ("looked", False, "")
    beside = (home_of("looked") / "supervisor/cgroup.procs").read_text().split()
    assert str(answer["supervisor"]) in beside
    used = answer["used"]
    assert isinstance(used, dict)
    assert used["pids_current"] == int(agent.read("pids.current"))
    text = agentres("show", "looked").stdout
    assert "64.0 MiB to 512 MiB" in text
    assert "all limits stand as they were set" in text


@not_by_daemon("an agent's cgroup is root's")
def test_show_tells_what_somebody_else_has_written(running: Run) -> None:
    agent = running("undone", "--pids", "20")
    (agent.agent / "pids.max").write_text("30")
    assert "pids.max is '30', was set to '20'" in str(shown("undone")["drift"])


def test_ps_lists_agents_and_their_states(running: Run) -> None:
    listed_agent = running("listed", "--priority", "high").agent
    # Said when it is watched, which is a moment after it takes commands.
    wait_until(lambda: registry.philosophy(str(listed_agent)) == "balanced", "how its limits move")
    listed = {row["name"]: row for row in json.loads(agentres("ps", "--json").stdout)["agents"]}
    assert listed["listed"]["state"] == "running"
    assert listed["listed"]["uid"] == os.geteuid()
    assert listed["listed"]["priority"] == 400
    assert listed["listed"]["tasks"] == 1
    agentres("freeze", "listed")
    (row,) = (
        row
        for row in json.loads(agentres("ps", "--json").stdout)["agents"]
        if row["name"] == "listed"
    )
    assert row["state"] == "frozen"
    assert "listed" in agentres("ps").stdout


# Setting.


def test_set_writes_all_and_the_history_has_it(running: Run) -> None:
    agent = running("grown", "--memory", "128M", "--cpu", "0.5", "--pids", "20")
    done = agentres("set", "grown", "--memory", "256M", "--cpu", "1.5", "--pids", "40:80")
    assert "memory: 128 MiB -> 256 MiB" in done.stdout
    assert agent.read("memory.max") == str(256 * MIB)
    assert agent.read("cpu.max") == "150000 100000"
    assert agent.read("pids.max") == "40"
    assert {one["resource"]: (one["kind"], one["after"]) for one in commanded(3, "grown")} == {
        "memory": ("set", 256 * MIB),
        "cpu": ("set", 1.5),
        "pids": ("set", 40),
    }
    answer = shown("grown")
    assert answer["drift"] == ""
    assert "set 256M, by uid" in str(answer["limits"])


def test_set_outlives_a_reload_of_systemd(running: Run) -> None:
    agent = running("reloaded", "--memory", "128M")
    agentres("set", "reloaded", "--memory", "192M")
    subprocess.run(["systemctl", *([] if ROOT else ["--user"]), "daemon-reload"], check=True)
    assert agent.read("memory.max") == str(192 * MIB)
    assert shown("reloaded")["drift"] == ""


def test_set_is_all_or_none(running: Run) -> None:
    agent = running("kept", "--memory", "128M", "--pids", "20")
    refused = agentres("set", "kept", "--pids", "30", "--memory", "900T", check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "--memory 900T: is above the host's" in refused.stderr
    assert (agent.read("pids.max"), agent.read("memory.max")) == ("20", str(128 * MIB))
    refused = agentres("set", "kept", "--pids", "30", "--memory", "75%:80%", check=False)
    assert refused.returncode == 0, refused.stderr  # as much as the budget has


def test_set_below_what_is_in_use_is_refused_and_nobody_is_killed(running: Run) -> None:
    held = f"held = bytearray({100 * MIB}); print('up', flush=True); input()"
    agent = running("full", "--memory", "256M", command=[sys.executable, "-c", held])
    refused = agentres("set", "full", "--memory", "64M", check=False)
    assert refused.returncode == 1
    assert "are in use and cannot be given back" in refused.stderr
    assert agent.read("memory.max") == str(256 * MIB)
    assert agent.events("memory.events", "oom_kill") == 0
    agentres("set", "full", "--memory", "160M")
    assert agent.read("memory.max") == str(160 * MIB)
    assert agent.process.poll() is None


def test_a_limit_that_was_fixed_moves_once_it_is_a_range(running: Run) -> None:
    """It is let through instead of killed: 200 MiB where 96 were."""
    grow = f"print('up', flush=True); input(); held = bytearray({200 * MIB}); print(len(held), flush=True); input()"  # fmt: skip
    agent = running("moves", "--memory", "96M", command=[sys.executable, "-c", grow])
    agentres("set", "moves", "--memory", "64M:512M")
    assert agent.process.stdin is not None
    assert agent.process.stdout is not None
    agent.process.stdin.write("\n")
    agent.process.stdin.flush()
    assert agent.process.stdout.readline() == f"{200 * MIB}\n"
    assert int(agent.read("memory.max")) > 200 * MIB
    assert agent.events("memory.events", "oom_kill") == 0


# Stopping for a while.


def test_who_is_frozen_does_nothing_until_thawed(running: Run) -> None:
    agent = running("ice", command=["sh", "-c", "echo up; while :; do :; done"])
    agentres("freeze", "ice")
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 1, "frozen")
    before = agent.events("cpu.stat", "usage_usec")
    answer = shown("ice")
    assert answer["frozen"] is True
    assert f"frozen by uid {os.geteuid()}" in str(answer["frozen_by"])
    assert agent.events("cpu.stat", "usage_usec") == before
    agentres("thaw", "ice")
    wait_until(lambda: agent.events("cpu.stat", "usage_usec") > before, "goes on")
    assert [one["kind"] for one in commanded(2, "ice")] == ["freeze", "thaw"]
    agentres("kill", "ice")


def test_a_freeze_has_an_end(running: Run) -> None:
    agent = running("brief", command=["sh", "-c", "echo up; exec sleep 1000"])
    told = agentres("freeze", "brief", "--for", "max").stdout
    assert told == "brief: frozen until thawed\n"
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 1, "frozen")
    assert str(shown("brief")["frozen_by"]).endswith(", until it is thawed")
    told = agentres("freeze", "brief", "--for", "1s").stdout  # what was said last holds
    assert re.fullmatch(r"brief: frozen until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", told)
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 0, "it goes on")
    *_, thawed = commanded(3, "brief")
    assert thawed["kind"] == "thaw"
    assert str(thawed["why"]).startswith(f"its time is up: frozen for 1.00 s by uid {os.geteuid()}")
    assert shown("brief")["frozen"] is False
    refused = agentres("freeze", "brief", "--for", "never", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    agentres("kill", "brief")


@not_by_daemon("no agent outlives its keeper")
def test_who_is_frozen_goes_on_when_the_supervisor_is_killed(running: Run) -> None:
    command = ["sh", "-c", "echo up; exec sleep 1000"]
    agent = running("left", "--orphan", "keep", command=command)
    agentres("freeze", "left")
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 1, "frozen")
    os.kill(agent.process.pid, signal.SIGKILL)
    # A second is promised, of a processor that is not shared with other machines.
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 0, "it goes on", deadline=5)
    agent.process.wait(DEADLINE)
    agentres("kill", "left")


# Ends.


@pytest.mark.parametrize("told", ["by its time limit", "by SIGTERM"])
def test_who_is_frozen_hears_that_it_is_to_end(running: Run, told: str) -> None:
    # Long enough for a busy machine to have it frozen by then.
    options = ["--timeout", "10s"] if told == "by its time limit" else []
    command = ["sh", "-c", "trap 'echo heard; exit 9' TERM; echo up; sleep 1000 & wait"]
    agent = running("ends", *options, command=command)
    agentres("freeze", "ends")
    wait_until(lambda: agent.events("cgroup.events", "frozen") == 1, "frozen")
    if not options:
        agent.process.terminate()
    out, err = agent.process.communicate(timeout=DEADLINE)
    assert out == "heard\n", err
    assert agent.process.returncode == (124 if options else 9)


def test_stop_asks_first(running: Run) -> None:
    agent = running("asked", command=["sh", "-c", "trap 'exit 3' TERM; echo up; sleep 1000 & wait"])
    agentres("stop", "asked")
    assert not agent.agent.exists()
    code, err = agent.end()
    assert code == 3
    assert "stopped by uid" in err


def test_stop_kills_who_does_not_listen_and_thaws_who_cannot(running: Run) -> None:
    deaf = running("deaf", command=["sh", "-c", "trap '' TERM; echo up; read line"])
    frozen = running(
        "frozen", command=["sh", "-c", "trap 'exit 4' TERM; echo up; sleep 1000 & wait"]
    )
    agentres("freeze", "frozen")
    began = time.monotonic()
    agentres("stop", "--grace", "500ms", "deaf", "frozen")
    assert time.monotonic() - began >= 0.5
    assert deaf.end()[0] == 128 + signal.SIGKILL
    assert frozen.end()[0] == 4
    wait_until(lambda: not traces(), "no traces")


def test_the_name_is_free_when_stop_returns(running: Run, agentres_run: RunAgent) -> None:
    running("again")
    agentres("kill", "again")
    assert agentres_run("--name", "again", command=["echo", "ran"], check=True).out == "ran\n"


@not_by_daemon("no agent outlives its keeper")
def test_kill_without_a_supervisor(running: Run) -> None:
    agent = running("orphan", "--orphan", "keep", command=["sh", "-c", "echo up; exec sleep 1000"])
    os.kill(agent.process.pid, signal.SIGKILL)
    agent.process.wait(DEADLINE)
    refused = agentres("stop", "orphan", check=False)
    assert refused.returncode == 1
    assert "nobody supervises orphan" in refused.stderr
    (row,) = (r for r in json.loads(agentres("ps", "--json").stdout)["agents"] if r["name"] == "orphan")  # fmt: skip
    assert row["state"] == "unsupervised"
    agentres("kill", "orphan")
    assert not agent.agent.exists()


def test_wait_ends_as_the_agent_does(running: Run) -> None:
    agent = running("awaited")
    with subprocess.Popen(
        [*AGENTRES, "wait", "awaited"], stderr=subprocess.PIPE, text=True
    ) as waits:
        wait_until(lambda: _clients("awaited") == 1, "somebody waits")
        assert agent.process.stdin is not None
        agent.process.stdin.write("\n")
        agent.process.stdin.flush()
        assert waits.wait(DEADLINE) == 7
    assert agentres("wait", "awaited", check=False).returncode == 125


def _clients(name: str) -> int:
    address = registry.control(str(home_of(name) / "agent"))
    rows = Path("/proc/net/unix").read_text().splitlines()
    return sum(row.endswith(f"@{address}") for row in rows) - 1


# Who may not.


@not_by_daemon("an agent cannot even ask")
def test_an_agent_does_not_command_itself(agentres_run: RunAgent) -> None:
    line = [*AGENTRES, "set", "itself", "--memory", "max"]
    run = agentres_run("--name", "itself", "--memory", "256M", "--pids", "50", command=line)
    assert run.status == 1
    assert "an agent does not command itself" in run.err


@as_root
def test_another_user_commands_nobody(running: Run) -> None:
    agent = running("roots")
    for words in (["set", "roots", "--pids", "9"], ["kill", "roots"], ["show", "roots"]):
        done = subprocess.run(
            ["runuser", "-u", "dev", "--", *AGENTRES, *words],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert done.returncode == 1
        assert "only the agent's owner and root may command it" in done.stderr
    assert agent.process.poll() is None


def test_garbage_harms_nobody(running: Run) -> None:
    agent = running("fuzzed", "--pids", "20")
    wait_until(lambda: registry.control(str(agent.agent)) != "", "takes commands")
    address = registry.control(str(agent.agent))
    kept = []
    for garbage in (
        b"",
        b"\n" * 1000,
        b'{"agentres": 1, "do": "set"',
        os.urandom(5000).replace(b"\n", b"") + b"\n",
        b"[" * 60_000 + b"\n",
        b'{"agentres": 1, "do": "set", "limits": {"pids": "' + b"9" * 50_000 + b'"}}\n',
        b"x" * (10 * MIB),
    ):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(DEADLINE)
        sock.connect(f"\0{address}")
        kept.append(sock)
        try:
            sock.sendall(garbage)
        except (BrokenPipeError, ConnectionResetError):  # it has been let go
            assert len(garbage) > 1 << 16
    agentres("set", "fuzzed", "--pids", "30")
    assert agent.read("pids.max") == "30"
    for sock in kept:
        sock.close()
    wait_until(lambda: _clients("fuzzed") == 0, "all are let go")
