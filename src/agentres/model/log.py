"""Debug lines through ``logging``, without importing it.

Importing ``logging`` costs a launch more than all the lines that it would log.  ``--verbose``, or a
program that uses agentres as a library, has imported it already; if it is not imported, nobody listens.
"""

from __future__ import annotations

import sys


def debug(name: str, message: str, *args: object) -> None:
    """Call ``logging.getLogger(name).debug(message, *args)`` if ``logging`` is imported."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(name).debug(message, *args)
