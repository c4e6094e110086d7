"""What happens when the memory that agents may have is gone: trim, freeze, thaw, let one be killed; pure.

Who is refused a raise is throttled by its own tripwire, and says what it wants (:class:`Claim`).  From then
on every supervisor decides by this module over the same tree, and carries out what is about its own
agent; so the decision depends on the tree and the time alone, and what was carried out is not asked again.

An agent is *stuck* when it wants more and has come to its tripwire; one that wants more and is not there yet
would only like some room.  Rank is priority, then age: the highest that is stuck is served first.  Times are since it is stuck.

=================  ==========================================  =====================================  =========
of those that run  who                                         when                                   step
=================  ==========================================  =====================================  =========
one is stuck       ranks below it, and has more than it uses   at once, the lowest first, as many as  trim
                   and a margin                                it takes; all after OVERDUE
one is stuck       ranks above it, is not at its tripwire      EQUALS_WAIT, of higher priority HUNGRY trim
one is stuck       ranks below it, and its margin helps: it    trims are not enough; an equal after   freeze
                   keeps just the room to go on from           EQUALS_WAIT; not within THAWED_LEAST
                                                               of its thaw
one is stuck       is frozen or idle, and may go to swap       where trims are not enough             reclaim
one is stuck       ranks below it, and may go to swap          where that is not enough; an equal,    freeze
                                                               and who is stuck itself, later
one is stuck, and  is stuck itself, of lower priority: it      HUNGRY                                 freeze
another gets on    would creep on to its hard limit
all are stuck      is frozen, the highest first                FROZEN_LEAST                           thaw
all are stuck      is the lowest, and nobody is frozen         PATIENCE, then another one each time;  release
                                                               at once where it runs alone
none is stuck      has more than it uses and a margin: for a   at once, the lowest first              trim
                   budget that has shrunk, for a higher one
                   that would like room, for the next in line
none above is      is frozen, the highest first                FROZEN_LEAST, and once there is room  thaw
stuck                                                          for what it has in swap
any                is frozen                                   FROZEN_MOST; with memory in swap       thaw
                                                               SWAPPED_MOST
=================  ==========================================  =====================================  =========

What an idle one hands back goes to swap while it may run: it is not frozen, and asked only by those above it and its equals.
Where freezing would not help nobody is frozen: only by running can they give back what they use.  Who is released meets its
hard limit: a process of it is killed, and why is told.

An agent whose supervisor is gone, or said nothing, is asked for nothing: nobody would carry it out.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import format_size
from agentres.policy.capacity import Budget, Claim, before, free, line, rank
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import NEAR, ROOM

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

MARGIN = 0.15
"""Of its use, what a trimmed agent keeps on top of it; :data:`ROOM` and some at the least."""

OVERDUE = 2.0
"""Seconds after which whoever can give is asked, not only the lowest: somebody does not do as it should."""

HUNGRY = 5.0
"""Seconds that one is stuck until it comes before those of higher priority that only would like room, and
until it is frozen for one of higher priority that is stuck."""

PATIENCE = 10.0
"""Seconds for which nobody gets on until one is killed: any of them may end or give back meanwhile."""

EQUALS_WAIT = 2.0
"""Seconds that one waits until another of its own priority is frozen; a lower one is frozen at once."""

FROZEN_LEAST = 1.0
"""Seconds that an agent stays frozen at the least, so that it is not woken for every page."""

FROZEN_MOST = 30.0
"""Seconds that an agent stays frozen at the most: what freezing it gave has been given."""

SWAPPED_MOST = 300.0
"""Likewise of one that has handed memory back: until others have ended it would find no room, and swap all the time."""

THAWED_LEAST = 15.0
"""Seconds for which one that was thawed is not frozen again; more than PATIENCE, which would never end else.
Of one that wants more the time is not known; it is left alone for HUNGRY seconds, and has little to give."""


class Step(Record):
    """What is to be done to the agent at ``path``: ``limit`` is what it is trimmed to, in bytes.

    To reclaim is to have it use so much less that this can be.
    """

    kind: Literal["trim", "reclaim", "freeze", "thaw", "release"]
    path: str
    why: str
    limit: int = 0


def at_tripwire(limit: int, use: int) -> bool:
    """Whether so much use is at the tripwire of an elastic limit, or as near as makes no difference."""
    return limit - use <= min(ROOM, limit // 2) + NEAR


def pressed(claim: Claim) -> bool:
    """Whether it has come to its tripwire: whatever it allocates now, it waits for."""
    return claim.limit is not None and at_tripwire(claim.limit, claim.use)


def stuck(claim: Claim) -> bool:
    """Whether it cannot go on without more."""
    return _wants(claim) > 0 and pressed(claim)


def reserved(claims: Iterable[Claim], mine: Claim, now: float | None = None) -> int:
    """The bytes that those want who come before this one: free or not, they are not for it.

    Who is stuck comes before those that are not, if they are not of higher priority or it is hungry
    at ``now``; else rank decides.
    """
    return sum(
        _wants(claim)
        for claim in claims
        if claim.path != mine.path and _wants(claim) and _first(claim, mine, now)
    )


def decide(budget: Budget, claims: Iterable[Claim], now: float) -> list[Step]:
    """The steps that the tree asks for at ``now``, seconds of the clock that ``Claim.since`` is of."""
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
        # Nobody gets on: each that is not frozen is stuck, and neither what is free nor what goes to swap helps any of them.
        if not waits and len(short) == len(running) and min(_wants(short[0]), ROOM) > left:
            since = max(claim.since for claim in short)
            for claim in ordered:  # until nobody hopes any more that it goes on
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
    """The bytes that it takes on top of its limit when it uses again what it has in swap."""
    return min(claim.swapped, max(0, claim.most - (claim.limit or 0)))


def _fits(claim: Claim, running: list[Claim], left: int) -> bool:
    """Whether a frozen one finds the room that it had; where nobody runs it goes on in what there is."""
    return not running or _swapped_in(claim) <= max(left, ROOM)


def _frozen_most(claim: Claim) -> float:
    """Seconds that it stays frozen at the most."""
    return SWAPPED_MOST if claim.swapped > ROOM else FROZEN_MOST


def _deaf(claim: Claim, now: float) -> bool:
    """Whether nobody thaws it when that is asked for: another froze it, or its supervisor does not run."""
    return claim.orphan or claim.since == 0 or now - claim.since >= 2 * _frozen_most(claim)


def _wants(claim: Claim) -> int:
    """The bytes that it wants on top of what it has; who is frozen or has not begun does not count."""
    return 0 if claim.frozen or claim.waiting else max(0, claim.wants - claim.taken)


def _first(one: Claim, another: Claim, now: float | None) -> bool:
    """Whether the first is to have what is free before the second."""
    if pressed(one) != pressed(another):
        near, far = (one, another) if pressed(one) else (another, one)
        hungry = now is not None and near.wants > 0 and now - near.since >= HUNGRY
        if hungry or near.priority >= far.priority:
            return near is one
    return before(one, another)


def _relieve(top: Claim, running: list[Claim], left: int, now: float) -> list[Step]:
    """What the others give so that the one that is stuck gets on."""
    needed = _wants(top) - left
    if needed <= 0:  # it takes what there is at its next look
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
    if given >= min(needed, ROOM) and waited < 2 * OVERDUE:
        return trims  # what that gives is seen at the next look
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
    """The lowest whose margins make room that is worth it; none where all together do not."""
    steps, given = [], 0
    waited = now - top.since
    for claim in asked:
        gives = _gives(claim, _held(claim))
        rest = HUNGRY if claim.wants else THAWED_LEAST
        if not gives or not before(top, claim) or now - claim.since < rest:
            continue
        if claim.priority == top.priority and waited < EQUALS_WAIT:
            continue
        if given < needed or waited >= OVERDUE:
            why = f"{top.name} wants {format_size(top.wants)}"
            steps.append(Step("freeze", claim.path, why, _held(claim)))
            given += gives
    return steps if given >= min(needed, ROOM) else []


def _swap_out(
    top: Claim, ordered: list[Claim], steps: list[Step], left: int, now: float
) -> tuple[list[Step], bool]:
    """What goes to swap for the one that is stuck, where ``steps`` are not enough; and whether something does, now or later."""
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
            # A tenth less at the least, or the lower limit is not worth a write.
            aim = min(claim.limit - needed, int(WORTH * claim.limit) - NEAR)
            return [Step("reclaim", claim.path, why, max(_emptied(claim), aim))], True
    below = [claim for claim in may if before(top, claim) and not claim.frozen]
    stops = []
    gained = 0
    for claim in below:
        rest = HUNGRY if claim.wants else THAWED_LEAST
        wait = EQUALS_WAIT if claim.priority == top.priority else 0.0
        if gained < needed and now - claim.since >= rest and now - top.since >= wait:
            stops.append(Step("freeze", claim.path, why, _held(claim)))
            gained += _gives(claim, _emptied(claim))
    enough = min(needed, ROOM)
    hoped = sum(_gives(claim, _emptied(claim)) for claim in below)
    return stops if gained >= enough else [], hoped >= enough


def _creeps(claim: Claim, top: Claim, now: float) -> bool:
    """Whether it only gets nearer to its hard limit by running on."""
    return (
        stuck(claim)
        and not claim.orphan
        and claim.priority < top.priority
        and now - max(claim.since, top.since) >= HUNGRY
    )


def _make_way(budget: Budget, claims: list[Claim], running: list[Claim], left: int) -> list[Step]:
    """Where nobody is stuck: room under a budget that has shrunk, for who would like some, or to begin."""
    likes = next((claim for claim in running if _wants(claim) and not claim.orphan), None)
    waiting = _next_in_line(claims, running, left)
    if left < -NEAR:  # less comes and goes with what watches them, and is not worth a trim
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
    """Of those that wait to begin, as many of the first one's priority as room can be made for."""
    waiting = line(claims)
    room = left + spare(running, waiting[0].priority) if waiting else 0
    served = []
    for claim in waiting:
        room -= claim.wants
        if room < 0 or claim.priority != waiting[0].priority:
            break  # it would have to wait nevertheless
        served.append(claim)
    return served


