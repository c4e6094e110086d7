"""Who asks the daemon for an agent: what the kernel says of that process, and how to act as its user.

The daemon's processes are root's.  What they do with files that the user chose (the history in its home) they do
with the user's rights, or a link in there would lead them anywhere.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence

from agentres.kernel import libc, process, registry
from agentres.kernel.listener import Peer
from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    import _socket

_SO_PEERGROUPS = 59  # asm-generic/socket.h
_GROUPS_MAX = 65536
_NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts")
_LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


class Caller(Record):
    """The process at the other end of a connection, as of its connect(2): SO_PEERCRED and SO_PEERGROUPS, unix(7).

    ``started`` are the clock ticks since boot when it began; ``rlimits`` are (resource, soft, hard) as they are
    now; ``oom_score_adj`` and ``nice`` likewise.
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
    """Who is there, without what only :func:`look` finds.  OSError."""
    import _socket

    found = Peer.of(sock)
    # Python's own takes 1 KiB at the most, which is 256 groups.
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
    """With what /proc tells of it now.

    UsageError where it runs in namespaces that are not the host's, or is not the process any more that connected, OSError
    where it has gone.
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
    # After all that was read: its number is another one's, or it executes a program with another one's rights,
    # which lifts limits that were its own.
    owner = os.stat(f"/proc/{caller.pid}").st_uid
    if owner != caller.uid or process.start_ticks(caller.pid) != caller.started:
        raise UsageError("the process that asked is another one by now")
    return caller.but(rlimits=rlimits, oom_score_adj=adjusted, nice=nice)


def join_host() -> None:
    """Leave what the service's unit keeps the daemon in: the host's mounts are the agent's.  OSError.

    setns(2) into those of process 1, and its root directory.
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
    """Have this thread, and no other, meet files with the caller's rights, for ever: setfsuid(2).

    Capabilities that override a file's mode are lost with it; supplementary groups are not taken, and the
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
    # These return what was before, whatever came of it: the second call tells.
    libc.LIBC.setfsgid(gid)
    libc.LIBC.setfsuid(uid)
    if libc.LIBC.setfsuid(-1) != uid or libc.LIBC.setfsgid(-1) != gid:
        raise PermissionError(f"cannot meet files as uid {uid}")


def inherit(caller: Caller) -> None:
    """Take what a child has from its parent, from the caller: resource limits, OOM score, nice value.  OSError."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(caller.oom_score_adj))
    # After all that opens a file: it may have fewer than are open here.
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
    """Start a program as the caller, with the descriptor ``kept`` beside our stderr; its process id.

    ``adopt`` puts it into its cgroup before anything of it runs.  OSError, and what ``adopt`` raises.
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
        os.set_inheritable(stream, True)  # also where it has that number already
    inherit(caller)
    os.setgroups(caller.groups)
    os.setresgid(*[caller.gid] * 3)
    os.setresuid(*[caller.uid] * 3)
    os.chdir("/")
