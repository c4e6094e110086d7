"""Isolates an agent from its limits, from us and from others: steps of the child before its exec.

:func:`enclose` needs root and comes before the switch to the agent's user, :func:`seal` after it.  Files are left
out on purpose: the agent may read and write what its user may; ``agentres run -- bwrap …`` narrows that.
"""

from __future__ import annotations

import _socket  # as in agentres.kernel.listener
import ctypes
import errno
import os
import struct

from agentres.kernel import capabilities, libc
from agentres.model.errors import AgentresError

HIDDEN = ("/run/dbus", "/run/user", "/run/systemd/private", "/run/agentres")
"""Paths with sockets of managers that start processes elsewhere; those that exist here are covered."""

SCOPES_ABI = 6
"""The Landlock ABI that can confine signals and abstract sockets (Linux 6.12)."""

DYNAMIC = range(0x70000000, 0x70010000)
"""User ids for agents with a user of their own: systemd's plan (UIDS-GIDS.md) gives them to nobody."""

_TRIES = 1000

_CLONE_NEWNS = 0x20000
_CLONE_NEWCGROUP = 0x2000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 0x20, 0x1000, 0x4000, 0x80000
_BARE = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_PR_SET_NO_NEW_PRIVS = 38
_CLOSE_RANGE_CLOEXEC = 4
# The same on all architectures: they are younger than the common table.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_VERSION = 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2


def landlock() -> int:
    """Return the kernel's Landlock ABI version (landlock(7)); 0: no Landlock."""
    try:
        return libc.call(
            "syscall", _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION
        )
    except OSError:  # ENOSYS, or EOPNOTSUPP if not enabled at boot
        return 0


class OwnUser:
    """A user id that no other agent and no process has: ours until :meth:`close`."""

    def __init__(self) -> None:
        for _ in range(_TRIES):
            self.uid = DYNAMIC.start + int.from_bytes(os.urandom(2), "little")
            self._held = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            try:
                # The kernel gives a name to one process at a time, and frees it however that process ends.
                self._held.bind(f"\0agentres/uid/{self.uid}".encode())
            except OSError as error:
                self._held.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if self.uid not in _users():  # an agent may outlive its supervisor
                return
            self._held.close()
        # Any user can take the names.
        raise AgentresError(
            f"no user id between {DYNAMIC.start} and {DYNAMIC.stop - 1} is free for the agent",
            "--user gives it one that exists",
        )

    def close(self) -> None:
        self._held.close()


def _users() -> set[int]:
    """Return the user ids of all running processes."""
    found = set()
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                try:
                    found.add(entry.stat().st_uid)
                except OSError:  # it has gone
                    continue
    return found


def view() -> int:
    """Make a cgroup namespace rooted at our cgroup and return its fd; we stay in our own namespace.  OSError."""
    ours = os.open("/proc/thread-self/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("unshare", _CLONE_NEWCGROUP)
        try:
            return os.open("/proc/thread-self/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            libc.call("setns", ours, _CLONE_NEWCGROUP)
    finally:
        os.close(ours)


def enclose(cgroup2: str, view: int) -> None:
    """Enter the cgroup namespace ``view`` and a mount namespace that shows it at ``cgroup2``, read-only.  OSError.

    The agent finds its limits there, at the root.  Needs root.  Afterwards no capability can be gained, by exec either.
    """
    libc.call("setns", view, _CLONE_NEWCGROUP)
    libc.call("unshare", _CLONE_NEWNS)
    _mount(
        None, "/", None, _MS_REC | _MS_SLAVE
    )  # later mounts of the host are visible inside as well
    # The kernel refuses to mount a file system on itself: a tmpfs goes between.
    _mount("none", cgroup2, "tmpfs", _MS_RDONLY | _BARE, "mode=755,size=4k")
    _mount("cgroup2", cgroup2, "cgroup2", _BARE)
    _mount(None, cgroup2, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _BARE)
    for path in HIDDEN:
        if os.path.isdir(path):
            _mount("none", path, "tmpfs", _MS_RDONLY | _BARE, "mode=755,size=4k")
        elif os.path.exists(path):
            _mount("/dev/null", path, None, _MS_BIND)
    capabilities.drop(capabilities.ALL)
    # An inherited descriptor would give the agent access to what it was opened for.
    libc.call("close_range", 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC)


def seal() -> None:
    """Forbid new privileges, and signals, ptrace and abstract sockets to processes outside.  OSError.

    The second part needs a kernel with Landlock :data:`SCOPES_ABI`; without it, it is left out.
    """
    libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if landlock() < SCOPES_ABI:
        return
    # Only scopes: rules on file access would keep bwrap from mounting too.
    attributes = struct.pack("=QQQ", 0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    ruleset = libc.call(
        "syscall", _LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0
    )
    try:
        libc.call("syscall", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
    try:
        libc.call("mount", *words, ctypes.c_ulong(flags), None if data is None else data.encode())
    except OSError as error:
        raise OSError(error.errno or errno.EPERM, f"{target}: {error.strerror}") from None
