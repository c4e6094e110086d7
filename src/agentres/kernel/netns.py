"""A network namespace of the agent's own (network_namespaces(7)), with only loopback or with a wire to the host.

The agent's process makes it; a short-lived helper wires it up (:mod:`agentres.kernel.isolate`), as the library
for interfaces takes four times the memory of all that stays beside an agent.
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
"""Where systemd-resolved lists the name servers that it asks itself (systemd-resolved.service(8))."""


# In the agent's process, before it executes its command.


def leave() -> None:
    """Put this single-threaded process into a network with only 127.0.0.1 and ::1.  OSError.

    Where it may not do that, it also enters a user namespace in which it may (user_namespaces(7)); that maps
    only its own user and group.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        for file, text in (
            ("setgroups", "deny"),  # else gid_map cannot be written
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
    """Have this process alone see the file at ``path`` as its resolv.conf.  OSError."""
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
    """Connect the network of the process ``pid`` to the host.  Raises NotEnforceable."""
    why = _help("up", str(pid))
    if why:
        raise NotEnforceable(f"cannot enforce --net isolated: {why}")


def clear() -> str:
    """Remove our wire, and after the last one what is left on the host.  Return why that failed; empty: it succeeded."""
    return _help("down")


def resolver() -> str | None:
    """Return the resolv.conf that works behind a wire; empty: the host's own does; None: none is known.

    A name server on the host's loopback cannot be reached from there.
    """
    if _outside(RESOLV_CONF):
        return ""
    return UPSTREAM if _outside(UPSTREAM) else None


def _outside(path: str) -> bool:
    """Whether the file names a server outside loopback."""
    try:
        with open(path, errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return False
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return any(not server.startswith("127.") and server != "::1" for server in servers)


def _help(*arguments: str) -> str:
    """Run the helper.  Return its last line on stderr; empty: it succeeded."""
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
