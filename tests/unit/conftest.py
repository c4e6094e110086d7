"""Settings of all unit tests: they run anywhere, in seconds, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline: a shared machine stalls.  No database: a run must not depend on the one before.
settings.register_profile("anywhere", deadline=None, database=None, max_examples=60)
settings.load_profile("anywhere")


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone where it is about noon: what was an hour ago was today."""
    west = time.gmtime().tm_hour - 12  # POSIX counts zones to the west
    monkeypatch.setenv("TZ", f"NOON{west:+d}")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
