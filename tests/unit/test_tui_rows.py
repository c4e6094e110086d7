"""The dashboard's pure part: columns, headings, figures in few characters, bars, and limits as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.store.rows import RING
from agentres.tui import rows
from agentres.tui.app import parse_limits
from agentres.tui.rows import View


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1e15)), max_size=70),
    st.integers(1, 40),
    st.one_of(st.none(), st.floats(0, 1e15)),
)
def test_sparks_have_their_width(values: list[float | None], width: int, top: float | None) -> None:
    drawn = rows.spark(values, width, top)
    assert len(drawn) == width
    assert set(drawn) <= set(rows.BARS + " ")
    last = values[-width:]
    assert [c == " " for c in drawn[width - len(last) :]] == [value is None for value in last]


@given(st.floats(0, 2**59))
def test_what_is_short_is(value: float) -> None:
    assert len(rows.short(value)) <= 5
    assert len(rows.rate(value)) <= 5
    assert len(rows.count(min(value, 9e8))) <= 4
    assert len(rows.cores(min(value, 9999))) <= 4


def test_rates_and_counts_are_decimal_and_sizes_binary() -> None:
    assert (rows.rate(8_000_000), rows.rate(39_600)) == ("8.0M", "40k")
    assert (rows.short(8 << 20), rows.short(512 << 10)) == ("8.0M", "512K")
    assert [rows.count(n) for n in (1500, 9999, 12_000)] == ["1500", "9999", "12k"]


@given(st.integers(20, 300), st.sampled_from(["", *rows.SORTS]))
def test_columns_fit(width: int, sort: str) -> None:
    chosen = rows.columns(width, sort)
    needed = sum(column.width + rows.GAP for column in chosen)
    assert needed <= width or all(column.drop == 0 or column.name == sort for column in chosen)
    assert chosen[0].name == "name"
    assert not sort or sort in [column.name for column in chosen]


@given(
    st.lists(st.tuples(st.floats(-10, 1e9), st.sampled_from("█▒")), max_size=3),
    st.floats(-1, 1e9),
    st.integers(1, 80),
)
def test_bars_have_their_width(parts: list[tuple[float, str]], total: float, width: int) -> None:
    assert len(rows.bar(parts, total, width)) == width


def test_the_documentation_says_which_columns_go_first() -> None:
    going = sorted((c for c in rows.COLUMNS if c.drop), key=lambda c: -c.drop)
    text = (Path(__file__).parents[2] / "docs/dashboard.md").read_text()
    assert f"{', '.join(c.name for c in going)} go first" in text
    assert f"curves of the last {RING} samples" in text


def test_all_sorts_are_columns_with_room_for_the_mark() -> None:
    columns = {column.name: column for column in rows.COLUMNS}
    for name in rows.SORTS:
        assert len(rows.heading(columns[name], View(sort=name))) <= columns[name].width
    assert View().sort in rows.SORTS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("memory=2G", {"memory": "2G"}),
        ("--net-in=1MB/s pids=9", {"net_in": "1MB/s", "pids": "9"}),
        (
            "io_write=/dev/vda=1M io_write=/dev/vdb=2M",
            {"io_write": ["/dev/vda=1M", "/dev/vdb=2M"]},
        ),
        ("", {}),
    ],
)
def test_limits_as_they_are_typed(text: str, found: dict[str, object]) -> None:
    assert parse_limits(text) == found


@pytest.mark.parametrize("text", ["memory", "memory=", "=2G", "colour=blue", "pids=1 pids=2"])
def test_limits_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|twice"):
        parse_limits(text)
