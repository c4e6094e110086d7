"""Messages about exhausted memory: whose limit it was, what memory held, what can be done; pure.

Loaded only when memory was full, which is the case for few agents.
"""

from __future__ import annotations

from agentres.kernel.systemd import SLICE
from agentres.model.errors import printable, printable_path
from agentres.model.oom import Footprint, FullLimit
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TMPFS = "files in tmpfs and shared memory"

_NAMED = 5
"""How many of the file systems that have grown are named."""


def whose(limits: Sequence[str] | None, cgroup: str) -> str:
    """Say whose limit it was (:class:`agentres.model.oom.OomCause`), if it was not that of the agent in ``cgroup``; else ""."""
    if limits is None:
        return "not by this agent's limit but by one above it, or the host ran out"
    if not limits:
        return "not by this agent's limit: the host ran out of memory"
    above = [limit for limit in limits if _is_above(limit, cgroup)]
    if len(above) < len(limits):
        return ""
    return f"not by this agent's limit but by that of {' or '.join(map(_whose, above))}"


def stalled(met: Sequence[FullLimit], cgroup: str) -> str:
    """Say which of the limits that are met holds up the agent in ``cgroup``, an absolute path."""
    above = [
        f"{limit.file} of {_whose(limit.cgroup)}, {format_size(limit.limit)}"
        for limit in met
        if _is_above(limit.cgroup, cgroup)
    ]
    if above:
        return f"by {', and by '.join(above)}: not this agent's to lift"
    for limit in met:
        return f"by its own limit, {format_size(limit.limit)}: the kernel takes memory back, and has not killed"
    return "no limit of its own or above it is met: the host is short of memory, or a limit that is not seen here holds it up"


def _is_above(limit: str, cgroup: str) -> bool:
    """Whether a limit is that of a cgroup around ``cgroup``, an absolute path."""
    return f"{limit.rstrip('/')}/" in cgroup


def _whose(limit: str) -> str:
    if limit.endswith(f"/{SLICE}"):
        return f"the budget of all agents ({SLICE})"
    return printable_path(limit)


def held(footprint: Footprint) -> str:
    """Say what was in memory, the largest kind first, and which processes had most of it."""
    kinds = _kinds(footprint)
    parts = sorted(kinds.items(), key=lambda part: -part[1])
    least = sum(kinds.values()) / 100
    contents = ", ".join(f"{format_size(size)} {name}" for name, size in parts if size > least)
    who = ", ".join(
        f"{printable(one.name)} (pid {one.pid}) {format_size(one.size)}"
        for one in footprint.biggest
    )
    if sum(kinds.values()) < sum(one.size for one in footprint.biggest) / 2:
        # memory.stat is up to two seconds old (Linux 7.3); the processes' sizes are not.
        return f"most of it in {who}"
    return f"it held {contents or 'nothing'}" + (f"; most of it in {who}" if who else "")


def _kinds(footprint: Footprint) -> dict[str, int]:
    found = footprint.kinds
    files, in_memory = found.get("file", 0), found.get("shmem", 0)
    return {
        "anonymous": found.get("anon", 0),
        TMPFS: in_memory,
        "page cache": max(0, files - in_memory),
        "kernel memory": found.get("kernel", 0),
        "socket buffers": found.get("sock", 0),
    }


def remedy(footprint: Footprint | None, grown: Mapping[str, int]) -> str:
    """Say what can be done; ``grown`` is by how many bytes each tmpfs has grown: easily missed as a cause."""
    kinds = {} if footprint is None else _kinds(footprint)
    if kinds and kinds[TMPFS] >= sum(kinds.values()) / 3:
        most = sorted(grown.items(), key=lambda each: -each[1])[:_NAMED]
        where = ", ".join(f"{printable(at)} by {format_size(size)}" for at, size in most)
        return (
            "files in tmpfs are memory until they are removed"
            + (f" (grown: {where})" if where else "")
            + ": have it write them to a disk, or raise --memory"
        )
    return "raise --memory or have it hold less at once"
