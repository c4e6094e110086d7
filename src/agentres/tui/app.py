"""``agentres top``: shows the agents of the host live, and sends them commands from the keyboard."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static
from textual.worker import get_current_worker

from agentres.kernel.libc import die_with_parent
from agentres.model.control import GRACE, SETTABLE
from agentres.model.errors import AgentresError, printable
from agentres.readers.fleet import AgentStatus, Picture
from agentres.tui import rows
from agentres.tui.detail import DetailScreen
from agentres.tui.dialogs import Ask, Confirm
from agentres.tui.rows import View
from agentres.tui.source import Source
from agentres.tui.table import AgentTable

_COMMANDS = frozenset({"acknowledge", "freeze", "set", "stop"})
"""Actions that change something."""

_BUDGETS = 4
"""Most slices whose budget is shown: agents need the rest of the screen."""

_OF_TABLE = frozenset({"filter", "sort", "turn", "tree"})
"""Actions that do not apply to an agent's page."""


class Top(App[None]):
    """The dashboard of ``source``, which is read every ``interval`` seconds; ``read_only``: without commands."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; padding: 0 1; background: $panel; }
    #who, #page { padding: 0 1; }
    #who { background: $panel; }
    #agents { height: 1fr; padding: 0 1; }
    #filter { display: none; dock: bottom; margin-bottom: 1; }
    #filter.on { display: block; }
    .dialog { width: 70; max-width: 95%; height: auto; border: solid $accent; padding: 1 2; background: $surface; }
    .dialog Label { width: 100%; }
    .keys { color: $text-muted; }
    Confirm, Ask { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter"),
        Binding("s", "sort", "Sort"),
        Binding("r", "turn", "Reverse"),
        Binding("t", "tree", "Tree"),
        Binding("a", "acknowledge", "Ack"),
        Binding("f", "freeze", "Freeze"),
        Binding("l", "set", "Limits"),
        Binding("x", "stop", "Stop"),
        Binding("q", "quit", "Quit"),
        # As in any other program, and out of a dialog too.
        Binding("ctrl+c", "end", "Quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True),
    ]

    def __init__(
        self,
        source: Source,
        interval: float = 2.0,
        read_only: bool = False,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.view = view or View()
        self.picture: Picture | None = None
        self._interval = interval
        self._read_only = read_only
        self._looking = False

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield AgentTable("agents")
        yield Input(
            self.view.text,
            id="filter",
            classes="on" if self.view.text else "",
            placeholder="name, user or state; Enter keeps it, Escape ends it",
            compact=True,
        )
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.look()
        self.set_interval(self._interval, self.look)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if self._read_only and action in _COMMANDS:
            return False
        if isinstance(self.screen, ModalScreen):  # a dialog is open
            return action not in _COMMANDS | _OF_TABLE | {"quit", "pop_screen"}
        return len(self.screen_stack) == 1 or action not in _OF_TABLE

    def look(self) -> None:
        """Start to read the next picture, and the page that is shown, unless that is still under way."""
        if not self._looking:
            self._looking = True
            self.run_worker(self._look, thread=True, group="look")
        if (page := self._page) is not None:
            page.look()

    def _look(self) -> None:
        try:
            picture = self.source.look()
        except (OSError, AgentresError) as error:
            self.call_back(self._fail, str(error))
            return
        self.call_back(self._show, picture)

    def call_back(self, method: Callable[..., object], *arguments: object) -> None:
        """Call ``method`` in the main thread with a worker's result, unless the worker was cancelled."""
        if not get_current_worker().is_cancelled:
            self.call_from_thread(method, *arguments)

    def _fail(self, why: str) -> None:
        self._looking = False
        self._complain(why)

    def _complain(self, why: str) -> None:
        self.notify(printable(why), severity="error", timeout=10, markup=False)

    def _say(self, what: str) -> None:
        self.notify(what, timeout=3, markup=False)

    def _show(self, picture: Picture) -> None:
        self._looking = False
        self.picture = picture
        self.refresh_view()

    def refresh_view(self) -> None:
        """Draw the picture in the current view; redraw only what has changed."""
        if self.picture is None:
            return
        with self.batch_update():
            width = self.size.width - 2
            head = rows.host_lines(self.picture, width)
            head += [
                rows.budget_line(one, width)
                for one in self.picture.slices
                if one.allocated or len(self.picture.slices) == 1
            ][:_BUDGETS]
            if self.picture.trouble:
                head.append(f"no alerts: {self.picture.trouble}")
            text = Text("\n".join(map(printable, head)), no_wrap=True, overflow="ellipsis")
            for characters, style in (("█+", "cyan"), ("▒+", "blue"), ("^\\w+", "bold")):
                text.highlight_regex(re.compile(characters, re.MULTILINE), style)
            self.query_one("#head", Static).update(text)
            self.table.show_lines(rows.lines(self.picture, self.view), self.view, width)
            if (page := self._page) is not None:
                page.draw()

    def on_resize(self) -> None:
        self.refresh_view()

    @property
    def table(self) -> AgentTable:
        """The table of agents."""
        return self.query_one("#agents", AgentTable)

    @property
    def selected(self) -> AgentStatus | None:
        """The agent that the cursor is on, or whose page is shown."""
        if self.picture is None:
            return None
        key = self.table.selected if (page := self._page) is None else page.key
        return next((status for status in self.picture.agents if rows.key_of(status) == key), None)

    @property
    def _page(self) -> DetailScreen | None:
        return next((s for s in self.screen_stack if isinstance(s, DetailScreen)), None)

    def _addressed(self) -> AgentStatus | None:
        """Return the agent that a command is for; if its page is open but it has ended, say so and return None."""
        if (status := self.selected) is None and self._page is not None:
            self._say("it has ended")
        return status

    # Keys.

    def on_agent_table_chosen(self) -> None:
        self.action_detail()

    def action_detail(self) -> None:
        """Show all about the agent."""
        if (status := self.selected) is not None:
            self.push_screen(DetailScreen(self.source, status, lambda: self.selected))

    def action_filter(self) -> None:
        """Show only what matches."""
        box = self.query_one("#filter", Input)
        box.add_class("on")
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "filter":
            self._look_at(text=event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "filter":
            self._close_filter()

    def key_escape(self) -> None:
        box = self.query_one("#filter", Input)
        box.value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.set_class(bool(box.value), "on")
        self.table.focus()

    def action_sort(self) -> None:
        """Order by the next column."""
        at = rows.SORTS.index(self.view.sort) if self.view.sort in rows.SORTS else -1
        self._look_at(sort=rows.SORTS[(at + 1) % len(rows.SORTS)])

    def action_turn(self) -> None:
        """Reverse the order."""
        self._look_at(upside_down=not self.view.upside_down)

    def action_tree(self) -> None:
        """Put agents below their slices, or not."""
        self._look_at(tree=not self.view.tree)

    def _look_at(self, **changed: Any) -> None:
        self.view = replace(self.view, **changed)
        self.refresh_view()

    def action_end(self) -> None:
        """Leave at once."""
        self.exit()

    def action_acknowledge(self) -> None:
        """Acknowledge the agent's alerts."""
        if (status := self._addressed()) is None:
            return
        waiting = [alert for alert in status.alerts if alert.acknowledged is None]
        if not waiting:
            self._say("no alert of this agent waits for anybody")
            return

        def answered(why: str | None) -> None:
            if why:
                self._do(
                    lambda: self.source.acknowledge(waiting, why), f"acknowledged: {status.name}"
                )

        words = "\n".join(printable(alert.message) for alert in waiting[:5])
        self.push_screen(
            Ask(
                f"Acknowledge {len(waiting)} of {status.name}:\n{words}",
                "why, or what is done about it",
            ),
            answered,
        )

    def action_freeze(self) -> None:
        """Freeze the agent, or let it go on."""
        if (status := self._addressed()) is None:
            return
        verb = "thaw" if status.state == "frozen" else "freeze"
        self._confirmed(
            f"{verb.capitalize()} {status.name}?",
            lambda: self.source.command(status.agent, verb),
            f"{verb}: {status.name}",
        )

    def action_stop(self) -> None:
        """End the agent."""
        if (status := self._addressed()) is None:
            return
        question = f"Stop {status.name}? SIGTERM, and SIGKILL for what is left after {GRACE:g} s."
        self._confirmed(
            question, lambda: self.source.stop(status.agent, GRACE), f"stopped: {status.name}"
        )

    def action_set(self) -> None:
        """Give the agent other limits."""
        if (status := self._addressed()) is None:
            return

        def answered(text: str | None) -> None:
            if not text:
                return
            try:
                limits = parse_limits(text)
            except ValueError as error:
                self._complain(str(error))
                return
            self._do(
                lambda: self.source.command(status.agent, "set", limits=limits),
                f"set: {status.name}",
            )

        self.push_screen(
            Ask(f"Limits of {status.name}, as LIMIT=VALUE …", "memory=256M:2G cpu=1.5"), answered
        )

    def _confirmed(self, question: str, do: Callable[[], object], done: str) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._do(do, done)

        self.push_screen(Confirm(question), answered)

    def _do(self, do: Callable[[], object], done: str) -> None:
        def work() -> None:
            try:
                do()
            except (OSError, AgentresError) as error:
                self.call_back(self._complain, str(error))
                return
            self.call_back(self._say, done)
            self.call_back(self.look)

        self.run_worker(work, thread=True, group="do")


def show(top: Top) -> None:
    """Run it until the user quits.  Behind a web server (:mod:`agentres.readers.web`) it ends with that."""
    if "TEXTUAL_DRIVER" in os.environ:
        die_with_parent()
    top.run()


def parse_limits(text: str) -> dict[str, str | list[str]]:
    """Parse ``memory=2G io_write=/dev/vda=1M`` into fields of the control protocol; ValueError."""
    found: dict[str, str | list[str]] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        key = key.lstrip("-").replace("-", "_")
        if not equals or not value:
            raise ValueError(f"{word}: expected LIMIT=VALUE, as in memory=2G")
        if key not in SETTABLE:
            raise ValueError(f"{key}: expected one of {', '.join(SETTABLE)}")
        before = found.get(key)
        if key.startswith("io_"):
            found[key] = [*(before or []), value]
        elif before is not None:
            raise ValueError(f"{key}: said twice")
        else:
            found[key] = value
    return found
