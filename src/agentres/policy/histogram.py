"""Histograms of use that forget: buckets that grow exponentially, weights that halve with time; pure.

As in Kubernetes' VPA recommender (kubernetes/autoscaler, vertical-pod-autoscaler/pkg/recommender/util).
Times are unix seconds; where a clock was set back, what comes counts as new.
"""

from __future__ import annotations

import math

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

GROWTH = 1.05
"""Each bucket is so much wider than the one below: what is told is at most 5 %, and the first bucket's
width, above what was."""

BUMP = 1.2

_LEAST_WEIGHT = 1e-4
"""A bucket with less is forgotten, as in the VPA.  Not a part of all: where runs are many, each one's weight is
a small part, and what they begin to need would never be learnt."""


class ProfileError(ValueError):
    """What was kept is no profile."""


class Scale(Record):
    """How one resource is counted.

    ``first`` is the first bucket's width, ``most`` is in the last one; ``bump`` is what a bump adds at the
    least; predictions are rounded up to ``grain``.
    """

    first: float
    most: float
    bump: float
    grain: float
    unit: str

    def bucket(self, value: float) -> int:
        if value < self.first:
            return 0
        value = min(value, self.most)
        return int(math.log(value * (GROWTH - 1) / self.first + 1, GROWTH))

    def start(self, bucket: int) -> float:
        """The least value of a bucket."""
        return self.first * (GROWTH**bucket - 1) / (GROWTH - 1)


# The VPA's, but that its first bucket of CPU is a thousandth of a core.  A grain of memory is whole pages
# of any size.
SCALES: Mapping[str, Scale] = {
    "memory": Scale(1e7, 1e12, 100 << 20, 1 << 20, "bytes"),
    "cpu": Scale(0.01, 1000.0, 0.1, 0.01, "cores"),
    "pids": Scale(1.0, 1e6, 16.0, 1.0, "count"),
}
"""What is predicted."""


def bump(resource: str, limit: float) -> float:
    """What counts as needed by somebody who was held at ``limit``."""
    return max(limit * BUMP, limit + SCALES[resource].bump)


class Histogram(Record):
    """How much weight each bucket has; ``weights`` are as of ``time``."""

    resource: str
    time: float = 0.0
    weights: Mapping[int, float] = {}

    @property
    def total(self) -> float:
        return math.fsum(self.weights.values())

    def aged(self, time: float, half_life: float) -> Histogram:
        """The same as of ``time``; none of it older where that is before."""
        if time <= self.time:
            return self.but(time=time)
        factor = 2.0 ** -((time - self.time) / half_life)
        return self.but(time=time, weights={b: w * factor for b, w in self.weights.items()})

    def add(
        self, samples: Iterable[tuple[float, float]], time: float, half_life: float
    ) -> Histogram:
        """With (value, weight) more; ValueError for what is not finite, or below 0."""
        weights = dict(self.aged(time, half_life).weights)
        for value, weight in samples:
            if not (0 <= value < math.inf and 0 < weight < math.inf):
                raise ValueError(f"expected figures of use, got {value!r} with weight {weight!r}")
            at = SCALES[self.resource].bucket(value)
            weights[at] = weights.get(at, 0.0) + weight
        return Histogram(self.resource, time, _without_dust(weights))

    def together(self, other: Histogram) -> Histogram:
        """Both, as they are."""
        weights = dict(self.weights)
        for bucket, weight in other.weights.items():
            weights[bucket] = weights.get(bucket, 0.0) + weight
        return self.but(weights=weights)

    def percentile(self, fraction: float) -> float:
        """What ``fraction`` of the weight does not exceed, to the end of its bucket; 0: there is none."""
        return self.buckets()[self._at(fraction)][1] if self.weights else 0.0

    def _at(self, fraction: float) -> int:
        wanted, so_far = fraction * self.total, 0.0
        ordered = sorted(self.weights.items())
        for at, (_, weight) in enumerate(ordered):
            so_far += weight
            if so_far >= wanted * (1 - 1e-9):  # sums are not exact
                return at
        return len(ordered) - 1

    def buckets(self) -> list[tuple[float, float, float]]:
        """From where to where each bucket goes, and its weight; the least first."""
        scale = SCALES[self.resource]
        return [(scale.start(b), scale.start(b + 1), w) for b, w in sorted(self.weights.items())]

    def to_plain(self) -> list[float]:
        """The time, then bucket and weight by turns."""
        return [self.time, *(x for pair in sorted(self.weights.items()) for x in pair)]

    @classmethod
    def from_plain(cls, resource: str, plain: Sequence[float]) -> Self:
        """What :meth:`to_plain` gave; ProfileError."""
        if len(plain) % 2 == 0 or not all(map(math.isfinite, plain)):
            raise ProfileError(f"{resource}: expected a time, and pairs of numbers")
        weights = {
            int(bucket): weight for bucket, weight in zip(plain[1::2], plain[2::2], strict=True)
        }
        last = SCALES[resource].bucket(math.inf)
        if (
            len(weights) * 2 + 1 != len(plain)
            or any(bucket != int(bucket) or not 0 <= bucket <= last for bucket in plain[1::2])
            or any(weight <= 0 for weight in weights.values())
        ):
            raise ProfileError(f"{resource}: expected other buckets and weights, each once")
        return cls(resource, plain[0], weights)


def _without_dust(weights: dict[int, float]) -> dict[int, float]:
    return {bucket: weight for bucket, weight in weights.items() if weight >= _LEAST_WEIGHT}
