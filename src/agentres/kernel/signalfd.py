"""Signals as events that tell whether a process or the kernel sent them: signalfd(2).

signal(7) handlers do not tell that, and Python's standard library has no signalfd.
"""

from __future__ import annotations

import os
import struct

from agentres.kernel import libc, signal
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

_SI_KERNEL = 0x80
_SIGINFO_SIZE = 128
_SFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


class Signal(Record):
    """A received signal: its number, and whether a process sent it (else the kernel did).

    The terminal's Ctrl-C, Ctrl-Z, hang-up and window size come from the kernel, to the whole
    foreground process group at once.
    """

    number: int
    sent: bool


def stop() -> None:
    """Stop by SIGTSTP, which the caller has blocked, until somebody sends SIGCONT."""
    signal.raise_signal(signal.SIGTSTP)
    let_stop()


def let_stop() -> None:
    """Stop if a SIGTSTP is pending; else do nothing."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


class Signals:
    """signalfd(2): signals that the caller has blocked are read here instead."""

    def __init__(self, numbers: Iterable[int]) -> None:
        bits = sum(1 << (number - 1) for number in numbers)
        # sigset_t is 128 bytes in glibc and musl alike; the kernel reads the first eight.
        sigset = struct.pack("=Q120x", bits)
        self.fd = libc.call("signalfd", -1, sigset, _SFD_FLAGS)

    def read(self) -> list[Signal]:
        """Return the pending signals, without blocking."""
        try:
            data = os.read(self.fd, 16 * _SIGINFO_SIZE)
        except BlockingIOError:
            return []
        found = []
        for at in range(0, len(data), _SIGINFO_SIZE):
            number, _errno, code = struct.unpack_from("=Iii", data, at)
            found.append(Signal(number, sent=code != _SI_KERNEL))
        return found

    def close(self) -> None:
        """Close the file descriptor; the signals stay blocked."""
        os.close(self.fd)
