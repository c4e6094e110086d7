"""``agentres unit``: agents that run as systemd units, each described by a file in /etc/agentres/agents.d."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from agentres.cli import live
from agentres.cli.parameters import Argument
from agentres.cli.show import loaded
from agentres.cli.stderr import say
from agentres.daemon.generator import described
from agentres.kernel import host
from agentres.model.control import SETTABLE
from agentres.model.errors import AgentresError, UsageError
from agentres.model.paths import AGENTS, agent_file, configuration
from agentres.policy.settings import Settings
from agentres.run.options import understand

_Name = Annotated[str, Argument(metavar="NAME", help="The agent's name.")]


def run(name: _Name) -> None:
    """Run the agent NAME as its unit does: systemd calls this."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agentres", "unit", "run", name])


def check(
    names: Annotated[
        list[str] | None, Argument(metavar="[NAME]...", help="Agents to check. Default: all.")
    ] = None,
) -> int:
    """Check the files of agents. Exits 1 if one is invalid, and says in one line where and why."""
    from agentres.config import ConfigError

    wrong = False
    for name in names or [name for name, _ in described(AGENTS)]:
        try:
            settings = _settings(name)
            _understood(name, settings)
            print(f"{agent_file(name)}: good")
        except ConfigError as error:  # its message names the file
            wrong = True
            say(str(error))
        except AgentresError as error:
            wrong = True
            say(f"{agent_file(name)}: {error}")
    return int(wrong)


def reload(name: _Name) -> None:
    """Give the running agent NAME the limits that its file has now.

    Only the section limits, and of that only what agentres set can set. Everything else takes effect at the agent's next start, and so does the removal of a limit from the file.
    """
    settings = _settings(name)
    _understood(name, settings)
    texts = {key: text for key, text in settings.limits.items() if key in SETTABLE}
    if not texts:
        print("nothing to set")
        return
    live.set_limits(name, "root", **texts)


def _settings(name: str) -> Settings:
    return loaded([*configuration(os.environ, 0), agent_file(name)])


def _understood(name: str, settings: Settings) -> None:
    if settings.agent is None:
        raise UsageError("expected a section [agent]")
    understand({**settings.agent.values, "name": name}, settings.agent.command, host.read(), settings)  # fmt: skip
