"""A line of words: its verb does it, or Typer, where it is not well-formed or asks for help."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agentres.cli.verbs import call, understand


def main(words: Sequence[str]) -> int:
    """Do what a line of words asks for; the exit status."""
    if "_AGENTRES_COMPLETE" in os.environ:
        from agentres.cli import completion

        if (told := completion.answer(os.environ)) is not None:
            print(told[1])
            return told[0]
    elif (found := understand(words)) is not None:
        return call(*found)
    from agentres.cli import app

    return app.main(words)
