"""What is told of an agent is bounded, and right in the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_engine import MEMORY, Simulated

from agentres.policy.alerts import Alert, Change, Rule, Severity
from agentres.policy.damping import BURST, EVERY, Damper, TokenBucket

RULE = Rule("memory", "memory", "agent", ((Severity.WARNING, 1.0), (Severity.CRITICAL, 2.0)))


def test_a_bucket_gives_its_burst_and_then_one_each_time() -> None:
    bucket = TokenBucket(3, 10.0)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(now) for now in (14.9, 15.0, 24.9, 25.0)] == [False, True, False, True]
    assert [bucket.take(1e9) for _ in range(4)] == [True, True, True, False]


def test_few_changes_are_told_as_they_come() -> None:
    damper, alert = Damper(), _alert("1", Severity.WARNING)
    changes = (Change("raised", alert), Change("resolved", alert))
    assert damper.take(0.0, changes) == [*changes]
    assert damper.left_out == 0


def test_of_many_the_last_is_told_when_there_is_room() -> None:
    damper = Damper()
    for n in range(BURST):
        damper.take(0.0, (Change("raised" if n == 0 else "updated", _alert("1", Severity(1 + n % 2))),))  # fmt: skip
    last = _alert("1", Severity.EMERGENCY)
    assert damper.take(1.0, (Change("updated", _alert("1", Severity.WARNING)),)) == []
    assert damper.take(1.0, (Change("updated", last),)) == []
    assert damper.take(EVERY + 1, ()) == [Change("updated", last)]
    assert damper.left_out == 1


changes = st.lists(
    st.tuples(
        st.floats(0, 60), st.sampled_from(["breach", "graver", "less", "end", "repeated", "none"])
    ),
    max_size=200,
)


@given(changes, st.booleans())
def test_who_was_told_of_one_is_told_of_its_end_and_all_else_is_counted(
    changes: list[tuple[float, str]], slow: bool
) -> None:
    damper, told = Damper(), list[Change]()
    now, number, happened = 0.0, 0, 0
    alert: Alert | None = None
    for passed, what in changes:
        now += passed if slow else passed / 100
        changes: tuple[Change, ...] = ()
        if what == "breach" and alert is None:
            number += 1
            alert = _alert(str(number), Severity.WARNING)
            changes = (Change("raised", alert),)
        elif alert is not None and what in ("graver", "less"):
            severity = Severity.CRITICAL if what == "graver" else Severity.WARNING
            if severity != alert.severity:
                alert = alert.but(severity=severity)
                changes = (Change("updated", alert),)
        elif alert is not None and what == "end":
            changes, alert = (Change("resolved", alert),), None
        elif alert is None and number and what == "repeated":
            changes = (Change("repeated", _alert(str(number), Severity.WARNING)),)
        happened += len(changes)
        told += damper.take(now, changes)
        assert len(told) <= BURST + now / EVERY
    last = () if alert is None else (Change("resolved", alert),)
    told += damper.finish(last)
    happened += len(last)
    assert len(told) + damper.left_out == happened
    known: dict[str, Severity] = {}
    for event in told:
        if event.kind == "raised":
            assert not known
        elif event.kind != "repeated":
            assert event.alert.id in known
        if event.kind == "updated":
            assert known[event.alert.id] != event.alert.severity
        if event.kind in ("raised", "updated"):
            known[event.alert.id] = event.alert.severity
        elif event.kind == "resolved":
            del known[event.alert.id]
    assert not known


def test_an_agent_that_crosses_a_threshold_all_the_time_makes_a_line_each_half_minute() -> None:
    made = Simulated(MEMORY, working_set=lambda t: 950 if t % 0.4 < 0.2 else 755, memory_limit=lambda t: 1000)  # fmt: skip
    for _ in range(1000):  # 200 s, five times a second
        made.run(0.2)
        made.engine.look(made.subject, "memory")
    assert BURST < len(made.told) <= BURST + 200 / EVERY
    out = made.subject.left_out["memory"]
    assert out > 900
    made.engine.remove(made.subject, "the agent has ended")
    assert made.events("memory")[-1][0] == "resolved"
    assert len(made.told) <= BURST + 200 / EVERY + 1


def test_what_is_said_of_an_alert_is_a_line_of_bounded_length() -> None:
    made = Simulated(Rule("escaped", "escaped", "agent", ((Severity.EMERGENCY, 1.0),)))
    made.engine.note(made.subject, "escaped", 1, "\x1b[2J\n" * 5000)
    (event,) = made.told
    assert event["message"].isprintable()
    assert len(event["message"]) < 1100


def _alert(id: str, severity: Severity) -> Alert:
    return Alert(id, RULE, severity, 1.0, None, 1.0, 0.0, 0.0, 0.0)
