#!/usr/bin/env python3
"""A small coding agent without a model: plan, tool call, look at the result, next.

It works as coding agents do: every step is a subprocess, and what the next step is depends on what
the last one printed.  Standard library only.  Each tool call is one line on stdout.

    python3 examples/agent.py                        write, test and fix a package; sort files
    python3 examples/agent.py --misbehave            hog memory, processes, CPU, disk and files
    python3 examples/agent.py --misbehave memory     only that one

The misbehaving tool calls run into the walls that ``agentres run`` puts up, one after the other, and
the agent lives to tell.  Without walls each stops by itself: at 1.5 GB of memory (or half of what is
free), 300 processes, 3 seconds of spinning, 400 MB on disk, 2000 open files.

Exit status: 0 when the work was done, 1 when a step did not turn out as it must.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

MB = 1_000_000
BURST_BYTES = 150 * MB
HOG_BYTES = 1500 * MB
FORKS = 300
SPIN_SECONDS = 3.0
FLOOD_BYTES = 400 * MB
FLOOD_SECONDS = 6.0
OPEN_FILES = 2000
CALL_SECONDS = 120  # a tool call that hangs must not hang the agent

# --- The loop -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: what it is for, the command, and the text for its stdin."""

    what: str
    command: list[str]
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How a tool call ended.

    ``returncode`` is the exit status, or -N when signal N ended it; ``seconds`` are wall time;
    ``output`` is stdout and stderr.
    """

    returncode: int
    seconds: float
    output: str

    @property
    def last_line(self) -> str:
        """The last line of the output, where tools put their summary."""
        return (self.output.strip().splitlines() or [""])[-1]

    @property
    def outcome(self) -> str:
        """``ok``, ``exit 1`` or ``killed by signal 9``."""
        if self.returncode < 0:
            return f"killed by signal {-self.returncode} ({signal.Signals(-self.returncode).name})"
        return f"exit {self.returncode}" if self.returncode else "ok"


Plan = Generator[Call, Result, str]
"""Yields the next tool call, is sent its result, and returns what has been achieved."""


class PlanFailed(Exception):
    """A step turned out as no plan can go on from."""


def call_tool(call: Call, folder: Path) -> Result:
    """Run one tool call in ``folder`` and wait for its end."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            call.command,
            input=call.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            text=True,
            errors="replace",
            timeout=CALL_SECONDS,
            check=False,
        )
        returncode, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        returncode, output = -signal.SIGKILL, f"no end within {CALL_SECONDS} s"
    except OSError as error:  # refused by the process limit, for one
        returncode, output = 126, f"cannot start {call.command[0]}: {error.strerror}"
    return Result(returncode, time.monotonic() - start, output)


def follow(plan: Plan, folder: Path, number: int) -> int:
    """Do what a plan wants, one line a tool call; the number of the last call."""
    result: Result | None = None
    while True:
        try:
            call = plan.send(result) if result else next(plan)
        except StopIteration as end:
            print(f"     => {end.value}", flush=True)
            return number
        number += 1
        result = call_tool(call, folder)
        shown = result.last_line if len(result.last_line) <= 60 else f"{result.last_line[:59]}…"
        print(f"{number:4} {call.what:36} {result.seconds:6.2f} s  {result.outcome:8} {shown}",
              flush=True)  # fmt: skip


def must(result: Result) -> None:
    """Give up unless the tool call succeeded."""
    if result.returncode:
        raise PlanFailed(f"{result.outcome}:\n{result.output.strip()}")


# --- The work -----------------------------------------------------------------------------------

PACKAGE = {
    "inventory/__init__.py": '"""What is in stock."""\n',
    "inventory/stock.py": """\
class Stock:
    def __init__(self):
        self.items = {}

    def add(self, name, count):
        self.items[name] = count

    def total(self):
        return sum(self.items.values())
""",
    "inventory/report.py": """\
def lines(stock):
    return [f"{name}: {count}" for name, count in sorted(stock.items.items())]
""",
    "test_inventory.py": """\
import unittest
from inventory.report import lines
from inventory.stock import Stock

class StockTest(unittest.TestCase):
    def test_total(self):
        stock = Stock()
        stock.add("bolt", 2)
        stock.add("nut", 3)
        self.assertEqual(stock.total(), 5)

    def test_adding_twice_adds_up(self):
        stock = Stock()
        stock.add("bolt", 2)
        stock.add("bolt", 2)
        self.assertEqual(stock.total(), 4)

    def test_report_is_sorted(self):
        stock = Stock()
        stock.add("nut", 3)
        stock.add("bolt", 2)
        self.assertEqual(lines(stock), ["bolt: 2", "nut: 3"])
""",
}


