"""What an agent may use, as data; pure.

:class:`Limits` says it once; :meth:`Limits.lines` turns it into (control file, text), which one
place writes (:meth:`agentres.kernel.cgroup.Cgroup.apply`).  Everywhere, ``None`` means "leave it as
it is" and ``"max"`` means "no limit".  File names and formats: the kernel's
Documentation/admin-guide/cgroup-v2.rst.

People write a limit as one value, which is fixed, or as ``least:most``, between which it moves:
:func:`read_limits` reads both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    from typing import Any

    from agentres.model.units import Max

    Rates = Mapping[str, int | Max]
    """Device as the user names it (a path, or :data:`EVERY_DISK`) -> bytes or operations a second."""

CPU_PERIOD_USEC = 100_000
"""The period in ``cpu.max``, microseconds: the kernel's default."""

CPU_MIN = 0.01
"""Cores: the kernel takes no quota below 1 ms a period (kernel/sched/core.c)."""

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes: memory.max is in whole ones."""

MEMORY_MIN = 1 << 20
"""Bytes: with less, not even the step from fork to exec fits."""

MEMORY_START = 256 << 20
"""Bytes that an elastic limit starts with: agents have a flat base of about 185 MB, and then bursts."""

MEMORY_LEAST = 32 << 20
"""Bytes below which an elastic limit does not fall where nobody said how low it may."""

CPU_START, CPU_LEAST = 1.0, 0.1
"""Cores, likewise."""

PIDS = 512
"""Tasks at once, where nothing is said."""

DISK_RATE = 100_000_000
"""Bytes a second and disk, read or written, where nothing is said."""

NET_RATE = 100_000_000
"""Bytes a second, received or sent, where nothing is said."""

NETS = ("host", "none", "isolated")
"""What network an agent is in: the host's, or one of its own: with nothing but loopback, or a wire to the host."""

LOOPBACKS = ("free", "limited")
"""Whether what goes over loopback counts for the network's rates: agents talk to model servers there."""

ON_OFF = ("on", "off")
"""Whether an agent is paused that is ahead of its disk rates by what the kernel does not hold."""

SHARE = 0.8
"""How much of the host agents may use, where nothing is said."""

PRIORITIES: Mapping[str, int] = MappingProxyType({"low": 25, "normal": 100, "high": 400})
"""Words for a priority, which is a weight like ``cpu.weight``: its default is 100, and four times as
much gets four times as much when all want it."""

EVERY_DISK = ""
"""The key in a ``Rates`` for the disks that have no rate of their own."""


class Host(Record):
    """What there is: processors, memory and its page size in bytes, and the hard RLIMIT_NOFILE."""

    cpus: int
    memory: int
    page: int = 4096
    nofile: int = 1 << 20


class Range(Record):
    """Between what an elastic limit moves, in its resource's unit."""

    least: float
    most: float


class Standing(Record):
    """How the home of one agent stands beside the others'.

    ``weight`` is its part of CPU and disks when all want them (cpu.weight, io.weight), 1 to 10000.
    ``protected`` bytes are taken back from it only when the others have no more to give (memory.low).
    """

    weight: int = 100
    protected: int = 0

    @classmethod
    def of(cls, priority: int, memory: float) -> Standing:
        """That of an agent of this priority which gets this much memory at the least."""
        return cls(priority, int(memory) if priority > PRIORITIES["normal"] else 0)


class ControlLine(Record):
    """One line to write to one control file, and to find there afterwards.

    ``key`` is the device for nested-keyed files (``io.max``): only that line is compared.
    ``optional`` is what helps where the kernel has it: without it no limit is missing.
    """

    file: str
    text: str
    key: str = ""
    optional: bool = False

    @property
    def controller(self) -> str:
        """The controller that owns the file: ``memory`` for ``memory.max``."""
        return self.file.partition(".")[0]


class Refused(Record):
    """A limit that does not hold: the line, and why."""

    line: ControlLine
    why: str


class IoMax(Record):
    """The line of ``io.max`` for one device (``MAJ:MIN``); rates a second."""

    device: str
    rbps: int | Max = MAX
    wbps: int | Max = MAX
    riops: int | Max = MAX
    wiops: int | Max = MAX

    def line(self) -> ControlLine:
        rates = f"rbps={self.rbps} wbps={self.wbps} riops={self.riops} wiops={self.wiops}"
        return ControlLine("io.max", f"{self.device} {rates}", key=self.device)


