"""Enforcement: writes an agent's limits before its command runs, and tells which do not hold."""

from __future__ import annotations

import os

from agentres.model.errors import NotEnforceable
from agentres.model.limits import (
    CPUSET,
    EVERY_DISK,
    LIMIT_SPECS,
    OOM_GROUP,
    ControlLine,
    Limits,
    UnenforcedLimit,
    io_max_lines,
    limit_spec,
)
from agentres.model.record import TYPE_CHECKING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from agentres.kernel.actuator import Actuator
    from agentres.kernel.delegation import Home
    from agentres.kernel.mounts import Mount
    from agentres.kernel.network import Network, Programs
    from agentres.kernel.project import Quota
    from agentres.kernel.trampoline import Identity
    from agentres.policy.elastic import Terms
    from agentres.policy.settings import Settings
    from agentres.run.agent import Request


class BpfLoader:
    """Loads the BPF programs that limit the network, while the launch waits for something else."""

    def __init__(self, limits: Limits) -> None:
        self._wanted = limits.network is not None
        self._programs: Programs | None = None
        self._why = ""

    def load(self) -> None:
        """Load the programs, or keep the reason why they cannot be loaded."""
        if self._wanted and self._programs is None and not self._why:
            from agentres.kernel.network import Programs

            try:
                self._programs = Programs()
            except NotEnforceable as error:
                self._why = str(error)

    def attach(self, limits: Limits, home: Home) -> Network | UnenforcedLimit | None:
        """Attach the programs to the agent: return what limits its network, without a limit yet, or why nothing does; None: there is to be no limit."""
        if (wanted := limits.network) is None:
            return None
        self.load()
        if self._programs is None:
            return UnenforcedLimit(wanted.line(), self._why)
        try:
            return self._programs.attach(home.agent)
        except NotEnforceable as error:
            return UnenforcedLimit(wanted.line(), str(error))
        finally:
            self._programs.close()
            self._programs = None


class Enforcement(Record):
    """The limits that hold (``lines``), those that do not (``missing``), and how they move (``terms_for``)."""

    lines: list[ControlLine]
    missing: list[UnenforcedLimit]
    terms_for: Callable[[Settings], Terms]
    # The disk rates that are held by pausing the agent, from the beginning.
    paced: tuple[str, ...] = ()
    # The CPUs that its main process may run on; None: ours.
    affinity: Collection[int] | None = None

    def holds(self, file: str) -> bool:
        """Whether the limit in this control file was written."""
        return any(line.file == file for line in self.lines)


def enforce(
    request: Request, home: Home, identity: Identity | None, loader: BpfLoader, actuator: Actuator
) -> Enforcement:
    """Have the actuator write the limits.  NotEnforceable if one that must hold does not."""
    from agentres.kernel import devices
    from agentres.kernel.mounts import mounts

    limits, table = request.limits, mounts()
    named = {name: devices.behind(name) for name in limits.named_devices}
    every = devices.every_disk(table) if limits.limits_every_disk else []
    io_max = io_max_lines(limits, every, named)
    lines = limits.lines(io_max)
    disks = {name: tuple(numbers) for name, numbers in {**named, EVERY_DISK: every}.items()}
    # /proc/PID/io: the kernel counts what a process writes (CONFIG_TASK_IO_ACCOUNTING).
    pausing = limits.io_strict == "on" and os.path.exists("/proc/self/io")
    actuator.take_disks(io_max, disks, pausing)
    missing = actuator.apply(lines)
    refused = {item.line for item in missing}
    missing = [item for item in missing if not item.line.optional]
    tolerated, affinity = request.tolerated, None
    if limits.cpus:
        from agentres.run import pinning

        affinity = pinning.bind(actuator, limits.cpus)
        if actuator.bound:
            tolerated |= {CPUSET}
            missing = [pinning.loosely(item) for item in missing]
    if limits.limits_every_disk and not any(item.line.file == "io.max" for item in missing):
        own = identity.home if identity else request.environment.get("HOME", "/")
        # Where an agent is likely to write.
        places = ["/", "/tmp", "/var/tmp", request.cwd or ".", own]
        missing += _unlimited(places, table) if every else [_NO_DISK]
    missing += _unlimited_names(limits.named_write_devices, table)
    paced = tuple(key for key in actuator.paced if actuator.paced_rate(key) is not None)
    if paced and not actuator.io_held and limits.only_bytes_of_every_disk:
        missing = [item for item in missing if item.line.file != "io.max"]
    network = loader.attach(limits, home)
    if isinstance(network, UnenforcedLimit):
        if limits.limits_network:
            missing.append(network)
    elif network is not None and limits.network is not None:
        actuator.take_network(network, limits.network)
        lines.append(limits.network.line())
    for item in missing:
        # A rate for one device says nothing about mounts without a device.
        asked = bool(item.line.text) or request.every_disk_asked
        if asked and not request.best_effort and item.line.file not in tolerated:
            raise NotEnforceable(
                f"cannot enforce {_options(item.line.file)}: {item.why}",
                "`agentres doctor` tells how to get it, --best-effort runs without it",
            )
    lines = [line for line in lines if line not in refused]
    held = {line.file for line in lines}
    moving = {key: r for key, r in limits.ranges.items() if limit_spec(key).file in held}

    def terms_for(settings: Settings) -> Terms:
        from agentres.policy.elastic import Terms

        return Terms(
            limits.but(ranges=moving),
            settings.chosen(request.philosophy),
            request.priority,
            request.share,
            os.path.dirname(home.cgroup.path),
        )

    return Enforcement(lines, missing, terms_for, paced, affinity)


def _options(file: str) -> str:
    """The options that set a limit in this control file."""
    found = LIMIT_SPECS["memory"].file if file == OOM_GROUP else file
    keys = (key for key, limit in LIMIT_SPECS.items() if limit.file == found)
    return "/".join(f"--{key.replace('_', '-')}" for key in keys)


def hold_space(
    request: Request, home: Home, missing: list[UnenforcedLimit], early: Callable[[], None]
) -> Quota | None:
    """Limit by a quota what the agent adds to a directory; None: not possible, and noted in ``missing``.

    ``early`` is called until the quota holds, and may raise.  NotEnforceable, UsageError.
    """
    from agentres.kernel.project import Quota

    assert request.disk_space is not None
    directory, size = request.disk_space
    place = os.path.join(request.cwd or ".", directory)
    caller = None if request.behalf is None else request.behalf.caller
    try:
        return Quota(place, size, home.agent.path, caller, early)
    except NotEnforceable as error:
        if not request.best_effort:
            raise
        missing.append(UnenforcedLimit(ControlLine("disk space", str(size)), error.message))
        return None


_NO_DISK = UnenforcedLimit(ControlLine("io.max", ""), "no disk is to be seen in /sys/block")


def _unlimited(places: Iterable[str], table: list[Mount], text: str = "") -> list[UnenforcedLimit]:
    """Return the mounts of these places that ``io.max`` does not limit; ``text`` is what was asked for there."""
    from agentres.kernel import devices

    return [
        UnenforcedLimit(
            ControlLine("io.max", text, key=found.mount.point),
            f"on {found.mount.point}: {found.why}",
        )
        for found in devices.unlimited_mounts(places, table)
    ]


def _unlimited_names(names: Iterable[str], table: list[Mount]) -> list[UnenforcedLimit]:
    """Return the files and directories, named to mean their disk, whose file system escapes the rate."""
    from agentres.kernel import devices

    paths = (name for name in names if not devices.is_device(name))
    return [limit for path in paths for limit in _unlimited([path], table, path)]
