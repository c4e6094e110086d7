"""The running agents, on folders with the marks that supervisors write on cgroups."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slice import keep_attributes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentres.kernel import registry
from agentres.kernel.registry import ClaimMark, RunningAgent, mark, running

MARKS = ("user.agentres.name", "user.agentres.started", "user.agentres.supervisor")


@pytest.fixture(autouse=True)
def attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_attributes(tmp_path, monkeypatch)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes the home at a path below the mount, as a supervisor would: the path of its agent/."""

    def home(
        path: str,
        name: str = "a",
        started: float = 1000.5,
        supervisor: int = 42,
        populated: int = 1,
    ) -> Path:
        agent = tmp_path / path / "agent"
        (agent / "main").mkdir(parents=True)
        (agent.parent / "supervisor").mkdir()
        (agent.parent / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
        set_marks(agent, name, started, supervisor)
        return agent

    return home


def set_marks(path: Path, name: str, started: float, supervisor: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mark(fd, name, started, supervisor)
    finally:
        os.close(fd)


def names(mount: Path) -> list[str]:
    return [found.name for found in running(str(mount))]


def test_what_was_marked_is_found_as_it_was(make: Callable[..., Path], tmp_path: Path) -> None:
    agent = make("user.slice/agentres-x.scope", "x", 1700000000.123456, 4711)
    home = str(agent.parent)
    assert running(str(tmp_path)) == [
        RunningAgent("x", str(agent), home, 1700000000.123456, 4711, os.geteuid(), os.geteuid())
    ]


def test_nothing_runs_where_nothing_is(tmp_path: Path) -> None:
    assert running(str(tmp_path)) == []
    assert running(f"{tmp_path}/gone") == []


def test_agents_of_agents_are_found_and_the_oldest_comes_first(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    make("a/b/agentres-late", "late", 30)
    outer = make("agentres-outer", "outer", 10)
    inner = make(f"{outer.relative_to(tmp_path)}/main/agentres-inner", "inner", 20).relative_to(
        tmp_path
    )
    make(f"{inner}/main/agentres-innermost", "innermost", 40)
    assert names(tmp_path) == ["outer", "inner", "late", "innermost"]


def test_an_agent_may_live_deep_down(make: Callable[..., Path], tmp_path: Path) -> None:
    make("/".join("d" * 200), "deep")
    assert names(tmp_path) == ["deep"]


def test_a_directory_of_that_name_without_marks_is_no_agent(tmp_path: Path) -> None:
    (tmp_path / "docker/agent/main").mkdir(parents=True)
    assert running(str(tmp_path)) == []


def test_marks_on_another_directory_are_no_agents(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    agent = make("home")
    set_marks(agent.parent, "fake", 1, 1)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("missing", MARKS)
def test_an_agent_has_all_its_marks(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    make("home")
    real = os.getxattr

    def getxattr(path: str, name: str) -> bytes:
        if name == missing:
            raise OSError(errno.ENODATA, "No data available")
        return real(path, name)

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert running(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", b""),
        ("started", b""),
        ("started", b"yesterday"),
        ("started", b"nan"),
        ("started", b"inf"),
        ("started", b"-1"),
        ("started", b"\xff\xfe"),
        ("supervisor", b"me"),
        ("supervisor", b"0"),
        ("supervisor", b"-1"),
        ("supervisor", b"1" * 30),
        ("supervisor", b"9" * 1000),
        ("supervisor", b"1.5"),
    ],
)
def test_marks_that_make_no_sense_are_no_agent(
    make: Callable[..., Path], tmp_path: Path, attribute: str, value: bytes
) -> None:
    os.setxattr(make("home"), f"user.agentres.{attribute}", value)
    make("other", "sound")
    assert names(tmp_path) == ["sound"]


def test_a_name_in_no_encoding_is_still_text(make: Callable[..., Path], tmp_path: Path) -> None:
    os.setxattr(make("home"), "user.agentres.name", b"\xffx\n")
    (name,) = names(tmp_path)
    assert name == "\\xffx\n"


def test_what_a_killed_run_left_does_not_run(make: Callable[..., Path], tmp_path: Path) -> None:
    make("one", "dead", populated=0)
    make("two", "alive")
    assert names(tmp_path) == ["alive"]


def test_directories_that_cannot_be_read_hide_only_themselves(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("shut/home", "hidden")
    make("gone/home", "vanished")
    make("open/home", "seen")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        if path.endswith("/gone"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(tmp_path) == ["seen"]


def test_symbolic_links_lead_nowhere(make: Callable[..., Path], tmp_path: Path) -> None:
    make("real/home")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/agent").symlink_to(tmp_path / "real/home/agent")
    assert names(tmp_path) == ["a"]


# What an agent claims.


def say(path: Path, claimed: ClaimMark) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        registry.mark_claim(fd, claimed)
    finally:
        os.close(fd)


@given(
    priority=st.integers(1, 1000),
    least=st.integers(0, 1 << 50),
    wants=st.integers(0, 1 << 50),
    since=st.floats(0, 1e9),
    most=st.integers(0, 1 << 50),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_claimed_is_found_as_it_was(
    tmp_path: Path, priority: int, least: int, wants: int, since: float, most: int
) -> None:
    said = ClaimMark(priority, least, wants, since, most)
    say(tmp_path, said)
    assert registry.claim_mark(str(tmp_path)) == said


def test_a_claim_changes_as_a_whole(make: Callable[..., Path]) -> None:
    agent = make("home")
    assert registry.claim_mark(str(agent)) is None
    say(agent, ClaimMark(400, 10, 20, 30.5, 40))
    say(agent, ClaimMark(400, 10))
    assert registry.claim_mark(str(agent)) == ClaimMark(400, 10, 0, 0.0, 0)
    assert registry.claim_mark(f"{agent}/gone") is None


def test_what_is_claimed_is_no_matter_of_whether_it_runs(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    os.setxattr(make("home", "odd"), "user.agentres.claim", b"much")
    assert names(tmp_path) == ["odd"]


def test_where_no_mark_can_be_made_the_claim_says_so(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make("home")

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(OSError, match="not supported"):
        say(agent, ClaimMark())


def test_who_an_agent_is_can_be_told_to_others(make: Callable[..., Path]) -> None:
    agent = make("home", "x", 1700000000.5)
    assert registry.identity(str(agent)) == ("x", 1700000000.5)
    os.setxattr(agent, "user.agentres.name", b"\x1b[31mred\xff\n")
    assert registry.identity(str(agent))[0] == "\\x1b[31mred\\xff\\n"


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSPC])
def test_without_attributes_an_agent_is_not_marked_and_that_is_told(
    make: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", refuse)
    with caplog.at_level(logging.DEBUG):
        agent = make("home", "unmarked")
    assert agent.exists()
    assert running(str(tmp_path)) == []
    assert f"user.agentres.started cannot be set: [Errno {code}]" in caplog.text


def test_a_supervisor_can_mark_and_loads_nothing_dear() -> None:
    script = "import sys; before = set(sys.modules); import agentres.kernel.registry; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert registry.__name__ in loaded
    assert {name for name in loaded if not name.startswith("agentres")} <= {"__future__"}
