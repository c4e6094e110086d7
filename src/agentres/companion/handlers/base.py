"""What all handlers share: the interface to deliver an event, and the error when that fails.

An event is a dict of primitives; its times are unix seconds.  docs/handlers.md lists its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from agentres.model.errors import AgentresError

if TYPE_CHECKING:
    from collections.abc import Iterable

    Event = dict[str, Any]

# fmt: off
EVENT_KEYS = frozenset((
    "schema", "event", "id", "run", "agent", "of", "rule", "resource", "unit", "severity", "value",
    "limit", "threshold", "breached", "raised", "updated", "resolved", "message", "repeats", "host",
))
_VARIABLES = ("id", "event", "agent", "severity", "resource", "rule", "value", "limit", "message")
# fmt: on


class NotDelivered(AgentresError):
    """A handler did not deliver an alert; the message is the reason, in one line."""


class Deliverer(Protocol):
    """Delivers one handler's events.  ``deliver`` is called from one thread only, ``abort`` from any."""

    def deliver(self, event: Event, timeout: float) -> None:
        """Deliver the event within ``timeout`` seconds, else raise NotDelivered."""

    def due(self) -> float | None:
        """Return the seconds until ``refresh`` is to be called; None: never."""

    def refresh(self, timeout: float) -> Iterable[tuple[str, str | None]]:
        """Send what still holds again; return (alert id, error or None) for each to report."""

    def abort(self) -> None:
        """Make a ``deliver`` that is under way fail soon."""

    def close(self) -> None:
        """End processes and close descriptors; nothing is delivered after that."""


class Once:
    """Base of a deliverer that sends each event once and holds no resources."""

    def due(self) -> float | None:
        return None

    def refresh(self, timeout: float) -> Iterable[tuple[str, str | None]]:
        return ()

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def variables(event: Event) -> dict[str, str]:
    """Return the event as ``AGENTRES_ALERT_*``: a command's environment, the journal's fields."""
    named = {key: event.get(key) for key in _VARIABLES}
    return {f"AGENTRES_ALERT_{key.upper()}": _text(value) for key, value in named.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)
