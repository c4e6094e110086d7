"""``deque`` and ``partial``, from where CPython has them in C.

The packages that lend them their names, ``collections`` and ``functools``, take a thirtieth of a launch and a quarter of a megabyte beside an agent.
"""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque as deque  # noqa: PLC0414 -- for others to import from here
    from functools import partial as partial  # noqa: PLC0414
else:
    from _collections import deque  # noqa: F401
    from _functools import partial  # noqa: F401
