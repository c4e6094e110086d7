"""What watches one running agent: its meter, its alerts, its tripwire, its history.

:class:`Monitor` ties the engine to the kernel's notifications on one side and to the history and the
handlers on the other.  It runs on the supervisor's loop and never waits there: the history is written
by a thread, handlers run in another process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from agentres.kernel import registry
from agentres.kernel.actuator import COMMAND, Actuator
from agentres.kernel.drift import Drift
from agentres.kernel.loop import Loop
from agentres.kernel.meter import Meter
from agentres.kernel.writeback import Writeback
from agentres.model.limits import EVERY_DISK
from agentres.model.paths import state_directory
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Sample
from agentres.policy import tripwire
from agentres.policy.resources import RESOURCES
from agentres.policy.settings import Settings
from agentres.policy.tripwire import ROOM
from agentres.run.contender import Contender
from agentres.run.elastic import Elastic, Terms
from agentres.run.learning import Learning
from agentres.run.messenger import Messenger
from agentres.run.notifications import Notifications
from agentres.run.pacer import Pacer
from agentres.watch.engine import Engine, Subject
from agentres.watch.recorder import Recorder, new_run

if TYPE_CHECKING:
    from typing import Any, Literal

    from agentres.kernel.caller import Caller
    from agentres.model.limits import Limits
    from agentres.policy.prediction import Prediction
    from agentres.run.messenger import Handle

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

_ENDS_WITHIN = 5.0
"""Seconds for which one that was told to end is not paused; what it writes is made good afterwards."""

_HISTORY_PATIENCE = 5.0
_NEVER = float("inf")
_LONG_AGO = float("-inf")
_ENDED = "the agent has ended"


class Watched(Record):
    """The agent to watch."""

    name: str
    command: tuple[str, ...]
    # Writes its limits; its cgroup, and what counts its packets.
    actuator: Actuator
    # time.monotonic() at the launch.
    started: float
    # The cgroup as /proc/PID/cgroup names it.
    inside: str
    # The cgroup that holds all agents' homes.
    parent: str
    # Takes in a process of ours (agentres.kernel.delegation.Home.adopt).
    adopt: Callable[[int], None]
    # How the limits move.
    terms: Terms
    # The name where it was given, None where it was made up.
    named: str | None = None
    # Where a limit was asked for, by its key.
    origins: Mapping[str, str] = MappingProxyType({})
    # Gets lines for people.
    warn: Callable[[str], None] = lambda line: None
    # Whose agent it is, where it is not our own user's: history and handlers are that user's then.
    caller: Caller | None = None
    # The handlers'.
    environment: Mapping[str, str] = os.environ
    # The history's directory; empty: our own.
    state: str = ""
    # Lowers or refuses limits that are more than its owner may set.
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
        self.actuator = watched.actuator
        self.agent = watched.actuator.cgroup
        self._parent = watched.parent
        self._on_oom = on_oom
        self._directory = watched.state or state_directory()
        self._samples = 0
        self._limits_off: list[str] = []
        self._oom_kills = 0
        self._moved_at = _LONG_AGO
        self._finishing = False
        self._without_tripwire = False
        self._let_end = False
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
        self._recorder: Recorder | None = None
        if history:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            loop.watch(self._wake, self._history_changed)
            self._recorder = Recorder(
                history, lambda: os.eventfd_write(self._wake, 1), watched.caller
            )
        started = time.time() - (time.monotonic() - watched.started)
        self.run = new_run(watched.name, "agent", watched.command, self.agent.path, started)
        if watched.caller is not None:
            self.run = self.run.but(uid=watched.caller.uid)
        self._keep("begin", self.run)
        self.meter = Meter(
            self.agent.path,
            network=self.actuator.network,
            writeback=Writeback(self.actuator.disks.get(EVERY_DISK, ())),
        )
        self._learning: Learning | None = None
        if self._recorder is not None:
            self._learning = Learning(
                self._recorder, settings, self.meter.values, watched.named, watched.command, watched.started
            )  # fmt: skip
        self.meter.read("limits")
        self._engine = Engine(loop, settings, self._tell, self._sampled)
        self.subject = _Agent(self, self.meter, settings, watched.started)
        self.drift = Drift(self.actuator, watched.inside)
        self.elastic: Elastic | None = None
        self._pacer: Pacer | None = None
        self._contender: Contender | None = None
        self.terms = watched.terms
        self._make_elastic(watched.started)
        if self.drift.fd >= 0:
            loop.watch(self.drift.fd, self._limit_written)
        self._notifications = Notifications(loop)
        self._notifications.hear(self.meter.fd("memory.events"), self._memory_event)
        self._notifications.hear(self.meter.fd("pids.events"), self._pids_event)
        self._notifications.hear(self.meter.fd("cgroup.events"), self._cgroup_event)
        for resource, groups in _STALLED.items():
            look = partial(self._look_by_event, *groups)
            self._notifications.hear_pressure(self.agent.fd, resource, look)
        if callables or any(handler.type != "terminal" for handler in settings.handlers):
            self._messenger.start()  # which may tell of its trouble at once
        self.meter.read("events")
        self._engine.add(self.subject)
        if self._learning is not None:
            self._learning.ask(watched.terms.limits.ranges, watched.warn, self._begin)
        if self.actuator.paced:
            self._pacer = Pacer(loop, self.meter, self.actuator, self.acted)

    def finish(self, exit_code: int) -> None:
        """Take the last sample, end the alerts, and wait for the history and the handlers."""
        self.meter.read("events")
        self._finishing = True
        if self._pacer is not None:
            self._pacer.close()
        self._engine.remove(self.subject, _ENDED)
        self._notifications.close()
        self._end_elastic()
        self.actuator.lift_tripwire()
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

    # What the kernel tells.

    def _memory_event(self) -> None:
        limit = self.meter.values["memory_limit"]
        self._look_by_event("memory", "events")
        now = time.monotonic()
        if self.meter.values["memory_limit"] != limit:
            self._moved_at = now
        if now - self._moved_at > _BURST_LASTS:  # else the next one may be the next step of a burst
            self._notifications.pause(self.meter.fd("memory.events"))
        killed = self.meter.values["memory_oom_kill"] or 0
        if killed > self._oom_kills:
            self._oom_kills = killed
            self._on_oom()

    def _pids_event(self) -> None:
        self._notifications.pause(self.meter.fd("pids.events"))
        self._look_by_event("pids", "events")

    def _cgroup_event(self) -> None:
        """It was frozen or thawed, by whomever, or its last process has ended or was moved out."""
        self._notifications.pause(self.meter.fd("cgroup.events"))
        if self._is_pausing():  # twice each time, and nothing else has happened
            self._engine.look(self.subject, "events")
            return
        self._engine.look(self.subject, "events", "fds")
        self._check_moved()

    def _look_by_event(self, *groups: str) -> None:
        if self.elastic is not None:
            self.elastic.event = True
        self._engine.look(self.subject, *groups)
        if self.elastic is not None:
            self.elastic.event = False

    def _limit_written(self) -> None:
        self.drift.hear()
        self.check_drift()
        self.meter.read("limits")

    def check_drift(self) -> None:
        """Compare what holds with what was set, now."""
        self._limits_off = self.drift.rewritten()
        self._check_moved()

    def _check_moved(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        found = self._limits_off + self.drift.moved(map(int, self.meter.pids), now)
        self._engine.note(self.subject, "drift", len(found), "; ".join(found))

    # What the engine tells.

    def _sampled(self, subject: Subject, when: float, sample: Sample) -> None:
        self._keep("add", [(subject.run, when, sample)])
        counts = (sample.read_bytes, sample.dirtied_bytes, sample.unbilled_bytes)
        registry.mark_writes(self.agent.fd, *counts)
        if self._learning is not None:
            self._learning.sampled(time.monotonic(), bool(self.subject.states["starved"]))
        self._samples += 1
        if self._samples % _READ_BACK_EVERY == 0:
            self.check_drift()
        else:
            self._check_moved()
        if self._samples > 1 and not self._finishing:
            watch = partial(
                self._messenger.watch_host, f"{self._directory}/host.lock", self._parent
            )
            if self._pacer is None:
                watch()
            else:
                self._pacer.meanwhile(watch)
        if self._contender is not None:
            self._contender.sampled()

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] != "repeated":
            self._messenger.alert(event)
        self._keep("record", event)

    # Limits that move.

    def _make_elastic(self, since: float | None) -> None:
        if not self.terms.limits.ranges:
            return
        made = Elastic(self.terms, self.meter.values, self.meter.read, self.actuator, self.acted)
        for resource in made.resources:
            self.subject.follow(resource, since)
        if made.sharing is not None:
            again = partial(self._look_by_event, "memory")
            self._contender = Contender(self._loop, made.sharing, again, self.settled)
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
            self.meter.read("limits")  # what they stand at by now
            self._make_elastic(None)
            if self.elastic is not None:
                # What nobody had asked to see since is looked at from now on.
                self._engine.look(
                    self.subject, *{RESOURCES[each].group for each in self.elastic.resources}
                )

    def _end_elastic(self) -> None:
        if self._contender is not None:
            self._contender.close()
            self._contender = None
        if self.elastic is not None:
            self.elastic.close()
            self.elastic = None

    def observed(self, resource: str, value: float | None, now: float) -> float:
        """A value was read, and is not judged yet."""
        if resource == "memory" and self._learning is not None:
            self._learning.memory(bool(self.subject.states["starved"]))
        return _NEVER if self.elastic is None else self.elastic.observed(resource, value, now)

    def ceiling(self, resource: str) -> float | None:
        """What the resource's limit may become, where it moves."""
        return None if self.elastic is None else self.elastic.ceiling(resource)

    @property
    def short(self) -> str:
        """What memory the agent was refused at the last, in words; empty: none."""
        sharing = self.elastic.sharing if self.elastic is not None else None
        if sharing is None:
            return ""
        return sharing.why if sharing.wants else sharing.was

    def let_end(self) -> None:
        """It was told to end, and is not kept from that by pauses."""
        if self._pacer is not None and not self._let_end:
            self._let_end = True
            self._pacer.rest(_ENDS_WITHIN)

    def note_writes(self) -> None:
        """Take what the main process wrote to the last, before nobody can be asked any more."""
        self.meter.read("disk")

    @property
    def writes(self) -> dict[str, int | None]:
        """What its processes read from disks and dirtied, and what of that was not billed, in bytes; ``paused_usec`` is for how long it was paused."""
        found = {
            key: self.meter.values[key] for key in ("read_bytes", "dirtied_bytes", "unbilled_bytes")
        }
        return {
            **found,
            "paused_usec": None if self._pacer is None else round(self._pacer.seconds * 1e6),
        }

    def acted(self, action: dict[str, Any]) -> None:
        """Something was done with a limit: :data:`agentres.store.rows.OF_ACTION`."""
        self._keep("act", {"run": self.run.id, "agent": self.run.name, **action})

    def _state(self, resource: str, holds: bool, why: str) -> None:
        if self.subject.states[resource] != holds:
            self._engine.note(self.subject, resource, int(holds), why)

    def settled(self) -> None:
        """All that was read has been judged: move the tripwire to the next threshold."""
        elastic = self.elastic
        if elastic is not None and (sharing := elastic.sharing) is not None:
            if self._contender is not None:
                self._contender.judged()
            self._state("starved", bool(sharing.wants), sharing.why)
        values = self.meter.values
        if elastic is not None and elastic.frozen and elastic.sharing is not None:
            self._state("frozen", True, elastic.sharing.why)
        else:
            frozen = bool(values["cgroup_frozen"]) and not self._is_pausing()
            why = self.actuator.frozen_by.get(COMMAND) or "somebody wrote cgroup.freeze"
            self._state("frozen", frozen, why if frozen else "")
        current, used = values["memory_current"], values["working_set"]
        if current is None or used is None or self._without_tripwire:
            return
        thresholds = [watch.next_threshold for watch in self.subject.watches.get("memory", ())]
        wake = None if elastic is None else elastic.wake_at()
        ahead = min((t for t in (*thresholds, wake) if t is not None), default=None)
        room = None if wake is None else ROOM
        height = tripwire.height(ahead, current, used, values["memory_limit"], room)
        if tripwire.moved(self.actuator.tripwire, height):
            self._without_tripwire = not self.actuator.set_tripwire(height)

    def _is_pausing(self) -> bool:
        """Whether it is frozen, on its pacer's account alone."""
        if self._pacer is None or COMMAND in self.actuator.frozen_by:
            return False
        return self._pacer.is_pausing(time.monotonic())

    # Where it goes.

    def _keep(self, method: str, *args: Any) -> None:
        if self._recorder is not None:
            self._recorder.put(method, *args)

    def _history_changed(self) -> None:
        assert self._recorder is not None
        os.eventfd_read(self._wake)
        self._recorder.answers()
        trouble = self._recorder.trouble
        self._engine.note(self.subject, "history", int(bool(trouble)), trouble)

    def _alerts_dropped(self, what: str, count: int) -> None:
        self._engine.note(self.subject, "handlers", count, what)


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
