"""When a breach becomes an alert, when the alert changes, and when it ends; pure.

One :class:`Watch` follows one rule over one subject.  Times are seconds of one clock that never jumps;
whoever calls turns them into dates.  The words are those of Prometheus's alerting rules, where they
have one: a breach must last ``duration`` (its ``for``), an alert ends ``keep_firing_for`` after the
breach.
"""

from __future__ import annotations

import enum

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import format_rate, format_size
from agentres.policy.resources import EVENT, RATE, RESOURCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal


class Severity(enum.IntEnum):
    """How grave an alert is."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3


class Rule(Record):
    """What makes an alert.

    ``levels`` are (severity, threshold) in rising order, thresholds as a fraction of the limit where
    ``relative``, else in the resource's unit.  A breach ends below ``threshold * (1 - hysteresis)``.
    Seconds: it must last for ``duration``; the alert stays ``keep_firing_for`` longer; after its end the
    same rule is silent for ``cooldown``, unless the next breach is graver than all of the last alert or
    lasts longer than that.  Of an event, only the first severity and ``keep_firing_for`` count.
    """

    name: str
    resource: str
    of: str
    levels: tuple[tuple[Severity, float], ...]
    relative: bool = False
    duration: float = 0.0
    hysteresis: float = 0.05
    cooldown: float = 60.0
    keep_firing_for: float = 0.0


class Alert(Record):
    """One breach of one rule, as it stands.

    ``value``, ``limit`` and ``threshold`` in the resource's unit; of an event, ``value`` is how many.
    ``repeats`` counts the breaches within the cooldown that made no alert of their own; ``why`` tells
    what ended it where that was not the value.  ``worst`` is the highest value since it was raised, of
    ``worst_limit``, at ``worst_at``.
    """

    id: str
    rule: Rule
    severity: Severity
    value: float
    limit: float | None
    threshold: float
    breached: float
    raised: float
    updated: float
    resolved: float | None = None
    repeats: int = 0
    why: str = ""
    worst: float = 0.0
    worst_limit: float | None = None
    worst_at: float = 0.0


class Event(Record):
    """What is told about an alert: it was raised, changed its severity, or ended.

    ``repeated``, a breach in its cooldown, is for the history alone.
    """

    kind: Literal["raised", "updated", "resolved", "repeated"]
    alert: Alert


_NOTHING: tuple[Event, ...] = ()
_NEVER = float("inf")

PACE_HALF_LIFE = 10.0
"""Seconds after which half of a resource's speed is forgotten, when it has stopped rising."""


