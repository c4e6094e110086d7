"""Runs a command line: through its verb, or through Typer if it is not well-formed or asks for help."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agentres.cli.verbs import call, understand


def main(words: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    if "_AGENTRES_COMPLETE" in os.environ:
        from agentres.cli import completion

        if (told := completion.answer(os.environ)) is not None:
            print(told[1])
            return told[0]
    elif (found := understand(words)) is not None:
        return call(*found)
    from agentres.cli import app

    return app.main(words)
