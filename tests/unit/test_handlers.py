"""Alerts' handlers of every type, for real: what gets to them, when they are flooded, hang or raise, and how fast."""

from __future__ import annotations

import os
import queue
import signal
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dispatched import (
    DEADLINE,
    FORKS_BESIDE_THREADS,
    Pipe,
    Told,
    command,
    event,
    function,
    handler,
    resolved,
)
from webhook_server import Answering, hook

from agentres.companion.handlers.dispatch import Dispatcher
from agentres.policy.alerts import Severity

pytestmark = FORKS_BESIDE_THREADS


# The dispatcher.


def test_a_handler_gets_its_severity_and_graver_and_what_becomes_of_that(
    handlers_pipe: Pipe,
) -> None:
    def say(told: dict[str, Any]) -> None:
        handlers_pipe.say(told["id"], told["event"], told["severity"])

    handlers = [handler("python", severity=Severity.CRITICAL)]
    with Told(*handlers, callables={"python": say}, delivered={"old": Severity.CRITICAL}) as told:
        for each in (
            event(id="low"),
            resolved(id="low"),
            event(id="rises"),
            event(id="rises", event="updated", severity="CRITICAL"),
            event(id="rises", event="updated", severity="WARNING"),
            event(id="rises", event="repeated", severity="WARNING"),
            resolved(id="rises", severity="WARNING"),
            resolved(id="rises", severity="CRITICAL"),
            resolved(id="old"),
        ):
            told.dispatcher.dispatch(each)
        assert told.dispatcher.close() == []
        got = [handlers_pipe.line() for _ in range(4)]
        assert got == [
            ["rises", "updated", "CRITICAL"],
            ["rises", "updated", "WARNING"],
            ["rises", "resolved", "WARNING"],
            ["old", "resolved", "WARNING"],
        ]
        assert told.reports.qsize() == 4
        assert told.drops == []


def test_a_handler_that_cannot_be_set_up_says_so_at_every_alert() -> None:
    with Told(handler("command"), handler("carrier pigeon")) as told:
        told.dispatcher.dispatch(event())
        errors = {told.reports.get(timeout=DEADLINE)[1:] for _ in range(2)}
        assert ("command", "cannot be set up: KeyError: 'argv'") in errors
        assert ("carrier pigeon", "there is no handler type 'carrier pigeon'") in errors


def test_a_flood_is_dropped_counted_and_told_and_its_resolution_is_not_sent(
    handlers_pipe: Pipe,
) -> None:
    go, started = os.pipe()

    def slow(told: dict[str, Any]) -> None:
        handlers_pipe.say(told["id"], told["event"])
        os.read(go, 1)

    with function(slow, size=3) as told:
        told.dispatcher.dispatch(event(id="0"))
        assert handlers_pipe.line() == ["0", "raised"]  # at work; now three may wait
        for n in range(1, 11):
            told.dispatcher.dispatch(event(id=str(n)))
        lost = [told.reports.get(timeout=DEADLINE) for _ in range(7)]
        assert {alert for alert, _, _ in lost} == {str(n) for n in range(4, 11)}
        assert all(e == "dropped: 3 alerts were waiting for it" for _, _, e in lost)
        assert told.drops == [("python", n) for n in range(1, 8)]
        os.write(started, b"...." * 3)
        assert [told.next() for _ in range(4)] == [None] * 4
        told.dispatcher.dispatch(resolved(id="10"))
        told.dispatcher.dispatch(resolved(id="1"))
        assert told.next() is None
        assert [handlers_pipe.line() for _ in range(4)][-1] == ["1", "resolved"]
    os.close(go)
    os.close(started)


def test_a_lost_alert_about_lost_alerts_is_not_counted() -> None:
    def bad(_told: dict[str, Any]) -> None:
        raise ValueError("no")

    with function(bad) as told:
        assert told.tell(event(resource="handlers")) is not None
        assert told.drops == []
        assert told.tell(event(id="other")) is not None
    assert told.drops == [("python", 1)]


