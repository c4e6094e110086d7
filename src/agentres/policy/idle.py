"""Whether an agent runs, or waits for somebody: its memory may go to swap for those that are short of it; pure."""

from __future__ import annotations

SECONDS = 30.0
"""For how long one that is idle has not run."""

_RUNS = 0.01
"""Of a processor, on average between two samples, from which on it runs."""


class Idle:
    """Told of each sample: seconds, and microseconds of CPU time, None where that says nothing."""

    def __init__(self, now: float) -> None:
        self._ran_at = self._at = now
        self._usage: int | None = None
        self.idle = False

    def observe(self, now: float, usage_usec: int | None) -> bool:
        """Take a sample; whether it has become idle, or is no more."""
        before, was = self._usage, self.idle
        if before is None or usage_usec is None or usage_usec - before > _RUNS * 1e6 * (now - self._at):  # fmt: skip
            self._ran_at = now
        self._at, self._usage = now, usage_usec
        self.idle = now - self._ran_at >= SECONDS
        return self.idle != was
