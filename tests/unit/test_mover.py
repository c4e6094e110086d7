"""Elastic limits of one agent, on a folder in place of its cgroup: CPU, processes, disks, and what a run begins with."""

from __future__ import annotations

import errno

import pytest
from fake_agent import Life, Start
from fake_slice import MIB

from agentres.model.limits import IoMax, Limits, Range
from agentres.policy.prediction import Forecast, Prediction
from agentres.policy.scaling import FROZEN

# CPU, processes, disks.


CPU = Limits(cpu=1.0, ranges={"cpu": Range(0.1, 4.0)})


def test_the_burst_of_cpu_comes_after_a_raise_and_before_a_lowering(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
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


def test_a_kernel_without_cpu_burst_lacks_nothing_else(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
    (life.agent / "cpu.max.burst").unlink()
    life.look("cpu", 0.9)
    assert life.cgroup.writes == [("cpu.max", "150000 100000")]
    assert life.kinds() == ["raise"]
    assert life.values["cpu_limit"] == 1.5


def test_a_burst_that_is_refused_keeps_no_raise_from_counting(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
    life.cgroup.refused["cpu.max.burst"] = errno.EINVAL
    life.look("cpu", 0.9)
    assert (life.kinds(), life.values["cpu_limit"]) == (["raise"], 1.5)
    assert [setting.file for setting in life.actuator.lines] == ["cpu.max"]


def test_throttling_raises_cpu_whatever_the_mean_of_its_use(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
    life.look("cpu", 0.3)
    life.values.update(nr_periods=100, nr_throttled=20)
    life.look("cpu", 0.3, 1)
    assert life.kinds() == ["raise"]
    assert life.told[0].rule == "burst"


def test_cpu_needs_no_room_and_no_mark(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
    assert life.mover.sharing is None
    assert life.mover.wake_at() is None


def test_processes(start_agent: Start) -> None:
    life = start_agent(limits=Limits(pids=100, ranges={"pids": Range(16, 1000)}))
    life.look("pids", 90)
    assert life.cgroup.writes == [("pids.max", "150")]
    assert life.values["pids_limit"] == 150


def disk(device: str, read: int = 0, write: int = 0) -> tuple[str, int, int, int, int]:
    return (device, read, write, 0, 0)


@pytest.fixture
def reader(start_agent: Start) -> Life:
    """Reads from two disks at 10 MB/s at the most; what it writes is limited to a fixed rate."""
    lines = (IoMax("8:0", 10_000_000, 5_000_000), IoMax("8:16", 10_000_000, 5_000_000))
    limits = Limits(io_read={"": 10_000_000}, ranges={"io_read": Range(1e6, 1e9)})
    return start_agent(limits=limits, io_max=lines, disks={"": ("8:0", "8:16")})


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
    assert [setting.key for setting in reader.actuator.lines] == ["8:0", "8:16"]
    assert (reader.told[0].resource, reader.told[0].before) == ("io_read", 10_000_000)


def test_a_disk_that_is_refused_leaves_what_stands(reader: Life) -> None:
    reader.cgroup.refused["io.max"] = errno.ENODEV
    for second in range(5):
        read(reader, 9_500_000 * second, 0)
    assert reader.kinds() == ["refuse"]
    assert reader.actuator.lines == []
    reader.cgroup.refused.clear()
    for second in range(5, 80):
        read(reader, 9_500_000 * second, 0)
    assert reader.told[1].before == 10_000_000
    assert reader.cgroup.writes[0][1].startswith("8:0 rbps=15000000 ")


def test_a_request_between_two_looks_is_no_rate(reader: Life) -> None:
    """A notification can come at any moment after a sample: over 2 ms a megabyte looks like 500 MB/s."""
    read(reader, 0, 0)
    read(reader, 1_000_000, 0)
    reader.values["disks"] = (disk("8:0", 2_000_000), disk("8:16"))
    reader.notified = True
    reader.look("disk_read", None, 0.002)
    assert reader.told == []
    reader.look("disk_read", None, 0.1)
    assert reader.told[0].why.startswith("use of 9.8 MB/s")


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
def test_a_run_begins_with_what_the_ones_before_used(
    start_agent: Start, first: int, after: int
) -> None:
    life = start_agent()
    life.mover.begin(forecast("memory", first))
    assert life.limit == after
    assert life.kinds() == ["predict"]


def test_a_prediction_below_what_is_used_by_now_harms_nobody(start_agent: Start) -> None:
    life = start_agent(use=200 * MIB)
    life.mover.begin(forecast("memory", 100 * MIB))
    assert life.limit >= 232


def test_a_prediction_of_what_does_not_move_is_passed_over(start_agent: Start) -> None:
    life = start_agent()
    life.mover.begin(forecast("cpu", 2.0))
    fixed = start_agent("b", philosophy=FROZEN)
    fixed.mover.begin(forecast("memory", 512 * MIB))
    assert (life.told, fixed.told, fixed.limit) == ([], [], 256)


def test_a_prediction_that_is_refused_is_told(start_agent: Start) -> None:
    life = start_agent(limits=CPU)
    life.cgroup.refused["cpu.max"] = errno.EINVAL
    life.mover.begin(forecast("cpu", 2.0))
    assert life.kinds() == ["refuse"]
    assert life.told[0].rule == "prediction"
    life.look("cpu", 0.1, 1)
    assert life.values["cpu_limit"] == 1.0
