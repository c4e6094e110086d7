"""Facts about a process: its start time, which tells it from a later one with the same PID, its parent, its cgroup."""

from __future__ import annotations

import errno
import os

from agentres.kernel import signal
from agentres.model.figures import is_populated

_TICKS = os.sysconf("SC_CLK_TCK")
_DEAD = (b"Z", b"X")


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot (proc_pid_stat(5), field 22); None: no such process."""
    _, fields = _stat(pid)
    return int(fields[19]) if fields else None


def lived_at(pid: int, when: float) -> bool:
    """Whether ``pid`` is a live process that had started by ``when``, seconds since boot."""
    _, fields = _stat(pid)
    return bool(fields) and fields[0] not in _DEAD and int(fields[19]) / _TICKS <= when


def parent(pid: int) -> int:
    """Return the parent of a process; 0: it has none in our PID namespace, or has ended."""
    _, fields = _stat(pid)
    return int(fields[1]) if fields else 0


def ignores_children(pid: int) -> bool:
    """Whether a process ignores SIGCHLD: then what its children used is added to no process's figures."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            words = file.read().split()
        return bool(int(words[words.index(b"SigIgn:") + 1], 16) >> (signal.SIGCHLD - 1) & 1)
    except OSError:  # it has ended
        return False


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has waited for it."""
    return _stat(pid)[1][:1] == [b"Z"]


def is_in_execve(pid: int) -> bool:
    """Whether a process is in the middle of execve(2), and has no environment yet (proc_pid_stat(5), field 51)."""
    return _stat(pid)[1][48:49] == [b"0"]


def name(pid: int) -> str:
    """Return a process's name (comm in proc_pid_comm(5)); empty: it has ended."""
    comm, fields = _stat(pid)
    return comm.decode(errors="replace") if fields and fields[0] not in _DEAD else ""


def open_files(pid: int) -> int:
    """Return a process's number of open files: st_size of /proc/PID/fd since Linux 6.2, else its entries.  OSError."""
    path = f"/proc/{pid}/fd"
    return os.stat(path).st_size or len(os.listdir(path))


def below(path: str) -> list[int]:
    """Return the processes in the cgroup at ``path`` and below; skip a cgroup that is removed meanwhile.  OSError."""
    try:
        with open(f"{path}/cgroup.procs", "rb") as file:
            found = [int(pid) for pid in file.read().split()]
    except OSError as error:
        # Removed meanwhile, or a threaded cgroup: the cgroup above lists its processes.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        found = []
    try:
        with os.scandir(path) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return found
    for child in children:
        found += below(child)
    return found


def populated(path: str) -> bool:
    """Whether a live process is in the cgroup at ``path`` or below it.  OSError."""
    fd = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return is_populated(os.read(fd, 4096))
    finally:
        os.close(fd)


def cgroup(pid: int | str = "self") -> str:
    """Return a process's v2 cgroup, starting with ``/``, as seen from our cgroup namespace; empty: it has none.  OSError."""
    with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as file:
        return parse_cgroup(file.read())


def is_inside(cgroup: str, of: str) -> bool:
    """Whether ``cgroup`` is ``of`` or below it; pure."""
    return cgroup == of or cgroup.startswith(f"{of}/")


def parse_cgroup(text: str) -> str:
    """Return the v2 cgroup from the text of /proc/PID/cgroup (cgroups(7)); empty: none; pure."""
    return next((line[3:] for line in text.split("\n") if line.startswith("0::")), "")


def _stat(pid: int) -> tuple[bytes, list[bytes]]:
    """Return the name in /proc/PID/stat (proc_pid_stat(5)) and the fields from the state on; both empty: no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last by hidepid
        return b"", []
    return before.partition(b"(")[2], after.split()


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