def test_whoever_hangs_delays_nobody_else(handlers_pipe: Pipe, tmp_path: Path) -> None:
    hung = command(tmp_path / "hang", "sleep 60", timeout=0.3)
    handlers = [hung, handler("python")]
    with Told(*handlers, callables={"python": lambda told: handlers_pipe.say(told["id"])}) as told:
        for n in range(5):
            told.dispatcher.dispatch(event(id=str(n)))
        assert [handlers_pipe.line() for _ in range(5)] == [[str(n)] for n in range(5)]
        reports = [told.reports.get(timeout=DEADLINE) for _ in range(6)]
        assert [name for _, name, _ in reports] == ["python"] * 5 + ["command"]


def test_a_close_delivers_what_is_queued_within_the_time_limit(handlers_pipe: Pipe) -> None:
    with function(lambda told: handlers_pipe.say(told["id"])) as told:
        for n in range(50):
            told.dispatcher.dispatch(event(id=str(n)))
        assert told.dispatcher.close() == []
        assert told.reports.qsize() == 50
        told.dispatcher.dispatch(event())
        errors = [told.next() for _ in range(51)]
    assert errors == [None] * 50 + ["agentres has ended"]


def test_a_close_gives_up_at_the_time_limit_and_names_who_did_not_get_all(
    handlers_pipe: Pipe,
) -> None:
    def hang(told: dict[str, Any]) -> None:
        if told["id"] != "ready":
            signal.pause()

    told = function(hang, timeout=0.3)
    while told.tell(event(id="ready")):  # on a busy machine its process takes longer than that
        pass
    lost = told.drops[-1][1] if told.drops else 0
    # So many that they are not all killed, one after another, however late the close looks.
    for n in range(50):
        told.dispatcher.dispatch(event(id=str(n)))
    assert "was killed" in str(told.next())
    began = time.monotonic()
    assert told.dispatcher.close() == ["python"]
    assert time.monotonic() - began < 5
    errors = [told.next() for _ in range(49)]
    assert errors[-1] == "not delivered when agentres ended"
    assert told.drops[-1] == ("python", lost + 50)
    handlers_pipe.await_end()


def test_a_callback_that_raises_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    heard: queue.Queue[str] = queue.Queue()

    def report(alert: str, *_: object) -> None:
        heard.put(alert)
        raise ValueError("of the caller's")

    dispatcher = Dispatcher(
        [handler("python")], report, lambda *_: None, {"python": lambda _told: None}
    )
    for n in range(2):
        dispatcher.dispatch(event(id=str(n)))
    assert [heard.get(timeout=DEADLINE) for _ in range(2)] == ["0", "1"]
    assert dispatcher.close() == []
    assert "of the caller's" in capfd.readouterr().err


# How fast: printed, not asserted tighter than a shared machine allows.


@pytest.mark.usefixtures("quick_webhooks")
def test_latency(
    handlers_pipe: Pipe,
    tmp_path: Path,
    fake_journal: socket.socket,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: dict[str, list[float]] = {}

    def measure(name: str, told: Told, arrived: Callable[[], float]) -> None:
        for _ in range(30):
            began = time.monotonic()
            told.dispatcher.dispatch(event())
            found.setdefault(name, []).append(1000 * (arrived() - began))
            assert told.next() is None

    with function(lambda _told: handlers_pipe.say(time.monotonic())) as told:
        measure("python", told, lambda: float(handlers_pipe.line()[0]))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)

    def heard() -> float:
        os.read(keep, 1)
        return time.monotonic()

    with Told(command(tmp_path / "run", f"echo > {fifo}")) as told:
        measure("command", told, heard)
    os.close(keep)

    def got() -> float:
        fake_journal.recv(65536)
        return time.monotonic()

    with Told(handler("journal", path=fake_journal.getsockname())) as told:
        measure("journal", told, got)
    out, into = os.pipe()

    def shown() -> float:
        os.read(out, 4096)
        return time.monotonic()

    with Told(handler("terminal", fd=into)) as told:
        measure("terminal", told, shown)
    os.close(out)
    os.close(into)
    arrivals: queue.Queue[float] = queue.Queue()

    def answer(connection: Answering) -> None:
        arrivals.put(time.monotonic())
        connection.send_response(200)
        connection.end_headers()

    with hook(*[answer] * 30) as (told, _server):
        measure("webhook", told, lambda: arrivals.get(timeout=DEADLINE))
    with capsys.disabled():
        print()
        for name, times in found.items():
            print(f"{name:10} p50 {statistics.median(times):.2f} ms, max {max(times):.2f} ms")
    assert all(statistics.median(times) < 100 for times in found.values())
