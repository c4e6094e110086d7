"""Checks that an agent's limits stand as they were written, and that all its processes are inside of them."""

from __future__ import annotations

from agentres.kernel.drift import Drift
from agentres.kernel.loop import Loop
from agentres.kernel.meter import Meter
from agentres.model.record import TYPE_CHECKING
from agentres.run.explain import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentres.model.stats import EscapedProcess
    from agentres.run.events import Events
    from agentres.run.handover import Handover

    Note = Callable[[str, float, str, bool], None]

_READ_BACK_EVERY = 12
"""Samples between two comparisons of all limits, besides those that inotify asks for."""


class Integrity:
    """Checks on request and, until :meth:`close`, whenever the control file of a limit was written.

    ``note`` takes what was found (:meth:`agentres.watch.engine.Engine.note`); ``events``, if any, are told of escapes.
    """

    def __init__(
        self,
        loop: Loop,
        handover: Handover,
        meter: Meter,
        note: Note,
        events: Events | None,
    ) -> None:
        self._loop, self._escapes, self._meter = loop, handover.escapes, meter
        self._note, self._events = note, events
        self._samples = 0
        self._outside: set[int] = set()
        self.drift = Drift(handover.actuator)
        if self.drift.fd >= 0:
            loop.watch(self.drift.fd, self._limit_written)

    def close(self) -> None:
        """Stop watching the control files."""
        if self.drift.fd >= 0:
            self._loop.unwatch(self.drift.fd)
        self.drift.close()

    def sampled(self) -> None:
        """Check after a full sample: processes each time, limits every few samples."""
        self._samples += 1
        if self._samples % _READ_BACK_EVERY == 0:
            self.check_limits()
        self.check_processes()

    def check_limits(self) -> None:
        """Compare the limits that stand now with those that were set."""
        found = self.drift.rewritten()
        self._note("drift", len(found), "; ".join(found), False)

    def check_processes(self) -> None:
        """Look now for processes that have left the agent's cgroup."""
        self.note_escapes(self._escapes.look(self._meter.pids))

    def note_escapes(self, found: Sequence[EscapedProcess]) -> None:
        """Note the agent's processes that are outside of its cgroup."""
        outside = {each.pid for each in found}
        anew = not outside <= self._outside
        self._outside = outside
        self._note("escaped", len(found), escaped(found), anew)
        if self._events is not None:
            self._events.escaped(found)

    def _limit_written(self) -> None:
        self.drift.hear()
        self.check_limits()
        self._meter.read("limits")
