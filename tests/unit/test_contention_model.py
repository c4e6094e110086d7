"""What is done when memory runs out: a model of agents that live by those decisions."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from budgets import M, budget
from hypothesis import given
from hypothesis import strategies as st

from agentres.policy.capacity import Claim, grant
from agentres.policy.contention import (
    FROZEN_LEAST,
    FROZEN_MOST,
    HUNGRY,
    PATIENCE,
    Step,
    at_tripwire,
    decide,
    reserved,
)
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import HEADROOM, NEAR

# A model: agents whose use follows a curve, each with a supervisor that does as ours.

TICK = 0.25
Curve = list[tuple[float, int]]
"""Until when (seconds) how much (MiB) is needed; the last one for ever."""


class Agent:
    """One agent and its supervisor."""

    def __init__(self, name: str, priority: int, curve: Curve, most: int) -> None:
        self.name, self.priority, self.curve, self.most = name, priority, curve, most * M
        self.use = curve[0][1] * M
        self.limit = max(self.use + HEADROOM, 64 * M)
        self.wants, self.since, self.stuck = 0, 0.0, False
        self.frozen = self.released = self.dead = False
        self.high = (0, 0.0)

    @property
    def claim(self) -> Claim:
        return Claim(
            f"/{self.name}", self.name, float(ord(self.name[0])), self.limit, self.use,
            self.priority, 32 * M, self.wants, self.since, self.frozen,
        )  # fmt: skip

    def needs(self, now: float) -> int:
        return next((size for until, size in self.curve if now < until), self.curve[-1][1]) * M

    def live(self, now: float, world: World) -> None:
        """Grow or shrink, asking for room at each tripwire."""
        needed = self.needs(now)
        while True:
            wall = self.limit if self.released else max(self.limit - HEADROOM, self.limit // 2)
            self.use = needed if needed <= self.use else max(self.use, min(needed, wall))
            if self.released and needed > self.limit:
                self.dead = True
                return
            if self.limit >= self.most or self.use < self._wake(self.limit):
                self._want(0, now)
                self._settle(now)
                return
            wanted = self.limit
            while wanted < self.most and self.use >= self._wake(wanted):
                wanted = min(wanted * 3 // 2, self.most)
            before, self.limit = self.limit, world.granted(self, wanted, now)
            refused = self.limit == before or self.use >= 0.75 * self.limit
            self._want(wanted if refused else 0, now)
            if self.limit == before:
                return

    @staticmethod
    def _wake(limit: int) -> int:
        return min(limit * 3 // 4, limit - HEADROOM)

    def _want(self, wants: int, now: float) -> None:
        is_stuck = bool(wants) and at_tripwire(self.limit, self.use)
        if bool(wants) != bool(self.wants) or is_stuck != self.stuck:
            self.since = now
        self.wants, self.stuck = wants, is_stuck

    def _settle(self, now: float) -> None:
        if self.use >= max(self.high[0], 0.7 * self.limit):
            self.high = (self.use, now)
        if now - self.high[1] >= 3:
            fit = int(max(self.use / 0.7, self.use + HEADROOM, 32 * M))
            self.limit = fit if fit <= WORTH * self.limit else self.limit
            self.high = (self.use, now)

    def carry_out(self, step: Step, now: float) -> bool:
        if step.kind in ("freeze", "thaw"):
            self.frozen, self.since = step.kind == "freeze", now
        if step.kind in ("trim", "freeze"):
            keeps = max(step.limit, self.use + HEADROOM)
            self.limit = keeps if keeps <= WORTH * self.limit else self.limit
        if step.kind == "release":
            before, self.released = self.released, True
            return not before
        return True


class World:
    """All agents of a host; ``told`` are the steps as they were carried out."""

    def __init__(self, limit: int, agents: list[Agent], seed: int) -> None:
        self.budget = budget(limit)
        self.agents = agents
        self.dice = random.Random(seed)
        self.told: list[tuple[float, str, str]] = []
        self.now = 0.0

    @property
    def alive(self) -> list[Agent]:
        return [each for each in self.agents if not each.dead]

    def claims(self) -> list[Claim]:
        return [each.claim for each in self.alive]

    def granted(self, agent: Agent, wanted: int, now: float) -> int:
        claims = self.claims()
        ahead = reserved(claims, agent.claim, now)
        left = self.budget.but(limit=self.budget.limit - ahead)
        return grant(left, claims, agent.claim.path, agent.limit, wanted)

    def tick(self) -> None:
        agents = self.alive
        self.dice.shuffle(agents)
        for agent in agents:
            self._contend(agent)
            spare = self._spare(agent)
            if not agent.frozen:
                agent.live(self.now, self)
            if agent.dead:
                self.told.append((self.now, agent.name, "killed"))
                assert spare < HEADROOM, f"{agent.name} was killed while {spare} bytes were unused"
            else:
                self._contend(agent)
        assert sum(each.limit for each in self.alive) <= self.budget.limit
        self.now += TICK

    def _contend(self, agent: Agent) -> None:
        """What a supervisor does when the bell rings."""
        steps = decide(self.budget, self.claims(), self.now)
        mine = [step for step in steps if step.path == agent.claim.path]
        agent.released = agent.released and any(step.kind == "release" for step in mine)
        for step in mine:
            if agent.carry_out(step, self.now):
                self.told.append((self.now, agent.name, step.kind))

    def _spare(self, agent: Agent) -> int:
        """What is free, and what the others have beyond what anybody may ask of them."""
        others = [each for each in self.alive if each is not agent]
        free = self.budget.limit - sum(each.limit for each in self.alive)
        most = [each.limit - each.use - HEADROOM - 2 * NEAR for each in others]
        return free + sum(
            size for size, each in zip(most, others, strict=True)
            if size > 0 and each.limit - size <= WORTH * each.limit
        )  # fmt: skip


def run(limit: int, agents: list[Agent], seconds: float, seed: int = 0) -> World:
    world = World(limit, agents, seed)
    while world.now < seconds:
        world.tick()
    return world


def told(world: World, kind: str) -> Counter[str]:
    return Counter(name for _, name, each in world.told if each == kind)


bursts = st.lists(
    st.tuples(
        st.floats(0.5, 9),
        st.sampled_from([1.0, 2.0, 5.0, 15.0]),
        st.sampled_from([200, 300, 500, 700, 900]),
    ),
    min_size=1,
    max_size=5,
)
worlds = st.lists(
    st.tuples(st.sampled_from([25, 100, 100, 400]), st.sampled_from([40, 100, 140]), bursts),
    min_size=1,
    max_size=5,
)


def curve(base: int, of: list[tuple[float, float, int]]) -> Curve:
    made: Curve = []
    at = 0.0
    for pause, length, size in of:
        made += [(at + pause, base), (at + pause + length, size)]
        at += pause + length
    return [*made, (at, base)]


@given(worlds, st.integers(0, 99))
def test_whatever_the_agents_need_all_get_on(
    wanted: list[tuple[int, int, list[tuple[float, float, int]]]], seed: int
) -> None:
    agents = [
        Agent(name, priority, curve(base, of), 1100)
        for name, (priority, base, of) in zip("abcdefgh", wanted, strict=False)
    ]
    quiet = max(until for agent in agents for until, _ in agent.curve)
    world = World(1100, agents, seed)
    all_frozen = 0.0
    while world.now < quiet + FROZEN_MOST + PATIENCE:
        world.tick()
        stopped = bool(world.alive) and all(each.frozen for each in world.alive)
        all_frozen = all_frozen + TICK if stopped else 0.0
        highest = min(world.alive, key=lambda each: (-each.priority, each.name), default=None)
        assert highest is None or (world.now, highest.name, "freeze") not in world.told
        assert all_frozen <= FROZEN_LEAST + TICK
    # It ends when the demand ends.
    for agent in world.alive:
        assert (agent.frozen, agent.wants, agent.released) == (False, 0, False)
        assert agent.use == agent.needs(world.now)
    # Freezing and thawing take turns, and take their time.
    for agent in agents:
        turns = [(at, kind) for at, name, kind in world.told if name == agent.name and kind in ("freeze", "thaw")]  # fmt: skip
        for (before, one), (after, other) in pairwise(turns):
            assert (one, other) in (("freeze", "thaw"), ("thaw", "freeze"))
            assert after - before >= (FROZEN_LEAST if one == "freeze" else 0)
        assert len(turns) <= 2 + world.now / 3
    # The highest of several is never killed, and one alone that fits not at all.
    top = min(agents, key=lambda each: (-each.priority, each.name))
    if len(agents) == 1 or max(size for _, size in top.curve) <= 500:
        assert not top.dead


def test_growth_of_a_high_one_goes_on_at_the_cost_of_the_unused() -> None:
    agents = [
        Agent("a", 400, [(5, 100), (60, 480)], 1000),
        Agent("b", 25, [(60, 200)], 1000),
        Agent("c", 25, [(60, 200)], 1000),
    ]
    world = run(1000, agents, 12)
    assert agents[0].use == 480 * M
    assert not told(world, "freeze")
    assert not told(world, "killed")


def test_a_low_one_is_not_starved_by_what_a_high_one_only_would_like() -> None:
    agents = [
        Agent("a", 400, [(2, 100), (99, 750)], 1000),
        Agent("b", 25, [(4, 60), (99, 110)], 1000),
    ]
    world = run(1000, agents, 2 + 2 * HUNGRY + 4)
    assert agents[1].use == 110 * M
    assert told(world, "trim")["a"] == 1
    assert agents[0].use == 750 * M


def test_two_that_cannot_both_have_what_they_need_do_not_both_stand_still() -> None:
    agents = [
        Agent("a", 100, [(2, 100), (99, 900)], 1000),
        Agent("b", 100, [(2, 100), (99, 900)], 1000),
    ]
    world = run(1000, agents, 60)
    assert told(world, "killed") == {"b": 1}
    assert agents[0].use == 900 * M


def test_a_low_one_is_frozen_for_a_high_one_and_goes_on_afterwards() -> None:
    agents = [
        Agent("a", 400, [(5, 100), (15, 600), (99, 100)], 1100),
        Agent("b", 100, [(12, 200), (99, 60)], 1100),
        Agent("c", 25, [(2, 100), (99, 400)], 1100),
    ]
    world = run(1000, agents, 40)
    assert told(world, "freeze")["c"] >= 1
    assert told(world, "freeze")["c"] == told(world, "thaw")["c"]
    assert not told(world, "killed")
    assert agents[2].use == 400 * M


@pytest.mark.parametrize("seed", range(3))
def test_a_wave_does_not_have_another_frozen_for_each_crest(seed: int) -> None:
    wave = [(float(at), 700 if at % 2 else 100) for at in range(1, 120)]
    agents = [Agent("a", 400, wave, 1000), Agent("b", 25, [(2, 100), (999, 400)], 1000)]
    world = run(1000, agents, 120, seed)
    assert told(world, "freeze")["b"] <= 120 / HUNGRY / 2
    assert not told(world, "killed")
