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
    assert stall.observe(11, 9_700_000, 101 * MIB) == 0  # a tenth of that second
    assert stall.observe(12, 10_700_000, 101 * MIB) == 1


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


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1), st.integers(0, 200)), min_size=1))
def test_it_is_never_longer_than_all_have_waited(looks: list[tuple[float, float, int]]) -> None:
    stall, now, full, waited = Stall(), 0.0, 0.0, 0.0
    stall.observe(0, 0, 0)
    for passed, part, used in looks:
        now += passed
        full += passed * part * 1e6
        waited = waited + passed if part >= 0.899 else 0.0
        assert stall.observe(now, round(full), used * MIB) <= waited + 1e-6
