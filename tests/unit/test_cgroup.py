"""One cgroup, on a fake cgroupfs: a folder whose control files exist beforehand.

What only the kernel decides (rmdir of a cgroup with files, EBUSY, what a value may be) is tested on a
kernel.  /dev/null stands for a file that takes a value and does not keep it, /dev/full for one that
refuses every write.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentres.kernel.cgroup import Cgroup, holds
from agentres.model.errors import ControlFileError
from agentres.model.limits import ControlLine, IoMax, Limits, UnenforcedLimit
from agentres.model.stats import Usage

Make = Callable[..., Cgroup]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Make]:
    """A cgroup made of control file -> text, its dots written as ``__``."""
    made = []

    def make(**files: str) -> Cgroup:
        path = tmp_path / f"group{len(made)}"
        path.mkdir()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)
        made.append(Cgroup(str(path)))
        return made[-1]

    yield make
    for cgroup in made:
        cgroup.close()


def text_of(cgroup: Cgroup, name: str) -> str:
    return Path(cgroup.path, name).read_text()


def test_a_missing_cgroup_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ControlFileError) as caught:
        Cgroup(f"{tmp_path}/gone")
    error = caught.value
    assert (error.path, error.data, error.errno) == (f"{tmp_path}/gone", None, errno.ENOENT)


def test_a_file_is_no_cgroup(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlFileError) as caught:
        Cgroup(f"{tmp_path}/file")
    assert caught.value.errno == errno.ENOTDIR


def test_closing_twice_is_no_error(fake: Make) -> None:
    cgroup = fake()
    cgroup.close()
    cgroup.close()
    assert cgroup.fd == -1


def test_a_cgroup_stays_itself_when_another_takes_its_path(fake: Make, tmp_path: Path) -> None:
    cgroup = fake(memory__max="first")
    os.rename(cgroup.path, tmp_path / "moved")
    os.mkdir(cgroup.path)
    Path(cgroup.path, "memory.max").write_text("second")
    assert cgroup.get_property("memory.max") == "first"


# Control files.


def test_a_write_invents_no_file(fake: Make) -> None:
    cgroup = fake()
    with pytest.raises(ControlFileError):
        cgroup.set_property("memory.max", "5")
    assert os.listdir(cgroup.path) == []


def test_a_failing_write_tells_path_data_and_errno(fake: Make) -> None:
    cgroup = fake()
    with pytest.raises(ControlFileError) as caught:
        cgroup.set_property("memory.max", "5")
    error = caught.value
    assert (error.path, error.data, error.errno) == (f"{cgroup.path}/memory.max", "5", errno.ENOENT)
    assert str(error) == f"cannot write '5' to {cgroup.path}/memory.max: no such file or directory"


def test_a_write_that_the_kernel_refuses_tells_its_answer(fake: Make) -> None:
    cgroup = fake()
    os.symlink("/dev/full", f"{cgroup.path}/pids.max")
    with pytest.raises(ControlFileError) as caught:
        cgroup.set_property("pids.max", "5")
    assert (caught.value.data, caught.value.errno) == ("5", errno.ENOSPC)


def test_a_failing_read_tells_path_and_errno_and_no_data(fake: Make) -> None:
    cgroup = fake()
    with pytest.raises(ControlFileError) as caught:
        cgroup.get_property("cpu.stat")
    error = caught.value
    assert (error.path, error.data, error.errno) == (f"{cgroup.path}/cpu.stat", None, errno.ENOENT)
    assert str(error) == f"cannot read {cgroup.path}/cpu.stat: no such file or directory"


def test_every_write_is_logged_as_path_and_value(
    fake: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="agentres")
    cgroup = fake(pids__max="")
    cgroup.set_property("pids.max", "512")
    assert caplog.messages == [f"{cgroup.path}/pids.max = 512"]


def test_has_tells_which_control_files_there_are(fake: Make) -> None:
    cgroup = fake(memory__peak="1")
    assert cgroup.has("memory.peak")
    assert not cgroup.has("pids.peak")


@pytest.mark.parametrize(
    ("file", "text", "attribute", "value"),
    [
        ("cgroup.controllers", "cpu io memory\n", "controllers", ["cpu", "io", "memory"]),
        ("cgroup.controllers", "\n", "controllers", []),
        ("cgroup.subtree_control", "", "subtree_control", []),
        ("cgroup.procs", "1\n22\n", "procs", ["1", "22"]),
        ("cgroup.freeze", "1\n", "freeze", True),
        ("cgroup.freeze", "0\n", "freeze", False),
    ],
)
def test_a_control_file_reads_as_a_typed_attribute(
    fake: Make, file: str, text: str, attribute: str, value: Any
) -> None:
    cgroup = fake(**{file: text})
    assert getattr(cgroup, attribute) == value


@pytest.mark.parametrize(
    ("file", "attribute", "value", "text"),
    [
        ("cgroup.kill", "kill", True, "1"),
        ("cgroup.freeze", "freeze", True, "1"),
        ("cgroup.freeze", "freeze", False, "0"),
        ("cgroup.procs", "procs", ["12"], "12"),
        ("cgroup.subtree_control", "subtree_control", ["+cpu", "-io"], "+cpu -io"),
    ],
)
def test_a_typed_attribute_writes_its_control_file(
    fake: Make, file: str, attribute: str, value: Any, text: str
) -> None:
    cgroup = fake(**{file: ""})
    setattr(cgroup, attribute, value)
    assert text_of(cgroup, file) == text


def test_what_the_kernel_only_tells_cannot_be_written(fake: Make) -> None:
    cgroup = fake(cgroup__controllers="")
    with pytest.raises(RuntimeError, match="readonly"):
        cgroup.controllers = ["x"]


def test_kill_cannot_be_read(fake: Make) -> None:
    with pytest.raises(RuntimeError, match="writeonly"):
        _ = fake(cgroup__kill="0").kill


# The tree.


def test_create_makes_a_child_and_opens_it(fake: Make) -> None:
    parent = fake()
    child = parent.create("agent")
    assert child.path == f"{parent.path}/agent"
    assert os.path.samestat(os.fstat(child.fd), os.stat(child.path))
    child.close()


def test_a_child_that_exists_is_eexist(fake: Make) -> None:
    parent = fake()
    parent.create("agent").close()
    with pytest.raises(ControlFileError) as caught:
        parent.create("agent")
    assert (caught.value.path, caught.value.errno) == (f"{parent.path}/agent", errno.EEXIST)


def test_children_are_directories_and_nothing_else(fake: Make) -> None:
    parent = fake(cgroup__procs="")
    for name in ("a", "b"):
        parent.create(name).close()
    os.symlink("/", f"{parent.path}/link")
    assert sorted(parent.children()) == ["a", "b"]
    assert sorted(parent.children()) == ["a", "b"]  # the fd is not used up


def test_only_the_root_has_no_type(fake: Make) -> None:
    assert fake().is_root
    assert not fake(cgroup__type="domain\n").is_root


def test_enable_writes_what_is_not_enabled_yet(fake: Make) -> None:
    cgroup = fake()
    written: list[str] = []
    with_file = Path(cgroup.path, "cgroup.subtree_control")
    with_file.write_text("cpu\n")
    cgroup.set_property = lambda name, value: written.append(value)  # type: ignore[method-assign]
    cgroup.enable(["cpu", "memory", "pids"])
    cgroup.enable(["cpu"])
    assert written == ["+memory +pids"]


def test_enable_waits_for_processes_that_are_exiting(fake: Make) -> None:
    cgroup = fake(cgroup__subtree_control="")
    written: list[str] = []

    def busy(name: str, value: str) -> None:
        written.append(value)
        if len(written) < 4:
            raise ControlFileError(f"{cgroup.path}/{name}", value, errno.EBUSY)

    cgroup.set_property = busy  # type: ignore[method-assign]
    with pytest.raises(ControlFileError, match="device or resource busy"):
        cgroup.enable(["cpu"])
    cgroup.enable(["cpu"], timeout=60.0)
    assert written == ["+cpu"] * 4


def test_disable_all_takes_back_what_is_enabled(fake: Make) -> None:
    cgroup = fake(cgroup__subtree_control="cpu io")
    cgroup.disable_all()
    assert text_of(cgroup, "cgroup.subtree_control") == "-cpu -io"


def test_move_here_writes_the_pid(fake: Make) -> None:
    cgroup = fake(cgroup__procs="")
    cgroup.move_here(0)
    assert text_of(cgroup, "cgroup.procs") == "0"


@pytest.mark.parametrize(
    ("text", "populated"), [("populated 1\nfrozen 0\n", True), ("populated 0\n", False)]
)
def test_populated_is_the_kernels_word(fake: Make, text: str, populated: bool) -> None:
    assert fake(cgroup__events=text).populated is populated


def test_a_cgroup_without_the_attribute_is_not_delegated(fake: Make) -> None:
    assert fake().delegated is False


# Limits.

MEMORY, PIDS = ControlLine("memory.max", "4096"), ControlLine("pids.max", "max")


def test_apply_writes_every_setting(fake: Make) -> None:
    cgroup = fake(memory__max="", pids__max="")
    assert cgroup.apply([MEMORY, PIDS]) == []
    assert (text_of(cgroup, "memory.max"), text_of(cgroup, "pids.max")) == ("4096", "max")


def test_apply_writes_in_the_given_order(fake: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="agentres")
    cgroup = fake(**{"memory.oom.group": "", "memory.max": ""})
    cgroup.apply(Limits(memory=4096).lines())
    names = [message.removeprefix(cgroup.path + "/") for message in caplog.messages]
    assert names == ["memory.oom.group = 0", "memory.max = 4096"]


def test_a_missing_file_is_a_missing_controller_and_spoils_no_other(fake: Make) -> None:
    cgroup = fake(pids__max="")
    why = "there is no memory.max: the memory controller is not available"
    assert cgroup.apply([MEMORY, PIDS]) == [UnenforcedLimit(MEMORY, why)]
    assert text_of(cgroup, "pids.max") == "max"


def test_a_value_that_is_not_kept_does_not_hold(fake: Make) -> None:
    cgroup = fake()
    os.symlink("/dev/null", f"{cgroup.path}/memory.max")
    assert cgroup.apply([MEMORY]) == [UnenforcedLimit(MEMORY, "memory.max reads back ''")]


def test_another_value_does_not_hold(fake: Make) -> None:
    cgroup = fake(memory__max="1111999\n")
    assert cgroup.apply([MEMORY]) == [UnenforcedLimit(MEMORY, "memory.max reads back '4096999'")]


@pytest.mark.parametrize("garbage", [" junk", "\n\n8:16 rbps=1"])
def test_garbage_that_is_read_back_does_not_hold_and_spoils_no_other(
    fake: Make, garbage: str
) -> None:
    line = IoMax("8:0", rbps=5).line()
    cgroup = fake(io__max="x" * len(line.text) + garbage, pids__max="")
    why = f"io.max reads back {line.text + garbage!r}"
    assert cgroup.apply([line, PIDS]) == [UnenforcedLimit(line, why)]
    assert text_of(cgroup, "pids.max") == "max"


def test_a_refused_write_does_not_hold_and_says_the_answer(fake: Make) -> None:
    cgroup = fake()
    os.symlink("/dev/full", f"{cgroup.path}/memory.max")
    (refused,) = cgroup.apply([MEMORY])
    assert refused.line == MEMORY
    assert refused.why.endswith("memory.max: no space left on device")


def test_a_device_that_takes_no_limit_is_named(fake: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(filename: str, value: str) -> None:
        raise ControlFileError(filename, value, errno.ENODEV)

    cgroup = fake()
    monkeypatch.setattr(cgroup, "set_property", refuse)
    line = IoMax("8:1", rbps=5).line()
    assert cgroup.apply([line]) == [UnenforcedLimit(line, "device 8:1 takes no io.max")]


def test_apply_invents_no_file(fake: Make) -> None:
    cgroup = fake()
    cgroup.apply([MEMORY, PIDS, IoMax("8:0", rbps=1).line()])
    assert os.listdir(cgroup.path) == []


IO = IoMax("8:0", rbps=5).line()


@pytest.mark.parametrize(
    ("line", "found", "held"),
    [
        (ControlLine("memory.max", "4096"), "4096\n", True),
        (ControlLine("memory.max", "4096"), "8192\n", False),
        (ControlLine("memory.max", "4096"), "max\n", False),
        (ControlLine("memory.max", "4096"), "", False),
        (ControlLine("memory.max", "max"), "max\n", True),
        (ControlLine("cpu.max", "150000 100000"), "150000 100000\n", True),
        (ControlLine("cpu.max", "150000 100000"), "max 100000\n", False),
        (IO, "8:0 rbps=5 wbps=max riops=max wiops=max\n", True),
        (IO, "8:0 wiops=max riops=max wbps=max rbps=5\n", True),
        (IO, "8:16 rbps=7 wbps=1 riops=1 wiops=1\n8:0 rbps=5 wbps=max riops=max wiops=max\n", True),
        (IO, "8:0 rbps=6 wbps=max riops=max wiops=max\n", False),
        (IO, "8:0 rbps=5\n", False),
        (IO, "8:16 rbps=5 wbps=max riops=max wiops=max\n", False),
        (IO, "", False),
    ],
)
def test_a_line_holds_when_the_file_says_so(line: ControlLine, found: str, held: bool) -> None:
    assert holds(line, found) is held


# What was used.


def test_usage_reads_the_files_that_are_there(fake: Make) -> None:
    cgroup = fake(**{"memory.peak": "77\n", "pids.events": "max 2\n"})
    assert cgroup.usage() == (Usage(memory_peak=77, pids_max_events=2), {})


def test_usage_tells_which_file_holds_garbage(fake: Make) -> None:
    found, garbage = fake(**{"memory.peak": "lots\n"}).usage()
    assert found == Usage()
    assert list(garbage) == ["memory.peak"]


# The end.


def test_kill_all_kills_and_says_that_nothing_is_left(fake: Make) -> None:
    cgroup = fake(cgroup__kill="", cgroup__events="populated 0\nfrozen 0\n")
    assert cgroup.kill_all() is True
    assert text_of(cgroup, "cgroup.kill") == "1"


def test_kill_all_says_when_something_survives(fake: Make) -> None:
    cgroup = fake(cgroup__kill="", cgroup__events="populated 1\nfrozen 0\n")
    assert cgroup.kill_all(timeout=0) is False


def test_remove_tree_removes_the_deepest_first(fake: Make) -> None:
    cgroup = fake()
    os.makedirs(f"{cgroup.path}/a/b/c")
    os.makedirs(f"{cgroup.path}/a/d")
    os.makedirs(f"{cgroup.path}/e")
    cgroup.remove_tree()
    assert not os.path.exists(cgroup.path)
    assert cgroup.fd == -1


def test_remove_tree_leaves_what_is_beside_it(fake: Make) -> None:
    one, other = fake(), fake()
    one.remove_tree()
    assert os.path.isdir(other.path)


def test_a_tree_that_has_gone_is_removed(fake: Make) -> None:
    cgroup = fake()
    os.rmdir(cgroup.path)
    cgroup.remove_tree()
    assert cgroup.fd == -1


def test_what_cannot_be_removed_is_told_with_its_errno(fake: Make) -> None:
    cgroup = fake()
    os.mkdir(f"{cgroup.path}/a")
    Path(cgroup.path, "a", "file").touch()
    with pytest.raises(ControlFileError) as caught:
        cgroup.remove_tree()
    assert (caught.value.path, caught.value.errno) == (f"{cgroup.path}/a", errno.ENOTEMPTY)


def test_remove_tree_follows_no_symbolic_link(fake: Make, tmp_path: Path) -> None:
    (tmp_path / "outside" / "below").mkdir(parents=True)
    cgroup = fake()
    os.symlink(tmp_path / "outside", f"{cgroup.path}/link")
    with pytest.raises(ControlFileError):
        cgroup.remove_tree()
    assert (tmp_path / "outside" / "below").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root out")
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o555])
def test_remove_tree_opens_what_the_agent_has_shut(fake: Make, mode: int) -> None:
    cgroup = fake()
    os.makedirs(f"{cgroup.path}/a/b/c")
    for path in ("a/b", "a", "."):
        os.chmod(f"{cgroup.path}/{path}", mode)
    cgroup.remove_tree()
    assert not os.path.exists(cgroup.path)
