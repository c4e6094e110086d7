"""Machines of QEMU: Debian's own kernel, on KVM where that boots it, else on an emulated processor."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from . import host
from .config import Settings, VmError, cache_dir
from .image import Image
from .machine import KERNEL_LINE, Place

_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}
_PROCESSORS = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max"],
}
_TRIAL_SECONDS = 20


class Qemu:
    """A machine of QEMU, with one of its accelerators."""

    def __init__(self, accelerator: str) -> None:
        self.name = accelerator
        self.boot_seconds = {"kvm": 60.0, "tcg": 400.0}[accelerator]
        self._port = 0

    def prepare(self, settings: Settings) -> None:
        """Install QEMU."""
        host.ensure_packages(_PACKAGES)

    def start(self, place: Place, image: Image, settings: Settings) -> int:
        """Start QEMU on overlays over the image's disks."""
        self._port = _free_port()
        command = [*self._bare(place, image, f"root=LABEL=root {settings.append}")]
        command += ["-smp", str(settings.cpus), "-m", str(settings.memory_mib)]
        for disk in ("root", "data"):
            path = place.folder / f"{disk}.qcow2"
            _make_overlay(path, image.path(f"{disk}.img"))
            # The overlays are thrown away: no need to flush them to the host's disk.
            command += ["-drive", f"file={path},id={disk},if=none,format=qcow2,cache=unsafe"]
            command += ["-device", f"virtio-blk-pci,drive={disk},serial=agentres-{disk}"]
        # The guest reaches nothing, the host reaches its ssh.
        forward = f"hostfwd=tcp:127.0.0.1:{self._port}-:22"
        command += ["-netdev", f"user,id=net,restrict=on,{forward}"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile="]
        return place.start(command, host.ENVIRONMENT)

    def reach(self, pid: int) -> str:
        """By the port that QEMU forwards."""
        return f"    HostName 127.0.0.1\n    Port {self._port}\n"

    def boots(self, image: Image) -> bool:
        """Whether this accelerator runs the image's kernel at all: tried once for each boot of the host."""
        verdict = cache_dir() / f"{self.name}-verdict"
        facts = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {_version()}"
        try:
            known, _, word = verdict.read_text().rpartition(" ")
        except OSError:
            known = word = ""
        if known != facts:
            with host.step(f"trying {self.name}"):
                found = self._tried(image)
            if found is None:  # a loaded moment says nothing about the next one
                return False
            word = "boots" if found else "fails"
            verdict.write_text(f"{facts} {word}")
        return word == "boots"

    def _tried(self, image: Image) -> bool | None:
        """Whether it booted; None where that took too long to tell."""
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder), Path(folder), f"agentres-trial-{os.getpid()}")
            command = [*self._bare(place, image, "break=top"), "-m", "512"]
            pid = place.start(command, host.ENVIRONMENT)
            deadline = time.monotonic() + _TRIAL_SECONDS
            try:
                while place.pid == pid and time.monotonic() < deadline:
                    # The kernel's own first process; what KVM cannot run stops long before.
                    if b"Run /init" in place.console.read_bytes():
                        return True
                    if "KVM internal error" in host.tail(place.log, 50):
                        return False
                    time.sleep(0.05)
                return None if place.pid == pid else False
            finally:
                place.stop()

    def _bare(self, place: Place, image: Image, append: str) -> list[str]:
        """A machine without disks and network."""
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35"]
        command += [*_PROCESSORS[self.name], "-display", "none", "-no-reboot", "-rtc", "base=utc"]
        command += ["-serial", f"file:{place.console}", "-device", "virtio-rng-pci"]
        command += ["-kernel", str(image.path("vmlinuz")), "-initrd", str(image.path("initrd.img"))]
        line = f"{KERNEL_LINE} console=ttyS0 {append}".strip()
        return [*command, "-append", line, "-name", place.name]


def _version() -> str:
    output = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
    return output.stdout.partition("\n")[0].replace(" ", "_")


def _make_overlay(path: Path, backing: Path) -> None:
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        str(backing),
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise VmError(f"qemu-img: {done.stderr.strip()}")


def _free_port() -> int:
    """A port that is free on the loopback address now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
