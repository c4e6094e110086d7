"""The thread that writes the history: order, trouble, room, and its end."""

from __future__ import annotations

import _thread
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from history_rows import event, run

from agentres.model.stats import Sample
from agentres.store import Run, Store, StoreError, Writer, file, writing
from agentres.watch import recorder as recorder_module
from agentres.watch.recorder import Recorder, alive, new_run


class Notes:
    """What the recorder's trouble was at each notify()."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.heard: list[str] = []

    def __call__(self) -> None:
        assert self.recorder is not None
        self.heard.append(self.recorder.trouble)

    @property
    def failures(self) -> int:
        """How often all was well and then was not."""
        before = ["", *self.heard]
        return sum(bool(now) and not was for was, now in zip(before, self.heard, strict=False))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "history.db")


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def recorder(path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(recorder_module, "RETRY_SECONDS", 0.05)
    notes.recorder = recorder = Recorder(path, notes)
    yield recorder
    recorder.close(5)


class Gate:
    """Holds up every call of a Writer's method: a disk that hangs until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        real = getattr(Writer, method)

        def hanging(store: Writer, *args: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(10)
            return real(store, *args)

        monkeypatch.setattr(Writer, method, hanging)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def settle(recorder: Recorder) -> None:
    """Wait until all that was put has been written."""
    written: list[object] = []
    recorder.ask(lambda store: None, written.append)
    until(lambda: recorder.answers() or written)


def fds(path: str, run_id: str = "r0000001") -> list[int | None]:
    store = Store.open(path, write=False)
    found = [sample.fds for _, sample in store.samples(run_id)]
    store.close()
    return found


def rows(*figures: int, run_id: str = "r0000001") -> list[tuple[str, float, Sample]]:
    return [(run_id, time.time(), Sample(fds=figure)) for figure in figures]


def test_nothing_is_made_before_the_first_item(path: str) -> None:
    threads = os.listdir("/proc/self/task")
    recorder = Recorder(path, lambda: None)
    assert os.listdir("/proc/self/task") == threads
    assert not os.path.exists(os.path.dirname(path))
    assert recorder.close(0)


def test_all_is_written_in_order(recorder: Recorder, path: str, notes: Notes) -> None:
    recorder.put("begin", run())
    for n in range(50):
        recorder.put("add", rows(2 * n, 2 * n + 1))
        if n == 20:
            recorder.put("record", event())
        if n == 30:
            recorder.put("record", event("resolved", resolved=time.time()))
    recorder.put("end", "r0000001", time.time(), 3)
    assert recorder.close(5)
    assert fds(path) == [*range(100)]
    store = Store.open(path, write=False)
    assert [found.exit_code for found in store.runs()] == [3]
    assert [one["event"] for _, one in store.changes(0)[0]] == ["raised", "resolved"]
    store.close()
    assert (recorder.trouble, notes.failures, recorder.unwritten, notes.heard) == ("", 0, "", [])


def test_its_thread_takes_no_signals(recorder: Recorder) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    others = set(os.listdir("/proc/self/task"))
    recorder.put("begin", run())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    (thread,) = set(os.listdir("/proc/self/task")) - others
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        assert int(blocked, 16) & 1 << (number - 1)


def test_trouble_is_told_once_and_nothing_is_lost(
    recorder: Recorder, path: str, notes: Notes
) -> None:
    directory = Path(path).parent
    directory.touch()  # where the directory should be: no history can be made
    recorder.put("begin", run())
    until(lambda: notes.heard)
    recorder.put("add", rows(1))
    recorder.put("record", event())
    time.sleep(0.2)  # some more tries
    assert notes.heard == [recorder.trouble]
    assert "is no directory" in recorder.trouble
    assert notes.failures == 1
    directory.unlink()
    until(lambda: not recorder.trouble)
    assert notes.heard[1:] == [""]
    assert recorder.close(5)
    assert fds(path) == [1]
    assert (notes.failures, recorder.unwritten) == (1, "")


def test_it_tries_again_only_now_and_then(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "RETRY_SECONDS", 30.0)
    tries: list[str] = []

    def refused(path: str, write: bool = True) -> Writer:
        tries.append(path)
        raise StoreError("no room", "free some")

    monkeypatch.setattr(Writer, "open", refused)
    for n in range(200):
        recorder.put("add", rows(n))
        time.sleep(0.0005)
    until(lambda: notes.heard)
    assert len(tries) == 1
    assert recorder.trouble == "no room; free some"
    started = time.monotonic()
    assert not recorder.close(5)  # a last try
    assert time.monotonic() - started < 2
    assert len(tries) == 2


def test_a_disk_that_fills_up_and_empties(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()

    def bounded(path: str, write: bool) -> sqlite3.Connection:
        db = file.connect(path, write)
        if full.is_set():
            db.execute("PRAGMA max_page_count = 1")  # as many as there are
        return db

    Store.open(path).close()
    full.set()
    monkeypatch.setattr(writing, "connect", bounded)
    many = [row for n in range(300) for row in rows(n, run_id=f"many{n}")]
    recorder.put("add", many)
    recorder.put("add", many)
    until(lambda: "is full" in recorder.trouble)
    assert notes.failures == 1
    full.clear()
    until(lambda: not recorder.trouble)
    assert recorder.close(5)
    monkeypatch.undo()
    assert fds(path, "many299") == [299, 299]
    assert notes.heard[-1] == ""


def test_a_file_that_is_moved_away_while_it_is_corrupt(
    recorder: Recorder, path: str, notes: Notes
) -> None:
    """The remedy that is told works, and the new file knows the run that goes on."""
    os.makedirs(os.path.dirname(path))
    Path(path).write_bytes(b"garbage" * 1000)
    recorder.put("begin", run())
    recorder.put("add", rows(1))
    until(lambda: notes.heard)
    assert f"move {path} away" in notes.heard[0]
    os.rename(path, path + ".bad")
    until(lambda: not recorder.trouble)
    assert recorder.close(5)
    assert fds(path) == [1]


def test_a_good_file_that_is_taken_away(
    recorder: Recorder, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "PURGE_SECONDS", 0.02)
    recorder.put("begin", run())
    recorder.put("begin", run("r0000002"))
    recorder.put("add", rows(1))
    recorder.put("end", "r0000002", 2.0, 0)
    settle(recorder)
    for suffix in ("", "-wal", "-shm"):
        os.rename(path + suffix, path + ".old" + suffix)
    until(lambda: os.path.exists(path))
    recorder.put("add", rows(2))
    assert recorder.close(5)
    assert fds(path) == [2]
    store = Store.open(path, write=False)
    assert [found.id for found in store.runs()] == ["r0000001"]  # the one that goes on
    store.close()


def test_where_there_is_no_room_samples_go_first(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "end")
    recorder.put("end", "r0000002", 2.0, 0)
    assert gate.reached.wait(5)
    started = time.monotonic()
    for n in range(900):
        recorder.put("add", rows(n))
    for n in range(600):
        recorder.put("record", event(alert_id=f"{n:08x}"))
    assert time.monotonic() - started < 1  # it never waited
    assert (recorder.unwritten, notes.failures) == (
        "not written: 900 samples and 600 other records",
        1,
    )
    assert "does not keep up" in notes.heard[0]
    for n in range(600, 1010):
        recorder.put("record", event(alert_id=f"{n:08x}"))
    assert notes.failures == 1
    assert recorder.unwritten == "not written: 900 samples and 1010 other records"
    gate.opened.set()
    until(lambda: not recorder.trouble)
    assert recorder.close(5)
    assert recorder.unwritten == "not written: 900 samples and 10 other records"
    store = Store.open(path, write=False)
    kept = sorted(int(row.id, 16) for row in store.alerts())
    store.close()
    assert kept == [*range(10, 1010)]
    assert fds(path) == []
    assert len(notes.heard) == 2


def test_large_batches_are_bounded_by_their_samples(
    recorder: Recorder, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "end")
    recorder.put("end", "r0000002", 2.0, 0)
    assert gate.reached.wait(5)
    for n in range(8):
        recorder.put("add", rows(*[n] * 1000))
    assert recorder.unwritten == "not written: 8000 samples"
    gate.opened.set()
    assert recorder.close(5)
    assert fds(path) == [7] * 100


def test_close_does_not_wait_for_a_disk_that_hangs(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "record")
    recorder.put("record", event())
    assert gate.reached.wait(5)
    started = time.monotonic()
    assert not recorder.close(0.1)
    assert time.monotonic() - started < 1
    recorder.put("add", rows(1, 2))  # too late: counted
    assert recorder.unwritten == "not written: 2 samples"
    gate.opened.set()
    assert recorder.close(5)  # it has come back: then all was written
    assert notes.heard == []


def test_close_is_false_where_not_all_was_written(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(path).parent.touch()
    recorder.put("record", event())
    until(lambda: notes.heard)
    assert not recorder.close(5)
    assert recorder.unwritten == "not written: 1 other record"
    assert len(notes.heard) == 1


def test_an_item_that_cannot_be_written_does_not_hold_up_the_rest(
    recorder: Recorder, path: str, notes: Notes
) -> None:
    recorder.put("begin", run())
    settle(recorder)
    recorder.put("record", {"event": "raised"})
    until(lambda: notes.failures)
    assert "cannot hold what came to record()" in notes.heard[-1]
    assert (notes.failures, recorder.unwritten) == (1, "not written: 1 other record")
    recorder.put("add", rows(1))
    until(lambda: not recorder.trouble)
    assert recorder.close(5)
    assert fds(path) == [1]


def test_it_purges_at_its_start_and_each_minute(
    recorder: Recorder, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(path)
    store.begin(run("long-ago", started=1.0))
    store.end("long-ago", 2.0, 0)
    store.close()
    purges: list[float] = []
    real = Writer.purge

    def purge(store: Writer, now: float) -> None:
        purges.append(now)
        real(store, now)

    monkeypatch.setattr(Writer, "purge", purge)
    monkeypatch.setattr(recorder_module, "PURGE_SECONDS", 0.05)
    recorder.put("begin", run())
    until(lambda: len(purges) >= 3)
    assert recorder.close(5)
    store = Store.open(path, write=False)
    assert [found.id for found in store.runs()] == ["r0000001"]
    store.close()


def test_a_lock_that_another_program_holds(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentres.store.file.BUSY_SECONDS", 0.05)
    Store.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder.put("begin", run())
    recorder.put("add", rows(1))
    until(lambda: "is locked" in recorder.trouble)
    other.execute("ROLLBACK")
    until(lambda: not recorder.trouble)
    other.close()
    assert recorder.close(5)
    assert fds(path) == [1]


def test_two_recorders_of_one_process(recorder: Recorder, path: str, notes: Notes) -> None:
    second = Recorder(path, lambda: None)
    for n in range(100):
        recorder.put("add", rows(n))
        second.put("add", rows(n, run_id="r0000002"))
    assert recorder.close(5)
    second.put("add", rows(100, run_id="r0000002"))
    assert second.close(5)
    assert fds(path) == [*range(100)]
    assert fds(path, "r0000002") == [*range(1, 101)]
    assert notes.heard == []


def test_a_host_without_room_for_a_thread(
    recorder: Recorder, path: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with monkeypatch.context() as full:
        full.setattr(_thread, "start_new_thread", refused)
        recorder.put("begin", run())
        recorder.put("add", rows(1))
    assert notes.heard == [f"the history at {path} cannot be written: can't start new thread"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    recorder.put("add", rows(2))
    until(lambda: not recorder.trouble)
    assert recorder.close(5)
    assert fds(path) == [1, 2]
    assert (notes.failures, recorder.unwritten) == (1, "")


def test_without_a_thread_nothing_is_saved(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", Mock(side_effect=RuntimeError("no room")))
    recorder.put("begin", run())
    assert not recorder.close(5)


def test_who_is_told_of_trouble_may_put_something(path: str) -> None:
    Path(path).parent.touch()
    heard = threading.Event()

    def notify() -> None:
        told.put("record", event())
        heard.set()

    told = Recorder(path, notify)
    told.put("begin", run())
    assert heard.wait(5)
    assert not told.close(5)


# Whose supervisor is gone.


def mine(**changed: Any) -> Run:
    return new_run("coder", "agent", ("sh", "-c", "true"), "/agents.slice/coder", 5.0).but(
        **changed
    )


def test_a_run_of_this_process() -> None:
    made = mine()
    assert len(bytes.fromhex(made.id)) == 4
    assert made.id != mine().id
    assert (made.uid, made.supervisor) == (os.geteuid(), os.getpid())
    assert (made.started, made.ended, made.exit_code) == (5.0, None, None)
    assert alive(made)


def test_a_supervisor_is_told_from_others_of_its_number() -> None:
    assert not alive(mine(boot_id="of another boot"))
    assert not alive(mine(supervisor_start=mine().supervisor_start + 1))
    child = subprocess.Popen(["true"])
    child.wait()
    assert not alive(mine(supervisor=child.pid))


def test_a_supervisor_that_may_not_be_looked_at_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mine()
    monkeypatch.setattr(recorder_module, "start_ticks", Mock(side_effect=PermissionError))
    assert alive(made)


def test_what_a_supervisor_that_was_killed_left_is_ended_once(
    recorder: Recorder, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = recorder_module.alive

    def asking(run: Run) -> bool:
        asked.append(run.id)
        return real(run)

    monkeypatch.setattr(recorder_module, "alive", asking)
    monkeypatch.setattr(recorder_module, "PURGE_SECONDS", 0.02)
    before = time.time()
    store = Store.open(path)
    store.begin(mine(id="another"))
    store.begin(mine(id="orphan", boot_id="of another boot"))
    store.record(event(alert_id="a1", run="orphan", raised=before))
    store.close()
    recorder.put("begin", run("own", boot_id="of another boot"))
    recorder.put("add", rows(1, run_id="own"))
    settle(recorder)
    time.sleep(0.1)  # some more turns
    assert recorder.close(5)
    assert asked == ["another", "orphan"]
    store = Store.open(path, write=False)
    ended = {found.id: found.ended for found in store.runs()}
    assert ended.keys() == {"another", "orphan", "own"}
    assert ended["another"] is ended["own"] is None
    assert before <= (ended["orphan"] or 0) <= time.time()
    assert store.timeline("a1")[-1][-1] == "its supervisor is gone"
    store.close()


def test_what_stays_beside_an_agent(path: str) -> None:
    """Neither what threads and dates are made of, nor what only the commands ask."""
    program = (
        "import sys, time; from agentres.watch.recorder import Recorder, new_run\n"
        "def dear(): return sorted({'_sqlite3', 'agentres.store.reading', 'agentres.store.writing',"
        " 'datetime', 'sqlite3', 'threading'} & set(sys.modules))\n"
        "print(dear())\n"
        "recorder = Recorder(sys.argv[1], print)\n"
        "recorder.put('begin', new_run('coder', 'agent', (), '/', time.time()))\n"
        "print(recorder.close(10), dear())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "True ['_sqlite3', 'agentres.store.writing']"]
