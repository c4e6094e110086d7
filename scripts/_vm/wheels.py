"""Fetches, on the host, the wheels of the guest's Python environment.

The guest and its chroot see no index, and have another Python than the host.
"""

import sys
from pathlib import Path

from .config import VmError
from .host import run_logged

# Debian 13 has glibc 2.41; pip wants every acceptable platform named.
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)]
_PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def fetch_wheels(requirements: Path, python: str, work: Path, log: Path) -> Path:
    """Download the locked requirements for the guest's Python; the folder of wheels."""
    pip = _throwaway_pip(work / "host-venv", log)
    downloads, wheels = work / "downloads", work / "wheels"
    wheels.mkdir()
    # The lock is complete, hence --no-deps; its hashes make pip verify every file.
    download = [*pip, "download", "--require-hashes", "--no-deps", "--dest", downloads]
    run_logged([*download, *_target(python), "--requirement", requirements], log)
    for path in sorted(downloads.iterdir()):
        if path.suffix == ".whl":
            path.rename(wheels / path.name)
        else:
            _build_wheel(pip, path, wheels, log)
    return wheels


def _throwaway_pip(venv: Path, log: Path) -> list[str | Path]:
    """A current pip, whatever the host has."""
    run_logged([sys.executable, "-m", "venv", venv], log)
    pip: list[str | Path] = [
        venv / "bin" / "python",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run_logged([*pip, "install", "--upgrade", "pip"], log)
    return pip


def _target(python: str) -> list[str]:
    options = ["--implementation", "cp", "--python-version", python]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for platform in _PLATFORMS:
        options += ["--platform", platform]
    return options


def _build_wheel(pip: list[str | Path], sdist: Path, wheels: Path, log: Path) -> None:
    """Build the wheel of a project that publishes its source only."""
    before = set(wheels.iterdir())
    run_logged([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, sdist], log)
    for wheel in set(wheels.iterdir()) - before:
        if not wheel.name.endswith("-none-any.whl"):
            raise VmError(f"{sdist.name} is not pure Python: it cannot be built for the guest here")
