"""Command handlers: what a command gets, and what is done when it fails, hangs or leaves processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from dispatched import FORKS_BESIDE_THREADS, Pipe, Told, command, event, handler

pytestmark = FORKS_BESIDE_THREADS


def test_a_command_gets_json_and_variables_and_a_session_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""(cat; tr '\\0' '\\n' < /proc/self/environ; cut -d' ' -f5,6 /proc/$$/stat; echo $$) > {out}
echo to nobody"""
    with Told(command(tmp_path / "run", script)) as told:
        assert told.tell(event(message="odd: $(x) \0 \udcff\n", limit=None)) is None
    raw = out.read_bytes()
    text = raw.split(b"\n", 1)
    assert json.loads(text[0])["id"] == "3f9a0c12"
    assert b"AGENTRES_ALERT_MESSAGE=odd: $(x) \\0 \xff\n" in text[1]
    lines = text[1].decode(errors="replace").splitlines()
    assert {
        "AGENTRES_ALERT_ID=3f9a0c12",
        "AGENTRES_ALERT_EVENT=raised",
        "AGENTRES_ALERT_AGENT=x",
        "AGENTRES_ALERT_SEVERITY=WARNING",
        "AGENTRES_ALERT_RESOURCE=memory",
        "AGENTRES_ALERT_RULE=memory",
        "AGENTRES_ALERT_VALUE=815792128",
        "AGENTRES_ALERT_LIMIT=",
    } <= set(lines)
    assert lines[-2].split() == [lines[-1], lines[-1]]  # pgrp, session


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 3", "exited with status 3"),
        (
            "echo first >&2; printf 'why\\033[2J\\n' >&2; exit 3",
            "exited with status 3: why\\x1b[2J",
        ),
        ("kill -SEGV $$", "was killed by SIGSEGV"),
        ("sleep 60", "took longer than 0.3 s and was killed"),
        ("trap '' TERM INT HUP; sleep 60 & sleep 60 & wait", "took longer than 0.3 s"),
        ("kill -STOP $$", "took longer than 0.3 s"),
        ("while :; do echo flood >&2; done", "took longer than 0.3 s"),
        ("exec <&- >&- 2>&-; sleep 60", "took longer than 0.3 s"),
    ],
)
def test_a_command_that_goes_wrong_is_told_and_leaves_nothing(
    tmp_path: Path, script: str, error: str, handlers_pipe: Pipe
) -> None:
    # The script holds the pipe open: its end is the end of all of its processes.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Told(command(tmp_path / "run", f"exec 9>{fifo}\n{script}", timeout=0.3)) as told:
        assert str(told.tell(event())).startswith(error)
    await_end(reader)


def await_end(reader: int) -> None:
    """Until the last process that could write has ended."""
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_what_a_command_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with Told(command(tmp_path / "run", f"exec 9>{fifo}\nsleep 60 &")) as told:
        assert told.tell(event()) is None
        await_end(reader)


def test_a_command_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for path, error in (("plain", "permission denied"), ("none", "no such file or directory")):
        with Told(handler("command", argv=[str(tmp_path / path)])) as told:
            assert told.tell(event()) == f"{tmp_path / path}: {error}"
