"""The wiring around one agent: a folder for its cgroup, a loop that is stepped, time that is simulated."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_agent import MEMORY, Clock, Fake, Guard, handover
from fake_slice import MIB, FakeSlice, keep_attributes
from json_types import check
from stepped import Stepped

from agentres.kernel import host, registry
from agentres.kernel.actuator import COMMAND, Actuator
from agentres.kernel.escapes import Escapes
from agentres.kernel.listener import Peer
from agentres.model import control
from agentres.model.action import Action
from agentres.model.limits import ControlLine, Limits, Range
from agentres.model.live_schemas import AgentJson
from agentres.model.oom import OomCause
from agentres.policy.alerts import Rule, Severity
from agentres.policy.elastic import Terms
from agentres.policy.scaling import BALANCED, FROZEN
from agentres.policy.settings import Handler, Settings
from agentres.run import monitor as module
from agentres.run import notifications
from agentres.run.explain import Outcome
from agentres.run.history import MOVE_EVERY, MOVES
from agentres.run.monitor import Monitor
from agentres.run.steering import Steering
from agentres.watch.engine import Engine

RULES = (
    Rule("memory", "memory", "agent", ((Severity.WARNING, 0.75), (Severity.CRITICAL, 0.8)), True),
    Rule("drift", "drift", "agent", ((Severity.WARNING, 1.0),)),
    Rule("escaped", "escaped", "agent", ((Severity.WARNING, 1.0),)),
    Rule("stalled", "stalled", "agent", ((Severity.CRITICAL, 1.0),)),
    Rule("frozen", "frozen", "agent", ((Severity.WARNING, 1.0),)),
    Rule("handlers", "handlers", "agent", ((Severity.WARNING, 1.0),)),
)


QUIET = "avg10=0.00 avg60=0.00 avg300=0.00 total=0"


class SteppedLoop(Stepped):
    """A loop whose events a test brings, too."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Callable[[], object]] = {}

    def watch(self, fd: int, callback: Callable[[], object], events: int = 0) -> None:
        assert fd not in self.watched
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]


