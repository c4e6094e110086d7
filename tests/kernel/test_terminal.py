"""The terminal is the agent's: Ctrl-C, Ctrl-Z and fg, window size, raw mode, a shell in it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator

import pytest
from conftest import AGENTRES, DEADLINE, ROOT, not_by_daemon

COMMAND = " ".join([*AGENTRES, "run", "--quiet", "--"])


class Screen:
    """A bash on a pseudo-terminal, typed to and read from."""

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "prompt> "
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.text = ""
        self.expect("prompt> ")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until the pattern comes, and forget what was before it."""
        end = time.monotonic() + DEADLINE
        while not (match := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} not in {self.text!r}"
            self.text += os.read(self.fd, 4096).decode(errors="replace")
        self.text = self.text[match.end() :]
        return match

    def close(self) -> None:
        os.kill(self.pid, signal.SIGHUP)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


def test_ctrl_c_reaches_the_agent_once(screen: Screen) -> None:
    code = (
        "import signal,time,sys\n"
        "seen=[]\n"
        "signal.signal(2, lambda *a: seen.append(1))\n"
        "print('rea' + 'dy', flush=True)\n"
        "while not seen: time.sleep(0.05)\n"
        "time.sleep(0.5)\n"  # long enough for a second one, were it passed on as well
        "print('seen', len(seen))\n"
    )
    screen.type(f'{COMMAND} {sys.executable} -S -c "{code}"; echo status $?\n')
    screen.expect("ready\r\n")
    screen.type("\x03")
    screen.expect("seen 1\r\n")
    screen.expect("status 0\r\n")


def test_ctrl_c_ends_an_agent_that_does_not_mind_it(screen: Screen) -> None:
    screen.type(f"{COMMAND} sh -c 'echo rea''dy; exec sleep 1000'; echo status $?\n")
    screen.expect("ready\r\n")
    screen.type("\x03")
    screen.expect("status 130\r\n")


def test_ctrl_z_stops_both_and_fg_continues(screen: Screen) -> None:
    screen.type(f"{COMMAND} sh -c 'echo rea''dy; read line; echo got $line'\n")
    screen.expect("ready\r\n")
    screen.type("\x1a")
    screen.expect("Stopped")
    screen.expect("prompt> ")
    screen.type("jobs\n")
    screen.expect("Stopped")
    screen.type("fg\n")
    screen.type("hello\n")
    screen.expect("got hello\r\n")
    screen.expect("prompt> ")


