"""What was measured, as frozen, typed values; pure.  A figure that the kernel does not give is ``None``, never 0.

:mod:`agentres.model.figures` parses the control files.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from agentres.model.oom import Footprint

    Disks = tuple[tuple[str, int, int, int, int], ...]
    """(device, rbytes, wbytes, rios, wios) for each disk."""


class Sample(Record):
    """What a subject uses at one moment.  Counters only rise.  None: absent, or no limit.

    The fields are in the order of the history's columns.
    """

    #: Microseconds of CPU time.
    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    #: Periods of `cpu.max` in all, and those in which it was throttled.
    nr_periods: int | None = None
    nr_throttled: int | None = None
    #: Microseconds for which it was throttled.
    throttled_usec: int | None = None
    #: Bytes, page cache included.
    memory_current: int | None = None
    #: Bytes without the inactive page cache.
    working_set: int | None = None
    #: The most bytes since its start, page cache included.
    memory_peak: int | None = None
    #: Bytes.
    swap_current: int | None = None
    #: How often each memory limit was met, and how often it was out of memory there.
    memory_high: int | None = None
    memory_max: int | None = None
    memory_oom: int | None = None
    #: Processes that were killed for memory.
    memory_oom_kill: int | None = None
    #: Disk I/O that the kernel bills: bytes.
    rbytes: int | None = None
    wbytes: int | None = None
    #: Disk I/O that the kernel bills: operations.
    rios: int | None = None
    wios: int | None = None
    #: Of each disk: `[device, rbytes, wbytes, rios, wios]`.
    disks: Disks | None = None
    #: Processes and threads.
    pids_current: int | None = None
    #: Refused forks.
    pids_max_events: int | None = None
    #: Open files of all processes.
    fds: int | None = None
    #: Microseconds in which some task waited, and in which all did (PSI).
    cpu_some_usec: int | None = None
    cpu_full_usec: int | None = None
    memory_some_usec: int | None = None
    memory_full_usec: int | None = None
    io_some_usec: int | None = None
    io_full_usec: int | None = None
    #: Bytes of IP received and sent, without loopback and what was dropped.
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    #: Load averages of the host.
    load1: float | None = None
    load5: float | None = None
    load15: float | None = None
    #: Cores.
    cpu_limit: float | None = None
    #: Bytes.
    memory_limit: int | None = None
    #: Processes and threads.
    pids_limit: int | None = None
    #: Packets received.
    rx_packets: int | None = None
    #: Received faster than the rate, and dropped.
    rx_dropped_bytes: int | None = None
    rx_dropped_packets: int | None = None
    #: Received over loopback.
    rx_loopback_bytes: int | None = None
    rx_loopback_packets: int | None = None
    #: The part of `rx_bytes` and `rx_packets` that was ahead of the rate, and was held back.
    rx_delayed_bytes: int | None = None
    rx_delayed_packets: int | None = None
    #: Packets sent.
    tx_packets: int | None = None
    #: Sent faster than the rate, and dropped.
    tx_dropped_bytes: int | None = None
    tx_dropped_packets: int | None = None
    #: Sent over loopback.
    tx_loopback_bytes: int | None = None
    tx_loopback_packets: int | None = None
    #: The part of `tx_bytes` and `tx_packets` that was ahead of the rate, and was held back.
    tx_delayed_bytes: int | None = None
    tx_delayed_packets: int | None = None
    #: Bytes a second.
    net_in_limit: int | None = None
    net_out_limit: int | None = None
    #: Bytes that its processes read from disks, whichever cgroup is billed.
    read_bytes: int | None = None
    #: Bytes that they wrote to files on disks, whichever cgroup is billed.
    dirtied_bytes: int | None = None
    #: The part of `dirtied_bytes` that is on a disk and not in `wbytes`.
    unbilled_bytes: int | None = None
    #: Open files of the process that has the most.
    fds_most: int | None = None
    #: Open files that each process may have.
    nofile_limit: int | None = None
    #: The highest of `memory_current`, `working_set`, `swap_current` and `pids_current` since the previous sample, where that was measured.
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

    None: not counted here (the controller is missing, the kernel is older than the file, or the run was too short to be
    watched).
    """

    #: `cpu.stat`: microseconds of CPU time.
    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    #: `cpu.stat`: throttled periods.
    nr_throttled: int | None = None
    #: `cpu.stat`: microseconds.
    throttled_usec: int | None = None
    #: `memory.peak`: bytes.
    memory_peak: int | None = None
    #: `memory.events`: times at the limit.
    memory_max_events: int | None = None
    #: `memory.events`: times out of memory.
    memory_oom: int | None = None
    #: `memory.events`: processes killed.
    memory_oom_kill: int | None = None
    #: `pids.peak`: processes and threads.
    pids_peak: int | None = None
    #: `pids.events`: refused forks.
    pids_max_events: int | None = None
    #: `io.stat`, all devices: bytes.
    rbytes: int | None = None
    wbytes: int | None = None
    #: `io.stat`, all devices: operations.
    rios: int | None = None
    wios: int | None = None
    #: cgroup BPF ([network](network.md)): bytes of IP received, without loopback.
    rx_bytes: int | None = None
    #: Likewise: what came faster than the rate, and was dropped; and its packets.
    rx_dropped_bytes: int | None = None
    rx_dropped_packets: int | None = None
    #: Likewise: received over loopback, if that is free.
    rx_loopback_bytes: int | None = None
    #: Likewise: the part of `rx_bytes` that was ahead of the rate, and was held back.
    rx_delayed_bytes: int | None = None
    #: Likewise: bytes of IP sent, without loopback.
    tx_bytes: int | None = None
    #: Likewise: what was sent faster than the rate, and was dropped; and its packets.
    tx_dropped_bytes: int | None = None
    tx_dropped_packets: int | None = None
    #: Likewise: sent over loopback, if that is free.
    tx_loopback_bytes: int | None = None
    #: Likewise: the part of `tx_bytes` that was ahead of the rate, and was held back.
    tx_delayed_bytes: int | None = None
    #: `/proc/PID/io`: bytes that its processes read from disks, whichever cgroup is billed.
    read_bytes: int | None = None
    #: `/proc/PID/io`: bytes that they wrote to files on disks, whichever cgroup is billed.
    dirtied_bytes: int | None = None
    #: These and `io.stat`: the part of `dirtied_bytes` that is on a disk and not in `wbytes`; null without an io controller.
    unbilled_bytes: int | None = None
    #: By agentres: microseconds for which it was frozen to hold its disk rates.
    paused_usec: int | None = None
    #: `memory.stat` at the end: bytes that it wrote and that are not yet on a disk.
    file_dirty: int | None = None
    file_writeback: int | None = None


class RunningProcess(Record):
    """A running process; ``name`` is what it calls itself."""

    pid: int
    name: str


class EscapedProcess(Record):
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
