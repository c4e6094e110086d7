"""Readers of the kernel's formats, and the kernel's words on OOM kills."""

from __future__ import annotations

import pytest

from agentres.model import stats
from agentres.model.stats import StatError
from agentres.model.units import MAX


@pytest.mark.parametrize(
    ("text", "value"),
    {"0\n": 0, "4096\n": 4096, "max\n": MAX, "max": MAX, " 7 ": 7, "-1": -1}.items(),
)
def test_a_single_value_is_a_number_or_max(text: str, value: int | str) -> None:
    assert stats.parse_value(text) == value


@pytest.mark.parametrize("text", ["", "\n", "maximum", "1.5", "1 2", "0x1", "\0", "9" * 5000])
def test_garbage_is_no_single_value(text: str) -> None:
    with pytest.raises(StatError, match="expected a number or max"):
        stats.parse_value(text)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("populated 1\nfrozen 0\n", {"populated": 1, "frozen": 0}),
        ("low 0\nhigh max", {"low": 0, "high": MAX}),
        ("a 1\na 2\n", {"a": 2}),
    ],
)
def test_flat_keyed_text_is_a_key_and_a_value_a_line(text: str, pairs: dict[str, int]) -> None:
    assert stats.parse_flat_keyed(text) == pairs


@pytest.mark.parametrize("text", ["populated", "populated \n", "a 1\n\nb 2", "a b", "a 1 2", "a=1"])
def test_garbage_is_not_flat_keyed(text: str) -> None:
    with pytest.raises(StatError):
        stats.parse_flat_keyed(text)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("", {}),
        (
            "8:0 rbytes=1 wbytes=2\n8:16 rbytes=3\n",
            {"8:0": {"rbytes": 1, "wbytes": 2}, "8:16": {"rbytes": 3}},
        ),
        ("8:0 rbps=max wiops=5\n", {"8:0": {"rbps": MAX, "wiops": 5}}),
        ("8:0\n8:16 rios=1", {"8:0": {}, "8:16": {"rios": 1}}),
    ],
)
def test_nested_keyed_text_is_a_device_and_its_pairs_a_line(
    text: str, table: dict[str, dict[str, int]]
) -> None:
    assert stats.parse_nested_keyed(text) == table


@pytest.mark.parametrize(
    "text",
    [
        "8:0 rbytes",
        "8:0 rbytes=",
        "8:0 rbytes=x",
        "8:0 8:16 rbytes=1",
        "\n",
        " \n",
        "8:0 rbytes=1\n\n8:16 rbytes=1\n",
    ],
)
def test_garbage_is_not_nested_keyed(text: str) -> None:
    with pytest.raises(StatError):
        stats.parse_nested_keyed(text)
