"""Makes a report from the history: what ran, what it used of its limits, and which limits it should have; pure.

A report lists agents, each with its runs, newest first.  It knows what the history keeps: a run's begin, end, alerts
and actions for long, its samples for an hour (docs/history.md).  A figure that is not known is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from agentres.kernel import signal
from agentres.model.errors import EXIT_SIGNAL
from agentres.model.stats import Sample
from agentres.policy.alerts import show
from agentres.readers.curves import Curve, Curves, curves
from agentres.report.kills import Kill, kills, words

if TYPE_CHECKING:
    from agentres.report.advice import Advice
    from agentres.store import ActionRow, AlertRow, Run

USED = ("memory", "cpu", "pids", "disk_read", "disk_write", "network_in", "network_out", "fds")
"""The resources that a report covers, by their names in rules (docs/configuration.md)."""

THROTTLED = 0.1
"""Least share of CPU periods at the limit, or of time stalled, that is reported."""

_SIGKILL = EXIT_SIGNAL + signal.SIGKILL

_IDLE = 0.5
"""Least share of reserved memory not used that is reported."""


@dataclass(frozen=True, slots=True)
class Use:
    """A run's use of a resource, in ``unit``: its samples' median, 95th percentile (``high``) and maximum.

    ``had`` is the limit at the time of highest use, ``limit`` the last one; None if there was none.  ``reserved``
    and ``idle`` are integrals over time, in unit-seconds, of the limit and of its unused part; None without a limit.
    """

    resource: str
    unit: str
    median: float
    high: float
    most: float
    had: float | None
    limit: float | None
    reserved: float | None
    idle: float | None

    @property
    def waste(self) -> float | None:
        """The unused share of what was reserved; None without a limit."""
        return self.idle / self.reserved if self.reserved and self.idle is not None else None

    @property
    def words(self) -> str:
        """The highest use and the limit at that time: ``324 MiB of 463 MiB``."""
        if self.had is None:
            return show(self.most, self.unit)
        if self.unit == "cores":
            return f"{self.most:.2f} of {self.had:.2f} cores"
        return f"{show(self.most, self.unit)} of {show(self.had, self.unit)}"


class Weight(IntEnum):
    """How severe a finding is; the most severe is the lowest."""

    KILLED = 0
    REFUSED = 1
    SLOWED = 2
    WASTED = 3
    KNOWN = 4


@dataclass(frozen=True, slots=True)
class Remark:
    """A finding about a run; ``text`` is a clause."""

    weight: Weight
    text: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run.

    ``throttled`` is the share of CPU periods in which the run was at its limit.  ``stalled`` maps cpu, memory and
    io to the share of time in which some task waited (PSI).  ``killed`` counts processes killed for memory, from
    samples, or from alerts if those know of more; ``kills`` has the details.  ``refused`` counts refused forks,
    ``peak`` is memory.peak.
    """

    run: Run
    curves: Curves
    uses: dict[str, Use]
    throttled: float | None
    stalled: dict[str, float]
    peak: int | None
    killed: int | None
    kills: tuple[Kill, ...]
    refused: int | None
    actions: tuple[ActionRow, ...]
    alerts: tuple[AlertRow, ...]

    @property
    def findings(self) -> tuple[Remark, ...]:
        """The findings, most severe first."""
        return tuple(_findings(self))


