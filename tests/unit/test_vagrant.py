"""The box and the Vagrant run: what is decided before anything is started."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import parts, vagrant
from _vm import bootdisk, box
from _vm.config import VmError

FOLDER = Path("/cache/vagrant")


def test_the_loader_boots_as_scripts_vm_does_but_asks_for_an_address() -> None:
    (append,) = (x for x in bootdisk.loader_config().splitlines() if "APPEND" in x)
    words = append.split()
    assert {"root=LABEL=root", "rw", "psi=1", "net.ifnames=0"} <= set(words)
    assert "agentres.vm" not in words


def test_the_key_changes_with_what_the_loader_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = box.key()
    assert box.key() == before
    monkeypatch.setattr(bootdisk, "loader_config", lambda: "another")
    assert box.key() != before


def test_a_box_has_a_second_name_and_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "box").write_text("new")
    (tmp_path / "output").write_text("old")
    box.copy(tmp_path / "box", tmp_path / "output")
    assert (tmp_path / "output").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box", "output"]


def test_a_box_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "box").touch()
    with pytest.raises(VmError, match=r"cannot write .*nowhere/output: No such file or directory"):
        box.copy(tmp_path / "box", tmp_path / "nowhere" / "output")


def test_pytests_arguments_reach_it_whole() -> None:
    arguments = ["-k", "pids or memory", "-x"]
    for _, command in vagrant.steps("trixie", FOLDER, arguments).tests:
        there = shlex.split(command[-1])
        assert there[-4:] == ["--", *arguments]
        assert "$PATH" not in shlex.join(there[-4:])


def test_what_is_made_is_undone() -> None:
    steps = vagrant.steps("bookworm", FOLDER, [])
    up = [" ".join(command) for _, command in steps.up]
    down = [" ".join(command) for _, command in reversed(steps.down)]
    assert "pool-create-as agentres" in up[0]
    assert down[0].endswith("pool-destroy agentres")
    assert "box add --name agentres-bookworm" in up[1]
    assert down[1].endswith("box remove --force agentres-bookworm")
    assert (up[2][-2:], down[2].split()[-2:]) == ("up", ["destroy", "--force"])


def test_what_a_killed_run_has_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    monkeypatch.setattr(vagrant, "STATE", (str(there), str(missing)))
    folder = tmp_path / "vagrant"
    with vagrant.fresh_folder(folder):
        vagrant.make_mount_points(folder / vagrant.NOTE)
        shutil.copytree(folder, tmp_path / "killed")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "killed"}
    missing.mkdir()
    (tmp_path / "killed").rename(folder)
    with vagrant.fresh_folder(folder):
        assert not missing.exists()
        assert not (folder / vagrant.NOTE).exists()
    assert list(tmp_path.iterdir()) == [there]


class Called(parts.Parts):
    """Parts of which those that are named fail, and none is run."""

    def __init__(self, failing: str) -> None:
        self.all, self._failing = [], failing

    def command(self, name: str, line: object, cwd: Path, by: object = ()) -> parts.Part:
        verdict = "FAILED" if name == self._failing else "passed"
        self.all.append(parts.Part(name, verdict))
        return self.all[-1]


@pytest.mark.parametrize("failing", ["", "vagrant up", "kernel tests in Vagrant, as vagrant"])
def test_whatever_fails_is_followed_by_the_undoing(failing: str) -> None:
    steps = vagrant.steps("trixie", FOLDER, [])
    called = Called(failing)
    vagrant.run_steps(called, [], steps)
    names = [part.name for part in called.all]
    tests = [] if failing == "vagrant up" else [name for name, _ in steps.tests]
    assert names == [*(n for n, _ in steps.up), *tests, *(n for n, _ in steps.down)]
