"""The history's file: where it is, whose it is, and what is done when it is not as it should be."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from history_rows import FULL_SAMPLE, NOW, old_file, run

from agentres import store as store_package
from agentres.model.errors import UsageError
from agentres.model.paths import state_directory
from agentres.model.stats import Sample
from agentres.store import NoHistory, Store, StoreError, file, writing
from agentres.store.schema import MIGRATIONS

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


def test_the_file_is_its_owners_alone(store: Store, history_path: str) -> None:
    assert stat.S_IMODE(os.stat(history_path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(history_path)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(history_path + "-wal").st_mode) == 0o600


def test_the_schema_of_a_new_file(store: Store, history_path: str) -> None:
    with sqlite3.connect(history_path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (7,) == (len(MIGRATIONS),)
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
    assert {7: 61}[len(MIGRATIONS)] == len(Sample.__match_args__)


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "50%3f? #1" / "history.db")
    store = Store.open(path)
    store.begin(run())
    store.close()
    assert os.path.exists(path)
    assert Store.open(path, write=False).runs() == [run()]


# Files that are not as they should be.


def test_a_reader_makes_nothing(history_path: str) -> None:
    with pytest.raises(NoHistory, match=f"no history yet at {history_path}"):
        Store.open(history_path, write=False)
    assert not os.path.exists(os.path.dirname(history_path))
    os.makedirs(os.path.dirname(history_path))
    Path(history_path).touch()
    with pytest.raises(NoHistory, match=f"no history yet at {history_path}"):
        Store.open(history_path, write=False)


def test_a_reader_reads_beside_a_writer_and_writes_nothing(store: Store, history_path: str) -> None:
    reader = Store.open(history_path, write=False)
    store.begin(run())
    assert reader.runs() == [run()]
    with pytest.raises(StoreError, match="read-only"):
        reader.begin(run("r0000002"))
    store.end("r0000001", NOW + 5, 3)
    assert reader.runs() == [run(ended=NOW + 5, exit_code=3)]
    reader.close()


def test_garbage_is_corrupt_and_can_be_moved_away(history_path: str) -> None:
    os.makedirs(os.path.dirname(history_path))
    Path(history_path).write_bytes(b"no database at all, and long enough" * 100)
    for write in (True, False):
        with pytest.raises(StoreError, match=f"is corrupt .*; move {history_path} away"):
            Store.open(history_path, write=write)
    os.rename(history_path, history_path + ".bad")
    Store.open(history_path).close()


def test_pages_that_were_overwritten_are_corrupt(history_path: str) -> None:
    old_file(history_path)
    with open(history_path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(history_path) - 4096))
    store = Store.open(history_path)
    with pytest.raises(StoreError, match="is corrupt"):
        store.add([("r0000001", NOW, Sample())])
    store.close()


def test_a_database_of_another_program_is_left_alone(history_path: str) -> None:
    os.makedirs(os.path.dirname(history_path))
    with sqlite3.connect(history_path) as db:
        db.execute("CREATE TABLE bookmarks (url)")
    db.close()
    with pytest.raises(StoreError, match=f"another program; move {history_path} away"):
        Store.open(history_path)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    for below in ("history.db", "deeper/history.db"):
        with pytest.raises(StoreError, match=r"cannot make .*; set AGENTRES_STATE_DIR"):
            Store.open(str(tmp_path / "state" / below))


def test_a_directory_where_the_file_should_be(history_path: str) -> None:
    os.makedirs(history_path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(history_path)


def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Those of all stores that are opened from now on."""
    opened: list[sqlite3.Connection] = []

    def connect(path: str, write: bool) -> sqlite3.Connection:
        opened.append(file.connect(path, write))
        return opened[-1]

    monkeypatch.setattr(writing, "connect", connect)
    return opened


def test_a_file_that_must_not_be_written(history_path: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    old_file(history_path)
    if os.geteuid() == 0:  # nothing is read-only for root, but what SQLite is told is
        opened = connections(monkeypatch)
        store = Store.open(history_path)
        opened[0].execute("PRAGMA query_only = ON")
    else:
        os.chmod(history_path, 0o400)
        store = Store.open(history_path)
    with pytest.raises(StoreError, match="read-only here; set AGENTRES_STATE_DIR"):
        store.end("r0000001", NOW, 0)
    store.close()


def test_a_full_disk_costs_the_call_and_nothing_else(history_path: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    opened = connections(monkeypatch)
    store = Store.open(history_path)
    (db,) = opened
    store.begin(run())
    store.add([("r0000001", NOW, FULL_SAMPLE)])
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + 1}")  # then SQLite answers SQLITE_FULL
    rows = [(f"many{n}", NOW, FULL_SAMPLE) for n in range(1000)]
    with pytest.raises(StoreError, match=r"the disk of .* is full; free some"):
        store.add(rows)
    assert store.samples("r0000001", now=NOW) == [(NOW, FULL_SAMPLE)]
    assert store.samples("many0", now=NOW) == []
    db.execute("PRAGMA max_page_count = 1000000")
    store.add(rows)
    assert store.samples("many999", now=NOW) == [(NOW, FULL_SAMPLE)]
    store.close()


def test_who_finds_another_writer_waits_and_then_says_so(
    history_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.1)
    store = Store.open(history_path)
    other = sqlite3.connect(history_path, isolation_level=None, check_same_thread=False)
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


def test_a_file_that_was_moved_away_is_noticed(store: Store, history_path: str) -> None:
    assert not store.moved
    os.rename(history_path, history_path + ".old")
    assert store.moved
    other = Store.open(history_path)
    assert store.moved
    assert not other.moved
    other.close()


@pytest.mark.parametrize("call", [lambda s: s.runs(), lambda s: s.begin(run())])
def test_a_closed_store_is_an_error_of_ours(
    history_path: str, call: Callable[[Store], object]
) -> None:
    store = Store.open(history_path)
    store.close()
    with pytest.raises(StoreError, match="closed database"):
        call(store)
