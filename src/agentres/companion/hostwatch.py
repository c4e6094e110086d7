"""Watches the host and the slice of all agents, once per host.

The companion of one agent does this in a thread: it needs psutil, which is too large to load
beside every agent.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from agentres.companion.hostsample import host_sample
from agentres.kernel.loop import Loop
from agentres.kernel.meter import Meter
from agentres.model.stats import Reading, Sample
from agentres.policy.settings import Settings
from agentres.watch.engine import Engine, Subject
from agentres.watch.recorder import Recorder, new_run

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST = 1.0
"""Shortest interval in seconds between two samples of the host: one takes some milliseconds."""


class HostMeter:
    """The host's figures, read as those of a cgroup (:class:`agentres.kernel.meter.Meter`)."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.unreadable: dict[str, str] = {}

    def read(self, group: str) -> Reading:
        """Read everything: reading single groups through psutil saves nothing worth having."""
        return self.sample()

    def sample(self) -> Reading:
        self.reading = Reading(**host_sample().as_dict())
        return self.reading


class SliceMeter(Meter):
    """The slice of all agents; without a limit of its own it has the host's."""

    def __init__(self, path: str, host: HostMeter) -> None:
        super().__init__(path, main="")
        self._host = host

    def sample(self) -> Reading:
        self.read("events")
        limits, host = self.read("limits"), self._host.reading
        if limits.cpu_limit is None:
            self._put({"cpu_limit": host.cpu_limit})
        if limits.memory_limit is None:
            self._put({"memory_limit": host.memory_limit})
        return super().sample()


class HostWatch(threading.Thread):
    """A thread that watches from :meth:`start` to :meth:`stop`.

    ``slice_path`` is the cgroup that holds the agents' homes, ``history`` the path of the database or
    "".  ``tell`` is called with the alert events.
    """

    def __init__(
        self,
        settings: Settings,
        slice_path: str,
        history: str,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(name="hostwatch", daemon=True)
        self._settings = settings.but(fastest=max(settings.fastest, LEAST))
        self._slice = slice_path
        self._tell_handlers = tell
        # Trouble with the history is alerted for the agents; the host's figures are then just not kept.
        self._recorder = Recorder(history, lambda: None) if history else None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopped = False

    def stop(self, patience: float) -> None:
        """Resolve the alerts and end the thread; wait for it at most ``patience`` seconds."""
        os.eventfd_write(self._wake, 1)
        self.join(patience)

    def run(self) -> None:
        loop = Loop()
        loop.watch(self._wake, self._stop)
        engine = Engine(loop, self._settings, self._tell, self._keep)
        host = HostMeter()
        subjects = [self._subject("host", "host", "/", host)]
        subjects.append(
            self._subject(
                os.path.basename(self._slice), "slice", self._slice, SliceMeter(self._slice, host)
            )
        )
        for subject in subjects:
            engine.add(subject)
        while not self._stopped:
            loop.tick()
        for subject in subjects:
            engine.remove(subject, "nobody watches it any more")
            self._record("end", subject.run, time.time(), None)
        if self._recorder is not None:
            self._recorder.close(5.0)

    def _subject(self, name: str, of: str, path: str, meter: HostMeter | Meter) -> Subject:
        run = new_run(name, of, (), path, time.time())
        self._record("begin", run)
        return Subject(run.id, name, of, meter, self._settings, since=None)

    def _stop(self) -> None:
        os.eventfd_read(self._wake)
        self._stopped = True

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] != "repeated":
            self._tell_handlers(event)
        self._record("record", event)

    def _keep(self, subject: Subject, when: float, sample: Sample) -> None:
        self._record("add", [(subject.run, when, sample)])

    def _record(self, method: str, *args: Any) -> None:
        if self._recorder is not None:
            self._recorder.put(method, *args)
