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
    #: Cores in use.
    "cpu": Resource(
        "cores", RATE, "cpu", lambda at: _seconds(at.usage_usec), lambda at: at.cpu_limit
    ),
    #: The working set: memory without the inactive page cache.
    "memory": Resource(
        "bytes", LEVEL, "memory", lambda at: at.working_set, lambda at: at.memory_limit
    ),
    #: Swap in use.
    "swap": Resource("bytes", LEVEL, "memory", lambda at: at.swap_current),
    #: Read and written, all disks together.
    "disk": Resource("bytes/s", RATE, "disk", lambda at: _sum(_disk_read(at), _disk_written(at))),
    #: Read, all disks together.
    "disk_read": Resource("bytes/s", RATE, "disk", _disk_read),
    #: Written, all disks together.
    "disk_write": Resource("bytes/s", RATE, "disk", _disk_written),
    #: Received and sent, without loopback.
    "network": Resource(
        "bytes/s", RATE, "network", lambda at: _sum(at.rx_bytes, at.tx_bytes), of=_ENDS
    ),
    #: Received, without loopback.
    "network_in": Resource(
        "bytes/s", RATE, "network", lambda at: at.rx_bytes, lambda at: at.net_in_limit, _ENDS
    ),
    #: Sent, without loopback.
    "network_out": Resource(
        "bytes/s", RATE, "network", lambda at: at.tx_bytes, lambda at: at.net_out_limit, _ENDS
    ),
    #: Packets received and sent, without loopback.
    "network_packets": Resource(
        "packets/s", RATE, "network", lambda at: _sum(at.rx_packets, at.tx_packets), of=_ENDS
    ),
    #: Packets dropped instead.
    "network_drops": Resource(
        "packets/s",
        RATE,
        "network",
        lambda at: _sum(at.rx_dropped_packets, at.tx_dropped_packets),
        of=_ENDS,
    ),
    #: Over loopback, where that is free.
    "network_loopback": Resource(
        "bytes/s",
        RATE,
        "network",
        lambda at: _sum(at.rx_loopback_bytes, at.tx_loopback_bytes),
        of=("agent",),
    ),
    #: Processes and threads.
    "pids": Resource("count", LEVEL, "pids", lambda at: at.pids_current, lambda at: at.pids_limit),
    #: Open files of all processes.
    "fds": Resource("count", LEVEL, "fds", lambda at: at.fds),
    #: Open files of the process that has the most, which the alert names.
    "nofile": Resource(
        "count", LEVEL, "fds", lambda at: at.fds_most, lambda at: at.nofile_limit, ("agent",)
    ),
    #: Used share of the fullest file system that the agent writes to ([disks that fill](limits.md#disks-that-fill)).
    "space": Resource("fraction", LEVEL, OWN, of=("agent",)),
    #: Load average of a minute; its limit is the cores.
    "load": Resource(
        "count", LEVEL, "load", lambda at: at.load1, lambda at: at.cpu_limit, ("host",)
    ),
    #: Share of the time in which a task waited for CPU.
    "cpu_pressure": Resource("fraction", RATE, "pressure", lambda at: _seconds(at.cpu_some_usec)),
    #: Share of the time in which a task waited for memory.
    "memory_pressure": Resource(
        "fraction", RATE, "pressure", lambda at: _seconds(at.memory_some_usec)
    ),
    #: Share of the time in which a task waited for a disk.
    "io_pressure": Resource("fraction", RATE, "pressure", lambda at: _seconds(at.io_some_usec)),
    #: Event: a process was killed for memory.
    "oom_kill": Resource("count", EVENT, "events", lambda at: at.memory_oom_kill, of=_CGROUPS),
    #: Event: a fork was refused at the limit of processes.
    "fork_refused": Resource("count", EVENT, "events", lambda at: at.pids_max_events, of=_CGROUPS),
    #: State: limits rewritten by something else.
    "drift": Resource("count", LEVEL, OWN, of=("agent",)),
    #: State: processes of the agent outside of its cgroup.
    "escaped": Resource("count", LEVEL, OWN, of=("agent",)),
    #: State: control files that vanished or hold garbage.
    "unreadable": Resource("count", LEVEL, OWN),
    #: State: the history cannot be written.
    "history": Resource("count", LEVEL, OWN, of=("agent",)),
    #: State: it needs memory that the budget does not have.
    "starved": Resource("count", LEVEL, OWN, of=("agent",)),
    #: State: all its processes are frozen.
    "frozen": Resource("count", LEVEL, OWN, of=("agent",)),
    #: State: for 10 s all its processes have waited for memory, and nothing was given or taken back.
    "stalled": Resource("count", LEVEL, OWN, of=("agent",)),
    #: Event: a handler did not take an alert.
    "handlers": Resource("count", EVENT, OWN, of=("agent",)),
}
"""Every resource by the name that rules use."""
