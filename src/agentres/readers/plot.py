"""Draws curves: as lines of text for a terminal, and as PNG, SVG or HTML files.

Text uses plotille's braille canvas.  Files use matplotlib (the ``report`` extra), which is imported
only for them.
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from math import ceil
from typing import TYPE_CHECKING, Any

from agentres.model import clock
from agentres.model.errors import AgentresError, printable, reason
from agentres.model.limits import LIMIT_SPECS
from agentres.model.record import Record
from agentres.policy.alerts import Severity, show
from agentres.readers.curves import Curve, Curves, pieces
from agentres.readers.portrait import quantity

if TYPE_CHECKING:
    from agentres.store import ActionRow, AlertRow

FORMATS = ("png", "svg", "html")


class PlotError(AgentresError):
    """A picture cannot be drawn or written."""


class Panel(Record):
    """One picture: its curves as (curve, label), and the resources whose alerts it shows.

    The limit drawn is the first curve's; ``limit`` is its label.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    resources: frozenset[str]
    limit: str = "limit"


PANELS = (
    Panel("CPU", (("cpu", "used"),), frozenset({"cpu", "cpu_pressure", "load"})),
    Panel(
        "Memory",
        (("memory", "working set"), ("memory_current", "with page cache")),
        frozenset({"memory", "swap", "memory_pressure", "oom_kill"}),
    ),
    Panel(
        "Disk",
        (("disk_read", "read"), ("disk_write", "written")),
        frozenset({"disk", "disk_read", "disk_write", "io_pressure"}),
    ),
    Panel(
        "Processes and files",
        (("pids", "processes and threads"), ("fds", "open files")),
        frozenset({"pids", "fds", "fork_refused"}),
        "process limit",
    ),
)
_NETWORK = Panel(
    "Network",
    (("network_in", "received"), ("network_out", "sent")),
    frozenset({"network", "network_in", "network_out", "network_drops", "network_packets"}),
    "limit on what is received",
)
_FAR = 4
"""A limit more than this many times the curve's highest value is only named in the legend: drawn, it would flatten the curve."""


def _panels(curves: Curves) -> tuple[Panel, ...]:
    return PANELS if curves["network"].empty else (*PANELS, _NETWORK)


def _top(curve: Curve, *others: Curve) -> tuple[float, bool]:
    """Return the top of a panel's scale, and whether the first curve's limit is drawn in it."""
    highest = max((c.highest or 0.0 for c in (curve, *others)), default=0.0)
    limit = max((at for at in curve.limits if at is not None), default=None)
    if limit is None or limit > highest * _FAR:
        return highest or 1.0, False
    return max(highest, limit), True


# For a terminal.

_ROWS = 6
_LABEL = 10
_SOLID, _DOTTED, _DASHED = (1, 0), (1, 1), (3, 3)
_STROKES = ((_SOLID, "cyan", "──"), (_DOTTED, "magenta", "··"))
_LIMIT = (_DASHED, "red", "╌╌")
_BRAILLE = range(0x2800, 0x2900)
_ASCII = {**dict.fromkeys(_BRAILLE, "*"), 0x2800: " "} | str.maketrans("┤│└─·╌", "||+-.-")


def terminal(curves: Curves, width: int, ascii_only: bool = False) -> list[str]:
    """Draw the curves as lines of at most ``width`` columns (at least 40), coloured by ANSI sequences on a terminal."""
    lines: list[str] = []
    for panel in _panels(curves):
        named = [(curves[name], label) for name, label in panel.lines]
        if not all(curve.empty for curve, _ in named):
            lines += ["", *_panel_lines(panel, curves.times, named, max(width, 40))]
    table = _ASCII if ascii_only else {0x2800: " "}  # some fonts draw a braille blank as circles
    return [line.translate(table) for line in lines]


