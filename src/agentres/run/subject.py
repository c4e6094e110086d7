"""The agent as the engine sees it: what is read from it moves its limits, is learnt from, and is judged by rules."""

from __future__ import annotations

import time

from agentres.kernel import process, registry
from agentres.kernel.actuator import COMMAND, PACING
from agentres.kernel.meter import Meter
from agentres.kernel.writeback import Writeback
from agentres.model import log
from agentres.model.errors import ControlFileError
from agentres.model.limits import EVERY_DISK
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER, format_size
from agentres.policy import stall, tripwire
from agentres.policy.settings import Settings
from agentres.policy.tripwire import HEADROOM
from agentres.watch.engine import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.space import Space
    from agentres.model.oom import Footprint, OomCause
    from agentres.model.stats import Reading, Sample
    from agentres.run.events import Events
    from agentres.run.fullness import Fullness
    from agentres.run.handover import Handover
    from agentres.run.learning import Learning
    from agentres.run.mover import Mover
    from agentres.run.pacer import Pacer
    from agentres.store import Run

_STALLED_LOOK = 1.0
"""Seconds between two looks at an agent that may be stalled."""

_LIFTED_SECONDS = 60.0
"""Seconds without a tripwire after one has stalled an agent."""

_ENDS_WITHIN = 5.0
"""Seconds for which an agent that was told to end is neither paused (its debt is paced afterwards) nor frozen for others."""


