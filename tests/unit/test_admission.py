"""Room for one more agent, on folders in place of cgroups: granted, refused with the numbers, waited for."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_slice import MIB, FakeSlice

from agentres.kernel import bell, host, registry, tree
from agentres.kernel.actuator import Actuator
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.inotify import Inotify
from agentres.kernel.lock import Lock
from agentres.kernel.registry import ClaimMark
from agentres.model.errors import Interrupted, NoRoom
from agentres.model.limits import Limits, Range
from agentres.policy import contention
from agentres.run.admission import ASKED_PATIENCE, LOOK_AGAIN, Applicant, enter

PAGE = os.sysconf("SC_PAGE_SIZE")


class Fake(Cgroup):
    def set_property(self, filename: str | bytes, value: str) -> None:
        Path(self.path, os.fsdecode(filename)).write_text(f"{value}\n")


class Time:
    """A clock that goes on by what is waited for; ``then`` is called at each wait, and then forgotten."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.then: list[Callable[[], object]] = []
        self.registered: list[int] = []

    def poll(self) -> Time:
        return self

    def register(self, fd: int, events: int) -> None:
        self.registered.append(fd)

    def __call__(self, milliseconds: float) -> list[tuple[int, int]]:
        assert len(self.waits) < 1000
        self.waits.append(milliseconds / 1000)
        self.now += milliseconds / 1000
        if self.then:
            self.then.pop(0)()
        return []


class Polled:
    """select.poll() of that clock."""

    def __init__(self, clock: Time) -> None:
        self.register = clock.register
        self.poll = clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    monkeypatch.setattr(select, "poll", lambda: Polled(made))
    return made


Apply = Callable[..., Applicant]


@pytest.fixture
def apply(host_slice: FakeSlice) -> Iterator[Apply]:
    """One that wants to begin; sizes in MiB."""
    cgroups = []

    def make(
        memory: Any = 256,
        least: int | None = 64,
        wait: float | None = None,
        priority: int = 100,
        started: float = 9000.0,
        name: str = "new",
    ) -> Applicant:
        agent = host_slice.agent(name, "max", 0, started=started, claimed=None)
        cgroups.append(Fake(str(agent)))
        ranges = {} if least is None else {"memory": Range(least * MIB, 4000 * MIB)}
        size = memory * MIB if isinstance(memory, int) else memory
        limits = Limits(memory=size, ranges=ranges)
        return Applicant(cgroups[-1], str(host_slice.path), limits, priority, 0.5, wait, Actuator(cgroups[-1]).write_memory)  # fmt: skip

    yield make
    for cgroup in cgroups:
        cgroup.close()


def nothing() -> None:
    """Nobody interrupts."""


def admitted(who: Applicant) -> int:
    """What it was granted, in MiB: it is written, too, before anybody else is let in."""
    memory = enter(who, nothing, pytest.fail).memory
    assert isinstance(memory, int)
    assert limit_of(who) == f"{memory}\n"
    assert claim_of(who).wants == 0
    return memory // MIB


def limit_of(who: Applicant) -> str:
    return Path(who.cgroup.path, "memory.max").read_text()


def claim_of(who: Applicant) -> ClaimMark:
    claimed = registry.claim_mark(who.cgroup.path)
    assert claimed is not None
    return claimed


def waits(
    host_slice: FakeSlice, name: str, size: int, started: float = 1.0, priority: int = 100
) -> Path:
    """Another one that waits already, for so many MiB."""
    claimed = ClaimMark(priority, size * MIB, size * MIB, 10.0)
    return host_slice.agent(name, "max", 0, started=started, claimed=claimed)


# There is room.


def test_it_gets_what_it_starts_with(apply: Apply, host_slice: FakeSlice) -> None:
    host_slice.agent("a", 700 * MIB)
    assert admitted(apply(256)) == 256


def test_it_gets_what_there_is_but_not_less_than_the_least(
    apply: Apply, host_slice: FakeSlice
) -> None:
    host_slice.agent("a", 800 * MIB)
    assert admitted(apply(256, 64)) == 200


