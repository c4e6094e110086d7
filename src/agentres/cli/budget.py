"""What the host's budget is by the configuration, for verbs that show it."""

from __future__ import annotations

import os

from agentres.cli.stderr import say
from agentres.model import log
from agentres.model.errors import AgentresError


def share(otherwise: str) -> float | None:
    """The budget's part of the host; None where the configuration is wrong, and a line on stderr that begins with ``otherwise``."""
    from agentres.config import ConfigError, load
    from agentres.model.paths import configuration

    try:
        return load(configuration(os.environ, os.getuid())).budget_share
    except ConfigError as error:
        say(f"{otherwise}: {error}")
        return None


def own_slice() -> str:
    """The cgroup in which an agent would run that is started here; empty where none could."""
    from agentres.kernel import delegation, tree

    try:
        return tree.slice_of(delegation.find(), os.geteuid())
    except (AgentresError, OSError) as error:
        log.debug(__name__, "no budget of our own: %s", error)
        return ""
