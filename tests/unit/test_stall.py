"""An agent that gets nowhere for want of memory: when that is so, and when it is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentres.policy.stall import Stall

MIB = 1 << 20


def test_it_counts_from_when_all_began_to_wait() -> None:
    stall = Stall()
    assert stall.observe(0, 0, 100 * MIB) == 0
    assert stall.observe(5, 5_000_000, 100 * MIB) == 5
    assert stall.observe(10, 9_600_000, 101 * MIB) == 10
    assert stall.observe(11, 9_700_000, 101 * MIB) == 0  # a tenth of that second: it gets on
    assert stall.observe(12, 10_700_000, 101 * MIB) == 1


def test_it_ends_where_less_and_less_is_waited_for() -> None:
    stall = Stall()
    stall.observe(0, 0, MIB)
    assert stall.observe(10, 10_000_000, MIB) == 10
    assert stall.observe(11, 10_600_000, MIB) == 11
    assert stall.observe(12, 11_200_000, MIB) == 12
    assert stall.observe(13, 11_600_000, MIB) == 0  # less than nine tenths of all that time


def test_what_is_taken_back_is_progress() -> None:
    stall = Stall()
    stall.observe(0, 0, 100 * MIB)
    assert stall.observe(5, 5_000_000, 96 * MIB) == 5
    assert stall.observe(10, 10_000_000, 94 * MIB) == 0
    assert stall.observe(15, 15_000_000, 94 * MIB) == 5


def test_what_is_not_known_is_no_stall() -> None:
    stall = Stall()
    stall.observe(0, 0, MIB)
    assert stall.observe(5, None, MIB) == 0
    assert stall.observe(10, 10_000_000, MIB) == 0
    assert stall.observe(15, 15_000_000, None) == 0


@given(st.lists(st.tuples(st.floats(1, 10), st.floats(0, 1), st.integers(0, 200)), min_size=1))
def test_all_have_waited_for_nine_tenths_of_what_it_tells(
    looks: list[tuple[float, float, int]],
) -> None:
    stall, now = Stall(), 0.0
    stall.observe(0, 0, 0)
    waited = [(0.0, 0.0)]
    for passed, part, used in looks:
        now += passed
        waited.append((now, waited[-1][1] + passed * part))
        told = stall.observe(now, round(waited[-1][1] * 1e6), used * MIB)
        _, then = min(waited, key=lambda look: abs(now - told - look[0]))
        assert waited[-1][1] - then >= 0.9 * told - 1e-5


def test_looks_that_follow_each_other_closely_are_not_compared() -> None:
    stall = Stall()
    stall.observe(0, 0, MIB)
    assert stall.observe(0.5, 500_000, MIB) == 0
    assert stall.observe(1, 1_000_000, MIB) == 1
    assert stall.observe(1.1, 1_000_000, MIB) == 1.1


@given(st.lists(st.floats(0, 0.4), min_size=40, max_size=40), st.floats(0.2, 2))
def test_readings_that_come_late_do_not_hide_it(late: list[float], every: float) -> None:
    stall = Stall()
    told = [
        stall.observe(number * every, round((number * every + delay) * 1e6), 100 * MIB)
        for number, delay in enumerate(late * 10)
    ]
    seconds = len(told) * every
    assert max(told) >= min(20, seconds - 10)
