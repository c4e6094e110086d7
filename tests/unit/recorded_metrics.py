"""``agentres metrics --listen`` over a recorded host: recorded_metrics.py FOLDER ADDRESS PORT."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from fake_slice import MIB
from prometheus_client import CollectorRegistry
from recorded import BEGIN, pretend

from agentres.cli.metrics import serve
from agentres.kernel import network
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.meter import GROUPS, Meter
from agentres.model.stats import Sample
from agentres.readers.metrics import AgentresCollector
from agentres.store import Store


def read(path: str) -> Sample:
    """All of an agent."""
    cgroup = Cgroup(path)
    meter = Meter(path, network=network.find(cgroup))
    cgroup.close()
    for group in GROUPS:
        meter.read(group)
    meter.close()
    return meter.reading


def main() -> None:
    """Serve until ended."""
    folder, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    patch = pytest.MonkeyPatch()
    recorded = pretend(folder, patch)
    recorded.tell()
    # The one that a test has at its limit.
    full = recorded.slice.agent("full", limit=256 * MIB, use=250 * MIB, started=BEGIN - 600)
    (full / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    (full / "memory.peak").write_text(f"{256 * MIB}\n")

    def pass_time() -> None:
        while True:
            recorded.go_on(0.5)
            time.sleep(0.5)

    threading.Thread(target=pass_time, daemon=True).start()
    registry = CollectorRegistry()
    registry.register(
        AgentresCollector(
            str(recorded.slice.mount), read, lambda: Store.open(recorded.history, write=False),
            share=0.8, own=str(recorded.slice.path),
        )
    )  # fmt: skip
    serve(registry, address, port)


main()
