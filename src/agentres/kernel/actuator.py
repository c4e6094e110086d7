"""The only writer of an agent's limits, tripwire (``memory.high``) and freezer.

It writes in an order, and only as far, that the kernel need not kill.  It remembers what it wrote;
:mod:`agentres.kernel.drift` compares.  A deadman undoes the tripwire and the freezer when the
supervisor dies.
"""

from __future__ import annotations

import errno
import os

from agentres.kernel import registry
from agentres.kernel.cgroup import Cgroup
from agentres.model import log
from agentres.model.errors import ControlFileError, NotEnforceable
from agentres.model.figures import parse_cores, parse_limit
from agentres.model.limits import (
    CPUSET,
    DISKS,
    LIMIT_SPECS,
    NETWORKS,
    PAGE,
    ControlLine,
    IoMax,
    cpu_max,
    limit_spec,
)
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agentres.kernel.deadman import Deadman
    from agentres.kernel.network import Network
    from agentres.model.limits import NetworkMax, UnenforcedLimit
    from agentres.model.units import Max

BATCH = 1 << 20
"""The most bytes by which the kernel's count lags: it charges in batches, for each processor."""

_RECLAIMED = 32 << 20
"""The most bytes of page cache to reclaim at once, so that the loop is not blocked for long."""

COMMAND, CONTENTION, PACING = "command", "contention", "pacing"
"""Why an agent is frozen: somebody ordered it, other agents need its resources, or it is ahead of its disk rate."""


