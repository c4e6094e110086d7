"""The tables, and the migrations of files that an older agentres wrote."""

from __future__ import annotations

from agentres.model.record import TYPE_CHECKING
from agentres.model.stats import Sample
from agentres.store.rows import WORST, names

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable


def add_sample_columns(db: sqlite3.Connection) -> None:
    """Add the columns that ``samples`` lacks: the migration for every version with new fields.

    A new file is created with all columns: SQLite reads the whole schema again after each ALTER, which took
    a quarter of a megabyte that was not freed.
    """
    there = {row[1] for row in db.execute("PRAGMA table_info(samples)")}
    for field in Sample.__match_args__:
        if field not in there:
            db.execute(f'ALTER TABLE samples ADD COLUMN "{field}"')


def _add_worst(db: sqlite3.Connection) -> None:
    for field in WORST:
        db.execute(f"ALTER TABLE alerts ADD COLUMN {field} REAL")


def _first_schema(db: sqlite3.Connection) -> None:
    _execute(db, _VERSION_1)


def _second_schema(db: sqlite3.Connection) -> None:
    _execute(db, _VERSION_2)


def _execute(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):  # executescript() would commit first
        db.execute(statement)


# Samples are ordered by slot first: samples of many agents that are taken together then share pages.
# With a thousand agents that needs a tenth of the writes of ordering by run first.
# rings.oldest is a lower bound of its samples' times, so that purge() reads only rings that need it.
# alert_events can have "handled" for an alert that is not there yet: the process that delivers may be
# faster than the one that records.
_VERSION_1 = f"""
CREATE TABLE runs (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "of" TEXT NOT NULL,
  command BLOB NOT NULL, uid INTEGER NOT NULL, cgroup TEXT NOT NULL, supervisor INTEGER NOT NULL,
  supervisor_start INTEGER NOT NULL, boot_id TEXT NOT NULL, started REAL NOT NULL, ended REAL,
  exit_code INTEGER);
CREATE TABLE rings (
  run TEXT PRIMARY KEY, taken INTEGER NOT NULL, oldest REAL) WITHOUT ROWID;
CREATE TABLE samples (
  slot INTEGER NOT NULL, run TEXT NOT NULL, time REAL NOT NULL, {names(Sample.__match_args__)},
  PRIMARY KEY (slot, run)) WITHOUT ROWID;
CREATE TABLE alerts (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, run TEXT NOT NULL, agent TEXT NOT NULL,
  "of" TEXT NOT NULL, rule TEXT NOT NULL, resource TEXT NOT NULL, unit TEXT NOT NULL,
  severity INTEGER NOT NULL, last_severity INTEGER NOT NULL, value REAL NOT NULL, "limit" REAL,
  threshold REAL NOT NULL, breached REAL NOT NULL, raised REAL NOT NULL, updated REAL NOT NULL,
  resolved REAL, handled REAL, acknowledged REAL, acknowledged_by TEXT, acknowledged_why TEXT,
  repeats INTEGER NOT NULL, message TEXT NOT NULL, host TEXT NOT NULL);
CREATE INDEX alerts_run ON alerts (run);
CREATE TABLE alert_events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, alert TEXT NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
  severity INTEGER, value REAL, "limit" REAL, threshold REAL, updated REAL, resolved REAL,
  repeats INTEGER, message TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '');
CREATE INDEX alert_events_alert ON alert_events (alert)
"""

# before and after are in the resource's unit, took is in seconds; NULL where there is no figure.
# profiles.data is text of agentres.policy.prediction, which has its own version.
_VERSION_2 = """
CREATE TABLE actions (
  seq INTEGER PRIMARY KEY, run TEXT NOT NULL, agent TEXT NOT NULL, time REAL NOT NULL,
  resource TEXT NOT NULL, kind TEXT NOT NULL, before REAL, after REAL, rule TEXT NOT NULL,
  why TEXT NOT NULL, took REAL, "values" TEXT NOT NULL);
CREATE INDEX actions_run ON actions (run);
CREATE INDEX actions_time ON actions (time);
CREATE TABLE profiles (
  key TEXT PRIMARY KEY, data TEXT NOT NULL, updated REAL NOT NULL) WITHOUT ROWID
"""

MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _first_schema,
    _second_schema,
    add_sample_columns,  # of the network
    add_sample_columns,  # of writeback
    _add_worst,
    add_sample_columns,  # of the process with the most open files
    add_sample_columns,  # of peaks between samples
)
"""Element N migrates schema N to N+1, in one transaction.  Never change one that was released."""
