"""Whether an agent is stalled: it waits for memory, and nothing will give it any; pure.

Above ``memory.high`` the kernel throttles allocations, without end.  The supervisor is notified, and raises the limit or
moves the tripwire within milliseconds.  If the throttling lasts, something else holds the agent: a ``memory.high`` that
another program has written, on this cgroup or above.
"""

from __future__ import annotations

DEADLINE = 10.0
"""Seconds without progress."""

_STALLED = 0.9
"""The fraction of time in which all tasks waited for memory (``full`` in memory.pressure)."""

_RUNS = 0.5
"""Below this fraction between two looks the agent is getting on again, however long it waited before."""

_FALLS = 0.05
"""A working set that falls by this fraction is progress: reclaim finds memory."""

_LOOK = 1.0
"""The least seconds between two looks that are compared.

A reading is taken a little after the time that belongs to it, on a busy host by a tenth of a second and more.
For the same reason a stall is judged by all of its time, not by each look.
"""


class Stall:
    """Takes readings, in seconds, microseconds and bytes; tells since when there is no progress."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._full = self._used = 0
        self._began_with = 0, 0
        self.since: float | None = None

    def observe(self, now: float, full_usec: int | None, working_set: int | None) -> float:
        """Take a reading; return for how many seconds there has been no progress."""
        if full_usec is None or working_set is None:
            self._at = self.since = None
            return 0.0
        if self._at is None or now - self._at >= _LOOK:
            self._judge(now, full_usec, working_set)
            self._at, self._full, self._used = now, full_usec, working_set
        return 0.0 if self.since is None else now - self.since

    def _judge(self, now: float, full: int, used: int) -> None:
        if self._at is None:
            return
        lately = (full - self._full) / 1e6 / (now - self._at)
        if self.since is None:
            if lately >= _STALLED:
                self.since, self._began_with = self._at, (self._full, self._used)
            return
        full_then, used_then = self._began_with
        waited = (full - full_then) / 1e6 / (now - self.since)
        if waited < _STALLED or lately < _RUNS or used < used_then * (1 - _FALLS):
            self.since = None
