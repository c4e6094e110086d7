"""Notes which processes of an agent were killed for memory, and whose limit that was; loaded only then, as few agents are killed."""

from __future__ import annotations

from agentres.kernel import tree
from agentres.model.figures import flat_keyed
from agentres.model.oom import OomCause, limits_met
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentres.kernel.kmsg import KernelLog
    from agentres.model.stats import OomKill

_KEPT = 100
"""How many kills are kept with their process, the last ones; the kernel counts all."""


class OomKills:
    """The kills for memory in the cgroup at ``path``, which the kernel log calls ``name``.

    The kernel log says whose limit was met.  Few may read it: for others the counts of the cgroups above tell.  ``before`` are
    these before the first kill (:func:`agentres.kernel.tree.local_events`); None: nobody has read them.
    """

    def __init__(
        self, kernel_log: KernelLog, path: str, name: str, before: Mapping[str, bytes] | None
    ) -> None:
        self._kernel_log = kernel_log
        self._path, self._name = path, name
        self._above = before
        self._oom = self._killed = 0
        self._named: Sequence[OomKill] = ()  # the last one that is not counted yet
        self.victims: tuple[OomKill, ...] = ()
        self.cause: OomCause | None = None
        """Why the last one was killed; None: none was counted."""

    def note(self, events: bytes) -> list[OomKill]:
        """Note the kills since the last call; return those that the kernel log names.  ``events`` is the text of memory.events."""
        # The log is read after the count: it names a process before the kernel counts it.
        found = self._kernel_log.oom_kills(self._name)
        self.victims = (*self.victims, *found)[-_KEPT:]
        self._named = (*self._named, *found)[-1:]
        counts = flat_keyed(events)
        oom, killed = (int(counts.get(key, 0)) for key in (b"oom", b"oom_kill"))
        if killed > self._killed:
            self.cause = self._why(oom > self._oom)
            self._oom, self._killed, self._named = oom, killed, ()
        return found

    def _why(self, own: bool) -> OomCause:
        """Return why the last one was killed; ``own``: the agent's own limit, or one inside of it, was met as well."""
        before, self._above = self._above, tree.local_events(self._path)
        for kill in self._named:
            return OomCause((kill.limit_cgroup,) if kill.limit_cgroup else (), kill.footprint)
        if own:
            return OomCause((self._name,))
        return OomCause(None if before is None else limits_met(before, self._above))
