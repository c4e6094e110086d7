"""The life of one agent, from its cgroup to its end, step by step.

A launch waits twice: for systemd's scope and for the command's exec.  A module that is needed only after a
wait is imported during that wait.  On a slow machine this saves a tenth of the launch.
"""

from __future__ import annotations

import os
import time

from agentres.kernel import bell, delegation, host, signal
from agentres.model.errors import (
    ControlFileError,
    Interrupted,
    NotEnforceable,
    UsageError,
)
from agentres.model.limits import Precedence, cpu_hints
from agentres.model.record import TYPE_CHECKING
from agentres.run.enforcement import BpfLoader, enforce, hold_space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from agentres.kernel.loop import Loop
    from agentres.kernel.project import Quota
    from agentres.kernel.trampoline import Child, Identity
    from agentres.model.limits import Limits
    from agentres.model.oom import OomCause
    from agentres.model.stats import EscapedProcess, RunningProcess
    from agentres.run.agent import Request
    from agentres.run.explain import Outcome
    from agentres.run.monitor import Monitor
    from agentres.run.supervision import Ending

PASSED_ON = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
    signal.SIGTSTP,
)
"""Signals that the supervisor passes on to the agent."""

_HARMLESS = {signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP, signal.SIGCHLD}
"""Signals that do not end a launch that is under way."""

ENDING = frozenset(PASSED_ON) - _HARMLESS
"""Signals that do end it."""


