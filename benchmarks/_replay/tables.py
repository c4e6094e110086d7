"""What many rounds come to, as figures and as Markdown; pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from _replay.rounds import SessionOutcome

Rounds = Sequence[Sequence[SessionOutcome]]
"""By round, the sessions; the first of them is HIGH."""


class Figures(NamedTuple):
    """One way: None where there is nothing to take a figure of.  Seconds.

    ``survived`` counts the rounds by how many sessions lived; ``ratio`` and ``worst`` are of HIGH's time to its time
    in the base's round, where both lived; ``p50`` and ``p95`` of all of HIGH's allocations.
    """

    survived: Counter[int]
    sessions: int
    high: float | None
    ratio: float | None
    worst: float | None
    p50: float | None
    p95: float | None
    low: float | None
    low_worst: float | None
    lost: Counter[str]

    @property
    def all_survived(self) -> int:
        """The rounds in which all lived."""
        return self.survived[self.sessions]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share of them do not exceed (nearest rank); None: there is none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def figures(rounds: Rounds, base: Rounds) -> Figures:
    """One way's, beside the base's in the same rounds."""
    highs = [sessions[0] for sessions in rounds]
    pairs = [
        (one.seconds, other[0].seconds)
        for one, other in zip(highs, base, strict=True)
        if one.lived and other[0].lived
    ]
    ratios = [one / other for one, other in pairs]
    times = [one.seconds for one in highs if one.lived]
    taken = [seconds for one in highs for seconds in one.taken]
    lows = [one.seconds for sessions in rounds for one in sessions[1:] if one.lived]
    return Figures(
        Counter(sum(one.lived for one in sessions) for sessions in rounds),
        len(rounds[0]),
        _median(times),
        _median(ratios),
        max(ratios, default=None),
        percentile(taken, 0.5),
        percentile(taken, 0.95),
        _median(lows),
        max(lows, default=None),
        Counter(
            f"{called(at, len(sessions))} {one.why}"
            for sessions in rounds
            for at, one in enumerate(sessions)
            if not one.lived
        ),
    )


def called(at: int, sessions: int) -> str:
    """What a session is called: HIGH, LOW 1, LOW 2."""
    return "HIGH" if at == 0 else "LOW" if sessions == 2 else f"LOW {at}"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


class Aim(NamedTuple):
    """What agentres is to reach, what it did, and whether that is it."""

    what: str
    found: str
    met: bool


TIGHT, MODERATE = 1.05, 0.71


def tight(ours: Figures) -> list[Aim]:
    """Nobody is killed, and HIGH hardly notices."""
    runs, n = sum(ours.survived.values()), ours.sessions
    return [
        Aim(
            f"{n} of {n} in every run", f"{ours.all_survived} of {runs}", ours.all_survived == runs
        ),
        Aim(
            f"HIGH's time at most {TIGHT:g} of no isolation, median",
            _number(ours.ratio, "{:.3f}"),
            ours.ratio is not None and ours.ratio <= TIGHT,
        ),
    ]


def moderate(ours: Figures, base: Figures) -> list[Aim]:
    """HIGH does not wait for the others."""
    ratio = _over(ours.p95, base.p95)
    return [
        Aim(
            f"HIGH's P95 allocation latency at least {1 - MODERATE:.0%} below no isolation",
            "-" if ratio is None else f"{ratio - 1:+.0%}",
            ratio is not None and ratio <= MODERATE,
        )
    ]


HEAD = (
    "| | sessions that survived | HIGH's time | to no isolation | worst | P50 | P95"
    " | P50 to no isolation | P95 to no isolation | LOW's time | worst |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def table(found: Mapping[str, Figures], base: str) -> str:
    """A row for each way; P50 and P95 are of HIGH's allocations, in milliseconds."""
    rows = [HEAD]
    for name, one in found.items():
        survived = ", ".join(
            f"{lived} of {one.sessions} in {runs} of {sum(one.survived.values())}"
            for lived, runs in sorted(one.survived.items(), reverse=True)
        )
        cells = [
            name,
            survived,
            _number(one.high, "{:.2f} s"),
            _number(one.ratio, "{:.3f}"),
            _number(one.worst, "{:.3f}"),
            _number(one.p50, "{:.2f} ms", 1000),
            _number(one.p95, "{:.2f} ms", 1000),
            _number(_over(one.p50, found[base].p50), "{:.2f}"),
            _number(_over(one.p95, found[base].p95), "{:.2f}"),
            _number(one.low, "{:.2f} s"),
            _number(one.low_worst, "{:.2f} s"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def losses(found: Mapping[str, Figures]) -> list[str]:
    """Who did not survive, by way."""
    return [
        f"{name}: " + "; ".join(f"{what} in {runs}" for what, runs in sorted(one.lost.items()))
        for name, one in found.items()
        if one.lost
    ]


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else form.format(value * factor)
