"""Who gets how much of the memory that agents share: sums by example, and what holds for all of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from budgets import budget
from hypothesis import given
from hypothesis import strategies as st

from agentres.policy.capacity import Admission, Claim, admit, free, grant, holders, shortage

MIB = 1 << 20
GIB = 1 << 30


def claim(name: str, limit: int | None, use: int = 0, **named: Any) -> Claim:
    """Sizes in MiB."""
    return Claim(f"/{name}", name, 0.0, None if limit is None else limit * MIB, use * MIB, **named)


def a_and_b() -> list[Claim]:
    return [claim("a", 300, 100), claim("b", 500, 500)]


# What is free.


def test_a_limit_is_taken_whether_it_is_used_or_not() -> None:
    assert free(budget(1000), a_and_b()) == 200 * MIB
    assert free(budget(1000), a_and_b(), without="/b") == 700 * MIB
    assert free(budget(1000), []) == 1000 * MIB


def test_who_has_no_limit_takes_what_it_uses() -> None:
    assert free(budget(1000), [claim("a", None, 150)]) == 850 * MIB


def test_a_host_that_has_shrunk_has_less_than_nothing_free() -> None:
    assert free(budget(600), a_and_b()) == -200 * MIB


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (claim("a", 300), "running"),
        (claim("a", 300, wants=300 * MIB), "running"),
        (claim("a", 300, wants=301 * MIB), "throttled"),
        (claim("a", 300, wants=301 * MIB, frozen=True), "frozen"),
        (claim("a", 300, frozen=True), "frozen"),
        (claim("a", None, wants=301 * MIB), "waiting"),
        (claim("a", None, 100), "running"),
    ],
)
def test_the_state_of_an_agent_is_one_word(made: Claim, state: str) -> None:
    assert made.state == state


# Admission.


@pytest.mark.parametrize(
    ("least", "start", "granted"),
    [(64, 128, 128), (64, 200, 200), (64, 500, 200), (200, 200, 200), (200, 500, 200)],
)
def test_a_run_starts_with_what_it_asks_for_or_what_is_free(
    least: int, start: int, granted: int
) -> None:
    admission = admit(budget(1000), a_and_b(), least * MIB, start * MIB)
    assert admission == Admission(granted * MIB)


def test_what_has_no_room_is_refused_with_the_numbers_and_the_holders() -> None:
    admission = admit(budget(1000), a_and_b(), 201 * MIB, 400 * MIB)
    assert admission == Admission(
        0,
        "201 MiB of memory are needed, 200 MiB of 1000 MiB are free: b has 500 MiB, a has 300 MiB",
    )


def test_more_than_the_budget_is_refused_for_good() -> None:
    admission = admit(budget(1000), [], 1001 * MIB, 1001 * MIB)
    assert admission == Admission(
        0, "1001 MiB of memory are more than all agents together may have, 1000 MiB"
    )


def test_where_the_budget_has_shrunk_nothing_is_free() -> None:
    assert "0 B of 600 MiB are free" in shortage(budget(600), a_and_b(), 32 * MIB)
    assert not admit(budget(600), a_and_b(), 32 * MIB, 32 * MIB).granted


def test_only_those_who_have_most_are_named() -> None:
    claims = [
        claim(name, size) for name, size in zip("abcdef", (10, 60, 50, 40, 30, 20), strict=True)
    ]
    assert holders(claims) == "b has 60.0 MiB, c has 50.0 MiB, d has 40.0 MiB, 3 more have 60.0 MiB"
    assert holders([]) == "nobody has any"


# Growth.


@pytest.mark.parametrize(("wanted", "granted"), [(400, 400), (500, 500), (501, 500), (9000, 500)])
def test_growth_takes_from_what_is_free(wanted: int, granted: int) -> None:
    assert grant(budget(1000), a_and_b(), "/a", 300 * MIB, wanted * MIB) == granted * MIB


def test_where_nothing_is_free_the_limit_stays() -> None:
    assert grant(budget(800), a_and_b(), "/a", 300 * MIB, 400 * MIB) == 300 * MIB
    assert grant(budget(600), a_and_b(), "/a", 300 * MIB, 400 * MIB) == 300 * MIB


# What holds whatever they ask for.

SIZES = st.integers(0, 2000)


@st.composite
def crowds(draw: st.DrawFn) -> list[Claim]:
    limits = draw(st.lists(st.none() | SIZES, max_size=6))
    return [
        claim(f"agent{at}", limit, draw(SIZES if limit is None else st.integers(0, limit)))
        for at, limit in enumerate(limits)
    ]


@given(limit=SIZES, claims=crowds(), least=st.integers(1, 2000), more=SIZES)
def test_an_admission_fits_or_says_why_not(
    limit: int, claims: list[Claim], least: int, more: int
) -> None:
    least, start = least * MIB, (least + more) * MIB
    admission = admit(budget(limit), claims, least, start)
    left = free(budget(limit), claims)
    if admission.granted:
        assert least <= admission.granted <= min(start, left)
        assert admission.why == ""
    else:
        assert least > left
        assert admission.why.isprintable()


asked = st.tuples(st.sampled_from(["run", "grow", "shrink", "end"]), SIZES, SIZES)


@given(limit=st.integers(1, 2000), story=st.lists(asked, max_size=40))
def test_the_sum_of_limits_never_passes_the_budget(
    limit: int, story: list[tuple[str, int, int]]
) -> None:
    """Any order of runs that begin, grow, give back and end; who grows never loses, nobody gets below its least."""
    agents: dict[str, Claim] = {}
    for at, (what, one, another) in enumerate(story):
        chosen = list(agents.values())[one % len(agents)] if agents else None
        if what == "run":
            least = max(1, min(one, another)) * MIB
            made = admit(budget(limit), agents.values(), least, max(one, another, 1) * MIB)
            assert made.granted >= 0
            if made.granted:
                agents[f"/{at}"] = Claim(f"/{at}", str(at), at, made.granted, 0, least=least)
        elif chosen is not None and chosen.limit is not None:
            if what == "grow":
                wanted = chosen.limit + another * MIB
                got = grant(budget(limit), agents.values(), chosen.path, chosen.limit, wanted)
                assert chosen.limit <= got <= wanted
                agents[chosen.path] = chosen.but(limit=got)
            elif what == "shrink":
                agents[chosen.path] = chosen.but(limit=max(chosen.least, chosen.limit // 2))
            else:
                del agents[chosen.path]
        assert sum(each.taken for each in agents.values()) <= limit * MIB
        assert all(each.taken >= each.least for each in agents.values())


@given(claims=crowds(), limit=SIZES, shrunk=SIZES, wanted=SIZES)
def test_a_host_that_shrinks_takes_nothing_from_those_who_have_it(
    claims: list[Claim], limit: int, shrunk: int, wanted: int
) -> None:
    for each in claims:
        if each.limit is not None:
            got = grant(budget(min(limit, shrunk)), claims, each.path, each.limit, wanted * MIB)
            assert got >= each.limit


def test_a_supervisor_can_count_and_loads_nothing_dear() -> None:
    modules = "agentres.kernel.tree, agentres.policy.contention"
    script = f"import sys; before = set(sys.modules); import {modules}; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    dear = {
        "dataclasses",
        "typing",
        "json",
        "logging",
        "threading",
        "sqlite3",
        "inspect",
        "asyncio",
    }
    assert not dear & set(done.stdout.split())
