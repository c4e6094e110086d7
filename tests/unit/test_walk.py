"""The walk through a directory whose owner puts anything in the way."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentres.kernel import walk


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names(top: int, failed: list[OSError]) -> list[str]:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd, _ in walk.below(top, failed.append)]


def descend(top: int, name: str, levels: int) -> None:
    """Make directories inside one another, which no path reaches."""
    at = os.dup(top)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT, dir_fd=at))
    os.close(at)


def test_a_path_may_be_longer_than_any_call_takes(top: int) -> None:
    descend(top, "d" * 250, 20)
    failed: list[OSError] = []
    assert len(list(walk.below(top, failed.append))) == 22
    assert failed == []


def test_what_is_deeper_than_that_is_told_and_descriptors_stay_few(top: int, tmp_path: Path) -> None:  # fmt: skip
    descend(top, "d", walk.DEEPEST + 40)
    failed: list[OSError] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        assert len(list(walk.below(top, failed.append))) == walk.DEEPEST + 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [str(error) for error in failed] == ["[Errno 0] more than 250 directories inside one another: 'd'"]  # fmt: skip
    shutil.rmtree(tmp_path / "d")


def test_one_that_cannot_be_opened_keeps_no_other_from_it(top: int, tmp_path: Path) -> None:
    for name in ("a", "leased", "z"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("a")
    leased = os.open(tmp_path / "leased", os.O_WRONLY)
    fcntl.fcntl(leased, fcntl.F_SETSIG, 23)  # SIGURG, which does nothing
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    failed: list[OSError] = []
    try:
        found = names(top, failed)
    finally:
        os.close(leased)
    assert sorted(found) == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "z")]
    assert [error.filename for error in failed] == ["leased"]


def test_what_is_not_wanted_is_not_entered(top: int, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").touch()
    inode = (tmp_path / "sub").stat().st_ino
    walked = walk.below(top, pytest.fail, wanted=lambda found: found.st_ino != inode)
    assert len(list(walked)) == 1


def test_a_large_directory_is_not_read_at_once(top: int, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    asked = []
    walked = walk.below(top, pytest.fail, lambda: asked.append(1))
    for _ in range(3):
        next(walked)
    walked.close()
    assert len(asked) == 2
