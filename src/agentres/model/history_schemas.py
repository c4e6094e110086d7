"""The JSON of verbs about the past, as types: ``history``, ``alerts``, ``report``, ``predict``; see also :mod:`agentres.model.schemas`.

Nothing imports this at run time.  ``#:`` is what the reference says of the keys below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

# agentres history.


class RunJson(TypedDict):
    """A run."""

    #: The run.
    id: str
    #: The name of its agent; `host` or the slice's name for those.
    name: str
    #: `agent`, `host` or `slice`.
    of: Literal["agent", "host", "slice"]
    #: What ran.
    command: Sequence[str]
    #: The user as whom it ran.
    uid: int
    #: Where it ran.
    cgroup: str
    #: When it began.
    started: float
    #: When it ended; null while it runs.
    ended: float | None
    #: Its exit status; null while it runs, or if it is not known.
    exit_code: int | None


class RunEntry(RunJson):
    """A run in the list of all."""

    #: The highest `memory_peak` in its samples, in bytes; null if none has one.
    memory_peak: int | None
    #: How many samples it has.
    samples: int


class RunList(TypedDict):
    """``agentres history --json``."""

    schema: int
    runs: Sequence[RunEntry]


class SampleJson(TypedDict):
    """A sample."""

    #: When it was taken.
    time: float
    #: Curve → its value; null: not known.
    values: Mapping[str, float | None]
    #: `cpu`, `memory`, `pids`, `network_in` and `network_out` → the limit then; null: no limit.
    limits: Mapping[Literal["cpu", "memory", "pids", "network_in", "network_out"], float | None]
    #: The sample as it was taken: [below](#a-sample-as-it-was-taken).
    raw: Mapping[str, float | Sequence[tuple[str, int, int, int, int]] | None]


class RunHistory(TypedDict):
    """``agentres history NAME --json``."""

    #: 1.
    schema: int
    #: The run: the keys above, without `memory_peak` and `samples`.
    run: RunJson
    #: The ids of the other runs of that name, the newest first.
    other_runs: Sequence[str]
    #: Curve → `cores`, `bytes`, `bytes/s`, `packets/s`, `count` or `fraction` (share of the time stalled; for `space`, of the file system).
    units: Mapping[str, Literal["cores", "bytes", "bytes/s", "packets/s", "count", "fraction"]]
    #: The samples, the oldest first.
    samples: Sequence[SampleJson]
    #: The ids of the alerts of this run.
    alerts: Sequence[str]


class ActionJson(TypedDict):
    """An action."""

    #: The run, and the agent, that the limit belongs to.
    run: str
    agent: str
    #: When it was done.
    time: float
    #: The limit: `memory`, `swap`, `cpu`, `cpuset`, `pids`, `io_read`, `io_write`, `io_read_iops`, `io_write_iops`, `net_in`, `net_out`, for one device `io_write=/dev/vda`; `agent` where all of it was frozen or thawed by command.
    resource: str
    #: What was done: one of those below.
    kind: str
    #: The limit, in `unit`; null: there is none, or the action is not about one value.
    before: float | None
    after: float | None
    #: What decided: `burst`, `up`, `settle`, `give_back`, `down` ([scaling](scaling.md)), `contention`, `prediction`, `writeback` (a disk rate), `command`.
    rule: str
    #: For people: why.
    why: str
    #: Seconds from the decision until the kernel had the limit, or null.
    took: float | None
    #: For people: the figures behind the decision.
    values: str
    #: Of `before` and `after`: `bytes`, `cores`, `bytes/s`, `count`; null: it was about the whole agent.
    unit: str | None


class ActionList(TypedDict):
    """``agentres history NAME --actions --json``."""

    schema: int
    actions: Sequence[ActionJson]


# agentres alerts.


Severity = Literal["INFO", "WARNING", "CRITICAL", "EMERGENCY"]


class AlertFigures(TypedDict):
    """What both an alert and a change of it say."""

    #: The alert.
    id: str
    #: The run, and the agent, that it belongs to; as agent also `host`, or the slice's name.
    run: str
    agent: str
    #: `agent`, `host` or `slice`.
    of: Literal["agent", "host", "slice"]
    #: The host's name.
    host: str
    #: What it is about: names, as in the [configuration](configuration.md#alertsname-rules).
    rule: str
    resource: str
    #: Of the figures: `bytes`, `cores`, `bytes/s`, `packets/s`, `count` or `fraction`.
    unit: str
    #: One line for people.
    message: str
    #: The figure, and the threshold that it reached.
    value: float
    threshold: float
    #: The limit; null: there is none.
    limit: float | None
    #: When the threshold was crossed, the alert was raised, and last changed.
    breached: float
    raised: float
    updated: float
    #: When it ended; null: it is open.
    resolved: float | None
    #: Breaches within its cooldown, which raised no alert of their own.
    repeats: int


class AlertEntry(AlertFigures):
    """An alert, as the history keeps it."""

    #: The highest severity that it reached, and its last one: `INFO`, `WARNING`, `CRITICAL`, `EMERGENCY`.
    severity: Severity
    last_severity: Severity
    #: The highest value since the alert was raised, and when; the table shows it for alerts that have ended. Null: an older version wrote the alert.
    worst: float | None
    worst_at: float | None
    #: The limit at that time; null: there was none.
    worst_limit: float | None
    #: When the first handler took it, or null.
    handled: float | None
    #: When it was acknowledged, or null.
    acknowledged: float | None
    #: Who did that, and why, or null.
    acknowledged_by: str | None
    acknowledged_why: str | None


class AlertList(TypedDict):
    """``agentres alerts list --json``."""

    schema: int
    alerts: Sequence[AlertEntry]


class AlertStep(TypedDict):
    """Something that happened to an alert."""

    #: When it happened.
    time: float
    #: `raised`, `updated`, `repeated`, `resolved`, `handled`, `failed` (a handler), `acknowledged`.
    kind: Literal["raised", "updated", "repeated", "resolved", "handled", "failed", "acknowledged"]
    #: The severity then, or null.
    severity: Severity | None
    #: The figure then, or null.
    value: float | None
    #: In words.
    detail: str


class AlertDetail(TypedDict):
    """``agentres alerts show ID --json``."""

    schema: int
    alert: AlertEntry
    timeline: Sequence[AlertStep]


class Acknowledgement(TypedDict):
    """``agentres alerts ack ID --json``."""

    schema: int
    alert: AlertEntry


class AlertChange(AlertFigures):
    """A line of ``agentres alerts list --follow --json``."""

    #: Of the event itself: 1.
    schema: int
    #: `raised`, `updated` (another severity, or further processes that escaped), `resolved`.
    event: Literal["raised", "updated", "resolved"]
    #: The one at that moment.
    severity: Severity


class Waits(TypedDict):
    """How long alerts waited to be acknowledged."""

    #: Seconds; null: none was acknowledged.
    mean: float | None
    p50: float | None
    max: float | None


class AlertStatistics(TypedDict):
    """``agentres alerts stats --json``."""

    #: 1.
    schema: int
    #: How many alerts there are, how many of them are open, and acknowledged.
    total: int
    open: int
    acknowledged: int
    #: Name → how many; each severity is there.
    by_severity: Mapping[Severity, int]
    #: Name → how many; those of which there are any.
    by_agent: Mapping[str, int]
    by_resource: Mapping[str, int]
    #: From raised to acknowledged.
    time_to_acknowledge: Waits


# agentres report.


class Recommendation(TypedDict):
    """An option for the next run."""

    #: The limit.
    resource: str
    #: The option of `agentres run`, and its value.
    option: str
    value: str
    #: In words.
    reason: str


class UseReportJson(TypedDict):
    """What a run used of a resource."""

    #: `bytes`, `cores`, `bytes/s` or `count`.
    unit: str
    #: The median of its samples.
    median: float
    #: The value that 95 % of the samples were below.
    high: float
    #: The most.
    most: float
    #: The limit at that time, and the last one; null: there was none.
    had: float | None
    limit: float | None
    #: What the limit reserved over time, and the part of it that was not in use, in its unit times seconds; null without a limit.
    reserved: float | None
    idle: float | None
    #: The share of `reserved` that was idle; null without a limit.
    waste: float | None


class KillReportJson(TypedDict):
    """Processes that were killed for memory."""

    #: When it was seen, at the latest.
    by: float
    #: How many processes.
    count: int
    #: The limit at that time, and the use in the sample before, in bytes; null: not known.
    limit: float | None
    used: float | None
    #: Why the limit was not raised, or empty.
    why: str


class RunReportJson(TypedDict):
    """A run in a report."""

    #: The run, and the agent's name.
    id: str
    name: str
    #: The user as whom it ran.
    uid: int
    #: When it began.
    started: float
    #: When it ended; null while it runs.
    ended: float | None
    #: Its exit status; null while it runs, or if it is not known.
    exit_code: int | None
    #: What ran.
    command: Sequence[str]
    #: Bytes, page cache included; null: not known.
    memory_peak: int | None
    #: The share of CPU periods in which it was at its limit; null: not known.
    throttled: float | None
    #: `cpu`, `memory`, `io` → the share of time in which some task waited for it, as far as that is known.
    stalled: Mapping[Literal["cpu", "memory", "io"], float]
    #: Processes killed for memory; null: not known.
    killed: int | None
    #: Refused forks; null: not known.
    refused: int | None
    #: Resource → what it used: [below](#a-resource-and-a-kill). Resources of which nothing is known are left out.
    use: Mapping[str, UseReportJson]
    #: The kills, the oldest first: [below](#a-resource-and-a-kill).
    kills: Sequence[KillReportJson]
    #: Words, the gravest first.
    findings: Sequence[str]
    #: As in [history](history.md#alerts-as-json). What memory held at a kill, and whose limit it was, is in the alert's `message`.
    alerts: Sequence[AlertEntry]
    #: As in [history](history.md#actions-as-json).
    actions: Sequence[ActionJson]


class AgentReportJson(TypedDict):
    """An agent in a report."""

    #: Its name.
    name: str
    #: Each with `resource`, `option` (of `agentres run`), `value` and `reason`.
    recommended: Sequence[Recommendation]
    #: Why nothing is recommended, or null.
    not_recommended: str | None
    #: Its runs, the newest first.
    runs: Sequence[RunReportJson]


class ReportJson(TypedDict):
    """``agentres report --output FILE.json``."""

    #: 1.
    schema: int
    #: When it was made.
    made: float
    #: Since when (`--since`); null: from the beginning.
    since: float | None
    #: The host's name.
    host: str
    #: The agents.
    agents: Sequence[AgentReportJson]


# agentres predict, and what a predictor is asked.

Predicted = Literal["memory", "cpu", "pids"]
Buckets = Sequence[tuple[float, float, float]]


class PredictionUse(TypedDict):
    """``[prediction]`` of the configuration."""

    #: Seconds after which a run counts half.
    half_life: float
    #: Fractions.
    percentile: float
    margin: float


class ForecastJson(TypedDict):
    """What is predicted of a limit."""

    #: What the run starts with.
    first: float
    #: The percentile.
    target: float
    #: The percentile with the margin.
    wanted: float
    #: The range of the limit.
    least: float
    most: float
    #: The part of the weight from use that a limit held back.
    held: float
    #: In words.
    why: str


class ProfileJson(TypedDict):
    """What is known of earlier runs."""

    #: How many runs.
    runs: int
    #: How often a limit held back what was needed.
    capped: int
    #: How often a process was killed for memory.
    ooms: int
    #: When the last of it was learnt.
    last: float
    #: Limit → list of `[from, to, weight]`: what was used.
    use: Mapping[Predicted, Buckets]
    #: The same for what counts as needed where a limit held the run.
    held: Mapping[Predicted, Buckets]


class PredictionJson(TypedDict):
    """``agentres predict NAME --json``."""

    #: 1.
    schema: int
    #: Whose runs: `name:NAME` or `command:COMMAND ARGUMENT`.
    key: str
    #: Whether predictions are used.
    predict: bool
    #: What makes them; null: the method above.
    predictor: str | None
    #: The settings of the method, from the [configuration](configuration.md#scaling-budget-prediction).
    settings: PredictionUse
    #: How many runs of now everything known counts as; null: nothing is predicted.
    weight: float | None
    #: Limit → what is predicted of it. Limits that do not move are left out.
    limits: Mapping[Predicted, ForecastJson]
    #: Limit → `bytes`, `cores` or `count`.
    units: Mapping[Predicted, Literal["bytes", "cores", "count"]]
    #: What is known of earlier runs.
    history: ProfileJson


class ProfileEntry(TypedDict):
    """Of whom something is known."""

    #: Whose runs: `name:NAME` or `command:COMMAND ARGUMENT`.
    key: str
    #: How many runs; null: what is known of it cannot be read.
    runs: int | None
    #: When the last of it was learnt.
    last: float


class ProfileList(TypedDict):
    """``agentres predict --json``."""

    schema: int
    profiles: Sequence[ProfileEntry]


class Question(TypedDict):
    """What a predictor of another package is asked."""

    #: 1.
    schema: int
    #: Whose run it is.
    key: str
    #: The words of its command.
    command: Sequence[str]
    #: Unix seconds.
    now: float
    #: Limit → `[least, most]` of those that can be predicted: `memory` (bytes), `cpu` (cores), `pids`.
    ranges: Mapping[Predicted, tuple[float, float]]
    #: What earlier runs used, or null (`None`).
    history: ProfileJson | None
    #: Limit → what the run starts with otherwise, as far as anything is known.
    builtin: Mapping[Predicted, float]
