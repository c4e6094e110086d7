"""Runs a command line: through its verb, or through Typer if it is not well-formed or asks for help."""

from __future__ import annotations

import os

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    if "_AGENTRES_COMPLETE" in os.environ:
        from agentres.cli import completion

        if (answer := completion.answer(os.environ)) is not None:
            print(answer[1])
            return answer[0]
    else:
        from agentres.cli import verbs

        if (found := verbs.understand(words)) is not None:
            return verbs.call(*found)
    from agentres.cli import app

    return app.main(words)
