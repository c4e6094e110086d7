"""Judges facts about a host: what can be enforced there, what is missing, and the remedy; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from agentres.model.limits import LIMIT_SPECS, NETWORK, OOM_GROUP
from agentres.model.units import format_size
from agentres.readers.probe import Facts

Status = Literal["ok", "missing", "refused", "note"]
"""``missing``: runs start without it and say so.  ``refused``: a run is refused for it."""

IO_DROP_IN = (
    "sudo mkdir -p /etc/systemd/system/user@.service.d"
    " && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n'"
    " | sudo tee /etc/systemd/system/user@.service.d/delegate.conf"
    " && sudo systemctl daemon-reload, then log in again"
)
"""Commands that make user managers delegate io (systemd.resource-control(5), Delegate=)."""

_FILES = {
    LIMIT_SPECS["cpu"].file: "CPU time",
    LIMIT_SPECS["memory"].file: "memory",
    LIMIT_SPECS["swap"].file: "swap",
    OOM_GROUP: "one victim per OOM kill",
    LIMIT_SPECS["pids"].file: "processes",
    LIMIT_SPECS["io_read"].file: "disk rates",
    NETWORK: "network rates",
}

_FEATURES = {
    "cgroup.kill": "the whole tree is killed at once (Linux 5.14)",
    "cgroup.freeze": "the whole tree can be frozen (Linux 5.2)",
    "memory.peak": "peak memory is counted (Linux 5.19)",
    "pids.peak": "the most processes are counted (Linux 6.1)",
    "memory.high": "memory can be throttled before it is killed",
    "memory.reclaim": "memory can be asked back (Linux 5.19)",
    "cpu.max.burst": "unused CPU time can be saved up (Linux 5.14)",
    "cgroup.pressure": "pressure (PSI) is counted per agent (Linux 6.1)",
}

TOLERATED = frozenset({"io.max", NETWORK})
"""Files of limits that are optional by default: a run that did not ask for one starts without it, and says so."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def examine(facts: Facts, tolerated: frozenset[str] = TOLERATED) -> list[Finding]:
    """Return all findings, most important first; the limits of the ``tolerated`` files were not asked for."""
    return [
        *_daemon(facts),
        *_place(facts),
        *_limits(facts, tolerated),
        *_pacing(facts),
        *_host(facts),
        *_features(facts),
    ]


def refused(findings: list[Finding]) -> bool:
    """Return whether ``agentres run`` without ``--best-effort`` would be refused."""
    served = any(finding.check == "daemon" for finding in findings)
    return not served and any(finding.status == "refused" for finding in findings)


def _daemon(facts: Facts) -> Iterator[Finding]:
    if facts.daemon:
        what = "behind walls, with the limits that need root, within your ceilings; all below is of agentres run --local"
        yield Finding("daemon", "ok", f"{facts.daemon} has agents run: {what}")


def _place(facts: Facts) -> Iterator[Finding]:
    for name, where in facts.controllers.items():
        delegated = facts.place_kind != "user" or name in facts.user_controllers
        suffix = "" if delegated else ", not delegated to your user manager"
        there = where.startswith("v2") and delegated
        yield Finding(f"{name} controller", "ok" if there else "missing", where + suffix)
    if facts.user_manager is not None:
        runs = "runs" if facts.user_manager else "does not run"
        status: Status = "ok" if facts.user_manager else "missing"
        yield Finding("user manager", status, f"systemd's user manager for uid {facts.uid} {runs}")
    if facts.place_error:
        yield Finding("cgroup", "refused", facts.place_error, facts.place_remedy)
        return
    where = {
        "system": "a systemd scope in agentres.slice, from the system manager",
        "user": "a systemd scope in agentres.slice, from your user manager",
        "direct": f"below {facts.place}, which is delegated to us",
    }[facts.place_kind]
    yield Finding("cgroup", "ok", where)
    if facts.trial is None:
        yield Finding("trial run", "refused", facts.trial_error)


