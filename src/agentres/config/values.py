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


def seconds(least: str, most: str, above: bool = False) -> PlainValidator:
    """Validate a duration, as text or a number of seconds, from ``least`` to ``most``; ``above``: more than ``least``."""
    return PlainValidator(_duration(least, most, above))


def _duration(least: str, most: str, above: bool = False) -> Callable[[object], float]:
    low, high = parse_duration(least), parse_duration(most)
    from_to = f"more than {least} and at most {most}" if above else f"{least} to {most}"

    def take(value: object) -> float:
        try:
            found = parse_duration(value) if isinstance(value, str) else _number(value)
        except UnitError:
            found = None
        if found is None or not low <= found <= high or (above and found == low):
            raise ValueError(f'expected a duration such as "30s", {from_to}')
        return float(found)

    return take


def _never(value: object) -> float:
    if value == NEVER or value == math.inf:
        return math.inf
    try:
        return _duration("1s", "30d")(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "{NEVER}"') from None


def never_text(seconds: float) -> str | float:
    """Return :func:`duration_text`, or "never" for infinity."""
    return NEVER if seconds == math.inf else duration_text(seconds)


def fraction(least: str, most: str) -> PlainValidator:
    """Validate a fraction, as percent or a number, from ``least`` to ``most``."""
    low, high = percent(least), percent(most)
    assert low is not None
    assert high is not None

    def take(value: object) -> float:
        share = percent(value) if isinstance(value, str) else _number(value)
        if share is None or not low <= share <= high:
            raise ValueError(f'expected percent such as "50%", {least} to {most}')
        return float(share)

    return PlainValidator(take)


def factor(least: int, most: int, above: bool = False) -> PlainValidator:
    """Validate a number from ``least`` to ``most``; ``above``: more than ``least``."""
    from_to = f"more than {least} and at most {most}" if above else f"{least} to {most}"

    def take(value: object) -> float:
        number = _number(value)
        if number is None or not least <= number <= most or (above and number == least):
            raise ValueError(f"expected a factor such as 1.5, {from_to}")
        return float(number)

    return PlainValidator(take)


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


def whole(least: int, most: int) -> PlainValidator:
    """Validate a whole number from ``least`` to ``most``."""

    def take(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected a whole number, {least} to {most}")
        return value

    return PlainValidator(take)


def _share(value: object) -> float:
    share = percent(value) if isinstance(value, str) else _number(value)
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
Lasting = Annotated[float, seconds("1s", "30d")]
OptionalLasting = Annotated[float | None, seconds("1s", "30d")]
LastingOrNever = Annotated[float, PlainValidator(_never)]
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
