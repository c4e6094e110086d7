"""Helpers for verbs that show something: tables, lines, JSON, the history, ``--since``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from agentres.cli.parameters import Misuse
from agentres.model.errors import printable
from agentres.model.paths import state_directory
from agentres.model.units import ABSENT as ABSENT  # noqa: PLC0414 -- for the verbs' tables
from agentres.model.units import UnitError, parse_duration

if TYPE_CHECKING:
    from rich.console import Console

    from agentres.policy.settings import Settings
    from agentres.store import Store

STATE_STYLES = {
    "running": "", "throttled": "yellow", "frozen": "cyan", "waiting": "dim", "unsupervised": "red",
}  # fmt: skip
"""The style of each state of an agent in a table.

The colours are the dashboard's (agentres.tui.rows), some of which are bold there.  It has a table of its own: what both
could import would be one more module for verbs that are to be quick.
"""


def loaded(paths: list[str], origins: bool = False) -> Settings:
    """Load the configuration files; ConfigError if they are invalid."""
    if not paths and not origins:  # agentres.config takes a fifth of a second to load
        from agentres.policy.settings import Settings

        return Settings()
    from agentres.config import load

    return load(paths, origins=origins)


def history_path() -> str:
    """Return the path of the history."""
    return os.path.join(state_directory(), "history.db")


def open_history(write: bool = False) -> Store:
    """Open the history that exists; none is created, not even with ``write``."""
    from agentres.store import Store  # here: it loads SQLite

    path = history_path()
    store = Store.open(path, write=False)
    if not write:
        return store
    store.close()
    return Store.open(path)


def recorded() -> list[str]:
    """Return the names in the history, sorted."""
    with open_history() as store:
        return sorted({run.name for run in store.runs()})


def since(duration: str | None) -> float | None:
    """Return the unix time that long ago."""
    if duration is None:
        return None
    try:
        return time.time() - parse_duration(duration)
    except UnitError as error:
        raise Misuse(str(error), "--since") from error


Cell = tuple[str, str]
"""A printable text, and Rich's style for it."""


def cell(text: str, style: str = "") -> Cell:
    """Make text from outside printable, for a table."""
    return printable(text), style


class Table:
    """A table; columns in ``right`` are right-aligned, those in ``whole`` are never wrapped.

    On a terminal, Rich prints it with colours and folded to the width.  Elsewhere each row is one unfolded line, for
    grep, and without Rich, which takes longer to load than most verbs take to answer.
    """

    def __init__(
        self,
        *columns: str,
        right: Iterable[str] = (),
        whole: Iterable[str] = (),
        heading: bool = True,
        gap: int = 2,
    ) -> None:
        self._columns, self._heading, self._gap = columns, heading, gap
        self._right, self._whole = frozenset(right), frozenset(whole)
        self._rows: list[list[Cell]] = []

    def add_row(self, *cells: str | Cell) -> None:
        """Add a row, from the left; text without a style is printed as it is, so it must be our own."""
        self._rows.append([(one, "") if isinstance(one, str) else one for one in cells])

    def print(self) -> None:
        """Print the table on stdout."""
        if _on_terminal():
            self._print_folded()
            return
        heading = [[(column, "") for column in self._columns]] if self._heading else []
        rows = [[text.split("\n") for text, _ in row] for row in [*heading, *self._rows]]
        if not rows:
            return
        widths = [max(_cells(line) for row in rows for line in row[at]) for at in range(len(self._columns))]  # fmt: skip
        for row in rows:
            for number in range(max(len(lines) for lines in row)):
                shown = []
                for column, width, lines in zip(self._columns, widths, row, strict=True):
                    text = lines[number] if number < len(lines) else ""
                    rest = " " * (width - _cells(text))
                    shown.append(rest + text if column in self._right else text + rest)
                print((" " * self._gap).join(shown).rstrip())

    def _print_folded(self) -> None:
        from rich.table import Table as RichTable
        from rich.text import Text

        made = RichTable(
            box=None, pad_edge=False, padding=(0, self._gap, 0, 0), header_style="bold",
            show_header=self._heading,
        )  # fmt: skip
        for column in self._columns:
            made.add_column(
                Text(column),
                justify="right" if column in self._right else "left",
                no_wrap=column in self._whole or column in self._right,
                overflow="fold",
                vertical="top",
            )
        for row in self._rows:
            made.add_row(*(Text(text, style) for text, style in row))
        _console().print(made)


def _cells(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def line(text: str, style: str = "") -> None:
    """Print a line of text from outside."""
    if not _on_terminal():
        print(printable(text))
        return
    from rich.text import Text

    _console().print(Text(printable(text), style))


def picture(draw: Callable[[int, bool], Iterable[str]]) -> None:
    """Print lines with terminal colours; ``draw(width, ascii_only)`` makes them."""
    from rich.text import Text

    console = _console()
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    for drawn in draw(console.width, ascii_only):
        console.print(Text.from_ansi(drawn), soft_wrap=True)


def _on_terminal() -> bool:
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def _console() -> Console:
    """Return a console without markup, so that brackets in names print as they are."""
    from rich.console import Console

    class RaisingConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # verbs.call() handles it; Rich would exit  # noqa: PLE0704

    return RaisingConsole(highlight=False, markup=False, emoji=False)


def near(name: str, known: Iterable[str]) -> str:
    """Ask, in words, which of the known names may have been meant; "" if none is similar."""
    import difflib

    found = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(found)}?" if found else ""


def print_json(value: object, indent: int | None = 2) -> None:
    """Print JSON, in ASCII only."""
    import json  # here: it loads re and enum, half the load time of a table

    print(json.dumps(value, indent=indent))
