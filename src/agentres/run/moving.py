"""Keeps the mover of an agent, and replaces it when its limits are set by command (``agentres set``)."""

from __future__ import annotations

from agentres.kernel.loop import Loop
from agentres.model.action import Action
from agentres.model.record import TYPE_CHECKING
from agentres.policy.elastic import Terms
from agentres.policy.resources import RESOURCES
from agentres.run.mover import Mover
from agentres.run.subject import AgentSubject
from agentres.watch.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.policy.prediction import Prediction
    from agentres.run.handover import Handover


class Moving:
    """Gives ``agent`` its mover until :meth:`end`; ``terms`` are the current ones, at first those of ``handover``.

    ``act`` gets every action, ``again`` looks at the agent's memory.
    """

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        agent: AgentSubject,
        handover: Handover,
        *,
        act: Callable[[Action], None],
        again: Callable[[], None],
    ) -> None:
        self._loop, self._engine, self._agent = loop, engine, agent
        self._actuator = handover.actuator
        self._act, self._again = act, again
        self.terms = handover.terms
        self._begin(handover.started)

    def _begin(self, since: float | None) -> None:
        """Make a mover where limits move; ``since`` is time.monotonic() when the counters were 0; None: not known."""
        if not self.terms.limits.ranges:
            return
        agent = self._agent
        agent.mover = Mover(
            self._loop, self.terms, agent.meter, self._actuator, self._act, self._again, agent.settled
        )  # fmt: skip
        for resource in agent.mover.resources:
            agent.follow(resource, since)

    def end(self) -> None:
        """Stop moving limits."""
        if self._agent.mover is not None:
            self._agent.mover.close()
            self._agent.mover = None

    def predicted(self, predicted: Prediction) -> None:
        """Start from what earlier runs used, if limits still move: a command may have set fixed ones meanwhile."""
        if self._agent.mover is not None:
            self._agent.mover.begin(predicted)

    def anew(self, terms: Callable[[], Terms]) -> None:
        """Replace the terms by what ``terms`` returns; it is called while no limit moves.

        An error that it raises is passed on, and the limits move as before.
        """
        self.end()
        try:
            self.terms = terms()
        finally:
            self._agent.meter.read("limits")  # the limits that stand now
            self._begin(None)
            if (mover := self._agent.mover) is not None:
                # Look now at what the new mover follows.
                groups = {RESOURCES[each].group for each in mover.resources}
                self._engine.look(self._agent, *groups)
