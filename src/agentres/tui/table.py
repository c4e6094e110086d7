"""The table of agents: draws only visible lines, and of those only the changed ones.

Textual's DataTable lays out each cell by itself, which costs more than everything else together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from agentres.model.errors import printable
from agentres.model.units import counted
from agentres.tui import rows
from agentres.tui.rows import GAP, Column, Line, View

_WIDEST_NAME = 24
"""Most characters that the name column grows by."""

_Cells = tuple[tuple[str, str], ...]
"""Texts, each as wide as its column, with their styles."""


class AgentTable(ScrollView, can_focus=True):
    """A row for each line.  A cursor that was moved off the top stays on its agent when the order changes."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--head", "table--cursor"}
    DEFAULT_CSS = """
    AgentTable {
        scrollbar-size-horizontal: 0;
        & > .table--head { background: $panel; text-style: bold; }
        & > .table--cursor { background: $surface-lighten-2; text-style: bold; }
        &:focus > .table--cursor { background: $primary-darken-2; }
        &:nocolor > .table--cursor { text-style: reverse; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "Detail", key_display="⏎"),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000)", "Top", show=False),
        Binding("end,G", "move(1000000)", "Bottom", show=False),
    ]

    class Chosen(Message):
        """Enter was pressed, or the line with the cursor was clicked."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._columns: tuple[Column, ...] = ()
        self._head: _Cells = ()
        self._lines: Sequence[Line] = ()
        self._cells: list[_Cells] = []
        self._cursor = 0
        self._followed: str | None = None

    @property
    def selected(self) -> str | None:
        """The key of the line that the cursor is on."""
        return self._lines[self._cursor].key if self._lines else None

    def show_lines(self, lines: Sequence[Line], view: View, width: int) -> None:
        """Show these lines; ``view`` names the sort column, ``width`` is in characters."""
        columns = rows.columns(width, view.sort)
        spare = min(_WIDEST_NAME, max(0, width - sum(c.width + GAP for c in columns)))
        cells = [_cells(line, columns, spare) for line in lines]
        head = _head(columns, spare, view)
        self._follow(lines)
        before, self._cells = self._cells, cells
        if head != self._head or len(before) != len(cells):
            self._head = head
            self.virtual_size = Size(width, 1 + len(cells))
            self.refresh()
            return
        for at, (old, new) in enumerate(zip(before, cells, strict=True)):
            if old != new:
                self._refresh_line(at)

    def _follow(self, lines: Sequence[Line]) -> None:
        selected, at = self.selected, self._cursor
        if selected != self._followed:
            # At the top, follow no agent, unless the cursor came there with the one that it follows.
            self._followed = selected if at > 0 else None
        self._lines = lines
        keys = [line.key for line in lines]
        if self._followed in keys:
            at = keys.index(self._followed)
        self._put_cursor(min(at, max(0, len(lines) - 1)))

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """Return the visible line at ``y``: the heading, which does not scroll, or a row."""
        if y == 0:
            return self._strip(self._head, self.get_component_rich_style("table--head"))
        at = y - 1 + self.scroll_offset.y
        if at >= len(self._cells):
            return Strip.blank(self.size.width, self.rich_style)
        on = at == self._cursor
        base = self.get_component_rich_style("table--cursor") if on else self.rich_style
        return self._strip(self._cells[at], base)

    def _strip(self, cells: _Cells, base: Style) -> Strip:
        segments = [Segment(text, base + _style(style)) for text, style in cells]
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _refresh_line(self, at: int) -> None:
        y = 1 + at - self.scroll_offset.y
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    # Keys and the mouse.

    def _put_cursor(self, at: int) -> None:
        before, self._cursor = self._cursor, at
        if before != at:
            self._refresh_line(before)
            self._refresh_line(at)
            top, height = self.scroll_offset.y, self.size.height - 1
            if height > 0 and not top <= at < top + height:
                self.scroll_to(y=at if at < top else at - height + 1, animate=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Redraw everything, since the heading does not scroll."""
        super().watch_scroll_y(old_value, new_value)
        self.refresh()

    def action_move(self, by: int) -> None:
        """Move the cursor by so many lines."""
        if self._lines:
            self._put_cursor(min(max(self._cursor + by, 0), len(self._lines) - 1))

    def action_page(self, by: int) -> None:
        """Move the cursor by so many screens."""
        self.action_move(by * max(1, self.size.height - 1))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # The footer must not show its key while a dialog is open.
        return action != "choose" or self.app.screen is self.screen

    def action_choose(self) -> None:
        """Post that the line was chosen."""
        self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the line clicked, or choose the line if the cursor is there already."""
        at = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or at >= len(self._lines):
            return
        if at == self._cursor:
            self.action_choose()
        self._put_cursor(at)


@lru_cache(maxsize=64)
def _style(words: str) -> Style:
    return Style.parse(words)


def _head(columns: Sequence[Column], spare: int, view: View) -> _Cells:
    return tuple(
        (
            _fitted(rows.heading(column, view), column, 0 if at else spare),
            "underline" if column.name == view.sort else "",
        )
        for at, column in enumerate(columns)
    )


def _cells(line: Line, columns: Sequence[Column], spare: int) -> _Cells:
    status = line.status
    if status is None:
        path = printable(line.heading)
        room = columns[0].width + spare
        path = path if len(path) <= room else f"…{path[len(path) - room + 1 :]}"
        words = {columns[0].name: path, "state": counted(line.number, "agent")}
        return tuple(
            (_fitted(words.get(column.name, ""), column, 0 if at else spare), "bold")
            for at, column in enumerate(columns)
        )
    return tuple(
        (
            _fitted(
                ("" if at else "  " * line.depth) + printable(column.text(status)),
                column,
                0 if at else spare,
            ),
            column.style(status),
        )
        for at, column in enumerate(columns)
    )


def _fitted(text: str, column: Column, spare: int) -> str:
    """Fit the text to its column, and add the gap after it."""
    width = column.width + spare
    if len(text) > width:
        text = f"{text[: width - 1]}…"
    return (text.rjust(width) if column.right else text.ljust(width)) + " " * GAP
