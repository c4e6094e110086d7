"""Events that were written, held against what the reference has of them (:mod:`agentres.model.schemas`)."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from agentres.model import schemas


def of_type(value: Any, wanted: Any) -> bool:
    """Whether JSON has a value of this type, all that is in it included."""
    origin, of = typing.get_origin(wanted), typing.get_args(wanted)
    if typing.is_typeddict(wanted):
        hints = typing.get_type_hints(wanted)
        keys = value.keys() if isinstance(value, dict) else None
        return keys == hints.keys() and all(of_type(value[key], hints[key]) for key in hints)
    if origin is typing.Literal:
        return value in of
    if origin is types.UnionType or origin is typing.Union:
        return any(of_type(value, one) for one in of)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(of_type(each, of[1]) for each in value.values())
    if origin is not None:
        return isinstance(value, list) and all(of_type(each, of[0]) for each in value)
    return isinstance(value, int | float if wanted is float else wanted)


def check(event: dict[str, Any]) -> None:
    """It has the keys that it is to have, each of its type, and no other."""
    common, own = (
        typing.get_type_hints(of) for of in (schemas.Event, schemas.EVENTS[event["event"]])
    )
    hints = common | own
    assert event.keys() == hints.keys(), event
    for key, wanted in hints.items():
        assert of_type(event[key], wanted), (event["event"], key, event[key])


def check_story(events: list[dict[str, Any]]) -> None:
    """All of them, of one run from its start to its end, none of which was lost."""
    for event in events:
        check(event)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["event"], events[-1]["event"]) == ("start", "end")
    assert "end" not in [event["event"] for event in events[:-1]]
    assert len({event["run"] for event in events}) == 1
