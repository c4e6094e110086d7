"""Restores the terminal after an agent has used it, and draws our status line.

The agent stays in our process group, so that a pipeline (``agentres run -- agent | less``) and the
shell's job control see one job, as with env(1).  An agent with job control of its own (a shell) takes
the foreground for itself; if it is killed it can neither give that back nor undo its terminal modes.
"""

from __future__ import annotations

import os
import select

from agentres.kernel import signal
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


_COLUMNS = 80
"""The width of a terminal that does not report one."""


class Terminal:
    """The modes of the terminal on stdin at the start, if we were in its foreground."""

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        try:
            if os.tcgetpgrp(0) != os.getpgrp():
                return
        except OSError:  # stdin is no terminal, or not ours
            return
        import termios  # here: most agents have no terminal

        self._modes = termios.tcgetattr(0)

    def restore(self, modes: bool) -> None:
        """Take the foreground back from an agent that is gone; ``modes``: restore echo and the like too.

        Do nothing if another process group has the terminal by now: we may have been put into the
        background.
        """
        if self._modes is None or not _ours():
            return
        import termios

        # A background process that does this is stopped by SIGTTOU unless it is blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(0, os.getpgrp())
            if modes:
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
        except (OSError, termios.error):  # hung up meanwhile: nothing to give back
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class StatusLine:
    """A line of ours on the terminal at stderr; whatever is written next overwrites it.

    The cursor stays at its beginning.  Nothing is drawn where that would stop or block us: in the
    background, or on a terminal whose output is stopped (Ctrl-S).
    """

    def __init__(self) -> None:
        self._shown = False

    @staticmethod
    def possible() -> bool:
        """Whether stderr is a terminal that can clear a line."""
        return os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb"

    def draw(self, text: str) -> None:
        """Show the text, as much of it as fits."""
        try:
            width = os.get_terminal_size(2).columns or _COLUMNS
            self._shown = self._write(f"\r{text[: max(0, width - 1)]}\x1b[K\r") or self._shown
        except OSError:  # hung up
            return

    def clear(self) -> None:
        """Remove the line, before other output."""
        if self._shown:
            try:
                self._shown = not self._write("\r\x1b[K")
            except OSError:  # hung up
                self._shown = False

    @staticmethod
    def _write(text: str) -> bool:
        if os.tcgetpgrp(2) != os.getpgrp():
            return False
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if not poll.poll(0):
            return False
        # We may have been put into the background since; with stty tostop that would stop us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.write(2, text.encode(errors="replace"))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return True


def _ours() -> bool:
    """Whether the foreground process group is ours, or has no live process."""
    try:
        foreground = os.tcgetpgrp(0)
        if foreground != os.getpgrp():
            os.killpg(foreground, 0)
            return False
    except ProcessLookupError:
        return True
    except OSError:  # hung up, or another user's
        return False
    return True
