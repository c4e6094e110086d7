"""How systemd restarts an agent that is a unit: ``[agent]`` in ``/etc/agentres/agents.d/NAME.toml``; pure."""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.model.units import UnitError, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

RESTARTS = ("no", "on-failure", "on-abnormal", "always")
DELAY, DELAY_MAX = "1s", "5m"

_STEPS = 8
"""Steps from the first delay to the longest: 1 s becomes 5 min after eight."""


def drop_in(agent: Mapping[str, Any]) -> str:
    """Return the agent's drop-in (systemd.service(5)); empty: the template suffices.  Raises ValueError."""
    restart = agent.get("restart", "no")
    if restart not in RESTARTS:
        raise ValueError(f"restart = {restart!r}: expected one of {', '.join(RESTARTS)}")
    if restart == "no":
        return ""
    delay, longest = (
        _seconds(agent, key, standard)
        for key, standard in (("restart_delay", DELAY), ("restart_delay_max", DELAY_MAX))
    )
    return (
        "[Unit]\nStartLimitIntervalSec=0\n"  # the delay grows instead
        f"[Service]\nRestart={restart}\nRestartSec={delay:g}s\n"
        f"RestartSteps={_STEPS}\nRestartMaxDelaySec={max(delay, longest):g}s\n"
    )


def _seconds(agent: Mapping[str, Any], key: str, standard: str) -> float:
    value = agent.get(key, standard)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return parse_duration(str(value))
    except UnitError as error:
        raise ValueError(f"{key} = {value!r}: {error}") from None
