"""All agents of the host, now and in the recent past, for a dashboard.

A :class:`Fleet` keeps the control files of every agent open.  Each look returns an immutable
:class:`Picture`.  It reads the cgroup tree and the history, and writes nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentres.companion.hostsample import host_sample
from agentres.kernel import host, network, registry, tree
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.meter import Meter
from agentres.kernel.registry import RunningAgent
from agentres.model import log
from agentres.model.errors import AgentresError, ControlFileError, NotEnforceable
from agentres.model.figures import parse_limit
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.policy.capacity import Claim, free
from agentres.policy.resources import EVENT, RATE, RESOURCES
from agentres.readers.marks import MarkedWrites
from agentres.store import AlertRow, Store

KEPT = 60
"""Number of looks whose figures are kept for each agent."""

DRAWN = ("cpu", "memory", "disk_read", "disk_write", "network_in", "network_out", "pids", "fds",
         "cpu_pressure", "memory_pressure", "io_pressure")  # fmt: skip
"""The figures of an agent, by the names that resources have in rules (docs/configuration.md)."""


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent in a picture.

    ``figures`` are in the units of :data:`agentres.policy.resources.RESOURCES`: cores, bytes, bytes a second,
    counts, the share of time stalled; None: not known.  A rate is the mean since the look before.  ``limits`` have the
    same units; None: no limit.  ``tripwire`` is memory.high in bytes.  ``philosophy`` is "" until the agent is watched.
    ``recent`` has the last figures of each name, newest last.
    """

    agent: RunningAgent
    user: str
    state: str
    priority: int | None
    philosophy: str
    figures: Mapping[str, float | None]
    limits: Mapping[str, float | None]
    tripwire: int | None
    recent: Mapping[str, Sequence[float | None]]
    alerts: tuple[AlertRow, ...] = ()

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.agent.name

    @property
    def severity(self) -> Severity | None:
        """The highest severity among its open alerts that nobody has acknowledged."""
        open_ones = [a.last_severity for a in self.alerts if a.acknowledged is None]
        return max(open_ones, default=None)


