"""A run and its samples, as reports are made of."""

from __future__ import annotations

from typing import Any

from agentres.model.stats import Sample
from agentres.store import Run

MIB = 1 << 20


def a_run(name: str = "planner", run: str = "aaaa0001", **more: Any) -> Run:
    given_ = {
        "id": run, "name": name, "of": "agent", "command": ("python", "agent.py"), "uid": 1000,
        "cgroup": "/x", "supervisor": 42, "supervisor_start": 99, "boot_id": "boot",
        "started": 1000.0, "ended": 1100.0, "exit_code": 0,
    }  # fmt: skip
    return Run(**{**given_, **more})


def sample(at: int, **more: Any) -> Sample:
    """At second 10 * at: half a core of two, 100 MiB and 10 more each time of 1 GiB."""
    used = {
        "usage_usec": at * 5_000_000, "cpu_limit": 2.0, "working_set": (100 + 10 * at) * MIB,
        "memory_current": 500 * MIB, "memory_peak": 600 * MIB, "memory_limit": 1024 * MIB,
        "nr_periods": 100 * at, "nr_throttled": 25 * at, "pids_current": 4, "pids_limit": 64,
        "memory_oom_kill": 0, "pids_max_events": 0, "io_some_usec": at * 2_000_000,
    }  # fmt: skip
    return Sample(**{**used, **more})
