"""The limits of an agent, as data; pure.

:class:`Limits` holds them; :meth:`Limits.lines` turns them into (control file, text), which
:meth:`agentres.kernel.cgroup.Cgroup.apply` alone writes.  Everywhere, ``None`` means "leave it as it
is" and ``"max"`` means "no limit".  File names and formats: the kernel's
Documentation/admin-guide/cgroup-v2.rst.

Users write a limit as one value, which is fixed, or as a range ``least:most``, within which it moves;
:func:`read_limits` reads both.
"""

from __future__ import annotations

import os
from types import MappingProxyType

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.units import (
    MAX,
    PRIORITY_MAX,
    UnitError,
    counted,
    format_rate,
    format_size,
    parse_choice,
    parse_count,
    parse_cpu,
    parse_rate,
    parse_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from agentres.model.units import Max

    Rates = Mapping[str, int | Max]
    """Device as the user names it (a path, or :data:`EVERY_DISK`) -> bytes or operations a second."""

CPU_PERIOD_USEC = 100_000
"""The period in ``cpu.max``, in microseconds: the kernel's default."""

CPU_MIN = 0.01
"""Cores: the kernel accepts no quota below 1 ms a period (kernel/sched/core.c)."""

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes: memory.max is a multiple of it."""

MEMORY_MIN = 1 << 20
"""Bytes: less is not enough to get from fork to exec."""

MEMORY_START = 256 << 20
"""Bytes that an elastic limit starts with: agents use about 185 MB steadily, and more in bursts."""

MEMORY_LEAST = 32 << 20
"""Bytes: the default lower end of an elastic limit."""

CPU_START, CPU_LEAST = 1.0, 0.1
"""The same in cores."""

PIDS = 512
"""The default limit on tasks."""

DISK_RATE = 100_000_000
"""The default disk rate: bytes a second, per disk, for reads and for writes."""

NET_RATE = 100_000_000
"""The default network rate: bytes a second, received and sent."""

NETS = ("host", "none", "isolated")
"""The network of an agent: the host's, or a namespace of its own with only loopback, or with a link to the host."""

LOOPBACKS = ("free", "limited")
"""Whether loopback traffic counts against the network rates: agents talk to model servers there."""

ON_OFF = ("on", "off")
"""Whether an agent is paused when writes that the kernel does not limit put it ahead of its disk rates."""

SHARE = 0.8
"""The default fraction of the host that agents may use."""

PRIORITIES: Mapping[str, int] = MappingProxyType({"low": 25, "normal": 100, "high": 400})
"""Names for priorities.  A priority is a weight like ``cpu.weight``: the default is 100, and under
contention four times the weight gets four times as much."""

EVERY_DISK = ""
"""The key in a ``Rates`` for all disks that have no rate of their own."""


class Host(Record):
    """What the host has: processors, memory and page size in bytes, and the hard RLIMIT_NOFILE."""

    cpus: int
    memory: int
    page: int = 4096
    nofile: int = 1 << 20


class Range(Record):
    """The range of an elastic limit, in its resource's unit."""

    least: float
    most: float


class Precedence(Record):
    """The precedence of one agent's cgroup (its home) relative to the others'.

    ``weight`` is its share of CPU and disks under contention (cpu.weight, io.weight), 1 to 10000.
    ``protected`` bytes are reclaimed only when the others have nothing left to reclaim (memory.low).
    """

    weight: int = 100
    protected: int = 0

    @classmethod
    def of(cls, priority: int, memory: float) -> Precedence:
        """Return the precedence of an agent with this priority and this much guaranteed memory."""
        return cls(priority, int(memory) if priority > PRIORITIES["normal"] else 0)


class ControlLine(Record):
    """One line to write to a control file; reading it back must give the same.

    ``key`` is the device for nested-keyed files (``io.max``): only that line is compared.  An
    ``optional`` line helps if the kernel has the file; the limits hold without it.
    """

    file: str
    text: str
    key: str = ""
    optional: bool = False

    @property
    def controller(self) -> str:
        """The controller that owns the file: ``memory`` for ``memory.max``."""
        return self.file.partition(".")[0]


class UnenforcedLimit(Record):
    """A limit that is not in force: the line, and why."""

    line: ControlLine
    why: str


class IoMax(Record):
    """The line of ``io.max`` for one device (``MAJ:MIN``): bytes and operations a second."""

    device: str
    rbps: int | Max = MAX
    wbps: int | Max = MAX
    riops: int | Max = MAX
    wiops: int | Max = MAX

    def line(self) -> ControlLine:
        rates = f"rbps={self.rbps} wbps={self.wbps} riops={self.riops} wiops={self.wiops}"
        return ControlLine("io.max", f"{self.device} {rates}", key=self.device)


class NetworkMax(Record):
    """What an agent may receive and send, in bytes a second, and whether loopback counts (:data:`LOOPBACKS`).

    There is no control file for it, but its text has their form and appears in the same places.
    """

    net_in: int | Max = MAX
    net_out: int | Max = MAX
    loopback: str = LOOPBACKS[0]

    def line(self) -> ControlLine:
        return ControlLine(NETWORK, f"in={self.net_in} out={self.net_out} loopback={self.loopback}")


OOM_GROUP = "memory.oom.group"
"""The control file that is written together with memory.max."""

CPUSET = "cpuset.cpus"
"""The control file for the CPUs that an agent is bound to."""

NETWORK = "network"
"""The name that stands in for a control file of the network rates."""


class Limits(Record):
    """The limits of one agent; for elastic limits, their initial values."""

    # Cores.
    cpu: float | Max | None = None
    # A number of CPUs, or a list of them in the kernel's form.
    cpuset: int | str | None = None
    # Bytes.
    memory: int | Max | None = None
    swap: int | Max | None = None
    # Tasks; each thread counts.
    pids: int | Max | None = None
    # Bytes a second; then operations a second.
    io_read: Rates = MappingProxyType({})
    io_write: Rates = MappingProxyType({})
    io_read_iops: Rates = MappingProxyType({})
    io_write_iops: Rates = MappingProxyType({})
    # File descriptors per process: RLIMIT_NOFILE, soft and hard.
    nofile: int | None = None
    # Bytes a second.
    net_in: int | Max | None = None
    net_out: int | Max | None = None
    # One of NETS, of LOOPBACKS and of ON_OFF.
    net: str = NETS[0]
    net_loopback: str = LOOPBACKS[0]
    io_strict: str = ON_OFF[0]
    # The ranges of the elastic ones, by field, or by ``io_read=/dev/vda`` for the rate of one disk.
    ranges: Mapping[str, Range] = MappingProxyType({})

    def lines(self, io_max: Iterable[IoMax] = ()) -> list[ControlLine]:
        """Return the lines to write, in the order in which they must be written.

        ``io_max`` holds the disk rates by device number (:func:`io_max_lines`).
        """
        lines = []
        if self.cpu is not None:
            lines.append(ControlLine("cpu.max", text := cpu_max(self.cpu)))
            if "cpu" in self.ranges and self.cpu != MAX:
                # Agents idle and then want much CPU at once.  One period's unused quota bridges the
                # time until the limit is raised.  Over many periods cpu.max holds as before.
                # Linux 5.14.  Written after cpu.max: the kernel accepts no burst above the quota.
                lines.append(ControlLine("cpu.max.burst", text.split()[0], optional=True))
        if self.cpus:
            lines.append(ControlLine(CPUSET, self.cpus))
        if self.memory is not None:
            # Kill one process, not the whole group: a tool call that grows too large must not
            # take down the agent and its context.
            lines.append(ControlLine(OOM_GROUP, "0"))
            lines.append(ControlLine("memory.max", str(self.memory)))
        if self.swap is not None:
            lines.append(ControlLine("memory.swap.max", str(self.swap)))
        if self.pids is not None:
            lines.append(ControlLine("pids.max", str(self.pids)))
        lines.extend(rates.line() for rates in io_max)
        return lines

    @property
    def cpus(self) -> str:
        """The list of CPUs that the agent is bound to; empty if it is unbound, or they are not chosen yet."""
        return self.cpuset if isinstance(self.cpuset, str) and self.cpuset != MAX else ""

    @property
    def network(self) -> NetworkMax | None:
        """The network rates; None if the agent has no network."""
        if self.net == "none":
            return None
        return NetworkMax(self.net_in or MAX, self.net_out or MAX, self.net_loopback)

    @property
    def limits_network(self) -> bool:
        """Whether a network rate is set."""
        return self.net != "none" and not {self.net_in, self.net_out} <= {MAX, None}

    @property
    def disk_rates(self) -> dict[str, Rates]:
        """The four disk rates by their key in ``io.max``."""
        return {LIMIT_SPECS[key].io_key: getattr(self, key) for key in DISKS}

    @property
    def named_devices(self) -> set[str]:
        """The devices that have their own rate, as the user named them."""
        return {name for rates in self.disk_rates.values() for name in rates} - {EVERY_DISK}

    @property
    def named_write_devices(self) -> list[str]:
        """The devices that have their own rate for writes."""
        rates = {**self.io_write, **self.io_write_iops}
        return [name for name, rate in rates.items() if name != EVERY_DISK and rate != MAX]

    @property
    def only_bytes_of_every_disk(self) -> bool:
        """Whether no disk has its own rate, and no rate limits operations."""
        operations = {*self.io_read_iops.values(), *self.io_write_iops.values()}
        return not self.named_devices and operations <= {MAX}

    @property
    def limits_every_disk(self) -> bool:
        """Whether some rate applies to every disk."""
        return any(rates.get(EVERY_DISK, MAX) != MAX for rates in self.disk_rates.values())


def defaults(host: Host, share: float = SHARE) -> Limits:
    """Return the default limits; ``share`` is the fraction of the host that agents may use.

    Memory and CPU are elastic: an agent that meets such a limit waits a moment for the raise.  A later
    raise cannot undo a fork or an open(2) that failed, so the limits on tasks and open files are fixed,
    at values that agents do not reach.  Disk rates are fixed so that a disk stays usable for others.
    """
    ranges = {}
    memory, cpu = page_align(int(host.memory * share), host.page), round(host.cpus * share, 2)
    if memory > MEMORY_LEAST:
        ranges["memory"] = Range(MEMORY_LEAST, memory)
    if cpu > CPU_LEAST:
        ranges["cpu"] = Range(CPU_LEAST, cpu)
    return Limits(
        cpu=min(CPU_START, max(cpu, CPU_MIN)),
        memory=min(MEMORY_START, memory),
        swap=0,
        pids=PIDS,
        io_read={EVERY_DISK: DISK_RATE},
        io_write={EVERY_DISK: DISK_RATE},
        nofile=min(1000, host.nofile),
        net_in=NET_RATE,
        net_out=NET_RATE,
        ranges=ranges,
    )


def cpu_max(cores: float | str) -> str:
    """Return the text of ``cpu.max``."""
    return f"{MAX if cores == MAX else round(float(cores) * CPU_PERIOD_USEC)} {CPU_PERIOD_USEC}"


def page_align(size: int, page: int) -> int:
    """Return ``size`` bytes rounded down to whole pages, as the kernel stores it."""
    return size // page * page


def io_max_lines(
    limits: Limits, every_disk: Iterable[str], named: Mapping[str, Iterable[str]]
) -> tuple[IoMax, ...]:
    """Return the lines of ``io.max``; a disk's own rate overrides the rate for every disk.

    ``every_disk`` has the device numbers (``MAJ:MIN``) of this host's disks; ``named`` maps the names
    that the user gave to device numbers.
    """
    lines: dict[str, dict[str, int | Max]] = {}
    every = list(every_disk)
    for key, rates in limits.disk_rates.items():
        if EVERY_DISK in rates:
            for device in every:
                lines.setdefault(device, {})[key] = rates[EVERY_DISK]
        for name, rate in rates.items():
            for device in named[name] if name != EVERY_DISK else ():
                lines.setdefault(device, {})[key] = rate
    return tuple(
        IoMax(device, **rates)
        for device, rates in sorted(lines.items())
        if any(rate != MAX for rate in rates.values())
    )


# What users write.


class LimitError(ValueError):
    """A text that is not a limit: its key in :data:`LIMIT_SPECS`, the text, and what was expected."""

    def __init__(self, key: str, text: str, words: str) -> None:
        super().__init__(words)
        self.key = key
        self.text = text


class LimitSpec(Record):
    """How users write one limit, which values it may have, and where it is enforced."""

    parse: Callable[[str, Host], Any]
    least: float
    show: Callable[[float], str]
    # What the host has of it: no limit may be higher.
    whole: Callable[[Host], float] | None = None
    # Where an elastic limit starts, clamped to its range; None: at its upper end.
    start: float | None = None
    # An example of a range; empty if the limit cannot be elastic.
    example: str = ""
    unlimited: bool = True
    pages: bool = False
    # The words that it may be; empty if it is a number.
    choices: tuple[str, ...] = ()
    # The control file, and for a disk the key in it; empty if it is not set by a control file.
    file: str = ""
    io_key: str = ""
    # The resource that is watched to move it, by its name in agentres.policy.resources.
    resource: str = ""
    unit: str = "count"


def _cores(cores: float) -> str:
    return f"{cores:g} cores"


def _parse_cpuset(text: str, host: Host) -> int | str:
    from agentres.model.cpus import parse_cpuset  # few agents are bound to CPUs

    return parse_cpuset(text)


def _one_of(words: tuple[str, ...]) -> LimitSpec:
    return LimitSpec(lambda text, host: parse_choice(text, words), 0, str, choices=words)


_RATE = LimitSpec(
    lambda text, host: parse_rate(text), 1, format_rate, None, DISK_RATE, "10M:100M",
    file="io.max", unit="bytes/s",
)  # fmt: skip
_NET = _RATE.but(start=NET_RATE, file=NETWORK)
# No start below the upper end: a user who wants fewer operations sets a lower range.
_IOPS = LimitSpec(lambda text, host: parse_count(text), 1, str, example="100:5000", file="io.max")
LIMIT_SPECS: Mapping[str, LimitSpec] = MappingProxyType(
    {
        "cpu": LimitSpec(
            lambda text, host: parse_cpu(text), CPU_MIN, _cores, lambda host: host.cpus, CPU_START, "0.5:4",
            file="cpu.max", resource="cpu", unit="cores",
        ),
        "cpuset": LimitSpec(_parse_cpuset, 1, lambda n: counted(int(n), "CPU"), lambda host: host.cpus, file=CPUSET),
        "memory": LimitSpec(
            lambda text, host: parse_size(text, host.memory), MEMORY_MIN, format_size,
            lambda host: host.memory, MEMORY_START, "256M:2G",
            pages=True, file="memory.max", resource="memory", unit="bytes",
        ),
        "swap": LimitSpec(
            lambda text, host: parse_size(text), 0, format_size,
            pages=True, file="memory.swap.max", unit="bytes",
        ),
        "pids": LimitSpec(
            lambda text, host: parse_count(text), 1, str, None, PIDS, "64:512",
            file="pids.max", resource="pids",
        ),
        "io_read": _RATE.but(io_key="rbps", resource="disk_read"),
        "io_write": _RATE.but(io_key="wbps", resource="disk_write"),
        "io_read_iops": _IOPS.but(io_key="riops", resource="disk_read"),
        "io_write_iops": _IOPS.but(io_key="wiops", resource="disk_write"),
        "nofile": LimitSpec(lambda text, host: parse_count(text), 1, str, unlimited=False),
        "net_in": _NET.but(resource="network_in"),
        "net_out": _NET.but(resource="network_out"),
        "net": _one_of(NETS),
        "net_loopback": _one_of(LOOPBACKS),
        "io_strict": _one_of(ON_OFF),
    }
)  # fmt: skip
"""The limits that users can write, by their field of :class:`Limits`."""

NETWORKS = ("net_in", "net_out")
"""The limits that are network rates."""

DISKS = ("io_read", "io_write", "io_read_iops", "io_write_iops")
"""The limits that are disk rates, in the order of io.stat's counters.  Each may be given several times, as ``[DEV=]RATE``."""


def limit_spec(key: str) -> LimitSpec:
    """Return the entry of a key, which may name a disk: ``io_read=/dev/vda``."""
    return LIMIT_SPECS[key.partition("=")[0]]


def unit_of(resource: str) -> str | None:
    """Return the unit of what an action was about, by its name there; None if that has no figures: the agent."""
    key = resource.partition("=")[0]
    return LIMIT_SPECS[key].unit if key in LIMIT_SPECS else None


def read_limits(texts: Mapping[str, str | Sequence[str]], host: Host, standard: Limits) -> Limits:
    """Return the limits in ``texts``, with ``standard`` for the rest; LimitError."""
    found = standard.as_dict()
    ranges = found["ranges"] = dict(standard.ranges)
    for key, given in texts.items():
        for text in [given] if isinstance(given, str) else given:
            device, value = _device(key, text) if key in DISKS else (EVERY_DISK, text)
            try:
                first, between = _limit(LIMIT_SPECS[key], value, host)
            except UnitError as error:
                raise LimitError(key, text, str(error)) from None
            found[key] = {**found[key], device: first} if key in DISKS else first
            named = f"{key}={device}" if device else key
            ranges.pop(named, None)
            if between is not None:
                ranges[named] = between
    return Limits(**found)


def _device(key: str, text: str) -> tuple[str, str]:
    """Split ``[DEV=]RATE`` at the last ``=``: a path may contain ``=`` and ``:``, a rate contains no ``=``."""
    device, equals, rate = text.rpartition("=")
    if equals and not device.startswith("/"):
        raise LimitError(key, text, "a device is a path, as /dev/vda=50M")
    return device, rate


def _limit(spec: LimitSpec, text: str, host: Host) -> tuple[Any, Range | None]:
    """Return the initial value, and the range if it is elastic; UnitError."""
    if spec.choices:
        return spec.parse(text, host), None
    low, colon, high = text.partition(":")
    if not colon:
        return (MAX if text == MAX and spec.unlimited else _value(spec, text, host)), None
    if not spec.example:
        raise UnitError("expected one value: this limit does not move")
    expected = f"expected least:most such as {spec.example}"
    if not low or not high:
        raise UnitError(expected)
    if low == MAX:
        raise UnitError(f"{expected}: max is no least")
    if high == MAX and spec.whole is None:
        raise UnitError(f"{expected}: max is no most here, the host has no whole of it")
    least = _end(spec, low, host)
    most = _end(spec, high, host) if high != MAX or spec.whole is None else spec.whole(host)
    if spec.pages:
        most = page_align(int(most), host.page)
    if least > most:
        shown = f"{spec.show(least)}, is above its most, {spec.show(most)}"
        raise UnitError(f"{expected}: its least, {shown}")
    if least == most:
        return least, None
    start = most if spec.start is None else max(least, min(most, spec.start))
    return start, Range(least, most)


def _end(spec: LimitSpec, text: str, host: Host) -> Any:
    try:
        return _value(spec, text, host)
    except UnitError as error:
        raise UnitError(f"{text}: {error}") from None


def _value(spec: LimitSpec, text: str, host: Host) -> Any:
    value = spec.parse(text, host)
    if isinstance(value, str):  # a list of CPUs: not a quantity to compare
        return value
    if value < spec.least:
        what = "must be above 0" if value == 0 else f"is below the least, {spec.show(spec.least)}"
        raise UnitError(what)
    if spec.whole is not None and value > spec.whole(host):
        raise UnitError(f"is above the host's {spec.show(spec.whole(host))}")
    return page_align(value, host.page) if spec.pages else value


def parse_priority(text: str) -> int:
    """Return a weight from ``low``, ``normal``, ``high`` or a number; UnitError."""
    if (known := PRIORITIES.get(text)) is not None:
        return known
    expected = f"expected low, normal, high, or a whole number, 1 to {PRIORITY_MAX}"
    try:
        number = parse_count(text)
    except UnitError:
        raise UnitError(expected) from None
    if not 1 <= number <= PRIORITY_MAX:
        raise UnitError(expected)
    return number


HINTS = ("PYTHON_CPU_COUNT", "OMP_NUM_THREADS", "GOMAXPROCS", "RAYON_NUM_THREADS")
"""The environment variables that tell runtimes the number of processors: Python 3.13, OpenMP, Go, Rayon."""


def cpu_hints(limits: Limits, cpus: int) -> dict[str, str]:
    """Return variables that tell runtimes the most processors that the limits allow; empty if not fewer than ``cpus``."""
    between = limits.ranges.get("cpu")
    most = limits.cpu if between is None else between.most
    found = cpus
    if limits.cpus:
        from agentres.model.cpus import count

        found = count(limits.cpus)
    if isinstance(most, (int, float)):
        found = min(found, max(1, -int(-most // 1)))
    return dict.fromkeys(HINTS, str(found)) if found < cpus else {}
