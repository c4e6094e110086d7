"""The dashboard over agents that run: on a terminal, commanded from its keyboard, and in a browser's place."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import psutil
import pytest
from conftest import AGENTRES, DEADLINE, ROOT, by_daemon, home_of, once, wait_until
from test_terminal import Screen

from agentres.daemon.keeper import PATIENCE
from agentres.kernel import registry

pytest.importorskip("textual", reason="the dashboard's packages are an extra")

Start = Callable[..., Popen[str]]

TOP = " ".join([*AGENTRES, "top", "--interval", "0.5s"])


_ESCAPES = re.compile(r"\x1b(\[[0-9;?<>=$]*[a-zA-Z]|\][^\x07]*\x07)")


class Plain(Screen):
    """What is drawn, in the order in which it was, without colours and places."""

    def expect(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            # It draws on and on.
            assert ready, f"{pattern!r} not in {self.text[-2000:]!r}"
            assert time.monotonic() < end, f"{pattern!r} not in {self.text[-2000:]!r}"
            text = self.text + os.read(self.fd, 4096).decode(errors="replace")
            self.text = _ESCAPES.sub("", text)
        self.text = self.text[match.end() :]
        return match


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Plain()
    fcntl.ioctl(made.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    yield made
    made.close()


@pytest.fixture
def busy(start: Start) -> Popen[str]:
    """An agent that has half a core and uses it."""
    agent = start("--name", "busy", "--cpu", "0.5", command=["sh", "-c", "while :; do :; done"])
    wait_until(lambda: registry.control(str(home_of("busy") / "agent")) != "", "it takes commands")
    return agent


def test_it_shows_what_runs_and_stops_it(screen: Screen, busy: Popen[str]) -> None:
    # It keeps some files of each agent open, and asks for as many as it may have.
    screen.type(f"(ulimit -Sn 24; {TOP}); echo status $?\n")
    screen.expect(r"busy +(running|throttled)")
    screen.expect(r"0\.[345]\d/0\.50")  # cores
    screen.type("x")
    screen.expect("Stop busy")
    screen.type("y")
    busy.wait(timeout=DEADLINE)
    screen.expect("no agent runs")
    screen.type("q")
    screen.expect("status 0")


def test_it_freezes_and_sets_limits(screen: Screen, busy: Popen[str]) -> None:
    agent = home_of("busy") / "agent"
    screen.type(f"{TOP}\n")
    screen.expect("busy")
    screen.type("l")
    screen.expect("Limits of busy")
    screen.type("pids=77\r")
    wait_until(lambda: (agent / "pids.max").read_text() == "77\n", "the kernel has the limit")
    screen.type("f")
    screen.expect("Freeze busy")
    screen.type("y")
    wait_until(lambda: "frozen 1" in (agent / "cgroup.events").read_text(), "it is frozen")
    screen.expect("frozen")
    screen.type("q")
    screen.expect("prompt> ")
    busy.terminate()  # it is thawed for that
    busy.wait(timeout=DEADLINE)


def test_its_page_has_processes_and_limits(screen: Screen, busy: Popen[str]) -> None:
    fcntl.ioctl(screen.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 70, 100, 0, 0))
    screen.type(f"{TOP}\n")
    screen.expect("busy")
    screen.type("\r")
    screen.expect("main process")
    screen.expect("all limits stand as they were set")
    screen.expect(r"cpu +0\.5")
    screen.expect(r"processes \(1\)")
    screen.expect(r"\d+ \S+ +[\d.-]+ +\S+ +1 sh -c while")
    screen.type("\x1b")
    screen.expect("Detail")
    screen.type("q")
    screen.expect("prompt> ")


def test_one_that_waits_to_begin_is_shown_as_such(screen: Screen, start: Start) -> None:
    most = int(0.79 * psutil.virtual_memory().total)
    full = start("--memory", str(most), command=["sh", "-c", "echo up; read line"])
    assert full.stdout is not None
    assert full.stdout.readline() == "up\n"
    later = start("--memory", "200M:300M", "--wait", command=["sleep", "1000"])
    assert later.stderr is not None
    assert "1. in line" in later.stderr.readline()
    fcntl.ioctl(screen.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 70, 160, 0, 0))
    screen.type(f"{TOP}\n")
    screen.expect("1 running, 1 waiting")
    # Longer than a daemon has patience with a client that it sends something to.
    end = time.monotonic() + PATIENCE + 2
    while time.monotonic() < end:
        assert later.poll() is None, later.stderr.read()
        time.sleep(0.5)
    full.communicate("\n", timeout=DEADLINE)
    screen.expect("1 running[^,]")
    screen.type("\r")
    screen.expect("main process")
    screen.expect("── working set")  # its curves are there, though it waited longer than it ran
    screen.type("\x1b")
    screen.expect("Detail")
    screen.type("q")
    screen.expect("prompt> ")


@pytest.mark.skipif(ROOT or by_daemon(), reason="another user's agent, by one who may not")
def test_what_is_anothers_is_seen_and_not_touched(screen: Screen) -> None:
    line = ["sudo", "-n", *AGENTRES, "run", "--local", "--name", "roots", "--", "sleep", "1000"]
    agent = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    try:
        screen.type(f"{TOP}\n")
        screen.expect(r"roots +(running|throttled)")
        screen.type("x")
        screen.expect("Stop roots")
        screen.type("y")
        screen.expect("only the agent's owner")
        assert agent.poll() is None
    finally:
        subprocess.run(["sudo", "-n", "kill", str(agent.pid)], check=True)
        agent.wait(timeout=DEADLINE)


@once
def test_in_the_place_of_a_browser(busy: Popen[str], tmp_path: Path) -> None:
    """What is sent to be drawn names the agent; agents' supervisors have none of the server's modules."""
    pytest.importorskip("textual_serve", reason="the server's packages are an extra")
    command = [*AGENTRES, "dashboard", "--listen", "0", "--interval", "0.5s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        where = server.stdout.readline().split()[-1]
        host, _, port = where.removeprefix("http://").rstrip("/").partition(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as sock:
            sock.sendall(
                f"GET /ws?width=80&height=24 HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            said = b""
            while b"busy" not in said:
                data = sock.recv(1 << 16)
                assert data, said[-2000:]
                said += data
        server.terminate()
        assert server.wait(timeout=DEADLINE) == 0


def test_no_terminal_is_one_line() -> None:
    done = subprocess.run(
        [*AGENTRES, "top"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "agentres: top draws on a terminal; agentres ps prints the same once\n"
