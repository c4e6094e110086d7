"""Which machine of ``scripts/test`` runs which kernel tests: each test once as root, and in no more company than it bears."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import __main__ as tests
from _tests.phases import HOST, MANY, OF_DEV, OF_THE_HOST, TWO, Phase
from _tests.suites import Suite

KERNEL = Path(__file__).parents[1] / "kernel"
FILES = {f"tests/kernel/{path.name}" for path in KERNEL.glob("test_*.py")}


def files(suite: Suite) -> set[str]:
    """Those that pytest takes for it."""
    if suite.paths != ("tests/kernel",):
        return set(suite.paths)
    return FILES - {word.partition("=")[2] for word in suite.options if word.startswith("--ignore")}


PLANS = pytest.mark.parametrize("phases", [MANY, TWO], ids=["many", "two"])


def suites(phase: Phase) -> list[Suite]:
    return [*phase.first.values(), *phase.rest]


def marked(mark: str) -> set[str]:
    """The files with tests that have it."""
    pattern = re.compile(rf"mark\.{mark}\b")
    return {file for file in FILES if pattern.search((KERNEL / Path(file).name).read_text())}


@pytest.mark.parametrize("phase", [MANY[0], TWO[0]], ids=["many", "two"])
def test_each_file_is_run_once_as_root_and_twice_as_a_user(phase: Phase) -> None:
    of_root = [file for suite in suites(phase) if suite.user == "root" for file in files(suite)]
    assert sorted(of_root) == sorted(FILES - {*OF_DEV})
    of_dev = [file for suite in suites(phase) if suite.user == "dev" for file in files(suite)]
    others = FILES - {*OF_THE_HOST, *OF_DEV}
    assert sorted(of_dev) == sorted([*others, *others, *OF_DEV])


@PLANS
def test_the_host_is_restarted_in_the_machine_that_its_tests_had(
    phases: tuple[Phase, ...],
) -> None:
    assert phases[0].first[""] is HOST


@PLANS
def test_what_bears_little_company_is_run_once_as_root_and_twice_as_a_user(
    phases: tuple[Phase, ...],
) -> None:
    assert [phase.mark for phase in phases[1:]] == ["beside_one", "alone"]
    for phase in phases[1:]:
        files_of_it = marked(phase.mark)
        assert files_of_it
        for user, times in ("root", 1), ("dev", 2):
            run = [f for suite in suites(phase) if suite.user == user for f in files(suite)]
            assert all(run.count(file) == times for file in files_of_it), user
        assert len(phase.first) <= (2 if phase.mark == "beside_one" else 1)


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_rounds_are_a_number(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # --vagrant and --unit together are refused, too: nothing is ever run from here.
    monkeypatch.setattr(sys, "argv", ["test", "--vagrant", "--unit", f"--repeat={text}"])
    with pytest.raises(SystemExit):
        tests.main()
    assert "expected a number of rounds" in capsys.readouterr().err
