"""The files that ``agentres run`` writes to beside the agent's own: the summary, the events."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from agentres.cli.stderr import say
from agentres.model.errors import UsageError, reason
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_DIGITS = 9
"""Of a descriptor's number, at the most."""


def open_summary(path: str) -> int:
    """Open before the launch: a summary that cannot be written is told while nothing is lost.

    What an earlier run wrote goes at once.  A file that is our stdout or stderr is written through
    that: opened anew it would be written from its start.
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


def write_summary(file: int, path: str, summary: dict[str, Any]) -> None:
    """Write it; a line on stderr where that fails."""
    import json  # here: most have no use for it

    text = json.dumps(summary, indent=2) + "\n"
    try:
        data = text.encode()
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        say(f"--summary {path}: {reason(error)}")


def open_events(given: str) -> int:
    """A descriptor that the caller has opened, or a file at its end, which no program that we start inherits; UsageError."""
    try:
        if given.isascii() and given.isdecimal() and len(given) <= _DIGITS:
            return _ours(int(given))
        # Nobody waits for the reader of a pipe.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return _above_streams(os.open(given, flags, 0o600))
    except OSError as error:
        why = "nobody reads it" if error.errno == errno.ENXIO else reason(error)
        raise UsageError(f"--events {given}: {why}") from error


def _ours(fd: int) -> int:
    """The caller's, for us alone; stdin, stdout and stderr are the agent's, too."""
    if not os.get_inheritable(fd):  # we have opened it ourselves
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError(f"--events {fd}: it is not open for writing")
    if fd <= 2:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.set_inheritable(fd, False)
    return fd


def _above_streams(fd: int) -> int:
    """Where stdin, stdout or stderr is closed, the next file that is opened takes its number."""
    if fd > 2:
        return fd
    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return above
