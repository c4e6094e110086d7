"""Admission: checks whether there is room for one more agent, and waits for it.

Admission keeps the sum of the agents' limits under the budget; so does the kernel, by the slice's own limit.
"""

from __future__ import annotations

import select
import time

from agentres.kernel import host, registry, tree
from agentres.kernel.lock import Lock
from agentres.model import log
from agentres.model.errors import ControlFileError, NoRoom
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX, format_duration, format_size
from agentres.policy.capacity import Admission, Claim, admit, before, free, line, shortage

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.cgroup import Cgroup
    from agentres.model.limits import Limits
    from agentres.policy.capacity import Budget

LOOK_AGAIN = 1.0
"""Seconds between two looks of a waiting agent, besides those that the bell asks for: a killed supervisor rings none."""

ASKED_PATIENCE = 30.0
"""Seconds that an agent without --wait gives the others to give up memory that they can spare.

They do so as soon as they are asked; a busy host may take this long to run them.
"""

LOCK_PATIENCE = 30.0
"""Seconds to wait for the lock while one process holds it: agents that start at the same moment take it in turn."""

_SMALLER = "a smaller --memory may fit"
_WAIT = f"--wait waits for room, {_SMALLER}"


class Applicant(Record):
    """The agent that asks for room: its cgroup, the ``slice`` that holds it, its limits and its rank.

    ``share`` is the part of the host that all agents may have.  ``wait`` is in seconds, at most; None: not at all.
    ``write`` writes memory.max.
    """

    cgroup: Cgroup
    slice: str
    limits: Limits
    priority: int
    share: float
    wait: float | None
    write: Callable[[int], None]


def enter(who: Applicant, early: Callable[[], None], tell: Callable[[str], None]) -> Limits:
    """Reserve room for the agent; return its limits, with as much memory to start with as there is.

    If its least memory does not fit, wait for room or raise NoRoom; either way first ask the others for what
    they can spare.  ``early`` is called during the wait, and may raise.  ``tell`` gets a line for people when
    the agent's place in the line changes.
    """
    memory = who.limits.memory
    if memory is None or memory == MAX or not who.cgroup.has("memory.max"):
        _mark_claim(who, 0, 0)
        return who.limits
    between = who.limits.ranges.get("memory")
    least = int(between.least) if between is not None else memory
    _mark_claim(who, least, 0)
    found = _try(who, least, memory, early)
    if not found.granted:
        if least > _budget(who).limit:  # it would not fit even if it were alone
            raise NoRoom(found.why, _SMALLER)
        if who.wait is None and not found.spare:
            raise NoRoom(found.why, _WAIT)
        found = _wait(who, least, memory, found, early, tell)
    return who.limits.but(memory=found.granted)


def _try(who: Applicant, least: int, start: int, early: Callable[[], None]) -> Admission:
    with Lock(who.slice, LOCK_PATIENCE, early, in_line=True):
        claims = tree.claims(who.slice)
        mine = next((claim for claim in claims if claim.path == who.cgroup.path), None)
        others = [claim for claim in claims if claim.path != who.cgroup.path]
        budget = _budget(who)
        ahead, reserved = list[Claim](), 0
        if mine is not None:  # else no mark can be written, and it cannot stand in line
            budget = budget.but(limit=max(0, budget.limit - mine.beside))
            ahead = [c for c in line(others) if before(c, mine)]
            reserved = sum(c.wants for c in ahead)
            if any(claim.wants and not claim.waiting for claim in others):
                from agentres.policy import contention  # seldom needed, and a launch must be quick

                now = time.clock_gettime(time.CLOCK_BOOTTIME)
                reserved += contention.reserved([c for c in others if not c.waiting], mine, now)
        found = admit(budget.but(limit=max(0, budget.limit - reserved)), others, least, start)
        if found.granted:
            _mark_claim(who, least, 0)
            try:
                who.write(found.granted)
            except ControlFileError as error:  # enforce() writes it again, and reads it back
                log.debug(__name__, "%s", error)
            return found
        why = shortage(budget, others, least)
        if reserved and least <= budget.limit:
            why += f"; {format_size(reserved)} are for those before it"
        from agentres.policy import contention

        lacking = least + reserved - free(budget, others)
        return Admission(0, why, contention.spare(others, who.priority) >= lacking)


def _budget(who: Applicant) -> Budget:
    return tree.budget(who.slice, host.memory(), who.share)


def _wait(
    who: Applicant,
    least: int,
    start: int,
    found: Admission,
    early: Callable[[], None],
    tell: Callable[[str], None],
) -> Admission:
    from agentres.kernel.bell import Bell

    bell = Bell(who.slice)
    poll = select.poll()
    if bell.fd >= 0:
        poll.register(bell.fd, select.POLLIN)
    began = time.monotonic()
    patience = ASKED_PATIENCE if who.wait is None else who.wait
    _mark_claim(who, least, least)
    bell.ring()  # agents that have more than they use may give some back
    last_place = 0
    try:
        while not found.granted:
            place = _place(who)
            if place != last_place and who.wait is not None:
                last_place = place
                tell(f"waiting for room, {place}. in line: {found.why}")
            left = began + patience - time.monotonic()
            if who.wait is None and (left <= 0 or not found.spare):
                raise NoRoom(found.why, _WAIT)
            if left <= 0:
                raise NoRoom(f"no room after {format_duration(patience)}: {found.why}", _SMALLER)
            if poll.poll(min(left, LOOK_AGAIN) * 1000):
                bell.heard()
            early()
            found = _try(who, least, start, early)
    finally:
        bell.close()
    return found


def _place(who: Applicant) -> int:
    waiting = line(tree.claims(who.slice))
    paths = [claim.path for claim in waiting]
    return paths.index(who.cgroup.path) + 1 if who.cgroup.path in paths else 1


def _mark_claim(who: Applicant, least: int, wants: int) -> None:
    since = time.clock_gettime(time.CLOCK_BOOTTIME) if wants else 0.0
    between = who.limits.ranges.get("memory")
    most = 0 if between is None else int(between.most)
    try:
        registry.mark_claim(
            who.cgroup.fd, registry.ClaimMark(who.priority, least, wants, since, most)
        )
    except OSError as error:
        log.debug(__name__, "nobody sees what %s claims: %s", who.cgroup.path, error)
