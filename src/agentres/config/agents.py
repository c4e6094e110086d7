"""The description of an agent that is a systemd unit: ``[agent]`` in ``/etc/agentres/agents.d/NAME.toml``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool

from agentres.config.values import (
    Duration,
    Environment,
    Limit,
    OptionalDuration,
    OptionalText,
    Restart,
    Section,
    Text,
    duration_text,
)
from agentres.config.words import Wrong
from agentres.model.limits import parse_priority
from agentres.model.units import UnitError, parse_duration
from agentres.policy.restarts import DELAY, DELAY_MAX
from agentres.policy.settings import AgentUnit


class AgentSection(Section):
    """``[agent]``; the restart keys are for systemd (:mod:`agentres.policy.restarts`)."""

    #: Program and arguments, a list; needed.
    command: list[Text] = Field(default_factory=list)
    #: A name or number; `"auto"`: a user of its own.
    user: Text = "auto"
    #: Whether the [walls](security.md) stand around it.
    isolate: StrictBool = True
    #: The directory that it starts in; not set: systemd's, `/`.
    cwd: OptionalText = None
    #: Variables, a table.
    environment: Environment = Field(default_factory=dict)
    #: Its [priority](capacity.md): `low`, `normal`, `high`, or a number.
    priority: Limit = None
    #: How long it may run; not set: as long as it wants.
    timeout: OptionalDuration = None
    #: When systemd starts it again: `"no"`, `"on-failure"`, `"on-abnormal"` or `"always"`.
    restart: Restart = "no"
    #: The time until then.
    restart_delay: Duration = parse_duration(DELAY)
    #: What that grows to, in eight steps (systemd 254 or newer).
    restart_delay_max: Duration = parse_duration(DELAY_MAX)

    def made(self) -> AgentUnit:
        """Return it as options of a run; :class:`Wrong` if a key is missing or does not fit."""
        if not self.command:
            raise Wrong("", 'expected a key "command", a list of text')
        values: dict[str, Any] = {"user": self.user, "isolate": "yes" if self.isolate else "no"}
        if self.cwd is not None:
            values["cwd"] = self.cwd
        if self.priority is not None:
            values["priority"] = self.priority
            try:
                parse_priority(self.priority)
            except UnitError as error:
                raise Wrong("priority", str(error)) from None
        if self.timeout is not None:
            values["timeout"] = str(duration_text(self.timeout))
        if self.restart_delay_max < self.restart_delay:
            raise Wrong("restart_delay_max", "expected at least restart_delay")
        return AgentUnit(tuple(self.command), values, self.environment)