class NetworkMax(Record):
    """What an agent may receive and send, bytes a second, and whether loopback counts (:data:`LOOPBACKS`).

    No control file has it, but its text is of their kind, and is told where theirs are.
    """

    net_in: int | Max = MAX
    net_out: int | Max = MAX
    loopback: str = LOOPBACKS[0]

    def line(self) -> ControlLine:
        return ControlLine(NETWORK, f"in={self.net_in} out={self.net_out} loopback={self.loopback}")


OOM_GROUP = "memory.oom.group"
"""The control file that goes with the limit on memory."""

CPUSET = "cpuset.cpus"
"""The control file of the CPUs that an agent is bound to."""

NETWORK = "network"
"""What stands for the control file that the network's rates would have."""


class Limits(Record):
    """The limits of one agent; of an elastic one, what is written first."""

    # Cores.
    cpu: float | Max | None = None
    # How many CPUs, or a list of them as the kernel writes it.
    cpuset: int | str | None = None
    # Bytes.
    memory: int | Max | None = None
    swap: int | Max | None = None
    # Tasks: threads count.
    pids: int | Max | None = None
    # Bytes a second; then operations a second.
    io_read: Rates = MappingProxyType({})
    io_write: Rates = MappingProxyType({})
    io_read_iops: Rates = MappingProxyType({})
    io_write_iops: Rates = MappingProxyType({})
    # Descriptors of each process: RLIMIT_NOFILE, soft and hard.
    nofile: int | None = None
    # Bytes a second.
    net_in: int | Max | None = None
    net_out: int | Max | None = None
    # Among NETS, LOOPBACKS and ON_OFF.
    net: str = NETS[0]
    net_loopback: str = LOOPBACKS[0]
    io_strict: str = ON_OFF[0]
    # Which of them are elastic, by field, or ``io_read=/dev/vda`` for the rate of one disk.
    ranges: Mapping[str, Range] = MappingProxyType({})

    def lines(self, io_max: Iterable[IoMax] = ()) -> list[ControlLine]:
        """The control files' contents, in the order in which they are to be written.

        ``io_max`` is the disk rates by device number (:func:`io_max_lines`).
        """
        lines = []
        if self.cpu is not None:
            lines.append(ControlLine("cpu.max", text := cpu_max(self.cpu)))
            if "cpu" in self.ranges and self.cpu != MAX:
                # An agent idles and then wants all at once: one period's quota that it left unused
                # helps over the time until the limit is raised.  Over many periods cpu.max holds as
                # before.  Linux 5.14; the kernel takes no more than the quota, so it comes second.
                lines.append(ControlLine("cpu.max.burst", text.split()[0], optional=True))
        if self.cpus:
            lines.append(ControlLine(CPUSET, self.cpus))
        if self.memory is not None:
            # One process is killed, not all of them: a tool call that grows too large must not
            # take the agent and its context with it.
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
        """The list of CPUs that it is bound to; empty: to none, or they are still to be chosen."""
        return self.cpuset if isinstance(self.cpuset, str) and self.cpuset != MAX else ""

    @property
    def network(self) -> NetworkMax | None:
        """The network's rates; None where there is nothing to send to."""
        if self.net == "none":
            return None
        return NetworkMax(self.net_in or MAX, self.net_out or MAX, self.net_loopback)

    @property
    def limits_network(self) -> bool:
        """Whether a rate of the network is asked for."""
        return self.net != "none" and not {self.net_in, self.net_out} <= {MAX, None}

    @property
    def disk_rates(self) -> dict[str, Rates]:
        """The four disk rates by their key in ``io.max``."""
        return {WRITTEN[key].io_key: getattr(self, key) for key in DISKS}

    @property
    def named_devices(self) -> set[str]:
        """The devices that have a rate of their own, as the user named them."""
        return {name for rates in self.disk_rates.values() for name in rates} - {EVERY_DISK}

    @property
    def named_written(self) -> list[str]:
        """Those of them whose writes have one."""
        written = {**self.io_write, **self.io_write_iops}
        return [name for name, rate in written.items() if name != EVERY_DISK and rate != MAX]

    @property
    def only_bytes_of_every_disk(self) -> bool:
        """Whether no disk has a rate of its own, and none is of operations."""
        operations = {*self.io_read_iops.values(), *self.io_write_iops.values()}
        return not self.named_devices and operations <= {MAX}

    @property
    def limits_every_disk(self) -> bool:
        """Whether some rate is asked for on all disks."""
        return any(rates.get(EVERY_DISK, MAX) != MAX for rates in self.disk_rates.values())


