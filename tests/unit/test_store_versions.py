"""The history's file of another version: older ones are brought up to date, newer ones refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from history_rows import NOW, action, old_file, run

from agentres.model.stats import Sample
from agentres.policy.observer import Observation
from agentres.store import Store, StoreError, file
from agentres.store.schema import MIGRATIONS, add_sample_columns


def _next_schema(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")
    db.execute("UPDATE runs SET colour = 'red' WHERE uid = 0")


def _failing_schema(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN taste TEXT")
    db.execute("DELETE FROM samples")
    db.execute("ALTER TABLE absent ADD COLUMN taste TEXT")


def test_an_older_file_is_brought_up_to_date_and_keeps_its_data(
    history_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(history_path)
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, _next_schema))
    with pytest.raises(StoreError, match=r"older agentres \(schema 7, this one knows 8\)"):
        Store.open(history_path, write=False)
    for _ in range(2):  # and only once
        store = Store.open(history_path)
        assert len(store.runs()) == 2
        assert store.samples("r0000001", now=NOW) == [(NOW, Sample(usage_usec=7))]
        assert store.alert("3f9a0c12").value == 76
        store.close()
    with sqlite3.connect(history_path) as db:
        assert db.execute("SELECT colour FROM runs ORDER BY id").fetchall() == [("blue",), ("red",)]
        assert db.execute("PRAGMA user_version").fetchone() == (8,)
    db.close()


FIRST_SCHEMA = """
CREATE TABLE runs (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "of" TEXT NOT NULL,
  command BLOB NOT NULL, uid INTEGER NOT NULL, cgroup TEXT NOT NULL, supervisor INTEGER NOT NULL,
  supervisor_start INTEGER NOT NULL, boot_id TEXT NOT NULL, started REAL NOT NULL, ended REAL,
  exit_code INTEGER);
CREATE TABLE rings (
  run TEXT PRIMARY KEY, taken INTEGER NOT NULL, oldest REAL) WITHOUT ROWID;
CREATE TABLE samples (
  slot INTEGER NOT NULL, run TEXT NOT NULL, time REAL NOT NULL, "usage_usec", "user_usec",
  "system_usec", "nr_periods", "nr_throttled", "throttled_usec", "memory_current", "working_set",
  "memory_peak", "swap_current", "memory_high", "memory_max", "memory_oom", "memory_oom_kill",
  "rbytes", "wbytes", "rios", "wios", "disks", "pids_current", "pids_max_events", "fds",
  "cpu_some_usec", "cpu_full_usec", "memory_some_usec", "memory_full_usec", "io_some_usec",
  "io_full_usec", "rx_bytes", "tx_bytes", "load1", "load5", "load15", "cpu_limit", "memory_limit",
  "pids_limit", PRIMARY KEY (slot, run)) WITHOUT ROWID;
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
CREATE INDEX alert_events_alert ON alert_events (alert);
PRAGMA user_version = 1;
PRAGMA application_id = 1634169459;
INSERT INTO runs VALUES (
  1, 'r0000001', 'coder', 'agent', x'707974686f6e006167656e742e707900', 1000, '/agents.slice/coder',
  4242, 99, 'b', 1700000000.0, NULL, NULL);
INSERT INTO rings VALUES ('r0000001', 1, 1700000000.0);
INSERT INTO samples (slot, run, time, usage_usec) VALUES (0, 'r0000001', 1700000000.0, 7);
INSERT INTO alerts VALUES (
  1, '3f9a0c12', 'r0000001', 'coder', 'agent', 'memory', 'memory', 'bytes', 2, 2, 76.0, 100.0, 75.0,
  1699999999.0, 1700000000.0, 1700000000.0, NULL, NULL, NULL, NULL, NULL, 0, 'it was', 'box');
"""
"""What the first version of agentres made, word for word, and one of each in it."""


def test_a_file_of_the_first_version(history_path: str) -> None:
    os.makedirs(os.path.dirname(history_path))
    with sqlite3.connect(history_path, isolation_level=None) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST_SCHEMA)
    db.close()
    with pytest.raises(StoreError, match=r"older agentres \(schema 1, this one knows 7\)"):
        Store.open(history_path, write=False)
    store = Store.open(history_path)
    assert store.runs() == [run()]
    assert store.samples("r0000001", now=NOW) == [(NOW, Sample(usage_usec=7))]
    assert store.alert("3f9a0c12").message == "it was"
    assert (store.actions(), store.profiles()) == ([], [])
    store.act(action())
    store.learn("name:coder", Observation(memory=2e8), NOW)
    store.close()
    reader = Store.open(history_path, write=False)
    assert len(reader.actions("coder")) == 1
    profile = reader.profile("name:coder")
    assert profile is not None
    assert profile.runs == 1
    reader.close()
    Store.open(history_path + ".new").close()

    def schema(path: str) -> set[str]:
        with closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT sql FROM sqlite_master")
            return {" ".join(sql.split()) for (sql,) in rows if sql}

    assert schema(history_path) == schema(history_path + ".new")


def test_a_migration_that_fails_leaves_the_version_before_it(
    history_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(history_path)
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, _next_schema, _failing_schema))
    with pytest.raises(StoreError, match="no such table: absent"):
        Store.open(history_path)
    with sqlite3.connect(history_path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(runs)")]
        assert "colour" in columns
        assert "taste" not in columns
        assert db.execute("PRAGMA user_version").fetchone() == (8,)
        assert db.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    db.close()


def test_a_field_that_sample_got_later_is_absent_in_what_was_there(
    history_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(history_path)
    with sqlite3.connect(history_path) as db:  # as if an agentres without these two had made it
        db.execute("ALTER TABLE samples DROP COLUMN fds")
        db.execute("ALTER TABLE samples DROP COLUMN disks")
    db.close()
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, add_sample_columns))
    store = Store.open(history_path)
    store.add([("r0000001", NOW, Sample(fds=3, disks=()))])
    assert [sample for _, sample in store.samples("r0000001", now=NOW)] == [
        Sample(usage_usec=7),
        Sample(fds=3, disks=()),
    ]
    store.close()


def test_a_newer_file_is_refused_and_not_touched(history_path: str) -> None:
    old_file(history_path)
    with sqlite3.connect(history_path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    before = Path(history_path).read_bytes()
    for write in (True, False):
        with pytest.raises(StoreError, match=r"newer agentres \(schema 9, this one knows 7\)"):
            Store.open(history_path, write=write)
    assert Path(history_path).read_bytes() == before


def test_many_that_make_the_file_at_once(history_path: str) -> None:
    program = (
        "import sys; from agentres.store import Store; from agentres.model.stats import Sample\n"
        "store = Store.open(sys.argv[1])\n"
        "for n in range(20): store.add([('both', 1.0 * n, Sample(fds=1))])\n"
    )
    arguments = [sys.executable, "-c", program, history_path]
    children = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert (child.returncode, stderr) == (0, "")
    assert len(Store.open(history_path, write=False).samples("both", now=0)) == 80
