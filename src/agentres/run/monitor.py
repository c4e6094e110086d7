"""The monitor of one running agent: wires together what watches it.

That is the engine, the kernel's notifications (:mod:`agentres.run.hearing`), the agent as the engine sees it
(:mod:`agentres.run.subject`), the history and the handlers.  The monitor runs on the supervisor's loop and never blocks
it: a thread writes the history, another process runs the handlers.
"""

from __future__ import annotations

import time

from agentres.kernel import frugal
from agentres.kernel.loop import Loop
from agentres.kernel.writeback import HostWrites
from agentres.model.action import Action
from agentres.model.native import partial
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.policy.settings import Settings
from agentres.run.handover import Handover
from agentres.run.hearing import Hearing
from agentres.run.history import History
from agentres.run.integrity import Integrity
from agentres.run.learning import Learning
from agentres.run.messenger import Messenger
from agentres.run.moving import Moving
from agentres.run.pacer import Pacer
from agentres.run.subject import AgentSubject
from agentres.watch.engine import Engine, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from agentres.model.oom import OomCause
    from agentres.run.events import Events
    from agentres.run.explain import Outcome
    from agentres.run.messenger import Handle

_SETTLED = 2
"""Number of samples after which everything that most agents need is loaded."""

_ENDED = "the agent has ended"


class Monitor:
    """Watches one agent until :meth:`finish`.

    ``on_oom`` is called as soon as a process of the agent was killed for memory (:class:`agentres.run.fullness.Fullness`).
    """

    def __init__(
        self,
        loop: Loop,
        handover: Handover,
        settings: Settings,
        on_oom: Callable[[], OomCause | None],
        callables: Sequence[Handle] = (),
    ) -> None:
        self.handover = handover
        self.actuator = handover.actuator
        self._samples = 0
        self._finishing = False
        history = f"{handover.state}/history.db" if settings.history else ""
        self._messenger = Messenger(loop, settings, history, handover, self._note, callables)
        self.run = handover.as_run()
        self._history = History(loop, history, self.run, handover.caller, self._note)
        self.events = self._begin_events() if handover.events >= 0 else None
        self._engine = Engine(loop, settings, self._tell, self._sampled)
        self.subject = AgentSubject(self.run, handover, settings, self._note, on_oom, self.events)
        self.meter = self.subject.meter
        if self.events is not None:  # after the subject: a failing start reports its alert at once
            self.events.start(handover.pid, handover.terms.limits, handover.timeout)
        self.integrity = Integrity(loop, handover, self.meter, self._note, self.events)
        self._hearing = Hearing(loop, self._engine, self.subject, self.integrity.check_processes)
        again = partial(self._hearing.look, "memory")
        self.moving = Moving(loop, self._engine, self.subject, handover, act=self.act, again=again)
        if self._history.recorder is not None:
            self.subject.learning = Learning(self._history.recorder, settings, handover)
            self.subject.learning.ask(self.moving.predicted)
        self._hearing.begin(self.actuator.cgroup)
        if callables or any(handler.type != "terminal" for handler in settings.handlers):
            self._messenger.start()  # may report its own failure at once
        self.meter.read("events")
        self._engine.add(self.subject)
        if self.actuator.paced:
            self.subject.pacer = Pacer(loop, self.meter, self.actuator, self.act, HostWrites())

    def _begin_events(self) -> Events:
        from agentres.run.events import Events  # few ask for them

        events = Events(self.run, self._messenger.tell)
        self._messenger.begin_events(events.head)
        return events

    def let_end(self) -> None:
        """Thaw the agent, which was told to end, so that it can handle the signal."""
        if self.subject.let_end():
            self.act(Action.now("thaw", "agent", None, None, "command", "it was told to end"))

    def finish(self, conclude: Callable[[], Outcome]) -> Outcome:
        """Take the last sample, end the alerts, report the end, and wait for the history and the handlers."""
        self.meter.read("events")
        self._finishing = True
        if self.subject.pacer is not None:
            self.subject.pacer.close()
        self._engine.remove(self.subject, _ENDED)
        self._hearing.close()
        self.moving.end()
        self.actuator.lift_tripwire()
        self.integrity.close()
        self.meter.close()
        outcome = conclude().but(
            alerts_left_out=self.subject.left_out, moves_left_out=self._history.left_out
        )
        if self.events is not None and not self.events.end(outcome, self.meter.reading):
            self.handover.warn("--events: the end is not written: nobody takes it")
        self._messenger.close()
        self._engine.end(self.subject, _ENDED)  # ends an alert that close() has just raised
        if self.subject.learning is not None:
            self.subject.learning.finish(time.monotonic())
        trouble = self._history.end(outcome.exit_code)
        if trouble and not self.subject.states["history"]:  # found too late for an alert
            self.handover.warn(trouble)
        return outcome

    def act(self, action: Action) -> None:
        """Record an action that was carried out."""
        if self._history.act(action) and self.events is not None:
            self.events.acted(action)

    def _sampled(self, subject: Subject, when: float, sample: Sample) -> None:
        self._history.sample(when, sample)
        self._samples += 1
        if self._samples == _SETTLED:
            frugal.give_back()
        self.integrity.sampled()
        if self._samples > 1 and not self._finishing:
            self.subject.meanwhile(self._messenger.watch_host)
        self.subject.sampled(sample)

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] != "repeated":
            self._messenger.alert(event)
            if self.events is not None:
                self.events.alert(event)
        self._history.event(event)

    def _note(self, resource: str, value: float, detail: str, anew: bool = False) -> None:
        self._engine.note(self.subject, resource, value, detail, anew)
