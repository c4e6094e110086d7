"""What is done when memory runs out: single decisions, and who comes first to what is free."""

from __future__ import annotations

import random
from typing import Any

from budgets import M, budget
from hypothesis import given
from hypothesis import strategies as st

from agentres.policy.capacity import Claim, line
from agentres.policy.contention import (
    EQUALS_WAIT,
    FROZEN_LEAST,
    FROZEN_MOST,
    HUNGRY,
    MARGIN,
    OVERDUE,
    PATIENCE,
    THAWED_LEAST,
    Step,
    decide,
    reserved,
    stuck,
)
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import HEADROOM, NEAR

NOW = 1000.0


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
    assert (step.kind, step.path, step.limit) == ("trim", "/c", 100 * M + HEADROOM + 2 * NEAR)
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
    assert (step.kind, step.path, step.limit) == ("trim", "/a", 700 * M + HEADROOM + 2 * NEAR)
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
    assert (step.kind, step.path, step.limit) == ("freeze", "/b", 680 * M + HEADROOM)
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
    assert 100 * M + HEADROOM + 2 * NEAR > WORTH * 140 * M
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
            assert step.limit >= max(one.use + HEADROOM, one.least)
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
    if top is not None and min(top.wants - top.taken, HEADROOM) <= left:
        return  # it takes what there is
    steps = decide(budget(limit), mine, NOW + 3600)
    assert any(step.kind in ("thaw", "release", "trim", "freeze") for step in steps)
