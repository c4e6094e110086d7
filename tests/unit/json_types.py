"""JSON that was made, held against a type of the reference (:mod:`agentres.model.schemas` and its neighbours)."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any


def check(value: Any, wanted: Any) -> None:
    """All of it is of this type: objects have exactly the keys that they are to have."""
    found = [*faults(value, wanted)]
    assert not found, "\n".join(found)


def faults(value: Any, wanted: Any, at: str = "") -> Iterator[str]:
    """What of a value is not of this type, and where."""
    origin, of = typing.get_origin(wanted), typing.get_args(wanted)
    if typing.is_typeddict(wanted):
        yield from faults_of_keys(value, typing.get_type_hints(wanted), at)
    elif origin in (types.UnionType, typing.Union):
        every = [[*faults(value, one, at)] for one in of]
        yield from [] if [] in every else max(every, key=len)
    elif origin is typing.Literal:
        if value not in of:
            yield f"{at}: {value!r} is none of {of}"
    elif origin is None:
        if not _plain(value, wanted):
            yield f"{at}: {value!r} is no {wanted}"
    elif not isinstance(value, _container(origin)):
        yield f"{at}: {value!r} is no {wanted}"
    elif issubclass(origin, Mapping):
        for key, each in value.items():
            yield from faults(key, of[0], f"{at}: a key")
            yield from faults(each, of[1], f"{at}.{key}")
    elif origin is tuple and len(value) != len(of):
        yield f"{at}: {value!r} is no {wanted}"
    else:
        for number, each in enumerate(value):
            yield from faults(each, of[number if origin is tuple else 0], f"{at}[{number}]")


def faults_of_keys(value: Any, hints: dict[str, Any], at: str) -> Iterator[str]:
    """The same for an object with exactly these keys."""
    if not isinstance(value, dict):
        yield f"{at}: {value!r} is no object"
        return
    for key in value.keys() ^ hints.keys():
        yield f"{at}: {key} is {'not told of' if key in value else 'missing'}"
    for key in value.keys() & hints.keys():
        yield from faults(value[key], hints[key], f"{at}.{key}")


def _container(origin: type) -> type[Any]:
    """What JSON makes of a mapping, and of any other collection."""
    return dict if issubclass(origin, Mapping) else list


def _plain(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool):
        return wanted in (bool, object)
    return isinstance(value, int | float if wanted is float else wanted)