class Watch:
    """One rule over one subject: takes its values, gives its alerts."""

    __slots__ = (
        "_before", "_below", "_counts", "_earlier", "_last", "_limit", "_new_id", "_pace", "_rate", "_relative",
        "_repeated", "_seen", "_silent_until", "_since", "_thresholds", "_worst", "alert", "rule",
    )  # fmt: skip

    def __init__(self, rule: Rule, new_id: Callable[[], str]) -> None:
        self.rule = rule
        self.alert: Alert | None = None
        self._new_id = new_id
        self._counts = RESOURCES[rule.resource].kind == EVENT
        self._rate = RESOURCES[rule.resource].kind == RATE
        self._relative = rule.relative
        self._limit: float | None = None
        self._thresholds = () if rule.relative else tuple(t for _, t in rule.levels)
        self._since: list[float | None] = [None] * len(rule.levels)
        self._seen = [0] * len(rule.levels)
        # Of each level, the first look that did not hold it; of an event, when it last happened.
        self._below: tuple[float | None, ...] = ()
        self._worst = Severity.INFO
        self._last: Alert | None = None
        self._silent_until = -_NEVER
        self._repeated = False
        self._earlier: tuple[float, float] | None = None
        self._before: tuple[float, float] | None = None
        self._pace = 0.0

    def observe(self, now: float, value: float | None, limit: float | None) -> tuple[Event, ...]:
        """Take the value at ``now``; None is "not known", which changes nothing.

        For an event the value is the counter, which starts at 0.
        """
        if value is None:
            return _NOTHING
        if self._counts:
            return self._count(now, value)
        if self._relative and limit != self._limit:
            self._limit = limit
            if limit is None:
                # Nothing to compare with: a later limit is breached from its coming at the earliest.
                self._thresholds, self._before, self._earlier = (), None, None
                return self.finish(now, "there is no limit any more")
            self._thresholds = tuple(part * limit for _, part in self.rule.levels)
        if not self._thresholds:
            return _NOTHING
        # The calm is nearly all of the time, and there are thousands of watches: no call too many.
        quiet = self.alert is None and self._since[0] is None and value < self._thresholds[0]
        if not quiet:
            self._cross(now, value)
        before = self._before
        if before is not None and (passed := now - before[0]) > 0.0:
            pace = (value - before[1]) / passed
            if pace < self._pace:
                pace = max(pace, self._pace * 0.5 ** (passed / PACE_HALF_LIFE))
            self._pace = pace
        self._earlier, self._before = before, (now, value)
        if quiet:
            return _NOTHING
        if self.alert is None:
            return self._maybe_raise(now, value, limit)
        if value > self.alert.worst:
            self.alert = self.alert.but(worst=value, worst_limit=limit, worst_at=now)
        return self._maybe_change(now, value, limit)

    def again(self, now: float, value: float) -> tuple[Event, ...]:
        """Tell once more what fires, as it is another cause by now."""
        if self.alert is None:
            return _NOTHING
        self.alert = self.alert.but(value=value, updated=now)
        return (Event("updated", self.alert),)

    def finish(self, now: float, why: str) -> tuple[Event, ...]:
        """End what fires, because its subject or its limit is no more."""
        self._since = [None] * len(self._since)
        self._seen = [0] * len(self._seen)
        self._repeated = False
        self._pace = 0.0
        if self.alert is None:
            return _NOTHING
        return self._resolve(now, self.alert.value, self.alert.limit, why)

    def due(self, now: float, least: float) -> float:
        """Seconds from ``now`` until the value should be looked at again, at the latest.

        When it may cross its next threshold, by its speed and what is left (half of that: one that does
        not double its speed is met), but not before ``least`` seconds; or when a wait comes to its end.
        Infinite: no reason to.
        """
        if self._before is None:
            return _NEVER
        soonest = _NEVER
        then, value = self._before
        if self._pace and (ahead := self.next_threshold) is not None:
            soonest = max(((ahead - value) / self._pace - (now - then)) / 2, least)
        if self._since[0] is not None:
            soonest = min(soonest, self._wait(now, least))
        if self.alert is not None:
            for (severity, _), below in zip(self.rule.levels, self._below, strict=False):
                if below is not None and severity <= self.alert.severity:
                    ends = below + self.rule.keep_firing_for
                    soonest = min(soonest, max(ends - now, 0.0))
        # A value that has not been known for a while is not looked for sooner than after as long again.
        return max(soonest, now - then)

    def _wait(self, now: float, least: float) -> float:
        """Seconds until a breach may have lasted for long enough, or the cooldown is over."""
        soonest = _NEVER
        for since, seen in zip(self._since, self._seen, strict=True):
            if since is not None:
                ends = since + self.rule.duration
                if seen < 2 and self.rule.duration > 0:
                    soonest = min(soonest, max(ends - now, least))  # the second look is missing
                elif now < ends:
                    soonest = min(soonest, ends - now)
        if self.alert is None and now < self._silent_until:
            soonest = min(soonest, self._silent_until - now)
        return soonest

    @property
    def next_threshold(self) -> float | None:
        """The lowest threshold above the last value; None above them all, or before any value."""
        if self._before is None:
            return None
        value = self._before[1]
        for threshold in self._thresholds:
            if threshold > value:
                return threshold
        return None

    # What a value does.

    def _cross(self, now: float, value: float) -> None:
        for at, threshold in enumerate(self._thresholds):
            if value < threshold:
                self._since[at] = None
                self._seen[at] = 0
            else:
                if self._since[at] is None:
                    self._since[at] = self._crossing(now, value, threshold)
                self._seen[at] += 1
        if self._since[0] is None:
            self._repeated = False

    def _crossing(self, now: float, value: float, threshold: float) -> float:
        """When the breach that is seen now may have begun: an alert must not be late for our looks.

        A level may have crossed right after the look before.  A rate that has jumped, and stays, did so
        within the look before, whose mean tells when.  Where no duration has to be waited for it is
        only a date, on a straight line.
        """
        if self._before is None or self._before[1] >= threshold:
            return now
        then, was = self._before
        if self.rule.duration == 0:
            return min(now, then + (now - then) * (threshold - was) / (value - was))
        if self._rate and self._earlier is not None:
            start, base = self._earlier
            if base < was < value:
                return then - (then - start) * (was - base) / (value - base)
        return then

    def _sustained(self, now: float) -> int | None:
        """The highest level that has been breached for as long as the rule demands."""
        found = None
        for at, since in enumerate(self._since):
            # One look says nothing of what lies between two.
            looked = self._seen[at] >= 2 or self.rule.duration == 0
            if since is not None and looked and now >= since + self.rule.duration:
                found = at
        return found

    def _maybe_raise(self, now: float, value: float, limit: float | None) -> tuple[Event, ...]:
        at = self._sustained(now)
        if at is None:
            return _NOTHING
        severity = self.rule.levels[at][0]
        if now < self._silent_until and severity <= self._worst and self._last is not None:
            if self._repeated:
                return _NOTHING
            self._repeated = True
            self._last = self._last.but(repeats=self._last.repeats + 1)
            return (Event("repeated", self._last),)
        since = self._since[0]
        assert since is not None
        return self._raise(now, at, value, limit, self._thresholds[at], since)

    def _maybe_change(self, now: float, value: float, limit: float | None) -> tuple[Event, ...]:
        assert self.alert is not None
        kept = self._kept(now, value)
        at = self._sustained(now)
        if at is not None and self.rule.levels[at][0] > self.alert.severity:
            return self._update(now, at, value, limit)
        if kept is None:
            return self._resolve(now, value, limit, "")
        if self.rule.levels[kept][0] < self.alert.severity:
            return self._update(now, kept, value, limit)
        return _NOTHING

    def _kept(self, now: float, value: float) -> int | None:
        """The highest level that the value holds, or has left for less than ``keep_firing_for``."""
        held = 1 - self.rule.hysteresis
        self._below = tuple(
            None if value >= threshold * held else now if below is None else below
            for threshold, below in zip(self._thresholds, self._below, strict=True)
        )
        kept = None
        for at, below in enumerate(self._below):
            if below is None or now < below + self.rule.keep_firing_for:
                kept = at
        return kept

    def _count(self, now: float, counter: float) -> tuple[Event, ...]:
        """Take the counter of something that should never happen."""
        before = self._before[1] if self._before is not None else 0.0
        self._before = (now, counter)
        if counter > before:
            more, events = counter - before, _NOTHING
            if self.alert is None:
                events = self._raise(now, 0, more, None, self.rule.levels[0][1], now)
            else:
                total = self.alert.value + more
                self.alert = self.alert.but(value=total, worst=total, worst_at=now)
            self._below = (now,)
            return events
        if self.alert is not None:
            happened = self._below[0]
            assert happened is not None
            if now >= happened + self.rule.keep_firing_for:
                return self._resolve(now, self.alert.value, None, "")
        return _NOTHING

    def _raise(
        self,
        now: float,
        at: int,
        value: float,
        limit: float | None,
        threshold: float,
        breached: float,
    ) -> tuple[Event, ...]:
        severity = self.rule.levels[at][0]
        self.alert = Alert(
            self._new_id(), self.rule, severity, value, limit, threshold, breached, now, now,
            worst=value, worst_limit=limit, worst_at=now,
        )  # fmt: skip
        self._worst = severity
        self._below = (None,) * len(self.rule.levels)
        return (Event("raised", self.alert),)

    def _update(self, now: float, at: int, value: float, limit: float | None) -> tuple[Event, ...]:
        assert self.alert is not None
        severity = self.rule.levels[at][0]
        self._worst = max(self._worst, severity)
        self.alert = self.alert.but(
            severity=severity,
            value=value,
            limit=limit,
            threshold=self._thresholds[at],
            updated=now,
        )
        return (Event("updated", self.alert),)

    def _resolve(
        self, now: float, value: float, limit: float | None, why: str
    ) -> tuple[Event, ...]:
        assert self.alert is not None
        ended = self.alert.but(value=value, limit=limit, updated=now, resolved=now, why=why)
        self.alert = None
        self._last = ended
        self._silent_until = now + self.rule.cooldown
        return (Event("resolved", ended),)


