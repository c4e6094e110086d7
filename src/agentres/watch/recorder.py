"""The thread that writes the history, so that a slow disk delays nothing.

Items wait in a bounded queue and are written in order.  While the history cannot be written, the thread
reports that once (:attr:`Recorder.trouble`), tries to open it every :data:`RETRY_SECONDS`, and keeps the
queue.  A full queue drops samples first, and counts all that it drops.

It stays in memory with every agent, so it uses ``_thread``: ``threading`` takes a quarter of a megabyte.  The
thread itself loads the writer (:mod:`agentres.store.writing`) and SQLite.
"""

from __future__ import annotations

import _thread
import os
import time

from agentres.kernel.process import boot_id, start_ticks
from agentres.model.native import deque
from agentres.model.record import TYPE_CHECKING
from agentres.model.units import NEVER, counted
from agentres.store import Run, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentres.kernel.caller import Caller
    from agentres.store import Writer

BATCH_SECONDS = 1.0
"""Seconds that samples wait for others: a transaction costs many times as much as a sample in it."""

RETRY_SECONDS = 30.0
PURGE_SECONDS = 60.0
MOST_WAITING = 1000
MOST_SAMPLES = 5000
"""How many samples may wait in all, some megabytes; a run's ring holds 100."""

_ASK = ""
_NOW = float("-inf")


def new_run(
    name: str, of: str, command: tuple[str, ...], cgroup: str, started: float, run: str = ""
) -> Run:
    """Return a run that this process supervises; ``started`` in unix seconds, ``run`` its id; empty: a new one."""
    pid = os.getpid()
    ticks = start_ticks(pid)
    assert ticks is not None  # it is us
    return Run(
        id=run or os.urandom(4).hex(),
        name=name,
        of=of,
        command=command,
        uid=os.geteuid(),
        cgroup=cgroup,
        supervisor=pid,
        supervisor_start=ticks,
        boot_id=boot_id(),
        started=started,
    )


def alive(run: Run) -> bool:
    """Whether the run's supervisor still runs: in this boot, and not another process with its PID."""
    if run.boot_id != boot_id():
        return False
    try:
        return start_ticks(run.supervisor) == run.supervisor_start
    except OSError:  # there is a process that we may not inspect: its alerts are its own to end
        return True


