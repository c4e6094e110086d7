"""Builds the kernel that runs as an ordinary process, from Debian's own source package, once for each version."""

import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import host
from .config import RELEASE, Settings, VmError, cache_dir
from .mirror import host_mirror

# SMP came to User Mode Linux with 6.19.
_OLDEST = (6, 19)
# The first of these that has a source new enough, and its newest. Mirrors may be late with names such as "stable".
_SUITES = (RELEASE, f"{RELEASE}-backports", "testing", "unstable")
OPTIONS = Path(__file__).with_name("uml.config")
PATCH = Path(__file__).with_name("uml.patch")

_PACKAGES = {
    "gcc": "gcc",
    "make": "make",
    "patch": "patch",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
_NEWEST_KEPT = 4  # clones of other commits may want another
_UNPATCHED = "unpatched"
FAILURE_KEPT = 24 * 3600  # seconds


def ensure_kernel(settings: Settings, force: bool = False) -> Path:
    """The kernel with today's options and patch, built now where the cache lacks it; ``force``: from Debian's newest."""
    folder = cache_dir() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    if not force and (kernel := _newest(folder)):
        return kernel
    if not force and (why := failure(folder)):
        raise VmError(f"its kernel could not be built: {why}; `scripts/vm build` tries again")
    with host.locked(folder / ".lock"):
        if not force and (kernel := _newest(folder)):
            return kernel
        host.ensure_packages({**host.BASE, **_PACKAGES})
        for leftover in folder.glob(".build-*"):
            shutil.rmtree(leftover)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
        try:
            return _build(work, folder, settings)
        finally:
            shutil.rmtree(work)


def _newest(folder: Path) -> Path | None:
    """The cached kernel of the newest build."""
    found = folder.glob(f"*-{key()}/linux")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def key() -> str:
    """Changes with the options and the patch."""
    return hashlib.sha256(OPTIONS.read_bytes() + PATCH.read_bytes()).hexdigest()[:8]


def _build(work: Path, folder: Path, settings: Settings) -> Path:
    log = cache_dir() / "kernel.log"
    log.write_bytes(b"")
    mirror = settings.mirror or host_mirror()
    if mirror is None:
        raise VmError("no Debian mirror is configured on this host: set AGENTRES_VM_MIRROR")
    with host.step("looking for Debian's newest kernel source"):
        apt, package, version = find_source(work, mirror, log)
    target = folder / f"{version}-{key()}"
    host.say(f"building kernel {target.name} (log: {log})")
    with host.step(f"fetching {package}"):
        host.run_logged([*apt, "download", f"{package}={version}"], log, cwd=work)
        unpack = 'dpkg-deb --fsys-tarfile "$1"_*.deb | tar -xO "./usr/src/$1.tar.xz" | tar -xJ'
        host.run_logged(["sh", "-ec", unpack, "sh", package], log, cwd=work)
    patched = apply_patch(work / package, log)
    try:
        made = compile_source(work, work / package, log)
    except VmError as error:
        failure_file(folder).write_text(str(error).partition("\n")[0])
        raise
    shutil.rmtree(target, ignore_errors=True)  # a machine that runs keeps its open file
    target.mkdir()
    if not patched:
        (target / _UNPATCHED).touch()
    made.rename(target / "linux")
    failure_file(folder).unlink(missing_ok=True)
    for old in sorted(folder.glob("*/linux"), key=lambda path: path.stat().st_mtime)[
        :-_NEWEST_KEPT
    ]:
        shutil.rmtree(old.parent)
    return target / "linux"


def apply_patch(source: Path, log: Path) -> bool:
    """Apply ours where it fits: a newer source may have changed, and does without.  Return whether it did."""
    command = ["patch", "--strip=1", "--batch", "--forward", "--fuzz=0", f"--input={PATCH}"]
    try:
        host.run_logged([*command, "--dry-run"], log, cwd=source)
    except VmError:
        return False
    host.run_logged(command, log, cwd=source)
    return True


def is_patched(kernel: Path) -> bool:
    """Whether it was built with our patch; if not, machines are slower, and may hang."""
    return not kernel.with_name(_UNPATCHED).exists()


def compile_source(work: Path, source: Path, log: Path) -> Path:
    """Configure and compile it; the kernel."""
    made = work / "made"
    made.mkdir()
    make: list[str | Path] = ["make", "-s", "-C", source, "ARCH=um", f"O={made}"]
    merge: list[str | Path] = [
        source / "scripts/kconfig/merge_config.sh",
        "-m",
        "-O",
        made,
        made / ".config",
        OPTIONS,
    ]
    with host.step("configuring it"):
        host.run_logged([*make, "defconfig"], log)
        host.run_logged(merge, log, cwd=source)
        host.run_logged([*make, "olddefconfig"], log)
        check_options(made / ".config")
    host.say("compiling it: 13 minutes of one processor")

    def progress() -> str:
        return f"{sum(1 for _ in made.rglob('*.o'))} files compiled"

    host.run_logged([*make, f"-j{host.processors()}", "linux"], log, progress=progress)
    return made / "linux"


def failure_file(folder: Path) -> Path:
    """Where it is noted why this kernel could not be built."""
    return folder / f".failed-{key()}"


def failure(folder: Path) -> str:
    """Why this kernel could not be made today; empty where it could, or nobody has tried.

    Every `up` would try it again, for minutes each time.
    """
    try:
        if time.time() - failure_file(folder).stat().st_mtime < FAILURE_KEPT:
            return failure_file(folder).read_text()
    except FileNotFoundError:
        pass
    return ""


def forget_failure() -> None:
    """Have the next call try to build it, whatever became of the last."""
    failure_file(cache_dir() / "kernels").unlink(missing_ok=True)


def find_source(work: Path, mirror: str, log: Path) -> tuple[list[str], str, str]:
    """apt-get with lists of its own, and the package and its version there."""
    sources = work / "sources.list"
    options = [f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=-"]
    options += [f"-oDir::State={work}/state", f"-oDir::Cache={work}/cache"]
    options += ["-oDir::State::status=/dev/null", "-oAPT::Architecture=amd64"]
    options += ["-oAPT::Sandbox::User=root", "-oAcquire::Languages=none"]
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    for suite in _SUITES:
        sources.write_text(f"deb [signed-by={host.KEYRING}] {mirror} {suite} main\n")
        try:
            host.run_logged(["apt-get", *options, "update", "-q"], log)
        except VmError:  # not every mirror has every suite
            continue
        except OSError as error:
            raise VmError(f"apt-get: {error.strerror}") from None
        names = _ask_apt(*options, "pkgnames", "linux-source-").split()
        known = {name: source_version(name) for name in names}
        new = {name: number for name, number in known.items() if number and number >= _OLDEST}
        if new:
            package = max(new, key=lambda name: new[name])
            shown = _ask_apt(*options, "show", "--no-all-versions", package)
            if version := re.search(r"^Version: (\S+)$", shown, re.MULTILINE):
                return ["apt-get", *options], package, version[1]
    oldest = ".".join(map(str, _OLDEST))
    raise VmError(f"no suite of {mirror} has a kernel source of {oldest} or newer")


def _ask_apt(*words: str) -> str:
    line = ["apt-cache", *words]
    try:
        done = subprocess.run(line, capture_output=True, text=True, env=host.ENVIRONMENT)
    except OSError as error:
        raise VmError(f"apt-cache: {error.strerror}") from None
    if done.returncode:
        raise VmError(f"apt-cache failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def source_version(package: str) -> tuple[int, int] | None:
    """The version in a source package's name; None: none is in it, or it is another kind of source."""
    match = re.fullmatch(r"linux-source-(\d+)\.(\d+)", package)
    return (int(match[1]), int(match[2])) if match else None


def check_options(config: Path) -> None:
    """Refuse a kernel that lost one of the options: they go silently when what they depend on is missing."""
    have = set(config.read_text().splitlines())
    wanted = [line for line in OPTIONS.read_text().splitlines() if "CONFIG_" in line]
    # An option that this kernel has no more is as good as off.
    lost = [line for line in wanted if line not in have and not line.startswith("# CONFIG_")]
    on = [
        line for line in wanted if line.startswith("# CONFIG_") and f"{line.split()[1]}=y" in have
    ]
    if lost or on:
        raise VmError(f"the kernel's configuration does not take: {', '.join(lost + on)}")
