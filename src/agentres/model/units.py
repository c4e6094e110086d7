"""Parse what users write for sizes, rates, CPU and durations, and format it again; pure.

Sizes: a bare letter and the ``iB`` forms are binary (``512M`` = ``512MiB`` = 512 * 2**20, as in
systemd.resource-control(5) and ``docker run``); ``kB``, ``MB``, ``GB`` are decimal.  Case does not
matter.  Every parser raises :class:`UnitError`, which says what was expected.  "max" means "no
limit", as in the kernel.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, Literal

    Max = Literal["max"]

MAX: Final = "max"

ABSENT = "-"
"""What stands in a table where a value is not known."""

NEVER = float("inf")
"""Seconds until an event that never comes."""

PRIORITY_MAX = 1000
"""The highest priority.  A priority is a weight; the normal one is 100."""

# No regular expressions: module re is a tenth of the supervisor.
_DIGITS = "0123456789"
_BLANKS = " \t\n\r\f\v"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class UnitError(ValueError):
    """Text that is not a quantity of the expected kind."""


def _number(text: str, expected: str) -> float:
    if text.startswith("-"):
        raise UnitError(f"must not be negative; expected {expected}")
    whole, _, part = text.partition(".")
    if not whole + part or _run(whole + part, _DIGITS)[1] or max(len(whole), len(part)) > _LONGEST:
        raise UnitError(f"expected {expected}")
    return float(text)


_LONGEST = 15  # digits: as many as a float holds exactly


def _run(text: str, of: str) -> tuple[str, str]:
    """Split the text after its leading characters that are in ``of``."""
    rest = text.lstrip(of)
    return text[: len(text) - len(rest)], rest


def parse_size(text: str, total: int | None = None) -> int:
    """Return bytes from ``4096``, ``512M``, ``1.5GiB``, ``100MB``, or ``50%`` of ``total`` bytes."""
    expected = "a size such as 512M or 2GiB" + (", or 50% of the host" if total else "")
    if total and text.endswith("%"):
        percent = _number(text[:-1], expected)
        if percent > 100:
            raise UnitError(f"is more than the host has; expected {expected}")
        return int(total * percent / 100)
    text = text.strip()
    sign = "-" if text.startswith("-") else ""
    number, unit = _run(text.removeprefix(sign), _DIGITS + ".")
    unit = unit.lstrip(_BLANKS)
    # lower() would turn the kelvin sign into an ASCII "k".
    unit = unit.lower() if unit.isascii() else "?"
    power = unit[:1] if unit[:1] in _POWERS else ""
    kind = unit.removeprefix(power)
    if not number or kind not in ("", "b", "ib"):
        raise UnitError(f"expected {expected}")
    base = 1000 if kind == "b" else 1024
    return int(_number(sign + number, expected) * base ** _POWERS[power])


def parse_rate(text: str) -> int:
    """Return bytes a second from ``100MB/s``, ``50M``: a size, with or without ``/s``."""
    try:
        return parse_size(text.removesuffix("/s"))
    except UnitError:
        raise UnitError("expected bytes a second such as 50M or 100MB/s") from None


def parse_count(text: str) -> int:
    """Return a whole number; the suffixes ``k`` and ``M`` are decimal (``10k`` = 10000)."""
    number, unit = _run(text.strip(), _DIGITS)
    times = {"": 1, "k": 1000, "K": 1000, "M": 1000000}.get(unit)
    if times is None or not 1 <= len(number) <= _LONGEST:
        raise UnitError("expected a whole number such as 512")
    return int(number) * times


def parse_cpu(text: str) -> float:
    """Return cores from ``1.5``, or ``150%`` of one core (CPUQuota= in systemd.resource-control(5))."""
    expected = "cores such as 1.5, or percent of one core such as 150%"
    percent = text.endswith("%")
    return _number(text[:-1] if percent else text, expected) / (100 if percent else 1)


def parse_choice(text: str, words: Sequence[str]) -> str:
    """Return the text if it is one of these words."""
    if text not in words:
        *others, last = words
        raise UnitError(f"expected {', '.join(others)} or {last}")
    return text


def parse_duration(text: str) -> float:
    """Return seconds from ``90``, ``90s``, ``5m``, ``1h30m``, ``500ms``."""
    expected = "a duration such as 90s, 5m or 1h30m"
    if text.startswith("-"):
        raise UnitError(f"must not be negative; expected {expected}")
    seconds, rest = 0.0, text
    while rest or not text:
        number, rest = _run(rest, _DIGITS + ".")
        unit, rest = _run(rest, _LETTERS)
        if not number or unit not in _SECONDS:
            raise UnitError(f"expected {expected}")
        seconds += _number(number, expected) * _SECONDS[unit]
    return seconds


def counted(number: int, one: str, many: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def format_size(size: float) -> str:
    """``312 MiB``, ``1.5 GiB``: binary units, one decimal below 100."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1023.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    digits = 0 if size >= 99.95 or units[0] == "B" else 1
    return f"{size:.{digits}f} {units[0]}"


def format_rate(rate: float) -> str:
    """``100 MB/s``: decimal units, as is usual for disks and networks; three significant digits."""
    units = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"]
    while rate >= 999.5 and len(units) > 1:
        rate /= 1000
        units.pop(0)
    return f"{rate:.3g} {units[0]}"


def format_duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``5 min 3 s``, ``2 h 5 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
