"""What the page of an agent is made of: its supervisor's answer, its own rows of the history, its processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recorded import BEGIN, RecordedHost, pretend
from reported import a_run, sample
from told import event

from agentres.kernel import process, registry
from agentres.kernel.registry import RunningAgent
from agentres.model.errors import AgentresError
from agentres.readers import client
from agentres.readers.fleet import Fleet
from agentres.store import Store
from agentres.tui.source import Source

ANSWER = {"name": "planner"}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHost:
    """The host, whose supervisors answer."""
    monkeypatch.setattr(client, "ask", lambda agent, verb: {"agent": {"name": agent.name}})
    monkeypatch.setattr(process, "below", lambda path: [])
    return pretend(tmp_path, monkeypatch)


@pytest.fixture
def source(recorded: RecordedHost) -> Iterator[Source]:
    def history(write: bool) -> Store:
        return Store.open(recorded.history, write=write)

    fleet = Fleet(str(recorded.slice.mount), lambda: history(False), 0.8, now=lambda: recorded.now)
    made = Source(fleet, history, "me")
    yield made
    made.close()


def planner(recorded: RecordedHost) -> RunningAgent:
    found = registry.running(str(recorded.slice.mount))
    return next(agent for agent in found if agent.name == "planner")


def tell(recorded: RecordedHost, run: str, cgroup: str, started: float = BEGIN - 600) -> None:
    """A run of planner's in the history, with two samples, an action and an alert."""
    store = Store.open(recorded.history)
    store.begin(a_run("planner", run, cgroup=cgroup, started=started, ended=None))
    store.add((run, BEGIN - 100 + 10 * at, sample(at)) for at in range(2))
    action: dict[str, Any] = {
        "run": run, "agent": "planner", "time": BEGIN - 50, "resource": "memory", "kind": "raise",
        "before": 1.0, "after": 2.0, "rule": "up", "why": run, "took": None,
    }  # fmt: skip
    store.act(action)
    store.record(event("raised", f"{run}-1", BEGIN - 40, run=run, agent="planner", message=run))
    store.close()


def test_all_of_it_is_of_this_run(recorded: RecordedHost, source: Source) -> None:
    agent = planner(recorded)
    tell(recorded, "aaaa0001", agent.path)
    tell(recorded, "bbbb0002", "/sys/fs/cgroup/of/another/user")
    detail = source.detail(agent)
    assert detail.answer == ANSWER
    assert detail.curves is not None
    assert detail.curves.times == (BEGIN - 100, BEGIN - 90)
    assert [action.why for action in detail.actions] == ["aaaa0001"]
    assert [alert.message for alert in detail.alerts] == ["aaaa0001"]
    assert detail.trouble == ()


def test_of_an_earlier_run_in_the_same_place_nothing_is_told(
    recorded: RecordedHost, source: Source
) -> None:
    agent = planner(recorded)
    tell(recorded, "aaaa0001", agent.path, agent.started - 500)
    detail = source.detail(agent)
    assert (detail.answer, detail.curves, detail.actions, detail.alerts) == (ANSWER, None, (), ())


def test_what_cannot_be_had_is_said_and_the_rest_is_there(
    recorded: RecordedHost, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(agent: RunningAgent, verb: str) -> dict[str, Any]:
        raise AgentresError("nobody supervises it")

    agent = planner(recorded)
    detail = source.detail(agent)
    assert detail.answer == ANSWER
    assert len(detail.trouble) == 1  # there is no history
    tell(recorded, "aaaa0001", agent.path)
    monkeypatch.setattr(client, "ask", refuse)
    detail = source.detail(agent)
    assert (detail.answer, detail.trouble) == ({}, ("nobody supervises it",))
    assert len(detail.alerts) == 1


def test_processes_as_they_are(
    recorded: RecordedHost, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = planner(recorded)
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat", "-"], stdin=pipe, stdout=pipe) as child:
        try:
            # In the midst of execve(2) it has its name, and no arguments yet.
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"x\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"x\n"
            monkeypatch.setattr(process, "below", lambda path: [child.pid, os.getpid(), 1 << 30])
            first = {one.pid: one for one in source.detail(agent).processes}
            assert first.keys() == {child.pid, os.getpid()}  # there is no third
            assert first[child.pid].command == "cat -"
            assert first[child.pid].cpu is None  # it was not looked at before
            assert first[os.getpid()].memory > 1 << 20
            second = {one.pid: one for one in source.detail(agent).processes}
            assert second[child.pid].cpu == 0.0
        finally:
            child.kill()
    assert [one.pid for one in source.detail(agent).processes] == [os.getpid()]