def defaults(host: Host, share: float = SHARE) -> Limits:
    """What holds when nothing is said; ``share`` is how much of the host agents may use.

    Memory and CPU are elastic: who meets such a limit waits a moment, and the raise makes it good.  A
    fork or an open(2) that was refused is not made good by a raise that comes later, so that those
    limits are fixed at what agents do not meet; disk rates at what leaves a disk usable for others.
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
    """The text of ``cpu.max``."""
    return f"{MAX if cores == MAX else round(float(cores) * CPU_PERIOD_USEC)} {CPU_PERIOD_USEC}"


def page_align(size: int, page: int) -> int:
    """``size`` bytes rounded down to whole pages, as the kernel stores it."""
    return size // page * page


def io_max_lines(
    limits: Limits, every_disk: Iterable[str], named: Mapping[str, Iterable[str]]
) -> tuple[IoMax, ...]:
    """The lines of ``io.max``: a rate of its own beats the rate for every disk.

    ``every_disk`` are the device numbers (``MAJ:MIN``) that count on this host; ``named`` maps the
    names that the user gave to the device numbers behind them.
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


# What people write.


class LimitError(ValueError):
    """A text that is no limit: its key among :data:`WRITTEN`, the text, and what was expected."""

    def __init__(self, key: str, text: str, words: str) -> None:
        super().__init__(words)
        self.key = key
        self.text = text


class Written(Record):
    """How one of the limits is written by people and to the kernel, and what it may be."""

    parse: Callable[[str, Host], Any]
    least: float
    show: Callable[[float], str]
    # What the host has of it, of which nobody gets more.
    whole: Callable[[Host], float] | None = None
    # Where an elastic one starts, as near as its range allows; None: at its most.
    start: float | None = None
    # A range; without one the limit is fixed.
    example: str = ""
    unlimited: bool = True
    pages: bool = False
    # It is one of these words, and no number.
    choices: tuple[str, ...] = ()
    # The control file, and for a disk the key in it; empty: another call holds it.
    file: str = ""
    io_key: str = ""
    # What is looked at to move it, by its name in agentres.policy.resources.
    resource: str = ""
    unit: str = "count"


def _cores(cores: float) -> str:
    return f"{cores:g} cores"


def _parse_cpuset(text: str, host: Host) -> int | str:
    from agentres.model.cpus import parse_cpuset  # few agents are bound to CPUs

    return parse_cpuset(text)


def _one_of(words: tuple[str, ...]) -> Written:
    return Written(lambda text, host: parse_choice(text, words), 0, str, choices=words)


_RATE = Written(
    lambda text, host: parse_rate(text), 1, format_rate, None, DISK_RATE, "10M:100M",
    file="io.max", unit="bytes/s",
)  # fmt: skip
_NET = _RATE.but(start=NET_RATE, file=NETWORK)
# Nobody asked for few of them: those who want less say less.
_IOPS = Written(lambda text, host: parse_count(text), 1, str, example="100:5000", file="io.max")
WRITTEN: Mapping[str, Written] = MappingProxyType(
    {
        "cpu": Written(
            lambda text, host: parse_cpu(text), CPU_MIN, _cores, lambda host: host.cpus, CPU_START, "0.5:4",
            file="cpu.max", resource="cpu", unit="cores",
        ),
        "cpuset": Written(_parse_cpuset, 1, lambda n: counted(int(n), "CPU"), lambda host: host.cpus, file=CPUSET),
        "memory": Written(
            lambda text, host: parse_size(text, host.memory), MEMORY_MIN, format_size,
            lambda host: host.memory, MEMORY_START, "256M:2G",
            pages=True, file="memory.max", resource="memory", unit="bytes",
        ),
        "swap": Written(
            lambda text, host: parse_size(text), 0, format_size,
            pages=True, file="memory.swap.max", unit="bytes",
        ),
        "pids": Written(
            lambda text, host: parse_count(text), 1, str, None, PIDS, "64:512",
            file="pids.max", resource="pids",
        ),
        "io_read": _RATE.but(io_key="rbps", resource="disk_read"),
        "io_write": _RATE.but(io_key="wbps", resource="disk_write"),
        "io_read_iops": _IOPS.but(io_key="riops", resource="disk_read"),
        "io_write_iops": _IOPS.but(io_key="wiops", resource="disk_write"),
        "nofile": Written(lambda text, host: parse_count(text), 1, str, unlimited=False),
        "net_in": _NET.but(resource="network_in"),
        "net_out": _NET.but(resource="network_out"),
        "net": _one_of(NETS),
        "net_loopback": _one_of(LOOPBACKS),
        "io_strict": _one_of(ON_OFF),
    }
)  # fmt: skip
"""The limits that can be written, by their field of :class:`Limits`."""

