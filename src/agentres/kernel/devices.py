"""The block devices whose ``io.max`` counts: of the whole host, and behind a path.

``io.max`` takes whole devices (a partition is ENODEV) and works on every layer of a stack, device
mapper and md included.  The limit belongs on the layer that file systems submit to: there a bio
always carries its cgroup, while dm-crypt and md RAID 5/6 pass it on from threads of their own.  On
two layers it would hold twice: who waits for each of his operations would get half the rate.  So a
rate for every disk stands on all whole devices in /sys/block but those that only carry other devices;
a rate for one path stands on the device that its file system submits to.

Writes through the page cache are charged to the cgroup only on file systems with cgroup writeback
(cgroup-v2.rst, "Writeback"); :func:`uncounted` names the mounts where they are not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from agentres.kernel.mounts import Mount, beneath, mount_of, mounts
from agentres.model.errors import UsageError, reason
from agentres.model.record import Record

SYS = "/sys"

_MEMORY_MAJOR = 1  # /dev/ram* (devices.txt)

WRITEBACK = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
"""File systems whose buffered writes are charged to the writer's cgroup."""

NOT_ON_DISK = frozenset({"tmpfs", "ramfs", "devtmpfs", "squashfs", "erofs", "iso9660"})
"""In memory, or read-only: nothing is written to a disk behind them."""


class Uncounted(Record):
    """A mount whose disk traffic ``io.max`` cannot hold, and why."""

    mount: Mount
    why: str


def every_disk(table: list[Mount]) -> list[str]:
    """The numbers (``MAJ:MIN``) of all whole block devices that file systems could submit to.

    A disk that carries a mounted partition beside a stack counts, and then so does the stack: its
    rate holds on both, and is never exceeded.  The same goes for a loop device and the disk that its
    file is on: what the loop driver writes there belongs to whoever dirtied the file's inode first,
    so that the disk's rate alone would not hold it.
    """
    mounted = {number for mount in table for number in _submitted_to(mount)}
    found = []
    for name in _list(f"{SYS}/block"):
        directory = f"{SYS}/block/{name}"
        if _read(f"{directory}/size") in ("", "0"):
            continue
        number = _read(f"{directory}/dev")
        # A path below a multipath device: hidden, it has no number of its own to write to.
        hidden = _read(f"{directory}/hidden") == "1"
        memory = number.startswith(f"{_MEMORY_MAJOR}:") or name.startswith("zram")
        if not number or hidden or memory:
            continue
        if number in mounted or not _carries(directory):
            found.append(number)
    return found


def _submitted_to(mount: Mount) -> list[str]:
    """The whole devices of a mount; none where it has none, or where they cannot be told."""
    try:
        return list(_devices(mount))
    except UsageError:
        return []


def _carries(directory: str) -> bool:
    """Whether the device, or a partition of it, is a part of other block devices."""
    disk = os.path.basename(directory)
    # sda1, nvme0n1p1: a partition's directory starts with its disk's name, among fifty others.
    parts = [f"{directory}/{name}" for name in _list(directory) if name.startswith(disk)]
    return any(_list(f"{part}/holders") for part in (directory, *parts))


def is_device(path: str) -> bool:
    """Whether the path is a block device's own node."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def behind(path: str) -> list[str]:
    """The numbers of the whole devices that a device node, file or directory stands for.

    Raises UsageError where there is no such path, or nothing that ``io.max`` takes behind it.
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
    """The numbers of the whole devices that what is written to a mount goes to; UsageError where there are none."""
    return list(dict.fromkeys(_devices(beneath(mount, table))))


def whole(device: int) -> str:
    """The number of the device, or of the disk that it is a partition of."""
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
    """All members of the file system that the mount's source is one of (an anonymous st_dev)."""
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


def uncounted(paths: Iterable[str], table: list[Mount]) -> list[Uncounted]:
    """The mounts under ``paths`` whose buffered writes ``io.max`` does not hold."""
    found: dict[str, Uncounted] = {}
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
        found[mount.point] = Uncounted(mount, why)
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
