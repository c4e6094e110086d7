"""One agent's share of the memory of all, on folders in place of cgroups: marks, raises, steps."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_agent import Clock
from fake_slice import MIB, FakeSlice

from agentres.kernel import host, registry
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.registry import ClaimMark
from agentres.policy.contention import HUNGRY, PATIENCE, Step
from agentres.policy.tripwire import HEADROOM
from agentres.run.sharing import CONTEND_AGAIN, PAGE, Sharing

NEVER = float("inf")


class Member:
    """A supervisor's view of its own agent; ``steps`` are those that it was asked for."""

    def __init__(self, host_slice: FakeSlice, agent: Path, claimed: ClaimMark) -> None:
        self.agent = agent
        self.steps: list[Step] = []
        self.written: list[int] = []
        self.cgroup = Cgroup(str(agent))
        self.sharing = Sharing(self.cgroup, str(host_slice.path), 0.5, claimed, self._carry_out)

    def _carry_out(self, step: Step) -> bool:
        self.steps.append(step)
        return True

    def write(self, limit: int) -> None:
        self.written.append(limit)
        (self.agent / "memory.max").write_text(f"{limit}\n")

    def take(self, before: int, wanted: int) -> int:
        return self.sharing.take(before * MIB, wanted * MIB, self.write)

    @property
    def claimed(self) -> ClaimMark:
        claimed = registry.claim_mark(str(self.agent))
        assert claimed is not None
        return claimed

    def kinds(self) -> list[str]:
        return [step.kind for step in self.steps]

    def close(self) -> None:
        self.sharing.close()
        self.cgroup.close()


Join = Callable[..., Member]


@pytest.fixture
def join(host_slice: FakeSlice, boot_clock: Clock) -> Iterator[Join]:
    """An agent with its supervisor; sizes in MiB."""
    members = []

    def make(name: str, limit: int, use: int, priority: int = 100, least: int = 32) -> Member:
        claimed = ClaimMark(priority, least * MIB)
        agent = host_slice.agent(
            name, limit * MIB, use * MIB, started=float(ord(name)), claimed=claimed
        )
        members.append(Member(host_slice, agent, claimed))
        return members[-1]

    yield make
    for member in members:
        member.close()


def test_what_is_claimed_is_marked_from_the_start(host_slice: FakeSlice, boot_clock: Clock) -> None:
    agent = host_slice.agent("a", claimed=None)
    claimed = ClaimMark(25, 64 * MIB, most=512 * MIB)
    member = Member(host_slice, agent, claimed)
    assert member.claimed == claimed
    member.close()


def test_a_raise_gets_what_it_asks_for_while_there_is_room(join: Join) -> None:
    a = join("a", 300, 250)
    join("b", 400, 100)
    assert a.take(300, 450) == 450 * MIB
    assert a.written == [450 * MIB]


def test_a_raise_gets_what_is_left_and_then_nothing(join: Join) -> None:
    a = join("a", 300, 250)
    join("b", 400, 100)
    assert a.take(300, 900) == 600 * MIB
    assert a.take(600, 900) == 600 * MIB
    assert a.written == [600 * MIB]


def test_a_limit_is_in_whole_pages_as_the_kernel_has_it(join: Join, host_slice: FakeSlice) -> None:
    a = join("a", 300, 250)
    host_slice.limit(500 * MIB + 1)
    assert a.sharing.take(300 * MIB, 400 * MIB + 1, a.write) == 400 * MIB
    assert a.sharing.take(400 * MIB, 700 * MIB, a.write) % PAGE == 0


