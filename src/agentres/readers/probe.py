"""Finds out what this host can enforce, by a real run of a trivial agent and by looking at files.

Nothing is concluded from version numbers: a file exists or it does not.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

from agentres.kernel import delegation, devices, systemd
from agentres.kernel.fq import Interface, interfaces
from agentres.kernel.kmsg import KernelLog
from agentres.kernel.mounts import Mount, mounts
from agentres.model.errors import AgentresError

_LIST_OWN_FILES = (
    "import os;"
    "own = open('/proc/self/cgroup').read().split('0::')[1].strip();"
    "mount = os.environ['AGENTRES_PROBE_MOUNT'];"
    "print(*os.listdir(os.path.dirname(mount + own)))"
)
"""The program of the trial agent: lists the control files of the cgroup that has its limits."""

_TRIAL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole block device: its name, number and size in bytes."""

    name: str
    number: str
    size: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that ``agentres doctor`` judges by.

    ``trial`` is the JSON summary of a run with default limits and ``--best-effort``; None if even that
    failed, for the reason in ``trial_error``.  ``control_files`` are those of the trial's agent.
    ``user_manager`` is None for root.  ``controllers`` says where each is mounted (``v2 at MOUNT``).
    """

    kernel: str
    libc: str
    uid: int
    cpus: int
    memory: int
    swap: int
    place: str = ""
    place_kind: str = ""
    place_error: str = ""
    place_remedy: str = ""
    trial: dict[str, Any] | None = None
    trial_error: str = ""
    control_files: frozenset[str] = frozenset()
    disks: tuple[Disk, ...] = ()
    unlimited_mounts: tuple[str, ...] = ()
    nofile_hard: int = 0
    spawn_into_cgroup: bool = False
    pressure: bool = False
    kernel_log: bool = False
    user_controllers: tuple[str, ...] = field(default=())
    user_manager: bool | None = None
    controllers: dict[str, str] = field(default_factory=dict)
    interfaces: tuple[Interface, ...] = ()
    interfaces_error: str = ""
    daemon: str = ""


def gather(daemon: str = "") -> Facts:
    """Collect the facts, with one trial run (about a second).  ``daemon`` is the socket of one that serves us."""
    place: dict[str, Any] = {}
    trial: dict[str, Any] = {}
    try:
        found = delegation.find()
        place = {"place": found.where, "place_kind": found.kind}
        if found.kind == "user":
            place["user_controllers"] = _user_controllers(found.hierarchy.mount)
        trial = _trial(found.hierarchy.mount)
    except AgentresError as error:
        place = {"place_error": error.message, "place_remedy": error.remedy}
    unlimited = devices.unlimited_mounts(("/", "/tmp", "/var/tmp", "."), mounts())
    log = KernelLog()
    readable = log.readable
    log.close()
    return Facts(
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()),
        uid=os.geteuid(),
        cpus=psutil.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        swap=psutil.swap_memory().total,
        **place,
        **trial,
        disks=tuple(_disks()),
        unlimited_mounts=tuple(f"{item.mount.point}: {item.why}" for item in unlimited),
        nofile_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        spawn_into_cgroup=hasattr(ctypes.CDLL(None), "pidfd_spawn"),
        pressure=os.path.exists("/proc/pressure/memory"),
        kernel_log=readable,
        user_manager=os.path.exists(systemd.bus_socket(os.geteuid())) if os.geteuid() else None,
        controllers=where_controllers_are(mounts()),
        **_interfaces(),
        daemon=daemon,
    )


def _interfaces() -> dict[str, Any]:
    try:
        return {"interfaces": tuple(interfaces())}
    except AgentresError as error:
        return {"interfaces_error": str(error)}


def where_controllers_are(table: list[Mount]) -> dict[str, str]:
    """Return for each controller that agentres uses ``v2 at MOUNT``, ``v1 at MOUNT``, or ``absent``."""
    unified = next((mount.point for mount in table if mount.fstype == "cgroup2"), "")
    try:
        with open(f"{unified}/cgroup.controllers") as file:
            available = file.read().split()
    except OSError:  # no cgroup2, or another mount hides it
        available = []
    found = {}
    for name in delegation.CONTROLLERS:
        legacy = "blkio" if name == "io" else name
        v1 = (m.point for m in table if m.fstype == "cgroup" and legacy in m.options)
        where = next((f"v1 at {point}" for point in v1), "absent")
        found[name] = f"v2 at {unified}" if name in available else where
    return found


def _trial(mount: str) -> dict[str, Any]:
    read_end, write_end = os.pipe()
    command = [
        *(sys.executable, "-P", "-m", "agentres", "run", "--local", "--quiet", "--best-effort"),
        *("--name", f"doctor-{os.getpid()}", "--summary", f"/dev/fd/{write_end}"),
        *("--", sys.executable, "-c", _LIST_OWN_FILES),
    ]
    try:
        done = subprocess.run(
            command,
            pass_fds=[write_end],
            env={**os.environ, "AGENTRES_PROBE_MOUNT": mount},
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"trial_error": f"a trial run did not end in {_TRIAL_SECONDS} s"}
    finally:
        os.close(write_end)
        summary = _drain(read_end)
    if done.returncode or not summary:
        return {"trial_error": done.stderr.strip().removeprefix("agentres: ") or "no summary"}
    return {"trial": json.loads(summary), "control_files": frozenset(done.stdout.split())}


def _drain(fd: int) -> str:
    with open(fd) as pipe:
        return pipe.read()


def _user_controllers(mount: str) -> tuple[str, ...]:
    uid = os.geteuid()
    path = f"{mount}/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
    try:
        with open(path) as file:
            return tuple(file.read().split())
    except OSError:  # another layout; the trial shows what is available
        return ()


def _disks() -> list[Disk]:
    disks = []
    for number in devices.every_disk(mounts()):
        path = os.path.realpath(f"{devices.SYS}/dev/block/{number}")
        with open(f"{path}/size") as file:
            disks.append(Disk(os.path.basename(path), number, int(file.read()) * 512))
    return disks
