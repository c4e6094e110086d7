"""Which machine of ``scripts/test`` runs which kernel tests: each test once as root, and none that bears no company beside others."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import __main__ as tests
from _tests.suites import Suite

KERNEL = Path(__file__).parents[1] / "kernel"
FILES = {f"tests/kernel/{path.name}" for path in KERNEL.glob("test_*.py")}


def files(suite: Suite) -> set[str]:
    """Those that pytest takes for it."""
    if suite.paths != ("tests/kernel",):
        return set(suite.paths)
    return FILES - {word.partition("=")[2] for word in suite.options if word.startswith("--ignore")}


@pytest.mark.parametrize(
    ("first", "rest"), [(tests._MANY, tests._REST_OF_MANY), (tests._TWO, tests._REST_OF_TWO)]
)
def test_each_file_is_run_once_as_root_and_twice_as_a_user(
    first: dict[str, Suite], rest: tuple[Suite, ...]
) -> None:
    suites = [*first.values(), *rest]
    of_root = [file for suite in suites if suite.user == "root" for file in files(suite)]
    assert sorted(of_root) == sorted(FILES - {*tests._OF_DEV})
    of_dev = [file for suite in suites if suite.user == "dev" for file in files(suite)]
    others = FILES - {*tests._OF_THE_HOST, *tests._OF_DEV}
    assert sorted(of_dev) == sorted([*others, *others, *tests._OF_DEV])


def test_the_host_is_restarted_in_the_machine_that_its_tests_had() -> None:
    assert tests._MANY[""] is tests._TWO[""] is tests._HOST


def test_what_bears_no_company_is_run() -> None:
    run_alone = set.intersection(*(files(suite) for suite in tests._ALONE))
    alone = {
        file for file in FILES if re.search(r"mark\.alone", (KERNEL / Path(file).name).read_text())
    }
    assert alone
    assert alone <= run_alone


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_rounds_are_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tests._parser().parse_args([f"--repeat={text}"])
    assert "expected a number of rounds" in capsys.readouterr().err
