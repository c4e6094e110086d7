"""Signals to the supervisor reach the agent once; the terminal's reach it from the terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from conftest import AGENTRES, DEADLINE, alike, once, python

Start = Callable[..., Popen[str]]

COUNT = """
import signal, sys, time
names = sys.argv[1:]
seen = []
for name in names:
    signal.signal(getattr(signal, name), lambda number, frame: seen.append(signal.Signals(number).name))
print("ready", flush=True)
while True:
    line = sys.stdin.readline()
    if not line:
        break
    print(*seen, flush=True)
"""


@pytest.mark.parametrize(
    "name",
    alike("SIGTERM", "SIGCONT", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGQUIT"),
)
def test_passed_on_once(start: Start, name: str) -> None:
    process = start(command=python(COUNT, name))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    seen = ""
    while name not in seen:  # the supervisor is another process: ask until it has passed it on
        process.stdin.write("\n")
        process.stdin.flush()
        seen = process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().split() == [name]
    process.stdin.close()
    assert process.wait(60) == 0


def test_term_ends_it_with_143(start: Start) -> None:
    process = start(command=["sh", "-c", "echo ready; exec sleep 1000"])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM


def test_nohup_is_respected(start: Start) -> None:
    show = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    line = ["nohup", *AGENTRES, "run", "--quiet", "--", *python(show)]
    done = subprocess.run(
        line, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )
    assert done.stdout == "True\n"


def test_the_agent_starts_with_clean_signals(start: Start) -> None:
    # A shell's: Python itself ignores SIGPIPE, which would show here.
    process = start("--quiet", command=["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"])
    out, _ = process.communicate(timeout=60)
    assert [line.split()[1] for line in out.splitlines()] == ["0" * 16, "0" * 16]


def test_a_signal_before_the_launch_starts_nothing() -> None:
    # The signal is pending, blocked, when agentres starts: it is there before anything is made.
    code = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "agentres", "run", "--", "echo", "ran"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("text", ["", "[limits]\npids = 50\n"])
def test_an_ignored_sigchld_does_not_lose_the_status(tmp_path: Path, text: str) -> None:
    config = tmp_path / "agentres.toml"  # read by a process of its own
    config.write_text(text)
    run = f"{' '.join(AGENTRES)} run --quiet --config {config}"
    line = f"trap '' CHLD; exec {run} -- sh -c 'exit 7'"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_hang_up_reaches_the_agent_of_a_session_leader() -> None:
    """As under `ssh -t` or in a terminal window: the kernel tells the session's leader alone."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            AGENTRES[0], [*AGENTRES, "run", "--quiet", "--", "sh", "-c", "echo up; exec sleep 1000"]
        )
    seen = b""
    while b"up" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


def test_who_does_not_mind_a_hang_up_is_ended_after_its_grace() -> None:
    """An agent whose connection has gone would go on where nobody hears it."""
    pid, terminal = pty.fork()
    if pid == 0:
        shell = "trap '' HUP; echo up; while :; do sleep 1; done"
        os.execv(AGENTRES[0], [*AGENTRES, "run", "--quiet", "--", "sh", "-c", shell])
    seen = b""
    while b"up" not in seen:
        seen += os.read(terminal, 100)
    before = time.monotonic()
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert 5 <= time.monotonic() - before < 20


@once
def test_one_that_is_to_go_on_after_a_hang_up_does(start: Start) -> None:
    answers = "trap 'echo heard' HUP; echo up; until read line; do :; done; exit 7"
    passed = start("--hangup", "pass", command=["sh", "-c", answers])
    line = ["nohup", *AGENTRES, "run", "--quiet", "--", "sh", "-c", answers]
    ignored = Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for process in (passed, ignored):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
    assert passed.stdout is not None
    assert passed.stdout.readline() == "heard\n"
    time.sleep(6)  # one that is to end has five seconds
    for process in (passed, ignored):
        process.communicate("\n", timeout=DEADLINE)
        assert process.returncode == 7
