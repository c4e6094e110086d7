"""When an agent does its part where memory is short, and asks again for what it wants itself."""

from __future__ import annotations

import time

from agentres.kernel.loop import Loop, Timer
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER
from agentres.run.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable


class Contender:
    """Has ``sharing`` contend when the slice's bell rings, and as often as it says.

    ``again`` is called afterwards where the agent wants more, ``settled`` where it does not.
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
        """Do nothing any more."""
        self._forget_timer()
        if self._sharing.bell.fd >= 0:
            self._loop.unwatch(self._sharing.bell.fd)

    def contend(self) -> None:
        """Do our part now."""
        wait = self._sharing.contend()
        self._forget_timer()
        if wait < NEVER:
            self._timer = self._loop.call_at(time.monotonic() + wait, self.contend)
        if self._sharing.wants:
            self._again()
        else:
            self._settled()

    def sampled(self) -> None:
        """A sample was taken: where no bell can be heard, that is when it looks."""
        if self._deaf:
            self.contend()

    def judged(self) -> None:
        """All that was read was judged: where no bell can be heard, who wants something looks soon."""
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
