"""Entry point of ``agentres`` and ``python -m agentres``.

A well-formed ``run`` goes straight to the small supervisor; everything else goes to the verbs.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _run_line() -> tuple[dict[str, Any], list[str]] | None:
    """Return the options' values and the command of a well-formed ``run``; None for any other line."""
    if sys.argv[1:2] != ["run"] or "_AGENTRES_COMPLETE" in os.environ:
        return None
    from agentres.run.options import parse

    return parse(sys.argv[2:])


def main() -> None:
    """Run the command line; this process exits with its status."""
    if (line := _run_line()) is not None:
        from agentres.cli.run import run

        # Everything is written and cleaned up; the kernel frees the rest faster than the
        # interpreter would (50 ms of a 600 ms launch on a slow machine).
        os._exit(run(*line))
    if sys.argv[1:3] == ["unit", "run"] and sys.argv[3:] and not sys.argv[3].startswith("-"):
        from agentres.cli.unit import run as run_unit

        os._exit(run_unit(sys.argv[3]))
    if sys.argv[1:] == ["daemon"]:
        from agentres.daemon.server import main as serve

        raise SystemExit(serve())
    status = 0
    if sys.argv[1:] == ["--version"] and "_AGENTRES_COMPLETE" not in os.environ:
        from agentres import __version__

        try:
            print(f"agentres {__version__}", flush=True)  # noqa: T201 -- nowhere, where stdout is closed
        except OSError as error:
            from agentres.cli.verbs import unwritten

            status = unwritten(error)
    else:
        from agentres.cli.line import main as do_line

        status = do_line(sys.argv[1:])
    print(end="", flush=True)  # noqa: T201
    atexit._run_exitfuncs()
    # The same for every verb: the interpreter's own shutdown would take a quarter of the time of an answer.
    os._exit(status)


if __name__ == "__main__":
    main()
