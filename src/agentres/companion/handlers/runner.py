"""A child process that runs what may hang, crash or fork, and cleans up after it.

    companion (threads) -- channel --> runner (one thread) --> worker or command, in its own group

The runner is forked while the companion has one thread, so no lock is inherited and it can fork later.
It is the parent of what it kills, so the process id cannot have been reused.  When the companion ends,
even by SIGKILL, the channel hangs up and the runner ends what it runs.

Channel: SOCK_SEQPACKET.  To the runner: marshal of (seconds, message).  Back: ``+``, or ``-`` and why.
"""

from __future__ import annotations

import marshal
import math
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from agentres.companion.handlers.base import NotDelivered, Once
from agentres.kernel import signal
from agentres.model.errors import reason

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKET = 1 << 18
"""Largest packet in bytes; the kernel's default send buffer allows less."""

_GRACE = 1.0
"""Seconds beyond the time limit after which a runner that does not answer counts as lost."""

_channels: set[socket.socket] = set()
"""The companion's ends.  Each child closes them: else its siblings would not see the companion end."""


_upwards: list[socket.socket] = []
"""In a runner: its channel, which its workers must close."""


class Gone(Exception):
    """The companion has hung up."""


class Work(Protocol):
    """A runner's task; runs in the runner's process."""

    def watched(self) -> Iterable[int]:
        """Return descriptors; when one is ready while nothing is being delivered, ``tend`` is called."""

    def tend(self) -> None:
        """Look after the worker; also called once at the start."""

    def deliver(self, message: Any, timeout: float, channel: socket.socket) -> str:
        """Deliver the message within ``timeout`` seconds; return "" or the reason why not."""

    def stop(self) -> None:
        """Kill what still runs."""


class Runner:
    """The companion's end: one request at a time.

    ``close_others``: close every other inherited descriptor in the child.  False if ``work`` may need
    descriptors that its program has open.
    """

    def __init__(self, work: Work, close_others: bool = True) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._dead = ""
        try:
            self._pid = os.fork()
        except OSError:
            self._channel.close()
            theirs.close()
            raise
        if self._pid == 0:
            _be_runner(theirs, [*_channels, self._channel], work, close_others)
        theirs.close()
        _channels.add(self._channel)

    def ask(self, message: Any, timeout: float) -> None:
        """Have the message delivered within ``timeout`` seconds, else raise NotDelivered."""
        if self._dead:
            raise NotDelivered(self._dead)
        try:
            self._channel.settimeout(timeout + _GRACE)
            self._channel.send(marshal.dumps((timeout, message)))
            answer = self._channel.recv(PACKET)
        except TimeoutError:
            self._dead = "the process that runs it does not answer"
        except OSError as error:
            if isinstance(error, ConnectionError):
                self._dead = "the process that runs it has ended"
            else:
                raise NotDelivered(f"cannot be handed over: {reason(error)}") from error
        else:
            if answer == b"+":
                return
            if answer:
                raise NotDelivered(answer[1:].decode(errors="replace"))
            self._dead = "the process that runs it has ended"
        self.close()
        raise NotDelivered(self._dead)

    def abort(self) -> None:
        """Hang up: the runner kills what it runs and ends, ``ask`` fails."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed already, or the runner has ended
            pass

    def close(self) -> None:
        """Hang up, and wait until the runner has cleaned up and ended."""
        self.abort()
        _channels.discard(self._channel)
        self._channel.close()
        pid, self._pid = self._pid, 0
        if pid:
            try:
                _reap(pid)
            except ChildProcessError:  # the program that uses us reaps all its children itself
                pass
        self._dead = self._dead or "it is closed"


class RunnerHandler(Once):
    """A deliverer that has a runner deliver each event."""

    def __init__(self, work: Work, close_others: bool = True) -> None:
        self._runner = Runner(work, close_others)

    def deliver(self, event: dict[str, Any], timeout: float) -> None:
        self._runner.ask(event, timeout)

    def abort(self) -> None:
        self._runner.abort()

    def close(self) -> None:
        self._runner.close()


def _reap(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_GRACE * 1000):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def wait(
    channel: socket.socket, descriptors: Iterable[int], deadline: float | None
) -> frozenset[int]:
    """Return the descriptors that are readable, none at the deadline.  Raises Gone."""
    poll = select.poll()
    poll.register(channel, select.POLLRDHUP)
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    milliseconds = None
    if deadline is not None:
        milliseconds = max(0, math.ceil((deadline - time.monotonic()) * 1000))
    ready = frozenset(fd for fd, _events in poll.poll(milliseconds))
    if channel.fileno() in ready:
        raise Gone
    return ready


def end_group(pid: int) -> int:
    """Kill our child's process group and reap the child; return its exit code, negative for a signal."""
    options = 0
    for kill in (os.killpg, os.kill):  # the child itself too: it may have moved to another group
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # a set-user-id program: it cannot be killed, and must not block us
            options = os.WNOHANG
    reaped, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if reaped else -signal.SIGKILL


def ending(exit_code: int) -> str:
    """Return how a process ended, in words."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    # Most real-time signals have no name.
    return f"was killed by {signal.name(-exit_code) or f'signal {-exit_code}'}"


def leave_runner() -> None:
    """In a freshly forked worker: close the runner's channels and restore the default signals."""
    for channel in _upwards:
        channel.close()
    default_signals()


def default_signals() -> None:
    """Reset signal handlers and mask to the defaults; the parent's handlers were inherited."""
    _reset()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def pass_over_signals() -> None:
    """Make the signals that ask a process to end do nothing; reset all others to the default.

    Not SIG_IGN: that would outlast exec(2) in the commands that we start; a handler does not.
    """
    _reset()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # signals that were blocked until now do nothing


def _reset() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the kernel would reap our children
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def _be_runner(
    channel: socket.socket, others: Iterable[socket.socket], work: Work, close_others: bool
) -> NoReturn:
    status = 1
    try:
        pass_over_signals()
        _upwards.append(channel)
        os.setpgid(0, 0)  # so that the terminal's Ctrl-Z does not stop us with the agent
        for other in others:
            other.close()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)  # inheritable, and not the agent's input
        if null > 2:
            os.close(null)
        if close_others:
            os.closerange(3, channel.fileno())
            os.closerange(channel.fileno() + 1, 1 << 30)
        _serve(channel, work)
        status = 0
    except Gone:
        status = 0
    except BaseException:
        import traceback  # a large module

        traceback.print_exc()
    finally:
        # Never return into the frames of the process that forked us.
        try:
            work.stop()
        finally:
            os._exit(status)


def _serve(channel: socket.socket, work: Work) -> None:
    work.tend()
    while True:
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        for fd in work.watched():
            poll.register(fd, select.POLLIN)
        if channel.fileno() not in {fd for fd, _events in poll.poll()}:
            work.tend()
            continue
        try:
            packet = channel.recv(PACKET)
        except ConnectionResetError as hung_up:  # the companion was killed with our answer unread
            raise Gone from hung_up
        if not packet:
            raise Gone
        timeout, message = marshal.loads(packet)
        try:
            error = work.deliver(message, timeout, channel)
        except OSError as failure:  # no more processes, descriptors, memory
            error = reason(failure)
        answer = b"-" + error.encode(errors="replace")[:4000] if error else b"+"
        try:
            channel.send(answer)
        except ConnectionError as hung_up:
            raise Gone from hung_up