class Recorder:
    """Writes the history in ``path``; makes no thread and no file before the first :meth:`put`.

    ``trouble`` is empty while all is well, else one line for people.  ``dropped`` and ``lost`` count the samples and the other
    items that were left out.  ``notify`` is called when ``trouble`` changes or a question was answered, in the thread or in
    :meth:`put`, but not after :meth:`close`; it must not block.  ``caller`` owns the file; None: our own user.
    """

    def __init__(self, path: str, notify: Callable[[], None], caller: Caller | None = None) -> None:
        self.path = path
        self._caller = caller
        self.trouble = ""
        self.dropped = 0
        self.lost = 0
        self._notify = notify
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._answers: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._samples = 0
        self._write_at = NEVER
        self._runs: dict[str, Run] = {}
        self._lock = _thread.RLock()  # notify() may put()
        self._bell = _thread.allocate_lock()  # locked: nothing has changed since the last look
        self._ended = _thread.allocate_lock()  # locked while the thread runs
        self._started = self._closing = self._saved = False
        # What follows is the thread's own.
        self._store: Writer | None = None
        self._retry_at = self._purge_at = _NOW

    def put(self, method: str, *args: Any) -> None:
        """Queue a call of ``Writer.method(*args)``; never blocks.  Samples ("add") are a list."""
        with self._lock:
            if self._closing:
                self._count(method, args)
                return
            if not self._started:
                self._start()
            self._waiting.append((method, args))
            if method == "add":
                self._samples += len(args[0])
                if self._write_at == NEVER:
                    self._write_at = time.monotonic() + BATCH_SECONDS
                    self._ring()
            else:
                self._write_at = _NOW
                self._ring()
            if method == "begin":
                self._runs[args[0].id] = args[0]
            if self._shrink() and not self.trouble:
                self._say(f"the history at {self.path} does not keep up: some of it is left out")

    def ask(self, question: Callable[[Writer], Any], then: Callable[[Any], None]) -> None:
        """Queue a call of ``question(writer)`` in the thread; :meth:`answers` passes its answer to ``then``."""
        self.put(_ASK, question, then)

    def answers(self) -> None:
        """Call ``then`` for each question that was answered since the last call, in the caller's thread."""
        while self._answers:
            then, answer = self._answers.popleft()
            then(answer)

    @property
    def unwritten(self) -> str:
        """What was not written so far, in words; empty: nothing is missing."""
        with self._lock:
            # Other items are no records: questions, and the run's own begin and end.
            waiting = sum(method in ("record", "act") for method, _ in self._waiting)
            counts = (self.dropped + self._samples, "sample"), (self.lost + waiting, "other record")
        words = " and ".join(counted(number, what) for number, what in counts if number)
        return f"not written: {words}" if words else ""

    def close(self, timeout: float) -> bool:
        """Write the queue and end the thread; return False if not all was written within ``timeout`` seconds."""
        with self._lock:
            self._closing = True
            if not self._started:
                return not self._waiting
            self._ring()
        if not self._ended.acquire(timeout=max(timeout, 0)):
            return False
        self._ended.release()
        return self._saved

    # With the queue locked.

    def _start(self) -> None:
        from agentres.kernel import signal

        # The thread must not take a signal that the main thread waits for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._bell.acquire()
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._work, ())
        except RuntimeError as error:  # no more threads: the next put() tries again
            self._bell.release()
            self._ended.release()
            self._say(f"the history at {self.path} cannot be written: {error}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._started = True
        # First of all: end the runs and alerts that killed supervisors left behind.
        self._waiting.appendleft(("resolve_orphans", (time.time(), self._alive)))

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _shrink(self) -> bool:
        """Drop the oldest items until the queue fits, samples first; return whether any was dropped."""
        shrunk = False
        while len(self._waiting) > MOST_WAITING or self._samples > MOST_SAMPLES:
            oldest = next((n for n, (m, _) in enumerate(self._waiting) if m == "add"), 0)
            method, args = self._waiting[oldest]
            del self._waiting[oldest]
            if method == "add":
                self._samples -= len(args[0])
            self._count(method, args)
            shrunk = True
        return shrunk

    def _count(self, method: str, args: tuple[Any, ...]) -> None:
        if method == "add":
            self.dropped += len(args[0])
        else:
            self.lost += 1

    def _say(self, trouble: str) -> None:
        if trouble == self.trouble:
            return
        self.trouble = trouble
        if not self._closing:
            self._notify()

    # In the thread.

    def _work(self) -> None:
        try:
            if self._caller is not None:
                from agentres.kernel.caller import files_as

                files_as(self._caller)
            while not self._closing:
                if (pause := self._pause()) > 0:
                    self._bell.acquire(timeout=pause)
                else:
                    self._report(self._turn(last=False))
            trouble = self._turn(last=True)
            self._report(trouble)
            self._saved = not trouble
        finally:
            self._ended.release()

    def _pause(self) -> float:
        """Return the seconds until there is something to do."""
        now = time.monotonic()
        if self._store is None:
            return self._retry_at - now
        return min(self._write_at, self._purge_at) - now

    def _report(self, trouble: str) -> None:
        with self._lock:
            self._say(trouble)

    def _turn(self, last: bool) -> str:
        """Write the queue; return the trouble that it met, in words."""
        trouble = ""
        try:
            store = self._store or self._open()
            while (item := self._take()) is not None:
                trouble = self._write(store, *item) or trouble
            if last or time.monotonic() >= self._purge_at:
                store.purge(time.time())
                self._purge_at = time.monotonic() + PURGE_SECONDS
                if store.moved:  # the file was moved away: write to a new one next time
                    self._forget()
            if last:
                self._forget()
        except StoreError as error:
            trouble = str(error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._forget()
        return trouble

    def _open(self) -> Writer:
        try:
            from agentres.store.writing import Writer
        except ImportError as error:  # there are Pythons without SQLite
            raise StoreError(f"the history at {self.path} cannot be written: {error}") from error
        self._store = store = Writer.open(self.path)
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:  # it may be a new file
            store.begin(run)
        return store

    def _forget(self) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        try:
            store.close()
        except StoreError:  # what was written is committed, and the rest has been reported
            pass

    def _take(self) -> tuple[str, tuple[Any, ...]] | None:
        """Take the next item; consecutive samples are joined into one."""
        with self._lock:
            if not self._waiting:
                self._write_at = NEVER
                return None
            method, args = self._waiting.popleft()
            if method != "add":
                return method, args
            rows = list(args[0])
            while self._waiting and self._waiting[0][0] == "add":
                rows += self._waiting.popleft()[1][0]
            self._samples -= len(rows)
            return method, (rows,)

    def _write(self, store: Writer, method: str, args: tuple[Any, ...]) -> str:
        """Write one item; return what is wrong with it, in words, if the item itself cannot be written."""
        try:
            if method == _ASK:
                question, then = args
                self._answers.append((then, question(store)))
                with self._lock:
                    if not self._closing:
                        self._notify()
            else:
                getattr(store, method)(*args)
        except StoreError:
            with self._lock:
                self._waiting.appendleft((method, args))
                self._samples += len(args[0]) if method == "add" else 0
                self._shrink()
            raise
        except Exception as error:  # trying again would not help: leave it out, and report that
            with self._lock:
                self._count(method, args)
            return f"the history at {self.path} cannot hold what came to {method}(): {error!r}"
        if method == "end":
            with self._lock:
                self._runs.pop(args[0], None)
        return ""

    def _alive(self, run: Run) -> bool:
        return run.id in self._runs or alive(run)
