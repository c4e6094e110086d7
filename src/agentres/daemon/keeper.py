"""The daemon's child process for one agent: reads the client's request, and supervises the agent.

It runs as root in the agent's scope and does what ``agentres run`` does (:func:`agentres.run.agent.run`); the client at the
other end of the connection is its terminal.  It does not depend on the daemon, which may end, be killed or be replaced.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import socket
import termios
import time
from array import array
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from agentres import __version__
from agentres.daemon import submission
from agentres.daemon.submission import Submission
from agentres.kernel import caller as callers
from agentres.kernel import delegation, frugal, host, process, registry, signal
from agentres.kernel.caller import Caller
from agentres.kernel.loop import Loop
from agentres.model import control, log
from agentres.model.errors import (
    EXIT_AGENTRES,
    AgentresError,
    Interrupted,
    UsageError,
    reason,
)
from agentres.model.limits import Limits, defaults
from agentres.model.paths import state_directory
from agentres.policy import ceilings
from agentres.policy.settings import Settings, from_plain
from agentres.run import agent, explain, identity, launch
from agentres.run.agent import Behalf
from agentres.run.options import check_kinds, understand, variable
from agentres.run.supervision import Supervision

if TYPE_CHECKING:
    from agentres.model.limits import Host
    from agentres.policy.ceilings import Allowance
    from agentres.run.agent import Request
    from agentres.run.options import RunOptions
    from agentres.run.progress import Progress

PATIENCE = 10.0
"""Seconds that a client has to send its request, or to read a line."""

_UNREAD_MAX = 32 << 10
"""Unread bytes above which a client gets no progress lines.  As the kernel counts them, with its own overhead; a seventh of
what it holds for a socket (net.core.wmem_default)."""

_FDS_MAX = 6
_OURS = ("config", "summary", "events", "quiet", "verbose", "detach", "local")
"""Options that the client handles itself."""

_NEVER_IGNORED = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}

_JOURNAL = "/run/systemd/journal/stdout"
_INFO = 6


class Client:
    """The client at the other end: gets lines, and sends signals to pass on.  A lease ends when it hangs up."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = b""
        self._gone = False
        self._name = ""
        self._detached = False
        self._progress: Progress | None = None

    def begin(self, name: str, detached: bool, progress: bool) -> None:
        """Note what is about to be started, and whether the client wants to see its progress."""
        self._name, self._detached = name, detached
        if progress:
            from agentres.run.progress import Progress

            self._progress = Progress(name, self.draw)

    def send(self, **fields: object) -> None:
        """Send a line; a client that does not read within :data:`PATIENCE` counts as gone."""
        if self._gone:
            return
        try:
            self._sock.settimeout(PATIENCE)
            self._sock.sendall(control.line(**fields))
        except OSError:
            self._gone = True

    def draw(self, line: str) -> None:
        """Send a progress line; drop it if the client does not read (it may be stopped)."""
        unread = array("i", [0])
        fcntl.ioctl(self._sock, termios.TIOCOUTQ, unread)
        if unread[0] < _UNREAD_MAX:
            self.send(progress=line)

    def early(self) -> None:
        """Before the agent starts: raise Interrupted if the client sent an ending signal, AgentresError if it has gone."""
        for number, _ in self.heard():
            if number in launch.ENDING:
                raise Interrupted(number)
        if self._gone and not self._detached:
            raise AgentresError("its client has gone")

    def started(self, path: str) -> None:
        """Send the cgroup of the agent, whose command runs now."""
        self.send(started=path, name=self._name)
        if self._progress is not None:
            self._progress.begin(path)

    def attach(self, loop: Loop, supervision: Supervision) -> None:
        """Pass on the client's signals while the agent runs, and draw its progress."""
        loop.watch(self._sock.fileno(), partial(self._readable, loop, supervision))
        if self._progress is not None:
            self._progress.attach(loop, supervision)

    def heard(self) -> list[tuple[int, bool]]:
        """Return the signals received, each with whether it is for the whole process group; never blocks."""
        # send() sets a timeout, with which recv() would wait for data even with MSG_DONTWAIT.
        self._sock.setblocking(False)
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            found = [submission.asked_signal(line) for line in lines]
        except UsageError:
            data, found = b"", []
        if not data or len(self._received) > submission.LINE_MAX:
            self._gone = True
        return found

    def _readable(self, loop: Loop, supervision: Supervision) -> None:
        for number, to_all in self.heard():
            supervision.pass_on(number, to_all)
            if number == signal.SIGTSTP:
                supervision.when_stopped(partial(self.send, stopped=True))
        if self._gone:
            loop.unwatch(self._sock.fileno())
            if not self._detached:
                supervision.kill("the daemon: its client has gone")


