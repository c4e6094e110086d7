"""The standard library's ``signal``, with plain numbers: its enums would take a twentieth of a launch, and stay in memory."""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import *  # noqa: F403
else:
    try:
        from _signal import *  # noqa: F403 -- what ``signal`` wraps, since Python 3.5
    except ImportError:
        from signal import *  # noqa: F403


def name(number: int) -> str:
    """Return a signal's name (signal(7)); empty: it has none."""
    # Some have two, as SIGIOT is SIGABRT.
    return min((key for key, value in globals().items() if key[:3] == "SIG" and key[3] != "_" and value == number), default="")  # fmt: skip
