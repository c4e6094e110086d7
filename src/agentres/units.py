"""What people write for sizes, rates, CPU and durations, and back again; pure.

Sizes: a bare letter and the ``iB`` forms are binary (``512M`` = ``512MiB`` = 512 * 2**20, as in
systemd.resource-control(5) and ``docker run``); ``kB``, ``MB``, ``GB`` are decimal.  Case does not
matter.  Every parser raises :class:`UnitError` with what was expected; "max" is the kernel's word
for "no limit" and ours.
"""

from __future__ import annotations

import re

from agentres.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final, Literal

    Max = Literal["max"]

MAX: Final = "max"

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1, "": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class UnitError(ValueError):
    """Text that is not a quantity of the expected kind."""


def _number(text: str, expected: str) -> float:
    if text.startswith("-"):
        raise UnitError(f"must not be negative; expected {expected}")
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text):
        raise UnitError(f"expected {expected}")
    return float(text)


def parse_size(text: str, total: int | None = None) -> int:
    """Bytes from ``4096``, ``512M``, ``1.5GiB``, ``100MB``, or ``50%`` of ``total`` bytes."""
    expected = "a size such as 512M or 2GiB" + (", or 50% of the host" if total else "")
    if total and text.endswith("%"):
        percent = _number(text[:-1], expected)
        if percent > 100:
            raise UnitError(f"is more than the host has; expected {expected}")
        return int(total * percent / 100)
    match = re.fullmatch(r"(-?[0-9.]+)\s*([kmgtp]?)(i?b)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise UnitError(f"expected {expected}")
    base = 1000 if (match[3] or "").lower() == "b" else 1024
    return int(_number(match[1], expected) * base ** _POWERS[match[2].lower()])


def parse_rate(text: str) -> int:
    """Bytes a second from ``100MB/s``, ``50M``: a size, with or without ``/s``."""
    try:
        return parse_size(text.removesuffix("/s"))
    except UnitError:
        raise UnitError("expected bytes a second such as 50M or 100MB/s") from None


def parse_count(text: str) -> int:
    """A whole number, with an optional decimal ``k`` or ``M`` (``10k`` = 10000)."""
    match = re.fullmatch(r"([0-9]{1,15})([kKM]?)", text.strip())
    if match is None:
        raise UnitError("expected a whole number such as 512")
    return int(match[1]) * {"": 1, "k": 1000, "K": 1000, "M": 1000000}[match[2]]


def parse_cpu(text: str) -> float:
    """Cores from ``1.5``, or ``150%`` of one core (CPUQuota= in systemd.resource-control(5))."""
    expected = "cores such as 1.5, or percent of one core such as 150%"
    percent = text.endswith("%")
    return _number(text[:-1] if percent else text, expected) / (100 if percent else 1)


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``5m``, ``1h30m``, ``500ms``."""
    expected = "a duration such as 90s, 5m or 1h30m"
    if text.startswith("-"):
        raise UnitError(f"must not be negative; expected {expected}")
    parts = re.findall(r"([0-9.]+)([a-z]*)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise UnitError(f"expected {expected}")
    if any(unit not in _SECONDS for _, unit in parts):
        raise UnitError(f"expected {expected}")
    return sum(_number(number, expected) * _SECONDS[unit] for number, unit in parts)


def format_size(size: float) -> str:
    """``312 MiB``, ``1.5 GiB``: binary units, a decimal below 100."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1023.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    digits = 0 if size >= 99.95 or units[0] == "B" else 1
    return f"{size:.{digits}f} {units[0]}"


def format_rate(rate: float) -> str:
    """``100 MB/s``: decimal units, as disks and networks are sold; three significant digits."""
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
