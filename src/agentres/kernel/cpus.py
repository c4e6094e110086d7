"""The host's CPUs, a cgroup's CPUs, and affinity (sched_setaffinity(2)), which binds where there is no cpuset controller."""

from __future__ import annotations

import os
import time

from agentres.kernel import process
from agentres.model.cpus import CPUS_MAX, format_list, parse_list
from agentres.model.errors import NotEnforceable, reason
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import MAX

if TYPE_CHECKING:
    from collections.abc import Collection

_SYS = "/sys/devices/system/cpu"

_PASSES = 100
"""The most passes over the threads, if new ones keep coming."""


def present() -> tuple[int, ...]:
    """Return the CPUs that are present.  OSError."""
    return parse_list(_read(f"{_SYS}/present"))


def online() -> tuple[int, ...]:
    """Return the CPUs that are online.  OSError."""
    return parse_list(_read(f"{_SYS}/online"))


def allowed(path: str) -> tuple[str, tuple[int, ...]]:
    """Return the cgroup that decides, and the CPUs that processes at ``path`` may run on.

    The cgroup that decides is ``path``, or the nearest one above it with the cpuset controller.
    """
    while len(path) > 1:
        try:
            return path, parse_list(_read(f"{path}/cpuset.cpus.effective"))
        except FileNotFoundError:
            path = os.path.dirname(path)
    return "/", online()


def core(cpu: int) -> tuple[int, ...]:
    """Return the CPUs of the same core, ``cpu`` included; ``cpu`` alone if that is not known."""
    try:
        return parse_list(_read(f"{_SYS}/cpu{cpu}/topology/thread_siblings_list"))
    except OSError:
        return (cpu,)


def busy(seconds: float) -> dict[int, float]:
    """Return for each CPU the fraction of the next ``seconds`` that it is busy; block for that long.  OSError."""
    before = _idle()
    time.sleep(seconds)
    found = {}
    for cpu, (idle, whole) in _idle().items():
        idle_before, whole_before = before.get(cpu, (idle, whole))
        passed = whole - whole_before
        # iowait may decrease (proc_stat(5)).
        idled = max(0, idle - idle_before)
        found[cpu] = max(0.0, 1 - idled / passed) if passed > 0 else 0.0
    return found


def _idle() -> dict[int, tuple[int, int]]:
    """Return each CPU's ticks of idle and iowait, and all its ticks: proc_stat(5)."""
    found = {}
    for line in _read("/proc/stat").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            # The time of guests is in user and nice already.
            spent = [int(tick) for tick in ticks[:8]]
            found[int(name[3:])] = spent[3] + spent[4], sum(spent)
    return found


def mask(text: str) -> Collection[int]:
    """Return the affinity for a list, or for all CPUs (``max``): the kernel ignores those that do not exist."""
    return range(CPUS_MAX) if text == MAX else parse_list(text)


def bind(path: str, wanted: str, before: str) -> None:
    """Bind all threads in the cgroup at ``path`` and below to ``wanted``, a list or ``max``; ``before`` is the last such list.

    A thread that had chosen fewer CPUs keeps those of them that are in ``wanted``.  Raises NotEnforceable if threads keep coming;
    all but those that came meanwhile are then bound as before.
    """
    target, old, there = set(mask(wanted)), set(mask(before)), set(online())
    for _ in range(_PASSES):
        # sum(), not any(): go on after the first that had to be bound.
        if not sum(_bind_thread(tid, target, old & there) for tid in _threads(path)):
            return
    for tid in _threads(path):
        _bind_thread(tid, old, target & there)
    raise NotEnforceable("its processes come faster than they can be bound to other CPUs")


def _bind_thread(tid: int, target: set[int], old: set[int]) -> bool:
    """Bind the thread if needed; return whether that changed its affinity."""
    try:
        has = os.sched_getaffinity(tid)
        if has <= target and (has != old or old >= target):
            return False
        os.sched_setaffinity(tid, target)
        return os.sched_getaffinity(tid) != has
    except ProcessLookupError:
        return False
    except OSError as error:
        raise NotEnforceable(
            f"thread {tid} cannot be bound to other CPUs: {reason(error)}"
        ) from error


def _threads(path: str) -> list[int]:
    found: list[int] = []
    for pid in process.below(path):
        try:
            found += map(int, os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def beyond(path: str, wanted: str) -> str:
    """Name a thread in the cgroup at ``path`` with an affinity beyond ``wanted``, in words; empty: there is none."""
    bound = set(parse_list(wanted))
    for tid in _threads(path):
        try:
            has = os.sched_getaffinity(tid)
        except OSError:  # it has gone
            continue
        if not has <= bound:
            return f"the affinity of thread {tid} is {format_list(has)}, was set to {wanted}"
    return ""


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
