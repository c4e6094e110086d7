"""The Typer application, made from the verbs' declarations: for help, completion, and messages about wrong lines."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from agentres import __version__
from agentres.cli import verbs
from agentres.cli.parameters import REQUIRED, Option, Parameter, parameters
from agentres.cli.stderr import say
from agentres.cli.verbs import EXIT_USAGE, GROUPS, VERBS
from agentres.kernel import signal
from agentres.model.errors import EXIT_AGENTRES, EXIT_SIGNAL

# Rich keeps line breaks: a paragraph is one line.
_RUN_HELP = """Run COMMAND in a cgroup of its own, inside hard limits.

The limits are set before COMMAND starts, and hold for all processes that it starts. When it ends, all that it left running is killed and the cgroup is removed. A limit that you ask for and that cannot be enforced is an error.

M and MiB are binary, MB is decimal; "max" is no limit. 256M:2G is a range: the limit moves between the two, with what COMMAND needs and what the host has.
"""

_RUN_EPILOG = """[bold]Examples[/bold]

  agentres run -- python agent.py
  agentres run --cpu 2 --memory 4G --timeout 30m -- ./agent --task 17
  agentres run --cpu 0.5:4 --memory 256M:2G --philosophy aggressive -- ./agent
  agentres run --io-write 20MB/s --io-write /dev/vdb=50MB/s -- make
  sudo agentres run --user dev --summary run.json -- python3 agent.py

[bold]Exit status[/bold]

  COMMAND's own; 128+N if signal N ended it; 124 if --timeout did;
  125 agentres failed; 126 COMMAND cannot be executed; 127 COMMAND not found
"""


class _Run(TyperCommand):
    """``run``, whose options may have an optional value, which Typer does not support."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from agentres.run.options import spell_out

        return super().parse_args(ctx, spell_out(args))


class _ListByDefault(TyperGroup):
    """``alerts`` and ``alerts --open`` are ``alerts list`` and ``alerts list --open``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        standard = GROUPS[self.name or ""].standard
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [standard, *args]
        return super().parse_args(ctx, args)


def _run(ctx: typer.Context, **values: Any) -> NoReturn:
    from agentres.run.options import to_arguments

    # Typer understands lines that options.parse() does not: write this one so that it does.
    line = to_arguments(values, values.pop("command"))
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agentres", "run", *line])


_KIND = inspect.Parameter.KEYWORD_ONLY


def _typed(parameter: Parameter) -> inspect.Parameter:
    """Convert a parameter for Typer."""
    declared, default = parameter.declared, parameter.default
    said: dict[str, Any] = {
        "help": declared.help,
        "metavar": declared.metavar,
        "show_default": isinstance(default, str) and default != "",
    }
    if isinstance(declared, Option):
        said |= {"rich_help_panel": declared.panel, "min": declared.least}
        about = typer.Option(*parameter.names, **said)
    else:
        about = typer.Argument(**said)
    hint: Any = list[parameter.of] if parameter.many else parameter.of  # type: ignore[name-defined]
    if default is None:
        hint |= None
    if default is REQUIRED:
        default = inspect.Parameter.empty
    return inspect.Parameter(
        parameter.key, _KIND, default=default, annotation=Annotated[hint, about]
    )


def _takes(verb: Any, those: Iterable[inspect.Parameter]) -> None:
    """Set the verb's signature and annotations, which inspect and Typer read."""
    verb.__signature__ = inspect.Signature(list(those))
    verb.__annotations__ = {
        each.name: each.annotation for each in verb.__signature__.parameters.values()
    }


def _add_run(app: typer.Typer) -> None:
    from agentres.cli.parameters import of_run
    from agentres.run.options import OPTIONS

    command = typer.Argument(metavar="COMMAND", show_default=False, hidden=True)
    _takes(
        _run,
        [
            inspect.Parameter("ctx", _KIND, annotation=typer.Context),
            *map(_typed, of_run(OPTIONS)),
            inspect.Parameter("command", _KIND, annotation=Annotated[list[str], command]),
        ],
    )
    app.command(
        "run",
        cls=_Run,
        help=_RUN_HELP,
        epilog=_RUN_EPILOG,
        options_metavar="[OPTIONS] --",
        context_settings={"allow_interspersed_args": False},
    )(_run)


def _add(app: typer.Typer, verb: str) -> None:
    function = verbs.function(verb)

    def called(**values: Any) -> NoReturn:
        raise SystemExit(verbs.call(verb, values))

    _takes(called, map(_typed, parameters(function)))
    app.command(verb.rpartition(" ")[2], help=function.__doc__)(called)


@functools.cache
def application(*words: str) -> typer.Typer:
    """Return the application with the verbs and groups of these first words; with all if there are none."""
    made = typer.Typer(
        name="agentres",
        help="Run AI agents inside hard resource limits (Linux cgroup v2).",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    if not words or "run" in words:
        _add_run(made)
    groups: dict[str, typer.Typer] = {}
    for verb in VERBS:
        first, _, below = verb.partition(" ")
        if words and first not in words:
            continue
        if below and first not in groups:
            group = GROUPS[first]
            groups[first] = typer.Typer(
                name=first,
                cls=_ListByDefault if group.standard else None,
                help=group.help,
                no_args_is_help=not group.standard,
                context_settings={"help_option_names": ["-h", "--help"]},
            )
            made.add_typer(groups[first])
        _add(groups[first] if below else made, verb)
    made.callback()(_main)
    return made


def __getattr__(name: str) -> typer.Typer:
    """Make ``app``, with all verbs, for tools that generate pages from it."""
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


def main(words: Sequence[str]) -> int:
    """Run the application; report a wrong line in one line, with where to read more.  Return the exit status."""
    verb = next((word for word in words[:1] if word == "run" or _known(word)), "")
    # Completion and help need all verbs.
    one = [verb] if verb and "_AGENTRES_COMPLETE" not in os.environ else []
    try:
        status = application(*one)(args=list(words), prog_name="agentres", standalone_mode=False)
    except typer.Abort:
        return EXIT_SIGNAL + signal.SIGINT
    except typer.TyperException as error:
        if message := error.format_message().rstrip("."):  # empty when the help was shown instead
            say(f"{message}; see {' '.join(filter(None, ['agentres', verb, '--help']))}")
        # A wrapper's own failure must be distinguishable from the command's (env(1), timeout(1)).
        return EXIT_AGENTRES if verb == "run" else EXIT_USAGE
    return status if isinstance(status, int) else 0


def _known(word: str) -> bool:
    return word in VERBS or word in GROUPS
