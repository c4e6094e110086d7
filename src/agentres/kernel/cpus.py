"""The host's CPUs, which of them a cgroup has, and affinity (sched_setaffinity(2)), which binds where no controller does."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from agentres.kernel import process
from agentres.model.cpus import CPUS_MAX, format_list, parse_list
from agentres.model.errors import NotEnforceable, reason
from agentres.model.units import MAX

_SYS = "/sys/devices/system/cpu"

_PASSES = 100
"""How often the threads are gone through, where new ones come all the time."""


def present() -> tuple[int, ...]:
    """Those that there are.  OSError."""
    return parse_list(_read(f"{_SYS}/present"))


def online() -> tuple[int, ...]:
    """Those of them that are in use.  OSError."""
    return parse_list(_read(f"{_SYS}/online"))


def allowed(path: str) -> tuple[str, tuple[int, ...]]:
    """What the processes in the cgroup at ``path`` may run on, and the cgroup that says so: it, or the nearest above with the controller."""
    while len(path) > 1:
        try:
            return path, parse_list(_read(f"{path}/cpuset.cpus.effective"))
        except FileNotFoundError:
            path = os.path.dirname(path)
    return "/", online()


def core(cpu: int) -> tuple[int, ...]:
    """The CPUs of the same core, itself among them; alone where nobody tells."""
    try:
        return parse_list(_read(f"{_SYS}/cpu{cpu}/topology/thread_siblings_list"))
    except OSError:
        return (cpu,)


def busy(seconds: float) -> dict[int, float]:
    """For which part of the next ``seconds`` each is at work; waits for so long.  OSError."""
    before = _idle()
    time.sleep(seconds)
    found = {}
    for cpu, (idle, whole) in _idle().items():
        idle_before, whole_before = before.get(cpu, (idle, whole))
        passed = whole - whole_before
        # What it waited for disks may come to less than before (proc_stat(5)).
        idled = max(0, idle - idle_before)
        found[cpu] = max(0.0, 1 - idled / passed) if passed > 0 else 0.0
    return found


def _idle() -> dict[int, tuple[int, int]]:
    """Ticks for which each was idle or waited for disks, and all of its ticks: proc_stat(5)."""
    found = {}
    for line in _read("/proc/stat").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            # What guests took is in user and nice already.
            spent = [int(tick) for tick in ticks[:8]]
            found[int(name[3:])] = spent[3] + spent[4], sum(spent)
    return found


def mask(text: str) -> Collection[int]:
    """The affinity for a list, or for all CPUs (``max``): the kernel leaves out those that there are not."""
    return range(CPUS_MAX) if text == MAX else parse_list(text)


def bind(path: str, wanted: str, before: str) -> None:
    """Bind all threads in the cgroup at ``path`` and below to ``wanted``, a list or ``max``; before it was ``before``.

    One that had chosen fewer keeps them, as far as they are among the wanted.  NotEnforceable: they are bound as before, those that came
    meanwhile excepted.
    """
    target, old, there = set(mask(wanted)), set(mask(before)), set(online())
    for _ in range(_PASSES):
        # All of them, not as far as the first that had to be.
        if not sum(_bind_thread(tid, target, old & there) for tid in _threads(path)):
            return
    for tid in _threads(path):
        _bind_thread(tid, old, target & there)
    raise NotEnforceable("its processes come faster than they can be bound to other CPUs")


def _bind_thread(tid: int, target: set[int], old: set[int]) -> bool:
    """Whether it had to be done."""
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
    """What in the cgroup at ``path`` has an affinity beyond ``wanted``, in words; empty: nothing has."""
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
