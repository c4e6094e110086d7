"""Capabilities (capabilities(7)) that undo an agent's limits, and how a process loses them for good."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from agentres.kernel import libc

UNDOING = (23, 24)
"""CAP_SYS_NICE: a real-time class is outside of cpu.max.  CAP_SYS_RESOURCE: hard resource limits are raised, and disk quotas passed."""

ALL = range(64)

_SETPCAP = 8
_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24


def bound(numbers: Sequence[int]) -> list[int]:
    """Those of them that a program executed from here could get."""
    return [n for n in numbers if libc.LIBC.prctl(_PR_CAPBSET_READ, n, 0, 0, 0) == 1]


def drop(numbers: Sequence[int]) -> None:
    """Keep this process, and what it executes, from ever getting them by execve(2).  OSError."""
    # What root executes has what is inheritable as well, which some container engines fill.
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    libc.call("capget", header, sets)
    for number in numbers:
        sets[number // 32 * 3 + 2] &= ~(1 << number % 32)
    libc.call("capset", header, sets)
    for number in bound(numbers):
        libc.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)


def can_drop() -> bool:
    """Whether this process may: it has CAP_SETPCAP.  OSError."""
    with open("/proc/self/status", "rb") as file:
        words = file.read().split()
    return bool(int(words[words.index(b"CapEff:") + 1], 16) >> _SETPCAP & 1)