def keep(sock: socket.socket, who: Caller, settings: Settings, running: int) -> NoReturn:
    """Do what the client asks for, then exit.  ``running`` counts its user's agents, this one included."""
    client = Client(sock)
    status = EXIT_AGENTRES
    try:
        os.setsid()
        callers.join_host()
        asked, events = _receive(sock)
        _check_place(who)
        who = callers.look(who)
        # What runs for the user beside the agent must not have the daemon's oom_score_adj.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(who.oom_score_adj))
        _run(client, who, asked, settings, running, events)
        status = 0
    except AgentresError as error:
        client.send(failed={"error": str(error), "exit_code": error.exit_code})
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        client.send(failed={"error": f"{where}{reason(error)}", "exit_code": EXIT_AGENTRES})
    except Exception as error:
        client.send(failed={"error": f"a fault of agentres: {error!r}", "exit_code": EXIT_AGENTRES})
        raise
    os._exit(status)


def _receive(sock: socket.socket) -> tuple[Submission, int]:
    """Read the submission; take over its working directory and streams.  Return it and the events' fd or -1.  UsageError, OSError."""
    first, fds = _first_line(sock)
    streams, with_events = submission.streams(first)
    if len(fds) != 2 + len(streams) + with_events:
        raise UsageError(f"expected {2 + len(streams) + with_events} descriptors")
    events = fds.pop() if with_events else -1
    if with_events:
        os.set_inheritable(events, False)
    body, cwd, *files = fds
    # pread(): the file position is shared with the client.  The size is read once: the file may grow.
    size = os.fstat(body).st_size
    if size > submission.LARGEST:
        raise UsageError(f"expected at most {submission.LARGEST >> 20} MiB")
    asked = submission.read(os.pread(body, size, 0))
    if asked.version != __version__:
        raise AgentresError(
            f"the daemon is of version {__version__}, and this is {asked.version}",
            "restart it: systemctl restart agentres; no agent ends by that",
        )
    os.fchdir(cwd)
    os.umask(asked.umask)
    # For the command to inherit.  The supervisor has them too, as without the daemon.
    for number in set(asked.ignored) - _NEVER_IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked.blocked)
    if asked.detach:
        files, streams = [os.open(os.devnull, os.O_RDWR)] * 3, [0, 1, 2]
    # Move all above 2 first: one may have the number of another's target.
    files = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3) for file in files]
    for stream in range(3):
        os.close(stream)
    for stream, file in zip(streams, files, strict=True):
        os.dup2(file, stream)
    for fd in {*fds, *files} - set(range(3)):
        os.close(fd)
    return asked, events


def _first_line(sock: socket.socket) -> tuple[bytes, list[int]]:
    deadline, received, fds = time.monotonic() + PATIENCE, b"", list[int]()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while b"\n" not in received:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise UsageError(f"nothing was asked for within {PATIENCE:g} s")
        data, came, flags, _ = socket.recv_fds(sock, submission.LINE_MAX, _FDS_MAX)
        fds += came
        received += data
        if not data or flags & socket.MSG_CTRUNC or len(received) > submission.LINE_MAX:
            raise UsageError("expected a line of JSON with its descriptors")
    line, _, rest = received.partition(b"\n")
    if rest:
        raise UsageError("expected one line before the answer")
    return line, fds


def _log_to(client: Client) -> None:
    """Send the log lines that ``--verbose`` shows to the client."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            client.send(log=record.getMessage())

    logging.basicConfig(level=logging.DEBUG, handlers=[Lines()])


def _write_to_journal(who: Caller, identifier: str) -> None:
    """Redirect stdout and stderr to the journal, as this user's lines; without journald, leave them at /dev/null."""
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.setegid(who.gid)
    os.seteuid(who.uid)  # the lines belong to the uid that connects, and that user may read them
    try:
        journal.connect(_JOURNAL)
    except OSError as error:
        log.debug(__name__, "no output is kept: %s", error)
        return
    finally:
        os.seteuid(0)
        os.setegid(0)
    # systemd's journald-stream: identifier, unit, priority, then four flags.
    journal.sendall(f"{identifier}\n\n{_INFO}\n0\n0\n0\n0\n".encode())
    for stream in (1, 2):
        os.dup2(journal.fileno(), stream)
    journal.close()


