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
from agentres.model.errors import ControlFileError, reason
from agentres.model.record import Record
from agentres.model.stats import Escaped

RUN = "AGENTRES_RUN"
"""The variable of the agent's environment that says to which run a process belongs, by the run's id."""

ENDED = "ended"
"""What has become of one that was killed, or has gone by itself."""

_SECONDS = 2.0
"""For how long processes are ended that go on to start others."""

_EXEC_SECONDS = 0.02
"""How long one may have no environment, in the midst of execve(2)."""


class _Known(Record):
    """One that was found, and when it had started: its number may be another's by now."""

    ticks: int | None
    told: Escaped


class Escapes:
    """Looks for what has left one run's cgroup.

    ``run`` is the run's id; ``inside`` its cgroup as /proc/PID/cgroup names it; ``move`` takes a process into that again, None: it stays where it is.
    ``uid`` is the agent's user: nobody else's process is asked, moved or killed, as the agent itself could not do that either; None: it is root.
    Made before the run begins: who is there already is none of it.  A process is asked for its mark in the first two looks at it, as a new
    one may not have its own environment yet.
    """

    def __init__(
        self,
        run: str,
        inside: str,
        move: Callable[[int], object] | None = None,
        uid: int | None = None,
    ) -> None:
        self.run = run
        self._move = move
        self._uid = uid
        self._mark = f"\0{RUN}={run}\0".encode()
        self._inside = inside
        self._asked = self._before = _live()
        self._is_unready = False
        self._seen: dict[int, float] = {}
        self._out: dict[int, _Known] = {}

    def look(self, pids: Iterable[int] = ()) -> list[Escaped]:
        """Those that live outside now, moved back where that is to be; ``pids`` are the agent's, none when all inside has ended.

        A process ID that is not the agent's any more belongs to the same process if that one had started before we saw
        it, else the number was given out anew.
        """
        return [self._brought_back(each) for each in self._find(set(pids))]

    def last(self) -> list[Escaped]:
        """Those that live outside at the end of the run, left where they are."""
        return [each.told for each in self._left({})]

    def end(self) -> list[Escaped]:
        """SIGKILL for all of them that have the mark, also for what they start meanwhile; what became of each."""
        told: dict[int, Escaped] = {}
        end = time.monotonic() + _SECONDS
        while left := self._left(told):
            sent: dict[int, int] = {}
            for each in left:
                told[each.told.pid] = each.told.but(fate=self._kill(each, sent))
            for pid in _still_there(sent, end):
                told[pid] = told[pid].but(fate="not ended: SIGKILL was sent, and it is still there")
            if time.monotonic() > end:
                break
        return list(told.values())

    def _left(self, told: dict[int, Escaped]) -> list[_Known]:
        left = [each for each in self._find(set()) if each.told.pid not in told]
        if not left and self._is_unready:
            time.sleep(_EXEC_SECONDS)  # there is no event for this
            left = [each for each in self._find(set()) if each.told.pid not in told]
        return left

    def _find(self, inside: set[int]) -> list[_Known]:
        live, now = _live(), time.clock_gettime(time.CLOCK_BOOTTIME)
        found = {
            pid: each
            for pid, known in self._out.items()
            if process.start_ticks(pid) == known.ticks and (each := self._outside(pid))
        }
        for pid in self._seen.keys() - inside:
            if process.lived_at(pid, self._seen.pop(pid)) and (each := self._outside(pid)):
                found[pid] = each
        self._is_unready = False
        for pid in live - self._asked - inside - found.keys():
            if self._is_marked(pid) and (each := self._outside(pid)):
                found[pid] = each
        self._asked, self._before = live & self._before, live
        self._seen.update((pid, self._seen.get(pid, now)) for pid in inside)
        self._out = found
        return [found[pid] for pid in sorted(found)]

    def _brought_back(self, known: _Known) -> Escaped:
        escaped = known.told
        if self._move is None:
            return escaped
        is_its_own = self._is_its_own(escaped.pid)
        # Nothing keeps the number from being another's after this but the time that it takes.
        if process.start_ticks(escaped.pid) != known.ticks:
            return escaped.but(fate=ENDED)
        if not is_its_own:
            return escaped.but(fate="not moved back: another user's")
        try:
            self._move(escaped.pid)
        except ControlFileError as error:
            return escaped.but(fate=f"not moved back: {os.strerror(error.errno)}")
        return escaped.but(fate="moved back")

    def _kill(self, known: _Known, sent: dict[int, int]) -> str:
        """Send SIGKILL; ``sent`` gets its pidfd by its number."""
        pid = known.told.pid
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return ENDED
        except OSError as error:
            return f"not ended: {reason(error)}"
        try:
            # Only now is it certain that who is asked is who is killed.
            if process.start_ticks(pid) != known.ticks:
                return ENDED
            if not self._is_marked(pid):
                return "not ended: it has not the mark"
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            sent[pid], fd = fd, -1
        except ProcessLookupError:
            pass
        except OSError as error:
            return f"not ended: {reason(error)}"
        finally:
            if fd >= 0:
                os.close(fd)
        return ENDED

    def _is_its_own(self, pid: int) -> bool:
        """Whether it is the agent's user's; one that runs a setuid program is root's."""
        if self._uid is None:
            return True
        try:
            return os.stat(f"/proc/{pid}").st_uid == self._uid
        except OSError:  # it has ended
            return False

    def _is_marked(self, pid: int) -> bool:
        if not self._is_its_own(pid):
            return False
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                environment = file.readall()
            if not environment:
                os.readlink(f"/proc/{pid}/exe")  # the kernel's own threads have neither
                self._is_unready = True
            return self._mark in b"\0" + environment + b"\0"
        except OSError:  # it has ended, or is not ours to ask
            return False

    def _outside(self, pid: int) -> _Known | None:
        ticks = process.start_ticks(pid)
        try:
            path = process.cgroup(pid)
        except OSError:  # it has ended
            return None
        if not path or process.is_inside(path, self._inside):
            return None
        name = process.name(pid)
        return (
            _Known(ticks, Escaped(pid, name, path)) if name else None
        )  # a zombie has left nothing


def _still_there(sent: dict[int, int], end: float) -> list[int]:
    """Wait for those that were killed, until then; who is left.  Closes their pidfds."""
    waiting = {fd: pid for pid, fd in sent.items()}
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting:
        ready = poll.poll(max(0.0, end - time.monotonic()) * 1000)
        if not ready:
            break
        for fd, _ in ready:
            poll.unregister(fd)
            os.close(fd)
            del waiting[fd]
    for fd in waiting:
        os.close(fd)
    return list(waiting.values())


def _live() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}
