"""Gives events to handlers, each with its own bounded queue and thread: one that hangs, crashes or is slow delays no other.

User code never runs in this process: what can hang for good (Python callables, commands, HTTP) runs behind a
:class:`agentres.companion.handlers.runner.Runner`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING

from agentres.companion.handlers.base import NotDelivered, Once
from agentres.model.errors import AgentresError
from agentres.policy.alerts import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentres.companion.handlers.base import Deliverer, Event
    from agentres.policy.settings import Handler

    Reporter = Callable[[str, str, float, str | None], None]
    Dropped = Callable[[str, int], None]

GRACE = 0.25
"""Seconds that a close waits beyond a handler's time limit, so that the kill at that limit is still reported."""


class _BrokenHandler(Once):
    """A handler that could not be set up: every delivery fails with that error."""

    def __init__(self, error: str) -> None:
        self._error = error

    def deliver(self, event: Event, timeout: float) -> None:
        raise NotDelivered(self._error)


def _deliverer(handler: Handler, function: Callable[[Event], object] | None) -> Deliverer:
    # Imported where used: the journal handler alone needs neither urllib nor importlib.metadata.
    try:
        if function is not None or handler.type == "python":
            from agentres.companion.handlers.python import PythonHandler

            return PythonHandler(function or handler.options["callable"])
        if handler.type == "command":
            from agentres.companion.handlers.command import CommandHandler

            return CommandHandler(handler.options["argv"])
        if handler.type == "webhook":
            from agentres.companion.handlers.webhook import WebhookHandler

            return WebhookHandler(**handler.options)
        if handler.type == "journal":
            from agentres.companion.handlers.journal import JournalHandler

            return JournalHandler(**handler.options)
        if handler.type == "terminal":
            from agentres.companion.handlers.terminal import TerminalHandler

            return TerminalHandler(**handler.options)
    except (AgentresError, KeyError, OSError, TypeError, ValueError) as error:
        return _BrokenHandler(f"cannot be set up: {type(error).__name__}: {error}")
    return _BrokenHandler(f"there is no handler type {handler.type!r}")


class Dispatcher:
    """Gives each event to the handlers whose severity it reaches.

    ``report(alert id, handler, unix time, error)`` is called for every event of a handler, with error
    None if it was delivered.  ``dropped(handler, total)`` is called whenever a handler has lost an event,
    for any reason.  Both are called from the handlers' threads and from ``dispatch``, and must return at once.
    ``callables`` maps handler names to Python functions, which replace what the handler's type says.
    ``delivered`` are the alerts whose beginning an earlier process has delivered: id to the highest severity
    reached.

    Forks: create it before the program starts threads.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        report: Reporter,
        dropped: Dropped,
        callables: Mapping[str, Callable[[Event], object]] = MappingProxyType({}),
        delivered: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        # All processes first, then all threads: a fork among threads may inherit a lock for good.
        ways = [(handler, _deliverer(handler, callables.get(handler.name))) for handler in handlers]
        self._lanes = [_Lane(handler, way, report, dropped, delivered) for handler, way in ways]
        for lane in self._lanes:
            lane.start()

    def dispatch(self, event: Event) -> None:
        """Queue the event for every handler that it concerns; never blocks."""
        for lane in self._lanes:
            lane.offer(event)

    def close(self, timeout: float | None = None) -> list[str]:
        """Deliver what is queued, each handler within its own time limit and within ``timeout``.

        Return the names of the handlers that did not get everything.  No process is left.
        """
        started = time.monotonic()
        for lane in self._lanes:
            lane.finish()
        for lane in self._lanes:
            own = lane.handler.timeout
            limit = (own if timeout is None else min(own, timeout)) + GRACE
            lane.join(started + limit - time.monotonic())
        late = [lane.handler.name for lane in self._lanes if lane.abort()]
        for lane in self._lanes:
            lane.close()
        return late


class _Lane:
    """One handler's queue and thread."""

    def __init__(
        self,
        handler: Handler,
        way: Deliverer,
        report: Reporter,
        dropped: Dropped,
        delivered: Mapping[str, int],
    ) -> None:
        self.handler = handler
        self._way = way
        self._report = report
        self._dropped = dropped
        self._delivered = {
            alert for alert, severity in delivered.items() if severity >= handler.severity
        }
        self._waiting: deque[Event] = deque()
        self._at_work: Event | None = None
        self._changed = threading.Condition()
        self._finishing = False
        self._lost = 0
        self._thread = threading.Thread(
            target=self._run, name=f"handler {handler.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def offer(self, event: Event) -> None:
        with self._changed:
            if not self._concerned(event):
                return
            full = len(self._waiting) >= max(1, self.handler.queue)
            over = self._finishing
            if not full and not over:
                self._waiting.append(event)
                self._delivered.add(event["id"])
                self._changed.notify()
            if event["event"] == "resolved":
                self._delivered.discard(event["id"])
        if over:
            self._tell(event, "agentres has ended")
        elif full:
            self._tell(event, f"dropped: {self.handler.queue} alerts were waiting for it")

    def _concerned(self, event: Event) -> bool:
        """Return whether the handler gets this event: its severity suffices, or the handler got the alert before."""
        if event["id"] in self._delivered:
            return event["event"] in ("raised", "updated", "resolved")
        if event["event"] not in ("raised", "updated"):
            return False
        return Severity[event["severity"]] >= self.handler.severity

    def _run(self) -> None:
        while True:
            with self._changed:
                self._at_work = None
                if not self._waiting and not self._finishing:
                    self._changed.wait(self._way.due())
                if self._waiting:
                    self._at_work = self._waiting.popleft()
                elif self._finishing:
                    return
                event = self._at_work
            if event is not None:
                self._deliver(event)
            elif (due := self._way.due()) is not None and due <= 0:
                for alert, error in self._way.refresh(self.handler.timeout):
                    self._call(self._report, alert, self.handler.name, time.time(), error)

    def _deliver(self, event: Event) -> None:
        try:
            self._way.deliver(event, self.handler.timeout)
            error = None
        except NotDelivered as failure:
            error = str(failure)
        except Exception as failure:  # a malformed event: only this one is lost
            error = f"{type(failure).__name__}: {failure}"
        with self._changed:
            given_up = self._at_work is not event
            self._at_work = None
        if not given_up:
            self._tell(event, error)

    def _tell(self, event: Event, error: str | None) -> None:
        self._call(self._report, event["id"], self.handler.name, time.time(), error)
        # A lost alert about lost alerts is not counted: it would raise itself forever.
        if error is None or event["resource"] == "handlers":
            return
        with self._changed:
            self._lost += 1
            lost = self._lost
        self._call(self._dropped, self.handler.name, lost)

    @staticmethod
    def _call(function: Callable[..., None], *args: object) -> None:
        try:
            function(*args)
        except Exception:  # the caller's bug must not stop the deliveries
            import traceback  # a large module

            traceback.print_exc()

    def finish(self) -> None:
        """Take no more events; the thread ends when the queue is empty."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def join(self, timeout: float) -> None:
        self._thread.join(max(0.0, timeout))

    def abort(self) -> bool:
        """Give up what is not delivered yet; return whether there was any."""
        with self._changed:
            left = [*([self._at_work] if self._at_work else []), *self._waiting]
            self._waiting.clear()
            self._at_work = None
        for event in left:
            self._tell(event, "not delivered when agentres ended")
        self._way.abort()
        return bool(left)

    def close(self) -> None:
        self.join(GRACE)
        self._way.close()
