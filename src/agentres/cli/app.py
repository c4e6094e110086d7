"""The Typer application: help, completion, errors in one line, and every verb but ``run`` itself."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from agentres import __version__
from agentres.cli.stderr import say
from agentres.model.errors import EXIT_AGENTRES, EXIT_SIGNAL

if TYPE_CHECKING:
    from agentres.run.options import Option

EXIT_USAGE = 2

# Rich keeps line breaks: a paragraph is one line.
_RUN_HELP = """Run COMMAND in a cgroup of its own, inside hard limits.

The limits stand before COMMAND starts and hold for all that it starts. When it ends, whatever it left behind is killed and the cgroup removed. A limit that is asked for and cannot be enforced is an error.

M and MiB are binary, MB is decimal; "max" is no limit. 256M:2G is a range: the limit moves between the two, with what COMMAND needs and the host has.
"""

_RUN_EPILOG = """[bold]Examples[/bold]

  agentres run -- python agent.py
  agentres run --cpu 2 --memory 4G --timeout 30m -- ./agent --task 17
  agentres run --cpu 0.5:4 --memory 256M:2G --philosophy aggressive -- ./agent
  agentres run --io-write 20MB/s --io-write /dev/vdb=50MB/s -- make
  sudo agentres run --user dev --summary run.json -- python3 agent.py

[bold]Exit status[/bold]

  COMMAND's own; 128+N when signal N ended it; 124 when --timeout did;
  125 agentres failed; 126 COMMAND cannot be executed; 127 there is none
"""


class _Run(TyperCommand):
    """``run``, with options that may stand without a value, which Typer has not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from agentres.run.options import spell_out

        return super().parse_args(ctx, spell_out(args))


def _run(ctx: typer.Context, **values: Any) -> NoReturn:
    from agentres.run.options import to_arguments

    # For a line that Typer understands and options.parse() does not; it takes this one.
    line = to_arguments(values, values.pop("command"))
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agentres", "run", *line])


_KIND = inspect.Parameter.KEYWORD_ONLY


def _parameters(options: Sequence[Option]) -> Iterator[inspect.Parameter]:
    """Options for Typer, from the one table of them."""
    for option in options:
        of: Any = bool if not option.metavar else list[str] if option.repeatable else str
        declared = typer.Option(
            f"--{option.name}",
            metavar=option.metavar,
            help=option.help,
            rich_help_panel=option.panel,
            show_default=False,
        )
        default: Any = False if of is bool else None
        wanted = of if of is bool else of | None
        yield inspect.Parameter(
            option.key, _KIND, default=default, annotation=Annotated[wanted, declared]
        )


def _takes(verb: Any, *parameters: inspect.Parameter) -> None:
    """Say what a verb takes: what inspect and Typer look for."""
    verb.__signature__ = inspect.Signature(parameters)
    verb.__annotations__ = {each.name: each.annotation for each in parameters}


def _add_run(app: typer.Typer) -> None:
    from agentres.run.options import OPTIONS

    command = typer.Argument(metavar="COMMAND", show_default=False, hidden=True)
    _takes(
        _run,
        inspect.Parameter("ctx", _KIND, annotation=typer.Context),
        *_parameters(OPTIONS),
        inspect.Parameter("command", _KIND, annotation=Annotated[list[str], command]),
    )
    app.command(
        "run",
        cls=_Run,
        help=_RUN_HELP,
        epilog=_RUN_EPILOG,
        options_metavar="[OPTIONS] --",
        context_settings={"allow_interspersed_args": False},
    )(_run)


def _add_set(app: typer.Typer) -> None:
    from agentres.cli import live, show

    @show.told
    def set_limits(name: str, user: str | None = None, **texts: Any) -> None:
        live.set_limits(name, user, **texts)

    _takes(
        set_limits,
        inspect.Parameter("name", _KIND, annotation=live.Name),
        inspect.Parameter("user", _KIND, default=None, annotation=live.User),
        *_parameters(live.options()),
    )
    app.command("set", help=live.set_limits.__doc__)(set_limits)


def _verb(module: str, function: str = "") -> Callable[[str, typer.Typer], None]:
    """How a verb is added by the function of its name in a module of this package."""

    def add(name: str, app: typer.Typer) -> None:
        found = importlib.import_module(f"agentres.cli.{module}")
        app.command(name)(getattr(found, function or module))

    return add


def _group(module: str) -> Callable[[str, typer.Typer], None]:
    def add(name: str, app: typer.Typer) -> None:
        app.add_typer(importlib.import_module(f"agentres.cli.{module}").app, name=name)

    return add


# In the order of --help. A verb's module is imported when it is called: together they take half a second.
_VERBS: dict[str, Callable[[str, typer.Typer], None]] = {
    "run": lambda _, app: _add_run(app),
    "daemon": _verb("daemon"),
    "doctor": _verb("doctor"),
    "ps": _verb("ps"),
    "top": _verb("top"),
    "dashboard": _verb("dashboard"),
    "show": _verb("live", "show"),
    "set": lambda _, app: _add_set(app),
    **{name: _verb("live", name) for name in ("freeze", "thaw", "stop", "kill", "wait", "logs")},
    "gc": _verb("gc"),
    "capacity": _verb("capacity"),
    "history": _verb("history"),
    "report": _verb("report"),
    "alerts": _group("alerts"),
    "metrics": _verb("metrics"),
    "config": _group("config"),
    "unit": _group("units"),
    "install-units": _verb("install", "install_units"),
    "philosophies": _verb("philosophies"),
    "predict": _verb("predict"),
}


@functools.cache
def application(*verbs: str) -> typer.Typer:
    """The application with these verbs; with all where none is named."""
    made = typer.Typer(
        name="agentres",
        help="Run AI agents inside hard resource limits (Linux cgroup v2).",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in verbs or _VERBS:
        _VERBS[verb](verb, made)
    made.callback()(_main)
    return made


def __getattr__(name: str) -> typer.Typer:
    """``app``, with all verbs: for whoever makes pages from it."""
    if name != "app":
        raise AttributeError(name)
    return application()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"agentres {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the application; a wrong line is told in one line, and where to read more."""
    # Completion and help are about all of them.
    one = sys.argv[1:2] if "_AGENTRES_COMPLETE" not in os.environ else []
    try:
        status = application(*(verb for verb in one if verb in _VERBS))(standalone_mode=False)
    except typer.Abort:
        raise SystemExit(EXIT_SIGNAL + signal.SIGINT) from None
    except typer.TyperException as error:
        verb = next((word for word in sys.argv[1:2] if not word.startswith("-")), "")
        verb = verb if verb in _VERBS else ""
        if message := error.format_message().rstrip("."):  # empty when the help was shown instead
            say(f"{message}; see {' '.join(filter(None, ['agentres', verb, '--help']))}")
        # A wrapper's own failure must not look like the command's (env(1), timeout(1)).
        raise SystemExit(EXIT_AGENTRES if verb == "run" else EXIT_USAGE) from None
    raise SystemExit(status if isinstance(status, int) else 0)
