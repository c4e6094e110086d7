"""The dashboard in a terminal of its own, over a recorded host: what is drawn, and what keys do."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from driven import ALL, Driven, assert_is, driven
from fake_slice import FakeSlice
from recorded import BEGIN, RecordedHost, pretend
from told import event

from agentres.store import Store
from agentres.tui import rows
from agentres.tui.rows import View


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHost:
    """The host."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)
    return pretend(tmp_path, monkeypatch)


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
        assert there.app.table.virtual_size.height == 1 + 500
        await there.press("slash", *"many-49")
        assert there.app.table.virtual_size.height == 1 + 4

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
        assert there.app.return_code is None
        await there.pilot.press(*keys)
        assert there.app.return_code == 0
        assert recorded.done == []

    driven(recorded, body)


def test_a_filter_is_seen_while_it_holds(recorded: RecordedHost) -> None:
    recorded.tell()

    async def body(there: Driven) -> None:
        await there.go_on()
        await there.press("slash", *"fix")
        assert_is("filter", there.screen)

    driven(recorded, body)
