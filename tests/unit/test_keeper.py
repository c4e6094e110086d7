"""What a keeper takes over from its client."""

from __future__ import annotations

import subprocess
import sys

import pytest

HAS_MANY = """
import os, socket, sys
from agentres import __version__
from agentres.daemon import keeper, submission
ours, theirs = socket.socketpair()
number = int(sys.argv[1])
os.dup2(theirs.fileno(), number)
body = os.memfd_create("asked")
os.write(body, submission.write(submission.Submission(__version__, {}, ["true"], {}, 0o22)))
socket.send_fds(ours, [submission.request([0, 1, 2], False)], [body, os.open(".", os.O_PATH), 0, 1, 2])
there = socket.socket(fileno=number)
asked, events = keeper._receive(there)
there.send(b"it is there")
print(ours.recv(100).decode(), *asked.command, events, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize("number", [10, 100, 102])
def test_its_connection_stays_whatever_its_number(number: int) -> None:
    """A daemon of many agents has as many descriptors."""
    done = subprocess.run([sys.executable, "-c", HAS_MANY, str(number)], capture_output=True, text=True, check=True)  # fmt: skip
    told, count = done.stdout.rsplit(maxsplit=1)
    assert told == "it is there true -1"
    # The streams, three of sockets, what was sent from here (two), and what lists them.
    assert int(count) == 9
