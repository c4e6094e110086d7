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

_FALLS = 0.05
"""A working set that falls by this fraction is progress: reclaim finds memory."""


class Stall:
    """Takes each reading, in seconds, microseconds and bytes; tells since when there is no progress."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._full = self._used = 0
        self.since: float | None = None

    def observe(self, now: float, full_usec: int | None, working_set: int | None) -> float:
        """Take a reading; return for how many seconds there has been no progress."""
        if full_usec is None or working_set is None:
            self._at = self.since = None
            return 0.0
        if self._at is not None and now > self._at:
            waited = (full_usec - self._full) / 1e6 / (now - self._at)
            if waited < _STALLED or working_set < self._used * (1 - _FALLS):
                self.since = None
            elif self.since is None:
                self.since = self._at
        if self.since is None:
            self._used = working_set
        self._at, self._full = now, full_usec
        return 0.0 if self.since is None else now - self.since
