"""What was done to an agent's limits, and to the agent because of limits."""

from __future__ import annotations

import time

from agentres.model.record import Record


class Action(Record):
    """One action, as the history keeps it (docs/history.md).

    ``kind`` is raise, lower, predict, set, trim, throttle, reclaim, release, freeze, thaw, pace or refuse.  ``before`` and
    ``after`` are the limit of ``resource``; None means that there is none.  ``rule`` decided it, and ``why`` says why in
    words.  ``time`` is Unix time; ``took`` is in seconds.
    """

    kind: str
    resource: str
    before: float | None
    after: float | None
    rule: str
    why: str
    time: float
    took: float

    @classmethod
    def now(
        cls,
        kind: str,
        resource: str,
        before: float | None,
        after: float | None,
        rule: str,
        why: str,
        took: float = 0.0,
    ) -> Action:
        """Return an action with the current time."""
        return cls(kind, resource, before, after, rule, why, time.time(), took)
