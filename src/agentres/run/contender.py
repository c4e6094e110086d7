"""Decides when an agent does its part in contention for memory, and when it asks again for more."""

from __future__ import annotations

import time

from agentres.kernel.loop import Loop, Timer
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER
from agentres.run.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable


class Contender:
    """Calls :meth:`Sharing.contend` when the slice's bell rings, and as often as that asks for.

    Afterwards ``again`` is called if the agent wants more, else ``settled``.
    """

    def __init__(
        self, loop: Loop, sharing: Sharing, again: Callable[[], None], settled: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._sharing = sharing
        self._again = again
        self._settled = settled
        self._timer: Timer | None = None
        if sharing.bell.fd >= 0:
            loop.watch(sharing.bell.fd, self._bell_rang)

    def close(self) -> None:
        """Stop contending."""
        self._forget_timer()
        if self._sharing.bell.fd >= 0:
            self._loop.unwatch(self._sharing.bell.fd)

    def contend(self) -> None:
        """Do the agent's part now."""
        wait = self._sharing.contend()
        self._forget_timer()
        if wait < NEVER:
            self._timer = self._loop.call_at(time.monotonic() + wait, self.contend)
        if self._sharing.wants:
            self._again()
        else:
            self._settled()

    def sampled(self) -> None:
        """Contend after each sample if no bell can be heard."""
        if self._deaf:
            self.contend()

    def judged(self) -> None:
        """Contend soon if the agent wants more and no bell can be heard; called after a reading was judged."""
        if self._deaf and self._sharing.wants and self._timer is None:
            self._timer = self._loop.call_at(time.monotonic(), self.contend)

    @property
    def _deaf(self) -> bool:
        """Whether the kernel gave no inotify instance."""
        return self._sharing.bell.fd < 0

    def _bell_rang(self) -> None:
        self._sharing.bell.heard()
        self.contend()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
