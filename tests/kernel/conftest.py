"""Fixtures for tests on a real kernel: run an agent, look at what the kernel did, leave nothing.

They run as root and as an ordinary user.  Where this machine cannot run agents at all they are
skipped, or fail with ``--require-kernel`` (in the project's VM, where nothing may be missing).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from _pytest.mark import ParameterSet

from agentres.kernel import delegation
from agentres.model.errors import AgentresError

ROOT = os.geteuid() == 0
AGENTRES = [sys.executable, "-m", "agentres"]

# The emulated VM is up to 20 times slower than a host: deadlines only have to catch a hang.
DEADLINE = 60.0

FAST = '[sampling]\ninterval = "1s"\n'
# Samples so far apart that no alert can have waited for one: the kernel told.
NO_SAMPLES = '[sampling]\ninterval = "1h"\n'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-kernel", action="store_true", help="fail, not skip, where agents cannot run"
    )
    parser.addoption(
        "--but", action="append", default=[], metavar="ID", help="not this test, by its whole id"
    )
    parser.addoption(
        "--daemon", action="store_true", help="run agents by a daemon, which sudo starts"
    )
    parser.addoption(
        "--longest", type=int, default=300, metavar="SECONDS", help="what a test may take"
    )
    parser.addoption("--matrix", action="store_true", help="all cases of what is alike, too")
    parser.addoption(
        "--package",
        metavar="FILE",
        help="the Debian package's tests, for this one: scripts/build-deb --test",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--daemon"):
        return
    directory = tempfile.mkdtemp()
    os.chmod(directory, 0o755)
    socket = f"{directory}/agentres.sock"
    rules = f"{directory}/agentres.toml"
    # Root's file: it takes no other.
    subprocess.run(
        ["sudo", "-n", "sh", "-c", f"umask 022; cat >{rules}"],
        input=b'[ceilings.everybody]\npriority = "1000"\n', check=True,
    )  # fmt: skip
    line = ["sudo", "-n", "env", f"AGENTRES_SOCKET={socket}", f"AGENTRES_CONFIG={rules}"]
    with open(f"{directory}/daemon.log", "wb") as log:  # what it says is nobody's line here
        process = subprocess.Popen(
            [*line, *AGENTRES, "daemon"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    os.environ["AGENTRES_SOCKET"] = socket

    def end() -> None:
        subprocess.run(["sudo", "-n", "pkill", "-TERM", "-P", str(process.pid)], check=False)
        process.wait(DEADLINE)

    config.add_cleanup(end)
    wait_until(lambda: os.path.exists(socket), "the daemon listens")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that waits for ever fails with what runs then; the machine and its other tests go on."""

    def fail(_number: int, _frame: object) -> None:
        line = ["ps", "-eww", "--forest", "-o", "pid,user:8,stat,etimes,args"]
        pytest.fail(subprocess.run(line, capture_output=True, text=True, check=True).stdout)

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(item.config.getoption("--longest"))
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    but = set(config.getoption("--but"))
    absent = [mark for mark in ("matrix", "package") if not config.getoption(f"--{mark}")]
    items[:] = [
        item
        for item in items
        if item.nodeid not in but and not any(map(item.get_closest_marker, absent))
    ]
    try:
        delegation.find()
    except AgentresError as error:
        if config.getoption("--require-kernel"):
            pytest.exit(f"agents cannot run here: {error}", returncode=1)
        for item in items:
            item.add_marker(pytest.mark.skip(reason=str(error)))


@dataclass
class Run:
    """A finished ``agentres run``: exit status, output, and its JSON summary (None if none)."""

    status: int
    out: str
    err: str
    summary: dict[str, Any] | None

    @property
    def usage(self) -> dict[str, Any]:
        assert self.summary is not None, self.err
        return self.summary["usage"]

    @property
    def hits(self) -> dict[str, int]:
        assert self.summary is not None, self.err
        return {hit["limit"]: hit["events"] for hit in self.summary["limits_hit"]}


RunAgent = Callable[..., Run]


def python(code: str, *args: object) -> list[str]:
    """The command for a workload in Python."""
    return [sys.executable, "-S", "-c", code, *map(str, args)]


