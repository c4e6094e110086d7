"""Messages of verbs to people, one line at a time, on stderr."""

from __future__ import annotations

import sys

from agentres.model.errors import printable


def say(line: str) -> None:
    """Write one line to stderr; stdout is the agent's."""
    if sys.stderr is None:  # it was closed when we started
        return
    try:
        # Text from outside must neither break the line nor control the terminal.
        shown = printable(line)
        sys.stderr.write(f"agentres: {shown}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or its reader has gone; there is still the exit status
        pass
