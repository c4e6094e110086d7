"""``agentres config``: whether the configuration files make sense, what they come to, where they are."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from agentres.cli.run import say
from agentres.config import ConfigError, dump, load, sections
from agentres.paths import configuration
from agentres.settings import Settings

app = typer.Typer(
    name="config",
    help="Check and show what is watched, who is told, and how limits move.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("check")
def check(
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Instead of those that are read by default."),
    ] = None,
) -> None:
    """Read the configuration as a run would, each FILE over the one before it.

    Exits 1 when it makes no sense, and says in one line where and why.
    """
    paths = given or configuration(os.environ, os.getuid())
    settings = loaded(paths)
    where = ", ".join(paths) or "no configuration file, what is built in"
    counts = (
        _count(len(settings.rules), "rule"),
        _count(len(settings.handlers), "handler"),
        _count(len(settings.philosophies), "philosophy", "philosophies"),
        _count(len(settings.limits), "limit"),
    )
    print(f"{where}: {', '.join(counts)}")


@app.command("show")
def show(
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON instead of TOML.")
    ] = False,
) -> None:
    """Print the configuration in effect, every key of it, as a configuration file.

    Headers of webhooks, which may be secrets, are among them.
    """
    paths = configuration(os.environ, os.getuid())
    settings = loaded(paths)
    if as_json:
        print(json.dumps({"schema": 1, "files": paths, **sections(settings)}, indent=2))
    else:
        print(dump(settings), end="")


@app.command("path")
def path() -> None:
    """Print which files are read, the later over the earlier, and whether they are there."""
    for one in configuration(os.environ, os.getuid(), missing=True):
        print(f"{one}\t{'read' if os.path.exists(one) else 'not there'}")


def loaded(paths: list[str]) -> Settings:
    """What the files say; one line and exit status 1 where they make no sense."""
    try:
        return load(paths)
    except ConfigError as error:
        say(str(error))
        raise typer.Exit(1) from None


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
