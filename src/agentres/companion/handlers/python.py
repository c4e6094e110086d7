"""Python handlers: each callable runs in a worker process, which imports it before the first alert.

    runner -- SOCK_SEQPACKET --> worker (own process group): function(event)

To the worker: marshal of an event.  Back: ``ready`` once, then for each event ``+``, or ``-`` and the
reason, or ``!`` and the reason if the worker cannot go on.
"""

from __future__ import annotations

import importlib
import marshal
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from agentres.companion.handlers.base import NotDelivered
from agentres.companion.handlers.runner import (
    PACKET,
    RunnerHandler,
    end_group,
    ending,
    leave_runner,
    wait,
)
from agentres.kernel.libc import die_with_parent
from agentres.model.errors import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Function = Callable[[dict[str, Any]], object]

IMPORT_LIMIT = 60.0
"""Seconds after which an alert that meets a worker still importing kills it."""

_CLOSING = 0.2
"""Seconds to wait for a worker's exit after it has closed its descriptors."""


class PythonHandler(RunnerHandler):
    """Calls ``package.module:function`` (:mod:`agentres.config` resolves an entry point's name to that), or a function."""

    def __init__(self, target: str | Function) -> None:
        # The program's own function may need descriptors that the program has open.
        super().__init__(PythonWork(target), close_others=isinstance(target, str))


class PythonWork:
    """Keeps one worker ready, and replaces it; see :class:`agentres.companion.handlers.runner.Work`."""

    def __init__(self, target: str | Function) -> None:
        self._target = target
        self._worker: _Worker | None = None
        self._started = False

    def watched(self) -> Iterable[int]:
        return () if self._worker is None else (self._worker.socket.fileno(), self._worker.pidfd)

    def tend(self) -> None:
        if self._worker is None:
            if not self._started:
                self._start()
            return
        word = self._worker.hear()
        if word == b"ready" and not self._worker.ready:
            self._worker.ready = True
        else:
            # It ended, closed its descriptors, or sent an answer without a request.  A worker that
            # fails during its import is restarted only at the next alert, not over and over.
            again = self._worker.ready
            self._end()
            if again:
                self._start()

    def deliver(self, message: Any, timeout: float, channel: socket.socket) -> str:
        deadline = time.monotonic() + timeout
        if self._worker is not None and wait(channel, self.watched(), time.monotonic()):
            self.tend()  # it became ready, or ended, before this alert was read
        if self._worker is None:
            self._start()
        worker = self._worker
        assert worker is not None
        if not worker.ready:
            if not wait(channel, (worker.socket.fileno(), worker.pidfd), deadline):
                if time.monotonic() - worker.started > IMPORT_LIMIT:
                    self._end()
                return f"still being imported after {timeout:g} s"
            if worker.hear() != b"ready":
                return f"cannot be imported: {self._how_it_ended(worker, channel)}"
            worker.ready = True
        answer = b""
        try:
            worker.socket.send(marshal.dumps(message))
            if not wait(channel, (worker.socket.fileno(), worker.pidfd), deadline):
                self._end()
                self._start()
                return f"took longer than {timeout:g} s and was killed"
            answer = worker.hear()
        except ConnectionError:  # it ended, or closed its descriptors, since its last answer
            pass
        if answer[:1] in (b"+", b"-"):
            return answer[1:].decode(errors="replace")
        if answer[:1] == b"!":
            error = answer[1:].decode(errors="replace")
            self._end()
        else:
            error = self._how_it_ended(worker, channel)
        self._start()
        return error

    def _how_it_ended(self, worker: _Worker, channel: socket.socket) -> str:
        ended = wait(channel, (worker.pidfd,), time.monotonic() + _CLOSING)
        exit_code = self._end()
        return ending(exit_code) if ended else "closed its descriptors and was killed"

    def stop(self) -> None:
        if self._worker is not None:
            self._end()

    def _start(self) -> None:
        self._started = True
        self._worker = _Worker(self._target)

    def _end(self) -> int:
        assert self._worker is not None
        worker, self._worker = self._worker, None
        return worker.end()


class _Worker:
    """The runner's view of a worker process."""

    def __init__(self, target: str | Function) -> None:
        self.started = time.monotonic()
        self.ready = False
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        runner = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()  # else the worker would never see the runner hang up
            _be_worker(theirs, runner, target)
        theirs.close()
        try:
            os.setpgid(self.pid, self.pid)  # the worker does this too: either may be first
        except (ProcessLookupError, PermissionError):  # it has ended, or has its own session
            pass
        self.pidfd = os.pidfd_open(self.pid)

    def hear(self) -> bytes:
        """Return its next message; empty if there is none, or it has closed its end or ended."""
        try:
            return self.socket.recv(PACKET, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionError):
            return b""

    def end(self) -> int:
        """Kill it with its process group; return its exit code, negative for a signal."""
        exit_code = end_group(self.pid)
        self.socket.close()
        os.close(self.pidfd)
        return exit_code


def _be_worker(channel: socket.socket, runner: int, target: str | Function) -> NoReturn:
    try:
        os.setpgid(0, 0)
        leave_runner()
        # Without the runner, nothing would kill this worker at the time limit.
        die_with_parent()
        if os.getppid() == runner:
            _work(channel, target)
    except BaseException:
        # The import called sys.exit(), or the function closed our descriptors: the runner reports it.
        os._exit(1)
    finally:
        os._exit(0)


def _work(channel: socket.socket, target: str | Function) -> None:
    try:
        function: Function | str = _load(target) if isinstance(target, str) else target
    except Exception as error:
        function = f"cannot be imported: {describe(error)}"
    worker = os.getpid()
    forks: list[None] = []
    os.register_at_fork(after_in_parent=lambda: forks.append(None))
    channel.send(b"ready")
    while packet := channel.recv(PACKET):
        forks.clear()
        ended = False
        if isinstance(function, str):
            error_line = function
        else:
            error_line, ended = _call(function, marshal.loads(packet))
        if os.getpid() != worker:
            os._exit(0)  # this is a child that the function forked and that returned from it too
        if not error_line and forks and _has_child():
            error_line, ended = "left a forked process behind and was killed", True
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (
                AttributeError,
                OSError,
                ValueError,
            ):  # there is none, or the function closed it
                pass
        said = error_line.encode(errors="replace")[:4000]
        channel.send((b"!" if ended else b"-") + said if error_line else b"+")
        if ended:
            return


def _call(function: Function, event: dict[str, Any]) -> tuple[str, bool]:
    """Call the function; return why that failed ("" if it did not), and whether the worker should end."""
    try:
        result = function(event)
    except NotDelivered as error:
        return str(error), False
    except Exception as error:
        return describe(error), False
    except BaseException as error:
        return describe(error), True
    if hasattr(result, "__await__"):
        getattr(result, "close", lambda: None)()
        return "returned an awaitable: an alert handler is a plain function", False
    return "", False


def _has_child() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _load(target: str) -> Function:
    """Import ``package.module:function``."""
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{target} is not callable")
    function: Function = found
    return function
