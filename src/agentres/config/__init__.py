"""Reads TOML configuration files, and checks them, into :class:`agentres.policy.settings.Settings`.

The built-in rules and handlers are the first layer, in the same sections.  Each file is laid over it key by
key, and the whole is checked once (docs/configuration.md has every key).  Any mistake is a
:class:`ConfigError` of one line: the file, the key, its value and what was expected.

A run reads its configuration in a separate process, because pydantic takes five times the memory of a
supervisor, and handlers' modules are imported to check that they exist.  ``python -P -m agentres.config
[FILE…]`` writes ``marshal.dumps(to_plain(settings))`` to stdout, or writes the error as the last line of
stderr and exits 1.  Without -P, modules could be imported from the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from agentres.config.agents import AgentSection
from agentres.config.ceilings import CeilingSection
from agentres.config.elastic import PhilosophySection, philosophies
from agentres.config.files import KIND, lay, read
from agentres.config.schema import HANDLERS, AlertSection, File
from agentres.config.values import DEFAULT
from agentres.config.words import ConfigError, Wrong, meant, nearest, refused, shown
from agentres.config.writing import dump, sections, template
from agentres.kernel import host
from agentres.model.limits import Host
from agentres.model.paths import AGENTS, is_agents
from agentres.policy import ceilings
from agentres.policy.alerts import Rule
from agentres.policy.prediction import PredictionSettings
from agentres.policy.settings import Handler, Settings

__all__ = ["ConfigError", "dotted", "dump", "load", "sections", "template"]


def load(
    paths: Sequence[str], read_host: Callable[[], Host] = host.read, origins: bool = False
) -> Settings:
    """Return the built-in settings overridden by the files, later ones over earlier ones; ConfigError.

    ``read_host`` is called if limits are given: they must fit the host.  With ``origins``, the settings also say
    which file each key comes from.
    """
    merged = sections(DEFAULT)
    given: dict[tuple[str, ...], int] = {}
    for at, path in enumerate(paths):
        lay(merged, read(path), at, given)
        if ("agent",) in given and not is_agents(path):
            raise refused(f"{path}: agent", f"expected in a file of {AGENTS} only")
    try:
        found = _settings(merged, read_host)
        sources = {dotted(key): paths[file] for key, file in given.items()} if origins else {}
        return found.but(origins=sources)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # Unknown keys first: a misspelt key explains a missing one.
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        key, words = _explain(details[0]["type"], details[0]["loc"], details[0].get("ctx", {}))
    except Wrong as wrong:
        # Blame the key that was set last: without it the rest made sense.
        key = max(wrong.keys, key=lambda key: given.get(key, -1))
        words = wrong.keys[key]
    at = next(given[key[:n]] for n in range(len(key), 0, -1) if key[:n] in given)
    raise refused(f"{paths[at]}: {_pair(merged, key)}", words)


def _settings(merged: dict[str, Any], read_host: Callable[[], Host]) -> Settings:
    """Check the sections and build the settings; ValidationError, or Wrong with the full path of each key."""
    file = File.model_validate(merged)
    scaling = philosophies(file.philosophies)
    sampling, rules, handlers = file.sampling, list[Rule](), list[Handler]()
    ceiled = list[ceilings.Ceiling]()
    at: tuple[str, ...] = ()
    try:
        at = ("agent",)
        agent = None if file.agent is None else file.agent.made()
        at = ("sampling",)
        sampling.check()
        at = ("limits",)
        limits = file.limits.texts(read_host)
        for name, ceiling in file.ceilings.items():
            at = ("ceilings", name)
            ceiled.append(ceiling.made(name, read_host))
        at = ("scaling",)
        file.scaling.check(scaling)
        for name, alert in file.alerts.items():
            at = ("alerts", name)
            rules += [rule for rule in alert.rules(name) if alert.enabled]
        for name, handler in file.handlers.items():
            at = ("handlers", name)
            if handler.enabled:
                common = (handler.severity, handler.timeout, handler.queue, handler.options())
                handlers.append(Handler(name, handler.type, *common))
    except Wrong as wrong:
        raise wrong.within(at) from wrong.__cause__
    return Settings(
        interval=sampling.interval,
        fastest=sampling.fastest,
        history=file.history.enabled,
        rules=tuple(rules),
        handlers=tuple(handlers),
        philosophies=scaling,
        philosophy=file.scaling.philosophy,
        budget_share=file.budget.share,
        predict=file.scaling.predict,
        predictor=file.scaling.predictor or "",
        prediction=PredictionSettings(**file.prediction.model_dump()),
        limits=limits,
        ceilings=tuple(ceiled),
        agent=agent,
    )


def _explain(
    kind: str, loc: tuple[str | int, ...], context: Mapping[str, Any]
) -> tuple[tuple[str, ...], str]:
    """Return the path of a pydantic error, and what was expected there."""
    path = tuple(part for part in loc if isinstance(part, str) and part != "[key]")
    model: type[BaseModel] = File
    if path[:1] == ("handlers",) and len(path) > 2:
        model = HANDLERS[path[2]]  # pydantic inserts the handler's type
        path = path[:2] + path[3:]
    elif len(path) > 1:
        model = _TABLES.get(path[0]) or type(File.model_fields[path[0]].default)
    if kind == "value_error":
        return path, str(context["error"])
    if kind == "extra_forbidden":
        what = f"a key of {path[-2]}" if len(path) == 2 else "a key" if path[1:] else "a section"
        return path, f"expected {what}{nearest(path[-1], model.model_fields)}"
    if kind == "union_tag_invalid":
        path = (*path, "type")
        return path, f"expected a type of handler{nearest(context['tag'], HANDLERS)}"
    if kind in ("missing", "union_tag_not_found"):
        key = path[2] if kind == "missing" else "type"
        if key not in KIND.values():
            return path[:2], f'expected a key "{key}"'
        known = [one.name for one in (DEFAULT.rules if path[0] == "alerts" else DEFAULT.handlers)]
        words = f'expected a key "{key}", nothing of this name being built in'
        return path[:2], words + meant(path[1], known)
    return path, _EXPECTED.get(kind, "expected a section")


_TABLES: dict[str, type[BaseModel]] = {
    "agent": AgentSection,
    "alerts": AlertSection,
    "ceilings": CeilingSection,
    "philosophies": PhilosophySection,
}
"""The model of each section with named tables, except handlers, whose model depends on the type."""

_TEXTS = 'expected a list of text such as ["/usr/bin/logger", "-t", "agentres"]'
_EXPECTED = {"bool_type": "expected true or false", "list_type": _TEXTS, "too_short": _TEXTS}


def dotted(path: Sequence[str]) -> str:
    """Return a key as TOML writes it: ``limits.memory``."""
    return ".".join(p if re.fullmatch("[A-Za-z0-9_-]+", p) else shown(p) for p in path)


def _pair(merged: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return ``alerts.cpu.warning = "75%"``; only the key for sections, and for headers, which are secret."""
    value: Any = merged
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    key = dotted(path)
    if value is None or isinstance(value, dict) or "headers" in path:
        return key
    return f"{key} = {shown(value)}"
