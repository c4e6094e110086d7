"""What a launch hands over to the monitor."""

from __future__ import annotations

import os
import time
from types import MappingProxyType

from agentres.kernel.actuator import Actuator
from agentres.model.record import TYPE_CHECKING, Record
from agentres.policy.elastic import Terms
from agentres.watch.recorder import new_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentres.kernel.caller import Caller
    from agentres.kernel.escapes import Escapes
    from agentres.model.limits import Limits
    from agentres.store import Run


class Handover(Record):
    """An agent that is to be watched, and what that takes."""

    name: str
    command: tuple[str, ...]
    # Writes its limits; has its cgroup and its packet counters.
    actuator: Actuator
    # time.monotonic() at the launch.
    started: float
    # Looks for processes that have left its cgroup; has the run's id.
    escapes: Escapes
    # The cgroup that holds all agents' homes.
    parent: str
    # Moves a process of ours into its home cgroup (agentres.kernel.delegation.Home.adopt).
    adopt: Callable[[int], None]
    # How the limits move.
    terms: Terms
    # The directory of the history, and of the lock of who watches the host.
    state: str
    # The directory and the uid that it started with.
    directory: str = "/"
    uid: int = 0
    # The name that a user gave it; None: it was made up.
    named: str | None = None
    # Where each limit was asked for, by its key.
    origins: Mapping[str, str] = MappingProxyType({})
    # Gets lines for people.
    warn: Callable[[str], None] = lambda line: None
    # The descriptor that events for programs go to; -1: none.  For them also the main process's PID and the time limit.
    events: int = -1
    pid: int = 0
    timeout: float | None = None
    # The agent's owner, to whom history and handlers belong; None: our own user.
    caller: Caller | None = None
    # The environment of the handlers.
    environment: Mapping[str, str] = os.environ
    # Lowers or refuses limits above what its owner may set.
    within: Callable[[Limits, Limits | None], Limits] | None = None

    def as_run(self) -> Run:
        """Return its run as the history keeps it."""
        started = time.time() - (time.monotonic() - self.started)
        path = self.actuator.cgroup.path
        run = new_run(self.name, "agent", self.command, path, started, self.escapes.run)
        return run if self.caller is None else run.but(uid=self.caller.uid)
