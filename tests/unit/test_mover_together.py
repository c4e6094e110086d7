"""Several supervisors over one slice and simulated time: the very code that runs, on folders in place of cgroups.

Agents follow curves of demand, wait at memory.high, and lose a process where they meet memory.max.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from fake_agent import Life, memory
from fake_slice import MIB, FakeSlice, keep_attributes

from agentres.kernel import host
from agentres.kernel.registry import ClaimMark
from agentres.model.limits import MAX
from agentres.policy import tripwire
from agentres.policy.contention import FROZEN_LEAST, FROZEN_MOST, PATIENCE
from agentres.policy.tripwire import HEADROOM

TICK = 0.25
QUIET = 45.0
"""Seconds after which nobody needs more than at the start."""


class World:
    """The clock, the host, and all that run; the budget is half of the host."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
        self.now = 1000.0
        self.budget = budget * MIB
        keep_attributes(path, monkeypatch)
        monkeypatch.setattr(host, "memory", lambda: 2 * self.budget)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "clock_gettime", lambda _: self.now)
        self.slice = FakeSlice(path)
        self.agents: list[Agent] = []

    @property
    def allocated(self) -> int:
        return sum(agent.life.bytes for agent in self.agents)

    def supervised(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.supervised]

    def close(self) -> None:
        for agent in self.agents:
            agent.life.close()


class Agent:
    """``curve``: until when (seconds) how much (MiB) is needed, and from then on what was at first."""

    def __init__(
        self, world: World, name: str, priority: int, curve: list[tuple[float, int]]
    ) -> None:
        self.world, self.name, self.priority, self.curve = world, name, priority, curve
        self.base = curve[0][1] * MIB
        limits = memory(max(curve[0][1] + 64, 96))
        self.life = Life(world.slice, name, limits, use=self.base, priority=priority)
        self.supervised = True
        self.killed = 0
        self._due = self._rests = 0.0

    @property
    def frozen(self) -> bool:
        return (self.life.agent / "cgroup.freeze").read_text() == "1\n"

    @property
    def wants(self) -> int:
        assert self.life.mover.sharing is not None
        return self.life.mover.sharing.wants

    def needs(self) -> int:
        if self.world.now < self._rests:
            return self.base
        since = self.world.now - 1000
        return next((size * MIB for until, size in self.curve if since < until), self.base)

    @property
    def stands(self) -> bool:
        return self.frozen or (self.wants > 0 and self.needs() > self.life.cgroup.use)

    def live(self) -> None:
        """Come as far as the limits let it, and have each notification of the kernel's served."""
        while not self.frozen:
            use, limit = self.life.cgroup.use, self.life.bytes
            wake = self.life.mover.wake_at() if self.supervised else None
            headroom = None if wake is None else HEADROOM
            height = tripwire.height(wake, use, use, limit, headroom)
            wall = limit if height == MAX else min(height, limit)
            needs = self.needs()
            self.life.cgroup.uses(needs if needs <= use else min(needs, max(use, wall)))
            if needs > limit and height == MAX:
                self.killed += 1
                self._rests = self.world.now + 20
                self.life.cgroup.uses(self.base)
            if self.life.cgroup.use < wall or not self.supervised:
                break
            self.look(notified=True)
            if self.life.bytes == limit:
                break

    def supervise(self) -> None:
        if not self.supervised:
            return
        if self.world.now >= self._due:
            self.look(notified=False)
        self.life.contend()
        if self.wants:
            self.look(notified=True)

    def look(self, notified: bool) -> None:
        now = self.world.now
        self._due = now + self.life.mover.observe(
            "memory", self.life.cgroup.use, self.life.reading, now, notified
        )

    def loses_its_supervisor(self) -> None:
        self.supervised = False
        events = self.life.agent.parent / "supervisor" / "cgroup.events"
        events.write_text("populated 0\nfrozen 0\n")


