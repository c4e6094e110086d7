"""Notes what was in an agent's memory when its limit was met; loaded only then, as few agents meet it."""

from __future__ import annotations

import time

from agentres.kernel import footprint
from agentres.kernel.meter import Meter
from agentres.model import log
from agentres.model.oom import Footprint, OomCause
from agentres.model.record import TYPE_CHECKING
from agentres.run import exhaustion

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY = 5.0
"""Seconds between two looks while the limit is met again and again: each look reads every process."""


class Fullness:
    """The contents of memory, of the agent that ``meter`` reads, when it was full.

    ``on_oom`` is called when a process was killed for that; it returns why.
    """

    def __init__(self, meter: Meter, on_oom: Callable[[], OomCause | None]) -> None:
        self._meter = meter
        self._on_oom = on_oom
        self._at = -_EVERY
        self.footprint: Footprint | None = None
        """The contents the last time; None: not known."""

    def note(self, killed: bool) -> str:
        """Note what memory held when its limit was met, with a process ``killed`` or not; return why it was killed, and that, in words."""
        cause = self._on_oom() if killed else None
        found = self._look(killed, None if cause is None else cause.footprint)
        whose = "" if cause is None else exhaustion.whose(cause.limits, self._meter.path)
        held = exhaustion.held(found) if killed and found is not None else ""
        return "; ".join(filter(None, (whose, held)))

    def _look(self, killed: bool, known: Footprint | None) -> Footprint | None:
        now = time.monotonic()
        lately = now - self._at < _EVERY
        if lately and not killed:
            return None
        before = self.footprint if lately else None
        try:
            found = known or footprint.read(
                self._meter.path, self._meter.pids, self._meter.memory_stat
            )
        except OSError as error:  # the cgroup is gone, or has no memory.stat
            log.debug(__name__, "what its memory consists of is not known: %s", error)
            return None
        if known is None:
            if before and footprint.total(before.kinds) > footprint.total(found.kinds):
                found = before  # the killed process is gone by now
            limit = self._meter.read("limits").memory_limit or 0
            if footprint.total(found.kinds) < limit / 2:
                return None  # what filled it is gone too, unseen
        self.footprint, self._at = found, now
        return found