class Launch:
    """The launch of one agent: :meth:`acquire`, :meth:`admit`, :meth:`enforce`, :meth:`start`, :meth:`wait`, in this order.

    Each may raise AgentresError.  ``with`` releases what they took, in reverse order: nothing is left behind.
    """

    def __init__(self, request: Request, tell: Callable[[str], None]) -> None:
        self._request, self._tell = request, tell
        # No ExitStack: contextlib takes a tenth of a megabyte for as long as the agent runs.
        self._taken: list[Callable[[], object]] = []
        if os.geteuid() != 0:
            import resource

            check_nofile(request.limits, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._wired, self._resolver = _isolation(request.limits)
        self._heard: set[int] = set()
        self._quota: Quota | None = None
        behalf = request.behalf
        self._run = os.urandom(4).hex()
        self._walled = request.isolate
        if self._walled is None:
            self._walled = request.user is not None or behalf is not None
        self._identity: Identity | None
        who = None if behalf is None else behalf.caller
        # Root that asks for walls and names no user has one of its own, as without the daemon.
        if who is not None and request.user is None and (who.uid or not request.isolate):
            from agentres.kernel.trampoline import Identity

            self._identity = Identity(who.uid, who.gid, who.groups, who.name, "")
        else:
            self._identity = None
            if self._walled or request.user is not None:
                from agentres.run import identity

                user = identity.OWN_USER if request.user is None else request.user
                self._identity, own = identity.find(user)
                if own is not None:
                    self._taken.append(own.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        failed: BaseException | None = None
        while self._taken:
            try:
                self._taken.pop()()
            except BaseException as error:  # release the others all the same
                failed = error
        if failed is not None:
            raise failed

    def acquire(self) -> None:
        """Get a cgroup for the agent.  From here on the signals that are the agent's are blocked, and kept for it."""
        request = self._request
        # A signal that was ignored at our start (nohup, a background job) stays ignored.
        self._heard = {s for s in PASSED_ON if signal.getsignal(s) != signal.SIG_IGN}
        if os.getpid() == 1:
            self._heard.add(signal.SIGCHLD)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._heard)
        self._taken.append(self._hear_again)
        self._place = delegation.find(request.best_effort, ours=request.behalf is None)
        self._loader = BpfLoader(request.limits)
        precedence = Precedence.of(request.priority, _least(request.limits))
        self._home = self._place.acquire(
            _home_name(request), precedence, self._meanwhile, bool(self._walled),
            delegation.controllers(request.limits),
        )  # fmt: skip
        self._slice = os.path.dirname(self._home.cgroup.path)
        if self._wired:
            self._taken.append(lambda: _clear_the_wires(self._tell))
        self._taken.append(self._free_space)  # after release(): nothing writes there any more
        self._taken.append(lambda: bell.ring(self._slice))
        self._taken.append(self._home.release)
        from agentres.kernel import registry  # by now loaded: _meanwhile()

        if request.behalf is not None and request.behalf.leased:
            # Before the command begins, so that the agent is ended even if the supervisor is killed right after.
            registry.mark_leased(self._home.agent.fd)
        registry.mark(self._home.agent.fd, request.name, time.time(), os.getpid(), self._owner)

    def admit(self) -> None:
        """Reserve room in the budget; the agent starts with as much memory as there is."""
        from agentres.kernel.actuator import Actuator
        from agentres.run.admission import Applicant, enter

        asked = self._request
        self._actuator = Actuator(self._home.agent)
        who = Applicant(
            self._home.agent, self._slice, asked.limits, asked.priority, asked.share, asked.wait,
            self._actuator.write_memory,
        )  # fmt: skip
        self._request = asked.but(limits=enter(who, self._check_early, self._tell))

    def enforce(self) -> None:
        """Write the limits."""
        if self._request.limits.cpuset is not None:
            from agentres.run import pinning

            limits = pinning.chosen(self._request.limits, self._home.agent, self._check_early)
            self._request = self._request.but(limits=limits)
        self._enforcement = enforce(
            self._request, self._home, self._identity, self._loader, self._actuator
        )
        self._taken.append(self._actuator.close)
        if self._request.disk_space is not None:
            self._quota = hold_space(self._request, self._home, self._enforcement.missing, self._check_early)  # fmt: skip
        self._check_early()

    def start(self) -> None:
        """Execute the command, and tell which limits do not hold."""
        from agentres.kernel.escapes import RUN, Escapes
        from agentres.kernel.kmsg import KernelLog
        from agentres.kernel.terminal import Terminal
        from agentres.kernel.trampoline import Child, Plan

        request = self._request
        hints = cpu_hints(request.limits, os.cpu_count() or 1) if request.cpu_hint else {}
        plan = Plan(
            request.command,
            request.limits.nofile,
            self._identity,
            request.cwd,
            {**hints, **request.environment, RUN: self._run},
            self._mask,
            own_network=request.limits.net != "host",
            resolver=self._resolver or "",
            walls=self._place.hierarchy.mount if self._walled else "",
            view=-1 if self._home.view is None else self._home.view,
            caller=None if request.behalf is None else request.behalf.caller,
            cpus=self._enforcement.affinity,
            dropped=self._dropped(),
        )
        move = self._home.main.move_here if request.escaped == "move" else None
        self._escapes = Escapes(self._run, self._inside, move, self._uid or None)
        # Before the agent can change the terminal or fill the kernel log.
        self._terminal, kernel_log = Terminal(), KernelLog()
        self._taken.append(kernel_log.close)
        child = Child(plan, self._home.main, self._secure)
        from agentres.run import explain  # noqa: F401 -- imported while the child gets to its exec
        from agentres.run.supervision import Supervision

        child.confirm()
        self._in_memory = child.in_memory
        self._announce()  # not before: a launch that fails prints its error and nothing else
        self._supervision = Supervision(
            child,
            self._home.agent,
            self._heard,
            kernel_log,
            self._inside,
            lambda loop, on_oom: self.watch(child, loop, on_oom),
            owner=self._owner,
            attach=request.attach,
            hangup_ends=not request.hangup_passed,
            always=request.events >= 0,
        )
        self._taken.append(self._supervision.close)

    def _free_space(self) -> None:
        if self._quota is not None:
            try:
                if line := self._quota.free():
                    self._tell(line)
            except OSError as error:
                self._tell(f"what --disk-space needed is still there: {error}; agentres gc tries again")  # fmt: skip

    def _dropped(self) -> Sequence[int]:
        """The capabilities that an agent that runs as root loses."""
        is_root = os.geteuid() == 0 and (self._identity is None or self._identity.uid == 0)
        stays_root = is_root and not self._walled
        if not stays_root or self._request.keep_caps:
            return ()
        from agentres.kernel import capabilities

        if capabilities.can_drop():
            return capabilities.UNDOING
        if capabilities.bound(capabilities.UNDOING):
            self._tell("NOT enforced: it keeps capabilities that undo limits (CAP_SETPCAP is not here)")  # fmt: skip
        return ()

    def watch(self, child: Child, loop: Loop, on_oom: Callable[[], OomCause | None]) -> Monitor:
        """Return the monitor of the agent, for :class:`~agentres.run.supervision.Supervision`."""
        from agentres.kernel import registry
        from agentres.policy.settings import Settings

        request, behalf, agent = self._request, self._request.behalf, self._home.agent
        # First: making the settings may free memory, which the imports below then reuse.
        settings = request.settings() if request.settings else Settings(handlers=())
        from agentres.model.paths import state_directory
        from agentres.run.handover import Handover
        from agentres.run.monitor import Monitor

        machine = host.read()
        self._place.hold(
            self._slice, int(machine.memory * request.share), machine.cpus * request.share
        )
        terms = self._enforcement.terms_for(settings)
        registry.mark_philosophy(agent.path, terms.philosophy.name)
        held = behalf is not None and behalf.caller.uid != 0
        handover = Handover(
            name=request.name,
            command=request.command,
            actuator=self._actuator,
            started=child.started,
            escapes=self._escapes,
            parent=self._slice,
            adopt=lambda pid: self._home.adopt(pid, held),
            terms=terms,
            state=state_directory() if behalf is None else behalf.state,
            directory=request.cwd or ".",
            uid=self._uid,
            named=request.name if request.named else None,
            origins=request.origins,
            warn=self._tell,
            caller=None if behalf is None else behalf.caller,
            environment=_unmarked(os.environ if behalf is None else behalf.environment),
            within=None if behalf is None else behalf.within,
            events=request.events,
            pid=child.pid,
            timeout=request.timeout,
        )
        return Monitor(loop, handover, settings, on_oom, request.on_alert)

    def wait(self) -> Outcome:
        """Wait until the agent and all that it started have ended; return how it ended."""
        ending = self._supervision.until_the_end(self._request.timeout)
        left = () if ending.killed else self._left()
        self._home.agent.kill_all()  # release() reports what survives that
        escaped = self._escaped()
        self._terminal.restore(modes=ending.returncode < 0)
        return self._supervision.finish(lambda: self._outcome(ending, left, escaped))

    def _escaped(self) -> Sequence[EscapedProcess]:
        """The run's processes outside of its cgroup, after all inside have ended, and what became of them."""
        only_tell = self._request.escaped == "tell"
        found = self._escapes.last() if only_tell else self._escapes.end()
        self._supervision.note_escapes(found)
        return found

    @property
    def _owner(self) -> int | None:
        """The uid of the agent's owner; None: our own user."""
        return None if self._request.behalf is None else self._request.behalf.caller.uid

    @property
    def _uid(self) -> int:
        """The uid that the agent runs as."""
        return os.geteuid() if self._identity is None else self._identity.uid

    @property
    def _inside(self) -> str:
        """The agent's cgroup as /proc/PID/cgroup and the kernel log name it."""
        return self._home.agent.path.removeprefix(self._place.hierarchy.mount)

    def _meanwhile(self) -> None:
        """Load and import, while systemd makes the scope, what is needed next."""
        self._loader.load()
        from agentres.kernel import actuator, devices, escapes, kmsg, registry, terminal, trampoline  # noqa: F401 -- see above
        from agentres.run import admission  # noqa: F401 -- see above

    def _check_early(self) -> None:
        """Raise Interrupted if a signal is pending that would have ended the agent."""
        if self._request.behalf is not None:
            self._request.behalf.early()
        pending = signal.sigpending() & self._heard
        if early := pending - _HARMLESS:
            raise Interrupted(min(early))
        if signal.SIGTSTP in pending:
            from agentres.kernel.signalfd import let_stop

            let_stop()

    def _hear_again(self) -> None:
        # A signal that came too late for the agent must not end us before we have reported its end.
        while signal.sigtimedwait(self._heard, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _secure(self, child: Child) -> None:
        """Set up what must hold before the agent runs, while the child gets ready.

        An agent that comes near its elastic memory limit before it is watched waits, and is not killed.
        """
        limits = self._request.limits
        if not self._request.orphan_kept:
            from agentres.kernel.escapes import RUN

            try:
                mark = "" if self._request.escaped == "tell" else f"{RUN}={self._run}"
                self._actuator.guard(mark, self._uid or None)
            except OSError as error:
                self._tell(f"NOT enforced: --orphan kill (there is nobody to do it: {error})")
        if "memory" in limits.ranges and isinstance(limits.memory, int) and self._enforcement.holds("memory.max"):  # fmt: skip
            from agentres.policy.tripwire import HEADROOM, last

            self._actuator.set_tripwire(last(limits.memory, HEADROOM))
        if self._wired and child.wait_until_ready():
            from agentres.kernel import netns

            netns.wire(child.pid)

    def _announce(self) -> None:
        from agentres.run.explain import not_enforced

        for line in (
            *not_enforced(self._enforcement.missing),
            *_gaps(self._identity, bool(self._walled)),
        ):
            self._tell(line)
        if not os.access("/proc/self/oom_score_adj", os.W_OK):
            self._tell(
                "NOT enforced: where the host runs out of memory it is not killed before others"
                " (nobody may write its oom_score_adj: is /proc read-only?)"
            )
        if self._wired and self._resolver is None:
            self._tell(
                "no names are resolved in there: the host's name servers are on its loopback"
            )
        if self._request.started is not None:
            self._request.started(self._home.agent.path)

    def _left(self) -> Sequence[RunningProcess]:
        """The agent's processes that still run after its main process has ended."""
        try:
            return self._home.agent.processes()
        except (
            ControlFileError
        ) as error:  # its cgroups are unreadable: what is inside is killed all the same
            self._tell(f"it is not known what of it still ran: {error}")
            return ()

    def _outcome(
        self, ending: Ending, left: Sequence[RunningProcess], escaped: Sequence[EscapedProcess]
    ) -> Outcome:
        from agentres.run.explain import Outcome

        request, agent, enforcement = self._request, self._home.agent, self._enforcement
        usage, unreadable = agent.usage()
        if (network := self._actuator.network) is not None:
            counted = network.figures()
            usage = usage.but(
                **{key: counted[key] for key in counted if key in usage.__match_args__}
            )
        usage = usage.but(**ending.writes)
        stopped = ending.stopped
        if not stopped and (killed := agent.killed_by_oomd() + self._home.main.killed_by_oomd()):
            stopped = f"systemd-oomd has killed {killed} of its processes, as memory was short"
        return Outcome(
            name=request.name,
            command=request.command,
            limits=ending.limits or request.limits,
            returncode=ending.returncode,
            wall=ending.wall,
            timeout=request.timeout,
            timed_out=ending.timed_out,
            killed_after_grace=ending.killed_after_grace,
            usage=usage,
            unreadable=unreadable,
            enforced=enforcement.lines,
            not_enforced=enforcement.missing,
            oom_kills=ending.oom_kills,
            oom_limits=ending.oom_limits,
            left=left,
            escaped=escaped,
            cgroup=agent.path,
            memory_limit=self._actuator.limit_or_none("memory"),
            short=ending.short,
            stopped=stopped,
            paced=enforcement.paced,
            io_held=self._actuator.io_held,
            footprint=ending.footprint,
            space=None if self._quota is None else self._quota.usage(),
            grown={} if ending.footprint is None else self._grown(),
        )

    def _grown(self) -> Mapping[str, int]:
        """By how many bytes each in-memory file system has grown during the run, whoever wrote there."""
        from agentres.kernel import mounts

        before, now = mounts.from_text(self._in_memory), mounts.in_memory()
        grown = {point: now.get(point, 0) - used for point, used in before.items()}
        return {point: size for point, size in grown.items() if size > 0}


def _isolation(limits: Limits) -> tuple[bool, str | None]:
    """Whether the agent gets its own network with a wire to the host, and its resolv.conf (:func:`netns.resolver`)."""
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


def _unmarked(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment without the mark of an enclosing run: this run's helpers do not belong to that."""
    from agentres.kernel.escapes import RUN

    return {key: value for key, value in environment.items() if key != RUN}


def _least(limits: Limits) -> float:
    """The least memory that the agent may get, in bytes; 0: memory is not limited."""
    if (between := limits.ranges.get("memory")) is not None:
        return between.least
    return limits.memory if isinstance(limits.memory, int) else 0


def _home_name(request: Request) -> str:
    """A name that no other user's agent can have: no agent's own name has a colon."""
    uid = 0 if request.behalf is None else request.behalf.caller.uid
    return f"{uid}:{request.name}" if uid else request.name


def _gaps(identity: Identity | None, walled: bool) -> list[str]:
    """How an agent that root starts could escape its limits, a line for each way."""
    if os.geteuid() != 0:
        return []
    if identity is None or (identity.uid == 0 and not walled):
        return ["it runs as root, and can undo its limits: --isolate or --user keeps it from that"]
    if identity.uid == 0:
        return [
            "it runs as root, without capabilities: files of root's are its to write, and what they lead to; --user auto gives it a user of its own"
        ]
    from agentres.kernel import walls

    if walled and identity.uid not in walls.DYNAMIC and walls.landlock() < walls.SCOPES_ABI:
        return [
            f"NOT enforced: it can signal and trace other processes of {identity.name}, and by them leave its limits (Linux 6.12's Landlock is not here); --user auto gives it a user of its own"
        ]
    return []


def check_nofile(limits: Limits, hard: int) -> None:
    """Raise UsageError if --nofile exceeds this hard limit; -1: there is none."""
    if limits.nofile is not None and 0 <= hard < limits.nofile:
        raise UsageError(f"--nofile {limits.nofile}: the hard limit here is {hard}")
