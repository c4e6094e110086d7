"""A host of agents for the dashboard, as folders and a history: always the same, moved on by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_slice import MIB, FakeSlice, keep_attributes
from told import event

from agentres.kernel import host, network, process, registry
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.registry import ClaimMark, RunningAgent
from agentres.model.errors import AgentresError
from agentres.model.limits import Host
from agentres.model.stats import Sample
from agentres.readers.curves import curves
from agentres.readers.fleet import Fleet
from agentres.store import ActionRow, AlertRow, Store
from agentres.tui.source import Detail, Process, Source

BEGIN = 1_600_000_000.0
"""When the first look is, unix seconds: a day that no clock shows any more."""

GIB = 1024 * MIB

_AGENTS: Mapping[str, dict[str, Any]] = {
    "planner": {
        "use": 800 * MIB,
        "limit": GIB,
        "cpu": "200000 100000",
        "claimed": ClaimMark(wants=2 * GIB),
    },
    "fixer": {"use": 310 * MIB, "limit": 512 * MIB, "cpu": "100000 100000"},
    "crawler": {"use": 60 * MIB, "limit": 256 * MIB, "frozen": True},
    "trainer": {"use": 5 * GIB // 2, "limit": 3 * GIB, "claimed": ClaimMark(priority=400)},
    "lost": {"use": 20 * MIB, "limit": 256 * MIB, "supervised": False},
    "patient": {"use": 0, "limit": "max", "claimed": ClaimMark(wants=2 * GIB)},
}


class Rates(NamedTuple):
    """What an agent does in each second: microseconds of CPU and bytes; and the tasks and open files that it has."""

    cpu: int = 0
    read: int = 0
    write: int = 0
    received: int = 0
    sent: int = 0
    tasks: int = 0
    files: int = 0


_RATES = {
    "planner": Rates(1_800_000, 20_000, 1_200_000, 350_000, 42_000, 34, 180),
    "fixer": Rates(250_000, 3_400_000, 40_000, 0, 0, 7, 61),
    "crawler": Rates(tasks=3, files=12),
    "trainer": Rates(3_100_000, 85_000_000, 9_000_000, 12_500_000, 730_000, 1500, 4321),
    "lost": Rates(10_000, tasks=1, files=4),
    "patient": Rates(tasks=1, files=3),
}


class Traffic:
    """The network of an agent, counted since it began: stands in for :class:`agentres.kernel.network.Network`."""

    def __init__(self, host: RecordedHost, rates: Rates) -> None:
        self._host, self._rates = host, rates

    def figures(self) -> dict[str, int | None]:
        counted = dict.fromkeys(network.FIELDS[:-2], 0)  # all but the limits
        counted["rx_bytes"] = int(self._rates.received * self._host.passed)
        counted["tx_bytes"] = int(self._rates.sent * self._host.passed)
        return {**counted, "net_in_limit": None, "net_out_limit": None}

    def close(self) -> None:
        pass


def pretend(folder: Path, patch: pytest.MonkeyPatch) -> RecordedHost:
    """The recorded host in this folder, and all that is asked of the kernel elsewhere as it would be there."""
    keep_attributes(folder, patch)
    patch.setattr(host, "read", lambda: Host(cpus=8, memory=16 * GIB))
    patch.setattr(registry, "user_name", lambda uid: "dev")
    recorded = RecordedHost(Path(os.path.realpath(folder)))
    names = list(_RATES)

    def find(cgroup: Cgroup) -> Traffic:
        name = Path(cgroup.path).parent.name.removeprefix("agentres-").removesuffix(".scope")
        return Traffic(recorded, _RATES.get(name, Rates()))

    def open_files(pid: int) -> int:
        return _RATES[names[pid]].files

    patch.setattr(network, "find", find)
    patch.setattr(process, "open_files", open_files)
    return recorded


class RecordedHost:
    """The host: :meth:`go_on` lets time pass in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = str(folder / "history.db")
        self.slice = FakeSlice(folder / "tree")
        self.slice.limit(memory=6 * GIB)
        self.now = BEGIN
        self.done: list[tuple[Any, ...]] = []
        self.command = ["python", "agent.py"]
        for name, given in _AGENTS.items():
            path = self.slice.agent(name, started=BEGIN - 600, **given)
            registry.mark_philosophy(str(path), "balanced")
        self._count()

    def path(self, name: str) -> Path:
        """The cgroup of an agent."""
        return self.slice.path / f"agentres-{name}.scope/agent"

    def go_on(self, seconds: float = 2.0) -> None:
        """Let so many seconds pass."""
        self.now += seconds
        self._count()

    @property
    def passed(self) -> float:
        """Seconds since the agents began."""
        return self.now - BEGIN + 600

    def _count(self) -> None:
        for pid, (name, rates) in enumerate(_RATES.items()):
            if (path := self.path(name)).exists():
                self._write(path, pid, rates)

    def _write(self, path: Path, pid: int, rates: Rates) -> None:
        used, periods = int(rates.cpu * self.passed), int(10 * self.passed)
        stalled = int(min(rates.tasks, 300) * 1000 * self.passed)
        limit = (path / "memory.max").read_text()
        pressure = "".join(
            f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n"
            for kind, total in (("some", stalled), ("full", stalled // 2))
        )
        files = {
            "cpu.stat": f"usage_usec {used}\nuser_usec {used}\nsystem_usec 0\n"
            f"nr_periods {periods}\nnr_throttled {periods // 4}\nthrottled_usec {periods * 5000}\n",
            "io.stat": f"8:0 rbytes={int(rates.read * self.passed)} wbytes={int(rates.write * self.passed)} "
            "rios=0 wios=1 dbytes=0 dios=0\n",
            "pids.current": f"{rates.tasks}\n",
            "pids.max": "4096\n" if rates.tasks > 512 else "512\n",
            "pids.events": "max 0\n",
            "pids.events.local": "max 0\n",
            "cgroup.stat": "nr_descendants 1\n",
            "main/cgroup.procs": f"{pid}\n",
            "memory.high": limit if limit == "max\n" else f"{int(limit) * 7 // 8}\n",
            **{f"{kind}.pressure": pressure for kind in ("cpu", "memory", "io")},
        }
        (path / "main").mkdir(exist_ok=True)
        for file, text in files.items():
            (path / file).write_text(text)

    def tell(self) -> None:
        """Have alerts of two agents in the history, and what was done with a limit."""
        store = Store.open(self.history)
        message = "memory of planner is at 78% of its limit"
        store.record(event("raised", "01", BEGIN - 60, agent="planner", message=message))
        more = {"severity": "CRITICAL", "message": "cpu of trainer is \x1b[31mat its limit"}
        store.record(event("raised", "02", BEGIN - 30, agent="trainer", resource="cpu", **more))
        store.act(
            {
                "run": "aaaa0001", "agent": "planner", "time": BEGIN - 20, "resource": "memory",
                "kind": "raise", "before": 1.0, "after": 2.0, "rule": "up", "why": "w", "took": None,
            }
        )  # fmt: skip
        store.close()

    def source(self) -> Source:
        """What the dashboard asks."""
        fleet = Fleet(
            str(self.slice.mount), lambda: Store.open(self.history, write=False), 0.8,
            own=str(self.slice.path), look_at_host=self._host, now=lambda: self.now,
        )  # fmt: skip
        return Recorded(self, fleet)

    def _host(self) -> Sample:
        return Sample(
            usage_usec=int((self.now - BEGIN) * 5.2e6), cpu_limit=8.0,
            working_set=7 * GIB, memory_limit=16 * GIB,
        )  # fmt: skip


class Recorded(Source):
    """Supervisors that note what they are asked, and refuse for ``lost``."""

    def __init__(self, recorded: RecordedHost, fleet: Fleet) -> None:
        super().__init__(fleet, lambda write: Store.open(recorded.history, write=write), "me")
        self._host = recorded

    def command(self, agent: RunningAgent, verb: str, **fields: object) -> None:
        self._host.go_on()
        if agent.name == "lost":
            raise AgentresError("nobody supervises lost: it takes no commands")
        self._host.done.append((verb, agent.name, fields))
        if verb in ("freeze", "thaw"):
            frozen = int(verb == "freeze")
            path = self._host.path(agent.name)
            (path / "cgroup.freeze").write_text(f"{frozen}\n")

    def stop(self, agent: RunningAgent, grace: float) -> None:
        self._host.done.append(("stop", agent.name, grace))

    def acknowledge(self, alerts: Sequence[AlertRow], why: str) -> None:
        super().acknowledge(alerts, why)
        self._host.done.append(("acknowledge", [alert.id for alert in alerts], why))

    def detail(self, agent: RunningAgent) -> Detail:
        if agent.name == "lost":
            return Detail.absent("nobody supervises lost: it takes no commands")
        samples = [
            (
                BEGIN + at,
                Sample(
                    usage_usec=at * 900_000, cpu_limit=2.0,
                    working_set=(300 + 80 * at % 400) * MIB, memory_limit=GIB,
                    memory_current=500 * MIB,
                ),
            )
            for at in range(20)
        ]  # fmt: skip
        action = ActionRow(
            seq=1, time=BEGIN - 20, run="aaaa0001", agent=agent.name, kind="raise",
            resource="memory", rule="up", before=512.0 * MIB, after=float(GIB),
            why="use of 390 MiB reached 75% of 512 MiB", values="", took=0.001,
        )  # fmt: skip
        processes = [
            Process(
                4000 + at,
                "dev",
                0.5 / (at + 1),
                (80 - at) * MIB,
                2,
                " ".join([*self._host.command, f"--worker={at}"]),
            )
            for at in range(20)
        ]
        answer = {
            "name": agent.name, "started": agent.started, "frozen": False, "frozen_by": "",
            "command": self._host.command, "main": 4000, "supervisor": 3999, "priority": 100,
            "philosophy": "moderate", "cgroup": agent.path.replace(str(self._host.slice.mount), "/sys/fs/cgroup"), "drift": "", "escaped": "",
            "used": {
                "working_set": 300 * MIB, "swap_current": 0, "pids_current": 20, "rx_bytes": None,
                "tx_bytes": None, "usage_usec": 12_000_000,
            },
            "limits": {
                "memory": {"standing": GIB, "range": [64 * MIB, 2 * GIB], "from": "--memory"},
                "cpu": {"standing": 2.0, "range": None, "from": "default"},
                "pids": {"standing": 512, "range": None, "from": "default"},
            },
            "alerts": [],
        }  # fmt: skip
        return Detail(
            answer, curves(samples), tuple(processes), (action,), self._alerts(agent.name), ()
        )

    def _alerts(self, name: str) -> tuple[AlertRow, ...]:
        try:
            store = Store.open(self._host.history, write=False)
        except AgentresError:
            return ()
        found = store.alerts(agent=name)
        store.close()
        return tuple(found)
