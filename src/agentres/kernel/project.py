"""Limits what is added below a directory, by a project quota (quotactl(2), FS_IOC_FSSETXATTR in ioctl_fs(2)); needs root.

All files in the directory get a project number of their own, new files inherit it, and the project's total is limited.  At the
end the numbers are reset to 0 and the limit is removed.  Meanwhile a file in :data:`RECORDS` tells of it: by that a later
run or ``agentres gc`` finds what a killed run has left, even after a reboot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from agentres.kernel import libc, mounts
from agentres.kernel.lock import Lock
from agentres.kernel.process import populated
from agentres.kernel.walk import below, everything
from agentres.model import log
from agentres.model.errors import NotEnforceable, UsageError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.caller import Caller

RECORDS = "/var/lib/agentres/disk-space"
"""A directory with one file for each project of ours, named by its number.  The file holds the agent's cgroup, the directory and its
mount point, each ended by a zero byte.  It is locked while its supervisor lives or somebody cleans up.  RECORDS itself is locked
while a number is chosen."""

_PATIENCE = 30.0
"""Seconds to wait for each holder of the lock: it queries some numbers and writes a file."""

NUMBERS = range(0x61670000, 0x61680000)
"""The project numbers that we use."""

_TRIES = 512
"""How many numbers to check for existing files: users may give theirs any number (``chattr -p``)."""

_QUOTACTL_FD = 443  # the same on all architectures
_Q_GETQUOTA, _Q_SETQUOTA, _Q_XGETQSTATV, _PRJQUOTA = 0x800007, 0x800008, 0x5808, 2
_IF_DQBLK = struct.Struct("=8QI4x")
_QIF_BLIMITS = 1
_BLOCK = 1024  # QIF_DQBLKSIZE
_STATV = struct.Struct("=bxH156x")  # fs_quota_statv: its version, its flags
_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD

_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=5I8x")
_PROJINHERIT = 0x200

_WORDS = {
    errno.ESRCH: "project quotas are off there; quotaon -P turns them on",
    errno.ENOSYS: "project quotas are off there, or not in this kernel",
    errno.EPERM: "it takes CAP_SYS_ADMIN in the host's own user namespace",
}
"""The meaning of quotactl(2)'s errors here."""


class Dqblk(Record):
    """Bytes that a project uses, and its limit (0: none)."""

    used: int
    limit: int


class QuotaUsage(Record):
    """Bytes that an agent may add below a directory, and that it had added at its end; None: not known."""

    directory: str
    limit: int
    used: int | None


class Quota:
    """Limits what an agent adds below one directory to ``size`` bytes, until :meth:`free`.

    ``home`` is the agent's cgroup.  ``caller`` must own the directory, and only its files count; None: anybody's.  ``early``
    is called repeatedly until the limit holds, and may raise.  Raises NotEnforceable, UsageError, and Locked where other
    processes hold the lock for too long.
    """

    def __init__(
        self,
        directory: str,
        size: int,
        home: str,
        caller: Caller | None = None,
        early: Callable[[], None] = lambda: None,
    ) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            if caller is None or caller.uid == 0:
                self._fd = os.open(directory, flags)
            else:
                from agentres.kernel.caller import open_as

                self._fd = open_as(caller, directory, flags, 0)
        except OSError as error:
            raise UsageError(f"--disk-space {directory}: {reason(error)}") from error
        self._record = -1
        try:
            self.size, self.directory = size, os.readlink(f"/proc/self/fd/{self._fd}")
            point = _suitable(self.directory)
            if caller is not None and caller.uid not in (0, os.fstat(self._fd).st_uid):
                raise UsageError(f"--disk-space {directory}: the directory is another user's")
            sweep(self.directory, early)
            self._number, self._record = _take_number(self._fd, home, self.directory, point, early)
            try:
                _tag(self._fd, self._number, caller, early)
                self._before = _dqblk(self._fd, self._number).used
                _limit(self._fd, self._number, self._before + size)
                if not _enforced(self._fd):
                    raise _refused(f"{point} counts what projects have, and holds none to its limit", f"quotaon -P {point}")  # fmt: skip
            except BaseException:
                self._undo()
                raise
        except OSError as error:
            self._close()
            why = _WORDS.get(error.errno or 0) or reason(error)
            raise _refused(f"{self.directory}: {why}") from error
        except BaseException:
            self._close()
            raise

    def usage(self) -> QuotaUsage:
        """Return what was added and is still there."""
        used: int | None = None
        try:
            used = max(0, _dqblk(self._fd, self._number).used - self._before)
        except OSError as error:
            log.debug(__name__, "what was added to %s is not known: %s", self.directory, error)
        return QuotaUsage(self.directory, self.size, used)

    def free(self) -> str:
        """Remove the limit and the numbers.  Return a message for the user, mostly empty.  After an OSError ``agentres gc`` does it."""
        try:
            return self._undo()
        finally:
            self._close()

    def _undo(self) -> str:
        _limit(self._fd, self._number, 0)
        kept = _untag(self._fd, self._number)
        os.unlink(f"{RECORDS}/{self._number}")
        return _of_those(kept, self.directory)

    def _close(self) -> None:
        for fd in (self._fd, self._record):
            if fd >= 0:
                os.close(fd)


