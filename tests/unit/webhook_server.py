"""A server for webhooks, which answers as it is told."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dispatched import Told, handler


class Server(http.server.ThreadingHTTPServer):
    """Answers as it is told: (status, headers), or a function of the connection."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = list(answers)
        self.got: queue.Queue[tuple[dict[str, str], Any]] = queue.Queue()
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class Answering(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.put((dict(self.headers), json.loads(body)))
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        if callable(answer):
            answer(self)
            return
        status, headers = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if status >= 400:
            self.wfile.write(b"the reason\nand more")

    def log_message(self, *_: object) -> None:
        pass


Answer = tuple[int, dict[str, str]] | Callable[[Answering], None]


@contextmanager
def hook(*answers: Answer, **options: Any) -> Iterator[tuple[Told, Server]]:
    server = Server(*answers)
    with Told(handler("webhook", url=server.url, **options)) as told:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield told, server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
            server.server_close()
