"""The line to the companion: what is sent arrives, and one that dies is replaced."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_agent import handover
from test_companion import event

from agentres.kernel.loop import Loop
from agentres.policy.alerts import Severity
from agentres.policy.settings import Handler, Settings
from agentres.run import messenger
from agentres.run.messenger import Messenger

DEADLINE = 60.0


class Line:
    """A messenger on a loop, and a pipe to which its one handler writes what it is told."""

    def __init__(self, folder: Path, state: Path) -> None:
        fifo = folder / "fifo"
        os.mkfifo(fifo)
        self.fifo = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self.loop = Loop()
        self.adopted: list[int] = []
        self.troubles: list[tuple[str, float]] = []
        argv = ["sh", "-c", f"cat >{fifo}"]
        handler = Handler("pipe", "command", Severity.INFO, options={"argv": argv})
        agent = handover(adopt=self.adopted.append, state=str(state))
        self.messenger = Messenger(self.loop, Settings(handlers=(handler,)), "", agent, self._note)

    def _note(self, resource: str, total: float, what: str) -> None:
        assert resource == "handlers"
        self.troubles.append((what, total))

    def told(self) -> dict[str, Any]:
        assert select.select([self.fifo], [], [], DEADLINE)[0], "nothing was told"
        found: dict[str, Any] = json.loads(os.read(self.fifo, 65536))
        return found

    def kill_companion(self) -> None:
        os.kill(self.adopted[-1], signal.SIGKILL)
        before = len(self.troubles)
        while len(self.troubles) == before:
            self.loop.tick()

    def close(self) -> None:
        self.messenger.close()
        self.loop.close()
        os.close(self.fifo)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path, tmp_path)
    yield made
    made.close()


def test_a_companion_that_dies_is_replaced_and_knows_what_was_told(line: Line) -> None:
    line.messenger.alert(event())
    assert line.told()["event"] == "raised"
    line.kill_companion()
    assert line.troubles == [("the handlers' process has gone", 1)]
    line.messenger._start_at = 0.0  # the pause is over
    # Only who was told that it began is told of its end.
    line.messenger.alert(event(event="resolved", resolved=1700000001.0))
    assert line.told()["event"] == "resolved"
    assert len(line.adopted) == 2


def test_one_that_always_dies_is_started_with_pauses_and_what_is_lost_counts(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(messenger, "time", SimpleNamespace(monotonic=lambda: now))
    line.messenger.alert(event())
    assert line.told()
    line.kill_companion()
    line.messenger.alert(event(id="00000001"))
    assert len(line.adopted) == 1
    assert line.troubles[-1] == ("alerts dropped (all: 2)", 2)
    for pause in (1.0, 2.0, 4.0):
        now += pause - 0.5
        line.messenger.start()
        assert line.messenger._socket is None
        now += 0.5
        line.messenger.start()
        line.kill_companion()
    assert len(line.adopted) == 4


@pytest.mark.parametrize("words", [b"\xe9\x00", b"-1 pipe", b"many pipe", b" pipe", b"9" * 500])
def test_garbage_from_the_companion_is_its_end(monkeypatch: pytest.MonkeyPatch, line: Line, words: bytes) -> None:  # fmt: skip
    """By the daemon it is a user's process, and we are root's."""
    code = f"import socket, sys; sock = socket.socket(fileno=int(sys.argv[1])); sock.send({words!r})\nwhile sock.recv(1 << 20): pass"
    monkeypatch.setattr(messenger, "_COMPANION", (sys.executable, "-c", code))
    line.messenger.start()
    while not line.troubles:
        line.loop.tick()
    assert line.troubles == [("the handlers' process has gone", 1)]


def test_what_was_dropped_counts_to_the_last_packet(
    monkeypatch: pytest.MonkeyPatch, line: Line
) -> None:
    last = 3 * messenger._AT_ONCE
    code = (
        "import socket, sys\nsock = socket.socket(fileno=int(sys.argv[1]))\nwhile sock.recv(1 << 20): pass\n"
        f"for count in range(1, {last} + 1): sock.send(b'%d pipe' % count)"
    )
    monkeypatch.setattr(messenger, "_COMPANION", (sys.executable, "-c", code))
    line.messenger.start()
    line.messenger.close()
    assert line.troubles[-1] == (f"alerts dropped (pipe: {last})", last)


LISTENS_AND_COUNTS = "import socket, sys; sock = socket.socket(fileno=int(sys.argv[1]))\nwhile sock.recv(1 << 20): pass\nsock.send(b'3 pipe')"


def test_what_is_told_of_the_handlers_at_the_end_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch, line: Line) -> None:  # fmt: skip
    """The history has it; the companion has gone by then, and none is started anew."""
    monkeypatch.setattr(messenger, "_COMPANION", (sys.executable, "-c", LISTENS_AND_COUNTS))
    taken = []

    def note(resource: str, total: float, what: str) -> None:
        line.troubles.append((what, total))
        line.messenger.alert(event())
        taken.append(line.messenger.tell({"event": "alert"}))

    line.messenger._note = note
    line.messenger.begin_events({"run": "1"})
    assert line.messenger.tell({"event": "start"})
    line.messenger.close()
    assert line.troubles == [("alerts dropped (pipe: 3)", 3)]
    assert taken == [False]
    assert len(line.adopted) == 1


def test_the_end_is_told_by_a_new_companion_at_once(monkeypatch: pytest.MonkeyPatch, line: Line) -> None:  # fmt: skip
    monkeypatch.setattr(messenger, "_COMPANION", (sys.executable, "-c", LISTENS_AND_COUNTS))
    line.messenger.begin_events({"run": "1"})
    assert line.messenger.tell({"event": "start"})
    line.kill_companion()
    assert not line.messenger.tell({"event": "alert"})  # there is a pause first
    assert line.messenger.tell({"event": "end"})
    assert len(line.adopted) == 2


def test_one_companion_of_all_with_the_same_history_watches_the_host(
    monkeypatch: pytest.MonkeyPatch, line: Line, tmp_path: Path
) -> None:
    monkeypatch.setattr(messenger, "_COMPANION", (sys.executable, "-c", LISTENS_AND_COUNTS))
    (tmp_path / "second").mkdir()
    second = Line(tmp_path / "second", tmp_path)
    line.messenger.watch_host()
    second.messenger.watch_host()
    assert (len(line.adopted), len(second.adopted)) == (1, 0)
    line.messenger.close()
    second.messenger.watch_host()
    assert len(second.adopted) == 1
    second.close()
