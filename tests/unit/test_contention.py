"""What is done when memory runs out: single decisions, and a model of agents that live by them."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.policy.capacity import Budget, Claim, grant, line
from agentres.policy.contention import (
    EQUALS_WAIT,
    FROZEN_LEAST,
    FROZEN_MOST,
    HUNGRY,
    MARGIN,
    NEAR,
    OVERDUE,
    PATIENCE,
    THAWED_LEAST,
    Step,
    at_tripwire,
    decide,
    reserved,
    stuck,
)
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import ROOM

M = 1 << 20
NOW = 1000.0


def budget(limit: int) -> Budget:
    return Budget(2 * limit * M, 0.5, limit * M)


def claim(name: str, limit: int | None, use: int, wants: int = 0, **named: Any) -> Claim:
    """An agent; sizes in MiB.  Of those of one priority, the names tell the age."""
    named = {"least": 32 * M, "since": NOW - 60 if wants else 0.0, **named}
    known = None if limit is None else limit * M
    return Claim(f"/{name}", name, float(ord(name[0])), known, use * M, wants=wants * M, **named)


def kinds(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.kind, step.path) for step in steps]


# Single decisions.


def test_nothing_is_done_while_nobody_wants_anything() -> None:
    assert decide(budget(1000), [claim("a", 700, 100), claim("b", 300, 290)], NOW) == []
    assert decide(budget(1000), [], NOW) == []


def test_nothing_is_done_where_there_is_room() -> None:
    claims = [claim("a", 300, 290, 450), claim("b", 500, 100)]
    assert decide(budget(1000), claims, NOW) == []


def test_the_lowest_gives_what_it_does_not_use_and_no_more_are_asked_than_needed() -> None:
    claims = [
        claim("a", 300, 290, 450, since=NOW),
        claim("b", 350, 100),
        claim("c", 350, 100, priority=25),
    ]
    (step,) = decide(budget(1000), claims, NOW)
    assert (step.kind, step.path, step.limit) == ("trim", "/c", 100 * M + ROOM + 2 * NEAR)
    assert step.why == "a wants 450 MiB, and 100 MiB are used"


def test_a_trimmed_agent_keeps_a_margin_and_its_least() -> None:
    for use, least, keeps in [(600, 32, int(600 * M * (1 + MARGIN))), (100, 700, 700 * M)]:
        claims = [
            claim("a", 200, 190, 300, since=NOW),
            claim("b", 800, use, priority=25, least=least * M),
        ]
        (step,) = decide(budget(1000), claims, NOW)
        assert (step.kind, step.limit) == ("trim", keeps)


def test_who_ranks_above_gives_only_when_one_is_hungry_and_only_what_it_does_not_need() -> None:
    def steps(seconds: float, use: int = 700) -> list[Step]:
        claims = [
            claim("a", 900, use, 1000, priority=400),
            claim("b", 100, 90, 150, since=NOW - seconds),
        ]
        return decide(budget(1000), claims, NOW)

    assert steps(HUNGRY - 0.1) == []
    (step,) = steps(HUNGRY)
    assert (step.kind, step.path, step.limit) == ("trim", "/a", 700 * M + ROOM + 2 * NEAR)
    assert kinds(steps(HUNGRY, use=880)) != [("trim", "/a")]


def test_an_older_one_of_the_same_priority_gives_sooner() -> None:
    def steps(seconds: float) -> list[Step]:
        claims = [claim("a", 900, 700, 1000), claim("b", 100, 90, 150, since=NOW - seconds)]
        return decide(budget(1000), claims, NOW)

    assert steps(EQUALS_WAIT - 0.1) == []
    assert kinds(steps(EQUALS_WAIT)) == [("trim", "/a")]


def test_where_the_margins_are_needed_the_lowest_priority_is_frozen_and_equals_after_a_while() -> (
    None
):
    def steps(priority: int, seconds: float) -> list[Step]:
        # What it uses and its margin: it cannot be trimmed.
        claims = [
            claim("a", 200, 190, 300, since=NOW - seconds),
            claim("b", 800, 680, priority=priority),
        ]
        return decide(budget(1000), claims, NOW)

    (step,) = steps(25, 0)
    assert (step.kind, step.path, step.limit) == ("freeze", "/b", 680 * M + ROOM)
    assert steps(100, EQUALS_WAIT - 0.1) == []
    assert kinds(steps(100, EQUALS_WAIT)) == [("freeze", "/b")]


def test_nobody_is_frozen_for_little() -> None:
    claims = [claim("a", 200, 190, 300, since=NOW), claim("b", 800, 750, priority=25)]
    assert decide(budget(1000), claims, NOW) == []


def test_who_was_thawed_is_not_frozen_again_at_once() -> None:
    def steps(seconds: float) -> list[Step]:
        claims = [
            claim("a", 200, 190, 300, since=NOW),
            claim("b", 800, 680, priority=25, since=NOW - seconds),
        ]
        return decide(budget(1000), claims, NOW)

    assert steps(THAWED_LEAST - 0.1) == []
    assert kinds(steps(THAWED_LEAST)) == [("freeze", "/b")]
    assert THAWED_LEAST > PATIENCE


def test_a_lower_one_that_is_stuck_as_well_stops_while_somebody_gets_on() -> None:
    def steps(seconds: float, third: Claim, priority: int = 25) -> list[tuple[str, str]]:
        claims = [
            claim("a", 300, 290, 450),
            claim("b", 400, 390, 600, priority=priority, since=NOW - seconds),
            third,
        ]
        return kinds(decide(budget(1000), claims, NOW))

    runs = claim("c", 300, 240)
    assert steps(HUNGRY - 0.1, runs) == []
    assert steps(HUNGRY, runs) == [("freeze", "/b")]
    assert steps(HUNGRY, runs, priority=100) == []
    assert steps(HUNGRY, claim("c", 300, 290, 450)) == []


def test_what_was_carried_out_is_not_asked_again() -> None:
    claims = [claim("a", 200, 190, 300, since=NOW), claim("b", 800, 680, priority=25)]
    (step,) = decide(budget(1000), claims, NOW)
    claims[1] = claims[1].but(frozen=True, since=NOW, limit=step.limit)
    assert decide(budget(1000), claims, NOW) == []
    claims = [claim("a", 200, 190, 300, since=NOW), claim("b", 800, 100, priority=25)]
    (step,) = decide(budget(1000), claims, NOW)
    claims[1] = claims[1].but(limit=step.limit)
    assert decide(budget(1000), claims, NOW) == []


def test_one_that_does_not_do_as_it_should_has_the_others_asked_as_well() -> None:
    def asked(seconds: float) -> list[str]:
        claims = [
            claim("a", 250, 240, 375, since=NOW - seconds),
            claim("b", 375, 100),
            claim("c", 375, 100, priority=25),
        ]
        return [step.path for step in decide(budget(1000), claims, NOW) if step.kind == "trim"]

    assert asked(0) == ["/c"]
    assert asked(OVERDUE) == ["/c", "/b"]


def test_a_trim_that_is_not_worth_a_write_is_not_asked_for() -> None:
    """The supervisor would not write it, and nothing else would ever be decided."""
    claims = [claim("a", 860, 850, 1200), claim("b", 140, 100, priority=25)]
    assert 100 * M + ROOM + 2 * NEAR > WORTH * 140 * M
    assert decide(budget(1000), claims, NOW) == []


def test_the_highest_is_thawed_first_when_nobody_above_is_short_one_at_a_time() -> None:
    claims = [
        claim("a", 300, 100),
        claim("b", 300, 290, frozen=True, since=NOW - 5, priority=50),
        claim("c", 300, 290, frozen=True, since=NOW - 9, priority=25),
    ]
    assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/b")]
    claims[1] = claims[1].but(frozen=False)
    assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/c")]


def test_who_is_frozen_stays_so_for_a_moment() -> None:
    for seconds, steps in [(FROZEN_LEAST - 0.1, []), (FROZEN_LEAST, [("thaw", "/b")])]:
        claims = [claim("a", 300, 100), claim("b", 300, 290, frozen=True, since=NOW - seconds)]
        assert kinds(decide(budget(1000), claims, NOW)) == steps


def test_a_frozen_one_is_thawed_whatever_it_wants_and_whatever_is_free() -> None:
    claims = [claim("a", 700, 600), claim("b", 300, 268, 5000, frozen=True, since=NOW - 5)]
    assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/b")]


def test_who_is_frozen_for_long_is_thawed_though_another_is_still_short() -> None:
    for seconds, steps in [(FROZEN_MOST - 1, []), (FROZEN_MOST, [("thaw", "/c")])]:
        claims = [
            claim("a", 400, 390, 600, priority=400, since=NOW - 1),
            claim("b", 300, 240),
            claim("c", 300, 268, frozen=True, since=NOW - seconds),
        ]
        assert kinds(decide(budget(1000), claims, NOW)) == steps


def test_when_nobody_else_gets_on_a_frozen_one_is_thawed() -> None:
    claims = [
        claim("a", 700, 690, 1000, priority=400),
        claim("b", 300, 268, frozen=True, since=NOW - 2),
    ]
    (step,) = decide(budget(1000), claims, NOW)
    assert (step.kind, step.path, step.why) == ("thaw", "/b", "nobody else gets on")


def test_all_frozen_one_is_thawed() -> None:
    claims = [
        claim("a", 500, 468, frozen=True, since=NOW - 2),
        claim("b", 500, 468, frozen=True, since=NOW - 2),
    ]
    assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/a")]


def test_when_nobody_gets_on_for_long_the_lowest_meets_its_limit_and_is_told_why() -> None:
    def steps(seconds: float, *more: Claim) -> list[Step]:
        claims = [
            claim("a", 500, 490, 750, since=NOW - 50),
            claim("b", 500, 490, 750, since=NOW - seconds),
            *more,
        ]
        return decide(budget(1000), claims, NOW)

    assert steps(PATIENCE - 0.1) == []
    (step,) = steps(PATIENCE)
    assert (step.kind, step.path) == ("release", "/b")
    assert step.why == (
        "wants 750 MiB; all agents may have 1000 MiB, and the other agent gives none back"
    )
    assert steps(60, claim("c", 0, 0)) == []
    # It is not the one that keeps the others waiting: the next one, the highest last of all.
    assert kinds(steps(2 * PATIENCE)) == [("release", "/a"), ("release", "/b")]


def test_the_last_one_meets_its_limit_at_once() -> None:
    (step,) = decide(budget(1000), [claim("a", 1000, 990, 1500, since=NOW)], NOW)
    assert (step.kind, step.why) == ("release", "wants 1.5 GiB; all agents may have 1000 MiB")


def test_one_beside_orphans_waits_for_them_first() -> None:
    def steps(seconds: float, since: float) -> list[tuple[str, str]]:
        claims = [
            claim("a", 700, 690, 1000, since=NOW - seconds),
            claim("b", 300, 200, frozen=True, orphan=True, since=since),
        ]
        return kinds(decide(budget(1000), claims, NOW))

    assert steps(PATIENCE - 1, since=NOW - 5) == [("thaw", "/b")]
    assert steps(PATIENCE - 1, since=0) == []
    assert steps(PATIENCE, since=0) == [("release", "/a")]


def test_one_that_nobody_thaws_keeps_nobody_else_from_being_thawed_or_released() -> None:
    for since in (0.0, NOW - 2 * FROZEN_MOST - PATIENCE):
        deaf = claim("a", 300, 200, priority=400, frozen=True, since=since)
        claims = [
            deaf,
            claim("b", 300, 100),
            claim("c", 300, 200, frozen=True, since=NOW - FROZEN_LEAST),
        ]
        assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/a"), ("thaw", "/c")]
        claims = [deaf, claim("b", 700, 690, 1000, since=NOW - PATIENCE)]
        assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/a"), ("release", "/b")]


def test_the_time_for_which_nobody_thawed_one_is_not_counted_against_the_others() -> None:
    def steps(seconds: float) -> list[tuple[str, str]]:
        frozen = NOW - 2 * FROZEN_MOST - seconds
        claims = [
            claim("a", 300, 200, priority=400, frozen=True, since=frozen),
            claim("b", 350, 340, 500, since=NOW - 90),
            claim("c", 350, 340, 500, since=NOW - 90),
        ]
        return kinds(decide(budget(1000), claims, NOW))[1:]

    assert steps(0) == []
    assert steps(PATIENCE) == [("release", "/c")]


def test_nobody_is_released_while_the_highest_can_go_on_with_what_is_free() -> None:
    claims = [claim("a", 460, 450, 690), claim("b", 500, 490, 750)]
    assert decide(budget(1000), claims, NOW) == []
    claims[0] = claim("a", 490, 480, 690)
    assert kinds(decide(budget(1000), claims, NOW)) == [("release", "/a"), ("release", "/b")]


def test_one_that_lost_its_limit_while_it_was_frozen_is_thawed() -> None:
    claims = [claim("a", 300, 100), claim("b", None, 290, 450, frozen=True, since=NOW - 5)]
    assert kinds(decide(budget(1000), claims, NOW)) == [("thaw", "/b")]


def test_nobody_is_released_while_one_only_would_like_room() -> None:
    claims = [claim("a", 700, 540, 810), claim("b", 300, 290, 450)]
    steps = decide(budget(1000), claims, NOW)
    assert kinds(steps) == [("trim", "/a")]
    claims = [claim("a", 540, 496, 810), claim("b", 459, 400, 689)]
    assert decide(budget(1000), claims, NOW) == []


def test_an_orphan_is_asked_for_nothing_and_thawed_by_whoever_sees_it() -> None:
    one = claim("a", 200, 190, 300)
    left = claim("b", 800, 100, priority=25, orphan=True)
    assert decide(budget(1000), [one, left], NOW) == []
    left = left.but(frozen=True, since=NOW - 1)
    (step,) = decide(budget(1000), [left], NOW)
    assert (step.kind, step.path) == ("thaw", "/b")
    assert decide(budget(1000), [left.but(since=0.0)], NOW) == []  # it was not us


def test_those_below_make_way_for_the_first_in_the_line_if_that_is_enough() -> None:
    waits = claim("z", None, 0, 300)
    claims = [claim("a", 500, 100, priority=400), claim("b", 500, 100), waits]
    (step,) = decide(budget(1000), claims, NOW)
    assert (step.kind, step.path) == ("trim", "/b")
    assert decide(budget(1000), [*claims[:2], waits.but(wants=500 * M)], NOW) == []
    assert decide(budget(1000), [claims[0], claim("b", 500, 450), waits], NOW) == []


def test_those_in_the_line_are_served_together_as_far_as_it_goes() -> None:
    waiting = [claim(name, None, 0, 200) for name in ("w", "x", "y", "z")]
    claims = [claim("a", 500, 100), claim("b", 500, 100), *waiting]
    steps = decide(budget(1000), claims, NOW)
    assert kinds(steps) == [("trim", "/b"), ("trim", "/a")]
    assert steps[0].why == "w waits for 200 MiB, 2 more for 400 MiB, and 100 MiB are used"
    # One of lower priority waits until those before it have begun.
    claims[3:] = [claim("x", None, 0, 200, priority=25)]
    assert kinds(decide(budget(1000), claims, NOW)) == [("trim", "/b")]


def test_when_the_budget_shrinks_the_lowest_give_what_they_do_not_use() -> None:
    claims = [claim("a", 400, 100), claim("b", 400, 100), claim("c", 400, 390, priority=25)]
    assert decide(budget(1200), claims, NOW) == []
    (step,) = decide(budget(1000), claims, NOW)
    assert (step.kind, step.path) == ("trim", "/b")
    assert step.why == "all agents may have 1000 MiB, and 100 MiB are used"
    assert kinds(decide(budget(700), claims, NOW)) == [("trim", "/b"), ("trim", "/a")]


def test_the_line_goes_by_priority_and_then_by_age() -> None:
    waiting = [
        claim("c", None, 0, 300),
        claim("b", None, 0, 300, priority=25),
        claim("a", None, 0, 300),
        claim("d", None, 0, 300, priority=400),
    ]
    running = claim("e", 300, 290, 450, priority=1000)
    assert [each.name for each in line([*waiting, running])] == ["d", "a", "c", "b"]


# Who comes first to what is free.


def test_what_a_higher_one_wants_is_not_for_the_others() -> None:
    high, low = claim("a", 300, 290, 450, priority=400), claim("b", 300, 290, 450)
    assert reserved([high, low], low) == 150 * M
    assert reserved([high, low], high) == 0
    assert reserved([high.but(frozen=True), low], low) == 0


def test_an_equal_that_is_stuck_comes_before_one_that_only_would_like_room() -> None:
    like, want = claim("a", 700, 540, 810), claim("b", 300, 290, 450)
    assert reserved([like, want], want) == 0
    assert reserved([like, want], like) == 150 * M


def test_one_of_lower_priority_does_when_it_is_hungry() -> None:
    like = claim("a", 700, 540, 810, priority=400)
    for seconds, of_low, of_high in [(HUNGRY - 1, 110, 0), (HUNGRY, 0, 150)]:
        want = claim("b", 300, 290, 450, since=NOW - seconds)
        assert reserved([like, want], want, NOW) == of_low * M
        assert reserved([like, want], like, NOW) == of_high * M
        assert reserved([like, want], want) == 110 * M  # without the time nobody is


sizes = st.integers(0, 1200)
any_claims = st.lists(
    st.builds(
        lambda name, limit, use, wants, priority, least, since, frozen, orphan: claim(
            name, limit, use, wants, priority=priority, least=least * M, since=since,
            frozen=frozen, orphan=orphan,
        ),
        st.sampled_from("abcdefgh"),
        st.none() | sizes,
        sizes,
        sizes,
        st.sampled_from([1, 25, 100, 400, 1000]),
        sizes,
        st.floats(0, NOW),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda each: each.path,
)  # fmt: skip


@given(any_claims, st.integers(0, 3000), st.randoms(use_true_random=False))
def test_every_supervisor_decides_the_same_and_nothing_absurd(
    claims: list[Claim], limit: int, dice: random.Random
) -> None:
    steps = decide(budget(limit), claims, NOW)
    mixed = list(claims)
    dice.shuffle(mixed)
    assert decide(budget(limit), mixed, NOW) == steps
    by_path = {each.path: each for each in claims}
    assert len({step.path for step in steps}) == len(steps)
    for step in steps:
        one = by_path[step.path]
        assert not one.orphan or step.kind == "thaw"
        assert one.frozen == (step.kind == "thaw")
        assert step.why
        if step.kind == "trim":
            assert one.limit is not None
            assert step.limit <= WORTH * one.limit
        if step.kind in ("trim", "freeze"):
            assert step.limit >= max(one.use + ROOM, one.least)
        if step.kind == "release":
            assert not any(
                each.frozen and not each.orphan and 0 < NOW - each.since < FROZEN_MOST
                for each in claims
            )
    alive = [each for each in claims if not each.waiting and not each.orphan]
    still = [each for each in alive if not each.frozen]
    frozen_now = [step.path for step in steps if step.kind == "freeze"]
    # Somebody always runs on.
    assert not still or len(frozen_now) < len(still)


@given(any_claims, st.integers(0, 3000))
def test_somebody_gets_on_in_the_end(claims: list[Claim], limit: int) -> None:
    """Of agents that all are frozen or stuck one is thawed or released, however long it takes."""
    mine = [each for each in claims if not each.waiting and not each.orphan]
    if not mine or any(not each.frozen and not stuck(each) for each in mine):
        return
    short = [each for each in mine if not each.frozen]
    left = limit * M - sum(each.taken for each in mine)
    top = min(short, key=lambda each: (-each.priority, each.started), default=None)
    if top is not None and min(top.wants - top.taken, ROOM) <= left:
        return  # it takes what there is
    steps = decide(budget(limit), mine, NOW + 3600)
    assert any(step.kind in ("thaw", "release", "trim", "freeze") for step in steps)


# A model: agents whose use follows a curve, each with a supervisor that does as ours.

TICK = 0.25
Curve = list[tuple[float, int]]
"""Until when (seconds) how much (MiB) is needed; the last one for ever."""


class Agent:
    """One agent and its supervisor."""

    def __init__(self, name: str, priority: int, curve: Curve, most: int) -> None:
        self.name, self.priority, self.curve, self.most = name, priority, curve, most * M
        self.use = curve[0][1] * M
        self.limit = max(self.use + ROOM, 64 * M)
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
            wall = self.limit if self.released else max(self.limit - ROOM, self.limit // 2)
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
        return min(limit * 3 // 4, limit - ROOM)

    def _want(self, wants: int, now: float) -> None:
        is_stuck = bool(wants) and at_tripwire(self.limit, self.use)
        if bool(wants) != bool(self.wants) or is_stuck != self.stuck:
            self.since = now
        self.wants, self.stuck = wants, is_stuck

    def _settle(self, now: float) -> None:
        if self.use >= max(self.high[0], 0.7 * self.limit):
            self.high = (self.use, now)
        if now - self.high[1] >= 3:
            fit = int(max(self.use / 0.7, self.use + ROOM, 32 * M))
            self.limit = fit if fit <= WORTH * self.limit else self.limit
            self.high = (self.use, now)

    def carry_out(self, step: Step, now: float) -> bool:
        if step.kind in ("freeze", "thaw"):
            self.frozen, self.since = step.kind == "freeze", now
        if step.kind in ("trim", "freeze"):
            keeps = max(step.limit, self.use + ROOM)
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
                assert spare < ROOM, f"{agent.name} was killed while {spare} bytes were unused"
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
        most = [each.limit - each.use - ROOM - 2 * NEAR for each in others]
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
