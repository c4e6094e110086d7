"""Whether an agent is idle: then its memory may go to swap for agents that are short of memory; pure."""

from __future__ import annotations

SECONDS = 30.0
"""Seconds without running after which an agent is idle."""

_RUNS = 0.01
"""The fraction of a processor, averaged between two samples, above which an agent counts as running."""


class Idle:
    """Takes each sample's time in seconds and CPU time in microseconds, None if not known."""

    def __init__(self, now: float) -> None:
        self._ran_at = self._at = now
        self._usage: int | None = None
        self.idle = False

    def observe(self, now: float, usage_usec: int | None) -> bool:
        """Take a sample; return whether ``idle`` has changed."""
        before, was = self._usage, self.idle
        if before is None or usage_usec is None or usage_usec - before > _RUNS * 1e6 * (now - self._at):  # fmt: skip
            self._ran_at = now
        self._at, self._usage = now, usage_usec
        self.idle = now - self._ran_at >= SECONDS
        return self.idle != was
