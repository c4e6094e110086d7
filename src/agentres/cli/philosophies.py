"""``agentres philosophies``: lists the named rules by which limits that are ranges move."""

from __future__ import annotations

import math
import os
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Option
from agentres.cli.show import loaded
from agentres.config.values import duration_text, never_text, percent_text
from agentres.model.paths import configuration
from agentres.policy.scaling import Philosophy

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""

_FIGURES = ("up", "down", "step", "aim", "cooldown", "burst", "give_back", "patience", "margin")


def philosophies(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the philosophies in effect: how limits that are ranges move.

    An agent uses the default, marked with *, or the one that its --philosophy names. docs/scaling.md explains the figures.
    """
    settings = loaded(configuration(os.environ, os.getuid()))
    known = settings.philosophies.values()
    if as_json:
        listed = [_as_json(each, each.name == settings.philosophy) for each in known]
        show.print_json({"schema": SCHEMA, "philosophies": listed})
        return
    table = show.Table(
        "name", "up", "down", "step", "aim", "cooldown", "burst", "give back", "patience", "margin",
        right=("up", "down", "step", "aim", "cooldown", "give back", "patience", "margin"), whole=("name", "burst"),
    )  # fmt: skip
    for each in known:
        default = each.name == settings.philosophy
        name = show.cell(f"{each.name} *" if default else each.name, "bold" if default else "")
        table.add_row(name, *_figures(each))
    table.print()


def _figures(philosophy: Philosophy) -> list[str]:
    if not philosophy.moves:
        return [show.ABSENT] * len(_FIGURES)
    return [
        str(percent_text(philosophy.up)),
        str(percent_text(philosophy.down)),
        f"x{philosophy.step:g}",
        str(percent_text(philosophy.aim)),
        str(duration_text(philosophy.cooldown)),
        "yes" if philosophy.burst else "no",
        str(never_text(philosophy.give_back)),
        f"x{philosophy.patience:g}",
        str(percent_text(philosophy.margin)),
    ]


def _as_json(philosophy: Philosophy, default: bool) -> dict[str, Any]:
    """Return fractions, factors and seconds.  ``give_back`` is null for never; all are null if nothing moves."""
    figures = {key: getattr(philosophy, key) if philosophy.moves else None for key in _FIGURES}
    if figures["give_back"] == math.inf:  # JSON has no infinity
        figures["give_back"] = None
    return {"name": philosophy.name, "default": default, "moves": philosophy.moves, **figures}
