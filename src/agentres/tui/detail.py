"""The page of one agent: its limits, curves, processes, actions and alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static
from textual.worker import get_current_worker

from agentres.model import clock
from agentres.model.errors import AgentresError, printable
from agentres.readers import plot, portrait
from agentres.readers.fleet import AgentStatus
from agentres.store import ActionRow, AlertRow
from agentres.tui import rows
from agentres.tui.source import Detail, Process, Source

_PROCESSES = 15


class DetailScreen(Screen[None]):
    """The page of the agent of ``status``, read when it opens and at each :meth:`look`.

    ``current`` returns the agent in the current picture, None if it has ended.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,left", "app.pop_screen", "Back", key_display="esc"),
    ]

    def __init__(
        self, source: Source, status: AgentStatus, current: Callable[[], AgentStatus | None]
    ) -> None:
        super().__init__()
        self.key = rows.key_of(status)
        self._source = source
        self._status = status
        self._current = current
        self._looking = False
        self._detail: Detail | None = None

    def compose(self) -> ComposeResult:
        yield Static(Text(self._status.name, "bold"), id="who")
        with VerticalScroll(id="page", can_focus=True):
            yield Static("…", id="all")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.look()

    def on_resize(self) -> None:
        self.draw()

    def look(self) -> None:
        """Start to read it again, unless that is still under way."""
        if not self._looking:
            self._looking = True
            self.run_worker(self._look, thread=True)

    def _look(self) -> None:
        try:
            detail = self._source.detail(self._status.agent)
        except (OSError, AgentresError) as error:
            detail = Detail.absent(str(error))
        if not get_current_worker().is_cancelled:  # else the page has been closed
            self.app.call_from_thread(self._show, detail)

    def _show(self, detail: Detail) -> None:
        self._looking = False
        self._detail = detail
        self.draw()

    def draw(self) -> None:
        """Draw what was read last, with the agent's current figures."""
        if self._detail is not None:
            width = max(40, self.size.width - 4)
            lines = list(_page(self._detail, self._current(), width, self._source.now()))
            for line in lines:
                if line.no_wrap:  # joining the lines would lose no_wrap
                    line.truncate(width, overflow="ellipsis")
            self.query_one("#all", Static).update(Text("\n").join(lines))


def _page(detail: Detail, status: AgentStatus | None, width: int, now: float) -> Iterator[Text]:
    if detail.answer:
        for line in portrait.facts(detail.answer, now):
            yield Text(line, no_wrap=True)
    if status is not None:
        for line in rows.now_lines(status, width):
            yield Text(line, no_wrap=True)
    if detail.answer:
        yield from _limits(detail)
    for line in detail.trouble:
        yield Text(printable(line), "yellow")
    if detail.alerts:
        yield from _section("alerts", [_alert(alert) for alert in detail.alerts])
    yield from _section(f"processes ({len(detail.processes)})", list(_processes(detail.processes)))
    if detail.actions:
        yield from _section(
            "what was done with its limits", [_action(a) for a in reversed(detail.actions)]
        )
    if detail.curves is not None and detail.curves.times:
        for line in plot.terminal(detail.curves, width):
            yield Text.from_ansi(line, no_wrap=True)


def _section(title: str, lines: Sequence[Text]) -> Iterator[Text]:
    yield Text()
    yield Text(title, "bold")
    yield from lines


def _limits(detail: Detail) -> Iterator[Text]:
    found = list(portrait.limits(detail.answer))
    head = portrait.LimitRow("limit", "holds", "between", "used", "from")
    widths = [
        max(len(getattr(row, name)) for row in [head, *found])
        for name in ("key", "holds", "between", "used")
    ]
    yield Text()
    for row in [head, *found]:
        key, holds, between, used = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(
                (row.key, row.holds, row.between, row.used),
                widths,
                (False, True, False, True),
                strict=True,
            )
        )
        yield Text(
            f"{key}  {holds}  {between}  {used}  {row.origin}",
            "bold" if row is head else "",
            no_wrap=True,
        )


def _processes(found: Sequence[Process]) -> Iterator[Text]:
    if not found:
        return
    yield Text(f"{'pid':>7} {'user':8} {'cpu':>4} {'rss':>5} {'thr':>3} command", "dim")
    for process in found[:_PROCESSES]:
        line = (
            f"{process.pid:>7} {process.user[:8]:8} {rows.cores(process.cpu):>4} "
            f"{rows.short(process.memory):>5} {process.threads:>3} {printable(process.command)}"
        )
        yield Text(line, no_wrap=True)
    if len(found) > _PROCESSES:
        yield Text(f"… and {len(found) - _PROCESSES} more", "dim")


def _alert(alert: AlertRow) -> Text:
    state = "open" if alert.resolved is None else "resolved"
    if alert.acknowledged is not None:
        state += f", acknowledged by {alert.acknowledged_by}"
    line = f"{clock.moment(alert.raised)}  {alert.severity.name:9}  {alert.message} ({state})"
    style = "dim" if alert.resolved is not None else portrait.SEVERITY_STYLES[alert.last_severity]
    return Text(printable(line), style)


def _action(action: ActionRow) -> Text:
    before, after = (portrait.quantity(action.resource, v) for v in (action.before, action.after))
    what = f"{action.kind:8} {action.resource}: {before} -> {after}"
    line = f"{clock.moment(action.time)}  {what}  {action.why}"
    return Text(printable(line))
