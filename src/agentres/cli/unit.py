"""``agentres unit run``: runs the agent that a file in agents.d describes, as the main process of its unit.

Like ``agentres run`` it stays beside the agent, so it does without Typer.  It tells systemd when the command runs.
"""

from __future__ import annotations

import os

from agentres.cli.run import small
from agentres.cli.stderr import say
from agentres.kernel import delegation, host, registry, service
from agentres.model.errors import EXIT_AGENTRES, AgentresError, NameTaken, UsageError, reason
from agentres.model.paths import agent_file, configuration
from agentres.run import agent, configured, explain
from agentres.run.options import understand

_SYSTEMDS = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "SYSTEMD_EXEC_PID", "MANAGERPID", "INVOCATION_ID",
)  # fmt: skip
"""Variables that systemd sets for us, and that the agent must not get."""


def run(name: str) -> int:
    """Run the agent and return the exit status."""
    try:
        return _run(name)
    except AgentresError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:  # a resource of the host is exhausted
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{reason(error)}")
        return EXIT_AGENTRES


def _run(name: str) -> int:
    if os.geteuid() != 0:
        raise UsageError("agents that are units are root's to start", f"systemctl start agentres@{name}")  # fmt: skip
    settings = configured.read_files([*configuration(os.environ, 0), agent_file(name)], os.environ)
    unit = settings.agent
    if unit is None:
        raise UsageError(f"{agent_file(name)}: expected a section [agent]")
    values = {**unit.values, "name": name}
    options = understand(values, unit.command, host.read(), settings)
    for other in registry.running(delegation.hierarchy().mount):
        if other.name == name and other.uid == 0:
            raise NameTaken(f"an agent named {name} is running ({other.path})")
    kept = {key: text for key, text in os.environ.items() if key not in _SYSTEMDS}
    outcome = agent.run(
        options.request.but(
            environment={**kept, **unit.environment},
            philosophy=options.philosophy,
            priority=options.priority,
            wait=options.wait,
            share=settings.budget_share,
            settings=lambda: small(settings),
            started=lambda path: service.notify("READY=1", f"STATUS={path}"),
        ),
        say,
    )
    for line in explain.summary(outcome):
        say(line)
    return outcome.exit_code
