"""Memory that is taken back in a thread, and the limit that follows it, on folders in place of cgroups."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import Life, Start, memory
from fake_slice import MIB

from agentres.kernel import reclaim, registry
from agentres.kernel.loop import Loop
from agentres.policy.contention import Step
from agentres.run import handback, sharing


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "memory.reclaim").touch()
    (tmp_path / "memory.current").write_text(f"{700 * MIB}\n")
    return tmp_path


def taken(loop: Loop, folder: Path, size: int) -> list[bool]:
    told: list[bool] = []
    (folder / "cgroup.freeze").write_text("1\n")
    reclaim.Reclaim(loop, str(folder), size, told.append)
    while not told:
        loop.tick()
    return told


def test_it_asks_for_pieces_until_it_has_all(folder: Path, loop: Loop) -> None:
    assert taken(loop, folder, 40 * MIB) == [True]
    assert (folder / "memory.reclaim").read_text() == f"{16 * MIB}{16 * MIB}{8 * MIB}"


def test_it_asks_for_no_more_of_one_that_goes_on(
    folder: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def thawed(fd: int, data: bytes) -> int:
        (folder / "cgroup.freeze").write_text("0\n")
        return write(fd, data)

    monkeypatch.setattr(os, "write", thawed)
    assert taken(loop, folder, 40 * MIB) == [True]  # the kernel did what it was asked for
    assert (folder / "memory.reclaim").read_text() == f"{16 * MIB}"


class Kernel:
    """In place of memory.reclaim's write(2): refuses ``refusals`` times, and has then reclaimed ``part`` of what it was asked for."""

    def __init__(self, folder: Path, refusals: int, part: int = 0) -> None:
        self.folder, self.refusals, self.part = folder, refusals, part
        self.asked: list[int] = []
        (folder / "memory.stat").touch()

    def write(self, fd: int, data: bytes) -> int:
        self.asked.append(int(data))
        if not self.refusals:
            return len(data)
        self.refusals -= 1
        use = int((self.folder / "memory.current").read_text())
        (self.folder / "memory.current").write_text(f"{use - self.part}\n")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.fixture
def kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def make(*args: int) -> Kernel:
        monkeypatch.setattr(reclaim, "_PAUSE", 0.01)
        made = Kernel(folder, *args)
        monkeypatch.setattr(os, "write", made.write)
        return made

    return make


@pytest.mark.parametrize(("refusals", "had"), [(5, True), (6, False)])
def test_what_is_refused_is_asked_for_again(
    folder: Path, loop: Loop, kernel: Callable[..., Kernel], refusals: int, had: bool
) -> None:
    made = kernel(refusals)
    assert taken(loop, folder, 20 * MIB) == [had]
    assert made.asked == [16 * MIB] * 6 + [4 * MIB] * had


def test_only_what_is_left_is_asked_for_again(
    folder: Path, loop: Loop, kernel: Callable[..., Kernel]
) -> None:
    made = kernel(1, 14 * MIB)
    assert taken(loop, folder, 16 * MIB) == [True]
    assert made.asked == [16 * MIB, 2 * MIB]


def test_the_figures_are_read_before_it_is_asked_again(
    folder: Path, loop: Loop, kernel: Callable[..., Kernel]
) -> None:
    made = kernel(1)
    (folder / "memory.stat").unlink()
    assert taken(loop, folder, 16 * MIB) == [False]
    assert made.asked == [16 * MIB]