class AgentSubject(Subject):
    """The agent as a subject of the engine, with the meter that reads it.

    Each may be None: ``mover`` moves its limits, ``pacer`` holds its disk rates, ``learning`` learns from it, ``events`` tell programs.
    ``note`` takes a state that no meter reads (:meth:`agentres.watch.engine.Engine.note`).  ``on_oom`` is called as soon as a process
    was killed for memory, before the alert about it (:class:`agentres.run.fullness.Fullness`).
    """

    meter: Meter

    def __init__(
        self,
        run: Run,
        handover: Handover,
        settings: Settings,
        note: Callable[[str, float, str], None],
        on_oom: Callable[[], OomCause | None],
        events: Events | None,
    ) -> None:
        self._actuator = actuator = handover.actuator
        meter = Meter(
            actuator.cgroup.path,
            network=actuator.network,
            writeback=Writeback(actuator.disks.get(EVERY_DISK, ())),
            nofile=handover.terms.limits.nofile,
            peaks=True,
        )
        meter.read("limits")
        super().__init__(run.id, run.name, "agent", meter, settings, handover.started)
        self._note = note
        self._on_oom = on_oom
        self._fullness: Fullness | None = None
        self._met = self._kills = 0
        self._without_tripwire = False
        self._stall = stall.Stall()
        self._lifted_until = 0.0
        self._let_end = False
        self.mover: Mover | None = None
        self.pacer: Pacer | None = None
        self.learning: Learning | None = None
        self._events = events
        self._space: Space | None = None
        if "space" in self.watches:
            from agentres.kernel.space import Space  # few have a rule about it

            self._space = Space(handover.directory, handover.uid == 0)
        # What observed() needs, whatever the rules are about.  Engine goes through `watches` in this order.  They may come
        # before the mover's: no limit moves by them; they go by the reading, and by what settled() noted after the last one.
        self.follow("memory_pressure", handover.started)
        self.follow("oom_kill", None)

    @property
    def starved(self) -> bool:
        """Whether it was refused memory that it needs."""
        return bool(self.states["starved"])

    @property
    def short(self) -> str:
        """The memory that it was last refused, in words; empty: none."""
        return "" if self.mover is None else self.mover.short

    @property
    def footprint(self) -> Footprint | None:
        """What was in its cgroup when the memory limit was last met; None: it was not met."""
        return None if self._fullness is None else self._fullness.footprint

    @property
    def writes(self) -> dict[str, int | None]:
        """The bytes that its processes read from disks and dirtied, and those not billed; ``paused_usec`` is how long it was paused."""
        reading = self.meter.reading
        return {
            "read_bytes": reading.read_bytes,
            "dirtied_bytes": reading.dirtied_bytes,
            "unbilled_bytes": reading.unbilled_bytes,
            "paused_usec": None if self.pacer is None else round(self.pacer.seconds * 1e6),
        }

    def value(self, resource: str, now: float) -> float | None:
        if resource == "space" and self._space is not None:
            self.states["space"] = used = self._space.look(self.meter.pids)
            if any(each.alert or used >= each.rule.levels[0][1] for each in self.watches["space"]):
                self.detail["space"] = self._space.describe(
                    self.meter.reading, self.meter.memory_stat
                )
        return super().value(resource, now)

    def observed(
        self, resource: str, value: float | None, reading: Reading, now: float, notified: bool
    ) -> float:
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
        return self.mover.observe(resource, value, reading, now, notified)

    def note_full(self, reading: Reading) -> None:
        """Take from a reading how often the memory limit was met, and how many processes were killed for it."""
        met, kills = reading.memory_max or 0, reading.memory_oom_kill or 0
        if met > self._met or kills > self._kills:
            killed = kills > self._kills
            self._met, self._kills = met, kills
            self._full(killed)

    def _full(self, killed: bool) -> None:
        """Note what memory held when its limit was met, before an alert about it."""
        if self._fullness is None:
            try:
                from agentres.run.fullness import Fullness
            except ImportError as error:  # agentres was upgraded or removed meanwhile
                log.debug(__name__, "what its memory consists of is not known: %s", error)
                self._on_oom()
                return
            self._fullness = Fullness(self.meter, self._on_oom)
        if text := self._fullness.note(killed):
            self.detail["oom_kill"] = text

    def ceiling(self, resource: str) -> float | None:
        highest = None if self.mover is None else self.mover.ceiling(resource)
        return highest or super().ceiling(resource)

    def settled(self) -> None:
        """Note the agent's states after a reading was judged, and move the tripwire to the next threshold."""
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
        if self._events is not None:
            self._events.judged(self.meter.reading)

    def sampled(self, sample: Sample) -> None:
        """Pass on a full sample: its writes to the tree, all of it to learning, its time to the mover."""
        counts = (sample.read_bytes, sample.dirtied_bytes, sample.unbilled_bytes)
        registry.mark_writes(self._actuator.cgroup.fd, *counts)
        if self.learning is not None:
            self.learning.sampled(sample, time.monotonic(), self.starved)
        if self.mover is not None:
            self.mover.sampled()

    def meanwhile(self, call: Callable[[], None]) -> None:
        """Call something that takes long, in the next pause if the agent is paced (:meth:`agentres.run.pacer.Pacer.meanwhile`)."""
        if self.pacer is None:
            call()
        else:
            self.pacer.meanwhile(call)

    def let_end(self) -> bool:
        """Thaw the agent, which was told to end; the first time also pause and freeze it no more for a while.  Return whether it was frozen."""
        if not self._let_end:
            self._let_end = True
            for holds in (self.pacer, self.mover):
                if holds is not None:
                    holds.rest(_ENDS_WITHIN)
        was_frozen = bool(self._actuator.frozen_by.keys() - {PACING})
        try:
            self._actuator.thaw()
        except ControlFileError as error:  # it has just ended
            log.debug(__name__, "not thawed: %s", error)
            return False
        return was_frozen

    def note_end(self) -> None:
        """Read what the main process wrote until its end, and whether memory was full, while /proc still has it."""
        self.meter.read("disk")
        self.note_full(self.meter.read("events"))

    def is_pausing(self) -> bool:
        """Whether it is frozen by its pacer alone."""
        if self.pacer is None or COMMAND in self._actuator.frozen_by:
            return False
        return self.pacer.is_pausing(time.monotonic())

    def _state(self, resource: str, holds: bool, why: str) -> None:
        if self.states[resource] != holds:
            self._note(resource, int(holds), why)

    def _break_stall(self, reading: Reading, now: float) -> float:
        """Lift memory.high for a stalled agent, if nobody raises its limit and it frees nothing; return the seconds until the next look."""
        seconds = self._stall.observe(now, reading.memory_full_usec, reading.working_set)
        # A starved agent waits for others, which are asked (agentres.policy.contention); a frozen one for its thaw.
        if not seconds or self.starved or self.meter.reading.cgroup_frozen:
            self._state("stalled", False, "")
            return NEVER
        if seconds >= stall.DEADLINE and not self.states["stalled"]:
            self._note("stalled", 1, self._let_go(now))
        return _STALLED_LOOK

    def _let_go(self, now: float) -> str:
        """Lift memory.high; return what held the agent up, in words."""
        try:
            high = self._actuator.lift_high()
        except ControlFileError as error:
            return f"what holds it is not known: {error}"
        self._lifted_until = now + _LIFTED_SECONDS
        if high:
            return f"memory.high stood at {format_size(int(high))}, and was lifted"
        try:
            from agentres.kernel import ancestors  # few agents stall
            from agentres.run import exhaustion
        except ImportError as error:  # agentres was upgraded or removed meanwhile
            return f"what holds it is not known: {error}"
        return exhaustion.stalled(ancestors.full_limits(self.meter.path), self.meter.path)

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
        headroom = None if wake is None else HEADROOM
        height = tripwire.height(ahead, current, used, reading.memory_limit, headroom)
        if tripwire.moved(self._actuator.tripwire, height):
            self._without_tripwire = not self._actuator.set_tripwire(height)
