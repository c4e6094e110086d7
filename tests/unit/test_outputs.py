"""Where events go: what is open, for us alone; what is not, in one line."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from agentres.cli.outputs import open_events
from agentres.model.errors import UsageError


@pytest.fixture
def inherited() -> int:
    """As a shell gives one: ``3>FILE``."""
    ours, theirs = os.pipe()
    os.close(ours)
    os.set_inheritable(theirs, True)
    return theirs


def test_a_descriptor_of_the_callers_is_inherited_by_nobody_else(inherited: int) -> None:
    assert open_events(str(inherited)) == inherited
    assert not os.get_inheritable(inherited)
    os.close(inherited)


def test_one_that_we_have_opened_ourselves_is_not_the_callers() -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    with pytest.raises(UsageError, match=f"^--events {fd}: bad file descriptor$"):
        open_events(str(fd))
    os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_one_that_cannot_be_written_is_refused(flags: int) -> None:
    fd = os.open(os.devnull, flags)
    os.set_inheritable(fd, True)
    with pytest.raises(UsageError, match=f"^--events {fd}: it is not open for writing$"):
        open_events(str(fd))
    os.close(fd)


def test_stderr_stays_the_agents() -> None:
    fd = open_events("2")
    assert fd > 2
    assert os.path.sameopenfile(fd, 2)
    assert os.get_inheritable(2)
    os.close(fd)


def test_a_socket_will_do() -> None:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    assert open_events(str(theirs.fileno())) == theirs.fileno()
    ours.close()
    theirs.close()


def test_a_file_is_its_owners_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "events"
    for text in (b"a\n", b"b\n"):
        fd = open_events(str(file))
        os.write(fd, text)
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert file.read_text() == "a\nb\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_named_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: nobody reads it"):
        open_events(str(tmp_path / "pipe"))
