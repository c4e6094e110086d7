"""What agents of a name or command used before -> the limits that the next one starts with; pure.

The method is that of Kubernetes' VPA recommender (kubernetes/autoscaler, vertical-pod-autoscaler): decaying
histograms, a percentile of them, and a margin.  Only where to start is predicted; from there on the limit
moves with what is used.

Every run weighs the same, however long it was: its peak of memory and of processes once, its CPU use by
the share of its time.  A run of more than :data:`~agentres.policy.observer.WINDOW` is learnt piece by piece.

Where a limit held a run, it counts as :func:`~agentres.policy.histogram.bump` of that limit: once a run, and never of
an earlier bump, so that kills do not drive the prediction up by themselves (kubernetes/autoscaler #9521).
"""

from __future__ import annotations

import math

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import counted
from agentres.policy.alerts import show
from agentres.policy.histogram import SCALES, Histogram, ProfileError, bump
from agentres.policy.observer import Observed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from agentres.model.limits import Range

    Weighed = Sequence[tuple[float, float]]

_FORMAT = "1"
"""First line of a profile's text; the scales of histograms belong to it."""

_CAPPED = 0.1
"""The fraction of its time from which on a run that was throttled counts as one that was held."""


class PredictionSettings(Record):
    """Seconds after which what was seen counts half; the rest as fractions."""

    half_life: float = 86400.0
    percentile: float = 0.9
    margin: float = 0.15


# What all runs used.


class Profile(Record):
    """What runs of one key used: ``use`` by resource, and ``held``, where a limit kept it from more.

    ``runs`` ended; ``capped`` of what was learnt was held at a limit, ``ooms`` had a process killed for memory; the
    ``last`` was learnt at that time.
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
        """A word and its numbers a line, after the format's number; without the key."""
        lines = [_FORMAT]
        lines += [f"{name} {getattr(self, name)!r}" for name in ("runs", "capped", "ooms", "last")]
        for kind in ("use", "held"):
            for resource, histogram in getattr(self, kind).items():
                lines.append(f"{kind} {resource} {' '.join(map(repr, histogram.to_plain()))}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, key: str, text: str) -> Self:
        """What :meth:`to_text` gave; ProfileError."""
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
                    numbers[word] = int(*rest)
                elif word == "last":
                    numbers[word] = float(*rest)
                else:
                    raise ProfileError(f"unknown line {line[:20]!r}")
        except (TypeError, OverflowError) as error:
            raise ProfileError(str(error)) from error
        except ValueError as error:
            raise error if isinstance(error, ProfileError) else ProfileError(str(error)) from error
        whole = all(histograms[kind].keys() == SCALES.keys() for kind in histograms)
        counts = ("runs", "capped", "ooms")
        if not whole or len(numbers) != 4 or any(numbers[name] < 0 for name in counts):
            raise ProfileError("it is not complete")
        if not math.isfinite(numbers["last"]):
            raise ProfileError("last: expected a time")
        return cls(key=key, **numbers, **histograms)  # type: ignore[arg-type]  # by their names


def learn(
    profile: Profile,
    observed: Observed,
    now: float,
    half_life: float = PredictionSettings().half_life,
) -> Profile:
    """The profile with what one more run used."""
    use, held = dict(profile.use), dict(profile.held)
    capped = False
    for resource, demand, at_least in _samples(observed):
        # A run weighs one in all.
        if whole := math.fsum(weight for _, weight in (*demand, *at_least)):
            use[resource] = use[resource].add(_shares(demand, whole), now, half_life)
            held[resource] = held[resource].add(_shares(at_least, whole), now, half_life)
            at_limit = math.fsum(weight for _, weight in at_least)
            capped = capped or at_limit >= _CAPPED * whole
    return profile.but(
        runs=profile.runs + observed.runs,
        capped=profile.capped + capped,
        ooms=profile.ooms + (observed.oom is not None),
        last=now,
        use=use,
        held=held,
    )


def _samples(observed: Observed) -> Iterator[tuple[str, Weighed, Weighed]]:
    """By resource: what was used, and what counts as needed where it was held; each with its weight."""
    for resource, peak, limit, killed in (
        ("memory", observed.memory, observed.memory_held, observed.oom),
        ("pids", observed.pids, observed.pids_held, None),
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
    bumped = [(bump("cpu", limit), seconds) for limit, seconds in observed.cpu_held]
    yield "cpu", observed.cpu, bumped


def _shares(samples: Weighed, whole: float) -> list[tuple[float, float]]:
    return [(value, weight / whole) for value, weight in samples]


# What the next run starts with.


class Forecast(Record):
    """One limit to start with: ``first``, in the resource's unit.

    ``target`` is the percentile of what was used, ``wanted`` with the margin on top, which the range from ``least``
    to ``most`` bounds.  ``held`` is the fraction of the weight that comes from where a limit kept it from more.
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
    """What the next run starts with: a forecast for each limit that may move and of which anything is known.

    ``weight`` is how many runs of right now what is known weighs as much as.
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
    """What to start with, of the limits that ``bounds`` has ranges of; None: nothing is known."""
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
    # Rounded up, but for what is above by the arithmetic's own error.
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


# Whose profile it is.

_WORD = 64
"""Characters of a word that tell a command from others; what is longer is a program, not the name of one."""


def keys(name: str | None, command: Sequence[str]) -> tuple[str, ...]:
    """Whose profile a run's is: it is learnt under the first key, and looked up under each in turn.

    ``name`` is what the user called it, None where nobody did: names that we make up end at random.  Then it
    is the command, without directories: ``command:python agent.py`` for ``/usr/bin/python -u src/agent.py --task 3``.
    An interpreter alone says nothing, so that the first argument that is no option belongs to it; a number is
    none: ``./agent --task 17`` is ``agent``, or each task would be known by itself.
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
