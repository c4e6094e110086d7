"""How far an agent writes ahead of its disk rate, and how long it is frozen for that; pure.

``io.max`` limits the I/O that the kernel bills to the agent's cgroup.  Writeback is billed to the cgroup that owns the inode
(cgroup-v2.rst, "Writeback"): if an agent overwrites a file that another cgroup has just written, no rate limits that.  A leaky
bucket counts billed and unbilled bytes and drains at the rate.  An agent that fills it with unbilled bytes is frozen until it
is empty.
"""

from __future__ import annotations

from agentres.model.record import Record

BURST_SECONDS, BURST_MOST = 0.125, 4e6
"""How far an agent may be ahead of its rate: what the rate allows in that many seconds, and at most that many bytes."""

UNSURE = 1 << 19
"""Bytes that may look unbilled for a moment, because two kernel counters are read one after the other: too few for a pause."""

LONGEST = 1.0
"""The longest freeze in seconds: between two, everything else that the agent does goes on for a moment."""

SOONEST, IN_DEBT, LATEST = 0.002, 0.01, 0.025
"""Seconds between two looks: the least, for an agent that writes as fast as it can; the most while it is ahead; the most while
it writes nothing.  An agent can dirty a gigabyte a second, and one pause must make up for what it wrote between two looks.
That works for rates down to :data:`SOONEST` / :data:`LONGEST` of the speed at which it writes."""

_SOON, _FAST = 0.004, 500e6
"""Seconds, and bytes a second.  Low rates need early looks, but no earlier than ``_SOON``: between two looks, an agent that
writes at ``_FAST`` must not get further ahead than one pause makes up for."""


class Turn(Record):
    """What to do: freeze for ``freeze`` seconds (0: not at all), and look again ``look`` seconds after that."""

    freeze: float
    look: float


class LeakyBucket:
    """A leaky bucket: the bytes ahead of ``rate``, in bytes a second.  Times are in seconds, of any clock.

    ``billed`` and ``unbilled`` are the counters when it is created.
    """

    def __init__(self, rate: float, now: float, billed: int = 0, unbilled: int = 0) -> None:
        self.rate = rate
        self.level = 0.0
        self._at = now
        self._billed, self._unbilled = billed, unbilled
        self._owed = 0.0
        self._speed = 0.0
        self.look = SOONEST
        """Seconds from now, or from the end of a freeze, to the next look."""
        self._frozen = 0.0

    @property
    def burst(self) -> float:
        """How many bytes the agent may be ahead."""
        return min(self.rate * BURST_SECONDS, BURST_MOST)

    @property
    def latest(self) -> float:
        """Seconds to the next look while the agent writes nothing."""
        return min(LATEST, max(_SOON, self.rate * LONGEST / _FAST))

    def rest(self, now: float) -> None:
        """Note that nothing was written until ``now``."""
        self.level = max(0.0, self.level - self.rate * (now - self._at))
        self._at = now

    def observe(self, now: float, billed: int, unbilled: int) -> Turn:
        """Take the bytes written until ``now``, billed and unbilled, as counters that never fall; return what to do."""
        passed, self._at = now - self._at, now
        paid, ran = self.rate * self._frozen, max(passed - self._frozen, SOONEST / 2)
        self._frozen = 0.0
        # The kernel limits each disk to the rate: several disks, or one counted twice, can exceed it in sum.
        more, self._billed = min(billed - self._billed, self.rate * passed), billed
        unpaid, self._unbilled = unbilled - self._unbilled, unbilled
        self.level = max(0.0, self.level + more + unpaid - self.rate * passed)
        # The part of the level for which the agent has not waited yet, in the kernel or in a pause.
        self._owed = min(max(0.0, self._owed - paid) + unpaid, self.level)
        if not unpaid:
            # All of it was billed: the kernel limits that by itself.
            self.look = min(2 * self.look, IN_DEBT if self.level > self.burst else self.latest)
            return Turn(0.0, self.look)
        self._speed = max(unpaid / ran, self._speed / 2)
        ahead = self.level > self.burst and self._owed > max(self.burst / 2, UNSURE)
        freeze = min(self._owed / self.rate, LONGEST) if ahead else 0.0
        self._frozen = freeze
        spare, longest = self.burst - (self.level - freeze * self.rate), self.latest
        if (
            spare <= 0
        ):  # one pause is not enough: before the next, it may write a quarter of what that one makes up for
            spare, longest = self.rate * LONGEST / 4, IN_DEBT
        self.look = min(max(spare / self._speed, SOONEST), longest)
        return Turn(freeze, self.look)
