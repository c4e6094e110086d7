"""What happens when the agents' memory budget is used up: trim, freeze, thaw, or let one agent's process be killed; pure.

An agent that is refused a raise is throttled by its tripwire, and publishes what it wants (:class:`Claim`).  From
then on every supervisor runs this module over the same tree, and carries out the steps for its own agent.  So
a decision depends only on the tree and the time, and a step that was carried out is not asked for again.

An agent is *stuck* when it wants more and is at its tripwire.  One that wants more but is not there yet is only
*short of room*.  Rank is priority, then age; the highest-ranking stuck agent (*top*) is served first.  Times
count from when top got stuck, or the last agent if all are stuck; FROZEN_LEAST and FROZEN_MOST from the freeze.

=================  ==========================================  =====================================  =========
running agents     step for an agent that                      when                                   step
=================  ==========================================  =====================================  =========
one is stuck       ranks below top, and has more than its use  at once, lowest first, as many as      trim
                   plus a margin                               needed; all of them after OVERDUE
one is stuck       ranks above top, and is not at its          EQUALS_WAIT; with higher priority      trim
                   tripwire                                    HUNGRY
one is stuck       ranks below top, is not idle, and its       if trims are not enough; same priority freeze
                   margin helps: it keeps just the room to be  after EQUALS_WAIT; not within
                   thawed into                                 THAWED_LEAST of its thaw
one is stuck       is frozen or idle, and can go to swap       if trims are not enough                reclaim
one is stuck       ranks below top, and can go to swap         if that is not enough; later for same  freeze
                                                               priority, and if it is stuck itself
one is stuck, and  is stuck itself, with lower priority: it    HUNGRY                                 freeze
another gets on    would creep towards its hard limit
all are stuck      is frozen; highest first                    FROZEN_LEAST                           thaw
all are stuck      ranks lowest, and no agent is frozen        PATIENCE, then one more each time; at  release
                                                               once if it runs alone
none is stuck      has more than its use plus a margin: for a  at once, lowest first                  trim
                   budget that has shrunk, a higher agent
                   short of room, or the next in line
none that ranks    is frozen; highest first                    FROZEN_LEAST, and once there is room   thaw
higher is stuck                                                for what it has in swap
any                is frozen                                   FROZEN_MOST; with memory in swap       thaw
                                                               SWAPPED_MOST
=================  ==========================================  =====================================  =========

An idle agent, whose memory can go to swap, is not frozen: it waits, and must hear the answer.  Its memory goes while it may run, and
only for agents of the same or higher priority.
If freezing would not help, no agent is frozen, because only a running agent can free memory.  A released agent meets its
hard limit: one of its processes is killed, and the reason is reported.

An agent whose supervisor is gone, or has published no claim, is asked for nothing: no process would carry it out.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import format_size
from agentres.policy.capacity import Budget, Claim, before, free, line, rank
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import HEADROOM, NEAR

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

MARGIN = 0.15
"""What a trimmed agent keeps above its use, as a fraction of it; at least :data:`HEADROOM` and a little more."""

OVERDUE = 2.0
"""Seconds after which every agent that can give is asked, not only the lowest: one that was asked did not give."""

HUNGRY = 5.0
"""Seconds after which a stuck agent comes before agents of higher priority that are only short of room, and
after which it is frozen for a stuck agent of higher priority."""

PATIENCE = 10.0
"""Seconds without any progress before a process is killed: until then any agent may end or give memory back."""

EQUALS_WAIT = 2.0
"""Seconds before an agent of the same priority is frozen; one of lower priority is frozen at once."""

FROZEN_LEAST = 1.0
"""The shortest freeze in seconds, so that an agent is not thawed for every page."""

FROZEN_MOST = 30.0
"""The longest freeze in seconds: by then freezing has given what it can."""

SWAPPED_MOST = 300.0
"""The same for an agent with memory in swap: until others end it would find no room, and would swap all the time."""

THAWED_LEAST = 15.0
"""Seconds for which a thawed agent is not frozen again; more than PATIENCE, which would otherwise never run out.
If the agent wants more, the time of its thaw is not known: it is left alone for HUNGRY seconds, and has little to give."""


class Step(Record):
    """What to do to the agent at ``path``.

    ``limit``, in bytes, is the limit to trim it to.  ``reclaim`` reclaims its memory until it fits that limit.
    """

    kind: Literal["trim", "reclaim", "freeze", "thaw", "release"]
    path: str
    why: str
    limit: int = 0


def at_tripwire(limit: int, use: int) -> bool:
    """Return whether this use is at the tripwire of an elastic limit, or so near that it makes no difference."""
    return limit - use <= min(HEADROOM, limit // 2) + NEAR


def pressed(claim: Claim) -> bool:
    """Return whether the agent is at its tripwire: every allocation now waits."""
    return claim.limit is not None and at_tripwire(claim.limit, claim.use)


def stuck(claim: Claim) -> bool:
    """Return whether the agent cannot go on without more memory."""
    return _wants(claim) > 0 and pressed(claim)


def reserved(claims: Iterable[Claim], mine: Claim, now: float | None = None) -> int:
    """Return the bytes that agents ahead of ``mine`` want: free or not, ``mine`` may not take them.

    A stuck agent comes before one that is not, unless that has higher priority and the stuck one is not
    hungry yet at ``now`` (:data:`HUNGRY`).  Otherwise rank decides.
    """
    return sum(
        _wants(claim)
        for claim in claims
        if claim.path != mine.path and _wants(claim) and _first(claim, mine, now)
    )


def decide(budget: Budget, claims: Iterable[Claim], now: float) -> list[Step]:
    """Return the steps for this tree at ``now``, in seconds of the clock of ``Claim.since``."""
    claims = list(claims)
    ordered = sorted((claim for claim in claims if not claim.waiting), key=rank)
    frozen = [claim for claim in ordered if claim.frozen and not _deaf(claim, now)]
    running = [claim for claim in ordered if not claim.frozen]
    short = [claim for claim in running if stuck(claim) and not claim.orphan]
    left = free(budget, ordered)
    steps = [
        Step("thaw", claim.path, "its supervisor is gone, which had it frozen")
        for claim in ordered
        if claim.frozen and claim.orphan and claim.since > 0
    ]
    steps += [
        Step("thaw", claim.path, "it was frozen for long enough")
        for claim in ordered
        if claim.frozen and not claim.orphan and _deaf(claim, now)
    ]
    if short:
        steps += _relieve(short[0], running, left, now)
        swaps, waits = _swap_out(short[0], ordered, steps, left, now)
        steps += swaps
        # No agent gets on: each one that is not frozen is stuck, and neither free memory nor swap helps any of them.
        if not waits and len(short) == len(running) and min(_wants(short[0]), HEADROOM) > left:
            since = max(claim.since for claim in short)
            for claim in ordered:  # until a frozen agent that nothing thaws is given up
                if claim.frozen and claim.since and not claim.orphan and _deaf(claim, now):
                    since = max(since, claim.since + 2 * _frozen_most(claim))
            if frozen:
                return steps + _thaw(frozen[:1], now, FROZEN_LEAST, since, "nobody else gets on")
            return steps + _release(budget, short, len(ordered) - 1, now - since)
    else:
        steps += _make_way(budget, claims, running, left)
    left -= sum(max(_swapped_in(claim), _wants(claim)) for claim in running)
    for claim in frozen:
        if before(claim, short[0]) if short else _fits(claim, running, left):
            why = "nobody above it is short of memory"
            return steps + _thaw([claim], now, FROZEN_LEAST, claim.since, why)
    long = [claim for claim in frozen if now - claim.since >= _frozen_most(claim)]
    return steps + [Step("thaw", claim.path, "it was frozen for long enough") for claim in long[:1]]


def _swapped_in(claim: Claim) -> int:
    """Return the bytes that it would take above its limit to use what it has in swap again."""
    return min(claim.swapped, max(0, claim.most - (claim.limit or 0)))


def _fits(claim: Claim, running: list[Claim], left: int) -> bool:
    """Return whether there is room for a frozen agent's swapped memory; if no agent runs, it must do with what there is."""
    return not running or _swapped_in(claim) <= max(left, HEADROOM)


