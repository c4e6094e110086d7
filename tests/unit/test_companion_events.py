"""The companion's writer of events: a reader that is slow, gone or late, a disk that is full; nothing waits for it."""

from __future__ import annotations

import errno
import json
import os
import select
import time
from pathlib import Path
from typing import Any

import pytest

from agentres.companion import events as module
from agentres.companion.events import EventWriter
from agentres.companion.handlers.terminal import Output

HEAD = {"schema": 1, "run": "0badcafe", "agent": "a", "number": 0}
DEADLINE = 20.0


def event(number: int, kind: str = "alert", **more: Any) -> dict[str, Any]:
    return {**HEAD, "number": number, "event": kind, "time": 1.0, **more}


class Piped:
    """A writer, and the other end of its pipe."""

    def __init__(self) -> None:
        self.out, self._given = os.pipe()
        self.writer = EventWriter(self._given, HEAD)
        self._text = b""

    def line(self) -> dict[str, Any]:
        while b"\n" not in self._text:
            assert select.select([self.out], [], [], DEADLINE)[0], "nothing was written"
            self._text += os.read(self.out, 1 << 16)
        line, _, self._text = self._text.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def fill(self) -> int:
        """Have so much written that the pipe is full; the number of the last event."""
        for number in range(1, 200):
            self.writer.put(event(number, text="x" * 1000))
        end = time.monotonic() + DEADLINE
        while select.select([], [self._given], [], 0)[1]:
            assert time.monotonic() < end
            time.sleep(0.01)
        return 199

    def end(self, seconds: float = DEADLINE) -> str:
        self.writer.finish(seconds)
        return self.writer.close()

    def close(self) -> None:
        for fd in (self.out, self._given):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def piped() -> Any:
    made = Piped()
    yield made
    made.close()


def test_events_are_lines_in_their_order(piped: Piped) -> None:
    for number in (1, 2):
        piped.writer.put(event(number, message="a\nb\udc80"))
    piped.writer.put(event(3, "end"))
    assert piped.end() == ""
    assert [piped.line()["number"] for _ in range(3)] == [1, 2, 3]


def test_what_never_came_is_told_before_the_next_one_and_counted(piped: Piped) -> None:
    piped.writer.put(event(1))
    piped.writer.put(event(5))
    found = [piped.line() for _ in range(3)]
    assert [(each["event"], each["number"]) for each in found] == [("alert", 1), ("lost", 4), ("alert", 5)]  # fmt: skip
    assert found[1]["count"] == 3
    piped.writer.put(event(6, "end"))
    assert piped.end() == "--events: not written: 3 events (nobody took them)"


def test_a_reader_that_is_late_gets_what_waited_and_how_many_were_lost(
    piped: Piped, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = piped.fill()
    monkeypatch.setattr(module, "QUEUE", 3)
    start = time.monotonic()
    for number in range(last + 1, 10_000):
        piped.writer.put(event(number))
    assert time.monotonic() - start < 5  # it waits for nobody
    piped.writer.put(event(10_000, "end"))
    piped.writer.finish(DEADLINE)
    found = [piped.line()]
    while found[-1]["event"] != "end":
        found.append(piped.line())
    lost = [each["count"] for each in found if each["event"] == "lost"]
    written = [each for each in found if each["event"] != "lost"]
    assert sum(lost) + len(written) == 10_000
    assert found[-2]["event"] == "lost"
    assert piped.writer.close() == f"--events: not written: {sum(lost)} events (nobody took them)"


def test_nobody_waits_for_one_that_never_reads(piped: Piped) -> None:
    last = piped.fill()
    start = time.monotonic()
    piped.writer.put(event(last + 1, "end"))
    told = piped.end(0.2)
    assert time.monotonic() - start < 5
    assert told.startswith("--events: not written: ")


def test_one_that_has_gone_is_said(piped: Piped) -> None:
    os.close(piped.out)
    piped.out = -1
    for number in range(1, 5000):
        piped.writer.put(event(number))
    piped.writer.put(event(5000, "end"))
    assert piped.end() == "--events: not written: 5000 events (broken pipe)"


def test_where_the_supervisor_has_gone_the_end_says_so(piped: Piped) -> None:
    piped.writer.put(event(1))
    assert piped.end() == ""
    piped.line()
    end = piped.line()
    assert (end["event"], end["number"], end["exit_code"], end["summary"]) == ("end", 2, None, None)
    assert end["why"]


def test_a_disk_that_is_full_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    file = os.open(tmp_path / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writer = EventWriter(file, HEAD)
    put, refused = Output.put, []

    def full(output: Output, data: bytes) -> int:
        if not refused:
            refused.append(data)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(output, data[:10])

    monkeypatch.setattr(Output, "put", full)
    writer.put(event(1))
    end = time.monotonic() + DEADLINE
    while not (tmp_path / "events").read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.01)
    writer.put(event(2, "end"))
    writer.finish(DEADLINE)
    assert writer.close() == ""
    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]
    assert refused
    os.close(file)


def test_one_that_takes_anothers_place_goes_on_with_its_numbers() -> None:
    out, given = os.pipe()
    writer = EventWriter(given, {**HEAD, "number": 7})
    writer.put(event(8, "end"))
    writer.finish(DEADLINE)
    assert writer.close() == ""
    assert json.loads(os.read(out, 4096))["number"] == 8
    os.close(out)
    os.close(given)
