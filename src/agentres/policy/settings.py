"""The settings as the supervisor keeps them; :mod:`agentres.config` reads them from files."""

from __future__ import annotations

from types import MappingProxyType

from agentres.model.errors import UsageError
from agentres.model.limits import SHARE
from agentres.model.record import TYPE_CHECKING, Record
from agentres.policy.alerts import DEFAULT_RULES, Rule, Severity
from agentres.policy.ceilings import Ceiling
from agentres.policy.prediction import PredictionSettings
from agentres.policy.scaling import BALANCED, PHILOSOPHIES, Philosophy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Handler(Record):
    """A receiver of alerts."""

    name: str
    # python, command, webhook, journal or terminal.
    type: str
    # The lowest severity that it gets.
    severity: Severity = Severity.WARNING
    # Seconds for each alert.
    timeout: float = 10.0
    # How many alerts may wait for it; more are dropped and counted.
    queue: int = 100
    # They depend on the type: see agentres.companion.handlers.
    options: Mapping[str, Any] = MappingProxyType({})


class AgentUnit(Record):
    """An agent that runs as a systemd unit: its command, options of ``agentres run`` as text by key, and added environment variables."""

    command: tuple[str, ...]
    values: Mapping[str, Any]
    environment: Mapping[str, str]


TERMINAL = Handler("terminal", "terminal")
"""The default handler."""


class Settings(Record):
    """The settings; the defaults here hold for what no file sets."""

    # Seconds from one full sample to the next.
    interval: float = 5.0
    # The shortest time between two looks, in seconds.
    fastest: float = 0.1
    history: bool = True
    rules: tuple[Rule, ...] = DEFAULT_RULES
    handlers: tuple[Handler, ...] = (TERMINAL,)
    philosophies: Mapping[str, Philosophy] = PHILOSOPHIES
    # The philosophy of an agent that names none.
    philosophy: str = BALANCED.name
    # The fraction of the host that all agents together may use.
    budget_share: float = SHARE
    # Whether first limits are predicted from earlier runs.
    predict: bool = True
    # The entry point of a custom predictor; empty: the built-in one.
    predictor: str = ""
    prediction: PredictionSettings = PredictionSettings()
    # Texts as in options of ``agentres run``, by their key in agentres.model.limits.LIMIT_SPECS.
    limits: Mapping[str, str | Sequence[str]] = MappingProxyType({})
    # The file that each key comes from; keys are dotted: ``limits.memory``.
    origins: Mapping[str, str] = MappingProxyType({})
    # What the daemon allows users.
    ceilings: tuple[Ceiling, ...] = ()
    # The agent that a file in agents.d describes.
    agent: AgentUnit | None = None

    def chosen(self, philosophy: str | None) -> Philosophy:
        """Return the philosophy of that name, or the default one for None; UsageError if there is none."""
        name = self.philosophy if philosophy is None else philosophy
        if (found := self.philosophies.get(name)) is None:
            known = ", ".join(self.philosophies)
            raise UsageError(f"philosophy {name}: expected one of {known}")
        return found


def to_plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain objects that marshal can carry to another process of the same installation."""
    plain = settings.as_dict()
    plain["rules"] = [_plain_rule(rule) for rule in settings.rules]
    plain["handlers"] = [
        (h.name, h.type, int(h.severity), h.timeout, h.queue, dict(h.options))
        for h in settings.handlers
    ]
    plain["philosophies"] = [one.as_tuple() for one in settings.philosophies.values()]
    plain["prediction"] = settings.prediction.as_tuple()
    plain["limits"] = dict(settings.limits)
    plain["origins"] = dict(settings.origins)
    plain["ceilings"] = [(*one.as_tuple()[:-1], dict(one.limits)) for one in settings.ceilings]
    plain["agent"] = None if settings.agent is None else settings.agent.as_tuple()
    return plain


def _plain_rule(rule: Rule) -> tuple[Any, ...]:
    levels = tuple((int(severity), threshold) for severity, threshold in rule.levels)
    return tuple(levels if n == "levels" else getattr(rule, n) for n in Rule.__match_args__)


def from_plain(plain: dict[str, Any]) -> Settings:
    """Return the settings that :func:`to_plain` was given."""
    rules = []
    for fields in plain["rules"]:
        named = dict(zip(Rule.__match_args__, fields, strict=True))
        named["levels"] = tuple((Severity(s), threshold) for s, threshold in named["levels"])
        rules.append(Rule(**named))
    handlers = [
        Handler(name, kind, Severity(severity), timeout, queue, options)
        for name, kind, severity, timeout, queue, options in plain["handlers"]
    ]
    philosophies = [Philosophy(*fields) for fields in plain["philosophies"]]
    built = {
        "rules": tuple(rules),
        "handlers": tuple(handlers),
        "philosophies": {one.name: one for one in philosophies},
        "prediction": PredictionSettings(*plain["prediction"]),
        "ceilings": tuple(Ceiling(*fields) for fields in plain["ceilings"]),
        "agent": None if plain["agent"] is None else AgentUnit(*plain["agent"]),
    }
    return Settings(**{**plain, **built})
