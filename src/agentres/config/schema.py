"""The sections of a file as pydantic models, and the rules and handlers that result from them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from agentres.config.agents import AgentSection
from agentres.config.ceilings import CeilingSection
from agentres.config.elastic import (
    BudgetSection,
    LimitsSection,
    PhilosophySection,
    PredictionSection,
    ScalingSection,
)
from agentres.config.handlers import entry_point, executable, importable
from agentres.config.values import (
    DEFAULT,
    Format,
    Headers,
    Level,
    Name,
    OptionalLevel,
    OptionalText,
    Resource,
    Seconds,
    Section,
    Share,
    Subjects,
    Text,
    Url,
    duration_text,
    seconds,
    threshold,
    whole,
)
from agentres.config.words import Wrong, either, shown
from agentres.policy.alerts import Rule, Severity
from agentres.policy.resources import EVENT, OWN, RESOURCES
from agentres.policy.settings import Handler

LEVELS = {severity.name.lower(): severity for severity in Severity}
TIMES = ("duration", "hysteresis", "cooldown", "keep_firing_for")

_RULE = Rule("", "", "", ())
_TROUBLE = next(rule for rule in DEFAULT.rules if RESOURCES[rule.resource].kind == EVENT)
_HANDLER = Handler("", "")


class SamplingSection(Section):
    """``[sampling]``."""

    #: Time from one full sample to the next.
    interval: Annotated[float, seconds("1s", "1h")] = DEFAULT.interval
    #: Least time between two looks at something that approaches its threshold; at most `interval`.
    fastest: Annotated[float, seconds("10ms", "1h")] = DEFAULT.fastest

    def check(self) -> None:
        """Raise :class:`Wrong` if ``fastest`` is longer than ``interval``."""
        if self.fastest > self.interval:
            interval, fastest = duration_text(self.interval), duration_text(self.fastest)
            words = f"expected at least fastest = {shown(fastest)}"
            raise Wrong("fastest", f"expected at most interval = {shown(interval)}", interval=words)


class HistorySection(Section):
    """``[history]``."""

    #: Whether samples and alerts are kept.
    enabled: StrictBool = DEFAULT.history


class AlertSection(Section):
    """``[alerts.NAME]``; which thresholds are valid depends on the resource."""

    #: What is watched: a name of the [table of resources](#resources).
    resource: Resource
    #: Whose: `"agent"`, `"host"`, `"slice"` (all agents together), or a list of them; these and no others. By default `"agent"`, and `"host"` where only the host has it.
    of: Subjects = None
    #: The threshold of each severity; at least one is needed.
    info: Any = None
    warning: Any = None
    critical: Any = None
    emergency: Any = None
    #: Instead of thresholds, for what should never happen, and needed there: `"INFO"`, `"WARNING"`, `"CRITICAL"` or `"EMERGENCY"`.
    severity: OptionalLevel = None
    #: How long a breach must last before it is an alert.
    duration: Seconds = _RULE.duration
    #: How much of the threshold the value must fall below it for the breach to end; less than 100%.
    hysteresis: Share = _RULE.hysteresis
    #: How long the rule is silent after an alert's end. For what should never happen the default is `"0s"`.
    cooldown: Seconds = _RULE.cooldown
    #: How long an alert stays after its breach. For what should never happen the default is `"1m"`.
    keep_firing_for: Seconds = _RULE.keep_firing_for
    #: `false` removes the rule.
    enabled: StrictBool = True

    def rules(self, name: str) -> list[Rule]:
        """Return one rule for each subject; :class:`Wrong` if the keys do not fit together."""
        resource = RESOURCES[self.resource]
        of = self.of or (("agent",) if "agent" in resource.of else resource.of)
        for subject in of:
            if subject not in resource.of:
                raise Wrong(
                    "of", f"expected {either(resource.of)}: {subject} has no {self.resource}"
                )
        if happens(self.resource):
            base, levels, relative = _TROUBLE, self._trouble(), False
        else:
            base, (levels, relative) = _RULE, self._levels()
        given = {key: getattr(self, key) for key in TIMES if key in self.model_fields_set}
        fields = base.as_dict() | given
        fields |= {"name": name, "resource": self.resource, "levels": levels, "relative": relative}
        return [Rule(**{**fields, "of": subject}) for subject in of]

    def _trouble(self) -> tuple[tuple[Severity, float], ...]:
        fit = fitting(self.resource)
        for key in (*LEVELS, *TIMES):
            if key in self.model_fields_set and key not in fit:
                raise Wrong(key, f"expected {either(fit)}: {self.resource} should never happen")
        if self.severity is None:
            raise Wrong("", f"expected a severity: {self.resource} should never happen")
        return ((self.severity, _TROUBLE.levels[0][1]),)

    def _levels(self) -> tuple[tuple[tuple[Severity, float], ...], bool]:
        if self.severity is not None:
            raise Wrong("severity", f"expected {either(LEVELS)}: {self.resource} has thresholds")
        found = []
        for key in LEVELS:
            if (value := getattr(self, key)) is not None:
                try:
                    found.append((key, *threshold(value, self.resource)))
                except ValueError as error:
                    raise Wrong(key, str(error)) from None
        if not found:
            raise Wrong("", f"expected a threshold: {either(LEVELS)}")
        for (low, least, part), (high, most, another) in pairwise(found):
            below, above = (f"{key} = {shown(getattr(self, key))}" for key in (low, high))
            if part != another:
                words = "expected both in percent of the limit or neither, and there is"
                raise Wrong(high, f"{words} {below}", **{low: f"{words} {above}"})
            if most <= least:
                less = {low: f"expected less than {above}"}
                raise Wrong(high, f"expected more than {below}", **less)
        return tuple((LEVELS[key], least) for key, least, _ in found), found[0][2]


def happens(resource: str) -> bool:
    """Return whether the resource should never happen: its rules have a severity instead of thresholds."""
    spec = RESOURCES[resource]
    return spec.kind == EVENT or (spec.group == OWN and spec.unit == "count")


def fitting(resource: str) -> tuple[str, ...]:
    """Return the keys that say when a rule on the resource fires, and for how long.

    An event is over at once, so it has no ``duration``; a state that should never be can last.
    """
    if not happens(resource):
        return (*LEVELS, *TIMES)
    if RESOURCES[resource].kind == EVENT:
        return ("severity", "keep_firing_for")
    return ("severity", "duration", "cooldown", "keep_firing_for")


class HandlerSection(Section):
    """``[handlers.NAME]``: the keys that every type has."""

    #: `"terminal"`, `"journal"`, `"command"`, `"webhook"` or `"python"`.
    type: str
    #: The least severity that it is told of.
    severity: Level = _HANDLER.severity
    #: How long it may take for one alert.
    timeout: Annotated[float, seconds("0s", "5m", above=True)] = _HANDLER.timeout
    #: How many alerts may wait for it; further ones are dropped, which is an alert.
    queue: Annotated[int, whole(1, 10000)] = _HANDLER.queue
    #: `false` removes it; what it needs then need not exist.
    enabled: StrictBool = True

    def options(self) -> dict[str, Any]:
        """Return the handler's options, after checking that what it needs exists; else :class:`Wrong`."""
        return {}


