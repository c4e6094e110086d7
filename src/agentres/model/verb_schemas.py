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
