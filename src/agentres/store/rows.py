"""How values are stored in the tables, and for how long; building blocks for SQL statements."""

from __future__ import annotations

import os
from operator import attrgetter

from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.store.run import Run

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from typing import Any

    Values = list[Any] | dict[str, Any]

RING = 100
SAMPLES_KEPT = 3600.0
ALERTS_KEPT = 30 * 86400.0
PROFILES_KEPT = 365 * 86400.0

# All slots listed, so that SQLite looks up (slot, run) instead of scanning the table.
ALL_SLOTS = f"slot IN ({', '.join(map(str, range(RING)))})"
OF_ALERT = ("id", "run", "agent", "of", "rule", "resource", "unit", "breached", "raised", "host")
PER_EVENT = (
    "severity", "value", "limit", "threshold", "updated", "resolved", "repeats", "message",
)  # fmt: skip
WORST = ("worst", "worst_limit", "worst_at")
OF_ACTION = (
    "run", "agent", "time", "resource", "kind", "before", "after", "rule", "why", "took", "values",
)  # fmt: skip
DISKS = Sample.__match_args__.index("disks")

_get_sample = attrgetter(*Sample.__match_args__)


def names(fields: Iterable[str]) -> str:
    """Return a list of column names, quoted: some are SQL keywords."""
    return ", ".join(f'"{field}"' for field in fields)


def placeholders(fields: Iterable[str]) -> str:
    """Return a VALUES clause with a placeholder for each field."""
    return f"VALUES ({', '.join('?' for _ in fields)})"


def append(
    db: sqlite3.Connection, alert: str, at: float, kind: str, detail: str, *figures: object
) -> None:
    """Add an event to an alert's timeline; ``figures`` are those of :data:`PER_EVENT`, or none at all."""
    fields = ("alert", "time", "kind", "detail", *(PER_EVENT if figures else ()))
    db.execute(
        f"INSERT INTO alert_events ({names(fields)}) {placeholders(fields)}",
        (alert, at, kind, plain(detail), *figures),
    )


def runs(db: sqlite3.Connection, where: str, values: Values) -> Iterator[Run]:
    """Yield the runs one by one: a thousand at once would take a megabyte."""
    fields = Run.__match_args__
    for row in db.execute(f"SELECT {names(fields)} FROM runs {where}", values):
        named = dict(zip(fields, row, strict=True))
        named["command"] = tuple(os.fsdecode(word) for word in named["command"].split(b"\0")[:-1])
        yield Run(**named)


def sample_values(sample: Sample) -> tuple[Any, ...]:
    """Return the sample's columns; ``disks`` is text, a line per disk: ``MAJ:MIN rbytes wbytes rios wios``."""
    values: tuple[Any, ...] = _get_sample(sample)
    disks = values[DISKS]
    if disks is None:
        return values
    text = "\n".join(" ".join(map(str, disk)) for disk in disks)
    return (*values[:DISKS], text, *values[DISKS + 1 :])


def plain(value: Any) -> Any:
    """Return the value as SQLite accepts it: a command as in ``/proc/PID/cmdline``, text without lone surrogates."""
    if isinstance(value, tuple):
        return b"".join(os.fsencode(word) + b"\0" for word in value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value
