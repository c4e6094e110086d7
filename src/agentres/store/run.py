"""A run as the history knows it, and what goes wrong with a history."""

from __future__ import annotations

from agentres.model.errors import AgentresError
from agentres.model.record import Record


class StoreError(AgentresError):
    """The history cannot be read or written, or does not hold what was asked for."""


class NoHistory(StoreError):
    """There is none yet at ``path``: nothing has been kept."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no history yet at {path}")


class Run(Record):
    """One subject from its begin to its end: an agent, or the host or a slice while it is watched.

    ``supervisor`` is a pid, ``supervisor_start`` the ticks of field 22 of its ``/proc/PID/stat``: with
    ``boot_id`` they tell it from another process that got the same number.
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