def _run(
    client: Client, who: Caller, asked: Submission, settings: Settings, running: int, events: int
) -> None:
    """Run what the client asks for, and send how it ended."""
    if asked.values.get("verbose"):
        _log_to(client)
    machine = host.read()
    configured = _configured(asked, settings)
    options = _understand(asked, who, machine, configured)
    allowance = ceilings.allowance(settings.ceilings, who.name, who.uid, _groups(who), machine)
    standard = defaults(machine, settings.budget_share)
    request, priority = options.request, options.priority
    if who.uid:
        _check_allowance(request, who, allowance, running)
        said = "priority" in asked.values or variable("priority") in asked.environment
        priority = ceilings.priority_within(priority, allowance, said)

    def within(limits: Limits, before: Limits | None) -> Limits:
        return ceilings.within(limits, allowance, before or standard) if who.uid else limits

    def small() -> Settings:
        frugal.huge_pages(allowed=False)
        return configured

    client.begin(request.name, asked.detach, options.progress)
    if asked.detach:
        _write_to_journal(who, registry.journal_identifier(who.uid, request.name))
    frugal.huge_pages(allowed=True)  # for the agent
    behalf = Behalf(
        who,
        asked.environment,
        state_directory(asked.environment, who.uid),
        within,
        client.early,
        leased=not asked.detach,
    )
    outcome = agent.run(
        request.but(
            limits=within(request.limits, None),
            environment=asked.environment,
            named="name" in asked.values,
            philosophy=options.philosophy,
            priority=priority,
            wait=options.wait,
            share=settings.budget_share,
            settings=small,
            behalf=behalf,
            started=client.started,
            attach=client.attach,
            events=events,
        ),
        lambda line: client.send(tell=line),
    )
    client.send(
        ended={
            "exit_code": outcome.exit_code,
            "killed": outcome.returncode < 0,
            "lines": explain.summary(outcome),
            "summary": explain.as_json(outcome, __version__),
        }
    )


def _understand(asked: Submission, who: Caller, machine: Host, configured: Settings) -> RunOptions:
    """Return what the client's options mean; UsageError, also for what the daemon does not do."""
    check_kinds(asked.values)
    values = {key: value for key, value in asked.values.items() if key not in _OURS}
    if values.get("isolate") == "no":
        raise UsageError(
            "--isolate no: the daemon runs agents behind walls", "--local runs it without"
        )
    if who.uid and values.get("escaped") == "move":
        # Moving is by pid: if the pid is reused at that moment, root would move another user's process.
        raise UsageError(
            "--escaped move: not by the daemon", "--escaped kill ends them with the run"
        )
    if who.uid:
        _check_user(values, who)
    return understand(values, asked.command, machine, configured, asked.environment)


def _check_allowance(request: Request, who: Caller, allowance: Allowance, running: int) -> None:
    """Raise UsageError if the user may not have one more agent, or not with so many open files."""
    if running > allowance.agents:
        raise UsageError(
            f"{who.name} has {running - 1} agents, and may have {allowance.agents}",
            "wait for one to end",
        )
    hard = (h for number, _, h in who.rlimits if number == resource.RLIMIT_NOFILE)
    launch.check_nofile(request.limits, next(hard, resource.RLIM_INFINITY))


def _configured(asked: Submission, ours: Settings) -> Settings:
    """Return the client's settings, with the daemon's values where a client has no say or its code would run in this process."""
    if asked.settings is None:
        return ours.but(handlers=Settings().handlers)
    try:
        found = from_plain(dict(asked.settings))
        interval, fastest = max(1.0, float(found.interval)), max(0.01, float(found.fastest))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"the settings that were submitted make no sense: {error}") from None
    return found.but(
        interval=interval,
        fastest=fastest,
        budget_share=ours.budget_share,
        predictor=ours.predictor,
        ceilings=ours.ceilings,
    )


def _check_place(who: Caller) -> None:
    """Raise UsageError if the client is inside an agent: its agents must stay within its own limits."""
    path = delegation.hierarchy().mount + process.cgroup(who.pid).rstrip("/")
    while len(path) > 1:
        if registry.is_marked(path):
            raise UsageError(
                "an agent's own agents live inside its limits, and behind walls there is no place",
                "run the outer one with --local",
            )
        path = os.path.dirname(path)


def _check_user(values: dict[str, object], who: Caller) -> None:
    user = values.get("user")
    if user in (who.name, str(who.uid)):
        del values["user"]
    elif user not in (None, identity.OWN_USER):
        raise UsageError(f"--user {user}: only root may run an agent as another user")


def _groups(who: Caller) -> set[str]:
    import grp

    found = set()
    for gid in {who.gid, *who.groups}:
        found.add(str(gid))
        try:
            found.add(grp.getgrgid(gid).gr_name)
        except KeyError:
            continue
    return found
