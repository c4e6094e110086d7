"""A bell that every supervisor of a slice hears: an agent needs what others hold, or has given some back.

It is an extended attribute of the slice's cgroup; inotify(7) reports every write to it.  The bell carries
no information: that is in the tree itself (:mod:`agentres.kernel.registry`).
"""

from __future__ import annotations

import os

from agentres.model import log

_ATTRIBUTE = "user.agentres.bell"


def ring(path: str) -> None:
    """Have all supervisors of the slice at ``path`` look at the tree; if that fails they look later."""
    try:
        os.setxattr(path, _ATTRIBUTE, b"%d" % os.getpid())
    except OSError as error:
        log.debug(__name__, "the bell of %s cannot be rung: %s", path, error)


class Bell:
    """The bell of the slice at ``path``; ``fd`` becomes readable when it is rung, also by us.

    ``fd`` is -1 where the kernel gives no inotify instance: then only the next sample finds out.
    """

    def __init__(self, path: str) -> None:
        from agentres.kernel.inotify import (
            ATTRIB,
            Inotify,
        )  # with ctypes, which a launch has no time for

        self._path = path
        self._inotify = Inotify()
        self._inotify.add(path, ATTRIB)
        self.fd = self._inotify.fd

    def ring(self) -> None:
        """See :func:`ring`."""
        ring(self._path)

    def heard(self) -> None:
        """Consume the pending rings, so that the next one is reported."""
        self._inotify.take()

    def close(self) -> None:
        self._inotify.close()
