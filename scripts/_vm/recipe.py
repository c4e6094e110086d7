"""What the image is made of, and the key that changes with it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .config import SOURCE_TREE, VmError

# The Python that each Debian release ships: wheels are fetched for it on the host.
PYTHON_OF_RELEASE = {"trixie": "3.13", "bookworm": "3.11"}

PACKAGES = (
    # The system itself.
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "systemd-oomd",  # looks after nothing until a test asks it to
    "dbus",
    "dbus-user-session",
    "libpam-systemd",
    "udev",
    "openssh-server",
    "sudo",
    # What tests and benchmarks call.
    "python3",
    "python3-venv",
    "iproute2",
    "kmod",
    "procps",
    "psmisc",
    "util-linux",
    "strace",
    "bubblewrap",  # a sandbox of the user's choice, in an agent
    "gcc",
    "libc6-dev",
    "make",
    "rsync",  # how Vagrant brings the sources
    # Layers between a file and its disk, for the I/O tests.
    "e2fsprogs",
    "fdisk",
    "lvm2",
    "cryptsetup-bin",
    "mdadm",
    "btrfs-progs",
    "xfsprogs",
)

ROOT_DISK = "8G"
DATA_DISK = "2G"

# The modules whose text decides what an image holds.
_BUILD_CODE = ("recipe.py", "layout.py", "build.py", "rootfs.py", "wheels.py")


@dataclass(frozen=True)
class Recipe:
    """One image's ingredients."""

    release: str
    source_tree: Path = SOURCE_TREE

    def __post_init__(self) -> None:
        if self.release not in PYTHON_OF_RELEASE:
            known = ", ".join(PYTHON_OF_RELEASE)
            raise VmError(f"AGENTRES_VM_RELEASE is {self.release!r}, not one of {known}")

    @property
    def python(self) -> str:
        """The guest's Python, as major.minor."""
        return PYTHON_OF_RELEASE[self.release]

    @property
    def requirements(self) -> Path:
        """The hash-locked requirements of the guest's environment."""
        return self.source_tree / "requirements" / "guest.txt"

    @property
    def key(self) -> str:
        """A short name that differs for every different image."""
        digest = hashlib.sha256(self.release.encode())
        here = Path(__file__).parent
        for path in [*(here / name for name in _BUILD_CODE), self.requirements]:
            digest.update(b"\0" + path.read_bytes())
        return f"{self.release}-{digest.hexdigest()[:12]}"
