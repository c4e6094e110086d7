"""The time between a launch and the main process's end: real processes, and a folder in place of the agent's cgroup."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_agent import Fake

from agentres.kernel.trampoline import Child, Plan
from agentres.model.limits import Limits
from agentres.run import supervision as module
from agentres.run.explain import Outcome
from agentres.run.supervision import Ending, Supervision

SHELL = "/bin/sh"
# Says that it is ready, and then waits; SIGTERM and SIGUSR1 are written down.
LISTENS = """
import os, signal
def note(number, frame):
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGUSR2:
        os._exit(7)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, note)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


class Agent(Fake):
    """A folder whose ``cgroup.kill`` ends the child."""

    child: Child | None = None

    @property
    def kill(self) -> bool:
        return False

    @kill.setter
    def kill(self, value: bool) -> None:
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGKILL)


class Silent:
    """A kernel log that tells of nothing."""

    def oom_kills(self, cgroup: str) -> list[Any]:
        return []


class Watching:
    """What would watch the agent, and the agent that it sees: notes what it is told."""

    def __init__(self) -> None:
        self.subject = self
        self.calls: list[Any] = []
        self.short = "1 GiB of memory"
        self.writes = {"dirtied_bytes": 5}
        self.footprint = None
        self.events = None

    def let_end(self) -> None:
        self.calls.append("let_end")

    def note_end(self) -> None:
        self.calls.append("note_end")

    def finish(self, conclude: Callable[[], Outcome]) -> Outcome:
        outcome = conclude()
        self.calls.append(outcome.returncode)
        return outcome


class Life:
    """One agent and who waits for it."""

    def __init__(
        self, folder: Path, *command: str, heard: tuple[int, ...] = (), hangup_ends: bool = True
    ) -> None:
        for name in ("cgroup.procs", "cgroup.kill"):
            (folder / name).touch()
        self.agent = Agent(str(folder))
        self.out, out = os.pipe()
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        stdout = os.dup(1)
        os.dup2(out, 1)
        try:
            self.child = Child(Plan(command), self.agent)
            self.child.confirm()
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            os.close(out)
        self.agent.child = self.child
        self.watching = Watching()
        self.loop: Any = None
        self.supervision = Supervision(
            self.child,
            self.agent,
            heard,
            Silent(),
            "/agent",
            self.watch,
            attach=self.attach,  # type: ignore[arg-type]
            hangup_ends=hangup_ends,
        )

    def attach(self, loop: Any, supervision: Supervision) -> None:
        self.loop = loop

    def watch(self, loop: Any, on_oom: Callable[[], None]) -> Any:
        self.watching.calls.append("watch")
        return self.watching

    def soon(self, call: Callable[[], object], seconds: float = 0.0) -> None:
        """Have something done while it is waited for."""
        self.loop.call_at(time.monotonic() + seconds, call)

    def end(self, timeout: float | None = None) -> Ending:
        ending = self.supervision.until_the_end(timeout)
        self.supervision.finish(
            lambda: Outcome("a", ("sh",), Limits(), ending.returncode, ending.wall)
        )
        return ending

    def lines(self) -> list[str]:
        """What the agent has written until now."""
        return os.read(self.out, 4096).decode().split()

    def close(self) -> None:
        self.supervision.close()
        self.agent.close()
        os.close(self.out)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


Begin = Callable[..., Life]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    lives: list[Life] = []

    def start(*command: str, **given: Any) -> Life:
        lives.append(Life(tmp_path, *command, **given))
        return lives[-1]

    yield start
    for life in lives:
        life.close()


@pytest.fixture
def listener(begin: Begin) -> Life:
    life = begin(sys.executable, "-S", "-c", LISTENS, heard=(signal.SIGUSR1, signal.SIGUSR2))
    assert life.lines() == ["ready"]
    return life


def test_how_it_ended_and_after_how_long(begin: Begin) -> None:
    ending = begin(SHELL, "-c", "sleep 0.2; exit 3").end()
    assert ending.returncode == 3
    assert 0.2 <= ending.wall < 30
    assert (ending.timed_out, ending.stopped, ending.limits) == (False, "", None)


def test_one_that_ends_by_a_signal(begin: Begin) -> None:
    assert begin(SHELL, "-c", "kill -9 $$").end().returncode == -signal.SIGKILL


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("by_client", [True, False])
def test_one_that_does_not_mind_a_hang_up_is_ended_later(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, ends: bool, by_client: bool
) -> None:
    monkeypatch.setattr(module, "HANGUP_SECONDS", 1.0)  # its shell hears of it after a sleep
    code = "trap 'echo hup' HUP; echo ready; n=0; while [ $n -lt 30 ]; do n=$((n+1)); sleep 0.1; done; exit 3"
    life = begin(SHELL, "-c", code, heard=(signal.SIGHUP,), hangup_ends=ends)
    assert life.lines() == ["ready"]
    if by_client:
        life.soon(lambda: life.supervision.pass_on(signal.SIGHUP, False))
    else:
        life.soon(lambda: signal.pthread_kill(threading.get_ident(), signal.SIGHUP))
    ending = life.end()
    assert ending.returncode == (-signal.SIGTERM if ends else 3)
    assert ending.stopped == (
        "stopped by the hang-up of its terminal or connection" if ends else ""
    )
    assert life.lines() == ["hup"]


