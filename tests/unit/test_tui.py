"""The dashboard in a terminal of its own, over a recorded host: what is drawn, and what keys do."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_slice import FakeSlice
from hypothesis import given
from hypothesis import strategies as st
from recorded import BEGIN, RecordedHost, pretend
from rich.console import Console
from textual.pilot import Pilot
from told import event

from agentres.store import Store
from agentres.store.rows import RING
from agentres.tui import rows
from agentres.tui.app import Top, parse_limits
from agentres.tui.rows import View


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHost:
    """The host."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)
    return pretend(tmp_path, monkeypatch)


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


# What is drawn.


@pytest.mark.parametrize("size", [(80, 24), (132, 30), (200, 20)])
def test_all_agents_at_once(recorded: RecordedHost, size: tuple[int, int]) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on(5)
        assert_is(f"agents-{size[0]}", there.screen)

    driven(recorded, body, size)


def test_below_their_slices(recorded: RecordedHost) -> None:
    recorded.tell()
    other = FakeSlice(
        recorded.slice.mount, "user.slice/user-1000.slice/user@1000.service/agentres.slice"
    )
    for name in ("reviewer", "writer"):
        other.agent(name, started=BEGIN - 600)

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("t")
        assert_is("tree", there.screen)
        await there.press("down", *["down"] * 6)  # the heading of the second
        assert there.app.selected is None
        await there.press("enter", "x", "down")
        assert there.app.selected is not None
        assert there.app.selected.name == "reviewer"

    driven(recorded, body)


@pytest.mark.parametrize(("name", "height"), [("page-80", 24), ("page-100", 60)])
def test_the_page_of_an_agent(recorded: RecordedHost, name: str, height: int) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on(2)
        await there.press("enter")
        assert_is(name, there.screen)
        for key in ("escape", "left", "backspace"):
            await there.press(key)
            assert len(there.app.screen_stack) == 1
            await there.press("enter")
            assert len(there.app.screen_stack) == 2

    driven(recorded, body, (int(name[5:]), height))


def test_the_page_says_what_the_agent_does_now(recorded: RecordedHost) -> None:
    """What a narrow table has no column for."""

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("enter")
        await there.go_on()
        words = " ".join(there.screen.split())
        assert "now read 85M/s write 9.0M/s in 12M/s out 730k/s files 4321" in words
        assert "psi cpu 30% memory 30% io 30% tripwire 2.6G" in words

    driven(recorded, body)


def test_a_long_command_is_cut_and_pushes_nothing_down(recorded: RecordedHost) -> None:
    recorded.command = ["python", "-c", "x" * 300]

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("enter")
        lines = there.screen.splitlines()
        assert lines[1].startswith(" trainer: running, started")
        assert "…" in lines[1]
        assert lines[2].startswith(" main process")
        at = next(number for number, line in enumerate(lines) if line.startswith("    4000 dev"))
        assert lines[at + 1].startswith("    4001 dev")

    driven(recorded, body)


def test_alerts_on_the_page(recorded: RecordedHost) -> None:
    recorded.tell()
    store = Store.open(recorded.history)
    over = {"agent": "trainer", "severity": "INFO", "message": "it was short"}
    store.record(event("raised", "03", BEGIN - 300, **over))
    store.record(event("resolved", "03", BEGIN - 300, resolved=BEGIN - 200, **over))
    store.close()

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("enter")
        lines = [" ".join(line.split()) for line in there.screen.splitlines()]
        first = lines.index("alerts") + 1
        assert [line.partition(" ")[2].partition(" ")[2] for line in lines[first : first + 2]] == [
            r"CRITICAL cpu of trainer is \x1b[31mat its limit (open)",
            "INFO it was short (resolved)",
        ]
        await there.press("a", *"seen", "enter")
        await there.go_on()
        screen = " ".join(there.screen.split())
        assert r"\x1b[31mat its limit (open, acknowledged by me)" in screen

    driven(recorded, body, (120, 40))


