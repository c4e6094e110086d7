"""Elastic limits of agents that share memory, on folders in place of cgroups: trimmed, frozen, thawed, within the budget."""

from __future__ import annotations

import errno
import itertools
import time

import pytest
from fake_agent import Clock, Life, Start, memory
from fake_slice import MIB, FakeSlice, keep_attributes
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import host
from agentres.policy.contention import EQUALS_WAIT, FROZEN_LEAST, PATIENCE
from agentres.policy.scaling import FROZEN

# What others ask for.


def test_a_higher_one_gets_what_a_lower_one_does_not_use(start_agent: Start) -> None:
    high = start_agent("a", memory(300), use=200 * MIB, priority=400)
    low = start_agent("b", memory(700), use=100 * MIB, priority=25)
    high.uses(268)
    assert high.limit == 300
    low.contend()
    assert low.limit < 150
    assert low.told[-1].kind == "trim"
    assert low.told[-1].why == "a wants 450 MiB, and 100 MiB are used"
    high.uses(268, 1)
    assert (high.limit, high.claimed.wants) == (450, 0)


def test_one_is_frozen_gives_its_margin_and_goes_on_afterwards(
    start_agent: Start, boot_clock: Clock
) -> None:
    high = start_agent("a", memory(200), use=100 * MIB, priority=400)
    low = start_agent("b", memory(800), use=670 * MIB, priority=25)
    high.uses(168)
    low.contend()
    assert low.mover.frozen
    assert low.limit == 670 + 32
    assert (low.agent / "cgroup.freeze").read_text() == "1\n"
    assert low.told[-1].kind == "freeze"
    assert low.mover.sharing is not None
    assert low.mover.sharing.why == "a wants 300 MiB"
    # It asks for nothing meanwhile.
    low.uses(670, 1)
    assert (low.limit, low.claimed.wants) == (702, 0)
    high.uses(168, 1)
    assert high.limit > 250
    high.uses(100, 1)
    boot_clock.now += FROZEN_LEAST
    low.contend()
    assert not low.mover.frozen
    assert low.kinds() == ["freeze", "thaw"]
    assert (low.agent / "cgroup.freeze").read_text() == "0\n"
    assert low.mover.sharing.why == ""


def test_who_is_told_to_end_is_frozen_for_nobody(start_agent: Start) -> None:
    high = start_agent("a", memory(200), use=100 * MIB, priority=400)
    low = start_agent("b", memory(800), use=670 * MIB, priority=25)
    high.uses(168)
    low.contend()
    assert low.mover.frozen
    low.mover.rest(60.0)
    assert not low.mover.frozen
    low.contend()
    assert not low.mover.frozen
    assert low.kinds() == ["freeze"]


def test_a_freeze_that_the_kernel_refuses_freezes_nobody(start_agent: Start) -> None:
    high = start_agent("a", memory(200), use=100 * MIB, priority=400)
    low = start_agent("b", memory(800), use=670 * MIB, priority=25)
    low.cgroup.refused["cgroup.freeze"] = errno.EACCES
    high.uses(168)
    low.contend()
    low.contend()
    assert not low.mover.frozen
    assert low.kinds() == ["refuse"]
    assert low.limit == 800


def test_a_freeze_whose_limit_is_refused_is_still_told_and_thawed(
    start_agent: Start, boot_clock: Clock
) -> None:
    high = start_agent("a", memory(200), use=100 * MIB, priority=400)
    low = start_agent("b", memory(800), use=670 * MIB, priority=25)
    low.cgroup.refused["memory.max"] = errno.EBUSY
    high.uses(168)
    low.contend()
    assert low.mover.frozen
    assert low.kinds() == ["refuse", "freeze"]
    high.uses(50, 1)
    boot_clock.now += FROZEN_LEAST
    low.contend()
    assert not low.mover.frozen


def test_one_that_somebody_else_froze_is_left_to_them(
    start_agent: Start, boot_clock: Clock, host_slice: FakeSlice
) -> None:
    life = start_agent("a", memory(300), use=100 * MIB)
    (life.agent / "cgroup.freeze").write_text("1\n")
    boot_clock.now += 60
    life.contend()
    assert (life.agent / "cgroup.freeze").read_text() == "1\n"
    assert life.told == []


