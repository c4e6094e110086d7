"""Find or acquire the cgroup subtree that we may write.

A run lives in a *home*: under systemd a transient scope, else a cgroup of our own below the one that
was delegated to us.  Inside, both look the same:

    HOME/                 agentres.slice/agentres-NAME.scope, or DELEGATED/agentres.slice/agentres-NAME
        supervisor/       this process
        handlers/         who is told of alerts, once there is any
        agent/            the limits stand here
            main/         the agent's processes

Only leaves hold processes (cgroup-v2.rst, "No Internal Process Constraint"), and systemd owns the
attributes of the scope itself, so nothing of ours is written there but ``cgroup.subtree_control``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence

from agentres.kernel import systemd
from agentres.kernel.cgroup import Cgroup
from agentres.kernel.lock import Lock
from agentres.kernel.mounts import Mount, mounts
from agentres.kernel.process import parse_cgroup
from agentres.model import log
from agentres.model.errors import AgentresError, ControlFileError, NameTaken, NoCgroup, reason
from agentres.model.limits import Standing, cpu_max
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from typing import Literal

    from agentres.model.limits import Limits

CONTROLLERS = ("cpu", "memory", "io", "pids")
"""The controllers whose limits every agent has."""


def controllers(limits: Limits) -> Sequence[str]:
    """Those that an agent with these limits has: cpuset where it is asked for, as a host's first patches the page allocator."""
    return CONTROLLERS if limits.cpuset is None else (*CONTROLLERS, "cpuset")


UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1 (without systemd: cgroup_no_v1=all)"
"""The remedy on a host whose controllers v1 holds."""


_BYSTANDERS = "agentres.bystanders"

_TURN_SECONDS = 30.0
"""How long one run may have the parent to itself before the next gives up."""


class Hierarchy(Record):
    """The cgroup2 mount that we see, and where we are in it.

    ``own`` is the path of the caller's cgroup below ``mount``, starting with ``/``; ``v1`` tells
    whether v1 hierarchies are mounted beside it.
    """

    mount: str
    own: str
    v1: bool

    @property
    def own_path(self) -> str:
        return (self.mount + self.own).rstrip("/")


def parse_hierarchy(table: list[Mount], proc_cgroup: str) -> Hierarchy:
    """Our place, from the mounts and /proc/self/cgroup (cgroups(7)); pure.

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
            # Who had to make room for other runs still belongs where it came from.
            own = own.removeprefix(root).removesuffix("/" + _BYSTANDERS)
            return Hierarchy(mount.point, own or "/", v1)
    raise NoCgroup(
        f"our own cgroup {own} is outside of the cgroup2 mount at {found[0].point}",
        "mount cgroup2 inside this cgroup namespace",
    )


def hierarchy() -> Hierarchy:
    """:func:`parse_hierarchy` of this process."""
    with open("/proc/self/cgroup", errors="surrogateescape") as file:
        return parse_hierarchy(mounts(), file.read())


class Place(Record):
    """Where a home can be made.

    ``kind`` is ``system`` or ``user`` for that systemd manager (``where`` is its bus), ``unit`` for a unit of it that
    is ours alone and stands among the agents, ``direct`` for a cgroup that was delegated to us (``where`` is its path).
    """

    kind: Literal["system", "user", "unit", "direct"]
    where: str
    hierarchy: Hierarchy

    def acquire(
        self,
        name: str,
        standing: Standing,
        meanwhile: Callable[[], None],
        walled: bool = False,
        controllers: Sequence[str] = CONTROLLERS,
    ) -> Home:
        """Make the home of the agent ``name``, this process in it.  NameTaken where there is one.

        ``standing`` is the home's beside the others; ``meanwhile`` is called while systemd works, or not
        at all.  ``walled``: with a namespace for the agent.  ``controllers`` are what it gets, as far as there are any.
        """
        if self.kind == "direct":
            return DirectHome(
                self.where, self.hierarchy.own_path, name, standing, walled, controllers
            )
        if self.kind == "unit":
            systemd.stand(self.where, os.path.basename(self.hierarchy.own), standing)
            meanwhile()
            return ScopeHome(self.hierarchy.own_path, walled, controllers)
        systemd.start_scope(
            self.where, name, self.hierarchy.mount, controllers, meanwhile, standing
        )
        return ScopeHome(hierarchy().own_path, walled, controllers)

    def hold(self, slice_path: str, memory: int, cpu: float) -> None:
        """Have the kernel hold all agents together to this (bytes, cores), as far as nothing else does already."""
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
    """Where an agent's home can be made by this process, or by us for others where it is not ``ours``.

    A cgroup that was delegated to us comes first, so that a service with ``Delegate=yes`` keeps its
    agents and a run inside an agent stays inside; then systemd; then whatever we may write.
    ``best_effort`` also takes a hierarchy that has no controllers.  Others' agents are systemd's, where it is here:
    what is delegated to the daemon ends with it.  Raises NoCgroup.
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
    """Whether our own cgroup was delegated to us: what we run then belongs in there."""
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
    """Raise NoCgroup where the v2 hierarchy has no controller to give."""
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
    """Our own cgroup, and its parent for a service with DelegateSubgroup= (systemd.exec(5))."""
    yield found.own_path
    # Higher up are cgroups that were delegated to a manager, such as user@1000.service.
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
"""What the handlers of a user's alerts may have by the daemon, all of one agent's together: they are beside its limits."""


