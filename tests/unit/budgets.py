"""A budget of memory that agents share, in MiB."""

from __future__ import annotations

from agentres.policy.capacity import Budget

M = 1 << 20


def budget(limit: int) -> Budget:
    return Budget(2 * limit * M, 0.5, limit * M)
