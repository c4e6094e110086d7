"""Describes what a run did and which limits it met, in words and as JSON; pure."""

from __future__ import annotations

from types import MappingProxyType

from agentres.kernel import signal
from agentres.model.errors import exit_status, printable, printable_path
from agentres.model.limits import NETWORK, NETWORKS, ControlLine, Limits, UnenforcedLimit
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import EscapedProcess, OomKill, RunningProcess, Usage
from agentres.model.units import MAX, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from agentres.kernel.project import QuotaUsage
    from agentres.model.oom import Footprint
    from agentres.model.schemas import LimitsJson, Summary

SCHEMA = 1
"""The version of the JSON summary; it rises when a key changes its meaning or is removed."""

_NAMED = 5
"""How many of a list of processes are named."""


class Hit(Record):
    """A limit that was met: its control file, the number of times, and what that means."""

    limit: str
    events: int
    text: str


class Outcome(Record):
    """How a run ended; times in seconds."""

    name: str
    command: Sequence[str]
    limits: Limits
    # The main process's exit status, or -N if signal N ended it.
    returncode: int
    wall: float
    timeout: float | None = None
    timed_out: bool = False
    # Whether SIGKILL had to follow SIGTERM.
    killed_after_grace: bool = False
    # Who ended it by command, in words; empty: nobody.
    stopped: str = ""
    usage: Usage = Usage()
    unreadable: Mapping[str, str] = MappingProxyType({})
    enforced: Sequence[ControlLine] = ()
    not_enforced: Sequence[UnenforcedLimit] = ()
    oom_kills: Sequence[OomKill] = ()
    # The cgroups whose limit the last of them was killed for (agentres.model.oom.OomCause).
    oom_limits: Sequence[str] | None = None
    # The processes that still ran after the main process had ended; they were killed.
    left: Sequence[RunningProcess] = ()
    # The processes of the run that lived outside of its cgroup then.
    escaped: Sequence[EscapedProcess] = ()
    cgroup: str = ""
    # The memory limit at the end, in bytes.
    memory_limit: float | str | None = None
    # Why it was not raised when it was needed, in words.
    short: str = ""
    # The disk rates that were held by pausing it: all of them unless the kernel held some (io_held).
    paced: Sequence[str] = ()
    io_held: bool = True
    # What was in memory when its limit was met (None: it was not), and by how many bytes each tmpfs of the host grew meanwhile.
    footprint: Footprint | None = None
    grown: Mapping[str, int] = MappingProxyType({})
    # What it might add to a directory, and what it did add; None: there was no limit.
    space: QuotaUsage | None = None
    # How many changes of each rule's alerts, and how many moves of limits, were not reported, as there were too many.
    alerts_left_out: Mapping[str, int] = MappingProxyType({})
    moves_left_out: int = 0

    @property
    def exit_code(self) -> int:
        """The exit status of ``agentres run``."""
        return exit_status(self.returncode, self.timed_out)


def hits(outcome: Outcome) -> list[Hit]:
    """Return the limits that the run met, the gravest first."""
    usage, limits = outcome.usage, outcome.limits
    found = []
    if usage.memory_oom_kill:
        found.append(Hit("memory.max", usage.memory_oom_kill, _oom(outcome)))
    if outcome.timed_out:
        ending = "SIGTERM, then SIGKILL" if outcome.killed_after_grace else "SIGTERM"
        text = f"time limit: {format_duration(outcome.timeout or 0)} had passed, ended by {ending}"
        found.append(Hit("timeout", 1, f"{text}; a larger --timeout gives it longer"))
    if usage.pids_max_events:
        text = f"process limit: {_times(usage.pids_max_events, 'fork')} refused at --pids {_range(limits, 'pids', str)}"
        found.append(Hit("pids.max", usage.pids_max_events, f"{text}; threads count as well"))
    if usage.memory_max_events and not usage.memory_oom_kill:
        text = f"memory limit: held at {_memory(outcome)} by reclaiming, which costs time{_held(outcome)}"
        found.append(Hit("memory.max", usage.memory_max_events, text))
    if usage.nr_throttled:
        text = f"CPU limit: throttled for {format_duration((usage.throttled_usec or 0) / 1e6)}"
        found.append(
            Hit("cpu.max", usage.nr_throttled, f"{text} at {_range(limits, 'cpu', _cores)}")
        )
    if usage.paused_usec:
        text = f"disk rate: paused for {format_duration(usage.paused_usec / 1e6)}"
        why = "for what it wrote to files that belong to others" if outcome.io_held else "as no io controller is here"  # fmt: skip
        found.append(Hit("io.max", 1, f"{text} {why}"))
    for way, key in (("rx", "net_in"), ("tx", "net_out")):
        if dropped := getattr(usage, f"{way}_dropped_packets"):
            size = format_size(getattr(usage, f"{way}_dropped_bytes"))
            text = f"network limit: {_times(dropped, 'packet')} dropped ({size})"
            option = f"--{key.replace('_', '-')}"
            found.append(Hit(NETWORK, dropped, f"{text} at {option} {_range(limits, key, _rate)}"))
    return found


