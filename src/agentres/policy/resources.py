"""The resources that rules can watch: their units, and how to get their figures; pure.

A *level* is what is in use now, a *rate* is how fast a counter rises, an *event* is something that is
counted and should never happen.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Literal

    from agentres.model.stats import Sample

    Figure = Callable[[Sample], float | None]
    """Takes a figure from a sample; None if the sample does not have it."""

LEVEL: Final = "level"
RATE: Final = "rate"
EVENT: Final = "event"

OWN = "own"
"""The group of resources that are not read from the subject: the watcher itself supplies them."""


class Resource(Record):
    """One resource: the unit of its value, its kind, and how to read it.

    ``group`` names what a meter must read (:mod:`agentres.kernel.meter`).  From that, ``figure`` takes
    the level or counter, and ``limit`` the limit.  ``of``: the kinds of subject that have it.
    """

    unit: str
    kind: Literal["level", "rate", "event"]
    group: str
    figure: Figure = lambda at: None
    limit: Figure | None = None
    of: tuple[str, ...] = ("agent", "host", "slice")

    def raw(self, at: Sample) -> float | None:
        """Return the level, or the counter from which the rate is computed; None if it is absent."""
        figure = self.figure(at)
        return None if figure is None else float(figure)


def _sum(*figures: float | None) -> float | None:
    """Return the sum; None if any figure is absent."""
    total = 0.0
    for figure in figures:
        if figure is None:
            return None
        total += figure
    return total


def _seconds(usec: int | None) -> float | None:
    return None if usec is None else usec * 1e-6


def _disk_written(at: Sample) -> float | None:
    """Return billed plus unbilled bytes; without an io controller, dirtied bytes."""
    return at.dirtied_bytes if at.wbytes is None else at.wbytes + (at.unbilled_bytes or 0)


def _disk_read(at: Sample) -> float | None:
    return at.read_bytes if at.rbytes is None else at.rbytes


_CGROUPS = ("agent", "slice")
_ENDS = ("agent", "host")

RESOURCES = {
    "cpu": Resource(
        "cores", RATE, "cpu", lambda at: _seconds(at.usage_usec), lambda at: at.cpu_limit
    ),
    "memory": Resource(
        "bytes", LEVEL, "memory", lambda at: at.working_set, lambda at: at.memory_limit
    ),
    "swap": Resource("bytes", LEVEL, "memory", lambda at: at.swap_current),
    "disk": Resource("bytes/s", RATE, "disk", lambda at: _sum(_disk_read(at), _disk_written(at))),
    "disk_read": Resource("bytes/s", RATE, "disk", _disk_read),
    "disk_write": Resource("bytes/s", RATE, "disk", _disk_written),
    "network": Resource(
        "bytes/s", RATE, "network", lambda at: _sum(at.rx_bytes, at.tx_bytes), of=_ENDS
    ),
    "network_in": Resource(
        "bytes/s", RATE, "network", lambda at: at.rx_bytes, lambda at: at.net_in_limit, _ENDS
    ),
    "network_out": Resource(
        "bytes/s", RATE, "network", lambda at: at.tx_bytes, lambda at: at.net_out_limit, _ENDS
    ),
    "network_packets": Resource(
        "packets/s", RATE, "network", lambda at: _sum(at.rx_packets, at.tx_packets), of=_ENDS
    ),
    "network_drops": Resource(
        "packets/s",
        RATE,
        "network",
        lambda at: _sum(at.rx_dropped_packets, at.tx_dropped_packets),
        of=_ENDS,
    ),
    "network_loopback": Resource(
        "bytes/s",
        RATE,
        "network",
        lambda at: _sum(at.rx_loopback_bytes, at.tx_loopback_bytes),
        of=("agent",),
    ),
    "pids": Resource("count", LEVEL, "pids", lambda at: at.pids_current, lambda at: at.pids_limit),
    "fds": Resource("count", LEVEL, "fds", lambda at: at.fds),
    "nofile": Resource(
        "count", LEVEL, "fds", lambda at: at.fds_most, lambda at: at.nofile_limit, ("agent",)
    ),
    "space": Resource("fraction", LEVEL, OWN, of=("agent",)),
    "load": Resource(
        "count", LEVEL, "load", lambda at: at.load1, lambda at: at.cpu_limit, ("host",)
    ),
    "cpu_pressure": Resource("fraction", RATE, "pressure", lambda at: _seconds(at.cpu_some_usec)),
    "memory_pressure": Resource(
        "fraction", RATE, "pressure", lambda at: _seconds(at.memory_some_usec)
    ),
    "io_pressure": Resource("fraction", RATE, "pressure", lambda at: _seconds(at.io_some_usec)),
    "oom_kill": Resource("count", EVENT, "events", lambda at: at.memory_oom_kill, of=_CGROUPS),
    "fork_refused": Resource("count", EVENT, "events", lambda at: at.pids_max_events, of=_CGROUPS),
    "drift": Resource("count", LEVEL, OWN, of=("agent",)),
    "escaped": Resource("count", LEVEL, OWN, of=("agent",)),
    "unreadable": Resource("count", LEVEL, OWN),
    "history": Resource("count", LEVEL, OWN, of=("agent",)),
    "starved": Resource("count", LEVEL, OWN, of=("agent",)),
    "frozen": Resource("count", LEVEL, OWN, of=("agent",)),
    "stalled": Resource("count", LEVEL, OWN, of=("agent",)),
    "handlers": Resource("count", EVENT, OWN, of=("agent",)),
}
"""Every resource by the name that rules use.

``network`` excludes loopback.  ``nofile`` is the open files of the process that has the most.  ``space`` is the used
fraction of the fullest file system that the agent writes to.  ``drift`` is how many limits another program has rewritten,
``escaped`` how many of the agent's processes are outside its cgroup.  ``unreadable``, ``history`` and ``handlers`` are
troubles of agentres itself: control files that vanished or hold garbage, a history that cannot be written, alerts that a
handler did not take.  ``starved`` is 1 while the agent needs memory that the budget does not have, ``frozen`` while its
processes are frozen (cgroup.freeze), ``stalled`` while all of them wait for memory and nothing grants or reclaims any.
"""
