"""Alerts in the history: their life, who acknowledged them, what is asked for, and orphans."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from history_rows import DAY, NOW, event, run

from agentres.policy.alerts import Severity
from agentres.store import Run, Store, StoreError


def test_the_life_of_an_alert(store: Store) -> None:
    store.begin(run())
    store.record(event())
    row = store.alert("3f9a0c12")
    assert (row.severity, row.last_severity, row.value) == (Severity.WARNING, Severity.WARNING, 76)
    assert (row.resolved, row.handled, row.acknowledged) == (None, None, None)

    store.handled("3f9a0c12", "webhook", NOW + 0.5, "no route to host")
    assert store.alert("3f9a0c12").handled is None
    store.handled("3f9a0c12", "terminal", NOW + 1, None)
    store.handled("3f9a0c12", "journal", NOW + 2, None)
    assert store.alert("3f9a0c12").handled == NOW + 1

    store.record(event("updated", severity="CRITICAL", value=81.0, threshold=80.0, updated=NOW + 3))
    store.record(event("updated", value=77.0, updated=NOW + 4))
    row = store.alert("3f9a0c12")
    assert (row.severity, row.last_severity, row.value) == (Severity.CRITICAL, Severity.WARNING, 77)

    store.record(event("resolved", value=60.0, updated=NOW + 5, resolved=NOW + 5, why="moved"))
    store.record(event("repeated", updated=NOW + 5, resolved=NOW + 5, repeats=1, time=NOW + 6))
    row = store.acknowledge("3f9", "ada", "the build, known\udc80", NOW + 7)
    assert row == store.alert("3f9a0c12")
    assert (row.resolved, row.repeats, row.message) == (NOW + 5, 1, "memory was repeated")
    assert (row.acknowledged, row.acknowledged_by) == (NOW + 7, "ada")
    assert row.acknowledged_why == "the build, known?"

    warning, critical = Severity.WARNING, Severity.CRITICAL
    assert store.timeline("3f9a0c12") == [
        (NOW, "raised", warning, 76, "memory was raised"),
        (NOW + 0.5, "failed", None, None, "webhook: no route to host"),
        (NOW + 1, "handled", None, None, "terminal"),
        (NOW + 2, "handled", None, None, "journal"),
        (NOW + 3, "updated", critical, 81, "memory was updated"),
        (NOW + 4, "updated", warning, 77, "memory was updated"),
        (NOW + 5, "resolved", warning, 60, "moved"),
        (NOW + 6, "repeated", warning, 76, "memory was repeated"),
        (NOW + 7, "acknowledged", None, None, "ada: the build, known?"),
    ]


def test_an_alert_is_acknowledged_once(store: Store) -> None:
    store.record(event())
    store.acknowledge("3f9a0c12", "ada", "", NOW)
    with pytest.raises(StoreError, match=r"already acknowledged by ada at 20\d\d-\d\d-\d\d"):
        store.acknowledge("3f9a0c12", "bob", "me too", NOW + 1)
    assert store.alert("3f9a0c12").acknowledged_by == "ada"
    assert [kind for _, kind, *_ in store.timeline("3f9a0c12")] == ["raised", "acknowledged"]


def test_an_alert_by_the_beginning_of_its_id(store: Store) -> None:
    for alert_id in ("3f9a0c12", "3f9b0000", "3f9a"):
        store.record(event(alert_id=alert_id))
    assert store.alert("3f9b").id == "3f9b0000"
    assert store.alert("3f9a").id == "3f9a"  # is itself one
    assert store.alert("3f9a0").id == "3f9a0c12"
    with pytest.raises(
        StoreError, match="several alerts begin with '3f': 3f9a, 3f9a0c12, 3f9b0000"
    ):
        store.alert("3f")
    for wrong in ("4", "%", "3f9a0c120"):
        with pytest.raises(StoreError, match=f"no alert '{wrong}'"):
            store.alert(wrong)


def test_handlers_may_be_quicker_than_the_history(store: Store) -> None:
    store.handled("3f9a0c12", "terminal", NOW + 1, None)
    store.record(event())
    assert store.alert("3f9a0c12").handled == NOW + 1


def test_an_alert_that_was_raised_in_a_file_that_is_gone(store: Store) -> None:
    store.record(event("resolved", severity="CRITICAL", resolved=NOW + 5, updated=NOW + 5))
    row = store.alert("3f9a0c12")
    assert (row.raised, row.resolved, row.severity) == (NOW, NOW + 5, Severity.CRITICAL)


def test_alerts_by_what_is_asked(store: Store) -> None:
    store.record(event(alert_id="a1", severity="INFO"))
    store.record(event("resolved", "a1", severity="INFO", resolved=NOW + 1, updated=NOW + 1))
    store.record(event(alert_id="a2", raised=NOW + 2, resource="cpu", severity="CRITICAL"))
    store.record(event(alert_id="a3", raised=NOW + 3, agent="writer"))
    store.acknowledge("a3", "ada", "", NOW + 9)

    def ids(**which: Any) -> list[str]:
        return [row.id for row in store.alerts(**which)]

    assert ids() == ["a3", "a2", "a1"]
    assert ids(limit=2) == ["a3", "a2"]
    assert ids(agent="coder") == ["a2", "a1"]
    assert ids(severity=Severity.WARNING) == ["a3", "a2"]
    assert ids(resource="cpu", agent="coder") == ["a2"]
    assert ids(since=NOW + 2) == ["a3", "a2"]
    assert ids(open_only=True) == ["a3", "a2"]
    assert ids(unacknowledged=True) == ["a2", "a1"]
    assert ids(agent="nobody") == []


def test_statistics(store: Store) -> None:
    empty = store.statistics()
    assert empty["total"] == empty["open"] == empty["acknowledged"] == 0
    assert empty["time_to_acknowledge"] == {"mean": None, "p50": None, "max": None}
    for n, wait in enumerate((1.0, 3.0, 8.0, 20.0, None)):
        agent = "coder" if n < 3 else "writer"
        store.record(event(alert_id=f"a{n}", agent=agent, raised=NOW + n))
        if wait is not None:
            store.acknowledge(f"a{n}", "ada", "", NOW + n + wait)
    store.record(event("updated", "a4", severity="EMERGENCY", agent="writer"))
    store.record(event("resolved", "a0", resolved=NOW + 1))
    assert store.statistics() == {
        "total": 5,
        "open": 4,
        "acknowledged": 4,
        "by_severity": {"INFO": 0, "WARNING": 4, "CRITICAL": 0, "EMERGENCY": 1},
        "by_agent": {"coder": 3, "writer": 2},
        "by_resource": {"memory": 5},
        "time_to_acknowledge": {"mean": 8.0, "p50": 5.5, "max": 20.0},
    }
    later = store.statistics(since=NOW + 1)
    assert (later["total"], later["time_to_acknowledge"]["p50"]) == (4, 8.0)


def test_changes_are_the_events_as_they_came(store: Store, history_path: str) -> None:
    assert store.changes(0) == ([], 0)
    told = [
        event(),
        event(alert_id="b2", raised=NOW + 1, updated=NOW + 1, limit=None),
        event("updated", severity="CRITICAL", updated=NOW + 2, value=81.0),
        event("resolved", "b2", raised=NOW + 1, updated=NOW + 3, resolved=NOW + 3, limit=None),
        event("resolved", updated=NOW + 4, resolved=NOW + 4, repeats=2),
    ]
    follower = Store.open(history_path, write=False)
    at, seen = 0, []
    for one in told:
        store.record(one)
        store.handled(one["id"], "terminal", NOW, None)
        found, at = follower.changes(at)
        seen += found
    assert [one for _, one in seen] == told
    assert [seq for seq, _ in seen] == [1, 3, 5, 7, 9]
    assert follower.changes(at) == ([], 10)
    assert follower.changes(sys.maxsize) == ([], 10)
    assert [seq for seq, _ in follower.changes(3)[0]] == [5, 7, 9]
    follower.close()


def test_numbers_of_changes_never_come_again(store: Store) -> None:
    store.record(event("resolved", resolved=NOW))
    store.purge(NOW + 31 * DAY)
    assert store.changes(0) == ([], 1)
    store.record(event(alert_id="b2"))
    assert [seq for seq, _ in store.changes(1)[0]] == [2]


def test_orphans_are_resolved_and_say_why(store: Store) -> None:
    store.begin(run("alive", supervisor=1))
    store.begin(run("dead", supervisor=2))
    store.begin(run("ended", supervisor=3))
    store.end("ended", NOW, 0)
    for number, owner in enumerate(("alive", "dead", "dead", "ended")):
        store.record(event(alert_id=f"a{number}", run=owner))
    store.record(event("resolved", "a2", run="dead", resolved=NOW + 1, updated=NOW + 1))
    asked: list[str] = []

    def alive(of: Run) -> bool:
        asked.append(of.id)
        return of.supervisor == 1

    _, at = store.changes(0)
    for _ in range(2):  # the second time there is none
        store.resolve_orphans(NOW + 50, alive)
    assert asked == ["alive", "dead", "alive"]
    assert {r.id: r.ended for r in store.runs()} == {
        "alive": None,
        "dead": NOW + 50,
        "ended": NOW,
    }
    resolved = {row.id: row.resolved for row in store.alerts()}
    assert resolved == {"a0": None, "a1": NOW + 50, "a2": NOW + 1, "a3": NOW + 50}
    assert store.timeline("a1")[-1] == (
        NOW + 50, "resolved", Severity.WARNING, 76, "its supervisor is gone",
    )  # fmt: skip
    assert [(e["id"], e["event"], e["resolved"]) for _, e in store.changes(at)[0]] == [
        ("a1", "resolved", NOW + 50),
        ("a3", "resolved", NOW + 50),
    ]