def message(alert: Alert, subject: str) -> str:
    """The alert in one line: ``memory of NAME is at 76% of its limit (778 MiB of 1.0 GiB)``; its worst value once it is over."""
    rule = alert.rule
    if rule.resource in _HAPPENED:
        return f"{_HAPPENED[rule.resource]} in {subject}" + (
            f", {alert.value:.10g} times" if alert.value > 1 else ""
        )
    worst = alert.resolved is not None
    value, limit = (alert.worst, alert.worst_limit) if worst else (alert.value, alert.limit)
    at = "was at most" if worst else "is"
    if rule.resource == "space":
        return f"a file system that {subject} writes to {at} {value:.1%} full"
    what = f"{rule.resource.replace('_', ' ')} of {subject} {at if worst else 'is at'}"
    unit = RESOURCES[rule.resource].unit
    shown = show(value, unit)
    if rule.relative and limit:
        return f"{what} {value / limit:.0%} of its limit ({shown} of {show(limit, unit)})"
    return f"{what} {shown}, threshold {show(alert.threshold, unit)}"


_HAPPENED = {
    "oom_kill": "a process was killed for memory",
    "fork_refused": "a fork was refused",
    "drift": "a limit no longer holds",
    "escaped": "a process has left its cgroup and limits",
    "unreadable": "a control file cannot be read",
    "history": "the history cannot be written",
    "handlers": "a handler did not take an alert",
    "starved": "the budget has no memory left for what is needed",
    "frozen": "all processes are frozen",
    "stalled": "all processes wait for memory and get nowhere",
}


