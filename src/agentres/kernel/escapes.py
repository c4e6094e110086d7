"""Finds processes of a run that have left its cgroup, and so its limits.

It recognizes them by the mark that every process of a run has in its environment, or because it saw them inside before.
It does not find a process that dropped the mark before it was seen (docs/security.md).
"""

from __future__ import annotations

import os
import select
import time

from agentres.kernel import process, signal
from agentres.model.errors import ControlFileError, reason
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import EscapedProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RUN = "AGENTRES_RUN"
"""The variable in the agent's environment with the id of the run that a process belongs to."""

ENDED = "ended"
"""The fate of a process that was killed or ended by itself."""

_SECONDS = 2.0
"""How long to go on killing processes that start new ones."""

_EXEC_SECONDS = 0.02
"""How long a process may have no environment, in the middle of execve(2)."""


class _Outsider(Record):
    """A process that was found, and its start time, as its PID may be reused by now."""

    ticks: int | None
    process: EscapedProcess


class Escapes:
    """Looks for processes that have left one run's cgroup.

    ``run`` is the run's id; ``inside`` its cgroup as /proc/PID/cgroup names it.  ``move`` moves a process back into it; None:
    escaped processes stay where they are.  ``uid`` is the agent's user: other users' processes are not read, moved or killed, as
    the agent itself could not do that either.  None: the agent is root.

    Create it before the run begins: processes that exist by then do not belong to the run.  The mark is looked for in a process's
    first two looks, as a new process may not have its own environment yet.
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
        self._out: dict[int, _Outsider] = {}

    def look(self, pids: Iterable[int] = ()) -> list[EscapedProcess]:
        """Return the processes that are outside now, after moving them back if ``move`` was given.

        ``pids`` are those inside; none once all inside have ended.  A PID that was inside before and no longer is still means
        the same process if the process started before we saw it there; else the number was reused.
        """
        return [self._brought_back(each) for each in self._find(set(pids))]

    def last(self) -> list[EscapedProcess]:
        """Those that live outside at the end of the run, left where they are."""
        return [each.process for each in self._left({})]

    def end(self) -> list[EscapedProcess]:
        """SIGKILL all of them that have the mark, and what they start meanwhile.  Return the fate of each."""
        fates: dict[int, EscapedProcess] = {}
        end = time.monotonic() + _SECONDS
        while left := self._left(fates):
            sent: dict[int, int] = {}
            for each in left:
                fates[each.process.pid] = each.process.but(fate=self._kill(each, sent))
            for pid in _still_there(sent, end):
                fates[pid] = fates[pid].but(
                    fate="not ended: SIGKILL was sent, and it is still there"
                )
            if time.monotonic() > end:
                break
        return list(fates.values())

    def _left(self, fates: dict[int, EscapedProcess]) -> list[_Outsider]:
        left = [each for each in self._find(set()) if each.process.pid not in fates]
        if not left and self._is_unready:
            time.sleep(_EXEC_SECONDS)  # there is no event for this
            left = [each for each in self._find(set()) if each.process.pid not in fates]
        return left

    def _find(self, inside: set[int]) -> list[_Outsider]:
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

    def _brought_back(self, known: _Outsider) -> EscapedProcess:
        escaped = known.process
        if self._move is None:
            return escaped
        is_its_own = self._is_its_own(escaped.pid)
        # After this check the PID could still be reused; only the short time makes that unlikely.
        if process.start_ticks(escaped.pid) != known.ticks:
            return escaped.but(fate=ENDED)
        if not is_its_own:
            return escaped.but(fate="not moved back: another user's")
        try:
            self._move(escaped.pid)
        except ControlFileError as error:
            return escaped.but(fate=f"not moved back: {os.strerror(error.errno)}")
        return escaped.but(fate="moved back")

    def _kill(self, known: _Outsider, sent: dict[int, int]) -> str:
        """Send SIGKILL and return the fate; put the pidfd into ``sent`` under the PID."""
        pid = known.process.pid
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return ENDED
        except OSError as error:
            return f"not ended: {reason(error)}"
        try:
            # Only with the pidfd open is the process that we check also the one that we kill.
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
        """Whether the process belongs to the agent's user; one that runs a setuid program belongs to root."""
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
                os.readlink(f"/proc/{pid}/exe")  # fails for kernel threads, which have neither
                self._is_unready = self._is_unready or process.is_in_execve(pid)
            return self._mark in b"\0" + environment + b"\0"
        except OSError:  # it has ended, or we may not read it
            return False

    def _outside(self, pid: int) -> _Outsider | None:
        ticks = process.start_ticks(pid)
        try:
            path = process.cgroup(pid)
        except OSError:  # it has ended
            return None
        if not path or process.is_inside(path, self._inside):
            return None
        name = process.name(pid)
        return (
            _Outsider(ticks, EscapedProcess(pid, name, path)) if name else None
        )  # a zombie has left nothing


def _still_there(sent: dict[int, int], end: float) -> list[int]:
    """Wait until ``end`` for the killed processes; return the PIDs still alive.  Closes all pidfds."""
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
