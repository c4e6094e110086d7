"""Agents, the host and alerts as Prometheus metrics: a collector for the official client library.

Names follow https://prometheus.io/docs/practices/naming: base units, ``_total`` on counters.  A figure
that the kernel or the cgroup does not provide has no series, nor does a limit that is not set.
``cgroup`` identifies an agent: two users' agents may have the same name.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from agentres.companion.hostsample import host_sample
from agentres.kernel import devices, host, registry, tree
from agentres.model import log
from agentres.model.errors import AgentresError
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity

if TYPE_CHECKING:
    from agentres.kernel.registry import RunningAgent
    from agentres.store import Store

    Family = CounterMetricFamily | GaugeMetricFamily
    Figures = Iterable[tuple[tuple[str, ...], float | None]]
    """Label values and figure of each series; None: absent."""

AGENT_LABELS = ("agent", "cgroup")
"""The agent's name, and the cgroup of its home below the mount."""

_USEC = 1_000_000
"""Microseconds per second.  Figures are divided by it, so that 1.25 s is exactly 1.25."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its full name, kind (counter or gauge), help text and labels."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()

    def family(self) -> Family:
        """Return the metric for prometheus_client, still without series."""
        family = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return family(self.name, self.help, labels=self.labels)


@dataclass(frozen=True, slots=True)
class Series:
    """A metric of a Sample or a Claim: its name after the prefix, and a function that returns its figures."""

    name: str
    help: str
    figures: Callable[[Any], Figures]
    labels: tuple[str, ...] = ()

    def metric(self, prefix: str, labels: tuple[str, ...]) -> Metric:
        """Return the metric, with the subject's labels before its own."""
        kind = "counter" if self.name.endswith("_total") else "gauge"
        return Metric(f"{prefix}{self.name}", kind, self.help, (*labels, *self.labels))


def _one(name: str, unit: int = 1) -> Callable[[Sample], Figures]:
    return _each({(): name}, unit)


def _each(names: dict[tuple[str, ...], str], unit: int = 1) -> Callable[[Sample], Figures]:
    def figures(sample: Sample) -> Figures:
        for labels, name in names.items():
            value = getattr(sample, name)
            yield labels, None if value is None else value / unit

    return figures


def _disk(at: int) -> Callable[[Sample], Figures]:
    def figures(sample: Sample) -> Figures:
        for device, *counters in sample.disks or ():
            yield (device_name(device),), counters[at]

    return figures


@lru_cache(maxsize=256)
def device_name(number: str) -> str:
    """Return the device's name, as node_exporter has it (``vda``); its number if it has no name."""
    link = f"{devices.SYS}/dev/block/{number}"
    return os.path.basename(os.path.realpath(link)) if os.path.exists(link) else number


_PRESSURE: dict[tuple[str, ...], str] = {
    (resource, kind): f"{resource}_{kind}_usec"
    for resource in ("cpu", "memory", "io")
    for kind in ("some", "full")
}
_EVENTS: dict[tuple[str, ...], str] = {
    (event,): f"memory_{event}" for event in ("high", "max", "oom")
}

_OF_BOTH = (
    Series("cpu_seconds_total", "CPU time used, by mode: user or system.", _each({("user",): "user_usec", ("system",): "system_usec"}, _USEC), ("mode",)),
    Series("cpu_limit_cores", "CPU that may be used, in cores.", _one("cpu_limit")),
    Series("memory_current_bytes", "Memory in use.", _one("memory_current")),
    Series("memory_working_set_bytes", "Memory in use that cannot simply be dropped.", _one("working_set")),
    Series("memory_limit_bytes", "Memory that may be used.", _one("memory_limit")),
    Series("swap_current_bytes", "Swap in use.", _one("swap_current")),
    Series("disk_read_bytes_total", "Bytes read, by disk.", _disk(0), ("device",)),
    Series("disk_written_bytes_total", "Bytes written, by disk.", _disk(1), ("device",)),
    Series("disk_reads_total", "Read operations, by disk.", _disk(2), ("device",)),
    Series("disk_writes_total", "Write operations, by disk.", _disk(3), ("device",)),
    Series("network_receive_bytes_total", "Bytes received, without loopback.", _one("rx_bytes")),
    Series("network_transmit_bytes_total", "Bytes sent, without loopback.", _one("tx_bytes")),
    Series("network_receive_packets_total", "Packets received.", _one("rx_packets")),
    Series("network_transmit_packets_total", "Packets sent.", _one("tx_packets")),
    Series("network_receive_drop_total", "Packets not received.", _one("rx_dropped_packets")),
    Series("network_transmit_drop_total", "Packets not sent.", _one("tx_dropped_packets")),
    Series("open_files", "Open files of all processes.", _one("fds")),
    Series("pressure_seconds_total", "Time in which some or all (full) tasks waited for the resource: PSI.", _each(_PRESSURE, _USEC), ("resource", "kind")),
)  # fmt: skip  # a table

