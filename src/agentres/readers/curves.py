"""Makes curves from samples: what was in use at each moment, and the limit at that moment; pure.

A level is the sample's value.  A rate is the mean between two successive samples, at the time of the
later one; the first sample has none.  A figure that is absent is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentres.model.record import Record
from agentres.model.stats import Sample
from agentres.policy.resources import EVENT, LEVEL, RATE, RESOURCES, Resource

_CURRENT = Resource(
    "bytes", LEVEL, "memory", lambda at: at.memory_current, lambda at: at.memory_limit
)

_WORKING_SET, _SWAP, _PIDS = RESOURCES["memory"], RESOURCES["swap"], RESOURCES["pids"]

_AT_THE_MOST = {
    "memory": _WORKING_SET.but(figure=lambda at: _most(at.working_set_most, at.working_set)),
    "swap": _SWAP.but(figure=lambda at: _most(at.swap_most, at.swap_current)),
    "pids": _PIDS.but(figure=lambda at: _most(at.pids_most, at.pids_current)),
    "memory_current": _CURRENT.but(figure=lambda at: _most(at.memory_most, at.memory_current)),
}


def _most(most: float | None, now: float | None) -> float | None:
    """Return the highest value since the sample before, or the value now if the highest was not recorded."""
    return now if most is None else most


CURVES: Mapping[str, Resource] = {
    name: resource for name, resource in RESOURCES.items() if resource.kind != EVENT
} | _AT_THE_MOST
"""The curves by name: every resource except events, and ``memory_current``, which includes page cache.

``memory`` is the working set; it, ``swap``, ``pids`` and ``memory_current`` are the highest since the sample before, if that is known.
Rates are in cores, bytes a second, and the share of time stalled.
"""


class Curve(Record):
    """One curve: a value and a limit for each time of :class:`Curves`, in ``unit``.

    A value of None is absent; a limit of None means that there was none.
    """

    unit: str
    values: tuple[float | None, ...]
    limits: tuple[float | None, ...]

    @property
    def empty(self) -> bool:
        """Whether no value is known."""
        return all(value is None for value in self.values)

    @property
    def last(self) -> float | None:
        """The last known value."""
        return next((value for value in reversed(self.values) if value is not None), None)

    @property
    def highest(self) -> float | None:
        """The highest known value."""
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
    """Return the curves of (unix time, sample) pairs, which come oldest first."""
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
    """Return how fast a counter rose up to each time.

    There is no rate where the counter fell (the subject was replaced) or the clock was set back.
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
    """Split the curve into unbroken lines, at absent values."""
    found: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(times, values, strict=True):
        if value is not None:
            found[-1].append((at, value))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]
