"""Find or acquire a cgroup subtree that we may write.

A run lives in a *home*: under systemd a transient scope, else a cgroup of our own below the one
delegated to us.  Inside, both look the same:

    HOME/                 agentres.slice/agentres-NAME.scope, or DELEGATED/agentres.slice/agentres-NAME
        supervisor/       this process
        handlers/         the alert handlers, once one has been started
        agent/            the limits are set here
            main/         the agent's processes

Only leaves hold processes (cgroup-v2.rst, "No Internal Process Constraint").  systemd owns the
attributes of the scope itself: we write only its ``cgroup.subtree_control``.
"""

from __future__ import annotations

import errno
import os

from agentres.kernel import systemd
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.lock import Lock
from agentres.kernel.mounts import Mount, mounts
from agentres.kernel.process import parse_cgroup
from agentres.model import log
from agentres.model.errors import AgentresError, ControlFileError, NameTaken, NoCgroup, reason
from agentres.model.limits import Precedence, cpu_max
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal

    from agentres.model.limits import Limits

CONTROLLERS = ("cpu", "memory", "io", "pids")
"""The controllers whose limits every agent has."""


def controllers(limits: Limits) -> Sequence[str]:
    """Return the controllers for an agent with these limits.

    cpuset only where a limit asks for it: a host's first cpuset makes the kernel patch its page allocator.
    """
    return CONTROLLERS if limits.cpuset is None else (*CONTROLLERS, "cpuset")


UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1 (without systemd: cgroup_no_v1=all)"
"""The remedy on a host where cgroup v1 holds the controllers."""


_BYSTANDERS = "agentres.bystanders"

_EXIT_SECONDS = 5.0
"""How long a process of the parent that is exiting is waited for."""

_TURN_SECONDS = 30.0
"""How long one run may hold the parent's lock before the next run gives up."""


class Hierarchy(Record):
    """The cgroup2 mount that we see, and our place in it.

    ``own`` is the path of the caller's cgroup below ``mount``, starting with ``/``; ``v1`` is whether
    v1 hierarchies are mounted as well.
    """

    mount: str
    own: str
    v1: bool

    @property
    def own_path(self) -> str:
        return (self.mount + self.own).rstrip("/")


def parse_hierarchy(table: list[Mount], proc_cgroup: str) -> Hierarchy:
    """Find our place from the mounts and /proc/self/cgroup (cgroups(7)); pure.

    Raises NoCgroup where cgroup2 is not mounted or we are outside what is mounted.
    """
    found = [mount for mount in table if mount.fstype == "cgroup2"]
    v1 = any(mount.fstype == "cgroup" for mount in table)
    if not found:
        raise NoCgroup(
            "no cgroup v2 hierarchy is mounted",
            UNIFIED if v1 else "mount cgroup2",
        )
    own = parse_cgroup(proc_cgroup) or "/"
    for mount in found:
        root = mount.root.rstrip("/")
        if own == root or own.startswith(root + "/"):
            # A process that was moved to make room for runs still belongs to the parent it came from.
            own = own.removeprefix(root).removesuffix("/" + _BYSTANDERS)
            return Hierarchy(mount.point, own or "/", v1)
    raise NoCgroup(
        f"our own cgroup {own} is outside of the cgroup2 mount at {found[0].point}",
        "mount cgroup2 inside this cgroup namespace",
    )


def hierarchy() -> Hierarchy:
    """Return :func:`parse_hierarchy` of this process."""
    with open("/proc/self/cgroup", errors="surrogateescape") as file:
        return parse_hierarchy(mounts("cgroup"), file.read())


