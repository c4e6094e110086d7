"""Predicts an agent's initial limits from what agents of the same name or command used before; pure.

The method is that of Kubernetes' VPA recommender (kubernetes/autoscaler, vertical-pod-autoscaler): a
percentile of decaying histograms, plus a margin.  Only the start is predicted; then the limit follows use.

Every run has the same weight, however long it was.  Its peaks of memory and processes count once, its CPU
use by the share of its time.  A run longer than :data:`~agentres.policy.observer.WINDOW` is learnt in pieces.

If a limit held a run, the run counts as :func:`~agentres.policy.histogram.bump` of that limit: once a run, and never on
top of an earlier bump, so that kills alone do not drive the prediction up (kubernetes/autoscaler #9521).
"""

from __future__ import annotations

import math

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import counted
from agentres.policy.alerts import show
from agentres.policy.histogram import SCALES, Histogram, ProfileError, bump
from agentres.policy.observer import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from agentres.model.limits import Range

    Weighed = Sequence[tuple[float, float]]

_FORMAT = "1"
"""The first line of a profile's text.  A change of the histogram scales needs a new one."""

_CAPPED = 0.1
"""The fraction of its time from which a throttled run counts as held by a limit."""


class PredictionSettings(Record):
    """``half_life`` in seconds, after which a sample has half its weight; the others are fractions."""

    half_life: float = 86400.0
    percentile: float = 0.9
    margin: float = 0.15


# What all runs used.


