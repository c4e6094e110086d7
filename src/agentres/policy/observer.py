"""Gathers what one run uses, for :mod:`agentres.policy.prediction`; pure.

Use that was *held* by a limit does not show demand: a peak at the limit, a refused raise, an OOM kill, a throttled CPU, a
refused fork.  For those, the limit is kept, separately from use.
"""

from __future__ import annotations

from agentres.model.record import Record
from agentres.policy.histogram import SCALES

WINDOW = 86400.0
"""Seconds after which the use of a run that goes on is learnt as a piece: the VPA takes one peak a day."""

NEAR = 0.9
"""The fraction of a limit from which use counts as held, once the limit was hit: page cache hits memory
limits too, and the kernel reclaims that without harm."""


class Observation(Record):
    """What one run, or a piece of it, used; None and empty: not known.

    ``memory`` and ``pids``: the highest use.  ``cpu``: (cores, seconds).  ``*_held``: the highest limit that held
    it; ``cpu_held``: (limit, seconds).  ``oom``: the highest limit at which the OOM killer killed a process.
    ``runs``: 1, or 0 for a piece of a run that goes on.
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
    """Gathers what one run uses, in constant space.

    Memory is in bytes, CPU in cores.  ``limit`` is the limit during that use; None for no limit.
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
        """Take memory use; ``hit``: the limit was hit since the last call; ``starved``: a raise was refused."""
        near = hit and limit is not None and use >= limit * NEAR
        self._level("memory", use, limit, near or starved)

    def pids(self, count: float, limit: float | None = None, refused: bool = False) -> None:
        """Take the number of processes; ``refused``: a fork failed since the last call."""
        self._level("pids", count, limit, refused)

    def killed(self, limit: float) -> None:
        """Note that the OOM killer killed a process at this limit."""
        self._oom = limit if self._oom is None else max(self._oom, limit)

    def cpu(
        self, cores: float, seconds: float, limit: float | None = None, throttled: float = 0.0
    ) -> None:
        """Take the average ``cores`` over ``seconds``, and the fraction of that time ``throttled``."""
        held = min(max(throttled, 0.0), 1.0) * seconds if limit is not None else 0.0
        _count(self._cpu, cores, seconds - held)
        if limit is not None:
            _count(self._cpu_held, limit, held)

    def take(self, ended: bool = True) -> Observation:
        """Return what was gathered since the last call, and forget it."""
        observation = Observation(
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
        return observation

    def _level(self, resource: str, use: float, limit: float | None, held: bool) -> None:
        self._highest[resource] = max(use, self._highest.get(resource, 0.0))
        key = f"{resource}_held"
        before = self._highest.get(key)
        if held and limit is not None:
            self._highest[key] = limit if before is None else max(limit, before)
        elif before is not None and (limit is None or limit > before):
            del self._highest[key]  # the limit was raised and no longer holds: use shows demand


def _count(counts: dict[int, list[float]], value: float, seconds: float) -> None:
    """Add to the value's bucket, which keeps its highest value and total seconds."""
    if seconds > 0 and value >= 0:
        count = counts.setdefault(SCALES["cpu"].bucket(value), [value, 0.0])
        count[0] = max(count[0], value)
        count[1] += seconds
