"""Notifications of control files on the supervisor's loop: each is heard at once, and after a pause again."""

from __future__ import annotations

import _thread
import os
import select
import time

from agentres.kernel.loop import Loop
from agentres.kernel.pressure import trigger
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

BREATH = 0.05
"""Seconds between two readings of a control file that notifies without end.

The kernel limits ``memory.events`` to one notification in 10 ms.  An agent that fills its limit with page
cache causes one each time, and none of them is news.
"""


class Notifications:
    """Calls back when a control file notifies; the callback calls :meth:`pause` for it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._paused: set[int] = set()
        self._triggers: list[int] = []

    def hear(self, fd: int | None, callback: Callable[[], None]) -> None:
        """Call ``callback`` when an open control file notifies; None: there is no such file here."""
        if fd is not None:
            self._callbacks[fd] = callback
            self._loop.watch(fd, callback, select.EPOLLPRI)

    def hear_pressure(
        self,
        cgroup: int,
        resource: Literal["cpu", "memory", "io"],
        callback: Callable[[], None],
    ) -> None:
        """Call ``callback`` when tasks of the cgroup stall on a resource (PSI), if the kernel supports that."""
        if (fd := trigger(cgroup, resource)) is not None:
            self._triggers.append(fd)

            def stalled() -> None:
                self.pause(fd)
                callback()

            self.hear(fd, stalled)

    def pause(self, fd: int | None) -> None:
        """Stop hearing a file for BREATH seconds; a notification that comes meanwhile is heard then."""
        assert fd is not None
        self._loop.unwatch(fd)
        self._paused.add(fd)
        self._loop.call_at(time.monotonic() + BREATH, lambda: self._resume(fd))

    def _resume(self, fd: int) -> None:
        if (callback := self._callbacks.get(fd)) is not None:
            self._paused.discard(fd)
            self._loop.watch(fd, callback, select.EPOLLPRI)

    def close(self) -> None:
        """Stop hearing."""
        for fd in self._callbacks.keys() - self._paused:
            self._loop.unwatch(fd)
        self._callbacks.clear()
        for fd in self._triggers:
            # The kernel waits for an RCU grace period (synchronize_rcu) to close a trigger: close them in parallel.
            try:
                _thread.start_new_thread(os.close, (fd,))
            except RuntimeError:  # no room for a thread
                os.close(fd)
        self._triggers.clear()
