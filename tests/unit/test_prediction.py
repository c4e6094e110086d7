"""First limits from earlier runs: histograms that forget, what is demand and what was held, the bounds."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentres.model.limits import Range
from agentres.policy.histogram import GROWTH, SCALES, Histogram, ProfileError, bump
from agentres.policy.observer import Observation, Observer
from agentres.policy.prediction import (
    Prediction,
    PredictionSettings,
    Profile,
    keys,
    learn,
    predict,
)

MB, MIB, GIB = 1e6, 1 << 20, 1 << 30
NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86400.0
BOUNDS = {
    "memory": Range(32 * MIB, 64 * GIB),
    "cpu": Range(0.1, 64.0),
    "pids": Range(1, 100_000),
}

resources = st.sampled_from(sorted(SCALES))
values = st.floats(0, 1e13)
weights = st.floats(1e-3, 1e3)
times = st.floats(0, 4e9)


def taught(*observed: Observation, step: float = HOUR, half_life: float = DAY) -> Profile:
    profile = Profile.empty("name:a")
    for n, one in enumerate(observed):
        profile = learn(profile, one, NOW + n * step, half_life)
    return profile


def predicted(profile: Profile, **settings: float) -> Prediction:
    prediction = predict(profile, profile.last, BOUNDS, PredictionSettings(**settings))
    assert prediction is not None
    return prediction


def first(prediction: Prediction, resource: str) -> float:
    """The limit that it starts with."""
    return {each.resource: each.first for each in prediction.forecasts}[resource]


# Histograms.


@given(resource=resources, value=values)
def test_a_value_is_told_at_most_a_bucket_too_high_and_never_too_low(
    resource: str, value: float
) -> None:
    scale = SCALES[resource]
    seen = Histogram(resource).add([(value, 1.0)], NOW, DAY)
    told = seen.percentile(0.9)
    value = min(value, scale.most)
    assert told >= value * (1 - 1e-6)
    assert told <= max(value * GROWTH + scale.first, scale.first) * (1 + 1e-6)


@given(
    resource=resources,
    samples=st.lists(st.tuples(values, weights), min_size=1, max_size=30),
    fractions=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_a_percentile_has_its_part_of_the_weight_below_it(
    resource: str, samples: list[tuple[float, float]], fractions: list[float]
) -> None:
    seen = Histogram(resource).add(samples, NOW, DAY)
    low, high = sorted(fractions)
    assert seen.percentile(low) <= seen.percentile(high)
    below = math.fsum(w for _, end, w in seen.buckets() if end <= seen.percentile(high))
    assert below >= high * seen.total * (1 - 1e-6)
    less = math.fsum(w for _, end, w in seen.buckets() if end < seen.percentile(high))
    assert less <= high * seen.total * (1 + 1e-6)


@pytest.mark.parametrize(("resource", "first"), [("memory", 1e7), ("cpu", 0.01), ("pids", 1.0)])
def test_buckets_begin_small_and_grow_by_a_twentieth(resource: str, first: float) -> None:
    scale = SCALES[resource]
    widths = [scale.start(n + 1) - scale.start(n) for n in range(100)]
    assert widths[0] == pytest.approx(first)
    assert [b / a for a, b in pairwise(widths)] == pytest.approx([1.05] * 99)


def test_weights_halve_with_time() -> None:
    seen = (
        Histogram("memory").add([(100 * MB, 4.0)], NOW, DAY).add([(500 * MB, 1.0)], NOW + DAY, DAY)
    )
    assert [weight for _, _, weight in seen.buckets()] == pytest.approx([2.0, 1.0])
    assert seen.aged(NOW + 3 * DAY, DAY).total == pytest.approx(0.75)
    assert seen.percentile(0.6) < 120 * MB
    assert seen.percentile(0.7) > 490 * MB


def test_what_is_very_old_is_forgotten_once_there_is_something_new() -> None:
    seen = Histogram("memory").add([(100 * MB, 1.0)], NOW, DAY)
    assert seen.aged(NOW + 1e6 * DAY, DAY).total == 0
    seen = seen.add([(500 * MB, 1.0)], NOW + 20 * DAY, DAY)
    assert len(seen.buckets()) == 1
    assert seen.percentile(0.01) > 490 * MB


def test_what_is_new_is_kept_however_much_there_is_of_the_old() -> None:
    seen = Histogram("memory").add([(100 * MB, 1e5)], NOW, DAY)
    for n in range(5):
        seen = seen.add([(500 * MB, 1.0)], NOW + n, DAY)
    assert [weight for _, _, weight in seen.buckets()] == pytest.approx([1e5, 5.0], rel=1e-3)


def test_a_clock_that_was_set_back_makes_nothing_older() -> None:
    seen = Histogram("memory").add([(100 * MB, 1.0)], NOW + 365 * DAY, DAY)
    seen = seen.add([(500 * MB, 1.0)], NOW, DAY)
    assert seen.total == pytest.approx(2.0)
    assert seen.add([(500 * MB, 1.0)], NOW + DAY, DAY).total == pytest.approx(2.0)


@pytest.mark.parametrize("sample", [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, -1), (1, math.nan)])  # fmt: skip
def test_what_is_no_use_is_refused(sample: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected figures of use"):
        Histogram("cpu").add([sample], NOW, DAY)


@given(resource=resources, samples=st.lists(st.tuples(values, weights), max_size=30), now=times)
def test_a_histogram_comes_back_from_plain_numbers(
    resource: str, samples: list[tuple[float, float]], now: float
) -> None:
    seen = Histogram(resource).add(samples, now, DAY)
    assert Histogram.from_plain(resource, seen.to_plain()) == seen


@pytest.mark.parametrize(
    "plain",
    [
        [], [NOW, 1], [NOW, 1, 0.0], [NOW, 1, -1.0], [NOW, -1, 1.0], [NOW, 1.5, 1.0], [NOW, 1000, 1.0],
        [NOW, 1, 1.0, 1, 1.0], [math.nan, 1, 1.0], [NOW, 1, math.inf], [math.inf],
    ],
)  # fmt: skip
def test_garbage_is_no_histogram(plain: list[float]) -> None:
    with pytest.raises(ProfileError):
        Histogram.from_plain("memory", plain)


# Profiles.

level = st.none() | st.floats(0, 1e12)
spans = st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 1e5)), max_size=5).map(tuple)
observations = st.builds(
    Observation,
    memory=level,
    memory_held=level,
    oom=level,
    cpu=spans,
    cpu_held=spans,
    pids=level,
    pids_held=level,
    runs=st.integers(0, 1),
)


@given(observed=st.lists(observations, max_size=8), step=st.floats(-DAY, 30 * DAY))
def test_a_profile_comes_back_from_its_text(observed: list[Observation], step: float) -> None:
    profile = taught(*observed, step=step)
    text = profile.to_text()
    assert Profile.from_text("name:a", text) == profile
    assert len(text) < 40_000


FORMAT = "1"
LINES = taught(Observation(memory=1e8, cpu=((1.0, 1.0),), pids=3)).to_text().splitlines()


@pytest.mark.parametrize("at", range(len(LINES)), ids=[line[:10] for line in LINES])
def test_a_profile_with_a_line_of_something_else_is_none(at: int) -> None:
    with pytest.raises(ProfileError):
        Profile.from_text("name:a", "\n".join([*LINES[:at], "x", *LINES[at + 1 :]]))


@pytest.mark.parametrize("line", ["x", "", "1", "runs", "runs 1 2", "last x", "held", "use disk 1", "use memory", "held cpu x", LINES[1], LINES[-1]])  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, len(LINES)])
def test_a_line_too_many_is_not_passed_over(at: int, line: str) -> None:
    with pytest.raises(ProfileError):
        Profile.from_text("name:a", "\n".join([*LINES[:at], line, *LINES[at:]]) + "\n")


@pytest.mark.parametrize("name", ["runs", "capped", "ooms", "last"])
def test_a_number_is_that_of_its_line(name: str) -> None:
    text = "\n".join(f"{name} 7" if line.startswith(f"{name} ") else line for line in LINES)
    assert getattr(Profile.from_text("name:a", text), name) == 7


@example(text="2", line=0, whole=False)
@given(text=st.text(max_size=60), line=st.integers(0, 20), whole=st.booleans())
def test_garbage_is_no_profile(text: str, line: int, whole: bool) -> None:
    lines = LINES[:]
    if not whole:
        lines[line % len(lines)] = text.replace("\n", " ")
    try:
        known = Profile.from_text("name:a", text if whole else "\n".join(lines))
    except ProfileError:
        return
    # It may make sense by chance: then we could have written it, and what comes of it is a limit.
    assert not whole
    assert lines[0] == FORMAT
    assert Profile.from_text("name:a", known.to_text()) == known
    if (found := predict(known, NOW, BOUNDS)) is not None:
        for forecast in found.forecasts:
            bounds = BOUNDS[forecast.resource]
            assert bounds.least <= forecast.first <= bounds.most


@pytest.mark.parametrize("number", ["nan", "-1", "1.5", "1 2", "", "x", "1e999"])
@pytest.mark.parametrize("name", ["runs", "capped", "ooms"])
def test_a_count_that_is_none(name: str, number: str) -> None:
    text = taught(Observation(memory=1e8)).to_text()
    with pytest.raises(ProfileError):
        Profile.from_text("name:a", re.sub(f"(?m)^{name} .*$", f"{name} {number}", text))


# What is predicted.


def test_nothing_is_predicted_of_what_is_not_known() -> None:
    assert predict(Profile.empty("name:a"), NOW, BOUNDS) is None
    assert predict(taught(Observation()), NOW, BOUNDS) is None
    assert predict(taught(Observation(memory=1e8)), NOW, {}) is None
    only = predicted(taught(Observation(memory=1e8)))
    assert [forecast.resource for forecast in only.forecasts] == ["memory"]


def test_the_peaks_percentile_with_the_margin_on_top() -> None:
    runs = [Observation(memory=200 * MB)] * 8 + [Observation(memory=900 * MB)] * 2
    # A half-life so long that all weigh the same.
    assert first(
        predicted(taught(*runs, half_life=365 * DAY), percentile=0.75), "memory"
    ) == pytest.approx(200 * MB * 1.15, rel=0.09)
    p90 = first(predicted(taught(*runs, half_life=365 * DAY)), "memory")
    assert p90 == pytest.approx(900 * MB * 1.15, rel=0.06)
    assert p90 % MIB == 0
    bare = predicted(taught(*runs, half_life=365 * DAY), margin=0.0, percentile=0.5)
    assert first(bare, "memory") == pytest.approx(200 * MB, rel=0.09)


def test_newer_runs_count_more() -> None:
    runs = [Observation(memory=900 * MB)] * 10 + [Observation(memory=200 * MB)] * 10
    assert first(predicted(taught(*runs, step=DAY)), "memory") == pytest.approx(230 * MB, rel=0.09)
    late = taught(*runs, step=DAY, half_life=1000 * DAY)
    assert first(predicted(late, half_life=1000 * DAY), "memory") == pytest.approx(
        1035 * MB, rel=0.06
    )


def test_every_run_weighs_the_same_however_long() -> None:
    long = Observation(cpu=((0.1, 100_000.0),))
    short = Observation(cpu=((2.0, 10.0),))
    assert first(predicted(taught(long, short, step=0.0)), "cpu") == pytest.approx(2.3, rel=0.06)
    assert predicted(taught(long, short, step=0.0)).weight == pytest.approx(2.0)


def test_what_is_old_weighs_less_and_is_still_predicted() -> None:
    profile = taught(Observation(memory=200 * MB))
    then = predict(profile, NOW, BOUNDS)
    later = predict(profile, NOW + 10 * DAY, BOUNDS)
    much_later = predict(profile, NOW + 1e6 * DAY, BOUNDS)
    assert then is not None
    assert later is not None
    assert much_later is not None
    assert (then.weight, later.weight) == (1.0, pytest.approx(2**-10))
    assert first(then, "memory") == first(later, "memory") == first(much_later, "memory")


@given(
    observed=st.lists(observations, min_size=1, max_size=6),
    ends=st.lists(st.integers(1, 2**40), min_size=2, max_size=2, unique=True),
    ahead=st.floats(-DAY, 400 * DAY),
    settings=st.builds(
        PredictionSettings,
        half_life=st.floats(60, 365 * DAY),
        percentile=st.floats(0.01, 1),
        margin=st.floats(0, 1),
    ),
)
def test_a_prediction_is_within_its_bounds(
    observed: list[Observation], ends: list[int], ahead: float, settings: PredictionSettings
) -> None:
    least, most = sorted(ends)
    profile = taught(*observed, half_life=settings.half_life)
    bounds = dict.fromkeys(SCALES, Range(least, most))
    prediction = predict(profile, profile.last + ahead, bounds, settings)
    if prediction is None:
        return
    for forecast in prediction.forecasts:
        assert least <= forecast.first <= most
        assert 0 <= forecast.held <= 1 + 1e-9
        assert forecast.target <= forecast.wanted
        if forecast.first < most:
            assert forecast.first >= forecast.wanted * (1 - 1e-6) - 0.005
    assert len(prediction.why) == len(prediction.forecasts)


def test_why_says_the_figures() -> None:
    runs = [Observation(memory=200 * MB)] * 4
    assert predicted(taught(*runs)).why == (
        "memory 237 MiB: 90% of the peaks of 4 runs took at most 206 MiB, and a margin of 15%",
    )
    bounds = {"memory": Range(32 * MIB, 128 * MIB)}
    prediction = predict(taught(Observation(memory=200 * MB)), NOW, bounds)
    assert prediction is not None
    assert first(prediction, "memory") == 128 * MIB
    assert prediction.why[0].endswith("237 MiB is beyond the most that it may have")
    held = predicted(taught(Observation(memory=200 * MB), Observation(oom=300 * MIB), step=0.0))
    assert "; 50% of that was held by a limit" in held.why[0]


# What was held is no demand.


@pytest.mark.parametrize(
    ("resource", "limit", "needed"),
    [
        ("memory", 256 * MIB, 356 * MIB), ("memory", GIB, 1.2 * GIB), ("cpu", 0.2, 0.3),
        ("cpu", 2.0, 2.4), ("pids", 20, 36), ("pids", 512, 614.4),
    ],
)  # fmt: skip
def test_a_bump(resource: str, limit: float, needed: float) -> None:
    assert bump(resource, limit) == pytest.approx(needed)


def test_a_peak_at_the_limit_counts_as_more_than_the_limit_and_is_kept_apart() -> None:
    for held in (
        Observation(memory=255 * MIB, memory_held=256 * MIB),
        Observation(memory=100 * MIB, oom=256 * MIB),
        Observation(oom=256 * MIB),
    ):
        profile = taught(held)
        assert profile.use["memory"].weights == {}
        assert profile.held["memory"].percentile(1.0) == pytest.approx(356 * MIB, rel=0.06)
        assert profile.capped == 1
    assert taught(Observation(oom=256 * MIB)).ooms == 1


def test_a_peak_above_the_limit_that_once_held_it_is_demand() -> None:
    profile = taught(Observation(memory=700 * MIB, memory_held=256 * MIB))
    assert profile.held["memory"].weights == {}
    assert profile.capped == 0
    killed = taught(Observation(memory=300 * MIB, oom=256 * MIB))
    assert killed.use["memory"].weights == {}
    assert killed.held["memory"].percentile(1.0) == pytest.approx(356 * MIB, rel=0.06)
    assert taught(Observation(memory=700 * MIB, oom=256 * MIB)).held["memory"].weights == {}


def test_kills_at_a_fixed_limit_do_not_drive_the_prediction_up() -> None:
    """kubernetes/autoscaler#9521: there each kill bumped what the one before had bumped."""
    runs = [Observation(memory=255 * MIB, memory_held=256 * MIB, oom=256 * MIB)] * 200
    assert first(predicted(taught(*runs, step=60.0)), "memory") == pytest.approx(
        356 * MIB * 1.15, rel=0.06
    )


