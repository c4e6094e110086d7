"""Processes of a run that live outside of its cgroup, and with that outside of its limits.

They are known by the mark that all of a run have in their environment, and by having been seen inside before.  What has got
rid of the mark before it was seen is not found (docs/security.md).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable

from agentres.kernel import process
from agentres.kernel.trampoline import RUN
from agentres.model.errors import ControlFileError, printable, reason
from agentres.model.stats import Escaped

ENDED = "ended"
"""What has become of one that was killed."""

_SECONDS = 2.0
"""For how long processes are ended that go on to start others."""


class Escapes:
    """Looks for what has left one run's cgroup.

    ``run`` is the run's id; ``inside`` its cgroup as /proc/PID/cgroup names it; ``move`` takes a process into that again, None: it stays where it is.
    Made before the run begins: who is there already is none of it.  A process is asked for its mark in the first two looks at it, as a new
    one may not have its own environment yet.
    """

    def __init__(self, run: str, inside: str, move: Callable[[int], object] | None = None) -> None:
        self.run = run
        self._move = move
        self._mark = f"\0{RUN}={run}\0".encode()
        self._inside = inside
        self._asked = self._before = _live()
        self._seen: dict[int, float] = {}
        self._out: dict[int, Escaped] = {}

    def look(self, pids: Iterable[int], now: float) -> list[Escaped]:
        """Those that live outside now.

        ``pids`` are the agent's; ``now`` is seconds since boot (CLOCK_BOOTTIME).  A process ID that is not the agent's any
        more belongs to the same process if that one had started before we saw it, else the number was given out anew.
        """
        inside, live = set(pids), _live()
        found = {pid: each for pid in self._out if (each := self._outside(pid))}
        for pid in self._seen.keys() - inside:
            if process.lived_at(pid, self._seen.pop(pid)) and (each := self._outside(pid)):
                found[pid] = each
        for pid in live - self._asked - inside:
            if self._is_marked(pid) and (each := self._outside(pid)):
                found[pid] = each
        self._asked, self._before = live & self._before, live
        self._seen.update((pid, self._seen.get(pid, now)) for pid in inside)
        self._out = found
        return [self._brought_back(found[pid]) for pid in sorted(found)]

    def all(self) -> list[Escaped]:
        """Those that have the mark, and live outside now."""
        new = (_live() - self._asked) | self._out.keys()
        found = (self._outside(pid) for pid in sorted(new) if self._is_marked(pid))
        return [each for each in found if each is not None]

    def end(self) -> list[Escaped]:
        """SIGKILL for all that have the mark, also for what they start meanwhile; what became of each."""
        told: dict[int, Escaped] = {}
        end = time.monotonic() + _SECONDS
        while left := [each for each in self.all() if each.pid not in told]:
            for each in left:
                told[each.pid] = each.but(fate=self._kill(each.pid, end))
            if time.monotonic() > end:
                break
        return list(told.values())

    def _brought_back(self, escaped: Escaped) -> Escaped:
        if self._move is None:
            return escaped
        try:
            self._move(escaped.pid)
        except ControlFileError as error:
            return escaped.but(fate=f"not moved back: {os.strerror(error.errno)}")
        return escaped.but(fate="moved back")

    def _kill(self, pid: int, end: float) -> str:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return ENDED
        try:
            # Only now is it certain that who is asked is who is killed.
            if self._is_marked(pid):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    return "not ended: SIGKILL was sent, and it is still there"
        except ProcessLookupError:
            pass
        except OSError as error:
            return f"not ended: {reason(error)}"
        finally:
            os.close(fd)
        return ENDED

    def _is_marked(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                return self._mark in b"\0" + file.readall() + b"\0"
        except OSError:  # it has ended, or is not ours to ask
            return False

    def _outside(self, pid: int) -> Escaped | None:
        try:
            path = process.cgroup(pid)
        except OSError:  # it has ended
            return None
        if not path or process.is_inside(path, self._inside):
            return None
        name = process.name(pid)
        return Escaped(pid, name, path) if name else None  # a zombie has left nothing


def told(escaped: Escaped) -> str:
    """Which it is and where it lives, in words."""
    name, fate = printable(escaped.name), f", {escaped.fate}" if escaped.fate else ""
    return f"{name} (pid {escaped.pid}) in {printable(escaped.cgroup)}{fate}"


def _live() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}
