"""Every handler type for real, and what each does when it hangs, crashes, forks, raises or is flooded.

Deadlines only catch hangs: what a test waits for is a report, a pipe or a process's end.
"""

from __future__ import annotations

import faulthandler
import http.server
import json
import os
import pty
import queue
import select
import signal
import socket
import statistics
import struct
import sys
import termios
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentres.companion.handlers import Dispatcher, webhook
from agentres.companion.handlers.journal import MESSAGE_ID
from agentres.companion.handlers.terminal import line
from agentres.companion.handlers.webhook import Standing
from agentres.policy.alerts import Severity
from agentres.policy.settings import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = tuple[int, dict[str, str]] | Callable[["_Answer"], None]

# Python 3.12 warns of any fork beside a thread; the servers of these tests are threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DEADLINE = 20.0


def event(**changed: object) -> dict[str, Any]:
    return {
        "schema": 1, "event": "raised", "id": "3f9a0c12", "run": "0badcafe", "agent": "x",
        "of": "agent", "rule": "memory", "resource": "memory", "unit": "bytes",
        "severity": "WARNING", "value": 778.0 * 2**20, "limit": 2.0**30, "threshold": 0.75 * 2**30,
        "breached": 1700000000.0, "raised": 1700000000.1, "updated": 1700000000.1, "resolved": None,
        "message": "memory of x is at 76% of its limit (778 MiB of 1.0 GiB)", "repeats": 0,
        "host": "machine", **changed,
    }  # fmt: skip


def resolved(**changed: object) -> dict[str, Any]:
    return event(event="resolved", resolved=1700000100.0, updated=1700000100.0, **changed)


class Told:
    """What a dispatcher reports, to be awaited."""

    def __init__(self, *handlers: Handler, **more: Any) -> None:
        self.reports: queue.Queue[tuple[str, str, str | None]] = queue.Queue()
        self.drops: list[tuple[str, int]] = []
        self.dispatcher = Dispatcher(
            handlers,
            lambda alert, handler, _time, error: self.reports.put((alert, handler, error)),
            lambda handler, total: self.drops.append((handler, total)),
            **more,
        )

    def tell(self, told: dict[str, Any]) -> str | None:
        """Dispatch to a single handler, and what it said."""
        self.dispatcher.dispatch(told)
        return self.next()

    def next(self) -> str | None:
        return self.reports.get(timeout=DEADLINE)[2]

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_error: object) -> None:
        self.dispatcher.close(timeout=5)


def handler(kind: str, timeout: float = 10.0, **options: Any) -> Handler:
    severity = options.pop("severity", Severity.INFO)
    size = options.pop("size", 100)
    return Handler(kind, kind, severity, timeout, size, options)


def function(called: Callable[[dict[str, Any]], object], **more: Any) -> Told:
    """A dispatcher with one function."""
    return Told(handler("python", **more), callables={"python": called})


def command(path: Path, script: str, **more: Any) -> Handler:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return handler("command", argv=[str(path)], **more)


