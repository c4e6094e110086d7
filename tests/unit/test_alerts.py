"""The alerts' state machine, in simulated time: every transition, the rules that are built in, what people read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from watched_rules import (
    CRITICAL,
    EMERGENCY,
    INFO,
    TWO,
    WARNING,
    absolute,
    event,
    lived,
    share,
    watch,
)

from agentres.policy.alerts import DEFAULT_RULES, Alert, Change, Rule, message, show
from agentres.policy.resources import EVENT, RESOURCES


def cores(**rest: Any) -> Rule:
    return Rule("cpu", "cpu", "agent", TWO, **{"cooldown": 0.0, **rest})


def play(rule: Rule, script: str) -> list[Change]:
    return lived(rule, script)[1]


def told(found: Change) -> str:
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
    worst = {"worst": 78.0, "worst_limit": 100.0, "worst_at": 10.0}
    assert raised == Alert("id1", rule, WARNING, 78.0, 100.0, 75.0, 6.25, 10.0, 10.0, **worst)
    assert up == raised.but(
        severity=CRITICAL, value=90.0, limit=110.0, threshold=88.0, updated=20.0,
        worst=90.0, worst_limit=110.0, worst_at=20.0,
    )  # fmt: skip
    assert down == up.but(severity=WARNING, value=74.0, limit=100.0, threshold=75.0, updated=36.0)
    assert over == down.but(value=2.0, limit=90.0, updated=46.0, resolved=46.0)


def test_the_worst_is_kept_between_events() -> None:
    (raised, over) = play(absolute(), "0=80 5=81 6=84 7=83 8=1 100=1")
    assert (raised.alert.worst, raised.alert.worst_at) == (80.0, 0.0)
    assert (over.kind, over.alert.value, over.alert.worst, over.alert.worst_at) == (
        "resolved",
        1.0,
        84.0,
        6.0,
    )


def test_an_end_tells_why() -> None:
    (_, ended) = play(absolute(), "0=80 5=81 6=end")
    assert ended.alert == play(absolute(), "0=80")[0].alert.but(
        updated=6.0, resolved=6.0, why="the agent has ended", worst=81.0, worst_at=5.0
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
    for resource in ("oom_kill", "fork_refused", "drift", "escaped"):
        assert found[resource, "agent"] == (((EMERGENCY, 1.0),), False)
    assert found["space", "agent"] == (((WARNING, 0.90), (CRITICAL, 0.97)), False)
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
    "nofile": (60.0, 70.0, 56.0, "nofile of a is at 86% of its limit (60 of 70)"),
    "space": (0.9316, None, 0.9, "a file system that a writes to is 93.2% full"),
    "load": (3.26, 4.0, 3.0, "load of a is at 82% of its limit (3.26 of 4)"),
    "cpu_pressure": (0.5, None, 0.4, "cpu pressure of a is at 50%, threshold 40%"),
    "memory_pressure": (1.0, None, 0.4, "memory pressure of a is at 100%, threshold 40%"),
    "io_pressure": (0.125, None, 0.1, "io pressure of a is at 12%, threshold 10%"),
    "oom_kill": (1.0, None, 1.0, "a process was killed for memory in a"),
    "fork_refused": (1234567.0, None, 1.0, "a fork was refused in a, 1234567 times"),
    "drift": (2.0, None, 1.0, "a limit no longer holds in a, 2 times"),
    "escaped": (1.0, None, 1.0, "a process has left its cgroup and limits in a"),
    "unreadable": (1.0, None, 1.0, "a control file cannot be read in a"),
    "history": (1.0, None, 1.0, "the history cannot be written in a"),
    "starved": (1, None, 1, "the budget has no memory left for what is needed in a"),
    "frozen": (1, None, 1, "all processes are frozen in a"),
    "stalled": (1, None, 1, "all processes wait for memory and get nowhere in a"),
    "handlers": (3.0, None, 1.0, "a handler did not take an alert in a, 3 times"),
}


@pytest.mark.parametrize("resource", RESOURCES)
def test_message(resource: str) -> None:
    value, limit, threshold, expected = MESSAGES[resource]
    rule = Rule("rule", resource, "agent", ((WARNING, 1.0),), relative=limit is not None)
    alert = Alert("id", rule, WARNING, value, limit, threshold, 0.0, 0.0, 0.0)
    assert message(alert, "a") == expected


@pytest.mark.parametrize(
    ("resource", "limit", "said"),
    [
        (
            "memory",
            float(64 << 20),
            "memory of a was at most 98% of its limit (63.0 MiB of 64.0 MiB)",
        ),
        ("disk_read", None, "disk read of a was at most 66.1 MB/s, threshold 1 MB/s"),
    ],
)
def test_one_that_is_over_says_its_worst(resource: str, limit: float | None, said: str) -> None:
    rule = Rule("rule", resource, "agent", ((WARNING, 1.0),), relative=limit is not None)
    alert = Alert(
        "id", rule, WARNING, 9.0, limit, 1e6, 0.0, 0.0, 0.0,
        resolved=9.0, worst=float(63 << 20), worst_limit=limit,
    )  # fmt: skip
    assert message(alert, "a") == said


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
