"""How the verbs that look back show things: tables, times, durations asked for, errors in one line."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentres.cli.stderr import say
from agentres.model.errors import EXIT_SIGNAL, AgentresError, printable, reason
from agentres.model.paths import state_directory
from agentres.model.units import UnitError, parse_duration
from agentres.policy.alerts import Severity
from agentres.policy.settings import Settings
from agentres.store import Store

P = ParamSpec("P")

ABSENT = "-"

STYLES = {
    Severity.INFO: "dim",
    Severity.WARNING: "yellow",
    Severity.CRITICAL: "red",
    Severity.EMERGENCY: "bold red",
}


def loaded(paths: list[str], origins: bool = False) -> Settings:
    """What the configuration files say; one line and exit status 1 where they make no sense."""
    if not paths and not origins:  # what checks files is a fifth of a second to load
        return Settings()
    from agentres.config import ConfigError, load

    try:
        return load(paths, origins=origins)
    except ConfigError as error:
        say(str(error))
        raise typer.Exit(1) from None


def told(verb: Callable[P, None]) -> Callable[P, None]:
    """The verb, its failures one line and exit status 1.  A reader that has gone is no failure."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if reconfigure := getattr(sys.stdout, "reconfigure", None):
                reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
            verb(*args, **kwargs)
            sys.stdout.flush()
        except AgentresError as error:
            say(str(error))
            raise typer.Exit(1) from None
        except OSError as error:
            # What is left to write would fail again, aloud, when the interpreter flushes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if error.errno == errno.EPIPE:
                raise typer.Exit(EXIT_SIGNAL + signal.SIGPIPE) from None
            say(f"cannot write: {reason(error)}")
            raise typer.Exit(1) from None

    return run


def history_path() -> str:
    """The file that the history is in."""
    return os.path.join(state_directory(), "history.db")


def open_history(write: bool = False) -> Store:
    """The history that is there; to write, too, none is made."""
    path = history_path()
    store = Store.open(path, write=False)
    if not write:
        return store
    store.close()
    return Store.open(path)


def since(duration: str | None) -> float | None:
    """The unix time that long ago."""
    if duration is None:
        return None
    try:
        return time.time() - parse_duration(duration)
    except UnitError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # told() knows what to do, and Rich would exit  # noqa: PLE0704


def console() -> Console:
    """Where tables go: no markup, so that a name's brackets are its own."""
    return _Console(highlight=False, markup=False, emoji=False)


def table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """An empty table; ``right`` are aligned so, ``whole`` are never broken."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    right, whole = set(right), set(whole)
    for column in columns:
        made.add_column(
            Text(column),
            justify="right" if column in right else "left",
            no_wrap=column in whole or column in right,
            overflow="fold",
            vertical="top",
        )
    return made


def cell(text: str, style: str = "") -> Text:
    """Text that came from outside, as a table takes it."""
    return Text(printable(text), style)


def print_json(value: object, indent: int | None = 2) -> None:
    """JSON, of ASCII characters only."""
    print(json.dumps(value, indent=indent))
