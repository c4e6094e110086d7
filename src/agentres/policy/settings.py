"""What the configuration says, as the resident process keeps it; :mod:`agentres.config` reads it."""

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
    """Who is told of alerts."""

    name: str
    # python, command, webhook, journal or terminal.
    type: str
    # It gets those of this severity and graver.
    severity: Severity = Severity.WARNING
    # Seconds for each.
    timeout: float = 10.0
    # So many wait for it at the most; what comes then is dropped and counted.
    queue: int = 100
    # By the type: agentres.companion.handlers.
    options: Mapping[str, Any] = MappingProxyType({})


class Described(Record):
    """An agent that is a unit: its command, options of ``agentres run`` as texts by their key, and what its environment has beside."""

    command: tuple[str, ...]
    values: Mapping[str, Any]
    environment: Mapping[str, str]


TERMINAL = Handler("terminal", "terminal")
"""Who is told when nothing is said."""


class Settings(Record):
    """What a configuration says; what it does not say is as here."""

    # Seconds from one full sample to the next.
    interval: float = 5.0
    # Seconds between two looks at the least.
    fastest: float = 0.1
    history: bool = True
    rules: tuple[Rule, ...] = DEFAULT_RULES
    handlers: tuple[Handler, ...] = (TERMINAL,)
    philosophies: Mapping[str, Philosophy] = PHILOSOPHIES
    # The one of these of an agent that names none.
    philosophy: str = BALANCED.name
    # How much of the host all agents together may use.
    budget_share: float = SHARE
    # Whether first limits come from earlier runs.
    predict: bool = True
    # The entry point of who predicts instead of us; empty: nobody.
    predictor: str = ""
    prediction: PredictionSettings = PredictionSettings()
    # Texts as options of ``agentres run`` have them, by their key in agentres.model.limits.WRITTEN.
    limits: Mapping[str, str | Sequence[str]] = MappingProxyType({})
    # The file that each key is from, by its name in there: ``limits.memory``.
    origins: Mapping[str, str] = MappingProxyType({})
    # What the daemon lets users have.
    ceilings: tuple[Ceiling, ...] = ()
    # What a file in agents.d describes.
    agent: Described | None = None

    def chosen(self, philosophy: str | None) -> Philosophy:
        """The philosophy of an agent that asks for this one; UsageError where there is none."""
        name = self.philosophy if philosophy is None else philosophy
        if (found := self.philosophies.get(name)) is None:
            known = ", ".join(self.philosophies)
            raise UsageError(f"philosophy {name}: expected one of {known}")
        return found


def to_plain(settings: Settings) -> dict[str, Any]:
    """The settings as what marshal can carry to another process of this very installation."""
    plain = settings.as_dict()
    plain["rules"] = [_plain_rule(rule) for rule in settings.rules]
    plain["handlers"] = [
        (h.name, h.type, int(h.severity), h.timeout, h.queue, dict(h.options))
        for h in settings.handlers
    ]
    plain["philosophies"] = [_plain(one) for one in settings.philosophies.values()]
    plain["prediction"] = _plain(settings.prediction)
    plain["limits"] = dict(settings.limits)
    plain["origins"] = dict(settings.origins)
    plain["ceilings"] = [(*_plain(one)[:-1], dict(one.limits)) for one in settings.ceilings]
    plain["agent"] = None if settings.agent is None else _plain(settings.agent)
    return plain


def _plain(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__match_args__)


def _plain_rule(rule: Rule) -> tuple[Any, ...]:
    levels = tuple((int(severity), threshold) for severity, threshold in rule.levels)
    return tuple(levels if n == "levels" else getattr(rule, n) for n in Rule.__match_args__)


def from_plain(plain: dict[str, Any]) -> Settings:
    """What :func:`to_plain` was given."""
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
        "agent": None if plain["agent"] is None else Described(*plain["agent"]),
    }
    return Settings(**{**plain, **built})
