"""One agent's life: where it lives, its limits, its launch, its end.

A launch waits twice, for systemd's scope and for the command's exec; what is needed only after such a
wait is imported during it.  On a slow machine that is a tenth of the whole launch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from agentres.kernel import bell, delegation, host, registry
from agentres.model import log
from agentres.model.errors import (
    ControlFileError,
    Interrupted,
    NotEnforceable,
    UsageError,
    exit_status,
    reason,
)
from agentres.model.limits import SHARE, Limits, Standing
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import MAX
from agentres.run.admission import Applicant, enter
from agentres.run.enforcement import Loaded, enforce

if TYPE_CHECKING:
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.kernel.cgroup import Cgroup
    from agentres.kernel.deadman import Deadman
    from agentres.kernel.delegation import Home
    from agentres.kernel.loop import Loop
    from agentres.kernel.trampoline import Identity, Launch, Plan
    from agentres.kernel.walls import OwnUser
    from agentres.model.units import Max
    from agentres.policy.settings import Settings
    from agentres.run.enforcement import Enforced
    from agentres.run.explain import Outcome
    from agentres.run.monitor import Monitor
    from agentres.run.supervision import Ended, Supervision

PASSED_ON = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
"""Signals to the supervisor that are meant for the agent."""

_HARMLESS = {signal.SIGWINCH, signal.SIGCONT, signal.SIGCHLD}
"""Signals that end nothing when they come before the launch."""

ENDING = frozenset(PASSED_ON) - _HARMLESS
"""Those that do."""


class Behalf(Record):
    """On whose behalf an agent runs that somebody asked the daemon for.

    ``state`` is the directory of its history, ``environment`` that of its handlers.  ``within`` lowers limits to
    what the caller may have, or refuses them.  ``early`` is called while the launch waits, and may raise.
    """

    caller: Caller
    environment: Mapping[str, str]
    state: str
    within: Callable[[Limits, Limits | None], Limits]
    early: Callable[[], None]


class Request(Record):
    """What to run, and inside what.

    ``limits`` are complete (:func:`agentres.model.limits.defaults` filled in).  ``tolerated`` are the
    control files whose limits may be missing, with a line on stderr: nobody asked for them.  With
    ``best_effort`` all may.  ``every_disk_asked``: a disk rate without a device was asked for.  ``timeout`` in seconds; ``user`` is a name or number, or :data:`OWN_USER` for one that no
    other agent has, for root only; so is ``isolate`` (docs/security.md), which None leaves to whether there is a user.
    ``named`` tells whether somebody gave the name, by which the history then knows the agent; else it knows it by
    its command.  ``philosophy`` is a name among the settings', None for their default; ``priority`` a weight (100 is normal).
    ``share`` of the host is what all agents together may have; where what this one needs at the least does not
    fit it waits ``wait`` seconds for room, None: not at all.
    ``settings`` gives what is watched and who is told, when it is needed; None is the built-in rules and
    nobody.  ``behalf`` is None where the agent is our own user's.  ``started`` gets the agent's cgroup once the command runs,
    ``attach`` then the loop that waits for its end.  ``origins`` tell where a limit was asked for (an option, a file), by its key.  The functions in ``on_alert`` are told of every alert, each in a process of its own
    (docs/handlers.md).
    """

    command: tuple[str, ...]
    limits: Limits
    name: str
    tolerated: frozenset[str] = frozenset()
    every_disk_asked: bool = False
    best_effort: bool = False
    timeout: float | None = None
    user: str | None = None
    isolate: bool | None = None
    cwd: str | None = None
    environment: Mapping[str, str] = os.environ
    named: bool = True
    philosophy: str | None = None
    priority: int = 100
    share: float = SHARE
    wait: float | None = None
    settings: Callable[[], Settings] | None = None
    origins: Mapping[str, str] = MappingProxyType({})
    on_alert: tuple[Callable[[dict[str, Any]], object], ...] = ()
    behalf: Behalf | None = None
    started: Callable[[str], None] | None = None
    attach: Callable[[Loop, Supervision], None] | None = None


def run(request: Request, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run a command as an agent and return how it ended.

    Blocks until the agent and all that it started are gone and their cgroup is removed.  ``tell``
    gets a line for each limit that does not hold, as soon as the command runs.  Signals in
    :data:`PASSED_ON` go to the agent meanwhile, so call it from the main thread.  Raises
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
    behalf = request.behalf
    walled = request.isolate
    if walled is None:
        walled = request.user is not None or behalf is not None
    identity: Identity | None
    if behalf is not None and request.user is None:
        identity, own = _theirs(behalf.caller), None
    else:
        identity, own = _identity(OWN_USER if walled and request.user is None else request.user)
    _check_nofile(request.limits)
    isolated, resolver = _isolation(request.limits)
    # A signal that was ignored when we started (nohup, a background job) stays ignored.
    heard: set[int] = {s for s in PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN}
    if os.getpid() == 1:
        heard.add(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        place = delegation.find(request.best_effort, ours=behalf is None)
        standing = Standing.of(request.priority, _least(request.limits))
        loaded = Loaded(request.limits)

        def meanwhile() -> None:
            loaded.load()
            _import_the_launch()

        home = place.acquire(_home_name(request), standing, meanwhile, walled)
        enforced: Enforced | None = None
        try:
            registry.mark(
                home.agent.fd,
                request.name,
                time.time(),
                os.getpid(),
                None if behalf is None else behalf.caller.uid,
            )
            early = partial(_check_early, heard, behalf)
            where = os.path.dirname(home.cgroup.path)
            who = Applicant(
                home.agent, where, request.limits, request.priority, request.share, request.wait
            )
            request = request.but(limits=enter(who, early, tell))
            enforced = enforce(request, home, identity, loaded)
            early()
            from agentres.kernel.trampoline import Plan

            plan = Plan(
                request.command,
                request.limits.nofile,
                identity,
                request.cwd,
                request.environment,
                mask,
                request.limits.net != "host",
                resolver or "",
                place.hierarchy.mount if walled else "",
                -1 if home.view is None else home.view,
                None if behalf is None else behalf.caller,
            )
            log_name = home.agent.path.removeprefix(place.hierarchy.mount)

            def announce() -> None:
                from agentres.run.explain import not_enforced

                for line in (*not_enforced(enforced.missing), *_gaps(identity, walled)):
                    tell(line)
                if isolated and resolver is None:
                    tell(
                        "no names are resolved in there: the host's name servers are on its loopback"
                    )
                if request.started is not None:
                    request.started(home.agent.path)

            machine = host.read()
            room = (int(machine.memory * request.share), machine.cpus * request.share)
            hold = partial(place.hold, where, *room)
            watch = partial(_watch, request, home, enforced, hold, tell, log_name)
            elastic = "memory" in request.limits.ranges
            held = request.limits.memory if elastic and enforced.holds("memory.max") else None
            ended = _live(
                plan,
                home,
                heard,
                log_name,
                request.timeout,
                held,
                isolated,
                announce,
                watch,
                None if behalf is None else behalf.caller.uid,
                request.attach,
            )
            return _outcome(request, home.agent, ended, enforced)
        finally:
            if enforced is not None:
                enforced.close()
            home.release()
            bell.ring(os.path.dirname(home.cgroup.path))
            if isolated:
                _clear_the_wires(tell)
    finally:
        # What came too late for the agent must not end us before we have said how it ended.
        while signal.sigtimedwait(heard, 0) is not None:
            pass
        if own is not None:
            own.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _isolation(limits: Limits) -> tuple[bool, str | None]:
    """Whether it gets a network of its own with a wire, and its resolv.conf (:func:`netns.resolver`)."""
    if limits.net != "isolated":
        return False, ""
    if os.geteuid() != 0:
        raise NotEnforceable(
            "cannot enforce --net isolated: a wire to the host's network is root's to make",
            "--net none is to be had without",
        )
    from agentres.kernel import netns

    return True, netns.resolver()


def _clear_the_wires(tell: Callable[[str], None]) -> None:
    from agentres.kernel import netns

    if why := netns.clear():
        tell(f"what --net isolated needed is still there: {why}; agentres gc tries again")


def _least(limits: Limits) -> float:
    """The least memory that it may get, bytes; 0 where that is not limited."""
    if (between := limits.ranges.get("memory")) is not None:
        return between.least
    return limits.memory if isinstance(limits.memory, int) else 0


def _home_name(request: Request) -> str:
    """Unlike that of any other user's agent; no agent's own name has a colon."""
    uid = 0 if request.behalf is None else request.behalf.caller.uid
    return f"{uid}:{request.name}" if uid else request.name


def _theirs(caller: Caller) -> Identity:
    from agentres.kernel.trampoline import Identity

    return Identity(caller.uid, caller.gid, caller.groups, caller.name, "")


def _check_early(heard: set[int], behalf: Behalf | None) -> None:
    """Raise Interrupted where a signal has come that would have ended the agent."""
    if behalf is not None:
        behalf.early()
    if early := signal.sigpending() & heard - _HARMLESS:
        raise Interrupted(min(early))


def _import_the_launch() -> None:
    from agentres.kernel import devices, kmsg, terminal, trampoline  # noqa: F401 -- see above


def _live(
    plan: Plan,
    home: Home,
    heard: set[int],
    log_name: str,
    timeout: float | None,
    raised: int | Max | None,
    wired: bool,
    announce: Callable[[], None],
    watch: Callable[..., Monitor],
    owner: int | None,
    attach: Callable[[Loop, Supervision], None] | None,
) -> Ended:
    """Launch the command, call ``announce`` once it runs, and wait for its end.

    ``raised`` is the limit on memory where it is elastic: whoever comes near to it before it is watched
    waits, and is not killed.  ``wired``: its own network has a wire to the host.
    """
    from agentres.kernel.deadman import Deadman
    from agentres.kernel.kmsg import KernelLog
    from agentres.kernel.terminal import Terminal
    from agentres.kernel.trampoline import Launch

    # Before the agent can change the one or fill the other.
    terminal, kernel_log = Terminal(), KernelLog()
    tripwire: tuple[int, Deadman] | None = None
    try:
        height = _first_tripwire(home.agent, raised) if isinstance(raised, int) else None

        def secure(launch: Launch) -> None:
            nonlocal tripwire
            if height is not None:
                tripwire = height, Deadman(home.agent.path)
            if wired and launch.wait_until_ready():
                from agentres.kernel import netns

                netns.wire(launch.pid)

        launch = Launch(plan, home.main, secure)
        from agentres.run import explain  # noqa: F401 -- both while the child gets to its exec
        from agentres.run.supervision import Supervision

        launch.confirm()
        announce()  # not before: a launch that fails says one thing only
        supervision = Supervision(
            launch,
            home.agent,
            heard,
            kernel_log,
            log_name,
            partial(watch, launch, tripwire),
            owner,
            attach,
        )
        try:
            ended = supervision.until_the_end(timeout)
            home.agent.kill_all()  # release() says it where something survives that
            terminal.restore(modes=ended.returncode < 0)
            supervision.finish(exit_status(ended.returncode, ended.timed_out))
        finally:
            supervision.close()
    finally:
        if tripwire is not None:
            tripwire[1].close()
        kernel_log.close()
    return ended


def _first_tripwire(agent: Cgroup, limit: int) -> int | None:
    """Have memory.high stand below an elastic limit before anybody can come to it; where, None: nowhere."""
    from agentres.policy.tripwire import ROOM, last

    height = last(limit, ROOM)
    try:
        agent.set_property("memory.high", str(height))
    except ControlFileError as error:
        # Only a burst in the first moments is concerned: what watches the agent tries again.
        log.debug(__name__, "no first tripwire: %s", error)
        return None
    return height


def _watch(
    request: Request,
    home: Home,
    enforced: Enforced,
    hold: Callable[[], None],
    warn: Callable[[str], None],
    inside: str,
    launch: Launch,
    tripwire: tuple[int, Deadman] | None,
    loop: Loop,
    on_oom: Callable[[], None],
) -> Monitor:
    from agentres.policy.settings import Settings
    from agentres.run.monitor import Monitor, Watched

    hold()
    settings = request.settings() if request.settings else Settings(handlers=())
    terms = enforced.terms(settings)
    registry.mark_philosophy(home.agent.path, terms.philosophy.name)
    watched = Watched(
        request.name,
        request.command,
        home.agent,
        enforced.settings,
        launch.started,
        inside,
        os.path.dirname(home.cgroup.path),
        home.adopt,
        terms,
        request.name if request.named else None,
        tripwire,
        enforced.network,
        request.origins,
        warn,
        None if request.behalf is None else request.behalf.caller,
        os.environ if request.behalf is None else request.behalf.environment,
        "" if request.behalf is None else request.behalf.state,
        None if request.behalf is None else request.behalf.within,
    )
    return Monitor(loop, watched, settings, on_oom, request.on_alert)


def _outcome(request: Request, agent: Cgroup, ended: Ended, enforced: Enforced) -> Outcome:
    from agentres.run.explain import Outcome

    usage, unreadable = agent.usage()
    if enforced.network is not None:
        counted = enforced.network.figures()
        usage = usage.but(**{key: counted[key] for key in counted if key in usage.__match_args__})
    return Outcome(
        name=request.name,
        command=request.command,
        limits=ended.limits or request.limits,
        returncode=ended.returncode,
        wall=ended.wall,
        timeout=request.timeout,
        timed_out=ended.timed_out,
        killed_after_grace=ended.killed_after_grace,
        usage=usage,
        unreadable=unreadable,
        enforced=enforced.settings,
        not_enforced=enforced.missing,
        oom_kills=ended.oom_kills,
        cgroup=agent.path,
        memory_max=_memory_max(agent),
        short=ended.short,
        stopped=ended.stopped,
    )


def _memory_max(agent: Cgroup) -> int | str | None:
    """What stands; None where there is no such limit, or its file is not to be read."""
    try:
        text = agent.get_property("memory.max").strip()
        return text if text == MAX else int(text)
    except (ControlFileError, ValueError):
        return None


OWN_USER = "auto"
"""Asks for a user that no other agent has."""


def _gaps(identity: Identity | None, walled: bool) -> list[str]:
    """What an agent that root starts could do against its limits, a line each."""
    if os.geteuid() != 0:
        return []
    if identity is None or (identity.uid == 0 and not walled):
        return ["it runs as root, and can undo its limits: --isolate or --user keeps it from that"]
    from agentres.kernel import walls

    if walled and identity.uid not in walls.DYNAMIC and walls.landlock() < walls.SCOPES_ABI:
        return [
            f"NOT enforced: it can signal other processes of {identity.name} (Linux 6.12's Landlock is not here); --user auto gives it a user of its own"
        ]
    return []


def _identity(user: str | None) -> tuple[Identity | None, OwnUser | None]:
    """The user, and what keeps that from being anybody else's meanwhile."""
    if user is None:
        return None, None
    if os.geteuid() != 0:
        raise UsageError("--user: only root may run an agent as another user")
    import pwd

    from agentres.kernel.trampoline import Identity

    if user == OWN_USER:
        from agentres.kernel.walls import OwnUser

        own = OwnUser()
        return Identity(own.uid, own.uid, (), f"agentres-{own.uid}", "/"), own

    try:
        entry = pwd.getpwuid(int(user)) if _is_number(user) else pwd.getpwnam(user)
    except (KeyError, OverflowError):  # getpwuid(3) takes what fits a uid_t
        raise UsageError(f"--user {user}: there is no such user") from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    found = Identity(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir)
    return found, None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 20


def check_cwd() -> None:
    """UsageError where the current directory is none any more."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory: {reason(error)}") from error


def _check_nofile(limits: Limits) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits.nofile is None or os.geteuid() == 0 or hard == resource.RLIM_INFINITY:
        return
    if limits.nofile > hard:
        raise UsageError(f"--nofile {limits.nofile}: the hard limit here is {hard}")