def test_what_it_claims_is_marked(apply: Apply) -> None:
    who = apply(256, 64, priority=400)
    enter(who, nothing, print)
    assert claim_of(who) == ClaimMark(400, 64 * MIB, 0, 0.0, 4000 * MIB)


def test_a_limit_that_does_not_move_is_all_or_nothing(apply: Apply, host_slice: FakeSlice) -> None:
    host_slice.agent("a", 744 * MIB, 740 * MIB)
    assert admitted(apply(256, None)) == 256
    with pytest.raises(NoRoom):
        enter(apply(256, None, name="next"), nothing, print)


@pytest.mark.parametrize("memory", [None, "max"])
def test_without_a_limit_nothing_is_asked(apply: Apply, host_slice: FakeSlice, memory: Any) -> None:
    host_slice.agent("a", 1000 * MIB)
    who = apply(memory, None)
    assert enter(who, nothing, print) == who.limits
    assert limit_of(who) == "max\n"
    assert claim_of(who) == ClaimMark()


def test_without_the_controller_nothing_is_asked(apply: Apply, host_slice: FakeSlice) -> None:
    host_slice.agent("a", 1000 * MIB)
    who = apply()
    Path(who.cgroup.path, "memory.max").unlink()
    assert enter(who, nothing, print) == who.limits


