"""inotify(7), which Python has no module for: control files that are written, marks that are set."""

from __future__ import annotations

import os

from agentres.kernel.libc import LIBC

MODIFY = 0x2
ATTRIB = 0x4

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class Inotify:
    """One instance; ``fd`` becomes readable when something watched happens, -1 where there is none."""

    def __init__(self) -> None:
        self.fd: int = LIBC.inotify_init1(_FLAGS)

    def add(self, path: str, events: int) -> bool:
        """Watch ``path`` for ``events``; False where the kernel does not."""
        return bool(
            self.fd >= 0 and LIBC.inotify_add_watch(self.fd, os.fsencode(path), events) >= 0
        )

    def take(self) -> None:
        """Take the notifications that wait."""
        try:
            os.read(self.fd, 1 << 16)
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
