"""What alerts' handlers are told, what is reported of it, and a pipe that their processes speak through."""

from __future__ import annotations

import os
import queue
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentres.companion.handlers.dispatch import Dispatcher
from agentres.policy.alerts import Severity
from agentres.policy.settings import Handler

# Python 3.12 warns of any fork beside a thread; the servers of these tests are threads.
FORKS_BESIDE_THREADS = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning"
)

DEADLINE = 20.0
"""Seconds; it only catches hangs: what a test waits for is a report, a pipe or a process's end."""


def event(**changed: object) -> dict[str, Any]:
    return {
        "schema": 1, "event": "raised", "id": "3f9a0c12", "run": "0badcafe", "agent": "x",
        "of": "agent", "rule": "memory", "resource": "memory", "unit": "bytes",
        "severity": "WARNING", "value": 778.0 * 2**20, "limit": 2.0**30, "threshold": 0.75 * 2**30,
        "breached": 1700000000.0, "raised": 1700000000.1, "updated": 1700000000.1, "resolved": None,
        "message": "memory of x is at 76% of its limit (778 MiB of 1.0 GiB)", "repeats": 0,
        "host": "machine", **changed,
    }  # fmt: skip


def resolved(**changed: object) -> dict[str, Any]:
    return event(event="resolved", resolved=1700000100.0, updated=1700000100.0, **changed)


class Told:
    """What a dispatcher reports, to be awaited."""

    def __init__(self, *handlers: Handler, **more: Any) -> None:
        self.reports: queue.Queue[tuple[str, str, str | None]] = queue.Queue()
        self.drops: list[tuple[str, int]] = []
        self.dispatcher = Dispatcher(
            handlers,
            lambda alert, handler, _time, error: self.reports.put((alert, handler, error)),
            lambda handler, total: self.drops.append((handler, total)),
            **more,
        )

    def tell(self, told: dict[str, Any]) -> str | None:
        """Dispatch to a single handler, and what it said."""
        self.dispatcher.dispatch(told)
        return self.next()

    def next(self) -> str | None:
        return self.reports.get(timeout=DEADLINE)[2]

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_error: object) -> None:
        self.dispatcher.close(timeout=5)


def handler(kind: str, timeout: float = 10.0, **options: Any) -> Handler:
    severity = options.pop("severity", Severity.INFO)
    size = options.pop("size", 100)
    return Handler(kind, kind, severity, timeout, size, options)


def function(called: Callable[[dict[str, Any]], object], **more: Any) -> Told:
    """A dispatcher with one function."""
    return Told(handler("python", **more), callables={"python": called})


def command(path: Path, script: str, **more: Any) -> Handler:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return handler("command", argv=[str(path)], **more)


class Pipe:
    """Lines that come out of handlers' processes; its end is when the last of them has ended."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        os.set_inheritable(self.into, True)
        self._heard = b""

    def say(self, *words: object) -> None:
        os.write(self.into, " ".join(map(str, words)).encode() + b"\n")

    def line(self) -> list[str]:
        while b"\n" not in self._heard:
            assert select.select([self.out], [], [], DEADLINE)[0], "nothing was said"
            data = os.read(self.out, 4096)
            assert data, "all of them have ended"
            self._heard += data
        first, self._heard = self._heard.split(b"\n", 1)
        return first.decode().split()

    def await_end(self) -> None:
        os.close(self.into)
        while True:
            assert select.select([self.out], [], [], DEADLINE)[0], "a process is left"
            if not os.read(self.out, 4096):
                return
