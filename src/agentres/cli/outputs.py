"""Files that ``agentres run`` itself writes to: the summary and the events."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from agentres.cli.stderr import say
from agentres.model.errors import UsageError, reason
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGITS = 9
"""Most digits of a descriptor's number."""


def open_summary(path: str) -> int:
    """Open the summary before the launch, so that an error shows before anything is lost.  UsageError.

    An earlier run's text is removed at once.  If the file is our stdout or stderr, write through that
    descriptor: a new one would write from the start of the file.
    """
    try:
        file = _above_streams(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        for stream in (1, 2):
            try:
                same = os.path.sameopenfile(file, stream)
            except OSError:  # the stream is closed
                continue
            if same:
                os.close(file)
                return os.dup(stream)
        if stat.S_ISREG(os.fstat(file).st_mode):
            os.ftruncate(file, 0)
        return file
    except OSError as error:
        raise UsageError(f"--summary {path}: {reason(error)}") from error


def write_summary(file: int, path: str, summary: Mapping[str, object]) -> None:
    """Write the summary; say so on stderr if that fails."""
    import json  # here: most runs do not need it

    text = json.dumps(summary, indent=2) + "\n"
    try:
        data = text.encode()
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        say(f"--summary {path}: {reason(error)}")


def open_events(given: str) -> int:
    """Open the caller's descriptor of that number, or a file to append to.  Children do not inherit it.  UsageError."""
    try:
        if given.isascii() and given.isdecimal() and len(given) <= _DIGITS:
            return _ours(int(given))
        # O_NONBLOCK: do not wait for the reader of a FIFO.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return _above_streams(os.open(given, flags, 0o600))
    except OSError as error:
        why = "nobody reads it" if error.errno == errno.ENXIO else reason(error)
        raise UsageError(f"--events {given}: {why}") from error


def _ours(fd: int) -> int:
    """Make the caller's descriptor close-on-exec; duplicate stdin, stdout or stderr, as the agent needs it too."""
    if not os.get_inheritable(fd):  # this process opened it itself
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError(f"--events {fd}: it is not open for writing")
    if fd <= 2:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.set_inheritable(fd, False)
    return fd


def _above_streams(fd: int) -> int:
    """Move a descriptor above 2: if stdin, stdout or stderr is closed, the next open() gets its number."""
    if fd > 2:
        return fd
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return above
