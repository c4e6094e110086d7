"""Timers of a loop whose time a test brings."""

from __future__ import annotations

from collections.abc import Callable

from agentres.kernel.loop import Timer


class Stepped:
    """``now`` is its time in seconds; :meth:`run` lets it pass."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.timers: list[Timer] = []

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(deadline, callback, len(self.timers)))
        return self.timers[-1]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in self.timers if t.callback is not None and t.deadline <= end]:
            first = min(due)
            self.timers.remove(first)
            self.go_on(max(self.now, first.deadline))
            assert first.callback is not None
            first.callback()
        self.go_on(end)

    def go_on(self, now: float) -> None:
        """It is that time now."""
        self.now = now
