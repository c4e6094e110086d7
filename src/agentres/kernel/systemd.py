"""Gets a transient scope from systemd over D-Bus: the cgroup delegated to us on a systemd host.

org.freedesktop.systemd1(5), StartTransientUnit; systemd.scope(5); systemd's CGROUP_DELEGATION.md.
The caller itself moves into the scope, so the scope lives as long as the supervisor or the agent
does.  When the last of them has ended, systemd removes it with all cgroups below it.
"""

from __future__ import annotations

import os
import time

from agentres.kernel.dbus import Connection
from agentres.kernel.process import populated
from agentres.model.errors import NameTaken, SystemdError
from agentres.model.limits import Precedence
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SLICE = "agentres.slice"
_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_INFINITY = 2**64 - 1

_STALE_SECONDS = 5.0
"""How long an empty scope may take to vanish before its name counts as taken."""


PREFIX, UNIT_PREFIX = "agentres-", "agentres@"
"""Prefixes of the name of an agent's home: for a scope or a plain cgroup, and for a unit."""


def running() -> bool:
    """Whether systemd is this host's init: sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def bus_path(uid: int) -> str:
    """Return where the bus of ``uid``'s manager is: the system bus's socket for root, else the user's runtime directory."""
    if uid == 0:
        return "/run/dbus/system_bus_socket"
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"


def bus_socket(uid: int) -> str:
    """Return the UNIX socket of the bus of ``uid``'s manager."""
    path = bus_path(uid)
    return path if uid == 0 else f"{path}/bus"


def unit_name(name: str) -> str:
    """Return the scope's name for the agent ``name``."""
    return f"{PREFIX}{name}.scope"


def delegated_unit(bus: str, cgroup: str) -> str:
    """Return the cgroup of the unit that ``cgroup`` is in or is, if that has Delegate=; else empty.

    A system manager marks this with an xattr; a user manager tells it only over D-Bus.
    """
    parts = cgroup.split("/")
    while parts and not parts[-1].endswith((".service", ".scope")):
        parts.pop()
    if not parts or parts[-1] == "init.scope":  # the manager itself
        return ""
    kind = "Service" if parts[-1].endswith(".service") else "Scope"
    try:
        with Connection(bus) as connection:
            (path,) = _call(connection, "GetUnit", "s", parts[-1])
            delegate = _property(connection, str(path), kind, "Delegate")
    except SystemdError:  # we have no manager, or it has no such unit
        return ""
    return "/".join(parts) if delegate else ""


def start_scope(
    bus: str,
    name: str,
    mount: str,
    controllers: Sequence[str],
    meanwhile: Callable[[], None],
    precedence: Precedence = Precedence(),  # noqa: B008 -- a value, never changed
) -> None:
    """Move the caller into a new scope for the agent ``name`` and wait until that is done.

    ``mount`` is where cgroup2 is mounted.  ``controllers`` are those that the scope gets, if its
    manager has them.  ``meanwhile`` is called once while systemd works.  ``precedence`` is the scope's
    weight and protection against its siblings.  Raises NameTaken if an agent of that name is alive,
    and SystemdError with systemd's message for anything else.
    """
    unit = unit_name(name)
    properties: list[tuple[str, object]] = [
        ("Description", ("s", f"agentres: agent {name}")),
        ("PIDs", ("au", [os.getpid()])),
        ("Slice", ("s", SLICE)),
        # Only what is used: Delegate=yes would make systemd set up cpuset and the rest too, and the
        # first cpuset cgroup of a host patches the kernel's page allocator (cpusets_enabled_key).
        ("DelegateControllers", ("as", list(controllers))),
        # pids.max stands on our own cgroup; systemd's default here could be below it.
        ("TasksMax", ("t", _INFINITY)),
        # A scope whose last process failed would otherwise keep its name.
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    properties += _precedence(precedence)
    deadline = time.monotonic() + _STALE_SECONDS
    with Connection(bus) as connection:
        # Send all without waiting in between: the bus and systemd keep the order.
        subscribed = connection.send(_NAME, _PATH, _MANAGER, "Subscribe")
        matched = connection.send(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
            "AddMatch", "s", f"type='signal',sender='{_NAME}',path='{_PATH}'",
        )  # fmt: skip
        asked = _ask(connection, unit, properties)
        meanwhile()
        connection.answer(subscribed)
        connection.answer(matched)
        while True:
            try:
                (job,) = connection.answer(asked)
                break
            except SystemdError as error:
                if error.name != f"{_NAME}.UnitExists":
                    raise SystemdError(f"systemd made no scope {unit}: {error.message}") from error
                if time.monotonic() > deadline or _lives(connection, unit, mount):
                    raise NameTaken(
                        f"an agent named {name.rpartition(':')[2]} is running ({unit})"
                    ) from None
            time.sleep(0.01)  # the old scope is empty and systemd is about to drop it
            asked = _ask(connection, unit, properties)
        result = connection.wait_signal("JobRemoved", lambda body: body[1] == job).body[3]
    if result != "done":
        raise SystemdError(f"systemd made no scope {unit}: its job ended as {result!r}")


def _precedence(precedence: Precedence) -> list[tuple[str, object]]:
    properties: list[tuple[str, object]] = []
    if precedence.weight != 100:  # the kernel's default
        properties += [(f"{kind}Weight", ("t", precedence.weight)) for kind in ("CPU", "IO")]
    if precedence.protected:
        properties.append(("MemoryLow", ("t", precedence.protected)))
    return properties


def set_precedence(bus: str, unit: str, precedence: Precedence) -> None:
    """Set a running unit's weight and protection against its siblings, until it ends.  Raises SystemdError."""
    # Set all of them: the values of the unit's last run are still there.
    properties = [(f"{kind}Weight", ("t", precedence.weight)) for kind in ("CPU", "IO")]
    properties.append(("MemoryLow", ("t", precedence.protected)))
    with Connection(bus) as connection:
        _call(connection, "SetUnitProperties", "sba(sv)", unit, True, properties)


def limit_slice(bus: str, memory: int | None, cpu: float | None) -> None:
    """Set the memory (bytes) and the CPU (cores) that all agents together may use, until the next boot.

    None leaves a limit as it is.  Raises SystemdError.
    """
    properties: list[tuple[str, object]] = []
    if memory is not None:
        properties.append(("MemoryMax", ("t", memory)))
    if cpu is not None:
        properties.append(("CPUQuotaPerSecUSec", ("t", round(cpu * 1e6))))
    with Connection(bus) as connection:
        _call(connection, "SetUnitProperties", "sba(sv)", SLICE, True, properties)


def _ask(connection: Connection, unit: str, properties: list[tuple[str, object]]) -> int:
    return connection.send(
        _NAME, _PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))",
        unit, "fail", properties, [],
    )  # fmt: skip


def _call(
    connection: Connection, member: str, signature: str = "", *values: object
) -> tuple[object, ...]:
    return connection.call(_NAME, _PATH, _MANAGER, member, signature, *values)


def _property(connection: Connection, path: str, kind: str, name: str) -> object:
    ((_, value),) = connection.call(
        _NAME, path, "org.freedesktop.DBus.Properties", "Get", "ss", f"{_NAME}.{kind}", name
    )
    return value


def _lives(connection: Connection, unit: str, mount: str) -> bool:
    """Whether a process is in the scope; an empty one is on its way out."""
    try:
        (path,) = _call(connection, "GetUnit", "s", unit)
        group = _property(connection, str(path), "Scope", "ControlGroup")
        return populated(f"{mount}{group}")
    except (SystemdError, OSError):  # it vanished between the two calls
        return False
