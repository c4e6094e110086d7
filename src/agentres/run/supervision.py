"""Supervision of an agent from its launch to its main process's end: waits, passes signals on, takes commands."""

from __future__ import annotations

import os
import select
import sys
import time
from types import MappingProxyType

import agentres
from agentres.kernel import registry, signal
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.kmsg import KernelLog
from agentres.kernel.listener import Channel, Listener, Peer
from agentres.kernel.loop import Loop
from agentres.kernel.trampoline import Child
from agentres.model import log
from agentres.model.errors import ControlFileError
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import EscapedProcess, OomKill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agentres.kernel.loop import Timer
    from agentres.kernel.signalfd import Signals
    from agentres.model.limits import Limits
    from agentres.model.oom import Footprint, OomCause
    from agentres.run.events import Events
    from agentres.run.explain import Outcome
    from agentres.run.monitor import Monitor
    from agentres.run.oomkills import OomKills
    from agentres.run.steering import Steering

    Watcher = Callable[[Loop, Callable[[], OomCause | None]], Monitor]

GRACE_SECONDS = 5.0
"""Seconds between SIGTERM and SIGKILL when the time limit has passed."""

HANGUP_SECONDS = 5.0
"""Seconds between SIGHUP, which the agent gets, and SIGTERM."""

STOP_SECONDS = 0.5
"""Seconds in which a process that obeys SIGTSTP stops, its own handler included."""

_STOP_POLL = 0.005

LAST_WORDS_SECONDS = 0.2
"""Seconds in which a client that was connected when the agent ended must send its command."""

UNWATCHED_SECONDS = 0.05
"""Seconds after the exec until the monitor is loaded; an agent that ends before does not wait for that."""


_UPGRADED = (
    b'{"ok": false, "error": "agentres was upgraded or removed since this agent was started: it takes no commands", '
    b'"remedy": "kill %d ends it"}\n'
)
"""What :func:`agentres.model.control.failure` returns; importing it now would load another version."""


def _installed() -> tuple[int, int]:
    """Inode and mtime (ns) of the package, by which another version in its place is recognized; 0, 0 if it is gone."""
    try:
        found = os.stat(agentres.__file__)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


_BEGAN_AS = _installed()


class Ending(Record):
    """How the main process ended, and why."""

    # The exit status; -N: killed by signal N.
    returncode: int
    # Seconds from the fork to the end.
    wall: float
    # Whether its time limit passed.
    timed_out: bool
    # Whether it went on after SIGTERM, and was killed when the grace period was over.
    killed_after_grace: bool
    # Whether we killed the whole agent.
    killed: bool
    # The last kills for memory.
    oom_kills: tuple[OomKill, ...]
    # Whose limit the last kill for memory was (agentres.model.oom.OomCause); None: nobody was killed, or it is not known.
    oom_limits: Sequence[str] | None = None
    # The memory that it was last refused, in words; empty: none.
    short: str = ""
    # Who ended it by command, in words; empty: nobody.
    stopped: str = ""
    # The limits that held last; None: no command ever changed them.
    limits: Limits | None = None
    # The figures of Usage (agentres.model.stats) that no control file has.
    writes: Mapping[str, int | None] = MappingProxyType({})
    # What was in memory when the limit was met; None: not known.
    footprint: Footprint | None = None


