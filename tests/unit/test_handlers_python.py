"""Python handlers: a callable in a process of its own, and what is done when it hangs, crashes, forks or raises."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dispatched import DEADLINE, FORKS_BESIDE_THREADS, Pipe, Told, event, function, handler

pytestmark = FORKS_BESIDE_THREADS


def test_a_callable_gets_the_event_in_a_process_of_its_own(handlers_pipe: Pipe) -> None:
    def say(told: dict[str, Any]) -> None:
        handlers_pipe.say(os.getpid(), told == event(), os.getpgid(0) == os.getpid())

    with function(say) as told:
        assert [told.tell(event()) for _ in range(2)] == [None, None]
        first, second = handlers_pipe.line(), handlers_pipe.line()
        assert first == second
        assert first[1:] == ["True", "True"]
        assert int(first[0]) != os.getpid()
    handlers_pipe.await_end()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes an importable module with a function ``take`` and names that."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"handler_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(source)
        return f"{name}:take"

    return write


def test_a_callable_by_name_is_imported_once_before_any_alert(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    fifo = tmp_path / "imported"
    os.mkfifo(fifo)
    name = module(f"open({str(fifo)!r}, 'w').write('x')\ndef take(event): pass")
    with Told(handler("python", callable=name)) as told:
        assert fifo.read_text() == "x"
        assert [told.tell(event()) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def other(event): pass", "cannot be imported: AttributeError"),
        ("take = 3", "is not callable"),
        ("import os; os._exit(3)", "cannot be imported: exited with status 3"),
        ("import sys; sys.exit(3)", "cannot be imported: exited with status 1"),
        ("import os; os.kill(os.getpid(), 9)", "cannot be imported: was killed by SIGKILL"),
    ],
)
def test_what_cannot_be_imported_is_told_at_every_alert(
    module: Callable[[str], str], source: str, error: str
) -> None:
    with Told(handler("python", callable=module(source))) as told:
        for _ in range(2):
            assert error in str(told.tell(event()))


def test_an_import_that_hangs_is_told_at_the_time_limit(
    module: Callable[[str], str],
) -> None:
    name = module("import signal; signal.pause()\ndef take(event): pass")
    with Told(handler("python", callable=name, timeout=0.2)) as told:
        assert told.tell(event()) == "still being imported after 0.2 s"


def fork_and_leave(_told: dict[str, Any]) -> None:
    if os.fork() == 0:
        signal.pause()


def fork_and_return(_told: dict[str, Any]) -> None:
    os.fork()


def raise_it(_told: dict[str, Any]) -> None:
    raise ValueError("two\nlines")


async def coroutine(_told: dict[str, Any]) -> None:
    pass


def hang_and_ignore(_told: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        signal.pause()


def close_all(_told: dict[str, Any]) -> None:
    os.closerange(0, 256)


def close_all_and_hang(_told: dict[str, Any]) -> None:
    os.closerange(0, 256)
    signal.pause()


def stop_itself(_told: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def bomb(_told: dict[str, Any]) -> None:
    for _ in range(4):
        os.fork()
    signal.pause()


def abort(_told: dict[str, Any]) -> None:
    faulthandler.disable()  # pytest's, which would tell of it at length
    os.abort()


@pytest.mark.parametrize(
    ("called", "error"),
    [
        (raise_it, "ValueError: two\\nlines (" + __file__),
        (coroutine, "returned an awaitable"),
        (hang_and_ignore, "took longer than 2 s and was killed"),
        (stop_itself, "took longer than 2 s and was killed"),
        (bomb, "took longer than 2 s and was killed"),
        (fork_and_leave, "left a forked process behind and was killed"),
        (fork_and_return, "left a forked process behind and was killed"),
        (close_all, "exited with status 1"),
        (close_all_and_hang, "closed its descriptors and was killed"),
        (lambda _told: os._exit(4), "exited with status 4"),
        (lambda _told: sys.exit(4), "SystemExit: 4"),
        (abort, "was killed by SIGABRT"),
        (lambda _told: os.kill(os.getpid(), 9), "was killed by SIGKILL"),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_a_callable_that_goes_wrong_is_told_and_the_next_alert_is_taken(
    called: Callable[[dict[str, Any]], object], error: str, handlers_pipe: Pipe
) -> None:
    def take(told: dict[str, Any]) -> object:
        if told["id"] == "bad":
            return called(told)
        handlers_pipe.say(told["id"])
        return None

    with function(take, timeout=2.0) as told:
        for _ in range(2):
            assert error in str(told.tell(event(id="bad")))
            assert told.tell(event(id="good")) is None
            assert handlers_pipe.line() == ["good"]
        assert told.drops == [("python", 1), ("python", 2)]
    handlers_pipe.await_end()


def test_a_callable_may_fork_and_wait(handlers_pipe: Pipe) -> None:
    def take(_told: dict[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        handlers_pipe.say(os.getpid())

    with function(take) as told:
        assert [told.tell(event()) for _ in range(2)] == [None, None]
        assert handlers_pipe.line() == handlers_pipe.line()


def test_a_worker_killed_between_alerts_is_replaced_before_the_next(handlers_pipe: Pipe) -> None:
    with function(lambda _told: handlers_pipe.say(os.getpid())) as told:
        assert told.tell(event()) is None
        (pid,) = handlers_pipe.line()
        pidfd = os.pidfd_open(int(pid))
        os.kill(int(pid), signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)
        assert told.tell(event()) is None
        assert handlers_pipe.line() != [pid]
    handlers_pipe.await_end()


def test_a_keeper_that_is_killed_takes_its_worker_with_it(handlers_pipe: Pipe) -> None:
    with function(lambda _told: handlers_pipe.say(os.getppid())) as told:
        assert told.tell(event()) is None
        os.kill(int(handlers_pipe.line()[0]), signal.SIGKILL)
        handlers_pipe.await_end()
        for _ in range(2):
            assert told.tell(event()) == "the process that runs it has ended"
