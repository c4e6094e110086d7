"""Limits as data: their control files, their order, and the lines of io.max."""

from __future__ import annotations

import pytest

from agentres.model.limits import (
    EVERY_DISK,
    HINTS,
    LIMIT_SPECS,
    MEMORY_LEAST,
    MEMORY_START,
    ControlLine,
    Host,
    IoMax,
    LimitError,
    Limits,
    Range,
    cpu_hints,
    defaults,
    io_max_lines,
    page_align,
    read_limits,
)
from agentres.model.units import MAX


def written(limits: Limits) -> list[tuple[str, str]]:
    return [(line.file, line.text) for line in limits.lines()]


def test_unset_limits_write_nothing() -> None:
    assert Limits().lines() == []


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (Limits(cpu=1.5), [("cpu.max", "150000 100000")]),
        (Limits(cpu=0.01), [("cpu.max", "1000 100000")]),
        (Limits(cpu=MAX), [("cpu.max", "max 100000")]),
        (Limits(memory=4096), [("memory.oom.group", "0"), ("memory.max", "4096")]),
        (Limits(memory=MAX), [("memory.oom.group", "0"), ("memory.max", "max")]),
        (Limits(swap=0), [("memory.swap.max", "0")]),
        (Limits(swap=MAX), [("memory.swap.max", "max")]),
        (Limits(cpuset="0-3,8"), [("cpuset.cpus", "0-3,8")]),
        (Limits(cpuset=2), []),  # they are chosen at the launch
        (Limits(cpuset=MAX), []),
        (Limits(pids=512), [("pids.max", "512")]),
        (Limits(pids=MAX), [("pids.max", "max")]),
        (Limits(nofile=1000), []),
    ],
    ids=repr,
)
def test_each_limit_becomes_its_control_file(limits: Limits, files: list[tuple[str, str]]) -> None:
    assert written(limits) == files


def test_an_io_line_names_all_four_rates_and_is_keyed_by_its_device() -> None:
    (line,) = Limits().lines([IoMax("8:0", wbps=5)])
    assert line == ControlLine("io.max", "8:0 rbps=max wbps=5 riops=max wiops=max", key="8:0")


@pytest.mark.parametrize(
    ("file", "controller"),
    {"memory.swap.max": "memory", "cpu.max": "cpu", "io.max": "io", "pids.max": "pids"}.items(),
)
def test_a_setting_knows_its_controller(file: str, controller: str) -> None:
    assert ControlLine(file, "max").controller == controller


GIB = 2**30


def test_defaults_start_modestly_and_may_grow_to_four_fifths_of_the_host() -> None:
    assert defaults(Host(cpus=4, memory=10 * GIB)) == Limits(
        cpu=1.0,
        memory=256 * 2**20,
        swap=0,
        pids=512,
        io_read={EVERY_DISK: 100_000_000},
        io_write={EVERY_DISK: 100_000_000},
        nofile=1000,
        net_in=100_000_000,
        net_out=100_000_000,
        ranges={"cpu": Range(0.1, 3.2), "memory": Range(32 * 2**20, 8 * GIB)},
    )


def test_the_share_of_the_host_that_defaults_grow_to_can_be_another() -> None:
    ranges = defaults(Host(cpus=4, memory=10 * GIB), share=0.5).ranges
    assert (ranges["cpu"].most, ranges["memory"].most) == (2, 5 * GIB)


@pytest.mark.parametrize("memory", [2 * MEMORY_START, 2**30 + 1, 16 * 2**30 + 12345])
def test_default_memory_is_whole_pages(memory: int) -> None:
    most = defaults(Host(cpus=1, memory=memory)).ranges["memory"].most
    assert most % 4096 == 0
    assert 0 <= memory * 0.8 - most < 4096


@pytest.mark.parametrize("memory", [10 * 4096, MEMORY_LEAST, MEMORY_START, 300 << 20])
@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("share", [0.01, 0.8, 1.0])
def test_defaults_fit_a_small_host(memory: int, cpus: int, share: float) -> None:
    limits = defaults(Host(cpus, memory), share)
    assert isinstance(limits.memory, int)
    assert isinstance(limits.cpu, float)
    assert limits.memory <= memory * share
    assert 0 < limits.cpu <= cpus
    for key, between in limits.ranges.items():
        assert between.least <= getattr(limits, key) <= between.most


def test_an_elastic_cpu_may_save_up_one_period() -> None:
    fixed = [("cpu.max", "150000 100000")]
    assert written(Limits(cpu=1.5, ranges={"memory": Range(1, 2)})) == fixed
    elastic = Limits(cpu=1.5, ranges={"cpu": Range(0.5, 4)})
    # In this order: the kernel takes no burst above the quota.
    assert written(elastic) == [*fixed, ("cpu.max.burst", "150000")]
    assert [line.optional for line in elastic.lines()] == [False, True]


def test_a_range_changes_no_other_control_file() -> None:
    ranges = {"memory": Range(1, 2), "pids": Range(1, 2), "io_read": Range(1, 2)}
    limits = Limits(memory=4096, pids=2)
    assert limits.but(ranges=ranges).lines() == limits.lines()


HOST = Host(cpus=4, memory=8 * GIB)


def test_what_is_not_written_is_the_standards() -> None:
    standard = defaults(HOST)
    assert read_limits({}, HOST, standard) == standard
    found = read_limits({"pids": "7"}, HOST, standard)
    assert found == standard.but(pids=7)
    assert standard == defaults(HOST)


