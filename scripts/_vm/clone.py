"""The VM of a clone of the project, one for each Debian release and name: its state, from `up` to `down`."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import host, image
from .config import RELEASE, SOURCE_TREE, Settings, VmError, cache_dir
from .guest import Guest, sockets_dir
from .machine import Kind, Place
from .qemu import Qemu
from .recipe import Recipe
from .sync import synchronise
from .uml import Uml, lower_mappings

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class State:
    """A running machine, as recorded by the run that started it."""

    pid: int
    accelerator: str
    image: str
    started: float

    @classmethod
    def load(cls, path: Path) -> "State | None":
        """Read it; None when there is none or it is damaged."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


_SERVE = {"stock": ("kvm", "tcg")}
"""The kinds of machine that are what is wanted, where these are others than that itself."""


class Clone:
    """Everything of one clone's VM lives in a folder named by the clone's path."""

    def __init__(self, tree: Path = SOURCE_TREE) -> None:
        self.tree = tree
        self.settings = Settings.from_environment()
        self.recipe = Recipe(self.settings.release, tree)
        which = "" if self.recipe.release == RELEASE else f"\0{self.recipe.release}"
        if self.settings.name:
            which += f"\0\0{self.settings.name}"
        identity = hashlib.sha256(os.fsencode(tree) + which.encode()).hexdigest()[:12]
        self.folder = clones_dir() / identity
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "owner").write_bytes(os.fsencode(tree))
        self.place = _place(self.folder)
        self.guest = Guest(self.folder, self.place.sockets)

    @property
    def state(self) -> State | None:
        """The running machine's record; None when it is down."""
        state = State.load(self.folder / "vm.json")
        return state if state and self.place.pid == state.pid else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of the same clone out."""
        with host.locked(self.folder.with_suffix(".lock")):
            yield

    def up(self) -> State:
        """Start the machine unless it runs; its record."""
        if state := self.state:
            wanted = self.settings.accelerator
            if wanted and state.accelerator not in _SERVE.get(wanted, (wanted,)):
                raise VmError(
                    f"a machine runs already, by {state.accelerator} instead of {wanted}: scripts/vm down ends it"
                )
            return state
        if self._clean():
            host.say("a machine that was left over was stopped")
        sweep_clones()
        built = image.ensure_image(self.recipe, self.settings)
        image.sweep_images(built.key, used_images())
        kind = choose(built, self.settings)
        with host.step(f"booting ({kind.name})"):
            try:
                return self._boot(kind, built)
            except BaseException:
                self._clean()
                raise

    def synchronise(self) -> None:
        """Bring the guest's copy of the source tree up to date."""
        synchronise(self.tree, self.guest, self.folder / "sync.json")

    def execute(self, command: Sequence[str], user: str, tty: bool) -> int:
        """Run a command in the machine that runs now; its exit status."""
        pid = self.place.pid
        return self.guest.execute(command, user, tty, lambda: self.place.pid == pid)

    def down(self) -> bool:
        """Stop the machine; whether there was one."""
        # Whoever has the lock may be waiting for a machine that hangs.
        self.guest.disconnect()
        ran = self.place.stop()
        with self.locked():
            return self._clean() or ran

    def _clean(self) -> bool:
        """End the machine and remove what it wrote, whoever started it; its logs stay. Whether it ran."""
        self.guest.disconnect()  # a connection that nobody ends keeps the machine's network
        ran = self.place.stop()
        lower_mappings()
        for name in ("vm.json", "sync.json", "root.qcow2", "data.qcow2", "root.cow", "data.cow"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("root.ssh", "dev.ssh"):
            (self.place.sockets / name).unlink(missing_ok=True)
        shutil.rmtree(self.place.sockets / self.place.name, ignore_errors=True)
        return ran

    def _boot(self, kind: Kind, built: image.Image) -> State:
        deadline = time.monotonic() + kind.boot_seconds
        pid = kind.start(self.place, built, self.settings)
        self.guest.write_config(built, kind.reach(pid))
        while True:
            try:
                self.guest.connect("root", attempts=1)
                break
            except VmError:
                if self.place.pid != pid:
                    raise VmError(
                        f"the machine ended while booting\n{self.place.last_words()}"
                    ) from None
                if time.monotonic() > deadline:
                    raise VmError(
                        f"no ssh within {kind.boot_seconds:.0f} s\n{self.place.last_words()}"
                    ) from None
            time.sleep(_POLL_SECONDS)
        self.guest.settle()
        state = State(pid, kind.name, built.key, time.time())
        (self.folder / "vm.json").write_text(json.dumps(asdict(state)))
        return state


def choose(built: image.Image, settings: Settings) -> Kind:
    """The kind of machine that serves best here, ready to be started."""
    kvm, uml, tcg = Qemu("kvm"), Uml(), Qemu("tcg")
    wanted = settings.accelerator
    if wanted in (None, "stock") and os.access("/dev/kvm", os.R_OK | os.W_OK):
        try:
            kvm.prepare(settings)
            if kvm.boots(built):
                return kvm
        except VmError as error:
            host.say(f"KVM cannot be tried ({error})")
    if wanted is None:
        try:
            uml.prepare(settings)
            return uml
        except VmError as error:
            host.say(f"no User Mode Linux here ({error}): emulating the processor instead")
    kinds: dict[str | None, Kind] = {"kvm": kvm, "uml": uml}
    kind = kinds.get(wanted, tcg)
    kind.prepare(settings)
    return kind


def clones_dir() -> Path:
    """The cache's folder of the clones' states."""
    return cache_dir() / "clones"


def _place(folder: Path) -> Place:
    return Place(folder, sockets_dir(folder, folder.name), f"agentres-vm-{folder.name}")


def used_images() -> set[str]:
    """The images that running machines are made of."""
    states = {path.parent: State.load(path) for path in clones_dir().glob("*/vm.json")}
    return {state.image for folder, state in states.items() if state and _place(folder).pid}


def sweep_clones() -> None:
    """Stop and remove the machines of clones that are no more."""
    for folder in clones_dir().iterdir():
        owner = folder / "owner"
        if not owner.is_file() or Path(os.fsdecode(owner.read_bytes())).exists():
            continue
        place = _place(folder)
        Guest(folder, place.sockets).disconnect()
        place.stop()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place.sockets, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
