"""Reads the figures of a cgroup from its control files, cheaply while little changes.

The files stay open: a ``pread`` of an open control file costs a twentieth of open, read and close.  Text
that is unchanged since the last read is not parsed again.
"""

from __future__ import annotations

import os

from agentres.kernel import process
from agentres.kernel.peak import PEAKS, Peak
from agentres.model.figures import FILES, flat_keyed
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Protocol

    from agentres.kernel.network import Network
    from agentres.model.figures import Format
    from agentres.model.stats import Disks

    class Writes(Protocol):
        """A source of what the processes write: :class:`agentres.kernel.writeback.Writeback`, or the marks of their supervisor."""

        @property
        def hidden(self) -> int: ...

        def look(self, pids: Iterable[int]) -> None: ...

        def figures(
            self, disks: Disks | None, dirty: int | None, under: int | None
        ) -> dict[str, int | None]: ...


_ENOUGH = 4096
_LONG = 1 << 20

GROUPS = (*FILES, "fds", "network")
"""The groups of figures that :meth:`Meter.read` can read one at a time."""


class Meter:
    """Reads one cgroup.

    ``main`` is the child that holds the processes; empty if they are further down.  ``network`` counts its packets and
    ``writeback`` its writes; None where nothing does.  ``nofile`` is the most files that each process may open.
    ``peaks``: each sample has the highest value since the sample before.

    A file that this kernel or this cgroup does not have leaves its fields None.  One that vanishes later or breaks
    its format is also in ``unreadable`` (file -> why).
    """

    def __init__(
        self,
        path: str,
        main: str = "main",
        network: Network | None = None,
        writeback: Writes | None = None,
        nofile: int | None = None,
        peaks: bool = False,
    ) -> None:
        self.path = path
        self._figures: dict[str, Any] = dict.fromkeys(Reading.__match_args__)
        self._figures["nofile_limit"] = nofile
        self._reading: Reading | None = None
        self.unreadable: dict[str, str] = {}
        self.pids: list[int] = []
        self.most_open = 0
        """The process with the most open files; 0: none."""
        self._main = main
        self._network = network
        self._writeback = writeback
        self._before: dict[str, bytes] = {}
        self._sampled: tuple[int | None, ...] = ()
        self._reclaims = 0
        self._fds: dict[str, int] = {}
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._peaks = self._open_peaks(folder) if peaks else {}
            for name in self._names():
                try:
                    self._fds[name] = os.open(self._where(name), os.O_RDONLY, dir_fd=folder)
                except FileNotFoundError:  # not on this kernel, or its controller is not here
                    continue
                except OSError as error:
                    self._trouble(name, error)
        finally:
            os.close(folder)

    def _open_peaks(self, folder: int) -> dict[str, Peak]:
        found = {}
        for name in PEAKS:
            try:
                found[name] = Peak(folder, name)
            except OSError:  # not on this kernel, or its controller is not here
                continue
        return found

    def _names(self) -> Iterator[str]:
        for files in FILES.values():
            yield from files
        yield self._procs
        yield "cgroup.stat"

    def _where(self, name: str) -> str:
        # Before Linux 6.11 a refused fork counts in the cgroup of the task that forked, not at the limit.
        if name == "pids.events" and self._main and not os.path.exists(f"{self.path}/{name}.local"):
            return f"{self._main}/{name}"
        return name

    @property
    def _procs(self) -> str:
        return f"{self._main}/cgroup.procs" if self._main else "cgroup.procs"

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        for peak in self._peaks.values():
            peak.close()
        self._fds.clear()
        self._peaks.clear()

    def fd(self, name: str) -> int | None:
        """Return the fd of the control file, to poll for notifications; reading its group consumes them."""
        return self._fds.get(name)

    @property
    def memory_stat(self) -> bytes:
        """The text of memory.stat at the last read; empty if it was never read or does not exist."""
        return self._before.get("memory.stat", b"")

    @property
    def reading(self) -> Reading:
        """Each figure at its last read; None if it was never read."""
        if self._reading is None:
            self._reading = Reading(*self._figures.values())
        return self._reading

    def read(self, group: str) -> Reading:
        """Read one of :data:`GROUPS` and return the updated reading."""
        self._read(group)
        return self.reading

    def _read(self, group: str) -> None:
        if group == "fds":
            self._count_files()
        elif group == "network":
            if self._network is not None:
                self._put(self._network.figures())
        elif group == "disk" and self._writeback is not None:
            self._count_writes(self._writeback)
        else:
            for name, file in FILES[group].items():
                self._take(name, file)
        if group == "memory":
            current, cache = self._figures["memory_current"], self._figures["inactive_file"]
            absent = current is None or cache is None
            self._put({"working_set": None if absent else max(0, current - cache)})

    def _put(self, figures: Mapping[str, Any]) -> None:
        self._figures.update(figures)
        self._reading = None

    def sample(self) -> Reading:
        """Read everything.

        If nothing has run and nothing was charged since the last sample, open files, processes and the
        kinds of memory cannot have changed: they are not read again.
        """
        self._read("cpu")
        self._read("pids")
        self._take("memory.current", FILES["memory"]["memory.current"])
        # Compare with the last sample, not the last reading: a read in between has changed the latter.
        moved = self._moved()
        if None in moved or moved != self._sampled:
            self._read("memory")
            self._read("fds")
            self._sampled = moved
            self._take_peaks()
        elif self._peaks:
            self._put({most: self._figures[now] for now, most in PEAKS.values()})
            self._put({"working_set_most": self._figures["working_set"]})
        self._read("disk")
        self._read("network")
        self._read("pressure")
        return self.reading

    def _take_peaks(self) -> None:
        """Take the highest values since the last sample.

        The working set's peak leaves out page cache, which is no demand.  The cache at the peak is not known: assume it was as
        large as now.  If some was reclaimed since, as the agent hit the tripwire or the limit, use the current working set.
        """
        if not self._peaks:
            return
        figures = self._figures
        for name, (now, most) in PEAKS.items():
            value = figures[now]
            if value is not None and (peak := self._peaks.get(name)) is not None:
                try:
                    value = peak.take(value)
                except (OSError, ValueError) as error:
                    self._trouble(name, error)
            figures[most] = value
        above = (figures["memory_most"] or 0) - (figures["memory_current"] or 0)
        # The counts at their last read: to read them here would take the notification from its poller.
        before = self._reclaims
        self._reclaims = (figures["memory_high"] or 0) + (figures["memory_max"] or 0)
        used = figures["working_set"]
        if used is not None and self._reclaims == before:
            used += above
        self._put({"working_set_most": used})

    def _moved(self) -> tuple[int | None, ...]:
        """Return the counters of which at least one changes when anything that :meth:`sample` may skip does."""
        return tuple(
            self._figures[field] for field in ("usage_usec", "pids_current", "memory_current")
        )

    def _take(self, name: str, file: Format) -> None:
        fd = self._fds.get(name)
        if fd is None:
            return
        try:
            data = os.pread(fd, _ENOUGH, 0)
            if len(data) == _ENOUGH:
                data = os.pread(fd, _LONG, 0)
            if data == self._before.get(name):
                return
            self._put(file.parse(data))
        except (OSError, ValueError, LookupError) as error:
            self._before.pop(name, None)
            self._put(dict.fromkeys(file.fields))
            self._trouble(name, error)
            return
        self._before[name] = data
        if self.unreadable:
            self.unreadable.pop(name, None)

    def _trouble(self, name: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else f"holds garbage: {error!r}"
        self.unreadable[name] = f"{name}: {reason}"

    def _find_processes(self) -> bool:
        """Set ``pids`` to the agent's processes.  Return False if they cannot be listed."""
        fd = self._fds.get(self._procs)
        if fd is None:
            return False
        try:
            pids = [int(pid) for pid in _whole(fd).split()]
            if (
                int(flat_keyed(os.pread(self._fds["cgroup.stat"], _ENOUGH, 0))[b"nr_descendants"])
                > 1
            ):
                pids = process.below(self.path)
        except (OSError, ValueError, LookupError) as error:
            self._trouble(self._procs, error)
            return False
        self.pids = pids
        return True

    def _count_writes(self, writeback: Writes) -> None:
        try:
            # Read what is dirtied, then what waits, then what is billed: a write in between must not look unbilled.
            try:
                if self._find_processes():
                    writeback.look(self.pids)
            finally:
                self._take("memory.stat", FILES["memory"]["memory.stat"])
                self._take("io.stat", FILES["disk"]["io.stat"])
            known = (self._figures[field] for field in ("disks", "file_dirty", "file_writeback"))
            self._put(writeback.figures(*known))
        except (OSError, ValueError, LookupError) as error:
            # Keep the last figures: none of them ever falls.
            self._trouble("/proc/PID/io", error)
            return
        if (hidden := writeback.hidden) != 0:
            self.unreadable["/proc/PID/io"] = (
                f"/proc/PID/io: {hidden} processes may not be looked at"
            )
        elif self.unreadable:
            self.unreadable.pop("/proc/PID/io", None)

    def _count_files(self) -> None:
        if not self._find_processes():
            self._put({"fds": None, "fds_most": None})
            return
        count = most = self.most_open = 0
        for pid in self.pids:
            try:
                one = process.open_files(pid)
                count += one
                if one > most:
                    most, self.most_open = one, pid
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            except OSError as error:
                self._put({"fds": None, "fds_most": None})
                self._trouble("/proc/PID/fd", error)
                return
        self._put({"fds": count, "fds_most": most})
        if self.unreadable:
            self.unreadable.pop("/proc/PID/fd", None)


def _whole(fd: int) -> bytes:
    """Read a whole list that the kernel returns a page at a time."""
    data = os.pread(fd, _LONG, 0)
    while more := os.pread(fd, _LONG, len(data)) if len(data) >= _ENOUGH - 16 else b"":
        data += more
    return data
