"""What `scripts/test` does when the project's environment is there."""

import argparse
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from _vm.recipe import PYTHON_OF_RELEASE

from . import suites, vagrant
from .parts import Part, Parts, end_children, ended, say
from .phases import HOST, MACHINES, MANY, TWO, Phase
from .suites import PYTEST, TREE, VM, Machine, Suite

_FLAKY_MAX = 2
_SLOWEST = "--durations=15"

# Half of what the unit tests take is waiting for programs that they start.
_WORKERS = ("-n", "4", "--dist", "worksteal") if importlib.util.find_spec("xdist") else ()

_MIB_FOR_MANY = 20 << 10


def main() -> int:
    """Run what is asked for; 0 where all of it is green."""
    options = _parser().parse_args()
    if options.vagrant and (options.unit or options.here or options.stock or options.repeat):
        raise SystemExit("test: --vagrant goes with --release and pytest's arguments alone")
    if options.repeat and (options.unit or options.here):
        raise SystemExit("test: --repeat is about kernel tests in the VM")
    if (options.vm or options.stock or options.release) and (options.unit or options.here):
        raise SystemExit("test: --vm, --stock and --release are about kernel tests in the VM")
    if options.vm and options.vagrant:
        raise SystemExit("test: --vm goes without --vagrant")
    if not options.unit and any(word.startswith("-m") for word in options.pytest):
        raise SystemExit("test: by -m tests are told which bear company: select them with -k")
    if paths := [word for word in options.pytest if word.startswith("tests/")]:
        raise SystemExit(f"test: {paths[0]}: select tests with -k")
    del os.environ["PYTHONPATH"]  # this package's, and nobody else's
    # With it each program that a test starts would compile the project anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["AGENTRES_VM_NAME"] = ""  # the machines are ours to name
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    # A shell's background job ignores it, and so would all that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.release:
        os.environ["AGENTRES_VM_RELEASE"] = options.release
    if options.stock or options.release:
        os.environ["AGENTRES_VM_ACCEL"] = "stock"
    start = time.monotonic()
    special = [
        name for name in ("AGENTRES_VM_ACCEL", "AGENTRES_VM_RELEASE") if os.environ.get(name)
    ]
    if options.repeat or special:
        options.vm = not (options.unit or options.here or options.vagrant)
    commit = _commit()
    run = _Run(options)
    try:
        if options.repeat:
            return run.repeat(options.repeat)
        if options.vagrant:
            run.in_vagrant()
        else:
            run.all()
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    finally:
        run.close()
    verdict = run.tell(time.monotonic() - start)
    whole = not (options.unit or options.kernel or options.here or options.vagrant or special)
    whole = whole and run.is_whole and not options.pytest
    if verdict == 0 and whole and commit and commit == _commit():
        _git_path("agentres-tested").write_text(f"{commit} {run.counts}\n")
    return verdict


