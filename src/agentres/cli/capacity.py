"""``agentres capacity``: shows what all agents together may have, what each has, and what is left."""

from __future__ import annotations

import os
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Option
from agentres.cli.show import loaded
from agentres.kernel import delegation, host, registry, tree
from agentres.model.limits import PAGE, SHARE, page_align
from agentres.model.paths import configuration
from agentres.model.units import format_size
from agentres.policy.capacity import Budget, Claim, free

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""


def capacity(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what all agents together may have, which agent has how much, and what is free.

    This is about the agents that share a budget with one that you start here: for root the system's, else your own. See docs/capacity.md.
    """
    files = configuration(os.environ, os.getuid())
    share = loaded(files).budget_share if files else SHARE
    place = delegation.find()
    where = tree.slice_of(place, os.geteuid())
    found = _Capacity(where, share)
    elsewhere = [
        agent.home
        for agent in registry.running(place.hierarchy.mount)
        if os.path.dirname(agent.home) != where
    ]
    if as_json:
        show.print_json({"schema": SCHEMA, **found.as_json(), "elsewhere": elsewhere})
        return
    found.print()
    if elsewhere:
        more = "1 more agent runs" if len(elsewhere) == 1 else f"{len(elsewhere)} more agents run"
        print(f"\n{more} elsewhere: other users', or inside of an agent")


class _Capacity:
    """The agents of the slice at ``where``, read once."""

    def __init__(self, where: str, share: float) -> None:
        machine = host.read()
        self.where = where
        self.share = share
        self.cpus = machine.cpus
        self.budget = tree.budget(where, machine.memory, share)
        self.cores, self.cores_held_by = tree.cpu_budget(where, machine.cpus, share)
        self.claims = tree.claims(where)
        self.agent_cores = {claim.path: tree.cores(claim.path) for claim in self.claims}
        self.agent_cpus = {claim.path: registry.cpus(claim.path) for claim in self.claims}

    def as_json(self) -> dict[str, Any]:
        """Return bytes and cores; ``held_by`` is null if the kernel does not enforce the budget."""
        return {
            "slice": self.where,
            "host": {"memory": self.budget.host, "cpus": self.cpus},
            "budget": {
                "share": self.share,
                "memory": self.budget.limit,
                "memory_held_by": self.budget.held_by or None,
                "cpu": self.cores,
                "cpu_held_by": self.cores_held_by or None,
            },
            "allocated": sum(claim.taken for claim in self.claims),
            "used": sum(claim.use for claim in self.claims),
            "beside": sum(claim.beside for claim in self.claims),
            "free": free(self.budget, self.claims),
            "agents": [self._agent(claim) for claim in self.claims],
        }

    def _agent(self, claim: Claim) -> dict[str, Any]:
        return {
            "name": claim.name,
            "cgroup": claim.path,
            "started": claim.started,
            "priority": claim.priority,
            "state": claim.state,
            "limit": claim.limit,
            "use": claim.use,
            "least": claim.least,
            "most": claim.most or None,
            "wants": claim.wants,
            "share": _part(claim, self.budget),
            "cpu_limit": self.agent_cores[claim.path],
            "cpuset": self.agent_cpus[claim.path] or None,
            "supervised": not claim.orphan,
        }

    def print(self) -> None:
        """Print the sums, and the table below them."""
        budget, left = self.budget, free(self.budget, self.claims)
        taken = sum(claim.taken for claim in self.claims)
        used = sum(claim.use for claim in self.claims)
        sums = show.Table(
            "", "memory", "cpu", "", right=("memory",), whole=("", "cpu"), heading=False
        )
        sums.add_row("host", format_size(budget.host), f"{self.cpus} cores", "")
        sums.add_row(
            "budget", format_size(budget.limit), f"{self.cores:g} cores", show.cell(self._held())
        )
        sums.add_row("allocated", format_size(taken), "", "")
        beside = sum(claim.beside for claim in self.claims)
        watching = f"and {format_size(beside)} by what watches them" if beside else ""
        sums.add_row("used", format_size(used), "", watching)
        over = f"the limits are {format_size(-left)} above the budget" if left < 0 else ""
        sums.add_row("free", format_size(max(0, left)), "", over)
        sums.print()
        if not self.claims:
            print("\nno agent runs")
            return
        print()
        numbers = ("priority", "limit", "use", "of budget", "cpu")
        bound = ["cpuset"] if any(self.agent_cpus.values()) else []
        table = show.Table(
            "name", "priority", "state", "limit", "use", "range", "of budget", "cpu", *bound,
            right=numbers, whole=("state", "range"),
        )  # fmt: skip
        for claim in self.claims:
            cores = self.agent_cores[claim.path]
            table.add_row(
                show.cell(claim.name),
                str(claim.priority),
                show.cell(claim.state, show.STATE_STYLES[claim.state]),
                show.ABSENT if claim.limit is None else format_size(claim.limit),
                format_size(claim.use),
                _range(claim),
                show.ABSENT if (part := _part(claim, budget)) is None else f"{part:.0%}",
                show.ABSENT if cores is None else f"{cores:g}",
                *([self.agent_cpus[claim.path] or show.ABSENT] if bound else []),
            )
        table.print()

    def _held(self) -> str:
        share = f"{self.share:.0%} of the host"
        if not self.budget.held_by:
            return f"{share}; held by admission alone"
        whole = self.budget.limit >= page_align(int(self.budget.host * self.share), PAGE)
        return f"{share if whole else f'less than {share}'}; held by {self.budget.held_by}"


def _part(claim: Claim, budget: Budget) -> float | None:
    return round(claim.taken / budget.limit, 4) if budget.limit > 0 else None


def _range(claim: Claim) -> str:
    """Format the range of a limit that may grow; an agent of an older version does not tell it."""
    if not claim.most or claim.most <= claim.least:
        return "fixed" if claim.limit is not None and claim.least == claim.limit else show.ABSENT
    return f"{format_size(claim.least)} to {format_size(claim.most)}"
