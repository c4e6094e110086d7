"""How far an agent writes ahead of its disk rate, and for how long it is frozen for that; pure.

``io.max`` holds what the kernel bills to the agent's cgroup.  Writeback is billed to the cgroup that owns the inode
(cgroup-v2.rst, "Writeback"): what an agent overwrites in a file that somebody else wrote just before goes to the disk
without a rate.  A leaky bucket counts both; it is emptied at the rate, and an agent that fills it with what is
not billed waits until it is empty.
"""

from __future__ import annotations

from agentres.model.record import Record

BURST_SECONDS, BURST_MOST = 0.125, 4e6
"""What may be ahead of the rate: its worth of so many seconds, and no more than so many bytes."""

UNSURE = 1 << 19
"""Bytes that may look unbilled for a moment, between two figures of the kernel's: nobody is paused for so few."""

LONGEST = 1.0
"""Seconds that an agent is frozen at a time: whatever else it does goes on then for a moment."""

SOONEST, IN_DEBT, LATEST = 0.002, 0.01, 0.025
"""Seconds between two looks: at one that writes as fast as it can, at the most while it is ahead, and at one that
writes nothing.  It dirties a gigabyte a second: what it is ahead by the time of a look has to be made good in a pause, which holds
down to a rate of :data:`SOONEST` of what it writes in :data:`LONGEST`."""

_SOON, _FAST = 0.004, 500e6
"""Lower rates want earlier looks: between two of them an agent that writes so many bytes a second gets ahead by no more than
a pause makes good, down to so many seconds."""


class Turn(Record):
    """What to do: freeze for so many seconds (0: not at all), and look again so many seconds after that."""

    freeze: float
    look: float


class Bucket:
    """Bytes that are ahead of ``rate``, in bytes a second; times are in seconds, of any clock.

    ``billed`` and ``unbilled`` are what had been written when it was made.
    """

    def __init__(self, rate: float, now: float, billed: int = 0, unbilled: int = 0) -> None:
        self.rate = rate
        self.level = 0.0
        self._at = now
        self._billed, self._unbilled = billed, unbilled
        self._owed = 0.0
        self._speed = 0.0
        self._look = SOONEST
        self._frozen = 0.0

    @property
    def burst(self) -> float:
        """Bytes that may be ahead."""
        return min(self.rate * BURST_SECONDS, BURST_MOST)

    @property
    def latest(self) -> float:
        """Seconds to the next look at one that writes nothing."""
        return min(LATEST, max(_SOON, self.rate * LONGEST / _FAST))

    def rest(self, now: float) -> None:
        """Nothing was written until now."""
        self.level = max(0.0, self.level - self.rate * (now - self._at))
        self._at = now

    def observe(self, now: float, billed: int, unbilled: int) -> Turn:
        """Take what was written until now, in bytes: what the kernel holds and what it does not; neither ever falls."""
        passed, self._at = now - self._at, now
        paid, ran = self.rate * self._frozen, max(passed - self._frozen, SOONEST / 2)
        self._frozen = 0.0
        # The kernel holds each disk to the rate: with several of them, or one that is counted twice, it is more than one's.
        more, self._billed = min(billed - self._billed, self.rate * passed), billed
        unpaid, self._unbilled = unbilled - self._unbilled, unbilled
        self.level = max(0.0, self.level + more + unpaid - self.rate * passed)
        # Of what is ahead, what it has not waited for, in the kernel or in a pause.
        self._owed = min(max(0.0, self._owed - paid) + unpaid, self.level)
        if not unpaid:
            # Nothing that the kernel does not hold by itself.
            self._look = min(2 * self._look, IN_DEBT if self.level > self.burst else self.latest)
            return Turn(0.0, self._look)
        self._speed = max(unpaid / ran, self._speed / 2)
        ahead = self.level > self.burst and self._owed > max(self.burst / 2, UNSURE)
        freeze = min(self._owed / self.rate, LONGEST) if ahead else 0.0
        self._frozen = freeze
        room, longest = self.burst - (self.level - freeze * self.rate), self.latest
        if (
            room <= 0
        ):  # one pause was not enough: what it writes before the next is a quarter of what that one makes good
            room, longest = self.rate * LONGEST / 4, IN_DEBT
        self._look = min(max(room / self._speed, SOONEST), longest)
        return Turn(freeze, self._look)