def _frozen_most(claim: Claim) -> float:
    """Return the longest time in seconds that it stays frozen."""
    return SWAPPED_MOST if claim.swapped > HEADROOM else FROZEN_MOST


def _deaf(claim: Claim, now: float) -> bool:
    """Return whether nothing will thaw it on request: something else froze it, or its supervisor does not respond."""
    return claim.orphan or claim.since == 0 or now - claim.since >= 2 * _frozen_most(claim)


def _wants(claim: Claim) -> int:
    """Return the bytes that it wants on top of what it has; 0 if it is frozen or has not started."""
    return 0 if claim.frozen or claim.waiting else max(0, claim.wants - claim.taken)


def _first(one: Claim, another: Claim, now: float | None) -> bool:
    """Return whether ``one`` gets free memory before ``another``."""
    if pressed(one) != pressed(another):
        near, far = (one, another) if pressed(one) else (another, one)
        hungry = now is not None and near.wants > 0 and now - near.since >= HUNGRY
        if hungry or near.priority >= far.priority:
            return near is one
    return before(one, another)


def _relieve(top: Claim, running: list[Claim], left: int, now: float) -> list[Step]:
    """Return trims and freezes of the others, so that the stuck agent ``top`` gets on."""
    needed = _wants(top) - left
    if needed <= 0:  # it takes the free memory at its next look
        return []
    waited = now - top.since
    asked = [(claim, _trimmed(claim)) for claim in reversed(running) if before(top, claim)]
    for claim in reversed(running):
        patience = HUNGRY if claim.priority > top.priority else EQUALS_WAIT
        if before(claim, top) and not pressed(claim) and waited >= patience:
            asked.append((claim, _bare(claim)))
    why = f"{top.name} wants {format_size(top.wants)}"
    trims, given = [], 0
    for claim, keeps in asked:
        gives = _gives(claim, keeps)
        if gives and (given < needed or waited >= OVERDUE):
            reason = f"{why}, and {format_size(claim.use)} are used"
            trims.append(Step("trim", claim.path, reason, keeps))
            given += gives
    if given >= min(needed, HEADROOM) and waited < 2 * OVERDUE:
        return trims  # the next look shows what that gives
    freezes = _freeze([claim for claim, _ in asked], top, needed, now)
    if any(not stuck(claim) for claim in running):
        freezes += [
            Step("freeze", claim.path, f"{why}, and so does this one", _held(claim))
            for claim in reversed(running)
            if _creeps(claim, top, now)
        ]
    done = {step.path for step in freezes}
    return [step for step in trims if step.path not in done] + freezes