def test_one_that_goes_on_is_not_asked_again(
    folder: Path, loop: Loop, kernel: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernel(1)

    def thawed(fd: int, data: bytes) -> int:
        (folder / "cgroup.freeze").write_text("0\n")
        return made.write(fd, data)

    monkeypatch.setattr(os, "write", thawed)
    assert taken(loop, folder, 16 * MIB) == [True]
    assert made.asked == [16 * MIB]


def test_one_that_is_closed_is_not_asked_again(
    folder: Path, loop: Loop, kernel: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernel(1)
    monkeypatch.setattr(reclaim, "_PAUSE", 1000.0)
    (folder / "cgroup.freeze").write_text("1\n")
    (folder / "memory.stat").unlink()
    os.mkfifo(folder / "memory.stat")
    asked = reclaim.Reclaim(loop, str(folder), 16 * MIB, lambda _: None)
    while not made.asked:
        time.sleep(0.001)
    asked.close()
    (folder / "memory.stat").write_text("")  # waits until the thread, which waits no more, reads it
    assert made.asked == [16 * MIB]


def test_what_cannot_be_had_is_told(tmp_path: Path, loop: Loop) -> None:
    assert taken(loop, tmp_path, MIB) == [False]  # no such file: Linux before 5.19


def test_where_no_thread_can_be_had_nothing_can(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    assert taken(loop, tmp_path, MIB) == [False]


def test_after_close_nothing_is_told(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "memory.reclaim").touch()
    told: list[bool] = []
    asked = reclaim.Reclaim(loop, str(tmp_path), MIB, told.append)
    asked.close()
    asked.close()
    loop.call_at(time.monotonic() + 0.05, lambda: None)
    loop.tick()
    assert told == []


class Taken:
    """In place of the thread: notes what is asked for."""

    asked: list[Any] = []  # noqa: RUF012

    def __init__(self, loop: object, path: str, size: int, done: Callable[[bool], None]) -> None:
        self.size, self.done, self.closed = size, done, False
        self.asked.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(Taken, "asked", [])
    monkeypatch.setattr(handback, "Reclaim", Taken)
    return Taken.asked


def test_its_limit_goes_down_with_what_it_uses(start_agent: Start, asked: list[Any]) -> None:
    life = start_agent("a", memory(800), use=700 * MIB)
    step = Step("reclaim", str(life.agent), "b wants 500 MiB", 400 * MIB)
    limits = []
    for use, size in [(700, 64), (636, 64), (572, 64), (508, 64), (444, 64), (380, 12)]:
        assert not life.mover.carry_out(step)
        assert not life.mover.carry_out(step)  # while it is asked
        assert asked[-1].size == size * MIB
        life.cgroup.uses((use - size) * MIB)
        asked[-1].done(True)
        limits.append(life.limit)
    assert limits == [668, 668, 540, 476, 412, 412]  # by a tenth, or it is not worth a write
    assert len(asked) == 6
    assert {action.kind for action in life.told} == {"reclaim"}
    assert life.told[-1].why == "b wants 500 MiB"
    assert life.mover.carry_out(step) is False
    assert len(asked) == 6  # it has come to that


def test_who_has_no_more_is_not_asked_for_a_while(start_agent: Start, asked: list[Any]) -> None:
    life = start_agent("a", memory(800), use=700 * MIB)
    life.mover.carry_out(Step("reclaim", str(life.agent), "b wants 500 MiB", 400 * MIB))
    life.cgroup.uses(600 * MIB)
    asked[-1].done(False)
    assert life.limit == 632
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert registry.keeps(str(life.agent), now + sharing.KEEPS / 2)
    assert not registry.keeps(str(life.agent), now + sharing.KEEPS * 2)


def pass_seconds(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + seconds)


def test_swap_that_is_stuck_is_not_waited_for(
    start_agent: Start, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    life = start_agent("a", memory(800), use=700 * MIB)
    step = Step("reclaim", str(life.agent), "b wants 500 MiB", 400 * MIB)
    life.mover.carry_out(step)
    pass_seconds(monkeypatch, 20)
    life.mover.carry_out(step)
    assert not registry.keeps(str(life.agent), time.clock_gettime(time.CLOCK_BOOTTIME))
    pass_seconds(monkeypatch, 20)
    life.mover.carry_out(step)
    assert registry.keeps(str(life.agent), time.clock_gettime(time.CLOCK_BOOTTIME))


def test_who_goes_on_is_asked_for_no_more(start_agent: Start, asked: list[Any]) -> None:
    life = start_agent("a", memory(800), use=700 * MIB)
    life.mover.carry_out(Step("freeze", str(life.agent), "b wants 500 MiB", 732 * MIB))
    life.mover.carry_out(Step("reclaim", str(life.agent), "b wants 500 MiB", 400 * MIB))
    life.mover.carry_out(Step("thaw", str(life.agent), "nobody above it is short of memory"))
    assert asked[-1].closed


def idled(life: Life, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it is idle when it has not run for long."""
    life.values["usage_usec"] = 1
    for _ in range(2):
        pass_seconds(monkeypatch, 60)
        life.mover.sampled()
    return registry.is_idle(str(life.agent))


def test_who_is_idle_asks_for_no_more_until_it_runs(
    start_agent: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = start_agent("a", memory(200), use=100 * MIB)
    assert idled(life, monkeypatch)
    life.uses(168)
    assert (life.limit, life.claimed.wants) == (200, 0)
    life.notified = True  # the kernel tells that it has come to its tripwire
    life.uses(168)
    assert life.limit == 300


def test_who_waits_at_its_tripwire_is_not_idle(
    start_agent: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = start_agent("a", memory(700), use=100 * MIB)
    start_agent("b", memory(300), use=290 * MIB, priority=400)
    life.uses(668)
    assert life.sharing.stuck
    assert not idled(life, monkeypatch)


def test_who_is_idle_wants_nothing(start_agent: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    life = start_agent("a", memory(700), use=100 * MIB)
    start_agent("b", memory(300), use=290 * MIB, priority=400)
    life.uses(600)
    assert life.claimed.wants
    assert idled(life, monkeypatch)
    assert not life.claimed.wants


def test_one_that_has_swap_by_somebody_else_hands_nothing_back(start_agent: Start) -> None:
    life = start_agent("a", memory(800).but(swap=0), use=700 * MIB)
    assert not life.mover.carry_out(Step("reclaim", str(life.agent), "b wants it", 400 * MIB))
    assert registry.keeps(str(life.agent), time.clock_gettime(time.CLOCK_BOOTTIME))
