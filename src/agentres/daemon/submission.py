r"""The daemon's protocol, JSON lines: how a client asks for an agent, and what the daemon answers; pure.

    to the daemon      {"agentres": 1, "do": "run", "streams": [0, 1, 2], "events": false}\\n   with descriptors (SCM_RIGHTS):
                       a memfd with the submission, the working directory, the streams that are open, and one for events
                       {"signal": 15, "all": false}\\n      as long as it runs
    from it            {"tell": "NOT enforced: …"}\\n      and {"log": …} where --verbose was asked for
                       {"started": "/sys/fs/cgroup/…"}\\n
                       {"stopped": true}\\n      after SIGTSTP, when the agent has stopped or ignores it
                       {"ended": {"exit_code": 0, "lines": […], "summary": {…}}}\\n
                       {"failed": {"error": "…", "exit_code": 125}}\\n

The connection is a lease: when it ends, so does the agent.
"""

from __future__ import annotations

import json

from agentres.kernel import signal
from agentres.model.control import PROTOCOL, line
from agentres.model.errors import UsageError
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

LARGEST = 8 << 20
"""Most bytes of a submission: execve(2) takes at most 6 MiB."""

LINE_MAX = 4096
"""Most bytes of a line to the daemon."""


class Submission(Record):
    """A requested run: the options' values by key, the command, and what a child inherits from its parent.

    ``settings`` is the client's configuration (:func:`agentres.policy.settings.to_plain`), None for the built-in
    one.  ``version`` is the client's.  ``detach``: the agent goes on after the client hangs up.  ``ignored`` and
    ``blocked`` are signals, which both outlast execve(2).
    """

    version: str
    values: Mapping[str, Any]
    command: Sequence[str]
    environment: Mapping[str, str]
    umask: int
    settings: Mapping[str, Any] | None = None
    detach: bool = False
    ignored: Sequence[int] = ()
    blocked: Sequence[int] = ()


def write(submission: Submission) -> bytes:
    """Encode it for sending."""
    return json.dumps(submission.as_dict()).encode()


def read(data: bytes) -> Submission:
    """Decode and check a submission; UsageError."""
    found = _object(data)
    try:
        made = Submission(**found)
    except TypeError:
        raise UsageError("what was submitted has not the fields of this version") from None
    good = (
        isinstance(made.version, str)
        and _texts(made.command)
        and made.command
        and isinstance(made.values, dict)
        and all(v is True or isinstance(v, str) or _texts(v) for v in made.values.values())
        and isinstance(made.environment, dict)
        and all(isinstance(text, str) for text in made.environment.values())
        and type(made.umask) is int
        and 0 <= made.umask <= 0o777
        and isinstance(made.settings, dict | None)
        and isinstance(made.detach, bool)
        and _signals(made.ignored)
        and _signals(made.blocked)
    )
    if not good:
        raise UsageError("what was submitted makes no sense")
    for text in (*made.command, *made.environment, *made.environment.values()):
        if "\0" in text:
            raise UsageError("a zero byte is in the command or its environment")
    if any("=" in name or not name for name in made.environment):
        raise UsageError("the environment has a variable without a name")
    return made


def request(streams: Sequence[int], events: bool) -> bytes:
    """Return the first line, which is sent with the descriptors."""
    return line(agentres=PROTOCOL, do="run", streams=list(streams), events=events)


def streams(first: bytes) -> tuple[list[int], bool]:
    """Parse the first line: which of 0, 1 and 2 come with it, and whether a descriptor for events follows; UsageError."""
    found = _object(first)
    if found.get("agentres") != PROTOCOL or found.get("do") != "run":
        raise UsageError(f'expected "agentres": {PROTOCOL} and "do": "run"')
    named = found.get("streams")
    sent = [stream for stream in range(3) if isinstance(named, list) and stream in named]
    if named != sent:
        raise UsageError('expected "streams": which of 0, 1 and 2 are sent')
    return sent, found.get("events") is True


def signal_line(number: int, to_all: bool) -> bytes:
    """Return a line that asks to send a signal, to the main process or to its whole process group."""
    return line(signal=number, all=to_all)


def asked_signal(text: bytes) -> tuple[int, bool]:
    """Parse such a line: the signal, and whether it is for the whole process group; UsageError."""
    found = _object(text)
    number = found.get("signal")
    if type(number) is not int or number not in signal.valid_signals():
        raise UsageError('expected "signal": a number')
    return number, found.get("all") is True


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise UsageError("expected JSON") from None
    if not isinstance(found, dict):
        raise UsageError("expected an object")
    return found


def _signals(value: object) -> bool:
    known = signal.valid_signals()
    return isinstance(value, list) and all(type(n) is int and n in known for n in value)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