class PythonSection(HandlerSection):
    """A callable, given by its own name or by an entry point."""

    type: Literal["python"]
    #: `"package.module:function"`, called with each alert event.
    callable: OptionalText = None
    #: Instead: a name in the group `agentres.alert_handlers`.
    entry_point: OptionalText = None

    def options(self) -> dict[str, Any]:
        if (self.callable is None) == (self.entry_point is None):
            raise Wrong("", 'expected either callable = "package.module:function" or entry_point')
        if self.entry_point is not None:
            return {
                "callable": importable(
                    "entry_point", entry_point(self.entry_point, "agentres.alert_handlers")
                )
            }
        return {"callable": importable("callable", self.callable or "")}


class CommandSection(HandlerSection):
    """A program and its arguments."""

    type: Literal["command"]
    #: Program and arguments, a list: an absolute path, or a name in `PATH`; no shell.
    command: Annotated[list[Text], Field(min_length=1)]

    def options(self) -> dict[str, Any]:
        executable(self.command[0])
        return {"argv": self.command}


class WebhookSection(HandlerSection):
    """A URL that alerts are POSTed to."""

    type: Literal["webhook"]
    #: http or https; ASCII, without a user.
    url: Url
    #: `"agentres"`, or `"alertmanager"` (its API v2).
    format: Format = "agentres"
    #: Attempts after the first one that failed.
    retries: Annotated[int, whole(0, 10)] = 3
    #: A table; a later file replaces it as a whole, not key by key.
    headers: Headers = Field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("url", "format", "retries", "headers")}


class JournalSection(HandlerSection):
    """systemd's journal."""

    type: Literal["journal"]


class TerminalSection(HandlerSection):
    """The run's stderr."""

    type: Literal["terminal"]


HANDLERS: dict[str, type[HandlerSection]] = {
    "python": PythonSection,
    "command": CommandSection,
    "webhook": WebhookSection,
    "journal": JournalSection,
    "terminal": TerminalSection,
}
AnyHandler = Annotated[
    PythonSection | CommandSection | WebhookSection | JournalSection | TerminalSection,
    Field(discriminator="type"),
]


class File(Section):
    """A whole file."""

    sampling: SamplingSection = SamplingSection()
    history: HistorySection = HistorySection()
    limits: LimitsSection = LimitsSection()
    scaling: ScalingSection = ScalingSection()
    budget: BudgetSection = BudgetSection()
    prediction: PredictionSection = PredictionSection()
    philosophies: dict[Name, PhilosophySection] = Field(default_factory=dict)
    ceilings: dict[Name, CeilingSection] = Field(default_factory=dict)
    alerts: dict[Name, AlertSection] = Field(default_factory=dict)
    handlers: dict[Name, AnyHandler] = Field(default_factory=dict)
    agent: AgentSection | None = None
