"""Looks at an agent when the kernel notifies: events in control files, and tasks that stall (PSI)."""

from __future__ import annotations

import time

from agentres.kernel.cgroup import Cgroup
from agentres.kernel.loop import Loop
from agentres.model.native import partial
from agentres.model.record import TYPE_CHECKING
from agentres.run.notifications import Notifications
from agentres.run.subject import AgentSubject
from agentres.watch.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

_BURST_LASTS = 1.0
"""Seconds after a move of the memory limit in which every notification is heard at once."""

_STALLED: dict[Literal["cpu", "memory", "io"], tuple[str, ...]] = {
    "cpu": ("cpu", "pressure"),
    "memory": ("memory", "pressure"),
    "io": ("disk", "pressure"),
}
"""The groups to look at when tasks stall on a resource (PSI): at a limit, before the next sample."""

_LONG_AGO = float("-inf")


class Hearing:
    """Hears the kernel's notifications from :meth:`begin` to :meth:`close`.

    ``on_move`` is called when a process may have left the agent's cgroup.
    """

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        agent: AgentSubject,
        on_move: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._agent = agent
        self._meter = agent.meter
        self._on_move = on_move
        self._notifications = Notifications(loop)
        self._moved_at = _LONG_AGO

    def begin(self, cgroup: Cgroup) -> None:
        """Hear notifications about the agent in this cgroup from now on."""
        heard = self._notifications
        heard.hear(self._meter.fd("memory.events"), self._memory)
        heard.hear(self._meter.fd("pids.events"), self._pids)
        heard.hear(self._meter.fd("cgroup.events"), self._cgroup)
        for resource, groups in _STALLED.items():
            heard.hear_pressure(cgroup.fd, resource, partial(self.look, *groups))

    def close(self) -> None:
        """Stop hearing."""
        self._notifications.close()

    def look(self, *groups: str) -> None:
        """Look at these groups now, as something has just happened."""
        self._engine.look(self._agent, *groups, notified=True)

    def _memory(self) -> None:
        limit = self._meter.reading.memory_limit
        self.look(
            "events", "memory"
        )  # in this order: the meter still has memory.stat from before the event
        now = time.monotonic()
        if self._meter.reading.memory_limit != limit:
            self._moved_at = now
        if now - self._moved_at > _BURST_LASTS:  # else the next may be another step of a burst
            self._notifications.pause(self._meter.fd("memory.events"))

    def _pids(self) -> None:
        self._notifications.pause(self._meter.fd("pids.events"))
        self.look("pids", "events")

    def _cgroup(self) -> None:
        """Look: the agent was frozen or thawed, or its last process has ended or was moved out."""
        self._notifications.pause(self._meter.fd("cgroup.events"))
        if self._agent.is_pausing():  # each pause notifies twice, and nothing else has happened
            self._engine.look(self._agent, "events")
            return
        self._engine.look(self._agent, "events", "fds")
        self._on_move()
