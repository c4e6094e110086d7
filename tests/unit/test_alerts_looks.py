"""When to look at what alerts watch: soon enough for every crossing, and no sooner than there is need."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_rules import CRITICAL, EMERGENCY, WARNING, absolute, event, lived, rules, share, watch

from agentres.policy.alerts import Rule, Watch

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
