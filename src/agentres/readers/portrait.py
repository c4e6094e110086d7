"""Puts a supervisor's answer about its agent (``show``, docs/control.md) into words, and severities into styles; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentres.model.errors import printable
from agentres.model.limits import LIMIT_SPECS
from agentres.model.record import Record
from agentres.model.units import ABSENT, MAX, format_duration, format_size
from agentres.policy.alerts import Severity

SEVERITY_STYLES = {
    Severity.INFO: "dim", Severity.WARNING: "yellow", Severity.CRITICAL: "red", Severity.EMERGENCY: "bold red",
}  # fmt: skip
"""The style of each severity in a terminal, as Rich names it."""


class LimitRow(Record):
    """A limit: its value, the range it moves in (empty: fixed), what is in use, and where it comes from."""

    key: str
    holds: str
    between: str
    used: str
    origin: str


def facts(answer: Mapping[str, Any], now: float) -> Iterator[str]:
    """Describe the agent and its state at ``now`` (unix seconds), in lines safe for a terminal."""
    age = format_duration(max(0.0, now - answer["started"]))
    state = f"frozen ({answer['frozen_by']})" if answer["frozen"] else "running"
    yield printable(
        f"{answer['name']}: {state}, started {age} ago by {' '.join(answer['command'])}"
    )
    yield (
        f"main process {answer['main']}, supervisor {answer['supervisor']}, "
        f"priority {answer['priority']}, philosophy {printable(answer['philosophy'])}"
    )
    yield printable(answer["cgroup"])
    drift = answer["drift"]
    yield printable(f"not as it was set: {drift}" if drift else "all limits stand as they were set")
    if answer.get("escaped"):  # not sent by a supervisor of an older version
        yield printable(f"outside of its cgroup and limits: {answer['escaped']}")


def limits(answer: Mapping[str, Any]) -> Iterator[LimitRow]:
    """Yield the agent's limits, one row each."""
    for key, limit in answer["limits"].items():
        between = limit["range"]
        least_most = [] if between is None else [quantity(key, value) for value in between]
        yield LimitRow(
            printable(key),
            quantity(key, limit["standing"]),
            " to ".join(least_most),
            _used(key, answer["used"]),
            printable(limit["from"]),
        )


def quantity(key: str, value: float | str | None) -> str:
    """Format the value of a limit for people."""
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return "no limit" if value == MAX else printable(value)
    return LIMIT_SPECS[key.partition("=")[0]].show(value)


def _used(key: str, used: Mapping[str, Any]) -> str:
    memory, swap, pids = used["working_set"], used["swap_current"], used["pids_current"]
    found = {
        "memory": memory,
        "swap": swap,
        "net_in": used["rx_bytes"],
        "net_out": used["tx_bytes"],
    }
    if key == "pids" and pids is not None:
        return str(pids)
    if key == "cpu" and used["usage_usec"] is not None:
        return format_duration(used["usage_usec"] / 1e6)
    value = found.get(key)
    return ABSENT if value is None else format_size(value)
