"""The HTTP server of ``agentres metrics --listen``: one thread per scrape, with a timeout."""

from __future__ import annotations

import socket
import socketserver
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from agentres.model import log


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds that a client which sends nothing can occupy a thread

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(__name__, format, *args)


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves ``application`` at the address, or at the first address of a host name.

    Raises OSError if it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, address: str, port: int, application: Callable[..., Any]) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, where = found[0]
        super().__init__((str(where[0]), port), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # Not HTTPServer's, which waits for a DNS lookup of our own name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log only for debugging: a client that hangs up early is no error."""
        log.debug(__name__, "a scrape from %s failed", client_address)
