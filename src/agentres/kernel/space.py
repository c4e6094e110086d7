"""Tells how full the file systems are that an agent writes to.

These are the one of its working directory, and those on which one of its processes had a file open for writing at a look.
File systems behind a server or a FUSE daemon are left out, as statvfs(3) may wait for those for ever; so are those that are
read-only, and those that are not visible from here (the agent's own mounts).
"""

from __future__ import annotations

import os
import time

from agentres.kernel import devices, libc, mounts
from agentres.model.disk_space import growth, left, used
from agentres.model.errors import UsageError
from agentres.model.figures import one_of
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from agentres.kernel.mounts import Mount
    from agentres.model.stats import Reading

_DEAR = 200
"""After a look at open files, pause for this many times its duration: half a percent of a processor."""

_AT_ONCE = 0.01
"""The most seconds for one look at open files: the next look goes on with the rest."""

_WRITABLE = 0o200
"""The bit in the mode of /proc/PID/fd/N that means open for writing (proc_pid_fd(5))."""


class Space:
    """Looks at the file systems of one agent that works in ``directory``; ``is_root``: it may use the blocks reserved for root."""

    def __init__(self, directory: str, is_root: bool) -> None:
        self._is_root = is_root
        # By device: where to ask, bytes free at first, disks; None for disks: it is in memory.
        self._places: dict[str, tuple[_Place, int, list[str] | None]] = {}
        self._passed_over = set[str]()
        # The rest of the round through open files, and the devices that it has found so far.
        self._round: Iterator[tuple[int, int]] | None = None
        self._seen = set[str]()
        self._fullest: tuple[str, int, int, int, int] | None = None
        self._device = ""
        self._next = float("-inf")
        try:
            directory, table = os.path.realpath(directory), mounts.mounts()
        except OSError:  # it was removed
            return
        self._add(mounts.mount_of(directory, table), table, directory)

    def look(self, pids: Iterable[int]) -> float:
        """Return the used fraction of the fullest one, of its bytes or its inodes; 0 where there is none.

        ``pids`` are the agent's live processes.
        """
        if time.monotonic() >= self._next:
            self._find(pids)
        most, self._fullest = 0.0, None
        for device, (place, _, _) in list(self._places.items()):
            if (asked := place.ask()) is None:
                del self._places[device]  # it is no longer mounted
                continue
            _, size, free, inodes, free_inodes = found = self._free(place.path, asked)
            share = max(used(size, free), used(inodes, free_inodes))
            if self._fullest is None or share > most:
                most, self._fullest, self._device = share, found, device
        return most

    def describe(self, reading: Reading, memory_stat: bytes) -> str:
        """Describe the fullest one; ``reading`` and ``memory_stat`` are the agent's last figures."""
        if self._fullest is None:
            return ""
        _, before, disks = self._places[self._device]
        reached = shmem = None
        if disks is None:
            shmem = one_of(memory_stat, b"shmem") if memory_stat else None
        elif disks and reading.disks is not None:
            reached = sum(disk[2] for disk in reading.disks if disk[0] in disks)
        grown = growth(before - self._fullest[2], reading.dirtied_bytes, reached, shmem)
        return f"{left(*self._fullest)}; {grown}"

    def _find(self, pids: Iterable[int]) -> None:
        """Add the file systems with files open for writing, for a short time; the next call goes on from there."""
        began = time.thread_time()
        waiting: dict[int, int] = {}
        if self._round is None:
            self._round = _written_mounts(list(pids))
        for pid, number in self._round:
            if number >= 0:
                waiting[number] = pid
            if time.thread_time() - began >= _AT_ONCE:
                break
        else:
            self._round = None
        seen = set[str]()
        while waiting:
            pid = next(iter(waiting.values()))
            known = _devices(pid, waiting)
            seen.update(known.values())
            # This process's remaining numbers are mounted nowhere: memory of memfd_create(2).
            waiting = {n: of for n, of in waiting.items() if n not in known and of != pid}
            # Each process may have a mount namespace of its own, with mounts that we mostly do not see.
            if time.thread_time() - began >= 2 * _AT_ONCE:
                break
        self._seen |= seen
        if new := seen - self._places.keys() - self._passed_over:
            table = mounts.mounts()
            for mount in table:
                if mount.device in new and self._add(mount, table, mount.point):
                    new.remove(mount.device)
            self._passed_over |= new
        if self._round is None:
            self._passed_over &= self._seen  # the numbers of other devices may be reused
            self._seen.clear()
        self._next = time.monotonic() + _DEAR * (time.thread_time() - began)

    def _add(self, mount: Mount, table: list[Mount], path: str) -> bool:
        """Look at this mount from now on, by this path on it.  Return False if a query may block or tells nothing."""
        if not mounts.is_local(mount, table) or mount.fstype == "devtmpfs":
            return False
        place = _Place(path, mount.point)
        asked = place.ask()
        if asked is None or asked.f_flag & os.ST_RDONLY or not asked.f_blocks:
            return False
        disks: list[str] | None = None
        if mount.fstype not in ("tmpfs", "ramfs"):
            try:
                disks = devices.disks(mount, table)
            except UsageError:
                disks = []
        self._places[mount.device] = place, self._free(path, asked)[2], disks
        return True

    def _free(self, path: str, asked: os.statvfs_result) -> tuple[str, int, int, int, int]:
        """Return the path, the size and free bytes for the agent there, and all and free inodes."""
        free = asked.f_bfree if self._is_root else asked.f_bavail
        # As in df(1): the size for other users leaves out what is reserved for root.
        size = asked.f_blocks - asked.f_bfree + free
        unit = asked.f_frsize
        return path, size * unit, free * unit, asked.f_files, asked.f_favail


