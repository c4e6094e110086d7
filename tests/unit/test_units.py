"""Sizes, rates, counts, CPU and durations: what people write, and what is told back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentres.model import units
from agentres.model.units import UnitError

SIZES = {
    "0": 0,
    "4096": 4096,
    "1b": 1,
    "1k": 1024,
    "1K": 1024,
    "1KiB": 1024,
    "1kB": 1000,
    "512M": 512 * 2**20,
    "512MiB": 512 * 2**20,
    "512mib": 512 * 2**20,
    "100MB": 100_000_000,
    "1.5GiB": 3 * 2**29,
    "2 G": 2 * 2**30,
    " 2G ": 2 * 2**30,
    "1T": 2**40,
    "1P": 2**50,
    ".5k": 512,
    "0.9": 0,
}

NO_NUMBERS = [
    *("", ".", "..", "1.2.3", "+1", "1e3", "1_0", "0x10", "inf", "infinity", "nan"),
    *("\u0663", "\uff11", "\u00b2"),  # digits of other scripts
]
"""What float() takes, or might, and a person does not write."""

HUGE = ["9" * 16, "9" * 308, "9" * 309, "9" * 5000, "0." + "1" * 16, "9" * 305 + ".5"]


@pytest.mark.parametrize("text", [*NO_NUMBERS, *HUGE], ids=lambda text: ascii(text)[:12])
@pytest.mark.parametrize(
    ("parse", "end"),
    [
        (units.parse_size, ""), (units.parse_size, "P"), (lambda t: units.parse_size(t, 1000), "%"),
        (units.parse_rate, "/s"), (units.parse_rate, "PB/s"),
        (units.parse_count, ""), (units.parse_count, "k"),
        (units.parse_cpu, ""), (units.parse_cpu, "%"),
        (units.parse_duration, "s"), (units.parse_duration, "d"),
    ],
    ids=["size", "size P", "share", "rate", "rate PB", "count", "count k", "cpu", "cpu %", "s", "d"],
)  # fmt: skip  # a table
def test_a_number_is_some_digits_and_one_point_at_most(
    parse: Callable[[str], float], end: str, text: str
) -> None:
    with pytest.raises(UnitError, match=r"^expected "):
        parse(text + end)


@pytest.mark.parametrize("text", ["5", "05", "5.", "5.0", "5.000000000000000", "000000000000005"])
def test_a_number_may_have_a_point_and_zeros(text: str) -> None:
    assert units.parse_size(f"{text}k") == 5120
    assert units.parse_cpu(text) == 5.0
    assert units.parse_duration(text) == 5.0


def test_the_largest_numbers_are_exact() -> None:
    assert units.parse_size("9" * 15) == units.parse_count("9" * 15) == 10**15 - 1


NO_SIZES = [
    "",
    " ",
    "max",
    "M",
    "1X",
    "12MM",
    "1.2.3",
    "1 0",
    ".",
    "1e9",
    "0x10",
    "-",
    "1,5G",
    "٣",
    "nan",
    "inf",
]


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_is_binary_unless_it_ends_in_a_decimal_unit(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match="expected a size such as 512M or 2GiB"):
        units.parse_size(text)


def test_a_negative_size_is_refused_as_negative() -> None:
    with pytest.raises(UnitError, match="must not be negative"):
        units.parse_size("-5M")


@pytest.mark.parametrize(("text", "size"), {"0%": 0, "50%": 500, "100%": 1000, "0.15%": 1}.items())
def test_a_percentage_is_of_the_total(text: str, size: int) -> None:
    assert units.parse_size(text, total=1000) == size


@pytest.mark.parametrize("text", ["%", "x%", "-1%", "50%%", "nan%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="or 50% of the host"):
        units.parse_size(text, total=1000)


def test_more_than_all_of_the_host_is_refused() -> None:
    with pytest.raises(UnitError, match="more than the host has"):
        units.parse_size("100.1%", total=1000)


def test_a_percentage_of_nothing_is_no_size() -> None:
    with pytest.raises(UnitError):
        units.parse_size("50%")


@pytest.mark.parametrize(
    ("text", "rate"),
    {
        "50M": 50 * 2**20,
        "50M/s": 50 * 2**20,
        "100MB/s": 100_000_000,
        "100MB": 100_000_000,
        "7": 7,
    }.items(),
)
def test_a_rate_is_a_size_with_or_without_its_second(text: str, rate: int) -> None:
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "/s", "50M/m", "50M/s/s", "-1M/s", "max", "50%"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match="expected bytes a second such as 50M or 100MB/s"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("text", "number"),
    {"0": 0, "512": 512, "007": 7, "10k": 10_000, "10K": 10_000, "3M": 3_000_000, " 5 ": 5}.items(),
)
def test_a_count_is_whole_and_its_units_decimal(text: str, number: int) -> None:
    assert units.parse_count(text) == number


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "-1", "+1", "1m", "1G", "1_000", "max", "٣", "1 k"]
)
def test_what_is_no_count_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match="expected a whole number such as 512"):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("text", "cores"), {"0": 0.0, "2": 2.0, "1.5": 1.5, "150%": 1.5, "0.5%": 0.005}.items()
)
def test_cpu_is_cores_or_percent_of_one_core(text: str, cores: float) -> None:
    assert units.parse_cpu(text) == pytest.approx(cores)


@pytest.mark.parametrize(
    "text", ["", "%", "two", "1,5", "1 0", "150%%", "-1", "-1%", "nan", "inf", "max"]
)
def test_what_is_no_cpu_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match=r"expected cores such as 1\.5, or percent of one core"):
        units.parse_cpu(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    {
        "0": 0,
        "90": 90,
        "90s": 90,
        "5m": 300,
        "5min": 300,
        "1h30m": 5400,
        "1.5h": 5400,
        "2d": 172_800,
        "500ms": 0.5,
        "250us": 0.00025,
    }.items(),
)
def test_a_duration_is_the_sum_of_its_parts_in_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "5M", "-5s", "1h-30m", "1..5s", ".", "max", "1e3s", "5s!"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UnitError, match="expected a duration such as 90s, 5m or 1h30m"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    {
        0: "0 B",
        1023: "1023 B",
        1023.4: "1023 B",
        1023.6: "1.0 KiB",
        99.9 * 1024: "99.9 KiB",
        99.97 * 1024: "100 KiB",
        100 * 1024: "100 KiB",
        1023 * 1024: "1023 KiB",
        2**20 - 1: "1.0 MiB",
        2**30 - 1: "1.0 GiB",
        2**40 - 1: "1.0 TiB",
        1024: "1.0 KiB",
        1536: "1.5 KiB",
        312 * 2**20: "312 MiB",
        2**30: "1.0 GiB",
        5 * 2**40: "5.0 TiB",
        2**52: "4096 TiB",
    }.items(),
)
def test_a_size_is_shown_in_its_largest_binary_unit(size: int, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    {
        0: "0 B/s",
        999: "999 B/s",
        999.4: "999 B/s",
        999.6: "1 kB/s",
        999_499: "999 kB/s",
        999_999: "1 MB/s",
        999_999_999: "1 GB/s",
        999_999_999_999: "1 TB/s",
        5e12: "5 TB/s",
        1000: "1 kB/s",
        1500: "1.5 kB/s",
        100_000_000: "100 MB/s",
        2e9: "2 GB/s",
    }.items(),
)
def test_a_rate_is_shown_in_decimal_units(rate: float, text: str) -> None:
    assert units.format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    {
        0: "0.00 s",
        0.42: "0.42 s",
        9.99: "9.99 s",
        9.996: "10.0 s",
        59.9: "59.9 s",
        59.96: "1 min 0 s",
        119.6: "2 min 0 s",
        12.34: "12.3 s",
        60: "1 min 0 s",
        303: "5 min 3 s",
        3599.6: "1 h 0 min",
        7500: "2 h 5 min",
    }.items(),
)
def test_a_duration_is_shown_with_two_units_at_most(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text
