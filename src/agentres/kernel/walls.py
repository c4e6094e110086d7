"""What keeps an isolated agent from its limits, from us and from others: steps of the child before its exec.

:func:`enclose` needs root and stands before the agent's user is taken, :func:`seal` after.  What is left out on
purpose: files.  What the agent's user may read and write it may; ``agentres run -- bwrap …`` narrows that.
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
"""Where the sockets of managers are that start processes elsewhere; those that are here are covered."""

SCOPES_ABI = 6
"""The version of Landlock that keeps signals and abstract sockets inside (Linux 6.12)."""

DYNAMIC = range(0x70000000, 0x70010000)
"""User ids for agents that get one of their own: nobody else's by systemd's plan (UIDS-GIDS.md)."""

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
    """The version of Landlock here (landlock(7)); 0: there is none."""
    try:
        return libc.call(
            "syscall", _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION
        )
    except OSError:  # ENOSYS, or EOPNOTSUPP where it was not chosen at boot
        return 0


class OwnUser:
    """A user id that no other agent has, and no process: ours until :meth:`close`."""

    def __init__(self) -> None:
        for _ in range(_TRIES):
            self.uid = DYNAMIC.start + int.from_bytes(os.urandom(2), "little")
            self._held = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            try:
                # The kernel gives a name to one at a time, and takes it back however that one ends.
                self._held.bind(f"\0agentres/uid/{self.uid}".encode())
            except OSError as error:
                self._held.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            if self.uid not in _users():  # an agent may outlive its supervisor
                return
            self._held.close()
        # Anybody may take the names.
        raise AgentresError(
            f"no user id between {DYNAMIC.start} and {DYNAMIC.stop - 1} is free for the agent",
            "--user gives it one that exists",
        )

    def close(self) -> None:
        self._held.close()


def _users() -> set[int]:
    """Whose processes run."""
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
    """A descriptor of a cgroup namespace that begins at the cgroup that we are in, while we stay in ours.  OSError."""
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
    """Own mounts and the cgroup namespace ``view``, of which ``cgroup2`` shows all, read-only.  OSError.

    The agent finds its limits there, at the root.  To be called as root.  No capability is to be had afterwards, by exec neither.
    """
    libc.call("setns", view, _CLONE_NEWCGROUP)
    libc.call("unshare", _CLONE_NEWNS)
    _mount(
        None, "/", None, _MS_REC | _MS_SLAVE
    )  # what the host mounts later is seen inside as well
    # The kernel mounts no file system on itself: something else comes between.
    _mount("none", cgroup2, "tmpfs", _MS_RDONLY | _BARE, "mode=755,size=4k")
    _mount("cgroup2", cgroup2, "cgroup2", _BARE)
    _mount(None, cgroup2, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _BARE)
    for path in HIDDEN:
        if os.path.isdir(path):
            _mount("none", path, "tmpfs", _MS_RDONLY | _BARE, "mode=755,size=4k")
        elif os.path.exists(path):
            _mount("/dev/null", path, None, _MS_BIND)
    capabilities.drop(capabilities.ALL)
    # A descriptor that somebody left open may lead to whatever it was opened for.
    libc.call("close_range", 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC)


def seal() -> None:
    """No new privileges; no signal, ptrace or abstract socket leads to a process outside.  OSError.

    The latter where this kernel's Landlock can do that (:data:`SCOPES_ABI`).
    """
    libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if landlock() < SCOPES_ABI:
        return
    # Only scopes: what handles access to files keeps bwrap from mounting, too.
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
