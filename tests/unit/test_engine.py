"""The engine in simulated time: when it samples, when it looks, what it tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from stepped import Stepped

from agentres.model.stats import Reading, Sample
from agentres.policy.alerts import Rule, Severity
from agentres.policy.settings import Settings
from agentres.watch.engine import Engine, Subject


class Simulated(Stepped):
    """A clock, a loop and a subject whose figures are functions of the time."""

    def __init__(self, *rules: Rule, **figures: Callable[[float], float | None]) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []
        self.samples: list[tuple[float, Sample]] = []
        self.reads: list[tuple[float, str]] = []
        self.values: dict[str, Any] = dict.fromkeys(Reading.__match_args__)
        self.unreadable: dict[str, str] = {}
        self.figures = figures
        settings = Settings(rules=rules)
        self.engine = Engine(self, settings, self._tell, self._keep, lambda: self.now)  # type: ignore[arg-type]
        self.subject = Subject("r1", "x", "agent", self, settings, since=self.now)
        self.engine.add(self.subject)

    @property
    def reading(self) -> Reading:
        return Reading(**self.values)

    def read(self, group: str) -> Reading:
        self.reads.append((self.now - 1000, group))
        for name, figure in self.figures.items():
            self.values[name] = figure(self.now - 1000)
        return self.reading

    def sample(self) -> Reading:
        return self.read("all")

    def _tell(self, event: dict[str, Any]) -> None:
        self.told.append({**event, "at": self.now - 1000})

    def _keep(self, subject: Subject, when: float, sample: Sample) -> None:
        self.samples.append((self.now - 1000, sample))

    def events(self, rule: str) -> list[tuple[str, str]]:
        return [(e["event"], e["severity"]) for e in self.told if e["rule"] == rule]


DRIFT = Rule("drift", "drift", "agent", ((Severity.EMERGENCY, 1.0),))
MEMORY = Rule(
    "memory", "memory", "agent", ((Severity.WARNING, 0.75), (Severity.CRITICAL, 0.8)), True
)
CPU = Rule("cpu", "cpu", "agent", ((Severity.WARNING, 0.75),), relative=True, duration=10)
FDS = Rule("fds", "fds", "agent", ((Severity.WARNING, 1000),), duration=5)


def test_a_state_that_no_meter_reads_is_told_as_a_figure_like_any_other() -> None:
    made = Simulated(state("drift"))
    made.engine.note(made.subject, "drift", 2, "memory.max: 5 instead of 7")
    (event,) = made.told
    assert (event["value"], type(event["value"])) == (2.0, float)


def test_a_quiet_subject_is_sampled_each_interval_and_not_looked_at_in_between() -> None:
    made = Simulated(MEMORY, CPU, FDS, working_set=lambda t: 10, fds=lambda t: 7)
    made.run(60)
    assert [t for t, _ in made.samples] == [pytest.approx(5.0 * n) for n in range(13)]
    assert {group for _, group in made.reads} == {"all"}
    assert made.told == []


def test_subjects_that_begin_at_any_moment_are_sampled_together_from_then_on() -> None:
    made = Simulated(MEMORY)
    for at in (0.013, 0.21, 0.247):
        made.run(1000 + at - made.now)
        made.engine.add(Subject(f"{at}", "y", "agent", made, made.engine.settings, since=made.now))
    made.run(12)
    later = [t for t, _ in made.samples if t > 1]
    assert len(later) == 8
    # Two of the four begin within a tenth of a second of another: they share its moments.
    assert sorted({round(t, 6) for t in later}) == [5.0, 5.2, 10.0, 10.2]


def test_a_ramp_is_looked_at_ever_closer_and_the_alert_comes_within_100_ms_of_the_crossing() -> (
    None
):
    made = Simulated(MEMORY, working_set=lambda t: 10 * t, memory_limit=lambda t: 1000)
    made.run(76)
    (event,) = made.told
    assert event["event"] == "raised"
    assert 0 <= event["raised"] - event["breached"] <= 0.1
    looks = [t for t, group in made.reads if group == "memory"]
    assert len(looks) < 20


@pytest.mark.parametrize("jump", [20.1, 22.3, 24.9])
def test_cpu_that_jumps_is_told_of_when_the_rules_duration_has_passed(jump: float) -> None:
    made = Simulated(CPU, usage_usec=lambda t: max(0.0, t - jump) * 1e6, cpu_limit=lambda t: 1.0)
    made.run(40)
    (event,) = made.told
    assert event["breached"] - event["raised"] == pytest.approx(-10, abs=0.1)
    # Early where the look that saw it begin was in breach on the whole: by a quarter of it at most.
    assert -1.25 <= event["at"] - (jump + 10) <= 0.1


@pytest.mark.parametrize("jump", [20.1, 22.3, 24.9])
def test_a_level_that_jumps_is_told_of_no_later_than_the_rules_duration(jump: float) -> None:
    made = Simulated(FDS, fds=lambda t: 7.0 if t < jump else 1200.0)
    made.run(40)
    (event,) = made.told
    assert event["at"] <= jump + 5 + 0.1
    assert event["raised"] - event["breached"] >= 5


def test_a_rate_is_never_judged_over_less_than_half_the_shortest_look() -> None:
    made = Simulated(CPU, usage_usec=lambda t: 0.9 * t * 1e6, cpu_limit=lambda t: 1.0)
    for _ in range(20):
        made.now += 0.01
        made.engine.look(made.subject, "cpu")
    assert made.told == []


def test_the_end_takes_a_last_sample_and_resolves_what_fires() -> None:
    made = Simulated(MEMORY, working_set=lambda t: 900, memory_limit=lambda t: 1000)
    made.run(1)
    assert made.events("memory") == [("raised", "CRITICAL")]
    made.engine.remove(made.subject, "the agent has ended")
    assert made.events("memory") == [("raised", "CRITICAL"), ("resolved", "CRITICAL")]
    assert made.told[-1]["message"].endswith("the agent has ended")
    assert len(made.samples) == 2


def state(resource: str) -> Rule:
    return Rule(resource, resource, "agent", ((Severity.CRITICAL, 1.0),))


@pytest.mark.parametrize(
    ("resource", "kept"),
    [("escaped", True), ("drift", False)],
)
def test_what_happened_is_still_said_when_it_is_over(resource: str, kept: bool) -> None:
    made = Simulated(state(resource))
    made.run(1)
    made.engine.note(made.subject, resource, 1, "sleep (pid 9)")
    made.engine.remove(made.subject, "the agent has ended")
    raised, resolved = made.told
    assert raised["message"].endswith(": sleep (pid 9)")
    assert resolved["message"].endswith("the agent has ended")
    assert ("sleep (pid 9)" in resolved["message"]) == kept


def test_another_cause_updates_an_alert_that_is_open() -> None:
    made = Simulated(state("drift"))
    made.run(1)
    for value, detail, anew in (
        (1, "one", True),
        (1, "one", False),
        (1, "two", True),
        (0, "", True),
    ):
        made.engine.note(made.subject, "drift", value, detail, anew)
    assert made.events("drift") == [
        ("raised", "CRITICAL"),
        ("updated", "CRITICAL"),
        ("resolved", "CRITICAL"),
    ]
    assert made.told[1]["message"].endswith(": two")


def test_an_absent_figure_is_no_value() -> None:
    made = Simulated(MEMORY, CPU, FDS)
    made.run(20)
    assert made.told == []
    assert all(sample == Reading() for _, sample in made.samples)


def test_a_counter_that_falls_is_no_rate() -> None:
    made = Simulated(CPU, usage_usec=lambda t: 1e9 if t < 7 else 0, cpu_limit=lambda t: 1.0)
    made.run(30)
    assert not [e for e in made.told if e["value"] < 0]


def test_a_notification_is_judged_at_once() -> None:
    used = {"now": 10}
    made = Simulated(MEMORY, working_set=lambda t: used["now"], memory_limit=lambda t: 1000)
    made.run(2.5)
    used["now"] = 790
    made.engine.look(made.subject, "events", "memory")
    assert made.events("memory") == [("raised", "WARNING")]
    assert [t for t, _ in made.samples] == [0.0]


def test_a_clock_that_stood_still_brings_no_burst_of_samples() -> None:
    made = Simulated(MEMORY, working_set=lambda t: 10)
    made.run(6)
    made.now += 3600  # the machine slept
    before = len(made.samples)
    made.run(10)
    assert len(made.samples) - before <= 4
