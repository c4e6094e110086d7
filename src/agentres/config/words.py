"""What a refusal says: its errors, and how they name keys, values and what was perhaps meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from agentres.model.errors import UsageError, printable


class ConfigError(UsageError):
    """A configuration file that makes no sense or cannot be read."""


class Wrong(ValueError):
    """A section that is wrong: key -> what was expected of it; any one of them could be changed."""

    def __init__(self, key: str, expected: str, **others: str) -> None:
        super().__init__(expected)
        self.keys: dict[tuple[str, ...], str] = {(key,) if key else (): expected}
        self.keys |= {(one,): words for one, words in others.items()}

    def within(self, section: tuple[str, ...]) -> Wrong:
        """Itself, its keys being those of a section of the whole."""
        self.keys = {(*section, *key): words for key, words in self.keys.items()}
        return self


def refused(where: str, words: str) -> ConfigError:
    """One line: what came from outside must not break it."""
    text = f"{where}: {words}"
    return ConfigError(printable(text))


def nearest(word: object, known: Iterable[str]) -> str:
    """The known name that is nearest to the word; all of them where none is near."""
    names = list(dict.fromkeys(known))
    return meant(word, names) or f": {either(names)}"


def meant(word: object, known: Iterable[str]) -> str:
    """The known name that was perhaps meant, as the end of a sentence; empty where none is near."""
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
    """A value as TOML has it, cut to fit a line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**60 else hex(value)  # str() has a limit, and is slow
    elif isinstance(value, list):
        text = f"[{', '.join(shown(one) for one in value)}]"
    else:
        text = "{…}" if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
