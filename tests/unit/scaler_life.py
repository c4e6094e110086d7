"""A scaler in simulated time: its limit, and all of its moves."""

from __future__ import annotations

import math
from typing import Any

from agentres.model.limits import Range
from agentres.policy.scaling import BALANCED, Move, Philosophy, Scaler

MIB = 1 << 20
PAGE = 4096
MEMORY = Range(64 * MIB, 8192 * MIB)
GRAINS = {"memory": PAGE, "cpu": 0.01, "pids": 1, "io_read": 1}
RANGES = {
    "memory": MEMORY,
    "cpu": Range(0.1, 16.0),
    "pids": Range(16, 4096),
    "io_read": Range(10**6, 10**9),
}


def is_sound(philosophy: Philosophy) -> bool:
    """Whether it cannot flap, as the configuration has it (:mod:`agentres.config.elastic`)."""
    p = philosophy
    return (
        0 <= p.down < p.aim < p.up < 1
        and 1 < p.step <= 10
        and p.step * p.down < p.up
        and 1 <= p.cooldown < math.inf
        and p.give_back >= 1
        and 1 <= p.patience < math.inf
        and 0 <= p.margin < math.inf
    )


class Life:
    """A scaler, its limit, and all of its moves; whatever it asks for is done."""

    def __init__(
        self,
        philosophy: Philosophy = BALANCED,
        limit: float = 256 * MIB,
        resource: str = "memory",
        range: Range | None = None,
    ) -> None:
        self.now = 0.0
        self.limit = limit
        self.range = range or RANGES[resource]
        self.scaler = Scaler(resource, philosophy, self.range, 0.0, GRAINS[resource])
        self.moves: list[Move] = []

    def look(self, use: float | None, **rest: Any) -> Move | None:
        move = self.scaler.observe(self.now, use, self.limit, **rest)
        if move is not None:
            assert (move.before, move.use) == (self.limit, use)
            self.limit = move.after
            self.scaler.moved(self.now, move, move.after)
            self.moves.append(move)
        return move

    def hold(self, use: float, seconds: float, every: float = 1.0, **rest: Any) -> list[Move]:
        """The same use for a while: the moves of that time."""
        before, end = len(self.moves), self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + every)
            self.look(use, **rest)
        return self.moves[before:]

    def rules(self) -> list[str]:
        return [move.rule for move in self.moves]
