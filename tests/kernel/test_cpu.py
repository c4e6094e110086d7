"""CPU: time over wall is cpu.max, for one process and for many."""

from __future__ import annotations

import os
import sys

import pytest
from conftest import RunAgent, not_by_daemon, python

# What another machine takes of the processors is missing here, and comes in lumps.
pytestmark = [
    pytest.mark.alone,
    not_by_daemon("root writes cpu.max, as in root's own run of this"),
]

SPIN = """
import os, sys, time
processes, seconds = int(sys.argv[1]), float(sys.argv[2])
start = time.monotonic()
for _ in range(processes):
    if os.fork() == 0:
        while time.monotonic() < start + seconds:
            pass
        os._exit(0)
for _ in range(processes):
    os.wait()
used = os.times()
print((used.children_user + used.children_system) / (time.monotonic() - start))
"""

# 50 periods of 100 ms; the first and the last are cut, which is 2 % of them.
SECONDS = 5


@pytest.mark.parametrize(("cores", "processes"), [("0.3", 1), ("120%", 2)])
def test_cpu_time_over_wall_is_the_limit(
    agentres_run: RunAgent, cores: str, processes: int
) -> None:
    limit = float(cores.rstrip("%")) / (100 if "%" in cores else 1)
    rates: list[float] = []
    # Never above; up to it in one of three tries: what the host takes of the machine's processors is missing.
    while not rates or (max(rates) < 0.95 * limit and len(rates) < 3):
        run = agentres_run("--cpu", cores, command=python(SPIN, processes, SECONDS), check=True)
        rates.append(float(run.out))
        assert rates[-1] <= 1.05 * limit
    assert max(rates) >= 0.95 * limit, rates
    assert run.usage["nr_throttled"] > 0
    assert "cpu.max" in run.hits
    assert "throttled" in run.err


def test_below_the_limit_nothing_is_throttled(agentres_run: RunAgent) -> None:
    run = agentres_run("--cpu", "2", command=python(SPIN, 1, 1), check=True)
    assert run.usage["nr_throttled"] == 0
    assert "no limit on CPU, memory, processes or time was hit" in run.err


def test_runtimes_are_told_how_many_processors_they_have(agentres_run: RunAgent) -> None:
    show = ["sh", "-c", "echo ${GOMAXPROCS-none} ${OMP_NUM_THREADS-none}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    told = agentres_run("--cpu", "0.5", command=show, env=environment, check=True)
    assert told.out == "1 7\n"
    off = agentres_run(
        "--cpu", "0.5", "--cpu-hint", "off", command=show, env=environment, check=True
    )
    assert off.out == "none 7\n"
    counts = agentres_run(
        "--cpu", "1", command=["python3", "-c", "import os; print(os.cpu_count())"], check=True
    )
    assert int(counts.out) == (1 if sys.version_info >= (3, 13) else os.cpu_count())
