"""``agentres daemon``: the host's service."""

from __future__ import annotations

import os
import sys


def daemon() -> None:
    """Run agents for all users of this host, each behind walls and within its user's ceilings.

    systemd starts it (agentres.service, agentres.socket). agentres run uses it if its socket exists. Agents go on if it ends. For root.
    """
    # exec: the daemon stays, so it must not keep the modules that parsed this line.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agentres", "daemon"])