OF_AGENT = (
    *_OF_BOTH,
    *(
        Series(f"network_{way}_{what}_total", f"{word} {words}", _one(f"{of}_{what}"))
        for way, word, of in (("receive", "Received", "rx"), ("transmit", "Sent", "tx"))
        for what, words in (
            ("dropped_bytes", "too fast for the limit, and lost."),
            ("delayed_bytes", "ahead of the limit, and held back."),
            ("delayed_packets", "likewise, in packets."),
            ("loopback_bytes", "over loopback, where that is free."),
            ("loopback_packets", "likewise, in packets."),
        )
    ),
    Series("network_receive_limit_bytes", "Bytes a second that may be received.", _one("net_in_limit")),
    Series("network_transmit_limit_bytes", "Bytes a second that may be sent.", _one("net_out_limit")),
    Series("disk_fetched_bytes_total", "Bytes that its processes read from disks, whoever is billed for it.", _one("read_bytes")),
    Series("disk_dirtied_bytes_total", "Bytes that its processes wrote to files on disks, whoever is billed for it.", _one("dirtied_bytes")),
    Series("disk_unbilled_bytes_total", "Of these: on a disk, and not among the bytes written by disk.", _one("unbilled_bytes")),
    Series("cpu_periods_total", "Periods in which the CPU limit counted.", _one("nr_periods")),
    Series("cpu_throttled_periods_total", "Periods cut by the limit.", _one("nr_throttled")),
    Series("cpu_throttled_seconds_total", "Time that tasks were kept from running by the CPU limit.", _one("throttled_usec", _USEC)),
    Series("memory_peak_bytes", "The most memory that was in use.", _one("memory_peak")),
    Series("memory_events_total", "Times at memory.high, at memory.max, and out of memory (oom): memory.events.", _each(_EVENTS), ("event",)),
    Series("process_open_files", "Open files of the process that has the most.", _one("fds_most")),
    Series("process_open_files_limit", "Open files that each process may have.", _one("nofile_limit")),
    Series("oom_kills_total", "Processes killed for memory.", _one("memory_oom_kill")),
    Series("tasks", "Processes and their threads.", _one("pids_current")),
    Series("tasks_limit", "Processes and threads that there may be.", _one("pids_limit")),
    Series("forks_refused_total", "Forks refused by the tasks limit.", _one("pids_max_events")),
)  # fmt: skip  # a table
"""The metrics of each agent, all from its cgroup."""

OF_HOST = (
    *_OF_BOTH,
    Series("processes", "Processes, without their threads.", _one("pids_current")),
    *(
        Series(f"load{minutes}", f"Load average over {minutes} min.", _one(f"load{minutes}"))
        for minutes in (1, 5, 15)
    ),
)  # fmt: skip  # a table
"""The metrics of the host."""

STATES = ("running", "throttled", "frozen", "waiting")
"""The values of :attr:`agentres.policy.capacity.Claim.state`."""

