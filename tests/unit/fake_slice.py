"""A slice with agents as folders: what the tree's readers look at, with the marks of supervisors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agentres.kernel import registry
from agentres.kernel.registry import ClaimMark

MIB = 1 << 20
NOTHING = ClaimMark()


def keep_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extended attributes: the file system's where it has them, else kept here."""
    try:
        os.setxattr(tmp_path, "user.agentres.try", b"1")
        os.removexattr(tmp_path, "user.agentres.try")
    except OSError:
        kept: dict[tuple[str, str], bytes] = {}

        def where(path: object) -> str:
            return os.path.realpath(f"/proc/self/fd/{path}" if isinstance(path, int) else str(path))

        def getxattr(path: object, name: str) -> bytes:
            try:
                return kept[where(path), name]
            except KeyError:
                raise OSError(errno.ENODATA, "No data available") from None

        monkeypatch.setattr(os, "getxattr", getxattr)
        monkeypatch.setattr(
            os, "setxattr", lambda path, name, value: kept.update({(where(path), name): value})
        )


class FakeSlice:
    """``mount`` is the root of the hierarchy, ``path`` the slice in it, whose limits may be set."""

    def __init__(self, mount: Path, name: str = "agentres.slice") -> None:
        self.mount = mount
        self.path = mount / name
        self.path.mkdir(parents=True)
        for folder in (self.path, *self.path.parents):
            (folder / "cgroup.controllers").write_text("cpu memory\n")
            if folder == mount:
                break
        self.limit()

    def limit(self, memory: int | str = "max", cpu: str = "max 100000") -> None:
        """What the kernel holds all agents to."""
        (self.path / "memory.max").write_text(f"{memory}\n")
        (self.path / "cpu.max").write_text(f"{cpu}\n")

    def agent(
        self,
        name: str,
        limit: int | str = 256 * MIB,
        use: int = 100 * MIB,
        cache: int = 0,
        started: float = 1000.0,
        claimed: ClaimMark | None = NOTHING,
        frozen: bool = False,
        supervised: bool = True,
        populated: bool = True,
        cpu: str = "max 100000",
        beside: int = 0,
    ) -> Path:
        """The path of the agent's cgroup, as a supervisor leaves it; ``use`` is without ``cache``."""
        home = self.path / f"agentres-{name}.scope"
        agent, supervisor = home / "agent", home / "supervisor"
        agent.mkdir(parents=True)
        supervisor.mkdir()
        (home / "cgroup.events").write_text(f"populated {int(populated)}\nfrozen 0\n")
        (home / "memory.current").write_text(f"{use + cache + beside}\n")
        (supervisor / "cgroup.events").write_text(f"populated {int(supervised)}\nfrozen 0\n")
        files = {
            "memory.max": f"{limit}\n",
            "memory.current": f"{use + cache}\n",
            "memory.stat": f"anon {use}\nfile {cache}\nfile_dirty 0\nfile_writeback 0\ninactive_file {cache}\nactive_file 0\n",
            "cgroup.freeze": f"{int(frozen)}\n",
            "cgroup.events": f"populated {int(populated)}\nfrozen {int(frozen)}\n",
            "cpu.max": f"{cpu}\n",
        }
        for file, text in files.items():
            (agent / file).write_text(text)
        fd = os.open(agent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            registry.mark(fd, name, started, os.getpid())
            if claimed is not None:
                registry.mark_claim(fd, claimed)
        finally:
            os.close(fd)
        return agent
