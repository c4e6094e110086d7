"""The alerts' state machine, in simulated time: every transition, an oracle over random lives, when to look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentres.policy.alerts import (
    DEFAULT_RULES,
    Alert,
    Event,
    Rule,
    Severity,
    Watch,
    message,
    show,
)
from agentres.policy.resources import EVENT, RESOURCES

INFO, WARNING, CRITICAL, EMERGENCY = Severity
TWO = ((WARNING, 75.0), (CRITICAL, 80.0))
"""With the hysteresis of 5% they are held down to 71.25 and 76."""


class Look(NamedTuple):
    """What a watch is shown: None is a value that is not known, a limit that is not there."""

    time: float
    value: float | None
    limit: float | None = None


def watch(rule: Rule) -> Watch:
    ids = itertools.count(1)
    return Watch(rule, lambda: f"id{next(ids)}")


def absolute(**rest: Any) -> Rule:
    return Rule("fds", "fds", "agent", TWO, **{"cooldown": 0.0, **rest})


def cores(**rest: Any) -> Rule:
    return Rule("cpu", "cpu", "agent", TWO, **{"cooldown": 0.0, **rest})


def share(**rest: Any) -> Rule:
    levels = ((WARNING, 0.75), (CRITICAL, 0.80))
    return Rule("memory", "memory", "agent", levels, relative=True, **{"cooldown": 0.0, **rest})


def event(**rest: Any) -> Rule:
    return Rule("oom_kill", "oom_kill", "agent", ((EMERGENCY, 1.0),), **rest)


def play(rule: Rule, script: str) -> list[Event]:
    return lived(rule, script)[1]


def lived(rule: Rule, script: str) -> tuple[Watch, list[Event]]:
    """What ``script`` makes of a rule: looks ``TIME=VALUE[@LIMIT]``, ``-`` for None, or ``TIME=end``."""
    watching = watch(rule)
    events: list[Event] = []
    for word in script.split():
        time, _, rest = word.partition("=")
        if rest == "end":
            events += watching.finish(float(time), "the agent has ended")
            continue
        value, _, limit = rest.partition("@")
        known, under = [None if text in ("-", "") else float(text) for text in (value, limit)]
        events += watching.observe(float(time), known, under)
    return watching, events


def told(found: Event) -> str:
    alert = found.alert
    if found.kind == "repeated":
        return f"repeated {alert.repeats}"
    return f"{alert.updated:g} {found.kind} {alert.severity.name}"


# What a rule does, look by look.

TRANSITIONS: dict[str, tuple[Rule, str, str]] = {
    "below is nothing": (absolute(), "0=0 5=74.9 10=70", ""),
    "duration 0 is raised at once": (absolute(), "0=10 5=75", "5 raised WARNING"),
    "at once, however the crossing is rounded": (  # 69 + (118.7 - 69) > 118.7
        absolute(), "69=22 118.7=75", "118.7 raised WARNING",
    ),
    "at the very first look": (absolute(), "5=75", "5 raised WARNING"),
    "once for all looks above": (absolute(), "0=76 5=77 10=75 15=79", "0 raised WARNING"),
    "straight to the gravest": (absolute(), "0=10 5=80", "5 raised CRITICAL"),
    "up": (absolute(), "0=75 5=79.9 10=80", "0 raised WARNING, 10 updated CRITICAL"),
    "hysteresis holds": (absolute(), "0=80 5=76 10=79", "0 raised CRITICAL"),
    "down by hysteresis": (absolute(), "0=80 5=75.9", "0 raised CRITICAL, 5 updated WARNING"),
    "down, and up again": (
        absolute(),
        "0=80 5=75.9 10=79 15=80",
        "0 raised CRITICAL, 5 updated WARNING, 15 updated CRITICAL",
    ),
    "held to the last": (absolute(), "0=75 5=71.25", "0 raised WARNING"),
    "resolved": (absolute(), "0=75 5=71.2 10=0", "0 raised WARNING, 5 resolved WARNING"),
    "resolved from the gravest": (absolute(), "0=80 5=1", "0 raised CRITICAL, 5 resolved CRITICAL"),
    "no hysteresis": (absolute(hysteresis=0), "0=75 5=74.9", "0 raised WARNING, 5 resolved WARNING"),
    "the next breach is another alert": (
        absolute(),
        "0=75 5=1 10=75 15=1",
        "0 raised WARNING, 5 resolved WARNING, 10 raised WARNING, 15 resolved WARNING",
    ),
    # Duration.
    "it lasts": (absolute(duration=10), "0=75 5=75 9.9=75 10=75", "10 raised WARNING"),
    "it does not": (absolute(duration=10), "0=75 9.9=75 9.95=74 10=75 19.9=75", ""),
    "hysteresis does not help it last": (absolute(duration=10), "0=75 5=74 10=75", ""),
    "from the look before it, which a level may have crossed right after": (
        absolute(duration=10), "0=70 10=76 10.1=76", "10.1 raised WARNING",
    ),
    "one look is not enough": (absolute(duration=1), "0=0 100=76", ""),
    "not even the first of all": (absolute(duration=1), "100=76", ""),
    "but two are": (absolute(duration=1), "0=0 100=76 100.1=76", "100.1 raised WARNING"),
    "each level for as long": (
        absolute(duration=10),
        "0=75 5=75 7=80 10=80 14=80 15=80",
        "10 raised WARNING, 15 updated CRITICAL",
    ),
    "one look at a level is not enough": (
        absolute(duration=10),
        "0=75 10=75 30=90 30.1=90",
        "10 raised WARNING, 30.1 updated CRITICAL",
    ),
    "looks are counted a breach": (absolute(duration=1), "0=76 0.5=76 1=1 50=76 51=1", ""),
    "to the moment, however sums are rounded": (  # 0.7 - 0.4 < 0.3
        absolute(duration=0.3), "0.4=76 0.7=76", "0.7 raised WARNING",
    ),
    "a level that is left starts anew": (
        absolute(duration=10),
        "0=80 9=79 10=80 19=80 20=80",
        "10 raised WARNING, 19 updated CRITICAL",
    ),
    # A rate is a mean since the look before.
    "a rate that jumps and stays began within the look that saw a part of it": (
        cores(duration=10), "0=0 5=0 10=20 15=80 18.7=80 18.75=80", "18.75 raised CRITICAL",
    ),
    "one that jumps at a look began there": (
        cores(duration=10), "0=0 5=0 10=80 14.9=80 15=80", "15 raised CRITICAL",
    ),
    # keep_firing_for.
    "it is kept": (
        absolute(keep_firing_for=10),
        "0=75 5=1 14.9=1 15=1",
        "0 raised WARNING, 15 resolved WARNING",
    ),
    "it is kept to the moment": (
        absolute(keep_firing_for=0.3), "0=75 0.4=1 0.7=1", "0 raised WARNING, 0.7 resolved WARNING",
    ),
    "a return keeps it": (
        absolute(keep_firing_for=10),
        "0=75 5=1 14=72 15=1 24=1 25=1",
        "0 raised WARNING, 25 resolved WARNING",
    ),
    "each level is kept": (
        absolute(keep_firing_for=10),
        "0=80 5=75 14=1 15=1 23=1 24=1",
        "0 raised CRITICAL, 15 updated WARNING, 24 resolved WARNING",
    ),
    "all left at once end at once": (
        absolute(keep_firing_for=10),
        "0=80 5=1 14=1 15=1",
        "0 raised CRITICAL, 15 resolved CRITICAL",
    ),
    "a rise forgets what was left": (
        absolute(keep_firing_for=10),
        "0=80 5=75 15=75 16=80 17=75 26=75 27=75",
        "0 raised CRITICAL, 15 updated WARNING, 16 updated CRITICAL, 27 updated WARNING",
    ),
    # Cooldown.
    "silent, and counted once a breach": (
        absolute(cooldown=60),
        "0=75 5=1 10=75 15=76 20=1 25=76 30=1 64.9=75",
        "0 raised WARNING, 5 resolved WARNING, repeated 1, repeated 2, repeated 3",
    ),
    "until it ends": (
        absolute(cooldown=60),
        "0=75 5=1 65=75",
        "0 raised WARNING, 5 resolved WARNING, 65 raised WARNING",
    ),
    "a breach that outlasts it": (
        absolute(cooldown=60),
        "0=75 5=1 60=75 64.9=75 65=75 70=75",
        "0 raised WARNING, 5 resolved WARNING, repeated 1, 65 raised WARNING",
    ),
    "a breach too short is not counted": (
        absolute(cooldown=60, duration=10),
        "0=75 10=75 15=1 20=75 25=1 30=75 40=75",
        "10 raised WARNING, 15 resolved WARNING, repeated 1",
    ),
    "a graver one cuts through": (
        absolute(cooldown=60),
        "0=75 5=1 10=75 15=80",
        "0 raised WARNING, 5 resolved WARNING, repeated 1, 15 raised CRITICAL",
    ),
    "an equal one does not": (
        absolute(cooldown=60),
        "0=80 5=1 10=80 15=1",
        "0 raised CRITICAL, 5 resolved CRITICAL, repeated 1",
    ),
    "graver than the worst, not than the last": (
        absolute(cooldown=60),
        "0=80 5=75 6=1 10=80 15=1",
        "0 raised CRITICAL, 5 updated WARNING, 6 resolved WARNING, repeated 1",
    ),
    "the worst by an update, too": (
        absolute(cooldown=60),
        "0=75 1=80 2=75 6=1 10=80 15=1",
        "0 raised WARNING, 1 updated CRITICAL, 2 updated WARNING, 6 resolved WARNING, repeated 1",
    ),
    "the worst is that of the last alert": (
        absolute(cooldown=60),
        "0=80 5=1 100=75 105=1 110=80",
        "0 raised CRITICAL, 5 resolved CRITICAL, 100 raised WARNING, 105 resolved WARNING, 110 raised CRITICAL",
    ),
    # What is not known, and what is no more.
    "None changes nothing": (
        absolute(duration=10, keep_firing_for=10),
        "0=76 5=- 10=76 15=- 20=1 30=- 31=1",
        "10 raised WARNING, 31 resolved WARNING",
    ),
    "None from the first": (absolute(), "0=- 5=- 10=75", "10 raised WARNING"),
    "no limit, no alert": (share(), "0=1e9 5=1e9", ""),
    "a share of the limit": (share(), "0=74@100 5=75@100", "5 raised WARNING"),
    "the limit falls": (share(), "0=70@100 5=70@90", "5 raised WARNING"),
    "the limit rises": (share(), "0=80@100 5=80@110", "0 raised CRITICAL, 5 updated WARNING"),
    "the limit vanishes": (share(), "0=80@100 5=80", "0 raised CRITICAL, 5 resolved CRITICAL"),
    "a breach ends with its limit": (
        share(duration=10), "0=76@100 5=76 10=76@100 19=76@100 20=76@100", "20 raised WARNING",
    ),
    "a vanished limit is not drawn a line across": (
        share(duration=10), "0=1@100 5=1 100=80@100 109=80@100 110=80@100", "110 raised CRITICAL",
    ),
    "the same limit returns": (
        share(cooldown=60),
        "0=75@100 5=75 10=75@100 15=75 20=75@100 64=75@100 65=75@100",
        "0 raised WARNING, 5 resolved WARNING, repeated 1, repeated 2, 65 raised WARNING",
    ),
    "the agent ends": (absolute(), "0=80 5=end", "0 raised CRITICAL, 5 resolved CRITICAL"),
    "the agent ends in peace": (absolute(), "0=80 5=1 10=end", "0 raised CRITICAL, 5 resolved CRITICAL"),
    "it ends once": (absolute(), "0=80 5=end 6=end", "0 raised CRITICAL, 5 resolved CRITICAL"),
    "the end is the end of the breach": (absolute(duration=10), "0=76 5=76 6=end 10=76 16=1", ""),
    # Events.
    "it has never happened": (event(), "0=0 5=0", ""),
    "it happened": (event(), "0=0 5=1", "5 raised EMERGENCY"),
    "before the first look": (event(), "5=2", "5 raised EMERGENCY"),
    "more is no other alert": (event(keep_firing_for=60), "0=1 5=4 10=5", "0 raised EMERGENCY"),
    "over when it no longer does": (
        event(keep_firing_for=60),
        "0=1 30=2 89=2 90=2 95=2",
        "0 raised EMERGENCY, 90 resolved EMERGENCY",
    ),
    "at the next look when nothing keeps it": (
        event(), "0=1 5=1", "0 raised EMERGENCY, 5 resolved EMERGENCY",
    ),
    "the next one is another alert, whatever the cooldown": (
        event(cooldown=1000),
        "0=1 5=1 10=1 15=2",
        "0 raised EMERGENCY, 5 resolved EMERGENCY, 15 raised EMERGENCY",
    ),
    "a counter that is not known": (
        event(keep_firing_for=10),
        "0=0 5=- 10=1 15=- 25=- 26=1",
        "10 raised EMERGENCY, 26 resolved EMERGENCY",
    ),
    "a counter that starts anew": (
        event(), "0=0 1=3 2=0 3=1", "1 raised EMERGENCY, 2 resolved EMERGENCY, 3 raised EMERGENCY",
    ),
    "the agent ends with an event": (
        event(keep_firing_for=60), "0=1 5=end", "0 raised EMERGENCY, 5 resolved EMERGENCY",
    ),
}  # fmt: skip  # a table


@pytest.mark.parametrize(("rule", "script", "expected"), TRANSITIONS.values(), ids=TRANSITIONS)
def test_transition(rule: Rule, script: str, expected: str) -> None:
    assert ", ".join(map(told, play(rule, script))) == expected


def test_an_alert_tells_what_was_when_it_was() -> None:
    rule = share(keep_firing_for=5)
    raised, up, down, over = (
        found.alert
        for found in play(
            rule, "0=70@100 10=78@100 20=90@110 30=81@100 31=74@100 36=74@100 41=1@90 46=2@90"
        )
    )
    assert raised == Alert("id1", rule, WARNING, 78.0, 100.0, 75.0, 6.25, 10.0, 10.0)
    assert up == raised.but(
        severity=CRITICAL, value=90.0, limit=110.0, threshold=88.0, updated=20.0
    )
    assert down == up.but(severity=WARNING, value=74.0, limit=100.0, threshold=75.0, updated=36.0)
    assert over == down.but(value=2.0, limit=90.0, updated=46.0, resolved=46.0)


def test_an_end_tells_why() -> None:
    (_, ended) = play(absolute(), "0=80 5=81 6=end")
    assert ended.alert == play(absolute(), "0=80")[0].alert.but(
        updated=6.0, resolved=6.0, why="the agent has ended"
    )
    (_, ended) = play(share(), "0=80@100 5=81")
    assert (ended.alert.limit, ended.alert.why) == (100.0, "there is no limit any more")


def test_a_repeat_is_told_of_the_alert_before() -> None:
    (_, over, repeated, raised, gone, again) = play(
        absolute(cooldown=60), "0=75 5=1 10=75 65=75 70=1 75=75"
    )
    assert repeated.alert == over.alert.but(repeats=1)
    assert (raised.alert.id, raised.alert.repeats, raised.alert.breached) == ("id2", 0, 10.0)
    assert again.alert == gone.alert.but(repeats=1)


def test_events_add_up() -> None:
    watching = watch(event(keep_firing_for=60))
    (raised,) = watching.observe(5.0, 2, None)
    assert (raised.alert.value, raised.alert.threshold, raised.alert.breached) == (2.0, 1.0, 5.0)
    watching.observe(10.0, 5, None)
    assert watching.alert is not None
    assert watching.alert.value == 5.0
    (over,) = watching.observe(70.0, 5, None)
    assert (over.alert.value, over.alert.id) == (5.0, raised.alert.id)
    (another,) = watching.observe(100.0, 6, None)
    assert (another.alert.value, another.alert.id) == (1.0, "id2")


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

    def look(self, look: Look, events: tuple[Event, ...]) -> None:
        time, value, limit = look
        if value is None:
            assert not events
            return
        if self.rule.relative and limit is None:
            self.finish(time, events)
            self.looks.clear()
            self.repeat_at = -1
            return
        scale = limit if self.rule.relative and limit is not None else 1.0
        self.looks.append((time, value, tuple(part * scale for _, part in self.rule.levels)))
        surely, perhaps = self.sustained(self.SLACK), self.sustained(-self.SLACK)
        assert len(events) <= 1
        for found in events:
            if found.kind == "repeated":
                self.repeated(time, found.alert, perhaps)
            else:
                self.changed(look, found, surely, perhaps)
        if events:
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
        self, look: Look, found: Event, surely: Severity | None, perhaps: Severity | None
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

    def finish(self, time: float, events: tuple[Event, ...]) -> None:
        assert [found.kind for found in events] == ([] if self.open is None else ["resolved"])
        for found in events:
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


SECONDS = st.sampled_from([0.0, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    severities = sorted(draw(st.sets(st.sampled_from(Severity), min_size=1, max_size=3)))
    n = len(severities)
    parts = sorted(draw(st.sets(st.integers(2, 20), min_size=n, max_size=n)))
    relative = draw(st.booleans())
    levels = [
        (s, part / 20 if relative else part * 5.0)
        for s, part in zip(severities, parts, strict=True)
    ]
    return Rule(
        "rule",
        "memory" if relative else "fds",
        "agent",
        tuple(levels),
        relative,
        duration=draw(SECONDS),
        hysteresis=draw(st.sampled_from([0.0, 0.05, 0.1, 0.5])),
        cooldown=draw(st.sampled_from([0.0, 1.0, 10.0, 60.0, 120.0])),
        keep_firing_for=draw(SECONDS),
    )


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


# When to look.

INTERVAL, FASTEST = 5.0, 0.1
"""Seconds: between full samples; least between two looks (agentres.policy.settings)."""


def watched(
    watching: Watch,
    value: Callable[[float], float | None],
    until: float,
    limit: float | None = None,
) -> Iterator[float]:
    """The times of a watcher that looks when due() says, as far as the settings let it."""
    now = sample = 0.0
    while now <= until:
        yield now
        watching.observe(now, value(now), limit)
        sample = now + INTERVAL if now >= sample else sample
        now = min(sample, now + max(watching.due(now, 0.0), FASTEST))


MOMENT = 1e-6
"""Seconds: a look this close to a crossing is either side of it, as the sums are rounded."""


def lateness(times: list[float], crossing: float) -> float:
    return next(t for t in times if t >= crossing - MOMENT) - crossing


ALONE = Rule("fds", "fds", "agent", ((WARNING, 1000.0),))
OPEN_FILES = Rule("fds", "fds", "agent", ((WARNING, 1e3), (CRITICAL, 1e4), (EMERGENCY, 3e4)))
RAMPS: dict[str, tuple[Rule, float | None, float]] = {
    "fds": (OPEN_FILES, None, 1e3),
    "memory": (share(), 256e9, 3e9),
}
"""Rule, limit, and the fastest ramp, in units a second."""


@pytest.mark.parametrize("kind", RAMPS)
@given(part=st.floats(0.01, 1), start=st.floats(0, 1))
def test_a_steady_ramp_is_met_within_a_tenth_of_a_second(
    kind: str, part: float, start: float
) -> None:
    rule, limit, fastest = RAMPS[kind]
    speed = part * fastest
    thresholds = [t * (limit or 1) for _, t in rule.levels]
    begin = start * thresholds[0]
    end = (thresholds[-1] - begin) / speed
    times = list(watched(watch(rule), lambda t: begin + speed * t, end + INTERVAL + 1, limit))
    for threshold in thresholds:
        crossing = (threshold - begin) / speed
        if crossing > INTERVAL:  # seen at two looks before
            assert lateness(times, crossing) <= FASTEST + MOMENT
        assert lateness(times, crossing) <= INTERVAL + MOMENT
    assert len(times) <= end / INTERVAL + 3 + len(thresholds) * (4 + math.log2(INTERVAL / FASTEST))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 1000)), min_size=1, max_size=12),
    st.floats(0, 900),
)
def test_one_that_does_not_double_its_speed_is_met(
    legs: list[tuple[float, float]], start: float
) -> None:
    """Between the last look below a threshold and the crossing, to what it did between the last two."""
    corners = [(0.0, start)]
    for lasts, speed in [*legs, (1000.0, 100.0)]:
        corners.append((corners[-1][0] + lasts, corners[-1][1] + lasts * speed))

    def value(now: float) -> float:
        (t0, v0), (t1, v1) = next(p for p in itertools.pairwise(corners) if now <= p[1][0])
        return v0 + (v1 - v0) * (now - t0) / (t1 - t0)

    rule = Rule("fds", "fds", "agent", ((WARNING, 1000.0), (CRITICAL, 5000.0)))
    times = list(watched(watch(rule), value, corners[-2][0] + 60))
    for _, threshold in rule.levels:
        (t0, v0), (t1, v1) = next(p for p in itertools.pairwise(corners) if p[1][1] >= threshold)
        crossing = t0 + (threshold - v0) * (t1 - t0) / (v1 - v0)
        before = [t for t in times if t < crossing - MOMENT]
        if len(before) < 2:
            continue
        measured = (value(before[-1]) - value(before[-2])) / (before[-1] - before[-2])
        to_come = (threshold - value(before[-1])) / (crossing - before[-1])
        if to_come <= 2 * measured * (1 - 1e-9):
            assert lateness(times, crossing) <= FASTEST + MOMENT
        assert lateness(times, crossing) <= INTERVAL + MOMENT


@given(st.floats(1, 2), st.floats(10.01, 200))
def test_acceleration_from_rest_is_met_after_three_looks(power: float, crossing: float) -> None:
    at = watched(watch(ALONE), lambda t: 1000 * (t / crossing) ** power, crossing + INTERVAL)
    assert lateness(list(at), crossing) <= FASTEST + MOMENT


@given(st.floats(5.01, 10))
def test_acceleration_from_rest_is_met_later_after_two(crossing: float) -> None:
    """They tell of the mean speed since the start, and it may be four times that before it crosses."""
    at = watched(watch(ALONE), lambda t: 1000 * (t / crossing) ** 2, crossing + INTERVAL)
    assert lateness(list(at), crossing) <= 1.35


@given(rules(), st.integers(0, 120))
def test_a_flat_value_needs_no_look(rule: Rule, value: int) -> None:
    watching = watch(rule)
    for i in range(20):
        watching.observe(i * INTERVAL, value, 100.0)
        wait = watching.due(i * INTERVAL, 0.0)
        breached = watching.next_threshold != rule.levels[0][1] * (100.0 if rule.relative else 1.0)
        assert wait == math.inf or (breached and wait == rule.duration - i * INTERVAL > 0)


@given(st.integers())
def test_noise_far_from_a_threshold_needs_no_look(seed: int) -> None:
    """Far: at least twice the distance between its peaks."""
    random = Random(seed)
    at = watched(watch(ALONE), lambda _: 490 + random.uniform(-100, 100), 600)
    assert len(list(at)) == 600 / INTERVAL + 1


def test_a_rise_that_has_stopped_is_forgotten() -> None:
    stop = 9.9
    times = list(watched(watch(ALONE), lambda t: 100 * min(t, stop), 600))
    assert len(times) < 400
    assert len([t for t in times if t > stop + 120]) <= 480 / INTERVAL


def test_a_value_that_vanishes_is_looked_for_less_and_less() -> None:
    gone = 9.85
    times = list(watched(watch(ALONE), lambda t: 100 * t if t < gone else None, 600))
    assert len([t for t in times if t > gone]) < 600 / INTERVAL + 10


WAITS: dict[str, tuple[Rule, str, float]] = {
    "for the duration": (absolute(duration=10), "0=76", 10),
    "for what is left of it": (absolute(duration=10), "0=76 4=76", 6),
    "since the look before": (absolute(duration=10), "0=70 4=80", 6),
    "for the second look": (absolute(duration=1), "0=0 100=76", 0),
    "not for a third": (absolute(duration=1), "0=81 100=81 101=81", math.inf),
    "for a level above": (absolute(duration=10), "0=76 10=76 14=80 15=80", 5),
    "for the end of the cooldown": (absolute(cooldown=60), "0=81 5=0 15=81", 50),
    "not without a breach": (absolute(cooldown=60), "0=81 5=0", math.inf),
    "not after the cooldown": (absolute(cooldown=60), "0=81 5=0 15=81 65=81", math.inf),
    "not for one that was cut through": (absolute(cooldown=60), "0=75 5=1 10=81", math.inf),
    "for the end": (absolute(keep_firing_for=10), "0=76 5=0 9=0", 6),
    "for a lower level": (absolute(keep_firing_for=10), "0=80 5=75 6=75", 9),
    "not for a level that was left": (absolute(keep_firing_for=10), "0=80 5=75 15=75", math.inf),
    "not for one that was not reached": (absolute(keep_firing_for=10), "0=75 5=75", math.inf),
    "at once for an end that was missed": (
        absolute(keep_firing_for=1),
        "0=76 5=0 5.5=- 5.9=-",
        0.9,
    ),
    "not while it fires": (absolute(), "0=80 5=80", math.inf),
    "for the end of an event": (event(keep_firing_for=60), "0=1 10=1", 50),
    "not for an event": (event(keep_firing_for=60), "0=0 10=0", math.inf),
    "not before a value": (absolute(), "0=-", math.inf),
    "not without a limit": (share(), "0=10@100 5=50@100 10=50", math.inf),
    "not after the end": (absolute(), "0=0 5=50 6=end", math.inf),
    "half of what a rise has left": (absolute(), "0=0 5=25", 5),
    "to the next level": (absolute(duration=100), "0=72 2=74 4=76 6=78", 1),
    "to the next level from a level": (absolute(), "0=70 5=75", 2.5),
    "under the limit of now": (share(), "0=0@100 5=25@200", 12.5),
    "a rise is remembered": (absolute(), "0=0 1=50 11=50", 0.5),
    "not a fall": (absolute(), "0=60 5=50", math.inf),
    "less what has passed": (absolute(), "0=0 10=50 10.5=-", 2.25),
    "as long again as it was unknown": (absolute(), "0=0 1=70 5=-", 4),
}


@pytest.mark.parametrize(("rule", "script", "wait"), WAITS.values(), ids=WAITS)
def test_wait(rule: Rule, script: str, wait: float) -> None:
    watching, _ = lived(rule, script)
    now, _, _ = script.rpartition("=")[0].rpartition(" ")[2].partition("=")
    assert watching.due(float(now), 0.0) == pytest.approx(wait)


@settings(max_examples=100)
@given(st.floats(0, 1e6), st.floats(0.1, 100), st.floats(0, 10), st.floats(70, 75))
def test_a_wait_ends_with_what_it_was_for(
    start: float, duration: float, keep: float, before: float
) -> None:
    """However sums are rounded: no look comes a moment too soon and finds nothing to wait for."""
    watching = watch(absolute(duration=duration, keep_firing_for=keep))
    watching.observe(start - 0.1, before, None)
    now = start
    for value, awaited in (81.0, "raised"), (0.0, "resolved"):
        events = watching.observe(now, value, None)
        while awaited not in [found.kind for found in events]:
            wait = watching.due(now, 0.0)
            assert wait < math.inf, f"not {awaited}, and nothing to wait for"
            now += max(wait, FASTEST / 100)
            events = watching.observe(now, value, None)
        assert events[0].alert.breached <= now


# The rules when nothing is said.


def test_default_rules_make_sense() -> None:
    names = [(rule.name, rule.of) for rule in DEFAULT_RULES]
    assert len(set(names)) == len(names)
    for rule in DEFAULT_RULES:
        resource = RESOURCES[rule.resource]
        assert rule.of in resource.of
        assert not rule.relative or resource.limit
        severities, thresholds = zip(*rule.levels, strict=True)
        assert all(a < b for a, b in itertools.pairwise(severities))
        assert all(0 < a < b for a, b in itertools.pairwise(thresholds))
        assert all(0 < t < 1 for t in thresholds) or not rule.relative
        assert min(rule.duration, rule.cooldown, rule.keep_firing_for) >= 0
        assert 0 <= rule.hysteresis < 1
        if resource.kind == EVENT:
            assert (thresholds, rule.cooldown, rule.duration) == ((1,), 0, 0)
            assert rule.keep_firing_for > 0


def test_default_rules_are_the_promised_ones() -> None:
    found = {(r.resource, r.of): (r.levels, r.relative) for r in DEFAULT_RULES}
    for of in ("agent", "host", "slice"):
        for resource in ("cpu", "memory"):
            assert found[resource, of] == (((WARNING, 0.75), (CRITICAL, 0.80)), True)
    for of in ("agent", "host"):
        assert found["disk", of] == found["network", of] == (((WARNING, 100e6),), False)
    assert found["fds", "agent"] == (((WARNING, 1000.0),), False)
    for resource in ("oom_kill", "fork_refused", "drift"):
        assert found[resource, "agent"] == (((EMERGENCY, 1.0),), False)
    assert found["unreadable", "agent"][0][0][0] == INFO


# What people read.

MESSAGES = {
    "cpu": (1.52, 2.0, 1.5, "cpu of a is at 76% of its limit (1.52 cores of 2.00 cores)"),
    "memory": (
        0.76 * 2**30,
        2.0**30,
        1.0,
        "memory of a is at 76% of its limit (778 MiB of 1.0 GiB)",
    ),
    "swap": (2.0**30, None, 2.0**29, "swap of a is at 1.0 GiB, threshold 512 MiB"),
    "disk": (120e6, None, 100e6, "disk of a is at 120 MB/s, threshold 100 MB/s"),
    "disk_read": (1.5e9, None, 1e9, "disk read of a is at 1.5 GB/s, threshold 1 GB/s"),
    "disk_write": (0.0, None, 1.0, "disk write of a is at 0 B/s, threshold 1 B/s"),
    "network": (120e6, None, 100e6, "network of a is at 120 MB/s, threshold 100 MB/s"),
    "network_in": (9e6, 10e6, 0.75, "network in of a is at 90% of its limit (9 MB/s of 10 MB/s)"),
    "network_out": (9e6, None, 1e6, "network out of a is at 9 MB/s, threshold 1 MB/s"),
    "network_packets": (
        2e4,
        None,
        1e4,
        "network packets of a is at 20000 packets/s, threshold 10000 packets/s",
    ),
    "network_drops": (7.4, None, 1, "network drops of a is at 7 packets/s, threshold 1 packets/s"),
    "network_loopback": (9e6, None, 1e6, "network loopback of a is at 9 MB/s, threshold 1 MB/s"),
    "pids": (90.0, 100.0, 75.0, "pids of a is at 90% of its limit (90 of 100)"),
    "fds": (1048576.0, None, 1000.0, "fds of a is at 1048576, threshold 1000"),
    "load": (3.26, 4.0, 3.0, "load of a is at 82% of its limit (3.26 of 4)"),
    "cpu_pressure": (0.5, None, 0.4, "cpu pressure of a is at 50%, threshold 40%"),
    "memory_pressure": (1.0, None, 0.4, "memory pressure of a is at 100%, threshold 40%"),
    "io_pressure": (0.125, None, 0.1, "io pressure of a is at 12%, threshold 10%"),
    "oom_kill": (1.0, None, 1.0, "a process was killed for memory in a"),
    "fork_refused": (1234567.0, None, 1.0, "a fork was refused in a, 1234567 times"),
    "drift": (2.0, None, 1.0, "a limit no longer holds in a, 2 times"),
    "unreadable": (1.0, None, 1.0, "a control file cannot be read in a"),
    "history": (1.0, None, 1.0, "the history cannot be written in a"),
    "starved": (1, None, 1, "the budget has no memory left for what is needed in a"),
    "frozen": (1, None, 1, "all processes are frozen in a"),
    "handlers": (3.0, None, 1.0, "a handler did not take an alert in a, 3 times"),
}


@pytest.mark.parametrize("resource", RESOURCES)
def test_message(resource: str) -> None:
    value, limit, threshold, expected = MESSAGES[resource]
    rule = Rule("rule", resource, "agent", ((WARNING, 1.0),), relative=limit is not None)
    alert = Alert("id", rule, WARNING, value, limit, threshold, 0.0, 0.0, 0.0)
    assert message(alert, "a") == expected


def test_a_message_without_a_share() -> None:
    """Of a limit of 0, which has no percent, and of a threshold that is none of the limit."""
    rule = Rule("rule", "pids", "agent", ((WARNING, 0.5),), relative=True)
    alert = Alert("id", rule, WARNING, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert message(alert, "a") == "pids of a is at 1, threshold 0"
    plain = Rule("rule", "pids", "agent", ((WARNING, 50.0),))
    alert = Alert("id", plain, WARNING, 60.0, 100.0, 50.0, 0.0, 0.0, 0.0)
    assert message(alert, "a") == "pids of a is at 60, threshold 50"


def test_show() -> None:
    shown = [show(1.0, unit) for unit in ("bytes", "bytes/s", "cores", "fraction", "count")]
    assert shown == ["1 B", "1 B/s", "1.00 cores", "100%", "1"]