OF_CLAIM = (
    Series("priority", "The weight that tells who goes first; 100 is normal.", lambda claim: [((), claim.priority)]),
    Series("state", "1 for the state that the agent is in, else 0.", lambda claim: [((state,), int(claim.state == state)) for state in STATES], ("state",)),
    Series("short_bytes", "Memory that the agent waits for, on top of what it has.", lambda claim: [((), max(0, claim.wants - claim.taken))]),
)  # fmt: skip  # a table
"""The metrics of each agent's share of the budget."""

AGENTS = Metric("agentres_agents", "gauge", "Agents that run.")
STARTED = Metric(
    "agentres_start_time_seconds", "gauge", "When the agent was started, unix time.", AGENT_LABELS
)
BUDGET = Metric(
    "agentres_budget_bytes", "gauge", "Memory that the agents of this cgroup may have.", ("cgroup",)
)
ALLOCATED = Metric(
    "agentres_budget_allocated_bytes", "gauge", "Memory that their limits come to.", ("cgroup",)
)
READABLE = Metric(
    "agentres_history_readable", "gauge", "Whether the metrics below can be had: 1 or 0."
)
ACTED = Metric(
    "agentres_scaling_actions_total",
    "counter",
    "What was done with limits, and with agents where memory was short.",
    ("agent", "resource", "kind"),
)
_ALERT_LABELS = ("agent", "resource", "severity")
ALERTS = Metric(
    "agentres_alerts", "gauge", "Open alerts, by the severity that they have now.", _ALERT_LABELS
)
# Not agentres_alerts_total: in OpenMetrics that would be a second metric named agentres_alerts.
RAISED = Metric(
    "agentres_alerts_raised_total",
    "counter",
    "Alerts that were raised with this severity, or became graver and got it.",
    _ALERT_LABELS,
)

_AGENT_METRICS = [(figure, figure.metric("agentres_", AGENT_LABELS)) for figure in OF_AGENT]
_CLAIM_METRICS = [(figure, figure.metric("agentres_agent_", AGENT_LABELS)) for figure in OF_CLAIM]
_HOST_METRICS = [(figure, figure.metric("agentres_host_", ())) for figure in OF_HOST]

TABLE = (
    AGENTS,
    STARTED,
    *(metric for _, metric in _AGENT_METRICS),
    *(metric for _, metric in _CLAIM_METRICS),
    BUDGET,
    ALLOCATED,
    *(metric for _, metric in _HOST_METRICS),
    READABLE,
    ACTED,
    ALERTS,
    RAISED,
)
"""Every metric, in the order of the output."""


@dataclass(slots=True)
class _AlertCounter:
    """Counts alerts raised.  Only rises while this process lives, even when the history forgets events."""

    after: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    reached: dict[str, Severity] = field(default_factory=dict)

    def take(self, store: Store) -> None:
        changes, last = store.changes(self.after)
        if last < self.after:  # another history has replaced the old one
            self.counts.clear()
            self.reached.clear()
            changes, last = store.changes(0)
        for _, event in changes:
            self._count(event["event"], event["id"], event)
        self.after = last

    def _count(self, kind: str, alert: str, event: dict[str, str]) -> None:
        if kind == "resolved":
            self.reached.pop(alert, None)
            return
        severity = Severity[event["severity"]]
        if severity > self.reached.get(alert, -1):
            self.reached[alert] = severity
            self.counts[event["agent"], event["resource"], severity.name] += 1


@dataclass(slots=True)
class _ActionCounter:
    """Counts actions, in the same way."""

    after: int = 0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def take(self, store: Store) -> None:
        counts, last = store.acted(self.after)
        if 0 < last < self.after:  # they start again: all were forgotten, or it is another history
            self.counts.clear()
            counts, last = store.acted(0)
        self.counts.update(counts)
        self.after = last