def test_window_size_behaves(screen: Screen) -> None:
    code = (
        "import os,signal\n"
        "signal.signal(signal.SIGWINCH, lambda *a: None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})\n"
        "print('rea' + 'dy', flush=True)\n"
        "signal.sigwait({signal.SIGWINCH})\n"
        "print(*os.get_terminal_size(0))\n"
    )
    screen.type(f'{COMMAND} {sys.executable} -S -c "{code}"\n')
    screen.expect("ready\r\n")
    fcntl.ioctl(screen.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    screen.expect("111 33\r\n")


def test_an_interactive_python(screen: Screen) -> None:
    screen.type(f"PYTHON_BASIC_REPL=1 {COMMAND} {sys.executable} -q\n")
    screen.expect(">>> ")
    screen.type("import sys; print(sys.stdin.isatty(), 6 * 7)\n")
    screen.expect("True 42\r\n")
    screen.expect(">>> ")
    screen.type("\x04")
    screen.expect("prompt> ")


@not_by_daemon("the terminal is no session's of the agent's")
def test_a_shell_with_job_control_of_its_own(screen: Screen) -> None:
    screen.type(f"{COMMAND} bash --norc --noprofile --noediting -i; echo status $?\n")
    screen.expect("prompt> ")
    screen.type("sh -c 'echo rea''dy; exec sleep 1000'\n")
    screen.expect("ready\r\n")
    screen.type("\x1a")
    screen.expect("Stopped")
    screen.type("kill -9 %1; fg %1; exit 5\n")
    screen.expect("status 5\r\n")
    screen.type("echo still $((1 + 1))\n")
    screen.expect("still 2\r\n")


def test_raw_mode_is_undone_when_the_agent_is_killed(screen: Screen) -> None:
    code = (
        "import os,tty\n"
        "tty.setraw(0)\n"
        "os.write(1, b'be' + b'gun')\n"
        "os.read(0, 1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    screen.type(f'{COMMAND} {sys.executable} -S -c "{code}"; echo status $?; stty -a\n')
    screen.expect("begun")
    screen.type("x")
    screen.expect("status 137\r\n")
    screen.expect(r"[ ;]icanon")


def test_a_pipeline_is_one_job(screen: Screen) -> None:
    screen.type(f"echo hello | {COMMAND} cat | tr a-z A-Z\n")
    screen.expect("HELLO\r\n")
    screen.expect("prompt> ")


def test_a_run_that_ends_in_the_background_leaves_the_terminal_alone(screen: Screen) -> None:
    screen.type(f"{COMMAND} sh -c 'echo rea''dy; sleep 3'\n")
    screen.expect("ready\r\n")
    screen.type("\x1a")
    screen.expect("Stopped")
    screen.type("bg; wait; echo status $?\n")
    screen.expect("status 0\r\n")
    screen.type("echo still $((1 + 1))\n")
    screen.expect("still 2\r\n")


def test_ctrl_c_reaches_an_agent_in_a_session_of_its_own(screen: Screen) -> None:
    screen.type(f"{COMMAND} setsid --wait sh -c 'echo rea''dy; exec sleep 1000'; echo status $?\n")
    screen.expect("ready\r\n")
    screen.type("\x03")
    screen.expect("status 130\r\n")


def test_progress_is_drawn_in_place_and_gone_before_the_end_is_told(screen: Screen) -> None:
    run = " ".join([*AGENTRES, "run", "--progress", "--name", "shown", "--memory", "64M"])
    code = "held = bytearray(20 << 20); import time; time.sleep(4); print('do' + 'ne')"
    screen.type(f'export TERM=xterm; {run} -- {sys.executable} -S -c "{code}"; echo status $?\n')
    for _ in range(2):
        match = screen.expect(
            r"\rshown ([\d.]+) s  cpu [\d.]+ of \S+  memory ([\d.]+) MiB of 64.0 MiB.*?\x1b\[K\r"
        )
    assert 20 <= float(match[2]) <= 64
    screen.expect("done\r\n")
    screen.expect(r"\r\x1b\[Kagentres: shown exited 0")
    screen.expect("status 0\r\n")


def test_progress_is_for_a_terminal_alone(screen: Screen) -> None:
    run = " ".join([*AGENTRES, "run", "--progress", "--name", "shown"])
    screen.type(
        f"TERM=xterm {run} -- sleep 2 2>/tmp/agentres-progress; cat -v /tmp/agentres-progress\n"
    )
    match = screen.expect(r"(?s)agentres: shown exited 0.*?prompt> ")
    assert "^M" not in match[0]
    screen.type("rm /tmp/agentres-progress\n")


def test_progress_does_not_stop_a_job_in_the_background(screen: Screen) -> None:
    run = " ".join([*AGENTRES, "run", "--progress", "--name", "shown"])
    # What is not enforced, or not by a wall, is told once the command runs, and telling it stops a job as it does any other.
    for rate in ("net-in", "net-out", "io-read", "io-write"):
        run += f" --{rate} max"
    screen.type(f"export TERM=xterm; {run} -- sh -c 'echo up >&2; exec sleep 1000' </dev/null &\n")
    screen.expect("(?s)(?=.*keeps it from that\r\n).*up\r\n" if ROOT else "up\r\n")
    screen.type("stty tostop; sleep 3; jobs -r | wc -l\n")
    screen.expect("\r\n1\r\n")
    screen.type("stty -tostop; fg\n")
    screen.expect(r"\rshown ")  # and there it is
    screen.type("\x03")
    screen.expect("prompt> ")
