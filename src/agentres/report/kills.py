"""Finds out from a run's history why its processes were killed for memory; pure.

The samples have the kernel's count of kills, so a kill lies between two samples.  A run that is killed may have
no later sample, and samples are kept for an hour only: then its alerts tell.  A limit is reported only if it is
known to have held at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentres.model import clock
from agentres.model.stats import Sample
from agentres.policy.alerts import show

if TYPE_CHECKING:
    from agentres.store import ActionRow, AlertRow

_WAITED = frozenset({"throttle", "refuse", "release"})
"""Actions which say that a limit was not raised although that was needed (docs/history.md)."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill of ``count`` processes for memory, no later than ``by`` (unix seconds).

    ``limit`` is the limit at that time, ``used`` the working set of the sample before, both in bytes or None.
    ``why`` is why the limit was not raised, if that was tried.
    """

    by: float
    count: int
    limit: float | None
    used: float | None
    why: str


def kills(
    samples: Sequence[tuple[float, Sample]],
    actions: Sequence[ActionRow],
    alerts: Sequence[AlertRow],
) -> tuple[Kill, ...]:
    """Return the kills of one run, oldest first; the rows are oldest first too."""
    moves = [action for action in actions if action.resource == "memory"]
    sampled = tuple(_by_samples(samples, moves))
    alerted = tuple(_by_alerts(samples, moves, alerts))
    return alerted if _total(alerted) > _total(sampled) else sampled


def _total(found: Sequence[Kill]) -> int:
    return sum(kill.count for kill in found)


def _by_samples(
    samples: Sequence[tuple[float, Sample]], moves: Sequence[ActionRow]
) -> Iterator[Kill]:
    counted, before = 0, None
    for at, sample in samples:
        now = sample.memory_oom_kill
        if now is not None and now > counted:
            yield _kill(at, now - counted, before, moves)
        counted = counted if now is None else now
        before = (at, sample)


def _by_alerts(
    samples: Sequence[tuple[float, Sample]],
    moves: Sequence[ActionRow],
    alerts: Sequence[AlertRow],
) -> Iterator[Kill]:
    for alert in alerts:
        if alert.resource == "oom_kill":
            before = next((row for row in reversed(samples) if row[0] <= alert.raised), None)
            yield _kill(alert.raised, int(alert.value), before, moves)


def _kill(
    by: float, count: int, before: tuple[float, Sample] | None, moves: Sequence[ActionRow]
) -> Kill:
    at, sample = before or (0.0, Sample())
    limit: float | None = sample.memory_limit
    why = ""
    for move in moves:
        if move.time > by:
            break
        why = move.why if move.kind in _WAITED else ""
        if move.time >= at and move.after is not None:
            limit = move.after
    return Kill(by, count, limit, sample.working_set, why)


def words(found: Sequence[Kill]) -> str:
    """Describe all kills in one clause, with details of the last; "" if there are none."""
    if not found:
        return ""
    count, last = _total(found), found[-1]
    who = "a process was" if count == 1 else f"{count} processes were"
    text = (
        f"{who} killed for memory, {'' if len(found) == 1 else 'the last '}by {clock.date(last.by)}"
    )
    if last.limit is not None:
        text += f" at a limit of {show(last.limit, 'bytes')}"
    if last.used is not None:
        text += f", with {show(last.used, 'bytes')} in use before"
    return f"{text}; the limit was not raised: {last.why}" if last.why else text
