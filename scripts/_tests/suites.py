"""Kernel tests in a machine: its death in between, and tests that fail once and pass alone."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .parts import Part, child, counted, say, skipped, summary_line

TREE = Path(__file__).resolve().parents[2]
VM = str(TREE / "scripts" / "vm")

# Both would write into the source tree, which belongs to root in the VM.
PYTEST = (
    "python",
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:hypothesispytest",
    "-v",
    "--require-kernel",
)

_LOOK_SECONDS = 5  # how often a silent machine is looked at
_HANG_SECONDS = 400  # the longest test takes a third of that beside four machines; it is ended at three quarters
_EMULATED_HANG_SECONDS = 1200
_COLUMNS = "pid,user:8,stat,etimes,args"  # of ps(1)
_ANSWERS_WITHIN = 60
_STARTS_WITHIN = 1800  # where it waits for a kernel that another one builds
_DEATHS_MAX = 3
TESTS_FAILED = "FAILED"  # the verdict where tests did, and nothing else is wrong
_NO_TESTS = 5  # pytest's status where none is left
_VM_FAILED = 125  # `scripts/vm` itself did; pytest never exits so
_RERUN_MAX = 6  # more at once are no matter of chance

# A test's line begins with its id when it starts and gets its outcome when it ends; what somebody prints in
# between pushes the outcome to a line of its own.
_TEST = re.compile(r"^(tests/\S+?::\w+(?:\[.*?\])?)(?: |$)")
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\b")
_REPORTS = re.compile(r"^=+ (FAILURES|ERRORS|slowest|warnings summary|short test summary)\b")
_WORST = ("SKIPPED", "PASSED", "FAILED", "ERROR")


@dataclass(frozen=True)
class Suite:
    """Tests that are run by one pytest, as one user of a machine."""

    name: str
    user: str
    paths: tuple[str, ...] = ("tests/kernel",)
    options: tuple[str, ...] = ()


@dataclass
class Outcomes:
    """What became of tests, by their ids; ``running`` had begun and not ended, ``last`` was heard of at the last."""

    of: dict[str, str] = field(default_factory=dict)
    running: str = ""
    last: str = ""
    status: int = 0
    over: bool = False  # what follows are reports about tests

    def hear(self, line: str) -> None:
        """Take in a line of pytest's, also as far as it has come."""
        rest = line
        if _REPORTS.match(line):
            self.over = True
        if self.over:
            return
        if (match := _TEST.match(line)) is not None:
            self.running, rest = match[1], line[match.end() :]
            self.last = self.running
        if self.running and (outcome := _OUTCOME.match(rest)) is not None:
            known = self.of.get(self.running, outcome[1])
            self.of[self.running] = max(known, outcome[1], key=_WORST.index)
            self.running = ""

    @property
    def failed(self) -> list[str]:
        """Those that are red."""
        return [test for test, outcome in self.of.items() if outcome in ("FAILED", "ERROR")]

    def add(self, others: Outcomes) -> None:
        """Take in those of another call."""
        for test, outcome in others.of.items():
            self.of[test] = max(self.of.get(test, outcome), outcome, key=_WORST.index)

    def counts(self) -> dict[str, int]:
        """How many passed, failed and were skipped."""
        outcomes = list(self.of.values())
        passed, skipped = outcomes.count("PASSED"), outcomes.count("SKIPPED")
        return {"passed": passed, "failed": len(self.failed), "skipped": skipped}


