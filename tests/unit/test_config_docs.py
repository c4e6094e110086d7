"""docs/configuration.md: its examples are taken."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from configured import Write, host

from agentres.config import load, schema

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_every_example_of_the_documentation_is_taken(
    write_config: Write, monkeypatch: pytest.MonkeyPatch, entry_points: list[EntryPoint]
) -> None:
    monkeypatch.setattr(schema, "executable", lambda name: None)
    monkeypatch.setattr(schema, "importable", lambda key, target: target)
    entry_points.append(EntryPoint("pager", "my_package.alerts:page", "agentres.alert_handlers"))
    examples = re.findall(r"^```toml\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    assert len(examples) > 2
    for example in examples:
        load([write_config(example)], host)
    types = {h.get("type") for e in examples for h in tomllib.loads(e).get("handlers", {}).values()}
    assert types >= set(schema.HANDLERS) - {"terminal"}
