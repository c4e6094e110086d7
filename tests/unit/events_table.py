"""What docs/events.md promises of every event, to be compared with events that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/events.md"

_TYPES: dict[str, Any] = {
    "string": str, "integer": int, "number": int | float, "array": list, "object": dict, "null": type(None),
}  # fmt: skip


def _words(cell: str) -> list[str]:
    return [word.strip("` ") for word in cell.split(",")]


def _tables() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The types of the keys that all events have, and of each event's own."""
    common: dict[str, str] = {}
    moved: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    moves: list[str] = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("What was done with a limit"):
            moves = [word.split("`")[1] for word in line.split(",") if word.count("`") == 2]
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("| `"):
            continue
        if len(cells) == 4:
            own.setdefault(*_words(cells[0]), {})[_words(cells[1])[0]] = cells[2]  # type: ignore[arg-type]
        else:
            (moved if moves else common).update(dict.fromkeys(_words(cells[0]), cells[1]))
    return common, own | dict.fromkeys(moves, moved)


COMMON, OWN = _tables()


def check(event: dict[str, Any]) -> None:
    """It has the keys that the page has for it, each of its type, and no other."""
    keys = COMMON | OWN[event["event"]]
    assert event.keys() == keys.keys(), event
    for key, types in keys.items():
        value = event[key]
        wanted = tuple(_TYPES[word] for word in _words(types))
        assert isinstance(value, wanted), (event["event"], key, value)


def check_story(events: list[dict[str, Any]]) -> None:
    """All of them, of one run from its start to its end, none of which was lost."""
    for event in events:
        check(event)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["event"], events[-1]["event"]) == ("start", "end")
    assert "end" not in [event["event"] for event in events[:-1]]
    assert len({event["run"] for event in events}) == 1
