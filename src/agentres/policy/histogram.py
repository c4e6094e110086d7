"""Decaying histograms of use: bucket widths grow exponentially, weights halve with time; pure.

As in Kubernetes' VPA recommender (kubernetes/autoscaler, vertical-pod-autoscaler/pkg/recommender/util).
Times are Unix seconds.  If the clock was set back, existing weights do not decay.
"""

from __future__ import annotations

import math

from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

GROWTH = 1.05
"""How much wider each bucket is than the one below: a percentile is at most 5 %, plus the first bucket's
width, above the true value."""

BUMP = 1.2

_LEAST_WEIGHT = 1e-4
"""A bucket with less weight is dropped, as in the VPA.  It is not a fraction of the total: with many runs each
one's weight is a small fraction, and a new need would never be learnt."""


class ProfileError(ValueError):
    """Stored text is not a valid profile."""


class Scale(Record):
    """The buckets of one resource.

    ``first`` is the first bucket's width; ``most`` falls in the last one.  ``bump`` is the least that a bump
    adds.  Predictions are rounded up to ``grain``.
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
        """Return the lower bound of a bucket."""
        return self.first * (GROWTH**bucket - 1) / (GROWTH - 1)


# The VPA's, but the VPA's first CPU bucket is a thousandth of a core.  The grain of memory is a multiple of
# any page size.
SCALES: Mapping[str, Scale] = {
    "memory": Scale(1e7, 1e12, 100 << 20, 1 << 20, "bytes"),
    "cpu": Scale(0.01, 1000.0, 0.1, 0.01, "cores"),
    "pids": Scale(1.0, 1e6, 16.0, 1.0, "count"),
}
"""The resources that are predicted."""


def bump(resource: str, limit: float) -> float:
    """Return the need to assume for a run that was held at ``limit``."""
    return max(limit * BUMP, limit + SCALES[resource].bump)


class Histogram(Record):
    """The weight of each bucket; ``weights`` are as of ``time``."""

    resource: str
    time: float = 0.0
    weights: Mapping[int, float] = {}

    @property
    def total(self) -> float:
        return math.fsum(self.weights.values())

    def aged(self, time: float, half_life: float) -> Histogram:
        """Return the histogram as of ``time``; without decay if ``time`` is earlier."""
        if time <= self.time:
            return self.but(time=time)
        factor = 2.0 ** -((time - self.time) / half_life)
        return self.but(time=time, weights={b: w * factor for b, w in self.weights.items()})

    def add(
        self, samples: Iterable[tuple[float, float]], time: float, half_life: float
    ) -> Histogram:
        """Return the histogram with these (value, weight) added; ValueError if not finite, or below 0."""
        weights = dict(self.aged(time, half_life).weights)
        for value, weight in samples:
            if not (0 <= value < math.inf and 0 < weight < math.inf):
                raise ValueError(f"expected figures of use, got {value!r} with weight {weight!r}")
            at = SCALES[self.resource].bucket(value)
            weights[at] = weights.get(at, 0.0) + weight
        return Histogram(self.resource, time, _without_dust(weights))

    def together(self, other: Histogram) -> Histogram:
        """Return the sum of both, without decay."""
        weights = dict(self.weights)
        for bucket, weight in other.weights.items():
            weights[bucket] = weights.get(bucket, 0.0) + weight
        return self.but(weights=weights)

    def percentile(self, fraction: float) -> float:
        """Return the upper bound of the bucket that holds this percentile of the weight; 0 if it is empty."""
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
        """Return (lower bound, upper bound, weight) of each bucket, lowest first."""
        scale = SCALES[self.resource]
        return [(scale.start(b), scale.start(b + 1), w) for b, w in sorted(self.weights.items())]

    def to_plain(self) -> list[float]:
        """Return the time, then bucket and weight alternating."""
        return [self.time, *(x for pair in sorted(self.weights.items()) for x in pair)]

    @classmethod
    def from_plain(cls, resource: str, plain: Sequence[float]) -> Self:
        """Return the histogram from what :meth:`to_plain` gave; ProfileError."""
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
