"""Samples and events -> rules -> alerts, for any number of subjects on one loop.

Every ``interval`` the engine takes a full sample of a subject.  In between it looks at a resource when its
rules ask for that (:meth:`agentres.policy.alerts.Watch.due`) and when the kernel notifies.  The engine itself
decides and writes nothing: it hands alerts and samples to its creator.
"""

from __future__ import annotations

import os
import time

from agentres.kernel.loop import Loop, Timer
from agentres.model.errors import printable, shortened
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Reading, Sample
from agentres.model.units import NEVER
from agentres.policy.alerts import Alert, Change, Watch, message
from agentres.policy.damping import Damper
from agentres.policy.resources import OWN, RATE, RESOURCES
from agentres.policy.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from agentres.model.schemas import AlertEvent

    class MeterLike(Protocol):
        """What reads a subject, as :class:`agentres.kernel.meter.Meter` does."""

        unreadable: dict[str, str]

        @property
        def reading(self) -> Reading: ...

        def read(self, group: str) -> Reading: ...

        def sample(self) -> Reading: ...


TOGETHER = 0.1
"""Seconds: samples are taken at multiples of this, so that one turn of the loop takes those of many subjects.

A wake-up costs as much as a sample.
"""

DETAIL = 1000
"""Characters of an alert's detail, its words besides the figures, at most."""


class Subject:
    """Something with figures and rules: an agent, the slice of all agents, the host.

    Alerts and samples are filed under ``run`` and ``name``.  ``since`` is time.monotonic() when its counters
    were 0; None: before we watched.  ``states`` are the figures that no meter reads
    (:data:`agentres.policy.resources.OWN`).  ``detail`` has words to add to an alert, by resource.
    """

    def __init__(
        self,
        run: str,
        name: str,
        of: str,
        meter: MeterLike,
        settings: Settings,
        since: float | None,
    ) -> None:
        self.run, self.name, self.of, self.meter = run, name, of, meter
        self.states: dict[str, float] = {
            name: 0 for name, spec in RESOURCES.items() if spec.group == OWN and of in spec.of
        }
        self.detail: dict[str, str] = {}
        self.watches: dict[str, list[Watch]] = {}
        self.dampers: dict[str, Damper] = {}
        self.sample_at = 0.0
        self.looks: dict[str, float] = {}
        self.timer: Timer | None = None
        self._fastest = settings.fastest
        self._raw: dict[str, tuple[float, float]] = {}
        self._rates: dict[str, float] = {}
        # The least seconds between two looks.  Over a tenth of a second a rate is mostly noise: a rule with
        # a longer duration judges it over a quarter of that.
        self.least: dict[str, float] = {}
        for rule in settings.rules:
            if rule.of == of:
                self.watches.setdefault(rule.resource, []).append(Watch(rule, _new_id))
        for resource in self.watches:
            if RESOURCES[resource].kind == RATE:
                shortest = min(watch.rule.duration for watch in self.watches[resource])
                self.least[resource] = max(settings.fastest, min(1.0, shortest / 4))
                if since is not None:
                    self._raw[resource] = (since, 0.0)
            else:
                self.least[resource] = settings.fastest

    @property
    def left_out(self) -> dict[str, int]:
        """How many changes of each rule's alerts were not reported, as there were too many."""
        return {rule: each.left_out for rule, each in self.dampers.items() if each.left_out}

    def observed(
        self, resource: str, value: float | None, reading: Reading, now: float, notified: bool
    ) -> float:
        """Take each value of a reading before the rules judge it; return the seconds until the next look, at most.

        ``notified``: the kernel's notification is why it was read.
        """
        return NEVER

    def settled(self) -> None:
        """Take note that all that was read has been judged."""

    def ceiling(self, resource: str) -> float | None:
        """The limit that relative rules compare the resource with; None: there is none."""
        limit = RESOURCES[resource].limit
        return limit(self.meter.reading) if limit else None

    def follow(self, resource: str, since: float | None) -> None:
        """Look at a resource even if no rule is about it; ``since`` as for the subject."""
        if resource not in self.watches:
            self.watches[resource] = []
            self.least[resource] = self._fastest
            if since is not None and RESOURCES[resource].kind == RATE:
                self._raw[resource] = (since, 0.0)

    def value(self, resource: str, now: float) -> float | None:
        """The resource's value from the last reading; None: it is absent.

        A rate covers the time since the last call; if that was too short, the previous rate is returned.
        """
        spec = RESOURCES[resource]
        raw = float(self.states[resource]) if spec.group == OWN else spec.raw(self.meter.reading)
        if spec.kind != RATE:
            return raw
        before = self._raw.get(resource)
        if raw is None:
            self._raw.pop(resource, None)
            return None
        if before is not None and now - before[0] < self.least[resource] / 2:
            return self._rates.get(resource)
        self._raw[resource] = (now, raw)
        if before is None or raw < before[1]:
            self._rates.pop(resource, None)
            return None
        self._rates[resource] = rate = (raw - before[1]) / (now - before[0])
        return rate


