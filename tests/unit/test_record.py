"""Records are the frozen, slotted dataclasses that they stand in for."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from agentres.model.record import IntEnum, Record
from agentres.model.stats import OomKill
from agentres.policy.alerts import Severity


def make_pair() -> tuple[type, type]:
    """One class body, once as a record and once as a dataclass."""

    class Point(Record):
        x: int
        y: int = 0
        label: str = "p"

        @property
        def sum(self) -> int:
            return self.x + self.y

    record = Point

    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:  # type: ignore[no-redef]  # the same name, for repr()
        x: int
        y: int = 0
        label: str = "p"

        @property
        def sum(self) -> int:
            return self.x + self.y

    record.__qualname__ = Point.__qualname__ = "Point"
    return record, Point


RECORD, DATACLASS = make_pair()
KINDS = pytest.mark.parametrize("kind", [RECORD, DATACLASS], ids=["record", "dataclass"])
"""What holds for both is what makes one the other's stand-in."""

GOOD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, "q"), {}),
    ((), {"x": 1}),
    ((1,), {"label": "q"}),
    ((), {"label": "q", "y": 5, "x": 4}),
    ((None,), {"y": None}),
]

BAD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"y": 1}),
    ((1, 2, "q", 4), {}),
    ((1,), {"x": 1}),
    ((1,), {"z": 1}),
    ((), {"z": 1}),
]


