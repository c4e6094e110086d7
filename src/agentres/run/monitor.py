"""What watches one running agent, wired together.

The engine and what hears the kernel (:mod:`agentres.run.hearing`), the agent as the engine sees it
(:mod:`agentres.run.subject`), the history and the handlers.  It runs on the supervisor's loop and never waits there: the
history is written by a thread, handlers run in another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from agentres.kernel import frugal, registry
from agentres.kernel.drift import Drift
from agentres.kernel.escapes import told
from agentres.kernel.loop import Loop
from agentres.kernel.meter import Meter
from agentres.kernel.writeback import HostWrites, Writeback
from agentres.model import log
from agentres.model.limits import EVERY_DISK
from agentres.model.paths import state_directory
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.policy.elastic import Terms
from agentres.policy.resources import RESOURCES
from agentres.policy.settings import Settings
from agentres.run.hearing import Hearing
from agentres.run.history import History
from agentres.run.learning import Learning
from agentres.run.messenger import Messenger
from agentres.run.mover import Mover
from agentres.run.pacer import Pacer
from agentres.run.subject import AgentSubject
from agentres.run.watched import Watched
from agentres.watch.engine import Engine, Subject
from agentres.watch.recorder import new_run

if TYPE_CHECKING:
    from typing import Any

    from agentres.model.oom import Footprint
    from agentres.model.stats import Escaped
    from agentres.policy.prediction import Prediction
    from agentres.run.messenger import Handle

_SETTLED = 2
"""Samples after which all is loaded that most agents need."""

_READ_BACK_EVERY = 12
"""Samples between two comparisons of all limits, beside those that inotify asks for."""

_ENDS_WITHIN = 5.0
"""Seconds for which one that was told to end is not paused; what it writes is made good afterwards."""

_FOOTPRINT_EVERY = 5.0
"""Seconds between two looks at what memory consists of, while its limit is met again and again: each asks every process."""

_ENDED = "the agent has ended"


class Monitor:
    """Watches one agent from its first moments to :meth:`finish`.

    ``on_oom`` is called as soon as a process of the agent has been killed for memory; it tells what was in its cgroup, where the
    kernel says that.
    """

    def __init__(
        self,
        loop: Loop,
        watched: Watched,
        settings: Settings,
        on_oom: Callable[[], Footprint | None],
        callables: Sequence[Handle] = (),
    ) -> None:
        self.watched = watched
        self._loop = loop
        self.actuator = watched.actuator
        self.agent = watched.actuator.cgroup
        self._directory = watched.state or state_directory()
        self._samples = 0
        self._on_oom = on_oom
        self.footprint: Footprint | None = None
        """What was in its cgroup when the limit on memory was met, the last time; None: it was not."""
        self._footprint_at = -_FOOTPRINT_EVERY
        self._finishing = False
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
        started = time.time() - (time.monotonic() - watched.started)
        self.run = new_run(
            watched.name, "agent", watched.command, self.agent.path, started, watched.escapes.run
        )
        if watched.caller is not None:
            self.run = self.run.but(uid=watched.caller.uid)
        self._history = History(loop, history, self.run, watched.caller, self._history_changed)
        self.act = self._history.act
        """Takes an action, once it was done."""
        self.meter = Meter(
            self.agent.path,
            network=self.actuator.network,
            writeback=Writeback(self.actuator.disks.get(EVERY_DISK, ())),
            nofile=watched.terms.limits.nofile,
            peaks=True,
        )
        self.meter.read("limits")
        self._engine = Engine(loop, settings, self._tell, self._sampled)
        self.subject = AgentSubject(self.run, self.meter, self.actuator, settings, watched.started, self._note, self._full)  # fmt: skip
        self._hearing = Hearing(loop, self._engine, self.subject, self.meter, self._check_escapes)  # fmt: skip
        if self._history.recorder is not None:
            self.subject.learning = Learning(
                self._history.recorder, settings, watched.named, watched.command, watched.started
            )
        self.drift = Drift(self.actuator)
        self.terms = watched.terms
        self._begin_moving(watched.started)
        self.subject.follow("memory_pressure", watched.started)
        self.subject.follow("oom_kill", None)
        if self.drift.fd >= 0:
            loop.watch(self.drift.fd, self._limit_written)
        self._hearing.begin(self.agent)
        if callables or any(handler.type != "terminal" for handler in settings.handlers):
            self._messenger.start()  # which may tell of its trouble at once
        self.meter.read("events")
        self._engine.add(self.subject)
        if self.subject.learning is not None:
            self.subject.learning.ask(watched.terms.limits.ranges, watched.warn, self._predicted)
        if self.actuator.paced:
            self.subject.pacer = Pacer(loop, self.meter, self.actuator, self.act, HostWrites())

    def finish(self, exit_code: int) -> None:
        """Take the last sample, end the alerts, and wait for the history and the handlers."""
        self.meter.read("events")
        self._finishing = True
        if self.subject.pacer is not None:
            self.subject.pacer.close()
        self._engine.remove(self.subject, _ENDED)
        self._hearing.close()
        self._end_moving()
        self.actuator.lift_tripwire()
        if self.drift.fd >= 0:
            self._loop.unwatch(self.drift.fd)
        self.drift.close()
        self.meter.close()
        self._messenger.close()
        self._engine.end(self.subject, _ENDED)  # of what the handlers did not take at the last
        if self.subject.learning is not None:
            self.subject.learning.finish(time.monotonic())
        trouble = self._history.end(exit_code)
        if trouble and not self.subject.states["history"]:  # found too late for an alert
            self.watched.warn(trouble)

    def _full(self, killed: bool) -> None:
        """The limit on memory was met: note by what, and before an alert tells of it."""
        now = time.monotonic()
        if not killed and now - self._footprint_at < _FOOTPRINT_EVERY:
            return
        try:
            from agentres.kernel import footprint
            from agentres.run import exhaustion
        except ImportError as error:  # agentres was upgraded or removed meanwhile
            log.debug(__name__, "what its memory consists of is not known: %s", error)
            self._on_oom()
            return
        known = self._on_oom() if killed else None
        before = self.footprint if now - self._footprint_at < _FOOTPRINT_EVERY else None
        try:
            found = known or footprint.read(
                self.agent.path, self.meter.pids, self.meter.memory_stat
            )
        except OSError as error:  # the cgroup has gone, or has no memory.stat
            log.debug(__name__, "what its memory consists of is not known: %s", error)
            return
        if known is None and before and footprint.total(before.kinds) > footprint.total(found.kinds):  # fmt: skip
            found = before  # whoever was killed has gone by now
        limit = self.meter.read("limits").memory_limit or 0
        if known is None and footprint.total(found.kinds) < limit / 2:
            return  # so has all that filled it: nobody saw that
        self.footprint, self._footprint_at = found, now
        if killed:
            self.subject.detail["oom_kill"] = exhaustion.held(self.footprint)

    # What somebody else has done.

    def _limit_written(self) -> None:
        self.drift.hear()
        self.check_drift()
        self.meter.read("limits")

    def check_drift(self) -> None:
        """Compare what holds with what was set, now."""
        found = self.drift.rewritten()
        self._note("drift", len(found), "; ".join(found))

    def _check_escapes(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.note_escapes(self.watched.escapes.look(self.meter.pids, now))

    def note_escapes(self, found: Sequence[Escaped]) -> None:
        """Take how many of its processes are outside of its cgroup, and which."""
        self._note("escaped", len(found), told(found))

    # What the engine tells.

    def _sampled(self, subject: Subject, when: float, sample: Sample) -> None:
        self._history.sample(when, sample)
        counts = (sample.read_bytes, sample.dirtied_bytes, sample.unbilled_bytes)
        registry.mark_writes(self.agent.fd, *counts)
        if self.subject.learning is not None:
            self.subject.learning.sampled(sample, time.monotonic(), self.subject.starved)
        self._samples += 1
        if self._samples == _SETTLED:
            frugal.give_back()
        if self._samples % _READ_BACK_EVERY == 0:
            self.check_drift()
        self._check_escapes()
        if self._samples > 1 and not self._finishing:
            watch = partial(
                self._messenger.watch_host, f"{self._directory}/host.lock", self.watched.parent
            )
            if self.subject.pacer is None:
                watch()
            else:
                self.subject.pacer.meanwhile(watch)
        if self.subject.mover is not None:
            self.subject.mover.sampled()

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] != "repeated":
            self._messenger.alert(event)
        self._history.event(event)

    # Limits that move.

    def _begin_moving(self, since: float | None) -> None:
        if not self.terms.limits.ranges:
            return
        again = partial(self._hearing.look, "memory")
        self.subject.mover = mover = Mover(
            self._loop, self.terms, self.meter, self.actuator, self.act, again, self.subject.settled
        )  # fmt: skip
        for resource in mover.resources:
            self.subject.follow(resource, since)

    def _end_moving(self) -> None:
        if self.subject.mover is not None:
            self.subject.mover.close()
            self.subject.mover = None

    def _predicted(self, predicted: Prediction) -> None:
        if self.subject.mover is not None:  # somebody may have set other limits meanwhile
            self.subject.mover.begin(predicted)

    def anew(self, terms: Callable[[], Terms]) -> None:
        """Have the limits move by other terms, which are made while none of them does.

        What these raise goes on to whoever asks, and the limits move on as before.
        """
        self._end_moving()
        try:
            self.terms = terms()
        finally:
            self.meter.read("limits")  # what they stand at by now
            self._begin_moving(None)
            if (mover := self.subject.mover) is not None:
                # What nobody had asked to see since is looked at from now on.
                self._engine.look(
                    self.subject, *{RESOURCES[each].group for each in mover.resources}
                )

    @property
    def short(self) -> str:
        """What memory the agent was refused at the last, in words; empty: none."""
        return "" if self.subject.mover is None else self.subject.mover.short

    def let_end(self) -> None:
        """It was told to end, and is not kept from that by pauses."""
        if self.subject.pacer is not None and not self._let_end:
            self._let_end = True
            self.subject.pacer.rest(_ENDS_WITHIN)

    def note_end(self) -> None:
        """Take what the main process wrote to the last, and whether memory was full, before nobody can be asked any more."""
        self.meter.read("disk")
        self.subject.note_full(self.meter.read("events"))

    @property
    def writes(self) -> dict[str, int | None]:
        """What its processes read from disks and dirtied, and what of that was not billed, in bytes; ``paused_usec`` is for how long it was paused."""
        reading, pacer = self.meter.reading, self.subject.pacer
        return {
            "read_bytes": reading.read_bytes,
            "dirtied_bytes": reading.dirtied_bytes,
            "unbilled_bytes": reading.unbilled_bytes,
            "paused_usec": None if pacer is None else round(pacer.seconds * 1e6),
        }

    def _note(self, resource: str, value: float, detail: str) -> None:
        self._engine.note(self.subject, resource, value, detail)

    def _history_changed(self, trouble: str) -> None:
        self._note("history", int(bool(trouble)), trouble)

    def _alerts_dropped(self, what: str, count: int) -> None:
        self._note("handlers", count, what)
