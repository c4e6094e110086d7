"""Pauses of an agent that is ahead of its disk rates: a folder for its cgroup, its processes told, time that is simulated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import Fake, Guard
from fake_slice import FakeSlice, keep_attributes
from stepped import Stepped

from agentres.kernel import registry
from agentres.kernel.actuator import COMMAND, CONTENTION, PACING, Actuator
from agentres.model.action import Action
from agentres.model.limits import IoMax
from agentres.model.stats import Reading
from agentres.run.pacer import Pacer

MB = 1_000_000
DISK = "253:0"


class Figures:
    """A meter whose figures a test writes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = dict.fromkeys(
            ("usage_usec", "read_bytes", "dirtied_bytes", "billed_bytes", "unbilled_bytes"), 0
        )
        self.reads: list[str] = []

    def read(self, group: str) -> Reading:
        self.reads.append(group)
        return Reading(**self.values)


class Life(Stepped):
    """An agent that writes whenever it is not frozen."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, io_held: bool
    ) -> None:
        super().__init__(100.0)
        self.actions: list[Action] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_time)
        keep_attributes(path, monkeypatch)
        self.agent = FakeSlice(path / "cgroup").agent("a", 1 << 28, 1 << 20)
        self.cgroup = Fake(str(self.agent))
        if io_held:
            (self.agent / "io.max").write_text("")
        lines = [IoMax(DISK, rbps=rate, wbps=rate)]
        self.actuator = Actuator(self.cgroup, guarded=Guard)
        self.actuator.take_disks(lines, {"": (DISK,)}, pausing=True)
        self.meter = Figures()
        self.speed = {"unbilled_bytes": 0.0, "billed_bytes": 0.0, "read_bytes": 0.0, "dirtied_bytes": 0.0}  # fmt: skip
        self.closed = False
        self.pacer = Pacer(self, self.meter, self.actuator, self.actions.append, self)  # type: ignore[arg-type]

    def count(self, reads: bool) -> int:
        """What the host wrote: nobody else is there."""
        values = self.meter.values
        wrote = values["unbilled_bytes"] + values["billed_bytes"] + values["dirtied_bytes"]
        return int(wrote + values["read_bytes"] if reads else wrote)

    def close(self) -> None:
        self.closed = True

    def go_on(self, now: float) -> None:
        self.pass_time(max(0.0, now - self.now))

    def pass_time(self, seconds: float) -> None:
        """Time passes, and it writes."""
        self.now += seconds
        if not self.frozen and any(self.speed.values()):
            for key, speed in self.speed.items():
                self.meter.values[key] += round(speed * seconds)
            self.meter.values["usage_usec"] += 1

    def live(self, seconds: float, **speed: float) -> None:
        self.speed.update(speed)
        self.run(seconds)
        self.speed = dict.fromkeys(self.speed, 0.0)

    def live_until_frozen(self, **speed: float) -> None:
        for _ in range(200):
            self.live(0.005, **speed)
            if self.frozen:
                return
        raise AssertionError("it is not frozen within a second")

    @property
    def frozen(self) -> bool:
        return (self.agent / "cgroup.freeze").read_text().strip() == "1"

    def kinds(self) -> list[str]:
        return [action.kind for action in self.actions]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    made = Life(tmp_path, monkeypatch, 8 * MB, io_held=True)
    yield made
    made.cgroup.close()


@pytest.fixture
def without_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    made = Life(tmp_path, monkeypatch, 8 * MB, io_held=False)
    yield made
    made.cgroup.close()


def test_what_is_not_billed_is_held_to_the_rate_and_told_twice(life: Life) -> None:
    life.live(10, unbilled_bytes=200 * MB)
    assert life.meter.values["unbilled_bytes"] / 10 == pytest.approx(8 * MB, rel=0.1)
    assert life.kinds() == ["pace"]  # its beginning
    life.live(5)
    assert life.kinds() == ["pace", "pace"]
    assert not life.frozen
    assert life.pacer.seconds == pytest.approx(9.6, abs=0.3)
    first, last = (action.why for action in life.actions)
    assert first.endswith("written to files that belong to others, at 8 MB/s")
    assert last.startswith("paused ")
    assert "for 9." in last
    assert {(a.resource, a.before, a.rule) for a in life.actions} == {("io_write", 8 * MB, "writeback")}  # fmt: skip


def test_what_the_kernel_holds_is_left_to_it(life: Life) -> None:
    life.live(10, billed_bytes=20 * MB, dirtied_bytes=20 * MB, read_bytes=100 * MB)
    assert (life.pacer.seconds, life.actions) == (0.0, [])


def test_without_an_io_controller_reads_and_writes_are_held(without_io: Life) -> None:
    life = without_io
    life.live(10, dirtied_bytes=100 * MB)
    assert life.meter.values["dirtied_bytes"] / 10 == pytest.approx(8 * MB, rel=0.1)
    life.live(3)
    before = life.meter.values["read_bytes"]
    life.live(10, read_bytes=100 * MB)
    # It was asleep: what it reads until the first look is ten megabytes.
    assert (life.meter.values["read_bytes"] - before) / 10 == pytest.approx(8 * MB, rel=0.15)
    life.live(3)
    assert all("without an io controller" in action.why for action in life.actions)
    told = [action.resource for action in life.actions]
    assert told == ["io_write", "io_write", "io_read", "io_read"]


def test_another_rate_holds_from_then_on_and_none_holds_nothing(life: Life) -> None:
    life.live(5, unbilled_bytes=200 * MB)
    life.actuator.write("io_write", 50 * MB)
    life.live(1)
    before = life.meter.values["unbilled_bytes"]
    life.live(5, unbilled_bytes=200 * MB)
    assert (life.meter.values["unbilled_bytes"] - before) / 5 == pytest.approx(50 * MB, rel=0.1)
    life.live(1)
    life.actuator.write("io_write", "max")
    before, paused = life.meter.values["unbilled_bytes"], life.pacer.seconds
    life.live(5, unbilled_bytes=200 * MB)
    assert life.meter.values["unbilled_bytes"] - before == pytest.approx(1000 * MB, rel=0.01)
    assert life.pacer.seconds == paused


def test_without_a_rate_nobody_is_paused_and_what_is_written_then_is_no_debt(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    life.actuator.write("io_write", "max")
    life.live(2)
    assert not life.frozen
    assert life.kinds() == ["pace", "pace"]
    life.live(5, unbilled_bytes=200 * MB, billed_bytes=200 * MB)
    life.actuator.write("io_write", 8 * MB)
    paused = life.pacer.seconds
    life.live(1, unbilled_bytes=1 * MB)
    assert life.pacer.seconds == paused


def test_a_rate_that_is_set_later_is_for_what_is_written_from_then_on(without_io: Life) -> None:
    life = without_io
    life.actuator.write("io_write", "max")
    life.actuator.write("io_read", "max")
    life.live(5, dirtied_bytes=200 * MB)
    life.actuator.write("io_write", 8 * MB)
    life.live(1, dirtied_bytes=1 * MB)
    assert life.pacer.seconds == 0


def test_one_that_is_to_end_is_left_in_peace_for_a_while(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    paused = life.pacer.seconds
    life.pacer.rest(5)
    assert not life.frozen
    life.live(4.9, unbilled_bytes=1 * MB)
    assert life.pacer.seconds == paused
    life.live_until_frozen(unbilled_bytes=200 * MB)


def test_who_thaws_it_does_not_end_its_pause(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    life.actuator.freeze(COMMAND, "somebody")
    life.actuator.thaw()
    assert life.frozen
    assert set(life.actuator.frozen_by) == {PACING}


def test_others_see_that_it_is_no_freeze_for_them(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    assert registry.is_paused(str(life.agent))
    life.actuator.freeze(CONTENTION, "others")
    assert not registry.is_paused(str(life.agent))
    life.actuator.thaw(CONTENTION)
    assert registry.is_paused(str(life.agent))
    life.pacer.close()
    assert not registry.is_paused(str(life.agent))


def test_who_does_not_run_is_not_looked_into(life: Life) -> None:
    life.live(60)
    assert life.meter.reads.count("disk") <= 1
    assert life.meter.reads.count("cpu") < 60 / 0.064 + 80


def test_our_pause_ends_and_that_of_others_stays(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    assert PACING in life.actuator.frozen_by
    life.actuator.freeze(COMMAND, "somebody")
    life.actuator.freeze(CONTENTION, "others")
    life.live(10)
    assert set(life.actuator.frozen_by) == {COMMAND, CONTENTION}
    assert life.frozen


def test_who_was_frozen_by_somebody_is_not_thawed(life: Life) -> None:
    (life.agent / "cgroup.freeze").write_text("1\n")
    life.meter.values |= {"unbilled_bytes": 100 * MB, "usage_usec": 5}  # before that
    life.live(5)
    assert life.frozen
    assert life.pacer.seconds == 0


def test_one_that_cannot_be_frozen_is_told_of_once(life: Life) -> None:
    life.cgroup.refused["cgroup.freeze"] = 1
    life.live(3, unbilled_bytes=200 * MB)
    assert life.kinds() == ["refuse"]
    assert "cannot be paused" in life.actions[0].why


def test_at_the_end_it_goes_on_and_what_was_is_told(life: Life) -> None:
    life.live_until_frozen(unbilled_bytes=200 * MB)
    life.pacer.close()
    assert not life.frozen
    assert life.kinds() == ["pace", "pace"]
    assert all(timer.callback is None for timer in life.timers)


def test_who_runs_and_writes_nothing_is_looked_into_seldom(life: Life) -> None:
    def step() -> None:
        life.meter.values["usage_usec"] += 1
        life.call_at(life.now + 0.01, step)

    step()
    life.live(20)
    assert life.meter.reads.count("disk") <= 20 / 0.5 + 2
    life.live_until_frozen(unbilled_bytes=200 * MB)


def test_where_others_write_it_is_looked_into_and_where_that_is_not_known_too(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def step() -> None:
        life.meter.values["usage_usec"] += 1
        life.call_at(life.now + 0.01, step)

    step()
    monkeypatch.setattr(life, "count", lambda reads: int(life.now * 50 * MB))
    life.live(5)
    assert life.meter.reads.count("disk") > 5 / 0.05

    def unknown(reads: bool) -> int:
        raise ValueError("no such line")

    monkeypatch.setattr(life, "count", unknown)
    before = life.meter.reads.count("disk")
    life.live(5)
    assert life.meter.reads.count("disk") - before > 5 / 0.05


def test_one_whose_rate_is_lifted_in_a_pause_goes_on(without_io: Life) -> None:
    without_io.live_until_frozen(dirtied_bytes=200 * MB)
    without_io.actuator.write("io_write", "max")
    without_io.live(1.1)
    assert not without_io.frozen