class Engine:
    """Watches subjects.

    ``tell`` gets every alert event as a dict of primitives (docs/handlers.md).  ``keep`` gets every full sample
    with its subject and its unix time.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        tell: Callable[[dict[str, Any]], None],
        keep: Callable[[Subject, float, Sample], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._loop = loop
        self._tell = tell
        self._keep = keep
        self._clock = clock
        self._host = os.uname().nodename

    def add(self, subject: Subject, delay: float = 0.0) -> None:
        """Watch a subject; take its first sample after ``delay`` seconds, at once if 0."""
        subject.sample_at = self._clock() + delay
        if delay:
            self._arm(subject)
        else:
            self._turn(subject)

    def remove(self, subject: Subject, why: str) -> None:
        """Take a last sample, and end the subject's alerts."""
        if subject.timer is not None:
            subject.timer.cancel()
        self._sample(subject, self._clock())
        self.end(subject, why)

    def end(self, subject: Subject, why: str) -> None:
        """End the subject's alerts."""
        now = self._clock()
        for watches in subject.watches.values():
            for watch in watches:
                self._emit(subject, watch, watch.finish(now, why), now, last=True)

    def look(self, subject: Subject, *groups: str, notified: bool = False) -> None:
        """Read and judge some groups now, because they may have changed; ``notified``: the kernel says so."""
        now = self._clock()
        for group in groups:
            self._look(subject, group, now, notified)
        self._arm(subject)

    def note(
        self, subject: Subject, resource: str, value: float, detail: str, anew: bool = False
    ) -> None:
        """Take and judge a figure that no meter reads, with its detail in words; ``anew``: update an alert that is open, too."""
        subject.states[resource] = value
        subject.detail[resource] = detail
        now, watches = self._clock(), subject.watches.get(resource, ())
        before = [watch.alert for watch in watches]
        if watches:
            self._observe(subject, resource, now)
        for watch, alert in zip(watches, before, strict=True):
            if anew and alert is not None:
                self._emit(subject, watch, watch.again(now, value), now)

    def _turn(self, subject: Subject) -> None:
        now = self._clock()
        if now >= subject.sample_at:
            self._sample(subject, now)
            # From the planned time, not from now, so that samples keep their interval; missed ones are not made up for.
            subject.sample_at = max(subject.sample_at, now - self.settings.interval)
            subject.sample_at = _together(subject.sample_at + self.settings.interval)
        else:
            for group in [group for group, due in subject.looks.items() if due <= now]:
                self._look(subject, group, now)
        self._arm(subject)

    def _arm(self, subject: Subject) -> None:
        subject.settled()
        if subject.timer is not None:
            subject.timer.cancel()
        due = min(subject.looks.values(), default=subject.sample_at)
        subject.timer = self._loop.call_at(min(due, subject.sample_at), lambda: self._turn(subject))

    def _sample(self, subject: Subject, now: float) -> None:
        sample = subject.meter.sample()
        unreadable = subject.meter.unreadable
        subject.states["unreadable"] = len(unreadable)
        if unreadable:
            subject.detail["unreadable"] = "; ".join(unreadable.values())
        self._keep(subject, time.time(), sample)
        subject.looks.clear()
        for resource in subject.watches:
            self._observe(subject, resource, now)

    def _look(self, subject: Subject, group: str, now: float, notified: bool = False) -> None:
        subject.looks.pop(group, None)
        if group != OWN:
            subject.meter.read(group)
        for resource in subject.watches:
            if RESOURCES[resource].group == group:
                self._observe(subject, resource, now, notified)

    def _observe(self, subject: Subject, resource: str, now: float, notified: bool = False) -> None:
        value = subject.value(resource, now)
        soonest = subject.observed(resource, value, subject.meter.reading, now, notified)
        limit = subject.ceiling(resource)
        for watch in subject.watches[resource]:
            self._emit(subject, watch, watch.observe(now, value, limit), now)
            soonest = min(soonest, watch.due(now, subject.least[resource]))
        if soonest < self.settings.interval:
            due, group = now + soonest, RESOURCES[resource].group
            subject.looks[group] = min(due, subject.looks.get(group, due))

    def _emit(
        self,
        subject: Subject,
        watch: Watch,
        changes: tuple[Change, ...],
        now: float,
        last: bool = False,
    ) -> None:
        damper = subject.dampers.get(watch.rule.name)
        if damper is None:
            if not changes:
                return
            damper = subject.dampers[watch.rule.name] = Damper()
        for change in damper.finish(changes) if last else damper.take(now, changes):
            detail = subject.detail.get(change.alert.rule.resource, "")
            event = as_dict(
                change, subject.run, subject.name, self._host, time.time() - now, detail
            )
            self._tell({**event})


_KEPT = ("oom_kill", "fork_refused", "escaped")
"""Resources whose alert keeps saying what happened once it is over."""


def as_dict(
    change: Change, run: str, name: str, host: str, offset: float, detail: str = ""
) -> AlertEvent:
    """Return a change as the history, handlers and JSON have it; pure.

    ``offset`` is the unix time of the policy's time 0.
    """
    alert: Alert = change.alert
    text = message(alert, name)
    # The agent chooses the names of its processes and cgroups: make them printable.
    if alert.why and alert.rule.resource not in _KEPT:
        detail = ""
    detail = shortened(printable("; ".join(filter(None, (detail, alert.why)))), DETAIL)
    return {
        "schema": 1,
        "event": change.kind,
        "id": alert.id,
        "run": run,
        "agent": name,
        "of": alert.rule.of,
        "rule": alert.rule.name,
        "resource": alert.rule.resource,
        "unit": RESOURCES[alert.rule.resource].unit,
        "severity": alert.severity.name,
        "value": alert.value,
        "limit": alert.limit,
        "threshold": alert.threshold,
        "worst": alert.worst,
        "worst_limit": alert.worst_limit,
        "worst_at": alert.worst_at + offset,
        "breached": alert.breached + offset,
        "raised": alert.raised + offset,
        "updated": alert.updated + offset,
        "resolved": None if alert.resolved is None else alert.resolved + offset,
        "message": f"{text}: {detail}" if detail else text,
        "repeats": alert.repeats,
        "host": host,
    }


def _together(when: float) -> float:
    return round(when / TOGETHER) * TOGETHER


def _new_id() -> str:
    return os.urandom(4).hex()
