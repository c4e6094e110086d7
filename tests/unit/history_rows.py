"""Runs, events of alerts and actions, as a history is given them, and the time at which they begin."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

from agentres.model.stats import Sample
from agentres.store import Run, Store

NOW = 1_700_000_000.0
HOUR = 3600.0
DAY = 86400.0
FULL_SAMPLE = Sample(
    *(n if field != "disks" else None for n, field in enumerate(Sample.__match_args__))
)


def rows_in(path: str, statement: str) -> list[Any]:
    """What another program reads in the file."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(statement).fetchall()


def run(run_id: str = "r0000001", **changed: Any) -> Run:
    fields: dict[str, Any] = {
        "id": run_id,
        "name": "coder",
        "of": "agent",
        "command": ("python", "agent.py"),
        "uid": 1000,
        "cgroup": "/agents.slice/coder",
        "supervisor": 4242,
        "supervisor_start": 99,
        "boot_id": "b",
        "started": NOW,
    }
    return Run(**{**fields, **changed})


def event(kind: str = "raised", alert_id: str = "3f9a0c12", **changed: Any) -> dict[str, Any]:
    fields = {
        "schema": 1,
        "event": kind,
        "id": alert_id,
        "run": "r0000001",
        "agent": "coder",
        "of": "agent",
        "rule": "memory",
        "resource": "memory",
        "unit": "bytes",
        "severity": "WARNING",
        "value": 76.0,
        "limit": 100.0,
        "threshold": 75.0,
        "breached": NOW - 1,
        "raised": NOW,
        "updated": NOW,
        "resolved": None,
        "message": f"memory was {kind}",
        "repeats": 0,
        "host": "box",
    }
    return {**fields, **changed}


def action(**changed: Any) -> dict[str, Any]:
    fields = {
        "run": "r0000001",
        "agent": "coder",
        "time": NOW,
        "resource": "memory",
        "kind": "raise",
        "before": 100.0,
        "after": 150.0,
        "rule": "burst",
        "why": "use of 76 B reached 75% of 100 B",
        "took": 0.002,
    }
    return {**fields, **changed}


def old_file(path: str) -> None:
    """One of each in a history that is closed again."""
    store = Store.open(path)
    store.begin(run())
    store.begin(run("r0000002", uid=0))
    store.add([("r0000001", NOW, Sample(usage_usec=7))])
    store.record(event())
    store.close()
