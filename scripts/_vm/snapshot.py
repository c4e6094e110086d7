"""A booted machine's state, saved beside its image, from which every clone starts in seconds."""

import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import host, machine
from .config import Settings, VmError, cache_dir
from .guest import Guest, sockets_dir
from .image import Image
from .sync import Stamp, synchronise

_SAVE_SECONDS = 120
# One for each size of machine somebody uses.
_NEWEST_KEPT = 3


@dataclass(frozen=True)
class Snapshot:
    """A saved state: memory, disk overlays, and what is installed in it."""

    folder: Path

    @property
    def memory(self) -> Path:
        """The machine's state as QEMU wrote it."""
        return self.folder / "memory"

    @property
    def stamp(self) -> Path:
        """Which installation of the project it holds."""
        return self.folder / "stamp.json"

    def disk(self, name: str) -> Path:
        """A disk's overlay over the image's."""
        return self.folder / f"{name}.qcow2"


def locate(image: Image, settings: Settings, accelerator: str) -> Snapshot:
    """The snapshot that fits this QEMU and this machine, whether it exists or not."""
    facts: list[object] = [qemu_version(), machine.ACCELERATORS[accelerator], machine.KERNEL_LINE]
    facts += [settings.memory_mib, settings.cpus]
    if accelerator == "kvm":
        facts.append(_processor())
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return Snapshot(image.folder / f"snapshot-{accelerator}-{key}")


def ensure(image: Image, settings: Settings, accelerator: str, tree: Path) -> Snapshot:
    """The snapshot, made now by a cold boot if there is none."""
    snapshot = locate(image, settings, accelerator)
    if not snapshot.folder.exists():
        with host.locked(image.folder / ".lock"):
            if not snapshot.folder.exists():
                try:
                    _make(image, settings, accelerator, tree, snapshot)
                except VmError as error:
                    # An emulated processor may run into an instruction that the kernel is just patching
                    # on another one (int3, in the first seconds): not again the next time.
                    if accelerator != "tcg" or "Kernel panic" not in str(error):
                        raise
                    host.say("the kernel panicked in the emulator while booting: once more")
                    _make(image, settings, accelerator, tree, snapshot)
    return snapshot


def qemu_version() -> str:
    """The first line of QEMU's own version."""
    output = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
    return output.stdout.partition("\n")[0]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("model name")), "")


def _make(
    image: Image, settings: Settings, accelerator: str, tree: Path, snapshot: Snapshot
) -> None:
    for leftover in image.folder.glob(".saving-*"):
        sockets = _sockets(leftover)
        machine.stop_leftover(leftover, _machine_name(leftover), sockets)
        for folder in {leftover, sockets}:
            shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=image.folder))
    sockets = _sockets(folder)
    port = machine.free_port()
    vm = machine.Machine(folder, sockets, _machine_name(folder), accelerator, port)
    for disk in ("root", "data"):
        machine.make_overlay(folder / f"{disk}.qcow2", image.path(f"{disk}.img"), "raw")
    process = machine.start(vm, image, settings)
    try:
        guest = Guest(folder, sockets)
        with host.step(f"first boot of this image ({accelerator})"):
            process.wait_for_ssh()
            guest.write_config(image, vm.port)
            settle(guest)
        _install(tree, guest, folder)
        with host.step("saving the booted machine"):
            guest.check("sync")
            guest.disconnect()
            _save(vm, process, folder / "memory")
    except BaseException:
        process.kill()
        shutil.copyfile(vm.console, cache_dir() / "first-boot.log")
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if sockets != folder:
            shutil.rmtree(sockets, ignore_errors=True)
    folder.rename(snapshot.folder)
    _sweep(image)


def _machine_name(folder: Path) -> str:
    return f"agentres-vm-{folder.name}"


def _sockets(folder: Path) -> Path:
    return sockets_dir(folder, folder.name.lstrip("."))


def _sweep(image: Image) -> None:
    """Remove old snapshots; a machine that runs on one keeps its open files."""
    folders = sorted(image.folder.glob("snapshot-*"), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-_NEWEST_KEPT]:
        shutil.rmtree(folder)


def settle(guest: Guest) -> None:
    """Wait until the guest has finished booting."""
    script = "systemctl is-system-running --wait || systemctl --failed --plain --no-legend"
    state, _, failed = guest.check(script).strip().partition("\n")
    if failed:
        host.say(f"the guest is {state}: {failed}")


def _install(tree: Path, guest: Guest, folder: Path) -> None:
    """Install the project now, so that no later start has to; its files come fresh anyway."""
    working = folder / "stamp.json"
    try:
        synchronise(tree, guest, working)
    except VmError as error:
        host.say(f"not in the snapshot, the project does not install: {error}")
    stamp = Stamp.load(working)
    stamp.files = {}
    stamp.save(working)


def _save(vm: machine.Machine, process: machine.Process, memory: Path) -> None:
    with vm.monitor() as monitor:
        monitor.call("stop")
        monitor.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        monitor.call("migrate", uri=f"exec:cat >{shlex.quote(str(memory))}")
        deadline = time.monotonic() + _SAVE_SECONDS
        while (state := monitor.call("query-migrate").get("status")) != "completed":
            if state in ("failed", "cancelled") or time.monotonic() > deadline:
                raise VmError(f"saving the machine's state ended as {state!r}")
            time.sleep(0.1)
        monitor.call("quit")
    process.wait(timeout=30)
