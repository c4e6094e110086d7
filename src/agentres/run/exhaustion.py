"""Messages about exhausted memory: whose limit it was, what memory held, what can be done; pure.

Loaded only when memory was full, which is the case for few agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentres.kernel.systemd import SLICE
from agentres.model.errors import printable
from agentres.model.oom import Footprint
from agentres.model.stats import OomKill
from agentres.model.units import format_size

TMPFS = "files in tmpfs and shared memory"

_NAMED = 5
"""How many of the file systems that have grown are named."""


def whose(kills: Sequence[OomKill]) -> str:
    """Say whose limit it was, if it was not the agent's own."""
    if not kills:
        return "not by this agent's limit but by one above it, or the host ran out"
    limit = printable(kills[-1].limit_cgroup)
    if not limit:
        return "not by this agent's limit: the host ran out of memory"
    if limit.endswith(f"/{SLICE}"):
        return f"not by this agent's limit but by the budget of all agents ({SLICE})"
    return f"not by this agent's limit but by that of {limit}"


def held(footprint: Footprint) -> str:
    """Say what was in memory, the largest kind first, and which processes had most of it."""
    kinds = _kinds(footprint)
    parts = sorted(kinds.items(), key=lambda part: -part[1])
    least = sum(kinds.values()) / 100
    told = ", ".join(f"{format_size(size)} {name}" for name, size in parts if size > least)
    who = ", ".join(
        f"{printable(one.name)} (pid {one.pid}) {format_size(one.size)}"
        for one in footprint.biggest
    )
    if sum(kinds.values()) < sum(one.size for one in footprint.biggest) / 2:
        # memory.stat is up to two seconds old (Linux 7.3); the processes' sizes are not.
        return f"most of it in {who}"
    return f"it held {told or 'nothing'}" + (f"; most of it in {who}" if who else "")


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
