"""Reading the history, for short-lived commands; and acknowledging alerts."""

from __future__ import annotations

import time

from agentres.model import clock
from agentres.model.limits import unit_of
from agentres.model.record import TYPE_CHECKING, Record
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.store.rows import (
    ALL_SLOTS,
    DISKS,
    OF_ACTION,
    OF_ALERT,
    PER_EVENT,
    RING,
    SAMPLES_KEPT,
    append,
    names,
    plain,
    runs,
)
from agentres.store.run import StoreError
from agentres.store.writing import Writer

if TYPE_CHECKING:
    import sqlite3
    from typing import Any, Self

    from agentres.store.rows import Values
    from agentres.store.run import Run

# In the order of arrival, which differs from the order of time if the clock was set.
_SELECT_SAMPLES = (
    f"SELECT time, {names(Sample.__match_args__)} FROM samples WHERE {ALL_SLOTS} AND run = :run AND time >= :earliest"
    " ORDER BY (slot - (SELECT taken FROM rings WHERE run = :run) % :ring + :ring) % :ring"
)

_EVENT_FIELDS = ("event", *OF_ALERT, *PER_EVENT)

_SELECT_CHANGES = (
    "SELECT e.seq, e.kind, "
    + ", ".join([f'a."{field}"' for field in OF_ALERT] + [f'e."{field}"' for field in PER_EVENT])
    + " FROM alert_events e JOIN alerts a ON a.id = e.alert"
    " WHERE e.seq > ? AND e.kind IN ('raised', 'updated', 'resolved') ORDER BY e.seq"
)


class AlertRow(Record):
    """An alert in its present state.

    ``severity`` is the highest that it reached, ``handled`` the first time that a handler took it.  ``worst`` is the highest
    value, ``worst_limit`` the limit then, ``worst_at`` the time; None if an older version wrote the alert.
    """

    id: str
    run: str
    agent: str
    of: str
    rule: str
    resource: str
    unit: str
    severity: Severity
    last_severity: Severity
    value: float
    limit: float | None
    threshold: float
    breached: float
    raised: float
    updated: float
    resolved: float | None
    handled: float | None
    acknowledged: float | None
    acknowledged_by: str | None
    acknowledged_why: str | None
    repeats: int
    message: str
    host: str
    worst: float | None
    worst_limit: float | None
    worst_at: float | None


class ActionRow(Record):
    """An action on a limit: ``kind`` is raise, lower, throttle, freeze, thaw, predict, refuse or the like.

    ``before`` and ``after`` are in the resource's unit, ``took`` is in seconds; None if there is no such
    figure.  ``rule`` made the decision, from the figures in ``values``.
    """

    seq: int
    run: str
    agent: str
    time: float
    resource: str
    kind: str
    before: float | None
    after: float | None
    rule: str
    why: str
    took: float | None
    values: str

    def as_json(self) -> dict[str, Any]:
        """Return it as programs get it (:class:`agentres.model.history_schemas.ActionJson`)."""
        fields = self.as_dict()
        del fields["seq"]
        return {**fields, "unit": unit_of(self.resource)}