@dataclass(frozen=True, slots=True)
class Slice:
    """The memory budget that the agents of one slice share, in bytes; ``path`` is relative to the mount."""

    path: str
    budget: int
    allocated: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The result of a look below ``mount``; ``time`` in unix seconds.  ``host`` has figures like an agent's.

    ``trouble`` says why the alerts cannot be read; "": they were.
    """

    mount: str
    time: float
    agents: tuple[AgentStatus, ...]
    slices: tuple[Slice, ...]
    host: Mapping[str, float | None]
    host_limits: Mapping[str, float | None]
    trouble: str = ""


class Fleet:
    """Looks at the agents below the cgroup2 ``mount``.

    ``history`` opens the history, which has the alerts.  ``share`` is the budget's share of the host.  ``own`` is a slice
    that is shown even if no agent runs in it ("": none).  Tests can replace ``look_at_host`` and ``now`` (unix seconds).
    """

    def __init__(
        self,
        mount: str,
        history: Callable[[], Store],
        share: float,
        own: str = "",
        look_at_host: Callable[[], Sample] = host_sample,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._mount = mount
        self._history = history
        self._share = share
        self._own = own
        self._look_at_host = look_at_host
        self._now = now
        self._meters: dict[tuple[str, float], _AgentMeter] = {}
        self._host = _Rates()

    def look(self) -> Picture:
        """Read everything once."""
        now = self._now()
        running = {(agent.path, agent.started): agent for agent in registry.running(self._mount)}
        for gone in self._meters.keys() - running.keys():
            self._meters.pop(gone).close()
        places = {os.path.dirname(agent.home) for agent in running.values()}
        claims = {path: tree.claims(path) for path in sorted(places | {self._own} - {""})}
        by_path = {claim.path: claim for among in claims.values() for claim in among}
        alerts, cgroups, trouble = self._alerts()
        agents = []
        for key, agent in running.items():
            try:
                meter = self._meters.get(key)
                if meter is None:
                    meter = self._meters[key] = _AgentMeter(agent)
                own = tuple(alert for alert in alerts if _is_about(alert, agent, cgroups))
                agents.append(meter.look(now, by_path.get(agent.path), own))
            except (OSError, ControlFileError) as error:  # it has just ended
                log.debug(__name__, "no figures of %s: %s", agent.name, error)
        sample = self._look_at_host()
        return Picture(
            self._mount,
            now,
            tuple(agents),
            tuple(self._slice(path, among) for path, among in claims.items()),
            self._host.figures(now, sample),
            _limits(sample),
            trouble,
        )

    def now(self) -> float:
        """Return the time in unix seconds."""
        return self._now()

    def close(self) -> None:
        """Close the files."""
        for meter in self._meters.values():
            meter.close()
        self._meters.clear()

    def _slice(self, path: str, claims: Sequence[Claim]) -> Slice:
        machine = host.read()
        budget = tree.budget(path, machine.memory, self._share)
        taken, used = sum(claim.taken for claim in claims), sum(claim.use for claim in claims)
        below = path.removeprefix(self._mount) or "/"
        return Slice(below, budget.limit, taken, used, free(budget, claims))

    def _alerts(self) -> tuple[list[AlertRow], dict[str, str], str]:
        """Return the open alerts, the cgroup of each run that has not ended, and why that failed ("": it did not)."""
        try:
            with self._history() as store:
                runs = store.runs(of="agent", since=self._now())
                return store.alerts(open_only=True), {run.id: run.cgroup for run in runs}, ""
        except AgentresError as error:
            return [], {}, str(error)


@dataclass(slots=True)
class _Rates:
    """Makes figures from successive samples: a rate is how fast a counter rose between two of them."""

    at: float = 0.0
    counters: dict[str, float | None] = field(default_factory=dict)

    def figures(self, now: float, sample: Sample) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        passed = now - self.at
        for name in DRAWN:
            resource = RESOURCES[name]
            value = resource.raw(sample)
            if resource.kind == RATE:
                before, self.counters[name] = self.counters.get(name), value
                known = before is not None and value is not None and value >= before and passed > 0
                value = (value - before) / passed if known else None  # type: ignore[operator]
            found[name] = value
        self.at = now
        return found


class _AgentMeter:
    """One agent's open files, and its recent figures."""

    def __init__(self, agent: RunningAgent) -> None:
        self._agent = agent
        self._user = registry.user_name(agent.uid)
        self._network: network.Network | None = None
        cgroup = Cgroup(agent.path)
        try:
            self._network = network.find(cgroup)
        except NotEnforceable as error:  # only root can read it, or nothing is counted
            log.debug(__name__, "no network of %s: %s", agent.name, error)
        finally:
            cgroup.close()
        self._meter = Meter(agent.path, network=self._network, writeback=MarkedWrites(agent.path))
        self._rates = _Rates()
        self._recent: dict[str, deque[float | None]] = {name: deque(maxlen=KEPT) for name in DRAWN}

    def look(self, now: float, claim: Claim | None, alerts: tuple[AlertRow, ...]) -> AgentStatus:
        self._meter.sample()
        sample = self._meter.read("limits")
        figures = self._rates.figures(now, sample)
        for name, value in figures.items():
            self._recent[name].append(value)
        state = "unknown"
        if claim is not None:
            state = "unsupervised" if claim.orphan else claim.state
        return AgentStatus(
            agent=self._agent,
            user=self._user,
            state=state,
            priority=None if claim is None else claim.priority,
            philosophy=registry.philosophy(self._agent.path),
            figures=figures,
            limits=_limits(sample),
            tripwire=self._tripwire(),
            recent={name: tuple(values) for name, values in self._recent.items()},
            alerts=alerts,
        )

    def _tripwire(self) -> int | None:
        try:
            with open(f"{self._agent.path}/memory.high", "rb") as file:
                return parse_limit(file.read())
        except FileNotFoundError:  # no memory controller
            return None

    def close(self) -> None:
        self._meter.close()
        if self._network is not None:
            self._network.close()


def _is_about(alert: AlertRow, agent: RunningAgent, cgroups: Mapping[str, str]) -> bool:
    """Return whether an open alert is of this run: another user's agent, or an earlier run with no end, may have the same name."""
    if alert.of != "agent" or alert.agent != agent.name or alert.raised < agent.started - 1.0:
        return False
    return cgroups.get(alert.run, agent.path) == agent.path


def _limits(sample: Sample) -> dict[str, float | None]:
    return {
        name: resource.limit(sample)
        for name, resource in RESOURCES.items()
        if resource.kind != EVENT and resource.limit is not None
    }
