"""One machine: a process that is started, recognised, watched and ended, whatever runs the guest's kernel."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import host
from .config import Settings, VmError
from .image import Image

# `agentres.vm` selects the constant address; the rest saves time or keeps names stable.
KERNEL_LINE = "rw panic=-1 net.ifnames=0 psi=1 mitigations=off random.trust_cpu=on agentres.vm"
# Its pid is on disk before it is the machine, so that it is found even if we are killed.
_NOTE_PID = 'echo $$ >"$0" && exec "$@"'


@dataclass(frozen=True)
class Place:
    """A machine's files, and the name by which its process is recognised; it may or may not be running."""

    folder: Path  # disks and logs
    sockets: Path  # a folder with a short path: a socket's path is limited to 107 bytes
    name: str

    @property
    def console(self) -> Path:
        """What the guest's kernel and systemd print."""
        return self.folder / "console.log"

    @property
    def log(self) -> Path:
        """What the process itself says."""
        return self.folder / "machine.log"

    @property
    def _pidfile(self) -> Path:
        return self.folder / "machine.pid"

    @property
    def pid(self) -> int | None:
        """The machine's process; None when it does not run."""
        try:
            pid = int(self._pidfile.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # Not another that got its pid: its own name is a word, or the value of one.
        return pid if any(word.endswith(self.name.encode()) for word in words) else None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start the process, apart from our terminal and streams, its output as the console; its pid."""
        with self.console.open("wb") as console, self.log.open("wb") as log:
            child = subprocess.Popen(
                ["sh", "-c", _NOTE_PID, str(self._pidfile), *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
                cwd="/",
                env=dict(environment),
                preexec_fn=_no_core_dump,
            )
        self._pidfile.write_text(str(child.pid))
        return child.pid

    def stop(self) -> bool:
        """End it at once: what it wrote is thrown away; whether it ran."""
        pid = self.pid
        deadline = time.monotonic() + 10
        while pid is not None and self.pid == pid:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                pass  # gone, or started by an earlier run
            if time.monotonic() > deadline:
                raise VmError(f"the machine's process {pid} does not end")
            time.sleep(0.01)
        if pid is not None:  # else it may be the note of one that is being started
            self._pidfile.unlink(missing_ok=True)
        return pid is not None

    def last_words(self) -> str:
        """The ends of both logs, for an error message."""
        return "\n".join(filter(None, (host.tail(self.log), host.tail(self.console))))


class Kind(Protocol):
    """The way machines differ: what runs the guest's kernel, and how its ssh server is reached."""

    name: str  # kvm, uml or tcg
    boot_seconds: float  # a boot takes less, or hangs

    def prepare(self, settings: Settings) -> None:
        """Have what it needs on this host; VmError says what is missing."""

    def start(self, place: Place, image: Image, settings: Settings) -> int:
        """Start it on disks that hold the differences from the image's; its process."""

    def reach(self, pid: int) -> str:
        """Lines of an ssh configuration."""


def _no_core_dump() -> None:
    # A guest that panics ends in abort(3): that is an answer, not a crash to keep.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