class Store(Writer):
    """The history, for reading as well."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def runs(
        self, name: str | None = None, of: str | None = None, since: float | None = None
    ) -> list[Run]:
        """Return the runs of that name and kind that had not ended before ``since``; newest first."""
        where = _Where()
        where.add("name = ?", name)
        where.add('"of" = ?', of)
        where.add("(ended IS NULL OR ended >= ?)", since)
        with self._read as db:
            return [*runs(db, f"{where} ORDER BY started DESC, seq DESC", where.values)]

    def samples(
        self, run_id: str, since: float | None = None, now: float | None = None
    ) -> list[tuple[float, Sample]]:
        """Return a run's samples of the last hour, from ``since`` on; oldest first."""
        earliest = (time.time() if now is None else now) - SAMPLES_KEPT
        if since is not None:
            earliest = max(earliest, since)
        with self._read as db:
            named = {"run": run_id, "earliest": earliest, "ring": RING}
            rows = db.execute(_SELECT_SAMPLES, named).fetchall()
        return [(row[0], _sample(row[1:])) for row in rows]

    def alerts(
        self,
        agent: str | None = None,
        severity: Severity | None = None,
        resource: str | None = None,
        since: float | None = None,
        open_only: bool = False,
        unacknowledged: bool = False,
        limit: int | None = None,
    ) -> list[AlertRow]:
        """Return the alerts raised since ``since`` that reached ``severity``; newest first."""
        where = _Where()
        where.add("agent = ?", agent)
        where.add("severity >= ?", severity)
        where.add("resource = ?", resource)
        where.add("raised >= ?", since)
        if open_only:
            where.add("resolved IS NULL")
        if unacknowledged:
            where.add("acknowledged IS NULL")
        most = -1 if limit is None else limit
        with self._read as db:
            return _alerts(db, f"{where} ORDER BY raised DESC, seq DESC LIMIT {most}", where.values)

    def alert(self, alert_id: str) -> AlertRow:
        """Return the alert with that id, or the only one whose id begins with it."""
        with self._read as db:
            return _alert(db, alert_id)

    def timeline(
        self, alert_id: str
    ) -> list[tuple[float, str, Severity | None, float | None, str]]:
        """Return all events of an alert: (time, kind, severity, value, detail), in the order of writing.

        Kinds: raised, updated, repeated, resolved; handled, failed; acknowledged.
        """
        with self._read as db:
            rows = db.execute(
                "SELECT time, kind, severity, value, iif(detail = '', message, detail)"
                " FROM alert_events WHERE alert = ? ORDER BY seq",
                (_alert(db, alert_id).id,),
            ).fetchall()
        return [
            (at, kind, None if severity is None else Severity(severity), value, detail)
            for at, kind, severity, value, detail in rows
        ]

    def statistics(self, since: float | None = None) -> dict[str, Any]:
        """Return counts of the alerts raised since ``since``, and the seconds until they were acknowledged."""
        rows = self.alerts(since=since)
        by_severity = dict.fromkeys((severity.name for severity in Severity), 0)
        by_agent: dict[str, int] = {}
        by_resource: dict[str, int] = {}
        for row in rows:
            by_severity[row.severity.name] += 1
            by_agent[row.agent] = by_agent.get(row.agent, 0) + 1
            by_resource[row.resource] = by_resource.get(row.resource, 0) + 1
        waits = sorted(
            row.acknowledged - row.raised for row in rows if row.acknowledged is not None
        )
        middle = waits[(len(waits) - 1) // 2 : len(waits) // 2 + 1]
        return {
            "total": len(rows),
            "open": sum(row.resolved is None for row in rows),
            "acknowledged": len(waits),
            "by_severity": by_severity,
            "by_agent": by_agent,
            "by_resource": by_resource,
            "time_to_acknowledge": {
                "mean": sum(waits) / len(waits) if waits else None,
                "p50": sum(middle) / len(middle) if waits else None,
                "max": waits[-1] if waits else None,
            },
        }

    def changes(self, after: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
        """Return the raised, updated and resolved events after number ``after``, and the last number.

        Pass that as the next ``after``.  An ``after`` beyond the last returns no events: use it to start following.
        """
        with self._read as db:
            rows = db.execute(_SELECT_CHANGES, (after,)).fetchall()
            last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'alert_events'")
            ((at,),) = last.fetchall() or [(0,)]
        found = []
        for seq, *values in rows:
            event = {"schema": 1, **dict(zip(_EVENT_FIELDS, values, strict=True))}
            found.append((seq, {**event, "severity": Severity(event["severity"]).name}))
        return found, at

    def actions(
        self,
        name: str | None = None,
        since: float | None = None,
        limit: int | None = None,
        run_id: str | None = None,
    ) -> list[ActionRow]:
        """Return the actions on agents of that name, or in that run; newest last."""
        where = _Where()
        where.add("agent = ?", name)
        where.add("time >= ?", since)
        where.add("run = ?", run_id)
        most = -1 if limit is None else limit
        with self._read as db:
            found = db.execute(
                f"SELECT seq, {names(OF_ACTION)} FROM actions {where} ORDER BY seq DESC LIMIT {most}",
                where.values,
            ).fetchall()
        return [ActionRow(*row) for row in reversed(found)]

    def acted(self, after: int = 0) -> tuple[dict[tuple[str, str, str], int], int]:
        """Return how many actions came after number ``after``, by (agent, resource, kind), and the last number.

        The last number is 0 if there are no actions.  When all have been purged, numbers start again.
        """
        with self._read as db:
            found = db.execute(
                "SELECT agent, resource, kind, count(*) FROM actions WHERE seq > ? GROUP BY 1, 2, 3",
                (after,),
            ).fetchall()
            ((last,),) = db.execute("SELECT ifnull(max(seq), 0) FROM actions").fetchall()
        return {(agent, resource, kind): count for agent, resource, kind, count in found}, last

    def _unreadable(self, error: StoreError) -> None:
        raise error  # here it is reported to the user

    def profiles(self) -> list[tuple[str, float]]:
        """Return (key, time of the last update) of each profile; last updated first."""
        with self._read as db:
            return db.execute(
                "SELECT key, updated FROM profiles ORDER BY updated DESC, key"
            ).fetchall()

    def acknowledge(self, alert_id: str, who: str, why: str, now: float) -> AlertRow:
        """Record who acknowledges the alert, and why; StoreError if it is acknowledged already."""
        with self._write as db:
            row = _alert(db, alert_id)
            if row.acknowledged is not None:
                at = clock.date(row.acknowledged)
                raise StoreError(
                    f"alert {row.id} is already acknowledged by {row.acknowledged_by} at {at}"
                )
            who, why = plain(who), plain(why)
            db.execute(
                "UPDATE alerts SET acknowledged = ?, acknowledged_by = ?, acknowledged_why = ?"
                " WHERE id = ?",
                (now, who, why, row.id),
            )
            append(db, row.id, now, "acknowledged", f"{who}: {why}" if why else who)
            return _alert(db, row.id)


class _Where:
    """A WHERE clause of the conditions whose value is not None."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def add(self, condition: str, *value: object) -> None:
        if value != (None,):
            self.conditions.append(condition)
            self.values += value

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def _alerts(db: sqlite3.Connection, where: str, values: Values) -> list[AlertRow]:
    fields = AlertRow.__match_args__
    found = []
    for row in db.execute(f"SELECT {names(fields)} FROM alerts {where}", values):
        named = dict(zip(fields, row, strict=True))
        for field in ("severity", "last_severity"):
            named[field] = Severity(named[field])
        found.append(AlertRow(**named))
    return found


def _alert(db: sqlite3.Connection, prefix: str) -> AlertRow:
    rows = _alerts(db, "WHERE substr(id, 1, length(:id)) = :id ORDER BY id", {"id": prefix})
    rows = [row for row in rows if row.id == prefix] or rows
    if not rows:
        raise StoreError(f"no alert {prefix!r} in the history")
    if len(rows) > 1:
        some = ", ".join(row.id for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        raise StoreError(f"several alerts begin with {prefix!r}: {some}", "write more of the id")
    return rows[0]


def _sample(values: tuple[Any, ...]) -> Sample:
    text = values[DISKS]
    if text is None:
        return Sample(*values)
    disks = []
    for line in text.split("\n") if text else ():
        device, *figures = line.rsplit(" ", 4)
        disks.append((device, *map(int, figures)))
    before, after = values[:DISKS], values[DISKS + 1 :]
    return Sample(*(*before, tuple(disks), *after))
