"""The JSON that verbs print or write to a file, as types: as :mod:`agentres.model.schemas` has that of a run.

Nothing imports this at run time.  ``#:`` is what the reference says of the keys below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

# agentres history.


class RunTold(TypedDict):
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


class RunListed(RunTold):
    """A run in the list of all."""

    #: The highest `memory_peak` in its samples, in bytes; null if none has one.
    memory_peak: int | None
    #: How many samples it has.
    samples: int


class RunList(TypedDict):
    """``agentres history --json``."""

    schema: int
    runs: Sequence[RunListed]


class SampleTold(TypedDict):
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
    run: RunTold
    #: The ids of the other runs of that name, the newest first.
    other_runs: Sequence[str]
    #: Curve → `cores`, `bytes`, `bytes/s`, `packets/s`, `count` or `fraction` (share of the time stalled; for `space`, of the file system).
    units: Mapping[str, Literal["cores", "bytes", "bytes/s", "packets/s", "count", "fraction"]]
    #: The samples, the oldest first.
    samples: Sequence[SampleTold]
    #: The ids of the alerts of this run.
    alerts: Sequence[str]


class ActionKept(TypedDict):
    """An action, as the history keeps it."""

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


class ActionTold(ActionKept):
    """An action."""

    #: Of `before` and `after`: `bytes`, `cores`, `bytes/s`; `count` for all others.
    unit: str


class ActionList(TypedDict):
    """``agentres history NAME --actions --json``."""

    schema: int
    actions: Sequence[ActionTold]


# agentres alerts.


Severity = Literal["INFO", "WARNING", "CRITICAL", "EMERGENCY"]


class AlertOf(TypedDict):
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


class AlertKept(AlertOf):
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


# agentres report.


class Recommended(TypedDict):
    """An option for the next run."""

    #: The limit.
    resource: str
    #: The option of `agentres run`, and its value.
    option: str
    value: str
    #: In words.
    reason: str


class UseReported(TypedDict):
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


class KillReported(TypedDict):
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


class RunReported(TypedDict):
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
    use: Mapping[str, UseReported]
    #: The kills, the oldest first: [below](#a-resource-and-a-kill).
    kills: Sequence[KillReported]
    #: Words, the gravest first.
    findings: Sequence[str]
    #: As in [history](history.md#alerts-as-json). What memory held at a kill, and whose limit it was, is in the alert's `message`.
    alerts: Sequence[AlertKept]
    #: As in [history](history.md#actions-as-json), without `unit`.
    actions: Sequence[ActionKept]


class AgentReported(TypedDict):
    """An agent in a report."""

    #: Its name.
    name: str
    #: Each with `resource`, `option` (of `agentres run`), `value` and `reason`.
    recommended: Sequence[Recommended]
    #: Why nothing is recommended, or null.
    not_recommended: str | None
    #: Its runs, the newest first.
    runs: Sequence[RunReported]


class Report(TypedDict):
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
    agents: Sequence[AgentReported]


# agentres capacity.


class HostTold(TypedDict):
    """The host that agents share."""

    #: Bytes.
    memory: int
    #: How many.
    cpus: int


class BudgetTold(TypedDict):
    """What agents may have together."""

    #: The share of the host.
    share: float
    #: Bytes.
    memory: int
    #: The cgroup by which the kernel holds that, or null.
    memory_held_by: str | None
    #: Cores.
    cpu: float
    #: The cgroup by which the kernel holds that, or null.
    cpu_held_by: str | None


class ClaimTold(TypedDict):
    """An agent, and what it has of the budget."""

    #: Which agent it is, and its cgroup.
    name: str
    cgroup: str
    #: When it began.
    started: float
    #: Its `--priority` as a number: `low` is 25, `normal` 100, `high` 400.
    priority: int
    #: `running`, `throttled`, `frozen` or `waiting`, as above.
    state: Literal["running", "throttled", "frozen", "waiting"]
    #: Its memory limit; null: it has none.
    limit: int | None
    #: The memory that it uses, without page cache that can be dropped.
    use: int
    #: The least of the range in which the limit moves.
    least: int
    #: The most of that range; null: it does not move.
    most: int | None
    #: The limit that it needs and cannot have now, or 0.
    wants: int
    #: What it takes of the budget, as a fraction; null: the budget is nothing.
    share: float | None
    #: Cores; null: no limit.
    cpu_limit: float | None
    #: The list of CPUs that it is bound to, or null.
    cpuset: str | None
    #: Whether its supervisor is there to be asked for anything.
    supervised: bool


class Capacity(TypedDict):
    """``agentres capacity --json``."""

    #: 1.
    schema: int
    #: The cgroup that contains all of these agents.
    slice: str
    #: The host.
    host: HostTold
    #: What agents may have together.
    budget: BudgetTold
    #: The sum of the agents' limits; of one without a limit, what it uses.
    allocated: int
    #: The sum of what they use, without page cache that can be dropped.
    used: int
    #: What the processes use that watch agents with a fixed limit and deliver their alerts.
    beside: int
    #: `budget.memory` minus `allocated` and `beside`; negative if the budget has shrunk.
    free: int
    #: The agents, the oldest first.
    agents: Sequence[ClaimTold]
    #: The cgroups of agents outside this budget: other users', or agents inside of agents.
    elsewhere: Sequence[str]


# agentres predict, and what a predictor is asked.

Predicted = Literal["memory", "cpu", "pids"]
Buckets = Sequence[tuple[float, float, float]]


class PredictionUsed(TypedDict):
    """``[prediction]`` of the configuration."""

    #: Seconds after which a run counts half.
    half_life: float
    #: Fractions.
    percentile: float
    margin: float


class ForecastTold(TypedDict):
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


class ProfileTold(TypedDict):
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


class PredictionTold(TypedDict):
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
    settings: PredictionUsed
    #: How many runs of now everything known counts as; null: nothing is predicted.
    weight: float | None
    #: Limit → what is predicted of it. Limits that do not move are left out.
    limits: Mapping[Predicted, ForecastTold]
    #: Limit → `bytes`, `cores` or `count`.
    units: Mapping[Predicted, Literal["bytes", "cores", "count"]]
    #: What is known of earlier runs.
    history: ProfileTold


class ProfileListed(TypedDict):
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
    profiles: Sequence[ProfileListed]


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
    history: ProfileTold | None
    #: Limit → what the run starts with otherwise, as far as anything is known.
    builtin: Mapping[Predicted, float]


# agentres show, and agentres ps.

LimitShown = TypedDict(
    "LimitShown",
    {
        #: What stands: bytes, cores, a list of CPUs, tasks, rates a second; `"max"`: no limit.
        "standing": float | str,
        #: `[least, most]` between which it moves; null: it is fixed.
        "range": tuple[float, float] | None,
        #: Where it is from: an option, a configuration file, `default`, or the last `set`.
        "from": str,
    },
)
"""A limit of an agent that runs; no class could have the last key."""


class LineShown(TypedDict):
    """A control file, and what was written there."""

    file: str
    text: str


class UsedNow(TypedDict):
    """Figures of a sample."""

    #: Bytes: with page cache, without the inactive page cache, and the most since its start.
    memory_current: int | None
    working_set: int | None
    memory_peak: int | None
    #: Bytes.
    swap_current: int | None
    #: Microseconds of CPU time.
    usage_usec: int | None
    #: Processes and threads.
    pids_current: int | None
    #: Open files of all processes.
    fds: int | None
    #: Received and sent, without loopback; and what was dropped instead.
    rx_bytes: int | None
    tx_bytes: int | None
    rx_packets: int | None
    tx_packets: int | None
    rx_dropped_packets: int | None
    tx_dropped_packets: int | None
    #: Cores; null: no limit.
    cpu_limit: float | None
    #: Bytes, tasks, bytes a second; null: no limit.
    memory_limit: int | None
    pids_limit: int | None
    net_in_limit: int | None
    net_out_limit: int | None


class AlertShown(TypedDict):
    """An alert that is open."""

    #: Its id, as `agentres alerts` takes it.
    id: str
    #: The rule.
    rule: str
    #: The present one: `INFO`, `WARNING`, `CRITICAL` or `EMERGENCY`.
    severity: Severity
    #: When it was raised.
    raised: float
    #: One line for people.
    message: str


class AgentShown(TypedDict):
    """``agentres show --json``."""

    #: 1; it rises when a key changes its meaning or goes.
    schema: int
    #: The agent's name.
    name: str
    #: Its command line.
    command: Sequence[str]
    #: The cgroup that has the limits.
    cgroup: str
    #: When it began.
    started: float
    #: Process ids: of its supervisor, and of its main process.
    supervisor: int
    main: int
    #: Its `--priority` as a number: `low` is 25, `normal` 100, `high` 400.
    priority: int
    #: How its limits move: the [name](configuration.md#philosophiesname-how-limits-move).
    philosophy: str
    #: Whether it is frozen; not by its disk rate.
    frozen: bool
    #: By whom; empty: it is not frozen, or that is not known.
    frozen_by: str
    #: By key, those that can be held here: [below](#a-limit-and-an-alert).
    limits: Mapping[str, LimitShown]
    #: `file` and `text` of each line of a control file, as it was written last.
    enforced: Sequence[LineShown]
    #: Figures of a [sample](history.md#a-sample-as-it-was-taken); null: not counted here.
    used: UsedNow
    #: In words, what is not as it was set, or empty.
    drift: str
    #: In words, its processes outside its cgroup, or empty.
    escaped: str
    #: The open ones: [below](#a-limit-and-an-alert).
    alerts: Sequence[AlertShown]


class AgentListed(TypedDict):
    """An agent that runs."""

    #: Its name.
    name: str
    #: The user whose it is, as a number.
    uid: int
    #: That user's name; the number if there is none.
    user: str
    #: `running`, `throttled`, `frozen`, `waiting` as in [capacity](capacity.md#agentres-capacity); `unsupervised`: its supervisor was killed; `unknown`: what it claims cannot be read.
    state: Literal["running", "throttled", "frozen", "waiting", "unsupervised", "unknown"]
    #: When it began.
    started: float
    #: Cores, on average since `started`; null: not counted here.
    cpu: float | None
    #: The working set, in bytes; null: not known.
    memory: int | None
    #: Its memory limit, in bytes; null: it has none, or it is not known.
    limit: int | None
    #: Processes and threads; null: not counted here.
    tasks: int | None
    #: Its `--priority` as a number; null: not known.
    priority: int | None
    #: How its limits move; null: not known.
    philosophy: str | None
    #: The process id of its supervisor.
    supervisor: int
    #: The cgroup that has the limits.
    cgroup: str


class AgentList(TypedDict):
    """``agentres ps --json``."""

    schema: int
    agents: Sequence[AgentListed]