def waves(dice: random.Random) -> list[tuple[float, int]]:
    base, at, made = dice.choice([40, 100, 140]), dice.uniform(1, 6), []
    while at < QUIET - 20:
        made.append((at, base))
        at += dice.choice([1, 2, 5, 15])
        made.append((at, dice.choice([200, 300, 500, 700, 900])))
        at += dice.uniform(1, 8)
    return made


@pytest.mark.parametrize("trouble", ["none", "orphan", "shrunk"])
@pytest.mark.parametrize("seed", range(4))
def test_agents_with_waves_of_demand_get_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, trouble: str
) -> None:
    dice = random.Random(seed)
    world = World(tmp_path, monkeypatch, 1100)
    for name in "abcde"[: dice.randint(2, 5)]:
        world.agents.append(Agent(world, name, dice.choice([25, 100, 100, 400]), waves(dice)))
    newcomer = world.slice.agent(
        "z", "max", 0, started=9e9, claimed=ClaimMark(25, 64 * MIB, 64 * MIB, 999.0)
    )
    happens = dice.uniform(5, 40)
    settled = still = 0.0
    while world.now < 1000 + QUIET + FROZEN_MOST + 2 * PATIENCE:
        if happens and world.now - 1000 >= happens:
            happens = 0.0
            if trouble == "orphan":
                dice.choice(world.agents).loses_its_supervisor()
            elif trouble == "shrunk":
                world.budget = 900 * MIB
                settled = world.now + 2  # until then supervisors go by what they have read
        before = world.allocated
        dice.shuffle(world.agents)
        for agent in world.agents:
            agent.live()
            agent.supervise()
        if world.now >= settled:
            assert world.allocated <= max(world.budget, before)
        # Somebody gets on.
        still = still + TICK if all(agent.stands for agent in world.supervised()) else 0.0
        assert still <= 2 * PATIENCE + FROZEN_LEAST
        assert (newcomer / "cgroup.freeze").read_text() == "0\n"
        world.now += TICK
    # It ends when the demand ends.
    assert not any(agent.frozen for agent in world.agents)
    if trouble == "none":
        assert not any(agent.wants for agent in world.agents)
    for agent in world.agents:
        assert agent.life.cgroup.use == agent.base
        kinds = Counter(action.kind for action in agent.life.told)
        assert kinds["refuse"] == 0
        assert kinds["freeze"] <= 8
        assert kinds["trim"] <= 25
        turns = [each for each in agent.life.told if each.kind in ("freeze", "thaw")]
        assert all(one.kind != other.kind for one, other in pairwise(turns))
    highest = min(world.agents, key=lambda agent: (-agent.priority, agent.name))
    assert not highest.supervised or highest.killed == 0
    if highest.supervised and trouble == "none":
        assert "freeze" not in [action.kind for action in highest.life.told]
    world.close()


def test_what_fits_alone_gets_its_memory_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, 1000)
    world.agents = [
        Agent(world, name, priority, [(2, 100), (40, 700)])
        for name, priority in (("a", 25), ("b", 400), ("c", 100))
    ]
    served = set()
    while world.now < 1000 + 40:
        for agent in world.agents:
            agent.live()
            agent.supervise()
            if agent.life.cgroup.use == 700 * MIB:
                served.add(agent.name)
        world.now += TICK
    assert "b" in served
    # The others were told why, at last.
    for agent in world.agents:
        assert agent.name in served or agent.killed
        if agent.killed:
            assert "release" in [action.kind for action in agent.life.told]
    world.close()


def test_one_alone_that_cannot_fit_is_told_and_killed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch, 1000)
    agent = Agent(world, "a", 100, [(2, 100), (10, 1500)])
    world.agents = [agent]
    while not agent.killed:
        agent.live()
        agent.supervise()
        world.now += TICK
        assert world.now < 1000 + 2 + 4 * TICK
    assert agent.life.told[-1].kind == "release"
    assert agent.life.bytes == 1000 * MIB
    world.close()
