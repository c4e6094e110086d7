"""The dashboard in a browser: ``agentres top`` behind a web server with access control.

Each viewer has its own process, which draws the terminal's screens, through textual-serve.  The server accepts

- requests whose Host is a configured name or the loopback's: this excludes a foreign DNS name that points
  here (rebinding);
- websockets whose Origin is the page's own: this excludes other pages in the same browser;
- commands, with the token.  It is given once in the URL and becomes a cookie that scripts cannot read
  and that pages of other sites cannot send.

The server speaks plain HTTP: let it listen on loopback, or behind a proxy that has a certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import shlex
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import textual_serve
from aiohttp import WSMsgType, web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

from agentres.kernel import signal
from agentres.model.errors import AgentresError, reason

VIEWERS = 8
"""Most viewers at once: each costs a process of some 60 MB."""

MOST_COLUMNS, MOST_ROWS = 500, 200
"""Size in characters of the largest screen drawn; larger requests are cut to that."""

_LONGEST = 64 << 10
"""Most bytes of a viewer's message."""

_PATIENCE = 1.0
"""Seconds that a viewer's process may take to end, and its browser to confirm the close: nothing can be lost."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_STATIC = Path(textual_serve.__file__).parent / "static"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

# textual.js makes the terminal in the element with the class textual-terminal, and reads the websocket's
# address from its data.  It sets the classes "-first-byte" and "-closed".
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>agentres</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/css/xterm.css">
<script src="/static/js/textual.js"></script>
<style>
@font-face {
  font-family: "Roboto Mono";
  font-weight: 100 700;
  src: url("/static/fonts/RobotoMono-VariableFont_wght.ttf");
}
body { margin: 0; overflow: hidden; background: #121212; color: #e0e0e0; font: 16px "Roboto Mono", monospace; }
.textual-terminal { width: 100vw; height: 100vh; }
.told { display: none; position: absolute; inset: 0; margin: auto; width: 20em; height: 4em; z-index: 1;
        text-align: center; background: #121212; }
body.-closed .told { display: block; }
.font { position: absolute; visibility: hidden; margin: 0; }
a { color: inherit; }
</style>
</head>
<body>
<noscript>The dashboard needs JavaScript; agentres ps --json does not.</noscript>
<p class="told">It has ended. <a href="/">Look again</a></p>
<p class="font" aria-hidden="true">agentres</p>
<div id="terminal" class="textual-terminal" data-session-websocket-url="/ws" data-font-size="14"></div>
</body>
</html>
"""
"""The page.  Its hidden word loads the font before the terminal measures it; else there are too many lines when the window grows."""