class Pipe:
    """Lines that come out of handlers' processes; its end is when the last of them has ended."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        os.set_inheritable(self.into, True)
        self._heard = b""

    def say(self, *words: object) -> None:
        os.write(self.into, " ".join(map(str, words)).encode() + b"\n")

    def line(self) -> list[str]:
        while b"\n" not in self._heard:
            assert select.select([self.out], [], [], DEADLINE)[0], "nothing was said"
            data = os.read(self.out, 4096)
            assert data, "all of them have ended"
            self._heard += data
        first, self._heard = self._heard.split(b"\n", 1)
        return first.decode().split()

    def await_end(self) -> None:
        os.close(self.into)
        while True:
            assert select.select([self.out], [], [], DEADLINE)[0], "a process is left"
            if not os.read(self.out, 4096):
                return


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.out, made.into):
        try:
            os.close(fd)
        except OSError:
            pass


# The dispatcher.


def test_a_handler_gets_its_severity_and_graver_and_what_becomes_of_that(pipe: Pipe) -> None:
    def say(told: dict[str, Any]) -> None:
        pipe.say(told["id"], told["event"], told["severity"])

    handlers = [handler("python", severity=Severity.CRITICAL)]
    with Told(*handlers, callables={"python": say}, told={"old": Severity.CRITICAL}) as told:
        for each in (
            event(id="low"),
            resolved(id="low"),
            event(id="rises"),
            event(id="rises", event="updated", severity="CRITICAL"),
            event(id="rises", event="updated", severity="WARNING"),
            event(id="rises", event="repeated", severity="WARNING"),
            resolved(id="rises", severity="WARNING"),
            resolved(id="rises", severity="CRITICAL"),
            resolved(id="old"),
        ):
            told.dispatcher.dispatch(each)
        assert told.dispatcher.close() == []
        got = [pipe.line() for _ in range(4)]
        assert got == [
            ["rises", "updated", "CRITICAL"],
            ["rises", "updated", "WARNING"],
            ["rises", "resolved", "WARNING"],
            ["old", "resolved", "WARNING"],
        ]
        assert told.reports.qsize() == 4
        assert told.drops == []


def test_a_handler_that_cannot_be_set_up_says_so_at_every_alert() -> None:
    with Told(handler("command"), handler("carrier pigeon")) as told:
        told.dispatcher.dispatch(event())
        errors = {told.reports.get(timeout=DEADLINE)[1:] for _ in range(2)}
        assert ("command", "cannot be set up: KeyError: 'argv'") in errors
        assert ("carrier pigeon", "there is no handler type 'carrier pigeon'") in errors


def test_a_flood_is_dropped_counted_and_told_and_its_resolution_is_not_sent(pipe: Pipe) -> None:
    go, started = os.pipe()

    def slow(told: dict[str, Any]) -> None:
        pipe.say(told["id"], told["event"])
        os.read(go, 1)

    with function(slow, size=3) as told:
        told.dispatcher.dispatch(event(id="0"))
        assert pipe.line() == ["0", "raised"]  # at work; now three may wait
        for n in range(1, 11):
            told.dispatcher.dispatch(event(id=str(n)))
        lost = [told.reports.get(timeout=DEADLINE) for _ in range(7)]
        assert {alert for alert, _, _ in lost} == {str(n) for n in range(4, 11)}
        assert all(e == "dropped: 3 alerts were waiting for it" for _, _, e in lost)
        assert told.drops == [("python", n) for n in range(1, 8)]
        os.write(started, b"...." * 3)
        assert [told.next() for _ in range(4)] == [None] * 4
        told.dispatcher.dispatch(resolved(id="10"))
        told.dispatcher.dispatch(resolved(id="1"))
        assert told.next() is None
        assert [pipe.line() for _ in range(4)][-1] == ["1", "resolved"]
    os.close(go)
    os.close(started)


def test_a_lost_alert_about_lost_alerts_is_not_counted() -> None:
    def bad(_told: dict[str, Any]) -> None:
        raise ValueError("no")

    with function(bad) as told:
        assert told.tell(event(resource="handlers")) is not None
        assert told.drops == []
        assert told.tell(event(id="other")) is not None
    assert told.drops == [("python", 1)]


def test_whoever_hangs_delays_nobody_else(pipe: Pipe, tmp_path: Path) -> None:
    hung = command(tmp_path / "hang", "sleep 60", timeout=0.3)
    handlers = [hung, handler("python")]
    with Told(*handlers, callables={"python": lambda told: pipe.say(told["id"])}) as told:
        for n in range(5):
            told.dispatcher.dispatch(event(id=str(n)))
        assert [pipe.line() for _ in range(5)] == [[str(n)] for n in range(5)]
        reports = [told.reports.get(timeout=DEADLINE) for _ in range(6)]
        assert [name for _, name, _ in reports] == ["python"] * 5 + ["command"]


def test_a_close_delivers_what_is_queued_within_the_time_limit(pipe: Pipe) -> None:
    with function(lambda told: pipe.say(told["id"])) as told:
        for n in range(50):
            told.dispatcher.dispatch(event(id=str(n)))
        assert told.dispatcher.close() == []
        assert told.reports.qsize() == 50
        told.dispatcher.dispatch(event())
        errors = [told.next() for _ in range(51)]
    assert errors == [None] * 50 + ["agentres has ended"]


def test_a_close_gives_up_at_the_time_limit_and_names_who_did_not_get_all(pipe: Pipe) -> None:
    def hang(_told: dict[str, Any]) -> None:
        pipe.say("hangs")
        signal.pause()

    told = function(hang, timeout=0.3)
    for n in range(3):
        told.dispatcher.dispatch(event(id=str(n)))
    pipe.line()
    began = time.monotonic()
    assert told.dispatcher.close() == ["python"]
    assert time.monotonic() - began < 5
    errors = [told.next() for _ in range(3)]
    assert "was killed" in str(errors[0])
    assert errors[-1] == "not delivered when agentres ended"
    assert told.drops[-1] == ("python", 3)
    pipe.await_end()


def test_a_callback_that_raises_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    heard: queue.Queue[str] = queue.Queue()

    def report(alert: str, *_: object) -> None:
        heard.put(alert)
        raise ValueError("of the caller's")

    dispatcher = Dispatcher(
        [handler("python")], report, lambda *_: None, {"python": lambda _told: None}
    )
    for n in range(2):
        dispatcher.dispatch(event(id=str(n)))
    assert [heard.get(timeout=DEADLINE) for _ in range(2)] == ["0", "1"]
    assert dispatcher.close() == []
    assert "of the caller's" in capfd.readouterr().err


# Python.


def test_a_callable_gets_the_event_in_a_process_of_its_own(pipe: Pipe) -> None:
    def say(told: dict[str, Any]) -> None:
        pipe.say(os.getpid(), told == event(), os.getpgid(0) == os.getpid())

    with function(say) as told:
        assert [told.tell(event()) for _ in range(2)] == [None, None]
        first, second = pipe.line(), pipe.line()
        assert first == second
        assert first[1:] == ["True", "True"]
        assert int(first[0]) != os.getpid()
    pipe.await_end()


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


def test_a_callable_may_be_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "pager-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pager\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agentres.alert_handlers]\npager = json:dumps\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Told(handler("python", callable="pager")) as told:
        assert told.tell(event()) is None
    with Told(handler("python", callable="nobody")) as told:
        assert "no entry point 'nobody'" in str(told.tell(event()))


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
    called: Callable[[dict[str, Any]], object], error: str, pipe: Pipe
) -> None:
    def take(told: dict[str, Any]) -> object:
        if told["id"] == "bad":
            return called(told)
        pipe.say(told["id"])
        return None

    with function(take, timeout=2.0) as told:
        for _ in range(2):
            assert error in str(told.tell(event(id="bad")))
            assert told.tell(event(id="good")) is None
            assert pipe.line() == ["good"]
        assert told.drops == [("python", 1), ("python", 2)]
    pipe.await_end()


def test_a_callable_may_fork_and_wait(pipe: Pipe) -> None:
    def take(_told: dict[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        pipe.say(os.getpid())

    with function(take) as told:
        assert [told.tell(event()) for _ in range(2)] == [None, None]
        assert pipe.line() == pipe.line()


def test_a_worker_killed_between_alerts_is_replaced_before_the_next(pipe: Pipe) -> None:
    with function(lambda _told: pipe.say(os.getpid())) as told:
        assert told.tell(event()) is None
        (pid,) = pipe.line()
        pidfd = os.pidfd_open(int(pid))
        os.kill(int(pid), signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)
        assert told.tell(event()) is None
        assert pipe.line() != [pid]
    pipe.await_end()


def test_a_keeper_that_is_killed_takes_its_worker_with_it(pipe: Pipe) -> None:
    with function(lambda _told: pipe.say(os.getppid())) as told:
        assert told.tell(event()) is None
        os.kill(int(pipe.line()[0]), signal.SIGKILL)
        pipe.await_end()
        for _ in range(2):
            assert told.tell(event()) == "the process that runs it has ended"


# Commands.


def test_a_command_gets_json_and_variables_and_a_session_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""(cat; tr '\\0' '\\n' < /proc/self/environ; cut -d' ' -f5,6 /proc/$$/stat; echo $$) > {out}
echo to nobody"""
    with Told(command(tmp_path / "run", script)) as told:
        assert told.tell(event(message="odd: $(x) \0 \udcff\n", limit=None)) is None
    raw = out.read_bytes()
    text = raw.split(b"\n", 1)
    assert json.loads(text[0])["id"] == "3f9a0c12"
    assert b"AGENTRES_ALERT_MESSAGE=odd: $(x) \\0 \xff\n" in text[1]
    lines = text[1].decode(errors="replace").splitlines()
    assert {
        "AGENTRES_ALERT_ID=3f9a0c12",
        "AGENTRES_ALERT_EVENT=raised",
        "AGENTRES_ALERT_AGENT=x",
        "AGENTRES_ALERT_SEVERITY=WARNING",
        "AGENTRES_ALERT_RESOURCE=memory",
        "AGENTRES_ALERT_RULE=memory",
        "AGENTRES_ALERT_VALUE=815792128",
        "AGENTRES_ALERT_LIMIT=",
    } <= set(lines)
    assert lines[-2].split() == [lines[-1], lines[-1]]  # pgrp, session


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 3", "exited with status 3"),
        (
            "echo first >&2; printf 'why\\033[2J\\n' >&2; exit 3",
            "exited with status 3: why\\x1b[2J",
        ),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("sleep 60", "took longer than 0.3 s and was killed"),
        ("trap '' TERM INT HUP; sleep 60 & sleep 60 & wait", "took longer than 0.3 s"),
        ("kill -STOP $$", "took longer than 0.3 s"),
        ("while :; do echo flood >&2; done", "took longer than 0.3 s"),
        ("exec <&- >&- 2>&-; sleep 60", "took longer than 0.3 s"),
    ],
)
def test_a_command_that_goes_wrong_is_told_and_leaves_nothing(
    tmp_path: Path, script: str, error: str, pipe: Pipe
) -> None:
    # The script holds the pipe open: its end is the end of all of its processes.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Told(command(tmp_path / "run", f"exec 9>{fifo}\n{script}", timeout=0.3)) as told:
        assert str(told.tell(event())).startswith(error)
    await_end(reader)