def test_a_run_with_room_outweighs_old_kills() -> None:
    kills = [Observation(oom=4 * GIB)] * 3
    calm = [Observation(memory=200 * MIB)] * 6
    assert first(predicted(taught(*kills, *calm, step=DAY)), "memory") == pytest.approx(
        230 * MIB, rel=0.07
    )


def test_throttled_time_counts_as_more_than_the_limit() -> None:
    profile = taught(Observation(cpu=((0.5, 60.0),), cpu_held=((1.0, 40.0),)))
    assert profile.held["cpu"].total == pytest.approx(0.4)
    assert profile.capped == 1
    assert first(predicted(profile), "cpu") == pytest.approx(1.2 * 1.15, rel=0.06)
    rarely = taught(Observation(cpu=((0.5, 95.0),), cpu_held=((1.0, 5.0),)))
    assert rarely.capped == 0
    assert first(predicted(rarely), "cpu") == pytest.approx(0.5 * 1.15, rel=0.06)


# An observer.


def test_an_observer_keeps_the_peaks() -> None:
    observer = Observer()
    for use in (100.0, 300.0, 200.0):
        observer.memory(use * MIB, 512 * MIB)
        observer.pids(use / 10, 512)
    assert observer.take() == Observation(memory=300 * MIB, pids=30.0)
    assert observer.take() == Observation()
    observer.pids(3)
    assert observer.take(ended=False) == Observation(pids=3, runs=0)


