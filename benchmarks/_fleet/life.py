"""One recording under the policy itself, moment by moment."""

from __future__ import annotations

import math

from _fleet.recordings import Outcome, Recording, Rule, World, pieces
from agentres.model.limits import Range
from agentres.policy.scaling import Move, Philosophy, Scaler

INTERVAL = 5.0
"""Seconds between two samples of the policy (agentres.policy.settings)."""

NOTIFY = 0.010
"""Seconds between two notifications of one file: CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c."""

PAGE = 4096


class Life:
    """One recording under one :class:`Scaler`: everything that happens, in order."""

    def __init__(self, philosophy: Philosophy, world: World) -> None:
        self.world = world
        self.scaler = Scaler("memory", philosophy, Range(world.least, world.most), 0.0, PAGE)
        self.limits: list[tuple[float, float]] = [(0.0, world.start)]
        self.limit: float = world.start
        self.wake = self.scaler.wake_at(world.start)
        self.move: Move | None = None
        self.stands = math.inf  # when what is being written stands
        self.heard = -math.inf
        self.sample = self.look = 0.0
        self.throttled = 0.0
        self.looks = 0

    def run(self, recording: Recording) -> Outcome:
        """All of it, or until it is killed."""
        for begin, end, low, high in pieces(recording):
            if (killed := self.live(begin, end, low, high)) is not None:
                return Outcome(self.limits, killed, self.throttled, self.looks)
        return Outcome(self.limits, None, self.throttled, self.looks)

    def live(self, begin: float, end: float, low: float, high: float) -> float | None:
        """From ``begin`` to ``end``: when it was killed, else None."""
        # What was recorded has happened, even if that takes more than the growth that is assumed.
        growth, now = max(self.world.growth, (high - low) / (end - begin)), begin
        while True:
            use = min(high, low + (now - begin) * growth)
            over = math.inf
            if high > self.limit:
                over = max(now, begin + (self.limit - low) / growth)
            crosses = math.inf
            if self.move is None and self.wake is not None and high >= self.wake:
                crosses = max(now, begin + (self.wake - low) / growth, self.heard + NOTIFY)
            then = min(end, over, crosses, self.stands, self.look)
            if self.wake is not None and high >= self.wake:
                self.throttled += max(0.0, then - max(now, begin + (self.wake - low) / growth))
            if then == end:  # what happens at the end happens in the next piece
                return None
            now = then
            use = min(high, low + (now - begin) * growth)
            if then == self.stands:  # a limit that stands at the instant of the kill is in time
                self.write(now, use)
            elif then == over:
                return now
            elif then == crosses:
                self.heard = now
                self.ask(now, max(use, self.wake or 0.0), notified=True)
            else:
                self.ask(now, use, notified=False)

    def ask(self, now: float, use: float, notified: bool) -> None:
        """A look: by the policy's clock or the kernel's word."""
        self.looks += 1
        while self.sample <= now:
            self.sample += INTERVAL
        if self.move is None:
            self.move = self.scaler.observe(now, use, self.limit, notified=notified)
            if self.move is not None:
                self.stands = now + self.world.reaction
        self.look = min(self.sample, now + self.scaler.due(now))

    def write(self, now: float, use: float) -> None:
        """What was asked for a reaction ago; a lowering looks again first, and so does a raise after it."""
        move, self.move, self.stands = self.move, None, math.inf
        assert move is not None
        wake = self.scaler.wake_at(move.after)
        if move.after < move.before and (use >= move.after or (wake is not None and use >= wake)):
            self.scaler.moved(now, move, move.before)
        else:
            self.limit = move.after
            self.limits.append((now, self.limit))
            self.scaler.moved(now, move, self.limit)
        self.wake = self.scaler.wake_at(self.limit)
        if self.wake is not None and use >= self.wake:
            self.ask(now, use, notified=False)
        else:
            self.look = min(self.sample, now + self.scaler.due(now))


def ours(philosophy: Philosophy) -> Rule:
    """The rule of a philosophy."""
    return lambda recording, world: Life(philosophy, world).run(recording)
