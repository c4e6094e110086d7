"""Elastic limits in simulated time: each rule by example."""

from __future__ import annotations

import itertools
import math

import pytest
from scaler_life import MEMORY, MIB, PAGE, RANGES, Life, is_sound

from agentres.model.limits import Range
from agentres.policy.scaling import (
    AGGRESSIVE,
    BALANCED,
    CONSERVATIVE,
    HEADROOM,
    PHILOSOPHIES,
    SETTLE,
    Scaler,
)
from agentres.policy.tripwire import NEAR

# Upward.


def test_a_tripwire_raises_at_once_as_often_as_it_is_crossed() -> None:
    life = Life()
    for use, after in ((192, 384), (288, 576), (432, 864)):
        move = life.look(use * MIB, notified=True)
        assert move is not None
        assert (move.rule, move.after) == ("burst", after * MIB)


def test_a_raise_takes_as_many_steps_as_the_use_asks_for() -> None:
    life = Life()
    move = life.look(1000 * MIB, notified=True)
    assert move is not None
    assert move.after == pytest.approx(256 * MIB * 1.5**5, abs=PAGE)  # 1.5**4 is reached to 77 %
    assert move.why == "use of 1000 MiB reached 75% of 256 MiB"


def test_a_raise_ends_at_the_most_where_nothing_wakes() -> None:
    life = Life(range=Range(64 * MIB, 500 * MIB))
    life.look(450 * MIB, notified=True)
    assert life.limit == 500 * MIB
    assert life.scaler.wake_at(life.limit) is None
    assert life.look(500 * MIB, notified=True) is None


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
    move = life.look(3, notified=True)
    assert move is not None
    assert move.after == 96


def test_a_memory_event_of_another_cause_raises_nothing() -> None:
    assert Life().look(100 * MIB, notified=True) is None


def test_without_bursts_every_raise_waits_and_there_is_no_tripwire() -> None:
    life = Life(BALANCED.but(burst=False))
    assert life.scaler.wake_at(life.limit) is None
    life.look(200 * MIB, notified=True)
    assert life.rules() == ["up"]
    life.hold(300 * MIB, 59, notified=True)
    assert life.rules() == ["up"]
    life.hold(300 * MIB, 2, notified=True)
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
    assert life.limit - wake >= HEADROOM
    assert wake <= 0.75 * life.limit


# Downward.


def test_a_burst_is_trimmed_once_it_stands_then_given_back_when_it_is_over() -> None:
    life = Life()
    life.look(192 * MIB, notified=True)  # to 384
    life.look(290 * MIB, notified=True)  # to 576
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
    life.look(200 * MIB, notified=True)
    life.limit = 800 * MIB
    life.hold(210 * MIB, 600)
    assert life.rules() == ["burst"]
    life.hold(100 * MIB, 600)
    assert life.rules() == ["burst", "down"]


def test_a_lowering_that_was_regretted_makes_the_next_one_wait_longer() -> None:
    life = Life(BALANCED.but(patience=4.0))

    def wave() -> None:
        life.look(500 * MIB, notified=True)
        life.hold(500 * MIB, 5)
        life.hold(100 * MIB, 300)

    wave()
    life.hold(100 * MIB, 100)  # nobody regrets the first one
    for _ in range(6):
        life.look(500 * MIB, notified=True)
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
    life.look(1000 * MIB, notified=True)
    life.hold(1000 * MIB, 4)
    life.hold(400 * MIB, 100)
    assert life.limit == pytest.approx(600 * MIB, abs=PAGE)


def test_a_window_that_nobody_looked_into_is_taken_as_it_was_before() -> None:
    life = Life()
    life.look(500 * MIB, notified=True)
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
        move = scaler.observe(0.0, 250 * MIB, 256 * MIB, notified=True)
        assert move is not None
        scaler.moved(0.0, move, move.before)
        assert scaler.due(0.0) == 1.0
    assert scaler.observe(1.0, 100 * MIB, 256 * MIB) is None
    assert scaler.due(1.0) > 1.0


def test_who_waits_for_memory_waits_on_while_the_kernel_has_it_swap_at_the_tripwire() -> None:
    scaler = Scaler("memory", BALANCED, Range(32 << 20, 1 << 30), 0.0, 4096)
    limit, use = 96 << 20, 64 << 20
    assert scaler.observe(0.0, use - 1, limit) is None  # it has not come there yet
    at = 1.0
    for less in (0, 1, NEAR):
        move = scaler.observe(at, use - less, limit)
        assert move is not None
        scaler.moved(at, move, limit)
        at += 1
    assert scaler.observe(at, use - NEAR - 1, limit) is None
    assert scaler.observe(at + 1, use - 1, limit) is None


def test_a_raise_that_was_granted_in_part_stands_and_the_rest_is_asked_for() -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    move = scaler.observe(0.0, 250 * MIB, 256 * MIB, notified=True)
    assert move is not None
    scaler.moved(0.0, move, 300 * MIB)
    assert scaler.due(0.0) == 1.0
    again = scaler.observe(1.0, 250 * MIB, 300 * MIB)
    assert again is not None
    assert again.after == 450 * MIB


@pytest.mark.parametrize("granted", [300, 320, 330])
def test_what_is_refused_for_long_is_asked_for_once_a_second(granted: int) -> None:
    scaler = Scaler("memory", BALANCED, MEMORY, 0.0, PAGE)
    move = scaler.observe(0.0, 250 * MIB, 256 * MIB, notified=True)
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
    assert life.look(None, notified=True) is None
    assert life.scaler.observe(1.0, 100 * MIB, None) is None
    life.look(250 * MIB, notified=True)
    due = life.scaler.due(0.0)
    assert life.scaler.observe(0.0, None, life.limit, throttled=1.0, notified=True) is None
    assert life.scaler.due(0.0) == due


def test_it_wants_to_be_asked_soon_then_when_a_rule_may_hold() -> None:
    life = Life()
    # Not at once: it may be asked with nothing known again and again.
    assert 0.01 <= life.scaler.due(0.0) <= 0.1
    assert life.scaler.observe(0.0, None, life.limit) is None
    assert life.scaler.due(0.0) >= 0.01
    life.look(150 * MIB)
    assert life.scaler.due(0.0) == math.inf
    life.look(250 * MIB, notified=True)
    assert life.scaler.due(1.0) == SETTLE - 1


# Philosophies.


def test_what_is_built_in_makes_sense_and_has_its_name() -> None:
    for name, philosophy in PHILOSOPHIES.items():
        assert philosophy.name == name
        assert is_sound(philosophy)
    assert (BALANCED.up, BALANCED.down, BALANCED.cooldown) == (0.75, 0.25, 60)
    assert CONSERVATIVE.give_back >= 60
    assert AGGRESSIVE.give_back < BALANCED.give_back < CONSERVATIVE.give_back
