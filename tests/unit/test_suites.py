"""scripts/test's own part: what pytest said, a machine that dies in between, tests that fail among others alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

# A machine that is none: each exec prints the next of the texts in CALLS and exits with the status on its first line;
# status 125 stands for a machine that has gone meanwhile, "silent" for a program that does not end.
FAKE = """\
#!/bin/sh
exec 3>&2 2>{folder}/stderr
case $1 in
  exec)
    echo "$*" >>{folder}/asked
    text=$(ls {folder}/calls | head -n 1)
    status=$(head -n 1 {folder}/calls/$text)
    tail -n +2 {folder}/calls/$text
    rm {folder}/calls/$text
    [ $status != 125 ] || {{ kill $(cat {folder}/pid); rm {folder}/pid; }}
    [ $status != silent ] || exec sleep 1000
    exit $status ;;
  status)
    [ -e {folder}/pid ] || {{ echo "{{}}"; exit; }}
    echo "{{\\"pid\\": $(cat {folder}/pid), \\"folder\\": \\"{folder}\\"}}" ;;
  up)
    [ ! -e {folder}/broken ] || {{ echo no room >&3; exit 125; }}
    [ -e {folder}/pid ] || {{ sleep 1000 >/dev/null 3>&- & echo $! >{folder}/pid; }} ;;
  down) kill $(cat {folder}/pid); rm -f {folder}/pid ;;
esac
"""


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _tests import suites

    yield suites
    for name in [name for name in sys.modules if name.startswith("_tests")]:
        del sys.modules[name]


class Fake:
    """The machine, and what it is to say."""

    def __init__(self, folder: Path, suites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.suites = suites
        (folder / "calls").mkdir()
        (folder / "console.log").write_text("Kernel panic - not syncing: for a test\n")
        script = folder / "vm"
        script.write_text(FAKE.format(folder=folder))
        script.chmod(0o755)
        monkeypatch.setattr(suites, "VM", str(script))
        monkeypatch.setattr(suites, "_LOOK_SECONDS", 0.05)

    def says(self, *calls: tuple[int | str, str]) -> None:
        for number, (status, text) in enumerate(calls):
            (self.folder / "calls" / str(number)).write_text(f"{status}\n{text}")

    def run(self) -> tuple[Any, Any]:
        suite = self.suites.Suite("as root", "root")
        machine = self.suites.Machine()
        (self.folder / "log").touch()
        return self.suites.run(machine, suite, [], self.folder / "log")

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def fake(tmp_path: Path, suites: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    made = Fake(tmp_path, suites, monkeypatch)
    yield made
    made.suites.Machine().down()


def counts(text: str) -> str:
    return f"=============== {text} in 0.12s ================\n"


GREEN = """\
collecting ... collected 3 items

