"""What every handler is made of: how it takes an event, and how it fails.

An event is a dict of primitives, times are unix seconds; docs/handlers.md lists its keys.
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
    """A handler did not take an alert; the message says why, in one line."""


class Deliverer(Protocol):
    """One handler's way out.  ``deliver`` is called from one thread alone, ``abort`` from any."""

    def deliver(self, event: Event, timeout: float) -> None:
        """Hand over the event within ``timeout`` seconds; NotDelivered where that fails."""

    def due(self) -> float | None:
        """Seconds until ``refresh`` wants to be called; None: never."""

    def refresh(self, timeout: float) -> Iterable[tuple[str, str | None]]:
        """Say again what still holds; gives (alert id, error or None) of what there is to report."""

    def abort(self) -> None:
        """Make a ``deliver`` that is under way fail soon."""

    def close(self) -> None:
        """End processes and descriptors; after that nothing is delivered."""


class Once:
    """What a deliverer is that says everything once and holds nothing."""

    def due(self) -> float | None:
        return None

    def refresh(self, timeout: float) -> Iterable[tuple[str, str | None]]:
        return ()

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def variables(event: Event) -> dict[str, str]:
    """An event as ``AGENTRES_ALERT_*``: a command's environment, the journal's fields."""
    named = {key: event.get(key) for key in _VARIABLES}
    return {f"AGENTRES_ALERT_{key.upper()}": _text(value) for key, value in named.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)
