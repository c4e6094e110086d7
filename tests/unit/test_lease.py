"""The client of the daemon: what becomes of a signal that comes before it knows that the command runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import sys

import pytest

CLIENT = """
import os, socket, sys
from agentres.daemon import lease
from agentres.daemon.submission import Submission
from agentres.model.errors import AgentresError
lease._ANSWER_SECONDS = float(sys.argv[2])
sock = socket.socket(fileno=int(sys.argv[1]))
try:
    told = lease.Lease(sock, lambda line: None).run(Submission("1", {}, ["true"], {}, 0))
    os._exit(told.exit_code)
except AgentresError as error:
    os._exit(error.exit_code)
"""


class Daemon:
    """The other end of one client, which has a terminal of its own."""

    def __init__(self, answers_within: float) -> None:
        theirs, self.sock = socket.socketpair()
        theirs.set_inheritable(True)
        pid, self._terminal = pty.fork()
        if pid == 0:
            line = [sys.executable, "-c", CLIENT, str(theirs.fileno()), str(answers_within)]
            os.execv(sys.executable, line)
        theirs.close()
        self._pid, self._heard = pid, b""
        self.sock.settimeout(60)
        assert self.hear()["do"] == "run"

    def hear(self) -> dict[str, object]:
        while b"\n" not in self._heard:
            self._heard += self.sock.recv(4096)
        line, _, self._heard = self._heard.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def say(self, **fields: object) -> None:
        self.sock.sendall(json.dumps(fields).encode() + b"\n")

    def hang_up(self) -> None:
        os.close(self._terminal)

    def end(self) -> int:
        """Its exit status."""
        _, status = os.waitpid(self._pid, 0)
        self.sock.close()
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def patient() -> Daemon:
    return Daemon(60)


def test_the_supervisor_says_what_a_hang_up_did_to_a_command_that_had_just_begun(
    patient: Daemon,
) -> None:
    patient.hang_up()
    assert patient.hear() == {"signal": signal.SIGHUP, "all": True}
    patient.say(started="/agents/a", name="a")
    patient.say(ended={"exit_code": 143, "lines": [], "summary": {}})
    assert patient.end() == 143


def test_the_supervisor_says_that_nothing_was_begun(patient: Daemon) -> None:
    patient.hang_up()
    patient.hear()
    patient.say(failed={"error": "interrupted", "exit_code": 129})
    assert patient.end() == 129


def test_one_that_does_not_answer_is_not_waited_for() -> None:
    daemon = Daemon(0.1)
    daemon.hang_up()
    daemon.hear()
    assert daemon.end() == 128 + signal.SIGHUP
