"""What a run teaches: its samples and kills go to the history under the right key, and come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fake_agent import handover

from agentres.model.limits import Limits, Range
from agentres.model.stats import Sample
from agentres.policy.observer import WINDOW, Observation
from agentres.policy.prediction import Prediction, Profile, learn
from agentres.policy.settings import Settings
from agentres.run.learning import Learning

MIB = 1 << 20
HOUR = 3600.0


class FakeRecorder:
    """Keeps what it is given, and answers from ``profile``."""

    def __init__(self, profile: Profile | None = None) -> None:
        self.put_: list[tuple[str, tuple[Any, ...]]] = []
        self.profile_ = profile
        self.asked: list[tuple[str, ...]] = []

    def put(self, method: str, *args: Any) -> None:
        self.put_.append((method, args))

    def ask(self, question: Callable[[Any], Any], then: Callable[[Any], None]) -> None:
        then(question(self))

    def profile(self, *keys: str) -> Profile | None:
        self.asked.append(keys)
        return self.profile_


def learning(
    recorder: FakeRecorder,
    name: str | None = "fixer",
    bounds: Mapping[str, Range] | None = None,
    warn: Callable[[str], None] = print,
    **settings: Any,
) -> Learning:
    agent = handover(Limits(ranges=bounds or {}), named=name, command=("make", "test"), warn=warn)
    return Learning(recorder, Settings(**settings), agent)  # type: ignore[arg-type]


def learnt(recorder: FakeRecorder) -> list[tuple[str, Observation]]:
    return [(args[0], args[1]) for method, args in recorder.put_ if method == "learn"]


def test_what_a_refused_raise_held_back_is_no_demand() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    # It stays at its tripwire, and never meets the limit itself.
    at = Sample(working_set=168 * MIB, memory_limit=200 * MIB, memory_max=0)
    each.sampled(at, 5.0, starved=True)
    each.finish(6.0)
    ((_, observed),) = learnt(recorder)
    assert observed.memory_held == 200 * MIB


def test_the_highest_use_and_the_cpu_of_a_run_are_learnt_under_its_name() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    at = Sample(
        working_set=100 * MIB, memory_limit=256 * MIB, memory_max=0, memory_oom_kill=0,
        usage_usec=2_000_000, pids_current=3, pids_max_events=0, cpu_limit=1.0,
    )  # fmt: skip
    each.sampled(at, 4.0)
    each.sampled(at.but(working_set=60 * MIB, usage_usec=3_000_000), 8.0)
    each.finish(8.0)
    ((key, observed),) = learnt(recorder)
    assert key == "name:fixer"
    assert observed.memory == 100 * MIB
    assert observed.memory_held is None
    assert sorted(observed.cpu) == [(0.25, 4.0), (0.5, 4.0)]
    assert observed.pids == 3


def test_what_no_sample_fell_into_is_learnt() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    at = Sample(working_set=3 * MIB, working_set_most=162 * MIB, pids_current=1, pids_most=40)
    each.sampled(at, 5.0)
    each.sampled(at.but(working_set_most=3 * MIB, pids_most=1), 10.0)
    each.finish(10.0)
    ((_, observed),) = learnt(recorder)
    assert (observed.memory, observed.pids) == (162 * MIB, 40)


def test_what_a_limit_cut_off_is_told_apart() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    at = Sample(working_set=250 * MIB, memory_limit=256 * MIB, memory_max=5, memory_oom_kill=1)
    each.memory(at)
    each.finish(10.0)
    ((_, observed),) = learnt(recorder)
    assert observed.memory_held == 256 * MIB
    assert observed.oom == 256 * MIB


def test_a_run_that_fails_at_its_start_teaches_nothing() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    each.sampled(Sample(working_set=1 * MIB), 0.1)
    each.finish(0.5)
    assert learnt(recorder) == []


def test_a_run_of_days_is_learnt_each_day() -> None:
    recorder = FakeRecorder()
    each = learning(recorder)
    for hour in range(1, 50):
        each.sampled(Sample(working_set=5 * MIB), hour * HOUR)
    each.finish(49 * HOUR)
    assert WINDOW == 24 * HOUR
    assert [observed.runs for _, observed in learnt(recorder)] == [0, 0, 1]


def test_a_name_that_was_made_up_is_learnt_by_its_command() -> None:
    recorder = FakeRecorder()
    each = learning(recorder, name=None)
    each.finish(10.0)
    ((key, _),) = learnt(recorder)
    assert key.startswith("command:make")


def test_what_is_known_comes_back_within_the_range() -> None:
    profile = learn(Profile.empty("name:fixer"), Observation(memory=400 * MIB), 1e9)
    recorder = FakeRecorder(profile)
    told: list[Prediction] = []
    bounds = {"memory": Range(64 * MIB, 300 * MIB)}
    learning(recorder, bounds=bounds).ask(told.append)
    assert told[0].forecasts[0].first == 300 * MIB
    assert recorder.asked[0][0] == "name:fixer"


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [({"predict": False}, {"memory": Range(1, 2)}), ({}, {})],
    ids=["switched off", "nothing moves"],
)
def test_nothing_is_asked_where_nothing_can_come_of_it(
    settings: dict[str, Any], bounds: dict[str, Range]
) -> None:
    recorder = FakeRecorder()
    told: list[Prediction] = []
    learning(recorder, bounds=bounds, **settings).ask(told.append)
    assert recorder.asked == []
    assert told == []


def test_a_predictor_that_fails_costs_a_line_and_the_builtin_stands() -> None:
    profile = learn(Profile.empty("name:fixer"), Observation(memory=100 * MIB), 1e9)
    recorder = FakeRecorder(profile)
    told: list[Prediction] = []
    lines: list[str] = []
    bounds = {"memory": Range(64 * MIB, 300 * MIB)}
    each = learning(recorder, bounds=bounds, warn=lines.append, predictor="nobody-has-this")
    each.ask(told.append)
    assert len(lines) == 1
    assert "nobody-has-this" in lines[0]
    assert told[0].forecasts[0].first is not None
