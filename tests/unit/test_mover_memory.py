"""One agent's elastic limit of memory, on a folder in place of its cgroup: what is written, in which order, what is told."""

from __future__ import annotations

import errno
import os

import pytest
from fake_agent import Clock, Life, Start, memory
from fake_slice import MIB, FakeSlice, keep_attributes
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import host
from agentres.model.action import Action
from agentres.model.limits import ControlLine
from agentres.policy.contention import Step
from agentres.policy.tripwire import HEADROOM
from agentres.run.sharing import PAGE

# Memory, upward.


def test_a_raise_is_written_and_told(start_agent: Start) -> None:
    life = start_agent()
    life.look("memory", 200 * MIB)
    assert life.limit == 384
    assert life.actuator.lines == [ControlLine("memory.max", str(384 * MIB))]
    (action,) = life.told
    why = "use of 200 MiB reached 75% of 256 MiB"
    assert action.but(time=0.0, took=0.0) == Action(
        "raise", "memory", 256 * MIB, 384 * MIB, "burst", why, 0.0, 0.0
    )
    assert life.claimed.wants == 0


def test_what_is_not_needed_is_not_touched(start_agent: Start) -> None:
    life = start_agent()
    life.uses(100)
    assert (life.cgroup.writes, life.told) == ([], [])


