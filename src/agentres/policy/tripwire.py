"""Where to set ``memory.high``, so that the kernel reports when a threshold is crossed; pure.

``memory.high`` is an alarm here (the *tripwire*), not a cap.  Above it the kernel notifies
``memory.events``, and throttles allocations for the moment until the supervisor has moved it.
"""

from __future__ import annotations

from agentres.model.limits import page_align
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX

if TYPE_CHECKING:
    from agentres.model.units import Max

HEADROOM = 32 << 20
"""The least bytes between the tripwire and a memory limit: 11 ms of growth at 3 GB/s, the fastest seen of
an agent.  A limit no higher than this is raised at the first look.  No limit is lowered so far that less
than a quarter of this could be used before the next raise.  A range that ends below this has no room to
be elastic."""

NEAR = 4 << 20
"""Bytes: an agent this near to its tripwire counts as at it: its use is read a moment later, and some may go to swap."""

SLACK = 1 << 20
"""Bytes: the tripwire is not moved by less than this, because each move is a system call."""


def height(
    threshold: float | None,
    current: int,
    working_set: int,
    limit: int | None,
    headroom: int | None = None,
    page: int = 4096,
) -> int | Max:
    """Return ``memory.high`` in bytes, for the next ``threshold`` of the working set; "max" for no tripwire.

    The kernel counts the page cache and the working set does not, so the present cache is added.  There is
    no tripwire at or above ``memory.max``, which notifies as well, nor at or below current use, where it
    would only throttle.

    If ``headroom`` is given, the limit can be raised.  Then there is always a tripwire, no higher than
    :func:`last`: an agent that gets there before the raise waits for it, instead of being killed.
    """
    if threshold is None:
        return MAX
    at = page_align(int(threshold) + current - working_set, page)
    if headroom is not None and limit is not None:
        highest = last(limit, headroom, page)
        return at if current < at < highest else highest
    if at <= current or (limit is not None and at >= limit):
        return MAX
    return at


def last(limit: int, headroom: int, page: int = 4096) -> int:
    """Return the highest tripwire of a limit that can be raised: ``headroom`` bytes below it, or half of it if that is more."""
    return page_align(max(limit - headroom, limit // 2), page)


def moved(before: int | Max, after: int | Max) -> bool:
    """Return whether the difference is worth a write."""
    if before == MAX or after == MAX:
        return before != after
    return abs(after - before) >= SLACK
