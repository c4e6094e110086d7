"""Events for programs: what of an agent's life becomes one, how often, and how long it is."""

from __future__ import annotations

import marshal
import time
from typing import Any

import events_table
import pytest
from dispatched import event as alert

from agentres.model.action import Action
from agentres.model.limits import Host, defaults
from agentres.model.schemas import EVENTS, MOVES
from agentres.model.stats import EscapedProcess, OomKill, Reading, RunningProcess, Usage
from agentres.run import events as module
from agentres.run.events import Events
from agentres.run.explain import Outcome
from agentres.store import Run

LIMITS = defaults(Host(cpus=4, memory=8 * 2**30, page=4096))
RUN = Run("0badcafe", "a", "agent", ("sh", "-c", "true"), 0, "/sys/fs/cgroup/a", 1, 2, "boot", 3.0)


class Life:
    """One agent's events, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Run = RUN) -> None:
        self.now, self.told = 1000.0, list[dict[str, Any]]()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.events = Events(run, self._send)
        self.events.start(7, LIMITS, 90.0)

    def _send(self, event: dict[str, Any]) -> None:
        assert len(marshal.dumps(("event", event))) < 200_000
        self.told.append({**event, "number": len(self.told) + 1})

    def end(self, **more: Any) -> list[dict[str, Any]]:
        outcome = Outcome("a", RUN.command, LIMITS, 0, 1.0, **more)
        self.events.end(outcome, Reading(memory_max=1000, memory_oom_kill=400))
        events_table.check_story(self.told)
        return self.told

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.told if event["event"] == kind]


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Life:
    return Life(monkeypatch)


def test_every_event_is_as_the_reference_says(life: Life) -> None:
    for kind in MOVES:
        life.events.acted(Action(kind, "memory", 1.0, None, "rule", "why", 2.0, 0.5))
    life.events.acted(Action("freeze", "agent", None, None, "command", "uid 0", 2.0, 0.5))
    life.events.alert(alert())
    life.events.time_is_up()
    life.events.killed("timeout", "the time limit had passed", [RunningProcess(7, "sh")])
    life.events.escaped([EscapedProcess(9, "sleep", "/elsewhere")])
    left = (RunningProcess(8, "sleep"),)
    told = life.end(left=left, escaped=(EscapedProcess(9, "sleep", "/elsewhere", "ended"),))
    assert {event["event"] for event in told} == EVENTS.keys() - {"lost"}
    assert told[-1]["summary"]["exit_code"] == told[-1]["exit_code"] == 0
    assert [event["processes"][0]["fate"] for event in life.of("escape")] == ["", "ended"]
    assert [event["by"] for event in life.of("kill")] == ["timeout", "memory", "end"]
    assert [event["unit"] for event in life.of("freeze")] == ["bytes", None]


def test_a_limit_that_is_met_all_the_time_is_told_three_times_and_then_each_ten_seconds(
    life: Life,
) -> None:
    for n in range(1, 601):  # a minute
        life.now += 0.1
        life.events.judged(Reading(memory_max=n, nr_throttled=0))
    counts = [event["count"] for event in life.of("limit")]
    assert counts[:3] == [1, 1, 1]
    assert len(counts) in (8, 9)
    life.end()
    assert sum(event["count"] for event in life.of("limit")) == 1000
    assert life.of("limit")[-1]["total"] == 1000


def test_who_was_killed_for_memory_is_told_with_how_many(life: Life) -> None:
    life.events.oom_killed([OomKill(7, "cc1", "/a", "/a")])
    assert life.of("kill") == []
    life.events.judged(Reading(memory_oom_kill=1))
    (kill,) = life.of("kill")
    assert (kill["count"], kill["processes"]) == (1, [{"pid": 7, "name": "cc1"}])
    for n in range(2, 300):
        life.events.oom_killed([OomKill(n, "cc1", "/a", "/a")])
        life.events.judged(Reading(memory_oom_kill=n))
    assert [event["count"] for event in life.of("kill")] == [1, 1, 1]
    life.end()
    assert life.of("kill")[-1]["count"] == 397
    assert len(life.of("kill")[-1]["processes"]) == module.MOST


def test_one_that_is_outside_is_told_once(life: Life) -> None:
    one = EscapedProcess(9, "sleep", "/elsewhere")
    for _ in range(9):
        life.events.escaped([one])
    assert [event["count"] for event in life.of("escape")] == [1]
    life.events.escaped([])  # it was moved back,
    life.events.escaped([one])  # and leaves once more
    assert [event["count"] for event in life.of("escape")] == [1, 1]
    for pid in range(10, 300):
        life.events.escaped([one.but(pid=n) for n in range(9, pid)])
    assert len(life.of("escape")) == 3
    life.end(escaped=tuple(one.but(pid=n) for n in range(9, 400)))
    assert life.of("escape")[-1]["count"] > 300
    assert len(life.of("escape")[-1]["processes"]) == module.MOST


def test_nothing_that_an_agent_names_is_too_long_for_a_packet(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    command = tuple(["x" * 100_000] * 20)
    life = Life(monkeypatch, RUN.but(command=command))
    (start,) = life.told
    assert start["command"] == ["x" * 4095 + "…", "…"]
    far = [EscapedProcess(n, "\x1b[2J\udc80", "/" + "a\n" * 2000) for n in range(9000)]
    life.events.escaped(far)
    life.events.acted(Action("set", "memory", 1.0, 2.0, "command", "x" * 100_000, 2.0, 0.5))
    kills = [OomKill(n, "y" * 15, "/a", "/a") for n in range(100)]
    life.end(escaped=far, left=[RunningProcess(n, "z") for n in range(9000)], oom_kills=kills, usage=Usage(memory_oom_kill=400))  # fmt: skip


@pytest.mark.parametrize(
    ("command", "told"),
    [((), []), (("a", ""), ["a", ""]), (("",) * 5000, [*[""] * 4096, "…"]), (("x" * 4096,), ["x" * 4096])],
)  # fmt: skip
def test_a_command_line_is_cut(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], told: list[str]
) -> None:
    (start,) = Life(monkeypatch, RUN.but(command=command)).told
    assert start["command"] == told
