"""Processes: their names, and those of a cgroup and of all below it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentres.kernel import process


def test_a_name_is_what_the_process_calls_itself() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "open('/proc/self/comm', 'w').write('a) b (c'); print(); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        assert process.name(child.pid) == "a) b (c"
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.name(child.pid) == ""  # a zombie
    assert process.name(child.pid) == ""


def test_who_is_in_a_cgroup_and_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("1\n22\n")
    (tmp_path / "a" / "b" / "cgroup.procs").write_text("333\n")
    assert process.below(str(tmp_path)) == [1, 22, 333]
    assert process.below(str(tmp_path / "gone")) == []


def test_what_may_not_be_read_is_no_empty_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").mkdir()
    with pytest.raises(OSError, match="directory"):
        process.below(str(tmp_path))
