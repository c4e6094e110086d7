"""Elastic limits of one agent, on a folder in place of its cgroup: what is written, in which order, what is told."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import MEMORY, Clock, Life, memory
from fake_slice import MIB, FakeSlice, keep_attributes
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import host
from agentres.model.limits import IoMax, Limits, Range, Setting
from agentres.policy.contention import EQUALS_WAIT, FROZEN_LEAST, PATIENCE, Step
from agentres.policy.prediction import Forecast, Prediction
from agentres.policy.scaling import FROZEN
from agentres.policy.tripwire import ROOM
from agentres.run.sharing import PAGE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "clock_gettime", lambda _: made.now)
    return made


@pytest.fixture
def slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    """A host of 2000 MiB, of which agents may have half."""
    keep_attributes(tmp_path, monkeypatch)
    monkeypatch.setattr(host, "memory", lambda: 2000 * MIB)
    return FakeSlice(tmp_path)


Start = Callable[..., Life]


@pytest.fixture
def start(slice: FakeSlice, clock: Clock) -> Iterator[Start]:
    lives = []

    def make(name: str = "a", limits: Limits | None = None, **named: Any) -> Life:
        limits = limits or Limits(memory=256 * MIB, ranges=MEMORY)
        lives.append(Life(slice, name, limits, **named))
        return lives[-1]

    yield make
    for life in lives:
        life.close()


# Memory, upward.


def test_a_raise_is_written_and_told(start: Start) -> None:
    life = start()
    life.look("memory", 200 * MIB)
    assert life.limit == 384
    assert life.actuator.written == [Setting("memory.max", str(384 * MIB))]
    (action,) = life.told
    assert {**action, "time": 0, "took": 0} == {
        "kind": "raise",
        "resource": "memory",
        "before": 256 * MIB,
        "after": 384 * MIB,
        "rule": "burst",
        "why": "use of 200 MiB reached 75% of 256 MiB",
        "time": 0,
        "took": 0,
    }
    assert life.claimed.wants == 0


def test_what_is_not_needed_is_not_touched(start: Start) -> None:
    life = start()
    life.uses(100)
    assert (life.cgroup.writes, life.told) == ([], [])


def test_where_there_is_no_room_it_waits_and_says_what_for(start: Start) -> None:
    life = start()
    other = start("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.uses(201, 1)
    life.uses(210, 1)
    assert life.limit == 256
    assert life.kinds() == ["throttle"]  # once
    assert life.told[0]["rule"] == "contention"
    assert life.told[0]["why"] == (
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


def test_what_there_is_is_taken_though_it_is_less_than_is_wanted(start: Start) -> None:
    life = start()
    start("b", memory(704), use=650 * MIB)
    life.uses(250)
    assert life.limit == 296
    assert life.claimed.wants == 384 * MIB
    assert sorted(life.kinds()) == ["raise", "throttle"]


def test_who_needs_less_again_does_not_wait_any_more(start: Start) -> None:
    life = start()
    start("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.uses(100, 1)
    assert life.claimed.wants == 0


def test_a_use_that_is_not_known_changes_nothing(start: Start) -> None:
    life = start()
    start("b", memory(744), use=700 * MIB)
    life.uses(200)
    life.look("memory", None, 1)
    assert life.claimed.wants == 384 * MIB
    assert life.limit == 256


def test_the_time_for_which_it_is_stuck_begins_at_the_tripwire(start: Start, clock: Clock) -> None:
    life = start()
    start("b", memory(744), use=700 * MIB)
    life.uses(200)
    clock.now += 4
    life.uses(224, 1)
    assert life.claimed.since == 5004.0
    clock.now += 4
    life.uses(224, 1)
    assert life.claimed.since == 5004.0


def test_a_raise_that_the_kernel_refuses_is_told_once_and_tried_again(start: Start) -> None:
    life = start()
    life.cgroup.refused["memory.max"] = errno.EINVAL
    life.uses(200)
    life.uses(220, 1)
    (action,) = life.told
    assert (action["kind"], action["before"], action["after"]) == ("refuse", 256 * MIB, 384 * MIB)
    assert f"cannot write '{384 * MIB}' to {life.agent}/memory.max: invalid argument" in action["why"]  # fmt: skip
    assert (life.limit, life.actuator.written) == (256, [])
    life.cgroup.refused.clear()
    life.uses(220, 1)
    assert life.limit == 384
    life.cgroup.refused["memory.max"] = errno.EINVAL
    life.uses(300, 1)
    assert life.kinds() == ["refuse", "raise", "refuse"]


def test_a_slice_that_is_gone_is_a_refusal(start: Start, slice: FakeSlice) -> None:
    life = start()
    os.rename(slice.path, slice.mount / "moved")
    life.look("memory", 200 * MIB)
    assert life.kinds() == ["refuse"]
    os.rename(slice.mount / "moved", slice.path)


def test_the_tripwire_stands_where_a_raise_is_due(start: Start) -> None:
    life = start()
    assert life.elastic.wake_at() == 192 * MIB
    life.values["memory_limit"] = None
    assert life.elastic.wake_at() is None


def test_an_alert_knows_how_far_the_limit_may_go(start: Start) -> None:
    life = start()
    assert life.elastic.ceiling("memory") == 4000 * MIB
    assert life.elastic.ceiling("cpu") is None


# Memory, downward.


def give_back(life: Life, size: int) -> None:
    """A burst, and then so much for long."""
    for seconds in range(1, 120):
        life.uses(size, 1 if seconds > 1 else 20)


def test_what_nobody_uses_goes_back_and_the_others_are_told(start: Start) -> None:
    life, other = start(), start("b")
    assert other.elastic.sharing is not None
    life.uses(300)
    assert life.limit == 576
    other.elastic.sharing.bell.heard()
    give_back(life, 100)
    assert life.limit < 200
    assert "lower" in life.kinds()
    assert os.read(other.elastic.sharing.bell.fd, 4096)
    # The tripwire comes first.
    wrote = life.cgroup.wrote("memory.high", "memory.max")
    assert wrote[-2:] == [
        ("memory.high", str(life.bytes - ROOM // 2)), ("memory.max", str(life.bytes)),
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
        step = Step("trim", str(life.agent), "b wants 1 GiB", use * MIB + ROOM + 5)
        life.elastic._carry_out(step)
        current = int((life.agent / "memory.current").read_text())
        limit = life.bytes
        assert limit == 800 * MIB or limit >= current + ROOM
        assert limit >= min(step.limit, 800 * MIB)
        assert all(int(text) % PAGE == 0 for _, text in life.cgroup.wrote("memory.max"))
        life.close()


def test_page_cache_is_given_back_little_by_little(start: Start) -> None:
    life = start(limits=memory(600))
    life.cgroup.uses(100 * MIB, 200 * MIB)
    step = Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB)
    limits = []
    for _ in range(8):
        life.elastic._carry_out(step)
        limits.append(life.limit)
    assert limits[0] > 150
    assert limits == sorted(limits, reverse=True)
    assert max(int(size) for _, size in life.cgroup.wrote("memory.reclaim")) <= 32 * MIB
    assert limits[-1] <= 170


def test_a_kernel_that_reclaims_nothing_lowers_as_far_as_the_use_allows(start: Start) -> None:
    life = start(limits=memory(600))
    life.cgroup.uses(100 * MIB, 200 * MIB)
    life.cgroup.refused["memory.reclaim"] = errno.EAGAIN
    life.elastic._carry_out(Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB))
    assert life.limit == 332


def test_who_grows_while_its_limit_is_lowered_keeps_it(slice: FakeSlice, start: Start) -> None:
    life = start(limits=memory(600))
    life.cgroup.then["memory.high"] = lambda: life.cgroup.uses(500 * MIB)
    life.elastic._carry_out(Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB))
    assert (life.limit, life.told) == (600, [])


def test_a_lowering_that_the_kernel_refuses_is_told(start: Start) -> None:
    life = start(limits=memory(600))
    life.cgroup.refused["memory.max"] = errno.EBUSY
    step = Step("trim", str(life.agent), "b wants 1 GiB", 150 * MIB)
    for _ in range(3):
        assert life.elastic._carry_out(step) is False
    assert life.kinds() == ["refuse"]
    assert life.limit == 600


# What others ask for.


def test_a_higher_one_gets_what_a_lower_one_does_not_use(start: Start) -> None:
    high = start("a", memory(300), use=200 * MIB, priority=400)
    low = start("b", memory(700), use=100 * MIB, priority=25)
    high.uses(268)
    assert high.limit == 300
    low.contend()
    assert low.limit < 150
    assert low.told[-1]["kind"] == "trim"
    assert low.told[-1]["why"] == "a wants 450 MiB, and 100 MiB are used"
    high.uses(268, 1)
    assert (high.limit, high.claimed.wants) == (450, 0)


def test_one_is_frozen_gives_its_margin_and_goes_on_afterwards(start: Start, clock: Clock) -> None:
    high = start("a", memory(200), use=100 * MIB, priority=400)
    low = start("b", memory(800), use=670 * MIB, priority=25)
    high.uses(168)
    low.contend()
    assert low.elastic.frozen
    assert low.limit == 670 + 32
    assert (low.agent / "cgroup.freeze").read_text() == "1\n"
    assert low.told[-1]["kind"] == "freeze"
    assert low.elastic.sharing is not None
    assert low.elastic.sharing.why == "a wants 300 MiB"
    # It asks for nothing meanwhile.
    low.uses(670, 1)
    assert (low.limit, low.claimed.wants) == (702, 0)
    high.uses(168, 1)
    assert high.limit > 250
    high.uses(100, 1)
    clock.now += FROZEN_LEAST
    low.contend()
    assert not low.elastic.frozen
    assert low.kinds() == ["freeze", "thaw"]
    assert (low.agent / "cgroup.freeze").read_text() == "0\n"
    assert low.elastic.sharing.why == ""


def test_a_freeze_that_the_kernel_refuses_freezes_nobody(start: Start) -> None:
    high = start("a", memory(200), use=100 * MIB, priority=400)
    low = start("b", memory(800), use=670 * MIB, priority=25)
    low.cgroup.refused["cgroup.freeze"] = errno.EACCES
    high.uses(168)
    low.contend()
    low.contend()
    assert not low.elastic.frozen
    assert low.kinds() == ["refuse"]
    assert low.limit == 800


def test_a_freeze_whose_limit_is_refused_is_still_told_and_thawed(
    start: Start, clock: Clock
) -> None:
    high = start("a", memory(200), use=100 * MIB, priority=400)
    low = start("b", memory(800), use=670 * MIB, priority=25)
    low.cgroup.refused["memory.max"] = errno.EBUSY
    high.uses(168)
    low.contend()
    assert low.elastic.frozen
    assert low.kinds() == ["refuse", "freeze"]
    high.uses(50, 1)
    clock.now += FROZEN_LEAST
    low.contend()
    assert not low.elastic.frozen


def test_one_that_somebody_else_froze_is_left_to_them(
    start: Start, clock: Clock, slice: FakeSlice
) -> None:
    life = start("a", memory(300), use=100 * MIB)
    (life.agent / "cgroup.freeze").write_text("1\n")
    clock.now += 60
    life.contend()
    assert (life.agent / "cgroup.freeze").read_text() == "1\n"
    assert life.told == []


def test_a_frozen_one_is_thawed_though_somebody_took_its_limit_away(
    start: Start, clock: Clock
) -> None:
    high = start("a", memory(200), use=100 * MIB, priority=400)
    low = start("b", memory(800), use=670 * MIB, priority=25)
    high.uses(168)
    low.contend()
    assert low.elastic.frozen
    (low.agent / "memory.max").write_text("max\n")
    low.values["memory_limit"] = None
    high.uses(50, 1)
    clock.now += FROZEN_LEAST
    low.contend()
    assert not low.elastic.frozen


def test_the_last_one_meets_its_hard_limit_and_is_told_why(start: Start) -> None:
    life = start("a", memory(1000))
    life.uses(968)
    assert life.elastic.wake_at() is not None
    life.contend()
    assert life.elastic.wake_at() is None
    assert life.kinds() == ["throttle", "release"]
    assert life.told[-1]["why"] == "wants 1.5 GiB; all agents may have 1000 MiB"
    life.uses(100, 1)
    assert life.elastic.wake_at() == 750 * MIB


def test_of_two_that_are_stuck_one_gets_on(start: Start, clock: Clock) -> None:
    one, other = start("a", memory(500)), start("b", memory(500))
    one.uses(468)
    other.uses(468)
    for _ in range(int(PATIENCE / EQUALS_WAIT) + 1):
        clock.now += EQUALS_WAIT
        one.contend()
        other.contend()
    assert "release" not in one.kinds()
    assert other.kinds()[-1] == "release"


def test_what_never_moves_is_not_trimmed_either(start: Start, clock: Clock) -> None:
    """Nobody would ever raise it again."""
    fixed = start("b", memory(700), philosophy=FROZEN, priority=25)
    assert fixed.claimed.least == 700 * MIB
    high = start("a", memory(300), priority=400)
    high.uses(268)
    clock.now += 60
    fixed.contend()
    assert (fixed.limit, fixed.told) == (700, [])


def test_a_smaller_budget_harms_nobody_that_does_not_grow(
    start: Start, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    one, other = start("a", memory(500), use=450 * MIB), start("b", memory(500), use=450 * MIB)
    monkeypatch.setattr(host, "memory", lambda: 1200 * MIB)
    for _ in range(60):
        clock.now += 1
        for life in (one, other):
            life.contend()
    assert (one.limit, other.limit) == (500, 500)
    assert not one.elastic.frozen
    assert not other.elastic.frozen


# CPU, processes, disks.


CPU = Limits(cpu=1.0, ranges={"cpu": Range(0.1, 4.0)})


def test_the_burst_of_cpu_comes_after_a_raise_and_before_a_lowering(start: Start) -> None:
    life = start(limits=CPU)
    life.look("cpu", 0.9)
    for _ in range(300):
        life.look("cpu", 0.05, 1)
    assert life.values["cpu_limit"] < 1
    orders = [file for file, _ in life.cgroup.writes]
    assert orders[:2] == ["cpu.max", "cpu.max.burst"]
    assert orders[-2:] == ["cpu.max.burst", "cpu.max"]
    # The kernel takes no burst above the quota, at no time.
    quota, burst = 100_000, 100_000
    for file, text in life.cgroup.writes:
        if file == "cpu.max":
            quota = int(text.split()[0])
        else:
            burst = int(text)
        assert burst <= quota
    assert life.kinds()[0] == "raise"
    assert life.kinds()[-1] == "lower"


def test_a_kernel_without_cpu_burst_lacks_nothing_else(start: Start) -> None:
    life = start(limits=CPU)
    (life.agent / "cpu.max.burst").unlink()
    life.look("cpu", 0.9)
    assert life.cgroup.writes == [("cpu.max", "150000 100000")]
    assert life.kinds() == ["raise"]
    assert life.values["cpu_limit"] == 1.5


def test_a_burst_that_is_refused_keeps_no_raise_from_counting(start: Start) -> None:
    life = start(limits=CPU)
    life.cgroup.refused["cpu.max.burst"] = errno.EINVAL
    life.look("cpu", 0.9)
    assert (life.kinds(), life.values["cpu_limit"]) == (["raise"], 1.5)
    assert [setting.file for setting in life.actuator.written] == ["cpu.max"]


def test_throttling_raises_cpu_whatever_the_mean_of_its_use(start: Start) -> None:
    life = start(limits=CPU)
    life.look("cpu", 0.3)
    life.values.update(nr_periods=100, nr_throttled=20)
    life.look("cpu", 0.3, 1)
    assert life.kinds() == ["raise"]
    assert life.told[0]["rule"] == "burst"


def test_cpu_needs_no_room_and_no_mark(start: Start) -> None:
    life = start(limits=CPU)
    assert life.elastic.sharing is None
    assert life.elastic.wake_at() is None


def test_processes(start: Start) -> None:
    life = start(limits=Limits(pids=100, ranges={"pids": Range(16, 1000)}))
    life.look("pids", 90)
    assert life.cgroup.writes == [("pids.max", "150")]
    assert life.values["pids_limit"] == 150


def disk(device: str, read: int = 0, write: int = 0) -> tuple[str, int, int, int, int]:
    return (device, read, write, 0, 0)


@pytest.fixture
def reader(start: Start) -> Life:
    """Reads from two disks at 10 MB/s at the most; what it writes is limited to a fixed rate."""
    lines = (IoMax("8:0", 10_000_000, 5_000_000), IoMax("8:16", 10_000_000, 5_000_000))
    limits = Limits(io_read={"": 10_000_000}, ranges={"io_read": Range(1e6, 1e9)})
    return start(limits=limits, io_max=lines, disks={"": ("8:0", "8:16")})


def read(life: Life, *totals: int) -> None:
    life.values["disks"] = tuple(disk(f"8:{16 * at}", total) for at, total in enumerate(totals))
    life.look("disk_read", None, 1)


def test_each_disk_has_its_line_and_keeps_the_rest_of_it(reader: Life) -> None:
    for second in range(3):
        read(reader, 9_500_000 * second, 0)
    assert reader.cgroup.writes == [
        ("io.max", "8:0 rbps=15000000 wbps=5000000 riops=max wiops=max"),
        ("io.max", "8:16 rbps=15000000 wbps=5000000 riops=max wiops=max"),
    ]
    assert [setting.key for setting in reader.actuator.written] == ["8:0", "8:16"]
    assert (reader.told[0]["resource"], reader.told[0]["before"]) == ("io_read", 10_000_000)


def test_a_disk_that_is_refused_leaves_what_stands(reader: Life) -> None:
    reader.cgroup.refused["io.max"] = errno.ENODEV
    for second in range(5):
        read(reader, 9_500_000 * second, 0)
    assert reader.kinds() == ["refuse"]
    assert reader.actuator.written == []
    reader.cgroup.refused.clear()
    for second in range(5, 80):
        read(reader, 9_500_000 * second, 0)
    assert reader.told[1]["before"] == 10_000_000
    assert reader.cgroup.writes[0][1].startswith("8:0 rbps=15000000 ")


def test_a_request_between_two_looks_is_no_rate(reader: Life) -> None:
    """A notification can come at any moment after a sample: over 2 ms a megabyte looks like 500 MB/s."""
    read(reader, 0, 0)
    read(reader, 1_000_000, 0)
    reader.values["disks"] = (disk("8:0", 2_000_000), disk("8:16"))
    reader.elastic.event = True
    reader.look("disk_read", None, 0.002)
    assert reader.told == []
    reader.look("disk_read", None, 0.1)
    assert reader.told[0]["why"].startswith("use of 9.8 MB/s")


def test_disks_that_are_not_known_are_no_rate(reader: Life) -> None:
    reader.look("disk_read", None, 1)
    reader.look("disk_read", None, 1)
    assert reader.told == []


# What earlier runs used.


def forecast(resource: str, first: float) -> Prediction:
    made = Forecast(**{**dict.fromkeys(Forecast.__match_args__, 0.0), "resource": resource, "first": first, "why": "as before"})  # fmt: skip
    return Prediction(**{**dict.fromkeys(Prediction.__match_args__, ()), "forecasts": (made,)})


@pytest.mark.parametrize(
    ("first", "after"), [(512 * MIB, 512), (160 * MIB, 160), (2000 * MIB, 1000)]
)
def test_a_run_begins_with_what_the_ones_before_used(start: Start, first: int, after: int) -> None:
    life = start()
    life.elastic.begin(forecast("memory", first))
    assert life.limit == after
    assert life.kinds() == ["predict"]


def test_a_prediction_below_what_is_used_by_now_harms_nobody(start: Start) -> None:
    life = start(use=200 * MIB)
    life.elastic.begin(forecast("memory", 100 * MIB))
    assert life.limit >= 232


def test_a_prediction_of_what_does_not_move_is_passed_over(start: Start) -> None:
    life = start()
    life.elastic.begin(forecast("cpu", 2.0))
    fixed = start("b", philosophy=FROZEN)
    fixed.elastic.begin(forecast("memory", 512 * MIB))
    assert (life.told, fixed.told, fixed.limit) == ([], [], 256)


def test_a_prediction_that_is_refused_is_told(start: Start) -> None:
    life = start(limits=CPU)
    life.cgroup.refused["cpu.max"] = errno.EINVAL
    life.elastic.begin(forecast("cpu", 2.0))
    assert life.kinds() == ["refuse"]
    assert life.told[0]["rule"] == "prediction"
    life.look("cpu", 0.1, 1)
    assert life.values["cpu_limit"] == 1.0


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
            if not life.elastic.frozen:
                life.cgroup.uses(used * MIB)
            life.look("memory", life.cgroup.use, seconds)
            for each in lives:
                each.contend()
            assert sum(each.bytes for each in lives) <= 1000 * MIB
            assert not lives[0].elastic.frozen
            for each in lives:
                assert each.cgroup.use <= each.bytes
                # What is told is all that was done.
                moved = [
                    (action["before"], action["after"])
                    for action in each.told
                    if action["before"] != action["after"] and action["kind"] != "throttle"
                ]
                assert all(one[1] == other[0] for one, other in itertools.pairwise(moved))
                assert not moved or moved[-1][1] == each.bytes
        for life in lives:
            life.close()
