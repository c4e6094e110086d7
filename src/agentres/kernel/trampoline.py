"""The child's side of a launch: join the cgroup, take the rlimits, drop privileges, exec.

:class:`Child` forks; the child does the steps of its :class:`Plan` and executes the command.  No code
of the agent runs before the child is in its cgroup.  What fails on the way comes back over a pipe
that exec closes, as the step and its errno, and is raised in the parent.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from agentres.kernel import mounts
from agentres.kernel.cgroup import Cgroup
from agentres.model.errors import NotExecutable, NotFound, SetupError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from agentres.kernel.caller import Caller


_END = b"\0\0"
"""Between what is in memory and what has gone wrong, in the child's report."""

_MOUNTS_MAX = 16384
"""Bytes that are told of them: the pipe takes four times as many while nobody reads."""

OOM_SCORE_ADJ = 200
"""Added to the agent's oom_score_adj (proc_pid_oom_score_adj(5)), in thousandths of the host's memory."""


class Identity(Record):
    """The user that the agent runs as; without a ``home`` the environment is that user's already."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


class Plan(Record):
    """All that the child needs."""

    command: tuple[str, ...]
    # RLIMIT_NOFILE, soft and hard; None keeps the caller's.
    nofile: int | None = None
    identity: Identity | None = None
    # None keeps the caller's.
    cwd: str | None = None
    environment: Mapping[str, str] = os.environ
    # What the agent starts with.
    sigmask: Iterable[int] = ()
    # A namespace with nothing but loopback, until somebody wires it up.
    own_network: bool = False
    # What stands for its resolv.conf; empty: the host's own.
    resolver: str = ""
    # Where cgroup2 is mounted, for an agent that is isolated (agentres.kernel.walls); empty: it is not.
    walls: str = ""
    # The cgroup namespace of one that is.
    view: int = -1
    # Who has asked for it from elsewhere: what a process has from its parent it then has from there.
    caller: Caller | None = None
    # The CPUs of its affinity; None: the caller's.
    cpus: Collection[int] | None = None
    # Capabilities that it is not to have, by number.
    dropped: Sequence[int] = ()

    def agent_environment(self) -> dict[str, str]:
        environment = dict(self.environment)
        if self.identity is not None and self.identity.home:
            name = self.identity.name
            for name_of_caller in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
                environment.pop(name_of_caller, None)
            environment.update(HOME=self.identity.home, USER=name, LOGNAME=name)
        return environment


class Child:
    """A command on its way: forked by the constructor, running once :meth:`confirm` returns.

    ``started`` is time.monotonic() at the fork; ``in_memory`` is what was in the host's tmpfs then
    (:func:`agentres.kernel.mounts.as_text`), once it is confirmed.  ``secure`` is called while the child gets ready: without it
    having returned, or once we are dead, nothing is executed.
    """

    def __init__(
        self, plan: Plan, cgroup: Cgroup, secure: Callable[[Child], None] = lambda child: None
    ) -> None:
        self._plan = plan
        self.in_memory = b""
        self._report, write_end = os.pipe()
        gate, opened = os.pipe()
        self._ready, ready = os.pipe()
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=cgroup.fd)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(opened)  # or it would keep its own gate from closing
                _become(plan, procs, ready, gate, write_end)
            finally:
                os._exit(errno.EPROTO)  # nothing of the parent's may run twice
        self.pidfd = os.pidfd_open(self.pid)
        os.close(procs)
        os.close(write_end)
        os.close(gate)
        os.close(ready)
        try:
            secure(self)
            os.write(opened, b"1")
        except BrokenPipeError:  # it has failed before it came there, and reports that
            pass
        except BaseException:
            os.close(opened)
            os.waitpid(self.pid, 0)
            os.close(self._report)
            self.close()
            raise
        finally:
            os.close(self._ready)
        os.close(opened)

    def wait_until_ready(self) -> bool:
        """For ``secure``: wait until the child has only to be let through; False where it has failed before."""
        return os.read(self._ready, 1) != b""

    def confirm(self) -> None:
        """Wait for exec.  Raises NotFound, NotExecutable or SetupError, with the child reaped."""
        with open(self._report, "rb") as pipe:
            self.in_memory, _, told = pipe.read().partition(_END)
        if report := told.decode(errors="replace"):
            os.waitpid(self.pid, 0)
            self.close()
            step, number, detail = report.split("\0", 2)
            raise _failure(step, int(number), detail, self._plan)

    def close(self) -> None:
        """Let go of the pidfd."""
        os.close(self.pidfd)


def _become(plan: Plan, procs: int, ready: int, gate: int, report: int) -> None:
    # Here, not in the parent, where what it touches would stay for as long as the agent runs.
    os.write(report, mounts.as_text(mounts.in_memory(), _MOUNTS_MAX) + _END)
    step = "cgroup"
    try:
        os.write(procs, b"0")
        step = "rlimits"
        if plan.caller is not None:
            from agentres.kernel import caller

            os.setpgid(0, 0)  # its own, for signals to all of it
            caller.inherit(plan.caller)
        # A core dump of an agent is a flood to the disk and holds its secrets.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if plan.nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (plan.nofile, plan.nofile))
        step = "cpus"
        if plan.cpus is not None:
            os.sched_setaffinity(0, plan.cpus)
        step = "oom"
        _put_first_for_oom()
        step = "network"
        if plan.own_network:
            from agentres.kernel import netns

            netns.leave()
            if plan.resolver:
                netns.resolve_by(plan.resolver)
        step = "walls"
        if plan.walls:
            from agentres.kernel import walls

            walls.enclose(plan.walls, plan.view)
        step = "capabilities"
        if plan.dropped:
            from agentres.kernel import capabilities

            capabilities.drop(plan.dropped)
        step = "user"
        if plan.identity is not None:
            os.setgroups(() if plan.walls else plan.identity.groups)
            os.setresgid(*[plan.identity.gid] * 3)
            os.setresuid(*[plan.identity.uid] * 3)
        step = "walls"
        if plan.walls:
            walls.seal()
        step = "cwd"
        if plan.cwd is not None:
            os.chdir(plan.cwd)
        else:
            os.stat(".")  # the new user may not be allowed in
        step = "signals"
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them
        signal.pthread_sigmask(signal.SIG_SETMASK, plan.sigmask)
        os.write(ready, b"1")
        if not os.read(gate, 1):
            return
        step = "exec"
        _execute(plan)
    except OSError as error:
        text = f"{step}\0{error.errno or 0}\0{reason(error)}"
    except Exception as error:
        text = f"{step}\0{0}\0{error}"
    os.write(report, text.encode())


def _put_first_for_oom() -> None:
    """Where the host runs out of memory the kernel takes this process, and what it starts, before those beside it, and before us."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    except (
        OSError
    ):  # a /proc that nobody may write: it is killed in the order of all others, as is told
        return
    adj = min(int(os.read(fd, 16)) + OOM_SCORE_ADJ, 1000)
    os.pwrite(fd, str(adj).encode(), 0)
    os.close(fd)


def _execute(plan: Plan) -> None:
    """execve(2) along PATH, as execvp(3) does; raises the errno that tells most."""
    environment = plan.agent_environment()
    name = plan.command[0]
    if "/" in name:
        os.execve(name, plan.command, environment)
    told = FileNotFoundError(errno.ENOENT, "not found in PATH")
    for directory in environment.get("PATH", os.defpath).split(os.pathsep) if name else ():
        try:
            os.execve(f"{directory or '.'}/{name}", plan.command, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            told = error  # type: ignore[assignment]  # both are OSError; keep looking, as execvp
    raise told


def _failure(step: str, number: int, detail: str, plan: Plan) -> SetupError:
    command = plan.command[0]
    if step == "exec":
        if number == errno.ENOENT and "/" in command and os.path.exists(command):
            return NotFound(f"cannot execute {command}: its interpreter does not exist", number)
        if number in (errno.ENOENT, errno.ENOTDIR):
            return NotFound(f"cannot execute {command}: {detail}", number)
        if number == errno.ENOEXEC:
            detail = "not a program, and no #! line"
        return NotExecutable(f"cannot execute {command}: {detail}", number)
    what = {
        "cgroup": "cannot join the agent's cgroup",
        "rlimits": "cannot set the agent's rlimits",
        "cpus": "cannot bind the agent to its CPUs",
        "oom": "cannot have the agent killed before others where the host runs out of memory",
        "network": "cannot give the agent a network of its own",
        "walls": "cannot isolate the agent",
        "user": f"cannot become user {plan.identity.name if plan.identity else ''}",
        "capabilities": "cannot take the agent's capabilities away",
        "cwd": f"cannot enter {'the current directory' if plan.cwd is None else plan.cwd or repr(plan.cwd)}",
        "signals": "cannot reset the agent's signals",
    }[step]
    return SetupError(f"{what}: {detail}", number)
