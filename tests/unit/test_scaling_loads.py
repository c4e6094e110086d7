"""Elastic limits in simulated time: what holds for every load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scaler_life import GRAINS, MEMORY, MIB, RANGES, Life, is_sound

from agentres.model.limits import Range
from agentres.policy.scaling import BALANCED, FROZEN, PHILOSOPHIES, Move, Philosophy, Scaler

MOVING = [each for each in PHILOSOPHIES.values() if each.moves]
LOWERINGS = ("give_back", "down")


shares = st.floats(0, 1, allow_nan=False)
steps = st.floats(0, 45, allow_nan=False)  # a step of 0 is a clock that stands still
looks = st.lists(st.tuples(steps, shares, shares, st.booleans()), min_size=1, max_size=150)


@st.composite
def philosophies(draw: st.DrawFn) -> Philosophy:
    up = draw(st.floats(0.3, 0.95))
    down = draw(st.floats(0, up * 0.6))
    return Philosophy(
        "drawn",
        up=up,
        down=down,
        aim=draw(st.floats(down + (up - down) * 0.1, up * 0.98)),
        step=draw(st.floats(1.05, min(10, up / down * 0.99 if down > 0.03 else 10))),
        cooldown=draw(st.floats(1, 300)),
        burst=draw(st.booleans()),
        give_back=draw(st.one_of(st.just(math.inf), st.floats(1, 300))),
        patience=draw(st.floats(1, 8)),
        margin=draw(st.floats(0, 1)),
    )


any_philosophy = st.one_of(st.sampled_from(MOVING), philosophies())
resources = st.sampled_from(sorted(RANGES))


def lives(
    resource: str, philosophy: Philosophy, looks: Iterable[tuple[float, float, float, bool]]
) -> Iterator[tuple[Life, Move | None]]:
    """A load between nothing and more than the most; nobody uses more than the limit."""
    between = RANGES[resource]
    life = Life(philosophy, between.least * 4, resource)
    for step, share, throttled, notified in looks:
        life.now += step
        use = min(between.most * share**3, life.limit)
        yield (
            life,
            life.look(use, throttled=throttled if resource == "cpu" else 0.0, notified=notified),
        )


@given(resources, any_philosophy, looks)
def test_every_move_is_a_move_in_its_direction_within_the_range(
    resource: str, philosophy: Philosophy, looks: list[tuple[float, float, float, bool]]
) -> None:
    assert is_sound(philosophy)
    for life, move in lives(resource, philosophy, looks):
        if move is None:
            continue
        assert life.range.least <= move.after <= life.range.most
        grains = move.after / GRAINS[resource]
        assert grains == pytest.approx(round(grains)) or move.after in (
            life.range.least,
            life.range.most,
        )
        if move.rule in ("burst", "up"):
            assert move.after > move.before
            height = life.scaler.wake_at(move.after)
            assert height is None or move.use < height
        else:
            assert move.after < move.before
            height = life.scaler.wake_at(move.after)
            assert height is None or move.use < height
            assert move.use <= move.after * philosophy.aim * 1.001
            if resource == "memory":
                assert move.after >= min(move.use * (1 + philosophy.margin), life.range.most)


@given(resources, any_philosophy, looks)
def test_between_two_lowerings_there_is_the_cooldown_and_raises_only_climb(
    resource: str, philosophy: Philosophy, looks: list[tuple[float, float, float, bool]]
) -> None:
    lowered, trimmed, stood = -math.inf, -math.inf, 0.0
    for life, move in lives(resource, philosophy, looks):
        if move is None:
            continue
        if move.rule in LOWERINGS:
            assert life.now - lowered >= philosophy.cooldown
            lowered, stood = life.now, 0.0
        elif move.rule == "settle":
            # Trimmed, and yet to more than stood before the raise.
            assert move.after > stood
            assert life.now - trimmed >= philosophy.cooldown / 4
            trimmed = life.now
        else:
            assert move.before >= stood
            stood = move.before


@given(resources, any_philosophy, st.floats(1, 400), shares, shares, st.floats(0.05, 0.95))
def test_a_square_wave_of_any_period_does_not_make_it_flap(
    resource: str, philosophy: Philosophy, period: float, low: float, high: float, duty: float
) -> None:
    between = RANGES[resource]
    life = Life(philosophy, between.least * 4, resource)
    low, high = sorted((between.most * low, between.most * high))
    end = 1800.0
    while life.now < end:
        for use, span in ((high, period * duty), (low, period * (1 - duty))):
            # The kernel tells of what comes that high, and of nothing else.
            while (height := life.scaler.wake_at(life.limit)) is not None and use >= height:
                if life.look(min(use, life.limit), notified=True) is None:
                    break
            life.hold(min(use, life.limit), span, every=max(span / 3, 0.3))
    lowerings = sum(move.rule in LOWERINGS for move in life.moves)
    assert lowerings <= end / philosophy.cooldown + 1
    # Two heights: after each lowering one climb, with its trimming.
    climb = math.log(between.most / between.least) / math.log(philosophy.step) + 2
    settles = sum(move.rule == "settle" for move in life.moves)
    assert len(life.moves) - lowerings - settles <= (lowerings + 1) * climb
    assert settles <= end / philosophy.cooldown * 4 + 1


@given(st.sampled_from(MOVING), st.integers(0, 2**32), st.sampled_from(["saw", "noise"]))
def test_neither_a_sawtooth_nor_noise_makes_it_flap(
    philosophy: Philosophy, seed: int, kind: str
) -> None:
    dice = Random(seed)
    life = Life(philosophy)
    period, low, high = dice.uniform(5, 300), dice.uniform(0, 2000), dice.uniform(0, 2000)
    while life.now < 3600:
        life.now += 1.0
        share = life.now % period / period if kind == "saw" else dice.random()
        life.look((low + (high - low) * share) * MIB)
    at = [move.at for move in life.moves if move.rule in LOWERINGS]
    assert all(b - a >= philosophy.cooldown for a, b in itertools.pairwise(at))
    # After the first climb, what moves is what was lowered: up again, trimmed, up again.
    climb = math.log(MEMORY.most / MEMORY.least) / math.log(philosophy.up / philosophy.aim)
    assert len(life.moves) <= (len(at) + 1) * (2 * climb + 2)
    trims = [move.at for move in life.moves if move.rule == "settle"]
    assert all(b - a >= philosophy.cooldown / 4 for a, b in itertools.pairwise(trims))


@given(resources, any_philosophy, looks, shares)
def test_a_constant_use_comes_to_rest_and_then_nothing_moves_or_is_asked(
    resource: str,
    philosophy: Philosophy,
    looks: list[tuple[float, float, float, bool]],
    share: float,
) -> None:
    for life, _ in lives(resource, philosophy, looks):
        last = life
    use = min(RANGES[resource].most * share**3, last.limit)
    last.look(use)
    asked = 0
    while (due := last.scaler.due(last.now)) < math.inf:
        asked += 1
        assert asked < 300, "it never comes to rest"
        last.now += due
        last.look(use)
    rested = last.limit
    last.hold(use, 4000, every=50)
    assert last.limit == rested


answers = st.sampled_from(["made", "half", "refused"])


@example("memory", BALANCED, [(0.0, 1.0, "made")], "refused")
@given(resources, any_philosophy, st.lists(st.tuples(steps, shares, answers), max_size=40), answers)
def test_whatever_becomes_of_its_moves_it_is_not_asked_all_the_time(
    resource: str,
    philosophy: Philosophy,
    looks: list[tuple[float, float, str]],
    always: str,
) -> None:
    between = RANGES[resource]
    scaler = Scaler(resource, philosophy, between, 0.0, GRAINS[resource])
    now, limit, use = 0.0, between.least * 4, 0.0

    def look(answer: str) -> float:
        move = scaler.observe(now, min(use, limit), limit)
        if move is None:
            return limit
        after = {"made": move.after, "half": (move.before + move.after) / 2, "refused": limit}
        scaler.moved(now, move, after[answer])
        return after[answer]

    for step, share, answer in looks:
        now, use = now + step, between.most * share**3
        limit = look(answer)
    asked, end = 0, now + 100
    while (now := now + scaler.due(now)) < end:
        asked += 1
        limit = look(always)
    # Once a second for what is refused, and what the rules need to come to rest.
    assert asked <= 100 + 60


@given(resources, looks)
def test_frozen_never_moves(resource: str, looks: list[tuple[float, float, float, bool]]) -> None:
    for life, move in lives(resource, FROZEN, looks):
        assert move is None
        assert life.scaler.due(life.now) == math.inf
        assert life.scaler.wake_at(life.limit) is None


@given(any_philosophy, st.lists(shares, min_size=2, max_size=50))
def test_a_clock_that_stands_still_or_falls_back_lowers_nothing(
    philosophy: Philosophy, uses: list[float]
) -> None:
    life = Life(philosophy)
    life.now = 1000.0
    life.look(life.limit / 2)
    for use in uses:
        life.now = min(life.now, 1000.0 - use)
        life.look(use * life.limit)
    assert not {"settle", *LOWERINGS} & set(life.rules())


@given(any_philosophy, st.floats(1, 1e12), st.floats(0, 1e12))
def test_a_raise_ends_whatever_is_asked(philosophy: Philosophy, limit: float, use: float) -> None:
    life = Life(philosophy, limit, range=Range(1, 1e12))
    life.look(use, notified=True)
    assert life.limit <= 1e12
