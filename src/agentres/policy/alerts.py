"""When a breach becomes an alert, when the alert changes, and when it ends; pure.

One :class:`Watch` follows one rule over one subject.  Times are seconds of one clock that never jumps;
the caller turns them into dates.  The terms follow Prometheus's alerting rules where possible: a breach
must last ``duration`` (Prometheus: ``for``), and an alert ends ``keep_firing_for`` after the breach.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, IntEnum, Record
from agentres.model.units import NEVER, format_rate, format_size
from agentres.policy.resources import EVENT, RATE, RESOURCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal


class Severity(IntEnum):
    """The severity of an alert."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3


class Rule(Record):
    """The condition for an alert.

    ``levels`` are (severity, threshold) in rising order; thresholds are fractions of the limit if
    ``relative``, else in the resource's unit.  A breach ends below ``threshold * (1 - hysteresis)``.
    In seconds: a breach must last ``duration``; the alert stays ``keep_firing_for`` longer; after its end
    the rule is silent for ``cooldown``, unless the next breach is more severe than the last alert ever was,
    or outlasts the cooldown.  For an event, only the first severity and ``keep_firing_for`` count.
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
    """One breach of one rule, in its present state.

    ``value``, ``limit`` and ``threshold`` are in the resource's unit; for an event, ``value`` is the number
    of times.  ``repeats`` counts breaches within the cooldown, which raise no alert of their own.  ``why``
    says what ended the alert if it was not the value.  ``worst`` is the highest value since it was raised,
    ``worst_limit`` the limit then, ``worst_at`` the time.
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


class Change(Record):
    """A change of an alert: it was raised, changed its severity, or ended.

    ``repeated``, a breach in the cooldown, is for the history only.
    """

    kind: Literal["raised", "updated", "resolved", "repeated"]
    alert: Alert


_NOTHING: tuple[Change, ...] = ()

SPEED_HALF_LIFE = 10.0
"""Seconds in which the remembered speed of a resource halves, once it has stopped rising."""


