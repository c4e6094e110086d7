"""The line of ``run --progress``, and where it is drawn."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.daemon.keeper import Client
from agentres.kernel.terminal import StatusLine
from agentres.model.stats import Sample
from agentres.run.progress import line

MIB = 1 << 20
NOTHING = Sample()
BEFORE = Sample(usage_usec=1_000_000, rbytes=0, wbytes=5_000_000)
NOW = Sample(
    usage_usec=2_500_000, cpu_limit=2.0, working_set=310 * MIB, memory_limit=512 * MIB, rbytes=0,
    wbytes=9_000_000, pids_current=12, pids_limit=512,
)  # fmt: skip
TOLD = (
    "usage_usec", "rbytes", "wbytes", "rx_bytes", "tx_bytes", "cpu_limit", "working_set", "memory_limit",
    "pids_current", "pids_limit",
)  # fmt: skip


def test_what_it_says() -> None:
    said = line("fixer", 125.4, BEFORE, NOW, 2.0)
    assert said == (
        "fixer 2 min 5 s  cpu 0.75 of 2  memory 310 MiB of 512 MiB  wrote 2 MB/s  tasks 12 of 512"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert line("a", 1.0, NOTHING, NOTHING, 1.0) == "a 1.00 s"
    assert (
        line("a", 1.0, NOTHING, Sample(working_set=5, pids_current=0), 1.0)
        == "a 1.00 s  memory 5 B  tasks 0"
    )
    assert line("a", 1.0, Sample(usage_usec=5), Sample(usage_usec=9), 0.0) == "a 1.00 s"


@given(
    st.text(), st.floats(0, 1e7),
    st.dictionaries(st.sampled_from(TOLD), st.one_of(st.none(), st.integers(0, 1 << 50))),
    st.dictionaries(st.sampled_from(TOLD), st.one_of(st.none(), st.integers(0, 1 << 50))),
    st.floats(0.001, 100),
)  # fmt: skip
def test_any_figures_are_one_line_that_commands_no_terminal(
    name: str, age: float, before: dict[str, int], now: dict[str, int], passed: float
) -> None:
    assert line(name, age, Sample(**before), Sample(**now), passed).isprintable()


@pytest.fixture
def terminal() -> Iterator[int]:
    """The other side of a terminal of 40 columns, which is stderr of a process of its own."""
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        signal.alarm(60)  # who waits for the terminal below would wait for ever
        os.environ["TERM"] = "xterm"
        assert StatusLine.possible()
        status = StatusLine()
        status.clear()  # nothing is there yet
        status.draw("x" * 100)
        os.write(2, b"agent\n")
        status.draw("second")
        status.clear()
        status.clear()
        termios.tcflow(2, termios.TCOOFF)  # Ctrl-S
        status.draw("unseen")
        termios.tcflow(2, termios.TCOON)
        os.environ["TERM"] = "dumb"
        os.write(2, f"possible {StatusLine.possible()}\n".encode())
        # Another process group has the terminal, and whoever else writes is stopped.
        attributes = termios.tcgetattr(2)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(2, termios.TCSANOW, attributes)
        other = os.fork()
        if other == 0:
            os.setpgid(0, 0)
            status.draw("never")
            os._exit(7)
        _, how = os.waitpid(other, os.WUNTRACED)
        os.write(2, f"stopped {os.WIFSTOPPED(how)}\n".encode())
        os._exit(0)
    yield fd
    os.close(fd)
    os.waitpid(pid, 0)


def test_drawn_cut_and_removed(terminal: int) -> None:
    said = b""
    try:
        while data := os.read(terminal, 4096):
            said += data
    except OSError:  # it has ended
        pass
    assert said == (
        b"\r"
        + b"x" * 39
        + b"\x1b[K\ragent\r\n\rsecond\x1b[K\r\r\x1b[Kpossible False\r\nstopped False\r\n"
    )


def test_a_client_that_does_not_read_misses_lines_and_holds_nobody_up() -> None:
    ours, its = socket.socketpair()
    client = Client(ours)
    for number in range(10_000):
        client.draw(f"line {number}")
    client.send(tell="something that must arrive")
    ours.close()
    said = b"".join(iter(lambda: its.recv(1 << 16), b"")).splitlines()
    its.close()
    assert 10 < len(said) < 1000
    assert json.loads(said[0]) == {"progress": "line 0"}
    assert json.loads(said[-1]) == {"tell": "something that must arrive"}