def spare(claims: Iterable[Claim], priority: int) -> int:
    """The bytes that those of this priority and below can do without, and give to one that waits to begin."""
    return sum(
        _gives(claim, _trimmed(claim))
        for claim in claims
        if claim.priority <= priority and not claim.frozen and not claim.waiting
    )


def _trimmed(claim: Claim) -> int:
    """What a trimmed agent keeps."""
    return max(int(claim.use * (1 + MARGIN)), _bare(claim))


def _bare(claim: Claim) -> int:
    """What it keeps at the least, so that it is not at its tripwire at once."""
    return max(claim.use + ROOM + 2 * NEAR, claim.least)


def _held(claim: Claim) -> int:
    """What a frozen agent keeps: enough to be thawed into."""
    return max(claim.use + ROOM, claim.least)


def _emptied(claim: Claim) -> int:
    """What it keeps when all that may has gone to swap."""
    return max(claim.use - claim.swap + ROOM, claim.least)


def _gives(claim: Claim, keeps: int) -> int:
    """The bytes that are had by lowering its limit; 0 where that is not worth a write."""
    if claim.limit is None or claim.orphan or keeps > WORTH * claim.limit:
        return 0
    return claim.limit - keeps


def _thaw(claims: list[Claim], now: float, frozen: float, since: float, why: str) -> list[Step]:
    """One at a time: the next is thawed when this one has taken its room."""
    return [
        Step("thaw", claim.path, why) for claim in claims if now - max(claim.since, since) >= frozen
    ]


def _release(budget: Budget, short: list[Claim], others: int, waited: float) -> list[Step]:
    """The lowest of those that are stuck; after as long again the next one, but the highest last of all."""
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
