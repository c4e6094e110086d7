"""The Debian package, as far as that is seen without a host: what it is laid out from, and its maintainer's files."""

from __future__ import annotations

import ast
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging/debian"
SCRIPT = (ROOT / "scripts/build-deb").read_text()

sys.path.insert(0, str(ROOT / "scripts"))
from _deb import layout  # noqa: E402


def wheel(folder: Path, name: str, tag: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense-Expression: MIT\n"
    own = {f"{info}/METADATA": metadata, f"{info}/RECORD": "x", f"{info}/licenses/LICENSE": f"Of {name}.\n\nFree."}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, **own}.items():
            archive.writestr(inside, text)
    return path


def compiled(folder: Path, python: str) -> Path:
    short = python.replace(".", "")
    name = f"core/_core.cpython-{short}-x86_64-linux-gnu.so"
    return wheel(folder, "core", f"cp{short}-cp{short}-x", {"core/__init__.py": "1", name: python})


def sources(folder: Path, *more: str) -> Path:
    path = folder / "old-0.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("old/__init__.py", "setup.py", "PKG-INFO", "LICENSE", *more):
            text = b"Name: old\nVersion: 0.2\nLicense: New BSD\n" if name == "PKG-INFO" else b"text"
            info = tarfile.TarInfo(f"old-0.2/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return path


def test_compiled_modules_of_several_pythons_lie_side_by_side(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    archives = [compiled(tmp_path, "3.11"), compiled(tmp_path, "3.13"), sources(tmp_path)]
    layout.lay_out(tree, ["3.11", "3.13"], archives)
    for python in ("3.11", "3.13"):
        site = tree / f"usr/lib/agentres/lib/python{python}/site-packages"
        short = python.replace(".", "")
        assert (site / f"core/_core.cpython-{short}-x86_64-linux-gnu.so").read_text() == python
    assert (site / "old/__init__.py").exists()
    assert not (site / "setup.py").exists()
    assert (tree / "usr/bin/agentres").resolve() == tree / "usr/lib/agentres/bin/agentres"
    first = (tree / "usr/bin/agentres").read_text().splitlines()[0]
    assert first == "#!/usr/lib/agentres/bin/python3 -P"


def test_the_copyright_file_has_every_project_and_the_tree_no_licence(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    own = wheel(tmp_path, "agentres", "py3-none-any", {"agentres/__init__.py": ""})
    layout.lay_out(tree, ["3.11"], [own, compiled(tmp_path, "3.11"), sources(tmp_path)])
    text = layout.copyright_of(tree)
    assert text.startswith("agentres 1.0\n")
    assert "\ncore 1.0\nLicence: MIT\n\n  Of core.\n\n  Free.\n" in text
    assert "\nold 0.2\nLicence: New BSD\n" in text
    left = {path.name for path in tree.rglob("*.dist-info/**/*")}
    assert left == {"METADATA"}


def test_what_the_package_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(layout.NotLaidOut, match=r"core has nothing for Python 3\.12"):
        layout.lay_out(tmp_path / "a", ["3.11", "3.12"], [compiled(tmp_path, "3.11")])
    with pytest.raises(layout.NotLaidOut, match=r"is not pure Python: old/fast\.c"):
        layout.lay_out(tmp_path / "b", ["3.11"], [sources(tmp_path, "old/fast.c")])
    one, two = (wheel(tmp_path, name, "py3-none-any", {"same.py": name}) for name in ("one", "two"))
    with pytest.raises(layout.NotLaidOut, match=r"two-1\.0-.* has another same\.py"):
        layout.lay_out(tmp_path / "c", ["3.11"], [one, two])
    data = wheel(tmp_path, "data", "py3-none-any", {"data-1.0.data/scripts/x": ""})
    with pytest.raises(layout.NotLaidOut, match="elsewhere"):
        layout.lay_out(tmp_path / "d", ["3.11"], [data])


def test_what_runs_is_locked_for_the_package() -> None:
    def names(lines: list[str]) -> set[str]:
        return {re.split("[>=;[ ]", line)[0].lower() for line in lines}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = names([line for line in (ROOT / "requirements/package.txt").read_text().splitlines() if "==" in line])  # fmt: skip
    extras = project["optional-dependencies"]
    assert names([*project["dependencies"], *extras["metrics"], *extras["tui"]]) <= locked
    assert not locked & {"hatchling", "pytest", "matplotlib"}  # nothing that builds or tests


def test_it_has_wheels_for_the_pythons_that_the_virtual_machines_have() -> None:
    from _vm.recipe import PYTHON_OF_RELEASE

    found = re.search(r"^pythons=\((.*?)\)", SCRIPT, re.MULTILINE)
    assert found is not None
    assert set(PYTHON_OF_RELEASE.values()) <= set(found[1].split())


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm", "rtupdate"])
def test_maintainer_scripts_are_shells(name: str) -> None:
    path = PACKAGING / f"agentres.{name}"
    subprocess.run(["sh", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=sh", str(path)], check=True)
    text = path.read_text()
    assert "\nset -e\n" in text
    assert (name == "rtupdate") == ("#DEBHELPER#" not in text)


def test_an_upgrade_stops_nothing() -> None:
    """Agents are in the slice, and who asks meanwhile finds the socket."""
    told = "".join((PACKAGING / f"agentres.{name}").read_text() for name in ("postinst", "postrm"))
    assert not re.search(r"\b(stop|restart) agentres\.(slice|socket)", told)
    prerm = (PACKAGING / "agentres.prerm").read_text()
    assert prerm.index('"$1" = remove') < prerm.index("stop agentres.slice")


def test_its_program_is_python() -> None:
    ast.parse(layout._SCRIPT)
