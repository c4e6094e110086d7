"""Rules of alerts that tests watch, by example and drawn, and what a script of looks makes of them."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st

from agentres.policy.alerts import Change, Rule, Severity, Watch

INFO, WARNING, CRITICAL, EMERGENCY = Severity
TWO = ((WARNING, 75.0), (CRITICAL, 80.0))
"""With the hysteresis of 5% they are held down to 71.25 and 76."""


def watch(rule: Rule) -> Watch:
    ids = itertools.count(1)
    return Watch(rule, lambda: f"id{next(ids)}")


def absolute(**rest: Any) -> Rule:
    return Rule("fds", "fds", "agent", TWO, **{"cooldown": 0.0, **rest})


def share(**rest: Any) -> Rule:
    levels = ((WARNING, 0.75), (CRITICAL, 0.80))
    return Rule("memory", "memory", "agent", levels, relative=True, **{"cooldown": 0.0, **rest})


def event(**rest: Any) -> Rule:
    return Rule("oom_kill", "oom_kill", "agent", ((EMERGENCY, 1.0),), **rest)


def lived(rule: Rule, script: str) -> tuple[Watch, list[Change]]:
    """What ``script`` makes of a rule: looks ``TIME=VALUE[@LIMIT]``, ``-`` for None, or ``TIME=end``."""
    watching = watch(rule)
    events: list[Change] = []
    for word in script.split():
        time, _, rest = word.partition("=")
        if rest == "end":
            events += watching.finish(float(time), "the agent has ended")
            continue
        value, _, limit = rest.partition("@")
        known, under = [None if text in ("-", "") else float(text) for text in (value, limit)]
        events += watching.observe(float(time), known, under)
    return watching, events


SECONDS = st.sampled_from([0.0, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    severities = sorted(draw(st.sets(st.sampled_from(list(Severity)), min_size=1, max_size=3)))
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
