"""``agentres ps`` over a host of folders: who runs, as a table and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import agentres
from fake_slice import MIB
from json_types import check
from recorded import RecordedHost, pretend

from agentres.kernel import delegation
from agentres.kernel.delegation import Hierarchy
from agentres.model.live_schemas import AgentList


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHost:
    made = pretend(tmp_path, monkeypatch)
    found = Hierarchy(str(made.slice.mount), "/", False)
    monkeypatch.setattr(delegation, "hierarchy", lambda: found)
    return made


def ps(*words: str) -> str:
    code, out, err = agentres("ps", *words, env={"COLUMNS": "200"})
    assert (code, err) == (0, "")
    return out


def test_each_agent_is_told_with_its_state(recorded: RecordedHost) -> None:
    told = json.loads(ps("--json"))
    check(told, AgentList)
    agents = {agent["name"]: agent for agent in told["agents"]}
    assert {name: agent["state"] for name, agent in agents.items()} == {
        "planner": "throttled", "fixer": "running", "crawler": "frozen", "trainer": "running",
        "lost": "unsupervised", "patient": "waiting",
    }  # fmt: skip
    fixer = agents["fixer"]
    assert (fixer["memory"], fixer["limit"], fixer["tasks"]) == (310 * MIB, 512 * MIB, 7)
    assert (fixer["user"], fixer["uid"], fixer["priority"]) == ("dev", os.getuid(), 100)
    assert (agents["patient"]["limit"], agents["trainer"]["priority"]) == (None, 400)
    rows = [line.split() for line in ps().splitlines()]
    assert [row[:3] for row in rows if row[0] == "lost"] == [["lost", "dev", "unsupervised"]]


def test_what_is_not_known_is_null(recorded: RecordedHost) -> None:
    path = recorded.path("fixer")
    for file in ("cpu.stat", "pids.current"):
        (path / file).unlink()
    os.removexattr(path, "user.agentres.philosophy")
    told = json.loads(ps("--json"))
    check(told, AgentList)
    (fixer,) = (agent for agent in told["agents"] if agent["name"] == "fixer")
    assert [fixer[key] for key in ("cpu", "tasks", "philosophy")] == [None] * 3


def test_nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "hierarchy", lambda: Hierarchy(str(tmp_path), "/", False))
    assert ps() == "no agent runs\n"
    assert json.loads(ps("--json")) == {"schema": 1, "agents": []}
