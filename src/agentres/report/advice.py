"""Recommends limits for the next run, from what earlier runs used; pure.

The minimum of a range is a margin above the median of the samples that are left.  The maximum is above everything
seen, in those samples and in what was learnt from all runs (:mod:`agentres.policy.prediction`): the limit moves
within what is known, and stops only what has never been seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentres.model.units import counted
from agentres.policy.alerts import show
from agentres.policy.histogram import SCALES
from agentres.policy.prediction import Profile
from agentres.report import THROTTLED, RunReport

FEWEST = 3
"""Fewest samples to recommend from."""

MARGIN = 1.15
"""Factor from the median use to the minimum of a range; as in docs/prediction.md."""

HEADROOM = 1.25
"""Factor from the highest use to the maximum of a range."""

MORE_HEADROOM = 1.5
"""The same if a limit held the use down: what the run would have used is not known."""

FORKS = 2.0
"""Factor from the most processes to their limit."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Advice:
    """A limit as an option of ``agentres run``, and why."""

    resource: str
    option: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class _KnownUse:
    """A resource's median (``half``) and highest use, each with its source (``…_of``); ``held``: by a limit."""

    half: float
    half_of: str
    most: float
    most_of: str
    held: bool


def advise(profile: Profile | None, runs: Sequence[RunReport]) -> tuple[tuple[Advice, ...], str]:
    """Return the recommended limits, and if there are none, the reason."""
    found = tuple(_advise(profile, runs))
    if found:
        return found, ""
    return (), (
        "too little is known: nothing was learnt from a run that ended, and fewer than"
        f" {FEWEST} samples are left"
    )


def _advise(profile: Profile | None, runs: Sequence[RunReport]) -> Iterator[Advice]:
    if known := _known_use("memory", profile, runs):
        headroom = MORE_HEADROOM if known.held else HEADROOM
        least, most = _bytes(known.half * MARGIN), _bytes(known.most * headroom)
        value = _range(least, most, "{}M")
        yield Advice("memory", "--memory", value, _reason(known, "memory", headroom))
    if known := _known_use("cpu", profile, runs):
        headroom = MORE_HEADROOM if known.held else HEADROOM
        least_cores, most_cores = _cores(known.half * MARGIN), _cores(known.most * headroom)
        value = _range(least_cores, most_cores, "{:g}")
        yield Advice("cpu", "--cpu", value, _reason(known, "cpu", headroom))
    if known := _known_use("pids", profile, runs):
        limit = max(32, 16 * math.ceil(known.most * FORKS / 16))
        reason = (
            f"{known.most_of} had at most {math.floor(known.most)} processes and threads;"
            " twice as many, and at least 32"
        )
        yield Advice("pids", "--pids", str(limit), reason)


def _known_use(
    resource: str, profile: Profile | None, runs: Sequence[RunReport]
) -> _KnownUse | None:
    """Combine what was learnt from all runs with the samples that are left; None if there is neither.

    The median comes from samples if there are enough, since learnt peaks say nothing about it.  Samples count for the
    highest use too: nothing is learnt yet from a run that goes on.
    """
    uses = [use for one in runs if (use := one.uses.get(resource))]
    count = sum(len(one.curves.times) for one in runs if resource in one.uses)
    held = any(_held(resource, one) for one in runs)
    samples = None
    if count >= FEWEST:
        of = f"{count} samples"
        half = sorted(use.median for use in uses)[len(uses) // 2]
        samples = _KnownUse(half, of, max(use.most for use in uses), of, held)
    learnt = None
    if profile is not None and profile.runs:
        both = profile.use[resource].together(profile.held[resource])
        if both.weights:
            of = counted(profile.runs, "run")
            held = held or profile.held[resource].total > 0
            learnt = _KnownUse(both.percentile(0.5), of, both.percentile(1.0), of, held)
    if samples is None or learnt is None:
        return samples or learnt
    highest = max(samples, learnt, key=lambda known: known.most)
    return _KnownUse(samples.half, samples.half_of, highest.most, highest.most_of, held)


def _held(resource: str, one: RunReport) -> bool:
    """Return whether a limit kept the run from using more."""
    if resource == "memory":
        return bool(one.killed)
    return resource == "cpu" and (one.throttled or 0) >= THROTTLED


def _reason(known: _KnownUse, resource: str, headroom: float) -> str:
    unit = SCALES[resource].unit
    reason = (
        f"half of {known.half_of} used at most {show(known.half, unit)}: {MARGIN - 1:.0%} more is the least;"
        f" {known.most_of} used at most {show(known.most, unit)}: {headroom - 1:.0%} more is the most"
    )
    return f"{reason}, since a limit held it and it may need more" if known.held else reason


def _bytes(value: float) -> int:
    """Round bytes up to MiB, a multiple of 16 and at least 32."""
    return max(32, 16 * math.ceil(value / _MIB / 16))


def _cores(value: float) -> float:
    return max(0.1, math.ceil(value * 10 - 1e-9) / 10)


def _range(least: float, most: float, form: str) -> str:
    """Format as an option's value; a single value if rounding or different margins leave no range."""
    ends = form.format(least), form.format(most)
    return ":".join(ends) if least < most else ends[1]
