"""The host's service: runs agents for its clients, each under its own keeper process.

The daemon accepts a connection and forks.  Keepers share all modules that it has loaded, and a client that sends garbage, or
nothing, occupies only its own keeper.  A keeper (:mod:`agentres.daemon.keeper`) lives in its agent's scope and outlives the
daemon; the next daemon finds it in the tree.  If a keeper is killed, the daemon ends its agent, if that was leased to a client.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial

from agentres.kernel import caller as callers
from agentres.kernel import delegation, frugal, registry, service, signal
from agentres.kernel.caller import Caller
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.loop import Loop
from agentres.kernel.signalfd import Signals
from agentres.model import log
from agentres.model.errors import EXIT_AGENTRES, AgentresError, UsageError, reason
from agentres.model.paths import daemon_socket
from agentres.model.record import Record
from agentres.policy.settings import Settings
from agentres.run import configured

_SHARED = (
    "agentres.run.enforcement", "agentres.run.explain", "agentres.daemon.keeper", "agentres.kernel.deadman", "agentres.kernel.devices", "agentres.kernel.escapes",
    "agentres.kernel.kmsg", "agentres.kernel.terminal", "agentres.kernel.trampoline", "agentres.kernel.walls",
    "agentres.run.messenger", "agentres.run.monitor", "agentres.run.steering", "agentres.store.writing", "agentres.run.supervision",
    "agentres.kernel.ancestors", "agentres.kernel.cpus", "agentres.kernel.footprint", "agentres.kernel.project", "agentres.kernel.space", "agentres.run.events",
    "agentres.run.exhaustion", "agentres.run.fullness", "agentres.run.handback", "agentres.run.oomkills", "agentres.run.pinning", "agentres.kernel.pressure", "agentres.run.predictors", "agentres.run.progress", "agentres.kernel.netns", "encodings.idna", "grp", "pwd", "subprocess",
)  # fmt: skip
"""Modules that a keeper needs: loaded before any is forked, so that an upgrade of the files does not affect it."""

_MOST = 1000
"""Most connections of one user at once, whatever its ceiling: each is a process."""

_BACKLOG = 128
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Keeper(Record):
    """A keeper: its pid and pidfd, its user, its agent's cgroup ("" if not known), and whether it is our child (``ours``)."""

    pid: int
    pidfd: int
    uid: int
    path: str
    ours: bool