class Profile(Record):
    """What runs of one key used, by resource: ``use``, and ``held`` for use that a limit held.

    ``runs`` counts ended runs, ``capped`` the learnt pieces that a limit held, ``ooms`` those with an OOM kill.
    ``last`` is when the last piece was learnt.
    """

    key: str
    runs: int
    capped: int
    ooms: int
    last: float
    use: Mapping[str, Histogram]
    held: Mapping[str, Histogram]

    @classmethod
    def empty(cls, key: str) -> Self:
        none = {resource: Histogram(resource) for resource in SCALES}
        return cls(key, 0, 0, 0, 0.0, none, none)

    def to_text(self) -> str:
        """Return the format's number, then lines of a word and its numbers; the key is not included."""
        lines = [_FORMAT]
        lines += [f"{name} {getattr(self, name)!r}" for name in ("runs", "capped", "ooms", "last")]
        for kind in ("use", "held"):
            for resource, histogram in getattr(self, kind).items():
                lines.append(f"{kind} {resource} {' '.join(map(repr, histogram.to_plain()))}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, key: str, text: str) -> Self:
        """Return the profile from what :meth:`to_text` gave; ProfileError."""
        first, *lines = text.splitlines() or [""]
        if first != _FORMAT:
            raise ProfileError(f"expected format {_FORMAT}, not {first[:20]!r}")
        numbers: dict[str, float] = {}
        histograms: dict[str, dict[str, Histogram]] = {"use": {}, "held": {}}
        try:
            for line in lines:
                word, *rest = line.split(" ")
                if word in histograms and rest and rest[0] in SCALES:
                    plain = [float(number) for number in rest[1:]]
                    histograms[word][rest[0]] = Histogram.from_plain(rest[0], plain)
                elif word in ("runs", "capped", "ooms"):
                    (number,) = rest
                    numbers[word] = int(number)
                elif word == "last":
                    (number,) = rest
                    numbers[word] = float(number)
                else:
                    raise ProfileError(f"unknown line {line[:20]!r}")
        except (TypeError, OverflowError) as error:
            raise ProfileError(str(error)) from error
        except ValueError as error:
            raise error if isinstance(error, ProfileError) else ProfileError(str(error)) from error
        whole = all(histograms[kind].keys() == SCALES.keys() for kind in histograms)
        if not whole or len(numbers) != 4 or len(lines) != 4 + 2 * len(SCALES):
            raise ProfileError("it has not each line once")
        if any(numbers[name] < 0 for name in ("runs", "capped", "ooms")):
            raise ProfileError("a count is below 0")
        if not math.isfinite(numbers["last"]):
            raise ProfileError("last: expected a time")
        return cls(key=key, **numbers, **histograms)  # type: ignore[arg-type]  # by their names


def learn(
    profile: Profile,
    observation: Observation,
    now: float,
    half_life: float = PredictionSettings().half_life,
) -> Profile:
    """Return the profile with what one more run used."""
    use, held = dict(profile.use), dict(profile.held)
    capped = False
    for resource, demand, at_least in _samples(observation):
        # The weights of a run add up to one.
        if whole := math.fsum(weight for _, weight in (*demand, *at_least)):
            use[resource] = use[resource].add(_shares(demand, whole), now, half_life)
            held[resource] = held[resource].add(_shares(at_least, whole), now, half_life)
            at_limit = math.fsum(weight for _, weight in at_least)
            capped = capped or at_limit >= _CAPPED * whole
    return profile.but(
        runs=profile.runs + observation.runs,
        capped=profile.capped + capped,
        ooms=profile.ooms + (observation.oom is not None),
        last=now,
        use=use,
        held=held,
    )


def _samples(observation: Observation) -> Iterator[tuple[str, Weighed, Weighed]]:
    """Yield for each resource its use, and the need assumed where a limit held it, both as (value, weight)."""
    for resource, peak, limit, killed in (
        ("memory", observation.memory, observation.memory_held, observation.oom),
        ("pids", observation.pids, observation.pids_held, None),
    ):
        most = 0.0 if peak is None else peak
        needed = 0.0
        if limit is not None and limit >= most:
            needed = bump(resource, limit)
        if killed is not None:
            needed = max(needed, bump(resource, killed))
        if needed > most:
            yield resource, (), ((needed, 1.0),)
        elif peak is not None:
            yield resource, ((peak, 1.0),), ()
    bumped = [(bump("cpu", limit), seconds) for limit, seconds in observation.cpu_held]
    yield "cpu", observation.cpu, bumped


def _shares(samples: Weighed, whole: float) -> list[tuple[float, float]]:
    return [(value, weight / whole) for value, weight in samples]


# What the next run starts with.


class Forecast(Record):
    """One predicted limit: ``first``, in the resource's unit.

    ``target`` is the percentile of use, and ``wanted`` adds the margin; ``first`` is ``wanted``, rounded up to a grain, in
    the range from ``least`` to ``most``.  ``held`` is the fraction of the weight from use that a limit held.
    """

    resource: str
    target: float
    wanted: float
    first: float
    least: float
    most: float
    held: float
    why: str


class Prediction(Record):
    """What the next run starts with: a forecast for each elastic limit with known use.

    ``weight`` is the weight of what is known, as a number of runs that end now.
    """

    forecasts: tuple[Forecast, ...]
    runs: int
    weight: float
    last: float

    @property
    def why(self) -> tuple[str, ...]:
        """A line for each limit."""
        return tuple(forecast.why for forecast in self.forecasts)


def predict(
    profile: Profile,
    now: float,
    bounds: Mapping[str, Range],
    settings: PredictionSettings = PredictionSettings(),  # noqa: B008 -- a value, never changed
) -> Prediction | None:
    """Return what to start with, for the limits that have a range in ``bounds``; None if nothing is known."""
    found = []
    weight = 0.0
    for resource in SCALES:
        held = profile.held[resource]
        both = profile.use[resource].together(held)
        if resource in bounds and both.weights:
            part = held.total / both.total
            found.append(_forecast(both, part, profile.runs, bounds[resource], settings))
            weight = max(weight, both.aged(now, settings.half_life).total)
    if not found:
        return None
    return Prediction(tuple(found), profile.runs, weight, profile.last)


def _forecast(
    seen: Histogram, held: float, runs: int, bounds: Range, settings: PredictionSettings
) -> Forecast:
    resource = seen.resource
    scale = SCALES[resource]
    target = seen.percentile(settings.percentile)
    if scale.unit == "count":
        target = math.floor(target)
    wanted = target * (1 + settings.margin)
    # Rounded up, except for an excess that is only a rounding error.
    rounded = math.ceil(wanted / scale.grain - 1e-9) * scale.grain
    first = min(max(round(rounded, 2), bounds.least), bounds.most)
    what = "time" if resource == "cpu" else "peaks"
    why = (
        f"{_NAMES[resource]} {show(first, scale.unit)}: {settings.percentile * 100:.4g}% of the {what}"
        f" of {counted(runs, 'run')} took at most {show(target, scale.unit)},"
        f" and a margin of {settings.margin * 100:.4g}%"
    )
    if held >= 0.005:
        why += f"; {held:.0%} of that was held by a limit and counts as more than the limit"
    if first != round(rounded, 2):
        which = "least" if first == bounds.least else "most"
        why += f"; {show(wanted, scale.unit)} is beyond the {which} that it may have"
    return Forecast(resource, target, wanted, first, bounds.least, bounds.most, held, why)


_NAMES = {"memory": "memory", "cpu": "CPU", "pids": "processes"}


# Under which key a profile is kept.

_WORD = 64
"""The most characters of an argument that can identify a command; anything longer is program text, not a name."""


def keys(name: str | None, command: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of a run's profile: it is learnt under the first, and looked up under each in turn.

    ``name`` is the name that the user gave, None if there is none: generated names end in random characters.  The other key
    is the command, without directories: ``command:python agent.py`` for ``/usr/bin/python -u src/agent.py --task 3``.  It
    includes the first argument that is not an option, because an interpreter alone identifies nothing.  Numbers are skipped,
    or each task would get its own profile: ``./agent --task 17`` is ``command:agent``.
    """
    found = [] if name is None else [f"name:{name}"]
    if command:
        words = [_base(command[0])]
        arguments = (word for word in command[1:] if word and not word.startswith("-"))
        first = next((word for word in arguments if not word.isdecimal()), None)
        if first is not None and len(first) <= _WORD and not any(map(str.isspace, first)):
            words.append(_base(first))
        found.append(f"command:{' '.join(words)}")
    return tuple(found)


def _base(word: str) -> str:
    return word.rstrip("/").rpartition("/")[2] or word