class Actuator:
    """The limits, the tripwire and the freezer of the agent in ``cgroup``.

    A limit's key is a field of ``Limits``, or ``io_read=NAME`` for one disk.  ``guarded`` makes the deadman.

    Raises ControlFileError for what the kernel refuses, NotEnforceable for what nothing here can hold.
    """

    def __init__(
        self, cgroup: Cgroup, guarded: Callable[[str, bool, str, int | None], Deadman] | None = None
    ) -> None:
        self.cgroup = cgroup
        self.network: Network | None = None
        """What holds the network rates; None where nothing does."""
        self.disks: dict[str, tuple[str, ...]] = {}
        """The device numbers of each disk name in an ``io`` limit ("": every disk)."""
        self.io_held = True
        """Whether the kernel holds the disk rates."""
        self.paced: tuple[str, ...] = ()
        """The disk rates held by pausing the agent (:mod:`agentres.run.pacer`); pauses alone hold them where ``io_held`` is false."""
        self.bound = ""
        """The list of CPUs in the agent's affinity, where there is no cpuset controller."""
        self._every_cpu = ""  # the list that stands for no limit
        self.tripwire: int | Max = MAX
        """What we wrote to memory.high."""
        self.frozen_by: dict[str, str] = {}
        """Account (:data:`COMMAND`, :data:`CONTENTION`, :data:`PACING`) -> why it froze the agent, in words."""
        self._io_max: dict[str, IoMax] = {}  # by device
        self._lines: dict[tuple[str, str], ControlLine] = {}
        self._guarded = guarded
        self._deadman: Deadman | None = None
        self._kills, self._mark = False, ""
        self._uid: int | None = None

    def close(self) -> None:
        """Lift the tripwire, end the deadman and close the network; call it once the agent is gone."""
        self.frozen_by, self._kills = {}, False
        self.lift_tripwire()
        if self.network is not None:
            self.network.close()

    # Limits.

    def apply(self, lines: Iterable[ControlLine]) -> list[UnenforcedLimit]:
        """Write each line and read it back.  Return those that do not hold; the others stand."""
        lines = list(lines)
        unenforced = self.cgroup.apply(lines)
        without = {item.line for item in unenforced}
        for line in lines:
            if line not in without:
                self._lines[line.file, line.key] = line
        return unenforced

    def take_disks(
        self, io_max: Iterable[IoMax], disks: Mapping[str, tuple[str, ...]], pausing: bool
    ) -> None:
        """Hold these rates of :attr:`disks` from now on; ``pausing``: those that io.max does not hold, by pauses."""
        self._io_max, self.disks = {rates.device: rates for rates in io_max}, dict(disks)
        self.io_held = self.cgroup.has("io.max")
        if pausing:
            # The io controller always bills reads to the process that reads.
            self.paced = ("io_write",) if self.io_held else ("io_write", "io_read")

    def add_disk(self, name: str, devices: tuple[str, ...]) -> None:
        """Have a limit on ``name`` mean these devices; what has no rate yet may have one from now on."""
        self.disks[name] = devices
        for device in devices:
            self._io_max.setdefault(device, IoMax(device))

    def take_cpus(self, cpus: str) -> None:
        """Note which CPUs the agent is to have: where there is no cpuset controller, its affinity has to bind it."""
        self.bound = "" if self.cgroup.has(CPUSET) else cpus

    def take_network(self, network: Network, wanted: NetworkMax) -> None:
        """Have ``network`` hold the agent's rates from now on, ``wanted`` first."""
        self.network = network
        network.write(wanted)

    @property
    def lines(self) -> list[ControlLine]:
        """The lines that were written last, without the network's limits: those are in no control file."""
        return list(self._lines.values())

    def standing(self, key: str) -> float | str:
        """Return the limit that is in force."""
        if key in NETWORKS or key == "net_loopback":
            network = self._attached_network().read()
            return {"net_in": network.net_in, "net_out": network.net_out, "net_loopback": network.loopback}[key]  # fmt: skip
        if key == "cpuset":
            if not self.cgroup.has(CPUSET):
                return self.bound or MAX
            cpus = self.cgroup.get_property(CPUSET).strip()
            return MAX if cpus in ("", self._every_cpu) else cpus
        if _is_disks(key):
            return min((rate for _, rate in self._rates(key)), key=_number, default=MAX)
        parse = parse_cores if key == "cpu" else parse_limit
        found = parse(self.cgroup.get_property(LIMIT_SPECS[key].file).encode())
        return MAX if found is None else found

    def limit_or_none(self, key: str) -> float | str | None:
        """Return the limit in force, or None where nothing holds it or it cannot be read.

        For a disk limit: the highest among its disks, where :meth:`standing` returns the lowest.
        """
        if _is_disks(key):
            return self.fastest(key)
        if key.startswith("net") and self.network is None:
            return None
        if key == "cpuset" and not self.bound and not self.cgroup.has(CPUSET):
            return None
        try:
            return self.standing(key)
        except (ControlFileError, ValueError):  # its controller is not available, or it is garbage
            return None

    def paced_rate(self, key: str) -> int | None:
        """Return the highest finite rate among the disks of ``key``; None where none has one."""
        rates = (rate for _, rate in self._rates(key) if isinstance(rate, int))
        return max(rates, default=None)

    def fastest(self, key: str) -> int | Max | None:
        """Return the highest rate among the disks of ``key``, ``max`` included; None where there is no disk."""
        return max((rate for _, rate in self._rates(key)), key=_number, default=None)

    def write(self, key: str, limit: float | str, elastic: bool = True) -> None:
        """Write any limit but memory, which has methods of its own."""
        if key == "cpu":
            self._write_cpu(limit, elastic)
        elif key in NETWORKS:
            self._write_network(**{key: _whole(limit)})
        elif key == "net_loopback":
            self._write_network(loopback=limit)
        elif key == "cpuset":
            self._write_cpuset(str(limit))
        elif _is_disks(key):
            self._write_disks(key, limit)
        else:
            self._write(ControlLine(LIMIT_SPECS[key].file, str(_whole(limit))))

    def write_memory(self, limit: int | Max) -> None:
        """Write memory.max.  Below what is in use, the kernel kills."""
        self._write(ControlLine("memory.max", str(limit)))

    def trim_memory(self, wanted: int) -> int:
        """Lower memory.max to ``wanted``, or as near as the use allows, if that is worth it.  Return what it is now."""
        from agentres.policy.scaling import (
            WORTH,  # here, as in _guard(): only a watched agent needs it, not each launch
        )
        from agentres.policy.tripwire import HEADROOM

        standing = self.standing("memory")
        if standing == MAX:
            raise NotEnforceable("somebody has lifted memory.max")
        before = int(standing)
        wanted = -(-wanted // PAGE) * PAGE
        current = self.in_use
        if current + HEADROOM > wanted:
            # Page cache, or allocated since the last look: reclaim some now, the rest another time.
            self._reclaim(min(_RECLAIMED, current + HEADROOM - wanted))
            current = self.in_use
            wanted = max(wanted, current + HEADROOM)
        if wanted > WORTH * before:
            return before
        # From here on an allocation meets the tripwire before the limit.
        self.set_tripwire(wanted - HEADROOM // 2)
        if self.in_use > wanted - HEADROOM // 2:
            return before  # the supervisor puts the tripwire right afterwards
        self.write_memory(wanted)
        return wanted

    def lower_memory(self, limit: int) -> None:
        """Lower memory.max to exactly ``limit``.  Raises NotEnforceable if reclaim cannot bring the use down to it."""
        before = self.tripwire
        self.set_tripwire(limit)  # an allocation meanwhile waits there
        if (excess := self.in_use - limit) > 0:
            self._reclaim(excess)
        if (used := self.in_use) > limit:
            if before == MAX:
                self.lift_tripwire()
            else:
                self.set_tripwire(before)
            raise NotEnforceable(
                f"{format_size(used)} are in use and cannot be given back", "the kernel would kill"
            )
        self.write_memory(limit)

    # The tripwire.

    def set_tripwire(self, height: int | Max) -> bool:
        """Write memory.high.  Return False where that fails; then there is no tripwire."""
        try:
            self._guard()
            self.cgroup.set_property("memory.high", str(height))
        except (OSError, ControlFileError) as error:
            # Without it a memory alert waits for the next look; the limits hold all the same.
            log.debug(__name__, "no tripwire: %s", error)
            self.lift_tripwire()
            return False
        self.tripwire = height
        return True

    def lift_high(self) -> str:
        """Lift memory.high if the agent is at it, no matter who wrote it.  Return the old value, "" if it stays."""
        found = self.cgroup.get_property("memory.high").strip()
        if found == MAX or self.in_use + BATCH < int(found):
            return ""
        self.cgroup.set_property("memory.high", MAX)
        self.tripwire = MAX
        return found

    def lift_tripwire(self) -> None:
        """Lift the tripwire.  End the deadman too, unless the agent is frozen or to be killed by it."""
        if self._deadman is None:
            return
        try:
            self.cgroup.set_property("memory.high", MAX)
        except ControlFileError as error:  # no such file: only the freezer was guarded
            log.debug(__name__, "no tripwire to lift: %s", error)
        self.tripwire = MAX
        if not self.frozen_by and not self._kills:
            self._deadman.close()
            self._deadman = None

    # The freezer.

    def freeze(self, account: str, why: str) -> None:
        """Stop all of its processes until every account that froze it has thawed it."""
        self._guard()
        self.cgroup.freeze = True
        self._account({**self.frozen_by, account: why})

    def thaw(self, account: str = "") -> None:
        """Withdraw this account's freeze; empty: every account's except a pause (PACING), which ends by itself.

        The agent runs again once no account is left.
        """
        left = {
            key: why
            for key, why in self.frozen_by.items()
            if key != account and (account or key == PACING)
        }
        self.cgroup.freeze = bool(left)
        self._account(left)

    def _account(self, frozen_by: dict[str, str]) -> None:
        paused, self.frozen_by = self.frozen_by.keys() == {PACING}, frozen_by
        if (frozen_by.keys() == {PACING}) != paused:
            # Other supervisors must not think that it was frozen for them.
            registry.mark_paused(self.cgroup.fd, not paused)

    def guard(self, mark: str = "", uid: int | None = None) -> None:
        """Have the agent killed if this process dies, and every process outside that has the mark and is of this user; None: of any.  Raises OSError."""
        self._kills, self._mark, self._uid = True, mark, uid
        self._guard()

    def _guard(self) -> None:
        """Start the deadman: if this process dies it kills the agent, or lets it go on.  Raises OSError."""
        if self._deadman is None:
            from agentres.kernel.deadman import Deadman

            make = self._guarded or Deadman
            self._deadman = make(self.cgroup.path, self._kills, self._mark, self._uid)

    def _attached_network(self) -> Network:
        if self.network is None:
            raise NotEnforceable("nothing counts or limits its network")
        return self.network

    def _write_network(self, **some: object) -> None:
        network = self._attached_network()
        network.write(network.read().but(**some))

    def _write_disks(self, key: str, limit: float | str) -> None:
        if not self.io_held and key not in self.paced:
            raise NotEnforceable("there is no io controller, and pauses do not hold that")
        for device, _ in self._rates(key):
            rates = self._io_max[device].but(**{limit_spec(key).io_key: _whole(limit)})
            if self.io_held:
                self._write(rates.line())
            self._io_max[device] = rates

    def _write_cpuset(self, limit: str) -> None:
        cpus = "" if limit == MAX else limit
        if self.cgroup.has(CPUSET):
            self._every_cpu = ""
            try:
                # A bare newline: all CPUs of the parent.
                self._write(ControlLine(CPUSET, cpus or "\n"))
            except ControlFileError as error:
                if cpus or error.errno != errno.ENOSPC:
                    raise
                # Linux 6.12 does not take the list away from a cgroup with processes.
                from agentres.kernel.cpus import allowed
                from agentres.model.cpus import format_list

                every = format_list(allowed(os.path.dirname(self.cgroup.path))[1])
                self._write(ControlLine(CPUSET, every))
                self._every_cpu = every
        else:
            from agentres.kernel.cpus import bind

            bind(self.cgroup.path, limit, self.bound or MAX)
            self.bound = cpus
        registry.mark_cpus(self.cgroup.fd, cpus)

    def _write_cpu(self, limit: float | str, elastic: bool) -> None:
        text = cpu_max(limit)
        burst = text.split()[0] if elastic and limit != MAX else "0"
        lines = [
            ControlLine("cpu.max", text),
            ControlLine("cpu.max.burst", burst, optional=True),
        ]
        before = self.standing("cpu")
        # The kernel takes no burst above the quota.
        lower = limit != MAX and (before == MAX or float(limit) < float(before))
        for line in lines[::-1] if lower else lines:
            self._write(line)

    def _write(self, line: ControlLine) -> None:
        try:
            self.cgroup.set_property(line.file, line.text)
        except ControlFileError as error:
            if not line.optional:
                raise
            log.debug(__name__, "without: %s", error)
            return
        self._lines[line.file, line.key] = line

    def _rates(self, key: str) -> list[tuple[str, int | Max]]:
        io_key, name = limit_spec(key).io_key, key.partition("=")[2]
        return [(dev, getattr(self._io_max[dev], io_key)) for dev in self.disks.get(name, ()) if dev in self._io_max]  # fmt: skip

    @property
    def in_use(self) -> int:
        """The agent's memory in bytes, page cache included.  Raises ControlFileError."""
        return int(self.cgroup.get_property("memory.current"))

    def _reclaim(self, size: int) -> None:
        try:
            self.cgroup.set_property("memory.reclaim", str(size))
        except ControlFileError as error:  # not all could be reclaimed, or Linux before 5.19
            log.debug(__name__, "%s", error)


def _is_disks(key: str) -> bool:
    return key.partition("=")[0] in DISKS


def _whole(limit: float | str) -> int | Max:
    return MAX if limit == MAX else round(float(limit))


def _number(rate: int | Max) -> float:
    return float("inf") if rate == MAX else float(rate)
