"""A subject's figures, read from its control files: one that is far from its limits costs little.

The files stay open: a ``pread`` of an open control file costs a twentieth of open, read and close.  What
reads as it did before is not parsed again.
"""

from __future__ import annotations

import errno
import os

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, Protocol

    from agentres.kernel.network import Network
    from agentres.model.stats import Disks

    class Writes(Protocol):
        """What tells what the processes write: :class:`agentres.kernel.writeback.Writeback`, and what its supervisor has marked."""

        @property
        def hidden(self) -> int: ...

        def look(self, pids: Iterable[int]) -> None: ...

        def figures(
            self, disks: Disks | None, dirty: int | None, under: int | None
        ) -> dict[str, int | None]: ...


_ENOUGH = 4096
_LONG = 1 << 20

GROUPS = (
    "cpu", "memory", "disk", "pids", "fds", "network", "pressure", "events", "limits",
)  # fmt: skip
"""What can be read by itself."""


class Meter:
    """Reads one cgroup.

    ``main`` is the child that holds the processes, empty for one that has them further down; ``network`` is
    what counts its packets, ``writeback`` what its processes write, None where nothing does.  A file that
    this kernel or this cgroup does not have leaves its fields None; one that vanishes later, or holds
    what its format does not allow, is in ``unreadable`` besides (file -> why).
    """

    def __init__(
        self,
        path: str,
        main: str = "main",
        network: Network | None = None,
        writeback: Writes | None = None,
    ) -> None:
        self.path = path
        self._figures: dict[str, Any] = dict.fromkeys(Reading.__match_args__)
        self._reading: Reading | None = None
        self.unreadable: dict[str, str] = {}
        self.pids: list[bytes] = []
        self._main = main
        self._network = network
        self._writeback = writeback
        self._before: dict[str, bytes] = {}
        self._sampled: tuple[int | None, ...] = ()
        self._fds: dict[str, int] = {}
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in self._names():
                try:
                    self._fds[name] = os.open(self._where(name), os.O_RDONLY, dir_fd=folder)
                except FileNotFoundError:  # not on this kernel, or its controller is not here
                    continue
                except OSError as error:
                    self._trouble(name, error)
        finally:
            os.close(folder)

    def _names(self) -> Iterator[str]:
        for files in _FILES.values():
            yield from files
        yield self._procs
        yield "cgroup.stat"

    def _where(self, name: str) -> str:
        # Before Linux 6.11 a refused fork counts where the task is that forked, not at the limit.
        if name == "pids.events" and self._main and not os.path.exists(f"{self.path}/{name}.local"):
            return f"{self._main}/{name}"
        return name

    @property
    def _procs(self) -> str:
        return f"{self._main}/cgroup.procs" if self._main else "cgroup.procs"

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def fd(self, name: str) -> int | None:
        """The open control file, for its notifications; reading its group takes them."""
        return self._fds.get(name)

    @property
    def reading(self) -> Reading:
        """Each figure as it was read last; None where it never was."""
        if self._reading is None:
            self._reading = Reading(*self._figures.values())
        return self._reading

    def read(self, group: str) -> Reading:
        """Read one of :data:`GROUPS`; the reading with its figures anew."""
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
            for name, file in _FILES[group].items():
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

        Where nothing has run and nothing was charged since the last time, open files, processes and the
        kinds of memory cannot have changed, and are not read.
        """
        self._read("cpu")
        self._read("pids")
        self._take("memory.current", _FILES["memory"]["memory.current"])
        # With the last sample's, not with the last reading: a look in between has changed that.
        moved = self._moved()
        if None in moved or moved != self._sampled:
            self._read("memory")
            self._read("fds")
            self._sampled = moved
        self._read("disk")
        self._read("network")
        self._read("pressure")
        return self.reading

    def _moved(self) -> tuple[int | None, ...]:
        """What changes when anything of the kind does."""
        return tuple(
            self._figures[field] for field in ("usage_usec", "pids_current", "memory_current")
        )

    def _take(self, name: str, file: _File) -> None:
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
        told = error.strerror if isinstance(error, OSError) else f"holds garbage: {error!r}"
        self.unreadable[name] = f"{name}: {told}"

    def _find_processes(self) -> bool:
        """Have the agent's processes in ``pids``; False where they cannot be told."""
        fd = self._fds.get(self._procs)
        if fd is None:
            return False
        try:
            pids = os.pread(fd, _LONG, 0).split()
            if int(_flat(os.pread(self._fds["cgroup.stat"], _ENOUGH, 0))[b"nr_descendants"]) > 1:
                pids = [pid for path in _below(self.path) for pid in _pids(path)]
        except (OSError, ValueError, LookupError) as error:
            self._trouble(self._procs, error)
            return False
        self.pids = pids
        return True

    def _count_writes(self, writeback: Writes) -> None:
        try:
            # First what is dirtied, then what waits, then what is billed: nothing that comes between looks unbilled.
            try:
                if self._find_processes():
                    writeback.look(map(int, self.pids))
            finally:
                self._take("memory.stat", _FILES["memory"]["memory.stat"])
                self._take("io.stat", _FILES["disk"]["io.stat"])
            known = (self._figures[field] for field in ("disks", "file_dirty", "file_writeback"))
            self._put(writeback.figures(*known))
        except (OSError, ValueError, LookupError) as error:
            # What was known stays: none of these figures falls.
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
            self._put({"fds": None})
            return
        count = 0
        for pid in self.pids:
            try:
                count += _open_files(f"/proc/{pid.decode()}/fd")
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            except OSError as error:
                self._put({"fds": None})
                self._trouble("/proc/PID/fd", error)
                return
        self._put({"fds": count})
        if self.unreadable:
            self.unreadable.pop("/proc/PID/fd", None)


