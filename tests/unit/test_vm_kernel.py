"""The kernel that ``scripts/vm`` builds: which source, with all of its options, and what becomes of a build that failed."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _vm import kernel
from _vm.config import Settings, VmError

SETTINGS = Settings.from_environment()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept; nothing is built, and nothing fetched."""
    monkeypatch.setattr(kernel, "cache_dir", lambda: tmp_path)
    (tmp_path / "kernels").mkdir()
    return tmp_path / "kernels"


def wanted() -> list[str]:
    return [line for line in kernel.OPTIONS.read_text().splitlines() if "CONFIG_" in line]


def test_a_configuration_that_has_them_all_is_taken(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text("\n".join([*wanted(), "CONFIG_SOMETHING_ELSE=y"]))
    kernel.check_options(config)
    # One that is to be off may be unknown to this kernel.
    config.write_text("\n".join(line for line in wanted() if not line.startswith("#")))
    kernel.check_options(config)


@pytest.mark.parametrize("line", [line for line in wanted() if not line.startswith("#")][:40])
def test_one_that_was_lost_on_the_way_is_told(tmp_path: Path, line: str) -> None:
    config = tmp_path / ".config"
    config.write_text("\n".join(each for each in wanted() if each != line))
    with pytest.raises(VmError, match="does not take") as raised:
        kernel.check_options(config)
    assert line in str(raised.value)


@pytest.mark.parametrize(
    ("package", "number"),
    [("linux-source-6.19", (6, 19)), ("linux-source-7.3", (7, 3)), ("linux-source", None), ("linux-source-6.12-rt", None)],
)  # fmt: skip
def test_the_number_of_a_source(package: str, number: tuple[int, int] | None) -> None:
    assert kernel.source_version(package) == number


def test_a_build_that_failed_is_not_tried_at_every_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.failure_file(folder).write_text("make: exit 2")
    with pytest.raises(VmError, match="make: exit 2; `scripts/vm build` tries again"):
        kernel.ensure_kernel(SETTINGS)
    yesterday = time.time() - kernel.FAILURE_KEPT - 1
    os.utime(kernel.failure_file(folder), (yesterday, yesterday))
    assert kernel.failure(folder) == ""
    kernel.failure_file(folder).write_text("again")
    kernel.forget_failure()
    assert kernel.failure(folder) == ""


def test_what_fails_is_noted_for_these_options_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Path:
        raise VmError("make: exit 2\nand more")

    monkeypatch.setattr(kernel.host, "ensure_packages", lambda packages: None)
    monkeypatch.setattr(kernel.host, "run_logged", lambda *_, **__: None)
    monkeypatch.setattr(kernel, "host_mirror", lambda: "somewhere")
    monkeypatch.setattr(
        kernel, "find_source", lambda *_: (["apt-get"], "linux-source-7.3", "7.3.4-1")
    )
    monkeypatch.setattr(kernel, "compile_source", fails)
    with pytest.raises(VmError, match="make: exit 2"):
        kernel.ensure_kernel(SETTINGS)
    assert kernel.failure(folder) == "make: exit 2"
    assert [path.name for path in folder.glob(".build-*")] == []
    options = folder.parent / "uml.config"
    options.write_text("CONFIG_OTHER=y\n")
    monkeypatch.setattr(kernel, "OPTIONS", options)
    assert kernel.failure(folder) == ""


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch(1)")
def test_a_patch_is_applied_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, source = tmp_path / "our.patch", tmp_path / "source"
    patch.write_text("Why.\n\n--- a/one\n+++ b/one\n@@ -1 +1 @@\n-old\n+new\n")
    monkeypatch.setattr(kernel, "PATCH", patch)
    source.mkdir()
    for before, after, fits in (("old\n", "new\n", True), ("other\n", "other\n", False)):
        (source / "one").write_text(before)
        assert kernel.apply_patch(source, tmp_path / "log") == fits
        assert (source / "one").read_text() == after
    assert [path.name for path in source.iterdir()] == ["one"]


@pytest.mark.parametrize("fits", [True, False])
def test_whether_a_kernel_has_the_patch_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    def make(work: Path, *_: object) -> Path:
        (work / "linux").touch()
        return work / "linux"

    monkeypatch.setattr(kernel.host, "ensure_packages", lambda packages: None)
    monkeypatch.setattr(kernel.host, "run_logged", lambda *_, **__: None)
    monkeypatch.setattr(kernel, "host_mirror", lambda: "somewhere")
    monkeypatch.setattr(
        kernel, "find_source", lambda *_: (["apt-get"], "linux-source-7.3", "7.3.4-1")
    )
    monkeypatch.setattr(kernel, "compile_source", make)
    monkeypatch.setattr(kernel, "apply_patch", lambda *_: fits)
    assert kernel.is_patched(kernel.ensure_kernel(SETTINGS)) == fits


def apt(folder: Path, **suites: str) -> None:
    """Have apt-get and apt-cache in a folder, with these packages and versions in each suite."""
    for suite, packages in suites.items():
        (folder / suite).write_text(packages)
    list_ = "for word; do case $word in -oDir::Etc::SourceList=*) list=${word#*=};; esac; done\n"
    update = f'suite=$(cut -d" " -f4 "$list"); test -e {folder}/$suite && cp {folder}/$suite {folder}/now'
    cache = f"case $* in *pkgnames*) cut -d' ' -f1 {folder}/now;; *) sed -n 's/.* /Version: /p' {folder}/now | tail -n 1;; esac"
    for name, text in (("apt-get", list_ + update), ("apt-cache", cache)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(kernel.host, "ENVIRONMENT", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setattr(os, "environ", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    (tmp_path / "work").mkdir()
    _, package, version = kernel.find_source(tmp_path / "work", "mirror", tmp_path / "log")
    return package, version


def test_the_first_suite_with_a_source_that_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (
        "linux-source-6.12 6.12.1-1\n",
        "linux-source-6.12 6.12.1-1\nlinux-source-7.3 7.3.4-1\n",
    )
    apt(tmp_path, trixie=old, testing=new, unstable="linux-source-7.4 7.4.1-1\n")
    assert found(tmp_path, monkeypatch) == ("linux-source-7.3", "7.3.4-1")


@pytest.mark.parametrize("suites", [{"trixie": "linux-source-6.12 6.12.1-1\n"}, {}])
def test_no_source_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suites: dict[str, str]
) -> None:
    apt(tmp_path, **suites)
    with pytest.raises(VmError, match="no suite of mirror has"):
        found(tmp_path, monkeypatch)


def test_without_apt_there_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.host, "ENVIRONMENT", {"PATH": str(tmp_path)})
    monkeypatch.setattr(os, "environ", {"PATH": str(tmp_path)})
    with pytest.raises(VmError, match="apt-get: No such file"):
        kernel.find_source(tmp_path / "work", "mirror", tmp_path / "log")


def test_the_newest_build_with_these_options_is_taken(folder: Path) -> None:
    for number, name in enumerate([f"6.19-{kernel.key()}", f"7.3-{kernel.key()}", "7.4-others"]):
        (folder / name).mkdir()
        (folder / name / "linux").touch()
        os.utime(folder / name / "linux", (number, number))
    assert kernel.ensure_kernel(SETTINGS) == folder / f"7.3-{kernel.key()}" / "linux"