NETWORKS = ("net_in", "net_out")
"""Those of them that are rates of the network."""

DISKS = ("io_read", "io_write", "io_read_iops", "io_write_iops")
"""Those of them that each disk has, and that may be written several times: ``[DEV=]RATE``; in the order of io.stat's counters."""


def written(key: str) -> Written:
    """The limit of a key, which may name a disk: ``io_read=/dev/vda``."""
    return WRITTEN[key.partition("=")[0]]


def read_limits(texts: Mapping[str, str | Sequence[str]], host: Host, standard: Limits) -> Limits:
    """The limits that are written as ``texts``, over those of ``standard``; LimitError."""
    found = standard.as_dict()
    ranges = found["ranges"] = dict(standard.ranges)
    for key, given in texts.items():
        for text in [given] if isinstance(given, str) else given:
            device, value = _device(key, text) if key in DISKS else (EVERY_DISK, text)
            try:
                first, between = _limit(WRITTEN[key], value, host)
            except UnitError as error:
                raise LimitError(key, text, str(error)) from None
            found[key] = {**found[key], device: first} if key in DISKS else first
            named = f"{key}={device}" if device else key
            ranges.pop(named, None)
            if between is not None:
                ranges[named] = between
    return Limits(**found)


def _device(key: str, text: str) -> tuple[str, str]:
    """A path may have ``=`` and ``:`` in it, a rate has no ``=``."""
    device, equals, rate = text.rpartition("=")
    if equals and not device.startswith("/"):
        raise LimitError(key, text, "a device is a path, as /dev/vda=50M")
    return device, rate


def _limit(written: Written, text: str, host: Host) -> tuple[Any, Range | None]:
    """What is written first, and between what it moves; UnitError."""
    if written.choices:
        return written.parse(text, host), None
    low, colon, high = text.partition(":")
    if not colon:
        return (MAX if text == MAX and written.unlimited else _value(written, text, host)), None
    if not written.example:
        raise UnitError("expected one value: this limit does not move")
    expected = f"expected least:most such as {written.example}"
    if not low or not high:
        raise UnitError(expected)
    if low == MAX:
        raise UnitError(f"{expected}: max is no least")
    if high == MAX and written.whole is None:
        raise UnitError(f"{expected}: max is no most here, the host has no whole of it")
    least = _end(written, low, host)
    most = (
        _end(written, high, host) if high != MAX or written.whole is None else written.whole(host)
    )
    if written.pages:
        most = page_align(int(most), host.page)
    if least > most:
        shown = f"{written.show(least)}, is above its most, {written.show(most)}"
        raise UnitError(f"{expected}: its least, {shown}")
    if least == most:
        return least, None
    start = most if written.start is None else max(least, min(most, written.start))
    return start, Range(least, most)


def _end(written: Written, text: str, host: Host) -> Any:
    try:
        return _value(written, text, host)
    except UnitError as error:
        raise UnitError(f"{text}: {error}") from None


def _value(written: Written, text: str, host: Host) -> Any:
    value = written.parse(text, host)
    if isinstance(value, str):  # a list: its CPUs have numbers, and no size
        return value
    if value < written.least:
        what = (
            "must be above 0"
            if value == 0
            else f"is below the least, {written.show(written.least)}"
        )
        raise UnitError(what)
    if written.whole is not None and value > written.whole(host):
        raise UnitError(f"is above the host's {written.show(written.whole(host))}")
    return page_align(value, host.page) if written.pages else value


def parse_priority(text: str) -> int:
    """A weight from ``low``, ``normal``, ``high`` or a number; UnitError."""
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
"""The variables by which runtimes are told how many processors there are: Python 3.13, OpenMP, Go, Rayon."""


def cpu_hints(limits: Limits, cpus: int) -> dict[str, str]:
    """What tells runtimes how many processors the limits come to at the most; empty where that is no less than the host's."""
    between = limits.ranges.get("cpu")
    most = limits.cpu if between is None else between.most
    found = cpus
    if limits.cpus:
        from agentres.model.cpus import count

        found = count(limits.cpus)
    if isinstance(most, (int, float)):
        found = min(found, max(1, -int(-most // 1)))
    return dict.fromkeys(HINTS, str(found)) if found < cpus else {}
