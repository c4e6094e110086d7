"""A report as one self-contained HTML page, without scripts or links to other files; pure.

Everything from outside (names, commands, messages) is escaped: it can only be text.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from agentres.model import clock
from agentres.model.units import ABSENT, counted, format_duration
from agentres.policy.alerts import Severity, show
from agentres.readers import plot, portrait
from agentres.readers.plot import safe
from agentres.report import USED, AgentReport, Remark, Report, RunReport, Use, Weight

PICTURES = 12
"""Most runs whose curves are drawn: the newest of each agent first."""

_FINDINGS = 12
"""Most findings at the top of the page."""

_ROWS = 50
"""Most rows of a table of runs, alerts or actions: the newest."""

_TITLES = {
    "memory": "memory", "cpu": "CPU", "pids": "tasks", "disk_read": "disk read",
    "disk_write": "disk written", "network_in": "received", "network_out": "sent", "fds": "open files",
}  # fmt: skip

_INTEGRALS = {"memory": "bytes", "cpu": "cores"}
"""Resources that a limit reserves, with their units."""

_CLASSES = {
    Weight.KILLED: ' class="bad"',
    Weight.REFUSED: ' class="bad"',
    Weight.SLOWED: ' class="warn"',
}

_SEVERITIES = {
    Severity.INFO: "dim", Severity.WARNING: "warn", Severity.CRITICAL: "bad", Severity.EMERGENCY: "bad",
}  # fmt: skip

_NUMBERS = frozenset(
    {
        "runs", "memory unused", "killed", "alerts", "lasted", "half below", "95 % below", "most",
        "limit at the end", "unused", "as much as", "from", "to",
    }
)  # fmt: skip
"""Right-aligned columns."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --dim: #6b6b70; --paper: #fff; --line: #dcdce0; --card: #f6f6f8;
        --used: #0072b2; --bad: #b0003a; --warn: #9a6700 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --dim: #9c9ca3; --paper: #17181a; --line: #35363a; --card: #212226; --used: #56b4e9;
          --bad: #ff6b8b; --warn: #e6b450 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1120px; padding: 0 1em; color: var(--ink);
       background: var(--paper) }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.25em; margin: 2.2em 0 .4em; overflow-wrap: anywhere }
h3 { font-size: 1em; margin: 1.6em 0 .3em }
.dim { color: var(--dim) } .bad { color: var(--bad) } .warn { color: var(--warn) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25em 1em .25em 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } .n { text-align: right; white-space: nowrap } .words { min-width: 18em; overflow-wrap: anywhere }
td code, td.whole { white-space: nowrap } tr:has(+ .more) td { border: 0; padding-bottom: 0 }
a { color: inherit } li.warn { color: inherit } li.warn::marker { color: var(--warn) }
.bar { display: inline-block; width: 7em; height: .8em; background: var(--line); border-radius: 2px; overflow: hidden }
@media (max-width: 40em) { body { margin: 1em auto } .bar { width: 3em } th, td { padding-right: .6em } }
.bar i { display: block; height: 100%; background: var(--used) }
.advice { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6em 1em }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
.advice code { font-weight: 600 } ul { margin: .3em 0; padding-left: 1.2em }
figure { margin: 1em 0; border: 1px solid var(--line); border-radius: 6px; padding: .5em; overflow-x: auto }
figcaption { color: var(--dim); font-size: .9em }
svg { width: 100%; min-width: 44em; height: auto; font-family: system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { filter: invert(.91) hue-rotate(180deg) } }
@media print { body { margin: 0 } h2, h3 { break-after: avoid } tr, figure, .advice { break-inside: avoid }
               .wide, figure { overflow: visible } svg { min-width: 0 } }
