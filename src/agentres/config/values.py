"""Parse the values of a file, mostly text, and format them again; invalid ones are a ValueError.

The texts are those of :mod:`agentres.model.units`, and percent.  Formatting gives a text that parses to exactly
the same value, or else the number itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator

from agentres.config.words import nearest, shown
from agentres.model.units import (
    UnitError,
    parse_count,
    parse_cpu,
    parse_duration,
    parse_rate,
    parse_size,
)
from agentres.policy.alerts import Severity
from agentres.policy.resources import RESOURCES
from agentres.policy.restarts import RESTARTS
from agentres.policy.settings import Settings

DEFAULT = Settings()
SUBJECTS = RESOURCES["cpu"].of

NEVER = "never"

_MOST = 10**18
_UNITS: dict[str, tuple[Callable[[str], float], str]] = {
    "bytes": (parse_size, 'a size such as "300MiB"'),
    "bytes/s": (parse_rate, 'bytes a second such as "100MB/s"'),
    "cores": (parse_cpu, "cores such as 1.5"),
    "packets/s": (parse_count, "packets a second such as 500"),
    "count": (parse_count, "a number such as 500"),
}


class Section(BaseModel):
    """A section; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def percent(text: str) -> float | None:
    """Return the exact fraction of a text such as ``75%``; None if it is not one."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,20})?)\s*%", text.strip(), re.ASCII)
    return float(Decimal(match[1]).scaleb(-2)) if match else None


def percent_text(fraction: float) -> str | float:
    """Return the text that :func:`percent` parses to exactly this fraction, or else the number itself."""
    text = f"{Decimal(repr(fraction)).scaleb(2).normalize():f}%"
    return text if percent(text) == fraction else fraction


def duration_text(seconds: float) -> str | float:
    """Return the text that :func:`parse_duration` parses to exactly these seconds, or else the number itself."""
    for size, unit in ((3600, "h"), (60, "m"), (1, "s")):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    text = f"{Decimal(repr(seconds)):f}s" if seconds else "0s"
    try:
        return text if parse_duration(text) == seconds else seconds
    except UnitError:  # more digits than a person writes
        return seconds


def _number(value: object) -> int | float | None:
    """Return a number of TOML; None for anything else.  Booleans are ints in Python, but not numbers in TOML."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


class Between:
    """Takes a figure from ``least`` to ``most``, which ``read`` understands, too; ``above``: more than ``least``."""

    def __init__(
        self,
        expected: str,
        read: Callable[[object], float | None],
        least: float | str,
        most: float | str,
        above: bool = False,
        kind: type[float] = float,
    ) -> None:
        self.range = f"more than {least} and at most {most}" if above else f"{least} to {most}"
        self._expected, self._read, self._above, self._kind = expected, read, above, kind
        low, high = read(least), read(most)
        assert low is not None
        assert high is not None
        self._low, self._high = low, high

    def __call__(self, value: object) -> float:
        found = self._read(value)
        good = found is not None and self._low <= found <= self._high
        if found is None or not good or (self._above and found == self._low):
            raise ValueError(f"expected {self._expected}, {self.range}")
        return self._kind(found)  # only now: an int may be too large for a float


class _OrNever(Between):
    """Takes such a figure, or "never" for infinity."""

    def __call__(self, value: object) -> float:
        if value == NEVER or value == math.inf:
            return math.inf
        try:
            return super().__call__(value)
        except ValueError as error:
            raise ValueError(f'{error}, or "{NEVER}"') from None


_A_DURATION = 'a duration such as "30s"'


def _duration(value: object) -> float | None:
    try:
        return parse_duration(value) if isinstance(value, str) else _number(value)
    except UnitError:
        return None


def _fraction(value: object) -> float | None:
    return percent(value) if isinstance(value, str) else _number(value)


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def seconds(least: str, most: str, above: bool = False) -> PlainValidator:
    """Validate a duration, as text or a number of seconds."""
    return PlainValidator(Between(_A_DURATION, _duration, least, most, above))


def fraction(least: str, most: str) -> PlainValidator:
    """Validate a fraction, as percent or a number."""
    return PlainValidator(Between('percent such as "50%"', _fraction, least, most))


def factor(least: int, most: int, above: bool = False) -> PlainValidator:
    """Validate a number."""
    return PlainValidator(Between("a factor such as 1.5", _number, least, most, above))


def whole(least: int, most: int) -> PlainValidator:
    """Validate a whole number."""
    return PlainValidator(Between("a whole number", _whole, least, most, kind=int))


def never_text(seconds: float) -> str | float:
    """Return :func:`duration_text`, or "never" for infinity."""
    return NEVER if seconds == math.inf else duration_text(seconds)


def _limit(value: object) -> str:
    """Return a limit as text, as in an option; a number is in the limit's unit."""
    number = _number(value)
    if number is not None and abs(number) < _MOST:  # neither nan nor inf
        text = f"{number:.9f}" if isinstance(number, float) else str(number)
        return text.rstrip("0").rstrip(".") if "." in text else text
    if not isinstance(value, str) or not value:
        raise ValueError('expected a limit, or a range such as "256M:2G", as text')
    return value


def _disk(value: object) -> list[str]:
    given = value if isinstance(value, list) else [value]
    try:
        return [_limit(one) for one in given]
    except ValueError:
        raise ValueError(
            'expected a rate or a range such as "10M:100M" or "/dev/vda=50M", or a list of them'
        ) from None


