"""``run --progress``: a line about what the agent uses, once a second while it runs.

Loaded only if asked for.  It reads control files of its own, so that the monitor does not wait for it.
"""

from __future__ import annotations

import time

from agentres.kernel import network
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.meter import Meter
from agentres.model import log
from agentres.model.errors import NotEnforceable, printable
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.kernel.loop import Loop
    from agentres.kernel.network import Network
    from agentres.model.stats import Reading, Sample

EVERY = 1.0
"""Seconds between two lines."""

_GROUPS = ("cpu", "memory", "disk", "pids", "network", "limits")


class Progress:
    """Passes ``draw`` a line about the agent every second until its end."""

    def __init__(self, name: str, draw: Callable[[str], None]) -> None:
        self._name = name
        self._draw = draw
        self._started = time.monotonic()
        self._meter: Meter | None = None
        self._network: Network | None = None
        self._loop: Loop | None = None
        self._before: Reading | None = None
        self._at = 0.0

    def begin(self, path: str) -> None:
        """Open the meter: the command runs, in the cgroup at ``path``."""
        self._started = time.monotonic()
        cgroup = Cgroup(path)
        try:
            self._network = network.find(cgroup)
        except NotEnforceable as error:  # only root may read it, or nothing is counted
            log.debug(__name__, "no network: %s", error)
        finally:
            cgroup.close()
        self._meter = Meter(path, network=self._network)

    def attach(self, loop: Loop, supervision: object) -> None:
        """Draw from now on, on the loop that waits for the agent's end."""
        self._loop = loop
        self._tick()

    def close(self) -> None:
        """Close the files."""
        if self._meter is not None:
            self._meter.close()
        if self._network is not None:
            self._network.close()

    def _tick(self) -> None:
        assert self._loop is not None
        assert self._meter is not None
        now = time.monotonic()
        for group in _GROUPS:
            self._meter.read(group)
        reading = self._meter.reading
        if self._before is not None:
            passed = now - self._at
            self._draw(line(self._name, now - self._started, self._before, reading, passed))
        self._before, self._at = reading, now
        self._loop.call_at(now + EVERY, self._tick)


def line(name: str, age: float, before: Sample, now: Sample, passed: float) -> str:
    """Return a line about what an agent used in the ``passed`` seconds between two readings; pure.

    Unknown figures are left out, and so is traffic if there is none.
    """

    def rate(first: int | None, last: int | None) -> float | None:
        if first is None or last is None or passed <= 0:
            return None
        return max(0.0, (last - first) / passed)

    parts = [f"{printable(name)} {format_duration(age if age < 10 else round(age))}"]
    cpu = rate(before.usage_usec, now.usage_usec)
    if cpu is not None:
        parts.append(f"cpu {cpu / 1e6:.2f}{_of(now.cpu_limit, '{:g}')}")
    memory, limit = now.working_set, now.memory_limit
    if memory is not None:
        parts.append(
            f"memory {format_size(memory)}{'' if limit is None else f' of {format_size(limit)}'}"
        )
    for word, flow in (
        ("read", rate(before.rbytes, now.rbytes)),
        ("wrote", rate(before.wbytes, now.wbytes)),
        ("in", rate(before.rx_bytes, now.rx_bytes)),
        ("out", rate(before.tx_bytes, now.tx_bytes)),
    ):
        if flow:
            parts.append(f"{word} {format_rate(flow)}")
    if now.pids_current is not None:
        parts.append(f"tasks {now.pids_current}{_of(now.pids_limit, '{}')}")
    return "  ".join(parts)


def _of(limit: float | None, form: str) -> str:
    return "" if limit is None else f" of {form.format(limit)}"
