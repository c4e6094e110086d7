"""The C library's functions that Python has no name for, and their errors as Python's."""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1

LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """What it returns.  OSError where that is negative, with errno and the function's name."""
    result: int = getattr(LIBC, function)(*arguments)
    if result < 0:
        raise failure(function)
    return result


def failure(function: str) -> OSError:
    """What errno says of the call that has just failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), function)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends (PR_SET_PDEATHSIG(2const)).

    Who calls it compares os.getppid() afterwards with the parent that it knows: that may have ended before.
    """
    LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
