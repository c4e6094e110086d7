"""Unix times as the clock here shows them; pure but for the time zone."""

from __future__ import annotations

import time


def moment(at: float) -> str:
    """The time of day; the day as well, and no seconds, where it is not today."""
    local, today = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if local[:3] == today[:3] else "%Y-%m-%d %H:%M", local)


def of_day(at: float, digits: int = 0) -> str:
    """The time of day, with so many digits of its second."""
    part = f".{int(at % 1 * 10**digits):0{digits}}" if digits else ""
    return time.strftime("%H:%M:%S", time.localtime(at)) + part


def date(at: float) -> str:
    """Day and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