@KINDS
@pytest.mark.parametrize(("values", "named"), GOOD, ids=repr)
def test_fields_are_filled_in_order_by_name_and_by_default(
    kind: Any, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    expected = {
        "y": 0,
        "label": "p",
        **dict(zip(("x", "y", "label"), values, strict=False)),
        **named,
    }
    made = kind(*values, **named)
    assert {name: getattr(made, name) for name in ("x", "y", "label")} == expected


@KINDS
@pytest.mark.parametrize(("values", "named"), BAD, ids=repr)
def test_missing_unknown_and_repeated_fields_are_type_errors(
    kind: Any, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)


@KINDS
def test_a_value_is_equal_to_one_of_the_same_class_and_fields(kind: Any) -> None:
    assert kind(1, 2) == kind(x=1, y=2)


@KINDS
@pytest.mark.parametrize("other", [(1, 2, "p"), None, 1, "Point(x=1, y=2, label='p')"], ids=repr)
def test_a_value_differs_from_anything_of_another_class(kind: Any, other: object) -> None:
    assert kind(1, 2) != other


@KINDS
@pytest.mark.parametrize("other", [(2, 2, "p"), (1, 1, "p"), (1, 2, "q")])
def test_a_value_differs_when_one_field_does(kind: Any, other: tuple[Any, ...]) -> None:
    assert kind(1, 2) != kind(*other)


class Anything:
    """Equal to all that leaves the answer to it."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@KINDS
def test_another_class_may_say_that_it_equals_a_value(kind: Any) -> None:
    assert kind(1, 2).__eq__(5) is NotImplemented
    assert kind(1, 2) == Anything()
    assert kind(1, mock.ANY) == kind(1, 2)


@pytest.mark.parametrize("dump", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@KINDS
def test_a_copy_is_equal(kind: Any, dump: Callable[[Any], Any]) -> None:
    made = kind(1, label="q")
    assert dump(made) == made
    assert type(dump(made)) is kind


@KINDS
def test_only_a_deep_copy_copies_the_fields(kind: Any) -> None:
    made = kind([1])
    assert copy.copy(made).x is made.x
    assert copy.deepcopy(made).x == [1]
    assert copy.deepcopy(made).x is not made.x


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_can_be_pickled(protocol: int) -> None:
    made = OomKill(7, "cc1", cgroup="/a", limit_cgroup="")
    again = pickle.loads(pickle.dumps(made, protocol))
    assert again == made
    assert type(again) is OomKill


def test_a_record_differs_from_a_dataclass_of_the_same_fields() -> None:
    assert RECORD(1, 2) != DATACLASS(1, 2)


@KINDS
def test_equal_values_are_one_member_of_a_set(kind: Any) -> None:
    assert len({kind(1, 2), kind(1, 2), kind(1, 3)}) == 2


@KINDS
def test_a_value_with_an_unhashable_field_has_no_hash(kind: Any) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(kind([]))


@KINDS
@pytest.mark.parametrize("name", ["x", "y", "nothing"])
def test_a_value_cannot_be_changed(kind: Any, name: str) -> None:
    made = kind(1)
    # Python 3.11's dataclasses answer an unknown name with TypeError (python/cpython#105936).
    with pytest.raises((AttributeError, TypeError)):
        setattr(made, name, 5)
    assert made == kind(1)


@KINDS
def test_a_field_cannot_be_deleted(kind: Any) -> None:
    made = kind(1)
    with pytest.raises(AttributeError):
        del made.x
    assert made.x == 1


@KINDS
def test_a_value_has_slots_and_no_dict(kind: Any) -> None:
    assert kind.__slots__ == ("x", "y", "label")
    assert not hasattr(kind(1), "__dict__")


@KINDS
def test_a_value_matches_by_position(kind: Any) -> None:
    assert kind.__match_args__ == ("x", "y", "label")
    match kind(1, 2):
        case kind(x, 2):
            assert x == 1
        case other:
            pytest.fail(f"{other!r} did not match")


@KINDS
def test_repr_is_how_to_make_the_value(kind: Any) -> None:
    assert repr(kind(1, label="q")) == "Point(x=1, y=0, label='q')"


@KINDS
def test_properties_work_on_the_fields(kind: Any) -> None:
    assert kind(1, 2).sum == 3


def test_the_error_names_the_class_and_the_field() -> None:
    with pytest.raises(TypeError, match=r"Point\(\).*: x"):
        RECORD()
    with pytest.raises(TypeError, match=r"Point\(\).*: z"):
        RECORD(1, z=2)


def test_a_record_without_fields_is_a_value_too() -> None:
    class Nothing(Record):
        pass

    assert Nothing() == Nothing()
    with pytest.raises(TypeError):
        Nothing(1)


def test_a_record_of_a_record_has_its_fields_first() -> None:
    class One(Record):
        a: int
        b: int = 2

    class More(One):
        b: int = 5
        c: int = 3

    assert More.__match_args__ == ("a", "b", "c")
    assert More(1) == More(1, 5, 3)
    assert One(1).b == 2
    assert isinstance(More(1), One)
    with pytest.raises(AttributeError):
        More(1).b = 7  # type: ignore[misc]


def make_levels(base: Any) -> Any:
    class Level(base):  # type: ignore[misc]  # one class body, for both
        """How high."""

        LOW = 1
        HIGH = 3

    return Level


@pytest.mark.parametrize("base", [IntEnum, enum.IntEnum], ids=["ours", "enum's"])
def test_a_named_number_is_as_enums(base: Any) -> None:
    level = make_levels(base)
    low, high = level
    assert (low, high) == (level.LOW, level.HIGH) == (1, 3)
    assert (low.name, low.value, type(low.value)) == ("LOW", 1, int)
    assert level["HIGH"] is level(3) is high
    assert list(level.__members__) == ["LOW", "HIGH"]
    assert isinstance(low, level)
    assert max(low, high) is high
    assert {low: "x"}[1] == "x"
    assert (f"{low}", str(low), json.dumps(low), repr(low)) == ("1", "1", "1", "<Level.LOW: 1>")
    with pytest.raises(KeyError):
        level["NONE"]
    with pytest.raises(ValueError, match=r"^2 is not a valid .*Level$"):
        level(2)


def test_a_named_number_is_pickled_and_copied_as_itself() -> None:
    assert pickle.loads(pickle.dumps(Severity.CRITICAL)) is Severity.CRITICAL
    assert copy.deepcopy(Severity.CRITICAL) is Severity.CRITICAL
