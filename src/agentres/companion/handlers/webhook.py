"""Webhook handlers: POST an alert over HTTP, as it is or in the format of Alertmanager's API v2.

A worker process makes the request: otherwise neither a name lookup nor a server that sends one byte
a second could be given a time limit.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentres import __version__
from agentres.companion.handlers.base import NotDelivered
from agentres.companion.handlers.python import PythonWork
from agentres.companion.handlers.runner import RunnerHandler
from agentres.model.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Event = dict[str, Any]

BACKOFF = 0.2
"""Longest pause in seconds before the second attempt; it doubles with each further one."""

BACKOFF_LIMIT = 5.0

RESEND = 60.0
"""Seconds after which alerts are sent to Alertmanager again; it forgets them after five minutes."""

RESEND_RESOLVED = 300.0
"""Seconds for which a resolved alert is sent again (docs/alerts_api.md of Alertmanager: "up to 5 minutes")."""

_KEPT = 200
"""Characters of a server's answer that an error message includes."""


class WebhookHandler(RunnerHandler):
    """``format`` is "agentres" (the event itself) or "alertmanager"; ``retries`` follow the first attempt."""

    def __init__(
        self,
        url: str,
        format: str = "agentres",
        retries: int = 3,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError("the URL must start with http:// or https:// and name a host")
        if format not in ("agentres", "alertmanager"):
            raise ValueError(f"no format {format!r}: agentres or alertmanager")
        self._request = {
            "url": url,
            "retries": retries,
            "headers": {
                "Content-Type": "application/json",
                "User-Agent": f"agentres/{__version__}",
                **headers,
            },
        }
        self._alertmanager = AlertmanagerAlerts() if format == "alertmanager" else None
        super().__init__(PythonWork(post))

    def deliver(self, event: Event, timeout: float) -> None:
        if self._alertmanager is None:
            self._post(event, timeout)
            return
        alerts = self._alertmanager.take(event)
        self._post(alerts, timeout)
        self._alertmanager.heard({event["id"]})

    def due(self) -> float | None:
        return None if self._alertmanager is None else self._alertmanager.due()

    def refresh(self, timeout: float) -> Iterable[tuple[str, str | None]]:
        """Send all current alerts again; report those that first arrive now, or all firing ones on failure."""
        assert self._alertmanager is not None
        alerts = self._alertmanager.again()
        if not alerts:
            return ()
        try:
            self._post(alerts, timeout)
        except NotDelivered as error:
            return [(alert, str(error)) for alert in self._alertmanager.firing()]
        return [(alert, None) for alert in self._alertmanager.heard(self._alertmanager.firing())]

    def _post(self, content: Any, timeout: float) -> None:
        # A little less than the time limit, so that the reason is reported, not a kill.
        deadline = time.monotonic() + timeout * 0.95
        body = json.dumps(content).encode()
        self._runner.ask({**self._request, "body": body, "deadline": deadline}, timeout)


class AlertmanagerAlerts:
    """The alerts to send to Alertmanager again: it forgets what is not repeated.

    Alertmanager identifies an alert by its labels, and ``severity`` is a label, as routes and inhibitions
    expect.  So one alert of ours is one alert there for each severity it had.  A change of severity ends
    one and starts the other, in one request.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Event]] = {}  # by alert, by severity
        self._ended: dict[str, float] = {}
        self._unheard: set[str] = set()
        self._again = 0.0

    def take(self, event: Event) -> list[Event]:
        """Return what to post for this event."""
        if not self._of:
            self._again = time.monotonic() + RESEND
        alerts = self._of.setdefault(event["id"], {})
        ended = event["resolved"] is not None
        now = event["resolved"] if ended else event["updated"]
        for alert in alerts.values():
            alert.setdefault("endsAt", _date(now))
        severity = event["severity"]
        since = event["raised"] if event["event"] == "raised" else event["updated"]
        started = _date(since)
        # The severity has not changed: it is the same alert, so it keeps its start.
        before = alerts.pop(severity, None)
        if before is not None and before["endsAt"] == _date(now):
            started = before["startsAt"]
        alerts[severity] = {
            "labels": _labels(event),
            "annotations": _annotations(event),
            "startsAt": started,
        }
        if ended:
            alerts[severity]["endsAt"] = max(started, _date(now))
            self._ended[event["id"]] = time.monotonic()
        self._unheard.add(event["id"])
        return list(alerts.values())

    def due(self) -> float | None:
        return max(0.0, self._again - time.monotonic()) if self._of else None

    def again(self) -> list[Event]:
        now = time.monotonic()
        self._again = now + RESEND
        for alert, ended in list(self._ended.items()):
            if now - ended > RESEND_RESOLVED:
                del self._ended[alert], self._of[alert]
                self._unheard.discard(alert)
        return [alert for alerts in self._of.values() for alert in alerts.values()]

    def firing(self) -> set[str]:
        return self._of.keys() - self._ended.keys()

    def heard(self, alerts: set[str]) -> set[str]:
        """Note that Alertmanager has these; return those that it did not have before."""
        first = self._unheard & alerts
        self._unheard -= alerts
        return first


def _labels(event: Event) -> dict[str, str]:
    """Return the labels, which identify the alert: of what updates change, only the severity."""
    return {
        "alertname": event["rule"],
        "agent": event["agent"],
        "of": event["of"],
        "severity": event["severity"].lower(),
        "resource": event["resource"],
        "instance": event["host"],
    }


def _annotations(event: Event) -> dict[str, str]:
    said = ("id", "run", "value", "limit", "threshold", "unit")
    return {"summary": event["message"]} | {
        key: str(event[key]) for key in said if event[key] is not None
    }


def _date(time: float) -> str:
    """Format as RFC 3339, in UTC with milliseconds: such dates also sort as text."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: object) -> None:
        """Refuse: a redirected POST would become a GET without the alert, or go to an unknown server."""


def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener(): that also opens file: and ftp:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _NoRedirect(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def post(asked: dict[str, Any]) -> None:
    """Make one request, with retries if they may help, until ``asked["deadline"]`` (monotonic).  NotDelivered."""
    request = urllib.request.Request(
        asked["url"], data=asked["body"], headers=asked["headers"], method="POST"
    )
    opener = _opener()
    deadline = asked["deadline"]
    for attempt in range(asked["retries"] + 1):
        last = attempt == asked["retries"]
        left = deadline - time.monotonic()
        wanted = 0.0
        try:
            # Half of the time left, so that there is another attempt if the server hangs once.
            with opener.open(request, timeout=max(0.01, left if last else left / 2)):
                return
        except urllib.error.HTTPError as error:
            with error:
                failure = _answer(error)
                if error.code != 429 and error.code < 500:
                    raise NotDelivered(failure) from error
                wanted = _retry_after(error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            failure = printable(f"{type(reason).__name__}: {reason}")
        attempts = f"{attempt + 1} attempt{'s' if attempt else ''}"
        pause = max(wanted, min(BACKOFF_LIMIT, BACKOFF * 2**attempt) * random.uniform(0.5, 1))
        if last or time.monotonic() + pause >= deadline:
            later = f", to be tried again after {wanted:.0f} s" if wanted and not last else ""
            raise NotDelivered(f"{failure} ({attempts}{later})")
        time.sleep(pause)


def _answer(error: urllib.error.HTTPError) -> str:
    """Return ``HTTP 400 Bad Request: the answer's first line``."""
    said = f"HTTP {error.code} {error.reason}"
    if 300 <= error.code < 400:
        return printable(f"{said}: redirects are not followed")
    try:
        lines = error.read(4096).decode(errors="replace").strip().splitlines()
    except (OSError, http.client.HTTPException):  # the status says enough
        lines = []
    return printable(f"{said}: {lines[0][:_KEPT]}" if lines else said)


def _retry_after(value: str | None) -> float:
    """Parse Retry-After, a number or an HTTP date, into seconds from now; 0 for anything else."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, date.timestamp() - time.time())
