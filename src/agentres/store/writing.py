"""Writing and purging the history, for the process beside an agent."""

from __future__ import annotations

import _sqlite3
import time
from operator import itemgetter

from agentres.model import log
from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.store import rows
from agentres.store.file import Transaction, connect, inode, store_error
from agentres.store.rows import OF_ACTION, OF_ALERT, PER_EVENT, WORST, names, placeholders, plain
from agentres.store.run import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Self

    from agentres.policy.observer import Observation
    from agentres.policy.prediction import Profile
    from agentres.store.run import Run

_SAMPLE_COLUMNS = ("slot", "run", "time", *Sample.__match_args__)
_INSERT_SAMPLE = (
    f"INSERT OR REPLACE INTO samples ({names(_SAMPLE_COLUMNS)}) {placeholders(_SAMPLE_COLUMNS)}"
)
_UPSERT_RING = (
    "INSERT INTO rings VALUES (?, ?, ?) ON CONFLICT (run) DO UPDATE SET"
    " taken = excluded.taken, oldest = min(oldest, excluded.oldest)"
)
_TOLD = (*OF_ALERT, *PER_EVENT, *WORST, "last_severity")
_CHANGING = ("last_severity", *PER_EVENT[1:], *WORST)
_UPSERT_ALERT = (
    f"INSERT INTO alerts ({names(_TOLD)}, handled)"
    f" VALUES ({', '.join(':' + field for field in _TOLD)},"
    " (SELECT min(time) FROM alert_events WHERE alert = :id AND kind = 'handled'))"
    " ON CONFLICT (id) DO UPDATE SET severity = max(severity, excluded.severity), "
    + ", ".join(f'"{field}" = excluded."{field}"' for field in _CHANGING)
)
_INSERT_ACTION = f"INSERT INTO actions ({names(OF_ACTION)}) {placeholders(OF_ACTION)}"
_SELECT_PROFILE = "SELECT data FROM profiles WHERE key = ?"
_UPSERT_PROFILE = (
    "INSERT INTO profiles VALUES (?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET data = excluded.data, updated = excluded.updated"
)
# Looked up one by one: IN would collect the ids of all open runs in memory.
_ORPHANS = (
    "resolved IS NULL"
    " AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = alerts.run AND ended IS NULL)"
)
_OVER = "ended < :hour AND id NOT IN (SELECT run FROM rings) AND id NOT IN (SELECT run FROM alerts)"
_ANYTHING_TO_PURGE = (
    "SELECT EXISTS (SELECT 1 FROM rings WHERE oldest < :hour)"
    " OR EXISTS (SELECT 1 FROM alerts WHERE resolved < :month)"
    " OR EXISTS (SELECT 1 FROM actions WHERE time < :month)"
    " OR EXISTS (SELECT 1 FROM profiles WHERE updated < :year)"
    f" OR EXISTS (SELECT 1 FROM runs WHERE {_OVER})"
)


