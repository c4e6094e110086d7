"""What the history gets of one run, by the thread that writes it; nothing where none is kept."""

from __future__ import annotations

import os
import time

from agentres.kernel.loop import Loop
from agentres.model.action import Action
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.watch.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.store import Run

_PATIENCE = 5.0
"""Seconds for which the end of a run waits for what is not written yet."""


class History:
    """Keeps what is told of ``run`` in the database at ``path``, empty: nowhere.

    ``note`` is told when it cannot be written, and why, and when it can again (:meth:`agentres.watch.engine.Engine.note`).
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
        self.recorder: Recorder | None = None
        if path:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            loop.watch(self._wake, self._changed)
            self.recorder = Recorder(path, lambda: os.eventfd_write(self._wake, 1), caller)
        self._keep("begin", run)

    def sample(self, when: float, sample: Sample) -> None:
        """A whole sample was taken, at this unix time."""
        self._keep("add", [(self._run.id, when, sample)])

    def event(self, event: dict[str, Any]) -> None:
        """Something has become of an alert (docs/handlers.md)."""
        self._keep("record", event)

    def act(self, action: Action) -> None:
        """Something was done with a limit."""
        self._keep("act", {"run": self._run.id, "agent": self._run.name, **action.as_dict()})

    def end(self, exit_code: int) -> str:
        """The run has ended; returns when all is written, or after a while, with why it could not be and what was lost, in words."""
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