class Machine:
    """One of this clone's VMs, by its name."""

    def __init__(self, name: str = "") -> None:
        self._environment = os.environ | {"AGENTRES_VM_NAME": name}
        self._process = Path("/nonexistent")
        self.console = self._process  # what its kernel has printed
        self._patience = _HANG_SECONDS

    def call(self, *arguments: str, seconds: float | None = None) -> tuple[int, str, str]:
        """Run `scripts/vm` to its end, or for so long; its status, stdout and stderr."""
        options = {"env": self._environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with child([VM, *arguments], **options) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
                out, err = process.communicate()
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def up(self) -> str:
        """Start it; empty, or why it does not start."""
        failed, _, why = self.call("up", seconds=_STARTS_WITHIN)
        known = self.call("status", "--json")[1]
        status = json.loads(known) if known else {}
        if "pid" in status:
            self._process = Path(f"/proc/{status['pid']}")
        if "folder" in status:
            self.console = Path(status["folder"], "console.log")
        if failed:
            return why.strip() or f"not within {_STARTS_WITHIN} s"
        if "pid" not in status:
            return "it ended at once"
        if status.get("accelerator") == "tcg":
            self._patience = _EMULATED_HANG_SECONDS
        return ""

    def down(self) -> None:
        """Stop it."""
        self.call("down")

    def processes(self) -> str:
        """What runs in it, or that it does not answer."""
        line = ("exec", "--no-sync", "--", "ps", "-eww", "--forest", "-o", _COLUMNS)
        status, out, err = self.call(*line, seconds=_ANSWERS_WITHIN)
        return out if status == 0 else f"it does not say what runs in it: {err.strip()}"

    def threads(self) -> str:
        """What the threads of its kernel do on this host: for one that hangs."""
        found = []
        for task in sorted(self._process.glob("task/*")):
            with suppress(OSError):
                files = ("comm", "stat", "wchan", "syscall")
                found.append("; ".join((task / name).read_text().strip() for name in files))
        return "\n".join(found)

    @property
    def runs(self) -> bool:
        """Whether its process is there, and is no zombie."""
        try:
            return bool((self._process / "cmdline").read_bytes())
        except OSError:
            return False

    def pytest(self, suite: Suite, arguments: Sequence[str], log: Path, outcomes: Outcomes) -> str:
        """Run tests as a suite's are; empty, or how the machine died meanwhile."""
        outcomes.running = ""
        if why := self.up():
            return f"does not start: {why}"
        longest = f"--longest={self._patience * 3 // 4}"
        command = [*PYTEST, longest, *suite.options, *arguments]
        line = [VM, "exec", "--user", suite.user, "--", *command]
        with log.open("ab") as output:
            output.write(f"$ {' '.join(line)}\n".encode())
            output.flush()
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            with child(line, env=self._environment, **options) as process:
                died = self._listen(process, output, outcomes)
        outcomes.status = process.returncode
        return died

    def _listen(self, process: subprocess.Popen[bytes], log: BinaryIO, outcomes: Outcomes) -> str:
        assert process.stdout is not None
        rest, heard = b"", time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(_LOOK_SECONDS):
                    if not self.runs:
                        return "has ended (a panic of its kernel)"
                    if time.monotonic() - heard > self._patience:
                        log.write(f"\n{self.processes()}\n".encode())
                        return f"has been silent for {self._patience} s"
                    continue
                data = os.read(process.stdout.fileno(), 1 << 16)
                heard = time.monotonic()
                if not data:
                    process.wait()
                    lost = process.returncode == _VM_FAILED
                    return "is out of reach, or ended (a panic of its kernel)" if lost else ""
                log.write(data)
                log.flush()
                *lines, rest = (rest + data).split(b"\n")
                for line in [*lines, rest]:
                    outcomes.hear(line.decode(errors="replace"))


def run(
    machine: Machine, suite: Suite, arguments: Sequence[str], log: Path
) -> tuple[Part, Outcomes]:
    """All tests of a suite, also where the machine dies of one: that one failed, and the others go on in a fresh one."""
    outcomes, wrong, deaths = Outcomes(), "", list[str]()
    for number in range(_DEATHS_MAX):
        call = Outcomes()
        done = [word for test in outcomes.of for word in ("--but", test)]
        begins = log.stat().st_size
        died = machine.pytest(suite, [*suite.paths, *arguments, *done], log, call)
        outcomes.status = call.status
        if not died:
            outcomes.add(call)
            wrong = _misheard(call, log.read_bytes()[begins:].decode(errors="replace"))
            break
        # Also in what comes after a test: its fixtures' end. A machine that does not start is no test's fault.
        culprit = call.running or call.last
        death = f"{suite.name}: the machine {died}, during {culprit or 'no test'}"
        say(death)
        deaths.append(death)
        end = ""
        if machine.console.exists():
            end = "\n".join(machine.console.read_text(errors="replace").splitlines()[-25:])
            shutil.copy(machine.console, log.with_suffix(f".{number}.console"))
        with log.open("a") as output:
            output.write(f"\n{death}; its threads here:\n{machine.threads()}\n")
            output.write(f"The end of its console:\n{end}\n")
        if culprit:
            call.of[culprit] = "ERROR"
        outcomes.add(call)
        machine.down()
    counts = outcomes.counts()
    verdict = "passed"
    if died:
        verdict = f"FAILED (the machine {died})"
    elif wrong:
        verdict = f"FAILED ({wrong})"
    elif outcomes.failed:
        verdict = TESTS_FAILED
    elif outcomes.status == _NO_TESTS and not outcomes.of:
        verdict = "no test selected"
    skips = skipped(log.read_text(errors="replace"))
    return Part(suite.name, verdict, counts=counts, skips=skips, deaths=deaths), outcomes


def _misheard(call: Outcomes, output: str) -> str:
    """Why a call of pytest's that ended by itself is not to be trusted; empty where it is."""
    if call.status not in (0, 1, _NO_TESTS):
        return f"exit {call.status}"
    if summary_line(output) is None:
        return f"exit {call.status}, without pytest's last line"
    counted_failures, heard = counted(output).get("failed", 0), len(call.failed)
    # A test may fail, and its fixtures' end as well.
    if not heard <= counted_failures <= 2 * heard or (call.status == 1) != bool(heard):
        return f"exit {call.status}, pytest counts {counted_failures} failures, {heard} were heard"
    return ""


@dataclass(frozen=True)
class Flaky:
    """A test that failed among others and passed alone."""

    suite: str
    test: str


def again(
    machine: Machine,
    suite: Suite,
    failed: Sequence[str],
    arguments: Sequence[str],
    first: Path,
    kept: Path,
) -> list[Flaky]:
    """Run what failed once more, each alone in a fresh machine; those that pass, with both outputs kept."""
    found = []
    if len(failed) > _RERUN_MAX:
        say(f"{suite.name}: {len(failed)} failed: too many to be chance, none is run again")
        return []
    for test in failed:
        machine.down()
        log = first.with_name("again.log")
        log.write_bytes(b"")
        outcomes = Outcomes()
        died = machine.pytest(suite, [test, *arguments], log, outcomes)
        passed = not died and outcomes.status == 0 and outcomes.of.get(test) == "PASSED"
        say(f"{suite.name}: {test} {'passes' if passed else 'fails again'} alone")
        with kept.open("a") as file:
            file.write(
                f"{suite.name}: {test}\n\nAmong others:\n{_failure(first, test)}\n\nAlone:\n{log.read_text(errors='replace')}\n\n"
            )
        if passed:
            found.append(Flaky(suite.name, test))
    return found


def _failure(log: Path, test: str) -> str:
    """A failed test's own section of pytest's output."""
    name = test.partition("::")[2]
    lines = log.read_text(errors="replace").splitlines()
    heading = re.compile(rf"^_+ (?:ERROR at \w+ of )?{re.escape(name)} _+$")
    starts = [number for number, line in enumerate(lines) if heading.match(line)]
    if not starts:
        return "\n".join(lines[-60:])
    end = re.compile(r"^(_{3,} \S.* _{3,}|=+ .* =+)$")
    after = (n for n in range(starts[0] + 1, len(lines)) if end.match(lines[n]))
    return "\n".join(lines[starts[0] : next(after, len(lines))])
