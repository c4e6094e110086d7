"""CPUs by number: the kernel's lists of them (``0-3,8``, cpuset(7)), and what people write; pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentres.model.units import UnitError

CPUS_MAX = 8192
"""A kernel is built for no more (CONFIG_NR_CPUS)."""


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers in a list, each once, ascending; ValueError where it is none.  White space at its end is the kernel's."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        low, dash, high = part.partition("-")
        first, last = _number(low), _number(high if dash else low)
        if first > last:
            raise ValueError(f"{part} ends before it begins")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) < CPUS_MAX):
        raise ValueError(f"{text!r} is no CPU's number")
    return int(text)


def format_list(cpus: Iterable[int]) -> str:
    """The list of these numbers, as the kernel writes it."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def parse_cpuset(text: str) -> int | str:
    """How many CPUs, where it is a number alone, else the list of them in the kernel's form; UnitError.

    ``3-3`` is CPU 3 alone.
    """
    text = text.strip()
    try:
        if text.isdecimal():
            return _number(text)
        if found := parse_list(text):
            return format_list(found)
    except ValueError:
        pass
    raise UnitError("expected how many CPUs, or a list of them such as 0-3,8 (3-3 is CPU 3 alone)")


def count(cpuset: int | str) -> int:
    """How many CPUs those are."""
    return cpuset if isinstance(cpuset, int) else len(parse_list(cpuset))
