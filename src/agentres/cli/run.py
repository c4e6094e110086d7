"""``agentres run``: from the parsed line to the exit status; imports only the stdlib and the core."""

from __future__ import annotations

import os
import sys

from agentres import __version__
from agentres.cli.stderr import say
from agentres.kernel import host, signal
from agentres.model.errors import EXIT_AGENTRES, AgentresError, UsageError, reason
from agentres.model.limits import SHARE
from agentres.model.paths import configuration, daemon_socket
from agentres.model.record import TYPE_CHECKING
from agentres.run import agent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from agentres.daemon.submission import Submission
    from agentres.kernel.terminal import StatusLine
    from agentres.policy.settings import Settings
    from agentres.run.explain import Outcome
    from agentres.run.options import RunOptions, Values

_NOT_BESIDE = ("agentres.run.options",)
"""Modules to unload once the agent runs, since only the start needs them.

None that the end of a run needs: they would be read again from files that an upgrade may have replaced.
"""


def run(values: Values, command: Sequence[str]) -> int:
    """Run the command and return the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for a Ctrl-C this early
    try:
        configured = _configured(values)
        options = _understand(values, command, configured)
        return _run(options, values, command, configured)
    except AgentresError as error:
        say(str(error))
        return error.exit_code
    except OSError as error:  # the host has run out of processes, descriptors or memory
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{reason(error)}")
        return EXIT_AGENTRES


def _understand(values: Values, command: Sequence[str], configured: Settings | None) -> RunOptions:
    from agentres.run.options import understand

    return understand(values, command, host.read(), configured, os.environ)


def _run(
    options: RunOptions, values: Values, command: Sequence[str], configured: Settings | None
) -> int:
    if options.verbose:
        import logging  # here: other runs need not load it

        logging.basicConfig(level=logging.DEBUG, format="agentres: %(message)s")
        say(_limits_line(options.request))
    tell = (lambda line: None) if options.quiet else say
    status = _status(options)
    if status is not None:
        tell = _above(status)
    file, events = None, -1
    try:
        if options.summary is not None:
            from agentres.cli.outputs import open_summary

            file = open_summary(options.summary)
        if options.events is not None:
            from agentres.cli.outputs import open_events

            events = open_events(options.events)
        if (daemon := _daemon(options)) is not None:
            asked = _submission(options, values, command, configured, status is not None)
            return _leased(
                daemon, asked, options, tell=tell, file=file, status=status, events=events
            )
        request = options.request.but(
            named="name" in values,
            philosophy=options.philosophy,
            priority=options.priority,
            wait=options.wait,
            share=configured.budget_share if configured else SHARE,
            settings=lambda: _when_needed(options, configured),
            events=events,
        )
        outcome = agent.run(request, tell) if status is None else _drawn(request, tell, status)
        from agentres.run import explain

        for line in explain.summary(outcome):
            tell(line)
        if file is not None:
            from agentres.cli.outputs import write_summary

            write_summary(file, options.summary or "", explain.as_json(outcome, __version__))
        return outcome.exit_code
    finally:
        if file is not None:
            os.close(file)
        if events >= 0:
            os.close(events)


def _limits_line(request: agent.Request) -> str:
    from agentres.run.explain import limits_line

    return f"{request.name}: {limits_line(request.limits)}"


def _status(options: RunOptions) -> StatusLine | None:
    """Return the status line for ``--progress``; None if it was not asked for or is not possible."""
    if not options.progress:
        return None
    from agentres.kernel.terminal import StatusLine

    return StatusLine() if StatusLine.possible() else None


def _above(status: StatusLine) -> Callable[[str], None]:
    """Return what writes a line to stderr above the status line."""

    def tell(line: str) -> None:
        status.clear()
        say(line)

    return tell


def _drawn(request: agent.Request, tell: Callable[[str], None], status: StatusLine) -> Outcome:
    from agentres.run.progress import Progress

    progress = Progress(request.name, status.draw)
    try:
        return agent.run(request.but(started=progress.begin, attach=progress.attach), tell)
    finally:
        progress.close()
        status.clear()


def _daemon(options: RunOptions) -> socket.socket | None:
    """Connect to the daemon that is to supervise the agent; None if none, or with --local.  UsageError."""
    path = daemon_socket()
    found = None
    if not options.local and os.path.exists(path):
        from agentres.daemon import lease

        found = lease.connect(path)
    if found is None and options.detach:
        raise UsageError(f"--detach: no daemon takes requests at {path}", "see agentres daemon")
    return found


def _submission(
    options: RunOptions,
    values: Values,
    command: Sequence[str],
    configured: Settings | None,
    progress: bool,
) -> Submission:
    """What the daemon is asked for; ``progress``: there is a line on a terminal that is to show it."""
    from agentres.daemon.submission import Submission
    from agentres.policy.settings import Settings, to_plain

    if configured is not None or options.quiet:
        configured = _heard(options, configured or Settings())
    if options.request.cwd is None:
        agent.check_cwd()
    umask = os.umask(0)
    os.umask(umask)
    settings = None if configured is None else to_plain(configured)
    if not progress:
        values = {key: value for key, value in values.items() if key != "progress"}
    return Submission(
        __version__, values, list(command), dict(os.environ), umask, settings, options.detach
    )


def _leased(
    daemon: socket.socket,
    asked: Submission,
    options: RunOptions,
    *,
    tell: Callable[[str], None],
    file: int | None,
    status: StatusLine | None,
    events: int,
) -> int:
    """Have the daemon run the agent; return the exit status."""
    from agentres.daemon.lease import Lease

    try:
        draw = None if status is None else status.draw
        result = Lease(daemon, tell, draw, events).run(asked)
    finally:
        if status is not None:
            status.clear()
    if options.detach:
        for line in result.lines:
            print(line)
        sys.stdout.flush()
        return result.exit_code
    for line in result.lines:
        tell(line)
    if file is not None:
        from agentres.cli.outputs import write_summary

        write_summary(file, options.summary or "", result.summary)
    return result.exit_code


def _configured(values: Values) -> Settings | None:
    """Read the configuration; None if there is none, UsageError if it is invalid."""
    environment = dict(os.environ)
    if values.get("config"):
        environment["AGENTRES_CONFIG"] = values["config"]
    if not configuration(environment, os.geteuid()):
        return None
    from agentres.run import configured

    return configured.read(environment, os.geteuid())


def _when_needed(options: RunOptions, configured: Settings | None) -> Settings:
    from agentres.policy.settings import Settings

    return small(_heard(options, configured or Settings()))


def small(settings: Settings) -> Settings:
    """Reduce this process's memory to what it needs while it stays beside the agent; return ``settings``."""
    import functools  # noqa: F401 -- SQLite loads it; its docstrings go with the others'

    from agentres.kernel import frugal

    # The agent keeps its huge pages: it has been forked already.
    frugal.let_go(_NOT_BESIDE)
    frugal.forget_docs()
    frugal.one_heap()
    frugal.huge_pages(allowed=False)
    return settings


def _heard(options: RunOptions, made: Settings) -> Settings:
    """Return the settings without the terminal handlers if --quiet was given."""
    heard = tuple(h for h in made.handlers if not (options.quiet and h.type == "terminal"))
    return made.but(handlers=heard)