"""


def to_html(report: Report) -> str:
    """Return the page.  PlotError if matplotlib is missing."""
    drawn = _drawn(report)
    body = [
        "<h1>What agents used</h1>",
        f'<p class="dim">{safe(_heading(report))}</p>',
        _summary(report),
        _gravest(report),
        *(_agent(agent, number, drawn) for number, agent in enumerate(report.agents)),
    ]
    left = sum(bool(one.curves.times) for agent in report.agents for one in agent.runs) - len(drawn)
    if left:
        body.append(f'<p class="dim">{safe(_undrawn(left))}</p>')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>agentres report</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _drawn(report: Report) -> frozenset[str]:
    """Return the ids of the runs to draw: the newest run of every agent, then the second newest, and so on."""
    ranked = [
        (place, number, one.run.id)
        for number, agent in enumerate(report.agents)
        for place, one in enumerate(one for one in agent.runs if one.curves.times)
    ]
    return frozenset(run for _, _, run in sorted(ranked)[:PICTURES])


def _undrawn(left: int) -> str:
    runs = "run has" if left == 1 else "runs have"
    return (
        f"{left} more {runs} curves that are not drawn here, to keep the page small: agentres report --run ID,"
        " or agentres history NAME --run ID."
    )


def _heading(report: Report) -> str:
    runs = sum(len(agent.runs) for agent in report.agents)
    words = f"{counted(len(report.agents), 'agent')}, {counted(runs, 'run')} on {report.host}"
    if report.since is not None:
        words += f" since {clock.date(report.since)}"
    return f"{words}; made {clock.date(report.made)}"


def _summary(report: Report) -> str:
    head = (
        "agent",
        "runs",
        "memory",
        "",
        "CPU",
        "",
        "memory unused",
        "killed",
        "alerts",
        "last run",
    )
    rows = []
    for number, agent in enumerate(report.agents):
        last = agent.shown
        memory, cpu = last.uses.get("memory"), last.uses.get("cpu")
        alerts = sum(len(one.alerts) for one in agent.runs)
        rows.append(
            f'<td><a href="#a{number}">{safe(agent.name)}</a></td><td class="n">{len(agent.runs)}</td>'
            f'<td>{_bar(memory)}</td><td class="n">{_of(memory)}</td>'
            f'<td>{_bar(cpu)}</td><td class="n">{_of(cpu)}</td><td class="n">{_unused(memory)}</td>'
            f'<td class="n{" bad" if agent.killed else ""}">{_number(agent.killed)}</td><td class="n">{alerts}</td>'
            f'<td class="whole">{safe(_ending(agent.runs[0]))}</td>'
        )
    if not rows:
        return "<p>No runs.</p>"
    caption = "The most that the newest run with samples used, of the limit that it had then."
    return _table(head, rows, caption)


def _gravest(report: Report) -> str:
    """List the findings of the newest runs and the severe ones of earlier runs, most severe first, then what all runs wasted."""
    found = sorted(
        (finding.weight, number, finding.text)
        for number, agent in enumerate(report.agents)
        for finding in (*agent.shown.findings, *_earlier(agent))
        if finding.weight != Weight.KNOWN
    )
    lines = [
        f'<li{_CLASSES.get(weight, "")}><a href="#a{number}">{safe(report.agents[number].name)}</a>: {safe(text)}</li>'
        for weight, number, text in found[:_FINDINGS]
    ]
    if len(found) > _FINDINGS:
        lines.append(f'<li class="dim">and {len(found) - _FINDINGS} less grave ones</li>')
    lines += [f"<li>{safe(text)}</li>" for text in _wasted(report)]
    return f"<h2>What matters</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _earlier(agent: AgentReport) -> Iterator[Remark]:
    """Yield the newest kill and the newest refusal among the runs that are not shown."""
    for weight in (Weight.KILLED, Weight.REFUSED):
        found = [
            (one, finding)
            for one in agent.runs
            if one is not agent.shown
            for finding in one.findings
            if finding.weight == weight
        ]
        if found:
            one, finding = found[0]
            count = len({each.run.id for each, _ in found})
            runs = "an earlier run" if count == 1 else f"{count} earlier runs, the last of them"
            yield Remark(weight, f"{runs} of {clock.moment(one.run.started)}: {finding.text}")


def _wasted(report: Report) -> Iterator[str]:
    """Yield a sentence on unused memory and one on unused CPU, over all runs that have samples."""
    for name in _INTEGRALS:
        uses = [use for agent in report.agents for one in agent.runs if (use := one.uses.get(name))]
        reserved = sum(use.reserved or 0.0 for use in uses)
        idle = sum(use.idle or 0.0 for use in uses)
        if reserved:
            yield (
                f"all runs that have samples: {_share(idle / reserved)} of the {_TITLES[name]} that was reserved"
                f" was not used, {_over_time(idle, name)} of {_over_time(reserved, name)}"
            )


def _agent(agent: AgentReport, number: int, drawn: frozenset[str]) -> str:
    parts = [f'<h2 id="a{number}">{safe(agent.name)}</h2>']
    if agent.advice:
        flags = " ".join(f"{advice.option} {advice.value}" for advice in agent.advice)
        reasons = "".join(
            f"<li><code>{safe(a.option)} {safe(a.value)}</code>: {safe(a.reason)}</li>"
            for a in agent.advice
        )
        parts.append(
            f'<div class="advice">Next time: <code>{safe(flags)}</code><ul>{reasons}</ul></div>'
        )
    else:
        parts.append(f'<p class="advice">No limits are recommended: {safe(agent.unadvised)}.</p>')
    parts.append(_runs(agent.runs))
    parts += [_run(one) for one in agent.runs if one.run.id in drawn]
    parts.append(_actions(agent.runs))
    parts.append(_alerts(agent.runs))
    return "\n".join(filter(None, parts))


def _runs(runs: Sequence[RunReport]) -> str:
    rows = [
        f'<td><code>{safe(one.run.id)}</code></td><td class="whole">{clock.date(one.run.started)}</td>'
        f'<td class="n">{safe(_lasted(one))}</td><td>{safe(_ending(one))}</td></tr>'
        # In a row below, where a phone has room.
        f'<tr class="more"><td colspan="4">{"<br>".join(safe(finding.text) for finding in one.findings)}</td>'
        for one in runs[:_ROWS]
    ]
    table = _table(("run", "started", "lasted", "ended"), rows)
    return f"<h3>Runs</h3>{table}{_more(len(runs))}"


def _run(one: RunReport) -> str:
    command = shlex.join(one.run.command)
    uses = [
        f"<td>{safe(_TITLES[name])}</td>"
        + "".join(f'<td class="n">{_quantity(value, use.unit)}</td>' for value in (use.median, use.high, use.most, use.limit))
        + f'<td class="n">{_unused(use)}</td><td class="n">{_idle(use)}</td>'
        for name in USED
        if (use := one.uses.get(name))
    ]  # fmt: skip
    picture = plot.svg(one.curves, one.alerts, one.actions, one.run.id)
    return (
        f"<h3>Run <code>{safe(one.run.id)}</code></h3><p><code>{safe(command)}</code></p>"
        + _table(
            ("", "half below", "95 % below", "most", "limit at the end", "unused", "as much as"),
            uses,
        )
        + f"<figure>{picture}<figcaption>The limit is the dashed line; triangles on the time axis are moves of"
        " limits, those at the top are alerts: each tells what it was when it is pointed at.</figcaption></figure>"
    )


def _actions(runs: Sequence[RunReport]) -> str:
    found = [(one, action) for one in runs for action in reversed(one.actions)]
    rows = []
    for one, action in found[:_ROWS]:
        before, after = (
            portrait.quantity(action.resource, v) for v in (action.before, action.after)
        )
        rows.append(
            f'<td class="whole">{clock.date(action.time)}</td>'
            f"<td><code>{safe(one.run.id)}</code></td>"
            f"<td>{safe(action.kind)}</td><td>{safe(action.resource)}</td>"
            f'<td class="n">{safe(before)}</td><td class="n">{safe(after)}</td><td class="words">{safe(action.why)}</td>'
        )
    if not rows:
        return ""
    table = _table(("time", "run", "what", "limit", "from", "to", "why"), rows)
    return f"<h3>What was done with its limits</h3>{table}{_more(len(found))}"


def _alerts(runs: Sequence[RunReport]) -> str:
    found = [(one, alert) for one in runs for alert in reversed(one.alerts)]
    rows = [
        f'<td class="whole">{clock.date(alert.raised)}</td>'
        f"<td><code>{safe(one.run.id)}</code></td>"
        f'<td class="{_SEVERITIES[alert.severity]}">{alert.severity.name}</td>'
        f'<td class="whole">{"" if alert.resolved is None else clock.date(alert.resolved)}</td>'
        f'<td class="words">{safe(alert.message)}</td>'
        for one, alert in found[:_ROWS]
    ]
    if not rows:
        return ""
    table = _table(("raised", "run", "severity", "resolved", "what"), rows)
    return f"<h3>Alerts</h3>{table}{_more(len(found))}"


def _more(count: int) -> str:
    return f'<p class="dim">and {count - _ROWS} older ones</p>' if count > _ROWS else ""


# Words and pieces.


def _table(head: Iterable[str], rows: Iterable[str], caption: str = "") -> str:
    paragraph = f'<p class="dim">{safe(caption)}</p>' if caption else ""
    heads = "".join(
        f'<th class="n">{safe(word)}</th>' if word in _NUMBERS else f"<th>{safe(word)}</th>"
        for word in head
    )
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'{paragraph}<div class="wide"><table><tr>{heads}</tr>{lines}</table></div>'


def _bar(use: Use | None) -> str:
    if use is None or not use.had:
        return ""
    share = min(1.0, use.most / use.had)
    return f'<span class="bar"><i style="width:{share:.0%}"></i></span>'


def _of(use: Use | None) -> str:
    return ABSENT if use is None else safe(use.words)


def _unused(use: Use | None) -> str:
    return ABSENT if use is None or use.waste is None else _share(use.waste)


def _share(part: float) -> str:
    """Format as a percentage, rounded down: 100 % means all of it."""
    return f"{int(part * 100)}%"


def _idle(use: Use) -> str:
    return (
        ""
        if use.idle is None or use.resource not in _INTEGRALS
        else _over_time(use.idle, use.resource)
    )


def _over_time(integral: float, resource: str) -> str:
    """Show unit-seconds as the amount that is the same for an hour."""
    return f"{show(integral / 3600, _INTEGRALS[resource])} for an hour"


def _number(count: int | None) -> str:
    return ABSENT if count is None else str(count)


def _quantity(value: float | None, unit: str) -> str:
    return ABSENT if value is None else safe(show(value, unit))


def _lasted(one: RunReport) -> str:
    if one.run.ended is None:
        return ABSENT
    return format_duration(max(0.0, one.run.ended - one.run.started))


def _ending(one: RunReport) -> str:
    if one.run.ended is None:
        return "still runs"
    return "end not seen" if one.run.exit_code is None else f"exit {one.run.exit_code}"
