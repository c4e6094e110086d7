"""One QEMU process: how it is started, watched and ended."""

import contextlib
import os
import resource
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import host
from .config import Settings, VmError
from .image import Image
from .qmp import Monitor

# `agentres.vm` selects the constant address; the rest saves time or keeps names stable.
# After a panic QEMU leaves (-no-reboot) instead of starting over.
KERNEL_LINE = (
    "root=/dev/vda rw console=ttyS0 panic=-1 net.ifnames=0 psi=1 mitigations=off "
    "random.trust_cpu=on agentres.vm"
)
ACCELERATORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"],
}
_BOOT_SECONDS = {"kvm": 60, "tcg": 400}
_RESTORE_SECONDS = 90
_PIDFILE = "qemu.pid"


class KvmUnusable(VmError):
    """A machine with KVM did not come up; ``lasting`` where KVM itself is why, and not this start."""

    def __init__(self, reason: str, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True)
class Machine:
    """A machine's files and names; it may or may not be running."""

    folder: Path  # disks and logs
    sockets: Path  # a folder with a short path: a socket's path is limited to 107 bytes
    name: str  # unique on this host: how the process is recognised
    accelerator: str
    port: int

    @property
    def console(self) -> Path:
        """The serial console's log."""
        return self.folder / "console.log"

    @property
    def qemu_log(self) -> Path:
        """What QEMU itself says."""
        return self.folder / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """QEMU's process id, written by itself: it is there even if we are killed."""
        return self.folder / _PIDFILE

    def monitor(self, timeout: float = 30) -> Monitor:
        """Connect to the running machine's monitor."""
        return Monitor(self.sockets / "qmp", timeout)

    def command(self, image: Image, settings: Settings, incoming: Path | None) -> list[str]:
        """QEMU's command line."""
        forward = f"hostfwd=tcp:127.0.0.1:{self.port}-:22"
        command = ["qemu-system-x86_64", "-name", self.name, "-nodefaults", "-no-user-config"]
        command += [*ACCELERATORS[self.accelerator], "-machine", "q35"]
        command += ["-smp", str(settings.cpus), "-m", str(settings.memory_mib)]
        command += ["-display", "none", "-no-reboot", "-rtc", "base=utc"]
        command += ["-pidfile", str(self.pidfile)]
        command += ["-serial", f"file:{self.console}"]
        command += ["-qmp", f"unix:{self.sockets / 'qmp'},server=on,wait=off"]
        command += ["-kernel", str(image.path("vmlinuz")), "-initrd", str(image.path("initrd.img"))]
        command += ["-append", f"{KERNEL_LINE} {settings.append}".strip()]
        for disk in ("root", "data"):
            path = self.folder / f"{disk}.qcow2"
            # The overlays are thrown away: no need to flush them to the host's disk.
            command += ["-drive", f"file={path},id={disk},if=none,format=qcow2,cache=unsafe"]
            command += ["-device", f"virtio-blk-pci,drive={disk},serial=agentres-{disk}"]
        # The guest reaches nothing, the host reaches its ssh.
        command += ["-netdev", f"user,id=net,restrict=on,{forward}"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile="]
        command += ["-device", "virtio-rng-pci"]
        if incoming:
            command += ["-incoming", f"exec:cat {shlex.quote(str(incoming))}"]
        return command


def make_overlay(path: Path, backing: Path, backing_format: str) -> None:
    """Create a disk that holds only the differences from another."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format]
    command += ["-b", str(backing), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"qemu-img: {done.stderr.strip()}")


def free_port() -> int:
    """A port that is free on the loopback address now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A QEMU that this run started."""

    def __init__(self, machine: Machine, command: Sequence[str], seconds: float) -> None:
        self.machine = machine
        self._deadline = time.monotonic() + seconds
        (machine.sockets / "qmp").unlink(missing_ok=True)
        machine.console.write_bytes(b"")
        with machine.qemu_log.open("wb") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
                cwd="/",
                preexec_fn=_no_core_dump,
            )
        self.pid = self._child.pid

    def wait_for_state_loaded(self) -> None:
        """Wait until a restored machine has its memory, and let it run."""
        with self._connect() as monitor:
            while (status := self._status(monitor)) == "inmigrate":
                self._check("loading its memory")
                time.sleep(0.05)
            if status != "running":
                monitor.call("cont")

    def wait_for_ssh(self) -> None:
        """Wait until the guest's ssh server answers."""
        # Short at first: a broken KVM shows in the machine's status within a second.
        patience = 0.1
        with self._connect() as monitor:
            while not _ssh_answers(self.machine.port, patience):
                patience = min(patience * 1.3, 2)
                self._check("booting")
                if (status := self._status(monitor)) != "running":
                    self._fail(f"the machine stopped with status {status!r}")
                time.sleep(0.1)

    def kill(self) -> None:
        """End it now."""
        self._child.kill()
        self._child.wait()

    def wait(self, timeout: float) -> None:
        """Wait until it has ended by itself."""
        self._child.wait(timeout)

    def _connect(self) -> Monitor:
        while True:
            self._check("starting")
            try:
                return self.machine.monitor()
            except (OSError, VmError):
                time.sleep(0.02)  # not there yet, or gone: the check tells

    def _status(self, monitor: Monitor) -> str:
        try:
            return monitor.status()
        except VmError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=5)
            self._check("talking to us")
            self._fail(str(error))

    def _check(self, doing: str) -> None:
        if self._child.poll() is not None:
            self._fail(f"QEMU ended with status {self._child.returncode} while {doing}")
        if time.monotonic() > self._deadline:
            self._fail(f"the machine took too long {doing}")

    def _fail(self, reason: str) -> NoReturn:
        if self.machine.accelerator == "kvm":
            # A stock kernel that KVM cannot run stops with an internal error; else QEMU names it.
            lasting = (
                "internal-error" in reason or "kvm" in host.tail(self.machine.qemu_log).lower()
            )
            raise KvmUnusable(reason, lasting)
        logs = (host.tail(self.machine.qemu_log), host.tail(self.machine.console))
        raise VmError("\n".join([reason, *filter(None, logs)]))


