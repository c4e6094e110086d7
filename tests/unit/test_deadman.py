"""The shell that takes a tripwire down: real processes, a folder in place of the cgroup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentres.kernel.deadman import Deadman

SUPERVISOR = """
import os, sys, time
from agentres.kernel.deadman import Deadman
mark = next((word for word in sys.argv if "=" in word), "")
uid = next((int(word) for word in sys.argv if word.isdecimal()), None)
kept = Deadman(sys.argv[1], "kill" in sys.argv, mark, uid)
pid = os.fork() if "forks" in sys.argv else -1
if pid:
    os.write(1, b"%d\\n" % pid)
time.sleep(1000)
"""


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "memory.high").write_text("5\n")
    (tmp_path / "cgroup.freeze").write_text("1\n")
    return tmp_path


def wait_until_lifted(cgroup: Path) -> None:
    end = time.monotonic() + 30
    while (cgroup / "cgroup.freeze").read_text() != "0\n":
        assert time.monotonic() < end, "it is frozen still"
        time.sleep(0.01)
    assert (cgroup / "memory.high").read_text() == "max\n"


def wait_until_done(mark: str) -> None:
    """Wait for the deadman that looks for this mark."""
    words = f"\0agentres-deadman\0{mark}\0".encode()
    end = time.monotonic() + 30
    while any(words in _command(pid) for pid in os.listdir("/proc") if pid.isdecimal()):
        assert time.monotonic() < end, "it still looks"
        time.sleep(0.01)


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def begin(*arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    line = [sys.executable, "-c", SUPERVISOR, *arguments]
    process = subprocess.Popen(line, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    return process, child


def test_it_lifts_and_thaws_when_we_are_killed(cgroup: Path) -> None:
    process, _ = begin(str(cgroup))
    process.kill()
    process.wait()
    wait_until_lifted(cgroup)


def test_it_kills_where_it_is_to(cgroup: Path) -> None:
    (cgroup / "cgroup.kill").write_text("")
    process, _ = begin(str(cgroup), "kill")
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while (cgroup / "cgroup.kill").read_text() != "1\n":
        assert time.monotonic() < end, "it is not killed"
        time.sleep(0.01)
    assert (cgroup / "memory.high").read_text() == "5\n"


def test_it_kills_what_has_the_mark_wherever_that_is(cgroup: Path) -> None:
    (cgroup / "cgroup.kill").write_text("")
    runs = [f"RUN={os.getpid()}{end}" for end in ("a", "ab", "b")]
    sleeps = [subprocess.Popen(["env", "-i", run, "sleep", "1000"]) for run in runs]
    try:
        process, _ = begin(str(cgroup), "kill", runs[0])
        process.kill()
        process.wait()
        assert sleeps[0].wait(30) == -signal.SIGKILL
        assert [each.poll() for each in sleeps[1:]] == [None, None]
    finally:
        for each in sleeps:
            each.kill()
            each.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="the processes of others are root's to kill")
@pytest.mark.parametrize("uid", [65534, None])
def test_what_has_the_mark_of_an_agent_and_is_of_another_user_is_left(cgroup: Path, uid: int | None) -> None:  # fmt: skip
    """Its mark may have come to others' programs with its environment; an agent of root's may have started them itself."""
    (cgroup / "cgroup.kill").write_text("")
    run = f"RUN={os.getpid()}"
    line = ["env", "-i", run, "sleep", "1000"]
    own = subprocess.Popen(line, user=65534, group=65534)
    others = subprocess.Popen(line)
    try:
        process, _ = begin(str(cgroup), "kill", run, *([] if uid is None else [str(uid)]))
        process.kill()
        process.wait()
        assert own.wait(30) == -signal.SIGKILL
        if uid is None:
            assert others.wait(30) == -signal.SIGKILL
        else:
            wait_until_done(run)
            assert others.poll() is None
    finally:
        for each in (own, others):
            each.kill()
            each.wait()


def test_what_we_have_forked_does_not_keep_it_from_that(cgroup: Path) -> None:
    """As handlers of a library's user, and whatever that user's program forks."""
    process, child = begin(str(cgroup), "forks")
    process.kill()
    process.wait()
    try:
        wait_until_lifted(cgroup)
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_called_off_it_writes_nothing(cgroup: Path) -> None:
    made = Deadman(str(cgroup), kill=False)
    made.close()
    made.close()
    assert (cgroup / "memory.high").read_text() == "5\n"
