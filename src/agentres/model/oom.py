"""The OOM killer's reports in the kernel log, whose limit it was, and what an agent's memory consisted of; pure.

Loaded only when memory ran out, which happens to few agents.
"""

from __future__ import annotations

import re

from agentres.model.figures import one_of
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import OomKill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KINDS = ("anon", "file", "shmem", "kernel", "sock")
"""Keys of memory.stat (cgroup-v2.rst): anonymous memory, page cache, tmpfs and shared memory (part of that), kernel memory, sockets."""

_BIGGEST = 3
"""How many processes a footprint names."""

# 6,339,5140900,-;message: priority, sequence, time, flags (Documentation/ABI/testing/dev-kmsg).
_KILL = re.compile(
    r"oom-kill:constraint=.*?(?:oom_memcg=(?P<limit>[^,]*),)?"
    r"(?:global_oom,)?task_memcg=(?P<group>[^,]*),task=(?P<task>.*),pid=(?P<pid>\d+),uid=(?P<uid>\d+)"
)
_ROW = re.compile(r"\[\s*(\d+)\]\s+(.*)")
_HEADING = re.compile(r"\[\s*pid\s*\]\s+(.*)")


class Resident(Record):
    """A process and its resident memory in bytes."""

    pid: int
    name: str
    size: int


class Footprint(Record):
    """What a cgroup's memory consisted of: bytes by :data:`KINDS`, and the largest processes."""

    kinds: Mapping[str, int]
    biggest: Sequence[Resident]


def biggest(processes: Sequence[Resident]) -> tuple[Resident, ...]:
    """Return the largest processes, the largest first."""
    return tuple(sorted(processes, key=lambda each: -each.size)[:_BIGGEST])


class OomCause(Record):
    """Why a process was killed for memory.

    ``limits`` are the cgroups whose limit may have been met, nearly always one; none: the host ran out; None: it is not known.
    ``footprint`` is that of the kernel's report.
    """

    limits: Sequence[str] | None
    footprint: Footprint | None = None


class FullLimit(Record):
    """A memory limit that is met: the cgroup as /proc/PID/cgroup has it, the control file, the limit in bytes."""

    cgroup: str
    file: str
    limit: int


def limits_met(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> tuple[str, ...] | None:
    """Return the cgroups above an agent that met their limit between two looks; none: the host ran out; None: it is not known.

    The looks map each cgroup up to the mount to its memory.events.local, whose ``oom`` counts events at that level alone.
    The root has none; what is mounted in a container is not the root.  A limit that was met for another agent's sake is among them.
    """
    *_, mount = now
    met = tuple(
        below_mount(path, mount)
        for path, text in now.items()
        if path in before and _ooms(text) > _ooms(before[path])
    )
    whole = [path for path, text in now.items() if b"\noom " not in text] == [mount]
    return met if met or whole else None


def _ooms(events: bytes) -> int:
    return one_of(events, b"oom") if b"\noom " in events else 0


def below_mount(path: str, mount: str) -> str:
    """Return the path of a cgroup as /proc/PID/cgroup has it; ``/`` is what is mounted."""
    return path.removeprefix(mount) or "/"


class OomReport:
    """Takes the kernel log's records in order and returns each OOM kill (mm/oom_kill.c, mm/memcontrol.c)."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._forget()

    def _forget(self) -> None:
        self._kinds: dict[str, int] = {}
        self._columns: list[str] = []
        self._processes: list[Resident] = []

    def take(self, record: str) -> OomKill | None:
        """Take a record; return the kill if this record ends its report."""
        message = record.partition(";")[2] or record
        if "invoked oom-killer" in message:
            self._forget()
        elif (match := _KILL.search(message)) is not None:
            whole = Footprint(dict(self._kinds), biggest(self._processes))
            known = whole if match["limit"] else None  # the host's report covers all its processes
            self._forget()
            return OomKill(
                int(match["pid"]), match["task"], match["group"], match["limit"] or "", known
            )
        elif (match := _HEADING.search(message)) is not None:
            self._columns = match[1].split()
        elif self._columns and (match := _ROW.search(message)) is not None:
            self._row(int(match[1]), match[2])
        else:
            # Before Linux 6.5 one record held all lines of memory.stat.
            for line in message.replace("\\x0a", "\n").splitlines():
                key, _, value = line.strip().partition(" ")
                if key in KINDS and value.isdecimal():
                    self._kinds[key] = int(value)
        return None

    def _row(self, pid: int, text: str) -> None:
        fields = text.split(None, len(self._columns) - 1)
        row = dict(zip(self._columns, fields, strict=False))
        if row.get("rss", "").isdecimal() and "name" in row:
            size = int(row["rss"]) * self._page_size
            self._processes.append(Resident(pid, row["name"].strip(), size))