def _open_files(path: str) -> int:
    """The number of open files of one process: st_size of /proc/PID/fd since Linux 6.2."""
    return os.stat(path).st_size or len(os.listdir(path))


def _below(path: str) -> Iterator[str]:
    """This cgroup and all below it; one that goes meanwhile is passed over."""
    yield path
    try:
        with os.scandir(path) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for child in children:
        yield from _below(child)


def _pids(path: str) -> list[bytes]:
    try:
        with open(f"{path}/cgroup.procs", "rb") as file:
            return file.read().split()
    except OSError as error:
        # Gone meanwhile, or a threaded cgroup: its processes are told by the one above.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []
        raise


# One kind of file each: bytes -> fields of a Reading.  LookupError and ValueError are garbage.


class _File(Record):
    """A control file: its parser, and the fields that are absent where it is."""

    parse: Callable[[bytes], dict[str, Any]]
    fields: tuple[str, ...]


def _flat(data: bytes) -> dict[bytes, bytes]:
    words = data.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _flat_keyed(optional: tuple[str, ...] = (), **keys: str) -> _File:
    """Fields by their keys; those that are ``optional`` have their keys' names."""

    def parse(data: bytes) -> dict[str, Any]:
        found = _flat(data)
        values = {field: int(found[key]) for field, key in needed}
        for field in optional:
            if (count := found.get(field.encode())) is not None:
                values[field] = int(count)
        return values

    needed = [(field, key.encode()) for field, key in keys.items()]
    return _File(parse, (*keys, *optional))


def _some_of(*keys: str) -> _File:
    """A few lines of a long flat-keyed file, none of them its first."""

    def parse(data: bytes) -> dict[str, Any]:
        values = {}
        for name in keys:
            at = data.index(b"\n%b " % name.encode()) + len(name) + 2
            values[name] = int(data[at : data.index(b"\n", at)])
        return values

    return _File(parse, keys)


def _one(field: str) -> _File:
    return _File(lambda data: {field: int(data)}, (field,))


def _limit(field: str) -> _File:
    return _File(lambda data: {field: None if data == b"max\n" else int(data)}, (field,))


def _pressure(kind: str) -> _File:
    def parse(data: bytes) -> dict[str, Any]:
        _, *totals = data.split(b"total=")
        if not totals:
            raise ValueError("no total")
        return {
            field: int(total[: total.index(b"\n")])
            for field, total in zip(fields[: len(totals)], totals, strict=True)
        }

    fields = (f"{kind}_some_usec", f"{kind}_full_usec")
    return _File(parse, fields)


_IO = ("rbytes", "wbytes", "rios", "wios")


def _io_stat(data: bytes) -> dict[str, Any]:
    disks: list[tuple[Any, ...]] = []
    for line in data.splitlines():
        device, *fields = line.split()
        if b":" not in device:
            raise ValueError(f"{line!r} names no device")
        if fields:  # a device that has done nothing has a line without figures
            row = dict(field.split(b"=") for field in fields)
            disks.append((device.decode(), *(int(row[key.encode()]) for key in _IO)))
    totals = [sum(disk[at] for disk in disks) for at in (1, 2, 3, 4)]
    return dict(zip(_IO, totals, strict=True)) | {"disks": tuple(disks)}


def _cpu_max(data: bytes) -> dict[str, Any]:
    quota, period = data.split()
    return {"cpu_limit": None if quota == b"max" else int(quota) / int(period)}


_FILES = {
    "cpu": {
        # The latter are absent without the cpu controller.
        "cpu.stat": _flat_keyed(
            ("nr_periods", "nr_throttled", "throttled_usec"),
            usage_usec="usage_usec",
            user_usec="user_usec",
            system_usec="system_usec",
        ),
    },
    "memory": {
        "memory.current": _one("memory_current"),
        "memory.stat": _some_of("inactive_file", "file_dirty", "file_writeback"),
        "memory.peak": _one("memory_peak"),
        "memory.swap.current": _one("swap_current"),
    },
    "disk": {"io.stat": _File(_io_stat, (*_IO, "disks"))},
    "pids": {"pids.current": _one("pids_current")},
    "pressure": {f"{kind}.pressure": _pressure(kind) for kind in ("cpu", "memory", "io")},
    "events": {
        "memory.events": _flat_keyed(
            memory_high="high", memory_max="max", memory_oom="oom", memory_oom_kill="oom_kill"
        ),
        "pids.events": _flat_keyed(pids_max_events="max"),
        "cgroup.events": _flat_keyed(cgroup_frozen="frozen"),
    },
    "limits": {
        "cpu.max": _File(_cpu_max, ("cpu_limit",)),
        "memory.max": _limit("memory_limit"),
        "pids.max": _limit("pids_limit"),
    },
}
