"""Debug lines through ``logging``, which is imported only where somebody listens.

``logging`` costs a launch more than all that it would log.  Whoever wants the lines has imported it
(``--verbose``, or a program that uses agentres as a library), so its absence means no listener.
"""

from __future__ import annotations

import sys


def debug(name: str, message: str, *args: object) -> None:
    """``logging.getLogger(name).debug(message, *args)``."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(name).debug(message, *args)
