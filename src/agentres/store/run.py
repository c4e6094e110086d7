"""A run as the history keeps it, and the history's errors."""

from __future__ import annotations

from agentres.model.errors import AgentresError
from agentres.model.record import Record


class StoreError(AgentresError):
    """The history cannot be read or written, or does not contain what was asked for."""


class NoHistory(StoreError):
    """There is no history at ``path`` yet."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no history yet at {path}")


class Run(Record):
    """One subject from start to end: an agent, or the host or a slice while it is watched.

    ``supervisor`` is a pid, ``supervisor_start`` the start time in ticks, field 22 of ``/proc/PID/stat``.
    With ``boot_id`` they distinguish it from a later process with the same pid.
    """

    id: str
    name: str
    of: str
    command: tuple[str, ...]
    uid: int
    cgroup: str
    supervisor: int
    supervisor_start: int
    boot_id: str
    started: float
    ended: float | None = None
    exit_code: int | None = None
