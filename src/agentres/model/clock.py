"""Unix times as local time text; pure except for the time zone and the current date."""

from __future__ import annotations

import time


def moment(at: float) -> str:
    """Return the time of day; for another day than today, the date and the time without seconds."""
    local, today = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if local[:3] == today[:3] else "%Y-%m-%d %H:%M", local)


def of_day(at: float, digits: int = 0) -> str:
    """Return the time of day, with that many ``digits`` after the second."""
    part = f".{int(at % 1 * 10**digits):0{digits}}" if digits else ""
    return time.strftime("%H:%M:%S", time.localtime(at)) + part


def date(at: float) -> str:
    """Return date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
