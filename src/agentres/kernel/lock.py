"""The lock to hold while changing a part of the cgroup tree."""

from __future__ import annotations

import fcntl
import os
import time

from agentres.model.errors import AgentresError
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 0.1
"""Seconds to wait for the lock on a slice: its holder reads some files and writes one."""

_UNSEEN = 5
"""How often no holder may be seen before it is taken to be in another PID namespace."""


class Locked(AgentresError):
    """The lock is held for longer than any supervisor holds it."""


class Lock:
    """An flock(2) on a directory, mostly a cgroup's, as a context manager.  Raises Locked after ``patience`` seconds; OSError.

    With ``in_line`` the patience is for each holder: a long queue of short holders is no error.  ``meanwhile`` is
    called repeatedly while another process holds the lock, and may raise.
    """

    __slots__ = ("_fd", "_in_line", "_meanwhile", "_patience", "path")

    def __init__(
        self,
        path: str,
        patience: float = PATIENCE,
        meanwhile: Callable[[], None] = lambda: None,
        in_line: bool = False,
    ) -> None:
        self.path = path
        self._patience = patience
        self._meanwhile = meanwhile
        self._in_line = in_line
        self._fd = -1

    def __enter__(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _take(self, fd: int) -> None:
        deadline = time.monotonic() + self._patience
        holder = unseen = 0
        pause = 0.0005
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    before, holder = holder, _holder(fd) if self._in_line else 0
                    # No holder is seen if it has just released the lock: try again.
                    unseen = 0 if holder else unseen + 1
                    if not self._in_line or unseen > _UNSEEN or (holder and holder == before):
                        raise Locked(f"the lock on {self.path} is held: see lslocks(8)") from None
                    if holder:
                        deadline = time.monotonic() + self._patience
            self._meanwhile()
            time.sleep(pause)
            pause = min(pause * 2, 0.01)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _holder(fd: int) -> int:
    """Return the PID that holds an flock(2) on the file (proc_locks(5)); 0: none that we see."""
    it = os.fstat(fd)
    file_id = f"{os.major(it.st_dev):02x}:{os.minor(it.st_dev):02x}:{it.st_ino}"
    with open("/proc/locks") as file:
        for line in file:
            # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
            words = line.split()
            if words[1] == "FLOCK" and words[5] == file_id:
                return int(words[4])
    return 0
