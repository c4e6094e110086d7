"""C library functions that Python does not wrap, with their errors as OSError."""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_PDEATHSIG = 1
_OPENAT2 = 437  # the same on all architectures

HERE = -100
"""AT_FDCWD: the path is absolute, or relative to the working directory."""
NO_XDEV, NO_SYMLINKS, BENEATH = 1, 4, 8
"""RESOLVE_* in openat2(2): enter no other mount, follow no link, stay below the directory."""

LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a C function and return its result.  OSError with errno and the function's name if that is negative."""
    result: int = getattr(LIBC, function)(*arguments)
    if result < 0:
        raise failure(function)
    return result


def failure(function: str) -> OSError:
    """Return the OSError for errno after a call has failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), function)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open a path relative to a directory; return the fd, close-on-exec.  OSError, with the path."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    length = ctypes.c_size_t(len(how))
    fd: int = LIBC.syscall(_OPENAT2, directory, os.fsencode(path), how, length)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (PR_SET_PDEATHSIG(2const)).

    The parent may have ended before this call: compare os.getppid() afterwards with the parent's PID.
    """
    LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
