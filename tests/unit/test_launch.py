"""The steps of a launch, each of which may fail: what was taken goes back.  Real processes, folders for the cgroups."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_agent import Fake, Guard
from fake_slice import FakeSlice, keep_attributes

from agentres.kernel import actuator, delegation, kmsg, registry
from agentres.kernel.actuator import Actuator
from agentres.model.errors import (
    AgentresError,
    Interrupted,
    NoCgroup,
    NoRoom,
    NotEnforceable,
    NotFound,
)
from agentres.model.limits import ControlLine, Limits, UnenforcedLimit
from agentres.run import admission, supervision
from agentres.run import launch as module
from agentres.run.agent import Behalf, Request, run
from agentres.run.enforcement import Enforcement
from agentres.run.launch import PASSED_ON, Launch

TRUE, SHELL = ("/bin/true",), "/bin/sh"


class Silent:
    """A kernel log that tells of nothing."""

    def oom_kills(self, cgroup: str) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class Agent(Fake):
    """A folder whose processes cannot be killed all at once."""

    def kill_all(self) -> None:
        pass


class Place:
    """Where agents go; ``done`` are the steps in their order, ``fails`` raises in place of a step."""

    kind = "direct"
    view = None

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        keep_attributes(tmp_path, monkeypatch)
        self.path = FakeSlice(tmp_path / "cgroup").agent("a")
        for folder in (self.path, self.path / "main"):
            folder.mkdir(exist_ok=True)
            (folder / "cgroup.procs").touch()
        self.hierarchy = SimpleNamespace(mount=str(tmp_path / "cgroup"))
        self.done: list[str] = []
        self.fails: dict[str, AgentresError] = {}
        self.missing: list[UnenforcedLimit] = []
        self.on: dict[str, Callable[[], object]] = {}
        monkeypatch.setattr(delegation, "find", self.find)
        monkeypatch.setattr(actuator, "Actuator", partial(Actuator, guarded=Guard))
        monkeypatch.setattr(admission, "enter", self.enter)
        monkeypatch.setattr(module, "enforce", self.enforce)
        monkeypatch.setattr(kmsg, "KernelLog", Silent)
        # On a busy machine a command may live long enough to be watched, for which nothing here is made.
        monkeypatch.setattr(supervision, "UNWATCHED_SECONDS", 600.0)

    def step(self, name: str) -> None:
        if error := self.fails.get(name):
            raise error
        self.done.append(name)
        self.on.get(name, lambda: None)()

    def find(self, best_effort: bool, ours: bool) -> Place:
        self.step("find")
        return self

    def acquire(self, *given: Any) -> Place:
        self.step("acquire")
        self.cgroup, self.agent = Fake(str(self.path.parent)), Agent(str(self.path))
        self.main = Fake(str(self.path / "main"))
        return self

    def enter(self, who: Any, early: Callable[[], None], tell: Callable[[str], None]) -> Limits:
        self.step("admit")
        early()
        limits: Limits = who.limits
        return limits

    def enforce(self, *given: Any) -> Enforcement:
        self.step("enforce")
        writer: Actuator = given[-1]
        close = writer.close
        writer.close = lambda: (close(), self.step("let go"))  # type: ignore[method-assign,assignment,func-returns-value]
        return Enforcement([], self.missing, lambda settings: None)  # type: ignore[arg-type,return-value]

    def hold(self, *given: Any) -> None:
        pass

    def adopt(self, pid: int) -> None:
        pass

    def release(self) -> None:
        self.step("release")
        for cgroup in (self.main, self.agent, self.cgroup):
            cgroup.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield Place(tmp_path, monkeypatch)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def request(*command: str, **asked: Any) -> Request:
    return Request(command or TRUE, Limits(), "a", **asked)


def test_a_whole_run(place: Place) -> None:
    told: list[str] = []
    began: list[str] = []
    outcome = run(request(SHELL, "-c", "exit 3", started=began.append), told.append)
    assert outcome.returncode == 3
    assert place.done == ["find", "acquire", "admit", "enforce", "let go", "release"]
    assert began == [str(place.path)]
    assert (outcome.name, outcome.cgroup) == ("a", str(place.path))


def test_what_does_not_hold_is_told_once_it_runs(place: Place) -> None:
    place.missing = [UnenforcedLimit(ControlLine("io.max", ""), "there is no io controller")]
    told: list[str] = []
    outcome = run(request(), told.append)
    assert any("NOT enforced: io.max" in line for line in told)
    assert outcome.not_enforced == place.missing


def test_an_agent_that_cannot_be_put_first_for_the_oom_killer_is_told_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "oom" not in path and may(path, mode))
    told: list[str] = []
    run(request(), told.append)
    assert any("it is not killed before others" in line for line in told)


@pytest.mark.parametrize(
    ("step", "error", "then"),
    [
        ("find", NoCgroup("none", "here"), []),
        ("acquire", NoCgroup("none", "here"), ["find"]),
        ("admit", NoRoom("full", "later"), ["find", "acquire", "release"]),
        ("enforce", NotEnforceable("no"), ["find", "acquire", "admit", "release"]),
    ],
)
def test_a_step_that_fails_gives_back_what_was_taken(
    place: Place, step: str, error: AgentresError, then: list[str]
) -> None:
    place.fails[step] = error
    told: list[str] = []
    with pytest.raises(type(error)):
        run(request(), told.append)
    assert place.done == then
    assert told == []


def test_a_command_that_is_not_there_gives_back_all(place: Place) -> None:
    place.missing = [UnenforcedLimit(ControlLine("io.max", ""), "there is no io controller")]
    told: list[str] = []
    with pytest.raises(NotFound):
        run(request("/no/such/command"), told.append)
    assert place.done == ["find", "acquire", "admit", "enforce", "let go", "release"]
    assert told == []  # one thing only


def test_what_cannot_go_back_keeps_nothing_else_from_it(place: Place) -> None:
    place.fails["let go"] = AgentresError("it stays")
    with pytest.raises(AgentresError, match="it stays"):
        run(request())
    assert place.done[-1] == "release"


@pytest.mark.parametrize("step", ["admit", "enforce"])
def test_a_signal_before_the_command_ends_it(place: Place, step: str) -> None:
    place.on[step] = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    with pytest.raises(Interrupted) as raised:
        run(request())
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert place.done[-1] == "release"


def test_a_window_that_changes_its_size_ends_nothing(place: Place) -> None:
    place.on["admit"] = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)
    assert run(request()).returncode == 0


def test_signals_wait_for_the_agent_but_for_those_that_were_ignored(place: Place) -> None:
    blocked: list[set[int]] = []
    place.on["admit"] = lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))  # type: ignore[arg-type]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(request())
        # A shell's job in the background has others ignored.
        ignored = {each for each in PASSED_ON if signal.getsignal(each) is signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in ignored
    assert set(PASSED_ON) - blocked[0] == ignored


def test_a_lease_is_marked_before_anything_of_the_agent_runs(place: Place) -> None:
    marks: list[bool] = []
    place.on["admit"] = lambda: marks.append(registry.leased(str(place.path)))
    caller = SimpleNamespace(uid=os.getuid(), gid=os.getgid(), groups=(), name="us")
    behalf = Behalf(caller, {}, "", lambda limits, held: limits, lambda: None, leased=True)  # type: ignore[arg-type]
    with Launch(request(behalf=behalf), lambda line: None) as launch:
        launch.acquire()
        launch.admit()
    assert marks == [True]
    assert place.done[-1] == "release"