class _Run:
    """One call of the tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._unit, self._kernel = not options.kernel, not options.unit
        self._forced: bool = options.vm
        # Whether there may be machines of ours to end.
        self._machines = self._forced
        self._here: bool = options.here
        self._pytest: list[str] = options.pytest
        self._parts = Parts(TREE / ".tests")
        self._red: list[tuple[Part, Suite, list[str], Path]] = []
        self._flaky: list[suites.Flaky] = []
        self._kept = self._parts.logs / "flaky.txt"
        self._machine_came_up = False
        self.counts = ""

    def all(self) -> None:
        """Every part, beside each other where they bear it."""
        if self._kernel and not (self._forced or self._here) and (why := _refusal()) is not None:
            say(f"kernel tests in the VM: this host cannot enforce limits ({why})")
            self._machines = True
        # What the machines are made of is made beside the unit tests; the tests in them want the processors.
        first = [self._units] if self._unit else []
        if self._machines:
            first.append(self._up)
            self._down()  # one that is up may be of another kind, or of an older image
        _together(first)
        if self._machine_came_up:
            for phase in _phases():
                self._phase(phase)
            self._once_more()
        elif self._kernel and not self._machines:
            self._on_this_host()

    @property
    def is_whole(self) -> bool:
        """Whether all parts were run, in machines of ours."""
        return self._machine_came_up and not self._parts.skipped

    def in_vagrant(self) -> None:
        """The kernel tests in a Vagrant machine."""
        vagrant.run(self._parts, self._pytest)

    def repeat(self, times: int) -> int:
        """The kernel tests so many times, each with logs of its own; a table of what failed, also of those that there were until Ctrl-C."""
        failures: Counter[tuple[str, str]] = Counter()
        ended = 0
        try:
            for number in range(1, times + 1):
                say(f"round {number} of {times}")
                self._parts.begin_round(number)
                self._down()
                start = time.monotonic()
                if why := Machine().up():
                    raise SystemExit(f"test: the VM does not start: {why}")
                for phase in _phases():
                    self._phase(phase, failures)
                say(f"round {number}: {time.monotonic() - start:.0f} s")
                ended = number
        finally:
            print(f"\n| test | as | failed in {ended} |\n| --- | --- | ---: |")
            for (suite, test), count in failures.most_common():
                print(f"| `{test}` | {suite} | {count} |")
            print(
                f"{self._parts.total('passed')} passed, {sum(failures.values())} failed, machines died: {self._parts.deaths}, "
                f"in {ended} whole rounds",
                flush=True,
            )
        return int(bool(failures) or not self._parts.total("passed"))

    def tell(self, seconds: float) -> int:
        """The summary, and the closing line; the exit status."""
        say("summary")
        for part in self._parts.all:
            print(f"  {part.name:<38} {part.verdict:<24} {part.seconds:5.0f} s")
            for death in part.deaths:
                print(f"    {death}")
        for line in self._parts.skips():
            print(line)
        if self._flaky:
            print(f"flaky, for mending (outputs: {self._kept}):")
            for flaky in self._flaky:
                print(f"  {flaky.suite}: {flaky.test}")
        red = sum(part.failed for part in self._parts.all)
        passed, failed, skipped = (self._parts.total(w) for w in ("passed", "failed", "skipped"))
        self.counts = (
            f"{passed} passed, {failed} failed, {skipped} skipped, {len(self._flaky)} flaky"
        )
        if deaths := self._parts.deaths:
            self.counts += f", machines died: {deaths}"
        too_flaky = len(self._flaky) > _FLAKY_MAX
        if too_flaky:
            print(f"more than {_FLAKY_MAX} flaky tests are a failure")
        if nothing := not (red or passed or failed or skipped):
            print("no test was selected")
        print(f"{self.counts}; {red} of {len(self._parts.all)} parts failed, in {seconds:.0f} s")
        return int(red > 0 or too_flaky or nothing)

    def _units(self) -> None:
        if shutil.which("lint-imports"):
            self._parts.command("lint", ["scripts/lint"], cwd=TREE)
        else:
            self._parts.skip("lint", "not run: its tools are not installed here")
        command = [sys.executable, "-m", "pytest", *_WORKERS, "tests/unit", _SLOWEST, *self._pytest]
        self._parts.command("unit tests", command, cwd=TREE)

    def _up(self) -> None:
        """Start the first machine, by which what they all are made of is made."""
        part = self._parts.command("the VM is up", [VM, "up"], cwd=TREE, aloud="vm: ")
        self._machine_came_up = not part.failed

    def _phase(self, phase: Phase, failures: Counter[tuple[str, str]] | None = None) -> None:
        """Tests in as many machines as they bear; where ``failures`` are collected, nothing but tests."""
        for name in MACHINES:
            if name not in phase.first:
                Machine(name).down()
        left = deque(phase.rest)

        def lane(name: str, suite: Suite | None) -> None:
            while suite is not None:
                self._suite(Machine(name), suite, phase, failures)
                if suite is HOST and failures is None:
                    self._parts.run("the host starts anew, in the VM", _starts_anew)
                try:
                    suite = left.popleft()
                except IndexError:  # another one has the last
                    suite = None

        _together([partial(lane, name, suite) for name, suite in phase.first.items()])

    def close(self) -> None:
        """End what still runs, where this was interrupted, and all machines."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second one must not leave a machine behind
        end_children()
        if self._machines:
            self._down()

    def _down(self) -> None:
        for name in MACHINES:
            Machine(name).down()

    def _suite(
        self,
        machine: Machine,
        suite: Suite,
        phase: Phase,
        failures: Counter[tuple[str, str]] | None,
    ) -> None:
        name = f"{suite.name}, {phase.name}" if phase.name else suite.name
        named = Suite(name, suite.user, suite.paths, (*suite.options, "-m", phase.mark))
        say(f"{name}: begins")

        def work(log: Path) -> Part:
            part, outcomes = suites.run(machine, named, [_SLOWEST, *self._pytest], log)
            failed = outcomes.failed
            if failures is None:
                self._red.append((part, named, failed, log))
            else:
                failures.update((suite.name, test) for test in failed)
                if part.failed and not failed:
                    failures[suite.name, part.verdict] += 1
            return part

        self._parts.run(name, work)

    def _once_more(self) -> None:
        """Run what failed again when nothing else runs; a part in which nothing else is wrong is not red then."""
        for part, suite, failed, log in self._red:
            found = suites.again(Machine(), suite, failed, self._pytest, log, self._kept)
            self._flaky += found
            part.counts["failed"] -= len(found)
            part.counts["passed"] += len(found)
            if found and len(found) == len(failed) and part.verdict == suites.TESTS_FAILED:
                part.verdict = f"passed, {len(found)} flaky"

    def _on_this_host(self) -> None:
        command = [sys.executable, *PYTEST[1:], "tests/kernel", _SLOWEST, *self._pytest]
        me = pwd.getpwuid(os.geteuid()).pw_name
        self._parts.command(f"kernel tests here, as {me}", command, cwd=TREE)
        user = os.environ.get("SUDO_USER", "root")
        if me != "root":
            self._parts.skip("kernel tests here, as root", "not run: this is not root")
        elif user == "root":
            self._parts.skip("kernel tests here, as a user", "not run: SUDO_USER names none")
        else:
            # The user's own manager delegates to him; sudo brings neither its address nor our PATH.
            known = pwd.getpwnam(user)
            environment = [f"PATH={os.environ['PATH']}", f"HOME={known.pw_dir}"]
            environment.append(f"XDG_RUNTIME_DIR=/run/user/{known.pw_uid}")
            prefix = ["runuser", "-u", user, "--", "env", *environment]
            self._parts.command(f"kernel tests here, as {user}", [*prefix, *command], cwd=TREE)


