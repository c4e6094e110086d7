"""Commands to a running agent: who may give them, and what they do.

Loaded at the first command, so that agents that get none do not pay for JSON and the rest.
"""

from __future__ import annotations

import os
import time

from agentres.kernel import process
from agentres.kernel.actuator import COMMAND, PACING
from agentres.kernel.listener import Channel, Peer
from agentres.model import clock, control, log
from agentres.model.action import Action
from agentres.model.control import Command
from agentres.model.errors import (
    AgentresError,
    ControlFileError,
    NotEnforceable,
    UsageError,
    reason,
)
from agentres.model.native import partial
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER, format_duration
from agentres.policy.alerts import message
from agentres.run.monitor import Monitor
from agentres.run.resize import Resize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from agentres.kernel.loop import Timer
    from agentres.model.limits import Limits
    from agentres.policy.elastic import Terms
    from agentres.run.supervision import Supervision

_USED = (
    "memory_current", "working_set", "memory_peak", "swap_current", "usage_usec", "pids_current", "fds",
    "rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_dropped_packets", "tx_dropped_packets",
    "cpu_limit", "memory_limit", "pids_limit", "net_in_limit", "net_out_limit",
)  # fmt: skip
"""The figures of a sample that ``show`` returns."""


class Steering:
    """Takes commands for one agent."""

    def __init__(self, supervision: Supervision, monitor: Monitor) -> None:
        self._supervision = supervision
        self._monitor = monitor
        self._origins = dict(monitor.handover.origins)
        self._waiting: list[Channel] = []
        self._freeze_ends: Timer | None = None

    def take(self, channel: Channel, line: bytes) -> None:
        """Carry out the command in the line, and answer."""
        try:
            asked = control.parse(line)
            answer = self._do(asked, channel)
        except AgentresError as error:
            answer = control.failure(error)
        except OSError as error:
            answer = control.failure(AgentresError(reason(error)))
        except (
            ImportError
        ) as error:  # our files were replaced or removed before we had loaded them all
            answer = control.failure(AgentresError(f"agentres was upgraded meanwhile: {error}"))
        if answer is not None:
            channel.send(answer)

    def ended(self, exit_code: int) -> None:
        """Answer the clients that wait for the agent's end."""
        for channel in self._waiting:
            channel.send(control.success(ended=True, exit_code=exit_code))

    def _do(self, asked: Command, channel: Channel) -> bytes | None:
        who = _spelled(channel.peer)
        if self._supervision.ended and asked.verb in ("set", "freeze", "thaw"):
            raise UsageError("the agent has ended")
        match asked.verb:
            case "show":
                return control.success(agent=self._shown())
            case "set":
                peer = channel.peer
                return control.success(changed=self._set(asked.fields["limits"], who, peer.uid))
            case "freeze":
                return control.success(until=self._freeze(who, asked.fields["for"]))
            case "thaw":
                self._only_for_us("thawed")
                self._thaw(who, "")
                return control.success()
            case "stop":
                self._supervision.stop(asked.fields["grace"], who)
            case "kill":
                self._supervision.kill(who)
        channel.waits = True
        self._waiting.append(channel)
        return None

    def _shown(self) -> dict[str, Any]:
        monitor = self._monitor
        pausing = monitor.actuator.frozen_by.keys() == {PACING}
        frozen = monitor.actuator.cgroup.freeze and not pausing
        by = monitor.actuator.frozen_by.get(COMMAND) or monitor.subject.detail.get("frozen", "")
        sample = monitor.meter.sample()
        monitor.integrity.check_limits()
        used = {key: getattr(sample, key) for key in _USED}
        return {
            "name": monitor.run.name,
            "command": list(monitor.handover.command),
            "cgroup": monitor.actuator.cgroup.path,
            "started": monitor.run.started,
            "supervisor": os.getpid(),
            "main": self._supervision.pid,
            "priority": monitor.moving.terms.priority,
            "philosophy": monitor.moving.terms.philosophy.name,
            "frozen": frozen,
            "frozen_by": by if frozen else "",
            "limits": self._limits(),
            "enforced": [{"file": s.file, "text": s.text} for s in monitor.actuator.lines],
            "used": used,
            "drift": monitor.subject.detail["drift"],
            "escaped": monitor.subject.detail["escaped"],
            "alerts": self._alerts(),
        }

    def _limits(self) -> dict[str, Any]:
        terms, actuator = self._monitor.moving.terms, self._monitor.actuator
        shown = {}
        for key in control.SETTABLE:
            for named in [key, *(k for k in terms.limits.ranges if k.startswith(f"{key}="))]:
                if (standing := actuator.limit_or_none(named)) is None:
                    continue
                between = terms.limits.ranges.get(named)
                shown[named] = {
                    "standing": standing,
                    "range": None if between is None else [between.least, between.most],
                    "from": self._origins.get(named, "default"),
                }
        return shown

    def _alerts(self) -> list[dict[str, Any]]:
        offset = time.time() - time.monotonic()
        return [
            {
                "id": alert.id,
                "rule": alert.rule.name,
                "severity": alert.severity.name,
                "raised": alert.raised + offset,
                "message": message(alert, self._monitor.run.name),
            }
            for watches in self._monitor.subject.watches.values()
            for watch in watches
            if (alert := watch.alert) is not None
        ]

    def _freeze(self, who: str, seconds: float) -> float | None:
        """Freeze the agent for ``seconds``; return the end in unix seconds; None: until it is thawed."""
        start, now = time.monotonic(), time.time()
        until = now + seconds if seconds < NEVER else None
        ends = "it is thawed" if until is None else clock.date(until)
        self._monitor.actuator.freeze(
            COMMAND, f"frozen by {who} at {clock.date(now)}, until {ends}"
        )
        self._tell(start, "freeze", f"{who}, until {ends}")
        self._forget_end()
        if until is not None:
            why = f"its time is up: frozen for {format_duration(seconds)} by {who}"
            self._freeze_ends = self._supervision.after(seconds, partial(self._end_freeze, why))
        return until

    def _end_freeze(self, why: str) -> None:
        if COMMAND not in self._monitor.actuator.frozen_by:
            return  # it was thawed meanwhile, so that it can end
        try:
            self._thaw(why, COMMAND)
        except ControlFileError as error:  # it has just ended
            log.debug(__name__, "not thawed: %s", error)

    def _thaw(self, why: str, account: str) -> None:
        """Thaw the agent on one ``account``; empty: on all but pacing."""
        start = time.monotonic()
        self._forget_end()
        self._monitor.actuator.thaw(account)
        self._tell(start, "thaw", why)

    def _tell(self, start: float, kind: str, why: str) -> None:
        took = time.monotonic() - start
        self._monitor.act(Action.now(kind, "agent", None, None, "command", why, took))

    def _forget_end(self) -> None:
        if self._freeze_ends is not None:
            self._freeze_ends.cancel()

    def _set(
        self, texts: Mapping[str, str | Sequence[str]], who: str, uid: int
    ) -> list[dict[str, Any]]:
        monitor = self._monitor
        held = monitor.moving.terms
        self._only_for_us("set")
        monitor.meter.read("limits")
        resize: Resize | None = None

        def terms() -> Terms:
            nonlocal resize
            resize = Resize(monitor.actuator, held, texts, partial(self._within, uid))
            return resize.terms

        monitor.moving.anew(terms)
        assert resize is not None
        for one in resize.changes:
            before, after = _number(one.before), _number(one.after)
            why = f"{one.text}, by {who}"
            self._monitor.act(Action.now("set", one.key, before, after, "command", why, one.took))
            self._origins[one.key] = f"set {one.text}, by {who}"
        monitor.meter.read("limits")
        monitor.integrity.check_limits()
        monitor.subject.settled()
        off = monitor.subject.detail["drift"]
        if off:
            raise NotEnforceable(f"written, and does not hold: {off}")
        return [
            {
                "limit": one.key,
                "before": one.before,
                "after": one.after,
                "text": one.text,
                "note": one.note,
            }
            for one in resize.changes
        ]

    def _within(self, uid: int, limits: Limits) -> Limits:
        """Lower or refuse limits above what the owner may set; root may set anything."""
        within = self._monitor.handover.within
        return (
            limits
            if within is None or uid == 0
            else within(limits, self._monitor.moving.terms.limits)
        )

    def _only_for_us(self, what: str) -> None:
        mover = self._monitor.subject.mover
        if mover is not None and mover.frozen:
            raise UsageError(f"it cannot be {what} while it is frozen for others: {mover.why}")


def refusal(peer: Peer, owners: set[int], inside: str) -> AgentresError | None:
    """Return why this peer may not command the agent; None: it may.

    ``owners`` are the users who may, besides root; processes of the agent may not.  ``inside`` is the
    agent's cgroup as /proc/PID/cgroup names it.
    """
    if peer.uid not in owners and peer.uid != 0:
        return UsageError("only the agent's owner and root may command it")
    try:
        at = process.cgroup(peer.pid)
    except OSError:  # it is gone already, or in a PID namespace that we do not see
        return UsageError("who asks cannot be seen")
    if process.is_inside(at, inside):
        return UsageError("an agent does not command itself")
    return None


def _number(limit: float | str) -> float | None:
    return None if isinstance(limit, str) else limit


def _spelled(peer: Peer) -> str:
    return f"uid {peer.uid}, process {peer.pid}"