def test_without_marks_it_is_admitted_all_the_same(
    apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    who = apply()
    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    assert enter(who, nothing, print).memory == 256 * MIB


def test_what_is_granted_is_in_whole_pages(
    apply: Apply, host_slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_slice.agent("a", 900 * MIB)
    monkeypatch.setattr(host, "memory", lambda: 2000 * MIB + 3)
    memory = enter(apply(), nothing, print).memory
    assert isinstance(memory, int)
    assert memory % PAGE == 0


# There is none.


def test_it_is_refused_with_the_numbers_and_who_has_what(
    apply: Apply, host_slice: FakeSlice
) -> None:
    host_slice.agent("a", 600 * MIB, 580 * MIB)
    host_slice.agent("b", 350 * MIB, 340 * MIB)
    who = apply(256, 64)
    with pytest.raises(NoRoom) as refused:
        enter(who, nothing, print)
    assert refused.value.message == (
        "64.0 MiB of memory are needed, 50.0 MiB of 1000 MiB are free: a has 600 MiB, b has 350 MiB"
    )
    assert refused.value.remedy == "--wait waits for room, a smaller --memory may fit"
    assert limit_of(who) == "max\n"


def test_a_smaller_limit_of_the_kernels_counts(apply: Apply, host_slice: FakeSlice) -> None:
    host_slice.limit(300 * MIB)
    host_slice.agent("a", 250 * MIB, 240 * MIB)
    with pytest.raises(
        NoRoom, match=r"64\.0 MiB of memory are needed, 50\.0 MiB of 300 MiB are free"
    ):
        enter(apply(), nothing, print)


@pytest.mark.parametrize("wait", [None, 60.0, float("inf")])
def test_what_no_end_of_another_makes_room_for_is_not_waited_for(
    apply: Apply, clock: Time, wait: float | None
) -> None:
    with pytest.raises(NoRoom) as refused:
        enter(apply(1500, 1200, wait), nothing, print)
    assert refused.value.message == (
        "1.2 GiB of memory are more than all agents together may have, 1000 MiB"
    )
    assert refused.value.remedy == "a smaller --memory may fit"
    assert clock.waits == []


def test_who_does_not_wait_passes_nobody_that_does(apply: Apply, host_slice: FakeSlice) -> None:
    host_slice.agent("a", 800 * MIB, 790 * MIB)
    waits(host_slice, "b", 190)
    with pytest.raises(NoRoom) as refused:
        enter(apply(), nothing, print)
    assert refused.value.message.endswith("; 190 MiB are for those before it")
    assert admitted(apply(priority=400, name="high")) == 200


def test_what_a_running_one_is_short_of_is_not_for_a_newcomer(
    apply: Apply, host_slice: FakeSlice
) -> None:
    short = ClaimMark(100, 64 * MIB, 900 * MIB, 10.0)
    host_slice.agent("a", 600 * MIB, 568 * MIB, claimed=short)
    with pytest.raises(NoRoom, match="300 MiB are for those before it"):
        enter(apply(512, 128), nothing, print)
    assert admitted(apply(512, 64, name="small")) == 100


# Waiting.


def test_it_waits_and_tells_its_place_until_there_is_room(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    a = host_slice.agent("a", 1000 * MIB)
    who = apply(wait=60.0)
    lines: list[str] = []
    seen: list[ClaimMark] = []

    def first() -> None:
        seen.append(claim_of(who))

    def then() -> None:
        (a / "memory.max").write_text(f"{500 * MIB}\n")

    clock.then = [first, then]
    assert enter(who, nothing, lines.append).memory == 256 * MIB
    assert len(clock.waits) == 2
    assert max(clock.waits) <= LOOK_AGAIN
    (line,) = lines
    assert line.startswith("waiting for room, 1. in line: 64.0 MiB of memory are needed, 0 B of 1000 MiB are free")  # fmt: skip
    assert seen[0].wants == 64 * MIB
    assert seen[0].since > 0
    assert claim_of(who).wants == 0


def test_the_line_goes_by_rank_and_a_new_place_is_told(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    a = host_slice.agent("a", 1000 * MIB)
    older = waits(host_slice, "b", 100)
    waits(host_slice, "c", 100, started=9999.0)
    waits(host_slice, "d", 100, priority=25)
    who = apply(wait=60.0)
    lines: list[str] = []

    def begins() -> None:
        registry_fd = os.open(older, os.O_RDONLY | os.O_DIRECTORY)
        registry.mark_claim(registry_fd, ClaimMark())
        os.close(registry_fd)
        (older / "memory.max").write_text(f"{100 * MIB}\n")
        (a / "memory.max").write_text(f"{900 * MIB}\n")

    def ends() -> None:
        (a / "memory.max").write_text(f"{500 * MIB}\n")

    clock.then = [begins, ends]
    assert enter(who, nothing, lines.append).memory == 256 * MIB
    assert [line.partition(":")[0] for line in lines] == [
        "waiting for room, 2. in line",
        "waiting for room, 1. in line",
    ]


def test_what_fits_a_lower_one_waits_for_the_first_in_the_line(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    host_slice.agent("a", 850 * MIB)
    waits(host_slice, "b", 140)
    lines: list[str] = []
    with pytest.raises(NoRoom):
        enter(apply(wait=3.0), nothing, lines.append)
    assert "140 MiB are for those before it" in lines[0]


def test_the_time_to_wait_comes_to_an_end(apply: Apply, host_slice: FakeSlice, clock: Time) -> None:
    host_slice.agent("a", 1000 * MIB)
    who = apply(wait=2.5)
    with pytest.raises(NoRoom) as refused:
        enter(who, nothing, lambda line: None)
    assert refused.value.message.startswith("no room after 2.50 s: 64.0 MiB of memory are needed")
    assert refused.value.remedy == "a smaller --memory may fit"
    assert sum(clock.waits) == pytest.approx(2.5)
    assert limit_of(who) == "max\n"


def test_room_that_comes_at_the_very_end_is_taken(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    a = host_slice.agent("a", 1000 * MIB)
    clock.then = [nothing, lambda: (a / "memory.max").write_text("0\n")]
    assert enter(apply(wait=2.0), nothing, lambda line: None).memory == 256 * MIB


def test_without_a_time_it_waits_for_ever(apply: Apply, host_slice: FakeSlice, clock: Time) -> None:
    a = host_slice.agent("a", 1000 * MIB)
    clock.then = [nothing] * 500 + [lambda: (a / "memory.max").write_text("0\n")]
    assert enter(apply(wait=float("inf")), nothing, lambda line: None).memory == 256 * MIB


# What the others can do without.


def trims(host_slice: FakeSlice) -> None:
    """What the supervisors of the others do when they hear the bell."""
    budget = tree.budget(str(host_slice.path), host.memory(), 0.5)
    for step in contention.decide(budget, tree.claims(str(host_slice.path)), 1e9):
        assert step.kind == "trim"
        Path(step.path, "memory.max").write_text(f"{step.limit}\n")


def test_what_others_do_not_use_is_asked_for_without_a_word(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    host_slice.agent("a", 600 * MIB, 100 * MIB)
    host_slice.agent("b", 400 * MIB, 390 * MIB)
    who = apply(256, 64)
    clock.then = [lambda: trims(host_slice)]
    assert admitted(who) == 256
    assert len(clock.waits) == 1


def test_who_ranks_higher_is_not_asked_and_nobody_waits_for_it(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    host_slice.agent("a", 1000 * MIB, 100 * MIB, claimed=ClaimMark(400))
    with pytest.raises(NoRoom):
        enter(apply(256, 64), nothing, pytest.fail)
    assert clock.waits == []


def test_who_needs_what_it_has_after_all_is_not_waited_for(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    a = host_slice.agent("a", 1000 * MIB, 100 * MIB)
    clock.then = [lambda: (a / "memory.current").write_text(f"{990 * MIB}\n")]
    with pytest.raises(NoRoom) as refused:
        enter(apply(256, 64), nothing, pytest.fail)
    assert refused.value.remedy == "--wait waits for room, a smaller --memory may fit"
    assert len(clock.waits) == 1


def test_who_does_not_give_is_waited_for_for_a_while(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    host_slice.agent("a", 1000 * MIB, 100 * MIB)
    with pytest.raises(NoRoom, match=r"^64\.0 MiB of memory are needed"):
        enter(apply(256, 64), nothing, pytest.fail)
    assert sum(clock.waits) == pytest.approx(ASKED_PATIENCE)


def test_a_signal_ends_the_wait_for_the_lock(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    def early() -> None:
        raise Interrupted(15)

    with Lock(str(host_slice.path)), pytest.raises(Interrupted):
        enter(apply(), early, pytest.fail)


def test_a_signal_ends_the_wait(apply: Apply, host_slice: FakeSlice, clock: Time) -> None:
    host_slice.agent("a", 1000 * MIB)
    looks = iter(range(3))

    def early() -> None:
        if next(looks) == 2:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        enter(apply(wait=60.0), early, lambda line: None)
    assert len(clock.waits) == 3


def test_no_file_stays_open(apply: Apply, host_slice: FakeSlice, clock: Time) -> None:
    host_slice.agent("a", 1000 * MIB)
    who = apply(wait=2.0)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoRoom):
        enter(who, nothing, lambda line: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_bell_ends_the_pause(apply: Apply, host_slice: FakeSlice) -> None:
    """On the real clock: who gives some back rings, and nobody waits for the next look."""
    a = host_slice.agent("a", 1000 * MIB)

    def gives(line: str) -> None:
        (a / "memory.max").write_text(f"{500 * MIB}\n")
        bell.ring(str(host_slice.path))

    start = time.monotonic()
    assert enter(apply(wait=60.0), nothing, gives).memory == 256 * MIB
    assert time.monotonic() - start < LOOK_AGAIN


def test_where_there_is_no_bell_it_looks_again_in_a_while(
    apply: Apply, host_slice: FakeSlice, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Inotify.__init__

    def none(self: Inotify) -> None:
        real(self)
        self.close()

    monkeypatch.setattr(Inotify, "__init__", none)
    a = host_slice.agent("a", 1000 * MIB)
    clock.then = [nothing, lambda: (a / "memory.max").write_text("0\n")]
    assert enter(apply(wait=60.0), nothing, lambda line: None).memory == 256 * MIB
    assert clock.registered == []


def test_who_has_more_than_it_uses_is_asked(
    apply: Apply, host_slice: FakeSlice, clock: Time
) -> None:
    """One that waits is heard by those that run: they make way for it."""
    a = host_slice.agent("a", 1000 * MIB, 100 * MIB, claimed=ClaimMark())

    def contend() -> None:
        budget = tree.budget(str(host_slice.path), host.memory(), 0.5)
        (step,) = contention.decide(budget, tree.claims(str(host_slice.path)), 1e9)
        assert (step.kind, step.path) == ("trim", str(a))
        (a / "memory.max").write_text(f"{step.limit}\n")

    clock.then = [contend]
    assert enter(apply(wait=60.0), nothing, lambda line: None).memory == 256 * MIB