def _starts_anew(log: Path) -> Part:
    """An agent that is enabled is there afterwards. The first call ends with the guest's userspace."""
    machine = Machine()
    before = machine.call("exec", "--", "python", "tests/kernel/reboot.py", "before", seconds=120)
    end = time.monotonic() + 120
    while machine.call("exec", "--no-sync", "--", "true")[0] and time.monotonic() < end:
        time.sleep(1)
    status, out, err = machine.call("exec", "--", "python", "tests/kernel/reboot.py", "after")
    log.write_text("".join([*before[1:], out, err]))
    return ended("the host starts anew, in the VM", status, "")


def _phases() -> tuple[Phase, ...]:
    """Two machines where processors are emulated, or memory is short; all are of the first one's kind."""
    status = json.loads(Machine().call("status", "--json")[1])
    if accelerator := status.get("accelerator"):
        os.environ["AGENTRES_VM_ACCEL"] = accelerator
    shared = os.statvfs("/dev/shm")  # a machine's memory is a file there
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    room = min(room, shared.f_blocks * shared.f_frsize >> 20)
    if accelerator == "tcg" or room < _MIB_FOR_MANY:
        return TWO
    return MANY


def _together(lanes: Sequence[Callable[[], None]]) -> None:
    """All of them at once, to their ends; what one raises is raised here."""
    raised: list[BaseException] = []

    def guarded(lane: Callable[[], None]) -> None:
        try:
            lane()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def _refusal() -> str | None:
    """Why `agentres doctor` says that runs would be refused here; None where they would not."""
    done = subprocess.run(
        [sys.executable, "-m", "agentres", "doctor", "--json"], capture_output=True, text=True
    )
    try:
        report = json.loads(done.stdout)
        if report["run"]:
            return None
        return "; ".join(f["detail"] for f in report["findings"] if f["status"] == "refused")
    except (ValueError, KeyError):
        return f"agentres doctor: {(done.stdout + done.stderr).strip().rpartition(chr(10))[2]}"


def _git_path(name: str) -> Path:
    done = subprocess.run(
        ["git", "-C", TREE, "rev-parse", "--path-format=absolute", "--git-path", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Path(done.stdout.strip())


def _commit() -> str:
    """What is checked out; empty where the tree has more than that, or is no clone, or there is no git."""
    if not shutil.which("git"):
        return ""
    git = ["git", "-C", str(TREE)]
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    return "" if dirty.returncode or dirty.stdout or head.returncode else head.stdout.strip()


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of rounds")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description="All checks: lint, unit tests here, kernel tests as root and as an ordinary user.",
        epilog="Kernel tests run on this host where `agentres doctor` says that it can enforce limits, and nothing asks "
        "for the VM (scripts/vm); else there. All parts run, whatever fails; the last line counts.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--unit", action="store_true", help="lint and unit tests only: no VM")
    which.add_argument("--kernel", action="store_true", help="kernel tests only")
    parser.add_argument(
        "--here", action="store_true", help="kernel tests on this machine, never in the VM"
    )
    parser.add_argument("--vm", action="store_true", help="kernel tests in the VM in any case")
    parser.add_argument(
        "--stock",
        action="store_true",
        help="in the VM with Debian's own kernel, by KVM or emulated",
    )
    parser.add_argument(
        "--release",
        choices=sorted(PYTHON_OF_RELEASE),
        help="in a VM of that Debian, with its own kernel",
    )
    parser.add_argument(
        "--vagrant",
        action="store_true",
        help="kernel tests in a Vagrant machine, with a box and a libvirt made for that (root)",
    )
    parser.add_argument(
        "--repeat",
        type=_positive,
        metavar="N",
        help="the kernel tests in the VM N times; a table of what failed",
    )
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENTS", help="for pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
