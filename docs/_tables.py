"""The tables of the reference that are made from the code, in pages that stand in the repository: scripts/docs --write.

What a key is for is said once, beside it in the code, by comments ``#: …``.  They cost a running program nothing.  Such a comment
holds for the lines below it, up to the next one.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentres.config import elastic, schema, sections
from agentres.config.agents import AgentSection
from agentres.config.ceilings import CeilingSection
from agentres.config.values import (
    Between,
    Section,
    duration_text,
    never_text,
    percent_text,
)
from agentres.config.words import shown
from agentres.model import errors, history_schemas, live_schemas, schemas, stats
from agentres.model.limits import LIMIT_SPECS
from agentres.model.record import Record
from agentres.policy import resources
from agentres.policy.alerts import Severity
from agentres.policy.settings import Settings
from agentres.readers.metrics import TABLE

Rows = Iterator[tuple[str, ...]]
"""The heading, then the rest."""

DOCS = Path(__file__).parent
_TABLE = re.compile(r"(<!-- table: (\w+), [^\n]* -->\n).*?(<!-- end -->)", re.DOTALL)


def words(source: Any, known: Iterable[str]) -> list[tuple[list[str], str]]:
    """What ``#:`` says in a class or a module: the names that it is about, and the words without the full stop.

    All names that are ``known`` are told of, and no others.
    """
    found: list[tuple[list[str], str]] = []
    indent = ""
    for line in _source(source).splitlines():
        if (comment := re.match(r"( *)#: (.*)", line)) is not None:
            indent = comment[1]
            found.append(([], comment[2].removesuffix(".")))
        elif (name := re.match(rf'{indent}"?(\w+)"?(?:: | = )', line)) is not None and found:
            found[-1][0].append(name[1])
        elif re.match(rf"{indent}(def |class |@|\}})", line) and found:
            break
    told = [name for names, _ in found for name in names]
    assert told == list(known), f"{source}: {set(known) ^ set(told)}"
    return found


def _source(source: Any) -> str:
    """Its text; of a TypedDict that no class statement could make, what stands for that."""
    try:
        return inspect.getsource(source)
    except OSError:
        module = inspect.getsource(sys.modules[source.__module__])
        return module.partition(f"\n{source.__name__} = ")[2].partition("\n)\n")[0]


def quoted(names: Iterable[str]) -> str:
    """Names as they stand in a cell."""
    return ", ".join(f"`{name}`" for name in names)


def _keys(model: type[Section], prefix: str = "") -> Iterator[tuple[list[str], str, str, str]]:
    """Keys that are told of together, what they are, their range, and their default."""
    inherited = {name for base in model.__bases__ for name in getattr(base, "model_fields", ())}
    for names, what in words(model, [key for key in model.model_fields if key not in inherited]):
        ranges = {_range(model, name) for name in names}
        defaults = {_default(model, name) for name in names}
        assert len(ranges) == len(defaults) == 1, names
        told = [f"{prefix}{name}" for name in names]
        yield told, what, ranges.pop(), defaults.pop()


def _between(model: type[Section], name: str) -> Between | None:
    for each in model.model_fields[name].metadata:
        if isinstance(validator := getattr(each, "func", None), Between):
            return validator
    return None


def _range(model: type[Section], name: str) -> str:
    found = _between(model, name)
    return "" if found is None else found.range


def _default(model: type[Section], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, []):
        return ""
    if isinstance(value, Severity):
        value = value.name
    elif isinstance(value, float):
        bounds = _range(model, name)
        if "%" in bounds or name == "hysteresis":
            value = percent_text(value)
        elif re.search(r"\d[smhd]", bounds):
            value = never_text(value) if name == "give_back" else duration_text(value)
    return f"`{shown(value)}`"


def _section_table(*models: tuple[type[Section], str]) -> Rows:
    yield ("key", "what it is", "from, to", "default")
    for model, prefix in models:
        for names, what, bounds, default in _keys(model, prefix):
            yield (quoted(names), what, bounds, default)


def _limits() -> Rows:
    yield ("key", "what it is", "a range such as")
    for names, what in words(elastic.LimitsSection, elastic.LimitsSection.model_fields):
        (example,) = {LIMIT_SPECS[name].example for name in names}
        yield (quoted(names), what, f'`"{example}"`' if example else "fixed")


def _resources() -> Rows:
    yield ("resource", "unit", "limit", "of", "what it is")
    for (name,), what in words(resources, resources.RESOURCES):
        one = resources.RESOURCES[name]
        yield (f"`{name}`", one.unit, "yes" if one.limit else "", ", ".join(one.of), what)


def _rules() -> Rows:
    yield ("rule", "resource", "of", "levels", "duration", "keep_firing_for", "cooldown")
    for name, one in sections(Settings())["alerts"].items():
        levels = [f"{level} {one[level]}" for level in schema.LEVELS if level in one]
        times = (str(one.get(key, "")) for key in ("duration", "keep_firing_for", "cooldown"))
        told = ", ".join(levels) or one["severity"]
        yield (f"`{name}`", f"`{one['resource']}`", ", ".join(one["of"]), told, *times)


def _handlers() -> Rows:
    yield ("of type", "key", "what it is", "from, to", "default")
    for name, model in schema.HANDLERS.items():
        for names, *rest in _keys(model):
            yield (f"`{name}`", quoted(names), *rest)


def _metrics() -> Rows:
    yield ("metric", "type", "labels", "what")
    for one in TABLE:
        yield (f"`{one.name}`", one.kind, quoted(one.labels), one.help.removesuffix("."))


_JSON = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def json_types(annotation: Any) -> list[str]:
    """The names that JSON has for a type; null last."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        every = [name for one in typing.get_args(annotation) for name in json_types(one)]
        return sorted(dict.fromkeys(every), key=lambda name: name == "null")
    if origin is typing.Literal:
        return ["string"]
    if origin is not None:
        return ["object" if issubclass(origin, Mapping) else "array"]
    return ["object" if typing.is_typeddict(annotation) else _JSON[annotation]]


