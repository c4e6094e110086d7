"""The JSON of verbs about agents that run, as types: ``capacity``, ``show``, ``ps``; see also :mod:`agentres.model.schemas`.

Nothing imports this at run time.  ``#:`` is what the reference says of the keys below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from agentres.model.history_schemas import Severity

# agentres capacity.


class HostJson(TypedDict):
    """The host that agents share."""

    #: Bytes.
    memory: int
    #: How many.
    cpus: int


class BudgetJson(TypedDict):
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


class ClaimJson(TypedDict):
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
    host: HostJson
    #: What agents may have together.
    budget: BudgetJson
    #: The sum of the agents' limits; of one without a limit, what it uses.
    allocated: int
    #: The sum of what they use, without page cache that can be dropped.
    used: int
    #: What the processes use that watch agents with a fixed limit and deliver their alerts.
    beside: int
    #: `budget.memory` minus `allocated` and `beside`; negative if the budget has shrunk.
    free: int
    #: The agents, the oldest first.
    agents: Sequence[ClaimJson]
    #: The cgroups of agents outside this budget: other users', or agents inside of agents.
    elsewhere: Sequence[str]


# agentres show, and agentres ps.

ShownLimit = TypedDict(
    "ShownLimit",
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


class LimitLine(TypedDict):
    """A control file, and what was written there."""

    file: str
    text: str


class CurrentUse(TypedDict):
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


class OpenAlert(TypedDict):
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


class AgentJson(TypedDict):
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
    limits: Mapping[str, ShownLimit]
    #: `file` and `text` of each line of a control file, as it was written last.
    enforced: Sequence[LimitLine]
    #: Figures of a [sample](history.md#a-sample-as-it-was-taken); null: not counted here.
    used: CurrentUse
    #: In words, what is not as it was set, or empty.
    drift: str
    #: In words, its processes outside its cgroup, or empty.
    escaped: str
    #: The open ones: [below](#a-limit-and-an-alert).
    alerts: Sequence[OpenAlert]


class AgentEntry(TypedDict):
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
    agents: Sequence[AgentEntry]
