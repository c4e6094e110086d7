"""What the OOM killer says in the kernel log, and what an agent's memory consisted of; pure.

Loaded where memory was full: few agents come to that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agentres.model.record import Record
from agentres.model.stats import OomKill

KINDS = ("anon", "file", "shmem", "kernel", "sock")
"""Keys of memory.stat (cgroup-v2.rst): what was mapped by no file, files, those of them that are in tmpfs or shared, the kernel's own, sockets."""

_BIGGEST = 3
"""So many processes are named."""

# 6,339,5140900,-;message: priority, sequence, time, flags (Documentation/ABI/testing/dev-kmsg).
_KILL = re.compile(
    r"oom-kill:constraint=.*?(?:oom_memcg=(?P<limit>[^,]*),)?"
    r"(?:global_oom,)?task_memcg=(?P<group>[^,]*),task=(?P<task>.*),pid=(?P<pid>\d+),uid=(?P<uid>\d+)"
)
_ROW = re.compile(r"\[\s*(\d+)\]\s+(.*)")
_HEADING = re.compile(r"\[\s*pid\s*\]\s+(.*)")


class Resident(Record):
    """A process and what it had in memory, bytes."""

    pid: int
    name: str
    size: int


class Footprint(Record):
    """What a cgroup's memory consisted of: bytes by :data:`KINDS`, and the processes that had most of it."""

    kinds: Mapping[str, int]
    biggest: Sequence[Resident]


def biggest(processes: Sequence[Resident]) -> tuple[Resident, ...]:
    """Those that have most, the first first."""
    return tuple(sorted(processes, key=lambda each: -each.size)[:_BIGGEST])


class Report:
    """Takes the kernel log's records one after another, and tells of each kill (mm/oom_kill.c, mm/memcontrol.c)."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._forget()

    def _forget(self) -> None:
        self._kinds: dict[str, int] = {}
        self._columns: list[str] = []
        self._processes: list[Resident] = []

    def take(self, record: str) -> OomKill | None:
        """The kill that this record ends the report of, if it does."""
        message = record.partition(";")[2] or record
        if "invoked oom-killer" in message:
            self._forget()
        elif (match := _KILL.search(message)) is not None:
            whole = Footprint(dict(self._kinds), biggest(self._processes))
            known = whole if match["limit"] else None  # the host's own has all of its processes
            self._forget()
            return OomKill(
                int(match["pid"]), match["task"], match["group"], match["limit"] or "", known
            )
        elif (match := _HEADING.search(message)) is not None:
            self._columns = match[1].split()
        elif self._columns and (match := _ROW.search(message)) is not None:
            self._row(int(match[1]), match[2])
        else:
            # Before Linux 6.5 all lines of it came in one record.
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
