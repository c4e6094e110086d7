"""``agentres doctor``: shows what this host can enforce, as a table or JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated

from agentres.cli import show
from agentres.cli.parameters import Option
from agentres.cli.show import loaded
from agentres.kernel import fq
from agentres.model.errors import UsageError
from agentres.model.limits import DISKS, NETWORK, NETWORKS
from agentres.model.paths import configuration, daemon_socket
from agentres.readers.doctor import TOLERATED, Finding, examine, refused
from agentres.readers.probe import gather

_STYLE = {"ok": "green", "missing": "yellow", "refused": "bold red", "note": "dim"}


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
    fix_net: Annotated[
        bool,
        Option(
            "--fix-net",
            help="Install fq on the interfaces with hardware behind them, so that what agents send too fast waits instead of being dropped. This affects the whole host. For root.",
        ),
    ] = False,
    unfix_net: Annotated[
        bool,
        Option("--unfix-net", help="Undo --fix-net: put back what was there before."),
    ] = False,
    interface: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="With --fix-net: only this interface; repeatable."),
    ] = None,
) -> int:
    """Show what this host can enforce, what is missing, and the remedy.

    Makes a trial run. Exits 1 if `agentres run` would be refused here.
    """
    if fix_net or unfix_net or interface:
        _pace(fix_net, unfix_net, interface or [])
        return 0
    findings = examine(gather(_daemon()), _tolerated())
    verdict = not refused(findings)
    if as_json:
        print(
            json.dumps(
                {"schema": 1, "run": verdict, "findings": [asdict(f) for f in findings]}, indent=2
            )
        )
    else:
        _print(findings, verdict)
    return 0 if verdict else 1


def _daemon() -> str:
    """Return the socket of the daemon that `agentres run` would ask; "" if there is none."""
    from agentres.daemon import lease

    path = daemon_socket()
    sock = lease.connect(path)
    if sock is None:
        return ""
    sock.close()
    return path


def _pace(fix: bool, unfix: bool, names: list[str]) -> None:
    if fix == unfix or (names and not fix):
        raise UsageError("expected --fix-net, with --interface NAME if need be, or --unfix-net")
    if os.geteuid() != 0:
        raise UsageError("the host's interfaces are root's")
    for line in fq.install(names) if fix else fq.remove():
        print(line)


def _tolerated() -> frozenset[str]:
    """Return the files of optional limits, without those of limits that the configuration asks for."""
    try:
        limits = loaded(configuration(os.environ, os.getuid())).limits
    except UsageError:  # the trial run was refused for that, and the table says so
        return TOLERATED
    asked = {"io.max": DISKS, NETWORK: NETWORKS}
    return TOLERATED - {file for file, keys in asked.items() if set(keys) & limits.keys()}


def _print(findings: list[Finding], verdict: bool) -> None:
    table = show.Table("check", "", "what", gap=1)
    for finding in findings:
        table.add_row(
            finding.check, show.cell(finding.status, _STYLE[finding.status]), finding.detail
        )
    table.print()
    for finding in findings:
        if finding.remedy:
            print(f"\n{finding.check}: {finding.detail}\n  remedy: {finding.remedy}")
    print(f"\nagentres run {'works here' if verdict else 'would be refused here'}")
