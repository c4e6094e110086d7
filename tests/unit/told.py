"""Events of alerts, as supervisors tell them to the history."""

from __future__ import annotations

from typing import Any


def event(kind: str, alert: str, at: float, **more: Any) -> dict[str, Any]:
    told = {
        "schema": 1, "event": kind, "id": alert, "run": "aaaa0001", "agent": "planner",
        "of": "agent", "rule": "memory", "resource": "memory", "unit": "bytes",
        "severity": "WARNING", "value": 800.0 * 2**20, "limit": float(2**30),
        "threshold": 768.0 * 2**20, "breached": at, "raised": at, "updated": at, "resolved": None,
        "repeats": 0, "host": "builder", "message": "memory of planner is at 78% of its limit",
    }  # fmt: skip
    return {**told, **more}
