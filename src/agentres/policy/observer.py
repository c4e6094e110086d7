"""What one run used, gathered while it runs, for :mod:`agentres.policy.prediction`; pure.

What was *held* says nothing of demand: a peak at the limit or where a raise was refused, an OOM kill, a throttled CPU, a refused fork.
It is kept apart, as the limit at which that happened.
"""

from __future__ import annotations

from agentres.model.record import Record
from agentres.policy.histogram import SCALES

WINDOW = 86400.0
"""Seconds after which a run that goes on is learnt like one that ended: the VPA takes a peak a day."""

NEAR = 0.9
"""The fraction of a limit from which on use counts as held by it, once the limit was hit: a limit on memory
is also hit by page cache, which the kernel takes back at no harm."""


class Observed(Record):
    """What one run used, or a piece of it; None and empty: not known.

    ``memory`` and ``pids``: the highest use.  ``cpu``: (cores, seconds).  ``*_held``: the highest limit at which it
    was held, ``cpu_held`` with the seconds.  ``oom``: the highest limit at which a process was killed for memory.
    ``runs``: 0 for a piece of a run that goes on.
    """

    memory: float | None = None
    memory_held: float | None = None
    oom: float | None = None
    cpu: tuple[tuple[float, float], ...] = ()
    cpu_held: tuple[tuple[float, float], ...] = ()
    pids: float | None = None
    pids_held: float | None = None
    runs: int = 1


class Observer:
    """Gathers what one run uses while it runs; small, however long that is.

    Memory in bytes, CPU in cores; ``limit`` is what stood while that was used, None for none.
    """

    __slots__ = ("_cpu", "_cpu_held", "_highest", "_oom")

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._highest: dict[str, float] = {}
        self._oom: float | None = None
        self._cpu: dict[int, list[float]] = {}
        self._cpu_held: dict[int, list[float]] = {}

    def memory(
        self, use: float, limit: float | None = None, hit: bool = False, starved: bool = False
    ) -> None:
        """A look at memory; ``hit``: since the one before the limit was hit; ``starved``: it was refused more."""
        near = hit and limit is not None and use >= limit * NEAR
        self._level("memory", use, limit, near or starved)

    def pids(self, count: float, limit: float | None = None, refused: bool = False) -> None:
        """A look at the processes; ``refused``: since the one before a fork was."""
        self._level("pids", count, limit, refused)

    def killed(self, limit: float) -> None:
        """A process was killed for memory at this limit."""
        self._oom = limit if self._oom is None else max(self._oom, limit)

    def cpu(
        self, cores: float, seconds: float, limit: float | None = None, throttled: float = 0.0
    ) -> None:
        """So many cores on average for so many seconds, ``throttled`` for that fraction of them."""
        held = min(max(throttled, 0.0), 1.0) * seconds if limit is not None else 0.0
        _count(self._cpu, cores, seconds - held)
        if limit is not None:
            _count(self._cpu_held, limit, held)

    def take(self, ended: bool = True) -> Observed:
        """All since the last time."""
        observed = Observed(
            memory=self._highest.get("memory"),
            memory_held=self._highest.get("memory_held"),
            oom=self._oom,
            cpu=tuple((value, seconds) for value, seconds in self._cpu.values()),
            cpu_held=tuple((value, seconds) for value, seconds in self._cpu_held.values()),
            pids=self._highest.get("pids"),
            pids_held=self._highest.get("pids_held"),
            runs=int(ended),
        )
        self._forget()
        return observed

    def _level(self, resource: str, use: float, limit: float | None, held: bool) -> None:
        self._highest[resource] = max(use, self._highest.get(resource, 0.0))
        key = f"{resource}_held"
        before = self._highest.get(key)
        if held and limit is not None:
            self._highest[key] = limit if before is None else max(limit, before)
        elif before is not None and (limit is None or limit > before):
            del self._highest[key]  # it has been raised, and what is used is what is needed


def _count(counts: dict[int, list[float]], value: float, seconds: float) -> None:
    """By bucket: the highest value, and the seconds of all."""
    if seconds > 0 and value >= 0:
        count = counts.setdefault(SCALES["cpu"].bucket(value), [value, 0.0])
        count[0] = max(count[0], value)
        count[1] += seconds
