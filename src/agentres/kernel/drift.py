"""Notices when somebody else undoes what we set: a limit rewritten, a process moved out.

Writes to the limits' control files are told by inotify(7); what it cannot see (a write through another
cgroup namespace's mount, a process that is moved) is found by looking.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentres.kernel import process
from agentres.kernel.cgroup import holds
from agentres.kernel.inotify import MODIFY, Inotify
from agentres.model.errors import AgentresError, reason
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import StatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentres.kernel.actuator import Actuator


class Drift:
    """Compares one agent's cgroup with what was set there, and tells when to.

    ``actuator`` says what was set; ``inside`` is the agent's cgroup as /proc/PID/cgroup names it.  ``fd`` becomes
    readable when a limit's file was written; -1 where the kernel gives no inotify instance, and only looking finds it.
    """

    def __init__(self, actuator: Actuator, inside: str) -> None:
        self._actuator = actuator
        self._inside = inside
        self._files: set[str] = set()
        self._known: dict[int, float] = {}
        self._out: set[int] = set()
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._watch_files()

    def close(self) -> None:
        self._inotify.close()

    def hear(self) -> None:
        """Take the notifications that wait."""
        self._inotify.take()

    def rewritten(self) -> list[str]:
        """The limits that do not hold any more, a line each."""
        self._watch_files()
        return list(self._rewritten())

    def _watch_files(self) -> None:
        """Be told of each file that we have written."""
        for setting in self._actuator.written:
            if setting.file not in self._files:
                self._files.add(setting.file)
                self._inotify.add(f"{self._actuator.cgroup.path}/{setting.file}", MODIFY)

    def _rewritten(self) -> Iterator[str]:
        for setting in self._actuator.written:
            try:
                found = self._actuator.cgroup.get_property(setting.file)
                if not holds(setting, found):
                    yield f"{setting.file} is {found.strip()!r}, was set to {setting.text!r}"
            except (AgentresError, StatError) as error:
                yield f"{setting.file}: {error}"
        if self._actuator.network is not None:
            try:
                yield from self._actuator.network.undone()
            except OSError as error:
                yield f"network: {reason(error)}"

    def moved(self, pids: Iterable[int], now: float) -> list[str]:
        """The processes that were ours and live on elsewhere, a line each.

        ``pids`` are the agent's; ``now`` is seconds since boot (CLOCK_BOOTTIME).  A process ID that is not ours any more belongs to the same process if that one had started
        before we saw it, else the number was given out anew.
        """
        present = set(pids)
        for pid in self._known.keys() - present:
            seen = self._known.pop(pid)
            if process.lived_at(pid, seen) and _outside(pid, self._inside):
                self._out.add(pid)
                self._known[pid] = seen
        self._out &= self._known.keys() - present
        self._known.update((pid, self._known.get(pid, now)) for pid in present)
        return [
            f"process {pid} was moved out to {_cgroup(pid) or 'another cgroup'}"
            for pid in sorted(self._out)
        ]


def _cgroup(pid: int) -> str:
    try:
        return process.cgroup(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _outside(pid: int, inside: str) -> bool:
    path = _cgroup(pid)
    return path != "" and path != inside and not path.startswith(f"{inside}/")
