"""The wheel and the source distribution: reproducible, whole, and nothing in them that is not meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HATCHLING = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d"]

pytest.importorskip("hatchling", reason="only development has what builds")


def build(tree: Path, into: Path) -> dict[str, Path]:
    """What a build makes, by suffix."""
    subprocess.run(
        [*HATCHLING, str(into)], cwd=tree, check=True, capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )  # fmt: skip
    return {path.suffix: path for path in into.iterdir()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has."""
    into = tmp_path_factory.mktemp("tree") / "agentres"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no clone: there is no saying which files are the project's")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tree, tmp_path_factory.mktemp("built"))


def test_twice_built_is_the_same(tree: Path, built: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(tree, other, copy_function=shutil.copy)
    for path in other.rglob("*"):  # written at another time, by somebody with other habits
        os.utime(path, (1, 1))
        path.chmod(path.stat().st_mode & ~0o077 | 0o600)
    again = build(other, tmp_path / "again")
    assert set(again) == set(built) == {".whl", ".gz"}
    for suffix, path in built.items():
        assert again[suffix].name == path.name
        assert again[suffix].read_bytes() == path.read_bytes(), suffix


def test_the_wheel_has_all_that_runs_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
        (program,) = (name for name in names if name.endswith(".data/scripts/agentres"))
        assert wheel.getinfo(program).external_attr >> 16 & 0o111 == 0o111
        assert "import re" not in wheel.read(program).decode()  # as in the one that pip makes
    assert built[".whl"].name.endswith("-py3-none-any.whl")
    for needed in (
        "agentres/kernel/network.bpf.o", "agentres/systemd/agentres.service", "agentres/py.typed",
        "agentres/tui/app.py", "agentres/report/page.py",
    ):  # fmt: skip
        assert needed in names
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert tops == {"agentres"}
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= names


def test_the_sources_have_what_a_distribution_builds_and_tests_with(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for needed in ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "docs/metrics.md",
                   "tests/unit/test_package.py", "tests/kernel/conftest.py", "systemd/agentres.service"):  # fmt: skip
        assert needed in names, needed
    assert not [name for name in names if name.startswith((".venv", "dist", ".git/"))]


def test_installed_from_the_wheel_it_runs(built: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(built[".whl"])], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import agentres, agentres.__main__ as m; print(agentres.__file__); m.main()", "--version"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
    )  # fmt: skip
    where, version = done.stdout.splitlines()
    assert Path(where).is_relative_to(target)
    assert version.startswith("agentres 0.")


@pytest.mark.parametrize("extra", ["metrics", "report", "tui", "web"])
def test_extras_are_declared(built: dict[str, Path], extra: str) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        text = wheel.read(metadata).decode()
    assert f"Provides-Extra: {extra}\n" in text
    assert f"extra == '{extra}'" in text
