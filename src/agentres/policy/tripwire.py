"""Where ``memory.high`` stands, so that the kernel tells of a threshold when it is crossed; pure.

``memory.high`` is an alarm here, not a cap: over it the kernel throttles whoever allocates, for the moment
until the supervisor has moved it on, and notifies ``memory.events``.
"""

from __future__ import annotations

from agentres.model.limits import page_align
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX

if TYPE_CHECKING:
    from agentres.model.units import Max

ROOM = 32 << 20
"""Bytes between the tripwire and a limit on memory, at the least: 11 ms of growth at 3 GB/s, the fastest that
was seen of an agent.  A limit that is not higher than this is raised at the first look, and none is
lowered so far that less than a quarter of this could be used before the next raise; a range that ends
below has no room to be elastic in."""

NEAR = 4 << 20
"""Bytes: who is as near to its tripwire is at it: its use is read a moment later, and where it has swap some goes there."""

SLACK = 1 << 20
"""Bytes: by less than this it is not moved, each move being a system call."""


def height(
    threshold: float | None,
    current: int,
    working_set: int,
    limit: int | None,
    room: int | None = None,
    page: int = 4096,
) -> int | Max:
    """``memory.high`` in bytes, for the next ``threshold`` of the working set.

    The kernel counts the page cache, the working set does not: what the cache has now is added.  Where the
    sum is at ``memory.max`` or above it, that limit notifies as well, and there is no tripwire; nor
    is there one at or below what is in use, which would only throttle.

    Where the limit is to be raised there is always one, ``room`` bytes below it at the least: whoever gets
    there before the raise waits for it instead of being killed.
    """
    if threshold is None:
        return MAX
    at = page_align(int(threshold) + current - working_set, page)
    if room is not None and limit is not None:
        highest = last(limit, room, page)
        return at if current < at < highest else highest
    if at <= current or (limit is not None and at >= limit):
        return MAX
    return at


def last(limit: int, room: int, page: int = 4096) -> int:
    """The highest place for the tripwire of a limit that is to be raised: at the latest there one waits for that."""
    return page_align(max(limit - room, limit // 2), page)


def moved(before: int | Max, after: int | Max) -> bool:
    """Whether the difference is worth a write."""
    if before == MAX or after == MAX:
        return before != after
    return abs(after - before) >= SLACK
