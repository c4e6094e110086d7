"""Declares the parameters of verbs without Typer, which takes longer to load than most verbs take to answer.

A verb annotates its parameters: ``lines: Annotated[int | None, Option(short="-n", metavar="N", help="…")] = None``.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar

from agentres.model.record import Record

if typing.TYPE_CHECKING:
    from agentres.run.options import RunOption

V = TypeVar("V", bound=Callable[..., Any])

REQUIRED: Any = object()
"""The default of a parameter that must be given."""


class Misuse(Exception):
    """The verb rejects a line that Typer accepts: exit status 2, with where to read more."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(f"Invalid value for {option}: {message}" if option else message)


class Option(Record):
    """An option: its name if it is not the parameter's, the metavar of its value, and its text in ``--help``.

    ``least`` is the smallest number allowed.  An option of type bool takes no value.
    """

    name: str = ""
    short: str = ""
    metavar: str = ""
    help: str = ""
    panel: str | None = None
    least: int | None = None


class Argument(Record):
    """A positional argument; a list takes all that is left.  ``names`` returns what a shell may complete it with."""

    metavar: str = ""
    help: str = ""
    names: Callable[[], Iterable[str]] | None = None


class Parameter(Record):
    """One parameter of a verb's function: ``of`` is bool, int or str; ``many``: a list of those."""

    key: str
    of: type
    many: bool
    default: Any
    declared: Option | Argument

    @property
    def names(self) -> list[str]:
        """How an option is written: ``--lines``, ``-n``."""
        assert isinstance(self.declared, Option)
        name = self.declared.name or f"--{self.key.replace('_', '-')}"
        return [name, self.declared.short] if self.declared.short else [name]

    def value(self, text: str) -> Any:
        """Parse a text; ValueError."""
        if self.of is not int:
            return text
        number = int(text)
        least = self.declared.least if isinstance(self.declared, Option) else None
        if least is not None and number < least:
            raise ValueError(text)
        return number


_MORE: dict[Callable[..., Any], Callable[[], Iterable[Parameter]]] = {}


def takes(more: Callable[[], Iterable[Parameter]]) -> Callable[[V], V]:
    """Decorate a verb that takes the parameters of ``more``, by name, in addition to its function's own."""

    def decorate(verb: V) -> V:
        _MORE[verb] = more
        return verb

    return decorate


def parameters(verb: Callable[..., Any]) -> list[Parameter]:
    """Return a verb's parameters, in the order of its function."""
    # Not inspect.signature(): loading inspect is a third of the time of a short answer.
    code, hints = verb.__code__, typing.get_type_hints(verb, include_extras=True)
    names = code.co_varnames[: code.co_argcount]
    given = verb.__defaults__ or ()
    defaults = dict(zip(names[len(names) - len(given) :], given, strict=True))
    found = [_parameter(name, hints[name], defaults.get(name, REQUIRED)) for name in names]
    return [*found, *(_MORE[verb]() if verb in _MORE else ())]


def _parameter(key: str, hint: Any, default: Any) -> Parameter:
    (declared,) = hint.__metadata__
    of = hint.__origin__
    if isinstance(of, UnionType):
        (of,) = (each for each in of.__args__ if each is not NoneType)
    many = typing.get_origin(of) is list
    return Parameter(key, of.__args__[0] if many else of, many, default, declared)


def of_run(options: Iterable[RunOption]) -> Iterator[Parameter]:
    """Yield options of ``agentres run`` as a verb's parameters."""
    for option in options:
        of: type = str if option.metavar else bool
        declared = Option(
            metavar=option.metavar, help=option.help, panel=option.panel, short=option.short
        )
        yield Parameter(
            option.key, of, option.repeatable, None if option.metavar else False, declared
        )


def read(known: Sequence[Parameter], words: Sequence[str]) -> dict[str, Any] | None:
    """Parse a well-formed line into its values and the defaults; None for any other, such as one with ``--help``."""
    options = {
        name: each for each in known if isinstance(each.declared, Option) for name in each.names
    }
    values: dict[str, Any] = {each.key: each.default for each in known}
    placed, rest = list[str](), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            placed += rest
            break
        if not word.startswith("-") or word == "-":
            placed.append(word)
            continue
        name, equals, text = word.partition("=")
        option = options.get(name)
        if option is None or (equals and (option.of is bool or not name.startswith("--"))):
            return None
        if option.of is bool:
            values[option.key] = True
            continue
        if not equals:
            if not rest or rest[0].startswith("-"):
                return None
            text = rest.pop(0)
        if not _put(values, option, text):
            return None
    for each in known:
        if isinstance(each.declared, Argument):
            taken = placed if each.many else placed[:1]
            placed = placed[len(taken) :]
            if not all(_put(values, each, text) for text in taken):
                return None
    return None if placed or any(value is REQUIRED for value in values.values()) else values


def _put(values: dict[str, Any], parameter: Parameter, text: str) -> bool:
    try:
        value = parameter.value(text)
    except ValueError:
        return False
    if parameter.many:
        before = values[parameter.key]
        value = [value] if before in (None, REQUIRED) else [*before, value]
    values[parameter.key] = value
    return True
