"""Whether an agent runs."""

from __future__ import annotations

from agentres.policy.idle import SECONDS, Idle


def told(idle: Idle, usages: list[tuple[float, int | None]]) -> list[tuple[float, bool]]:
    """When it changed, and to what."""
    return [(at, idle.idle) for at, usage in usages if idle.observe(at, usage)]


def test_one_that_hardly_runs_is_idle_after_a_while_and_no_more_once_it_runs() -> None:
    calm = [(float(at), 7_000_000 + at * 5_000) for at in range(0, 60, 5)]  # half of a percent
    idle = Idle(0.0)
    assert told(idle, calm) == [(SECONDS, True)]
    assert told(idle, [(60.0, 7_300_000), (65.0, 8_000_000)]) == [(65.0, False)]


def test_one_that_runs_now_and_then_is_not_idle() -> None:
    assert told(Idle(0.0), [(float(at), at * 20_000) for at in range(0, 120, 5)]) == []


def test_what_says_nothing_is_not_idleness() -> None:
    assert told(Idle(0.0), [(float(at), None) for at in range(0, 120, 5)]) == []
