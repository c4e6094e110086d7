"""One agent's life: where it lives, its limits, its launch, its end.

A launch waits twice, for systemd's scope and for the command's exec; what is needed only after such a
wait is imported during it.  On a slow machine that is a tenth of the whole launch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from agentres import log
from agentres.admission import Applicant, enter
from agentres.errors import (
    ControlFileError,
    Interrupted,
    NotEnforceable,
    UsageError,
    exit_status,
    reason,
)
from agentres.kernel import bell, delegation, host, registry
from agentres.limits import EVERY_DISK, SHARE, Limits, Refused, Setting, Standing, io_max_lines
from agentres.record import TYPE_CHECKING, Record
from agentres.units import MAX

if TYPE_CHECKING:
    from typing import Any

    from agentres.elastic import Terms
    from agentres.explain import Outcome
    from agentres.kernel.cgroup import Cgroup
    from agentres.kernel.deadman import Deadman
    from agentres.kernel.delegation import Home
    from agentres.kernel.loop import Loop
    from agentres.kernel.mounts import Mount
    from agentres.kernel.trampoline import Identity, Launch, Plan
    from agentres.monitor import Monitor
    from agentres.settings import Settings
    from agentres.supervision import Ended
    from agentres.units import Max

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


class Request(Record):
    """What to run, and inside what.

    ``limits`` are complete (:func:`agentres.limits.defaults` filled in).  ``tolerated`` are the
    control files whose limits may be missing, with a line on stderr: nobody asked for them.  With
    ``best_effort`` all may.  ``every_disk_asked``: a disk rate without a device was asked for.  ``timeout`` in seconds; ``user`` is a name or number, for root only.
    ``named`` tells whether somebody gave the name, by which the history then knows the agent; else it knows it by
    its command.  ``philosophy`` is a name among the settings', None for their default; ``priority`` a weight (100 is normal).
    ``share`` of the host is what all agents together may have; where what this one needs at the least does not
    fit it waits ``wait`` seconds for room, None: not at all.
    ``settings`` gives what is watched and who is told, when it is needed; None is the built-in rules and
    nobody.  The functions in ``on_alert`` are told of every alert, each in a process of its own
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
    cwd: str | None = None
    environment: Mapping[str, str] = os.environ
    named: bool = True
    philosophy: str | None = None
    priority: int = 100
    share: float = SHARE
    wait: float | None = None
    settings: Callable[[], Settings] | None = None
    on_alert: tuple[Callable[[dict[str, Any]], object], ...] = ()


