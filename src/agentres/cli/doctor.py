"""``agentres doctor``: what this host can enforce, as a table or JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentres.cli.config import loaded
from agentres.doctor import TOLERATED, Finding, examine, refused
from agentres.errors import UsageError
from agentres.kernel.probe import gather
from agentres.limits import DISKS
from agentres.paths import configuration

_STYLE = {"ok": "green", "missing": "yellow", "refused": "bold red", "note": "dim"}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON instead of a table.")
    ] = False,
) -> None:
    """Tell what this host can enforce, what is missing, and the remedy.

    Makes a trial run. Exits 1 when `agentres run` would be refused here.
    """
    findings = examine(gather(), _tolerated())
    verdict = not refused(findings)
    if as_json:
        print(
            json.dumps(
                {"schema": 1, "run": verdict, "findings": [asdict(f) for f in findings]}, indent=2
            )
        )
    else:
        _print(findings, verdict)
    raise typer.Exit(0 if verdict else 1)


def _tolerated() -> frozenset[str]:
    """The files whose limits hold by default only: not those that the configuration asks for."""
    try:
        limits = loaded(configuration(os.environ, os.getuid())).limits
    except UsageError:  # the trial run was refused for that, and says it
        return TOLERATED
    return TOLERATED - {"io.max"} if set(DISKS) & limits.keys() else TOLERATED


def _print(findings: list[Finding], verdict: bool) -> None:
    console = Console(highlight=False)
    table = Table("check", "", "what", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(
            finding.check, f"[{_STYLE[finding.status]}]{finding.status}[/]", finding.detail
        )
    console.print(table)
    for finding in findings:
        if finding.remedy:
            # Not wrapped by us: a command is to be copied.
            console.print(f"\n{finding.check}: {finding.detail}\n  remedy: {finding.remedy}",
                          markup=False, soft_wrap=True)  # fmt: skip
    console.print(f"\nagentres run {'works here' if verdict else 'would be refused here'}")
