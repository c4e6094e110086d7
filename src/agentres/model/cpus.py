"""CPU numbers: the kernel's CPU lists (``0-3,8``, cpuset(7)), and what users write; pure."""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.model.units import UnitError

if TYPE_CHECKING:
    from collections.abc import Iterable

CPUS_MAX = 8192
"""The most CPUs that a kernel is built for (CONFIG_NR_CPUS)."""


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers in a CPU list, each once, ascending; ValueError if it is not one.

    White space around it is ignored: the kernel ends lists with a newline.
    """
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
    """Return these numbers as a list in the kernel's form."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def parse_cpuset(text: str) -> int | str:
    """Return a count if the text is a single number, else the list in the kernel's form; UnitError.

    ``3-3`` means CPU 3 alone.
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
    """Return how many CPUs those are."""
    return cpuset if isinstance(cpuset, int) else len(parse_list(cpuset))
