"""The package's tree: an environment of Python's venv kind, laid out from wheels instead of installed.

::

    usr/bin/agentres -> ../lib/agentres/bin/agentres
    usr/lib/agentres/pyvenv.cfg
    usr/lib/agentres/bin/agentres, bin/python3 -> /usr/bin/python3
    usr/lib/agentres/lib/python3/site-packages/…
    usr/lib/agentres/lib/python3.11 -> python3, and so for each Python

Modules that are compiled for one Python have its name in theirs, so all of them lie side by side, and the host's
python3 takes its own.  Every file is one of dpkg's: nothing is made when it is installed, but for bytecode.
"""

import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email import message_from_string
from email.message import Message
from pathlib import Path, PurePosixPath

HOME = "usr/lib/agentres"
SITE = f"{HOME}/lib/python3/site-packages"

# What dpkg says itself (RECORD, INSTALLER), what is in the copyright file, and what was for building.
_OF_DIST_INFO = ("METADATA", "entry_points.txt")

# Named for what is in /usr/share/common-licenses, by what a licence's text has in its first lines.
_COMMON = {"Apache License": "Apache-2.0", "GNU GENERAL PUBLIC LICENSE": "GPL-2"}

_SCRIPT = f"""#!/{HOME}/bin/python3 -P
import sys

from agentres.__main__ import main

sys.exit(main())
"""

# That it has no line on a version is what lets one file serve several.
_PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\n"


class NotLaidOut(Exception):
    """Something in an archive that the package cannot have, in one line."""


def lay_out(tree: Path, pythons: Sequence[str], archives: Iterable[Path]) -> None:
    """Fill ``tree`` from wheels, and from sources of pure Python; for so many ``3.N``."""
    site = tree / SITE
    for archive in sorted(archives, key=lambda path: path.name):
        for name, content in _files_of(archive):
            _write(site / name, content, archive)
    _trim(site)
    home = tree / HOME
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    (home / "bin/agentres").write_text(_SCRIPT)
    (home / "bin/agentres").chmod(0o755)
    (home / "pyvenv.cfg").write_text(_PYVENV)
    for python in pythons:
        (home / f"lib/python{python}").symlink_to("python3")
        _complete_for(python, site)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/agentres").symlink_to("../lib/agentres/bin/agentres")


def _files_of(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                path = PurePosixPath(info.filename)
                if path.parts[0].endswith(".data"):
                    if path.parts[1:] == ("scripts", "agentres"):  # _SCRIPT is in its place
                        continue
                    raise NotLaidOut(f"{archive.name} wants {path} elsewhere")
                if not info.is_dir():
                    yield path, wheel.read(info)
    else:
        yield from _sources(archive)


def _sources(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """What a wheel of it would have; the project publishes none, and has nothing to compile."""
    whole = archive.name.removesuffix(".tar.gz")
    name = whole.rpartition("-")[0]
    with tarfile.open(archive) as sources:
        for member in sources:
            path = PurePosixPath(member.name).relative_to(whole)
            stream = sources.extractfile(member)
            if stream is None:
                continue
            if path.suffix in (".c", ".pyx", ".rs"):
                raise NotLaidOut(f"{archive.name} is not pure Python: {path}")
            if path.parts[0] == name:
                yield path, stream.read()
            elif path.name == "PKG-INFO" and len(path.parts) == 1:
                yield PurePosixPath(f"{whole}.dist-info/METADATA"), stream.read()
            elif path.name.startswith("LICEN") and len(path.parts) == 1:
                yield PurePosixPath(f"{whole}.dist-info/licenses", path.name), stream.read()


def _write(target: Path, content: bytes, archive: Path) -> None:
    if target.exists():
        # The same project's wheel for another Python, else two projects are in each other's way.
        if ".dist-info" in str(target.parent) or target.read_bytes() == content:
            return
        raise NotLaidOut(f"{archive.name} has another {target.name} than a wheel before it")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(0o644)


def _trim(site: Path) -> None:
    for folder in (site / "cgroupspy/test", site / "psutil/tests"):
        shutil.rmtree(folder, ignore_errors=True)


def _complete_for(python: str, site: Path) -> None:
    """Refuse a folder of compiled modules that lacks those of this Python."""
    tag = f".cpython-{python.replace('.', '')}-"
    for folder in {path.parent for path in site.rglob("*.cpython-3*.so")}:
        if not list(folder.glob(f"*{tag}*.so")):
            raise NotLaidOut(f"{folder.name} has nothing for Python {python}")


def copyright_of(tree: Path) -> str:
    """The copyright file; takes out of the tree the licences that stand in it, as Debian has it."""
    own: list[str] = []
    others: list[str] = []
    for info in sorted((tree / SITE).glob("*.dist-info"), key=lambda path: path.name.lower()):
        metadata = message_from_string((info / "METADATA").read_text())
        part = _paragraph(metadata, list(_texts(info)))
        (own if metadata["Name"] == "agentres" else others).append(part)
        for path in sorted(info.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            elif path.parent != info or path.name not in _OF_DIST_INFO:
                path.unlink()
    head = (
        f"This package was made by scripts/build-deb of agentres. Below /{SITE} it\n"
        "brings the Python projects that follow, unchanged, as they were published.\n"
    )
    return "\n".join([*own, head, *others])


def _texts(info: Path) -> Iterator[str]:
    for path in sorted(info.rglob("*")):
        named = path.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS"))
        if path.is_file() and (named or "licenses" in path.parts):
            yield path.read_text(errors="replace").strip()


def _paragraph(metadata: Message, texts: Sequence[str]) -> str:
    licence = metadata["License-Expression"] or metadata["License"] or "see below"
    lines = [f"{metadata['Name']} {metadata['Version']}", f"Licence: {licence.splitlines()[0]}"]
    for header in ("Author", "Author-email", "Home-page"):
        if metadata[header]:
            lines.append(f"{header}: {metadata[header]}")
    for text in texts:
        common = next((name for mark, name in _COMMON.items() if mark in text[:300]), None)
        licence_text = f"The licence is in /usr/share/common-licenses/{common}." if common else text
        lines += ["", *(f"  {line}".rstrip() for line in licence_text.splitlines())]
    return "\n".join([*lines, ""])
