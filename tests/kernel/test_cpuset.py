"""CPUs by number: an agent runs on those that it was given, it cannot leave them, and agents are spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    ROOT,
    RunAgent,
    alike,
    by_daemon,
    home_of,
    once,
    python,
)

from agentres.kernel.cpus import online

CONTROLLER = ROOT or by_daemon()
"""User managers do not delegate cpuset."""

CPUS = set(online())
FIRST, LAST = min(CPUS), max(CPUS)

pytestmark = pytest.mark.skipif(len(CPUS) != 2, reason="written for two CPUs, as the VM has")

Start = Callable[..., Popen[str]]

WIDEN = """
import json, os
def has(): return sorted(os.sched_getaffinity(0))
told = [has()]
for wanted in ({0, 1}, {0}, {1}):
    try: os.sched_setaffinity(0, wanted)
    except OSError: pass
    told.append(has())
if os.fork() == 0:
    print(json.dumps([*told, has()]), flush=True)
    os._exit(0)
os.wait()
"""

TELL = """
import os, sys
line = "\\n"
while line:
    for wanted in line.split(): os.sched_setaffinity(0, {int(cpu) for cpu in wanted.split(",")})
    print(*sorted(os.sched_getaffinity(0)), flush=True)
    line = sys.stdin.readline()