def sweep(near: str = "", early: Callable[[], None] = lambda: None) -> list[str]:
    """Clean up what killed runs have left.  Return what was done, and what could not be, in words.

    ``near``: only projects around or inside this directory.  ``early`` is called repeatedly, and may raise.
    """
    done = []
    for number in sorted(_recorded()):
        try:
            if line := _take_back(number, near, early):
                done.append(f"the limit on disk space of {line}")
        except OSError as error:
            done.append(f"the limit on disk space by project {number} is still there: {error}")
    return done


def _take_back(number: int, near: str, early: Callable[[], None]) -> str:
    """Clean up a project that is no longer in use.  Return its directory and the outcome in words; empty: nothing to tell.  OSError."""
    path = f"{RECORDS}/{number}"
    try:
        record = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # its run has just ended
        return ""
    try:
        with Lock(RECORDS, _PATIENCE, early, in_line=True):  # not while it is being written
            fields = _abandoned(record)
        if fields is None:
            return ""
        if len(fields) != 4:  # its maker was killed before it did anything else
            os.unlink(path)
            return ""
        _, directory, point, _ = fields
        if near and os.path.commonpath((near, directory)) not in (near, directory):
            return ""
        line = _clear(number, directory, point, early)
        os.unlink(path)
        return line
    finally:
        os.close(record)


def _abandoned(record: int) -> list[str] | None:
    """Lock a record that is no longer in use and return its fields; None: it is in use, or gone.  OSError."""
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # its supervisor lives
        return None
    # No link: its run ended between open and lock, and the number may be in use again.
    if not os.fstat(record).st_nlink:
        return None
    fields = [os.fsdecode(each) for each in os.read(record, 1 << 16).split(b"\0")]
    if len(fields) == 4 and _lives(fields[0]):  # without a supervisor (--orphan keep)
        return None
    return fields


def _clear(number: int, directory: str, point: str, early: Callable[[], None]) -> str:
    """Lift the limit and remove the number from all files.  Return the directory and a message about it.  OSError."""
    mount = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _limit(mount, number, 0)
        top = _same(mount, os.path.relpath(directory, point), number)
    finally:
        os.close(mount)
    if top < 0:
        return f"{directory}, which is there no more: wherever its files are, they keep the number of a project without a limit"  # fmt: skip
    try:
        line = _of_those(_untag(top, number, early), directory)
    finally:
        os.close(top)
    return f"{directory}; {line}" if line else directory


def _of_those(kept: int, directory: str) -> str:
    """Return the message about files that could not be opened."""
    if not kept:
        return ""
    files = "1 file" if kept == 1 else f"{kept} files"
    return f"{files} below {directory} cannot be opened, and may keep the number of a project without a limit"


def _same(mount: int, path: str, number: int) -> int:
    """Open the directory below its mount point if it has the number; -1: it is gone, or another one is there."""
    resolve = libc.NO_XDEV | libc.NO_SYMLINKS | libc.BENEATH
    try:
        fd = libc.openat2(mount, path, os.O_RDONLY | os.O_DIRECTORY, resolve)
    except OSError as error:
        log.debug(__name__, "%s cannot be opened: %s", path, error)
        return -1
    try:
        if _attributes(fd)[3] == number:
            return fd
    except OSError as error:
        log.debug(__name__, "%s tells no project: %s", path, error)
    os.close(fd)
    return -1


# Where a quota is possible.


def _suitable(directory: str) -> str:
    """Return the mount point of the directory; NotEnforceable where its file system has no project quota."""
    if os.geteuid() != 0:
        raise _refused("a project quota is root's to set", "the daemon does it for users")
    mount = mounts.mount_of(directory, mounts.mounts())
    elsewhere = "have it work on an ext4 or xfs that is mounted with -o prjquota"
    if mount.fstype not in ("ext4", "xfs"):
        raise _refused(f"{directory} is on {mount.fstype}, which has no project quota", elsewhere)
    if "prjquota" not in mount.options:
        feature = (
            f"tune2fs -O project -Q prjquota {mount.source}; " if mount.fstype == "ext4" else ""
        )
        remedy = f"umount {mount.point}; {feature}mount -o prjquota {mount.source} {mount.point}"
        raise _refused(f"{mount.point} is mounted without prjquota", remedy)
    return mount.point


def _refused(why: str, remedy: str = "") -> NotEnforceable:
    return NotEnforceable(f"cannot enforce --disk-space: {why}", remedy)


# The project numbers.


