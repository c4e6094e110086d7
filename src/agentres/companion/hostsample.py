"""One sample of the whole host, through psutil; never loaded in the process beside an agent.

Sources are independent: one that is missing (a container without /sys, a kernel without PSI) leaves
only its own fields None.
"""

from __future__ import annotations

import os

import psutil

from agentres.kernel import devices
from agentres.kernel.mounts import mounts
from agentres.model import log
from agentres.model.figures import FILES, IO
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PROC = "/proc"


def host_sample() -> Sample:
    """Return the host's figures of now.  Takes milliseconds.

    The limits are the online CPUs and the physical memory.  ``pids_current`` counts processes, not
    threads.
    """
    values: dict[str, Any] = {}
    for source in _SOURCES:
        try:
            values |= source()
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            # What psutil raises for a missing source (NotImplementedError is a RuntimeError) or bad data.
            log.debug(__name__, "host: no figures of %s: %s", source.__name__.strip("_"), error)
    return Sample(**values)


def _cpu() -> dict[str, Any]:
    times = psutil.cpu_times()
    # user and nice already include guest time (proc_stat(5)); stolen time was not used by this
    # host.
    user = round((times.user + times.nice) * 1e6)
    system = round((times.system + times.irq + times.softirq) * 1e6)
    return {"usage_usec": user + system, "user_usec": user, "system_usec": system}


def _cores() -> dict[str, Any]:
    cores = psutil.cpu_count()
    return {"cpu_limit": None if cores is None else float(cores)}


def _memory() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    return {"memory_current": used, "working_set": used, "memory_limit": memory.total}


def _swap() -> dict[str, Any]:
    return {"swap_current": psutil.swap_memory().used}


def _disks() -> dict[str, Any]:
    """Return a row for each disk under a mount, by number; the sums omit disks stacked on others."""
    counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    numbers = devices.every_disk(mounts())
    rows: list[tuple[str, int, int, int, int]] = []
    for number in numbers:
        if (c := counters.get(_name(number))) is not None:
            rows.append((number, c.read_bytes, c.write_bytes, c.read_count, c.write_count))
    if not rows:
        return {}
    values: dict[str, Any] = {"disks": tuple(rows)}
    known = {row[0] for row in rows}
    bottom = [figures for number, *figures in rows if not _rests_on(number, known)]
    if bottom:
        values |= zip(IO, map(sum, zip(*bottom, strict=True)), strict=True)
    return values


def _name(number: str) -> str:
    """Return the device's name in /proc/diskstats: sysfs cciss!c0d0 is cciss/c0d0 there."""
    path = os.path.realpath(f"{devices.SYS}/dev/block/{number}")
    return os.path.basename(path).replace("!", "/")


def _rests_on(number: str, others: set[str]) -> bool:
    """Return whether one of ``others`` transfers this device's data again.

    Always true for a loop device: its file is on one of those disks, in memory, or on the network.
    """
    if os.path.exists(f"{devices.SYS}/dev/block/{number}/loop"):
        return True
    return any(below in others for below in _below(number))


def _below(number: str) -> Iterator[str]:
    """Yield all whole devices under a stacked one."""
    slaves = f"{devices.SYS}/dev/block/{number}/slaves"
    for name in os.listdir(slaves) if os.path.isdir(slaves) else ():
        with open(f"{slaves}/{name}/dev") as file:
            major, minor = map(int, file.read().split(":"))
        below = devices.whole(os.makedev(major, minor))
        yield below
        yield from _below(below)


def _processes() -> dict[str, Any]:
    return {"pids_current": len(psutil.pids())}


def _files() -> dict[str, Any]:
    with open(f"{PROC}/sys/fs/file-nr") as file:
        return {"fds": int(file.read().split()[0])}


def _pressure_of(resource: str, kinds: tuple[str, ...]) -> Callable[[], dict[str, Any]]:
    def pressure() -> dict[str, Any]:
        with open(f"{PROC}/pressure/{resource}", "rb") as file:
            found = FILES["pressure"][f"{resource}.pressure"].parse(file.read())
        return {field: found.get(field) for field in (f"{resource}_{kind}_usec" for kind in kinds)}

    return pressure


def _network() -> dict[str, Any]:
    """Sum all interfaces except lo and those on top of others (bonds, bridges, VLANs)."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    counted = [c for name, c in counters.items() if name != "lo" and not _is_carried(name)]
    if not counted:
        return {}
    return {
        "rx_bytes": sum(c.bytes_recv for c in counted),
        "rx_packets": sum(c.packets_recv for c in counted),
        "rx_dropped_packets": sum(c.dropin for c in counted),
        "tx_bytes": sum(c.bytes_sent for c in counted),
        "tx_packets": sum(c.packets_sent for c in counted),
        "tx_dropped_packets": sum(c.dropout for c in counted),
    }


def _is_carried(interface: str) -> bool:
    directory = f"{devices.SYS}/class/net/{interface}"
    try:
        return any(name.startswith("lower_") for name in os.listdir(directory))
    except OSError:  # no sysfs, or that of another network namespace: count the interface
        return False


def _load() -> dict[str, Any]:
    return dict(zip(("load1", "load5", "load15"), psutil.getloadavg(), strict=True))


_SOURCES: tuple[Callable[[], dict[str, Any]], ...] = (
    _cpu,
    _cores,
    _memory,
    _swap,
    _disks,
    _processes,
    _files,
    # "CPU full is undefined at the system level" (psi.rst): the kernel writes a 0 that means nothing.
    _pressure_of("cpu", ("some",)),
    _pressure_of("memory", ("some", "full")),
    _pressure_of("io", ("some", "full")),
    _network,
    _load,
)