def test_an_observer_tells_a_full_limit_from_page_cache() -> None:
    observer = Observer()
    observer.memory(100 * MIB, 512 * MIB, hit=True)  # the rest is cache
    assert observer.take().memory_held is None
    observer.memory(500 * MIB, 512 * MIB)
    assert observer.take().memory_held is None
    observer.memory(500 * MIB, 512 * MIB, hit=True)
    assert observer.take() == Observation(memory=500 * MIB, memory_held=512 * MIB)
    observer.memory(500 * MIB, hit=True)
    assert observer.take().memory_held is None


def test_a_limit_that_was_raised_holds_no_more() -> None:
    observer = Observer()
    observer.memory(500 * MIB, 512 * MIB, hit=True)
    observer.memory(505 * MIB, 768 * MIB)
    assert observer.take() == Observation(memory=505 * MIB)
    observer.pids(64, 64, refused=True)
    observer.pids(60, 64)
    assert observer.take() == Observation(pids=64, pids_held=64)


def test_a_kill_is_kept_whatever_comes_after() -> None:
    observer = Observer()
    observer.killed(256 * MIB)
    observer.killed(128 * MIB)
    observer.memory(10 * MIB, GIB)
    assert observer.take() == Observation(memory=10 * MIB, oom=256 * MIB)


