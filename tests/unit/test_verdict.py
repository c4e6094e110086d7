"""What ``scripts/test`` makes of its parts: where kernel tests run, the last line, the exit status, what is noted for a merge."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import __main__ as tests
from _tests.parts import Part
from _tests.suites import Flaky


class Call(tests._Run):
    """A call that starts nothing: which parts it would have is in ``places``."""

    flaky = 0
    parts: tuple[Part, ...] = (Part("it", "passed", counts={"passed": 3}),)
    whole = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._parts.all += self.parts
        self._flaky = [
            Flaky("as root", f"tests/kernel/test_a.py::test_{n}") for n in range(self.flaky)
        ]

    def _units(self) -> None:
        places.append("units")

    def _up(self) -> None:
        places.append("vm")

    def _down(self) -> None:
        pass

    def _on_this_host(self) -> None:
        places.append("here")

    @property
    def is_whole(self) -> bool:
        return self.whole


places: list[str] = []


@pytest.fixture(autouse=True)
def harmless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing but the verdict: no signals, no variables, no logs of this clone."""
    places.clear()
    monkeypatch.setattr(os, "environ", {**os.environ, "PYTHONPATH": ""})
    for name in ("AGENTRES_VM_ACCEL", "AGENTRES_VM_RELEASE"):
        os.environ.pop(name, None)
    monkeypatch.setattr(tests.signal, "signal", lambda *_: None)
    monkeypatch.setattr(tests, "TREE", tmp_path)
    monkeypatch.setattr(tests, "_Run", Call)
    monkeypatch.setattr(tests, "_refusal", lambda: None)
    monkeypatch.setattr(tests, "_commit", lambda: "c0ffee")
    monkeypatch.setattr(tests, "_git_path", lambda name: tmp_path / name)
    monkeypatch.setattr(tests, "end_children", lambda: None)


def main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["scripts/test", *words])
    return tests.main()


@pytest.mark.parametrize(
    ("words", "refusal", "expected"),
    [
        ((), None, ["here", "units"]),
        ((), "no cgroup v2", ["units", "vm"]),
        (("--vm",), None, ["units", "vm"]),
        (("--stock",), None, ["units", "vm"]),
        (("--release", "bookworm"), None, ["units", "vm"]),
        (("--here",), "no cgroup v2", ["here", "units"]),
        (("--kernel",), None, ["here"]),
        (("--unit",), "no cgroup v2", ["units"]),
    ],
)
def test_kernel_tests_run_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    refusal: str | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(tests, "_refusal", lambda: refusal)
    main(monkeypatch, *words)
    assert sorted(places) == expected


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--vm", "--here"), "are about kernel tests in the VM"),
        (("--stock", "--here"), "are about kernel tests in the VM"),
        (("--release", "trixie", "--unit"), "are about kernel tests in the VM"),
        (("--vm", "--vagrant"), "without --vagrant"),
        (("--", "tests/kernel/test_io.py"), "select tests with -k"),
        (("--", "-m", "alone"), "select them with -k"),
        (("--repeat", "2", "--unit"), "kernel tests in the VM"),
        (("--vagrant", "--stock"), "--vagrant goes with"),
    ],
)
def test_what_does_not_go_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], why: str
) -> None:
    with pytest.raises(SystemExit, match=why):
        main(monkeypatch, *words)
    assert places == []


@pytest.mark.parametrize("name", ["AGENTRES_VM_ACCEL", "AGENTRES_VM_RELEASE"])
@pytest.mark.parametrize(("value", "place"), [("", "here"), ("trixie", "vm")])
def test_a_variable_asks_for_the_vm_unless_it_is_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, place: str
) -> None:
    os.environ[name] = value
    assert main(monkeypatch) == 0
    assert sorted(places) == sorted(["units", place])
    assert (tmp_path / "agentres-tested").exists() == (not value)


def test_a_release_that_nobody_knows_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(monkeypatch, "--release", "buzz")
    assert ended.value.code == 2
    assert "'bookworm', 'trixie'" in capsys.readouterr().err


@pytest.mark.parametrize(("flaky", "status"), [(0, 0), (2, 0), (3, 1)])
def test_two_flaky_tests_are_borne(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flaky: int, status: int
) -> None:
    monkeypatch.setattr(Call, "flaky", flaky)
    assert main(monkeypatch) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f"3 passed, 0 failed, 0 skipped, {flaky} flaky; 0 of 1 parts failed, in "
    )


def test_a_part_that_failed_is_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Call, "parts", (Part("it", "FAILED (exit 1)", counts={"passed": 3}),))
    assert main(monkeypatch) == 1
    assert not (tmp_path / "agentres-tested").exists()


def test_where_no_test_was_selected_nothing_was_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Call, "parts", (Part("it", "no test selected"),))
    assert main(monkeypatch, "--", "-k", "typo") == 1
    assert "no test was selected" in capsys.readouterr().out


def test_a_machine_that_died_is_told_though_all_is_green(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "as root: the machine has been silent for 400 s, during no test"
    monkeypatch.setattr(Call, "parts", (Part("it", "passed", counts={"passed": 3}, deaths=[told]),))
    assert main(monkeypatch) == 0
    out = capsys.readouterr().out
    assert told in out
    assert "0 flaky, machines died: 1;" in out


def test_a_whole_green_call_is_noted_with_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(monkeypatch, "--vm") == 0
    noted = (tmp_path / "agentres-tested").read_text()
    assert noted == "c0ffee 3 passed, 0 failed, 0 skipped, 0 flaky\n"


@pytest.mark.parametrize(
    "words",
    [("--unit",), ("--kernel",), ("--here",), ("--stock",), ("--release", "trixie"), ("--", "-x")],
)
def test_less_than_the_whole_is_not_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert main(monkeypatch, *words) == 0
    assert not (tmp_path / "agentres-tested").exists()


@pytest.mark.parametrize("commits", [["", ""], ["c0ffee", ""], ["c0ffee", "decaf"]])
def test_a_tree_that_is_no_commit_or_another_at_the_end_is_not_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, commits: list[str]
) -> None:
    monkeypatch.setattr(tests, "_commit", lambda: commits.pop(0))
    assert main(monkeypatch, "--vm") == 0
    assert not (tmp_path / "agentres-tested").exists()


def test_an_interrupted_call_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "all", interrupted)
    assert main(monkeypatch) == 130
    assert capsys.readouterr().err == "test: interrupted\n"
