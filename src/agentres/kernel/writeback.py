"""Counts what an agent's processes read from disks and dirtied, and which of their writes the kernel does not bill to the agent.

The kernel bills writeback to the cgroup that owns the inode: the one that dirtied it first (cgroup-v2.rst,
"Writeback").  ``/proc/PID/io`` (proc_pid_io(5)) counts by process, including ended threads and children that were
waited for.  Two things are lost: what a process did after the last look at it, if no process of the agent waited for it
(init did), and what a process does that we may not look at.
"""

from __future__ import annotations

import os
import time

from agentres.kernel.process import ignores_children, is_zombie, parent
from agentres.model.figures import one_of
from agentres.model.limits import PAGE
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentres.model.stats import Disks

_READ, _WRITTEN, _CANCELLED = 9, 11, 13
"""The positions of these figures among the words of /proc/PID/io."""

_STALE = 2.5
"""Seconds that ``memory.stat`` may lag: the kernel updates it every 2 s (FLUSH_TIME in mm/memcontrol.c), but, as seen on
Linux 7.3, not always when it is read."""

_SPARES = 3
"""After this many such intervals, what others have written is forgotten (:meth:`Writeback._expire`)."""

_SECTOR = 512


class Writeback:
    """Counts for one agent.  ``disks`` are the device numbers that its rates apply to; none: all that it is billed for.

    The kernel bills dirtied pages when it writes them back.  It tells how much waits for writeback: for the agent, but
    late, and for the whole host, at once.  Each gives a lower bound of what will never be billed; the higher one counts.
    The upper bound is what anybody wrote to the disks, less what is billed to this agent.
    """

    def __init__(self, disks: Iterable[str] = ()) -> None:
        self._disks = frozenset(disks)
        self._processes = ProcessIo()
        self._host_waits, self._drift = 0, _drift()
        self._marked, self._marked_at, self._settled = 0, time.monotonic(), 0
        self._before: int | None = None
        self._spares: list[int] = []
        self._read = self._dirtied = self._billed = self._unbilled = 0
        self._written = self._cancelled = 0

    @property
    def hidden(self) -> int:
        """The number of processes that could not be read at the last look."""
        return self._processes.hidden

    def look(self, pids: Iterable[int]) -> None:
        """Update the counts of the processes; ``pids`` are the agent's live ones."""
        read, self._written, self._cancelled = self._processes.figures(pids)
        self._read = max(read, self._read)
        self._dirtied = max(self._written - self._cancelled, self._dirtied)
        self._host_waits = _host_waits()
        if self._before is None:  # all its writes so far may be on the disks already
            self._before = _disks_written(self._disks) - self._written
        now = time.monotonic()
        if now - self._marked_at > _STALE:
            self._settled, self._marked, self._marked_at = self._marked, self._written, now
            self._expire()

    def _expire(self) -> None:
        """Forget disk writes that were not attributed to this agent: after so long they were others'."""
        assert self._before is not None
        spare = _disks_written(self._disks) - self._before - self._billed - self._unbilled
        self._spares = [*self._spares[-_SPARES:], spare]
        if len(self._spares) > _SPARES and (stale := min(self._spares)) > 0:
            self._before += stale
            self._spares = [each - stale for each in self._spares]

    def figures(
        self, disks: Disks | None, dirty: int | None, under: int | None
    ) -> dict[str, int | None]:
        """Return ``read_bytes``, ``dirtied_bytes``, ``billed_bytes`` and ``unbilled_bytes`` since the agent began; none ever falls.

        ``dirty`` and ``under`` (writeback) are from ``memory.stat``, ``disks`` from ``io.stat``, both read just after the
        look.  Without an io controller the last two figures are None.
        """
        if disks is not None:
            billed = sum(disk[2] for disk in disks if not self._disks or disk[0] in self._disks)
            self._billed = max(billed, self._billed)
            self._bound(dirty, under)
        return {
            "read_bytes": self._read,
            "dirtied_bytes": self._dirtied,
            "billed_bytes": None if disks is None else self._billed,
            "unbilled_bytes": None if disks is None else self._unbilled,
        }

    def _bound(self, dirty: int | None, under: int | None) -> None:
        least = self._written - self._host_waits - self._drift
        if dirty is not None and under is not None:
            least = max(least, self._settled - dirty - under)
        least -= self._cancelled + self._billed
        if least > self._unbilled and self._before is not None:
            most = _disks_written(self._disks) - self._before - self._billed
            self._unbilled = max(self._unbilled, min(least, most))


