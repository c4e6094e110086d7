"""Configuration that tests write: the host that it is read for, and what is found in it."""

from __future__ import annotations

from collections.abc import Callable

from agentres.model.limits import Host
from agentres.policy.alerts import Rule, Severity
from agentres.policy.settings import Handler, Settings

Write = Callable[..., str]
"""Writes a file of this text, by default agentres.toml, and returns its path (conftest.py's write_config)."""
WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL
HOST = Host(cpus=4, memory=8 * 2**30)


def host() -> Host:
    return HOST


def rules_of(settings: Settings, name: str) -> list[Rule]:
    return [rule for rule in settings.rules if rule.name == name]


def handler(settings: Settings, name: str) -> Handler:
    (found,) = [handler for handler in settings.handlers if handler.name == name]
    return found