def _freeze(asked: list[Claim], top: Claim, needed: int, now: float) -> list[Step]:
    """Freeze the lowest agents whose margins give enough; none if all together do not give enough."""
    steps, given = [], 0
    waited = now - top.since
    for claim in asked:
        gives = _gives(claim, _held(claim))
        rest = HUNGRY if claim.wants else THAWED_LEAST
        if not gives or claim.idle or not before(top, claim) or now - claim.since < rest:
            continue
        if claim.priority == top.priority and waited < EQUALS_WAIT:
            continue
        if given < needed or waited >= OVERDUE:
            why = f"{top.name} wants {format_size(top.wants)}"
            steps.append(Step("freeze", claim.path, why, _held(claim)))
            given += gives
    return steps if given >= min(needed, HEADROOM) else []


def _swap_out(
    top: Claim, ordered: list[Claim], steps: list[Step], left: int, now: float
) -> tuple[list[Step], bool]:
    """Return steps that move memory to swap for ``top``, if ``steps`` are not enough; and whether any will, now or later."""
    keeps = {step.path: step.limit for step in steps if step.limit}
    given = {claim.path: _gives(claim, keeps[claim.path]) for claim in ordered if claim.path in keeps}  # fmt: skip
    needed = _wants(top) - left - sum(given.values())
    may = [
        claim
        for claim in reversed(ordered)
        if claim.swap and claim is not top and _gives(claim, _emptied(claim))
    ]
    if needed <= 0 or not may:
        return [], False
    why = f"{top.name} wants {format_size(top.wants)}"
    for claim in may:
        rests = claim.idle and claim.priority <= top.priority and not claim.wants
        if claim.limit is not None and (claim.frozen or rests):
            # At least a tenth less, or the lower limit is not worth a write.
            limit = keeps.get(claim.path, claim.limit)
            aim = min(limit - needed, int(WORTH * limit) - NEAR)
            return [Step("reclaim", claim.path, why, max(_emptied(claim), aim))], True
    below = [claim for claim in may if before(top, claim) and not claim.frozen]
    stops = []
    # Some are frozen for their margins already, and hand back next.
    frozen = {step.path for step in steps if step.kind == "freeze"}
    gained = sum(_gives(claim, _emptied(claim)) - given[claim.path] for claim in below if claim.path in frozen)  # fmt: skip
    for claim in below:
        if claim.path in frozen:
            continue
        rest = HUNGRY if claim.wants else THAWED_LEAST
        wait = EQUALS_WAIT if claim.priority == top.priority else 0.0
        if gained < needed and now - claim.since >= rest and now - top.since >= wait:
            stops.append(Step("freeze", claim.path, why, _held(claim)))
            gained += _gives(claim, _emptied(claim))
    enough = min(needed, HEADROOM)
    hoped = sum(_gives(claim, _emptied(claim)) for claim in below)
    return stops if gained >= enough else [], hoped >= enough


