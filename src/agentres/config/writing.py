"""Turn settings into sections of a file, and into TOML: the inverse of reading."""

from __future__ import annotations

from typing import Any

from agentres.config import ceilings
from agentres.config.schema import TIMES, fitting, happens
from agentres.config.values import DEFAULT, duration_text, never_text, percent_text, threshold_text
from agentres.policy.alerts import Rule
from agentres.policy.scaling import FROZEN, Philosophy
from agentres.policy.settings import Handler, Settings


def sections(settings: Settings) -> dict[str, Any]:
    """Return the settings as the sections of a configuration file, with every key; :func:`load` reads them back.

    Rules of the same name may differ only in their subject.
    """
    alerts: dict[str, dict[str, Any]] = {}
    for rule in settings.rules:
        alerts.setdefault(rule.name, _alert_section(rule))["of"].append(rule.of)
    for rule in DEFAULT.rules:
        alerts.setdefault(rule.name, {"resource": rule.resource, "enabled": False})
    handlers = {handler.name: _handler_section(handler) for handler in settings.handlers}
    for handler in DEFAULT.handlers:
        handlers.setdefault(handler.name, {"type": handler.type, "enabled": False})
    sampling = {key: duration_text(getattr(settings, key)) for key in ("interval", "fastest")}
    scaling = {"philosophy": settings.philosophy, "predict": settings.predict}
    if settings.predictor:
        scaling["predictor"] = settings.predictor
    prediction = settings.prediction
    return {
        "sampling": sampling,
        "history": {"enabled": settings.history},
        "limits": dict(settings.limits),
        "scaling": scaling,
        "budget": {"share": percent_text(settings.budget_share)},
        "prediction": {
            "half_life": duration_text(prediction.half_life),
            "percentile": percent_text(prediction.percentile),
            "margin": percent_text(prediction.margin),
        },
        "philosophies": {
            name: philosophy_section(one) for name, one in settings.philosophies.items()
        },
        "ceilings": {one.name: ceilings.section(one) for one in settings.ceilings},
        "alerts": alerts,
        "handlers": handlers,
    }


def dump(settings: Settings) -> str:
    """Return :func:`sections` as TOML."""
    import tomli_w

    return tomli_w.dumps(sections(settings))


def template() -> str:
    """Return a file to start from: every key with its built-in value, commented out."""
    import tomli_w

    lines = [
        "# What agentres watches, whom it tells, and how limits move: see docs/configuration.md.",
        "# Each line shows the built-in value; [limits] and [ceilings] are examples. To change a line,",
        "# uncomment it and the [section] above it; `agentres config check` then checks the file.",
        "",
        "# [limits]",
        '# memory = "256M:2G"',
        '# cpu = "0.5:4"',
        '# io_write = ["20MB/s"]',
        "",
        "# [ceilings.students]",
        '# groups = ["students"]',
        "# agents = 4",
        '# memory = "2G"',
        "",
    ]
    given = sections(Settings())
    del given["limits"], given["ceilings"]
    lines += [f"# {line}" if line else "" for line in tomli_w.dumps(given).split("\n")]
    return "\n".join(lines).rstrip("\n") + "\n"


def _alert_section(rule: Rule) -> dict[str, Any]:
    section: dict[str, Any] = {"resource": rule.resource, "of": []}
    if happens(rule.resource):
        section["severity"] = rule.levels[0][0].name
    else:
        for severity, threshold in rule.levels:
            section[severity.name.lower()] = threshold_text(threshold, rule.resource, rule.relative)
    for key in TIMES:
        if key in fitting(rule.resource):
            value = getattr(rule, key)
            section[key] = percent_text(value) if key == "hysteresis" else duration_text(value)
    return section


def philosophy_section(philosophy: Philosophy) -> dict[str, Any]:
    """Return ``[philosophies.NAME]``; a philosophy that never moves a limit has no figures."""
    if not philosophy.moves:
        return {} if philosophy.name == FROZEN.name else {"based_on": FROZEN.name}
    return {
        "up": percent_text(philosophy.up),
        "down": percent_text(philosophy.down),
        "step": philosophy.step,
        "aim": percent_text(philosophy.aim),
        "cooldown": duration_text(philosophy.cooldown),
        "burst": philosophy.burst,
        "give_back": never_text(philosophy.give_back),
        "patience": philosophy.patience,
        "margin": percent_text(philosophy.margin),
    }


def _handler_section(handler: Handler) -> dict[str, Any]:
    options = {"command" if key == "argv" else key: v for key, v in handler.options.items()}
    return {
        "type": handler.type,
        "severity": handler.severity.name,
        "timeout": duration_text(handler.timeout),
        "queue": handler.queue,
        **options,
    }
