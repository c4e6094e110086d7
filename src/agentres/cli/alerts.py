"""``agentres alerts``: lists, shows, follows and acknowledges alerts, and counts them."""

from __future__ import annotations

import errno
import select
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Argument, Misuse, Option
from agentres.cli.stderr import say
from agentres.model import clock
from agentres.model.errors import printable
from agentres.model.units import format_duration
from agentres.policy.alerts import Severity
from agentres.policy.alerts import show as quantity
from agentres.policy.resources import RESOURCES
from agentres.readers.portrait import SEVERITY_STYLES
from agentres.store import AlertRow, NoHistory, Store

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""

POLL_MILLISECONDS = 200

AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
Since = Annotated[
    str | None,
    Option(metavar="DURATION", help="Only alerts raised within this time: 90s, 2h, 7d."),
]  # fmt: skip
Id = Annotated[
    str, Argument(metavar="ID", help="The alert's id, or enough of its beginning to be unique.")
]


def list_(
    agent: Annotated[str | None, Option(metavar="NAME", help="Only alerts of this agent.")] = None,
    severity: Annotated[
        str | None,
        Option(
            metavar="LEVEL",
            help="Only alerts that reached LEVEL: INFO, WARNING, CRITICAL or EMERGENCY.",
        ),
    ] = None,
    resource: Annotated[
        str | None, Option(metavar="NAME", help="Only alerts on this resource.")
    ] = None,
    since: Since = None,
    open_only: Annotated[
        bool, Option("--open", help="Only alerts that are not resolved yet.")
    ] = False,
    unacknowledged: Annotated[
        bool, Option("--unacked", help="Only alerts that are not acknowledged yet.")
    ] = False,
    limit: Annotated[
        int | None,
        Option(metavar="N", least=1, help="At most N alerts, the newest."),
    ] = None,
    as_json: AsJson = False,
    follow: Annotated[
        bool,
        Option("--follow", help="Print what happens to alerts from now on, until Ctrl-C."),
    ] = False,
) -> None:
    """List alerts, the newest first."""
    least = _severity(severity)
    if resource is not None and resource not in RESOURCES:
        known = show.near(resource, RESOURCES) or f"known: {', '.join(RESOURCES)}"
        raise Misuse(f"no resource {resource!r}; {known}", "--resource")
    if follow:
        for given, option in ((since, "--since"), (unacknowledged, "--unacked")):
            if given:
                raise Misuse("is about the past: not with --follow", option)
        _follow(agent, least, resource, open_only, limit, as_json)
        return
    earliest = show.since(since)
    with show.open_history() as store:
        rows = store.alerts(agent, least, resource, earliest, open_only, unacknowledged, limit)
    if as_json:
        show.print_json({"schema": SCHEMA, "alerts": [_as_json(row) for row in rows]})
    else:
        _print(rows)


def show_(alert_id: Id, as_json: AsJson = False) -> None:
    """Show all that is known about an alert, and what happened to it."""
    with show.open_history() as store:
        row = store.alert(alert_id)
        timeline = store.timeline(row.id)
    if as_json:
        steps = [
            {
                "time": at, "kind": kind, "severity": None if severity is None else severity.name,
                "value": value, "detail": detail,
            }
            for at, kind, severity, value, detail in timeline
        ]  # fmt: skip
        show.print_json({"schema": SCHEMA, "alert": _as_json(row), "timeline": steps})
        return
    fields = show.Table("", "", heading=False)
    for field, value in _fields(row):
        fields.add_row(show.cell(field, "dim"), show.cell(value))
    fields.print()
    steps_table = show.Table("time", "what", "severity", "value", "detail", whole=("time",))
    for at, kind, level, figure, detail in timeline:
        steps_table.add_row(
            clock.of_day(at, 3),
            show.cell(kind),
            "" if level is None else show.cell(level.name, SEVERITY_STYLES[level]),
            "" if figure is None else quantity(figure, row.unit),
            show.cell(detail),
        )
    print()
    steps_table.print()


