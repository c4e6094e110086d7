"""Holds an agent to its disk rates where the kernel does not: freezes it until it is no longer ahead of them.

The kernel bills writes to a file that belongs to others to those (:mod:`agentres.policy.writeback`).  Without an io
controller it bills nothing, and reads are paced as well.
"""

from __future__ import annotations

import time

from agentres.kernel.actuator import PACING, Actuator
from agentres.kernel.loop import Loop
from agentres.model import log
from agentres.model.action import Action
from agentres.model.errors import ControlFileError
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import format_duration, format_rate, format_size
from agentres.policy.writeback import IN_DEBT, LATEST, LeakyBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentres.kernel.loop import Timer
    from agentres.kernel.meter import Meter
    from agentres.kernel.writeback import HostWrites
    from agentres.model.stats import Reading

_ASLEEP, _SLEEPS = 0.1, 1.0
"""Seconds between two looks at a sleeping agent; seconds without running after which it counts as sleeping."""

_WAITED = 0.01
"""The next look is awaited here if it is due in at most so many seconds: in the loop something could delay it."""

_FRUGAL, _BUSY = 50, 3
"""The least interval between looks as a multiple of their cost: at an agent that writes nothing (2 % of a processor), and at one that does."""

_WHOLE = 0.5
"""Seconds after which the agent's figures are read even if nobody has written."""

_LITTLE = 4
"""If the whole host has written less than a burst divided by this, the agent's figures are not read."""

_QUIET = 2.0
"""Seconds without a pause after which the pauses are reported in sum, and the next one is reported anew."""

_WHY = "ahead of its disk rate"
_LONG_AGO = float("-inf")


class _Flow:
    """A rate that is held: its bucket, and the unbilled bytes (``reported``) at the last report of pauses."""

    def __init__(self, key: str, rate: int, now: float, billed: int, unbilled: int) -> None:
        self.key, self.rate = key, rate
        self.bucket = LeakyBucket(rate, now, billed, unbilled)
        self.reported = self.ahead = unbilled
        self.pauses, self.paused = 0, 0.0


