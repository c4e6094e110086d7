"""The Python interface to run an agent: :class:`Request` and :func:`run`."""

from __future__ import annotations

import os
from types import MappingProxyType

from agentres.kernel import signal
from agentres.model.errors import NotEnforceable, UsageError, reason
from agentres.model.limits import SHARE, Limits
from agentres.model.record import TYPE_CHECKING, Record
from agentres.run.launch import Launch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.kernel.loop import Loop
    from agentres.policy.settings import Settings
    from agentres.run.explain import Outcome
    from agentres.run.supervision import Supervision


class Behalf(Record):
    """The caller on whose behalf the daemon runs an agent."""

    caller: Caller
    # The environment of its handlers.
    environment: Mapping[str, str]
    # The directory of its history.
    state: str
    # Lowers limits to what the caller may have, or refuses them.
    within: Callable[[Limits, Limits | None], Limits]
    # Called while the launch waits; may raise AgentresError.
    early: Callable[[], None]
    # Whether the agent ends with the caller, even if its supervisor was killed.
    leased: bool


class Request(Record):
    """The command to run, its limits, and how to treat it."""

    command: tuple[str, ...]
    # Complete: with agentres.model.limits.defaults() filled in.
    limits: Limits
    name: str
    # Control files whose limits may be missing, with a line on stderr: they are defaults that nobody asked for.
    tolerated: frozenset[str] = frozenset()
    # Whether a disk rate without a device was asked for.
    every_disk_asked: bool = False
    # Whether all limits may be missing.
    best_effort: bool = False
    # Seconds of wall time.
    timeout: float | None = None
    # A name or number, or agentres.run.identity.OWN_USER for a user that no other agent has; root only.
    user: str | None = None
    # Whether to wall it off (docs/security.md), root only; None: if user or behalf is given.
    isolate: bool | None = None
    # Whether it goes on, inside its limits as they stand, if its supervisor is killed.
    orphan_kept: bool = False
    # Whether SIGHUP is only passed on; else an agent that goes on after it is ended.
    hangup_passed: bool = False
    # What to do with its processes outside of its cgroup: kill, move or tell.
    escaped: str = "kill"
    # Whether an agent that root runs as root keeps the capabilities that undo its limits.
    keep_caps: bool = False
    # Whether environment variables tell language runtimes how many processors it may use.
    cpu_hint: bool = True
    cwd: str | None = None
    # A directory (empty: the one where it starts), and how many bytes it may add below that.
    disk_space: tuple[str, int] | None = None
    environment: Mapping[str, str] = os.environ
    # Whether the name was given by a user: the history then knows the agent by it, else by its command.
    named: bool = True
    # The name of one of the settings' philosophies; None: their default.
    philosophy: str | None = None
    # A weight, like cpu.weight.
    priority: int = 100
    # The part of the host that all agents together may have.
    share: float = SHARE
    # Seconds to wait for room if its least memory does not fit; None: not at all.
    wait: float | None = None
    # Returns the rules and handlers, called when they are needed; None: the built-in rules, no handlers.
    settings: Callable[[], Settings] | None = None
    # Where each limit was asked for (an option, a file), by its key.
    origins: Mapping[str, str] = MappingProxyType({})
    # An open descriptor that gets a line of JSON for each event of the agent (docs/events.md); -1: none.
    events: int = -1
    # Called with every alert, each in a process of its own (docs/handlers.md).
    on_alert: tuple[Callable[[dict[str, Any]], object], ...] = ()
    # The caller of the daemon; None: the agent is our own user's.
    behalf: Behalf | None = None
    # Called with the agent's cgroup once the command runs.
    started: Callable[[str], None] | None = None
    # Called after that with the loop that waits for its end.
    attach: Callable[[Loop, Supervision], None] | None = None


def run(request: Request, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run a command as an agent and return how it ended.

    Blocks until the agent and all that it started are gone and their cgroup is removed.  ``tell``
    gets a line for each limit that does not hold, as soon as the command runs.  Meanwhile signals in
    :data:`~agentres.run.launch.PASSED_ON` go to the agent, so call it from the main thread.  Raises
    :class:`~agentres.model.errors.AgentresError`, and then leaves nothing behind.
    """
    # If SIGCHLD was inherited as ignored, the kernel would discard the agent's exit status.
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
    """Raise UsageError if the current directory no longer exists."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory: {reason(error)}") from error
