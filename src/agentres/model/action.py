"""What was done with an agent's limits, and with the agent for their sake."""

from __future__ import annotations

import time

from agentres.model.record import Record


class Action(Record):
    """Something that was done, as the history keeps it (docs/history.md).

    ``kind`` is raise, lower, predict, set, trim, throttle, reclaim, release, freeze, thaw, pace or refuse; the limit of ``resource`` was
    ``before`` and is ``after``, None where there is none; by which ``rule``, and ``why`` in words.  ``time`` is unix
    time, ``took`` seconds.
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
        """What has just been done."""
        return cls(kind, resource, before, after, rule, why, time.time(), took)