class Place(Record):
    """Where a home can be made.

    ``kind`` is one of:

    - ``system``, ``user``: that systemd manager makes a scope; ``where`` is its bus.
    - ``unit``: a unit of the system manager, among the agents, that holds this process alone; ``where`` is the bus.
    - ``direct``: a cgroup that was delegated to us; ``where`` is its path.
    """

    kind: Literal["system", "user", "unit", "direct"]
    where: str
    hierarchy: Hierarchy

    def acquire(
        self,
        name: str,
        precedence: Precedence,
        meanwhile: Callable[[], None],
        walled: bool = False,
        controllers: Sequence[str] = CONTROLLERS,
    ) -> Home:
        """Make the home of the agent ``name`` and move this process into it.  Raises NameTaken.

        ``precedence`` is its weight and protection against other homes.  ``meanwhile`` is called while systemd works, or
        not at all.  ``walled``: make a cgroup namespace for the agent.  ``controllers``: those to enable, where available.
        """
        if self.kind == "direct":
            return DirectHome(
                self.where, self.hierarchy.own_path, name, precedence, walled, controllers
            )
        if self.kind == "unit":
            systemd.set_precedence(self.where, os.path.basename(self.hierarchy.own), precedence)
            meanwhile()
            return ScopeHome(self.hierarchy.own_path, walled, controllers)
        systemd.start_scope(
            self.where, name, self.hierarchy.mount, controllers, meanwhile, precedence
        )
        return ScopeHome(hierarchy().own_path, walled, controllers)

    def hold(self, slice_path: str, memory: int, cpu: float) -> None:
        """Set memory.max (bytes) and cpu.max (cores) for all agents together, each only where it has no limit yet."""
        try:
            wanted = {
                "memory.max": f"{memory}",
                "cpu.max": cpu_max(cpu),
            }
            free = [file for file in wanted if _unlimited(f"{slice_path}/{file}")]
            if self.kind == "direct":
                held = Cgroup(slice_path)
                for file in free:
                    held.set_property(file, wanted[file])
                held.close()
            elif free:
                systemd.limit_slice(
                    self.where,
                    memory if "memory.max" in free else None,
                    cpu if "cpu.max" in free else None,
                )
        except (OSError, AgentresError) as error:
            log.debug(__name__, "%s is held by nobody but us: %s", slice_path, error)


def _unlimited(path: str) -> bool:
    with open(path) as file:
        return file.read().split()[0] == "max"


def find(best_effort: bool = False, ours: bool = True) -> Place:
    """Find where this process can make an agent's home.  Raises NoCgroup.

    A cgroup that was delegated to us comes first, so that a service with ``Delegate=yes`` keeps its
    agents and a run inside an agent stays inside; then systemd; then any cgroup that we may write.
    ``best_effort`` also accepts a hierarchy without controllers.  Without ``ours`` the home is for another user's
    agent, and systemd comes first: what is delegated to the daemon ends with the daemon.
    """
    found = hierarchy()
    if not best_effort:
        require_controllers(found)
    if not ours and systemd.running() and os.path.exists(systemd.bus_socket(0)):
        return Place("system", systemd.bus_socket(0), found)
    for path in _maybe_delegated(found):
        cgroup = Cgroup(path)
        delegated = cgroup.delegated
        alone = cgroup.procs == [str(os.getpid())]
        cgroup.close()
        if delegated and _writable(path):
            among = os.path.dirname(path) == f"{found.mount}/{systemd.SLICE}"
            if alone and among and os.path.exists(systemd.bus_socket(0)):
                return Place("unit", systemd.bus_socket(0), found)
            return Place("direct", path, found)
    uid = os.geteuid()
    if f"/user@{uid}.service/" in found.own:
        unit = systemd.delegated_unit(systemd.bus_socket(uid), found.own)
        if unit and _writable(found.mount + unit):
            return Place("direct", found.mount + unit, found)
    if systemd.running() and os.path.exists(systemd.bus_socket(uid)):
        return Place("user" if uid else "system", systemd.bus_socket(uid), found)
    if not systemd.running() and _writable(found.own_path):
        return Place("direct", found.own_path, found)
    raise _no_delegation(uid, found)


def own_place() -> bool:
    """Whether our own cgroup was delegated to us: then what we run belongs in it."""
    for path in _maybe_delegated(hierarchy()):
        try:
            cgroup = Cgroup(path)
        except ControlFileError:  # outside of what is mounted here
            continue
        delegated = cgroup.delegated
        cgroup.close()
        if delegated and _writable(path):
            return True
    return False


def require_controllers(found: Hierarchy) -> None:
    """Raise NoCgroup where the v2 hierarchy has none of :data:`CONTROLLERS`."""
    try:
        with open(f"{found.mount}/cgroup.controllers") as file:
            if set(file.read().split()) & set(CONTROLLERS):
                return
    except OSError as error:
        raise NoCgroup(
            f"cannot read the cgroup2 mount at {found.mount}: {reason(error)}",
            "another mount may hide it",
        ) from error
    if found.v1:
        raise NoCgroup(
            f"cgroup v1 holds the controllers; the v2 hierarchy at {found.mount} has none",
            UNIFIED,
        )
    raise NoCgroup(
        f"the cgroup v2 hierarchy at {found.mount} has none of {' '.join(CONTROLLERS)}",
        "have them delegated to this container or service",
    )


