"""Writes an agent's limits while it runs, in the order and as far as the kernel takes them without a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentres.kernel.cgroup import Cgroup
from agentres.model import log
from agentres.model.errors import ControlFileError, NotEnforceable
from agentres.model.limits import CPU_PERIOD_USEC, NETWORKS, IoMax, Setting
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX, format_size
from agentres.policy.scaling import WORTH
from agentres.policy.tripwire import ROOM
from agentres.run.sharing import PAGE

if TYPE_CHECKING:
    from typing import Any

    from agentres.kernel.network import Network
    from agentres.model.units import Max

FIGURES: Mapping[str, str] = {
    "memory": "memory_limit",
    "cpu": "cpu_limit",
    "pids": "pids_limit",
    "net_in": "net_in_limit",
    "net_out": "net_out_limit",
}
"""Where the meter has the limit that stands."""

IO: Mapping[str, tuple[str, int]] = {
    "io_read": ("rbps", 1),
    "io_write": ("wbps", 2),
    "io_read_iops": ("riops", 3),
    "io_write_iops": ("wiops", 4),
}
"""The key in ``io.max``, and which figure of one of ``Sample.disks`` it limits."""

_RECLAIMED = 32 << 20
"""Bytes of page cache that are given back at once, so that the loop is not kept for long."""


class Limiter:
    """The limits of the agent in ``cgroup``; a key is a field of ``Limits``, or ``io_read=NAME`` for one disk.

    ``values`` are its meter's, ``network`` what holds its network's rates.  ``expect`` is told of each limit that was written, ``arm`` writes
    memory.high.  ``disks`` are the device numbers behind each name that an ``io`` limit has ("": every disk), ``io_max``
    the lines as they were written.  What the kernel refuses is a ControlFileError, what nothing here can hold
    a NotEnforceable.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        values: dict[str, Any],
        expect: Callable[[Setting], None],
        arm: Callable[[int], None],
        network: Network | None,
        io_max: tuple[IoMax, ...],
        disks: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._cgroup = cgroup
        self._network = network
        self._values = values
        self._expect = expect
        self._arm = arm
        self.lines = {line.device: line for line in io_max}
        self.disks = dict(disks)

    def standing(self, key: str) -> float | str:
        """What was written last."""
        if key in FIGURES:
            found = self._values[FIGURES[key]]
            return MAX if found is None else found
        if key == "net_loopback":
            return self._held().read().loopback
        if key == "swap":
            text = self._cgroup.get_property("memory.swap.max").strip()
            return MAX if text == MAX else int(text)
        return min((rate for _, rate in self._rates(key)), key=_number, default=MAX)

    def holds(self, key: str) -> float | str | None:
        """Likewise; None where nothing holds it here."""
        if key.partition("=")[0] in IO:
            return self.fastest(key)
        if key.startswith("net") and self._network is None:
            return None
        try:
            return self.standing(key)
        except ControlFileError:  # its controller is not available
            return None

    def fastest(self, key: str) -> int | Max | None:
        """The highest rate among the disks of ``key``; None where there is none."""
        return max((rate for _, rate in self._rates(key)), key=_number, default=None)

    def write(self, key: str, limit: float | str, elastic: bool = True) -> None:
        """Write a limit that needs no room; memory is not among them."""
        if key == "cpu":
            self._write_cpu(limit, elastic)
        elif key == "pids":
            self._write(Setting("pids.max", _text(limit)))
            self._values["pids_limit"] = None if limit == MAX else round(float(limit))
        elif key == "swap":
            self._write(Setting("memory.swap.max", _text(limit)))
        elif key in NETWORKS:
            self._write_network(**{key: MAX if limit == MAX else round(float(limit))})
        elif key == "net_loopback":
            self._write_network(loopback=limit)
        else:
            for device, _ in self._rates(key):
                rate = MAX if limit == MAX else round(float(limit))
                line = self.lines[device].but(**{IO[key.partition("=")[0]][0]: rate})
                self._write(line.setting())
                self.lines[device] = line

    def write_memory(self, limit: int | Max) -> None:
        """Write memory.max; a lower one than is in use makes the kernel kill."""
        self._write(Setting("memory.max", str(limit)))
        self._values["memory_limit"] = None if limit == MAX else limit

    def trim_memory(self, wanted: int) -> int:
        """Lower memory.max to what is wanted, or as near as what is in use allows, if that is worth it.  What it is now."""
        before = int(self._values["memory_limit"])
        wanted = -(-wanted // PAGE) * PAGE
        current = self._in_use()
        if current + ROOM > wanted:
            # Page cache, or what has come since the look: some is given back now, the rest another time.
            self._reclaim(min(_RECLAIMED, current + ROOM - wanted))
            current = self._in_use()
            wanted = max(wanted, current + ROOM)
        if wanted > WORTH * before:
            return before
        # From here on whoever allocates meets the tripwire first, and only then the limit.
        self._arm(wanted - ROOM // 2)
        if self._in_use() > wanted - ROOM // 2:
            return before  # the tripwire is put right when all is settled
        self.write_memory(wanted)
        return wanted

    def lower_memory(self, limit: int) -> None:
        """Lower memory.max to exactly this.  NotEnforceable where more is in use than can be given back."""
        self._arm(limit)  # whoever allocates meanwhile waits there
        if (excess := self._in_use() - limit) > 0:
            self._reclaim(excess)
        if (used := self._in_use()) > limit:
            raise NotEnforceable(
                f"{format_size(used)} are in use and cannot be given back", "the kernel would kill"
            )
        self.write_memory(limit)

    def _held(self) -> Network:
        if self._network is None:
            raise NotEnforceable("nothing counts or limits its network")
        return self._network

    def _write_network(self, **some: object) -> None:
        network = self._held()
        network.write(network.read().but(**some))
        standing = network.read()
        for key in NETWORKS:
            rate = getattr(standing, key)
            self._values[FIGURES[key]] = None if rate == MAX else rate

    def _write_cpu(self, limit: float | str, elastic: bool) -> None:
        quota = MAX if limit == MAX else str(round(float(limit) * CPU_PERIOD_USEC))
        burst = quota if elastic and quota != MAX else "0"
        settings = [
            Setting("cpu.max", f"{quota} {CPU_PERIOD_USEC}"),
            Setting("cpu.max.burst", burst, optional=True),
        ]
        before = self._values["cpu_limit"]
        # The kernel takes no burst above the quota.
        lower = limit != MAX and (before is None or float(limit) < before)
        for setting in settings[::-1] if lower else settings:
            self._write(setting)

    def _write(self, setting: Setting) -> None:
        try:
            self._cgroup.set_property(setting.file, setting.text)
        except ControlFileError as error:
            if not setting.optional:
                raise
            log.debug(__name__, "without: %s", error)
            return
        self._expect(setting)
        if setting.file == "cpu.max":
            quota = setting.text.split()[0]
            self._values["cpu_limit"] = None if quota == MAX else int(quota) / CPU_PERIOD_USEC

    def _rates(self, key: str) -> list[tuple[str, int | Max]]:
        kind, _, name = key.partition("=")
        return [(dev, getattr(self.lines[dev], IO[kind][0])) for dev in self.disks.get(name, ()) if dev in self.lines]  # fmt: skip

    def _in_use(self) -> int:
        return int(self._cgroup.get_property("memory.current"))

    def _reclaim(self, size: int) -> None:
        try:
            self._cgroup.set_property("memory.reclaim", str(size))
        except ControlFileError as error:  # not all of it could be had, or Linux before 5.19
            log.debug(__name__, "%s", error)


def _text(limit: float | str) -> str:
    return MAX if limit == MAX else str(round(float(limit)))


def _number(rate: int | Max) -> float:
    return float("inf") if rate == MAX else float(rate)