def _panel_lines(
    panel: Panel, times: Sequence[float], named: Sequence[tuple[Curve, str]], width: int
) -> Iterator[str]:
    import plotille

    columns = width - _LABEL - 2
    # Coordinates are in dots: a braille character has 2 by 4.
    canvas = plotille.Canvas(columns, _ROWS, 0, 0, columns * 2, _ROWS * 4)
    top, with_limit = _top(*(curve for curve, _ in named))
    across = (columns * 2 - 1) / ((times[-1] - times[0]) or 1)
    up = (_ROWS * 4 - 1) / top

    def draw(values: Sequence[float | None], stroke: tuple[int, int], color: str) -> None:
        for piece in pieces(times, values):
            dots = [((at - times[0]) * across, value * up) for at, value in piece]
            _draw(canvas, dots, stroke, color)

    if with_limit:
        draw(named[0][0].limits, _LIMIT[0], _LIMIT[1])
    legend = []
    for (curve, label), (stroke, color, sign) in zip(named, _STROKES, strict=False):
        draw(curve.values, stroke, color)
        if curve.last is not None and curve.highest is not None:
            now, most = show(curve.last, curve.unit), show(curve.highest, curve.unit)
            legend.append(f"{sign} {label} {now}" + ("" if now == most else f" (max {most})"))
    limit = named[0][0].limit
    if limit is not None:
        shown = f"{panel.limit} {show(limit, named[0][0].unit)}"
        legend.append(f"{_LIMIT[2]} {shown}" if with_limit else f"{shown} (above)")
    yield from _folded(panel.title, legend, width)
    marks = {0: show(top, named[0][0].unit), _ROWS - 1: "0"}
    for row, text in enumerate(canvas.plot(linesep="\n").split("\n")):
        yield f"{marks.get(row, ''):>{_LABEL}} {'┤' if row in marks else '│'}{text}"
    yield " " * (_LABEL + 1) + "└" + "─" * columns
    first, last = (clock.of_day(times[at]) for at in (0, -1))
    yield " " * (_LABEL + 2) + (
        f"{first}{last:>{columns - len(first)}}" if first != last else first
    )


def _folded(title: str, words: Sequence[str], width: int) -> Iterator[str]:
    """Yield the title and its legend, wrapped to ``width``."""
    line = title
    for word in words:
        if len(line) + len(word) + 2 > width:
            yield line
            line = " " * min(len(title), width - 40)
        line += f"  {word}"
    yield line


def _draw(
    canvas: Any, dots: Sequence[tuple[float, float]], stroke: tuple[int, int], color: str
) -> None:
    """Draw a line through the dots; ``stroke`` is its pattern: dots drawn, dots left out."""
    on, off = stroke
    gone = 0.0
    for (x, y), (to_x, to_y) in zip(dots, [*dots[1:], dots[-1]], strict=True):
        length = max(abs(to_x - x), abs(to_y - y))
        steps = max(1, ceil(length))
        for step in range(steps):
            part = step / steps
            if (gone + length * part) % (on + off) < on:
                across, up = x + (to_x - x) * part, y + (to_y - y) * part
                canvas.point(int(across + 0.5), int(up + 0.5), color=color)
        gone += length


# For files.


def format_of(path: str) -> str:
    """Return the format for a file of that name: one of FORMATS, or "" for any other suffix."""
    suffix = os.path.splitext(path)[1][1:].lower()
    return suffix if suffix in FORMATS else ""


def write(
    path: str,
    curves: Curves,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    alerts: Sequence[AlertRow] = (),
) -> None:
    """Draw the curves with the alerts marked into a file; its suffix must be one of FORMATS.  PlotError."""
    kind = format_of(path)
    subtitle = "   ".join(f"{name}: {value}" for name, value in facts if name != "command")
    figure = _figure(curves, title, subtitle, alerts, bare=kind == "html")
    buffer = io.BytesIO()
    if kind == "png":
        figure.savefig(buffer, format="png", dpi=144)
    else:
        # Without a date, so that the same curves make the same file.
        metadata = _NAMELESS if kind == "html" else {"Date": None, "Title": title}
        figure.savefig(buffer, format="svg", metadata=metadata)
    data = buffer.getvalue()
    if kind == "svg":
        data = _titled(data.decode()).encode()
    elif kind == "html":
        data = _page(title, facts, alerts, data.decode()).encode()
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise PlotError(f"cannot write {path}: {reason(error)}") from error


def svg(curves: Curves, alerts: Sequence[AlertRow], actions: Sequence[ActionRow], salt: str) -> str:
    """Draw the curves as an SVG element for a page, with alerts, and with moves of limits on the time axis.

    ``salt`` makes its ids differ from those of other pictures on the page.
    """
    figure = _figure(curves, "", "", alerts, bare=True, actions=actions)
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Text stays text: a third of the size, and it can be searched.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata=_NAMELESS)
    return _element(buffer.getvalue().decode())


