"""What watches one running agent: its meter, its alerts, its tripwire, its history.

:class:`Monitor` ties the engine to the kernel's notifications on one side and to the history and the
handlers on the other.  It runs on the supervisor's loop and never waits there: the history is written
by a thread, handlers run in another process.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from agentres.kernel.caller import files_of
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.deadman import Deadman
from agentres.kernel.drift import Drift
from agentres.kernel.loop import Loop, Timer
from agentres.kernel.meter import Meter
from agentres.kernel.pressure import trigger
from agentres.model import log
from agentres.model.errors import ControlFileError
from agentres.model.limits import Setting
from agentres.model.paths import state_directory
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Sample
from agentres.model.units import MAX
from agentres.policy import tripwire
from agentres.policy.resources import RESOURCES
from agentres.policy.settings import Settings
from agentres.policy.tripwire import ROOM
from agentres.run.elastic import Elastic, Terms
from agentres.run.learning import Learning
from agentres.run.limiter import Limiter
from agentres.run.messenger import Messenger
from agentres.watch.engine import Engine, Subject
from agentres.watch.recorder import Recorder, new_run

if TYPE_CHECKING:
    from typing import Any, Literal

    from agentres.kernel.caller import Caller
    from agentres.kernel.network import Network
    from agentres.model.limits import Limits
    from agentres.model.units import Max
    from agentres.policy.prediction import Prediction
    from agentres.run.messenger import Handle

BREATH = 0.05
"""Seconds between two readings of a control file that notifies without end.

