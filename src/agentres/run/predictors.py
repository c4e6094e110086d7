"""First limits by a predictor of another package, if the configuration names one: ``[scaling] predictor = "NAME"``.

A predictor is a callable that an installed package registers in the entry point group
``agentres.predictors``:

    [project.entry-points."agentres.predictors"]
    mine = "my_package.module:predict"

It is called once for a run that has ranges as limits, with a dict of plain values:

==============  ====================================================================================
``schema``      1; it rises when a key changes its meaning or is removed
``key``         whose history it is: ``name:NAME``, or ``command:COMMAND ARGUMENT`` where no name was given
``command``     the words of the command
``now``         unix seconds
``ranges``      limit -> [least, most]: ``memory`` (bytes), ``cpu`` (cores), ``pids``
``history``     what earlier runs used, or None
``builtin``     limit -> what the built-in prediction starts the run with, as far as it knows
==============  ====================================================================================

``history`` has ``runs``, ``capped`` and ``ooms`` (counts), ``last`` (unix seconds), and ``use`` and ``held``: limit ->
list of [from, to, weight], what was used and what counts as needed where a limit held the run
(:mod:`agentres.policy.prediction`).

It returns a dict: limit -> what to start with, for limits in ``ranges``; for those that it leaves out the
built-in prediction stands.  A value outside of the range is replaced by the nearer end.

It runs in a process of its own, as the user who runs agentres, and has :data:`TIMEOUT` seconds, its import
included.  Its stdin is /dev/null, and so is what it prints to.  After an exception, an invalid answer (no
dict, a limit that is not asked for, no number, NaN, 0 or below) or a timeout the built-in prediction stands,
with one line of warning.
"""

from __future__ import annotations

import marshal
import math
import os
import select
import sys

from agentres.kernel import signal
from agentres.model.errors import AgentresError, describe, printable, reason
from agentres.model.record import TYPE_CHECKING
from agentres.policy.alerts import show
from agentres.policy.histogram import SCALES
from agentres.policy.prediction import Forecast, Prediction, predict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from agentres.model.limits import Range
    from agentres.policy.prediction import Profile
    from agentres.policy.settings import Settings

ENTRY_POINTS = "agentres.predictors"

TIMEOUT = 5.0
"""Seconds from the start of the predictor's process to its answer."""

SCHEMA = 1

_MOST = 1 << 16
"""Bytes of an answer, or of an error, that are read."""


class PredictorFailed(AgentresError):
    """There is no answer, or an invalid one; the message says why, in one line."""


def first_limits(
    settings: Settings,
    profile: Profile | None,
    key: str,
    command: Sequence[str],
    bounds: Mapping[str, Range],
    now: float,
    warn: Callable[[str], None],
) -> Prediction | None:
    """Return what the next run of ``key`` starts with, for the limits in ``bounds``; None: nothing is known.

    ``profile`` is what the history knows about ``key``.  ``warn`` gets a line if the predictor is ignored.
    """
    bounds = {resource: between for resource, between in bounds.items() if resource in SCALES}
    builtin = None
    if profile is not None:
        builtin = predict(profile, now, bounds, settings.prediction)
    if not settings.predictor or not bounds:
        return builtin
    known = {} if builtin is None else {f.resource: f.first for f in builtin.forecasts}
    question = {
        "schema": SCHEMA,
        "key": key,
        "command": list(command),
        "now": now,
        "ranges": {resource: [range.least, range.most] for resource, range in bounds.items()},
        "history": None if profile is None else to_plain(profile),
        "builtin": known,
    }
    try:
        answer = ask(settings.predictor, question)
    except PredictorFailed as failure:
        warn(f"predictor {settings.predictor}: {failure}; it is ignored")
        return builtin
    return _over(builtin, profile, answer, bounds, settings.predictor)


def to_plain(profile: Profile) -> dict[str, Any]:
    """Return the profile as predictors and JSON have it."""
    plain: dict[str, Any] = {
        name: getattr(profile, name) for name in ("runs", "capped", "ooms", "last")
    }
    for kind in ("use", "held"):
        histograms = getattr(profile, kind)
        plain[kind] = {
            resource: [list(bucket) for bucket in histogram.buckets()]
            for resource, histogram in histograms.items()
        }
    return plain


def _over(
    builtin: Prediction | None,
    profile: Profile | None,
    answer: Mapping[str, float],
    bounds: Mapping[str, Range],
    name: str,
) -> Prediction | None:
    """Return the built-in prediction, overridden by the predictor's answer."""
    forecasts = {} if builtin is None else {f.resource: f for f in builtin.forecasts}
    for resource, wanted in answer.items():
        least, most = bounds[resource].least, bounds[resource].most
        scale = SCALES[resource]
        rounded = round(math.ceil(wanted / scale.grain - 1e-9) * scale.grain, 2)
        first = min(max(rounded, least), most)
        why = f"{resource} {show(first, scale.unit)}: says the predictor {name}"
        if first != rounded:
            end = "least" if first == least else "most"
            why += f"; {show(wanted, scale.unit)} is beyond the {end} that it may have"
        forecasts[resource] = Forecast(resource, wanted, wanted, first, least, most, 0.0, why)
    if not forecasts:
        return None
    ordered = tuple(forecasts[resource] for resource in SCALES if resource in forecasts)
    if builtin is not None:
        return builtin.but(forecasts=ordered)
    runs, last = (0, 0.0) if profile is None else (profile.runs, profile.last)
    return Prediction(ordered, runs, 0.0, last)