tests/kernel/test_a.py::test_one PASSED                     [ 33%]
tests/kernel/test_a.py::test_two[a b-1] SKIPPED (not here)  [ 66%]
tests/kernel/test_a.py::test_three PASSED                   [100%]
=============== 2 passed, 1 skipped in 0.12s ================
"""


def test_what_pytest_said_is_counted(fake: Fake) -> None:
    fake.says((0, GREEN))
    part, outcomes = fake.run()
    assert part.verdict == "passed"
    assert part.counts == {"passed": 2, "failed": 0, "skipped": 1}
    assert outcomes.of["tests/kernel/test_a.py::test_two[a b-1]"] == "SKIPPED"


def test_why_tests_were_skipped_is_known(fake: Fake) -> None:
    summary = "=== short test summary info ===\nSKIPPED [1] tests/kernel/test_a.py:3: not here\n"
    fake.says((0, GREEN.replace("=====", f"{summary}=====", 1)))
    part, _ = fake.run()
    assert part.skips == {"not here": 1}


def test_what_somebody_prints_meanwhile_hides_no_failure(fake: Fake) -> None:
    disturbed = (
        "tests/kernel/test_a.py::test_one[0.3-1] agentres: no agent runs yet\nFAILED [ 50%]\n"
    )
    two = "tests/kernel/test_a.py::test_two PASSED [100%]\n"
    fake.says((1, disturbed + two + counts("1 failed, 1 passed")))
    part, outcomes = fake.run()
    assert outcomes.failed == ["tests/kernel/test_a.py::test_one[0.3-1]"]
    assert part.counts == {"passed": 1, "failed": 1, "skipped": 0}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("garbage\n", "FAILED (exit 1, without pytest's last line)"),
        (
            "tests/kernel/test_a.py::test_one noiseFAILED [50%]\n" + counts("1 failed"),
            "FAILED (exit 1, pytest counts 1 failures, 0 were heard)",
        ),
        (
            "tests/kernel/test_a.py::test_one FAILED [50%]\n" + counts("3 failed"),
            "FAILED (exit 1, pytest counts 3 failures, 1 were heard)",
        ),
    ],
)
def test_a_failure_that_nobody_understands_is_one(fake: Fake, text: str, verdict: str) -> None:
    fake.says((1, text))
    part, _ = fake.run()
    assert part.verdict == verdict


def test_a_call_after_a_death_is_judged_by_itself(fake: Fake) -> None:
    """What failed before the machine died excuses nothing that comes after."""
    begun = "tests/kernel/test_a.py::test_one "
    fake.says((125, begun), (1, "Exit: agents cannot run here\n"))
    part, _ = fake.run()
    assert part.verdict == "FAILED (exit 1, without pytest's last line)"


def test_a_machine_that_dies_in_what_follows_a_test_is_that_tests(fake: Fake) -> None:
    begun = "tests/kernel/test_a.py::test_one PASSED [ 33%]\n"
    fake.says((125, begun), (5, counts("no tests ran")))
    part, outcomes = fake.run()
    assert outcomes.failed == ["tests/kernel/test_a.py::test_one"]
    assert part.failed


def test_an_error_after_a_test_that_passed_makes_it_red(fake: Fake) -> None:
    ended = "tests/kernel/test_a.py::test_one PASSED [ 50%]\ntests/kernel/test_a.py::test_one ERROR [ 50%]\n"
    fake.says((1, ended + counts("1 passed, 1 error")))
    part, outcomes = fake.run()
    assert part.failed
    assert outcomes.failed == ["tests/kernel/test_a.py::test_one"]


def test_a_machine_that_dies_is_told_and_the_others_go_on(
    fake: Fake, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = "tests/kernel/test_a.py::test_one PASSED [ 33%]\ntests/kernel/test_a.py::test_two "
    rest = "tests/kernel/test_a.py::test_three PASSED [100%]\n" + counts("1 passed")
    fake.says((125, begun), (0, rest))
    part, _ = fake.run()
    assert part.counts == {"passed": 2, "failed": 1, "skipped": 0}
    assert part.failed
    assert "--but tests/kernel/test_a.py::test_one" in fake.asked[1]
    assert "--but tests/kernel/test_a.py::test_two" in fake.asked[1]
    assert "during tests/kernel/test_a.py::test_two" in capfd.readouterr().err
    assert "Kernel panic - not syncing: for a test" in (fake.folder / "log").read_text()


def test_a_machine_that_does_not_start_is_a_failure(fake: Fake) -> None:
    (fake.folder / "broken").touch()
    part, _ = fake.run()
    assert part.verdict == "FAILED (the machine does not start: no room)"


def test_what_runs_in_a_silent_machine_is_kept(
    fake: Fake, suites: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "_HANG_SECONDS", 1)
    begun = "tests/kernel/test_a.py::test_one "
    fake.says(
        ("silent", begun),
        (0, "  712 root     S  400 pipe_read agentres metrics\n"),
        (5, counts("no tests ran")),
    )
    part, outcomes = fake.run()
    assert part.failed
    assert outcomes.failed == ["tests/kernel/test_a.py::test_one"]
    log = (fake.folder / "log").read_text()
    assert "pipe_read agentres metrics" in log
    assert "its threads here:\nsleep; " in log


def test_machines_that_die_again_and_again_are_a_failure(fake: Fake) -> None:
    fake.says(*[(125, f"tests/kernel/test_a.py::test_{n} ") for n in range(3)])
    part, _ = fake.run()
    assert "a panic of its kernel" in part.verdict  # found out by whichever look is first
    assert len(fake.asked) == 3


@pytest.mark.parametrize(("status", "verdict"), [(5, "no test selected"), (4, "FAILED (exit 4)")])
def test_a_pytest_that_ran_nothing(fake: Fake, status: int, verdict: str) -> None:
    fake.says((status, counts("no tests ran")))
    part, _ = fake.run()
    assert part.verdict == verdict


def test_what_failed_is_run_alone_and_both_outputs_are_kept(fake: Fake) -> None:
    one, two = "tests/kernel/test_a.py::test_one", "tests/kernel/test_a.py::test_two"
    failed = f"{one} FAILED [50%]\n{two} FAILED [100%]\n==== FAILURES ====\n____ test_one ____\nfor a reason\n____ test_two ____\nelse\n"
    failed += counts("2 failed")
    fake.says((1, failed), (0, f"{one} PASSED [100%]\n"), (1, f"{two} FAILED [100%]\n"))
    _, outcomes = fake.run()
    suite = fake.suites.Suite("as root", "root", options=("--daemon",))
    kept = fake.folder / "flaky.txt"
    found = fake.suites.again(
        fake.suites.Machine(),
        suite,
        outcomes.failed,
        ["--matrix"],
        fake.folder / "log",
        kept,
    )
    assert [flaky.test for flaky in found] == [one]
    assert "--daemon" in fake.asked[1]
    assert fake.asked[1].endswith(f"{one} --matrix")
    text = kept.read_text()
    assert "for a reason" in text
    assert f"{one} PASSED" in text
