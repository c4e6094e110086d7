"""The process that asks the daemon for an agent: what the kernel says of it, and how to act as its user.

The daemon's processes run as root.  They access files that the user chose (the history in its home) with
the user's rights; otherwise a link there could lead them anywhere.
"""

from __future__ import annotations

import ctypes
import os
import resource

from agentres.kernel import libc, process, registry, signal
from agentres.kernel.listener import Peer
from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Mapping, Sequence

_SO_PEERGROUPS = 59  # asm-generic/socket.h
_GROUPS_MAX = 65536
_NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts")
_LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


class Caller(Record):
    """The process at the other end of a connection, as of its connect(2): SO_PEERCRED and SO_PEERGROUPS, unix(7).

    ``started`` is its start in clock ticks since boot.  ``rlimits`` (resource, soft, hard), ``oom_score_adj`` and
    ``nice`` are current values, from :func:`look`.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    started: int | None = None
    rlimits: tuple[tuple[int, int, int], ...] = ()
    oom_score_adj: int = 0
    nice: int = 0

    @property
    def name(self) -> str:
        """The user's name, or its number where it has none."""
        return registry.user_name(self.uid)


def peer(sock: _socket.socket) -> Caller:
    """Return the process at the other end, without the values that :func:`look` adds.  OSError."""
    import _socket

    found = Peer.of(sock)
    # Python's getsockopt() returns at most 1 KiB, which is 256 groups.
    packed, length = (ctypes.c_uint32 * _GROUPS_MAX)(), ctypes.c_uint32(4 * _GROUPS_MAX)
    libc.call(
        "getsockopt",
        sock.fileno(),
        _socket.SOL_SOCKET,
        _SO_PEERGROUPS,
        packed,
        ctypes.byref(length),
    )
    groups = tuple(packed[: length.value // 4])
    return Caller(found.pid, found.uid, found.gid, groups, process.start_ticks(found.pid))


def look(caller: Caller) -> Caller:
    """Return the caller with its current limits, OOM score and nice value.

    Raises UsageError where it runs in namespaces other than the host's, or is no longer the process that connected;
    OSError where it has ended.
    """
    for kind in _NAMESPACES:
        there = os.stat(f"/proc/{caller.pid}/ns/{kind}")
        here = os.stat(f"/proc/self/ns/{kind}")
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            raise UsageError(
                f"the daemon runs agents in the host's namespaces, and yours has its own ({kind})",
                "--local runs it where you are",
            )
    rlimits = tuple((number, *resource.prlimit(caller.pid, number)) for number in _LIMITS)
    with open(f"/proc/{caller.pid}/oom_score_adj") as file:
        adjusted = int(file.read())
    nice = os.getpriority(os.PRIO_PROCESS, caller.pid)
    # Check after all was read: the PID may have been reused, or the process runs a program with another user's
    # rights, which raises limits that it had itself.
    owner = os.stat(f"/proc/{caller.pid}").st_uid
    if owner != caller.uid or process.start_ticks(caller.pid) != caller.started:
        raise UsageError("the process that asked is another one by now")
    return caller.but(rlimits=rlimits, oom_score_adj=adjusted, nice=nice)


def join_host() -> None:
    """Leave the namespaces that the service's unit puts the daemon in, as the agent gets the host's mounts.  OSError.

    Enters those of process 1 by setns(2), and with that its root directory.
    """
    for kind in ("net", "ipc", "uts", "mnt"):
        fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there, here = os.fstat(fd), os.stat(f"/proc/self/ns/{kind}")
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                libc.call("setns", fd, 0)
        finally:
            os.close(fd)


def files_as(caller: Caller) -> None:
    """Have this thread alone access files with the caller's rights, for good: setfsuid(2).

    It loses the capabilities that override a file's mode.  It does not take the caller's supplementary groups; the
    daemon has none.  OSError.
    """
    _set_files(caller.uid, caller.gid)


def open_as(caller: Caller, path: str, flags: int, mode: int) -> int:
    """open(2) with the caller's rights; a new file is the caller's.  OSError."""
    if caller.uid == 0:
        return os.open(path, flags, mode)
    _set_files(caller.uid, caller.gid)
    try:
        return os.open(path, flags, mode)
    finally:
        _set_files(0, 0)


def _set_files(uid: int, gid: int) -> None:
    # Both return the previous id even when they fail: only a second call shows the result.
    libc.LIBC.setfsgid(gid)
    libc.LIBC.setfsuid(uid)
    if libc.LIBC.setfsuid(-1) != uid or libc.LIBC.setfsgid(-1) != gid:
        raise PermissionError(f"cannot meet files as uid {uid}")


def inherit(caller: Caller) -> None:
    """Take from the caller what a child inherits from its parent: resource limits, OOM score, nice value.  OSError."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(caller.oom_score_adj))
    # After all files are opened: the caller's RLIMIT_NOFILE may be less than what is open here.
    for number, soft, hard in caller.rlimits:
        resource.setrlimit(number, (soft, hard))
    os.setpriority(os.PRIO_PROCESS, 0, caller.nice)


def spawn(
    caller: Caller,
    line: Sequence[str],
    environment: Mapping[str, str],
    kept: int,
    adopt: Callable[[int], None],
) -> int:
    """Start a program as the caller and return its PID; it inherits the descriptor ``kept`` and our stderr.

    ``adopt`` moves it into its cgroup before it runs any of its code.  Raises OSError, and what ``adopt`` raises.
    """
    gate, opened = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(opened)
            if os.read(gate, 1):
                _become(caller)
                os.set_inheritable(kept, True)
                os.execve(line[0], list(line), environment)
        except OSError as error:
            os.write(2, f"agentres: the handlers cannot be started: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(gate)
    try:
        adopt(pid)
        os.write(opened, b"1")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(opened)
    return pid


def _become(caller: Caller) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
        os.set_inheritable(stream, True)  # needed if the descriptor has that number already
    inherit(caller)
    os.setgroups(caller.groups)
    os.setresgid(*[caller.gid] * 3)
    os.setresuid(*[caller.uid] * 3)
    os.chdir("/")
