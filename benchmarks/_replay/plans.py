"""Which recordings are replayed, and what each session does at which moment; pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from _fleet.recordings import Recording

PREFERRED = ("haiku", "1")
"""Model and attempt of a task of which only the name is given, as in the study."""


class Unknown(ValueError):
    """What was asked for is not in the recordings; the words are for people."""


class Plan(NamedTuple):
    """One session: bytes held before the start, then steps of (seconds to wait, bytes to hold)."""

    name: str
    held: int
    steps: list[tuple[float, int]]

    @property
    def seconds(self) -> float:
        """How long it takes where allocations take no time."""
        return sum(pause for pause, _ in self.steps)

    @property
    def peak(self) -> int:
        """The most that it holds, bytes."""
        return max(self.held, *(size for _, size in self.steps))

    @property
    def text(self) -> str:
        """The line that tells a session what to do (:mod:`_replay.session`)."""
        return " ".join([str(self.held), *(f"{pause!r}:{size}" for pause, size in self.steps)])


def choose(recordings: Sequence[Recording], word: str) -> Recording:
    """The recording of a task, or the one named as model/task/attempt or a part of that; Unknown."""
    found = [one for one in recordings if f"/{word}/" in f"/{one.name}/"]
    if len(found) > 1:
        preferred = [one for one in found if tuple(one.name.split("/"))[::2] == PREFERRED]
        found = preferred or found
    if not found:
        tasks = sorted({one.name for one in recordings})
        some = ", ".join(tasks[:5]) + (f", and {len(tasks) - 5} more" if len(tasks) > 5 else "")
        raise Unknown(f"{word}: no recording of that task; there are {some}")
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise Unknown(f"{word}: there are several: {names}; expected one of them")
    return found[0]


def plan(
    recording: Recording, speed: float, base: int, begin: float = 0.0, end: float = math.inf
) -> Plan:
    """What replays the recording's seconds ``begin`` to ``end`` with ``base`` bytes on top; Unknown.

    What was in use before ``begin`` is held before the start.
    """
    level, at, steps = 0, begin, list[tuple[float, int]]()
    for when, use in zip(recording.times, recording.uses, strict=True):
        if when < begin:
            level = int(use)
        elif when <= end:
            steps.append(((when - at) / speed, base + int(use)))
            at = when
    if not steps:
        raise Unknown(
            f"{recording.name} has no sample from {begin:g} s to {end:g} s; it is {recording.seconds:.0f} s long"
        )
    return Plan(recording.name, base + level, steps)


def demand(plans: Iterable[Plan]) -> tuple[int, int, float]:
    """The sum of all peaks and the most that is held at one time, bytes, and when that is first, seconds.

    As if allocations took no time.
    """
    plans = list(plans)
    changes = list[tuple[float, bool, int]]()
    for one in plans:
        at, before = 0.0, one.held
        for pause, size in one.steps:
            at += pause
            changes.append((round(at, 6), False, size - before))
            before = size
        changes.append((round(at, 6), True, -before))  # it ends, after its last step
    total = most = sum(one.held for one in plans)
    when = 0.0
    for (at, _), group in itertools.groupby(sorted(changes), key=lambda change: change[:2]):
        total += sum(delta for _, _, delta in group)
        if total > most:
            most, when = total, at
    return sum(one.peak for one in plans), most, when