def _share(value: object) -> float:
    share = _fraction(value)
    if share is None or not 0 <= share < 1:
        raise ValueError('expected percent of the threshold such as "5%", less than 100%')
    return float(share)


def _one_of(known: Iterable[str], what: str) -> Callable[[object], str]:
    names = tuple(known)

    def take(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise ValueError(f"expected {what}{nearest(value, names)}")

    return take


def _severity(value: object) -> Severity:
    name = value.upper() if isinstance(value, str) else value
    return Severity[_one_of(Severity.__members__, "a severity")(name)]


def _subjects(value: object) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    if not given or any(given.count(one) > 1 or one not in SUBJECTS for one in given):
        names = ", ".join(f'"{subject}"' for subject in SUBJECTS)
        raise ValueError(f"expected one of {names}, or a list of them, each once")
    return tuple(subject for subject in SUBJECTS if subject in given)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    try:
        return tuple(_text(one) for one in (value if isinstance(value, list) else [value]))
    except ValueError:
        raise ValueError("expected a name, or a list of them") from None


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("expected a name of at most 64 letters, digits, _ and -")
    return value


def _url(value: object) -> str:
    from urllib.parse import urlsplit

    url = _text(value)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        good = False
    # urllib.request accepts neither spaces nor non-ASCII characters, nor a user and password.
    if not good or "@" in parts.netloc or not re.fullmatch("[!-~]+", url):
        raise ValueError(
            'expected a URL such as "https://example.org/alerts", without user and spaces'
        )
    return url


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError('expected a table such as { Authorization = "Bearer TOKEN" }')
    for name, text in value.items():
        # RFC 9110, 5.1 and 5.5.  Values are secret: no error may show one.
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"expected names as RFC 9110 has them, not {shown(name)}")
        if not isinstance(text, str) or not re.fullmatch(r"[!-~\t ]*", text):
            raise ValueError(f"expected one line of printable ASCII as {name}")
    return value


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError('expected a table such as { LANG = "C.UTF-8" }')
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"expected names of variables, not {shown(name)}")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"expected text as {name}")
    return value


def threshold(value: object, name: str) -> tuple[float, bool]:
    """Return a threshold for the resource ``name``, and whether it is a fraction of the limit."""
    unit, limit = RESOURCES[name].unit, RESOURCES[name].limit
    if unit == "fraction":
        expected = 'percent of the time such as "20%", more than 0% and at most 100%'
    elif limit:
        expected = (
            f'{_UNITS[unit][1]} or percent of the limit such as "75%", above 0 and at most 100%'
        )
    else:
        expected = f"{_UNITS[unit][1]}, above 0"
    number: float | None = _number(value)
    share = isinstance(value, str) and value.rstrip().endswith("%")
    if isinstance(value, str) and share:
        if unit != "fraction" and limit is None:
            raise ValueError(f"expected {expected}: {name} has no limit to be percent of")
        number = percent(value)
    elif isinstance(value, str) and unit != "fraction":
        try:
            number = _UNITS[unit][0](value)
        except UnitError:
            number = None
    most = 1 if share or unit == "fraction" else _MOST
    if number is None or not 0 < number <= most:
        raise ValueError(f"expected {expected}")
    return float(number), share and unit != "fraction"


def threshold_text(number: float, name: str, relative: bool) -> str | float:
    """Return what :func:`threshold` parses to this number and ``relative``."""
    unit = RESOURCES[name].unit
    if relative or unit == "fraction":
        return percent_text(number)
    if unit == "bytes" and number % 2**20 == 0:
        return f"{int(number) >> 20}MiB"
    if unit == "bytes/s" and number % 1e6 == 0:
        return f"{int(number) // 10**6}MB/s"
    return int(number) if number % 1 == 0 else number


Seconds = Annotated[float, seconds("0s", "30d")]
Duration = Annotated[float, seconds("1s", "30d")]
OptionalDuration = Annotated[float | None, seconds("1s", "30d")]
DurationOrNever = Annotated[float, PlainValidator(_OrNever(_A_DURATION, _duration, "1s", "30d"))]
Limit = Annotated[str | None, PlainValidator(_limit)]
DiskLimit = Annotated[list[str] | None, PlainValidator(_disk)]
Text = Annotated[str, PlainValidator(_text)]
Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]
OptionalText = Annotated[str | None, PlainValidator(_text)]
Name = Annotated[str, AfterValidator(_name)]
Level = Annotated[Severity, PlainValidator(_severity)]
OptionalLevel = Annotated[Severity | None, PlainValidator(_severity)]
Share = Annotated[float, PlainValidator(_share)]
Subjects = Annotated[tuple[str, ...] | None, PlainValidator(_subjects)]
Resource = Annotated[str, PlainValidator(_one_of(RESOURCES, "a resource"))]
Format = Annotated[str, PlainValidator(_one_of(("agentres", "alertmanager"), "a format"))]
Url = Annotated[str, PlainValidator(_url)]
Headers = Annotated[dict[str, str], PlainValidator(_headers)]
Environment = Annotated[dict[str, str], PlainValidator(_environment)]
Restart = Annotated[str, PlainValidator(_one_of(RESTARTS, "a policy"))]
