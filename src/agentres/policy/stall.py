"""Whether an agent gets nowhere for want of memory that nobody will give it; pure.

Above ``memory.high`` the kernel slows down whoever allocates, without an end.  Who raises the limit, or moves the tripwire, is told of that and
acts within milliseconds.  Where it stays so, something else holds the agent: a ``memory.high`` that somebody else has written, here or above.
"""

from __future__ import annotations

DEADLINE = 10.0
"""Seconds without progress."""

_STALLED = 0.9
"""Of the time, in which all tasks waited for memory (``full`` in memory.pressure)."""

_FALLS = 0.05
"""A working set that has fallen by this part is progress: what is taken back is found."""


class Stall:
    """Told of each reading, in seconds, microseconds and bytes; says since when there is no progress."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._full = self._used = 0
        self.since: float | None = None

    def observe(self, now: float, full_usec: int | None, working_set: int | None) -> float:
        """For how many seconds there has been no progress."""
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
