"""The rules of others: limits that are set by the clock, or never."""

from __future__ import annotations

import math
from collections.abc import Callable

from _fleet.life import ours
from _fleet.recordings import Outcome, Recording, Rule, World, pieces
from agentres.policy.scaling import Philosophy


def fixed(limit: float) -> Rule:
    """A limit that never moves."""
    return lambda recording, world: by_clock(recording, limit, math.inf, lambda peak: limit)


def oracle(recording: Recording, world: World) -> Outcome:
    """Whoever knows each one's own peak before."""
    return by_clock(recording, max(recording.uses), math.inf, lambda peak: 0.0)


def by_clock(
    recording: Recording, start: float, every: float, recommend: Callable[[float], float]
) -> Outcome:
    """A limit that is set anew each ``every`` seconds to what is recommended.

    ``recommend`` is given the highest use since the last time, the kill's included where there was one.
    """
    limits, limit = [(0.0, start)], start
    due, peak = every, 0.0
    for begin, _, low, high in pieces(recording):
        while due <= begin:
            after, peak = recommend(peak), low
            # A limit below what is in use would kill: it waits for the next time.
            if after != limit and after >= low:
                limit = after
                limits.append((due, limit))
            due += every
        peak = max(peak, low, high)
        if high > limit:
            return Outcome(limits, begin)
    return Outcome(limits)


class Vpa:
    """Kubernetes' VPA recommender (vertical-pod-autoscaler/pkg/recommender), its defaults.

    Memory: peaks of 24 hours in a histogram of exponential buckets (10 MB, each 5 % wider), their weight halved each
    24 hours; the 90th percentile plus 15 %, 250 MiB at the least; after an OOM kill the greater of use * 1.2 and
    use + 100 MiB counts as a peak.  Limits are set each minute, in place.
    """

    HALF_LIFE, PERCENTILE, MARGIN, LEAST = 86400.0, 0.9, 0.15, 250 << 20
    BUMP, BUMP_LEAST = 1.2, 100 << 20
    FIRST, RATIO = 10e6, 1.05

    def __init__(self) -> None:
        self.peaks: dict[int, float] = {}
        self.clock = 0.0

    def bucket(self, peak: float) -> int:
        """Of the histogram."""
        if peak < self.FIRST:
            return 0
        return int(math.log(peak * (self.RATIO - 1) / self.FIRST + 1) / math.log(self.RATIO))

    def recommend(self, own: float) -> float:
        """With the running one's peak of the day."""
        weights = dict(self.peaks)
        bucket = self.bucket(own)
        weights[bucket] = weights.get(bucket, 0.0) + 2 ** (self.clock / self.HALF_LIFE)
        want = sum(weights.values()) * self.PERCENTILE
        for bucket in sorted(weights):
            want -= weights[bucket]
            if want <= 1e-9:
                break
        end = self.FIRST * (self.RATIO ** (bucket + 1) - 1) / (self.RATIO - 1)
        return max(end * (1 + self.MARGIN), self.LEAST)

    def __call__(self, recording: Recording, world: World) -> Outcome:
        own = 0.0

        def recommend(peak: float) -> float:
            nonlocal own
            own = max(own, peak)
            return self.recommend(own)

        start = self.recommend(0.0) if self.peaks else world.start
        outcome = by_clock(recording, start, 60.0, recommend)
        if outcome.killed is not None:
            capped = outcome.limits[-1][1]
            own = max(capped * self.BUMP, capped + self.BUMP_LEAST)
        else:
            own = max(recording.uses)
        self.clock += outcome.killed or recording.seconds
        bucket = self.bucket(own)
        self.peaks[bucket] = self.peaks.get(bucket, 0.0) + 2 ** (self.clock / self.HALF_LIFE)
        return outcome


class Autopilot:
    """Autopilot's moving window (Rzadca et al., EuroSys 2020, 3.2): peaks of 5 minutes.

    Their highest (``percentile`` 1), or a percentile of them, their weight halved each 48 hours; 15 % on top;
    of what was recommended in the last hour the highest counts.  A killed one's limit counts as a peak.
    """

    SLICE, WINDOW, HALF_LIFE, MARGIN, HOLD = 300.0, 300, 48 * 3600.0, 0.15, 12

    def __init__(self, percentile: float = 1.0) -> None:
        self.percentile = percentile
        self.peaks: list[float] = []
        self.recent: list[float] = []

    def recommend(self) -> float:
        """By the slices that there are."""
        newest = len(self.peaks)
        window = self.peaks[-self.WINDOW :]
        first = newest - len(window)
        weighed = sorted(
            (peak, 0.5 ** ((newest - first - at) * self.SLICE / self.HALF_LIFE))
            for at, peak in enumerate(window)
        )
        want = self.percentile * sum(weight for _, weight in weighed)
        limit = weighed[-1][0]
        for peak, weight in weighed:
            want -= weight
            if want <= 1e-9:
                limit = peak
                break
        self.recent = [*self.recent[-self.HOLD + 1 :], limit * (1 + self.MARGIN)]
        return max(self.recent)

    def __call__(self, recording: Recording, world: World) -> Outcome:
        def recommend(peak: float) -> float:
            self.peaks.append(peak)
            return self.recommend()

        start = max(self.recent) if self.recent else world.start
        outcome = by_clock(recording, start, self.SLICE, recommend)
        last = outcome.limits[-1]
        self.peaks.append(last[1] if outcome.killed is not None else self.rest(recording))
        self.recommend()
        return outcome

    def rest(self, recording: Recording) -> float:
        """The peak of the last slice, which may be a short one."""
        since = recording.seconds // self.SLICE * self.SLICE
        return max(
            use for at, use in zip(recording.times, recording.uses, strict=True) if at >= since
        )


def others(recordings: list[Recording]) -> dict[str, Rule]:
    """The rules that are not ours, by name."""
    everything = sorted(use for recording in recordings for use in recording.uses)
    p95 = everything[math.ceil(len(everything) * 0.95) - 1]
    plain = Philosophy("plain", burst=False, give_back=math.inf)
    return {
        "static, peak of the set": fixed(everything[-1]),
        "static, P95 of all samples": fixed(p95),
        "oracle, each one's own peak": oracle,
        "VPA's recommender": Vpa(),
        "Autopilot, highest of the window": Autopilot(),
        "Autopilot, P98 of the window": Autopilot(0.98),
        "75/25/60 s, samples alone": ours(plain),
        "75/25/60 s, tripwire, no giving back": ours(plain.but(burst=True)),
    }
