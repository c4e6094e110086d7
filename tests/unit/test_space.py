"""How full the file systems are that an agent writes to: which, what is left, what is said of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from agentres.kernel import devices, mounts, space
from agentres.kernel.mounts import Mount
from agentres.kernel.space import Space
from agentres.model.disk_space import growth, left
from agentres.model.stats import Reading

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "told"),
    [
        ((1024 * MIB, 70 * MIB, 0, 0), "/a: 70.0 MiB of 1.0 GiB free (6.8%)"),
        ((1000, 500, 1000, 900), "/a: 500 B of 1000 B free (50%)"),
        ((1000, 500, 1000, 20), "/a: 20 of 1000 inodes free (2.0%)"),
        ((1000, 0, 1000, 0), "/a: 0 B of 1000 B free (0%)"),
        ((100000, 4, 0, 0), "/a: 4 B of 97.7 KiB free (0.004%)"),
        ((0, 0, 0, 0), "/a: 0 B of 0 B free (0%)"),
    ],
)
def test_what_is_left(free: tuple[int, int, int, int], told: str) -> None:
    assert left("/a", *free) == told


FIRST_SEEN = "less than when this agent was first seen there"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((5 * MIB, None, None, None), f"5.0 MiB {FIRST_SEEN}"),
        ((-5 * MIB, None, None, None), f"no {FIRST_SEEN}"),
        (
            (5 * MIB, 4 * MIB, None, None),
            f"5.0 MiB {FIRST_SEEN}; since its start it has written 4.0 MiB in all",
        ),
        (
            (5 * MIB, 4 * MIB, 3 * MIB, None),
            f"5.0 MiB {FIRST_SEEN}; since its start it has written 4.0 MiB in all, 3.0 MiB of it to this disk so far",
        ),
        (
            (5 * MIB, 4 * MIB, None, 2 * MIB),
            f"5.0 MiB {FIRST_SEEN}; it holds 2.0 MiB in tmpfs and shared memory",
        ),
    ],
)
def test_whose_the_growth_is(given: tuple[int, int | None, int | None, int | None], told: str) -> None:  # fmt: skip
    assert growth(*given) == told


class Host:
    """Mounts and what is left on them, by mount point: blocks of 1 MiB, free, of these for users; inodes; free ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table: list[Mount] = []
        self.left: dict[str, tuple[int, int, int, int, int]] = {}
        self.ids: dict[str, int] = {}
        self.flags: dict[str, int] = {}
        self.asked: list[str] = []
        self.open: set[int] = set()
        self.files: Iterator[tuple[int, int]] | None = None
        self.now = 0.0
        monkeypatch.setattr(mounts, "mounts", lambda: self.table)
        self.opened: dict[int, str] = {}
        monkeypatch.setattr(space.libc, "openat2", self._openat2)  # type: ignore[attr-defined]
        monkeypatch.setattr(os, "fstatvfs", lambda fd: self._statvfs(self.opened[fd]))
        monkeypatch.setattr(space, "_mount_number", lambda pid, fd: self.ids[self.opened[fd]])
        monkeypatch.setattr(os.path, "realpath", lambda path: path)
        monkeypatch.setattr(devices, "disks", lambda mount, table: ["8:0"])
        monkeypatch.setattr(space.time, "monotonic", lambda: self.now)  # type: ignore[attr-defined]
        monkeypatch.setattr(space.time, "thread_time", lambda: 0.0)  # type: ignore[attr-defined]
        monkeypatch.setattr(space, "_written_mounts", self._written_mounts)
        monkeypatch.setattr(space, "_devices", self._devices)

    def mount(self, point: str, left: tuple[int, int, int, int, int], fstype: str = "ext4") -> None:
        number = f"8:{len(self.table)}"
        self.table.append(Mount(point, "/", number, fstype, "none", {}))
        self.left[point], self.ids[point] = left, len(self.table)

    def _devices(self, pid: int, numbers: Container[int]) -> dict[int, str]:
        return {at: mount.device for at, mount in enumerate(self.table) if at in numbers}

    def _written_mounts(self, pids: Iterable[int]) -> Iterator[tuple[int, int]]:
        yield from self.files or ((pid, number) for pid in pids for number in (*self.open, -1))

    def _openat2(self, directory: int, path: str, flags: int, resolve: int) -> int:
        path = os.path.normpath(os.path.join(self.opened.get(directory, "/"), path))
        if path not in self.left:
            raise FileNotFoundError(path)
        fd = os.open("/", flags)
        self.opened[fd] = path
        return fd

    def _statvfs(self, path: str) -> os.statvfs_result:
        self.asked.append(path)
        blocks, free, available, inodes, free_inodes = self.left[path]
        flags, fsid = self.flags.get(path, 0), self.ids[path]
        given: Any = (MIB, MIB, blocks, free, available, inodes, free_inodes, free_inodes, flags, 255, fsid)  # fmt: skip
        return os.statvfs_result(given)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(monkeypatch)
    made.mount("/", (1000, 500, 450, 1000, 900))
    return made


