"""Settings of all unit tests: they run anywhere, in seconds, and leave nothing behind; and fixtures of several files."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from configured import Write
from dispatched import DEADLINE, Pipe
from fake_agent import MEMORY, Clock, Life, Start
from fake_slice import MIB, FakeSlice, keep_attributes
from hypothesis import settings

from agentres.companion.handlers import webhook
from agentres.kernel import host
from agentres.model.limits import Limits
from agentres.store import Store

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


# Configuration.


@pytest.fixture
def write_config(tmp_path: Path) -> Write:
    def write(text: str, name: str = "agentres.toml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    return found


# The history.


@pytest.fixture
def history_path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "history.db")


@pytest.fixture
def store(history_path: str) -> Iterator[Store]:
    store = Store.open(history_path)
    yield store
    store.close()


# Handlers.


@pytest.fixture
def handlers_pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.out, made.into):
        try:
            os.close(fd)
        except OSError:
            pass


@pytest.fixture
def quick_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy, and tried again at once."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(webhook, "BACKOFF", 0.02)


@pytest.fixture
def fake_journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "journal"))
        made.settimeout(DEADLINE)
        yield made


# Agents with elastic limits.


@pytest.fixture
def boot_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "clock_gettime", lambda _: made.now)
    return made


@pytest.fixture
def host_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    """A host of 2000 MiB, of which agents may have half."""
    keep_attributes(tmp_path, monkeypatch)
    monkeypatch.setattr(host, "memory", lambda: 2000 * MIB)
    return FakeSlice(tmp_path)


@pytest.fixture
def start_agent(host_slice: FakeSlice, boot_clock: Clock) -> Iterator[Start]:
    lives = []

    def make(name: str = "a", limits: Limits | None = None, **named: Any) -> Life:
        limits = limits or Limits(memory=256 * MIB, ranges=MEMORY)
        lives.append(Life(host_slice, name, limits, **named))
        return lives[-1]

    yield make
    for life in lives:
        life.close()
