"""What an agent's memory consists of, from memory.stat and its processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentres.kernel import footprint

CODE = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = b'x' * (len(held) // 4096); print(flush=True); sys.stdin.read()"


def test_the_kinds_and_who_has_most(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 10\nkernel_stack 7\nshmem 3\nsock 0\n")
    sizes = (1 << 20, 64 << 20, 32 << 20, 16 << 20)
    lines = [[sys.executable, "-S", "-c", CODE, str(size)] for size in sizes]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen(line, **pipes) for line in lines]
    try:
        for one in started:
            assert one.stdout is not None
            one.stdout.readline()
        gone = subprocess.Popen(["true"])
        gone.wait()
        found = footprint.read(str(tmp_path), [gone.pid, *(one.pid for one in started)])
    finally:
        for one in started:
            one.communicate()
    assert found.kinds == {"anon": 4096, "file": 10, "shmem": 3, "sock": 0}
    assert [each.pid for each in found.biggest] == [started[n].pid for n in (1, 2, 3)]
    assert 64 << 20 <= found.biggest[0].size <= 128 << 20
    assert found.biggest[0].name.startswith("python")


def test_a_cgroup_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        footprint.read(str(tmp_path / "gone"), ())


def test_what_was_in_it_before_somebody_was_killed(tmp_path: Path) -> None:
    stat = tmp_path / "memory.stat"
    stat.write_text("anon 4096\nfile 10\nkernel 1\nshmem 3\n")
    before = b"anon 81920\nfile 20\nkernel 2\nshmem 20\n"
    assert footprint.read(str(tmp_path), (), before).kinds["anon"] == 81920
    assert footprint.read(str(tmp_path), (), b"anon 5\nfile 0\nkernel 0\nshmem 0\n").kinds["anon"] == 4096  # fmt: skip
