"""The protocol of the control sockets: commands and answers as lines of JSON; pure.

    {"agentres": 1, "do": "freeze"}
    {"ok": true}

    {"agentres": 1, "do": "set", "limits": {"memory": "2G", "cpu": "0.5:4"}}
    {"ok": false, "error": "--memory 2G: is above the host's 1 GiB", "remedy": ""}

docs/control.md has every verb with its fields.
"""

from __future__ import annotations

import json

from agentres.model.errors import AgentresError, UsageError
from agentres.model.limits import DISKS, LIMIT_SPECS
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX, NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

PROTOCOL = 1
"""The version of the protocol; additions that older clients can ignore do not change it."""

SETTABLE = tuple(key for key in LIMIT_SPECS if key not in ("nofile", "net", "io_strict"))
"""The limits that can be changed while an agent runs; the others are fixed at its launch."""

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL, if the command names none."""

FROZEN = 1800.0
"""Seconds after which an agent that was frozen by command is thawed, if the command names none."""

_GRACE_MAX = 86_400.0
_FROZEN_MAX = 365 * 86_400.0
_TEXTS_MAX = 64


class Command(Record):
    """A command: one of :data:`VERBS`, and its checked fields."""

    verb: str
    fields: Mapping[str, Any]


def parse(line: bytes) -> Command:
    """Return the command in a line.  UsageError says what is wrong with it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("expected a line of JSON") from None
    if not isinstance(found, dict):
        raise UsageError("expected an object")
    if (version := found.pop("agentres", None)) != PROTOCOL or version is True:
        raise UsageError(f'expected "agentres": {PROTOCOL}, the version of the protocol')
    verb = found.pop("do", None)
    if not isinstance(verb, str) or verb not in VERBS:
        raise UsageError(f'expected "do": one of {", ".join(VERBS)}')
    checks = VERBS[verb]
    if unknown := found.keys() - checks.keys():
        raise UsageError(f"{verb}: no field {min(unknown)!r}")
    return Command(verb, {key: check(found.get(key)) for key, check in checks.items()})


def command(verb: str, **fields: object) -> bytes:
    """Return the line of a command."""
    return line(agentres=PROTOCOL, do=verb, **fields)


def success(**fields: object) -> bytes:
    """Return the answer that a command was carried out."""
    return line(ok=True, **fields)


def failure(error: AgentresError) -> bytes:
    """Return the answer that it was not, and why."""
    return line(ok=False, error=error.message, remedy=error.remedy)


def line(**fields: object) -> bytes:
    """Return a line of the protocol, of either side."""
    return json.dumps(fields).encode() + b"\n"


def _grace(value: object) -> float:
    if value is None:
        return GRACE
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value <= _GRACE_MAX:  # type: ignore[operator]
        raise UsageError(f'expected "grace": seconds, at most {_GRACE_MAX:g}')
    return float(value)  # type: ignore[arg-type]


def _frozen(value: object) -> float:
    """Return the seconds; NEVER: until it is thawed."""
    if value is None:
        return FROZEN
    if value == MAX:
        return NEVER
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value <= _FROZEN_MAX:  # type: ignore[operator]
        raise UsageError(f'expected "for": seconds, at most {_FROZEN_MAX:.0f}, or "max"')
    return float(value)  # type: ignore[arg-type]


def _limits(value: object) -> dict[str, str | list[str]]:
    if not isinstance(value, dict) or not value:
        raise UsageError('expected "limits": an object such as {"memory": "2G"}')
    for key, given in value.items():
        if key not in LIMIT_SPECS:
            raise UsageError(f"there is no limit {key!r}: expected one of {', '.join(SETTABLE)}")
        if key not in SETTABLE:
            raise UsageError(f"{key} is settled when an agent starts, and cannot be set")
        texts = given if key in DISKS and isinstance(given, list) else [given]
        if not 0 < len(texts) <= _TEXTS_MAX or not all(isinstance(text, str) for text in texts):
            raise UsageError(f'expected "{key}": a text such as an option of agentres run has it')
    return value


VERBS: Mapping[str, Mapping[str, Callable[[object], Any]]] = {
    "show": {},
    "set": {"limits": _limits},
    "freeze": {"for": _frozen},
    "thaw": {},
    "stop": {"grace": _grace},
    "kill": {},
    "wait": {},
}
"""Verb -> its fields, each with the function that checks it (None for an absent field)."""
