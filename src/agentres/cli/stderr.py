"""What every verb says to people beside its output: a line at a time."""

from __future__ import annotations

import sys

from agentres.model.errors import printable


def say(line: str) -> None:
    """One line of ours, on stderr: stdout is the agent's."""
    if sys.stderr is None:  # we were started with it closed
        return
    try:
        # What came from outside must neither break the line nor command the terminal.
        shown = printable(line)
        sys.stderr.write(f"agentres: {shown}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or its reader has gone; the exit status still tells
        pass
