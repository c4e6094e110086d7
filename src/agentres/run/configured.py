"""Reads the configuration for a long-running process, in a helper process that ends.

pydantic and the models take five times as much memory as a whole supervisor.
"""

from __future__ import annotations

import marshal
import os
import sys

from agentres.kernel import signal
from agentres.model.errors import UsageError
from agentres.model.paths import configuration
from agentres.model.record import TYPE_CHECKING
from agentres.policy.settings import from_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentres.policy.settings import Settings


def read(environment: Mapping[str, str], uid: int) -> Settings | None:
    """Return the configuration for this environment and user; None: there is none.  UsageError if it is invalid."""
    found = configuration(environment, uid)
    return read_files(found, environment) if found else None


def read_files(paths: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings in these files; later ones override earlier ones.  UsageError if they are invalid."""
    return from_plain(marshal.loads(_compile(paths, environment)))


def _compile(files: Sequence[str], environment: Mapping[str, str]) -> bytes:
    # If SIGCHLD was inherited as ignored, the kernel would discard the exit status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Not tempfile: it and its imports would stay in memory with the agent.
    with open(os.memfd_create("out"), "w+b") as out, open(os.memfd_create("err"), "w+b") as err:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "agentres.config", *files],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, err.fileno(), 2),
            ],
        )
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            lines = err.read().decode(errors="replace").splitlines()
            raise UsageError(lines[-1] if lines else f"the configuration cannot be read ({status})")
        return out.read()
