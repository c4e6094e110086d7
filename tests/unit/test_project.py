"""Project quotas: whose number is whose, what gets it and loses it, over a file system whose attributes are simulated."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentres.kernel import caller, libc, mounts, project
from agentres.kernel.caller import Caller
from agentres.kernel.lock import Lock
from agentres.kernel.mounts import Mount
from agentres.kernel.project import Quota, QuotaUsage
from agentres.model.errors import Interrupted, NotEnforceable, UsageError

FIRST, SECOND = project.NUMBERS[:2]
KIB = 1024
INHERIT = 0x200
KEPT = 0x10
"""Another flag that a file may have."""
GETXATTR, XATTR = 0x801C581F, struct.Struct("=5I8x")
"""FS_IOC_FSGETXATTR, and what that returns (linux/fs.h)."""
QUOTACTL_FD = 443
GETQUOTA, SETQUOTA, GETSTATE = 0x800007, 0x800008, 0x5808
"""Q_GETQUOTA, Q_SETQUOTA and Q_XGETQSTATV (linux/quota.h, linux/dqblk_xfs.h)."""


class Kernel:
    """The project of each file, what each project has and may have, in whole KiB; ``meanwhile`` is done when a file changes its own."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inodes: dict[int, tuple[int, int]] = {}
        self.sizes: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.limits: dict[int, int] = {}
        self.populated: set[str] = set()
        self.enforced = True
        self.refused: set[int] = set()
        self.error = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.table = [Mount("/", "/", "8:1", "ext4", "/dev/sda1", {"prjquota": ""})]
        monkeypatch.setattr(project, "RECORDS", str(tmp_path / "records"))
        self._call = libc.call
        monkeypatch.setattr(libc, "call", self._quotactl)
        monkeypatch.setattr(project, "populated", self._populated)
        monkeypatch.setattr(project.fcntl, "ioctl", self._ioctl)  # type: ignore[attr-defined]
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(mounts, "mounts", lambda: self.table)
        self.work = tmp_path / "work"
        (self.work / "sub").mkdir(parents=True)
        for name in ("file", "sub/file"):
            (self.work / name).touch()

    def _ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        inode = os.fstat(fd).st_ino
        if inode in self.refused:
            raise PermissionError(1, "Operation not permitted")
        had, before = self.inodes.get(inode, (KEPT, 0))
        if request == GETXATTR:
            return XATTR.pack(had, 0, 0, before, 0)
        self.meanwhile()
        flags, _, _, number, _ = XATTR.unpack(data)
        self.inodes[inode] = (flags, number)
        for each, sign in ((before, -1), (number, 1)):
            size = sign * self.sizes.get(inode, 0)
            self.used[each] = self.used.get(each, 0) + size
        return data

    def _quotactl(self, function: str, call: Any, *arguments: Any) -> int:
        if (function, call) != ("syscall", QUOTACTL_FD):
            return self._call(function, call, *arguments)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        _, command, number, block = arguments
        used, limit = (each.get(number.value, 0) for each in (self.used, self.limits))
        asked = command.value >> 8
        if asked == GETQUOTA:
            block.raw = struct.pack("=8QI4x", limit // KIB, 0, used, *[0] * 6)
        elif asked == SETQUOTA:
            self.limits[number.value] = struct.unpack_from("=Q", block)[0] * KIB
        else:
            assert asked == GETSTATE
            block.raw = struct.pack("=bxH156x", 1, self.enforced << 5)
        return 0

    def _populated(self, home: str) -> bool:
        if home == "/gone":
            raise FileNotFoundError(home)
        return home in self.populated

    def of(self, path: Path) -> tuple[int, int]:
        return self.inodes.get(path.lstat().st_ino, (KEPT, 0))

    def die(self, quota: Quota) -> None:
        """Its supervisor is killed."""
        quota._close()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def records() -> list[str]:
    return sorted(os.listdir(project.RECORDS)) if os.path.isdir(project.RECORDS) else []


def test_all_below_gets_the_number_and_loses_it(kernel: Kernel) -> None:
    work, elsewhere = kernel.work, kernel.work.parent / "elsewhere"
    elsewhere.touch()
    (work / "link").symlink_to(elsewhere)
    quota = Quota(str(work), 5 * KIB, "/home")
    assert records() == [str(FIRST)]
    assert kernel.of(work) == kernel.of(work / "sub") == (KEPT | INHERIT, FIRST)
    assert kernel.of(work / "file") == kernel.of(work / "sub/file") == (KEPT, FIRST)
    assert kernel.of(elsewhere) == (KEPT, 0)
    kernel.used[FIRST] = 4000
    assert quota.usage() == QuotaUsage(str(work), 5 * KIB, 4000)
    (work / "new").touch()
    kernel.inodes[(work / "new").stat().st_ino] = (KEPT, 77)  # somebody's by now
    quota.free()
    assert records() == []
    assert kernel.limits[FIRST] == 0
    for path in (work, work / "sub", work / "file", work / "sub/file"):
        assert kernel.of(path) == (KEPT, 0)
    assert kernel.of(work / "new") == (KEPT, 77)


def test_what_is_there_already_comes_on_top(kernel: Kernel) -> None:
    kernel.sizes[(kernel.work / "file").stat().st_ino] = 3 * KIB
    quota = Quota(str(kernel.work), 5 * KIB, "/home")
    assert kernel.limits[FIRST] == 8 * KIB
    kernel.used[FIRST] = 1000
    assert quota.usage().used == 0
    quota.free()


def test_a_number_that_somebody_has_is_not_given(kernel: Kernel) -> None:
    kernel.used[FIRST] = 1
    quota = Quota(str(kernel.work), 1, "/home")
    assert records() == [str(SECOND)]
    quota.free()


def test_a_directory_has_one_limit_and_a_refusal_leaves_nothing(kernel: Kernel) -> None:
    sub = Quota(str(kernel.work / "sub"), 1, "/home")
    for taken in (kernel.work, kernel.work / "sub"):
        with pytest.raises(NotEnforceable, match=f"sub is in project {FIRST} already"):
            Quota(str(taken), 1, "/home")
    assert records() == [str(FIRST)]
    assert kernel.of(kernel.work) == (KEPT, 0)
    assert kernel.of(kernel.work / "sub") == (KEPT | INHERIT, FIRST)
    sub.free()


@pytest.mark.parametrize(
    ("home", "taken_back"), [("/gone", True), ("/empty", True), ("/lives", False)]
)
def test_what_one_that_was_killed_has_left_is_taken_back(kernel: Kernel, home: str, taken_back: bool) -> None:  # fmt: skip
    kernel.populated = {"/lives"}
    quota = Quota(str(kernel.work), 1, home)
    assert project.sweep() == []  # its supervisor lives
    kernel.die(quota)
    told = [f"the limit on disk space of {kernel.work}"] if taken_back else []
    assert project.sweep() == told
    assert records() == ([] if taken_back else [str(FIRST)])
    assert kernel.of(kernel.work / "file") == (KEPT, 0 if taken_back else FIRST)


@pytest.mark.parametrize("near", [".", "sub", "..", "../beside"])
def test_the_next_one_takes_it_back_too_and_none_that_is_elsewhere(kernel: Kernel, near: str) -> None:  # fmt: skip
    (kernel.work.parent / "beside").mkdir()
    kernel.die(Quota(str(kernel.work), 1, "/gone"))
    quota = Quota(os.path.normpath(kernel.work / near), 1, "/home")
    assert records() == ([str(FIRST), str(SECOND)] if near == "../beside" else [str(FIRST)])
    quota.free()


def test_who_waits_for_the_lock_hears_of_signals(kernel: Kernel) -> None:
    os.makedirs(project.RECORDS)
    heard = []

    def early() -> None:
        heard.append(1)
        if len(heard) > 3:
            raise Interrupted(2)

    with Lock(project.RECORDS), pytest.raises(Interrupted):
        Quota(str(kernel.work), 1, "/home", early=early)
    assert records() == []


def test_who_walks_hears_of_signals_and_leaves_nothing(kernel: Kernel) -> None:
    for number in range(10):
        (kernel.work / f"link-{number}").symlink_to("file")  # which are passed over
    heard = []

    def early() -> None:
        heard.append(1)
        if len(heard) > 9:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        Quota(str(kernel.work), 1, "/home", early=early)
    assert records() == []
    assert {number for _, number in kernel.inodes.values()} == {0}


def test_others_are_not_kept_waiting_while_one_is_taken_back(kernel: Kernel) -> None:
    kernel.die(Quota(str(kernel.work / "sub"), 1, "/gone"))
    beside = kernel.work.parent / "beside"
    beside.mkdir()
    met = []

    def meanwhile() -> None:
        if not met:
            met.append(records())
            Quota(str(beside), 1, "/home").free()
            assert project.sweep() == []  # nobody else takes it meanwhile

    kernel.meanwhile = meanwhile
    assert project.sweep() == [f"the limit on disk space of {kernel.work / 'sub'}"]
    assert met == [[str(FIRST)]]


def test_a_record_that_went_while_it_was_opened_is_nobody_s_to_take(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    quota = Quota(str(kernel.work), 1, "/gone")
    opens = os.open

    def open_slowly(path: str, *rest: Any, **named: Any) -> int:
        fd = opens(path, *rest, **named)
        if path == f"{project.RECORDS}/{FIRST}":
            quota.free()
        return fd

    monkeypatch.setattr(os, "open", open_slowly)
    assert project.sweep() == []
    assert records() == []


def test_one_file_that_refuses_keeps_nothing_but_its_own_number(kernel: Kernel) -> None:
    quota = Quota(str(kernel.work), 1, "/home")
    kernel.refused = {(kernel.work / "sub").stat().st_ino}
    told = quota.free()
    assert told == f"1 file below {kernel.work} cannot be opened, and may keep the number of a project without a limit"  # fmt: skip
    assert records() == []
    assert kernel.limits[FIRST] == 0
    assert kernel.of(kernel.work / "sub/file") == kernel.of(kernel.work) == (KEPT, 0)
    kernel.refused = set()
    kernel.used[FIRST] = 1
    kernel.die(Quota(str(kernel.work), 1, "/gone"))
    kernel.refused = {(kernel.work / "file").stat().st_ino}
    assert project.sweep() == [f"the limit on disk space of {kernel.work}; {told}"]
    assert records() == []


def test_where_nothing_is_enforced_it_is_refused(kernel: Kernel) -> None:
    kernel.enforced = False
    with pytest.raises(NotEnforceable, match="holds none to its limit; quotaon -P /"):
        Quota(str(kernel.work), 1, "/home")
    assert records() == []
    assert kernel.of(kernel.work) == (KEPT, 0)


def test_where_others_have_used_all_numbers_one_is_taken_all_the_same(kernel: Kernel) -> None:
    kernel.used = dict.fromkeys(project.NUMBERS, 4 * KIB)
    quota = Quota(str(kernel.work), 5 * KIB, "/home")
    (number,) = map(int, records())
    assert number in project.NUMBERS
    assert kernel.limits[number] == 9 * KIB
    quota.free()


def test_what_is_not_the_caller_s_does_not_count(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    work = kernel.work
    (work / "link").hardlink_to(work / "sub/file")
    other = (work / "file").stat().st_ino
    fstat = os.fstat

    def owned(fd: int) -> os.stat_result:
        found = fstat(fd)
        fields = list(found)
        fields[4] = 1001 if found.st_ino == other else 1000
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", owned)
    monkeypatch.setattr(caller, "open_as", lambda who, *rest: os.open(*rest))
    quota = Quota(str(work), 1, "/home", Caller(1, 1000, 1000, ()))
    assert kernel.of(work)[1] == kernel.of(work / "sub")[1] == FIRST
    assert kernel.of(work / "file") == kernel.of(work / "link") == (KEPT, 0)
    quota.free()


def test_a_record_that_was_not_finished_goes(kernel: Kernel) -> None:
    kernel.die(Quota(str(kernel.work), 1, "/gone"))
    Path(project.RECORDS, str(FIRST)).write_bytes(b"/go")
    assert project.sweep() == []
    assert records() == []


@pytest.mark.parametrize(
    ("number", "words"), [(3, "quotaon -P"), (1, "CAP_SYS_ADMIN"), (5, "input/output error")]
)
def test_what_the_kernel_refuses_is_told_in_words(kernel: Kernel, number: int, words: str) -> None:
    kernel.error = number
    with pytest.raises(NotEnforceable, match=words):
        Quota(str(kernel.work), 1, "/home")
    assert records() == []


def test_what_cannot_be_taken_back_is_told(kernel: Kernel) -> None:
    kernel.die(Quota(str(kernel.work), 1, "/gone"))
    kernel.error = errno.EIO
    (told,) = project.sweep()
    assert told.startswith(f"the limit on disk space by project {FIRST} is still there: ")
    assert records() == [str(FIRST)]


def test_where_the_directory_is_gone_its_limit_is_taken_back(kernel: Kernel) -> None:
    beside = kernel.work.parent / "beside"
    beside.mkdir()
    kernel.die(Quota(str(beside), 1, "/gone"))
    beside.rmdir()
    record = Path(project.RECORDS, str(FIRST))
    record.write_bytes(f"/gone\0{beside}\0{kernel.work}\0".encode())
    kernel.inodes[(kernel.work / "file").stat().st_ino] = (KEPT, FIRST)  # it is not searched for
    (told,) = project.sweep()
    assert told.startswith(f"the limit on disk space of {beside}, which is there no more: ")
    assert kernel.limits[FIRST] == 0
    assert records() == []
    assert kernel.of(kernel.work / "file") == (KEPT, FIRST)


def test_what_is_there_instead_of_the_directory_is_not_touched(kernel: Kernel) -> None:
    sub = kernel.work / "sub"
    kernel.die(Quota(str(sub), 1, "/gone"))
    Path(project.RECORDS, str(FIRST)).write_bytes(f"/gone\0{sub}\0{kernel.work}\0".encode())
    sub.rename(kernel.work / "moved")
    sub.symlink_to("moved")
    (told,) = project.sweep()
    assert "which is there no more" in told
    assert kernel.of(kernel.work / "moved")[1] == FIRST


@pytest.mark.parametrize(
    ("fstype", "words"),
    [
        ("ext4", "/ is mounted without prjquota; umount /; tune2fs -O project -Q prjquota /dev/sda1; mount -o prjquota /dev/sda1 /"),
        ("xfs", "/ is mounted without prjquota; umount /; mount -o prjquota /dev/sda1 /"),
        ("btrfs", "is on btrfs, which has no project quota; have it work on an ext4 or xfs that is mounted with -o prjquota"),
        ("overlay", "is on overlay, which has no project quota"),
    ],
)  # fmt: skip
def test_elsewhere_it_is_refused_with_the_remedy(kernel: Kernel, fstype: str, words: str) -> None:
    kernel.table = [Mount("/", "/", "8:1", fstype, "/dev/sda1", {"rw": ""})]
    with pytest.raises(NotEnforceable) as refused:
        Quota(str(kernel.work), 1, "/home")
    assert str(refused.value).startswith("cannot enforce --disk-space: ")
    assert words in str(refused.value)
    assert records() == []


def test_who_is_not_root_is_refused(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotEnforceable, match="root's to set; the daemon does it for users"):
        Quota(str(kernel.work), 1, "/home")


def test_a_directory_that_is_not_there(kernel: Kernel) -> None:
    for name, words in (("none", "no such file or directory"), ("file", "not a directory")):
        with pytest.raises(UsageError, match=words):
            Quota(str(kernel.work / name), 1, "/home")
