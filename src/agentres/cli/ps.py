"""``agentres ps``: lists the agents that run on this host, from their cgroups."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Option
from agentres.kernel import delegation, registry, tree
from agentres.kernel.meter import Meter
from agentres.kernel.registry import RunningAgent
from agentres.model.units import format_duration, format_size
from agentres.policy.capacity import Claim

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""


def ps(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the agents that run on this host, also other users' and those inside agents.

    CPU is the average since the agent's start, in cores. An agent whose supervisor was killed is unsupervised: its limits stand, and nothing raises them.
    """
    agents = registry.running(delegation.hierarchy().mount)
    claims = {
        claim.path: claim
        for place in {os.path.dirname(agent.home) for agent in agents}
        for claim in tree.claims(place)
    }
    rows = []
    for agent in agents:
        try:
            rows.append(_row(agent, claims.get(agent.path)))
        except FileNotFoundError:  # it has just ended
            continue
    if as_json:
        show.print_json({"schema": SCHEMA, "agents": rows})
        return
    if not rows:
        print("no agent runs")
        return
    numbers = ("cpu", "memory", "limit", "tasks", "priority")
    table = show.Table(
        "name", "user", "state", "age", *numbers, right=(*numbers, "age"), whole=("state", "user")
    )
    for row in rows:
        table.add_row(
            show.cell(row["name"]),
            show.cell(row["user"]),
            show.cell(row["state"], show.STATE_STYLES.get(row["state"], "")),
            format_duration(max(0, round(time.time() - row["started"]))),
            show.ABSENT if row["cpu"] is None else f"{row['cpu']:.2f}",
            show.ABSENT if row["memory"] is None else format_size(row["memory"]),
            show.ABSENT if row["limit"] is None else format_size(row["limit"]),
            show.ABSENT if row["tasks"] is None else str(row["tasks"]),
            show.ABSENT if row["priority"] is None else str(row["priority"]),
        )
    table.print()


def _row(agent: RunningAgent, claim: Claim | None) -> dict[str, Any]:
    meter = Meter(agent.path)
    try:
        meter.read("cpu")
        reading = meter.read("pids")
        spent, tasks = reading.usage_usec, reading.pids_current
    finally:
        meter.close()
    age = time.time() - agent.started
    state = "unknown"
    if claim is not None:
        state = "unsupervised" if claim.orphan else claim.state
    return {
        "name": agent.name,
        "uid": agent.uid,
        "user": registry.user_name(agent.uid),
        "state": state,
        "started": agent.started,
        "cpu": None if spent is None or age <= 0 else round(spent / 1e6 / age, 3),
        "memory": None if claim is None else claim.use,
        "limit": None if claim is None else claim.limit,
        "tasks": tasks,
        "priority": None if claim is None else claim.priority,
        "philosophy": registry.philosophy(agent.path) or None,
        "supervisor": agent.supervisor,
        "cgroup": agent.path,
    }
