"""The CPUs that an agent is bound to, chosen under a lock so that no other agent chooses the same meanwhile.

Loaded only for agents that are to be bound.
"""

from __future__ import annotations

import os
from collections import Counter

from agentres.kernel import cpus, delegation, registry
from agentres.kernel.lock import Lock
from agentres.model.cpus import format_list, parse_list
from agentres.model.errors import UsageError, reason
from agentres.model.limits import CPUSET
from agentres.model.native import partial
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX
from agentres.policy.cpus import choose, refusal
from agentres.run.admission import LOCK_PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agentres.kernel.actuator import Actuator
    from agentres.kernel.cgroup import Cgroup
    from agentres.model.limits import Limits, UnenforcedLimit

_LOOK = 0.1
"""Seconds over which the load of each CPU is measured: ten ticks of the kernel's counters."""


BY_AFFINITY = "by its affinity, which it can change itself"
"""How an agent is bound if there is no cpuset controller."""


def chosen(limits: Limits, agent: Cgroup, early: Callable[[], None]) -> Limits:
    """Return the limits with the CPUs chosen, and mark the agent's cgroup with them; UsageError."""
    if limits.cpuset is None or limits.cpuset == MAX:
        return limits
    hold = partial(registry.mark_cpus, agent.fd)
    return limits.but(cpuset=take(limits.cpuset, agent.path, hold, early))


def bind(actuator: Actuator, wanted: str) -> Collection[int]:
    """Return the affinity for the main process: all CPUs, whatever ours is, if the controller binds it."""
    actuator.take_cpus(wanted)
    return cpus.mask(actuator.bound or MAX)


def loosely(missing: UnenforcedLimit) -> UnenforcedLimit:
    """Add to a missing cpuset limit that the affinity binds the agent instead."""
    if missing.line.file != CPUSET:
        return missing
    return missing.but(why=f"{missing.why}; it is bound to {missing.line.text} {BY_AFFINITY}")


def take(
    cpuset: int | str,
    agent: str,
    hold: Callable[[str], None],
    early: Callable[[], None] | None = None,
) -> str:
    """Return the list of CPUs for the agent whose cgroup is at ``agent``: the list ``cpuset``, or that many of the best.

    ``hold`` is called with the list, under the slice's lock if we choose it.  ``early`` is called while we wait for the lock,
    and may raise; None, for an agent that runs: wait only briefly.  UsageError if they cannot be had, Locked.
    """
    home = os.path.dirname(agent)
    try:
        by, allowed = cpus.allowed(home)
        if isinstance(cpuset, str):
            why = refusal(parse_list(cpuset), cpus.present(), cpus.online(), allowed, by)
            if why:
                raise UsageError(f"--cpuset: {why}")
            hold(cpuset)
            return cpuset
        # Our own affinity has a reason, which a mere number of CPUs does not override.
        ours = set(allowed) & os.sched_getaffinity(0)
        if cpuset > len(ours):
            raise UsageError(
                f"--cpuset {cpuset}: there are {len(ours)} to be had: {format_list(ours)}"
            )
        busy = cpus.busy(_LOOK)
    except OSError as error:
        raise UsageError(f"--cpuset {cpuset}: {error.filename}: {reason(error)}") from error
    slice_path = os.path.dirname(home)
    lock = Lock(slice_path) if early is None else Lock(slice_path, LOCK_PATIENCE, early, in_line=True)  # fmt: skip
    with lock:
        cores = {cpu: cpus.core(cpu) for cpu in ours}
        hold(found := format_list(choose(cpuset, ours, cores, _bound(agent), busy)))
    return found


def _bound(agent: str) -> Counter[int]:
    """Return how many other agents of the host are bound to each CPU."""
    found = Counter[int]()
    for other in registry.running(delegation.hierarchy().mount):
        if other.path != agent:
            found.update(parse_list(registry.cpus(other.path)))
    return found
