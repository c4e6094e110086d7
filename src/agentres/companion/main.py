"""The supervisor's companion: passes alerts to handlers and events to programs (``python -P -m agentres.companion.main FD``).

FD is a SOCK_SEQPACKET socket; a packet is one marshal'd tuple of at most 200 kB.

    to us    ("settings", agentres.policy.settings.to_plain(), about)   first, once
             ("alert", event)
             ("events", head)             with the descriptor (SCM_RIGHTS) to write events for programs to
             ("event", event)
             ("host", {"slice": path})    watch the host and the cgroup of all agents
             end of file                  deliver what is queued, then end
    from us, as text  "ready"             every handler is set up
                      "TOTAL HANDLER"     HANDLER has lost TOTAL alerts so far

``about`` is {"state": path of the history or ""}.  If this companion replaces an earlier one, it also has "told": the open
alerts, as a dict of id to the highest severity reached.  ``head`` has the fields common to all events, and "number": that of
the last event sent to an earlier companion.

A failure here never affects the supervisor or its agent.  SIGINT, SIGTERM, SIGHUP and SIGQUIT, which a
terminal sends to all its processes, do nothing: only the end of file ends this process.
"""

from __future__ import annotations

import marshal
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from agentres.companion.handlers.base import EVENT_KEYS
from agentres.companion.handlers.dispatch import Dispatcher
from agentres.companion.handlers.runner import PACKET, pass_over_signals
from agentres.model.errors import AgentresError, printable
from agentres.policy import settings as configuration
from agentres.policy.alerts import Severity
from agentres.policy.settings import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentres.companion.events import EventWriter
    from agentres.policy.settings import Settings

    Event = dict[str, Any]
    Dispatch = Callable[[Event], None]
    WatchHost = Callable[[Settings, str, str, Dispatch, threading.Event], None]
    """Watches the host until the event is set; arguments: settings, slice path, history path, dispatch, event."""

REPORTS = 1000
"""Most reports that may wait for the history."""

RETRY = 0.5
"""Seconds before a report that the history refused is written again; the pause doubles."""

PATIENCE = 30.0
"""Seconds after which a report that the history refuses is dropped."""

CLOSE = 2.0
"""Seconds that shutdown waits for the history, for the event writer and for the host's watch, each."""

_ONE_DESCRIPTOR = socket.CMSG_SPACE(4)

HOST_CLOSE = 0.5
"""Seconds that shutdown waits for the host's alerts to be resolved before it closes the handlers."""


def say(line: str) -> None:
    """Write one line to stderr.  Never blocks: a stopped terminal must not stop this process."""
    poll = select.poll()
    try:
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            os.write(2, f"agentres: {printable(line)}\n".encode(errors="backslashreplace"))
    except OSError:  # stderr is closed or its reader has gone
        pass