def look(of: Space, pids: Iterable[int] = (1,), **reading: Any) -> tuple[float, str]:
    return of.look(pids), of.describe(Reading(**reading), b"anon 1\nshmem 3145728\nfile 2\n")


def test_that_of_the_working_directory_counts_and_what_is_kept_for_root_is_root_s(host: Host) -> None:  # fmt: skip
    host.left["/work"], host.ids["/work"] = host.left["/"], host.ids["/"]
    assert look(Space("/work", True))[0] == 0.5
    used, told = look(Space("/work", False))
    assert used == pytest.approx(500 / 950)
    assert told.startswith("/work: 450 MiB of 950 MiB free (47%); no less")


def test_how_much_it_grew_and_what_of_that_is_the_agent_s(host: Host) -> None:
    found = Space("/", True)
    host.left["/"] = (1000, 80, 0, 1000, 900)
    disks = (("8:16", 0, 9 * MIB, 0, 0), ("8:0", 0, 300 * MIB, 0, 1))
    used, told = look(found, dirtied_bytes=400 * MIB, disks=disks)
    assert used == pytest.approx(0.92)
    assert told.endswith(f"420 MiB {FIRST_SEEN}; since its start it has written 400 MiB in all, 300 MiB of it to this disk so far")  # fmt: skip


def test_one_with_files_open_for_writing_is_added_and_the_fullest_counts(host: Host) -> None:
    host.mount("/data", (1000, 100, 100, 0, 0))
    host.mount("/full", (1000, 0, 0, 0, 0))
    found = Space("/", True)
    assert look(found)[0] == 0.5
    host.open = {1}
    assert look(found)[0] == 0.9
    host.open, host.left["/data"] = set(), (1000, 20, 20, 0, 0)
    assert look(found)[0] == 0.98  # it stays


def test_a_tmpfs_is_told_with_what_the_agent_holds_in_memory(host: Host) -> None:
    host.mount("/dev/shm", (1000, 10, 10, 0, 0), "tmpfs")
    host.open = {1}
    assert look(Space("/", True), dirtied_bytes=1)[1].endswith("it holds 3.0 MiB in tmpfs and shared memory")  # fmt: skip


def test_without_inodes_left_it_is_full(host: Host) -> None:
    host.left["/"] = (1000, 500, 500, 1000, 5)
    used, told = look(Space("/", True))
    assert (used, told.partition(";")[0]) == (0.995, "/: 5 of 1000 inodes free (0.5%)")


@pytest.mark.parametrize("fstype", ["nfs4", "fuse.sshfs", "cifs", "9p", "devtmpfs"])
def test_one_that_may_not_answer_is_never_asked(host: Host, fstype: str) -> None:
    host.mount("/far", (1000, 0, 0, 0, 0), fstype)
    host.open = {1}
    assert look(Space("/far", True)) == (0.0, "")
    assert look(Space("/", True))[0] == 0.5
    assert "/far" not in host.asked


def test_a_read_only_one_does_not_count(host: Host) -> None:
    host.mount("/image", (1000, 0, 0, 0, 0), "squashfs")
    host.flags["/image"] = os.ST_RDONLY
    assert look(Space("/image", True)) == (0.0, "")


def test_when_the_directory_is_gone_its_mount_point_is_asked(host: Host) -> None:
    host.left["/work"], host.ids["/work"] = host.left["/"], host.ids["/"]
    found = Space("/work", True)
    del host.left["/work"]
    assert look(found)[0] == 0.5


