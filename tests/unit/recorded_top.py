"""``agentres top`` over a recorded host, for the browser: recorded_top.py FOLDER [--read-only].

Its folder has a file ``done`` with what was commanded, a line each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from recorded import pretend

from agentres.kernel.registry import RunningAgent
from agentres.readers.fleet import Picture
from agentres.tui.app import Top, show


def main() -> None:
    folder = Path(sys.argv[1])
    home = Path(tempfile.mkdtemp(dir=folder))
    patch = pytest.MonkeyPatch()
    recorded = pretend(home, patch)
    recorded.tell()
    source = recorded.source()
    look, stop = source.look, source.stop

    def moved_on() -> Picture:
        recorded.go_on()
        return look()

    def noted(agent: RunningAgent, grace: float) -> None:
        stop(agent, grace)
        with open(folder / "done", "a") as file:
            file.write(f"stop {agent.name}\n")

    source.look, source.stop = moved_on, noted  # type: ignore[method-assign]
    show(Top(source, interval=0.5, read_only="--read-only" in sys.argv))


main()
