"""Finds the block devices to set ``io.max`` on: for the whole host, or for a path.

``io.max`` takes whole devices (a partition is ENODEV) and works on every layer of a stack, device
mapper and md included.  The limit belongs on the layer that file systems submit to.  There a bio
always carries its cgroup, while dm-crypt and md RAID 5/6 pass it on from threads of their own.  On
two layers the limit would apply twice: a process that waits for each operation would get half the rate.

So a rate for every disk is set on all whole devices in /sys/block except those that only carry other
devices.  A rate for one path is set on the device that its file system submits to.

Writes through the page cache are charged to the cgroup only on file systems with cgroup writeback
(cgroup-v2.rst, "Writeback"); :func:`unlimited_mounts` names the mounts where they are not.
"""

from __future__ import annotations

import os
import stat

from agentres.kernel.mounts import Mount, beneath, mount_of, mounts
from agentres.model.errors import UsageError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SYS = "/sys"

_MEMORY_MAJOR = 1  # /dev/ram* (devices.txt)

WRITEBACK = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
"""File systems whose buffered writes are charged to the writer's cgroup."""

NOT_ON_DISK = frozenset({"tmpfs", "ramfs", "devtmpfs", "squashfs", "erofs", "iso9660"})
"""File systems in memory or read-only: nothing written to them reaches a disk."""


class UnlimitedMount(Record):
    """A mount whose disk traffic ``io.max`` cannot limit, and why."""

    mount: Mount
    why: str


def every_disk(table: list[Mount]) -> list[str]:
    """Return the numbers (``MAJ:MIN``) of all whole block devices that file systems could submit to.

    If a disk carries a mounted partition and a stack, both count: the rate applies on both, and is
    never exceeded.  The same goes for a loop device and the disk with its file: what the loop driver
    writes there is charged to the cgroup that dirtied the file's inode first, so the disk's rate alone
    would not hold it.
    """
    mounted = {number for mount in table for number in _submitted_to(mount)}
    found = []
    for name in _list(f"{SYS}/block"):
        directory = f"{SYS}/block/{name}"
        if _read(f"{directory}/size") in ("", "0"):
            continue
        number = _read(f"{directory}/dev")
        # A path below a multipath device is hidden: it has no number of its own for io.max.
        hidden = _read(f"{directory}/hidden") == "1"
        memory = number.startswith(f"{_MEMORY_MAJOR}:") or name.startswith("zram")
        if not number or hidden or memory:
            continue
        if number in mounted or not _carries(directory):
            found.append(number)
    return found


def _submitted_to(mount: Mount) -> list[str]:
    """Return the whole devices of a mount; empty if it has none or they are not known."""
    try:
        return list(_devices(mount))
    except UsageError:
        return []


def _carries(directory: str) -> bool:
    """Whether other block devices are built on the device or a partition of it."""
    disk = os.path.basename(directory)
    # sda1, nvme0n1p1: a partition's directory starts with its disk's name, among fifty others.
    parts = [f"{directory}/{name}" for name in _list(directory) if name.startswith(disk)]
    return any(_list(f"{part}/holders") for part in (directory, *parts))


def is_device(path: str) -> bool:
    """Whether the path is a block device node."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def behind(path: str) -> list[str]:
    """Return the numbers of the whole devices behind a device node, file or directory.

    Raises UsageError where there is no such path, or no device behind it that ``io.max`` takes.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"device {path}: {reason(error)}") from error
    if stat.S_ISBLK(status.st_mode):
        return [whole(status.st_rdev)]
    if stat.S_ISCHR(status.st_mode):
        raise UsageError(f"device {path}: not a block device")
    table = mounts()
    try:
        return disks(mount_of(path, table), table)
    except UsageError as error:
        raise UsageError(f"device {path}: {error.message}", error.remedy) from None


def disks(mount: Mount, table: list[Mount]) -> list[str]:
    """Return the numbers of the whole devices that writes to a mount go to; UsageError where there are none."""
    return list(dict.fromkeys(_devices(beneath(mount, table))))


def whole(device: int) -> str:
    """Return the number of the device, or of its disk if it is a partition."""
    number = f"{os.major(device)}:{os.minor(device)}"
    link = f"{SYS}/dev/block/{number}"
    if os.path.exists(f"{link}/partition"):
        return _read(f"{os.path.dirname(os.path.realpath(link))}/dev")
    return number


def _devices(mount: Mount) -> Iterator[str]:
    major, minor = map(int, mount.device.split(":"))
    if mount.fstype == "btrfs":
        yield from _btrfs_devices(mount)
    elif major:
        yield whole(os.makedev(major, minor))
    else:
        raise UsageError(
            f"{mount.point} is {mount.fstype}, with no block device behind it",
            "name the device itself, as /dev/NAME=RATE",
        )


def _btrfs_devices(mount: Mount) -> Iterator[str]:
    """Yield all members of the btrfs that the mount's source belongs to: its st_dev is anonymous."""
    member = os.path.basename(os.path.realpath(mount.source))
    root = f"{SYS}/fs/btrfs"
    for uuid in _list(root):
        devices = f"{root}/{uuid}/devices"
        if os.path.exists(f"{devices}/{member}"):
            for name in _list(devices):
                major, minor = map(int, _read(f"{devices}/{name}/dev").split(":"))
                yield whole(os.makedev(major, minor))
            return
    raise UsageError(
        f"cannot tell the disks of the btrfs at {mount.point} ({mount.source})",
        "name them, as /dev/NAME=RATE",
    )


def unlimited_mounts(paths: Iterable[str], table: list[Mount]) -> list[UnlimitedMount]:
    """Return the mounts of ``paths`` whose buffered writes ``io.max`` does not limit."""
    found: dict[str, UnlimitedMount] = {}
    for path in paths:
        mount = beneath(mount_of(path, table), table)
        if mount.fstype in WRITEBACK or mount.fstype in NOT_ON_DISK:
            continue
        if mount.fstype == "overlay":
            why = "its upper directory is out of sight, so its disk is unknown"
        elif mount.device.startswith("0:"):
            why = f"{mount.fstype} does not write through a block device of this host"
        else:
            why = f"{mount.fstype} does not charge buffered writes to the cgroup"
        found[mount.point] = UnlimitedMount(mount, why)
    return list(found.values())


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:  # gone between listing and reading, or an attribute that this device lacks
        return ""


def _list(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:  # no sysfs here, or gone between two looks
        return []
