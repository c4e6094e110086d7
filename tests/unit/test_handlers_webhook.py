"""Webhook handlers: what is posted, when it is tried again, and what Alertmanager hears."""

from __future__ import annotations

import socket
import time

import pytest
from dispatched import DEADLINE, FORKS_BESIDE_THREADS, Told, event, handler, resolved
from webhook_server import Answer, Answering, hook

from agentres.companion.handlers import webhook
from agentres.companion.handlers.webhook import AlertmanagerAlerts

pytestmark = [FORKS_BESIDE_THREADS, pytest.mark.usefixtures("quick_webhooks")]


def hang(connection: Answering) -> None:
    connection.server.released.wait(DEADLINE)


def drip(connection: Answering) -> None:
    connection.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not connection.server.released.wait(0.05):
        try:
            connection.wfile.write(b"X: y\r\n")
        except OSError:
            return


def cut(connection: Answering) -> None:
    connection.connection.shutdown(socket.SHUT_RDWR)


def test_a_webhook_posts_the_event() -> None:
    with hook(headers={"Authorization": "Bearer x"}) as (told, server):
        assert told.tell(event()) is None
        headers, body = server.got.get_nowait()
        assert body == event()
        assert headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == "Bearer x"


@pytest.mark.parametrize("answer", [(500, {}), (503, {}), (429, {"Retry-After": "0"}), cut])
def test_a_webhook_tries_again_where_that_may_help(answer: Answer) -> None:
    with hook(answer, answer) as (told, server):
        assert told.tell(event()) is None
        assert server.got.qsize() == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {}), "HTTP 400 Bad Request: the reason"),
        ((404, {}), "HTTP 404 Not Found: the reason"),
        ((302, {"Location": "/other"}), "HTTP 302 Found: redirects are not followed"),
        ((307, {"Location": "file:///etc/passwd"}), "redirects are not followed"),
        ((503, {"Retry-After": "120"}), "(1 attempt, to be tried again after 120 s)"),
        (
            (429, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}),
            "(1 attempt, to be tried again after",
        ),
    ],
)
def test_a_webhook_does_not_try_again_where_that_cannot_help(answer: Answer, error: str) -> None:
    with hook(answer) as (told, server):
        assert error in str(told.tell(event()))
        assert server.got.qsize() == 1


def test_a_webhook_waits_as_long_as_it_is_asked_to() -> None:
    with hook((503, {"Retry-After": "1"})) as (told, server):
        began = time.monotonic()
        assert told.tell(event()) is None
        assert time.monotonic() - began >= 1
        assert server.got.qsize() == 2


def test_a_webhook_gives_up_after_its_retries() -> None:
    with hook(*[(500, {})] * 9, retries=2) as (told, server):
        assert told.tell(event()) == "HTTP 500 Internal Server Error: the reason (3 attempts)"
        assert server.got.qsize() == 3


@pytest.mark.parametrize("answer", [hang, drip])
def test_a_webhook_that_hangs_ends_at_the_time_limit(answer: Answer) -> None:
    with hook(*[answer] * 9, timeout=0.5) as (told, _server):
        began = time.monotonic()
        assert told.tell(event()) is not None
        assert time.monotonic() - began < 5
        _server.released.set()
        _server.answers.clear()
        assert told.tell(event()) is None


def test_a_webhook_nobody_serves() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with Told(handler("webhook", url=f"http://127.0.0.1:{port}/")) as told:
        assert told.tell(event()) == (
            "ConnectionRefusedError: [Errno 111] Connection refused (4 attempts)"
        )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "http:///x", "x"])
def test_a_webhook_speaks_http_alone(url: str) -> None:
    with Told(handler("webhook", url=url)) as told:
        assert "must start with http://" in str(told.tell(event()))


def test_alertmanager_hears_of_an_alert_its_severities_and_its_end() -> None:
    with hook(format="alertmanager") as (told, server):
        for each in (
            event(),
            event(event="updated", severity="CRITICAL", updated=1700000010.0),
            event(event="updated", severity="WARNING", updated=1700000020.0),
            resolved(severity="WARNING"),
        ):
            assert told.tell(each) is None
        posted = [server.got.get_nowait()[1] for _ in range(4)]
    labels = {
        "alertname": "memory",
        "agent": "x",
        "of": "agent",
        "severity": "warning",
        "resource": "memory",
        "instance": "machine",
    }
    assert posted[0][0]["labels"] == labels
    assert posted[0][0]["annotations"]["summary"] == event()["message"]
    assert posted[0][0]["annotations"]["id"] == "3f9a0c12"
    lives = [
        [(a["labels"]["severity"], a["startsAt"][17:23], a.get("endsAt", "")[17:23]) for a in each]
        for each in posted
    ]
    assert lives == [
        [("warning", "20.100", "")],
        [("warning", "20.100", "30.000"), ("critical", "30.000", "")],
        [("critical", "30.000", "40.000"), ("warning", "40.000", "")],
        [("critical", "30.000", "40.000"), ("warning", "40.000", "00.000")],
    ]
    assert posted[0][0]["startsAt"] == "2023-11-14T22:13:20.100Z"


def test_alertmanager_is_told_again_and_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "RESEND", 0.1)
    with hook((400, {}), format="alertmanager") as (told, server):
        assert "HTTP 400" in str(told.tell(event()))
        assert told.next() is None  # the second sending, which nobody asked for
        first, second, third = (server.got.get(timeout=DEADLINE)[1] for _ in range(3))
        assert first == second == third
        assert told.reports.empty()


def test_alertmanager_is_told_of_an_end_for_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    alerts = AlertmanagerAlerts()
    assert alerts.due() is None
    alerts.take(event())
    assert alerts.due() == 60
    alerts.take(resolved())
    now[0] += 299
    assert [alert["endsAt"] for alert in alerts.again()] == ["2023-11-14T22:15:00.000Z"]
    now[0] += 2
    assert alerts.again() == []
    assert alerts.due() is None
