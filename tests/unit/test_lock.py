"""The lock that supervisors take turns with."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
from fake_slice import FakeSlice, keep_attributes

from agentres.kernel import lock
from agentres.kernel.lock import Lock, Locked


@pytest.fixture(name="slice")
def _slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlice:
    keep_attributes(tmp_path, monkeypatch)
    return FakeSlice(tmp_path / "cgroup", "user.slice/agentres.slice")


@pytest.fixture
def hold(slice: FakeSlice) -> Iterator[Callable[[], int]]:
    """Takes the lock as another supervisor would: a file description of its own."""
    opened: list[int] = []

    def take() -> int:
        opened.append(os.open(slice.path, os.O_RDONLY))
        fcntl.flock(opened[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return opened[-1]

    yield take
    for fd in opened:
        os.close(fd)


def test_the_lock_keeps_others_out_until_it_is_left(
    slice: FakeSlice, hold: Callable[[], int]
) -> None:
    with Lock(str(slice.path)), pytest.raises(BlockingIOError):
        hold()
    hold()


def test_the_lock_is_left_when_something_fails(slice: FakeSlice, hold: Callable[[], int]) -> None:
    with pytest.raises(ZeroDivisionError), Lock(str(slice.path)):
        raise ZeroDivisionError
    hold()


def test_who_holds_it_out_of_malice_is_not_waited_for(
    slice: FakeSlice, hold: Callable[[], int]
) -> None:
    hold()
    before, start = len(os.listdir("/proc/self/fd")), time.monotonic()
    held = r"the lock on .*agentres\.slice is held"
    with pytest.raises(Locked, match=held), Lock(str(slice.path), patience=0.05):
        raise AssertionError("it is held")
    assert time.monotonic() - start < 5.0  # a busy machine's
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_is_had_as_soon_as_it_is_free(
    slice: FakeSlice, hold: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = hold()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            fcntl.flock(fd, fcntl.LOCK_UN)

    monkeypatch.setattr(time, "sleep", sleep)
    with Lock(str(slice.path), patience=60.0):
        assert len(slept) == 3


def test_a_slice_that_is_gone_has_no_lock(slice: FakeSlice) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError), Lock(f"{slice.path}/gone"):
        raise AssertionError("there is nothing to lock")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_without_locks_leaves_nothing_open(
    slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks available"), Lock(str(slice.path)):
        raise AssertionError("there are none")
    assert len(os.listdir("/proc/self/fd")) == before


HOLD = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def holders(path: Path, *seconds: float) -> list[subprocess.Popen[str]]:
    """Processes that stand in line for the lock, and have it for so long each; the first has it."""
    line = [sys.executable, "-S", "-c", HOLD, str(path)]
    started = [
        subprocess.Popen([*line, str(each)], stdout=subprocess.PIPE, text=True) for each in seconds
    ]
    while not any(select.select([p.stdout for p in started], [], [], 30)[0]):
        pytest.fail("nobody has the lock")
    return started


def test_who_is_in_line_waits_for_one_after_another(slice: FakeSlice) -> None:
    # All of them have it for more than twice as long as there is patience with one.
    others = holders(slice.path, *[0.8] * 5)
    try:
        with Lock(str(slice.path), 1.6, in_line=True):
            pass
    finally:
        for other in others:
            other.communicate()


def test_one_that_has_just_let_go_of_it_is_not_the_last_word(
    slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the refusal and the look at who has it, the lock may be free."""
    (other,) = holders(slice.path, 0.5)

    def seen(path: str) -> IO[str]:
        other.communicate()
        return open(path)

    monkeypatch.setattr(lock, "open", seen, raising=False)
    with Lock(str(slice.path), 0.1, in_line=True):
        assert other.poll() == 0


def test_a_holder_that_nobody_sees_is_not_waited_for_for_ever(
    slice: FakeSlice, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stuck,) = holders(slice.path, 1000)
    monkeypatch.setattr(lock, "open", lambda path: StringIO(""), raising=False)
    try:
        with pytest.raises(Locked), Lock(str(slice.path), 0.1, in_line=True):
            pytest.fail("it has the lock")
    finally:
        stuck.kill()
        stuck.communicate()


def test_one_that_keeps_it_is_not_waited_for_for_ever(slice: FakeSlice) -> None:
    (stuck,) = holders(slice.path, 1000)
    try:
        with pytest.raises(Locked), Lock(str(slice.path), 0.1, in_line=True):
            pytest.fail("it has the lock")
    finally:
        stuck.kill()
        stuck.communicate()
