"""The supervisor's end of the socket to the companion, which runs handlers and writes events for programs.

Sending never blocks: a message that the socket does not take is dropped and counted.  The companion
(:mod:`agentres.companion.main`) is a process of its own, started when it is first needed.
"""

from __future__ import annotations

import _socket  # not socket: its enums of 300 constants take a quarter of a megabyte
import fcntl
import marshal
import os
import select
import sys
import time

from agentres.kernel import signal
from agentres.kernel.loop import Loop
from agentres.model import log
from agentres.model.errors import ControlFileError
from agentres.model.record import TYPE_CHECKING
from agentres.policy.alerts import Severity
from agentres.policy.settings import Handler, Settings, to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from agentres.run.handover import Handover

    Handle = Callable[[dict[str, Any]], object]

_CLOSING = 5.0
"""Seconds that the companion may take to end, besides its handlers' time limit."""

_RESTART_LEAST, _RESTART_MOST = 1.0, 60.0
"""Seconds between two starts of the companion, doubled each time: one that always dies must not keep us busy."""

_AT_ONCE = 64
"""Packets from the companion that are read in one turn of the loop."""

_AT_THE_END = 1 << 12
"""Packets that are read after its end: more than a socket holds, but bounded, as another process may send on."""

_COMPANION = (sys.executable, "-P", "-m", "agentres.companion.main")

_BUFFER = 1 << 20
"""Size of the socket's send buffer in bytes: some hundred alerts."""


