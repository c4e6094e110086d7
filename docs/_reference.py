"""Pages of the reference that are made from the code, so that they cannot tell of another one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import typer

from agentres.cli.app import app
from agentres.cli.manual import plain, verbs
from agentres.model import errors


def write(folder: Path) -> None:
    """Make all pages in ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text("\n".join(commands()) + "\n")
    (folder / "exit-status.md").write_text("\n".join(exit_statuses()) + "\n")


def commands() -> Iterator[str]:
    """Every verb with its options, in the words of ``--help``."""
    yield "# Commands\n"
    yield "As `agentres VERB --help` tells it; `man agentres` has the same.\n"
    for whole, command, arguments, options in verbs("agentres", typer.main.get_command(app)):
        yield f"## {whole}\n"
        yield from _paragraphs(command.help)
        rows = [(p.metavar or p.name.upper(), p.help) for p in arguments if not p.hidden]
        rows += [(f"{', '.join(p.opts)} {p.metavar or ''}".strip(), p.help) for p in options]
        if rows:
            yield "| | |\n| --- | --- |"
        for shown, words in rows:
            yield f"| `{_cell(shown)}` | {_cell(words or '')} |"
        yield ""
        yield from _paragraphs(command.epilog)


def _paragraphs(text: str | None) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        text = plain(block)
        if text.strip():
            yield f"```\n{text}\n```\n" if block.startswith(" ") else f"{text}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def exit_statuses() -> Iterator[str]:
    """What ``agentres run`` exits with, and the failures behind it."""
    yield "# Exit status of `agentres run`\n"
    yield "| status | |\n| ---: | --- |"
    for status, words in (
        ("0 to 123", "the command's own"),
        (errors.EXIT_TIMEOUT, "the time limit ended it"),
        (
            errors.EXIT_AGENTRES,
            "agentres failed: the command was never started, or its end not seen",
        ),
        (errors.EXIT_NOT_EXECUTABLE, "the command is there and cannot be executed"),
        (errors.EXIT_NOT_FOUND, "there is no such command"),
        (f"{errors.EXIT_SIGNAL} + N", "signal N ended it"),
    ):
        yield f"| {status} | {words} |"
    yield "\nOther verbs exit with 0, with 1 where something could not be done, and with 2 for a line that makes no sense.\n"
    yield "| failure | status | |\n| --- | ---: | --- |"
    for name, failure in sorted(inspect.getmembers(errors, inspect.isclass)):
        if issubclass(failure, errors.AgentresError):
            status = getattr(failure, "exit_code", errors.EXIT_AGENTRES)
            told = f"{errors.EXIT_SIGNAL} + N" if name == "Interrupted" else status
            first = (inspect.getdoc(failure) or "").split("\n\n")[0].replace("\n", " ")
            yield f"| {name} | {told} | {_cell(first)} |"