def run(request: Request, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run a command as an agent and return how it ended.

    Blocks until the agent and all that it started are gone and their cgroup is removed.  ``tell``
    gets a line for each limit that does not hold, as soon as the command runs.  Signals in
    :data:`PASSED_ON` go to the agent meanwhile, so call it from the main thread.  Raises
    :class:`~agentres.errors.AgentresError`; nothing is left behind then.
    """
    # Inherited as ignored, it would make the kernel throw the agent's status away.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request.cwd is None:
        _check_cwd()
    identity = _identity(request.user)
    _check_nofile(request.limits)
    # A signal that was ignored when we started (nohup, a background job) stays ignored.
    heard: set[int] = {s for s in PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN}
    if os.getpid() == 1:
        heard.add(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        place = delegation.find(request.best_effort)
        standing = Standing.of(request.priority, _least(request.limits))
        home = place.acquire(request.name, standing, meanwhile=_import_the_launch)
        try:
            registry.mark(home.agent.fd, request.name, time.time(), os.getpid())
            early = partial(_check_early, heard)
            where = os.path.dirname(home.cgroup.path)
            who = Applicant(
                home.agent, where, request.limits, request.priority, request.share, request.wait
            )
            request = request.but(limits=enter(who, early, tell))
            enforced, missing, terms = _enforce(request, home, identity)
            early()
            from agentres.kernel.trampoline import Plan

            plan = Plan(
                request.command,
                request.limits.nofile,
                identity,
                request.cwd,
                request.environment,
                mask,
            )
            log_name = home.agent.path.removeprefix(place.hierarchy.mount)

            def announce() -> None:
                from agentres.explain import not_enforced

                for line in not_enforced(missing):
                    tell(line)

            machine = host.read()
            room = (int(machine.memory * request.share), machine.cpus * request.share)
            hold = partial(place.hold, where, *room)
            watch = partial(_watch, request, home, enforced, terms, hold, tell, log_name)
            elastic = "memory" in request.limits.ranges
            held = request.limits.memory if elastic and _holds_memory(enforced) else None
            ended = _live(plan, home, heard, log_name, request.timeout, held, announce, watch)
            return _outcome(request, home.agent, ended, enforced, missing)
        finally:
            home.release()
            bell.ring(os.path.dirname(home.cgroup.path))
    finally:
        # What came too late for the agent must not end us before we have said how it ended.
        while signal.sigtimedwait(heard, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _least(limits: Limits) -> float:
    """The least memory that it may get, bytes; 0 where that is not limited."""
    if (between := limits.ranges.get("memory")) is not None:
        return between.least
    return limits.memory if isinstance(limits.memory, int) else 0


def _check_early(heard: set[int]) -> None:
    """Raise Interrupted where a signal has come that would have ended the agent."""
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
    announce: Callable[[], None],
    watch: Callable[..., Monitor],
) -> Ended:
    """Launch the command, call ``announce`` once it runs, and wait for its end.

    ``raised`` is the limit on memory where it is elastic: whoever comes near to it before it is watched
    waits, and is not killed.
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

        def secure() -> None:
            nonlocal tripwire
            if height is not None:
                tripwire = height, Deadman(home.agent.path)

        launch = Launch(plan, home.main, secure)
        from agentres import explain  # noqa: F401 -- both while the child gets to its exec
        from agentres.supervision import Supervision

        launch.confirm()
        announce()  # not before: a launch that fails says one thing only
        supervision = Supervision(
            launch, home.agent, heard, kernel_log, log_name, partial(watch, launch, tripwire)
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
    enforced: list[Setting],
    terms: Callable[[Settings], Terms],
    hold: Callable[[], None],
    warn: Callable[[str], None],
    inside: str,
    launch: Launch,
    tripwire: tuple[int, Deadman] | None,
    loop: Loop,
    on_oom: Callable[[], None],
) -> Monitor:
    from agentres.monitor import Monitor, Watched
    from agentres.settings import Settings

    hold()
    settings = request.settings() if request.settings else Settings(handlers=())
    watched = Watched(
        request.name,
        request.command,
        home.agent,
        enforced,
        launch.started,
        inside,
        os.path.dirname(home.cgroup.path),
        home.adopt,
        terms(settings),
        request.name if request.named else None,
        tripwire,
        warn,
    )
    return Monitor(loop, watched, settings, on_oom, request.on_alert)


def _outcome(
    request: Request, agent: Cgroup, ended: Ended, enforced: list[Setting], missing: list[Refused]
) -> Outcome:
    from agentres.explain import Outcome

    usage, unreadable = agent.usage()
    return Outcome(
        name=request.name,
        command=request.command,
        limits=request.limits,
        returncode=ended.returncode,
        wall=ended.wall,
        timeout=request.timeout,
        timed_out=ended.timed_out,
        killed_after_grace=ended.killed_after_grace,
        usage=usage,
        unreadable=unreadable,
        enforced=enforced,
        not_enforced=missing,
        oom_kills=ended.oom_kills,
        cgroup=agent.path,
        memory_max=_memory_max(agent),
        short=ended.short,
    )


def _holds_memory(enforced: list[Setting]) -> bool:
    return any(setting.file == "memory.max" for setting in enforced)


def _memory_max(agent: Cgroup) -> int | str | None:
    """What stands; None where there is no such limit, or its file is not to be read."""
    try:
        text = agent.get_property("memory.max").strip()
        return text if text == MAX else int(text)
    except (ControlFileError, ValueError):
        return None


def _enforce(
    request: Request, home: Home, identity: Identity | None
) -> tuple[list[Setting], list[Refused], Callable[[Settings], Terms]]:
    """Write the limits; what holds, what does not, and how they move.  Raises where that may not be."""
    from agentres.kernel import devices
    from agentres.kernel.mounts import mounts

    limits, table, agent = request.limits, mounts(), home.agent
    named = {name: devices.behind(name) for name in limits.named_devices}
    every = devices.every_disk(table) if limits.limits_every_disk else []
    lines = io_max_lines(limits, every, named)
    settings = limits.settings(lines)
    missing = agent.apply(settings)
    refused = {item.setting for item in missing}
    missing = [item for item in missing if not item.setting.optional]
    if limits.limits_every_disk and not any(item.setting.file == "io.max" for item in missing):
        own = identity.home if identity else request.environment.get("HOME", "/")
        missing += _uncounted(request.cwd or ".", own, table) if every else [_NO_DISK]
    missing += _uncounted_names(limits.named_written, table)
    for item in missing:
        # A rate for one device says nothing about mounts that have none.
        asked = bool(item.setting.text) or request.every_disk_asked
        if asked and not request.best_effort and item.setting.file not in request.tolerated:
            from agentres.explain import OPTIONS

            option = OPTIONS[item.setting.file]
            raise NotEnforceable(
                f"cannot enforce {option}: {item.why}",
                "`agentres doctor` tells how to get it, --best-effort runs without it",
            )
    enforced = [setting for setting in settings if setting not in refused]
    held = {setting.file for setting in enforced}
    moving = {key: r for key, r in limits.ranges.items() if _FILES[key.partition("=")[0]] in held}

    def terms(settings: Settings) -> Terms:
        from agentres.elastic import Terms

        devices = {name: tuple(numbers) for name, numbers in {**named, EVERY_DISK: every}.items()}
        return Terms(
            limits.but(ranges=moving),
            lines,
            devices,
            settings.chosen(request.philosophy),
            request.priority,
            request.share,
            os.path.dirname(home.cgroup.path),
        )

    return enforced, missing, terms


_FILES = {
    "cpu": "cpu.max",
    "memory": "memory.max",
    "pids": "pids.max",
    **dict.fromkeys(("io_read", "io_write", "io_read_iops", "io_write_iops"), "io.max"),
}
_NO_DISK = Refused(Setting("io.max", ""), "no disk is to be seen in /sys/block")


def _uncounted(cwd: str, own: str, table: list[Mount]) -> list[Refused]:
    """The mounts an agent is likely to write to whose disk ``io.max`` does not hold."""
    from agentres.kernel import devices

    places = ["/", "/tmp", "/var/tmp", cwd, own]
    return [
        Refused(
            Setting("io.max", "", key=found.mount.point), f"on {found.mount.point}: {found.why}"
        )
        for found in devices.uncounted(places, table)
    ]


def _uncounted_names(names: Iterable[str], table: list[Mount]) -> list[Refused]:
    """The files and directories, named for their disk, whose file system escapes the rate."""
    from agentres.kernel import devices

    return [
        Refused(
            Setting("io.max", name, key=found.mount.point), f"on {found.mount.point}: {found.why}"
        )
        for name in names
        if not devices.is_device(name)
        for found in devices.uncounted([name], table)
    ]


def _identity(user: str | None) -> Identity | None:
    if user is None:
        return None
    if os.geteuid() != 0:
        raise UsageError("--user: only root may run an agent as another user")
    import pwd

    from agentres.kernel.trampoline import Identity

    try:
        entry = pwd.getpwuid(int(user)) if _is_number(user) else pwd.getpwnam(user)
    except (KeyError, OverflowError):  # getpwuid(3) takes what fits a uid_t
        raise UsageError(f"--user {user}: there is no such user") from None
    return Identity(
        entry.pw_uid,
        entry.pw_gid,
        tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)),
        entry.pw_name,
        entry.pw_dir,
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 20


def _check_cwd() -> None:
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
