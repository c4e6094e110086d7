"""The terminal handler: one line on stderr for people; stdout is the agent's."""

from __future__ import annotations

import os
import select
import socket
import stat
import termios
import time
from typing import TYPE_CHECKING, Any

from agentres.companion.handlers.base import NotDelivered, Once
from agentres.model.errors import printable, reason

if TYPE_CHECKING:
    from collections.abc import Mapping

_COLOURS = {
    "INFO": "36",
    "WARNING": "33",
    "CRITICAL": "31",
    "EMERGENCY": "1;37;41",
    "RESOLVED": "32",
}


class TerminalHandler(Once):
    """Writes each alert as a line to ``fd``."""

    def __init__(self, fd: int = 2, environ: Mapping[str, str] = os.environ) -> None:
        self._out = Output(fd)
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self._colour = os.isatty(fd) and not plain

    def deliver(self, event: dict[str, Any], timeout: float) -> None:
        text = line(event, self._colour) + ("\r\n" if self._out.raw() else "\n")
        try:
            self._out.write(text.encode(errors="backslashreplace"), time.monotonic() + timeout)
        except TimeoutError as error:
            raise NotDelivered(f"the terminal took nothing for {timeout:g} s") from error
        except OSError as error:
            raise NotDelivered(f"stderr: {reason(error)}") from error

    def close(self) -> None:
        self._out.close()


def line(event: dict[str, Any], colour: bool = False) -> str:
    """Return ``agentres: WARNING memory of x is at 76% of its limit (…) [3f9a0c12]``."""
    state = "RESOLVED" if event["event"] == "resolved" else event["severity"]
    shown = f"\x1b[{_COLOURS[state]}m{state}\x1b[0m" if colour else state
    return f"agentres: {shown} {printable(event['message'])} [{printable(event['id'])}]"


class Output:
    """Writes that never block for good, even if nobody reads the pipe or Ctrl-S stopped the terminal.

    O_NONBLOCK belongs to the open file, which the agent shares, so terminals and pipes are reopened.
    """

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self._tty = os.isatty(fd)
        self._socket = stat.S_ISSOCK(mode)
        self._own = -1
        if self._tty or stat.S_ISFIFO(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # another user's terminal: then poll before every write
                pass
        self._fd = fd if self._own < 0 else self._own

    def fileno(self) -> int:
        """Return the descriptor to poll for writing."""
        return self._fd

    def raw(self) -> bool:
        """Return whether the agent has put the terminal in a mode where LF does not imply CR."""
        if not self._tty:
            return False
        try:
            return not termios.tcgetattr(self._fd)[1] & termios.OPOST
        except termios.error:  # it has hung up; the write will fail
            return False

    def write(self, data: bytes, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while data:
            left = deadline - time.monotonic()
            if not poll.poll(max(0.0, left) * 1000):
                raise TimeoutError
            try:
                data = data[self.put(data) :]
            except BlockingIOError:
                # The pipe has some room, so poll() reports it ready, but not for the whole line.
                if left <= 0:
                    raise TimeoutError from None
                time.sleep(min(0.01, left))

    def put(self, data: bytes) -> int:
        """Write once; return the number of bytes written.  OSError."""
        if not self._socket:
            return os.write(self._fd, data)
        with socket.socket(fileno=os.dup(self._fd)) as out:
            return out.send(data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