def test_where_there_is_no_room_it_waits_and_says_what_for(start_agent: Start) -> None:
    life = start_agent()
    other = start_agent("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.uses(201, 1)
    life.uses(210, 1)
    assert life.limit == 256
    assert life.kinds() == ["throttle"]  # once
    assert life.told[0].rule == "contention"
    assert life.told[0].why == (
        "384 MiB of memory are needed, 0 B of 1000 MiB are free: b has 744 MiB, a has 256 MiB"
    )
    assert life.claimed.wants == 384 * MIB
    assert other.told == []
    # What it waits for is there: it takes it, and wants no more.
    other.values["memory_limit"] = 500 * MIB
    (other.agent / "memory.max").write_text(f"{500 * MIB}\n")
    life.uses(210, 1)
    assert (life.limit, life.claimed.wants) == (384, 0)
    assert life.kinds() == ["throttle", "raise"]


def test_what_there_is_is_taken_though_it_is_less_than_is_wanted(start_agent: Start) -> None:
    life = start_agent()
    start_agent("b", memory(704), use=650 * MIB)
    life.uses(250)
    assert life.limit == 296
    assert life.claimed.wants == 384 * MIB
    assert sorted(life.kinds()) == ["raise", "throttle"]


def test_who_needs_less_again_does_not_wait_any_more(start_agent: Start) -> None:
    life = start_agent()
    start_agent("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.uses(100, 1)
    assert life.claimed.wants == 0


def test_a_use_that_is_not_known_changes_nothing(start_agent: Start) -> None:
    life = start_agent()
    start_agent("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.look("memory", None, 1)
    assert life.claimed.wants == 384 * MIB
    assert life.limit == 256


def test_the_time_for_which_it_is_stuck_begins_at_the_tripwire(
    start_agent: Start, boot_clock: Clock
) -> None:
    life = start_agent()
    start_agent("b", memory(744), use=700 * MIB)
    life.uses(200)
    boot_clock.now += 4
    life.uses(224, 1)
    assert life.claimed.since == 5004.0
    boot_clock.now += 4
    life.uses(224, 1)
    assert life.claimed.since == 5004.0


def test_a_raise_that_the_kernel_refuses_is_told_once_and_tried_again(start_agent: Start) -> None:
    life = start_agent()
    life.cgroup.refused["memory.max"] = errno.EINVAL
    life.uses(200)
    life.uses(220, 1)
    (action,) = life.told
    assert (action.kind, action.before, action.after) == ("refuse", 256 * MIB, 384 * MIB)
    assert f"cannot write '{384 * MIB}' to {life.agent}/memory.max: invalid argument" in action.why  # fmt: skip
    assert (life.limit, life.actuator.lines) == (256, [])
    life.cgroup.refused.clear()
    life.uses(220, 1)
    assert life.limit == 384
    life.cgroup.refused["memory.max"] = errno.EINVAL
    life.uses(300, 1)
    assert life.kinds() == ["refuse", "raise", "refuse"]


def test_a_slice_that_is_gone_is_a_refusal(start_agent: Start, host_slice: FakeSlice) -> None:
    life = start_agent()
    os.rename(host_slice.path, host_slice.mount / "moved")
    life.look("memory", 200 * MIB)
    assert life.kinds() == ["refuse"]
    os.rename(host_slice.mount / "moved", host_slice.path)


def test_the_tripwire_stands_where_a_raise_is_due(start_agent: Start) -> None:
    life = start_agent()
    assert life.mover.wake_at() == 192 * MIB
    life.values["memory_limit"] = None
    assert life.mover.wake_at() is None


def test_an_alert_knows_how_far_the_limit_may_go(start_agent: Start) -> None:
    life = start_agent()
    assert life.mover.ceiling("memory") == 4000 * MIB
    assert life.mover.ceiling("cpu") is None


# Memory, downward.


def give_back(life: Life, size: int) -> None:
    """A burst, and then so much for long."""
    for seconds in range(1, 120):
        life.uses(size, 1 if seconds > 1 else 20)


def test_what_nobody_uses_goes_back_and_the_others_are_told(start_agent: Start) -> None:
    life, other = start_agent(), start_agent("b")
    assert other.mover.sharing is not None
    life.uses(300)
    assert life.limit == 576
    other.mover.sharing.bell.heard()
    give_back(life, 100)
    assert life.limit < 200
    assert "lower" in life.kinds()
    assert os.read(other.mover.sharing.bell.fd, 4096)
    # The tripwire comes first.
    wrote = life.cgroup.wrote("memory.high", "memory.max")
    assert wrote[-2:] == [
        ("memory.high", str(life.bytes - HEADROOM // 2)), ("memory.max", str(life.bytes)),
    ]  # fmt: skip


@given(use=st.integers(1, 700), now=st.integers(1, 700), cache=st.integers(0, 700))
def test_a_limit_is_never_lowered_below_what_is_in_use(
    tmp_path_factory: pytest.TempPathFactory, use: int, now: int, cache: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tmp_path = tmp_path_factory.mktemp("slice")
        keep_attributes(tmp_path, patch)
        patch.setattr(host, "memory", lambda: 2000 * MIB)
        life = Life(FakeSlice(tmp_path), "a", memory(800), use * MIB)
        # More is used than whoever decided knew.
        life.cgroup.uses(now * MIB, cache * MIB)
        step = Step("trim", str(life.agent), "b wants 1 GiB", use * MIB + HEADROOM + 5)
        life.mover.carry_out(step)
        current = int((life.agent / "memory.current").read_text())
        limit = life.bytes
        assert limit == 800 * MIB or limit >= current + HEADROOM
        assert limit >= min(step.limit, 800 * MIB)
        assert all(int(text) % PAGE == 0 for _, text in life.cgroup.wrote("memory.max"))
        life.close()


def test_page_cache_is_given_back_little_by_little(start_agent: Start) -> None:
    life = start_agent(limits=memory(600))
    life.cgroup.uses(100 * MIB, 200 * MIB)
    step = Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB)
    limits = []
    for _ in range(8):
        life.mover.carry_out(step)
        limits.append(life.limit)
    assert limits[0] > 150
    assert limits == sorted(limits, reverse=True)
    assert max(int(size) for _, size in life.cgroup.wrote("memory.reclaim")) <= 32 * MIB
    assert limits[-1] <= 170


def test_a_kernel_that_reclaims_nothing_lowers_as_far_as_the_use_allows(start_agent: Start) -> None:
    life = start_agent(limits=memory(600))
    life.cgroup.uses(100 * MIB, 200 * MIB)
    life.cgroup.refused["memory.reclaim"] = errno.EAGAIN
    life.mover.carry_out(Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB))
    assert life.limit == 332


def test_who_grows_while_its_limit_is_lowered_keeps_it(
    host_slice: FakeSlice, start_agent: Start
) -> None:
    life = start_agent(limits=memory(600))
    life.cgroup.then["memory.high"] = lambda: life.cgroup.uses(500 * MIB)
    life.mover.carry_out(Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB))
    assert (life.limit, life.told) == (600, [])


def test_a_lowering_that_the_kernel_refuses_is_told(start_agent: Start) -> None:
    life = start_agent(limits=memory(600))
    life.cgroup.refused["memory.max"] = errno.EBUSY
    step = Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB)
    for _ in range(3):
        assert life.mover.carry_out(step) is False
    assert life.kinds() == ["refuse"]
    assert life.limit == 600
