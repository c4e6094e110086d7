"""A host of agents for the dashboard, as folders and a history: always the same, moved on by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_slice import MIB, FakeSlice
from told import event

from agentres.kernel import registry
from agentres.kernel.registry import ClaimMark, Found
from agentres.model.errors import AgentresError
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
}
# By agent: microseconds of CPU, bytes written, in each second; and tasks.
_RATES = {
    "planner": (1_800_000, 1_200_000, 34),
    "fixer": (250_000, 40_000, 7),
    "crawler": (0, 0, 3),
    "trainer": (3_100_000, 9_000_000, 212),
    "lost": (10_000, 0, 1),
}


class RecordedHost:
    """The host: :meth:`go_on` lets time pass in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = str(folder / "history.db")
        self.slice = FakeSlice(folder / "tree")
        self.slice.limit(memory=6 * GIB)
        self.now = BEGIN
        self.done: list[tuple[Any, ...]] = []
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

    def _count(self) -> None:
        passed = self.now - BEGIN + 600
        for name, (usec, wrote, tasks) in _RATES.items():
            if (path := self.path(name)).exists():
                used = int(usec * passed)
                (path / "cpu.stat").write_text(
                    f"usage_usec {used}\nuser_usec {used}\nsystem_usec 0\n"
                )
                (path / "io.stat").write_text(
                    f"8:0 rbytes=0 wbytes={int(wrote * passed)} rios=0 wios=1 dbytes=0 dios=0\n"
                )
                (path / "pids.current").write_text(f"{tasks}\n")
                (path / "pids.max").write_text("512\n")
                stalled = int(tasks * 1000 * passed)
                for kind in ("cpu", "memory", "io"):
                    (path / f"{kind}.pressure").write_text(
                        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled}\n"
                        f"full avg10=0.00 avg60=0.00 avg300=0.00 total={stalled // 2}\n"
                    )
                high = int((path / "memory.max").read_text()) * 7 // 8
                (path / "memory.high").write_text(f"{high}\n")

    def tell(self) -> None:
        """Have alerts of two agents in the history."""
        store = Store.open(self.history)
        message = "memory of planner is at 78% of its limit"
        store.record(event("raised", "01", BEGIN - 60, agent="planner", message=message))
        more = {"severity": "CRITICAL", "message": "cpu of trainer is \x1b[31mat its limit"}
        store.record(event("raised", "02", BEGIN - 30, agent="trainer", resource="cpu", **more))
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

    def command(self, agent: Found, verb: str, **fields: object) -> None:
        self._host.go_on()
        if agent.name == "lost":
            raise AgentresError("nobody supervises lost: it takes no commands")
        self._host.done.append((verb, agent.name, fields))
        if verb in ("freeze", "thaw"):
            frozen = int(verb == "freeze")
            path = self._host.path(agent.name)
            (path / "cgroup.freeze").write_text(f"{frozen}\n")

    def stop(self, agent: Found, grace: float) -> None:
        self._host.done.append(("stop", agent.name, grace))

    def acknowledge(self, alerts: Sequence[AlertRow], why: str) -> None:
        super().acknowledge(alerts, why)
        self._host.done.append(("acknowledge", [alert.id for alert in alerts], why))

    def detail(self, agent: Found) -> Detail:
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
            Process(4000 + at, "dev", 0.5 / (at + 1), (80 - at) * MIB, 2, f"python worker {at}")
            for at in range(20)
        ]
        answer = {
            "name": agent.name, "started": agent.started, "frozen": False, "frozen_by": "",
            "command": ["python", "agent.py"], "main": 4000, "supervisor": 3999, "priority": 100,
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
        return Detail(answer, curves(samples), tuple(processes), (action,), (), ())
