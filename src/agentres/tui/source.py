"""All that the dashboard reads from the host and does there, in one class that tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from agentres.kernel import process
from agentres.kernel.registry import RunningAgent
from agentres.model.errors import AgentresError
from agentres.readers import client
from agentres.readers.curves import Curves, curves
from agentres.readers.fleet import Fleet, Picture
from agentres.store import ActionRow, AlertRow, Store

_ACTIONS = 10
_ALERTS = 10


@dataclass(frozen=True, slots=True)
class Process:
    """A process of an agent: ``cpu`` in cores since the look before (None: none), ``memory`` its RSS in bytes."""

    pid: int
    user: str
    cpu: float | None
    memory: int
    threads: int
    command: str


@dataclass(frozen=True, slots=True)
class Detail:
    """The details of one agent; what could not be read is empty, and ``trouble`` says why.

    ``answer`` is its supervisor's answer to ``show`` (docs/control.md).
    """

    answer: Mapping[str, Any]
    curves: Curves | None
    processes: tuple[Process, ...]
    actions: tuple[ActionRow, ...]
    alerts: tuple[AlertRow, ...]
    trouble: tuple[str, ...]

    @staticmethod
    def absent(why: str) -> Detail:
        """Return empty details, with the reason."""
        return Detail({}, None, (), (), (), (why,))


class Source:
    """The real host; ``history(write)`` opens the history, ``who`` is the name that acknowledges alerts."""

    def __init__(self, fleet: Fleet, history: Callable[[bool], Store], who: str) -> None:
        self._fleet = fleet
        self._history = history
        self._who = who
        self._known: dict[int, psutil.Process] = {}

    def look(self) -> Picture:
        """Return a picture of all agents now."""
        return self._fleet.look()

    def now(self) -> float:
        """Return the time in unix seconds."""
        return self._fleet.now()

    def detail(self, agent: RunningAgent) -> Detail:
        """Return the details of the agent."""
        trouble = list[str]()
        answer: Mapping[str, Any] = {}
        try:
            answer = client.ask(agent, "show")["agent"]
        except AgentresError as error:
            trouble.append(str(error))
        drawn: Curves | None = None
        actions: tuple[ActionRow, ...] = ()
        alerts: tuple[AlertRow, ...] = ()
        try:
            with self._history(False) as store:
                here = [
                    run
                    for run in store.runs(agent.name, "agent", since=self._fleet.now())
                    if run.cgroup == agent.path and run.started >= agent.started - 1.0
                ]
                if here:  # else the runs are another user's, or this one has just begun
                    run = here[0].id
                    drawn = curves(store.samples(run, now=self._fleet.now()))
                    actions = tuple(store.actions(run_id=run, limit=_ACTIONS))
                    rows = store.alerts(agent=agent.name, since=agent.started - 1.0)
                    alerts = tuple(alert for alert in rows if alert.run == run)[:_ALERTS]
        except AgentresError as error:
            trouble.append(str(error))
        return Detail(answer, drawn, tuple(self._processes(agent)), actions, alerts, tuple(trouble))

    def command(self, agent: RunningAgent, verb: str, **fields: object) -> None:
        """Have the agent's supervisor do something, and wait until it is done; AgentresError."""
        client.ask(agent, verb, client.PATIENCE, client.BEGINNING, **fields)

    def stop(self, agent: RunningAgent, grace: float) -> None:
        """End the agent, and wait until it is gone; AgentresError."""
        client.ask(agent, "stop", None, grace=grace)
        client.wait_until_gone(agent)

    def acknowledge(self, alerts: Sequence[AlertRow], why: str) -> None:
        """Acknowledge the alerts, unless somebody else already has; AgentresError."""
        with self._history(True) as store:
            for alert in alerts:
                if store.alert(alert.id).acknowledged is None:
                    store.acknowledge(alert.id, self._who, why, time.time())

    def close(self) -> None:
        """Close what is open."""
        self._fleet.close()

    def _processes(self, agent: RunningAgent) -> list[Process]:
        found, known = [], dict[int, psutil.Process]()
        try:
            pids = process.below(agent.path)
        except OSError:  # the agent has made its cgroup unreadable
            pids = []
        for pid in pids:
            one = self._known.get(pid)
            try:
                new = one is None or not one.is_running()
                if one is None or new:
                    one = psutil.Process(pid)
                known[pid] = one
                with one.oneshot():
                    percent = one.cpu_percent()
                    found.append(
                        Process(
                            pid, one.username(), None if new else percent / 100,
                            one.memory_info().rss, one.num_threads(),
                            " ".join(one.cmdline()) or f"[{one.name()}]",
                        )
                    )  # fmt: skip
            except psutil.Error:  # it has just ended, or we may not read it
                continue
        self._known = known
        return sorted(found, key=lambda one: (-(one.cpu or 0.0), one.pid))
