"""Samples -> curves: what was in use at each moment, and the limit it stood against; pure.

A level is what the sample says.  A rate is the mean between a sample and its neighbour before, and
stands at the later one's time: the first sample has none.  A figure that is absent stays None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentres.model.record import Record
from agentres.model.stats import Sample
from agentres.policy.resources import EVENT, LEVEL, RATE, RESOURCES, Resource

_CURRENT = Resource(
    "bytes", LEVEL, "memory", lambda at: at.memory_current, lambda at: at.memory_limit
)

_WORKING_SET, _PIDS = RESOURCES["memory"], RESOURCES["pids"]

_AT_THE_MOST = {
    "memory": _WORKING_SET.but(figure=lambda at: _most(at.working_set_most, at.working_set)),
    "pids": _PIDS.but(figure=lambda at: _most(at.pids_most, at.pids_current)),
    "memory_current": _CURRENT.but(figure=lambda at: _most(at.memory_most, at.memory_current)),
}


def _most(most: float | None, now: float | None) -> float | None:
    """The highest since the sample before, where that was looked at."""
    return now if most is None else most


CURVES: Mapping[str, Resource] = {
    name: resource for name, resource in RESOURCES.items() if resource.kind != EVENT
} | _AT_THE_MOST
"""The curves by name: every resource that is no event, and ``memory_current``, page cache included.

``memory`` is the working set; levels are the highest since the sample before, where that is known.  Rates are in cores, bytes a second, and the share of time stalled.
"""


class Curve(Record):
    """One curve: a value and a limit for each time of :class:`Curves`, in ``unit``.

    None: absent, or, of a limit, that there was none.
    """

    unit: str
    values: tuple[float | None, ...]
    limits: tuple[float | None, ...]

    @property
    def empty(self) -> bool:
        """Whether no value is known at all."""
        return all(value is None for value in self.values)

    @property
    def last(self) -> float | None:
        """The last value that is known."""
        return next((value for value in reversed(self.values) if value is not None), None)

    @property
    def highest(self) -> float | None:
        """The highest value that is known."""
        return max((value for value in self.values if value is not None), default=None)

    @property
    def limit(self) -> float | None:
        """The limit of the last sample."""
        return self.limits[-1] if self.limits else None


class Curves(Record):
    """All curves of one run; ``times`` are unix seconds."""

    times: tuple[float, ...]
    by_name: Mapping[str, Curve]

    def __getitem__(self, name: str) -> Curve:
        return self.by_name[name]


def curves(samples: Sequence[tuple[float, Sample]]) -> Curves:
    """The curves of (unix time, sample), which come oldest first."""
    times = tuple(at for at, _ in samples)
    drawn = {}
    for name, resource in CURVES.items():
        values: Sequence[float | None] = [resource.raw(sample) for _, sample in samples]
        if resource.kind == RATE:
            values = _rates(times, values)
        limit = resource.limit
        limits = [None if limit is None else limit(sample) for _, sample in samples]
        drawn[name] = Curve(resource.unit, tuple(values), tuple(limits))
    return Curves(times, drawn)


def _rates(times: Sequence[float], counters: Sequence[float | None]) -> list[float | None]:
    """How fast a counter rose until each time.

    A counter that fell is another one (the subject was made anew), and a clock that was set back
    measures nothing: both make no rate.
    """
    found: list[float | None] = [None] * len(times)
    for at in range(1, len(times)):
        before, after = counters[at - 1], counters[at]
        passed = times[at] - times[at - 1]
        if before is not None and after is not None and after >= before and passed > 0:
            found[at] = (after - before) / passed
    return found


def pieces(
    times: Sequence[float], values: Sequence[float | None]
) -> list[list[tuple[float, float]]]:
    """The curve as unbroken lines: nothing is drawn across what is absent."""
    found: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(times, values, strict=True):
        if value is not None:
            found[-1].append((at, value))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]
