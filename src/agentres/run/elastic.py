"""The elastic limits of one agent: what its scalers ask for is written, memory as far as there is any.

Everything that is done is told as an action: what, from, to, by which rule, why, and how long it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from agentres.kernel import registry
from agentres.kernel.actuator import CONTENTION, FIGURES, IO, PAGE, Actuator
from agentres.model import log
from agentres.model.errors import AgentresError
from agentres.model.limits import NETWORKS, Limits
from agentres.model.record import TYPE_CHECKING, Record
from agentres.policy.contention import Step, at_tripwire
from agentres.policy.prediction import Prediction
from agentres.policy.scaling import Move, Philosophy, Scaler
from agentres.run.sharing import Sharing

if TYPE_CHECKING:
    from typing import Any

FOLLOWS = {
    "memory": "memory",
    "cpu": "cpu",
    "pids": "pids",
    "io_read": "disk_read",
    "io_write": "disk_write",
    "io_read_iops": "disk_read",
    "io_write_iops": "disk_write",
    "net_in": "network_in",
    "net_out": "network_out",
}
"""Which resource is looked at for a limit (:data:`agentres.policy.resources.RESOURCES`)."""

_GRAINS = {"cpu": 0.01, "memory": PAGE}

_RATE_SECONDS = 0.1
"""A rate is over as much time at the least."""

_NETWORK_SECONDS = 0.5
"""Between two looks at an elastic rate of the network: the kernel tells nobody that one is met."""

_UNBILLED = "unbilled"
_NEVER = float("inf")


class Terms(Record):
    """What an agent may have: ``limits`` with their ranges, and how they move.

    ``share`` is the agents' part of the host, ``slice`` the cgroup that holds all their homes.
    """

    limits: Limits
    philosophy: Philosophy
    priority: int
    share: float
    slice: str


class Elastic:
    """Moves an agent's limits by what is read of it.

    ``values`` are its meter's, ``read`` has one of the meter's groups read anew; ``actuator`` writes, and ``act`` gets
    every action as a dict of primitives (docs/history.md).
    """

    def __init__(
        self,
        terms: Terms,
        values: Mapping[str, Any],
        read: Callable[[str], None],
        actuator: Actuator,
        act: Callable[[dict[str, Any]], None],
    ) -> None:
        self._actuator = actuator
        self._values = values
        self._read = read
        self._up = terms.philosophy.up
        self._moves = terms.philosophy.moves
        self._ranges = terms.limits.ranges
        self._act = act
        now = time.monotonic()
        self._scalers: dict[str, list[Scaler]] = {}
        for key, between in terms.limits.ranges.items():
            scaler = Scaler(key, terms.philosophy, between, now, _GRAINS.get(key, 1))
            self._scalers.setdefault(FOLLOWS[key.partition("=")[0]], []).append(scaler)
        self._before: dict[str, tuple[float, dict[str, int]]] = {}
        self._rates: dict[str, float] = {}
        self._periods = (0, 0)
        self._packets: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, object] = {}
        self.sharing: Sharing | None = None
        if (memory := terms.limits.ranges.get("memory")) is not None:
            # What never moves cannot be given back: nobody would ever raise it again.
            least = memory.least if self._moves else values["memory_limit"] or memory.most
            claimed = registry.ClaimMark(terms.priority, int(least), most=int(memory.most))
            self.sharing = Sharing(
                actuator.cgroup, terms.slice, terms.share, claimed, self._carry_out
            )
        self.event = False
        """Set while a notification of the kernel's is served."""

    def close(self) -> None:
        if self.sharing is not None:
            self.sharing.close()

    @property
    def frozen(self) -> bool:
        """Whether the agent is frozen for others."""
        return CONTENTION in self._actuator.frozen_by

    @property
    def resources(self) -> list[str]:
        """The resources that are to be looked at."""
        return list(self._scalers)

    # What a look brings.

    def observed(self, resource: str, value: float | None, now: float) -> float:
        """Take a value, and move what is to be moved; seconds until the next look at the latest."""
        soonest = _NEVER
        for scaler in self._scalers.get(resource, ()):
            use, limit, felt = self._figures(scaler.resource, value, now)
            move = scaler.observe(now, use, limit, felt, self.event)
            if move is not None:
                after = self._make(move)
                scaler.moved(time.monotonic(), move, after)
            elif scaler.resource == "memory" and use is not None:
                self._content()
            soonest = min(soonest, scaler.due(now))
            if scaler.resource in NETWORKS:
                soonest = min(soonest, _NETWORK_SECONDS)
        return soonest

    def begin(self, predicted: Prediction) -> None:
        """Start from what earlier runs used, as far as that goes by now."""
        for forecast in predicted.forecasts:
            key, start = forecast.resource, time.monotonic()
            before = self._values[FIGURES[key]]
            if key not in self._ranges or before is None or not self._moves:
                continue
            try:
                if key != "memory":
                    self._actuator.write(key, forecast.first)
                    after = forecast.first
                elif forecast.first > before:
                    assert self.sharing is not None
                    after = self.sharing.take(
                        before, int(forecast.first), self._actuator.write_memory
                    )
                else:
                    after = self._actuator.trim_memory(int(forecast.first))
            except (AgentresError, OSError) as error:
                self._refuse(key, before, forecast.first, "prediction", error, start)
                continue
            self._read_limit(key)
            self._tell("predict", key, before, after, "prediction", forecast.why, start)

    def wake_at(self) -> float | None:
        """The working set at which memory is to be raised, for the tripwire; None: nothing to wait for."""
        limit = self._values["memory_limit"]
        for scaler in self._scalers.get("memory", ()):
            if limit is not None and not (self.sharing is not None and self.sharing.released):
                height: float | None = scaler.wake_at(limit)
                return height
        return None

    def ceiling(self, resource: str) -> float | None:
        """What the limit may become at the most, where it is elastic."""
        for scaler in self._scalers.get(resource, ()):
            if scaler.resource == resource:
                return scaler.range.most
        return None

    def _figures(
        self, key: str, value: float | None, now: float
    ) -> tuple[float | None, float | None, float]:
        """What is used, the limit, and how much of the time it was felt."""
        if key in NETWORKS:
            limit, early = self._values[FIGURES[key]], self._early(key)
            # A few packets at once are early at any rate: it is felt where the rate is reached besides.
            met = value is not None and limit is not None and value >= self._up * limit
            return value, limit, early if met else 0.0
        if key in FIGURES:
            felt = self._throttled() if key == "cpu" else 0.0
            return value, self._values[FIGURES[key]], felt
        limit = self._actuator.fastest(key)
        return self._fastest(key, now), None if limit is None else float(limit), 0.0

    def _throttled(self) -> float:
        """The part of the periods since the last look in which cpu.max was met."""
        periods, met = self._values["nr_periods"] or 0, self._values["nr_throttled"] or 0
        before, self._periods = self._periods, (periods, met)
        return (met - before[1]) / (periods - before[0]) if periods > before[0] else 0.0

    def _early(self, key: str) -> float:
        """The part of the packets since the last look that were held back or dropped."""
        way = "rx" if key == "net_in" else "tx"
        passed, delayed, dropped = (
            self._values[f"{way}_{name}"] or 0
            for name in ("packets", "delayed_packets", "dropped_packets")
        )
        before, self._packets[key] = self._packets.get(key, (0, 0)), (passed + dropped, delayed + dropped)  # fmt: skip
        all_now, early_now = self._packets[key]
        return (early_now - before[1]) / (all_now - before[0]) if all_now > before[0] else 0.0

    def _fastest(self, key: str, now: float) -> float | None:
        """The rate of the one of these disks that was used most since the last look."""
        if self._values["disks"] is None:
            return None
        kind, _, name = key.partition("=")
        at = IO[kind][1]
        totals = {disk[0]: disk[at] for disk in self._values["disks"]}
        if key == "io_write":  # to which disk that went nobody can tell
            totals[_UNBILLED] = self._values["unbilled_bytes"] or 0
        then, before = self._before.get(key, (now, {}))
        if then < now < then + _RATE_SECONDS:  # a request or two in that: noise, and no rate
            return self._rates.get(key)
        self._before[key] = (now, totals)
        if now <= then:
            return None
        more = [
            totals.get(device, 0) - before.get(device, 0) for device in self._actuator.disks[name]
        ]
        unbilled = totals.get(_UNBILLED, 0) - before.get(_UNBILLED, 0)
        self._rates[key] = rate = float(max(more, default=0) + unbilled) / (now - then)
        return rate

    # What is written.

    def _make(self, move: Move) -> float:
        """Carry a move out as far as may be; what stands then."""
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
            self._tell(kind, move.resource, move.before, after, move.rule, move.why, start)
            if kind == "lower" and move.resource == "memory" and self.sharing is not None:
                self.sharing.bell.ring()
        return after

    def _raise_memory(self, move: Move) -> int:
        assert self.sharing is not None
        before, wanted = int(move.before), int(move.after)
        if self.frozen:  # what there is goes to whom it was frozen for
            return before
        after = self.sharing.take(before, wanted, self._actuator.write_memory)
        if after == before or move.use >= self._up * after:
            short = not self.sharing.wants
            self.sharing.want(wanted, at_tripwire(after, int(move.use)))
            if short:
                self._tell("throttle", "memory", before, after, "contention", self.sharing.why, time.monotonic())  # fmt: skip
        else:
            self._content()
        return after

    def _content(self) -> None:
        """It has what it needs."""
        if self.sharing is not None and self.sharing.wants and not self.frozen:
            self.sharing.want(0)

    def _carry_out(self, step: Step) -> bool:
        """What the others need of this agent; whether anything was done."""
        assert self.sharing is not None
        start, before = time.monotonic(), self._values["memory_limit"]
        if step.kind == "thaw" and not self.frozen:
            return False  # it was not us: whoever did knows why
        if step.kind == "release" and self.sharing.released:
            return False
        after, done = before, False
        try:
            if step.kind in ("freeze", "thaw"):
                self._freeze(step.kind == "freeze", step.why if step.kind == "freeze" else "")
                done = True
            elif step.kind == "release":
                self.sharing.why, done = step.why, True
            if step.limit and before is not None:
                after = self._actuator.trim_memory(step.limit)
                self._read_limit("memory")
                done = done or after != before
        except (AgentresError, OSError) as error:
            self._refuse("memory", before, step.limit or before, "contention", error, start)
        if done:
            self._tell(step.kind, "memory", before, after, "contention", step.why, start)
        return done

    def _freeze(self, frozen: bool, why: str) -> None:
        assert self.sharing is not None
        if frozen:
            self._actuator.freeze(CONTENTION, why)
        else:
            self._actuator.thaw(CONTENTION)
        self.sharing.stopped(why)

    def _read_limit(self, key: str) -> None:
        """Have what stands now among the values, for what is judged next."""
        self._read("network" if key in NETWORKS else "limits")

    def _refuse(
        self,
        resource: str,
        before: float | None,
        wanted: float | None,
        rule: str,
        error: Exception,
        start: float,
    ) -> None:
        """Tell that the kernel refused a limit; once, as it is tried again all the time."""
        log.debug(__name__, "%s stays at %s: %s", resource, before, error)
        cause = getattr(error, "errno", str(error))
        if self._refused.get(resource) != cause:
            self._refused[resource] = cause
            self._tell("refuse", resource, before, wanted, rule, str(error), start)

    def _tell(
        self,
        kind: str,
        resource: str,
        before: float | None,
        after: float | None,
        rule: str,
        why: str,
        start: float,
    ) -> None:
        took = time.monotonic() - start
        named = {"kind": kind, "resource": resource, "before": before, "after": after}
        self._act({**named, "time": time.time(), "rule": rule, "why": why, "took": took})
