"""A meter over a folder of control files: what it reads, and what it does when one is not right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentres.kernel import network
from agentres.kernel.meter import GROUPS, Meter
from agentres.model import figures
from agentres.model.stats import Reading, Sample

FILES = {
    "cpu.stat": "usage_usec 500\nuser_usec 300\nsystem_usec 200\nnr_periods 7\nnr_throttled 2\nthrottled_usec 90\n",
    "memory.current": "100000\n",
    "memory.stat": "anon 1\nfile 2\nfile_dirty 0\nfile_writeback 0\ninactive_anon 5\ninactive_file 40000\nactive_file 3\n",
    "memory.peak": "200000\n",
    "memory.swap.current": "0\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n254:0 rbytes=10 wbytes=20 rios=30 wios=40 dbytes=0 dios=0\n",
    "pids.current": "3\n",
    "pids.events": "max 5\n",
    "pids.events.local": "max 5\n",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=13\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=12\n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=15\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=14\n",
    "cpu.max": "150000 100000\n",
    "memory.max": "1048576\n",
    "pids.max": "max\n",
    "cgroup.stat": "nr_descendants 1\nnr_dying_descendants 0\n",
    "main/cgroup.procs": "",
}

FIELDS = {
    "cpu.stat": {"usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"},
    "memory.current": {"memory_current", "working_set"},
    "memory.stat": {"working_set"},
    "memory.peak": {"memory_peak"},
    "memory.swap.current": {"swap_current"},
    "memory.events": {"memory_high", "memory_max", "memory_oom", "memory_oom_kill"},
    "io.stat": {"rbytes", "wbytes", "rios", "wios", "disks"},
    "pids.current": {"pids_current"},
    "pids.events": {"pids_max_events"},
    "cpu.pressure": {"cpu_some_usec", "cpu_full_usec"},
    "memory.pressure": {"memory_some_usec", "memory_full_usec"},
    "io.pressure": {"io_some_usec", "io_full_usec"},
    "cpu.max": {"cpu_limit"},
    "memory.max": {"memory_limit"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "main/cgroup.procs").write_text(f"{os.getpid()}\n")
    return tmp_path


def read_all(folder: Path) -> tuple[Sample, Meter]:
    meter = Meter(str(folder))
    for group in GROUPS:
        meter.read(group)
    sample = meter.sample()
    meter.close()
    return sample, meter


def test_a_look_between_two_samples_does_not_hide_that_something_ran(folder: Path) -> None:
    meter = Meter(str(folder))
    meter.sample()
    before = meter.reading.fds
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    (folder / "cpu.stat").write_text(FILES["cpu.stat"].replace("500", "900"))
    try:
        meter.read("cpu")  # as a notification asks for it
        assert meter.sample().fds == before + 20
    finally:
        for fd in opened:
            os.close(fd)
        meter.close()


def test_a_sample_of_everything(folder: Path) -> None:
    sample, meter = read_all(folder)
    assert not meter.unreadable
    assert (sample.usage_usec, sample.nr_throttled, sample.throttled_usec) == (500, 2, 90)
    assert (sample.memory_current, sample.working_set, sample.memory_peak) == (
        100000,
        60000,
        200000,
    )
    assert (sample.memory_high, sample.memory_oom_kill, sample.pids_max_events) == (1, 4, 5)
    assert (sample.rbytes, sample.wbytes, sample.rios, sample.wios) == (11, 22, 33, 44)
    assert sample.disks == (("8:0", 1, 2, 3, 4), ("254:0", 10, 20, 30, 40))
    assert (sample.cpu_some_usec, sample.io_full_usec) == (11, 14)
    assert (sample.cpu_limit, sample.memory_limit, sample.pids_limit) == (1.5, 1048576, None)
    assert sample.fds == len(os.listdir("/proc/self/fd")) or (sample.fds or 0) > 0


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_that_is_not_there_leaves_its_figures_absent_and_is_no_trouble(
    folder: Path, name: str
) -> None:
    (folder / name).unlink()
    whole = read_all(folder)[0]
    assert {f for f in FIELDS[name] if getattr(whole, f) is not None} == set()
    assert read_all(folder)[1].unreadable == {}


GARBAGE = ["", "garbage", "x y\n", "\0\0", "some total=\n", "-\n"]


@pytest.mark.parametrize(
    ("name", "garbage"),
    # Where no device has done anything io.stat is empty.
    [(name, text) for name in FIELDS for text in GARBAGE if (name, text) != ("io.stat", "")],
)
def test_garbage_is_absent_and_told(folder: Path, name: str, garbage: str) -> None:
    meter = Meter(str(folder))
    for group in GROUPS:
        meter.read(group)
    assert not meter.unreadable
    (folder / name).write_text(garbage)
    for group in GROUPS:
        meter.read(group)
    assert {f for f in FIELDS[name] if getattr(meter.reading, f) is not None} == set()
    assert list(meter.unreadable) == [name]
    (folder / name).write_text(FILES[name])
    for group in GROUPS:
        meter.read(group)
    assert not meter.unreadable
    assert {f for f in FIELDS[name] if getattr(meter.reading, f) is None} == set()
    meter.close()


def test_each_figure_is_one_of_a_reading() -> None:
    """A reading is made of all of them, in their order."""
    told = {
        field
        for group in figures.FILES.values()
        for file in group.values()
        for field in file.fields
    }
    assert told | set(network.FIELDS) <= set(Reading.__match_args__)


def test_what_has_not_moved_is_not_read_again(folder: Path) -> None:
    meter = Meter(str(folder))
    meter.sample()
    (folder / "memory.stat").write_text(FILES["memory.stat"].replace("40000", "50000"))
    assert meter.sample().working_set == 60000
    (folder / "cpu.stat").write_text(FILES["cpu.stat"].replace("usage_usec 500", "usage_usec 501"))
    assert meter.sample().working_set == 50000
    meter.close()


def test_files_of_nested_cgroups_are_counted(folder: Path) -> None:
    (folder / "cgroup.procs").write_text("")
    nested = folder / "main/nested"
    nested.mkdir()
    (nested / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (folder / "main/cgroup.procs").write_text("")
    (folder / "cgroup.stat").write_text("nr_descendants 2\nnr_dying_descendants 0\n")
    sample, meter = read_all(folder)
    assert meter.pids == [os.getpid()]
    assert sample.fds
    assert sample.fds > 0


def test_a_process_that_has_ended_counts_nothing(folder: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    (folder / "main/cgroup.procs").write_text(f"{gone}\n")
    sample, meter = read_all(folder)
    assert sample.fds == 0
    assert not meter.unreadable


# What was at the most between two samples.


def peaked(folder: Path, **text: object) -> None:
    for name, value in text.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def metered(folder: Path) -> Iterator[Meter]:
    """Peaks in plain files, which nothing starts anew but a test."""
    peaked(folder, memory__peak=100000, memory__swap__peak=0, pids__peak=3)
    meter = Meter(str(folder), peaks=True)
    meter.read("events")
    yield meter
    meter.close()


def most(sample: Sample) -> tuple[int | None, ...]:
    return sample.memory_most, sample.working_set_most, sample.swap_most, sample.pids_most


def test_a_peak_is_told_by_the_next_sample_and_by_no_other(folder: Path, metered: Meter) -> None:
    assert most(metered.sample()) == (100000, 60000, 0, 3)
    peaked(folder, memory__peak=250000, memory__swap__peak=7, memory__current=100001, pids__peak=9)
    assert most(metered.sample()) == (250000, 60001 + 149999, 7, 9)
    peaked(folder, memory__current=100002, memory__peak=100002, memory__swap__peak=0)
    assert most(metered.sample()) == (100002, 60002, 0, 3)


def test_where_nothing_has_run_the_most_is_what_is_now(folder: Path, metered: Meter) -> None:
    peaked(folder, memory__peak=250000)
    assert metered.sample().memory_most == 250000
    assert most(metered.sample()) == (100000, 60000, 0, 3)


def test_cache_that_was_taken_back_is_no_demand(folder: Path, metered: Meter) -> None:
    events = (folder / "memory.events").read_text()
    peaked(folder, memory__peak=250000, memory__events=events.replace("high 1", "high 2").strip())
    metered.read("events")  # as whoever hears of it does
    sample = metered.sample()
    assert (sample.memory_most, sample.working_set_most) == (250000, 60000)


def test_a_kernel_without_peaks_leaves_what_is_now(folder: Path) -> None:
    (folder / "memory.peak").unlink()
    meter = Meter(str(folder), peaks=True)
    assert most(meter.sample()) == (None, None, None, None)
    meter.close()
