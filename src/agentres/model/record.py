"""Frozen, slotted records, and numbers with names: light stand-ins for dataclasses and enum beside an agent.

``dataclasses`` imports ``inspect`` (hence ``ast``, ``dis``, ``tokenize``) and compiles the methods of
every class from text.  That took a third of a launch's time, and a megabyte of resident memory.  A
:class:`Record` is written like a frozen dataclass, and type checkers treat it as one (PEP 681).  ``enum``
takes memory as well (docs/architecture.md says how much); type checkers take :class:`IntEnum` for its own.
Modules that never stay beside an agent use real dataclasses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import IntEnum as IntEnum  # noqa: PLC0414 -- for others to import from here
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):  # noqa: ANN003, ANN201, D103 -- typing's, for the interpreter
        return lambda decorated: decorated


@dataclass_transform(frozen_default=True)
class RecordType(type):
    """Turns a class's annotations into slots, after those of its bases, and their values into defaults."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:
        own = tuple(namespace.get("__annotations__", ()))
        defaults = {field: namespace.pop(field) for field in own if field in namespace}
        fields: tuple[str, ...] = ()
        for base in bases:
            fields += getattr(base, "__match_args__", ())
            defaults = {**getattr(base, "_defaults", {}), **defaults}
        new = tuple(field for field in own if field not in fields)
        of_class = {"__slots__": new, "__match_args__": fields + new, "_defaults": defaults}
        return super().__new__(mcs, name, bases, {**namespace, **of_class})


class Record(metaclass=RecordType):
    """An immutable value: built from its fields, by position or name, and compared by them."""

    __match_args__: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]
    if not TYPE_CHECKING:
        del __annotations__  # noqa: F821 -- the two above are the class's, not fields of its instances

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self.__match_args__
        if len(values) == len(fields) and not named:
            for field, value in zip(fields, values, strict=True):
                object.__setattr__(self, field, value)
            return
        given = dict(zip(fields, values, strict=False), **named)
        if len(values) > len(fields) or len(given) != len(values) + len(named):
            raise TypeError(f"{type(self).__name__}() takes each of {fields} once")
        filled = {**self._defaults, **given}
        if filled.keys() != set(fields):
            wrong = ", ".join(sorted(filled.keys() ^ set(fields)))
            raise TypeError(f"{type(self).__name__}(): missing or unknown: {wrong}")
        for field, value in filled.items():
            object.__setattr__(self, field, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def but(self, **changed: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.as_dict(), **changed})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {field: getattr(self, field) for field in self.__match_args__}

    def as_tuple(self) -> tuple[Any, ...]:
        """Return the fields' values, in their order."""
        return tuple(getattr(self, field) for field in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(other.as_tuple() == self.as_tuple())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.as_tuple()

    def __hash__(self) -> int:
        return hash((type(self), self.as_tuple()))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{f}={v!r}" for f, v in zip(self.__match_args__, self.as_tuple(), strict=True)
        )
        return f"{type(self).__name__}({shown})"


if not TYPE_CHECKING:

    class IntEnumType(type):
        """Turns a class's numbers into its members: by name ``cls["INFO"]``, by value ``cls(0)``, in order ``iter(cls)``."""

        def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            made = super().__new__(mcs, name, bases, namespace)
            numbers = {
                key: value
                for key, value in namespace.items()
                if key[0] != "_" and type(value) is int
            }
            made.__members__ = {key: int.__new__(made, value) for key, value in numbers.items()}
            for key, member in made.__members__.items():
                member.name, member.value = key, numbers[key]
                setattr(made, key, member)
            return made

        def __call__(cls, value: int) -> IntEnum:
            for member in cls:
                if member == value:
                    return member
            raise ValueError(f"{value!r} is not a valid {cls.__name__}")

        def __getitem__(cls, name: str) -> IntEnum:
            return cls.__members__[name]

        def __iter__(cls) -> Iterator[IntEnum]:
            return iter(cls.__members__.values())

    class IntEnum(int, metaclass=IntEnumType):
        """A number with a ``name``; ``value`` is the bare number."""

        __str__ = int.__repr__

        def __repr__(self) -> str:
            return f"<{type(self).__name__}.{self.name}: {self.value}>"

        def __reduce__(self) -> tuple[Any, ...]:
            return type(self), (self.value,)