def test_who_has_ended_is_told_of_and_takes_no_commands(
    recorded: RecordedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("enter")
        shutil.rmtree(recorded.path("trainer").parent)
        await there.go_on()
        said = []
        monkeypatch.setattr(there.app, "notify", lambda what, **_: said.append(what))
        await there.press("x", "f", "l", "a")
        assert len(there.app.screen_stack) == 2
        assert said == ["it has ended"] * 4
        assert recorded.done == []

    driven(recorded, body, (132, 40))


def test_a_question_before_anything_is_done(recorded: RecordedHost) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("x")
        assert_is("stop", there.screen)
        await there.press("n")
        assert "⏎ Detail" in there.screen

    driven(recorded, body)


def test_nobody_runs_and_there_is_no_history(recorded: RecordedHost) -> None:
    for home in recorded.slice.path.glob("*.scope"):
        shutil.rmtree(home)

    async def body(there: Driven) -> None:
        assert "no agent runs" in there.screen
        assert "no alerts: " in there.screen
        for key in ("x", "f", "a", "l", "enter", "s", "t"):
            await there.press(key)
        assert len(there.app.screen_stack) == 1

    driven(recorded, body)


def test_without_colour_all_is_told_by_text(
    recorded: RecordedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on(5)
        assert_is("agents-80", there.screen)
        assert bool(there.hues) is coloured
        cursor = there.app.table.render_line(1)
        assert all(part.style and bool(part.style.reverse) is not coloured for part in cursor)

    coloured = True

    driven(recorded, body)
    monkeypatch.setenv("NO_COLOR", "1")
    coloured = False
    driven(recorded, body)


def test_five_hundred_agents(recorded: RecordedHost) -> None:
    for number in range(494):
        recorded.slice.agent(f"many-{number:03}", started=BEGIN - 600)

    async def body(there: Driven) -> None:
        assert "1 frozen, 496 running, 1 throttled, 1 unsupervised, 1 waiting" in there.screen
        await there.press("s", "end")
        assert len(there.app.table._lines) == 500
        await there.press("slash", *"many-49")
        assert len(there.app.table._lines) == 4

    driven(recorded, body)


# What moves.


def test_who_comes_and_goes(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        assert set(there.names) == ALL
        shutil.rmtree(recorded.path("fixer").parent)
        await there.go_on()
        assert set(there.names) == ALL - {"fixer"}
        recorded.slice.agent("fixer", started=recorded.now)
        await there.go_on()
        assert set(there.names) == ALL

    driven(recorded, body)


def test_sorted_and_turned_around(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        assert there.names == ["trainer", "planner", "fixer", "lost", "crawler", "patient"]
        await there.press("r")
        assert there.names == ["crawler", "patient", "lost", "fixer", "planner", "trainer"]
        await there.press("r", "s")
        assert there.app.view.sort == "memory"
        assert " memory▼ " in there.screen
        assert there.names == ["trainer", "planner", "fixer", "crawler", "lost", "patient"]

    driven(recorded, body)


def test_what_it_is_sorted_by_is_seen_on_a_narrow_terminal_too(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        for sort in rows.SORTS:
            while there.app.view.sort != sort:
                await there.press("s")
            rising = sort in ("name", "state")
            assert re.search(rf" {sort}{'▲' if rising else '▼'}( |$)", there.screen, re.MULTILINE)
            await there.press("r")
            assert re.search(rf" {sort}{'▼' if rising else '▲'}( |$)", there.screen, re.MULTILINE)
            await there.press("r")

    driven(recorded, body)


def test_the_cursor_stays_on_its_agent(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("down", "down")
        assert there.app.selected is not None
        assert there.app.selected.name == "fixer"
        await there.press("r")
        assert there.app.selected.name == "fixer"
        await there.press("s", "s", "t")
        assert there.app.selected.name == "fixer"
        await there.pilot.resize_terminal(132, 30)
        await there.settle()
        assert there.app.selected.name == "fixer"
        shutil.rmtree(recorded.path("trainer").parent)
        await there.go_on()
        assert there.app.selected.name == "fixer"

    driven(recorded, body)


def test_the_cursor_is_in_sight_and_the_heading_too(recorded: RecordedHost) -> None:
    for number in range(95):
        recorded.slice.agent(f"many-{number:02}", started=BEGIN - 600)

    async def body(there: Driven) -> None:
        while there.app.view.sort != "name":
            await there.press("s")
        for keys in (
            ("end",),
            ("pageup",),
            ("pagedown", "up"),
            ("home",),
            ("down",) * 40,
            ("k", "j"),
            ("g",),
            ("G",),
        ):
            await there.press(*keys)
            assert there.app.selected is not None
            assert re.search(rf"^ {there.app.selected.name} ", there.screen, re.MULTILINE), keys
            assert re.search("^ name▲ +state", there.screen, re.MULTILINE), keys
        await there.press("end")
        last = there.app.selected
        assert last is not None
        assert last.name == "trainer"

    driven(recorded, body)


def test_a_click_selects_and_a_second_one_opens(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.pilot.click("#agents", offset=(5, 3))
        await there.settle()
        assert there.app.selected is not None
        assert there.app.selected.name == there.names[2]
        await there.pilot.click("#agents", offset=(5, 0))  # the heading
        await there.pilot.click("#agents", offset=(5, 12))  # nobody
        assert len(there.app.screen_stack) == 1
        await there.pilot.click("#agents", offset=(5, 3))
        await there.settle()
        assert len(there.app.screen_stack) == 2

    driven(recorded, body)


def test_only_what_matches(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("slash", *"running t")
        assert there.names == ["trainer"]
        await there.press("enter")
        assert there.names == ["trainer"]
        await there.press("slash", "escape")
        assert set(there.names) == ALL

    driven(recorded, body)


def test_a_filter_from_the_beginning_is_seen_and_goes_like_any_other(
    recorded: RecordedHost,
) -> None:
    async def body(there: Driven) -> None:
        assert there.names == ["fixer", "fixer"]  # its line, and the filter's
        assert there.screen.splitlines()[-2] == "fixer"
        await there.press("escape")
        assert set(there.names) == ALL
        assert there.screen.splitlines()[-2] == ""

    driven(recorded, body, view=View(text="fixer"))


# What keys do.


def test_nothing_is_done_without_a_yes(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        for key in ("x", "f"):
            await there.press(key, "n")
            await there.press(key, "escape")
            await there.press(key, "q", "enter", "x", "n")  # neither a yes nor the end
        await there.press("l", *"memory=2G", "escape")
        assert recorded.done == []

    driven(recorded, body)


def test_freeze_and_thaw(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("f", "y")
        assert recorded.done == [("freeze", "trainer", {})]
        assert "2 frozen" in there.screen
        await there.press("f", "y")
        assert recorded.done[1:] == [("thaw", "trainer", {})]

    driven(recorded, body)


def test_stop(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("down", "x", "y")
        assert recorded.done == [("stop", "planner", 5.0)]

    driven(recorded, body)


def test_stop_from_the_page(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("down", "enter", "x")
        assert "Stop planner?" in there.screen
        await there.press("y")
        assert recorded.done == [("stop", "planner", 5.0)]

    driven(recorded, body)


def test_set(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("l", *"memory=256M:2G", "space", *"cpu=1.5", "enter")
        assert recorded.done == [
            ("set", "trainer", {"limits": {"memory": "256M:2G", "cpu": "1.5"}})
        ]
        await there.press("l", *"colour=blue", "enter")
        assert "colour: expected one of" in " ".join(there.screen.split())
        assert len(recorded.done) == 1

    driven(recorded, body, (132, 30))


def test_acknowledge(recorded: RecordedHost) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("a")
        assert "cpu of trainer is \\x1b[31mat its limit" in there.screen
        await there.press("enter")  # no reason
        assert recorded.done == []
        await there.press("a", *"seen", "enter")
        assert recorded.done == [("acknowledge", ["02"], "seen")]
        store = Store.open(recorded.history, write=False)
        row = store.alert("02")
        store.close()
        assert (row.acknowledged_by, row.acknowledged_why) == ("me", "seen")
        assert "1 ack" in there.screen
        await there.press("a")
        assert len(there.app.screen_stack) == 1

    driven(recorded, body)


def test_a_refusal_is_told(recorded: RecordedHost) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("s", "end", "up", "f", "y")
        assert "nobody supervises lost" in " ".join(there.screen.split())

    driven(recorded, body)


def test_read_only_has_no_commands(recorded: RecordedHost) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on()
        assert "Stop" not in there.screen
        assert "Sort" in there.screen
        for key in ("x", "f", "a", "l"):
            await there.press(key, "y")
        assert len(there.app.screen_stack) == 1
        await there.press("enter", "x")
        assert len(there.app.screen_stack) == 2
        assert recorded.done == []

    driven(recorded, body, read_only=True)


@pytest.mark.parametrize(
    "keys", [("q",), ("ctrl+c",), ("enter", "q"), ("x", "ctrl+c"), ("slash", "a", "ctrl+c")]
)
def test_it_ends(recorded: RecordedHost, keys: tuple[str, ...]) -> None:
    async def body(there: Driven) -> None:
        await there.go_on()
        assert not there.app._exit
        await there.pilot.press(*keys)
        assert there.app._exit
        assert recorded.done == []

    driven(recorded, body)


def test_a_filter_is_seen_while_it_holds(recorded: RecordedHost) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("slash", *"fix")
        assert_is("filter", there.screen)

    driven(recorded, body)


# The pure part.


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1e15)), max_size=70),
    st.integers(1, 40),
    st.one_of(st.none(), st.floats(0, 1e15)),
)
def test_sparks_have_their_width(values: list[float | None], width: int, top: float | None) -> None:
    drawn = rows.spark(values, width, top)
    assert len(drawn) == width
    assert set(drawn) <= set(rows.BARS + " ")
    last = values[-width:]
    assert [c == " " for c in drawn[width - len(last) :]] == [value is None for value in last]


@given(st.floats(0, 2**59))
def test_what_is_short_is(value: float) -> None:
    assert len(rows.short(value)) <= 5
    assert len(rows.rate(value)) <= 5
    assert len(rows.count(min(value, 9e8))) <= 4
    assert len(rows.cores(min(value, 9999))) <= 4


def test_rates_and_counts_are_decimal_and_sizes_binary() -> None:
    assert (rows.rate(8_000_000), rows.rate(39_600)) == ("8.0M", "40k")
    assert (rows.short(8 << 20), rows.short(512 << 10)) == ("8.0M", "512K")
    assert [rows.count(n) for n in (1500, 9999, 12_000)] == ["1500", "9999", "12k"]


@given(st.integers(20, 300), st.sampled_from(["", *rows.SORTS]))
def test_columns_fit(width: int, sort: str) -> None:
    chosen = rows.columns(width, sort)
    needed = sum(column.width + rows.GAP for column in chosen)
    assert needed <= width or all(column.drop == 0 or column.name == sort for column in chosen)
    assert chosen[0].name == "name"
    assert not sort or sort in [column.name for column in chosen]


@given(
    st.lists(st.tuples(st.floats(-10, 1e9), st.sampled_from("█▒")), max_size=3),
    st.floats(-1, 1e9),
    st.integers(1, 80),
)
def test_bars_have_their_width(parts: list[tuple[float, str]], total: float, width: int) -> None:
    assert len(rows.bar(parts, total, width)) == width


def test_the_documentation_says_which_columns_go_first() -> None:
    going = sorted((c for c in rows.COLUMNS if c.drop), key=lambda c: -c.drop)
    text = (Path(__file__).parents[2] / "docs/dashboard.md").read_text()
    assert f"{', '.join(c.name for c in going)} go first" in text
    assert f"curves of the last {RING} samples" in text


def test_all_sorts_are_columns_with_room_for_the_mark() -> None:
    columns = {column.name: column for column in rows.COLUMNS}
    for name in rows.SORTS:
        assert len(rows.heading(columns[name], View(sort=name))) <= columns[name].width
    assert View().sort in rows.SORTS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("memory=2G", {"memory": "2G"}),
        ("--net-in=1MB/s pids=9", {"net_in": "1MB/s", "pids": "9"}),
        (
            "io_write=/dev/vda=1M io_write=/dev/vdb=2M",
            {"io_write": ["/dev/vda=1M", "/dev/vdb=2M"]},
        ),
        ("", {}),
    ],
)
def test_limits_as_they_are_typed(text: str, found: dict[str, object]) -> None:
    assert parse_limits(text) == found


@pytest.mark.parametrize("text", ["memory", "memory=", "=2G", "colour=blue", "pids=1 pids=2"])
def test_limits_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|twice"):
        parse_limits(text)


# The command.


def top(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agentres", "top", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "top draws on a terminal; agentres ps prints the same once"),
        (["--interval", "0.1s"], "--interval 0.1s: expected 0.2s or more"),
        (["--interval", "soon"], "--interval soon: expected"),
        (["--sort", "colour"], "--sort colour: expected one of name, cpu,"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], said: str) -> None:
    done = top(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"agentres: {said}")
    assert done.stderr.count("\n") == 1


def test_help_names_all_that_it_sorts_by() -> None:
    told = " ".join(top("--help", COLUMNS="200").stdout.replace("│", " ").split())
    *names, last = rows.SORTS
    assert f"{', '.join(names)} or {last}." in told


def test_without_textual_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError('none', name='textual')")
    done = subprocess.run(
        [sys.executable, "-m", "agentres", "top"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "agentres: top needs the package textual; pip install 'agentres[tui]'\n",
    )
