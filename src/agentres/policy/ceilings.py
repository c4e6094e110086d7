"""Ceilings: the most that an administrator allows a user's agents; pure.

A ceiling names users, groups, or neither; one that names neither is general: it holds for everybody except root.  For each
key, a ceiling that names the user wins, else one that names a group, else a general one; of several, the highest value.
"""

from __future__ import annotations

from types import MappingProxyType

from agentres.model.errors import UsageError
from agentres.model.limits import (
    DISKS,
    EVERY_DISK,
    LIMIT_SPECS,
    ON_OFF,
    PRIORITIES,
    Host,
    Limits,
    Range,
    read_limits,
)
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

AGENTS = 100
"""How many agents a user may have at once, by default."""

CAPPED = ("cpu", "cpuset", "memory", "swap", "pids", *DISKS, "nofile", "net_in", "net_out")
"""The limits that a ceiling may name."""


class Ceiling(Record):
    """``[ceilings.NAME]``: users and groups, the most agents at once, the highest priority, and limits as text by key."""

    name: str
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    agents: int | None = None
    priority: int | None = None
    limits: Mapping[str, str] = MappingProxyType({})


class Allowance(Record):
    """What one user may have: the number of agents, their highest priority, and their highest limits (``top``; None: no ceiling)."""

    user: str
    agents: int
    priority: int
    top: Limits


def allowance(
    ceilings: Iterable[Ceiling], user: str, uid: int, groups: Collection[str], host: Host
) -> Allowance:
    """Combine all ceilings into what a user in these groups may have."""
    names = {user, str(uid)}
    ranks: tuple[list[Ceiling], ...] = ([], [], [])
    for each in ceilings:
        if names & set(each.users):
            ranks[0].append(each)
        elif set(groups) & set(each.groups):
            ranks[1].append(each)
        elif not each.users and not each.groups:
            ranks[2].append(each)
    agents = _first([[c.agents for c in rank] for rank in ranks], AGENTS)
    priority = _first([[c.priority for c in rank] for rank in ranks], PRIORITIES["normal"])
    top: dict[str, Any] = {}
    for key in CAPPED:
        for rank in ranks:
            found = [_value(key, c.limits[key], host) for c in rank if key in c.limits]
            if found:
                top[key] = max(found)
                break
    rates = {key: {EVERY_DISK: top.pop(key)} for key in DISKS if key in top}
    return Allowance(user, agents, priority, Limits(**{**top, **rates}))


def _first(ranks: Iterable[Iterable[int | None]], standard: int) -> int:
    """Return the highest figure of the first rank that has any, else ``standard``."""
    counts = ([figure for figure in rank if figure is not None] for rank in ranks)
    return next((max(rank) for rank in counts if rank), standard)


def priority_within(priority: int, allowance: Allowance, asked: bool) -> int:
    """Return ``priority``, lowered to what is allowed.

    UsageError if it was ``asked`` for and is higher: other agents would give way to it.
    """
    if asked and priority > allowance.priority:
        raise UsageError(
            f"--priority: {priority} is above the ceiling of {allowance.priority} for {allowance.user}"
        )
    return min(priority, allowance.priority)


def within(limits: Limits, allowance: Allowance, standard: Limits) -> Limits:
    """Return ``limits``, lowered to what is allowed.

    A value equal to ``standard`` was not asked for, and is lowered.  So is the upper end of a range, which
    means "as much as allowed".  Any other value above its ceiling is a UsageError that names the ceiling.
    """
    changed: dict[str, Any] = {}
    ranges = dict(limits.ranges)
    for key in CAPPED:
        top = getattr(allowance.top, key)
        if key in DISKS:
            if EVERY_DISK in top:
                changed[key] = _rates(key, limits, ranges, top[EVERY_DISK], allowance, standard)
                if limits.io_strict != ON_OFF[0]:
                    raise UsageError(
                        f"--io-strict {limits.io_strict}: {allowance.user} has a ceiling on disk rates, which pauses hold as well"
                    )
        elif top is not None:
            asked = getattr(limits, key) != getattr(standard, key)
            value = getattr(limits, key)
            changed[key] = _capped(key, value, ranges, top, allowance, asked)
    return limits.but(**changed, ranges=ranges)


def _rates(
    key: str,
    limits: Limits,
    ranges: dict[str, Range],
    top: float,
    allowance: Allowance,
    standard: Limits,
) -> dict[str, Any]:
    rates, known = getattr(limits, key), getattr(standard, key)
    held = {
        device: _capped(
            f"{key}={device}" if device else key,
            rate,
            ranges,
            top,
            allowance,
            known.get(device) != rate,
        )
        for device, rate in rates.items()
    }
    return {EVERY_DISK: top, **held}


def _capped(
    key: str, value: Any, ranges: dict[str, Range], top: float, allowance: Allowance, asked: bool
) -> Any:
    between = ranges.get(key)
    if between is not None:
        if between.least > top:
            raise _above(key, between.least, top, allowance)
        ranges[key] = Range(between.least, min(between.most, top))
        return min(value, top) if value != MAX else top
    if value is None or (value == MAX and not asked):
        return top
    figure = value
    if key == "cpuset" and value != MAX:
        from agentres.model.cpus import count

        figure = count(value)
    if value == MAX or figure > top:
        if asked:
            raise _above(key, figure, top, allowance)
        return top
    return value


def _above(key: str, value: Any, top: float, allowance: Allowance) -> UsageError:
    kind = key.partition("=")[0]
    show = LIMIT_SPECS[kind].show
    asked = "no limit" if value == MAX else show(value)
    return UsageError(
        f"--{kind.replace('_', '-')}: {asked} is above the ceiling of {show(top)} for {allowance.user}"
    )


def _value(key: str, text: str, host: Host) -> Any:
    """Return a ceiling's figure; LimitError."""
    found = getattr(read_limits({key: text}, host, Limits()), key)
    return found[EVERY_DISK] if key in DISKS else found


def no_ceilings(limits: Mapping[str, str], host: Host) -> Sequence[str]:
    """Return the keys whose texts are not ceilings: ranges, rates of a named disk, CPU lists, and "max"."""
    return [
        key
        for key, text in limits.items()
        # A list of CPUs says which CPUs, not how many.
        if ":" in text or "=" in text or isinstance(_value(key, text, host), str)
    ]
