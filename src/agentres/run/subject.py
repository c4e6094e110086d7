"""The agent as the engine sees it: what is read of it moves its limits, is learnt from, and is judged."""

from __future__ import annotations

import time

from agentres.kernel import process
from agentres.kernel.actuator import COMMAND, Actuator
from agentres.model.errors import ControlFileError
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER, format_size
from agentres.policy import stall, tripwire
from agentres.policy.settings import Settings
from agentres.policy.tripwire import ROOM
from agentres.watch.engine import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.meter import Meter
    from agentres.model.stats import Sample
    from agentres.run.learning import Learning
    from agentres.run.mover import Mover
    from agentres.run.pacer import Pacer
    from agentres.store import Run

_STALLED_LOOK = 1.0
"""Seconds between two looks at one that may be getting nowhere."""

_LIFTED_SECONDS = 60.0
"""For how long there is no tripwire after one has held an agent up."""


class AgentSubject(Subject):
    """Has its limits moved by ``mover``, its disk rates held by ``pacer``, and is learnt from by ``learning``, where there are such.

    ``note`` takes a state that no meter reads (:meth:`agentres.watch.engine.Engine.note`); ``on_full`` is called as soon as the limit on
    memory was met, and told whether a process was killed for that, before an alert is.
    """

    meter: Meter

    def __init__(
        self,
        run: Run,
        meter: Meter,
        actuator: Actuator,
        settings: Settings,
        since: float,
        note: Callable[[str, float, str], None],
        on_full: Callable[[bool], None],
    ) -> None:
        super().__init__(run.id, run.name, "agent", meter, settings, since)
        self._actuator = actuator
        self._note = note
        self._on_full = on_full
        self._met = self._kills = 0
        self._without_tripwire = False
        self._stall = stall.Stall()
        self._lifted_until = 0.0
        self.mover: Mover | None = None
        self.pacer: Pacer | None = None
        self.learning: Learning | None = None
        self.event = False
        """Set while a notification of the kernel's is served."""

    @property
    def starved(self) -> bool:
        """Whether it was refused memory that it needs."""
        return bool(self.states["starved"])

    def observed(self, resource: str, value: float | None, reading: Sample, now: float) -> float:
        if resource == "memory" and self.learning is not None:
            self.learning.memory(reading, self.starved)
        if resource == "nofile" and value is not None:
            name = process.name(self.meter.most_open)
            self.detail["nofile"] = f"{name} (pid {self.meter.most_open})" if name else ""
        if resource == "oom_kill":
            self.note_full(reading)
        if resource == "memory_pressure":
            return self._break_stall(reading, now)
        if self.mover is None:
            return NEVER
        return self.mover.observe(resource, value, reading, now, self.event)

    def note_full(self, reading: Sample) -> None:
        """Take how often the limit on memory was met, and how many were killed for that."""
        met, kills = reading.memory_max or 0, reading.memory_oom_kill or 0
        if met > self._met or kills > self._kills:
            killed = kills > self._kills
            self._met, self._kills = met, kills
            self._on_full(killed)

    def ceiling(self, resource: str) -> float | None:
        highest = None if self.mover is None else self.mover.ceiling(resource)
        return highest or super().ceiling(resource)

    def settled(self) -> None:
        """All that was read has been judged: say how it stands, and move the tripwire to the next threshold."""
        mover = self.mover
        if mover is not None:
            mover.judged()
        starved = mover is not None and mover.starved
        self._state("starved", starved, mover.why if mover is not None else "")
        if mover is not None and mover.frozen:
            self._state("frozen", True, mover.why)
        elif self.meter.reading.cgroup_frozen and not self.is_pausing():
            by = self._actuator.frozen_by.get(COMMAND)
            self._state("frozen", True, by or "somebody wrote cgroup.freeze")
        else:
            self._state("frozen", False, "")
        self._move_tripwire()

    def is_pausing(self) -> bool:
        """Whether it is frozen, on its pacer's account alone."""
        if self.pacer is None or COMMAND in self._actuator.frozen_by:
            return False
        return self.pacer.is_pausing(time.monotonic())

    def _state(self, resource: str, holds: bool, why: str) -> None:
        if self.states[resource] != holds:
            self._note(resource, int(holds), why)

    def _break_stall(self, reading: Sample, now: float) -> float:
        """Let an agent go on that nobody gives memory and nobody takes any from; the seconds until the next look."""
        seconds = self._stall.observe(now, reading.memory_full_usec, reading.working_set)
        # One that is short waits for others, which are asked (agentres.policy.contention); a frozen one waits for its thaw.
        if not seconds or self.starved or self.meter.reading.cgroup_frozen:
            self._state("stalled", False, "")
            return NEVER
        if seconds >= stall.DEADLINE and not self.states["stalled"]:
            self._note("stalled", 1, self._let_go(now))
        return _STALLED_LOOK

    def _let_go(self, now: float) -> str:
        """Have nothing of ours hold it; what did, in words."""
        try:
            high = self._actuator.lift_high()
        except ControlFileError as error:
            return f"what holds it is not known: {error}"
        self._lifted_until = now + _LIFTED_SECONDS
        if high:
            return f"memory.high stood at {format_size(int(high))}, and was lifted"
        limit = self.meter.reading.memory_limit
        at = f"its own limit, {format_size(limit)}," if limit is not None else "none of its own"
        return f"by {at} or by one above it: the kernel takes memory back, and has not killed"

    def _move_tripwire(self) -> None:
        if time.monotonic() < self._lifted_until:
            return
        reading = self.meter.reading
        current, used = reading.memory_current, reading.working_set
        if current is None or used is None or self._without_tripwire:
            return
        thresholds = [watch.next_threshold for watch in self.watches.get("memory", ())]
        wake = None if self.mover is None else self.mover.wake_at()
        ahead = min((t for t in (*thresholds, wake) if t is not None), default=None)
        room = None if wake is None else ROOM
        height = tripwire.height(ahead, current, used, reading.memory_limit, room)
        if tripwire.moved(self._actuator.tripwire, height):
            self._without_tripwire = not self._actuator.set_tripwire(height)
