"""Control-file and kernel-log text as frozen, typed values; pure.

There is one parser per file *format*, named as in the kernel's cgroup-v2.rst: flat-keyed (a line
``KEY VALUE``), nested-keyed (a line ``KEY SUB=VALUE ...``), single values.  Text that does not follow
its format raises :class:`StatError`.  A figure that the kernel does not give is ``None``, never 0.
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
    """A control file's text does not follow its format."""


def parse_value(text: str) -> int | Max:
    """Parse a single value: a number or ``max``."""
    text = text.strip()
    if text == MAX:
        return MAX
    try:
        return int(text)
    except ValueError:
        raise StatError(f"expected a number or max, not {text!r}") from None


def parse_flat_keyed(text: str) -> dict[str, int | Max]:
    """Parse ``memory.events``, ``cpu.stat``, ``cgroup.events`` and the like."""
    pairs: dict[str, int | Max] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if not value:
            raise StatError(f"expected KEY VALUE, not {line!r}")
        pairs[key] = parse_value(value)
    return pairs


def parse_nested_keyed(text: str) -> dict[str, dict[str, int | Max]]:
    """Parse ``io.stat`` and ``io.max``.  A device without figures (seen in ``io.stat``) gets an empty dict."""
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
    """What a subject uses at one moment.  Counters only rise.  None: absent, or no limit.

    The fields are in the order of the history's columns.
    """

    # CPU time, in microseconds; periods in all and throttled by cpu.max.
    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    nr_periods: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    # Bytes; the working set is memory_current without inactive_file.
    memory_current: int | None = None
    working_set: int | None = None
    memory_peak: int | None = None
    swap_current: int | None = None
    # How often each memory limit was met, and how many processes were killed.
    memory_high: int | None = None
    memory_max: int | None = None
    memory_oom: int | None = None
    memory_oom_kill: int | None = None
    # Disk I/O that the kernel bills: bytes, operations; and (device, rbytes, wbytes, rios, wios) for each disk.
    rbytes: int | None = None
    wbytes: int | None = None
    rios: int | None = None
    wios: int | None = None
    disks: Disks | None = None
    # Tasks, refused forks, open files of all processes.
    pids_current: int | None = None
    pids_max_events: int | None = None
    fds: int | None = None
    # PSI totals, in microseconds.
    cpu_some_usec: int | None = None
    cpu_full_usec: int | None = None
    memory_some_usec: int | None = None
    memory_full_usec: int | None = None
    io_some_usec: int | None = None
    io_full_usec: int | None = None
    # IP bytes received and sent, without dropped packets and loopback.
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    load1: float | None = None
    load5: float | None = None
    load15: float | None = None
    # Cores, bytes, tasks.
    cpu_limit: float | None = None
    memory_limit: int | None = None
    pids_limit: int | None = None
    # More network figures, in bytes and packets.  Delayed packets were ahead of the rate; the totals include them.
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
    # Bytes that its processes read from disks and dirtied; dirtied bytes that went to a disk and are not in wbytes.
    read_bytes: int | None = None
    dirtied_bytes: int | None = None
    unbilled_bytes: int | None = None
    # Open files of the process that has the most, and the limit per process.
    fds_most: int | None = None
    nofile_limit: int | None = None
    # The peaks since the previous sample, where they were measured: bytes, tasks.
    memory_most: int | None = None
    working_set_most: int | None = None
    swap_most: int | None = None
    pids_most: int | None = None


class Reading(Sample):
    """A sample, plus figures that the history does not keep; each as it was last read.

    In bytes: page cache that could be dropped (``inactive_file``), dirty page cache, page cache under writeback, and the part
    of the agent's writes that its disk rates limit (``billed_bytes``, :mod:`agentres.kernel.writeback`).  ``cgroup_frozen`` is
    1 while the cgroup is frozen.
    """

    inactive_file: int | None = None
    file_dirty: int | None = None
    file_writeback: int | None = None
    cgroup_frozen: int | None = None
    billed_bytes: int | None = None


class Usage(Record):
    """What an agent has used and which limits it has met, since its cgroup was made.

    Units: microseconds, bytes, operations, tasks, events.  The kernel bills ``rbytes`` and ``wbytes``.  The agent's processes
    read ``read_bytes`` and dirtied ``dirtied_bytes``; ``unbilled_bytes`` of the latter went to disks unbilled.  The agent was
    frozen for ``paused_usec`` to keep to its disk rates.  At the end, ``file_dirty`` and ``file_writeback`` were not on a disk
    yet.  None: not counted here (the controller is missing, the kernel is older than the file, or the run was too short to be
    watched).
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
    """A running process; ``name`` is what it calls itself."""

    pid: int
    name: str


class Escaped(Record):
    """A process of a run outside the run's cgroup: its cgroup, as in /proc/PID/cgroup, and its ``fate`` in words."""

    pid: int
    name: str
    cgroup: str
    fate: str = ""


class OomKill(Record):
    """One OOM kill: the victim, its cgroup, and the cgroup that hit its limit (empty: the host).

    ``footprint`` is what the kernel's report says was in that cgroup; None if it says nothing.
    """

    pid: int
    task: str
    cgroup: str
    limit_cgroup: str
    footprint: Footprint | None = None
