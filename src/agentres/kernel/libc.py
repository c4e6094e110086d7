"""The C library's functions that Python has no name for, and their errors as Python's."""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_PDEATHSIG = 1
_OPENAT2 = 437  # the same on all architectures

HERE = -100
"""AT_FDCWD: what is opened beneath is an absolute path, or one from the working directory."""
NO_XDEV, NO_SYMLINKS, BENEATH = 1, 4, 8
"""RESOLVE_* in openat2(2): no other mount is entered, no link followed, the directory not left."""

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


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """A descriptor, closed at exec, of what is at a path from a directory.  OSError, with the path."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    length = ctypes.c_size_t(len(how))
    fd: int = LIBC.syscall(_OPENAT2, directory, os.fsencode(path), how, length)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends (PR_SET_PDEATHSIG(2const)).

    Who calls it compares os.getppid() afterwards with the parent that it knows: that may have ended before.
    """
    LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
