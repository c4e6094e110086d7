"""Memory that frozen and idle agents hand back where there is swap: single decisions, and three that do not fit in together."""

from __future__ import annotations

from typing import Any

import pytest
from budgets import M, budget
from test_contention import NOW, claim, kinds
from test_contention_model import TICK, Agent, World, told

from agentres.policy.capacity import Claim
from agentres.policy.contention import (
    EQUALS_WAIT,
    FROZEN_LEAST,
    FROZEN_MOST,
    HUNGRY,
    SWAPPED_MOST,
    Step,
    decide,
)
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import HEADROOM

# Single decisions.


def decided(*claims: Claim) -> list[tuple[str, str]]:
    return kinds(decide(budget(1000), claims, NOW))


def stuck(**named: Any) -> Claim:
    return claim("a", 400, 390, 600, since=NOW - 1).but(**named)


def test_one_that_is_frozen_hands_back_as_much_as_is_wanted() -> None:
    frozen = claim("b", 600, 560, frozen=True, since=NOW - 5, swap=2000 * M)
    (step,) = decide(budget(1000), [stuck(), frozen], NOW)
    assert (step.kind, step.path, step.limit) == ("reclaim", "/b", 400 * M)
    assert step.why == "a wants 600 MiB"
    (step,) = decide(budget(1000), [stuck(), frozen.but(swap=100 * M)], NOW)
    assert step.limit == 460 * M + HEADROOM
    (step,) = decide(budget(1000), [stuck(wants=410 * M), frozen], NOW)
    assert 0.85 * 600 * M < step.limit <= WORTH * 600 * M  # less is not worth a write
    assert ("reclaim", "/b") not in decided(stuck(), frozen.but(swap=0))
    assert ("reclaim", "/b") not in decided(stuck(), frozen.but(least=590 * M))
    assert decided(stuck(), frozen.but(orphan=True)) == [("thaw", "/b")]


def test_who_was_frozen_by_somebody_else_hands_back_too() -> None:
    frozen = claim("b", 600, 560, frozen=True, priority=400, swap=2000 * M)
    assert decided(stuck(), frozen) == [
        ("thaw", "/b"),
        ("reclaim", "/b"),
    ]  # the former is not his to do


def test_who_is_idle_hands_back_and_is_not_frozen() -> None:
    idle = claim("b", 600, 560, idle=True, swap=2000 * M)
    assert decided(stuck(), idle) == [("reclaim", "/b")]
    assert decided(stuck(), idle.but(wants=700 * M)) == []
    assert decided(stuck(priority=25), idle) == []


def test_who_is_idle_hands_back_and_is_not_frozen_for_its_margin() -> None:
    wanting = stuck(wants=420 * M, since=NOW - 60)
    running = claim("b", 1200, 1045, swap=2000 * M)
    assert kinds(decide(budget(1600), [wanting, running], NOW)) == [("freeze", "/b")]
    assert kinds(decide(budget(1600), [wanting, running.but(idle=True)], NOW)) == [("reclaim", "/b")]  # fmt: skip


def test_one_that_is_frozen_for_its_margin_is_not_frozen_again_for_the_rest() -> None:
    wanting = stuck(wants=1000 * M, since=NOW - 60)
    running = claim("b", 1200, 1045, swap=2000 * M)
    assert kinds(decide(budget(1600), [wanting, running], NOW)) == [("freeze", "/b")]
    another = claim("c", 400, 330, swap=2000 * M)
    both = kinds(decide(budget(2000), [wanting.but(wants=1600 * M), running, another], NOW))
    assert [step for step in both if step[0] == "freeze"] == [("freeze", "/b"), ("freeze", "/c")]


def test_what_is_trimmed_and_handed_back_at_once_adds_up() -> None:
    idle = claim("b", 600, 300, idle=True, swap=2000 * M)
    trim, reclaim = decide(budget(1000), [stuck(wants=700 * M), idle], NOW)
    assert (trim.kind, trim.limit) == ("trim", 345 * M)
    assert (reclaim.kind, reclaim.limit) == ("reclaim", 345 * M - (300 - 255) * M)


