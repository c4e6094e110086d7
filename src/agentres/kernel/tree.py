"""Reads from the cgroups of a slice what its agents have and want.

The tree is the record: limits are read back from it, never remembered, so that supervisors agree
without knowing each other.
"""

from __future__ import annotations

import os
import time

from agentres.kernel import host, process, registry
from agentres.kernel.systemd import PREFIX, SLICE, UNIT_PREFIX
from agentres.model import log
from agentres.model.figures import one_of, parse_cores, parse_limit
from agentres.model.limits import PAGE, page_align
from agentres.model.record import TYPE_CHECKING
from agentres.policy.capacity import Budget, Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from agentres.kernel.delegation import Place

    T = TypeVar("T", int, float)


def claims(path: str) -> list[Claim]:
    """Return the claims of the agents of the slice at ``path``, without nested agents, in the order of their start.

    An agent that vanishes meanwhile is left out, and so are the remains of a killed run.
    """
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return sorted(_claims(path, now), key=lambda claim: (claim.started, claim.path))


def _claims(path: str, now: float) -> Iterator[Claim]:
    try:
        with os.scandir(path) as entries:
            homes = [
                entry.path for entry in entries if entry.name.startswith((PREFIX, UNIT_PREFIX))
            ]
    except OSError as error:
        log.debug(__name__, "not looked into: %s", error)
        return
    for home in homes:
        try:
            orphan = not process.populated(f"{home}/supervisor")
            if orphan and not process.populated(home):
                log.debug(__name__, "%s was left by a run that was killed", home)
                continue
            yield _read_claim(home, orphan, now)
        except (OSError, ValueError) as error:
            log.debug(__name__, "%s is no agent's: %s", home, error)


def _read_claim(home: str, orphan: bool, now: float) -> Claim:
    agent = f"{home}/{registry.LEAF}"
    name, started = registry.identity(agent)
    said = registry.claim_mark(agent)
    if said is None:
        orphan, said = True, registry.ClaimMark()
    limit = parse_limit(read(f"{agent}/memory.max"))
    current = int(read(f"{agent}/memory.current"))
    stat = read(f"{agent}/memory.stat")
    use = max(0, current - one_of(stat, b"inactive_file"))
    swap, swapped = _swap(agent, stat, now)
    # cgroup.freeze, what was asked for, not whether all tasks have stopped: no agent is to be frozen twice.
    frozen = read(f"{agent}/cgroup.freeze") == b"1\n" and (orphan or not registry.is_paused(agent))
    return Claim(
        agent,
        name,
        started,
        limit,
        use,
        said.priority,
        said.least,
        said.wants,
        min(said.since, now),  # a time in the future would make all others wait for it
        frozen,
        said.most,
        orphan,
        swap,
        swapped,
        swap > 0 and registry.is_idle(agent),
        # The supervisor's memory: 0 if elastic, as such an agent leaves the last of its limit unused, which covers it.
        0 if said.most else max(0, int(read(f"{home}/memory.current")) - current),
    )


def _swap(agent: str, stat: bytes, now: float) -> tuple[int, int]:
    """Return the bytes of the agent that may still go to swap, and those that are only in swap."""
    try:
        limit = read(f"{agent}/memory.swap.max")
        if limit == b"0\n":  # nearly all have none
            return 0, 0
        current = int(read(f"{agent}/memory.swap.current"))
        cached = one_of(stat, b"swapcached")  # in swap, and in memory as well
    except (FileNotFoundError, ValueError):  # a kernel without swap
        return 0, 0
    most = parse_limit(limit)
    left = host.swap_free() if most is None else min(most - current, host.swap_free())
    return 0 if registry.keeps(agent, now) else max(0, left), max(0, current - cached)


def thaw(path: str) -> None:
    """Thaw the agent at ``path``, frozen by a supervisor that is gone.  OSError."""
    fd = os.open(f"{path}/cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def slice_of(place: Place, uid: int) -> str:
    """Return the cgroup with the homes of the agents that ``uid`` starts at ``place``; it may not exist yet."""
    if place.kind == "direct":
        return f"{place.where}/{SLICE}"
    manager = f"/user.slice/user-{uid}.slice/user@{uid}.service" if place.kind == "user" else ""
    return f"{place.hierarchy.mount}{_init()}{manager}/{SLICE}"


def _init() -> str:
    """Return the path below the mount of the cgroup that PID 1 manages; empty, the root, unless it runs in a container."""
    try:
        own = process.cgroup(1)
    except OSError:  # hidepid: proc(5)
        return ""
    return own.removesuffix("/init.scope") if own.endswith("/init.scope") else ""


def budget(path: str, memory: int, share: float) -> Budget:
    """Return what all agents of the slice at ``path`` may have together, on a host with ``memory`` bytes.

    That is ``share`` of ``memory``, or the memory.max of the slice or a cgroup above it, if that is less.
    In whole pages, as the kernel keeps limits.
    """
    most, by = _held(path, "memory.max", parse_limit, page_align(int(memory * share), PAGE))
    return Budget(memory, share, most, by)


def cores(path: str) -> float | None:
    """Return what ``cpu.max`` of the cgroup at ``path`` allows, in cores; None: no limit."""
    return _limit(f"{path}/cpu.max", parse_cores)


def cpu_budget(path: str, cpus: int, share: float) -> tuple[float, str]:
    """Return :func:`budget` in cores, and the cgroup whose limit sets it; empty: none."""
    return _held(path, "cpu.max", parse_cores, cpus * share)


def _held(path: str, file: str, parse: Callable[[bytes], T | None], most: T) -> tuple[T, str]:
    """Return what the cgroup at ``path`` may have, at most ``most``, and which cgroup limits it: itself or one above; empty: none.

    If ``path`` does not exist yet, only those above it count.
    """
    by = ""
    while len(path) > 1:
        if os.path.exists(f"{path}/cgroup.controllers"):
            limit = _limit(f"{path}/{file}", parse)
            if limit is not None and limit <= most:
                most, by = limit, path
        path = os.path.dirname(path)
    return most, by


def above(path: str) -> Iterator[str]:
    """Yield the cgroups above the one at ``path`` as far as they are mounted, the nearest first."""
    while os.path.exists(f"{(path := os.path.dirname(path))}/cgroup.controllers"):
        yield path


def local_events(path: str) -> dict[str, bytes]:
    """Return memory.events.local of each cgroup above the one at ``path``, the nearest first; empty where there is none, as in the root."""
    found = {}
    for each in above(path):
        try:
            found[each] = read(f"{each}/memory.events.local")
        except OSError:
            found[each] = b""
    return found


def _limit(file: str, parse: Callable[[bytes], T | None]) -> T | None:
    """Return a limit; None where it is ``max`` or does not exist: the root has none."""
    try:
        return parse(read(file))
    except (OSError, ValueError) as error:
        log.debug(__name__, "%s holds nothing: %s", file, error)
        return None


def read(path: str) -> bytes:
    """Return what a control file says.  OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