class HostWrites:
    """What all processes of this host dirty and write: if that is nothing, no agent did."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)

    def count(self, reads: bool) -> int:
        """Return the bytes dirtied or written to disks since boot; with ``reads``, those read from disks too.

        The count of dirtied pages may lag by some pages for each processor, for up to a second.  ValueError, OSError.
        """
        data = os.pread(self._fd, 1 << 16, 0)
        total = PAGE * one_of(data, b"nr_dirtied") + (one_of(data, b"pgpgout") << 10)
        return total + (one_of(data, b"pgpgin") << 10) if reads else total

    def close(self) -> None:
        os.close(self._fd)


class _Process(Record):
    """A process at the last look: its parent, and its bytes since it began."""

    parent: int
    read: int
    written: int
    cancelled: int


class ProcessIo:
    """Counts for an agent's live processes and those that have ended."""

    def __init__(self) -> None:
        self._alive: dict[int, _Process] = {}
        self._gone = (0, 0, 0)
        self.hidden = 0
        """The number of processes that could not be read at the last look."""

    def figures(self, pids: Iterable[int]) -> tuple[int, int, int]:
        """Return the bytes read from disks, dirtied, and cancelled after dirtying, since the agent began.

        ``pids`` are its live processes.  The bytes of a process that has just ended may be missing until the next look.
        """
        before, self._alive, self.hidden = self._alive, {}, 0
        # A parent mostly comes before its children: a child that is waited for meanwhile does not count twice.
        alive = set(pids)
        for pid in sorted(alive | before.keys()):
            was = before.get(pid)
            if pid not in alive and not is_zombie(pid):  # cgroup.procs does not list zombies
                continue
            try:
                words = _words(pid)
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            except PermissionError:
                self.hidden += 1
                if was is not None:
                    self._alive[pid] = before.pop(pid)
                continue
            read, written, cancelled = (int(words[at]) for at in (_READ, _WRITTEN, _CANCELLED))
            if was is not None and written >= was.written:  # else the PID was reused
                del before[pid]
                above = was.parent
            else:
                above = parent(pid)
            self._alive[pid] = _Process(above, read, written, cancelled)
        if before:
            self._bury(before)
        seen = [(each.read, each.written, each.cancelled) for each in self._alive.values()]
        read, written, cancelled = (sum(figures) for figures in zip(self._gone, *seen, strict=True))
        return read, written, cancelled

    def _bury(self, dead: dict[int, _Process]) -> None:
        """Keep the bytes of the dead that no process of the agent has waited for; the rest is in their waiter's figures."""
        read, written, cancelled = self._gone
        for process in dead.values():
            above = process.parent
            while above in dead:
                above = dead[above].parent
            if above not in self._alive or ignores_children(above):
                read += process.read
                written += process.written
                cancelled += process.cancelled
        self._gone = (read, written, cancelled)
        for pid, process in self._alive.items():
            if process.parent in dead:  # it has a new parent by now
                self._alive[pid] = process.but(parent=parent(pid))


def _words(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/io", "rb") as file:
        return file.read().split()


def _host_waits() -> int:
    """Return the whole host's bytes that wait for writeback or are under it (proc_meminfo(5))."""
    with open("/proc/meminfo", "rb") as file:
        words = file.read().split()
    return sum(int(words[words.index(name) + 1]) << 10 for name in (b"Dirty:", b"Writeback:"))


def _drift() -> int:
    """Return the bytes by which that may lag: each processor batches some pages (calculate_normal_threshold() in mm/vmstat.c)."""
    cpus = os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE >> 27
    return min(125, 2 * cpus.bit_length() * (1 + memory.bit_length())) * cpus * PAGE


def _disks_written(numbers: frozenset[str]) -> int:
    """Return the bytes written to these disks by anybody (proc_diskstats(5)); no numbers: all disks, each layer of them."""
    total = 0
    with open("/proc/diskstats") as file:
        for line in file:
            major, minor, _, *figures = line.split()
            if not numbers or f"{major}:{minor}" in numbers:
                total += int(figures[6]) * _SECTOR
    return total