def _limits(facts: Facts, tolerated: frozenset[str]) -> Iterator[Finding]:
    if facts.trial is None:
        return
    missing: dict[str, list[dict[str, Any]]] = {}
    for row in facts.trial["not_enforced"]:
        missing.setdefault(row["file"], []).append(row)
    enforced = {row["file"] for row in facts.trial["enforced"]}
    for file, what in _FILES.items():
        if file in missing:
            status: Status = "missing" if file in tolerated else "refused"
            why = "; ".join(dict.fromkeys(row["why"] for row in missing[file]))
            yield Finding(file, status, f"{what}: {why}", _remedy(facts, file))
        elif file in enforced:
            pauses = file == "io.max" and facts.trial["paced"]
            paced = "; what it writes to files of others by pausing it" if pauses else ""
            yield Finding(file, "ok", f"{what}: written and read back{paced}")
        elif file == "io.max" and facts.trial["paced"]:
            how = "held on average by pausing the agent, as it has no io controller"
            yield Finding(file, "missing", f"{what}: {how}", _remedy(facts, file))
        elif file == "io.max":
            yield Finding(file, "note", f"{what}: this host shows no disk to limit")
    yield Finding("nofile", "ok", f"open files: up to {facts.nofile_hard} for each process")


def _remedy(facts: Facts, file: str) -> str:
    if file == NETWORK:
        return "run agentres as root; --net none is to be had without"
    controller = file.partition(".")[0]
    if facts.place_kind == "user" and controller not in facts.user_controllers:
        return IO_DROP_IN
    if facts.place_kind == "direct" and file not in facts.control_files:
        return f"delegate {controller} to {facts.place} (Delegate=yes in the service's unit)"
    if file == "io.max":
        return "name the disks that can be limited, as --io-write /dev/NAME=RATE"
    return "a kernel with this controller; cgroup_disable= on its command line takes it away"


def _host(facts: Facts) -> Iterator[Finding]:
    shape = f"{facts.cpus} CPUs, {format_size(facts.memory)} memory, {format_size(facts.swap)} swap"
    yield Finding("host", "note", f"Linux {facts.kernel}, {facts.libc}; {shape}")
    disks = ", ".join(f"{d.name} ({d.number}, {format_size(d.size)})" for d in facts.disks)
    yield Finding("disks", "note", disks or "none")
    for text in facts.unlimited_mounts:
        yield Finding("disks", "missing", f"no write limit on {text}")
    if facts.uid == 0:
        wall = "run agents with --isolate or --user: one that runs as root can undo its own limits"
    else:
        wall = "against accidents, not malice: an agent with your uid can undo its own limits"
    yield Finding("wall", "note", wall)


def _pacing(facts: Facts) -> Iterator[Finding]:
    """Yield findings on pacing; none if network rates cannot be enforced at all."""
    if facts.trial is None or all(row["file"] != NETWORK for row in facts.trial["enforced"]):
        return
    if facts.interfaces_error:
        yield Finding("pacing", "missing", facts.interfaces_error)
    for each in facts.interfaces:
        kinds = ", ".join(each.kinds) or "nothing"
        if each.delays:
            yield Finding(f"pacing {each.name}", "ok", "fq: what is sent too fast waits")
        else:
            # Packets of a virtual interface leave through another one.
            remedy = "sudo agentres doctor --fix-net" if each.hardware else ""
            what = f"{kinds}: what is sent too fast is dropped; fq would hold it back"
            yield Finding(
                f"pacing {each.name}", "missing" if each.hardware else "note", what, remedy
            )


def _features(facts: Facts) -> Iterator[Finding]:
    if facts.trial is not None:
        for file, what in _FEATURES.items():
            there = file in facts.control_files
            yield Finding(file, "ok" if there else "missing", what)
    yield Finding(
        "PSI", "ok" if facts.pressure else "missing",
        "pressure stall information for the host", "" if facts.pressure else "boot with psi=1",
    )  # fmt: skip
    yield Finding(
        "kernel log", "ok" if facts.kernel_log else "missing",
        "names the victims of OOM kills",
        "" if facts.kernel_log else "for root, or with sysctl kernel.dmesg_restrict=0",
    )  # fmt: skip
    yield Finding(
        "pidfd_spawn", "ok" if facts.spawn_into_cgroup else "note",
        "glibc can spawn into a cgroup (2.39); agentres forks and joins instead",
    )  # fmt: skip
