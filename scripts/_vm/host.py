"""What the host does for us: progress lines, locks, commands, packages."""

import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import VmError, cache_dir

# Ordinary users' PATH often lacks sbin, where Debian keeps mke2fs.
ENVIRONMENT = os.environ | {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"}

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What every machine's image takes: a command or a file, and the Debian package that brings it.
BASE = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "git": "git",
    "tar": "tar",
    "unshare": "util-linux",
    str(KEYRING): "debian-archive-keyring",
}
if os.geteuid() != 0:
    BASE["newuidmap"] = "uidmap"  # the image's files have owners besides


def say(text: str) -> None:
    """Tell one line of progress or trouble."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Tell of one step on one line, with the seconds it took."""
    print(f"vm: {name} ...", end="", file=sys.stderr, flush=True)
    start = time.monotonic()
    outcome = "failed after"
    try:
        yield
        outcome = ""
    finally:
        seconds = f"{time.monotonic() - start:.1f} s"
        print(f" {outcome} {seconds}".replace("  ", " "), file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; say so when another process makes us wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run to release {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "").rstrip().splitlines()[-lines:])


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    progress: Callable[[], str] | None = None,
    **options: Any,
) -> None:
    """Run a command with its output in a log, ``progress`` told every minute; on failure raise with the log's end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # so that all its children can be ended with it
            **{"env": ENVIRONMENT, **options},
        )
        try:
            while (code := _wait(process, 60 if progress else None)) is None:
                say(progress() if progress else "")
        except BaseException:
            _end(process)
            raise
    if code:
        raise VmError(f"{Path(command[0]).name} failed with status {code}:\n{tail(log)}")


def _wait(process: subprocess.Popen[bytes], seconds: float | None) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and its children gently, so that they can clean up, then for sure."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into exceptions, so that clean-up runs as for Ctrl-C."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


def as_root_of_namespace(command: Sequence[str | Path]) -> list[str]:
    """The command as root of its own mount namespace (an ordinary user: and user namespace).

    The user is root there and owns the files that are his; other owners come from his
    subordinate ids. So one code path builds the image, whoever runs it.
    """
    prefix = ["unshare", "--mount"]
    if os.geteuid() != 0:
        prefix += ["--user", "--map-root-user", "--map-auto"]
    return [*prefix, "--", *map(str, command)]


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def ensure_packages(wanted: Mapping[str, str]) -> None:
    """Install what is missing through apt after saying so; elsewhere name it.

    ``wanted`` has the Debian package of each command or, where it is a path, file.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise VmError(f"needs an x86-64 host, this is {platform.machine()}")
    missing = missing_packages(wanted)
    if not missing:
        return
    names = " ".join(missing)
    if not shutil.which("apt-get"):
        raise VmError(f"install the equivalents of these Debian packages first: {names}")
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    if prefix and not shutil.which("sudo"):
        raise VmError(f"neither root nor sudo: ask for these Debian packages: {names}")
    install = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    # Another's apt is waited for.
    install += ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
    install += ["install", "--yes", "--no-install-recommends", *missing]
    say(f"missing on this host: {names}; installing: {shlex.join(install)}")
    # Two at once would be in each other's way.
    with locked(cache_dir() / "apt.lock"):
        for command in ([*prefix, "apt-get", "update", "-q"], install):
            # The caller's stdin and stdout belong to the command that it wants to run.
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
                raise VmError(f"{shlex.join(command)} failed; install by hand: {names}")
    if still := missing_packages(wanted):
        raise VmError(f"still missing after the installation: {' '.join(still)}")


def missing_packages(wanted: Mapping[str, str]) -> list[str]:
    """Debian packages whose commands or files this host lacks."""
    missing = {
        package
        for what, package in wanted.items()
        if not (
            Path(what).exists() if "/" in what else shutil.which(what, path=ENVIRONMENT["PATH"])
        )
    }
    try:
        import ensurepip  # noqa: F401, PLC0415 -- Debian ships it apart from Python
    except ImportError:
        missing.add("python3-venv")
    return sorted(missing)
