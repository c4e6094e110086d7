"""inotify(7), which Python has no module for: reports writes to control files and new marks."""

from __future__ import annotations

import os

from agentres.kernel.libc import LIBC

MODIFY = 0x2
ATTRIB = 0x4

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class Inotify:
    """One inotify instance; ``fd`` becomes readable on a watched event, and is -1 where the kernel gives none."""

    def __init__(self) -> None:
        self.fd: int = LIBC.inotify_init1(_FLAGS)

    def add(self, path: str, events: int) -> bool:
        """Watch ``path`` for ``events``.  Return False where the kernel refuses."""
        return bool(
            self.fd >= 0 and LIBC.inotify_add_watch(self.fd, os.fsencode(path), events) >= 0
        )

    def take(self) -> None:
        """Consume the pending notifications."""
        try:
            os.read(self.fd, 1 << 16)
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
