"""Which CPUs an agent is bound to; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agentres.model.cpus import format_list


def refusal(
    wanted: Collection[int],
    present: Collection[int],
    online: Collection[int],
    allowed: Collection[int],
    by: str,
) -> str:
    """Why an agent cannot have just these CPUs; empty: it can.  ``by`` is the cgroup whose processes have the allowed ones."""
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
    """The best ``count`` of ``cpus``, of which there are as many.

    First those that the fewest other agents are bound to (``bound``: how many), then those of whose core the least is taken, by
    others or by what is chosen, then the least busy (``busy``: the part of the last moment, 0 to 1) by tenths.
    ``cores`` has the CPUs of each one's core.
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
