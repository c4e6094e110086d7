"""The alerts' state machine over random lives: an oracle says what must and what may be told."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_rules import INFO, event, rules, watch

from agentres.policy.alerts import Alert, Change, Rule, Severity


class Look(NamedTuple):
    """What a watch is shown: None is a value that is not known, a limit that is not there."""

    time: float
    value: float | None
    limit: float | None = None


# An oracle: reads the looks back from each look, keeps no state but the alert that is open.


class Oracle:
    """What must and what may be told of a rule at each look, from all looks so far."""

    SLACK = 1e-6
    """Seconds by which two ways to compute a time may differ."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.looks: list[tuple[float, float, tuple[float, ...]]] = []
        self.open: Alert | None = None
        self.raised_at = 0
        self.worst = INFO
        self.last: Alert | None = None
        self.repeat_at = -1
        self.ids: set[str] = set()
        self.reached = INFO

    def run(self, level: int) -> tuple[int, float]:
        """The looks up to the last that breach a level without a break, and when that began."""
        n = 0
        for _, value, thresholds in reversed(self.looks):
            if value < thresholds[level]:
                break
            n += 1
        if n == 0:
            return 0, math.inf
        time, value, thresholds = self.looks[-n]
        if n == len(self.looks) or self.looks[-n - 1][1] >= thresholds[level]:
            return n, time
        then, was, _ = self.looks[-n - 1]
        if self.rule.duration > 0:  # no later than the level may have been crossed
            return n, then
        return n, then + (thresholds[level] - was) / (value - was) * (time - then)

    def sustained(self, slack: float) -> Severity | None:
        found = None
        for level, (severity, _) in enumerate(self.rule.levels):
            n, since = self.run(level)
            lasted = self.looks[-1][0] - since - self.rule.duration >= slack
            if n and (self.rule.duration == 0 or (lasted and n > 1)):
                found = severity
        return found

    def held(self) -> Severity | None:
        """The highest level, no higher than the open alert's, that a look not too long ago held."""
        assert self.open is not None
        now, found = self.looks[-1][0], None
        for level, (severity, _) in enumerate(self.rule.levels):
            left = None
            for time, value, thresholds in reversed(self.looks[self.raised_at :]):
                if value >= thresholds[level] * (1 - self.rule.hysteresis):
                    break
                left = time
            if severity <= self.open.severity and (
                left is None or now < left + self.rule.keep_firing_for
            ):
                found = severity
        return found

    def look(self, look: Look, changes: tuple[Change, ...]) -> None:
        time, value, limit = look
        if value is None:
            assert not changes
            return
        if self.rule.relative and limit is None:
            self.finish(time, changes)
            self.looks.clear()
            self.repeat_at = -1
            return
        scale = limit if self.rule.relative and limit is not None else 1.0
        self.looks.append((time, value, tuple(part * scale for _, part in self.rule.levels)))
        if self.open is not None and value > self.open.worst:
            self.open = self.open.but(worst=value, worst_limit=limit, worst_at=time)
        surely, perhaps = self.sustained(self.SLACK), self.sustained(-self.SLACK)
        assert len(changes) <= 1
        for found in changes:
            if found.kind == "repeated":
                self.repeated(time, found.alert, perhaps)
            else:
                self.changed(look, found, surely, perhaps)
        if changes:
            return
        if self.open is not None:
            assert self.held() == self.open.severity
            assert surely is None or surely <= self.open.severity
        elif surely is not None:
            assert self.last is not None
            assert self.last.resolved is not None
            assert time < self.last.resolved + self.rule.cooldown
            assert surely <= self.worst
            assert self.repeat_at >= len(self.looks) - self.run(0)[0], "neither alert nor repeat"

    def repeated(self, time: float, alert: Alert, perhaps: Severity | None) -> None:
        assert self.open is None
        assert self.last is not None
        assert self.last.resolved is not None
        assert alert == self.last.but(repeats=self.last.repeats + 1)
        assert time < self.last.resolved + self.rule.cooldown
        assert perhaps is not None
        assert self.repeat_at < len(self.looks) - self.run(0)[0], "counted twice"
        self.repeat_at = len(self.looks) - 1
        self.last = alert

    def changed(
        self, look: Look, found: Change, surely: Severity | None, perhaps: Severity | None
    ) -> None:
        alert = found.alert
        assert (alert.value, alert.limit, alert.updated) == (look.value, look.limit, look.time)
        by_severity = dict(zip([s for s, _ in self.rule.levels], self.looks[-1][2], strict=True))
        if found.kind != "resolved":
            assert alert.threshold == by_severity[alert.severity]
            assert alert.resolved is None
        if found.kind == "raised":
            assert self.open is None, "two at once"
            assert alert.id not in self.ids
            self.ids.add(alert.id)
            assert perhaps is not None
            assert (surely or INFO) <= alert.severity <= perhaps
            if self.last is not None and self.last.resolved is not None:
                silent = look.time < self.last.resolved + self.rule.cooldown
                assert not silent or alert.severity > self.worst
            assert alert.breached == pytest.approx(self.run(0)[1], abs=self.SLACK)
            assert alert.breached <= alert.raised == look.time
            assert alert.repeats == 0
            self.raised_at, self.worst, self.open = len(self.looks) - 1, alert.severity, alert
            return
        assert self.open is not None, "none to change"
        assert (alert.id, alert.breached, alert.raised) == (
            self.open.id, self.open.breached, self.open.raised,
        )  # fmt: skip
        assert self.open.updated <= alert.updated
        held = self.held()
        if found.kind == "resolved":
            assert held is None
            assert surely is None
            self.over(look.time, alert, "")
            return
        assert alert.severity != self.open.severity
        if alert.severity > self.open.severity:
            assert perhaps is not None
            assert (surely or INFO) <= alert.severity <= perhaps
        else:
            assert alert.severity == held
            assert surely is None or surely <= alert.severity
        self.worst, self.open = max(self.worst, alert.severity), alert

    def finish(self, time: float, changes: tuple[Change, ...]) -> None:
        assert [found.kind for found in changes] == ([] if self.open is None else ["resolved"])
        for found in changes:
            assert self.open is not None
            assert (found.alert.id, found.alert.value) == (self.open.id, self.open.value)
            assert found.alert.why
            self.over(time, found.alert, found.alert.why)

    def over(self, time: float, alert: Alert, why: str) -> None:
        assert self.open is not None
        assert (alert.resolved, alert.updated, alert.why) == (time, time, why)
        assert alert.severity == self.open.severity
        assert alert.breached <= alert.raised <= self.open.updated <= time
        self.open, self.last = None, alert


