"""`agentres philosophies`: the table, the JSON, and the configuration that they come from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres

from agentres.model.limits import Range
from agentres.policy.scaling import BALANCED, FROZEN, PHILOSOPHIES, SETTLE, Scaler

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"
FIGURES = ("up", "down", "step", "aim", "cooldown", "burst", "give_back", "patience", "margin")


def philosophies(*arguments: str, configured: str = os.devnull) -> tuple[int, str, str]:
    environment = {"AGENTRES_CONFIG": configured, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    return agentres("philosophies", *arguments, env=environment)


def listed(configured: str = os.devnull) -> dict[str, dict[str, Any]]:
    status, out, err = philosophies("--json", configured=configured)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["schema"], list(found)) == (1, ["schema", "philosophies"])
    return {each["name"]: each for each in found["philosophies"]}


@pytest.fixture
def configured(tmp_path: Path) -> str:
    path = tmp_path / "agentres.toml"
    path.write_text(
        """
        [scaling]
        philosophy = "mine"
        [philosophies.mine]
        up = "82.5%"
        cooldown = "90s"
        burst = false
        give_back = "never"
        [philosophies.still]
        based_on = "frozen"
        """
    )
    return str(path)


def test_the_table_has_a_row_for_each_and_marks_the_default() -> None:
    status, out, err = philosophies()
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == [
        *("name", "up", "down", "step", "aim", "cooldown"),
        *("burst", "give", "back", "patience", "margin"),
    ]
    assert [row.split()[0] for row in rows] == list(PHILOSOPHIES)
    assert [row.split()[1] == "*" for row in rows] == [True, False, False, False]
    assert rows[0].split()[2:4] == ["75%", "25%"]
    assert rows[-1].split() == ["frozen", *"-" * len(FIGURES)]


def test_the_table_has_what_the_configuration_says(configured: str) -> None:
    _, out, _ = philosophies(configured=configured)
    rows = {row.split()[0]: row.split()[1:] for row in out.splitlines()}
    assert rows["mine"][:2] == ["*", "82.5%"]
    assert rows["mine"][5:8] == ["90s", "no", "never"]
    assert rows["still"] == [*"-" * len(FIGURES)]
    assert rows["balanced"][0] != "*"


def test_json_has_every_figure_as_it_is() -> None:
    found = listed()
    assert list(found) == list(PHILOSOPHIES)
    assert [each["default"] for each in found.values()] == [True, False, False, False]
    for name, philosophy in PHILOSOPHIES.items():
        assert found[name]["moves"] is philosophy.moves
        for key in FIGURES:
            assert found[name][key] == (getattr(philosophy, key) if philosophy.moves else None)


def test_json_has_null_for_never(configured: str) -> None:
    found = listed(configured)
    assert found["mine"]["default"] is True
    assert (found["mine"]["give_back"], found["mine"]["moves"]) == (None, True)
    assert (found["mine"]["up"], found["mine"]["cooldown"]) == (0.825, 90)
    assert (found["still"]["moves"], found["still"]["step"]) == (False, None)


def test_a_configuration_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "agentres.toml"
    path.write_text("philosophies.x.step = 1")
    status, out, err = philosophies(configured=str(path))
    assert (status, out) == (1, "")
    assert err.startswith(f"agentres: {path}: philosophies.x.step = 1: expected a factor")
    assert err.count("\n") == 1


def test_the_documentation_has_the_philosophies_as_they_are() -> None:
    text = DOCS.read_text()
    section = text.partition("\n## Philosophies\n")[2].partition("\n## ")[0]
    for each in PHILOSOPHIES.values():
        (row,) = [line for line in section.splitlines() if line.startswith(f"| `{each.name}` |")]
        if each == FROZEN:
            assert row.count("never") == 2
            continue
        assert f"| at {each.up * 100:.0f} %," in row
        assert f"after {_time(each.give_back)}," in row
        assert _time(each.cooldown).replace("1 min", "a minute") + " apart" in row
        assert {1.5: "by half", 2.0: "to twice"}[each.step] in row
    for words in (
        f"`up` of the limit, {BALANCED.up * 100:.0f} %",
        f"`aim` of the limit, {BALANCED.aim * 100:.0f} %",
        f"`give_back`, {BALANCED.give_back:.0f} s",
        f"`down` of it, {BALANCED.down * 100:.0f} %",
        f"`cooldown`, {BALANCED.cooldown:.0f} s",
        f"`margin`, {BALANCED.margin * 100:.0f} %",
        f"has not risen for {SETTLE:.0f} seconds",
    ):
        assert words in " ".join(text.split())


def test_the_documentation_has_a_burst_as_it_goes() -> None:
    mib = 2**20
    limit: float = 256 * mib
    scaler = Scaler("memory", BALANCED, Range(32 * mib, 2048 * mib), 0.0, 4096)
    rows = []
    for step in range(12_000):
        now = step / 100
        burst = 20 <= now < 22
        if not burst and step % 100:
            continue
        base = 176 if now < 20 else 180
        use = min(176 * mib + (now - 20) * 3e9, 1200 * mib) if burst else base * mib
        if (move := scaler.observe(now, use, limit, notified=burst)) is not None:
            limit = move.after
            scaler.moved(now, move, limit)
            sizes = f"{move.before / mib:.0f} MiB | {move.after / mib:.0f} MiB"
            rows.append(f"| {now:.4g} s | {move.rule} | {sizes} | {move.why} |")
    told = [line for line in DOCS.read_text().splitlines() if " MiB | " in line]
    assert told == rows


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
