"""A launch in a folder that stands for a cgroup: nothing is executed before what keeps it safe is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from agentres.kernel.cgroup import Cgroup
from agentres.kernel.trampoline import Child, Plan
from agentres.model.errors import NotFound, SetupError


@pytest.fixture
def cgroup(tmp_path: Path) -> Cgroup:
    (tmp_path / "cgroup.procs").write_text("")
    return Cgroup(str(tmp_path))


def test_what_keeps_it_safe_is_there_before_the_command_runs(
    cgroup: Cgroup, tmp_path: Path
) -> None:
    safe = tmp_path / "safe"
    launch = Child(Plan(("test", "-e", str(safe))), cgroup, lambda launch: safe.touch())
    launch.confirm()
    assert os.waitstatus_to_exitcode(os.waitpid(launch.pid, 0)[1]) == 0
    launch.close()


def test_where_that_fails_nothing_is_executed_and_nothing_left(
    cgroup: Cgroup, tmp_path: Path
) -> None:
    def fail(launch: Child) -> None:
        raise OSError("no shell")

    children = psutil.Process().children()
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no shell"):
        Child(Plan(("touch", str(tmp_path / "made"))), cgroup, fail)
    assert not (tmp_path / "made").exists()
    assert psutil.Process().children() == children
    assert len(os.listdir("/proc/self/fd")) == files


def test_when_we_die_before_that_nothing_is_executed(cgroup: Cgroup, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        Child(Plan(("touch", str(tmp_path / "made"))), cgroup, lambda launch: os._exit(7))
        os._exit(1)
    os.close(write_end)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert os.read(read_end, 1) == b""  # the child has ended as well: all who held it are gone
    os.close(read_end)
    assert not (tmp_path / "made").exists()


def test_a_child_that_fails_early_is_told_of_all_the_same(cgroup: Cgroup, tmp_path: Path) -> None:
    launch = Child(Plan(("no-such-command-anywhere",)), cgroup)
    with pytest.raises(NotFound):
        launch.confirm()


def test_its_affinity_is_what_is_asked_for_or_the_reason(cgroup: Cgroup, tmp_path: Path) -> None:
    told = tmp_path / "told"
    last = max(os.sched_getaffinity(0))
    code = "import os, sys; open(sys.argv[1], 'w').write(str(os.sched_getaffinity(0)))"
    launch = Child(Plan((sys.executable, "-S", "-c", code, str(told)), cpus=(last,)), cgroup)
    launch.confirm()
    assert os.waitstatus_to_exitcode(os.waitpid(launch.pid, 0)[1]) == 0
    launch.close()
    assert told.read_text() == str({last})
    with pytest.raises(SetupError, match="cannot bind the agent to its CPUs: invalid argument"):
        Child(Plan(("true",), cpus=(8191,)), cgroup).confirm()


def test_a_directory_that_is_not_there_is_the_reason(cgroup: Cgroup, tmp_path: Path) -> None:
    """The child is gone by the time that it would be let through."""

    def wait_for_its_end(launch: Child) -> None:
        assert not launch.wait_until_ready()
        os.waitid(os.P_PIDFD, launch.pidfd, os.WEXITED | os.WNOWAIT)

    launch = Child(Plan(("true",), cwd=str(tmp_path / "gone")), cgroup, wait_for_its_end)
    with pytest.raises(Exception, match="cannot enter"):
        launch.confirm()
