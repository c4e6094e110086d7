"""Moves an agent's limits as decided, memory only as far as there is room, and reports each move.

:class:`~agentres.policy.elastic.Elastic` decides what the agent needs, :mod:`agentres.policy.contention` what the others
need from it; the :class:`~agentres.kernel.actuator.Actuator` writes.
"""

from __future__ import annotations

import time

from agentres.kernel import registry
from agentres.kernel.actuator import CONTENTION, PACING, Actuator
from agentres.kernel.loop import Loop
from agentres.model import log
from agentres.model.action import Action
from agentres.model.errors import AgentresError
from agentres.model.limits import NETWORKS
from agentres.model.record import TYPE_CHECKING
from agentres.policy.contention import Step, at_tripwire
from agentres.policy.elastic import Elastic, Terms, limit_of
from agentres.policy.prediction import Prediction
from agentres.policy.scaling import Move
from agentres.run.contender import Contender
from agentres.run.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.model.stats import Reading
    from agentres.run.handback import HandBack
    from agentres.watch.engine import MeterLike


class Mover:
    """Moves the limits of one agent by ``terms``; ``act`` gets every action.

    After each round of contention, ``again`` is called to look at the memory of an agent that wants more, ``settled`` for
    any other.  Either may be called in any turn of the loop until :meth:`close`.
    """

    def __init__(
        self,
        loop: Loop,
        terms: Terms,
        meter: MeterLike,
        actuator: Actuator,
        act: Callable[[Action], None],
        again: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        self._meter = meter
        self._actuator = actuator
        self._act = act
        self._up = terms.philosophy.up
        self._moves = terms.philosophy.moves
        self._ranges = terms.limits.ranges
        self._elastic = Elastic(terms, time.monotonic(), actuator.disks, actuator.fastest)
        self._refused: dict[str, object] = {}
        self._rests_until = 0.0
        self.sharing: Sharing | None = None
        self._contender: Contender | None = None
        self._handback: HandBack | None = None
        if (memory := terms.limits.ranges.get("memory")) is not None:
            # A limit that never moves must not be lowered for others: nothing would ever raise it again.
            standing = meter.reading.memory_limit
            least = memory.least if self._moves else standing or memory.most
            claim_mark = registry.ClaimMark(terms.priority, int(least), most=int(memory.most))
            self.sharing = Sharing(
                actuator.cgroup, terms.slice, terms.share, claim_mark, self.carry_out
            )
            self._contender = Contender(loop, self.sharing, again, settled)
            if terms.limits.swap != 0:
                from agentres.run.handback import HandBack

                self._handback = HandBack(loop, actuator, self.sharing, self._do)

    def close(self) -> None:
        """Stop moving limits, and let the others have what the agent had."""
        if self._handback is not None:
            self._handback.close()
        if self._contender is not None:
            self._contender.close()
        if self.sharing is not None:
            self.sharing.close()

    def rest(self, seconds: float) -> None:
        """Thaw the agent where it is frozen for others, and do not freeze it for them for ``seconds``."""
        self._rests_until = time.monotonic() + seconds
        if self._handback is not None:
            self._handback.stop()
        if self.frozen:
            self._freeze(False, "")

    @property
    def resources(self) -> list[str]:
        """The resources to look at."""
        return self._elastic.resources

    @property
    def frozen(self) -> bool:
        """Whether the agent is frozen for others."""
        return self.sharing is not None and CONTENTION in self._actuator.frozen_by

    @property
    def starved(self) -> bool:
        """Whether it was refused memory that it needs."""
        return self.sharing is not None and bool(self.sharing.wants)

    @property
    def short(self) -> str:
        """The memory that it was last refused, in words; empty: none."""
        if self.sharing is None:
            return ""
        return self.sharing.why if self.sharing.wants else self.sharing.was

    @property
    def why(self) -> str:
        """Why it is starved, or frozen for others, in words."""
        return self.sharing.why if self.sharing is not None else ""

    def ceiling(self, resource: str) -> float | None:
        """The most that the limit may become; None: it does not move."""
        return self._elastic.ceiling(resource)

    def wake_at(self) -> float | None:
        """The working set at which memory is raised, in bytes, for the tripwire; None: no raise to wait for."""
        if self.sharing is not None and self.sharing.released:
            return None
        return self._elastic.wake_at(self._meter.reading.memory_limit)

    # Called with what was read.

    def observe(
        self,
        resource: str,
        value: float | None,
        reading: Reading,
        now: float,
        notified: bool = False,
    ) -> float:
        """Take a value that was read, and make the moves that it calls for; return the seconds until the next look, at most."""
        enough = True
        if notified and self._handback is not None:
            self._handback.ran()
        for move in self._elastic.observe(resource, value, reading, now, notified):
            enough = False
            after = self._make(move)
            self._elastic.moved(time.monotonic(), move, after)
        if enough and resource == "memory" and value is not None:
            self._content()
        return self._elastic.due(resource, now)

    def sampled(self) -> None:
        """Take note that a full sample was taken."""
        if self._contender is not None:
            self._contender.sampled()
        if self._handback is not None:
            self._handback.sampled(self._meter.reading)

    def judged(self) -> None:
        """Take note that all that was read has been judged."""
        if self._contender is not None:
            self._contender.judged()

    def begin(self, predicted: Prediction) -> None:
        """Set the limits to what earlier runs predict, as far as limits and room allow by now."""
        for forecast in predicted.forecasts:
            key, start = forecast.resource, time.monotonic()
            before = self._standing(key)
            if key not in self._ranges or before is None or not self._moves:
                continue
            try:
                if key != "memory":
                    self._actuator.write(key, forecast.first)
                    after = forecast.first
                elif forecast.first > before:
                    assert self.sharing is not None
                    after = self.sharing.take(
                        int(before), int(forecast.first), self._actuator.write_memory
                    )
                else:
                    after = self._actuator.trim_memory(int(forecast.first))
            except (AgentresError, OSError) as error:
                self._refuse(key, before, forecast.first, "prediction", error, start)
                continue
            self._read_limit(key)
            self._act(
                Action.now(
                    "predict",
                    key,
                    before,
                    after,
                    "prediction",
                    forecast.why,
                    time.monotonic() - start,
                )
            )

    # Writes limits.

    def _make(self, move: Move) -> float:
        """Carry out a move as far as possible; return the limit that stands then."""
        start = time.monotonic()
        try:
            if move.resource != "memory":
                self._actuator.write(move.resource, move.after)
                after = move.after
            elif move.after > move.before:
                after = self._raise_memory(move)
            else:
                after = self._actuator.trim_memory(int(move.after))
        except (AgentresError, OSError) as error:
            self._refuse(move.resource, move.before, move.after, move.rule, error, start)
            return move.before
        self._refused.pop(move.resource, None)
        self._read_limit(move.resource)
        if after != move.before:
            kind = "raise" if after > move.before else "lower"
            self._act(
                Action.now(
                    kind,
                    move.resource,
                    move.before,
                    after,
                    move.rule,
                    move.why,
                    time.monotonic() - start,
                )
            )
            if kind == "lower" and move.resource == "memory" and self.sharing is not None:
                self.sharing.bell.ring()
        return after

    def _raise_memory(self, move: Move) -> int:
        assert self.sharing is not None
        before, wanted = int(move.before), int(move.after)
        if self._rests:  # it needs none; what is free goes to the agent that it was frozen for
            return before
        after = self.sharing.take(before, wanted, self._actuator.write_memory)
        if after == before or move.use >= self._up * after:
            short = not self.sharing.wants
            self.sharing.want(wanted, at_tripwire(after, int(move.use)))
            if short:
                why = self.sharing.why
                self._act(Action.now("throttle", "memory", before, after, "contention", why))
        else:
            self._content()
        return after

    @property
    def _rests(self) -> bool:
        """Whether it is idle, or frozen by anything but pacing, which is short."""
        by = self._actuator.frozen_by
        frozen = any(each != PACING for each in by) if by else self._meter.reading.cgroup_frozen
        return bool(frozen) or (self._handback is not None and self._handback.idle)

    def _content(self) -> None:
        """Tell the others that it has what it needs."""
        if self.sharing is not None and self.sharing.wants and not self.frozen:
            self.sharing.want(0)

    def carry_out(self, step: Step) -> bool:
        """Do what the others need from this agent; return whether anything was done."""
        assert self.sharing is not None
        if step.kind == "thaw" and not self.frozen:
            return False  # we did not freeze it: that is for whatever did
        if step.kind == "release" and self.sharing.released:
            return False
        if step.kind == "freeze" and time.monotonic() < self._rests_until:
            return False
        if step.kind != "reclaim":
            return self._do(step)
        if self._handback is None:  # we allow it no swap; something else has given it some
            self.sharing.keep()
        else:
            self._handback.ask(step)
        return False  # what the reclaim gives is reported when it is there

    def _do(self, step: Step) -> bool:
        assert self.sharing is not None
        start, before = time.monotonic(), self._meter.reading.memory_limit
        after, changed = before, False
        try:
            if step.kind in ("freeze", "thaw"):
                self._freeze(step.kind == "freeze", step.why if step.kind == "freeze" else "")
                changed = True
            elif step.kind == "release":
                self.sharing.why, changed = step.why, True
            if step.limit and before is not None:
                after = self._actuator.trim_memory(step.limit)
                self._read_limit("memory")
                changed = changed or after != before
        except (AgentresError, OSError) as error:
            self._refuse("memory", before, step.limit or before, "contention", error, start)
        if changed:
            self._act(
                Action.now(
                    step.kind,
                    "memory",
                    before,
                    after,
                    "contention",
                    step.why,
                    time.monotonic() - start,
                )
            )
        return changed

    def _freeze(self, frozen: bool, why: str) -> None:
        assert self.sharing is not None
        if frozen:
            self._actuator.freeze(CONTENTION, why)
        else:
            self._actuator.thaw(CONTENTION)
            if self._handback is not None:
                self._handback.stop()
        self.sharing.stopped(why)

    def _standing(self, key: str) -> float | None:
        limit = limit_of(key)
        return None if limit is None else limit(self._meter.reading)

    def _read_limit(self, key: str) -> None:
        """Read the limit that stands now, for what is judged next."""
        self._meter.read("network" if key in NETWORKS else "limits")

    def _refuse(
        self,
        resource: str,
        before: float | None,
        wanted: float | None,
        rule: str,
        error: Exception,
        start: float,
    ) -> None:
        """Report that a limit was refused; once for each cause, as it is tried again all the time."""
        log.debug(__name__, "%s stays at %s: %s", resource, before, error)
        cause = getattr(error, "errno", str(error))
        if self._refused.get(resource) != cause:
            self._refused[resource] = cause
            self._act(
                Action.now(
                    "refuse", resource, before, wanted, rule, str(error), time.monotonic() - start
                )
            )
