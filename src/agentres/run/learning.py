"""Learns what an agent uses into the history of its name, and asks the history for predictions."""

from __future__ import annotations

import time

from agentres.model import log
from agentres.model.record import TYPE_CHECKING
from agentres.policy.histogram import SCALES
from agentres.policy.observer import WINDOW, Observer
from agentres.policy.prediction import Prediction, keys, predict
from agentres.policy.settings import Settings
from agentres.watch.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentres.model.stats import Sample
    from agentres.run.handover import Handover
    from agentres.store import Writer

LEAST_SECONDS = 1.0
"""Nothing is learnt from a run that ended sooner: most of those failed at their start."""


class Learning:
    """Learns from the run of ``handover``."""

    def __init__(self, recorder: Recorder, settings: Settings, handover: Handover) -> None:
        self._recorder = recorder
        self._settings = settings
        self._handover = handover
        self._keys = keys(handover.named, handover.command)
        self._taken = self._before = handover.started
        self._observer = Observer()
        self._usage = 0
        self._periods = (0, 0)
        self._hits = self._kills = self._refused = 0

    def ask(self, then: Callable[[Prediction], None]) -> None:
        """Have ``then`` called with the predicted limits for a run of this name, if anything is known and any limit moves."""
        handover, bounds = self._handover, self._handover.terms.limits.ranges
        if not bounds or not self._settings.predict:
            return

        def question(writer: Writer) -> Prediction | None:
            profile, now = writer.profile(*self._keys), time.time()
            if not self._settings.predictor:
                known = {key: between for key, between in bounds.items() if key in SCALES}
                if profile is None:
                    return None
                return predict(profile, now, known, self._settings.prediction)
            from agentres.run.predictors import first_limits  # seldom needed, and not small

            return first_limits(
                self._settings,
                profile,
                self._keys[0],
                handover.command,
                bounds,
                now,
                warnings.append,
            )

        def answered(made: Prediction | None) -> None:
            for line in warnings:
                handover.warn(line)
            if made is not None:
                then(made)

        warnings: list[str] = []
        self._recorder.ask(question, answered)

    def memory(self, sample: Sample, starved: bool = False, most: int | None = None) -> None:
        """Learn from a sample's memory; ``starved``: it was refused more; ``most``: the peak since the last sample, if known."""
        use, limit = most or sample.working_set, sample.memory_limit
        if use is not None:
            hits = sample.memory_max or 0
            self._observer.memory(use, limit, hits > self._hits, starved)
            self._hits = hits
        kills = sample.memory_oom_kill or 0
        if kills > self._kills and limit is not None:
            self._observer.killed(limit)
        self._kills = kills

    def sampled(self, sample: Sample, now: float, starved: bool = False) -> None:
        """Learn from a full sample."""
        self.memory(sample, starved, sample.working_set_most)
        if (usage := sample.usage_usec) is not None and now > self._before:
            periods, met = sample.nr_periods or 0, sample.nr_throttled or 0
            passed = periods - self._periods[0]
            felt = (met - self._periods[1]) / passed if passed > 0 else 0.0
            seconds = now - self._before
            cores = (usage - self._usage) / 1e6 / seconds
            self._observer.cpu(cores, seconds, sample.cpu_limit, felt)
            self._usage, self._periods, self._before = usage, (periods, met), now
        if (pids := sample.pids_most or sample.pids_current) is not None:
            refused = sample.pids_max_events or 0
            self._observer.pids(pids, sample.pids_limit, refused > self._refused)
            self._refused = refused
        if now - self._taken >= WINDOW:
            self._taken = now
            self._learn(ended=False)

    def finish(self, now: float) -> None:
        """Learn from the end of the run, after its last sample, unless it was too short."""
        if now - self._handover.started >= LEAST_SECONDS:
            self._learn(ended=True)
        else:
            log.debug(__name__, "too short to learn from")

    def _learn(self, ended: bool) -> None:
        observation = self._observer.take(ended)
        half_life = self._settings.prediction.half_life
        self._recorder.put("learn", self._keys[0], observation, time.time(), half_life)