class Watch:
    """Watches one rule over one subject: takes values, returns changes."""

    __slots__ = (
        "_before", "_below", "_counts", "_earlier", "_last", "_limit", "_new_id", "_rate", "_relative", "_repeated",
        "_seen", "_silent_until", "_since", "_speed", "_thresholds", "_worst", "alert", "rule",
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
        # For each level, the first look that found it left; for an event, when it last happened.
        self._below: tuple[float | None, ...] = ()
        self._worst = Severity.INFO
        self._last: Alert | None = None
        self._silent_until = -NEVER
        self._repeated = False
        self._earlier: tuple[float, float] | None = None
        self._before: tuple[float, float] | None = None
        self._speed = 0.0

    def observe(self, now: float, value: float | None, limit: float | None) -> tuple[Change, ...]:
        """Take the value at ``now``; None means "not known" and changes nothing.

        For an event, the value is the counter, which starts at 0.
        """
        if value is None:
            return _NOTHING
        if self._counts:
            return self._count(now, value)
        if self._relative and limit != self._limit:
            self._limit = limit
            if limit is None:
                # Nothing to compare with: a later limit is breached no earlier than when it is set.
                self._thresholds, self._before, self._earlier = (), None, None
                return self.finish(now, "there is no limit any more")
            self._thresholds = tuple(part * limit for _, part in self.rule.levels)
        if not self._thresholds:
            return _NOTHING
        # There are thousands of watches, nearly always quiet: save every call.
        quiet = self.alert is None and self._since[0] is None and value < self._thresholds[0]
        if not quiet:
            self._cross(now, value)
        before = self._before
        if before is not None and (passed := now - before[0]) > 0.0:
            speed = (value - before[1]) / passed
            if speed < self._speed:
                speed = max(speed, self._speed * 0.5 ** (passed / SPEED_HALF_LIFE))
            self._speed = speed
        self._earlier, self._before = before, (now, value)
        if quiet:
            return _NOTHING
        if self.alert is None:
            return self._maybe_raise(now, value, limit)
        if value > self.alert.worst:
            self.alert = self.alert.but(worst=value, worst_limit=limit, worst_at=now)
        return self._maybe_change(now, value, limit)

    def again(self, now: float, value: float) -> tuple[Change, ...]:
        """Update an alert that fires, because it has a further cause."""
        if self.alert is None:
            return _NOTHING
        self.alert = self.alert.but(value=value, updated=now)
        return (Change("updated", self.alert),)

    def finish(self, now: float, why: str) -> tuple[Change, ...]:
        """End the alert, because its subject or its limit is gone."""
        self._since = [None] * len(self._since)
        self._seen = [0] * len(self._seen)
        self._repeated = False
        self._speed = 0.0
        if self.alert is None:
            return _NOTHING
        return self._resolve(now, self.alert.value, self.alert.limit, why)

    def due(self, now: float, least: float) -> float:
        """Return the seconds from ``now`` until the value must be looked at again at the latest.

        That is half the time to the next threshold at the present speed, so that the crossing is caught unless
        the speed doubles, but at least ``least`` seconds; or the end of a wait.  Infinite: no reason to look.
        """
        if self._before is None:
            return NEVER
        soonest = NEVER
        then, value = self._before
        if self._speed and (ahead := self.next_threshold) is not None:
            soonest = max(((ahead - value) / self._speed - (now - then)) / 2, least)
        if self._since[0] is not None:
            soonest = min(soonest, self._wait(now, least))
        if self.alert is not None:
            for (severity, _), below in zip(self.rule.levels, self._below, strict=False):
                if below is not None and severity <= self.alert.severity:
                    ends = below + self.rule.keep_firing_for
                    soonest = min(soonest, max(ends - now, 0.0))
        # Back off from a value that is unknown for a while: wait at least as long again.
        return max(soonest, now - then)

    def _wait(self, now: float, least: float) -> float:
        """Return the seconds until a breach may have lasted long enough, or the cooldown is over."""
        soonest = NEVER
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
        """The lowest threshold above the last value; None if there is none, or no value yet."""
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
        """Return when the breach seen now may have begun, so that sampling does not make an alert late.

        A level may have crossed right after the previous look.  A rate that jumped and stayed up did so
        in the interval before, and the mean of that tells when.  Without a duration to wait for, the time
        is only shown; it is interpolated linearly.
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
        """Return the highest level that has been breached for the rule's ``duration``."""
        found = None
        for at, since in enumerate(self._since):
            # One look alone does not show that the breach lasted.
            looked = self._seen[at] >= 2 or self.rule.duration == 0
            if since is not None and looked and now >= since + self.rule.duration:
                found = at
        return found

    def _maybe_raise(self, now: float, value: float, limit: float | None) -> tuple[Change, ...]:
        at = self._sustained(now)
        if at is None:
            return _NOTHING
        severity = self.rule.levels[at][0]
        if now < self._silent_until and severity <= self._worst and self._last is not None:
            if self._repeated:
                return _NOTHING
            self._repeated = True
            self._last = self._last.but(repeats=self._last.repeats + 1)
            return (Change("repeated", self._last),)
        since = self._since[0]
        assert since is not None
        return self._raise(now, at, value, limit, self._thresholds[at], since)

    def _maybe_change(self, now: float, value: float, limit: float | None) -> tuple[Change, ...]:
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
        """Return the highest level that the value still holds, or left less than ``keep_firing_for`` ago."""
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

    def _count(self, now: float, counter: float) -> tuple[Change, ...]:
        """Take the counter of an event."""
        before = self._before[1] if self._before is not None else 0.0
        self._before = (now, counter)
        if counter > before:
            more, changes = counter - before, _NOTHING
            if self.alert is None:
                changes = self._raise(now, 0, more, None, self.rule.levels[0][1], now)
            else:
                total = self.alert.value + more
                self.alert = self.alert.but(value=total, worst=total, worst_at=now)
            self._below = (now,)
            return changes
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
    ) -> tuple[Change, ...]:
        severity = self.rule.levels[at][0]
        self.alert = Alert(
            self._new_id(), self.rule, severity, value, limit, threshold, breached, now, now,
            worst=value, worst_limit=limit, worst_at=now,
        )  # fmt: skip
        self._worst = severity
        self._below = (None,) * len(self.rule.levels)
        return (Change("raised", self.alert),)

    def _update(self, now: float, at: int, value: float, limit: float | None) -> tuple[Change, ...]:
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
        return (Change("updated", self.alert),)

    def _resolve(
        self, now: float, value: float, limit: float | None, why: str
    ) -> tuple[Change, ...]:
        assert self.alert is not None
        ended = self.alert.but(value=value, limit=limit, updated=now, resolved=now, why=why)
        self.alert = None
        self._last = ended
        self._silent_until = now + self.rule.cooldown
        return (Change("resolved", ended),)


def message(alert: Alert, subject: str) -> str:
    """Return the alert in one line: ``memory of NAME is at 76% of its limit (778 MiB of 1.0 GiB)``.

    Once it is over: its worst value.
    """
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
    """Format a value with its unit, for display."""
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
"""The default rules."""
