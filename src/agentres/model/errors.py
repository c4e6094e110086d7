"""Every failure that agentres reports, and its exit status.

    AgentresError                 125
    |-- UsageError                125   a flag or value that makes no sense
    |-- NameTaken                 125   an agent of that name is running
    |-- NoCgroup                  125   no cgroup v2 subtree that we may write
    |-- NotEnforceable            125   limits that were asked for and cannot hold here
    |-- NoRoom                    125   the host's budget has no room for the agent's minimum
    |-- ControlFileError          125   the kernel refused a control file
    |-- SystemdError              125   systemd refused the scope, or did not answer
    |-- SetupError                125   the child failed before the command was started
    |   |-- NotExecutable         126   the command is there and cannot be executed
    |   `-- NotFound              127   no such command
    `-- Interrupted               128+N a signal ended agentres before the command was started

The statuses are those of env(1), timeout(1) and ``docker run``: 125 means that agentres itself failed.
Every message is one line: what, where, and what to do about it.
"""

from __future__ import annotations

import os

#: The time limit ended it.
EXIT_TIMEOUT = 124
#: agentres failed: the command was never started, or its end not seen.
EXIT_AGENTRES = 125
#: The command is there and cannot be executed.
EXIT_NOT_EXECUTABLE = 126
#: There is no such command.
EXIT_NOT_FOUND = 127
#: Signal N ended it.
EXIT_SIGNAL = 128


def exit_status(returncode: int, timed_out: bool) -> int:
    """Return the exit status of ``agentres run``; ``returncode`` is -N for signal N."""
    if timed_out:
        return EXIT_TIMEOUT
    return EXIT_SIGNAL - returncode if returncode < 0 else returncode


def reason(error: OSError) -> str:
    """Return the error's own text, to follow a colon: ``no such file or directory``."""
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]


def printable(text: str) -> str:
    """Return text from outside with unprintable characters escaped: no line breaks, no terminal control sequences."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int) -> str:
    """Return the text, cut to at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable_path(path: str) -> str:
    """Return a cgroup's path, cut to fit a line: an agent that may make cgroups can make it 4096 characters long."""
    text = printable(path)
    return text if len(text) <= 200 else f"…{text[-199:]}"


def describe(error: BaseException) -> str:
    """Return an exception of third-party code as one line, with the place that raised it."""
    import traceback  # here: it is large and rarely needed

    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    try:
        what = str(error)
    except Exception:  # its __str__ fails: show only the type's name
        what = ""
    return printable(f"{type(error).__name__}{': ' if what else ''}{what}{where}")


class AgentresError(Exception):
    """A failure of agentres itself, reported in one line.

    ``remedy`` is what the user can do about it, as an independent clause.
    """

    exit_code = EXIT_AGENTRES

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(AgentresError):
    """A flag, value or combination that makes no sense; nothing was started."""


class NameTaken(AgentresError):
    """An agent of this name is running."""


class NoCgroup(AgentresError):
    """There is no cgroup v2 subtree here that we may write."""


class NotEnforceable(AgentresError):
    """A limit that was asked for cannot be enforced here."""


class NoRoom(AgentresError):
    """The host's budget has no room for the agent's minimum."""


class SystemdError(AgentresError):
    """systemd refused a request or did not answer.

    ``name`` is the D-Bus error name; empty if there was no answer.
    """

    def __init__(self, message: str, remedy: str = "", name: str = "") -> None:
        super().__init__(message, remedy)
        self.name = name


class ControlFileError(AgentresError):
    """Reading or writing a cgroup control file failed.

    ``path`` is the file, ``data`` the text to write (None for a read), ``errno`` the kernel's error
    (0 if the write succeeded but the file reads back another value).
    """

    def __init__(self, path: str, data: str | None, errno: int, detail: str = "") -> None:
        what = "read" if data is None else f"write {data!r} to"
        super().__init__(
            f"cannot {what} {path}: {detail or reason(OSError(errno, os.strerror(errno)))}"
        )
        self.path = path
        self.data = data
        self.errno = errno


class SetupError(AgentresError):
    """The child failed between fork and exec; ``errno`` is the failing call's."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class NotExecutable(SetupError):
    """The command exists but cannot be executed."""

    exit_code = EXIT_NOT_EXECUTABLE


class NotFound(SetupError):
    """There is no such command."""

    exit_code = EXIT_NOT_FOUND


class Interrupted(AgentresError):
    """A signal ended agentres before the command was started."""

    def __init__(self, signo: int) -> None:
        super().__init__(f"interrupted by signal {signo} before the command was started")
        self.exit_code = EXIT_SIGNAL + signo