class Daemon:
    """Serves ``sock`` until SIGTERM.  ``read`` returns the settings; ``say`` gets lines for the journal."""

    def __init__(
        self, sock: socket.socket, read: Callable[[], Settings], say: Callable[[str], None]
    ) -> None:
        self._sock = sock
        self._read = read
        self._say = say
        self._settings = read()
        self._loop = Loop()
        self._keepers: dict[int, Keeper] = {}
        self._ended = False
        self._mount = delegation.hierarchy().mount
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        self._signals = Signals(_HEARD)
        self._loop.watch(self._signals.fd, self._signalled)
        sock.setblocking(False)
        self._loop.watch(sock.fileno(), self._accept)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self._adopt()
        service.notify("READY=1", self._status())
        if (most := service.watchdog()) is not None:
            self._alive(most / 3)
        while not self._ended:
            self._loop.tick()
        service.notify("STOPPING=1")

    # Agents.

    def _adopt(self) -> None:
        """Watch the keepers of an earlier daemon; handle agents that lost theirs while no daemon ran."""
        for agent in registry.running(self._mount):
            if agent.cgroup_uid != 0 or not registry.is_owned(agent.path):
                continue
            pidfd = _alive_in(agent.home, agent.supervisor)
            if pidfd is None:
                self._bury(agent.path)
            else:
                self._watch(Keeper(agent.supervisor, pidfd, agent.uid, agent.path, ours=False))
        self._say(
            f"{len(self._keepers)} agents run already" if self._keepers else "no agent runs yet"
        )

    def _watch(self, keeper: Keeper) -> None:
        self._keepers[keeper.pid] = keeper
        self._loop.watch(keeper.pidfd, partial(self._keeper_ended, keeper))

    def _keeper_ended(self, keeper: Keeper) -> None:
        self._loop.unwatch(keeper.pidfd)
        os.close(keeper.pidfd)
        del self._keepers[keeper.pid]
        status = 0
        if keeper.ours:
            _, status = os.waitpid(keeper.pid, 0)
        if not keeper.ours or status:
            # It failed, or its status is not known to us: it may not have cleaned up.
            for agent in registry.running(self._mount):
                if agent.supervisor == keeper.pid and agent.cgroup_uid == 0:
                    self._bury(agent.path)
        service.notify(self._status())

    def _bury(self, path: str) -> None:
        """Handle an agent whose supervisor was killed: end it if it was leased, since its lease has ended too."""
        name = registry.name(path)
        try:
            agent = Cgroup(path)
            if registry.leased(path):
                self._say(f"{name}: its supervisor was killed, and the agent is ended with it")
                if not agent.kill_all():
                    self._say(f"{name}: a process in {path} survives SIGKILL")
            else:
                self._say(f"{name}: its supervisor was killed; its limits hold as they stand")
            agent.close()
        except AgentresError as error:  # the cgroup has been removed meanwhile
            log.debug(__name__, "%s: %s", path, error)

    # Clients.

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: the connection stays in the backlog
            self._say(f"cannot accept: {reason(error)}")
            time.sleep(0.05)
            return
        with sock:
            try:
                who = callers.peer(sock)
                running = 1 + sum(keeper.uid == who.uid for keeper in self._keepers.values())
                if running > _MOST:
                    raise UsageError(f"uid {who.uid} has {_MOST} connections already")
                self._fork(sock, who, running)
            except (OSError, AgentresError) as error:
                self._refuse(sock, error)

    def _fork(self, sock: socket.socket, who: Caller, running: int) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
                for number in _HEARD:
                    signal.signal(number, signal.SIG_DFL)
                for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
                    os.environ.pop(variable, None)
                fd = sock.fileno()
                os.closerange(3, fd)
                os.closerange(fd + 1, 4096)
                from agentres.daemon.keeper import keep

                keep(sock, who, self._settings, running)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(EXIT_AGENTRES)  # none of the daemon's code may run on in the child
        self._watch(Keeper(pid, os.pidfd_open(pid), who.uid, "", ours=True))

    def _refuse(self, sock: socket.socket, error: Exception) -> None:
        from agentres.model import control

        words = reason(error) if isinstance(error, OSError) else str(error)
        line = control.line(failed={"error": words, "exit_code": EXIT_AGENTRES})
        try:
            sock.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # the client has gone
            pass

    # The service.

    def _signalled(self) -> None:
        for came in self._signals.read():
            if came.number in (signal.SIGTERM, signal.SIGINT):
                self._ended = True
            elif came.number == signal.SIGHUP:
                self._reload()

    def _reload(self) -> None:
        service.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._settings = self._read()
            self._say("the configuration was read anew")
        except AgentresError as error:  # keep the settings as they were
            self._say(f"the configuration stays as it was: {error}")
        service.notify("READY=1", self._status())

    def _alive(self, pause: float) -> None:
        service.notify("WATCHDOG=1")
        self._loop.call_at(time.monotonic() + pause, partial(self._alive, pause))

    def _status(self) -> str:
        return f"STATUS={len(self._keepers)} agents"


def _alive_in(home: str, pid: int) -> int | None:
    """Return a pidfd of the process if it is in this home; None: it has ended, and its pid may have been reused."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        with open(f"{home}/supervisor/cgroup.procs") as file:
            if str(pid) in file.read().split():
                return pidfd
    except OSError:  # the cgroup was just removed
        pass
    os.close(pidfd)
    return None


def listen(path: str) -> socket.socket:
    """Listen on a socket that everybody may connect to; UsageError if a daemon serves it already.

    The kernel says which user a client is, and the ceilings what that user may do.  To keep users out altogether,
    let systemd create the socket (agentres.socket: SocketMode=).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            if sock.connect_ex(path) == 0:
                raise UsageError(f"a daemon serves {path} already")
            os.unlink(path)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        sock.bind(path)
        os.chmod(path, 0o666)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise AgentresError(f"cannot listen on {path}: {reason(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def load_shared() -> None:
    """Load the modules that a keeper needs, before any keeper is forked."""
    for module in _SHARED:
        importlib.import_module(module)


def settings() -> Settings:
    """Return the host's settings, from /etc or $AGENTRES_CONFIG, never from a user's own file."""
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    return configured.read(environment, 0) or Settings()


def _say(line: str) -> None:
    sys.stderr.write(f"agentres: {line}\n")
    sys.stderr.flush()


def main() -> int:
    """Run ``agentres daemon`` until SIGTERM; return the exit status."""
    try:
        if os.geteuid() != 0:
            raise UsageError("the daemon is root's: it gives users what they cannot have alone")
        frugal.one_heap()
        frugal.huge_pages(allowed=False)
        os.setgroups(())
        os.umask(0o077)
        sock = service.listening()
        path = daemon_socket()
        own = sock is None
        served = listen(path) if sock is None else sock
        load_shared()
        daemon = Daemon(served, settings, _say)
        gc.collect()
        gc.freeze()  # a collection would write to, and so copy, the pages shared with keepers
        daemon.run()
        if own:
            os.unlink(path)
        return 0
    except AgentresError as error:
        _say(str(error))
        return error.exit_code
