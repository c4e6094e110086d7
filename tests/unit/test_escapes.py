"""Processes that live outside of their run's cgroup: found by their mark or their past, moved back, ended."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentres.kernel import process
from agentres.kernel.escapes import RUN, Escapes
from agentres.model.errors import ControlFileError

# Other processes run these tests too.
MINE = f"f00d{os.getpid()}"

# Whatever cgroup the tests run in, it is none below this one.
ELSEWHERE = "/agentres.slice/a/agent"

Sleeper = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    """A process of the run with this id, which has its own environment by now."""
    started = []

    def begin(run: str, code: str = "") -> subprocess.Popen[bytes]:
        line = [sys.executable, "-S", "-c", f"{code}\nprint(flush=True); input()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(line, env={RUN: run, "A": "1"}, **pipes))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"\n"
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.communicate()


def test_only_those_with_the_mark_are_found(sleeper: Sleeper) -> None:
    escapes = Escapes(MINE, ELSEWHERE)
    marked, other = sleeper(MINE), sleeper(f"{MINE}1")
    found = escapes.look()
    assert [each.pid for each in found] == [marked.pid]
    assert found[0].name.startswith("python")
    assert found[0].cgroup == process.cgroup(marked.pid)
    assert other.poll() is None


def test_one_in_its_cgroup_or_below_has_not_left(sleeper: Sleeper) -> None:
    cgroup = process.cgroup()
    inside = [Escapes(MINE, path) for path in (cgroup, cgroup.rpartition("/")[0])]
    beside = Escapes(MINE, f"{cgroup}x")
    one = sleeper(MINE)
    assert process.cgroup(one.pid) == cgroup
    if cgroup != "/":
        assert [escapes.look() for escapes in inside] == [[], []]
    assert [each.pid for each in beside.look()] == [one.pid]


def test_who_was_there_before_the_run_is_none_of_it(sleeper: Sleeper) -> None:
    one = sleeper(MINE)
    escapes = Escapes(MINE, ELSEWHERE)
    assert escapes.look() == []
    assert escapes.end() == []
    assert one.poll() is None


def test_it_is_told_until_it_ends(sleeper: Sleeper) -> None:
    escapes = Escapes(MINE, ELSEWHERE)
    assert escapes.look() == []
    one = sleeper(MINE)
    for _ in range(4):
        assert [each.pid for each in escapes.look()] == [one.pid]
    one.kill()
    one.wait()
    assert escapes.look() == []


def test_one_that_was_seen_inside_is_found_without_a_mark(sleeper: Sleeper) -> None:
    escapes, one = Escapes(MINE, ELSEWHERE), sleeper("")
    assert escapes.look([one.pid]) == []
    assert [each.pid for each in escapes.look()] == [one.pid]


def test_a_number_that_was_given_out_anew_is_another_process(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sleeper("")
    before = time.clock_gettime(time.CLOCK_BOOTTIME) - 3600
    escapes = Escapes(MINE, ELSEWHERE)
    with monkeypatch.context() as then:
        then.setattr(time, "clock_gettime", lambda clock: before)
        escapes.look([one.pid])
    assert escapes.look() == []


def test_one_whose_environment_comes_late_is_asked_again() -> None:
    escapes = Escapes(MINE, ELSEWHERE)
    escapes.look()
    line = ["/bin/sh", "-c", f"read line; {RUN}={MINE} exec cat"]
    with subprocess.Popen(line, env={}, stdin=subprocess.PIPE) as late:
        assert escapes.look() == []
        assert late.stdin is not None
        late.stdin.write(b"\n")
        late.stdin.flush()
        end = time.monotonic() + 60
        # Its name comes before its environment.
        environ = Path(f"/proc/{late.pid}/environ")
        while RUN.encode() not in environ.read_bytes() and time.monotonic() < end:
            time.sleep(0.001)
        assert [each.pid for each in escapes.look()] == [late.pid]
        late.stdin.close()


def test_one_in_the_midst_of_execve_at_the_end_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    escapes = Escapes(MINE, ELSEWHERE)
    line = ["/bin/sh", "-c", f"echo; read line; {RUN}={MINE} exec cat"]
    with subprocess.Popen(line, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as late:
        assert late.stdin is not None
        assert late.stdout is not None
        stdin, environ = late.stdin, Path(f"/proc/{late.pid}/environ")
        assert late.stdout.readline() == b"\n"
        assert environ.read_bytes() == b""
        monkeypatch.setattr(process, "is_in_execve", lambda pid: pid == late.pid)

        def pause(seconds: float) -> None:
            with suppress(
                BrokenPipeError
            ):  # another process was just ending, and is waited for as well
                os.write(stdin.fileno(), b"\n")
            end = time.monotonic() + 60
            while RUN.encode() not in environ.read_bytes() and time.monotonic() < end:
                pass

        monkeypatch.setattr(time, "sleep", pause)
        assert [(each.pid, each.fate) for each in escapes.end()] == [(late.pid, "ended")]


def test_one_that_has_no_environment_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    escapes = Escapes(MINE, ELSEWHERE)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    line = ["/bin/sh", "-c", "echo; read line"]  # as the deadman
    with subprocess.Popen(line, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        assert bare.stdout is not None
        assert bare.stdout.readline() == b"\n"
        real = process.is_in_execve
        # What others run here may be in the midst of it.
        monkeypatch.setattr(process, "is_in_execve", lambda pid: pid == bare.pid and real(pid))
        assert escapes.end() == []
    assert waits == []


def test_it_ends_them_and_what_they_start_meanwhile(sleeper: Sleeper) -> None:
    code = "import os\nif not os.fork(): os.setsid(); import time; time.sleep(1000)"
    escapes = Escapes(MINE, ELSEWHERE)
    one = sleeper(MINE, code)
    ended = escapes.end()
    assert one.wait(60) == -9
    assert len(ended) == 2
    assert {each.fate for each in ended} == {"ended"}
    assert escapes.look() == []
    assert escapes.end() == []


def test_it_is_moved_back_or_told_why_not(sleeper: Sleeper) -> None:
    moved: list[int] = []
    escapes = Escapes(MINE, ELSEWHERE, moved.append)
    one = sleeper(MINE)
    assert [each.fate for each in escapes.look()] == ["moved back"]
    assert moved == [one.pid]

    def refused(pid: int) -> None:
        raise ControlFileError("cgroup.procs", str(pid), errno.EACCES)

    escapes = Escapes(MINE, ELSEWHERE, refused)
    sleeper(MINE)
    assert [each.fate for each in escapes.look()] == ["not moved back: Permission denied"]


def test_another_users_process_is_left_alone(sleeper: Sleeper) -> None:
    moved: list[int] = []
    escapes = Escapes(MINE, ELSEWHERE, moved.append, uid=os.geteuid() + 1)
    one = sleeper(MINE)
    assert escapes.look() == []
    assert escapes.look([one.pid]) == []
    assert [each.fate for each in escapes.look()] == ["not moved back: another user's"]
    assert moved == []
    assert [each.fate for each in escapes.end()] == ["not ended: it has not the mark"]
    assert one.poll() is None


def test_a_number_is_not_trusted_for_long(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the number of one that was found is not taken for it."""
    escapes, other = Escapes(MINE, ELSEWHERE), Escapes(MINE, ELSEWHERE)
    one = sleeper(MINE)
    for each in (escapes, other, other):  # which looks for the mark no more
        assert len(each.look()) == 1
    monkeypatch.setattr(process, "start_ticks", lambda pid: 7)
    assert other.look() == []
    monkeypatch.undo()
    assert [each.pid for each in escapes.end()] == [one.pid]


def test_one_whose_number_is_anothers_by_now_was_not_moved(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    escapes = Escapes(MINE, ELSEWHERE, moved.append)
    one = sleeper(MINE)
    ticks = process.start_ticks
    looked: list[int] = []

    def anew(pid: int) -> int | None:
        looked.append(pid)
        return ticks(pid) if looked.count(one.pid) == 1 else 7

    monkeypatch.setattr(process, "start_ticks", anew)
    assert [(each.pid, each.fate) for each in escapes.look()] == [(one.pid, "ended")]
    assert moved == []


def test_one_that_left_after_the_last_look_is_found_at_the_end(sleeper: Sleeper) -> None:
    escapes = Escapes(MINE, ELSEWHERE)
    one = sleeper(MINE)
    for _ in range(3):
        assert escapes.look([one.pid]) == []
    assert [each.fate for each in escapes.end()] == ["ended"]
    assert one.wait(60) == -9


def test_a_cgroup_may_have_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    file.write_bytes(b"0::/a\xff\n")
    real = open

    def opened(path: str, *given: object, **named: object) -> object:
        return real(file if path.endswith("/cgroup") else path, *given, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", opened)
    assert process.cgroup(1) == "/a\udcff"