def _take_number(
    fd: int, home: str, directory: str, point: str, early: Callable[[], None]
) -> tuple[int, int]:
    """Take a number by writing its record.  Return both; the record is an fd with a lock, which shows that we are alive."""
    os.makedirs(RECORDS, mode=0o700, exist_ok=True)
    with Lock(RECORDS, _PATIENCE, early, in_line=True):
        taken = _recorded()
        has = _attributes(fd)[3]
        if has and (has not in NUMBERS or has in taken):
            raise _refused(
                f"{directory} is in project {has} already",
                "one directory has one limit: another agent may work there (agentres ps)",
            )
        number = _free(fd, taken)
        path = f"{RECORDS}/{number}"
        record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(record, fcntl.LOCK_EX)
        os.write(record, b"".join(os.fsencode(each) + b"\0" for each in (home, directory, point)))
        return number, record


def _free(fd: int, taken: set[int]) -> int:
    """Return a number without a record, and without files if there is such a one.  NotEnforceable, OSError."""
    free = [number for number in NUMBERS if number not in taken]
    if not free:
        raise _refused("no project number is free")
    for number in free[:_TRIES]:
        if _dqblk(fd, number) == Dqblk(0, 0):
            return number
    # A user gives our numbers to files.  Those files count as there before.  Choose at random, so that nobody can predict it.
    return free[int.from_bytes(os.urandom(4), "little") % len(free)]


def _recorded() -> set[int]:
    try:
        return {int(name) for name in os.listdir(RECORDS)}
    except FileNotFoundError:
        return set()


def _lives(home: str) -> bool:
    try:
        return populated(home)
    except FileNotFoundError:
        return False


# The kernel's part.


def _dqblk(fd: int, number: int) -> Dqblk:
    """Return a project's usage and limit on the file system of ``fd``; OSError."""
    block = ctypes.create_string_buffer(_IF_DQBLK.size)
    try:
        _quotactl(fd, _Q_GETQUOTA, number, block)
    except OSError as error:
        if error.errno == errno.ENOENT:  # xfs does not know the project
            return Dqblk(0, 0)
        raise
    hard, _, space, *_ = _IF_DQBLK.unpack(block.raw)
    return Dqblk(space, hard * _BLOCK)


def _limit(fd: int, number: int, size: int) -> None:
    """Limit a project to ``size`` bytes in all; 0: no limit; OSError."""
    hard = -(-size // _BLOCK)
    block = ctypes.create_string_buffer(
        _IF_DQBLK.pack(hard, *[0] * 7, _QIF_BLIMITS), _IF_DQBLK.size
    )
    _quotactl(fd, _Q_SETQUOTA, number, block)


def _enforced(fd: int) -> bool:
    """Whether limits are enforced: after quotaoff(8) ext4 still counts and accepts limits.  OSError."""
    block = ctypes.create_string_buffer(_STATV.pack(1, 0), _STATV.size)
    _quotactl(fd, _Q_XGETQSTATV, 0, block)
    return bool(_STATV.unpack(block.raw)[1] & _ENFORCED)


def _quotactl(fd: int, command: int, number: int, block: ctypes.Array[ctypes.c_char]) -> None:
    what = ctypes.c_uint(command << 8 | _PRJQUOTA)
    libc.call("syscall", _QUOTACTL_FD, ctypes.c_uint(fd), what, ctypes.c_uint(number), block)


def _tag(top: int, number: int, caller: Caller | None, early: Callable[[], None]) -> None:
    """Put all below a directory into the project, and all that is created there later.  NotEnforceable, OSError."""
    records = _recorded()

    def failed(error: OSError) -> None:
        raise _refused(f"{error.filename} below {_where(top)}: {reason(error)}") from error

    def is_the_caller_s(found: os.stat_result) -> bool:
        # A file with several links may also be in a directory that is not meant to be limited.
        once = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
        return once and caller is not None and found.st_uid == caller.uid

    wanted = everything if caller is None or caller.uid == 0 else is_the_caller_s
    for fd, is_directory in below(top, failed, early, wanted):
        flags, extent, _, has, cow = _attributes(fd)
        if has and has != number and (has not in NUMBERS or has in records):
            raise _refused(
                f"{_where(fd)} is in project {has} already", "one directory has one limit"
            )
        flags = flags | _PROJINHERIT if is_directory else flags
        fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags, extent, 0, number, cow))


def _untag(top: int, number: int, early: Callable[[], None] = lambda: None) -> int:
    """Remove the number from all below a directory.  Return how many files could not be opened or changed.

    A failure on one file does not stop the rest.
    """
    kept = 0

    def failed(error: OSError) -> None:
        nonlocal kept
        kept += 1
        log.debug(__name__, "it may keep project %s: %s", number, error)

    for fd, _ in below(top, failed, early):
        try:
            flags, extent, _, has, cow = _attributes(fd)
            if has == number:
                cleared = _FSXATTR.pack(flags & ~_PROJINHERIT, extent, 0, 0, cow)
                fcntl.ioctl(fd, _FSSETXATTR, cleared)
        except OSError as error:
            failed(error)
    return kept


def _where(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # longer than any path may be
        return "what is deep in it"


def _attributes(fd: int) -> tuple[int, ...]:
    """Return xflags, extsize, nextents, projid, cowextsize; OSError."""
    return _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))
