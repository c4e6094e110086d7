"""Parts of the tests: commands whose output is kept, told of as they end, and counted."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# pytest's last line; where it is missing, pytest did not come to its end.
_SUMMARY = re.compile(r"^=+ (?:.* )?in [0-9.]+s(?: \([0-9:]+\))? =+$")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")
# A line of its short summary (-rs): how many, where, and why.
_SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] \S+: (.+)$", re.MULTILINE)
_NO_TESTS = 5  # pytest's status where -k left none

_printing = threading.Lock()


def say(text: str) -> None:
    """Tell one line of progress or trouble."""
    with _printing:
        print(f"test: {text}", file=sys.stderr, flush=True)


_HARDER = ((signal.SIGINT, 30), (signal.SIGTERM, 10), (signal.SIGKILL, 10))  # signals, seconds

_children: set[subprocess.Popen[bytes]] = set()
_starting = threading.RLock()
_ending = threading.Event()


class Ending(Exception):
    """Nothing is started any more: this call of the tests is about to end."""


@contextmanager
def child(line: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process without our stdin that does not outlive the block, nor an interrupted call of the tests."""
    with _starting:
        if _ending.is_set() and threading.current_thread() is not threading.main_thread():
            raise Ending
        started = subprocess.Popen(line, stdin=subprocess.DEVNULL, process_group=0, **options)
        _children.add(started)
    with started as process:
        try:
            yield process
        finally:
            _end(process)
            _children.discard(process)


def end_children() -> None:
    """End what was started and still runs, and have nothing more started: this process is about to end itself."""
    with _starting:
        _ending.set()
        running = list(_children)
    for process in running:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt it, where it runs, as Ctrl-C would, so that tests take down what they have built; else harder."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):  # nobody is left of its group
        for number, seconds in _HARDER:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Part:
    """One part, as it ended."""

    name: str
    verdict: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    skips: Counter[str] = field(default_factory=Counter)
    deaths: list[str] = field(default_factory=list)  # of the machines that it ran in

    @property
    def failed(self) -> bool:
        """Whether it is a reason for the whole to be red."""
        return self.verdict.startswith("FAILED")


class Parts:
    """All parts of one call, the only one of its clone; several threads may add to them."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(logs, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"test: this clone's tests run already: {logs}") from None
        for old in logs.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.all: list[Part] = []
        self.skipped = False

    def begin_round(self, number: int) -> None:
        """Keep what follows in a folder of its own."""
        self.logs = self.logs.parent if number > 1 else self.logs
        self.logs /= f"round-{number}"
        self.logs.mkdir()

    def log(self, name: str) -> Path:
        """Where the output of a part is kept."""
        return self.logs / (re.sub(r"\W+", "-", name).strip("-") + ".log")

    def skip(self, name: str, why: str) -> None:
        """Note one that is not run, and why."""
        say(f"{name}: {why}")
        self.skipped = True
        self.all.append(Part(name, why))

    def run(self, name: str, work: Callable[[Path], Part]) -> Part:
        """Have a part's work done with its log, and show both."""
        log = self.log(name)
        log.write_bytes(b"")
        start = time.monotonic()
        part = work(log)
        part.seconds = time.monotonic() - start
        with _printing:
            sys.stdout.write(log.read_text(errors="replace"))
            sys.stdout.flush()
        say(f"{name}: {part.verdict} after {part.seconds:.0f} s")
        self.all.append(part)
        return part

    def command(
        self, name: str, line: Sequence[str], cwd: Path, by: Sequence[str] = (), aloud: str = ""
    ) -> Part:
        """Run a command as a part, ``by`` other words that nobody has to read; lines that begin with ``aloud`` are progress."""
        say(f"{name}: {' '.join(line)}")

        def work(log: Path) -> Part:
            with log.open("ab") as output:
                options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if aloud else {"stdout": output, "stderr": output}  # fmt: skip
                with child([*by, *line], cwd=cwd, **options) as process:
                    for text in process.stdout or ():
                        output.write(text)
                        output.flush()
                        if aloud and text.startswith(aloud.encode()):
                            say(text.decode(errors="replace").strip())
                    status = process.wait()
            return ended(name, status, log.read_text(errors="replace"))

        return self.run(name, work)

    def total(self, word: str) -> int:
        """How many tests passed, failed or were skipped in all."""
        return sum(part.counts.get(word, 0) for part in self.all)

    @property
    def deaths(self) -> int:
        """How many machines died."""
        return sum(len(part.deaths) for part in self.all)

    def skips(self) -> list[str]:
        """Why tests were skipped: a line a reason, with how many, the most first."""
        every = sum((part.skips for part in self.all), Counter[str]())
        return [f"{number:4} skipped: {why}" for why, number in every.most_common()]


def ended(name: str, status: int, output: str) -> Part:
    """A part from its exit status and what it printed."""
    counts, skips = counted(output), skipped(output)
    if status == _NO_TESTS and summary_line(output):
        return Part(name, "no test selected", counts=counts, skips=skips)
    verdict = f"FAILED (exit {status})" if status else "passed"
    return Part(name, verdict, counts=counts, skips=skips)


def summary_line(output: str) -> str | None:
    """pytest's last line, which says that it came to its end."""
    lines = [line for line in output.splitlines() if _SUMMARY.match(line)]
    return lines[-1] if lines else None


def counted(output: str) -> dict[str, int]:
    """What pytest's last line counts: passed, failed (errors too), skipped."""
    counts: dict[str, int] = {}
    for number, word in _COUNT.findall(summary_line(output) or ""):
        kind = "failed" if word == "error" else word
        counts[kind] = counts.get(kind, 0) + int(number)
    return counts


def skipped(output: str) -> Counter[str]:
    """How many tests pytest skipped for which reason."""
    found = Counter[str]()
    for number, why in _SKIPPED.findall(output):
        found[why] += int(number)
    return found