def test_one_that_is_mounted_no_more_does_not_count(host: Host) -> None:
    host.mount("/data", (1000, 0, 0, 0, 0))
    host.open = {1}
    found = Space("/", True)
    assert look(found)[0] == 1.0
    host.open = set()
    host.left["/data"], host.ids["/data"] = host.left["/"], host.ids["/"]
    assert look(found)[0] == 0.5


def test_open_files_are_not_looked_for_all_of_the_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    host.mount("/data", (1000, 0, 0, 0, 0))
    took = iter([0.0, 0.001, 0.1])
    monkeypatch.setattr(space.time, "thread_time", lambda: next(took, 0.1))  # type: ignore[attr-defined]
    found = Space("/", True)
    look(found)
    host.open, host.now = {1}, 19.9
    assert look(found)[0] == 0.5
    host.now = 20.0
    assert look(found)[0] == 1.0


def test_a_look_at_many_files_is_short_and_the_next_goes_on(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    host.mount("/data", (1000, 0, 0, 0, 0))
    clock = itertools.count()
    monkeypatch.setattr(space.time, "thread_time", lambda: next(clock) * 0.001)  # type: ignore[attr-defined]
    host.files = iter([(1, -1)] * 50 + [(2, 1)])
    found = Space("/", True)
    shares = []
    for _ in range(6):
        shares.append(look(found)[0])
        host.now += 10
    assert shares == [0.5] * 4 + [1.0] * 2


def test_a_device_that_was_passed_over_may_be_another_later(host: Host) -> None:
    host.mount("/far", (1000, 0, 0, 0, 0), "nfs4")
    host.open = {1}
    found = Space("/", True)
    look(found)
    host.table[1] = Mount("/far", "/", "8:1", "ext4", "none", {})
    assert look(found)[0] == 0.5
    host.open = set()
    look(found)
    host.open = {1}
    assert look(found)[0] == 1.0


HOLDS = """
import os, sys
file, memory = open(sys.argv[1], sys.argv[2]), os.memfd_create("agentres")
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(file: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the file open, and one that is mounted nowhere."""
    pipe = subprocess.PIPE
    line = [sys.executable, "-S", "-c", HOLDS, str(file), mode]
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate()


@pytest.mark.parametrize(("mode", "counts"), [("r", False), ("a", True)])
def test_only_what_a_process_writes_to_counts(tmp_path: Path, mode: str, counts: bool) -> None:
    (tmp_path / "file").touch()
    with holder(tmp_path / "file", mode) as process:
        assert (Space("/proc", True).look([process.pid]) > 0) is counts


def test_one_that_ends_while_it_is_looked_at_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with holder(tmp_path / "file", "a") as process:

        def open_late(path: str, *rest: Any, **named: Any) -> IO[Any]:
            if path == f"/proc/{process.pid}/mountinfo":
                process.kill()
                process.wait()
            return open(path, *rest, **named)

        monkeypatch.setattr(space, "open", open_late, raising=False)
        assert Space("/proc", True).look([process.pid]) == 0
        assert process.returncode == -9


def test_what_is_put_in_the_place_of_the_directory_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    point = mounts.mount_of(str(tmp_path), mounts.mounts()).point
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.setattr(mounts, "is_local", lambda mount, table: True)
    asked: list[str] = []
    answers = os.fstatvfs

    def fstatvfs(fd: int) -> os.statvfs_result:
        asked.append(os.readlink(f"/proc/self/fd/{fd}"))
        return answers(fd)

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    found = Space(str(directory), True)
    directory.rmdir()
    directory.symlink_to("/proc")
    assert found.look(()) > 0
    assert asked == [str(directory), point]
    opens = space.libc.openat2  # type: ignore[attr-defined]

    def openat2(at: int, path: str, flags: int, resolve: int) -> int:
        return opens(at, "/proc" if path == point else path, flags, resolve)

    monkeypatch.setattr(space.libc, "openat2", openat2)  # as when that is mounted over it
    assert found.look(()) == 0
    assert asked == [str(directory), point]


def test_the_open_files_of_one_that_has_ended_are_passed_over() -> None:
    assert 0 <= Space(".", True).look([2**22]) <= 1
