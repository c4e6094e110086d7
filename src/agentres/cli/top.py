"""``agentres top``: the dashboard in the terminal; its code is in :mod:`agentres.tui`."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING, Annotated

from agentres.cli import budget, show
from agentres.cli.parameters import Option
from agentres.model.errors import AgentresError, UsageError
from agentres.model.limits import SHARE
from agentres.model.units import UnitError, parse_duration

if TYPE_CHECKING:
    from agentres.tui.source import Source

LEAST_INTERVAL = 0.2
"""Shortest interval between two looks, in seconds."""

_INSTALL = "pip install 'agentres[tui]'"


def top(
    interval: Annotated[str, Option(metavar="DURATION", help="Time between refreshes.")] = "2s",
    sort: Annotated[
        str,
        Option(
            metavar="COLUMN",
            help="Sort by this column at first: name, cpu, memory, read, write, in, out, tasks, files, psi, prio, alerts or state.",
        ),
    ] = "cpu",
    match: Annotated[
        str,
        Option(
            "--filter",
            metavar="TEXT",
            help="Show only agents with TEXT in their name, user or state.",
        ),
    ] = "",
    tree: Annotated[bool, Option("--tree", help="Show agents below their slices.")] = False,
    read_only: Annotated[
        bool, Option("--read-only", help="Disable the keys that change anything.")
    ] = False,
) -> None:
    """Watch the agents of this host live, and control them from the keyboard.

    All users' agents are shown; only an agent's owner and root can control it, as on the command line. The last line shows the keys.
    """
    seconds = interval_of(interval)
    try:
        from agentres.tui.app import Top
        from agentres.tui.app import show as run
        from agentres.tui.rows import SORTS, View
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise AgentresError("top needs the package textual", _INSTALL) from None
    if sort not in SORTS:
        raise UsageError(f"--sort {sort}: expected one of {', '.join(SORTS)}")
    # Textual draws on stderr; under the web server its driver uses pipes.
    if "TEXTUAL_DRIVER" not in os.environ and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise AgentresError("top draws on a terminal", "agentres ps prints the same once")
    # Files of each agent stay open: the usual limit of 1024 is soon too low.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    source = _source()
    try:
        run(Top(source, seconds, read_only, View(sort, text=match, tree=tree)))
    finally:
        source.close()


def interval_of(text: str) -> float:
    """Parse ``--interval`` into seconds.  UsageError."""
    try:
        seconds = parse_duration(text)
    except UnitError as error:
        raise UsageError(f"--interval {text}: {error}") from None
    if seconds < LEAST_INTERVAL:
        raise UsageError(f"--interval {text}: expected {LEAST_INTERVAL:g}s or more")
    return seconds


def _source() -> Source:
    from agentres.kernel.delegation import hierarchy
    from agentres.readers.client import whoever
    from agentres.readers.fleet import Fleet
    from agentres.tui.source import Source

    share = budget.share("the budget is shown as 80% of the host")
    fleet = Fleet(
        hierarchy().mount,
        show.open_history,
        SHARE if share is None else share,
        own=budget.own_slice(),
    )
    return Source(fleet, show.open_history, whoever())