class Home:
    """The cgroups of one run; see the module's docstring for the picture.

    ``cgroup`` is the home itself, ``view`` a descriptor of the cgroup namespace in which ``agent`` is all that
    there is, for an agent that is to have it.  :meth:`furnish` is called once by the constructors below.
    """

    cgroup: Cgroup
    agent: Cgroup
    main: Cgroup
    handlers: Cgroup
    view: int | None = None

    def furnish(self, walled: bool, controllers: Sequence[str]) -> None:
        """Make the leaves, move this process into its own, give the agent all controllers."""
        supervisor = self.cgroup.create("supervisor")
        self.agent = self.cgroup.create("agent")
        if walled:
            from agentres.kernel import walls

            # A namespace begins where who makes it is: here only as long as this may hold processes.
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
        """Move a helper of ours to where it ends with the home, and whatever it starts; ``held`` to :data:`HELPERS`."""
        if not hasattr(self, "handlers"):
            handlers = self.cgroup.create("handlers")
            for file, text in HELPERS if held else ():
                if handlers.has(file):
                    handlers.set_property(file, text)
            self.handlers = handlers
        self.handlers.move_here(pid)

    def release(self) -> None:
        """Kill what is left of the agent and remove its cgroups, then leave the home.

        Also after :meth:`furnish` has failed half-way: ``agent`` and ``main`` may be missing.
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
        """Undo what made the home."""
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

    ``parent`` may hold processes: us, our shell.  While agents run it cannot (it has controllers
    enabled), so they wait in a leaf beside the slice that holds the homes, and the last run to end puts
    them back and removes that.  Runs in the same parent take turns under a lock on it.
    """

    def __init__(
        self,
        parent: str,
        origin: str,
        name: str,
        standing: Standing,
        walled: bool,
        controllers: Sequence[str] = CONTROLLERS,
    ) -> None:
        self.parent = Cgroup(parent)
        self._wanted = _those(controllers, self.parent)
        self.origin = origin
        try:
            # All under one lock: an empty home is what the next run sweeps away.
            with Lock(self.parent.path, _TURN_SECONDS, in_line=True):
                self.slice = _child(self.parent, systemd.SLICE)
                _sweep(self.slice)
                self.cgroup = self.slice.create(systemd.PREFIX + name)
                self._make_room()
                self.slice.enable(self._wanted)
                self._stand(standing)
                self.furnish(walled, controllers)
        except BaseException as error:
            if hasattr(self, "cgroup"):
                self.release()
                raise
            self.parent.close()
            if isinstance(error, ControlFileError) and error.errno == errno.EEXIST:
                raise NameTaken(f"an agent named {name} is running ({error.path})") from None
            raise

    def _stand(self, standing: Standing) -> None:
        files = {"cpu.weight": standing.weight, "io.weight": standing.weight}
        for file, value in {**files, "memory.low": standing.protected}.items():
            # io.weight: with BFQ or io.cost only.  The kernel's own are 100 and 0.
            if value != (0 if file == "memory.low" else 100) and self.cgroup.has(file):
                self.cgroup.set_property(file, str(value))

    def _make_room(self) -> None:
        """Give the slice the controllers; what processes the parent holds must go for that."""
        if set(self._wanted) <= set(self.parent.subtree_control):
            return
        if not self.parent.is_root:
            self._move_all(self.parent, _child(self.parent, _BYSTANDERS))
        self.parent.enable(self._wanted)

    @staticmethod
    def _move_all(source: Cgroup, target: Cgroup) -> None:
        # Once more around for what was forked meanwhile; each round moves all but the newest.
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
        """Move this process to where it came from, or as near as the other runs allow."""
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
    """The controllers that the cgroup can give to its children."""
    return [c for c in controllers if c in cgroup.controllers]


def _child(parent: Cgroup, name: str) -> Cgroup:
    """The child, made where there is none."""
    path = f"{parent.path}/{name}"
    return Cgroup(path) if os.path.isdir(path) else parent.create(name)


def _sweep(parent: Cgroup) -> None:
    """Remove the homes of runs whose supervisor was killed and whose agent has ended since."""
    for name in parent.children():
        if name.startswith(systemd.PREFIX):
            home = Cgroup(f"{parent.path}/{name}")
            if home.populated:
                home.close()
            else:
                log.debug(__name__, "removing %s, left by a run that was killed", home.path)
                home.remove_tree()