def test_a_frozen_one_is_thawed_though_somebody_took_its_limit_away(
    start_agent: Start, boot_clock: Clock
) -> None:
    high = start_agent("a", memory(200), use=100 * MIB, priority=400)
    low = start_agent("b", memory(800), use=670 * MIB, priority=25)
    high.uses(168)
    low.contend()
    assert low.mover.frozen
    (low.agent / "memory.max").write_text("max\n")
    low.values["memory_limit"] = None
    high.uses(50, 1)
    boot_clock.now += FROZEN_LEAST
    low.contend()
    assert not low.mover.frozen


def test_the_last_one_meets_its_hard_limit_and_is_told_why(start_agent: Start) -> None:
    life = start_agent("a", memory(1000))
    life.uses(968)
    assert life.mover.wake_at() is not None
    life.contend()
    assert life.mover.wake_at() is None
    assert life.kinds() == ["throttle", "release"]
    assert life.told[-1].why == "wants 1.5 GiB; all agents may have 1000 MiB"
    life.uses(100, 1)
    assert life.mover.wake_at() == 750 * MIB


def test_of_two_that_are_stuck_one_gets_on(start_agent: Start, boot_clock: Clock) -> None:
    one, other = start_agent("a", memory(500)), start_agent("b", memory(500))
    one.uses(468)
    other.uses(468)
    for _ in range(int(PATIENCE / EQUALS_WAIT) + 1):
        boot_clock.now += EQUALS_WAIT
        one.contend()
        other.contend()
    assert "release" not in one.kinds()
    assert other.kinds()[-1] == "release"


def test_what_never_moves_is_not_trimmed_either(start_agent: Start, boot_clock: Clock) -> None:
    """Nobody would ever raise it again."""
    fixed = start_agent("b", memory(700), philosophy=FROZEN, priority=25)
    assert fixed.claimed.least == 700 * MIB
    high = start_agent("a", memory(300), priority=400)
    high.uses(268)
    boot_clock.now += 60
    fixed.contend()
    assert (fixed.limit, fixed.told) == (700, [])


def test_a_smaller_budget_harms_nobody_that_does_not_grow(
    start_agent: Start, monkeypatch: pytest.MonkeyPatch, boot_clock: Clock
) -> None:
    one, other = (
        start_agent("a", memory(500), use=450 * MIB),
        start_agent("b", memory(500), use=450 * MIB),
    )
    monkeypatch.setattr(host, "memory", lambda: 1200 * MIB)
    for _ in range(60):
        boot_clock.now += 1
        for life in (one, other):
            life.contend()
    assert (one.limit, other.limit) == (500, 500)
    assert not one.mover.frozen
    assert not other.mover.frozen


# All together.


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(10, 900), st.floats(0, 4)), min_size=1, max_size=60
    )
)
def test_whatever_they_use_the_sum_of_the_limits_is_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, looks: list[tuple[int, int, float]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tmp_path = tmp_path_factory.mktemp("slice")
        keep_attributes(tmp_path, patch)
        patch.setattr(host, "memory", lambda: 2000 * MIB)
        clock = Clock()
        patch.setattr(time, "clock_gettime", lambda _: clock.now)
        slice = FakeSlice(tmp_path)
        lives = [
            Life(slice, name, memory(256), priority=priority)
            for name, priority in (("a", 400), ("b", 100), ("c", 25))
        ]
        for at, use, seconds in looks:
            clock.now += seconds
            life = lives[at]
            # It comes to its tripwire, and waits there.
            used = min(use, life.limit - 32)
            if not life.mover.frozen:
                life.cgroup.uses(used * MIB)
            life.look("memory", life.cgroup.use, seconds)
            for each in lives:
                each.contend()
            assert sum(each.bytes for each in lives) <= 1000 * MIB
            assert not lives[0].mover.frozen
            for each in lives:
                assert each.cgroup.use <= each.bytes
                # What is told is all that was done.
                moved = [
                    (action.before, action.after)
                    for action in each.told
                    if action.before != action.after and action.kind != "throttle"
                ]
                assert all(one[1] == other[0] for one, other in itertools.pairwise(moved))
                assert not moved or moved[-1][1] == each.bytes
        for life in lives:
            life.close()