def test_one_that_may_go_to_swap_is_frozen_for_that_sooner_or_later() -> None:
    busy = claim("b", 600, 560, swap=2000 * M)
    assert decided(stuck(since=NOW - EQUALS_WAIT + 0.1), busy) == []
    assert decided(stuck(since=NOW - EQUALS_WAIT), busy) == [("freeze", "/b")]
    assert decided(stuck(), busy.but(priority=25)) == [("freeze", "/b")]
    assert decided(stuck(), busy.but(priority=400)) == []
    short = busy.but(use=590 * M, wants=900 * M)
    for seconds, steps in [(HUNGRY - 0.1, []), (HUNGRY, [("freeze", "/b")])]:
        assert decided(stuck(since=NOW - 9), short.but(since=NOW - seconds)) == steps
    assert decided(stuck(since=NOW - EQUALS_WAIT), busy.but(swap=10 * M)) == []


def test_nobody_is_thawed_or_killed_while_one_hands_back() -> None:
    all_stuck = [
        stuck(since=NOW - 60),
        claim("b", 300, 290, frozen=True, since=NOW - 5, swap=2000 * M),
        claim("c", 300, 290, 450, since=NOW - 1),
    ]
    assert decided(*all_stuck) == [("reclaim", "/b")]
    all_stuck[1] = all_stuck[1].but(swap=0)
    assert decided(*all_stuck) == [("thaw", "/b")]


def test_who_has_memory_in_swap_is_thawed_when_there_is_room_for_it() -> None:
    def steps(limit: int, seconds: float, **named: Any) -> list[tuple[str, str]]:
        running = claim("a", limit, 500).but(**named)
        swapped = claim("b", 64, 20, frozen=True, since=NOW - seconds, most=800 * M, swapped=500 * M)  # fmt: skip
        return decided(running, swapped)

    assert steps(600, FROZEN_MOST) == []
    assert steps(600, SWAPPED_MOST - 0.1) == []
    assert steps(600, SWAPPED_MOST) == [("thaw", "/b")]
    assert steps(400, FROZEN_LEAST) == [("thaw", "/b")]
    # What the other one has in swap it comes for.
    assert steps(400, FROZEN_LEAST, most=1000 * M, swapped=300 * M) == []
    alone = claim("b", 64, 20, frozen=True, since=NOW - FROZEN_LEAST, most=5000 * M, swapped=4000 * M)  # fmt: skip
    assert decided(alone) == [("thaw", "/b")]


# Three that do not fit in together.


class Session(Agent):
    """Comes to need ``size`` MiB within some seconds, and ends when it has had them for ``work``."""

    def __init__(self, name: str, size: int, work: float, swap: int) -> None:
        grows = [(at / 4, 60 + at * 100) for at in range((size - 60) // 100 + 1)]
        super().__init__(name, 100, [*grows, (9e9, size)], size + 100)
        self.work, self.swap, self.swapped = work, swap * M, 0
        self.ended = 0.0

    @property
    def claim(self) -> Claim:
        return super().claim.but(
            most=self.most, swap=self.swap - self.swapped, swapped=self.swapped
        )

    def live(self, now: float, world: World) -> None:
        super().live(now, world)
        self.swapped = min(self.swapped, self.needs(now) - self.use)
        if self.use == self.curve[-1][1] * M:
            self.work -= TICK
            self.ended = now if self.work <= 0 else 0.0

    def carry_out(self, step: Step, now: float) -> bool:
        if step.kind == "reclaim":  # as much as goes to swap in a tick
            moved = min(64 * M, self.use + HEADROOM - step.limit, self.swap - self.swapped)
            self.use, self.swapped = self.use - moved, self.swapped + moved
            step = Step("trim", step.path, step.why, max(step.limit, self.use + HEADROOM))
        return super().carry_out(step, now)


class Sessions(World):
    @property
    def alive(self) -> list[Any]:
        return [each for each in super().alive if not each.ended]


def sessions(swap: int, seed: int) -> tuple[Sessions, list[Session]]:
    agents = [Session(name, 2458, 20, swap) for name in "abc"]
    world = Sessions(3174, list(agents), seed)
    while world.alive and world.now < 600:
        world.tick()
    return world, agents


@pytest.mark.parametrize("seed", range(5))
def test_three_that_each_want_most_of_it_all_finish_one_after_another(seed: int) -> None:
    world, agents = sessions(4000, seed)
    assert not told(world, "killed")
    ends = [agent.ended for agent in agents]
    assert 0 < ends[0] < ends[1] < ends[2] < 200
    for name in "bc":  # frozen and thawed, and not time and again
        assert 1 <= told(world, "freeze")[name] <= 3
        assert told(world, "freeze")[name] == told(world, "thaw")[name]


@pytest.mark.parametrize("seed", range(5))
def test_without_swap_they_do_not(seed: int) -> None:
    world, agents = sessions(0, seed)
    assert told(world, "killed")
    assert not told(world, "reclaim")
    assert agents[0].ended
