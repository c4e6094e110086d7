"""Which control file has which figures, and how these are read from its text; pure.

LookupError and ValueError are raised for text that the kernel would not write.  Other files, and limits that are read back:
:mod:`agentres.model.stats`.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Format(Record):
    """How a control file is read: its parser, and the fields that are absent where it is."""

    parse: Callable[[bytes], dict[str, Any]]
    fields: tuple[str, ...]


def flat_keyed(data: bytes) -> dict[bytes, bytes]:
    """``KEY VALUE`` a line, as they stand."""
    words = data.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def one_of(data: bytes, key: bytes) -> int:
    """The number of one line of a flat-keyed file that is long, and has another line first."""
    at = data.index(b"\n%b " % key) + len(key) + 2
    return int(data[at : data.index(b"\n", at)])


def parse_limit(data: bytes) -> int | None:
    """A limit by itself; None: ``max``."""
    return None if data == b"max\n" else int(data)


def parse_cores(data: bytes) -> float | None:
    """The limit in ``cpu.max``; None: ``max``."""
    quota, period = data.split()
    return None if quota == b"max" else int(quota) / int(period)


def _keyed(optional: tuple[str, ...] = (), **keys: str) -> Format:
    """Fields by their keys; those that are ``optional`` have their keys' names."""

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
    """A few lines of a long flat-keyed file, none of them its first."""
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


_IO = ("rbytes", "wbytes", "rios", "wios")


def _io_stat(data: bytes) -> dict[str, Any]:
    disks: list[tuple[Any, ...]] = []
    for line in data.splitlines():
        device, *fields = line.split()
        if b":" not in device:
            raise ValueError(f"{line!r} names no device")
        if fields:  # a device that has done nothing has a line without figures
            row = dict(field.split(b"=") for field in fields)
            disks.append((device.decode(), *(int(row[key.encode()]) for key in _IO)))
    totals = [sum(disk[at] for disk in disks) for at in (1, 2, 3, 4)]
    return dict(zip(_IO, totals, strict=True)) | {"disks": tuple(disks)}


FILES = {
    "cpu": {
        # The latter are absent without the cpu controller.
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
    "disk": {"io.stat": Format(_io_stat, (*_IO, "disks"))},
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
"""The files of each group that is read by itself: fields of a :class:`~agentres.model.stats.Reading`."""

USAGE_FILES = {
    "cpu.stat": FILES["cpu"]["cpu.stat"],
    "memory.peak": FILES["memory"]["memory.peak"],
    "memory.stat": FILES["memory"]["memory.stat"],
    "memory.events": _keyed(memory_max_events="max", memory_oom="oom", memory_oom_kill="oom_kill"),
    "pids.peak": _one("pids_peak"),
    "pids.events": FILES["events"]["pids.events"],
    "io.stat": FILES["disk"]["io.stat"],
}
"""Those that tell at the end what was used: fields of a :class:`~agentres.model.stats.Usage`, among others."""


def usage(files: Mapping[str, bytes]) -> tuple[Usage, dict[str, str]]:
    """What was used, from control file -> text; and control file -> what is wrong with it.

    A file that is missing or holds garbage leaves its figures None.
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