class Reports:
    """Records in the history which handler got which alert, in its own thread because the disk may hang.

    Write failures are not reported here: the supervisor writes the same history and reports them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: deque[tuple[str, str, float, str | None]] = deque()
        self._changed = threading.Condition()
        self._closing = 0.0
        self._thread: threading.Thread | None = None

    def put(self, alert: str, handler: str, time: float, error: str | None) -> None:
        """Queue a report.  Thread-safe; never blocks."""
        with self._changed:
            if not self._path or self._closing:
                return
            if len(self._waiting) < REPORTS:
                self._waiting.append((alert, handler, time, error))
                self._changed.notify()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="history", daemon=True)
                    self._thread.start()
                return
        say(f"history: too many reports wait: what {handler} did with {alert} is not kept")

    def close(self, timeout: float) -> None:
        """Write the waiting reports, for at most ``timeout`` seconds."""
        with self._changed:
            self._closing = time.monotonic() + timeout
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        from agentres.store import Store  # loads sqlite3: only if a history is kept

        store = None
        since = None
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    break
                report = self._waiting[0]
            try:
                store = store or Store.open(self._path)
                store.handled(*report)
            except AgentresError:
                # Locked, full, or the supervisor has not written the alert yet.
                since = since or time.monotonic()
                if self._again(since):
                    continue
            since = None
            with self._changed:
                self._waiting.popleft()
        if store is not None:
            store.close()

    def _again(self, since: float) -> bool:
        """Wait before another attempt; return False if there is no time for one."""
        now = time.monotonic()
        pause = max(RETRY, now - since)
        until = since + PATIENCE if not self._closing else self._closing
        if now + RETRY > until:
            return False
        with self._changed:
            self._changed.wait(min(pause, until - now))
        return True


class Companion:
    """One supervisor's companion; ``run`` returns when the supervisor has hung up and the queues are empty or timed out."""

    def __init__(
        self,
        channel: socket.socket,
        callables: Sequence[Callable[[Event], object]] = (),
        watch_host: WatchHost | None = None,
    ) -> None:
        self._channel = channel
        self._callables = _named(callables)
        self._watch_host = watch_host
        self._host: threading.Thread | None = None
        self._ended = threading.Event()
        self._settings: Settings | None = None
        self._about: Mapping[str, Any] = {}
        self._dispatcher: Dispatcher | None = None
        self._reports = Reports("")
        self._events: EventWriter | None = None
        self._received = -1
        self._dropped: dict[str, int] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ready = False

    def run(self) -> None:
        while self._turn():
            pass
        self._ended.set()
        if self._host is not None:
            self._host.join(HOST_CLOSE)
        if self._events is not None:
            self._events.finish(CLOSE)
        if self._dispatcher is not None:
            for name in self._dispatcher.close():
                say(f"handler {name}: not all alerts were delivered")
        self._send_waiting()
        self._reports.close(CLOSE)
        if self._host is not None:
            self._host.join(CLOSE)
        if self._events is not None and (lost := self._events.close()):
            say(lost)

    def _turn(self) -> bool:
        """Wait once and handle what is ready; return False at the end of file."""
        poll = select.poll()
        sending = select.POLLOUT if self._dropped or self._ready else 0
        poll.register(self._channel, select.POLLIN | sending)
        poll.register(self._wake, select.POLLIN)
        ready = dict(poll.poll())
        if self._wake in ready:
            os.eventfd_read(self._wake)
        state = ready.get(self._channel.fileno(), 0)
        if state & select.POLLIN:
            return self._receive()
        if state & (select.POLLHUP | select.POLLERR):
            return False
        if state & select.POLLOUT:
            self._send_waiting()
        return True

    def _receive(self) -> bool:
        try:
            packet, rights, flags, _address = self._channel.recvmsg(
                PACKET, _ONE_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return False
        if not packet:
            hung_up = select.poll()
            hung_up.register(self._channel, select.POLLRDHUP)
            if hung_up.poll(0):
                return False
        for _level, _type, sent in rights:
            self._received = int.from_bytes(sent, sys.byteorder)
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError(f"longer than {PACKET} bytes")
            self._take(marshal.loads(packet))
        except Exception as error:  # a bad packet does not affect the next one
            say(f"companion: passed over a packet: {type(error).__name__}: {error}")
        return True

    def _take(self, message: Any) -> None:
        match message:
            case ("settings", dict() as plain, dict() as about) if self._dispatcher is None:
                self._begin(configuration.from_plain(plain), about)
            case ("alert", dict() as event) if self._dispatcher is not None:
                if missing := EVENT_KEYS - event.keys():
                    raise ValueError(f"an event without {', '.join(sorted(missing))}")
                Severity[event["severity"]]
                self._dispatcher.dispatch(event)
            case ("events", dict() as head) if self._received >= 0 and self._events is None:
                from agentres.companion.events import EventWriter  # rarely needed

                self._events = EventWriter(self._received, head)
            case ("event", dict() as event) if self._events is not None:
                self._events.put(event)
            case ("host", {"slice": str() as slice_path}) if self._settings is not None:
                self._start_watching(self._settings, slice_path)
            case (str() as kind, *_):
                raise ValueError(f"{kind!r} is unknown, malformed, or not due now")
            case _:
                raise ValueError("no message")

    def _begin(self, chosen: Settings, about: Mapping[str, Any]) -> None:
        handlers = [
            *chosen.handlers,
            *(Handler(name, "python", Severity.INFO) for name in self._callables),
        ]
        self._settings, self._about = chosen, about
        self._reports = Reports(str(about.get("state") or ""))
        self._dispatcher = Dispatcher(
            handlers, self._reports.put, self._drop, self._callables, about.get("told", {})
        )
        self._ready = True

    def _start_watching(self, chosen: Settings, slice_path: str) -> None:
        watch, dispatcher = self._watch_host, self._dispatcher
        if watch is None or dispatcher is None or self._host is not None:
            return
        history = str(self._about.get("state") or "")

        def run() -> None:
            try:
                watch(chosen, slice_path, history, dispatcher.dispatch, self._ended)
            except Exception as error:  # alerts of agents must still be delivered
                say(f"the host is not watched: {type(error).__name__}: {error}")

        # A thread also for its imports: loading psutil must not delay an alert.
        self._host = threading.Thread(target=run, name="host", daemon=True)
        self._host.start()

    def _drop(self, handler: str, total: int) -> None:
        """Note a lost alert.  Called from handlers' threads; the main thread sends it when the channel has room."""
        self._dropped[handler] = total
        os.eventfd_write(self._wake, 1)

    def _send_waiting(self) -> None:
        try:
            if self._ready:
                self._channel.send(b"ready", socket.MSG_DONTWAIT)
                self._ready = False
            for handler in list(self._dropped):
                total = self._dropped.pop(handler)
                try:
                    packet = f"{total} {handler}".encode()
                    self._channel.send(packet, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    self._dropped.setdefault(handler, total)
                    raise
        except BlockingIOError:  # _turn() polls for room
            pass
        except ConnectionError:  # the supervisor has hung up; the end of file comes next
            self._dropped.clear()
            self._ready = False


def _named(callables: Sequence[Callable[[Event], object]]) -> dict[str, Callable[[Event], object]]:
    """Give each of a program's own functions a unique name, to use as its handler name."""
    found: dict[str, Callable[[Event], object]] = {}
    for function in callables:
        name = base = str(getattr(function, "__qualname__", type(function).__qualname__))
        count = 1
        while name in found:
            count += 1
            name = f"{base} {count}"
        found[name] = function
    return found


def _watch_host(
    chosen: Settings, slice_path: str, history: str, tell: Dispatch, ended: threading.Event
) -> None:
    from agentres.companion.hostwatch import (
        HostWatch,  # loads psutil: only one companion needs it
    )

    watch = HostWatch(chosen, slice_path, history, tell)
    watch.start()
    ended.wait()
    watch.stop(CLOSE)


def _settle() -> None:
    """Detach from the terminal and from the agent's streams: no terminal signals, no stdin, stdout to stderr."""
    pass_over_signals()
    try:
        os.setsid()
    except PermissionError:  # already a process group leader
        pass
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # closed: a file that is opened later must not become our stderr
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)  # what a Python handler prints must not mix with the agent's output


def main(
    fd: int,
    callables: Sequence[Callable[[Event], object]] = (),
    watch_host: WatchHost | None = _watch_host,
) -> None:
    """Serve the supervisor at the other end of ``fd`` until it hangs up.

    ``callables`` are handlers of a program that uses agentres as a library and forked this process.  Each gets
    every alert, under its own handler name.
    """
    os.set_inheritable(fd, False)
    _settle()
    with socket.socket(fileno=fd) as channel:
        Companion(channel, callables, watch_host).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    # A thread that hangs in a write must not delay the exit.
    os._exit(0)