class AgentresCollector(Collector):
    """Collects all of :data:`TABLE` anew for each scrape; scrapes run one at a time.

    ``mount`` is the cgroup2 mount.  ``read`` takes the path of an agent's cgroup and raises OSError or
    AgentresError if that has gone.  ``history`` opens the store and raises AgentresError if there is none
    to read.  ``share`` is the budget's share of the host, None: unknown.  ``own`` is a cgroup whose
    budget is exported even while no agent runs in it, "": none.
    """

    def __init__(
        self,
        mount: str,
        read: Callable[[str], Sample],
        history: Callable[[], Store],
        host: Callable[[], Sample] = host_sample,
        share: float | None = None,
        own: str = "",
    ) -> None:
        self._mount = mount
        self._read = read
        self._history = history
        self._host = host
        self._share = share
        self._own = own
        self._alert_counter = _AlertCounter()
        self._action_counter = _ActionCounter()
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Family]:
        return [metric.family() for metric in TABLE]

    def collect(self) -> Iterable[Family]:
        with self._lock:
            of_host = _families(_HOST_METRICS, [((), self._host())])
            families = [*self._agents(), *of_host, *self._alerts()]
        return [family for family in families if family.samples]

    def _agents(self) -> Iterator[Family]:
        agents = registry.running(self._mount)
        yield _family(AGENTS, [((), len(agents))])
        subjects = [((agent.name, self._below(agent.home)), agent) for agent in agents]
        yield _family(STARTED, [(labels, agent.started) for labels, agent in subjects])
        samples = []
        for labels, agent in subjects:
            try:
                samples.append((labels, self._read(agent.path)))
            except (OSError, AgentresError) as error:  # it has ended meanwhile
                log.debug(__name__, "no figures of %s: %s", agent.name, error)
        yield from _families(_AGENT_METRICS, samples)
        yield from self._budgets(subjects)

    def _budgets(self, subjects: list[tuple[tuple[str, str], RunningAgent]]) -> Iterator[Family]:
        """Yield the budgets: agents whose homes are in the same cgroup share one."""
        homes = {os.path.dirname(agent.home) for _, agent in subjects}
        claims = {path: tree.claims(path) for path in sorted(homes | {self._own} - {""})}
        by_path = {claim.path: claim for among in claims.values() for claim in among}
        subject_claims = [(who, by_path[a.path]) for who, a in subjects if a.path in by_path]
        yield from _families(_CLAIM_METRICS, subject_claims)
        budgets, allocated = BUDGET.family(), ALLOCATED.family()
        for path, among in claims.items():
            label = [_text(self._below(path))]
            if self._share is not None:
                limit = tree.budget(path, host.memory(), self._share).limit
                budgets.add_metric(label, limit)
            if among or path not in homes:  # else there are agents whose limits are not known
                allocated.add_metric(label, sum(claim.taken for claim in among))
        yield from (budgets, allocated)

    def _below(self, path: str) -> str:
        return path.removeprefix(self._mount) or "/"

    def _alerts(self) -> Iterator[Family]:
        try:
            # Opened here: an SQLite connection belongs to one thread, and each scrape has its own.
            with self._history() as store:
                rows = store.alerts(open_only=True)
                self._alert_counter.take(store)
                self._action_counter.take(store)
        except AgentresError as error:
            log.debug(__name__, "no alert metrics: %s", error)
            yield _family(READABLE, [((), 0)])
            return
        opened = Counter((row.agent, row.resource, row.last_severity.name) for row in rows)
        yield _family(READABLE, [((), 1)])
        yield _family(ACTED, self._action_counter.counts.items())
        yield _family(ALERTS, opened.items())
        yield _family(RAISED, self._alert_counter.counts.items())


def _families(
    metrics: Iterable[tuple[Series, Metric]], subjects: Sequence[tuple[tuple[str, ...], Any]]
) -> Iterator[Family]:
    for figure, metric in metrics:
        figures = (
            ((*who, *own), value) for who, of in subjects for own, value in figure.figures(of)
        )
        yield _family(metric, figures)


def _family(metric: Metric, figures: Figures) -> Family:
    family = metric.family()
    for labels, value in figures:
        if value is not None:
            family.add_metric([_text(label) for label in labels], value)
    return family


def _text(label: str) -> str:
    """Make the label valid UTF-8: bytes of a path that are not are shown as backslash escapes."""
    return label.encode(errors="surrogateescape").decode(errors="backslashreplace")
