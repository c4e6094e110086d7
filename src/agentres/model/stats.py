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
    """What a subject uses at one moment; the fields that count only rise.

    Microseconds, bytes, operations, tasks, files, events.  ``working_set`` is memory.current without
    inactive_file; ``disks`` is (device, rbytes, wbytes, rios, wios) for each; the ``*_some_usec`` and
    ``*_full_usec`` are the totals of PSI.  ``rx_*`` was received and ``tx_*`` sent, in bytes and packets of
    IP: ``dropped`` and ``loopback`` are not in ``rx_bytes``, ``delayed`` is, and was ahead of its rate.
    ``read_bytes`` and ``dirtied_bytes`` are what its processes read from disks and dirtied, ``unbilled_bytes`` what of the latter went to a disk and is not in ``wbytes``.
    ``memory_most``, ``working_set_most``, ``swap_most`` and ``pids_most`` are the highest since the sample before.
    ``fds_most`` are the open files of the process that has the most, ``nofile_limit`` is what each may have.  ``cpu_limit`` in cores, ``net_in_limit`` and ``net_out_limit`` in bytes a second.  None: absent, or, of a
    limit, none.
    """

    usage_usec: int | None = None
    user_usec: int | None = None
    system_usec: int | None = None
    nr_periods: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    memory_current: int | None = None
    working_set: int | None = None
    memory_peak: int | None = None
    swap_current: int | None = None
    memory_high: int | None = None
    memory_max: int | None = None
    memory_oom: int | None = None
    memory_oom_kill: int | None = None
    rbytes: int | None = None
    wbytes: int | None = None
    rios: int | None = None
    wios: int | None = None
    disks: Disks | None = None
    pids_current: int | None = None
    pids_max_events: int | None = None
    fds: int | None = None
    cpu_some_usec: int | None = None
    cpu_full_usec: int | None = None
    memory_some_usec: int | None = None
    memory_full_usec: int | None = None
    io_some_usec: int | None = None
    io_full_usec: int | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None
    load1: float | None = None
    load5: float | None = None
    load15: float | None = None
    cpu_limit: float | None = None
    memory_limit: int | None = None
    pids_limit: int | None = None
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
    net_in_limit: int | None = None
    net_out_limit: int | None = None
    read_bytes: int | None = None
    dirtied_bytes: int | None = None
    unbilled_bytes: int | None = None
    fds_most: int | None = None
    nofile_limit: int | None = None
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