class Dashboard:
    """A web server that shows what ``look`` draws, or what ``control`` draws if the viewer has the ``token``.

    Both are command lines of Textual applications.  ``names`` are the host names that it is reached by, in
    addition to the loopback's.  If the token is empty, nobody has control.
    """

    def __init__(
        self, look: Sequence[str], control: Sequence[str], token: str, names: Sequence[str]
    ) -> None:
        # exec: a signal must end the program, not a shell around it.
        self._look = f"exec {shlex.join(look)}"
        self._control = f"exec {shlex.join(control)}"
        self._token = token
        self._names = _LOOPBACK | {name.lower().strip("[]") for name in names}
        self._viewers: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """Return the application that answers requests."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/ws", self._watch)
        app.router.add_static("/static", _STATIC)
        app.on_shutdown.append(self._hang_up)
        return app

    # Access.

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if _name_of(f"//{request.host}") not in self._names:
            raise web.HTTPForbidden(
                text="This name is not one of the dashboard's: --host adds it.\n"
            )
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _has_control(self, request: web.Request) -> bool:
        return self._is_token(request.cookies.get(self._cookie(request), ""))

    def _is_token(self, text: str) -> bool:
        return bool(self._token) and hmac.compare_digest(text.encode(), self._token.encode())

    @staticmethod
    def _cookie(request: web.Request) -> str:
        # Cookies are shared by all ports of a host.
        return f"agentres_{urlsplit(f'//{request.host}').port or 80}"

    # Answers.

    async def _index(self, request: web.Request) -> web.Response:
        token = request.query.get("token")
        if token is None:
            return web.Response(text=_PAGE, content_type="text/html")
        if not self._is_token(token):
            raise web.HTTPForbidden(text="The token is not this dashboard's.\n")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self._cookie(request), token, httponly=True, samesite="Strict")
        return response

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        origin = urlsplit(request.headers.get("Origin", ""))
        if origin.netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text="Only the dashboard's own page may look.\n")
        if len(self._viewers) >= VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{VIEWERS} look already.\n")
        websocket = web.WebSocketResponse(timeout=_PATIENCE, heartbeat=15, max_msg_size=_LONGEST)
        self._viewers.add(websocket)
        try:
            await self._serve(request, websocket)
        finally:
            self._viewers.discard(websocket)
        return websocket

    async def _hang_up(self, app: web.Application) -> None:
        for websocket in list(self._viewers):
            await websocket.close()

    async def _serve(self, request: web.Request, websocket: web.WebSocketResponse) -> None:
        await websocket.prepare(request)

        async def close() -> None:
            await websocket.close()

        viewer = AppService(
            self._control if self._has_control(request) else self._look,
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=close,
            download_manager=DownloadManager(),
        )
        await viewer.start(*_size(request.query))
        try:
            async for message in websocket:
                if message.type is not WSMsgType.TEXT or not await _pass_on(
                    message.data, websocket, viewer
                ):
                    break
        finally:
            await _end(viewer)
            await websocket.close()


async def _pass_on(text: str, websocket: web.WebSocketResponse, viewer: AppService) -> bool:
    """Do what the page asks; return whether the message was valid."""
    try:
        what, *more = json.loads(text)
        match what, more:
            case "stdin", [str(typed)]:
                await viewer.send_bytes(typed.encode(errors="replace"))
            case "resize", [dict(size)]:
                await viewer.set_terminal_size(*_size(size))
            case "ping", [str() | int() | float() as echoed]:
                await websocket.send_json(["pong", echoed])
            case "blur", []:
                await viewer.blur()
            case "focus", []:
                await viewer.focus()
            case _:
                return False
    except (ValueError, TypeError, RecursionError):  # no JSON, or no list
        return False
    return True


def _size(asked: Any) -> tuple[int, int]:
    """Return the columns and rows asked for, within the bounds; ValueError."""
    return (
        min(max(int(asked.get("width", 80)), 1), MOST_COLUMNS),
        min(max(int(asked.get("height", 24)), 1), MOST_ROWS),
    )


async def _end(viewer: AppService) -> None:
    """Have the viewer's process end; kill it if it does not."""
    process = viewer._process
    try:
        await asyncio.wait_for(viewer.stop(), _PATIENCE)
    except TimeoutError:
        pass
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _name_of(url: str) -> str:
    """Return the host name of a URL; "" if it is invalid."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return "" if "@" in parts.netloc else (parts.hostname or "").lower()


def serve(dashboard: Dashboard, address: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer requests until SIGINT or SIGTERM; call ``ready`` with the page's address.  AgentresError."""
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # do not log what strangers send

    async def run() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, done.set)
        runner = web.AppRunner(dashboard.application(), access_log=None, shutdown_timeout=_PATIENCE)
        await runner.setup()
        try:
            site = web.TCPSite(runner, address, port)
            try:
                await site.start()
            except OSError as error:
                raise AgentresError(f"--listen {address}:{port}: {_words(error)}") from None
            ready(_address_of(runner))
            await done.wait()
        finally:
            await runner.cleanup()

    asyncio.run(run())


def _words(error: OSError) -> str:
    return str(error) if isinstance(error, socket.gaierror) else reason(error)


def _address_of(runner: web.AppRunner) -> str:
    host, port, *_ = runner.addresses[0]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
