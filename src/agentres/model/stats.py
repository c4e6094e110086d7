"""Control-file and kernel-log text -> frozen, typed values; pure.

One reader a file *format*, named as in the kernel's cgroup-v2.rst: flat-keyed (``KEY VALUE`` a
line), nested-keyed (``KEY SUB=VALUE ...`` a line), single values.  Text that does not follow its
format raises :class:`StatError`; a figure that the kernel does not give is ``None``, never 0.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX

if TYPE_CHECKING:
    from agentres.model.oom import Footprint
    from agentres.model.units import Max

    Disks = tuple[tuple[str, int, int, int, int], ...]
    """(device, rbytes, wbytes, rios, wios) for each disk."""


class StatError(ValueError):
    """A control file holds what its format does not allow."""


def parse_value(text: str) -> int | Max:
    """A single value: a number or ``max``."""
    text = text.strip()
    if text == MAX:
        return MAX
    try:
        return int(text)
    except ValueError:
        raise StatError(f"expected a number or max, not {text!r}") from None


def parse_flat_keyed(text: str) -> dict[str, int | Max]:
    """``memory.events``, ``cpu.stat``, ``cgroup.events`` and their kin."""
    pairs: dict[str, int | Max] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if not value:
            raise StatError(f"expected KEY VALUE, not {line!r}")
        pairs[key] = parse_value(value)
    return pairs


def parse_nested_keyed(text: str) -> dict[str, dict[str, int | Max]]:
    """``io.stat`` and ``io.max``.  A device without figures (seen in ``io.stat``) has none here."""
    table: dict[str, dict[str, int | Max]] = {}
    for line in text.splitlines():
        key, *fields = line.split() or [""]
        if not key:
            raise StatError("a blank line")
        row: dict[str, int | Max] = {}
        for item in fields:
            name, equals, value = item.partition("=")
            if not equals:
                raise StatError(f"expected SUB=VALUE, not {item!r} in {line!r}")
            row[name] = parse_value(value)
        table[key] = row
    return table


class Sample(Record):
    """What a subject uses at one moment; the fields that count only rise.  None: absent, or, of a limit, none.

    The order is that of the columns of the history.
    """

    # Of the processors, microseconds; throttled by cpu.max in so many periods.
    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    nr_periods: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    # Bytes; the working set is without inactive_file.
    memory_current: int | None = None
    working_set: int | None = None
    memory_peak: int | None = None
    swap_current: int | None = None
    # How often each limit of memory was met, and processes killed.
    memory_high: int | None = None
    memory_max: int | None = None
    memory_oom: int | None = None
    memory_oom_kill: int | None = None
    # What the kernel bills of disks: bytes, operations; and (device, rbytes, wbytes, rios, wios) for each.
    rbytes: int | None = None
    wbytes: int | None = None
    rios: int | None = None
    wios: int | None = None
    disks: Disks | None = None
    # Tasks, refused forks, open files of all processes.
    pids_current: int | None = None
    pids_max_events: int | None = None
    fds: int | None = None
    # The totals of PSI.
    cpu_some_usec: int | None = None
    cpu_full_usec: int | None = None
    memory_some_usec: int | None = None
    memory_full_usec: int | None = None
    io_some_usec: int | None = None
    io_full_usec: int | None = None
    # Bytes of IP, received and sent; neither what was dropped nor loopback is in it.
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    load1: float | None = None
    load5: float | None = None
    load15: float | None = None
    # Cores, bytes, tasks.
    cpu_limit: float | None = None
    memory_limit: int | None = None
    pids_limit: int | None = None
    # More of the network, in bytes and packets: what was delayed is in the whole, and was ahead of its rate.
    rx_packets: int | None = None
    rx_dropped_bytes: int | None = None
    rx_dropped_packets: int | None = None
    rx_loopback_bytes: int | None = None
    rx_loopback_packets: int | None = None
    rx_delayed_bytes: int | None = None
    rx_delayed_packets: int | None = None
    tx_packets: int | None = None
    tx_dropped_bytes: int | None = None
    tx_dropped_packets: int | None = None
    tx_loopback_bytes: int | None = None
    tx_loopback_packets: int | None = None
    tx_delayed_bytes: int | None = None
    tx_delayed_packets: int | None = None
    # Bytes a second.
    net_in_limit: int | None = None
    net_out_limit: int | None = None
    # What its processes read from disks and dirtied; what of the latter went to a disk and is not in wbytes.
    read_bytes: int | None = None
    dirtied_bytes: int | None = None
    unbilled_bytes: int | None = None
    # Open files of the process that has the most, and how many each may have.
    fds_most: int | None = None
    nofile_limit: int | None = None
    # The highest since the sample before, where that was looked at: bytes, tasks.
    memory_most: int | None = None
    working_set_most: int | None = None
    swap_most: int | None = None
    pids_most: int | None = None


class Reading(Sample):
    """A sample, and what no history keeps; each figure as it was read last.

    Bytes: page cache that could be dropped, that waits to be written back and that is under it, and what of the agent's
    writes its disk rates are for (:mod:`agentres.kernel.writeback`); ``cgroup_frozen`` is 1 while no process runs.
    """

    inactive_file: int | None = None
    file_dirty: int | None = None
    file_writeback: int | None = None
    cgroup_frozen: int | None = None
    billed_bytes: int | None = None


class Usage(Record):
    """What an agent has used and which limits it has met, since its cgroup was made.

    Microseconds, bytes, operations, tasks, events.  ``rbytes`` and ``wbytes`` are what the kernel bills; ``read_bytes`` and
    ``dirtied_bytes`` what its processes did, ``unbilled_bytes`` is what of the latter went to disks and was not billed;
    for ``paused_usec`` it was frozen to be level with its disk rates.  ``file_dirty`` and ``file_writeback`` of what it wrote were
    not on a disk yet, at the end.  None: not counted here (the controller is
    missing, the kernel is older than the file, or the run was too short to be watched).
    """

    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    memory_peak: int | None = None
    memory_max_events: int | None = None
    memory_oom: int | None = None
    memory_oom_kill: int | None = None
    pids_peak: int | None = None
    pids_max_events: int | None = None
    rbytes: int | None = None
    wbytes: int | None = None
    rios: int | None = None
    wios: int | None = None
    rx_bytes: int | None = None
    rx_dropped_bytes: int | None = None
    rx_dropped_packets: int | None = None
    rx_loopback_bytes: int | None = None
    rx_delayed_bytes: int | None = None
    tx_bytes: int | None = None
    tx_dropped_bytes: int | None = None
    tx_dropped_packets: int | None = None
    tx_loopback_bytes: int | None = None
    tx_delayed_bytes: int | None = None
    read_bytes: int | None = None
    dirtied_bytes: int | None = None
    unbilled_bytes: int | None = None
    paused_usec: int | None = None
    file_dirty: int | None = None
    file_writeback: int | None = None


class Running(Record):
    """A process that lives: its name is what it calls itself."""

    pid: int
    name: str


class Escaped(Record):
    """A process of a run outside of its cgroup: where, as /proc/PID/cgroup names it, and what became of it, in words."""

    pid: int
    name: str
    cgroup: str
    fate: str = ""


class OomKill(Record):
    """One kill: the victim, its cgroup, and the cgroup whose limit was hit (empty: the host).

    ``footprint`` is what was in that cgroup, as the kernel's report has it; None where that has none.
    """

    pid: int
    task: str
    cgroup: str
    limit_cgroup: str
    footprint: Footprint | None = None
