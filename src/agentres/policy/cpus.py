"""Which CPUs an agent is bound to; pure."""

from __future__ import annotations

from agentres.model.cpus import format_list
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def refusal(
    wanted: Collection[int],
    present: Collection[int],
    online: Collection[int],
    allowed: Collection[int],
    by: str,
) -> str:
    """Say why an agent cannot have exactly these CPUs; empty if it can.  ``by`` is the cgroup that restricts it to ``allowed``."""
    for here, why in (
        (present, f"not on this host, which has {format_list(present)}"),
        (online, "offline"),
        (allowed, f"not for the processes in {by}, which have {format_list(allowed)}"),
    ):
        if missing := sorted(set(wanted) - set(here)):
            who = (
                f"CPU {missing[0]} is" if len(missing) == 1 else f"CPUs {format_list(missing)} are"
            )
            return f"{who} {why}"
    return ""


def choose(
    count: int,
    cpus: Collection[int],
    cores: Mapping[int, Collection[int]],
    bound: Mapping[int, int],
    busy: Mapping[int, float],
) -> list[int]:
    """Return the best ``count`` of ``cpus``, which must have at least that many.

    Prefer CPUs to which the fewest other agents are bound (``bound``: how many), then those whose core has the fewest bindings
    and chosen CPUs, then the least busy core, then the least busy CPU, in tenths (``busy``: the fraction just measured, 0 to
    1).  ``cores`` maps each CPU to the CPUs of its core.
    """
    chosen: list[int] = []

    def rank(cpu: int) -> tuple[float, ...]:
        core = cores.get(cpu, (cpu,))
        taken = sum(bound.get(each, 0) + (each in chosen) for each in core)
        at_work = sum(busy.get(each, 0.0) for each in core)
        return bound.get(cpu, 0), taken, round(at_work, 1), round(busy.get(cpu, 0.0), 1), cpu

    while len(chosen) < count:
        chosen.append(min(set(cpus) - set(chosen), key=rank))
    return chosen
