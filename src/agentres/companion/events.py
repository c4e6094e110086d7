"""Writes the events for programs (``--events``, docs/events.md), one line of JSON each, at the reader's pace.

A separate thread writes, because a disk may hang and a pipe may be full.  The queue is bounded.  Lost events show as gaps in the
events' numbers; an event ``lost`` with their count precedes the next one written.
"""

from __future__ import annotations

import errno
import json
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from agentres.companion.handlers.terminal import Output
from agentres.model.errors import reason
from agentres.model.units import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentres.model.schemas import End, Loss

    Event = Mapping[str, Any]

QUEUE = 1000
"""Most events that may wait, some megabytes; the last one, ``end``, is queued even above that."""

_SLICE = 0.5
"""Seconds between two checks for shutdown while waiting for the reader."""

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""Errors to retry after: there may be room again."""


class EventWriter:
    """Writes to ``fd``; ``head`` has the fields common to all events, and the ``number`` of the last earlier event."""

    def __init__(self, fd: int, head: Event) -> None:
        self._fd = fd
        self._head = {key: value for key, value in head.items() if key != "number"}
        self._written = self._last = int(head["number"])
        self._lost = 0
        self._trouble = ""
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._end_by = 0.0
        self._output = Output(fd)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue the event; never blocks."""
        with self._changed:
            self._last = event["number"]
            self._ended = self._ended or event["event"] == "end"
            if len(self._waiting) < QUEUE or self._ended:
                self._waiting.append(event)
                self._changed.notify()

    def finish(self, timeout: float) -> None:
        """Take no more events, and write the queued ones for at most ``timeout`` seconds."""
        if not self._ended:
            why = "its supervisor has gone without a word"
            end: End = {"exit_code": None, "why": why, "summary": None}
            number = self._last + 1
            self.put({**self._head, "number": number, "event": "end", "time": time.time(), **end})
        with self._changed:
            self._end_by = time.monotonic() + timeout
            self._changed.notify()

    def close(self) -> str:
        """Wait for the thread; return a message about what was not written, "" if all was."""
        self._thread.join(max(0.0, self._end_by - time.monotonic()) + _SLICE)
        lost = self._lost + self._last - self._written
        if not lost:
            return ""
        why = self._trouble or "nobody took them"
        return f"--events: not written: {counted(lost, 'event')} ({why})"

    # In the thread.

    def _run(self) -> None:
        while (event := self._next()) is not None:
            missing = event["number"] - self._written - 1
            text = self._line(event)
            if missing:
                lost: Loss = {"count": missing}
                head = {**self._head, "number": event["number"] - 1, "event": "lost"}
                text = self._line({**head, "time": time.time(), **lost}) + text
            if not self._write(text):
                return
            self._lost += missing
            self._written = event["number"]

    def _next(self) -> Event | None:
        with self._changed:
            while not self._waiting and not self._end_by:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    @staticmethod
    def _line(event: Event) -> bytes:
        return json.dumps(event).encode() + b"\n"

    def _write(self, data: bytes) -> bool:
        """Return whether all of it was written; after False, write nothing more."""
        poll = select.poll()
        poll.register(self._output.fileno(), select.POLLOUT)
        while data:
            ready = poll.poll(_SLICE * 1000)
            if self._end_by and time.monotonic() >= self._end_by:
                return False
            try:
                data = data[self._output.put(data) :] if ready else data
            except BlockingIOError:  # the pipe has room, but not for the whole line
                time.sleep(0.01)
            except OSError as error:
                self._trouble = reason(error)
                if error.errno not in _FULL or self._end_by:
                    return False
                self._pause()
        return True

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._end_by), 1.0)