def _maybe_delegated(found: Hierarchy) -> Iterator[str]:
    """Yield our own cgroup, then its parent, for a service with DelegateSubgroup= (systemd.exec(5))."""
    yield found.own_path
    # Not higher up: those cgroups are delegated to a manager, such as user@1000.service.
    parent, _, leaf = found.own_path.rpartition("/")
    if leaf != "init.scope" and parent.startswith(found.mount):
        yield parent


def _writable(path: str) -> bool:
    return all(
        os.access(f"{path}{file}", os.W_OK)
        for file in ("", "/cgroup.procs", "/cgroup.subtree_control")
    )


def _no_delegation(uid: int, found: Hierarchy) -> NoCgroup:
    if not systemd.running():
        return NoCgroup(
            f"our cgroup {found.own_path} was not delegated to us: it cannot be written",
            "have it chowned to this user, or mounted writable into this container",
        )
    if uid == 0:
        return NoCgroup(
            f"there is no D-Bus at {systemd.bus_socket(0)}, so systemd can make no scope",
            "install and start dbus, or run as a service with Delegate=yes",
        )
    return NoCgroup(
        f"uid {uid} has no systemd user manager and its cgroup was not delegated",
        f"start one with: sudo loginctl enable-linger {uid}; a service needs Delegate=yes",
    )


HELPERS = (
    ("pids.max", "256"), ("memory.max", str(256 << 20)), ("memory.swap.max", "0"), ("cpu.max", cpu_max(1)),
)  # fmt: skip
"""Limits for all alert handlers of one agent together, which the daemon runs for a user: the agent's limits do not cover them."""


class Home:
    """The cgroups of one run, as the module's docstring draws them.

    ``cgroup`` is the home itself.  ``view`` is an fd of a cgroup namespace with ``agent`` as its root; None where the
    agent gets none.  The constructors below call :meth:`furnish` once.
    """

    cgroup: Cgroup
    agent: Cgroup
    main: Cgroup
    handlers: Cgroup
    view: int | None = None

    def furnish(self, walled: bool, controllers: Sequence[str]) -> None:
        """Make the leaves, move this process into its own, enable the agent's controllers."""
        supervisor = self.cgroup.create("supervisor")
        self.agent = self.cgroup.create("agent")
        if walled:
            from agentres.kernel import walls

            # A cgroup namespace is rooted at its maker's cgroup, and this one may not hold processes later.
            self.agent.move_here(0)
            self.view = walls.view()
        supervisor.move_here(0)
        supervisor.keep_from_oomd()
        killable = supervisor.has("cgroup.kill")
        supervisor.close()
        if not killable:
            raise NoCgroup("this kernel has no cgroup.kill", "Linux 5.14 or newer has it")
        available = _those(controllers, self.cgroup)
        self.cgroup.enable(available)
        self.agent.enable(available)
        self.main = self.agent.create("main")
        self.main.mark_delegated()

    def adopt(self, pid: int, held: bool) -> None:
        """Move a helper of ours into ``handlers``: it and its children end with the home.  ``held``: limit it to :data:`HELPERS`."""
        if not hasattr(self, "handlers"):
            handlers = self.cgroup.create("handlers")
            for file, text in HELPERS if held else ():
                if handlers.has(file):
                    handlers.set_property(file, text)
            self.handlers = handlers
        self.handlers.move_here(pid)

    def release(self) -> None:
        """Kill what is left of the agent and remove its cgroups, then leave the home.

        Works after :meth:`furnish` has failed half-way too: ``agent`` and ``main`` may be missing.
        """
        if self.view is not None:
            os.close(self.view)
        if hasattr(self, "main"):
            self.main.close()
        for part in ("agent", "handlers"):
            if (cgroup := getattr(self, part, None)) is None:
                continue
            if not cgroup.kill_all():
                raise AgentresError(
                    f"a process in {cgroup.path} survives SIGKILL in an uninterruptible wait"
                )
            cgroup.remove_tree()
        self._leave()

    def _leave(self) -> None:
        """Undo the making of the home."""
        raise NotImplementedError


class ScopeHome(Home):
    """A transient scope; systemd removes it when this process, the last one in it, has ended."""

    def __init__(self, path: str, walled: bool, controllers: Sequence[str] = CONTROLLERS) -> None:
        self.cgroup = Cgroup(path)
        try:
            self.furnish(walled, controllers)
        except BaseException:
            self.release()
            raise

    def _leave(self) -> None:
        self.cgroup.close()


