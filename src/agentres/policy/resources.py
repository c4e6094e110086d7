"""The resources that rules can be about: their unit, and how a figure of them is had; pure.

A *level* is what is in use now, a *rate* is how fast a counter rises, an *event* is something that the
kernel counts and that should never happen.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, Literal

    Values = Mapping[str, Any]
    """Field of :class:`agentres.model.stats.Sample` -> figure; None where it is absent."""

LEVEL: Final = "level"
RATE: Final = "rate"
EVENT: Final = "event"

OWN = "own"
"""The group of what is not read from the subject, but known by whoever watches it."""


class Resource(Record):
    """One resource: the unit of its value, its kind, what is read for it and how.

    ``group`` names what a meter has to read (:mod:`agentres.kernel.meter`); ``raw`` takes the figure
    from the values read, a level or a counter; ``limit`` is the field that holds the limit.
    ``of`` are the kinds of subject that have it.
    """

    unit: str
    kind: Literal["level", "rate", "event"]
    group: str
    raw: Callable[[Values], float | None]
    limit: str | None = None
    of: tuple[str, ...] = ("agent", "host", "slice")


def _field(name: str, scale: float = 1.0) -> Callable[[Values], float | None]:
    def raw(values: Values) -> float | None:
        value = values.get(name)
        return None if value is None else float(value) * scale

    return raw


def _sum(*names: str) -> Callable[[Values], float | None]:
    def raw(values: Values) -> float | None:
        total = 0.0
        for name in names:
            value = values.get(name)
            if value is None:
                return None
            total += value
        return total

    return raw


def _disk_written(values: Values) -> float | None:
    """What is billed and what is not; without an io controller what was dirtied."""
    if (billed := values.get("wbytes")) is None:
        return values.get("dirtied_bytes")
    return float(billed + (values.get("unbilled_bytes") or 0))


def _disk_read(values: Values) -> float | None:
    found = values.get("rbytes")
    return values.get("read_bytes") if found is None else float(found)


def _disk(values: Values) -> float | None:
    read, written = _disk_read(values), _disk_written(values)
    return None if read is None or written is None else read + written


_CGROUPS = ("agent", "slice")
_ENDS = ("agent", "host")

RESOURCES = {
    "cpu": Resource("cores", RATE, "cpu", _field("usage_usec", 1e-6), "cpu_limit"),
    "memory": Resource("bytes", LEVEL, "memory", _field("working_set"), "memory_limit"),
    "swap": Resource("bytes", LEVEL, "memory", _field("swap_current")),
    "disk": Resource("bytes/s", RATE, "disk", _disk),
    "disk_read": Resource("bytes/s", RATE, "disk", _disk_read),
    "disk_write": Resource("bytes/s", RATE, "disk", _disk_written),
    "network": Resource("bytes/s", RATE, "network", _sum("rx_bytes", "tx_bytes"), None, _ENDS),
    "network_in": Resource("bytes/s", RATE, "network", _field("rx_bytes"), "net_in_limit", _ENDS),
    "network_out": Resource("bytes/s", RATE, "network", _field("tx_bytes"), "net_out_limit", _ENDS),
    "network_packets": Resource(
        "packets/s", RATE, "network", _sum("rx_packets", "tx_packets"), None, _ENDS
    ),
    "network_drops": Resource(
        "packets/s", RATE, "network", _sum("rx_dropped_packets", "tx_dropped_packets"), None, _ENDS
    ),
    "network_loopback": Resource(
        "bytes/s", RATE, "network", _sum("rx_loopback_bytes", "tx_loopback_bytes"), None, ("agent",)
    ),
    "pids": Resource("count", LEVEL, "pids", _field("pids_current"), "pids_limit"),
    "fds": Resource("count", LEVEL, "fds", _field("fds")),
    "load": Resource("count", LEVEL, "load", _field("load1"), "cpu_limit", ("host",)),
    "cpu_pressure": Resource("fraction", RATE, "pressure", _field("cpu_some_usec", 1e-6)),
    "memory_pressure": Resource("fraction", RATE, "pressure", _field("memory_some_usec", 1e-6)),
    "io_pressure": Resource("fraction", RATE, "pressure", _field("io_some_usec", 1e-6)),
    "oom_kill": Resource("count", EVENT, "events", _field("memory_oom_kill"), None, _CGROUPS),
    "fork_refused": Resource("count", EVENT, "events", _field("pids_max_events"), None, _CGROUPS),
    "drift": Resource("count", LEVEL, OWN, _field("drift"), None, ("agent",)),
    "unreadable": Resource("count", LEVEL, OWN, _field("unreadable")),
    "history": Resource("count", LEVEL, OWN, _field("history"), None, ("agent",)),
    "starved": Resource("count", LEVEL, OWN, _field("starved"), None, ("agent",)),
    "frozen": Resource("count", LEVEL, OWN, _field("frozen"), None, ("agent",)),
    "handlers": Resource("count", EVENT, OWN, _field("handlers"), None, ("agent",)),
}
"""Every resource by the name that rules use.

``network`` leaves loopback out.  ``drift`` is how many limits stand rewritten, and processes moved out, by somebody else; ``unreadable``,
``history`` and ``handlers`` are our own trouble: control files that vanished or hold garbage, a history
that cannot be written, alerts that a handler did not take.  ``starved`` is 1 while an agent needs memory
that the budget has not, ``frozen`` while its processes do not run (cgroup.freeze).
"""
