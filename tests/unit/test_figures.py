"""Parsers of the kernel's formats; what was used, from the text of control files."""

from __future__ import annotations

import pytest

from agentres.model.figures import (
    FILES,
    flat_keyed,
    is_populated,
    nested_keyed,
    parse_limit,
    usage,
)
from agentres.model.live_schemas import CurrentUse
from agentres.model.stats import Reading, Sample, Usage
from agentres.policy.resources import RESOURCES
from agentres.readers import fleet, metrics

CPU_STAT = b"""usage_usec 12
user_usec 8
system_usec 4
nr_periods 3
nr_throttled 2
throttled_usec 700
"""


@pytest.mark.parametrize(
    ("data", "value"), {b"0\n": 0, b"4096\n": 4096, b"max\n": None, b"max": None}.items()
)
def test_a_limit_is_a_number_or_max(data: bytes, value: int | None) -> None:
    assert parse_limit(data) == value


@pytest.mark.parametrize("data", [b"", b"\n", b"maximum", b"1.5", b"1 2", b"0x1", b"\0"])
def test_garbage_is_no_limit(data: bytes) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_limit(data)


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        (b"", {}),
        (b"populated 1\nfrozen 0\n", {b"populated": b"1", b"frozen": b"0"}),
        (b"low 0\nhigh max", {b"low": b"0", b"high": b"max"}),
        (b"a 1\na 2\n", {b"a": b"2"}),
    ],
)
def test_flat_keyed_text_is_a_key_and_a_value_a_line(
    data: bytes, pairs: dict[bytes, bytes]
) -> None:
    assert flat_keyed(data) == pairs


@pytest.mark.parametrize("data", [b"populated", b"populated \n", b"a 1 2", b"a=1"])
def test_garbage_is_not_flat_keyed(data: bytes) -> None:
    with pytest.raises(ValueError, match="shorter"):
        flat_keyed(data)


def test_a_cgroup_is_populated_by_the_kernels_word() -> None:
    assert is_populated(b"populated 1\nfrozen 0\n")
    assert not is_populated(b"populated 0\nfrozen 1\n")
    with pytest.raises(LookupError):
        is_populated(b"")


@pytest.mark.parametrize(
    ("data", "table"),
    [
        (b"", {}),
        (
            b"8:0 rbytes=1 wbytes=2\n8:16 rbytes=3\n",
            {b"8:0": {b"rbytes": b"1", b"wbytes": b"2"}, b"8:16": {b"rbytes": b"3"}},
        ),
        (b"8:0 rbps=max wiops=5\n", {b"8:0": {b"rbps": b"max", b"wiops": b"5"}}),
        (b"8:0\n8:16 rios=1", {b"8:0": {}, b"8:16": {b"rios": b"1"}}),
    ],
)
def test_nested_keyed_text_is_a_device_and_its_pairs_a_line(
    data: bytes, table: dict[bytes, dict[bytes, bytes]]
) -> None:
    assert nested_keyed(data) == table


@pytest.mark.parametrize(
    "data",
    [b"8:0 rbytes", b"8:0 8:16 rbytes=1", b"\n", b" \n", b"8:0 rbytes=1\n\n8:16 rbytes=1\n"],
)
def test_garbage_is_not_nested_keyed(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"unpack|sequence"):
        nested_keyed(data)


def test_usage_takes_each_figure_from_its_file() -> None:
    found, garbage = usage(
        {
            "cpu.stat": CPU_STAT,
            "memory.peak": b"1048576\n",
            "memory.events": b"low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
            "pids.peak": b"17\n",
            "pids.events": b"max 3\n",
            "io.stat": b"8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
        }
    )
    assert garbage == {}
    assert found == Usage(
        usage_usec=12,
        user_usec=8,
        system_usec=4,
        nr_throttled=2,
        throttled_usec=700,
        memory_peak=1048576,
        memory_max_events=5,
        memory_oom=2,
        memory_oom_kill=1,
        pids_peak=17,
        pids_max_events=3,
        rbytes=11,
        wbytes=22,
        rios=33,
        wios=44,
    )


def test_figures_of_missing_files_are_none() -> None:
    assert usage({}) == (Usage(), {})


def test_a_figure_that_an_old_kernel_lacks_is_none_beside_the_others() -> None:
    found, garbage = usage({"cpu.stat": b"usage_usec 9\nuser_usec 5\nsystem_usec 4\n"})
    assert (found, garbage) == (Usage(usage_usec=9, user_usec=5, system_usec=4), {})


def test_no_disk_traffic_yet_is_zero() -> None:
    found, _ = usage({"io.stat": b""})
    assert (found.rbytes, found.wbytes, found.rios, found.wios) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cpu.stat", b"usage_usec\n"),
        ("cpu.stat", b"usage_usec max\n"),
        ("memory.peak", b"lots\n"),
        ("memory.peak", b"max\n"),
        ("memory.events", b"max 1\noom x\n"),
        ("pids.peak", b""),
        ("pids.events", b"max max\n"),
        ("io.stat", b"8:0 rbytes=max\n"),
        ("io.stat", b"8:0 rbytes=1\n\n"),
    ],
)
def test_garbage_is_told_by_its_file_and_spoils_no_other(file: str, text: bytes) -> None:
    files = {
        "cpu.stat": b"usage_usec 1\nuser_usec 1\nsystem_usec 0\n",
        "pids.events": b"max 1\n",
        file: text,
    }
    found, garbage = usage(files)
    assert list(garbage) == [file]
    other = found.pids_max_events if file != "pids.events" else found.usage_usec
    assert other == 1


PRESSURE = (
    b"some avg10=0.12 avg60=0.00 avg300=0.00 total=123456\n"
    b"full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
)


def test_pressure_is_told_in_totals() -> None:
    parse = FILES["pressure"]["cpu.pressure"].parse
    assert parse(PRESSURE) == {"cpu_some_usec": 123456, "cpu_full_usec": 7}
    # Before Linux 5.13 nothing was told of full there.
    assert parse(PRESSURE.splitlines(True)[0]) == {"cpu_some_usec": 123456}


@pytest.mark.parametrize(
    "text",
    [b"", b"some", b"some total", b"some total=", b"some total=x\n", b"\n", b"some avg10=1\n"],
)
def test_pressure_that_is_garbage_is_an_error(text: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        FILES["pressure"]["cpu.pressure"].parse(text)


def test_what_names_a_figure_names_a_field() -> None:
    """A figure is declared once; whoever uses one by its name would find out late that there is none."""
    sample = Sample()
    for series in (*metrics.OF_AGENT, *metrics.OF_HOST):
        assert all(value is None for _, value in series.figures(sample)), series.name
    for resource in RESOURCES.values():
        assert resource.raw(sample) is None
        assert resource.limit is None or resource.limit(sample) is None
    fields = {*Sample.__match_args__}
    assert {*CurrentUse.__annotations__} <= fields
    assert {*fleet.DRAWN} <= {*RESOURCES}
    filled = {field for files in FILES.values() for file in files.values() for field in file.fields}
    assert filled <= {*Reading.__match_args__}


def test_a_figure_of_the_end_has_the_name_that_it_had_meanwhile() -> None:
    """But for these: memory.max is a limit in the summary, and a pause no figure of the kernel's."""
    assert {*Usage.__match_args__} - {*Reading.__match_args__} == {
        "memory_max_events", "paused_usec", "pids_peak",
    }  # fmt: skip