def show(value: float, unit: str) -> str:
    """A value with its unit, for people."""
    if unit == "bytes":
        return format_size(value)
    if unit == "bytes/s":
        return format_rate(value)
    if unit == "cores":
        return f"{value:.2f} cores"
    if unit == "fraction":
        return f"{value:.0%}"
    if unit == "packets/s":
        return f"{value:.0f} packets/s"
    return f"{value:.10g}"


def _level_rule(resource: str, of: str, warning: float, duration: float) -> Rule:
    return Rule(resource, resource, of, ((Severity.WARNING, warning),), duration=duration)


def _of_limit(resource: str, of: str, duration: float) -> Rule:
    levels = ((Severity.WARNING, 0.75), (Severity.CRITICAL, 0.80))
    return Rule(resource, resource, of, levels, relative=True, duration=duration)


def _event_rule(resource: str, of: str, severity: Severity, keep_firing_for: float = 60) -> Rule:
    return Rule(
        resource, resource, of, ((severity, 1),), cooldown=0, keep_firing_for=keep_firing_for
    )


DEFAULT_RULES = (
    *(_of_limit("cpu", of, duration=30) for of in ("agent", "host", "slice")),
    *(_of_limit("memory", of, duration=0) for of in ("agent", "host", "slice")),
    *(_level_rule("disk", of, 100e6, duration=10) for of in ("agent", "host")),
    *(_level_rule("network", of, 100e6, duration=10) for of in ("agent", "host")),
    _level_rule("fds", "agent", 1000, duration=5),
    Rule("nofile", "nofile", "agent", ((Severity.WARNING, 0.80),), relative=True),
    Rule("space", "space", "agent", ((Severity.WARNING, 0.90), (Severity.CRITICAL, 0.97))),
    *(
        _event_rule(resource, "agent", Severity.EMERGENCY)
        for resource in ("oom_kill", "fork_refused", "drift", "escaped")
    ),
    _event_rule("starved", "agent", Severity.WARNING, keep_firing_for=5),
    _event_rule("frozen", "agent", Severity.CRITICAL, keep_firing_for=0),
    _event_rule("frozen", "agent", Severity.EMERGENCY, 0).but(name="frozen_long", duration=3600),
    _event_rule("stalled", "agent", Severity.CRITICAL, keep_firing_for=0),
    _event_rule("unreadable", "agent", Severity.INFO),
    *(_event_rule(resource, "agent", Severity.WARNING) for resource in ("history", "handlers")),
)
"""What is watched when nothing is said."""
