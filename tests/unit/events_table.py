"""Events that were written, held against what the reference has of them (:mod:`agentres.model.schemas`)."""

from __future__ import annotations

import typing
from typing import Any

from json_types import faults_of_keys

from agentres.model import schemas


def check(event: dict[str, Any]) -> None:
    """It has the keys that it is to have, each of its type, and no other."""
    common, own = (
        typing.get_type_hints(of) for of in (schemas.Event, schemas.EVENTS[event["event"]])
    )
    found = [*faults_of_keys(event, common | own, event["event"])]
    assert not found, "\n".join(found)


def check_story(events: list[dict[str, Any]]) -> None:
    """All of them, of one run from its start to its end, none of which was lost."""
    for event in events:
        check(event)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["event"], events[-1]["event"]) == ("start", "end")
    assert "end" not in [event["event"] for event in events[:-1]]
    assert len({event["run"] for event in events}) == 1
