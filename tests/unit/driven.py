"""The dashboard over a recorded host, driven by a pilot: its keys, its screen, and the screens that are kept."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from recorded import RecordedHost
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from agentres.tui.app import Top

SNAPSHOTS = Path(__file__).parent / "screens"

NARROW = (80, 24)

ALL = {"planner", "fixer", "crawler", "trainer", "lost", "patient"}


def screen_of(app: Top) -> str:
    """What stands on the terminal, without its colours."""
    width, height = app.size
    console = Console(
        width=width, height=height, file=io.StringIO(), record=True, force_terminal=True,
        legacy_windows=False,
    )  # fmt: skip
    console.print(app.screen._compositor.render_update(full=True))
    lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


class Driven:
    """The dashboard, its keys pressed and the host moved on."""

    def __init__(self, host: RecordedHost, app: Top, pilot: Pilot[None]) -> None:
        self.host, self.app, self.pilot = host, app, pilot

    async def settle(self) -> None:
        await self.pilot.pause()
        while self.app.workers:  # one may begin another
            await self.app.workers.wait_for_complete()
            await self.pilot.pause()
        # The line of keys makes itself anew when it comes to that.
        while (line := self.app.screen.query(Footer)) and not line.first().query(FooterKey):
            await self.pilot.pause()

    async def go_on(self, looks: int = 1) -> None:
        for _ in range(looks):
            self.host.go_on()
            self.app.look()
            await self.settle()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    @property
    def screen(self) -> str:
        return screen_of(self.app)

    @property
    def hues(self) -> set[str]:
        """Colours that are no grey."""
        console = Console(width=self.app.size.width, color_system="truecolor", force_terminal=True)
        update = self.app.screen._compositor.render_update(full=True)
        styles = [segment.style for segment in console.render(update) if segment.style]
        colours = [c for style in styles for c in (style.color, style.bgcolor) if c is not None]
        return {c.name for c in colours if len(set(c.get_truecolor())) > 1}

    @property
    def names(self) -> list[str]:
        """Who stands in the table, from the top down."""
        words = [line.split()[:1] for line in self.screen.splitlines()]
        return [word[0] for word in words if word and word[0] in ALL]


def driven(
    host: RecordedHost,
    body: Callable[[Driven], Awaitable[None]],
    size: tuple[int, int] = NARROW,
    **given: object,
) -> None:
    """Run ``body`` against a dashboard that looks only when it is told to."""

    async def run() -> None:
        app = Top(host.source(), interval=1e6, **given)  # type: ignore[arg-type]
        async with app.run_test(size=size, notifications=True) as pilot:
            there = Driven(host, app, pilot)
            await there.settle()
            await body(there)
        app.source.close()

    asyncio.run(run())


def assert_is(name: str, screen: str) -> None:
    """The screen is as it was when somebody looked at it: ``AGENTRES_SCREENS=write`` takes it anew."""
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("AGENTRES_SCREENS") == "write":
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(screen)
    assert screen == file.read_text()
