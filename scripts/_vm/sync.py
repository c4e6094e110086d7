"""Keeps the guest's copy of the source tree the same as the host's, and installed."""

import hashlib
import io
import json
import os
import shlex
import stat
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import host
from .config import VmError
from .guest import Guest
from .layout import GUEST_SOURCE, GUEST_VENV

# path -> modification time, size, mode: cheap, and enough to notice an edit.
Fingerprint = dict[str, list[int]]

# A longer list of removed files would not fit into one command: copy everything instead.
_MOST_REMOVED = 200
# Travels within the archive: the Python files to compile.
_LIST = ".agentres-vm-compile"


@dataclass
class Stamp:
    """What the guest holds: the files, and the pyproject.toml the project is installed from."""

    files: Fingerprint = field(default_factory=dict)
    installed: str | None = None

    @classmethod
    def load(cls, path: Path) -> "Stamp":
        """Read it; an absent or damaged one means that nothing is known."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(path)


def fingerprint(tree: Path) -> Fingerprint:
    """The files of a source tree that git tracks or would track."""
    listing = subprocess.run(
        # Root may be at work in somebody else's clone, which git has to be told.
        [
            "git",
            "-c",
            f"safe.directory={tree}",
            "-C",
            str(tree),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        capture_output=True,
    )
    if listing.returncode:
        raise VmError(f"git ls-files: {os.fsdecode(listing.stderr).strip()}")
    found: Fingerprint = {}
    for name in set(filter(None, os.fsdecode(listing.stdout).split("\0"))):
        try:
            info = (tree / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # tracked, but deleted
        if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            found[name] = [info.st_mtime_ns, info.st_size, info.st_mode]
    return found


def synchronise(tree: Path, guest: Guest, stamp_path: Path) -> None:
    """Bring the guest's copy up to date; tells of it unless there is nothing to do."""
    stamp, files = Stamp.load(stamp_path), fingerprint(tree)
    wanted = _install_key(tree)
    if files != stamp.files:
        with host.step("copying the source tree"):
            _copy(tree, guest, stamp.files, files)
        stamp.files = files
        stamp.save(stamp_path)
    if wanted in (None, stamp.installed):
        return
    with host.step("installing the project in the guest"):
        guest.check(
            f"{GUEST_VENV}/bin/python -m pip install --quiet --no-deps --no-index "
            f"--no-build-isolation --root-user-action=ignore --editable {GUEST_SOURCE}"
        )
    stamp.installed = wanted
    stamp.save(stamp_path)


def _install_key(tree: Path) -> str | None:
    """Changes when the project must be installed anew; None before it can be."""
    if not (tree / "src/agentres/__init__.py").exists():
        return None
    text = (tree / "pyproject.toml").read_text()
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise VmError(f"pyproject.toml: {error}") from None
    # The settings of linters and the like, which change often, do not matter here.
    parts = [tables.get("build-system"), tables.get("project"), tables.get("tool", {}).get("hatch")]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _copy(tree: Path, guest: Guest, old: Fingerprint, new: Fingerprint) -> None:
    removed = sorted(old.keys() - new.keys())
    if not old or len(removed) > _MOST_REMOVED:
        changed = sorted(new)
        clean = "find . -mindepth 1 -delete"
    else:
        changed = sorted(name for name in new if new[name] != old.get(name))
        clean = _removal(removed)
    # Users other than root cannot write bytecode there. Forced, because a second edit within
    # one second looks unchanged to Python.
    compiling = f"{GUEST_VENV}/bin/python -I -S -m compileall -q -f -i {_LIST} >/dev/null || :"
    script = "\n".join(
        [
            "set -e; umask 022",
            f"cd {GUEST_SOURCE}",
            clean,
            "tar --extract --file - --no-same-owner",
            f"if [ -e {_LIST} ]; then {compiling}; rm {_LIST}; fi",
        ]
    )
    guest.check(script, stdin=_archive(tree, changed))


def _removal(removed: Iterable[str]) -> str:
    """Shell lines that remove files, their bytecode and the folders they leave empty."""
    lines = [":"]
    for name in removed:
        folder, _, base = name.rpartition("/")
        folder = folder or "."
        lines.append(f"rm -rf -- {shlex.quote(name)}")
        if base.endswith(".py"):
            cached = shlex.quote(f"{folder}/__pycache__/{base.removesuffix('.py')}.")
            lines.append(f"rm -f -- {cached}*.pyc")
        for empty in (f"{folder}/__pycache__", folder):
            quoted = shlex.quote(empty)
            lines.append(f"rmdir -p --ignore-fail-on-non-empty -- {quoted} 2>/dev/null || :")
    return "\n".join(lines)


def _archive(tree: Path, names: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    compiled = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            try:
                archive.add(tree / name, arcname=name, recursive=False, filter=_for_everyone)
            except FileNotFoundError:
                continue  # removed just now: the next run sees that
            if name.endswith(".py"):
                compiled.append(name)
        if compiled:
            listing = os.fsencode("\n".join(compiled))
            member = tarfile.TarInfo(_LIST)
            member.size = len(listing)
            archive.addfile(member, io.BytesIO(listing))
    return buffer.getvalue()


def _for_everyone(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owned by root and readable by every user of the guest."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member
