"""``agentres run``: from the parsed line to the exit status; stdlib and the core only."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Sequence
from functools import partial

from agentres import __version__, agent, explain
from agentres.cli.options import RunOptions, understand
from agentres.errors import EXIT_AGENTRES, AgentresError, UsageError, reason
from agentres.explain import Outcome
from agentres.kernel import host
from agentres.limits import SHARE
from agentres.paths import configuration
from agentres.record import TYPE_CHECKING

if TYPE_CHECKING:
    from agentres.cli.options import Values
    from agentres.settings import Settings


def run(values: Values, command: Sequence[str]) -> int:
    """Run the command and return what to exit with."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C this early: no traceback
    try:
        configured = _configured(values)
        options = understand(values, command, host.read(), configured)
        return _run(options, "name" in values, configured)
    except AgentresError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:  # the host is short of something: processes, descriptors, memory
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{reason(error)}")
        return EXIT_AGENTRES


def say(line: str) -> None:
    """One line of ours, on stderr: stdout is the agent's."""
    if sys.stderr is None:  # we were started with it closed
        return
    try:
        # What came from outside must neither break the line nor command the terminal.
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        sys.stderr.write(f"agentres: {shown}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or its reader has gone; the exit status still tells
        pass


def _run(options: RunOptions, named: bool, configured: Settings | None) -> int:
    if options.verbose:
        import logging  # here, because of what it costs every other run

        logging.basicConfig(level=logging.DEBUG, format="agentres: %(message)s")
        say(f"{options.request.name}: {explain.limits_line(options.request.limits)}")
    tell = (lambda line: None) if options.quiet else say
    file = None if options.summary is None else _open_summary(options.summary)
    try:
        request = options.request.but(
            named=named,
            philosophy=options.philosophy,
            priority=options.priority,
            wait=options.wait,
            share=configured.budget_share if configured else SHARE,
            settings=partial(_when_needed, options, configured),
        )
        outcome = agent.run(request, tell)
        for line in explain.summary(outcome):
            tell(line)
        if file is not None:
            _write_summary(file, options.summary or "", outcome)
        return outcome.exit_code
    finally:
        if file is not None:
            os.close(file)


def _configured(values: Values) -> Settings | None:
    """What the configuration says, None where there is none; UsageError where it makes no sense.

    pydantic reads it, in a process that ends: it is five times as large as all of this one.
    """
    environment = dict(os.environ)
    if values.get("config"):
        environment["AGENTRES_CONFIG"] = values["config"]
    found = configuration(environment, os.geteuid())
    if not found:
        return None
    import marshal

    from agentres.settings import from_plain

    return from_plain(marshal.loads(_compile(found, environment)))


def _when_needed(options: RunOptions, configured: Settings | None) -> Settings:
    from agentres.settings import Settings

    _keep_to_one_heap()
    made = configured or Settings()
    heard = tuple(h for h in made.handlers if not (options.quiet and h.type == "terminal"))
    return made.but(handlers=heard)


def _keep_to_one_heap() -> None:
    """Have no second one made for the thread that writes the history: it is most of a megabyte."""
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's; musl has but one
        mallopt(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # mallopt(3)


def _compile(files: Sequence[str], environment: dict[str, str]) -> bytes:
    # Not by tempfile: with all that it imports it would stay beside the agent.
    with open(os.memfd_create("out"), "w+b") as out, open(os.memfd_create("err"), "w+b") as err:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "agentres.config", *files],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, err.fileno(), 2),
            ],
        )
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            lines = err.read().decode(errors="replace").splitlines()
            raise UsageError(lines[-1] if lines else f"the configuration cannot be read ({status})")
        return out.read()


def _open_summary(path: str) -> int:
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


def _above_streams(fd: int) -> int:
    """Where stdin, stdout or stderr is closed, the next file that is opened takes its number."""
    if fd > 2:
        return fd
    import fcntl

    above = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return above


def _write_summary(file: int, path: str, outcome: Outcome) -> None:
    import json  # here, for the same reason

    text = json.dumps(explain.as_json(outcome, __version__), indent=2) + "\n"
    try:
        data = text.encode()
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        say(f"--summary {path}: {reason(error)}")