"""


@contextmanager
def bound_to(cpu: int) -> Iterator[None]:
    """This process, and so what it starts, may run on this CPU alone."""
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CPUS)


@contextmanager
def busy(cpu: int) -> Iterator[None]:
    with bound_to(cpu):
        process = Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Agent:
    """One that tells its affinity when it starts, and again for each line."""

    def __init__(self, start: Start, name: str, *options: str) -> None:
        command = [sys.executable, "-S", "-u", "-c", TELL]
        self.process, self.name = start("--name", name, *options, command=command), name
        self.cpus = self.heard()

    def heard(self) -> set[int]:
        assert self.process.stdout is not None
        return {int(cpu) for cpu in self.process.stdout.readline().split()}

    def affinity(self, wanted: str = "") -> set[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{wanted}\n")
        self.process.stdin.flush()
        return self.heard()

    def shown(self) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = json.loads(agentres("show", self.name, "--json"))
        return found

    def end(self) -> str:
        _, err = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0
        return err


def agentres(*words: str) -> str:
    done = subprocess.run([*AGENTRES, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cpu", alike(LAST, FIRST, always=1))
def test_it_runs_where_the_list_says_and_the_controller_keeps_it_there(
    agentres_run: RunAgent, cpu: int
) -> None:
    run = agentres_run("--cpuset", f"{cpu}-{cpu}", command=python(WIDEN), check=True)
    before, *after = json.loads(run.out)
    assert before == [cpu]
    assert run.summary is not None
    assert run.summary["limits"]["cpuset"] == str(cpu)
    told = {row["file"]: row["why"] for row in run.summary["not_enforced"]}
    if CONTROLLER:
        assert {"file": "cpuset.cpus", "text": str(cpu)} in run.summary["enforced"]
        assert "cpuset.cpus" not in told
        assert after == [[cpu]] * 4
    else:
        assert f"it is bound to {cpu} by its affinity, which it can change itself" in told["cpuset.cpus"]  # fmt: skip
        assert "NOT enforced: cpuset.cpus (" in run.err
        assert after == [[FIRST, LAST], [FIRST], [LAST], [LAST]]


@pytest.mark.skipif(not CONTROLLER, reason="there is no cpuset controller for users")
def test_the_kernel_has_the_list(start: Start) -> None:
    agent = Agent(start, "told", "--cpuset", f"{LAST}-{LAST}")
    cgroup = home_of("told") / "agent"
    assert (cgroup / "cpuset.cpus.effective").read_text() == f"{LAST}\n"
    assert (cgroup / "main/cpuset.cpus.effective").read_text() == f"{LAST}\n"
    agent.end()


def test_agents_are_spread_and_told_of(start: Start) -> None:
    agents = [Agent(start, f"spread{number}", "--cpuset", "1") for number in range(4)]
    for one, other in (agents[:2], agents[2:]):
        assert len(one.cpus) == 1
        assert one.cpus | other.cpus == CPUS
    rows = {row["name"]: row for row in json.loads(agentres("capacity", "--json"))["agents"]}
    for agent in agents:
        if not by_daemon():  # it is among the system's agents then
            assert rows[agent.name]["cpuset"] == str(*agent.cpus)
        assert agent.shown()["limits"]["cpuset"] == {
            "standing": str(*agent.cpus), "range": None, "from": "--cpuset",
        }  # fmt: skip
        agent.end()


@once
@pytest.mark.beside_one
@pytest.mark.parametrize("cpu", [FIRST, LAST])
def test_a_busy_cpu_is_left_alone(agentres_run: RunAgent, cpu: int) -> None:
    with busy(cpu):
        run = agentres_run("--cpuset", "1", command=python(WIDEN), check=True)
    (other,) = CPUS - {cpu}
    assert json.loads(run.out)[0] == [other]


@once
def test_all_of_them_are_a_list_as_well(agentres_run: RunAgent) -> None:
    for text in ("2", "max", f"{FIRST},{LAST}"):
        run = agentres_run("--cpuset", text, command=python(WIDEN), check=True)
        assert json.loads(run.out)[0] == [FIRST, LAST]


@once
def test_who_is_bound_itself_says_so_by_a_number_and_overrides_it_by_a_list(
    agentres_run: RunAgent,
) -> None:
    with bound_to(FIRST):
        chosen = agentres_run("--cpuset", "1", command=python(WIDEN), check=True)
        listed = agentres_run("--cpuset", f"{LAST}-{LAST}", command=python(WIDEN), check=True)
        refused = agentres_run("--cpuset", "2", command=["true"])
    assert json.loads(chosen.out)[0] == [FIRST]
    assert json.loads(listed.out)[0] == [LAST]
    assert (refused.status, refused.out) == (125, "")
    assert refused.err == f"agentres: --cpuset 2: there are 1 to be had: {FIRST}\n"


@once
def test_runtimes_are_told_the_lesser_of_both(agentres_run: RunAgent) -> None:
    show = ["sh", "-c", "echo $PYTHON_CPU_COUNT $GOMAXPROCS ${OMP_NUM_THREADS-none}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    for options, told in (
        (["--cpuset", "1", "--cpu", "2"], "1 1 7\n"),
        (["--cpuset", "2", "--cpu", "0.5"], "1 1 7\n"),
        (["--cpuset", "2", "--cpu", "2"], "7\n"),
        (["--cpuset", "1", "--cpu-hint", "off"], "7\n"),
    ):
        assert agentres_run(*options, command=show, env=environment, check=True).out == told


def test_it_is_set_while_it_runs(start: Start) -> None:
    agent = Agent(start, "moved", "--cpuset", f"{FIRST}-{FIRST}")
    note = "" if CONTROLLER else " (by its affinity, which it can change itself)"
    for text, said, cpus in (
        (f"{LAST}-{LAST}", f"{FIRST} -> {LAST}", {LAST}),
        ("2", f"{LAST} -> {FIRST}-{LAST}", CPUS),
        ("max", f"{FIRST}-{LAST} -> no limit", CPUS),
        (f"{FIRST}-{FIRST}", f"no limit -> {FIRST}", {FIRST}),
    ):
        told = note if text != "max" else ""
        assert agentres("set", "moved", "--cpuset", text) == f"cpuset: {said}{told}\n"
        assert agent.affinity() == cpus
    limit = agent.shown()["limits"]["cpuset"]
    assert isinstance(limit, dict)
    assert limit["standing"] == str(FIRST)
    assert limit["from"].startswith(f"set {FIRST}-{FIRST}, by uid {os.geteuid()}")
    for text, why in (
        ("7-7", "--cpuset: CPU 7 is not on this host"),
        ("0", "--cpuset 0: must be above 0"),
    ):
        done = subprocess.run([*AGENTRES, "set", "moved", "--cpuset", text], capture_output=True, text=True, check=False)  # fmt: skip
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert why in done.stderr
    assert agent.affinity() == {FIRST}
    agent.end()


@once
def test_one_that_was_not_bound_is_bound_by_its_affinity_and_that_is_said(start: Start) -> None:
    agent = Agent(start, "later")
    assert agent.cpus == CPUS
    told = agentres("set", "later", "--cpuset", f"{LAST}-{LAST}")
    assert told == f"cpuset: no limit -> {LAST} (by its affinity, which it can change itself)\n"
    assert agent.affinity() == {LAST}
    assert agent.shown()["drift"] == ""
    assert agent.affinity(f"{FIRST},{LAST}") == CPUS
    assert f"is {FIRST}-{LAST}, was set to {LAST}" in str(agent.shown()["drift"])
    agentres("set", "later", "--cpuset", "max")
    assert agent.shown()["drift"] == ""
    assert agent.affinity() == CPUS
    agent.end()


@pytest.mark.skipif(not ROOT, reason="the cgroup with the list is root's")
def test_a_list_that_somebody_rewrites_is_told(start: Start) -> None:
    agent = Agent(start, "rewritten", "--cpuset", f"{LAST}-{LAST}")
    (home_of("rewritten") / "agent/cpuset.cpus").write_text(f"{FIRST}")
    assert agent.affinity() == {FIRST}
    assert agent.shown()["drift"] == f"cpuset.cpus is '{FIRST}', was set to '{LAST}'"
    agent.end()


@once
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("3", "{}: is above the host's 2 CPUs"),
        ("0-2", ": CPU 2 is not on this host, which has 0-1"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    agentres_run: RunAgent, text: str, why: str
) -> None:
    run = agentres_run("--cpuset", text, command=["echo", "ran"])
    assert (run.status, run.out) == (125, "")
    assert run.err == f"agentres: --cpuset{why.format(f' {text}')}\n"


@pytest.mark.skipif(not ROOT, reason="makes a service: root only")
def test_what_a_service_has_not_its_agents_have_not(tmp_path: Path) -> None:
    def within(cpu: int, *options: str) -> subprocess.CompletedProcess[str]:
        service = ["systemd-run", "--quiet", "--pipe", "--wait", "-p", "Delegate=yes", "-p", f"AllowedCPUs={cpu}"]  # fmt: skip
        line = [*service, *AGENTRES, "run", "--quiet", *options, "--", *python(WIDEN)]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)

    refused = within(FIRST, "--cpuset", f"{LAST}-{LAST}")
    assert refused.returncode == 125
    assert f"--cpuset: CPU {LAST} is not for the processes in /sys/fs/cgroup/" in refused.stderr  # fmt: skip
    assert refused.stderr.endswith(f", which have {FIRST}\n")
    for cpu in (FIRST, LAST):
        done = within(cpu, "--cpuset", "1")
        assert json.loads(done.stdout) == [[cpu]] * 5, done.stderr
