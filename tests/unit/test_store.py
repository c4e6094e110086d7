"""The history: rings of samples, the life of an alert, and files that are not as they should be."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentres import store as store_package
from agentres.model.errors import UsageError
from agentres.model.paths import state_directory
from agentres.model.stats import Sample
from agentres.policy.alerts import Severity
from agentres.policy.observer import Observed
from agentres.policy.prediction import Profile, learn
from agentres.store import ActionRow, Run, Store, StoreError, Writer, file
from agentres.store.schema import MIGRATIONS, add_sample_columns

NOW = 1_700_000_000.0
HOUR = 3600.0
DAY = 86400.0
FULL_SAMPLE = Sample(
    *(n if field != "disks" else None for n, field in enumerate(Sample.__match_args__))
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "history.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def run(run_id: str = "r0000001", **changed: Any) -> Run:
    fields: dict[str, Any] = {
        "id": run_id,
        "name": "coder",
        "of": "agent",
        "command": ("python", "agent.py"),
        "uid": 1000,
        "cgroup": "/agents.slice/coder",
        "supervisor": 4242,
        "supervisor_start": 99,
        "boot_id": "b",
        "started": NOW,
    }
    return Run(**{**fields, **changed})


def event(kind: str = "raised", alert_id: str = "3f9a0c12", **changed: Any) -> dict[str, Any]:
    fields = {
        "schema": 1,
        "event": kind,
        "id": alert_id,
        "run": "r0000001",
        "agent": "coder",
        "of": "agent",
        "rule": "memory",
        "resource": "memory",
        "unit": "bytes",
        "severity": "WARNING",
        "value": 76.0,
        "limit": 100.0,
        "threshold": 75.0,
        "breached": NOW - 1,
        "raised": NOW,
        "updated": NOW,
        "resolved": None,
        "message": f"memory was {kind}",
        "repeats": 0,
        "host": "box",
    }
    return {**fields, **changed}


def action(**changed: Any) -> dict[str, Any]:
    fields = {
        "run": "r0000001",
        "agent": "coder",
        "time": NOW,
        "resource": "memory",
        "kind": "raise",
        "before": 100.0,
        "after": 150.0,
        "rule": "burst",
        "why": "use of 76 B reached 75% of 100 B",
        "took": 0.002,
    }
    return {**fields, **changed}


# Where it is.


@pytest.mark.parametrize(
    ("environ", "uid", "directory"),
    [
        ({"AGENTRES_STATE_DIR": "/x", "XDG_STATE_HOME": "/y"}, 0, "/x"),
        ({"XDG_STATE_HOME": "/y"}, 0, "/var/lib/agentres"),
        ({"XDG_STATE_HOME": "/y"}, 1000, "/y/agentres"),
        ({"XDG_STATE_HOME": "y", "HOME": "/home/me"}, 1000, "/home/me/.local/state/agentres"),
        ({"HOME": "/home/me"}, 1000, "/home/me/.local/state/agentres"),
    ],
)
def test_the_state_directory(environ: dict[str, str], uid: int, directory: str) -> None:
    assert state_directory(environ, uid) == directory


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    with pytest.raises(UsageError, match="no home directory; set AGENTRES_STATE_DIR"):
        state_directory({}, 4_000_000_000)


def test_the_file_is_its_owners_alone(store: Store, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path + "-wal").st_mode) == 0o600


def test_the_schema_of_a_new_file(store: Store, path: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,) == (Store.SCHEMA_VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        assert tables >= {
            "runs",
            "rings",
            "samples",
            "alerts",
            "alert_events",
            "actions",
            "profiles",
        }
        columns = [row[1] for row in db.execute("PRAGMA table_info(samples)")]
        assert columns == ["slot", "run", "time", *Sample.__match_args__]
    db.close()


def test_the_schema_is_that_of_the_last_migration() -> None:
    assert Store.SCHEMA_VERSION == Writer.SCHEMA_VERSION == len(MIGRATIONS)


def test_only_what_is_asked_for_is_loaded() -> None:
    program = "import sys, agentres.store as s; s.Run; print('_sqlite3' in sys.modules); s.Store"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'Reader'"):
        store_package.Reader  # type: ignore[attr-defined]  # noqa: B018


def test_a_new_field_of_sample_needs_a_new_schema() -> None:
    """Who changes one side changes the other: a migration with add_sample_columns, and this table."""
    assert {3: 52}[Store.SCHEMA_VERSION] == len(Sample.__match_args__)


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "50%3f? #1" / "history.db")
    store = Store.open(path)
    store.begin(run())
    store.close()
    assert os.path.exists(path)
    assert Store.open(path, write=False).runs() == [run()]


# Versions.


def _next_schema(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'")
    db.execute("UPDATE runs SET colour = 'red' WHERE uid = 0")


def _failing_schema(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN taste TEXT")
    db.execute("DELETE FROM samples")
    db.execute("ALTER TABLE absent ADD COLUMN taste TEXT")


def _old_file(path: str) -> None:
    store = Store.open(path)
    store.begin(run())
    store.begin(run("r0000002", uid=0))
    store.add([("r0000001", NOW, Sample(usage_usec=7))])
    store.record(event())
    store.close()


def test_an_older_file_is_brought_up_to_date_and_keeps_its_data(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_file(path)
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, _next_schema))
    with pytest.raises(StoreError, match=r"older agentres \(schema 3, this one knows 4\)"):
        Store.open(path, write=False)
    for _ in range(2):  # and only once
        store = Store.open(path)
        assert len(store.runs()) == 2
        assert store.samples("r0000001", now=NOW) == [(NOW, Sample(usage_usec=7))]
        assert store.alert("3f9a0c12").value == 76
        store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT colour FROM runs ORDER BY id").fetchall() == [("blue",), ("red",)]
        assert db.execute("PRAGMA user_version").fetchone() == (4,)
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


def test_a_file_of_the_first_version(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST_SCHEMA)
    db.close()
    with pytest.raises(StoreError, match=r"older agentres \(schema 1, this one knows 3\)"):
        Store.open(path, write=False)
    store = Store.open(path)
    assert store.runs() == [run()]
    assert store.samples("r0000001", now=NOW) == [(NOW, Sample(usage_usec=7))]
    assert store.alert("3f9a0c12").message == "it was"
    assert (store.actions(), store.profiles()) == ([], [])
    store.act(action())
    store.learn("name:coder", Observed(memory=2e8), NOW)
    store.close()
    reader = Store.open(path, write=False)
    assert len(reader.actions("coder")) == 1
    profile = reader.profile("name:coder")
    assert profile is not None
    assert profile.runs == 1
    reader.close()
    fresh = Store.open(path + ".new")

    def schema(of: Store) -> set[str]:
        return {row[0] for row in of._db.execute("SELECT sql FROM sqlite_master") if row[0]}

    store = Store.open(path)
    assert {" ".join(sql.split()) for sql in schema(store)} == {
        " ".join(sql.split()) for sql in schema(fresh)
    }
    store.close()
    fresh.close()


def test_a_migration_that_fails_leaves_the_version_before_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_file(path)
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, _next_schema, _failing_schema))
    with pytest.raises(StoreError, match="no such table: absent"):
        Store.open(path)
    with sqlite3.connect(path) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(runs)")]
        assert "colour" in columns
        assert "taste" not in columns
        assert db.execute("PRAGMA user_version").fetchone() == (4,)
        assert db.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    db.close()


def test_a_field_that_sample_got_later_is_absent_in_what_was_there(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _old_file(path)
    with sqlite3.connect(path) as db:  # as if an agentres without these two had made it
        db.execute("ALTER TABLE samples DROP COLUMN fds")
        db.execute("ALTER TABLE samples DROP COLUMN disks")
    db.close()
    monkeypatch.setattr(file, "MIGRATIONS", (*MIGRATIONS, add_sample_columns))
    store = Store.open(path)
    store.add([("r0000001", NOW, Sample(fds=3, disks=()))])
    assert [sample for _, sample in store.samples("r0000001", now=NOW)] == [
        Sample(usage_usec=7),
        Sample(fds=3, disks=()),
    ]
    store.close()


def test_a_newer_file_is_refused_and_not_touched(path: str) -> None:
    _old_file(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    before = Path(path).read_bytes()
    for write in (True, False):
        with pytest.raises(StoreError, match=r"newer agentres \(schema 7, this one knows 3\)"):
            Store.open(path, write=write)
    assert Path(path).read_bytes() == before


def test_many_that_make_the_file_at_once(path: str) -> None:
    program = (
        "import sys; from agentres.store import Store; from agentres.model.stats import Sample\n"
        "store = Store.open(sys.argv[1])\n"
        "for n in range(20): store.add([('both', 1.0 * n, Sample(fds=1))])\n"
    )
    arguments = [sys.executable, "-c", program, path]
    children = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert (child.returncode, stderr) == (0, "")
    assert len(Store.open(path, write=False).samples("both", now=0)) == 80


# Files that are not as they should be.


def test_a_reader_makes_nothing(path: str) -> None:
    with pytest.raises(StoreError, match=f"no history yet at {path}"):
        Store.open(path, write=False)
    assert not os.path.exists(os.path.dirname(path))
    os.makedirs(os.path.dirname(path))
    Path(path).touch()
    with pytest.raises(StoreError, match=f"no history yet at {path}"):
        Store.open(path, write=False)


def test_a_reader_reads_beside_a_writer_and_writes_nothing(store: Store, path: str) -> None:
    reader = Store.open(path, write=False)
    store.begin(run())
    assert reader.runs() == [run()]
    with pytest.raises(StoreError, match="read-only"):
        reader.begin(run("r0000002"))
    store.end("r0000001", NOW + 5, 3)
    assert reader.runs() == [run(ended=NOW + 5, exit_code=3)]
    reader.close()


def test_garbage_is_corrupt_and_can_be_moved_away(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(b"no database at all, and long enough" * 100)
    for write in (True, False):
        with pytest.raises(StoreError, match=f"is corrupt .*; move {path} away"):
            Store.open(path, write=write)
    os.rename(path, path + ".bad")
    Store.open(path).close()


def test_pages_that_were_overwritten_are_corrupt(path: str) -> None:
    _old_file(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(path) - 4096))
    store = Store.open(path)
    with pytest.raises(StoreError, match="is corrupt"):
        store.add([("r0000001", NOW, Sample())])
    store.close()


def test_a_database_of_another_program_is_left_alone(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url)")
    db.close()
    with pytest.raises(StoreError, match=f"another program; move {path} away"):
        Store.open(path)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    for below in ("history.db", "deeper/history.db"):
        with pytest.raises(StoreError, match=r"cannot make .*; set AGENTRES_STATE_DIR"):
            Store.open(str(tmp_path / "state" / below))


def test_a_directory_where_the_file_should_be(path: str) -> None:
    os.makedirs(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(path)


def test_a_file_that_must_not_be_written(path: str) -> None:
    _old_file(path)
    if os.geteuid() == 0:  # nothing is read-only for root, but what SQLite is told is
        store = Store.open(path)
        store._db.execute("PRAGMA query_only = ON")
    else:
        os.chmod(path, 0o400)
        store = Store.open(path)
    with pytest.raises(StoreError, match="read-only here; set AGENTRES_STATE_DIR"):
        store.end("r0000001", NOW, 0)
    store.close()


def test_a_full_disk_costs_the_call_and_nothing_else(store: Store) -> None:
    store.begin(run())
    store.add([("r0000001", NOW, FULL_SAMPLE)])
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")  # then SQLite answers SQLITE_FULL
    rows = [(f"many{n}", NOW, FULL_SAMPLE) for n in range(1000)]
    with pytest.raises(StoreError, match=r"the disk of .* is full; free some"):
        store.add(rows)
    assert store.samples("r0000001", now=NOW) == [(NOW, FULL_SAMPLE)]
    assert store.samples("many0", now=NOW) == []
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.add(rows)
    assert store.samples("many999", now=NOW) == [(NOW, FULL_SAMPLE)]


def test_who_finds_another_writer_waits_and_then_says_so(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    store = Store.open(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another program"):
        store.begin(run())
    assert store.runs() == []  # who reads does not wait
    soon = threading.Timer(0.03, other.execute, ["COMMIT"])
    soon.start()
    store.begin(run())
    soon.join()
    other.close()
    store.close()


def test_a_file_that_was_moved_away_is_noticed(store: Store, path: str) -> None:
    assert not store.moved
    os.rename(path, path + ".old")
    assert store.moved
    other = Store.open(path)
    assert store.moved
    assert not other.moved
    other.close()


# Runs and samples.


def test_a_run_comes_back_as_it_went(store: Store) -> None:
    odd = run(command=("sh", "-c", "echo\n$1", "", "caf\udce9"), cgroup="/agents.slice/a b")
    store.begin(odd)
    store.begin(run(name="another"))  # is there already
    assert store.runs() == [odd]
    store.end(odd.id, NOW + 9, -9)
    assert store.runs() == [Run(*odd._values()[:-2], NOW + 9, -9)]


def test_runs_by_name_kind_and_time(store: Store) -> None:
    store.begin(run("r1", started=NOW))
    store.begin(run("r2", started=NOW + 1, name="writer"))
    store.begin(run("r3", started=NOW + 2, name="host", of="host"))
    store.begin(run("r4", started=NOW + 2))
    store.end("r1", NOW + 5, 0)

    def ids(**which: Any) -> list[str]:
        return [found.id for found in store.runs(**which)]

    assert ids() == ["r4", "r3", "r2", "r1"]
    assert ids(name="coder") == ["r4", "r1"]
    assert ids(of="host") == ["r3"]
    assert ids(name="coder", since=NOW + 6) == ["r4"]
    assert ids(name="nobody") == []


def test_every_field_of_a_sample_is_kept_and_none_stays_none(store: Store) -> None:
    disks = (("8:0", 1, 2, 3, 4), ("nvme 0n1", 2**62, 0, 0, 0))
    samples = [
        FULL_SAMPLE,
        Sample(),
        Sample(disks=disks, load1=0.25, cpu_limit=1.5, memory_limit=2**63 - 1),
        Sample(disks=()),
    ]
    store.add((("r1", NOW + n, sample) for n, sample in enumerate(samples)))
    assert store.samples("r1", now=NOW) == [(NOW + n, s) for n, s in enumerate(samples)]
    assert store.samples("r2", now=NOW) == []


@settings(max_examples=20)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90)), max_size=60), max_size=12
    ),
    waited=st.integers(0, 4000),
    purged=st.booleans(),
)
def test_a_ring_holds_the_last_hundred_of_the_last_hour_in_order(
    batches: list[list[tuple[str, int]]], waited: int, purged: bool
) -> None:
    rings: dict[str, deque[tuple[float, Sample]]] = {name: deque(maxlen=100) for name in "abc"}
    now = NOW
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(os.path.join(directory, "history.db"))
        for batch in batches:
            rows = []
            for name, pause in batch:
                now += pause
                rows.append((name, now, Sample(usage_usec=len(rows))))
                rings[name].append(rows[-1][1:])
            store.add(rows)
            if purged:
                store.purge(now)
        now += waited
        if purged:
            store.purge(now)
        for name, ring in rings.items():
            assert store.samples(name, now=now) == [row for row in ring if row[0] >= now - HOUR]
            assert store.samples(name, since=now - 99, now=now) == [
                row for row in ring if row[0] >= now - 99
            ]
        store.close()


def test_a_clock_that_is_set_back_changes_no_order(store: Store) -> None:
    times = [NOW + n for n in range(150)] + [NOW - 60 + n for n in range(20)]
    for n, at in enumerate(times):
        store.add([("r1", at, Sample(fds=n))])
    assert [sample.fds for _, sample in store.samples("r1", now=NOW + 150)] == [*range(70, 170)]


def test_an_hour_at_speed_stays_within_its_bounds(store: Store, path: str) -> None:
    """An hour of samples every 5 s of 20 runs, interleaved, twice; what a supervisor does."""
    names = [f"run{n:05}" for n in range(20)]
    for name in names:
        store.begin(run(name))
    largest = 0
    for tick in range(1500):
        now = NOW + 5 * tick
        # The second hour at leisure: then it is the hour that bounds, not the hundred.
        if tick < 720 or tick % 8 == 0:
            store.add((name, now, FULL_SAMPLE) for name in names)
        if tick % 12 == 0:
            store.purge(now)
        if tick % 240 == 0:
            largest = max(largest, os.path.getsize(path) + os.path.getsize(path + "-wal"))
            for name in names:
                found = store.samples(name, now=now)
                assert len(found) == {0: 1, 1440: 91}.get(tick, 100)
                assert found[0][0] >= now - HOUR
    (kept, oldest) = store._db.execute("SELECT count(*), min(time) FROM samples").fetchone()
    assert kept == 20 * 92  # the last purge was at 1488, its hour began at 768
    assert oldest >= now - HOUR - 60
    assert largest < 6_000_000  # 4 MiB of it are the write-ahead log
    for name in names:
        store.end(name, now, 0)
    store.purge(now + HOUR + 1)
    assert store.runs() == []
    assert store._db.execute("SELECT count(*) FROM samples").fetchone() == (0,)
    assert store._db.execute("SELECT count(*) FROM rings").fetchone() == (0,)
    store.close()
    assert os.path.getsize(path) < 200_000


def test_nothing_older_than_an_hour_is_returned_even_before_a_purge(store: Store) -> None:
    store.add([("r1", NOW, Sample(fds=1)), ("r1", NOW + 1, Sample(fds=2))])
    assert len(store.samples("r1", now=NOW + HOUR)) == 2
    assert len(store.samples("r1", now=NOW + HOUR + 0.5)) == 1
    assert store.samples("r1", since=0, now=NOW + 2 * HOUR) == []


def test_two_writers_at_once_lose_nothing(path: str) -> None:
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            store = Store.open(path)
            for n in range(50):
                store.add([(name, NOW + n, Sample(fds=n)), ("both", NOW + n, Sample(fds=n))])
                store.record(event(alert_id=f"{name}{n:04}"))
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[name]) for name in ("aaaa", "bbbb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store.open(path, write=False)
    for name in ("aaaa", "bbbb"):
        assert [s.fds for _, s in store.samples(name, now=NOW)] == [*range(50)]
    assert sorted(s.fds or 0 for _, s in store.samples("both", now=NOW)) == sorted([*range(50)] * 2)
    assert len(store.alerts()) == len(store.changes(0)[0]) == 100
    store.close()


def test_what_cannot_be_kept_costs_its_own_call_alone(store: Store) -> None:
    with pytest.raises(OverflowError):
        store.add([("r1", NOW, Sample(fds=1)), ("r1", NOW, Sample(fds=2**64))])
    store.add([("r1", NOW, Sample(fds=3))])
    assert [sample.fds for _, sample in store.samples("r1", now=NOW)] == [3]


# Alerts.


def test_the_life_of_an_alert(store: Store) -> None:
    store.begin(run())
    store.record(event())
    row = store.alert("3f9a0c12")
    assert (row.severity, row.last_severity, row.value) == (Severity.WARNING, Severity.WARNING, 76)
    assert (row.resolved, row.handled, row.acknowledged) == (None, None, None)

    store.handled("3f9a0c12", "webhook", NOW + 0.5, "no route to host")
    assert store.alert("3f9a0c12").handled is None
    store.handled("3f9a0c12", "terminal", NOW + 1, None)
    store.handled("3f9a0c12", "journal", NOW + 2, None)
    assert store.alert("3f9a0c12").handled == NOW + 1

    store.record(event("updated", severity="CRITICAL", value=81.0, threshold=80.0, updated=NOW + 3))
    store.record(event("updated", value=77.0, updated=NOW + 4))
    row = store.alert("3f9a0c12")
    assert (row.severity, row.last_severity, row.value) == (Severity.CRITICAL, Severity.WARNING, 77)

    store.record(event("resolved", value=60.0, updated=NOW + 5, resolved=NOW + 5, why="moved"))
    store.record(event("repeated", updated=NOW + 5, resolved=NOW + 5, repeats=1, time=NOW + 6))
    row = store.acknowledge("3f9", "ada", "the build, known\udc80", NOW + 7)
    assert row == store.alert("3f9a0c12")
    assert (row.resolved, row.repeats, row.message) == (NOW + 5, 1, "memory was repeated")
    assert (row.acknowledged, row.acknowledged_by) == (NOW + 7, "ada")
    assert row.acknowledged_why == "the build, known?"

    warning, critical = Severity.WARNING, Severity.CRITICAL
    assert store.timeline("3f9a0c12") == [
        (NOW, "raised", warning, 76, "memory was raised"),
        (NOW + 0.5, "failed", None, None, "webhook: no route to host"),
        (NOW + 1, "handled", None, None, "terminal"),
        (NOW + 2, "handled", None, None, "journal"),
        (NOW + 3, "updated", critical, 81, "memory was updated"),
        (NOW + 4, "updated", warning, 77, "memory was updated"),
        (NOW + 5, "resolved", warning, 60, "moved"),
        (NOW + 6, "repeated", warning, 76, "memory was repeated"),
        (NOW + 7, "acknowledged", None, None, "ada: the build, known?"),
    ]


def test_an_alert_is_acknowledged_once(store: Store) -> None:
    store.record(event())
    store.acknowledge("3f9a0c12", "ada", "", NOW)
    with pytest.raises(StoreError, match=r"already acknowledged by ada at 20\d\d-\d\d-\d\d"):
        store.acknowledge("3f9a0c12", "bob", "me too", NOW + 1)
    assert store.alert("3f9a0c12").acknowledged_by == "ada"
    assert [kind for _, kind, *_ in store.timeline("3f9a0c12")] == ["raised", "acknowledged"]


def test_an_alert_by_the_beginning_of_its_id(store: Store) -> None:
    for alert_id in ("3f9a0c12", "3f9b0000", "3f9a"):
        store.record(event(alert_id=alert_id))
    assert store.alert("3f9b").id == "3f9b0000"
    assert store.alert("3f9a").id == "3f9a"  # is itself one
    assert store.alert("3f9a0").id == "3f9a0c12"
    with pytest.raises(
        StoreError, match="several alerts begin with '3f': 3f9a, 3f9a0c12, 3f9b0000"
    ):
        store.alert("3f")
    for wrong in ("4", "%", "3f9a0c120"):
        with pytest.raises(StoreError, match=f"no alert '{wrong}'"):
            store.alert(wrong)


def test_handlers_may_be_quicker_than_the_history(store: Store) -> None:
    store.handled("3f9a0c12", "terminal", NOW + 1, None)
    store.record(event())
    assert store.alert("3f9a0c12").handled == NOW + 1


def test_an_alert_that_was_raised_in_a_file_that_is_gone(store: Store) -> None:
    store.record(event("resolved", severity="CRITICAL", resolved=NOW + 5, updated=NOW + 5))
    row = store.alert("3f9a0c12")
    assert (row.raised, row.resolved, row.severity) == (NOW, NOW + 5, Severity.CRITICAL)


def test_alerts_by_what_is_asked(store: Store) -> None:
    store.record(event(alert_id="a1", severity="INFO"))
    store.record(event("resolved", "a1", severity="INFO", resolved=NOW + 1, updated=NOW + 1))
    store.record(event(alert_id="a2", raised=NOW + 2, resource="cpu", severity="CRITICAL"))
    store.record(event(alert_id="a3", raised=NOW + 3, agent="writer"))
    store.acknowledge("a3", "ada", "", NOW + 9)

    def ids(**which: Any) -> list[str]:
        return [row.id for row in store.alerts(**which)]

    assert ids() == ["a3", "a2", "a1"]
    assert ids(limit=2) == ["a3", "a2"]
    assert ids(agent="coder") == ["a2", "a1"]
    assert ids(severity=Severity.WARNING) == ["a3", "a2"]
    assert ids(resource="cpu", agent="coder") == ["a2"]
    assert ids(since=NOW + 2) == ["a3", "a2"]
    assert ids(open_only=True) == ["a3", "a2"]
    assert ids(unacknowledged=True) == ["a2", "a1"]
    assert ids(agent="nobody") == []


def test_statistics(store: Store) -> None:
    empty = store.statistics()
    assert empty["total"] == empty["open"] == empty["acknowledged"] == 0
    assert empty["time_to_acknowledge"] == {"mean": None, "p50": None, "max": None}
    for n, wait in enumerate((1.0, 3.0, 8.0, 20.0, None)):
        agent = "coder" if n < 3 else "writer"
        store.record(event(alert_id=f"a{n}", agent=agent, raised=NOW + n))
        if wait is not None:
            store.acknowledge(f"a{n}", "ada", "", NOW + n + wait)
    store.record(event("updated", "a4", severity="EMERGENCY", agent="writer"))
    store.record(event("resolved", "a0", resolved=NOW + 1))
    assert store.statistics() == {
        "total": 5,
        "open": 4,
        "acknowledged": 4,
        "by_severity": {"INFO": 0, "WARNING": 4, "CRITICAL": 0, "EMERGENCY": 1},
        "by_agent": {"coder": 3, "writer": 2},
        "by_resource": {"memory": 5},
        "time_to_acknowledge": {"mean": 8.0, "p50": 5.5, "max": 20.0},
    }
    later = store.statistics(since=NOW + 1)
    assert (later["total"], later["time_to_acknowledge"]["p50"]) == (4, 8.0)


def test_changes_are_the_events_as_they_came(store: Store, path: str) -> None:
    assert store.changes(0) == ([], 0)
    told = [
        event(),
        event(alert_id="b2", raised=NOW + 1, updated=NOW + 1, limit=None),
        event("updated", severity="CRITICAL", updated=NOW + 2, value=81.0),
        event("resolved", "b2", raised=NOW + 1, updated=NOW + 3, resolved=NOW + 3, limit=None),
        event("resolved", updated=NOW + 4, resolved=NOW + 4, repeats=2),
    ]
    follower = Store.open(path, write=False)
    at, seen = 0, []
    for one in told:
        store.record(one)
        store.handled(one["id"], "terminal", NOW, None)
        found, at = follower.changes(at)
        seen += found
    assert [one for _, one in seen] == told
    assert [seq for seq, _ in seen] == [1, 3, 5, 7, 9]
    assert follower.changes(at) == ([], 10)
    assert follower.changes(sys.maxsize) == ([], 10)
    assert [seq for seq, _ in follower.changes(3)[0]] == [5, 7, 9]
    follower.close()


def test_numbers_of_changes_never_come_again(store: Store) -> None:
    store.record(event("resolved", resolved=NOW))
    store.purge(NOW + 31 * DAY)
    assert store.changes(0) == ([], 1)
    store.record(event(alert_id="b2"))
    assert [seq for seq, _ in store.changes(1)[0]] == [2]


def test_orphans_are_resolved_and_say_why(store: Store) -> None:
    store.begin(run("alive", supervisor=1))
    store.begin(run("dead", supervisor=2))
    store.begin(run("ended", supervisor=3))
    store.end("ended", NOW, 0)
    for number, owner in enumerate(("alive", "dead", "dead", "ended")):
        store.record(event(alert_id=f"a{number}", run=owner))
    store.record(event("resolved", "a2", run="dead", resolved=NOW + 1, updated=NOW + 1))
    asked: list[str] = []

    def alive(of: Run) -> bool:
        asked.append(of.id)
        return of.supervisor == 1

    _, at = store.changes(0)
    for _ in range(2):  # the second time there is none
        store.resolve_orphans(NOW + 50, alive)
    assert asked == ["alive", "dead", "alive"]
    assert {r.id: r.ended for r in store.runs()} == {
        "alive": None,
        "dead": NOW + 50,
        "ended": NOW,
    }
    resolved = {row.id: row.resolved for row in store.alerts()}
    assert resolved == {"a0": None, "a1": NOW + 50, "a2": NOW + 1, "a3": NOW + 50}
    assert store.timeline("a1")[-1] == (
        NOW + 50, "resolved", Severity.WARNING, 76, "its supervisor is gone",
    )  # fmt: skip
    assert [(e["id"], e["event"], e["resolved"]) for _, e in store.changes(at)[0]] == [
        ("a1", "resolved", NOW + 50),
        ("a3", "resolved", NOW + 50),
    ]


def test_purge_keeps_what_has_its_time_yet(store: Store) -> None:
    store.begin(run("quiet"))
    store.begin(run("ended"))
    store.begin(run("sampled"))
    store.begin(run("alerted"))
    for ended in ("ended", "sampled", "alerted"):
        store.end(ended, NOW, 0)
    store.add([("sampled", NOW + 100, Sample())])
    store.record(event(run="alerted"))
    store.record(event("resolved", run="alerted", resolved=NOW + 10, updated=NOW + 10))
    store.record(event(alert_id="b2", run="quiet"))
    steps: list[tuple[float, set[str], int]] = [
        (HOUR - 1, {"quiet", "ended", "sampled", "alerted"}, 2),
        (HOUR + 1, {"quiet", "sampled", "alerted"}, 2),
        (HOUR + 101, {"quiet", "alerted"}, 2),
        (30 * DAY + 1, {"quiet", "alerted"}, 2),
        (30 * DAY + 11, {"quiet"}, 1),
        (90 * DAY, {"quiet"}, 1),
    ]
    for later, runs, alerts in steps:
        store.purge(NOW + later)
        assert {found.id for found in store.runs()} == runs
        assert len(store.alerts()) == alerts
    assert store._db.execute("SELECT DISTINCT alert FROM alert_events").fetchall() == [("b2",)]


def test_a_purge_without_work_waits_for_nobody(store: Store, path: str) -> None:
    store.add([("r1", NOW, Sample())])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.purge(NOW + 60)
    other.close()


@pytest.mark.parametrize("call", [lambda s: s.runs(), lambda s: s.begin(run())])
def test_a_closed_store_is_an_error_of_ours(path: str, call: Callable[[Store], object]) -> None:
    store = Store.open(path)
    store.close()
    with pytest.raises(StoreError, match="closed database"):
        call(store)


# Actions.


def test_an_action_comes_back_as_it_went(store: Store) -> None:
    store.act(action())
    frozen = action(
        kind="freeze", before=None, after=None, took=None, values="a=1", why="for caf\udce9"
    )
    store.act(frozen)
    assert store.actions() == [
        ActionRow(1, "r0000001", "coder", NOW, "memory", "raise", 100.0, 150.0, "burst",
                  "use of 76 B reached 75% of 100 B", 0.002, ""),
        ActionRow(2, "r0000001", "coder", NOW, "memory", "freeze", None, None, "burst",
                  "for caf?", None, "a=1"),
    ]  # fmt: skip


def test_an_action_without_what_it_must_say_is_refused(store: Store) -> None:
    incomplete = action()
    del incomplete["why"]
    with pytest.raises(KeyError):
        store.act(incomplete)
    with pytest.raises(StoreError):
        store.act(action(rule=None))
    assert store.actions() == []


def test_actions_by_what_is_asked_the_newest_last(store: Store) -> None:
    for n, (name, run_id) in enumerate([("a", "r1"), ("b", "r2"), ("a", "r3"), ("a", "r3")]):
        store.act(action(agent=name, run=run_id, time=NOW + n))

    def times(**which: Any) -> list[float]:
        return [row.time - NOW for row in store.actions(**which)]

    assert times() == [0, 1, 2, 3]
    assert times(name="a") == [0, 2, 3]
    assert times(name="a", limit=2) == [2, 3]
    assert times(since=NOW + 2) == [2, 3]
    assert times(run_id="r2") == [1]
    assert times(name="nobody") == []


def test_actions_are_kept_for_as_long_as_alerts_and_profiles_for_a_year(store: Store) -> None:
    store.begin(run())
    store.end("r0000001", NOW, 0)
    store.act(action())
    store.act(action(time=NOW + 60))
    store.learn("name:coder", Observed(memory=1e8), NOW)
    store.purge(NOW + 30 * DAY)
    assert store.runs() == []  # which outlives no action that is kept
    assert len(store.actions("coder")) == 2
    store.purge(NOW + 30 * DAY + 1)
    assert [row.time for row in store.actions()] == [NOW + 60]
    store.purge(NOW + 365 * DAY)
    assert store.actions() == []
    assert store.profiles() == [("name:coder", NOW)]
    store.purge(NOW + 365 * DAY + 1)
    assert store.profiles() == []


# Profiles.


def test_what_is_learnt_is_what_the_policy_makes_of_it(store: Store) -> None:
    assert store.profile("name:coder") is None
    expected = Profile.empty("name:coder")
    for n in range(5):
        observed = Observed(memory=2e8 + 1e7 * n, cpu=((0.5, 10.0), (1.5, 1.0 + n)), pids=12)
        store.learn("name:coder", observed, NOW + n * HOUR, 7200.0)
        expected = learn(expected, observed, NOW + n * HOUR, 7200.0)
    assert store.profile("name:coder") == expected
    assert store.profile("name:other", "name:coder") == expected
    assert store.profile("name:other") is None


def test_who_was_learnt_of_last_comes_first(store: Store) -> None:
    for n, key in enumerate(("name:a", "command:caf\udce9", "name:a")):
        store.learn(key, Observed(pids=1), NOW + n)
    assert store.profiles() == [("name:a", NOW + 2), ("command:caf?", NOW + 1)]
    assert store.profile("command:caf\udce9") is not None


def test_a_profile_that_cannot_be_read_is_told_and_learnt_anew(store: Store) -> None:
    store.learn("name:coder", Observed(memory=1e8), NOW)
    for garbage in ("", "0", "1\nruns", "1\nruns 1\n", "1\nuse memory 0 999999 1", "\0"):
        store._db.execute("UPDATE profiles SET data = ?", (garbage,))
        with pytest.raises(StoreError, match=r"'name:coder' in .* cannot be read"):
            store.profile("name:coder")
    store.learn("name:coder", Observed(memory=2e8), NOW)
    profile = store.profile("name:coder")
    assert profile is not None
    assert profile.runs == 1


def test_a_run_goes_on_without_a_profile_that_cannot_be_read(path: str) -> None:
    writer = Writer.open(path)
    writer.learn("name:coder", Observed(memory=1e8), NOW)
    writer._db.execute("UPDATE profiles SET data = '2\n'")
    writer.learn("command:coder", Observed(memory=1e8), NOW)
    assert writer.profile("name:coder") is None
    known = writer.profile("name:coder", "command:coder")
    assert known is not None
    assert known.key == "command:coder"
    writer.learn("name:coder", Observed(memory=2e8), NOW)
    renewed = writer.profile("name:coder")
    assert renewed is not None
    assert renewed.runs == 1
    writer.close()


def test_two_that_learn_at_once_lose_nothing(path: str) -> None:
    failures: list[BaseException] = []

    def teach() -> None:
        try:
            store = Store.open(path)
            for n in range(40):
                store.learn("name:coder", Observed(memory=1e8), NOW + n)
            store.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=teach) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store.open(path, write=False)
    profile = store.profile("name:coder")
    assert profile is not None
    assert profile.runs == 80
    store.close()
