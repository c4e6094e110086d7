"""``agentres report``: reports what agents used of their limits, as a page, JSON or a table."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated

from agentres.cli import show
from agentres.cli.history import no_run_of, run_by_id
from agentres.cli.parameters import Argument, Misuse, Option
from agentres.model.errors import AgentresError, printable, reason
from agentres.policy.prediction import keys
from agentres.report import AgentReport, Report, run_report
from agentres.report.advice import advise
from agentres.report.plain import to_csv, to_plain
from agentres.store import ActionRow, AlertRow, Run, Store, StoreError

FORMATS = ("html", "json", "csv")


def report(
    names: Annotated[
        list[str] | None,
        Argument(metavar="[NAME]...", help="Agents. Default: all.", names=show.recorded),
    ] = None,
    since: Annotated[
        str | None,
        Option(
            metavar="DURATION",
            help="Only runs that still run or ended within this time: 90m, 7d.",
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        Option(
            "--run",
            metavar="ID",
            help="Only this run; the beginning of its id is enough.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to FILE (.html, .json or .csv) instead of printing a table.",
        ),
    ] = None,
) -> None:
    """Compare what agents used with what they had, and recommend limits.

    Samples are kept for an hour, alerts and actions for 30 days, what was learnt from earlier runs for a year after the last of them.
    """
    names = names or []
    kind = _kind(output)
    earliest = show.since(since)
    if run_id is not None and (len(names) > 1 or since is not None):
        raise Misuse("is one run: at most one NAME, no --since", "--run")
    with show.open_history() as store:
        if run_id is None:
            agents = tuple(_agents(store, names, earliest))
        else:
            run = run_by_id(store, run_id, next(iter(names), None), of="agent")
            agents = (_agent(store, run.name, [run]),)
        made = Report(time.time(), earliest, platform.node(), agents)
    if output is None:
        _print(made)
    elif kind == "html":
        from agentres.report.page import to_html

        _write(output, to_html(made))
    elif kind == "json":
        _write(output, json.dumps(to_plain(made), indent=2) + "\n")
    else:
        _write(output, to_csv(made))
    if output is not None:
        print(f"wrote {printable(output)}")


def _kind(output: str | None) -> str:
    if output is None:
        return ""
    suffix = os.path.splitext(output)[1][1:].lower()
    if suffix not in FORMATS:
        raise Misuse(f"{printable(output)} ends in none of .html, .json and .csv", "--output")
    return suffix


def _agents(store: Store, names: list[str], earliest: float | None) -> Iterator[AgentReport]:
    by_name: dict[str, list[Run]] = {}
    for run in store.runs(of="agent", since=earliest):
        by_name.setdefault(run.name, []).append(run)
    for name in dict.fromkeys(names or by_name):
        if name not in by_name:
            if store.runs(name, "agent"):
                raise StoreError(f"no run of {name!r} in that time")
            raise no_run_of(store, name)
        yield _agent(store, name, by_name[name])


def _agent(store: Store, name: str, runs: list[Run]) -> AgentReport:
    alerts: defaultdict[str, list[AlertRow]] = defaultdict(list)
    for alert in reversed(store.alerts(agent=name)):
        alerts[alert.run].append(alert)
    actions: defaultdict[str, list[ActionRow]] = defaultdict(list)
    for action in store.actions(name):
        actions[action.run].append(action)
    found = tuple(
        run_report(run, store.samples(run.id), actions[run.id], alerts[run.id]) for run in runs
    )
    profile = store.profile(*keys(name, runs[0].command))
    return AgentReport(name, found, *advise(profile, found))


def _write(path: str, text: str) -> None:
    """Write the file in one step: a reader gets the old one, or all of the new one."""
    folder = os.path.dirname(path) or "."
    try:
        fd, made = tempfile.mkstemp(dir=folder, prefix=".agentres-report-")
        try:
            with open(fd, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(file.fileno(), 0o666 & ~umask)
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        raise AgentresError(f"cannot write {printable(path)}: {reason(error)}") from error


def _print(made: Report) -> None:
    if not made.agents:
        print("no runs" + ("" if made.since is None else " in that time"))
        return
    numbers = ("runs", "memory", "cpu", "unused", "killed", "alerts")
    table = show.Table("agent", *numbers, right=numbers)
    for agent in made.agents:
        last = agent.shown
        memory = last.uses.get("memory")
        waste = None if memory is None else memory.waste
        table.add_row(
            show.cell(agent.name),
            str(len(agent.runs)),
            *(
                use.words if (use := last.uses.get(name)) else show.ABSENT
                for name in ("memory", "cpu")
            ),
            show.ABSENT if waste is None else f"{int(waste * 100)}%",
            show.ABSENT if agent.killed is None else str(agent.killed),
            str(sum(len(one.alerts) for one in agent.runs)),
        )
    table.print()
    for agent in made.agents:
        print()
        if agent.advice:
            flags = " ".join(f"{advice.option} {advice.value}" for advice in agent.advice)
            print(f"{printable(agent.name)}, next time: {flags}")
            for advice in agent.advice:
                print(f"  {advice.option}: {printable(advice.reason)}")
        else:
            print(f"{printable(agent.name)}: no limits are recommended; {agent.unadvised}")
        for finding in agent.runs[0].findings:
            print(f"  in the last run: {printable(finding.text)}")
    sys.stdout.flush()