class Writer:
    """The history in ``path``, for writing; create it with :meth:`open`."""

    __slots__ = ("_db", "_inode", "_read", "_write", "path")

    def __init__(self, path: str, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self._read = Transaction(path, db, "BEGIN")
        self._write = Transaction(path, db, "BEGIN IMMEDIATE")
        self._inode = inode(path)

    @classmethod
    def open(cls, path: str, write: bool = True) -> Self:
        """Open the history; to write, create what is missing and migrate the schema."""
        return cls(path, connect(path, write))

    def close(self) -> None:
        """Close the file; what was written stays."""
        try:
            self._db.close()
        except _sqlite3.Error as error:
            raise store_error(self.path, error) from error

    @property
    def moved(self) -> bool:
        """Whether the file was removed or replaced."""
        return inode(self.path) != self._inode

    # Runs and their samples.

    def begin(self, run: Run) -> None:
        """Record a run; one that is recorded already stays unchanged."""
        fields = run.__match_args__
        values = [plain(getattr(run, field)) for field in fields]
        with self._write as db:
            db.execute(
                f"INSERT OR IGNORE INTO runs ({names(fields)}) {placeholders(fields)}", values
            )

    def end(self, run_id: str, ended: float, exit_code: int | None) -> None:
        """Record a run's end."""
        with self._write as db:
            db.execute(
                "UPDATE runs SET ended = ?, exit_code = ? WHERE id = ?", (ended, exit_code, run_id)
            )

    def add(self, samples: Iterable[tuple[str, float, Sample]]) -> None:
        """Put each (run id, time, sample) into its run's ring, in order."""
        rings: dict[str, list[tuple[float, Sample]]] = {}
        for run, at, sample in samples:
            rings.setdefault(run, []).append((at, sample))
        with self._write as db:
            heads, slots = [], []
            for run, news in rings.items():
                found = db.execute("SELECT taken FROM rings WHERE run = ?", (run,)).fetchone()
                taken = found[0] if found else 0
                heads.append((run, taken + len(news), min(at for at, _ in news)))
                for n, (at, sample) in enumerate(news, taken):
                    slots.append((n % rows.RING, run, at, *rows.sample_values(sample)))
            slots.sort(key=itemgetter(0, 1))  # page by page; a stable sort: the later sample wins
            db.executemany(_UPSERT_RING, heads)
            db.executemany(_INSERT_SAMPLE, slots)

    # Alerts.

    def record(self, event: Mapping[str, Any]) -> None:
        """Write an event of an alert: raised, updated, resolved or repeated.

        The alert is created if missing: its earlier events may be in a file that was moved away.
        """
        kind, severity = event["event"], Severity[event["severity"]]
        now = event["updated"]
        if kind == "repeated":  # its "updated" is that of the ended alert, not of this event
            now = event.get("time", time.time())
        row = {**event, "severity": severity, "last_severity": severity}
        values = {field: plain(row.get(field) if field in WORST else row[field]) for field in _TOLD}
        with self._write as db:
            db.execute(_UPSERT_ALERT, values)
            figures = [values[field] for field in PER_EVENT]
            rows.append(db, event["id"], now, kind, str(event.get("why", "")), *figures)

    def handled(self, alert_id: str, handler: str, time: float, error: str | None) -> None:
        """Record that a handler took the alert, or the ``error`` that it failed with."""
        kind, detail = ("handled", handler) if error is None else ("failed", f"{handler}: {error}")
        with self._write as db:
            rows.append(db, alert_id, time, kind, detail)
            if error is None:
                db.execute(
                    "UPDATE alerts SET handled = ? WHERE id = ? AND handled IS NULL",
                    (time, alert_id),
                )

    def resolve_orphans(self, now: float, alive: Callable[[Run], bool]) -> None:
        """End the runs whose supervisor is not ``alive``, and the open alerts whose run has ended."""
        with (
            self._read as db
        ):  # a thousand supervisors do this at their start: check before taking the write lock
            dead = [
                (now, run.id) for run in rows.runs(db, "WHERE ended IS NULL", []) if not alive(run)
            ]
            orphan = db.execute(f"SELECT 1 FROM alerts WHERE {_ORPHANS} LIMIT 1").fetchone()
        if not dead and orphan is None:
            return
        with self._write as db:
            db.executemany("UPDATE runs SET ended = ? WHERE id = ? AND ended IS NULL", dead)
            db.execute(
                f"INSERT INTO alert_events (alert, time, kind, detail, {names(PER_EVENT)})"
                " SELECT id, :now, 'resolved', 'its supervisor is gone', last_severity, value,"
                f' "limit", threshold, :now, :now, repeats, message FROM alerts WHERE {_ORPHANS}',
                {"now": now},
            )
            db.execute(
                f"UPDATE alerts SET resolved = :now, updated = :now WHERE {_ORPHANS}", {"now": now}
            )

    # Actions on limits, and profiles of use.

    def act(self, action: Mapping[str, Any]) -> None:
        """Write an action on a limit, with the fields :data:`~agentres.store.rows.OF_ACTION`.

        ``before``, ``after`` and ``took`` may be None; ``values``, a text, may be missing.
        """
        row = [plain({"values": "", **action}[field]) for field in OF_ACTION]
        with self._write as db:
            db.execute(_INSERT_ACTION, row)

    def learn(
        self, key: str, observation: Observation, now: float, half_life: float | None = None
    ) -> None:
        """Add what one run used to the profile of ``key``; an unreadable profile starts empty."""
        from agentres.policy import prediction  # here: needed once, when a run ends
        from agentres.policy.histogram import ProfileError

        key = plain(key)
        with self._write as db:
            found = db.execute(_SELECT_PROFILE, (key,)).fetchone()
            profile = prediction.Profile.empty(key)
            if found is not None:
                try:
                    profile = prediction.Profile.from_text(key, found[0])
                except ProfileError:  # `agentres predict` reports it
                    pass
            if half_life is None:
                half_life = prediction.PredictionSettings().half_life
            learnt = prediction.learn(profile, observation, now, half_life)
            db.execute(_UPSERT_PROFILE, (key, learnt.to_text(), now))

    def profile(self, *keys: str) -> Profile | None:
        """Return the first profile found under one of these keys.

        An unreadable one counts as missing: the run goes on without it, and learn() replaces it.
        """
        with self._read as db:
            for key in keys:
                found = db.execute(_SELECT_PROFILE, (plain(key),)).fetchone()
                if found is not None:
                    try:
                        return self._profile(key, found[0])
                    except StoreError as error:
                        self._unreadable(error)
        return None

    def _unreadable(self, error: StoreError) -> None:
        # The caller would take a StoreError for trouble with the file, and retry for ever.
        log.debug(__name__, "%s", error)

    def _profile(self, key: str, data: str) -> Profile:
        from agentres.policy.histogram import ProfileError
        from agentres.policy.prediction import Profile

        try:
            return Profile.from_text(key, data)
        except ProfileError as error:
            raise StoreError(
                f"what is known of {key!r} in {self.path} cannot be read ({error})",
                "it is learnt anew when the next run ends",
            ) from error

    # Expired data.

    def purge(self, now: float) -> None:
        """Delete expired data, and shrink the file."""
        at = {
            "hour": now - rows.SAMPLES_KEPT,
            "month": now - rows.ALERTS_KEPT,
            "year": now - rows.PROFILES_KEPT,
        }
        with self._read as db:  # a thousand supervisors do this every minute: check first
            if not db.execute(_ANYTHING_TO_PURGE, at).fetchone()[0]:
                return
        while self._purge_rings(at):
            pass
        with self._write as db:
            db.execute("DELETE FROM alerts WHERE resolved < :month", at)
            db.execute(
                "DELETE FROM alert_events WHERE time < :month"
                " AND alert NOT IN (SELECT id FROM alerts)",
                at,
            )
            db.execute("DELETE FROM actions WHERE time < :month", at)
            db.execute("DELETE FROM profiles WHERE updated < :year", at)
            db.execute(f"DELETE FROM runs WHERE {_OVER}", at)
        try:  # execute() would free only one page
            self._db.executescript("PRAGMA incremental_vacuum(2000)")
        except _sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def _purge_rings(self, at: dict[str, float]) -> bool:
        """Purge some of the rings; return whether there were any.  All at once would block other writers."""
        with self._write as db:
            old = db.execute("SELECT run FROM rings WHERE oldest < :hour LIMIT 100", at).fetchall()
            runs = [run for (run,) in old]
            theirs = f"{rows.ALL_SLOTS} AND run IN ({', '.join('?' for _ in runs)})"
            db.execute(f"DELETE FROM samples WHERE {theirs} AND time < ?", (*runs, at["hour"]))
            left = db.execute(
                f"SELECT run, min(time) FROM samples WHERE {theirs} GROUP BY run", runs
            )
            oldest = dict(left.fetchall())
            db.executemany(
                "UPDATE rings SET oldest = ? WHERE run = ?",
                [(oldest.get(run), run) for run in runs],
            )
            # An empty ring may start again at 0.
            db.execute("DELETE FROM rings WHERE oldest IS NULL")
        return bool(old)
