"""Turns a picture into rows of a table: which agents, in which order, and the text of each column; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import dirname
from typing import Literal

from agentres.model.units import ABSENT
from agentres.readers.fleet import AgentStatus, Picture, Slice
from agentres.readers.portrait import SEVERITY_STYLES

BARS = "▁▂▃▄▅▆▇█"

STATE_STYLES = {
    "running": "", "throttled": "yellow", "frozen": "bold cyan", "waiting": "dim", "unsupervised": "bold red",
}  # fmt: skip
FULL_STYLES = ((0.9, "red"), (0.75, "yellow"), (0.0, "green"))
"""Share of the limit in use, and the style from that share on."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, its width in characters, functions for a cell's text and style, and its sort key (``order``).

    If there is no room, the column with the highest ``drop`` goes first; 0 stays.  ``rising``: sorting by it puts the least
    at the top, not the most.
    """

    name: str
    width: int
    text: Callable[[AgentStatus], str]
    order: Callable[[AgentStatus], float | str]
    drop: int = 0
    style: Callable[[AgentStatus], str] = lambda status: ""
    right: bool = True
    rising: bool = False


def short(value: float | None, base: Literal[1000, 1024] = 1024) -> str:
    """Format bytes in at most five characters: ``512M``, ``1.2G``; with base 1000 (and a small ``k``), anything else."""
    if value is None:
        return ABSENT
    for unit in ("", "K" if base == 1024 else "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            break
        value /= base
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def rate(value: float | None) -> str:
    """Format bytes a second in decimal units, as is usual for disks and networks: ``8.0M`` is 8 MB/s."""
    return short(value, 1000)


def count(value: float | None) -> str:
    """Format a count, exactly below ten thousand; at most four characters up to a billion."""
    return short(value, 1000) if value is None or value >= 9999.5 else f"{value:.0f}"


def cores(value: float | None) -> str:
    """Format cores in at most four characters."""
    if value is None:
        return ABSENT
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """Format a fraction as a percentage in at most four characters."""
    return ABSENT if value is None else f"{value * 100:.0f}%"


def against(used: str, limit: str) -> str:
    """Format a use and its limit; ``∞`` is no limit."""
    return f"{used}/{'∞' if limit == ABSENT else limit}"


def spark(values: Sequence[float | None], width: int, top: float | None) -> str:
    """Draw the last values as bars, scaled to the larger of ``top`` and the highest value; an absent value is a gap."""
    drawn = list(values)[-width:]
    known = [value for value in drawn if value is not None]
    highest = max([top or 0.0, *known], default=0.0)
    text = ""
    for value in drawn:
        level = 0 if not highest or value is None else int(value / highest * (len(BARS) - 1) + 0.5)
        text += " " if value is None else BARS[level]
    return text.rjust(width)


def bar(parts: Sequence[tuple[float, str]], total: float, width: int) -> str:
    """Draw a bar of ``width`` characters: each part, with its character, takes its share of ``total``."""
    if total <= 0:
        return " " * width
    text, reached = "", 0.0
    for value, character in parts:
        reached += max(0.0, value)
        text += character * (round(min(1.0, reached / total) * width) - len(text))
    return text.ljust(width, "░")


def _used(name: str, form: Callable[[float | None], str]) -> Callable[[AgentStatus], str]:
    def text(status: AgentStatus) -> str:
        return against(form(status.figures.get(name)), form(status.limits.get(name)))

    return text


def _figure(name: str, form: Callable[[float | None], str]) -> Callable[[AgentStatus], str]:
    return lambda status: form(status.figures.get(name))


def _by(name: str) -> Callable[[AgentStatus], float]:
    def order(status: AgentStatus) -> float:
        value = status.figures.get(name)
        return 1.0 if value is None else -value

    return order


def _spark(name: str, width: int, whole: float = 0.0) -> Callable[[AgentStatus], str]:
    """``whole`` is the least value of a full bar if there is no limit."""

    def text(status: AgentStatus) -> str:
        return spark(status.recent.get(name, ()), width, status.limits.get(name) or whole)

    return text


def _fullness(name: str) -> Callable[[AgentStatus], str]:
    def style(status: AgentStatus) -> str:
        used, limit = status.figures.get(name), status.limits.get(name)
        if used is None or not limit:
            return "cyan"
        return next(style for share, style in FULL_STYLES if used >= share * limit)

    return style


def _pressure(status: AgentStatus) -> float | None:
    known = [
        value
        for name in ("cpu_pressure", "memory_pressure", "io_pressure")
        if (value := status.figures.get(name)) is not None
    ]
    return max(known, default=None)


def _alerts(status: AgentStatus) -> str:
    if not status.alerts:
        return ""
    grave = status.severity
    return f"{len(status.alerts)} {'ack' if grave is None else grave.name[:4]}"


def _severity_style(status: AgentStatus) -> str:
    return "dim" if status.severity is None else SEVERITY_STYLES[status.severity]


def _gravest(status: AgentStatus) -> float:
    return -1.0 if status.severity is None else -float(status.severity) - 10


COLUMNS = (
    Column("name", 13, lambda s: s.name, lambda s: s.name, right=False, rising=True),
    Column("user", 8, lambda s: s.user, lambda s: s.user, 9, right=False, rising=True),
    Column("state", 12, lambda s: s.state, lambda s: s.state, style=lambda s: STATE_STYLES.get(s.state, ""), right=False, rising=True),
    Column("cpu", 9, _used("cpu", cores), _by("cpu")),
    Column("cpu ~", 8, _spark("cpu", 8, 1.0), _by("cpu"), 2, _fullness("cpu")),
    Column("memory", 9, _used("memory", short), _by("memory")),
    Column("mem ~", 8, _spark("memory", 8), _by("memory"), 1, _fullness("memory")),
    Column("trip", 5, lambda s: short(s.tripwire), lambda s: -float(s.tripwire or 0), 11),
    Column("read", 5, _figure("disk_read", rate), _by("disk_read"), 4),
    Column("write", 6, _figure("disk_write", rate), _by("disk_write"), 3),
    Column("in", 5, _figure("network_in", rate), _by("network_in"), 6),
    Column("out", 5, _figure("network_out", rate), _by("network_out"), 5),
    Column("tasks", 9, _used("pids", count), _by("pids"), 8),
    Column("files", 6, _figure("fds", count), _by("fds"), 12),
    Column("psi", 4, lambda s: percent(_pressure(s)), lambda s: -(_pressure(s) or 0.0), 7),
    Column("prio", 5, lambda s: ABSENT if s.priority is None else str(s.priority), lambda s: -float(s.priority or 0), 10),
    Column("moves", 12, lambda s: s.philosophy or ABSENT, lambda s: s.philosophy, 13, right=False, rising=True),
    Column("alerts", 7, _alerts, _gravest, style=_severity_style, right=False),
)  # fmt: skip  # a table
"""All columns, in order."""

SORTS = (
    "name", "cpu", "memory", "read", "write", "in", "out", "tasks", "files", "psi", "prio", "alerts", "state",
)  # fmt: skip
"""Columns that agents can be sorted by."""

GAP = 1
"""Characters between columns."""


def columns(width: int, keep: str = "") -> tuple[Column, ...]:
    """Return the columns that fit in ``width`` characters, always with the one named ``keep``."""
    chosen = list(COLUMNS)
    while sum(c.width + GAP for c in chosen) > width:
        droppable = [c for c in chosen if c.drop and c.name != keep]
        if not droppable:
            break
        chosen.remove(max(droppable, key=lambda c: c.drop))
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class View:
    """How agents are shown: the sort column, reversed or not, only agents that match ``text``, as a tree below their slices."""

    sort: str = "cpu"
    upside_down: bool = False
    text: str = ""
    tree: bool = False


def heading(column: Column, view: View) -> str:
    """Return a column's heading; the sort column's has an arrow, which does not need colour."""
    if column.name != view.sort:
        return column.name
    return f"{column.name}{'▲' if column.rising != view.upside_down else '▼'}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: an agent, or the heading of a slice with the ``number`` of its agents."""

    key: str
    status: AgentStatus | None
    heading: str = ""
    number: int = 0
    depth: int = 0