@pytest.fixture
def agentres_run(tmp_path: Path) -> RunAgent:
    """``agentres_run("--cpu", "1", command=[…])``: run it to its end."""
    numbers = iter(range(1000))

    def run(*options: str, command: Sequence[str], check: bool = False, **kwargs: Any) -> Run:
        file = tmp_path / f"summary-{next(numbers)}.json"
        line = [*AGENTRES, "run", "--summary", str(file), *options, "--", *command]
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=DEADLINE, check=False, **kwargs
        )
        text = file.read_text() if file.exists() else ""
        made = Run(done.returncode, done.stdout, done.stderr, json.loads(text) if text else None)
        if check:
            assert made.status == 0, made.err
        return made

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Like ``agentres_run`` but returns at once; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str, command: Sequence[str], **kwargs: Any) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        line = [*AGENTRES, "run", *options, "--", *command]
        process = subprocess.Popen(line, text=True, **{**streams, **kwargs})
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=DEADLINE)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def answer(environment: dict[str, str], *words: str) -> Any:
    """What a verb answers as JSON."""
    line = [*AGENTRES, *words, "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Watched:
    """``agentres run`` with rules of the test's own and a handler that writes down what it is told."""

    def __init__(self, folder: Path, run: RunAgent) -> None:
        self.folder, self._run = folder, run
        self.heard = folder / "heard"
        self.state = folder / "state"
        self.config = folder / "agentres.toml"
        self.environment = {**os.environ, "AGENTRES_STATE_DIR": str(self.state)}

    def configure(self, text: str) -> list[str]:
        script = f"cat >>{self.heard}"
        self.config.write_text(
            f'{text}\n[handlers.test]\ntype = "command"\nseverity = "INFO"\n'
            f'command = ["/bin/sh", "-c", {json.dumps(script)}]\n'
            "[handlers.terminal]\nenabled = false\n"
        )
        return ["--config", str(self.config)]

    def run(self, text: str, *options: str, command: list[str], **kwargs: Any) -> Run:
        line = [*self.configure(text), *options]
        return self._run(*line, command=command, env=self.environment, **kwargs)

    def events(self, rule: str | None = None) -> list[dict[str, Any]]:
        lines = self.heard.read_text().splitlines() if self.heard.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if rule in (None, event["rule"])]

    def story(self, rule: str) -> list[tuple[str, str]]:
        return [(event["event"], event["severity"]) for event in self.events(rule)]

    def verb(self, *words: str) -> Any:
        return answer(self.environment, *words)


@pytest.fixture
def watched(tmp_path: Path, agentres_run: RunAgent) -> Watched:
    return Watched(tmp_path, agentres_run)


@contextmanager
def reclaimed_by_generations(enabled: bool) -> Iterator[None]:
    """Have the kernel reclaim memory by generations (MGLRU) or by the classic lists, where it has both; root alone may."""
    switch = Path("/sys/kernel/mm/lru_gen/enabled")
    if not switch.exists():
        yield
        return
    before = switch.read_text()
    switch.write_text("y" if enabled else "n")
    try:
        yield
    finally:
        switch.write_text(before)


def wait_until(true: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait for something that has no event to wait on; fails with ``what`` after ``deadline`` s."""
    began = time.monotonic()
    end = began + deadline
    while not true():
        now = time.monotonic()
        assert now < end, f"not within {deadline} s: {what}"
        # A look that starts a program leaves others as much of the processor as it took.
        time.sleep(max(0.02, now - began))
        began = time.monotonic()


def runs(pid: int) -> bool:
    """Whether a process is alive: one that was killed is in /proc until its parent, or init, has looked at it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def by_daemon() -> bool:
    """Whether agents run by the daemon (``--daemon``)."""
    return "AGENTRES_SOCKET" in os.environ


def not_by_daemon(why: str) -> pytest.MarkDecorator:
    """For a test whose subject is another there."""
    return pytest.mark.skipif(by_daemon(), reason=f"by the daemon {why}")


once = pytest.mark.skipif(
    not ROOT,
    reason="what it shows does not depend on who runs it, or hardly: once is enough",
)


def alike(*cases: Any, always: int = 2) -> list[ParameterSet]:
    """Cases of one way through the program: root has them all; others have the first ``always``, and by ``--matrix`` the rest."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if ROOT or number < always else pytest.mark.matrix,
        )
        for number, case in enumerate(cases)
    ]


def agents_cgroup() -> Path:
    """The cgroup of agentres.slice of the manager that has this user's agents."""
    own = delegation.hierarchy()
    if ROOT or by_daemon():
        return Path(own.mount, "agentres.slice")
    uid = os.geteuid()
    return Path(own.mount, f"user.slice/user-{uid}.slice/user@{uid}.service/agentres.slice")


def home_of(name: str) -> Path:
    whose = f"{os.geteuid()}:" if by_daemon() and not ROOT else ""
    return agents_cgroup() / f"agentres-{whose}{name}.scope"


def scopes() -> list[str]:
    """The agents' scopes that this user's manager has loaded, in whatever state: for each it keeps a file."""
    runtime = "/run" if ROOT or by_daemon() else os.environ["XDG_RUNTIME_DIR"]
    return [path.name for path in Path(runtime, "systemd/transient").glob("agentres-*.scope")]


def traces() -> list[str]:
    """Whatever a run could have left: scopes, cgroups, processes in them."""
    found = scopes() if Path("/run/systemd/system").is_dir() else []
    if agents_cgroup().is_dir():
        found += [str(path) for path in agents_cgroup().iterdir() if path.is_dir()]
    return found


def descendants() -> set[int]:
    """This process's children, theirs, and so on; a look at all of /proc takes ten times as long."""
    found, own = [os.getpid()], os.getpid()
    for pid in found:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            assert pid != own, "a kernel with PROC_CHILDREN is wanted"
    return set(found[1:])


def commands(pids: set[int]) -> list[str]:
    """What these processes run, those left out that have gone meanwhile."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(f"{pid} {psutil.Process(pid).name()}")
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no scope, no cgroup, no child process but those of before."""
    before = descendants()
    yield
    # A moment after the run systemd removes the scope, and the keeper of an agent by the daemon ends.
    end = time.monotonic() + 20
    while (left := traces() + commands(descendants() - before)) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []
