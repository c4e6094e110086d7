"""The child's side of a launch: join the cgroup, set the rlimits, drop privileges, exec.

:class:`Child` forks; the child does the steps of its :class:`Plan` and executes the command.  No code
of the agent runs before the child is in its cgroup.  A failure comes back as the step and its errno,
over a pipe that exec closes, and is raised in the parent.
"""

from __future__ import annotations

import errno
import os
import resource
import time

from agentres.kernel import mounts, signal
from agentres.kernel.cgroup import Cgroup
from agentres.model.errors import NotExecutable, NotFound, SetupError, reason
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from agentres.kernel.caller import Caller


_END = b"\0\0"
"""Separates the tmpfs mounts from the failure in the child's report."""

_MOUNTS_MAX = 16384
"""The most bytes of those mounts in the report: the pipe holds four times as many while nobody reads."""

OOM_SCORE_ADJ = 200
"""Added to the agent's oom_score_adj (proc_pid_oom_score_adj(5)), in thousandths of the host's memory."""


class Identity(Record):
    """The user that the agent runs as.  An empty ``home``: the environment is already that user's."""

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
    # A network namespace with only loopback, until somebody connects it.
    own_network: bool = False
    # What replaces resolv.conf for the agent; empty: nothing does.
    resolver: str = ""
    # The cgroup2 mount point, for an isolated agent (agentres.kernel.walls); empty: not isolated.
    walls: str = ""
    # An fd of the cgroup namespace of an isolated agent.
    view: int = -1
    # The process that asked for this agent, if not ours: the child inherits from it instead of from us.
    caller: Caller | None = None
    # Its CPU affinity; None keeps the caller's.
    cpus: Collection[int] | None = None
    # Capabilities to drop, by number.
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
    """A command being launched: the constructor forks, and the command runs once :meth:`confirm` returns.

    ``started`` is time.monotonic() at the fork.  ``in_memory`` is what the host's tmpfs held then
    (:func:`agentres.kernel.mounts.as_text`), known after :meth:`confirm`.  ``secure`` is called while the child gets
    ready; the child executes nothing before it has returned, nor if we die first.
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
        except BrokenPipeError:  # the child has failed before the gate, and reports that
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
        """For ``secure``: wait until the child needs only our go; False if it has failed before that."""
        return os.read(self._ready, 1) != b""

    def confirm(self) -> None:
        """Wait for exec.  Raises NotFound, NotExecutable or SetupError, with the child reaped."""
        with open(self._report, "rb") as pipe:
            self.in_memory, _, data = pipe.read().partition(_END)
        if report := data.decode(errors="replace"):
            os.waitpid(self.pid, 0)
            self.close()
            step, number, detail = report.split("\0", 2)
            raise _failure(step, int(number), detail, self._plan)

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)


def _become(plan: Plan, procs: int, ready: int, gate: int, report: int) -> None:
    # In the child: in the parent the memory that this touches would stay for as long as the agent runs.
    os.write(report, mounts.as_text(mounts.in_memory(), _MOUNTS_MAX) + _END)
    step = "cgroup"
    try:
        os.write(procs, b"0")
        step = "rlimits"
        if plan.caller is not None:
            from agentres.kernel import caller

            os.setpgid(0, 0)  # its own group, so that a signal can reach all of it
            caller.inherit(plan.caller)
        # A core dump of an agent floods the disk and holds its secrets.
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
            os.stat(".")  # fails if the new user may not enter it
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
    """Have the kernel's OOM killer take this process and its children before us and other processes.

    Without a writable /proc it does nothing: the agent is then killed in the common order, and the user is told.
    """
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    except OSError:
        return
    adj = min(int(os.read(fd, 16)) + OOM_SCORE_ADJ, 1000)
    os.pwrite(fd, str(adj).encode(), 0)
    os.close(fd)


def _execute(plan: Plan) -> None:
    """execve(2) along PATH, as execvp(3) does; raise the most informative error."""
    environment = plan.agent_environment()
    name = plan.command[0]
    if "/" in name:
        os.execve(name, plan.command, environment)
    failure = FileNotFoundError(errno.ENOENT, "not found in PATH")
    for directory in environment.get("PATH", os.defpath).split(os.pathsep) if name else ():
        try:
            os.execve(f"{directory or '.'}/{name}", plan.command, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            failure = error  # type: ignore[assignment]  # both are OSError; keep looking, as execvp
    raise failure


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
