"""What agents were seen to do to hosts (docs/troubles.md), each by its essence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    FAST,
    NO_SAMPLES,
    ROOT,
    Run,
    Watched,
    agents_cgroup,
    home_of,
    not_by_daemon,
    once,
    python,
    reclaimed_by_generations,
    runs,
    wait_until,
)

from agentres.kernel import process

inside_walls = not_by_daemon("walls keep it from any manager, and from other cgroups")

MANAGER = "" if ROOT else "--user "
LEAVES = f"systemd-run {MANAGER}--quiet --scope sleep 1000 >/dev/null 2>&1 &"
"""A shell's job that has left the agent's cgroup a moment later."""


class Left:
    """An agent that waits for its stdin to end, one of whose processes has left it."""

    def __init__(self, watched: Watched, process: subprocess.Popen[str]) -> None:
        self.process = process
        wait_until(lambda: bool(watched.events("escaped")), "the alert")
        told = watched.events("escaped")[0]["message"]
        assert watched.story("escaped")[0] == ("raised", "EMERGENCY")
        # It may not have executed its command yet.
        found = re.search(r"\S+ \(pid (\d+)\) in (/\S+\.scope)", told)
        assert found is not None, told
        self.pid, self.cgroup = int(found[1]), found[2]

    def end(self) -> str:
        """End the agent; what its supervisor has said."""
        _, told = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0
        return told


Begin = Callable[..., Left]


@pytest.fixture
def leaving(watched: Watched, start: Callable[..., subprocess.Popen[str]]) -> Iterator[Begin]:
    begun: list[Left] = []

    def begin(*options: str, also: str = "") -> Left:
        line = [*watched.configure(FAST), "--name", "leaving", *options]
        shell = ["sh", "-c", f"{LEAVES} {also}exec cat"]
        begun.append(Left(watched, start(*line, command=shell, env=watched.environment)))
        return begun[-1]

    yield begin
    for one in begun:
        if runs(one.pid):
            os.kill(one.pid, signal.SIGKILL)


@inside_walls
def test_who_has_a_manager_move_it_is_told_of_and_ends_with_the_run(leaving: Begin) -> None:
    left = leaving()
    assert runs(left.pid)
    told = left.end()
    assert not runs(left.pid)
    line = f"sleep (pid {left.pid}) in {left.cgroup}, ended"
    assert f"1 process was outside of its cgroup and limits: {line}" in told


@inside_walls
def test_it_is_moved_back(leaving: Begin) -> None:
    left = leaving("--escaped", "move")
    home = str(home_of("leaving"))
    wait_until(lambda: process.cgroup(left.pid) in home + "/agent/main", "it is back")
    assert home.endswith(process.cgroup(left.pid).removesuffix("/agent/main"))
    told = left.end()
    assert "outside of its cgroup" not in told
    assert f"1 process was still running and was ended: sleep (pid {left.pid})" in told


@inside_walls
def test_the_next_one_is_told_of_while_the_first_is_still_outside(leaving: Begin, watched: Watched) -> None:  # fmt: skip
    left = leaving(also=f"sleep 3; {LEAVES} ")
    wait_until(lambda: len(watched.events("escaped")) == 2, "the alert is told anew")
    raised, updated = watched.events("escaped")
    assert (raised["event"], updated["event"]) == ("raised", "updated")
    assert updated["message"].count("(pid ") == 2
    left.end()


@inside_walls
def test_what_has_left_ends_when_the_supervisor_is_killed(leaving: Begin) -> None:
    left = leaving()
    left.process.kill()
    left.process.wait(DEADLINE)
    wait_until(lambda: not runs(left.pid), "what has left is ended")


@inside_walls
def test_it_is_left_where_that_was_asked_for(leaving: Begin) -> None:
    left = leaving("--escaped", "tell")
    told = left.end()
    assert runs(left.pid)
    assert f"sleep (pid {left.pid}) in {left.cgroup}, left running" in told


@inside_walls
def test_one_that_left_between_two_samples_is_found_at_the_end(watched: Watched) -> None:
    gone = "grep -q 'run-.*scope' /proc/$left/cgroup && grep -q sleep /proc/$left/comm"
    # Its environment comes last: in the midst of execve(2) a process has none.  A second later the run is watched, and has alerts.
    shell = f"{LEAVES} left=$!; until {gone} && grep -q AGENTRES_RUN /proc/$left/environ; do :; done; sleep 1"
    run = watched.run(NO_SAMPLES, command=["sh", "-c", shell])
    assert run.status == 0, run.err
    assert run.summary is not None
    (escaped,) = run.summary["escaped"]
    assert (escaped["name"], escaped["fate"]) == ("sleep", "ended")
    assert not runs(escaped["pid"])
    assert watched.story("escaped")[0] == ("raised", "EMERGENCY")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A file on tmpfs, which is there until somebody removes it."""
    path = Path("/dev/shm", f"agentres-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_files_in_tmpfs_are_named_where_memory_is_gone(watched: Watched, in_memory: Path) -> None:
    # What the kernel has counted may be two seconds old, at the time of the kill as well.
    code = f"""
import time
with open("{in_memory}", "wb") as file:
    for number in range(150):
        if number == 60: time.sleep(3)
        file.write(b"x" * (1 << 20))
"""
    run = watched.run(NO_SAMPLES, "--memory", "100M", "--name", "filling", command=python(code))
    assert run.status == 128 + signal.SIGKILL, run.err
    assert run.summary is not None
    assert 50 << 20 <= run.summary["footprint"]["shmem"] <= 100 << 20
    assert run.summary["footprint"]["tmpfs_grown"]["/dev/shm"] >= 80 << 20
    (line,) = [line for line in run.err.splitlines() if "memory limit" in line]
    assert re.search(r"\d\d\.\d MiB files in tmpfs and shared memory", line)
    assert "files in tmpfs are memory until they are removed (grown: /dev/shm by " in line
    message = watched.events("oom_kill")[0]["message"]
    assert re.search(r"\d\d\.\d MiB files in tmpfs and shared memory", message), message
    (kept,) = watched.verb("alerts", "list", "--resource", "oom_kill")["alerts"]
    assert "files in tmpfs and shared memory" in kept["message"]  # it is over by now
    file = watched.folder / "report.json"
    command = [*AGENTRES, "report", "filling", "--output", str(file)]
    subprocess.run(command, env=watched.environment, check=True)
    ((run_of_it,),) = [agent["runs"] for agent in json.loads(file.read_text())["agents"]]
    (reported,) = [alert for alert in run_of_it["alerts"] if alert["resource"] == "oom_kill"]
    assert reported["message"] == kept["message"]


@once
def test_kernel_memory_and_sockets_are_named_where_memory_is_gone(watched: Watched) -> None:
    code = """
import fcntl, mmap, os, socket, time
pipes = [os.pipe() for _ in range(16)]
for _, end in pipes:
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(end, bytes(1 << 20))
listener = socket.create_server(("127.0.0.1", 0))
held = []
for _ in range(16):
    near = socket.create_connection(listener.getsockname())
    near.setblocking(False)
    held += [near, listener.accept()[0]]
    try:
        while True: near.send(bytes(1 << 18))
    except BlockingIOError: pass
time.sleep(3)  # what the kernel has counted may be two seconds old
while True: held.append(bytearray(1 << 20))
"""
    run = watched.run(NO_SAMPLES, "--memory", "100M", command=python(code))
    assert run.status == 128 + signal.SIGKILL, run.err
    assert run.summary is not None
    assert run.summary["footprint"]["kernel"] >= 16 << 20, run.summary
    assert run.summary["footprint"]["sock"] >= 8 << 20, run.summary
    (line,) = [line for line in run.err.splitlines() if "memory limit" in line]
    assert re.search(r"\d\d\.\d MiB kernel memory", line), line
    assert re.search(r"\d\.\d MiB socket buffers", line), line


@once
@pytest.mark.beside_one
def test_one_that_spins_at_its_own_hard_limit_is_told_of(
    watched: Watched, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """It reads more of a file again and again than there is room for, from a slow disk: reclaim always finds some, so that nothing is killed."""
    file = Path(f"/var/tmp/agentres-thrash-{os.getpid()}")
    code = """
import mmap, os, sys
held = mmap.mmap(-1, 19 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(held), 1 << 16): held.madvise(23, at, 1 << 16)
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
for number in range(1 << 30):
    page = number % 3072
    os.pread(file, 4096, page << 12)
    os.pread(file, 4096, max(0, page - 8) << 12)  # what is read again is a working set to the kernel
    if number == 5 * 3072: print("up", flush=True)
"""
    try:
        # By generations it waits for the disk alone: docs/compatibility.md.
        with reclaimed_by_generations(False):
            with file.open("wb") as made:
                made.write(os.urandom(12 << 20))
                os.fsync(made.fileno())
                os.posix_fadvise(made.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            line = [
                *watched.configure(FAST),
                "--name",
                "thrashing",
                "--memory",
                "32M",
                "--io-read",
                "max",
            ]
            agent = start(*line, command=python(code, file), env=watched.environment)
            assert agent.stdout is not None
            assert agent.stdout.readline() == "up\n"
            slower = [*AGENTRES, "set", "thrashing", "--io-read", "20K"]
            subprocess.run(slower, env=watched.environment, check=True)
            wait_until(lambda: bool(watched.events("stalled")), "the alert")
            told = watched.events("stalled")[0]
            assert (told["event"], told["severity"]) == ("raised", "CRITICAL")
            assert (
                "by its own limit, 32.0 MiB: the kernel takes memory back, and has not killed"
                in told["message"]
            )
            assert agent.poll() is None
            agent.terminate()
            agent.wait(DEADLINE)
    finally:
        file.unlink(missing_ok=True)


def test_a_burst_that_no_sample_falls_into_is_drawn_and_learnt(watched: Watched) -> None:
    code = """
import mmap, os, signal, time
piece = mmap.mmap(-1, 162 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 162 << 20, 4096): piece[at] = 1
piece.close()
children = [os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}) for _ in range(20)]
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
time.sleep(2.5)
"""
    run = watched.run(FAST, "--name", "bursts", "--memory", "400M", command=python(code))
    assert run.status == 0, run.err
    samples = watched.verb("history", "bursts")["samples"]
    drawn = [sample["values"]["memory"] for sample in samples]
    assert 162 << 20 <= max(drawn) <= 200 << 20
    assert drawn[-1] < 100 << 20  # started anew, or not above what was before
    processes = [sample["values"]["pids"] for sample in samples]
    assert (max(processes), processes[-1] < 2) == (21, True)
    learnt = watched.verb("predict", "bursts")
    assert learnt["limits"]["memory"]["target"] >= 150 << 20, learnt


@not_by_daemon("an agent's cgroup is root's")
def test_one_that_somebody_throttles_for_ever_is_let_go(
    watched: Watched, start: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import mmap
input()
piece = mmap.mmap(-1, 30 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 30 << 20, 1 << 16): piece.madvise(23, at, 1 << 16)  # MADV_POPULATE_WRITE: faults are dear
"""
    line = [*watched.configure(FAST), "--name", "throttled", "--memory", "400M"]
    agent = start(*line, command=python(code), env=watched.environment)
    high = home_of("throttled") / "agent/memory.high"
    wait_until(lambda: high.exists() and high.read_text() != "max\n", "it is watched")
    high.write_text(str(12 << 20))
    _, told = agent.communicate("\n", timeout=DEADLINE)  # throttled it takes three minutes
    assert agent.returncode == 0, told
    assert watched.story("stalled")[0] == ("raised", "CRITICAL")
    message = watched.events("stalled")[0]["message"]
    assert "memory.high stood at 12.0 MiB, and was lifted" in message


def test_what_is_not_yet_on_the_disk_is_told(watched: Watched) -> None:
    file = Path(f"/var/tmp/agentres-waits-{os.getpid()}")
    code = f"open('{file}', 'wb').write(bytes(30 << 20))"
    try:
        run = watched.run(NO_SAMPLES, "--io-write", "max", "--memory", "400M", command=python(code))
    finally:
        file.unlink(missing_ok=True)
    assert run.status == 0, run.err
    waits = run.usage["file_dirty"] + run.usage["file_writeback"]
    assert waits >= 10 << 20
    if run.usage["wbytes"] is not None:
        # The kernel adds what each processor has counted now and then.
        assert 28 << 20 <= waits + run.usage["wbytes"] <= 32 << 20
    assert re.search(r"; [123]\d\.\d MiB not yet written to the disk", run.err), run.err


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score").read_text())


def resident(pid: int) -> int:
    """Of a process, in pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def test_an_agent_goes_before_its_supervisor_where_the_host_runs_out(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    agent = start("--name", "exposed", command=["cat", "/proc/self/oom_score_adj", "-"])
    assert agent.stdout is not None
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(agent.stdout.readline()) == min(ours + 200, 1000)
    home = home_of("exposed")
    beside = (home / "supervisor/cgroup.procs").read_text().split()
    assert beside
    assert {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) <= ours for pid in beside} == {True}
    assert os.getxattr(home / "supervisor", "user.oomd_avoid") == b"1"
    # What the kernel goes by: an agent has more of it than its supervisor, though that is far larger.
    (own,) = map(int, (home / "agent/main/cgroup.procs").read_text().split())
    supervisor = max(map(int, beside), key=resident)
    assert resident(supervisor) > 2 * resident(own)
    assert oom_score(own) > oom_score(supervisor)
    agent.communicate("")


@pytest.mark.skipif(not ROOT, reason="only root may mount")
def test_an_agent_that_is_killed_in_the_order_of_all_others_is_told_of() -> None:
    read_only = 'mount -o remount,bind,ro /proc && exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", read_only, "-", *AGENTRES, "run", "--"]
    run = subprocess.run(
        [*line, "cat", "/proc/self/oom_score_adj"], capture_output=True, text=True, check=False, timeout=DEADLINE
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == Path("/proc/self/oom_score_adj").read_text()
    assert "NOT enforced: where the host runs out of memory it is not killed before" in run.stderr


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A cgroup that the agent's user may enter: a user may go wherever the user manager has been delegated."""
    path = agents_cgroup().parent / "elsewhere"
    path.mkdir()
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text(), "its processes have ended")
    path.rmdir()


@inside_walls
def test_a_main_process_that_walks_out_is_told_of(watched: Watched, elsewhere: Path) -> None:
    code = f"""
import os, time
open("{elsewhere}/cgroup.procs", "w").write("0")
while not os.path.exists("{watched.folder}/told"): time.sleep(0.01)
"""
    tells = '[handlers.also]\ntype = "command"\nseverity = "EMERGENCY"\n'
    tells += f'command = ["touch", "{watched.folder}/told"]\n'
    run: Run = watched.run(FAST + tells, command=python(code))
    assert run.status == 0, run.err
    assert f"in {elsewhere.relative_to('/sys/fs/cgroup')}" in (
        watched.events("escaped")[0]["message"].replace(" /", " ")
    )


@inside_walls
@once
def test_a_main_process_that_walks_out_is_ended_when_its_time_is_up(watched: Watched, elsewhere: Path) -> None:  # fmt: skip
    shell = f"trap '' TERM; echo 0 >{elsewhere}/cgroup.procs; while :; do sleep 1; done"
    run = watched.run("", "--timeout", "2", command=["sh", "-c", shell])
    assert run.status == 124, run.err
    assert run.summary is not None
    assert run.summary["signal"] == signal.SIGKILL


@pytest.mark.skipif(ROOT, reason="root may signal everybody")
@inside_walls
def test_a_setuid_main_process_is_ended_when_its_time_is_up(watched: Watched) -> None:
    run = watched.run("", "--timeout", "2", command=["sudo", "-n", "sleep", "1000"])
    assert run.status == 124, run.err
