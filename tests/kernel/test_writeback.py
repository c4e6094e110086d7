"""Disk: the rate holds for files that belong to somebody else, and where there is no io controller: by pausing the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from conftest import (
    DEADLINE,
    ROOT,
    RunAgent,
    Watched,
    home_of,
    not_by_daemon,
    once,
    python,
    wait_until,
)
from test_io import IO_DELEGATED, MB, needs_io

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _writeback import load as loads

LITTLE = ("--memory", "64M")
SIZE = 32 << 20

READ = """
import mmap, os, sys, time
size = os.stat(sys.argv[1]).st_size
began, count = time.monotonic(), 0
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 19)
while time.monotonic() < began + 6:
    count += os.preadv(fd, [block], count % size)
print(count / (time.monotonic() - began))
"""

# As test_io has it: a file of its own, written as fast as it goes.
OWN = """
import mmap, os, sys
flags = os.O_CREAT | os.O_WRONLY | (os.O_DIRECT if sys.argv[3] == "direct" else 0)
block = mmap.mmap(-1, 1 << 19)
block.write(os.urandom(1 << 19))
fd = os.open(sys.argv[1], flags)
for _ in range(int(sys.argv[2]) // len(block)):
    os.write(fd, block)
os.fsync(fd)
"""

# One process overwrites as fast as it may; the other says how long it was kept from running at the most.
BESIDE = """
import os, sys, time
if (pid := os.fork()) == 0:
    fd, block = os.open(sys.argv[1], os.O_WRONLY), os.urandom(1 << 18)
    while True:
        for n in range(8):
            os.pwrite(fd, block, n * len(block))
        os.fsync(fd)
longest, last, end = 0.0, time.monotonic(), time.monotonic() + 6
while last < end:
    time.sleep(0.001)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
os.kill(pid, 9)
print(longest)
"""


def load(
    how: str, path: Path, processes: int = 1, kib: int = 512, seconds: int = 5, speed: int = 0
) -> list[str]:
    """What writes to the file for so long, and prints what the disk was written meanwhile, bytes a second."""
    return [
        sys.executable,
        loads.__file__,
        how,
        str(path),
        str(processes),
        str(seconds),
        str(kib),
        str(speed),
    ]


WAYS = ("overwrite", "append", "mmap", "sqlite", "short", "many")


def each_rate_and_way() -> list[ParameterSet]:
    """MB a second, and how it is written; each with each is for --matrix, what shows each of them once for always."""

    def case(rate: int, how: str) -> ParameterSet:
        always = (rate, how) == (8, "overwrite") or (ROOT and (rate == 8 or how == "overwrite"))
        return pytest.param(rate, how, marks=() if always else pytest.mark.matrix)

    # A database in the tests' VM does not come to 50 MB/s, and its checkpoints write at once what 2 MB/s have in two seconds.
    databases = {(50, "sqlite"), (2, "sqlite")}
    return [case(*each) for each in product((8, 2, 50), WAYS) if each not in databases]


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A file on a disk that this process, which is no agent's, has just written and keeps in the cache."""
    path = Path("/var/tmp", f"agentres-{tmp_path.parent.name}-{tmp_path.name}")
    with path.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
        os.sync()  # what others have left is not to be written meanwhile
        yield path
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def assert_paced(
    run: RunAgent,
    rate: int,
    how: str,
    path: Path,
    processes: int = 1,
) -> None:
    """What came to the disk is within 10 % of the rate, in one of four tries.

    A supervisor that waits for a processor lets as much through meanwhile as the disk takes, and makes it good only later.
    Processes that are started for each piece want more of a processor than there may be: half of the rate is enough there.
    """
    rates: list[float] = []
    least = 0.5 if how == "short" else 0.9
    # Little is written at a time, so that the last of it is no large part.
    kib = max(64, max(512 if how == "append" else 256, 64 * rate) // processes)
    command = load(how, path, processes, kib)
    while len(rates) < 4:
        found = run("--io-write", f"{rate}MB/s", *LITTLE, command=command, check=True)
        if how != "append":  # what is appended may be billed from the begin on
            assert found.usage["paused_usec"] > 0, found.err
        rates.append(float(found.out) / (rate * MB))
        print(f"{rates[-1]:.3f} of the rate")
        if least <= rates[-1] <= 1.1:
            return
    pytest.fail(f"{rates} of the rate")


def made_before(path: Path) -> Path:
    """A database in WAL mode, by a process that is no agent's."""
    database = path.with_name(f"{path.name}.db")
    folder = str(Path(loads.__file__).parent)
    code = f"import os, sys; sys.path.insert(0, {folder!r}); from load import make_database; make_database({str(database)!r}); os._exit(0)"
    subprocess.run(python(code), check=True)
    os.sync()
    return database


@pytest.mark.beside_one
@not_by_daemon("it is paced as by root")
@pytest.mark.parametrize(("rate", "how"), each_rate_and_way())
def test_what_belongs_to_others_is_written_at_the_rate(agentres_run: RunAgent, theirs: Path, rate: int, how: str) -> None:  # fmt: skip
    if how == "many":
        assert_paced(agentres_run, rate, "overwrite", theirs, 16)
    else:
        assert_paced(agentres_run, rate, how, made_before(theirs) if how == "sqlite" else theirs)


@once
@pytest.mark.beside_one
def test_by_an_earlier_run_that_has_ended(agentres_run: RunAgent, theirs: Path) -> None:
    earlier = theirs.with_name(f"{theirs.name}.earlier")
    command = python(OWN, earlier, SIZE, "buffered")
    agentres_run(*LITTLE, command=command, check=True)
    assert_paced(agentres_run, 8, "overwrite", earlier)


@once
@pytest.mark.beside_one
def test_by_two_agents_on_one_file(start: Callable[..., subprocess.Popen[str]], theirs: Path) -> None:  # fmt: skip
    command = load("overwrite", theirs)
    rates: list[float] = []
    while len(rates) < 4:
        both = [start("--quiet", "--io-write", "8MB/s", *LITTLE, command=command) for _ in range(2)]
        found = [float(each.communicate(timeout=DEADLINE)[0]) / (16 * MB) for each in both]
        rates.append(sum(found) / 2)
        if abs(rates[-1] - 1) <= 0.1:
            return
    pytest.fail(f"{rates} of both rates")


@pytest.mark.beside_one
@pytest.mark.skipif(IO_DELEGATED, reason="io is delegated here")
def test_without_io_new_files_and_reads_are_held_too_and_it_is_said(agentres_run: RunAgent, theirs: Path) -> None:  # fmt: skip
    assert_paced(agentres_run, 8, "new", theirs)
    rates: list[float] = []
    while not any(abs(each - 1) <= 0.1 for each in rates):
        assert len(rates) < 4, rates
        run = agentres_run("--io-read", "50MB/s", command=python(READ, theirs), check=True)
        rates.append(float(run.out) / (50 * MB))
    assert run.summary is not None
    assert run.summary["paced"] == ["io_write", "io_read"]
    assert "io.max" not in {row["file"] for row in run.summary["not_enforced"]}
    assert "held on average, by pausing" in run.err
    assert "NOT enforced: io.max" not in run.err


@needs_io
def test_new_files_and_direct_writes_are_the_kernels_matter(agentres_run: RunAgent, theirs: Path) -> None:  # fmt: skip
    own = theirs.with_name(f"{theirs.name}.own")
    for how in ("buffered", "direct"):
        run = agentres_run("--io-write", "8MB/s", *LITTLE, command=python(OWN, own, 16 * MB, how), check=True)  # fmt: skip
        own.unlink()
        assert run.usage["paused_usec"] == 0, run.err
        assert run.usage["wbytes"] >= 15 * MB
        assert run.usage["unbilled_bytes"] < MB


def test_the_alert_hears_of_what_the_kernel_bills_to_nobody(watched: Watched, theirs: Path) -> None:
    rule = '[sampling]\ninterval = "1s"\n[alerts.disk]\nwarning = "3MB/s"\nduration = "1s"\n'
    run = watched.run(rule, *LITTLE, command=load("overwrite", theirs))
    assert (run.usage["unbilled_bytes"] or run.usage["dirtied_bytes"]) > 20 * MB
    assert watched.story("disk")[0] == ("raised", "WARNING")
    # More a second than was billed in all.
    assert watched.events("disk")[0]["value"] > max(3 * MB, run.usage["wbytes"] or 0)


def test_pauses_are_told_and_can_be_turned_off(watched: Watched, theirs: Path) -> None:
    run = watched.run("", "--name", "writer", "--io-write", "8MB/s", *LITTLE, command=load("overwrite", theirs))  # fmt: skip
    assert "disk rate: paused for" in run.err
    actions = [each for each in watched.verb("history", "writer", "--actions")["actions"] if each["kind"] == "pace"]  # fmt: skip
    assert len(actions) >= 2
    assert "MB/s" in actions[0]["why"]
    if IO_DELEGATED:
        assert "to files that belong to others" in run.err
        run = watched.run("", "--io-strict", "off", "--io-write", "8MB/s", *LITTLE, command=load("overwrite", theirs))  # fmt: skip
        assert float(run.out) > 2 * 8 * MB
        assert run.usage["unbilled_bytes"] > 40 * MB
        assert run.usage["paused_usec"] is None


@pytest.mark.beside_one
@not_by_daemon("it is paced as by root")
def test_a_reader_is_not_kept_for_longer_than_a_pause(agentres_run: RunAgent, theirs: Path) -> None:
    run = agentres_run("--io-write", "2MB/s", *LITTLE, command=python(BESIDE, theirs), check=True)
    assert run.usage["paused_usec"] > 1e6
    # A second at a time; in the VM who has just woken may miss the few milliseconds in between, and once more.
    assert float(run.out) <= 3 * 1.0 + 0.5


@not_by_daemon("kills the supervisor, which is the daemon's there")
def test_who_is_paused_goes_on_when_the_supervisor_is_killed(start: Callable[..., subprocess.Popen[str]], theirs: Path) -> None:  # fmt: skip
    run = start("--name", "paused", "--orphan", "keep", "--io-write", "1MB/s", *LITTLE, command=load("overwrite", theirs))  # fmt: skip
    freezer = home_of("paused") / "agent" / "cgroup.freeze"
    wait_until(lambda: freezer.exists() and freezer.read_text() == "1\n", "it is paused")
    run.kill()
    run.wait()
    wait_until(lambda: freezer.read_text() == "0\n", "it goes on")
