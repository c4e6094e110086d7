"""Makes the man page from the command line's own help: man-pages(7), groff_man(7)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from agentres import __version__
from agentres.model.paths import AGENTS, DAEMON_SOCKET

_FILES = (
    ("/etc/agentres/agentres.toml", "The host's configuration; a user's own file is read after it. $AGENTRES_CONFIG names another file instead of both."),
    (f"{AGENTS}/NAME.toml", "The agent that agentres@NAME.service runs."),
    (DAEMON_SOCKET, "The daemon's socket; $AGENTRES_SOCKET names another one."),
    ("/var/lib/agentres", "Root's history; a user's is in ~/.local/state/agentres. $AGENTRES_STATE_DIR names another directory."),
)  # fmt: skip


def page(command: Any) -> str:
    """Return the page for Typer's ``command`` with all its verbs."""
    lines = [
        f'.TH AGENTRES 1 "" "agentres {__version__}" "User Commands"',
        ".SH NAME",
        f"agentres \\- {_text(command.help)[0].lower()}{_text(command.help)[1:]}",
        ".SH SYNOPSIS",
        ".B agentres\n\\fIVERB\\fR [\\fIOPTION\\fR]...",
        ".SH VERBS",
        *_verbs("agentres", command),
        ".SH FILES",
    ]
    for path, what in _FILES:
        lines += [".TP", f".I {_text(path)}", _text(what)]
    lines += [".SH SEE ALSO", ".BR cgroups (7),", ".BR systemd.resource-control (5)"]
    return "\n".join(lines) + "\n"


def verbs(name: str, group: Any) -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    """Yield each verb below ``name``: its full name, its command, and the arguments and options of that."""
    for verb, command in group.commands.items():
        whole = f"{name} {verb}"
        if hasattr(command, "commands"):
            yield from verbs(whole, command)
            continue
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option"]
        yield whole, command, arguments, options


def plain(text: str | None) -> str:
    """Return a help text without Rich's markup."""
    return re.sub(r"\[/?(?:bold|dim)\]", "", text or "")


def _verbs(name: str, group: Any) -> Iterator[str]:
    for whole, command, arguments, options in verbs(name, group):
        names = " ".join(param.metavar or param.name.upper() for param in arguments)
        dashes = " \\-\\-" if whole == "agentres run" else ""
        yield f".SS {whole}{' [OPTION]...' if options else ''}{dashes} {_text(names)}".rstrip()
        yield from _paragraphs(command.help)
        for option in options:
            yield ".TP"
            shown = ", ".join(f"\\fB{_text(one)}\\fR" for one in option.opts)
            yield shown + (f" \\fI{_text(option.metavar)}\\fR" if option.metavar else "")
            yield _text(option.help)
        yield from _paragraphs(command.epilog)


def _paragraphs(text: str | None) -> Iterator[str]:
    """Yield a help text as groff: paragraphs, and indented text verbatim."""
    for block in re.split(r"\n\s*\n", (text or "").strip("\n")):
        if not block.strip():
            continue
        yield ".PP"
        if block.startswith(" "):
            yield from (".nf", *(_text(line) for line in block.splitlines()), ".fi")
        else:
            yield from (_text(line) for line in block.splitlines())


def _text(text: str | None) -> str:
    """Escape a text for groff, without requests and without Rich's markup."""
    escaped = plain(text).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
