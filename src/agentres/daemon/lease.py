"""``agentres run`` through the daemon: asks it for the agent, and is the agent's terminal until that ends.

When this process ends for any reason, so does the agent: the keeper sees the connection close.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time

from agentres.daemon import submission
from agentres.kernel import delegation, signal
from agentres.kernel.listener import Peer
from agentres.kernel.signalfd import Signal, Signals
from agentres.kernel.terminal import Terminal
from agentres.model import log
from agentres.model.errors import AgentresError, Interrupted, reason
from agentres.model.record import TYPE_CHECKING, Record
from agentres.run.launch import ENDING, PASSED_ON

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentres.daemon.submission import Submission

_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python itself ignores, whatever their disposition was before."""

_STOP_SECONDS = 2.0
"""Seconds to wait for the supervisor to say that the agent has stopped, before we stop anyway."""

_ANSWER_SECONDS = 2.0
"""Seconds that the supervisor has to answer an ending signal that came before it said that the command runs."""

_GONE = "the agent's supervisor was killed, and the agent with it"


class RunResult(Record):
    """How the agent ended, as its keeper reports: the exit status, lines for people, and the summary."""

    exit_code: int
    lines: tuple[str, ...]
    summary: dict[str, Any]


class Failed(AgentresError):
    """An error that the daemon or the agent's keeper reports."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def connect(path: str) -> socket.socket | None:
    """Connect to the daemon; None if no root process listens, we may not connect, or our own cgroup is delegated."""
    if not os.path.exists(path) or delegation.own_place():
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
        if Peer.of(sock).uid == 0:  # a listener that is not root must not get our environment
            return sock
    except OSError:
        pass
    sock.close()
    return None


class Lease:
    """One agent, run by the daemon behind ``sock``.

    ``tell`` gets lines for people, ``draw`` progress lines.  ``events`` is the descriptor for events, -1: none.
    """

    def __init__(
        self,
        sock: socket.socket,
        tell: Callable[[str], None],
        draw: Callable[[str], None] | None = None,
        events: int = -1,
    ) -> None:
        self._sock = sock
        self._tell = tell
        self._draw = draw
        self._events = [events] if events >= 0 else []
        self._received = b""
        self._started = ""
        self._stop_by: float | None = None
        self._give_up: tuple[float, int] | None = None

    def run(self, asked: Submission) -> RunResult:
        """Ask for the agent, pass signals on, and return when it has ended.  AgentresError.

        With ``detach``, return as soon as the command runs, with the agent's name as the only line.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ignored = [
            int(number)
            for number in signal.valid_signals() - set(_PYTHONS)
            if signal.getsignal(number) == signal.SIG_IGN
        ]
        terminal = Terminal()
        heard = {s for s in PASSED_ON if signal.getsignal(s) != signal.SIG_IGN}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        signals = Signals(heard)
        try:
            self._submit(asked.but(ignored=ignored, blocked=list(map(int, mask))))
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            poll.register(signals.fd, select.POLLIN)
            while True:
                ready = dict(poll.poll(self._patience()))
                if signals.fd in ready:
                    for came in signals.read():
                        self._pass_on(came)
                if self._sock.fileno() in ready:
                    ended = self._take(asked.detach)
                    if ended is not None:
                        terminal.restore(modes=ended.exit_code >= 128)
                        return ended
                if self._stop_by is not None and time.monotonic() >= self._stop_by:
                    self._stop()
                if self._give_up is not None and time.monotonic() >= self._give_up[0]:
                    raise Interrupted(self._give_up[1])
        except BaseException:
            terminal.restore(modes=True)
            raise
        finally:
            signals.close()
            self._sock.close()
            while signal.sigtimedwait(heard, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _submit(self, asked: Submission) -> None:
        body = os.memfd_create("agentres")
        cwd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            data = submission.write(asked)
            while data:
                data = data[os.write(body, data) :]
            streams = [stream for stream in range(3) if _is_open(stream)]
            line = submission.request(streams, bool(self._events))
            socket.send_fds(self._sock, [line], [body, cwd, *streams, *self._events])
        except OSError as error:
            # The daemon may have sent the reason before it hung up.
            if (failure := self._last_words()) is not None:
                raise failure from error
            raise AgentresError(f"the daemon took no request: {reason(error)}") from error
        finally:
            os.close(body)
            os.close(cwd)

    def _last_words(self) -> Failed | None:
        try:
            self._take(detach=False)
        except Failed as failed:
            return failed
        except (OSError, AgentresError):
            pass
        return None

    def _pass_on(self, came: Signal) -> None:
        if came.number in ENDING and not self._started and not came.sent and not self._give_up:
            # The command may run already, so the supervisor decides; if it does not answer, nothing runs.
            self._give_up = time.monotonic() + _ANSWER_SECONDS, came.number
        # SIGCONT, with which a shell resumes a job, is for the whole group, as was the terminal's stop.
        to_all = not came.sent or came.number == signal.SIGCONT
        line = submission.signal_line(came.number, to_all)
        try:
            self._sock.sendall(line)
        except OSError:  # the connection is closed: _take() finds that next
            return
        if came.number == signal.SIGTSTP:
            self._stop_by = time.monotonic() + _STOP_SECONDS

    def _patience(self) -> float | None:
        """Return the milliseconds until we stop or give up, whatever the agent does; None: never."""
        ends = [self._stop_by, self._give_up[0] if self._give_up else None]
        first = min((end for end in ends if end is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic()) * 1000

    def _stop(self) -> None:
        """Stop, as the terminal asked, after the agent: once we stop, the terminal is the shell's."""
        self._stop_by = None
        os.kill(os.getpid(), signal.SIGSTOP)

    def _take(self, detach: bool) -> RunResult | None:
        """Handle the lines that have come; return how it ended, None if it has not."""
        try:
            data = self._sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise AgentresError(_GONE)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"tell": text}:
                    self._tell(str(text))
                case {"progress": text}:
                    if self._draw is not None:
                        self._draw(str(text))
                case {"log": text}:
                    log.debug(__name__, "%s", text)
                case {"stopped": _}:
                    if self._stop_by is not None:
                        self._stop()
                case {"started": path, "name": name}:
                    self._started, self._give_up = str(path), None
                    if detach:
                        return RunResult(0, (str(name),), {})
                case {"failed": {"error": text, "exit_code": code}}:
                    raise Failed(str(text), int(code))
                case {"ended": {"exit_code": code, "lines": words, "summary": summary}}:
                    return RunResult(int(code), tuple(map(str, words)), summary)
        return None


def _is_open(stream: int) -> bool:
    try:
        os.fstat(stream)
    except OSError:
        return False
    return True
