"""Which control file holds which figures, and how to parse them; pure.

There is one parser for each file *format*, named as in the kernel's cgroup-v2.rst: flat-keyed, nested-keyed, single values.
They raise LookupError or ValueError for text that the kernel would not write.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Format(Record):
    """How a control file is read: its parser, and the fields that are absent if the file is."""

    parse: Callable[[bytes], dict[str, Any]]
    fields: tuple[str, ...]


def flat_keyed(data: bytes) -> dict[bytes, bytes]:
    """Return the ``KEY VALUE`` lines of ``cpu.stat``, ``cgroup.events`` and the like as bytes, unconverted."""
    words = data.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def one_of(data: bytes, key: bytes) -> int:
    """Return the number of one line of a long flat-keyed file.  It must not be the first line."""
    at = data.index(b"\n%b " % key) + len(key) + 2
    return int(data[at : data.index(b"\n", at)])


def nested_keyed(data: bytes) -> dict[bytes, dict[bytes, bytes]]:
    """Return the ``KEY SUB=VALUE ...`` lines of ``io.stat`` and ``io.max`` as bytes, unconverted.

    A device without any I/O has a line without values (seen in ``io.stat``).
    """
    table = {}
    for line in data.splitlines():
        key, *pairs = line.split()
        table[key] = dict(pair.split(b"=") for pair in pairs)
    return table


def is_populated(data: bytes) -> bool:
    """Whether there is a live process in a cgroup or below it, by its ``cgroup.events``."""
    return flat_keyed(data)[b"populated"] == b"1"


def parse_limit(data: bytes) -> int | None:
    """Parse a file that holds a single limit; None for ``max``."""
    return None if data.rstrip() == b"max" else int(data)


def parse_cores(data: bytes) -> float | None:
    """Return the limit in ``cpu.max``, in cores; None for ``max``."""
    quota, period = data.split()
    return None if quota == b"max" else int(quota) / int(period)


def _keyed(optional: tuple[str, ...] = (), **keys: str) -> Format:
    """The format of a flat-keyed file: ``keys`` maps field to key; an ``optional`` field is named like its key."""

    def parse(data: bytes) -> dict[str, Any]:
        found = flat_keyed(data)
        values = {field: int(found[key]) for field, key in needed}
        for field in optional:
            if (count := found.get(field.encode())) is not None:
                values[field] = int(count)
        return values

    needed = [(field, key.encode()) for field, key in keys.items()]
    return Format(parse, (*keys, *optional))


def _some_of(*keys: str) -> Format:
    """The format of a few lines of a long flat-keyed file.  None of them may be the first line."""
    lines = [(name, name.encode()) for name in keys]
    return Format(lambda data: {name: one_of(data, line) for name, line in lines}, keys)


def _one(field: str) -> Format:
    return Format(lambda data: {field: int(data)}, (field,))


def _limit(field: str, parse: Callable[[bytes], float | None] = parse_limit) -> Format:
    return Format(lambda data: {field: parse(data)}, (field,))


def _pressure(kind: str) -> Format:
    def parse(data: bytes) -> dict[str, Any]:
        _, *totals = data.split(b"total=")
        if not totals:
            raise ValueError("no total")
        return {
            field: int(total[: total.index(b"\n")])
            for field, total in zip(fields[: len(totals)], totals, strict=True)
        }

    fields = (f"{kind}_some_usec", f"{kind}_full_usec")
    return Format(parse, fields)


IO = ("rbytes", "wbytes", "rios", "wios")
"""What is counted of each disk."""


def _io_stat(data: bytes) -> dict[str, Any]:
    disks: list[tuple[Any, ...]] = []
    for device, row in nested_keyed(data).items():
        if b":" not in device:
            raise ValueError(f"{device!r} is no device")
        if row:
            disks.append((device.decode(), *(int(row[key.encode()]) for key in IO)))
    totals = [sum(disk[at] for disk in disks) for at in (1, 2, 3, 4)]
    return dict(zip(IO, totals, strict=True)) | {"disks": tuple(disks)}


FILES = {
    "cpu": {
        # The first three are absent without the cpu controller.
        "cpu.stat": _keyed(
            ("nr_periods", "nr_throttled", "throttled_usec"),
            usage_usec="usage_usec",
            user_usec="user_usec",
            system_usec="system_usec",
        ),
    },
    "memory": {
        "memory.current": _one("memory_current"),
        "memory.stat": _some_of("inactive_file", "file_dirty", "file_writeback"),
        "memory.peak": _one("memory_peak"),
        "memory.swap.current": _one("swap_current"),
    },
    "disk": {"io.stat": Format(_io_stat, (*IO, "disks"))},
    "pids": {"pids.current": _one("pids_current")},
    "pressure": {f"{kind}.pressure": _pressure(kind) for kind in ("cpu", "memory", "io")},
    "events": {
        "memory.events": _keyed(
            memory_high="high", memory_max="max", memory_oom="oom", memory_oom_kill="oom_kill"
        ),
        "pids.events": _keyed(pids_max_events="max"),
        "cgroup.events": _keyed(cgroup_frozen="frozen"),
    },
    "limits": {
        "cpu.max": _limit("cpu_limit", parse_cores),
        "memory.max": _limit("memory_limit"),
        "pids.max": _limit("pids_limit"),
    },
}
"""The control files of each group; a group is read on its own.  They fill a :class:`~agentres.model.stats.Reading`."""

USAGE_FILES = {
    "cpu.stat": FILES["cpu"]["cpu.stat"],
    "memory.peak": FILES["memory"]["memory.peak"],
    "memory.stat": FILES["memory"]["memory.stat"],
    "memory.events": _keyed(memory_max_events="max", memory_oom="oom", memory_oom_kill="oom_kill"),
    "pids.peak": _one("pids_peak"),
    "pids.events": FILES["events"]["pids.events"],
    "io.stat": FILES["disk"]["io.stat"],
}
"""The control files that are read at the end of a run; they fill a :class:`~agentres.model.stats.Usage`, among others."""


def usage(files: Mapping[str, bytes]) -> tuple[Usage, dict[str, str]]:
    """Return the usage from control file -> text, and control file -> what is wrong with it.

    The figures of a file that is missing or holds garbage are None.
    """
    found: dict[str, Any] = {}
    garbage: dict[str, str] = {}
    for name, data in files.items():
        try:
            found |= USAGE_FILES[name].parse(data)
        except (ValueError, LookupError) as error:
            garbage[name] = f"holds garbage: {error!r}"
    return Usage(
        **{field: found[field] for field in Usage.__match_args__ if field in found}
    ), garbage
