"""Notices when somebody else undoes what we set.

inotify(7) reports writes to the limits' control files.  A write that it cannot see (through another
cgroup namespace's mount) is found by reading the files.
"""

from __future__ import annotations

from agentres.kernel.cgroup import holds
from agentres.kernel.inotify import MODIFY, Inotify
from agentres.model.errors import AgentresError, reason
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentres.kernel.actuator import Actuator


class Drift:
    """Compares one agent's cgroup with what was set there, and signals when to compare.

    ``actuator`` knows what was set.  ``fd`` becomes readable when a limit's file is written; -1 where the kernel gives no
    inotify instance: then only reading the files finds a change.
    """

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self._files: set[str] = set()
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._watch_files()

    def close(self) -> None:
        self._inotify.close()

    def hear(self) -> None:
        """Consume the pending notifications."""
        self._inotify.take()

    def rewritten(self) -> list[str]:
        """Return the limits that do not hold any more, a line each."""
        self._watch_files()
        return list(self._rewritten())

    def _watch_files(self) -> None:
        """Watch each file that we have written."""
        for line in self._actuator.lines:
            if line.file not in self._files:
                self._files.add(line.file)
                self._inotify.add(f"{self._actuator.cgroup.path}/{line.file}", MODIFY)

    def _rewritten(self) -> Iterator[str]:
        for line in self._actuator.lines:
            try:
                found = self._actuator.cgroup.get_property(line.file)
                if not holds(line, found):
                    yield f"{line.file} is {found.strip()!r}, was set to {line.text!r}"
            except (AgentresError, ValueError) as error:
                yield f"{line.file}: {error}"
        if self._actuator.bound:
            from agentres.kernel.cpus import beyond

            try:
                if found := beyond(self._actuator.cgroup.path, self._actuator.bound):
                    yield found
            except OSError as error:  # the agent has closed its cgroups to us
                yield f"affinity: {reason(error)}"
        if self._actuator.network is not None:
            try:
                yield from self._actuator.network.undone()
            except OSError as error:
                yield f"network: {reason(error)}"