def test_a_short_one_is_not_watched(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNWATCHED_SECONDS", 30.0)
    life = begin(SHELL, "-c", "exit 0")
    ending = life.end()
    assert life.watching.calls == []
    assert (ending.short, dict(ending.writes)) == ("", {})


def test_one_that_stays_is_watched_to_its_end(begin: Begin) -> None:
    life = begin(SHELL, "-c", "sleep 0.3; exit 2")
    ending = life.end()
    assert life.watching.calls == ["watch", "note_end", 2]
    assert (ending.short, dict(ending.writes)) == ("1 GiB of memory", {"dirtied_bytes": 5})


def test_signals_go_to_the_main_process(listener: Life) -> None:
    listener.soon(lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
    listener.soon(lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR2), 0.2)
    assert listener.end().returncode == 7
    assert listener.lines() == [str(int(signal.SIGUSR1)), str(int(signal.SIGUSR2))]


def test_when_its_time_is_up_it_is_told_to_end_and_then_killed(listener: Life, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    # Its time counts from its start, and it may have taken long until it was ready: first it is watched.
    ready = time.monotonic() - listener.child.started
    ending = listener.end(timeout=ready + module.UNWATCHED_SECONDS + 0.3)
    assert (ending.timed_out, ending.killed_after_grace) == (True, True)
    assert ending.returncode == -signal.SIGKILL
    assert listener.lines() == [str(int(signal.SIGTERM))]
    assert "let_end" in listener.watching.calls  # nothing keeps it from ending


def test_one_that_has_left_the_cgroup_is_killed_all_the_same(listener: Life, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(Agent, "kill", False)  # nobody is in there
    listener.soon(lambda: listener.supervision.stop(0.1, "uid 5, process 7"))
    ending = listener.end()
    assert (ending.returncode, ending.killed_after_grace) == (-signal.SIGKILL, True)


def test_one_that_takes_no_signals_of_ours_is_killed_after_its_grace(listener: Life, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refused(fd: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", refused)
    listener.soon(lambda: listener.supervision.stop(0.1, "uid 5, process 7"))
    ending = listener.end()
    assert (ending.returncode, ending.killed_after_grace) == (-signal.SIGKILL, True)


def test_one_that_minds_its_time_is_not_killed(begin: Begin) -> None:
    life = begin(SHELL, "-c", "sleep 60 & trap 'kill $!; exit 5' TERM; echo ready; wait")
    assert life.lines() == ["ready"]  # it minds signals from here on, and its time counts on
    ending = life.end(timeout=time.monotonic() - life.child.started + 0.2)
    assert (ending.returncode, ending.timed_out, ending.killed_after_grace) == (5, True, False)


def test_who_stopped_it_is_said(listener: Life) -> None:
    listener.soon(lambda: listener.supervision.stop(0.1, "uid 5, process 7"))
    ending = listener.end()
    assert ending.stopped == "stopped by uid 5, process 7"
    assert ending.killed_after_grace
    assert not ending.timed_out


def test_who_killed_it_is_said(listener: Life) -> None:
    listener.soon(lambda: listener.supervision.kill("uid 0, process 9"))
    ending = listener.end()
    assert (ending.returncode, ending.stopped) == (-signal.SIGKILL, "killed by uid 0, process 9")


def test_what_comes_after_its_end_changes_nothing(begin: Begin) -> None:
    life = begin(SHELL, "-c", "exit 0")
    life.end()
    life.supervision.kill("uid 0, process 9")
    life.supervision.stop(1.0, "uid 0, process 9")
    life.supervision.pass_on(signal.SIGKILL, to_all=True)
    assert life.supervision.ended


def test_a_stop_is_told_of_once_it_holds(listener: Life) -> None:
    told: list[str] = []

    def stop() -> None:
        listener.supervision.pass_on(signal.SIGSTOP, to_all=False)
        listener.supervision.when_stopped(lambda: told.append(state(listener.child.pid)))

    listener.soon(stop)
    listener.soon(lambda: listener.supervision.kill("us"), 0.3)
    listener.end()
    assert told == ["T"]


def test_one_that_does_not_stop_is_not_waited_for_for_ever(listener: Life, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    told: list[float] = []
    listener.soon(lambda: listener.supervision.when_stopped(lambda: told.append(time.monotonic())))
    listener.soon(lambda: listener.supervision.kill("us"), 0.3)
    listener.end()
    assert len(told) == 1


def test_limits_are_told_only_where_a_command_came(begin: Begin) -> None:
    life = begin(SHELL, "-c", "sleep 0.2")
    life.watching.terms = type("Terms", (), {"limits": Limits(pids=5)})  # type: ignore[attr-defined]
    assert life.end().limits is None


def state(pid: int) -> str:
    """Of a process, as ps has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
