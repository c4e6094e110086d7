"""The mount table: /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Mapping


class Mount(Record):
    """One mount: ``root`` is the part of the file system that is visible at ``point``.

    ``device`` is its number (``MAJ:MIN``; a major of 0 is no block device); ``options`` are the file
    system's own.
    """

    point: str
    root: str
    device: str
    fstype: str
    source: str
    options: dict[str, str]


_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "autofs", "glusterfs", "afs", "lustre")
"""Prefixes of the types of file systems that may block a caller for ever."""

UNKNOWN = Mount("/", "/", "0:0", "unknown", "none", {})
"""The mount of a path in a chroot, where the root is no mount point."""


def parse_mounts(mountinfo: str, fstype: str = "") -> list[Mount]:
    """Parse mountinfo, or only the file systems whose type begins with ``fstype``; pure.

    Only blanks separate: names may hold any other white space.
    """
    mounts = []
    for line in mountinfo.split("\n"):
        before, separator, after = line.partition(" - ")
        if not separator or not after.startswith(fstype):
            continue
        _, _, device, root, point, *_ = before.split(" ")
        kind, source, options = after.split(" ", 2)
        pairs = (item.partition("=") for item in options.split(","))
        named = {key: _unescape(value) for key, _, value in pairs}
        mounts.append(
            Mount(_unescape(point), _unescape(root), device, kind, _unescape(source), named)
        )
    return mounts


def mounts(fstype: str = "") -> list[Mount]:
    """Return the mounts that this process sees, as :func:`parse_mounts` does."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return parse_mounts(file.read(), fstype)


def in_memory() -> dict[str, int]:
    """Return the bytes used in each tmpfs, by mount point, without those that may not answer, or not for themselves."""
    used, seen = {}, set()
    try:
        table = mounts()
    except (OSError, ValueError):
        return {}
    for mount in table:
        if mount.fstype != "tmpfs" or mount.device in seen or not is_local(mount, table):
            continue
        seen.add(mount.device)
        try:
            found = os.statvfs(mount.point)
        except OSError:
            continue
        used[mount.point] = (found.f_blocks - found.f_bfree) * found.f_frsize
    return used


def is_local(mount: Mount, table: list[Mount]) -> bool:
    """Whether a query of its mount point reaches it without blocking: nothing covers it, no server is on the path."""
    point = f"{mount.point.rstrip('/')}/"
    on_the_way = [each for each in table if point.startswith(f"{each.point.rstrip('/')}/")]
    top = max(reversed(on_the_way), key=lambda each: len(each.point))
    return top is mount and not any(each.fstype.startswith(_REMOTE) for each in on_the_way)


def as_text(used: Mapping[str, int], most: int) -> bytes:
    """Encode the result of :func:`in_memory`: as many mounts as fit into ``most`` bytes."""
    text = b"\0".join(b"%d %b" % (size, os.fsencode(point)) for point, size in used.items())
    return text if len(text) <= most else text[:most].rpartition(b"\0")[0]


def from_text(text: bytes) -> dict[str, int]:
    """Decode :func:`as_text`."""
    pairs = (each.partition(b" ") for each in text.split(b"\0") if each)
    return {os.fsdecode(point): int(size) for size, _, point in pairs}


def mount_of(path: str, table: list[Mount]) -> Mount:
    """Return the mount that ``path`` is on: the last one over the longest part of it."""
    try:
        real = os.path.realpath(path) + "/"
    except OSError:  # a current directory that was removed
        real = "/"
    over = [mount for mount in table if real.startswith(mount.point.rstrip("/") + "/")]
    return max(reversed(over), key=lambda mount: len(mount.point), default=UNKNOWN)


def beneath(mount: Mount, table: list[Mount]) -> Mount:
    """Return the mount itself, or for an overlay the mount that its writes go to.

    An overlay is returned as it is if its upper directory is not visible (in a container).
    """
    seen = {mount.point}
    while mount.fstype == "overlay" and os.path.isdir(mount.options.get("upperdir", "")):
        upper = mount_of(mount.options["upperdir"], table)
        if upper.point in seen:  # a directory of that name on the overlay itself
            break
        seen.add(upper.point)
        mount = upper
    return mount


def _unescape(text: str) -> str:
    """mountinfo writes blank, tab, newline and backslash in octal."""
    if "\\" not in text:
        return text
    first, *pieces = text.split("\\")
    return first + "".join(chr(int(piece[:3], 8)) + piece[3:] for piece in pieces)
