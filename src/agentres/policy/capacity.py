"""Who has how much of the memory that agents may have, and what is left of it; pure.

Memory alone is counted: CPU and disks are shared out by weight when all want them, and nobody fails for
waiting.  A limit counts as taken whether it is used or not, so that whoever has one can use it.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal


class Budget(Record):
    """What all agents together may have: ``limit`` bytes, ``share`` of the host's or less.

    ``held_by`` is the cgroup whose memory.max the kernel holds that with; empty: only we do.
    """

    host: int
    share: float
    limit: int
    held_by: str = ""


class Claim(Record):
    """What one agent has and wants; bytes, unless said otherwise."""

    # The cgroup with its limits.
    path: str
    name: str
    # Unix seconds.
    started: float
    # memory.max; None for none.
    limit: int | None
    # The working set.
    use: int
    priority: int = 100
    # It may not get less.
    least: int = 0
    # So much more than it has; since when, in seconds of CLOCK_BOOTTIME.
    wants: int = 0
    since: float = 0.0
    frozen: bool = False
    # It may grow to that; 0: it does not grow, or nobody knows.
    most: int = 0
    # Its supervisor is gone, or has never said what it claims: nothing can be asked of it.
    orphan: bool = False
    # What may still go from memory to swap, and what has gone there.
    swap: int = 0
    swapped: int = 0
    # It has not run for a while.
    idle: bool = False
    # What watches it and tells of its alerts, where its limit leaves no room for that.
    beside: int = 0

    @property
    def waiting(self) -> bool:
        """Whether it has not begun yet, for want of room."""
        return self.limit is None and self.wants > 0 and not self.frozen

    @property
    def taken(self) -> int:
        """What it takes of the budget."""
        return self.use if self.limit is None else self.limit

    @property
    def state(self) -> Literal["waiting", "frozen", "throttled", "running"]:
        """In a word: waiting to begin, frozen, short of memory, or none of these."""
        if self.waiting:
            return "waiting"
        if self.frozen:
            return "frozen"
        return "throttled" if self.wants > self.taken else "running"


class Admission(Record):
    """Whether a new agent may run: ``granted`` bytes to start with, or 0 and ``why`` not.

    ``spare`` tells that the others have as much that they can do without, and will give it when asked.
    """

    granted: int
    why: str = ""
    spare: bool = False


def rank(claim: Claim) -> tuple[float, float, str]:
    """To sort by: who is served first comes first."""
    return (-claim.priority, claim.started, claim.path)


def before(one: Claim, another: Claim) -> bool:
    """Whether the first ranks above the second."""
    return rank(one) < rank(another)


def line(claims: Iterable[Claim]) -> list[Claim]:
    """Those that wait to begin, in the order in which they will."""
    return sorted((claim for claim in claims if claim.waiting), key=rank)


def free(budget: Budget, claims: Iterable[Claim], without: str = "") -> int:
    """The bytes that nobody has but the agent at ``without``; negative where the budget has shrunk."""
    return budget.limit - sum(
        claim.beside + (0 if claim.path == without else claim.taken) for claim in claims
    )


def admit(budget: Budget, claims: Iterable[Claim], least: int, start: int) -> Admission:
    """Grant ``start`` bytes to a new agent or what is free, but not less than ``least``."""
    claims = list(claims)
    left = free(budget, claims)
    if least <= left:
        return Admission(max(least, min(start, left)))
    return Admission(0, shortage(budget, claims, least))


def shortage(budget: Budget, claims: Iterable[Claim], wanted: int) -> str:
    """Why so many bytes cannot be had, in words: who has them."""
    claims = list(claims)
    if wanted > budget.limit:
        return (
            f"{format_size(wanted)} of memory are more than all agents together may have,"
            f" {format_size(budget.limit)}"
        )
    left = max(free(budget, claims), 0)
    return (
        f"{format_size(wanted)} of memory are needed, {format_size(left)} of"
        f" {format_size(budget.limit)} are free: {holders(claims)}"
    )


_NAMED = 3


def holders(claims: Iterable[Claim]) -> str:
    """Who has most, in words: ``a has 1.5 GiB, b 512 MiB, and 4 more 200 MiB``."""
    ordered = sorted(claims, key=lambda claim: (-claim.taken, claim.name))
    words = [f"{claim.name} has {format_size(claim.taken)}" for claim in ordered[:_NAMED]]
    if rest := ordered[_NAMED:]:
        words.append(f"{len(rest)} more have {format_size(sum(claim.taken for claim in rest))}")
    return ", ".join(words) or "nobody has any"


def grant(budget: Budget, claims: Iterable[Claim], path: str, limit: int, wanted: int) -> int:
    """What the agent at ``path`` may have that has ``limit`` and wants more: as much of it as is free."""
    return max(limit, min(wanted, free(budget, claims, without=path)))
