"""What happens to one agent, for programs (``--events``, docs/events.md): what is told, how often, how long it may be.

Loaded where that was asked for.  The companion writes it (:mod:`agentres.companion.events`); whatever it is that an agent does
again and again is told a few times at once, and then not before a while, with how often it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from agentres import __version__
from agentres.model.errors import shortened
from agentres.model.limits import WRITTEN
from agentres.model.record import TYPE_CHECKING
from agentres.policy.damping import Bucket
from agentres.run import explain

if TYPE_CHECKING:
    from typing import Any, Literal

    from agentres.model.action import Action
    from agentres.model.limits import Limits
    from agentres.model.stats import Escaped, OomKill, Running, Sample
    from agentres.run.explain import Outcome
    from agentres.store import Run

SCHEMA = 1
"""The version of the events; it rises when a key changes its meaning or goes."""

BURST = 3
EVERY = 10.0
"""Seconds from one event to the next about the same limit, and about kills for memory, and about escapes, after the first three."""

MOST = 20
"""Of the processes of one event, and of a list of the summary, so many are told."""

TEXT = 1000
"""Characters of a text, at the most."""

COMMAND = 4096
"""Characters of a command line, at the most."""

_MET = {
    "memory.max": ("memory_max",),
    "cpu.max": ("nr_throttled",),
    "pids.max": ("pids_max_events",),
    "network": ("rx_dropped_packets", "tx_dropped_packets"),
}
"""The counters that tell that a limit was met."""

_LISTS = ("left_running", "escaped", "oom_kills")


class Events:
    """Tells of one ``run``; ``send`` takes the events, if it can, and never waits."""

    def __init__(self, run: Run, send: Callable[[dict[str, Any]], bool]) -> None:
        self._run = run
        self._send = send
        self.head = {"schema": SCHEMA, "run": run.id, "agent": run.name}
        """What every event has, beside its name, number and time."""
        self._buckets: dict[str, Bucket] = {}
        self._told: dict[str, int] = {}
        self._victims: list[OomKill] = []
        self._outside: set[Escaped] = set()

    def start(self, pid: int, limits: Limits, timeout: float | None) -> None:
        """The command runs, as this process."""
        self._tell(
            "start",
            agentres=__version__,
            command=_short_command(self._run.command),
            cgroup=self._run.cgroup,
            pid=pid,
            supervisor=os.getpid(),
            limits=explain.limits_as_json(limits, timeout),
        )

    def acted(self, action: Action) -> None:
        """Something was done with a limit, or for one."""
        key = action.resource.partition("=")[0]
        self._tell(
            action.kind,
            resource=action.resource,
            unit=WRITTEN[key].unit if key in WRITTEN else None,
            before=action.before,
            after=action.after,
            rule=action.rule,
            why=shortened(action.why, TEXT),
            took_seconds=action.took,
        )

    def alert(self, event: Mapping[str, Any]) -> None:
        """Something has become of an alert, as handlers are told."""
        self._tell("alert", alert=dict(event))

    def judged(self, reading: Sample, last: bool = False) -> None:
        """Take the counters of limits, and of kills for memory."""
        for limit, counters in _MET.items():
            total = sum(getattr(reading, counter) or 0 for counter in counters)
            if more := self._more(limit, total, last):
                self._tell("limit", limit=limit, count=more, total=total)
        if more := self._more("kill", reading.memory_oom_kill or 0, last):
            found = [{"pid": kill.pid, "name": kill.task} for kill in self._victims[-MOST:]]
            self._victims.clear()
            self._kill("memory", "killed for memory, by the kernel", more, found)

    def time_is_up(self) -> None:
        """The time limit has passed, and it was told to end."""
        self._tell("limit", limit="timeout", count=1, total=1)

    def oom_killed(self, kills: Sequence[OomKill]) -> None:
        """Take who was killed for memory; it is told when the counter has risen, too."""
        self._victims = [*self._victims, *kills][-MOST:]

    def killed(
        self, by: Literal["timeout", "stop", "end"], why: str, running: Sequence[Running]
    ) -> None:
        """We have sent SIGKILL to these."""
        found = [one.as_dict() for one in running[:MOST]]
        self._kill(by, shortened(why, TEXT), len(running), found)

    def escaped(self, found: Sequence[Escaped], last: bool = False) -> None:
        """Take who lives outside of the cgroup now."""
        self._outside.intersection_update(found)  # one that was moved back may leave again
        new = [each for each in found if each not in self._outside]
        if new and (last or self._may("escape")):
            self._outside = set(found)
            self._tell("escape", count=len(new), processes=_short_escaped(new))

    def end(self, outcome: Outcome, reading: Sample) -> bool:
        """The agent has ended.  Whether that was taken."""
        self.judged(reading, last=True)
        self.escaped(outcome.escaped, last=True)
        if outcome.left:
            self.killed("end", "still running when the main process had ended", outcome.left)
        summary = explain.as_json(outcome, __version__)
        for key in _LISTS:
            summary[key] = summary[key][:MOST]
        summary["escaped"] = _short_escaped(outcome.escaped)
        summary["command"] = _short_command(outcome.command)
        return self._tell("end", exit_code=outcome.exit_code, why="", summary=summary)

    def _kill(self, by: str, why: str, count: int, processes: list[dict[str, Any]]) -> None:
        self._tell("kill", by=by, why=why, count=count, processes=processes)

    def _more(self, what: str, total: int, last: bool) -> int:
        """By how much a counter has risen since it was told, where it may be told again."""
        more = total - self._told.get(what, 0)
        if more <= 0 or not (last or self._may(what)):
            return 0
        self._told[what] = total
        return more

    def _may(self, what: str) -> bool:
        bucket = self._buckets.get(what)
        if bucket is None:
            bucket = self._buckets[what] = Bucket(BURST, EVERY)
        return bucket.take(time.monotonic())

    def _tell(self, event: str, **fields: Any) -> bool:
        return self._send({**self.head, "event": event, "time": time.time(), **fields})


def _short_escaped(escaped: Sequence[Escaped]) -> list[dict[str, Any]]:
    return [one.but(cgroup=shortened(one.cgroup, TEXT)).as_dict() for one in escaped[:MOST]]


def _short_command(command: Sequence[str]) -> list[str]:
    """As much of it as is told; it ends in "…" where there is more."""
    words, room = list[str](), COMMAND
    for word in command:
        if room < 1:
            return [*words, "…"]
        words.append(shortened(word, room))
        room -= len(word) + 1
    return words
