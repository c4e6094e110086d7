"""What was used, from the text of control files."""

from __future__ import annotations

import pytest

from agentres.model.figures import FILES, usage
from agentres.model.stats import Usage

CPU_STAT = b"""usage_usec 12
user_usec 8
system_usec 4
nr_periods 3
nr_throttled 2
throttled_usec 700
"""


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
