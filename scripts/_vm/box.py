"""The image as a Vagrant box for libvirt, built now if the cache lacks it.

A box is a tar archive of `box.img`, a disk that boots by itself, and `metadata.json`, which names its
format and its size in GB: https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import bootdisk, host
from .config import VmError, cache_dir
from .image import Image, images_dir, remove_tree

_PACKAGES = {
    "mke2fs": "e2fsprogs",
    "extlinux": "extlinux",
    str(bootdisk.MBR): "syslinux-common",
    "sfdisk": "fdisk",
    "qemu-img": "qemu-utils",
    "unshare": "util-linux",
    "sudo": "sudo",
    "tar": "tar",
}
if os.geteuid() == 0:
    del _PACKAGES["sudo"]
_CODE = ("box.py", "bootdisk.py")
_METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": bootdisk.SIZE_GIB}


def ensure_box(image: Image, force: bool = False) -> Path:
    """The image's box; it lies in the image's folder, and goes with it."""
    box = image.path(f"vagrant-{key()}.box")
    if force or not box.exists():
        with host.locked(images_dir() / ".lock"):
            if force or not box.exists():
                host.ensure_packages(_PACKAGES)
                _build(image, box)
    return box


def copy(box: Path, output: Path) -> None:
    """Have a copy of the box at another path, whole or not at all."""
    try:
        with tempfile.TemporaryDirectory(prefix=".box-", dir=output.parent) as folder:
            new = Path(folder, "new")
            shutil.copyfile(box, new)
            new.replace(output)
    except OSError as error:
        raise VmError(f"cannot write {output}: {error.strerror}") from None


def key() -> str:
    """Changes with what makes a box of an image."""
    digest = hashlib.sha256(bootdisk.loader_config().encode())
    for name in _CODE:
        digest.update(b"\0" + Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:8]


def _build(image: Image, box: Path) -> None:
    # Here, where it can ask for a password: what is logged has no terminal.
    if os.geteuid() != 0 and not any(
        subprocess.run(["sudo", *words], stderr=errors).returncode == 0
        for words, errors in (
            (("--non-interactive", "true"), subprocess.DEVNULL),
            (("--validate",), None),
        )
    ):
        raise VmError("mounting the disk takes root, and sudo refuses")
    for leftover in images_dir().glob(".build-*"):
        remove_tree(leftover)  # of a build that was killed
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=images_dir()))
    log = cache_dir() / "box.log"
    log.write_bytes(b"")
    host.say(f"building the box of image {image.key} (log: {log})")
    try:
        with host.step("making a disk that boots"):
            host.run_logged(_as_root(image, work), log, cwd=Path(__file__).resolve().parents[1])
        with host.step("compressing it"):
            convert = ["qemu-img", "convert", "-c", "-O", "qcow2"]
            host.run_logged([*convert, work / "disk.raw", work / "box.img"], log)
        (work / "metadata.json").write_text(json.dumps(_METADATA))
        host.run_logged(
            ["tar", "--directory", work, "-cf", work / "box", "metadata.json", "box.img"], log
        )
        for old in image.folder.glob("vagrant-*.box"):
            old.unlink()  # of earlier code
        (work / "box").rename(box)
    finally:
        remove_tree(work)


def _as_root(image: Image, work: Path) -> list[str | Path]:
    """Only the host's root mounts a disk that extlinux can be installed on."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    (work / "disk.raw").touch()  # whoever builds owns it
    python: list[str | Path] = [sys.executable, "-B", "-m", "_vm.bootdisk"]
    return [*prefix, "unshare", "--mount", "--", *python, image.path("root.img"), work]
