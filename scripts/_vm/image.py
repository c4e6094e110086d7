"""Builds images, finds them in the cache, and sweeps old ones."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from . import host
from .build import IMAGE_FILES, build_files
from .config import Settings, VmError, cache_dir
from .recipe import Recipe

_NEWEST_KEPT = 2
# An image touched this recently may be in use by an `up` that has no machine yet.
_RECENT_SECONDS = 3600


@dataclass(frozen=True)
class Image:
    """A built image in the cache."""

    folder: Path

    @property
    def key(self) -> str:
        """The key of its recipe."""
        return self.folder.name

    def path(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name


def images_dir() -> Path:
    """The cache's folder of images."""
    return cache_dir() / "images"


def ensure_image(recipe: Recipe, settings: Settings, force: bool = False) -> Image:
    """The recipe's image, built now if the cache lacks it."""
    image = Image(images_dir() / recipe.key)
    if force or not image.folder.exists():
        with host.locked(images_dir() / ".lock"):
            if force or not image.folder.exists():
                host.ensure_packages(host.BASE)
                _build(recipe, settings, image)
    os.utime(image.folder)
    return image


def _build(recipe: Recipe, settings: Settings, image: Image) -> None:
    for leftover in images_dir().glob(".build-*"):
        remove_tree(leftover)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=images_dir()))
    log = cache_dir() / "build.log"
    log.write_bytes(b"")
    host.say(f"building image {image.key} (log: {log})")
    try:
        build_files(recipe, settings.mirror, work, log)
        _install(work, image.folder)
    finally:
        remove_tree(work)


def _install(work: Path, folder: Path) -> None:
    """Move what an image consists of into place in one step."""
    ready = work / "image"
    ready.mkdir()
    for name in IMAGE_FILES:
        (work / name).rename(ready / name)
    for disk in ("root.img", "data.img"):
        (ready / disk).chmod(0o444)  # every machine writes to overlays only
    if folder.exists():
        # A machine that still runs on it keeps its open files.
        folder.rename(work / "replaced")
    ready.rename(folder)


def sweep_images(current: str, used: Collection[str]) -> None:
    """Remove images that nobody uses, but for the newest."""
    folders = [path for path in images_dir().iterdir() if path.is_dir() and path.name[0] != "."]
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in folders[_NEWEST_KEPT:]:
        recent = time.time() - folder.stat().st_mtime < _RECENT_SECONDS
        if folder.name != current and folder.name not in used and not recent:
            remove_tree(folder)


def remove_tree(path: Path) -> None:
    """Remove a folder, also one that holds files of subordinate users or is still written to."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError:
        remove = host.as_root_of_namespace(["rm", "-rf", "--", path])
        if subprocess.run(remove, env=host.ENVIRONMENT).returncode:
            raise VmError(f"cannot remove {path}") from None
