"""One epoll: control files that notify, pidfds, signals, timers.

asyncio cannot wait for POLLPRI, by which the kernel signals that ``memory.events`` and its like have
changed.
"""

from __future__ import annotations

import select
import time
from _heapq import heappop, heappush  # heapq adds only 30 kB of docstrings, which stay

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_WAIT = 86_400.0


class Timer:
    """A call that is due at ``deadline``; :meth:`cancel` withdraws it."""

    __slots__ = ("_order", "callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None], order: int) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback
        self._order = order

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self._order) < (other.deadline, other._order)


class Loop:
    """Calls back when a file descriptor or a time is due; :meth:`tick` is one turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._timers: list[Timer] = []
        self._timers_made = 0

    def close(self) -> None:
        self._epoll.close()

    def watch(self, fd: int, callback: Callable[[], object], events: int = select.EPOLLIN) -> None:
        """Call back whenever ``fd`` has ``events``; EPOLLPRI for a control file that notifies."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop calling back for ``fd``; call this before closing it."""
        self._epoll.unregister(fd)
        del self._callbacks[fd]

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call back once at ``deadline`` (time.monotonic(), seconds)."""
        self._timers_made += 1
        timer = Timer(deadline, callback, self._timers_made)
        heappush(self._timers, timer)
        return timer

    def tick(self, wait: bool = True) -> None:
        """Wait for the first event or timer, then call back for all that is due; without ``wait`` do not block."""
        timeout = None if wait else 0.0
        while self._timers and self._timers[0].callback is None:
            heappop(self._timers)
        if self._timers and wait:
            # epoll_wait(2) takes milliseconds in an int: a later timer takes another turn.
            timeout = min(max(0.0, self._timers[0].deadline - time.monotonic()), _LONGEST_WAIT)
        for fd, _ in self._epoll.poll(timeout):
            if (
                callback := self._callbacks.get(fd)
            ) is not None:  # an earlier one may have unwatched it
                callback()
        # Only those due by now: a timer that keeps setting itself again must not keep events waiting.
        now = time.monotonic()
        while self._timers and self._timers[0].deadline <= now:
            if (due := heappop(self._timers).callback) is not None:
                due()
