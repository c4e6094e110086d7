"""Moves memory of a frozen or idle agent to swap when others are short; loaded only if the agent may use swap.

:mod:`agentres.policy.contention` decides when and how much, :mod:`agentres.kernel.reclaim` waits for the kernel.
"""

from __future__ import annotations

import time

from agentres.kernel import registry
from agentres.kernel.reclaim import Reclaim
from agentres.model import log
from agentres.model.errors import ControlFileError
from agentres.model.record import TYPE_CHECKING
from agentres.policy.idle import Idle
from agentres.policy.tripwire import HEADROOM

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.actuator import Actuator
    from agentres.kernel.loop import Loop
    from agentres.model.stats import Reading
    from agentres.policy.contention import Step
    from agentres.run.sharing import Sharing

_AT_ONCE = 64 << 20
"""Bytes reclaimed in one step: the others get them before the next."""

_WITHIN = 30.0
"""Seconds that one step may take; after that the others are told to do without."""


class HandBack:
    """Hands back memory of the agent of ``actuator``.

    ``lower`` carries out a step once its memory is free, and returns whether it did anything.
    """

    def __init__(
        self, loop: Loop, actuator: Actuator, sharing: Sharing, lower: Callable[[Step], bool]
    ) -> None:
        self._loop, self._actuator, self._sharing, self._lower = loop, actuator, sharing, lower
        self._idle = Idle(time.monotonic())
        self._asked: Reclaim | None = None
        self._until = 0.0

    @property
    def idle(self) -> bool:
        """Whether the agent has not run for a while."""
        return self._idle.idle

    def sampled(self, reading: Reading) -> None:
        """Judge by a full sample whether the agent is idle."""
        # An agent that is frozen or waits at its tripwire does not run, and is not idle either.
        held = reading.cgroup_frozen or self._sharing.stuck
        usage = None if held else reading.usage_usec
        self._mark(self._idle.observe(time.monotonic(), usage))

    def ran(self) -> None:
        """Take note that the agent has run: the kernel notified of something that it did."""
        self._mark(self._idle.observe(time.monotonic(), None))

    def _mark(self, changed: bool) -> None:
        if changed:
            registry.mark_idle(self._actuator.cgroup.fd, self.idle)
            if self.idle:
                self._sharing.want(0)  # an idle agent does not need it
            elif not self._actuator.frozen_by:
                self.stop()

    def ask(self, step: Step) -> None:
        """Move some of its memory to swap and then lower its limit, at most down to the step's."""
        now = time.monotonic()
        if self._asked is not None:
            if now >= self._until:
                self._sharing.keep()  # the swap is stuck
            return
        if (excess := self._excess(step)) > 0:
            self._until = now + _WITHIN
            path, size = self._actuator.cgroup.path, min(excess, _AT_ONCE)
            self._asked = Reclaim(self._loop, path, size, lambda had: self._had(step, had))
        else:
            self._lower(step)

    def stop(self) -> None:
        """Stop a reclaim that is under way: the agent goes on."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None

    def close(self) -> None:
        """Stop, and take back the idle mark."""
        self.stop()
        if self.idle:
            registry.mark_idle(self._actuator.cgroup.fd, False)

    def _had(self, step: Step, all_of_it: bool) -> None:
        self._asked = None
        if not all_of_it:
            self._sharing.keep()
        # Lower as far as possible now: what is not in swap yet is for the next step.
        if self._lower(step.but(limit=step.limit + max(0, self._excess(step)))):
            self._sharing.bell.ring()

    def _excess(self, step: Step) -> int:
        try:
            return self._actuator.in_use + HEADROOM - step.limit
        except ControlFileError as error:  # it has just ended
            log.debug(__name__, "%s", error)
            return 0