_NAMELESS = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""Metadata to leave out: a page does not need them, and they contain many URLs."""

_SAID = "said: "
"""Prefix of the id of a mark that carries a text."""

_GROUP = re.compile(r'<g id="[^"]*"')
_MARK = re.compile(rf'<g id="{_SAID}([^"]*)">')
_NAMESPACE = re.compile(r' xmlns(:xlink)?="[^"]*"')


def _element(svg: str) -> str:
    """Turn an SVG file into an element of a page: without XML declaration, DOCTYPE and namespaces.

    The ids of groups are removed too: they are the same in every picture, and must be unique in a page.
    """
    return _GROUP.sub("<g", _titled(_NAMESPACE.sub("", svg[svg.index("<svg") :], count=2)))


def _titled(svg: str) -> str:
    """Make the texts of marks titles, which a browser shows when the mouse is over a mark."""
    return _MARK.sub(r"<g><title>\1</title>", svg)


_COLORS = ("#0072B2", "#E69F00")  # Okabe and Ito's palette: the colour-blind can tell them apart
_SEVERITIES = {
    Severity.INFO: "#7F7F7F",
    Severity.WARNING: "#F0B400",
    Severity.CRITICAL: "#D55E00",
    Severity.EMERGENCY: "#B0003A",
}


def _figure(
    curves: Curves,
    title: str,
    subtitle: str,
    alerts: Sequence[AlertRow],
    bare: bool,
    actions: Sequence[ActionRow] = (),
) -> Any:
    import warnings

    # A name may have characters that the font lacks; matplotlib draws a box and would warn.
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise PlotError("pictures need matplotlib", "pip install 'agentres[report]'") from error
    panels = _panels(curves)
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 3.4 * rows + (0 if bare else 0.7)), layout="constrained")
    if not bare:
        heading = f"{title}\n{subtitle}" if subtitle else title
        figure.suptitle(heading, fontsize=11, x=0.01, ha="left", parse_math=False)
    all_axes = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
    for axes, panel in zip(all_axes, panels, strict=False):
        _fill(axes, panel, curves, [alert for alert in alerts if _shown_in(alert, panel)])
        moves = [action for action in actions if _resource_of(action) in panel.resources]
        _mark_actions(axes, curves.times, moves)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    if alerts:
        signs = [
            Line2D(
                [], [], marker="v", markersize=7, linestyle="none", color=color, label=level.name
            )
            for level, color in _SEVERITIES.items()
            if any(alert.severity == level for alert in alerts)
        ]
        figure.legend(
            handles=signs, title="alerts", loc="outside lower right", ncols=4, frameon=False,
            fontsize=9, title_fontsize=9, alignment="right", handletextpad=0.2, borderaxespad=0.2,
        )  # fmt: skip
    return figure


def _shown_in(alert: AlertRow, panel: Panel) -> bool:
    """Return whether the panel marks the alert; one whose resource has no panel is marked in all."""
    elsewhere = any(alert.resource in other.resources for other in (*PANELS, _NETWORK))
    return alert.resource in panel.resources or not elsewhere


def _fill(axes: Any, panel: Panel, curves: Curves, alerts: Sequence[AlertRow]) -> None:
    dates: Any = import_module("matplotlib.dates")  # has no types

    named = [(curves[name], label) for name, label in panel.lines]
    first = named[0][0]
    top, with_limit = _top(*(curve for curve, _ in named))
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=20)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    moments = [datetime.fromtimestamp(at) for at in curves.times]
    if all(curve.empty for curve, _ in named):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#7F7F7F")
        axes.set_yticks([])
        axes.tick_params(bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        return
    for at, ((curve, label), color) in enumerate(zip(named, _COLORS, strict=False)):
        values = [float("nan") if value is None else value for value in curve.values]
        alone = sum(value is not None for value in curve.values) == 1
        axes.plot(
            moments, values, color=color, label=label, linewidth=1.8, zorder=3 - at / 10,
            marker="o" if alone else None, markersize=4,
        )  # fmt: skip
        if at == 0:
            axes.fill_between(moments, values, color=color, alpha=0.12, linewidth=0)
    if with_limit:
        limits = [float("nan") if limit is None else limit for limit in first.limits]
        axes.plot(
            moments, limits, color="#333333", linestyle=(0, (5, 3)), drawstyle="steps-post", label=panel.limit,
        )  # fmt: skip
    elif first.limit is not None:
        far = f"{panel.limit} {show(first.limit, first.unit)} (above)"
        axes.plot([], [], color="#333333", linestyle=(0, (5, 3)), label=far)
    _scale(axes, top, first.unit)
    if len(moments) > 1:
        axes.set_xlim(moments[0], moments[-1])
    _mark(axes, curves.times, alerts)
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    locator.intervald[dates.MINUTELY] = [1, 2, 5, 10, 15, 30]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelbottom=True, labelsize=9)
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, fontsize=8.5,
        borderaxespad=0, borderpad=0.3, handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
    legend.set_in_layout(False)  # its width is not the panel's


def _scale(axes: Any, top: float, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    axes.set_ylim(0, top * 1.08)
    if unit == "bytes":
        # Ticks at 256 MiB, 512 MiB and so on: decimal round numbers are not round in binary units.
        step = 1
        while top / step > 5:
            step *= 2
        axes.yaxis.set_major_locator(MultipleLocator(step))
    else:
        whole = unit == "count" and top > 5
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))


def _tick(value: float, unit: str) -> str:
    if value == 0:
        return "0"
    return f"{value:g} cores" if unit == "cores" else show(value, unit)


def _mark(axes: Any, times: Sequence[float], alerts: Sequence[AlertRow]) -> None:
    """Shade the time that each alert lasted, and mark when it was raised.

    An alert raised after the last sample is marked at the end: an agent that is killed has no later sample.
    """

    def within(at: float) -> datetime:
        return datetime.fromtimestamp(min(max(at, times[0]), times[-1]))

    for alert in alerts:
        end = times[-1] if alert.resolved is None else alert.resolved
        if end < times[0]:
            continue
        color = _SEVERITIES[alert.severity]
        start, until = within(alert.breached), within(end)
        axes.axvspan(start, until, color=color, alpha=0.13, linewidth=0)
        axes.plot(
            [within(alert.raised)], [0.97], marker="v", markersize=7,
            color=color, linestyle="none", clip_on=False, zorder=4,
            gid=_SAID + printable(f"{alert.severity.name}, {clock.of_day(alert.raised)}: {alert.message}"),
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def _resource_of(action: ActionRow) -> str:
    """Return the resource of the limit, which may be that of one device."""
    limit = action.resource.partition("=")[0]
    return LIMIT_SPECS[limit].resource if limit in LIMIT_SPECS else limit


def _mark_actions(axes: Any, times: Sequence[float], actions: Sequence[ActionRow]) -> None:
    """Mark on the time axis when the limit was moved, up or down."""
    for action in actions:
        if not times or not times[0] <= action.time <= times[-1]:
            continue
        up = action.before is None or action.after is None or action.after >= action.before
        axes.plot(
            [datetime.fromtimestamp(action.time)], [0], marker="^" if up else "v", markersize=6,
            color="#333333", linestyle="none", clip_on=False, zorder=5,
            gid=_SAID + printable(_move(action)),
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def _move(action: ActionRow) -> str:
    before, after = (quantity(action.resource, value) for value in (action.before, action.after))
    return f"{action.kind} {action.resource}, {clock.of_day(action.time)}: {before} to {after}, {action.why}"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
h1 { font-size: 1.4em; overflow-wrap: anywhere } h2 { font-size: 1.1em }
svg { width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .2em 1em .2em 0; text-align: left; vertical-align: top }
dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1em } dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere }
"""


def _page(
    title: str, facts: Sequence[tuple[str, str]], alerts: Sequence[AlertRow], svg: str
) -> str:
    """Return a self-contained page with the SVG inside."""
    svg = _element(svg)
    name = safe(title)
    rows = "".join(f"<dt>{safe(fact)}</dt><dd>{safe(value)}</dd>" for fact, value in facts)
    table_rows = "".join(_alert_row(alert) for alert in alerts)
    table = (
        "<h2>Alerts</h2><table><tr><th>id</th><th>raised</th><th>resolved</th><th>severity</th>"
        f"<th>what</th></tr>{table_rows}</table>"
        if alerts
        else "<p>No alerts.</p>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{name}</h1><dl>{rows}</dl>\n{svg}\n{table}</body></html>\n"
    )


def _alert_row(alert: AlertRow) -> str:
    resolved = "" if alert.resolved is None else clock.date(alert.resolved)
    cells = (alert.id, clock.date(alert.raised), resolved, alert.severity.name, alert.message)
    return "<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>"


def safe(text: str) -> str:
    """Escape text from outside for a page: no markup, no control characters."""
    return html.escape(printable(text))