@dataclass(frozen=True, slots=True)
class AgentReport:
    """The runs of one name, newest first.  If there is no ``advice``, ``unadvised`` says why."""

    name: str
    runs: tuple[RunReport, ...]
    advice: tuple[Advice, ...]
    unadvised: str

    @property
    def killed(self) -> int | None:
        """The number of processes killed for memory; None if no run knows it."""
        known = [one.killed for one in self.runs if one.killed is not None]
        return sum(known) if known else None

    @property
    def shown(self) -> RunReport:
        """The run that represents the agent: the newest with figures, else the newest."""
        return next((one for one in self.runs if one.uses), self.runs[0])


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report; ``made`` and ``since`` in unix seconds."""

    made: float
    since: float | None
    host: str
    agents: tuple[AgentReport, ...]


def run_report(
    run: Run,
    samples: Sequence[tuple[float, Sample]],
    actions: Sequence[ActionRow],
    alerts: Sequence[AlertRow],
) -> RunReport:
    """Make the report of one run from its rows of the history, oldest first."""
    drawn = curves(samples)
    killed = kills(samples, actions, alerts)
    found = {name: use for name in USED if (use := _use(name, drawn[name], drawn.times))}
    return RunReport(
        run=run,
        curves=drawn,
        uses=found,
        throttled=_throttled(samples),
        stalled=dict(_stalled(samples)),
        peak=_last(samples, "memory_peak"),
        killed=sum(kill.count for kill in killed) if killed else _last(samples, "memory_oom_kill"),
        kills=killed,
        refused=_last(samples, "pids_max_events"),
        actions=tuple(actions),
        alerts=tuple(alerts),
    )


def _last(samples: Sequence[tuple[float, Sample]], field: str) -> int | None:
    """Return the last known value of a counter."""
    known = (getattr(sample, field) for _, sample in reversed(samples))
    return next((value for value in known if value is not None), None)


def _use(name: str, curve: Curve, times: Sequence[float]) -> Use | None:
    known = [at for at, value in enumerate(curve.values) if value is not None]
    if not known:
        return None
    values = sorted(value for value in curve.values if value is not None)
    highest = max(known, key=lambda at: curve.values[at] or 0.0)
    reserved = idle = 0.0
    for at in range(1, len(times)):
        value, limit = curve.values[at], curve.limits[at]
        if value is not None and limit is not None:
            passed = max(0.0, times[at] - times[at - 1])
            reserved += limit * passed
            idle += max(0.0, limit - value) * passed
    return Use(
        name,
        curve.unit,
        _quantile(values, 0.5),
        _quantile(values, 0.95),
        values[-1],
        curve.limits[highest],
        curve.limits[known[-1]],  # later samples have no figures at all
        reserved or None,
        idle if reserved else None,
    )


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Return the least value that at least this fraction of the values does not exceed."""
    return ordered[max(0, -int(-fraction * len(ordered) // 1) - 1)]


def _throttled(samples: Sequence[tuple[float, Sample]]) -> float | None:
    periods, throttled = _last(samples, "nr_periods"), _last(samples, "nr_throttled")
    return throttled / periods if periods and throttled is not None else None


def _stalled(samples: Sequence[tuple[float, Sample]]) -> Iterator[tuple[str, float]]:
    for kind in ("cpu", "memory", "io"):
        counted = ((at, getattr(sample, f"{kind}_some_usec")) for at, sample in samples)
        known = [(at, count) for at, count in counted if count is not None]
        if known:
            (begin, before), (end, after) = known[0], known[-1]
            if after >= before and end > begin:
                yield kind, (after - before) / 1e6 / (end - begin)


def _findings(one: RunReport) -> Iterator[Remark]:
    if one.kills:
        yield Remark(Weight.KILLED, words(one.kills))
    elif one.run.exit_code == _SIGKILL:
        yield Remark(Weight.KILLED, "it exited 137, as after SIGKILL; no kill for memory is known")
    if one.refused:
        forks = "fork was" if one.refused == 1 else "forks were"
        yield Remark(Weight.REFUSED, f"{one.refused} {forks} refused")
    if one.throttled is not None and one.throttled >= THROTTLED:
        yield Remark(
            Weight.SLOWED, f"the CPU was at its limit in {one.throttled:.0%} of its periods"
        )
    for kind, share in one.stalled.items():
        if share >= THROTTLED:
            what = "CPU" if kind == "cpu" else kind
            yield Remark(Weight.SLOWED, f"some task waited for {what} in {share:.0%} of the time")
    memory = one.uses.get("memory")
    if memory and memory.waste is not None and memory.waste >= _IDLE:
        yield Remark(
            Weight.WASTED,
            f"{int(memory.waste * 100)}% of its memory was reserved and not used:"
            f" at most {memory.words}",
        )
    unseen = sum(alert.acknowledged is None for alert in one.alerts)
    if unseen:
        alerts = "alert is" if unseen == 1 else "alerts are"
        yield Remark(Weight.KNOWN, f"{unseen} {alerts} not acknowledged")
    if not one.curves.times:
        yield Remark(Weight.KNOWN, "no samples of it are left")
