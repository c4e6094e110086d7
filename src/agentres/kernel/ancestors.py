"""Which memory limits are met now, an agent's or one above it; loaded only when an agent is stalled, which is rare."""

from __future__ import annotations

from agentres.kernel import tree
from agentres.kernel.actuator import BATCH
from agentres.model import log
from agentres.model.figures import parse_limit
from agentres.model.oom import FullLimit, below_mount


def full_limits(path: str) -> list[FullLimit]:
    """Return the memory limits that are met now by the cgroup at ``path`` and those above it, the nearest first."""
    found = [path, *tree.above(path)]
    met = []
    for each in found:
        for file, batch in (("memory.high", 0), ("memory.max", BATCH)):
            try:
                limit = parse_limit(tree.read(f"{each}/{file}"))
                if limit is not None and int(tree.read(f"{each}/memory.current")) + batch >= limit:
                    met.append(FullLimit(below_mount(each, found[-1]), file, limit))
            except (OSError, ValueError) as error:  # the root has no limit
                log.debug(__name__, "%s/%s: %s", each, file, error)
    return met
