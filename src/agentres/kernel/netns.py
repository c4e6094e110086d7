"""A network namespace of the agent's own (network_namespaces(7)): with nothing but loopback, or with a wire to the host.

The agent's process makes it; a helper that ends wires it up (:mod:`agentres.kernel.isolate`), as what speaks
to the kernel about interfaces is four times as large as all that stays beside an agent.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import struct
import sys

from agentres.kernel import libc
from agentres.model.errors import NotEnforceable

ISOLATE = "agentres.kernel.isolate"

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sH22x")

RESOLV_CONF = "/etc/resolv.conf"
UPSTREAM = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved tells which name servers it asks itself (systemd-resolved.service(8))."""


# In the agent's process, before it executes its command.


def leave() -> None:
    """Put this process, which has one thread, into a network where there is only 127.0.0.1 and ::1.  OSError.

    Where it may not do that, it takes a user namespace along in which it may (user_namespaces(7)): its own user
    and group are then all that are known there.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        for file, text in (
            ("setgroups", "deny"),  # or gid_map is not to be written
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as opened:
                opened.write(text)
    lo = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        flags = _IFREQ.unpack(fcntl.ioctl(lo, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))[1]
        fcntl.ioctl(lo, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
    finally:
        lo.close()


def resolve_by(path: str) -> None:
    """Have this process see the file at ``path`` as its resolv.conf, and nobody else.  OSError."""
    _unshare(_CLONE_NEWNS)
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    _mount(path, os.path.realpath(RESOLV_CONF), _MS_BIND)


def _unshare(flags: int) -> None:
    """unshare(2), which Python has from 3.12 on."""
    libc.call("unshare", flags)


def _mount(source: str | None, target: str, flags: int) -> None:
    from_ = None if source is None else os.fsencode(source)
    libc.call("mount", from_, os.fsencode(target), None, ctypes.c_ulong(flags), None)


# In the supervisor.


def wire(pid: int) -> None:
    """Give the network of that process a wire to the host.  NotEnforceable."""
    why = _help("up", str(pid))
    if why:
        raise NotEnforceable(f"cannot enforce --net isolated: {why}")


def clear() -> str:
    """Remove what the last wire has left on the host; why that failed, empty where it did not."""
    return _help("down")


def resolver() -> str | None:
    """The resolv.conf that works behind a wire; empty: the host's own does; None: none is known.

    A name server on the host's loopback is not to be reached from there.
    """
    if _outside(RESOLV_CONF):
        return ""
    return UPSTREAM if _outside(UPSTREAM) else None


def _outside(path: str) -> bool:
    """Whether the file names a server that is not on loopback."""
    try:
        with open(path, errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return False
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return any(not server.startswith("127.") and server != "::1" for server in servers)


def _help(*arguments: str) -> str:
    """Run the helper; its last words, empty where it succeeded."""
    words = os.memfd_create("words")
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", ISOLATE, *arguments],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, words, 2),
            ],
        )
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return ""
        lines = os.pread(words, 1 << 16, 0).decode(errors="replace").splitlines()
        return lines[-1] if lines else f"its helper ended with {status}"
    finally:
        os.close(words)