def _oom(outcome: Outcome) -> str:
    usage = outcome.usage
    killed = usage.memory_oom_kill or 0
    kills = outcome.oom_kills
    count = killed if len(kills) > _NAMED else len(kills)  # of many kills only the last are kept
    victims = _first([f"{kill.task} (pid {kill.pid})" for kill in kills], ", ", count)
    if not victims and outcome.returncode == -signal.SIGKILL:
        victims = "very likely the main process, which SIGKILL ended"
    what = f"{_times(killed, 'process', 'processes')} killed for memory"
    who = f": {victims}" if victims else " (the kernel log names it: journalctl -k)"
    peak = f", peak {format_size(usage.memory_peak)}" if usage.memory_peak else ""
    from agentres.run import exhaustion  # few agents need it

    if others := exhaustion.whose(outcome.oom_limits, outcome.cgroup):
        return f"{what}{who}; {others}{peak}"
    short = f", not raised: {outcome.short}" if outcome.short else ""
    return (
        f"memory limit: {what}{who}; limit {_memory(outcome)}{short}{peak}{_held(outcome)};"
        f" {exhaustion.remedy(outcome.footprint, outcome.grown)}"
    )


def _held(outcome: Outcome) -> str:
    if outcome.footprint is None:
        return ""
    from agentres.run import exhaustion

    return f"; {exhaustion.held(outcome.footprint)}"


def _memory(outcome: Outcome) -> str:
    """Return the memory limit at the end of the run, and the most that it could have become."""
    stood = outcome.limits.memory if outcome.memory_limit is None else outcome.memory_limit
    between = outcome.limits.ranges.get("memory")
    if between is None or stood == between.most:
        return _size(stood)
    return f"{_size(stood)} (of up to {_size(int(between.most))})"


def _range(limits: Limits, key: str, show: Callable[[Any], str]) -> str:
    """Return a limit, or the most that it may become."""
    between = limits.ranges.get(key)
    return show(getattr(limits, key)) if between is None else f"up to {show(between.most)}"


def _times(number: int, one: str, many: str = "") -> str:
    return f"{number} {one} was" if number == 1 else f"{number} {many or one + 's'} were"


def _size(size: float | str | None) -> str:
    return format_size(size) if isinstance(size, (int, float)) else "no limit"


def _rate(rate: float | str | None) -> str:
    return format_rate(int(rate)) if isinstance(rate, (int, float)) else "no limit"


def _cores(cores: float | str | None) -> str:
    return f"{cores:g} cores" if isinstance(cores, (int, float)) else "no limit"


def summary(outcome: Outcome) -> list[str]:
    """Return the lines for stderr after a run."""
    usage, limits = outcome.usage, outcome.limits
    if outcome.returncode < 0:
        end = f"was ended by signal {-outcome.returncode} ({(signal.name(-outcome.returncode) or 'a real-time signal')})"
    else:
        end = f"exited {outcome.returncode}"
    lines = [f"{outcome.name} {end} after {format_duration(outcome.wall)}"]
    if outcome.stopped:
        grace = ", by SIGKILL after the grace" if outcome.killed_after_grace else ""
        lines.append(f"  {outcome.stopped}{grace}")
    rows = {
        "cpu": _cpu(outcome),
        "memory": None,
        "disk": _disk(outcome),
        "network": _network(outcome),
        "processes": None,
    }
    if usage.memory_peak is not None:
        rows["memory"] = (
            f"peak {format_size(usage.memory_peak)} of {_range(limits, 'memory', _size)}"
        )
    if usage.pids_peak is not None:
        rows["processes"] = f"at most {usage.pids_peak} of {_range(limits, 'pids', str)}"
    if outcome.space is not None:
        rows["space"] = _space(outcome.space)
    lines += [f"  {name:9}  {text or 'not counted here'}" for name, text in rows.items()]
    lines += [f"  {name}: {why}" for name, why in outcome.unreadable.items()]
    if outcome.left:
        lines.append(f"  {_left(outcome.left)}")
    if outcome.escaped:
        count = _times(len(outcome.escaped), "process", "processes")
        where = escaped(outcome.escaped, fate="left running")
        lines.append(f"  {count} outside of its cgroup and limits: {where}")
    lines += [f"  {hit.text}" for hit in hits(outcome)] or [
        "  no limit on CPU, memory, processes or time was hit"
    ]
    lines += [f"  {text}" for text in _left_out(outcome)]
    return lines


