"""The agent that is to be watched, as its launch hands it over."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from agentres.kernel.actuator import Actuator
from agentres.model.record import TYPE_CHECKING, Record
from agentres.policy.elastic import Terms
from agentres.watch.recorder import new_run

if TYPE_CHECKING:
    from agentres.kernel.caller import Caller
    from agentres.kernel.escapes import Escapes
    from agentres.model.limits import Limits
    from agentres.store import Run


class Watched(Record):
    """The agent to watch."""

    name: str
    command: tuple[str, ...]
    # Writes its limits; its cgroup, and what counts its packets.
    actuator: Actuator
    # time.monotonic() at the launch.
    started: float
    # Looks for what has left its cgroup; has the run's id.
    escapes: Escapes
    # The cgroup that holds all agents' homes.
    parent: str
    # Takes in a process of ours (agentres.kernel.delegation.Home.adopt).
    adopt: Callable[[int], None]
    # How the limits move.
    terms: Terms
    # Where it began, and as whom.
    directory: str = "/"
    uid: int = 0
    # The name where it was given, None where it was made up.
    named: str | None = None
    # Where a limit was asked for, by its key.
    origins: Mapping[str, str] = MappingProxyType({})
    # Gets lines for people.
    warn: Callable[[str], None] = lambda line: None
    # Where events go for programs, a descriptor; -1: nowhere.  What of them is not known here: the main process and the time limit.
    events: int = -1
    pid: int = 0
    timeout: float | None = None
    # Whose agent it is, where it is not our own user's: history and handlers are that user's then.
    caller: Caller | None = None
    # The handlers'.
    environment: Mapping[str, str] = os.environ
    # The history's directory; empty: our own.
    state: str = ""
    # Lowers or refuses limits that are more than its owner may set.
    within: Callable[[Limits, Limits | None], Limits] | None = None

    def as_run(self) -> Run:
        """Its run, as the history keeps it."""
        started = time.time() - (time.monotonic() - self.started)
        path = self.actuator.cgroup.path
        run = new_run(self.name, "agent", self.command, path, started, self.escapes.run)
        return run if self.caller is None else run.but(uid=self.caller.uid)
