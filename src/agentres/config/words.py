"""Configuration errors: the exceptions, and how messages show keys, values and likely intended names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from agentres.model.errors import UsageError, printable


class ConfigError(UsageError):
    """A configuration file that is invalid or cannot be read."""


class Wrong(ValueError):
    """A mistake in a section: key -> what was expected of it.  Changing any one of the keys fixes it."""

    def __init__(self, key: str, expected: str, **others: str) -> None:
        super().__init__(expected)
        self.keys: dict[tuple[str, ...], str] = {(key,) if key else (): expected}
        self.keys |= {(one,): words for one, words in others.items()}

    def within(self, section: tuple[str, ...]) -> Wrong:
        """Prefix the keys with the path of their section, and return self."""
        self.keys = {(*section, *key): words for key, words in self.keys.items()}
        return self


def refused(where: str, words: str) -> ConfigError:
    """Return an error of one line; text from outside cannot break the line."""
    text = f"{where}: {words}"
    return ConfigError(printable(text))


def nearest(word: object, known: Iterable[str]) -> str:
    """Return the known name nearest to the word, or all known names if none is near, as the end of a sentence."""
    names = list(dict.fromkeys(known))
    return meant(word, names) or f": {either(names)}"


def meant(word: object, known: Iterable[str]) -> str:
    """Return the known name that was probably meant, as the end of a sentence; empty if none is near."""
    if not isinstance(word, str):
        return ""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1)
    return f', did you mean "{lower[close[0]]}"?' if close else ""


def either(names: Iterable[str]) -> str:
    """``"a", "b" or "c"``."""
    *most, last = (f'"{name}"' for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: object) -> str:
    """Return a value as TOML writes it, cut to fit a line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**60 else hex(value)  # str() is slow, and limited
    elif isinstance(value, list):
        text = f"[{', '.join(shown(one) for one in value)}]"
    else:
        text = "{…}" if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