GENERATE = """
seq -w 20000 > numbers
for part in 1 2 3 4; do shuf numbers > $part.txt; done
ls -- *.txt | wc -l
"""
SORT = """
for part in 1 2 3 4; do sort -o $part.txt $part.txt; done
sort -m -u -o merged 1.txt 2.txt 3.txt 4.txt
wc -l merged
"""
HASH = """
sha256sum merged numbers
"""


def shell(what: str, script: str) -> Call:
    """The tool call that runs a few lines of sh."""
    return Call(what, ["sh", "-ec", script])


def write_file(name: str, text: str) -> Call:
    """The tool call that writes one file, with its folder."""
    script = 'mkdir -p -- "$(dirname "$1")"; cat > "$1"; wc -c "$1"'
    return Call(f"write {name}", ["sh", "-ec", script, "sh", name], text)


def fix_a_package() -> Plan:
    """Write a package, run its tests, and mend it when they tell what is wrong."""
    for name, text in PACKAGE.items():
        must((yield write_file(name, text)))
    must((yield Call("byte-compile it", [sys.executable, "-m", "compileall", "-q", "."])))
    tests = Call("run its tests", [sys.executable, "-m", "unittest", "-q"])
    result = yield tests
    attempts = 0
    while result.returncode and attempts < 3:
        attempts += 1
        if "test_adding_twice_adds_up" not in result.output:
            raise PlanFailed(f"the tests fail, and not as expected:\n{result.output}")
        must((yield Call("look where counts are stored", ["grep", "-rn", "= count", "inventory"])))
        fixed = PACKAGE["inventory/stock.py"].replace(
            "self.items[name] = count", "self.items[name] = self.items.get(name, 0) + count"
        )
        must((yield write_file("inventory/stock.py", fixed)))
        result = yield tests
    must(result)
    return f"the package passes its tests after {attempts} fix"


def sort_files() -> Plan:
    """Generate, sort and hash files, and compare."""
    must((yield shell("generate shuffled files", GENERATE)))
    must((yield shell("sort and merge them", SORT)))
    hashes = yield shell("hash them", HASH)
    must(hashes)
    if len({line.split()[0] for line in hashes.output.splitlines()}) != 1:
        raise PlanFailed("what was sorted and merged differs from what was shuffled")
    return "four files shuffled, sorted and merged, and nothing lost"


def burst() -> Plan:
    """One tool call with far more memory than the agent itself, for a second."""
    must((yield tool("burst", "hold 150 MB for a second")))
    return "a burst passed without a kill"


# --- The misbehaviour ---------------------------------------------------------------------------


def tool(name: str, what: str) -> Call:
    """The tool call that runs one of :data:`TOOLS`, in a process of its own."""
    return Call(what, [sys.executable, os.path.abspath(__file__), "--tool", name])


def hog_memory() -> Plan:
    """Grow until killed."""
    result = yield tool("memory", "grow until killed")
    if result.returncode < 0:
        return (
            f"the memory hog was killed by signal {-result.returncode}; it had {result.last_line}"
        )
    return f"nothing stopped the memory hog: it had {result.last_line}"


def hog_processes() -> Plan:
    """Fork, and count the refusals."""
    result = yield tool("fork", f"fork {FORKS} times")
    return result.last_line


def hog_cpu() -> Plan:
    """Spin in more processes than there are processors."""
    result = yield tool("cpu", f"spin in {_spinners()} processes")
    return f"{_spinners()} spinning processes on {_cpus()} CPUs got {result.last_line}"


def hog_disk() -> Plan:
    """Write and fsync as fast as it goes."""
    result = yield tool("disk", f"write {FLOOD_BYTES // MB} MB with fsync")
    return f"the disk flood: {result.last_line}"


