"""Processes: fork is refused at pids.max, threads count, and it is explained."""

from __future__ import annotations

import pytest
from conftest import RunAgent, alike, python

FORK = """
import os, time
made = []
try:
    while len(made) < 1000:
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        made.append(pid)
except BlockingIOError as error:
    print("refused", error.errno, "after", len(made))
"""

THREADS = """
import threading
stop = threading.Event()
made = 0
try:
    while made < 1000:
        threading.Thread(target=stop.wait).start()
        made += 1
except RuntimeError:
    print("refused after", made)
stop.set()
"""


@pytest.mark.parametrize("limit", alike(12, 40, always=1))
def test_fork_is_refused_at_the_limit(agentres_run: RunAgent, limit: int) -> None:
    run = agentres_run("--pids", str(limit), command=python(FORK), check=True)
    assert run.out.split() == ["refused", "11", "after", str(limit - 1)]  # EAGAIN; 1 is the agent
    assert run.usage["pids_peak"] == limit
    assert run.hits["pids.max"] == 1
    assert f"1 fork was refused at --pids {limit}" in run.err


def test_threads_count(agentres_run: RunAgent) -> None:
    run = agentres_run("--pids", "20", command=python(THREADS), check=True)
    assert "refused after 19" in run.out


def test_a_fork_bomb_is_held_and_removed(agentres_run: RunAgent) -> None:
    bomb = """
import os
def fork():
    try: return os.fork()
    except OSError: return -1
main = os.getpid()
for _ in range(8): fork()
while os.getpid() == main and fork() != -1: pass  # its end is the end of all
"""
    run = agentres_run("--pids", "30", command=python(bomb))
    assert run.usage["pids_peak"] == 30
    assert run.usage["pids_max_events"] > 0
