"""Timers, descriptors, and signals that tell who sent them."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentres
from agentres.kernel.loop import Loop
from agentres.kernel.signalfd import Signal, Signals


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


# Timers and descriptors.


def test_timers_that_are_due_are_called_in_the_order_of_their_deadlines(loop: Loop) -> None:
    called: list[str] = []
    now = time.monotonic()
    for name, deadline in {"third": now - 1, "first": now - 3, "second": now - 2}.items():
        loop.call_at(deadline, lambda name=name: called.append(name))  # type: ignore[misc]
    loop.tick()
    assert called == ["first", "second", "third"]


def test_timers_of_one_deadline_are_called_in_the_order_they_were_set(loop: Loop) -> None:
    called: list[int] = []
    for number in range(5):
        loop.call_at(0.0, lambda number=number: called.append(number))  # type: ignore[misc]
    loop.tick()
    assert called == list(range(5))


def test_a_timer_is_called_once(loop: Loop, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    loop.call_at(0.0, lambda: called.append("timer"))
    loop.watch(pipe[1], lambda: called.append("pipe"), select.EPOLLOUT)
    loop.tick()
    loop.tick()
    assert called.count("timer") == 1


def test_a_timer_that_a_timer_sets_for_now_is_called_in_the_same_turn(loop: Loop) -> None:
    called: list[str] = []
    loop.call_at(0.0, lambda: loop.call_at(0.0, lambda: called.append("inner")))
    loop.tick()
    assert called == ["inner"]


def test_a_turn_lasts_until_the_first_timer(loop: Loop) -> None:
    called: list[float] = []
    deadline = time.monotonic() + 0.01
    loop.call_at(deadline, lambda: called.append(time.monotonic()))
    loop.call_at(deadline + 3600, lambda: called.append(0.0))
    while not called:
        loop.tick()
    assert len(called) == 1
    assert called[0] >= deadline


def test_a_ready_descriptor_does_not_wait_for_a_timer(loop: Loop, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    loop.call_at(time.monotonic() + 3600, lambda: called.append("timer"))
    loop.watch(pipe[0], lambda: called.append("pipe"))
    os.write(pipe[1], b"x")
    loop.tick()
    assert called == ["pipe"]


def test_a_timer_that_is_due_again_at_once_keeps_no_event_waiting(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    called: list[str] = []

    def again() -> None:
        called.append("timer")
        loop.call_at(time.monotonic(), again)

    again()
    loop.watch(pipe[0], lambda: called.append("pipe"))
    os.write(pipe[1], b"x")
    loop.tick()
    assert called[:3] == ["timer", "pipe", "timer"]


@pytest.mark.parametrize("wait", [2**31 / 1000, 1e10, 1e20, float("inf")])
def test_a_timer_may_be_further_away_than_epoll_can_wait(
    loop: Loop, pipe: tuple[int, int], wait: float
) -> None:
    called: list[str] = []
    loop.call_at(time.monotonic() + wait, lambda: called.append("timer"))
    loop.watch(pipe[1], lambda: called.append("pipe"), select.EPOLLOUT)
    loop.tick()
    assert called == ["pipe"]


def test_a_timer_that_is_not_due_after_a_turn_takes_another(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() / 2)  # each wait ends before its time
    called: list[float] = []
    deadline = time.monotonic() + 0.02
    loop.call_at(deadline, lambda: called.append(time.monotonic()))
    loop.tick()
    assert called == [] or called[0] >= deadline
    while not called:
        loop.tick()
    assert called[0] >= deadline


def test_only_the_descriptor_that_is_ready_calls_back(loop: Loop, pipe: tuple[int, int]) -> None:
    called: list[str] = []
    other = os.pipe()
    loop.watch(pipe[0], lambda: called.append("ready"))
    loop.watch(other[0], lambda: called.append("silent"))
    os.write(pipe[1], b"x")
    loop.tick()
    assert called == ["ready"]
    for end in other:
        os.close(end)


def test_urgent_events_are_told_apart_from_data(loop: Loop, pipe: tuple[int, int]) -> None:
    # Out-of-band data is POLLPRI, as the notification of a control file is.
    called: list[str] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sender,
        server.accept()[0] as receiver,
    ):
        loop.watch(receiver.fileno(), lambda: called.append("urgent"), select.EPOLLPRI)
        loop.watch(pipe[0], lambda: called.append("pipe"))
        sender.sendall(b"plain")
        assert select.select([receiver], [], [], 10)[0]
        os.write(pipe[1], b"x")
        loop.tick()
        assert called == ["pipe"]
        os.read(pipe[0], 1)
        sender.send(b"!", socket.MSG_OOB)
        loop.tick()
        assert called == ["pipe", "urgent"]


# Signals.


HEARD = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMAX}


def raise_here(number: int) -> None:
    """To this very thread: another one, which has not blocked it, would be ended by it."""
    signal.pthread_kill(threading.get_ident(), number)


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    made = Signals(HEARD)
    yield made
    while made.read():  # what is left would end the test run
        pass
    made.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_without_a_signal_nothing_is_read(signals: Signals) -> None:
    assert signals.read() == []


def test_a_signal_from_a_process_is_read_as_sent(signals: Signals) -> None:
    raise_here(signal.SIGUSR1)
    assert signals.read() == [Signal(signal.SIGUSR1, sent=True)]
    assert signals.read() == []


def test_signals_that_came_together_are_read_together(signals: Signals) -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
        raise_here(number)
    assert {came.number for came in signals.read()} == {signal.SIGUSR1, signal.SIGUSR2}


def test_a_signal_wakes_the_loop(signals: Signals, loop: Loop) -> None:
    came: list[Signal] = []
    loop.watch(signals.fd, lambda: came.extend(signals.read()))
    raise_here(signal.SIGUSR2)
    loop.tick()
    assert came == [Signal(signal.SIGUSR2, sent=True)]


def test_a_real_time_signal_is_read_by_its_number(signals: Signals) -> None:
    raise_here(signal.SIGRTMAX)
    assert signals.read() == [Signal(signal.SIGRTMAX, sent=True)]


# The session leader of a new terminal tells each signal that it reads.
LISTENER = """
import fcntl, select, signal, sys, termios
from agentres.kernel.signalfd import Signals
heard = [signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH, signal.SIGHUP]
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
signals = Signals(heard)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
print("ready", flush=True)
select.select([signals.fd], [], [], 30)
print(*[f"{came.number}:{came.sent}" for came in signals.read()], flush=True)
"""


def in_a_terminal() -> tuple[int, subprocess.Popen[str]]:
    """The master's descriptor, and a process that listens for signals in the foreground of the slave."""
    master, slave = os.openpty()
    source = str(Path(agentres.__file__).parents[1])
    listener = subprocess.Popen(
        [sys.executable, "-c", LISTENER],
        stdin=slave,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    os.close(slave)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    return master, listener


@pytest.mark.parametrize(
    ("key", "number"),
    [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT), (b"\x1a", signal.SIGTSTP)],
)
def test_a_key_at_the_terminal_is_not_sent_by_a_process(key: bytes, number: signal.Signals) -> None:
    master, listener = in_a_terminal()
    os.write(master, key)
    assert listener.communicate(timeout=60)[0].split() == [f"{int(number)}:False"]
    os.close(master)


def test_a_new_window_size_is_not_sent_by_a_process() -> None:
    master, listener = in_a_terminal()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
    assert listener.communicate(timeout=60)[0].split() == [f"{int(signal.SIGWINCH)}:False"]
    os.close(master)


def test_a_terminal_that_hangs_up_is_not_a_process_that_sends_sighup() -> None:
    master, listener = in_a_terminal()
    os.close(master)
    assert f"{int(signal.SIGHUP)}:False" in listener.communicate(timeout=60)[0].split()


def test_a_process_that_sends_sigint_in_a_terminal_is_one() -> None:
    master, listener = in_a_terminal()
    listener.send_signal(signal.SIGINT)
    assert listener.communicate(timeout=60)[0].split() == [f"{int(signal.SIGINT)}:True"]
    os.close(master)