@pytest.mark.parametrize("key", LIMIT_SPECS)
@pytest.mark.parametrize("text", ["", "x", ":", "1:", ":1", "max:1", "-1", "1:2:3", "inf", "nan"])
def test_a_text_that_is_no_limit_is_told_with_its_key(key: str, text: str) -> None:
    with pytest.raises(LimitError) as refused:
        read_limits({key: text}, HOST, Limits())
    assert (refused.value.key, refused.value.text) == (key, text)
    assert str(refused.value)


@pytest.mark.parametrize("key", [key for key, one in LIMIT_SPECS.items() if one.example])
def test_the_example_of_a_range_is_one(key: str) -> None:
    between = read_limits({key: LIMIT_SPECS[key].example}, HOST, Limits()).ranges[key]
    assert between.least < between.most


@pytest.mark.parametrize(("size", "aligned"), {0: 0, 4095: 0, 4096: 4096, 8191: 4096}.items())
def test_page_align_rounds_down(size: int, aligned: int) -> None:
    assert page_align(size, page=4096) == aligned


def test_page_align_takes_other_page_sizes() -> None:
    assert page_align(100_000, page=65536) == 65536


def test_default_memory_is_whole_pages_of_the_host() -> None:
    assert defaults(Host(cpus=1, memory=10 * 65536 + 40960, page=65536)).memory == 8 * 65536
    large = defaults(Host(cpus=1, memory=GIB + 40960, page=65536))
    assert large.ranges["memory"].most % 65536 == 0


def test_disk_rates_are_under_their_names_in_io_max() -> None:
    limits = Limits(
        io_read={"/a": 1}, io_write={"/b": 2}, io_read_iops={"/c": 3}, io_write_iops={"/d": 4}
    )
    rates = {"rbps": {"/a": 1}, "wbps": {"/b": 2}, "riops": {"/c": 3}, "wiops": {"/d": 4}}
    assert limits.disk_rates == rates


def test_named_devices_are_those_with_a_rate_of_their_own() -> None:
    limits = Limits(io_read={EVERY_DISK: 1, "/dev/a": 2}, io_write_iops={"/b": 3})
    assert limits.named_devices == {"/dev/a", "/b"}


@pytest.mark.parametrize(
    ("limits", "every"),
    [
        (Limits(), False),
        (Limits(io_read={EVERY_DISK: 5}), True),
        (Limits(io_write_iops={EVERY_DISK: 5}), True),
        (Limits(io_read={EVERY_DISK: MAX}), False),
        (Limits(io_read={"/dev/a": 5}), False),
    ],
    ids=repr,
)
def test_every_disk_is_limited_only_by_a_rate_without_a_device(limits: Limits, every: bool) -> None:
    assert limits.limits_every_disk is every


@pytest.mark.parametrize(
    ("limits", "lines"),
    [
        (Limits(), ()),
        (Limits(io_read={EVERY_DISK: 5}), (IoMax("8:0", rbps=5), IoMax("8:16", rbps=5))),
        (
            Limits(io_read={EVERY_DISK: 5, "/a": 7}),
            (IoMax("8:0", rbps=7), IoMax("8:16", rbps=5)),
        ),
        (Limits(io_read={EVERY_DISK: 5, "/a": MAX}), (IoMax("8:16", rbps=5),)),
        (Limits(io_read={EVERY_DISK: MAX}), ()),
        (
            Limits(
                io_read={"/a": 1},
                io_write={"/a": 2},
                io_read_iops={"/a": 3},
                io_write_iops={"/a": 4},
            ),
            (IoMax("8:0", 1, 2, 3, 4),),
        ),
        (Limits(io_write={"/both": 9}), (IoMax("8:0", wbps=9), IoMax("9:1", wbps=9))),
    ],
    ids=repr,
)
def test_a_rate_of_its_own_beats_the_rate_for_every_disk(
    limits: Limits, lines: tuple[IoMax, ...]
) -> None:
    named = {"/a": ["8:0"], "/both": ["9:1", "8:0"]}
    assert io_max_lines(limits, ["8:16", "8:0"], named) == lines


def test_every_disk_may_be_an_iterator() -> None:
    limits = Limits(io_read={EVERY_DISK: 1}, io_write={EVERY_DISK: 2})
    assert io_max_lines(limits, iter(["8:0"]), {}) == (IoMax("8:0", rbps=1, wbps=2),)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(cpu=0.2), "1"),
        (Limits(cpu=2.0), "2"),
        (Limits(cpu=2.5), "3"),
        (Limits(cpu=1.0, ranges={"cpu": Range(1, 2.5)}), "3"),
        (Limits(cpu=3.5), ""),  # as many as there are
        (Limits(cpuset="0,2"), "2"),
        (Limits(cpu=1.0, cpuset="0-2"), "1"),
        (Limits(cpu=2.5, cpuset="0"), "1"),
        (Limits(cpu=2.5, cpuset="0-3"), "3"),
        (Limits(cpuset="0-3"), ""),
        (Limits(cpuset=MAX), ""),
        (Limits(cpu=MAX), ""),
        (Limits(), ""),
    ],
)
def test_runtimes_are_told_whole_processors_and_no_more_than_there_are(limits: Limits, told: str) -> None:  # fmt: skip
    assert cpu_hints(limits, 4) == (dict.fromkeys(HINTS, told) if told else {})