def test_a_host_that_shrinks_takes_nothing_from_who_does_not_grow(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = join("a", 600, 500)
    join("b", 400, 380)
    monkeypatch.setattr(host, "memory", lambda: 1200 * MIB)
    assert a.take(600, 900) == 600 * MIB
    assert a.written == []


def test_what_one_before_it_waits_for_is_not_for_it(join: Join, boot_clock: Clock) -> None:
    high = join("a", 300, 268, priority=400)
    low = join("b", 300, 268)
    high.sharing.want(800 * MIB, stuck=True)
    assert low.take(300, 450) == 300 * MIB
    assert high.take(300, 600) == 600 * MIB


def test_a_hungry_one_comes_before_a_higher_one_that_only_would_like_room(
    join: Join, boot_clock: Clock
) -> None:
    high = join("a", 500, 400, priority=400)
    low = join("b", 300, 268)
    high.sharing.want(750 * MIB)
    low.sharing.want(450 * MIB, stuck=True)
    assert low.take(300, 450) == 300 * MIB
    boot_clock.now += HUNGRY
    assert low.take(300, 450) == 450 * MIB


def test_since_when_it_is_stuck_counts(join: Join, boot_clock: Clock) -> None:
    a = join("a", 300, 240)
    a.sharing.want(450 * MIB)
    assert (a.claimed.wants, a.claimed.since) == (450 * MIB, 5000.0)
    boot_clock.now += 1
    a.sharing.want(500 * MIB)  # more of the same
    assert (a.claimed.wants, a.claimed.since) == (500 * MIB, 5000.0)
    boot_clock.now += 1
    a.sharing.want(500 * MIB, stuck=True)
    assert a.claimed.since == 5002.0
    boot_clock.now += 1
    a.sharing.want(600 * MIB, stuck=True)
    assert a.claimed.since == 5002.0
    a.sharing.want(0)
    assert (a.claimed.wants, a.claimed.since) == (0, 5003.0)


def test_what_it_waits_for_is_told_in_words_until_it_has_it(join: Join) -> None:
    a = join("a", 300, 250)
    join("b", 700, 650)
    a.sharing.want(450 * MIB)
    assert a.sharing.why == (
        "450 MiB of memory are needed, 0 B of 1000 MiB are free: b has 700 MiB, a has 300 MiB"
    )
    a.sharing.want(0)
    assert (a.sharing.why, a.sharing.wants) == ("", 0)


def test_a_lock_that_is_held_keeps_nobody_from_growing(join: Join, host_slice: FakeSlice) -> None:
    a = join("a", 300, 250)
    held = os.open(host_slice.path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        start = time.monotonic()
        assert a.take(300, 450) == 450 * MIB
        assert a.sharing.contend() == CONTEND_AGAIN
        assert time.monotonic() - start < 2
    finally:
        os.close(held)
    assert a.steps == []


def test_where_no_mark_can_be_made_it_still_grows(
    join: Join, host_slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    a = join("a", 300, 250)
    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    a.sharing.want(450 * MIB)
    assert a.take(300, 450) == 450 * MIB
    assert a.sharing.contend() == NEVER


def test_nobody_looks_again_while_nobody_goes_short(join: Join) -> None:
    a = join("a", 300, 250)
    assert a.sharing.contend() == NEVER
    a.sharing.want(450 * MIB)
    assert a.sharing.contend() == CONTEND_AGAIN


def test_each_carries_out_what_is_about_itself_alone(join: Join, boot_clock: Clock) -> None:
    high = join("a", 300, 268, priority=400)
    low = join("b", 700, 200)
    high.sharing.want(450 * MIB, stuck=True)
    assert high.sharing.contend() == CONTEND_AGAIN
    assert high.steps == []
    low.sharing.contend()
    (step,) = low.steps
    assert (step.kind, step.path) == ("trim", str(low.agent))
    assert step.limit >= 200 * MIB + HEADROOM


def test_a_bell_rings_for_the_others_when_something_was_done(join: Join) -> None:
    high = join("a", 300, 268, priority=400)
    low = join("b", 700, 200)
    for member in (high, low):
        member.sharing.bell.heard()
    high.sharing.want(450 * MIB, stuck=True)
    assert os.read(low.sharing.bell.fd, 4096)
    low.sharing.contend()
    assert os.read(high.sharing.bell.fd, 4096)


def test_the_last_one_is_released_and_no_more_when_there_is_room_again(
    join: Join, host_slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    a = join("a", 1000, 968)
    a.sharing.want(1500 * MIB, stuck=True)
    a.sharing.contend()
    assert (a.kinds(), a.sharing.released) == (["release"], True)
    now += 2
    monkeypatch.setattr(host, "memory", lambda: 4000 * MIB)
    a.sharing.contend()
    assert a.sharing.released is False
    a.sharing.contend()
    assert a.kinds() == ["release"]


def test_who_has_what_it_wants_is_not_released_any_more(join: Join) -> None:
    a = join("a", 1000, 968)
    a.sharing.want(1500 * MIB, stuck=True)
    a.sharing.contend()
    a.sharing.want(0)
    assert a.sharing.released is False


def test_of_two_that_are_stuck_the_lower_is_released_after_a_while(
    join: Join, boot_clock: Clock
) -> None:
    one, other = join("a", 500, 468), join("b", 500, 468)
    for member in (one, other):
        member.sharing.want(750 * MIB, stuck=True)
    boot_clock.now += PATIENCE
    for member in (one, other):
        member.sharing.contend()
    assert (one.kinds(), other.kinds()) == ([], ["release"])


def test_an_orphan_that_is_frozen_is_thawed_by_whoever_sees_it(
    join: Join, host_slice: FakeSlice
) -> None:
    a = join("a", 300, 100)
    left = host_slice.agent("b", claimed=ClaimMark(since=10.0), frozen=True, supervised=False)
    assert a.sharing.contend() == CONTEND_AGAIN
    assert (left / "cgroup.freeze").read_text() == "0\n"
    assert a.steps == []


def test_an_orphan_that_may_not_be_thawed_harms_nobody(
    join: Join, host_slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentres.kernel import tree

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tree, "thaw", refuse)
    a = join("a", 300, 100)
    host_slice.agent("b", claimed=ClaimMark(since=10.0), frozen=True, supervised=False)
    assert a.sharing.contend() == CONTEND_AGAIN


def test_a_frozen_one_says_since_when(join: Join, boot_clock: Clock) -> None:
    a = join("a", 300, 250)
    a.sharing.want(450 * MIB)
    boot_clock.now += 7
    a.sharing.stopped("b wants 500 MiB")
    assert (a.claimed.wants, a.claimed.since, a.sharing.why) == (450 * MIB, 5007.0, "b wants 500 MiB")  # fmt: skip


def test_who_ends_wants_nothing_any_more_and_the_others_look(
    host_slice: FakeSlice, join: Join
) -> None:
    b = join("b", 300, 100)
    member = Member(host_slice, host_slice.agent("a"), ClaimMark())
    member.sharing.want(450 * MIB)
    b.sharing.bell.heard()
    member.close()
    assert registry.claim_mark(str(member.agent)) == member.claimed
    assert member.claimed.wants == 0
    assert os.read(b.sharing.bell.fd, 4096)


def test_one_that_is_paused_for_its_disk_rate_is_not_frozen_for_others(join: Join, host_slice: FakeSlice) -> None:  # fmt: skip
    from agentres.kernel import registry, tree

    a = join("a", 300, 100)
    other = host_slice.agent("b", claimed=ClaimMark(), frozen=True)
    fd = os.open(other, os.O_RDONLY)
    registry.mark_paused(fd, True)
    assert [claim.frozen for claim in tree.claims(str(host_slice.path)) if claim.path == str(other)] == [False]  # fmt: skip
    registry.mark_paused(fd, False)
    assert [claim.frozen for claim in tree.claims(str(host_slice.path)) if claim.path == str(other)] == [True]  # fmt: skip
    os.close(fd)
    assert a.steps == []
