"""The VM of a clone of the project, one for each Debian release and name: its state, from `up` to `down`."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import host, image, machine, snapshot
from .config import RELEASE, SOURCE_TREE, Settings, VmError, cache_dir
from .guest import Guest, sockets_dir
from .recipe import Recipe
from .sync import Stamp, synchronise


@dataclass(frozen=True)
class State:
    """A running machine, as recorded by the run that started it."""

    pid: int
    name: str
    port: int
    accelerator: str
    image: str
    restored: bool
    started: float

    @classmethod
    def load(cls, path: Path) -> "State | None":
        """Read it; None when there is none or it is damaged."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def running(self) -> bool:
        """Whether that machine still runs."""
        return machine.is_running(self.pid, self.name)


class Clone:
    """Everything of one clone's VM lives in a folder named by the clone's path."""

    def __init__(self, tree: Path = SOURCE_TREE) -> None:
        self.tree = tree
        self.settings = Settings.from_environment()
        self.recipe = Recipe(self.settings.release, tree)
        which = "" if self.recipe.release == RELEASE else f"\0{self.recipe.release}"
        if self.settings.name:
            which += f"\0\0{self.settings.name}"
        self.identity = hashlib.sha256(os.fsencode(tree) + which.encode()).hexdigest()[:12]
        self.folder = clones_dir() / self.identity
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "owner").write_bytes(os.fsencode(tree))
        self.sockets = sockets_dir(self.folder, self.identity)
        self.guest = Guest(self.folder, self.sockets)

    @property
    def name(self) -> str:
        """How the machine's process is recognised."""
        return _machine_name(self.identity)

    @property
    def state(self) -> State | None:
        """The running machine's record; None when it is down."""
        state = State.load(self.folder / "vm.json")
        return state if state and state.running else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of the same clone out."""
        with host.locked(self.folder.with_suffix(".lock")):
            yield

    def up(self, cold: bool = False) -> State:
        """Start the machine unless it runs; its record."""
        if state := self.state:
            return state
        host.ensure_packages()
        self._clean()
        sweep_clones()
        built = image.ensure_image(self.recipe, self.settings)
        image.sweep_images(built.key, used_images())
        return self._start(built, cold or bool(self.settings.append))

    def synchronise(self) -> None:
        """Bring the guest's copy of the source tree up to date."""
        synchronise(self.tree, self.guest, self._stamp)

    def down(self) -> bool:
        """Stop the machine; whether there was one."""
        state = self.state
        if state:
            self.guest.disconnect()
            machine.stop(state.pid, state.name, self.sockets)
        self._clean()
        return state is not None

    @property
    def _stamp(self) -> Path:
        return self.folder / "sync.json"

    def _clean(self) -> None:
        """Remove what a machine that is gone has left; its logs stay for diagnosis."""
        machine.stop_leftover(self.folder, self.name, self.sockets)
        for name in ("vm.json", "sync.json", "root.qcow2", "data.qcow2"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("root.ssh", "dev.ssh", "qmp"):
            (self.sockets / name).unlink(missing_ok=True)

    def _start(self, built: image.Image, cold: bool) -> State:
        for accelerator in accelerators(self.settings):
            try:
                return self._start_with(accelerator, built, cold)
            except machine.KvmUnusable as error:
                host.say(f"KVM does not work here ({error}): emulating the processor instead")
                if error.lasting:
                    _remember_broken_kvm()
        raise VmError("no accelerator is left to try")

    def _start_with(self, accelerator: str, built: image.Image, cold: bool) -> State:
        if not cold:
            saved = snapshot.ensure(built, self.settings, accelerator, self.tree)
            try:
                with host.step(f"restoring the booted machine ({accelerator})"):
                    return self._restore(accelerator, built, saved)
            except VmError as error:
                host.say(f"cannot restore {saved.folder}: {error}; booting instead")
                shutil.rmtree(saved.folder, ignore_errors=True)  # the next start makes it anew
                self._clean()
        with host.step(f"booting ({accelerator})"):
            return self._boot(accelerator, built)

    def _restore(self, accelerator: str, built: image.Image, saved: snapshot.Snapshot) -> State:
        for disk in ("root", "data"):
            machine.make_overlay(self.folder / f"{disk}.qcow2", saved.disk(disk), "qcow2")
        with self._process(accelerator, built, saved.memory) as process:
            process.wait_for_state_loaded()
            process.wait_for_ssh()
            Stamp.load(saved.stamp).save(self._stamp)
            self.guest.write_config(built, process.machine.port)
            # The guest's clock still stands where the state was saved.
            self.guest.check(f"date --utc --set=@{time.time():.3f}")
            return self._record(process, built, restored=True)

    def _boot(self, accelerator: str, built: image.Image) -> State:
        for disk in ("root", "data"):
            machine.make_overlay(self.folder / f"{disk}.qcow2", built.path(f"{disk}.img"), "raw")
        with self._process(accelerator, built, None) as process:
            process.wait_for_ssh()
            self.guest.write_config(built, process.machine.port)
            snapshot.settle(self.guest)
            return self._record(process, built, restored=False)

    @contextlib.contextmanager
    def _process(
        self, accelerator: str, built: image.Image, incoming: Path | None
    ) -> Iterator[machine.Process]:
        """A started QEMU that does not survive a failure in the block."""
        port = machine.free_port()
        vm = machine.Machine(self.folder, self.sockets, self.name, accelerator, port)
        process = machine.start(vm, built, self.settings, incoming)
        try:
            yield process
        except BaseException:
            process.kill()
            raise

    def _record(self, process: machine.Process, built: image.Image, restored: bool) -> State:
        vm = process.machine
        state = State(
            process.pid, vm.name, vm.port, vm.accelerator, built.key, restored, time.time()
        )
        (self.folder / "vm.json").write_text(json.dumps(asdict(state)))
        return state


def _machine_name(identity: str) -> str:
    return f"agentres-vm-{identity}"


def clones_dir() -> Path:
    """The cache's folder of the clones' states."""
    return cache_dir() / "clones"


def used_images() -> set[str]:
    """The images that running machines are made of."""
    states = (State.load(path) for path in clones_dir().glob("*/vm.json"))
    return {state.image for state in states if state and state.running}


def sweep_clones() -> None:
    """Stop and remove the machines of clones that are no more."""
    for folder in clones_dir().iterdir():
        owner = folder / "owner"
        if not owner.is_file() or Path(os.fsdecode(owner.read_bytes())).exists():
            continue
        sockets = sockets_dir(folder, folder.name)
        machine.stop_leftover(folder, _machine_name(folder.name), sockets)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)


def accelerators(settings: Settings) -> list[str]:
    """What to try, in this order."""
    if settings.accelerator:
        return [settings.accelerator]
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not _kvm_known_broken()
    return ["kvm", "tcg"] if usable else ["tcg"]


def _kvm_verdict() -> str:
    """What a verdict on KVM holds for: this boot of the host and this QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {snapshot.qemu_version()}"


def _kvm_known_broken() -> bool:
    try:
        return (cache_dir() / "kvm-broken").read_text() == _kvm_verdict()
    except OSError:
        return False


def _remember_broken_kvm() -> None:
    (cache_dir() / "kvm-broken").write_text(_kvm_verdict())