def key_of(status: AgentStatus) -> str:
    """Return the unique key of an agent's line."""
    return f"{status.agent.path} {status.agent.started}"


def lines(picture: Picture, view: View) -> list[Line]:
    """Return the lines of the table, in order."""
    column = next(column for column in COLUMNS if column.name == view.sort)
    words = view.text.lower().split()
    kept = [status for status in picture.agents if all(_matches(status, word) for word in words)]
    kept.sort(key=lambda status: (status.name, status.agent.path))
    kept.sort(key=column.order, reverse=view.upside_down)
    if not view.tree:
        return [Line(key_of(status), status) for status in kept]
    below: dict[str, list[AgentStatus]] = {}
    for status in kept:
        below.setdefault(dirname(status.agent.home), []).append(status)
    found = []
    for place in sorted(below):
        path = place.removeprefix(picture.mount)
        found.append(Line(place, None, path or "/", number=len(below[place])))
        found += [Line(key_of(status), status, depth=1) for status in below[place]]
    return found


def _matches(status: AgentStatus, word: str) -> bool:
    return any(word in text.lower() for text in (status.name, status.user, status.state))


def budget_line(one: Slice, width: int) -> str:
    """Describe a slice's budget: used, allocated by limits, free."""
    words = f"{short(one.used)} used, limits {short(one.allocated)} of {short(one.budget)}, " + (
        f"{short(one.free)} free" if one.free >= 0 else f"{short(-one.free)} too much"
    )
    room = max(8, min(30, width - len(words) - 12))
    return f"budget  {bar([(one.used, '█'), (one.allocated - one.used, '▒')], one.budget, room)} {words}"


