"""Events of one agent for programs (``--events``, docs/events.md): what is reported, how often, at what length.

Loaded only if asked for; the companion writes the events (:mod:`agentres.companion.events`).  What an agent does again
and again is reported at once a few times, and after that at intervals, with its count.
"""

from __future__ import annotations

import os
import time

from agentres import __version__
from agentres.model.errors import shortened
from agentres.model.limits import unit_of
from agentres.model.record import TYPE_CHECKING
from agentres.policy.damping import TokenBucket
from agentres.run import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal

    from agentres.model.action import Action
    from agentres.model.limits import Limits
    from agentres.model.schemas import (
        AlertNotice,
        End,
        Escape,
        KillNotice,
        LimitHit,
        LimitMove,
        Start,
    )
    from agentres.model.stats import EscapedProcess, OomKill, Reading, RunningProcess
    from agentres.run.explain import Outcome
    from agentres.store import Run

SCHEMA = 1
"""The version of the events; it rises when a key changes its meaning or is removed."""

BURST = 3
EVERY = 10.0
"""Seconds between two events about the same limit, about kills for memory, or about escapes, after the first BURST."""

MOST = 20
"""How many processes an event, and each list of the summary, has at most."""

TEXT = 1000
"""Characters of a text, at most."""

COMMAND = 4096
"""Characters of a command line, at most."""

_MET = {
    "memory.max": ("memory_max",),
    "cpu.max": ("nr_throttled",),
    "pids.max": ("pids_max_events",),
    "network": ("rx_dropped_packets", "tx_dropped_packets"),
}
"""Limit -> the counters that rise when it is met."""


class Events:
    """Reports the events of one ``run``; ``send`` returns whether it took an event, and never blocks."""

    def __init__(self, run: Run, send: Callable[[dict[str, Any]], bool]) -> None:
        self._run = run
        self._send = send
        self.head = {"schema": SCHEMA, "run": run.id, "agent": run.name}
        """What every event has, besides its name, number and time."""
        self._buckets: dict[str, TokenBucket] = {}
        self._told: dict[str, int] = {}
        self._victims: list[OomKill] = []
        self._outside: set[EscapedProcess] = set()

    def start(self, pid: int, limits: Limits, timeout: float | None) -> None:
        """Report that the command runs, with this PID; ``timeout`` in seconds."""
        start: Start = {
            "agentres": __version__,
            "command": _short_command(self._run.command),
            "cgroup": self._run.cgroup,
            "pid": pid,
            "supervisor": os.getpid(),
            "limits": explain.limits_as_json(limits, timeout),
        }
        self._tell("start", start)

    def acted(self, action: Action) -> None:
        """Report an action, such as a raise of a limit or a freeze."""
        moved: LimitMove = {
            "resource": action.resource,
            "unit": unit_of(action.resource),
            "before": action.before,
            "after": action.after,
            "rule": action.rule,
            "why": shortened(action.why, TEXT),
            "took_seconds": action.took,
        }
        self._tell(action.kind, moved)

    def alert(self, event: Mapping[str, Any]) -> None:
        """Report an alert event, as handlers get it."""
        notice: AlertNotice = {"alert": dict(event)}
        self._tell("alert", notice)

    def judged(self, reading: Reading, last: bool = False) -> None:
        """Report limits that were met and kills for memory, by their counters; ``last``: whatever the interval."""
        for limit, counters in _MET.items():
            total = sum(getattr(reading, counter) or 0 for counter in counters)
            if more := self._more(limit, total, last):
                self._met(limit, more, total)
        if more := self._more("kill", reading.memory_oom_kill or 0, last):
            found = [{"pid": kill.pid, "name": kill.task} for kill in self._victims[-MOST:]]
            self._victims.clear()
            self._kill("memory", "killed for memory, by the kernel", more, found)

    def time_is_up(self) -> None:
        """Report that the time limit has passed."""
        self._met("timeout", 1, 1)

    def oom_killed(self, kills: Sequence[OomKill]) -> None:
        """Take the processes that were killed for memory; :meth:`judged` reports them when the counter has risen."""
        self._victims = [*self._victims, *kills][-MOST:]

    def killed(
        self, by: Literal["timeout", "stop", "end"], why: str, running: Sequence[RunningProcess]
    ) -> None:
        """Report that these processes are killed by SIGKILL, by us."""
        found = [one.as_dict() for one in running[:MOST]]
        self._kill(by, shortened(why, TEXT), len(running), found)

    def escaped(self, found: Sequence[EscapedProcess], last: bool = False) -> None:
        """Report the processes that are newly outside of the cgroup; ``last``: whatever the interval."""
        self._outside.intersection_update(found)  # one that was moved back may leave again
        new = [each for each in found if each not in self._outside]
        if new and (last or self._may("escape")):
            self._outside = set(found)
            escape: Escape = {"count": len(new), "processes": _short_escaped(new)}
            self._tell("escape", escape)

    def end(self, outcome: Outcome, reading: Reading) -> bool:
        """Report the end of the agent; return whether ``send`` took that."""
        self.judged(reading, last=True)
        self.escaped(outcome.escaped, last=True)
        if outcome.left:
            self.killed("end", "still running when the main process had ended", outcome.left)
        summary = explain.as_json(outcome, __version__)
        summary["left_running"] = summary["left_running"][:MOST]
        summary["oom_kills"] = summary["oom_kills"][:MOST]
        summary["escaped"] = _short_escaped(outcome.escaped)
        summary["command"] = _short_command(outcome.command)
        end: End = {"exit_code": outcome.exit_code, "why": "", "summary": summary}
        return self._tell("end", end)

    def _met(self, limit: str, count: int, total: int) -> None:
        met: LimitHit = {"limit": limit, "count": count, "total": total}
        self._tell("limit", met)

    def _kill(
        self,
        by: Literal["memory", "timeout", "stop", "end"],
        why: str,
        count: int,
        processes: list[dict[str, Any]],
    ) -> None:
        kill: KillNotice = {"by": by, "why": why, "count": count, "processes": processes}
        self._tell("kill", kill)

    def _more(self, what: str, total: int, last: bool) -> int:
        """Return by how much a counter has risen since its last event; 0: no new event yet."""
        more = total - self._told.get(what, 0)
        if more <= 0 or not (last or self._may(what)):
            return 0
        self._told[what] = total
        return more

    def _may(self, what: str) -> bool:
        bucket = self._buckets.get(what)
        if bucket is None:
            bucket = self._buckets[what] = TokenBucket(BURST, EVERY)
        return bucket.take(time.monotonic())

    def _tell(self, event: str, fields: Mapping[str, object]) -> bool:
        return self._send({**self.head, "event": event, "time": time.time(), **fields})


def _short_escaped(escaped: Sequence[EscapedProcess]) -> list[dict[str, Any]]:
    return [one.but(cgroup=shortened(one.cgroup, TEXT)).as_dict() for one in escaped[:MOST]]


def _short_command(command: Sequence[str]) -> list[str]:
    """Return at most COMMAND characters of the command; it ends in "…" if there are more."""
    words, left = list[str](), COMMAND
    for word in command:
        if left < 1:
            return [*words, "…"]
        words.append(shortened(word, left))
        left -= len(word) + 1
    return words