def checked(answer: object, ranges: Mapping[str, object]) -> dict[str, float]:
    """Return the answer if it is valid; PredictorFailed."""
    # Duck typing: a mapping or numbers of another library will do.
    if not hasattr(answer, "items"):
        raise PredictorFailed(f"expected a dict, got {type(answer).__name__}")
    limits = {}
    for resource, value in answer.items():
        if not isinstance(resource, str) or resource not in ranges:
            known = ", ".join(ranges)
            raise PredictorFailed(f"expected limits among {known}, got {str(resource)[:40]!r}")
        number = math.nan
        if not isinstance(value, (bool, str, bytes)):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                pass
        if not 0 < number < math.inf:
            raise PredictorFailed(f"{resource}: expected a number above 0, got {str(value)[:40]!r}")
        limits[resource] = number
    return limits


def ask(name: str, question: Mapping[str, Any], timeout: float = TIMEOUT) -> dict[str, float]:
    """Return the answer of the predictor of that name; PredictorFailed.

    No process that it starts outlives this call, unless it leaves the process group.
    """
    files: list[int] = []
    try:
        for what in ("question", "answer", "error"):
            files.append(os.memfd_create(f"agentres-{what}"))
        given, out, err = files
        os.write(given, marshal.dumps(dict(question)))
        os.lseek(given, 0, os.SEEK_SET)
        status = _run(name, files, timeout)
        said = os.pread(err, _MOST, max(0, os.fstat(err).st_size - _MOST)).decode(errors="replace")
        answer = os.pread(out, _MOST, 0).decode(errors="replace")
    except OSError as error:  # no more processes, descriptors, memory
        raise PredictorFailed(f"cannot be run: {reason(error)}") from error
    finally:
        for fd in files:
            os.close(fd)
    *lines, last = answer.splitlines() or [""]
    if status or last != _END:
        raise PredictorFailed(_ending(status, said))
    limits: dict[str, float] = {}
    for line in lines:
        resource, _, number = line.partition(" ")
        try:
            limits[resource] = float(number)
        except ValueError:  # the predictor itself wrote to that file
            raise PredictorFailed("its process gave no answer that can be read") from None
    return checked(limits, question["ranges"])


def _ending(status: int | None, said: str) -> str:
    """Say why there is no answer."""
    lines = said.splitlines()
    if status in (_FAILED, None) and lines:
        return lines[-1]
    return f"ended with status {status}" if status else "its process ended without an answer"


_END = "."
"""The last line of an answer."""

_FAILED = 3
"""The exit status of a process that gives the reason in the last line of its stderr."""


def _run(name: str, files: Sequence[int], timeout: float) -> int | None:
    """Run the predictor's process; return its exit status, negative for a signal; None: not known."""
    pid = os.posix_spawn(
        sys.executable,
        # -P: import no modules from the working directory.
        [sys.executable, "-P", "-m", "agentres.run.predictors", name, str(math.ceil(timeout) + 1)],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(files)],
        setsid=True,  # keeps the terminal's Ctrl-C away, and lets us kill the whole process group
        setsigmask=[],
    )
    late, status = False, None
    try:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            late = not poll.poll(timeout * 1000)
        finally:
            os.close(pidfd)
    finally:
        # A program that waits for all its children may have reaped it before us.
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            pass
    if late:
        raise PredictorFailed(f"took longer than {timeout:g} s and was killed")
    return status


# In the predictor's process.


def main() -> NoReturn:
    """Put the question on stdin to the named predictor; write its answer to stdout, a line for each limit."""
    _, name, seconds = sys.argv
    signal.alarm(int(seconds))  # if our parent is gone, which would kill us
    with open(os.dup(0), "rb") as stdin:
        question = marshal.load(stdin)
    out, err = os.dup(1), os.dup(2)
    # What it prints is no part of the answer, and would fill the memory of the memfds.
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for fd in (0, 1, 2):
            os.dup2(nothing.fileno(), fd)
    status = 0
    try:
        answer = checked(_load(name)(question), question["ranges"])
        with open(out, "w") as stdout:
            stdout.writelines(f"{resource} {value!r}\n" for resource, value in answer.items())
            stdout.write(f"{_END}\n")
    except PredictorFailed as error:
        status = _tell(err, str(error))
    except BaseException as error:  # a predictor may raise anything
        status = _tell(err, describe(error))
    # _exit: a thread that the predictor started must not keep us from ending.
    os._exit(status)


def _load(name: str) -> Callable[[Any], object]:
    from importlib.metadata import entry_points

    points = list(entry_points(group=ENTRY_POINTS, name=name))
    if not points:
        raise PredictorFailed(f"no entry point of this name in the group {ENTRY_POINTS}")
    found = points[0].load()
    if not callable(found):
        raise PredictorFailed(f"{points[0].value} is not callable")
    function: Callable[[Any], object] = found
    return function


def _tell(err: int, line: str) -> int:
    shown = printable(line)
    os.write(err, f"\n{shown[:4000]}\n".encode(errors="replace"))
    return _FAILED


if __name__ == "__main__":
    main()