def host_lines(picture: Picture, width: int) -> list[str]:
    """Describe the host's use and how many agents are in which state, in two lines if one is too short."""
    host, limits = picture.host, picture.host_limits
    states: dict[str, int] = {}
    for status in picture.agents:
        states[status.state] = states.get(status.state, 0) + 1
    summary = (
        ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        or "no agent runs"
    )
    room = 8 if width < 100 else 16
    parts = list[str]()
    for name, form in (("cpu", cores), ("memory", short)):
        used, most = host.get(name), limits.get(name)
        drawn = bar([(used or 0.0, "█")], most or 0.0, room)
        parts.append(f"{name} {drawn} {against(form(used), form(most))}")
    line = f"host    {'  '.join(parts)}"
    return (
        [f"{line}  {summary}"]
        if len(line) + 2 + len(summary) <= width
        else [line, f"agents  {summary}"]
    )


def now_lines(status: AgentStatus, width: int) -> list[str]:
    """Return an agent's figures for which a narrow table has no columns, in two lines if one is too short."""
    figures = status.figures
    rates = (
        f"{label} {rate(figures.get(name))}/s"
        for label, name in (
            ("read", "disk_read"),
            ("write", "disk_write"),
            ("in", "network_in"),
            ("out", "network_out"),
        )
    )
    moved = f"{'  '.join(rates)}  files {count(figures.get('fds'))}"
    stalled = " ".join(
        f"{name} {percent(figures.get(f'{name}_pressure'))}" for name in ("cpu", "memory", "io")
    )
    held = f"psi {stalled}  tripwire {short(status.tripwire)}"
    line = f"now  {moved}  {held}"
    return [line] if len(line) <= width else [f"now  {moved}", f"     {held}"]