def ack(
    alert_id: Id,
    why: Annotated[str, Option(metavar="TEXT", help="Why, or what is being done about it.")],
    who: Annotated[
        str | None, Option(metavar="NAME", help="Who looks after it. Default: you.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Acknowledge an alert: say who looks after it, and why."""
    for text, option in ((why, "--why"), (who, "--who")):
        if text is not None and not text.strip():
            raise Misuse("must not be empty", option)
    from agentres.readers.client import whoever

    with show.open_history(write=True) as store:
        row = store.acknowledge(alert_id, who or whoever(), why, time.time())
    if as_json:
        show.print_json({"schema": SCHEMA, "alert": _as_json(row)})
    else:
        print(f"acknowledged {row.id} as {printable(row.acknowledged_by or '')}")


def stats(since: Since = None, as_json: AsJson = False) -> None:
    """Count alerts by severity, agent and resource; show how long they waited to be acknowledged."""
    earliest = show.since(since)
    with show.open_history() as store:
        found = store.statistics(earliest)
    if as_json:
        show.print_json({"schema": SCHEMA, **found})
        return
    print(f"{found['total']} alerts, {found['open']} open, {found['acknowledged']} acknowledged")
    for by in ("severity", "agent", "resource"):
        counts = {name: number for name, number in found[f"by_{by}"].items() if number}
        if not counts:
            continue
        table = show.Table(by, "alerts", right=("alerts",))
        ranked = counts.items() if by == "severity" else sorted(counts.items(), key=lambda c: -c[1])
        for name, number in ranked:
            style = SEVERITY_STYLES[Severity[name]] if by == "severity" else ""
            table.add_row(show.cell(name, style), str(number))
        print()
        table.print()
    waits = found["time_to_acknowledge"]
    if waits["max"] is not None:
        words = ", ".join(
            f"{name} {format_duration(waits[name])}" for name in ("mean", "p50", "max")
        )
        print(f"\ntime to acknowledge: {words}")


def _severity(text: str | None) -> Severity | None:
    if text is None:
        return None
    try:
        return Severity[text.upper()]
    except KeyError:
        names = ", ".join(level.name for level in Severity)
        raise Misuse(f"expected one of {names}, not {text!r}", "--severity") from None


# How alerts are shown.


def _as_json(row: AlertRow) -> dict[str, Any]:
    return {**row.as_dict(), "severity": row.severity.name, "last_severity": row.last_severity.name}


def _value(row: AlertRow) -> str:
    """Return the alert's value now; if it is resolved, its worst value."""
    if row.resolved is None or row.worst is None:
        return _of(row.value, row.limit, row.unit)
    return _of(row.worst, row.worst_limit, row.unit)


def _of(value: float, limit: float | None, unit: str) -> str:
    text = quantity(value, unit)
    return text if limit is None else f"{text} of {quantity(limit, unit)}"


def _state(row: AlertRow) -> str:
    state = "open" if row.resolved is None else "resolved"
    return state if row.acknowledged is None else f"{state}, acked"


def _print(rows: list[AlertRow]) -> None:
    if not rows:
        print("no alerts")
        return
    table = show.Table(
        "id", "raised", "severity", "agent", "resource", "value", "state",
        whole=("id", "raised", "severity"), gap=1,
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.id,
            clock.moment(row.raised),
            show.cell(row.severity.name, SEVERITY_STYLES[row.severity]),
            show.cell(row.agent),
            show.cell(row.resource),
            _value(row),
            show.cell(_state(row), "bold" if row.resolved is None else ""),
        )
    table.print()


def _fields(row: AlertRow) -> Iterator[tuple[str, str]]:
    yield "id", row.id
    yield "message", row.message
    yield "state", _state(row)
    reached = "" if row.severity == row.last_severity else f" (last {row.last_severity.name})"
    yield "severity", row.severity.name + reached
    yield "agent", f"{row.agent}, run {row.run}, on {row.host}"
    yield "rule", row.rule if row.rule == row.resource else f"{row.rule} (of {row.resource})"
    yield "value", _of(row.value, row.limit, row.unit)
    if row.worst is not None and row.worst_at is not None:
        yield "worst", f"{_of(row.worst, row.worst_limit, row.unit)}, {clock.date(row.worst_at)}"
    yield "threshold", quantity(row.threshold, row.unit)
    for field in ("breached", "raised", "updated", "resolved", "handled"):
        at = getattr(row, field)
        yield field, show.ABSENT if at is None else clock.date(at)
    if row.acknowledged is None:
        yield "acknowledged", show.ABSENT
    else:
        by = f"{clock.date(row.acknowledged)} by {row.acknowledged_by}"
        yield "acknowledged", f"{by}: {row.acknowledged_why}"
    if row.repeats:
        yield "repeats", str(row.repeats)


# Following alerts.


def _follow(
    agent: str | None,
    least: Severity | None,
    resource: str | None,
    open_only: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    shown = 0
    for store, event in _events():
        wanted = (
            (agent is None or event["agent"] == agent)
            and (resource is None or event["resource"] == resource)
            and not (open_only and event["event"] == "resolved")
            and (least is None or _reached(store, event) >= least)
        )
        if not wanted:
            continue
        if as_json:
            show.print_json(event, indent=None)
        else:
            words = (
                clock.of_day(event["updated"]), event["id"],
                f"{event['event']:8}", f"{event['severity']:9}", event["message"],
            )  # fmt: skip
            print(printable(" ".join(words)))
        sys.stdout.flush()
        shown += 1
        if shown == limit:
            return


def _reached(store: Store, event: dict[str, Any]) -> Severity:
    """Return the alert's highest severity so far: whoever saw that also sees later events."""
    if event["event"] == "raised":
        return Severity[event["severity"]]
    return max(Severity[event["severity"]], store.alert(event["id"]).severity)


def _events() -> Iterator[tuple[Store, dict[str, Any]]]:
    """Yield each new event, with its store.  BrokenPipeError when the reader of stdout has gone."""
    reader = select.poll()
    reader.register(1, 0)  # reports only a hang-up of the other end
    store, waited = _wait(reader)
    at = 0 if waited else store.changes(sys.maxsize)[1]
    while True:
        found, at = store.changes(at)
        for _, event in found:
            yield store, event
        _pause(reader)
        if store.moved:
            # The file was replaced: nothing in the new one has been shown yet.
            store.close()
            store, _ = _wait(reader)
            at = 0


def _wait(reader: select.poll) -> tuple[Store, bool]:
    """Wait until there is a history; return it, and whether there was none at first."""
    waited = False
    while True:
        try:
            return show.open_history(), waited
        except NoHistory as error:
            if not waited:
                say(f"{error}; waiting")
            waited = True
        _pause(reader)


def _pause(reader: select.poll) -> None:
    if reader.poll(POLL_MILLISECONDS):
        raise BrokenPipeError(errno.EPIPE, "the reader has gone")
