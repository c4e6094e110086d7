"""The page of the reference that is made from the command line's own help when the site is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import typer
from _tables import cell

from agentres.cli.app import app
from agentres.cli.manual import plain, verbs


def write(folder: Path) -> None:
    """Make the page in ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text("\n".join(commands()) + "\n")


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
            yield f"| `{cell(shown)}` | {cell(words or '')} |"
        yield ""
        yield from _paragraphs(command.epilog)


def _paragraphs(text: str | None) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        text = plain(block)
        if text.strip():
            yield f"```\n{text}\n```\n" if block.startswith(" ") else f"{text}\n"
