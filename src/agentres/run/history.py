"""The history of one run: passes samples, alerts and actions to the thread that writes them, if a history is kept."""

from __future__ import annotations

import os
import time

from agentres.kernel.loop import Loop
from agentres.model.action import Action
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.policy.damping import TokenBucket
from agentres.watch.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.store import Run

MOVES, MOVE_EVERY = 200, 10.0
"""How many moves of limits are kept as they come; after that one in so many seconds."""

_PATIENCE = 5.0
"""Seconds for which the end of a run waits until all is written."""


class History:
    """Keeps the records of ``run`` in the database at ``path``; empty: nowhere.

    ``note`` is told when it cannot be written, with the reason, and when it can again (:meth:`agentres.watch.engine.Engine.note`).
    ``left_out`` counts the actions that are missing from it, as there were too many.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        run: Run,
        caller: Caller | None,
        note: Callable[[str, float, str], None],
    ) -> None:
        self._loop = loop
        self._run = run
        self._note = note
        self._moves = TokenBucket(MOVES, MOVE_EVERY)
        self.left_out = 0
        self.recorder: Recorder | None = None
        if path:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            loop.watch(self._wake, self._changed)
            self.recorder = Recorder(path, lambda: os.eventfd_write(self._wake, 1), caller)
        self._keep("begin", run)

    def sample(self, when: float, sample: Sample) -> None:
        """Keep a full sample, taken at this unix time."""
        self._keep("add", [(self._run.id, when, sample)])

    def event(self, event: dict[str, Any]) -> None:
        """Keep an alert event (docs/handlers.md)."""
        self._keep("record", event)

    def act(self, action: Action) -> bool:
        """Keep an action on a limit, unless there were too many lately; return whether there were not, also where no history is kept."""
        if not self._moves.take(time.monotonic()):
            self.left_out += self.recorder is not None
            return False
        self._keep("act", {"run": self._run.id, "agent": self._run.name, **action.as_dict()})
        return True

    def end(self, exit_code: int) -> str:
        """Keep the end of the run and wait, for a while, until all is written; return what went wrong and was lost, in words."""
        self._keep("end", self._run.id, time.time(), exit_code)
        if self.recorder is None:
            return ""
        self.recorder.close(_PATIENCE)
        self._loop.unwatch(self._wake)
        os.close(self._wake)
        return "; ".join(filter(None, (self.recorder.trouble, self.recorder.unwritten)))

    def _keep(self, method: str, *args: Any) -> None:
        if self.recorder is not None:
            self.recorder.put(method, *args)

    def _changed(self) -> None:
        assert self.recorder is not None
        os.eventfd_read(self._wake)
        self.recorder.answers()
        trouble = self.recorder.trouble
        self._note("history", int(bool(trouble)), trouble)