def _creeps(claim: Claim, top: Claim, now: float) -> bool:
    """Return whether it would only get nearer to its hard limit by running on."""
    return (
        stuck(claim)
        and not claim.orphan
        and claim.priority < top.priority
        and now - max(claim.since, top.since) >= HUNGRY
    )


def _make_way(budget: Budget, claims: list[Claim], running: list[Claim], left: int) -> list[Step]:
    """If no agent is stuck: make room for a shrunken budget, an agent that is short of room, or one that waits to start."""
    likes = next((claim for claim in running if _wants(claim) and not claim.orphan), None)
    waiting = _next_in_line(claims, running, left)
    if left < -NEAR:  # less comes and goes with the supervisors' own use, and is not worth a trim
        asked, needed = running, -left
        why = f"all agents may have {format_size(budget.limit)}"
    elif likes is not None:
        asked, needed = [claim for claim in running if before(likes, claim)], _wants(likes) - left
        why = f"{likes.name} wants {format_size(likes.wants)}"
    elif waiting:
        first, more = waiting[0], len(waiting) - 1
        asked = [claim for claim in running if claim.priority <= first.priority]
        needed = sum(claim.wants for claim in waiting) - left
        why = f"{first.name} waits for {format_size(first.wants)}"
        if more:
            why += f", {more} more for {format_size(sum(claim.wants for claim in waiting[1:]))}"
    else:
        return []
    steps = []
    for claim in reversed(asked):
        gives = _gives(claim, _trimmed(claim))
        if gives and needed > 0:
            reason = f"{why}, and {format_size(claim.use)} are used"
            steps.append(Step("trim", claim.path, reason, _trimmed(claim)))
            needed -= gives
    return steps


def _next_in_line(claims: list[Claim], running: list[Claim], left: int) -> list[Claim]:
    """Return the agents next to start: as many of the first one's priority as room can be made for."""
    waiting = line(claims)
    room = left + spare(running, waiting[0].priority) if waiting else 0
    served = []
    for claim in waiting:
        room -= claim.wants
        if room < 0 or claim.priority != waiting[0].priority:
            break  # it would still have to wait
        served.append(claim)
    return served


def spare(claims: Iterable[Claim], priority: int) -> int:
    """Return the bytes that agents of this priority or lower can spare for one that waits to start."""
    return sum(
        _gives(claim, _trimmed(claim))
        for claim in claims
        if claim.priority <= priority and not claim.frozen and not claim.waiting
    )


def _trimmed(claim: Claim) -> int:
    """Return what a trimmed agent keeps, in bytes."""
    return max(int(claim.use * (1 + MARGIN)), _bare(claim))


def _bare(claim: Claim) -> int:
    """Return the least that it keeps, so that it is not at its tripwire at once."""
    return max(claim.use + HEADROOM + 2 * NEAR, claim.least)


def _held(claim: Claim) -> int:
    """Return what a frozen agent keeps: enough to go on when thawed."""
    return max(claim.use + HEADROOM, claim.least)


def _emptied(claim: Claim) -> int:
    """Return what it keeps after all that can go to swap has gone."""
    return max(claim.use - claim.swap + HEADROOM, claim.least)


def _gives(claim: Claim, keeps: int) -> int:
    """Return the bytes gained by lowering its limit to ``keeps``; 0 if that is not worth a write."""
    if claim.limit is None or claim.orphan or keeps > WORTH * claim.limit:
        return 0
    return claim.limit - keeps


def _thaw(claims: list[Claim], now: float, frozen: float, since: float, why: str) -> list[Step]:
    """Thaw those that have been frozen for ``frozen`` seconds, counted not before ``since``.

    Pass one at a time: the next is thawed when this one has taken its room.
    """
    return [
        Step("thaw", claim.path, why) for claim in claims if now - max(claim.since, since) >= frozen
    ]


def _release(budget: Budget, short: list[Claim], others: int, waited: float) -> list[Step]:
    """Release the lowest stuck agent, and one more after each further PATIENCE; the highest comes last."""
    count = min(int(waited / PATIENCE), len(short)) if others else 1
    beside = {
        0: "",
        1: ", and the other agent gives none back",
    }.get(others, f", and none of the other {others} agents gives any back")
    return [
        Step(
            "release",
            claim.path,
            f"wants {format_size(claim.wants)}; all agents may have {format_size(budget.limit)}{beside}",
        )
        for claim in short[len(short) - count :]
    ]
