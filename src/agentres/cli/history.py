"""``agentres history``: shows what a run used, as a table, curves, JSON or a picture."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Argument, Misuse, Option
from agentres.model import clock
from agentres.model.errors import printable
from agentres.model.limits import unit_of
from agentres.model.stats import Sample
from agentres.policy.alerts import show as quantity
from agentres.readers.curves import CURVES, Curve, Curves, curves
from agentres.store import AlertRow, Run, Store, StoreError

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""


def history(
    name: Annotated[
        str | None,
        Argument(
            metavar="NAME",
            help="An agent, host, or agentres.slice. Default: list all known runs.",
            names=show.recorded,
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        Option(
            "--run",
            metavar="ID",
            help="This run, not the newest; the beginning of its id is enough.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        Option(metavar="DURATION", help="Only what is newer than this: 90s, 5m."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
    actions: Annotated[
        bool,
        Option(
            "--actions",
            help="Show what was done to limits instead: in all runs, kept for 30 days.",
        ),
    ] = False,
    picture: Annotated[
        str | None,
        Option(
            "--plot",
            metavar="FILE",
            help="Draw the curves into FILE (.png, .svg or .html) instead.",
        ),
    ] = None,
) -> None:
    """Show what a run used: the last 100 samples, kept for one hour."""
    earliest = show.since(since)
    if picture is not None:
        _check_plot(picture, name, run_id, actions)
    with show.open_history() as store:
        if actions:
            _actions(store, name, run_id, earliest, as_json)
            return
        if name is None and run_id is None:
            _list(store, earliest, as_json)
            return
        run, others = _pick(store, name, run_id)
        samples = store.samples(run.id, since=earliest)
        alerts = [alert for alert in store.alerts(agent=run.name) if alert.run == run.id]
    drawn = curves(samples)
    if picture is not None:
        if not samples:
            raise StoreError(_nothing(run, since))
        from agentres.readers import plot

        title = f"{printable(run.name)} (run {run.id})"
        plot.write(picture, drawn, title, _facts(run, drawn), alerts)
    if as_json:
        show.print_json(_as_json(run, others, samples, drawn, alerts))
    elif picture is not None:
        print(f"wrote {printable(picture)}")
    else:
        _print(run, others, drawn, alerts, _nothing(run, since))


def _check_plot(picture: str, name: str | None, run_id: str | None, actions: bool) -> None:
    from agentres.readers import plot

    if not plot.format_of(picture):
        raise Misuse(f"{picture} ends in none of .png, .svg and .html", "--plot")
    if name is None and run_id is None:
        raise Misuse("wants the NAME of a run", "--plot")
    if actions:
        raise Misuse("draws samples, not --actions", "--plot")


def _pick(store: Store, name: str | None, run_id: str | None) -> tuple[Run, list[Run]]:
    """Return the run asked for, and the others of its name, newest first."""
    if run_id is not None:
        picked = run_by_id(store, run_id, name)
        return picked, [r for r in store.runs(picked.name, picked.of) if r.id != picked.id]
    found = store.runs(name)
    # An agent may be named "host": runs of the host or its slice go first.
    found.sort(key=lambda run: run.of == "agent")
    if not found:
        raise no_run_of(store, name or "")
    return found[0], [run for run in found[1:] if run.of == found[0].of]


def run_by_id(store: Store, run_id: str, name: str | None, of: str | None = None) -> Run:
    """Return the one run of that name and kind whose id begins with ``run_id``; StoreError."""
    found = [run for run in store.runs(name, of) if run.id.startswith(run_id)]
    if not found or not run_id:
        raise StoreError(
            f"no run {run_id!r}" + ("" if name is None else f" of {name!r}") + " in the history",
            "agentres history lists the runs",
        )
    if len(found) > 1:
        some = ", ".join(run.id for run in found[:5])
        raise StoreError(f"several runs begin with {run_id!r}: {some}", "write more of the id")
    return found[0]


def no_run_of(store: Store, name: str) -> StoreError:
    """Return the error that there is no such run, with similar names."""
    names = {run.name for run in store.runs()}
    remedy = show.near(name, names) or "agentres history lists the runs"
    return StoreError(f"no run of {name!r} in the history", remedy)


def _nothing(run: Run, since: str | None) -> str:
    within = "the last hour, and older ones are not kept" if since is None else f"the last {since}"
    return f"no samples of {run.name} in {within}"


# The runs.


def _list(store: Store, earliest: float | None, as_json: bool) -> None:
    runs = store.runs(since=earliest)
    rows = [(run, store.samples(run.id)) for run in runs]
    if as_json:
        listed = [
            {**_run_json(run), "memory_peak": _peak(samples), "samples": len(samples)}
            for run, samples in rows
        ]
        show.print_json({"schema": SCHEMA, "runs": listed})
        return
    if not rows:
        print("no runs" + ("" if earliest is None else " in that time"))
        return
    table = show.Table(
        "name", "run", "started", "ended", "exit", "peak memory",
        right=("exit", "peak memory"), whole=("run", "started", "ended"),
    )  # fmt: skip
    for run, samples in rows:
        peak = _peak(samples)
        table.add_row(
            show.cell(run.name),
            run.id,
            clock.moment(run.started),
            show.cell("running", "green") if run.ended is None else clock.moment(run.ended),
            show.ABSENT if run.exit_code is None else str(run.exit_code),
            show.ABSENT if peak is None else quantity(peak, "bytes"),
        )
    table.print()


def _peak(samples: list[tuple[float, Sample]]) -> int | None:
    peaks = [sample.memory_peak for _, sample in samples if sample.memory_peak is not None]
    return max(peaks, default=None)


# One run.


def _run_json(run: Run) -> dict[str, Any]:
    fields = ("id", "name", "of", "command", "uid", "cgroup", "started", "ended", "exit_code")
    return {field: getattr(run, field) for field in fields}


def _as_json(
    run: Run,
    others: list[Run],
    samples: list[tuple[float, Sample]],
    drawn: Curves,
    alerts: list[AlertRow],
) -> dict[str, Any]:
    rows = [
        {
            "time": moment,
            "values": {name: curve.values[at] for name, curve in drawn.by_name.items()},
            "limits": {name: drawn[name].limits[at] for name in _LIMITED},
            "raw": sample.as_dict(),
        }
        for at, (moment, sample) in enumerate(samples)
    ]
    return {
        "schema": SCHEMA,
        "run": _run_json(run),
        "other_runs": [other.id for other in others],
        "units": {name: resource.unit for name, resource in CURVES.items()},
        "samples": rows,
        "alerts": [alert.id for alert in alerts],
    }


def _facts(run: Run, drawn: Curves) -> list[tuple[str, str]]:
    limits = ", ".join(_limits(drawn))
    ended = "running" if run.ended is None else clock.date(run.ended)
    facts = [("started", clock.date(run.started)), ("ended", ended)]
    if run.exit_code is not None:
        facts.append(("exit code", str(run.exit_code)))
    if limits:
        facts.append(("limits", limits))
    if run.command:
        facts.append(("command", printable(shlex.join(run.command))))
    return facts


_LIMITED = {
    "cpu": "CPU",
    "memory": "memory",
    "pids": "processes",
    "network_in": "network in",
    "network_out": "out",
}


def _limits(drawn: Curves) -> list[str]:
    found = []
    for name, label in _LIMITED.items():
        limit = drawn[name].limit
        if limit is not None:
            found.append(f"{label} {quantity(limit, drawn[name].unit)}")
    return found


def _print(
    run: Run, others: list[Run], drawn: Curves, alerts: list[AlertRow], nothing: str
) -> None:
    words = [
        "still running" if fact == "ended" and run.ended is None else f"{fact} {value}"
        for fact, value in _facts(run, drawn)
        if fact != "command"
    ]
    heading = f"{run.name}, run {run.id}: {', '.join(words)}"
    show.line(heading, "bold")
    if others:
        some = ", ".join(f"{other.id} of {clock.moment(other.started)}" for other in others[:3])
        more = ", ..." if len(others) > 3 else ""
        show.line(f"{len(others)} more of that name: {some}{more} (--run ID)")
    if not drawn.times:
        show.line(nothing)
    else:
        print()
        _table(drawn).print()
        from agentres.readers import plot

        show.picture(partial(plot.terminal, drawn))
    if alerts:
        open_ = sum(alert.resolved is None for alert in alerts)
        name = shlex.quote(run.name)
        line = f"alerts: {len(alerts)}, {open_} of them open; agentres alerts list --agent {name}"
        print()
        show.line(line)


def _table(drawn: Curves) -> Any:
    names = (
        "time", "cpu", "working\nset", "memory", "read", "written", "in", "out", "pids", "fds",
        "pressure %\ncpu mem io",
    )  # fmt: skip
    table = show.Table(*names, right=names[1:], whole=names[:1], gap=1)
    close = any(b - a < 1 for a, b in zip(drawn.times, drawn.times[1:], strict=False))
    for at, moment in enumerate(drawn.times):
        table.add_row(
            clock.of_day(moment, 2 if close else 0),
            _figure(drawn["cpu"], at),
            *(_figure(drawn[name], at) for name in ("memory", "memory_current")),
            *(_figure(drawn[name], at) for name in ("disk_read", "disk_write")),
            *(_figure(drawn[name], at) for name in ("network_in", "network_out", "pids", "fds")),
            _pressure(drawn, at),
        )
    return table


def _figure(curve: Curve, at: int) -> str:
    value = curve.values[at]
    if value is None:
        return show.ABSENT
    return f"{value:.2f}" if curve.unit == "cores" else quantity(value, curve.unit)


def _pressure(drawn: Curves, at: int) -> str:
    shares = [drawn[f"{kind}_pressure"].values[at] for kind in ("cpu", "memory", "io")]
    if all(share is None for share in shares):
        return show.ABSENT
    return " ".join(f"{show.ABSENT if s is None else round(s * 100):>3}" for s in shares)


# Actions.


def _actions(
    store: Store, name: str | None, run_id: str | None, earliest: float | None, as_json: bool
) -> None:
    """Show actions.  They are looked up independently of runs, which the history forgets earlier."""
    found = store.actions(name)
    if run_id is not None:
        ids = {row.run for row in found if run_id and row.run.startswith(run_id)}
        if len(ids) != 1:
            ids = {_pick(store, name, run_id)[0].id}
        found = [row for row in found if row.run in ids]
    elif not found and name is not None:
        _pick(store, name, None)  # raises StoreError if there is no such name
    if earliest is not None:
        found = [row for row in found if row.time >= earliest]
    if as_json:
        show.print_json({"schema": SCHEMA, "actions": [row.as_json() for row in found]})
        return
    if not found:
        print("no actions" + ("" if earliest is None else " in that time"))
        return
    several = {
        "agent": name is None and len({row.agent for row in found}) > 1,
        "run": len({row.run for row in found}) > 1,
    }
    more = [column for column, shown in several.items() if shown]
    table = show.Table(
        "time", *more, "what", "limit", "from", "to", "took", "why",
        right=("from", "to", "took"), whole=("time", "run", "what"), gap=1,
    )  # fmt: skip
    for row in found:
        unit = unit_of(row.resource) or "count"
        ends = [show.ABSENT if v is None else quantity(v, unit) for v in (row.before, row.after)]
        took = show.ABSENT if row.took is None else f"{row.took * 1000:.1f} ms"
        values = f" ({row.values})" if row.values else ""
        table.add_row(
            clock.moment(row.time),
            *(show.cell(getattr(row, column)) for column in more),
            show.cell(row.kind, _KINDS.get(row.kind, "")),
            show.cell(row.resource),
            *ends,
            took,
            show.cell(f"{row.rule}: {row.why}{values}"),
        )
    table.print()


_KINDS = {"throttle": "yellow", "refuse": "yellow", "release": "red", "freeze": "red"}
