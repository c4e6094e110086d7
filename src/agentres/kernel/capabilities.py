"""Capabilities (capabilities(7)) that can undo an agent's limits, and how a process gives them up for good."""

from __future__ import annotations

import ctypes

from agentres.kernel import libc
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

UNDOING = (23, 24)
"""CAP_SYS_NICE: real-time scheduling is not under cpu.max.  CAP_SYS_RESOURCE: raises hard rlimits and overrides disk quotas."""

ALL = range(64)

_SETPCAP = 8
_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24


def bound(numbers: Sequence[int]) -> list[int]:
    """Return those of ``numbers`` in the bounding set: a program that we execute could get them."""
    return [n for n in numbers if libc.LIBC.prctl(_PR_CAPBSET_READ, n, 0, 0, 0) == 1]


def drop(numbers: Sequence[int]) -> None:
    """Keep this process and what it executes from ever getting these capabilities by execve(2).  OSError."""
    # A program that root executes gets the inheritable set too, which some container engines fill.
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    libc.call("capget", header, sets)
    for number in numbers:
        sets[number // 32 * 3 + 2] &= ~(1 << number % 32)
    libc.call("capset", header, sets)
    for number in bound(numbers):
        libc.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)


def can_drop() -> bool:
    """Whether this process may :func:`drop`: it has CAP_SETPCAP.  OSError."""
    with open("/proc/self/status", "rb") as file:
        words = file.read().split()
    return bool(int(words[words.index(b"CapEff:") + 1], 16) >> _SETPCAP & 1)
