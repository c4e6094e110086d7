"""What the processes of an agent read from disks and dirtied, and what of it the kernel does not bill to the agent.

The kernel bills writeback to the cgroup that owns the inode, which is the one that dirtied it first (cgroup-v2.rst,
"Writeback").  What counts by process is ``/proc/PID/io`` (proc_pid_io(5)), which has the figures of threads that ended, and of children
that were waited for.  Lost is what a process did after the last look at it where it ended without anybody of the
agent waiting for it (init did), and what one does that may not be looked at.
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
"""The words of /proc/PID/io that are these figures."""

_STALE = 2.5
"""Seconds that ``memory.stat`` may be behind: the kernel brings it up to date each 2 s (FLUSH_TIME in mm/memcontrol.c), and as seen
on Linux 7.3 not always when it is read."""

_SPARES = 3
"""After so many times of that what is written by others does not count any more."""

_SECTOR = 512


class Writeback:
    """Counts for one agent; ``disks`` are the device numbers that its rates are for, none: all that it is billed for.

    What is dirtied is billed when it is written back.  What waits for that the kernel tells for the agent, late, and for
    the whole host, at once: both bound what will never be billed from below, and the higher one counts.  From above it is
    bounded by what the disks were written by anybody: what was accounted and is still to be written is no more than that.
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
        """How many processes could not be looked at, at the last look."""
        return self._processes.hidden

    def look(self, pids: Iterable[int]) -> None:
        """Take what the processes did, now that ``pids`` are what lives of it."""
        read, self._written, self._cancelled = self._processes.figures(pids)
        self._read = max(read, self._read)
        self._dirtied = max(self._written - self._cancelled, self._dirtied)
        self._host_waits = _host_waits()
        if self._before is None:  # all that it has written so far may be on the disks already
            self._before = _disks_written(self._disks) - self._written
        now = time.monotonic()
        if now - self._marked_at > _STALE:
            self._settled, self._marked, self._marked_at = self._marked, self._written, now
            self._expire()

    def _expire(self) -> None:
        """Forget what others wrote to the disks, and was not found to be this agent's: later than that nothing is found."""
        assert self._before is not None
        spare = _disks_written(self._disks) - self._before - self._billed - self._unbilled
        self._spares = [*self._spares[-_SPARES:], spare]
        if len(self._spares) > _SPARES and (stale := min(self._spares)) > 0:
            self._before += stale
            self._spares = [each - stale for each in self._spares]

    def figures(
        self, disks: Disks | None, dirty: int | None, under: int | None
    ) -> dict[str, int | None]:
        """``read_bytes``, ``dirtied_bytes``, ``billed_bytes`` and ``unbilled_bytes`` since the agent began; none of them falls.

        ``dirty`` and ``under`` writeback are what ``memory.stat``, ``disks`` what ``io.stat`` said just after the look.
        Without an io controller the last two are None.
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
    """What anybody on this host dirties and writes: where that is nothing, no agent has."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)

    def count(self, reads: bool) -> int:
        """Bytes that were dirtied or written to disks since boot, with ``reads`` also those that were read from them.

        Of what is dirtied some pages of each processor may be missing for up to a second.  ValueError, OSError.
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
    """Counts for the live processes of an agent, and for those that were."""

    def __init__(self) -> None:
        self._alive: dict[int, _Process] = {}
        self._gone = (0, 0, 0)
        self.hidden = 0
        """How many processes could not be looked at, at the last look."""

    def figures(self, pids: Iterable[int]) -> tuple[int, int, int]:
        """Bytes read from disks, dirtied, and of these taken back, since the agent began, now that ``pids`` are what lives of it.

        What a process did that has just ended may be missing, and be back at the next look.
        """
        before, self._alive, self.hidden = self._alive, {}, 0
        # A parent comes before its children, mostly: one that is waited for meanwhile does not count twice.
        alive = set(pids)
        for pid in sorted(alive | before.keys()):
            was = before.get(pid)
            if pid not in alive and not is_zombie(pid):  # those the kernel lists no more
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
            if was is not None and written >= was.written:  # else another one has got its number
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
        """Keep what those did that nobody of the agent has waited for: else it is among the figures of who has."""
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
            if process.parent in dead:  # its parent is another one by now
                self._alive[pid] = process.but(parent=parent(pid))


def _words(pid: int) -> list[bytes]:
    with open(f"/proc/{pid}/io", "rb") as file:
        return file.read().split()


def _host_waits() -> int:
    """Bytes of the whole host that wait for their writeback, or are under it (proc_meminfo(5))."""
    with open("/proc/meminfo", "rb") as file:
        words = file.read().split()
    return sum(int(words[words.index(name) + 1]) << 10 for name in (b"Dirty:", b"Writeback:"))


def _drift() -> int:
    """Bytes by which that may be behind: each processor keeps some pages to itself (calculate_normal_threshold() in mm/vmstat.c)."""
    cpus = os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE >> 27
    return min(125, 2 * cpus.bit_length() * (1 + memory.bit_length())) * cpus * PAGE


def _disks_written(numbers: frozenset[str]) -> int:
    """Bytes that these disks have been written by anybody (proc_diskstats(5)); none: all disks, each layer of them."""
    total = 0
    with open("/proc/diskstats") as file:
        for line in file:
            major, minor, _, *figures = line.split()
            if not numbers or f"{major}:{minor}" in numbers:
                total += int(figures[6]) * _SECTOR
    return total
