"""An agent for who writes Python: what is asked for, and :func:`run`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType

from agentres.model.errors import NotEnforceable, UsageError, reason
from agentres.model.limits import SHARE, Limits
from agentres.model.record import TYPE_CHECKING, Record
from agentres.run.launch import Launch

if TYPE_CHECKING:
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.kernel.loop import Loop
    from agentres.policy.settings import Settings
    from agentres.run.explain import Outcome
    from agentres.run.supervision import Supervision


class Behalf(Record):
    """On whose behalf an agent runs that somebody asked the daemon for.

    ``state`` is the directory of its history, ``environment`` that of its handlers.  ``within`` lowers limits to
    what the caller may have, or refuses them.  ``early`` is called while the launch waits, and may raise.  A ``leased`` agent ends
    with the caller, also where its supervisor was killed.
    """

    caller: Caller
    environment: Mapping[str, str]
    state: str
    within: Callable[[Limits, Limits | None], Limits]
    early: Callable[[], None]
    leased: bool


class Request(Record):
    """What to run, and inside what."""

    command: tuple[str, ...]
    # Complete: agentres.model.limits.defaults() filled in.
    limits: Limits
    name: str
    # Control files whose limits may be missing, with a line on stderr: nobody asked for them.
    tolerated: frozenset[str] = frozenset()
    # A disk rate without a device was asked for.
    every_disk_asked: bool = False
    # All limits may be missing.
    best_effort: bool = False
    # Seconds of wall time.
    timeout: float | None = None
    # A name or number, or agentres.run.launch.OWN_USER for one that no other agent has; root's to say.
    user: str | None = None
    # Walls (docs/security.md), root's to make; None: where there is a user.
    isolate: bool | None = None
    # Whether it goes on, inside its limits as they stand, when its supervisor was killed.
    orphan_kept: bool = False
    # Whether SIGHUP is only passed on; else one that goes on after it is ended.
    hangup_passed: bool = False
    # What becomes of its processes outside of its cgroup: kill, move or tell.
    escaped: str = "kill"
    # Whether an agent that root runs as root keeps the capabilities that undo its limits.
    keep_caps: bool = False
    # Whether runtimes are told by the environment how many processors it may use.
    cpu_hint: bool = True
    cwd: str | None = None
    # How many bytes it may add below which directory; empty: the one where it starts.
    disk_space: tuple[str, int] | None = None
    environment: Mapping[str, str] = os.environ
    # Whether somebody gave the name: the history knows the agent by it then, else by its command.
    named: bool = True
    # A name among the settings'; None: their default.
    philosophy: str | None = None
    # As cpu.weight has it.
    priority: int = 100
    # What all agents together may have of the host.
    share: float = SHARE
    # Seconds to wait for room, where what it needs at the least does not fit; None: not at all.
    wait: float | None = None
    # What is watched and who is told, asked for when it is needed; None: the built-in rules, and nobody.
    settings: Callable[[], Settings] | None = None
    # Where a limit was asked for (an option, a file), by its key.
    origins: Mapping[str, str] = MappingProxyType({})
    # An open descriptor, which gets a line of JSON for each thing that happens to it (docs/events.md); -1: none.
    events: int = -1
    # Told of every alert, each in a process of its own (docs/handlers.md).
    on_alert: tuple[Callable[[dict[str, Any]], object], ...] = ()
    # None: the agent is our own user's.
    behalf: Behalf | None = None
    # Gets the agent's cgroup once the command runs.
    started: Callable[[str], None] | None = None
    # Gets then the loop that waits for its end.
    attach: Callable[[Loop, Supervision], None] | None = None


def run(request: Request, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run a command as an agent and return how it ended.

    Blocks until the agent and all that it started are gone and their cgroup is removed.  ``tell``
    gets a line for each limit that does not hold, as soon as the command runs.  Signals in
    :data:`~agentres.run.launch.PASSED_ON` go to the agent meanwhile, so call it from the main thread.  Raises
    :class:`~agentres.model.errors.AgentresError`; nothing is left behind then.
    """
    # Inherited as ignored, it would make the kernel throw the agent's status away.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request.cwd is None:
        check_cwd()
    if request.isolate and os.geteuid() != 0:
        raise NotEnforceable(
            "cannot enforce --isolate: walls are root's to make",
            "docs/security.md tells what holds without",
        )
    with Launch(request, tell) as launch:
        launch.acquire()
        launch.admit()
        launch.enforce()
        launch.start()
        return launch.wait()


def check_cwd() -> None:
    """UsageError where the current directory is none any more."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory: {reason(error)}") from error