class FakeMessenger:
    """Stands for the messenger: what handlers would be told."""

    trouble = ""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.for_programs: list[str] = []
        self.closed = False
        self._note = given[4]

    def start(self) -> None:
        self._note("handlers", 1, self.trouble)

    def alert(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def begin_events(self, head: dict[str, Any]) -> None:
        pass

    def tell(self, event: dict[str, Any]) -> bool:
        self.for_programs.append(event["event"])
        if event["event"] == "start":
            self.start()
        return False

    def watch_host(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Watching:
    """A monitor of an agent in a folder, and all that it is wired to."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int = -1) -> None:
        keep_attributes(tmp_path, monkeypatch)
        monkeypatch.setattr(host, "memory", lambda: 8000 * MIB)
        clock = Clock()
        monkeypatch.setattr(time, "clock_gettime", lambda which: clock.now)
        self.loop = SteppedLoop()
        monkeypatch.setattr(time, "monotonic", lambda: self.loop.now)
        monkeypatch.setattr(module, "Engine", partial(Engine, clock=lambda: self.loop.now))
        monkeypatch.setattr(module, "Messenger", FakeMessenger)
        monkeypatch.setattr(notifications, "trigger", lambda cgroup, resource: None)
        slice_ = FakeSlice(tmp_path / "cgroup")
        self.agent = slice_.agent("a", 256 * MIB, 100 * MIB)
        (self.agent / "main").mkdir()
        for file, text in {
            "memory.high": "max", "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0",
            "pids.max": "512", "pids.current": "1", "cgroup.stat": "nr_descendants 1",
            "main/cgroup.procs": f"{os.getpid()}",
            "memory.pressure": f"some {QUIET}\nfull {QUIET}",
        }.items():  # fmt: skip
            (self.agent / file).write_text(f"{text}\n")
        self.cgroup = Fake(str(self.agent))
        self.actuator = Actuator(self.cgroup, guarded=Guard)
        self.actuator.apply(
            [ControlLine("memory.max", str(256 * MIB)), ControlLine("pids.max", "512")]
        )
        self.ooms = self.stalled = 0
        self.cause = OomCause(("/agentres.slice/a/agent",))
        limits = Limits(memory=256 * MIB, pids=512, ranges=MEMORY)
        agent = handover(
            actuator=self.actuator, started=self.loop.now, escapes=Escapes("f00d", "/agentres.slice/a/agent"), events=events,
            parent=str(slice_.path), terms=Terms(limits, BALANCED, 100, 0.8, str(slice_.path)),
        )  # fmt: skip
        handlers = (Handler("j", "journal"),) if FakeMessenger.trouble else ()
        settings = Settings(history=False, rules=RULES, handlers=handlers)
        self.monitor = Monitor(self.loop, agent, settings, self._oom)  # type: ignore[arg-type]

    def _oom(self) -> OomCause:
        self.ooms += 1
        return self.cause

    @property
    def messenger(self) -> FakeMessenger:
        messenger = self.monitor._messenger
        assert isinstance(messenger, FakeMessenger)
        return messenger

    @property
    def told(self) -> list[tuple[str, str, str]]:
        return [(e["event"], e["rule"], e["severity"]) for e in self.messenger.events]

    def notify(self, file: str) -> None:
        """What the kernel does when the control file has changed."""
        fd = self.monitor.meter.fd(file)
        assert fd is not None
        self.loop.watched[fd]()

    def pressure(self, usec: int) -> None:
        line = f"avg10=0.00 avg60=0.00 avg300=0.00 total={usec}"
        (self.agent / "memory.pressure").write_text(f"some {line}\nfull {line}\n")

    def events(self, **counts: int) -> None:
        rows = {"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 0, **counts}
        (self.agent / "memory.events").write_text("".join(f"{k} {v}\n" for k, v in rows.items()))

    def text(self, file: str) -> str:
        return (self.agent / file).read_text().strip()

    def close(self) -> Outcome:
        outcome = self.monitor.finish(lambda: Outcome("a", ("sleep",), Limits(), 0, 1.0))
        self.actuator.close()
        self.cgroup.close()
        return outcome


@pytest.fixture
def watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    made = Watching(tmp_path, monkeypatch)
    yield made
    made.close()


def test_the_tripwire_stands_at_the_next_raise_and_follows_it(watching: Watching) -> None:
    # 75 % of 256 MiB, and what nobody counts as used above it: none.
    assert watching.actuator.tripwire == 192 * MIB
    watching.cgroup.uses(193 * MIB)
    watching.events(high=1)
    watching.notify("memory.events")
    limit = int(watching.text("memory.max"))
    assert limit > 256 * MIB
    assert watching.monitor.meter.reading.memory_limit == limit
    assert int(watching.text("memory.high")) == watching.actuator.tripwire == 0.75 * limit


def test_memory_beyond_what_it_may_have_is_told_of(watching: Watching) -> None:
    watching.cgroup.uses(3500 * MIB)
    watching.events(high=1)
    watching.notify("memory.events")
    assert ("raised", "memory", "CRITICAL") in watching.told
    watching.cgroup.uses(100 * MIB)
    watching.loop.run(10)
    assert watching.told[-1][:2] == ("resolved", "memory")


def test_who_was_killed_is_asked_about_once(watching: Watching) -> None:
    watching.events(oom=1, oom_kill=1)
    watching.notify("memory.events")
    watching.loop.run(1)
    watching.notify("memory.events")
    assert watching.ooms == 1


def test_whose_limit_it_was_is_told_with_the_kill(watching: Watching) -> None:
    watching.cause = OomCause(())
    watching.events(oom_kill=1)
    watching.notify("memory.events")
    told = watching.monitor.subject.detail["oom_kill"]
    assert told.startswith("not by this agent's limit: the host ran out of memory")


def test_what_was_in_memory_is_told_with_the_kill_and_not_again_with_each_hit(
    watching: Watching,
) -> None:
    stat = watching.agent / "memory.stat"
    stat.write_text(f"anon {50 * MIB}\nfile {90 * MIB}\nshmem {60 * MIB}\ninactive_file 0\n")
    watching.events(max=1)
    watching.notify("memory.events")
    first = watching.monitor.subject.footprint
    assert first is not None
    assert first.kinds == {"anon": 50 * MIB, "file": 90 * MIB, "shmem": 60 * MIB}
    watching.events(max=2)
    watching.loop.run(1)
    watching.notify("memory.events")
    assert watching.monitor.subject.footprint is first
    watching.events(max=3, oom=1, oom_kill=1)
    watching.loop.run(1)
    watching.notify("memory.events")
    assert watching.monitor.subject.footprint is not first
    told = "60.0 MiB files in tmpfs and shared memory, 50.0 MiB anonymous"
    assert told in watching.monitor.subject.detail["oom_kill"]


def test_one_that_gets_nowhere_is_let_go_and_has_no_tripwire_for_a_while(
    watching: Watching,
) -> None:
    def waits(part: float, seconds: int) -> None:
        for _ in range(seconds):
            watching.stalled += round(1e6 * part)
            watching.pressure(watching.stalled)
            watching.loop.run(1)

    waits(1, 9)
    assert ("raised", "stalled", "CRITICAL") not in watching.told
    (watching.agent / "memory.high").write_text("31457280\n")
    waits(1, 8)
    assert watching.told.count(("raised", "stalled", "CRITICAL")) == 1
    assert "memory.high stood at 30.0 MiB" in watching.monitor.subject.detail["stalled"]
    assert watching.text("memory.high") == "max"
    waits(0.5, 30)
    assert ("resolved", "stalled", "CRITICAL") in watching.told
    assert watching.text("memory.high") == "max"
    waits(0, 60)
    assert watching.text("memory.high") == str(192 * MIB)


def test_one_that_gets_nowhere_at_its_limit_is_told_of_and_left_to_the_kernel(watching: Watching) -> None:  # fmt: skip
    before = watching.text("memory.max")
    for _ in range(12):
        (watching.agent / "memory.high").write_text("max\n")
        watching.stalled += 1000000
        watching.pressure(watching.stalled)
        watching.loop.run(1)
    assert watching.told.count(("raised", "stalled", "CRITICAL")) == 1
    said = watching.monitor.subject.detail["stalled"]
    assert "no limit of its own or above it is met" in said
    assert watching.text("memory.max") == before
    assert not (watching.agent / "cgroup.kill").exists()  # nobody was killed by us


def test_a_file_that_notifies_all_the_time_is_heard_once_a_breath(watching: Watching) -> None:
    fd = watching.monitor.meter.fd("memory.events")
    watching.loop.run(2)  # no raise lately
    watching.notify("memory.events")
    assert fd not in watching.loop.watched
    watching.loop.run(notifications.BREATH)
    assert fd in watching.loop.watched


def test_an_agent_that_does_nothing_is_looked_at_seldom(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = watching.monitor.moving.terms
    ranges = {"cpu": Range(0.5, 4.0), **MEMORY}
    (watching.agent / "cpu.stat").unlink(missing_ok=True)  # its use is not known, nor will be
    looks: list[str] = []
    read = watching.monitor.meter.read
    monkeypatch.setattr(watching.monitor.meter, "read", lambda group: looks.append(group) or read(group))  # fmt: skip
    watching.monitor.moving.anew(lambda: terms.but(limits=terms.limits.but(cpu=1.0, ranges=ranges)))
    watching.loop.run(1.0)
    assert looks.count("cpu") <= 30


def test_what_somebody_else_wrote_is_drift_and_our_own_moves_are_not(watching: Watching) -> None:
    watching.actuator.write("pids", 100)
    watching.loop.watched[watching.monitor.integrity.drift.fd]()
    assert watching.told == []
    (watching.agent / "pids.max").write_text("max\n")
    watching.loop.watched[watching.monitor.integrity.drift.fd]()
    assert watching.told == [("raised", "drift", "WARNING")]
    assert "pids.max is 'max', was set to '100'" in watching.monitor.subject.detail["drift"]
    assert watching.monitor.meter.reading.pids_limit is None


@pytest.mark.parametrize("by_us", [False, True])
def test_a_frozen_agent_is_told_of_and_who_froze_it(watching: Watching, by_us: bool) -> None:
    if by_us:
        watching.actuator.freeze(COMMAND, "frozen by uid 0")
    (watching.agent / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    watching.notify("cgroup.events")
    assert watching.told == [("raised", "frozen", "WARNING")]
    why = "frozen by uid 0" if by_us else "somebody wrote cgroup.freeze"
    assert watching.monitor.subject.detail["frozen"] == why


@pytest.mark.parametrize("events", [-1, 2])
def test_handlers_that_cannot_be_started_are_told_of_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    monkeypatch.setattr(FakeMessenger, "trouble", "the handlers cannot be started: no memory")
    watching = Watching(tmp_path, monkeypatch, events)
    assert watching.told[0] == ("raised", "handlers", "WARNING")
    assert watching.monitor.subject.detail["handlers"] == FakeMessenger.trouble
    watching.close()


def test_moves_that_are_too_many_are_counted_and_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    watching = Watching(tmp_path, monkeypatch, events=2)
    for _ in range(MOVES + 3):
        watching.monitor.act(Action.now("raise", "memory", 1.0, 2.0, "rule", "why"))
    assert watching.messenger.for_programs.count("raise") == MOVES
    watching.loop.run(MOVE_EVERY)
    watching.monitor.act(Action.now("lower", "memory", 2.0, 1.0, "rule", "why"))
    assert watching.messenger.for_programs.count("lower") == 1
    assert watching.close().moves_left_out == 0  # no history is kept: nothing is missing from it


def test_other_terms_hold_from_then_on(watching: Watching) -> None:
    terms = watching.monitor.moving.terms
    fixed = terms.but(limits=terms.limits.but(ranges={}))
    watching.monitor.moving.anew(lambda: fixed)
    assert watching.monitor.subject.mover is None
    watching.cgroup.uses(250 * MIB)
    watching.notify("memory.events")
    assert watching.text("memory.max") == str(256 * MIB)

    def refused() -> Terms:
        raise ValueError("no")

    watching.monitor.moving.anew(lambda: terms)
    with pytest.raises(ValueError, match="no"):
        watching.monitor.moving.anew(refused)
    assert watching.monitor.subject.mover is not None  # as before


def test_other_terms_begin_from_what_was_just_written(watching: Watching) -> None:
    watching.cgroup.uses(240 * MIB)

    def terms() -> Terms:
        watching.actuator.write_memory(1024 * MIB)
        return watching.monitor.moving.terms.but(philosophy=FROZEN)

    watching.monitor.moving.anew(terms)
    # What never moves cannot be given back: all of it is claimed; and 240 MiB are no 75 % of it.
    claimed = registry.claim_mark(str(watching.agent))
    assert claimed is not None
    assert claimed.least == 1024 * MIB
    assert [value for file, value in watching.cgroup.wrote("memory.max")][-1] == str(1024 * MIB)
    assert int(watching.text("memory.high") if watching.text("memory.high") != "max" else 1 << 40) > 240 * MIB  # fmt: skip


def test_nothing_stands_and_nothing_is_heard_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watching = Watching(tmp_path, monkeypatch)
    watching.cgroup.uses(240 * MIB)
    watching.events(high=1)
    watching.notify("memory.events")
    watching.close()
    assert watching.text("memory.high") == "max"
    assert watching.loop.watched == {}
    assert [timer for timer in watching.loop.timers if timer.callback is not None] == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_show_tells_of_it_is_as_the_reference_says(watching: Watching) -> None:
    told: list[bytes] = []
    supervision = SimpleNamespace(ended=False, pid=os.getpid())
    steering = Steering(supervision, watching.monitor)  # type: ignore[arg-type]
    asks = SimpleNamespace(peer=Peer(1, 0, 0), send=told.append)

    def shown() -> dict[str, Any]:
        steering.take(asks, control.command("show").rstrip(b"\n"))  # type: ignore[arg-type]
        answer = {"schema": 1, **json.loads(told.pop())["agent"]}
        check(answer, AgentJson)
        return answer

    first = shown()
    assert first["limits"]["memory"] == {
        "standing": 256 * MIB, "range": [MEMORY["memory"].least, MEMORY["memory"].most], "from": "default",
    }  # fmt: skip
    assert first["limits"]["pids"] == {"standing": 512, "range": None, "from": "default"}
    assert {"file": "pids.max", "text": "512"} in first["enforced"]
    assert first["used"]["working_set"] == 100 * MIB
    assert (first["frozen"], first["frozen_by"], first["alerts"]) == (False, "", [])
    watching.actuator.freeze(COMMAND, "frozen by a test")
    (watching.agent / "pids.max").write_text("30\n")
    watching.cgroup.uses(3500 * MIB)
    watching.loop.run(5)
    after = shown()
    assert (after["frozen"], after["frozen_by"]) == (True, "frozen by a test")
    assert "pids.max" in after["drift"]
    assert {alert["rule"] for alert in after["alerts"]} == {"memory", "drift"}
