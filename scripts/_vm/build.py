"""Builds an image's files in a work folder. Part of the image's recipe."""

import os
import sys
from pathlib import Path

from . import host
from .mirror import host_mirror
from .recipe import DATA_DISK, PACKAGES, Recipe
from .wheels import fetch_wheels

# What an image consists of; everything else in the work folder is thrown away.
IMAGE_FILES = ("root.img", "data.img", "vmlinuz", "initrd.img", "key", "key.pub", "known_hosts")


def build_files(recipe: Recipe, mirror: str | None, work: Path, log: Path) -> None:
    """Make the files of an image."""
    with host.step(f"fetching wheels for Python {recipe.python}"):
        fetch_wheels(recipe.requirements, recipe.python, work, log)
    with host.step(f"bootstrapping Debian {recipe.release}"):
        _bootstrap(recipe, mirror or host_mirror(), work, log)
    with host.step("making the disk image"):
        _make_disks(recipe, work, log)


def _bootstrap(recipe: Recipe, mirror: str | None, work: Path, log: Path) -> None:
    root = os.geteuid() == 0
    command = ["mmdebstrap", "--variant=minbase", f"--mode={'root' if root else 'unshare'}"]
    command += ["--architectures=amd64", f"--include={','.join(PACKAGES)}"]
    for pattern in ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*"):
        command.append(f"--dpkgopt=path-exclude={pattern}")
    # Nothing is lost in a power failure that a new build does not bring back.
    command.append("--dpkgopt=force-unsafe-io")
    command += [recipe.release, str(work / "rootfs.tar")]
    if mirror:
        command.append(mirror)
    environment = dict(host.ENVIRONMENT)
    if root:
        # What a killed run leaves is then swept with the work folder. The namespace of an
        # ordinary user cannot enter a private folder, so there it stays the system's.
        environment["TMPDIR"] = str(work)
    host.run_logged(command, log, env=environment)


def _make_disks(recipe: Recipe, work: Path, log: Path) -> None:
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agentres-vm"]
    host.run_logged([*keygen, "-f", work / "key"], log)
    rootfs = host.as_root_of_namespace(
        [sys.executable, "-B", "-m", "_vm.rootfs", recipe.release, work]
    )
    host.run_logged(rootfs, log, cwd=Path(__file__).resolve().parents[1])
    host.run_logged(["truncate", f"--size={DATA_DISK}", work / "data.img"], log)
    host_key = (work / "host_key.pub").read_text()
    (work / "known_hosts").write_text(f"agentres-vm {host_key}")
