"""The terminal's handler: the line, its colour, and terminals, pipes and files that do not take it."""

from __future__ import annotations

import os
import pty
import select
import socket
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from dispatched import FORKS_BESIDE_THREADS, Pipe, Told, event, handler, resolved

from agentres.companion.handlers.terminal import line

pytestmark = FORKS_BESIDE_THREADS


def test_the_line_says_what_how_grave_and_which() -> None:
    assert line(event()) == (
        "agentres: WARNING memory of x is at 76% of its limit (778 MiB of 1.0 GiB) [3f9a0c12]"
    )
    assert line(resolved()).startswith("agentres: RESOLVED memory of x")
    assert line(event(message="a\x1b[2J\nb\udcff"), colour=True) == (
        "agentres: \x1b[33mWARNING\x1b[0m a\\x1b[2J\\nb\\udcff [3f9a0c12]"
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_terminal_gets_colour_unless_it_is_not_wanted(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = terminal
    with Told(handler("terminal", fd=slave)) as told:
        assert told.tell(event()) is None
        assert os.read(master, 4096).decode() == line(event(), colour=True) + "\r\n"
        raw = termios.tcgetattr(slave)
        raw[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, raw)
        assert told.tell(event()) is None
        assert os.read(master, 4096).endswith(b"\r\n")
        assert os.get_blocking(slave)
    monkeypatch.setenv("NO_COLOR", "1")
    with Told(handler("terminal", fd=slave)) as told:
        assert told.tell(event()) is None
        assert os.read(master, 4096).decode() == line(event()) + "\r\n"


def test_a_stopped_terminal_drops_and_delays_nobody(
    terminal: tuple[int, int], handlers_pipe: Pipe
) -> None:
    master, slave = terminal
    termios.tcflow(slave, termios.TCOOFF)
    handlers = [handler("terminal", fd=slave, timeout=0.3), handler("python")]
    with Told(*handlers, callables={"python": lambda told: handlers_pipe.say(told["id"])}) as told:
        told.dispatcher.dispatch(event())
        assert handlers_pipe.line() == ["3f9a0c12"]
        assert told.next() is None
        assert told.next() == "the terminal took nothing for 0.3 s"
        assert told.drops == [("terminal", 1)]
        termios.tcflow(slave, termios.TCOON)
        told.dispatcher.dispatch(event())
        assert told.next() is told.next() is None
        assert b"WARNING" in os.read(master, 4096)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_full_pipe_drops_and_a_closed_one_says_so(kind: str) -> None:
    if kind == "pipe":
        out, into = os.pipe()
    else:
        out, into = (end.detach() for end in socket.socketpair())
    with Told(handler("terminal", fd=into, timeout=0.1, size=10_000)) as told:
        while (error := told.tell(event())) is None:
            pass
        assert error == "the terminal took nothing for 0.1 s"
        os.set_blocking(out, False)
        while select.select([out], [], [], 0)[0]:
            os.read(out, 65536)
        assert told.tell(event()) is None
        assert os.read(out, 65536).decode() == line(event()) + "\n"
        os.close(out)
        assert told.tell(event()) == "stderr: broken pipe"
    os.close(into)


def test_a_file_is_written_where_its_other_writers_are(tmp_path: Path) -> None:
    with (
        open(tmp_path / "log", "wb", buffering=0) as file,
        Told(handler("terminal", fd=file.fileno())) as told,
    ):
        file.write(b"before\n")
        assert told.tell(event()) is None
        file.write(b"after\n")
    assert (tmp_path / "log").read_text() == f"before\n{line(event())}\nafter\n"
