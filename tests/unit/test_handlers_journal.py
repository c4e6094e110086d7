"""The journal's handler: the fields that it gets, what is too large, and a journal that hangs."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
from dispatched import FORKS_BESIDE_THREADS, Told, event, handler, resolved

from agentres.companion.handlers.journal import MESSAGE_ID

pytestmark = FORKS_BESIDE_THREADS


def entry(data: bytes) -> dict[str, bytes]:
    """The native protocol, read."""
    found = {}
    while data:
        head, data = data.split(b"\n", 1)
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found[name.decode()] = value
    return found


def test_the_journal_gets_fields(fake_journal: socket.socket) -> None:
    with Told(handler("journal", path=fake_journal.getsockname())) as told:
        assert told.tell(event(agent="two\nlines\nPRIORITY=0")) is None
        got = entry(fake_journal.recv(65536))
        assert told.tell(resolved()) is None
        then = entry(fake_journal.recv(65536))
    assert got["MESSAGE"] == event()["message"].encode()
    assert got["PRIORITY"] == b"4"
    assert got["MESSAGE_ID"].decode() == MESSAGE_ID
    assert got["SYSLOG_IDENTIFIER"] == b"agentres"
    assert got["AGENTRES_ALERT_AGENT"] == b"two\nlines\nPRIORITY=0"
    assert got["AGENTRES_ALERT_SEVERITY"] == b"WARNING"
    assert then["PRIORITY"] == b"5"
    assert then["MESSAGE"].startswith(b"resolved: ")


def test_the_journal_gets_what_is_too_large_in_a_file(fake_journal: socket.socket) -> None:
    long = "long\n" * 100_000
    with Told(handler("journal", path=fake_journal.getsockname())) as told:
        assert told.tell(event(message=long)) is None
        data, fds, _flags, _from = socket.recv_fds(fake_journal, 10, 1)
    assert data == b""
    with open(fds[0], "rb") as file:
        file.seek(0)
        assert entry(file.read())["MESSAGE"] == long.encode()
        with pytest.raises(PermissionError):
            os.write(fds[0], b"x")


def test_the_journal_that_hangs_and_the_one_that_is_not_there(
    fake_journal: socket.socket, tmp_path: Path
) -> None:
    with Told(handler("journal", path=fake_journal.getsockname(), timeout=0.2)) as told:
        errors: list[str | None] = []
        while not errors or errors[-1] is None:
            errors.append(told.tell(event()))
        assert errors[-1] == "the journal took nothing for 0.2 s"
        for _ in range(len(errors) - 1):
            fake_journal.recv(65536)
        assert told.tell(event()) is None
    with Told(handler("journal", path=str(tmp_path / "none"))) as told:
        assert told.tell(event()) == f"{tmp_path / 'none'}: no such file or directory"
