"""Reads which cgroups, an agent's and those above it, met their memory limit; unlike the kernel log, everybody may read that."""

from __future__ import annotations

import os

from agentres.model import log
from agentres.model.figures import one_of, parse_limit
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import FullLimit, OomCounts

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH = 1 << 20
"""The most bytes by which a cgroup at its memory.max may seem to be below: the kernel charges in batches, for each processor."""


def _above(path: str) -> Iterator[str]:
    """Yield the cgroups above the one at ``path`` as far as they are mounted, the nearest first."""
    while os.path.exists(f"{(path := os.path.dirname(path))}/cgroup.controllers"):
        yield path


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def oom_counts(path: str) -> OomCounts:
    """Return how often each cgroup above the one at ``path`` was out of memory at its own limit (memory.events.local)."""
    found = list(_above(path))
    counts = {}
    for each in found:
        try:
            text = _read(f"{each}/memory.events.local")
            counts[_name(each, found[-1])] = one_of(text, b"oom")
        except (OSError, ValueError) as error:  # the root has no such file
            log.debug(__name__, "%s: %s", each, error)
    return OomCounts(counts, "/" not in counts and len(counts) == len(found) - 1)


def full_limits(path: str) -> list[FullLimit]:
    """Return the memory limits that are met now by the cgroup at ``path`` and those above it, the nearest first."""
    found = [path, *_above(path)]
    met = []
    for each in found:
        for file, batch in (("memory.high", 0), ("memory.max", _BATCH)):
            try:
                limit = parse_limit(_read(f"{each}/{file}"))
                if limit is not None and int(_read(f"{each}/memory.current")) + batch >= limit:
                    met.append(FullLimit(_name(each, found[-1]), file, limit))
            except (OSError, ValueError) as error:  # the root has no limit
                log.debug(__name__, "%s/%s: %s", each, file, error)
    return met


def _name(path: str, mount: str) -> str:
    """Return the path of a cgroup as /proc/PID/cgroup has it; ``/`` is what is mounted."""
    return path.removeprefix(mount) or "/"