The kernel throttles ``memory.events`` to a notification each 10 ms; an agent that lives off page cache at
its limit causes one each time, and none of them is news.
"""

_BURST_LASTS = 1.0
"""Seconds after a raise for which every notification is heard at once."""

_STALLED: dict[Literal["cpu", "memory", "io"], tuple[str, ...]] = {
    "cpu": ("cpu", "pressure"),
    "memory": ("memory", "pressure"),
    "io": ("disk", "pressure"),
}
"""What is looked at when tasks wait for a resource (PSI): they do at a limit, before the next sample."""

_READ_BACK_EVERY = 12
"""Samples between two comparisons of all limits, beside those that inotify asks for."""

_HISTORY_PATIENCE = 5.0
_NEVER = float("inf")
_LONG_AGO = float("-inf")
_ENDED = "the agent has ended"


class Watched(Record):
    """The agent to watch: its name, command, cgroup and limits, and when it was launched.

    ``adopt`` takes in a process of ours (:meth:`agentres.kernel.delegation.Home.adopt`).  ``started`` is
    time.monotonic(); ``inside`` is the cgroup as /proc/PID/cgroup names it; ``parent`` is the
    cgroup that holds all agents' homes.  ``terms`` say how the limits move; None: not at all.  ``named`` is
    the name where it was given, None where it was made up.  ``tripwire`` is the memory.high that stands
    already, with the deadman that would take it down.  ``network`` counts its packets; None: nothing does.
    ``origins`` tell where a limit was asked for, by its key.  ``warn`` gets lines for people.  ``caller`` is whose agent it
    is where it is not our own user's: the history in ``state`` and the handlers, in ``environment``, are that user's then,
    and ``within`` lowers or refuses limits that are more than it may set.
    """

    name: str
    command: tuple[str, ...]
    cgroup: Cgroup
    enforced: Sequence[Setting]
    started: float
    inside: str
    parent: str
    adopt: Callable[[int], None]
    terms: Terms | None = None
    named: str | None = None
    tripwire: tuple[int, Deadman] | None = None
    network: Network | None = None
    origins: Mapping[str, str] = MappingProxyType({})
    warn: Callable[[str], None] = lambda line: None
    caller: Caller | None = None
    environment: Mapping[str, str] = os.environ
    state: str = ""
    within: Callable[[Limits, Limits | None], Limits] | None = None


class Monitor:
    """Watches one agent from its first moments to :meth:`finish`.

    ``on_oom`` is called as soon as a process of the agent has been killed for memory.
    """

    def __init__(
        self,
        loop: Loop,
        watched: Watched,
        settings: Settings,
        on_oom: Callable[[], None],
        callables: Sequence[Handle] = (),
    ) -> None:
        self.watched = watched
        self._loop = loop
        self._settings = settings
        self.agent = watched.cgroup
        self._parent = watched.parent
        self._on_oom = on_oom
        self._directory = watched.state or state_directory()
        self._samples = 0
        self._limits_off: list[str] = []
        self._oom_kills = 0
        self._moved_at = _LONG_AGO
        self._lease = -1
        self._finishing = False
        self._height: int | Max = MAX
        self._deadman: Deadman | None = None
        if watched.tripwire is not None:
            self._height, self._deadman = watched.tripwire
        self._tripwire_off = ""
        history = f"{self._directory}/history.db" if settings.history else ""
        self._messenger = Messenger(
            loop,
            settings,
            history,
            watched.adopt,
            self._alerts_dropped,
            callables,
            watched.caller,
            watched.environment,
        )
        if callables or any(handler.type != "terminal" for handler in settings.handlers):
            self._messenger.start()
        self._recorder: Recorder | None = None
        if history:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            loop.watch(self._wake, self._history_changed)
            self._recorder = Recorder(
                history, lambda: os.eventfd_write(self._wake, 1), watched.caller
            )
        started = time.time() - (time.monotonic() - watched.started)
        path = watched.cgroup.path
        self.run = new_run(watched.name, "agent", watched.command, path, started)
        if watched.caller is not None:
            self.run = self.run.but(uid=watched.caller.uid)
        self._keep("begin", self.run)
        self.meter = Meter(watched.cgroup.path, network=watched.network)
        self._learning: Learning | None = None
        if self._recorder is not None:
            self._learning = Learning(
                self._recorder, settings, self.meter.values, watched.named, watched.command, watched.started
            )  # fmt: skip
        self.meter.read("limits")
        self.meter.values.update(history=0, handlers=0, drift=0, starved=0, frozen=0)
        self._engine = Engine(loop, settings, self._tell, self._sampled)
        self.subject = _Agent(self, self.meter, settings, watched.started)
        self.drift = Drift(watched.cgroup, watched.enforced, watched.inside, watched.network)
        self.elastic: Elastic | None = None
        self._contention: Timer | None = None
        self.held = ""
        """Who has frozen it by command, in words; empty: nobody."""
        self.terms = watched.terms
        self.limiter: Limiter | None = None
        if watched.terms is not None:
            self.limiter = Limiter(
                self.agent,
                self.meter.values,
                self.drift.expect,
                self._set_tripwire,
                watched.network,
                watched.terms.io_max,
                watched.terms.disks,
            )
            self._make_elastic(watched.started)
        if self.drift.fd >= 0:
            loop.watch(self.drift.fd, self._limit_written)
        self._notifying = {
            fd: callback
            for file, callback in (
                ("memory.events", self._memory_event),
                ("pids.events", self._pids_event),
                ("cgroup.events", self._cgroup_event),
            )
            if (fd := self.meter.fd(file)) is not None
        }
        self._paused: set[int] = set()
        self._triggers = []
        for resource, groups in _STALLED.items():
            if (fd := trigger(watched.cgroup.fd, resource)) is not None:
                self._triggers.append(fd)
                self._notifying[fd] = partial(self._stalled, fd, groups)
        for fd, callback in self._notifying.items():
            loop.watch(fd, callback, select.EPOLLPRI)
        self.meter.read("events")
        self._engine.add(self.subject)
        if self._learning is not None and watched.terms is not None:
            self._learning.ask(watched.terms.limits.ranges, watched.warn, self._begin)

    def finish(self, exit_code: int) -> None:
        """Take the last sample, end the alerts, and wait for the history and the handlers."""
        self.meter.read("events")
        self._finishing = True
        self._engine.remove(self.subject, _ENDED)
        for fd in self._notifying.keys() - self._paused:
            self._loop.unwatch(fd)
        self._notifying.clear()
        self._end_elastic()
        for fd in self._triggers:
            os.close(fd)
        self._lift()
        if self.drift.fd >= 0:
            self._loop.unwatch(self.drift.fd)
        self.drift.close()
        self.meter.close()
        self._messenger.close()
        self._engine.end(self.subject, _ENDED)  # of what the handlers did not take at the last
        if self._learning is not None:
            self._learning.finish(time.monotonic())
        self._keep("end", self.run.id, time.time(), exit_code)
        if self._recorder is not None:
            self._recorder.close(_HISTORY_PATIENCE)
            self._loop.unwatch(self._wake)
            os.close(self._wake)
        if self._lease >= 0:
            os.close(self._lease)

    # What the kernel tells.

    def _memory_event(self) -> None:
        limit = self.meter.values["memory_limit"]
        self._look_by_event("memory", "events")
        now = time.monotonic()
        if self.meter.values["memory_limit"] != limit:
            self._moved_at = now
        if now - self._moved_at > _BURST_LASTS:  # else the next one may be the next step of a burst
            self._pause(self.meter.fd("memory.events"))
        killed = self.meter.values["memory_oom_kill"] or 0
        if killed > self._oom_kills:
            self._oom_kills = killed
            self._on_oom()

    def _pids_event(self) -> None:
        self._pause(self.meter.fd("pids.events"))
        self._look_by_event("pids", "events")

    def _cgroup_event(self) -> None:
        """It was frozen or thawed, by whomever, or its last process has ended or was moved out."""
        self._pause(self.meter.fd("cgroup.events"))
        self._engine.look(self.subject, "events", "fds")
        self._check_moved()

    def _stalled(self, fd: int, groups: tuple[str, ...]) -> None:
        self._pause(fd)
        self._look_by_event(*groups)

    def _look_by_event(self, *groups: str) -> None:
        if self.elastic is not None:
            self.elastic.event = True
        self._engine.look(self.subject, *groups)
        if self.elastic is not None:
            self.elastic.event = False

    def _pause(self, fd: int | None) -> None:
        """Hear a file again only after a breath; what comes meanwhile is told then."""
        assert fd is not None
        self._loop.unwatch(fd)
        self._paused.add(fd)
        self._loop.call_at(time.monotonic() + BREATH, lambda: self._resume(fd))

    def _resume(self, fd: int) -> None:
        if (callback := self._notifying.get(fd)) is not None:
            self._paused.discard(fd)
            self._loop.watch(fd, callback, select.EPOLLPRI)

    def _limit_written(self) -> None:
        self.drift.written()
        self.check_drift()
        self.meter.read("limits")

    def check_drift(self) -> None:
        """Compare what holds with what was set, now."""
        self._limits_off = self.drift.rewritten()
        self._check_moved()

    def _check_moved(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        found = self._limits_off + self.drift.moved(map(int, self.meter.pids), now)
        self.subject.detail["drift"] = "; ".join(found)
        self.meter.values["drift"] = len(found)
        self._engine.observe(self.subject, "drift")

    # What the engine tells.

    def _sampled(self, subject: Subject, when: float, sample: Sample) -> None:
        self._keep("add", [(subject.run, when, sample)])
        if self._learning is not None:
            self._learning.sampled(time.monotonic())
        self._samples += 1
        if self._samples % _READ_BACK_EVERY == 0:
            self.check_drift()
        else:
            self._check_moved()
        if self._samples > 1 and self._lease < 0 and not self._finishing:
            self._maybe_watch_the_host()
        if self._deaf:
            self._contend()

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] != "repeated":
            self._messenger.alert(event)
        self._keep("record", event)

    # Limits that move.

    def _make_elastic(self, since: float | None) -> None:
        assert self.terms is not None
        assert self.limiter is not None
        if not self.terms.limits.ranges:
            return
        made = Elastic(self.agent, self.terms, self.meter.values, self.limiter, self.acted)
        for resource in made.resources:
            self.subject.follow(resource, since)
        if made.sharing is not None and made.sharing.bell.fd >= 0:
            self._loop.watch(made.sharing.bell.fd, self._bell_rang)
        self.elastic = made

    def _begin(self, predicted: Prediction) -> None:
        if self.elastic is not None:  # somebody may have set other limits meanwhile
            self.elastic.begin(predicted)

    def anew(self, terms: Callable[[], Terms]) -> None:
        """Have the limits move by other terms, which are made while none of them does.

        What these raise goes on to whoever asks, and the limits move on as before.
        """
        self._end_elastic()
        try:
            self.terms = terms()
        finally:
            self._make_elastic(None)
            if self.elastic is not None:
                self.elastic.held = bool(self.held)
                # What nobody had asked to see since is looked at from now on.
                self._engine.look(
                    self.subject, *{RESOURCES[each].group for each in self.elastic.resources}
                )

    def _end_elastic(self) -> None:
        if self.elastic is None:
            return
        if self._contention is not None:
            self._contention.cancel()
            self._contention = None
        if self.elastic.sharing is not None and self.elastic.sharing.bell.fd >= 0:
            self._loop.unwatch(self.elastic.sharing.bell.fd)
        self.elastic.close()
        self.elastic = None

    def observed(self, resource: str, value: float | None, now: float) -> float:
        """A value was read, and is not judged yet."""
        if resource == "memory" and self._learning is not None:
            self._learning.memory()
        return _NEVER if self.elastic is None else self.elastic.observed(resource, value, now)

    def ceiling(self, resource: str) -> float | None:
        """What the resource's limit may become, where it moves."""
        return None if self.elastic is None else self.elastic.ceiling(resource)

    @property
    def _deaf(self) -> bool:
        """Whether no bell tells it that somebody wants something: the kernel gave no inotify instance."""
        sharing = self.elastic.sharing if self.elastic is not None else None
        return sharing is not None and sharing.bell.fd < 0

    def _bell_rang(self) -> None:
        assert self.elastic is not None
        assert self.elastic.sharing is not None
        self.elastic.sharing.bell.heard()
        self._contend()

    def _contend(self) -> None:
        """Do our part where memory is short, and ask again for what we want ourselves."""
        if self.elastic is None or self.elastic.sharing is None:
            return
        wait = self.elastic.sharing.contend()
        if self._contention is not None:
            self._contention.cancel()
            self._contention = None
        if wait < _NEVER:
            self._contention = self._loop.call_at(time.monotonic() + wait, self._contend)
        if self.elastic.sharing.wants:
            self._look_by_event("memory")
        else:
            self.settled()

    @property
    def short(self) -> str:
        """What memory the agent was refused at the last, in words; empty: none."""
        sharing = self.elastic.sharing if self.elastic is not None else None
        if sharing is None:
            return ""
        return sharing.why if sharing.wants else sharing.was

    def acted(self, action: dict[str, Any]) -> None:
        """Something was done with a limit: :data:`agentres.store.rows.OF_ACTION`."""
        self._keep("act", {"run": self.run.id, "agent": self.run.name, **action})

    def _state(self, resource: str, holds: bool, why: str) -> None:
        if self.meter.values[resource] != holds:
            self.subject.detail[resource] = why
            self.meter.values[resource] = int(holds)
            self._engine.observe(self.subject, resource)

    def settled(self) -> None:
        """All that was read has been judged: move the tripwire to the next threshold."""
        elastic = self.elastic
        if elastic is not None and (sharing := elastic.sharing) is not None:
            if self._deaf and sharing.wants and self._contention is None:
                self._contention = self._loop.call_at(time.monotonic(), self._contend)
            self._state("starved", bool(sharing.wants), sharing.why)
        values = self.meter.values
        if elastic is not None and elastic.frozen and elastic.sharing is not None:
            self._state("frozen", True, elastic.sharing.why)
        else:
            frozen = bool(values["cgroup_frozen"])
            why = self.held or "somebody wrote cgroup.freeze"
            self._state("frozen", frozen, why if frozen else "")
        current, used = values["memory_current"], values["working_set"]
        if current is None or used is None or self._tripwire_off:
            return
        thresholds = [watch.next_threshold for watch in self.subject.watches.get("memory", ())]
        wake = None if elastic is None else elastic.wake_at()
        ahead = min((t for t in (*thresholds, wake) if t is not None), default=None)
        room = None if wake is None else ROOM
        height = tripwire.height(ahead, current, used, values["memory_limit"], room)
        if tripwire.moved(self._height, height):
            self._set_tripwire(height)

    def _set_tripwire(self, height: int | Max) -> None:
        try:
            self.guard()
            self.agent.set_property("memory.high", str(height))
            self._height = height
        except (OSError, ControlFileError) as error:
            # Without it a memory alert waits for the next look; a limit is not concerned.
            self._tripwire_off = str(error)
            log.debug(__name__, "no tripwire: %s", error)
            self._lift()

    def guard(self) -> None:
        """Have somebody let the agent go on should we be killed.  OSError."""
        if self._deadman is None:
            self._deadman = Deadman(self.agent.path)

    def _lift(self) -> None:
        if self._deadman is not None:
            self._deadman.close()
            self._deadman = None
            self.agent.set_property("memory.high", MAX)
            self._height = MAX

    # Where it goes.

    def _keep(self, method: str, *args: Any) -> None:
        if self._recorder is not None:
            self._recorder.put(method, *args)

    def _history_changed(self) -> None:
        assert self._recorder is not None
        os.eventfd_read(self._wake)
        self._recorder.answers()
        self.subject.detail["history"] = self._recorder.trouble
        self.meter.values["history"] = int(bool(self._recorder.trouble))
        self._engine.observe(self.subject, "history")

    def _alerts_dropped(self, what: str, count: int) -> None:
        self.subject.detail["handlers"] = what
        self.meter.values["handlers"] = count
        self._engine.observe(self.subject, "handlers")

    def _maybe_watch_the_host(self) -> None:
        """Have our companion watch the host, unless another agent's does: a lock on a file tells."""
        if all(rule.of == "agent" for rule in self._settings.rules):
            return
        try:
            with files_of(self.watched.caller):
                lease = os.open(
                    f"{self._directory}/host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
        except OSError as error:  # no state directory: the history says so in an alert
            log.debug(__name__, "the host is not watched: %s", error)
            return
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            return
        self._lease = lease
        self._messenger.watch_host(self._parent)


class _Agent(Subject):
    """The agent as the engine sees it."""

    def __init__(self, monitor: Monitor, meter: Meter, settings: Settings, since: float) -> None:
        super().__init__(monitor.run.id, monitor.run.name, "agent", meter, settings, since)
        self._monitor = monitor

    def observed(self, resource: str, value: float | None, now: float) -> float:
        return self._monitor.observed(resource, value, now)

    def ceiling(self, resource: str) -> float | None:
        return self._monitor.ceiling(resource) or super().ceiling(resource)

    def settled(self) -> None:
        self._monitor.settled()
