"""Reclaims memory from an agent that does not run, in a thread: the kernel takes as long as the swap does."""

from __future__ import annotations

import _thread
import os

from agentres.model import log
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.loop import Loop

_PIECE = 16 << 20
"""Bytes to ask for at once: until the kernel has reclaimed them, it cannot be stopped and the cgroup cannot be removed."""

_TRIES = 6
"""How often the kernel is asked for a piece until it has given all of it, :data:`_PAUSE` seconds apart: it decides by figures that may
be two seconds old, and may then find nothing where there is enough.  A read of memory.stat brings them up to date, but only if
much has changed since."""

_PAUSE = 0.5


class Reclaim:
    """Has the kernel reclaim ``size`` bytes from the cgroup at ``path`` (``memory.reclaim``, Linux 5.19), then calls ``done`` on the loop.

    It stops if the agent is frozen or thawed meanwhile.  ``done`` gets False where the kernel could not reclaim, and is not
    called after :meth:`close`.
    """

    def __init__(self, loop: Loop, path: str, size: int, done: Callable[[bool], None]) -> None:
        self._loop, self._path, self._left, self._done = loop, path, size, done
        self._closed = self._refused = False
        self._lock = _thread.allocate_lock()
        self._open = _thread.allocate_lock()  # held until it is closed
        self._open.acquire()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._bell, self._ended)
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:  # we may have no more tasks
            log.debug(__name__, "%s: %s", path, error)
            self._refused = True
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Stop reclaiming, without a call of ``done``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._open.release()
            self._loop.unwatch(self._bell)
            os.close(self._bell)

    def _ended(self) -> None:
        self.close()
        self._done(not self._refused)

    def _run(self) -> None:
        try:
            fd = os.open(f"{self._path}/memory.reclaim", os.O_WRONLY | os.O_CLOEXEC)
            try:
                frozen, refusals = self._frozen(), 0
                while self._left > 0 and not self._closed and self._frozen() == frozen:
                    piece, before = min(_PIECE, self._left), self._use()
                    try:
                        os.write(fd, str(piece).encode())
                        self._left -= piece
                        refusals = 0
                    except BlockingIOError:  # EAGAIN: not all of a piece could be reclaimed
                        refusals += 1
                        if refusals == _TRIES:
                            raise
                        self._open.acquire(timeout=_PAUSE)
                        self._read("memory.stat")
                        self._left -= max(0, before - self._use())
            finally:
                os.close(fd)
        except OSError as error:
            self._refused = True
            log.debug(__name__, "%s: %s", self._path, error)
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def _use(self) -> int:
        return int(self._read("memory.current"))

    def _frozen(self) -> bool:
        return self._read("cgroup.freeze") == b"1\n"

    def _read(self, file: str) -> bytes:
        with open(f"{self._path}/{file}", "rb") as opened:
            return opened.read()