def test_an_observer_splits_the_time_at_the_limit_from_the_rest() -> None:
    observer = Observer()
    observer.cpu(0.8, 10.0, 1.0, 0.25)
    observer.cpu(0.8, 10.0, 1.0)
    observer.cpu(0.8, 10.0, None, 0.5)  # throttled by somebody above us: nobody knows at what
    assert observer.take() == Observation(cpu=((0.8, 27.5),), cpu_held=((1.0, 2.5),))


@given(
    looks=st.lists(
        st.tuples(st.floats(0, 64), st.floats(0, 100), st.none() | st.floats(0.1, 64), st.floats(-1, 2)),
        max_size=60,
    )
)  # fmt: skip
def test_an_observer_stays_small_and_loses_no_time(
    looks: list[tuple[float, float, float | None, float]],
) -> None:
    observer = Observer()
    for cores, seconds, limit, throttled in looks:
        observer.cpu(cores, seconds, limit, throttled)
    observed = observer.take()
    spent = math.fsum(seconds for _, seconds in (*observed.cpu, *observed.cpu_held))
    assert spent == pytest.approx(math.fsum(seconds for _, seconds, *_ in looks))
    assert len(observed.cpu) + len(observed.cpu_held) < 250


# Whose profile it is.


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("fixer", ["./agent"], ("name:fixer", "command:agent")),
        (None, ["/usr/bin/python3", "-u", "src/agent.py", "--task", "3"], ("command:python3 agent.py",)),
        (None, ["python", "-m", "my_agent"], ("command:python my_agent",)),
        (None, ["./agent", "--task", "17"], ("command:agent",)),
        (None, ["timeout", "300", "python", "agent.py"], ("command:timeout python",)),
        (None, ["sh", "-c", "echo a; echo b"], ("command:sh",)),
        (None, ["sh", "-c", "x" * 65], ("command:sh",)),
        (None, ["cat", "", "-"], ("command:cat",)),
        (None, ["/opt/agent/", "dir/"], ("command:agent dir",)),
        (None, ["/", "/"], ("command:/ /",)),
        ("fixer", [], ("name:fixer",)),
        (None, [], ()),
    ],
)  # fmt: skip
def test_keys(name: str | None, command: list[str], expected: tuple[str, ...]) -> None:
    assert keys(name, command) == expected
