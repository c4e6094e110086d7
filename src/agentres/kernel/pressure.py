"""Has the kernel notify us when tasks wait for a resource: PSI triggers (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import os

from agentres.model import log
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final, Literal

SHARE: Final = 0.1
"""The fraction of a window that some task must have waited before the kernel notifies."""

# Seconds.  With CAP_SYS_RESOURCE the shortest window is allowed (before Linux 6.4 only those processes get a
# trigger at all); others get multiples of 2 s (Linux 6.4).
_WINDOWS = (0.5, 2.0)


def trigger(
    folder: int, resource: Literal["cpu", "memory", "io"], share: float = SHARE
) -> int | None:
    """Return a descriptor that gets EPOLLPRI, at most once a window, when some task has waited for ``share`` of it.

    ``folder`` is the open directory of a cgroup.  None where the kernel gives none; the reason is logged.
    The first notification after this call may be a false one.
    """
    name = f"{resource}.pressure"
    why: OSError | None = None
    for window in _WINDOWS:
        try:
            fd = os.open(name, os.O_RDWR | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            why = error
            break
        usec = round(window * 1e6)
        try:
            # The kernel overwrites the last byte as the end of the text: send a zero byte.
            os.write(fd, f"some {round(usec * share)} {usec}\0".encode())
            return fd
        except OSError as error:
            why = error
            os.close(fd)
    log.debug(__name__, "no trigger on %s: %s", name, why)
    return None