class Pacer:
    """Paces one agent, whose figures ``meter`` reads; ``act`` gets every action.

    It holds the rates in :attr:`Actuator.paced <agentres.kernel.actuator.Actuator.paced>`, at their current limits.  ``host`` counts the writes
    of the whole host, and is closed with the pacer.
    """

    def __init__(
        self,
        loop: Loop,
        meter: Meter,
        actuator: Actuator,
        act: Callable[[Action], None],
        host: HostWrites,
    ) -> None:
        self._loop, self._meter, self._actuator, self._act = loop, meter, actuator, act
        self._host, self._host_wrote = host, 0
        self._whole_at = _LONG_AGO
        self._cost = self._glance = 0.0005
        self._flows: dict[str, _Flow] = {}
        self._first = True
        self._usage: int | None = None
        self._ran_at = _LONG_AGO
        self._timer: Timer | None = None
        self._thawed_at = _LONG_AGO
        self._failed = False
        self._waiting: Callable[[], None] | None = None
        self.seconds = 0.0
        """Seconds that the agent was frozen in all."""
        self._look()
        self._first = False

    def close(self) -> None:
        """Stop pacing."""
        if self._timer is not None:
            self._timer.cancel()
        self._thaw()
        self._tell_ends(float("inf"))
        self._host.close()

    def rest(self, seconds: float) -> None:
        """Let the agent run for ``seconds``."""
        if self._timer is not None:
            self._timer.cancel()
        self._thaw()
        self._after(seconds, self._look)

    def meanwhile(self, call: Callable[[], None]) -> None:
        """Call something that takes long: in the next pause if the agent is paced, as it could write on meanwhile; else now."""
        if any(flow.pauses for flow in self._flows.values()):
            self._waiting = call
        else:
            call()

    def is_pausing(self, now: float) -> bool:
        """Whether the pacer freezes the agent, or did a moment ago: the kernel's notification comes a little later."""
        return PACING in self._actuator.frozen_by or now < self._thawed_at + _ASLEEP

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timer = self._loop.call_at(time.monotonic() + seconds, call)

    def _look(self) -> None:
        now, paced = time.monotonic(), self._actuator.paced
        rates = {key: rate for key in paced if (rate := self._actuator.paced_rate(key)) is not None}
        for key in self._flows.keys() - rates.keys():
            self._tell_end(self._flows.pop(key))
        usage = self._meter.read("cpu").usage_usec
        if usage is None or usage != self._usage:
            self._usage, self._ran_at = usage, now
        if not rates or (self._ran_at != now and PACING not in self._actuator.frozen_by):
            # An agent that has not run has dirtied nothing; one that waits for a disk may run again at once.
            self._thaw()
            self._tell_ends(now)
            self._after(self._rest(now) if rates else _ASLEEP, self._look)
            return
        if self._nobody_wrote(now, rates):
            self._thaw()  # if it was frozen, then for a rate that no longer holds
            for flow in self._flows.values():
                flow.bucket.rest(now)
            self._tell_ends(now)
            look = min(flow.bucket.latest for flow in self._flows.values())
            self._glance = _took(now, self._glance)
            self._after(max(look, _FRUGAL * self._glance), self._look)
            return
        reading = self._meter.read("disk")
        freeze, look, writes, longest = 0.0, LATEST, False, ""
        for key, rate in rates.items():
            unbilled, billed = self._figures(key, reading)
            if unbilled is None:  # cannot be read; the meter reports that
                continue
            if key not in self._flows:
                # What was written before there was a rate does not count.
                self._flows[key] = _Flow(key, rate, now, *((0, 0) if self._first else (billed, unbilled)))  # fmt: skip
            flow = self._flows[key]
            flow.rate = flow.bucket.rate = rate
            writes, flow.ahead = writes or unbilled > flow.ahead, unbilled
            turn = flow.bucket.observe(now, billed, unbilled)
            if turn.freeze > freeze:
                freeze, longest = turn.freeze, key
            look = min(look, turn.look)
        took = self._cost = _took(now, self._cost)
        if not freeze:
            self._thaw()
            self._tell_ends(now)
            self._after(max(look, (_BUSY if writes else _FRUGAL) * took), self._look)
        elif self._freeze(self._flows[longest], freeze := max(freeze, _BUSY * took)):
            self._after(freeze, lambda: self._go_on(look))
            if self._waiting is not None:
                call, self._waiting = self._waiting, None
                call()
        else:
            self._after(_ASLEEP, self._look)

    def _nobody_wrote(self, now: float, rates: Mapping[str, int]) -> bool:
        """Whether the agent's figures need no reading, which costs more with more processes: nothing is ahead, and the host wrote little."""
        before, flows = self._host_wrote, self._flows
        try:
            self._host_wrote = self._host.count("io_read" in rates)
        except (OSError, ValueError):  # not known
            return False
        if (
            flows.keys() != rates.keys()
            or any(flow.rate != rates[key] or flow.bucket.level for key, flow in flows.items())
            or now >= self._whole_at + max(_WHOLE, _FRUGAL * self._cost)
            or self._host_wrote - before
            > min(flow.bucket.burst for flow in flows.values()) / _LITTLE
        ):
            self._whole_at = now
            return False
        self._host_wrote = before
        return True

    def _rest(self, now: float) -> float:
        """Seconds until the next look at an agent that has not run since the last."""
        if any(flow.bucket.level > flow.bucket.burst for flow in self._flows.values()):
            return IN_DEBT
        latest = min((flow.bucket.latest for flow in self._flows.values()), default=LATEST)
        return latest if now < self._ran_at + _SLEEPS else min(_ASLEEP, 4 * latest)

    def _figures(self, key: str, reading: Reading) -> tuple[int | None, int]:
        """Return the bytes that are not billed to the agent, and those that are."""
        if self._actuator.io_held:
            return reading.unbilled_bytes, reading.billed_bytes or 0
        return reading.dirtied_bytes if key == "io_write" else reading.read_bytes, 0

    def _freeze(self, flow: _Flow, seconds: float) -> bool:
        """Freeze the agent, and report the first of a series of pauses; return False if it cannot be frozen."""
        if PACING not in self._actuator.frozen_by:
            try:
                if self._is_frozen_by_somebody():
                    return False  # our thaw would undo that
                self._actuator.freeze(PACING, _WHY)
            except (OSError, ControlFileError) as error:
                if not self._failed:
                    self._failed = True
                    self._tell("refuse", flow, f"it cannot be paused: {error}", 0.0)
                return False
        if not flow.pauses:
            self._tell("pace", flow, self._what(flow), seconds)
        flow.pauses += 1
        flow.paused += seconds
        self.seconds += seconds
        return True

    def _go_on(self, look: float) -> None:
        """Thaw the agent, and look again after ``look`` seconds; if that is soon, wait here and freeze it for the look."""
        self._thaw()
        if look > _WAITED:
            self._after(look, self._look)
            return
        time.sleep(look)
        try:
            if not self._is_frozen_by_somebody():
                self._actuator.freeze(PACING, _WHY)
        except (OSError, ControlFileError) as error:  # it has ended
            log.debug(__name__, "%s", error)
        self._look()

    def _thaw(self) -> None:
        if PACING not in self._actuator.frozen_by:
            return
        try:
            self._actuator.thaw(PACING)
        except ControlFileError as error:  # it has ended
            log.debug(__name__, "%s", error)
        self._thawed_at = time.monotonic()

    def _is_frozen_by_somebody(self) -> bool:
        return self._actuator.cgroup.freeze and not self._actuator.frozen_by

    def _tell_ends(self, now: float) -> None:
        """Report the sum of the pauses since the last report, if there was none for a while."""
        if now >= self._thawed_at + _QUIET:
            for flow in self._flows.values():
                self._tell_end(flow)

    def _tell_end(self, flow: _Flow) -> None:
        if flow.pauses:
            times = "once" if flow.pauses == 1 else f"{flow.pauses} times"
            why = f"paused {times}, for {format_duration(flow.paused)}: {self._what(flow)}"
            self._tell("pace", flow, why, flow.paused)
            flow.reported, flow.pauses, flow.paused = flow.ahead, 0, 0.0

    def _what(self, flow: _Flow) -> str:
        size, rate = format_size(flow.ahead - flow.reported), format_rate(flow.rate)
        done = "written" if flow.key == "io_write" else "read"
        where = "to files that belong to others" if self._actuator.io_held else "without an io controller"  # fmt: skip
        return f"{size} {done} {where}, at {rate}"

    def _tell(self, kind: str, flow: _Flow, why: str, took: float) -> None:
        self._act(Action.now(kind, flow.key, flow.rate, flow.rate, "writeback", why, took))


def _took(began: float, before: float) -> float:
    """Return the seconds that a look costs, at most twice the last: a look may have had to wait for a processor."""
    return min(time.monotonic() - began, 2 * before)
