"""The verbs: the module of each, parsing of a command line without Typer, and the exit status of a verb.

A shell that completes a verb's name waits for this module: what only a call needs is imported by that.
"""

from __future__ import annotations

import errno
import os
import sys

from agentres.cli.stderr import say
from agentres.kernel import signal
from agentres.model.errors import EXIT_SIGNAL, AgentresError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

EXIT_FAILURE, EXIT_USAGE = 1, 2


class Group(Record):
    """A word with verbs below it; ``standard`` is the verb if none is given."""

    help: str
    standard: str = ""


GROUPS: Mapping[str, Group] = {
    "alerts": Group("List, show and acknowledge alerts; without a verb: list.", "list"),
    "config": Group("Check and show the configuration: what is watched, who is told, and how limits move."),
    "unit": Group("Agents that are systemd units: /etc/agentres/agents.d/NAME.toml is agentres@NAME.service."),
}  # fmt: skip

VERBS: Mapping[str, str] = {
    "daemon": "daemon.daemon",
    "doctor": "doctor.doctor",
    "ps": "ps.ps",
    "top": "top.top",
    "dashboard": "dashboard.dashboard",
    "show": "live.show",
    "set": "live.set_limits",
    **{name: f"live.{name}" for name in ("freeze", "thaw", "stop", "kill", "wait", "logs")},
    "gc": "gc.gc",
    "capacity": "capacity.capacity",
    "history": "history.history",
    "report": "report.report",
    "alerts list": "alerts.list_",
    "alerts show": "alerts.show_",
    "alerts ack": "alerts.ack",
    "alerts stats": "alerts.stats",
    "metrics": "metrics.metrics",
    "config check": "config.check",
    "config init": "config.init",
    "config show": "config.show",
    "config path": "config.path",
    "unit run": "units.run",
    "unit check": "units.check",
    "unit reload": "units.reload",
    "install-units": "install.install_units",
    "philosophies": "philosophies.philosophies",
    "predict": "predict.predict",
}
"""Module and function of each, in the order of ``--help``; a module is imported when its verb is called."""


def function(verb: str) -> Callable[..., Any]:
    """Return the verb's function."""
    from importlib import import_module

    module, _, name = VERBS[verb].partition(".")
    found: Callable[..., Any] = getattr(import_module(f"agentres.cli.{module}"), name)
    return found


def understand(words: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """Parse a well-formed line into its verb and the values given; None for any other line."""
    verb, rest = next(iter(words), ""), list(words[1:])
    if (group := GROUPS.get(verb)) is not None:
        if group.standard and (not rest or (rest[0].startswith("-") and rest[0] != "--")):
            rest.insert(0, group.standard)
        verb = f"{verb} {rest.pop(0)}" if rest else verb
    if verb not in VERBS:
        return None
    from agentres.cli.parameters import parameters, read

    values = read(parameters(function(verb)), rest)
    return None if values is None else (verb, values)


def call(verb: str, values: Mapping[str, Any]) -> int:
    """Call a verb, report an error in one line, and return the exit status.

    A verb prints its output and returns its status, or None for 0.
    """
    from agentres.cli.parameters import Misuse

    try:
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
        status: int | None = function(verb)(**values)
        print(end="", flush=True)  # print() accepts a closed stdout, which is None
        return status or 0
    except Misuse as error:
        say(f"{error}; see agentres {verb} --help")
        return EXIT_USAGE
    except AgentresError as error:
        say(str(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_SIGNAL + signal.SIGINT
    except OSError as error:
        return unwritten(error)


def unwritten(error: OSError) -> int:
    """Report why stdout cannot be written; return the exit status."""
    # Else the interpreter's own flush of the rest would fail with a message.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:  # the reader has gone: no failure
        return EXIT_SIGNAL + signal.SIGPIPE
    say(f"cannot write: {reason(error)}")
    return EXIT_FAILURE
