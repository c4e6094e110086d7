"""The JSON of verbs, as the documentation tells it: the keys that the code makes, and in its tables no others."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from agentres.cli import alerts
from agentres.store import AlertRow
from agentres.store.reading import Store
from agentres.watch import engine

DOCS = Path(__file__).parents[2] / "docs"

TOLD: dict[tuple[str, str], tuple[Any, ...]] = {
    ("history", "JSON"): (
        AlertRow, alerts.list_, alerts.show_, alerts.ack, Store.statistics, engine.as_dict,
    ),
}  # fmt: skip
"""Page and heading -> what makes the keys that stand there."""

NO_KEYS = {"seq"}
"""What is left out on the way."""


def written(function: Callable[..., Any]) -> set[str]:
    """The keys of dicts that a function writes down, and the names that it makes such of."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        of = [node.value] if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.DictComp):
            of = [each.iter for each in node.generators]
        names = [name for each in of if isinstance(each, ast.Tuple) for name in each.elts]
        found |= {name.value for name in names if isinstance(name, ast.Constant)}
    return found


def keys(makers: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    for maker in makers:
        fields = getattr(maker, "__match_args__", None) if isinstance(maker, type) else None
        found |= set(fields or (maker if isinstance(maker, tuple) else written(maker)))
    return found - NO_KEYS


def section(page: str, heading: str) -> str:
    text = (DOCS / f"{page}.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(("page", "heading"), TOLD)
def test_every_key_is_told(page: str, heading: str) -> None:
    told = set(re.findall(r"`(\w+)`", section(page, heading)))
    assert keys(TOLD[page, heading]) - told == set()


@pytest.mark.parametrize(("page", "heading"), TOLD)
def test_no_other_key_is_told(page: str, heading: str) -> None:
    for table in re.findall(
        r"^\| key(?! \| type).*\n\|.*\n((?:\|.*\n)+)", section(page, heading), re.M
    ):
        first = {cell for row in table.splitlines() for cell in re.findall(r"`(\w+)`", row.split("|")[1])}  # fmt: skip
        assert first - keys(TOLD[page, heading]) == set()