def start(
    machine: Machine, image: Image, settings: Settings, incoming: Path | None = None
) -> Process:
    """Start QEMU on a machine whose disks are there."""
    seconds = _RESTORE_SECONDS if incoming else _BOOT_SECONDS[machine.accelerator]
    return Process(machine, machine.command(image, settings, incoming), seconds)


def is_running(pid: int, name: str) -> bool:
    """Whether that process is that machine's QEMU, not another that got its pid."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"qemu" in words[0] and name.encode() in words


def stop(pid: int, name: str, sockets: Path) -> None:
    """Ask a machine's QEMU to quit, then make it."""
    try:
        with Monitor(sockets / "qmp", timeout=2) as monitor:
            monitor.call("quit")
    except (OSError, VmError):
        pass  # it hangs, or is gone: what follows sees to both
    if _gone(pid, name, seconds=3):
        return
    os.kill(pid, signal.SIGKILL)
    if not _gone(pid, name, seconds=10):
        raise VmError(f"QEMU (pid {pid}) does not end")


def stop_leftover(folder: Path, name: str, sockets: Path) -> None:
    """End the machine that nobody looks after any more in a folder, if there is one."""
    pidfile = folder / _PIDFILE
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return
    if is_running(pid, name):
        host.say(f"stopping a machine that was left over (pid {pid})")
        stop(pid, name, sockets)
    pidfile.unlink(missing_ok=True)


def _gone(pid: int, name: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _ssh_answers(port: int, patience: float) -> bool:
    # QEMU accepts the connection long before the guest does: only the banner counts.
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _no_core_dump() -> None:
    # `-cpu host` aborts on hosts whose KVM is restricted: that is an answer, not a crash.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