def await_end(reader: int) -> None:
    """Until the last process that could write has ended."""
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_a_command_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Told(command(tmp_path / "run", f"exec 9>{fifo}\nsleep 60 &")) as told:
        assert told.tell(event()) is None
        await_end(reader)


def test_a_command_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for path, error in (("plain", "permission denied"), ("none", "no such file or directory")):
        with Told(handler("command", argv=[str(tmp_path / path)])) as told:
            assert told.tell(event()) == f"{tmp_path / path}: {error}"


# Webhooks.


class Server(http.server.ThreadingHTTPServer):
    """Answers as it is told: (status, headers), or a function of the connection."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers = list(answers)
        self.got: queue.Queue[tuple[dict[str, str], Any]] = queue.Queue()
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.put((dict(self.headers), json.loads(body)))
        answer = self.server.answers.pop(0) if self.server.answers else (200, {})
        if callable(answer):
            answer(self)
            return
        status, headers = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if status >= 400:
            self.wfile.write(b"the reason\nand more")

    def log_message(self, *_: object) -> None:
        pass


def hang(connection: _Answer) -> None:
    connection.server.released.wait(DEADLINE)


def drip(connection: _Answer) -> None:
    connection.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not connection.server.released.wait(0.05):
        try:
            connection.wfile.write(b"X: y\r\n")
        except OSError:
            return


def cut(connection: _Answer) -> None:
    connection.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def hook(*answers: Answer, **options: Any) -> Iterator[tuple[Told, Server]]:
    server = Server(*answers)
    with Told(handler("webhook", url=server.url, **options)) as told:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield told, server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(webhook, "BACKOFF", 0.02)


def test_a_webhook_posts_the_event() -> None:
    with hook(headers={"Authorization": "Bearer x"}) as (told, server):
        assert told.tell(event()) is None
        headers, body = server.got.get_nowait()
        assert body == event()
        assert headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == "Bearer x"


@pytest.mark.parametrize("answer", [(500, {}), (503, {}), (429, {"Retry-After": "0"}), cut])
def test_a_webhook_tries_again_where_that_may_help(answer: Answer) -> None:
    with hook(answer, answer) as (told, server):
        assert told.tell(event()) is None
        assert server.got.qsize() == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {}), "HTTP 400 Bad Request: the reason"),
        ((404, {}), "HTTP 404 Not Found: the reason"),
        ((302, {"Location": "/other"}), "HTTP 302 Found: redirects are not followed"),
        ((307, {"Location": "file:///etc/passwd"}), "redirects are not followed"),
        ((503, {"Retry-After": "120"}), "(1 attempt, to be tried again after 120 s)"),
        (
            (429, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}),
            "(1 attempt, to be tried again after",
        ),
    ],
)
def test_a_webhook_does_not_try_again_where_that_cannot_help(answer: Answer, error: str) -> None:
    with hook(answer) as (told, server):
        assert error in str(told.tell(event()))
        assert server.got.qsize() == 1


def test_a_webhook_waits_as_long_as_it_is_asked_to() -> None:
    with hook((503, {"Retry-After": "1"})) as (told, server):
        began = time.monotonic()
        assert told.tell(event()) is None
        assert time.monotonic() - began >= 1
        assert server.got.qsize() == 2


def test_a_webhook_gives_up_after_its_retries() -> None:
    with hook(*[(500, {})] * 9, retries=2) as (told, server):
        assert told.tell(event()) == "HTTP 500 Internal Server Error: the reason (3 attempts)"
        assert server.got.qsize() == 3


@pytest.mark.parametrize("answer", [hang, drip])
def test_a_webhook_that_hangs_ends_at_the_time_limit(answer: Answer) -> None:
    with hook(*[answer] * 9, timeout=0.5) as (told, _server):
        began = time.monotonic()
        assert told.tell(event()) is not None
        assert time.monotonic() - began < 5
        _server.released.set()
        _server.answers.clear()
        assert told.tell(event()) is None


def test_a_webhook_nobody_serves() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with Told(handler("webhook", url=f"http://127.0.0.1:{port}/")) as told:
        assert told.tell(event()) == (
            "ConnectionRefusedError: [Errno 111] Connection refused (4 attempts)"
        )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "http:///x", "x"])
def test_a_webhook_speaks_http_alone(url: str) -> None:
    with Told(handler("webhook", url=url)) as told:
        assert "must start with http://" in str(told.tell(event()))


def test_alertmanager_hears_of_an_alert_its_severities_and_its_end() -> None:
    with hook(format="alertmanager") as (told, server):
        for each in (
            event(),
            event(event="updated", severity="CRITICAL", updated=1700000010.0),
            event(event="updated", severity="WARNING", updated=1700000020.0),
            resolved(severity="WARNING"),
        ):
            assert told.tell(each) is None
        posted = [server.got.get_nowait()[1] for _ in range(4)]
    labels = {
        "alertname": "memory",
        "agent": "x",
        "of": "agent",
        "severity": "warning",
        "resource": "memory",
        "instance": "machine",
    }
    assert posted[0][0]["labels"] == labels
    assert posted[0][0]["annotations"]["summary"] == event()["message"]
    assert posted[0][0]["annotations"]["id"] == "3f9a0c12"
    lives = [
        [(a["labels"]["severity"], a["startsAt"][17:23], a.get("endsAt", "")[17:23]) for a in each]
        for each in posted
    ]
    assert lives == [
        [("warning", "20.100", "")],
        [("warning", "20.100", "30.000"), ("critical", "30.000", "")],
        [("critical", "30.000", "40.000"), ("warning", "40.000", "")],
        [("critical", "30.000", "40.000"), ("warning", "40.000", "00.000")],
    ]
    assert posted[0][0]["startsAt"] == "2023-11-14T22:13:20.100Z"


def test_alertmanager_is_told_again_and_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "RESEND", 0.1)
    with hook((400, {}), format="alertmanager") as (told, server):
        assert "HTTP 400" in str(told.tell(event()))
        assert told.next() is None  # the second sending, which nobody asked for
        first, second, third = (server.got.get(timeout=DEADLINE)[1] for _ in range(3))
        assert first == second == third
        assert told.reports.empty()


def test_alertmanager_is_told_of_an_end_for_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    standing = Standing()
    assert standing.due() is None
    standing.take(event())
    assert standing.due() == 60
    standing.take(resolved())
    now[0] += 299
    assert [alert["endsAt"] for alert in standing.again()] == ["2023-11-14T22:15:00.000Z"]
    now[0] += 2
    assert standing.again() == []
    assert standing.due() is None


# The journal.


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "journal"))
        made.settimeout(DEADLINE)
        yield made


def entry(data: bytes) -> dict[str, bytes]:
    """The native protocol, read."""
    found = {}
    while data:
        head, data = data.split(b"\n", 1)
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value
    return found


def test_the_journal_gets_fields(journal: socket.socket) -> None:
    with Told(handler("journal", path=journal.getsockname())) as told:
        assert told.tell(event(agent="two\nlines\nPRIORITY=0")) is None
        got = entry(journal.recv(65536))
        assert told.tell(resolved()) is None
        then = entry(journal.recv(65536))
    assert got["MESSAGE"] == event()["message"].encode()
    assert got["PRIORITY"] == b"4"
    assert got["MESSAGE_ID"].decode() == MESSAGE_ID
    assert got["SYSLOG_IDENTIFIER"] == b"agentres"
    assert got["AGENTRES_ALERT_AGENT"] == b"two\nlines\nPRIORITY=0"
    assert got["AGENTRES_ALERT_SEVERITY"] == b"WARNING"
    assert then["PRIORITY"] == b"5"
    assert then["MESSAGE"].startswith(b"resolved: ")


def test_the_journal_gets_what_is_too_large_in_a_file(journal: socket.socket) -> None:
    long = "long\n" * 100_000
    with Told(handler("journal", path=journal.getsockname())) as told:
        assert told.tell(event(message=long)) is None
        data, fds, _flags, _from = socket.recv_fds(journal, 10, 1)
    assert data == b""
    with open(fds[0], "rb") as file:
        file.seek(0)
        assert entry(file.read())["MESSAGE"] == long.encode()
        with pytest.raises(PermissionError):
            os.write(fds[0], b"x")


def test_the_journal_that_hangs_and_the_one_that_is_not_there(
    journal: socket.socket, tmp_path: Path
) -> None:
    with Told(handler("journal", path=journal.getsockname(), timeout=0.2)) as told:
        errors: list[str | None] = []
        while not errors or errors[-1] is None:
            errors.append(told.tell(event()))
        assert errors[-1] == "the journal took nothing for 0.2 s"
        for _ in range(len(errors) - 1):
            journal.recv(65536)
        assert told.tell(event()) is None
    with Told(handler("journal", path=str(tmp_path / "none"))) as told:
        assert told.tell(event()) == f"{tmp_path / 'none'}: no such file or directory"


# The terminal.


def test_the_line_says_what_how_grave_and_which() -> None:
    assert line(event()) == (
        "agentres: WARNING memory of x is at 76% of its limit (778 MiB of 1.0 GiB) [3f9a0c12]"
    )
    assert line(resolved()).startswith("agentres: RESOLVED memory of x")
    assert line(event(message="a\x1b[2J\nb\udcff"), colour=True) == (
        "agentres: \x1b[33mWARNING\x1b[0m a\\x1b[2J\\nb\\udcff [3f9a0c12]"
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_terminal_gets_colour_unless_it_is_not_wanted(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = terminal
    with Told(handler("terminal", fd=slave)) as told:
        assert told.tell(event()) is None
        assert os.read(master, 4096).decode() == line(event(), colour=True) + "\r\n"
        raw = termios.tcgetattr(slave)
        raw[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, raw)
        assert told.tell(event()) is None
        assert os.read(master, 4096).endswith(b"\r\n")
        assert os.get_blocking(slave)
    monkeypatch.setenv("NO_COLOR", "1")
    with Told(handler("terminal", fd=slave)) as told:
        assert told.tell(event()) is None
        assert os.read(master, 4096).decode() == line(event()) + "\r\n"


def test_a_stopped_terminal_drops_and_delays_nobody(terminal: tuple[int, int], pipe: Pipe) -> None:
    master, slave = terminal
    termios.tcflow(slave, termios.TCOOFF)
    handlers = [handler("terminal", fd=slave, timeout=0.3), handler("python")]
    with Told(*handlers, callables={"python": lambda told: pipe.say(told["id"])}) as told:
        told.dispatcher.dispatch(event())
        assert pipe.line() == ["3f9a0c12"]
        assert told.next() is None
        assert told.next() == "the terminal took nothing for 0.3 s"
        assert told.drops == [("terminal", 1)]
        termios.tcflow(slave, termios.TCOON)
        told.dispatcher.dispatch(event())
        assert told.next() is told.next() is None
        assert b"WARNING" in os.read(master, 4096)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_full_pipe_drops_and_a_closed_one_says_so(kind: str) -> None:
    if kind == "pipe":
        out, into = os.pipe()
    else:
        out, into = (end.detach() for end in socket.socketpair())
    with Told(handler("terminal", fd=into, timeout=0.1, size=10_000)) as told:
        while (error := told.tell(event())) is None:
            pass
        assert error == "the terminal took nothing for 0.1 s"
        os.set_blocking(out, False)
        while select.select([out], [], [], 0)[0]:
            os.read(out, 65536)
        assert told.tell(event()) is None
        assert os.read(out, 65536).decode() == line(event()) + "\n"
        os.close(out)
        assert told.tell(event()) == "stderr: broken pipe"
    os.close(into)


def test_a_file_is_written_where_its_other_writers_are(tmp_path: Path) -> None:
    with (
        open(tmp_path / "log", "wb", buffering=0) as file,
        Told(handler("terminal", fd=file.fileno())) as told,
    ):
        file.write(b"before\n")
        assert told.tell(event()) is None
        file.write(b"after\n")
    assert (tmp_path / "log").read_text() == f"before\n{line(event())}\nafter\n"


# How fast: printed, not asserted tighter than a shared machine allows.


def test_latency(
    pipe: Pipe, tmp_path: Path, journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, list[float]] = {}

    def measure(name: str, told: Told, arrived: Callable[[], float]) -> None:
        for _ in range(30):
            began = time.monotonic()
            told.dispatcher.dispatch(event())
            found.setdefault(name, []).append(1000 * (arrived() - began))
            assert told.next() is None

    with function(lambda _told: pipe.say(time.monotonic())) as told:
        measure("python", told, lambda: float(pipe.line()[0]))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)

    def heard() -> float:
        os.read(keep, 1)
        return time.monotonic()

    with Told(command(tmp_path / "run", f"echo > {fifo}")) as told:
        measure("command", told, heard)
    os.close(keep)

    def got() -> float:
        journal.recv(65536)
        return time.monotonic()

    with Told(handler("journal", path=journal.getsockname())) as told:
        measure("journal", told, got)
    out, into = os.pipe()

    def shown() -> float:
        os.read(out, 4096)
        return time.monotonic()

    with Told(handler("terminal", fd=into)) as told:
        measure("terminal", told, shown)
    os.close(out)
    os.close(into)
    arrivals: queue.Queue[float] = queue.Queue()

    def answer(connection: _Answer) -> None:
        arrivals.put(time.monotonic())
        connection.send_response(200)
        connection.end_headers()

    with hook(*[answer] * 30) as (told, _server):
        measure("webhook", told, lambda: arrivals.get(timeout=DEADLINE))
    with capsys.disabled():
        print()
        for name, times in found.items():
            print(f"{name:10} p50 {statistics.median(times):.2f} ms, max {max(times):.2f} ms")
    assert all(statistics.median(times) < 100 for times in found.values())
