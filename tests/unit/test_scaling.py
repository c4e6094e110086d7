"""Elastic limits in simulated time: each rule by example, and what holds for every load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentres.model.limits import Range
from agentres.policy.scaling import (
    AGGRESSIVE,
    BALANCED,
    CONSERVATIVE,
    FROZEN,
    PHILOSOPHIES,
    ROOM,
    SETTLE,
    Move,
    Philosophy,
    Scaler,
)

MIB = 1 << 20
PAGE = 4096
MEMORY = Range(64 * MIB, 8192 * MIB)
GRAINS = {"memory": PAGE, "cpu": 0.01, "pids": 1, "io_read": 1}
RANGES = {
    "memory": MEMORY,
    "cpu": Range(0.1, 16.0),
    "pids": Range(16, 4096),
    "io_read": Range(10**6, 10**9),
}
MOVING = [each for each in PHILOSOPHIES.values() if each.moves]
LOWERINGS = ("give_back", "down")


class Life:
    """A scaler, its limit, and all of its moves; whatever it asks for is done."""

    def __init__(
        self,
        philosophy: Philosophy = BALANCED,
        limit: float = 256 * MIB,
        resource: str = "memory",
        range: Range | None = None,
    ) -> None:
        self.now = 0.0
        self.limit = limit
        self.range = range or RANGES[resource]
        self.scaler = Scaler(resource, philosophy, self.range, 0.0, GRAINS[resource])
        self.moves: list[Move] = []

    def look(self, use: float | None, **rest: Any) -> Move | None:
        move = self.scaler.observe(self.now, use, self.limit, **rest)
        if move is not None:
            assert (move.before, move.use) == (self.limit, use)
            self.limit = move.after
            self.scaler.moved(self.now, move, move.after)
            self.moves.append(move)
        return move

    def hold(self, use: float, seconds: float, every: float = 1.0, **rest: Any) -> list[Move]:
        """The same use for a while: the moves of that time."""
        before, end = len(self.moves), self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + every)
            self.look(use, **rest)
        return self.moves[before:]

    def rules(self) -> list[str]:
        return [move.rule for move in self.moves]


# Upward.


def test_a_tripwire_raises_at_once_as_often_as_it_is_crossed() -> None:
    life = Life()
    for use, after in ((192, 384), (288, 576), (432, 864)):
        move = life.look(use * MIB, event=True)
        assert move is not None
        assert (move.rule, move.after) == ("burst", after * MIB)


def test_a_raise_takes_as_many_steps_as_the_use_asks_for() -> None:
    life = Life()
    move = life.look(1000 * MIB, event=True)
    assert move is not None
    assert move.after == pytest.approx(256 * MIB * 1.5**5, abs=PAGE)  # 1.5**4 is reached to 77 %
    assert move.why == "use of 1000 MiB reached 75% of 256 MiB"


def test_a_raise_ends_at_the_most_where_nothing_wakes() -> None:
    life = Life(range=Range(64 * MIB, 500 * MIB))
    life.look(450 * MIB, event=True)
    assert life.limit == 500 * MIB
    assert life.scaler.wake_at(life.limit) is None
    assert life.look(500 * MIB, event=True) is None


@pytest.mark.parametrize("resource", ["memory", "pids"])
def test_where_a_limit_makes_work_fail_a_sample_raises_at_once_as_well(resource: str) -> None:
    most = RANGES[resource].most
    life = Life(limit=most / 8, resource=resource)
    life.look(most / 8)
    life.look(life.limit)
    assert life.rules() == ["burst", "burst"]


@pytest.mark.parametrize("resource", ["cpu", "io_read"])
def test_where_a_limit_only_takes_time_a_sample_waits_for_the_cooldown(resource: str) -> None:
    most = RANGES[resource].most
    life = Life(limit=most / 8, resource=resource)
    moves = life.hold(most / 8, 59)
    assert [move.rule for move in moves] == ["up"]
    life.hold(life.limit, 10)
    assert life.rules() == ["up", "up"]
    assert life.moves[1].at == life.moves[0].at + 60


def test_throttling_raises_at_once_whatever_the_mean_of_its_use() -> None:
    life = Life(limit=1.0, resource="cpu")
    assert life.look(0.3, throttled=0.04) is None
    move = life.look(0.3, throttled=0.2)
    assert move is not None
    assert (move.rule, move.after) == ("burst", 1.5)
    assert move.why == "the limit of 1.00 cores was felt, at a use of 0.30 cores"


def test_a_throttled_limit_is_not_lowered_again_for_a_low_mean() -> None:
    life = Life(limit=1.0, resource="cpu")
    life.look(0.3, throttled=0.2)
    life.hold(0.3, 3600, throttled=0.2)
    assert all(move.rule == "burst" for move in life.moves)


def test_a_refused_fork_raises_whatever_is_left_by_then() -> None:
    life = Life(limit=64, resource="pids")
    move = life.look(3, event=True)
    assert move is not None
    assert move.after == 96


def test_a_memory_event_of_another_cause_raises_nothing() -> None:
    assert Life().look(100 * MIB, event=True) is None


def test_without_bursts_every_raise_waits_and_there_is_no_tripwire() -> None:
    life = Life(BALANCED.but(burst=False))
    assert life.scaler.wake_at(life.limit) is None
    life.look(200 * MIB, event=True)
    assert life.rules() == ["up"]
    life.hold(300 * MIB, 59, event=True)
    assert life.rules() == ["up"]
    life.hold(300 * MIB, 2, event=True)
    assert life.rules() == ["up", "up"]


@pytest.mark.parametrize("limit", [1, 16, 31, 33, 48, 64, 100, 128, 256, 4096])
def test_between_tripwire_and_limit_there_is_room_or_a_raise_is_due_now(limit: int) -> None:
    life = Life(limit=limit * MIB, range=Range(MIB, 8192 * MIB))
    wake = life.scaler.wake_at(life.limit)
    assert wake is not None
    if wake == 0:
        life.look(0)
        wake = life.scaler.wake_at(life.limit)
        assert wake is not None
        assert wake > 0
    assert life.limit - wake >= ROOM
    assert wake <= 0.75 * life.limit


# Downward.


def test_a_burst_is_trimmed_once_it_stands_then_given_back_when_it_is_over() -> None:
    life = Life()
    life.look(192 * MIB, event=True)  # to 384
    life.look(290 * MIB, event=True)  # to 576
    life.hold(300 * MIB, 9)
    settled = life.moves[-1]
    assert (settled.rule, settled.at) == ("settle", 1 + SETTLE)  # it rose until 1
    assert settled.after == pytest.approx(300 * MIB / BALANCED.aim, abs=PAGE)
    assert settled.why == "the burst went up to 300 MiB"
    life.hold(100 * MIB, 60)
    given_back = life.moves[-1]
    assert (given_back.rule, given_back.at) == ("give_back", 20)  # since 10 no more than that
    assert given_back.after == pytest.approx(100 * MIB / BALANCED.aim, abs=PAGE)
    assert "at most 100 MiB of 429 MiB was used for 10.0 s" in given_back.why
    assert life.rules() == ["burst", "burst", "settle", "give_back"]


def test_what_no_burst_brought_is_lowered_at_a_quarter_of_it_only() -> None:
    life = Life(limit=1000 * MIB)
    life.hold(260 * MIB, 600)
    assert life.moves == []
    life.hold(240 * MIB, 600)
    assert life.rules() == ["down"]
    assert life.moves[0].at == 601 + BALANCED.cooldown
    assert life.limit == pytest.approx(240 * MIB / BALANCED.aim, abs=PAGE)
    assert life.moves[0].why.endswith("25% or less")


def test_what_a_sample_brought_is_no_loan_and_stands_for_the_cooldown() -> None:
    life = Life(limit=1.0, resource="cpu")
    life.now = 5.0
    assert life.look(0.78) is not None
    life.now = 6.0
    while life.now < 5.0 + BALANCED.cooldown:
        assert life.look(0.1) is None
        life.now += 1.0
    assert life.moves[0].rule == "up"


def test_a_limit_that_somebody_else_wrote_is_no_loan() -> None:
    life = Life()
    life.look(200 * MIB, event=True)
    life.limit = 800 * MIB
    life.hold(210 * MIB, 600)
    assert life.rules() == ["burst"]
    life.hold(100 * MIB, 600)
    assert life.rules() == ["burst", "down"]


def test_a_lowering_that_was_regretted_makes_the_next_one_wait_longer() -> None:
    life = Life(BALANCED.but(patience=4.0))

    def wave() -> None:
        life.look(500 * MIB, event=True)
        life.hold(500 * MIB, 5)
        life.hold(100 * MIB, 300)

    wave()
    life.hold(100 * MIB, 100)  # nobody regrets the first one
    for _ in range(6):
        life.look(500 * MIB, event=True)
        life.hold(100 * MIB, 1)
        while life.moves[-1].rule != "give_back":
            life.hold(100 * MIB, 1)
    lowered = [move.at for move in life.moves if move.rule == "give_back"]
    apart = [later - earlier for earlier, later in itertools.pairwise(lowered[1:])]
    assert apart[0] == pytest.approx(120, abs=2)
    assert apart[1:] == pytest.approx([240] * 4, abs=2)
    life.hold(100 * MIB, 1000)
    wave()  # the last one was not regretted
    wave()
    lowered = [move.at for move in life.moves if move.rule == "give_back"]
    assert lowered[-1] - lowered[-2] >= 60


def test_memory_keeps_the_margin_where_that_is_more_than_the_aim() -> None:
    life = Life(BALANCED.but(up=0.95, aim=0.9, margin=0.5))
    life.look(1000 * MIB, event=True)
    life.hold(1000 * MIB, 4)
    life.hold(400 * MIB, 100)
    assert life.limit == pytest.approx(600 * MIB, abs=PAGE)


def test_a_window_that_nobody_looked_into_is_taken_as_it_was_before() -> None:
    life = Life()
    life.look(500 * MIB, event=True)
    life.hold(500 * MIB, 4)
    life.now += 1000
    assert life.look(100 * MIB) is None
    life.now += 10
    move = life.look(100 * MIB)
    assert move is not None
    assert move.rule == "give_back"


# What came of a move.


def test_a_raise_that_was_refused_is_asked_for_again_in_a_second() -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    for _ in range(3):
        move = scaler.observe(0.0, 250 * MIB, 256 * MIB, event=True)
        assert move is not None
        scaler.moved(0.0, move, move.before)
        assert scaler.due(0.0) == 1.0
    assert scaler.observe(1.0, 100 * MIB, 256 * MIB) is None
    assert scaler.due(1.0) > 1.0


def test_a_raise_that_was_granted_in_part_stands_and_the_rest_is_asked_for() -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    move = scaler.observe(0.0, 250 * MIB, 256 * MIB, event=True)
    assert move is not None
    scaler.moved(0.0, move, 300 * MIB)
    assert scaler.due(0.0) == 1.0
    again = scaler.observe(1.0, 250 * MIB, 300 * MIB)
    assert again is not None
    assert again.after == 450 * MIB


@pytest.mark.parametrize("granted", [300, 320, 330])
def test_what_is_refused_for_long_is_asked_for_once_a_second(granted: int) -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    move = scaler.observe(0.0, 250 * MIB, 256 * MIB, event=True)
    assert move is not None
    scaler.moved(0.0, move, granted * MIB)
    now, asked = 0.0, 0
    while now < 60:
        now += scaler.due(now)
        asked += 1
        move = scaler.observe(now, 250 * MIB, granted * MIB)
        assert move is not None
        scaler.moved(now, move, move.before)
    assert asked == 60


def test_a_lowering_that_was_refused_waits_for_the_cooldown() -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    asked = []
    for second in range(200):
        move = scaler.observe(float(second), 100 * MIB, 1024 * MIB)
        if move is not None:
            asked.append(second)
            scaler.moved(float(second), move, move.before)
    assert asked == [60, 120, 180]


def test_what_is_not_known_changes_nothing() -> None:
    life = Life()
    assert life.look(None, event=True) is None
    assert life.scaler.observe(1.0, 100 * MIB, None) is None
    life.look(250 * MIB, event=True)
    due = life.scaler.due(0.0)
    assert life.scaler.observe(0.0, None, life.limit, throttled=1.0, event=True) is None
    assert life.scaler.due(0.0) == due


def test_it_wants_to_be_asked_at_once_then_when_a_rule_may_hold() -> None:
    life = Life()
    assert life.scaler.due(0.0) == 0
    life.look(150 * MIB)
    assert life.scaler.due(0.0) == math.inf
    life.look(250 * MIB, event=True)
    assert life.scaler.due(1.0) == SETTLE - 1


# Philosophies.


def test_what_is_built_in_makes_sense_and_has_its_name() -> None:
    for name, philosophy in PHILOSOPHIES.items():
        assert (philosophy.name, philosophy.wrong()) == (name, None)
    assert (BALANCED.up, BALANCED.down, BALANCED.cooldown) == (0.75, 0.25, 60)
    assert CONSERVATIVE.give_back >= 60
    assert AGGRESSIVE.give_back < BALANCED.give_back < CONSERVATIVE.give_back


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"up": 1.0}, "up"),
        ({"up": math.nan}, "up"),
        ({"down": -0.1}, "down"),
        ({"down": 0.8}, "down"),
        ({"down": 0.75}, "down"),
        ({"aim": 0.75}, "aim"),
        ({"aim": 0.25}, "aim"),
        ({"step": 1.0}, "step"),
        ({"step": 0.5}, "step"),
        ({"step": math.inf}, "step"),
        ({"step": 3.0}, "step"),
        ({"cooldown": 0.0}, "cooldown"),
        ({"cooldown": math.inf}, "cooldown"),
        ({"give_back": 0.0}, "give_back"),
        ({"patience": 0.5}, "patience"),
        ({"margin": -0.1}, "margin"),
        ({"margin": math.nan}, "margin"),
    ],
)
def test_what_makes_no_sense_is_told_by_its_key(changed: dict[str, float], key: str) -> None:
    told = BALANCED.but(**changed).wrong()
    assert told is not None
    assert told[0] == key


def test_never_giving_back_makes_sense() -> None:
    assert BALANCED.but(give_back=math.inf).wrong() is None


# For every load.

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
    for step, share, throttled, event in looks:
        life.now += step
        use = min(between.most * share**3, life.limit)
        yield life, life.look(use, throttled=throttled if resource == "cpu" else 0.0, event=event)


@given(resources, any_philosophy, looks)
def test_every_move_is_a_move_in_its_direction_within_the_range(
    resource: str, philosophy: Philosophy, looks: list[tuple[float, float, float, bool]]
) -> None:
    assert philosophy.wrong() is None
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
                if life.look(min(use, life.limit), event=True) is None:
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
    life.look(use, event=True)
    assert life.limit <= 1e12
