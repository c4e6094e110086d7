"""What holds JSON against a type finds what is wrong with it, wherever that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import pytest
from json_types import check, faults


class Inner(TypedDict):
    at: float
    kind: Literal["a", "b"]


class Whole(TypedDict):
    name: str
    inner: Inner | None
    every: Sequence[Inner]
    by: Mapping[Literal["x", "y"], int]
    bucket: tuple[float, int]


GOOD: dict[str, Any] = {
    "name": "n", "inner": None, "every": [{"at": 1, "kind": "a"}], "by": {"x": 1}, "bucket": [0.5, 1],
}  # fmt: skip


def test_what_is_as_it_should_be_has_no_faults() -> None:
    check(GOOD, Whole)
    check({**GOOD, "inner": {"at": 0.5, "kind": "b"}, "every": [], "by": {}}, Whole)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"more": 1}, ": more is not told of"),
        ({"name": None}, ".name: None is no"),
        ({"inner": []}, ".inner: [] is no"),
        ({"inner": {"at": 1}}, ".inner: kind is missing"),
        ({"every": {}}, ".every: {} is no"),
        ({"every": [{"at": "1", "kind": "a"}]}, ".every[0].at: '1' is no"),
        ({"every": [{"at": True, "kind": "a"}]}, ".every[0].at: True is no"),
        ({"every": [{"at": 1, "kind": "c"}]}, ".every[0].kind: 'c' is none of"),
        ({"by": {"z": 1}}, ".by: a key: 'z' is none of"),
        ({"by": {"x": 1.0}}, ".by.x: 1.0 is no"),
        ({"bucket": [0.5]}, ".bucket: [0.5] is no"),
        ({"bucket": [0.5, 1.5]}, ".bucket[1]: 1.5 is no"),
    ],
)
def test_a_fault_is_found_and_told_where_it_is(wrong: dict[str, Any], where: str) -> None:
    (fault,) = faults({**GOOD, **wrong}, Whole)
    assert fault.startswith(where)
    with pytest.raises(AssertionError):
        check({**GOOD, **wrong}, Whole)


def test_a_key_that_is_missing_is_a_fault() -> None:
    assert [*faults({key: GOOD[key] for key in GOOD if key != "by"}, Whole)] == [": by is missing"]
