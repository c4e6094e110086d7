"""``agentres dashboard``: ``agentres top`` in a browser; the server is :mod:`agentres.readers.web`."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from typing import Annotated

from agentres.cli.listening import parse_address
from agentres.cli.parameters import Option
from agentres.cli.top import interval_of
from agentres.model.errors import AgentresError, UsageError, reason

_INSTALL = "pip install 'agentres[web]'"

_SHORTEST = 16
"""Fewest characters of a token read from a file."""


def dashboard(
    listen: Annotated[
        str,
        Option(
            metavar="[ADDR:]PORT",
            help="Where to listen. ADDR: 127.0.0.1 by default; IPv6 in brackets. PORT 0: any free port.",
        ),
    ] = "8717",
    host: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="Host name by which browsers reach it, besides loopback's; repeatable.",
        ),
    ] = None,
    control: Annotated[
        bool,
        Option(
            "--control",
            help="Print an address with a token; whoever has it can command agents.",
        ),
    ] = False,
    token_file: Annotated[
        str | None,
        Option(
            metavar="FILE",
            help="Take the token from FILE, which only its owner may access, and print none.",
        ),
    ] = None,
    interval: Annotated[str, Option(metavar="DURATION", help="Time between refreshes.")] = "2s",
) -> None:
    """Show the agents of this host in a browser, live.

    Whoever can reach the port can look; commands need the token. It is plain HTTP: listen on loopback and connect through ssh -L, or put a proxy with a certificate in front.
    """
    interval_of(interval)
    address, port = parse_address(listen)
    if control and token_file is not None:
        raise UsageError("--control makes a token, --token-file has one: say one of them")
    token = secrets.token_urlsafe(32) if control else _token(token_file)
    try:
        from agentres.readers.web import Dashboard, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("aiohttp", "textual_serve", "textual"):
            raise
        raise AgentresError("the dashboard needs the package textual-serve", _INSTALL) from None
    top = [sys.executable, "-P", "-m", "agentres", "top", "--interval", interval]

    def ready(where: str) -> None:
        print(f"looking at {where}")
        if control:
            print(f"control by {where}?token={token}")
        sys.stdout.flush()

    serve(
        Dashboard([*top, "--read-only"], top, token, [address, *(host or [])]), address, port, ready
    )


def _token(file: str | None) -> str:
    if file is None:
        return ""
    try:
        with open(file) as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise UsageError(f"--token-file {file}: others may read it", f"chmod 600 {file}")
            token = opened.read(4096).strip()
    except OSError as error:
        raise UsageError(f"--token-file {file}: {reason(error)}") from None
    except UnicodeDecodeError:
        token = ""
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"--token-file {file}: expected {_SHORTEST} or more printable ASCII characters in a line"
        )
    return token