class _Place:
    """A directory on a mount, to ask how full the mount is.

    The directory's owner may put a link or a mount in its place that never answers.  So it is opened anew each time, without
    following links, and only the mount of the first time is asked.  A kept descriptor would prevent unmounting.
    """

    __slots__ = ("_below", "_fsid", "_number", "_point", "path")

    def __init__(self, path: str, point: str) -> None:
        self.path, self._point, self._below = path, point, os.path.relpath(path, point)
        self._number = self._fsid = -1

    def ask(self) -> os.statvfs_result | None:
        """Return statvfs of the directory (only there a project quota shows), or of its mount point if it is gone; None: unmounted."""
        try:
            mount = libc.openat2(libc.HERE, self._point, os.O_PATH, libc.NO_SYMLINKS)
        except OSError:
            return None
        try:
            number = _mount_number("self", mount)  # this does not ask the file system
            if self._number not in (-1, number):
                return None
            asked = self._ask_below(mount) or os.fstatvfs(mount)
            if self._fsid not in (-1, asked.f_fsid):
                return None
            self._number, self._fsid = number, asked.f_fsid
            return asked
        except OSError:
            return None
        finally:
            os.close(mount)

    def _ask_below(self, mount: int) -> os.statvfs_result | None:
        resolve = libc.NO_XDEV | libc.NO_SYMLINKS | libc.BENEATH
        try:
            fd = libc.openat2(mount, self._below, os.O_PATH, resolve)
        except OSError:  # it was removed, or something else is there
            return None
        try:
            return os.fstatvfs(fd)
        finally:
            os.close(fd)


def _written_mounts(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield for each open file its PID, and the number of its mount if it is open for writing, else -1 (proc_pid_fd(5))."""
    for pid in pids:
        try:
            with os.scandir(f"/proc/{pid}/fd") as files:
                for file in files:
                    yield pid, _written_mount(pid, file.name)
        except OSError:  # it has ended, or we may not read it, which the count of its files reports
            continue


def _written_mount(pid: int, fd: str) -> int:
    link = f"/proc/{pid}/fd/{fd}"
    try:
        # Neither call asks the file system of the file; what has no path is a pipe, socket or the like.
        if os.lstat(link).st_mode & _WRITABLE and os.readlink(link).startswith("/"):
            return _mount_number(pid, fd)
    except FileNotFoundError:  # closed meanwhile
        pass
    return -1


def _mount_number(pid: int | str, fd: int | str) -> int:
    """Return the number of the mount of a descriptor (mnt_id in proc_pid_fdinfo(5)).  OSError."""
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
        words = file.read().split()
    return int(words[words.index(b"mnt_id:") + 1])


def _devices(pid: int, numbers: Container[int]) -> dict[int, str]:
    """Return the devices of those of these mounts that the process sees, by mount number; empty: it has ended."""
    found = {}
    try:
        with open(f"/proc/{pid}/mountinfo", errors="surrogateescape", newline="\n") as file:
            for line in file:
                number, _, device, _ = line.split(" ", 3)
                if int(number) in numbers:
                    found[int(number)] = device
    except OSError:
        return {}
    return found
