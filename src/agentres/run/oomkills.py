"""Notes which processes of an agent were killed for memory, and whose limit that was."""

from __future__ import annotations

import os

from agentres.kernel import ancestors
from agentres.model.figures import flat_keyed
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import OomCause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentres.kernel.kmsg import KernelLog
    from agentres.model.stats import OomCounts, OomKill

_KEPT = 100
"""How many kills are kept with their process, the last ones; the kernel counts all."""


class OomKills:
    """The kills for memory in the cgroup at ``path``, which the kernel log calls ``name``; ``events`` is an fd of its memory.events.

    The kernel log says whose limit was met.  Few may read it: for others the counts of the cgroups above tell.
    """

    def __init__(self, kernel_log: KernelLog, path: str, name: str, events: int) -> None:
        self._kernel_log = kernel_log
        self._path, self._name = path, name
        self._events = events
        self._oom = self._killed = 0
        self._above: OomCounts | None = None
        self._named: Sequence[OomKill] = ()  # the last one that is not counted yet
        self.victims: tuple[OomKill, ...] = ()
        self.cause: OomCause | None = None
        """Why the last one was killed; None: none was."""

    def begin(self) -> None:
        """Count how often the cgroups above have met their limits, to compare later."""
        self._above = ancestors.oom_counts(self._path)

    def note(self) -> list[OomKill]:
        """Note the kills since the last call; return those that the kernel log names."""
        counts = {} if self._events < 0 else flat_keyed(os.pread(self._events, 4096, 0))
        # After the count: the log names a process before the kernel counts it.
        found = self._kernel_log.oom_kills(self._name)
        self.victims = (*self.victims, *found)[-_KEPT:]
        self._named = (*self._named, *found)[-1:]
        oom, killed = (int(counts.get(key, 0)) for key in (b"oom", b"oom_kill"))
        if killed > self._killed:
            self.cause = self._why(oom > self._oom)
            self._oom, self._killed, self._named = oom, killed, ()
        return found

    def _why(self, own: bool) -> OomCause:
        """Return why the last one was killed; ``own``: the agent's own limit, or one inside of it, was met as well."""
        before = self._above
        if before is not None:
            self.begin()
        for kill in self._named:
            return OomCause((kill.limit_cgroup,) if kill.limit_cgroup else (), kill.footprint)
        if own:
            return OomCause((self._name,))
        if before is None or self._above is None:
            return OomCause(None)
        try:
            from agentres.model.oom import limits_met  # few agents are killed
        except ImportError:  # agentres was upgraded or removed meanwhile
            return OomCause(None)
        return OomCause(limits_met(before, self._above))
