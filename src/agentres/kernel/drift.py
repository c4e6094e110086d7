"""Notices when somebody else undoes what we set: a limit rewritten, a process moved out.

Writes to the limits' control files are told by inotify(7); what it cannot see (a write through another
cgroup namespace's mount, a process that is moved) is found by looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentres.kernel import process
from agentres.kernel.cgroup import Cgroup, holds
from agentres.kernel.inotify import MODIFY, Inotify
from agentres.model.errors import AgentresError, reason
from agentres.model.limits import NETWORK, Setting
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import StatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentres.kernel.network import Network


class Drift:
    """Compares one agent's cgroup with what was set there, and tells when to.

    ``inside`` is the agent's cgroup as /proc/PID/cgroup names it.  ``fd`` becomes readable when a limit's
    file was written; -1 where the kernel gives no inotify instance, and only looking finds it.  ``network``
    is the agent's, None where nothing holds that.
    """

    def __init__(
        self,
        agent: Cgroup,
        enforced: Sequence[Setting],
        inside: str,
        network: Network | None = None,
    ) -> None:
        self._agent = agent
        self._network = network
        enforced = [setting for setting in enforced if setting.file != NETWORK]
        self._enforced = {(setting.file, setting.key): setting for setting in enforced}
        self._inside = inside
        self._known: dict[int, float] = {}
        self._out: set[int] = set()
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        for file in {setting.file for setting in enforced}:
            self._inotify.add(f"{agent.path}/{file}", MODIFY)

    def close(self) -> None:
        self._inotify.close()

    def expect(self, setting: Setting) -> None:
        """Take note of a limit that we have moved ourselves, before the notification of that is taken."""
        if not any(file == setting.file for file, _ in self._enforced):
            self._inotify.add(f"{self._agent.path}/{setting.file}", MODIFY)
        self._enforced[setting.file, setting.key] = setting

    @property
    def enforced(self) -> list[Setting]:
        """What was set."""
        return list(self._enforced.values())

    def written(self) -> None:
        """Take the notifications that wait."""
        self._inotify.take()

    def rewritten(self) -> list[str]:
        """The limits that do not hold any more, a line each."""
        return list(self._rewritten())

    def _rewritten(self) -> Iterator[str]:
        for setting in self._enforced.values():
            try:
                found = self._agent.get_property(setting.file)
                if not holds(setting, found):
                    yield f"{setting.file} is {found.strip()!r}, was set to {setting.text!r}"
            except (AgentresError, StatError) as error:
                yield f"{setting.file}: {error}"
        if self._network is not None:
            try:
                yield from self._network.undone()
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
