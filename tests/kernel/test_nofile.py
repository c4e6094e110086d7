"""Open files: EMFILE at the limit, and no core dumps."""

from __future__ import annotations

import pytest
from conftest import ROOT, RunAgent, not_by_daemon, python

COUNT = """
import os
highest = 0
try:
    while True:
        highest = os.open("/dev/null", os.O_RDONLY)
except OSError as error:
    print(error.errno, highest + 1)
"""


@pytest.mark.parametrize("limit", ["64", "1000"])
def test_open_fails_at_the_limit(agentres_run: RunAgent, limit: str) -> None:
    options = [] if limit == "1000" else ["--nofile", limit]  # 1000 is the default
    run = agentres_run(*options, command=python(COUNT), check=True)
    assert run.out.split() == ["24", limit]  # EMFILE


@pytest.mark.skipif(not ROOT, reason="root's capabilities")
@not_by_daemon("no agent has capabilities")
@pytest.mark.parametrize("keep", [False, True])
def test_neither_can_one_that_is_root_nor_leave_its_share_of_the_processors(agentres_run: RunAgent, keep: bool) -> None:  # fmt: skip
    options = ["--keep-caps"] if keep else []
    raised = agentres_run(*options, "--nofile", "64", command=["sh", "-c", "ulimit -n 5000"])
    realtime = agentres_run(*options, "--cpu", "0.5", command=["chrt", "--fifo", "1", "true"])
    assert (raised.status == 0, realtime.status == 0) == (keep, keep), raised.err + realtime.err


def test_the_agent_cannot_raise_it(agentres_run: RunAgent) -> None:
    code = """
import resource
print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_CORE))
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65))
except ValueError:
    print("refused")
"""
    options = ["--user", "nobody", "--cwd", "/"] if ROOT else []
    run = agentres_run(
        "--nofile", "64", *options, command=["/usr/bin/python3", "-c", code], check=True
    )
    assert run.out.split() == ["64", "64", "0", "0", "refused"]
