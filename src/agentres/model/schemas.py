"""The JSON that programs are given, as types: what is made is checked against them, and the reference is made from them.

Nothing imports this at run time.  ``#:`` is what the reference says of the keys below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Max = Literal["max"]
Rates = Mapping[str, int | Max]


class LimitsJson(TypedDict):
    """``limits``: those that the run started with."""

    #: Cores.
    cpu: float | Max | None
    #: The list of CPUs.
    cpuset: int | str | None
    #: Bytes.
    memory: int | Max | None
    swap: int | Max | None
    #: Processes and threads.
    pids: int | Max | None
    #: Device → bytes a second, read and written; the empty name is every disk.
    rbps: Rates
    wbps: Rates
    #: Device → operations a second, likewise.
    riops: Rates
    wiops: Rates
    #: Open files of each process.
    nofile: int | None
    #: Bytes a second, received and sent.
    net_in: int | Max | None
    net_out: int | Max | None
    #: `host`, `none` or `isolated`.
    net: str
    #: `free` or `limited`.
    net_loopback: str
    #: `on` or `off`.
    io_strict: str
    #: Seconds.
    timeout: float | None
    #: Limit → `[least, most]`, of each that moves.
    ranges: Mapping[str, Sequence[float]]


class Summary(TypedDict):
    """``--summary``, and the ``summary`` of the event ``end``."""

    #: 1.
    schema: int
    #: The version that wrote it.
    agentres: str
    #: The agent's name.
    name: str
    #: Its command line.
    command: Sequence[str]
    #: The cgroup that had the limits.
    cgroup: str
    #: The exit status of `agentres run`.
    exit_code: int
    #: The signal that ended the main process.
    signal: int | None
    #: Whether `--timeout` ended it.
    timed_out: bool
    #: Who ended it by [command](control.md), or that systemd-oomd did.
    stopped: str | None
    #: From the fork to the main process's end.
    wall_seconds: float
    #: [Below](#usage).
    usage: Mapping[str, int | None]
    #: Control file → what was wrong with its text.
    unreadable: Mapping[str, str]
    #: [Below](#limits).
    limits: LimitsJson
    #: `memory.max` at the end, in bytes; `"max"`: no limit; null: there is no such file.
    memory_max: float | str | None
    #: The disk rates that pauses held: `io_write`, and without an io controller `io_read` too ([limits](limits.md)).
    paced: Sequence[str]
    #: `file` and `text` of each control file line that was written and read back; `network` is not a control file, but is listed like one: `in=RATE out=RATE loopback=free`.
    enforced: Sequence[Mapping[str, str]]
    #: The same for lines that do not hold, and `why`.
    not_enforced: Sequence[Mapping[str, str]]
    #: `limit` (a control file, `network`, or `timeout`), `events` (how often), `text` (in words).
    limits_hit: Sequence[Mapping[str, object]]
    #: With [`--disk-space`](limits.md#disk-space): `directory`, `limit` and `used`: bytes that the agent could add at most, and that it added (null: not known).
    disk_space: Mapping[str, object] | None
    #: `pid` and `name` of each process that still ran after the main process had ended, and was therefore killed; empty if the whole agent was killed at once.
    left_running: Sequence[Mapping[str, object]]
    #: What was in memory when the memory limit was last hit, in bytes: `anon`, `file`, `shmem` (the part of `file` in tmpfs and shared memory), `kernel`, `sock` (memory.stat); `biggest`: `pid`, `name` and `size` of three processes; `tmpfs_grown`: each tmpfs of the host that has grown since the launch, and by how much, whoever wrote there. Null: the limit was not hit. It comes from the kernel's report of the kill if agentres may read that (root, the daemon), otherwise it is read at that moment.
    footprint: Mapping[str, object] | None
    #: `pid`, `name` and `cgroup` of each process of the run that was outside its cgroup when all processes inside had ended ([security](security.md#what-has-left)); `fate`: `ended`, `not ended: …` with the reason, or empty if it was left (`--escaped tell`).
    escaped: Sequence[Mapping[str, object]]
    #: `pid`, `task`, `cgroup` of each victim (at most the last 100), and `limit_cgroup`, the cgroup whose limit was hit (empty: the host's); only if agentres may read the kernel log.
    oom_kills: Sequence[Mapping[str, object]]
    #: Whose limit the last kill for memory was: the agent's own cgroup, or one above it, such as `/agentres.slice` (paths as in `/proc/PID/cgroup`; two or more: it was one of them); `[]`: the host ran out; null: nobody was killed, or it is not known. From the kernel log or, if agentres may not read that, from `memory.events.local` of the cgroups above.
    oom_limits: Sequence[str] | None
    #: Because there were [too many](security.md#what-an-agent-can-make-us-write): rule → number of changes of its alerts that were not reported.
    alerts_left_out: Mapping[str, int]
    #: Likewise, how many moves of limits are missing from the history.
    moves_left_out: int


class Event(TypedDict):
    """What every event of ``--events`` has."""

    #: 1.
    schema: int
    #: The run's id, as in the [history](history.md).
    run: str
    #: The agent's name.
    agent: str
    #: One of those below.
    event: str
    #: 1 for `start`, then one more each; a gap means lost events.
    number: int
    #: When the event was made.
    time: float


class Start(TypedDict):
    """The command runs."""

    #: The version.
    agentres: str
    #: The command line.
    command: Sequence[str]
    #: The cgroup that has the limits.
    cgroup: str
    #: The main process.
    pid: int
    #: The process that supervises it.
    supervisor: int
    #: As in the [summary](summary.md#limits).
    limits: LimitsJson


class LimitHit(TypedDict):
    """A limit was met."""

    #: The limit that was met: a control file, `network`, or `timeout`, after which the agent is told to end.
    limit: str
    #: How often since the last such event: times at the limit, throttled periods, refused forks, dropped packets.
    count: int
    #: How often since the start.
    total: int


class AlertNotice(TypedDict):
    """An alert changed."""

    #: [As handlers get it](handlers.md#the-event); its `event` is `raised`, `updated` or `resolved`.
    alert: Mapping[str, object]


class Escape(TypedDict):
    """Processes of the run are outside of its cgroup."""

    #: Processes that were found outside of the cgroup, or were dealt with, since the last such event.
    count: int
    #: `pid`, `name`, `cgroup`, `fate`, as in the summary's `escaped`.
    processes: Sequence[Mapping[str, object]]


class KillNotice(TypedDict):
    """Processes were killed."""

    #: `memory` (the kernel), `timeout`, `stop` (a command or a hang-up), `end` (still running when the main process had ended).
    by: Literal["memory", "timeout", "stop", "end"]
    #: In words.
    why: str
    #: How many processes.
    count: int
    #: `pid` and `name`; for `memory`, as far as the kernel log may be read.
    processes: Sequence[Mapping[str, object]]


class Loss(TypedDict):
    """Events were not written."""

    #: Events that were not written; `number` is that of the last of them.
    count: int


class End(TypedDict):
    """The agent has ended."""

    #: What `agentres run` exits with; null: its supervisor was killed.
    exit_code: int | None
    #: Why there is no summary; empty if there is one.
    why: str
    #: The [summary](summary.md), with its lists cut.
    summary: Summary | None


class LimitMove(TypedDict):
    """Something was done with a limit, or because of one."""

    #: The limit, as options name it: `memory`, `io_write=/dev/vda`; `agent` where the whole agent was frozen or thawed.
    resource: str
    #: Of the next two.
    unit: str | None
    #: The limit; null: no limit, or a list of CPUs, which is in `why`.
    before: float | None
    after: float | None
    #: The rule that decided, or `command`.
    rule: str
    #: In words.
    why: str
    #: How long it took.
    took_seconds: float


MOVES = ("raise", "lower", "predict", "set", "trim", "throttle", "reclaim", "release", "freeze", "thaw", "pace", "refuse")  # fmt: skip
"""The events that are :class:`LimitMove`: the kinds of :class:`agentres.model.action.Action`."""

EVENTS = {
    "start": Start, "limit": LimitHit, "alert": AlertNotice, "escape": Escape, "kill": KillNotice, "lost": Loss, "end": End,
    **dict.fromkeys(MOVES, LimitMove),
}  # fmt: skip
"""Event -> what it has besides :class:`Event`."""


class AlertEvent(TypedDict):
    """A change of an alert, as handlers get it."""

    #: 1.
    schema: int
    #: `"raised"`, `"updated"` (another severity, or further processes that escaped), `"resolved"`.
    event: str
    #: The alert's, eight hexadecimal digits; the same in all of its events.
    id: str
    #: Id of the run that it is about.
    run: str
    #: The agent's name; `"host"` or the slice's name for those.
    agent: str
    #: `"agent"`, `"host"`, `"slice"`.
    of: str
    #: Names, as in the configuration.
    rule: str
    resource: str
    #: `"bytes"`, `"cores"`, `"bytes/s"`, `"packets/s"`, `"count"`, `"fraction"`: of the figures.
    unit: str
    #: `"INFO"`, `"WARNING"`, `"CRITICAL"`, `"EMERGENCY"`: the present one.
    severity: str
    #: The figure, and the threshold that it reached.
    value: float
    threshold: float
    #: The limit; null: there is none.
    limit: float | None
    #: The highest value since the alert was raised, and when.
    worst: float
    worst_at: float
    #: The limit then.
    worst_limit: float | None
    #: When the threshold was crossed, the alert raised, and last changed.
    breached: float
    raised: float
    updated: float
    #: When it ended, else null.
    resolved: float | None
    #: One line for people.
    message: str
    #: Breaches within the cooldown, which raised no alert of their own.
    repeats: int
    #: The host's name.
    host: str
