"""How the memory budget is divided among agents, and what is left of it; pure.

Only memory is counted: CPU and disks are shared by weight under contention, and waiting for them makes
no agent fail.  A limit counts as taken whether it is used or not, so that an agent can always use its
limit.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal


class Budget(Record):
    """The memory that all agents together may have: ``limit`` bytes, at most ``share`` of the host's.

    ``held_by`` is the cgroup whose memory.max enforces it; empty if only agentres does.
    """

    host: int
    share: float
    limit: int
    held_by: str = ""


class Claim(Record):
    """What one agent has and wants; in bytes unless stated otherwise."""

    # The cgroup with its limits.
    path: str
    name: str
    # Unix seconds.
    started: float
    # memory.max; None for no limit.
    limit: int | None
    # The working set.
    use: int
    priority: int = 100
    # It may not get less.
    least: int = 0
    # The limit that it wants, and since when, in seconds of CLOCK_BOOTTIME.
    wants: int = 0
    since: float = 0.0
    frozen: bool = False
    # The most that it may grow to; 0: it does not grow, or that is not known.
    most: int = 0
    # Its supervisor is gone, or has never published a claim: the agent cannot be asked for anything.
    orphan: bool = False
    # What can still move from memory to swap, and what is in swap.
    swap: int = 0
    swapped: int = 0
    # It has not run for a while.
    idle: bool = False
    # Memory of the processes that watch it and deliver its alerts, if its limit leaves no room for them.
    beside: int = 0

    @property
    def waiting(self) -> bool:
        """Whether it has not started yet, for lack of memory."""
        return self.limit is None and self.wants > 0 and not self.frozen

    @property
    def taken(self) -> int:
        """What it takes of the budget."""
        return self.use if self.limit is None else self.limit

    @property
    def state(self) -> Literal["waiting", "frozen", "throttled", "running"]:
        """``waiting`` to start, ``frozen``, ``throttled`` (short of memory), or else ``running``."""
        if self.waiting:
            return "waiting"
        if self.frozen:
            return "frozen"
        return "throttled" if self.wants > self.taken else "running"


class Admission(Record):
    """Whether a new agent may run: ``granted`` bytes to start with, or 0 and ``why`` not.

    ``spare``: the other agents have that much to spare, and give it when asked.
    """

    granted: int
    why: str = ""
    spare: bool = False


def rank(claim: Claim) -> tuple[float, float, str]:
    """Return the sort key: the agent that is served first sorts first."""
    return (-claim.priority, claim.started, claim.path)


def before(one: Claim, another: Claim) -> bool:
    """Return whether ``one`` ranks above ``another``."""
    return rank(one) < rank(another)


def line(claims: Iterable[Claim]) -> list[Claim]:
    """Return the agents that wait to start, in the order in which they will start."""
    return sorted((claim for claim in claims if claim.waiting), key=rank)


def free(budget: Budget, claims: Iterable[Claim], without: str = "") -> int:
    """Return the free bytes, counting the limit of the agent at ``without`` as free; negative if the budget has shrunk."""
    return budget.limit - sum(
        claim.beside + (0 if claim.path == without else claim.taken) for claim in claims
    )


def admit(budget: Budget, claims: Iterable[Claim], least: int, start: int) -> Admission:
    """Grant a new agent ``start`` bytes or what is free, but at least ``least``; refuse if that is not free."""
    claims = list(claims)
    left = free(budget, claims)
    if least <= left:
        return Admission(max(least, min(start, left)))
    return Admission(0, shortage(budget, claims, least))


def shortage(budget: Budget, claims: Iterable[Claim], wanted: int) -> str:
    """Say why ``wanted`` bytes are not available, and which agents have them."""
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
    """Say which agents have most: ``a has 1.5 GiB, b has 512 MiB, 4 more have 200 MiB``."""
    ordered = sorted(claims, key=lambda claim: (-claim.taken, claim.name))
    words = [f"{claim.name} has {format_size(claim.taken)}" for claim in ordered[:_NAMED]]
    if rest := ordered[_NAMED:]:
        words.append(f"{len(rest)} more have {format_size(sum(claim.taken for claim in rest))}")
    return ", ".join(words) or "nobody has any"


def grant(budget: Budget, claims: Iterable[Claim], path: str, limit: int, wanted: int) -> int:
    """Return the new limit of the agent at ``path``, which has ``limit`` and wants ``wanted``: as much of that as is free."""
    return max(limit, min(wanted, free(budget, claims, without=path)))
