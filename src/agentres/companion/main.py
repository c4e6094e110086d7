"""The process beside a resident that tells handlers of alerts, and programs of events: ``python -P -m agentres.companion.main FD``.

FD is a SOCK_SEQPACKET socket; a packet is one marshal'd tuple of at most 200 kB.

    to us    ("settings", agentres.policy.settings.to_plain(), about)   first, once
             ("alert", event)
             ("events", head)             with a descriptor (SCM_RIGHTS) that the events for programs go to
             ("event", event)
             ("host", {"slice": path})    watch the host and the cgroup of all agents
             end of file                  deliver what is queued, then end
    from us, as text  "ready"             every handler can be told
                      "TOTAL HANDLER"     so many alerts that it did not get

``about`` is {"state": path of the history or ""} and, where an earlier companion is replaced, "told": the
open alerts, by id the highest severity that they reached.  ``head`` is what all events have, and "number", that of the last one
that an earlier companion was sent.

Whatever happens here, the resident and its agent go on.  SIGINT, SIGTERM, SIGHUP and SIGQUIT, which a
terminal sends to everyone, do nothing: the end of file ends us.
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
from agentres.companion.handlers.keeper import pass_over_signals
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
    """Watches the host until the event is set; gets the path of the slice and of the history too."""

PACKET = 1 << 18

REPORTS = 1000
"""How many reports wait for the history at the most."""

RETRY = 0.5
"""Seconds after which a report that the history refused is offered again, doubling."""

PATIENCE = 30.0
"""Seconds for which one is."""

CLOSE = 2.0
"""Seconds for which the end waits for the history."""

_ONE_DESCRIPTOR = socket.CMSG_SPACE(4)

HOST_CLOSE = 0.5
"""Seconds for which the end waits for the host's alerts to be resolved, before the handlers are closed."""


def say(line: str) -> None:
    """One line of ours on stderr.  Never waits: a stopped terminal must not stop us."""
    poll = select.poll()
    try:
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            os.write(2, f"agentres: {printable(line)}\n".encode(errors="backslashreplace"))
    except OSError:  # stderr is closed or its reader has gone
        pass


class Reports:
    """Writes to the history who got which alert, in a thread of its own: the disk may hang.

    That the history cannot be written is the resident's to tell: it meets the same trouble.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: deque[tuple[str, str, float, str | None]] = deque()
        self._changed = threading.Condition()
        self._closing = 0.0
        self._thread: threading.Thread | None = None

    def put(self, alert: str, handler: str, time: float, error: str | None) -> None:
        """To be called from any thread; never waits."""
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
        """Write what waits, for ``timeout`` seconds at the most."""
        with self._changed:
            self._closing = time.monotonic() + timeout
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        from agentres.store import Store  # sqlite3, for those who keep a history

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
                # Locked, full, or the resident has not written the alert yet.
                since = since or time.monotonic()
                if self._again(since):
                    continue
            since = None
            with self._changed:
                self._waiting.popleft()
        if store is not None:
            store.close()

    def _again(self, since: float) -> bool:
        """Wait before another attempt, where there is to be one."""
        now = time.monotonic()
        pause = max(RETRY, now - since)
        until = since + PATIENCE if not self._closing else self._closing
        if now + RETRY > until:
            return False
        with self._changed:
            self._changed.wait(min(pause, until - now))
        return True


class Companion:
    """One resident's companion; ``run`` returns when the resident has gone and all is delivered."""

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
        """One round of waiting; False at the end of file."""
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
        except Exception as error:  # whatever it was: the next one is a packet of its own
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
                from agentres.companion.events import EventWriter  # few ask for them

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
            except Exception as error:  # the alerts of agents are still to be told
                say(f"the host is not watched: {type(error).__name__}: {error}")

        # A thread, for the imports too: psutil's must not delay an alert.
        self._host = threading.Thread(target=run, name="host", daemon=True)
        self._host.start()

    def _drop(self, handler: str, total: int) -> None:
        """Called from handlers' threads: the main one sends, when the resident listens."""
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
        except BlockingIOError:  # poll tells when there is room
            pass
        except ConnectionError:  # the resident has gone; the end of file comes next
            self._dropped.clear()
            self._ready = False


def _named(callables: Sequence[Callable[[Event], object]]) -> dict[str, Callable[[Event], object]]:
    """A program's own functions by names that tell them apart, as handlers have them."""
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
        HostWatch,  # psutil, for the one companion that needs it
    )

    watch = HostWatch(chosen, slice_path, history, tell)
    watch.start()
    ended.wait()
    watch.stop(CLOSE)


def _settle() -> None:
    """Be nobody's foreground job: no signal of the terminal's, no input, no output of the agent's."""
    pass_over_signals()
    try:
        os.setsid()
    except PermissionError:  # we lead a process group already
        pass
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # closed: what is opened next must not become our stderr
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)  # what a Python handler prints is for people, not part of the agent's output


def main(
    fd: int,
    callables: Sequence[Callable[[Event], object]] = (),
    watch_host: WatchHost | None = _watch_host,
) -> None:
    """Serve the resident at the other end of ``fd`` until it hangs up.

    ``callables`` are handlers of a program that uses agentres as a library, which has forked us; they are
    told of every alert, each under its own name.
    """
    os.set_inheritable(fd, False)
    _settle()
    with socket.socket(fileno=fd) as channel:
        Companion(channel, callables, watch_host).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    # A thread that hangs in a write must not keep us from ending.
    os._exit(0)