class Supervision:
    """Waits for one agent.

    ``heard`` are the blocked signals that are passed on to the agent; ``log_name`` is its cgroup as the kernel log
    names it.  ``watch`` makes the monitor, from the loop and a function to call when a process was killed for
    memory.  ``owner`` is a uid that may command the agent besides our own.  ``attach`` gets the loop and this object
    before any waiting.  ``hangup_ends``: an agent that goes on after SIGHUP is ended.  ``always``: monitor even a
    very short agent.
    """

    def __init__(
        self,
        child: Child,
        agent: Cgroup,
        heard: Iterable[int],
        kernel_log: KernelLog,
        log_name: str,
        watch: Watcher,
        *,
        owner: int | None = None,
        attach: Callable[[Loop, Supervision], None] | None = None,
        hangup_ends: bool = True,
        always: bool = False,
    ) -> None:
        self._child = child
        self._agent = agent
        self._kernel_log = kernel_log
        self._log_name = log_name
        self._above: Mapping[str, bytes] | None = None
        self._oom_kills: OomKills | None = None
        self._timed_out = self._killed_after_grace = self._killed = False
        self._returncode: int | None = None
        self._memory_events = -1
        self._heard = heard
        self._signals: Signals | None = None
        self._watch = watch
        self._hangup_ends = hangup_ends
        self._always = always
        self._owners = {os.geteuid()} | ({owner} if owner is not None else set())
        self._monitor: Monitor | None = None
        self._listener: Listener | None = None
        self._steering: Steering | None = None
        self._stopped = ""
        self._ending = False  # it was told to
        self._loop = Loop()
        self._loop.watch(child.pidfd, self._reap)
        if attach is not None:
            attach(self._loop, self)
        if agent.has("memory.events"):
            self._memory_events = os.open("memory.events", os.O_RDONLY, dir_fd=agent.fd)
            os.pread(self._memory_events, 4096, 0)  # else the first poll reports an event at once
            self._loop.watch(self._memory_events, self._memory_event, select.EPOLLPRI)

    def close(self) -> None:
        """Let go of the file descriptors."""
        self._child.close()
        if self._listener is not None:
            self._listener.close()
        if self._signals is not None:
            self._signals.close()
        self._loop.close()
        if self._memory_events >= 0:
            os.close(self._memory_events)

    def until_the_end(self, timeout: float | None) -> Ending:
        """Wait for the main process; after ``timeout`` seconds send it SIGTERM, then SIGKILL to all."""
        if timeout is not None:
            self._loop.call_at(self._child.started + timeout, self._time_is_up)
        if self._always:
            self._begin_to_watch()
        self._loop.tick(wait=False)
        if self._returncode is None:  # else it was short: the import below is most of a launch
            self._listen()
            self._loop.call_at(time.monotonic() + UNWATCHED_SECONDS, self._begin_to_watch)
        while self._returncode is None:
            self._loop.tick()
        wall = time.monotonic() - self._child.started
        cause = self._note_oom_kills()
        victims = () if self._oom_kills is None else self._oom_kills.victims
        footprints = [kill.footprint for kill in victims if kill.footprint is not None]
        ending = Ending(
            self._returncode,
            wall,
            self._timed_out,
            self._killed_after_grace,
            self._killed,
            victims,
            None if cause is None else cause.limits,
            stopped=self._stopped,
            footprint=footprints[-1] if footprints else None,
        )
        if (monitor := self._monitor) is None:
            return ending
        return ending.but(
            short=monitor.subject.short,
            limits=None if self._steering is None else monitor.moving.terms.limits,
            writes=monitor.subject.writes,
            footprint=ending.footprint or monitor.subject.footprint,
        )

    def note_escapes(self, found: Sequence[EscapedProcess]) -> None:
        """Note the run's processes that were still outside of its cgroup when all inside had ended."""
        if self._monitor is not None:
            self._monitor.integrity.note_escapes(found)

    def finish(self, conclude: Callable[[], Outcome]) -> Outcome:
        """End the history and the alerts after the agent's last process; ``conclude`` returns how it ended."""
        if self._listener is not None:  # answer clients that connected while it ran
            self._listener.hear_the_last(LAST_WORDS_SECONDS)
        outcome = conclude() if self._monitor is None else self._monitor.finish(conclude)
        if self._steering is not None:
            self._steering.ended(outcome.exit_code)
        return outcome

    @property
    def ended(self) -> bool:
        """Whether the main process has ended."""
        return self._returncode is not None

    @property
    def pid(self) -> int:
        """The PID of the agent's main process."""
        return self._child.pid

    def pass_on(self, number: int, to_all: bool) -> None:
        """Send a signal to the main process or, as a terminal does (``to_all``), to its process group."""
        if self._returncode is not None:
            return
        if number == signal.SIGHUP:
            self._hung_up()
        if not to_all:
            self._send(number)
            return
        self._let_end(number)
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:  # it has just ended
            pass

    def when_stopped(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when the main process has stopped or ended, and no later than STOP_SECONDS from now.

        A process stops on SIGTSTP only when it next runs: one that reads from a terminal may still take a line.
        """
        end = time.monotonic() + STOP_SECONDS

        def look() -> None:
            if self._returncode is not None or self._main_is_stopped() or time.monotonic() >= end:
                tell()
            else:
                self._loop.call_at(time.monotonic() + _STOP_POLL, look)

        look()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` in ``seconds``, unless the main process has ended by then."""

        def due() -> None:
            if self._returncode is None:
                call()

        return self._loop.call_at(time.monotonic() + seconds, due)

    def stop(self, grace: float, who: str) -> None:
        """Send the main process SIGTERM, and after ``grace`` seconds SIGKILL to all."""
        if self._returncode is None:
            self._stopped = f"stopped by {who}"
            self._end(grace)

    def kill(self, who: str) -> None:
        """Send SIGKILL to all."""
        if self._returncode is None:
            self._stopped = f"killed by {who}"
            self._kill()

    def _begin_to_watch(self) -> None:
        if self._returncode is not None or self._monitor is not None:
            return
        if self._memory_events >= 0:  # the monitor watches memory.events from now on
            self._loop.unwatch(self._memory_events)
        from agentres.kernel import tree  # with the monitor

        self._above = tree.local_events(self._agent.path)
        self._monitor = self._watch(self._loop, self._note_oom_kills)
        if self._ending:
            self._monitor.let_end()
        name = registry.NO_CONTROL
        try:
            self._listener = Listener(self._loop, self._refusal, self._commanded)
            name = self._listener.name
        except OSError as error:  # `agentres set` and its like report that there is no supervisor
            log.debug(__name__, "takes no commands: %s", error)
        try:
            registry.mark_control(self._agent.fd, name)
        except OSError as error:  # no marks can be made here, so nobody finds the agent either
            log.debug(__name__, "takes no commands: %s", error)

    def _refusal(self, peer: Peer) -> bytes:
        if "agentres.run.steering" not in sys.modules and _installed() != _BEGAN_AS:
            return _UPGRADED % os.getpid()
        from agentres.model import control
        from agentres.run import steering

        refused = steering.refusal(peer, self._owners, self._log_name)
        return b"" if refused is None else control.failure(refused)

    def _commanded(self, channel: Channel, line: bytes) -> None:
        assert self._monitor is not None
        if self._steering is None:
            from agentres.run.steering import Steering

            self._steering = Steering(self, self._monitor)
        self._steering.take(channel, line)

    def _main_is_stopped(self) -> bool:
        flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._child.pid, flags) is not None

    def _memory_event(self) -> None:
        """Begin to watch: the agent is at its first tripwire or its limit, and waits for a raise."""
        self._note_oom_kills()
        self._begin_to_watch()

    def _reap(self) -> None:
        if self._monitor is not None:
            self._monitor.subject.note_end()
        _, status = os.waitpid(self._child.pid, 0)
        self._returncode = os.waitstatus_to_exitcode(status)

    def _listen(self) -> None:
        from agentres.kernel.signalfd import Signals

        self._signals = Signals(self._heard)
        self._loop.watch(self._signals.fd, self._pass_on)

    def _pass_on(self) -> None:
        for came in self._signals.read() if self._signals else ():
            if came.number == signal.SIGCHLD:
                _reap_adopted(self._child.pid)
            elif came.sent or not self._has_it_too(came.number):
                self._send(came.number)
            if came.number == signal.SIGHUP:
                self._hung_up()
            if came.number == signal.SIGTSTP and self._signals is not None:
                from agentres.kernel.signalfd import stop

                # After the agent: once we stop, the shell reads the next line.
                self.when_stopped(stop)

    def _hung_up(self) -> None:
        """The terminal or the connection is gone: have the agent ended if it goes on."""
        if self._hangup_ends:
            self._hangup_ends = False
            self._loop.call_at(time.monotonic() + HANGUP_SECONDS, self._end_after_hangup)

    def _end_after_hangup(self) -> None:
        if self._stopped:  # a command ended it, with its own grace period
            return
        self.stop(GRACE_SECONDS, "the hang-up of its terminal or connection")

    def _has_it_too(self, number: int) -> bool:
        """Whether a signal from the terminal reached the agent as well as us."""
        if number in (signal.SIGHUP, signal.SIGCONT) and os.getsid(0) == os.getpid():
            return False  # the kernel sends these to the session leader alone
        try:
            return os.getpgid(self._child.pid) == os.getpgrp()
        except ProcessLookupError:  # it has just ended
            return True

    def _let_end(self, number: int) -> None:
        """Thaw a frozen or paused agent before SIGTERM: else it would not handle the signal."""
        if number == signal.SIGTERM and self._monitor is not None:
            self._monitor.let_end()

    def _send(self, number: int) -> None:
        self._let_end(number)
        try:
            signal.pidfd_send_signal(self._child.pidfd, number)
        except ProcessLookupError:  # it has just ended; its pidfd says so next
            pass
        except PermissionError:  # a setuid program: the grace passes, and cgroup.kill ends it
            log.debug(__name__, "signal %d is not ours to send to %d", number, self._child.pid)

    def _time_is_up(self) -> None:
        if self._returncode is not None:  # it ended in the same turn of the loop
            return
        self._timed_out = True
        if self._events is not None:
            self._events.time_is_up()
        self._end(GRACE_SECONDS)

    def _end(self, grace: float) -> None:
        self._ending = True
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # a stopped process handles its SIGTERM only once it continues
        self._loop.call_at(time.monotonic() + grace, self._grace_is_over)

    def _grace_is_over(self) -> None:
        self._killed_after_grace = True
        self._kill()

    def _kill(self) -> None:
        self._killed = True
        if self._events is not None:
            self._tell_kill(self._events)
        self._agent.kill = True
        self._send(signal.SIGKILL)  # the main process may have left the cgroup

    def _tell_kill(self, events: Events) -> None:
        try:
            running = self._agent.processes()
        except ControlFileError:  # its cgroups are unreadable: all inside is killed nevertheless
            running = []
        if self._timed_out:
            events.killed("timeout", "the time limit had passed", running)
        else:
            events.killed("stop", self._stopped, running)

    @property
    def _events(self) -> Events | None:
        return None if self._monitor is None else self._monitor.events

    def _note_oom_kills(self) -> OomCause | None:
        """Note the processes that were killed for memory; return why the last one was, None: none was."""
        events = b""
        if self._memory_events >= 0:
            # The next POLLPRI is about what comes after.
            events = os.pread(self._memory_events, 4096, 0)
        if b"\noom_kill 0\n" in events:
            return None
        if self._oom_kills is None:
            try:
                from agentres.run.oomkills import OomKills
            except ImportError as error:  # agentres was upgraded or removed meanwhile
                log.debug(__name__, "who was killed is not known: %s", error)
                return None
            self._oom_kills = OomKills(
                self._kernel_log, self._agent.path, self._log_name, self._above
            )
        found = self._oom_kills.note(events)
        if found and self._events is not None:
            self._events.oom_killed(found)
        return self._oom_kills.cause


def _reap_adopted(main: int) -> None:
    """Reap the orphans that PID 1 of a container inherits; :meth:`Supervision._reap` reaps the main process."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (found := os.waitid(os.P_ALL, 0, flags)) is not None and found.si_pid != main:
        os.waitpid(found.si_pid, 0)
