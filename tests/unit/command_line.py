"""The command line, in this process: what a verb exits with and prints."""

from __future__ import annotations

import io
import sys

import pytest

from agentres.cli import line


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def agentres(
    *words: str, env: dict[str, str] | None = None, terminal: bool = False
) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of ``agentres WORDS``; stdout is a terminal of 80 columns, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "dumb")
        for key, value in (env or {}).items():
            patch.setenv(key, value)
        out, err = io.BytesIO(), io.BytesIO()
        of = _Terminal if terminal else io.TextIOWrapper
        patch.setattr(sys, "stdout", of(out, "utf-8", write_through=True))
        patch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True))
        try:
            status = line.main(words)
        except SystemExit as ended:  # Typer's, for a line that only it understands
            status = int(ended.code or 0)
        # A wrapper that is collected closes what it wraps.
        found = out.getvalue().decode(), err.getvalue().decode()
    return status, *found
