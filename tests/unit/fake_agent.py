"""An agent with elastic limits, on a folder in place of its cgroup, and the clock that its marks are made in."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fake_slice import MIB, FakeSlice

from agentres.kernel import registry
from agentres.kernel.actuator import Actuator
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.deadman import Deadman
from agentres.kernel.loop import Timer
from agentres.model.action import Action
from agentres.model.errors import ControlFileError
from agentres.model.limits import IoMax, Limits, Range
from agentres.model.stats import Reading
from agentres.policy.elastic import Terms
from agentres.policy.scaling import BALANCED, Philosophy
from agentres.run.handover import Handover
from agentres.run.mover import Mover
from agentres.run.sharing import Sharing

MEMORY = {"memory": Range(64 * MIB, 4000 * MIB)}


def memory(size: int) -> Limits:
    return Limits(memory=size * MIB, ranges=MEMORY)


def handover(limits: Limits | None = None, **given: Any) -> Handover:
    """An agent as its launch hands it over, with nothing behind it but what is given."""
    whole: dict[str, Any] = {
        "name": "a", "command": ("sleep",), "actuator": None, "started": 0.0, "escapes": None, "parent": "",
        "adopt": lambda pid: None, "terms": Terms(limits or Limits(), BALANCED, 100, 0.8, ""), "state": "",
    }  # fmt: skip
    return Handover(**{**whole, **given})


class Fake(Cgroup):
    """A folder that takes what the kernel takes; ``refused`` are the files that do not, ``then`` is what a write brings."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.writes: list[tuple[str, str]] = []
        self.refused: dict[str, int] = {}
        self.then: dict[str, Callable[[], None]] = {}

    def set_property(self, filename: str | bytes, value: str) -> None:
        name = os.fsdecode(filename)
        if code := self.refused.get(name):
            raise ControlFileError(f"{self.path}/{name}", value, code)
        if name == "memory.reclaim":
            self._reclaimed(int(value))
        elif not self.has(name):
            raise ControlFileError(f"{self.path}/{name}", value, errno.ENOENT)
        else:
            Path(self.path, name).write_text(f"{value}\n")
        self.writes.append((name, value))
        self.then.get(name, lambda: None)()

    def _reclaimed(self, size: int) -> None:
        use, cache = self.use, max(0, self.cache - size)
        self.uses(use, cache)

    @property
    def cache(self) -> int:
        stat = Path(self.path, "memory.stat").read_text().split()
        return int(stat[stat.index("inactive_file") + 1])

    @property
    def use(self) -> int:
        return int(Path(self.path, "memory.current").read_text()) - self.cache

    def uses(self, use: int, cache: int = 0) -> None:
        Path(self.path, "memory.current").write_text(f"{use + cache}\n")
        Path(self.path, "memory.stat").write_text(
            f"anon {use}\nfile_dirty 0\nfile_writeback 0\ninactive_file {cache}\n"
        )

    def wrote(self, *files: str) -> list[tuple[str, str]]:
        return [each for each in self.writes if each[0] in files]


class Guard(Deadman):
    """Nobody waits for our death."""

    def __init__(self, path: str, kill: bool, mark: str = "", uid: int | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class Still:
    """A loop that never turns: who contends is told to by the test."""

    def watch(self, fd: int, callback: Callable[[], object], events: int = 0) -> None:
        pass

    def unwatch(self, fd: int) -> None:
        pass

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        return Timer(deadline, callback, 0)


class Life:
    """An agent and what moves its limits; ``told`` are the actions."""

    def __init__(
        self,
        slice: FakeSlice,
        name: str,
        limits: Limits,
        use: int = 100 * MIB,
        philosophy: Philosophy = BALANCED,
        priority: int = 100,
        io_max: tuple[IoMax, ...] = (),
        disks: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        claimed = registry.ClaimMark(priority, 64 * MIB)
        limit = limits.memory if isinstance(limits.memory, int) else "max"
        agent = slice.agent(name, limit, use, started=float(ord(name[0])), claimed=claimed)
        for file in ("cpu.max.burst", "io.max", "memory.high"):
            (agent / file).touch()
        cpu = "max" if limits.cpu in (None, "max") else round(float(limits.cpu or 0) * 100_000)
        (agent / "cpu.max").write_text(f"{cpu} 100000\n")
        (agent / "pids.max").write_text(f"{limits.pids or 'max'}\n")
        self.agent, self.cgroup = agent, Fake(str(agent))
        self.told: list[Action] = []
        self.values: dict[str, Any] = {
            "memory_limit": limits.memory, "cpu_limit": limits.cpu, "pids_limit": limits.pids,
            "net_in_limit": None, "net_out_limit": None, "nr_periods": 0, "nr_throttled": 0, "disks": None,
        }  # fmt: skip
        self.terms = Terms(limits, philosophy, priority, 0.5, str(slice.path))
        self.actuator = Actuator(self.cgroup, Guard)
        self.actuator.take_disks(io_max, disks or {}, pausing=False)
        self.notified = False
        self.mover = Mover(
            Still(),
            self.terms,
            self,
            self.actuator,
            self.told.append,
            lambda: None,
            lambda: None,  # type: ignore[arg-type]
        )
        self.now = time.monotonic()

    @property
    def reading(self) -> Reading:
        """What a meter has read."""
        return Reading(**self.values)

    def read(self, group: str) -> Reading:
        """Have a meter read one of its groups."""
        assert group == "limits"
        for key in ("memory", "cpu", "pids"):
            limit = self.actuator.standing(key)
            self.values[f"{key}_limit"] = None if limit == "max" else limit
        return self.reading

    def look(self, resource: str, value: float | None, seconds: float = 0.0) -> float:
        self.now += seconds
        return self.mover.observe(resource, value, self.reading, self.now, self.notified)

    def uses(self, size: int, seconds: float = 0.0) -> None:
        """MiB of memory."""
        self.cgroup.uses(size * MIB)
        self.look("memory", size * MIB, seconds)

    def kinds(self) -> list[str]:
        return [action.kind for action in self.told]

    @property
    def bytes(self) -> int:
        """memory.max, as the kernel has it."""
        limit = int((self.agent / "memory.max").read_text())
        assert self.values["memory_limit"] == limit
        return limit

    @property
    def limit(self) -> int:
        """The same, in MiB."""
        return self.bytes // MIB

    @property
    def claimed(self) -> registry.ClaimMark:
        claimed = registry.claim_mark(str(self.agent))
        assert claimed is not None
        return claimed

    @property
    def sharing(self) -> Sharing:
        assert self.mover.sharing is not None
        return self.mover.sharing

    def contend(self) -> None:
        self.sharing.contend()

    def close(self) -> None:
        self.mover.close()
        self.cgroup.close()


class Clock:
    """CLOCK_BOOTTIME, which the marks are made in."""

    def __init__(self) -> None:
        self.now = 5000.0


Start = Callable[..., Life]
"""Starts an agent: its name, its limits, what else Life takes (conftest.py's start_agent)."""