def _left_out(outcome: Outcome) -> list[str]:
    """Return lines about alerts not reported and moves not kept, as there were too many."""
    lines = []
    if by_rule := outcome.alerts_left_out:
        changes = _times(sum(by_rule.values()), "change")
        rules = ", ".join(f"{rule} {number}" for rule, number in by_rule.items())
        lines.append(f"{changes} left out of what was told of alerts, as there were too many: {rules}")  # fmt: skip
    if outcome.moves_left_out:
        moves = _times(outcome.moves_left_out, "move of a limit", "moves of limits")
        lines.append(f"{moves} left out of the history, as there were too many")
    return lines


def _left(running: Sequence[RunningProcess]) -> str:
    count = f"{_times(len(running), 'process', 'processes')} still running"
    ended = "was ended" if len(running) == 1 else "were ended"
    return f"{count} and {ended}: {_first([_who(one) for one in running], ', ')}"


def escaped(processes: Sequence[EscapedProcess], fate: str = "") -> str:
    """Return which processes escaped, where they are and their fate, in words; ``fate`` is for those left alone."""
    return _first(
        [
            ", ".join(
                filter(None, (f"{_who(one)} in {printable_path(one.cgroup)}", one.fate or fate))
            )
            for one in processes
        ],
        "; ",
    )


def _who(process: RunningProcess | EscapedProcess) -> str:
    return f"{printable(process.name)} (pid {process.pid})"


def _first(texts: Sequence[str], separator: str, count: int = 0) -> str:
    """Join the first texts, and say how many more there are; ``count`` is the number in all, if ``texts`` are not all."""
    count = max(count, len(texts))
    more = [f"and {count - _NAMED} more"] if count > _NAMED else []
    return separator.join([*texts[:_NAMED], *more])


def _cpu(outcome: Outcome) -> str | None:
    usage = outcome.usage
    if usage.usage_usec is None:
        return None
    seconds = usage.usage_usec / 1e6
    mean = seconds / outcome.wall if outcome.wall else 0.0
    throttled = (usage.throttled_usec or 0) / 1e6
    return (
        f"{format_duration(seconds)}, on average {mean:.2f} of {_range(outcome.limits, 'cpu', _cores)},"
        f" throttled {format_duration(throttled)}"
    )


def _disk(outcome: Outcome) -> str | None:
    usage = outcome.usage
    text = _disk_used(outcome)
    waits = (usage.file_dirty or 0) + (usage.file_writeback or 0)
    if not waits:
        return text
    dirty = f"{format_size(waits)} not yet written to the disk"
    return f"{text}; {dirty}" if text else dirty


def _disk_used(outcome: Outcome) -> str | None:
    usage = outcome.usage
    if usage.rbytes is not None and usage.wbytes is not None:
        text = f"read {format_size(usage.rbytes)}, wrote {format_size(usage.wbytes)}"
        if usage.unbilled_bytes:
            text += f", and {format_size(usage.unbilled_bytes)} to files that belong to others"
        return text
    how = "; held on average, by pausing" if outcome.paced else ""
    if usage.read_bytes is None or usage.dirtied_bytes is None:
        return f"not counted here{how}" if how else None
    return f"read {format_size(usage.read_bytes)}, wrote {format_size(usage.dirtied_bytes)}{how}"


def _space(quota: QuotaUsage) -> str | None:
    if quota.used is None:
        return None
    of = f"{format_size(quota.used)} of {format_size(quota.limit)}"
    return f"{of} added to {printable(quota.directory)}"


def _network(outcome: Outcome) -> str | None:
    usage = outcome.usage
    if outcome.limits.net == "none":
        return "none but loopback"
    if usage.rx_bytes is None or usage.tx_bytes is None:
        return None
    ways = (
        ("received", usage.rx_bytes, usage.rx_delayed_bytes),
        ("sent", usage.tx_bytes, usage.tx_delayed_bytes),
    )
    return ", ".join(
        f"{word} {format_size(size)}" + (f" ({format_size(early)} held back)" if early else "")
        for word, size, early in ways
    )