def _json(*of: type, within: Iterable[str] = ()) -> Rows:
    """The keys of a type, and of those that inherit from it; ``within`` are keys whose own keys stand below them."""
    yield ("key", "type", "what")
    told: dict[str, Any] = {}
    for each in of:
        for key, *rest in _typed(each, told):
            yield (key, *rest)
            if (name := key.strip("`")) in within:
                yield from _typed(typing.get_type_hints(each)[name], prefix=f"{name}.")
        told |= typing.get_type_hints(each)


def _typed(
    of: type, inherited: Iterable[str] = (), prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(of)
    for names, what in words(of, [name for name in hints if name not in inherited]):
        (kind,) = {", ".join(json_types(hints[name])) for name in names}
        yield (quoted(f"{prefix}{name}" for name in names), kind, what)


def _events() -> Rows:
    yield ("event", "key", "type", "what")
    for name, of in schemas.EVENTS.items():
        if name not in schemas.MOVES:
            for row in _typed(of):
                yield (f"`{name}`", *row)


def _moves() -> Rows:
    yield ("key", "type", "what")
    yield ("`event`", "string", f"One of {quoted(schemas.MOVES)}")
    yield from _typed(schemas.LimitMove)


def _record(of: type[Record], what: str) -> Rows:
    yield ("key", what)
    for names, told in words(of, of.__match_args__):
        yield (quoted(names), told)


def _statuses() -> Rows:
    yield ("status", "what it means")
    yield ("0 to 123", "The command's own")
    for (name,), what in words(errors, [name for name in vars(errors) if name.startswith("EXIT_")]):
        status = getattr(errors, name)
        yield (f"{status} + N" if status == errors.EXIT_SIGNAL else str(status), what)


def _failures() -> Rows:
    yield ("failure", "status", "what it is")
    for name, failure in sorted(inspect.getmembers(errors, inspect.isclass)):
        if issubclass(failure, errors.AgentresError):
            told = f"{errors.EXIT_SIGNAL} + N" if name == "Interrupted" else failure.exit_code
            first = (inspect.getdoc(failure) or "").split("\n\n")[0].replace("\n", " ")
            yield (name, str(told), first.replace("``", "`").removesuffix("."))


TABLES: dict[str, Callable[[], Rows]] = {
    "sampling": lambda: _section_table(
        (schema.SamplingSection, "sampling."), (schema.HistorySection, "history.")
    ),
    "limits": _limits,
    "scaling": lambda: _section_table(
        (elastic.ScalingSection, "scaling."),
        (elastic.BudgetSection, "budget."),
        (elastic.PredictionSection, "prediction."),
    ),
    "philosophies": lambda: _section_table((elastic.PhilosophySection, "")),
    "alerts": lambda: _section_table((schema.AlertSection, "")),
    "resources": _resources,
    "rules": _rules,
    "handlers": lambda: _section_table((schema.HandlerSection, "")),
    "types": _handlers,
    "ceilings": lambda: _section_table((CeilingSection, "")),
    "agent": lambda: _section_table((AgentSection, "")),
    "metrics": _metrics,
    "summary": lambda: _json(schemas.Summary),
    "summary_limits": lambda: _json(schemas.LimitsJson),
    "usage": lambda: _record(stats.Usage, "from, and what"),
    "event": lambda: _json(schemas.Event),
    "events": _events,
    "moves": _moves,
    "alert_event": lambda: _json(schemas.AlertEvent),
    "runs": lambda: _json(history_schemas.RunJson, history_schemas.RunEntry),
    "run_history": lambda: _json(history_schemas.RunHistory),
    "sample": lambda: _json(history_schemas.SampleJson),
    "raw": lambda: _record(stats.Sample, "what"),
    "action": lambda: _json(history_schemas.ActionJson),
    "alert": lambda: _json(history_schemas.AlertFigures, history_schemas.AlertEntry),
    "alert_step": lambda: _json(history_schemas.AlertStep),
    "alert_change": lambda: _json(history_schemas.AlertFigures, history_schemas.AlertChange),
    "alert_statistics": lambda: _json(
        history_schemas.AlertStatistics, within=("time_to_acknowledge",)
    ),
    "report": lambda: _json(history_schemas.ReportJson),
    "agent_report": lambda: _json(history_schemas.AgentReportJson),
    "run_report": lambda: _json(history_schemas.RunReportJson),
    "use": lambda: _json(history_schemas.UseReportJson),
    "kill": lambda: _json(history_schemas.KillReportJson),
    "capacity": lambda: _json(live_schemas.Capacity, within=("host", "budget")),
    "claim": lambda: _json(live_schemas.ClaimJson),
    "prediction": lambda: _json(history_schemas.PredictionJson, within=("settings",)),
    "forecast": lambda: _json(history_schemas.ForecastJson),
    "profile": lambda: _json(history_schemas.ProfileJson),
    "profiles": lambda: _json(history_schemas.ProfileEntry),
    "question": lambda: _json(history_schemas.Question),
    "shown": lambda: _json(live_schemas.AgentJson, within=("used",)),
    "shown_limit": lambda: _json(live_schemas.ShownLimit),
    "shown_alert": lambda: _json(live_schemas.OpenAlert),
    "listed": lambda: _json(live_schemas.AgentEntry),
    "statuses": _statuses,
    "failures": _failures,
}
"""Name, as the pages have it, -> what makes the table."""


def table(name: str) -> str:
    """A table in Markdown."""
    heading, *rows = TABLES[name]()
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cell(one) for one in line)} |\n" for line in lines)


def cell(text: str) -> str:
    """A text as a cell of a table has it."""
    return text.replace("|", "\\|").replace("\n", " ")


def filled(page: str) -> str:
    """A page with all its tables as they are to be."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{table(match[2])}\n{match[3]}", page)


def write() -> None:
    """Bring the tables of all pages up to date."""
    for path in DOCS.glob("*.md"):
        if (text := filled(old := path.read_text())) != old:
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    write()