def hog_files() -> Plan:
    """Open files, and keep them."""
    result = yield tool("files", f"open {OPEN_FILES} files")
    return result.last_line


def grow_memory() -> None:
    """Touch memory in steps of 16 MB; the last line says how far it went."""
    bound = min(HOG_BYTES, _free_memory() // 2)
    held: list[bytearray] = []
    while len(held) * 16 * MB < bound:
        held.append(bytearray(b"x") * (16 * MB))
        print(f"{len(held) * 16} MB", flush=True)


def hold_burst() -> None:
    """Hold 150 MB, every page of it touched, for a second."""
    held = bytearray(b"x") * BURST_BYTES
    time.sleep(1)
    print(f"held {len(held) // MB} MB")


def fork_many() -> None:
    """Fork children that wait for our end; they also end when we are killed."""
    read_end, write_end = os.pipe()
    started = refused = first = 0
    for attempt in range(FORKS):
        try:
            pid = os.fork()
        except OSError:
            refused += 1
            first = first or attempt
            continue
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)  # until the last write end is closed
            os._exit(0)
        started += 1
    os.close(write_end)
    for _ in range(started):
        os.wait()
    if refused:
        print(f"fork refused after {first} processes ({refused} of {FORKS} refused)")
    else:
        print(f"nothing stopped the forks: {started} processes")


def spin() -> None:
    """Keep more processors busy than there are, for some seconds."""
    start = time.monotonic()
    deadline = start + SPIN_SECONDS
    children = []
    for _ in range(_spinners()):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() < deadline:
                pass
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    share = (usage.ru_utime + usage.ru_stime) / (time.monotonic() - start)
    print(f"{share:.2f} CPU seconds a second")


def flood_disk() -> None:
    """Write into a file that has no name any more: nothing is left, however this ends."""
    block = os.urandom(MB)
    with tempfile.TemporaryFile(dir=_disk_folder(), buffering=0) as file:
        start = time.monotonic()
        written = 0
        while written < FLOOD_BYTES and time.monotonic() - start < FLOOD_SECONDS:
            for _ in range(4):
                written += file.write(block)
            os.fsync(file.fileno())
        seconds = time.monotonic() - start
    print(f"{written // MB} MB in {seconds:.1f} s, {written / MB / seconds:.1f} MB/s")


def open_files() -> None:
    """Open one file again and again, until that is refused."""
    held: list[int] = []
    try:
        while len(held) < OPEN_FILES:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        print(f"open refused after {len(held)} files: {error.strerror}")
    else:
        print(f"nothing stopped it: {len(held)} open files")


TOOLS: dict[str, Callable[[], None]] = {
    "burst": hold_burst,
    "memory": grow_memory,
    "fork": fork_many,
    "cpu": spin,
    "disk": flood_disk,
    "files": open_files,
}

MISBEHAVIOUR: dict[str, Callable[[], Plan]] = {
    "memory": hog_memory,
    "fork": hog_processes,
    "cpu": hog_cpu,
    "disk": hog_disk,
    "files": hog_files,
}


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _spinners() -> int:
    return min(_cpus(), 7) + 1


def _free_memory() -> int:
    """Bytes that the host can still give (/proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return HOG_BYTES


def _disk_folder() -> str:
    """A folder on a disk: /tmp is memory on many hosts."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()


def main() -> int:
    """Follow the plans that the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--misbehave",
        nargs="?",
        const="all",
        choices=["all", *MISBEHAVIOUR],
        metavar="|".join(MISBEHAVIOUR),
        help="run into the limits instead of working (without a word: all, in turn)",
    )
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        TOOLS[options.tool]()
        return 0
    plans: list[Callable[[], Plan]] = [fix_a_package, sort_files, burst]
    if options.misbehave == "all":
        plans = list(MISBEHAVIOUR.values())
    elif options.misbehave:
        plans = [MISBEHAVIOUR[options.misbehave]]
    start = time.monotonic()
    calls = 0
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        for plan in plans:
            try:
                calls = follow(plan(), Path(folder), calls)
            except PlanFailed as failure:
                print(f"     => given up: {failure}", flush=True)
                return 1
    print(f"{calls} tool calls in {time.monotonic() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
