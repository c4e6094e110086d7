"""docs/configuration.md: its examples are taken, and it has every key, rule and default as they are."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from configured import Write, host

from agentres.config import elastic, load, schema, sections, values
from agentres.policy.resources import RESOURCES
from agentres.policy.settings import Settings

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


def test_the_documentation_has_every_key_resource_and_rule() -> None:
    text = DOCS.read_text()
    table = text.partition("\n## Resources")[2].partition("\n## ")[0]
    models: list[type[schema.Section]] = [
        schema.SamplingSection,
        schema.HistorySection,
        schema.AlertSection,
    ]
    models += schema.HANDLERS.values()
    models += [
        elastic.LimitsSection,
        elastic.ScalingSection,
        elastic.BudgetSection,
        elastic.PredictionSection,
    ]
    models += [elastic.PhilosophySection]
    for key in {key for model in models for key in model.model_fields}:
        assert f"`{key}`" in text
    for name, resource in RESOURCES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \| (.*) \| .* \|$", table, re.M)
        assert row[0] == resource.unit
        assert row[1] == ("yes" if resource.limit else "")
        assert row[2] == ", ".join(resource.of)


def test_the_documentation_has_the_defaults_of_a_philosophy() -> None:
    text = DOCS.read_text()
    balanced = sections(Settings())["philosophies"]["balanced"]
    for key, value in balanced.items():
        assert re.search(
            rf"^\| `{key}` \| .* \| `{re.escape(values.shown(value))}` \|$", text, re.M
        )


def test_the_documentation_has_the_built_in_rules_as_they_are() -> None:
    table = DOCS.read_text().partition("## Built-in rules")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    built_in = sections(Settings())["alerts"]
    assert [row[0] for row in rows] == [f"`{name}`" for name in built_in]
    for row, (name, section) in zip(rows, built_in.items(), strict=True):
        assert section["resource"] == name.removesuffix("_long")
        levels = [f"{key} {section[key]}" for key in schema.LEVELS if key in section]
        rest = [section.get(key, "") for key in ("duration", "keep_firing_for", "cooldown")]
        assert row[1:] == [
            ", ".join(section["of"]),
            ", ".join(levels) or section["severity"],
            *(str(cell) for cell in rest),
        ]
