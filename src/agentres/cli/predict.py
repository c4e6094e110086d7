"""``agentres predict``: shows the limits that the next run of a name or command starts with, and why."""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import Annotated, Any

from agentres.cli import show
from agentres.cli.parameters import Argument, Misuse, Option
from agentres.cli.show import loaded
from agentres.cli.stderr import say
from agentres.config.values import duration_text
from agentres.kernel import host
from agentres.model import clock
from agentres.model.limits import Limits
from agentres.model.paths import configuration
from agentres.model.units import counted
from agentres.policy.alerts import show as quantity
from agentres.policy.histogram import SCALES, Histogram
from agentres.policy.prediction import Prediction, Profile, keys
from agentres.policy.settings import Settings
from agentres.run.options import understand
from agentres.run.predictors import first_limits, to_plain
from agentres.store import Store, StoreError

SCHEMA = 1
"""The version of the JSON; it rises when a key is removed or changes its meaning."""

_BAR = 30
"""Length in columns of the longest bar of a histogram."""

_ROWS = 20
"""Most rows of a histogram; if there are more buckets, a row combines several."""


def predict(
    name: Annotated[
        str | None,
        Argument(
            metavar="NAME", help="An agent. Default: list all of which something is known.", names=show.recorded,
        ),
    ] = None,
    command: Annotated[
        str | None,
        Option(
            metavar="LINE", help="The command of an agent without a --name: 'python agent.py'.",
        ),
    ] = None,
    explain: Annotated[
        bool, Option("--explain", help="Explain why, and show what earlier runs used.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="Print JSON instead of a table.")
    ] = False,
) -> None:  # fmt: skip
    """Show the limits that the next run starts with, from what earlier runs used.

    Limits that are ranges start there, unless an option says otherwise.
    """
    words = _words(command)
    with show.open_history() as store:
        if name is None and not words:
            _list(store, as_json)
            return
        profile = _find(store, name, words)
        if not words:
            words = _command(store, name)
    settings = loaded(configuration(os.environ, os.getuid()))
    limits = understand({}, ["agent"], host.read(), settings).request.limits
    now = time.time()
    prediction = first_limits(settings, profile, profile.key, words, limits.ranges, now, say)
    if as_json:
        show.print_json(_as_json(settings, profile, prediction))
        return
    _print(settings, profile, prediction, limits, now)
    if explain:
        _explain(settings, profile, prediction)


def _words(command: str | None) -> list[str]:
    if command is None:
        return []
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Misuse(f"{command}: {error}", "--command") from error
    if not words:
        raise Misuse("expected a command", "--command")
    return words


def _find(store: Store, name: str | None, words: list[str]) -> Profile:
    wanted = keys(name, words)
    profile = store.profile(*wanted)
    if profile is None and name is not None and not words and (ran := _command(store, name)):
        # The name may have been generated for the run: such runs are stored by their command.
        profile = store.profile(*keys(None, ran))
    if profile is not None:
        return profile
    known = {key.partition(":")[2] for key, _ in store.profiles()}
    asked = wanted[0].partition(":")[2]
    remedy = show.near(asked, known) or "agentres predict lists what is"
    raise StoreError(f"nothing is known of {asked!r}", remedy)


def _command(store: Store, name: str | None) -> list[str]:
    """Return the command of the last run of this name; empty if there is none."""
    runs = [] if name is None else store.runs(name, "agent")
    return list(runs[0].command) if runs else []


def _list(store: Store, as_json: bool) -> None:
    found: list[tuple[str, float, Profile | None]] = []
    for key, updated in store.profiles():
        try:
            found.append((key, updated, store.profile(key)))
        except StoreError as error:
            say(str(error))
            found.append((key, updated, None))
    if as_json:
        listed = [
            {"key": key, "runs": None if known is None else known.runs, "last": updated}
            for key, updated, known in found
        ]
        show.print_json({"schema": SCHEMA, "profiles": listed})
        return
    if not found:
        print("nothing is known yet: it is learnt when a run ends")
        return
    table = show.Table("of", "name or command", "runs", "last", right=("runs",), whole=("last",))
    for key, updated, known in found:
        of, _, whose = key.partition(":")
        runs = show.ABSENT if known is None else str(known.runs)
        table.add_row(show.cell(of), show.cell(whose), runs, clock.moment(updated))
    table.print()


def _as_json(settings: Settings, profile: Profile, prediction: Prediction | None) -> dict[str, Any]:
    fields = ("target", "wanted", "first", "least", "most", "held", "why")
    limits = {
        forecast.resource: {field: getattr(forecast, field) for field in fields}
        for forecast in (prediction.forecasts if prediction else ())
    }
    figures = ("half_life", "percentile", "margin")
    return {
        "schema": SCHEMA,
        "key": profile.key,
        "predict": settings.predict,
        "predictor": settings.predictor or None,
        "settings": {field: getattr(settings.prediction, field) for field in figures},
        "weight": prediction.weight if prediction else None,
        "limits": limits,
        "units": {resource: scale.unit for resource, scale in SCALES.items()},
        "history": to_plain(profile),
    }


def _print(
    settings: Settings,
    profile: Profile,
    prediction: Prediction | None,
    limits: Limits,
    now: float,
) -> None:
    of, _, whose = profile.key.partition(":")
    ago = f"the last one learnt at {clock.moment(profile.last)}"
    kind = "" if of == "name" else f"{of} "
    show.line(f"{kind}{whose}: {counted(profile.runs, 'run')}, {ago}", "bold")
    if not settings.predict:
        show.line("not used: the configuration has scaling.predict = false")
    table = show.Table(
        "limit", "starts with", "least", "most", "used", "with margin",
        right=("starts with", "least", "most", "used", "with margin"), whole=("limit",),
    )  # fmt: skip
    forecasts = {f.resource: f for f in (prediction.forecasts if prediction else ())}
    for resource, scale in SCALES.items():
        between = limits.ranges.get(resource)
        standard = getattr(limits, resource)
        first = show.ABSENT if standard is None else _quantity(standard, scale.unit)
        if (known := forecasts.get(resource)) is not None:
            shown = (known.first, known.least, known.most, known.target, known.wanted)
            table.add_row(resource, *(_quantity(value, scale.unit) for value in shown))
        elif between is None:
            table.add_row(resource, first, "fixed", "fixed", show.ABSENT, show.ABSENT)
        else:
            ends = [_quantity(value, scale.unit) for value in (between.least, between.most)]
            table.add_row(resource, first, *ends, show.ABSENT, show.ABSENT)
    table.print()


def _quantity(value: float | str, unit: str) -> str:
    return value if isinstance(value, str) else quantity(value, unit)


def _explain(settings: Settings, profile: Profile, prediction: Prediction | None) -> None:
    chosen = settings.prediction
    lines = list(prediction.why) if prediction else ["no limit that may move is known of it"]
    halved = f"what was seen counts half after {duration_text(chosen.half_life)}"
    if prediction and prediction.weight:
        halved += f"; all of it weighs as much as {_runs_of_now(prediction.weight)} runs of now"
    lines.append(halved)
    if profile.capped or profile.ooms:
        lines.append(
            f"held by a limit {counted(profile.capped, 'time')}, of them {profile.ooms} with a process"
            " killed for memory: that counts as 1.2 times the limit, and at least"
            " 100 MiB, 0.1 cores or 16 processes above it"
        )
    print()
    for line in lines:
        show.line(line)
    for resource, scale in SCALES.items():
        held = profile.held[resource]
        seen = profile.use[resource].together(held)
        if seen.weights:
            print()
            _histogram(seen, held, scale.unit).print()


def _histogram(seen: Histogram, held: Histogram, unit: str) -> Any:
    """Return a table; a row is one or more buckets: the upper bound, the share of all, the share as a bar."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    bar = "#" if ascii_only else "\u2588"
    table = show.Table(
        f"{seen.resource} up to",
        "part",
        "held",
        "",
        right=(f"{seen.resource} up to", "part", "held"),
    )
    held_at = {start: weight for start, _, weight in held.buckets()}
    buckets = seen.buckets()
    wide = -(-len(buckets) // _ROWS)
    rows = [buckets[at : at + wide] for at in range(0, len(buckets), wide)]
    weights = [sum(weight for _, _, weight in row) for row in rows]
    for row, weight in zip(rows, weights, strict=True):
        end = row[-1][1]
        part = sum(held_at.get(start, 0.0) for start, _, _ in row) / weight
        table.add_row(
            quantity(float(int(end)) if unit == "count" else end, unit),
            f"{weight / sum(weights):.1%}",
            f"{part:.0%}" if part else "",
            bar * max(1, round(weight / max(weights) * _BAR)),
        )
    return table


def _runs_of_now(weight: float) -> str:
    if weight < 0.01:
        return "less than 0.01"
    return f"{weight:.2g}" if weight < 10 else f"{weight:.0f}"
