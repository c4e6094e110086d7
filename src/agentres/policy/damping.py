"""Limits how much is reported about an agent: a burst, then a steady rate; the rest is only counted; pure.

An agent can cross a threshold, or a limit, twenty times a second for weeks.  Each change would be a line on stderr, one in
the journal, and rows in the history.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.policy.alerts import Change

if TYPE_CHECKING:
    from agentres.policy.alerts import Alert

BURST = 10
"""How many changes of one rule's alerts are reported at once."""

EVERY = 30.0
"""Seconds after which one more is reported."""


class TokenBucket:
    """A token bucket: ``burst`` tokens at once, then one every ``every`` seconds of the clock that :meth:`take` gets."""

    __slots__ = ("_at", "_burst", "_every", "_left")

    def __init__(self, burst: int, every: float) -> None:
        self._burst, self._every = burst, every
        self._left, self._at = float(burst), 0.0

    def take(self, now: float) -> bool:
        """Take a token; return whether there was one."""
        self._left = min(self._left + (now - self._at) / self._every, self._burst)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Damper:
    """Passes on the changes of one rule's alerts while they are few.

    When tokens are available again, the state at that time is reported in place of the changes left out.  An alert that was
    reported always has its end reported.  ``left_out`` counts the changes that are never reported.
    """

    __slots__ = ("_bucket", "_ended", "_held", "_reported", "left_out")

    def __init__(self) -> None:
        self._bucket = TokenBucket(BURST, EVERY)
        self._reported: Alert | None = None  # the open alert, as last reported
        self._ended: Alert | None = None  # that alert, whose end is not reported yet
        self._held: Alert | None = None  # the present alert, not reported yet in this state
        self.left_out = 0

    def take(self, now: float, changes: tuple[Change, ...]) -> list[Change]:
        """Return the changes to report now."""
        found = []
        while (late := self._late()) is not None and self._bucket.take(now):
            found.append(self._tell(late))
        for change in changes:
            if self._late() is None and self._bucket.take(now):
                found.append(self._tell(change))
            else:
                self._hold(change)
        return found

    def finish(self, changes: tuple[Change, ...]) -> list[Change]:
        """Return the changes to report at the very end, when no alert is left: the end of a reported alert."""
        for change in changes:
            self._hold(change)
        return [] if self._ended is None else [self._tell(Change("resolved", self._ended))]

    def _late(self) -> Change | None:
        if self._ended is not None:
            return Change("resolved", self._ended)
        if self._held is None:
            return None
        return Change("raised" if self._reported is None else "updated", self._held)

    def _tell(self, change: Change) -> Change:
        if change.kind == "resolved":
            self._reported = self._ended = None
        elif change.kind != "repeated":
            self._reported, self._held = change.alert, None
        return change

    def _hold(self, change: Change) -> None:
        alert, reported = change.alert, self._reported
        if change.kind == "resolved" and reported is not None and reported.id == alert.id:
            self.left_out += self._held is not None
            self._ended, self._held = alert, None
        elif change.kind in ("raised", "updated"):
            self.left_out += self._held is not None
            self._held = alert
            if (
                reported is not None
                and reported.id == alert.id
                and reported.severity == alert.severity
            ):
                self._held = None  # unchanged since it was reported
                self.left_out += 1
        else:  # a repeat, or the end of an alert that was never reported
            self.left_out += 1 + (self._held is not None and change.kind == "resolved")
            if change.kind == "resolved":
                self._held = None
