"""The HTTP server of ``agentres metrics --listen``: a thread for each scrape, none that waits forever."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from agentres.model import log


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds; who connects and says nothing holds a thread no longer

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(__name__, format, *args)


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves ``application`` at the address, which may be a name: the first that it stands for.

    Raises OSError where the address cannot be had.
    """

    daemon_threads = True

    def __init__(self, address: str, port: int, application: Callable[..., Any]) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, where = found[0]
        super().__init__((str(where[0]), port), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the DNS for our name, and waits for it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went before its answer is no news."""
        log.debug(__name__, "a scrape from %s failed", client_address)
