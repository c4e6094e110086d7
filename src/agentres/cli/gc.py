"""``agentres gc``: removes what killed runs have left on the host."""

from __future__ import annotations

import os

from agentres.kernel import isolate, project
from agentres.model.errors import UsageError


def gc() -> None:
    """Remove what runs have left on the host because their supervisor was killed.

    That is the masquerading and forwarding of --net isolated, and the quotas of --disk-space; everything else of a run goes with its cgroup. For root.
    """
    if os.geteuid() != 0:
        raise UsageError("what is left behind is root's")
    for line in [*isolate.down(), *project.sweep()] or ["nothing is left"]:
        print(line)