@st.composite
def lives(draw: st.DrawFn) -> list[float]:
    """Values: a random walk, a square wave, a sawtooth, or anything."""
    n = draw(st.integers(1, 40))
    shape = draw(st.sampled_from(["walk", "square", "saw", "any"]))
    if shape == "any":
        return [float(v) for v in draw(st.lists(st.integers(0, 120), min_size=n, max_size=n))]
    low, high = sorted(draw(st.tuples(st.integers(0, 120), st.integers(0, 120))))
    if shape == "walk":
        steps = draw(st.lists(st.integers(-30, 30), min_size=n, max_size=n))
        walk = itertools.accumulate(steps, lambda at, by: min(max(at + by, 0), 120), initial=low)
        return [float(v) for v in walk]
    period = draw(st.integers(2, 12))
    if shape == "square":
        part = draw(st.integers(1, period - 1))
        return [float(high if i % period < part else low) for i in range(n)]
    return [low + (high - low) * (i % period) / (period - 1) for i in range(n)]


@st.composite
def looks(draw: st.DrawFn) -> list[Look]:
    """A life as it is seen: at a steady pace or not, with gaps, under a limit that may change."""
    values = draw(lives())
    n = len(values)
    some = st.sampled_from([0.1, 0.25, 1.0, 2.5, 5.0, 7.0, 40.0])
    gaps = draw(st.one_of(some.map(lambda g: [g] * n), st.lists(some, min_size=n, max_size=n)))
    limits: list[float | None] = [100.0] * n
    for at in draw(st.lists(st.integers(0, n - 1), max_size=4)):
        limits[at:] = [draw(st.sampled_from([None, 50.0, 80.0, 100.0, 200.0]))] * (n - at)
    known: list[float | None] = list(values)
    for at in draw(st.lists(st.integers(0, n - 1), max_size=4)):
        known[at] = None
    start = draw(st.sampled_from([0.0, 123456.789]))
    times = itertools.accumulate(gaps, initial=start)
    return [Look(*look) for look in zip(times, known, limits, strict=False)]


@settings(max_examples=250)
@given(rules(), looks())
def test_no_breach_without_an_alert_none_twice_every_alert_ends(
    rule: Rule, life: list[Look]
) -> None:
    watching, oracle = watch(rule), Oracle(rule)
    for look in life:
        oracle.look(look, watching.observe(*look))
        assert watching.alert == oracle.open
        assert watching.due(look.time, 0.0) >= 0
    end = life[-1].time + 1
    oracle.finish(end, watching.finish(end, "the agent has ended"))
    assert watching.alert is None
    assert watching.finish(end, "again") == ()
    assert watching.due(end, 0.0) == math.inf or life[-1].value is None


@given(
    st.floats(0, 60),
    st.lists(st.tuples(st.floats(0.1, 30), st.none() | st.integers(0, 3)), min_size=1, max_size=40),
)
def test_no_event_without_an_alert(keep: float, life: list[tuple[float, int | None]]) -> None:
    watching = watch(event(keep_firing_for=keep, cooldown=1000.0))
    now, counter, last = 0.0, 0, -math.inf
    happened: dict[str, float] = {}
    for gap, more in life:
        now += gap
        before = watching.alert
        counter += more or 0
        found = [e.kind for e in watching.observe(now, None if more is None else counter, None)]
        if more is None:
            assert found == []
        elif more:
            assert found == (["raised"] if before is None else [])
            assert watching.alert is not None
            happened[watching.alert.id] = watching.alert.value
            last = now
        else:
            assert found == (["resolved"] if before is not None and now >= last + keep else [])
    assert sum(happened.values()) == counter
