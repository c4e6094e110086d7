"""A report as JSON and as CSV; pure."""

from __future__ import annotations

import csv
import io
import shlex
from typing import Any

from agentres.model.errors import printable
from agentres.report import USED, Report, RunReport

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""

_RUN = ("id", "name", "uid", "started", "ended", "exit_code")
_USE = ("median", "high", "most", "had", "limit", "reserved", "idle", "waste")
_STALLED = ("cpu", "memory", "io")
COLUMNS = (
    *_RUN, "command", "memory_peak", "throttled", "killed", "refused", "alerts", "actions",
    *(f"stalled_{kind}" for kind in _STALLED),
    *(f"{resource}_{figure}" for resource in USED for figure in _USE),
)  # fmt: skip
"""The columns of the CSV."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of what a spreadsheet takes for a formula (OWASP, CSV injection)."""


def to_plain(report: Report) -> dict[str, Any]:
    """Return the report as plain types, for json.dumps()."""
    return {
        "schema": SCHEMA,
        "made": report.made,
        "since": report.since,
        "host": report.host,
        "agents": [
            {
                "name": agent.name,
                "recommended": [
                    {key: getattr(advice, key) for key in ("resource", "option", "value", "reason")}
                    for advice in agent.advice
                ],
                "not_recommended": agent.unadvised or None,
                "runs": [_run(one) for one in agent.runs],
            }
            for agent in report.agents
        ],
    }


def _run(one: RunReport) -> dict[str, Any]:
    return {
        **{key: getattr(one.run, key) for key in _RUN},
        "command": list(one.run.command),
        "memory_peak": one.peak,
        "throttled": one.throttled,
        "stalled": one.stalled,
        "killed": one.killed,
        "refused": one.refused,
        "use": {
            use.resource: {"unit": use.unit, **{key: getattr(use, key) for key in _USE}}
            for use in one.uses.values()
        },
        "kills": [
            {key: getattr(kill, key) for key in type(kill).__match_args__} for kill in one.kills
        ],
        "findings": [finding.text for finding in one.findings],
        "alerts": [
            {
                **{key: getattr(row, key) for key in type(row).__match_args__},
                "severity": row.severity.name,
                "last_severity": row.last_severity.name,
            }
            for row in one.alerts
        ],
        "actions": [row.as_json() for row in one.actions],
    }


def to_csv(report: Report) -> str:
    """Return one row per run (RFC 4180); unknown values are empty, and no text can be a formula."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for agent in report.agents:
        for one in agent.runs:
            writer.writerow(_row(one))
    return file.getvalue()


def _row(one: RunReport) -> list[object]:
    known = [getattr(one.run, key) for key in _RUN]
    known += [shlex.join(one.run.command), one.peak, one.throttled, one.killed, one.refused]
    known += [len(one.alerts), len(one.actions)]
    known += [one.stalled.get(kind) for kind in _STALLED]
    for resource in USED:
        use = one.uses.get(resource)
        known += [None if use is None else getattr(use, key) for key in _USE]
    return [_cell(value) for value in known]


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
