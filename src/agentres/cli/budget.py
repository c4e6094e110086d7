"""The host's budget according to the configuration, for verbs that show it."""

from __future__ import annotations

import os

from agentres.cli.stderr import say
from agentres.model import log
from agentres.model.errors import AgentresError


def share(otherwise: str) -> float | None:
    """Return the budget's share of the host; None if the configuration is wrong, with a line on stderr after ``otherwise``."""
    from agentres.config import ConfigError, load
    from agentres.model.paths import configuration

    try:
        return load(configuration(os.environ, os.getuid())).budget_share
    except ConfigError as error:
        say(f"{otherwise}: {error}")
        return None


def own_slice() -> str:
    """Return the slice that an agent started here would run in; "" if none could start."""
    from agentres.kernel import delegation, tree

    try:
        return tree.slice_of(delegation.find(), os.geteuid())
    except (AgentresError, OSError) as error:
        log.debug(__name__, "no budget of our own: %s", error)
        return ""