def not_enforced(missing: Sequence[UnenforcedLimit]) -> list[str]:
    """Return a line for each limit that does not hold; the devices of ``io.max`` share one."""
    whys: dict[str, list[str]] = {}
    for item in missing:
        seen = whys.setdefault(item.line.file, [])
        if item.why not in seen:
            seen.append(item.why)
    return [f"NOT enforced: {file} ({'; '.join(texts)})" for file, texts in whys.items()]


def limits_line(limits: Limits) -> str:
    """Return the limits in one line, for ``--verbose``."""
    disk = [
        f"{key} {format_rate(rate) if key in ('rbps', 'wbps') else rate}{f' on {name}' if name else ''}"
        for key, rates in limits.disk_rates.items()
        for name, rate in rates.items()
        if rate != MAX
    ]
    parts = [
        f"cpu {_from_to(limits, 'cpu', _cores)}",
        *([f"cpuset {limits.cpuset}"] if limits.cpuset is not None else []),
        f"memory {_from_to(limits, 'memory', _size)}",
        f"swap {_size(limits.swap)}",
        f"pids {_from_to(limits, 'pids', str)}",
        *disk,
        f"nofile {limits.nofile}",
        *(
            f"{key} {_from_to(limits, key, _rate)}"
            for key in NETWORKS
            if getattr(limits, key) is not None and limits.net != "none"
        ),
        *([f"net {limits.net}"] if limits.net != "host" else []),
    ]
    return ", ".join(parts)


def _from_to(limits: Limits, key: str, show: Callable[[Any], str]) -> str:
    """Return a limit, and the range in which it moves."""
    first = show(getattr(limits, key))
    between = limits.ranges.get(key)
    return f"{first} ({show(between.least)} to {show(between.most)})" if between else first


def limits_as_json(limits: Limits, timeout: float | None) -> LimitsJson:
    """Return the limits by their keys; ``timeout`` in seconds."""
    return {
        "cpu": limits.cpu,
        "cpuset": limits.cpuset,
        "memory": limits.memory,
        "swap": limits.swap,
        "pids": limits.pids,
        "rbps": dict(limits.io_read),
        "wbps": dict(limits.io_write),
        "riops": dict(limits.io_read_iops),
        "wiops": dict(limits.io_write_iops),
        "nofile": limits.nofile,
        "net_in": limits.net_in,
        "net_out": limits.net_out,
        "net": limits.net,
        "net_loopback": limits.net_loopback,
        "io_strict": limits.io_strict,
        "timeout": timeout,
        "ranges": {key: [each.least, each.most] for key, each in limits.ranges.items()},
    }


def as_json(outcome: Outcome, version: str) -> Summary:
    """Return the machine-readable summary (``--summary FILE``)."""
    usage, limits = outcome.usage, outcome.limits
    return {
        "schema": SCHEMA,
        "agentres": version,
        "name": outcome.name,
        "command": list(outcome.command),
        "cgroup": outcome.cgroup,
        "exit_code": outcome.exit_code,
        "signal": -outcome.returncode if outcome.returncode < 0 else None,
        "timed_out": outcome.timed_out,
        "stopped": outcome.stopped or None,
        "wall_seconds": round(outcome.wall, 6),
        "usage": usage.as_dict(),
        "unreadable": dict(outcome.unreadable),
        "limits": limits_as_json(limits, outcome.timeout),
        "memory_max": outcome.memory_limit,
        "paced": list(outcome.paced),
        "enforced": [{"file": s.file, "text": s.text} for s in outcome.enforced],
        "not_enforced": [
            {"file": r.line.file, "text": r.line.text, "why": r.why} for r in outcome.not_enforced
        ],
        "limits_hit": [hit.as_dict() for hit in hits(outcome)],
        "disk_space": None if outcome.space is None else outcome.space.as_dict(),
        "left_running": [each.as_dict() for each in outcome.left],
        "footprint": None
        if outcome.footprint is None
        else {
            **outcome.footprint.kinds,
            "biggest": [one.as_dict() for one in outcome.footprint.biggest],
            "tmpfs_grown": dict(outcome.grown),
        },
        "escaped": [each.as_dict() for each in outcome.escaped],
        "oom_kills": [
            {"pid": k.pid, "task": k.task, "cgroup": k.cgroup, "limit_cgroup": k.limit_cgroup}
            for k in outcome.oom_kills
        ],
        "oom_limits": None if outcome.oom_limits is None else list(outcome.oom_limits),
        "alerts_left_out": dict(outcome.alerts_left_out),
        "moves_left_out": outcome.moves_left_out,
    }
