"""What an agent may have told of it: so much at once, then so much a minute, the rest counted; pure.

An agent can cross a threshold, or a limit, twenty times a second for weeks.  Every such change would be a line on stderr, one in the
journal, rows of the history.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.policy.alerts import Event

if TYPE_CHECKING:
    from agentres.policy.alerts import Alert

BURST = 10
"""Changes of one rule's alerts that are told as they come."""

EVERY = 30.0
"""Seconds after which one more is."""


class Bucket:
    """``burst`` at once, then one each ``every`` seconds of the clock that :meth:`take` is given."""

    __slots__ = ("_at", "_burst", "_every", "_left")

    def __init__(self, burst: int, every: float) -> None:
        self._burst, self._every = burst, every
        self._left, self._at = float(burst), 0.0

    def take(self, now: float) -> bool:
        """Whether there is one; then it is gone."""
        self._left = min(self._left + (now - self._at) / self._every, self._burst)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Damper:
    """Lets the changes of one rule's alerts through, as long as these are few.

    What is left out is made good as soon as there is room, by what holds then: whoever was told of an alert is told of its end.
    ``left_out`` counts what nobody will be told.
    """

    __slots__ = ("_bucket", "_ended", "_held", "_told", "left_out")

    def __init__(self) -> None:
        self._bucket = Bucket(BURST, EVERY)
        self._told: Alert | None = None  # as it was told
        self._ended: Alert | None = None  # the same, and nobody was told
        self._held: Alert | None = None  # the present one, as it was not told
        self.left_out = 0

    def take(self, now: float, events: tuple[Event, ...]) -> list[Event]:
        """The events that are to be told now."""
        told = []
        while (late := self._late()) is not None and self._bucket.take(now):
            told.append(self._tell(late))
        for event in events:
            if self._late() is None and self._bucket.take(now):
                told.append(self._tell(event))
            else:
                self._hold(event)
        return told

    def finish(self, events: tuple[Event, ...]) -> list[Event]:
        """Likewise at the very end, when no alert is left: who was told of one is told of its end."""
        for event in events:
            self._hold(event)
        return [] if self._ended is None else [self._tell(Event("resolved", self._ended))]

    def _late(self) -> Event | None:
        if self._ended is not None:
            return Event("resolved", self._ended)
        if self._held is None:
            return None
        return Event("raised" if self._told is None else "updated", self._held)

    def _tell(self, event: Event) -> Event:
        if event.kind == "resolved":
            self._told = self._ended = None
        elif event.kind != "repeated":
            self._told, self._held = event.alert, None
        return event

    def _hold(self, event: Event) -> None:
        alert, told = event.alert, self._told
        if event.kind == "resolved" and told is not None and told.id == alert.id:
            self.left_out += self._held is not None
            self._ended, self._held = alert, None
        elif event.kind in ("raised", "updated"):
            self.left_out += self._held is not None
            self._held = alert
            if told is not None and told.id == alert.id and told.severity == alert.severity:
                self._held = None  # as it was told
                self.left_out += 1
        else:  # one that nobody knows of has ended, or was repeated
            self.left_out += 1 + (self._held is not None and event.kind == "resolved")
            if event.kind == "resolved":
                self._held = None