class DirectHome(Home):
    """A cgroup of our own below one that was delegated to us.

    ``parent`` may hold processes: us, our shell.  While agents run it must not (it has controllers
    enabled), so those processes move to a leaf beside the slice that holds the homes.  The last run to
    end moves them back and removes that leaf.  Runs in the same parent take turns under a lock on it.
    """

    def __init__(
        self,
        parent: str,
        origin: str,
        name: str,
        precedence: Precedence,
        walled: bool,
        controllers: Sequence[str] = CONTROLLERS,
    ) -> None:
        self.parent = Cgroup(parent)
        self._wanted = _those(controllers, self.parent)
        self.origin = origin
        try:
            # All under one lock: the next run removes homes that it finds empty.
            with Lock(self.parent.path, _TURN_SECONDS, in_line=True):
                self.slice = _child(self.parent, systemd.SLICE)
                _sweep(self.slice)
                self.cgroup = self.slice.create(systemd.PREFIX + name)
                self._make_room()
                self.slice.enable(self._wanted)
                self._set_precedence(precedence)
                self.furnish(walled, controllers)
        except BaseException as error:
            if hasattr(self, "cgroup"):
                self.release()
                raise
            self.parent.close()
            if isinstance(error, ControlFileError) and error.errno == errno.EEXIST:
                raise NameTaken(f"an agent named {name} is running ({error.path})") from None
            raise

    def _set_precedence(self, precedence: Precedence) -> None:
        files = {"cpu.weight": precedence.weight, "io.weight": precedence.weight}
        for file, value in {**files, "memory.low": precedence.protected}.items():
            # io.weight: with BFQ or io.cost only.  The kernel's defaults: weights 100, memory.low 0.
            if value != (0 if file == "memory.low" else 100) and self.cgroup.has(file):
                self.cgroup.set_property(file, str(value))

    def _make_room(self) -> None:
        """Enable the controllers for the slice; the parent's processes must first move out."""
        if set(self._wanted) <= set(self.parent.subtree_control):
            return
        if not self.parent.is_root:
            self._move_all(self.parent, _child(self.parent, _BYSTANDERS))
        self.parent.enable(self._wanted, _EXIT_SECONDS)

    @staticmethod
    def _move_all(source: Cgroup, target: Cgroup) -> None:
        # Repeat for what was forked meanwhile; each round moves all but the newest.
        while pids := source.procs:
            for pid in map(int, pids):
                if pid == 0:
                    raise NoCgroup(
                        f"{source.path} holds a process of another PID namespace",
                        "give agentres a cgroup of its own",
                    )
                try:
                    target.move_here(pid)
                except ControlFileError as error:
                    if error.errno != errno.ESRCH:
                        raise
        target.close()

    def _leave(self) -> None:
        with Lock(self.parent.path, _TURN_SECONDS, in_line=True):
            others = [
                name for name in self.slice.children() if not self.cgroup.path.endswith("/" + name)
            ]
            self._go_back(others)
            self.cgroup.remove_tree()
            if not others:
                self.slice.remove_tree()
        self.slice.close()
        self.parent.close()

    def _go_back(self, others: list[str]) -> None:
        """Move this process back to where it came from, or as near as the other runs allow."""
        if self.origin != self.parent.path or self.parent.is_root:
            back = Cgroup(self.origin)
        elif others:
            back = _child(self.parent, _BYSTANDERS)
        else:
            self.cgroup.disable_all()
            self.slice.disable_all()
            self.parent.disable_all()
            bystanders = _child(self.parent, _BYSTANDERS)
            path = bystanders.path
            self._move_all(bystanders, Cgroup(self.parent.path))
            Cgroup(path).remove_tree()
            back = Cgroup(self.parent.path)
        back.move_here(0)
        back.close()


def _those(controllers: Sequence[str], cgroup: Cgroup) -> list[str]:
    """Return those of ``controllers`` that the cgroup can enable for its children."""
    return [c for c in controllers if c in cgroup.controllers]


def _child(parent: Cgroup, name: str) -> Cgroup:
    """Open the child; create it where there is none."""
    path = f"{parent.path}/{name}"
    return Cgroup(path) if os.path.isdir(path) else parent.create(name)


def _sweep(parent: Cgroup) -> None:
    """Remove the homes of killed supervisors, where the agent has ended since."""
    for name in parent.children():
        if name.startswith(systemd.PREFIX):
            home = Cgroup(f"{parent.path}/{name}")
            if home.populated:
                home.close()
            else:
                log.debug(__name__, "removing %s, left by a run that was killed", home.path)
                home.remove_tree()
