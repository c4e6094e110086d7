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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .config import VmError

# Ordinary users' PATH often lacks sbin, where Debian keeps mke2fs.
ENVIRONMENT = os.environ | {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"}

# What must be there, and the Debian package that brings it.
COMMANDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "git": "git",
    "tar": "tar",
    "unshare": "util-linux",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


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


def run_logged(command: Sequence[str | Path], log: Path, **options: Any) -> None:
    """Run a command with its output in a log; on failure raise with the log's end."""
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
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code:
        raise VmError(f"{Path(command[0]).name} failed with status {code}:\n{tail(log)}")


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


def ensure_packages() -> None:
    """Install what is missing through apt after saying so; elsewhere name it."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise VmError(f"needs an x86-64 host, this is {platform.machine()}")
    missing = missing_packages()
    if not missing:
        return
    names = " ".join(missing)
    if not shutil.which("apt-get"):
        raise VmError(f"install the equivalents of these Debian packages first: {names}")
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    install = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    install += ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    say(f"missing on this host: {names}; installing: {shlex.join(install)}")
    for command in ([*prefix, "apt-get", "update", "-q"], install):
        # The caller's stdin and stdout belong to the command that it wants to run.
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
            raise VmError(f"{shlex.join(command)} failed; install by hand: {names}")
    if still := missing_packages():
        raise VmError(f"still missing after the installation: {' '.join(still)}")


def missing_packages() -> list[str]:
    """Debian packages whose commands or files this host lacks."""
    wanted = dict(COMMANDS)
    if os.geteuid() != 0:
        wanted["newuidmap"] = "uidmap"
    missing = [
        package
        for command, package in wanted.items()
        if not shutil.which(command, path=ENVIRONMENT["PATH"])
    ]
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    try:
        import ensurepip  # noqa: F401, PLC0415 -- Debian ships it apart from Python
    except ImportError:
        missing.append("python3-venv")
    return missing
