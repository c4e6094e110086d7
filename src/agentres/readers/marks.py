"""Figures that a supervisor stores as marks on its agent's cgroup, for other readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentres.kernel import registry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentres.model.stats import Disks


class MarkedWrites:
    """The figures of :class:`agentres.kernel.writeback.Writeback`, as of the last sample by the supervisor of the agent at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.hidden = 0

    def look(self, pids: Iterable[int]) -> None:
        pass  # the supervisor does that

    def figures(
        self, disks: Disks | None, dirty: int | None, under: int | None
    ) -> dict[str, int | None]:
        names = ("read_bytes", "dirtied_bytes", "unbilled_bytes")
        return dict(zip(names, registry.writes(self._path), strict=True))