class Messenger:
    """Starts the companion, sends to it, and hears what it dropped.

    A companion that died is replaced at the next message; the new one is told which alerts are open.

    ``history`` is the path of the database, or empty.  The companion is in the agent's home (``handover.adopt``) before it
    starts anything, and runs as ``handover.caller``.  ``note`` is told how many alerts were dropped in all, and why
    (:meth:`agentres.watch.engine.Engine.note`).  ``callables`` are the handlers of a program that uses
    agentres as a library: with them the companion is forked from this process, not executed.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        history: str,
        handover: Handover,
        note: Callable[[str, float, str], None],
        callables: Sequence[Handle] = (),
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._history = history
        self._handover = handover
        self._note = note
        self._callables = callables
        self._about: dict[str, Any] = {}
        self._number = 0
        self._socket: _socket.socket | None = None
        self._pid = 0
        self._dropped: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._host_slice = ""
        self._lock = -1
        self._start_at, self._pause = 0.0, _RESTART_LEAST
        self._closing = False

    def start(self) -> None:
        """Start the companion, if it does not run: ahead of the first message, which would do so too."""
        now = time.monotonic()
        if self._socket is not None or now < self._start_at:
            return
        self._start_at = now + self._pause
        self._pause = min(2 * self._pause, _RESTART_MOST)
        self._pid = 0
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _BUFFER)
        try:
            handover = self._handover
            if handover.caller is not None:
                from agentres.kernel.caller import spawn

                line, fd = [*_COMPANION, str(theirs.fileno())], theirs.fileno()
                self._pid = spawn(handover.caller, line, handover.environment, fd, handover.adopt)
            else:
                self._pid = (
                    self._fork(theirs, ours) if self._callables else self._execute(theirs.fileno())
                )
                handover.adopt(self._pid)
        except (OSError, ControlFileError) as error:
            ours.close()
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            self._lost(f"the handlers cannot be started: {error}")
            return
        finally:
            theirs.close()
        self._socket = ours
        self._loop.watch(ours.fileno(), self._hear)
        about = {"state": self._history, "told": dict(self._open)}
        self._send(("settings", to_plain(self._settings), about))
        if self._host_slice:
            self._send(("host", {"slice": self._host_slice}))
        if self._about:
            # After the settings: on those the companion forks the handlers' runners, which must not inherit the descriptor.
            self._send(("events", self._about), self._handover.events)

    def begin_events(self, head: Mapping[str, Any]) -> None:
        """Have events written from now on; ``head`` is what they all contain."""
        self._about = {**head, "number": 0}

    def tell(self, event: Mapping[str, Any]) -> bool:
        """Send an event for programs; return whether it was taken.  The companion counts lost ones by the gaps in the numbers."""
        if self._closing:
            return False
        if event["event"] == "end":  # there is no later try: do not wait to restart the companion
            self._start_at = 0.0
        self._number += 1
        self.start()
        taken = self._send(("event", {**event, "number": self._number}))
        if taken:
            self._about["number"] = self._number
        return taken

    def alert(self, event: dict[str, Any]) -> None:
        """Send an alert event to the handlers."""
        if self._closing:  # the handlers are ending; the history still gets it
            return
        self.start()
        if self._socket is None:
            self._drop("all", self._dropped.get("all", 0) + 1)
        else:
            self._send(("alert", event))
        self._remember(event)

    def watch_host(self) -> None:
        """Have the companion watch the host and the cgroup that holds all agents' homes, unless another agent's companion does.

        A lock on a file beside the history tells whether one does.
        """
        if self._lock >= 0 or self._closing:
            return
        if all(rule.of == "agent" for rule in self._settings.rules):
            return
        try:
            held = self._open_lock()
        except OSError as error:  # no state directory: the history raises an alert about that
            log.debug(__name__, "the host is not watched: %s", error)
            return
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return
        self._lock = held
        self.start()
        self._host_slice = self._handover.parent
        self._send(("host", {"slice": self._host_slice}))

    def _open_lock(self) -> int:
        """Open the lock's file as the agent's owner."""
        path, flags = f"{self._handover.state}/host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        if self._handover.caller is None:
            return os.open(path, flags, 0o600)
        from agentres.kernel.caller import open_as

        return open_as(self._handover.caller, path, flags, 0o600)

    def _remember(self, event: dict[str, Any]) -> None:
        """Keep the highest severity of each open alert, for a companion that replaces another."""
        if event["event"] == "resolved":
            self._open.pop(event["id"], None)
        else:
            severity = Severity[event["severity"]].value
            self._open[event["id"]] = max(severity, self._open.get(event["id"], severity))

    def close(self) -> None:
        """Let the handlers finish within their time limits, and end the companion; nothing is sent any more."""
        self._closing = True
        if self._socket is not None:
            self._end_companion(self._socket)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _end_companion(self, sock: _socket.socket) -> None:
        longest = max((h.timeout for h in self._settings.handlers), default=0.0)
        if self._callables:
            longest = max(longest, Handler("", "python").timeout)
        patience = longest + _CLOSING
        self._loop.unwatch(sock.fileno())
        sock.shutdown(_socket.SHUT_WR)
        pidfd = os.pidfd_open(self._pid)
        try:
            deadline = time.monotonic() + patience
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._lost("the handlers did not finish in time")
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        finally:
            os.close(pidfd)
        self._receive(_AT_THE_END)
        sock.close()
        self._socket = None

    def _fork(self, theirs: _socket.socket, ours: _socket.socket) -> int:
        # Loaded before the fork: what another thread is just loading would stay locked in the child for good.
        from agentres.companion import main as companion

        try:
            from agentres.store import Store  # noqa: F401
        except ImportError as error:  # there are Pythons without SQLite
            log.debug(__name__, "no history for the companion: %s", error)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                os.setsid()
                companion.main(theirs.fileno(), self._callables)
            finally:
                os._exit(0)
        return pid

    def _execute(self, fd: int) -> int:
        os.set_inheritable(fd, True)
        return os.posix_spawn(
            sys.executable,
            [*_COMPANION, str(fd)],
            self._handover.environment,
            # Our stdin and stdout are the agent's.
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,  # the terminal's Ctrl-C and Ctrl-Z are for the agent
            # Blocked until it is up.
            setsigmask=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT],
        )

    def _send(self, message: tuple[Any, ...], descriptor: int = -1) -> bool:
        """Send a message, with a descriptor if there is one; return whether the socket took it."""
        if self._socket is None:
            return False
        rights = [] if descriptor < 0 else [
            (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))
        ]  # fmt: skip
        try:
            self._socket.sendmsg([marshal.dumps(message)], rights)
        except BlockingIOError:
            if message[0] != "event":
                self._drop("handlers", self._dropped.get("handlers", 0) + 1)
            return False
        except OSError as error:
            self._end()
            self._lost(f"the handlers' process has gone: {error}")
            return False
        return True

    def _hear(self) -> None:
        if not self._receive():
            self._end()
            self._lost("the handlers' process has gone")

    def _receive(self, most: int = _AT_ONCE) -> bool:
        """Read up to ``most`` packets from the companion; return False if it has hung up or makes no sense."""
        assert self._socket is not None
        known = {handler.name for handler in self._settings.handlers}
        for _ in range(most):
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not data:
                return False
            if data == b"ready":
                continue
            # Text, and checked: under the daemon we are root, and the companion is not.
            total, _, name = data.decode(errors="replace").partition(" ")
            counted = total.isascii() and total.isdecimal() and len(total) < 10
            if not counted or (self._handover.caller is not None and name not in known):
                return False
            self._drop(name, int(total))
        return True

    def _drop(self, name: str, total: int) -> None:
        self._dropped[name] = total
        counts = ", ".join(f"{handler}: {count}" for handler, count in self._dropped.items())
        self._note("handlers", sum(self._dropped.values()), f"alerts dropped ({counts})")

    def _lost(self, why: str) -> None:
        self._dropped["all"] = self._dropped.get("all", 0) + 1
        self._note("handlers", sum(self._dropped.values()), why)

    def _end(self) -> None:
        assert self._socket is not None
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._socket = None
        os.kill(self._pid, signal.SIGKILL)  # its end of the socket is closed: it has no more to do
        os.waitpid(self._pid, 0)
